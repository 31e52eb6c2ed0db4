//! What a forwarder takes to probe ten thousand addresses of loopback: the real program and real sockets.

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

const KNOWN: u32 = 10_000;

/// Of these so many are proxies, on as many addresses.
const GOOD: u32 = 100;

/// Rates that are compared: the default, and fast.
const RATES: [u32; 2] = [1000, 100];

/// A round at the lowest rate, and some more.
const LONGEST: Duration = Duration::from_secs(180);

/// Prints what a first round of probes took, at several rates.
pub(crate) fn run(room: &Room) -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "\nA first round over {KNOWN} addresses of loopback, {GOOD} of them proxies, the others refuse\n"
    );
    println!(
        "| --probe-rate | round, s | CPU, s | CPU per probe, µs | RSS before, MB | after, MB | clients listen after, s |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let port = good_ones()?;
    let mut list = String::new();
    for n in 0..KNOWN {
        writeln!(list, "{}", SocketAddr::from((at(n), port)))?;
    }
    for rate in RATES {
        println!("{}", round(room, &list, rate)?);
    }
    Ok(())
}

fn round(room: &Room, list: &str, rate: u32) -> Result<String, Box<dyn std::error::Error>> {
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
        let known = status.candidates;
        let probed = known.valid + known.not_listening + known.not_a_proxy;
        if probed + known.unknown > 0 {
            started.get_or_insert_with(Instant::now);
        }
        if !status.listening.is_empty() {
            listening.get_or_insert_with(Instant::now);
        }
        if probed >= u64::from(KNOWN) {
            if known.valid != u64::from(GOOD) {
                return Err(format!("{} are valid, not {GOOD}", known.valid).into());
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
    Ok(format!(
        "| {rate} | {:.1} | {cpu:.2} | {:.0} | {:.1} | {:.1} | {:.1} |",
        took.as_secs_f64(),
        cpu / f64::from(KNOWN) * 1e6,
        before.rss / 1000.0,
        after.rss / 1000.0,
        listening.unwrap_or_default().as_secs_f64(),
    ))
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

/// Every hundredth address accepts; the port is one that nobody else listens on, of all of loopback.
fn good_ones() -> io::Result<u16> {
    let first = TcpListener::bind((at(0), 0))?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    for n in 1..GOOD {
        listeners.push(TcpListener::bind((at(n * (KNOWN / GOOD)), port))?);
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

/// 127.32.0.0 and what follows.
fn at(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7F20_0000 + n)
}
