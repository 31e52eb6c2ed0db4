//! What a probe's outcome makes of an address.

use std::time::{Duration, Instant};

use super::entry::{Doubt, Tick};
use super::flights::Flight;
use super::{Change, SOON, Table};
use crate::discovery::status::{Reason, Status};

impl Table {
    pub(super) fn answer(
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
        let delay = self.delay_for(id, self.interval_of(id));
        let due = self.later(now, delay);
        let tick = self.tick(now);
        let change = self.change_status(id, status, reason, tick);
        self.judge(id, tick, |entry, merit| {
            entry.failures = 0;
            entry.doubt = Doubt::None;
            entry.last_probed = tick;
            entry.due = due;
            merit.measured(latency);
            merit.trust.forgive(tick);
            if status == Status::Valid && !merit.trust.is_distrusted() {
                merit.good(tick);
            } else if status == Status::Valid {
                merit.last_valid = tick;
            } else {
                merit.failed(tick);
            }
        });
        change
    }

    /// A failure that counts.
    pub(super) fn failure(
        &mut self,
        id: u32,
        status: Status,
        reason: Reason,
        now: Instant,
    ) -> Option<Change> {
        let entry = *self.entry(id)?;
        let failures = entry.failures.saturating_add(1);
        let delay = if entry.status == Status::Valid {
            SOON.min(self.settings.interval)
        } else {
            self.back_off(id, failures)
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
        if self.merits.contains_key(&id) {
            self.judge(id, tick, |_, merit| merit.failed(tick));
        }
        change
    }

    pub(super) fn local_error(
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
            Reason::NoRoute | Reason::NoInterface | Reason::NoSource
                if entry.status != Status::Valid =>
            {
                now.saturating_duration_since(self.instant(entry.since))
                    .clamp(SOON.min(self.settings.interval), self.settings.interval)
            }
            _ => SOON.min(self.settings.interval),
        };
        let delay = match entry.is_proxy() {
            true => delay,
            false => delay.max(self.round_of_the_rest()),
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

    pub(super) fn change_status(
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
}
