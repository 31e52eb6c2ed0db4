//! UDP ASSOCIATE of SOCKS 6 ("UDP Relaying" in the draft): datagrams of one client, as long as its TCP connection stays.
//!
//! ```text
//!            near: the TCP connection, or a shared UDP port   far: a port for each family
//! client ──messages──▶ is it this association's? ──▶ may it go there? ──payload──▶ destination
//! client ◀──messages── the true source ◀────────────── may it answer? ◀──payload── anybody
//! ```
//!
//! What differs from SOCKS 5:
//!
//! - The reply tells what destinations see, and the client may wish for that address and port. Where to send to is not told: it is
//!   the address and the port of the TCP connection, over UDP.
//! - An id that nobody can guess stands in every message. The first good datagram with it, over TCP or over UDP, decides which of
//!   both it will be, and from which port; then the client is told so over TCP ("confirmation"), and then only what comes
//!   back is carried back. What comes another way later is dropped.
//! - Over UDP a datagram must still come from the address of the TCP connection. The draft does not ask for that; but else a
//!   client could have datagrams sent to anybody.
//! - A client that asked for it is told of ICMP errors.

mod bell;
mod icmp;
mod near;
mod ports;
mod relays;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use socket2::Socket;

use self::near::{Channel, Near, Way};
use self::ports::{NoPort, Reservation, ReservedPorts, Taken, Who};
use self::relays::{Place, Receiver, Relays};
use super::dropped::Dropped;
use super::exit::{Direct, Exit, Family, Lost};
use super::far_side::{DATAGRAMS_A_TURN, FarSide, NearSide as _};
use super::sockets::Far;
use super::{NoAssociation, UdpSettings};
use crate::engine::{BUFFER, Interests, Key, Turn, TurnContext};
use crate::listen::Slot;
use crate::net::stack::{self, IpOptions};
use crate::net::{Uplink, read_some, write_all_now};
use crate::relay::Moved;
use crate::server::settings::{ServerSettings, ServerStats};
use crate::server::socks6::random;
use crate::server::{CLIENT, OTHERS};
use crate::wire::socks6::{
    AssociationId, Choice, Decoded, Profile, ReplyCode, SessionId, StackOptions, UdpHeader,
    UdpMessage,
};
use crate::wire::{Address, Host};

/// What all associations of one server share.
#[derive(Clone, Default)]
pub(super) struct Common {
    relays: Relays,
    ports: ReservedPorts,
}

/// What a client wants.
pub(in crate::server) struct Wanted<'a> {
    /// The address and port that destinations shall see. Zeros are any.
    pub(in crate::server) address: &'a Address,
    pub(in crate::server) stack: &'a StackOptions,
    /// The session of the request.
    pub(in crate::server) session: Option<&'a SessionId>,
    pub(in crate::server) profile: Profile,
}

/// What is ready for a client, before it is told.
pub(in crate::server) struct Prepared {
    id: AssociationId,
    profile: Profile,
    place: Option<Place>,
    far: FarSide,
    bound: SocketAddr,
    stack: StackOptions,
    reservation: Option<Reservation>,
    counted: Slot,
}

/// A client's place for datagrams.
pub(in crate::server) struct Association {
    near: Near,
    /// The beginning of a message that has not come whole. Never more than a message.
    unread: Vec<u8>,
    far: FarSide,
    reports: Choice,
    since: Instant,
    ended: Option<Ended>,
    _reservation: Option<Reservation>,
    _counted: Slot,
}

#[derive(Clone, Copy)]
enum Ended {
    Closed,
    Broken,
    /// What came on the TCP connection can't be told apart any more.
    Garbled,
    Idle,
    /// Nothing has ever come.
    Unused,
    Lost(Lost),
}

/// Why a client gets no association.
#[derive(Debug)]
pub(in crate::server) enum Refused {
    /// For a reason that the older versions have too.
    Common(NoAssociation),
    /// It wants a name for an address of ours.
    Name,
    /// It wants an address that no port of ours may have.
    NotUnicast,
    /// The port that it wants is kept for others.
    NotYours,
}

