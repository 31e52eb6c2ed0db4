//! One client of a forwarder, from accept to close.
//!
//! ```text
//! AwaitFirstBytes ──▶ Dialling ──first answer byte──▶ Relaying
//!                       │   ▲ refused, reset, closed, silent: the next candidate gets the same bytes
//!                       │   └──┘
//!                       └─ nobody left ──▶ Declining (a SOCKS client) or close
//! ```
//!
//! The remote is dialled when the client's first bytes arrive: SOCKS clients always speak first, so a port scan costs
//! no remote anything. What the client sends is kept until the remote's first answer byte, so that a remote that fails
//! before costs the client nothing. What is kept is bounded by [`KEPT`]: a client that sends more, or does not speak
//! SOCKS, gets plain forwarding as soon as a remote has taken its bytes.

use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::attempt::{
    Advance, Attempt, FIRST_BYTES_LIMIT, KEPT, Speaks, is_no_proxy, listens, says_half_a_greeting,
};
use super::decline::Decline;
use super::route::{Awaited, Choice, DialFailure, Epoch, Patience, Report, Ride, Route};
use crate::engine::{self, Interests, Key, Session, Standing, Turn, TurnContext, Want};
use crate::listen::{Client, Slot};
use crate::net::{ConnectFailure, is_shortage, read_some, start_connect};
use crate::relay::{Moved, Relay, RelaySettings};

/// What the sessions of one forwarder have in common.
pub struct ForwardSettings {
    /// For a remote to be connected and, unless there is just one, to answer.
    pub connect_timeout: Duration,
    /// For the relays.
    pub relay: Arc<RelaySettings>,
}

/// One client of a forwarder.
pub struct ForwardSession {
    stage: Stage,
    client: Name,
    /// The choice under which it was accepted, or has been dialled.
    epoch: Epoch,
    route: Route,
    settings: Arc<ForwardSettings>,
    _slot: Slot,
}

/// A client's name in the log.
#[derive(Clone, Copy)]
struct Name(Option<SocketAddr>);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("local client"),
        }
    }
}

enum Stage {
    AwaitFirstBytes {
        client: Socket,
        until: Instant,
    },
    Dialling {
        client: Socket,
        dial: Box<Dial>,
    },
    Declining {
        client: Socket,
        decline: Box<Decline>,
    },
    Relaying(Box<Established>),
    Over,
}

/// A connection that a remote has taken.
struct Established {
    relay: Relay,
    remote: SocketAddr,
    /// Where its bytes are counted.
    ride: Ride,
    /// Of the first bytes, sent before there was a relay.
    sent_before: u64,
    /// What the route's totals know of.
    counted: Moved,
    since: Instant,
}

/// Trying candidates, one after the other, with the same bytes.
struct Dial {
    kept: Vec<u8>,
    speaks: Speaks,
    choice: Arc<Choice>,
    /// Candidates that failed this client.
    tried: Vec<SocketAddr>,
    attempt: Option<Attempt>,
    /// There was no descriptor for an attempt, or no candidate so far: when to look again.
    retry: Option<Instant>,
    /// The client is gone, but what it sent is to be delivered.
    client_closed: bool,
    /// No candidate is tried after this.
    give_up: Instant,
}

type Step = engine::Step<Stage>;

impl ForwardSession {
    /// Serves a client along a route.
    #[must_use]
    pub fn new(client: Client, route: Route, settings: Arc<ForwardSettings>, now: Instant) -> Self {
        Self {
            stage: Stage::AwaitFirstBytes {
                client: client.socket,
                until: now + FIRST_BYTES_LIMIT,
            },
            client: Name(client.address),
            epoch: route.epoch(),
            route,
            settings,
            _slot: client.slot,
        }
    }

