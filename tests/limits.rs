//! What limits hold: connections, descriptors, threads, and the patience with clients that take more than their share.

mod common;

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Chunks, End, Observed, Pattern, Peer, SOON, Sockhop, Target, Unanswering, connect,
    dead_address, exchange, observe, reset, socks5_connect, wait_until,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

fn active(status: &Value) -> u64 {
    status["connections"]["active"].as_u64().expect("a number")
}

/// A forwarder to one remote, and where it listens.
#[track_caller]
fn forward(remote: SocketAddr, arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let sockhop = Sockhop::forward(&["--remote", &remote.to_string()]);
    let sockhop = arguments
        .iter()
        .fold(sockhop, |launch, argument| launch.arg(argument));
    let sockhop = sockhop.start();
    let address = sockhop.wait_listening(SOON);
    (sockhop, address)
}

#[test]
fn client_that_floods_a_forwarder_without_remote_is_dropped() {
    let (sockhop, address) = forward(dead_address(), &["--workers", "1"]);
    let mut flood = connect(address).unwrap();
    flood
        .write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 80])
        .unwrap();
    let end = Instant::now() + SOON;
    // It has some seconds to read the refusal and to close, not as long as it keeps sending.
    let chunk = vec![5; 1 << 20];
    while flood.write_all(&chunk).is_ok() {
        assert!(Instant::now() < end, "still fed");
    }
    sockhop.wait_status(|status| active(status) == 0, SOON);
    let polite = connect(address).unwrap();
    (&polite).write_all(&[5, 1, 0]).unwrap();
    assert!(matches!(observe(&polite, SOON), Observed::Bytes(_)));
}

#[test]
fn client_that_breaks_off_while_the_remote_is_dialled_is_forgotten_at_once() {
    let remote = Unanswering::new();
    let (sockhop, address) = forward(remote.address(), &["--connect-timeout", "60s"]);
    for first in [5, b'G'] {
        for length in [3, 1024, 5000] {
            let client = connect(address).unwrap();
            (&client).write_all(&vec![first; length]).unwrap();
            sockhop.wait_status(|status| active(status) == 1, SOON);
            reset(client);
            sockhop.wait_status(|status| active(status) == 0, SOON);
        }
    }
}

fn lines(sockhop: &Sockhop, text: &str) -> usize {
    sockhop
        .log()
        .iter()
        .filter(|line| line.contains(text))
        .count()
}

/// Opens connections and uses each of them, until one is not served.
fn fill(address: SocketAddr) -> (Vec<TcpStream>, TcpStream) {
    let mut served = Vec::new();
    loop {
        let client = connect(address).unwrap();
        (&client).write_all(b"hello").unwrap();
        match observe(&client, Duration::from_millis(500)) {
            Observed::Bytes(_) => served.push(client),
            Observed::Silent => return (served, client),
            other => panic!("{other:?}"),
        }
    }
}

fn lowest_free_descriptor(sockhop: &Sockhop) -> u64 {
    let used: Vec<u64> = std::fs::read_dir(format!("/proc/{}/fd", sockhop.id()))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    (0..)
        .find(|number| !used.contains(number))
        .expect("a number")
}

#[track_caller]
fn quiet_for_a_second(sockhop: &Sockhop, waiting: &TcpStream) {
    let before = sockhop.cpu_ticks();
    assert_eq!(observe(waiting, Duration::from_secs(1)), Observed::Silent);
    let ticks = sockhop.cpu_ticks() - before;
    assert!(ticks <= 10, "{ticks} % busy while there is nothing to do");
}

#[test]
fn when_connections_run_out_new_ones_wait_and_old_ones_go_on() {
    let echo = Target::echo();
    let launch = Sockhop::forward(&["--remote", &echo.address().to_string()]).open_files(64);
    let sockhop = launch.start();
    let address = sockhop.wait_listening(SOON);
    let before = sockhop.fds();
    let (mut served, waiting) = fill(address);
    assert!(served.len() >= 16, "only {}", served.len());
    assert!(sockhop.fds() <= 64);
    let more: Vec<_> = (0..20).map(|_| connect(address).unwrap()).collect();
    quiet_for_a_second(&sockhop, &waiting);
    assert_eq!(exchange(&served[0], b"old").unwrap(), b"old");

    // One leaves, one comes in.
    drop(served.pop());
    assert_eq!(observe(&waiting, SOON), Observed::Bytes(b"hello".into()));
    assert_eq!(lines(&sockhop, "as many as allowed"), 1);
    drop((served, waiting, more));
    sockhop.wait_status(|status| active(status) == 0, SOON);
    let again = connect(address).unwrap();
    assert_eq!(exchange(&again, b"again").unwrap(), b"again");
    sockhop.wait_log("again", SOON);
    drop(again);
    assert!(
        wait_until(SOON, || sockhop.fds() <= before + 2),
        "{} descriptors, were {before}",
        sockhop.fds()
    );
}

