//! Bytes through the running forwarder: exact, both ways, to their end, whatever the two sides do.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Chunks, End, Observed, Pattern, Peer, Received, SOON, Sockhop, Target, connect, exchange,
    observe, reset, socks5_connect, wait_until,
};
use serde_json::Value;

const SPLICE: &[&str] = &[];
const COPY: &[&str] = &["--no-splice"];

/// A forwarder to one remote, and where it listens. The remote sees clients only, no probes.
#[track_caller]
fn forward(remote: SocketAddr, arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let launch = Sockhop::forward(&["--remote", &remote.to_string(), "--no-probing"]);
    let launch = arguments
        .iter()
        .fold(launch, |launch, argument| launch.arg(argument));
    let sockhop = launch.start();
    let address = sockhop.wait_listening(SOON);
    (sockhop, address)
}

/// A client and the target that it reached through a forwarder, which takes the first byte of a plain stream to dial.
struct Pair {
    sockhop: Sockhop,
    client: TcpStream,
    target: TcpStream,
    _targets: (Target, Receiver<TcpStream>),
}

#[track_caller]
fn pair(arguments: &[&str]) -> Pair {
    let (target, accepted) = Target::manual();
    let (sockhop, address) = forward(target.address(), arguments);
    let client = connect(address).unwrap();
    (&client).write_all(b"G").unwrap();
    let mut far = accepted.recv_timeout(SOON).unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    far.set_write_timeout(Some(SOON)).unwrap();
    far.read_exact(&mut [0]).unwrap();
    Pair {
        sockhop,
        client,
        target: far,
        _targets: (target, accepted),
    }
}

fn bytes_of(status: &Value) -> (u64, u64) {
    let count = |way: &str| status["bytes"][way].as_u64().expect("a number");
    (count("up"), count("down"))
}

/// Both ways at once between two ends, each of which sends `length` bytes and ends.
#[track_caller]
fn both_ways(client: &TcpStream, target: &TcpStream, length: u64, most: usize) {
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let send = |pattern: &Pattern, stream: &TcpStream, seed: u64| {
        pattern
            .send(stream, length, Chunks::Random { seed, most })
            .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| send(&up, client, 3));
        scope.spawn(|| send(&down, target, 4));
        let at_target = scope.spawn(|| up.receive(target, u64::MAX));
        assert_eq!(down.receive(client, u64::MAX), Received::whole(length));
        assert_eq!(at_target.join().unwrap(), Received::whole(length));
    });
}

#[test]
fn bulk_is_exact_both_ways_at_once() {
    for arguments in [SPLICE, COPY] {
        let pair = pair(arguments);
        let length = 32 << 20;
        both_ways(&pair.client, &pair.target, length, 300_000);
        let status = pair
            .sockhop
            .wait_status(|status| status["connections"]["active"] == 0, SOON);
        assert_eq!(bytes_of(&status), (length + 1, length));
    }
}

#[test]
#[ignore = "moves 4 GiB"]
fn gibibytes_are_exact_both_ways_at_once() {
    for arguments in [SPLICE, COPY] {
        let pair = pair(arguments);
        both_ways(&pair.client, &pair.target, 1 << 30, 300_000);
    }
}

#[test]
fn bulk_through_a_socks_proxy_is_exact() {
    let length = 32 << 20;
    let pattern = Pattern::new(5);
    for arguments in [SPLICE, COPY] {
        let peer = Peer::valid(Duration::ZERO);
        let (_sockhop, address) = forward(peer.address(), arguments);
        let source = Target::source(
            &pattern,
            length,
            Chunks::Random {
                seed: 6,
                most: 100_000,
            },
        );
        let stream = socks5_connect(address, source.address()).unwrap();
        assert_eq!(pattern.receive(&stream, u64::MAX), Received::whole(length));

        let (sink, reports) = Target::sink(&pattern);
        let stream = socks5_connect(address, sink.address()).unwrap();
        let chunks = Chunks::Random {
            seed: 7,
            most: 100_000,
        };
        pattern.send(&stream, length, chunks).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reports.recv_timeout(SOON).unwrap(), Received::whole(length));
        // The sink answers after the end: the way back was still open.
        assert_eq!(observe(&stream, SOON), Observed::Bytes(vec![1]));
        assert_eq!(observe(&stream, SOON), Observed::Eof);
    }
}

