//! BIND of SOCKS 6: the request names the address and port at which the proxy shall listen, not the peer.
//!
//! Anybody whom the rules for destinations let in may connect. The address is one of this machine: the one at which the
//! client has reached it (for zeros), or another one; but loopback only for a client that came over loopback, and no port
//! below 1024, where people expect this machine's own services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use super::backlog::{Found, Handle, Holder, MOST_BACKLOG, Port, Unfetched};
use crate::engine::{Turn, TurnContext};
use crate::net::{canonical, is_local};
use crate::server::answering::{Answering, Stack};
use crate::server::binding::{Binding, failed, outside, reached_at};
use crate::server::cause::Cause;
use crate::server::pending::Pending;
use crate::server::reach::GivenUp;
use crate::server::session::{ServerSession, Stage, Step};
use crate::server::socks6::Fetch;
use crate::server::stack;
use crate::wire::socks5::ReplyCode;
use crate::wire::socks6::BacklogNotice;
use crate::wire::{Address, Host};

impl ServerSession {
    pub(super) fn bind6(
        &mut self,
        mut pending: Box<Pending>,
        wanted: &Address,
        now: Instant,
    ) -> Stage {
        let (Some(patience), Some(shared)) = (self.settings.bind_timeout, &self.settings.socks6)
        else {
            return self.no_such_command(pending, now);
        };
        let ports = shared.ports.clone();
        let holder = self.holder(&pending);
        // In the session of a port with that address, it is not about another one.
        let named = wanted.socket_addr().map(canonical);
        let found = named.and_then(|named| {
            let holder = holder.clone()?;
            Some((ports.find(holder, named)?, named))
        });
        if let Some((port, bound)) = found {
            return self.fetch(pending, &port, bound, now);
        }
        let at = match place(wanted, reached_at(&pending.client)) {
            Ok(at) if is_any(wanted) => outside(at, wanted, &self.settings.uplink),
            Ok(at) => at,
            Err((code, why)) => return self.refuse(pending, code, &why, now),
        };
        pending.until = now + patience;
        let backlog = pending.stack.as_ref().and_then(|stack| stack.backlog);
        let backlog = backlog.filter(|backlog| *backlog > 0);
        let Some((backlog, holder)) = backlog.zip(holder).filter(|_| self.slot.widen()) else {
            return self.bind_plain(pending, at, now);
        };
        let backlog = backlog.min(MOST_BACKLOG);
        let opened = stack::listen(
            at,
            backlog.into(),
            pending.stack.as_deref(),
            &self.settings.uplink,
        );
        let (listener, bound, in_force) = match opened {
            Ok((listener, bound, in_force)) => (listener, canonical(bound), in_force),
            Err(error) => return self.unbound(pending, failed(&error), now),
        };
        let granted = self.granted_bind(&pending, in_force, backlog);
        let Pending {
            client,
            mut answering,
            mut unsent,
            ..
        } = *pending;
        answering.reply(bound, granted, &mut unsent);
        let Answering::Socks6(answers) = answering else {
            return Stage::Over;
        };
        let listener = (listener, bound);
        let handle = Handle::new(client, answers, unsent, listener, holder, ports, patience);
        Stage::Listening(Box::new(handle))
    }

    /// One peer, on this connection.
    fn bind_plain(&mut self, mut pending: Box<Pending>, at: SocketAddr, now: Instant) -> Stage {
        let opened = Binding::open(at, pending.stack.as_deref(), &self.settings.uplink);
        let (binding, bound, in_force) = match opened {
            Ok(opened) => opened,
            Err(why) => return self.unbound(pending, why, now),
        };
        let granted = self.granted_bind(&pending, in_force, 0);
        pending.answering.reply(bound, granted, &mut pending.unsent);
        Stage::Binding {
            pending,
            binding: Box::new(binding),
        }
    }

    /// A peer of a port that another connection keeps open.
    fn fetch(
        &mut self,
        mut pending: Box<Pending>,
        port: &Port,
        bound: SocketAddr,
        now: Instant,
    ) -> Stage {
        let fetch = match port.fetch() {
            Ok(fetch) => fetch,
            Err(Unfetched::Closed) => {
                let code = ReplyCode::CONNECTION_REFUSED;
                return self.refuse(pending, code, &"the port was closed", now);
            }
            Err(Unfetched::TooMany) => {
                let code = ReplyCode::GENERAL_FAILURE;
                return self.refuse(pending, code, &"too many wait for a peer", now);
            }
        };
        pending.until = now + self.settings.bind_timeout.unwrap_or_default();
        // What the peer's connection has is told when it is there.
        let granted = self.granted_bind(&pending, None, 0);
        pending.answering.reply(bound, granted, &mut pending.unsent);
        Stage::Fetching {
            pending,
            fetch: Box::new(fetch),
        }
    }

    pub(in crate::server) fn await_fetched(
        &mut self,
        mut pending: Box<Pending>,
        fetch: Box<Fetch>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        match fetch.take() {
            Found::Nobody => {}
            Found::Peer(socket, peer) => {
                if let Some(target) = &mut self.story.target {
                    *target = format!("{target}, came from {peer}").into();
                }
                return Step::Next(self.peer_came(pending, socket, peer, cx.now));
            }
            Found::Closed => {
                let code = ReplyCode::CONNECTION_REFUSED;
                return Step::Next(self.refuse(pending, code, &"the port was closed", cx.now));
            }
        }
        match self.wait(&mut pending, cx) {
            Ok(until) => {
                let until = Some(until);
                Step::Stay(Stage::Fetching { pending, fetch }, Turn::Wait { until })
            }
            Err(GivenUp::TimedOut) => {
                let cause = Cause::timed_out(ReplyCode::TTL_EXPIRED);
                Step::Next(self.refuse(pending, cause, &"nobody came in time", cx.now))
            }
            Err(left) => Step::Next(self.give_up(pending, left, cx.now)),
        }
    }

