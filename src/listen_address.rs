//! Where clients connect: a TCP address or a Unix socket, as people write it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::bad_text::BadText;
use crate::target::{SOCKS_PORT, parse_port_or_any};

/// A place to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A TCP address. `[::]` means every address of both families, and of IPv4 alone where the system has no IPv6;
    /// port 0 is one that the system picks.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Every address of both families, port 1080.
    pub const DEFAULT: Self = Self::Tcp(SocketAddr::new(
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        SOCKS_PORT,
    ));

    /// Whether other machines can reach it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().to_canonical().is_loopback())
    }
}

/// Parses `[::]:1080`, `127.0.0.1:1080`, `1080` (both families), an address alone (port 1080) and `unix:PATH`.
impl FromStr for ListenAddress {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let bad = |part: &str, problem: &str| Err(BadText::new(part, problem, EXAMPLE));
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => bad(text, "has no path"),
                1..=MAX_UNIX_PATH if !path.contains('\0') => Ok(Self::Unix(path.into())),
                _ => bad(
                    path,
                    "is longer than the path of a Unix socket can be (107 bytes)",
                ),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let alone = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(ip) = alone.parse() {
            return Ok(Self::Tcp(SocketAddr::new(ip, SOCKS_PORT)));
        }
        if let Some(port) = parse_port_or_any(text) {
            return Ok(Self::Tcp(SocketAddr::new(
                Ipv6Addr::UNSPECIFIED.into(),
                port,
            )));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return bad(text, "is not a port, a number up to 65535");
        }
        if text.contains('%') {
            return bad(text, "has a scope id, which is understood as a number only");
        }
        match text.rsplit_once(':') {
            Some((host, port)) if parse_port_or_any(port).is_none() && !host.is_empty() => {
                bad(port, "is not a port, a number up to 65535")
            }
            Some((host, _)) => bad(
                host,
                "is not an address of this machine: names are not looked up to listen",
            ),
            None => bad(text, "is neither an address nor a port"),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `sun_path` has 108 bytes on Linux with the closing zero; other systems have fewer and say so when they bind.
const MAX_UNIX_PATH: usize = 107;

const EXAMPLE: &str = "[::]:1080, 127.0.0.1:1080, 1080 or unix:/run/sockhop-clients.sock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_that_people_write() {
        for (text, canonical) in [
            ("[::]:1080", "[::]:1080"),
            ("1080", "[::]:1080"),
            ("0", "[::]:0"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1", "127.0.0.1:1080"),
            ("::1", "[::1]:1080"),
            ("[::1]", "[::1]:1080"),
            ("[fe80::1%2]:1080", "[fe80::1%2]:1080"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:x", "unix:x"),
        ] {
            let parsed = text.parse::<ListenAddress>().expect(text);
            assert_eq!(parsed.to_string(), canonical, "{text}");
        }
        assert_eq!("[::]:1080".parse(), Ok(ListenAddress::DEFAULT));
    }

    #[test]
    fn other_machines_reach_all_but_loopback_and_paths() {
        for (text, exposed) in [
            ("[::]:1080", true),
            ("0.0.0.0:1080", true),
            ("192.168.0.1:1080", true),
            ("127.0.0.2:1080", false),
            ("[::1]:1080", false),
            ("[::ffff:127.0.0.1]:1080", false),
            ("unix:/run/x.sock", false),
        ] {
            let address: ListenAddress = text.parse().expect(text);
            assert_eq!(address.is_exposed(), exposed, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none_and_quotes_it() {
        for (text, quoted) in [
            ("", "\"\" is neither"),
            ("65536", "\"65536\" is not a port"),
            ("127.0.0.1:65536", "\"65536\" is not a port"),
            ("127.0.0.1:", "\"\" is not a port"),
            ("localhost:1080", "\"localhost\" is not an address"),
            ("300.0.0.1:80", "\"300.0.0.1\" is not an address"),
            ("::g", "\"g\" is not a port"),
            ("[fe80::1%eth0]:1080", "has a scope id"),
            ("unix:", "\"unix:\" has no path"),
            ("+80", "\"+80\" is neither"),
        ] {
            let error = text.parse::<ListenAddress>().expect_err(text).to_string();
            assert!(error.contains(quoted), "{text}: {error}");
            assert!(error.contains("127.0.0.1:1080"), "{text}: {error}");
        }
        assert!(
            format!("unix:/{}", "a".repeat(MAX_UNIX_PATH))
                .parse::<ListenAddress>()
                .is_err()
        );
    }
}
