//! Entries, and what is kept in step with them: hash chains, queue, ranking, counts.

use std::ops::Bound;

use super::chains::NO_ENTRY;
use super::entry::{Doubt, Entry, Key, Rank, Tick};
use super::{MAX_ADDRESSES, Table};
use crate::discovery::score::Merit;
use crate::discovery::status::{Reason, Status};

impl Table {
    /// The one place where entries change: keeps queue, ranking and counts in step with them.
    pub(super) fn modify(&mut self, id: u32, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(id as usize) else {
            return;
        };
        let before = *entry;
        change(entry);
        self.follow(id, &before);
    }

    /// Apart, and once for all kinds of changes.
    fn follow(&mut self, id: u32, before: &Entry) {
        let Some(entry) = self.entries.get_mut(id as usize) else {
            return;
        };
        let in_flight = self.in_flight.contains(id);
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
        self.count_out(before);
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
    pub(super) fn rank(&mut self, rank: Rank, id: u32) -> (Option<Key>, Option<Key>) {
        self.ranking.insert(rank, id);
        self.neighbours(rank)
    }

    pub(super) fn unrank(&mut self, rank: Rank) -> (Option<Key>, Option<Key>) {
        self.ranking.remove(&rank);
        self.neighbours(rank)
    }

    pub(super) fn neighbours(&self, rank: Rank) -> (Option<Key>, Option<Key>) {
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

    pub(super) fn count_in(&mut self, entry: &Entry) {
        if let Some(count) = self.counts.get_mut(entry.status as usize) {
            *count += 1;
        }
        self.remote_valid += usize::from(entry.is_remote_valid());
        self.remote_suspects +=
            usize::from(entry.is_remote_valid() && entry.doubt == Doubt::Suspect);
    }

    pub(super) fn count_out(&mut self, entry: &Entry) {
        if let Some(count) = self.counts.get_mut(entry.status as usize) {
            *count -= 1;
        }
        self.remote_valid -= usize::from(entry.is_remote_valid());
        self.remote_suspects -=
            usize::from(entry.is_remote_valid() && entry.doubt == Doubt::Suspect);
    }

    pub(super) fn insert(&mut self, key: Key, tick: Tick) -> Option<u32> {
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
            class: self.rules.class(key.address()),
            score: 0,
            distrusted: false,
            sources: 0,
            since: tick,
            last_probed: Tick::NEVER,
            unnamed_since: tick,
            due: tick,
            next: NO_ENTRY,
        };
        self.entries.insert(entry);
        self.count_in(&entry);
        self.queue.insert(entry.urgency(self.selected), tick, id);
        self.chains.link(&mut self.entries, id);
        *self.ports.entry(key.address().port()).or_default() += 1;
        Some(id)
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.chains.unlink(&mut self.entries, id);
        let Some(entry) = self.entries.try_remove(id as usize) else {
            return;
        };
        self.queue
            .remove(entry.urgency(self.selected), entry.due, id);
        self.in_flight.remove(id);
        self.merits.remove(&id);
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

    /// Changes what is known of a proxy, and its entry with it.
    pub(super) fn judge(
        &mut self,
        id: u32,
        now: Tick,
        change: impl FnOnce(&mut Entry, &mut Merit),
    ) {
        let mut merit = self.merits.get(&id).copied().unwrap_or(Merit::NONE);
        self.modify(id, |entry| {
            change(entry, &mut merit);
            entry.appraise(&merit, now);
        });
        self.merits.insert(id, merit);
    }

    pub(super) fn find(&self, key: Key) -> Option<u32> {
        self.chains.find(&self.entries, key)
    }

    pub(super) fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)
    }

    pub(super) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)
    }
}
