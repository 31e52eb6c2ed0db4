//! The side of an association where the destinations are, the same for every version: where datagrams may go, whose come back,
//! and what was carried.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use super::contacts::Contacts;
use super::dropped::Dropped;
use super::exit::{Exit, Family, Lost, Received};
use super::names::{Found, Names, Place};
use super::settings::Filter;
#[cfg(any(feature = "socks6", test))]
use super::sockets::Far;
use crate::engine::{Interests, Key, MAX_INTERESTS, TurnContext, Want};
use crate::net::canonical;
use crate::relay::Moved;
use crate::server::OTHERS;
use crate::server::rules::NameVerdict;
use crate::server::settings::ServerSettings;
use crate::wire::{Address, Host, Name};

/// The way out, and what is known of those who are talked to.
pub(super) struct FarSide {
    exit: Exit,
    contacts: Contacts,
    pub(super) names: Names,
    /// Whether the client has sent to a name that was not looked up here.
    unseen: bool,
    /// When the last datagram was carried.
    last: Instant,
    pub(super) traffic: Traffic,
}

/// The side of an association where its client is.
pub(super) trait NearSide {
    /// Sends it what came from there.
    fn deliver(&mut self, payload: &[u8], from: Address) -> Result<(), Dropped>;

    /// Whether it has to read before it can get more.
    fn is_stuck(&self) -> bool;
}

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

impl FarSide {
    /// Nobody is talked to yet.
    pub(super) fn new(exit: Exit, now: Instant) -> Self {
        Self {
            exit,
            contacts: Contacts::default(),
            names: Names::default(),
            unseen: false,
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
            Host::Name(name) if self.exit.takes_names() => {
                return self.send_unseen(payload, name, port, settings);
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

    /// Sends to a name that a proxy looks up.
    fn send_unseen(
        &mut self,
        payload: &[u8],
        name: Name,
        port: u16,
        settings: &ServerSettings,
    ) -> Result<(), Dropped> {
        if name.looks_like_ipv4_number() {
            return Err(Dropped::Name);
        }
        let verdict = settings.rules.check_name(&name, port);
        let allowed = verdict.and_then(|verdict| settings.rules.check_unseen(&name, port, verdict));
        allowed.map_err(|_| Dropped::Rules)?;
        self.unseen = true;
        let to = Address::new(Host::Name(name), port);
        self.exit.send_to_name(payload, to)?;
        self.traffic.up.count(payload.len());
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
        self.exit.send(payload, to)?;
        self.traffic.up.count(payload.len());
        Ok(())
    }

    /// Whether nothing more should be taken from the client now.
    pub(super) const fn is_congested(&self) -> bool {
        self.exit.is_congested()
    }

    /// Carries what comes back to the client, and goes on with what waits on the way out; whether nothing is left that can be
    /// done now.
    pub(super) fn carry_down(
        &mut self,
        near: &mut dyn NearSide,
        settings: &ServerSettings,
        filter: Filter,
        cx: &mut TurnContext<'_>,
    ) -> Result<bool, Lost> {
        let mut quiet = true;
        for family in Family::BOTH {
            if cx.ready.has(family.key()) || self.exit.holds_some() {
                quiet &= self.down(family, near, settings, filter, cx)?;
            }
        }
        Ok(self.exit.tend(cx)? && quiet)
    }

    fn down(
        &mut self,
        family: Family,
        near: &mut dyn NearSide,
        settings: &ServerSettings,
        filter: Filter,
        cx: &mut TurnContext<'_>,
    ) -> Result<bool, Lost> {
        let now = cx.now;
        for _ in 0..DATAGRAMS_A_TURN {
            if near.is_stuck() {
                return Ok(true);
            }
            let carried = match self.exit.receive(family, cx) {
                Received::Nothing => return Ok(true),
                #[cfg(feature = "socks6")]
                Received::Lost(lost) => return Err(lost),
                Received::Other => continue,
                Received::Bad(dropped) => Err(dropped),
                Received::Datagram(payload, from) => self
                    .admit(&from, settings, filter, now)
                    .and_then(|()| near.deliver(payload, from))
                    .map(|()| payload.len()),
            };
            match carried {
                Ok(bytes) => {
                    self.traffic.down.count(bytes);
                    self.last = now;
                }
                Err(dropped) => self.drop_one(dropped, settings),
            }
        }
        Ok(false)
    }

    /// Whether the client gets a datagram from there. A source that it has not sent to must at least be one that it may send to.
    /// Of names that a proxy looks up nobody knows here who may answer: that is for the proxy to say.
    fn admit(
        &mut self,
        from: &Address,
        settings: &ServerSettings,
        filter: Filter,
        now: Instant,
    ) -> Result<(), Dropped> {
        if self.unseen {
            return Ok(());
        }
        let from = from.socket_addr().ok_or(Dropped::Unsolicited)?;
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

    /// The port of a family, if it is one of ours and open.
    #[cfg(any(feature = "socks6", test))]
    pub(super) const fn port(&self, family: Family) -> Option<&Far> {
        self.exit.port(family)
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

    /// The way out, and a look-up. `reads`: whether the client can get what comes.
    pub(super) fn interests<'a>(&'a self, reads: bool, interests: &mut Interests<'a>) {
        self.exit.interests(reads, interests);
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

const LOOK_UP: Key = OTHERS + 3;

/// All of them have a place.
const _: () = assert!((LOOK_UP as usize) < MAX_INTERESTS);

/// Of a name: two of each family would do.
const MOST_ADDRESSES: usize = 8;

/// From one socket, before others get their turn.
pub(super) const DATAGRAMS_A_TURN: usize = 32;

#[cfg(all(test, feature = "socks6"))]
mod tests;
