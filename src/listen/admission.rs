//! Who may connect.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::net::is_local;

/// Decides by a client's address whether it may connect, before a byte is read.
#[derive(Debug, Clone)]
pub struct Admission {
    allowed: Vec<IpNet>,
    /// Addresses and ranges of overlays inside the ranges that are allowed by default.
    excepted: Vec<IpNet>,
}

/// Why a client was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its address is in no allowed range.
    NotAllowed,
    /// Its address is that of a peer, so it may be a forwarder that would feed our connections back to us.
    Peer,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAllowed => "its address is in no allowed range (--allow)",
            Self::Peer => "it is a peer itself (--allow with its exact address lets it in)",
        })
    }
}

impl Admission {
    /// Lets the given ranges in and this machine; without any, this machine, private and link-local addresses.
    #[must_use]
    pub fn new(allowed: Option<Vec<IpNet>>) -> Self {
        match allowed {
            Some(allowed) => Self {
                allowed,
                excepted: Vec::new(),
            },
            None => Self {
                allowed: private_ranges(),
                excepted: overlay_ranges(),
            },
        }
    }

    /// Whether a client may connect. `is_peer` tells whether a peer has its address.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, client: IpAddr, is_peer: impl Fn(IpAddr) -> bool) -> Result<(), Refused> {
        let client = client.to_canonical();
        if client.is_loopback() {
            return Ok(());
        }
        let by_name = self
            .allowed
            .iter()
            .any(|net| net.prefix_len() == net.max_prefix_len() && net.addr() == client);
        if by_name {
            return Ok(());
        }
        if is_peer(client) {
            return Err(Refused::Peer);
        }
        let in_range = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&client));
        if (in_range(&self.allowed) && !in_range(&self.excepted)) || is_local(client) {
            return Ok(());
        }
        Err(Refused::NotAllowed)
    }
}

fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Option<IpNet> {
    Ipv4Net::new([a, b, c, d].into(), prefix)
        .ok()
        .map(IpNet::V4)
}

fn v6(first: [u16; 3], prefix: u8) -> Option<IpNet> {
    let [a, b, c] = first;
    Ipv6Net::new([a, b, c, 0, 0, 0, 0, 0].into(), prefix)
        .ok()
        .map(IpNet::V6)
}

/// Private and link-local ranges (RFC 1918, RFC 3927, RFC 4193, RFC 4291). Of fc00::/7 only the half that RFC 4193 §3.1
/// gives out: cjdns uses the other. 100.64.0.0/10 is left out: with Tailscale it is other people's machines.
fn private_ranges() -> Vec<IpNet> {
    [
        v4(10, 0, 0, 0, 8),
        v4(172, 16, 0, 0, 12),
        v4(192, 168, 0, 0, 16),
        v4(169, 254, 0, 0, 16),
        v6([0xfd00, 0, 0], 8),
        v6([0xfe80, 0, 0], 10),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What overlays use inside those ranges: Tailscale's IPv6 addresses.
fn overlay_ranges() -> Vec<IpNet> {
    v6([0xfd7a, 0x115c, 0xa1e0], 48).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(admission: &Admission, client: &str) -> Result<(), Refused> {
        admission.check(client.parse().unwrap(), |ip| {
            ip.to_string().starts_with("10.9.")
        })
    }

    #[test]
    fn by_default_this_machine_and_private_addresses_come_in() {
        let admission = Admission::new(None);
        for client in [
            "127.0.0.1",
            "::1",
            "127.8.8.8",
            "10.1.2.3",
            "::ffff:192.168.1.9",
            "172.31.0.1",
            "fd00::7",
            "fe80::1",
        ] {
            assert_eq!(check(&admission, client), Ok(()), "{client}");
        }
    }

    #[test]
    fn by_default_overlay_and_public_addresses_stay_out() {
        let admission = Admission::new(None);
        for client in [
            "8.8.8.8",
            "100.64.0.1",
            "407::1",
            "201::1",
            "fc00::1",
            "fd7a:115c:a1e0::5",
            "2001:db8::1",
            "172.32.0.1",
        ] {
            assert_eq!(
                check(&admission, client),
                Err(Refused::NotAllowed),
                "{client}"
            );
        }
    }

    #[test]
    fn a_peer_comes_in_only_by_name() {
        assert_eq!(check(&Admission::new(None), "10.9.0.1"), Err(Refused::Peer));
        let range = Admission::new(Some(vec!["10.0.0.0/8".parse().unwrap()]));
        assert_eq!(check(&range, "10.9.0.1"), Err(Refused::Peer));
        assert_eq!(check(&range, "10.8.0.1"), Ok(()));
        let name = Admission::new(Some(vec!["10.9.0.1/32".parse().unwrap()]));
        assert_eq!(check(&name, "::ffff:10.9.0.1"), Ok(()));
        assert_eq!(check(&name, "192.168.0.1"), Err(Refused::NotAllowed));
    }

    #[test]
    fn loopback_always_comes_in_even_if_a_peer_has_its_address() {
        let admission = Admission::new(Some(Vec::new()));
        assert_eq!(
            admission.check("127.0.0.1".parse().unwrap(), |_| true),
            Ok(())
        );
    }
}
