//! Options as kind, length and body, before anything is known of them.
//!
//! What to read: "SOCKS Options" in the draft.

use std::fmt;

use super::error::{DecodeError, OptionError};
use super::profile::{Alignment, Profile};

/// The kind of an option. Any number is one; those we know have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub u16);

/// One option of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawOption<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Where it begins, counted from the first option of the message.
    pub at: u16,
    /// What follows kind and length, padding included.
    pub data: &'a [u8],
}

/// The options of a message, one after the other. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RawOptions<'a> {
    rest: &'a [u8],
    at: usize,
    alignment: Alignment,
}

impl Kind {
    /// Options of the network stack: TOS, TTL and others.
    pub const STACK: Self = Self(1);
    /// The methods a client is ready to negotiate.
    pub const METHOD_ADVERTISEMENT: Self = Self(2);
    /// The method a proxy wants.
    pub const METHOD_SELECTION: Self = Self(3);
    /// A method's data that need no negotiation, and the answer to them.
    pub const AUTH_DATA: Self = Self(4);
    /// The wish for a session.
    pub const SESSION_REQUEST: Self = Self(5);
    /// A session's id.
    pub const SESSION_ID: Self = Self(6);
    /// The session goes on.
    pub const SESSION_OK: Self = Self(8);
    /// There is no such session.
    pub const SESSION_INVALID: Self = Self(9);
    /// The session shall end.
    pub const SESSION_TEARDOWN: Self = Self(10);
    /// The wish for a token window.
    pub const IDEMPOTENCE_REQUEST: Self = Self(11);
    /// The token window.
    pub const IDEMPOTENCE_WINDOW: Self = Self(12);
    /// A token is spent.
    pub const IDEMPOTENCE_EXPENDITURE: Self = Self(13);
    /// The token was good.
    pub const IDEMPOTENCE_ACCEPTED: Self = Self(14);
    /// The token was not.
    pub const IDEMPOTENCE_REJECTED: Self = Self(15);
    /// The number of a stream in a multiplexed connection (experimental, of the Go implementation).
    pub const STREAM_ID: Self = Self(0xfd10);
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match *self {
            Self::STACK => "Stack",
            Self::METHOD_ADVERTISEMENT => "Authentication Method Advertisement",
            Self::METHOD_SELECTION => "Authentication Method Selection",
            Self::AUTH_DATA => "Authentication Data",
            Self::SESSION_REQUEST => "Session Request",
            Self::SESSION_ID => "Session ID",
            Self::SESSION_OK => "Session OK",
            Self::SESSION_INVALID => "Session Invalid",
            Self::SESSION_TEARDOWN => "Session Teardown",
            Self::IDEMPOTENCE_REQUEST => "Idempotence Request",
            Self::IDEMPOTENCE_WINDOW => "Idempotence Window",
            Self::IDEMPOTENCE_EXPENDITURE => "Idempotence Expenditure",
            Self::IDEMPOTENCE_ACCEPTED => "Idempotence Accepted",
            Self::IDEMPOTENCE_REJECTED => "Idempotence Rejected",
            Self(kind) => return write!(f, "option {kind:#06x}"),
        })
    }
}

impl<'a> RawOption<'a> {
    /// Kind and length.
    pub const HEADER: usize = 4;

    /// The length field: of the whole option.
    #[must_use]
    pub fn length(&self) -> u16 {
        u16::try_from(Self::HEADER + self.data.len()).unwrap_or(u16::MAX)
    }

    /// Appends the option, its data padded with zeros to a multiple of 4.
    pub(super) fn write(kind: Kind, data: &[&[u8]], out: &mut Vec<u8>) {
        let length: usize = data.iter().map(|part| part.len()).sum();
        let padded = (Self::HEADER + length).next_multiple_of(4);
        out.extend(kind.0.to_be_bytes());
        out.extend(u16::try_from(padded).unwrap_or(u16::MAX).to_be_bytes());
        for part in data {
            out.extend(*part);
        }
        out.resize(out.len() + padded - Self::HEADER - length, 0);
    }

    /// The options of a message's options field.
    #[must_use]
    pub const fn all(options: &'a [u8], profile: &Profile) -> RawOptions<'a> {
        RawOptions {
            rest: options,
            at: 0,
            alignment: profile.alignment,
        }
    }
}

/// Without the body, which may be a secret.
impl fmt::Debug for RawOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.kind, self.length())
    }
}

impl<'a> Iterator for RawOptions<'a> {
    type Item = Result<RawOption<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        // The field's length has 16 bits.
        let at = u16::try_from(self.at).unwrap_or(u16::MAX);
        let read = self.read(at);
        if read.is_err() {
            self.rest = &[];
        }
        Some(read.map_err(|error| DecodeError::Option { at, error }))
    }
}

impl<'a> RawOptions<'a> {
    fn read(&mut self, at: u16) -> Result<RawOption<'a>, OptionError> {
        let Some(&[kind_high, kind_low, high, low]) = self.rest.first_chunk() else {
            return Err(OptionError::Header);
        };
        let length = u16::from_be_bytes([high, low]);
        let whole = usize::from(length);
        if whole < RawOption::HEADER {
            return Err(OptionError::TooShort(length));
        }
        if self.alignment == Alignment::Strict && !whole.is_multiple_of(4) {
            return Err(OptionError::Unaligned(length));
        }
        let Some((option, rest)) = self.rest.split_at_checked(whole) else {
            return Err(OptionError::PastEnd(length));
        };
        self.rest = rest;
        self.at += whole;
        Ok(RawOption {
            kind: Kind(u16::from_be_bytes([kind_high, kind_low])),
            at,
            data: option.get(RawOption::HEADER..).unwrap_or_default(),
        })
    }
}
