//! Peers that the daemons of overlays name: each API as it answers, and each way in which it can fail to.
//!
//! Nobody is probed here: the addresses are those of overlays, not of loopback.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{Answer, Api, SOON, Signal, Sockhop, dead_address, http_ok, wait_until};

/// Longer than all that one refresh may take.
const REFRESHED: Duration = Duration::from_secs(25);

fn forward(sources: &[String]) -> Sockhop {
    let mut arguments = vec!["--no-probing"];
    for source in sources {
        arguments.extend(["--peers", source]);
    }
    Sockhop::forward(&arguments).start()
}

/// The addresses that this source names, in order.
fn named(proxies: &[Value], source: &str) -> Vec<String> {
    let mut addresses: Vec<String> = proxies
        .iter()
        .filter(|proxy| {
            let sources = proxy["sources"].as_array().expect("a list");
            sources.iter().any(|name| name == source)
        })
        .map(|proxy| proxy["address"].as_str().expect("text").to_owned())
        .collect();
    addresses.sort();
    addresses
}

/// Waits until the source names exactly these.
#[track_caller]
fn wait_named(sockhop: &Sockhop, source: &str, expected: &[&str]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    sockhop.wait_proxies(|proxies| named(proxies, source) == expected, REFRESHED);
}

/// The error of a source in a `status` answer.
fn error<'a>(status: &'a Value, source: &str) -> Option<&'a str> {
    let sources = status["sources"].as_array().expect("a list");
    let state = sources
        .iter()
        .find(|state| state["name"] == source)
        .unwrap_or_else(|| panic!("{source} is not in {sources:?}"));
    state["error"].as_str()
}

#[track_caller]
fn wait_error(sockhop: &Sockhop, source: &str, text: &str) -> String {
    let has_it = |status: &Value| error(status, source).is_some_and(|error| error.contains(text));
    let status = sockhop.wait_status(has_it, REFRESHED);
    error(&status, source).expect("just seen").to_owned()
}

// Mycelium.

/// Keys of nodes and their addresses.
const NODES: [(&str, &str); 3] = [
    (
        "0101010101010101010101010101010101010101010101010101010101010101",
        "415:490:71ed:9131:49a8:d3b:b789:1fcd",
    ),
    (
        "0303030303030303030303030303030303030303030303030303030303030303",
        "5b5:fbf7:762c:d146:e8d1:5a1c:322c:338f",
    ),
    (
        "0202020202020202020202020202020202020202020202020202020202020202",
        "4d6:b45:31b1:1410:aab:5f99:7d1:718c",
    ),
];

const ROUTES: &str = r#"[
    {"subnet":"415:490:71ed:9131::/64","nextHop":"TCP 10.77.0.1:60396 <-> 10.77.0.2:9651","metric":1015,"seqno":0},
    {"subnet":"5b5:fbf7:762c:d146::/64","nextHop":"TCP 10.77.0.1:60396 <-> 10.77.0.2:9651","metric":3,"seqno":0},
    {"subnet":"4d6:b45:31b1:1410::/64","nextHop":"TCP 10.77.0.1:60396 <-> 10.77.0.2:9651","metric":"infinite","seqno":9}]"#;

const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

