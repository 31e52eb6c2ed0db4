//! Where clients may go.
//!
//! Every address that a client's destination comes to is checked, and exactly the checked one is connected to. In
//! this order:
//!
//! 1. Port 0 is refused, and so is an own listener: both lead nowhere.
//! 2. A rule for names decides over a name. One that denies it ends it, before the name is looked up.
//! 3. A rule for addresses that allows the address ends it. One that denies it does too, unless a rule allows the name.
//! 4. Addresses that are not the public's are refused: see [`Denied`]. A rule that allows a name does not help here,
//!    since whoever runs the name's server could give it any address.
//!
//! Whom a BIND may let in is checked in the same way, with the port of the request, where 0 stands for any: then no rule with
//! a port matches.
//!
//! Of several rules that match, the most specific one decides: the longest prefix or suffix, then one with a port, then
//! one that denies.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::bad_text::BadText;
use crate::net::{OwnListeners, canonical, is_local};
use crate::wire::Name;

/// What to do with a destination that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Let clients go there.
    Allow,
    /// Refuse it.
    Deny,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What to do.
    pub effect: Effect,
    /// With what.
    pub pattern: Pattern,
}

impl Rule {
    /// Lets clients go where the text of a [`Pattern`] says.
    ///
    /// # Errors
    /// It is none.
    pub fn allow(text: &str) -> Result<Self, BadText> {
        Self::new(Effect::Allow, text)
    }

    /// Does not let them.
    ///
    /// # Errors
    /// As [`Rule::allow`].
    pub fn deny(text: &str) -> Result<Self, BadText> {
        Self::new(Effect::Deny, text)
    }

    fn new(effect: Effect, text: &str) -> Result<Self, BadText> {
        let pattern = text.parse()?;
        Ok(Self { effect, pattern })
    }
}

/// The destinations that a rule is for. In text: an address, a range, or a name that stands for everything under it too, and
/// maybe a port: `10.0.0.0/8:80`, `[fd00::]/8:443`, `example.org`, `.example.org:443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    place: Place,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Range(IpNet),
    /// In lower case, without dots at its ends.
    Domain(Box<str>),
}

/// Where clients may go.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    own: OwnListeners,
}

/// What the rules say about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameVerdict {
    /// A rule allows it.
    Allowed,
    /// There is no rule for it, or no name.
    Open,
}

/// Why a client may not go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Nobody listens on port 0.
    PortZero,
    /// It is one of our listeners.
    OwnListener,
    /// A rule says so.
    Rule,
    /// The address is not a public one.
    NotPublic,
    /// The address is one of this machine's.
    OwnAddress,
    /// The name is another spelling of an IPv4 address.
    Number,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortZero => "port 0",
            Self::OwnListener => "an own listener",
            Self::Rule => "denied by a rule",
            Self::NotPublic => "not a public address (--allow-dest)",
            Self::OwnAddress => "an own address (--allow-dest)",
            Self::Number => "a number instead of a name",
        })
    }
}

impl Rules {
    /// These rules, and never our listeners.
    #[must_use]
    pub fn new(rules: Vec<Rule>, own: OwnListeners) -> Self {
        Self { rules, own }
    }

    /// Lets clients go anywhere but to our own listeners.
    #[must_use]
    pub fn anywhere_but(own: OwnListeners) -> Self {
        Self {
            own,
            ..Self::allow_all()
        }
    }

    /// Lets clients go anywhere.
    #[must_use]
    pub fn allow_all() -> Self {
        let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let rules = everything.map(|range| Rule {
            effect: Effect::Allow,
            pattern: Pattern {
                place: Place::Range(range),
                port: None,
            },
        });
        Self::new(rules.into(), OwnListeners::new())
    }

    /// What the rules say about a name, before it is looked up.
    ///
    /// # Errors
    /// Why clients may not go there.
    pub fn check_name(&self, name: &Name, port: u16) -> Result<NameVerdict, Denied> {
        if port == 0 {
            return Err(Denied::PortZero);
        }
        self.check_peer_name(name, port)
    }

