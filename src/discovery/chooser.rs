//! Which peer is the remote: when to leave it, and for whom.
//!
//! - One that fails (a probe or a client found it bad, or it is distrusted) is left at once, for the best that is not in that
//!   state. With nobody better it stays.
//! - A silent one that may be silent because our own link is down stays, until somebody else has been heard: when all are
//!   silent, nothing is better than the last good choice.
//! - A good one is left for a better one only when that has been *clearly better*, with a score a quarter higher, for the
//!   *hold time*, three probe intervals, and has been good for as long. Peers that are nearly equal never take turns.
//! - A preferred one takes over whatever its score: at once if it never failed, else when it has been good for the hold time.
//! - For one that failed while it was chosen the hold time doubles with each time, up to three hours, for a day. So one that
//!   comes and goes, however good it looks in between, is chosen a few times a day.
//!
//! Pure: the time is passed in.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use humantime::format_duration;

use super::status::{Reason, Status};
use super::table::{Level, Row, Table};

/// Follows a table, and says when to change the choice.
#[derive(Debug)]
pub struct Chooser {
    hold: Duration,
    /// Since when somebody has been clearly better than the chosen one.
    outdone_since: Option<Instant>,
    asked: Option<Instant>,
    next: Option<Instant>,
    /// Those that failed while they were chosen, the latest last.
    left: Vec<Left>,
}

/// One that failed while it was chosen.
#[derive(Debug, Clone, Copy)]
struct Left {
    peer: SocketAddr,
    times: u32,
    at: Instant,
}

/// Why a peer is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// Nothing was chosen before.
    First,
    /// The one before became this.
    Failed(Status, Reason),
    /// The one before answers probes, but failed several clients in a row.
    Distrusted,
    /// The one before is in no list any more.
    Gone,
    /// Its score was clearly better than that of the one before, for the hold time.
    Better {
        /// Its own.
        score: f32,
        /// Of the one before.
        than: f32,
        /// The hold time.
        hold: Duration,
    },
    /// It comes before the other in the order of preference.
    Preferred,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("the first valid peer"),
            Self::Failed(status, reason) => write!(f, "the one before is {status} ({reason})"),
            Self::Distrusted => f.write_str(
                "the one before failed several clients in a row, though it answers probes",
            ),
            Self::Gone => f.write_str("the one before is in no list any more"),
            #[expect(clippy::cast_possible_truncation, reason = "scores end at 100")]
            Self::Better { score, than, hold } => write!(
                f,
                "clearly better for {}: score {}, not {}",
                format_duration(*hold),
                score.round() as u8,
                than.round() as u8
            ),
            Self::Preferred => f.write_str("preferred"),
        }
    }
}

impl Chooser {
    /// A chooser for a table whose addresses are probed this often.
    #[must_use]
    pub const fn new(probe_interval: Duration) -> Self {
        Self {
            hold: probe_interval.saturating_mul(HOLD),
            outdone_since: None,
            asked: None,
            next: None,
            left: Vec::new(),
        }
    }

    /// The peer to choose instead of `chosen`, if it is to change. `is_usable` is asked of those that come into question.
    ///
    /// To be asked whenever the table has changed, and at [`Chooser::next`].
    pub fn decide(
        &mut self,
        table: &Table,
        chosen: Option<SocketAddr>,
        is_usable: impl Fn(SocketAddr) -> bool,
        now: Instant,
    ) -> Option<(SocketAddr, Why)> {
        self.next = None;
        // After a sleep of the machine nobody knows what was the case meanwhile.
        let asked = self.asked.replace(now);
        if asked.is_some_and(|asked| now.saturating_duration_since(asked) > self.hold) {
            self.outdone_since = None;
        }
        let change = self.change(table, chosen, is_usable, now);
        if let Some((_, why)) = change {
            self.outdone_since = None;
            if let (Some(chosen), Why::Failed(..) | Why::Distrusted) = (chosen, why) {
                self.remember_leaving(chosen, now);
            }
        }
        change
    }

    /// Why a peer that could be chosen is not, in a few words. `None` if it cannot be, which its status says.
    #[must_use]
    pub fn why_not(&self, row: &Row, chosen: Option<&Row>, now: Instant) -> Option<String> {
        let seconds = |time: Duration| format_duration(Duration::from_secs(time.as_secs()));
        if !row.candidate {
            return Some("left out by the rules".to_owned());
        }
        if let (Level::Distrusted, Some(left)) = (row.level(), row.distrusted_for) {
            return Some(format!(
                "failed several clients in a row, after all others for {}",
                seconds(left)
            ));
        }
        match row.level() {
            Level::Bad => None,
            Level::Failing | Level::Distrusted => Some("failed a client".to_owned()),
            Level::Good if row.suspect => Some("silent, as others are".to_owned()),
            Level::Good => {
                let chosen = chosen.filter(|chosen| chosen.level() == Level::Good)?;
                let (hold, good_for) = (self.hold_of(row.address, now), row.good_for?);
                let clear = row.score? >= chosen.score? * TOLERANCE && place(row) == place(chosen);
                if place(row) < place(chosen) {
                    Some(format!(
                        "preferred, good for {} of {}",
                        seconds(good_for),
                        seconds(hold)
                    ))
                } else if place(row) > place(chosen) {
                    Some("a preferred one is good".to_owned())
                } else if let (true, Some(since)) = (clear, self.outdone_since) {
                    let held = now.saturating_duration_since(since).min(good_for);
                    Some(format!(
                        "clearly better for {} of {}",
                        seconds(held),
                        seconds(hold)
                    ))
                } else {
                    Some("not clearly better".to_owned())
                }
            }
        }
    }

