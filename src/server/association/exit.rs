//! Where an association's datagrams leave for their destinations, and where what comes back arrives: ports of ours, or a proxy.

mod direct;
mod relay_port;
#[cfg(feature = "socks6")]
mod tunnel;

use std::fmt;
use std::net::SocketAddr;

pub(super) use self::direct::{Direct, Family};
pub(in crate::server) use self::relay_port::RelayPort;
#[cfg(feature = "socks6")]
pub(in crate::server) use self::tunnel::Tunnel;
use super::dropped::Dropped;
use super::sockets::Far;
use crate::engine::{Interests, TurnContext};
use crate::net::Uplink;
use crate::wire::Address;

/// A way out. It has two descriptors at most, with the keys of the two families.
pub(in crate::server) enum Exit {
    /// From this machine.
    Direct(Direct),
    /// To a port of a proxy of SOCKS 5.
    RelayPort(RelayPort),
    /// Over the connection to a proxy of SOCKS 6.
    #[cfg(feature = "socks6")]
    Tunnel(Tunnel),
}

/// What was there to be received.
pub(super) enum Received<'b> {
    Nothing,
    /// Nothing to be carried, but more may be there.
    Other,
    /// What a proxy sent is no good.
    Bad(Dropped),
    /// The payload of a datagram, and where it came from.
    Datagram(&'b [u8], Address),
    /// Nothing comes any more.
    #[cfg(feature = "socks6")]
    Lost(Lost),
}

/// Why there is no way out any more: the connection to a proxy, with which an association there lives, is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It broke.
    Broken,
    /// The proxy closed it.
    Closed,
    /// The proxy said something that can't be understood.
    #[cfg(feature = "socks6")]
    Garbled,
}

impl Exit {
    /// From any port of this machine, this way.
    pub(in crate::server) fn direct(uplink: Uplink) -> Self {
        Self::Direct(Direct::new(move |towards| Far::open(towards, &uplink)))
    }

    /// Whether names go along as they are. Else they are looked up here.
    pub(super) fn takes_names(&self) -> bool {
        match self {
            Self::Direct(_) => false,
            Self::RelayPort(relay) => relay.takes_names(),
            #[cfg(feature = "socks6")]
            Self::Tunnel(_) => true,
        }
    }

    /// Sends to an address.
    pub(super) fn send(&mut self, payload: &[u8], to: SocketAddr) -> Result<(), Dropped> {
        match self {
            Self::Direct(direct) => direct.send(payload, to),
            Self::RelayPort(relay) => relay.send(payload, to.into()),
            #[cfg(feature = "socks6")]
            Self::Tunnel(tunnel) => tunnel.send(payload, to.into()),
        }
    }

    /// Sends to a name, which it has to [take](Self::takes_names).
    pub(super) fn send_to_name(&mut self, payload: &[u8], to: Address) -> Result<(), Dropped> {
        match self {
            Self::Direct(_) => Err(Dropped::Name),
            Self::RelayPort(relay) => relay.send(payload, to),
            #[cfg(feature = "socks6")]
            Self::Tunnel(tunnel) => tunnel.send(payload, to),
        }
    }

    /// Receives one datagram: from the port of a family, where there are such.
    pub(super) fn receive<'b>(
        &mut self,
        family: Family,
        cx: &'b mut TurnContext<'_>,
    ) -> Received<'b> {
        match (self, family) {
            (Self::Direct(direct), _) => direct.receive(family, cx),
            (Self::RelayPort(relay), Family::V4) => relay.receive(cx),
            #[cfg(feature = "socks6")]
            (Self::Tunnel(tunnel), Family::V4) => tunnel.receive(cx),
            (_, Family::V6) => Received::Nothing,
        }
    }

    /// Whether something may be there to be received that no descriptor tells of.
    pub(super) const fn holds_some(&self) -> bool {
        match self {
            Self::Direct(_) | Self::RelayPort(_) => false,
            #[cfg(feature = "socks6")]
            Self::Tunnel(tunnel) => tunnel.holds_some(),
        }
    }

    /// What else there is to do in a turn, at its end; whether nothing is left of that.
    pub(super) fn tend(&mut self, cx: &mut TurnContext<'_>) -> Result<bool, Lost> {
        match self {
            Self::Direct(_) => Ok(true),
            Self::RelayPort(relay) => relay.tend(cx),
            #[cfg(feature = "socks6")]
            Self::Tunnel(tunnel) => tunnel.flush(),
        }
    }

    /// Whether what is sent has to wait, so that nothing more should be taken from the client.
    pub(super) const fn is_congested(&self) -> bool {
        match self {
            Self::Direct(_) | Self::RelayPort(_) => false,
            #[cfg(feature = "socks6")]
            Self::Tunnel(tunnel) => tunnel.is_congested(),
        }
    }

    /// The port of a family, if there are such and it is open.
    #[cfg(any(feature = "socks6", test))]
    pub(super) const fn port(&self, family: Family) -> Option<&Far> {
        match self {
            Self::Direct(direct) => direct.port(family),
            _ => None,
        }
    }

    /// `reads`: whether the client can get what comes.
    pub(super) fn interests<'a>(&'a self, reads: bool, interests: &mut Interests<'a>) {
        match self {
            Self::Direct(direct) => direct.interests(reads, interests),
            Self::RelayPort(relay) => relay.interests(reads, interests),
            #[cfg(feature = "socks6")]
            Self::Tunnel(tunnel) => tunnel.interests(reads, interests),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the connection to the proxy broke",
            Self::Closed => "the proxy closed",
            #[cfg(feature = "socks6")]
            Self::Garbled => "the proxy sent something else than datagrams",
        })
    }
}
