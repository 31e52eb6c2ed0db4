//! What the table keeps for one address, in 64 bytes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::queue::Urgency;
use crate::discovery::status::{Reason, Status};

/// Tenths of a second, counted from [`Tick::FIRST`] when the table was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

impl Tick {
    pub(super) const NEVER: Self = Self(0);
    /// What is remembered may be this much older than the table: 310 days.
    pub(super) const FIRST: Self = Self(1 << 28);

    pub(super) const fn is_set(self) -> bool {
        self.0 != 0
    }

    pub(super) fn since_first(self) -> Duration {
        self.since(Self::FIRST)
    }

    /// How long before `self` the other one was.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::from(self.0.saturating_sub(earlier.0)) * TICK_MILLIS)
    }

    /// Never [`Tick::NEVER`].
    pub(super) fn minus(self, delay: Duration) -> Self {
        let ticks = u32::try_from(delay.as_millis() / u128::from(TICK_MILLIS)).unwrap_or(u32::MAX);
        Self(self.0.saturating_sub(ticks).max(1))
    }

    pub(super) fn plus(self, delay: Duration) -> Self {
        let ticks = delay.as_millis() / u128::from(TICK_MILLIS);
        Self(
            self.0
                .saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)),
        )
    }
}

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
    pub(super) sources: u32,
    pub(super) since: Tick,
    pub(super) last_probed: Tick,
    pub(super) last_valid: Tick,
    /// When the last source stopped naming it (or, before the first did, when it was made).
    pub(super) unnamed_since: Tick,
    /// Never while in flight.
    pub(super) due: Tick,
    /// Microseconds, 0 for none yet.
    pub(super) latency: u32,
    /// The next one of the same hash chain.
    pub(super) next: u32,
}

const _: () = assert!(size_of::<Entry>() <= 64);

impl Entry {
    pub(super) fn rank(&self) -> Option<Rank> {
        (self.status == Status::Valid).then_some(Rank {
            failing: self.failures > 0,
            latency: self.latency,
            failures: self.failures,
            key: self.key,
        })
    }

    pub(super) fn urgency(&self, selected: Option<Key>) -> Urgency {
        match self.status {
            Status::Valid | Status::AuthenticationRequired => Urgency::Proxy,
            _ if selected == Some(self.key) => Urgency::Proxy,
            _ => Urgency::Other,
        }
    }

    pub(super) fn is_remote_valid(&self) -> bool {
        self.status == Status::Valid && !self.key.is_loopback()
    }
}

/// The order of valid addresses. One that failed since its last success comes after all others whatever its latency, or
/// the nearest one would be tried first by everybody until a probe has found it dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) failing: bool,
    pub(super) latency: u32,
    pub(super) failures: u8,
    pub(super) key: Key,
}

/// In steps of a tenth of a second, 32 bits last for 13 years.
const TICK_MILLIS: u64 = 100;
