//! What is told of an address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::entry::{Doubt, Entry, Tick};
use super::{SourceSet, Table};
use crate::discovery::score::Merit;
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
    /// Whether it was good ever since it was found.
    pub never_failed: bool,
    /// How many times it stopped being good, each counted half as much every ten minutes.
    pub recent_failures: f32,
    /// How much longer it comes after all others, because it failed several clients in a row though it answers probes.
    pub distrusted_for: Option<Duration>,
    /// Whether it may be chosen at all.
    pub candidate: bool,
    /// Its place in the order of preference, from 1.
    pub preferred: Option<u32>,
}

/// How far one can be relied on. The lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Valid, and nothing speaks against it.
    Good,
    /// Valid as far as probes know, but a client met a failure since.
    Failing,
    /// Valid as far as probes know, but several clients in a row met failures.
    Distrusted,
    /// Not valid, or excluded by the rules.
    Bad,
}

impl Row {
    /// How far it can be relied on. A silent one that may be silent because of our own link is good.
    #[must_use]
    pub fn level(&self) -> Level {
        if self.status != Status::Valid || !self.candidate {
            Level::Bad
        } else if self.distrusted_for.is_some() {
            Level::Distrusted
        } else if self.failures > 0 && !self.suspect {
            Level::Failing
        } else {
            Level::Good
        }
    }
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
    pub(super) fn row(&self, id: u32, entry: &Entry, now: Instant) -> Row {
        let now = self.tick(now);
        // Of one that was remembered, it may be before the table's time.
        let age = |tick: Tick| tick.is_set().then(|| now.since(tick));
        let merit = self.merits.get(&id);
        Row {
            address: entry.key.address(),
            status: entry.status,
            reason: entry.reason,
            since: age(entry.since).unwrap_or_default(),
            last_probed: age(entry.last_probed),
            last_valid: merit.and_then(|merit| age(merit.last_valid)),
            failures: entry.failures,
            latency: merit.and_then(Merit::latency),
            sources: SourceSet(entry.sources),
            suspect: entry.doubt == Doubt::Suspect,
            in_flight: entry.due == Tick::NEVER,
            due_in: entry.due.is_set().then(|| entry.due.since(now)),
            spread: merit.and_then(Merit::spread),
            score: merit
                .filter(|_| entry.rank().is_some())
                .map(|merit| merit.score(now)),
            good_for: merit.and_then(|merit| merit.good_for(now)),
            never_failed: merit.is_none_or(Merit::never_failed),
            recent_failures: merit.map_or(0.0, |merit| merit.recent_failures(now)),
            distrusted_for: merit.and_then(|merit| merit.trust.distrusted_for(now)),
            candidate: !entry.class.is_excluded(),
            preferred: entry.class.place(),
        }
    }
}
