//! The sockets of an association: one towards the client, one for each family towards everybody else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;
use socket2::Socket;

use super::dropped::Dropped;
use super::far_side::NearSide;
use super::settings::PortRange;
use crate::net::{self, Uplink, open_datagrams, receive_datagram, unmapped, until_done};
use crate::wire::Address;
use crate::wire::socks5::DatagramHeader;

/// The socket towards the client, with the headers of SOCKS 5.
pub(super) struct Near {
    port: net::Near,
    /// Room for the header of one datagram.
    header: Vec<u8>,
}

/// Why there is no socket towards the client.
#[derive(Debug)]
pub(super) enum NoSocket {
    /// No port of the range is free.
    Ports(PortRange),
    /// The system says this.
    System(io::Error),
}

impl Near {
    /// Takes datagrams at this address of ours, the one that the client has connected to, from this client only.
    pub(super) fn bind(
        local: SocketAddr,
        client: SocketAddr,
        ports: Option<PortRange>,
    ) -> Result<Self, NoSocket> {
        let local = unmapped(local);
        let socket = open_datagrams(local).map_err(NoSocket::System)?;
        bind(&socket, local, ports)?;
        Ok(Self {
            port: net::Near::new(socket, client).map_err(NoSocket::System)?,
            header: Vec::new(),
        })
    }

    /// Where it takes datagrams.
    pub(super) const fn bound(&self) -> SocketAddr {
        self.port.bound()
    }

    /// Destination and payload of a datagram from there, if it is the client's and has a good header. The first such one
    /// shows the client's port.
    pub(super) fn open<'a>(
        &mut self,
        datagram: &'a [u8],
        from: SocketAddr,
    ) -> Result<(Address, &'a [u8]), Dropped> {
        if !self.port.is_client(from) {
            return Err(Dropped::Stranger);
        }
        let (header, length) = DatagramHeader::decode(datagram)?.ok_or(Dropped::Short)?;
        if header.fragment != 0 {
            return Err(Dropped::Fragment);
        }
        if header.address.port == 0 {
            return Err(Dropped::PortZero);
        }
        self.pin(from);
        Ok((header.address, datagram.get(length..).unwrap_or_default()))
    }

    /// From now on the client is the one with this port. The first time counts.
    pub(super) fn pin(&mut self, client: SocketAddr) {
        self.port.pin(client);
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        self.port.receive(buffer)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

impl NearSide for Near {
    fn deliver(&mut self, payload: &[u8], from: Address) -> Result<(), Dropped> {
        self.header.clear();
        let header = DatagramHeader {
            fragment: 0,
            address: from,
        };
        header.encode(&mut self.header);
        match self.port.is_known() {
            true => sent(self.port.send(&self.header, payload)),
            false => Err(Dropped::Unsolicited),
        }
    }

    fn is_stuck(&self) -> bool {
        false
    }
}

/// The socket of one family towards destinations. Any of them may answer to its port (RFC 4787 §4.1, endpoint-independent
/// mapping).
pub(super) struct Far {
    socket: UdpSocket,
    /// Errors that came of earlier datagrams are reported to it, which interrupts sending.
    is_interrupted: bool,
}

impl Far {
    /// A socket that can reach this address, this way.
    pub(super) fn open(towards: SocketAddr, uplink: &Uplink) -> io::Result<Self> {
        let socket = open_datagrams(towards)?;
        let any: IpAddr = match towards {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        uplink.bind(&socket, SocketAddr::new(any, 0))?;
        Ok(Self {
            socket: socket.into(),
            is_interrupted: false,
        })
    }

    /// This one, which is bound; `is_interrupted` if errors are reported to it.
    #[cfg(feature = "socks6")]
    pub(super) fn new(socket: Socket, is_interrupted: bool) -> Self {
        Self {
            socket: socket.into(),
            is_interrupted,
        }
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        receive_datagram(&self.socket, buffer)
    }

    pub(super) fn send(&self, payload: &[u8], to: SocketAddr) -> Result<(), Dropped> {
        match send(&self.socket, payload, to) {
            // Said once by the system. If it is about this one, it says so again.
            Err(Dropped::Unreachable) if self.is_interrupted => send(&self.socket, payload, to),
            done => done,
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(socket: &Socket, at: SocketAddr, ports: Option<PortRange>) -> Result<(), NoSocket> {
    let bind = |port| {
        let mut at = at;
        at.set_port(port);
        socket.bind(&at.into())
    };
    let Some(range) = ports else {
        return bind(0).map_err(NoSocket::System);
    };
    for port in range.shuffled() {
        match bind(port) {
            Ok(()) => return Ok(()),
            // Others have it, or only root may.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::ADDRINUSE | Errno::ACCESS)
                ) => {}
            Err(error) => return Err(NoSocket::System(error)),
        }
    }
    Err(NoSocket::Ports(range))
}

fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> Result<(), Dropped> {
    sent(until_done(|| socket.send_to(datagram, to)))
}

pub(super) fn sent(result: io::Result<Option<usize>>) -> Result<(), Dropped> {
    match result {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Dropped::Congested),
        Err(error) => Err(Dropped::unsent(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(client: &str) -> Near {
        let local = "127.0.0.1:1080".parse().unwrap();
        Near::bind(local, client.parse().unwrap(), None).unwrap()
    }

    #[test]
    fn every_port_of_a_range_is_tried() {
        let local: SocketAddr = "127.0.0.1:1080".parse().unwrap();
        let taken = near("127.0.0.1:5000");
        let port = taken.bound().port();
        let range: PortRange = port.to_string().parse().unwrap();
        let refused = Near::bind(local, local, Some(range));
        assert!(matches!(refused, Err(NoSocket::Ports(_))));
        drop(taken);
        let near = Near::bind(local, local, Some(range)).unwrap();
        assert_eq!(near.bound().port(), port);
    }

    #[test]
    fn broadcast_is_refused_by_the_system() {
        let far = Far::open("127.0.0.1:1".parse().unwrap(), &Uplink::default()).unwrap();
        let everybody = "255.255.255.255:9".parse().unwrap();
        assert_eq!(far.send(b"x", everybody), Err(Dropped::Unreachable));
    }
}
