//! A real Yggdrasil network, on which `sockhop forward` finds its proxies without being told of any.
//!
//! Three namespaces: `home`, where the forwarder and its clients are, and two with a SOCKS server and a web server each. All have
//! a Yggdrasil of their own with its usual socket in a `/run` of their own. Nothing leaves them.
#![cfg(all(target_os = "linux", feature = "server"))]

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod overlay;

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use clients::{Client, assert_all, slowest, usual};
use common::{SOON, wait_until};
use overlay::{Node, OVERLAY, Overlay};

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn with_nobody_named_a_proxy_is_found_and_used() {
    let overlay = Overlay::new(&[]);
    let (used, _) = overlay.used_and_other();
    assert_eq!(overlay.curl().got, Ok(used.name.to_owned()));
    let status = overlay.sockhop.status();
    assert_eq!(trouble(&status, "yggdrasil"), &Value::Null);
    assert_eq!(trouble(&status, "mycelium"), "not found on this machine");
    assert_eq!(trouble(&status, "tailscale"), "not found on this machine");
    // Two nodes are known and nobody else, the own one in particular.
    assert_eq!(overlay.sockhop.proxies().len(), 2, "{status}");
    let home = overlay.home.proxy();
    assert_eq!(overlay.sockhop.proxy(home), None);
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn a_server_that_is_killed_under_a_stream_of_clients_fails_none() {
    let overlay = Overlay::new(&[]);
    let (used, other) = overlay.used_and_other();
    let served = overlay.clients_while(|| overlay.kill_proxy(used));
    served.assert_none_failed(used.name, other.name);
    for took in [slowest(&served.meanwhile), slowest(&served.after)] {
        assert!(took < AT_MOST, "{took:?}");
    }
    let remote = other.proxy().to_string();
    overlay
        .sockhop
        .wait_status(|status| status["remote"] == remote, SOON);
}

/// The server has a long time, so only its end can free its clients.
#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn a_server_that_is_killed_over_requests_fails_none() {
    let overlay = Overlay::new(&["--connect-timeout", "60s"]);
    let (used, other) = overlay.used_and_other();
    let clients = gone_over_requests(&overlay, used, || overlay.kill_proxy(used));
    assert_all(&clients, other.name);
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn a_server_that_goes_silent_over_requests_fails_none() {
    let overlay = Overlay::new(&[]);
    let (used, other) = overlay.used_and_other();
    let clients = gone_over_requests(&overlay, used, || {
        used.netns.filter(&["input tcp dport { 1080, 8080 } drop"]);
    });
    assert_all(&clients, other.name);
    let took = slowest(&clients);
    assert!(took < CONNECT_TIMEOUT + AT_MOST, "{took:?}");
}

/// Clients whose requests a server has and has not answered when something happens to it: it is connecting for them.
fn gone_over_requests(overlay: &Overlay, used: &Node, event: impl FnOnce()) -> [Client; 8] {
    used.netns.filter(&["input tcp dport 8080 drop"]);
    thread::scope(|scope| {
        let clients = [(); 8].map(|()| scope.spawn(|| overlay.curl()));
        let are_asked = wait_until(SOON, || used.connecting() == clients.len());
        event();
        assert!(are_asked, "not all requests have got there");
        clients.map(|client| client.join().expect("no panic"))
    })
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn a_server_whose_packets_get_lost_fails_no_client_and_costs_a_bounded_time() {
    let overlay = Overlay::new(&[]);
    let (used, other) = overlay.used_and_other();
    let served = overlay.clients_while(|| used.netns.filter(&["input tcp dport 1080 drop"]));
    served.assert_none_failed(used.name, other.name);
    let took = slowest(&served.after);
    assert!(took < AT_MOST, "{took:?}");
    let added = usual(&served.after).saturating_sub(usual(&served.before));
    assert!(added < AT_MOST / 2, "{added:?}");
    // A request that got there may take its time: for as long as connecting may take nobody else is asked.
    for client in &served.meanwhile {
        let took = client.took();
        assert!(
            client.got.is_err() || took < CONNECT_TIMEOUT + AT_MOST,
            "{took:?}"
        );
    }
    // It comes back: when the other one goes, it is used again.
    used.netns.filter(&[]);
    overlay.sockhop.wait_peer(used.proxy(), "valid", OVERLAY);
    let served = overlay.clients_while(|| other.netns.filter(&["input tcp dport 1080 drop"]));
    assert_all(&served.after, used.name);
    let took = slowest(&served.after);
    assert!(took < AT_MOST, "{took:?}");
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn the_own_link_goes_down_and_comes_back() {
    let overlay = Overlay::new(&[]);
    let (used, _) = overlay.used_and_other();
    let links = [&overlay.near, &overlay.far].map(|node| overlay.home.netns.link_to(&node.netns));
    let set = |state: &str| {
        for link in &links {
            overlay.home.netns.ip(&format!("link set {link} {state}"));
        }
    };
    set("down");
    // Until probes have found out that nobody answers any more.
    let lost = |proxy: &Value| proxy["reason"] != "answered 05 00";
    overlay
        .sockhop
        .wait_proxies(|proxies| proxies.iter().all(lost), OVERLAY);
    // The last good choice stays, and the port open.
    let status = overlay.sockhop.status();
    assert_eq!(status["remote"], used.proxy().to_string(), "{status}");
    assert_eq!(
        status["listening"][0],
        overlay.listener.to_string(),
        "{status}"
    );
    set("up");
    let started = Instant::now();
    assert!(
        wait_until(OVERLAY, || overlay.curl().got.is_ok()),
        "{:?}",
        started.elapsed()
    );
    for node in [&overlay.near, &overlay.far] {
        overlay.sockhop.wait_peer(node.proxy(), "valid", OVERLAY);
    }
    assert!(overlay.curl().got.is_ok());
}

/// What is wrong with a source.
fn trouble<'a>(status: &'a Value, name: &str) -> &'a Value {
    let sources = status["sources"].as_array().expect("a list");
    let found = sources.iter().find(|source| source["name"] == name);
    &found.unwrap_or_else(|| panic!("no {name} in {status}"))["error"]
}

/// A folder, and the arguments for a state file in it.
fn state() -> (TempDir, [String; 2]) {
    let folder = TempDir::new().expect("temporary directory");
    let path = folder.path().join("state");
    let path = path.to_str().expect("UTF-8").to_owned();
    (folder, ["--state".to_owned(), path])
}

/// The addresses in a state file.
fn remembered([_, path]: &[String; 2]) -> Vec<String> {
    let text = fs::read_to_string(path).expect("the state file");
    let lines = text.lines().map(str::to_owned);
    lines.filter(|line| line.contains("]:1080")).collect()
}

/// Yggdrasil carries packets but tells nobody who is there, so what is used comes from the state file.
#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn after_a_restart_the_last_good_one_is_used_without_asking_anybody() {
    let (_folder, state) = state();
    let arguments = state.each_ref().map(String::as_str);
    let mut overlay = Overlay::new(&arguments);
    let (used, other) = overlay.used_and_other();
    let (used, other) = ((used.name, used.proxy()), (other.name, other.proxy()));
    overlay.stop(Signal::TERM);
    let expected = [used.1, other.1].map(|proxy| proxy.to_string());
    assert_eq!(remembered(&state), expected);

    let socket = overlay.home.socket();
    fs::remove_file(&socket).expect("its socket");
    let silent = UnixListener::bind(&socket).expect("a socket in its place");
    // Nobody is probed either.
    let quiet = [arguments.as_slice(), &["--no-probing"]].concat();
    overlay.start_again(&quiet);
    let client = overlay.curl();
    assert_eq!(client.got, Ok(used.0.to_owned()));
    assert!(client.took() < AT_MOST, "{:?}", client.took());
    let status = overlay.sockhop.status();
    assert_eq!(status["remote"], used.1.to_string(), "{status}");
    assert_eq!(
        status["reason"],
        "the last good one before the start, not probed yet"
    );

    // That Yggdrasil does not answer is no secret.
    overlay
        .sockhop
        .wait_status(|status| trouble(status, "yggdrasil").is_string(), OVERLAY);

    // The power fails. And while it was away, the last good one went.
    overlay.stop(Signal::KILL);
    assert_eq!(remembered(&state), expected);
    let gone = match used.0 == overlay.near.name {
        true => &overlay.near,
        false => &overlay.far,
    };
    overlay.kill_proxy(gone);
    overlay.start_again(&arguments);
    let clients: Vec<_> = (0..20).map(|_| overlay.curl()).collect();
    assert_all(&clients, other.0);
    assert!(slowest(&clients) < AT_MOST, "{:?}", slowest(&clients));
    let remote = other.1.to_string();
    overlay
        .sockhop
        .wait_status(|status| status["remote"] == remote, SOON);
    drop(silent);
}

