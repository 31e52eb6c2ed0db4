//! How many lines of one kind are shown: those of one place in the program are of one kind.

use std::fmt;
use std::time::{Duration, Instant};

use log::Level;

/// Counts lines by the place in the program that they come from. There are as many as the program has calls, less than a
/// hundred.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    kinds: Vec<Kind>,
}

/// A file of the program and a line of it.
type Place = (&'static str, Option<u32>);

#[derive(Debug)]
struct Kind {
    place: Place,
    since: Instant,
    shown: u32,
    held: Option<Held>,
}

/// Lines that were not shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) level: Level,
    pub(super) count: u64,
    /// The last of them, of bounded length.
    pub(super) last: String,
}

impl Limiter {
    /// Whether to show this line. If not, it is held.
    pub(super) fn take(
        &mut self,
        place: Place,
        level: Level,
        text: &fmt::Arguments<'_>,
        now: Instant,
    ) -> bool {
        let known = self.kinds.iter_mut().find(|kind| kind.place == place);
        let Some(kind) = known else {
            self.kinds.push(Kind {
                place,
                since: now,
                shown: 1,
                held: None,
            });
            return true;
        };
        if now.saturating_duration_since(kind.since) >= WINDOW {
            kind.since = now;
            kind.shown = 0;
        }
        if kind.shown < SHOWN {
            kind.shown += 1;
            return true;
        }
        let held = kind.held.get_or_insert_with(|| Held {
            level,
            count: 0,
            last: String::new(),
        });
        held.count += 1;
        held.last = text.to_string();
        if let Some((at, _)) = held.last.char_indices().nth(LONGEST) {
            held.last.truncate(at);
        }
        false
    }

    /// What was held since this was asked last.
    pub(super) fn held(&mut self) -> Vec<Held> {
        self.kinds
            .iter_mut()
            .filter_map(|kind| kind.held.take())
            .collect()
    }
}

/// Of one kind in one window: what an admin reads at once. More say nothing new, and fill the log of a router, which is in its
/// memory.
const SHOWN: u32 = 30;

const WINDOW: Duration = Duration::from_secs(60);

/// Characters that are kept of a line that was not shown: about what most have.
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn take(limiter: &mut Limiter, place: Place, text: &str, now: Instant) -> bool {
        limiter.take(place, Level::Warn, &format_args!("{text}"), now)
    }

    #[test]
    fn one_kind_is_shown_so_often_a_minute_and_the_rest_counted() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let (one, other) = (("a", Some(1)), ("a", Some(2)));
        for _ in 0..SHOWN {
            assert!(take(&mut limiter, one, "x", start));
        }
        assert_eq!(limiter.held(), []);
        assert!(!take(&mut limiter, one, "x", start));
        let long = "é".repeat(1000);
        assert!(!take(&mut limiter, one, &long, start + WINDOW / 2));
        assert!(take(&mut limiter, other, "x", start), "another kind");
        let held = limiter.held();
        assert_eq!(held.len(), 1);
        assert_eq!((held[0].count, held[0].level), (2, Level::Warn));
        assert_eq!(held[0].last, "é".repeat(LONGEST));
        assert_eq!(limiter.held(), [], "told once");
        assert!(!take(&mut limiter, one, "x", start + WINDOW / 2));
        assert!(take(&mut limiter, one, "x", start + WINDOW));
        assert_eq!(limiter.held().len(), 1);
    }
}
