//! Which way connections to others leave this machine: by which interface, from which address, with which mark.
//!
//! A router with two lines, or with rules that send marked packets through a tunnel, leaves to its programs which way they take.
//! Every socket towards a remote is prepared here, and no other: name servers, overlay daemons and clients are reached as usual.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;
use std::sync::Arc;

use rustix::io::Errno;
use socket2::Socket;

use super::datagrams::open_datagrams;
use super::local_address::source_of;
use crate::bad_text::BadText;

/// The way that connections to others take. The default one is the system's choice. Clones share it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplink(Option<Arc<Parts>>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    interface: Option<Interface>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    mark: Option<u32>,
}

/// The name of a network interface, which need not be there: those of lines that are dialled come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(Box<str>);

impl FromStr for Interface {
    type Err = BadText;

    /// As the kernel takes it.
    fn from_str(text: &str) -> Result<Self, BadText> {
        let bad = |problem: &str| Err(BadText::new(text, problem, "eth0 or pppoe-wan"));
        if !HAS_UPLINKS {
            return bad("cannot be chosen on this system");
        }
        let is_odd = |byte: u8| byte.is_ascii_whitespace() || byte == b'/' || byte == b':';
        match text.len() {
            0 => bad("is no name of an interface"),
            1..=LONGEST_NAME if !text.bytes().any(is_odd) => Ok(Self(text.into())),
            1..=LONGEST_NAME => bad("has a character that no interface has in its name"),
            _ => bad("is longer than the 15 bytes of an interface's name"),
        }
    }
}

impl Uplink {
    /// By this interface, from these addresses, one for each family at most, with this mark. A family without an address has
    /// the one that the system chooses.
    ///
    /// # Errors
    /// Two addresses of one family, or one that no connection can come from.
    pub fn new(
        interface: Option<Interface>,
        sources: &[IpAddr],
        mark: Option<u32>,
    ) -> Result<Self, BadText> {
        let mut parts = Parts {
            interface,
            mark,
            ..Parts::default()
        };
        for source in sources {
            let source = source.to_canonical();
            let bad = |problem| BadText::new(source.to_string(), problem, "192.0.2.7");
            if source.is_unspecified() || source.is_multicast() {
                return Err(bad("is no address that a connection can come from"));
            }
            let is_second = match source {
                IpAddr::V4(ip) => parts.v4.replace(ip).is_some(),
                IpAddr::V6(ip) => parts.v6.replace(ip).is_some(),
            };
            if is_second {
                return Err(bad("is the second address of its family"));
            }
        }
        let is_default = parts == Parts::default();
        Ok(Self((!is_default).then(|| Arc::new(parts))))
    }