/// It is there, and all its packets get lost, which only time shows: whoever is found valid first serves the clients.
#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn after_a_restart_the_other_one_is_used_when_the_last_good_one_is_silent() {
    let (_folder, state) = state();
    let arguments = state.each_ref().map(String::as_str);
    let mut overlay = Overlay::new(&arguments);
    overlay.stop(Signal::TERM);
    let last = remembered(&state).swap_remove(0);
    let [used, other] = match last == overlay.near.proxy().to_string() {
        true => [&overlay.near, &overlay.far],
        false => [&overlay.far, &overlay.near],
    };
    used.netns.filter(&["input tcp dport 1080 drop"]);
    let other = other.name;
    fs::remove_file(overlay.home.socket()).expect("its socket");
    overlay.start_again(&arguments);
    let clients: Vec<_> = (0..20).map(|_| overlay.curl()).collect();
    assert_all(&clients, other);
    assert!(slowest(&clients) < AT_MOST, "{:?}", slowest(&clients));
}

/// On a router that boots the forwarder may be there before the overlay: there is no way to anybody then.
#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn after_a_restart_without_yggdrasil_all_is_well_as_soon_as_that_is_there() {
    let (_folder, state) = state();
    let arguments = state.each_ref().map(String::as_str);
    let mut overlay = Overlay::new(&arguments);
    overlay.stop(Signal::TERM);
    let expected = remembered(&state);
    overlay.home.leave();
    overlay.start_again(&arguments);
    assert_eq!(overlay.sockhop.status()["remote"], expected[0]);
    // Clients are told so in time.
    let client = overlay.curl();
    let said = client.got.expect_err("no way to anybody");
    assert!(said.contains("curl: (97)"), "{said}");
    overlay.home.rejoin();
    assert!(wait_until(OVERLAY, || overlay.curl().got.is_ok()));
    for node in [&overlay.near, &overlay.far] {
        overlay.sockhop.wait_peer(node.proxy(), "valid", OVERLAY);
    }
    let (used, _) = overlay.used_and_other();
    let used = used.name.to_owned();
    assert_eq!(overlay.curl().got, Ok(used));
    // Nothing was forgotten meanwhile.
    overlay.stop(Signal::TERM);
    let (mut before, mut after) = (expected, remembered(&state));
    before.sort();
    after.sort();
    assert_eq!(before, after);
}

/// What a client takes at most when a remote is gone: without it some 50 ms, then 300 ms (`--stagger`) that a remote may
/// hesitate before another one is asked beside it, and the rest is this machine's load.
const AT_MOST: Duration = Duration::from_secs(2);

/// The default of `--connect-timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
