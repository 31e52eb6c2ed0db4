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
                counts: Mutex::default(),
            }),
        }
    }

    /// Connections now.
    #[must_use]
    pub fn active(&self) -> usize {
        self.counts().active
    }

    /// The most connections at once.
    #[must_use]
    pub fn most(&self) -> usize {
        self.shared.most
    }

    /// Whether there is room for one more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.counts().active < self.shared.most
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
        })
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
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.limits.counts();
        counts.active = counts.active.saturating_sub(1);
        if let Some(client) = self.client
            && let Some(count) = counts.per_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                counts.per_client.remove(&client);
            }
        }
        let waiting = std::mem::take(&mut counts.waiting);
        drop(counts);
        for task in waiting {
            self.limits.shared.mailbox.wake(task);
        }
    }
}
