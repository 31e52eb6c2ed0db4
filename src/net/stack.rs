//! What the stack options of SOCKS 6 mean for real sockets.
//!
//! What to read: "Stack Options" in the draft; ip(7), ipv6(7), tcp(7).
//!
//! Nothing here fails. An option is set, read back, and told as the system has it: [`Some`] of the value in force, also
//! where the system refused the one that was wanted or kept a part of it to itself (the two ECN bits of a TCP socket's TOS
//! byte are the kernel's). [`None`] is "not supported here": such an option gets no answer, as the draft wants it.
//!
//! | option | Linux, Android | FreeBSD, macOS |
//! | --- | --- | --- |
//! | TOS, TTL | yes | yes |
//! | No Fragmentation | yes | no |
//! | TCP Fast Open, connecting | yes | no |
//! | TCP Fast Open, listening | where an admin allowed it: bit 2 of `net.ipv4.tcp_fastopen` | no |
//! | Multipath TCP | yes | no |
//! | reports of ICMP errors | yes; of a connect from Linux 5.8 on | no |

use std::io;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::iter;
use std::net::{IpAddr, SocketAddr};

use socket2::Socket;

use super::connect::{ConnectFailure, connect, open, ready_to_connect};
pub(crate) use super::extras::{accept_fast_open, open_multipath};
use super::uplink::Uplink;
use crate::wire::socks6::{Choice, Legs, StackOptions};

/// Which IP carries a socket's packets. That of the other end, not that of the socket: an IPv6 socket sends IPv4 to an
/// IPv4-mapped address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The options that any socket has, of one leg: wanted, or in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpOptions {
    /// TOS or traffic class.
    pub tos: Option<u8>,
    /// TTL or hop limit of what is sent to one host; that of multicast is another one.
    pub ttl: Option<u8>,
    /// Fragmentation not wanted; prevented.
    pub no_fragmentation: Option<Choice>,
}