    fn await_first_bytes(
        &mut self,
        client: Socket,
        until: Instant,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        let now = cx.now;
        match read_some(&client, cx.buffer_up_to(KEPT)) {
            Ok(Some([])) | Err(_) => Step::Next(Stage::Over),
            Ok(Some(bytes)) => {
                // Before the choice: one made in between is then seen as a new one.
                self.epoch = self.route.epoch();
                let speaks = match bytes.first() {
                    Some(4 | 5) => Speaks::Socks,
                    _ => Speaks::Other,
                };
                let mut kept = bytes.to_vec();
                // A client that is gone already: dialling for it would let a circle of forwarders chase its own tail.
                if speaks == Speaks::Socks && kept.len() < KEPT {
                    match read_some(&client, cx.buffer_up_to(KEPT - kept.len())) {
                        Ok(Some([])) | Err(_) => return Step::Next(Stage::Over),
                        Ok(Some(more)) => kept.extend_from_slice(more),
                        Ok(None) => {}
                    }
                }
                let mut dial = Box::new(Dial {
                    kept,
                    speaks,
                    choice: self.route.choice(),
                    tried: Vec::new(),
                    attempt: None,
                    retry: None,
                    client_closed: false,
                    give_up: now + self.settings.connect_timeout * DIALS,
                });
                self.next_candidate(&mut dial, now);
                Step::Next(self.dialling(client, dial, now))
            }
            Ok(None) if now >= until => {
                log::debug!("{}: sent nothing, closed", self.client);
                Step::Next(Stage::Over)
            }
            Ok(None) => Step::Stay(
                Stage::AwaitFirstBytes { client, until },
                Turn::Wait { until: Some(until) },
            ),
        }
    }

    /// The stage after a candidate was looked for: with none, the client is told.
    fn dialling(&self, client: Socket, dial: Box<Dial>, now: Instant) -> Stage {
        if dial.attempt.is_some() || dial.retry.is_some() {
            return Stage::Dialling { client, dial };
        }
        log::debug!(
            "{}: no remote could be used, {} tried",
            self.client,
            dial.tried.len()
        );
        match dial.speaks {
            Speaks::Socks => Stage::Declining {
                client,
                decline: Box::new(Decline::new(&dial.kept, now)),
            },
            Speaks::Other => Stage::Over,
        }
    }

    /// Starts to connect to the best candidate that has not failed this client.
    fn next_candidate(&self, dial: &mut Dial, now: Instant) {
        dial.attempt = None;
        dial.retry = None;
        while now < dial.give_up {
            let untried = dial
                .choice
                .candidates
                .iter()
                .map(|candidate| candidate.address)
                .find(|one| !dial.tried.contains(one));
            let Some(remote) = untried else {
                if dial.choice.is_awaited {
                    dial.retry = Some(dial.give_up);
                }
                return;
            };
            match start_connect(remote) {
                Ok(socket) => {
                    let limit = self.settings.connect_timeout;
                    dial.attempt = Some(Attempt::new(remote, socket, limit, now));
                    return;
                }
                Err(ConnectFailure::Local(error)) if is_shortage(&error) => {
                    dial.retry = Some(now + SHORTAGE_RETRY);
                    return;
                }
                Err(ConnectFailure::Local(error)) => {
                    self.failed(dial, remote, now, DialFailure::Local(error))
                }
                Err(ConnectFailure::Remote(error)) => {
                    self.failed(dial, remote, now, DialFailure::Connect(error))
                }
            }
        }
    }

    fn failed(&self, dial: &mut Dial, remote: SocketAddr, started: Instant, failure: DialFailure) {
        log::debug!("{}: remote {remote}: {failure}", self.client);
        dial.tried.push(remote);
        // Remotes are chosen for their SOCKS 5. Many know nothing else and close when they hear SOCKS 4: that must not
        // take the remote away from everybody.
        let is_hung_up = matches!(
            failure,
            DialFailure::ClosedEarly(_) | DialFailure::Reset(..)
        );
        if !(is_hung_up && dial.kept.first() == Some(&4)) {
            self.route.report(Report {
                remote,
                started,
                failure,
            });
        }
    }

