//! Names that a client sends to: what they came to, and the datagrams that wait for that.
//!
//! One name at a time is looked up, so a client holds one of the resolver's places at most. Datagrams to addresses go on
//! meanwhile.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::dropped::Dropped;
use crate::resolver::{Lookup, Resolver};
use crate::server::rules::NameVerdict;
use crate::wire::Name;

/// A name and a port: the rules may judge the same name with another port in another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: Name,
    pub(super) port: u16,
    pub(super) verdict: NameVerdict,
}

/// What a name came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These addresses, at least one, which the rules allow; the one in use is at that place.
    Addresses(Box<[SocketAddr]>, usize),
    /// None that could be sent to.
    Nothing(Dropped),
}

/// The names of one association.
#[derive(Default)]
pub(super) struct Names {
    /// The one used last is the last.
    known: Vec<Known>,
    waiting: VecDeque<Waiting>,
    under_way: Option<Box<UnderWay>>,
}

struct Known {
    place: Place,
    found: Found,
    until: Instant,
}

struct Waiting {
    place: Place,
    payload: Box<[u8]>,
}

struct UnderWay {
    place: Place,
    lookup: Lookup,
    until: Instant,
}

impl Place {
    fn is(&self, name: &Name, port: u16) -> bool {
        self.port == port && self.name.as_str().eq_ignore_ascii_case(name.as_str())
    }
}

impl Names {
    /// What is known of a name. Addresses stay in use as long as they are used: a name that has many keeps the one that a
    /// conversation began with.
    pub(super) fn find(&mut self, name: &Name, port: u16, now: Instant) -> Option<&mut Found> {
        let place = self.known.iter().rposition(|it| it.place.is(name, port))?;
        self.known.get_mut(place..)?.rotate_left(1);
        let known = self.known.last_mut()?;
        if now >= known.until {
            return None;
        }
        if let Found::Addresses(..) = known.found {
            known.until = now + NAME_HOLDS;
        }
        Some(&mut known.found)
    }

    /// Keeps a datagram until its name is known.
    ///
    /// # Errors
    /// [`Dropped::Queue`]: too much waits already.
    pub(super) fn wait(&mut self, place: Place, payload: &[u8]) -> Result<(), Dropped> {
        let bytes: usize = self.waiting.iter().map(|it| it.payload.len()).sum();
        let fits = self.waiting.is_empty()
            || (self.waiting.len() < MOST_WAITING && bytes + payload.len() <= MOST_BYTES_WAITING);
        if !fits {
            return Err(Dropped::Queue);
        }
        let payload = payload.into();
        self.waiting.push_back(Waiting { place, payload });
        Ok(())
    }

    /// Looks up the first name that is waited for, unless one is being looked up.
    pub(super) fn start(&mut self, resolver: &Resolver, patience: Duration, now: Instant) {
        if self.under_way.is_some() {
            return;
        }
        if let Some(first) = self.waiting.front() {
            let place = first.place.clone();
            self.under_way = Some(Box::new(UnderWay {
                lookup: resolver.lookup(place.name.as_str(), place.port),
                place,
                until: now + patience,
            }));
        }
    }

    /// The answer to the look-up under way, if it is there; without addresses if the name has none or nobody says in time.
    pub(super) fn answer(&mut self, now: Instant) -> Option<(Place, Vec<SocketAddr>)> {
        let under_way = self.under_way.as_mut()?;
        let addresses = match under_way.lookup.take() {
            Some(answer) => answer.unwrap_or_default(),
            None if now >= under_way.until => Vec::new(),
            None => return None,
        };
        let place = self.under_way.take()?.place;
        Some((place, addresses))
    }

    /// Remembers what a name came to, and gives the datagrams that waited for it, in their order. The address that was used
    /// before stays in use if it is among the new ones.
    pub(super) fn learn(
        &mut self,
        place: &Place,
        mut found: Found,
        now: Instant,
    ) -> Vec<Box<[u8]>> {
        let same = |it: &Known| it.place.is(&place.name, place.port);
        let before = self.known.iter().position(same);
        let before = before.map(|at| self.known.remove(at).found);
        if let (Some(Found::Addresses(old, at)), Found::Addresses(new, now_at)) =
            (before, &mut found)
            && let Some(used) = old.get(at)
        {
            *now_at = new.iter().position(|one| one == used).unwrap_or(*now_at);
        }
        if self.known.len() >= MOST_NAMES {
            self.known.remove(0);
        }
        let holds = match found {
            Found::Addresses(..) => NAME_HOLDS,
            Found::Nothing(_) => FAILURE_HOLDS,
        };
        self.known.push(Known {
            place: place.clone(),
            found,
            until: now + holds,
        });
        let mut released = Vec::new();
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(it) if it.place.is(&place.name, place.port) => released.push(it.payload),
                Some(other) => self.waiting.push_back(other),
                None => {}
            }
        }
        released
    }

    /// What becomes readable when the look-up under way is answered.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.under_way.as_ref()?.lookup.descriptor()
    }

    /// When the look-up under way is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        Some(self.under_way.as_ref()?.until)
    }
}

/// Under 5 KiB with the longest names.
const MOST_NAMES: usize = 16;

