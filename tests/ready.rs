//! `forward --ready`: connections to the remote that are made before clients need them.
//!
//! That a client used one shows when the remote takes no new ones any more.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Peer, SOON, Sockhop, Target, exchange, socks5_connect, wait_until};
use serde_json::json;

/// A client that gets through to the target.
#[track_caller]
fn gets_through(forwarder: SocketAddr, target: &Target) -> TcpStream {
    let stream = socks5_connect(forwarder, target.address()).expect("served");
    assert_eq!(exchange(&stream, b"hello").expect("echo"), b"hello");
    stream
}

fn forward(remote: SocketAddr, arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let remote = remote.to_string();
    let common = ["--remote", &remote, "--no-probing", "-v"];
    let forwarder = Sockhop::forward(&[&common[..], arguments].concat()).start();
    let address = forwarder.wait_listening(SOON);
    (forwarder, address)
}

#[test]
fn they_are_made_after_the_first_client_and_serve_the_next_ones() {
    let (mut peer, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let (_forwarder, address) = forward(peer.address(), &["--ready", "2"]);
    assert!(
        !peer.wait_accepted(1, Duration::from_millis(100)),
        "before anybody came"
    );
    let first = gets_through(address, &target);
    assert!(peer.wait_open(3, SOON), "one in use and two ready");
    peer.stop_accepting();
    let _second = gets_through(address, &target);
    let _third = gets_through(address, &target);
    assert_eq!(peer.accepted(), 3);
    assert!(socks5_connect(address, target.address()).is_err());
    assert_eq!(exchange(&first, b"still").expect("echo"), b"still");
}

#[test]
fn without_it_there_are_none() {
    let (peer, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let (_forwarder, address) = forward(peer.address(), &[]);
    let first = gets_through(address, &target);
    let _second = gets_through(address, &target);
    assert_eq!(peer.accepted(), 2);
    drop(first);
    assert!(peer.wait_open(1, SOON));
}

#[test]
fn those_that_the_remote_has_reset_are_not_used() {
    let (peer, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let (_forwarder, address) = forward(peer.address(), &["--ready", "3"]);
    drop(gets_through(address, &target));
    assert!(peer.wait_open(3, SOON));
    peer.reset_streams();
    drop(gets_through(address, &target));
}

/// What a connection that nobody took has come to by the time it is taken.
#[derive(Clone, Copy, Debug)]
enum Dead {
    /// It closes when it is spoken to.
    Closes,
    /// Nobody is there any more, and nobody says so.
    Silent,
}

/// A remote that serves its first connection, and those from the fourth on.
fn remote_with_two_dead(dead: Dead) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    let spoken_to = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&spoken_to);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let counter = Arc::clone(&counter);
            thread::spawn(move || {
                let mut greeting = [0; 3];
                if stream.read_exact(&mut greeting).is_err() {
                    return;
                }
                if (1..3).contains(&number) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    if matches!(dead, Dead::Silent) {
                        let _ = stream.read(&mut [0; 64]);
                    }
                    return;
                }
                let mut request = [0; 10];
                let _ = stream.write_all(&[5, 0]);
                let _ = stream.read_exact(&mut request);
                let _ = stream.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 1]);
                // Echoes what comes then.
                let mut bytes = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..count]);
                }
            });
        }
    });
    (address, spoken_to)
}

#[test]
fn one_that_turns_out_to_be_dead_costs_the_client_nothing() {
    let target = Target::echo();
    for dead in [Dead::Closes, Dead::Silent] {
        let (remote, spoken_to) = remote_with_two_dead(dead);
        let (forwarder, address) = forward(remote, &["--ready", "2"]);
        drop(gets_through(address, &target));
        assert!(wait_until(SOON, || established(remote) >= 2), "{dead:?}");
        let began = Instant::now();
        drop(gets_through(address, &target));
        assert_eq!(spoken_to.load(Ordering::Relaxed), 1, "{dead:?}");
        assert!(began.elapsed() < SOON / 2, "{dead:?}");
        // It was not the remote's fault.
        assert!(forwarder.status()["last_error"].is_null(), "{dead:?}");
    }
}

/// Connections of others to this address that stand, as the machine's table of them says.
fn established(to: SocketAddr) -> usize {
    let SocketAddr::V4(to) = to else { return 0 };
    let ip = u32::from_ne_bytes(to.ip().octets());
    let remote = format!("{ip:08X}:{:04X}", to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&remote) && words.next() == Some("01")
    };
    table.lines().filter(is_one).count()
}

#[test]
fn they_go_with_the_remote() {
    let (one, other) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let target = Target::echo();
    let (forwarder, address) = forward(one.address(), &["--ready", "2"]);
    drop(gets_through(address, &target));
    assert!(one.wait_open(2, SOON));
    let switched = forwarder.control("connect", json!({"remote": other.address().to_string()}));
    switched.expect("switched");
    assert!(one.wait_open(0, SOON), "thrown away");
    drop(gets_through(address, &target));
    assert!(other.wait_open(2, SOON));
    forwarder
        .control("disconnect", json!({}))
        .expect("disconnected");
    assert!(other.wait_open(0, SOON));
}

/// Clients of SOCKS 4 and of anything else have nothing by which a dead connection would show in time.
#[test]
fn clients_that_are_not_of_socks5_get_new_ones() {
    let (peer, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let (_forwarder, address) = forward(peer.address(), &["--ready", "1"]);
    drop(gets_through(address, &target));
    assert!(peer.wait_open(1, SOON));
    let before = peer.accepted();
    let mut other = common::connect(address).expect("connect");
    other
        .write_all(b"\x04\x01\0\x50\x7f\0\0\x01\0")
        .expect("write");
    assert!(peer.wait_accepted(before + 1, SOON));
}