    fn dial(&mut self, client: Socket, mut dial: Box<Dial>, cx: &mut TurnContext<'_>) -> Step {
        self.follow_choice(&mut dial, cx.now);
        let Some(attempt) = &mut dial.attempt else {
            if let Some(at) = dial.retry {
                if cx.ready.hung_up(CLIENT) {
                    return Step::Next(Stage::Over);
                }
                if cx.now < at {
                    return Step::Stay(
                        Stage::Dialling { client, dial },
                        Turn::Wait { until: Some(at) },
                    );
                }
                self.next_candidate(&mut dial, cx.now);
            }
            return Step::Next(self.dialling(client, dial, cx.now));
        };
        let listens = listens(dial.speaks, &dial.kept);
        if !listens && cx.ready.hung_up(CLIENT) {
            // Nobody reads it now, so nobody else notices. A Unix socket hangs up at an ordinary end too.
            match client.take_error() {
                Ok(None) if dial.speaks == Speaks::Other => dial.client_closed = true,
                _ => return self.client_left(attempt.remote),
            }
        }
        let failure = match attempt.advance(&client, &mut dial.kept, dial.speaks, cx) {
            Advance::Wait if attempt.is_late(cx.now, &dial.kept, dial.choice.patience) => {
                if !attempt.connected {
                    DialFailure::ConnectTimedOut
                } else if says_half_a_greeting(&dial.kept) {
                    log::debug!("{}: did not finish its greeting, closed", self.client);
                    return Step::Next(Stage::Over);
                } else {
                    DialFailure::Silent(Awaited::First)
                }
            }
            Advance::Wait => {
                let until = attempt.deadline(&dial.kept, dial.choice.patience);
                return Step::Stay(Stage::Dialling { client, dial }, Turn::Wait { until });
            }
            Advance::ClientLeft => return self.client_left(attempt.remote),
            Advance::Relay { answer }
                if dial.choice.patience == Patience::Limited
                    && is_no_proxy(&dial.kept, &answer) =>
            {
                DialFailure::NoProxy(answer)
            }
            Advance::Relay { answer } => {
                if !answer.is_empty() {
                    self.route.answered(attempt.remote, cx.now);
                }
                let Some(attempt) = dial.attempt.take() else {
                    return Step::Next(Stage::Over);
                };
                let unsent = dial.kept.get(attempt.sent..).unwrap_or_default();
                let settings = Arc::clone(&self.settings.relay);
                let sent_before = attempt.sent as u64;
                let ride = self.route.began(attempt.remote);
                ride.count(sent_before, 0);
                let relay = Relay::new(client, attempt.socket, unsent, &answer, settings, cx.now);
                let (remote, since) = (attempt.remote, attempt.since);
                let counted = Moved::default();
                return Step::Next(Stage::Relaying(Box::new(Established {
                    relay,
                    remote,
                    ride,
                    sent_before,
                    counted,
                    since,
                })));
            }
            Advance::Failed(failure) => failure,
        };
        let (remote, started) = (attempt.remote, attempt.since);
        self.failed(&mut dial, remote, started, failure);
        self.next_candidate(&mut dial, cx.now);
        Step::Next(self.dialling(client, dial, cx.now))
    }

    fn client_left(&self, remote: SocketAddr) -> Step {
        log::debug!("{}: left before {remote} answered", self.client);
        Step::Next(Stage::Over)
    }

    /// Takes over a choice that was made since. An attempt at a remote that is no candidate any more is given up.
    fn follow_choice(&mut self, dial: &mut Dial, now: Instant) {
        let epoch = self.route.epoch();
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        dial.choice = self.route.choice();
        // A client that has waited long for a remote without a time limit gets the new one's whole time.
        dial.give_up = now + self.settings.connect_timeout * DIALS;
        let stays = dial
            .attempt
            .as_ref()
            .is_some_and(|attempt| dial.choice.has(attempt.remote));
        if !stays {
            self.next_candidate(dial, now);
        }
    }

    fn relay(&self, mut established: Box<Established>, cx: &mut TurnContext<'_>) -> Step {
        let turn = established.relay.turn(cx);
        let moved = established.relay.moved();
        let counted = mem::replace(&mut established.counted, moved);
        if moved != counted {
            established
                .ride
                .count(moved.up - counted.up, moved.down - counted.down);
        }
        if turn != Turn::Done {
            return Step::Stay(Stage::Relaying(established), turn);
        }
        if let Some(ended) = established.relay.ended() {
            let lasted = cx.now.saturating_duration_since(established.since);
            let (up, down) = (established.sent_before + moved.up, moved.down);
            let remote = established.remote;
            log::debug!(
                "{} via {remote}: {up} up, {down} down in {lasted:.1?}: {ended:?}",
                self.client
            );
        }
        Step::Next(Stage::Over)
    }
}

