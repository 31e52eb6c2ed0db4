//! Host and port as people write them: peers and probe targets.
//!
//! A host is an IP address or a name; names are looked up when they are used, not here.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::bad_text::BadText;

/// The port of SOCKS (IANA `socks`), meant when a peer or remote names none.
pub const SOCKS_PORT: u16 = 1080;

/// An IP address or a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name of at most [`MAX_NAME`] bytes: ASCII letters, digits, `-`, `_` and dots.
    Name(String),
}

/// A host and a port, such as `[407::1]:1080` or `proxy.example:1080`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl HostPort {
    /// Parses `host`, `host:port`, `[v6]:port`, `[v6]` or a bare IPv6 address; `port` is meant when the text has none.
    pub fn parse_or_port(text: &str, port: u16) -> Result<Self, BadText> {
        parse(text, Some(port))
    }

    /// The socket address, when the host is a literal address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

/// Parses with a port that must be given, as in `example.org:443`.
impl FromStr for HostPort {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        parse(text, None)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

fn parse(text: &str, default_port: Option<u16>) -> Result<HostPort, BadText> {
    let example = match default_port {
        Some(_) => EXAMPLE,
        None => EXAMPLE_WITH_PORT,
    };
    let bad = |part: &str, problem: &str| BadText::new(part, problem, example);
    if text.is_empty() {
        return Err(bad(text, "is empty"));
    }
    if text.contains("://") {
        return Err(bad(text, "is a URI where a host and port are expected"));
    }
    if let Some(at) = text.find('%') {
        return Err(bad(
            text.get(at..).unwrap_or(text),
            "is a scope id: link-local addresses are not supported, give the address of the overlay",
        ));
    }

    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((inside, after)) = rest.split_once(']') else {
            return Err(bad(text, "has no closing bracket"));
        };
        let ip = inside
            .parse::<Ipv6Addr>()
            .map_err(|_| bad(inside, "is not an IPv6 address"))?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(bad(after, "follows the bracket where a port is expected")),
        };
        (Host::Ip(ip.into()), port)
    } else if let Ok(ip) = text.parse::<Ipv6Addr>() {
        (Host::Ip(ip.into()), None)
    } else {
        let (host, port) = match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(bad(
                    text,
                    "has more than one colon but is not an IPv6 address",
                ));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        (parse_host(host, example)?, port)
    };

    let port = match (port, default_port) {
        (Some(port), _) => parse_port(port, example)?,
        (None, Some(port)) => port,
        (None, None) => return Err(bad(text, "has no port")),
    };
    Ok(HostPort { host, port })
}

fn parse_host(text: &str, example: &'static str) -> Result<Host, BadText> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    let problem = if text.is_empty() {
        "is not a host"
    } else if text.len() > MAX_NAME {
        "is longer than a host name can be (253 bytes)"
    } else if !text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        "is not a host name: those have letters, digits, dots and hyphens only (write others as xn--…)"
    } else if text.starts_with(['.', '-']) || text.contains("..") {
        "is not a host name"
    } else if text
        .trim_end_matches('.')
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
    {
        // No top-level domain is a number, but resolvers read "10.1" and "2130706433" as IPv4 addresses.
        "is not an IPv4 address of four numbers up to 255"
    } else {
        return Ok(Host::Name(text.to_owned()));
    };
    Err(BadText::new(text, problem, example))
}

/// Parses a port that a connection can be made to: 1 to 65535.
pub(crate) fn parse_port(text: &str, example: &'static str) -> Result<u16, BadText> {
    match parse_port_or_any(text) {
        Some(port) if port != 0 => Ok(port),
        _ => Err(BadText::new(
            text,
            "is not a port, a number from 1 to 65535",
            example,
        )),
    }
}

/// Parses a port that can be listened on; 0 is one that the system picks.
pub(crate) fn parse_port_or_any(text: &str) -> Option<u16> {
    // `u16::from_str` alone would take "+80".
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// The longest host name (RFC 1035 §2.3.4 without the length bytes of the wire form).
pub const MAX_NAME: usize = 253;

const EXAMPLE: &str = "10.1.2.3, 10.1.2.3:1080, [407::1]:1080 or proxy.example:1080";
const EXAMPLE_WITH_PORT: &str = "example.org:443 or [2001:db8::1]:443";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_every_form_that_people_write() {
        for (text, canonical) in [
            ("10.1.2.3", "10.1.2.3:1080"),
            ("10.1.2.3:9050", "10.1.2.3:9050"),
            ("407::1", "[407::1]:1080"),
            ("[407::1]", "[407::1]:1080"),
            ("[407::1]:9", "[407::1]:9"),
            ("::ffff:10.0.0.1", "[::ffff:10.0.0.1]:1080"),
            ("help", "help:1080"),
            ("a-b_c.example.", "a-b_c.example.:1080"),
            ("xn--bcher-kva.example:1", "xn--bcher-kva.example:1"),
            ("10.1.2.3:01080", "10.1.2.3:1080"),
        ] {
            let parsed = HostPort::parse_or_port(text, SOCKS_PORT).expect(text);
            assert_eq!(parsed.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none_and_quotes_it() {
        for (text, quoted) in [
            ("", "\"\" is empty"),
            (":1080", "\"\" is not a host"),
            ("host:", "\"\" is not a port"),
            ("host:0", "\"0\" is not a port"),
            ("host:+80", "\"+80\" is not a port"),
            ("host:65536", "\"65536\" is not a port"),
            ("host:ssh", "\"ssh\" is not a port"),
            ("407::g", "\"407::g\" has more than one colon"),
            ("[407::1", "no closing bracket"),
            ("[10.0.0.1]:1", "\"10.0.0.1\" is not an IPv6 address"),
            ("[407::1]1080", "\"1080\" follows the bracket"),
            ("fe80::1%eth0", "\"%eth0\" is a scope id"),
            ("[fe80::1%2]:1080", "is a scope id"),
            ("10.1.2", "\"10.1.2\" is not an IPv4 address"),
            ("300.1.1.1:5", "\"300.1.1.1\" is not an IPv4 address"),
            ("2130706433", "is not an IPv4 address"),
            ("a b", "\"a b\" is not a host name"),
            ("bücher.example", "xn--"),
            ("a..b", "is not a host name"),
            ("\u{1b}[31m", "\"\\u{1b}[31m\""),
            ("http://a", "is a URI"),
        ] {
            let error = HostPort::parse_or_port(text, SOCKS_PORT)
                .expect_err(text)
                .to_string();
            assert!(error.contains(quoted), "{text}: {error}");
            assert!(error.contains("right would be"), "{text}: {error}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        assert!(HostPort::parse_or_port(&long, 1).is_err());
    }

    #[test]
    fn a_target_needs_its_port() {
        assert_eq!(
            "example.org:443".parse::<HostPort>().unwrap().to_string(),
            "example.org:443"
        );
        for text in ["example.org", "::1", "[::1]"] {
            let error = text.parse::<HostPort>().expect_err(text).to_string();
            assert!(error.contains("has no port"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_it_prints_it_reads(ip: IpAddr, port in 1u16..) {
            let one = HostPort::from(SocketAddr::new(ip, port));
            prop_assert_eq!(one.to_string().parse::<HostPort>(), Ok(one));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = HostPort::parse_or_port(&text, SOCKS_PORT);
            let _ = text.parse::<HostPort>();
        }
    }
}
