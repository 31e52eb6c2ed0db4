//! The stage of a request that other proxies carry out.

#[cfg(feature = "socks6")]
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "socks6")]
use socket2::Socket;

#[cfg(feature = "socks6")]
use super::answering::Answering;
#[cfg(feature = "socks6")]
use super::association::tunnel::Tunnel;
use super::cause::Cause;
use super::pending::Pending;
use super::reach::GivenUp;
use super::rules::NameVerdict;
use super::session::{ServerSession, Stage, Step};
use super::via::{Arrived, Gone, Via, Way};
use crate::engine::{Turn, TurnContext};
use crate::handshake::Request;
#[cfg(feature = "socks6")]
use crate::wire::Host;
#[cfg(feature = "socks6")]
use crate::wire::socks5::{Command, ReplyCode};
#[cfg(feature = "socks6")]
use crate::wire::socks6::{AssociationId, Profile};

impl ServerSession {
    /// Waits for the proxies.
    pub(super) fn through(
        &mut self,
        mut pending: Box<Pending>,
        mut way: Box<Way>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        loop {
            let next = match way.turn(&pending.payload, cx) {
                Gone::Not(next) => next,
                Gone::Listening(bound) => {
                    pending.answering.reply(bound, None, &mut pending.unsent);
                    pending.until = cx.now + self.settings.bind_timeout.unwrap_or_default();
                    continue;
                }
                Gone::Through(arrived) => {
                    return Step::Next(self.arrived(*pending, &way, arrived, cx.now));
                }
                Gone::Failed(failure) => {
                    let cause = failure.code.into();
                    return Step::Next(self.lost(*pending, &failure, cause, cx.now));
                }
            };
            let known = pending.payload.len();
            return Step::Next(match self.wait(&mut pending, cx) {
                // It may go ahead of the reply.
                Ok(_) if pending.payload.len() > known => continue,
                Ok(until) => {
                    let until = Some(next.map_or(until, |next| next.min(until)));
                    let stage = Stage::Through { pending, way };
                    return Step::Stay(stage, Turn::Wait { until });
                }
                Err(GivenUp::TimedOut) => {
                    let failure = way.timed_out();
                    let cause = Cause::timed_out(failure.code);
                    self.lost(*pending, &failure, cause, cx.now)
                }
                Err(over) => self.give_up(*pending, over, cx.now),
            });
        }
    }

    /// The proxies have done it.
    fn arrived(
        &mut self,
        mut pending: Pending,
        way: &Way,
        arrived: Arrived,
        now: Instant,
    ) -> Stage {
        #[cfg(feature = "socks6")]
        if let Some(id) = arrived.association {
            return self.tunnel(pending, arrived.socket, id, now);
        }
        if way.awaits_peer() {
            let rules = &self.settings.rules;
            if let Err(denied) = rules.check_peer(arrived.told, NameVerdict::Open) {
                return self.deny(pending, denied, now);
            }
            if let Some(target) = &mut self.story.target {
                *target = format!("{target}, came from {}", arrived.told).into();
            }
        }
        pending.sent = arrived.carried;
        let granted = self.granted(&pending, None);
        self.established(pending, arrived.socket, arrived.told, granted, now)
    }

    /// BIND and UDP ASSOCIATE, which only SOCKS 6 proxies carry out.
    pub(super) fn other_command_through(
        &mut self,
        pending: Pending,
        via: Arc<Via>,
        request: &Request,
        now: Instant,
    ) -> Stage {
        self.story.target = Some(request.address.to_string().into());
        #[cfg(feature = "socks6")]
        if via.carries_everything() {
            return self.carried_command(pending, via, request, now);
        }
        #[cfg(not(feature = "socks6"))]
        drop(via);
        self.no_such_command(pending, now)
    }

    #[cfg(feature = "socks6")]
    fn carried_command(
        &mut self,
        pending: Pending,
        via: Arc<Via>,
        request: &Request,
        now: Instant,
    ) -> Stage {
        let resolver = self.settings.resolver.clone();
        let way = match (request.command, &request.address.host) {
            (Command::Associate, _) if self.settings.udp.is_some() => {
                self.story.target = None;
                Way::associate(via, resolver)
            }
            (Command::Bind, Host::Ip(peer)) if self.settings.bind_timeout.is_some() => {
                self.story.target = Some(format!("BIND for {}", request.address).into());
                let address = SocketAddr::new(*peer, request.address.port);
                let denied = self
                    .settings
                    .rules
                    .check_peer(address, NameVerdict::Open)
                    .err();
                // Where it is anybody, that is checked of who comes.
                if let Some(denied) = denied.filter(|_| !peer.to_canonical().is_unspecified()) {
                    return self.deny(pending, denied, now);
                }
                Way::bind(via, *peer, resolver)
            }
            // SOCKS 6 does not ask for the peer. To look it up here would tell our resolver what is the proxy's to know.
            (Command::Bind, Host::Name(_)) if self.settings.bind_timeout.is_some() => {
                let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
                let why = "the peer of a BIND through a SOCKS 6 proxy needs an address";
                return self.refuse(pending, code, &why, now);
            }
            _ => return self.no_such_command(pending, now),
        };
        let (pending, way) = (Box::new(pending), Box::new(way));
        Stage::Through { pending, way }
    }

    /// The proxy carries datagrams: a place for those of the client.
    #[cfg(feature = "socks6")]
    fn tunnel(
        &mut self,
        pending: Pending,
        proxy: Socket,
        id: (AssociationId, Profile),
        now: Instant,
    ) -> Stage {
        let request = match &pending.answering {
            Answering::Older(server) => server.request(),
            Answering::Socks6(_) => None,
        };
        let Some(announced) = request.map(|request| request.address.clone()) else {
            return self.no_such_command(pending, now);
        };
        match self.prepare(pending, &announced, now) {
            Ok((client, unsent, prepared)) => {
                let tunnel = Tunnel::new(client, unsent, prepared, proxy, id, now);
                Stage::Tunnelled(Box::new(tunnel))
            }
            Err(stage) => stage,
        }
    }

    #[cfg(feature = "socks6")]
    pub(super) fn carry_tunnel(
        &mut self,
        mut tunnel: Box<Tunnel>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        let counted = tunnel.moved();
        let turn = tunnel.turn(&self.settings, cx);
        self.count(counted, tunnel.moved());
        if turn != Turn::Done {
            return Step::Stay(Stage::Tunnelled(tunnel), turn);
        }
        self.story.end(cx.now, &tunnel);
        Step::Next(Stage::Over)
    }
}
