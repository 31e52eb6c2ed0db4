//! Datagrams that leave by way of a SOCKS 5 proxy (RFC 1928 §7): they go to a port of the proxy's, with a header that says where
//! to, and what comes back has one that says where from.
//!
//! Only what comes from that very address and port is taken, the kernel sees to that. Fragments are dropped. The TCP connection
//! to the proxy and the association end together.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use socket2::Socket;

use super::super::dropped::Dropped;
use super::super::sockets::sent;
use super::{Family, Lost, Received};
use crate::engine::{Interests, Key, TurnContext, Want};
use crate::net::{Uplink, canonical, open_towards_relay, send_twice, until_done};
use crate::proxy_uri::Resolution;
use crate::relay::{Control, Gone};
use crate::wire::Address;
use crate::wire::socks5::DatagramHeader;

/// The port of a proxy that has granted an association.
pub(in crate::server) struct RelayPort {
    control: Control,
    /// Connected to the proxy's.
    socket: UdpSocket,
    resolution: Resolution,
    /// Room for the header of one datagram.
    header: Vec<u8>,
}

impl RelayPort {
    /// The proxy at the other end of the connection takes datagrams there.
    pub(in crate::server) fn open(
        proxy: Socket,
        relay: SocketAddr,
        resolution: Resolution,
        uplink: &Uplink,
    ) -> io::Result<Self> {
        let relay = canonical(relay);
        let socket = open_towards_relay(&proxy, relay, uplink)?;
        Ok(Self {
            control: Control::new(proxy, CONNECTION, Vec::new()),
            socket,
            resolution,
            header: Vec::new(),
        })
    }

    pub(super) fn takes_names(&self) -> bool {
        self.resolution == Resolution::AtProxy
    }

    pub(super) fn send(&mut self, payload: &[u8], to: Address) -> Result<(), Dropped> {
        self.header.clear();
        let header = DatagramHeader {
            fragment: 0,
            address: to,
        };
        header.encode(&mut self.header);
        sent(send_twice(&self.socket, &self.header, payload, None))
    }

    pub(super) fn receive<'b>(&self, cx: &'b mut TurnContext<'_>) -> Received<'b> {
        let buffer = cx.buffer();
        let count = match until_done(|| self.socket.recv(buffer)) {
            Ok(Some(count)) => count,
            Ok(None) => return Received::Nothing,
            // What came of an earlier one: the proxy's port is closed, for now.
            Err(_) => return Received::Other,
        };
        let datagram = buffer.get(..count).unwrap_or_default();
        match DatagramHeader::decode(datagram) {
            Err(error) => Received::Bad(error.into()),
            Ok(None) => Received::Bad(Dropped::Short),
            Ok(Some((header, _))) if header.fragment != 0 => Received::Bad(Dropped::Fragment),
            Ok(Some((header, length))) => {
                let payload = datagram.get(length..).unwrap_or_default();
                Received::Datagram(payload, header.address)
            }
        }
    }

    /// Looks whether the connection still stands; whether nothing is left to read there.
    pub(super) fn tend(&mut self, cx: &mut TurnContext<'_>) -> Result<bool, Lost> {
        self.control.turn(cx).map_err(|gone| match gone {
            Gone::Closed => Lost::Closed,
            Gone::Broken => Lost::Broken,
        })
    }

    pub(super) fn interests<'a>(&'a self, reads: bool, interests: &mut Interests<'a>) {
        if reads {
            interests.watch(Family::V4.key(), self.socket.as_fd(), Want::READ);
        }
        self.control.interests(interests);
    }
}

/// There is one port for both families; the key of the other one is free.
const CONNECTION: Key = Family::V6.key();
