//! The UDP port of one client of an association (RFC 1928 §7).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use super::datagrams::{receive_datagram, send_twice, unmapped};
use super::local_address::canonical;

/// The socket towards a client: nothing goes to anybody else.
pub struct Near {
    socket: UdpSocket,
    bound: SocketAddr,
    /// The client's, by its TCP connection.
    ip: IpAddr,
    /// Where its datagrams come from, once that is known.
    client: Option<SocketAddr>,
    /// Then the kernel drops what others send, and tells when the client's port is closed.
    connected: bool,
}

impl Near {
    /// Takes datagrams with this bound socket, for the client at that IP address, whose port is not known yet.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn new(socket: Socket, client: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::from(socket);
        Ok(Self {
            bound: socket.local_addr()?,
            socket,
            ip: canonical(client).ip(),
            client: None,
            connected: false,
        })
    }

    /// Where it takes datagrams.
    #[must_use]
    pub const fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Whether a datagram from there can be the client's.
    #[must_use]
    pub fn is_client(&self, from: SocketAddr) -> bool {
        let from = canonical(from);
        match self.client {
            Some(client) => canonical(client) == from,
            None => from.ip() == self.ip,
        }
    }

    /// Whether the client's port is known.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.client.is_some()
    }

    /// From now on the client is the one with this port. The first time counts.
    pub fn pin(&mut self, client: SocketAddr) {
        if self.client.is_none() {
            let client = unmapped(client);
            self.client = Some(client);
            // If that fails, addresses are compared here as before.
            self.connected = self.socket.connect(client).is_ok();
        }
    }

    /// The next datagram, whoever sent it; `None` when there is none now.
    ///
    /// # Errors
    /// What came of an earlier one.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        receive_datagram(&self.socket, buffer)
    }

    /// Sends a datagram that has two parts to the client; `None` when the system has no room for it now.
    ///
    /// # Errors
    /// The system refuses, or nobody knows the client's port yet.
    pub fn send(&self, header: &[u8], payload: &[u8]) -> io::Result<Option<usize>> {
        let client = self.client.ok_or(io::ErrorKind::NotConnected)?;
        let to = (!self.connected).then_some(client);
        send_twice(&self.socket, header, payload, to)
    }
}

impl AsFd for Near {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::datagrams::open_datagrams;
    use super::*;

    fn near(client: &str) -> Near {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = open_datagrams(local).unwrap();
        socket.bind(&local.into()).unwrap();
        Near::new(socket, client.parse().unwrap()).unwrap()
    }

    #[test]
    fn only_the_address_of_the_client_counts_then_its_port_too() {
        let mut near = near("[::ffff:127.0.0.1]:5000");
        let is = |near: &Near, text: &str| near.is_client(text.parse().unwrap());
        assert!(is(&near, "127.0.0.1:1") && is(&near, "[::ffff:127.0.0.1]:2"));
        assert!(!is(&near, "127.0.0.2:1") && !is(&near, "[::1]:1"));
        assert!(near.send(b"", b"x").is_err(), "to nobody");
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
        assert!(near.send(b"", b"lost").is_ok());
        let client = UdpSocket::bind(address).unwrap();
        let limit = std::time::Duration::from_secs(10);
        client.set_read_timeout(Some(limit)).unwrap();
        assert_eq!(near.send(b"", b"found").unwrap(), Some(5));
        assert_eq!(client.recv(&mut [0; 16]).unwrap(), 5);
    }
}
