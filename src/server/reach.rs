//! The stages between a request and the last reply to it: the destination is looked up, then connected to, directly or by way of
//! other proxies; or a port is opened and its peer awaited.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::answering::{Answering, Stack};
use super::association::Exit;
use super::binding::{Binding, Came, Unbound};
use super::cause::Cause;
use super::dial::{Dial, Dialled, InForce};
use super::opening::Opening;
use super::pending::Pending;
use super::rules::{Denied, NameVerdict, Rules};
use super::session::{Established, ServerSession, Stage, Step};
use super::settings::ReplyTiming;
#[cfg(feature = "socks6")]
use super::stack::{self, Wanted};
use super::via::{Expected, Failure, Via, Way};
use crate::engine::{Turn, TurnContext};
use crate::handshake::Request;
use crate::net::canonical;
use crate::proxy_uri::Resolution;
use crate::relay::{Moved, Relay};
use crate::resolver::{Lookup, ResolveError};
use crate::wire::socks5::{Command, ReplyCode};
use crate::wire::{Address, Host, Name};

impl ServerSession {
    pub(super) fn request(&mut self, opening: Opening, request: &Request, now: Instant) -> Stage {
        let address = &request.address;
        let pending = Box::new(Pending::new(
            opening.client,
            Answering::Older(opening.server),
            opening.unsent,
            opening.unread,
            now + self.settings.patience(),
        ));
        if let Some(via) = &self.settings.via
            && request.command != Command::Connect
        {
            // Other commands must not go past the proxies.
            let via = Arc::clone(via);
            return self.other_command_through(pending, via, request, now);
        }
        if request.command == Command::Associate {
            let uplink = self.settings.uplink.clone();
            return self.associate(pending, address, Ok(Exit::direct(uplink)), now);
        }
        let verb = match request.command {
            Command::Bind => "BIND for",
            _ => "to",
        };
        // Only the log tells of it: an idle connection need not remember it otherwise.
        if log::log_enabled!(log::Level::Debug) {
            self.story.target = Some(format!("{verb} {address}").into());
        }
        let check_name = match request.command {
            Command::Connect => Rules::check_name,
            Command::Bind if self.settings.bind_timeout.is_some() => Rules::check_peer_name,
            _ => return self.no_such_command(pending, now),
        };
        self.go_to(pending, address, check_name, now)
    }