impl Family {
    /// That of packets to `peer`.
    #[must_use]
    pub fn towards(peer: SocketAddr) -> Self {
        match peer.ip().to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl IpOptions {
    /// What is said of the leg between client and proxy.
    #[must_use]
    pub const fn of_client(options: &StackOptions) -> Self {
        Self {
            tos: options.tos.client,
            ttl: options.ttl.client,
            no_fragmentation: options.no_fragmentation.client,
        }
    }

    /// What is said of the leg between proxy and remote.
    #[must_use]
    pub const fn of_remote(options: &StackOptions) -> Self {
        Self {
            tos: options.tos.remote,
            ttl: options.ttl.remote,
            no_fragmentation: options.no_fragmentation.remote,
        }
    }

    /// What two legs have, as an operation reply tells it; the rest of its options are none.
    #[must_use]
    pub const fn told(client: Self, remote: Self) -> StackOptions {
        StackOptions {
            tos: Legs {
                client: client.tos,
                remote: remote.tos,
            },
            ttl: Legs {
                client: client.ttl,
                remote: remote.ttl,
            },
            no_fragmentation: Legs {
                client: client.no_fragmentation,
                remote: remote.no_fragmentation,
            },
            happy_eyeballs: None,
            tfo: None,
            multipath: None,
            backlog: None,
            udp_error: None,
            port_parity: None,
        }
    }

    /// Sets what is wanted and nothing else, and returns what is in force of it.
    #[must_use]
    pub fn apply(&self, socket: &Socket, family: Family) -> Self {
        Self {
            tos: self.tos.and_then(|tos| set_tos(socket, family, tos)),
            ttl: self.ttl.and_then(|ttl| set_ttl(socket, family, ttl)),
            no_fragmentation: self
                .no_fragmentation
                .and_then(|choice| set_no_fragmentation(socket, family, choice)),
        }
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How to connect to one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// What the socket has from the first packet on.
    pub ip: IpOptions,
    /// Multipath TCP, if both ends have it.
    pub multipath: bool,
    /// TCP Fast Open, with no more than this in the SYN; also with nothing, for the cookie that the next one needs. Not
    /// together with Multipath TCP, which comes first: only recent kernels have both in one socket, and few of them right.
    pub fast_open: Option<&'a [u8]>,
}

/// A connect that has begun.
#[derive(Debug)]
pub struct Started {
    /// As [`start_connect`](super::start_connect) returns it.
    pub socket: Socket,
    /// What is in force of the options wanted.
    pub ip: IpOptions,
    /// With TCP Fast Open, if it was wanted and there is such: how many bytes are in the SYN. If the other end wants none
    /// there, the kernel sends them again: they are gone from here.
    pub fast_open: Option<usize>,
}

/// Starts to connect to an address, as [`start_connect`](super::start_connect) does. With a TTL, ICMP errors are reported
/// (see [`ttl_ran_out`]): that is to be turned off once the connection stands.
///
/// # Errors
/// As it has.
pub fn start_connect_as(
    address: SocketAddr,
    wanted: &Outgoing<'_>,
    uplink: &Uplink,
) -> Result<Started, ConnectFailure> {
    let multipath = match wanted.multipath {
        true => open_multipath(address),
        false => None,
    };
    let is_plain = multipath.is_none();
    let socket = multipath.map_or_else(|| open(address), Ok);
    let socket = ready_to_connect(socket, address, uplink)?;
    if wanted.ip.ttl.is_some() {
        let _ = set_error_reports(&socket, Family::towards(address), Choice::Yes);
    }
    let ip = wanted.ip.apply(&socket, Family::towards(address));
    let may_fast_open = wanted.fast_open.is_some() && is_plain && set_fast_open(&socket);
    let at_once = connect(|| socket.connect(&address.into()))?.is_some();
    let fast_open = match wanted.fast_open {
        // There is a cookie: the SYN leaves with the first write.
        Some(early) if may_fast_open && at_once => {
            Some(connect(|| socket.send(early))?.unwrap_or_default())
        }
        Some(_) if may_fast_open || !is_plain => Some(0),
        _ => None,
    };
    Ok(Started {
        socket,
        ip,
        fast_open,
    })
}

/// Sets TOS or traffic class, and returns what is in force.
#[must_use]
pub fn set_tos(socket: &Socket, family: Family, wanted: u8) -> Option<u8> {
    let (set, read) = match family {
        Family::V4 => (socket.set_tos_v4(wanted.into()), socket.tos_v4()),
        Family::V6 => (socket.set_tclass_v6(wanted.into()), socket.tclass_v6()),
    };
    refused("TOS", set);
    u8::try_from(read.ok()?).ok()
}

/// Sets TTL or hop limit, and returns what is in force. 0 is refused: no packet could leave with it.
#[must_use]
pub fn set_ttl(socket: &Socket, family: Family, wanted: u8) -> Option<u8> {
    let set = match (wanted, family) {
        (0, _) => Err(io::ErrorKind::InvalidInput.into()),
        (_, Family::V4) => socket.set_ttl_v4(wanted.into()),
        (_, Family::V6) => socket.set_unicast_hops_v6(wanted.into()),
    };
    refused("TTL", set);
    let read = match family {
        Family::V4 => socket.ttl_v4(),
        Family::V6 => socket.unicast_hops_v6(),
    };
    u8::try_from(read.ok()?).ok()
}

/// Prevents that packets are split on their way or before it (DF on IPv4), or allows it, and returns whether it is
/// prevented. Datagrams that are too long are refused when they are sent then (EMSGSIZE).
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn set_no_fragmentation(socket: &Socket, family: Family, wanted: Choice) -> Option<Choice> {
    use rustix::net::sockopt;
    // What Linux does by itself is "want": DF as long as a packet fits, and pieces of what doesn't. A socket that was left
    // at that is not touched by who allows fragmentation.
    let read = || match family {
        Family::V4 => match sockopt::ip_mtu_discover(socket).ok()? {
            sockopt::Ipv4PathMtuDiscovery::DO | sockopt::Ipv4PathMtuDiscovery::PROBE => {
                Some(Choice::Yes)
            }
            _ => Some(Choice::No),
        },
        Family::V6 => match sockopt::ipv6_mtu_discover(socket).ok()? {
            sockopt::Ipv6PathMtuDiscovery::DO | sockopt::Ipv6PathMtuDiscovery::PROBE => {
                Some(Choice::Yes)
            }
            _ => Some(Choice::No),
        },
    };
    if read() == Some(wanted) {
        return Some(wanted);
    }
    let set = match (family, wanted) {
        (Family::V4, Choice::Yes) => {
            sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DO)
        }
        (Family::V4, Choice::No) => {
            sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::WANT)
        }
        (Family::V6, Choice::Yes) => {
            sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DO)
        }
        (Family::V6, Choice::No) => {
            sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::WANT)
        }
    };
    refused("No Fragmentation", set.map_err(io::Error::from));
    read()
}