impl Refused {
    /// Under which name it is counted.
    pub(in crate::server) const fn reason(&self) -> &'static str {
        match self {
            Self::Common(why) => why.reason(),
            Self::Name | Self::NotUnicast => "udp-address",
            Self::NotYours => "udp-ports",
        }
    }

    pub(in crate::server) const fn code(&self) -> ReplyCode {
        match self {
            Self::Common(NoAssociation::Off | NoAssociation::NoAddress) => {
                ReplyCode::COMMAND_NOT_SUPPORTED
            }
            Self::Common(_) => ReplyCode::GENERAL_FAILURE,
            Self::Name => ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED,
            Self::NotUnicast | Self::NotYours => ReplyCode::NOT_ALLOWED,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Common(why) => why.fmt(f),
            Self::Name => f.write_str("wants a name for an address"),
            Self::NotUnicast => f.write_str("wants an address of many"),
            Self::NotYours => f.write_str("wants a port that is kept for others"),
        }
    }
}

impl Common {
    /// A place at the port that a client with this address has connected to. Without one there is still the TCP connection.
    fn place(
        &self,
        local: Option<SocketAddr>,
        client: Option<IpAddr>,
        id: AssociationId,
        profile: &Profile,
    ) -> Option<Place> {
        self.relays.enter(local?, client?, id, profile).ok()
    }

    pub(super) fn receiver(&self, stats: ServerStats) -> Receiver {
        self.relays.receiver(stats)
    }
}

impl Prepared {
    /// Prepares what a client needs. `address` is the one it comes from. Its slot is widened to the four descriptors that an
    /// association may have.
    pub(in crate::server) fn new(
        client: &Socket,
        address: Option<SocketAddr>,
        wanted: &Wanted<'_>,
        slot: &mut Slot,
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<Self, Refused> {
        let ip = address.map(|address| address.ip());
        let (udp, counted, id) = admit(ip, slot, settings)?;
        let local = client.local_addr().ok();
        let local = local.and_then(|local| local.as_socket());

        let (taken, wants_any) = take(&udp.socks6.ports, wanted, ip, &settings.uplink)?;
        let Taken {
            socket,
            at,
            parity,
            reservation,
        } = taken;
        let system = |error| Refused::Common(NoAssociation::System(error));
        settings.uplink.steer(&socket, at).map_err(system)?;
        let style = Style {
            ip: IpOptions::of_remote(wanted.stack),
            reports: wanted.stack.udp_error,
        };
        let (granted, reports) = style.apply(&socket, at);
        let is_interrupted = reports == Some(Choice::Yes);
        let uplink = settings.uplink.clone();
        let direct = Direct::new(move |towards| match wants_any {
            true => style.open(towards, at.port(), &uplink),
            // All from the one address that it has chosen.
            false => Err(io::ErrorKind::AddrNotAvailable.into()),
        });
        let direct = direct.with(Family::of(at), Far::new(socket, is_interrupted));

        let mut stack = IpOptions::told(IpOptions::default(), granted);
        stack.udp_error = reports;
        stack.port_parity = parity;
        Ok(Self {
            id,
            profile: wanted.profile,
            place: udp.socks6.place(local, ip, id, &wanted.profile),
            far: FarSide::new(Exit::Direct(direct), now),
            bound: seen(at, local, &settings.uplink),
            stack,
            reservation,
            counted,
        })
    }

    /// The same where a proxy carries the datagrams, by this way out, and tells what destinations see. Nothing is known there of
    /// what the client wants of sockets.
    pub(in crate::server) fn through(
        exit: io::Result<Exit>,
        bound: SocketAddr,
        client: (&Socket, Option<SocketAddr>),
        wanted: (&StackOptions, Profile),
        slot: &mut Slot,
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<Self, Refused> {
        let ((client, address), (stack, profile)) = (client, wanted);
        let ip = address.map(|address| address.ip());
        let (udp, counted, id) = admit(ip, slot, settings)?;
        let exit = exit.map_err(|error| Refused::Common(NoAssociation::System(error)))?;
        let local = client.local_addr().ok();
        let local = local.and_then(|local| local.as_socket());
        let stack = StackOptions {
            // That is an answer too.
            udp_error: stack.udp_error.map(|_| Choice::No),
            ..StackOptions::default()
        };
        Ok(Self {
            id,
            profile,
            place: udp.socks6.place(local, ip, id, &profile),
            far: FarSide::new(exit, now),
            bound,
            stack,
            reservation: None,
            counted,
        })
    }

    /// What destinations see; zeros where that is not known.
    pub(in crate::server) const fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// What of the client's options is in force.
    pub(in crate::server) const fn stack(&self) -> &StackOptions {
        &self.stack
    }
}

/// What every association needs, for a client at this address, if it may have one more.
fn admit<'s>(
    ip: Option<IpAddr>,
    slot: &mut Slot,
    settings: &'s ServerSettings,
) -> Result<(&'s UdpSettings, Slot, AssociationId), Refused> {
    let no = |why| Err(Refused::Common(why));
    let Some(udp) = &settings.udp else {
        return no(NoAssociation::Off);
    };
    let Some(counted) = udp.associations.take(ip) else {
        return no(NoAssociation::TooMany);
    };
    if !slot.widen() {
        return no(NoAssociation::TooMany);
    }
    match fresh_id() {
        Some(id) => Ok((udp, counted, id)),
        None => no(NoAssociation::System(io::ErrorKind::WouldBlock.into())),
    }
}

/// The port that destinations see, and whether it is at any address.
fn take(
    ports: &ReservedPorts,
    wanted: &Wanted<'_>,
    client: Option<IpAddr>,
    uplink: &Uplink,
) -> Result<(Taken, bool), Refused> {
    let Host::Ip(ip) = wanted.address.host else {
        return Err(Refused::Name);
    };
    let ip = ip.to_canonical();
    if ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
        return Err(Refused::NotUnicast);
    }
    let who = Who {
        session: wanted.session.cloned(),
        address: client.map(|client| client.to_canonical()),
    };
    let wants_any = ip.is_unspecified();
    let parity = wanted.stack.port_parity;
    let from_any = |ip: IpAddr| uplink.source(ip).unwrap_or(ip);
    let at = SocketAddr::new(
        if wants_any { from_any(ip) } else { ip },
        wanted.address.port,
    );
    let taken = match ports.take(at, parity, &who) {
        // This machine has no IPv6, or no IPv4, and any address will do.
        Err(NoPort::System(error)) if wants_any && has_no_family(&error) => {
            let ip: IpAddr = match ip {
                IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
            };
            ports.take(SocketAddr::new(from_any(ip), at.port()), parity, &who)
        }
        taken => taken,
    };
    match taken {
        Ok(taken) => Ok((taken, wants_any)),
        Err(NoPort::NotYours) => Err(Refused::NotYours),
        Err(NoPort::System(error)) => Err(Refused::Common(NoAssociation::System(error))),
    }
}

