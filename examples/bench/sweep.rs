//! What a forwarder takes to probe many addresses of loopback: the real program and real sockets.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use sockhop::control::client::Client;
use sockhop::control::messages::{Call, Status};

use crate::process::Room;
use crate::programs;

/// Known addresses and the rates at which they are probed: the default, and fast.
const ROUNDS: [(u32, u32); 5] = [
    (10, 1000),
    (1_000, 1000),
    (10_000, 1000),
    (10_000, 100),
    (100_000, 1000),
];

/// One of so many is a proxy, and at least one.
const ONE_IN: u32 = 100;

/// Proxies at most: each has a listener here.
const GOOD_AT_MOST: u32 = 100;

/// The longest round, and some more.
const LONGEST: Duration = Duration::from_secs(180);

/// What a first round over all known addresses took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) known: u32,
    pub(crate) rate: u32,
    took: Duration,
    /// Seconds.
    pub(crate) cpu: f64,
    /// Kibibytes, before there was an address and at the end.
    rss: [f64; 2],
    listening: Duration,
}

impl Round {
    /// What the known addresses take, in kibibytes.
    pub(crate) fn memory(&self) -> f64 {
        self.rss[1] - self.rss[0]
    }
}

/// Measures all rounds and prints what they took.
pub(crate) fn run(room: &Room) -> Result<Vec<Round>, Box<dyn std::error::Error>> {
    println!(
        "\nA first round over addresses of loopback, one of {ONE_IN} a proxy ({GOOD_AT_MOST} at most), the others refuse\n"
    );
    println!(
        "| known | --probe-rate | round, s | CPU, s | CPU per probe, µs | RSS before, MB | after, MB | clients listen after, s |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let port = good_ones()?;
    let mut rounds = Vec::new();
    for (known, rate) in ROUNDS {
        let mut list = String::new();
        for n in 0..known {
            writeln!(list, "{}", SocketAddr::from((at(n, known), port)))?;
        }
        let round = round(room, &list, known, rate)?;
        let Round { took, cpu, rss, .. } = round;
        println!(
            "| {known} | {rate} | {:.1} | {cpu:.2} | {:.0} | {:.1} | {:.1} | {:.1} |",
            took.as_secs_f64(),
            cpu / f64::from(known) * 1e6,
            rss[0] / 1000.0,
            rss[1] / 1000.0,
            round.listening.as_secs_f64(),
        );
        rounds.push(round);
    }
    Ok(rounds)
}

fn round(
    room: &Room,
    list: &str,
    known: u32,
    rate: u32,
) -> Result<Round, Box<dyn std::error::Error>> {
    let peers = room.file("peers", "")?;
    let control = room.path().join("control");
    let rate_text = rate.to_string();
    let source = format!("file:{}", peers.display());
    let arguments = [
        "forward",
        "--peers",
        &source,
        "--probe-rate",
        &rate_text,
        "--listen",
        "127.0.0.1:0",
        "-q",
        "--control",
    ];
    let mut arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    arguments.push(control.as_os_str());
    let tree = room.program(&programs::sockhop()?, &arguments)?;
    let mut client = connect(&control)?;
    thread::sleep(Duration::from_secs(1));
    let (before, cpu_before) = (tree.usage()?, tree.cpu()?);
    // Put there whole, since it is read when it changes.
    let new = room.file("peers.new", list)?;
    std::fs::rename(new, &peers)?;
    let mut started = None;
    let mut listening = None;
    let begin = Instant::now();
    loop {
        let status: Status = client.call(&Call::Status)?.decode()?;
        let now_known = status.candidates;
        let probed = now_known.valid + now_known.not_listening + now_known.not_a_proxy;
        if probed + now_known.unknown > 0 {
            started.get_or_insert_with(Instant::now);
        }
        if !status.listening.is_empty() {
            listening.get_or_insert_with(Instant::now);
        }
        if probed >= u64::from(known) {
            if now_known.valid != u64::from(good(known)) {
                return Err(format!("{} are valid, not {}", now_known.valid, good(known)).into());
            }
            break;
        }
        if begin.elapsed() > LONGEST {
            return Err(format!("{probed} probed after {LONGEST:?}").into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let started = started.unwrap_or(begin);
    let (took, cpu, after) = (started.elapsed(), tree.cpu()? - cpu_before, tree.usage()?);
    let listening = listening.map(|at| at.saturating_duration_since(started));
    Ok(Round {
        known,
        rate,
        took,
        cpu,
        rss: [before.rss, after.rss],
        listening: listening.unwrap_or_default(),
    })
}

/// How many of the known are proxies.
fn good(known: u32) -> u32 {
    (known / ONE_IN).clamp(1, GOOD_AT_MOST)
}

fn connect(control: &std::path::Path) -> Result<Client, Box<dyn std::error::Error>> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Client::connect(control, Duration::from_secs(5)) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The port is one that nobody else listens on, of all of loopback.
fn good_ones() -> io::Result<u16> {
    let first = TcpListener::bind((good_one(0), 0))?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    for n in 1..GOOD_AT_MOST {
        listeners.push(TcpListener::bind((good_one(n), port))?);
    }
    for listener in listeners {
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                if stream.read_exact(&mut [0; 3]).is_ok() {
                    let _ = stream.write_all(&[5, 0]);
                }
            }
        });
    }
    Ok(port)
}

/// The known addresses, the proxies evenly among them: 127.32.0.0 and what follows.
fn at(n: u32, known: u32) -> Ipv4Addr {
    let apart = known / good(known);
    match (n / apart, n % apart) {
        (place, 0) if place < good(known) => good_one(place),
        _ => Ipv4Addr::from_bits(0x7F20_0000 + n),
    }
}

/// 127.16.0.0 and what follows.
fn good_one(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7F10_0000 + n)
}
