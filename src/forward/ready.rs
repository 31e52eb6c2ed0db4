//! A small stock of connections to the remote in use, made before clients need them: each saves a client the way there and
//! back that connecting takes.
//!
//! ```text
//!  a client takes one ──▶ Restock is woken, makes another one ──▶ taken, or too old, or closed by the remote, or the
//!                                                                 remote changed, or no client came for a while
//! ```
//!
//! Whether the remote still listens on one of them shows only when it answers. So one that fails before its first answer
//! costs nobody anything, and says nothing of the remote: see [`Attempt::is_unproven`](super::attempt::Attempt::is_unproven).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::Socket;

use super::route::Route;
use crate::engine::{Cx, Mailbox, Next, Task, TaskId};
use crate::net::{ConnectFailure, TcpExtras, Uplink, start_connect_with};

/// The stock of one forwarder. Clones are the same one.
#[derive(Clone)]
pub struct Ready {
    stock: Arc<Mutex<Stock>>,
    mailbox: Mailbox,
    task: TaskId,
}

struct Stock {
    most: usize,
    /// The oldest first. All of them lead to `remote`.
    held: VecDeque<Held>,
    remote: Option<SocketAddr>,
    /// When a client came last.
    used: Option<Instant>,
    /// How long one is kept: not as long as the remote keeps it.
    age: Duration,
    /// None is made before: the remote does not want them.
    rest_until: Option<Instant>,
}

struct Held {
    socket: Socket,
    since: Instant,
}

impl Ready {
    /// A stock of at most `most`, which [`Ready::restock`] keeps: to be placed as this task.
    #[must_use]
    pub fn new(most: usize, mailbox: Mailbox, task: TaskId) -> Self {
        Self {
            stock: Arc::new(Mutex::new(Stock {
                most: most.min(MOST_READY),
                held: VecDeque::new(),
                remote: None,
                used: None,
                age: OLDEST,
                rest_until: None,
            })),
            mailbox,
            task,
        }
    }

    /// How many there may be.
    #[must_use]
    pub fn most(&self) -> usize {
        self.lock().most
    }

    /// The task that makes connections to whatever remote this route leads to first.
    #[must_use]
    pub fn restock(&self, route: Route, uplink: Uplink, tcp: TcpExtras) -> Restock {
        Restock {
            stock: Arc::clone(&self.stock),
            route,
            uplink,
            tcp,
        }
    }

    /// A connection to this remote, if there is one; another one will be made. It may still be connecting, or be dead
    /// without anybody knowing.
    pub(super) fn take(&self, remote: SocketAddr, now: Instant) -> Option<Socket> {
        let taken = self.lock().take(remote, now);
        self.mailbox.wake(self.task);
        taken
    }

    /// One that was taken was dead: so are the others, most likely.
    pub(super) fn was_stale(&self) {
        let mut stock = self.lock();
        stock.held.clear();
        stock.age = (stock.age / 2).max(YOUNGEST);
    }

    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stock {
    fn take(&mut self, remote: SocketAddr, now: Instant) -> Option<Socket> {
        self.used = Some(now);
        if self.remote != Some(remote) {
            return None;
        }
        while let Some(held) = self.held.pop_front() {
            let is_young = now.saturating_duration_since(held.since) < self.age;
            if is_young && state(&held.socket) == State::Quiet {
                return Some(held.socket);
            }
        }
        None
    }

    /// Throws out what is of no use any more and makes what is missing. When to look again, if at all.
    fn tend(
        &mut self,
        chosen: Option<SocketAddr>,
        now: Instant,
        mut connect: impl FnMut(SocketAddr) -> Result<Socket, ConnectFailure>,
    ) -> Option<Instant> {
        if self.remote != chosen {
            self.held.clear();
            self.remote = chosen;
            self.age = OLDEST;
            self.rest_until = None;
        }
        let is_used = |used: Instant| now.saturating_duration_since(used) < UNUSED;
        let Some(remote) = chosen.filter(|_| self.used.is_some_and(is_used)) else {
            self.held.clear();
            return None;
        };
        self.throw_out(now);
        while self.held.len() < self.most && self.rest_until.is_none_or(|until| now >= until) {
            match connect(remote) {
                Ok(socket) => self.held.push_back(Held { socket, since: now }),
                Err(_) => self.rest_until = Some(now + REST),
            }
        }
        Some(now + LOOK)
    }

    fn throw_out(&mut self, now: Instant) {
        let (age, mut shortest) = (self.age, None);
        self.held.retain(|held| {
            let lived = now.saturating_duration_since(held.since);
            match state(&held.socket) {
                State::Quiet => lived < age,
                State::Closed => {
                    shortest = Some(shortest.map_or(lived, |other: Duration| other.min(lived)));
                    false
                }
                // Whoever speaks first is no SOCKS proxy.
                State::Failed => {
                    shortest = Some(Duration::ZERO);
                    false
                }
            }
        });
        match shortest {
            Some(lived) if lived <= YOUNGEST => self.rest_until = Some(now + REST),
            // The next ones go before the remote is tired of them.
            Some(lived) => self.age = (lived * 3 / 4).clamp(YOUNGEST, age),
            None => {}
        }
    }
}

/// Keeps the stock: looks through it as long as clients come.
pub struct Restock {
    stock: Arc<Mutex<Stock>>,
    route: Route,
    uplink: Uplink,
    tcp: TcpExtras,
}

impl Task for Restock {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let chosen = self.route.choice().addresses().next();
        let (uplink, tcp) = (&self.uplink, self.tcp);
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        Next::Wait(stock.tend(chosen, cx.now, |remote| {
            // Nothing to say yet, so nothing for a SYN.
            start_connect_with(remote, uplink, tcp, &[]).map(|(socket, _)| socket)
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connected, or still connecting, and nothing has come.
    Quiet,
    /// The other end closed it.
    Closed,
    /// It could not be connected, or bytes came that nobody had asked for.
    Failed,
}

fn state(socket: &Socket) -> State {
    match recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN | Errno::INTR) => State::Quiet,
        Ok((0, _)) | Err(Errno::CONNRESET) => State::Closed,
        Ok(_) | Err(_) => State::Failed,
    }
}

/// The most that a stock may have: more clients at a time than that wait for their remote as ever.
pub const MOST_READY: usize = 64;

/// How long a connection is kept that nobody takes. Many proxies close silent clients after 10 to 60 s; how this one does shows.
const OLDEST: Duration = Duration::from_secs(30);

/// A remote that closes them earlier than this doesn't want them.
const YOUNGEST: Duration = Duration::from_secs(1);

/// Then none are made for so long.
const REST: Duration = Duration::from_secs(60);

/// Between two looks at those that are there.
const LOOK: Duration = Duration::from_secs(1);

/// When no client has come for so long, none are kept: a remote need not be called all night.
const UNUSED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::net::start_connect;

