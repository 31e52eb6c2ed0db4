//! Which peers may be chosen, and which ones before others.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::bad_text::BadText;

/// Which peers may be chosen, and in which order whatever their latency.
///
/// On overlays where an address is made from a key, a range or an address is an identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// If not empty: those in one of these ranges alone.
    pub only: Vec<IpNet>,
    /// None in one of these ranges, also if they are in one of `only`.
    pub never: Vec<IpNet>,
    /// Those that the first of these names before those that the second names, and so on, and the rest after them all.
    /// Beyond [`MOST_PREFERENCES`] they are like the rest.
    pub prefer: Vec<Preference>,
}

/// Peers that are preferred: a range, or one with its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// All in this range, whatever their port.
    Range(IpNet),
    /// This one.
    Peer(SocketAddr),
}

impl Preference {
    fn names(&self, address: SocketAddr) -> bool {
        match self {
            Self::Range(range) => range.contains(&address.ip()),
            Self::Peer(peer) => *peer == address,
        }
    }
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) if range.prefix_len() == range.max_prefix_len() => {
                range.addr().fmt(f)
            }
            Self::Range(range) => range.fmt(f),
            Self::Peer(peer) => peer.fmt(f),
        }
    }
}

impl FromStr for Preference {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        if let Ok(range) = text.parse() {
            return Ok(Self::Range(IpNet::trunc(&range)));
        }
        if let Ok(ip) = text.parse() {
            return Ok(Self::Range(IpNet::from(canonical(ip))));
        }
        if let Ok(peer) = text.parse::<SocketAddr>() {
            return Ok(Self::Peer(SocketAddr::new(
                canonical(peer.ip()),
                peer.port(),
            )));
        }
        Err(BadText::new(
            text,
            "is neither an address nor a range",
            "407::/16, 407::1 or [407::1]:1080",
        ))
    }
}

fn canonical(ip: std::net::IpAddr) -> std::net::IpAddr {
    ip.to_canonical()
}

/// What the rules make of an address. The lower one is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class(u8);

impl Class {
    /// It may not be chosen.
    pub(super) const EXCLUDED: Self = Self(u8::MAX);
    /// It may be, and nobody prefers it.
    const REST: Self = Self(u8::MAX - 1);

    pub(super) fn is_excluded(self) -> bool {
        self == Self::EXCLUDED
    }

    /// Its place among the preferences, from 1.
    pub(super) fn place(self) -> Option<u32> {
        (self < Self::REST).then_some(u32::from(self.0) + 1)
    }
}

impl Rules {
    pub(super) fn class(&self, address: SocketAddr) -> Class {
        let ip = address.ip();
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&ip));
        if within(&self.never) || !(self.only.is_empty() || within(&self.only)) {
            return Class::EXCLUDED;
        }
        self.prefer
            .iter()
            .position(|preference| preference.names(address))
            .and_then(|place| u8::try_from(place).ok().map(Class))
            .map_or(Class::REST, |class| class.min(Class::REST))
    }
}

/// Preferences that are told apart, which is more than anybody types.
pub const MOST_PREFERENCES: usize = 254;

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(only: &[&str], never: &[&str], prefer: &[&str]) -> Rules {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Rules {
            only: ranges(only),
            never: ranges(never),
            prefer: prefer.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn never_wins_over_only_and_only_over_the_rest() {
        let everybody = rules(&[], &[], &[]);
        let some = rules(&["10.0.0.0/8", "fd00::/8"], &["10.9.0.0/16"], &[]);
        for (address, candidate) in [
            ("10.1.0.1:1080", true),
            ("10.9.0.1:1080", false),
            ("11.0.0.1:1080", false),
            ("[fd00::1]:1080", true),
            ("[fe00::1]:1080", false),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(!some.class(address).is_excluded(), candidate, "{address}");
            assert!(!everybody.class(address).is_excluded());
        }
    }

    #[test]
    fn the_first_preference_that_names_it_counts() {
        let rules = rules(
            &[],
            &["10.0.0.9/32"],
            &[
                "10.0.0.3:9050",
                "10.0.0.0/30",
                "::ffff:10.0.0.3",
                "10.0.0.0/8",
            ],
        );
        for (address, place) in [
            ("10.0.0.3:9050", Some(1)),
            ("10.0.0.3:1080", Some(2)),
            ("10.0.0.4:1080", Some(4)),
            ("10.0.0.9:1080", None),
            ("11.0.0.1:1080", None),
        ] {
            assert_eq!(
                rules.class(address.parse().unwrap()).place(),
                place,
                "{address}"
            );
        }
        let many = Rules {
            prefer: vec!["1.1.1.1".parse().unwrap(); MOST_PREFERENCES]
                .into_iter()
                .chain(["10.0.0.0/8".parse().unwrap()])
                .collect(),
            ..Rules::default()
        };
        let class = many.class("10.0.0.1:1".parse().unwrap());
        assert_eq!((class.place(), class.is_excluded()), (None, false));
    }

    #[test]
    fn preferences_are_written_as_they_are_read() {
        for text in [
            "407::/16",
            "407::1",
            "[407::1]:1080",
            "10.0.0.1",
            "10.0.0.1:9",
        ] {
            assert_eq!(text.parse::<Preference>().unwrap().to_string(), text);
        }
        for text in ["", "peer.example", "10.0.0.1/33", "10.0.0", "407::1/"] {
            let error = text.parse::<Preference>().unwrap_err().to_string();
            assert!(error.contains("407::/16"), "{error}");
        }
    }
}
