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
mod dropped;
mod exit;
mod far_side;
mod names;
mod settings;
mod sockets;
#[cfg(feature = "socks6")]
pub(super) mod socks6;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::Socket;

pub use settings::{FIRST_DATAGRAM, Filter, IDLE, PortRange, UdpOptions, UdpSettings};

use self::dropped::Dropped;
use self::exit::Lost;
#[cfg(feature = "socks6")]
pub(super) use self::exit::Tunnel;
pub(super) use self::exit::{Exit, RelayPort};
use self::far_side::{DATAGRAMS_A_TURN, FarSide};
use self::sockets::{Near, NoSocket};
use super::settings::ServerSettings;
use super::{CLIENT, OTHERS};
use crate::engine::{BUFFER, Interests, Key, Turn, TurnContext, Want};
use crate::listen::Slot;
use crate::relay::{Control, Gone, Moved};
use crate::wire::socks5::ReplyCode;
use crate::wire::{Address, Host};

/// A client's place for datagrams.
pub(super) struct Association {
    control: Control,
    near: Near,
    far: FarSide,
    ended: Option<Ended>,
    _counted: Slot,
}

#[derive(Clone, Copy)]
enum Ended {
    Gone(Gone),
    Lost(Lost),
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
    /// Serves a client by way of this exit; `unsent` is the reply.
    pub(super) fn new(
        client: Socket,
        unsent: Vec<u8>,
        prepared: Prepared,
        exit: Exit,
        now: Instant,
    ) -> Self {
        Self {
            control: Control::new(client, CLIENT, unsent),
            near: prepared.near,
            far: FarSide::new(exit, now),
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
        let filter = udp.options.filter;
        let far = self.far.carry_down(&mut self.near, settings, filter, cx);
        let idle = self.far.last() + udp.options.idle;
        let ended = match (control, far) {
            (Err(gone), _) => Ended::Gone(gone),
            (_, Err(lost)) => Ended::Lost(lost),
            _ if cx.now >= idle => Ended::Idle,
            (Ok(client), Ok(far)) if !(client && far && quiet) => return Turn::Again,
            _ => {
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

    /// Takes what the client sends; whether nothing is left, or there is no room.
    fn up(&mut self, settings: &ServerSettings, cx: &mut TurnContext<'_>) -> bool {
        for _ in 0..DATAGRAMS_A_TURN {
            if self.far.is_congested() {
                return true;
            }
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

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.control.interests(interests);
        if !self.far.is_congested() {
            interests.watch(NEAR, self.near.descriptor(), Want::READ);
        }
        self.far.interests(true, interests);
    }
}

/// How it went, for the log.
impl fmt::Display for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.far.traffic.fmt(f)?;
        match self.ended {
            Some(Ended::Gone(Gone::Broken)) => f.write_str(": connection broke"),
            Some(Ended::Lost(lost)) => write!(f, ": {lost}"),
            Some(Ended::Idle) => f.write_str(": idle"),
            Some(Ended::Gone(Gone::Closed)) | None => Ok(()),
        }
    }
}

const NEAR: Key = OTHERS;

/// The most that a datagram carries, without jumbograms. With a header in front of the largest one it is more than can be sent,
/// which the system refuses.
const MOST: usize = 65_527;
const _: () = assert!(BUFFER > MOST);
