//! `sockhop probe`: addresses probed once, as a table or as JSON, with an exit status that a script can use.

mod common;

use std::time::Duration;

use serde_json::Value;

use common::{Peer, Sockhop, Target, dead_address};

const ZERO: Duration = Duration::ZERO;

/// Probes and reads the JSON; whether the exit status was 0.
fn probe(arguments: &[&str]) -> (bool, Vec<Value>) {
    let mut line = vec!["probe", "--json"];
    line.extend(arguments);
    let output = Sockhop::run(&line);
    let entries = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.success(), entries)
}

#[test]
fn each_address_gets_its_status_in_the_order_given() {
    let peers = [
        Peer::silent(),
        Peer::http(),
        Peer::valid(ZERO),
        Peer::auth_required(0xFF),
    ];
    let dead = dead_address();
    let mut addresses: Vec<String> = peers
        .iter()
        .map(|peer| peer.address().to_string())
        .collect();
    addresses.push(dead.to_string());
    let mut line = vec!["--timeout", "500ms"];
    line.extend(addresses.iter().map(String::as_str));
    let (done, entries) = probe(&line);
    assert!(done, "one of them is valid");
    let found: Vec<(&str, &str)> = entries
        .iter()
        .map(|entry| {
            (
                entry["address"].as_str().unwrap(),
                entry["status"].as_str().unwrap(),
            )
        })
        .collect();
    let statuses = [
        "not-listening",
        "not-a-proxy",
        "valid",
        "authentication-required",
        "not-listening",
    ];
    let expected: Vec<(&str, &str)> = addresses.iter().map(String::as_str).zip(statuses).collect();
    assert_eq!(found, expected);
    assert_eq!(entries[0]["reason"], "timed out after connecting");
    assert_eq!(entries[1]["reason"], "sent \"HTTP/1.1\"");
    assert_eq!(entries[4]["reason"], "refused");
    assert!(entries[2]["latency_ms"].as_f64().unwrap() < 500.0);
    for peer in &peers {
        assert!(peer.wait_open(0, common::SOON), "a probe was left open");
    }
}

#[test]
fn without_a_valid_address_it_fails_and_says_so() {
    let (peer, dead) = (Peer::auth_required(2), dead_address());
    let output = Sockhop::run(&["probe", &peer.address().to_string(), &dead.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let (table, said) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        table.contains("answered 05 02") && table.contains("refused"),
        "{table}"
    );
    assert!(
        said.contains("no address is a proxy that can be used"),
        "{said}"
    );
}

#[test]
fn names_are_looked_up_and_those_without_address_are_shown() {
    let peer = Peer::valid(ZERO);
    let name = format!("localhost:{}", peer.address().port());
    // `.invalid` never resolves (RFC 6761), and a NUL-free label keeps it a name.
    let (done, entries) = probe(&["--timeout", "5s", "nobody.invalid", &name]);
    assert!(
        done || entries[1]["status"] == "not-listening",
        "{entries:?}"
    );
    assert_eq!(entries[0]["address"], "nobody.invalid:1080");
    assert_eq!(entries[0]["status"], "unknown");
    assert!(!entries[0]["reason"].as_str().unwrap().is_empty());
}

#[test]
fn a_target_proves_that_the_exit_works() {
    let (peer, echo, dead) = (Peer::valid(ZERO), Target::echo(), dead_address());
    let address = peer.address().to_string();
    let (done, _) = probe(&["--target", &echo.address().to_string(), &address]);
    assert!(done);
    let (done, entries) = probe(&["--target", &dead.to_string(), &address]);
    assert!(!done);
    let reason = entries[0]["reason"].as_str().unwrap();
    assert!(reason.contains("probe target refused"), "{reason}");
}

#[test]
fn hundreds_of_addresses_with_few_descriptors_all_get_an_answer() {
    let peer = Peer::valid(ZERO);
    let address = peer.address().to_string();
    let mut line = vec!["probe", "--json"];
    line.extend(std::iter::repeat_n(address.as_str(), 300));
    let output = common::Launch::new(&line).open_files(64).run(common::SOON);
    assert!(output.status.success());
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(entries.len(), 300);
    assert!(entries.iter().all(|entry| entry["status"] == "valid"));
}
