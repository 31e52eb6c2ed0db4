//! `sockhop forward --remote socks6://A --remote socks6://B`: what clients notice of a proxy that does not work.
#![cfg(feature = "socks6")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Peer, SOON, Signal, Sockhop, Step, Target, connect, dead_address, echo_datagrams, exchange,
    serve, socks5_connect, wait_until,
};
use socket2::{Domain, Socket, Type};

/// A forwarder that converts for these proxies, in this order.
fn forward(proxies: &[SocketAddr], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let mut launch = Sockhop::forward(&["--no-probing", "-v"]).args(arguments);
    for proxy in proxies {
        launch = launch.arg("--remote").arg(format!("socks6://{proxy}"));
    }
    let forwarder = launch.start();
    let address = forwarder.wait_listening(SOON);
    (forwarder, address)
}

/// A port where nobody listens: bound, so that nobody else gets it, but free for one of ours, who may reuse it.
fn reserved() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("may be reused");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("bind");
    let address = socket.local_addr().expect("bound").as_socket();
    (socket, address.expect("an address"))
}

fn uses(forwarder: &Sockhop, proxy: SocketAddr) -> bool {
    forwarder.status()["remote"] == format!("socks6://{proxy}")
}

fn served(server: &Sockhop) -> u64 {
    server.status()["connections"]["total"]
        .as_u64()
        .expect("a number")
}

#[track_caller]
fn works(forwarder: SocketAddr, echo: &Target) {
    let stream = socks5_connect(forwarder, echo.address()).expect("a connection");
    assert_eq!(exchange(&stream, b"hello").expect("an echo"), b"hello");
}

/// The code of the reply to a CONNECT.
#[track_caller]
fn code(forwarder: SocketAddr, to: SocketAddr) -> u8 {
    let SocketAddr::V4(to) = to else {
        panic!("{to} is not IPv4");
    };
    let mut stream = connect(forwarder).expect("connect");
    let [high, low] = to.port().to_be_bytes();
    let request = [&[5, 1, 0, 5, 1, 0, 1], &to.ip().octets()[..], &[high, low]].concat();
    stream.write_all(&request).expect("write");
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).expect("both replies");
    assert_eq!(reply[..3], [5, 0, 5]);
    reply[3]
}

/// What a proxy says to a request for a session.
const ACCEPTED: &[u8] = b"\x06\0\0\0";

fn refusal(code: u8) -> Vec<u8> {
    [ACCEPTED, &[6, code, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]].concat()
}

#[test]
fn whatever_is_wrong_with_the_first_proxy_costs_no_client_its_connection() {
    let (server, good) = serve(&[]);
    let (_strict, strict) = serve(&["--user", "ada:pass"]);
    let echo = Target::echo();
    let says = |bytes: &[u8]| {
        Peer::scripted(vec![
            Step::Read(12),
            Step::Send(bytes.to_vec()),
            Step::Close,
        ])
    };
    let (half, whole) = (says(b"\x06\0"), says(ACCEPTED));
    let (older, web) = (says(b"\x05\xff"), Peer::http());
    let (closes, resets, silent) = (Peer::closes(), Peer::resets(), Peer::silent());
    for (bad, told) in [
        (dead_address(), "cannot connect"),
        (closes.address(), ""),
        (resets.address(), ""),
        (older.address(), "does not speak SOCKS 6"),
        (web.address(), "does not speak SOCKS 6"),
        (half.address(), ""),
        // Between its two answers.
        (whole.address(), ""),
        (
            silent.address(),
            "timed out waiting for the authentication reply",
        ),
        (strict, "rejected the authentication"),
    ] {
        let before = served(&server);
        let (forwarder, address) = forward(&[bad, good], &["--connect-timeout", "1s"]);
        assert!(uses(&forwarder, bad));
        let started = Instant::now();
        for _ in 0..3 {
            works(address, &echo);
        }
        assert!(started.elapsed() < SOON, "{bad}: {told}");
        assert_eq!(served(&server) - before, 3, "{told}");
        // It is told which one is used and why.
        assert!(uses(&forwarder, good), "{told}");
        let status = forwarder.status();
        let reason = status["reason"].as_str().expect("a reason");
        assert!(reason.contains("named before it do not work"), "{reason}");
        let what = status["last_error"]["what"].as_str().expect("an error");
        assert!(
            what.contains(&bad.to_string()) && what.contains(told),
            "{what}"
        );
        let line = forwarder.wait_log("avoided for 2s", SOON);
        assert!(line.contains(&bad.to_string()), "{line}");
        assert_eq!(status["connections"]["refused"], 0);
    }
}

