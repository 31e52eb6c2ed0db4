//! BIND: a port that lets one peer in.
//!
//! The request names the peer: the address that the client has its primary connection with (RFC 1928 §4, SOCKS4 "BIND"). Only
//! its address is compared, never its port: the request has that of the primary connection, and the one that the
//! peer will connect from (20 for FTP) may be anything behind a NAT. 0.0.0.0 and :: stand for anybody whom the rules let in.
//!
//! Somebody else who connects is closed, and the port goes on waiting for the peer. SOCKS4 says that a stranger ends it
//! with 91, and Dante does so, but then whoever scans ports ends every BIND. Only many strangers do that here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::OTHERS;
use super::dial::reply_code;
use super::rules::{Denied, NameVerdict, Rules};
#[cfg(feature = "socks6")]
use super::{answering::Stack, stack};
use crate::engine::{Interests, Want};
use crate::handshake::Request;
use crate::net::{Uplink, accept, canonical, is_shortage, tune};
use crate::wire::socks5::ReplyCode;
#[cfg(feature = "socks6")]
use crate::wire::socks6::StackOptions;
use crate::wire::{Address, Host};

/// A port that lets one peer in.
pub(super) struct Binding {
    listener: Socket,
    expected: Expected,
    strangers: usize,
}

enum Expected {
    /// One of these, which have been checked.
    OneOf(Vec<IpAddr>),
    /// Everybody whom the rules let in with this port.
    Anybody(u16),
}

/// Why there is no port.
pub(super) enum Unbound {
    /// The rules don't let the peer in.
    Denied(Denied),
    /// The system gives none, or the peer can't get here.
    Failed(ReplyCode, String),
}

/// Who has come.
pub(super) enum Came {
    /// Nobody so far.
    Nobody,
    /// The peer.
    Peer(Socket, SocketAddr),
    /// The peer won't come any more.
    Failed(ReplyCode, String),
}

impl Binding {
    /// Listens for one of the addresses that the request's peer has; gives the address to tell the client as well.
    pub(super) fn new(
        request: &Request,
        client: &Socket,
        addresses: Vec<SocketAddr>,
        name: NameVerdict,
        rules: &Rules,
        uplink: &Uplink,
    ) -> Result<(Self, SocketAddr), Unbound> {
        let anybody =
            matches!(request.address.host, Host::Ip(ip) if ip.to_canonical().is_unspecified());
        let (expected, at) = if anybody {
            let expected = Expected::Anybody(request.address.port);
            (
                expected,
                outside(near_client(request, client), &request.address, uplink),
            )
        } else {
            let peers = allowed_peers(request, addresses, name, rules)?;
            let at = near_peer(&peers, uplink)?;
            (Expected::OneOf(peers), at)
        };
        let (listener, bound) = listen(at, BACKLOG, uplink).map_err(|error| failed(&error))?;
        let binding = Self {
            listener,
            expected,
            strangers: 0,
        };
        Ok((binding, canonical(bound)))
    }

    /// Listens at this address for anybody whom the rules let in with any port, in the way that the client wants it; what is
    /// in force of that.
    #[cfg(feature = "socks6")]
    pub(super) fn open(
        at: SocketAddr,
        wanted: Option<&StackOptions>,
        uplink: &Uplink,
    ) -> Result<(Self, SocketAddr, Stack), Unbound> {
        let (listener, bound, stack) =
            stack::listen(at, BACKLOG, wanted, uplink).map_err(|error| failed(&error))?;
        let binding = Self {
            listener,
            expected: Expected::Anybody(0),
            strangers: 0,
        };
        Ok((binding, canonical(bound), stack))
    }

