//! One client of a SOCKS server, from accept to close.
//!
//! ```text
//! Opening ──request──▶ LookingUp ──▶ Dialling or Through ──connected, reply──▶ Relaying
//!    │                     │             │                              ▲
//!    │                     ├──▶ Binding ─┼──peer came, second reply─────┘
//!    │                     └───────┴─────┴──denied, no address answered, nobody came──▶ Closing: the reply, then the
//!    │                                                                                  client closes
//!    ├──UDP ASSOCIATE──▶ Associated
//!    └──not SOCKS, nothing acceptable, wrong password──▶ Closing
//! ```

use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::OTHERS;
use super::association::{Association, Prepared};
use super::binding::{Binding, Came, Unbound};
use super::closing::Closing;
use super::dial::{Dial, Dialled};
use super::login::Login;
use super::opening::{Opened, Opening};
use super::pending::Pending;
use super::rules::{Denied, NameVerdict, Rules};
use super::settings::ServerSettings;
use super::via::{Failure, Gone, Via, Way};
use crate::engine::{self, Interests, Session, Turn, TurnContext, Want};
use crate::handshake::{Request, ServerError};
use crate::listen::{Client, Slot};
use crate::net::canonical;
use crate::proxy_uri::Resolution;
use crate::relay::{Moved, Relay};
use crate::resolver::{Lookup, ResolveError};
use crate::wire::socks5::{Command, ReplyCode};
use crate::wire::{Address, Host};

/// One client of a SOCKS server.
pub struct ServerSession {
    stage: Stage,
    story: Story,
    settings: Arc<ServerSettings>,
    slot: Slot,
}

enum Stage {
    Opening(Box<Opening>),
    LookingUp {
        pending: Box<Pending>,
        name: NameVerdict,
        lookup: Lookup,
    },
    Dialling {
        pending: Box<Pending>,
        dial: Box<Dial>,
    },
    Binding {
        pending: Box<Pending>,
        binding: Box<Binding>,
    },
    Through {
        pending: Box<Pending>,
        way: Box<Way>,
    },
    Closing(Box<Closing>),
    Relaying(Box<Established>),
    Associated(Box<Association>),
    Over,
}

/// A client that was connected.
struct Established {
    relay: Relay,
    /// What the server's numbers know of, with the reply.
    counted: Moved,
    /// Bytes of the reply, which are not the destination's.
    reply: u64,
}

/// What the log tells of a connection, in one line at its end.
struct Story {
    client: Option<SocketAddr>,
    user: Option<Login>,
    /// With the command.
    target: Option<Box<str>>,
    since: Instant,
}

type Step = engine::Step<Stage>;

impl ServerSession {
    /// Serves a client.
    #[must_use]
    pub fn new(client: Client, settings: Arc<ServerSettings>, now: Instant) -> Self {
        let opening = Opening::new(client.socket, client.address, &settings, now);
        Self {
            stage: Stage::Opening(Box::new(opening)),
            story: Story {
                client: client.address,
                user: None,
                target: None,
                since: now,
            },
            settings,
            slot: client.slot,
        }
    }

    fn open(&mut self, mut opening: Box<Opening>, cx: &mut TurnContext<'_>) -> Step {
        match opening.turn(&self.settings, &mut self.story.user, cx) {
            Opened::Not(until) => {
                let until = Some(until);
                Step::Stay(Stage::Opening(opening), Turn::Wait { until })
            }
            Opened::Request(request) => Step::Next(self.request(*opening, &request, cx.now)),
            Opened::Failed(error) => {
                self.settings.stats.refused(reason(error));
                self.story.end(cx.now, &error);
                let unsent = opening.last_words(error);
                Step::Next(closing(Closing::new(opening.client, unsent, cx.now)))
            }
            Opened::Left => {
                self.story.end(cx.now, &"left before its request");
                Step::Next(Stage::Over)
            }
            Opened::TimedOut => {
                self.settings.stats.refused("handshake-timeout");
                self.story.end(cx.now, &"no request in time");
                Step::Next(Stage::Over)
            }
        }
    }

