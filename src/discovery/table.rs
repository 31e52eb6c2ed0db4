//! The table: what is known of each address, and which address is to be probed when.
//!
//! Pure: no I/O, no threads, and the time is passed in. Whoever owns it asks [`Table::due`] for addresses, probes them,
//! and brings back a [`Finding`] for each with [`Table::record`] (or [`Table::cancel`]s it).
//!
//! ```text
//!             set_source            due                 record, cancel
//!  (nothing) ------------> waiting -----> in flight --------------------> waiting
//!                             |                       at the next due time
//!                             '--> removed by expire: no source names it, no probe confirms it
//! ```
//!
//! **Own link down.** When a valid address does not answer at all, either it is dead or our own link is. Anything that
//! came back from anybody since the probe was started is *evidence* that the link works: then the failure counts. Without
//! evidence, and when other valid addresses are known, the address stays valid as a *suspect*, and two of the others are
//! probed at once. If one of them gives evidence, all suspects are probed again, and the next silence counts. If all
//! valid addresses are suspects, the link is taken for down ([`Table::link_down`]): nobody is demoted, nobody's back-off
//! grows, and probes get rarer until one of them is answered.
//!
//! **Size.** 100,000 addresses take about 9 MB: 64 bytes for an entry, about 8 for the hash chains and 16 for
//! the place in the queue. Times inside are tenths of a second since the table was made, in 32 bits: 13 years.

mod chains;
mod entry;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::time::{Duration, Instant};

use slab::Slab;

use super::status::{Finding, Reason, Status};
use chains::{Chains, NO_ENTRY};
use entry::{Doubt, Entry, Key, Rank, Tick};
use queue::Queue;

/// How often addresses are probed and how long they are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSettings {
    /// The time between two probes of an address that answers.
    pub interval: Duration,
    /// How many intervals at most lie between two probes of an address that does not.
    pub back_off_limit: u32,
    /// How far a delay may be off, in percent of it, so that probes don't come in bursts; 50 at most.
    pub jitter_percent: u32,
    /// How long an address that no source names any more is kept after it was last valid (or last named).
    ///
    /// Ten minutes: an overlay daemon that restarts, or a route that comes and goes, costs no knowledge, and a peer that
    /// is really gone is out of the lists before anybody wonders.
    pub expiry: Duration,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for TableSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(60),
            back_off_limit: 16,
            jitter_percent: 10,
            expiry: Duration::from_secs(10 * 60),
            seed: 0,
        }
    }
}

/// The number of a source, below [`SourceId::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u8);

impl SourceId {
    /// Sources a table can tell apart: one bit each in every entry.
    pub const LIMIT: usize = 32;

    /// The source with this number, `None` from [`SourceId::LIMIT`] on.
    #[must_use]
    pub fn new(number: usize) -> Option<Self> {
        let small = u8::try_from(number).ok()?;
        (number < Self::LIMIT).then_some(Self(small))
    }

    /// The number it was made from.
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    const fn bit(self) -> u32 {
        1 << self.0
    }
}

/// The sources that name an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceSet(u32);

impl SourceSet {
    /// Whether no source names it any more.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this source names it.
    #[must_use]
    pub const fn contains(self, source: SourceId) -> bool {
        self.0 & source.bit() != 0
    }

    /// The sources, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = SourceId> {
        (0..SourceId::LIMIT)
            .filter_map(SourceId::new)
            .filter(move |source| self.contains(*source))
    }
}

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

/// What is known of every address.
#[derive(Debug)]
pub struct Table {
    settings: TableSettings,
    jitter: fastrand::Rng,
    /// The instant of tick 1.
    start: Instant,
    entries: Slab<Entry>,
    chains: Chains,
    /// Every entry that is not in flight.
    queue: Queue,
    in_flight: BTreeMap<u32, Flight>,
    /// The valid ones, best first.
    ranking: BTreeMap<Rank, u32>,
    counts: [usize; Status::ALL.len()],
    /// How many addresses have a port; few ports are in use, so one address is found by trying them all.
    ports: BTreeMap<u16, usize>,
    /// Valid addresses on other machines, and those of them that are suspects.
    remote_valid: usize,
    remote_suspects: usize,
    last_evidence: Option<Instant>,
    first_doubt: Option<Instant>,
    selected: Option<Key>,
    generation: u64,
    ignored: u64,
}

