//! How the remote is chosen, and what a change of it does to live streams.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::bad_text::BadText;

/// Who chooses the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The forwarder, among the peers that probes found valid.
    #[default]
    Automatic,
    /// The user, with `--remote`: used in the given order, not probed first.
    Explicit,
    /// The user, later, with `sockhop connect`: until then nothing is chosen and no port is open.
    Manual,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Automatic => "automatic",
            Self::Explicit => "explicit",
            Self::Manual => "manual",
        })
    }
}

/// What happens to live streams when the remote changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnSwitch {
    /// They go on over the old remote until they end.
    #[default]
    Keep,
    /// They are cut, so that nothing uses the old remote any more.
    Cut,
}

/// What becomes of clients that no remote can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// They are refused.
    #[default]
    Refuse,
    /// Those that speak SOCKS are served from this machine's own connection.
    Direct,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Direct => "direct",
        })
    }
}

impl FromStr for Fallback {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "direct" => Ok(Self::Direct),
            _ => Err(BadText::new(
                text,
                "is not what can be done without a remote",
                "direct or refuse",
            )),
        }
    }
}

impl fmt::Display for OnSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Cut => "cut",
        })
    }
}

impl FromStr for OnSwitch {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text {
            "keep" => Ok(Self::Keep),
            "cut" => Ok(Self::Cut),
            _ => Err(BadText::new(
                text,
                "is neither of the two choices",
                "keep or cut",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_from_str_agree() {
        for choice in [OnSwitch::Keep, OnSwitch::Cut] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("Keep".parse::<OnSwitch>().is_err());
    }

    #[test]
    fn modes_have_the_same_name_in_text_and_json() {
        for mode in [Mode::Automatic, Mode::Explicit, Mode::Manual] {
            assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{mode}\""));
        }
    }
}
