//! BIND with a backlog at a proxy of SOCKS 6: the port is the proxy's, and so are the peers that wait there.
//!
//! ```text
//! first connection ── BIND, backlog ──▶ FarHandle ── BIND, backlog ──▶ proxy: keeps the port open
//! another one of the session ── BIND for its address ─────── BIND ───▶ proxy: gives a peer, or waits for one
//! ```
//!
//! At the proxy all our clients are in one session. So that none of them fetches the peers of another one, it is remembered here
//! whose each port is.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::backlog::Holder;
use crate::engine::{Interests, Turn, TurnContext};
use crate::relay::Control;
use crate::server::pending::Pending;
use crate::server::session::{ServerSession, Stage, Step};
use crate::server::via::Kept;
use crate::server::{CLIENT, OTHERS};
use crate::wire::socks5::ReplyCode;

/// The ports that proxies keep open for our clients. Clones share them.
#[derive(Clone, Default)]
pub(super) struct FarPorts(Arc<Mutex<Vec<FarPort>>>);

struct FarPort {
    /// The address that the client knows, of which there is no second one.
    told: SocketAddr,
    holder: Holder,
    /// As the proxy names it.
    named: SocketAddr,
}

/// Whose port has an address.
pub(super) enum Whose {
    /// The one who asks; the proxy names it so.
    Own(SocketAddr),
    /// Somebody else's.
    Others,
    /// Nobody's.
    Nobodys,
}

impl FarPorts {
    pub(super) fn find(&self, holder: Option<&Holder>, address: SocketAddr) -> Whose {
        let ports = self.lock();
        match ports.iter().find(|port| port.told == address) {
            Some(port) if Some(&port.holder) == holder => Whose::Own(port.named),
            Some(_) => Whose::Others,
            // The proxy would take that for the same port.
            None if ports.iter().any(|port| port.named == address) => Whose::Others,
            None => Whose::Nobodys,
        }
    }

    /// Remembers a port until the entry is dropped; not a second one with the same address.
    fn enter(&self, told: SocketAddr, named: SocketAddr, holder: Holder) -> Option<Entry> {
        let mut ports = self.lock();
        if ports.iter().any(|port| port.told == told) {
            return None;
        }
        ports.push(FarPort {
            told,
            holder,
            named,
        });
        let ports = self.clone();
        Some(Entry { ports, told })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<FarPort>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FarPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FarPorts({})", self.lock().len())
    }
}

struct Entry {
    ports: FarPorts,
    told: SocketAddr,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ports.lock().retain(|port| port.told != self.told);
    }
}

/// The connections with which a port at a proxy lives.
pub(in crate::server) struct FarHandle {
    client: Control,
    proxy: Control,
    _entry: Entry,
}

impl FarHandle {
    /// Whether it is over, or what to wait for.
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        match (self.client.turn(cx), self.proxy.turn(cx)) {
            (Ok(true), Ok(true)) => Turn::Wait { until: None },
            (Ok(_), Ok(_)) => Turn::Again,
            _ => Turn::Done,
        }
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.client.interests(interests);
        self.proxy.interests(interests);
    }
}

impl ServerSession {
    /// The proxy keeps a port open for the client.
    pub(in crate::server) fn kept(
        &mut self,
        pending: Box<Pending>,
        kept: Kept,
        now: Instant,
    ) -> Stage {
        let Kept {
            socket,
            named,
            told,
            backlog,
        } = kept;
        let holder = self.holder(&pending);
        let ports = self
            .settings
            .socks6
            .as_ref()
            .map(|own| own.far_ports.clone());
        let entry = ports
            .zip(holder)
            .and_then(|(ports, holder)| ports.enter(told, named, holder));
        let Some(entry) = entry else {
            let code = ReplyCode::GENERAL_FAILURE;
            return self.refuse(pending, code, &"the proxy has given a port twice", now);
        };
        let granted = self.granted_bind(&pending, None, backlog);
        let Pending {
            client,
            mut answering,
            mut unsent,
            ..
        } = *pending;
        answering.reply(told, granted, &mut unsent);
        let handle = FarHandle {
            client: Control::new(client, CLIENT, unsent),
            proxy: Control::new(socket, OTHERS, Vec::new()),
            _entry: entry,
        };
        Stage::Keeping(Box::new(handle))
    }

    pub(in crate::server) fn keep(
        &mut self,
        mut handle: Box<FarHandle>,
        cx: &mut TurnContext<'_>,
    ) -> Step {
        match handle.turn(cx) {
            Turn::Done => {
                self.story.end(cx.now, &"port closed");
                Step::Next(Stage::Over)
            }
            turn => Step::Stay(Stage::Keeping(handle), turn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socks6::SessionId;

    #[test]
    fn a_port_is_its_holders_under_the_name_that_it_knows() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let holder = |text: &[u8]| Holder::Session(SessionId::new(text).unwrap());
        let (told, named) = (address("192.0.2.1:4000"), address("0.0.0.0:4000"));
        let (own, other) = (holder(b"own."), holder(b"other..."));
        let ports = FarPorts::default();
        let entry = ports.enter(told, named, own.clone()).unwrap();
        assert!(ports.enter(told, named, other.clone()).is_none());
        assert!(matches!(ports.find(Some(&own), told), Whose::Own(at) if at == named));
        for (holder, at) in [
            (Some(&other), told),
            (None, told),
            // The proxy would take these for the same port.
            (Some(&other), named),
            (Some(&own), named),
        ] {
            assert!(matches!(ports.find(holder, at), Whose::Others), "{at}");
        }
        let elsewhere = address("192.0.2.1:4001");
        assert!(matches!(ports.find(Some(&own), elsewhere), Whose::Nobodys));
        drop(entry);
        assert!(matches!(ports.find(Some(&own), told), Whose::Nobodys));
    }
}
