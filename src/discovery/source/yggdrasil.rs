//! `yggdrasil[:SOCKET]`: the nodes that a Yggdrasil daemon (0.4, 0.5) knows: its peers, the tree or the DHT around it, and
//! those that it has paths to or sessions with.
//!
//! Its admin socket takes one request and gives one answer a connection:
//!
//! ```text
//! {"request":"getPeers"}   {"status":"success",…,"response":{"peers":[{"address":"200:…",…},…]}}
//! ```

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use super::ask::{Patience, Stream, Trouble, connect};
use super::json::{IpText, Met, Rest, walk};
use super::lines::{MAX_BYTES, shorten};
use super::roster::{Range, Roster};
use super::{Presence, REFRESH_LIMIT, Refresh, Refreshed, Signal, Source, pause_after};
use crate::api_address::ApiAddress;
use crate::resolver::Resolver;

/// Yggdrasil's admin socket, asked once a minute.
#[derive(Debug)]
pub struct YggdrasilSource {
    name: String,
    addresses: Vec<ApiAddress>,
    default_port: u16,
    presence: Presence,
    resolver: Resolver,
    pause: Duration,
}

impl YggdrasilSource {
    /// The admin socket at the first of `addresses` where somebody listens. `name` is shown to users.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        addresses: Vec<ApiAddress>,
        presence: Presence,
        default_port: u16,
        resolver: Resolver,
    ) -> Self {
        Self {
            name: name.into(),
            addresses,
            default_port,
            presence,
            resolver,
            pause: pause_after(&[]),
        }
    }

    fn ask(&self, signal: &mut Signal) -> Result<Roster, Trouble> {
        let mut patience = Patience::new(signal, REFRESH_LIMIT);
        let mut roster = Roster::new(RANGE);
        let mut ask = |what| self.request(what, &mut roster, &mut patience);
        ask("getSelf")?.needed()?;
        ask("getPeers")?.needed()?;
        // 0.5 has the tree and 0.4 had a table of hashes; each refuses the other.
        if ask("getTree")?.is_refused() {
            ask("getDHT")?.needed()?;
        }
        // What is not known to a version names nobody.
        ask("getPaths")?;
        ask("getSessions")?;
        Ok(roster)
    }

    /// Asks for one thing, and adds the nodes of the answer.
    fn request(
        &self,
        what: &str,
        roster: &mut Roster,
        patience: &mut Patience<'_>,
    ) -> Result<Reply, Trouble> {
        let (socket, address) = connect(&self.addresses, &self.resolver, patience)?;
        let failed = |text: String| Trouble::Failed(format!("{address}: {what}: {text}"));
        let mut stream = Stream {
            socket: &socket,
            patience,
        };
        let request = format!("{{\"request\":\"{what}\"}}\n");
        stream
            .write_all(request.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let mut answer = Limited {
            from: stream,
            left: MAX_BYTES,
        };
        let mut is_success = false;
        let mut complaint = "the answer does not say whether it is one".to_owned();
        let walked = walk(&mut answer, Rest::Ignored, &mut |path, met| {
            let Met::Text(text) = met else { return };
            if path.is(&["response", "*", "#", "address"]) {
                roster.add_text(IpText::parse(text));
            } else if path.is(&["response", "address"]) {
                // Of `getSelf`.
                if let Ok(own) = text.parse() {
                    roster.is_own(own);
                }
            } else if path.is(&["status"]) {
                is_success = text == "success";
            } else if path.is(&["error"]) {
                complaint = format!("{:?}", shorten(text));
            }
        });
        walked.map_err(failed)?;
        Ok(match is_success {
            true => Reply::Success,
            false => Reply::Refused(failed(complaint)),
        })
    }
}

impl Source for YggdrasilSource {
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

/// What a request came to.
enum Reply {
    Success,
    /// It does not know the request, say.
    Refused(Trouble),
}

impl Reply {
    fn needed(self) -> Result<(), Trouble> {
        match self {
            Self::Success => Ok(()),
            Self::Refused(trouble) => Err(trouble),
        }
    }

    const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// Nodes have `200::/8`; `300::/8` is for the networks behind them, which are asked for nothing.
fn is_overlay(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.octets()[0] & 0xFE == 0x02)
}

const RANGE: Range = Range {
    name: "200::/7",
    contains: is_overlay,
};

/// A reader that fails where the limit is, instead of seeming to end.
struct Limited<R> {
    from: R,
    left: usize,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(out)?;
        self.left = self
            .left
            .checked_sub(count)
            .ok_or_else(|| io::Error::other("the answer is longer than 16 MiB"))?;
        Ok(count)
    }
}

/// Where its socket is unless it was told otherwise: upstream's place and Debian's, and the same where there is no
/// `/var/run`.
pub fn usual_places() -> Vec<ApiAddress> {
    [
        "/var/run/yggdrasil.sock",
        "/var/run/yggdrasil/yggdrasil.sock",
        "/run/yggdrasil.sock",
        "/run/yggdrasil/yggdrasil.sock",
    ]
    .map(|path| ApiAddress::Unix(path.into()))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_networks_behind_them_are_in_the_range() {
        let is_in = |ip: &str| is_overlay(ip.parse().unwrap());
        for ip in ["200::1", "2ff:ffff::1", "300::1", "3ff::"] {
            assert!(is_in(ip), "{ip}");
        }
        for ip in ["1ff::1", "400::1", "2001:db8::1", "fe80::1", "10.0.0.1"] {
            assert!(!is_in(ip), "{ip}");
        }
    }

    #[test]
    fn what_is_cut_off_does_not_look_whole() {
        let mut all = Vec::new();
        let mut limited = Limited {
            from: &b"123456"[..],
            left: 5,
        };
        let error = limited.read_to_end(&mut all).unwrap_err();
        assert!(error.to_string().contains("16 MiB"), "{error}");
        let mut limited = Limited {
            from: &b"12345"[..],
            left: 5,
        };
        assert_eq!(limited.read_to_end(&mut all).unwrap(), 5);
    }
}
