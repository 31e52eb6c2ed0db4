//! Stack options of SOCKS 6 on the sockets of a connection: what the client wants, what it gets.
//!
//! What to read: "Stack Options" in the draft. An option that this system has is answered with what is in force, one that it
//! doesn't have gets no answer, and nothing is touched that no option names.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::answering::Stack;
use super::binding;
use super::dial::InForce;
use super::socks6::StackPolicy;
use crate::net::stack::{self, Family, IpOptions, Outgoing};
use crate::net::{ConnectFailure, Uplink};
use crate::wire::socks6::{Choice, Legs, Parity, PortParity, Reserve, StackOptions};

/// The way to a destination as the client wants it.
#[derive(Debug)]
pub(super) struct Wanted {
    stack: StackOptions,
    /// For the SYN of the first attempt. Only of that one: data in two of them may reach two hosts.
    early: Option<Box<[u8]>>,
}

/// What one attempt at it has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Had {
    ip: IpOptions,
    fast_open: Option<usize>,
}

impl Wanted {
    /// As the options of a CONNECT say; `payload` is what the client sent behind it so far.
    pub(super) fn new(stack: StackOptions, payload: &[u8]) -> Self {
        let early = stack.tfo.map(|most| {
            let most = match most {
                0 => MOST_EARLY,
                most => usize::from(most).min(MOST_EARLY),
            };
            payload.get(..most).unwrap_or(payload).into()
        });
        Self { stack, early }
    }

    /// Whether attempts at several addresses may overlap.
    pub(super) fn may_race(&self) -> bool {
        self.stack.happy_eyeballs != Some(Choice::No)
    }

    /// Starts an attempt.
    pub(super) fn start(
        &mut self,
        address: SocketAddr,
        uplink: &Uplink,
    ) -> Result<(Socket, Had), ConnectFailure> {
        let early = match self.stack.tfo {
            Some(_) => Some(self.early.take().unwrap_or_default()),
            None => None,
        };
        let wanted = Outgoing {
            ip: IpOptions::of_remote(&self.stack),
            multipath: self.stack.multipath == Some(Choice::Yes),
            fast_open: early.as_deref(),
        };
        let started = stack::start_connect_as(address, &wanted, uplink)?;
        let had = Had {
            ip: started.ip,
            fast_open: started.fast_open,
        };
        Ok((started.socket, had))
    }

    /// Whether an attempt failed for the TTL that was wanted.
    pub(super) fn ttl_ran_out(&self, socket: &Socket) -> bool {
        self.stack.ttl.remote.is_some() && stack::ttl_ran_out(socket)
    }

    /// What to tell of the attempt that got through.
    pub(super) fn in_force(&self, socket: &Socket, had: Had) -> InForce {
        if self.stack.ttl.remote.is_some()
            && let Ok(Some(peer)) = socket.peer_addr().map(|peer| peer.as_socket())
        {
            // From now on a lost packet is TCP's own affair.
            let _ = stack::set_error_reports(socket, Family::towards(peer), Choice::No);
        }
        let sent = had.fast_open.unwrap_or_default();
        let stack = StackOptions {
            happy_eyeballs: self.stack.happy_eyeballs,
            tfo: had
                .fast_open
                .map(|sent| u16::try_from(sent).unwrap_or(u16::MAX)),
            ..on_remote(&self.stack, socket, had.ip)
        };
        let stack = Some(Box::new(stack));
        InForce { stack, sent }
    }
}

/// What a client's wishes come to before any socket is looked at. Where none are granted, each is replaced by one that leaves a
/// socket as it is, so that it is answered all the same.
pub(super) fn permitted(wanted: &StackOptions, policy: StackPolicy) -> StackOptions {
    let tos = |tos: Option<u8>| {
        tos.map(|tos| match policy {
            StackPolicy::Granted if tos < NETWORK_CONTROL => tos,
            _ => 0,
        })
    };
    let limited = StackOptions {
        tos: Legs {
            client: tos(wanted.tos.client),
            remote: tos(wanted.tos.remote),
        },
        ..*wanted
    };
    if policy == StackPolicy::Granted {
        return limited;
    }
    StackOptions {
        // There is none of 0, so the system's is told.
        ttl: Legs {
            client: wanted.ttl.client.map(|_| 0),
            remote: wanted.ttl.remote.map(|_| 0),
        },
        no_fragmentation: Legs {
            client: wanted.no_fragmentation.client.map(|_| Choice::No),
            remote: wanted.no_fragmentation.remote.map(|_| Choice::No),
        },
        // As without a wish: addresses are tried side by side.
        happy_eyeballs: wanted.happy_eyeballs.map(|_| Choice::Yes),
        // It has no word for no.
        tfo: None,
        multipath: wanted.multipath.map(|_| Choice::No),
        backlog: wanted.backlog.map(|_| 0),
        udp_error: wanted.udp_error.map(|_| Choice::No),
        port_parity: wanted.port_parity.map(|_| PortParity {
            parity: Parity::Any,
            reserve: Reserve::No,
        }),
        ..limited
    }
}