impl Table {
    /// An empty table whose time starts at `now`.
    #[must_use]
    pub fn new(settings: TableSettings, now: Instant) -> Self {
        Self {
            jitter: fastrand::Rng::with_seed(settings.seed),
            settings,
            start: now,
            entries: Slab::new(),
            chains: Chains::default(),
            queue: Queue::default(),
            in_flight: BTreeMap::new(),
            ranking: BTreeMap::new(),
            counts: [0; Status::ALL.len()],
            ports: BTreeMap::new(),
            remote_valid: 0,
            remote_suspects: 0,
            last_evidence: None,
            first_doubt: None,
            selected: None,
            generation: 0,
            ignored: 0,
        }
    }

    /// Replaces the list of one source; the table is the union of the lists.
    ///
    /// New addresses are due at once. Those that the source no longer names stay until [`Table::expire`] takes them.
    /// Beyond [`MAX_ADDRESSES`] in all, new ones are ignored and counted in [`Table::ignored`].
    pub fn set_source(
        &mut self,
        source: SourceId,
        addresses: impl IntoIterator<Item = SocketAddr>,
        now: Instant,
    ) {
        let tick = self.tick(now);
        let mut named = vec![false; self.entries.capacity()];
        for address in addresses {
            let key = Key::new(address);
            let id = match self.find(key) {
                Some(id) => id,
                None => match self.insert(key, tick) {
                    Some(id) => id,
                    None => {
                        self.ignored += 1;
                        continue;
                    }
                },
            };
            if let Some(entry) = self.entry_mut(id) {
                entry.sources |= source.bit();
            }
            let place = id as usize;
            if place >= named.len() {
                named.resize(self.entries.capacity().max(place + 1), false);
            }
            if let Some(named) = named.get_mut(place) {
                *named = true;
            }
        }
        for (place, entry) in &mut self.entries {
            if entry.sources & source.bit() != 0 && named.get(place) != Some(&true) {
                entry.sources &= !source.bit();
                entry.unnamed_since = tick;
            }
        }
    }

    /// Takes in an address that was valid `ago`, perhaps before this table was made: it is probed at once. Until then it is
    /// one of [`Table::lost_latest_first`]. No source need name it; without one it expires like any other.
    ///
    /// `false` if the table is full. What is known of an address already is not touched, but for when it was last valid.
    pub fn remember(&mut self, address: SocketAddr, ago: Duration, now: Instant) -> bool {
        let key = Key::new(address);
        let tick = self.tick(now);
        let Some(id) = self.find(key).or_else(|| self.insert(key, tick)) else {
            self.ignored += 1;
            return false;
        };
        let last_valid = tick.minus(ago);
        self.modify(id, |entry| {
            entry.last_valid = entry.last_valid.max(last_valid);
        });
        true
    }

    /// Every address that was ever valid, as far as this table knows, and how long ago it last was. In no particular
    /// order.
    pub fn ever_valid(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, Duration)> {
        let tick = self.tick(now);
        self.entries.iter().filter_map(move |(_, entry)| {
            let age = tick.since(entry.last_valid);
            entry
                .last_valid
                .is_set()
                .then(|| (entry.key.address(), age))
        })
    }

