//! Which address is probed next.

use std::collections::BTreeSet;

use super::entry::Tick;

/// What is waiting, by due time: the one in use before other proxies, and those before the rest.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) selected: BTreeSet<(Tick, u32)>,
    pub(super) proxies: BTreeSet<(Tick, u32)>,
    pub(super) others: BTreeSet<(Tick, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    Selected,
    Proxy,
    Other,
}

impl Queue {
    pub(super) fn insert(&mut self, urgency: Urgency, due: Tick, id: u32) {
        self.of(urgency).insert((due, id));
    }

    pub(super) fn remove(&mut self, urgency: Urgency, due: Tick, id: u32) {
        self.of(urgency).remove(&(due, id));
    }

    /// The next one that is due at `tick`.
    pub(super) fn pop(&mut self, tick: Tick) -> Option<(Tick, u32)> {
        [&mut self.selected, &mut self.proxies, &mut self.others]
            .into_iter()
            .find(|queue| queue.first().is_some_and(|(due, _)| *due <= tick))?
            .pop_first()
    }

    pub(super) fn first(&self) -> Option<Tick> {
        let queues = [&self.selected, &self.proxies, &self.others];
        let firsts = queues.into_iter().filter_map(BTreeSet::first);
        firsts.map(|(due, _)| *due).min()
    }

    pub(super) const fn of(&mut self, urgency: Urgency) -> &mut BTreeSet<(Tick, u32)> {
        match urgency {
            Urgency::Selected => &mut self.selected,
            Urgency::Proxy => &mut self.proxies,
            Urgency::Other => &mut self.others,
        }
    }
}
