//! UDP ASSOCIATE by way of a SOCKS 6 proxy: datagrams travel as messages on the TCP connection to it.
//!
//! ```text
//! client ──header of SOCKS 5, payload──▶ may it go there? ──message──▶ proxy ──▶ destination
//! client ◀──header of SOCKS 5, payload── its association? ◀──message── proxy ◀── source
//! ```
//!
//! Names go to the proxy as they are, and whose datagrams come back is for the proxy to filter. Both connections and the
//! association end together.
//!
//! What to read: RFC 1928 §7, "UDP Relaying" in the draft.

use std::fmt;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Instant;

use socket2::Socket;

use super::control::{Control, Gone};
use super::dropped::Dropped;
use super::sockets::Near;
use super::{Prepared, ServerSettings};
use crate::engine::{Interests, Key, Turn, TurnContext, Want};
use crate::listen::Slot;
use crate::net::{read_some, write_all_now};
use crate::relay::Moved;
use crate::server::OTHERS;
use crate::server::rules::NameVerdict;
use crate::wire::socks5::DatagramHeader;
use crate::wire::socks6::{
    AssociationId, Datagram, DecodeError, Decoded, Profile, UdpHeader, UdpMessage,
};
use crate::wire::{Address, Host};

/// A client's place for datagrams, of which the far side is at a proxy.
pub(in crate::server) struct Tunnel {
    control: Control,
    near: Near,
    proxy: Socket,
    id: AssociationId,
    profile: Profile,
    /// The beginning of the proxy's next message.
    incoming: Vec<u8>,
    /// Messages that the proxy has not taken yet.
    outgoing: Vec<u8>,
    /// When the last datagram was carried.
    last: Instant,
    /// Bytes of payload.
    moved: Moved,
    datagrams: Datagrams,
    ended: Option<Ended>,
    _counted: Slot,
}

/// How many there were.
#[derive(Default)]
struct Datagrams {
    up: u64,
    down: u64,
    dropped: u64,
}

#[derive(Clone, Copy)]
enum Ended {
    Gone(Gone),
    Idle,
    /// The connection to the proxy broke.
    Broken,
    /// The proxy closed.
    ByProxy,
    /// The proxy said something that can't be understood.
    Garbled,
}

