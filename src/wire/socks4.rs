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
    /// SOCKS4 knows CONNECT and BIND only.
    NoSuchCommand,
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
            Self::NoSuchCommand => write!(f, "SOCKS4 knows CONNECT and BIND only"),
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

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn request_both_ways() {
        let long = "n".repeat(255);
        let mut long_bytes = b"\x04\x01\0\x50\0\0\0\x01".to_vec();
        long_bytes.extend([long.as_bytes(), &[0], long.as_bytes(), &[0]].concat());
        for (bytes, command, to, user_id) in [
            (
                &b"\x04\x01\0\x50\xc0\0\x02\x01ada\0"[..],
                Command::Connect,
                "192.0.2.1:80",
                "ada",
            ),
            (b"\x04\x02\0\0\0\0\0\0\0", Command::Bind, "0.0.0.0:0", ""),
            (
                b"\x04\x01\0\x50\0\0\0\x01ada\0example.com\0",
                Command::Connect,
                "example.com:80",
                "ada",
            ),
            (
                b"\x04\x01\0\x50\0\0\0\x01\0::1\0",
                Command::Connect,
                "[::1]:80",
                "",
            ),
            (&long_bytes, Command::Connect, &format!("{long}:80"), &long),
        ] {
            assert!(bytes.len() <= Request::MAX_LEN);
            let request = Request::socks4a(command, address(to), user(user_id)).unwrap();
            check::both_ways(Request::decode, Request::encode, bytes, &request);
        }
    }

    #[test]
    fn every_mark_announces_a_name() {
        for mark in 1..=255 {
            let bytes = [&[4, 1, 0, 80, 0, 0, 0, mark], &b"\0a\0"[..]].concat();
            let request = Request::socks4a(Command::Connect, address("a:80"), user("")).unwrap();
            check::decodes(Request::decode, &bytes, &request);
        }
    }

    #[test]
    fn bad_bytes_of_a_request_have_their_error() {
        for version in (0..=255).filter(|&byte| byte != 4) {
            check::fails(Request::decode, &[version], DecodeError::Version(version));
        }
        for command in (0..=255).filter(|byte| !(1..=2).contains(byte)) {
            let error = DecodeError::Command(command);
            check::fails(Request::decode, &[4, command], error);
        }
        let v4 = b"\x04\x01\0\x50\xc0\0\x02\x01";
        let v4a = b"\x04\x01\0\x50\0\0\0\x01";
        let long_user = [&v4[..], &[b'u'; 256]].concat();
        check::fails(Request::decode, &long_user, DecodeError::UserIdTooLong);
        let long_name = [&v4a[..], &[0], &[b'n'; 256]].concat();
        check::fails(Request::decode, &long_name, NameError::TooLong.into());
        for (name, error) in [
            (&b""[..], NameError::Empty),
            (b"a b", NameError::Byte(b' ')),
            (b"a\xff", NameError::Byte(0xff)),
            (b"0.0.0.7", NameError::IpAddress),
        ] {
            let bytes = [v4a, &b"ada\0"[..], name, &[0]].concat();
            check::fails(Request::decode, &bytes, error.into());
        }
    }

    #[test]
    fn what_a_version_cannot_say_is_refused() {
        let connect = Command::Connect;
        for to in ["example.com:80", "[::1]:80"] {
            let refused = Request::socks4(connect, address(to), user(""));
            assert_eq!(refused, Err(RequestError::NotIpv4), "{to}");
            assert!(Request::socks4a(connect, address(to), user("")).is_ok());
        }
        for to in ["0.0.0.1:80", "0.0.0.255:80", "[::ffff:0.0.0.1]:80"] {
            let refused = Request::socks4a(connect, address(to), user(""));
            assert_eq!(refused, Err(RequestError::NameMarker), "{to}");
        }
        let mapped = Request::socks4(connect, address("[::ffff:192.0.2.1]:80"), user(""));
        assert_eq!(mapped.unwrap().address(), &address("192.0.2.1:80"));
        assert_eq!(UserId::new("a\0"), None);
        assert_eq!(UserId::new([b'u'; 256]), None);
    }

    #[test]
    fn reply_both_ways() {
        for (bytes, code, bound) in [
            ([0, 90, 0, 80, 192, 0, 2, 1], 90, "192.0.2.1:80"),
            ([0, 91, 0, 0, 0, 0, 0, 0], 91, "0.0.0.0:0"),
            ([0, 92, 0, 0, 0, 0, 0, 0], 92, "0.0.0.0:0"),
            ([0, 93, 0, 0, 0, 0, 0, 0], 93, "0.0.0.0:0"),
            ([0, 7, 255, 255, 0, 0, 0, 0], 7, "0.0.0.0:65535"),
        ] {
            let reply = Reply {
                code: ReplyCode(code),
                bound: bound.parse().unwrap(),
            };
            check::both_ways(Reply::decode, Reply::encode, &bytes, &reply);
        }
        for version in 1..=255 {
            check::fails(Reply::decode, &[version], DecodeError::Version(version));
        }
    }

    #[test]
    fn reply_holds_of_an_address_what_fits() {
        for (bound, shown) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "0.0.0.0:80"),
        ] {
            let reply = Reply::new(ReplyCode::GRANTED, bound.parse().unwrap());
            assert_eq!(reply.bound.to_string(), shown);
        }
    }
}
