//! The side of an association where the destinations are, the same for every version: where datagrams may go, whose come back,
//! and what was carried.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::contacts::Contacts;
use super::dropped::Dropped;
use super::names::{Found, Names, Place};
use super::settings::Filter;
use super::sockets::Far;
use crate::engine::{Interests, Key, MAX_INTERESTS, TurnContext, Want};
use crate::net::canonical;
use crate::relay::Moved;
use crate::server::OTHERS;
use crate::server::rules::NameVerdict;
use crate::server::settings::ServerSettings;
use crate::wire::{Address, Host};

/// A port for each family, and what is known of those who are talked to.
pub(super) struct FarSide {
    pub(super) sockets: [Option<Far>; 2],
    open: Open,
    contacts: Contacts,
    pub(super) names: Names,
    /// When the last datagram was carried.
    last: Instant,
    pub(super) traffic: Traffic,
}

/// Makes a socket that can reach an address.
pub(super) type Open = Box<dyn Fn(SocketAddr) -> io::Result<Far> + Send>;

/// What was carried.
#[derive(Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) up: Carried,
    pub(super) down: Carried,
    pub(super) dropped: u64,
}

/// Datagrams, and the bytes of their payload.
#[derive(Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
}

/// What was there to be received.
pub(super) enum Received<'b> {
    Nothing,
    /// Not an error of a datagram, and of no destination that could be named.
    Error,
    /// A datagram behind the room that was asked for, and where it came from.
    Datagram(&'b mut [u8], SocketAddr),
}

impl FarSide {
    /// No ports yet: `open` gives each with the first datagram that needs it.
    pub(super) fn new(open: Open, now: Instant) -> Self {
        Self {
            sockets: [None, None],
            open,
            contacts: Contacts::default(),
            names: Names::default(),
            last: now,
            traffic: Traffic::default(),
        }
    }

    /// Sends what the client has sent, to a destination with a port that is not 0.
    pub(super) fn send(
        &mut self,
        payload: &[u8],
        to: Address,
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<(), Dropped> {
        self.last = now;
        let Address { host, port } = to;
        let name = match host {
            Host::Ip(ip) => {
                let to = canonical(SocketAddr::new(ip, port));
                if !self.contacts.is_allowed(to, now) {
                    let verdict = settings.rules.check(to, NameVerdict::Open);
                    verdict.map_err(|_| Dropped::Rules)?;
                    self.contacts.allowed(to, now);
                }
                return self.send_to(payload, to);
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
    pub(super) fn look_ups(&mut self, settings: &ServerSettings, now: Instant) {
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
            match self.send_to(payload, to) {
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
    fn send_to(&mut self, payload: &[u8], to: SocketAddr) -> Result<(), Dropped> {
        let [v4, v6] = &mut self.sockets;
        let far = match Family::of(to) {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let far = match far {
            Some(far) => far,
            none => {
                let opened = (self.open)(to).map_err(|_| Dropped::Socket)?;
                none.insert(opened)
            }
        };
        far.send(payload, to)?;
        self.traffic.up.count(payload.len());
        Ok(())
    }

    /// Receives one datagram from the port of a family, behind `room` bytes of the buffer. Who sent it is not judged yet.
    pub(super) fn receive<'b>(
        &self,
        family: Family,
        room: usize,
        cx: &'b mut TurnContext<'_>,
    ) -> Received<'b> {
        let Some(far) = self.socket(family) else {
            return Received::Nothing;
        };
        let buffer = cx.buffer();
        let behind = buffer.get_mut(room..).unwrap_or_default();
        match far.receive(behind) {
            Ok(Some((count, from))) => {
                let datagram = buffer.get_mut(..room + count).unwrap_or_default();
                Received::Datagram(datagram, canonical(from))
            }
            Ok(None) => Received::Nothing,
            Err(_) => Received::Error,
        }
    }

    /// Whether the client gets a datagram from there. A source that it has not sent to must at least be one that it may send to.
    pub(super) fn admit(
        &mut self,
        from: SocketAddr,
        settings: &ServerSettings,
        filter: Filter,
        now: Instant,
    ) -> Result<(), Dropped> {
        let known = match filter {
            Filter::AddressAndPortDependent => self.contacts.has(from),
            Filter::AddressDependent | Filter::EndpointIndependent => {
                self.contacts.has_ip(from.ip())
            }
        };
        if known {
            return Ok(());
        }
        if filter != Filter::EndpointIndependent {
            return Err(Dropped::Unsolicited);
        }
        let verdict = settings.rules.check(from, NameVerdict::Open);
        verdict.map_err(|_| Dropped::Rules)?;
        self.contacts.allowed(from, now);
        Ok(())
    }

    /// The client has got a datagram with that many bytes of payload.
    pub(super) fn carried_down(&mut self, bytes: usize, now: Instant) {
        self.traffic.down.count(bytes);
        self.last = now;
    }

    /// The socket of a family, which `open` need not give any more.
    #[cfg(feature = "socks6")]
    pub(super) fn put(&mut self, family: Family, socket: Far) {
        let [v4, v6] = &mut self.sockets;
        match family {
            Family::V4 => *v4 = Some(socket),
            Family::V6 => *v6 = Some(socket),
        }
    }

    pub(super) const fn socket(&self, family: Family) -> Option<&Far> {
        let [v4, v6] = &self.sockets;
        match family {
            Family::V4 => v4.as_ref(),
            Family::V6 => v6.as_ref(),
        }
    }

    pub(super) fn drop_one(&mut self, dropped: Dropped, settings: &ServerSettings) {
        self.traffic.dropped += 1;
        settings.stats.dropped(dropped.reason());
    }

    /// Whether the client has sent to this address.
    #[cfg(feature = "socks6")]
    pub(super) fn knows(&mut self, address: SocketAddr) -> bool {
        self.contacts.has(address)
    }

    /// The client is there, though it has sent nothing.
    #[cfg(feature = "socks6")]
    pub(super) const fn touch(&mut self, now: Instant) {
        self.last = now;
    }

    /// When the last datagram was carried.
    pub(super) const fn last(&self) -> Instant {
        self.last
    }

    /// When something has to be done here though no descriptor becomes ready.
    pub(super) fn until(&self) -> Option<Instant> {
        self.names.until()
    }

    /// Bytes of payload so far.
    pub(super) const fn moved(&self) -> Moved {
        Moved {
            up: self.traffic.up.bytes,
            down: self.traffic.down.bytes,
        }
    }

    /// The sockets, and a look-up.
    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        for (family, far) in [Family::V4, Family::V6].into_iter().zip(&self.sockets) {
            if let Some(far) = far {
                interests.watch(family.key(), far.descriptor(), Want::READ);
            }
        }
        self.look_up_interest(interests);
    }

    pub(super) fn look_up_interest<'a>(&'a self, interests: &mut Interests<'a>) {
        if let Some(descriptor) = self.names.descriptor() {
            interests.watch(LOOK_UP, descriptor, Want::READ);
        }
    }
}

impl Carried {
    fn count(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { up, down, dropped } = self;
        write!(
            f,
            "datagrams: {} up ({} bytes), {} down ({} bytes), {dropped} dropped",
            up.datagrams, up.bytes, down.datagrams, down.bytes
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    pub(super) const fn key(self) -> Key {
        match self {
            Self::V4 => OTHERS + 1,
            Self::V6 => OTHERS + 2,
        }
    }
}

const LOOK_UP: Key = OTHERS + 3;

/// All of them have a place.
const _: () = assert!((LOOK_UP as usize) < MAX_INTERESTS);

/// Of a name: two of each family would do.
const MOST_ADDRESSES: usize = 8;
