//! Datagrams through a proxy (RFC 1928 §7).

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use super::dialer::FOREVER;
use super::error::ClientError;
use super::stream::wait;
use crate::handshake::Outcome;
use crate::net::{Uplink, open_datagrams, until_done};
use crate::proxy_uri::Resolution;
use crate::resolver::Resolver;
use crate::wire::socks5::DatagramHeader;
use crate::wire::{Address, Host};
#[cfg(feature = "socks6")]
use crate::wire::{BoundAddress, socks6::StackOptions};
use rustix::event::PollFlags;

/// Datagrams through a SOCKS5 or SOCKS 6 proxy; made by [`Dialer::associate`](super::Dialer::associate). It ends with its
/// connection to the proxy, which this holds.
#[derive(Debug)]
pub struct Association(Way);

#[derive(Debug)]
enum Way {
    Socks5(Socks5),
    #[cfg(feature = "socks6")]
    Socks6(super::socks6::Association),
}

impl Association {
    pub(super) fn socks5(
        control: TcpStream,
        outcome: &Outcome,
        proxy: &Address,
        resolution: Resolution,
        resolver: Resolver,
        uplink: &Uplink,
    ) -> Result<Self, ClientError> {
        Socks5::new(control, outcome, proxy, resolution, resolver, uplink)
            .map(Way::Socks5)
            .map(Self)
    }

    #[cfg(feature = "socks6")]
    pub(super) const fn socks6(association: super::socks6::Association) -> Self {
        Self(Way::Socks6(association))
    }

    /// What to wait for besides other things: with one of them readable, [`Association::recv_from`] has something to do.
    /// Where the connection to the proxy carries the datagrams, both are that.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        match &self.0 {
            Way::Socks5(socks5) => [socks5.socket.as_fd(), socks5.control.as_fd()],
            #[cfg(feature = "socks6")]
            Way::Socks6(socks6) => socks6.descriptors(),
        }
    }

    /// Where the proxy takes datagrams.
    #[must_use]
    pub fn relay(&self) -> SocketAddr {
        match &self.0 {
            Way::Socks5(socks5) => socks5.relay,
            #[cfg(feature = "socks6")]
            Way::Socks6(socks6) => socks6.relay(),
        }
    }

    /// Where datagrams come from, as those see it who get them. Only SOCKS 6 proxies tell.
    #[cfg(feature = "socks6")]
    #[must_use]
    pub const fn outside(&self) -> Option<&BoundAddress> {
        match &self.0 {
            Way::Socks5(_) => None,
            Way::Socks6(socks6) => Some(socks6.outside()),
        }
    }

    /// What the proxy says is in force, if it speaks SOCKS 6.
    #[cfg(feature = "socks6")]
    #[must_use]
    pub fn granted(&self) -> StackOptions {
        match &self.0 {
            Way::Socks5(_) => StackOptions::default(),
            Way::Socks6(socks6) => socks6.granted(),
        }
    }

    /// The longest payload that can be sent wherever it goes: what UDP can carry over IPv4, less the longest header that the
    /// proxy needs.
    #[must_use]
    pub const fn max_payload(&self) -> usize {
        let header = match &self.0 {
            Way::Socks5(_) => DatagramHeader::MAX_LEN,
            #[cfg(feature = "socks6")]
            Way::Socks6(_) => super::socks6::LONGEST_HEADER,
        };
        MAX_UDP_IPV4 - header
    }

    /// Sends one datagram. Like any other it may get lost, also when the system's buffer is full. With a `socks5` proxy a
    /// name is looked up here, for each datagram; with `socks5h` and `socks6` the proxy does it.
    ///
    /// # Errors
    /// The name was not found in [`LOOKUP_TIMEOUT`], the datagram is too long, the system refuses.
    pub fn send_to(&self, payload: &[u8], target: &Address) -> io::Result<()> {
        match &self.0 {
            Way::Socks5(socks5) => socks5.send_to(payload, target),
            #[cfg(feature = "socks6")]
            Way::Socks6(socks6) => socks6.send_to(payload, target),
        }
    }

    /// Waits for a datagram, so long at most; gives its length and who sent it. What does not fit into `buffer` is lost.
    /// Dropped are fragments, what has no header, and what does not come from the proxy.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::ConnectionAborted`] once the proxy has ended the association. A SOCKS 6
    /// proxy that was asked to (`udp-error=yes`) tells what became of a datagram: see `DatagramError::of`. The association goes
    /// on after that.
    pub fn recv_from(&self, buffer: &mut [u8], timeout: Duration) -> io::Result<(usize, Address)> {
        let deadline = Instant::now() + timeout.min(FOREVER);
        match &self.0 {
            Way::Socks5(socks5) => socks5.recv_from(buffer, deadline),
            #[cfg(feature = "socks6")]
            Way::Socks6(socks6) => socks6.recv_from(buffer, deadline),
        }
    }
}

#[derive(Debug)]
struct Socks5 {
    control: TcpStream,
    /// Connected to the relay, so that the kernel drops what comes from others. Non-blocking.
    socket: UdpSocket,
    relay: SocketAddr,
    resolution: Resolution,
    resolver: Resolver,
}

