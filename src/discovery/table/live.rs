//! What live traffic found out.

use std::net::SocketAddr;
use std::time::Instant;

use super::entry::{Doubt, Key};
use super::link::is_evidence;
use super::{Change, Table};
use crate::discovery::status::{Finding, Phase, Reason, Status};

impl Table {
    /// Takes in a failure that live traffic met, which counts at once.
    ///
    /// `started` is when the connect began: silence tells about the peer only if somebody else was heard since.
    /// A failed connect demotes the address like a failed probe. What happens after the connect (a reset, an early
    /// close, silence) may be the client's doing, since it decides what is sent: then the address stays valid, ranks
    /// behind all that have no failure, and a probe is due at once. Local reasons change nothing.
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
                | Reason::TargetRefused(_)
                | Reason::TimedOut(Phase::Greeting | Phase::Target)
        );
        if before.status != Status::Valid || connected {
            let tick = self.tick(now);
            self.modify(id, |entry| {
                if entry.status == Status::Valid {
                    entry.failures = entry.failures.saturating_add(1);
                    entry.reason = reason;
                    entry.due = entry.due.min(tick);
                }
            });
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

    /// Live traffic got an answer through `address`: as good as a probe for a valid one, which need not be probed for a
    /// while; an address with another status is probed at once. `now` is when the answer came: one that is only told after
    /// peers fell silent is no evidence of anything since.
    pub fn live_success(&mut self, address: SocketAddr, now: Instant) {
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
        let recheck = self.later(now, self.recheck_interval());
        let interval = self.settings.interval;
        self.modify(id, |entry| {
            if entry.status == Status::Valid {
                entry.reason = Reason::Answered(0);
                entry.failures = 0;
                entry.doubt = Doubt::None;
                entry.last_valid = tick;
                // Latency is measured by probes only, so there is still one an interval.
                entry.due = entry.due.max(recheck.min(entry.last_probed.plus(interval)));
            } else {
                entry.due = entry.due.min(tick);
            }
        });
    }
}
