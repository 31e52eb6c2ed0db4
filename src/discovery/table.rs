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
//! **Cost** does not grow with the network: [`TableSettings::rate`] probes a second, shared out as `table/pace.rs` tells.
//!
//! **Size.** 100,000 addresses take about 8 MB: 60 bytes for an entry, about 8 for the hash chains and 16 for the place in
//! the queue. What is kept of proxies alone is kept apart. Times inside are tenths of a second, in 32 bits: 13 years.

mod books;
mod chains;
mod entry;
mod findings;
mod flights;
mod link;
mod live;
mod lost;
mod pace;
mod queue;
mod row;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use slab::Slab;

use super::rules::Rules;
use super::score::Merit;
use super::status::{Finding, Status};
use chains::Chains;
use entry::{Entry, Key, Rank, Tick};
use flights::{Flight, Flights};
use link::is_evidence;
use pace::Budget;
use queue::Queue;
pub use row::{Change, Level, Row};
pub use sources::{SourceId, SourceSet};

/// How often addresses are probed and how long they are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSettings {
    /// The time between two probes of an address that answers.
    pub interval: Duration,
    /// How many intervals at most lie between two probes of an address that does not. More if there are so many of them that
    /// `rate` does not allow it.
    pub back_off_limit: u32,
    /// How many probes a second are made at most, in the long run.
    ///
    /// Twenty: with the five seconds that a silent address takes, that is a hundred probes at once and some 5 kB a second of
    /// connects that nobody answers, which a slow link or a small router does not feel. A thousand addresses are asked
    /// within a minute, a hundred thousand within three hours.
    pub rate: u32,
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
            rate: 20,
            jitter_percent: 10,
            expiry: Duration::from_secs(10 * 60),
            seed: 0,
        }
    }
}

/// What is known of every address.
#[derive(Debug)]
pub struct Table {
    settings: TableSettings,
    jitter: fastrand::Rng,
    /// The instant of [`Tick::FIRST`].
    start: Instant,
    entries: Slab<Entry>,
    chains: Chains,
    /// Every entry that is not in flight.
    queue: Queue,
    in_flight: Flights,
    /// Of those that have answered as a proxy, or are remembered as one.
    merits: BTreeMap<u32, Merit>,
    rules: Rules,
    /// Sources whose addresses are watched even if the rules exclude them.
    unruled: SourceSet,
    budget: Budget,
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
    /// The one that is distrusted for refusals that perhaps nobody could have helped.
    blamed: Option<u32>,
    no_blame_until: Option<Instant>,
    generation: u64,
    ignored: u64,
}

impl Table {
    /// An empty table whose time starts at `now`.
    #[must_use]
    pub fn new(settings: TableSettings, rules: Rules, now: Instant) -> Self {
        Self {
            merits: BTreeMap::new(),
            rules,
            unruled: SourceSet::default(),
            budget: Budget::new(settings.rate, now),
            jitter: fastrand::Rng::with_seed(settings.seed),
            settings,
            start: now,
            entries: Slab::new(),
            chains: Chains::default(),
            queue: Queue::default(),
            in_flight: Flights::default(),
            ranking: BTreeMap::new(),
            counts: [0; Status::ALL.len()],
            ports: BTreeMap::new(),
            remote_valid: 0,
            remote_suspects: 0,
            last_evidence: None,
            first_doubt: None,
            selected: None,
            blamed: None,
            no_blame_until: None,
            generation: 0,
            ignored: 0,
        }
    }