    /// Whether it is the system's choice, whatever that is.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.0.is_none()
    }

    /// Whether an interface was chosen, and whether a mark: each takes a right of its own.
    #[must_use]
    pub fn steers_by(&self) -> (bool, bool) {
        let parts = self.0.as_deref();
        let by = |parts: &Parts| (parts.interface.is_some(), parts.mark.is_some());
        parts.map(by).unwrap_or_default()
    }

    /// Prepares a socket that is about to connect to an address.
    ///
    /// # Errors
    /// The interface or the address is not there, see [`UplinkError::of`]; or the system refuses something.
    pub(super) fn prepare(&self, socket: &Socket, towards: SocketAddr) -> io::Result<()> {
        self.steer(socket, towards)?;
        let Some(source) = self.source_towards(towards) else {
            return Ok(());
        };
        // Else every connection holds one of 28,000 ports, whoever is at the other end. Kernels before 4.2 have no other way.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = nix::sys::socket::setsockopt(
            socket,
            nix::sys::socket::sockopt::IpBindAddressNoPort,
            &true,
        );
        self.bind_to(socket, source)
    }

    /// Has a socket that has an address, or needs none, send to others by the interface and with the mark.
    ///
    /// # Errors
    /// As `prepare` says.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn steer(&self, socket: &Socket, towards: SocketAddr) -> io::Result<()> {
        let Some(parts) = self.0.as_deref() else {
            return Ok(());
        };
        if let Some(mark) = parts.mark {
            let set = socket.set_mark(mark);
            set.map_err(|error| refused(error, "--mark"))?;
        }
        match &parts.interface {
            // What is on this machine is behind none.
            Some(Interface(name)) if !is_loopback(towards) => socket
                .bind_device(Some(name.as_bytes()))
                .map_err(|error| match Errno::from_io_error(&error) {
                    Some(Errno::NODEV) => UplinkError::NoInterface(name.clone()).into(),
                    _ => refused(error, "--interface"),
                }),
            _ => Ok(()),
        }
    }

    /// There are neither marks nor such interfaces here, and none can be asked for.
    ///
    /// # Errors
    /// None.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn steer(&self, _: &Socket, _: SocketAddr) -> io::Result<()> {
        Ok(())
    }

    /// Steers a UDP socket and binds it to the address that goes with its family, and the port of `any`, an unspecified
    /// address.
    ///
    /// # Errors
    /// As `prepare` says; also when the port is taken.
    pub fn bind(&self, socket: &Socket, any: SocketAddr) -> io::Result<()> {
        self.steer(socket, any)?;
        match self.source_towards(any) {
            Some(mut source) => {
                source.set_port(any.port());
                self.bind_to(socket, source)
            }
            None => socket.bind(&any.into()),
        }
    }

    fn bind_to(&self, socket: &Socket, source: SocketAddr) -> io::Result<()> {
        socket
            .bind(&source.into())
            .map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::ADDRNOTAVAIL) => UplinkError::NoSource(source.ip()).into(),
                _ => error,
            })
    }

    /// The address to connect from, with port 0.
    fn source_towards(&self, towards: SocketAddr) -> Option<SocketAddr> {
        let parts = self.0.as_deref()?;
        let (ip, scope) = match towards {
            SocketAddr::V4(_) => (IpAddr::V4(parts.v4?), 0),
            SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_some() => {
                (parts.v4?.to_ipv6_mapped().into(), 0)
            }
            SocketAddr::V6(to) => (IpAddr::V6(parts.v6?), to.scope_id()),
        };
        // The address of a line leads nowhere on this machine, nor that of this machine anywhere else.
        if is_loopback(towards) && !ip.to_canonical().is_loopback() {
            return None;
        }
        Some(match ip {
            IpAddr::V4(ip) => (ip, 0).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, 0, 0, scope).into(),
        })
    }

    /// The address of this machine that packets to `ip` would come from, as [`source_towards`](super::source_towards) for
    /// this way.
    ///
    /// # Errors
    /// No such way, or no descriptor.
    pub fn own_address(&self, ip: IpAddr) -> io::Result<IpAddr> {
        let to = SocketAddr::new(ip, 0);
        let socket = open_datagrams(to)?;
        self.prepare(&socket, to)?;
        source_of(socket, ip)
    }

    /// The address of this family that connections come from, if one was named.
    #[must_use]
    pub fn source(&self, like: IpAddr) -> Option<IpAddr> {
        let parts = self.0.as_deref()?;
        match like.to_canonical() {
            IpAddr::V4(_) => parts.v4.map(IpAddr::V4),
            IpAddr::V6(_) => parts.v6.map(IpAddr::V6),
        }
    }

    /// The address at which others reach this way, where it may be another than the system's choice: for who asks for a port
    /// without saying where.
    #[must_use]
    pub fn outside(&self, like: IpAddr) -> Option<IpAddr> {
        self.0.as_ref()?;
        let elsewhere: IpAddr = match like.to_canonical() {
            IpAddr::V4(_) => ELSEWHERE_V4.into(),
            IpAddr::V6(_) => ELSEWHERE_V6.into(),
        };
        let known = self.source(like);
        known.or_else(|| self.own_address(elsewhere).ok())
    }

    /// Whether connections can be made this way now.
    ///
    /// # Errors
    /// What is missing, or not permitted.
    pub fn check(&self) -> Result<(), UplinkError> {
        let Some(parts) = self.0.as_deref() else {
            return Ok(());
        };
        let (v4, v6) = (parts.v4.map(IpAddr::V4), parts.v6.map(IpAddr::V6));
        let neither = v4.is_none() && v6.is_none();
        let elsewhere = neither.then_some(IpAddr::V4(ELSEWHERE_V4));
        let families = [v4.or(elsewhere), v6];
        for ip in families.into_iter().flatten() {
            let any = any_like(ip);
            let tried = open_datagrams(any).and_then(|socket| self.bind(&socket, any));
            tried.map_err(|error| match error.downcast() {
                Ok(problem) => problem,
                Err(error) => UplinkError::System(error),
            })?;
        }
        Ok(())
    }
}