#[test]
fn nobody_tries_one_that_has_just_failed() {
    let (server, good) = serve(&[]);
    let (bad, echo) = (Peer::closes(), Target::echo());
    let (_forwarder, address) = forward(&[bad.address(), good], &[]);
    let started = Instant::now();
    for _ in 0..50 {
        works(address, &echo);
    }
    // One at first, and one after each pause.
    let most = 1 + usize::try_from(started.elapsed().as_secs()).expect("short");
    assert!(bad.accepted() <= most, "{}", bad.accepted());
    assert_eq!(served(&server), 50);
}

#[test]
fn a_preferred_proxy_that_is_back_is_used_again() {
    let ((_port, first), echo) = (reserved(), Target::echo());
    let (server, second) = serve(&[]);
    let (forwarder, address) = forward(&[first, second], &[]);
    works(address, &echo);
    assert!(uses(&forwarder, second));
    let preferred = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
        .args(["--listen", &first.to_string()])
        .start();
    preferred.wait_listening(SOON);
    let is_back = || {
        works(address, &echo);
        uses(&forwarder, first)
    };
    assert!(wait_until(SOON, is_back));
    forwarder.wait_log("works again", SOON);
    let before = served(&server);
    works(address, &echo);
    assert_eq!(served(&server), before);
    // Each has a session and tokens of its own.
    for server in [&server, &preferred] {
        assert_eq!(server.status()["sessions"], 1);
    }
}

#[test]
fn clients_get_through_when_the_proxy_in_use_dies_or_freezes() {
    let echo = Target::echo();
    for signal in [Signal::KILL, Signal::STOP] {
        let ((first, at_first), (second, at_second)) = (serve(&[]), serve(&[]));
        let options = ["--connect-timeout", "1s"];
        let (forwarder, address) = forward(&[at_first, at_second], &options);
        // With a session that is known there, where nothing has to be said before the destination answers.
        for _ in 0..3 {
            works(address, &echo);
        }
        assert_eq!((served(&first), served(&second)), (3, 0));
        first.signal(signal);
        let (echo, started) = (&echo, Instant::now());
        thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(move || works(address, echo));
            }
        });
        assert!(started.elapsed() < SOON);
        assert_eq!(served(&second), 50);
        assert!(uses(&forwarder, at_second));
        if signal == Signal::STOP {
            first.signal(Signal::CONT);
            let is_back = || {
                works(address, echo);
                uses(&forwarder, at_first)
            };
            assert!(wait_until(2 * SOON, is_back));
        }
    }
}

#[test]
fn when_none_works_clients_are_told_and_all_are_tried_again_at_once() {
    let ((_port, first), (_other, second)) = (reserved(), reserved());
    let (forwarder, address) = forward(&[first, second], &[]);
    let echo = Target::echo();
    for _ in 0..3 {
        assert_eq!(code(address, echo.address()), 1);
    }
    let status = forwarder.status();
    assert_eq!(status["connections"]["refused_by_reason"]["via"], 3);
    assert_eq!(status["remote"], format!("socks6://{first}"));
    let _server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
        .args(["--listen", &second.to_string()])
        .start();
    // No pause holds it back.
    assert!(wait_until(SOON, || TcpStream::connect(second).is_ok()));
    works(address, &echo);
    assert!(uses(&forwarder, second));
}

#[test]
fn a_destination_that_one_proxy_cannot_reach_is_asked_for_at_the_next() {
    let (server, good) = serve(&[]);
    let echo = Target::echo();
    let refuses =
        |code| Peer::scripted(vec![Step::Read(12), Step::Send(refusal(code)), Step::Close]);
    for general in [1, 3, 4] {
        let peer = refuses(general);
        let (forwarder, address) = forward(&[peer.address(), good], &[]);
        for _ in 0..2 {
            works(address, &echo);
        }
        // It works, as far as proxies can be blamed.
        assert!(uses(&forwarder, peer.address()));
        assert_eq!(peer.accepted(), 2);
    }
    // What is said of the destination, and of what clients may do, is said.
    let before = served(&server);
    for told in [2, 5, 6] {
        let peer = refuses(told);
        let (_forwarder, address) = forward(&[peer.address(), good], &[]);
        assert_eq!(code(address, echo.address()), told);
    }
    assert_eq!(served(&server), before);
    // If nobody reaches it, the first one's word counts, also before that of one that is dead.
    let (one, other) = (refuses(3), refuses(4));
    for rest in [other.address(), dead_address()] {
        let (_forwarder, address) = forward(&[one.address(), rest], &[]);
        assert_eq!(code(address, echo.address()), 3);
    }
}

