//! The UDP ports that clients of SOCKS 6 send to.
//!
//! A client sends to the address and the port of its TCP connection, so all associations there share one socket. A task of the
//! reactor reads it and puts each datagram into the inbox of the association whose id it has; what has none is
//! dropped. Sockets come with the first association that needs them and go with the last.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::super::dropped::Dropped;
use super::super::sockets::sent;
use super::bell::Bell;
use crate::engine::{BUFFER, Cx, Mailbox, Next, Task, TaskId, Want};
use crate::net::{canonical, open_datagrams, receive_datagram, send_parts, unmapped};
use crate::server::settings::ServerStats;
use crate::wire::socks6::{AssociationId, Decoded, Profile, UdpHeader};

/// All of one server. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Relays {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Bytes in all inboxes together.
    waiting: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    /// By address, at most [`MOST_RELAYS`].
    open: Vec<(SocketAddr, Weak<Relay>)>,
    /// Those that the task does not know yet.
    new: Vec<Weak<Relay>>,
    receiver: Option<(Mailbox, TaskId)>,
    complained: bool,
}

/// One socket.
pub(super) struct Relay {
    socket: UdpSocket,
    inboxes: Mutex<HashMap<AssociationId, Arc<Inbox>>>,
}

/// What has come for one association and was not looked at yet.
pub(super) struct Inbox {
    version: u8,
    client: IpAddr,
    queue: Mutex<Queue>,
    bell: Bell,
    waiting: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Packet>,
    bytes: usize,
}

/// A message, and where it came from.
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) message: Box<[u8]>,
}

/// An association's place at a socket, until it is dropped.
pub(super) struct Place {
    relay: Arc<Relay>,
    inbox: Arc<Inbox>,
    id: AssociationId,
}

impl Relays {
    /// A place for an association at `local`, for datagrams with this id and version that come from this client.
    pub(super) fn enter(
        &self,
        local: SocketAddr,
        client: IpAddr,
        id: AssociationId,
        profile: &Profile,
    ) -> io::Result<Place> {
        let inbox = Arc::new(Inbox {
            version: profile.version,
            client: client.to_canonical(),
            queue: Mutex::default(),
            bell: Bell::new()?,
            waiting: Arc::clone(&self.shared.waiting),
        });
        let relay = self.relay(unmapped(local))?;
        // The same id twice is not to be expected in the life of a machine; the second association goes without.
        if lock(&relay.inboxes).contains_key(&id) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        lock(&relay.inboxes).insert(id, Arc::clone(&inbox));
        Ok(Place { relay, inbox, id })
    }

    fn relay(&self, at: SocketAddr) -> io::Result<Arc<Relay>> {
        let mut state = self.shared.lock();
        let known = state.open.iter().find(|(place, _)| *place == at);
        let attempts = match known.map(|(_, relay)| relay.upgrade()) {
            Some(Some(relay)) => return Ok(relay),
            // Whoever left it last may still be closing it.
            Some(None) => ATTEMPTS,
            None => 1,
        };
        state.open.retain(|(_, relay)| relay.strong_count() > 0);
        let relay = match state.open.len() < MOST_RELAYS {
            true => Relay::bind(at, attempts),
            false => Err(io::ErrorKind::QuotaExceeded.into()),
        };
        let relay = Arc::new(relay.inspect_err(|error| {
            if !state.complained {
                state.complained = true;
                log::warn!("no UDP port for clients of SOCKS 6 at {at}: {error}");
            }
        })?);
        state.complained = false;
        state.open.push((at, Arc::downgrade(&relay)));
        state.new.push(Arc::downgrade(&relay));
        if let Some((mailbox, task)) = &state.receiver {
            mailbox.wake(*task);
        }
        Ok(relay)
    }

