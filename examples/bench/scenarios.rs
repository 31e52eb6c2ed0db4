//! What is measured.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::fairness;
use crate::growth;
use crate::relays::{Kind, Running};
use crate::report::{Better, Figure};
use crate::roles::{self, ask};

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scenario {
    /// Memory before the first connection.
    Start,
    /// Memory, threads and descriptors of connections that did one round trip and then stay quiet.
    Idle,
    /// 64 bytes there and back on held connections, all at the same time.
    RoundTrip {
        /// How many.
        connections: usize,
    },
    /// Connect, one byte there and back, close.
    Connect,
    /// Many bytes one way.
    Bulk {
        /// Seen from the client.
        direction: Direction,
        /// At the same time; the bytes are shared among them.
        streams: u32,
    },
    /// Clients that connect and say nothing: what they cost, and what others feel of them.
    Silent,
    /// Many bulk streams, more than there are threads for, and a small exchange beside them.
    Fairness,
    /// Memory and processor time as held connections become more.
    Growth,
    /// Datagrams there and back, several on the way at a time.
    Datagrams,
    /// From connecting to the target's first byte, one connection after the other.
    FirstByte {
        /// How long the way between client and server is.
        way: Way,
    },
}

/// Between client and server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// Loopback.
    Near,
    /// As far as [`roles::ROUND_TRIP`].
    Far,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// From the target to the client.
    Down,
    /// From the client to the target.
    Up,
}

/// How much of each scenario.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    idle: usize,
    /// Long enough for a relay to give back what it holds for busy connections only.
    quiet: Duration,
    round_trips: usize,
    connecting: Duration,
    bulk: u64,
    datagrams: u32,
    first_bytes: usize,
    sharing: Duration,
    most_connections: usize,
}

impl Size {
    /// A few minutes.
    pub(crate) const FULL: Self = Self {
        rounds: 3,
        idle: 1000,
        quiet: Duration::from_secs(3),
        round_trips: 30_000,
        connecting: Duration::from_secs(2),
        bulk: 2 * GIB,
        datagrams: 200_000,
        first_bytes: 50,
        sharing: Duration::from_secs(3),
        most_connections: 10_000,
    };
    /// Under a minute.
    pub(crate) const QUICK: Self = Self {
        rounds: 1,
        idle: 1000,
        quiet: Duration::from_millis(1500),
        round_trips: 8_000,
        connecting: Duration::from_millis(600),
        bulk: GIB / 2,
        datagrams: 50_000,
        first_bytes: 15,
        sharing: Duration::from_millis(700),
        most_connections: 100,
    };
}

const GIB: u64 = 1 << 30;

/// Threads that connect at the same time.
const CONNECTING: usize = 8;

/// For the relay to see the end of connections that we have closed.
const SETTLE: Duration = Duration::from_millis(100);

impl Scenario {
    const RELAYING: [Self; 11] = [
        Self::RoundTrip { connections: 1 },
        Self::RoundTrip { connections: 32 },
        Self::Connect,
        Self::Bulk {
            direction: Direction::Down,
            streams: 1,
        },
        Self::Bulk {
            direction: Direction::Down,
            streams: 16,
        },
        Self::Bulk {
            direction: Direction::Up,
            streams: 1,
        },
        Self::Bulk {
            direction: Direction::Up,
            streams: 16,
        },
        Self::Fairness,
        Self::Start,
        Self::Idle,
        Self::Growth,
    ];

    const ASKING: [Self; 3] = [
        Self::FirstByte { way: Way::Far },
        Self::FirstByte { way: Way::Near },
        Self::Connect,
    ];

    /// In the order of the table's rows.
    pub(crate) fn of(kind: Kind) -> Vec<Self> {
        if kind == Kind::Socks6 {
            return Vec::from(Self::ASKING);
        }
        let mut all = Vec::from(Self::RELAYING);
        if kind == Kind::Servers {
            all.extend([Self::Silent, Self::Datagrams]);
        }
        all
    }

