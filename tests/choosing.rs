//! Which peer is chosen when several are good: by score, by the user's rules, by what clients met.

mod common;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::{
    Behaviour, Peer, SOON, Sockhop, Step, Target, dead_address, exchange, socks5_connect,
};

const ZERO: Duration = Duration::ZERO;

/// Three of these are the hold time.
const INTERVAL: &str = "1s";
const HOLD: Duration = Duration::from_secs(3);

fn forward(peers: &[SocketAddr], more: &[&str]) -> Sockhop {
    let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
    let mut arguments = more.to_vec();
    for peer in &peers {
        arguments.extend(["--peer", peer]);
    }
    Sockhop::forward(&arguments).start()
}

fn remote_is(peer: &Peer) -> impl Fn(&Value) -> bool {
    let address = peer.address().to_string();
    move |status| status["remote"] == address.as_str()
}

#[track_caller]
fn client_is_served(listener: SocketAddr, echo: &Target) {
    let stream = socks5_connect(listener, echo.address()).expect("a client was not served");
    assert_eq!(exchange(&stream, b"hello").expect("echo"), b"hello");
}

fn why(sockhop: &Sockhop, peer: &Peer) -> String {
    let proxy = sockhop.proxy(peer.address()).expect("known");
    proxy["why"].as_str().unwrap_or_default().to_owned()
}

/// Answers greetings, and refuses every request: the host is unreachable.
fn liar() -> Behaviour {
    Behaviour::Scripted(vec![
        Step::Read(3),
        Step::Send(vec![5, 0]),
        Step::Read(10),
        Step::Send(vec![5, 4, 0, 1, 0, 0, 0, 0, 0, 0]),
    ])
}

#[test]
fn peers_that_the_rules_leave_out_are_never_connected_to() {
    let at = |address: &str| Peer::at(format!("{address}:0"), Behaviour::Valid(ZERO));
    let (outside, never, good) = (at("127.1.0.1"), at("127.2.0.1"), at("127.2.0.9"));
    let sockhop = forward(
        &[outside.address(), never.address(), good.address()],
        &[
            "--only",
            "127.2.0.0/16",
            "--never",
            "127.2.0.1",
            "--probe-interval",
            INTERVAL,
        ],
    );
    sockhop.wait_listening(SOON);
    let status = sockhop.wait_status(remote_is(&good), SOON);
    assert_eq!(status["sources"][1]["left_out"], 2, "{status}");
    // Three rounds later.
    assert!(good.wait_accepted(4, SOON));
    assert_eq!((outside.accepted(), never.accepted()), (0, 0));
    let proxies = sockhop.proxies();
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    // What is named by hand is used as told, and left again for what the rules allow.
    let remote = serde_json::json!({"remote": outside.address().to_string()});
    sockhop.control("connect", remote).expect("connect");
    sockhop.wait_status(remote_is(&outside), SOON);
    let shown = sockhop.proxy(outside.address()).expect("watched");
    assert_eq!(
        (&shown["candidate"], &shown["selected"]),
        (&false.into(), &true.into())
    );
    sockhop.control("connect", Value::Null).expect("race");
    sockhop.wait_status(remote_is(&good), SOON);
}

#[test]
fn when_the_rules_leave_out_everybody_the_status_says_so() {
    let peer = Peer::valid(ZERO);
    let sockhop = forward(&[peer.address()], &["--never", "127.0.0.0/8"]);
    let reason = "--only and --never leave out all peers, 1";
    sockhop.wait_status(|status| status["reason"] == reason, SOON);
    assert_eq!(peer.accepted(), 0);
}

#[test]
fn a_preferred_peer_is_chosen_though_it_is_slow_and_returned_to() {
    let echo = Target::echo();
    let slow = Behaviour::AnswersAfter(Duration::from_millis(150));
    let fast = Peer::valid(ZERO);
    let mut preferred = Peer::at("127.3.0.1:0", slow.clone());
    let sockhop = forward(
        &[fast.address(), preferred.address()],
        &["--prefer", "127.3.0.0/16", "--probe-interval", INTERVAL],
    );
    let listener = sockhop.wait_listening(SOON);
    sockhop.wait_status(remote_is(&preferred), SOON);
    assert_eq!(why(&sockhop, &preferred), "preferred");
    assert_eq!(why(&sockhop, &fast), "a preferred one is good");
    client_is_served(listener, &echo);
    let address = preferred.address();
    preferred.kill();
    client_is_served(listener, &echo);
    sockhop.wait_status(remote_is(&fast), SOON);
    drop(preferred);
    let back = Peer::at(address, slow);
    let returned = Instant::now();
    sockhop.wait_peer(address, "valid", SOON);
    assert!(why(&sockhop, &back).starts_with("preferred, good for"));
    sockhop.wait_status(remote_is(&back), SOON * 2);
    assert!(returned.elapsed() >= HOLD, "{:?}", returned.elapsed());
    client_is_served(listener, &echo);
}

