//! The remote in automatic mode: the best valid peer, and who stands in for it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Forwarder, Plan, chain};
use crate::choice::Mode;
use crate::discovery::Why;
use crate::discovery::status::Status;
use crate::discovery::table::{Row, Table};
use crate::engine::{Cx, Shared};
use crate::forward::{Candidate, Choice, Patience};
use crate::listen::BindError;

impl Forwarder {
    /// Makes a peer the remote.
    pub(super) fn select(&mut self, selected: SocketAddr, why: &str, cx: &mut Cx<'_>) {
        let before = self.remote().map(|(_, name)| name);
        if before.as_deref() != Some(&selected.to_string()) {
            match before {
                Some(before) => log::info!("remote is now {selected}, was {before}: {why}"),
                None => log::info!("remote is {selected} ({why})"),
            }
        }
        if matches!(self.plan, Plan::Explicit(_)) {
            self.watch_by_hand(Vec::new(), Vec::new(), cx);
        }
        self.stop_converting();
        self.plan = Plan::Automatic { selected };
        self.chosen_because = why.to_owned();
        self.chooser.restart();
        self.discovery
            .borrow_mut()
            .table
            .set_selected(Some(selected), cx.now);
        let choice = self.automatic_choice(selected);
        self.switch(choice);
    }

    pub(super) fn automatic_choice(&self, selected: SocketAddr) -> Choice {
        let discovery = self.discovery.borrow();
        let own = self.own.borrow();
        let others = discovery
            .table
            .valid_best_first()
            .filter(|peer| *peer != selected && !own.is_own(*peer));
        let candidate = |address| Candidate {
            login: discovery.logins().shared(address),
            ..Candidate::from(address)
        };
        let mut candidates: Vec<Candidate> = others.take(STAND_INS).map(candidate).collect();
        let place = self.place_of(selected, &candidates, &discovery.table);
        // Who can do without a remote need not wait for one that does not answer.
        let only_valid = self.served.serves_without_remote();
        let is_valid = |peer| {
            let row = discovery.table.get(peer, Instant::now());
            row.is_some_and(|row| row.status == Status::Valid)
        };
        if !only_valid || self.restart.is_unproved(selected) || is_valid(selected) {
            candidates.insert(place, candidate(selected));
        }
        // With few valid ones, those that were: one that came back is found by a client as soon as by a probe.
        let missing = FEW.saturating_sub(candidates.len());
        if missing > 0 && !only_valid {
            let lost = discovery.table.lost_latest_first(FEW);
            let lost = lost
                .into_iter()
                .filter(|peer| *peer != selected && !own.is_own(*peer));
            candidates.extend(lost.take(missing).map(candidate));
        }
        Choice {
            candidates,
            patience: Patience::Limited,
            is_awaited: self.restart.is_under_way(),
        }
    }

    /// Where the chosen one stands among the others: first, unless it is silent and it is not known yet whether it or our own
    /// link is down. Then it stays the chosen one, but clients need not wait for it.
    fn place_of(&self, selected: SocketAddr, others: &[Candidate], table: &Table) -> usize {
        let now = Instant::now();
        let is_failing = |address| table.get(address, now).is_some_and(|row| row.failures > 0);
        let in_doubt = table
            .get(selected, now)
            .is_some_and(|row| row.suspect && row.failures > 0);
        if in_doubt {
            let good = others.iter().take_while(|one| !is_failing(one.address));
            good.count()
        } else {
            0
        }
    }

    /// With nobody valid left, those that were are asked again soon, then less and less often.
    fn look_for_lost(&mut self, best: Option<SocketAddr>, cx: &mut Cx<'_>) {
        if best.is_some() || !matches!(self.plan, Plan::Automatic { .. }) {
            self.next_look = None;
            self.look_pause = LOOK_FIRST;
            return;
        }
        if self.next_look.is_some_and(|at| cx.now < at) {
            return;
        }
        let mut discovery = self.discovery.borrow_mut();
        if discovery.is_running() {
            discovery.table.probe_lost_now(cx.now);
            discovery.wake_prober(cx);
        }
        self.next_look = Some(cx.now + self.look_pause);
        self.look_pause = (self.look_pause * 2).min(self.settings.probe_interval);
    }

