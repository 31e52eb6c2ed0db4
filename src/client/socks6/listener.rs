//! A port at a SOCKS 6 proxy that accepts more than one connection.
//!
//! What to read: "Listen Backlog Options" in the draft.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::super::bind::Binding;
use super::super::dialer::{Answer, Asked, Dialer, FOREVER, Route};
use super::super::error::{ClientError, Whose};
use super::super::stream::Until;
use super::{Errand, Memory, Outcome};
use crate::wire::socks6::{BacklogNotice, Command, StackOptions};
use crate::wire::{Address, BoundAddress};

impl Dialer {
    /// Asks the last proxy, which must speak SOCKS 6, for a port that accepts connections one after the other. `wanted` is its
    /// address on the proxy, where zeros are any. How many may wait there is said with `backlog` in the proxy's URI, or is
    /// [`DEFAULT_BACKLOG`].
    ///
    /// A listener has a session of its own, whatever holds for other requests.
    ///
    /// # Errors
    /// [`ClientError::NeedsSocks6`], and what else can go wrong; [`ClientError::fault`] tells whose fault it is.
    pub fn listen(&self, wanted: &Address) -> Result<Listener, ClientError> {
        let options = self.socks6_options()?;
        let route = self.route(self.deadline());
        let memory = Memory::with_session();
        let errand = Errand {
            command: Command::BIND,
            address: wanted.clone(),
            backlog: Some(options.stack.backlog.unwrap_or(DEFAULT_BACKLOG)),
            teardown: None,
            about: Some(wanted),
            whose: Whose::Target,
        };
        let nothing = &mut Vec::new();
        let asked = route.run(&self.before, &self.last, &memory, options, &errand, nothing);
        let asked = asked.map_err(|failed| failed.error)?;
        let granted = asked.granted();
        let told = asked.bound().cloned();
        let binding = Binding::new(
            asked,
            self.last.proxy.address().clone(),
            wanted.clone(),
            None,
        );
        let address = match (&told, self.proxy_ip(binding.asked())) {
            (Some(bound), Some(proxy)) => bound.seen_from(proxy),
            _ => binding.address(),
        };
        let port = match binding.asked().answer {
            Answer::Socks6(ref answered) if matches!(answered.outcome, Outcome::Handle(_)) => {
                Port::Shared {
                    handle: binding.into_asked(),
                    fetching: None,
                }
            }
            _ => Port::Single(Some(binding)),
        };
        Ok(Listener {
            dialer: self.clone(),
            memory,
            told: told.unwrap_or(BoundAddress::UNSPECIFIED),
            address,
            granted,
            port,
        })
    }
}

/// A port at a SOCKS 6 proxy that accepts connections; made by [`Dialer::listen`]. The proxy gives it up when this is dropped.
#[derive(Debug)]
pub struct Listener {
    dialer: Dialer,
    /// Of the session that it all happens in.
    memory: Memory,
    /// As the proxy told it, which is how it has to be named again.
    told: BoundAddress,
    address: Option<SocketAddr>,
    granted: StackOptions,
    port: Port,
}

#[derive(Debug)]
enum Port {
    /// Without a backlog: `None` once it has been used.
    Single(Option<Binding>),
    /// As long as the handle lives.
    Shared {
        handle: Asked,
        /// A request for the next peer.
        fetching: Option<Binding>,
    },
}

impl Listener {
    /// Where the proxy listens. `None` if the proxy did not say an address that is one.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What the proxy says is in force: with no backlog, it accepts one connection only.
    #[must_use]
    pub const fn granted(&self) -> StackOptions {
        self.granted
    }

    /// Waits for the next peer, so long at most. Gives the stream to it, blocking and without time limits, and its address as
    /// the proxy tells it. When the time is up, nothing is lost: the next call goes on waiting.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`]; [`ClientError::NoBacklog`] for a second one that can't come; what else can go wrong.
    pub fn accept(&mut self, timeout: Duration) -> Result<(TcpStream, BoundAddress), ClientError> {
        let deadline = Instant::now() + timeout.min(FOREVER);
        let proxy = self.dialer.last.proxy.address();
        let place = match &mut self.port {
            Port::Single(binding) => binding,
            Port::Shared { handle, fetching } => {
                if fetching.is_none() {
                    let route = self.dialer.route(deadline);
                    let fetched = fetch(&self.dialer, &route, &self.memory, &self.told, handle)?;
                    *fetching = Some(fetched);
                }
                fetching
            }
        };
        let Some(binding) = place else {
            return Err(ClientError::NoBacklog(proxy.clone()));
        };
        match binding.wait(deadline) {
            Err(error @ ClientError::TimedOut(..)) => Err(error),
            Err(error) => {
                *place = None;
                Err(error)
            }
            Ok(peer) => {
                let stream = match place.take() {
                    Some(binding) => binding.into_stream()?,
                    None => return Err(ClientError::NoBacklog(proxy.clone())),
                };
                Ok((stream, peer))
            }
        }
    }
}

/// Asks for the next peer, in the same session.
fn fetch(
    dialer: &Dialer,
    route: &Route<'_>,
    memory: &Memory,
    told: &BoundAddress,
    handle: &mut Asked,
) -> Result<Binding, ClientError> {
    let last = &dialer.last;
    let proxy = last.proxy.address();
    let options = dialer.socks6_options()?;
    let wanted = match told {
        BoundAddress::Socket(address) => Address::from(*address),
        name @ BoundAddress::Name(..) => {
            let name = name.to_string().parse();
            name.map_err(|_| ClientError::NoBacklog(proxy.clone()))?
        }
    };
    if options.profile.backlog == BacklogNotice::Push
        && let Answer::Socks6(answered) = &mut handle.answer
    {
        let mut until = Until {
            stream: &handle.stream,
            deadline: route.deadline,
        };
        answered
            .go_on(&mut until)
            .map_err(|error| ClientError::of_socks6(error, proxy, Some(&wanted), Whose::Target))?;
    }
    let errand = Errand {
        command: Command::BIND,
        address: wanted.clone(),
        backlog: None,
        teardown: None,
        about: Some(&wanted),
        whose: Whose::Target,
    };
    let nothing = &mut Vec::new();
    let asked = route.run(&dialer.before, last, memory, options, &errand, nothing);
    let asked = asked.map_err(|failed| failed.error)?;
    Ok(Binding::new(asked, proxy.clone(), wanted, None))
}

/// Peers that may wait at the port, where nothing else is said.
pub const DEFAULT_BACKLOG: u16 = 16;