    pub(in crate::server) fn keep_open(
        &mut self,
        mut handle: Box<Handle>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        let turn = match &self.settings.socks6 {
            Some(shared) => handle.turn(shared, &self.settings.rules, cx),
            None => Turn::Done,
        };
        match turn {
            Turn::Done => {
                let how = format!("port closed after {} peers", handle.let_in);
                self.story.end(cx.now, &how);
                Step::Next(Stage::Over)
            }
            turn => Step::Stay(Stage::Listening(handle), turn),
        }
    }

    /// The answers to what a BIND wants of sockets.
    pub(in crate::server) fn granted_bind(
        &self,
        pending: &Pending,
        remote: Stack,
        backlog: u16,
    ) -> Stack {
        let wanted = pending.stack.as_ref()?.backlog;
        let mut granted = self.granted(pending, remote)?;
        granted.backlog = wanted.map(|_| backlog);
        Some(granted)
    }

    /// Whose a port of this request is, if it can have one with a backlog.
    pub(super) fn holder(&self, pending: &Pending) -> Option<Holder> {
        let Answering::Socks6(answers) = &pending.answering else {
            return None;
        };
        if let Some(session) = answers.session() {
            return Some(Holder::Session(session.clone()));
        }
        // Clients that are told of each peer know no sessions.
        let user = self.story.user.as_ref().map(|login| login.name().into());
        let ip = self.story.client.map(|client| client.ip().to_canonical());
        (answers.profile().backlog == BacklogNotice::Push).then_some(Holder::Client(user, ip))
    }
}

fn is_any(wanted: &Address) -> bool {
    matches!(wanted.host, Host::Ip(ip) if ip.to_canonical().is_unspecified())
}

/// Where to listen for a client that has reached us there; at no address, over a Unix socket.
fn place(
    wanted: &Address,
    reached: Option<SocketAddr>,
) -> Result<SocketAddr, (ReplyCode, &'static str)> {
    let Host::Ip(ip) = wanted.host else {
        let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
        return Err((code, "a name is no address to listen at"));
    };
    let refused = |why| Err((ReplyCode::NOT_ALLOWED, why));
    let ip = ip.to_canonical();
    if (1..FIRST_PORT).contains(&wanted.port) {
        return refused("a port that is for services of this machine");
    }
    let mut at = match (ip.is_unspecified(), reached) {
        (true, Some(reached)) => reached,
        (true, None) => match ip {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        },
        (false, Some(reached)) if reached.ip().to_canonical() == ip => reached,
        (false, _) => SocketAddr::new(ip, 0),
    };
    if !ip.is_unspecified() {
        let over_loopback = reached.is_none_or(|reached| reached.ip().is_loopback());
        if !is_local(ip) || (ip.is_loopback() && !over_loopback) {
            return refused("not an address of this machine that the client can have");
        }
    }
    at.set_port(wanted.port);
    Ok(at)
}

/// As everywhere on Unix.
const FIRST_PORT: u16 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_addresses_of_this_machine_that_are_for_them() {
        for (wanted, reached, at) in [
            ("0.0.0.0:0", Some("192.0.2.1:0"), Ok("192.0.2.1:0")),
            ("[::]:0", Some("192.0.2.1:0"), Ok("192.0.2.1:0")),
            (
                "0.0.0.0:4000",
                Some("[2001:db8::1]:0"),
                Ok("[2001:db8::1]:4000"),
            ),
            ("0.0.0.0:0", None, Ok("0.0.0.0:0")),
            ("[::]:4000", None, Ok("[::]:4000")),
            ("127.0.0.1:0", Some("127.0.0.1:0"), Ok("127.0.0.1:0")),
            ("127.0.0.9:1024", Some("127.0.0.1:0"), Ok("127.0.0.9:1024")),
            ("127.0.0.1:4000", None, Ok("127.0.0.1:4000")),
            // Programs of this machine trust what listens there.
            ("127.0.0.1:4000", Some("192.0.2.1:0"), Err(2)),
            ("[::1]:0", Some("192.0.2.1:0"), Err(2)),
            ("[::ffff:127.0.0.1]:0", Some("192.0.2.1:0"), Err(2)),
            ("192.0.2.7:0", Some("127.0.0.1:0"), Err(2)),
            ("0.0.0.0:1", Some("127.0.0.1:0"), Err(2)),
            ("0.0.0.0:1023", Some("127.0.0.1:0"), Err(2)),
            ("localhost:0", Some("127.0.0.1:0"), Err(8)),
        ] {
            let reached = reached.map(|text| text.parse().unwrap());
            let placed = place(&wanted.parse().unwrap(), reached);
            let placed = placed.map_err(|(code, _)| code.0);
            let at = at.map(|text| text.parse().unwrap());
            assert_eq!(placed, at, "{wanted} at {reached:?}");
        }
    }
}
