//! Ports of a wanted parity, and ports that are kept free for a second association ("Port Parity" in the draft).
//!
//! Media streams come in pairs of ports (RTP and RTCP, RFC 3550 §11): an even one and the next. A port that is kept free has a
//! socket, so that nobody else on this machine gets it either. A request that names it takes over that socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::Socket;

use crate::net::open_datagrams;
use crate::wire::socks6::{Parity, PortParity, Reserve, SessionId};

/// The reserved ports of one server. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct ReservedPorts {
    list: Arc<Mutex<Vec<Reserved>>>,
}

struct Reserved {
    at: SocketAddr,
    owner: Who,
    socket: Socket,
    /// Tells it from a later one of the same port.
    mark: Arc<()>,
}

/// Who wants a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// The session of the request, if it has one.
    pub(super) session: Option<SessionId>,
    /// Where the client is; none on a Unix socket.
    pub(super) address: Option<IpAddr>,
}

/// Keeps a port free until it is claimed or this is dropped.
pub(super) struct Reservation {
    ports: ReservedPorts,
    mark: Arc<()>,
}

/// A port, bound.
pub(super) struct Taken {
    pub(super) socket: Socket,
    pub(super) at: SocketAddr,
    /// What the client is told, if it asked.
    pub(super) parity: Option<PortParity>,
    pub(super) reservation: Option<Reservation>,
}

/// Why there is no port.
#[derive(Debug)]
pub(super) enum NoPort {
    /// It is kept for somebody else, or for the system's own services.
    NotYours,
    /// The system says this.
    System(io::Error),
}

impl Who {
    /// Whether a port that was reserved for `owner` is for this one. Outside of sessions the address has to do.
    fn may_claim(&self, owner: &Self) -> bool {
        match &owner.session {
            Some(session) => self.session.as_ref() == Some(session),
            None => self.address == owner.address,
        }
    }
}

impl ReservedPorts {
    /// Binds a port at an address, any if the port is 0.
    pub(super) fn take(
        &self,
        at: SocketAddr,
        wanted: Option<PortParity>,
        who: &Who,
    ) -> Result<Taken, NoPort> {
        let Some(wanted) = wanted else {
            let (socket, at) = self.bind(at, who)?;
            return Ok(Taken {
                socket,
                at,
                parity: None,
                reservation: None,
            });
        };
        // Without a choice there is nothing to try again.
        let is_named = at.port() != 0;
        let attempts = if is_named { 1 } else { ATTEMPTS };
        let mut taken = None;
        for _ in 0..attempts {
            let (socket, at) = self.bind_with(at, wanted.parity, who)?;
            // Of a port that was named the parity does not matter, but the other one can still be reserved.
            let is_met = is_named || wanted.parity.is_that_of(at.port());
            let reservation = match wanted.reserve {
                Reserve::Yes if is_met => self.reserve(counterpart(at), who),
                _ => None,
            };
            let parity = PortParity {
                parity: match is_met && !is_named {
                    true => wanted.parity,
                    false => Parity::Any,
                },
                reserve: match reservation {
                    Some(_) => Reserve::Yes,
                    None => Reserve::No,
                },
            };
            let is_all = parity == wanted;
            taken = Some(Taken {
                socket,
                at,
                parity: Some(parity),
                reservation,
            });
            if is_all {
                break;
            }
        }
        taken.ok_or_else(|| NoPort::System(io::ErrorKind::AddrInUse.into()))
    }

    /// A port of this parity if there is one at hand.
    fn bind_with(
        &self,
        at: SocketAddr,
        parity: Parity,
        who: &Who,
    ) -> Result<(Socket, SocketAddr), NoPort> {
        let (socket, bound) = self.bind(at, who)?;
        if at.port() == 0
            && !parity.is_that_of(bound.port())
            && let Ok(other) = open(counterpart(bound))
        {
            return Ok(other);
        }
        Ok((socket, bound))
    }

    fn bind(&self, at: SocketAddr, who: &Who) -> Result<(Socket, SocketAddr), NoPort> {
        if matches!(at.port(), 1..=LAST_PRIVILEGED) {
            return Err(NoPort::NotYours);
        }
        match self.claim(at, who)? {
            Some(socket) => Ok((socket, at)),
            None => open(at).map_err(NoPort::System),
        }
    }

