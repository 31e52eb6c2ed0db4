//! The answer to a client of another version.
//!
//! What to read: "Version Mismatch Replies" in the draft.

use super::{Decoded, Profile};
use crate::wire::socks6::error::Problems;

/// One byte: the version that the proxy speaks. Both sides close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionMismatch(pub u8);

impl VersionMismatch {
    /// It is always this long.
    pub const LEN: usize = 1;

    /// What a proxy of this profile sends.
    #[must_use]
    pub const fn of(profile: &Profile) -> Self {
        Self(profile.version)
    }

    /// Every byte is a version. It is one of these replies only if the proxy closes right behind it, or if it isn't the
    /// version that was asked for.
    #[must_use]
    pub fn decode(input: &[u8]) -> Decoded<Self> {
        match input.first() {
            Some(&version) => Decoded::Whole {
                message: Self(version),
                length: Self::LEN,
                problems: Problems::default(),
            },
            None => Decoded::Missing(Self::LEN),
        }
    }

    /// Appends the message.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.push(self.0);
    }
}
