//! One client of a forwarder, from accept to close.
//!
//! ```text
//! AwaitFirstBytes ──▶ Dialling ──a remote serves it──▶ Relaying
//!                       ├─ one carries its datagrams ──▶ Associated
//!                       └─ nobody left ──▶ Declining, or Stranded (a SOCKS client), or close
//! ```
//!
//! The remote is dialled when the client's first bytes arrive: SOCKS clients always speak first, so a port scan costs
//! no remote anything. What the client sends is kept until a remote serves it, so that one that fails before costs the client
//! nothing: see [`super::dialling`]. What is kept is bounded by [`KEPT`]: a client that does not speak SOCKS gets
//! plain forwarding as soon as a remote has taken its bytes.

use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::datagrams::{Datagrams, Ends, Ports};
use super::decline::Decline;
use super::dialling::{Dial, FIRST_BYTES_LIMIT};
use super::route::{Ride, Route};
use super::said::KEPT;
use super::serving::{ForwardSettings, Name, Serving};
use super::stranded::Stranded;
use super::verdict::{Associated, Refusal, Verdict, Won};
use crate::engine::{self, Effort, Interests, Key, Session, Standing, Turn, TurnContext, Want};
use crate::listen::Client;
use crate::net::read_some;
use crate::relay::{Moved, Relay};
use crate::wire::socks5::{Reply, ReplyCode};

/// One client of a forwarder.
pub struct ForwardSession {
    stage: Stage,
    serving: Serving,
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
    Associated(Box<Carried>),
    /// Served without a remote.
    Stranded(Box<dyn Session>),
    Over,
}

/// A connection that a remote has taken.
struct Established {
    relay: Relay,
    remote: SocketAddr,
    /// Where its bytes are counted.
    ride: Ride,
    /// Of the first bytes, moved before there was a relay.
    before: Moved,
    /// What the route's totals know of.
    counted: Moved,
    since: Instant,
}