/// A port as the client wants it, and what is in force there: those who connect inherit it.
pub(super) fn listen(
    at: SocketAddr,
    backlog: i32,
    wanted: Option<&StackOptions>,
    uplink: &Uplink,
) -> io::Result<(Socket, SocketAddr, Stack)> {
    let Some(wanted) = wanted else {
        let (listener, bound) = binding::listen(at, backlog, uplink)?;
        return Ok((listener, bound, None));
    };
    let socket = match wanted.multipath {
        Some(Choice::Yes) => stack::open_multipath(at),
        _ => None,
    };
    let is_plain = socket.is_none();
    let socket = match socket {
        Some(socket) => socket,
        None => Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?,
    };
    // How much a SYN may have is not for us to say; as with those we send, not beside Multipath.
    let wish = wanted.tfo.filter(|_| is_plain);
    let queue = u16::try_from(backlog).unwrap_or(u16::MAX);
    let tfo = wish.and_then(|_| stack::accept_fast_open(&socket, queue).then_some(0));
    let ip = IpOptions::of_remote(wanted).apply(&socket, Family::towards(at));
    let (listener, bound) = binding::listen_on(socket, at, backlog, uplink)?;
    let in_force = StackOptions {
        tfo,
        ..on_remote(wanted, &listener, ip)
    };
    Ok((listener, bound, Some(Box::new(in_force))))
}

/// What a peer's connection has of what the client wants. Set once more: a listener for both families has the options of one,
/// and not every system lets them be inherited.
pub(super) fn of_peer(wanted: &StackOptions, socket: &Socket, peer: SocketAddr) -> StackOptions {
    let ip = IpOptions::of_remote(wanted).apply(socket, Family::towards(peer));
    on_remote(wanted, socket, ip)
}

/// What the leg to the remote has that any TCP socket can have.
fn on_remote(wanted: &StackOptions, socket: &Socket, ip: IpOptions) -> StackOptions {
    StackOptions {
        multipath: wanted.multipath.and_then(|_| multipath(socket)),
        ..IpOptions::told(IpOptions::default(), ip)
    }
}

/// Sets what the client wants of its own connection, and puts what is in force there to what the other leg has. A client on
/// a Unix socket, which has no address, has nothing of that kind.
pub(super) fn granted(
    wanted: &StackOptions,
    client: &Socket,
    address: Option<SocketAddr>,
    remote: Stack,
) -> Stack {
    let wanted = IpOptions::of_client(wanted);
    let client = match address {
        Some(address) => wanted.apply(client, Family::towards(address)),
        None => IpOptions::default(),
    };
    let remote = remote.map(|remote| *remote).unwrap_or_default();
    let StackOptions {
        tos,
        ttl,
        no_fragmentation,
        ..
    } = IpOptions::told(client, IpOptions::of_remote(&remote));
    Some(Box::new(StackOptions {
        tos,
        ttl,
        no_fragmentation,
        ..remote
    }))
}

/// The answer to a Multipath option.
fn multipath(socket: &Socket) -> Option<Choice> {
    if !stack::HAS_MULTIPATH {
        return None;
    }
    Some(match stack::is_multipath(socket) {
        true => Choice::Yes,
        false => Choice::No,
    })
}

/// A SYN has room for no more on most ways.
const MOST_EARLY: usize = 1460;

/// Classes from here on (CS6, CS7) are for the network's own messages, which must get through when nothing else does
/// (RFC 2474 §4.2.2.2): not for what clients carry.
const NETWORK_CONTROL: u8 = 0xc0;
