//! Destinations and the addresses that replies carry.
//!
//! What to read: RFC 1928 §5 (addressing) and §6 (BND.ADDR), RFC 1035 §2.3.4 (size of names), and for the text
//! form RFC 3986 §3.2.2 (IPv6 in brackets).
//!
//! A request's destination is strict ([`Address`]): what goes to a resolver or into a log must be a name. A
//! reply's address is information only, so it may be anything that fits ([`BoundAddress`]).

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

/// A destination: host and port. In text `name:port`, `1.2.3.4:port` or `[v6]:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Where.
    pub host: Host,
    /// TCP or UDP port. 0 is allowed, since BIND and UDP ASSOCIATE use it for "any".
    pub port: u16,
}

/// The host of an [`Address`].
///
/// An IPv4-mapped IPv6 address in a message or in text stays what it is, so rules on addresses have to look at
/// [`IpAddr::to_canonical`]. Made from a socket address it becomes IPv4.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A name that somebody has to resolve.
    Name(Name),
    /// An IP address.
    Ip(IpAddr),
}

/// A host name as SOCKS carries it: 1 to [`Name::MAX_LEN`] bytes of UTF-8.
///
/// It has no NUL, control or white space character, none of `:[]/?#@%\` (which mean something else around a
/// name in `host:port` and in URIs), and is not the text of an IP address, because that is a [`Host::Ip`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It has no bytes.
    Empty,
    /// It has more than [`Name::MAX_LEN`] bytes.
    TooLong,
    /// It has this byte, or a character beginning with it, that a name can't have.
    Byte(u8),
    /// It is the text of an IP address: use [`Host`].
    IpAddress,
}

/// What is wrong with the text of an [`Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// No `:port` at the end.
    MissingPort,
    /// The port is not a number from 0 to 65535.
    Port,
    /// Several colons outside brackets.
    Unbracketed,
    /// The text in brackets is not an IPv6 address, or the brackets don't match.
    Ipv6,
    /// The host is neither an IP address nor a name.
    Name(NameError),
}

/// The address in a reply. Lenient, because proxies answer all sorts of things that nobody depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BoundAddress {
    /// An IP address and a port, as nearly all proxies send it.
    Socket(SocketAddr),
    /// A name, which may be empty and may hold any bytes, and a port.
    Name(BoundName, u16),
}

/// A name in a reply: 0 to 255 arbitrary bytes. `Display` escapes what isn't printable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BoundName(Box<[u8]>);

impl Address {
    /// An address from its parts.
    #[must_use]
    pub const fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// Parses like [`FromStr`], but the port may be left out, and so may the brackets of an IPv6 address
    /// without a port.
    ///
    /// ```
    /// use sockhop::wire::Address;
    /// assert_eq!(Address::with_default_port("[400::1]", 1080)?.to_string(), "[400::1]:1080");
    /// assert_eq!(Address::with_default_port("400::1", 1080)?.to_string(), "[400::1]:1080");
    /// assert_eq!(Address::with_default_port("example.com:99", 1080)?.to_string(), "example.com:99");
    /// # Ok::<(), sockhop::wire::AddressError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The same as parsing with a port, except for [`AddressError::MissingPort`].
    pub fn with_default_port(text: &str, port: u16) -> Result<Self, AddressError> {
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Self::new(Host::Ip(ip.into()), port));
        }
        let (host, given) = split_port(text)?;
        Ok(Self::new(host, given.unwrap_or(port)))
    }

    /// The socket address, unless the host is a name.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = split_port(text)?;
        let port = port.ok_or(AddressError::MissingPort)?;
        Ok(Self::new(host, port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
        }
    }
}

/// IPv4-mapped IPv6 becomes IPv4; scope and flow label are dropped, as no SOCKS message can hold them.
impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::new(Host::Ip(address.ip().to_canonical()), address.port())
    }
}

