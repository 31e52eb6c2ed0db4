//! What is told of an address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::entry::{Doubt, Entry, Tick};
use super::{SourceSet, Table};
use crate::discovery::status::{Reason, Status};

/// What is known of one address, with ages instead of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Where it is, never IPv4-mapped.
    pub address: SocketAddr,
    /// What it is.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// How long it has had this status.
    pub since: Duration,
    /// How long ago the last probe ended that said something about it.
    pub last_probed: Option<Duration>,
    /// How long ago a probe or live traffic found it valid.
    pub last_valid: Option<Duration>,
    /// Failures in a row, 255 for more.
    pub failures: u8,
    /// Smoothed time to answer the greeting, `None` before the first answer.
    pub latency: Option<Duration>,
    /// Who names it.
    pub sources: SourceSet,
    /// Did not answer lately, but our own link may be the cause.
    pub suspect: bool,
    /// A probe is under way.
    pub in_flight: bool,
    /// How long until it is probed; `None` while in flight.
    pub due_in: Option<Duration>,
    /// Smoothed mean deviation of the latency.
    pub spread: Option<Duration>,
    /// How good it is, from 0 to 100; `None` unless it is valid and may be chosen.
    pub score: Option<f32>,
    /// How long it has been good without a failure.
    pub good_for: Option<Duration>,
    /// Whether it may be chosen at all.
    pub candidate: bool,
    /// Its place in the order of preference, from 1.
    pub preferred: Option<u32>,
}

/// A status that changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The status before.
    pub from: Status,
    /// The status now.
    pub to: Status,
    /// Why.
    pub reason: Reason,
}

impl Table {
    pub(super) fn row(&self, entry: &Entry, now: Instant) -> Row {
        let age = |tick: Tick| {
            // Of one that was remembered, it may be before the table's time.
            tick.is_set().then(|| self.tick(now).since(tick))
        };
        Row {
            address: entry.key.address(),
            status: entry.status,
            reason: entry.reason,
            since: age(entry.since).unwrap_or_default(),
            last_probed: age(entry.last_probed),
            last_valid: age(entry.last_valid),
            failures: entry.failures,
            latency: (entry.latency != 0).then(|| Duration::from_micros(entry.latency.into())),
            sources: SourceSet(entry.sources),
            suspect: entry.doubt == Doubt::Suspect,
            in_flight: entry.due == Tick::NEVER,
            due_in: entry
                .due
                .is_set()
                .then(|| self.instant(entry.due).saturating_duration_since(now)),
            spread: None,
            score: None,
            good_for: None,
            candidate: true,
            preferred: None,
        }
    }
}
