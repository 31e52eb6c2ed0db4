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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            tick.is_set()
                .then(|| now.saturating_duration_since(self.instant(tick)))
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

#[cfg(test)]
mod tests {
    use super::super::status::Phase;
    use super::*;
    use std::net::IpAddr;

    const FLAG: SourceId = SourceId(0);
    const FILE: SourceId = SourceId(1);

    /// A table without jitter, a clock, and the addresses `10.0.0.n:1080`.
    struct World {
        table: Table,
        now: Instant,
    }

    impl World {
        fn new(addresses: u32) -> Self {
            let settings = TableSettings {
                jitter_percent: 0,
                ..TableSettings::default()
            };
            let now = Instant::now();
            let mut table = Table::new(settings, now);
            table.set_source(FLAG, (1..=addresses).map(at), now);
            Self { table, now }
        }

        /// As many addresses, all valid with a latency of n * 10 ms.
        fn all_valid(addresses: u32) -> Self {
            let mut world = Self::new(addresses);
            for address in world.due() {
                let n = u32::from_be_bytes(match address.ip() {
                    IpAddr::V4(ip) => ip.octets(),
                    IpAddr::V6(_) => unreachable!(),
                }) & 0xFF_FFFF;
                world.record(address, valid(n * 10));
            }
            world
        }

        fn due(&mut self) -> Vec<SocketAddr> {
            self.table.due(self.now, usize::MAX)
        }

        fn pass(&mut self, seconds: f64) {
            self.now += Duration::from_secs_f64(seconds);
        }

        fn record(&mut self, address: SocketAddr, finding: Finding) -> Option<Change> {
            self.table.record(address, finding, self.now)
        }

        /// Lets the time pass to when `address` is due, probes it, and says how many seconds that took.
        fn probe(&mut self, address: SocketAddr, finding: Finding) -> f64 {
            let before = self.now;
            self.now += self.row(address).due_in.unwrap();
            for other in self.due() {
                if other != address {
                    self.table.cancel(other);
                }
            }
            assert!(self.row(address).in_flight);
            let waited = self.now - before;
            self.record(address, finding);
            waited.as_secs_f64()
        }

        fn row(&self, address: SocketAddr) -> Row {
            self.table.get(address, self.now).unwrap()
        }

        fn status(&self, address: SocketAddr) -> Status {
            self.row(address).status
        }

        fn due_in(&self, address: SocketAddr) -> f64 {
            self.row(address).due_in.unwrap().as_secs_f64()
        }

        fn best(&self) -> Vec<SocketAddr> {
            self.table.valid_best_first().collect()
        }

        /// Counts, ranking and queue agree with the entries.
        fn check(&self) {
            let rows: Vec<Row> = self.table.snapshot(self.now).collect();
            for status in Status::ALL {
                let count = rows.iter().filter(|row| row.status == status).count();
                assert_eq!(self.table.count(status), count, "{status}");
            }
            assert_eq!(self.best().len(), self.table.count(Status::Valid));
            let waiting = self.table.queue.proxies.len() + self.table.queue.others.len();
            assert_eq!(waiting + self.table.in_flight(), rows.len());
            assert_eq!(
                rows.iter().filter(|row| row.in_flight).count(),
                self.table.in_flight()
            );
            for row in rows {
                assert_eq!(self.table.get(row.address, self.now), Some(row));
            }
        }
    }

