//! The peers that a daemon or the kernel names: checked, each once, in order.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::json::IpText;
use super::{Refreshed, Signal};
use crate::discovery::table::MAX_ADDRESSES;
use crate::net::is_local;

/// Where an overlay has its addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// For users.
    pub(super) name: &'static str,
    pub(super) contains: fn(IpAddr) -> bool,
}

/// Gathers peers. Those outside of the range and those beyond the table's limit are counted, own ones are left out.
#[derive(Debug)]
pub(super) struct Roster {
    range: Range,
    /// In order, so that the same list looks the same the next time.
    peers: BTreeSet<IpAddr>,
    own: BTreeSet<IpAddr>,
    outside: usize,
    bad: usize,
    left_out: usize,
}

impl Roster {
    pub(super) fn new(range: Range) -> Self {
        Self {
            range,
            peers: BTreeSet::new(),
            own: BTreeSet::new(),
            outside: 0,
            bad: 0,
            left_out: 0,
        }
    }

    /// Never a peer, whoever names it.
    pub(super) fn is_own(&mut self, ip: IpAddr) {
        if self.own.len() < MAX_OWN {
            self.own.insert(ip);
        }
    }

    /// One more peer, which may be known already.
    pub(super) fn add(&mut self, ip: IpAddr) {
        if !(self.range.contains)(ip) {
            self.outside += 1;
        } else if self.peers.len() < MAX_ADDRESSES {
            self.peers.insert(ip);
        } else if !self.peers.contains(&ip) {
            self.left_out += 1;
        }
    }

    /// The same from an answer.
    pub(super) fn add_text(&mut self, text: IpText) {
        match text {
            IpText::Ip(ip) => self.add(ip),
            IpText::Bad => self.bad += 1,
            IpText::Missing => {}
        }
    }

    /// So many that should have named a peer and do not.
    pub(super) fn add_bad(&mut self, count: usize) {
        self.bad += count;
    }

    /// Peers that were not even read.
    pub(super) fn leave_out(&mut self, count: usize) {
        self.left_out += count;
    }

    /// The list without own addresses. `trouble` is what else is wrong.
    pub(super) fn refreshed(
        self,
        port: u16,
        trouble: Option<String>,
        signal: &mut Signal,
    ) -> Refreshed {
        let mut peers = Vec::with_capacity(self.peers.len());
        for (number, ip) in self.peers.into_iter().enumerate() {
            // Each costs a few system calls, so a long list takes its time.
            if number % 256 == 0 && signal.is_stopped() {
                break;
            }
            if !self.own.contains(&ip) && !is_local(ip) {
                peers.push(SocketAddr::new(ip, port));
            }
        }
        let mut causes: Vec<String> = trouble.into_iter().collect();
        if self.outside > 0 {
            causes.push(format!(
                "{} outside of {} left out",
                counted(self.outside),
                self.range.name
            ));
        }
        if self.bad > 0 {
            causes.push(format!("{} not understood", counted(self.bad)));
        }
        if self.left_out > 0 {
            causes.push(format!(
                "{} beyond the first {MAX_ADDRESSES} left out",
                counted(self.left_out)
            ));
        }
        let error = (!causes.is_empty()).then(|| causes.join("; "));
        Refreshed::List { peers, error }
    }
}

/// A daemon has one or two addresses; each of its answers may tell them again.
const MAX_OWN: usize = 64;

fn counted(count: usize) -> String {
    match count {
        1 => "1 address".to_owned(),
        count => format!("{count} addresses"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::signal::pair;
    use super::*;

    const RANGE: Range = Range {
        name: "400::/7",
        contains: |ip| matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xFE00 == 0x0400),
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn peers_are_sorted_and_named_once_and_others_counted() {
        let mut roster = Roster::new(RANGE);
        for text in ["500::2", "400::1", "400::1", "10.0.0.1", "200::1", "5ff::9"] {
            roster.add(ip(text));
        }
        roster.add_text(IpText::Missing);
        roster.add_text(IpText::Bad);
        roster.is_own(ip("5ff::9"));
        let (_handle, mut signal) = pair().unwrap();
        assert_eq!(
            roster.refreshed(1080, Some("a part".to_owned()), &mut signal),
            Refreshed::List {
                peers: ["[400::1]:1080", "[500::2]:1080"]
                    .map(|text| text.parse().unwrap())
                    .into(),
                error: Some(
                    "a part; 2 addresses outside of 400::/7 left out; 1 address not understood"
                        .to_owned()
                ),
            }
        );
    }

    #[test]
    fn addresses_of_this_machine_are_no_peers() {
        let all = Range {
            name: "all",
            contains: |_| true,
        };
        let mut roster = Roster::new(all);
        for text in ["127.0.0.1", "::1", "192.0.2.1"] {
            roster.add(ip(text));
        }
        let (_handle, mut signal) = pair().unwrap();
        assert_eq!(
            roster.refreshed(9, None, &mut signal),
            Refreshed::List {
                peers: vec!["192.0.2.1:9".parse().unwrap()],
                error: None
            }
        );
    }

    #[test]
    fn own_addresses_without_end_are_cut() {
        let mut roster = Roster::new(RANGE);
        for number in 0..MAX_ADDRESSES as u128 {
            roster.is_own(IpAddr::from((0x0400_u128 << 112 | number).to_be_bytes()));
            roster.is_own(ip("400::"));
        }
        assert_eq!(roster.own.len(), MAX_OWN);
    }

    #[test]
    fn a_list_without_end_is_cut() {
        let mut roster = Roster::new(RANGE);
        for number in 0..MAX_ADDRESSES as u128 + 10 {
            roster.add(IpAddr::from((0x0400_u128 << 112 | number).to_be_bytes()));
        }
        roster.add(ip("400::1"));
        assert_eq!((roster.peers.len(), roster.left_out), (MAX_ADDRESSES, 10));
    }
}