    /// Something else has been chosen, by somebody else.
    pub const fn restart(&mut self) {
        self.outdone_since = None;
    }

    /// When to ask again though nothing happens.
    #[must_use]
    pub const fn next(&self) -> Option<Instant> {
        self.next
    }

    fn change(
        &mut self,
        table: &Table,
        chosen: Option<SocketAddr>,
        is_usable: impl Fn(SocketAddr) -> bool,
        now: Instant,
    ) -> Option<(SocketAddr, Why)> {
        let best: Vec<Row> = table
            .valid_best_first()
            .filter(|peer| Some(*peer) != chosen && is_usable(*peer))
            .take(LOOKED_AT)
            .filter_map(|peer| table.get(peer, now))
            .collect();
        let Some(chosen) = chosen else {
            return Some((best.first()?.address, Why::First));
        };
        let Some(chosen) = table.get(chosen, now) else {
            return Some((best.first()?.address, Why::Gone));
        };
        if chosen.level() != Level::Good {
            self.outdone_since = None;
            let best = best.first().filter(|best| best.level() < chosen.level())?;
            return Some((best.address, cause(&chosen)));
        }
        let good = || best.iter().filter(|row| row.level() == Level::Good);
        // A preferred one may have to wait; the next ones need not wait for it.
        let preferred = good()
            .filter(|row| place(row) < place(&chosen))
            .find(|row| row.never_failed || self.has_been_good(row, now));
        if let Some(preferred) = preferred {
            return Some((preferred.address, Why::Preferred));
        }
        let challenger = good()
            .filter(|row| place(row) == place(&chosen) && self.is_fresh(row))
            .max_by(|one, other| {
                one.score
                    .unwrap_or(0.0)
                    .total_cmp(&other.score.unwrap_or(0.0))
            });
        let (score, than) = (challenger?.score?, chosen.score?);
        if score < than * TOLERANCE || !self.is_fresh(&chosen) {
            self.outdone_since = None;
            return None;
        }
        let until = *self.outdone_since.get_or_insert(now) + self.hold;
        if now < until {
            self.look_again(until);
            return None;
        }
        let challenger = challenger.filter(|row| self.has_been_good(row, now))?;
        let hold = self.hold;
        Some((challenger.address, Why::Better { score, than, hold }))
    }

    fn has_been_good(&mut self, row: &Row, now: Instant) -> bool {
        let Some(good_for) = row.good_for else {
            return false;
        };
        match self.hold_of(row.address, now).checked_sub(good_for) {
            None | Some(Duration::ZERO) => true,
            Some(missing) => {
                self.look_again(now + missing);
                false
            }
        }
    }

    /// How long one has to be good before it is chosen: twice as long each time that it has failed while it was chosen.
    fn hold_of(&self, peer: SocketAddr, now: Instant) -> Duration {
        let times = self.times_left(peer, now);
        self.hold
            .saturating_mul(1 << times.saturating_sub(1).min(MOST_DOUBLINGS))
    }

    fn times_left(&self, peer: SocketAddr, now: Instant) -> u32 {
        let left = self.left.iter().find(|left| left.peer == peer);
        left.filter(|left| now.saturating_duration_since(left.at) < FORGOTTEN)
            .map_or(0, |left| left.times)
    }

    fn remember_leaving(&mut self, peer: SocketAddr, now: Instant) {
        let times = self.times_left(peer, now).saturating_add(1);
        self.left.retain(|left| left.peer != peer);
        if self.left.len() >= MOST_LEFT {
            self.left.remove(0);
        }
        self.left.push(Left {
            peer,
            times,
            at: now,
        });
    }

    /// Whether what is known of it is of today: after a machine has slept, everybody has been good for hours.
    fn is_fresh(&self, row: &Row) -> bool {
        row.last_valid.is_some_and(|ago| ago <= self.hold)
    }

    fn look_again(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

fn place(row: &Row) -> u32 {
    row.preferred.unwrap_or(u32::MAX)
}

fn cause(row: &Row) -> Why {
    match row.level() {
        Level::Distrusted => Why::Distrusted,
        Level::Good | Level::Failing | Level::Bad => Why::Failed(row.status, row.reason),
    }
}

/// How much higher the score of a clearly better one is: 20 ms and 50 ms differ by as much, 20 ms and 30 ms do not.
const TOLERANCE: f32 = 1.25;

/// The hold time in probe intervals: with three, what one probe has seen is not enough.
const HOLD: u32 = 3;

/// Up to 64 hold times, three hours.
const MOST_DOUBLINGS: u32 = 6;

/// One that has not failed for so long while it was chosen is as good as any other.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

/// How many of those that failed are remembered, which is more than are chosen a day.
const MOST_LEFT: usize = 64;

/// The best peers, among which the next choice is.
const LOOKED_AT: usize = 8;

#[cfg(test)]
mod tests;
