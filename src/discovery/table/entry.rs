//! What the table keeps for every address, in 60 bytes.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::queue::Urgency;
use crate::discovery::rules::Class;
use crate::discovery::score::Merit;
use crate::discovery::status::{Reason, Status};
pub(super) use crate::discovery::tick::Tick;

/// A socket address in 18 bytes: IPv4 ones are kept mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) ip: Ipv6Addr,
    pub(super) port: u16,
}

impl Key {
    pub(super) fn new(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self {
            ip,
            port: address.port(),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip.to_canonical(), self.port)
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.ip.to_canonical().is_loopback()
    }
}

/// Whether silence of an address is blamed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Not silent.
    None,
    /// Silent, and our link may be the cause.
    Suspect,
    /// The link proved to work since: the next silence counts.
    Disproved,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) reason: Reason,
    pub(super) status: Status,
    pub(super) failures: u8,
    pub(super) doubt: Doubt,
    pub(super) class: Class,
    /// Hundredths, when it was last heard of.
    pub(super) score: u16,
    /// Failed several clients in a row, though it answers probes.
    pub(super) distrusted: bool,
    pub(super) sources: u32,
    pub(super) since: Tick,
    pub(super) last_probed: Tick,
    /// When the last source stopped naming it (or, before the first did, when it was made).
    pub(super) unnamed_since: Tick,
    /// Never while in flight.
    pub(super) due: Tick,
    /// The next one of the same hash chain.
    pub(super) next: u32,
}

const _: () = assert!(size_of::<Entry>() <= 60);

impl Entry {
    pub(super) fn rank(&self) -> Option<Rank> {
        let may = self.status == Status::Valid && !self.class.is_excluded();
        may.then_some(Rank {
            distrusted: self.distrusted,
            failing: self.failures > 0,
            class: self.class,
            score: Reverse(self.score),
            key: self.key,
        })
    }

    /// Takes over what makes it better or worse than others.
    pub(super) fn appraise(&mut self, merit: &Merit, now: Tick) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a score is from 0 to 100"
        )]
        let hundredths = (merit.score(now) * 100.0) as u16;
        self.score = hundredths;
        self.distrusted = merit.trust.is_distrusted();
    }

    pub(super) fn urgency(&self, selected: Option<Key>) -> Urgency {
        match self.status {
            _ if selected == Some(self.key) => Urgency::Selected,
            _ if self.is_proxy() => Urgency::Proxy,
            _ => Urgency::Other,
        }
    }

    pub(super) fn is_proxy(&self) -> bool {
        matches!(
            self.status,
            Status::Valid | Status::AuthenticationRequired | Status::Socks6
        )
    }

    pub(super) fn is_remote_valid(&self) -> bool {
        self.status == Status::Valid && !self.key.is_loopback()
    }
}

/// The order of valid addresses. One that failed since its last success comes after all others whatever its score, or
/// the best one would be tried first by everybody until a probe has found it dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) distrusted: bool,
    pub(super) failing: bool,
    pub(super) class: Class,
    pub(super) score: Reverse<u16>,
    pub(super) key: Key,
}