/// A client whose datagrams a remote carries.
struct Carried {
    datagrams: Datagrams,
    remote: SocketAddr,
    ride: Ride,
    since: Instant,
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
            serving: Serving {
                client: Name(client.address),
                epoch: route.epoch(),
                route,
                settings,
                slot: Some(client.slot),
            },
        }
    }

    fn await_first_bytes(
        &mut self,
        client: Socket,
        until: Instant,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        let now = cx.now;
        let serving = &mut self.serving;
        match read_some(&client, cx.buffer_up_to(KEPT)) {
            Ok(Some([])) | Err(_) => Step::Next(Stage::Over),
            Ok(Some(bytes)) => {
                let mut kept = bytes.to_vec();
                let mut is_dry = false;
                // A client that is gone already: dialling for it would let a circle of forwarders chase its own tail.
                if matches!(kept.first(), Some(4 | 5)) && kept.len() < KEPT {
                    match read_some(&client, cx.buffer_up_to(KEPT - kept.len())) {
                        Ok(Some([])) | Err(_) => return Step::Next(Stage::Over),
                        Ok(Some(more)) => kept.extend_from_slice(more),
                        Ok(None) => is_dry = true,
                    }
                }
                // Before the choice: one made in between is then seen as a new one.
                serving.epoch = serving.route.epoch();
                let dial = Dial::new(kept, serving, now);
                let dial = Box::new(match is_dry {
                    true => dial.after_dry(),
                    false => dial,
                });
                Step::Next(Stage::Dialling { client, dial })
            }
            Ok(None) if now >= until => {
                log::debug!("{}: sent nothing, closed", serving.client);
                Step::Next(Stage::Over)
            }
            Ok(None) => Step::Stay(
                Stage::AwaitFirstBytes { client, until },
                Turn::Wait { until: Some(until) },
            ),
        }
    }

    fn dial(&mut self, client: Socket, mut dial: Box<Dial>, cx: &mut TurnContext<'_>) -> Step {
        match dial.turn(&client, &mut self.serving, cx) {
            Verdict::Wait(until) => {
                Step::Stay(Stage::Dialling { client, dial }, Turn::Wait { until })
            }
            Verdict::Relay(won) => Step::Next(self.establish(client, won, cx.now)),
            Verdict::Associated(associated) => {
                Step::Next(self.associate(client, &dial, associated, cx.now))
            }
            Verdict::Decline(refusal) => Step::Next(self.decline(client, &dial, refusal, cx.now)),
            Verdict::Reset => {
                // Without lingering, close sends a reset. Not on Unix sockets, which know none.
                let _ = client.set_linger(Some(std::time::Duration::ZERO));
                Step::Next(Stage::Over)
            }
            Verdict::Over => Step::Next(Stage::Over),
        }
    }

    /// The stage after every remote has failed: a SOCKS client is told.
    fn decline(&mut self, client: Socket, dial: &Dial, refusal: Refusal, now: Instant) -> Stage {
        log::debug!(
            "{}: no remote could be used, {} tried",
            self.serving.client,
            dial.tried()
        );
        let said = dial.said_so_far();
        match said.first() {
            Some(4 | 5) if refusal == Refusal::Nobody && self.serving.has_fallback() => {
                self.strand(client, dial, now)
            }
            Some(4 | 5) => Stage::Declining {
                client,
                decline: Box::new(Decline::new(&said, dial.heard().len(), refusal, now)),
            },
            _ => Stage::Over,
        }
    }

    /// Hands a SOCKS client to whoever serves it without a remote.
    fn strand(&mut self, client: Socket, dial: &Dial, now: Instant) -> Stage {
        let Serving {
            client: name,
            settings,
            slot,
            ..
        } = &mut self.serving;
        let (Some(fallback), Some(slot)) = (&settings.fallback, slot.take()) else {
            return Stage::Over;
        };
        let client = Client {
            socket: client,
            address: name.0,
            slot,
        };
        let stranded = Stranded {
            client,
            said: dial.said_so_far(),
            heard: dial.heard().to_vec(),
        };
        Stage::Stranded(fallback.serve(stranded, now))
    }

    /// The stage after a remote has granted an association.
    fn associate(
        &mut self,
        client: Socket,
        dial: &Dial,
        associated: Associated,
        now: Instant,
    ) -> Stage {
        let Serving {
            client: name,
            settings,
            slot,
            ..
        } = &mut self.serving;
        let (Some(associations), Some(address), Some(slot)) =
            (&settings.associations, name.0, slot.as_mut())
        else {
            return self.establish(client, associated.untouched(), now);
        };
        let Associated { won, reply, .. } = associated;
        let remote = won.remote;
        let ends = Ends {
            client: &client,
            address,
            remote: &won.socket,
            at: remote,
        };
        let ports = Ports::open(ends, &reply.bound, slot, associations, &settings.uplink);
        let ports = match ports {
            Ok(ports) => ports,
            Err(why) => {
                log::debug!("{name}: no association via {remote}: {why}");
                let heard = usize::try_from(won.down).unwrap_or(0);
                let refusal = Refusal::Reply(ReplyCode::GENERAL_FAILURE);
                let decline = Decline::new(&dial.said_so_far(), heard, refusal, now);
                let decline = Box::new(decline);
                return Stage::Declining { client, decline };
            }
        };
        let mut unsent = won.answer;
        let bound = ports.bound().into();
        Reply { bound, ..reply }.encode(&mut unsent);
        let before = Moved {
            up: won.up,
            down: won.down + unsent.len() as u64,
        };
        let ride = self.serving.route.began(remote);
        ride.count(before.up, before.down);
        Stage::Associated(Box::new(Carried {
            datagrams: Datagrams::new(client, won.socket, unsent, ports, now),
            remote,
            ride,
            since: won.since,
        }))
    }

    fn establish(&self, client: Socket, won: Won, now: Instant) -> Stage {
        let before = Moved {
            up: won.up,
            down: won.down,
        };
        let ride = self.serving.route.began(won.remote);
        ride.count(before.up, before.down);
        let settings = Arc::clone(&self.serving.settings.relay);
        let relay = Relay::new(client, won.socket, &won.unsent, &won.answer, settings, now);
        Stage::Relaying(Box::new(Established {
            relay,
            remote: won.remote,
            ride,
            before,
            counted: Moved::default(),
            since: won.since,
        }))
    }

    fn relay(&self, mut established: Box<Established>, cx: &mut TurnContext<'_>) -> Step {
        let serving = &self.serving;
        let turn = established.relay.turn(cx);
        let moved = established.relay.moved();
        let counted = mem::replace(&mut established.counted, moved);
        if moved != counted {
            let (up, down) = (moved.up - counted.up, moved.down - counted.down);
            established.ride.count(up, down);
        }
        if turn != Turn::Done {
            return Step::Stay(Stage::Relaying(established), turn);
        }
        if let Some(ended) = established.relay.ended() {
            let lasted = cx.now.saturating_duration_since(established.since);
            let before = established.before;
            let (up, down) = (before.up + moved.up, before.down + moved.down);
            let remote = established.remote;
            log::debug!(
                "{} via {remote}: {up} up, {down} down in {lasted:.1?}: {ended:?}",
                serving.client
            );
        }
        Step::Next(Stage::Over)
    }
}