#[test]
fn a_race_asks_preferred_peers_before_others() {
    let slow = Behaviour::AnswersAfter(Duration::from_millis(300));
    let (fast, preferred) = (Peer::valid(ZERO), Peer::at("127.3.0.1:0", slow));
    let name = preferred.address().to_string();
    let sockhop = forward(
        &[fast.address(), preferred.address()],
        &["--prefer", &name, "--manual"],
    );
    for peer in [&fast, &preferred] {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let connected = sockhop.control("connect", Value::Null).expect("a winner");
    assert_eq!(connected["remote"], name.as_str());
    // One that does not answer costs its time, and then the others have theirs.
    preferred.behave(Behaviour::Closes);
    let connected = sockhop.control("connect", Value::Null).expect("a winner");
    assert_eq!(connected["remote"], fast.address().to_string());
}

#[test]
fn a_clearly_better_peer_takes_over_after_the_hold_time_and_a_nearly_equal_one_never() {
    // Slow enough for a busy machine to make no difference of a quarter.
    let slow = Peer::answers_after(Duration::from_millis(750));
    let newcomer = Peer::http();
    let sockhop = forward(
        &[slow.address(), newcomer.address()],
        &["--probe-interval", INTERVAL],
    );
    sockhop.wait_status(remote_is(&slow), SOON);
    // As slow as the one in use: it stays for longer than the hold time.
    newcomer.behave(Behaviour::AnswersAfter(Duration::from_millis(730)));
    sockhop.wait_peer(newcomer.address(), "valid", SOON);
    let greetings = newcomer.greetings();
    assert!(common::wait_until(SOON * 2, || newcomer.greetings() > greetings + 5));
    assert!(remote_is(&slow)(&sockhop.status()));
    assert_eq!(why(&sockhop, &newcomer), "not clearly better");

    newcomer.behave(Behaviour::Valid(ZERO));
    let better = Instant::now();
    let said = |proxies: &[Value]| {
        proxies.iter().any(|proxy| {
            let why = proxy["why"].as_str().unwrap_or_default();
            why.starts_with("clearly better for")
        })
    };
    sockhop.wait_proxies(said, SOON * 2);
    sockhop.wait_status(remote_is(&newcomer), SOON * 4);
    assert!(better.elapsed() >= HOLD, "{:?}", better.elapsed());
    let why = why(&sockhop, &newcomer);
    assert!(why.starts_with("clearly better for 3s: score"), "{why}");
    let line = format!(
        "remote is now {}, was {}: {why}",
        newcomer.address(),
        slow.address()
    );
    sockhop.wait_log(&line, SOON);
}

#[test]
fn a_liar_is_found_out_while_no_client_notices() {
    let echo = Target::echo();
    let (false_one, honest) = (Peer::new(liar()), Peer::http());
    let sockhop = forward(&[false_one.address(), honest.address()], &[]);
    let listener = sockhop.wait_listening(SOON);
    sockhop.wait_status(remote_is(&false_one), SOON);
    honest.behave(Behaviour::Valid(ZERO));
    let run = serde_json::json!({"run": false});
    sockhop.control("probing", run).expect("stop");
    let run = serde_json::json!({"run": true});
    sockhop.control("probing", run).expect("start");
    sockhop.wait_peer(honest.address(), "valid", SOON);
    for _ in 0..3 {
        assert!(remote_is(&false_one)(&sockhop.status()));
        client_is_served(listener, &echo);
    }
    sockhop.wait_status(remote_is(&honest), SOON);
    let reason = why(&sockhop, &false_one);
    assert!(
        reason.starts_with("failed several clients in a row, after all others for"),
        "{reason}"
    );
    // Probes go on to find it valid, and clients go on elsewhere.
    let requests = false_one.requests() + false_one.accepted();
    for _ in 0..5 {
        client_is_served(listener, &echo);
    }
    assert_eq!(false_one.requests() + false_one.accepted(), requests);
    let shown = sockhop.proxy(false_one.address()).expect("known");
    assert_eq!(shown["status"], "valid");
}

#[test]
fn probes_keep_to_their_rate() {
    let peers: Vec<SocketAddr> = (0..40).map(|_| dead_address()).collect();
    let live = Peer::valid(ZERO);
    let mut all = peers;
    all.push(live.address());
    let started = Instant::now();
    // Five seconds' worth at once, and then four a second.
    let sockhop = forward(&all, &["--probe-rate", "4"]);
    let probed = |status: &Value| {
        let candidates = &status["candidates"];
        candidates["not-listening"].as_u64().unwrap() + candidates["valid"].as_u64().unwrap()
    };
    loop {
        let status = sockhop.status();
        let (probed, elapsed) = (probed(&status), started.elapsed().as_secs_f64());
        let most = 20.0 + 4.0 * elapsed + 1.0;
        assert!(probed as f64 <= most, "{probed} after {elapsed} s");
        if probed == 41 {
            assert!(elapsed >= 4.5, "{elapsed}");
            return;
        }
        assert!(elapsed < 60.0, "{probed} after {elapsed} s");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn bad_rules_say_what_is_wrong() {
    for (arguments, said) in [
        (["--only", "10.0.0.0/33"], "--only: \"10.0.0.0/33\""),
        (["--never", "peer.example"], "--never: \"peer.example\""),
        (["--prefer", "10.0.0.1:x"], "--prefer: \"10.0.0.1:x\""),
        (["--probe-rate", "0"], "is not a number from 1 to 10000"),
    ] {
        let mut line = vec!["forward", "--peer", "127.0.0.1"];
        line.extend(arguments);
        let output = Sockhop::run(&line);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(said), "{text}");
    }
}