    /// The same for a name whose addresses shall connect to us; the port may be 0.
    ///
    /// # Errors
    /// Why they may not.
    pub fn check_peer_name(&self, name: &Name, port: u16) -> Result<NameVerdict, Denied> {
        if name.looks_like_ipv4_number() {
            return Err(Denied::Number);
        }
        let name = name.as_str().trim_end_matches('.').to_ascii_lowercase();
        let decides = self.most_specific(&|pattern| pattern.matches_name(&name, port));
        match decides {
            None => Ok(NameVerdict::Open),
            Some(Effect::Allow) => Ok(NameVerdict::Allowed),
            Some(Effect::Deny) => Err(Denied::Rule),
        }
    }

    /// Whether clients may go to a name with this verdict that somebody else will look up, so that its addresses can't be
    /// checked. `localhost` is checked as 127.0.0.1, and where every address is denied that no other rule is about, so
    /// is every name that no rule is about. The port may be 0, of a peer that shall connect to us.
    ///
    /// # Errors
    /// Why not.
    pub fn check_unseen(&self, name: &Name, port: u16, verdict: NameVerdict) -> Result<(), Denied> {
        if name.is_localhost() {
            return self.check_peer((Ipv4Addr::LOCALHOST, port).into(), verdict);
        }
        let all_denied = |all: IpNet| {
            let decides = self.most_specific(&|pattern| {
                pattern.place == Place::Range(all) && pattern.port.is_none_or(|own| own == port)
            });
            decides == Some(Effect::Deny)
        };
        let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        match verdict {
            NameVerdict::Open if everything.into_iter().all(all_denied) => Err(Denied::Rule),
            _ => Ok(()),
        }
    }

    /// Whether clients may go to an address. May ask the kernel whether it is an own one.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, address: SocketAddr, name: NameVerdict) -> Result<(), Denied> {
        if address.port() == 0 {
            return Err(Denied::PortZero);
        }
        self.check_peer(address, name)
    }

    /// The same for an address that shall connect to us: nobody is let in whom clients may not go to. The port may be 0.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_peer(&self, address: SocketAddr, name: NameVerdict) -> Result<(), Denied> {
        let address = canonical(address);
        if self.own.is_own(address) {
            return Err(Denied::OwnListener);
        }
        if self.check_ranges(address, name)? == Known::Allowed {
            return Ok(());
        }
        if is_local(address.ip()) {
            return Err(Denied::OwnAddress);
        }
        Ok(())
    }

    fn check_ranges(&self, address: SocketAddr, name: NameVerdict) -> Result<Known, Denied> {
        let decides = self.most_specific(&|pattern| pattern.matches(address));
        match decides {
            Some(Effect::Allow) => return Ok(Known::Allowed),
            Some(Effect::Deny) if name == NameVerdict::Open => return Err(Denied::Rule),
            _ if !is_public(address.ip()) => return Err(Denied::NotPublic),
            _ => {}
        }
        // What a translator makes of it on the way.
        if let IpAddr::V6(v6) = address.ip()
            && let Some(v4) = translated(v6)
        {
            self.check_ranges(SocketAddr::new(v4.into(), address.port()), name)?;
        }
        Ok(Known::Open)
    }

    fn most_specific(&self, matches: &dyn Fn(&Pattern) -> bool) -> Option<Effect> {
        self.rules
            .iter()
            .filter(|rule| matches(&rule.pattern))
            .max_by_key(|rule| {
                let pattern = &rule.pattern;
                let denies = rule.effect == Effect::Deny;
                (pattern.length(), pattern.port.is_some(), denies)
            })
            .map(|rule| rule.effect)
    }
}

#[derive(PartialEq, Eq)]
enum Known {
    Allowed,
    Open,
}

impl Pattern {
    fn matches(&self, address: SocketAddr) -> bool {
        self.port.is_none_or(|port| port == address.port())
            && matches!(&self.place, Place::Range(range) if range.contains(&address.ip()))
    }

