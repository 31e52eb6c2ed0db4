//! Addresses that were valid and are not now: remembered, asked again, in the end forgotten.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Table;
use super::entry::{Doubt, Entry, Key, Tick};
use crate::discovery::status::Status;

impl Table {
    /// Takes in an address that was valid `ago`, perhaps before this table was made: it is probed at once. Until then it is
    /// one of [`Table::lost_latest_first`]. No source need name it; without one it expires like any other.
    ///
    /// `false` if the rules exclude it or the table is full. What is known of an address already is not touched, but for when it was last valid.
    pub fn remember(&mut self, address: SocketAddr, ago: Duration, now: Instant) -> bool {
        let key = Key::new(address);
        if self.rules.class(key.address()).is_excluded() {
            return false;
        }
        let tick = self.tick(now);
        let Some(id) = self.find(key).or_else(|| self.insert(key, tick)) else {
            self.ignored += 1;
            return false;
        };
        let last_valid = tick.minus(ago);
        self.judge(id, tick, |_, merit| {
            merit.last_valid = merit.last_valid.max(last_valid);
        });
        true
    }

    /// Every address that was ever valid, as far as this table knows, and how long ago it last was. In no particular
    /// order.
    pub fn ever_valid(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, Duration)> {
        let tick = self.tick(now);
        self.merits.iter().filter_map(move |(id, merit)| {
            let entry = self.entry(*id).filter(|_| merit.last_valid.is_set())?;
            Some((entry.key.address(), tick.since(merit.last_valid)))
        })
    }

    /// Addresses that were valid and are not listening now, or not probed yet, those that were so last first; at most
    /// `limit`. Who has nobody better may try them: they can be back before a probe has seen it.
    #[must_use]
    pub fn lost_latest_first(&self, limit: usize) -> Vec<SocketAddr> {
        let mut lost: BinaryHeap<(Tick, Reverse<Key>)> = self
            .lost()
            .map(|(_, entry, last_valid)| (last_valid, Reverse(entry.key)))
            .collect();
        let latest_first = iter::from_fn(|| lost.pop()).take(limit);
        latest_first
            .map(|(_, Reverse(key))| key.address())
            .collect()
    }

    /// Makes every address due that was valid and is not listening now: nobody else is left.
    pub fn probe_lost_now(&mut self, now: Instant) {
        let tick = self.tick(now);
        let lost: Vec<u32> = self.lost().map(|(id, ..)| id).collect();
        for id in lost {
            self.modify(id, |entry| entry.due = entry.due.min(tick));
        }
    }

    fn lost(&self) -> impl Iterator<Item = (u32, &Entry, Tick)> {
        self.merits.iter().filter_map(|(id, merit)| {
            let entry = self.entry(*id)?;
            let lost = matches!(entry.status, Status::NotListening | Status::Unknown)
                && merit.last_valid.is_set()
                && !entry.class.is_excluded();
            lost.then_some((*id, entry, merit.last_valid))
        })
    }

    /// Whether it ever was valid.
    pub(super) fn was_valid(&self, id: u32) -> bool {
        self.merits
            .get(&id)
            .is_some_and(|merit| merit.last_valid.is_set())
    }

    /// Removes what no source names and no probe has confirmed for [`expiry`](super::TableSettings::expiry); returns how many.
    /// Suspects stay: while the link is down no probe can confirm anything.
    ///
    /// Looks at every entry: meant to be called once an interval.
    pub fn expire(&mut self, now: Instant) -> usize {
        let tick = self.tick(now);
        let gone: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.sources == 0 && entry.doubt != Doubt::Suspect)
            .filter_map(|(id, entry)| Some((u32::try_from(id).ok()?, entry)))
            .filter(|(id, entry)| {
                let merit = self.merits.get(id);
                let last_valid = merit.map_or(Tick::NEVER, |merit| merit.last_valid);
                let last = entry.unnamed_since.max(last_valid);
                entry.due.is_set() && tick >= last.plus(self.settings.expiry)
            })
            .map(|(id, _)| id)
            .collect();
        for id in &gone {
            self.remove(*id);
        }
        gone.len()
    }
}
