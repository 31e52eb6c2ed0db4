//! The stage of a request that other proxies carry out.

use std::io;
#[cfg(feature = "socks6")]
use std::net::{IpAddr, Ipv6Addr};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "socks6")]
use super::answering::Answering;
#[cfg(feature = "socks6")]
use super::association::Tunnel;
use super::association::{Exit, RelayPort};
use super::binding::{SOCKS4_IS_IPV4, allowed_peers};
use super::cause::Cause;
use super::pending::Pending;
use super::reach::GivenUp;
use super::rules::{NameVerdict, Rules};
use super::session::{ServerSession, Stage, Step};
use super::via::{Arrived, Expected, Gone, Unexpected, Via, Way};
use crate::engine::{Turn, TurnContext};
use crate::handshake::Request;
use crate::net::Uplink;
use crate::proxy_uri::Resolution;
use crate::wire::socks5::{Command, ReplyCode};
use crate::wire::{Address, Host};

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
                Gone::Listening(bound) if self.listening(&mut pending, bound, cx.now) => continue,
                Gone::Listening(_) => {
                    let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
                    return Step::Next(self.refuse(pending, code, &SOCKS4_IS_IPV4, cx.now));
                }
                #[cfg(feature = "socks6")]
                Gone::Kept(kept) => return Step::Next(self.kept(pending, kept, cx.now)),
                Gone::Through(arrived) => {
                    return Step::Next(self.arrived(pending, &way, arrived, cx.now));
                }
                Gone::Failed(failure) => {
                    let cause = failure.code.into();
                    return Step::Next(self.lost(pending, &failure, cause, cx.now));
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
                    self.lost(pending, &failure, cause, cx.now)
                }
                Err(over) => self.give_up(pending, over, cx.now),
            });
        }
    }

    /// The proxies have done it.
    fn arrived(
        &mut self,
        mut pending: Box<Pending>,
        way: &Way,
        arrived: Arrived,
        now: Instant,
    ) -> Stage {
        if way.is_for_datagrams() {
            return self.associated(pending, arrived, way.resolution(), now);
        }
        if let Some(expected) = way.expected() {
            match expected.admits(arrived.told, &self.settings.rules) {
                Ok(()) => {}
                Err(Unexpected::Denied(denied)) => return self.deny(pending, denied, now),
                Err(stranger) => {
                    return self.refuse(pending, ReplyCode::NOT_ALLOWED, &stranger, now);
                }
            }
            if let Some(target) = &mut self.story.target {
                *target = format!("{target}, came from {}", arrived.told).into();
            }
        }
        pending.sent = arrived.carried;
        let granted = self.granted(&pending, None);
        self.established(pending, arrived.socket, arrived.told, granted, now)
    }

    /// BIND and UDP ASSOCIATE, if the last proxy carries them out.
    pub(super) fn other_command_through(
        &mut self,
        pending: Box<Pending>,
        via: Arc<Via>,
        request: &Request,
        now: Instant,
    ) -> Stage {
        let Request {
            command, address, ..
        } = request;
        self.story.target = Some(address.to_string().into());
        match (command, &address.host) {
            (Command::Bind, host) if self.settings.bind_timeout.is_some() && via.binds() => {
                self.story.target = Some(format!("BIND for {address}").into());
                match host {
                    // Who comes is checked then.
                    Host::Ip(ip) if ip.to_canonical().is_unspecified() => {
                        let any = SocketAddr::new(ip.to_canonical(), address.port);
                        let expected = Expected::Anybody(address.port);
                        self.bind_through(pending, via, vec![any.into()], expected)
                    }
                    // Nobody asks the proxy for the peer. To look it up here would tell our resolver what is the proxy's to know.
                    Host::Name(_) if via.asks_where() => {
                        let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
                        let why = "the peer of a BIND through a SOCKS 6 proxy needs an address";
                        self.refuse(pending, code, &why, now)
                    }
                    _ => self.go_to(pending, address, Rules::check_peer_name, now),
                }
            }
            // A client without an address could not be told from others.
            (Command::Associate, _)
                if self.settings.udp.is_some()
                    && self.story.client.is_some()
                    && via.carries_datagrams() =>
            {
                self.story.target = None;
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                self.associate_through(pending, via, any)
            }
            _ => self.no_such_command(pending, now),
        }
    }

    /// BIND for a peer with these addresses.
    pub(super) fn bind_for(
        &mut self,
        pending: Box<Pending>,
        via: Arc<Via>,
        addresses: Vec<SocketAddr>,
        name: NameVerdict,
        now: Instant,
    ) -> Stage {
        let Some(request) = pending.answering.request() else {
            return self.no_such_command(pending, now);
        };
        let port = request.address.port;
        let peers = match allowed_peers(request, addresses, name, &self.settings.rules) {
            Ok(peers) => peers,
            Err(why) => return self.unbound(pending, why, now),
        };
        #[cfg(feature = "socks6")]
        if via.asks_where() {
            // Only the family follows from the peer's address.
            let any = match peers.first() {
                Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
                _ => Ipv4Addr::UNSPECIFIED.into(),
            };
            let any = SocketAddr::new(any, 0);
            return self.bind_through(pending, via, vec![any.into()], Expected::Untold(peers));
        }
        let destinations = peers
            .iter()
            .map(|peer| SocketAddr::new(*peer, port).into())
            .collect();
        self.bind_through(pending, via, destinations, Expected::Told(peers))
    }

    /// A port at the last proxy, which is asked for one of the destinations.
    pub(super) fn bind_through(
        &self,
        pending: Box<Pending>,
        via: Arc<Via>,
        destinations: Vec<Address>,
        expected: Expected,
    ) -> Stage {
        let resolver = self.settings.resolver.clone();
        let way = Way::bind(via, destinations, expected, resolver);
        let way = Box::new(way);
        Stage::Through { pending, way }
    }

    /// The proxy listens there for the client.
    fn listening(&self, pending: &mut Pending, bound: SocketAddr, now: Instant) -> bool {
        let request = pending.answering.request();
        if bound.is_ipv6() && request.is_some_and(|request| request.user_id().is_some()) {
            return false;
        }
        #[cfg(feature = "socks6")]
        let granted = self.granted_bind(pending, None, 0);
        #[cfg(not(feature = "socks6"))]
        let granted = None;
        pending.answering.reply(bound, granted, &mut pending.unsent);
        pending.until = now + self.settings.bind_timeout.unwrap_or_default();
        true
    }

    /// A place for datagrams at the last proxy, which is asked for this address.
    pub(super) fn associate_through(
        &self,
        pending: Box<Pending>,
        via: Arc<Via>,
        address: SocketAddr,
    ) -> Stage {
        let way = Way::associate(via, address, self.settings.resolver.clone());
        let way = Box::new(way);
        Stage::Through { pending, way }
    }

    /// The proxy carries datagrams: a place for those of the client.
    fn associated(
        &mut self,
        pending: Box<Pending>,
        arrived: Arrived,
        resolution: Resolution,
        now: Instant,
    ) -> Stage {
        #[cfg(feature = "socks6")]
        if let Answering::Socks6(_) = pending.answering {
            return self.associated6(pending, arrived, resolution, now);
        }
        let request = pending.answering.request();
        let Some(announced) = request.map(|request| request.address.clone()) else {
            return self.no_such_command(pending, now);
        };
        let uplink = self.settings.uplink.clone();
        let exit = arrived.into_exit(resolution, &uplink);
        self.associate(pending, &announced, exit, now)
    }
}

impl Arrived {
    /// The way out for datagrams, where those were asked for.
    pub(super) fn into_exit(self, resolution: Resolution, uplink: &Uplink) -> io::Result<Exit> {
        #[cfg(feature = "socks6")]
        if let Some((id, profile)) = self.association {
            return Ok(Exit::Tunnel(Tunnel::new(self.socket, id, profile)));
        }
        let relay = RelayPort::open(self.socket, self.told, resolution, uplink)?;
        Ok(Exit::RelayPort(relay))
    }
}
