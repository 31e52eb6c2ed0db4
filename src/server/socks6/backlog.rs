//! BIND with a backlog: a port whose peers are fetched one by one.
//!
//! ```text
//! first connection ── BIND, backlog ──▶ Handle: keeps the port open, accepts, closes who waits too long
//!                                          │ peers, by way of the Port
//! another one of the session ── BIND ──▶ Fetch: takes a peer, or waits for one
//! ```
//!
//! The port of a session ends with the session, since nobody could fetch its peers any more. Who was fetched stays.
//!
//! The handle accepts two peers at most that nobody has fetched, which takes the descriptors that a connection may have;
//! the others wait in the kernel's queue, whose length is the backlog that was granted.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, PipeReader, PipeWriter};
use std::mem;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::Socket;

use super::Socks6;
use super::answers::Answers;
use crate::engine::{Interests, Turn, TurnContext, Want};
use crate::net::{accept, canonical, is_shortage, read_some, write_all_now};
use crate::server::binding::lets_in;
use crate::server::rules::Rules;
use crate::server::{CLIENT, OTHERS};
use crate::wire::socks6::SessionId;

/// Whose a port is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// The session's.
    Session(SessionId),
    /// For clients that know no sessions: this user's, at this address.
    Client(Option<Box<str>>, Option<IpAddr>),
}

/// The open ports of a server. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Ports(Arc<Mutex<ByAddress>>);

type ByAddress = HashMap<(Holder, SocketAddr), Arc<Port>>;

impl Ports {
    /// The holder's port with this address.
    pub(super) fn find(&self, holder: Holder, address: SocketAddr) -> Option<Arc<Port>> {
        self.lock().get(&(holder, address)).map(Arc::clone)
    }

