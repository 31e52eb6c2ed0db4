//! Probes under way, by entry.

use std::time::Instant;

use super::entry::Tick;

/// A probe under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) started: Instant,
    /// When it was due: a cancelled one is so again.
    pub(super) due: Tick,
}

/// All of them, in the order of their entries' numbers. There are not many at a time, so a list does, which is less program than
/// a tree.
#[derive(Debug, Default)]
pub(super) struct Flights(Vec<(u32, Flight)>);

impl Flights {
    fn place(&self, id: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id)
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.place(id).is_ok()
    }

    pub(super) fn insert(&mut self, id: u32, flight: Flight) {
        match self.place(id) {
            Ok(place) => {
                if let Some((_, old)) = self.0.get_mut(place) {
                    *old = flight;
                }
            }
            Err(place) => self.0.insert(place, (id, flight)),
        }
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Flight> {
        let place = self.place(id).ok()?;
        Some(self.0.remove(place).1)
    }

    pub(super) fn take_all(&mut self) -> Vec<(u32, Flight)> {
        std::mem::take(&mut self.0)
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_has_one_probe_and_is_found_again() {
        let (now, mut flights) = (Instant::now(), Flights::default());
        let flight = |due| Flight { started: now, due };
        for id in [7, 3, 9, 3] {
            flights.insert(id, flight(Tick::FIRST));
        }
        assert_eq!(flights.len(), 3);
        flights.insert(9, flight(Tick::NEVER));
        assert_eq!(
            flights.remove(9).map(|flight| flight.due),
            Some(Tick::NEVER)
        );
        assert!(flights.remove(9).is_none());
        assert!(!flights.contains(9) && flights.contains(3));
        let left: Vec<u32> = flights.take_all().into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, [3, 7]);
        assert_eq!(flights.len(), 0);
    }
}
