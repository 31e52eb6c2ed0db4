//! A port at the proxy that accepts one connection.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::dialer::{Answer, Asked, FOREVER, blocking};
use super::error::{ClientError, Whose};
use super::negotiate::negotiate;
use super::stream::Until;
#[cfg(feature = "socks6")]
use crate::wire::socks6::StackOptions;
use crate::wire::{Address, BoundAddress};

/// A port at the proxy that accepts one connection; made by [`Dialer::bind`](super::Dialer::bind). The proxy gives it up
/// when this is dropped.
#[derive(Debug)]
pub struct Binding {
    asked: Asked,
    proxy: Address,
    peer: Address,
    proxy_ip: Option<IpAddr>,
    /// Whom to let in, where the proxy could not be told: one of these, whose port 0 is any. None at all is anybody.
    #[cfg(feature = "socks6")]
    expected: Vec<SocketAddr>,
}

impl Binding {
    pub(super) const fn new(
        asked: Asked,
        proxy: Address,
        peer: Address,
        proxy_ip: Option<IpAddr>,
    ) -> Self {
        Self {
            asked,
            proxy,
            peer,
            proxy_ip,
            #[cfg(feature = "socks6")]
            expected: Vec::new(),
        }
    }

    /// Will let in the peer only, if the proxy let in anybody.
    #[cfg(feature = "socks6")]
    pub(super) fn checked(
        mut self,
        look_up: impl FnOnce(&Address) -> Result<Vec<SocketAddr>, ClientError>,
    ) -> Result<Self, ClientError> {
        if let Answer::Socks6(_) = self.asked.answer {
            self.expected = match self.peer.socket_addr() {
                Some(anybody) if anybody.ip().to_canonical().is_unspecified() => Vec::new(),
                Some(peer) => vec![peer],
                None => look_up(&self.peer)?,
            };
        }
        Ok(self)
    }

    /// Where the proxy listens: what the peer has to be told. `None` if the proxy did not say an address that is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match (self.asked.bound()?, self.proxy_ip) {
            (bound, Some(proxy)) => bound.seen_from(proxy),
            (BoundAddress::Socket(address), None) => {
                (!address.ip().to_canonical().is_unspecified()).then_some(*address)
            }
            (BoundAddress::Name(..), None) => None,
        }
    }

    /// What the proxy says is in force, if it speaks SOCKS 6.
    #[cfg(feature = "socks6")]
    #[must_use]
    pub fn granted(&self) -> StackOptions {
        self.asked.granted()
    }

    /// Waits for the peer, so long at most; proxies have a limit of their own, usually two minutes. Gives the stream to it,
    /// blocking and without time limits, and its address as the proxy tells it.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Refused`] when the proxy let nobody in, and what else can go wrong.
    pub fn accept(mut self, timeout: Duration) -> Result<(TcpStream, BoundAddress), ClientError> {
        let peer = self.wait(Instant::now() + timeout.min(FOREVER))?;
        Ok((self.into_stream()?, peer))
    }

    /// The same; when the time is up, it can be waited for again.
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<BoundAddress, ClientError> {
        let mut until = Until {
            stream: &self.asked.stream,
            deadline,
        };
        match &mut self.asked.answer {
            Answer::Older(handshake, outcome) => {
                let second = negotiate(&mut until, handshake).map_err(|error| {
                    ClientError::of_negotiation(error, &self.proxy, &self.peer, Whose::Target)
                })?;
                *outcome = second;
            }
            #[cfg(feature = "socks6")]
            Answer::Socks6(answered) => {
                answered.go_on(&mut until).map_err(|error| {
                    ClientError::of_socks6(error, &self.proxy, Some(&self.peer), Whose::Target)
                })?;
            }
        }
        let peer = self.asked.bound().cloned();
        let peer = peer.unwrap_or(BoundAddress::UNSPECIFIED);
        #[cfg(feature = "socks6")]
        if !self.expects(&peer) {
            return Err(ClientError::Stranger {
                proxy: self.proxy.clone(),
                expected: self.peer.clone(),
                came: peer,
            });
        }
        Ok(peer)
    }

    #[cfg(feature = "socks6")]
    fn expects(&self, peer: &BoundAddress) -> bool {
        let BoundAddress::Socket(peer) = peer else {
            return self.expected.is_empty();
        };
        let is = |expected: &SocketAddr| {
            expected.ip().to_canonical() == peer.ip().to_canonical()
                && (expected.port() == 0 || expected.port() == peer.port())
        };
        self.expected.is_empty() || self.expected.iter().any(is)
    }

    #[cfg(feature = "socks6")]
    pub(super) const fn asked(&self) -> &Asked {
        &self.asked
    }

    #[cfg(feature = "socks6")]
    pub(super) fn into_asked(self) -> Asked {
        self.asked
    }

    pub(super) fn into_stream(self) -> Result<TcpStream, ClientError> {
        blocking(self.asked.stream)
    }
}