    /// Whether it wants a fresh relay and no other one running: two of the same program would share memory, and halve their PSS.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self, Self::Start | Self::Idle | Self::Silent | Self::Growth)
    }

    /// Runs it once with this relay.
    pub(crate) fn measure(&self, relay: &Running, size: &Size) -> io::Result<Vec<(Figure, f64)>> {
        match *self {
            Self::Start => start(relay),
            Self::Idle => idle(relay, size),
            Self::RoundTrip { connections } => {
                self.round_trip(relay, connections, size.round_trips)
            }
            Self::Connect => self.connect(relay, size.connecting),
            Self::Bulk { direction, streams } => self.bulk(relay, direction, streams, size.bulk),
            Self::Silent => silent(relay, size),
            Self::Fairness => fairness::measure(relay, size.sharing),
            Self::Growth => growth::measure(relay, size.most_connections, size.quiet),
            Self::Datagrams => datagrams(relay, size.datagrams),
            Self::FirstByte { way } => self.first_byte(relay, way, size),
        }
    }

    fn round_trip(
        &self,
        relay: &Running,
        connections: usize,
        times: usize,
    ) -> io::Result<Vec<(Figure, f64)>> {
        let streams = relay.open_many(connections)?;
        let times = (times / connections).max(500);
        let all = together(streams, |stream| ping(&stream, times))?;
        let mut all: Vec<f64> = all.into_iter().flatten().collect();
        all.sort_by(f64::total_cmp);
        let at = |percent: usize| all[all.len() * percent / 100] * 1e6;
        Ok(vec![
            (
                Figure::new(format!("{self}: p50"), "µs", Better::Lower),
                at(50),
            ),
            (
                Figure::new(format!("{self}: p99"), "µs", Better::Lower),
                at(99),
            ),
        ])
    }

    fn connect(&self, relay: &Running, length: Duration) -> io::Result<Vec<(Figure, f64)>> {
        let before = cpu(relay)?;
        let begin = Instant::now();
        let counts = together(vec![(); CONNECTING], |()| {
            let mut count = 0_u32;
            while begin.elapsed() < length {
                relay.open(ask::ECHO)?;
                count += 1;
            }
            Ok(count)
        })?;
        let took = begin.elapsed().as_secs_f64();
        let count = f64::from(counts.into_iter().sum::<u32>());
        thread::sleep(SETTLE);
        let mut figures = vec![(
            Figure::new(format!("{self}s"), "/s", Better::Higher),
            count / took,
        )];
        if let (Some(before), Some(after)) = (before, cpu(relay)?) {
            let each = (after - before) / count * 1e6;
            figures.push((
                Figure::new(format!("{self}: CPU each"), "µs", Better::Lower),
                each,
            ));
        }
        Ok(figures)
    }

    fn first_byte(&self, relay: &Running, way: Way, size: &Size) -> io::Result<Vec<(Figure, f64)>> {
        let (times, unit, units) = match way {
            Way::Near => (size.first_bytes * 20, "µs", 1e6),
            Way::Far => (size.first_bytes, "ms", 1e3),
        };
        let mut took = (0..times)
            .map(|_| {
                let begin = Instant::now();
                let stream = match way {
                    Way::Near => relay.open(ask::ECHO)?,
                    Way::Far => relay.open_far(ask::ECHO)?,
                };
                let took = begin.elapsed();
                drop(stream);
                Ok(took.as_secs_f64() * units)
            })
            .collect::<io::Result<Vec<_>>>()?;
        took.sort_by(f64::total_cmp);
        let p50 = took[took.len() / 2];
        let mut figures = vec![(
            Figure::new(format!("{self}: p50"), unit, Better::Lower),
            p50,
        )];
        if let Way::Far = way {
            let round_trips = p50 / (roles::ROUND_TRIP.as_secs_f64() * units);
            let name = format!("{self}: round trips");
            figures.push((Figure::new(name, "", Better::Lower), round_trips));
        }
        Ok(figures)
    }

    fn bulk(
        &self,
        relay: &Running,
        direction: Direction,
        streams: u32,
        bytes: u64,
    ) -> io::Result<Vec<(Figure, f64)>> {
        let each = bytes / u64::from(streams);
        let first = match direction {
            Direction::Down => ask::SOURCE,
            Direction::Up => ask::SINK,
        };
        let open = (0..streams)
            .map(|_| relay.open(first))
            .collect::<io::Result<Vec<_>>>()?;
        let before = cpu(relay)?;
        let begin = Instant::now();
        together(open, |mut stream| {
            stream.write_all(&each.to_be_bytes())?;
            match direction {
                Direction::Down => roles::receive(&stream, each),
                Direction::Up => {
                    roles::send(&stream, each)?;
                    stream.read_exact(&mut [0])
                }
            }
        })?;
        let took = begin.elapsed().as_secs_f64();
        thread::sleep(SETTLE);
        let gib = bytes as f64 / GIB as f64;
        let mut figures = vec![(
            Figure::new(self.to_string(), "GiB/s", Better::Higher),
            gib / took,
        )];
        if let (Some(before), Some(after)) = (before, cpu(relay)?) {
            figures.push((
                Figure::new(format!("{self}: CPU"), "s/GiB", Better::Lower),
                (after - before) / gib,
            ));
        }
        Ok(figures)
    }
}

