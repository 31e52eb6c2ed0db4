//! `mycelium[:URL]`: the nodes to which Mycelium has routes, and the proxies that it found itself.
//!
//! Its API (0.6 and later) names the routes' subnets, /64s in `400::/7`; the node's own address is the start of the BLAKE3
//! hash of its public key, which is asked for once a subnet:
//!
//! ```text
//! GET /api/v1/admin/routes/selected   [{"subnet":"453:597:5e1a:bd4d::/64","metric":1015,…},…]
//! GET /api/v1/admin                   {"nodeIp":"…","nodePubkey":"…",…}: our own node
//! GET /api/v1/pubkey/453:597:5e1a:bd4d::   {"publicKey":"1e68…"}
//! GET /api/v1/admin/proxy             ["453:597:5e1a:bd4d:2616:9e04:cdcc:f7cd",…]
//! ```

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Visitor};

use super::ask::{Patience, Trouble};
use super::http::Http;
use super::json::{Capped, IpText, parsed};
use super::roster::{Range, Roster};
use super::{Presence, REFRESH_LIMIT, Refresh, Refreshed, Signal, Source, pause_after};
use crate::api_address::ApiAddress;
use crate::discovery::table::MAX_ADDRESSES;
use crate::resolver::Resolver;
use crate::target::HostPort;

/// Mycelium's HTTP API, asked once a minute. The addresses of nodes are remembered: they are hashes and never change.
#[derive(Debug)]
pub struct MyceliumSource {
    name: String,
    addresses: [ApiAddress; 1],
    host: String,
    default_port: u16,
    presence: Presence,
    resolver: Resolver,
    pause: Duration,
    /// The node's address by its subnet.
    known: HashMap<Subnet, Ipv6Addr>,
}

impl MyceliumSource {
    /// The API at `place`. `name` is shown to users.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        place: HostPort,
        presence: Presence,
        default_port: u16,
        resolver: Resolver,
    ) -> Self {
        Self {
            name: name.into(),
            host: place.to_string(),
            addresses: [ApiAddress::Tcp(place)],
            default_port,
            presence,
            resolver,
            pause: pause_after(&[]),
            known: HashMap::new(),
        }
    }

    fn ask(&mut self, signal: &mut Signal) -> Result<(Roster, Option<String>), Trouble> {
        let mut http = Http {
            addresses: &self.addresses,
            host: &self.host,
            resolver: &self.resolver,
            patience: Patience::new(signal, REFRESH_LIMIT),
            kept: None,
        };
        let mut roster = Roster::new(RANGE);
        let routes: Capped<Route, MAX_ADDRESSES> = http.get("/api/v1/admin/routes/selected")?;
        roster.leave_out(routes.left_out);
        let node: Node = http.get("/api/v1/admin")?;
        for own in node.addresses() {
            roster.is_own(own.into());
        }

        let mut subnets = HashSet::new();
        for route in routes.items {
            match route.subnet.0 {
                _ if route.metric == Metric::Infinite => {}
                Some(subnet) => drop(subnets.insert(subnet)),
                None => roster.add_bad(),
            }
        }
        if self.known.len() > MAX_ADDRESSES {
            self.known.retain(|subnet, _| subnets.contains(subnet));
        }
        let mut trouble = None;
        let mut unasked = 0;
        for subnet in subnets {
            if let Some(address) = self.known.get(&subnet) {
                roster.add((*address).into());
                continue;
            }
            // Asking for anything but an address of its own would be useless; IPv4 ones even disturb it.
            if !is_overlay(subnet.base.into()) {
                roster.add(subnet.base.into());
                continue;
            }
            if trouble.is_some() || http.patience.is_over() {
                unasked += 1;
                continue;
            }
            match http.get::<KeyOf>(&format!("/api/v1/pubkey/{}", subnet.base)) {
                Ok(KeyOf {
                    key: Key(Some(key)),
                }) => match address(&key) {
                    // Its routes to others cover its own; a key from elsewhere tells nothing about this subnet.
                    address if subnet.contains(address) => {
                        self.known.insert(subnet, address);
                        roster.add(address.into());
                    }
                    _ => roster.add_bad(),
                },
                Ok(KeyOf { key: Key(None) }) => roster.add_bad(),
                // The route has gone since.
                Err(error) if error.status() == Some(404) => {}
                // The next round goes on: what is known by then is not asked for again.
                Err(error) => {
                    trouble = Some(error.to_string());
                    unasked += 1;
                }
            }
        }
        if unasked > 0 {
            let why = trouble.map(|trouble| format!(" ({trouble})"));
            trouble = Some(format!(
                "{unasked} subnets not looked up yet{}",
                why.unwrap_or_default()
            ));
        }

        match http.get::<Capped<IpText, MAX_ADDRESSES>>("/api/v1/admin/proxy") {
            Ok(proxies) => {
                roster.leave_out(proxies.left_out);
                for proxy in proxies.items {
                    roster.add_text(proxy);
                }
            }
            // Versions before 0.6.2 know no proxies.
            Err(error) if error.status() == Some(404) => {}
            Err(error) => drop(trouble.get_or_insert_with(|| error.to_string())),
        }
        Ok((roster, trouble))
    }
}

