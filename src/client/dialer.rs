//! Connections through one proxy or a chain of them.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::associate::Association;
use super::bind::Binding;
use super::error::{ClientError, Phase, Whose};
use super::negotiate::negotiate;
use super::stream::{Until, connect_any};
use crate::ProxyUri;
use crate::handshake::{Client, Goal, HandshakeError, Outcome};
use crate::proxy_uri::{Resolution, Scheme};
use crate::resolver::{ResolveError, Resolver};
use crate::wire::socks4::RequestError;
use crate::wire::{Address, Host};

/// Connects through a proxy, or through several, each reached through the one before.
///
/// ```no_run
/// use std::time::Duration;
/// use sockhop::client::Dialer;
///
/// let stream = Dialer::new("socks5h://[407::1]".parse()?)
///     .through("socks5h://ada:secret@10.1.2.3:1080".parse()?)
///     .timeout(Duration::from_secs(10))
///     .connect(&"example.org:443".parse()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dialer {
    /// What stands before the last proxy; the first of them is connected to.
    before: Vec<ProxyUri>,
    last: ProxyUri,
    timeout: Option<Duration>,
    none_allowed: bool,
    resolver: Resolver,
}

/// The time for everything, when neither the dialer nor a URI says another.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

impl Dialer {
    /// Connects through this proxy.
    #[must_use]
    pub fn new(proxy: ProxyUri) -> Self {
        Self {
            before: Vec::new(),
            last: proxy,
            timeout: None,
            none_allowed: false,
            resolver: Resolver::new(LOOKUPS, 2 * LOOKUPS),
        }
    }

    /// One more proxy, which is reached through those before it.
    #[must_use]
    pub fn through(mut self, proxy: ProxyUri) -> Self {
        self.before.push(std::mem::replace(&mut self.last, proxy));
        self
    }

    /// The time for all look-ups, connecting and all handshakes together. Without it, it is the shortest that a URI has
    /// as its `timeout`, or else [`DEFAULT_TIMEOUT`].
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Goes on with proxies that want no authentication although there are credentials for them.
    #[must_use]
    pub const fn allow_no_authentication(mut self) -> Self {
        self.none_allowed = true;
        self
    }

    /// Connects to the target. The stream blocks, without time limits; it has `TCP_NODELAY` and keepalive.
    ///
    /// Where the target's name is looked up here, its addresses are tried one after the other as long as the proxy says
    /// that it can't reach them.
    ///
    /// # Errors
    /// [`ClientError::fault`] tells whose fault it is.
    pub fn connect(&self, target: &Address) -> Result<TcpStream, ClientError> {
        if target.port == 0 {
            return Err(ClientError::PortZero(target.clone()));
        }
        let asked = self.ask(Task::Connect, target)?;
        blocking(asked.stream)
    }

    /// Asks the last proxy for a port that accepts one connection, from `peer` (`0.0.0.0:0` if the proxy shall let
    /// in anybody; not all do).
    ///
    /// # Errors
    /// [`ClientError::fault`] tells whose fault it is.
    pub fn bind(&self, peer: &Address) -> Result<Binding, ClientError> {
        let asked = self.ask(Task::Bind, peer)?;
        // A proxy that tells 0.0.0.0 means itself; behind others its address is known only if it was given as one.
        let proxy_ip = match &self.last.address().host {
            Host::Ip(ip) => Some(*ip),
            Host::Name(_) if self.before.is_empty() => {
                asked.stream.peer_addr().ok().map(|address| address.ip())
            }
            Host::Name(_) => None,
        };
        Ok(Binding::new(
            asked,
            self.last.address().clone(),
            peer.clone(),
            proxy_ip,
        ))
    }

    /// Asks the proxy to carry datagrams. They go to it directly, so it can't be behind another, and it speaks SOCKS5.
    ///
    /// # Errors
    /// [`ClientError::fault`] tells whose fault it is.
    pub fn associate(&self) -> Result<Association, ClientError> {
        let proxy = self.last.address();
        if !self.before.is_empty() {
            return Err(ClientError::NoDatagrams(proxy.clone()));
        }
        // Where from isn't known yet (RFC 1928 §7), and behind a NAT never.
        let anywhere = Address::new(Host::Ip(Ipv4Addr::UNSPECIFIED.into()), 0);
        let asked = self.ask(Task::Associate, &anywhere);
        let asked = asked.map_err(|error| match error {
            ClientError::Refused { proxy, refusal, .. } => {
                ClientError::Handshake(proxy, HandshakeError::Refused(refusal))
            }
            error => error,
        })?;
        let resolution = self.last.scheme().resolution();
        Association::new(asked, proxy, resolution, self.resolver.clone())
    }

    fn ask(&self, task: Task, target: &Address) -> Result<Asked, ClientError> {
        let route = Route {
            deadline: self.deadline(),
            none_allowed: self.none_allowed,
            resolver: &self.resolver,
        };
        route.ask(&self.before, &self.last, task, target, Whose::Target)
    }

