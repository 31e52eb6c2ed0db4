//! UDP ASSOCIATE through a remote (RFC 1928 §7): datagrams between a client and the remote's relay.
//!
//! ```text
//!            near: where the client has connected      far: any address and port
//! client ──header, payload──▶ is it the client? ──as it is──▶ the remote's relay
//! client ◀──────────────────── as it is ◀──── is it the relay?, by the kernel ◀──
//! ```
//!
//! A client of the forwarder may have no way to the relay: it is behind the remote, or on an overlay that only this machine is on.
//! So the client is told a port of ours, and datagrams are passed on with their headers, which only the remote reads. The
//! association ends with either of its two TCP connections, or idle.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::engine::{Interests, Key, Turn, TurnContext, Want};
use crate::listen::{Limits, Slot};
use crate::net::{
    Near, Uplink, open_datagrams, open_towards_relay, send_twice, unmapped, until_done,
};
use crate::relay::{Control, Gone, Moved};
use crate::wire::BoundAddress;
use crate::wire::socks5::DatagramHeader;

/// A client whose datagrams a remote carries.
pub(super) struct Datagrams {
    client: Control,
    remote: Control,
    ports: Ports,
    moved: Moved,
    dropped: u64,
    /// When the last datagram was passed on.
    last: Instant,
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
enum Ended {
    Client(Gone),
    Remote,
    Idle,
}

/// The connections of an association, and who is at their other ends.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) client: &'a Socket,
    pub(super) address: SocketAddr,
    pub(super) remote: &'a Socket,
    pub(super) at: SocketAddr,
}

/// The two ports of an association, and its place among all of them.
pub(super) struct Ports {
    near: Near,
    /// Connected to the relay: the kernel drops what comes from others.
    far: UdpSocket,
    _counted: Slot,
}

/// Why there are no such ports.
#[derive(Debug)]
pub(super) enum NoPorts {
    /// The client, or all clients together, have as many as they may have.
    TooMany,
    /// The remote told no port.
    NoRelay,
    /// The system gives no socket, or knows no way to the relay.
    System(io::Error),
}

impl fmt::Display for NoPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => f.write_str("too many associations"),
            Self::NoRelay => f.write_str("the remote told no port for datagrams"),
            Self::System(error) => write!(f, "no UDP socket: {error}"),
        }
    }
}

impl Ports {
    /// Opens the ports for a client whose remote has `told` where its relay is. The client's slot is widened: an association has
    /// four descriptors.
    pub(super) fn open(
        ends: Ends<'_>,
        told: &BoundAddress,
        slot: &mut Slot,
        associations: &Limits,
        uplink: &Uplink,
    ) -> Result<Self, NoPorts> {
        let relay = relay_of(told, ends.at).ok_or(NoPorts::NoRelay)?;
        let counted = associations.take(Some(ends.address.ip()));
        let counted = counted.ok_or(NoPorts::TooMany)?;
        if !slot.widen() {
            return Err(NoPorts::TooMany);
        }
        let mut own = unmapped(ends.at);
        own.set_port(relay.port());
        let far =
            open_towards_relay(ends.remote, relay, uplink).or_else(|error| match own == relay {
                true => Err(error),
                // No way to there from here; to the remote itself there is one.
                false => open_towards_relay(ends.remote, own, uplink),
            });
        Ok(Self {
            near: near(ends.client, ends.address).map_err(NoPorts::System)?,
            far: far.map_err(NoPorts::System)?,
            _counted: counted,
        })
    }

    /// What the client is told.
    pub(super) const fn bound(&self) -> SocketAddr {
        self.near.bound()
    }
}

/// A port at the address that the client has connected to.
fn near(client: &Socket, address: SocketAddr) -> io::Result<Near> {
    let local = client.local_addr()?.as_socket();
    let mut local = unmapped(local.ok_or(io::ErrorKind::AddrNotAvailable)?);
    local.set_port(0);
    let socket = open_datagrams(local)?;
    socket.bind(&local.into())?;
    Near::new(socket, address)
}