/// How long addresses stay in use after they were last sent to. A look-up here does not tell how long they hold; this is the
/// life that many name servers give them.
const NAME_HOLDS: Duration = Duration::from_secs(60);

/// How long a name without addresses is not asked for again: whoever repeats its question does so after some seconds.
const FAILURE_HOLDS: Duration = Duration::from_secs(5);

/// What comes faster than names are found is lost, as in any other queue.
const MOST_WAITING: usize = 8;

/// The same in bytes; a single datagram may be larger.
const MOST_BYTES_WAITING: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, port: u16) -> Place {
        Place {
            name: name.parse().unwrap(),
            port,
            verdict: NameVerdict::Open,
        }
    }

    fn addresses(text: &str) -> Found {
        let list = text.split(' ').map(|text| text.parse().unwrap()).collect();
        Found::Addresses(list, 0)
    }

    fn find(names: &mut Names, name: &str, now: Instant) -> bool {
        names.find(&name.parse().unwrap(), 53, now).is_some()
    }

    #[test]
    fn the_queue_is_bounded_in_datagrams_and_bytes() {
        let mut names = Names::default();
        for _ in 0..MOST_WAITING {
            assert_eq!(names.wait(place("a", 53), b"x"), Ok(()));
        }
        assert_eq!(names.wait(place("b", 53), b""), Err(Dropped::Queue));

        let mut names = Names::default();
        let half = vec![0; MOST_BYTES_WAITING / 2];
        assert_eq!(names.wait(place("a", 53), &half), Ok(()));
        assert_eq!(names.wait(place("b", 53), &half), Ok(()));
        assert_eq!(names.wait(place("c", 53), b"x"), Err(Dropped::Queue));

        let mut names = Names::default();
        assert_eq!(names.wait(place("a", 53), &[0; 65_000]), Ok(()));
        assert_eq!(names.wait(place("a", 53), b"x"), Err(Dropped::Queue));
    }

    #[test]
    fn what_waited_for_a_name_comes_out_in_order_and_others_stay() {
        let mut names = Names::default();
        let now = Instant::now();
        for (name, port, payload) in [
            ("a", 53, "1"),
            ("b", 53, "2"),
            ("A", 53, "3"),
            ("a", 54, "4"),
            ("a", 53, "5"),
        ] {
            names.wait(place(name, port), payload.as_bytes()).unwrap();
        }
        let found = addresses("1.1.1.1:53");
        let released = names.learn(&place("a", 53), found, now);
        assert_eq!(
            released.concat(),
            *b"135",
            "one name, whatever its case, and one port"
        );
        assert_eq!(names.waiting.len(), 2);
        assert!(find(&mut names, "A", now) && !find(&mut names, "b", now));
    }

    #[test]
    fn names_are_forgotten_the_least_recently_used_first() {
        let mut names = Names::default();
        let now = Instant::now();
        for number in 0..MOST_NAMES {
            let found = addresses("1.1.1.1:53");
            drop(names.learn(&place(&format!("n{number}"), 53), found, now));
        }
        assert!(find(&mut names, "n0", now));
        drop(names.learn(&place("new", 53), addresses("1.1.1.1:53"), now));
        assert_eq!(names.known.len(), MOST_NAMES);
        assert!(find(&mut names, "n0", now) && !find(&mut names, "n1", now));
    }

    #[test]
    fn addresses_hold_while_they_are_used_and_failures_briefly() {
        let mut names = Names::default();
        let mut now = Instant::now();
        drop(names.learn(&place("a", 53), addresses("1.1.1.1:53"), now));
        let nothing = Found::Nothing(Dropped::LookUp);
        drop(names.learn(&place("b", 53), nothing, now));
        assert!(find(&mut names, "b", now));
        assert!(!find(&mut names, "b", now + FAILURE_HOLDS));
        for _ in 0..10 {
            now += NAME_HOLDS / 2;
            assert!(find(&mut names, "a", now));
        }
        assert!(!find(&mut names, "a", now + NAME_HOLDS));
    }

    #[test]
    fn the_address_in_use_stays_in_use() {
        let mut names = Names::default();
        let now = Instant::now();
        let a = place("a", 53);
        for (answer, at) in [
            ("1.1.1.1:53", 0),
            ("2.2.2.2:53 1.1.1.1:53", 1),
            ("2.2.2.2:53 3.3.3.3:53", 0),
        ] {
            drop(names.learn(&a, addresses(answer), now));
            let found = names.find(&a.name, 53, now);
            assert!(
                matches!(found, Some(Found::Addresses(_, used)) if *used == at),
                "{answer}"
            );
        }
    }

    #[test]
    fn one_look_up_at_a_time_given_up_in_time() {
        let mut names = Names::default();
        let resolver = Resolver::default();
        let now = Instant::now();
        let patience = Duration::from_secs(5);
        names.start(&resolver, patience, now);
        assert!(names.until().is_none(), "nothing to look up");
        names.wait(place("localhost", 53), b"1").unwrap();
        names.wait(place("b", 53), b"2").unwrap();
        names.start(&resolver, patience, now);
        names.start(&resolver, patience, now + patience);
        assert_eq!(names.until(), Some(now + patience));
        let (answered, _) = names.answer(now + patience).unwrap();
        assert_eq!(answered, place("localhost", 53));
        assert!(names.until().is_none());
    }
}
