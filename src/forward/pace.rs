//! How long remotes take to answer, as clients have seen it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The paces of the remotes that answered last, each smoothed.
///
/// Without them a remote far away would hesitate for every client, who would then ask a second one for nothing.
#[derive(Default)]
pub(super) struct Paces(Mutex<Vec<(SocketAddr, Duration)>>);

impl Paces {
    /// How long this remote may take before it is slow for what it is: twice its pace, if that is known.
    pub(super) fn allowance(&self, remote: SocketAddr) -> Option<Duration> {
        self.locked(|paces| {
            let (_, pace) = paces.iter().find(|(address, _)| *address == remote)?;
            Some((*pace * 2).min(MOST))
        })
    }

    /// It took that long to answer.
    pub(super) fn note(&self, remote: SocketAddr, took: Duration) {
        self.locked(|paces| {
            if let Some((_, pace)) = paces.iter_mut().find(|(address, _)| *address == remote) {
                *pace = (*pace * 7 + took) / 8;
                return;
            }
            if paces.len() >= KNOWN {
                paces.remove(0);
            }
            paces.push((remote, took));
        });
    }

    fn locked<T>(&self, ask: impl FnOnce(&mut Vec<(SocketAddr, Duration)>) -> T) -> T {
        ask(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// As many candidates as there are at a time, and some that were.
const KNOWN: usize = 32;

/// More is slow, wherever a remote is: by a satellite far out and back again takes less.
const MOST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    #[test]
    fn paces_are_smoothed_and_bounded() {
        let paces = Paces::default();
        assert_eq!(paces.allowance(at(1)), None);
        let millis = Duration::from_millis;
        paces.note(at(1), millis(400));
        assert_eq!(paces.allowance(at(1)), Some(millis(800)));
        paces.note(at(1), millis(800));
        assert_eq!(paces.allowance(at(1)), Some(millis(900)));
        paces.note(at(2), Duration::from_secs(60));
        assert_eq!(paces.allowance(at(2)), Some(MOST));
        for number in 3..100 {
            paces.note(at(number), millis(1));
        }
        assert_eq!(paces.0.lock().unwrap().len(), KNOWN);
        assert_eq!(paces.allowance(at(1)), None);
    }
}
