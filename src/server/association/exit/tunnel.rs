//! Datagrams that leave by way of a SOCKS 6 proxy: they travel as messages on the TCP connection to it.
//!
//! Names go along as they are. The connection and the association end together.
//!
//! What to read: "UDP Relaying" in the draft.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;

use socket2::Socket;

use super::super::dropped::Dropped;
use super::{Family, Lost, Received};
use crate::engine::{Interests, TurnContext, Want};
use crate::net::{read_some, write_all_now};
use crate::wire::Address;
use crate::wire::socks6::{AssociationId, Datagram, Decoded, Profile, UdpHeader, UdpMessage};

/// The connection to a proxy that has granted an association.
pub(in crate::server) struct Tunnel {
    proxy: Socket,
    id: AssociationId,
    profile: Profile,
    /// What has come: messages that were taken, then others, and the beginning of one.
    incoming: Vec<u8>,
    taken: usize,
    /// Messages that the proxy has not taken yet.
    outgoing: Vec<u8>,
}

impl Tunnel {
    /// The proxy has said this id of the association.
    pub(in crate::server) fn new(proxy: Socket, id: AssociationId, profile: Profile) -> Self {
        let mut outgoing = Vec::new();
        // Nothing for nobody: fixes the channel, so that a client that only waits gets its datagrams too.
        let nobody = Address::from(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        if let Some(nothing) = Datagram::new(id, nobody, &[]) {
            nothing.encode(&profile, &mut outgoing);
        }
        Self {
            proxy,
            id,
            profile,
            incoming: Vec::new(),
            taken: 0,
            outgoing,
        }
    }

    pub(super) fn send(&mut self, payload: &[u8], to: Address) -> Result<(), Dropped> {
        let message = Datagram::new(self.id, to, payload).ok_or(Dropped::TooLarge)?;
        message.encode(&self.profile, &mut self.outgoing);
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<bool, Lost> {
        let sent = write_all_now(&self.proxy, &mut self.outgoing);
        if self.outgoing.is_empty() {
            // A parked association holds no memory for those that come.
            self.outgoing = Vec::new();
        }
        sent.map(|_| true).map_err(|_| Lost::Broken)
    }

    pub(super) fn receive<'b>(&mut self, cx: &'b mut TurnContext<'_>) -> Received<'b> {
        loop {
            let rest = self.incoming.get(self.taken..).unwrap_or_default();
            let length = match UdpHeader::decode(rest, &self.profile) {
                Ok(Decoded::Whole { message, .. }) => usize::from(message.length),
                Ok(Decoded::Missing(_)) => usize::MAX,
                // Nobody knows where the next one would begin.
                Err(_) => return Received::Lost(Lost::Garbled),
            };
            let Some(message) = rest.get(..length) else {
                match self.read(cx) {
                    None => continue,
                    Some(Ok(())) => return Received::Nothing,
                    Some(Err(lost)) => return Received::Lost(lost),
                }
            };
            self.taken += length;
            // One that can't be understood can still be passed over.
            return match UdpMessage::decode_packet(message, &self.profile) {
                Ok(message) if message.association() != self.id => Received::Bad(Dropped::Stranger),
                Ok(UdpMessage::Datagram(datagram)) => {
                    let (payload, from) = (datagram.payload(), datagram.address().clone());
                    let buffer = cx.buffer();
                    match buffer.get_mut(..payload.len()) {
                        Some(room) => {
                            room.copy_from_slice(payload);
                            Received::Datagram(room, from)
                        }
                        None => Received::Bad(Dropped::TooLarge),
                    }
                }
                Ok(_) => Received::Other,
                Err(error) => Received::Bad(error.into()),
            };
        }
    }

    /// Reads more behind what was not taken; `None` if there was some.
    fn read(&mut self, cx: &mut TurnContext<'_>) -> Option<Result<(), Lost>> {
        // What is left is less than one message, which has 65,535 bytes at most.
        self.incoming.drain(..self.taken);
        self.taken = 0;
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        match read_some(&self.proxy, cx.buffer()) {
            Ok(Some([])) => Some(Err(Lost::Closed)),
            Ok(Some(bytes)) => {
                self.incoming.extend_from_slice(bytes);
                None
            }
            Ok(None) => Some(Ok(())),
            Err(_) => Some(Err(Lost::Broken)),
        }
    }

    pub(super) const fn holds_some(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Then the client's datagrams stay in the kernel, which drops what it has no room for.
    pub(super) const fn is_congested(&self) -> bool {
        self.outgoing.len() >= MOST_OUTGOING
    }

    pub(super) fn interests<'a>(&'a self, reads: bool, interests: &mut Interests<'a>) {
        let want = Want {
            read: reads,
            write: !self.outgoing.is_empty(),
        };
        interests.watch(Family::V4.key(), self.proxy.as_fd(), want);
    }
}

/// Some datagrams of a usual size; with the last of them it may be twice that.
const MOST_OUTGOING: usize = 65_536;