    /// Replaces the list of one source; the table is the union of the lists.
    ///
    /// New addresses are due at once, or spread over the time that the budget needs for them. Those that the source no longer names stay until [`Table::expire`] takes them.
    /// Beyond [`MAX_ADDRESSES`] in all, new ones are ignored and counted in [`Table::ignored`].
    ///
    /// What the rules exclude is left out, and neither probed nor shown. Returns how many that were.
    pub fn set_source(
        &mut self,
        source: SourceId,
        addresses: impl IntoIterator<Item = SocketAddr>,
        now: Instant,
    ) -> usize {
        let tick = self.tick(now);
        let mut named = vec![false; self.entries.capacity()];
        let mut new = Vec::new();
        let mut left_out = 0;
        let ruled = !self.unruled.contains(source);
        for address in addresses {
            let key = Key::new(address);
            if ruled && self.rules.class(key.address()).is_excluded() {
                left_out += 1;
                continue;
            }
            let id = match self.find(key) {
                Some(id) => id,
                None => match self.insert(key, tick) {
                    Some(id) => {
                        new.push(id);
                        id
                    }
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
        let count = new.len();
        for id in new {
            let due = self.spread(tick, count);
            self.modify(id, |entry| entry.due = due);
        }
        left_out
    }

    /// Has the addresses of a source watched even if the rules exclude them. They are not chosen all the same.
    pub fn watch_all_of(&mut self, source: SourceId) {
        self.unruled.0 |= source.bit();
    }

    /// Takes at most `limit` addresses whose time has come, and no more than the budget has, the longest due first, and marks
    /// them as in flight.
    ///
    /// The selected address and then other proxies go before the rest, so that what is known of them stays fresh when there
    /// are more addresses than there are probes for.
    ///
    /// Each must come back by [`Table::record`] or [`Table::cancel`]; `now` counts as the start of its probe.
    pub fn due(&mut self, now: Instant, limit: usize) -> Vec<SocketAddr> {
        let tick = self.tick(now);
        let limit = limit.min(self.budget.refill(now));
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some((due, id)) = self.queue.pop(tick) else {
                break;
            };
            self.budget.spend();
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
        let first = self.queue.first()?;
        Some(self.instant(first).max(self.budget.next()))
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
        let flight = id.and_then(|id| self.in_flight.remove(id));
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
        if let Some(flight) = self.in_flight.remove(id) {
            self.modify(id, |entry| entry.due = flight.due);
        }
    }

    /// Like [`Table::cancel`] for every address in flight.
    pub fn cancel_all(&mut self) {
        for (id, flight) in self.in_flight.take_all() {
            self.modify(id, |entry| entry.due = flight.due);
        }
    }

    /// The valid addresses that the rules do not exclude: those that are trusted and without a failure since the last success
    /// first, then by the order of preference, score (as of when they were last heard of) and address.
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
            .filter_map(|(id, entry)| Some((u32::try_from(id).ok()?, entry)))
            .map(move |(id, entry)| self.row(id, entry, now))
    }

    /// What is known of one address.
    #[must_use]
    pub fn get(&self, address: SocketAddr, now: Instant) -> Option<Row> {
        let id = self.find(Key::new(address))?;
        Some(self.row(id, self.entry(id)?, now))
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

    /// Makes every address due that is not in flight, proxies first: when probing starts again. The rest is spread over the
    /// time that the budget needs for them.
    pub fn probe_now(&mut self, now: Instant) {
        let tick = self.tick(now);
        let others = self.queue.others.len();
        let ids: Vec<u32> = self
            .entries
            .iter()
            .filter_map(|(id, _)| u32::try_from(id).ok())
            .collect();
        for id in ids {
            let soon = self.spread(tick, others);
            self.modify(id, |entry| {
                let due = if entry.is_proxy() { tick } else { soon };
                entry.due = entry.due.min(due);
            });
        }
    }

    /// Makes one address due: what was found out about it does not hold any more.
    pub fn recheck(&mut self, address: SocketAddr, now: Instant) {
        let tick = self.tick(now);
        if let Some(id) = self.find(Key::new(address)) {
            self.modify(id, |entry| entry.due = entry.due.min(tick));
        }
    }

    /// Makes this address due, as soon as `DOUBTS_APART` lets it: somebody has doubts about it.
    pub fn probe_soon(&mut self, address: SocketAddr, now: Instant) {
        let tick = self.tick(now);
        if let Some(id) = self.find(Key::new(address)) {
            self.modify(id, |entry| {
                let soon = tick.max(entry.last_probed.plus(DOUBTS_APART));
                entry.due = entry.due.min(soon);
            });
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
}

/// Every client of a remote that is slow, but well, has its doubts: they make for one probe in that time, not for one each.
const DOUBTS_APART: Duration = Duration::from_secs(2);

/// Addresses that a table takes: about 17 MB. More than any overlay has today; without a limit a source that
/// misbehaves could eat a router's memory.
pub const MAX_ADDRESSES: usize = 200_000;

/// A probe after which nothing is sure (a valid address failed, a local error) is repeated after this.
const SOON: Duration = Duration::from_secs(5);