    fn matches_name(&self, name: &str, port: u16) -> bool {
        let Place::Domain(domain) = &self.place else {
            return false;
        };
        let under = name
            .strip_suffix(&**domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        under && self.port.is_none_or(|own| own == port)
    }

    /// The longer, the more specific. Rules of one kind only are ever compared.
    fn length(&self) -> usize {
        match &self.place {
            Place::Range(range) => range.prefix_len().into(),
            Place::Domain(domain) => domain.len(),
        }
    }
}

impl FromStr for Pattern {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let bad = |problem: &str| BadText::new(text, problem, EXAMPLE);
        let (host, prefix, port) = parts(text).ok_or_else(|| bad("is not a destination"))?;
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port @ 1..)) => Some(port),
            Some(_) => return Err(bad("has a port that is not a number from 1 to 65535")),
        };
        let place = match (host.parse::<IpAddr>(), prefix) {
            (Ok(ip), None) => Place::Range(IpNet::from(ip.to_canonical())),
            (Ok(ip), Some(prefix)) => prefix
                .parse()
                .ok()
                .and_then(|prefix| range(ip, prefix))
                .map(Place::Range)
                .ok_or_else(|| bad("has a prefix that does not fit the address"))?,
            (Err(_), Some(_)) => return Err(bad("is not a range of addresses")),
            (Err(_), None) => {
                let host = host.strip_prefix('.').unwrap_or(host);
                let host = host.strip_suffix('.').unwrap_or(host);
                match host.parse::<Name>() {
                    // With a second dot at an end it would match nothing, and deny nobody.
                    Ok(name)
                        if !name.looks_like_ipv4_number()
                            && !host.starts_with(['.', '*'])
                            && !host.ends_with('.') =>
                    {
                        Place::Domain(host.to_ascii_lowercase().into())
                    }
                    _ => return Err(bad("is neither an address nor a name")),
                }
            }
        };
        Ok(Self { place, port })
    }
}

/// Host, prefix and port of `host`, `host:port`, `ip/prefix`, `ip/prefix:port`, with IPv6 in brackets where a port follows.
fn parts(text: &str) -> Option<(&str, Option<&str>, Option<&str>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inside) => {
            let (host, rest) = inside.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, rest)
        }
        None if text.parse::<Ipv6Addr>().is_ok() => (text, ""),
        None => {
            let end = text.find('/').or_else(|| text.find(':'));
            text.split_at(end.unwrap_or(text.len()))
        }
    };
    let (prefix, port) = match rest.strip_prefix('/') {
        Some(rest) => match rest.split_once(':') {
            Some((prefix, port)) => (Some(prefix), Some(port)),
            None => (Some(rest), None),
        },
        None => match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return None,
        },
    };
    Some((host, prefix, port))
}

/// A range with its IPv4-mapped form turned into IPv4, which addresses are too when they are compared.
fn range(ip: IpAddr, prefix: u8) -> Option<IpNet> {
    let range = match (ip.to_canonical(), ip) {
        (IpAddr::V4(v4), IpAddr::V6(_)) => {
            IpNet::new(v4.into(), prefix.checked_sub(MAPPED_PREFIX)?)
        }
        _ => IpNet::new(ip, prefix),
    };
    range.ok().map(|range| range.trunc())
}

/// Whether an address is one that anybody could connect to from anywhere, overlays included.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => !contains(&NOT_PUBLIC_V4, v4.to_bits().into(), 32),
        IpAddr::V6(v6) => !contains(&NOT_PUBLIC_V6, v6.to_bits(), 128),
    }
}

fn contains(ranges: &[(u128, u32)], address: u128, bits: u32) -> bool {
    ranges
        .iter()
        .any(|(first, prefix)| (address ^ first) >> (bits - prefix) == 0)
}

/// The IPv4 address that a packet to this IPv6 address ends up at: NAT64 (RFC 6052) and 6to4 (RFC 3056).
fn translated(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

const fn v4(a: u8, b: u8, c: u8, prefix: u32) -> (u128, u32) {
    (Ipv4Addr::new(a, b, c, 0).to_bits() as u128, prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u32) -> (u128, u32) {
    (Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).to_bits(), prefix)
}

/// The IANA registry of special-purpose IPv4 addresses (RFC 6890), and multicast. Link-local has the address where clouds keep
/// their metadata, 169.254.169.254.
const NOT_PUBLIC_V4: [(u128, u32); 15] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 88, 99, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];

