//! Clients that no remote can be used for: refused, or served from this machine's own connection.
#![cfg(feature = "server")]

mod common;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use common::{
    Behaviour, Observed, Peer, SOON, Sockhop, Step, Target, connect, dead_address, exchange,
    expect_end, observe, socks5_connect,
};
use serde_json::json;

/// A forwarder with these arguments that lets clients go to loopback without a remote, and where it listens.
fn direct(arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let fallback = ["--fallback=direct", "--allow-dest=127.0.0.0/8", "-v"];
    let sockhop = Sockhop::forward(&[&fallback, arguments].concat()).start();
    let listening = sockhop.wait_listening(SOON);
    (sockhop, listening)
}

fn served(sockhop: &Sockhop) -> u64 {
    sockhop.status()["served_directly"]
        .as_u64()
        .expect("a number")
}

#[test]
fn client_is_served_from_here_when_the_remote_is_dead_and_that_is_told() {
    let echo = Target::echo();
    let (sockhop, forwarder) = direct(&["--remote", &dead_address().to_string()]);
    assert_eq!(served(&sockhop), 0);
    let stream = socks5_connect(forwarder, echo.address()).expect("served");
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let line = sockhop.wait_log("served from this machine's own connection", SOON);
    assert!(line.contains("warn"), "{line}");
    let status = sockhop.status();
    assert_eq!(status["served_directly"], 1);
    let text = sockhop.command(&["status"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("1 clients served directly"), "{text}");
    drop(stream);
    let moved = |status: &serde_json::Value| status["bytes"] == json!({"up": 5, "down": 5});
    sockhop.wait_status(moved, SOON);
}

#[test]
fn without_it_the_client_is_refused() {
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&["--remote", &dead_address().to_string()]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let error = socks5_connect(forwarder, echo.address()).unwrap_err();
    assert!(error.to_string().contains("[05, 01, 00, 01]"), "{error}");
    assert_eq!(sockhop.status().get("served_directly"), None);
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn rules_are_those_of_a_server() {
    let echo = Target::echo();
    let dead = dead_address().to_string();
    let sockhop = Sockhop::forward(&["--fallback=direct", "--remote", &dead]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let error = socks5_connect(forwarder, echo.address()).unwrap_err();
    assert!(error.to_string().contains("[05, 02, 00, 01]"), "{error}");
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn every_socks_client_is_served_and_no_other() {
    let echo = Target::echo();
    let (sockhop, forwarder) = direct(&["--remote", &dead_address().to_string()]);
    let [high, low] = echo.address().port().to_be_bytes();
    let request = [5, 1, 0, 1, 127, 0, 0, 1, high, low];
    let reply = [5, 0, 0, 1, 127, 0, 0, 1];
    // Its password is for the remote.
    let mut stream = connect(forwarder).unwrap();
    let login = [&[5, 1, 2, 1, 3][..], b"ada", &[2], b"pw", &request].concat();
    stream.write_all(&login).unwrap();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [5, 2, 1, 0]);
    assert_eq!(answer[4..12], reply);
    assert_eq!(exchange(&stream, b"x").unwrap(), b"x");
    // SOCKS 4, with its first payload right behind.
    let mut stream = connect(forwarder).unwrap();
    let request = [4, 1, high, low, 127, 0, 0, 1, b'a', 0, b'x'];
    stream.write_all(&request).unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[..2].to_vec(), answer[8]), (vec![0, 90], b'x'));
    assert_eq!(served(&sockhop), 2);
    let mut stream = connect(forwarder).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(!matches!(observe(&stream, SOON), Observed::Bytes(_)));
    assert_eq!(served(&sockhop), 2);
}

#[test]
fn clients_come_back_to_a_peer_that_comes_back() {
    let echo = Target::echo();
    let mut peer = Peer::valid(Duration::ZERO);
    let address = peer.address();
    let (sockhop, forwarder) = direct(&["--peer", &address.to_string(), "--probe-interval=1s"]);
    sockhop.wait_peer(address, "valid", SOON);
    sockhop.wait_status(|status| status["remote"].is_string(), SOON);
    socks5_connect(forwarder, echo.address()).expect("by the peer");
    assert_eq!((served(&sockhop), peer.requests()), (0, 1));
    peer.kill();
    let stream = socks5_connect(forwarder, echo.address()).expect("from here");
    assert_eq!(served(&sockhop), 1);
    let peer = Peer::at(address, Behaviour::Valid(Duration::ZERO));
    sockhop.wait_peer(address, "valid", SOON);
    socks5_connect(forwarder, echo.address()).expect("by the peer again");
    assert_eq!((served(&sockhop), peer.requests()), (1, 1));
    // Its stream goes on as it was.
    assert_eq!(exchange(&stream, b"still").unwrap(), b"still");
}

#[test]
fn at_the_start_clients_wait_for_the_first_probes_only() {
    let echo = Target::echo();
    let late = Peer::answers_after(Duration::from_millis(700));
    let (sockhop, forwarder) = direct(&["--peer", &late.address().to_string()]);
    socks5_connect(forwarder, echo.address()).expect("by the peer");
    assert_eq!((served(&sockhop), late.requests()), (0, 1));
    // Nobody is valid: that is clear as soon as all were asked, long before a probe would have timed out.
    let arguments = ["--peer", &dead_address().to_string(), "--probe-timeout=60s"];
    let (sockhop, forwarder) = direct(&arguments);
    socks5_connect(forwarder, echo.address()).expect("from here");
    assert_eq!(served(&sockhop), 1);
    // And without an answer it is when a probe would have.
    let silent = Peer::silent();
    let arguments = [
        "--peer",
        &silent.address().to_string(),
        "--probe-timeout=1s",
    ];
    let (sockhop, forwarder) = direct(&arguments);
    socks5_connect(forwarder, echo.address()).expect("from here");
    assert_eq!(served(&sockhop), 1);
}

#[test]
fn disconnect_ends_those_too() {
    let echo = Target::echo();
    let (sockhop, forwarder) = direct(&["--remote", &dead_address().to_string()]);
    let stream = socks5_connect(forwarder, echo.address()).expect("served");
    sockhop.control("disconnect", json!(null)).unwrap();
    assert!(matches!(
        expect_end(&stream, SOON),
        Observed::Eof | Observed::Reset
    ));
}

/// Two remotes that do these steps, and a forwarder that knows no others.
fn both(steps: Vec<Step>) -> (Sockhop, SocketAddr, [Peer; 2]) {
    let peers = [Peer::scripted(steps.clone()), Peer::scripted(steps)];
    let addresses = peers.each_ref().map(|peer| peer.address().to_string());
    let [first, second] = addresses.each_ref().map(String::as_str);
    let (sockhop, forwarder) = direct(&["--remote", first, "--remote", second, "--no-probing"]);
    (sockhop, forwarder, peers)
}

#[test]
fn client_that_heard_the_answer_to_its_greeting_hears_it_once() {
    let echo = Target::echo();
    let greeted = [Step::Read(3), Step::Send(vec![5, 0])];
    let dies = [&greeted[..], &[Step::Read(10), Step::Close]].concat();
    let (sockhop, forwarder, peers) = both(dies);
    let stream = socks5_connect(forwarder, echo.address()).expect("from here");
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    assert_eq!(served(&sockhop), 1);
    assert_eq!(peers.map(|peer| peer.accepted()), [1, 1]);
}

#[test]
fn what_working_remotes_answer_is_the_answer() {
    let echo = Target::echo();
    for code in [1, 4, 5] {
        let refuses = vec![
            Step::Read(3),
            Step::Send(vec![5, 0]),
            Step::Read(10),
            Step::Send(vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]),
        ];
        let (sockhop, forwarder, _peers) = both(refuses);
        let error = socks5_connect(forwarder, echo.address()).unwrap_err();
        let expected = format!("[05, {code:02x}, 00, 01]");
        assert!(error.to_string().contains(&expected), "{error}");
        assert_eq!(served(&sockhop), 0);
    }
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn draining_ends_those_that_go_past_the_remote() {
    let echo = Target::echo();
    let (sockhop, forwarder) = direct(&["--remote", &dead_address().to_string()]);
    let stream = socks5_connect(forwarder, echo.address()).expect("from here");
    let peer = Peer::valid(Duration::ZERO);
    let to_it = json!({"remote": peer.address().to_string(), "drain_s": 0.1});
    sockhop.control("connect", to_it).unwrap();
    assert!(matches!(
        expect_end(&stream, SOON),
        Observed::Eof | Observed::Reset
    ));
    let stream = socks5_connect(forwarder, echo.address()).expect("by the peer");
    assert_eq!(exchange(&stream, b"x").unwrap(), b"x");
    assert_eq!(served(&sockhop), 1);
}