impl Session for ForwardSession {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        loop {
            let step = match mem::replace(&mut self.stage, Stage::Over) {
                Stage::AwaitFirstBytes { client, until } => {
                    self.await_first_bytes(client, until, cx)
                }
                Stage::Dialling { client, dial } => self.dial(client, dial, cx),
                Stage::Declining {
                    client,
                    mut decline,
                } => match decline.turn(&client, cx) {
                    Turn::Done => Step::Next(Stage::Over),
                    turn => Step::Stay(Stage::Declining { client, decline }, turn),
                },
                Stage::Relaying(established) => self.relay(established, cx),
                Stage::Over => return Turn::Done,
            };
            if let Some(turn) = step.settle(&mut self.stage, cx) {
                return turn;
            }
        }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        match &self.stage {
            Stage::AwaitFirstBytes { client, .. } => {
                interests.watch(CLIENT, client.as_fd(), Want::READ)
            }
            Stage::Dialling { client, dial } => {
                let listens = dial.attempt.is_some() && listens(dial.speaks, &dial.kept);
                let want = if listens { Want::READ } else { Want::ERRORS };
                if !dial.client_closed {
                    interests.watch(CLIENT, client.as_fd(), want);
                }
                if let Some(attempt) = &dial.attempt {
                    let write = !attempt.connected || attempt.sent < dial.kept.len();
                    interests.watch(
                        REMOTE,
                        attempt.socket.as_fd(),
                        Want {
                            read: attempt.connected,
                            write,
                        },
                    );
                }
            }
            Stage::Declining { client, decline } => {
                interests.watch(CLIENT, client.as_fd(), decline.want())
            }
            Stage::Relaying(established) => established.relay.interests(interests),
            Stage::Over => {}
        }
    }

    fn standing(&self) -> Standing {
        if self.route.is_closed(self.epoch) {
            return Standing::Cut;
        }
        match self.stage {
            Stage::Relaying(_) if self.route.is_cut(self.epoch) => Standing::Cut,
            Stage::Relaying(ref established)
                if self.route.is_drained(self.epoch, Some(established.remote)) =>
            {
                Standing::Cut
            }
            Stage::Dialling { .. } if self.route.epoch() != self.epoch => Standing::Wake,
            _ => Standing::Keep,
        }
    }
}

const CLIENT: Key = 0;
const REMOTE: Key = 1;

/// How soon a descriptor is asked for again when there was none.
const SHORTAGE_RETRY: Duration = Duration::from_millis(100);

/// A client waits for at most so many connect time-outs in all, however many candidates there are.
const DIALS: u32 = 3;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::engine::{Cx, Next, Reactor, Ready, Task};
    use crate::forward::Candidate;
    use crate::listen::Limits;
    use crate::relay::Pipes;

    struct Idle;

    impl Task for Idle {
        fn run(&mut self, _: &mut Cx<'_>) -> Next {
            Next::Wait(None)
        }
    }

    /// At the start a remote's name is still being looked up when the first clients come.
    #[test]
    fn a_client_waits_for_a_choice_that_is_awaited() {
        let mut reactor = Reactor::new(1).unwrap();
        let reader = reactor.spawn(Box::new(Idle));
        let (reports, _kept) = crossbeam_channel::unbounded();
        let route = Route::new(reports, reactor.mailbox(), reader);
        let choose = |candidates, is_awaited| {
            route.set(Choice {
                candidates,
                patience: Patience::Unlimited,
                is_awaited,
            });
        };
        choose(Vec::new(), true);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut far = TcpStream::connect(address).unwrap();
        let socket = Socket::from(listener.accept().unwrap().0);
        socket.set_nonblocking(true).unwrap();
        far.write_all(&[5, 1, 0]).unwrap();
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
        let limits = Limits::new(1, None, reactor.mailbox());
        let client = Client {
            socket,
            address: None,
            slot: limits.take(None).unwrap(),
        };
        let settings = Arc::new(ForwardSettings {
            connect_timeout: Duration::from_secs(5),
            relay: Arc::new(RelaySettings {
                idle: None,
                half_closed_idle: None,
                pipes: Pipes::new(0),
            }),
        });
        let now = Instant::now();
        let mut session = ForwardSession::new(client, route.clone(), settings, now);
        let mut buffer = Vec::new();
        let mut turn = |session: &mut ForwardSession, at| {
            let mut cx = TurnContext::new(at, Ready::ALL, &mut buffer);
            session.turn(&mut cx)
        };
        let until = now + Duration::from_secs(5) * DIALS;
        assert_eq!(turn(&mut session, now), Turn::Wait { until: Some(until) });

        choose(vec![Candidate::from(address)], false);
        assert_ne!(turn(&mut session, now), Turn::Done);
        listener.accept().expect("it connects to the candidate");

        // Nobody is to be had after all: the client is told, with `05 FF` or a reply.
        choose(Vec::new(), false);
        while !matches!(session.stage, Stage::Declining { .. } | Stage::Over) {
            turn(&mut session, now);
        }
        assert!(matches!(session.stage, Stage::Declining { .. }));
    }
}
