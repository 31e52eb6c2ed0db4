//! Why a datagram was dropped. Nobody is told but the statistics.

use std::io;

use rustix::io::Errno;

use crate::wire::DecodeError;
#[cfg(feature = "socks6")]
use crate::wire::socks6;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// It came to the client's side, but not from the client.
    Stranger,
    /// Its reserved bytes are not 0.
    Reserved,
    /// It is a fragment (RFC 1928 §7: "an implementation that does not support fragmentation MUST drop" them).
    Fragment,
    /// Its header is longer than it is.
    Short,
    /// There is no such type of address.
    AddressType,
    /// The name in it can't be one, or is another spelling of an IPv4 address.
    Name,
    /// It is for port 0.
    PortZero,
    /// The client may not send there; nor may what comes from there reach it.
    Rules,
    /// It came from somebody that the client has not sent to.
    Unsolicited,
    /// Its name has no address that can be found.
    LookUp,
    /// Too many wait for look-ups already.
    Queue,
    /// With its header it is more than a datagram can hold, or a path.
    TooLarge,
    /// The system has no room for it now.
    Congested,
    /// The system knows no way to there.
    Unreachable,
    /// The system gives no socket.
    Socket,
    /// Its first byte is not that of this association.
    #[cfg(feature = "socks6")]
    Version,
    /// It is a message that clients don't send.
    #[cfg(feature = "socks6")]
    Message,
    /// It is for an association that there is not, or not on that connection.
    #[cfg(feature = "socks6")]
    Association,
}

impl Dropped {
    /// Under which name it is counted.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Reserved => "reserved",
            Self::Fragment => "fragment",
            Self::Short => "short",
            Self::AddressType => "address-type",
            Self::Name => "name",
            Self::PortZero => "port-0",
            Self::Rules => "rules",
            Self::Unsolicited => "unsolicited",
            Self::LookUp => "look-up",
            Self::Queue => "queue",
            Self::TooLarge => "too-large",
            Self::Congested => "congested",
            Self::Unreachable => "unreachable",
            Self::Socket => "socket",
            #[cfg(feature = "socks6")]
            Self::Version => "version",
            #[cfg(feature = "socks6")]
            Self::Message => "message",
            #[cfg(feature = "socks6")]
            Self::Association => "association",
        }
    }

    /// What an error of sending means.
    pub(super) fn unsent(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::MSGSIZE) => Self::TooLarge,
            Some(Errno::NOBUFS | Errno::NOMEM) => Self::Congested,
            _ => Self::Unreachable,
        }
    }
}

/// What a bad header means. [`DatagramHeader`](crate::wire::socks5::DatagramHeader) calls its reserved bytes a version.
impl From<DecodeError> for Dropped {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::AddressType(_) => Self::AddressType,
            DecodeError::Name(_) => Self::Name,
            _ => Self::Reserved,
        }
    }
}

#[cfg(feature = "socks6")]
impl From<socks6::DecodeError> for Dropped {
    fn from(error: socks6::DecodeError) -> Self {
        use socks6::DecodeError;
        match error {
            DecodeError::Version(_) => Self::Version,
            DecodeError::AddressType(_) => Self::AddressType,
            DecodeError::Name(_) | DecodeError::NameLength(_) => Self::Name,
            _ => Self::Short,
        }
    }
}