    fn deadline(&self) -> Instant {
        let proxies = self.before.iter().chain([&self.last]);
        let named = proxies.filter_map(ProxyUri::timeout).min();
        let timeout = self.timeout.or(named).unwrap_or(DEFAULT_TIMEOUT);
        Instant::now() + timeout.min(FOREVER)
    }
}

/// A proxy that did what it was asked for. The stream is non-blocking.
pub(super) struct Asked {
    pub(super) stream: TcpStream,
    pub(super) handshake: Client,
    pub(super) outcome: Outcome,
}

/// What a proxy is asked to do.
#[derive(Clone, Copy)]
enum Task {
    Connect,
    Bind,
    Associate,
}

/// What holds for one way through all proxies.
struct Route<'a> {
    deadline: Instant,
    none_allowed: bool,
    resolver: &'a Resolver,
}

impl Route<'_> {
    /// Asks `proxy`, reached through those `before` it.
    fn ask(
        &self,
        before: &[ProxyUri],
        proxy: &ProxyUri,
        task: Task,
        target: &Address,
        whose: Whose,
    ) -> Result<Asked, ClientError> {
        let mut refused = None;
        for candidate in self.candidates(proxy, target, whose)? {
            // Before anything is sent: what can't be asked for must not cost a connection.
            let mut handshake = self.handshake(proxy, task, &candidate)?;
            let stream = self.reach(before, proxy.address())?;
            let mut until = Until {
                stream: &stream,
                deadline: self.deadline,
            };
            match negotiate(&mut until, &mut handshake) {
                Ok(outcome) => {
                    return Ok(Asked {
                        stream,
                        handshake,
                        outcome,
                    });
                }
                Err(error) => {
                    let error =
                        ClientError::of_negotiation(error, proxy.address(), &candidate, whose);
                    if !error.is_unreached() {
                        return Err(error);
                    }
                    refused = Some(error);
                }
            }
        }
        Err(refused
            .unwrap_or_else(|| ClientError::Lookup(whose, target.clone(), ResolveError::NotFound)))
    }

    /// A stream to a proxy's address through the proxies `before` it.
    fn reach(&self, before: &[ProxyUri], address: &Address) -> Result<TcpStream, ClientError> {
        if let Some((proxy, before)) = before.split_last() {
            let asked = self.ask(before, proxy, Task::Connect, address, Whose::Proxy)?;
            return Ok(asked.stream);
        }
        let addresses = self.look_up(address, Whose::Proxy)?;
        connect_any(&addresses, self.deadline).map_err(|failure| match failure {
            Some(failure) => ClientError::Connect(address.clone(), failure),
            None => ClientError::TimedOut(address.clone(), Phase::Connect),
        })
    }

    /// What to ask `proxy` for, one after the other.
    fn candidates(
        &self,
        proxy: &ProxyUri,
        target: &Address,
        whose: Whose,
    ) -> Result<Vec<Address>, ClientError> {
        if target.socket_addr().is_some() || proxy.scheme().resolution() == Resolution::AtProxy {
            return Ok(vec![target.clone()]);
        }
        let found = self.look_up(target, whose)?;
        let usable = |address: &SocketAddr| {
            proxy.scheme() != Scheme::Socks4 || address.ip().to_canonical().is_ipv4()
        };
        let usable = found.into_iter().filter(usable).take(MAX_CANDIDATES);
        Ok(usable.map(Address::from).collect())
    }

    fn look_up(&self, address: &Address, whose: Whose) -> Result<Vec<SocketAddr>, ClientError> {
        let host = address.host.to_string();
        let lookup = self.resolver.lookup(&host, address.port);
        lookup.wait(self.deadline).map_err(|error| match error {
            ResolveError::TimedOut => ClientError::TimedOut(address.clone(), Phase::Lookup),
            error => ClientError::Lookup(whose, address.clone(), error),
        })
    }

    fn handshake(
        &self,
        proxy: &ProxyUri,
        task: Task,
        target: &Address,
    ) -> Result<Client, ClientError> {
        let goal = match task {
            Task::Connect => Goal::Connect(target.clone()),
            Task::Bind => Goal::Bind(target.clone()),
            Task::Associate => Goal::Associate(target.clone()),
        };
        match Client::for_proxy(proxy, goal) {
            Ok(client) if self.none_allowed => Ok(client.allow_no_authentication()),
            Ok(client) => Ok(client),
            Err(RequestError::NoSuchCommand) => {
                Err(ClientError::NoDatagrams(proxy.address().clone()))
            }
            Err(error) => Err(ClientError::Unaskable(target.clone(), error)),
        }
    }
}

/// Gives the stream to the caller as any other stream is.
pub(super) fn blocking(stream: TcpStream) -> Result<TcpStream, ClientError> {
    match stream.set_nonblocking(false) {
        Ok(()) => Ok(stream),
        Err(error) => Err(ClientError::System(error)),
    }
}

/// Look-ups at the same time for one dialer; it makes one after the other, its clones may be on other threads.
const LOOKUPS: usize = 4;

/// Addresses of one target that are tried: each costs a whole handshake, and the deadline ends it anyway.
const MAX_CANDIDATES: usize = 8;

/// Longer waits would overflow the clock.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