    fn at(n: u32) -> SocketAddr {
        SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0A00_0000 + n).into(), 1080)
    }

    fn valid(millis: u32) -> Finding {
        Finding::answered(Reason::Answered(0), Duration::from_millis(millis.into()))
    }

    fn failed(reason: Reason) -> Finding {
        Finding::Failed { reason }
    }

    const REFUSED: Finding = Finding::Failed {
        reason: Reason::Refused,
    };
    const SILENT: Finding = Finding::timed_out(Phase::Connecting);

    #[test]
    fn new_addresses_are_due_at_once_and_once() {
        let mut world = World::new(3);
        assert_eq!(world.table.next_due(), Some(world.now));
        assert_eq!(world.table.due(world.now, 2).len(), 2);
        assert_eq!(world.due().len(), 1);
        assert_eq!(world.due(), []);
        assert_eq!(world.table.next_due(), None);
        assert_eq!(world.table.in_flight(), 3);
        // Naming them again changes nothing.
        world.table.set_source(FLAG, (1..=3).map(at), world.now);
        assert_eq!(world.due(), []);
        world.check();
    }

    #[test]
    fn one_entry_whatever_way_an_address_is_written() {
        let mut world = World::new(1);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:1080".parse().unwrap();
        world
            .table
            .set_source(FILE, [mapped, at(1), at(1)], world.now);
        assert_eq!(world.table.len(), 1);
        let row = world.table.get(mapped, world.now).unwrap();
        assert_eq!(row.address, at(1));
        assert_eq!(row.sources.iter().collect::<Vec<_>>(), [FLAG, FILE]);
        assert_eq!(world.due(), [at(1)]);
    }

    #[test]
    fn findings_become_statuses() {
        let table = [
            (valid(5), Status::Valid, 60.0, 0),
            (
                Finding::answered(Reason::Answered(0xFF), Duration::ZERO),
                Status::AuthenticationRequired,
                60.0,
                0,
            ),
            (
                Finding::answered(Reason::ClosedEarly(0), Duration::ZERO),
                Status::NotAProxy,
                60.0,
                1,
            ),
            (REFUSED, Status::NotListening, 60.0, 1),
            (SILENT, Status::NotListening, 60.0, 1),
            (
                Finding::Local {
                    reason: Reason::NoDescriptor,
                },
                Status::Unknown,
                5.0,
                0,
            ),
            (
                Finding::Local {
                    reason: Reason::NoRoute,
                },
                Status::Unknown,
                5.0,
                0,
            ),
        ];
        for (finding, status, due_in, failures) in table {
            let mut world = World::new(1);
            world.pass(3.0);
            world.due();
            world.pass(1.0);
            let change = world.record(at(1), finding);
            let row = world.row(at(1));
            assert_eq!((row.status, row.reason), (status, finding.reason()));
            assert_eq!(row.failures, failures, "{finding:?}");
            assert_eq!(world.due_in(at(1)), due_in, "{finding:?}");
            assert_eq!(
                change.map(|change| change.to),
                (status != Status::Unknown).then_some(status)
            );
            world.pass(2.0);
            let ages = world.row(at(1));
            let probed = (status != Status::Unknown).then_some(Duration::from_secs(2));
            assert_eq!(ages.last_probed, probed);
            assert_eq!(ages.last_valid, probed.filter(|_| status == Status::Valid));
            world.check();
        }
    }

    #[test]
    fn dead_addresses_are_asked_less_and_less() {
        for finding in [REFUSED, Finding::answered(Reason::Reset, Duration::ZERO)] {
            let mut world = World::new(1);
            let waits: Vec<f64> = (0..8).map(|_| world.probe(at(1), finding)).collect();
            assert_eq!(waits, [0.0, 60.0, 120.0, 240.0, 480.0, 960.0, 960.0, 960.0]);
            assert_eq!(world.row(at(1)).failures, 8);
            world.probe(at(1), valid(1));
            assert_eq!(world.row(at(1)).failures, 0);
            assert_eq!(world.due_in(at(1)), 60.0);
        }
        let mut world = World::new(1);
        for _ in 0..300 {
            world.probe(at(1), REFUSED);
        }
        assert_eq!(world.row(at(1)).failures, 255);
        assert_eq!(world.due_in(at(1)), 960.0);
    }

    #[test]
    fn a_valid_peer_that_fails_is_asked_again_soon() {
        let mut world = World::all_valid(1);
        assert_eq!(world.probe(at(1), REFUSED), 60.0);
        assert_eq!(world.status(at(1)), Status::NotListening);
        let waits: Vec<f64> = (0..4).map(|_| world.probe(at(1), REFUSED)).collect();
        assert_eq!(waits, [5.0, 60.0, 120.0, 240.0]);
    }

    #[test]
    fn authentication_required_keeps_the_interval() {
        let mut world = World::new(1);
        let finding = Finding::answered(Reason::Answered(2), Duration::from_millis(1));
        let waits: Vec<f64> = (0..4).map(|_| world.probe(at(1), finding)).collect();
        assert_eq!(waits, [0.0, 60.0, 60.0, 60.0]);
        assert_eq!(world.best(), []);
    }

    #[test]
    fn an_address_without_a_route_is_asked_less_and_less() {
        let mut world = World::new(1);
        let reason = Reason::NoRoute;
        let delays: Vec<f64> = (0..7)
            .map(|_| world.probe(at(1), Finding::Local { reason }))
            .collect();
        assert_eq!(delays, [0.0, 5.0, 5.0, 10.0, 20.0, 40.0, 60.0]);
    }

    #[test]
    fn local_errors_change_nothing() {
        let mut world = World::all_valid(2);
        world.probe(at(1), REFUSED);
        world.probe(at(1), REFUSED);
        for n in [1, 2] {
            let before = world.row(at(n));
            for reason in [
                Reason::NoDescriptor,
                Reason::NoRoute,
                Reason::OwnAddress,
                Reason::LocalError(13),
            ] {
                world.probe(at(n), Finding::Local { reason });
                let change = world
                    .table
                    .live_failure(at(n), reason, world.now, world.now);
                assert_eq!(change, None);
                let row = world.row(at(n));
                assert_eq!(
                    (row.status, row.reason, row.failures, row.latency),
                    (
                        before.status,
                        before.reason,
                        before.failures,
                        before.latency
                    )
                );
                assert!(world.due_in(at(n)) <= 60.0);
            }
        }
        world.check();
    }

    #[test]
    fn a_cancelled_probe_is_due_as_before() {
        let mut world = World::all_valid(2);
        world.pass(60.0);
        let before = world.row(at(1));
        assert_eq!(world.due().len(), 2);
        world.pass(3.0);
        world.table.cancel(at(1));
        let row = world.row(at(1));
        assert_eq!(row.due_in, Some(Duration::ZERO));
        assert_eq!(
            (row.status, row.failures, row.latency),
            (before.status, before.failures, before.latency)
        );
        assert_eq!(world.due(), [at(1)]);
        world.table.cancel_all();
        assert_eq!(world.table.in_flight(), 0);
        assert_eq!(world.due().len(), 2);
        world.table.cancel(at(99));
        world.check();
    }

    #[test]
    fn proxies_go_first_then_the_longest_due() {
        let mut world = World::new(4);
        world.due();
        world.record(at(4), valid(1));
        for n in [3, 1, 2] {
            world.pass(0.5);
            world.record(at(n), REFUSED);
        }
        world.pass(100.0);
        assert_eq!(world.table.due(world.now, 2), [at(4), at(3)]);
        assert_eq!(world.table.due(world.now, 9), [at(1), at(2)]);
    }

    #[test]
    fn the_best_come_first() {
        let mut world = World::all_valid(3);
        assert_eq!(world.best(), [at(1), at(2), at(3)]);
        let generation = world.table.generation();
        // Smoothed: one slow answer moves a quarter of the way, 10 ms to 13 ms.
        world.probe(at(1), valid(22));
        assert_eq!(world.row(at(1)).latency, Some(Duration::from_millis(13)));
        assert_eq!(world.table.generation(), generation, "same order");
        world.probe(at(1), valid(100));
        assert_eq!(world.best(), [at(2), at(3), at(1)]);
        assert_ne!(world.table.generation(), generation);
        let generation = world.table.generation();
        world.probe(at(2), REFUSED);
        assert_eq!(world.best(), [at(3), at(1)]);
        assert_ne!(world.table.generation(), generation);
        world.check();
    }

    #[test]
    fn equal_peers_are_ordered_by_address() {
        let mut world = World::new(5);
        for address in world.due().into_iter().rev() {
            world.record(address, valid(7));
        }
        assert_eq!(world.best(), [1, 2, 3, 4, 5].map(at));
    }

    #[test]
    fn generation_stays_while_nothing_changes() {
        let mut world = World::all_valid(4);
        world.table.set_source(FILE, (5..9).map(at), world.now);
        let generation = world.table.generation();
        for round in 0..10 {
            world.pass(60.0);
            for address in world.due() {
                let n = (1..9).find(|n| at(*n) == address).unwrap();
                let finding = if n > 4 {
                    REFUSED
                } else {
                    valid(n * 10 + round % 2)
                };
                world.record(address, finding);
            }
            world.table.live_success(at(2), world.now);
        }
        assert_eq!(world.table.generation(), generation);
    }

    #[test]
    fn live_failures_count_at_once() {
        // reason, status after, due in
        let table = [
            (Reason::Refused, Status::NotListening, 5.0),
            (Reason::Reset, Status::Valid, 0.0),
            (Reason::ClosedEarly(0), Status::Valid, 0.0),
            (Reason::TimedOut(Phase::Greeting), Status::Valid, 0.0),
            // The others just answered, so this is the peer's fault.
            (
                Reason::TimedOut(Phase::Connecting),
                Status::NotListening,
                5.0,
            ),
        ];
        for (reason, status, due_in) in table {
            let mut world = World::all_valid(3);
            world.pass(1.0);
            let generation = world.table.generation();
            let started = world.now - Duration::from_secs(2);
            let change = world.table.live_failure(at(1), reason, started, world.now);
            let row = world.row(at(1));
            assert_eq!((row.status, row.reason, row.failures), (status, reason, 1));
            assert_eq!(change.is_some(), status != Status::Valid);
            assert_eq!(world.due_in(at(1)), due_in, "{reason}");
            assert_eq!(world.best()[..2], [at(2), at(3)], "{reason}");
            assert_ne!(world.table.generation(), generation);
            if status == Status::Valid {
                assert_eq!(world.best()[2], at(1));
                // The probe that follows puts it back.
                world.probe(at(1), valid(10));
                assert_eq!(world.best()[0], at(1));
            }
            world.check();
        }
    }

    #[test]
    fn a_live_failure_during_a_probe_leaves_it_in_flight() {
        let mut world = World::all_valid(2);
        world.pass(60.0);
        world.due();
        world
            .table
            .live_failure(at(1), Reason::Refused, world.now, world.now);
        assert!(world.row(at(1)).in_flight);
        world.check();
        assert_eq!(world.due(), []);
        world.record(at(1), valid(1));
        assert_eq!(world.status(at(1)), Status::Valid);
    }

    #[test]
    fn live_success_puts_off_probes_but_one_an_interval() {
        let mut world = World::all_valid(2);
        world.table.set_selected(Some(at(1)), world.now);
        assert_eq!(world.due_in(at(1)), 15.0);
        world.pass(10.0);
        world.table.live_success(at(1), world.now);
        assert_eq!(world.due_in(at(1)), 15.0);
        assert_eq!(world.row(at(1)).last_valid, Some(Duration::ZERO));
        for _ in 0..5 {
            world.pass(10.0);
            world.table.live_success(at(1), world.now);
        }
        assert_eq!(world.due_in(at(1)), 0.0);
        // One that is not valid is asked now.
        world.probe(at(2), REFUSED);
        world.table.live_success(at(2), world.now);
        assert_eq!(world.due_in(at(2)), 0.0);
        assert_eq!(world.status(at(2)), Status::NotListening);
    }

    #[test]
    fn the_selected_one_is_asked_more_often() {
        let mut world = World::all_valid(2);
        world.table.set_selected(Some(at(1)), world.now);
        let waits: Vec<f64> = (0..3).map(|_| world.probe(at(1), valid(1))).collect();
        assert_eq!(waits, [15.0; 3]);
        assert_eq!(world.probe(at(1), REFUSED), 15.0);
        let waits: Vec<f64> = (0..4).map(|_| world.probe(at(1), REFUSED)).collect();
        assert_eq!(waits, [5.0, 15.0, 15.0, 15.0], "also when it is dead");
        world.check();
        world.table.set_selected(Some(at(2)), world.now);
        world.check();
        world.probe(at(1), REFUSED);
        assert!(world.due_in(at(1)) > 60.0);
        world.table.set_selected(Some(at(77)), world.now);
        world.table.set_selected(None, world.now);
        world.check();
    }

    #[test]
    fn silence_counts_when_somebody_answered_since() {
        for finding in [
            REFUSED,
            valid(5),
            Finding::answered(Reason::Reset, Duration::ZERO),
        ] {
            let mut world = World::all_valid(3);
            world.table.set_source(FILE, [at(4)], world.now);
            world.pass(60.0);
            world.due();
            world.pass(1.0);
            world.record(at(4), finding);
            world.pass(4.0);
            world.record(at(1), SILENT);
            assert_eq!(world.status(at(1)), Status::NotListening, "{finding:?}");
        }
    }

    #[test]
    fn a_single_valid_peer_is_demoted_at_once() {
        let mut world = World::all_valid(1);
        world.probe(at(1), SILENT);
        assert_eq!(world.status(at(1)), Status::NotListening);
        assert!(!world.table.link_down());
    }

    #[test]
    fn one_silent_peer_is_found_out_with_the_help_of_others() {
        let mut world = World::all_valid(4);
        world.pass(30.0);
        world.table.set_selected(Some(at(1)), world.now);
        world.pass(15.0);
        assert_eq!(world.due(), [at(1)]);
        world.pass(5.0);
        assert_eq!(world.record(at(1), SILENT), None);
        let row = world.row(at(1));
        assert_eq!(
            (row.status, row.reason, row.failures, row.suspect),
            (Status::Valid, Reason::LinkSuspected, 0, true)
        );
        assert!(!world.table.link_down());
        // Two others are asked at once; the first answer is the evidence.
        assert_eq!(world.due(), [at(2), at(3)]);
        world.pass(0.1);
        world.record(at(2), valid(20));
        assert!(!world.row(at(1)).suspect);
        // Nothing more is heard of others until the next silence; it counts all the same.
        world.pass(0.5);
        assert_eq!(world.due(), [at(1)]);
        world.pass(5.0);
        let change = world.record(at(1), SILENT).unwrap();
        assert_eq!(change.to, Status::NotListening);
        assert_eq!(change.reason, Reason::TimedOut(Phase::Connecting));
        assert_eq!(world.best(), [at(2), at(3), at(4)]);
        world.check();
    }

    #[test]
    fn own_link_down_keeps_what_was_known() {
        let mut world = World::all_valid(3);
        world.table.set_source(FILE, [at(4), at(5)], world.now);
        for address in world.due() {
            world.record(address, REFUSED);
        }
        world
            .table
            .set_source(FILE, [at(4), at(5), at(6)], world.now);
        world.pass(60.0);
        let generation = world.table.generation();
        let mut probes = 0;
        let end = world.now + Duration::from_secs(3600);
        while let Some(due) = world.table.next_due().filter(|due| *due < end) {
            world.now = world.now.max(due);
            let started = world.due();
            probes += started.len();
            world.pass(5.0);
            for address in started {
                world.record(address, failed(Reason::NetworkUnreachable));
            }
            world.table.expire(world.now);
            world.check();
        }
        assert!(world.table.link_down());
        assert_eq!(world.best(), [at(1), at(2), at(3)]);
        assert_eq!(world.table.generation(), generation, "no reshuffle");
        // Each of the six about once a minute at most.
        assert!(probes < 6 * 75, "{probes}");
        assert!(world.row(at(4)).failures <= 3);
        // One answer, and all are asked at once and back.
        world.record(at(2), valid(20));
        assert!(!world.table.link_down());
        let asked = world.due();
        assert!(
            asked.contains(&at(1)) && asked.contains(&at(3)),
            "{asked:?}"
        );
        world.record(at(1), valid(10));
        world.record(at(3), SILENT);
        assert_eq!(world.best(), [at(1), at(2)]);
    }

    #[test]
    fn suspects_do_not_expire_and_each_outage_starts_anew() {
        let mut world = World::all_valid(2);
        world.table.set_source(FLAG, [], world.now);
        for outage in 0..2 {
            let mut waits = Vec::new();
            for _ in 0..7 {
                world.probe(at(1), SILENT);
                world.probe(at(2), SILENT);
                waits.push(world.due_in(at(1)));
            }
            assert!(world.table.link_down());
            assert_eq!(waits[0], 5.0, "outage {outage}");
            assert!(waits.is_sorted() && waits[6] > 50.0, "{waits:?}");
            world.pass(1000.0);
            assert_eq!(world.table.expire(world.now), 0);
            world.probe(at(1), valid(10));
            world.probe(at(2), valid(20));
        }
    }

    #[test]
    fn an_address_first_seen_while_the_link_is_down_stays_unknown() {
        let mut world = World::all_valid(2);
        world.pass(60.0);
        world.due();
        world.pass(5.0);
        world.record(at(1), SILENT);
        world.record(at(2), SILENT);
        assert!(world.table.link_down());
        world.table.set_source(FILE, [at(3)], world.now);
        world.probe(at(3), SILENT);
        let row = world.row(at(3));
        assert_eq!(
            (row.status, row.reason),
            (Status::Unknown, Reason::LinkSuspected)
        );
    }

    #[test]
    fn loopback_neither_proves_the_link_nor_is_excused_by_it() {
        let local: SocketAddr = "127.0.0.1:9050".parse().unwrap();
        let mut world = World::all_valid(2);
        world.table.set_source(FILE, [local], world.now);
        world.probe(local, valid(1));
        world.pass(60.0);
        world.due();
        world.pass(1.0);
        world.record(local, valid(1));
        world.table.live_success(local, world.now);
        world.pass(4.0);
        world.record(at(1), SILENT);
        world.record(at(2), SILENT);
        assert!(world.table.link_down());
        assert_eq!(world.best(), [local, at(1), at(2)]);
        world.probe(local, SILENT);
        assert_eq!(world.status(local), Status::NotListening);
        world.check();
    }

    #[test]
    fn live_silence_without_evidence_only_makes_a_suspect() {
        let mut world = World::all_valid(3);
        // However lately the others were heard: it was before the connect began.
        world.pass(0.5);
        let started = world.now;
        world.pass(0.3);
        let reason = Reason::TimedOut(Phase::Connecting);
        let change = world.table.live_failure(at(1), reason, started, world.now);
        assert_eq!(change, None);
        assert!(world.row(at(1)).suspect);
        // The next client is sent elsewhere all the same.
        assert_eq!(world.best(), [at(2), at(3), at(1)]);
        assert_eq!(world.due(), [at(1), at(2), at(3)]);
    }

    #[test]
    fn an_answer_from_before_the_silence_proves_nothing() {
        let mut world = World::all_valid(2);
        world.pass(60.0);
        let answered = world.now;
        world.pass(1.0);
        world.due();
        world.pass(5.0);
        world.record(at(1), SILENT);
        world.record(at(2), SILENT);
        assert!(world.table.link_down());
        world.table.live_success(at(1), answered);
        assert!(world.table.link_down());
        world.table.live_success(at(1), world.now);
        assert!(!world.table.link_down());
        world.check();
    }

    #[test]
    fn what_no_source_names_expires() {
        let mut world = World::new(4);
        world.due();
        world.record(at(1), valid(1));
        world.record(at(2), valid(1));
        world.record(at(3), REFUSED);
        world.record(at(4), REFUSED);
        world.table.set_source(FILE, [at(4)], world.now);
        world.pass(10_000.0);
        world.record(at(1), valid(1));
        world.record(at(2), valid(1));
        // Only number 4 is still named.
        world.table.set_source(FLAG, [], world.now);
        world.pass(599.0);
        assert_eq!(world.table.expire(world.now), 0);
        world.table.due(world.now, usize::MAX);
        world.record(at(1), valid(1));
        world.record(at(2), REFUSED);
        world.pass(1.0);
        // In flight ones wait.
        assert_eq!(world.table.expire(world.now), 1);
        world.record(at(3), REFUSED);
        assert_eq!(world.table.expire(world.now), 1);
        assert_eq!(world.table.get(at(2), world.now), None);
        assert_eq!(world.table.len(), 2);
        world.check();
        // Number 1 is kept by its probes, not for ever.
        world.pass(600.0);
        assert_eq!(world.table.expire(world.now), 1);
        assert_eq!(world.best(), []);
        world.check();
        assert_eq!(world.record(at(1), valid(1)), None, "nobody asked");
        assert_eq!(world.table.len(), 1);
    }

    #[test]
    fn a_former_peer_is_one_as_long_as_connections_may_go_there() {
        let mut world = World::all_valid(3);
        assert!(world.table.has_ip(at(2).ip()));
        world.table.set_source(FLAG, [at(1)], world.now);
        world.table.set_selected(Some(at(3)), world.now);
        world.record(at(1), REFUSED);
        assert!(world.table.has_ip(at(2).ip()), "valid");
        world.record(at(2), REFUSED);
        world.record(at(3), REFUSED);
        assert!(world.table.has_ip(at(1).ip()), "named");
        assert!(!world.table.has_ip(at(2).ip()));
        assert!(world.table.has_ip(at(3).ip()), "selected");
        world.table.set_selected(None, world.now);
        assert!(!world.table.has_ip(at(3).ip()));
    }

    #[test]
    fn all_are_due_when_asked_for() {
        let mut world = World::all_valid(2);
        world.table.set_source(FILE, [at(3), at(4)], world.now);
        world.table.due(world.now, 1);
        world.table.probe_now(world.now);
        world.check();
        let due = world.due();
        assert_eq!(due.len(), 3);
        assert!(due[..2].contains(&at(1)) && due[..2].contains(&at(2)));
    }

    #[test]
    fn jitter_is_bounded_and_the_seed_decides() {
        let delays = |seed| -> Vec<Duration> {
            let settings = TableSettings {
                seed,
                ..TableSettings::default()
            };
            let now = Instant::now();
            let mut table = Table::new(settings, now);
            table.set_source(FLAG, (1..=200).map(at), now);
            for address in table.due(now, 200) {
                table.record(address, valid(1), now);
            }
            table.snapshot(now).filter_map(|row| row.due_in).collect()
        };
        let first = delays(1);
        assert_eq!(first, delays(1));
        assert_ne!(first, delays(2));
        let (low, high) = (first.iter().min().unwrap(), first.iter().max().unwrap());
        assert!(*low >= Duration::from_millis(53_900) && *low < Duration::from_secs(56));
        assert!(*high <= Duration::from_secs(66) && *high > Duration::from_secs(64));
    }

    #[test]
    fn a_full_table_ignores_the_rest() {
        let mut world = World::new(0);
        let limit = u32::try_from(MAX_ADDRESSES).unwrap();
        world
            .table
            .set_source(FLAG, (0..limit + 5).map(at), world.now);
        assert_eq!(world.table.len(), MAX_ADDRESSES);
        assert_eq!(world.table.ignored(), 5);
        // There is room again when some are gone.
        world.table.set_source(FLAG, (10..limit).map(at), world.now);
        world.pass(600.0);
        assert_eq!(world.table.expire(world.now), 10);
        world.table.set_source(FILE, [at(limit + 1)], world.now);
        assert_eq!(world.table.len(), MAX_ADDRESSES - 9);
        world.check();
    }

    #[test]
    fn a_hundred_thousand_addresses_take_a_few_megabytes() {
        let mut world = World::new(100_000);
        while let [first, ..] = world.table.due(world.now, 1)[..] {
            world.record(first, REFUSED);
        }
        let table = &world.table;
        // A vacant slot of the slab takes as much as an entry; B-tree leaves hold 11 pairs and are half full at worst.
        let slab = table.entries.len() * size_of::<Option<Entry>>();
        let chains = table.chains.heads.len() * size_of::<u32>();
        let queue = table.len() * 2 * size_of::<(Tick, u32)>();
        let total = (slab + chains + queue) / table.len();
        println!("{total} bytes per address, entry {}", size_of::<Entry>());
        assert!(total <= 90, "{total}");
    }

    #[test]
    fn random_events_keep_the_books_in_order() {
        for seed in 0..30 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = World::new(6);
            for _ in 0..600 {
                let address = at(random.u32(1..=10));
                match random.u32(0..14) {
                    0 => {
                        let named: Vec<_> = (1..=10).filter(|_| random.bool()).map(at).collect();
                        let source = SourceId(random.u8(0..3));
                        world.table.set_source(source, named, world.now);
                    }
                    1 => world.table.cancel(address),
                    2 => world.table.live_success(address, world.now),
                    3 => {
                        let reasons = [
                            Reason::Refused,
                            Reason::Reset,
                            Reason::TimedOut(Phase::Connecting),
                        ];
                        let reason = reasons[random.usize(0..3)];
                        let started = world.now - Duration::from_secs(random.u64(0..3));
                        world
                            .table
                            .live_failure(address, reason, started, world.now);
                    }
                    4 => {
                        world.table.expire(world.now);
                    }
                    5 => world.table.probe_now(world.now),
                    6 => {
                        let selected = random.bool().then_some(address);
                        world.table.set_selected(selected, world.now);
                    }
                    7 => world.pass(random.f64() * 200.0),
                    _ => {
                        let started = world.table.due(world.now, 3);
                        world.pass(random.f64() * 5.0);
                        for address in started {
                            let finding = match random.u32(0..6) {
                                0 => REFUSED,
                                1 | 2 => SILENT,
                                3 => Finding::Local {
                                    reason: Reason::NoDescriptor,
                                },
                                _ => valid(random.u32(0..50)),
                            };
                            if random.u32(0..8) > 0 {
                                world.record(address, finding);
                            }
                        }
                    }
                }
                world.check();
            }
            println!("seed {seed} passed");
        }
    }
}
