//! What was carried, in total and by remote.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Bytes of all connections so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// From clients to remotes.
    pub up: u64,
    /// From remotes to clients.
    pub down: u64,
}

/// The first answer of a remote to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whose.
    pub remote: SocketAddr,
    /// When it came.
    pub at: Instant,
    /// How long it took from the start of the connect, where nobody but the remote was waited for.
    pub took: Option<Duration>,
}

/// What one remote did for clients. The first [`MOST_REMOTES`] in use are told apart; one that carries nothing makes room for
/// another, and starts from nothing when it is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteCounts {
    /// Which one.
    pub remote: SocketAddr,
    /// Streams that it carries now.
    pub live: usize,
    /// Streams that it has carried, those of now included.
    pub taken: u64,
    /// Times that it could not serve a client.
    pub failed: u64,
    /// Bytes that it has carried.
    pub bytes: Totals,
}

/// The books of one forwarder.
#[derive(Default)]
pub(super) struct Books {
    pub(super) totals: Totals,
    /// The last one. One is enough: it is asked for the remote in use.
    pub(super) answered: Option<Answer>,
    /// The remote that served a request last, and when.
    pub(super) served: Option<(SocketAddr, Instant)>,
    remotes: Vec<Page>,
    /// Counts uses.
    clock: u64,
}

struct Page {
    counts: RemoteCounts,
    used: u64,
}

impl Books {
    /// A remote takes a stream. Where it is counted, until [`Books::ended`]; nowhere when too many others carry some.
    pub(super) fn began(&mut self, remote: SocketAddr) -> Option<usize> {
        let place = self.place(remote)?;
        let counts = self.at(place)?;
        counts.live += 1;
        counts.taken += 1;
        Some(place)
    }

    pub(super) fn ended(&mut self, place: usize) {
        if let Some(counts) = self.at(place) {
            counts.live = counts.live.saturating_sub(1);
        }
    }

    pub(super) fn failed(&mut self, remote: SocketAddr) {
        if let Some(place) = self.place(remote)
            && let Some(counts) = self.at(place)
        {
            counts.failed += 1;
        }
    }

    pub(super) fn moved(&mut self, place: Option<usize>, up: u64, down: u64) {
        let add = |totals: &mut Totals| {
            totals.up += up;
            totals.down += down;
        };
        add(&mut self.totals);
        if let Some(counts) = place.and_then(|place| self.at(place)) {
            add(&mut counts.bytes);
        }
    }

    pub(super) fn remotes(&self) -> Vec<RemoteCounts> {
        self.remotes.iter().map(|page| page.counts).collect()
    }

    fn at(&mut self, place: usize) -> Option<&mut RemoteCounts> {
        self.remotes.get_mut(place).map(|page| &mut page.counts)
    }

    /// The page of a remote, a new one if there is room.
    fn place(&mut self, remote: SocketAddr) -> Option<usize> {
        self.clock += 1;
        let used = self.clock;
        let known = |page: &Page| page.counts.remote == remote;
        if let Some(place) = self.remotes.iter().position(known) {
            if let Some(page) = self.remotes.get_mut(place) {
                page.used = used;
            }
            return Some(place);
        }
        let counts = RemoteCounts {
            remote,
            live: 0,
            taken: 0,
            failed: 0,
            bytes: Totals::default(),
        };
        let page = Page { counts, used };
        if self.remotes.len() < MOST_REMOTES {
            self.remotes.push(page);
            return Some(self.remotes.len() - 1);
        }
        let idle = self.remotes.iter().enumerate();
        let idle = idle.filter(|(_, page)| page.counts.live == 0);
        let (place, _) = idle.min_by_key(|(_, page)| page.used)?;
        *self.remotes.get_mut(place)? = page;
        Some(place)
    }
}

/// Remotes with counts of their own. A forwarder uses few, one after the other; the limit is for years of use.
pub const MOST_REMOTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(port: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).unwrap()))
    }

    fn counts(books: &Books, port: usize) -> Option<(usize, u64, u64, u64, u64)> {
        let all = books.remotes();
        let one = all.iter().find(|one| one.remote == remote(port))?;
        let Totals { up, down } = one.bytes;
        Some((one.live, one.taken, one.failed, up, down))
    }

    #[test]
    fn each_remote_has_its_own_counts() {
        let mut books = Books::default();
        let one = books.began(remote(1));
        let two = books.began(remote(2));
        assert_eq!(books.began(remote(1)), one);
        books.moved(one, 3, 4);
        books.moved(two, 10, 20);
        books.moved(None, 100, 200);
        books.failed(remote(2));
        books.ended(one.unwrap());
        assert_eq!(counts(&books, 1), Some((1, 2, 0, 3, 4)));
        assert_eq!(counts(&books, 2), Some((1, 1, 1, 10, 20)));
        assert_eq!(books.totals, Totals { up: 113, down: 224 });
    }

    #[test]
    fn the_idle_one_that_was_used_longest_ago_makes_room() {
        let mut books = Books::default();
        for port in 0..MOST_REMOTES {
            let place = books.began(remote(port)).unwrap();
            if port != 5 {
                books.ended(place);
            }
        }
        books.failed(remote(0));
        for port in [100, 101] {
            assert!(books.began(remote(port)).is_some());
        }
        assert_eq!(books.remotes().len(), MOST_REMOTES);
        assert_eq!(counts(&books, 0), Some((0, 1, 1, 0, 0)), "used since");
        assert_eq!((counts(&books, 1), counts(&books, 2)), (None, None));
        assert_eq!(counts(&books, 5), Some((1, 1, 0, 0, 0)), "in use");
    }

    #[test]
    fn where_all_are_busy_only_the_total_is_counted() {
        let mut books = Books::default();
        for port in 0..MOST_REMOTES {
            books.began(remote(port));
        }
        let place = books.began(remote(100));
        assert_eq!(place, None);
        books.moved(place, 1, 1);
        books.failed(remote(100));
        assert_eq!(books.totals, Totals { up: 1, down: 1 });
        assert_eq!(books.remotes().len(), MOST_REMOTES);
    }
}
