//! BIND of SOCKS 6 that other proxies carry out.
//!
//! A proxy of SOCKS 6 is asked for the address at which the client wants it to listen. The older versions ask for the peer instead:
//! it is anybody, at an address and a port of the proxy's choice. Whoever comes is judged by our rules, and one peer is all
//! there is: a backlog is answered with 0.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::server::pending::Pending;
use crate::server::session::{ServerSession, Stage};
use crate::server::via::{Expected, Via};
use crate::wire::socks5::ReplyCode;
use crate::wire::{Address, Host};

impl ServerSession {
    pub(super) fn bind6_through(
        &mut self,
        pending: Pending,
        via: Arc<Via>,
        wanted: &Address,
        now: Instant,
    ) -> Stage {
        if self.settings.bind_timeout.is_none() || !via.binds() {
            return self.no_such_command(pending, now);
        }
        let Host::Ip(ip) = wanted.host else {
            let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
            return self.refuse(pending, code, &"a name is no address to listen at", now);
        };
        let at = SocketAddr::new(ip.to_canonical(), wanted.port);
        if !via.asks_where() && !is_any(at) {
            return self.refuse(pending, ReplyCode::NOT_ALLOWED, &NO_CHOICE, now);
        }
        // As without proxies, with the port that stands for any.
        let expected = Expected::Anybody(0);
        self.bind_through(Box::new(pending), via, [at.into()], expected)
    }
}

/// Whether an address is left to the proxy as a whole.
fn is_any(at: SocketAddr) -> bool {
    at.ip().is_unspecified() && at.port() == 0
}

const NO_CHOICE: &str = "a proxy of an older version lets nobody choose its address and port";
