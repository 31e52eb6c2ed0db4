//! Connecting without blocking.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::options::tune;
use super::uplink::Uplink;

/// Why a connect failed, by whose fault it is.
#[derive(Debug)]
pub enum ConnectFailure {
    /// This machine's: no descriptor, no memory, no route, not permitted. Says nothing about the peer.
    Local(io::Error),
    /// The peer's or the network's: refused, unreachable, timed out.
    Remote(io::Error),
}

impl ConnectFailure {
    /// The system's error.
    #[must_use]
    pub fn error(&self) -> &io::Error {
        match self {
            Self::Local(error) | Self::Remote(error) => error,
        }
    }
}

/// Starts to connect to an address, this way. The socket is non-blocking and has its options; it becomes writable when the
/// connect has ended, see [`finish_connect`].
///
/// # Errors
/// What fails at once. A network or host that is unreachable here and now is this machine's lack of a route: that of
/// others is told later, by an ICMP message, through [`finish_connect`].
pub fn start_connect(address: SocketAddr, uplink: &Uplink) -> Result<Socket, ConnectFailure> {
    let socket = ready_to_connect(open(address), address, uplink)?;
    connect(|| socket.connect(&SockAddr::from(address)))?;
    Ok(socket)
}

/// A new socket with all that it is to have before it connects to an address, this way.
pub(super) fn ready_to_connect(
    socket: io::Result<Socket>,
    address: SocketAddr,
    uplink: &Uplink,
) -> Result<Socket, ConnectFailure> {
    let socket = socket.map_err(ConnectFailure::Local)?;
    tune(&socket);
    uplink
        .prepare(&socket, address)
        .map_err(ConnectFailure::Local)?;
    Ok(socket)
}

/// Makes a call that starts to connect: what it returns, or `None` when the connect goes on by itself.
pub(super) fn connect<T>(
    call: impl FnOnce() -> io::Result<T>,
) -> Result<Option<T>, ConnectFailure> {
    match call() {
        Ok(done) => Ok(Some(done)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::INPROGRESS | Errno::AGAIN | Errno::INTR) => Ok(None),
            // Loopback can refuse at once.
            Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::TIMEDOUT) => {
                Err(ConnectFailure::Remote(error))
            }
            _ => Err(ConnectFailure::Local(error)),
        },
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(super) fn open(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(super) fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether a started connect has ended: `true` connected, `false` still pending.
///
/// # Errors
/// Why it failed.
pub fn finish_connect(socket: &Socket) -> Result<bool, ConnectFailure> {
    // Asked first: it is the only call for a connect that went well.
    match socket.peer_addr() {
        Ok(_) => return Ok(true),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOTCONN | Errno::INVAL) => {}
            _ => return Err(ConnectFailure::Local(error)),
        },
    }
    match socket.take_error().map_err(ConnectFailure::Local)? {
        None => Ok(false),
        Some(error) => Err(match Errno::from_io_error(&error) {
            Some(Errno::NETDOWN | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
                ConnectFailure::Local(error)
            }
            _ => ConnectFailure::Remote(error),
        }),
    }
}
