//! Whether a silent peer is at fault, or our own link is. The rules are told in [`table`](super).

use std::net::SocketAddr;
use std::time::Instant;

use super::entry::Doubt;
use super::{SOON, Table};
use crate::discovery::status::{Finding, Reason, Status};

impl Table {
    /// Whether our own link seems to be down: several valid addresses, all silent, and nobody answered since.
    #[must_use]
    pub const fn link_down(&self) -> bool {
        self.remote_suspects > 1 && self.remote_suspects == self.remote_valid
    }

    /// Whether a silent failure of a probe started at `started` is to be doubted; if so it has been dealt with.
    pub(super) fn doubt(&mut self, id: u32, started: Instant, now: Instant) -> bool {
        let Some(entry) = self.entry(id).copied() else {
            return false;
        };
        let link_down = self.link_down();
        let may_be_us = entry.doubt != Doubt::Disproved
            && !entry.key.is_loopback()
            && self.last_evidence.is_none_or(|evidence| evidence < started)
            && (link_down || (entry.status == Status::Valid && self.remote_valid > 1));
        if !may_be_us {
            return false;
        }
        let valid = entry.status == Status::Valid;
        let delay = if valid {
            // As long again as the doubts have lasted: probes get rarer while the link stays down.
            let first = *self.first_doubt.get_or_insert(now);
            now.saturating_duration_since(first)
                .clamp(SOON.min(self.settings.interval), self.settings.interval)
        } else {
            self.back_off(id, entry.failures)
        };
        let due = self.later(now, delay);
        self.modify(id, |entry| {
            if valid {
                entry.doubt = Doubt::Suspect;
            }
            if valid || entry.status == Status::Unknown {
                entry.reason = Reason::LinkSuspected;
            }
            entry.due = due;
        });
        if valid {
            self.ask_others(now);
        }
        true
    }

    /// Makes the best valid addresses that are not suspects due at once, to learn whether the link works.
    pub(super) fn ask_others(&mut self, now: Instant) {
        let tick = self.tick(now);
        let others: Vec<u32> = self
            .ranking
            .iter()
            .filter(|(rank, id)| {
                !rank.key.is_loopback()
                    && self
                        .entry(**id)
                        .is_some_and(|entry| entry.doubt == Doubt::None)
            })
            .map(|(_, id)| *id)
            .take(WITNESSES)
            .collect();
        for id in others {
            self.modify(id, |entry| entry.due = entry.due.min(tick));
        }
    }

    /// Somebody on another machine answered: the link works.
    pub(super) fn evidence(&mut self, now: Instant) {
        self.last_evidence = self.last_evidence.max(Some(now));
        self.first_doubt = None;
        if self.remote_suspects == 0 {
            return;
        }
        let tick = self.tick(now);
        let suspects: Vec<u32> = self
            .ranking
            .values()
            .copied()
            .filter(|id| {
                self.entry(*id)
                    .is_some_and(|entry| entry.doubt == Doubt::Suspect)
            })
            .collect();
        for id in suspects {
            self.modify(id, |entry| {
                entry.doubt = Doubt::Disproved;
                entry.due = entry.due.min(tick);
            });
        }
    }
}

/// How many valid addresses are asked at once when one of them is silent and the own link may be the cause.
const WITNESSES: usize = 2;

/// Whether a finding proves that our link works: something came back, and not from this machine itself.
pub(super) fn is_evidence(address: SocketAddr, finding: Finding) -> bool {
    let reason = finding.reason();
    !reason.is_local() && !reason.is_silent() && !address.ip().to_canonical().is_loopback()
}