    /// Goes on to where the request leads, of which the name, if it is one, is checked with that.
    pub(super) fn go_to(
        &mut self,
        pending: Box<Pending>,
        address: &Address,
        check_name: fn(&Rules, &Name, u16) -> Result<NameVerdict, Denied>,
        now: Instant,
    ) -> Stage {
        let rules = &self.settings.rules;
        match &address.host {
            Host::Ip(ip) => {
                let address = SocketAddr::new(*ip, address.port);
                self.looked_up(pending, NameVerdict::Open, vec![address], now)
            }
            Host::Name(name) => {
                let verdict = match check_name(rules, name, address.port) {
                    Ok(verdict) => verdict,
                    Err(denied) => return self.deny(pending, denied, now),
                };
                if let Some(via) = self.via_that_looks_up() {
                    if let Err(denied) = rules.check_unseen(name, address.port, verdict) {
                        return self.deny(pending, denied, now);
                    }
                    let destination = vec![address.clone()];
                    return match pending.is_bind() {
                        true => self.bind_through(pending, via, destination, Expected::Named),
                        false => self.go_through(pending, via, destination),
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
        mut pending: Box<Pending>,
        via: Arc<Via>,
        destinations: Vec<Address>,
    ) -> Stage {
        // Clients of SOCKS 6 have no need to wait for it.
        if self.settings.reply_timing == ReplyTiming::AtOnce
            && let Answering::Older(server) = &mut pending.answering
        {
            let unknown = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
            server.reply(ReplyCode::SUCCEEDED, unknown, &mut pending.unsent);
        }
        let resolver = self.settings.resolver.clone();
        Stage::Through {
            pending,
            way: Box::new(Way::new(via, destinations, resolver)),
        }
    }

    pub(super) fn look_up(
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
                Step::Next(self.refuse(pending, code, &error, cx.now))
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
                Err(over) => Step::Next(self.give_up(pending, over, cx.now)),
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
        match pending.answering.request() {
            Some(request) if request.command == Command::Bind => {
                if let Some(via) = &self.settings.via {
                    let via = Arc::clone(via);
                    return self.bind_for(pending, via, addresses, name, now);
                }
                let rules = &self.settings.rules;
                let bound = Binding::new(
                    request,
                    &pending.client,
                    addresses,
                    name,
                    rules,
                    &self.settings.uplink,
                );
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
                pending.answering.reply(bound, None, &mut pending.unsent);
                pending.until = now + self.settings.bind_timeout.unwrap_or_default();
                let binding = Box::new(binding);
                Stage::Binding { pending, binding }
            }
            Err(why) => self.unbound(pending, why, now),
        }
    }

    /// There is no port.
    pub(super) fn unbound(&mut self, pending: Box<Pending>, why: Unbound, now: Instant) -> Stage {
        match why {
            Unbound::Denied(denied) => self.deny(pending, denied, now),
            Unbound::Failed(code, why) => self.refuse(pending, code, &why, now),
        }
    }

    pub(super) fn await_peer(
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
                Step::Next(self.peer_came(pending, socket, peer, cx.now))
            }
            Came::Failed(code, why) => Step::Next(self.refuse(pending, code, &why, cx.now)),
            Came::Nobody => match self.wait(&mut pending, cx) {
                Ok(until) => {
                    let until = Some(until);
                    Step::Stay(Stage::Binding { pending, binding }, Turn::Wait { until })
                }
                Err(GivenUp::TimedOut) => {
                    let cause = Cause::timed_out(ReplyCode::TTL_EXPIRED);
                    Step::Next(self.refuse(pending, cause, &"nobody came in time", cx.now))
                }
                Err(left) => Step::Next(self.give_up(pending, left, cx.now)),
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
            return self.deny(pending, why, now);
        }
        self.connect_to(pending, allowed, now)
    }

    /// Connects to one of these, which need no check any more.
    pub(super) fn connect_to(
        &mut self,
        pending: Box<Pending>,
        allowed: Vec<SocketAddr>,
        now: Instant,
    ) -> Stage {
        if let Some(via) = &self.settings.via {
            let destinations = allowed.into_iter().map(Address::from).collect();
            return self.go_through(pending, Arc::clone(via), destinations);
        }
        let dial = Dial::new(&allowed, self.settings.uplink.clone(), now)
            .with(self.settings.tcp, &pending.payload);
        #[cfg(feature = "socks6")]
        let dial = match &pending.stack {
            Some(stack) => dial.wanting(Wanted::new(**stack, &pending.payload)),
            None => dial,
        };
        let dial = Box::new(dial);
        Stage::Dialling { pending, dial }
    }

    pub(super) fn dial(
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
                let InForce { stack, sent } = dial.take_in_force();
                pending.sent = sent;
                let granted = self.granted(&pending, stack);
                Step::Next(self.established(pending, socket, canonical(bound), granted, cx.now))
            }
            Dialled::Failed(cause) => {
                let why = format!("no address answered ({})", cause.code().0);
                Step::Next(self.refuse(pending, cause, &why, cx.now))
            }
            Dialled::Pending(next) => match self.wait(&mut pending, cx) {
                Ok(until) => {
                    let until = Some(next.map_or(until, |next| next.min(until)));
                    let stage = Stage::Dialling { pending, dial };
                    Step::Stay(stage, Turn::Wait { until })
                }
                Err(over) => Step::Next(self.give_up(pending, over, cx.now)),
            },
        }
    }

    /// Nobody was reached through the proxies.
    pub(super) fn lost(
        &mut self,
        pending: Box<Pending>,
        failure: &Failure,
        cause: Cause,
        now: Instant,
    ) -> Stage {
        if let Some(reason) = failure.reason() {
            self.settings.stats.refused(reason);
        }
        if let Some(via) = &self.settings.via {
            via.complain(failure, now);
        }
        self.refuse(pending, cause, failure, now)
    }

    /// The peer of a BIND is there.
    pub(super) fn peer_came(
        &mut self,
        pending: Box<Pending>,
        socket: Socket,
        peer: SocketAddr,
        now: Instant,
    ) -> Stage {
        #[cfg(feature = "socks6")]
        let of_peer = pending.stack.as_deref().map(|wanted| {
            let in_force = stack::of_peer(wanted, &socket, peer);
            Box::new(in_force)
        });
        #[cfg(not(feature = "socks6"))]
        let of_peer = None;
        let granted = self.granted(&pending, of_peer);
        self.established(pending, socket, peer, granted, now)
    }

    /// The answers to what the request wants of sockets, of which those of the client's leg are looked after here.
    #[cfg(feature = "socks6")]
    pub(super) fn granted(&self, pending: &Pending, remote: Stack) -> Stack {
        let wanted = pending.stack.as_deref()?;
        stack::granted(wanted, &pending.client, self.story.client, remote)
    }

    /// None: the older versions want nothing.
    #[cfg(not(feature = "socks6"))]
    pub(super) fn granted(&self, _: &Pending, _: Stack) -> Stack {
        None
    }

    /// Both sides are there: the last reply tells an address, then bytes are relayed.
    #[expect(clippy::boxed_local, reason = "stages hand on the box")]
    pub(super) fn established(
        &self,
        pending: Box<Pending>,
        socket: Socket,
        told: SocketAddr,
        granted: Stack,
        now: Instant,
    ) -> Stage {
        let Pending {
            client,
            mut answering,
            mut unsent,
            payload,
            sent,
            ..
        } = *pending;
        answering.reply(told, granted, &mut unsent);
        let settings = Arc::clone(&self.settings.relay);
        let payload = payload.get(sent..).unwrap_or_default();
        Stage::Relaying(Box::new(Established {
            relay: Relay::new(client, socket, payload, &unsent, settings, now),
            counted: Moved::default(),
            sent: sent as u64,
            reply: unsent.len() as u64,
        }))
    }

    /// Until when to wait on.
    pub(super) fn wait(
        &self,
        pending: &mut Pending,
        cx: &mut TurnContext<'_>,
    ) -> Result<Instant, GivenUp> {
        if cx.now >= pending.until {
            Err(GivenUp::TimedOut)
        } else if pending.has_left(cx) {
            Err(GivenUp::Left)
        } else {
            Ok(pending.until)
        }
    }

    pub(super) fn give_up(&mut self, pending: Box<Pending>, over: GivenUp, now: Instant) -> Stage {
        match over {
            GivenUp::TimedOut => {
                let cause = Cause::timed_out(ReplyCode::HOST_UNREACHABLE);
                self.refuse(pending, cause, &"connecting timed out", now)
            }
            GivenUp::Left => {
                self.story.end(now, &"left before it was connected");
                Stage::Over
            }
        }
    }
}

/// Why a client gets no connection any more.
pub(super) enum GivenUp {
    TimedOut,
    Left,
}