    /// The socket of a port that is reserved, for whom it is.
    fn claim(&self, at: SocketAddr, who: &Who) -> Result<Option<Socket>, NoPort> {
        let mut list = self.lock();
        let overlaps = |other: SocketAddr| {
            let any = at.ip().is_unspecified() || other.ip().is_unspecified();
            other.port() == at.port()
                && other.is_ipv4() == at.is_ipv4()
                && (any || other.ip() == at.ip())
        };
        let Some(place) = list.iter().position(|it| overlaps(it.at)) else {
            return Ok(None);
        };
        match list.get(place) {
            Some(it) if it.at == at && who.may_claim(&it.owner) => {
                Ok(Some(list.swap_remove(place).socket))
            }
            _ => Err(NoPort::NotYours),
        }
    }

    fn reserve(&self, at: SocketAddr, owner: &Who) -> Option<Reservation> {
        if at.port() <= LAST_PRIVILEGED {
            return None;
        }
        let mut list = self.lock();
        let own = list.iter().filter(|it| it.owner.address == owner.address);
        if own.count() >= MOST_OF_ONE || list.len() >= MOST_RESERVED {
            return None;
        }
        let (socket, at) = open(at).ok()?;
        let mark = Arc::new(());
        list.push(Reserved {
            at,
            owner: owner.clone(),
            socket,
            mark: Arc::clone(&mark),
        });
        drop(list);
        let ports = self.clone();
        Some(Reservation { ports, mark })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reserved>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut list = self.ports.lock();
        list.retain(|it| !Arc::ptr_eq(&it.mark, &self.mark));
    }
}

fn open(at: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = open_datagrams(at)?;
    socket.bind(&at.into())?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(at);
    Ok((socket, bound))
}

/// The other one of a pair.
fn counterpart(at: SocketAddr) -> SocketAddr {
    let mut other = at;
    other.set_port(at.port() ^ 1);
    other
}

/// Services of the machine are there, and a client must not pass for one of them.
const LAST_PRIVILEGED: u16 = 1023;

/// One in two has the right parity, and its counterpart is nearly always free.
const ATTEMPTS: usize = 8;

/// Of all clients together: each takes a descriptor, which comes out of the reserve that a server has for its own.
const MOST_RESERVED: usize = 16;

