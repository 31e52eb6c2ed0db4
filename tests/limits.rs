//! What limits hold: connections, descriptors, threads, and the patience with clients that take more than their share.

mod common;

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Instant;

use common::{Observed, SOON, Sockhop, Unanswering, connect, dead_address, observe, reset};
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
