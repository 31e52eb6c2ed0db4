//! Connections to the daemons that sources ask, with one deadline for all that a refresh does.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::names::settle;
use super::signal::{Signal, Wake};
use super::{Presence, Refreshed};
use crate::api_address::ApiAddress;
use crate::net::{Uplink, finish_connect, start_connect};
use crate::resolver::Resolver;
use crate::target::{Host, HostPort};

/// Until when, and whether we are told to stop.
pub(super) struct Patience<'a> {
    signal: &'a mut Signal,
    deadline: Instant,
}

impl<'a> Patience<'a> {
    /// For one refresh.
    pub(super) fn new(signal: &'a mut Signal, limit: Duration) -> Self {
        Self {
            signal,
            deadline: Instant::now() + limit,
        }
    }

    /// Whether there is no time left, or a stop.
    pub(super) fn is_over(&mut self) -> bool {
        Instant::now() >= self.deadline || self.signal.is_stopped()
    }

    fn readable(&mut self, socket: &Socket) -> io::Result<()> {
        let wake = self.signal.wait_readable(&[socket.as_fd()], self.deadline);
        went_well(wake)
    }

    fn writable(&mut self, socket: &Socket) -> io::Result<()> {
        let wake = self.signal.wait_writable(&[socket.as_fd()], self.deadline);
        went_well(wake)
    }

    fn pause(&mut self, length: Duration) -> io::Result<()> {
        let until = self.deadline.min(Instant::now() + length);
        match self.signal.wait_readable(&[], until) {
            Wake::Deadline if Instant::now() < self.deadline => Ok(()),
            other => went_well(other),
        }
    }
}

fn went_well(wake: Wake) -> io::Result<()> {
    match wake {
        Wake::Ready(_) => Ok(()),
        Wake::Deadline => Err(io::Error::new(ErrorKind::TimedOut, "took too long")),
        // Never `Interrupted`, which readers take for a reason to try again.
        Wake::Stop => Err(io::Error::other("stopped")),
    }
}

/// Why a daemon gave no list. `Display` is the cause for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no such socket, or nobody listens.
    Absent(String),
    /// It is there, or may be, but does not do what it should.
    Failed(String),
}

impl Trouble {
    /// What a refresh comes to with it.
    pub(super) fn refreshed(self, presence: Presence) -> Refreshed {
        match (self, presence) {
            (Self::Absent(text), Presence::Optional) => {
                log::trace!("{text}");
                Refreshed::Absent("not found on this machine".to_owned())
            }
            (Self::Absent(text) | Self::Failed(text), _) => Refreshed::Failed(text),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(text) | Self::Failed(text) => f.write_str(text),
        }
    }
}

/// Connects to the first of `addresses` where somebody listens; says which one that is.
pub(super) fn connect<'x>(
    addresses: &'x [ApiAddress],
    resolver: &Resolver,
    patience: &mut Patience<'_>,
) -> Result<(Socket, &'x ApiAddress), Trouble> {
    let mut failure = None;
    for address in addresses {
        let connected = match address {
            ApiAddress::Unix(path) => connect_unix(path, patience),
            ApiAddress::Tcp(place) => connect_tcp(place, resolver, patience),
        };
        match connected {
            Ok(socket) => return Ok((socket, address)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                let text = match error.kind() {
                    ErrorKind::PermissionDenied => format!(
                        "{address}: permission denied: run as a user or in a group that may use it"
                    ),
                    _ => format!("{address}: {error}"),
                };
                failure.get_or_insert(text);
            }
        }
    }
    Err(match failure {
        Some(text) => Trouble::Failed(text),
        None => {
            let tried: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            Trouble::Absent(format!("nobody listens at {}", tried.join(", ")))
        }
    })
}

fn connect_unix(path: &Path, patience: &mut Patience<'_>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::unix(path)?;
    loop {
        match socket.connect(&address) {
            // Its queue is full, and nothing tells when there is room.
            Err(error) if error.kind() == ErrorKind::WouldBlock => patience.pause(QUEUE_PAUSE)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(socket),
        }
    }
}

fn connect_tcp(
    place: &HostPort,
    resolver: &Resolver,
    patience: &mut Patience<'_>,
) -> io::Result<Socket> {
    let addresses = match &place.host {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, place.port)],
        Host::Name(name) => {
            let mut lookup = resolver.lookup(name, place.port);
            settle(&mut lookup, patience.signal, patience.deadline).map_err(io::Error::other)?
        }
    };
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in addresses {
        match connect_address(address, patience) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_address(address: SocketAddr, patience: &mut Patience<'_>) -> io::Result<Socket> {
    use crate::net::ConnectFailure::{Local, Remote};
    let cause = |failure| match failure {
        Local(error) | Remote(error) => error,
    };
    let socket = start_connect(address, &Uplink::default()).map_err(cause)?;
    while !finish_connect(&socket).map_err(cause)? {
        patience.writable(&socket)?;
    }
    Ok(socket)
}

/// A socket read and written as if it would block, within the patience.
pub(super) struct Stream<'x, 'a> {
    pub(super) socket: &'x Socket,
    pub(super) patience: &'x mut Patience<'a>,
}

impl Read for Stream<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            // Asked first, so that one who sends without end can't keep us beyond the deadline.
            self.patience.readable(self.socket)?;
            match (&*self.socket).read(out) {
                Err(error) if is_transient(&error) => {}
                result => return result,
            }
        }
    }
}

impl Write for Stream<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.patience.writable(self.socket)?;
            match (&*self.socket).write(bytes) {
                Err(error) if is_transient(&error) => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// How soon a Unix socket with a full queue is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);
