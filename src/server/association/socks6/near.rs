//! The side of an association where its client of SOCKS 6 is: the TCP connection, or a place at a shared UDP port.

use std::io::{IoSlice, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use socket2::Socket;

use super::super::dropped::Dropped;
use super::super::far_side::NearSide;
use super::NEAR;
use super::icmp::Report;
use super::relays::{self, Place};
use crate::engine::{Interests, Want};
use crate::net::{until_done, write_all_now};
use crate::server::CLIENT;
use crate::wire::Address;
use crate::wire::socks6::{AssociationId, Datagram, ErrorCode, Profile, UdpError, UdpMessage};

/// A client that has its association.
pub(super) struct Near {
    pub(super) client: Socket,
    /// What could not be sent on the TCP connection yet. Never more than one message with what comes before it.
    pub(super) unsent: Vec<u8>,
    pub(super) id: AssociationId,
    pub(super) profile: Profile,
    pub(super) channel: Channel,
    /// Until the client has chosen the TCP connection. `None`: it can't choose anything else.
    pub(super) place: Option<Place>,
    /// Room for the header of one message.
    header: Vec<u8>,
}

/// How a client's datagrams come.
#[derive(Clone, Copy)]
pub(super) enum Channel {
    /// None has come.
    Open,
    /// On the TCP connection.
    Stream,
    /// Over UDP from there.
    Packets(SocketAddr),
}

/// How one datagram has come.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Stream,
    Packets(SocketAddr),
}

impl Near {
    pub(super) const fn new(
        client: Socket,
        unsent: Vec<u8>,
        id: AssociationId,
        profile: Profile,
        place: Option<Place>,
    ) -> Self {
        Self {
            client,
            unsent,
            id,
            profile,
            channel: Channel::Open,
            place,
            header: Vec::new(),
        }
    }

    /// Whether the client's datagrams may come that way.
    pub(super) fn is_the_way(&self, way: Way) -> bool {
        match (self.channel, way) {
            (Channel::Open, _) | (Channel::Stream, Way::Stream) => true,
            (Channel::Packets(first), Way::Packets(from)) => relays::same(first, from),
            _ => false,
        }
    }

    /// The first datagram decides how all others come, and the client is told.
    pub(super) fn confirm(&mut self, way: Way) {
        if !matches!(self.channel, Channel::Open) {
            return;
        }
        self.channel = match way {
            Way::Stream => {
                self.place = None;
                Channel::Stream
            }
            Way::Packets(from) => Channel::Packets(from),
        };
        let confirmation = UdpMessage::Confirmation(self.id);
        confirmation.encode(&self.profile, &mut self.unsent);
        // If the connection broke, reading it will tell.
        let _ = write_all_now(&self.client, &mut self.unsent);
    }

    pub(super) fn tell_error(&mut self, report: &Report, code: ErrorCode) -> Result<(), Dropped> {
        let mut message = Vec::new();
        let error = UdpError {
            association: self.id,
            destination: report.destination,
            code,
            reporter: report.reporter,
        };
        UdpMessage::Error(error).encode(&self.profile, &mut message);
        self.tell(&message, &[])
    }

    /// Sends a message of two parts the way that the client has chosen.
    fn tell(&mut self, header: &[u8], payload: &[u8]) -> Result<(), Dropped> {
        match (self.channel, &self.place) {
            (Channel::Stream, _) if self.unsent.is_empty() => {
                let parts = [IoSlice::new(header), IoSlice::new(payload)];
                let sent = until_done(|| (&self.client).write_vectored(&parts));
                let sent = sent.map_err(|_| Dropped::Unreachable)?.unwrap_or(0);
                // A half message can't be left at that.
                let of_payload = sent.saturating_sub(header.len());
                self.unsent.extend(header.get(sent..).unwrap_or_default());
                self.unsent
                    .extend(payload.get(of_payload..).unwrap_or_default());
                Ok(())
            }
            (Channel::Stream, _) => Err(Dropped::Congested),
            (Channel::Packets(client), Some(place)) => place.send(header, payload, client),
            _ => Err(Dropped::Unsolicited),
        }
    }

    /// `reads`: whether there is room for what the client sends.
    pub(super) fn interests<'a>(&'a self, reads: bool, interests: &mut Interests<'a>) {
        let want = Want {
            read: reads,
            write: !self.unsent.is_empty(),
        };
        interests.watch(CLIENT, self.client.as_fd(), want);
        if let (true, Some(place)) = (reads, &self.place) {
            interests.watch(NEAR, place.descriptor(), Want::READ);
        }
    }
}

impl NearSide for Near {
    fn deliver(&mut self, payload: &[u8], from: Address) -> Result<(), Dropped> {
        let datagram = Datagram::new(self.id, from, payload).ok_or(Dropped::TooLarge)?;
        let mut header = std::mem::take(&mut self.header);
        header.clear();
        datagram.encode_header(&self.profile, &mut header);
        let told = self.tell(&header, payload);
        self.header = header;
        told
    }

    fn is_stuck(&self) -> bool {
        matches!(self.channel, Channel::Stream) && !self.unsent.is_empty()
    }
}
