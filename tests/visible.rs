//! What people see of a running forwarder: streams of each remote, `--drain`, `--watch`, the table of proxies.

mod common;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use common::{Peer, SOON, Sockhop, Target, exchange, expect_end, socks5_connect};

const ZERO: Duration = Duration::ZERO;

/// A forwarder to the first of these, and what each of its clients talks to.
fn connected_to(first: &Peer) -> (Sockhop, Target) {
    let sockhop = Sockhop::forward(&["--manual", "--no-probing"]).start();
    connect(&sockhop, first, json!({}));
    (sockhop, Target::echo())
}

fn connect(sockhop: &Sockhop, peer: &Peer, mut parameters: Value) -> Value {
    parameters["remote"] = peer.address().to_string().into();
    sockhop.control("connect", parameters).unwrap()
}

/// A client with a stream that works.
fn client(sockhop: &Sockhop, echo: &Target) -> TcpStream {
    let client = socks5_connect(sockhop.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    client
}

/// What `status` says of a remote's streams.
fn streams(status: &Value, remote: SocketAddr) -> Value {
    let all = status["streams"].as_array().cloned().unwrap_or_default();
    let name = remote.to_string();
    let one = all.into_iter().find(|one| one["remote"] == name.as_str());
    one.unwrap_or_default()
}

fn stdout(output: std::process::Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn old_streams_are_seen_until_they_end() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (sockhop, echo) = connected_to(&a);
    let old = [client(&sockhop, &echo), client(&sockhop, &echo)];
    connect(&sockhop, &b, json!({}));
    let new = client(&sockhop, &echo);
    // 3 + 10 + 5 bytes up, 2 + 10 + 5 down, each.
    let a_expected = json!({
        "remote": a.address().to_string(), "selected": false, "live": 2, "total": 2,
        "bytes": {"up": 36, "down": 34},
    });
    let b_expected = json!({
        "remote": b.address().to_string(), "selected": true, "live": 1, "total": 1,
        "bytes": {"up": 18, "down": 17},
    });
    let both = |status: &Value| status["streams"] == json!([b_expected, a_expected]);
    sockhop.wait_status(both, SOON);
    let text = stdout(sockhop.command(&["status"]));
    let line = format!(
        "streams      {}: 1 live, 1 in total, 18 B up, 17 B down\n",
        b.address()
    );
    assert!(text.contains(&line), "{text}");
    let line = format!(
        "old streams  {}: 2 live, 2 in total, 36 B up, 34 B down\n",
        a.address()
    );
    assert!(text.contains(&line), "{text}");

    assert_eq!(exchange(&old[0], b"still here").unwrap(), b"still here");
    drop(old);
    sockhop.wait_status(|status| streams(status, a.address()).is_null(), SOON);
    drop(new);
    sockhop.wait_status(|status| status["streams"].is_null(), SOON);
}

#[test]
fn what_is_left_on_old_remotes_is_cut_in_time() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (sockhop, echo) = connected_to(&a);
    let old = client(&sockhop, &echo);
    // Parked or with a worker: both are cut.
    let parked = client(&sockhop, &echo);
    sockhop.wait_status(|status| status["connections"]["parked"] == 2, SOON);
    let to_b = b.address().to_string();
    let text = stdout(sockhop.command(&["connect", "--drain", "1h", &to_b]));
    assert!(
        text.ends_with("; 2 older streams are cut in 1h\n"),
        "{text}"
    );
    let new = client(&sockhop, &echo);
    let status = sockhop.status();
    let left = streams(&status, a.address())["cut_in_s"].as_f64().unwrap();
    assert!((3000.0..=3600.0).contains(&left), "{left}");
    assert_eq!(streams(&status, b.address())["cut_in_s"], Value::Null);
    assert_eq!(exchange(&old, b"still here").unwrap(), b"still here");

    // The sooner one counts.
    let answer = connect(&sockhop, &b, json!({"drain_s": 0.2}));
    assert_eq!(answer["draining"], 2);
    expect_end(&old, SOON);
    expect_end(&parked, SOON);
    assert_eq!(exchange(&new, b"not cut").unwrap(), b"not cut");
    sockhop.wait_log("time is up for streams on other remotes: 2 are cut", SOON);
}

#[test]
fn a_drain_spares_the_remote_that_stays() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (sockhop, echo) = connected_to(&a);
    let on_a = client(&sockhop, &echo);
    connect(&sockhop, &b, json!({}));
    let on_b = client(&sockhop, &echo);
    // Back to the first: its stream is of an older choice than that of the second.
    connect(&sockhop, &a, json!({"drain_s": 0}));
    expect_end(&on_b, SOON);
    assert_eq!(exchange(&on_a, b"not cut").unwrap(), b"not cut");
    // And the other way round.
    connect(&sockhop, &b, json!({"drain_s": 0}));
    expect_end(&on_a, SOON);
}

#[test]
fn a_connect_that_fails_drains_nothing() {
    let a = Peer::valid(ZERO);
    let (sockhop, echo) = connected_to(&a);
    let client = client(&sockhop, &echo);
    let own = sockhop.wait_listening(SOON).to_string();
    let parameters = json!({"remote": own, "drain_s": 0});
    sockhop.control("connect", parameters).unwrap_err();
    assert_eq!(exchange(&client, b"not cut").unwrap(), b"not cut");
    for text in ["1", "-1s", "25h", "soon"] {
        let output = sockhop.command(&["connect", "--drain", text]);
        assert_eq!(output.status.code(), Some(2), "{text}");
    }
}
