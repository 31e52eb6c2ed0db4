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
mod names;
mod settings;
mod sockets;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Instant;

use socket2::Socket;

pub use settings::{ASSOCIATIONS_PER_CLIENT, Filter, IDLE, PortRange, UdpOptions, UdpSettings};

use self::contacts::Contacts;
use self::dropped::Dropped;
use self::names::{Found, Names, Place};
use self::sockets::{Far, Near, NoSocket};
use super::rules::NameVerdict;
use super::settings::ServerSettings;
use super::{CLIENT, OTHERS};
use crate::engine::{BUFFER, Interests, Key, MAX_INTERESTS, Turn, TurnContext, Want};
use crate::listen::Slot;
use crate::net::{canonical, read_some, write_all_now};
use crate::relay::Moved;
use crate::wire::socks5::{DatagramHeader, ReplyCode};
use crate::wire::{Address, Host};

/// A client's place for datagrams.
pub(super) struct Association {
    client: Socket,
    /// What of the reply could not be sent yet.
    unsent: Vec<u8>,
    near: Near,
    far: [Option<Far>; 2],
    contacts: Contacts,
    names: Names,
    /// Room for the header of one datagram.
    header: Vec<u8>,
    /// When the last datagram was carried.
    last: Instant,
    traffic: Traffic,
    ended: Option<Ended>,
    _counted: Slot,
}

/// What was carried.
#[derive(Clone, Copy, Default)]
struct Traffic {
    up: Carried,
    down: Carried,
    dropped: u64,
}