    /// Takes at most `limit` addresses whose time has come, the longest due first, and marks them as in flight.
    ///
    /// Proxies (valid, or asking for authentication) and the selected address go before all others, so that what is known
    /// of them stays fresh when there are more addresses than the caller has probes for.
    ///
    /// Each must come back by [`Table::record`] or [`Table::cancel`]; `now` counts as the start of its probe.
    pub fn due(&mut self, now: Instant, limit: usize) -> Vec<SocketAddr> {
        let tick = self.tick(now);
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some((due, id)) = self.queue.pop(tick) else {
                break;
            };
            self.in_flight.insert(id, Flight { started: now, due });
            if let Some(entry) = self.entry_mut(id) {
                entry.due = Tick::NEVER;
                taken.push(entry.key.address());
            }
        }
        taken
    }

    /// When [`Table::due`] will have something; `None` when everything is in flight or the table is empty.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|due| self.instant(due))
    }

    /// Takes in the outcome of a probe. Unknown addresses only count as evidence for the own link.
    ///
    /// Returns the change of status, if it changed.
    pub fn record(
        &mut self,
        address: SocketAddr,
        finding: Finding,
        now: Instant,
    ) -> Option<Change> {
        let id = self.find(Key::new(address));
        let flight = id.and_then(|id| self.in_flight.remove(&id));
        if is_evidence(address, finding) {
            self.evidence(now);
        }
        let id = id?;
        // Without a flight the outcome was not asked for; it counts, as if it had been started just now.
        let started = flight.map_or(now, |flight| flight.started);
        match finding {
            Finding::Local { reason } => self.local_error(id, reason, flight, now),
            Finding::Answered {
                status,
                reason,
                latency,
            } => self.answer(id, status, reason, latency, now),
            Finding::Failed { reason } => {
                if reason.is_silent() && self.doubt(id, started, now) {
                    return None;
                }
                self.failure(id, Status::NotListening, reason, now)
            }
        }
    }

    /// The probe of `address` was stopped: it is due again as before, and nothing else changed.
    pub fn cancel(&mut self, address: SocketAddr) {
        let Some(id) = self.find(Key::new(address)) else {
            return;
        };
        if let Some(flight) = self.in_flight.remove(&id) {
            self.modify(id, |entry| entry.due = flight.due);
        }
    }

    /// Like [`Table::cancel`] for every address in flight.
    pub fn cancel_all(&mut self) {
        for (id, flight) in std::mem::take(&mut self.in_flight) {
            self.modify(id, |entry| entry.due = flight.due);
        }
    }

    /// Takes in a failure that live traffic met, which counts at once.
    ///
    /// `started` is when the connect began: silence tells about the peer only if somebody else was heard since.
    /// A failed connect demotes the address like a failed probe. What happens after the connect (a reset, an early
    /// close, silence) may be the client's doing, since it decides what is sent: then the address stays valid, ranks
    /// behind all that have no failure, and a probe is due at once. Local reasons change nothing.
    pub fn live_failure(
        &mut self,
        address: SocketAddr,
        reason: Reason,
        started: Instant,
        now: Instant,
    ) -> Option<Change> {
        use super::status::Phase;
        if reason.is_local() {
            return None;
        }
        let finding = Finding::Failed { reason };
        if is_evidence(address, finding) {
            self.evidence(now);
        }
        let id = self.find(Key::new(address))?;
        let before = *self.entry(id)?;
        let connected = matches!(
            reason,
            Reason::Reset
                | Reason::ClosedEarly(_)
                | Reason::Sent(_)
                | Reason::Answered(_)
                | Reason::TargetRefused(_)
                | Reason::TimedOut(Phase::Greeting | Phase::Target)
        );
        if before.status != Status::Valid || connected {
            let tick = self.tick(now);
            self.modify(id, |entry| {
                if entry.status == Status::Valid {
                    entry.failures = entry.failures.saturating_add(1);
                    entry.reason = reason;
                    entry.due = entry.due.min(tick);
                }
            });
            return None;
        }
        let asked_already = before.doubt == Doubt::Suspect;
        if reason.is_silent() && self.doubt(id, started, now) {
            let tick = self.tick(now);
            self.modify(id, |entry| {
                entry.failures = entry.failures.saturating_add(1);
                if !asked_already {
                    entry.due = entry.due.min(tick);
                }
            });
            return None;
        }
        self.failure(id, Status::NotListening, reason, now)
    }

    /// Live traffic got an answer through `address`: as good as a probe for a valid one, which need not be probed for a
    /// while; an address with another status is probed at once. `now` is when the answer came: one that is only told after
    /// peers fell silent is no evidence of anything since.
    pub fn live_success(&mut self, address: SocketAddr, now: Instant) {
        if self.first_doubt.is_some_and(|doubt| now < doubt) {
            return;
        }
        if !address.ip().to_canonical().is_loopback() {
            self.evidence(now);
        }
        let tick = self.tick(now);
        let Some(id) = self.find(Key::new(address)) else {
            return;
        };
        let recheck = self.later(now, self.recheck_interval());
        let interval = self.settings.interval;
        self.modify(id, |entry| {
            if entry.status == Status::Valid {
                entry.reason = Reason::Answered(0);
                entry.failures = 0;
                entry.doubt = Doubt::None;
                entry.last_valid = tick;
                // Latency is measured by probes only, so there is still one an interval.
                entry.due = entry.due.max(recheck.min(entry.last_probed.plus(interval)));
            } else {
                entry.due = entry.due.min(tick);
            }
        });
    }

    /// The valid addresses: those without a failure since the last success first, then by smoothed latency, failures,
    /// and address.
    pub fn valid_best_first(&self) -> impl Iterator<Item = SocketAddr> {
        self.ranking.keys().map(|rank| rank.key.address())
    }

    /// Changes when [`Table::valid_best_first`] does.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// What is known of every address, in no particular order.
    pub fn snapshot(&self, now: Instant) -> impl Iterator<Item = Row> {
        self.entries
            .iter()
            .map(move |(_, entry)| self.row(entry, now))
    }

    /// What is known of one address.
    #[must_use]
    pub fn get(&self, address: SocketAddr, now: Instant) -> Option<Row> {
        let entry = self.entry(self.find(Key::new(address))?)?;
        Some(self.row(entry, now))
    }

    /// Whether a peer has this IP, whatever its port: an address that a source names, or that connections may go to.
    /// What is only remembered is none: a former peer need not wait for its expiry to be let in as a client.
    #[must_use]
    pub fn has_ip(&self, ip: IpAddr) -> bool {
        self.ports.keys().any(|port| {
            self.find(Key::new(SocketAddr::new(ip, *port)))
                .and_then(|id| self.entry(id))
                .is_some_and(|entry| {
                    entry.sources != 0
                        || entry.status == Status::Valid
                        || self.selected == Some(entry.key)
                })
        })
    }

    /// How many addresses have this status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.counts.get(status as usize).copied().unwrap_or(0)
    }

    /// How many addresses are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no address is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many addresses are being probed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How many times an address was ignored because the table was full.
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Makes every address due that is not in flight, the valid ones first: when probing starts again, or the link is back.
    pub fn probe_now(&mut self, now: Instant) {
        let tick = self.tick(now);
        self.queue = Queue::default();
        for (id, entry) in &mut self.entries {
            let Ok(id) = u32::try_from(id) else { continue };
            if !self.in_flight.contains_key(&id) {
                entry.due = tick;
                self.queue.insert(entry.urgency(self.selected), tick, id);
            }
        }
    }

    /// Addresses that were valid and are not listening now, or not probed yet, those that were so last first; at most `limit`. Who has nobody
    /// better may try them: they can be back before a probe has seen it.
    ///
    /// Looks at every entry: meant for when few are valid.
    #[must_use]
    pub fn lost_latest_first(&self, limit: usize) -> Vec<SocketAddr> {
        let mut lost: Vec<&Entry> = self.lost().map(|(_, entry)| entry).collect();
        lost.sort_by_key(|entry| (std::cmp::Reverse(entry.last_valid), entry.key));
        let lost = lost.into_iter().take(limit);
        lost.map(|entry| entry.key.address()).collect()
    }

    /// Makes every address due that was valid and is not listening now: nobody else is left.
    pub fn probe_lost_now(&mut self, now: Instant) {
        let tick = self.tick(now);
        let lost: Vec<usize> = self.lost().map(|(id, _)| id).collect();
        for id in lost.into_iter().filter_map(|id| u32::try_from(id).ok()) {
            self.modify(id, |entry| entry.due = entry.due.min(tick));
        }
    }

    fn lost(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().filter(|(_, entry)| {
            let lost = matches!(entry.status, Status::NotListening | Status::Unknown);
            lost && entry.last_valid.is_set()
        })
    }

    /// Names the remote in use, which is probed every quarter of the interval (5 s at least), also when it is dead.
    pub fn set_selected(&mut self, selected: Option<SocketAddr>, now: Instant) {
        let selected = selected.map(Key::new);
        if self.selected == selected {
            return;
        }
        // Taken out and put back, since the place in the queue depends on the choice.
        let old = std::mem::replace(&mut self.selected, selected);
        for key in [old, selected].into_iter().flatten() {
            let Some(id) = self.find(key) else { continue };
            let Some(entry) = self.entry(id).copied() else {
                continue;
            };
            if entry.due.is_set() {
                self.queue.remove(entry.urgency(old), entry.due, id);
                self.queue.insert(entry.urgency(selected), entry.due, id);
            }
        }
        if let Some(id) = selected.and_then(|key| self.find(key)) {
            let soon = self.later(now, self.recheck_interval());
            self.modify(id, |entry| entry.due = entry.due.min(soon));
        }
    }

    /// Whether our own link seems to be down: several valid addresses, all silent, and nobody answered since.
    #[must_use]
    pub const fn link_down(&self) -> bool {
        self.remote_suspects > 1 && self.remote_suspects == self.remote_valid
    }

    /// Removes what no source names and no probe has confirmed for [`TableSettings::expiry`]; returns how many.
    /// Suspects stay: while the link is down no probe can confirm anything.
    ///
    /// Looks at every entry: meant to be called once an interval.
    pub fn expire(&mut self, now: Instant) -> usize {
        let tick = self.tick(now);
        let gone: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                let last = entry.unnamed_since.max(entry.last_valid);
                let wanted = entry.sources != 0 || entry.doubt == Doubt::Suspect;
                !wanted && entry.due.is_set() && tick >= last.plus(self.settings.expiry)
            })
            .filter_map(|(id, _)| u32::try_from(id).ok())
            .collect();
        for id in &gone {
            self.remove(*id);
        }
        gone.len()
    }

    fn answer(
        &mut self,
        id: u32,
        status: Status,
        reason: Reason,
        latency: Duration,
        now: Instant,
    ) -> Option<Change> {
        if matches!(
            status,
            Status::NotAProxy | Status::NotListening | Status::Unknown
        ) {
            return self.failure(id, status, reason, now);
        }
        let delay = self.delay_for(id, self.settings.interval);
        let due = self.later(now, delay);
        let tick = self.tick(now);
        let micros = u32::try_from(latency.as_micros())
            .unwrap_or(u32::MAX)
            .max(1);
        let change = self.change_status(id, status, reason, tick);
        self.modify(id, |entry| {
            entry.failures = 0;
            entry.doubt = Doubt::None;
            entry.last_probed = tick;
            if status == Status::Valid {
                entry.last_valid = tick;
            }
            entry.latency = match entry.latency {
                0 => micros,
                old => smooth(old, micros),
            };
            entry.due = due;
        });
        change
    }

    /// A failure that counts.
    fn failure(&mut self, id: u32, status: Status, reason: Reason, now: Instant) -> Option<Change> {
        let entry = *self.entry(id)?;
        let failures = entry.failures.saturating_add(1);
        let delay = if entry.status == Status::Valid {
            SOON.min(self.settings.interval)
        } else {
            self.back_off(&entry, failures)
        };
        let due = self.later(now, self.delay_for(id, delay));
        let tick = self.tick(now);
        let change = self.change_status(id, status, reason, tick);
        self.modify(id, |entry| {
            entry.failures = failures;
            entry.doubt = Doubt::None;
            entry.last_probed = tick;
            entry.due = due;
        });
        change
    }

    fn local_error(
        &mut self,
        id: u32,
        reason: Reason,
        flight: Option<Flight>,
        now: Instant,
    ) -> Option<Change> {
        flight?;
        let entry = self.entry(id)?;
        let delay = match reason {
            // These last, and there may be many of them.
            Reason::OwnAddress => self.settings.interval,
            // So may this, or the network is just about to come up: as long again as it has been unknown.
            Reason::NoRoute if entry.status != Status::Valid => now
                .saturating_duration_since(self.instant(entry.since))
                .clamp(SOON.min(self.settings.interval), self.settings.interval),
            _ => SOON.min(self.settings.interval),
        };
        let due = self.later(now, delay);
        self.modify(id, |entry| {
            if entry.status == Status::Unknown {
                entry.reason = reason;
            }
            entry.due = due;
        });
        None
    }

    /// Whether a silent failure of a probe started at `started` is to be doubted; if so it has been dealt with.
    fn doubt(&mut self, id: u32, started: Instant, now: Instant) -> bool {
        let Some(entry) = self.entry(id).copied() else {
            return false;
        };
        let link_down = self.link_down();
        let may_be_us = entry.doubt != Doubt::Disproved
            && !entry.key.is_loopback()
            && self.last_evidence.is_none_or(|evidence| evidence < started)
            && (link_down || (entry.status == Status::Valid && self.remote_valid > 1));
        if !may_be_us {
            return false;
        }
        let valid = entry.status == Status::Valid;
        let delay = if valid {
            // As long again as the doubts have lasted: probes get rarer while the link stays down.
            let first = *self.first_doubt.get_or_insert(now);
            now.saturating_duration_since(first)
                .clamp(SOON.min(self.settings.interval), self.settings.interval)
        } else {
            self.back_off(&entry, entry.failures)
        };
        let due = self.later(now, delay);
        self.modify(id, |entry| {
            if valid {
                entry.doubt = Doubt::Suspect;
            }
            if valid || entry.status == Status::Unknown {
                entry.reason = Reason::LinkSuspected;
            }
            entry.due = due;
        });
        if valid {
            self.ask_others(now);
        }
        true
    }

    /// Makes the best valid addresses that are not suspects due at once, to learn whether the link works.
    fn ask_others(&mut self, now: Instant) {
        let tick = self.tick(now);
        let others: Vec<u32> = self
            .ranking
            .iter()
            .filter(|(rank, id)| {
                !rank.key.is_loopback()
                    && self
                        .entry(**id)
                        .is_some_and(|entry| entry.doubt == Doubt::None)
            })
            .map(|(_, id)| *id)
            .take(WITNESSES)
            .collect();
        for id in others {
            self.modify(id, |entry| entry.due = entry.due.min(tick));
        }
    }

    /// Somebody on another machine answered: the link works.
    fn evidence(&mut self, now: Instant) {
        self.last_evidence = self.last_evidence.max(Some(now));
        self.first_doubt = None;
        if self.remote_suspects == 0 {
            return;
        }
        let tick = self.tick(now);
        let suspects: Vec<u32> = self
            .ranking
            .values()
            .copied()
            .filter(|id| {
                self.entry(*id)
                    .is_some_and(|entry| entry.doubt == Doubt::Suspect)
            })
            .collect();
        for id in suspects {
            self.modify(id, |entry| {
                entry.doubt = Doubt::Disproved;
                entry.due = entry.due.min(tick);
            });
        }
    }

    fn change_status(
        &mut self,
        id: u32,
        status: Status,
        reason: Reason,
        tick: Tick,
    ) -> Option<Change> {
        let from = self.entry(id)?.status;
        self.modify(id, |entry| {
            if entry.status != status {
                entry.status = status;
                entry.since = tick;
            }
            entry.reason = reason;
        });
        (from != status).then_some(Change {
            from,
            to: status,
            reason,
        })
    }

    /// The one place where entries change: keeps queue, ranking and counts in step with them.
    fn modify(&mut self, id: u32, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(id as usize) else {
            return;
        };
        let before = *entry;
        change(entry);
        let in_flight = self.in_flight.contains_key(&id);
        if in_flight {
            entry.due = Tick::NEVER;
        }
        let after = *entry;
        let (was, is) = (before.urgency(self.selected), after.urgency(self.selected));
        if (was, before.due) != (is, after.due) {
            if before.due.is_set() {
                self.queue.remove(was, before.due, id);
            }
            if after.due.is_set() {
                self.queue.insert(is, after.due, id);
            }
        }
        self.count_out(&before);
        self.count_in(&after);
        let (old, new) = (before.rank(), after.rank());
        if old != new {
            let old_place = old.map(|rank| self.unrank(rank));
            let new_place = new.map(|rank| self.rank(rank, id));
            if old_place != new_place {
                self.generation += 1;
            }
        }
    }

    /// Adds to the ranking and returns the neighbours.
    fn rank(&mut self, rank: Rank, id: u32) -> (Option<Key>, Option<Key>) {
        self.ranking.insert(rank, id);
        self.neighbours(rank)
    }

    fn unrank(&mut self, rank: Rank) -> (Option<Key>, Option<Key>) {
        self.ranking.remove(&rank);
        self.neighbours(rank)
    }

    fn neighbours(&self, rank: Rank) -> (Option<Key>, Option<Key>) {
        let before = self.ranking.range(..rank).next_back();
        let after = self
            .ranking
            .range((Bound::Excluded(rank), Bound::Unbounded))
            .next();
        (
            before.map(|(rank, _)| rank.key),
            after.map(|(rank, _)| rank.key),
        )
    }

    fn count_in(&mut self, entry: &Entry) {
        if let Some(count) = self.counts.get_mut(entry.status as usize) {
            *count += 1;
        }
        self.remote_valid += usize::from(entry.is_remote_valid());
        self.remote_suspects +=
            usize::from(entry.is_remote_valid() && entry.doubt == Doubt::Suspect);
    }

    fn count_out(&mut self, entry: &Entry) {
        if let Some(count) = self.counts.get_mut(entry.status as usize) {
            *count -= 1;
        }
        self.remote_valid -= usize::from(entry.is_remote_valid());
        self.remote_suspects -=
            usize::from(entry.is_remote_valid() && entry.doubt == Doubt::Suspect);
    }

    fn insert(&mut self, key: Key, tick: Tick) -> Option<u32> {
        if self.entries.len() >= MAX_ADDRESSES {
            return None;
        }
        let id = u32::try_from(self.entries.vacant_key()).ok()?;
        let entry = Entry {
            key,
            reason: Reason::NotProbed,
            status: Status::Unknown,
            failures: 0,
            doubt: Doubt::None,
            sources: 0,
            since: tick,
            last_probed: Tick::NEVER,
            last_valid: Tick::NEVER,
            unnamed_since: tick,
            due: tick,
            latency: 0,
            next: NO_ENTRY,
        };
        self.entries.insert(entry);
        self.count_in(&entry);
        self.queue.insert(entry.urgency(self.selected), tick, id);
        self.chains.link(&mut self.entries, id);
        *self.ports.entry(key.address().port()).or_default() += 1;
        Some(id)
    }

    fn remove(&mut self, id: u32) {
        self.chains.unlink(&mut self.entries, id);
        let Some(entry) = self.entries.try_remove(id as usize) else {
            return;
        };
        self.queue
            .remove(entry.urgency(self.selected), entry.due, id);
        self.in_flight.remove(&id);
        let port = entry.key.address().port();
        if let Some(count) = self.ports.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.ports.remove(&port);
            }
        }
        self.count_out(&entry);
        if let Some(rank) = entry.rank() {
            self.ranking.remove(&rank);
            self.generation += 1;
        }
    }

    fn find(&self, key: Key) -> Option<u32> {
        self.chains.find(&self.entries, key)
    }

    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)
    }

    fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)
    }

    fn row(&self, entry: &Entry, now: Instant) -> Row {
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

    /// The interval, doubled with each failure in a row. The probe soon after the first failure of a formerly valid
    /// address is not counted.
    fn back_off(&self, entry: &Entry, failures: u8) -> Duration {
        let free = if entry.last_valid.is_set() { 2 } else { 1 };
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(free).into())
            .unwrap_or(u32::MAX)
            .min(self.settings.back_off_limit.max(1));
        self.settings.interval.saturating_mul(factor)
    }

    fn recheck_interval(&self) -> Duration {
        (self.settings.interval / 4)
            .max(MIN_RECHECK)
            .min(self.settings.interval)
    }

    /// `delay`, or less for the selected address.
    fn delay_for(&self, id: u32, delay: Duration) -> Duration {
        let selected =
            self.selected.is_some() && self.entry(id).map(|entry| entry.key) == self.selected;
        if selected {
            delay.min(self.recheck_interval())
        } else {
            delay
        }
    }

    /// The tick `delay` from `now`, give or take the jitter.
    fn later(&mut self, now: Instant, delay: Duration) -> Tick {
        let percent = self.settings.jitter_percent.min(50);
        let spread = f64::from(percent) / 100.0 * (2.0 * self.jitter.f64() - 1.0);
        let delay = delay.min(MAX_DELAY).mul_f64(1.0 + spread);
        self.tick(now).plus(delay)
    }

    fn tick(&self, now: Instant) -> Tick {
        Tick::FIRST.plus(now.saturating_duration_since(self.start))
    }

    fn instant(&self, tick: Tick) -> Instant {
        self.start + tick.since_first()
    }
}

