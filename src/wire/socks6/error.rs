//! What can be wrong with a message: broken forms, which end it, and faulty options, which don't.

use std::error::Error;
use std::fmt;

use super::{Kind, MAX_INITIAL_DATA};
use crate::wire::{self, NameError};

/// What decoding came to when nothing was wrong with the form of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The message is there.
    Whole {
        /// What it says.
        message: T,
        /// How many bytes it took; the rest of the input belongs to what follows.
        length: usize,
        /// Which of its options were left out or are doubtful.
        problems: Problems,
    },
    /// The message is not complete. At least so many bytes are missing, never 0; once the lengths in the message are
    /// known, it is exactly so many.
    Missing(usize),
}

/// What is wrong with the form of a message, so that it can't be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The first byte is not the profile's version.
    Version(u8),
    /// The options are longer than the profile allows.
    OptionsTooLong {
        /// What the message says.
        length: u16,
        /// What is allowed.
        limit: u16,
    },
    /// The length of all options is not a multiple of 4.
    OptionsUnaligned(u16),
    /// The options can't be told apart from one on.
    Option {
        /// Where it begins, counted from the first option.
        at: u16,
        /// Why.
        error: OptionError,
    },
    /// The address type is not IPv4, name or IPv6, so where the message ends is unknown.
    AddressType(u8),
    /// The length byte of a name is none that the profile understands.
    NameLength(u8),
    /// A destination that can't be a name.
    Name(NameError),
    /// A UDP message says that it is shorter than its own fields.
    MessageLength(u16),
    /// A datagram ends before the message in it does. Drop it silently ("Datagrams").
    PacketTooShort,
}

/// Why the rest of the options can't be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionError {
    /// Too few bytes are left for kind and length.
    Header,
    /// The length is less than that of kind and length.
    TooShort(u16),
    /// The length is not a multiple of 4.
    Unaligned(u16),
    /// The length goes past the end of the options.
    PastEnd(u16),
}

/// How a proxy answers a request that it can't understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With [`VersionMismatch`](super::VersionMismatch), then it closes ("Version Mismatch Replies").
    VersionMismatch,
    /// With a failed authentication, then it closes.
    FailAuthentication,
    /// With a failed authentication and an operation reply that says so, then it closes: the draft is silent, and this
    /// is what clients meet elsewhere.
    AddressTypeNotSupported,
    /// Not at all; it closes.
    Close,
}

/// A doubtful option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// Where it begins, counted from the first option.
    pub at: u16,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an option that is well-formed as far as its length goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its body can't be one of its kind. The option was left out.
    Malformed(Malformed),
    /// Its kind has no business in this message. The option was left out.
    Misplaced,
    /// It was there before, with the same content. The first one was taken.
    Duplicate,
    /// It contradicts one before it. The earlier one was taken.
    Contradiction,
    /// It has no meaning outside a session. It was kept, since only the server knows of the session.
    WithoutSession,
    /// It is more than what is remembered of its kind, and was left out.
    TooMany,
}

/// Why a body can't be one of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The option is too short or too long: so many bytes with kind and length.
    Length(u16),
    /// A byte that must be one of a few values is not.
    Value(u8),
    /// A stack option for a leg that it isn't defined for.
    Leg(u8),
    /// More initial data than [`MAX_INITIAL_DATA`], or any although the command isn't CONNECT.
    InitialData(u16),
    /// A window of no token, or of half of all tokens or more.
    WindowSize(u32),
    /// User and password, or the answer to them, can't be understood.
    UserPassword,
}

/// What the receiver of a faulty option does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing: as if the option were not there.
    Ignore,
    /// A proxy answers with a failed authentication and closes; a client closes. For what says two things about who the
    /// client is, or leaves open where its data begins: somebody else on the way may have read it in the other way.
    Refuse,
}

/// The faulty options of one message. Remembers the first [`Problems::KEPT`] and the first grave one, counts the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    kept: [Option<Problem>; Self::KEPT],
    count: u16,
    grave: Option<Problem>,
}

impl<T> Decoded<T> {
    /// The message and its length, as [`crate::wire`] has it; the problems are dropped.
    #[must_use]
    pub fn whole(self) -> Option<(T, usize)> {
        match self {
            Self::Whole {
                message, length, ..
            } => Some((message, length)),
            Self::Missing(_) => None,
        }
    }
}

