//! `tailscale[:SOCKET]`: the nodes of the tailnet that are online, from the daemon's local API.
//!
//! ```text
//! GET /localapi/v0/status   {"BackendState":"Running","Self":{"TailscaleIPs":[…]},
//!                            "Peer":{"nodekey:…":{"TailscaleIPs":["100.…","fd7a:…"],"Online":true,…},…}}
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::ask::{Patience, Trouble};
use super::http::Http;
use super::json::{Met, Path};
use super::lines::shorten;
use super::roster::{Range, Roster};
use super::{Presence, REFRESH_LIMIT, Refresh, Refreshed, Signal, Source, pause_after};
use crate::api_address::ApiAddress;
use crate::discovery::table::MAX_ADDRESSES;
use crate::resolver::Resolver;

/// Tailscale's local API, asked once a minute. Every user may read it.
#[derive(Debug)]
pub struct TailscaleSource {
    name: String,
    addresses: Vec<ApiAddress>,
    default_port: u16,
    presence: Presence,
    resolver: Resolver,
    pause: Duration,
}

impl TailscaleSource {
    /// The socket at the first of `paths` where somebody listens. `name` is shown to users.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        paths: impl IntoIterator<Item = PathBuf>,
        presence: Presence,
        default_port: u16,
    ) -> Self {
        Self {
            name: name.into(),
            addresses: paths.into_iter().map(ApiAddress::Unix).collect(),
            default_port,
            presence,
            // There are no names to look up.
            resolver: Resolver::default(),
            pause: pause_after(&[]),
        }
    }

    fn ask(&self, signal: &mut Signal) -> Result<Roster, Trouble> {
        let mut http = Http {
            addresses: &self.addresses,
            host: HOST,
            resolver: &self.resolver,
            patience: Patience::new(signal, REFRESH_LIMIT),
            kept: None,
        };
        let mut status = Status::default();
        http.get("/localapi/v0/status", &mut |path, met| {
            status.meet(path, met)
        })?;
        if status.state != RUNNING {
            // `Stopped`, `NeedsLogin`, `Starting` …: who is online is not known.
            return Err(Trouble::Failed(format!(
                "its state is {:?}, not {RUNNING}",
                status.state
            )));
        }
        let mut roster = Roster::new(RANGE);
        roster.leave_out(status.left_out);
        let own = status.own;
        let all = [own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6)];
        all.into_iter().flatten().for_each(|ip| roster.is_own(ip));
        for node in status.online {
            // One address a node, of a kind that this machine has as well.
            match node {
                Ips { v4: Some(ip), .. } if own.v4.is_some() => roster.add(ip.into()),
                Ips { v6: Some(ip), .. } if own.v6.is_some() => roster.add(ip.into()),
                _ => {}
            }
        }
        Ok(roster)
    }
}

impl Source for TailscaleSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn refresh(&mut self, _: Refresh, signal: &mut Signal) -> Refreshed {
        let refreshed = match self.ask(signal) {
            Ok(roster) => roster.refreshed(self.default_port, None, signal),
            Err(trouble) => trouble.refreshed(self.presence),
        };
        self.pause = pause_after(refreshed.peers());
        refreshed
    }

    fn pause(&self) -> Option<Duration> {
        Some(self.pause)
    }
}

/// What is read of an answer.
#[derive(Debug, Default)]
struct Status {
    state: String,
    own: Ips,
    /// The peers that are online.
    online: Vec<Ips>,
    /// Online too, but beyond what a table takes.
    left_out: usize,
    /// Of the peer that is being read.
    ips: Ips,
    is_online: bool,
}

impl Status {
    fn meet(&mut self, path: &Path, met: Met<'_>) {
        match met {
            Met::Text(text) if path.is(&["Peer", "*", "TailscaleIPs", "#"]) => self.ips.add(text),
            Met::Bool(is_online) if path.is(&["Peer", "*", "Online"]) => self.is_online = is_online,
            Met::Object if path.is(&["Peer", "*"]) => {
                let ips = std::mem::take(&mut self.ips);
                match std::mem::take(&mut self.is_online) {
                    false => {}
                    true if self.online.len() == MAX_ADDRESSES => self.left_out += 1,
                    true => self.online.push(ips),
                }
            }
            Met::Text(text) if path.is(&["Self", "TailscaleIPs", "#"]) => self.own.add(text),
            Met::Text(text) if path.is(&["BackendState"]) => self.state = shorten(text),
            _ => {}
        }
    }
}

/// The first IPv4 and the first IPv6 address of a node, which has one of each.
#[derive(Clone, Copy, Debug, Default)]
struct Ips {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Ips {
    fn add(&mut self, text: &str) {
        match text.parse() {
            Ok(IpAddr::V4(ip)) => self.v4 = self.v4.or(Some(ip)),
            Ok(IpAddr::V6(ip)) => self.v6 = self.v6.or(Some(ip)),
            Err(_) => {}
        }
    }
}

fn is_overlay(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => matches!(ip.segments(), [0xFD7A, 0x115C, 0xA1E0, ..]),
    }
}

const RANGE: Range = Range {
    name: "100.64.0.0/10 and fd7a:115c:a1e0::/48",
    contains: is_overlay,
};

/// The API answers nobody who asks for another host: that is how it keeps web pages away.
const HOST: &str = "local-tailscaled.sock";

const RUNNING: &str = "Running";

/// Where its socket is on Linux and the BSDs, and on macOS.
pub fn usual_places() -> [PathBuf; 3] {
    [
        "/var/run/tailscale/tailscaled.sock",
        "/run/tailscale/tailscaled.sock",
        "/var/run/tailscaled.socket",
    ]
    .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::super::json::{Rest, walk};
    use super::*;

    fn status(text: &str) -> Status {
        let mut status = Status::default();
        walk(&mut text.as_bytes(), Rest::Blank, &mut |path, met| {
            status.meet(path, met);
        })
        .unwrap();
        status
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let status = status(
            r#"{"Peer":{"a":{"Online":true,"Tags":["x"],"TailscaleIPs":["x","fd7a::1","100.64.0.2","100.64.0.3"]},
                "b":{"TailscaleIPs":["100.64.0.4"],"Online":false},"c":{"TailscaleIPs":["100.64.0.5"]},"d":{"Online":true}},
                "Self":{"TailscaleIPs":["100.64.0.1"]},"BackendState":"Running"}"#,
        );
        assert_eq!(status.state, RUNNING);
        assert_eq!(status.own.v4, Some(Ipv4Addr::new(100, 64, 0, 1)));
        let [first, second] = status.online.as_slice() else {
            panic!("{status:?}");
        };
        assert_eq!(first.v4, Some(Ipv4Addr::new(100, 64, 0, 2)));
        assert_eq!(first.v6, Some("fd7a::1".parse().unwrap()));
        assert_eq!((second.v4, second.v6), (None, None));
    }

    #[test]
    fn peers_may_be_null() {
        let status = status(r#"{"BackendState":"NoState","Self":null,"Peer":null}"#);
        assert_eq!((status.state.as_str(), status.online.len()), ("NoState", 0));
    }

    #[test]
    fn both_of_its_ranges_count() {
        let is_in = |ip: &str| is_overlay(ip.parse().unwrap());
        for ip in ["100.64.0.1", "100.127.255.255", "fd7a:115c:a1e0::1"] {
            assert!(is_in(ip), "{ip}");
        }
        for ip in ["100.63.0.1", "100.128.0.1", "fd7a:115c:a1e1::1", "10.0.0.1"] {
            assert!(!is_in(ip), "{ip}");
        }
    }
}
