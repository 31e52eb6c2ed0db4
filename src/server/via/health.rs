//! How well a proxy works that others can stand in for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of one proxy. Whoever used it says what came of it.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Ill>);

/// Since when and for how long a proxy is avoided.
#[derive(Clone, Copy, Debug, Default)]
struct Ill {
    /// In a row; none: it is well.
    failures: u32,
    until: Option<Instant>,
}

/// Whether a client may begin with a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    /// It is well.
    Well,
    /// It was not, and this client shall find out whether it is again.
    Trial,
    /// It was not, a short time ago: only if nobody else can.
    Avoided(Instant),
}

/// What a failure or an answer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// Nothing.
    Not,
    /// Well it was, and is no more: it is avoided for so long.
    Ill(Duration),
    /// It is well again.
    Well,
}

impl Health {
    /// For a client that looks for a proxy. One at a time gets a [`Fitness::Trial`].
    pub(super) fn fitness(&self, now: Instant) -> Fitness {
        let mut ill = self.lock();
        match ill.until {
            None => Fitness::Well,
            Some(until) if now < until => Fitness::Avoided(until),
            Some(_) => {
                // As if it had failed already: until it has come to something, nobody else tries.
                ill.fail(now);
                Fitness::Trial
            }
        }
    }

    /// Whether nothing is said against it.
    pub(super) fn is_well(&self) -> bool {
        self.lock().until.is_none()
    }

    /// It did not work.
    pub(super) fn failed(&self, now: Instant) -> Turned {
        let mut ill = self.lock();
        match ill.until {
            None => Turned::Ill(ill.fail(now)),
            // Those who had begun with it before; or a trial, which has been counted.
            Some(until) if now < until => Turned::Not,
            Some(_) => {
                ill.fail(now);
                Turned::Not
            }
        }
    }

    /// It has answered.
    pub(super) fn answered(&self) -> Turned {
        let mut ill = self.lock();
        match ill.until {
            None => Turned::Not,
            Some(_) => {
                *ill = Ill::default();
                Turned::Well
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ill> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ill {
    fn fail(&mut self, now: Instant) -> Duration {
        let pause = FIRST_PAUSE * (1 << self.failures.min(DOUBLINGS));
        let pause = pause.min(LAST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
        pause
    }
}

/// A proxy that was restarted is back by then.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Every trial costs a client a moment.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Until the last pause.
const DOUBLINGS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_fails_is_avoided_and_then_tried_by_one_client_at_a_time() {
        let (health, start) = (Health::default(), Instant::now());
        let at = |seconds| at(start, seconds);
        assert_eq!(health.fitness(at(0)), Fitness::Well);
        assert_eq!(health.answered(), Turned::Not);
        assert_eq!(health.failed(at(0)), Turned::Ill(Duration::from_secs(2)));
        // All the others that were on their way with it.
        for _ in 0..100 {
            assert_eq!(health.failed(at(1)), Turned::Not);
        }
        assert_eq!(health.fitness(at(1)), Fitness::Avoided(at(2)));
        assert!(!health.is_well());
        assert_eq!(health.fitness(at(2)), Fitness::Trial);
        assert_eq!(health.fitness(at(2)), Fitness::Avoided(at(6)));
        assert_eq!(health.failed(at(3)), Turned::Not);
        assert_eq!(health.fitness(at(5)), Fitness::Avoided(at(6)));
        assert_eq!(health.fitness(at(6)), Fitness::Trial);
        assert_eq!(health.answered(), Turned::Well);
        assert_eq!(health.fitness(at(6)), Fitness::Well);
        // From the start again.
        assert_eq!(health.failed(at(7)), Turned::Ill(Duration::from_secs(2)));
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let (health, mut now) = (Health::default(), Instant::now());
        health.failed(now);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let Fitness::Avoided(until) = health.fitness(now) else {
                panic!("not avoided");
            };
            pauses.push(until.duration_since(now).as_secs());
            now = until;
            assert_eq!(health.fitness(now), Fitness::Trial);
        }
        assert_eq!(pauses[..7], [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses[39], 60);
    }
}
