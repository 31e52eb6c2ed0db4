//! How good a peer is: one number out of its latency, its failures, and how long it has been good.
//!
//! ```text
//! score = 100 × speed × steadiness × standing
//!
//! speed      = 1 / (1 + (latency + spread) / 100 ms)    1 ms: 0.99   50 ms: 0.67   100 ms: 0.5   400 ms: 0.2
//! steadiness = 1 / (1 + failures)                       a failure counts half after 10 minutes, a quarter after 20, …
//! standing   = 1 - 1/2 × 2^(-good for / 10 min)         just found: 0.5   10 min: 0.75   an hour: 0.99
//! ```
//!
//! Latency is a moving average of the times to answer a greeting, and spread one of how far they were off that average, as
//! RFC 6298 §2 has it for retransmission: a peer that takes 50 ms each time is better than one that takes 1 ms or 99 ms.
//! A difference of few milliseconds says little about a path over an overlay, and hardly moves the score; twice the latency
//! does. A peer that has been good for an hour is worth two that were found just now: most that go bad do so soon.
//!
//! Pure: the time is passed in.

use std::time::Duration;

use super::tick::Tick;
use super::trust::Trust;

/// What is kept of an address that has answered as a proxy, beside its entry in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merit {
    /// Microseconds, 0 for none yet.
    latency: u32,
    /// Microseconds.
    spread: u32,
    /// Never if it only asked for authentication.
    pub(super) last_valid: Tick,
    /// Never while it is not good.
    good_since: Tick,
    /// Failures, each counted less the longer ago it was, as of `counted`.
    failures: f32,
    counted: Tick,
    pub(super) trust: Trust,
}

impl Merit {
    /// That of an address of which nothing is known.
    pub(super) const NONE: Self = Self {
        latency: 0,
        spread: 0,
        last_valid: Tick::NEVER,
        good_since: Tick::NEVER,
        failures: 0.0,
        counted: Tick::NEVER,
        trust: Trust::NEW,
    };

    /// It answered in this time.
    pub(super) fn measured(&mut self, latency: Duration) {
        let new = micros(latency);
        if self.latency == 0 {
            self.latency = new;
            self.spread = new / 2;
        } else {
            // In this order, RFC 6298 §2.3.
            self.spread = smooth(self.spread, self.latency.abs_diff(new));
            self.latency = smooth(self.latency, new).max(1);
        }
    }

    /// It is good, as a probe or live traffic has found.
    pub(super) fn good(&mut self, now: Tick) {
        self.last_valid = now;
        if !self.good_since.is_set() {
            self.good_since = now;
        }
    }

    /// It was good and is not any more. Only the first failure of several in a row counts: they have one cause.
    pub(super) fn failed(&mut self, now: Tick) {
        if self.good_since.is_set() {
            self.failures = self.recent_failures(now) + 1.0;
            self.counted = now;
            self.good_since = Tick::NEVER;
        }
    }

    /// Failures, each counted half as much every [`HALF_LIFE`].
    pub(super) fn recent_failures(&self, now: Tick) -> f32 {
        self.failures * halved(now.since(self.counted))
    }

    /// How long it has been good without a failure.
    pub(super) fn good_for(&self, now: Tick) -> Option<Duration> {
        self.good_since.is_set().then(|| now.since(self.good_since))
    }

    /// Whether it was good ever since it was found.
    pub(super) fn never_failed(&self) -> bool {
        !self.counted.is_set()
    }

    /// Smoothed.
    pub(super) fn latency(&self) -> Option<Duration> {
        (self.latency != 0).then(|| Duration::from_micros(self.latency.into()))
    }

    /// The smoothed mean deviation of the latency.
    pub(super) fn spread(&self) -> Option<Duration> {
        (self.latency != 0).then(|| Duration::from_micros(self.spread.into()))
    }

    /// From 0 to 100.
    pub(super) fn score(&self, now: Tick) -> f32 {
        let time = Duration::from_micros(u64::from(self.latency) + u64::from(self.spread));
        let speed = 1.0 / (1.0 + time.as_secs_f32() / UNIT.as_secs_f32());
        let steadiness = 1.0 / (1.0 + self.recent_failures(now));
        let standing = 1.0 - 0.5 * halved(self.good_for(now).unwrap_or_default());
        100.0 * speed * steadiness * standing
    }
}

