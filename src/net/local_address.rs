//! Whether an address is one of this machine's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Whether a connection to `ip` would end on this machine.
///
/// True for loopback and unspecified addresses, and for an address that the kernel would also use as the source of
/// packets to it, which it does for its own ones only. The kernel is asked by connecting a datagram socket, which
/// sends nothing. Trying to bind the address instead would be wrong where `ip_nonlocal_bind` is set. An IPv4-mapped
/// address counts as the IPv4 one. False when the kernel can't be asked (no descriptor left, no route).
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    source_towards(ip).is_ok_and(|source| source.to_canonical() == ip)
}

/// The same socket address with an IPv4-mapped one turned into IPv4, and without flow label and scope.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address of this machine that packets to `ip` would come from: the one under which that machine reaches us, if
/// nothing translates between. The kernel is asked as for [`is_local`].
///
/// # Errors
/// No route from here, or no descriptor.
pub fn source_towards(ip: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    source_of(UdpSocket::bind((any, 0))?, ip)
}

/// The same for datagrams of this socket.
pub(super) fn source_of(socket: impl Into<UdpSocket>, ip: IpAddr) -> io::Result<IpAddr> {
    let socket = socket.into();
    socket.connect((ip, DISCARD))?;
    Ok(socket.local_addr()?.ip())
}

/// Any port does: nothing is sent.
const DISCARD: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unspecified_are_local() {
        for text in [
            "127.0.0.1",
            "127.9.8.7",
            "::1",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_local(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn others_are_not_local() {
        // 192.0.2.0/24 and 2001:db8::/32 are for documentation: nobody has them.
        for text in [
            "192.0.2.1",
            "2001:db8::1",
            "::ffff:192.0.2.1",
            "255.255.255.255",
        ] {
            assert!(!is_local(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn the_address_used_towards_others_is_local() {
        if let Ok(own) = source_towards("192.0.2.1".parse().unwrap()) {
            assert!(is_local(own), "{own}");
        }
    }

    #[test]
    fn canonical_unmaps_and_drops_the_scope() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:80".parse().unwrap());
        let scoped: SocketAddr = "[fe80::1%3]:80".parse().unwrap();
        assert_eq!(canonical(scoped), "[fe80::1]:80".parse().unwrap());
    }
}
