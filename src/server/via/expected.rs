//! Whom a port at a proxy is for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::server::rules::{Denied, NameVerdict, Rules};

/// Who may come to a port at a proxy.
pub(in crate::server) enum Expected {
    /// One of these, which have been checked. The proxy was told.
    Told(Vec<IpAddr>),
    /// The same, but the proxy lets in anybody, and nobody after that one.
    #[cfg(feature = "socks6")]
    Untold(Vec<IpAddr>),
    /// Whom the proxy finds under a name, which has been checked: as with CONNECT, no rule sees that.
    Named,
    /// Everybody whom the rules let in with this port.
    Anybody(u16),
}

/// Why somebody who came is not let in.
pub(in crate::server) enum Unexpected {
    Stranger(SocketAddr),
    Denied(Denied),
}

impl Expected {
    /// Whether the one may come whom the proxy has let in. Some proxies don't tell who that is, which is an unspecified
    /// address here.
    pub(in crate::server) fn admits(
        &self,
        peer: SocketAddr,
        rules: &Rules,
    ) -> Result<(), Unexpected> {
        let ip = peer.ip().to_canonical();
        let is_expected = match self {
            Self::Told(peers) => ip.is_unspecified() || peers.contains(&ip),
            #[cfg(feature = "socks6")]
            Self::Untold(peers) => peers.contains(&ip),
            Self::Named => true,
            Self::Anybody(port) => {
                let judged = SocketAddr::new(ip, *port);
                return rules
                    .check_peer(judged, NameVerdict::Open)
                    .map_err(Unexpected::Denied);
            }
        };
        match is_expected {
            true => Ok(()),
            false => Err(Unexpected::Stranger(peer)),
        }
    }
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger(peer) => write!(f, "{peer} came instead of the peer"),
            Self::Denied(denied) => denied.fmt(f),
        }
    }
}
