//! SOCKS4 and SOCKS4a messages.
//!
//! What to read: "SOCKS: A protocol for TCP proxy across firewalls" (Lee, 1994), "CONNECT" and "BIND", and its
//! one-page extension "SOCKS 4A". SOCKS4a puts a name behind the user id and the impossible address 0.0.0.x,
//! x not 0, in its place.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{Address, DecodeError, Host, Name, NameError, reader};

/// The first byte of a request.
pub const VERSION: u8 = 4;

/// The first byte of a reply.
pub const REPLY_VERSION: u8 = 0;

/// The protocol sets no limit; this one is SOCKS5's, and more than any system's user names need.
pub const MAX_USER_ID: usize = 255;

/// What the client wants from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// A connection to the address.
    Connect,
    /// A port on which the proxy accepts one connection from the address.
    Bind,
}

/// A request of SOCKS4 (the destination is an IPv4 address) or SOCKS4a (it is anything else).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    command: Command,
    address: Address,
    user_id: UserId,
}

/// Why an address can't be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The destination is not IPv4, and SOCKS4a was not wished.
    NotIpv4,
    /// 0.0.0.1 to 0.0.0.255: on the wire they say that a name follows.
    NameMarker,
}

/// The user's name, 0 to [`MAX_USER_ID`] bytes without NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UserId(Box<[u8]>);

/// The server's answer; for BIND there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How it went.
    pub code: ReplyCode,
    /// The address on the proxy's side; meaningful only for BIND.
    pub bound: SocketAddrV4,
}

/// How a request went. Any byte is a code; those we know have names and a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyCode(pub u8);

impl Request {
    /// Version, command, port, address, and twice 255 bytes with a NUL.
    pub const MAX_LEN: usize = 8 + (MAX_USER_ID + 1) + (Name::MAX_LEN + 1);

    /// A SOCKS4 request.
    ///
    /// # Errors
    ///
    /// The destination is not IPv4, or is one of the addresses that announce a name.
    pub fn socks4(
        command: Command,
        address: Address,
        user_id: UserId,
    ) -> Result<Self, RequestError> {
        let request = Self::socks4a(command, address, user_id)?;
        match request.address.host {
            Host::Ip(IpAddr::V4(_)) => Ok(request),
            _ => Err(RequestError::NotIpv4),
        }
    }

    /// A SOCKS4a request. An IPv4 address makes it the same as SOCKS4; IPv6 travels as text in place of the name.
    ///
    /// # Errors
    ///
    /// The destination is one of the addresses that announce a name.
    pub fn socks4a(
        command: Command,
        mut address: Address,
        user_id: UserId,
    ) -> Result<Self, RequestError> {
        if let Host::Ip(ip) = &mut address.host {
            *ip = ip.to_canonical();
        }
        match address.host {
            Host::Ip(IpAddr::V4(ip)) if announces_name(ip) => Err(RequestError::NameMarker),
            _ => Ok(Self {
                command,
                address,
                user_id,
            }),
        }
    }

    /// What to do.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.command
    }

    /// With whom.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Who asks, unverified.
    #[must_use]
    pub const fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// The parts, without copying them.
    #[must_use]
    pub fn into_parts(self) -> (Command, Address, UserId) {
        (self.command, self.address, self.user_id)
    }

    /// See [`crate::wire`] for the convention.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Version`], [`DecodeError::Command`], [`DecodeError::UserIdTooLong`], [`DecodeError::Name`].
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        reader::decode(input, |reader| {
            reader.version(VERSION)?;
            let command = match reader.byte()? {
                CONNECT => Command::Connect,
                BIND => Command::Bind,
                byte => return Err(DecodeError::Command(byte).into()),
            };
            let port = reader.port()?;
            let ip = reader.ipv4()?;
            let user_id = reader.until_nul(MAX_USER_ID, DecodeError::UserIdTooLong)?;
            let user_id = UserId(user_id.into());
            let host = if announces_name(ip) {
                let name = reader.until_nul(Name::MAX_LEN, NameError::TooLong.into())?;
                let host = Host::from_name_bytes(name)?;
                if matches!(host, Host::Ip(IpAddr::V4(ip)) if announces_name(ip)) {
                    return Err(NameError::IpAddress.into());
                }
                host
            } else {
                Host::Ip(ip.into())
            };
            Ok(Self {
                command,
                address: Address::new(host, port),
                user_id,
            })
        })
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.push(match self.command {
            Command::Connect => CONNECT,
            Command::Bind => BIND,
        });
        out.extend(self.address.port.to_be_bytes());
        let name = match &self.address.host {
            Host::Ip(IpAddr::V4(ip)) => {
                out.extend(ip.octets());
                None
            }
            Host::Ip(IpAddr::V6(ip)) => Some(ip.to_string()),
            Host::Name(name) => Some(name.to_string()),
        };
        if name.is_some() {
            out.extend([0, 0, 0, 1]);
        }
        out.extend(self.user_id.as_bytes());
        out.push(0);
        if let Some(name) = name {
            out.extend(name.as_bytes());
            out.push(0);
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIpv4 => write!(f, "SOCKS4 reaches IPv4 addresses only"),
            Self::NameMarker => write!(f, "SOCKS4 can't reach 0.0.0.1 to 0.0.0.255"),
        }
    }
}

impl Error for RequestError {}

impl UserId {
    /// The user id, or `None` if it is longer than [`MAX_USER_ID`] or has a NUL.
    #[must_use]
    pub fn new(bytes: impl AsRef<[u8]>) -> Option<Self> {
        let bytes = bytes.as_ref();
        (bytes.len() <= MAX_USER_ID && !bytes.contains(&0)).then(|| Self(bytes.into()))
    }

    /// The bytes, arbitrary but for NUL: escape them for a log.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl Reply {
    /// It is always this long.
    pub const LEN: usize = 8;

    /// A reply with as much of the address as fits: an IPv6 address becomes 0.0.0.0, the proxy's own.
    #[must_use]
    pub fn new(code: ReplyCode, bound: SocketAddr) -> Self {
        let ip = match bound.ip().to_canonical() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        Self {
            code,
            bound: SocketAddrV4::new(ip, bound.port()),
        }
    }

    /// See [`crate::wire`] for the convention.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Version`], if the first byte isn't 0.
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        reader::decode(input, |reader| {
            reader.version(REPLY_VERSION)?;
            let code = ReplyCode(reader.byte()?);
            let port = reader.port()?;
            let bound = SocketAddrV4::new(reader.ipv4()?, port);
            Ok(Self { code, bound })
        })
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([REPLY_VERSION, self.code.0]);
        out.extend(self.bound.port().to_be_bytes());
        out.extend(self.bound.ip().octets());
    }
}

impl ReplyCode {
    /// Done.
    pub const GRANTED: Self = Self(90);
    /// Refused or failed.
    pub const REJECTED: Self = Self(91);
    /// Refused, because the server can't reach the client's identd.
    pub const NO_IDENTD: Self = Self(92);
    /// Refused, because the client's identd names another user.
    pub const OTHER_USER: Self = Self(93);
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::GRANTED => "granted",
            Self::REJECTED => "rejected or failed",
            Self::NO_IDENTD => "rejected: the proxy can't reach identd",
            Self::OTHER_USER => "rejected: identd names another user",
            Self(byte) => return write!(f, "unknown reply code {byte}"),
        };
        f.pad(text)
    }
}

/// 0.0.0.x with x not 0.
const fn announces_name(ip: Ipv4Addr) -> bool {
    matches!(ip.octets(), [0, 0, 0, last] if last != 0)
}

const CONNECT: u8 = 1;
const BIND: u8 = 2;