impl Tunnel {
    /// Serves a client; `unsent` is the reply. The proxy has said this id of the association.
    pub(in crate::server) fn new(
        client: Socket,
        unsent: Vec<u8>,
        prepared: Prepared,
        proxy: Socket,
        (id, profile): (AssociationId, Profile),
        now: Instant,
    ) -> Self {
        let mut outgoing = Vec::new();
        // Nothing for nobody: fixes the channel, so that a client that only waits gets its datagrams too.
        let nobody = Address::from(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        if let Some(nothing) = Datagram::new(id, nobody, &[]) {
            nothing.encode(&profile, &mut outgoing);
        }
        Self {
            control: Control::new(client, unsent),
            near: prepared.near,
            proxy,
            id,
            profile,
            incoming: Vec::new(),
            outgoing,
            last: now,
            moved: Moved::default(),
            datagrams: Datagrams::default(),
            ended: None,
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
        let control = self.control.turn(cx);
        let mut quiet = true;
        // What a client sent right before it closed is still sent on: the last word of a program that ends.
        if cx.ready.has(NEAR) || control.is_err() {
            quiet &= self.up(settings, cx);
        }
        let proxy = self.exchange(settings, cx);
        let idle = self.last + udp.options.idle;
        let ended = match (control, proxy) {
            (Err(gone), _) => Ended::Gone(gone),
            (_, Err(ended)) => ended,
            _ if cx.now >= idle => Ended::Idle,
            (Ok(client), Ok(proxy)) if !(client && proxy && quiet) => return Turn::Again,
            _ => return Turn::Wait { until: Some(idle) },
        };
        self.ended = Some(ended);
        Turn::Done
    }

    /// Bytes of payload so far.
    pub(in crate::server) fn moved(&self) -> Moved {
        self.moved
    }

    /// Takes what the client sends; whether nothing is left, or there is no room.
    fn up(&mut self, settings: &ServerSettings, cx: &mut TurnContext<'_>) -> bool {
        for _ in 0..DATAGRAMS_A_TURN {
            if self.is_congested() {
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
                self.drop_one(dropped, settings);
            }
        }
        false
    }

    /// One datagram to the proxy.
    fn forward(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<(), Dropped> {
        let (to, payload) = self.near.open(datagram, from)?;
        let Address { host, port } = &to;
        self.last = now;
        let allowed = match host {
            Host::Ip(ip) => settings
                .rules
                .check(SocketAddr::new(*ip, *port), NameVerdict::Open),
            Host::Name(name) if name.looks_like_ipv4_number() => return Err(Dropped::Name),
            Host::Name(name) => {
                let verdict = settings.rules.check_name(name, *port);
                verdict.and_then(|verdict| settings.rules.check_unseen(name, *port, verdict))
            }
        };
        allowed.map_err(|_| Dropped::Rules)?;
        let message = Datagram::new(self.id, to, payload);
        let message = message.ok_or(Dropped::TooLarge)?;
        message.encode(&self.profile, &mut self.outgoing);
        self.datagrams.up += 1;
        self.moved.up += payload.len() as u64;
        Ok(())
    }

    /// Sends to the proxy and takes what it sends; whether nothing is left to read.
    fn exchange(
        &mut self,
        settings: &ServerSettings,
        cx: &mut TurnContext<'_>,
    ) -> Result<bool, Ended> {
        let sent = write_all_now(&self.proxy, &mut self.outgoing);
        if self.outgoing.is_empty() {
            // A parked association holds no memory for those that come.
            self.outgoing = Vec::new();
        }
        if !cx.ready.has(PROXY) {
            return sent.map(|_| true).map_err(|_| Ended::Broken);
        }
        for _ in 0..READS_A_TURN {
            let input = match read_some(&self.proxy, cx.buffer()) {
                Ok(Some([])) => return Err(Ended::ByProxy),
                Ok(Some(input)) => input,
                Ok(None) => return sent.map(|_| true).map_err(|_| Ended::Broken),
                Err(_) => return Err(Ended::Broken),
            };
            let mut incoming = mem::take(&mut self.incoming);
            incoming.extend_from_slice(input);
            let taken = self.take_messages(&incoming, settings, cx.now);
            let taken = taken.map_err(|_| Ended::Garbled)?;
            // What is left is less than one message, which has 65,535 bytes at most.
            self.incoming = incoming.get(taken..).unwrap_or_default().to_vec();
        }
        Ok(false)
    }

    /// Takes the whole messages at the beginning; how many bytes they have.
    fn take_messages(
        &mut self,
        input: &[u8],
        settings: &ServerSettings,
        now: Instant,
    ) -> Result<usize, DecodeError> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            let length = match UdpHeader::decode(rest, &self.profile)? {
                Decoded::Whole { message, .. } => usize::from(message.length),
                Decoded::Missing(_) => return Ok(taken),
            };
            let Some(message) = rest.get(..length) else {
                return Ok(taken);
            };
            taken += length;
            // One that can't be understood can still be passed over.
            let dropped = match UdpMessage::decode_packet(message, &self.profile) {
                Ok(message) if message.association() != self.id => Some(Dropped::Stranger),
                Ok(UdpMessage::Datagram(datagram)) => self.backward(&datagram, now).err(),
                Ok(_) => None,
                Err(error) => Some(misread(&error)),
            };
            if let Some(dropped) = dropped {
                self.drop_one(dropped, settings);
            }
        }
    }

    /// One datagram to the client.
    fn backward(&mut self, datagram: &Datagram<'_>, now: Instant) -> Result<(), Dropped> {
        let header = DatagramHeader {
            fragment: 0,
            address: datagram.address().clone(),
        };
        let mut whole = Vec::with_capacity(DatagramHeader::MAX_LEN + datagram.payload().len());
        header.encode(&mut whole);
        whole.extend(datagram.payload());
        self.near.send(&whole)?;
        self.datagrams.down += 1;
        self.moved.down += datagram.payload().len() as u64;
        self.last = now;
        Ok(())
    }

    fn drop_one(&mut self, dropped: Dropped, settings: &ServerSettings) {
        self.datagrams.dropped += 1;
        settings.stats.dropped(dropped.reason());
    }

    /// Then the client's datagrams stay in the kernel, which drops what it has no room for.
    fn is_congested(&self) -> bool {
        self.outgoing.len() >= MOST_OUTGOING
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.control.interests(interests);
        if !self.is_congested() {
            interests.watch(NEAR, self.near.descriptor(), Want::READ);
        }
        let want = Want {
            read: true,
            write: !self.outgoing.is_empty(),
        };
        interests.watch(PROXY, self.proxy.as_fd(), want);
    }
}

/// What it means that a message can't be understood.
const fn misread(error: &DecodeError) -> Dropped {
    match error {
        DecodeError::AddressType(_) => Dropped::AddressType,
        DecodeError::Name(_) | DecodeError::NameLength(_) => Dropped::Name,
        _ => Dropped::Short,
    }
}

/// How it went, for the log.
impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (moved, Datagrams { up, down, dropped }) = (&self.moved, &self.datagrams);
        write!(
            f,
            "datagrams: {up} up ({} bytes), {down} down ({} bytes), {dropped} dropped",
            moved.up, moved.down
        )?;
        f.write_str(match self.ended {
            Some(Ended::Gone(Gone::Broken) | Ended::Broken) => ": connection broke",
            Some(Ended::Idle) => ": idle",
            Some(Ended::ByProxy) => ": the proxy closed",
            Some(Ended::Garbled) => ": the proxy sent something else than datagrams",
            Some(Ended::Gone(Gone::Closed)) | None => "",
        })
    }
}

const NEAR: Key = OTHERS;
const PROXY: Key = OTHERS + 1;

/// Some datagrams of a usual size; with the last of them it may be twice that.
const MOST_OUTGOING: usize = 65_536;

/// From the client, before others get their turn.
const DATAGRAMS_A_TURN: usize = 32;

/// From the proxy, likewise.
const READS_A_TURN: usize = 16;
