//! Where peers come from, as people write it: `file:PATH`, `exec:COMMAND`, the daemon of an overlay, the kernel's routes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::api_address::ApiAddress;
use crate::bad_text::BadText;
use crate::target::HostPort;

/// A source of peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceSpec {
    /// A file of one address a line, with `#` comments; read again when it changes.
    File(PathBuf),
    /// A command for the shell, which prints one address a line.
    Exec(String),
    /// Mycelium's HTTP API. `None`: at its usual place.
    Mycelium(Option<HostPort>),
    /// Yggdrasil's admin socket. `None`: at its usual places.
    Yggdrasil(Option<ApiAddress>),
    /// Tailscale's socket. `None`: at its usual places.
    Tailscale(Option<PathBuf>),
    /// The kernel's routes to single hosts.
    Routes,
}

impl FromStr for SourceSpec {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let (kind, place) = match text.split_once(':') {
            Some((kind, place)) => (kind, Some(place)),
            None => (text, None),
        };
        let place = place.filter(|place| !place.trim().is_empty());
        let nothing = |what: &str| Err(BadText::new(text, what, EXAMPLE));
        match (kind, place) {
            ("file", Some(path)) => Ok(Self::File(path.into())),
            ("file", None) => nothing("has no path"),
            ("exec", Some(command)) => Ok(Self::Exec(command.to_owned())),
            ("exec", None) => nothing("has no command"),
            ("mycelium" | "yggdrasil" | "tailscale" | "routes", None) if text != kind => {
                nothing("has nothing after the colon")
            }
            ("mycelium", place) => Ok(Self::Mycelium(place.map(api_port).transpose()?)),
            ("yggdrasil", place) => Ok(Self::Yggdrasil(place.map(str::parse).transpose()?)),
            ("tailscale", place) => Ok(Self::Tailscale(place.map(socket_path).transpose()?)),
            ("routes", None) => Ok(Self::Routes),
            ("routes", Some(_)) => nothing("has something after routes, which are the kernel's"),
            _ => Err(BadText::new(
                kind,
                "is not a kind of source that this version knows: those are file, exec, mycelium, yggdrasil, \
                 tailscale and routes",
                EXAMPLE,
            )),
        }
    }
}

/// Host and port of an API that speaks HTTP; its paths are known.
fn api_port(url: &str) -> Result<HostPort, BadText> {
    if url.starts_with("https://") {
        return Err(BadText::new(
            url,
            "has TLS, which no overlay daemon's API speaks",
            EXAMPLE_URL,
        ));
    }
    let place = url.strip_prefix("http://").unwrap_or(url);
    let place = place.strip_suffix('/').unwrap_or(place);
    HostPort::parse_or_port(place, MYCELIUM_PORT).map_err(|error| {
        BadText::new(
            url,
            format!("is not the URL of an API ({})", error.problem()),
            EXAMPLE_URL,
        )
    })
}

fn socket_path(text: &str) -> Result<PathBuf, BadText> {
    match text.parse() {
        Ok(ApiAddress::Unix(path)) => Ok(path),
        _ => Err(BadText::new(
            text,
            "is not the path of a socket",
            "tailscale:/run/tailscale/tailscaled.sock",
        )),
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::Mycelium(None) => f.write_str("mycelium"),
            Self::Mycelium(Some(place)) => write!(f, "mycelium:http://{place}"),
            Self::Yggdrasil(None) => f.write_str("yggdrasil"),
            Self::Yggdrasil(Some(place)) => write!(f, "yggdrasil:{place}"),
            Self::Tailscale(None) => f.write_str("tailscale"),
            Self::Tailscale(Some(path)) => {
                write!(f, "tailscale:{}", ApiAddress::Unix(path.clone()))
            }
            Self::Routes => f.write_str("routes"),
        }
    }
}

/// Of Mycelium's HTTP API, on loopback unless configured otherwise (`--api-addr`).
pub const MYCELIUM_PORT: u16 = 8989;

const EXAMPLE: &str = "file:/etc/sockhop.peers, 'exec:list-my-peers --ipv6', mycelium, yggdrasil, tailscale or routes";

const EXAMPLE_URL: &str = "mycelium:http://127.0.0.1:8989";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_from_str_agree() {
        for text in [
            "file:/a:b",
            "file:relative",
            "exec:echo 10.0.0.1 # :x",
            "mycelium",
            "mycelium:http://127.0.0.1:8989",
            "mycelium:http://[::1]:80",
            "yggdrasil",
            "yggdrasil:/run/y.sock",
            "yggdrasil:unix:y.sock",
            "yggdrasil:tcp://localhost:9001",
            "tailscale",
            "tailscale:/run/t.sock",
            "routes",
        ] {
            assert_eq!(text.parse::<SourceSpec>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn places_of_daemons_can_be_written_in_several_ways() {
        for (text, shown) in [
            ("mycelium:127.0.0.1", "mycelium:http://127.0.0.1:8989"),
            (
                "mycelium:http://localhost/",
                "mycelium:http://localhost:8989",
            ),
            ("mycelium:localhost:1", "mycelium:http://localhost:1"),
            ("yggdrasil:unix:///run/y.sock", "yggdrasil:/run/y.sock"),
            ("yggdrasil:[::1]:9001", "yggdrasil:tcp://[::1]:9001"),
            ("tailscale:unix:/run/t.sock", "tailscale:/run/t.sock"),
        ] {
            assert_eq!(text.parse::<SourceSpec>().expect(text).to_string(), shown);
        }
        for text in [
            "mycelium:",
            "mycelium:https://localhost",
            "mycelium:http://localhost:8989/api",
            "mycelium:http://user@localhost",
            "yggdrasil:",
            "yggdrasil:localhost",
            "tailscale:tcp://localhost:1",
            "routes:main",
            "routes:",
        ] {
            assert!(text.parse::<SourceSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn other_kinds_are_refused_with_the_known_ones() {
        for kind in ["cjdns", "wireguard:wg0", "", "/etc/peers"] {
            let error = kind.parse::<SourceSpec>().expect_err(kind).to_string();
            assert!(
                error.contains("yggdrasil, tailscale and routes"),
                "{kind}: {error}"
            );
        }
        for text in ["file:", "exec:", "exec:  "] {
            assert!(text.parse::<SourceSpec>().is_err(), "{text}");
        }
    }
}
