//! What TCP can do beyond the usual, where both ends have it: Fast Open and Multipath.
//!
//! What to read: RFC 7413 and tcp(7) for Fast Open, RFC 8684 for Multipath. With an end that lacks one of them a connection
//! is a plain one. Where this system lacks it, all are; that is said once.

use std::fmt;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::{SendFlags, sendto};
use socket2::Socket;

use super::connect::{ConnectFailure, connect, open, ready_to_connect};
use super::uplink::Uplink;

/// What connections and listeners are to have. Not both in one socket: only recent kernels can, and few of them right, so
/// Multipath comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpExtras {
    /// TCP Fast Open: the first bytes travel in the SYN, which saves a way there and back from the second connection to the
    /// same address on. They may come twice (RFC 7413 §2.1).
    pub fast_open: bool,
    /// Multipath TCP: a connection may use several ways of a machine, and outlive one of them.
    pub multipath: bool,
}

/// Starts to connect as [`start_connect`](super::start_connect) does, with these extras. With Fast Open, as much of `early` as
/// is returned is on its way already; if the other end does not take it from the SYN, the kernel sends it again.
///
/// # Errors
/// As it has.
pub fn start_connect_with(
    address: SocketAddr,
    uplink: &Uplink,
    extras: TcpExtras,
    early: &[u8],
) -> Result<(Socket, usize), ConnectFailure> {
    let multipath = multipath_if_wanted(address, extras);
    let may_fast_open = extras.fast_open && multipath.is_none() && !early.is_empty();
    let socket = multipath.map_or_else(|| open(address), Ok);
    let socket = ready_to_connect(socket, address, uplink)?;
    if may_fast_open {
        match connect(|| Ok(sendto(&socket, early, WITH_SYN, &address)?)) {
            Ok(sent) => return Ok((socket, sent.unwrap_or_default())),
            Err(ConnectFailure::Local(error)) if is_unsupported(&error) => {
                let what =
                    format_args!("no TCP Fast Open towards others (--tfo): {FAST_OPEN_HINT}");
                say_once(&NO_FAST_OPEN, what);
            }
            Err(failure) => return Err(failure),
        }
    }
    connect(|| socket.connect(&address.into()))?;
    Ok((socket, 0))
}

/// Makes a listener of Fast Open, and says what is missing if it can't be one.
pub fn listen_fast_open(socket: &Socket, backlog: u16) {
    if !accept_fast_open(socket, backlog) {
        let what = format_args!("no TCP Fast Open from clients (--tfo): {FAST_OPEN_HINT}");
        say_once(&NO_FAST_OPEN_HERE, what);
    }
}

/// A socket of Multipath TCP for a connection to `address`, or for a listener there, if it is to be one; says so where there is
/// none.
#[must_use]
pub fn multipath_if_wanted(address: SocketAddr, extras: TcpExtras) -> Option<Socket> {
    if !extras.multipath {
        return None;
    }
    let socket = open_multipath(address);
    if socket.is_none() {
        say_once(&NO_MULTIPATH, format_args!("{MULTIPATH_LACKS}"));
    }
    socket
}

/// Fast Open is switched off, or not known here.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
    )
}

/// It is the same with every connection.
fn say_once(said: &AtomicBool, what: fmt::Arguments<'_>) {
    if !said.swap(true, Ordering::Relaxed) {
        log::warn!("{what}");
    }
}

static NO_MULTIPATH: AtomicBool = AtomicBool::new(false);
static NO_FAST_OPEN: AtomicBool = AtomicBool::new(false);
static NO_FAST_OPEN_HERE: AtomicBool = AtomicBool::new(false);

/// Lets a TCP socket that will listen take data out of the SYNs of so many at once (RFC 7413); returns whether it will.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn accept_fast_open(socket: &Socket, backlog: u16) -> bool {
    // It can be set in any case, and does nothing unless an admin has switched it on.
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen");
    let allowed = allowed
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .unwrap_or(0);
    if allowed & FAST_OPEN_SERVER == 0 {
        return false;
    }
    allowed & FAST_OPEN_EVERYWHERE != 0 || set_fast_open_queue(socket, backlog)
}

/// Not supported here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn accept_fast_open(_: &Socket, _: u16) -> bool {
    false
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn set_fast_open_queue(socket: &Socket, backlog: u16) -> bool {
    let set = nix::sys::socket::setsockopt(socket, fast_open::Listening, &backlog.into());
    // As the standard library's error: nix's own has a table of 20 KB of names.
    set.map_err(io::Error::from)
        .inspect_err(|error| log::debug!("TCP Fast Open for a listener not granted: {error}"))
        .is_ok()
}

/// An option that nix does not have, made with its means for that.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod fast_open {
    use nix::{libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// How many connections whose SYN had data may wait to be accepted.
        Listening,
        SetOnly,
        libc::IPPROTO_TCP,
        libc::TCP_FASTOPEN,
        usize
    );
}

/// A socket of Multipath TCP for a connection to `address`, or for a listener there; non-blocking. `None` where the
/// system has none. It speaks plain TCP with an end that has no Multipath TCP.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn open_multipath(address: SocketAddr) -> Option<Socket> {
    use socket2::{Domain, Protocol, Type};
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::MPTCP));
    socket
        .inspect_err(|error| log::debug!("no Multipath TCP: {error}"))
        .ok()
}

/// Not supported here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn open_multipath(_: SocketAddr) -> Option<Socket> {
    None
}

/// `MSG_FASTOPEN`, the same number on every Linux: the first bytes are given with the connect, in one call instead of two. It is
/// in no safe crate by name, and refused where it is not known.
#[cfg(any(target_os = "linux", target_os = "android"))]
const WITH_SYN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);

/// A send on a socket that is not connected: refused, as it should be.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const WITH_SYN: SendFlags = SendFlags::empty();

/// The bits of `tcp_fastopen` for servers, and for listeners that did not ask (Linux, ip-sysctl).
#[cfg(any(target_os = "linux", target_os = "android"))]
const FAST_OPEN_SERVER: u32 = 2;
#[cfg(any(target_os = "linux", target_os = "android"))]
const FAST_OPEN_EVERYWHERE: u32 = 0x400;

/// What turns it on.
const FAST_OPEN_HINT: &str = "`sysctl net.ipv4.tcp_fastopen=3` allows both";

const MULTIPATH_LACKS: &str =
    "no Multipath TCP on this system (--mptcp): connections are plain TCP";
