//! Reports of ICMP errors, from the error queue of a socket ("Proxies that support ICMP errors" in the draft; ip(7), IP_RECVERR).
//!
//! They come when [`set_error_reports`](super::stack::set_error_reports) has turned them on: for every datagram that was
//! lost on its way, and, since Linux 5.8, for a TCP connect that was.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::stack::Family;
use crate::wire::socks6::ErrorCode;

/// Somebody on the way could not pass a packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where the packet went.
    pub destination: SocketAddr,
    /// What was wrong, if SOCKS 6 has a word for it.
    pub code: Option<ErrorCode>,
    /// Who says so.
    pub reporter: IpAddr,
}

/// Takes one out of the queue of a socket of this family: `None` when it is empty. What is no report of anybody is passed
/// over: `Some(None)`.
#[must_use]
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn take(socket: BorrowedFd<'_>, family: Family) -> Option<Option<Report>> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::fd::AsRawFd as _;

    use nix::errno::Errno;
    use nix::sys::socket::{
        ControlMessageOwned, MsgFlags, RecvMsg, SockaddrIn, SockaddrIn6, SockaddrLike, recvmsg,
    };

    // One function for both families would need the size of the larger one; each has its own address.
    fn receive<'a, A: SockaddrLike + 'a>(
        socket: BorrowedFd<'_>,
        control: &'a mut [u8],
    ) -> Result<RecvMsg<'a, 'static, A>, Errno> {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        // The packet itself comes along; where it went is enough.
        recvmsg(socket.as_raw_fd(), &mut [], Some(control), flags)
    }

    let mut control = [0; CONTROL];
    loop {
        let (destination, message) = match family {
            Family::V4 => match receive::<SockaddrIn>(socket, &mut control) {
                Ok(message) => {
                    let to = message.address.map(|to| (to.ip(), to.port()).into());
                    (to, message.cmsgs().ok().and_then(|mut all| all.next()))
                }
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            },
            Family::V6 => match receive::<SockaddrIn6>(socket, &mut control) {
                Ok(message) => {
                    let to = message.address.map(|to| (to.ip(), to.port()).into());
                    (to, message.cmsgs().ok().and_then(|mut all| all.next()))
                }
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            },
        };
        let (code, reporter) = match message {
            Some(ControlMessageOwned::Ipv4RecvErr(error, Some(by))) if error.ee_origin == ICMP => {
                let reporter = Ipv4Addr::from(u32::from_be(by.sin_addr.s_addr));
                let code = ErrorCode::from_icmpv4(error.ee_type, error.ee_code);
                (code, IpAddr::from(reporter))
            }
            Some(ControlMessageOwned::Ipv6RecvErr(error, Some(by)))
                if error.ee_origin == ICMPV6 =>
            {
                let reporter = Ipv6Addr::from(by.sin6_addr.s6_addr);
                let code = ErrorCode::from_icmpv6(error.ee_type, error.ee_code);
                (code, IpAddr::from(reporter))
            }
            _ => return Some(None),
        };
        return Some(destination.map(|destination| Report {
            destination,
            code,
            reporter,
        }));
    }
}

/// There are none here: the option is not granted.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[must_use]
pub fn take(_: BorrowedFd<'_>, _: Family) -> Option<Option<Report>> {
    None
}

/// What `ee_origin` says of a report that somebody else has made (linux/errqueue.h).
#[cfg(any(target_os = "linux", target_os = "android"))]
const ICMP: u8 = 2;
#[cfg(any(target_os = "linux", target_os = "android"))]
const ICMPV6: u8 = 3;

/// Room for one report with an IPv6 address: header, 16 bytes, 28 bytes, and alignment.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CONTROL: usize = 128;