#[test]
fn half_close_in_either_direction_keeps_the_other() {
    let pattern = Pattern::new(8);
    for arguments in [SPLICE, COPY] {
        for client_first in [true, false] {
            let pair = pair(arguments);
            let (first, second) = if client_first {
                (&pair.client, &pair.target)
            } else {
                (&pair.target, &pair.client)
            };
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(observe(second, SOON), Observed::Eof);
            thread::scope(|scope| {
                scope.spawn(|| {
                    pattern
                        .send(second, 5_000_000, Chunks::Fixed(70_000))
                        .unwrap();
                    second.shutdown(Shutdown::Write).unwrap();
                });
                assert_eq!(pattern.receive(first, u64::MAX), Received::whole(5_000_000));
            });
        }
    }
}

#[test]
fn reset_of_either_side_is_a_reset_for_the_other() {
    for arguments in [SPLICE, COPY] {
        for client_first in [true, false] {
            let pair = pair(arguments);
            // In the middle of a transfer, so that with splice(2) it is the pipe that breaks.
            let pattern = Pattern::new(9);
            let (first, second) = if client_first {
                (pair.client, pair.target)
            } else {
                (pair.target, pair.client)
            };
            thread::scope(|scope| {
                scope.spawn(|| {
                    pattern
                        .send(&first, 2_000_000, Chunks::Fixed(100_000))
                        .unwrap()
                });
                let received = pattern.receive(&second, 2_000_000);
                assert_eq!((received.wrong_at, received.end), (None, End::Enough));
            });
            reset(first);
            assert_eq!(observe(&second, SOON), Observed::Reset);
            pair.sockhop
                .wait_status(|status| status["connections"]["active"] == 0, SOON);
        }
    }
}

#[test]
fn side_that_does_not_read_costs_little_and_leaves_the_other_way_open() {
    for arguments in [SPLICE, COPY] {
        let mut pair = pair(arguments);
        let before = pair.sockhop.rss();
        let chunk = vec![0; 1 << 20];
        pair.client
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut sent = 0;
        while let Ok(count) = pair.client.write(&chunk) {
            sent += count;
            assert!(sent < 1 << 30, "somebody keeps all of it");
        }
        for round in 0..200 {
            pair.target.write_all(&[round; 1000]).unwrap();
            let mut bytes = [0; 1000];
            pair.client.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, [round; 1000]);
        }
        let grown = pair.sockhop.rss().saturating_sub(before);
        assert!(grown < 2 << 20, "{grown} bytes for one stuck stream");
        // It waits without a thread, and without work.
        pair.sockhop
            .wait_status(|status| status["connections"]["parked"] == 1, SOON);
        let ticks = pair.sockhop.cpu_ticks();
        assert_eq!(
            observe(&pair.client, Duration::from_millis(500)),
            Observed::Silent
        );
        assert!(pair.sockhop.cpu_ticks() - ticks <= 10);
    }
}

