//! UDP ASSOCIATE (RFC 1928 §7): datagrams of one client, as long as its TCP connection stays.
//!
//! ```text
//!            near: one address and port              far: a port for each family
//! client ──header, payload──▶ is it the client? ──▶ may it go there? ──payload──▶ destination
//! client ◀──header, payload── the true source ◀──── may it answer? ◀───payload─── anybody
//! ```
//!
//! - The client is the address that its TCP connection comes from. Its port is the one that it announced in its request, if it
//!   knew one; else that of its first datagram with a good header. An announcement with another address than the connection's is
//!   not looked at: behind a translator (NAT) neither its address nor its port would be right. Nothing is ever sent
//!   to anybody else.
//! - Whatever is wrong with a datagram, it is dropped without a word and counted. ICMP errors end nothing.
//! - A full socket buffer drops datagrams too: nothing is kept here but a few that wait for a name.
//! - Nothing is fragmented or put together here; the kernel does that with packets.

mod contacts;
mod control;
mod dropped;
mod far_side;
mod names;
mod settings;
mod sockets;
#[cfg(feature = "socks6")]
pub(super) mod socks6;
#[cfg(test)]
mod tests;
#[cfg(feature = "socks6")]
pub(super) mod tunnel;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::Socket;

pub use settings::{
    ASSOCIATIONS_PER_CLIENT, FIRST_DATAGRAM, Filter, IDLE, PortRange, UdpOptions, UdpSettings,
};

use self::control::{Control, Gone};
use self::dropped::Dropped;
use self::far_side::{Family, FarSide, Received};
use self::sockets::{Far, Near, NoSocket};
use super::OTHERS;
use super::settings::ServerSettings;
use crate::engine::{BUFFER, Interests, Key, Turn, TurnContext, Want};
use crate::listen::Slot;
use crate::relay::Moved;
use crate::wire::socks5::{DatagramHeader, ReplyCode};
use crate::wire::{Address, Host};

/// A client's place for datagrams.
pub(super) struct Association {
    control: Control,
    near: Near,
    far: FarSide,
    /// Room for the header of one datagram.
    header: Vec<u8>,
    ended: Option<Ended>,
    _counted: Slot,
}

#[derive(Clone, Copy)]
enum Ended {
    Gone(Gone),
    Idle,
}

/// What is ready for a client, before it is told.
pub(super) struct Prepared {
    near: Near,
    counted: Slot,
}

/// Why a client gets no association.
#[derive(Debug)]
pub(super) enum NoAssociation {
    /// This server carries no datagrams.
    Off,
    /// The client has come over a Unix socket: it has no address by which to know its datagrams.
    NoAddress,
    /// It has as many as it may have, or there are no more descriptors.
    TooMany,
    /// None of these ports is free.
    Ports(PortRange),
    /// The system gives no socket.
    System(io::Error),
}

impl NoAssociation {
    /// Under which name it is counted.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Off | Self::NoAddress => "command",
            Self::TooMany => "associations",
            Self::Ports(_) => "udp-ports",
            Self::System(_) => "udp-socket",
        }
    }

    pub(super) const fn code(&self) -> ReplyCode {
        match self {
            Self::Off | Self::NoAddress => ReplyCode::COMMAND_NOT_SUPPORTED,
            Self::TooMany | Self::Ports(_) | Self::System(_) => ReplyCode::GENERAL_FAILURE,
        }
    }
}

impl fmt::Display for NoAssociation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("no datagrams here (--no-udp)"),
            Self::NoAddress => f.write_str("datagrams need a client with an address"),
            Self::TooMany => f.write_str("too many associations (--max-associations)"),
            Self::Ports(range) => write!(f, "no UDP port of {range} is free (--udp-ports)"),
            Self::System(error) => write!(f, "no UDP socket: {error}"),
        }
    }
}

impl Prepared {
    /// Prepares what a client needs that has asked for an association and announced this address. `address` is the one it
    /// comes from. Its slot is widened to the four descriptors that an association may have.
    pub(super) fn new(
        client: &Socket,
        address: Option<SocketAddr>,
        announced: &Address,
        slot: &mut Slot,
        settings: &ServerSettings,
    ) -> Result<Self, NoAssociation> {
        let udp = settings.udp.as_ref().ok_or(NoAssociation::Off)?;
        let address = address.ok_or(NoAssociation::NoAddress)?;
        let counted = udp.associations.take(Some(address.ip()));
        let counted = counted.ok_or(NoAssociation::TooMany)?;
        if !slot.widen() {
            return Err(NoAssociation::TooMany);
        }
        let local = client.local_addr().map(|local| local.as_socket());
        let local = match local {
            Ok(local) => local.ok_or(NoAssociation::NoAddress)?,
            Err(error) => return Err(NoAssociation::System(error)),
        };
        let near = Near::bind(local, address, udp.options.ports);
        let mut near = match near {
            Ok(near) => near,
            Err(NoSocket::Ports(range)) => {
                udp.found_no_port(range);
                return Err(NoAssociation::Ports(range));
            }
            Err(NoSocket::System(error)) => return Err(NoAssociation::System(error)),
        };
        udp.found_port();
        if let Some(port) = announced_port(announced, address) {
            let mut client = address;
            client.set_port(port);
            near.pin(client);
        }
        Ok(Self { near, counted })
    }

    /// Where the client is told to send to.
    pub(super) fn told(&self, settings: &ServerSettings) -> SocketAddr {
        let bound = self.near.bound();
        let advertised = settings.udp.as_ref().and_then(|udp| udp.options.advertise);
        match advertised.map(|ip| ip.to_canonical()) {
            Some(ip) if ip.is_ipv4() == bound.is_ipv4() => SocketAddr::new(ip, bound.port()),
            _ => bound,
        }
    }
}

