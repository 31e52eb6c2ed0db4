//! Connections through one proxy or a chain of them.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
#[cfg(feature = "socks6")]
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::associate::Association;
use super::bind::Binding;
use super::error::{ClientError, Phase, Whose};
use super::negotiate::drive;
#[cfg(feature = "socks6")]
use super::socks6::{Answered, Memory};
use super::stream::{Until, connect_any};
use crate::ProxyUri;
use crate::handshake::{Client, Goal, HandshakeError, Outcome};
use crate::net::Uplink;
use crate::proxy_uri::{Resolution, Scheme};
use crate::resolver::{ResolveError, Resolver};
use crate::wire::socks4::RequestError;
#[cfg(feature = "socks6")]
use crate::wire::socks6::StackOptions;
use crate::wire::{Address, BoundAddress, Host};

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
    pub(super) before: Vec<Hop>,
    pub(super) last: Hop,
    timeout: Option<Duration>,
    none_allowed: bool,
    pub(super) resolver: Resolver,
    pub(super) uplink: Uplink,
}

/// A connection to a target; made by [`Dialer::connect_with`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Connected {
    /// Blocking, without time limits, with `TCP_NODELAY` and keepalive.
    pub stream: TcpStream,
    /// The last proxy's address on its side towards the target, as far as it tells.
    pub bound: BoundAddress,
    /// What the last proxy says is in force, if it speaks SOCKS 6. Of an option that is not there it knows nothing.
    #[cfg(feature = "socks6")]
    pub granted: StackOptions,
}

/// The time for everything, when neither the dialer nor a URI says another.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of early data: what a SOCKS 6 client can send before it knows anything of the proxy.
pub const MAX_EARLY_DATA: usize = 16_384;

impl Dialer {
    /// Connects through this proxy.
    #[must_use]
    pub fn new(proxy: ProxyUri) -> Self {
        Self {
            before: Vec::new(),
            last: Hop::new(proxy),
            timeout: None,
            none_allowed: false,
            resolver: Resolver::new(LOOKUPS, 2 * LOOKUPS),
            uplink: Uplink::default(),
        }
    }

    /// One more proxy, which is reached through those before it.
    #[must_use]
    pub fn through(mut self, proxy: ProxyUri) -> Self {
        let last = std::mem::replace(&mut self.last, Hop::new(proxy));
        self.before.push(last);
        self
    }

    /// The time for all look-ups, connecting and all handshakes together. Without it, it is the shortest that a URI has
    /// as its `timeout`, or else [`DEFAULT_TIMEOUT`].
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Reaches the first proxy this way, with datagrams too.
    #[must_use]
    pub fn by(mut self, uplink: Uplink) -> Self {
        self.uplink = uplink;
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
        self.connect_with(target, &[])
            .map(|connected| connected.stream)
    }

    /// The same with data for the target, at most [`MAX_EARLY_DATA`], and with what the proxy told of the connection.
    ///
    /// A SOCKS 6 proxy gets the data in the same segment as the request, which saves a round trip, and passes them on first.
    /// Others get them once they have connected. Without data of its own for the target, the request to the next proxy of a
    /// chain travels like this too.
    ///
    /// # Errors
    /// [`ClientError::fault`] tells whose fault it is. Whether the target got any of the data is not known then.
    pub fn connect_with(&self, target: &Address, early: &[u8]) -> Result<Connected, ClientError> {
        if target.port == 0 {
            return Err(ClientError::PortZero(target.clone()));
        }
        if early.len() > MAX_EARLY_DATA {
            return Err(ClientError::EarlyDataTooLong(early.len()));
        }
        let mut early = early.to_vec();
        let route = self.route(self.deadline());
        let (before, last) = (&self.before, &self.last);
        let asked = route.ask(
            before,
            last,
            Task::Connect,
            target,
            Whose::Target,
            &mut early,
        )?;
        let mut until = Until {
            stream: &asked.stream,
            deadline: route.deadline,
        };
        until.write_all(&early).map_err(|error| {
            let proxy = self.last.proxy.address().clone();
            match error.kind() {
                io::ErrorKind::TimedOut => ClientError::TimedOut(proxy, Phase::EarlyData),
                _ => ClientError::Broken(proxy, Phase::EarlyData, error),
            }
        })?;
        Ok(Connected {
            bound: asked.bound().cloned().unwrap_or(BoundAddress::UNSPECIFIED),
            #[cfg(feature = "socks6")]
            granted: asked.granted(),
            stream: blocking(asked.stream)?,
        })
    }