/// Version 0.7.10, but for what `other` answers.
fn mycelium(other: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static) -> Api {
    Api::tcp(move |request| {
        let path = request.split(' ').nth(1).expect("a path");
        if let Some(answer) = other(path) {
            return answer;
        }
        match path {
            "/api/v1/admin" => http_ok(
                r#"{"nodeSubnet":"453:597:5e1a:bd4d::/64","nodeIp":"453:597:5e1a:bd4d:2616:9e04:cdcc:f7cd","nodePubkey":"1e","nodeStartTime":1}"#,
            ),
            "/api/v1/admin/routes/selected" => http_ok(ROUTES),
            "/api/v1/admin/proxy" => http_ok(
                r#"["453:597:5e1a:bd4d:2616:9e04:cdcc:f7cd","415:490:71ed:9131:49a8:d3b:b789:1fcd","400::5"]"#,
            ),
            _ => match path.strip_prefix("/api/v1/pubkey/") {
                Some(base) => {
                    let prefix = base.strip_suffix("::").expect("the base of a subnet");
                    match NODES.iter().find(|(_, ip)| ip.starts_with(prefix)) {
                        Some((key, _)) => http_ok(&format!(r#"{{"publicKey":"{key}"}}"#)),
                        None => Answer::Whole(NOT_FOUND.into()),
                    }
                }
                None => panic!("{path}"),
            },
        }
    })
}

fn url(api: &Api) -> String {
    format!("mycelium:http://{}", api.address())
}

/// What it names when nothing is wrong.
const MYCELIUM_PEERS: [&str; 3] = [
    "[415:490:71ed:9131:49a8:d3b:b789:1fcd]:1080",
    "[5b5:fbf7:762c:d146:e8d1:5a1c:322c:338f]:1080",
    "[400::5]:1080",
];

#[test]
fn mycelium_names_the_nodes_behind_its_routes_and_its_proxies() {
    let api = mycelium(|_| None);
    let source = url(&api);
    let sockhop = forward(std::slice::from_ref(&source));
    wait_named(&sockhop, &source, &MYCELIUM_PEERS);
    assert_eq!(error(&sockhop.status(), &source), None);
    // Everything in one connection, and the key of a subnet once for all times.
    let round = api.asked().len();
    sockhop.signal(Signal::HUP);
    assert!(wait_until(SOON, || api.times_asked("/admin/proxy") == 2));
    assert_eq!(api.times_asked("/pubkey/"), 2);
    assert_eq!(api.times_asked("4d6:b45"), 0, "the route is infinite");
    assert_eq!((round, api.connections()), (5, 2));
}

#[test]
fn mycelium_without_own_address_and_proxies_is_an_older_one() {
    let (key, own) = NODES[1];
    let api = mycelium(move |path| match path {
        "/api/v1/admin" => Some(http_ok(&format!(
            r#"{{"nodeSubnet":"5b5:fbf7:762c:d146::/64","nodePubkey":"{key}"}}"#
        ))),
        "/api/v1/admin/proxy" => Some(Answer::Whole(NOT_FOUND.into())),
        _ => None,
    });
    let source = url(&api);
    let sockhop = forward(std::slice::from_ref(&source));
    wait_named(&sockhop, &source, &MYCELIUM_PEERS[..1]);
    assert_eq!(error(&sockhop.status(), &source), None, "{own} is its own");
}

#[test]
fn mycelium_closes_a_connection_that_nobody_uses() {
    // As after a restart: the answer is good, and the connection gone.
    let api = mycelium(|path| match path {
        "/api/v1/admin/routes/selected" => match http_ok(ROUTES) {
            Answer::Whole(bytes) => Some(Answer::Last(bytes)),
            _ => unreachable!(),
        },
        _ => None,
    });
    let source = url(&api);
    let sockhop = forward(std::slice::from_ref(&source));
    wait_named(&sockhop, &source, &MYCELIUM_PEERS);
    assert_eq!(error(&sockhop.status(), &source), None);
}

#[test]
fn addresses_outside_of_the_range_are_left_out_and_counted() {
    let api = mycelium(|path| match path {
        "/api/v1/admin/routes/selected" => Some(http_ok(
            r#"[{"subnet":"415:490:71ed:9131::/64","metric":1},{"subnet":"10.0.0.0/24","metric":1},{"subnet":"fd00::/64","metric":1},
                {"subnet":"400::/8","metric":1},{"subnet":"4d6:b45:0:0::/64","metric":1}]"#,
        )),
        // A key from elsewhere.
        "/api/v1/pubkey/4d6:b45::" => {
            Some(http_ok(&format!(r#"{{"publicKey":"{}"}}"#, NODES[2].0)))
        }
        "/api/v1/admin/proxy" => Some(http_ok(r#"["192.0.2.1","2001:db8::1","::1","what?",""]"#)),
        _ => None,
    });
    let source = url(&api);
    let sockhop = forward(std::slice::from_ref(&source));
    wait_named(&sockhop, &source, &MYCELIUM_PEERS[..1]);
    let cause = wait_error(&sockhop, &source, "outside");
    assert_eq!(
        cause,
        "4 addresses outside of 400::/7 left out; 4 addresses not understood"
    );
    // An IPv4 address would make the real one stumble.
    assert_eq!(api.times_asked("/pubkey/"), 2, "{:?}", api.asked());
}

#[test]
fn lookups_that_fail_are_made_good_the_next_time() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let api = mycelium(move |path| {
        let is_key = path.contains("/pubkey/5b5");
        (is_key && is_broken.load(Ordering::Relaxed))
            .then(|| Answer::Last(b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\nno!".to_vec()))
    });
    let source = url(&api);
    let sockhop = forward(std::slice::from_ref(&source));
    let cause = wait_error(&sockhop, &source, "not looked up yet");
    assert!(
        cause.contains("/api/v1/pubkey/5b5:fbf7:762c:d146::: status 500"),
        "{cause}"
    );
    sockhop.wait_proxies(
        |proxies| named(proxies, &source).contains(&MYCELIUM_PEERS[2].to_owned()),
        SOON,
    );
    broken.store(false, Ordering::Relaxed);
    sockhop.signal(Signal::HUP);
    wait_named(&sockhop, &source, &MYCELIUM_PEERS);
    sockhop.wait_status(|status| error(status, &source).is_none(), SOON);
}

// Yggdrasil.

/// What the daemon answers to `request`, with the members of its `response`.
fn admin(request: &str, response: &str) -> Answer {
    Answer::Last(
        format!(
            "{{\n  \"status\": \"success\",\n  \"request\": {request},\n  \"response\": {response}\n}}\n"
        )
        .into_bytes(),
    )
}

fn refused(action: &str) -> Answer {
    let text = format!(
        "{{\n  \"status\": \"error\",\n  \"error\": \"Unknown action '{action}', try 'list' for help\",\n  \"request\": null,\n  \"response\": null\n}}\n"
    );
    Answer::Last(text.into_bytes())
}

/// 0.5, or 0.4 with its table of hashes instead of the tree.
fn yggdrasil(request: &str, tree: &str) -> Answer {
    let other = if tree == "getTree" {
        "getDHT"
    } else {
        "getTree"
    };
    let object: Value = serde_json::from_str(request).expect("an object");
    match object["request"].as_str().expect("a name") {
        "getSelf" => admin(
            request,
            r#"{"build_name":"yggdrasil","build_version":"0.5.14","key":"00","address":"200::1","routing_entries":3,"subnet":"300::/64"}"#,
        ),
        "getPeers" => admin(
            request,
            r#"{"peers":[{"address":"200::2","key":"01","port":1,"up":true,"latency":1500000,"remote":"tcp://10.0.0.1:1","cost":1},
                {"remote":"tls://192.0.2.1:1","up":false,"inbound":false,"last_error":"dial tcp: refused"}]}"#,
        ),
        what if what == other => refused(what),
        "getTree" => admin(
            request,
            r#"{"tree":[{"address":"200::1","key":"00","parent":"00","sequence":1},{"address":"200::2","key":"01","parent":"00","sequence":3},
                {"address":"201:aaaa::3","key":"02","parent":"01","sequence":7}]}"#,
        ),
        "getDHT" => admin(
            request,
            r#"{"dht":[{"address":"200::1","key":"00","port":0,"rest":0},{"address":"201:bbbb::4","key":"03","port":1,"rest":2}]}"#,
        ),
        "getPaths" => admin(
            request,
            r#"{"paths":[{"address":"203::5","key":"04","path":[1,2],"sequence":1}]}"#,
        ),
        "getSessions" => admin(request, r#"{"sessions":[]}"#),
        other => panic!("{other}"),
    }
}

#[test]
fn yggdrasil_names_the_nodes_that_it_knows_in_both_versions() {
    let new = Api::unix(|request| yggdrasil(request, "getTree"));
    let old = Api::tcp(|request| yggdrasil(request, "getDHT"));
    let sources = [
        format!("yggdrasil:{}", new.path().display()),
        format!("yggdrasil:tcp://{}", old.address()),
    ];
    let sockhop = forward(&sources);
    let both = ["[200::2]:1080", "[203::5]:1080"];
    wait_named(
        &sockhop,
        &sources[0],
        &[&both[..], &["[201:aaaa::3]:1080"]].concat(),
    );
    wait_named(
        &sockhop,
        &sources[1],
        &[&both[..], &["[201:bbbb::4]:1080"]].concat(),
    );
    let status = sockhop.status();
    assert!(
        sources
            .iter()
            .all(|source| error(&status, source).is_none()),
        "{status}"
    );
    assert_eq!(new.times_asked("getDHT"), 0);
}

#[test]
fn yggdrasil_that_refuses_is_quoted() {
    let api = Api::unix(|request| match request.contains("getPeers") {
        true => refused("getpeers"),
        false => yggdrasil(request, "getTree"),
    });
    let source = format!("yggdrasil:{}", api.path().display());
    let sockhop = forward(std::slice::from_ref(&source));
    let cause = wait_error(&sockhop, &source, "Unknown action 'getpeers'");
    assert!(cause.contains("getPeers: "), "{cause}");
}

#[test]
fn yggdrasil_that_never_ends_is_left() {
    // It answers in order but does not close, as with `keepalive`.
    let keeps_open = Api::unix(|request| match yggdrasil(request, "getTree") {
        Answer::Last(bytes) => Answer::Whole(bytes),
        other => other,
    });
    let entry = br#"{"address":"200:1234:5678:9abc::1","key":"00"},"#.repeat(1000);
    let endless = Api::unix(move |_| {
        Answer::Endless(
            br#"{"status":"success","response":{"peers":["#.to_vec(),
            entry.clone(),
        )
    });
    let sources = [&keeps_open, &endless].map(|api| format!("yggdrasil:{}", api.path().display()));
    let sockhop = forward(&sources);
    wait_named(
        &sockhop,
        &sources[0],
        &["[200::2]:1080", "[201:aaaa::3]:1080", "[203::5]:1080"],
    );
    wait_error(&sockhop, &sources[1], "longer than 16 MiB");
}

// Tailscale.

fn tailnet(state: &str) -> String {
    json!({
        "Version": "1.90.0", "TUN": true, "BackendState": state, "HaveNodeKey": true, "AuthURL": "",
        "TailscaleIPs": ["100.101.102.103", "fd7a:115c:a1e0::1"],
        "Self": {"ID": "n1", "HostName": "here", "TailscaleIPs": ["100.101.102.103", "fd7a:115c:a1e0::1"], "Online": true},
        "Health": [], "MagicDNSSuffix": "x.ts.net", "CertDomains": null,
        "Peer": {
            "nodekey:aa": {"ID": "n2", "HostName": "exit", "DNSName": "exit.x.ts.net.", "OS": "linux",
                "TailscaleIPs": ["100.64.0.2", "fd7a:115c:a1e0::2"], "Online": true, "ExitNodeOption": true, "Tags": ["tag:proxy"]},
            "nodekey:bb": {"ID": "n3", "HostName": "gone", "TailscaleIPs": ["100.64.0.3"], "Online": false},
            "nodekey:cc": {"ID": "n4", "HostName": "six", "TailscaleIPs": ["fd7a:115c:a1e0::4"], "Online": true},
            "nodekey:dd": {"ID": "n5", "HostName": "odd", "TailscaleIPs": null, "Online": true},
            "nodekey:ee": {"ID": "n6", "HostName": "liar", "TailscaleIPs": ["192.0.2.7"], "Online": true}
        },
        "User": {"1": {"ID": 1, "LoginName": "a@example.org"}}, "ClientVersion": null
    })
    .to_string()
}

/// In chunks of 100 bytes.
fn chunked(json: &str) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sat, 21 Nov 2026 10:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in json.as_bytes().chunks(100) {
        bytes.extend(format!("{:x};name=value\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\nTrailer: x\r\n\r\n");
    bytes
}

#[test]
fn tailscale_names_the_nodes_that_are_online_and_keeps_them_while_it_is_stopped() {
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = Arc::clone(&stopped);
    let api = Api::unix(move |request| {
        let (path, headers) = request.split_once("\r\n").expect("a request line");
        assert_eq!(path, "GET /localapi/v0/status HTTP/1.1");
        let headers = headers.to_ascii_lowercase();
        // The real one takes anything else for the work of a web page.
        if !headers.contains("host: local-tailscaled.sock\r\n")
            || headers.contains("origin:")
            || headers.contains("referer:")
        {
            return Answer::Last(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec());
        }
        let state = match is_stopped.load(Ordering::Relaxed) {
            true => "Stopped",
            false => "Running",
        };
        Answer::Whole(chunked(&tailnet(state)))
    });
    let source = format!("tailscale:{}", api.path().display());
    let sockhop = forward(std::slice::from_ref(&source));
    let online = ["100.64.0.2:1080", "[fd7a:115c:a1e0::4]:1080"];
    wait_named(&sockhop, &source, &online);
    let cause = wait_error(&sockhop, &source, "outside");
    assert!(
        cause.starts_with("1 address outside of 100.64.0.0/10"),
        "{cause}"
    );
    stopped.store(true, Ordering::Relaxed);
    sockhop.signal(Signal::HUP);
    wait_error(&sockhop, &source, "its state is \"Stopped\", not Running");
    wait_named(&sockhop, &source, &online);
}

// All of them.

#[test]
fn the_kernels_routes_are_a_source() {
    let sockhop = forward(&["routes".to_owned()]);
    // Which there are is this machine's business; that they can be read is not.
    let has_it = |status: &Value| {
        status["sources"]
            .as_array()
            .is_some_and(|all| all.len() == 2)
    };
    let status = sockhop.wait_status(has_it, SOON);
    if cfg!(target_os = "linux") {
        assert_eq!(error(&status, "routes"), None);
    } else {
        wait_error(&sockhop, "routes", "exec:");
    }
}

#[test]
fn sources_are_joined_and_a_peer_of_several_is_one() {
    let api = mycelium(|_| None);
    let ygg = Api::unix(|request| yggdrasil(request, "getTree"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    fs::write(&path, "200::2\n415:490:71ed:9131:49a8:d3b:b789:1fcd\n").unwrap();
    let sources = [
        format!("file:{}", path.display()),
        url(&api),
        format!("yggdrasil:{}", ygg.path().display()),
        "exec:echo '[200::2]:1080'".to_owned(),
    ];
    let sockhop = forward(&sources);
    let named_by = |proxies: &[Value], address: &str| {
        let proxy = proxies.iter().find(|proxy| proxy["address"] == address);
        proxy
            .map(|proxy| proxy["sources"].clone())
            .unwrap_or_default()
    };
    let proxies = sockhop.wait_proxies(
        |proxies| {
            named_by(proxies, "[200::2]:1080") == json!([sources[0], sources[2], sources[3]])
                && named_by(proxies, MYCELIUM_PEERS[0]) == json!([sources[0], sources[1]])
        },
        SOON,
    );
    assert_eq!(proxies.len(), 6, "{proxies:?}");
}

/// Each way in which an API over HTTP can fail, and what is said about it.
fn failures() -> Vec<(Answer, &'static str)> {
    let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let whole = |text: &str| Answer::Last(text.as_bytes().to_vec());
    let route = br#"{"subnet":"415:490:71ed:9131::/64","nextHop":"TCP 10.0.0.1:1 <-> 10.0.0.2:2","metric":1015,"seqno":0},"#;
    let routes = route.repeat(10_000);
    let chunks: Vec<u8> = [b"1\r\n \r\n".repeat(10_000), Vec::new()].concat();
    vec![
        (Answer::Silent, "took too long"),
        (
            Answer::Trickle(
                format!("{ok}\r\n[").into_bytes(),
                Duration::from_millis(300),
            ),
            "took too long",
        ),
        (whole(""), "closed without an answer"),
        (
            whole("HTTP/1.1 200 OK\r\nconte"),
            "closed in the middle of the answer",
        ),
        (
            whole(&format!("{ok}content-length: 50\r\n\r\n[")),
            "closed in the middle of the answer",
        ),
        (
            whole(&format!("{ok}transfer-encoding: chunked\r\n\r\n1\r\n[\r\n")),
            "closed in the middle of the answer",
        ),
        (whole(&format!("{ok}\r\n[{{\"subnet\":")), "not JSON: EOF"),
        (
            whole(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<!doctype html>",
            ),
            "the answer is HTML, not JSON",
        ),
        (
            whole(&format!("{ok}\r\n<html>")),
            "not JSON: expected value",
        ),
        (
            whole(&format!("{ok}\r\n{{\"a\":1}}")),
            "the answer is not a list of routes",
        ),
        (whole(&format!("{ok}\r\n[] []")), "not JSON: trailing"),
        (
            whole("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"),
            "status 500",
        ),
        (
            whole("HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n"),
            "status 302, a redirect, which is not followed",
        ),
        (
            whole("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
            "status 404",
        ),
        (whole("SSH-2.0-OpenSSH_9.2\r\n"), "the answer is not HTTP"),
        (whole("HTTP/1.1 100 Continue\r\n\r\n"), "an interim answer"),
        (
            whole(&format!("{ok}content-length: 104857600\r\n\r\n")),
            "the answer is longer than 16 MiB",
        ),
        (
            Answer::Endless(format!("{ok}\r\n[").into_bytes(), routes.clone()),
            "the answer is longer than 16 MiB",
        ),
        (
            Answer::Endless(
                format!("{ok}transfer-encoding: chunked\r\n\r\n").into_bytes(),
                chunks,
            ),
            "the answer is longer than 16 MiB",
        ),
        (
            Answer::Endless(
                b"HTTP/1.1 200 OK\r\n".to_vec(),
                b"x: yyyyyyyyyyyyyyyyyyyyyyyy\r\n".to_vec(),
            ),
            "too many headers",
        ),
        (
            Answer::Endless(
                b"HTTP/1.1 200 OK\r\nx: ".to_vec(),
                b"yyyyyyyyyyyyyyyyyyyyyyyy".to_vec(),
            ),
            "the head of the answer is too long",
        ),
        (
            Answer::Endless(
                format!("{ok}transfer-encoding: chunked\r\n\r\n").into_bytes(),
                b"00000000000000000".to_vec(),
            ),
            "a line between chunks is too long",
        ),
        (
            whole(&format!("{ok}transfer-encoding: chunked\r\n\r\nzz\r\n")),
            "a chunk has a bad size",
        ),
        (
            whole(&format!(
                "{ok}transfer-encoding: chunked\r\n\r\n1\r\n[]\r\n"
            )),
            "a chunk is longer than its size",
        ),
        (
            whole(&format!("{ok}transfer-encoding: gzip\r\n\r\n")),
            "Transfer-Encoding other than chunked",
        ),
        (
            whole(&format!("{ok}content-length: -1\r\n\r\n")),
            "bad Content-Length",
        ),
        (
            whole(&format!(
                "{ok}content-length: 1\r\ncontent-length: 2\r\n\r\n"
            )),
            "bad Content-Length",
        ),
        (
            whole(&format!(
                "{ok}content-length: 99999999999999999999999\r\n\r\n"
            )),
            "bad Content-Length",
        ),
    ]
}

#[test]
fn whatever_an_api_does_its_last_list_stays_and_the_cause_is_told() {
    let failing = Arc::new(AtomicBool::new(false));
    let failures = failures();
    let apis: Vec<Api> = failures
        .iter()
        .map(|(answer, _)| {
            let (answer, failing) = (answer.clone(), Arc::clone(&failing));
            mycelium(move |path| {
                let is_it = path.contains("/routes/") && failing.load(Ordering::Relaxed);
                is_it.then(|| answer.clone())
            })
        })
        .collect();
    let sources: Vec<String> = apis.iter().map(url).collect();
    assert!(sources.len() <= 31, "the program takes no more at once");
    let sockhop = forward(&sources);
    for source in &sources {
        wait_named(&sockhop, source, &MYCELIUM_PEERS);
    }
    let before = sockhop.private_memory();
    failing.store(true, Ordering::Relaxed);
    sockhop.signal(Signal::HUP);
    for (source, (answer, cause)) in sources.iter().zip(&failures) {
        let told = wait_error(&sockhop, source, cause);
        assert!(
            told.starts_with("/api/v1/admin/routes/selected: "),
            "{answer:.60?}: {told}"
        );
        // It never takes long to ask for the status, whatever the sources do.
        let started = Instant::now();
        sockhop.status();
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    for source in &sources {
        wait_named(&sockhop, source, &MYCELIUM_PEERS);
    }
    // Two of them sent as much as they could.
    let grown = sockhop.private_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    // And all is well again afterwards.
    failing.store(false, Ordering::Relaxed);
    sockhop.signal(Signal::HUP);
    let well = |status: &Value| sources.iter().all(|source| error(status, source).is_none());
    sockhop.wait_status(well, REFRESHED);
}

#[test]
fn daemons_that_are_not_there_are_named_and_found_when_they_come() {
    let nobody = dead_address();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later.sock");
    let sources = [
        format!("mycelium:http://{nobody}"),
        format!("yggdrasil:{}", path.display()),
        format!("tailscale:{}", folder.path().join("never.sock").display()),
    ];
    let sockhop = forward(&sources);
    for source in &sources {
        let (_, place) = source.split_once(':').expect("a place");
        let place = place.replace("http://", "tcp://");
        let cause = wait_error(&sockhop, source, "nobody listens at ");
        assert!(cause.ends_with(&place), "{cause}");
        sockhop.wait_log(&format!("{source}: nobody listens at "), SOON);
    }
    let api = Api::unix(|request| yggdrasil(request, "getTree"));
    fs::rename(api.path(), &path).unwrap();
    // Without being told to look again.
    wait_named(
        &sockhop,
        &sources[1],
        &["[200::2]:1080", "[201:aaaa::3]:1080", "[203::5]:1080"],
    );
}

#[test]
fn a_socket_that_may_not_be_used_says_so() {
    use std::os::unix::fs::PermissionsExt as _;
    if rustix::process::geteuid().is_root() {
        // Who may use everything can't show it.
        return;
    }
    let api = Api::unix(|request| yggdrasil(request, "getTree"));
    fs::set_permissions(api.path(), fs::Permissions::from_mode(0o000)).unwrap();
    let source = format!("yggdrasil:{}", api.path().display());
    let sockhop = forward(std::slice::from_ref(&source));
    wait_error(&sockhop, &source, "permission denied: run as a user");
}

#[test]
fn apis_that_keep_silent_delay_no_end() {
    let silent = Arc::new(AtomicUsize::new(0));
    let apis: Vec<Api> = (0..3)
        .map(|_| {
            let silent = Arc::clone(&silent);
            Api::tcp(move |_| {
                silent.fetch_add(1, Ordering::Relaxed);
                Answer::Silent
            })
        })
        .collect();
    let sources: Vec<String> = apis.iter().map(url).collect();
    let mut sockhop = forward(&sources);
    assert!(wait_until(SOON, || silent.load(Ordering::Relaxed) == 3));
    let started = Instant::now();
    sockhop.signal(Signal::TERM);
    assert!(sockhop.wait_exit(SOON).success());
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

/// Puts programs in front of the PATH that print what the real ones do.
fn stand_ins(folder: &std::path::Path, programs: &[(&str, &str)]) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, script) in programs {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", folder.display())
}

/// The sources that the README gives with `exec:`, as a shell passes them on.
fn examples() -> Vec<String> {
    let readme = include_str!("../README.md");
    let lines = readme
        .lines()
        .filter(|line| line.starts_with("--peers \"exec:"));
    let unquoted = lines.map(|line| {
        let mut shell = std::process::Command::new("sh");
        let output = shell
            .args(["-c", &format!("printf '%s\n' {line}")])
            .output();
        let words = String::from_utf8(output.expect("sh").stdout).expect("UTF-8");
        let source = words.lines().nth(1).expect("the source");
        source.to_owned()
    });
    unquoted.collect()
}

#[test]
#[ignore = "needs jq"]
fn commands_of_the_readme_understand_what_their_programs_print() {
    let folder = tempfile::tempdir().unwrap();
    let path = stand_ins(
        folder.path(),
        &[
            (
                "wg",
                r#"[ "$*" = 'show all allowed-ips' ] && printf 'wg0\tAAA=\t10.0.0.2/32 fd00::2/128\nwg0\tBBB=\t10.1.0.0/24\nwg0\tCCC=\t(none)\n'"#,
            ),
            (
                "ssh",
                r#"echo '[{"vpnAddrs":["192.168.100.5"],"currentRemote":"192.0.2.1:4242"},{"vpnIp":"192.168.100.9","remoteAddrs":null}]'"#,
            ),
            // A page a request, in bencode.
            (
                "nc",
                "page=$(sed 's/.*pagei\\([0-9]\\)e.*/\\1/')\nprintf 'd5:counti4e12:routingTableld4:addr2:.k2:ip39:fc1%d:2222:3333:4444:5555:6666:7777:88884:linki1eee4:txid1:1e' \"$page\"",
            ),
        ],
    );
    let examples = examples();
    let arguments: Vec<&str> = examples
        .iter()
        .flat_map(|source| ["--peers", source])
        .collect();
    let sockhop = Sockhop::forward(&["--no-probing"])
        .args(&arguments)
        .env("PATH", path)
        .start();
    let expected: [&[&str]; 3] = [
        &["10.0.0.2:1080", "[fd00::2]:1080"],
        &["192.168.100.5:1080", "192.168.100.9:1080"],
        &[
            "[fc10:2222:3333:4444:5555:6666:7777:8888]:1080",
            "[fc11:2222:3333:4444:5555:6666:7777:8888]:1080",
            "[fc12:2222:3333:4444:5555:6666:7777:8888]:1080",
            "[fc13:2222:3333:4444:5555:6666:7777:8888]:1080",
        ],
    ];
    assert_eq!(examples.len(), expected.len(), "{examples:?}");
    for (source, expected) in examples.iter().zip(expected) {
        wait_named(&sockhop, source, expected);
    }
}
