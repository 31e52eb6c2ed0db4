//! Binding a listener.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::listen_address::ListenAddress;
use crate::net::{TcpExtras, listen_fast_open, multipath_if_wanted, tune};

/// A bound, listening, non-blocking socket. The file of a Unix socket is removed with it, unless it was passed.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    bound: Bound,
    /// The file of a Unix socket is somebody else's to remove.
    is_lent: Cell<bool>,
    /// Whether accepted sockets have all options of this one.
    hands_on: bool,
}

/// Where a listener listens, with the real port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listener {
    /// Binds and listens. `[::]` takes IPv4 too, whatever the system's default is, and becomes `0.0.0.0` where there
    /// is no IPv6. The file of a Unix socket that nobody listens on is replaced.
    ///
    /// # Errors
    /// What the system says, with the address.
    pub fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        Self::bind_with(address, TcpExtras::default())
    }

    /// The same, with these extras where it is a TCP address and the system has them.
    ///
    /// # Errors
    /// As [`Listener::bind`] has.
    pub fn bind_with(address: &ListenAddress, tcp: TcpExtras) -> Result<Self, BindError> {
        let result = match address {
            ListenAddress::Tcp(address) => bind_tcp(*address, tcp),
            ListenAddress::Unix(path) => bind_unix(path),
        };
        result.map_err(|cause| BindError {
            address: address.clone(),
            cause,
        })
    }

    /// One that somebody else has bound and made listen, such as a service manager.
    ///
    /// # Errors
    /// When it is neither of TCP nor a Unix socket, or the system refuses something.
    pub fn passed(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let bound = match address.as_socket() {
            Some(address) => {
                tune(&socket);
                Bound::Tcp(address)
            }
            None => Bound::Unix(unix_name(&address)),
        };
        Ok(Self {
            bound,
            is_lent: Cell::new(true),
            hands_on: !is_multipath(&socket),
            socket,
        })
    }

    /// Where it listens, with the real port.
    #[must_use]
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// One that another process has bound and made listen, for this address. The file of a Unix socket stays, until it is
    /// [ours](Listener::keep_file).
    ///
    /// # Errors
    /// It is no such listener.
    pub fn adopt(address: &ListenAddress, descriptor: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(descriptor);
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        if !socket.is_listener()? {
            return Err(io::Error::other("it is not a listener"));
        }
        let local = socket.local_addr()?;
        let bound = match (address, local.as_socket()) {
            (ListenAddress::Tcp(wanted), Some(local)) => {
                let port = [0, local.port()].contains(&wanted.port());
                let ip = wanted.ip() == local.ip() || wanted.ip().is_unspecified();
                (port && ip).then_some(Bound::Tcp(local))
            }
            (ListenAddress::Unix(path), None) if local.is_unix() => Some(Bound::Unix(path.clone())),
            _ => None,
        };
        let bound = bound.ok_or_else(|| io::Error::other("it listens somewhere else"))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            bound,
            is_lent: Cell::new(true),
            hands_on: !is_multipath(&socket),
            socket,
        })
    }

    /// The same socket for another process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn lend(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Leaves the file of a Unix socket to another process.
    pub fn leave_file(&self) {
        self.is_lent.set(true);
    }

    /// The file of a Unix socket is removed with this listener.
    pub fn keep_file(&self) {
        self.is_lent.set(false);
    }

    /// Whether those who are accepted have the options of the listener, as far as the system hands them on.
    pub(crate) fn hands_on_options(&self) -> bool {
        self.hands_on
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// Of one that somebody else has bound; where it cannot be told, it is none.
fn is_multipath(socket: &Socket) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return matches!(socket.protocol(), Ok(Some(socket2::Protocol::MPTCP)));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = socket;
        false
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (Bound::Unix(path), false) = (&self.bound, self.is_lent.get()) {
            // Gone already if somebody cleaned up behind us.
            let _ = fs::remove_file(path);
        }
    }
}

fn bind_tcp(address: SocketAddr, tcp: TcpExtras) -> io::Result<Listener> {
    match bind_tcp_at(address, tcp) {
        Err(error) if is_any_v6(address) && lacks_ipv6(&error) => {
            log::info!("this system has no IPv6, listening on IPv4 alone");
            bind_tcp_at((Ipv4Addr::UNSPECIFIED, address.port()).into(), tcp)
        }
        result => result,
    }
}

fn is_any_v6(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

fn lacks_ipv6(error: &io::Error) -> bool {
    lacks_family(error) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT)
    )
}

