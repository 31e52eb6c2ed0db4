//! Handing over to another process, so that a new version takes the place of this one without a moment in which nobody accepts.
//!
//! ```text
//!   the other process        this one
//!     take_over ───────────▶ accepts ◀── what it listens on, and what it knows, goes to the other one
//!     accepts too            accepts
//!     took_over ───────────▶ accepts none any more: what is open goes on, then it ends
//! ```
//!
//! Both have the same sockets, so what waits to be accepted waits for either. If the other one ends before it says that it
//! accepts, this one goes on as if nothing had been.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Forwarder, Plan};
use crate::choice::Mode;
use crate::control::messages::{Draining, ErrorCode, ErrorObject, HandOver};
use crate::control::server::{ControlSocket, Line, Reply};
use crate::daemon::state::Keeper;
use crate::engine::{Cx, Next, Task, TaskId};
use crate::listen::{Limits, Listener};

/// What is there to be handed over besides the listeners for clients, and to whom.
#[derive(Default)]
pub(in crate::daemon) struct Estate {
    pub(in crate::daemon) control: Option<(Rc<ControlSocket>, TaskId)>,
    pub(in crate::daemon) metrics: Option<(Rc<Listener>, TaskId)>,
    pub(in crate::daemon) keeper: Option<Keeper>,
    heir: Option<Heir>,
    /// Somebody else accepts the clients now.
    is_gone: bool,
}

/// A process that has been handed everything and has not said yet that it accepts.
struct Heir {
    line: Line,
    until: Instant,
}

impl Forwarder {
    /// Whether another process has taken over: this one only sees its clients off.
    pub(super) const fn is_handed_over(&self) -> bool {
        self.estate.is_gone
    }

    /// Sends everything to a process that wants to take over.
    pub(in crate::daemon) fn hand_over(&mut self, reply: Reply, now: Instant) {
        let line = reply.line();
        let heir = self.estate.heir.take();
        let is_awaited = |heir: &Heir| heir.line.is_open() && heir.line != line && now < heir.until;
        if self.estate.is_gone || heir.as_ref().is_some_and(is_awaited) {
            self.estate.heir = heir;
            let error = ErrorObject::new(ErrorCode::HandedOver, "another process is taking over")
                .with_hint("`sockhop status` tells whether it has; then ask again");
            return reply.send::<()>(Err(error));
        }
        let (listeners, descriptors) = match self.lent() {
            Ok(lent) => lent.into_iter().unzip(),
            Err(error) => {
                let problem = ErrorObject::new(ErrorCode::Internal, "cannot hand over");
                return reply.send::<()>(Err(problem.with_reason(error.to_string())));
            }
        };
        self.estate.heir = Some(Heir {
            line,
            until: now + HEIR_PATIENCE,
        });
        let remotes = match &self.plan {
            Plan::Explicit(explicit) if self.settings.mode != Mode::Explicit => explicit.reveal(),
            _ => Vec::new(),
        };
        let answer = HandOver {
            process: std::process::id(),
            listeners,
            mode: self.mode,
            known: self.known(now),
            remotes,
        };
        log::info!("another process asks to take over");
        reply.send_with(&answer, descriptors);
    }

    /// What others can listen on, with its name.
    fn lent(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        let mut lent = Vec::new();
        if let Some((socket, _)) = &self.estate.control {
            lent.push(("control".to_owned(), socket.lend()?));
        }
        for (address, (listener, _)) in self.settings.listen.iter().zip(&self.listeners) {
            lent.push((format!("clients {address}"), listener.lend()?));
        }
        if let (Some((listener, _)), Some(address)) = (&self.estate.metrics, &self.settings.metrics)
        {
            lent.push((format!("metrics {address}"), listener.lend()?));
        }
        Ok(lent)
    }