/// The error of an option that may take a right.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn refused(error: io::Error, option: &'static str) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => UplinkError::NotPermitted(option).into(),
        _ => error,
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn any_like(ip: IpAddr) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Why a way can't be taken. As the payload of an [`io::Error`] it has the kind "network down": it is about this machine, and
/// says nothing of who is at the other end.
#[derive(Debug)]
pub enum UplinkError {
    /// There is no interface with this name now.
    NoInterface(Box<str>),
    /// This machine does not have this address now.
    NoSource(IpAddr),
    /// This option takes a right that the process does not have.
    NotPermitted(&'static str),
    /// The system says this.
    System(io::Error),
}

impl UplinkError {
    /// The one in an error of a socket, if that is why it failed.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether something is not there: interfaces and addresses come and go.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NoInterface(_) | Self::NoSource(_))
    }

    /// What to do about it, when that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotPermitted("--mark") => Some(
                "it takes the capability CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17: run as root, or have the service \
                 manager grant it",
            ),
            Self::NotPermitted(_) => Some(
                "it takes the capability CAP_NET_RAW before Linux 5.7: run as root, or have the service manager grant it",
            ),
            _ => None,
        }
    }
}

impl From<UplinkError> for io::Error {
    fn from(error: UplinkError) -> Self {
        Self::new(io::ErrorKind::NetworkDown, error)
    }
}

impl fmt::Display for UplinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // `{:?}` keeps control characters out of terminals and logs.
            Self::NoInterface(name) => write!(f, "no interface {name:?}"),
            Self::NoSource(ip) => write!(f, "no address {ip} on this machine"),
            Self::NotPermitted(option) => write!(f, "{option} is not permitted"),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl Error for UplinkError {}

/// Whether this system lets programs choose interface and mark.
pub const HAS_UPLINKS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// IFNAMSIZ with its zero.
const LONGEST_NAME: usize = 15;

