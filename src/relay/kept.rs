//! Bytes that were read and could not be written yet, counted over all relays.
//!
//! One slow reader costs little. Hundreds of them, each with a whole read that it left behind, are the memory of a router: when all
//! together have left as much as there is room for, reads become small, so that each leaves little.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where relays count what they keep. Clones share one count.
#[derive(Debug, Clone)]
pub struct Kept {
    tally: Arc<Tally>,
}

#[derive(Debug)]
struct Tally {
    room: usize,
    held: AtomicUsize,
}

impl Kept {
    /// Room for so many bytes. It bounds what reads ask for, not what they may have to keep then: nothing is ever lost.
    #[must_use]
    pub fn with_room(room: usize) -> Self {
        let held = AtomicUsize::new(0);
        Self {
            tally: Arc::new(Tally { room, held }),
        }
    }

    /// The most that one read should ask for now.
    pub(super) fn longest_read(&self) -> usize {
        if self.tally.held.load(Ordering::Relaxed) < self.tally.room {
            usize::MAX
        } else {
            SHORT_READ
        }
    }

    pub(super) fn keep(&self, bytes: Box<[u8]>) -> KeptBytes {
        self.tally.held.fetch_add(bytes.len(), Ordering::Relaxed);
        KeptBytes {
            bytes,
            written: 0,
            tally: Arc::clone(&self.tally),
        }
    }
}

/// Room for everything.
impl Default for Kept {
    fn default() -> Self {
        Self::with_room(usize::MAX)
    }
}

/// What was read and is still to be written.
#[derive(Debug)]
pub(super) struct KeptBytes {
    bytes: Box<[u8]>,
    written: usize,
    tally: Arc<Tally>,
}

impl KeptBytes {
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
    }
}

impl Drop for KeptBytes {
    fn drop(&mut self) {
        self.tally
            .held
            .fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// A page: less would cost a call for next to nothing.
const SHORT_READ: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_short_while_there_is_no_room() {
        let kept = Kept::with_room(100);
        assert_eq!(kept.longest_read(), usize::MAX);
        let first = kept.keep(vec![1; 60].into());
        let mut second = kept.clone().keep(vec![2; 60].into());
        assert_eq!(kept.longest_read(), SHORT_READ);
        second.wrote(59);
        assert_eq!(second.rest(), [2]);
        assert_eq!(kept.longest_read(), SHORT_READ, "it is still held");
        drop(second);
        assert_eq!(kept.longest_read(), usize::MAX);
        drop(first);
        assert_eq!(kept.tally.held.load(Ordering::Relaxed), 0);
    }
}