    /// In automatic mode: the remote in use, then others, best first.
    fn known(&self, now: Instant) -> Vec<String> {
        if self.mode != Mode::Automatic {
            return Vec::new();
        }
        let in_use = match &self.plan {
            Plan::Automatic { selected } => Some(*selected),
            Plan::Idle | Plan::Explicit(_) => None,
        };
        let discovery = self.discovery.borrow();
        let mut earlier: Vec<_> = discovery.table.ever_valid(now).collect();
        earlier.sort_unstable_by_key(|(address, age)| (*age, *address));
        let earlier = earlier.into_iter().map(|(address, _)| address);
        let mut known: Vec<_> = in_use.into_iter().collect();
        for address in discovery.table.valid_best_first().chain(earlier) {
            if known.len() == MOST_KNOWN {
                break;
            }
            if !known.contains(&address) {
                known.push(address);
            }
        }
        known.iter().map(ToString::to_string).collect()
    }

    /// The files of listeners that were handed over to this process are its own from now on.
    pub(in crate::daemon) fn keep_files(&self) {
        let metrics = self.estate.metrics.iter();
        for (listener, _) in self.listeners.iter().chain(metrics) {
            listener.keep_file();
        }
        if let Some((socket, _)) = &self.estate.control {
            socket.keep_file();
        }
    }

    /// The other process accepts: this one does not any more, and ends with the last of its clients.
    pub(in crate::daemon) fn let_go(&mut self, reply: Reply, cx: &mut Cx<'_>) {
        let line = reply.line();
        let heir = self.estate.heir.take();
        let is_heir = heir.is_some_and(|heir| heir.line == line && cx.now < heir.until);
        if self.estate.is_gone || !is_heir {
            let error = ErrorObject::new(ErrorCode::HandedOver, "nothing was handed over to you");
            return reply.send::<()>(Err(error));
        }
        self.estate.is_gone = true;
        self.cancel_connect(cx);
        let metrics = self.estate.metrics.take();
        for (listener, task) in self.listeners.drain(..).chain(metrics) {
            cx.unwatch(listener.socket().as_fd());
            listener.leave_file();
            cx.cancel(task);
        }
        if let Some((socket, server)) = self.estate.control.take() {
            socket.leave(cx);
            cx.cancel(server);
        }
        if let Some(keeper) = self.estate.keeper.take() {
            keeper.retire();
        }
        self.discovery.borrow_mut().retire(cx);
        let limits = self.intake.limits.clone();
        let draining = limits.active() as u64;
        let until = self.settings.drain_timeout.map(|after| cx.now + after);
        match self.settings.drain_timeout {
            Some(after) => log::info!(
                "another process has taken over; {draining} streams go on here, for {} at most",
                humantime::format_duration(after)
            ),
            None => log::info!("another process has taken over; {draining} streams go on here"),
        }
        cx.spawn(Box::new(SeeingOff {
            limits,
            line,
            told_by: cx.now + REPLY_PATIENCE,
            until,
        }));
        reply.send(Ok(Draining { draining }));
    }
}

/// Ends the program with the last client, or when the time for them is over.
struct SeeingOff {
    limits: Limits,
    /// To the other process, which is to hear the answer.
    line: Line,
    told_by: Instant,
    until: Option<Instant>,
}

impl Task for SeeingOff {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if self.line.is_open() && cx.now < self.told_by {
            return Next::Wait(Some(cx.now + LOOK));
        }
        // First, so that none ends unseen.
        self.limits.wake_on_release(cx.id());
        let left = self.limits.active();
        let is_over = self.until.is_some_and(|until| cx.now >= until);
        if left > 0 && !is_over {
            return Next::Wait(self.until);
        }
        match left {
            0 => log::info!("the last stream has ended, and so does this process"),
            _ => log::warn!("{left} streams are cut (--drain-timeout)"),
        }
        cx.stop();
        Next::Done
    }
}

/// For a process to begin to accept: it has only to build what it runs on.
const HEIR_PATIENCE: Duration = Duration::from_secs(10);

/// For the other process to hear that it is alone; it hangs up then.
const REPLY_PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// As many as are good for a start; probes find the others.
const MOST_KNOWN: usize = 64;