    pub(super) fn turn(&mut self, rules: &Rules) -> Came {
        while self.strangers < MOST_STRANGERS {
            match accept(&self.listener) {
                Ok((socket, Some(peer))) if self.expects(peer, rules) => {
                    return Came::Peer(socket, canonical(peer));
                }
                Ok(_) => self.strangers += 1,
                // Linux wants a descriptor before it looks whether there is anybody.
                Err(error) if is_shortage(&error) && !self.is_readable() => return Came::Nobody,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return Came::Nobody,
                    // It left before it was accepted: it could do so for ever.
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => self.strangers += 1,
                    _ => {
                        return Came::Failed(reply_code(&error), format!("cannot accept: {error}"));
                    }
                },
            }
        }
        let why = format!("{MOST_STRANGERS} others came instead of the peer");
        Came::Failed(ReplyCode::NOT_ALLOWED, why)
    }

    fn is_readable(&self) -> bool {
        let mut listener = [PollFd::new(&self.listener, PollFlags::IN)];
        poll(&mut listener, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    fn expects(&self, peer: SocketAddr, rules: &Rules) -> bool {
        let ip = peer.ip().to_canonical();
        match &self.expected {
            Expected::OneOf(peers) => peers.contains(&ip),
            Expected::Anybody(port) => lets_in(SocketAddr::new(ip, *port), rules),
        }
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        interests.watch(OTHERS, self.listener.as_fd(), Want::READ);
    }
}

/// Those of the addresses of a request's peer that the rules let in, at least one.
pub(super) fn allowed_peers(
    request: &Request,
    addresses: Vec<SocketAddr>,
    name: NameVerdict,
    rules: &Rules,
) -> Result<Vec<IpAddr>, Unbound> {
    let mut denied = None;
    let mut peers = Vec::new();
    for address in addresses {
        match rules.check_peer(address, name) {
            Ok(()) => peers.push(address.ip().to_canonical()),
            Err(why) => denied = Some(why),
        }
    }
    if let (Some(denied), true) = (denied, peers.is_empty()) {
        return Err(Unbound::Denied(denied));
    }
    // Its replies have room for IPv4 only.
    if request.user_id().is_some() {
        peers.retain(IpAddr::is_ipv4);
    }
    match peers.is_empty() {
        true => Err(Unbound::Failed(
            ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED,
            SOCKS4_IS_IPV4.into(),
        )),
        false => Ok(peers),
    }
}

/// Whether the rules let a peer in, judged as a destination.
pub(super) fn lets_in(peer: SocketAddr, rules: &Rules) -> bool {
    rules.check_peer(peer, NameVerdict::Open).is_ok()
}

/// The address that packets to the first of the peers that can be reached come from: there it reaches us.
fn near_peer(peers: &[IpAddr], uplink: &Uplink) -> Result<SocketAddr, Unbound> {
    let mut failure = None;
    for peer in peers {
        match uplink.own_address(*peer) {
            Ok(own) => return Ok(SocketAddr::new(own, 0)),
            Err(error) => failure = Some(error),
        }
    }
    Err(match failure {
        Some(error) => failed(&error),
        None => Unbound::Failed(
            ReplyCode::HOST_UNREACHABLE,
            "the peer has no address".into(),
        ),
    })
}

/// The address at which the client has reached us. Where it is none, or cannot be told to the client, all addresses: the client
/// is told 0.0.0.0, which stands for the one it knows us by (SOCKS4 "BIND").
fn near_client(request: &Request, client: &Socket) -> SocketAddr {
    match reached_at(client) {
        Some(address) if address.is_ipv4() || request.user_id().is_none() => address,
        _ => match request.address.host {
            Host::Ip(IpAddr::V6(_)) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            _ => (Ipv4Addr::UNSPECIFIED, 0).into(),
        },
    }
}

/// Where others reach us who come by the way that connections to them take, with the family of this unspecified address. Without
/// such a way, where the client does.
pub(super) fn outside(near: SocketAddr, any: &Address, uplink: &Uplink) -> SocketAddr {
    let like = match any.host {
        Host::Ip(ip) => ip,
        Host::Name(_) => near.ip(),
    };
    match uplink.outside(like) {
        Some(ip) => SocketAddr::new(ip, near.port()),
        None => near,
    }
}

/// The address at which the client has reached us, if it is one, with port 0.
pub(super) fn reached_at(client: &Socket) -> Option<SocketAddr> {
    let mut address = client.local_addr().ok()?.as_socket()?;
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => Some((ip, 0).into()),
        IpAddr::V6(_) => {
            // Not made anew: a link-local address has its scope in there.
            address.set_port(0);
            Some(address)
        }
    }
}

/// A port that keeps so many who have connected.
pub(super) fn listen(
    at: SocketAddr,
    backlog: i32,
    uplink: &Uplink,
) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    listen_on(socket, at, backlog, uplink)
}

/// The same on a socket that has been made.
pub(super) fn listen_on(
    socket: Socket,
    at: SocketAddr,
    backlog: i32,
    uplink: &Uplink,
) -> io::Result<(Socket, SocketAddr)> {
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    tune(&socket);
    socket.set_nonblocking(true)?;
    // Who connects comes by the way that leads there, and what they get goes back by it.
    uplink.steer(&socket, at)?;
    socket.bind(&at.into())?;
    socket.listen(backlog)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(at);
    Ok((socket, bound))
}

pub(super) fn failed(error: &io::Error) -> Unbound {
    Unbound::Failed(reply_code(error), format!("cannot listen: {error}"))
}

pub(super) const SOCKS4_IS_IPV4: &str = "SOCKS4 cannot tell an IPv6 address";

/// Enough for those who knock at every port, and too few to keep the port open for someone who guesses.
const MOST_STRANGERS: usize = 16;

/// One is awaited. The kernel keeps one more than that, so a stranger in front of the peer is no harm.
const BACKLOG: i32 = 1;
