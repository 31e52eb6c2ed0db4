//! UDP sockets that never block.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::local_address::canonical;
use super::transfer::until_done;
use super::uplink::Uplink;

/// Datagrams only, non-blocking, of one family. Never to broadcast addresses: that would take an option.
///
/// # Errors
/// No descriptor, no memory, no such family.
pub fn open_datagrams(family: SocketAddr) -> io::Result<Socket> {
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

/// The next datagram and who sent it; `None` when there is none now.
///
/// # Errors
/// What came of an earlier one that was sent.
pub fn receive_datagram(
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

/// Sends a datagram that has two parts, there or where the socket is connected to; `None` when the system has no room for it now.
///
/// # Errors
/// The system refuses.
pub fn send_parts(
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
///
/// # Errors
/// As [`send_parts`].
pub fn send_twice(
    socket: &UdpSocket,
    header: &[u8],
    payload: &[u8],
    to: Option<SocketAddr>,
) -> io::Result<Option<usize>> {
    match send_parts(socket, header, payload, to) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            send_parts(socket, header, payload, to)
        }
        other => other,
    }
}

/// A socket for the relay of the proxy at the other end of this connection: connected to it, so that the kernel drops what comes from
/// others, and sending from the address that the proxy knows us by, which is all that it has to tell us from others. A relay of the
/// other family knows us by none. Datagrams take the way that the connection takes.
///
/// # Errors
/// No socket, or no way to there.
pub fn open_towards_relay(
    proxy: &Socket,
    relay: SocketAddr,
    uplink: &Uplink,
) -> io::Result<UdpSocket> {
    let known_by = proxy.local_addr()?.as_socket().map(unmapped);
    let any: IpAddr = match relay {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let known_by = known_by.filter(|known_by| known_by.is_ipv4() == relay.is_ipv4());
    // With the scope of a link-local address.
    let mut source = known_by.unwrap_or_else(|| SocketAddr::new(any, 0));
    source.set_port(0);
    let socket = open_datagrams(relay)?;
    uplink.steer(&socket, relay)?;
    socket.bind(&source.into())?;
    socket.connect(&relay.into())?;
    Ok(socket.into())
}

/// An IPv4-mapped address as IPv4; others keep their scope, which a link-local one needs.
#[must_use]
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => canonical(address),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// A proxy tells clients from others by the address of their connection.
    #[test]
    fn datagrams_come_from_the_address_of_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let own: SocketAddr = "127.0.0.5:0".parse().unwrap();
        proxy.bind(&own.into()).unwrap();
        proxy
            .connect(&listener.local_addr().unwrap().into())
            .unwrap();
        let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
        let limit = std::time::Duration::from_secs(10);
        relay.set_read_timeout(Some(limit)).unwrap();
        let socket =
            open_towards_relay(&proxy, relay.local_addr().unwrap(), &Uplink::default()).unwrap();
        socket.send(b"x").unwrap();
        assert_eq!(relay.recv_from(&mut [0; 8]).unwrap().1.ip(), own.ip());
        // Another one is not heard.
        let (ours, other) = (
            socket.local_addr().unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        other.send_to(b"other", ours).unwrap();
        relay.send_to(b"relay", ours).unwrap();
        let mut buffer = [0; 8];
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit)).unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"relay");
    }
}