#[test]
fn payload_that_was_sent_ahead_is_not_sent_twice() {
    let (server, good) = serve(&[]);
    let echo = Target::echo();
    // The request asks for a session and a window; then the payload, and it is gone.
    let first = Peer::scripted(vec![Step::Read(24 + 5), Step::Close]);
    let options = ["--early-reply"];
    let (forwarder, address) = forward(&[first.address(), good], &options);
    let mut client = socks5_connect(address, echo.address()).expect("the early reply");
    client.write_all(b"order").expect("write");
    let mut nothing = Vec::new();
    // Closed, or reset.
    let _ = client.read_to_end(&mut nothing);
    assert!(nothing.is_empty());
    let heard = first.heard().concat();
    assert!(heard.ends_with(b"order"), "{heard:02x?}");
    assert_eq!((served(&server), echo.accepted()), (0, 0));
    // But the next client does not meet it.
    works(address, &echo);
    assert!(uses(&forwarder, good));
    assert_eq!(first.accepted(), 1);
}

#[test]
fn ports_and_places_for_datagrams_are_found_at_the_next_proxy_too() {
    let (_server, good) = serve(&[]);
    let (_forwarder, address) = forward(&[dead_address(), good], &[]);
    let mut control = connect(address).expect("connect");
    let request = [5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    control.write_all(&request).expect("write");
    let mut reply = [0; 12];
    control.read_exact(&mut reply).expect("both replies");
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    let port = u16::from_be_bytes([reply[10], reply[11]]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.connect(("127.0.0.1", port)).expect("connect");
    socket.set_read_timeout(Some(SOON)).expect("a time limit");
    let [high, low] = echo_datagrams().port().to_be_bytes();
    let datagram = [&[0, 0, 0, 1, 127, 0, 0, 1, high, low], &b"hello"[..]].concat();
    socket.send(&datagram).expect("send");
    let mut buffer = [0; 100];
    let count = socket.recv(&mut buffer).expect("an answer");
    assert_eq!(buffer[..count], datagram);

    let (_forwarder, address) = forward(&[dead_address(), good], &[]);
    let mut bind = connect(address).expect("connect");
    let request = [5, 1, 0, 5, 2, 0, 1, 127, 0, 0, 1, 0, 0];
    bind.write_all(&request).expect("write");
    bind.read_exact(&mut reply).expect("both replies");
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    let port = u16::from_be_bytes([reply[10], reply[11]]);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let mut second = [0; 10];
    bind.read_exact(&mut second).expect("the second reply");
    assert_eq!(second[..2], [5, 0]);
    peer.write_all(b"hello").expect("write");
    let mut hello = [0; 5];
    bind.read_exact(&mut hello).expect("read");
    assert_eq!(&hello, b"hello");
}

#[test]
fn an_own_listener_among_them_is_left_out() {
    let (_server, good) = serve(&[]);
    let ((_port, own), echo) = (reserved(), Target::echo());
    let listen = own.to_string();
    let (forwarder, address) = forward(&[own, good], &["--listen", &listen]);
    forwarder.wait_log("it would loop", SOON);
    works(address, &echo);
    assert!(uses(&forwarder, good));
}

#[test]
fn a_slow_destination_is_no_fault_of_the_proxy() {
    let (first, second) = (serve(&[]), serve(&[]));
    let (_, at_first) = first;
    // With a session, and without one, where nothing is said before the destination has answered.
    for query in ["", "?session=no"] {
        let slow = common::Unanswering::new();
        let launch = Sockhop::forward(&["--no-probing", "--connect-timeout", "200ms"]);
        let launch = [at_first, second.1].iter().fold(launch, |launch, proxy| {
            launch
                .arg("--remote")
                .arg(format!("socks6://{proxy}{query}"))
        });
        let forwarder = launch.start();
        let address = forwarder.wait_listening(SOON);
        let echo = Target::echo();
        works(address, &echo);
        let before = served(&second.0);
        let client = thread::spawn({
            let to = slow.address();
            move || code(address, to)
        });
        // Many times the limit for a proxy that says nothing.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1500) {
            works(address, &echo);
        }
        assert_eq!(served(&second.0), before, "{query}");
        let status = forwarder.status();
        assert_eq!(status["remote"], format!("socks6://{at_first}{query}"));
        drop(forwarder);
        let _ = client.join();
    }
}

#[test]
fn with_no_retry_no_request_is_made_twice() {
    let (server, good) = serve(&[]);
    let echo = Target::echo();
    let says =
        |bytes: Vec<u8>| Peer::scripted(vec![Step::Read(24), Step::Send(bytes), Step::Close]);
    let (closes, refuses) = (says(Vec::new()), says(refusal(3)));
    for (bad, told) in [(&closes, 1), (&refuses, 3)] {
        let (_forwarder, address) = forward(&[bad.address(), good], &["--no-retry"]);
        assert_eq!(code(address, echo.address()), told);
        assert_eq!((served(&server), bad.accepted()), (0, 1));
    }
    // One that was not asked at all is passed over, and so is one that has failed.
    let (_forwarder, address) = forward(&[dead_address(), good], &["--no-retry"]);
    works(address, &echo);
    let (_forwarder, address) = forward(&[closes.address(), good], &["--no-retry"]);
    assert_eq!(code(address, echo.address()), 1);
    works(address, &echo);
}