    /// Asks the last proxy for a port that accepts one connection, from `peer` (`0.0.0.0:0` if the proxy shall let
    /// in anybody; not all do).
    ///
    /// A SOCKS 6 proxy can't be told whom to let in. There it is looked at who came: if that is not the peer, accepting fails.
    ///
    /// # Errors
    /// [`ClientError::fault`] tells whose fault it is.
    pub fn bind(&self, peer: &Address) -> Result<Binding, ClientError> {
        let route = self.route(self.deadline());
        let (before, last) = (&self.before, &self.last);
        let asked = route.ask(
            before,
            last,
            Task::Bind,
            peer,
            Whose::Target,
            &mut Vec::new(),
        )?;
        let proxy_ip = self.proxy_ip(&asked);
        let binding = Binding::new(asked, last.proxy.address().clone(), peer.clone(), proxy_ip);
        #[cfg(feature = "socks6")]
        let binding = binding.checked(|peer| route.look_up(peer, Whose::Target))?;
        Ok(binding)
    }

    /// Asks the proxy to carry datagrams. They go to it directly, so it can't be behind another, and it speaks SOCKS5; or
    /// it speaks SOCKS 6, then they go there as its URI says, and by way of the connection if it is behind others.
    ///
    /// With SOCKS 6 over UDP, this also waits until the proxy confirms that datagrams get through to it.
    ///
    /// # Errors
    /// [`ClientError::fault`] tells whose fault it is.
    pub fn associate(&self) -> Result<Association, ClientError> {
        // Where from isn't known yet (RFC 1928 §7), and behind a NAT never. For SOCKS 6: any port will do.
        let anywhere = Address::new(Host::Ip(Ipv4Addr::UNSPECIFIED.into()), 0);
        self.check_datagrams()?;
        let route = self.route(self.deadline());
        let (before, last) = (&self.before, &self.last);
        let proxy = last.proxy.address();
        let nothing = &mut Vec::new();
        let asked = route.ask(
            before,
            last,
            Task::Associate,
            &anywhere,
            Whose::Target,
            nothing,
        );
        let asked = asked.map_err(|error| match error {
            ClientError::Refused { proxy, refusal, .. } => {
                ClientError::Handshake(proxy, HandshakeError::Refused(refusal))
            }
            error => error,
        })?;
        match asked.answer {
            #[cfg(feature = "socks6")]
            Answer::Socks6(answered) => {
                self.associated(asked.stream, &answered.outcome, route.deadline)
            }
            Answer::Older(_, outcome) => {
                // It may have been asked for SOCKS 6, which can do this.
                if !before.is_empty() {
                    return Err(ClientError::NoDatagrams(proxy.clone()));
                }
                let resolution = last.proxy.scheme().resolution();
                let resolver = self.resolver.clone();
                Association::socks5(
                    asked.stream,
                    &outcome,
                    proxy,
                    resolution,
                    resolver,
                    &self.uplink,
                )
            }
        }
    }

    /// Whether the ways of carrying datagrams go together with the chain.
    pub(super) fn check_datagrams(&self) -> Result<(), ClientError> {
        #[cfg(feature = "socks6")]
        if let Some(options) = self.last.proxy.socks6() {
            return self.check_channel(options);
        }
        match self.before.is_empty() {
            true => Ok(()),
            false => Err(ClientError::NoDatagrams(self.last.proxy.address().clone())),
        }
    }

    /// A proxy that tells 0.0.0.0 means itself; behind others its address is known only if it was given as one.
    pub(super) fn proxy_ip(&self, asked: &Asked) -> Option<IpAddr> {
        match &self.last.proxy.address().host {
            Host::Ip(ip) => Some(*ip),
            Host::Name(_) if self.before.is_empty() => {
                asked.stream.peer_addr().ok().map(|address| address.ip())
            }
            Host::Name(_) => None,
        }
    }

    pub(super) const fn route(&self, deadline: Instant) -> Route<'_> {
        Route {
            deadline,
            none_allowed: self.none_allowed,
            resolver: &self.resolver,
            uplink: &self.uplink,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        let proxies = self.before.iter().chain([&self.last]);
        let named = proxies.filter_map(|hop| hop.proxy.timeout()).min();
        let timeout = self.timeout.or(named).unwrap_or(DEFAULT_TIMEOUT);
        Instant::now() + timeout.min(FOREVER)
    }
}

/// One proxy of the way.
#[derive(Clone)]
pub(super) struct Hop {
    pub(super) proxy: ProxyUri,
    /// What was learned of it; clones share it.
    #[cfg(feature = "socks6")]
    pub(super) memory: Arc<Memory>,
}

