//! With nobody named, the overlay daemons of this machine are found at their usual places, and the peers that they name probed.
//!
//! In a namespace with a `/run` of its own: the daemons are the test's, and so are the addresses of the overlays.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use common::{Answer, Api, Behaviour, Netns, Peer, SOON, Sockhop, http_ok};

/// A node's address on Mycelium, and the key that it is the hash of.
const MYCELIUM: &str = "415:490:71ed:9131:49a8:d3b:b789:1fcd";
const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const YGGDRASIL: &str = "200:1111:2222:3333:4444:5555:6666:7777";
const TAILSCALE: &str = "100.64.0.2";

/// How soon a daemon is looked for again, and time to spare.
const FOUND: Duration = Duration::from_secs(20);

fn mycelium(home: &Netns) -> Api {
    home.inside(|| {
        Api::tcp_at("127.0.0.1:8989", |request| {
            match request.split(' ').nth(1).expect("a path") {
                "/api/v1/admin/routes/selected" => http_ok(
                    r#"[{"subnet":"415:490:71ed:9131::/64","nextHop":"TCP 10.0.0.1:1 <-> 10.0.0.2:2","metric":5,"seqno":0}]"#,
                ),
                "/api/v1/pubkey/415:490:71ed:9131::" => {
                    http_ok(&format!(r#"{{"publicKey":"{KEY}"}}"#))
                }
                // Its own one is on the cable: the kernel knows.
                "/api/v1/admin" => http_ok(r#"{"nodeSubnet":"400::/64"}"#),
                "/api/v1/admin/proxy" => http_ok(r#"["400::1"]"#),
                other => panic!("{other}"),
            }
        })
    })
}

fn yggdrasil(run: &Path) -> Api {
    fs::create_dir(run.join("yggdrasil")).expect("directory");
    Api::unix_at(&run.join("yggdrasil/yggdrasil.sock"), |request| {
        let object: Value = serde_json::from_str(request).expect("an object");
        let response = match object["request"].as_str().expect("a name") {
            "getSelf" => r#"{"address":"200::1"}"#.to_owned(),
            "getTree" => {
                format!(r#"{{"tree":[{{"address":"{YGGDRASIL}"}},{{"address":"200::1"}}]}}"#)
            }
            _ => "{}".to_owned(),
        };
        let answer = format!(r#"{{"status":"success","request":{{}},"response":{response}}}"#);
        Answer::Last(answer.into_bytes())
    })
}

fn tailscale(run: &Path) -> Api {
    fs::create_dir(run.join("tailscale")).expect("directory");
    Api::unix_at(&run.join("tailscale/tailscaled.sock"), |_| {
        http_ok(&format!(
            r#"{{"BackendState":"Running","Self":{{"TailscaleIPs":["100.64.0.1"]}},
                "Peer":{{"nodekey:a":{{"TailscaleIPs":["{TAILSCALE}"],"Online":true}}}}}}"#
        ))
    })
}

/// The error of each source that is looked for.
fn errors(status: &Value) -> Vec<(&str, Option<&str>)> {
    let sources = status["sources"].as_array().expect("a list");
    let name = |source: &'_ Value| source["name"].as_str().map(str::to_owned);
    sources
        .iter()
        .filter(|source| name(source).as_deref() != Some("remote"))
        .map(|source| {
            (
                source["name"].as_str().expect("a name"),
                source["error"].as_str(),
            )
        })
        .collect()
}

#[test]
#[ignore = "needs root for network namespaces"]
fn daemons_are_found_at_their_usual_places_as_they_come() {
    let (home, far) = (Netns::new(), Netns::new());
    home.cable(
        &far,
        &["400::1/7", "200::1/7", "100.64.0.1/10"],
        &[
            &format!("{MYCELIUM}/7"),
            &format!("{YGGDRASIL}/7"),
            &format!("{TAILSCALE}/10"),
        ],
    );
    let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), 1080);
    let peers = [MYCELIUM, YGGDRASIL, TAILSCALE].map(|ip| {
        let address = at(ip).to_string();
        far.inside(|| Peer::at(&address, Behaviour::Valid(Duration::ZERO)))
    });
    let run = TempDir::new().expect("temporary directory");
    let sockhop = Sockhop::forward(&[])
        .inside(&home)
        .run_directory(run.path())
        .start();
    let gone = Some("not found on this machine");
    let all = |found: [Option<&'static str>; 3]| {
        let expected: Vec<_> = ["mycelium", "yggdrasil", "tailscale"]
            .into_iter()
            .zip(found)
            .collect();
        move |status: &Value| errors(status) == expected
    };

    sockhop.wait_status(all([gone, gone, gone]), SOON);
    sockhop.wait_log("nobody to forward to yet: no overlay daemon", SOON);
    let status = sockhop.wait_status(|status| status["last_error"].is_object(), SOON);
    assert!(status["remote"].is_null(), "{status}");
    assert_eq!(status["listening"], serde_json::json!([]));

    let _tailscale = tailscale(run.path());
    sockhop.wait_peer(at(TAILSCALE), "valid", FOUND);
    sockhop.wait_status(all([gone, gone, None]), SOON);
    let _mycelium = mycelium(&home);
    sockhop.wait_peer(at(MYCELIUM), "valid", FOUND);
    let _yggdrasil = yggdrasil(run.path());
    sockhop.wait_peer(at(YGGDRASIL), "valid", FOUND);
    let status = sockhop.wait_status(all([None, None, None]), SOON);
    assert_eq!(
        status["remote"],
        at(TAILSCALE).to_string(),
        "the first one stays"
    );
    // The own ones, which Mycelium and Yggdrasil name as well, are not among them.
    assert_eq!(sockhop.proxies().len(), peers.len());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn routes_to_single_hosts_name_them_and_own_addresses_are_none() {
    let (home, far) = (Netns::new(), Netns::new());
    home.cable(
        &far,
        &["10.77.1.1/24", "fd77:1::1/64"],
        &["10.77.1.2/24", "fd77:1::2/64"],
    );
    // As a routing daemon or WireGuard makes them.
    far.ip("address add 10.99.0.2/32 dev lo");
    far.ip("address add fd99::2/128 dev lo");
    home.ip("route add 10.99.0.2/32 via 10.77.1.2");
    home.ip("route add fd99::2/128 via fd77:1::2");
    home.ip("route add blackhole 10.99.0.3/32");
    home.ip("route add unreachable fd99::3/128");
    home.ip("address add 10.99.0.4/32 dev lo");
    home.ip("route add 10.98.0.0/16 via 10.77.1.2");
    let peers = ["10.99.0.2:1080", "[fd99::2]:1080"]
        .map(|address| far.inside(|| Peer::at(address, Behaviour::Valid(Duration::ZERO))));
    let sockhop = Sockhop::forward(&["--peers", "routes"])
        .inside(&home)
        .start();
    for peer in &peers {
        let known = sockhop.wait_peer(peer.address(), "valid", FOUND);
        assert_eq!(known["sources"], serde_json::json!(["routes"]));
    }
    let proxies = sockhop.proxies();
    assert_eq!(proxies.len(), peers.len(), "{proxies:?}");
}