impl Host {
    /// The host that the name field of a request means. An IP address written as text, also IPv6 in brackets,
    /// is the address: several clients send it so, and rules on addresses must see it.
    ///
    /// # Errors
    ///
    /// What is wrong with the name.
    pub fn from_name_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > Name::MAX_LEN {
            return Err(NameError::TooLong);
        }
        let text = match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let bad = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
                return Err(NameError::Byte(bad));
            }
        };
        match ip_text(text) {
            Some(ip) => Ok(Self::Ip(ip)),
            None => text.parse().map(Self::Name),
        }
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::from_name_bytes(text.as_bytes())
    }
}

/// As in a URI: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

impl From<Name> for Host {
    fn from(name: Name) -> Self {
        Self::Name(name)
    }
}

impl Name {
    /// The length of a name has one byte in SOCKS5. In SOCKS4a it has no limit, there we keep the same.
    pub const MAX_LEN: usize = 255;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it always means the machine that looks it up: `localhost` and what is under it (RFC 6761 §6.3).
    #[must_use]
    pub fn is_localhost(&self) -> bool {
        let name = self.0.strip_suffix('.').unwrap_or(&self.0);
        let label = name.rsplit('.').next().unwrap_or(name);
        label.eq_ignore_ascii_case("localhost")
    }

    /// Whether resolvers that follow `inet_aton` could take the name for an IPv4 address in one of its other
    /// spellings: `0x7f.1`, `2130706433`, `0177.0.0.1`, `127.0.0.1.`.
    ///
    /// The test is the one of the URL standard ("ends in a number"): the last label is a number. There is no
    /// top-level domain of that kind, so no real name is hit.
    #[must_use]
    pub fn looks_like_ipv4_number(&self) -> bool {
        let name = self.0.strip_suffix('.').unwrap_or(&self.0);
        let label = name.rsplit('.').next().unwrap_or(name);
        match label
            .strip_prefix("0x")
            .or_else(|| label.strip_prefix("0X"))
        {
            Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
            None => !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(NameError::TooLong);
        }
        if ip_text(text).is_some() {
            return Err(NameError::IpAddress);
        }
        let bad = text
            .char_indices()
            .find(|(_, c)| c.is_control() || c.is_whitespace() || NOT_IN_NAMES.contains(*c));
        match bad {
            Some((at, _)) => Err(NameError::Byte(
                text.as_bytes().get(at).copied().unwrap_or_default(),
            )),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a host name can't be empty"),
            Self::TooLong => write!(f, "a host name has at most {} bytes", Name::MAX_LEN),
            Self::Byte(byte) if byte.is_ascii_graphic() => {
                write!(f, "a host name can't have \"{}\"", byte.escape_ascii())
            }
            Self::Byte(byte) => write!(f, "a host name can't have byte {byte:#04x}"),
            Self::IpAddress => write!(f, "an IP address is not a host name"),
        }
    }
}

impl Error for NameError {}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingPort => write!(f, "the port is missing, as in example.com:1080"),
            Self::Port => write!(f, "the port must be a number from 0 to 65535"),
            Self::Unbracketed => {
                write!(
                    f,
                    "an IPv6 address with a port needs brackets, as in [2001:db8::1]:1080"
                )
            }
            Self::Ipv6 => write!(f, "only an IPv6 address can be in brackets"),
            Self::Name(error) => error.fmt(f),
        }
    }
}

impl Error for AddressError {}

impl From<NameError> for AddressError {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

impl BoundAddress {
    /// `0.0.0.0:0`, for replies that have no address to tell.
    pub const UNSPECIFIED: Self =
        Self::Socket(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Socket(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }

    /// The socket address to use when the proxy itself was reached at `proxy`. An unspecified address means
    /// the proxy's own (SOCKS4: "BIND"; common practice in SOCKS5). `None` if the proxy sent a name.
    #[must_use]
    pub fn seen_from(&self, proxy: IpAddr) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) if address.ip().to_canonical().is_unspecified() => {
                Some(SocketAddr::new(proxy, address.port()))
            }
            Self::Socket(address) => Some(*address),
            Self::Name(..) => None,
        }
    }
}

/// IPv4-mapped IPv6 becomes IPv4, since the other side may know nothing of our dual-stack sockets.
impl From<SocketAddr> for BoundAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl BoundName {
    /// The bytes, or `None` if there are more than 255.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Name::MAX_LEN).then(|| Self(bytes.into()))
    }

    /// The bytes as they came.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for BoundName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

