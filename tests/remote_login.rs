//! Proxies that want a user and a password: probed, chosen and forwarded to with those that there are for them.
#![cfg(feature = "server")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use common::{
    Behaviour, Peer, SOON, Sockhop, Step, Target, connect, exchange, socks5_connect, wait_until,
};
use serde_json::{Value, json};

/// A server that wants a password, where it is, and the URI for it.
fn server(password: &str) -> (Sockhop, SocketAddr, String) {
    let user = format!("ada:{password}");
    let server = Sockhop::serve(&["--user", &user, "--allow-dest", "127.0.0.0/8"]).start();
    let address = server.wait_listening(SOON);
    (server, address, uri(password, address))
}

fn uri(password: &str, address: SocketAddr) -> String {
    format!("socks5://ada:{password}@{address}")
}

/// Nothing that anybody can see has the password in it.
#[track_caller]
fn assert_hidden(sockhop: &Sockhop, password: &str) {
    let status = sockhop.status().to_string();
    let proxies = Value::from(sockhop.proxies()).to_string();
    let commands = [&["status"][..], &["proxies"], &["proxies", "--json"]].map(|arguments| {
        let output = sockhop.command(arguments);
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    for text in [&[status, proxies][..], &commands, &sockhop.log()].concat() {
        assert!(!text.contains(password), "{text}");
    }
}

/// Steps of a proxy that wants the login of `uri("pw", …)`: what it hears is checked by the test.
fn takes_login(answer: u8) -> Vec<Step> {
    vec![
        Step::Read(3),
        Step::Send(vec![5, 2]),
        Step::Read(3 + 3 + 2),
        Step::Send(vec![1, answer]),
    ]
}

const LOGIN: &[u8] = b"\x05\x01\x02\x01\x03ada\x02pw";

#[test]
fn probe_logs_in_and_tells_right_from_wrong() {
    let (_server, address, right) = server("SECRET");
    let echo = Target::echo();
    let target = echo.address().to_string();
    let probe = |uri: &str, more: &[&str]| {
        let output = Sockhop::run(&[&["probe", "--json", uri][..], more].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains("SECRET"), "{text}");
        let entries: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(entries[0]["address"], address.to_string());
        let text = |key: &str| entries[0][key].as_str().expect(key).to_owned();
        (output.status.success(), text("status"), text("reason"))
    };
    let accepted = "accepted the user and password".to_owned();
    let valid = (true, "valid".to_owned(), accepted);
    assert_eq!(probe(&right, &[]), valid);
    assert_eq!(probe(&right, &["--target", &target]), valid);
    assert!(echo.accepted() > 0, "it has gone on to the target");
    let (done, status, reason) = probe(&uri("SECRETs", address), &[]);
    assert!(!done);
    assert_eq!(status, "authentication-required");
    assert_eq!(reason, "rejected the user and password");
    let (done, status, reason) = probe(&address.to_string(), &[]);
    assert!(!done);
    assert_eq!(
        (&*status, &*reason),
        ("authentication-required", "answered 05 FF")
    );
}

#[test]
fn proxy_that_skips_the_login_is_not_believed() {
    let peer = Peer::scripted(vec![Step::Read(3), Step::Send(vec![5, 0]), Step::Read(1)]);
    let output = Sockhop::run(&["probe", "--json", &uri("pw", peer.address())]);
    let entries: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(entries[0]["status"], "not-a-proxy");
    assert_eq!(
        peer.heard(),
        [LOGIN[..3].to_vec()],
        "the password stays here"
    );
}

#[test]
fn peer_is_valid_with_the_right_password_and_used() {
    let (_server, address, right) = server("SECRET");
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&["--peer", &right, "-vv"]).start();
    let peer = sockhop.wait_peer(address, "valid", SOON);
    assert_eq!(peer["reason"], "accepted the user and password");
    let forwarder = sockhop.wait_listening(SOON);
    let stream = socks5_connect(forwarder, echo.address()).expect("without a password");
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    assert_hidden(&sockhop, "SECRET");
}

#[test]
fn peer_with_a_wrong_password_says_so_and_the_others_are_used() {
    let (_server, address, _) = server("SECRET");
    let other = Peer::valid(Duration::ZERO);
    let sockhop = Sockhop::forward(&["--peer", &uri("WRONG", address)])
        .args(["--peer", &other.address().to_string()])
        .start();
    let peer = sockhop.wait_peer(address, "authentication-required", SOON);
    assert_eq!(peer["reason"], "rejected the user and password");
    let echo = Target::echo();
    socks5_connect(sockhop.wait_listening(SOON), echo.address()).expect("by the other");
    assert_eq!(other.requests(), 1);
    assert_hidden(&sockhop, "WRONG");
}

#[test]
fn file_of_peers_may_have_logins_and_a_new_password_counts_at_once() {
    let (_server, address, right) = server("SECRET");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peers");
    let bad = "socks5://ada:SECRET@host/path\nada:SECRET@host\n";
    fs::write(&path, format!("{}\n{bad}", uri("WRONG", address))).unwrap();
    let source = format!("file:{}", path.display());
    let sockhop = Sockhop::forward(&["--peers", &source, "-vv"]).start();
    sockhop.wait_peer(address, "authentication-required", SOON);
    sockhop.wait_log(":2: ", SOON);
    sockhop.wait_log(":3: ", SOON);
    fs::write(&path, format!("{right}\n")).unwrap();
    // The next round comes in a minute.
    sockhop.wait_peer(address, "valid", SOON);
    let echo = Target::echo();
    socks5_connect(sockhop.wait_listening(SOON), echo.address()).expect("logged in");
    assert_hidden(&sockhop, "SECRET");
    assert_hidden(&sockhop, "WRONG");
}

#[test]
fn command_may_name_logins() {
    let (_server, address, right) = server("SECRET");
    let sockhop = Sockhop::forward(&["--peers", &format!("exec:echo {right}")]).start();
    sockhop.wait_peer(address, "valid", SOON);
}

#[test]
fn explicit_remote_is_logged_in_to_for_clients() {
    let (_server, address, right) = server("SECRET");
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&["--remote", &right, "-vv"]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let stream = socks5_connect(forwarder, echo.address()).expect("without a password");
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let shown = format!("socks5://ada:***@{address}");
    assert_eq!(sockhop.status()["remote"], shown);
    sockhop.wait_peer(address, "valid", SOON);
    assert_hidden(&sockhop, "SECRET");
}

#[test]
fn remote_in_the_environment_may_have_a_password() {
    let (_server, _, right) = server("SECRET");
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&[]).env("SOCKHOP_REMOTE", &right).start();
    let forwarder = sockhop.wait_listening(SOON);
    socks5_connect(forwarder, echo.address()).expect("logged in");
    assert_hidden(&sockhop, "SECRET");
}

