//! The sockets of an association: one towards the client, one for each family towards everybody else.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::dropped::Dropped;
use super::far_side::NearSide;
use super::settings::PortRange;
use crate::net::{canonical, until_done};
use crate::wire::Address;
use crate::wire::socks5::DatagramHeader;

/// The socket towards the client.
pub(super) struct Near {
    socket: UdpSocket,
    bound: SocketAddr,
    /// The client's, by its TCP connection.
    ip: IpAddr,
    /// Where its datagrams come from, once that is known. Nothing goes anywhere else.
    client: Option<SocketAddr>,
    /// Room for the header of one datagram.
    header: Vec<u8>,
    /// Then the kernel drops what others send, and tells when the client's port is closed.
    connected: bool,
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
        let (local, client) = (unmapped(local), unmapped(client));
        let socket = open(local).map_err(NoSocket::System)?;
        bind(&socket, local, ports)?;
        let bound = socket.local_addr().map_err(NoSocket::System)?;
        Ok(Self {
            socket: socket.into(),
            bound: bound.as_socket().unwrap_or(local),
            ip: canonical(client).ip(),
            client: None,
            header: Vec::new(),
            connected: false,
        })
    }

    /// Where it takes datagrams.
    pub(super) const fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Whether a datagram from there can be the client's.
    pub(super) fn is_client(&self, from: SocketAddr) -> bool {
        let from = canonical(from);
        match self.client {
            Some(client) => canonical(client) == from,
            None => from.ip() == self.ip,
        }
    }

    /// Destination and payload of a datagram from there, if it is the client's and has a good header. The first such one
    /// shows the client's port.
    pub(super) fn open<'a>(
        &mut self,
        datagram: &'a [u8],
        from: SocketAddr,
    ) -> Result<(Address, &'a [u8]), Dropped> {
        if !self.is_client(from) {
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
        if self.client.is_none() {
            let client = unmapped(client);
            self.client = Some(client);
            // If that fails, addresses are compared here as before.
            self.connected = self.socket.connect(client).is_ok();
        }
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        receive(&self.socket, buffer)
    }

    /// Sends to the client.
    fn send(&self, header: &[u8], payload: &[u8]) -> Result<(), Dropped> {
        let client = self.client.ok_or(Dropped::Unsolicited)?;
        let to = (!self.connected).then_some(client);
        send_twice(&self.socket, header, payload, to)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
        self.send(&self.header, payload)
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
    /// A socket that can reach this address.
    pub(super) fn open(towards: SocketAddr) -> io::Result<Self> {
        let socket = open(towards)?;
        let any: IpAddr = match towards {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
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
        receive(&self.socket, buffer)
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

/// Datagrams only, non-blocking, of one family. Never to broadcast addresses: that would take an option.
pub(super) fn open(family: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(family),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    if family.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
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

pub(super) fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, SocketAddr)>> {
    let mut from = None;
    let count = until_done(|| {
        let (count, address) = socket.recv_from(buffer)?;
        from = Some(address);
        Ok(count)
    })?;
    Ok(count.zip(from))
}

fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> Result<(), Dropped> {
    sent(until_done(|| socket.send_to(datagram, to)))
}

/// Sends a datagram that has two parts, there or where the socket is connected to.
pub(super) fn send_parts(
    socket: &UdpSocket,
    header: &[u8],
    payload: &[u8],
    to: Option<SocketAddr>,
) -> io::Result<Option<usize>> {
    let socket = SockRef::from(socket);
    let parts = [IoSlice::new(header), IoSlice::new(payload)];
    until_done(|| match to {
        Some(to) => socket.send_to_vectored(&parts, &to.into()),
        None => socket.send_vectored(&parts),
    })
}

/// The same, once more if what came of an earlier one (ICMP) is in the way: that says nothing about this one.
pub(super) fn send_twice(
    socket: &UdpSocket,
    header: &[u8],
    payload: &[u8],
    to: Option<SocketAddr>,
) -> Result<(), Dropped> {
    let send = || send_parts(socket, header, payload, to);
    sent(match send() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => send(),
        other => other,
    })
}

pub(super) fn sent(result: io::Result<Option<usize>>) -> Result<(), Dropped> {
    match result {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Dropped::Congested),
        Err(error) => Err(Dropped::unsent(&error)),
    }
}

/// An IPv4-mapped address as IPv4; others keep their scope, which a link-local one needs.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => canonical(address),
        other => other,
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
    fn only_the_address_of_the_client_counts_then_its_port_too() {
        let mut near = near("[::ffff:127.0.0.1]:5000");
        let is = |near: &Near, text: &str| near.is_client(text.parse().unwrap());
        assert!(is(&near, "127.0.0.1:1") && is(&near, "[::ffff:127.0.0.1]:2"));
        assert!(!is(&near, "127.0.0.2:1") && !is(&near, "[::1]:1"));
        assert_eq!(near.send(b"", b"x"), Err(Dropped::Unsolicited), "to nobody");
        near.pin("127.0.0.1:7".parse().unwrap());
        near.pin("127.0.0.1:8".parse().unwrap());
        assert!(is(&near, "127.0.0.1:7") && near.connected);
        assert!(!is(&near, "127.0.0.1:8") && !is(&near, "127.0.0.2:7"));
    }

    #[test]
    fn what_came_of_an_earlier_datagram_costs_no_later_one() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = client.local_addr().unwrap();
        let mut near = near("127.0.0.1:5000");
        near.pin(address);
        drop(client);
        assert_eq!(near.send(b"", b"lost"), Ok(()));
        let client = UdpSocket::bind(address).unwrap();
        let limit = std::time::Duration::from_secs(10);
        client.set_read_timeout(Some(limit)).unwrap();
        assert_eq!(near.send(b"", b"found"), Ok(()));
        assert_eq!(client.recv(&mut [0; 16]).unwrap(), 5);
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
        let far = Far::open("127.0.0.1:1".parse().unwrap()).unwrap();
        let everybody = "255.255.255.255:9".parse().unwrap();
        assert_eq!(far.send(b"x", everybody), Err(Dropped::Unreachable));
    }
}
