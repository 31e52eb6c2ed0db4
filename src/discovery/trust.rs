//! Whether a peer that answers greetings also serves clients.
//!
//! Probes greet. A peer that answers them and then fails every request looks as good as any, until its failures for
//! clients are counted: requests that it refused and another peer then served, answers that never came, connections that
//! were closed. Three in a row, each begun after the one before had failed, and it is *distrusted*: it comes after all
//! others for a while, twice as long each time. A request that it serves clears it at once.
//!
//! A request that nobody was seen to serve is a weak sign, since most such destinations are just down: it takes twelve.
//!
//! Pure: the time is passed in.

use std::time::Duration;

use super::tick::Tick;

/// How a peer fared with clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust {
    /// Failures in a row, weighted.
    strikes: u8,
    /// How often it was distrusted.
    lapses: u8,
    distrusted: bool,
    last_strike: Tick,
    /// When it is trusted again, or was.
    until: Tick,
}

/// How much a failure for a client says about the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    /// It failed what another one then did, or broke off: the peer's fault.
    Strong,
    /// It refused a request that perhaps nobody can serve.
    Weak,
}

impl Trust {
    /// That of a peer that no client has been sent to.
    pub(super) const NEW: Self = Self {
        strikes: 0,
        lapses: 0,
        distrusted: false,
        last_strike: Tick::NEVER,
        until: Tick::NEVER,
    };

    /// It failed a client whose connection to it was begun at `started`. Whether it is distrusted from now on.
    pub(super) fn strike(&mut self, strike: Strike, started: Tick, now: Tick) -> bool {
        // What was under way when the last one failed has the same cause: a proxy that is restarted fails a thousand at once.
        if self.distrusted || started < self.last_strike {
            return false;
        }
        if now.since(self.last_strike) > IN_A_ROW {
            self.strikes = 0;
        }
        self.strikes += match strike {
            Strike::Strong => STRONG,
            Strike::Weak => 1,
        };
        self.last_strike = now;
        if self.strikes < LIMIT {
            return false;
        }
        if now.since(self.until) > FORGOTTEN {
            self.lapses = 0;
        }
        self.strikes = 0;
        self.distrusted = true;
        self.until = now.plus(PENALTY * (1 << self.lapses.min(MOST_DOUBLINGS)));
        self.lapses = self.lapses.saturating_add(1);
        true
    }

    /// It served a client at `at`. Whether it was distrusted until now.
    pub(super) fn served(&mut self, at: Tick) -> bool {
        // Told late, it says nothing about what failed since.
        if at < self.last_strike {
            return false;
        }
        self.strikes = 0;
        std::mem::replace(&mut self.distrusted, false)
    }

    /// Ends the distrust if its time is over. Whether it did.
    pub(super) fn forgive(&mut self, now: Tick) -> bool {
        let over = self.distrusted && now >= self.until;
        self.distrusted &= !over;
        over
    }

    /// Whether others are better, whatever probes say.
    pub(super) const fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// How much longer it is distrusted.
    pub(super) fn distrusted_for(&self, now: Tick) -> Option<Duration> {
        self.distrusted.then(|| self.until.since(now))
    }
}

/// A peer with so many strikes is distrusted.
const LIMIT: u8 = 12;

/// Three of these in a row: one may be chance, two a broken destination.
const STRONG: u8 = 4;

/// Failures further apart than this are not in a row, whatever came in between.
const IN_A_ROW: Duration = Duration::from_secs(5 * 60);

/// How long a peer is distrusted for the first time: its owner may have noticed and mended it.
const PENALTY: Duration = Duration::from_secs(10 * 60);

/// Up to 160 minutes: one that never serves anybody then costs three clients a fail-over nine times a day.
const MOST_DOUBLINGS: u8 = 4;

/// Earlier lapses do not count any more when it was trusted for this long.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Tick {
        Tick::FIRST.plus(Duration::from_secs(second))
    }

    /// Strikes one after the other from this second on, until it is distrusted; how many it took.
    fn strikes(trust: &mut Trust, strike: Strike, from: u64) -> u64 {
        (0..100)
            .find(|n| trust.strike(strike, at(from + n), at(from + n)))
            .map_or(100, |n| n + 1)
    }

    #[test]
    fn three_strong_or_twelve_weak_strikes_in_a_row() {
        assert_eq!(strikes(&mut { Trust::NEW }, Strike::Strong, 0), 3);
        assert_eq!(strikes(&mut { Trust::NEW }, Strike::Weak, 0), 12);
    }

    #[test]
    fn serving_one_clears_it() {
        let mut trust = Trust::NEW;
        for n in 0..100 {
            assert!(!trust.strike(Strike::Strong, at(10 * n), at(10 * n)));
            assert!(!trust.strike(Strike::Strong, at(10 * n + 1), at(10 * n + 1)));
            assert!(!trust.served(at(10 * n + 2)));
        }
        strikes(&mut trust, Strike::Strong, 2000);
        assert!(!trust.served(at(1999)), "that was before");
        assert!(trust.is_distrusted());
        assert!(trust.served(at(2010)));
        assert!(!trust.is_distrusted());
    }

    #[test]
    fn what_fails_at_the_same_time_counts_once() {
        let mut trust = Trust::NEW;
        for _ in 0..1000 {
            assert!(!trust.strike(Strike::Strong, at(1), at(3)));
        }
        assert_eq!(strikes(&mut trust, Strike::Strong, 4), 2);
    }

    #[test]
    fn strikes_far_apart_are_not_in_a_row() {
        let mut trust = Trust::NEW;
        for n in 0..100 {
            assert!(!trust.strike(Strike::Strong, at(301 * n), at(301 * n)));
        }
    }

    #[test]
    fn each_time_it_takes_twice_as_long_up_to_a_limit() {
        let mut trust = Trust::NEW;
        let mut now = 0;
        let mut penalties = Vec::new();
        for _ in 0..7 {
            now += strikes(&mut trust, Strike::Strong, now) - 1;
            let penalty = trust.distrusted_for(at(now)).unwrap().as_secs();
            penalties.push(penalty / 60);
            assert!(!trust.forgive(at(now + penalty - 1)));
            now += penalty;
            assert!(trust.forgive(at(now)));
            assert_eq!(trust.distrusted_for(at(now)), None);
        }
        assert_eq!(penalties, [10, 20, 40, 80, 160, 160, 160]);
        // A day without a lapse, and it starts anew.
        now += 24 * 60 * 60;
        now += strikes(&mut trust, Strike::Strong, now) - 1;
        assert_eq!(trust.distrusted_for(at(now)), Some(PENALTY));
    }
}
