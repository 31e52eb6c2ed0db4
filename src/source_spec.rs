//! Where peers come from, as people write it: `file:PATH` or `exec:COMMAND`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::bad_text::BadText;

/// A source of peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceSpec {
    /// A file of one address a line, with `#` comments; read again when it changes.
    File(PathBuf),
    /// A command for the shell, which prints one address a line.
    Exec(String),
}

impl FromStr for SourceSpec {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "file" if rest.is_empty() => Err(BadText::new(text, "has no path", EXAMPLE)),
            "file" => Ok(Self::File(rest.into())),
            "exec" if rest.trim().is_empty() => Err(BadText::new(text, "has no command", EXAMPLE)),
            "exec" => Ok(Self::Exec(rest.to_owned())),
            _ => Err(BadText::new(
                kind,
                "is not a kind of source that this version knows: those are file and exec",
                EXAMPLE,
            )),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Exec(command) => write!(f, "exec:{command}"),
        }
    }
}

const EXAMPLE: &str = "file:/etc/sockhop.peers or 'exec:list-my-peers --ipv6'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_from_str_agree() {
        for text in ["file:/a:b", "file:relative", "exec:echo 10.0.0.1 # :x"] {
            assert_eq!(text.parse::<SourceSpec>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn other_kinds_are_refused_with_the_known_ones() {
        for kind in [
            "mycelium",
            "yggdrasil:/run/y.sock",
            "tailscale",
            "routes",
            "",
            "/etc/peers",
        ] {
            let error = kind.parse::<SourceSpec>().expect_err(kind).to_string();
            assert!(error.contains("file and exec"), "{kind}: {error}");
        }
        for text in ["file:", "exec:", "exec:  "] {
            assert!(text.parse::<SourceSpec>().is_err(), "{text}");
        }
    }
}