/// Datagrams, and the bytes of their payload.
#[derive(Clone, Copy, Default)]
struct Carried {
    datagrams: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
enum Ended {
    Closed,
    Broken,
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
            client,
            unsent,
            near: prepared.near,
            far: [None, None],
            contacts: Contacts::default(),
            names: Names::default(),
            header: Vec::new(),
            last: now,
            traffic: Traffic::default(),
            ended: None,
            _counted: prepared.counted,
        }
    }

    pub(super) fn turn(&mut self, settings: &ServerSettings, cx: &mut TurnContext<'_>) -> Turn {
        let Some(udp) = &settings.udp else {
            return Turn::Done;
        };
        let control = self.control(cx);
        self.look_ups(settings, cx.now);
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
        let idle = self.last + udp.options.idle;
        let ended = match control {
            Err(ended) => ended,
            Ok(_) if cx.now >= idle => Ended::Idle,
            Ok(nothing_left) if !(nothing_left && quiet) => return Turn::Again,
            Ok(_) => {
                let until = self.names.until().map_or(idle, |until| until.min(idle));
                return Turn::Wait { until: Some(until) };
            }
        };
        self.ended = Some(ended);
        Turn::Done
    }

    /// Bytes of payload so far.
    pub(super) fn moved(&self) -> Moved {
        Moved {
            up: self.traffic.up.bytes,
            down: self.traffic.down.bytes,
        }
    }

    /// The TCP connection, on which nothing is said any more: whether nothing is left to read.
    fn control(&mut self, cx: &mut TurnContext<'_>) -> Result<bool, Ended> {
        if !cx.ready.has(CLIENT) {
            return Ok(true);
        }
        if write_all_now(&self.client, &mut self.unsent).is_err() {
            return Err(Ended::Broken);
        }
        let hung_up = cx.ready.hung_up(CLIENT);
        for _ in 0..READS_A_TURN {
            match read_some(&self.client, cx.buffer_up_to(DISCARDED)) {
                Ok(Some([])) => return Err(Ended::Closed),
                Ok(Some(_)) => {}
                Ok(None) if hung_up => return Err(Ended::Broken),
                Ok(None) => return Ok(true),
                Err(_) => return Err(Ended::Broken),
            }
        }
        Ok(false)
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
                self.drop_one(dropped, settings);
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
        if !self.near.is_client(from) {
            return Err(Dropped::Stranger);
        }
        let (header, length) = DatagramHeader::decode(datagram)?.ok_or(Dropped::Short)?;
        if header.fragment != 0 {
            return Err(Dropped::Fragment);
        }
        let Address { host, port } = header.address;
        if port == 0 {
            return Err(Dropped::PortZero);
        }
        self.near.pin(from);
        self.last = now;
        let payload = datagram.get(length..).unwrap_or_default();
        let name = match host {
            Host::Ip(ip) => {
                let to = canonical(SocketAddr::new(ip, port));
                if !self.contacts.is_allowed(to, now) {
                    let verdict = settings.rules.check(to, NameVerdict::Open);
                    verdict.map_err(|_| Dropped::Rules)?;
                    self.contacts.allowed(to, now);
                }
                return self.send(payload, to);
            }
            Host::Name(name) => name,
        };
        if self.names.find(&name, port, now).is_some() {
            let place = Place {
                name,
                port,
                verdict: NameVerdict::Open,
            };
            return self.send_to_name(payload, &place, now);
        }
        if name.looks_like_ipv4_number() {
            return Err(Dropped::Name);
        }
        let verdict = settings.rules.check_name(&name, port);
        let verdict = verdict.map_err(|_| Dropped::Rules)?;
        let place = Place {
            name,
            port,
            verdict,
        };
        self.names.wait(place, payload)?;
        let patience = settings.connect_timeout;
        self.names.start(&settings.resolver, patience, now);
        Ok(())
    }

    /// Sends what waited for a name that is known now, and goes on to the next name.
    fn look_ups(&mut self, settings: &ServerSettings, now: Instant) {
        while let Some((place, addresses)) = self.names.answer(now) {
            let nothing = match addresses.is_empty() {
                true => Dropped::LookUp,
                false => Dropped::Rules,
            };
            let allowed: Box<[SocketAddr]> = addresses
                .into_iter()
                .map(canonical)
                .filter(|address| settings.rules.check(*address, place.verdict).is_ok())
                .take(MOST_ADDRESSES)
                .collect();
            let found = match allowed.is_empty() {
                true => Found::Nothing(nothing),
                false => Found::Addresses(allowed, 0),
            };
            for payload in self.names.learn(&place, found, now) {
                if let Err(dropped) = self.send_to_name(&payload, &place, now) {
                    self.drop_one(dropped, settings);
                }
            }
            let patience = settings.connect_timeout;
            self.names.start(&settings.resolver, patience, now);
        }
    }

    /// Sends to the address in use of a name that is known; if there is no way to it, to the next one that there is a way to,
    /// which is used from then on.
    fn send_to_name(&mut self, payload: &[u8], place: &Place, now: Instant) -> Result<(), Dropped> {
        let mut tried = 0;
        loop {
            let to = match self.names.find(&place.name, place.port, now) {
                Some(Found::Addresses(list, at)) => match list.get(*at) {
                    Some(to) if tried < list.len() => *to,
                    _ => return Err(Dropped::Unreachable),
                },
                Some(Found::Nothing(why)) => return Err(*why),
                None => return Err(Dropped::LookUp),
            };
            self.contacts.named(to);
            match self.send(payload, to) {
                Err(Dropped::Unreachable | Dropped::Socket) => {}
                done => return done,
            }
            tried += 1;
            if let Some(Found::Addresses(list, at)) = self.names.find(&place.name, place.port, now)
            {
                *at = (*at + 1) % list.len().max(1);
            }
        }
    }

    /// Sends to an address that was checked.
    fn send(&mut self, payload: &[u8], to: SocketAddr) -> Result<(), Dropped> {
        let [v4, v6] = &mut self.far;
        let far = match Family::of(to) {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let far = match far {
            Some(far) => far,
            none => {
                let opened = Far::open(to).map_err(|_| Dropped::Socket)?;
                none.insert(opened)
            }
        };
        far.send(payload, to)?;
        self.traffic.up.count(payload.len());
        Ok(())
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
        let room = family.header();
        for _ in 0..DATAGRAMS_A_TURN {
            let Some(far) = self.far(family) else {
                return true;
            };
            let buffer = cx.buffer();
            let behind = buffer.get_mut(room..).unwrap_or_default();
            let (count, from) = match far.receive(behind) {
                Ok(Some(received)) => received,
                Ok(None) => return true,
                // Not an error of this datagram, and of no destination that could be named.
                Err(_) => continue,
            };
            let datagram = buffer.get_mut(..room + count).unwrap_or_default();
            let from = canonical(from);
            match self.backward(datagram, family, from, settings, filter, now) {
                Ok(()) => {
                    self.traffic.down.count(count);
                    self.last = now;
                }
                Err(dropped) => self.drop_one(dropped, settings),
            }
        }
        false
    }

    /// One datagram to the far side, with room for the header in front of it.
    fn backward(
        &mut self,
        datagram: &mut [u8],
        family: Family,
        from: SocketAddr,
        settings: &ServerSettings,
        filter: Filter,
        now: Instant,
    ) -> Result<(), Dropped> {
        admit(&mut self.contacts, from, settings, filter, now)?;
        self.header.clear();
        let header = DatagramHeader {
            fragment: 0,
            address: from.into(),
        };
        header.encode(&mut self.header);
        match datagram.get_mut(..family.header()) {
            Some(room) if room.len() == self.header.len() => room.copy_from_slice(&self.header),
            _ => return Err(Dropped::AddressType),
        }
        self.near.send(datagram)
    }

    const fn far(&self, family: Family) -> Option<&Far> {
        let [v4, v6] = &self.far;
        match family {
            Family::V4 => v4.as_ref(),
            Family::V6 => v6.as_ref(),
        }
    }

    fn drop_one(&mut self, dropped: Dropped, settings: &ServerSettings) {
        self.traffic.dropped += 1;
        settings.stats.dropped(dropped.reason());
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = Want {
            read: true,
            write: !self.unsent.is_empty(),
        };
        interests.watch(CLIENT, self.client.as_fd(), want);
        interests.watch(NEAR, self.near.descriptor(), Want::READ);
        for (family, far) in [Family::V4, Family::V6].into_iter().zip(&self.far) {
            if let Some(far) = far {
                interests.watch(family.key(), far.descriptor(), Want::READ);
            }
        }
        if let Some(descriptor) = self.names.descriptor() {
            interests.watch(LOOK_UP, descriptor, Want::READ);
        }
    }
}

