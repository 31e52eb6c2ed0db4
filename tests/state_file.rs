//! The state file: what is known of proxies outlives a restart.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use common::{
    Behaviour, Launch, Peer, SOON, Signal, Sockhop, Target, dead_address, exchange, socks5_connect,
};

const ZERO: Duration = Duration::ZERO;

/// A folder, and the path of a file in it.
fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state");
    (folder, path)
}

/// Nobody answers these probes for as long as a test lasts.
fn forward(path: &Path, peers: &[&Peer]) -> Launch {
    let mut launch = Sockhop::forward(&["--probe-interval", "60s"])
        .arg("--state")
        .arg(path);
    for peer in peers {
        launch = launch.arg("--peer").arg(peer.address().to_string());
    }
    launch
}

fn stop(sockhop: &mut Sockhop) {
    sockhop.signal(Signal::TERM);
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(0));
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_was_found_is_there_after_a_restart() {
    let (near, far) = (Peer::valid(ZERO), Peer::valid(Duration::from_millis(50)));
    let (echo, (_folder, path)) = (Target::echo(), folder());
    let mut first = forward(&path, &[&near, &far]).start();
    first.wait_peer(far.address(), "valid", SOON);
    first.wait_peer(near.address(), "valid", SOON);
    let in_use = first.wait_status(|status| status["remote"].is_string(), SOON);
    stop(&mut first);
    let written = lines(&path);
    assert_eq!(written.len(), 4, "{written:?}");
    assert_eq!(written[0], "sockhop-state 1");
    assert_eq!(written[1], in_use["remote"], "the one in use first");

    // Nobody names them now, and there is no probing at all: what is used can only come from the file.
    let mut second = Sockhop::forward(&["--no-probing", "--peers", "exec:true"])
        .arg("--state")
        .arg(&path)
        .start();
    let client = socks5_connect(second.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    let status = second.status();
    assert_eq!(status["remote"], in_use["remote"]);
    assert_eq!(
        status["reason"],
        "the last good one before the start, not probed yet"
    );
    assert_eq!(status["candidates"]["unknown"], 2);
    stop(&mut second);
    assert_eq!(lines(&path), written, "nothing new");
}

#[test]
fn a_last_good_one_that_is_dead_now_costs_no_client() {
    let (_folder, path) = folder();
    let (old, echo) = (Peer::valid(ZERO), Target::echo());
    let gone = old.address();
    let mut first = forward(&path, &[&old]).start();
    first.wait_listening(SOON);
    stop(&mut first);
    drop(old);

    let new = Peer::valid(ZERO);
    let mut second = forward(&path, &[&new]).start();
    for _ in 0..20 {
        let client = socks5_connect(second.wait_listening(SOON), echo.address()).unwrap();
        assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    }
    let new = new.address().to_string();
    second.wait_status(|status| status["remote"] == new.as_str(), SOON);
    // It may come back: it is remembered behind the one in use.
    stop(&mut second);
    assert_eq!(lines(&path)[1..3], [new, gone.to_string()]);
}

/// It takes connections and says nothing, which only time shows: the first one that is found valid serves those who wait for it.
#[test]
fn a_last_good_one_that_is_silent_now_costs_no_client() {
    let (_folder, path) = folder();
    let (old, echo) = (Peer::valid(ZERO), Target::echo());
    let mut first = forward(&path, &[&old]).start();
    first.wait_listening(SOON);
    stop(&mut first);
    old.behave(Behaviour::Silent);

    let new = Peer::valid(ZERO);
    let second = forward(&path, &[&new]).start();
    let begin = Instant::now();
    let client = socks5_connect(second.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "a probe takes 5 s"
    );
    assert_eq!(second.status()["remote"], old.address().to_string());
}

/// Nobody else is there: clients are told so when the first probes have ended, not before and not much later.
#[test]
fn without_others_clients_are_told_when_the_first_probes_have_ended() {
    let (_folder, path) = folder();
    let old = Peer::valid(ZERO);
    let mut first = forward(&path, &[&old]).start();
    first.wait_listening(SOON);
    stop(&mut first);
    drop(old);
    let silent = Peer::silent();
    let second = forward(&path, &[&silent])
        .args(["--probe-timeout", "300ms"])
        .start();
    let listener = second.wait_listening(SOON);
    let refused = socks5_connect(listener, dead_address()).unwrap_err();
    assert!(refused.to_string().contains("[05, 01,"), "{refused}");
    second.wait_peer(silent.address(), "not-listening", SOON);
}

#[test]
fn remembered_ones_are_probed_though_nobody_names_them() {
    let (_folder, path) = folder();
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let mut first = forward(&path, &[&a, &b]).start();
    first.wait_peer(a.address(), "valid", SOON);
    first.wait_peer(b.address(), "valid", SOON);
    stop(&mut first);
    let other = dead_address().to_string();
    let second = Sockhop::forward(&["--peer", &other])
        .arg("--state")
        .arg(&path)
        .start();
    let valid = second.wait_peer(a.address(), "valid", SOON);
    assert_eq!(valid["sources"], serde_json::json!([]));
    second.wait_peer(b.address(), "valid", SOON);
    second.wait_status(|status| status["reason"] == "valid: answered 05 00", SOON);
}

#[test]
fn a_bad_file_is_named_and_kept_aside() {
    let (folder, path) = folder();
    let peer = Peer::valid(ZERO);
    let aside = folder.path().join("state.bad");
    for (content, named) in [
        (
            "sockhop-state 1\n10.0.0.1:1080\nend 1 0000",
            "its end is missing",
        ),
        (
            "sockhop-state 7\n10.0.0.1:1080\n",
            "another version of sockhop wrote it",
        ),
    ] {
        fs::write(&path, content).unwrap();
        let mut sockhop = forward(&path, &[&peer]).start();
        let line = sockhop.wait_log(named, SOON);
        assert!(line.contains(path.to_str().unwrap()), "{line}");
        sockhop.wait_peer(peer.address(), "valid", SOON);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        stop(&mut sockhop);
        assert_eq!(fs::read_to_string(&aside).unwrap(), content);
        assert_eq!(lines(&path)[1], peer.address().to_string());
    }
}

#[test]
fn what_is_not_a_state_file_is_left_alone() {
    let (folder, path) = folder();
    let peer = Peer::valid(ZERO);
    fs::write(&path, "precious\n").unwrap();
    for (path, named) in [
        (path.as_path(), "it is not a state file"),
        (folder.path(), "it is not a regular file"),
    ] {
        let mut sockhop = forward(path, &[&peer]).start();
        sockhop.wait_log(named, SOON);
        sockhop.wait_peer(peer.address(), "valid", SOON);
        stop(&mut sockhop);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_place_that_cannot_be_written_stops_nothing() {
    let (folder, _) = folder();
    let (peer, echo) = (Peer::valid(ZERO), Target::echo());
    let path = folder.path().join("none/state");
    let mut sockhop = forward(&path, &[&peer]).start();
    sockhop.wait_log("its directory does not exist", SOON);
    let client = socks5_connect(sockhop.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    stop(&mut sockhop);
    let line = sockhop.wait_log("cannot write state file", SOON);
    assert!(line.contains(path.to_str().unwrap()), "{line}");
}

/// Who never was a proxy is not remembered, and no secret is.
#[test]
fn only_good_ones_and_no_secrets_are_kept() {
    let (_folder, path) = folder();
    let (valid, http) = (Peer::valid(ZERO), Peer::http());
    let mut sockhop = forward(&path, &[&valid, &http]).start();
    sockhop.wait_peer(http.address(), "not-a-proxy", SOON);
    sockhop.wait_peer(valid.address(), "valid", SOON);
    stop(&mut sockhop);
    let written = lines(&path);
    assert_eq!(written.len(), 3);
    assert_eq!(written[1], valid.address().to_string());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A remote that was named by hand and answered is worth remembering; `connect` by hand is not undone by it.
#[test]
fn explicit_and_manual_forwarders_start_as_told() {
    let (_folder, path) = folder();
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let mut first = Sockhop::forward(&["--remote", &a.address().to_string()])
        .arg("--state")
        .arg(&path)
        .start();
    first.wait_peer(a.address(), "valid", SOON);
    stop(&mut first);
    assert_eq!(lines(&path)[1], a.address().to_string());

    let second = Sockhop::forward(&["--remote", &b.address().to_string()])
        .arg("--state")
        .arg(&path)
        .start();
    second.wait_listening(SOON);
    assert_eq!(second.status()["remote"], b.address().to_string());
    let third = Sockhop::forward(&["--manual"])
        .arg("--state")
        .arg(&path)
        .start();
    third.wait_peer(a.address(), "valid", SOON);
    assert_eq!(third.status()["remote"], Value::Null);
}
