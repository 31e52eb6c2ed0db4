//! What clients notice of a remote that fails: as little as possible, and only once.

mod common;

use std::time::{Duration, Instant};

use common::{Behaviour, Peer, SOON, Sockhop, Target, socks5_connect};

#[test]
fn failure_counts_though_the_remote_answered_just_before() {
    let echo = Target::echo();
    let (first, second) = (
        Peer::valid(Duration::ZERO),
        Peer::valid(Duration::from_millis(100)),
    );
    let sockhop = Sockhop::forward(&[])
        .arg(format!("--peer={}", first.address()))
        .arg(format!("--peer={}", second.address()))
        .arg("--connect-timeout=1s")
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    sockhop.wait_peer(second.address(), "valid", SOON);
    socks5_connect(forwarder, echo.address()).unwrap();

    // Clients only: a probe would find it out as well.
    sockhop
        .control("probing", serde_json::json!({"run": false}))
        .unwrap();
    first.behave(Behaviour::Silent);
    socks5_connect(forwarder, echo.address()).unwrap();
    let started = Instant::now();
    socks5_connect(forwarder, echo.address()).unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
}