impl Socks5 {
    fn new(
        control: TcpStream,
        outcome: &Outcome,
        proxy: &Address,
        resolution: Resolution,
        resolver: Resolver,
        uplink: &Uplink,
    ) -> Result<Self, ClientError> {
        let near = control.local_addr().map_err(ClientError::System)?;
        let far = control.peer_addr().map_err(ClientError::System)?;
        let relay = match outcome {
            Outcome::Done(bound) => bound.seen_from(far.ip()),
            _ => None,
        };
        let relay = relay
            .filter(|relay| relay.port() != 0)
            .ok_or_else(|| ClientError::NoRelay(proxy.clone()))?;
        let socket = connected(near, relay, uplink).map_err(ClientError::System)?;
        Ok(Self {
            control,
            socket,
            relay,
            resolution,
            resolver,
        })
    }

    fn send_to(&self, payload: &[u8], target: &Address) -> io::Result<()> {
        let address = match (&target.host, self.resolution) {
            (Host::Name(name), Resolution::Here) => {
                let lookup = self.resolver.lookup(name.as_str(), target.port);
                let found = lookup.wait(Instant::now() + LOOKUP_TIMEOUT);
                let found = found.map_err(io::Error::other)?;
                let first = found.first().ok_or(io::ErrorKind::NotFound)?;
                Address::from(*first)
            }
            _ => target.clone(),
        };
        let mut datagram = Vec::with_capacity(DatagramHeader::MAX_LEN + payload.len());
        let header = DatagramHeader {
            fragment: 0,
            address,
        };
        header.encode(&mut datagram);
        datagram.extend(payload);
        send(&self.socket, &datagram)
    }

    fn recv_from(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<(usize, Address)> {
        let room = buffer.len().saturating_add(DatagramHeader::MAX_LEN);
        let mut datagram = vec![0; room.min(MAX_DATAGRAM)];
        loop {
            let both = [self.socket.as_fd(), self.control.as_fd()];
            let ready = wait(&both, PollFlags::IN, deadline)?;
            if ready.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match until_done(|| self.socket.recv(&mut datagram)) {
                Ok(Some(count)) => {
                    let bytes = datagram.get(..count).unwrap_or_default();
                    if let Some((payload, from)) = unwrapped(bytes) {
                        return Ok((copy(payload, buffer), from));
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            }
            // After the datagrams: those that came before the end count.
            let mut control = &self.control;
            match until_done(|| control.read(&mut [0; 64])) {
                Ok(Some(0)) | Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(_) => {}
            }
        }
    }
}

/// A non-blocking socket that is connected to the relay. It is bound to the address that the proxy knows us by; a relay of the
/// other family knows us by none.
pub(super) fn connected(
    near: SocketAddr,
    relay: SocketAddr,
    uplink: &Uplink,
) -> io::Result<UdpSocket> {
    let from = match (near.ip(), relay) {
        (IpAddr::V4(ip), SocketAddr::V4(_)) => ip.into(),
        (IpAddr::V6(ip), SocketAddr::V6(_)) => ip.into(),
        (_, SocketAddr::V4(_)) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        (_, SocketAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = open_datagrams(relay)?;
    uplink.steer(&socket, relay)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&relay.into())?;
    Ok(socket.into())
}

/// Sends to the relay; with a full buffer, the datagram is lost.
pub(super) fn send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    let send = || until_done(|| socket.send(datagram));
    match send() {
        // What came of an earlier one (ICMP) says nothing about this one.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => send(),
        other => other,
    }
    .map(drop)
}

/// As much of the payload as there is room for; how much that is.
pub(super) fn copy(payload: &[u8], buffer: &mut [u8]) -> usize {
    for (slot, byte) in buffer.iter_mut().zip(payload) {
        *slot = *byte;
    }
    payload.len().min(buffer.len())
}

fn unwrapped(datagram: &[u8]) -> Option<(&[u8], Address)> {
    let (header, length) = DatagramHeader::decode(datagram).ok().flatten()?;
    (header.fragment == 0).then_some(())?;
    Some((datagram.get(length..)?, header.address))
}

/// For the name of one datagram: as long as resolvers wait for one answer.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that UDP can carry over IPv4: 65,535 bytes less both headers.
const MAX_UDP_IPV4: usize = 65_507;

/// The most that UDP can carry.
pub(super) const MAX_DATAGRAM: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_datagrams_with_a_header_are_unwrapped() {
        let whole = b"\0\0\0\x01\xc0\0\x02\x01\0\x35payload";
        let (payload, from) = unwrapped(whole).unwrap();
        assert_eq!(
            (payload, from.to_string().as_str()),
            (&b"payload"[..], "192.0.2.1:53")
        );
        assert_eq!(unwrapped(&whole[..10]).unwrap().0, b"");
        for cut in 0..10 {
            assert_eq!(unwrapped(&whole[..cut]), None, "{cut}");
        }
        for (at, byte) in [(0, 1), (1, 1), (2, 1), (2, 0x81), (3, 9)] {
            let mut bad = *whole;
            bad[at] = byte;
            assert_eq!(unwrapped(&bad), None, "{at} {byte}");
        }
    }
}