    /// Opens the port before there is a peer: clients need not wait for one, but for the answers of the first probes.
    pub(super) fn await_first_answers(&mut self, cx: &mut Cx<'_>) -> Result<(), BindError> {
        self.listen(cx)?;
        let patience = self.settings.probe_timeout + SOURCES_PATIENCE;
        self.first_answers = self.settings.probing.then(|| cx.now + patience);
        self.route.set(Choice {
            is_awaited: self.first_answers.is_some(),
            ..Choice::nobody()
        });
        Ok(())
    }

    /// Has clients served without a remote, once the first probes had their time and nobody turned out to be valid.
    pub(super) fn end_first_wait(&mut self, now: Instant) {
        if !matches!(self.plan, Plan::Idle) || self.mode != Mode::Automatic {
            self.first_answers = None;
            return;
        }
        let Some(at) = self.first_answers else {
            return;
        };
        let discovery = self.discovery.borrow();
        let unknown = discovery.table.count(Status::Unknown);
        let all_asked = unknown == 0 && !discovery.table.is_empty();
        if all_asked || now >= at {
            self.first_answers = None;
            self.route.set(Choice::nobody());
        }
    }

    /// Follows the table in automatic mode.
    pub(super) fn follow_table(&mut self, cx: &mut Cx<'_>) {
        let discovery = Shared::clone(&self.discovery);
        let best = discovery
            .borrow()
            .table
            .valid_best_first()
            .find(|peer| !self.own.borrow().is_own(*peer));
        self.look_for_lost(best, cx);
        match (&self.plan, best) {
            (Plan::Idle, Some(best)) if self.mode == Mode::Automatic && self.race.is_none() => {
                if self.next_bind.is_some_and(|at| cx.now < at) {
                    return;
                }
                match self.listen(cx) {
                    Ok(()) => self.select(best, &Why::First.to_string(), cx),
                    Err(error) => {
                        let what = chain(&error);
                        if self.next_bind.is_none() {
                            log::error!("{what}; trying again");
                        }
                        self.note_error(what);
                        self.next_bind = Some(cx.now + RETRY_BIND);
                    }
                }
            }
            (Plan::Automatic { selected }, _) => {
                let selected = *selected;
                let row = discovery.borrow().table.get(selected, cx.now);
                if self.restart.is_trusted(selected, row.as_ref()) {
                    return self.amend(selected);
                }
                let own = Shared::clone(&self.own);
                let change = self.chooser.decide(
                    &discovery.borrow().table,
                    Some(selected),
                    |peer| !own.borrow().is_own(peer),
                    cx.now,
                );
                match change {
                    Some((better, why)) => self.select(better, &why.to_string(), cx),
                    None => self.amend(selected),
                }
            }
            _ => {}
        }
    }

    /// Why a peer is the remote, or why it is not though it could be.
    pub(in crate::daemon) fn why(
        &self,
        row: &Row,
        is_selected: bool,
        chosen: Option<&Row>,
        now: Instant,
    ) -> Option<String> {
        match &self.plan {
            Plan::Idle => None,
            Plan::Explicit(_) => is_selected.then(|| "named by hand".to_owned()),
            Plan::Automatic { .. } if is_selected => Some(self.chosen_because.clone()),
            Plan::Automatic { .. } => self.chooser.why_not(row, chosen, now),
        }
    }

    /// The same one stays; those behind it may have changed.
    fn amend(&self, selected: SocketAddr) {
        let choice = self.automatic_choice(selected);
        if *self.route.choice() == choice {
            return;
        }
        match self.restart.is_under_way() {
            // Those who wait for others are to hear of them.
            true => self.route.set(choice),
            false => self.route.amend(choice),
        }
    }
}

/// For sources to name the first peers, before clients are served without one.
const SOURCES_PATIENCE: Duration = Duration::from_secs(1);

/// Stand-ins that a client's first bytes may be tried on; more would outlast its patience.
const STAND_INS: usize = 15;

/// Candidates that there should be; with fewer valid ones, peers that were valid are added.
const FEW: usize = 4;

/// How soon peers that were valid are asked again when nobody is left.
pub(super) const LOOK_FIRST: Duration = Duration::from_secs(1);

/// A listener that could not be bound is tried again after this long.
const RETRY_BIND: Duration = Duration::from_secs(2);