    /// Closes the ports of a session that has ended, or of all. Their first connections are ended for that: it wakes who
    /// keeps them open.
    pub(super) fn close_sessions(&self, only: Option<&SessionId>) {
        for ((holder, _), port) in &*self.lock() {
            match holder {
                Holder::Session(id) if only.is_none_or(|only| only == id) => {
                    port.lock().closed = true;
                    let _ = port.client.shutdown(Shutdown::Both);
                }
                _ => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ByAddress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ports({})", self.lock().len())
    }
}

/// Where the peers of a port meet those who fetch them. There are never both.
pub(super) struct Port {
    /// The first connection.
    client: Socket,
    meeting: Mutex<Meeting>,
}

#[derive(Default)]
struct Meeting {
    peers: VecDeque<Peer>,
    fetchers: VecDeque<Fetcher>,
    closed: bool,
}

/// A peer that nobody has fetched yet.
struct Peer {
    socket: Socket,
    address: SocketAddr,
    until: Instant,
}

/// Somebody who waits for a peer; woken when the pipe is dropped.
struct Fetcher {
    place: Weak<Place>,
    _wake: PipeWriter,
}

/// Where a peer is put for one who waits.
type Place = Mutex<Found>;

/// Who was found at a port.
pub(in crate::server) enum Found {
    /// Nobody so far.
    Nobody,
    /// A peer.
    Peer(Socket, SocketAddr),
    /// The port was closed.
    Closed,
}

/// Why nobody can be fetched.
pub(super) enum Unfetched {
    /// The port was closed.
    Closed,
    /// Too many wait already, or there is no descriptor.
    TooMany,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a peer, or a place in the queue of those who wait for one.
    pub(super) fn fetch(&self) -> Result<Fetch, Unfetched> {
        let mut meeting = self.lock();
        if meeting.closed {
            return Err(Unfetched::Closed);
        }
        if let Some(peer) = meeting.peers.pop_front() {
            return Ok(Fetch {
                place: Arc::new(Mutex::new(Found::Peer(peer.socket, peer.address))),
                woken: None,
            });
        }
        let left = |fetcher: &Fetcher| fetcher.place.strong_count() > 0;
        meeting.fetchers.retain(left);
        if meeting.fetchers.len() >= MOST_FETCHERS {
            return Err(Unfetched::TooMany);
        }
        let (reader, writer) = io::pipe().map_err(|_| Unfetched::TooMany)?;
        let place = Arc::new(Mutex::new(Found::Nobody));
        meeting.fetchers.push_back(Fetcher {
            place: Arc::downgrade(&place),
            _wake: writer,
        });
        Ok(Fetch {
            place,
            woken: Some(reader),
        })
    }

    /// Gives the peer to the first who waits, or keeps it until then.
    fn arrived(&self, socket: Socket, address: SocketAddr, until: Instant) {
        let mut meeting = self.lock();
        while let Some(fetcher) = meeting.fetchers.pop_front() {
            if let Some(place) = fetcher.place.upgrade() {
                *lock(&place) = Found::Peer(socket, address);
                return;
            }
        }
        meeting.peers.push_back(Peer {
            socket,
            address,
            until,
        });
    }

    /// Closes those whose time is over; how many are left, and when the next one's is.
    fn expire(&self, now: Instant) -> (usize, Option<Instant>) {
        let mut meeting = self.lock();
        meeting.peers.retain(|peer| now < peer.until);
        let next = meeting.peers.front().map(|peer| peer.until);
        (meeting.peers.len(), next)
    }
}

/// Waits for a peer of a port.
pub(in crate::server) struct Fetch {
    place: Arc<Place>,
    woken: Option<PipeReader>,
}

impl Fetch {
    /// What was found; a peer once.
    pub(in crate::server) fn take(&self) -> Found {
        mem::replace(&mut lock(&self.place), Found::Nobody)
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        if let Some(woken) = &self.woken {
            interests.watch(OTHERS, woken.as_fd(), Want::READ);
        }
    }
}

/// The first connection, with which the port lives.
pub(in crate::server) struct Handle {
    answers: Box<Answers>,
    unsent: Vec<u8>,
    listener: Socket,
    port: Arc<Port>,
    key: (Holder, SocketAddr),
    ports: Ports,
    /// For a peer to be fetched.
    patience: Duration,
    /// No peers are accepted before.
    paused: Option<Instant>,
    watches: bool,
    /// How many were let in.
    pub(in crate::server) let_in: u64,
}

impl Handle {
    /// Opens the port to those who fetch, at the address where the listener listens.
    pub(super) fn new(
        client: Socket,
        answers: Box<Answers>,
        unsent: Vec<u8>,
        (listener, bound): (Socket, SocketAddr),
        holder: Holder,
        ports: Ports,
        patience: Duration,
    ) -> Self {
        let port = Arc::new(Port {
            client,
            meeting: Mutex::default(),
        });
        let key = (holder, bound);
        ports.lock().insert(key.clone(), Arc::clone(&port));
        Self {
            answers,
            unsent,
            listener,
            port,
            key,
            ports,
            patience,
            paused: None,
            watches: true,
            let_in: 0,
        }
    }

    pub(in crate::server) fn turn(
        &mut self,
        shared: &Socks6,
        rules: &Rules,
        cx: &mut TurnContext<'_>,
    ) -> Turn {
        let Ok(quiet) = self.client_is_there(cx) else {
            return Turn::Done;
        };
        let end = match &self.key.0 {
            Holder::Client(..) => None,
            Holder::Session(id) => match shared.session_end(id, cx.now) {
                None => return Turn::Done,
                end => end,
            },
        };
        let (mut kept, mut next) = self.port.expire(cx.now);
        self.paused = self.paused.filter(|until| cx.now < *until);
        let mut tries = 0;
        while kept < MOST_KEPT && self.paused.is_none() {
            tries += 1;
            if tries > TRIES_A_TURN {
                return Turn::Again;
            }
            match accept(&self.listener) {
                Ok((socket, Some(peer))) => {
                    let peer = canonical(peer);
                    // With port 0, which stands for any, as in SOCKS 5.
                    if !lets_in(SocketAddr::new(peer.ip(), 0), rules) {
                        continue;
                    }
                    self.let_in += 1;
                    self.answers.notify(peer.into(), &mut self.unsent);
                    self.port.arrived(socket, peer, cx.now + self.patience);
                    (kept, next) = self.port.expire(cx.now);
                }
                Ok((_, None)) => {}
                Err(error) if is_shortage(&error) => self.paused = Some(cx.now + PAUSE),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => break,
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
                    _ => return Turn::Done,
                },
            }
        }
        if self.unsent.len() > MOST_UNSENT
            || write_all_now(&self.port.client, &mut self.unsent).is_err()
        {
            return Turn::Done;
        }
        if !quiet {
            return Turn::Again;
        }
        self.watches = kept < MOST_KEPT && self.paused.is_none();
        // Who fetches one makes room, but can't wake us.
        let look = (kept >= MOST_KEPT).then(|| cx.now + LOOK_AGAIN);
        let until = [next, self.paused, look, end].into_iter().flatten().min();
        Turn::Wait { until }
    }

    /// Nothing is carried here: what the client sends is dropped. Whether it sends nothing more.
    fn client_is_there(&mut self, cx: &mut TurnContext<'_>) -> Result<bool, ()> {
        let hung_up = cx.ready.hung_up(CLIENT);
        for _ in 0..READS_A_TURN {
            match read_some(&self.port.client, cx.buffer_up_to(DISCARDED)) {
                Ok(Some([])) | Err(_) => return Err(()),
                Ok(Some(_)) => {}
                Ok(None) if hung_up => return Err(()),
                Ok(None) => return Ok(true),
            }
        }
        Ok(false)
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = Want {
            read: true,
            write: !self.unsent.is_empty(),
        };
        interests.watch(CLIENT, self.port.client.as_fd(), want);
        if self.watches {
            interests.watch(OTHERS, self.listener.as_fd(), Want::READ);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.ports.lock().remove(&self.key);
        let mut meeting = self.port.lock();
        meeting.closed = true;
        meeting.peers.clear();
        for fetcher in mem::take(&mut meeting.fetchers) {
            if let Some(place) = fetcher.place.upgrade() {
                *lock(&place) = Found::Closed;
            }
        }
    }
}

fn lock(place: &Place) -> MutexGuard<'_, Found> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest queue that is granted: that of most systems' default.
pub(super) const MOST_BACKLOG: u16 = 128;

/// Accepted and not fetched: with client and listener, the four descriptors of a wide connection.
const MOST_KEPT: usize = 2;

/// Who waits for a peer of one port, each with a connection of its own.
const MOST_FETCHERS: usize = 64;

/// Short for a person, rare for a machine; only while two peers wait to be fetched.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Without descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Somebody who knocks all the time doesn't keep the others from their turns.
const TRIES_A_TURN: usize = 16;

/// What a client still sends is read in pieces of this size and dropped.
const DISCARDED: usize = 4096;

/// No more of them at once.
const READS_A_TURN: usize = 16;

/// Notices of peers, for a client that reads none of them.
const MOST_UNSENT: usize = 4096;