/// Of one address, so that it leaves some to others. Who wants a pair claims the second at once.
const MOST_OF_ONE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn who(session: Option<u8>, address: &str) -> Who {
        Who {
            session: session.and_then(|byte| SessionId::new(&[byte; 16])),
            address: Some(address.parse().unwrap()),
        }
    }

    fn wanted(parity: Parity, reserve: Reserve) -> Option<PortParity> {
        Some(PortParity { parity, reserve })
    }

    const ANY: &str = "127.0.0.1:0";

    fn take(ports: &ReservedPorts, at: &str, wanted: Option<PortParity>, who: &Who) -> Taken {
        let taken = ports.take(at.parse().unwrap(), wanted, who);
        taken.unwrap_or_else(|error| panic!("{at}: {error:?}"))
    }

    #[test]
    fn ports_have_the_parity_that_is_wanted() {
        let ports = ReservedPorts::default();
        let me = who(None, "192.0.2.1");
        let mut kept = Vec::new();
        for _ in 0..20 {
            for parity in [Parity::Even, Parity::Odd] {
                for at in [ANY, "[::1]:0"] {
                    let taken = take(&ports, at, wanted(parity, Reserve::No), &me);
                    assert_eq!(taken.parity, wanted(parity, Reserve::No));
                    assert_eq!(taken.at.port().is_multiple_of(2), parity == Parity::Even);
                    kept.push(taken);
                }
            }
        }
        assert!(ports.lock().is_empty());
        let taken = take(&ports, ANY, None, &me);
        assert_eq!(taken.parity, None);
    }

    #[test]
    fn a_reserved_port_is_taken_until_it_is_claimed_or_the_first_one_ends() {
        let ports = ReservedPorts::default();
        let me = who(Some(1), "192.0.2.1");
        for parity in [Parity::Any, Parity::Even, Parity::Odd] {
            let first = take(&ports, ANY, wanted(parity, Reserve::Yes), &me);
            assert_eq!(first.parity, wanted(parity, Reserve::Yes));
            let other = counterpart(first.at);
            assert!(open(other).is_err(), "the system keeps it");
            // The same session, from wherever; nobody else, and nobody without a session.
            for stranger in [who(Some(2), "192.0.2.1"), who(None, "192.0.2.1")] {
                let refused = ports.take(other, None, &stranger);
                assert!(matches!(refused, Err(NoPort::NotYours)));
            }
            let claimed = take(&ports, &other.to_string(), None, &who(Some(1), "192.0.2.9"));
            assert_eq!(claimed.at, other);
            assert!(ports.lock().is_empty() && open(other).is_err());
            drop(claimed);
            assert!(open(other).is_ok(), "only once");

            let first = take(&ports, ANY, wanted(parity, Reserve::Yes), &me);
            let other = counterpart(first.at);
            drop(first);
            assert!(ports.lock().is_empty() && open(other).is_ok());
        }
    }

    #[test]
    fn outside_of_sessions_the_address_has_to_claim() {
        let ports = ReservedPorts::default();
        let me = who(None, "192.0.2.1");
        let first = take(&ports, ANY, wanted(Parity::Even, Reserve::Yes), &me);
        let other = counterpart(first.at);
        let refused = ports.take(other, None, &who(None, "192.0.2.2"));
        assert!(matches!(refused, Err(NoPort::NotYours)));
        let any = SocketAddr::new("0.0.0.0".parse().unwrap(), other.port());
        let refused = ports.take(any, None, &me);
        assert!(matches!(refused, Err(NoPort::NotYours)), "another address");
        take(&ports, &other.to_string(), None, &who(Some(1), "192.0.2.1"));
    }

    #[test]
    fn of_a_named_port_the_parity_does_not_matter() {
        let ports = ReservedPorts::default();
        let me = who(None, "192.0.2.1");
        let free = take(&ports, ANY, wanted(Parity::Even, Reserve::Yes), &me);
        let at = free.at.to_string();
        drop(free);
        let taken = take(&ports, &at, wanted(Parity::Odd, Reserve::No), &me);
        assert_eq!(taken.parity, wanted(Parity::Any, Reserve::No));
        drop(taken);
        let taken = take(&ports, &at, wanted(Parity::Any, Reserve::Yes), &me);
        assert_eq!(taken.parity, wanted(Parity::Any, Reserve::Yes));
    }

    #[test]
    fn ports_of_services_and_ports_in_use_are_refused() {
        let ports = ReservedPorts::default();
        let me = who(None, "192.0.2.1");
        for port in [1, 53, 1023] {
            let at = SocketAddr::from(([127, 0, 0, 1], port));
            let refused = ports.take(at, None, &me);
            assert!(matches!(refused, Err(NoPort::NotYours)), "{port}");
        }
        let taken = take(&ports, ANY, None, &me);
        let refused = ports.take(taken.at, None, &me);
        assert!(matches!(refused, Err(NoPort::System(_))));
    }

    #[test]
    fn reservations_have_a_limit() {
        let ports = ReservedPorts::default();
        let me = who(None, "192.0.2.1");
        let reserving = wanted(Parity::Even, Reserve::Yes);
        let others = ["192.0.2.2", "192.0.2.3"].map(|address| who(None, address));
        let mut all = Vec::new();
        for (who, most) in [(&me, MOST_OF_ONE), (&others[0], MOST_OF_ONE)] {
            for _ in 0..most {
                all.push(take(&ports, ANY, reserving, who));
                assert_eq!(all[all.len() - 1].parity, reserving);
            }
            let one_more = take(&ports, ANY, reserving, who);
            assert_eq!(one_more.parity, wanted(Parity::Even, Reserve::No));
        }
        assert_eq!(all.len(), MOST_RESERVED);
        let one_more = take(&ports, ANY, reserving, &others[1]);
        assert_eq!(one_more.parity, wanted(Parity::Even, Reserve::No));
        drop(all);
        assert!(take(&ports, ANY, reserving, &me).reservation.is_some());
    }
}
