//! Codecs: the bytes of one message to a value and back, without I/O, clock or log.
//!
//! One file per message family. Every message type follows one convention:
//!
//! - `fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, DecodeError>`: `Ok(None)` asks for more bytes,
//!   `Ok(Some((value, length)))` tells how many bytes the message took, the rest of `input` belongs to what
//!   follows. A bad byte is reported as soon as it is there, before the message is complete.
//! - `fn encode(&self, out: &mut Vec<u8>)` appends the message. It cannot fail, because the types cannot hold a
//!   value that has no encoding.
//!
//! Every message has an upper length, so a caller never has to keep more than that: see the `MAX_LEN` constants.

use std::error::Error;
use std::fmt;

pub mod address;
mod first_bytes;
mod reader;
pub mod socks4;
pub mod socks5;
#[cfg(feature = "socks6")]
pub mod socks6;
pub mod user_password;

pub use address::{Address, AddressError, BoundAddress, BoundName, Host, Name, NameError};
pub use first_bytes::FirstBytes;
pub use user_password::{Credentials, CredentialsError};

/// What is wrong with received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The version byte of a message is not the one of its protocol.
    Version(u8),
    /// The version byte of the user/password sub-negotiation is not 1 (RFC 1929 §2).
    SubVersion(u8),
    /// The command of a request is not one that the protocol defines.
    Command(u8),
    /// The address type is not IPv4, name or IPv6; the length of what follows is unknown.
    AddressType(u8),
    /// A destination name that cannot be one.
    Name(NameError),
    /// A SOCKS4 user id longer than [`socks4::MAX_USER_ID`].
    UserIdTooLong,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(byte) => write!(f, "unexpected version byte {byte:#04x}"),
            Self::SubVersion(byte) => write!(
                f,
                "unexpected version byte {byte:#04x} of the user/password exchange"
            ),
            Self::Command(byte) => write!(f, "unknown command {byte:#04x}"),
            Self::AddressType(byte) => write!(f, "unknown address type {byte:#04x}"),
            Self::Name(error) => write!(f, "bad destination name: {error}"),
            Self::UserIdTooLong => {
                write!(f, "user id is longer than {} bytes", socks4::MAX_USER_ID)
            }
        }
    }
}

impl Error for DecodeError {}

impl From<NameError> for DecodeError {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

/// What the tests of every codec check the same way.
#[cfg(test)]
mod check {
    use super::DecodeError;
    use std::fmt::Debug;

    pub(super) type Decoded<T> = Result<Option<(T, usize)>, DecodeError>;

    /// Bytes to value and back, also with bytes behind, and every truncation asks for more.
    pub(super) fn both_ways<T: Debug + PartialEq>(
        decode: impl Fn(&[u8]) -> Decoded<T>,
        encode: impl Fn(&T, &mut Vec<u8>),
        bytes: &[u8],
        value: &T,
    ) {
        let mut out = Vec::new();
        encode(value, &mut out);
        assert_eq!(out, bytes, "encoding of {value:?}");
        decodes(decode, bytes, value);
    }

    /// As [`both_ways`], for bytes that we would write in another way.
    pub(super) fn decodes<T: Debug + PartialEq>(
        decode: impl Fn(&[u8]) -> Decoded<T>,
        bytes: &[u8],
        value: &T,
    ) {
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Ok(None), "{bytes:02x?} cut at {cut}");
        }
        let mut longer = bytes.to_vec();
        for _ in 0..3 {
            let (decoded, length) = decode(&longer).unwrap().unwrap();
            assert_eq!((&decoded, length), (value, bytes.len()));
            longer.push(5);
        }
    }

    /// The error appears with the last byte given, whatever follows.
    pub(super) fn fails<T: Debug + PartialEq>(
        decode: impl Fn(&[u8]) -> Decoded<T>,
        bytes: &[u8],
        error: DecodeError,
    ) {
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Ok(None), "{bytes:02x?} cut at {cut}");
        }
        let mut longer = bytes.to_vec();
        for _ in 0..3 {
            assert_eq!(decode(&longer), Err(error), "{longer:02x?}");
            longer.push(5);
        }
    }
}