/// Whether the client gets a datagram from there. A source that it has not sent to must at least be one that it may send to.
fn admit(
    contacts: &mut Contacts,
    from: SocketAddr,
    settings: &ServerSettings,
    filter: Filter,
    now: Instant,
) -> Result<(), Dropped> {
    let known = match filter {
        Filter::AddressAndPortDependent => contacts.has(from),
        Filter::AddressDependent | Filter::EndpointIndependent => contacts.has_ip(from.ip()),
    };
    if known {
        return Ok(());
    }
    if filter != Filter::EndpointIndependent {
        return Err(Dropped::Unsolicited);
    }
    let verdict = settings.rules.check(from, NameVerdict::Open);
    verdict.map_err(|_| Dropped::Rules)?;
    contacts.allowed(from, now);
    Ok(())
}

impl Carried {
    fn count(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}

/// How it went, for the log.
impl fmt::Display for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traffic { up, down, dropped } = self.traffic;
        write!(
            f,
            "datagrams: {} up ({} bytes), {} down ({} bytes), {dropped} dropped",
            up.datagrams, up.bytes, down.datagrams, down.bytes
        )?;
        match self.ended {
            Some(Ended::Broken) => f.write_str(": connection broke"),
            Some(Ended::Idle) => f.write_str(": idle"),
            Some(Ended::Closed) | None => Ok(()),
        }
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    const fn key(self) -> Key {
        match self {
            Self::V4 => OTHERS + 1,
            Self::V6 => OTHERS + 2,
        }
    }

    /// The header of a datagram that came from such an address: reserved bytes and fragment, type, address, port.
    const fn header(self) -> usize {
        match self {
            Self::V4 => 3 + 1 + 4 + 2,
            Self::V6 => 3 + 1 + 16 + 2,
        }
    }
}

const NEAR: Key = OTHERS;
const LOOK_UP: Key = OTHERS + 3;

/// All of them have a place.
const _: () = assert!((LOOK_UP as usize) < MAX_INTERESTS);

/// The most that a datagram carries over IPv4 and over IPv6, without jumbograms.
const MOST_V4: usize = 65_507;
const MOST_V6: usize = 65_527;

/// Any datagram of the client fits, and over IPv4 any answer with its header. Of one over IPv6 the last bytes may be cut; then the
/// buffer is full, which is more than can be sent, so the system refuses it.
const _: () = assert!(BUFFER > MOST_V6 && BUFFER - Family::V4.header() >= MOST_V4);

/// From one socket, before others get their turn.
const DATAGRAMS_A_TURN: usize = 32;

/// What comes on the TCP connection is read in pieces of this size and dropped, that many of them at once.
const DISCARDED: usize = 4096;
const READS_A_TURN: usize = 16;

/// Of a name: two of each family would do.
const MOST_ADDRESSES: usize = 8;
