//! Many clients of a forwarder for a long time, over servers that die and come back: what it uses must not grow, and not a byte may be lost.
//!
//! ```text
//! 2,000 clients ---> sockhop forward ---> sockhop serve, four of them ---> bench --role target, which sends everything back
//! ```
//!
//! At any time one of the servers is well. A client has a fault when its handshake fails, when a byte comes back wrong, or when its
//! stream ends early though no server died just before: a stream on a server that is killed is lost by nature.

use std::error::Error;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{Room, Tree, Usage};
use crate::programs;
use crate::relays::{self, CONNECT};
use crate::roles::ask;

/// Runs it, and prints a line every now and then.
pub(crate) fn run(room: &Room, length: Duration) -> Result<(), Box<dyn Error>> {
    let (_target, target_port) = room.role("target", &[])?;
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(Server::start(room, relays::free_port()?)?);
    }
    let port = relays::free_port()?;
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let mut forwarder = programs::sockhop_forward_to_peers(room, port, &ports)?;
    forwarder.wait_listening(port)?;
    let shared = Arc::new(Shared {
        address: (Ipv4Addr::LOCALHOST, port).into(),
        target_port,
        ..Shared::default()
    });

    // What a first crowd leaves behind is no growth: stacks and arenas that are used again.
    println!("at first            {}", Shown(forwarder.usage()?));
    let mut next = Chaos::default();
    crowd(&shared, WARM_UP, |now| {
        next.go_on(now, &mut servers, room, &shared)
    })?;
    let before = at_rest(&forwarder)?;
    println!("after a first crowd {}", Shown(before));

    let started = Instant::now();
    let mut said = started;
    crowd(&shared, length, |now| {
        next.go_on(now, &mut servers, room, &shared)?;
        if now.saturating_duration_since(said) >= SAY_EVERY {
            said = now;
            let elapsed = now.saturating_duration_since(started).as_secs();
            println!("{elapsed:5} s  {shared}  {}", Shown(forwarder.usage()?));
        }
        Ok(())
    })?;
    println!("{shared}");
    println!("at rest before      {}", Shown(before));
    println!("at rest after       {}", Shown(at_rest(&forwarder)?));
    match shared.faults.load(Ordering::Relaxed) {
        0 => Ok(()),
        faults => Err(format!("{faults} faults").into()),
    }
}

/// Clients come and go for a while; meanwhile something else may be done.
fn crowd(
    shared: &Arc<Shared>,
    length: Duration,
    mut meanwhile: impl FnMut(Instant) -> io::Result<()>,
) -> io::Result<()> {
    let end = Instant::now() + length;
    shared.over.store(false, Ordering::Relaxed);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let shared = Arc::clone(shared);
        let client = thread::Builder::new().stack_size(CLIENT_STACK);
        clients.push(client.spawn(move || {
            let mut dice = fastrand::Rng::with_seed(number);
            thread::sleep(Duration::from_millis(dice.u64(..5_000)));
            while !shared.over.load(Ordering::Relaxed) {
                shared.one(&mut dice);
            }
        })?);
    }
    let mut result = Ok(());
    while Instant::now() < end && result.is_ok() {
        thread::sleep(Duration::from_millis(100));
        result = meanwhile(Instant::now());
    }
    shared.over.store(true, Ordering::Relaxed);
    for client in clients {
        let _ = client.join();
    }
    result
}

/// What it uses when nobody has been there for a while: its idle threads have ended by then.
fn at_rest(forwarder: &Tree) -> io::Result<Usage> {
    thread::sleep(REST);
    forwarder.usage()
}

/// What all clients share.
struct Shared {
    address: SocketAddr,
    target_port: u16,
    over: AtomicBool,
    active: AtomicUsize,
    served: AtomicU64,
    bytes: AtomicU64,
    faults: AtomicU64,
    /// Streams that ended early just after a server was killed.
    fell: AtomicU64,
    killed: Mutex<Option<Instant>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            target_port: 0,
            over: AtomicBool::default(),
            active: AtomicUsize::default(),
            served: AtomicU64::default(),
            bytes: AtomicU64::default(),
            faults: AtomicU64::default(),
            fell: AtomicU64::default(),
            killed: Mutex::default(),
        }
    }
}

