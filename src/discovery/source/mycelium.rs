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

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::ask::{Patience, Trouble};
use super::http::Http;
use super::json::{IpText, Met, Path};
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
        let mut routes = Routes::default();
        http.get(ROUTES, &mut |path, met| routes.meet(path, met))?;
        if !routes.is_list {
            return Err(Trouble::Failed(format!(
                "{ROUTES}: the answer is not a list of routes"
            )));
        }
        roster.leave_out(routes.left_out);
        roster.add_bad(routes.bad);
        http.get("/api/v1/admin", &mut |path, met| {
            let own = match met {
                // Since 0.7.8.
                Met::Text(text) if path.is(&["nodeIp"]) => text.parse().ok(),
                Met::Text(text) if path.is(&["nodePubkey"]) => key(text).map(|key| address(&key)),
                _ => None,
            };
            own.into_iter()
                .for_each(|own: Ipv6Addr| roster.is_own(own.into()));
        })?;

        if self.known.len() > MAX_ADDRESSES {
            self.known.clear();
        }
        let mut trouble = None;
        let mut unasked = 0;
        for subnet in routes.subnets {
            if let Some(address) = self.known.get(&subnet) {
                roster.add((*address).into());
                continue;
            }
            // Nobody there can have a key.
            if !is_overlay(subnet.base.into()) {
                roster.add(subnet.base.into());
                continue;
            }
            if trouble.is_some() || http.patience.is_over() {
                unasked += 1;
                continue;
            }
            let mut found = None;
            let asked = http.get(
                &format!("/api/v1/pubkey/{}", subnet.base),
                &mut |path, met| {
                    if let Met::Text(text) = met
                        && path.is(&["publicKey"])
                    {
                        found = key(text);
                    }
                },
            );
            match (asked, found.map(|key| address(&key))) {
                // A key from elsewhere tells nothing about this subnet.
                (Ok(()), Some(address)) if subnet.contains(address) => {
                    self.known.insert(subnet, address);
                    roster.add(address.into());
                }
                (Ok(()), _) => roster.add_bad(1),
                // The route has gone since.
                (Err(error), _) if error.status() == Some(404) => {}
                // The next round goes on: what is known by then is not asked for again.
                (Err(error), _) => {
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

        let proxies = http.get("/api/v1/admin/proxy", &mut |path, met| {
            if let Met::Text(text) = met
                && path.is(&["#"])
            {
                roster.add_text(IpText::parse(text));
            }
        });
        match proxies {
            Ok(()) => {}
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

/// The key in 64 hexadecimal digits.
fn key(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (to, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        // Without this, "+1" would be a number.
        let digits = std::str::from_utf8(pair).ok()?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        *to = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(key)
}

/// The routes of an answer.
#[derive(Debug, Default)]
struct Routes {
    subnets: Vec<Subnet>,
    /// Without a subnet that a node can have.
    bad: usize,
    /// Beyond what a table takes.
    left_out: usize,
    is_list: bool,
    /// Of the route that is being read.
    subnet: Option<Subnet>,
    is_infinite: bool,
}

impl Routes {
    fn meet(&mut self, path: &Path, met: Met<'_>) {
        match met {
            Met::Text(text) if path.is(&["#", "subnet"]) => self.subnet = Subnet::parse(text),
            // A number, or this word for a route that leads nowhere any more.
            Met::Text(text) if path.is(&["#", "metric"]) => self.is_infinite = text == "infinite",
            Met::Object if path.is(&["#"]) => {
                match (self.subnet.take(), std::mem::take(&mut self.is_infinite)) {
                    (_, true) => {}
                    (None, false) => self.bad += 1,
                    (Some(_), false) if self.subnets.len() == MAX_ADDRESSES => self.left_out += 1,
                    (Some(subnet), false) => self.subnets.push(subnet),
                }
            }
            Met::List if path.is(&[]) => self.is_list = true,
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Subnet {
    base: Ipv6Addr,
    length: u8,
}

impl Subnet {
    /// `None` for what is no subnet that one node can have: those are /64 or smaller.
    fn parse(text: &str) -> Option<Self> {
        let (base, length) = text.split_once('/')?;
        let length = length
            .parse()
            .ok()
            .filter(|length| (64..=128).contains(length))?;
        let base = base.parse().ok()?;
        Some(Self { base, length })
    }

    fn contains(self, ip: Ipv6Addr) -> bool {
        let shift = 128 - u32::from(self.length);
        let cut = |ip: Ipv6Addr| ip.to_bits().checked_shr(shift).unwrap_or(0);
        cut(ip) == cut(self.base)
    }
}

const ROUTES: &str = "/api/v1/admin/routes/selected";

/// Where its API is unless it was told otherwise.
pub fn usual_place() -> HostPort {
    SocketAddr::from(([127, 0, 0, 1], crate::source_spec::MYCELIUM_PORT)).into()
}

#[cfg(test)]
mod tests {
    use super::super::json::{Rest, walk};
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
            let key = super::key(key).expect(key);
            assert_eq!(address(&key).to_string(), ip);
        }
    }

    #[test]
    fn keys_are_64_digits() {
        assert_eq!(key(&"0f".repeat(32)), Some([15; 32]));
        for text in [
            "",
            "0f",
            &"+1".repeat(32),
            &"0f".repeat(33),
            &"0g".repeat(32),
            &"é".repeat(32),
        ] {
            assert_eq!(key(text), None, "{text}");
        }
    }

    #[test]
    fn routes_as_it_tells_them() {
        let text = r#"[{"subnet":"453:597:5e1a:bd4d::/64","nextHop":"TCP 10.77.0.1:60396 <-> 10.77.0.2:9651","metric":1015,"seqno":0},
            {"subnet":"500::/64","nextHop":"x","metric":"infinite","seqno":1},
            {"subnet":"500::/8","metric":1},{"subnet":"10.0.0.0/64","metric":1},{"subnet":"x","metric":1},{}]"#;
        let mut routes = Routes::default();
        walk(&mut text.as_bytes(), Rest::Blank, &mut |path, met| {
            routes.meet(path, met)
        })
        .unwrap();
        assert!(routes.is_list);
        assert_eq!(
            routes.subnets,
            [Subnet::parse("453:597:5e1a:bd4d::/64").unwrap()]
        );
        assert_eq!(routes.bad, 4);
    }

    #[test]
    fn subnets_contain_what_begins_as_they_do() {
        let contains = |subnet: &str, ip: &str| {
            let subnet = Subnet::parse(subnet).unwrap();
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
