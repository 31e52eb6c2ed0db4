//! Where a daemon on this machine can be asked, as people write it: `/run/yggdrasil.sock`, `unix:///run/yggdrasil.sock`,
//! `tcp://localhost:9001`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::bad_text::BadText;
use crate::target::HostPort;

/// A Unix socket or a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ApiAddress {
    /// The socket at this path.
    Unix(PathBuf),
    /// This port; a name is looked up each time.
    Tcp(HostPort),
}

impl FromStr for ApiAddress {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(BadText::new(text, "has no path", EXAMPLE));
            }
            return Ok(Self::Unix(path.into()));
        }
        let place = text.strip_prefix("tcp://").unwrap_or(text);
        place.parse().map(Self::Tcp).map_err(|error: BadText| {
            BadText::new(
                text,
                format!(
                    "is neither a path nor a host and port ({})",
                    error.problem()
                ),
                EXAMPLE,
            )
        })
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) if path.is_absolute() => path.display().fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp://{place}"),
        }
    }
}

const EXAMPLE: &str = "/run/yggdrasil.sock or tcp://localhost:9001";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_write_it() {
        let unix = |path: &str| ApiAddress::Unix(path.into());
        let tcp = |place: &str| ApiAddress::Tcp(place.parse().unwrap());
        for (text, address, shown) in [
            ("/run/y.sock", unix("/run/y.sock"), "/run/y.sock"),
            ("unix:/run/y.sock", unix("/run/y.sock"), "/run/y.sock"),
            ("unix:///run/y.sock", unix("/run/y.sock"), "/run/y.sock"),
            ("unix:y.sock", unix("y.sock"), "unix:y.sock"),
            (
                "tcp://localhost:9001",
                tcp("localhost:9001"),
                "tcp://localhost:9001",
            ),
            ("[::1]:9001", tcp("[::1]:9001"), "tcp://[::1]:9001"),
        ] {
            assert_eq!(text.parse::<ApiAddress>().expect(text), address, "{text}");
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "",
            "unix:",
            "unix://",
            "tcp://",
            "localhost",
            "localhost:0",
            "http://localhost:80",
            "tcp://a:1/x",
        ] {
            assert!(text.parse::<ApiAddress>().is_err(), "{text}");
        }
    }
}
