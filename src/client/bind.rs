//! A port at the proxy that accepts one connection.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::dialer::{Asked, FOREVER, blocking};
use super::error::{ClientError, Whose};
use super::negotiate::negotiate;
use super::stream::Until;
use crate::handshake::{Client, Outcome};
use crate::wire::{Address, BoundAddress};

/// A port at the proxy that accepts one connection; made by [`Dialer::bind`](super::Dialer::bind). The proxy gives it up
/// when this is dropped.
#[derive(Debug)]
pub struct Binding {
    stream: TcpStream,
    handshake: Client,
    outcome: Outcome,
    proxy: Address,
    peer: Address,
    proxy_ip: Option<IpAddr>,
}

impl Binding {
    pub(super) fn new(
        asked: Asked,
        proxy: Address,
        peer: Address,
        proxy_ip: Option<IpAddr>,
    ) -> Self {
        Self {
            stream: asked.stream,
            handshake: asked.handshake,
            outcome: asked.outcome,
            proxy,
            peer,
            proxy_ip,
        }
    }

    /// Where the proxy listens: what the peer has to be told. `None` if the proxy did not say an address that is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match (bound(&self.outcome)?, self.proxy_ip) {
            (bound, Some(proxy)) => bound.seen_from(proxy),
            (BoundAddress::Socket(address), None) => {
                (!address.ip().to_canonical().is_unspecified()).then_some(*address)
            }
            (BoundAddress::Name(..), None) => None,
        }
    }

    /// Waits for the peer, so long at most; proxies have a limit of their own, usually two minutes. Gives the stream to it,
    /// blocking and without time limits, and its address as the proxy tells it.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Refused`] when the proxy let nobody in, and what else can go wrong.
    pub fn accept(mut self, timeout: Duration) -> Result<(TcpStream, BoundAddress), ClientError> {
        let mut until = Until {
            stream: &self.stream,
            deadline: Instant::now() + timeout.min(FOREVER),
        };
        let outcome = negotiate(&mut until, &mut self.handshake).map_err(|error| {
            ClientError::of_negotiation(error, &self.proxy, &self.peer, Whose::Target)
        })?;
        let peer = bound(&outcome)
            .cloned()
            .unwrap_or(BoundAddress::UNSPECIFIED);
        Ok((blocking(self.stream)?, peer))
    }
}

const fn bound(outcome: &Outcome) -> Option<&BoundAddress> {
    match outcome {
        Outcome::Greeted(_) => None,
        Outcome::Done(bound) | Outcome::Listening(bound) | Outcome::Accepted(bound) => Some(bound),
    }
}