    fn request(&mut self, opening: Opening, request: &Request, now: Instant) -> Stage {
        let address = &request.address;
        let pending = Box::new(Pending::new(opening, now + self.settings.patience()));
        if self.settings.via.is_some() && request.command != Command::Connect {
            // Other commands would go past the proxies.
            self.story.target = Some(address.to_string().into());
            return self.no_such_command(*pending, now);
        }
        if request.command == Command::Associate {
            return self.associate(*pending, address, now);
        }
        let verb = match request.command {
            Command::Bind => "BIND for",
            _ => "to",
        };
        self.story.target = Some(format!("{verb} {address}").into());
        let rules = &self.settings.rules;
        let check_name = match request.command {
            Command::Connect => Rules::check_name,
            Command::Bind if self.settings.bind_timeout.is_some() => Rules::check_peer_name,
            _ => return self.no_such_command(*pending, now),
        };
        match &address.host {
            Host::Ip(ip) => {
                let address = SocketAddr::new(*ip, address.port);
                self.looked_up(pending, NameVerdict::Open, vec![address], now)
            }
            Host::Name(name) => {
                let verdict = match check_name(rules, name, address.port) {
                    Ok(verdict) => verdict,
                    Err(denied) => return self.deny(*pending, denied, now),
                };
                if let Some(via) = self.via_that_looks_up() {
                    return match rules.check_unseen(name, address.port, verdict) {
                        Ok(()) => self.go_through(pending, via, [address.clone()]),
                        Err(denied) => self.deny(*pending, denied, now),
                    };
                }
                Stage::LookingUp {
                    pending,
                    name: verdict,
                    lookup: self.settings.resolver.lookup(name.as_str(), address.port),
                }
            }
        }
    }

    /// The proxies, if names go to them as they are.
    fn via_that_looks_up(&self) -> Option<Arc<Via>> {
        let via = self.settings.via.as_ref()?;
        (via.resolution() == Resolution::AtProxy).then(|| Arc::clone(via))
    }

    fn go_through(
        &self,
        pending: Box<Pending>,
        via: Arc<Via>,
        destinations: impl IntoIterator<Item = Address>,
    ) -> Stage {
        let resolver = self.settings.resolver.clone();
        Stage::Through {
            pending,
            way: Box::new(Way::new(via, destinations, resolver)),
        }
    }