    fn connect(address: SocketAddr) -> Result<Socket, ConnectFailure> {
        start_connect(address, &Uplink::default())
    }

    fn stock(most: usize) -> Stock {
        Stock {
            most,
            held: VecDeque::new(),
            remote: None,
            used: None,
            age: OLDEST,
            rest_until: None,
        }
    }

    struct Remote {
        listener: TcpListener,
        address: SocketAddr,
    }

    impl Remote {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            Self { listener, address }
        }

        fn accept(&self) -> TcpStream {
            self.listener.accept().unwrap().0
        }
    }

    /// Until something comes, or its end.
    fn wait(stock: &Stock) {
        for held in &stock.held {
            let mut fds = [PollFd::new(&held.socket, PollFlags::IN)];
            assert_eq!(poll(&mut fds, None), Ok(1));
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_filled_after_use_up_to_its_limit_and_given_up_when_nobody_comes() {
        let (remote, now) = (Remote::new(), Instant::now());
        let mut stock = stock(3);
        let chosen = Some(remote.address);
        assert_eq!(stock.tend(chosen, now, connect), None);
        assert!(stock.held.is_empty(), "nobody came yet");
        assert!(stock.take(remote.address, now).is_none());
        assert_eq!(stock.tend(chosen, now, connect), Some(now + LOOK));
        assert_eq!(stock.held.len(), 3);
        assert!(stock.take(remote.address, now).is_some());
        assert_eq!(stock.held.len(), 2);
        stock.tend(chosen, now, connect);
        assert_eq!(stock.held.len(), 3);
        assert_eq!(stock.tend(chosen, now + UNUSED, connect), None);
        assert!(stock.held.is_empty());
    }

    #[test]
    fn those_of_another_remote_are_neither_given_nor_kept() {
        let (one, other, now) = (Remote::new(), Remote::new(), Instant::now());
        let mut stock = stock(2);
        stock.take(one.address, now);
        stock.tend(Some(one.address), now, connect);
        assert!(stock.take(other.address, now).is_none());
        stock.tend(Some(other.address), now, connect);
        assert!(stock.take(one.address, now).is_none());
        let socket = stock.take(other.address, now).unwrap();
        let peer = socket.peer_addr().unwrap().as_socket();
        assert_eq!(peer, Some(other.address));
        stock.tend(None, now, connect);
        assert!(stock.held.is_empty(), "disconnected");
    }

    #[test]
    fn old_ones_are_replaced_and_closed_ones_not_given() {
        let (remote, now) = (Remote::new(), Instant::now());
        let chosen = Some(remote.address);
        let mut stock = stock(1);
        stock.take(remote.address, now);
        stock.tend(chosen, now, connect);
        let far = remote.accept();
        assert!(stock.take(remote.address, now + OLDEST).is_none());
        stock.tend(chosen, now + OLDEST, connect);
        drop((far, remote.accept()));
        wait(&stock);
        assert!(stock.take(remote.address, now + OLDEST).is_none());
    }

    /// So that the remote's own limit is not met by a client.
    #[test]
    fn a_remote_that_closes_them_is_met_before_that_or_left_alone() {
        let (remote, now) = (Remote::new(), Instant::now());
        let chosen = Some(remote.address);
        let mut stock = stock(1);
        stock.take(remote.address, now);
        stock.tend(chosen, now, connect);
        drop(remote.accept());
        wait(&stock);
        let later = now + 8 * SECOND;
        stock.tend(chosen, later, connect);
        assert_eq!((stock.age, stock.held.len()), (6 * SECOND, 1));
        drop(remote.accept());
        wait(&stock);
        stock.tend(chosen, later + SECOND, connect);
        assert!(stock.held.is_empty(), "it does not want them");
        stock.take(remote.address, later + REST);
        stock.tend(chosen, later + SECOND + REST, connect);
        assert_eq!(stock.held.len(), 1);
        // One that speaks first is no SOCKS proxy.
        remote.accept().write_all(b"220 ").unwrap();
        wait(&stock);
        stock.tend(chosen, later + 2 * SECOND + REST, connect);
        assert!(stock.held.is_empty());
    }
}
