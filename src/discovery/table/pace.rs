//! How soon an address is probed again, and how many are in a second.
//!
//! **The budget.** [`TableSettings::rate`](super::TableSettings::rate) probes a second, whatever the size of the network; what was not used is kept for
//! [`BURST`], so that a small network is asked at once. The remote in use comes first, then other proxies, then the rest.
//! Proxies and the rest may use half of the budget each in the long run: with more of them than that allows, their
//! intervals get longer, to hours for a hundred thousand addresses that never were a proxy. The best proxies keep theirs,
//! since connections go to them.

use std::time::{Duration, Instant};

use super::Table;
use super::entry::Tick;

/// What is left of the budget.
#[derive(Debug)]
pub(super) struct Budget {
    /// Probes a second.
    rate: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(rate: u32, now: Instant) -> Self {
        let rate = f64::from(rate.max(1));
        Self {
            rate,
            left: rate * BURST.as_secs_f64(),
            at: now,
        }
    }

    /// What may be probed now.
    pub(super) fn refill(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let most = self.rate * BURST.as_secs_f64();
        self.left = (self.left + self.rate * passed.as_secs_f64()).min(most);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between nothing and a burst"
        )]
        let whole = self.left.max(0.0) as usize;
        whole
    }

    pub(super) fn spend(&mut self) {
        self.left -= 1.0;
    }

    /// When there is one again.
    pub(super) fn next(&self) -> Instant {
        let missing = (1.0 - self.left).max(0.0);
        self.at + Duration::from_secs_f64(missing / self.rate)
    }

    /// How long all of the budget lasts for so many.
    fn time_for(&self, probes: usize) -> Duration {
        Duration::from_secs_f64(as_f64(probes) / self.rate)
    }
}

impl Table {
    /// The interval, doubled with each failure in a row. The probe soon after the first failure of a formerly valid
    /// address is not counted. Longer for all when they are many.
    pub(super) fn back_off(&self, id: u32, failures: u8) -> Duration {
        let was_valid = self.was_valid(id);
        let free = if was_valid { 2 } else { 1 };
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(free).into())
            .unwrap_or(u32::MAX)
            .min(self.settings.back_off_limit.max(1));
        let delay = self.settings.interval.saturating_mul(factor);
        if was_valid {
            delay
        } else {
            delay.max(self.round_of_the_rest())
        }
    }

    /// The interval of an address that has just answered.
    pub(super) fn interval_of(&self, id: u32) -> Duration {
        let interval = self.settings.interval;
        let proxies = self.queue.proxies.len() + self.queue.selected.len();
        let round = self.budget.time_for(proxies * 2);
        if round <= interval {
            return interval;
        }
        let is_among_the_best = self.ranking.values().take(BEST).any(|best| *best == id);
        if is_among_the_best { interval } else { round }
    }

    /// How long it takes to ask all that are no proxies, with half of the budget.
    pub(super) fn round_of_the_rest(&self) -> Duration {
        self.budget.time_for(self.queue.others.len() * 2)
    }

    /// A random time for each of so many that all want to be probed at once.
    pub(super) fn spread(&mut self, tick: Tick, count: usize) -> Tick {
        let all = self.budget.time_for(count);
        if all <= BURST {
            return tick;
        }
        tick.plus(all.mul_f64(self.jitter.f64()))
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

fn as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// What was not used of the budget is kept for so long: as long as one probe takes at most, by default.
const BURST: Duration = Duration::from_secs(5);

/// Proxies that are asked every interval however many others there are: as many as a client is tried on.
const BEST: usize = 16;

/// The address in use is not probed more often than this.
const MIN_RECHECK: Duration = Duration::from_secs(5);

/// No delay is longer, whatever the settings say.
const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);
