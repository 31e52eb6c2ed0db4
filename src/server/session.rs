//! One client of a SOCKS server, from accept to close.
//!
//! ```text
//! Handshake ──request──▶ LookingUp ──▶ Connecting ──connected, reply──▶ Relaying
//!     │                      └────────────┴──no address answered──▶ Closing: the reply, then the client closes
//!     └──not SOCKS, nothing acceptable──▶ Closing
//! ```

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::Socket;

use crate::engine::{BUFFER, Interests, Key, Ready, Session, Turn, TurnContext, Want};
use crate::handshake::{Event, Policy, Server};
use crate::listen::{Client, Slot};
use crate::net::{
    ConnectFailure, canonical, finish_connect, read_some, start_connect, write_all_now,
};
use crate::relay::{Relay, RelaySettings};
use crate::resolver::{Lookup, Resolver};
use crate::wire::Host;
use crate::wire::socks5::{Command, ReplyCode};

/// What the sessions of one server have in common.
pub struct ServerSettings {
    /// Whom to serve.
    pub policy: Policy,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For the look-up and all addresses of a destination together.
    pub connect_timeout: Duration,
    /// Waited before the greeting is answered. For demonstrations: the latency of a far-away peer.
    pub answer_delay: Duration,
    /// For the relays.
    pub relay: Arc<RelaySettings>,
    /// Looks up names.
    pub resolver: Resolver,
}

/// One client of a SOCKS server.
pub struct ServerSession {
    stage: Stage,
    settings: Arc<ServerSettings>,
    _slot: Slot,
}

enum Stage {
    Handshake {
        client: Socket,
        handshake: Box<Handshake>,
    },
    LookingUp {
        client: Socket,
        handshake: Box<Handshake>,
        lookup: Lookup,
    },
    Connecting {
        client: Socket,
        handshake: Box<Handshake>,
        attempt: Attempt,
    },
    /// Sends what is left and waits for the client to close, so that our close is no reset that overtakes it.
    Closing {
        client: Socket,
        unsent: Vec<u8>,
        until: Instant,
    },
    Relaying(Box<Relay>),
    Over,
}

struct Handshake {
    server: Server,
    /// Nothing is read before then, for a demonstration of latency.
    held_until: Option<Instant>,
    until: Instant,
    unsent: Vec<u8>,
    /// Read behind the request: the client's payload.
    payload: Vec<u8>,
}

struct Attempt {
    socket: Socket,
    /// Addresses still to be tried, the next one last.
    others: Vec<SocketAddr>,
}

enum Step {
    Next(Stage),
    Stay(Stage, Turn),
}

impl ServerSession {
    /// Serves a client.
    #[must_use]
    pub fn new(client: Client, settings: Arc<ServerSettings>, now: Instant) -> Self {
        let handshake = Handshake {
            server: Server::new(settings.policy),
            held_until: (!settings.answer_delay.is_zero()).then(|| now + settings.answer_delay),
            until: now + settings.handshake_timeout,
            unsent: Vec::new(),
            payload: Vec::new(),
        };
        let stage = Stage::Handshake {
            client: client.socket,
            handshake: Box::new(handshake),
        };
        Self {
            stage,
            settings,
            _slot: client.slot,
        }
    }