/// Addresses that a table takes: about 18 MB. More than any overlay has today; without a limit a source that
/// misbehaves could eat a router's memory.
pub const MAX_ADDRESSES: usize = 200_000;

/// A probe after which nothing is sure (a valid address failed, a local error) is repeated after this.
const SOON: Duration = Duration::from_secs(5);

/// The address in use is not probed more often than this.
const MIN_RECHECK: Duration = Duration::from_secs(5);

/// How many valid addresses are asked at once when one of them is silent and the own link may be the cause.
const WITNESSES: usize = 2;

/// No delay is longer, whatever the settings say.
const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Whether a finding proves that our link works: something came back, and not from this machine itself.
fn is_evidence(address: SocketAddr, finding: Finding) -> bool {
    let reason = finding.reason();
    !reason.is_local() && !reason.is_silent() && !address.ip().to_canonical().is_loopback()
}

/// Moving average with a weight of 1/4 for the new value: half of a lasting change shows after three probes.
fn smooth(old: u32, new: u32) -> u32 {
    let sum = u64::from(old) * 3 + u64::from(new);
    u32::try_from(sum / 4).unwrap_or(u32::MAX).max(1)
}

/// A probe under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    started: Instant,
    /// When it was due: a cancelled one is so again.
    due: Tick,
}