fn start(relay: &Running) -> io::Result<Vec<(Figure, f64)>> {
    let Some(tree) = &relay.tree else {
        return Ok(Vec::new());
    };
    let usage = tree.usage()?;
    Ok(vec![
        (
            Figure::new("at start: PSS", "KiB", Better::Lower),
            usage.pss,
        ),
        (
            Figure::new("at start: RSS", "KiB", Better::Lower),
            usage.rss,
        ),
    ])
}

fn idle(relay: &Running, size: &Size) -> io::Result<Vec<(Figure, f64)>> {
    let Some(tree) = &relay.tree else {
        return Ok(Vec::new());
    };
    // The first connection's one-time costs are not each connection's.
    drop(relay.open(ask::ECHO)?);
    thread::sleep(SETTLE);
    let before = tree.usage()?;
    let connections = relay.open_many(size.idle)?;
    thread::sleep(size.quiet);
    let after = tree.usage()?;
    for mut stream in &connections {
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
    }
    drop(connections);
    thread::sleep(SETTLE);
    let each = |before: f64, after: f64| (after - before) / size.idle as f64;
    Ok(vec![
        (
            Figure::new("idle: memory each", "KiB", Better::Lower),
            each(before.pss, after.pss),
        ),
        (
            Figure::new("idle: threads each", "", Better::Lower),
            each(before.threads, after.threads),
        ),
        (
            Figure::new("idle: descriptors each", "", Better::Lower),
            each(before.descriptors, after.descriptors),
        ),
    ])
}

fn silent(relay: &Running, size: &Size) -> io::Result<Vec<(Figure, f64)>> {
    let Some(tree) = &relay.tree else {
        return Ok(Vec::new());
    };
    drop(relay.open(ask::ECHO)?);
    thread::sleep(SETTLE);
    let before = tree.usage()?;
    let clients = (0..size.idle)
        .map(|_| relay.connect())
        .collect::<io::Result<Vec<_>>>()?;
    // Whoever is accepted after them shows that they are.
    drop(relay.open(ask::ECHO)?);
    let after = tree.usage()?;
    let mut fresh = (0..FRESH)
        .map(|_| {
            let begin = Instant::now();
            relay.open(ask::ECHO)?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        })
        .collect::<io::Result<Vec<_>>>()?;
    drop(clients);
    thread::sleep(SETTLE);
    fresh.sort_by(f64::total_cmp);
    let each = |before: f64, after: f64| (after - before) / size.idle as f64;
    Ok(vec![
        (
            Figure::new("silent: memory each", "KiB", Better::Lower),
            each(before.pss, after.pss),
        ),
        (
            Figure::new("silent: threads and processes each", "", Better::Lower),
            each(before.threads, after.threads),
        ),
        (
            Figure::new("silent: fresh connection p50", "µs", Better::Lower),
            fresh[FRESH / 2],
        ),
    ])
}

