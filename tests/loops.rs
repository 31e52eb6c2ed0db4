//! A forwarder never feeds itself, and two that feed each other do not run away.

mod common;

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use common::{Observed, Peer, SOON, Sockhop, Target, connect, exchange, observe, socks5_connect};
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// A port that is ours until the program has it: bound, so that nobody else gets it, but free for one who may reuse it.
struct Reserved(Socket);

impl Reserved {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.set_reuse_address(true).unwrap();
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        socket.bind(&any.into()).unwrap();
        Self(socket)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().as_socket().unwrap().port()
    }
}

const OWN_NAMES: [&str; 5] = ["127.0.0.1", "127.0.0.2", "[::1]", "localhost", "0.0.0.0"];

#[test]
fn own_listener_as_remote_from_the_start_is_not_used() {
    for name in OWN_NAMES {
        let reserved = Reserved::new();
        let port = reserved.port();
        let (remote, listen) = (format!("{name}:{port}"), format!("[::]:{port}"));
        let sockhop = Sockhop::forward(&["--remote", &remote, "--listen", &listen]).start();
        let status = sockhop.wait_status(|status| !status["last_error"].is_null(), SOON);
        let what = status["last_error"]["what"].as_str().unwrap();
        assert!(what.contains("loop"), "{name}: {what}");
        sockhop.wait_log("loop", SOON);
        let before = sockhop.fds();
        let client = connect((Ipv4Addr::LOCALHOST, port).into()).unwrap();
        (&client).write_all(&[5, 1, 0]).unwrap();
        // Declined like by any forwarder without a usable remote.
        assert!(
            matches!(observe(&client, SOON), Observed::Bytes(_)),
            "{name}"
        );
        let status = sockhop.status();
        assert_eq!(status["connections"]["total"], 1, "{name}");
        assert!(sockhop.fds() <= before + 4, "{name}");
    }
}

#[test]
fn own_listener_as_remote_over_control_is_refused_and_nothing_changes() {
    let (echo, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let remote = peer.address().to_string();
    let sockhop = Sockhop::forward(&["--remote", &remote, "--listen", "[::]:0"]).start();
    let port = sockhop.wait_listening(SOON).port();
    for name in OWN_NAMES {
        let remote = format!("{name}:{port}");
        let error = sockhop
            .control("connect", json!({"remote": remote}))
            .unwrap_err();
        assert!(
            error.message.contains("listener of this forwarder"),
            "{name}: {error}"
        );
        assert_ne!(error.code, 0);
    }
    assert_eq!(sockhop.status()["remote"], peer.address().to_string());
    let stream = socks5_connect((Ipv4Addr::LOCALHOST, port).into(), echo.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn two_forwarders_that_feed_each_other_stay_bounded_and_recover() {
    let (echo, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let start = |remote: SocketAddr| {
        let remote = remote.to_string();
        Sockhop::forward(&[
            "--remote",
            &remote,
            "--no-probing",
            "--max-connections",
            "50",
        ])
        .start()
    };
    let a = start(peer.address());
    let at_a = a.wait_listening(SOON);
    let b = start(at_a);
    let at_b = b.wait_listening(SOON);
    let point_a_at = |remote: SocketAddr| {
        let remote = remote.to_string();
        a.control("connect", json!({"remote": remote})).unwrap();
    };
    let fds = (a.fds(), b.fds());
    point_a_at(at_b);
    let looped = connect(at_a).unwrap();
    (&looped).write_all(&[5, 1, 0]).unwrap();
    for forwarder in [&a, &b] {
        forwarder.wait_status(
            |status| status["connections"]["active"].as_u64() >= Some(49),
            SOON,
        );
    }
    // Full, and at rest: nobody goes round.
    let ticks = (a.cpu_ticks(), b.cpu_ticks());
    assert_eq!(observe(&looped, Duration::from_secs(1)), Observed::Silent);
    assert!(a.cpu_ticks() - ticks.0 <= 20 && b.cpu_ticks() - ticks.1 <= 20);
    assert!(a.fds() <= fds.0 + 2 * 50 + 20, "{} descriptors", a.fds());
    assert!(b.fds() <= fds.1 + 2 * 50 + 20, "{} descriptors", b.fds());

    point_a_at(peer.address());
    // Nobody had answered the one in the loop yet, so it is served too.
    assert_eq!(observe(&looped, SOON), Observed::Bytes(vec![5, 0]));
    for address in [at_a, at_b] {
        let stream = socks5_connect(address, echo.address()).unwrap();
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    }
    drop(looped);
    for forwarder in [&a, &b] {
        forwarder.wait_status(|status| status["connections"]["active"] == 0, SOON);
    }
}

#[test]
fn a_circle_of_forwarders_ends_when_its_client_leaves() {
    let peer = Peer::valid(Duration::ZERO);
    let start = |remote: SocketAddr| {
        let remote = remote.to_string();
        let limits = [
            "--remote",
            &remote,
            "--no-probing",
            "--max-connections",
            "50",
        ];
        Sockhop::forward(&limits).start()
    };
    let a = start(peer.address());
    let at_a = a.wait_listening(SOON);
    let b = start(at_a);
    let at_b = b.wait_listening(SOON);
    a.control("connect", json!({"remote": at_b.to_string()}))
        .unwrap();
    let looped = connect(at_a).unwrap();
    (&looped).write_all(&[5, 1, 0]).unwrap();
    let full = |status: &serde_json::Value| status["connections"]["active"].as_u64() >= Some(49);
    a.wait_status(full, SOON);
    b.wait_status(full, SOON);
    drop(looped);
    // The end runs round the circle as the beginning did; nothing may run on behind it.
    settle([&a, &b], [at_a, at_b]);
    let total = |forwarder: &Sockhop| forwarder.status()["connections"]["total"].as_u64();
    let before = (total(&a), total(&b));
    assert!(a.fds() < 40 && b.fds() < 40);
    assert_eq!((total(&a), total(&b)), before);
}

/// Waits until nobody is served and nobody comes any more, also not from the queue of the kernel, where those are whom a
/// full forwarder did not take: it is a queue, so who comes last is counted after all of them. Fails if it goes on and on.
fn settle(forwarders: [&Sockhop; 2], addresses: [SocketAddr; 2]) {
    let total = |status: &serde_json::Value| status["connections"]["total"].as_u64().unwrap();
    let rest = || {
        forwarders.map(|forwarder| {
            let idle = |status: &serde_json::Value| status["connections"]["active"] == 0;
            total(&forwarder.wait_status(idle, SOON))
        })
    };
    let deadline = Instant::now() + SOON;
    let mut before = rest();
    loop {
        assert!(Instant::now() < deadline, "still going round: {before:?}");
        let last = addresses.map(|address| connect(address).unwrap());
        for (forwarder, before) in forwarders.iter().zip(before) {
            forwarder.wait_status(|status| total(status) > before, SOON);
        }
        drop(last);
        let after = rest();
        // Nobody but the two that came just now.
        if after == before.map(|before| before + 1) {
            return;
        }
        before = after;
    }
}