impl Hop {
    fn new(proxy: ProxyUri) -> Self {
        Self {
            #[cfg(feature = "socks6")]
            memory: Arc::new(Memory::of(&proxy)),
            proxy,
        }
    }
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.proxy.fmt(f)
    }
}

/// A proxy that did what it was asked for. The stream is non-blocking.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) stream: TcpStream,
    pub(super) answer: Answer,
}

/// What it said.
#[derive(Debug)]
pub(super) enum Answer {
    /// In SOCKS 4 or 5.
    Older(Client, Outcome),
    #[cfg(feature = "socks6")]
    Socks6(Box<Answered>),
}

impl Asked {
    /// The address in its last reply.
    pub(super) fn bound(&self) -> Option<&BoundAddress> {
        match &self.answer {
            Answer::Older(_, Outcome::Greeted(_)) => None,
            Answer::Older(
                _,
                Outcome::Done(bound) | Outcome::Listening(bound) | Outcome::Accepted(bound),
            ) => Some(bound),
            #[cfg(feature = "socks6")]
            Answer::Socks6(answered) => answered.reply().map(|reply| &reply.bound),
        }
    }

    #[cfg(feature = "socks6")]
    pub(super) fn granted(&self) -> StackOptions {
        match &self.answer {
            Answer::Older(..) => StackOptions::default(),
            Answer::Socks6(answered) => answered.granted,
        }
    }
}

/// What a proxy is asked to do.
#[derive(Clone, Copy)]
pub(super) enum Task {
    Connect,
    Bind,
    Associate,
}

/// What holds for one way through all proxies.
pub(super) struct Route<'a> {
    pub(super) deadline: Instant,
    none_allowed: bool,
    resolver: &'a Resolver,
    uplink: &'a Uplink,
}

impl Route<'_> {
    /// Asks a proxy, reached through those `before` it. A SOCKS 6 proxy takes `early`, the first payload, along, and leaves
    /// nothing of it; others leave all of it.
    pub(super) fn ask(
        &self,
        before: &[Hop],
        hop: &Hop,
        task: Task,
        target: &Address,
        whose: Whose,
        early: &mut Vec<u8>,
    ) -> Result<Asked, ClientError> {
        #[cfg(feature = "socks6")]
        if hop.proxy.socks6().is_some() && !hop.memory.is_older() {
            return self.ask_socks6(before, hop, task, target, whose, early);
        }
        // The others have no use for it.
        let _ = early;
        self.ask_older(before, hop, task, target, whose)
    }

    /// In SOCKS 4 or 5.
    pub(super) fn ask_older(
        &self,
        before: &[Hop],
        hop: &Hop,
        task: Task,
        target: &Address,
        whose: Whose,
    ) -> Result<Asked, ClientError> {
        let proxy = &hop.proxy;
        let mut refused = None;
        for candidate in self.candidates(proxy, target, whose)? {
            // Before anything is sent: what can't be asked for must not cost a connection.
            let mut handshake = self.handshake(proxy, task, &candidate)?;
            let mut unsent = Vec::new();
            handshake.start(&mut unsent);
            let stream = self.reach(before, proxy.address(), &mut unsent)?;
            let mut until = Until {
                stream: &stream,
                deadline: self.deadline,
            };
            match drive(&mut until, &mut handshake, &mut unsent) {
                Ok(outcome) => {
                    let answer = Answer::Older(handshake, outcome);
                    return Ok(Asked { stream, answer });
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

    /// A stream to a proxy's address through the proxies `before` it. They may take along what is to be sent there first.
    pub(super) fn reach(
        &self,
        before: &[Hop],
        address: &Address,
        unsent: &mut Vec<u8>,
    ) -> Result<TcpStream, ClientError> {
        if let Some((hop, before)) = before.split_last() {
            let asked = self.ask(before, hop, Task::Connect, address, Whose::Proxy, unsent)?;
            return Ok(asked.stream);
        }
        let addresses = self.look_up(address, Whose::Proxy)?;
        connect_any(&addresses, self.uplink, self.deadline).map_err(|failure| match failure {
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

    pub(super) fn look_up(
        &self,
        address: &Address,
        whose: Whose,
    ) -> Result<Vec<SocketAddr>, ClientError> {
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
        #[cfg(feature = "socks6")]
        let made = match proxy.socks6() {
            // One that turned out to speak SOCKS5.
            Some(_) => Ok(Client::new(goal, proxy.credentials().cloned())),
            None => Client::for_proxy(proxy, goal),
        };
        #[cfg(not(feature = "socks6"))]
        let made = Client::for_proxy(proxy, goal);
        match made {
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