/// Fresh connections beside the silent ones.
const FRESH: usize = 200;

fn datagrams(relay: &Running, count: u32) -> io::Result<Vec<(Figure, f64)>> {
    let way = relay.open_datagrams()?;
    let message = [&way.header[..], &[0x5a; DATAGRAM]].concat();
    let mut buffer = vec![0; 2048];
    let mut exchange = |on_the_way: u32, count: u32| {
        let mut missing = on_the_way;
        let mut back = 0_u32;
        while back < count {
            for _ in 0..missing {
                way.socket.send(&message)?;
            }
            // One that is lost is not waited for: the next error ends it.
            let length = way.socket.recv(&mut buffer)?;
            if length != message.len() {
                return Err(io::Error::other("not the datagram that was sent"));
            }
            back += 1;
            missing = 1;
        }
        Ok(())
    };
    exchange(1, 100)?;
    let begin = Instant::now();
    let alone = count / 10;
    exchange(1, alone)?;
    let each = begin.elapsed().as_secs_f64() / f64::from(alone) * 1e6;
    let before = cpu(relay)?;
    let begin = Instant::now();
    exchange(ON_THE_WAY, count)?;
    let took = begin.elapsed().as_secs_f64();
    // There and back.
    let passed = 2.0 * f64::from(count);
    let mut figures = vec![
        (
            Figure::new("datagrams: round trip", "µs", Better::Lower),
            each,
        ),
        (
            Figure::new("datagrams", "/s", Better::Higher),
            passed / took,
        ),
    ];
    if let (Some(before), Some(after)) = (before, cpu(relay)?) {
        figures.push((
            Figure::new("datagrams: CPU each", "µs", Better::Lower),
            (after - before) / passed * 1e6,
        ));
    }
    Ok(figures)
}

/// Payload of a datagram: about that of a voice packet.
const DATAGRAM: usize = 200;

/// Fewer than any socket's buffer holds, so that none is lost.
const ON_THE_WAY: u32 = 32;

/// Seconds of every round trip but the first few, which warm up.
fn ping(mut stream: &TcpStream, times: usize) -> io::Result<Vec<f64>> {
    let mut message = [0x5a; 64];
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let begin = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        took.push(begin.elapsed().as_secs_f64());
    }
    Ok(took.split_off(times / 20))
}

/// One thread for each of `these`, started at the same moment; the first error, or all results.
fn together<I: Send, O: Send>(
    these: Vec<I>,
    work: impl Fn(I) -> io::Result<O> + Sync,
) -> io::Result<Vec<O>> {
    let gate = Barrier::new(these.len());
    thread::scope(|scope| {
        let (gate, work) = (&gate, &work);
        let threads: Vec<_> = these
            .into_iter()
            .map(|this| {
                scope.spawn(move || {
                    gate.wait();
                    work(this)
                })
            })
            .collect();
        let died = |_| Err(io::Error::other("a client thread died"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(died))
            .collect()
    })
}

fn cpu(relay: &Running) -> io::Result<Option<f64>> {
    relay.tree.as_ref().map(|tree| tree.cpu()).transpose()
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Idle => f.write_str("idle"),
            Self::RoundTrip { connections } => write!(f, "round-trip-{connections}"),
            Self::Connect => f.write_str("connection"),
            Self::Silent => f.write_str("silent"),
            Self::Fairness => f.write_str("fairness"),
            Self::Growth => f.write_str("growth"),
            Self::Datagrams => f.write_str("datagrams"),
            Self::FirstByte { way: Way::Near } => f.write_str("first-byte"),
            Self::FirstByte { way: Way::Far } => {
                write!(f, "first-byte-{}ms", roles::ROUND_TRIP.as_millis())
            }
            Self::Bulk {
                direction: Direction::Down,
                streams,
            } => write!(f, "download-{streams}"),
            Self::Bulk {
                direction: Direction::Up,
                streams,
            } => write!(f, "upload-{streams}"),
        }
    }
}