    fn handshake(
        &self,
        client: Socket,
        mut handshake: Box<Handshake>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        if cx.now >= handshake.until {
            return Step::Next(Stage::Over);
        }
        match handshake.held_until {
            Some(until) if cx.now < until => {
                let stage = Stage::Handshake { client, handshake };
                return Step::Stay(stage, Turn::Wait { until: Some(until) });
            }
            _ => handshake.held_until = None,
        }
        loop {
            match write_all_now(&client, &mut handshake.unsent) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Step::Next(Stage::Over),
            }
            let input = match read(&client, cx, Server::MAX_MESSAGE) {
                Ok(Some([])) | Err(_) => return Step::Next(Stage::Over),
                Ok(Some(input)) => input,
                Ok(None) => break,
            };
            let Handshake {
                server,
                unsent,
                payload,
                ..
            } = &mut *handshake;
            match server.feed(input, unsent) {
                Ok(taken) => payload.extend_from_slice(input.get(taken..).unwrap_or_default()),
                Err(error) => {
                    log::debug!("client: {error}");
                    return Step::Next(closing(client, mem::take(unsent), cx.now));
                }
            }
            if let Some(Event::Request(request)) = server.event() {
                if request.command != Command::Connect {
                    return Step::Next(refuse(
                        client,
                        handshake,
                        ReplyCode::COMMAND_NOT_SUPPORTED,
                        cx.now,
                    ));
                }
                let (host, port) = (request.address.host.clone(), request.address.port);
                return Step::Next(self.destination(client, handshake, &host, port, cx.now));
            }
        }
        let until = Some(handshake.until);
        Step::Stay(Stage::Handshake { client, handshake }, Turn::Wait { until })
    }

    fn destination(
        &self,
        client: Socket,
        mut handshake: Box<Handshake>,
        host: &Host,
        port: u16,
        now: Instant,
    ) -> Stage {
        handshake.until = now + self.settings.connect_timeout;
        match host {
            Host::Ip(ip) => self.connect(client, handshake, vec![SocketAddr::new(*ip, port)], now),
            Host::Name(name) => {
                let lookup = self.settings.resolver.lookup(name.as_str(), port);
                Stage::LookingUp {
                    client,
                    handshake,
                    lookup,
                }
            }
        }
    }

    fn look_up(
        &self,
        client: Socket,
        handshake: Box<Handshake>,
        mut lookup: Lookup,
        cx: &TurnContext<'_>,
    ) -> Step {
        match lookup.take() {
            Some(Ok(mut addresses)) => {
                addresses.reverse();
                Step::Next(self.connect(client, handshake, addresses, cx.now))
            }
            Some(Err(_)) => Step::Next(refuse(
                client,
                handshake,
                ReplyCode::HOST_UNREACHABLE,
                cx.now,
            )),
            None if cx.now >= handshake.until => Step::Next(refuse(
                client,
                handshake,
                ReplyCode::HOST_UNREACHABLE,
                cx.now,
            )),
            None if cx.ready.hung_up(CLIENT) => Step::Next(Stage::Over),
            None => {
                let until = Some(handshake.until);
                Step::Stay(
                    Stage::LookingUp {
                        client,
                        handshake,
                        lookup,
                    },
                    Turn::Wait { until },
                )
            }
        }
    }

    /// Connects to the last address, and to those before it when that fails.
    fn connect(
        &self,
        client: Socket,
        handshake: Box<Handshake>,
        mut others: Vec<SocketAddr>,
        now: Instant,
    ) -> Stage {
        let mut code = ReplyCode::HOST_UNREACHABLE;
        while let Some(address) = others.pop() {
            match start_connect(canonical(address)) {
                Ok(socket) => {
                    return Stage::Connecting {
                        client,
                        handshake,
                        attempt: Attempt { socket, others },
                    };
                }
                Err(failure) => code = reply_code(&failure),
            }
        }
        refuse(client, handshake, code, now)
    }

    fn finish(
        &self,
        client: Socket,
        mut handshake: Box<Handshake>,
        attempt: Attempt,
        cx: &TurnContext<'_>,
    ) -> Step {
        match finish_connect(&attempt.socket) {
            Ok(true) => {
                let bound = attempt
                    .socket
                    .local_addr()
                    .ok()
                    .and_then(|address| address.as_socket());
                let bound = canonical(
                    bound.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
                );
                handshake
                    .server
                    .reply(ReplyCode::SUCCEEDED, bound, &mut handshake.unsent);
                let settings = Arc::clone(&self.settings.relay);
                let relay = Relay::new(
                    client,
                    attempt.socket,
                    &handshake.payload,
                    &handshake.unsent,
                    settings,
                    cx.now,
                );
                Step::Next(Stage::Relaying(Box::new(relay)))
            }
            Ok(false) if cx.now >= handshake.until => Step::Next(refuse(
                client,
                handshake,
                ReplyCode::HOST_UNREACHABLE,
                cx.now,
            )),
            Ok(false) if cx.ready.hung_up(CLIENT) => Step::Next(Stage::Over),
            Ok(false) => {
                let until = Some(handshake.until);
                Step::Stay(
                    Stage::Connecting {
                        client,
                        handshake,
                        attempt,
                    },
                    Turn::Wait { until },
                )
            }
            Err(failure) if attempt.others.is_empty() => {
                Step::Next(refuse(client, handshake, reply_code(&failure), cx.now))
            }
            Err(_) => Step::Next(self.connect(client, handshake, attempt.others, cx.now)),
        }
    }
}

#[expect(clippy::boxed_local, reason = "taken as the stages hold it")]
fn refuse(client: Socket, handshake: Box<Handshake>, code: ReplyCode, now: Instant) -> Stage {
    let Handshake {
        mut server,
        mut unsent,
        ..
    } = *handshake;
    server.refuse(code, &mut unsent);
    closing(client, unsent, now)
}

fn closing(client: Socket, unsent: Vec<u8>, now: Instant) -> Stage {
    Stage::Closing {
        client,
        unsent,
        until: now + CLOSE_LIMIT,
    }
}

fn close(client: Socket, mut unsent: Vec<u8>, until: Instant, cx: &mut TurnContext<'_>) -> Step {
    match write_all_now(&client, &mut unsent) {
        Ok(true) => {
            let _ = client.shutdown(Shutdown::Write);
        }
        Ok(false) => {}
        Err(_) => return Step::Next(Stage::Over),
    }
    let late = cx.now >= until;
    for _ in 0..READS_A_TURN {
        match read(&client, cx, DISCARDED) {
            Ok(Some([])) | Err(_) => return Step::Next(Stage::Over),
            _ if late => return Step::Next(Stage::Over),
            Ok(Some(_)) => {}
            Ok(None) => {
                let stage = Stage::Closing {
                    client,
                    unsent,
                    until,
                };
                return Step::Stay(stage, Turn::Wait { until: Some(until) });
            }
        }
    }
    let stage = Stage::Closing {
        client,
        unsent,
        until,
    };
    Step::Stay(stage, Turn::Again)
}