/// Where the relay of a remote is that told this. Some tell an address that means something only where they are: then it is the
/// remote's own. That also keeps a remote from having datagrams sent into our own network.
fn relay_of(told: &BoundAddress, remote: SocketAddr) -> Option<SocketAddr> {
    let remote = unmapped(remote);
    let ip = match told {
        BoundAddress::Socket(address) => address.ip().to_canonical(),
        BoundAddress::Name(..) => remote.ip(),
    };
    let is_usable = match Range::of(ip) {
        Range::Nobody => false,
        Range::Public => true,
        range => range == Range::of(remote.ip()),
    };
    let relay = match is_usable && ip != remote.ip() {
        true => SocketAddr::new(ip, told.port()),
        // With its scope, if it has one.
        false => {
            let mut own = remote;
            own.set_port(told.port());
            own
        }
    };
    (relay.port() != 0).then_some(relay)
}

/// Where an address means something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Range {
    /// Nowhere: nobody has it.
    Nobody,
    /// On one machine.
    Loopback,
    /// In networks of this range (RFC 1918, RFC 6598, RFC 4193).
    Private(u8),
    /// Everywhere, as far as one can tell from the address.
    Public,
}

impl Range {
    const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => match ip.octets() {
                _ if ip.is_unspecified() || ip.is_multicast() || ip.is_link_local() => Self::Nobody,
                [255, 255, 255, 255] => Self::Nobody,
                [127, ..] => Self::Loopback,
                [10, ..] => Self::Private(10),
                [172, 16..=31, ..] => Self::Private(172),
                [192, 168, ..] => Self::Private(192),
                [100, 64..=127, ..] => Self::Private(100),
                _ => Self::Public,
            },
            IpAddr::V6(ip) => match ip.segments() {
                _ if ip.is_unspecified() || ip.is_multicast() => Self::Nobody,
                // Link-local: without the link it says nothing.
                [0xFE80..=0xFEBF, ..] => Self::Nobody,
                _ if ip.is_loopback() => Self::Loopback,
                [0xFC00..=0xFDFF, ..] => Self::Private(0xFC),
                _ => Self::Public,
            },
        }
    }
}

impl Datagrams {
    /// Serves a client; `unsent` is the reply to it.
    pub(super) const fn new(
        client: Socket,
        remote: Socket,
        unsent: Vec<u8>,
        ports: Ports,
        now: Instant,
    ) -> Self {
        Self {
            client: Control::new(client, CLIENT, unsent),
            remote: Control::new(remote, REMOTE, Vec::new()),
            ports,
            moved: Moved { up: 0, down: 0 },
            dropped: 0,
            last: now,
            ended: None,
        }
    }

    pub(super) fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        let (client, remote) = (self.client.turn(cx), self.remote.turn(cx));
        let mut quiet = true;
        // What was sent right before an end is still passed on: the last word of a program that ends.
        if cx.ready.has(NEAR) || client.is_err() {
            quiet &= self.up(cx);
        }
        if cx.ready.has(FAR) || remote.is_err() {
            quiet &= self.down(cx);
        }
        let until = self.last + IDLE;
        let ended = match (client, remote) {
            (Err(gone), _) => Ended::Client(gone),
            (_, Err(_)) => Ended::Remote,
            _ if cx.now >= until => Ended::Idle,
            (Ok(true), Ok(true)) if quiet => return Turn::Wait { until: Some(until) },
            _ => return Turn::Again,
        };
        self.ended = Some(ended);
        Turn::Done
    }

    /// Bytes of datagrams so far, headers included, as the connection's bytes are counted too.
    pub(super) const fn moved(&self) -> Moved {
        self.moved
    }

    /// Passes on what the client sends; whether nothing is left.
    fn up(&mut self, cx: &mut TurnContext<'_>) -> bool {
        let now = cx.now;
        for _ in 0..DATAGRAMS_A_TURN {
            let buffer = cx.buffer();
            let (count, from) = match self.ports.near.receive(buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return true,
                // What came of an earlier one: the client's port is closed, for now.
                Err(_) => continue,
            };
            let datagram = buffer.get(..count).unwrap_or_default();
            if self.is_clients(datagram, from) && self.send_far(datagram) {
                self.moved.up += datagram.len() as u64;
                self.last = now;
            } else {
                self.dropped += 1;
            }
        }
        false
    }

    /// Whether a datagram is the client's. The first one with a good header shows the client's port.
    fn is_clients(&mut self, datagram: &[u8], from: SocketAddr) -> bool {
        let near = &mut self.ports.near;
        if !near.is_client(from) {
            return false;
        }
        if !near.is_known() {
            if !matches!(DatagramHeader::decode(datagram), Ok(Some(_))) {
                return false;
            }
            near.pin(from);
        }
        true
    }

    fn send_far(&self, datagram: &[u8]) -> bool {
        let sent = send_twice(&self.ports.far, &[], datagram, None);
        matches!(sent, Ok(Some(_)))
    }

    /// Passes on what the relay sends; whether nothing is left.
    fn down(&mut self, cx: &mut TurnContext<'_>) -> bool {
        let now = cx.now;
        for _ in 0..DATAGRAMS_A_TURN {
            let buffer = cx.buffer();
            let count = match until_done(|| self.ports.far.recv(buffer)) {
                Ok(Some(count)) => count,
                Ok(None) => return true,
                Err(_) => continue,
            };
            let datagram = buffer.get(..count).unwrap_or_default();
            if matches!(self.ports.near.send(&[], datagram), Ok(Some(_))) {
                self.moved.down += datagram.len() as u64;
                self.last = now;
            } else {
                self.dropped += 1;
            }
        }
        false
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.client.interests(interests);
        self.remote.interests(interests);
        interests.watch(NEAR, self.ports.near.as_fd(), Want::READ);
        interests.watch(FAR, self.ports.far.as_fd(), Want::READ);
    }
}