#[test]
fn connect_takes_a_password_and_does_not_repeat_it() {
    let (_server, address, right) = server("SECRET");
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&["--manual", "-vv"]).start();
    // There is somebody to talk to.
    sockhop.status();
    let output = sockhop.command(&["connect", &right]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = format!("connected to socks5://ada:***@{address}, listening on ");
    assert!(
        output.status.success() && text.starts_with(&shown),
        "{text}"
    );
    let forwarder = sockhop.wait_listening(SOON);
    socks5_connect(forwarder, echo.address()).expect("logged in");
    // Another password for the same address is another remote.
    let answer = sockhop.control("connect", json!({"remote": uri("WRONG", address)}));
    assert!(!answer.unwrap().to_string().contains("WRONG"));
    assert!(socks5_connect(forwarder, echo.address()).is_err());
    let error = sockhop.control("connect", json!({"remote": "socks5://ada:SECRET@h/x"}));
    assert!(!error.unwrap_err().to_string().contains("SECRET"));
    let output = sockhop.command(&["connect", "socks5://ada:SECRET@h:x"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && !text.contains("SECRET"),
        "{text}"
    );
    assert_hidden(&sockhop, "SECRET");
    assert_hidden(&sockhop, "WRONG");
}

#[test]
fn wrong_password_of_an_explicit_remote_is_told() {
    let (_server, address, _) = server("SECRET");
    let sockhop = Sockhop::forward(&["--remote", &uri("WRONG", address), "--no-probing"]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let echo = Target::echo();
    let error = socks5_connect(forwarder, echo.address()).unwrap_err();
    assert!(error.to_string().contains("[05, 01, 00, 01]"), "{error}");
    let is_told = |status: &Value| {
        let what = status["last_error"]["what"].as_str();
        what.is_some_and(|what| what.contains("rejected the user and password"))
    };
    sockhop.wait_status(is_told, SOON);
    assert_hidden(&sockhop, "WRONG");
}

#[test]
fn client_that_logs_in_by_itself_is_passed_on_as_it_is() {
    let steps = [takes_login(0), vec![Step::Serve]].concat();
    let peer = Peer::scripted(steps);
    let echo = Target::echo();
    let other = format!("socks5://bob:other@{}", peer.address());
    let sockhop = Sockhop::forward(&["--remote", &other, "--no-probing"]).start();
    let mut stream = connect(sockhop.wait_listening(SOON)).unwrap();
    stream.write_all(&LOGIN[..3]).unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 2]);
    stream.write_all(&LOGIN[3..]).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [1, 0]);
    let [high, low] = echo.address().port().to_be_bytes();
    let request = [5, 1, 0, 1, 127, 0, 0, 1, high, low];
    stream.write_all(&request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..2], [5, 0]);
    assert_eq!(exchange(&stream, b"x").unwrap(), b"x");
    assert_eq!(peer.heard(), [[LOGIN, &request].concat()]);
}