/// RFC 1928 §6. A time-out is "host unreachable", as most servers say it.
fn reply_code(failure: &ConnectFailure) -> ReplyCode {
    match Errno::from_io_error(failure.error()) {
        Some(Errno::CONNREFUSED) => ReplyCode::CONNECTION_REFUSED,
        Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT) => {
            ReplyCode::NETWORK_UNREACHABLE
        }
        Some(Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN) => ReplyCode::HOST_UNREACHABLE,
        Some(Errno::ACCESS | Errno::PERM) => ReplyCode::NOT_ALLOWED,
        _ => ReplyCode::GENERAL_FAILURE,
    }
}

impl Session for ServerSession {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        loop {
            let step = match mem::replace(&mut self.stage, Stage::Over) {
                Stage::Handshake { client, handshake } => self.handshake(client, handshake, cx),
                Stage::LookingUp {
                    client,
                    handshake,
                    lookup,
                } => self.look_up(client, handshake, lookup, cx),
                Stage::Connecting {
                    client,
                    handshake,
                    attempt,
                } => self.finish(client, handshake, attempt, cx),
                Stage::Closing {
                    client,
                    unsent,
                    until,
                } => close(client, unsent, until, cx),
                Stage::Relaying(mut relay) => match relay.turn(cx) {
                    Turn::Done => Step::Next(Stage::Over),
                    turn => Step::Stay(Stage::Relaying(relay), turn),
                },
                Stage::Over => return Turn::Done,
            };
            match step {
                Step::Next(stage) => {
                    self.stage = stage;
                    cx.ready = Ready::ALL;
                }
                Step::Stay(stage, turn) => {
                    self.stage = stage;
                    return turn;
                }
            }
        }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        match &self.stage {
            Stage::Handshake { client, handshake } => {
                let want = Want {
                    read: true,
                    write: !handshake.unsent.is_empty(),
                };
                // While it is held back only the clock matters.
                if handshake.held_until.is_none() {
                    interests.watch(CLIENT, client.as_fd(), want);
                }
            }
            Stage::LookingUp { client, lookup, .. } => {
                interests.watch(CLIENT, client.as_fd(), Want::ERRORS);
                if let Some(descriptor) = lookup.descriptor() {
                    interests.watch(OTHER, descriptor, Want::READ);
                }
            }
            Stage::Connecting {
                client, attempt, ..
            } => {
                interests.watch(CLIENT, client.as_fd(), Want::ERRORS);
                interests.watch(OTHER, attempt.socket.as_fd(), Want::WRITE);
            }
            Stage::Closing { client, unsent, .. } => {
                interests.watch(
                    CLIENT,
                    client.as_fd(),
                    Want {
                        read: true,
                        write: !unsent.is_empty(),
                    },
                );
            }
            Stage::Relaying(relay) => relay.interests(interests),
            Stage::Over => {}
        }
    }
}

fn read<'a>(
    socket: &Socket,
    cx: &'a mut TurnContext<'_>,
    limit: usize,
) -> io::Result<Option<&'a [u8]>> {
    let limit = limit.min(BUFFER);
    read_some(socket, cx.buffer().get_mut(..limit).unwrap_or_default())
}

const CLIENT: Key = 0;
const OTHER: Key = 1;

/// How long a client may take to close after a refusal.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What a refused client still sends is read in pieces of this size and dropped.
const DISCARDED: usize = 4096;

/// A refused client that never stops sending gets no more than that many of them at once.
const READS_A_TURN: usize = 16;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    /// The clock stands still during a turn, so a turn that lasts as long as the client sends has no time limit.
    #[test]
    fn refused_client_that_never_stops_sending_gets_a_turn_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = Socket::from(listener.accept().unwrap().0);
        client.set_nonblocking(true).unwrap();
        sender.write_all(&[0; 256 * 1024]).unwrap();
        poll(&mut [PollFd::new(&client, PollFlags::IN)], None).unwrap();
        let now = Instant::now();
        let until = now + CLOSE_LIMIT;
        let mut buffer = Vec::new();
        let mut cx = TurnContext::new(now, Ready::ALL, &mut buffer);
        let Step::Stay(Stage::Closing { client, unsent, .. }, turn) =
            close(client, Vec::new(), until, &mut cx)
        else {
            panic!("not closing any more");
        };
        assert_eq!(turn, Turn::Again);
        let mut cx = TurnContext::new(until, Ready::ALL, &mut buffer);
        let step = close(client, unsent, until, &mut cx);
        assert!(matches!(step, Step::Next(Stage::Over)));
    }
}
