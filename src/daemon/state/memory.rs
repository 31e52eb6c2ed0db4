//! Which addresses are remembered, and when that is worth a write. The time is passed in.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::file::MOST_ADDRESSES;

/// Addresses that were ever valid, the one to start with first, and what of it is on disk.
#[derive(Debug)]
pub(super) struct Memory {
    addresses: Vec<SocketAddr>,
    on_disk: Vec<SocketAddr>,
    under_way: Option<Vec<SocketAddr>>,
    next_write: Instant,
}

impl Memory {
    /// Starts with what the file holds, written so long ago if that is known.
    pub(super) fn new(addresses: Vec<SocketAddr>, age: Option<Duration>, now: Instant) -> Self {
        // A program that crashes and is started again and again writes no more often than one that runs.
        let rest = age.and_then(|age| PAUSE.checked_sub(age));
        Self {
            on_disk: addresses.clone(),
            addresses,
            under_way: None,
            next_write: now + rest.unwrap_or_default().max(FIRST),
        }
    }

    /// The addresses, the one to start with first.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes in who was ever valid, as far as the table knows, best first, and which one is in use. Those that it has forgotten
    /// stay behind them as long as there is room.
    pub(super) fn learn(
        &mut self,
        in_use: Option<SocketAddr>,
        ever_valid: impl IntoIterator<Item = SocketAddr>,
    ) {
        let mut known = HashSet::new();
        let mut addresses: Vec<SocketAddr> = ever_valid
            .into_iter()
            .chain(self.addresses.iter().copied())
            .filter(|address| known.insert(*address))
            .take(MOST_ADDRESSES)
            .collect();
        // One that was named by hand and never answered is nothing to start with.
        if let Some(place) = addresses
            .iter()
            .position(|address| Some(*address) == in_use)
            && let Some(first) = addresses.get_mut(..=place)
        {
            first.rotate_right(1);
        }
        self.addresses = addresses;
    }

    /// What is to be written now, if anything is: that counts as a write, whatever becomes of it.
    pub(super) fn due(&mut self, now: Instant) -> Option<Vec<SocketAddr>> {
        if self.under_way.is_some() || now < self.next_write || !self.has_news() {
            return None;
        }
        self.next_write = now + PAUSE;
        self.under_way = Some(self.addresses.clone());
        self.under_way.clone()
    }

    /// The write that was due has ended.
    pub(super) fn written(&mut self, outcome: Outcome) {
        if let (Some(addresses), Outcome::Done) = (self.under_way.take(), outcome) {
            self.on_disk = addresses;
        }
    }

    /// What is to be written at the end of the program.
    pub(super) fn unwritten(&self) -> Option<&[SocketAddr]> {
        // One that is under way may still fail: better twice than not at all.
        self.has_news().then_some(&self.addresses)
    }

    /// The order behind the first changes with each probe, and is not worth a write.
    fn has_news(&self) -> bool {
        let set = |list: &[SocketAddr]| list.iter().copied().collect::<HashSet<_>>();
        self.addresses.first() != self.on_disk.first()
            || (self.addresses.len(), set(&self.addresses))
                != (self.on_disk.len(), set(&self.on_disk))
    }
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is on disk.
    Done,
    /// It is not.
    Failed,
}

/// From one write to the next. 96 of a few kilobytes a day are 35,000 a year: flash that bears 10,000 erasures of a block bears
/// that for decades, since its file system spreads them.
pub(super) const PAUSE: Duration = Duration::from_secs(15 * 60);

/// From the start to the first write: what the first round of probes found is then there.
pub(super) const FIRST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    fn addresses(numbers: &[u16]) -> Vec<SocketAddr> {
        numbers.iter().copied().map(address).collect()
    }

    fn memory(numbers: &[u16], now: Instant) -> Memory {
        Memory::new(addresses(numbers), None, now)
    }

    #[test]
    fn the_one_in_use_comes_first_and_the_forgotten_last() {
        let mut memory = memory(&[8, 9], Instant::now());
        memory.learn(Some(address(2)), addresses(&[1, 2, 3]));
        assert_eq!(memory.addresses(), addresses(&[2, 1, 3, 8, 9]));
        memory.learn(Some(address(7)), addresses(&[9, 1]));
        assert_eq!(memory.addresses(), addresses(&[9, 1, 2, 3, 8]));
        memory.learn(None, []);
        assert_eq!(memory.addresses(), addresses(&[9, 1, 2, 3, 8]));
    }

    #[test]
    fn those_that_were_valid_longest_ago_make_room() {
        let mut memory = memory(&[1, 2], Instant::now());
        let many: Vec<_> = (10..).map(address).take(MOST_ADDRESSES - 1).collect();
        memory.learn(None, many.clone());
        assert_eq!(memory.addresses().len(), MOST_ADDRESSES);
        assert_eq!(memory.addresses().last(), Some(&address(1)));
    }

    #[test]
    fn nothing_new_is_never_written() {
        let now = Instant::now();
        let mut memory = memory(&[1, 2, 3], now);
        memory.learn(Some(address(1)), addresses(&[3, 2]));
        assert_eq!(memory.addresses(), addresses(&[1, 3, 2]));
        assert_eq!(memory.due(now + PAUSE * 10), None);
        assert_eq!(memory.unwritten(), None);
        memory.learn(Some(address(3)), []);
        assert_eq!(memory.due(now + PAUSE * 10), Some(addresses(&[3, 1, 2])));
    }

    #[test]
    fn a_day_of_constant_change_has_96_writes() {
        const DAY: u64 = 24 * 60 * 60;
        let start = Instant::now();
        let mut memory = memory(&[], start);
        let mut writes = 0;
        for second in (0..DAY).step_by(30) {
            let now = start + Duration::from_secs(second);
            let number = u16::try_from(second % 60_000).unwrap();
            memory.learn(Some(address(number)), [address(number)]);
            if memory.due(now).is_some() {
                writes += 1;
                // A full disk is not tried more often either.
                memory.written(match writes % 2 {
                    0 => Outcome::Done,
                    _ => Outcome::Failed,
                });
            }
        }
        assert_eq!(writes, 96);
    }

    #[test]
    fn a_program_that_crashes_again_and_again_writes_no_more_often() {
        let now = Instant::now();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for (age, first) in [
            (None, FIRST),
            (Some(minutes(0)), PAUSE),
            (Some(minutes(5)), minutes(10)),
            (Some(PAUSE), FIRST),
            (Some(minutes(50_000)), FIRST),
        ] {
            let mut memory = Memory::new(Vec::new(), age, now);
            memory.learn(None, addresses(&[1]));
            assert_eq!(memory.due(now + first - Duration::from_secs(1)), None);
            assert!(memory.due(now + first).is_some(), "{age:?}");
        }
    }

    #[test]
    fn a_write_that_failed_is_tried_again_later_and_at_the_end() {
        let now = Instant::now();
        let mut memory = memory(&[], now);
        memory.learn(None, addresses(&[1]));
        let at = now + FIRST;
        assert!(memory.due(at).is_some());
        assert_eq!(memory.due(at + PAUSE), None, "one at a time");
        memory.written(Outcome::Failed);
        assert_eq!(memory.due(at + PAUSE - FIRST), None);
        assert_eq!(memory.unwritten(), Some(addresses(&[1]).as_slice()));
        assert!(memory.due(at + PAUSE).is_some());
        memory.written(Outcome::Done);
        assert_eq!(memory.unwritten(), None);
    }
}
