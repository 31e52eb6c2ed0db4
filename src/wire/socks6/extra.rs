//! Options that this module gives no meaning to.

use std::error::Error;
use std::fmt;

use super::option::{Kind, RawOption};
use super::profile::{Alignment, Profile};

/// Options of kinds we don't know, experimental ones, and stack options we don't know, in the order of the message.
///
/// Receivers skip them ("SOCKS Options"); they are kept for those who give them a meaning, and so that a message can be
/// passed on as it was. At most [`ExtraOptions::MAX_LEN`] bytes are kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ExtraOptions(Vec<u8>);

/// Why an option can't be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtraTooLong;

impl ExtraOptions {
    /// Of all of them with kinds and lengths. Generous for experiments, and with all other options at their longest a
    /// message still stays below [`super::MAX_OPTIONS_SENT`].
    pub const MAX_LEN: usize = 4096;

    /// Adds an option; the data are padded with zeros to a multiple of 4.
    ///
    /// # Errors
    ///
    /// There would be more than [`ExtraOptions::MAX_LEN`] bytes.
    pub fn push(&mut self, kind: Kind, data: &[u8]) -> Result<(), ExtraTooLong> {
        let length = (RawOption::HEADER + data.len()).next_multiple_of(4);
        if self.0.len() + length > Self::MAX_LEN {
            return Err(ExtraTooLong);
        }
        RawOption::write(kind, &[data], &mut self.0);
        Ok(())
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, with data padded.
    pub fn iter(&self) -> impl Iterator<Item = RawOption<'_>> {
        let profile = Profile {
            alignment: Alignment::Strict,
            ..Profile::DRAFT_12
        };
        RawOption::all(&self.0, &profile).filter_map(Result::ok)
    }

    /// The data of the first one of this kind.
    #[must_use]
    pub fn find(&self, kind: Kind) -> Option<&[u8]> {
        self.iter()
            .find(|option| option.kind == kind)
            .map(|option| option.data)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(&self.0);
    }
}

impl fmt::Debug for ExtraOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Display for ExtraTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = ExtraOptions::MAX_LEN;
        write!(f, "further options have at most {limit} bytes together")
    }
}

impl Error for ExtraTooLong {}