/// Nobody has them, so the way there is the way to everywhere (RFC 5737, RFC 3849). Nothing is sent.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::super::{finish_connect, start_connect};
    use super::*;

    fn from(sources: &[&str]) -> Uplink {
        let sources: Vec<_> = sources.iter().map(|ip| ip.parse().unwrap()).collect();
        Uplink::new(None, &sources, None).unwrap()
    }

    fn by(interface: &str) -> Uplink {
        Uplink::new(Some(interface.parse().unwrap()), &[], None).unwrap()
    }

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["eth0", "pppoe-wan", "br-lan.2", "a23456789012345"] {
            assert_eq!(good.parse(), Ok(Interface(good.into())), "{good}");
        }
        for bad in ["", "a234567890123456", "a b", "eth0:1", "a/b", "a\n"] {
            assert!(bad.parse::<Interface>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_address_of_each_family_is_enough() {
        let addresses = |texts: &[&str]| -> Result<Uplink, BadText> {
            let ips: Vec<_> = texts.iter().map(|ip| ip.parse().unwrap()).collect();
            Uplink::new(None, &ips, None)
        };
        assert_eq!(addresses(&[]), Ok(Uplink::default()));
        assert!(addresses(&["192.0.2.1", "2001:db8::1"]).is_ok());
        for bad in [
            &["192.0.2.1", "192.0.2.2"][..],
            &["::ffff:192.0.2.1", "192.0.2.1"],
            &["::"],
            &["0.0.0.0"],
            &["ff02::1"],
        ] {
            assert!(addresses(bad).is_err(), "{bad:?}");
        }
    }

    /// Where a connection comes from that goes this way.
    fn seen(uplink: &Uplink, at: &str) -> io::Result<IpAddr> {
        let listener = TcpListener::bind((at, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = start_connect(address, uplink).map_err(|failure| match failure {
            super::super::ConnectFailure::Local(error) => error,
            super::super::ConnectFailure::Remote(error) => panic!("{error}"),
        })?;
        let (_, peer) = listener.accept().unwrap();
        assert!(finish_connect(&socket).unwrap());
        Ok(peer.ip())
    }

    #[test]
    fn connections_come_from_the_address_of_their_family() {
        let uplink = from(&["127.0.0.2", "::1"]);
        let two: IpAddr = "127.0.0.2".parse().unwrap();
        assert_eq!(seen(&uplink, "127.0.0.1").unwrap(), two);
        assert_eq!(
            seen(&uplink, "::ffff:127.0.0.1").unwrap().to_canonical(),
            two
        );
        assert_eq!(seen(&uplink, "::1").unwrap(), Ipv6Addr::LOCALHOST);
        let one: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(seen(&from(&["::1"]), "127.0.0.1").unwrap(), one);
    }

    #[test]
    fn what_is_on_this_machine_is_reached_whatever_the_way() {
        for uplink in [by("sockhop-none"), from(&["192.0.2.77"])] {
            assert_eq!(seen(&uplink, "127.0.0.1").unwrap(), Ipv4Addr::LOCALHOST);
        }
    }

    #[test]
    fn a_port_is_not_used_up_by_each_connection() {
        // With a port reserved for each, no two connections from one address have the same.
        let uplink = from(&["127.0.0.2"]);
        let listeners: Vec<_> = (0..2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        uplink
            .prepare(&socket, listeners[0].local_addr().unwrap())
            .unwrap();
        let bound = socket.local_addr().unwrap().as_socket().unwrap();
        let expected = if cfg!(target_os = "linux") {
            0
        } else {
            bound.port()
        };
        assert_eq!(bound.port(), expected);
    }

    #[test]
    fn what_is_not_there_is_named_and_no_fault_of_the_other_end() {
        let elsewhere = SocketAddr::new(ELSEWHERE_V4.into(), 9);
        for (uplink, says) in [
            (by("sockhop-none"), "no interface \"sockhop-none\""),
            (
                from(&["192.0.2.77"]),
                "no address 192.0.2.77 on this machine",
            ),
        ] {
            let failure = start_connect(elsewhere, &uplink).unwrap_err();
            let super::super::ConnectFailure::Local(error) = failure else {
                panic!("{failure:?}");
            };
            assert_eq!(error.to_string(), says);
            assert!(UplinkError::of(&error).is_some());
            let problem = uplink.check().unwrap_err();
            assert_eq!(problem.to_string(), says);
            assert!(problem.is_absence());
        }
        assert!(Uplink::default().check().is_ok());
        assert!(from(&["127.0.0.2", "::1"]).check().is_ok());
    }

    #[test]
    fn datagrams_leave_from_there_too() {
        let uplink = from(&["127.0.0.2"]);
        let socket = open_datagrams(any_like(ELSEWHERE_V4.into())).unwrap();
        uplink.bind(&socket, any_like(ELSEWHERE_V4.into())).unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far_address = far.local_addr().unwrap();
        socket.send_to(b"x", &far_address.into()).unwrap();
        let (_, from) = far.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from.ip().to_string(), "127.0.0.2");
        assert_eq!(
            uplink.outside(far_address.ip()).unwrap().to_string(),
            "127.0.0.2"
        );
    }
}