impl DecodeError {
    /// How a proxy answers a request with this error.
    #[must_use]
    pub const fn answer(self) -> Answer {
        match self {
            Self::Version(_) => Answer::VersionMismatch,
            Self::AddressType(_) => Answer::AddressTypeNotSupported,
            Self::OptionsUnaligned(_)
            | Self::Option { .. }
            | Self::NameLength(_)
            | Self::Name(_) => Answer::FailAuthentication,
            Self::OptionsTooLong { .. } | Self::MessageLength(_) | Self::PacketTooShort => {
                Answer::Close
            }
        }
    }
}

impl Fault {
    /// What the receiver of an option of this kind does.
    #[must_use]
    pub fn consequence(self, kind: Kind) -> Consequence {
        match self {
            Self::Malformed(Malformed::InitialData(_)) => Consequence::Refuse,
            Self::Contradiction if kind != Kind::STACK => Consequence::Refuse,
            _ => Consequence::Ignore,
        }
    }
}

impl Problems {
    /// How many are remembered, enough for a log.
    pub const KEPT: usize = 4;

    /// How many there were.
    #[must_use]
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// Whether there were none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first ones, in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = Problem> {
        self.kept.into_iter().flatten()
    }

    /// The gravest consequence of all of them.
    #[must_use]
    pub const fn consequence(&self) -> Consequence {
        match self.grave {
            Some(_) => Consequence::Refuse,
            None => Consequence::Ignore,
        }
    }

    /// The first one that must not be ignored, however many harmless ones were before it.
    #[must_use]
    pub const fn grave(&self) -> Option<Problem> {
        self.grave
    }

    pub(super) fn add(&mut self, kind: Kind, at: u16, fault: Fault) {
        let problem = Problem { kind, at, fault };
        if let Some(slot) = self.kept.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(problem);
        }
        self.count = self.count.saturating_add(1);
        if fault.consequence(kind) == Consequence::Refuse {
            self.grave.get_or_insert(problem);
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(byte) => write!(f, "unexpected version byte {byte:#04x}"),
            Self::OptionsTooLong { length, limit } => {
                write!(f, "{length} bytes of options, more than {limit}")
            }
            Self::OptionsUnaligned(length) => {
                write!(f, "{length} bytes of options, not a multiple of 4")
            }
            Self::Option { at, error } => write!(f, "option at byte {at}: {error}"),
            Self::AddressType(byte) => write!(f, "unknown address type {byte:#04x}"),
            Self::NameLength(length) => write!(f, "impossible length of a name: {length}"),
            Self::Name(error) => write!(f, "bad destination name: {error}"),
            Self::MessageLength(length) => {
                write!(f, "message of {length} bytes is shorter than its fields")
            }
            Self::PacketTooShort => write!(f, "datagram is shorter than its message"),
        }
    }
}

impl Error for DecodeError {}

impl From<NameError> for DecodeError {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "no room for kind and length"),
            Self::TooShort(length) => write!(f, "length {length} is less than 4"),
            Self::Unaligned(length) => write!(f, "length {length} is not a multiple of 4"),
            Self::PastEnd(length) => write!(f, "length {length} goes past the end"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.kind, self.at, self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::Misplaced => write!(f, "does not belong into this message"),
            Self::Duplicate => write!(f, "repeated"),
            Self::Contradiction => write!(f, "contradicts an earlier one"),
            Self::WithoutSession => write!(f, "has no meaning without a session"),
            Self::TooMany => write!(f, "more of them than are remembered"),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "impossible length {length}"),
            Self::Value(byte) => write!(f, "impossible value {byte:#04x}"),
            Self::Leg(byte) => write!(f, "not defined for leg {byte}"),
            Self::InitialData(length) => write!(
                f,
                "{length} bytes of initial data, at most {MAX_INITIAL_DATA} and only for CONNECT"
            ),
            Self::WindowSize(size) => write!(f, "impossible window of {size} tokens"),
            Self::UserPassword => write!(f, "user and password can't be understood"),
        }
    }
}

/// For the sub-messages that SOCKS 5 and SOCKS 6 share.
impl From<wire::DecodeError> for Malformed {
    fn from(_: wire::DecodeError) -> Self {
        Self::UserPassword
    }
}