/// Not supported here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn set_no_fragmentation(_: &Socket, _: Family, _: Choice) -> Option<Choice> {
    None
}

/// Turns reports of ICMP errors in the error queue of a socket on or off, and returns whether they come. Off also empties
/// the queue. A TCP connection with them ends at the first of them: they are for a connect.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn set_error_reports(socket: &Socket, family: Family, wanted: Choice) -> Option<Choice> {
    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    let on = wanted == Choice::Yes;
    let (set, read) = match family {
        Family::V4 => (
            setsockopt(socket, sockopt::Ipv4RecvErr, &on),
            getsockopt(socket, sockopt::Ipv4RecvErr),
        ),
        Family::V6 => (
            setsockopt(socket, sockopt::Ipv6RecvErr, &on),
            getsockopt(socket, sockopt::Ipv6RecvErr),
        ),
    };
    refused("reports of errors", set.map_err(io::Error::from));
    Some(match read.ok()? {
        true => Choice::Yes,
        false => Choice::No,
    })
}

/// Not supported here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn set_error_reports(_: &Socket, _: Family, _: Choice) -> Option<Choice> {
    None
}

/// Whether a connect failed because the TTL ran out on the way. Known of those that [`start_connect_as`] has given a TTL.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn ttl_ran_out(socket: &Socket) -> bool {
    use super::icmp;
    use crate::wire::socks6::ErrorCode;
    use std::os::fd::AsFd as _;
    // The queue has the form of the socket's own family, whatever its packets are.
    let family = match socket.domain() {
        Ok(socket2::Domain::IPV6) => Family::V6,
        _ => Family::V4,
    };
    let mut reports = iter::from_fn(|| icmp::take(socket.as_fd(), family));
    reports.any(|report| report.is_some_and(|report| report.code == Some(ErrorCode::TTL_EXPIRED)))
}

/// Nobody can tell here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn ttl_ran_out(_: &Socket) -> bool {
    false
}

/// Lets a TCP socket that is not connected yet put the first bytes written into its SYN (RFC 7413), if the other end gave
/// a cookie before; returns whether it may. A connect that succeeds at once was put off then, until the first write, also
/// of nothing: until that, nobody is asked for anything, and the socket is writable without being connected.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn set_fast_open(socket: &Socket) -> bool {
    use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
    let set = setsockopt(socket, TcpFastOpenConnect, &true);
    refused("TCP Fast Open", set.map_err(io::Error::from))
}

/// Not supported here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn set_fast_open(_: &Socket) -> bool {
    false
}

/// Whether a connection uses Multipath TCP, and not what it falls back to.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn is_multipath(socket: &Socket) -> bool {
    use nix::sys::socket::{getsockopt, sockopt::TcpRepair};
    use socket2::Protocol;
    // The kernel's own answer, MPTCP_INFO, is in no safe crate. But a socket that fell back passes every option on to the
    // one TCP connection it has, and one that did not knows no TCP_REPAIR: many connections cannot be repaired as one.
    matches!(socket.protocol(), Ok(Some(Protocol::MPTCP))) && getsockopt(socket, TcpRepair).is_err()
}

/// Not supported here.
#[must_use]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn is_multipath(_: &Socket) -> bool {
    false
}