impl ForwardSession {
    fn carry(&self, mut carried: Box<Carried>, cx: &mut TurnContext<'_>) -> Step {
        let counted = carried.datagrams.moved();
        let turn = carried.datagrams.turn(cx);
        let moved = carried.datagrams.moved();
        if moved != counted {
            let (up, down) = (moved.up - counted.up, moved.down - counted.down);
            carried.ride.count(up, down);
        }
        if turn != Turn::Done {
            return Step::Stay(Stage::Associated(carried), turn);
        }
        let lasted = cx.now.saturating_duration_since(carried.since);
        let Carried {
            datagrams, remote, ..
        } = &*carried;
        let client = self.serving.client;
        log::debug!("{client} via {remote}: {datagrams} in {lasted:.1?}");
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
                Stage::Associated(carried) => self.carry(carried, cx),
                Stage::Stranded(mut session) => match session.turn(cx) {
                    Turn::Done => Step::Next(Stage::Over),
                    turn => Step::Stay(Stage::Stranded(session), turn),
                },
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
            Stage::Dialling { client, dial } => dial.interests(client, &self.serving, interests),
            Stage::Declining { client, decline } => {
                interests.watch(CLIENT, client.as_fd(), decline.want())
            }
            Stage::Relaying(established) => established.relay.interests(interests),
            Stage::Associated(carried) => carried.datagrams.interests(interests),
            Stage::Stranded(session) => session.interests(interests),
            Stage::Over => {}
        }
    }

    fn effort(&self) -> Effort {
        match &self.stage {
            Stage::Relaying(established) => established.relay.effort(),
            Stage::Associated(_) => Effort::Work,
            Stage::Stranded(session) => session.effort(),
            _ => Effort::Small,
        }
    }

    fn standing(&self) -> Standing {
        let Serving { route, epoch, .. } = &self.serving;
        if route.is_closed(*epoch) {
            return Standing::Cut;
        }
        match &self.stage {
            Stage::Relaying(_) | Stage::Associated(_) | Stage::Stranded(_)
                if route.is_cut(*epoch) =>
            {
                Standing::Cut
            }
            Stage::Relaying(established) if route.is_drained(*epoch, Some(established.remote)) => {
                Standing::Cut
            }
            Stage::Associated(carried) if route.is_drained(*epoch, Some(carried.remote)) => {
                Standing::Cut
            }
            // What goes past the remotes is not theirs.
            Stage::Stranded(_) if route.is_drained(*epoch, None) => Standing::Cut,
            Stage::Dialling { dial, .. } if dial.is_behind(&self.serving) => Standing::Wake,
            _ => Standing::Keep,
        }
    }
}

const CLIENT: Key = 0;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::engine::{Cx, Next, Reactor, Ready, Task};
    use crate::forward::dialling::DIALS;
    use crate::forward::{Candidate, Choice, Patience};
    use crate::listen::Limits;
    use crate::relay::{Kept, Pipes, RelaySettings};

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
        let route = Route::new(reactor.mailbox(), reader);
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
            uplink: crate::net::Uplink::default(),
            stagger: None,
            retry: true,
            relay: Arc::new(RelaySettings {
                idle: None,
                half_closed_idle: None,
                pipes: Pipes::new(0),
                kept: Kept::default(),
            }),
            associations: None,
            tcp: crate::net::TcpExtras::default(),
            ready: None,
            fallback: None,
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