#[test]
fn what_is_said_for_the_client_is_the_login_and_nothing_else() {
    let peer = Peer::scripted([takes_login(0), vec![Step::Serve]].concat());
    let echo = Target::echo();
    let remote = uri("pw", peer.address());
    let sockhop = Sockhop::forward(&["--remote", &remote, "--no-probing"]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let stream = socks5_connect(forwarder, echo.address()).expect("connect");
    assert_eq!(exchange(&stream, b"x").unwrap(), b"x");
    let [high, low] = echo.address().port().to_be_bytes();
    let request = [5, 1, 0, 1, 127, 0, 0, 1, high, low];
    assert_eq!(peer.heard(), [[LOGIN, &request].concat()]);
}

#[test]
fn peer_whose_password_was_changed_is_left_for_the_next() {
    let peer = Peer::scripted([takes_login(0), vec![Step::Serve]].concat());
    let other = Peer::answers_after(Duration::from_millis(200));
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&["--peer", &uri("pw", peer.address())])
        .args(["--peer", &other.address().to_string()])
        .start();
    sockhop.wait_peer(other.address(), "valid", SOON);
    sockhop.wait_peer(peer.address(), "valid", SOON);
    let first = peer.address().to_string();
    let is_first = |status: &Value| status["remote"] == first.as_str();
    sockhop.wait_status(|status| status["remote"].is_string(), SOON);
    if !is_first(&sockhop.status()) {
        // It was slower for once.
        sockhop.control("connect", json!(null)).expect("a race");
    }
    peer.behave(Behaviour::Scripted(takes_login(1)));
    socks5_connect(sockhop.wait_listening(SOON), echo.address()).expect("by the other");
    assert!(wait_until(SOON, || {
        let entry = sockhop.proxy(peer.address()).expect("known");
        entry["reason"] == "rejected the user and password"
    }));
}

#[test]
fn remote_with_a_timeout_of_its_own_is_given_up_then() {
    let (silent, valid) = (Peer::silent(), Peer::valid(Duration::ZERO));
    let echo = Target::echo();
    // One after the other: without its own time the first would have a minute.
    let first = format!("socks5://{}?timeout=200ms", silent.address());
    let sockhop = Sockhop::forward(&["--remote", &first, "--stagger=0", "--connect-timeout=60s"])
        .args(["--remote", &valid.address().to_string(), "--no-probing"])
        .start();
    assert_eq!(sockhop.status()["remote"], first.as_str());
    let forwarder = sockhop.wait_listening(SOON);
    socks5_connect(forwarder, echo.address()).expect("by the second");
    assert_eq!((silent.accepted(), valid.requests()), (1, 1));
}