#[test]
fn small_messages_are_not_held_back() {
    let echo = Target::echo();
    for arguments in [SPLICE, COPY] {
        let (_sockhop, address) = forward(echo.address(), arguments);
        let client = connect(address).unwrap();
        let start = Instant::now();
        for round in 0..200 {
            let message = vec![b'm'; 1 + round];
            assert_eq!(exchange(&client, &message).unwrap(), message);
        }
        // One delayed acknowledgement is 40 ms: two hundred of them are eight seconds.
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn data_behind_the_handshake_in_one_segment_arrives() {
    let (echo, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let (_sockhop, address) = forward(peer.address(), &[]);
    let mut client = connect(address).unwrap();
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1];
    bytes.extend(echo.address().port().to_be_bytes());
    bytes.extend(b"payload");
    client.write_all(&bytes).unwrap();
    let mut answer = [0; 2 + 10 + 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[12..], b"payload");
}

/// More than is kept of a client's first bytes, before the remote has said a word.
#[test]
fn client_that_sends_much_before_the_answer_loses_nothing() {
    let (echo, peer) = (
        Target::echo(),
        Peer::answers_after(Duration::from_millis(300)),
    );
    let (_sockhop, address) = forward(peer.address(), &[]);
    let mut client = connect(address).unwrap();
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1];
    bytes.extend(echo.address().port().to_be_bytes());
    let mut payload = vec![0; 100_000];
    Pattern::new(10).fill(0, &mut payload);
    bytes.extend(&payload);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), 12 + payload.len());
    assert!(answer[12..] == payload);
}

#[test]
fn idle_stream_is_closed_after_its_limit() {
    let pair = pair(&["--idle-timeout", "300ms"]);
    let start = Instant::now();
    assert_eq!(observe(&pair.client, SOON), Observed::Eof);
    assert_eq!(observe(&pair.target, SOON), Observed::Eof);
    assert!(start.elapsed() < Duration::from_secs(5));
    pair.sockhop
        .wait_status(|status| status["connections"]["active"] == 0, SOON);
}

#[test]
fn stream_in_use_outlives_the_idle_limit() {
    let mut pair = pair(&["--idle-timeout", "1s"]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        // Nothing comes back: the wait is the pause between the messages.
        (&pair.client).write_all(b"x").unwrap();
        pair.target.read_exact(&mut [0]).unwrap();
        assert_eq!(
            observe(&pair.client, Duration::from_millis(100)),
            Observed::Silent
        );
    }
}

#[test]
fn half_closed_stream_is_closed_after_its_limit() {
    let pair = pair(&["--half-close-timeout", "500ms"]);
    assert_eq!(
        observe(&pair.client, Duration::from_millis(700)),
        Observed::Silent
    );
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(observe(&pair.target, SOON), Observed::Eof);
    // Silent for longer than the limit before, but not since its end.
    (&pair.target).write_all(b"answer").unwrap();
    assert_eq!(
        observe(&pair.client, SOON),
        Observed::Bytes(b"answer".into())
    );
    assert_eq!(observe(&pair.client, SOON), Observed::Eof);
    pair.sockhop
        .wait_status(|status| status["connections"]["active"] == 0, SOON);
}

#[test]
fn status_counts_every_byte() {
    let (echo, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let (sockhop, address) = forward(peer.address(), &[]);
    for count in 1..=3 {
        let stream = socks5_connect(address, echo.address()).unwrap();
        assert_eq!(exchange(&stream, &[7; 1000]).unwrap(), [7; 1000]);
        // Greeting and request up, both answers down.
        let (up, down) = (count * (3 + 10 + 1000), count * (2 + 10 + 1000));
        sockhop.wait_status(|status| bytes_of(status) == (up, down), SOON);
    }
}

#[test]
fn unix_client_is_served_to_its_last_byte() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("proxy.sock");
    let pattern = Pattern::new(11);
    let (sink, reports) = Target::sink(&pattern);
    let sockhop = Sockhop::forward(&["--remote", &sink.address().to_string(), "--no-probing"])
        .arg("--listen")
        .arg(format!("unix:{}", path.display()))
        .start();
    assert!(wait_until(SOON, || path.exists()));
    let mut bytes = vec![0; 8 << 20];
    pattern.fill(0, &mut bytes);
    // Not a SOCKS client, whatever the pattern begins with.
    assert!(!matches!(bytes[0], 4 | 5));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&bytes).unwrap();
    drop(client);
    assert_eq!(
        reports.recv_timeout(SOON).unwrap(),
        Received::whole(8 << 20)
    );
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
}
