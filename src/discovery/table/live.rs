//! What live traffic found out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::entry::{Doubt, Key};
use super::link::is_evidence;
use super::{Change, Table};
use crate::discovery::status::{Finding, Phase, Reason, Status};
use crate::discovery::trust::Strike;

impl Table {
    /// Takes in a failure that live traffic met, which counts at once.
    ///
    /// `started` is when the connect began: silence tells about the peer only if somebody else was heard since.
    /// A failed connect demotes the address like a failed probe. What happens after the connect (a reset, an early
    /// close, silence) may be the client's doing, since it decides what is sent: then the address stays valid, ranks
    /// behind all that have no failure, and a probe is due at once. [`Reason::RequestRefused`] does not even that, for the peer
    /// works. But when either happens several times in a row, the address is distrusted ([`Row::distrusted_for`](super::Row::distrusted_for)),
    /// whatever probes find. Local reasons change nothing.
    pub fn live_failure(
        &mut self,
        address: SocketAddr,
        reason: Reason,
        started: Instant,
        now: Instant,
    ) -> Option<Change> {
        if reason.is_local() {
            return None;
        }
        let finding = Finding::Failed { reason };
        if is_evidence(address, finding) {
            self.evidence(now);
        }
        let id = self.find(Key::new(address))?;
        let before = *self.entry(id)?;
        let connected = matches!(
            reason,
            Reason::Reset
                | Reason::ClosedEarly(_)
                | Reason::Sent(_)
                | Reason::Answered(_)
                | Reason::LoginRejected
                | Reason::TargetRefused(_)
                | Reason::RequestRefused(_)
                | Reason::TimedOut(Phase::Greeting | Phase::Target)
        );
        if before.status != Status::Valid {
            return None;
        }
        if connected {
            if !matches!(reason, Reason::RequestRefused(_)) {
                let tick = self.tick(now);
                self.judge(id, tick, |entry, merit| {
                    entry.failures = entry.failures.saturating_add(1);
                    entry.reason = reason;
                    entry.due = entry.due.min(tick);
                    merit.failed(tick);
                });
            }
            self.strike(id, Strike::Strong, started, now);
            return None;
        }
        let asked_already = before.doubt == Doubt::Suspect;
        if reason.is_silent() && self.doubt(id, started, now) {
            let tick = self.tick(now);
            self.modify(id, |entry| {
                entry.failures = entry.failures.saturating_add(1);
                if !asked_already {
                    entry.due = entry.due.min(tick);
                }
            });
            return None;
        }
        self.failure(id, Status::NotListening, reason, now)
    }

    /// A request was refused over a connection that was begun at `started`, and nobody is known to have served it. Most
    /// such destinations are down; only many in a row tell about the peer.
    pub fn live_refusal(&mut self, address: SocketAddr, started: Instant, now: Instant) {
        let Some(id) = self.find(Key::new(address)) else {
            return;
        };
        if self.no_blame_until.is_some_and(|until| now < until)
            || !self.strike(id, Strike::Weak, started, now)
        {
            return;
        }
        // When two are to blame, neither is: it is what clients ask for.
        let blamed = self.blamed.replace(id).filter(|blamed| *blamed != id);
        let other = blamed.filter(|blamed| {
            let merit = self.merits.get(blamed);
            merit.is_some_and(|merit| merit.trust.is_distrusted())
        });
        if let Some(other) = other {
            self.blamed = None;
            self.no_blame_until = Some(now + NO_BLAME);
            let tick = self.tick(now);
            for id in [id, other] {
                self.judge(id, tick, |entry, merit| {
                    merit.trust.served(tick);
                    if entry.status == Status::Valid {
                        merit.good(tick);
                    }
                });
            }
        }
    }

    /// Whether it comes after all others because it failed several clients in a row.
    #[must_use]
    pub fn is_distrusted(&self, address: SocketAddr) -> bool {
        let entry = self.find(Key::new(address)).and_then(|id| self.entry(id));
        entry.is_some_and(|entry| entry.distrusted)
    }

    /// Whether it is distrusted from now on.
    fn strike(&mut self, id: u32, strike: Strike, started: Instant, now: Instant) -> bool {
        let valid = self
            .entry(id)
            .is_some_and(|entry| entry.status == Status::Valid);
        if !valid {
            return false;
        }
        let (started, tick) = (self.tick(started), self.tick(now));
        let mut lapsed = false;
        self.judge(id, tick, |_, merit| {
            lapsed = merit.trust.strike(strike, started, tick);
            if lapsed {
                merit.failed(tick);
            }
        });
        lapsed
    }

    /// Live traffic got an answer through `address`, after `latency` if that is comparable with what probes measure. As good
    /// as a probe for a valid one, which need not be probed for a while; an address with another status is probed at once.
    /// `now` is when the answer came: one that is only told after peers fell silent is no evidence of anything since.
    pub fn live_success(&mut self, address: SocketAddr, latency: Option<Duration>, now: Instant) {
        if self.first_doubt.is_some_and(|doubt| now < doubt) {
            return;
        }
        if !address.ip().to_canonical().is_loopback() {
            self.evidence(now);
        }
        let tick = self.tick(now);
        let Some(id) = self.find(Key::new(address)) else {
            return;
        };
        let valid = self
            .entry(id)
            .is_some_and(|entry| entry.status == Status::Valid);
        if !valid {
            self.modify(id, |entry| entry.due = entry.due.min(tick));
            return;
        }
        // Twice the time after which the one in use is probed: while there are clients, the next of them comes before that.
        let recheck = self.later(now, self.recheck_interval() * 2);
        let interval = self.settings.interval;
        self.judge(id, tick, |entry, merit| {
            // After a failure there is no telling how it answered, but it did.
            if entry.reason.status() != Status::Valid {
                entry.reason = Reason::Answered(0);
            }
            entry.failures = 0;
            entry.doubt = Doubt::None;
            merit.last_valid = tick;
            if !merit.trust.is_distrusted() {
                merit.good(tick);
            }
            let due = match latency {
                Some(latency) => {
                    merit.measured(latency);
                    recheck
                }
                // Then only probes measure it: there is still one an interval.
                None => recheck.min(entry.last_probed.plus(interval)),
            };
            entry.due = entry.due.max(due);
        });
    }

    /// A client's request was served through `address` at `at`: it does what it says. Whether it was distrusted until now.
    pub fn live_served(&mut self, address: SocketAddr, at: Instant) -> bool {
        let Some(id) = self.find(Key::new(address)) else {
            return false;
        };
        // Most are not proxies that somebody doubts, and this is told often.
        if !self.merits.contains_key(&id) {
            return false;
        }
        let tick = self.tick(at);
        let mut lifted = false;
        self.judge(id, tick, |entry, merit| {
            lifted = merit.trust.served(tick);
            if lifted && entry.status == Status::Valid {
                merit.good(tick);
            }
        });
        lifted
    }
}

/// How long refusals tell nothing about peers, after two were refused everything: somebody may go on asking for what is not
/// there for days.
const NO_BLAME: Duration = Duration::from_secs(60 * 60);