/// The same for IPv6: unspecified, loopback and IPv4-compatible (::/96), local NAT64 (RFC 8215), discard, Teredo,
/// documentation, unique local (with fd00:ec2::254, a cloud's metadata), link-local, site-local, multicast.
const NOT_PUBLIC_V6: [(u128, u32); 10] = [
    v6(0, 0, 0, 96),
    v6(0x64, 0xff9b, 1, 48),
    v6(0x100, 0, 0, 64),
    v6(0x2001, 0, 0, 32),
    v6(0x2001, 0xdb8, 0, 32),
    v6(0x3fff, 0, 0, 20),
    v6(0xfc00, 0, 0, 7),
    v6(0xfe80, 0, 0, 10),
    v6(0xfec0, 0, 0, 10),
    v6(0xff00, 0, 0, 8),
];

/// The bits of ::ffff:0:0 before the IPv4 address.
const MAPPED_PREFIX: u8 = 96;

const EXAMPLE: &str = "10.0.0.0/8, 10.0.0.0/8:80, [fd00::]/8:443, example.org or example.org:443";

#[cfg(test)]
mod tests {
    use super::*;

    /// `+10.0.0.0/8 -10.1.0.0/16`
    fn rules(text: &str) -> Rules {
        let rule = |text: &str| {
            let (sign, pattern) = text.split_at(1);
            let effect = match sign {
                "+" => Effect::Allow,
                _ => Effect::Deny,
            };
            let pattern = pattern.parse().unwrap();
            Rule { effect, pattern }
        };
        let own = ["[::]:1080", "192.0.2.1:9"].map(|text| text.parse().unwrap());
        Rules::new(
            text.split_whitespace().map(rule).collect(),
            own.into_iter().collect(),
        )
    }

    fn check(rules: &Rules, address: &str) -> Result<(), Denied> {
        rules.check(address.parse().unwrap(), NameVerdict::Open)
    }

    #[test]
    fn peers_are_as_good_as_destinations_and_may_have_any_port() {
        let rules = rules("+10.0.0.0/8 -10.1.0.0/16:80 -9.9.9.9 -example.org +10.2.0.0/16:21");
        let peer = |address: &str| rules.check_peer(address.parse().unwrap(), NameVerdict::Open);
        for address in ["8.8.8.8:0", "10.0.0.1:0", "10.1.0.1:0", "10.2.0.1:21"] {
            assert_eq!(peer(address), Ok(()), "{address}");
        }
        for (address, why) in [
            ("10.1.0.1:80", Denied::Rule),
            ("9.9.9.9:0", Denied::Rule),
            ("192.168.0.1:0", Denied::NotPublic),
            ("127.0.0.1:1080", Denied::OwnListener),
            ("127.0.0.1:0", Denied::NotPublic),
        ] {
            assert_eq!(peer(address), Err(why), "{address}");
        }
        let name = |name: &str| rules.check_peer_name(&name.parse().unwrap(), 0);
        assert_eq!(name("example.com"), Ok(NameVerdict::Open));
        assert_eq!(name("a.example.org"), Err(Denied::Rule));
        assert_eq!(name("127.1"), Err(Denied::Number));
    }

    #[test]
    fn names_that_others_look_up() {
        let check = |texts: &str, name: &str| {
            let (rules, name) = (rules(texts), name.parse().unwrap());
            let verdict = rules.check_name(&name, 80)?;
            rules.check_unseen(&name, 80, verdict)
        };
        for (texts, name, expected) in [
            ("", "a.example", Ok(())),
            ("", "LocalHost.", Err(Denied::NotPublic)),
            ("", "x.localhost", Err(Denied::NotPublic)),
            ("+127.0.0.0/8", "localhost", Ok(())),
            (
                "-127.0.0.0/8 +localhost",
                "localhost",
                Err(Denied::NotPublic),
            ),
            ("-0.0.0.0/0", "a.example", Ok(())),
            ("-0.0.0.0/0 -::/0", "a.example", Err(Denied::Rule)),
            ("-0.0.0.0/0:443 -[::]/0:443", "a.example", Ok(())),
            ("-0.0.0.0/0 -::/0 +0.0.0.0/0:80", "a.example", Ok(())),
            (
                "-0.0.0.0/0 -::/0 +10.0.0.0/8",
                "a.example",
                Err(Denied::Rule),
            ),
            ("-0.0.0.0/0 -::/0 +a.example", "a.example", Ok(())),
        ] {
            assert_eq!(check(texts, name), expected, "{texts} {name}");
        }
    }