fn bind_tcp_at(address: SocketAddr, tcp: TcpExtras) -> io::Result<Listener> {
    let multipath = multipath_if_wanted(address, tcp);
    let is_multipath = multipath.is_some();
    let socket = match multipath {
        Some(socket) => socket,
        None => Socket::new(Domain::for_address(address), Type::STREAM, None)?,
    };
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of a former run that still wait for their end do not keep the port.
    socket.set_reuse_address(true)?;
    // On Linux accepted sockets take these over, which saves five calls for each.
    tune(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if tcp.fast_open && !is_multipath {
        listen_fast_open(&socket, FAST_OPEN_QUEUE);
    }
    socket.listen(BACKLOG)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok(Listener {
        socket,
        bound: Bound::Tcp(bound),
        is_lent: Cell::new(false),
        // One of Multipath TCP takes some of them for itself only.
        hands_on: !is_multipath,
    })
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse || !is_stale(path) {
            return Err(error);
        }
        fs::remove_file(path)?;
        socket.bind(&address)?;
    }
    socket.listen(BACKLOG)?;
    Ok(Listener {
        socket,
        bound: Bound::Unix(path.to_owned()),
        is_lent: Cell::new(false),
        hands_on: true,
    })
}

/// The path of a Unix socket, or `@` and its abstract name, as people write it.
fn unix_name(address: &SockAddr) -> PathBuf {
    if let Some(path) = address.as_pathname() {
        return path.to_owned();
    }
    let name = address.as_abstract_namespace().unwrap_or_default();
    format!("@{}", String::from_utf8_lossy(name)).into()
}

/// Whether a path is a socket that nobody listens on.
fn is_stale(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && knock(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Connects to a Unix socket, without waiting for somebody who does not accept.
///
/// # Errors
/// What the system says: `ConnectionRefused` when nobody listens, `WouldBlock` when somebody does whose queue is full.
pub(crate) fn knock(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// A listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    address: ListenAddress,
    cause: io::Error,
}

impl BindError {
    /// What to do about it, when that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match (self.cause.kind(), &self.address) {
            (io::ErrorKind::AddrInUse, ListenAddress::Tcp(address)) => Some(format!(
                "another program listens on port {0}: `ss -ltnp 'sport = :{0}'` names it; stop it or choose another \
                 port with --listen",
                address.port()
            )),
            (io::ErrorKind::AddrInUse, ListenAddress::Unix(_)) => {
                Some("another program listens there, or the path is not a socket; choose another with --listen".into())
            }
            (io::ErrorKind::PermissionDenied, ListenAddress::Tcp(address)) if address.port() < 1024 => {
                Some("ports below 1024 need root; choose a higher one with --listen".into())
            }
            (io::ErrorKind::PermissionDenied, ListenAddress::Unix(_)) => {
                Some("its folder is to be one that the user it runs as may write to".into())
            }
            (_, ListenAddress::Tcp(SocketAddr::V6(_))) if lacks_family(&self.cause) => {
                Some("this system has no IPv6; choose an address of IPv4 with --listen".into())
            }
            (io::ErrorKind::AddrNotAvailable, _) => {
                Some("this machine does not have that address; `ip address` shows those it has".into())
            }
            _ => None,
        }
    }

    /// Whether somebody else has the address.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.cause.kind() == io::ErrorKind::AddrInUse
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}", self.address)
    }
}

impl Error for BindError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

/// Connections that the kernel keeps for us while we are busy. It is cut to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Of these, those that have sent data without anybody knowing yet that their address is theirs: a flood of SYNs with forged
/// addresses and stolen cookies gets no more than that through. Beyond it, connections are made as ever.
const FAST_OPEN_QUEUE: u16 = 256;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn any_v6_address_takes_ipv4_too() {
        let listener = Listener::bind(&"[::]:0".parse().unwrap()).unwrap();
        let Bound::Tcp(bound) = listener.bound() else {
            panic!("{:?}", listener.bound())
        };
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, bound.port())).is_ok());
    }

    #[test]
    fn a_taken_port_is_named_with_the_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Listener::bind(&ListenAddress::Tcp(address)).unwrap_err();
        assert!(error.is_in_use());
        assert_eq!(error.to_string(), format!("cannot listen on {address}"));
        assert!(
            error
                .hint()
                .unwrap()
                .contains(&format!("sport = :{}", address.port()))
        );
    }

    #[test]
    fn the_file_of_a_dead_unix_socket_is_replaced_and_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&ListenAddress::Unix(path.clone())).unwrap();
        assert!(
            Listener::bind(&ListenAddress::Unix(path.clone()))
                .unwrap_err()
                .is_in_use()
        );
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(Listener::bind(&ListenAddress::Unix(path.clone())).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
