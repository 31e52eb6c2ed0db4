//! What a forwarder knows that is worth remembering.

use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::keeper::Knowledge;
use crate::daemon::forwarder::Forwarder;
use crate::discovery::table::Table;
use crate::engine::{Cx, Shared};

/// What a running forwarder knows.
pub(in crate::daemon) struct Known(pub(in crate::daemon) Shared<Forwarder>);

impl Knowledge for Known {
    fn ever_valid(&self, now: Instant) -> (Option<SocketAddr>, Vec<SocketAddr>) {
        let forwarder = self.0.borrow();
        let in_use = forwarder.remote().and_then(|(address, _)| address);
        let table = &forwarder.discovery.borrow().table;
        (in_use, ever_valid(table, now))
    }

    fn bring_back(&self, addresses: &[SocketAddr], cx: &mut Cx<'_>) {
        let forwarder = self.0.borrow();
        let mut discovery = forwarder.discovery.borrow_mut();
        // So old that nothing changes for those that the table has not forgotten.
        for address in addresses {
            discovery.table.remember(*address, LONG_AGO, cx.now);
        }
        discovery.wake_prober(cx);
    }

    fn has_valid(&self) -> bool {
        let forwarder = self.0.borrow();
        let discovery = forwarder.discovery.borrow();
        discovery.table.valid_best_first().next().is_some()
    }
}

/// Every address that was valid since the start, best first. Some are there twice.
pub(in crate::daemon) fn ever_valid(table: &Table, now: Instant) -> Vec<SocketAddr> {
    let by_age = table.ever_valid(now).map(|(address, age)| (age, address));
    // A heap sorts with a fifth of the program that `sort` is, which is made anew for each type.
    let earlier = by_age.collect::<BinaryHeap<_>>().into_sorted_vec();
    let earlier = earlier.into_iter().map(|(_, address)| address);
    table.valid_best_first().chain(earlier).collect()
}

/// Puts the addresses of the file into a new table, in their order. They are probed before all others.
pub(in crate::daemon) fn remind(table: &mut Table, addresses: &[SocketAddr], now: Instant) {
    for (place, address) in (1..).zip(addresses) {
        table.remember(*address, Duration::from_secs(place), now);
    }
}

const LONG_AGO: Duration = Duration::from_secs(365 * 24 * 60 * 60);
