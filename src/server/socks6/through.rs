//! BIND and UDP ASSOCIATE of SOCKS 6 that other proxies carry out.
//!
//! A proxy of SOCKS 6 is asked for the address that the client wants to have there. The older versions don't ask for that, so
//! there it is one of the proxy's choice; and of an association they don't tell what destinations see, so that is told as zeros.
//!
//! Whoever comes to a port is judged by our rules. Of the older versions one peer is all there is: a backlog is answered with 0. Of
//! what the client wants of sockets nothing is known behind the proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::backlog::Holder;
use super::far_port::Whose;
use crate::proxy_uri::Resolution;
use crate::server::answering::Answering;
use crate::server::association::socks6::Prepared;
use crate::server::pending::Pending;
use crate::server::session::{ServerSession, Stage};
use crate::server::via::{Arrived, Expected, Via, Way};
use crate::wire::socks5::ReplyCode;
use crate::wire::{Address, Host};

impl ServerSession {
    pub(super) fn bind6_through(
        &mut self,
        pending: Box<Pending>,
        via: Arc<Via>,
        wanted: &Address,
        now: Instant,
    ) -> Stage {
        if self.settings.bind_timeout.is_none() || !via.binds() {
            return self.no_such_command(pending, now);
        }
        let at = match place(wanted, &via) {
            Ok(at) => at,
            Err((code, why)) => return self.refuse(pending, code, &why, now),
        };
        let Some(shared) = &self.settings.socks6 else {
            return self.no_such_command(pending, now);
        };
        // As without proxies, with the port that stands for any.
        let expected = Expected::Anybody(0);
        let holder = self.holder(&pending);
        let at = match shared.far_ports.find(holder.as_ref(), at) {
            Whose::Own(named) => named,
            Whose::Others => {
                let why = "a port of another client";
                return self.refuse(pending, ReplyCode::NOT_ALLOWED, &why, now);
            }
            Whose::Nobodys => match (wanted_backlog(&pending), holder) {
                (Some(backlog), Some(Holder::Session(_))) if via.keeps_ports() => {
                    let resolver = self.settings.resolver.clone();
                    let way = Way::listen(via, at, backlog, expected, resolver);
                    let (pending, way) = (pending, Box::new(way));
                    return Stage::Through { pending, way };
                }
                _ => at,
            },
        };
        self.bind_through(pending, via, vec![at.into()], expected)
    }

    pub(super) fn associate6_through(
        &mut self,
        pending: Box<Pending>,
        via: Arc<Via>,
        wanted: &Address,
        now: Instant,
    ) -> Stage {
        if self.settings.udp.is_none() || !via.carries_datagrams() {
            return self.no_such_command(pending, now);
        }
        match place(wanted, &via) {
            Ok(at) => self.associate_through(pending, via, at),
            Err((code, why)) => self.refuse(pending, code, &why, now),
        }
    }

    /// The proxy carries datagrams: a place for those of the client.
    pub(in crate::server) fn associated6(
        &mut self,
        pending: Box<Pending>,
        arrived: Arrived,
        resolution: Resolution,
        now: Instant,
    ) -> Stage {
        let Answering::Socks6(answers) = pending.answering else {
            return self.no_such_command(pending, now);
        };
        let Pending {
            client,
            stack,
            unsent,
            payload,
            ..
        } = *pending;
        let bound = match arrived.association {
            Some(_) => arrived.told,
            None => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        };
        let stack = stack.map(|stack| *stack).unwrap_or_default();
        let prepared = Prepared::through(
            arrived.into_exit(resolution, &self.settings.uplink),
            bound,
            (&client, self.story.client),
            (&stack, *answers.profile()),
            &mut self.slot,
            &self.settings,
            now,
        );
        self.associated_with(prepared, *answers, (client, unsent, payload), now)
    }
}

/// How many shall wait at a port, if more than one peer is wanted.
fn wanted_backlog(pending: &Pending) -> Option<u16> {
    let backlog = pending.stack.as_ref()?.backlog;
    backlog.filter(|backlog| *backlog > 0)
}

/// The address to ask the last proxy for.
fn place(wanted: &Address, via: &Via) -> Result<SocketAddr, (ReplyCode, &'static str)> {
    let Host::Ip(ip) = wanted.host else {
        let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
        return Err((code, "a name is no address to have at a proxy"));
    };
    let at = SocketAddr::new(ip.to_canonical(), wanted.port);
    let is_any = at.ip().is_unspecified() && at.port() == 0;
    match is_any || via.asks_where() {
        true => Ok(at),
        false => Err((
            ReplyCode::NOT_ALLOWED,
            "a proxy of an older version lets nobody choose address and port",
        )),
    }
}