impl Source for MyceliumSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn refresh(&mut self, _: Refresh, signal: &mut Signal) -> Refreshed {
        let refreshed = match self.ask(signal) {
            Ok((roster, trouble)) => roster.refreshed(self.default_port, trouble, signal),
            Err(trouble) => trouble.refreshed(self.presence),
        };
        self.pause = pause_after(refreshed.peers());
        refreshed
    }

    fn pause(&self) -> Option<Duration> {
        Some(self.pause)
    }
}

/// The address of the node with this public key.
fn address(key: &[u8; 32]) -> Ipv6Addr {
    let hash = blake3::hash(key);
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    let [first, ..] = &mut bytes;
    // The range has seven fixed bits; the eighth is the parity of the hash's first byte.
    *first = 0x04 | u8::from(first.count_ones() % 2 == 1);
    bytes.into()
}

fn is_overlay(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.octets()[0] & 0xFE == 0x04)
}

const RANGE: Range = Range {
    name: "400::/7",
    contains: is_overlay,
};

/// `GET /api/v1/admin`.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    /// Since 0.7.8.
    #[serde(default)]
    node_ip: IpText,
    #[serde(default)]
    node_pubkey: Key,
}

impl Node {
    fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        let told = match self.node_ip {
            IpText::Ip(IpAddr::V6(ip)) => Some(ip),
            _ => None,
        };
        told.into_iter()
            .chain(self.node_pubkey.0.as_ref().map(address))
    }
}

#[derive(serde::Deserialize)]
struct KeyOf {
    #[serde(rename = "publicKey", default)]
    key: Key,
}

/// 64 hexadecimal digits.
#[derive(Debug, Default, PartialEq, Eq)]
struct Key(Option<[u8; 32]>);

impl Key {
    fn parse(text: &str) -> Self {
        let mut key = [0; 32];
        let pairs = text.as_bytes().chunks(2);
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Self(None);
        }
        for (to, pair) in key.iter_mut().zip(pairs) {
            let digits = std::str::from_utf8(pair).unwrap_or_default();
            *to = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        Self(Some(key))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, Self::parse)
    }
}

#[derive(serde::Deserialize)]
struct Route {
    subnet: SubnetText,
    metric: Metric,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Subnet {
    base: Ipv6Addr,
    length: u8,
}

impl Subnet {
    fn contains(self, ip: Ipv6Addr) -> bool {
        let shift = 128 - u32::from(self.length);
        let cut = |ip: Ipv6Addr| ip.to_bits().checked_shr(shift).unwrap_or(0);
        cut(ip) == cut(self.base)
    }
}

/// `None` for what is no subnet that one node can have: those are /64 or smaller.
struct SubnetText(Option<Subnet>);

impl SubnetText {
    fn parse(text: &str) -> Self {
        let parse = || {
            let (base, length) = text.split_once('/')?;
            let length = length
                .parse()
                .ok()
                .filter(|length| (64..=128).contains(length))?;
            let base = base.parse().ok()?;
            Some(Subnet { base, length })
        };
        Self(parse())
    }
}

impl<'de> Deserialize<'de> for SubnetText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, Self::parse)
    }
}

