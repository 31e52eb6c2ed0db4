//! The addresses we listen on, so that none of them becomes a peer or a remote.

use std::net::SocketAddr;

use super::local_address::{canonical, is_local};

/// A set of bound addresses, wildcards included.
#[derive(Clone, Debug, Default)]
pub struct OwnListeners {
    bound: Vec<SocketAddr>,
}

impl OwnListeners {
    /// No listener yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { bound: Vec::new() }
    }

    /// Adds the address of a bound listener, as `local_addr` tells it.
    pub fn insert(&mut self, bound: SocketAddr) {
        let bound = canonical(bound);
        if !self.bound.contains(&bound) {
            self.bound.push(bound);
        }
    }

    /// Forgets a listener that was closed.
    pub fn remove(&mut self, bound: SocketAddr) {
        let bound = canonical(bound);
        self.bound.retain(|other| *other != bound);
    }

    /// Whether a connection to `remote` would reach one of these listeners.
    ///
    /// The same port, and either the same address, or a wildcard on one side and an address of this machine on the
    /// other: who connects to `0.0.0.0` reaches itself. `[::]` counts for IPv4 too. May ask the kernel (see
    /// [`is_local`]), but only about an address with the port of a wildcard listener.
    #[must_use]
    pub fn is_own(&self, remote: SocketAddr) -> bool {
        let remote = canonical(remote);
        self.bound
            .iter()
            .filter(|bound| bound.port() == remote.port())
            .any(|bound| {
                bound.ip() == remote.ip()
                    || (bound.ip().is_unspecified() && is_local(remote.ip()))
                    || (remote.ip().is_unspecified() && is_local(bound.ip()))
            })
    }
}

impl FromIterator<SocketAddr> for OwnListeners {
    fn from_iter<T: IntoIterator<Item = SocketAddr>>(addresses: T) -> Self {
        let mut listeners = Self::new();
        for address in addresses {
            listeners.insert(address);
        }
        listeners
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(bound: &[&str], remote: &str) -> bool {
        let listeners: OwnListeners = bound.iter().map(|text| text.parse().unwrap()).collect();
        listeners.is_own(remote.parse().unwrap())
    }

    #[test]
    fn own_listeners_under_every_name() {
        let table = [
            (&["127.0.0.1:1080"][..], "127.0.0.1:1080", true),
            (&["127.0.0.1:1080"], "[::ffff:127.0.0.1]:1080", true),
            (&["127.0.0.1:1080"], "127.0.0.1:9050", false),
            (&["127.0.0.1:1080"], "127.0.0.2:1080", false),
            (&["127.0.0.1:1080"], "0.0.0.0:1080", true),
            (&["[::1]:1080"], "[::]:1080", true),
            (&["[::]:1080"], "127.0.0.1:1080", true),
            (&["[::]:1080"], "127.0.0.2:1080", true),
            (&["[::]:1080"], "[::1]:1080", true),
            (&["0.0.0.0:1080"], "127.0.0.1:1080", true),
            (&["[::]:1080"], "192.0.2.1:1080", false),
            (&["[::]:1080", "127.0.0.1:9050"], "127.0.0.1:9050", true),
            (&[], "127.0.0.1:1080", false),
        ];
        for (bound, remote, expected) in table {
            assert_eq!(own(bound, remote), expected, "{bound:?} {remote}");
        }
    }

    #[test]
    fn a_closed_listener_is_forgotten() {
        let address = "127.0.0.1:1080".parse().unwrap();
        let mut listeners = OwnListeners::new();
        listeners.insert(address);
        listeners.remove(address);
        assert!(!listeners.is_own(address));
    }
}