impl Shared {
    /// One connection, from beginning to end.
    fn one(&self, dice: &mut fastrand::Rng) {
        self.active.fetch_add(1, Ordering::Relaxed);
        let result = self.open().map_err(Fault::Opening).and_then(|stream| {
            self.talk(&stream, dice)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => Fault::WrongBytes,
                    _ => Fault::Broken(error),
                })
        });
        self.active.fetch_sub(1, Ordering::Relaxed);
        match result {
            Ok(()) => {
                self.served.fetch_add(1, Ordering::Relaxed);
            }
            Err(Fault::Broken(_)) if self.was_killed() => {
                self.fell.fetch_add(1, Ordering::Relaxed);
            }
            Err(fault) => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                eprintln!("bench: {fault}");
            }
        }
    }

    fn open(&self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        relays::ask(&mut stream, CONNECT, self.target_port)?;
        Ok(stream)
    }

    /// Most are short, some wait, a few are bulk.
    fn talk(&self, mut stream: &TcpStream, dice: &mut fastrand::Rng) -> io::Result<()> {
        stream.write_all(&[ask::ECHO])?;
        stream.read_exact(&mut [0])?;
        match dice.u8(..100) {
            0..60 => {
                for _ in 0..dice.u8(1..20) {
                    self.exchange(stream, 64, dice)?;
                    self.pause(stream, dice.u64(..500))?;
                }
            }
            60..95 => {
                self.pause(stream, dice.u64(..30_000))?;
                self.exchange(stream, 64, dice)?;
            }
            _ => {
                for _ in 0..dice.usize(1..256) {
                    self.exchange(stream, PIECE, dice)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes go and must come back as they were.
    fn exchange(
        &self,
        mut stream: &TcpStream,
        length: usize,
        dice: &mut fastrand::Rng,
    ) -> io::Result<()> {
        let mut bytes = vec![0; length];
        dice.fill(&mut bytes);
        stream.write_all(&bytes)?;
        let mut back = vec![0; length];
        stream.read_exact(&mut back)?;
        if back != bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    }

    /// So many milliseconds, or until all is over; an end of the stream is noticed when it comes.
    fn pause(&self, stream: &TcpStream, milliseconds: u64) -> io::Result<()> {
        let end = Instant::now() + Duration::from_millis(milliseconds);
        while !self.over.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            stream.set_read_timeout(Some(left.min(Duration::from_millis(500))))?;
            match stream.peek(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        stream.set_read_timeout(Some(LIMIT))
    }

    fn was_killed(&self) -> bool {
        let killed = *self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        killed.is_some_and(|at| at.elapsed() < AFTERMATH)
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        write!(
            f,
            "{} active, {} served, {} MiB there and back, {} fell with a server, {} faults",
            self.active.load(Ordering::Relaxed),
            of(&self.served),
            of(&self.bytes) >> 20,
            of(&self.fell),
            of(&self.faults)
        )
    }
}

enum Fault {
    Opening(io::Error),
    WrongBytes,
    Broken(io::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening(error) => write!(f, "a client was not served: {error}"),
            Self::WrongBytes => f.write_str("bytes came back that were not sent"),
            Self::Broken(error) => write!(f, "a stream broke though its server lived: {error}"),
        }
    }
}

struct Server {
    port: u16,
    /// `None` while it is dead.
    tree: Option<Tree>,
}

impl Server {
    fn start(room: &Room, port: u16) -> io::Result<Self> {
        let mut tree = programs::sockhop_serve(room, &format!("127.0.0.1:{port}"))?;
        tree.wait_listening(port)?;
        Ok(Self {
            port,
            tree: Some(tree),
        })
    }
}

/// Kills a server, or stops it for a while, one at a time and each in its turn.
#[derive(Default)]
struct Chaos {
    at: Option<Instant>,
    turn: usize,
    is_down: bool,
}

impl Chaos {
    fn go_on(
        &mut self,
        now: Instant,
        servers: &mut [Server],
        room: &Room,
        shared: &Shared,
    ) -> io::Result<()> {
        if now < *self.at.get_or_insert(now + CALM) {
            return Ok(());
        }
        self.at = Some(now + if self.is_down { CALM } else { DOWN });
        let server = &mut servers[self.turn % SERVERS];
        let is_stop = self.turn % 3 == 2;
        match (self.is_down, is_stop) {
            (false, true) => server
                .tree
                .as_ref()
                .map_or(Ok(()), |tree| tree.signal(Signal::STOP))?,
            (true, true) => server
                .tree
                .as_ref()
                .map_or(Ok(()), |tree| tree.signal(Signal::CONT))?,
            (false, false) => {
                *shared.killed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
                server.tree = None;
            }
            (true, false) => *server = Server::start(room, server.port)?,
        }
        if self.is_down {
            self.turn += 1;
        }
        self.is_down = !self.is_down;
        Ok(())
    }
}

struct Shown(Usage);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage {
            pss,
            rss,
            threads,
            descriptors,
        } = self.0;
        write!(
            f,
            "PSS {pss:.0} KiB, RSS {rss:.0} KiB, {threads} threads, {descriptors} descriptors"
        )
    }
}

const CLIENTS: u64 = 2_000;

/// Of them at most one is down at a time.
const SERVERS: usize = 4;

/// A client thread does little.
const CLIENT_STACK: usize = 64 * 1024;

/// What is sent in one piece before it is read back: less than the buffers on the way hold, so that nobody waits for each other.
const PIECE: usize = 16 * 1024;

/// No client waits longer for anything; a server that is stopped goes on before that.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two misfortunes, and how long one lasts.
const CALM: Duration = Duration::from_secs(4);
const DOWN: Duration = Duration::from_secs(3);

/// A stream that breaks in this time after a server was killed was on that server.
const AFTERMATH: Duration = Duration::from_secs(2);

const WARM_UP: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(15);
const SAY_EVERY: Duration = Duration::from_secs(30);
