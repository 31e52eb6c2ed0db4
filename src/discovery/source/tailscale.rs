//! `tailscale[:SOCKET]`: the nodes of the tailnet that are online, from the daemon's local API.
//!
//! ```text
//! GET /localapi/v0/status   {"BackendState":"Running","Self":{"TailscaleIPs":[…]},
//!                            "Peer":{"nodekey:…":{"TailscaleIPs":["100.…","fd7a:…"],"Online":true,…},…}}
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::ask::{Patience, Trouble};
use super::http::Http;
use super::json::{Capped, FirstOfEach};
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
        let status: Status = http.get("/localapi/v0/status")?;
        if status.backend_state != RUNNING {
            // `Stopped`, `NeedsLogin`, `Starting` …: who is online is not known.
            return Err(Trouble::Failed(format!(
                "its state is {:?}, not {RUNNING}",
                status.backend_state
            )));
        }
        let mut roster = Roster::new(RANGE);
        roster.leave_out(status.peers.left_out);
        let own = status.own.ips;
        for ip in own
            .v4
            .map(IpAddr::V4)
            .into_iter()
            .chain(own.v6.map(IpAddr::V6))
        {
            roster.is_own(ip);
        }
        for Node { ips, online } in status.peers.items {
            // One address a node, of a kind that this machine has as well.
            let ip = match (ips.v4, ips.v6) {
                (Some(ip), _) if own.v4.is_some() => IpAddr::V4(ip),
                (_, Some(ip)) if own.v6.is_some() => IpAddr::V6(ip),
                _ => continue,
            };
            if online {
                roster.add(ip);
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

#[derive(serde::Deserialize)]
struct Status {
    #[serde(rename = "BackendState")]
    backend_state: String,
    #[serde(rename = "Self", default)]
    own: Node,
    #[serde(rename = "Peer", default)]
    peers: Capped<Node, MAX_ADDRESSES>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Node {
    #[serde(rename = "TailscaleIPs")]
    ips: FirstOfEach,
    #[serde(rename = "Online")]
    online: bool,
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
