//! Datagrams that leave from this machine: a port for each family.

use std::io;
use std::net::SocketAddr;

use super::super::dropped::Dropped;
use super::super::sockets::Far;
use super::Received;
use crate::engine::{Interests, Key, TurnContext, Want};
use crate::net::canonical;
use crate::server::OTHERS;

/// A port for each family, opened with the first datagram that needs it.
pub(in crate::server) struct Direct {
    ports: [Option<Far>; 2],
    open: Open,
}

/// Makes a socket that can reach an address.
type Open = Box<dyn Fn(SocketAddr) -> io::Result<Far> + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server::association) enum Family {
    V4,
    V6,
}

impl Direct {
    /// No ports yet.
    pub(in crate::server::association) fn new(
        open: impl Fn(SocketAddr) -> io::Result<Far> + Send + 'static,
    ) -> Self {
        Self {
            ports: [None, None],
            open: Box::new(open),
        }
    }

    /// With the port of a family, which need not be opened any more.
    #[cfg(feature = "socks6")]
    pub(in crate::server::association) fn with(mut self, family: Family, port: Far) -> Self {
        *self.place(family) = Some(port);
        self
    }

    pub(super) fn send(&mut self, payload: &[u8], to: SocketAddr) -> Result<(), Dropped> {
        let family = Family::of(to);
        if self.port(family).is_none() {
            let opened = (self.open)(to).map_err(|_| Dropped::Socket)?;
            *self.place(family) = Some(opened);
        }
        self.port(family).ok_or(Dropped::Socket)?.send(payload, to)
    }

    pub(super) fn receive<'b>(&self, family: Family, cx: &'b mut TurnContext<'_>) -> Received<'b> {
        let Some(port) = self.port(family) else {
            return Received::Nothing;
        };
        let buffer = cx.buffer();
        match port.receive(buffer) {
            Ok(Some((count, from))) => {
                let payload = buffer.get(..count).unwrap_or_default();
                Received::Datagram(payload, canonical(from).into())
            }
            Ok(None) => Received::Nothing,
            // Of no destination that could be named.
            Err(_) => Received::Other,
        }
    }

    pub(super) const fn port(&self, family: Family) -> Option<&Far> {
        let [v4, v6] = &self.ports;
        match family {
            Family::V4 => v4.as_ref(),
            Family::V6 => v6.as_ref(),
        }
    }

    const fn place(&mut self, family: Family) -> &mut Option<Far> {
        let [v4, v6] = &mut self.ports;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    pub(super) fn interests<'a>(&'a self, reads: bool, interests: &mut Interests<'a>) {
        for family in Family::BOTH {
            if let (true, Some(port)) = (reads, self.port(family)) {
                interests.watch(family.key(), port.descriptor(), Want::READ);
            }
        }
    }
}

impl Family {
    pub(in crate::server::association) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(in crate::server::association) const fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    pub(in crate::server::association) const fn key(self) -> Key {
        match self {
            Self::V4 => OTHERS + 1,
            Self::V6 => OTHERS + 2,
        }
    }
}
