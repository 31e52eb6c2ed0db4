//! How soon an address is probed again.

use std::time::{Duration, Instant};

use super::Table;
use super::entry::{Entry, Tick};

impl Table {
    /// The interval, doubled with each failure in a row. The probe soon after the first failure of a formerly valid
    /// address is not counted.
    pub(super) fn back_off(&self, entry: &Entry, failures: u8) -> Duration {
        let free = if entry.last_valid.is_set() { 2 } else { 1 };
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(free).into())
            .unwrap_or(u32::MAX)
            .min(self.settings.back_off_limit.max(1));
        self.settings.interval.saturating_mul(factor)
    }

    pub(super) fn recheck_interval(&self) -> Duration {
        (self.settings.interval / 4)
            .max(MIN_RECHECK)
            .min(self.settings.interval)
    }

    /// `delay`, or less for the selected address.
    pub(super) fn delay_for(&self, id: u32, delay: Duration) -> Duration {
        let selected =
            self.selected.is_some() && self.entry(id).map(|entry| entry.key) == self.selected;
        if selected {
            delay.min(self.recheck_interval())
        } else {
            delay
        }
    }

    /// The tick `delay` from `now`, give or take the jitter.
    pub(super) fn later(&mut self, now: Instant, delay: Duration) -> Tick {
        let percent = self.settings.jitter_percent.min(50);
        let spread = f64::from(percent) / 100.0 * (2.0 * self.jitter.f64() - 1.0);
        let delay = delay.min(MAX_DELAY).mul_f64(1.0 + spread);
        self.tick(now).plus(delay)
    }

    pub(super) fn tick(&self, now: Instant) -> Tick {
        Tick::FIRST.plus(now.saturating_duration_since(self.start))
    }

    pub(super) fn instant(&self, tick: Tick) -> Instant {
        self.start + tick.since_first()
    }
}

/// The address in use is not probed more often than this.
const MIN_RECHECK: Duration = Duration::from_secs(5);

/// No delay is longer, whatever the settings say.
const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);