    fn associate(&mut self, pending: Pending, announced: &Address, now: Instant) -> Stage {
        let (client, address) = (&pending.client, self.story.client);
        let prepared = Prepared::new(client, address, announced, &mut self.slot, &self.settings);
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(why) => {
                self.settings.stats.refused(why.reason());
                return self.refuse(pending, why.code(), &why, now);
            }
        };
        let Pending {
            client,
            mut server,
            mut unsent,
            ..
        } = pending;
        let told = prepared.told(&self.settings);
        server.reply(ReplyCode::SUCCEEDED, told, &mut unsent);
        let association = Association::new(client, unsent, prepared, now);
        Stage::Associated(Box::new(association))
    }

    fn look_up(
        &mut self,
        mut pending: Box<Pending>,
        name: NameVerdict,
        mut lookup: Lookup,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        match lookup.take() {
            Some(Ok(addresses)) => Step::Next(self.looked_up(pending, name, addresses, cx.now)),
            Some(Err(error)) => {
                let code = match error {
                    ResolveError::QueueFull | ResolveError::Local(_) => ReplyCode::GENERAL_FAILURE,
                    _ => ReplyCode::HOST_UNREACHABLE,
                };
                Step::Next(self.refuse(*pending, code, &error, cx.now))
            }
            None => match self.wait(&mut pending, cx) {
                Ok(until) => {
                    let stage = Stage::LookingUp {
                        pending,
                        name,
                        lookup,
                    };
                    let until = Some(until);
                    Step::Stay(stage, Turn::Wait { until })
                }
                Err(over) => Step::Next(self.give_up(*pending, over, cx.now)),
            },
        }
    }

    /// Does what was requested, with the addresses that the request comes to.
    fn looked_up(
        &mut self,
        pending: Box<Pending>,
        name: NameVerdict,
        addresses: Vec<SocketAddr>,
        now: Instant,
    ) -> Stage {
        match pending.server.request() {
            Some(request) if request.command == Command::Bind => {
                let rules = &self.settings.rules;
                let bound = Binding::new(request, &pending.client, addresses, name, rules);
                self.bind(pending, bound, now)
            }
            _ => self.connect(pending, name, addresses, now),
        }
    }

    /// Tells the client of its port.
    fn bind(
        &mut self,
        mut pending: Box<Pending>,
        bound: Result<(Binding, SocketAddr), Unbound>,
        now: Instant,
    ) -> Stage {
        match bound {
            Ok((binding, bound)) => {
                let reply = ReplyCode::SUCCEEDED;
                pending.server.reply(reply, bound, &mut pending.unsent);
                pending.until = now + self.settings.bind_timeout.unwrap_or_default();
                let binding = Box::new(binding);
                Stage::Binding { pending, binding }
            }
            Err(Unbound::Denied(denied)) => self.deny(*pending, denied, now),
            Err(Unbound::Failed(code, why)) => self.refuse(*pending, code, &why, now),
        }
    }

    fn await_peer(
        &mut self,
        mut pending: Box<Pending>,
        mut binding: Box<Binding>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        match binding.turn(&self.settings.rules) {
            Came::Peer(socket, peer) => {
                if let Some(target) = &mut self.story.target {
                    *target = format!("{target}, came from {peer}").into();
                }
                Step::Next(self.established(*pending, socket, peer, cx.now))
            }
            Came::Failed(code, why) => Step::Next(self.refuse(*pending, code, &why, cx.now)),
            Came::Nobody => match self.wait(&mut pending, cx) {
                Ok(until) => {
                    let until = Some(until);
                    Step::Stay(Stage::Binding { pending, binding }, Turn::Wait { until })
                }
                Err(GivenUp::TimedOut) => {
                    let code = ReplyCode::TTL_EXPIRED;
                    Step::Next(self.refuse(*pending, code, &"nobody came in time", cx.now))
                }
                Err(left) => Step::Next(self.give_up(*pending, left, cx.now)),
            },
        }
    }

    /// Connects to those of the addresses that clients may go to.
    fn connect(
        &mut self,
        pending: Box<Pending>,
        name: NameVerdict,
        addresses: Vec<SocketAddr>,
        now: Instant,
    ) -> Stage {
        let mut denied = None;
        let mut allowed = Vec::new();
        for address in addresses.into_iter().map(canonical) {
            match self.settings.rules.check(address, name) {
                Ok(()) => allowed.push(address),
                Err(why) => denied = Some(why),
            }
        }
        if let (Some(why), true) = (denied, allowed.is_empty()) {
            return self.deny(*pending, why, now);
        }
        if let Some(via) = &self.settings.via {
            let destinations = allowed.into_iter().map(Address::from);
            return self.go_through(pending, Arc::clone(via), destinations);
        }
        Stage::Dialling {
            pending,
            dial: Box::new(Dial::new(allowed, now)),
        }
    }

    fn dial(
        &mut self,
        mut pending: Box<Pending>,
        mut dial: Box<Dial>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        match dial.turn(cx.now) {
            Dialled::Connected(socket) => {
                let bound = socket.local_addr().ok();
                let bound = bound.and_then(|address| address.as_socket());
                let bound = bound.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
                Step::Next(self.established(*pending, socket, canonical(bound), cx.now))
            }
            Dialled::Failed(code) => {
                let why = format!("no address answered ({})", code.0);
                Step::Next(self.refuse(*pending, code, &why, cx.now))
            }
            Dialled::Pending(next) => match self.wait(&mut pending, cx) {
                Ok(until) => {
                    let until = Some(next.map_or(until, |next| next.min(until)));
                    let stage = Stage::Dialling { pending, dial };
                    Step::Stay(stage, Turn::Wait { until })
                }
                Err(over) => Step::Next(self.give_up(*pending, over, cx.now)),
            },
        }
    }

    fn through(
        &mut self,
        mut pending: Box<Pending>,
        mut way: Box<Way>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        Step::Next(match way.turn(cx) {
            Gone::Through(socket, bound) => self.established(*pending, socket, bound, cx.now),
            Gone::Failed(failure) => self.lost(*pending, &failure, cx.now),
            Gone::Not(next) => match self.wait(&mut pending, cx) {
                Ok(until) => {
                    let until = Some(next.map_or(until, |next| next.min(until)));
                    let stage = Stage::Through { pending, way };
                    return Step::Stay(stage, Turn::Wait { until });
                }
                Err(GivenUp::TimedOut) => self.lost(*pending, &way.timed_out(), cx.now),
                Err(over) => self.give_up(*pending, over, cx.now),
            },
        })
    }

    /// Nobody was reached through the proxies.
    fn lost(&mut self, pending: Pending, failure: &Failure, now: Instant) -> Stage {
        if let Some(reason) = failure.reason() {
            self.settings.stats.refused(reason);
        }
        if let Some(via) = &self.settings.via {
            via.complain(failure, now);
        }
        self.refuse(pending, failure.code, failure, now)
    }

    /// Both sides are there: the last reply tells an address, then bytes are relayed.
    fn established(
        &self,
        pending: Pending,
        socket: Socket,
        told: SocketAddr,
        now: Instant,
    ) -> Stage {
        let Pending {
            client,
            mut server,
            mut unsent,
            payload,
            ..
        } = pending;
        server.reply(ReplyCode::SUCCEEDED, told, &mut unsent);
        let settings = Arc::clone(&self.settings.relay);
        Stage::Relaying(Box::new(Established {
            relay: Relay::new(client, socket, &payload, &unsent, settings, now),
            counted: Moved::default(),
            reply: unsent.len() as u64,
        }))
    }

    /// Until when to wait on.
    fn wait(&self, pending: &mut Pending, cx: &mut TurnContext<'_>) -> Result<Instant, GivenUp> {
        if cx.now >= pending.until {
            Err(GivenUp::TimedOut)
        } else if pending.has_left(cx) {
            Err(GivenUp::Left)
        } else {
            Ok(pending.until)
        }
    }

    fn give_up(&mut self, pending: Pending, over: GivenUp, now: Instant) -> Stage {
        match over {
            GivenUp::TimedOut => {
                let code = ReplyCode::HOST_UNREACHABLE;
                self.refuse(pending, code, &"connecting timed out", now)
            }
            GivenUp::Left => {
                self.story.end(now, &"left before it was connected");
                Stage::Over
            }
        }
    }

    fn no_such_command(&mut self, pending: Pending, now: Instant) -> Stage {
        self.settings.stats.refused("command");
        let code = ReplyCode::COMMAND_NOT_SUPPORTED;
        self.refuse(pending, code, &"command not supported", now)
    }

    fn deny(&mut self, pending: Pending, denied: Denied, now: Instant) -> Stage {
        self.settings.stats.refused("rules");
        self.refuse(pending, ReplyCode::NOT_ALLOWED, &denied, now)
    }

    fn refuse(
        &mut self,
        pending: Pending,
        code: ReplyCode,
        why: &dyn fmt::Display,
        now: Instant,
    ) -> Stage {
        self.story.end(now, why);
        let Pending {
            client,
            mut server,
            mut unsent,
            ..
        } = pending;
        server.refuse(code, &mut unsent);
        closing(Closing::new(client, unsent, now))
    }

    fn relay(&mut self, mut established: Box<Established>, cx: &mut TurnContext<'_>) -> Step {
        let turn = established.relay.turn(cx);
        let mut moved = established.relay.moved();
        moved.down = moved.down.saturating_sub(established.reply);
        let counted = mem::replace(&mut established.counted, moved);
        self.count(counted, moved);
        if turn != Turn::Done {
            return Step::Stay(Stage::Relaying(established), turn);
        }
        let Moved { up, down } = moved;
        let how = established.relay.ended();
        let ended = match how {
            Some(how) => format!("{up} up, {down} down: {how:?}"),
            None => format!("{up} up, {down} down"),
        };
        self.story.end(cx.now, &ended);
        Step::Next(Stage::Over)
    }

    fn carry(&mut self, mut association: Box<Association>, cx: &mut TurnContext<'_>) -> Step {
        let counted = association.moved();
        let turn = association.turn(&self.settings, cx);
        self.count(counted, association.moved());
        if turn != Turn::Done {
            return Step::Stay(Stage::Associated(association), turn);
        }
        self.story.end(cx.now, &association);
        Step::Next(Stage::Over)
    }

    /// Counts bytes that are not counted yet.
    fn count(&self, counted: Moved, moved: Moved) {
        if moved != counted {
            let (up, down) = (moved.up - counted.up, moved.down - counted.down);
            self.settings.stats.moved(up, down);
            if let Some(user) = &self.story.user {
                user.moved(up, down);
            }
        }
    }
}

