//! More peers than an answer of the control socket can list.

mod common;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use common::{SOON, Sockhop};

/// Addresses of loopback, which nobody asks: probing is off.
fn known(count: u32) -> impl Iterator<Item = SocketAddr> {
    (1..=count).map(|number| (Ipv4Addr::from(0x7F10_0000 + number), 9).into())
}

#[test]
fn the_best_are_listed_and_the_others_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    let mut text = String::new();
    for address in known(60_000) {
        writeln!(text, "{address}").unwrap();
    }
    std::fs::write(&path, text).unwrap();
    let peers = format!("file:{}", path.display());
    let sockhop = Sockhop::forward(&["--manual", "--no-probing", "--peers", &peers]).start();
    sockhop.wait_status(|status| status["candidates"]["unknown"] == 60_000, SOON);
    // The last of all is the one in use.
    let last = known(60_000).last().unwrap();
    let remote = json!({ "remote": last.to_string() });
    sockhop.control("connect", remote).unwrap();

    for arguments in [&["proxies", "--json"][..], &["proxies"]] {
        let output = sockhop.command(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(
            stderr,
            "sockhop: proxies: the best are listed, 50000 more are left out\n"
        );
        let stdout = String::from_utf8(output.stdout).unwrap();
        if arguments.len() == 1 {
            // With the heading.
            assert_eq!(stdout.lines().count(), 10_001);
            assert!(stdout.contains(&format!("*  {last} ")));
            continue;
        }
        let Value::Array(list) = serde_json::from_str(&stdout).unwrap() else {
            panic!("no list: {stdout:.100}");
        };
        assert_eq!(list.len(), 10_000);
        let first = known(1).next().unwrap().to_string();
        assert_eq!(list[0]["address"], first.as_str());
        let selected: Vec<_> = list.iter().filter(|one| one["selected"] == true).collect();
        assert_eq!(selected.len(), 1);
        assert_eq!(selected[0]["address"], last.to_string().as_str());
    }
}