/// Says why an option is not what was wanted; whether it is.
fn refused(what: &str, set: io::Result<()>) -> bool {
    set.inspect_err(|error| log::debug!("{what} not granted: {error}"))
        .is_ok()
}

/// Whether this system may have Multipath TCP at all.
pub const HAS_MULTIPATH: bool = cfg!(any(target_os = "linux", target_os = "android"));

#[cfg(test)]
mod tests {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    use std::fs;

    use socket2::{Domain, Type};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn socket(kind: Type, family: Family) -> Socket {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        Socket::new(domain, kind, None).unwrap()
    }

    #[test]
    fn the_family_is_that_of_the_packets() {
        assert_eq!(Family::towards(address("192.0.2.1:80")), Family::V4);
        assert_eq!(
            Family::towards(address("[::ffff:192.0.2.1]:80")),
            Family::V4
        );
        assert_eq!(Family::towards(address("[2001:db8::1]:80")), Family::V6);
    }

    #[test]
    fn options_are_told_for_the_leg_they_are_of() {
        let wanted = StackOptions {
            tos: Legs {
                client: Some(8),
                remote: None,
            },
            ttl: Legs::both(40),
            no_fragmentation: Legs {
                client: None,
                remote: Some(Choice::Yes),
            },
            ..StackOptions::default()
        };
        let (client, remote) = (IpOptions::of_client(&wanted), IpOptions::of_remote(&wanted));
        assert_eq!((client.tos, client.ttl), (Some(8), Some(40)));
        assert_eq!((remote.tos, remote.ttl), (None, Some(40)));
        assert_eq!(IpOptions::told(client, remote), wanted);
        assert!(!client.is_empty() && IpOptions::default().is_empty());
    }

    #[test]
    fn what_is_told_is_what_the_system_has() {
        for family in [Family::V4, Family::V6] {
            for kind in [Type::STREAM, Type::DGRAM] {
                let socket = socket(kind, family);
                // The two lowest bits (ECN) are TCP's own.
                for (wanted, of_datagrams) in [(0xb8, 0xb8), (0x2f, 0x2f), (0xff, 0xff), (0, 0)] {
                    let in_force = match kind {
                        Type::STREAM if cfg!(target_os = "linux") => of_datagrams & !3,
                        _ => of_datagrams,
                    };
                    assert_eq!(set_tos(&socket, family, wanted), Some(in_force));
                }
                let before = set_ttl(&socket, family, 0);
                assert!(before.is_some_and(|ttl| ttl > 0), "{before:?}");
                for ttl in [1, 17, 255] {
                    assert_eq!(set_ttl(&socket, family, ttl), Some(ttl));
                    assert_eq!(set_ttl(&socket, family, 0), Some(ttl), "0 is refused");
                }
            }
        }
    }

    #[test]
    fn only_what_is_wanted_is_touched() {
        let socket = socket(Type::DGRAM, Family::V4);
        let before = (socket.tos_v4().unwrap(), socket.ttl_v4().unwrap());
        let nothing = IpOptions::default();
        assert_eq!(nothing.apply(&socket, Family::V4), nothing);
        assert_eq!((socket.tos_v4().unwrap(), socket.ttl_v4().unwrap()), before);
        let ttl = IpOptions {
            ttl: Some(9),
            ..nothing
        };
        assert_eq!(ttl.apply(&socket, Family::V4), ttl);
        assert_eq!(
            (socket.tos_v4().unwrap(), socket.ttl_v4().unwrap()),
            (before.0, 9)
        );
    }