/// Host and, if there is one, port.
fn split_port(text: &str) -> Result<(Host, Option<u16>), AddressError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or(AddressError::Ipv6)?;
        let ip: Ipv6Addr = inside.parse().map_err(|_| AddressError::Ipv6)?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if after.is_empty() => None,
            None => return Err(AddressError::Ipv6),
        };
        return Ok((Host::Ip(ip.into()), port));
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(AddressError::Unbracketed),
        Some((host, port)) => Ok((host.parse()?, Some(parse_port(port)?))),
        None => Ok((text.parse()?, None)),
    }
}

/// Digits only: `u16::from_str` would also take a plus sign.
fn parse_port(text: &str) -> Result<u16, AddressError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::Port);
    }
    text.parse().map_err(|_| AddressError::Port)
}

/// The IP address if that is what the text is; brackets are allowed around IPv6.
fn ip_text(text: &str) -> Option<IpAddr> {
    match text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inside) => inside.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// Delimiters of RFC 3986, the escape sign, and the backslash that some parsers take for a slash.
const NOT_IN_NAMES: &str = ":[]/?#@%\\";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Host {
        Host::Name(text.parse().unwrap())
    }

    #[test]
    fn text_and_address_both_ways() {
        let v4 = |text: &str| Host::Ip(text.parse::<Ipv4Addr>().unwrap().into());
        let v6 = |text: &str| Host::Ip(text.parse::<Ipv6Addr>().unwrap().into());
        for (text, host, port) in [
            ("example.com:80", name("example.com"), 80),
            ("localhost.:0", name("localhost."), 0),
            ("bücher.example:65535", name("bücher.example"), 65535),
            ("_x-1:9", name("_x-1"), 9),
            ("192.0.2.1:1080", v4("192.0.2.1"), 1080),
            ("[::1]:1080", v6("::1"), 1080),
            ("[::ffff:192.0.2.1]:1", v6("::ffff:192.0.2.1"), 1),
        ] {
            let address = Address::new(host, port);
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn bad_text_has_its_error() {
        for (text, error) in [
            ("", AddressError::Name(NameError::Empty)),
            ("example.com", AddressError::MissingPort),
            ("[::1]", AddressError::MissingPort),
            (":80", AddressError::Name(NameError::Empty)),
            ("example.com:", AddressError::Port),
            ("example.com:+80", AddressError::Port),
            ("example.com:65536", AddressError::Port),
            ("example.com:http", AddressError::Port),
            ("::1:80", AddressError::Unbracketed),
            ("a:b:80", AddressError::Unbracketed),
            ("[::1:80", AddressError::Ipv6),
            ("[::1]x:80", AddressError::Ipv6),
            ("[example.com]:80", AddressError::Ipv6),
            ("[192.0.2.1]:80", AddressError::Ipv6),
            ("a b:80", AddressError::Name(NameError::Byte(b' '))),
            ("a/b:80", AddressError::Name(NameError::Byte(b'/'))),
            ("a@b:80", AddressError::Name(NameError::Byte(b'@'))),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
    }

    #[test]
    fn default_port_fills_in_only_what_is_missing() {
        for (text, expected) in [
            ("example.com", Ok("example.com:1080")),
            ("example.com:99", Ok("example.com:99")),
            ("192.0.2.1", Ok("192.0.2.1:1080")),
            ("400::1", Ok("[400::1]:1080")),
            ("[400::1]", Ok("[400::1]:1080")),
            ("[400::1]:99", Ok("[400::1]:99")),
            ("example.com:", Err(AddressError::Port)),
            ("", Err(AddressError::Name(NameError::Empty))),
        ] {
            let address = Address::with_default_port(text, 1080);
            assert_eq!(
                address.map(|address| address.to_string()),
                expected.map(String::from)
            );
        }
    }

    #[test]
    fn names_are_bounded_and_clean() {
        let longest = "n".repeat(255);
        assert_eq!(longest.parse::<Name>().unwrap().as_str(), longest);
        for (text, error) in [
            ("", NameError::Empty),
            (&*"n".repeat(256), NameError::TooLong),
            ("a\0b", NameError::Byte(0)),
            ("a\nb", NameError::Byte(b'\n')),
            ("a\u{7f}b", NameError::Byte(0x7f)),
            ("a\u{85}b", NameError::Byte(0xc2)),
            ("a\u{2003}b", NameError::Byte(0xe2)),
            ("a b", NameError::Byte(b' ')),
            ("a%b", NameError::Byte(b'%')),
            ("[::1", NameError::Byte(b'[')),
            ("127.0.0.1", NameError::IpAddress),
            ("::1", NameError::IpAddress),
            ("[::1]", NameError::IpAddress),
        ] {
            assert_eq!(text.parse::<Name>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn name_field_with_an_ip_address_is_that_address() {
        for (bytes, host) in [
            (&b"127.0.0.1"[..], Ok("127.0.0.1")),
            (b"::1", Ok("[::1]")),
            (b"[::1]", Ok("[::1]")),
            (b"[::ffff:127.0.0.1]", Ok("[::ffff:127.0.0.1]")),
            (b"localhost", Ok("localhost")),
            (b"a\xffb", Err(NameError::Byte(0xff))),
            (b"a\0.example", Err(NameError::Byte(0))),
            (b"", Err(NameError::Empty)),
            (b"[127.0.0.1]", Err(NameError::Byte(b'['))),
        ] {
            let decoded = Host::from_name_bytes(bytes).map(|host| host.to_string());
            assert_eq!(decoded, host.map(String::from));
        }
    }

    #[test]
    fn other_spellings_of_ipv4_are_recognised() {
        for text in [
            "0x7f.1",
            "0X7F000001",
            "2130706433",
            "0177.0.0.1",
            "127.1",
            "127.0.0.1.",
            "127.0.0.01",
            "1.2.3.4.5",
            "0x",
            "999.999.999.999",
        ] {
            let name: Name = text.parse().unwrap();
            assert!(name.looks_like_ipv4_number(), "{text}");
        }
        for text in [
            "example.com",
            "1.example",
            "0x7f.example.",
            "127.0.0.1.nip.io",
            "0xyz",
            "x0",
            ".",
        ] {
            let name: Name = text.parse().unwrap();
            assert!(!name.looks_like_ipv4_number(), "{text}");
        }
    }

    #[test]
    fn mapped_socket_address_becomes_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(Address::from(mapped).to_string(), "192.0.2.1:80");
        assert_eq!(BoundAddress::from(mapped).to_string(), "192.0.2.1:80");
        let scoped: SocketAddr = "[fe80::1%3]:80".parse().unwrap();
        assert_eq!(Address::from(scoped).to_string(), "[fe80::1]:80");
    }

    #[test]
    fn unspecified_bound_address_is_the_proxy() {
        let proxy: IpAddr = "192.0.2.9".parse().unwrap();
        let seen = |text: &str| {
            BoundAddress::Socket(text.parse().unwrap())
                .seen_from(proxy)
                .unwrap()
                .to_string()
        };
        assert_eq!(seen("0.0.0.0:7"), "192.0.2.9:7");
        assert_eq!(seen("[::]:7"), "192.0.2.9:7");
        assert_eq!(seen("[::ffff:0.0.0.0]:7"), "192.0.2.9:7");
        assert_eq!(seen("192.0.2.1:7"), "192.0.2.1:7");
        let named = BoundAddress::Name(BoundName::new(b"x\n").unwrap(), 7);
        assert_eq!(named.seen_from(proxy), None);
        assert_eq!((named.to_string(), named.port()), ("x\\n:7".into(), 7));
        assert_eq!(BoundName::new(&[b'x'; 256]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_shown_as_an_equal_address(text in "\\PC{0,12}(:[0-9]{1,5})?") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_a_host_with_the_same_text(bytes: Vec<u8>) {
            if let Ok(host) = Host::from_name_bytes(&bytes) {
                prop_assert_eq!(host.to_string().parse(), Ok(host));
            }
        }
    }
}
