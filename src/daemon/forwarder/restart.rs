//! What a restart goes on with: the last good remote of before, at once, until the first round of probes tells more.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Forwarder, Plan};
use crate::choice::Mode;
use crate::discovery::status::{Reason, Status};
use crate::discovery::table::Row;
use crate::engine::Cx;
use crate::listen::BindError;

/// The time after a start with an address of the state file.
#[derive(Debug, Default)]
pub(super) struct Restart {
    /// The remote in use is this one, and no probe of it has ended.
    last_good: Option<SocketAddr>,
    /// Until then clients wait for others if it fails them: the first probes are under way.
    until: Option<Instant>,
}

impl Restart {
    /// Whether there will be others soon.
    pub(super) fn is_under_way(&self) -> bool {
        self.until.is_some()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn is_unproved(&self, selected: SocketAddr) -> bool {
        self.last_good == Some(selected)
    }

    /// Whether the remote in use was good before the start and has not been probed since: others that are found valid before do
    /// not take its place.
    pub(super) fn is_trusted(&mut self, selected: SocketAddr, row: Option<&Row>) -> bool {
        let trusted =
            self.is_unproved(selected) && row.is_some_and(|row| row.reason == Reason::NotProbed);
        if !trusted {
            self.last_good = None;
        }
        trusted
    }
}

impl Forwarder {
    /// Forwards to the first of these that may be chosen; whether there is one.
    pub(super) fn go_on_with(
        &mut self,
        remembered: &[SocketAddr],
        cx: &mut Cx<'_>,
    ) -> Result<bool, BindError> {
        let Some(last_good) = self.first_remembered(remembered, cx.now) else {
            return Ok(false);
        };
        self.listen(cx)?;
        self.restart = Restart {
            last_good: Some(last_good),
            until: Some(cx.now + self.settings.probe_timeout + MARGIN),
        };
        self.select(last_good, "the last good one before the start", cx);
        Ok(true)
    }

    /// Goes on where the process left off that has handed over: with its listeners open, whatever becomes of the rest, and with its
    /// remote, unless the settings name others.
    pub(super) fn go_on_as_taken(
        &mut self,
        known: &[SocketAddr],
        cx: &mut Cx<'_>,
    ) -> Result<(), BindError> {
        let (mode, remotes, has_listeners) = match self.taken.get_mut() {
            Some(taken) => {
                let remotes = std::mem::take(&mut taken.remotes);
                (taken.mode, remotes, taken.has_listeners())
            }
            None => return Ok(()),
        };
        let explicit = match (self.settings.mode, remotes.is_empty()) {
            (Mode::Explicit, _) => Some(self.settings.remotes.clone()),
            (_, false) => Some(remotes),
            (_, true) => None,
        };
        if mode == Mode::Manual && self.settings.mode != Mode::Explicit {
            // Nobody is connected, as somebody has wanted it.
            self.mode = Mode::Manual;
            return Ok(());
        }
        if let Some(remotes) = explicit {
            self.listen(cx)?;
            let explicit = self.explicit(remotes, cx.now);
            self.take_explicit(explicit, cx);
            return Ok(());
        }
        self.mode = Mode::Automatic;
        if !self.go_on_with(known, cx)? && (has_listeners || self.served.serves_without_remote()) {
            self.await_first_answers(cx)?;
        }
        Ok(())
    }

    fn first_remembered(&self, remembered: &[SocketAddr], now: Instant) -> Option<SocketAddr> {
        let discovery = self.discovery.borrow();
        let own = self.own.borrow();
        remembered.iter().copied().find(|address| {
            let row = discovery.table.get(*address, now);
            row.is_some_and(|row| row.candidate) && !own.is_own(*address)
        })
    }

    /// Ends the time after the start when it is over or the remote in use has been found valid.
    pub(super) fn advance_restart(&mut self, now: Instant) {
        let Some(until) = self.restart.until else {
            return;
        };
        let selected = match &self.plan {
            Plan::Automatic { selected } => Some(*selected),
            Plan::Idle | Plan::Explicit(_) => None,
        };
        let row = selected.and_then(|selected| self.discovery.borrow().table.get(selected, now));
        let is_valid = row.is_some_and(|row| row.status == Status::Valid);
        if now < until && selected.is_some() && !is_valid {
            return;
        }
        self.restart.until = None;
        if let Some(selected) = selected {
            // Set, not amended: those who wait are to hear that nobody else will come.
            let choice = self.automatic_choice(selected);
            self.route.set(choice);
        }
    }
}

/// For what comes between the start and the first probes, and between their end and the choice.
const MARGIN: Duration = Duration::from_secs(1);