/// What is left of 1 after this time, if half of it goes every [`HALF_LIFE`].
fn halved(time: Duration) -> f32 {
    (-time.as_secs_f32() / HALF_LIFE.as_secs_f32()).exp2()
}

/// Moving average with a weight of 1/4 for the new value: half of a lasting change shows after three probes.
fn smooth(old: u32, new: u32) -> u32 {
    let sum = u64::from(old) * 3 + u64::from(new);
    u32::try_from(sum / 4).unwrap_or(u32::MAX)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1)
}

/// The latency with half of the best speed: about the middle of what paths within a continent have.
const UNIT: Duration = Duration::from_millis(100);

/// Ten probes: what was seen once is outweighed, what goes on is not.
const HALF_LIFE: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(n * 60)
    }

    fn at(minute: u64) -> Tick {
        Tick::FIRST.plus(minutes(minute))
    }

    /// Steady at this latency, found at minute 0.
    fn steady(millis: u64) -> Merit {
        let mut merit = Merit::NONE;
        for _ in 0..40 {
            merit.measured(Duration::from_millis(millis));
        }
        merit.good(at(0));
        merit
    }

    fn close(score: f32, expected: f32) {
        assert!((score - expected).abs() < 0.6, "{score}, not {expected}");
    }

    #[test]
    fn the_table_of_the_documentation_holds() {
        for (millis, speed) in [(1, 0.99), (50, 0.67), (100, 0.5), (400, 0.2)] {
            close(steady(millis).score(at(0)), 100.0 * speed * 0.5);
            close(steady(millis).score(at(10)), 100.0 * speed * 0.75);
            close(steady(millis).score(at(60)), 100.0 * speed * 0.99);
        }
    }

    #[test]
    fn a_failure_weighs_less_and_less() {
        let mut merit = steady(100);
        merit.failed(at(100));
        close(merit.score(at(100)), 50.0 / 2.0 * 0.5);
        // Still failing: the same one.
        merit.failed(at(100));
        merit.good(at(100));
        for (minute, standing) in [(0, 0.5), (10, 0.75), (20, 0.875)] {
            let failures = 1.0 / (1 << (minute / 10)) as f32;
            let score = 50.0 / (1.0 + failures) * standing;
            close(merit.score(at(100 + minute)), score);
        }
        merit.failed(at(110));
        assert!((merit.recent_failures(at(110)) - 1.5).abs() < 0.01);
    }

    #[test]
    fn latency_and_spread_are_those_of_rfc_6298_with_a_faster_average() {
        let mut merit = Merit::NONE;
        let ms = Duration::from_millis;
        assert_eq!((merit.latency(), merit.spread()), (None, None));
        let measured = [(100, 100, 50), (100, 100, 37), (200, 125, 53), (20, 98, 66)];
        for (took, latency, spread) in measured {
            merit.measured(ms(took));
            let whole = |time: Option<Duration>| time.unwrap().as_millis();
            assert_eq!(whole(merit.latency()), latency);
            assert_eq!(whole(merit.spread()), spread);
        }
    }

    #[test]
    fn an_unsteady_one_is_worse_than_a_steady_one_with_the_same_mean() {
        let mut merit = steady(50);
        for took in [1, 99].repeat(20) {
            merit.measured(Duration::from_millis(took));
        }
        assert!(merit.score(at(9)) < 0.9 * steady(50).score(at(9)));
    }

    #[test]
    fn every_score_is_between_0_and_100() {
        let mut merit = Merit::NONE;
        merit.measured(Duration::MAX);
        for _ in 0..10_000 {
            merit.good(at(1));
            merit.failed(at(1));
        }
        for merit in [merit, Merit::NONE, steady(0)] {
            for minute in [0, 1, 1_000_000] {
                let score = merit.score(at(minute));
                assert!((0.0..=100.0).contains(&score), "{score}");
            }
        }
    }
}