    /// Bytes that wait in all inboxes.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// The task that reads them. Without it, nothing comes.
    pub(super) fn receiver(&self, stats: ServerStats) -> Receiver {
        Receiver {
            shared: Arc::clone(&self.shared),
            relays: Vec::new(),
            stats,
            buffer: Vec::new(),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    fn bind(at: SocketAddr, attempts: usize) -> io::Result<Self> {
        let socket = open_datagrams(at)?;
        for attempt in 1.. {
            match socket.bind(&at.into()) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < attempts => {
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            socket: socket.into(),
            inboxes: Mutex::default(),
        })
    }

    /// Puts what has come into the inboxes; whether nothing is left.
    fn deliver(&self, buffer: &mut [u8], stats: &ServerStats) -> bool {
        for _ in 0..DATAGRAMS_A_TURN {
            let (count, from) = match receive_datagram(&self.socket, buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return true,
                // What came of a datagram to one of the clients, whose port is closed.
                Err(_) => continue,
            };
            let packet = buffer.get(..count).unwrap_or_default();
            if let Err(dropped) = self.put(packet, from) {
                stats.dropped(dropped.reason());
            }
        }
        false
    }

    fn put(&self, packet: &[u8], from: SocketAddr) -> Result<(), Dropped> {
        let version = packet.first().copied().unwrap_or_default();
        // Headers are alike in all profiles but for this byte.
        let profile = Profile {
            version,
            ..Profile::DRAFT_12
        };
        let Decoded::Whole { message, .. } = UdpHeader::decode(packet, &profile)? else {
            return Err(Dropped::Short);
        };
        let inbox = lock(&self.inboxes).get(&message.association).cloned();
        let inbox = inbox.ok_or(Dropped::Association)?;
        if inbox.version != version {
            return Err(Dropped::Version);
        }
        if inbox.client != from.ip().to_canonical() {
            return Err(Dropped::Stranger);
        }
        // What lies behind the message is padding.
        let message = packet.get(..message.length.into());
        inbox.put(from, message.ok_or(Dropped::Short)?)
    }
}

impl Inbox {
    fn put(&self, from: SocketAddr, message: &[u8]) -> Result<(), Dropped> {
        let mut queue = lock(&self.queue);
        let in_all = self.waiting.load(Ordering::Relaxed);
        if queue.packets.len() >= MOST_PACKETS
            || queue.bytes + message.len() > MOST_BYTES
            || in_all + message.len() > MOST_BYTES_IN_ALL
        {
            return Err(Dropped::Congested);
        }
        self.waiting.fetch_add(message.len(), Ordering::Relaxed);
        queue.bytes += message.len();
        let message = message.into();
        queue.packets.push_back(Packet { from, message });
        if queue.packets.len() == 1 {
            self.bell.ring();
        }
        Ok(())
    }

    fn take(&self) -> Option<Packet> {
        let mut queue = lock(&self.queue);
        let packet = queue.packets.pop_front();
        match &packet {
            Some(packet) => {
                queue.bytes -= packet.message.len();
                let length = packet.message.len();
                self.waiting.fetch_sub(length, Ordering::Relaxed);
            }
            None => self.bell.hush(),
        }
        packet
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let bytes = lock(&self.queue).bytes;
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Place {
    /// The next one that has come.
    pub(super) fn take(&self) -> Option<Packet> {
        self.inbox.take()
    }

    /// Looks for what has come but is not in the inbox yet.
    pub(super) fn fetch(&self, buffer: &mut [u8], stats: &ServerStats) {
        let _ = self.relay.deliver(buffer, stats);
    }

    pub(super) fn send(
        &self,
        header: &[u8],
        payload: &[u8],
        to: SocketAddr,
    ) -> Result<(), Dropped> {
        sent(send_parts(&self.relay.socket, header, payload, Some(to)))
    }

    /// Readable when something has come.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inbox.bell.descriptor()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.relay.inboxes).remove(&self.id);
    }
}

/// Reads the sockets.
pub(crate) struct Receiver {
    shared: Arc<Shared>,
    relays: Vec<Weak<Relay>>,
    stats: ServerStats,
    buffer: Vec<u8>,
}

impl Task for Receiver {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let mut state = self.shared.lock();
        if state.receiver.is_none() {
            state.receiver = Some((cx.mailbox(), cx.id()));
        }
        let new = std::mem::take(&mut state.new);
        drop(state);
        let mut unwatched = Vec::new();
        for relay in new {
            let Some(open) = relay.upgrade() else {
                continue;
            };
            match cx.watch(open.socket.as_fd(), Want::READ) {
                Ok(()) => self.relays.push(relay),
                Err(error) => {
                    log::warn!("cannot watch a UDP port, trying again: {error}");
                    unwatched.push(relay);
                }
            }
        }
        self.relays.retain(|relay| relay.strong_count() > 0);
        if self.relays.is_empty() {
            self.buffer = Vec::new();
        } else if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER];
        }
        let mut quiet = true;
        for relay in self.relays.iter().filter_map(Weak::upgrade) {
            quiet &= relay.deliver(&mut self.buffer, &self.stats);
        }
        let again = (!unwatched.is_empty()).then(|| cx.now + WATCH_RETRY);
        self.shared.lock().new.extend(unwatched);
        match quiet {
            true => Next::Wait(again),
            false => Next::Again,
        }
    }
}

/// A client's address without what a socket's listing of families adds to it.
pub(super) fn same(one: SocketAddr, other: SocketAddr) -> bool {
    canonical(one) == canonical(other)
}

/// From one socket, before others get their turn.
const DATAGRAMS_A_TURN: usize = 64;

/// Sessions come to them as soon as a worker is free. As much as the kernel has room for by itself; what comes faster is lost, as
/// it is there.
const MOST_PACKETS: usize = 256;
const MOST_BYTES: usize = 128 * 1024;

/// When all workers are busy for long: a router must bear it.
const MOST_BYTES_IN_ALL: usize = 4 * 1024 * 1024;

/// One for each address of this machine that clients connect to. A machine may have whole networks of them.
const MOST_RELAYS: usize = 16;

/// Closing takes as long as a look at the last datagrams, on another thread.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);

const WATCH_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_being_closed_is_waited_for() {
        // Nobody is given one of these who has not asked for it.
        let port = 10_000 + u16::try_from(std::process::id() % 9000).unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let last = UdpSocket::bind(at).unwrap();
        assert!(Relay::bind(at, 1).is_err());
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(5 * PAUSE);
                drop(last);
            });
            assert!(Relay::bind(at, 10_000).is_ok());
        });
    }
}
