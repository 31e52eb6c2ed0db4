//! Addresses that were valid and are not now: remembered, asked again, in the end forgotten.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Table;
use super::entry::{Doubt, Entry, Key};
use crate::discovery::status::Status;

impl Table {
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
}
