//! Old streams after `connect --drain`: they may go on for a while, then they are cut.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Forwarder;
use crate::engine::Cx;
use crate::forward::Epoch;

/// Cuts that are to come, in the order of their times.
#[derive(Debug, Default)]
pub(super) struct Drains {
    pending: VecDeque<Drain>,
}

/// Streams of earlier epochs end then, unless they are on the spared remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drain {
    at: Instant,
    before: Epoch,
    spared: Option<SocketAddr>,
}

impl Drains {
    fn add(&mut self, drain: Drain) {
        // A later choice that ends its streams sooner ends those of the earlier ones with them.
        self.pending.retain(|earlier| earlier.at < drain.at);
        if self.pending.len() >= MOST {
            self.pending.pop_back();
        }
        self.pending.push_back(drain);
    }

    /// The last one whose time has come, which includes those before it.
    fn take_due(&mut self, now: Instant) -> Option<Drain> {
        let mut due = None;
        while self.pending.front().is_some_and(|drain| drain.at <= now) {
            due = self.pending.pop_front();
        }
        due
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.pending.front().map(|drain| drain.at)
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }
}

impl Forwarder {
    /// Cuts the streams of all choices before the present one after this time, but for those of the remote in use. How many there
    /// are.
    pub(super) fn drain(&mut self, after: Duration, cx: &mut Cx<'_>) -> u64 {
        let spared = self.remote().and_then(|(address, _)| address);
        self.drains.add(Drain {
            at: cx.now + after,
            before: self.route.epoch(),
            spared,
        });
        cx.wake(self.steering);
        let older = self.older_streams();
        if older > 0 {
            log::info!(
                "{older} streams on other remotes are cut in {}",
                humantime::format_duration(after)
            );
        }
        older
    }

    pub(super) fn advance_drains(&mut self, now: Instant) {
        if let Some(drain) = self.drains.take_due(now) {
            let older = self.older_streams();
            if older > 0 {
                log::info!("time is up for streams on other remotes: {older} are cut");
            }
            self.route.drain(drain.before, drain.spared);
        }
    }

    /// How long until the streams of a remote are cut, if they are.
    pub(in crate::daemon) fn cut_in(
        &self,
        remote: Option<SocketAddr>,
        now: Instant,
    ) -> Option<Duration> {
        let cuts = |drain: &&Drain| remote.is_none() || drain.spared != remote;
        let drain = self.drains.pending.iter().find(cuts)?;
        Some(drain.at.saturating_duration_since(now))
    }

    /// Streams on other remotes than the one in use.
    fn older_streams(&self) -> u64 {
        let in_use = self.remote();
        let (address, name) = in_use.unzip();
        let passed_on = self.route.remotes();
        let passed_on = passed_on
            .iter()
            .filter(|counts| address != Some(Some(counts.remote)))
            .map(|counts| counts.live as u64);
        let converted = self.served.converted();
        let converted = converted
            .iter()
            .filter(|(proxy, _)| name.as_ref() != Some(proxy))
            .map(|(_, live)| *live as u64);
        passed_on.chain(converted).sum()
    }
}

/// Cuts that wait at the same time. Beyond, the streams of the last but one live as long as those of the last.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_choice_has_its_time_and_the_sooner_one_counts() {
        let now = Instant::now();
        let mut drains = Drains::default();
        let drain = |seconds, before| Drain {
            at: now + Duration::from_secs(seconds),
            before,
            spared: None,
        };
        drains.add(drain(30, 2));
        drains.add(drain(40, 3));
        assert_eq!(drains.next(), Some(drain(30, 0).at));
        assert_eq!(drains.take_due(drain(29, 0).at), None);
        assert_eq!(drains.take_due(drain(30, 0).at), Some(drain(30, 2)));
        drains.add(drain(35, 4));
        assert_eq!(drains.take_due(drain(50, 0).at), Some(drain(35, 4)));
        assert_eq!(drains.next(), None);
    }

    #[test]
    fn they_are_bounded() {
        let now = Instant::now();
        let mut drains = Drains::default();
        for number in 1..100 {
            drains.add(Drain {
                at: now + Duration::from_secs(number),
                before: usize::try_from(number).unwrap(),
                spared: None,
            });
        }
        assert_eq!(drains.pending.len(), MOST);
        let last = drains.take_due(now + Duration::from_secs(99)).unwrap();
        assert_eq!(last.before, 99);
    }
}