    #[test]
    fn by_default_only_public_addresses() {
        let rules = rules("");
        for address in [
            "127.0.0.1:80",
            "127.255.255.255:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[::]:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "10.0.0.1:80",
            "172.16.0.1:80",
            "172.31.255.255:80",
            "192.168.1.1:80",
            "[::ffff:192.168.1.1]:80",
            "100.64.0.1:80",
            "100.127.255.255:80",
            "169.254.0.1:80",
            "169.254.169.254:80",
            "[fd00:ec2::254]:80",
            "[fc00::1]:80",
            "[fdff::1]:80",
            "[fe80::1]:80",
            "[fe80::1%2]:80",
            "[febf::1]:80",
            "[fec0::1]:80",
            "[ff02::1]:80",
            "224.0.0.1:80",
            "239.255.255.255:80",
            "240.0.0.1:80",
            "255.255.255.255:80",
            "192.0.2.7:80",
            "198.51.100.7:80",
            "203.0.113.7:80",
            "198.18.0.1:80",
            "198.19.255.255:80",
            "[2001:db8::1]:80",
            "[64:ff9b::10.0.0.1]:80",
            "[64:ff9b:1::1]:80",
            "[2002:7f00:1::1]:80",
            "[2001::1]:80",
        ] {
            assert_eq!(check(&rules, address), Err(Denied::NotPublic), "{address}");
        }
        for address in [
            "8.8.8.8:53",
            "[::ffff:8.8.8.8]:53",
            "172.32.0.1:80",
            "100.63.255.255:80",
            "100.128.0.1:80",
            "9.255.255.255:80",
            "11.0.0.1:80",
            "223.255.255.255:80",
            "[2606:4700::1111]:443",
            "[64:ff9b::8.8.8.8]:53",
            "[2002:808:808::1]:53",
            "[200::1]:80",
            "[407::1]:80",
            "[fbff::1]:80",
        ] {
            assert_eq!(check(&rules, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn port_0_and_own_listeners_are_never_allowed() {
        let rules = rules("+0.0.0.0/0 +::/0");
        assert_eq!(check(&rules, "8.8.8.8:0"), Err(Denied::PortZero));
        for own in [
            "127.0.0.1:1080",
            "[::1]:1080",
            "0.0.0.0:1080",
            "192.0.2.1:9",
        ] {
            assert_eq!(check(&rules, own), Err(Denied::OwnListener), "{own}");
        }
        assert_eq!(check(&rules, "127.0.0.1:1081"), Ok(()));
        let name = "example.org".parse().unwrap();
        assert_eq!(rules.check_name(&name, 0), Err(Denied::PortZero));
    }

    #[test]
    fn the_most_specific_rule_wins() {
        let denied = Err(Denied::Rule);
        for (text, address, expected) in [
            ("+10.0.0.0/8", "10.1.2.3:80", Ok(())),
            ("+10.0.0.0/8", "11.1.2.3:80", Ok(())),
            ("+10.0.0.0/8", "[::ffff:10.1.2.3]:80", Ok(())),
            ("+::ffff:10.0.0.0/104", "10.1.2.3:80", Ok(())),
            ("+10.0.0.0/8:80", "10.1.2.3:80", Ok(())),
            ("+10.0.0.0/8:80", "10.1.2.3:81", Err(Denied::NotPublic)),
            ("-8.0.0.0/8", "8.8.8.8:80", denied),
            ("-8.0.0.0/8", "[::ffff:8.8.8.8]:80", denied),
            ("-8.0.0.0/8", "[64:ff9b::8.8.8.8]:80", denied),
            ("-8.0.0.0/8:25", "8.8.8.8:80", Ok(())),
            ("-8.0.0.0/8 +8.8.0.0/16", "8.8.8.8:80", Ok(())),
            ("+8.8.0.0/16 -8.0.0.0/8", "8.8.8.8:80", Ok(())),
            ("+8.0.0.0/8 -8.8.0.0/16", "8.8.8.8:80", denied),
            ("-8.0.0.0/8 +8.0.0.0/8:80", "8.8.8.8:80", Ok(())),
            ("-8.0.0.0/8:80 +8.8.0.0/16", "8.8.8.8:80", Ok(())),
            ("+8.0.0.0/8 -8.0.0.0/8", "8.8.8.8:80", denied),
            ("-0.0.0.0/0 +9.9.9.9:53", "9.9.9.9:53", Ok(())),
            ("-0.0.0.0/0 +9.9.9.9:53", "9.9.9.9:54", denied),
            ("+[fd00::]/8:443", "[fd01::1]:443", Ok(())),
            ("+fd00::/8", "[fd01::1]:443", Ok(())),
            ("+127.0.0.0/8", "127.0.0.1:80", Ok(())),
            ("+127.0.0.0/8", "[::1]:80", Err(Denied::NotPublic)),
        ] {
            assert_eq!(check(&rules(text), address), expected, "{text}: {address}");
        }
    }

    #[test]
    fn names_by_suffix() {
        let denied = Err(Denied::Rule);
        let (allowed, open) = (Ok(NameVerdict::Allowed), Ok(NameVerdict::Open));
        for (text, name, expected) in [
            ("-example.org", "example.org", denied),
            ("-.example.org", "example.org", denied),
            ("-example.org", "www.Example.ORG.", denied),
            ("-example.org", "badexample.org", open),
            ("-example.org", "org", open),
            ("-example.org:443", "example.org", open),
            ("-example.org:80", "example.org", denied),
            ("-org +example.org", "a.example.org", allowed),
            ("+org -example.org", "a.example.org", denied),
            ("+example.org -example.org", "example.org", denied),
            ("-example.org +example.org:80", "example.org", allowed),
            ("", "localhost", open),
            ("", "2130706433", Err(Denied::Number)),
            ("", "0x7f.1", Err(Denied::Number)),
            ("", "0177.0.0.1", Err(Denied::Number)),
        ] {
            let verdict = rules(text).check_name(&name.parse().unwrap(), 80);
            assert_eq!(verdict, expected, "{text}: {name}");
        }
    }

    #[test]
    fn an_allowed_name_beats_ranges_but_leads_to_public_addresses_only() {
        let rules = rules("-0.0.0.0/0 +10.7.0.0/16 +example.org");
        for (address, open, allowed) in [
            ("8.8.8.8:80", Err(Denied::Rule), Ok(())),
            ("10.0.0.1:80", Err(Denied::Rule), Err(Denied::NotPublic)),
            ("127.0.0.1:80", Err(Denied::Rule), Err(Denied::NotPublic)),
            ("10.7.0.1:80", Ok(()), Ok(())),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(rules.check(address, NameVerdict::Open), open);
            assert_eq!(rules.check(address, NameVerdict::Allowed), allowed);
        }
    }

    #[test]
    fn allow_all_means_all() {
        let rules = Rules::allow_all();
        for address in ["127.0.0.1:1080", "[::1]:1", "10.0.0.1:1", "[fe80::1]:1"] {
            assert_eq!(check(&rules, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn text_of_patterns() {
        for bad in [
            "",
            ".",
            ":80",
            "10.0.0.0/33",
            "10.0.0.0/x",
            "10.0.0.0/8:0",
            "10.0.0.0/8:65536",
            "10.0.0.0/8:",
            "[fd00::]/129",
            "[fd00::/8",
            "[10.0.0.0]/8",
            "fd00::1:x",
            "::ffff:10.0.0.0/95",
            "10.0.0",
            "*.example.org",
            "example.org..",
            "example.org/8",
            "a b",
            "[::1]x",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
        let pattern = |text: &str| text.parse::<Pattern>().unwrap();
        assert_eq!(pattern("10.1.2.3/8"), pattern("10.0.0.0/8"));
        assert_eq!(pattern("[::1]"), pattern("::1/128"));
        assert_eq!(pattern("[::1]:80"), pattern("[::1]/128:80"));
        assert_eq!(pattern(".Example.org."), pattern("example.org"));
    }
}