/// The port that the client will send from, if its request tells one that can be right.
fn announced_port(announced: &Address, client: SocketAddr) -> Option<u16> {
    let Host::Ip(ip) = announced.host else {
        return None;
    };
    let ip = ip.to_canonical();
    let usable = ip.is_unspecified() || ip == client.ip().to_canonical();
    (usable && announced.port != 0).then_some(announced.port)
}

impl Association {
    /// Serves a client; `unsent` is the reply.
    pub(super) fn new(client: Socket, unsent: Vec<u8>, prepared: Prepared, now: Instant) -> Self {
        Self {
            control: Control::new(client, unsent),
            near: prepared.near,
            far: FarSide::new(Box::new(Far::open), now),
            header: Vec::new(),
            ended: None,
            _counted: prepared.counted,
        }
    }

    pub(super) fn turn(&mut self, settings: &ServerSettings, cx: &mut TurnContext<'_>) -> Turn {
        let Some(udp) = &settings.udp else {
            return Turn::Done;
        };
        let control = self.control.turn(cx);
        self.far.look_ups(settings, cx.now);
        let mut quiet = true;
        // What a client sent right before it closed is still sent on: the last word of a program that ends.
        if cx.ready.has(NEAR) || control.is_err() {
            quiet &= self.up(settings, cx);
        }
        for family in [Family::V4, Family::V6] {
            if cx.ready.has(family.key()) {
                quiet &= self.down(family, settings, udp.options.filter, cx);
            }
        }
        let idle = self.far.last() + udp.options.idle;
        let ended = match control {
            Err(gone) => Ended::Gone(gone),
            Ok(_) if cx.now >= idle => Ended::Idle,
            Ok(nothing_left) if !(nothing_left && quiet) => return Turn::Again,
            Ok(_) => {
                let until = self.far.until().map_or(idle, |until| until.min(idle));
                return Turn::Wait { until: Some(until) };
            }
        };
        self.ended = Some(ended);
        Turn::Done
    }

    /// Bytes of payload so far.
    pub(super) fn moved(&self) -> Moved {
        self.far.moved()
    }

    /// Takes what the client sends; whether nothing is left.
    fn up(&mut self, settings: &ServerSettings, cx: &mut TurnContext<'_>) -> bool {
        for _ in 0..DATAGRAMS_A_TURN {
            let now = cx.now;
            let buffer = cx.buffer();
            let (count, from) = match self.near.receive(buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return true,
                // What came of an earlier one: the client's port is closed, for now.
                Err(_) => continue,
            };
            let datagram = buffer.get(..count).unwrap_or_default();
            if let Err(dropped) = self.forward(datagram, from, settings, now) {
                self.far.drop_one(dropped, settings);
            }
        }
        false
    }

    /// One datagram to the near side.
    fn forward(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<(), Dropped> {
        let (to, payload) = self.near.open(datagram, from)?;
        self.far.send(payload, to, settings, now)
    }

    /// Takes what comes to the port of a family; whether nothing is left.
    fn down(
        &mut self,
        family: Family,
        settings: &ServerSettings,
        filter: Filter,
        cx: &mut TurnContext<'_>,
    ) -> bool {
        let now = cx.now;
        let room = header_length(family);
        for _ in 0..DATAGRAMS_A_TURN {
            let (datagram, from) = match self.far.receive(family, room, cx) {
                Received::Nothing => return true,
                Received::Error => continue,
                Received::Datagram(datagram, from) => (datagram, from),
            };
            let count = datagram.len() - room;
            let admitted = self.far.admit(from, settings, filter, now);
            match admitted.and_then(|()| self.backward(datagram, room, from)) {
                Ok(()) => self.far.carried_down(count, now),
                Err(dropped) => self.far.drop_one(dropped, settings),
            }
        }
        false
    }

    /// One datagram to the far side, with room for the header in front of it.
    fn backward(
        &mut self,
        datagram: &mut [u8],
        room: usize,
        from: SocketAddr,
    ) -> Result<(), Dropped> {
        self.header.clear();
        let header = DatagramHeader {
            fragment: 0,
            address: from.into(),
        };
        header.encode(&mut self.header);
        match datagram.get_mut(..room) {
            Some(room) if room.len() == self.header.len() => room.copy_from_slice(&self.header),
            _ => return Err(Dropped::AddressType),
        }
        self.near.send(datagram)
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.control.interests(interests);
        interests.watch(NEAR, self.near.descriptor(), Want::READ);
        self.far.interests(interests);
    }
}

/// How it went, for the log.
impl fmt::Display for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.far.traffic.fmt(f)?;
        match self.ended {
            Some(Ended::Gone(Gone::Broken)) => f.write_str(": connection broke"),
            Some(Ended::Idle) => f.write_str(": idle"),
            Some(Ended::Gone(Gone::Closed)) | None => Ok(()),
        }
    }
}

/// The header of a datagram that came from such an address: reserved bytes and fragment, type, address, port.
const fn header_length(family: Family) -> usize {
    match family {
        Family::V4 => 3 + 1 + 4 + 2,
        Family::V6 => 3 + 1 + 16 + 2,
    }
}

const NEAR: Key = OTHERS;
/// The most that a datagram carries over IPv4 and over IPv6, without jumbograms.
const MOST_V4: usize = 65_507;
const MOST_V6: usize = 65_527;

/// Any datagram of the client fits, and over IPv4 any answer with its header. Of one over IPv6 the last bytes may be cut; then the
/// buffer is full, which is more than can be sent, so the system refuses it.
const _: () = assert!(BUFFER > MOST_V6 && BUFFER - header_length(Family::V4) >= MOST_V4);

/// From one socket, before others get their turn.
const DATAGRAMS_A_TURN: usize = 32;