/// Why a client gets no connection any more.
enum GivenUp {
    TimedOut,
    Left,
}

fn closing(closing: Closing) -> Stage {
    Stage::Closing(Box::new(closing))
}

/// Under which name a failure is counted.
fn reason(error: ServerError) -> &'static str {
    match error {
        ServerError::Version(_) | ServerError::Http => "not-socks",
        ServerError::Socks4Refused => "socks4",
        ServerError::UserIdRejected => "socks4-user",
        ServerError::NoAcceptableMethod => "no-acceptable-method",
        ServerError::CredentialsRejected => "credentials",
        ServerError::NoDestination | ServerError::Malformed(..) => "malformed",
    }
}

impl Story {
    fn end(&self, now: Instant, how: &dyn fmt::Display) {
        let lasted = now.saturating_duration_since(self.since);
        log::debug!("{self}: {how} in {lasted:.1?}");
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            Some(client) => write!(f, "{}", canonical(client))?,
            None => f.write_str("local client")?,
        }
        if let Some(user) = &self.user {
            write!(f, ", user {user:?}")?;
        }
        match &self.target {
            Some(target) => write!(f, " {target}"),
            None => Ok(()),
        }
    }
}

impl Session for ServerSession {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        loop {
            let step = match mem::replace(&mut self.stage, Stage::Over) {
                Stage::Opening(opening) => self.open(opening, cx),
                Stage::LookingUp {
                    pending,
                    name,
                    lookup,
                } => self.look_up(pending, name, lookup, cx),
                Stage::Dialling { pending, dial } => self.dial(pending, dial, cx),
                Stage::Binding { pending, binding } => self.await_peer(pending, binding, cx),
                Stage::Through { pending, way } => self.through(pending, way, cx),
                Stage::Closing(mut closing) => match closing.turn(cx) {
                    Turn::Done => Step::Next(Stage::Over),
                    turn => Step::Stay(Stage::Closing(closing), turn),
                },
                Stage::Relaying(established) => self.relay(established, cx),
                Stage::Associated(association) => self.carry(association, cx),
                Stage::Over => return Turn::Done,
            };
            if let Some(turn) = step.settle(&mut self.stage, cx) {
                return turn;
            }
        }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        match &self.stage {
            Stage::Opening(opening) => opening.interests(interests),
            Stage::LookingUp {
                pending, lookup, ..
            } => {
                pending.interests(interests);
                if let Some(descriptor) = lookup.descriptor() {
                    interests.watch(OTHERS, descriptor, Want::READ);
                }
            }
            Stage::Dialling { pending, dial } => {
                pending.interests(interests);
                dial.interests(interests);
            }
            Stage::Binding { pending, binding } => {
                pending.interests(interests);
                binding.interests(interests);
            }
            Stage::Through { pending, way } => {
                pending.interests(interests);
                way.interests(interests);
            }
            Stage::Closing(closing) => closing.interests(interests),
            Stage::Relaying(established) => established.relay.interests(interests),
            Stage::Associated(association) => association.interests(interests),
            Stage::Over => {}
        }
    }
}