#[test]
fn when_the_system_gives_no_descriptor_new_ones_wait_and_old_ones_go_on() {
    let echo = Target::echo();
    let (sockhop, address) = forward(echo.address(), &["--no-probing"]);
    let old = connect(address).unwrap();
    assert_eq!(exchange(&old, b"old").unwrap(), b"old");
    let pid = Pid::from_raw(sockhop.id().try_into().unwrap());
    let limits = getrlimit(Resource::Nofile);
    let end = Instant::now() + SOON;
    let waiting = loop {
        assert!(Instant::now() < end, "still accepting");
        // Numbers from the limit on are given to nobody; the lowest free one is the limit that leaves none.
        let few = Rlimit {
            current: Some(lowest_free_descriptor(&sockhop)),
            maximum: limits.maximum,
        };
        prlimit(pid, Resource::Nofile, few).unwrap();
        let client = connect(address).unwrap();
        (&client).write_all(b"hello").unwrap();
        match observe(&client, Duration::from_millis(300)) {
            Observed::Silent => break client,
            // A descriptor that was just being closed let it in, but not on to the remote.
            Observed::Eof | Observed::Reset => {}
            other => panic!("{other:?}"),
        }
    };
    sockhop.wait_log("cannot accept", SOON);
    let said = sockhop.log().len();
    quiet_for_a_second(&sockhop, &waiting);
    assert_eq!(exchange(&old, b"still").unwrap(), b"still");
    assert_eq!(sockhop.log().len(), said, "said more than once");
    let limits = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    prlimit(pid, Resource::Nofile, limits).unwrap();
    assert_eq!(observe(&waiting, SOON), Observed::Bytes(b"hello".into()));
    sockhop.wait_log("again", SOON);
}

#[test]
fn eleventh_of_ten_connections_waits_for_one_to_end() {
    let echo = Target::echo();
    let (sockhop, address) = forward(echo.address(), &["--max-connections", "10"]);
    let (mut served, waiting) = fill(address);
    assert_eq!(served.len(), 10);
    assert_eq!(active(&sockhop.status()), 10);
    drop(served.pop());
    assert_eq!(observe(&waiting, SOON), Observed::Bytes(b"hello".into()));
    assert_eq!(sockhop.status()["connections"]["refused"], 0);
}

/// A busy forwarder at its limit says so once, not with every connection that takes a place that became free.
#[test]
fn limit_that_is_reached_again_and_again_is_said_once() {
    let echo = Target::echo();
    let (sockhop, address) = forward(echo.address(), &["--max-connections", "4"]);
    let clients: Vec<_> = (0..12)
        .map(|_| {
            thread::spawn(move || {
                // The first of the next round stands in line before the last one ends.
                let mut client = connect(address).unwrap();
                for _ in 0..20 {
                    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
                    let next = connect(address).unwrap();
                    client = next;
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    sockhop.wait_status(|status| active(status) == 0, SOON);
    assert!(sockhop.status()["connections"]["total"].as_u64() >= Some(240));
    assert!(lines(&sockhop, "as many as allowed") <= 3);
}

#[test]
fn one_client_gets_no_more_than_its_share() {
    let echo = Target::echo();
    let (sockhop, address) = forward(echo.address(), &["--max-per-client", "3"]);
    let mut served: Vec<_> = (0..3).map(|_| connect(address).unwrap()).collect();
    for client in &served {
        assert_eq!(exchange(client, b"hello").unwrap(), b"hello");
    }
    let refused = connect(address).unwrap();
    assert!(matches!(
        observe(&refused, SOON),
        Observed::Eof | Observed::Reset
    ));
    let status = sockhop.status();
    assert_eq!(status["connections"]["refused"], 1);
    assert_eq!(
        status["connections"]["refused_by_reason"]["per-client-limit"],
        1
    );
    drop(served.pop());
    sockhop.wait_status(|status| active(status) == 2, SOON);
    let client = connect(address).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
}

/// Every way in which a connection can end gives its place, its descriptors and its thread back.
#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let echo = Target::echo();
    let (sockhop, address) = forward(echo.address(), &["--workers", "8"]);
    let before = (sockhop.fds(), sockhop.threads());
    for round in 0..2_000 {
        let client = connect(address).unwrap();
        match round % 5 {
            0 => {}
            1 => reset(client),
            2 => (&client).write_all(b"never read").unwrap(),
            3 => {
                (&client).write_all(b"x").unwrap();
                reset(client);
            }
            _ => {
                assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
                client.shutdown(Shutdown::Both).unwrap();
            }
        }
    }
    let status = sockhop.wait_status(|status| active(status) == 0, SOON);
    assert_eq!(status["connections"]["parked"], 0);
    assert!(
        wait_until(SOON, || sockhop.fds() <= before.0),
        "{} descriptors, were {}",
        sockhop.fds(),
        before.0
    );
    // Workers retire after ten idle seconds.
    assert!(
        wait_until(2 * SOON, || sockhop.threads() <= before.1),
        "{} threads, were {}",
        sockhop.threads(),
        before.1
    );
    assert!(echo.wait_open(0, SOON));
    let log = sockhop.log();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:?}");
}

#[test]
fn more_busy_streams_than_workers_all_go_on() {
    let pattern = Pattern::new(1);
    let length = 64 << 20;
    let source = Target::source(&pattern, length, Chunks::Fixed(64 * 1024));
    let peer = Peer::valid(Duration::ZERO);
    let (sockhop, address) = forward(peer.address(), &["--workers", "4"]);
    let before = sockhop.threads();
    let streams: Vec<_> = (0..50)
        .map(|_| socks5_connect(address, source.address()).unwrap())
        .collect();
    let readers: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            let pattern = pattern.clone();
            thread::spawn(move || pattern.receive(&stream, 2 << 20))
        })
        .collect();
    // None is finished: each could still go on for long.
    for reader in readers {
        let received = reader.join().unwrap();
        assert_eq!((received.wrong_at, received.end), (None, End::Enough));
    }
    assert!(
        sockhop.threads() <= before + 3,
        "{} threads",
        sockhop.threads()
    );
}
