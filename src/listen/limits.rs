//! How many connections at once, in total and per client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::{Mailbox, TaskId};

/// Counts connections. Clones share one count.
#[derive(Clone)]
pub struct Limits {
    shared: Arc<Shared>,
}

struct Shared {
    most: usize,
    most_per_client: usize,
    mailbox: Mailbox,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    active: usize,
    /// Of these, those that take two places.
    wide: usize,
    /// Places of two descriptors each.
    places: usize,
    per_client: HashMap<IpAddr, usize>,
    /// Acceptors that wait until a connection ends.
    waiting: Vec<TaskId>,
}

impl Limits {
    /// At most `most` connections, and `most_per_client` from one client. `mailbox` wakes those who wait for room.
    #[must_use]
    pub fn new(most: usize, most_per_client: Option<usize>, mailbox: Mailbox) -> Self {
        let most_per_client = most_per_client.unwrap_or(most);
        Self {
            shared: Arc::new(Shared {
                most,
                most_per_client,
                mailbox,
                counts: Mutex::new(Counts {
                    places: most,
                    ..Counts::default()
                }),
            }),
        }
    }

    /// Descriptors are there for so many connections, of two each, which may be more than there may be connections. Some may take
    /// twice as many: see [`Slot::widen`].
    #[must_use]
    pub fn with_places(self, places: usize) -> Self {
        self.counts().places = places.max(self.shared.most);
        self
    }

    /// Connections now.
    #[must_use]
    pub fn active(&self) -> usize {
        self.counts().active
    }

    /// Clients that have connections now. Addresses of one /64 of IPv6 are one client; those on Unix sockets have none.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.counts().per_client.len()
    }

    /// The most connections at once.
    #[must_use]
    pub fn most(&self) -> usize {
        self.shared.most
    }

    /// Whether there is room for one more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let counts = self.counts();
        counts.active < self.shared.most && counts.active + counts.wide < counts.places
    }

    /// Wakes a task once when a connection has ended.
    pub fn wake_on_release(&self, task: TaskId) {
        let mut counts = self.counts();
        if !counts.waiting.contains(&task) {
            counts.waiting.push(task);
        }
    }

    /// Counts a connection until the slot is dropped; `None` when its client has too many. Clients on Unix sockets
    /// have no address and count in total only.
    #[must_use]
    pub fn take(&self, client: Option<IpAddr>) -> Option<Slot> {
        let client = client.map(same_client);
        let mut counts = self.counts();
        if let Some(client) = client {
            let count = counts.per_client.entry(client).or_default();
            if *count >= self.shared.most_per_client {
                return None;
            }
            *count += 1;
        }
        counts.active += 1;
        drop(counts);
        Some(Slot {
            limits: self.clone(),
            client,
            is_wide: false,
        })
    }

    fn wake_waiting(&self, mut counts: MutexGuard<'_, Counts>) {
        let waiting = std::mem::take(&mut counts.waiting);
        drop(counts);
        for task in waiting {
            self.shared.mailbox.wake(task);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.shared
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client of IPv6 owns a /64 at least, so addresses of one /64 count together.
fn same_client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into())
        }
        other => other,
    }
}

/// A counted connection.
pub struct Slot {
    limits: Limits,
    client: Option<IpAddr>,
    is_wide: bool,
}

impl Slot {
    /// Takes a second place, for a connection that needs four descriptors instead of two; whether there was one. Wide connections
    /// get half of all descriptors at most, so that they leave some to others.
    #[must_use]
    pub fn widen(&mut self) -> bool {
        let mut counts = self.limits.counts();
        let most_wide = (counts.places / 4).max(1);
        let has_room = counts.active + counts.wide < counts.places && counts.wide < most_wide;
        if !self.is_wide && has_room {
            counts.wide += 1;
            self.is_wide = true;
        }
        self.is_wide
    }
}

impl Slot {
    /// Gives the second place back, if it was taken.
    pub fn narrow(&mut self) {
        if !std::mem::take(&mut self.is_wide) {
            return;
        }
        let mut counts = self.limits.counts();
        counts.wide -= 1;
        self.limits.wake_waiting(counts);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.limits.counts();
        counts.active = counts.active.saturating_sub(1);
        counts.wide -= usize::from(self.is_wide);
        if let Some(client) = self.client
            && let Some(count) = counts.per_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                counts.per_client.remove(&client);
            }
        }
        self.limits.wake_waiting(counts);
    }
}

/// UDP associations at the same time of one client: programs that send all of a machine's traffic through a proxy have one for
/// each of its sockets.
pub const ASSOCIATIONS_PER_CLIENT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Reactor;

    fn limits(most: usize, places: usize) -> Limits {
        let reactor = Reactor::new(1).unwrap();
        Limits::new(most, None, reactor.mailbox()).with_places(places)
    }

    #[test]
    fn a_wide_connection_takes_two_places_until_it_ends() {
        let limits = limits(8, 8);
        let mut slots: Vec<Slot> = (0..6).filter_map(|_| limits.take(None)).collect();
        assert!(slots[0].widen() && slots[0].widen(), "once");
        assert!(limits.has_room());
        assert!(slots[1].widen());
        assert!(!limits.has_room() && !slots[2].widen());
        assert_eq!(limits.active(), 6);
        slots.remove(0);
        assert!(limits.has_room());
        assert!(slots[1].widen());
        slots.extend(limits.take(None));
        assert!(!limits.has_room());
        slots[1].narrow();
        slots[1].narrow();
        assert!(
            limits.has_room() && slots[1].widen(),
            "it was given back once"
        );
    }

    #[test]
    fn wide_connections_leave_half_of_the_descriptors() {
        let limits = limits(16, 16);
        let mut slots: Vec<Slot> = (0..5).filter_map(|_| limits.take(None)).collect();
        let wide = slots
            .iter_mut()
            .filter_map(|slot| slot.widen().then_some(()));
        assert_eq!(wide.count(), 4);
    }

    #[test]
    fn few_connections_may_be_wide_where_there_are_more_descriptors() {
        let limits = limits(1, 100);
        let mut slot = limits.take(None).unwrap();
        assert!(slot.widen());
        assert!(!limits.has_room(), "a limit of connections is one");
    }
}
