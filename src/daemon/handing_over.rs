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
//! accepts, this one goes on as if nothing had been. The other side is in [`taking_over`](super::taking_over).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::control::MOST_AT_ONCE;
use crate::control::messages::{Draining, ErrorCode, ErrorObject, HandOver};
use crate::control::server::{ControlServer, ControlSocket, Handler, Line, Reply};
use crate::engine::{Cx, Next, Task, TaskId};
use crate::listen::{Limits, Listener};

/// What a daemon listens on, as far as it is to be handed over, and to whom.
#[derive(Default)]
pub(super) struct Estate {
    control: Option<(Rc<ControlSocket>, TaskId)>,
    heir: Option<Heir>,
    /// Somebody else accepts the clients now.
    is_gone: bool,
}

/// A listener, and who accepts there.
pub(super) type Open = (Rc<Listener>, TaskId);

/// A process that has been handed everything and has not said yet that it accepts.
struct Heir {
    line: Line,
    until: Instant,
}

impl Estate {
    /// Whether another process has taken over: this one only sees its clients off.
    pub(super) const fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Who answers on the control socket, once it is placed.
    pub(super) fn control_server(
        &mut self,
        socket: ControlSocket,
        handler: Handler,
        cx: &mut Cx<'_>,
    ) -> (TaskId, ControlServer) {
        let (socket, id) = (Rc::new(socket), cx.reserve());
        self.control = Some((Rc::clone(&socket), id));
        (id, ControlServer::new(socket, handler))
    }

    /// Sends everything to a process that wants to take over: these listeners with their names, and what is `known`.
    pub(super) fn offer(
        &mut self,
        listeners: &[(String, &Listener)],
        known: HandOver,
        reply: Reply,
        now: Instant,
    ) {
        let line = reply.line();
        let is_awaited = |heir: &Heir| heir.line.is_open() && heir.line != line && now < heir.until;
        if self.is_gone || self.heir.as_ref().is_some_and(is_awaited) {
            let error = ErrorObject::new(ErrorCode::HandedOver, "another process is taking over")
                .with_hint("`sockhop status` tells whether it has; then ask again");
            return reply.send::<()>(Err(error));
        }
        let (listeners, descriptors) = match self.lent(listeners) {
            Ok(lent) => lent.into_iter().unzip(),
            Err(error) => {
                let problem = ErrorObject::new(ErrorCode::Internal, "cannot hand over");
                return reply.send::<()>(Err(problem.with_reason(error.to_string())));
            }
        };
        self.heir = Some(Heir {
            line,
            until: now + HEIR_PATIENCE,
        });
        log::info!("another process asks to take over");
        let answer = HandOver { listeners, ..known };
        reply.send_with(&answer, descriptors);
    }

    /// What others can listen on, with its name.
    fn lent(&self, listeners: &[(String, &Listener)]) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut lent = Vec::new();
        if let Some((socket, _)) = &self.control {
            lent.push(("control".to_owned(), socket.lend()?));
        }
        for (name, listener) in listeners {
            lent.push((name.clone(), listener.lend()?));
        }
        match lent.len() {
            count if count > MOST_AT_ONCE => Err(io::Error::other(format!(
                "{count} listeners, of which {MOST_AT_ONCE} can go at once"
            ))),
            _ => Ok(lent),
        }
    }

    /// The other process accepts: these accept no more, and the program ends with the last of its clients, or after this time.
    /// Whether it is so: only who was handed everything can say it.
    pub(super) fn let_go(
        &mut self,
        listeners: &mut dyn FnMut() -> Vec<Open>,
        limits: Limits,
        drain_timeout: Option<Duration>,
        reply: Reply,
        cx: &mut Cx<'_>,
    ) -> bool {
        let line = reply.line();
        let is_heir = |heir: Heir| heir.line == line && cx.now < heir.until;
        if self.is_gone
            || !self
                .heir
                .take_if(|heir| heir.line == line)
                .is_some_and(is_heir)
        {
            let error = ErrorObject::new(ErrorCode::HandedOver, "nothing was handed over to you");
            reply.send::<()>(Err(error));
            return false;
        }
        self.is_gone = true;
        for (listener, task) in listeners() {
            cx.unwatch(listener.socket().as_fd());
            listener.leave_file();
            cx.cancel(task);
        }
        if let Some((socket, server)) = self.control.take() {
            socket.leave(cx);
            cx.cancel(server);
        }
        let draining = limits.active() as u64;
        match drain_timeout {
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
            until: drain_timeout.map(|after| cx.now + after),
        }));
        reply.send(Ok(Draining { draining }));
        true
    }

    /// The files of listeners that were handed over to this process are its own from now on.
    pub(super) fn keep_files<'a>(&self, listeners: impl Iterator<Item = &'a Open>) {
        for (listener, _) in listeners {
            listener.keep_file();
        }
        if let Some((socket, _)) = &self.control {
            socket.keep_file();
        }
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