fn has_no_family(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    )
}

/// What the sockets towards destinations are like.
#[derive(Clone, Copy)]
struct Style {
    ip: IpOptions,
    reports: Option<Choice>,
}

impl Style {
    /// What is in force of it.
    fn apply(self, socket: &Socket, at: SocketAddr) -> (IpOptions, Option<Choice>) {
        let family = stack::Family::towards(at);
        let reports = self.reports.map(|wanted| {
            // "Will not report" is an answer too.
            stack::set_error_reports(socket, family, wanted).unwrap_or(Choice::No)
        });
        (self.ip.apply(socket, family), reports)
    }

    /// The socket of the other family, with the same port if nobody has it.
    fn open(self, towards: SocketAddr, port: u16, uplink: &Uplink) -> io::Result<Far> {
        let any: IpAddr = match towards {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = crate::net::open_datagrams(towards)?;
        let bind = |port| uplink.bind(&socket, SocketAddr::new(any, port));
        bind(port).or_else(|_| bind(0))?;
        let (_, reports) = self.apply(&socket, towards);
        Ok(Far::new(socket, reports == Some(Choice::Yes)))
    }
}

/// Under which address destinations see a port. Of one at any address it is the one that most see: that of the way to everywhere.
fn seen(at: SocketAddr, client_side: Option<SocketAddr>, uplink: &Uplink) -> SocketAddr {
    if !at.ip().is_unspecified() {
        return at;
    }
    let elsewhere: IpAddr = match at {
        SocketAddr::V4(_) => ELSEWHERE_V4.into(),
        SocketAddr::V6(_) => ELSEWHERE_V6.into(),
    };
    // A machine that knows no such way has its clients and destinations in one network, more likely than not.
    let near = || {
        let near = client_side?.ip().to_canonical();
        (near.is_ipv4() == at.is_ipv4()).then_some(near)
    };
    let own = uplink.own_address(elsewhere).ok().or_else(near);
    SocketAddr::new(own.unwrap_or_else(|| at.ip()), at.port())
}

impl Association {
    /// Serves a client; `unsent` is the reply, `unread` what came behind the request.
    pub(in crate::server) fn new(
        client: Socket,
        mut unsent: Vec<u8>,
        unread: Vec<u8>,
        prepared: Prepared,
        now: Instant,
    ) -> Self {
        let Prepared {
            id, profile, stack, ..
        } = prepared;
        UdpMessage::Initialization(id).encode(&profile, &mut unsent);
        Self {
            near: Near::new(client, unsent, id, profile, prepared.place),
            unread,
            far: prepared.far,
            reports: stack.udp_error.unwrap_or(Choice::No),
            since: now,
            ended: None,
            _reservation: prepared.reservation,
            _counted: prepared.counted,
        }
    }

