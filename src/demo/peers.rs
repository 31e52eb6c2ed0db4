//! Peers of every kind on loopback, on a reactor of their own.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::page::PageSession;
use crate::engine::{Cx, Mailbox, Next, Reactor, Task};
use crate::handshake::Socks4;
use crate::listen::{Acceptor, Admission, Bound, Intake, IntakeStats, Limits, Listener, Serve};
use crate::listen_address::ListenAddress;
use crate::net::Uplink;
use crate::relay::{Kept, Pipes, RelaySettings};
use crate::resolver::Resolver;
use crate::server::rules::Rules;
use crate::server::users::Users;
use crate::server::{ReplyTiming, ServerSession, ServerSettings, ServerStats};
use crate::threads;

/// The running peers. They end when this is dropped.
pub struct Peers {
    addresses: Vec<SocketAddr>,
    page: SocketAddr,
    mailbox: Mailbox,
    thread: Option<JoinHandle<()>>,
    /// Bound, never listening: a port that refuses and that nobody else gets.
    _dead: Socket,
    /// Listening, never accepting: the kernel connects, nobody answers.
    _silent: Socket,
}

impl Peers {
    /// Starts three proxies at different distances, one that wants a password, a web server, one that says nothing,
    /// and a port that refuses.
    ///
    /// # Errors
    /// No loopback, no descriptor, no thread.
    pub fn start() -> io::Result<Self> {
        let listen = || Listener::bind(&ANY_PORT).map_err(io::Error::other);
        let proxies = [listen()?, listen()?, listen()?];
        let (locked, page) = (listen()?, listen()?);
        let (dead, dead_address) = bound()?;
        let (silent, silent_address) = bound()?;
        silent.listen(8)?;

        let page_address = address(&page)?;
        let mut addresses = Vec::new();
        for listener in proxies.iter().chain([&locked, &page]) {
            addresses.push(address(listener)?);
        }
        addresses.extend([silent_address, dead_address]);

        let started = Arc::new(Started::default());
        let here = Arc::clone(&started);
        let work = Box::new(move || {
            let mut reactor = match Reactor::new(WORKERS) {
                Ok(reactor) => reactor,
                Err(error) => return here.tell(Err(error)),
            };
            let [near, middle, far] = proxies;
            let servers = vec![
                (far, Kind::Proxy(Duration::from_millis(120))),
                (middle, Kind::Proxy(Duration::from_millis(40))),
                (near, Kind::Proxy(Duration::from_millis(5))),
                (locked, Kind::Locked),
                (page, Kind::Page),
            ];
            reactor.spawn(Box::new(Build { servers }));
            here.tell(Ok(reactor.mailbox()));
            if let Err(error) = reactor.run() {
                log::error!("the peers of the demonstration ended: {error}");
            }
        });
        let thread = threads::start("peers", None, work)?;
        let mailbox = started.wait()?;
        Ok(Self {
            addresses,
            page: page_address,
            mailbox,
            thread: Some(thread),
            _dead: dead,
            _silent: silent,
        })
    }

    /// All of them.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The web server, to be fetched from.
    #[must_use]
    pub fn page(&self) -> SocketAddr {
        self.page
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.mailbox.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by its thread.
            let _ = thread.join();
        }
    }
}

/// Where the thread says whether it has started.
#[derive(Default)]
struct Started {
    outcome: Mutex<Option<io::Result<Mailbox>>>,
    told: Condvar,
}

impl Started {
    fn tell(&self, outcome: io::Result<Mailbox>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.told.notify_one();
    }

    fn wait(&self) -> io::Result<Mailbox> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .told
            .wait_timeout_while(outcome, TIMEOUT, |outcome| outcome.is_none());
        let (mut outcome, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let late = || Err(io::ErrorKind::TimedOut.into());
        outcome.take().unwrap_or_else(late)
    }
}

fn address(listener: &Listener) -> io::Result<SocketAddr> {
    match listener.bound() {
        Bound::Tcp(address) => Ok(*address),
        Bound::Unix(_) => Err(io::Error::other("a Unix socket has no port")),
    }
}

fn bound() -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    let address = socket.local_addr()?.as_socket();
    address
        .map(|address| (socket, address))
        .ok_or_else(|| io::Error::other("no address after binding"))
}

enum Kind {
    Proxy(Duration),
    Locked,
    Page,
}

struct Build {
    servers: Vec<(Listener, Kind)>,
}

impl Task for Build {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let intake = Intake {
            admission: Rc::new(Admission::new(Some(Vec::new()))),
            is_peer: Rc::new(|_| false),
            limits: Limits::new(CONNECTIONS, None, cx.mailbox()),
            stats: Rc::new(RefCell::new(IntakeStats::default())),
        };
        let relay = Arc::new(RelaySettings {
            idle: None,
            half_closed_idle: Some(TIMEOUT),
            pipes: Pipes::new(8),
            kept: Kept::default(),
        });
        let resolver = Resolver::default();
        for (listener, kind) in self.servers.drain(..) {
            let proxy = |answer_delay, users| {
                let settings = Arc::new(ServerSettings {
                    users,
                    socks4: Socks4::Allowed,
                    socks4_users: Vec::new(),
                    // The page is on loopback, as everything here.
                    rules: Rules::allow_all(),
                    via: None,
                    #[cfg(feature = "socks6")]
                    socks6: None,
                    reply_timing: ReplyTiming::default(),
                    handshake_timeout: TIMEOUT,
                    connect_timeout: TIMEOUT,
                    uplink: Uplink::default(),
                    tcp: crate::net::TcpExtras::default(),
                    bind_timeout: None,
                    udp: None,
                    answer_delay,
                    relay: Arc::clone(&relay),
                    resolver: resolver.clone(),
                    stats: ServerStats::default(),
                });
                let serve: Serve = Rc::new(move |client| {
                    Box::new(ServerSession::new(
                        client,
                        Arc::clone(&settings),
                        Instant::now(),
                    ))
                });
                serve
            };
            let serve: Serve = match kind {
                Kind::Proxy(delay) => proxy(delay, None),
                // Nobody has a password for it, so nobody gets past the greeting.
                Kind::Locked => proxy(Duration::ZERO, Some(Users::default())),
                Kind::Page => Rc::new(|client| Box::new(PageSession::new(client, Instant::now()))),
            };
            cx.spawn(Box::new(Acceptor::new(listener, intake.clone(), serve)));
        }
        Next::Done
    }
}

const ANY_PORT: ListenAddress = ListenAddress::Tcp(SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    0,
));

const WORKERS: usize = 8;
const CONNECTIONS: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(10);