/// A number, or the word `infinite` for a route that leads nowhere any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Finite,
    Infinite,
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrWord;
        impl Visitor<'_> for NumberOrWord {
            type Value = Metric;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a metric")
            }

            fn visit_u64<E>(self, _: u64) -> Result<Metric, E> {
                Ok(Metric::Finite)
            }

            fn visit_str<E>(self, word: &str) -> Result<Metric, E> {
                Ok(match word {
                    "infinite" => Metric::Infinite,
                    _ => Metric::Finite,
                })
            }
        }
        deserializer.deserialize_any(NumberOrWord)
    }
}

/// Where its API is unless it was told otherwise.
pub fn usual_place() -> HostPort {
    SocketAddr::from(([127, 0, 0, 1], crate::source_spec::MYCELIUM_PORT)).into()
}

#[cfg(test)]
mod tests {
    use super::super::json::{Rest, read};
    use super::*;

    #[test]
    fn addresses_of_known_keys() {
        // The first two as `mycelium inspect` prints them. (Those in its documentation are older than its use of BLAKE3.)
        for (key, ip) in [
            (
                "eed81cc7879762e32ba3a91dd540da10a5db000e7960b8cf1630506dca16a107",
                "490:65ba:4d22:345d:1f4c:9db0:71d:7594",
            ),
            (
                "4e95fe8651229c8be88ec504b92e0d58bb8b04be373b4d91656f8e805a2cd70e",
                "464:d486:875f:c13f:65f1:173d:71c8:b900",
            ),
            (
                "0303030303030303030303030303030303030303030303030303030303030303",
                "5b5:fbf7:762c:d146:e8d1:5a1c:322c:338f",
            ),
        ] {
            let key = Key::parse(key).0.expect(key);
            assert_eq!(address(&key).to_string(), ip);
        }
    }

    #[test]
    fn keys_are_64_digits() {
        assert_eq!(Key::parse(&"0f".repeat(32)).0, Some([15; 32]));
        for text in [
            "",
            "0f",
            &"0f".repeat(33),
            &"0g".repeat(32),
            &"é".repeat(32),
        ] {
            assert_eq!(Key::parse(text).0, None, "{text}");
        }
    }

    #[test]
    fn routes_as_it_tells_them() {
        let text = r#"[{"subnet":"453:597:5e1a:bd4d::/64","nextHop":"TCP 10.77.0.1:60396 <-> 10.77.0.2:9651","metric":1015,"seqno":0},
            {"subnet":"500::/64","nextHop":"x","metric":"infinite","seqno":1},
            {"subnet":"500::/8","metric":1},{"subnet":"10.0.0.0/64","metric":1},{"subnet":"x","metric":1}]"#;
        let routes: Capped<Route, 9> = read(&mut text.as_bytes(), Rest::Blank).unwrap();
        let seen: Vec<_> = routes
            .items
            .iter()
            .map(|route| (route.subnet.0.map(|subnet| subnet.length), route.metric))
            .collect();
        use Metric::{Finite, Infinite};
        assert_eq!(
            seen,
            [
                (Some(64), Finite),
                (Some(64), Infinite),
                (None, Finite),
                (None, Finite),
                (None, Finite)
            ]
        );
    }

    #[test]
    fn subnets_contain_what_begins_as_they_do() {
        let contains = |subnet: &str, ip: &str| {
            let subnet = SubnetText::parse(subnet).0.unwrap();
            subnet.contains(ip.parse().unwrap())
        };
        assert!(contains(
            "453:597:5e1a:bd4d::/64",
            "453:597:5e1a:bd4d:2616::1"
        ));
        assert!(!contains("453:597:5e1a:bd4d::/64", "453:597:5e1a:bd4e::"));
        assert!(contains("400::1/128", "400::1"));
        assert!(!contains("400::1/128", "400::2"));
    }
}