    pub(in crate::server) fn turn(
        &mut self,
        settings: &ServerSettings,
        cx: &mut TurnContext<'_>,
    ) -> Turn {
        let Some(udp) = &settings.udp else {
            return Turn::Done;
        };
        let stream = self.stream(settings, cx);
        if stream.is_err()
            && let Some(place) = &self.near.place
        {
            // What a client sent right before it closed is still sent on: the last word of a program that ends.
            place.fetch(cx.buffer(), &settings.stats);
        }
        self.far.look_ups(settings, cx.now);
        let mut quiet = self.packets(settings, cx.now);
        for family in Family::BOTH {
            if cx.ready.has(family.key()) {
                quiet &= self.report(family, settings);
            }
        }
        let filter = udp.options.filter;
        let far = self.far.carry_down(&mut self.near, settings, filter, cx);
        let (idle, why) = match self.near.channel {
            Channel::Open => (self.since + udp.options.first_datagram, Ended::Unused),
            _ => (self.far.last() + udp.options.idle, Ended::Idle),
        };
        let ended = match (stream, far) {
            (Err(ended), _) => ended,
            (_, Err(lost)) => Ended::Lost(lost),
            _ if cx.now >= idle => why,
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
    pub(in crate::server) const fn moved(&self) -> Moved {
        self.far.moved()
    }

    /// The TCP connection: whether nothing is left to read, or there is no room.
    fn stream(
        &mut self,
        settings: &ServerSettings,
        cx: &mut TurnContext<'_>,
    ) -> Result<bool, Ended> {
        if !cx.ready.has(CLIENT) {
            return Ok(true);
        }
        if write_all_now(&self.near.client, &mut self.near.unsent).is_err() {
            return Err(Ended::Broken);
        }
        let (hung_up, now) = (cx.ready.hung_up(CLIENT), cx.now);
        for _ in 0..READS_A_TURN {
            if self.far.is_congested() {
                return Ok(true);
            }
            // Behind what is there of a message.
            let kept = self.unread.len();
            let buffer = cx.buffer();
            let (front, behind) = buffer.split_at_mut_checked(kept).ok_or(Ended::Garbled)?;
            let count = match read_some(&self.near.client, behind) {
                Ok(Some([])) => return Err(Ended::Closed),
                Ok(Some(bytes)) => bytes.len(),
                Ok(None) if hung_up => return Err(Ended::Broken),
                Ok(None) => return Ok(true),
                Err(_) => return Err(Ended::Broken),
            };
            front.copy_from_slice(&self.unread);
            let bytes = buffer.get(..kept + count).unwrap_or_default();
            let taken = self.messages(bytes, settings, now)?;
            self.unread.clear();
            self.unread
                .extend_from_slice(bytes.get(taken..).unwrap_or_default());
        }
        // The room of one large message need not be kept for ever.
        if self.unread.is_empty() {
            self.unread = Vec::new();
        }
        Ok(false)
    }

    /// Takes the whole messages of a piece of the stream; how many bytes they had.
    fn messages(
        &mut self,
        bytes: &[u8],
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<usize, Ended> {
        let mut taken = 0;
        loop {
            let rest = bytes.get(taken..).unwrap_or_default();
            let header = match UdpHeader::decode(rest, &self.near.profile) {
                Ok(Decoded::Whole { message, .. }) => message,
                Ok(Decoded::Missing(_)) => return Ok(taken),
                // Nobody knows where the next one would begin.
                Err(_) => return Err(Ended::Garbled),
            };
            let Some(message) = rest.get(..header.length.into()) else {
                return Ok(taken);
            };
            if let Err(dropped) = self.up(message, Way::Stream, settings, now) {
                self.far.drop_one(dropped, settings);
            }
            taken += message.len();
        }
    }

    /// Takes what has come over UDP; whether nothing is left, or there is no room.
    fn packets(&mut self, settings: &ServerSettings, now: Instant) -> bool {
        for _ in 0..DATAGRAMS_A_TURN {
            if self.far.is_congested() {
                return true;
            }
            let Some(packet) = self.near.place.as_ref().and_then(Place::take) else {
                return true;
            };
            let way = Way::Packets(packet.from);
            if let Err(dropped) = self.up(&packet.message, way, settings, now) {
                self.far.drop_one(dropped, settings);
            }
        }
        false
    }

    /// One message of the client.
    fn up(
        &mut self,
        message: &[u8],
        way: Way,
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<(), Dropped> {
        if !self.near.is_the_way(way) {
            return Err(Dropped::Stranger);
        }
        let message = UdpMessage::decode_packet(message, &self.near.profile)?;
        if message.association() != self.near.id {
            return Err(Dropped::Association);
        }
        let UdpMessage::Datagram(datagram) = message else {
            return Err(Dropped::Message);
        };
        if datagram.is_trigger() {
            self.far.touch(now);
            self.near.confirm(way);
            return Ok(());
        }
        if datagram.address().port == 0 {
            return Err(Dropped::PortZero);
        }
        self.near.confirm(way);
        let to = datagram.address().clone();
        self.far.send(datagram.payload(), to, settings, now)
    }

    /// Tells the client of errors that its datagrams caused; whether no more are known of.
    fn report(&mut self, family: Family, settings: &ServerSettings) -> bool {
        if self.reports == Choice::No {
            return true;
        }
        for _ in 0..DATAGRAMS_A_TURN {
            let Some(far) = self.far.port(family) else {
                return true;
            };
            let Some(report) = icmp::take(far, family) else {
                return true;
            };
            // Anybody can send such packets: only those are passed on that can be true.
            if let Some(report) = report
                && let Some(code) = report.code
                && self.far.knows(report.destination)
                && let Err(dropped) = self.near.tell_error(&report, code)
            {
                self.far.drop_one(dropped, settings);
            }
        }
        false
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.near.interests(!self.far.is_congested(), interests);
        self.far.interests(!self.near.is_stuck(), interests);
    }
}

/// How it went, for the log.
impl fmt::Display for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.far.traffic.fmt(f)?;
        f.write_str(match self.near.channel {
            Channel::Open => "",
            Channel::Stream => " (over TCP)",
            Channel::Packets(_) => " (over UDP)",
        })?;
        match self.ended {
            Some(Ended::Broken) => f.write_str(": connection broke"),
            Some(Ended::Garbled) => f.write_str(": not a message"),
            Some(Ended::Idle) => f.write_str(": idle"),
            Some(Ended::Lost(lost)) => write!(f, ": {lost}"),
            Some(Ended::Unused) => f.write_str(": no datagram in time"),
            Some(Ended::Closed) | None => Ok(()),
        }
    }
}

/// One that nobody can guess: over UDP it is all that a client has to show.
fn fresh_id() -> Option<AssociationId> {
    random::bytes().map(|bytes| AssociationId(u64::from_ne_bytes(bytes)))
}

const NEAR: Key = OTHERS;

/// What is kept of a message leaves room for at least one byte more.
const _: () = assert!(BUFFER > UdpMessage::MAX_LEN);

/// From the TCP connection: a buffer of small ones is some thousand datagrams.
const READS_A_TURN: usize = 1;

/// Addresses for documentation (RFC 5737, RFC 3849), to which only the way to everywhere leads. Nothing is sent there.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
