//! The task that accepts connections.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::Socket;

use super::admission::{Admission, Refused};
use super::bind::Listener;
use super::limits::{Limits, Slot};
use crate::engine::{Cx, Next, Session, Task, Want};
use crate::net::{accept, has_waiting, tune};

/// A connection that was let in.
pub struct Client {
    /// Its socket: non-blocking, with its options set.
    pub socket: Socket,
    /// Where it came from; `None` on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Its place among the connections, to be kept as long as the socket.
    pub slot: Slot,
}

/// Makes the session that serves a client.
pub type Serve = Rc<dyn Fn(Client) -> Box<dyn Session>>;

/// What became of those who connected, for status answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeStats {
    /// Let in.
    pub accepted: u64,
    /// Turned away: address not allowed.
    pub not_allowed: u64,
    /// Turned away: the client is a peer.
    pub peers: u64,
    /// Turned away: too many connections of one client.
    pub over_client_limit: u64,
    /// Times that accepting paused because connections or descriptors ran out.
    pub pauses: u64,
}

impl IntakeStats {
    /// All that were turned away.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.not_allowed + self.peers + self.over_client_limit
    }
}

/// What all acceptors of one program share.
#[derive(Clone)]
pub struct Intake {
    /// Who may connect.
    pub admission: Rc<Admission>,
    /// Whether a peer has an address.
    pub is_peer: Rc<dyn Fn(IpAddr) -> bool>,
    /// How many may connect.
    pub limits: Limits,
    /// What became of them.
    pub stats: Rc<RefCell<IntakeStats>>,
}

/// Accepts connections of one listener. Pauses, never ends, when connections, descriptors or memory run out.
pub struct Acceptor {
    listener: Rc<Listener>,
    intake: Intake,
    serve: Serve,
    watched: bool,
    paused: Option<Pause>,
    /// After connections ran out: when accepting goes on.
    breath: Option<Instant>,
    retry_after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// As many connections as allowed.
    Full,
    /// The system refused to give a descriptor or memory.
    Exhausted,
}

impl Acceptor {
    /// Accepts what `listener` gets and serves it with `serve`.
    #[must_use]
    pub fn new(listener: impl Into<Rc<Listener>>, intake: Intake, serve: Serve) -> Self {
        Self {
            listener: listener.into(),
            intake,
            serve,
            watched: false,
            paused: None,
            breath: None,
            retry_after: RETRY_FIRST,
        }
    }

    fn pause(&mut self, pause: Pause, cx: &Cx<'_>, say: impl FnOnce()) {
        self.intake.limits.wake_on_release(cx.id());
        // Said once an episode, however often it is tried again.
        if self.paused != Some(pause) {
            self.paused = Some(pause);
            self.intake.stats.borrow_mut().pauses += 1;
            say();
        }
    }

    fn resumed(&mut self) {
        if self.paused.take().is_some() {
            log::info!("accepting connections on {} again", self.listener.bound());
        }
    }

    fn take_in(&mut self, socket: Socket, address: Option<SocketAddr>, cx: &mut Cx<'_>) {
        let ip = address.map(|address| address.ip().to_canonical());
        if let Some(ip) = ip
            && let Err(refused) = self.intake.admission.check(ip, &*self.intake.is_peer)
        {
            log::debug!("{ip}: connection refused: {refused}");
            let mut stats = self.intake.stats.borrow_mut();
            match refused {
                Refused::NotAllowed => stats.not_allowed += 1,
                Refused::Peer => stats.peers += 1,
            }
            return;
        }
        let Some(slot) = self.intake.limits.take(ip) else {
            log::debug!(
                "{}: connection refused: too many from there (--max-per-client)",
                Shown(ip)
            );
            self.intake.stats.borrow_mut().over_client_limit += 1;
            return;
        };
        self.intake.stats.borrow_mut().accepted += 1;
        let session = (self.serve)(Client {
            socket,
            address,
            slot,
        });
        cx.submit(session);
    }
}

impl Task for Acceptor {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            if let Err(error) = cx.watch(self.listener.socket().as_fd(), Want::READ) {
                log::warn!(
                    "cannot watch {}, trying again: {error}",
                    self.listener.bound()
                );
                return Next::Wait(Some(cx.now + RETRY_MOST));
            }
            self.watched = true;
        }
        if self.paused == Some(Pause::Full) {
            let until = *self.breath.get_or_insert(cx.now + BREATH);
            if cx.now < until {
                return Next::Wait(Some(until));
            }
            self.breath = None;
        }
        for _ in 0..ACCEPTS_A_TURN {
            if !self.intake.limits.has_room() {
                let most = self.intake.limits.most();
                self.pause(Pause::Full, cx, || {
                    log::warn!(
                        "{most} connections, as many as allowed: new ones wait (--max-connections)"
                    );
                });
                // Between the question and the request to be woken the last one may have ended.
                return if self.intake.limits.has_room() {
                    Next::Again
                } else {
                    Next::Wait(None)
                };
            }
            match accept(self.listener.socket()) {
                Ok((socket, address)) => {
                    if !self.listener.hands_on_options() {
                        tune(&socket);
                    }
                    // Others may wait behind it: the episode is over when nobody does.
                    self.retry_after = RETRY_FIRST;
                    self.take_in(socket, address, cx);
                    if !has_waiting(self.listener.socket()) {
                        self.resumed();
                        return Next::Wait(None);
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => {
                        self.resumed();
                        return Next::Wait(None);
                    }
                    // The client left before it was accepted, or a signal came.
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
                    _ => {
                        let bound = self.listener.bound().clone();
                        self.pause(Pause::Exhausted, cx, || {
                            log::warn!("cannot accept on {bound}, new connections wait: {error}");
                        });
                        let retry = cx.now + self.retry_after;
                        self.retry_after = (self.retry_after * 2).min(RETRY_MOST);
                        return Next::Wait(Some(retry));
                    }
                },
            }
        }
        Next::Again
    }
}

struct Shown(Option<IpAddr>);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(ip) => ip.fmt(f),
            None => f.write_str("local client"),
        }
    }
}

/// Connections accepted before other things get their turn.
const ACCEPTS_A_TURN: usize = 64;

/// Connections often end in numbers. When all places were taken, those that end in this time are waited for, so that a
/// circle of forwarders, which ends from its head, does not grow at its tail at the same speed for ever.
const BREATH: Duration = Duration::from_millis(20);

/// How soon accepting is tried again when the system ran out of something; doubled each time up to the most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);