/// How it went, for the log.
impl fmt::Display for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moved { up, down } = self.moved;
        let dropped = self.dropped;
        write!(
            f,
            "datagrams: {up} bytes up, {down} down, {dropped} dropped"
        )?;
        f.write_str(match self.ended {
            Some(Ended::Client(Gone::Broken)) => ": the client's connection broke",
            Some(Ended::Remote) => ": the remote ended it",
            Some(Ended::Idle) => ": idle",
            Some(Ended::Client(Gone::Closed)) | None => "",
        })
    }
}

const CLIENT: Key = 0;
const REMOTE: Key = 1;
const NEAR: Key = 2;
const FAR: Key = 3;

/// From one socket, before others get their turn.
const DATAGRAMS_A_TURN: usize = 32;

/// RFC 4787 §4.3: two minutes at least, five are recommended. A remote that forgets sooner ends its connection.
const IDLE: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::engine::{Reactor, Ready};

    #[test]
    fn an_address_that_only_the_remote_knows_is_the_remotes_own() {
        for (remote, told, relay) in [
            ("[407::1]:1080", "[407::1]:9", "[407::1]:9"),
            ("[407::1]:1080", "0.0.0.0:9", "[407::1]:9"),
            ("[407::1]:1080", "[::]:9", "[407::1]:9"),
            ("[407::1]:1080", "127.0.0.1:9", "[407::1]:9"),
            ("[407::1]:1080", "10.0.0.5:9", "[407::1]:9"),
            ("[407::1]:1080", "[fd00::5]:9", "[407::1]:9"),
            ("[407::1]:1080", "[fe80::5]:9", "[407::1]:9"),
            ("[407::1]:1080", "255.255.255.255:9", "[407::1]:9"),
            ("[407::1]:1080", "[ff02::1]:9", "[407::1]:9"),
            ("[407::1]:1080", "192.0.2.7:9", "192.0.2.7:9"),
            ("10.1.2.3:1080", "10.9.9.9:9", "10.9.9.9:9"),
            ("10.1.2.3:1080", "[::ffff:10.9.9.9]:9", "10.9.9.9:9"),
            ("10.1.2.3:1080", "192.168.1.1:9", "10.1.2.3:9"),
            ("100.64.0.9:1080", "192.168.1.1:9", "100.64.0.9:9"),
            ("127.0.0.1:1080", "127.0.0.2:9", "127.0.0.2:9"),
            ("127.0.0.1:1080", "0.0.0.0:9", "127.0.0.1:9"),
            ("192.0.2.1:1080", "127.0.0.1:9", "192.0.2.1:9"),
            ("[::ffff:192.0.2.1]:1080", "0.0.0.0:9", "192.0.2.1:9"),
        ] {
            let address = BoundAddress::Socket(told.parse().unwrap());
            let found = relay_of(&address, remote.parse().unwrap());
            assert_eq!(found, relay.parse().ok(), "{remote} told {told}");
        }
        let nowhere = BoundAddress::Socket("192.0.2.7:0".parse().unwrap());
        assert_eq!(relay_of(&nowhere, "192.0.2.1:1".parse().unwrap()), None);
    }

    /// An association, the far ends of its connections, and the remote's relay.
    fn association() -> (Datagrams, TcpStream, TcpStream, UdpSocket, Instant) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connected = || {
            let far = TcpStream::connect(address).unwrap();
            let near = Socket::from(listener.accept().unwrap().0);
            near.set_nonblocking(true).unwrap();
            (far, near)
        };
        let ((client, near), (remote, far)) = (connected(), connected());
        let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
        let limit = Some(Duration::from_secs(10));
        relay.set_read_timeout(limit).unwrap();
        let limits = Limits::new(8, Some(1), Reactor::new(1).unwrap().mailbox());
        let mut slot = limits.take(None).unwrap();
        let told = BoundAddress::Socket(relay.local_addr().unwrap());
        let from = client.local_addr().unwrap();
        let ends = Ends {
            client: &near,
            address: from,
            remote: &far,
            at: address,
        };
        let mut open = || Ports::open(ends, &told, &mut slot, &limits, &Uplink::default());
        let ports = open().unwrap();
        assert!(matches!(open(), Err(NoPorts::TooMany)), "one per client");
        let now = Instant::now();
        let reply = b"reply".to_vec();
        (
            Datagrams::new(near, far, reply, ports, now),
            client,
            remote,
            relay,
            now,
        )
    }

    fn turn(datagrams: &mut Datagrams, now: Instant) -> Turn {
        let mut buffer = Vec::new();
        let mut cx = TurnContext::new(now, Ready::ALL, &mut buffer);
        datagrams.turn(&mut cx)
    }

    #[test]
    fn only_a_good_header_shows_the_port() {
        let (mut datagrams, _client, _remote, relay, now) = association();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(datagrams.ports.bound()).unwrap();
        relay.set_nonblocking(true).unwrap();
        sender.send(b"no header").unwrap();
        turn(&mut datagrams, now);
        assert_eq!(
            (datagrams.dropped, datagrams.ports.near.is_known()),
            (1, false)
        );
        assert!(relay.recv(&mut [0; 99]).is_err());
        relay.set_nonblocking(false).unwrap();
        sender.send(b"\0\0\0\x01\x7f\0\0\x01\0\x35hello").unwrap();
        turn(&mut datagrams, now);
        let mut buffer = [0; 99];
        let (count, from) = relay.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"\0\0\0\x01\x7f\0\0\x01\0\x35hello");
        relay.send_to(b"anything", from).unwrap();
        turn(&mut datagrams, now);
        sender
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(sender.recv(&mut buffer).unwrap(), 8);
        assert_eq!(datagrams.moved(), Moved { up: 15, down: 8 });
    }

    #[test]
    fn it_ends_idle_and_not_before() {
        let (mut datagrams, _client, _remote, _relay, now) = association();
        let until = Some(now + IDLE);
        assert_eq!(turn(&mut datagrams, now), Turn::Wait { until });
        let last = now + IDLE - Duration::from_millis(1);
        assert_eq!(turn(&mut datagrams, last), Turn::Wait { until });
        assert_eq!(turn(&mut datagrams, now + IDLE), Turn::Done);
        assert!(datagrams.to_string().ends_with(": idle"));
    }

    #[test]
    fn it_ends_with_either_connection() {
        let (mut datagrams, client, _remote, _relay, now) = association();
        drop(client);
        assert!((0..9).any(|_| turn(&mut datagrams, now) == Turn::Done));
        let (mut datagrams, _client, remote, _relay, now) = association();
        drop(remote);
        assert!((0..9).any(|_| turn(&mut datagrams, now) == Turn::Done));
        assert!(datagrams.to_string().ends_with(": the remote ended it"));
    }
}