    #[test]
    fn an_ipv6_socket_has_the_options_of_ipv4_for_mapped_peers() {
        let listener = socket(Type::STREAM, Family::V6);
        listener.set_only_v6(false).unwrap();
        listener.bind(&address("[::]:0").into()).unwrap();
        listener.listen(1).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let family = Family::towards(peer.as_socket().unwrap());
        assert_eq!(family, Family::V4);
        if cfg!(target_os = "linux") {
            assert_eq!(set_tos(&accepted, family, 0x20), Some(0x20));
            assert_eq!(set_ttl(&accepted, family, 33), Some(33));
            assert_eq!(
                (accepted.tos_v4().unwrap(), accepted.ttl_v4().unwrap()),
                (0x20, 33)
            );
        }
        drop(client);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    mod linux {
        use super::*;

        #[test]
        fn fragmentation_is_prevented_and_allowed_again() {
            for family in [Family::V4, Family::V6] {
                for kind in [Type::STREAM, Type::DGRAM] {
                    let socket = socket(kind, family);
                    for wanted in [Choice::No, Choice::Yes, Choice::Yes, Choice::No] {
                        let in_force = set_no_fragmentation(&socket, family, wanted);
                        assert_eq!(in_force, Some(wanted), "{family:?} {kind:?}");
                    }
                }
            }
        }

        #[test]
        fn long_datagrams_are_refused_where_fragmentation_is_prevented() {
            // The longest, with its headers, is longer than a packet of the loopback interface. In IPv4 it is not.
            let (from, to) = (
                socket(Type::DGRAM, Family::V6),
                socket(Type::DGRAM, Family::V6),
            );
            to.bind(&address("[::1]:0").into()).unwrap();
            from.connect(&to.local_addr().unwrap()).unwrap();
            let longest = vec![0; 65_507];
            assert!(from.send(&longest).is_ok());
            let _ = set_no_fragmentation(&from, Family::V6, Choice::Yes);
            let error = from.send(&longest).unwrap_err();
            let errno = rustix::io::Errno::from_io_error(&error);
            assert_eq!(errno, Some(rustix::io::Errno::MSGSIZE));
            let _ = set_no_fragmentation(&from, Family::V6, Choice::No);
            assert!(from.send(&longest).is_ok());
        }

        #[test]
        fn reports_of_errors_come_when_they_are_wanted() {
            for family in [Family::V4, Family::V6] {
                for kind in [Type::STREAM, Type::DGRAM] {
                    let socket = socket(kind, family);
                    for wanted in [Choice::No, Choice::Yes, Choice::No] {
                        assert_eq!(set_error_reports(&socket, family, wanted), Some(wanted));
                    }
                    assert!(!ttl_ran_out(&socket));
                }
            }
        }

        #[test]
        fn fast_open_is_for_sockets_that_are_not_connected() {
            for family in [Family::V4, Family::V6] {
                let (tcp, udp) = (socket(Type::STREAM, family), socket(Type::DGRAM, family));
                // An admin may have switched it off.
                let enabled = fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap();
                let enabled = enabled.trim().parse::<u32>().unwrap() & 1 == 1;
                assert_eq!(set_fast_open(&tcp), enabled);
                assert!(!set_fast_open(&udp));
            }
        }

        #[test]
        fn multipath_is_told_from_what_it_falls_back_to() {
            for host in ["127.0.0.1:0", "[::1]:0"] {
                let Some(listener) = open_multipath(address(host)) else {
                    // A kernel without it. Nothing pretends to have it.
                    continue;
                };
                let plain = Socket::new(Domain::for_address(address(host)), Type::STREAM, None);
                for (listener, expected) in [(listener, true), (plain.unwrap(), false)] {
                    listener.set_nonblocking(false).unwrap();
                    listener.bind(&address(host).into()).unwrap();
                    listener.listen(1).unwrap();
                    let socket = open_multipath(address(host)).unwrap();
                    assert!(socket.nonblocking().unwrap());
                    socket.set_nonblocking(false).unwrap();
                    socket.connect(&listener.local_addr().unwrap()).unwrap();
                    let (accepted, _) = listener.accept().unwrap();
                    assert_eq!(is_multipath(&socket), expected);
                    assert_eq!(is_multipath(&accepted), expected);
                    // One that knows nothing of it, on either listener.
                    let tcp = Socket::new(Domain::for_address(address(host)), Type::STREAM, None);
                    let tcp = tcp.unwrap();
                    tcp.connect(&listener.local_addr().unwrap()).unwrap();
                    let (accepted, _) = listener.accept().unwrap();
                    assert!(!is_multipath(&tcp) && !is_multipath(&accepted));
                }
            }
        }
    }
}
