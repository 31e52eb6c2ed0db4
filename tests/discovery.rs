//! What probes make of the peers they meet, and where peers come from, as `sockhop proxies` shows it.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{
    Behaviour, Peer, SOON, Signal, Sockhop, Step, Target, Unanswering, dead_address, exchange,
    socks5_connect, wait_until,
};

/// One forwarder and its `--peer` flags.
fn forward(peers: &[SocketAddr], more: &[&str]) -> Sockhop {
    let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
    let mut arguments: Vec<&str> = more.to_vec();
    for peer in &peers {
        arguments.extend(["--peer", peer]);
    }
    Sockhop::forward(&arguments).start()
}

/// Waits until the peer has been probed, and returns its status and reason.
#[track_caller]
fn judged(sockhop: &Sockhop, peer: SocketAddr) -> (String, String) {
    let address = peer.to_string();
    let is_it =
        |proxy: &Value| proxy["address"] == address.as_str() && proxy["reason"] != "not probed yet";
    let proxies = sockhop.wait_proxies(|proxies| proxies.iter().any(is_it), SOON);
    let proxy = proxies
        .iter()
        .find(|proxy| is_it(proxy))
        .expect("just seen");
    let text = |field: &str| proxy[field].as_str().expect("text").to_owned();
    (text("status"), text("reason"))
}

fn sends(bytes: &[u8]) -> Peer {
    Peer::scripted(vec![Step::Read(3), Step::Send(bytes.to_vec())])
}

fn sends_and_closes(bytes: &[u8]) -> Peer {
    Peer::scripted(vec![Step::Read(3), Step::Send(bytes.to_vec()), Step::Close])
}

#[test]
fn each_kind_of_peer_has_its_status_and_reason() {
    let unanswering = Unanswering::new();
    let dead = dead_address();
    let ms = Duration::from_millis;
    let kinds = [
        (Peer::valid(Duration::ZERO), "valid", "answered 05 00"),
        (Peer::drips(ms(20)), "valid", "answered 05 00"),
        (Peer::answers_after(ms(100)), "valid", "answered 05 00"),
        (sends(&[5, 0, 5, 0]), "valid", "answered 05 00"),
        (
            Peer::auth_required(0xFF),
            "authentication-required",
            "answered 05 FF",
        ),
        (
            Peer::auth_required(0x02),
            "authentication-required",
            "answered 05 02",
        ),
        (sends(&[5, 1]), "not-a-proxy", "answered 05 01"),
        (Peer::http(), "not-a-proxy", "sent \"HTTP/1.1\""),
        (Peer::ssh_banner(), "not-a-proxy", "sent \"SSH-2.0-\""),
        (sends(&[4, 0x5A, 0, 0]), "not-a-proxy", "sent 04 5A 00 00"),
        (sends_and_closes(&[5]), "not-a-proxy", "closed after 1 byte"),
        (
            sends_and_closes(&[]),
            "not-a-proxy",
            "closed without an answer",
        ),
        (Peer::resets(), "not-a-proxy", "reset"),
        (
            Peer::silent(),
            "not-listening",
            "timed out after connecting",
        ),
        (
            Peer::answers_after(ms(2500)),
            "not-listening",
            "timed out after connecting",
        ),
        (
            Peer::drips(ms(1500)),
            "not-listening",
            "timed out after connecting",
        ),
        (sends(&[5]), "not-listening", "timed out after connecting"),
    ];
    let mut addresses: Vec<SocketAddr> = kinds.iter().map(|(peer, ..)| peer.address()).collect();
    addresses.extend([dead, unanswering.address()]);
    let sockhop = forward(&addresses, &["--probe-timeout", "1s"]);
    for (peer, status, reason) in &kinds {
        let found = judged(&sockhop, peer.address());
        assert_eq!(
            (found.0.as_str(), found.1.as_str()),
            (*status, *reason),
            "{peer:?}"
        );
    }
    let words = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    assert_eq!(judged(&sockhop, dead), words("not-listening", "refused"));
    assert_eq!(
        judged(&sockhop, unanswering.address()),
        words("not-listening", "timed out")
    );
    let candidates = sockhop.status()["candidates"].take();
    assert_eq!(
        candidates,
        json!({"valid": 4, "authentication-required": 2, "not-a-proxy": 7, "not-listening": 6, "unknown": 0})
    );
}

#[test]
fn a_peer_that_closes_at_once_is_no_proxy_whether_it_looks_like_a_close_or_a_reset() {
    let peer = Peer::closes();
    let sockhop = forward(&[peer.address()], &[]);
    let (status, reason) = judged(&sockhop, peer.address());
    assert_eq!(status, "not-a-proxy");
    assert!(
        ["closed without an answer", "reset"].contains(&reason.as_str()),
        "{reason}"
    );
}

#[test]
fn a_probe_says_05_01_00_and_nothing_else() {
    let kinds = [
        Peer::valid(Duration::ZERO),
        Peer::auth_required(2),
        Peer::http(),
        Peer::silent(),
        sends(&[5]),
    ];
    let addresses: Vec<SocketAddr> = kinds.iter().map(Peer::address).collect();
    let sockhop = forward(&addresses, &["--probe-timeout", "500ms"]);
    for peer in &kinds {
        judged(&sockhop, peer.address());
        assert!(
            peer.wait_open(0, SOON),
            "the probe was not closed: {peer:?}"
        );
        assert_eq!(peer.heard(), [[5, 1, 0]], "{peer:?}");
    }
}

#[test]
fn silent_peers_delay_no_others() {
    let tarpits: Vec<Peer> = (0..20).map(|_| Peer::silent()).collect();
    let valid = Peer::valid(Duration::ZERO);
    let mut addresses: Vec<SocketAddr> = tarpits.iter().map(Peer::address).collect();
    addresses.push(valid.address());
    let started = Instant::now();
    let sockhop = forward(&addresses, &["--probe-timeout", "60s"]);
    sockhop.wait_peer(valid.address(), "valid", SOON);
    assert!(started.elapsed() < SOON);
}

#[test]
fn probe_target_proves_that_the_exit_works() {
    let target = Target::echo();
    let (works, dead_end) = (Peer::valid(Duration::ZERO), sends(&[5, 0]));
    let port = target.address().port().to_string();
    for goal in [format!("127.0.0.1:{port}"), format!("localhost:{port}")] {
        let refuses = Peer::scripted(vec![
            Step::Read(3),
            Step::Send(vec![5, 0]),
            Step::Read(4),
            Step::Send(vec![5, 2, 0, 1, 0, 0, 0, 0, 0, 0]),
        ]);
        let peers = [works.address(), dead_end.address(), refuses.address()];
        let more = ["--probe-target", &goal, "--probe-timeout", "1s"];
        let sockhop = forward(&peers, &more);
        assert_eq!(judged(&sockhop, works.address()).0, "valid");
        let found = judged(&sockhop, refuses.address());
        let expected = ("not-a-proxy", "probe target refused with reply 02");
        assert_eq!((found.0.as_str(), found.1.as_str()), expected);
        let found = judged(&sockhop, dead_end.address());
        let expected = ("not-listening", "timed out connecting to the probe target");
        assert_eq!((found.0.as_str(), found.1.as_str()), expected);
    }
    let [high, low] = target.address().port().to_be_bytes();
    let asked = [
        [&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1][..], &[high, low]].concat(),
        [&[5, 1, 0, 5, 1, 0, 3, 9][..], b"localhost", &[high, low]].concat(),
    ];
    assert_eq!(works.heard(), asked);
    assert!(
        target.wait_open(0, SOON),
        "a probe left its connection to the target"
    );
}

#[test]
fn a_file_of_peers_is_read_with_comments_names_and_bad_lines() {
    let (one, two) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    let text = format!(
        "# our peers\n\n{} # the good one\nnot an address\nlocalhost:{}\n[::1]:0\n",
        one.address(),
        two.address().port()
    );
    fs::write(&path, text).unwrap();
    let source = format!("file:{}", path.display());
    let sockhop = Sockhop::forward(&["--peers", &source]).start();
    let first = sockhop.wait_peer(one.address(), "valid", SOON);
    assert_eq!(first["sources"], json!([source]));
    sockhop.wait_peer(two.address(), "valid", SOON);
    for (line, what) in [(4, "not an address"), (6, "port 0")] {
        let logged = sockhop.wait_log(&format!("{}:{line}:", path.display()), SOON);
        assert!(logged.contains(what), "{logged}");
    }
}

#[test]
fn a_file_of_peers_is_read_again_when_it_changes_and_kept_when_it_is_gone() {
    let (one, two) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    fs::write(&path, one.address().to_string()).unwrap();
    let source = format!("file:{}", path.display());
    let sockhop = Sockhop::forward(&["--peers", &source]).start();
    sockhop.wait_peer(one.address(), "valid", SOON);
    // Nobody tells it.
    fs::write(&path, two.address().to_string()).unwrap();
    sockhop.wait_peer(two.address(), "valid", SOON);
    let unnamed = |proxies: &[Value]| {
        let address = one.address().to_string();
        proxies
            .iter()
            .all(|proxy| proxy["address"] != address.as_str() || proxy["sources"] == json!([]))
    };
    sockhop.wait_proxies(unnamed, SOON);
    fs::remove_file(&path).unwrap();
    sockhop.signal(Signal::HUP);
    sockhop.wait_log("cannot be read", SOON);
    let kept = sockhop.proxy(two.address()).expect("still known");
    assert_eq!(
        (&kept["status"], &kept["sources"]),
        (&json!("valid"), &json!([source]))
    );
}

#[test]
fn a_command_that_fails_keeps_the_last_list_and_sighup_runs_it_again() {
    let peers = [Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO)];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list");
    fs::write(&path, peers[0].address().to_string()).unwrap();
    // Its own period is a minute, so that within this test only the signal runs it again.
    let source = format!("exec:cat {} || exit 3", path.display());
    let sockhop = Sockhop::forward(&["--peers", &source]).start();
    sockhop.wait_peer(peers[0].address(), "valid", SOON);
    fs::remove_file(&path).unwrap();
    sockhop.signal(Signal::HUP);
    sockhop.wait_log("exit status 3", SOON);
    let kept = sockhop.proxy(peers[0].address()).expect("still known");
    assert_eq!(kept["sources"], json!([source]));
    let both = format!("{}\n{}\n", peers[0].address(), peers[1].address());
    fs::write(&path, both).unwrap();
    sockhop.signal(Signal::HUP);
    sockhop.wait_peer(peers[1].address(), "valid", SOON);
}

#[test]
fn starting_twice_is_the_same_as_starting_once() {
    let peer = Peer::valid(Duration::ZERO);
    let sockhop = forward(&[peer.address()], &["--no-probing"]);
    assert_eq!(sockhop.status()["probing"], false);
    let probing = |run: bool| sockhop.control("probing", json!({ "run": run })).unwrap();
    for _ in 0..5 {
        assert_eq!(probing(true), json!({"probing": true}));
    }
    sockhop.wait_peer(peer.address(), "valid", SOON);
    for _ in 0..5 {
        probing(true);
    }
    assert_eq!(probing(false), json!({"probing": false}));
    probing(false);
    probing(true);
    // The first start and the one after the stop; had the others done anything, there were more.
    assert!(peer.wait_accepted(2, SOON));
    assert!(peer.wait_open(0, SOON));
    assert_eq!(peer.accepted(), 2);
}

#[test]
fn stopping_closes_probes_in_flight_and_no_more_come() {
    let (silent, valid) = (Peer::silent(), Peer::valid(Duration::ZERO));
    let peers = [silent.address(), valid.address()];
    let sockhop = forward(
        &peers,
        &["--probe-timeout", "60s", "--probe-interval", "1s"],
    );
    assert!(silent.wait_open(1, SOON));
    assert!(valid.wait_accepted(3, SOON), "no rounds");
    sockhop.control("probing", json!({"run": false})).unwrap();
    assert!(silent.wait_open(0, SOON), "the probe in flight goes on");
    let before = (valid.accepted(), silent.accepted());
    let another = || (valid.accepted(), silent.accepted()) != before;
    assert!(
        !wait_until(Duration::from_secs(2), another),
        "a probe came after the stop"
    );
    // What is known stays known, and the one that was stopped said nothing.
    assert_eq!(judged(&sockhop, valid.address()).0, "valid");
    assert_eq!(
        sockhop.proxy(silent.address()).unwrap()["status"],
        "unknown"
    );
    sockhop.control("probing", json!({"run": true})).unwrap();
    assert!(silent.wait_open(1, SOON), "no probe after the start");
}

#[test]
fn the_own_listener_is_no_peer_under_any_address() {
    let valid = Peer::valid(Duration::ZERO);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    fs::write(&path, valid.address().to_string()).unwrap();
    let source = format!("file:{}", path.display());
    let arguments = [
        "--listen",
        "[::]:0",
        "--peers",
        &source,
        "--probe-interval",
        "1s",
    ];
    let sockhop = Sockhop::forward(&arguments).start();
    let port = sockhop.wait_listening(SOON).port();
    let own =
        ["127.0.0.1", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]"].map(|ip| format!("{ip}:{port}"));
    fs::write(&path, format!("{}\n{}\n", valid.address(), own.join("\n"))).unwrap();
    sockhop.signal(Signal::HUP);
    for address in &own[..3] {
        let found = judged(&sockhop, address.parse().unwrap());
        assert_eq!(
            found,
            ("unknown".to_owned(), "own listener, not probed".to_owned())
        );
    }
    let status = sockhop.status();
    assert_eq!(
        status["connections"]["total"], 0,
        "the listener was probed: {status}"
    );
    assert_eq!(status["remote"], valid.address().to_string());
}

#[test]
fn three_hundred_peers_with_few_descriptors_all_get_the_right_status() {
    let echo = Target::echo();
    let valid: Vec<Peer> = (0..60).map(|_| Peer::valid(Duration::ZERO)).collect();
    let auth: Vec<Peer> = (0..40).map(|_| Peer::auth_required(0xFF)).collect();
    let http: Vec<Peer> = (0..20).map(|_| Peer::http()).collect();
    let dead: Vec<SocketAddr> = (0..180).map(|_| dead_address()).collect();
    let lists = [valid.iter(), auth.iter(), http.iter()];
    let addresses = lists.into_iter().flatten().map(Peer::address).chain(dead);
    let text: String = addresses.map(|address| format!("{address}\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    fs::write(&path, text).unwrap();
    let source = format!("file:{}", path.display());
    // With the default rate the last of them would be asked after ten seconds.
    let sockhop = Sockhop::forward(&["--peers", &source, "--probe-rate", "1000"])
        .open_files(64)
        .start();
    let listener = sockhop.wait_listening(SOON);
    // While the round runs, clients are served, as many as there is room for.
    let clients: Vec<_> = (0..15)
        .map(|_| socks5_connect(listener, echo.address()).expect("served"))
        .collect();
    let expected = json!({"valid": 60, "authentication-required": 40, "not-a-proxy": 20, "not-listening": 180, "unknown": 0});
    sockhop.wait_status(|status| status["candidates"] == expected, SOON);
    for client in &clients {
        assert_eq!(exchange(client, b"still here").unwrap(), b"still here");
    }
    assert!(sockhop.fds() <= 64);
}

#[test]
fn a_peer_that_changes_is_noticed_in_a_later_round() {
    let peer = Peer::new(Behaviour::Http);
    let sockhop = forward(&[peer.address()], &["--probe-interval", "1s"]);
    sockhop.wait_peer(peer.address(), "not-a-proxy", SOON);
    peer.behave(Behaviour::Valid(Duration::ZERO));
    let row = sockhop.wait_peer(peer.address(), "valid", SOON);
    assert_eq!(row["failures"], 0);
    peer.behave(Behaviour::AuthRequired(2));
    sockhop.wait_peer(peer.address(), "authentication-required", SOON);
}

#[test]
fn a_file_of_peers_may_come_later() {
    let peer = Peer::valid(Duration::ZERO);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    let source = format!("file:{}", path.display());
    let sockhop = Sockhop::forward(&["--peers", &source]).start();
    sockhop.wait_log("cannot be read", SOON);
    fs::write(&path, peer.address().to_string()).unwrap();
    sockhop.wait_peer(peer.address(), "valid", SOON);
    sockhop.wait_listening(SOON);
}

#[test]
fn peers_come_from_several_sources_by_name_and_of_both_families() {
    let six = Peer::at("[::1]:0", Behaviour::Valid(Duration::ZERO));
    let four = Peer::valid(Duration::ZERO);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers");
    let mapped = format!("[::ffff:127.0.0.1]:{}", four.address().port());
    fs::write(&path, format!("{mapped}\n{}\n", six.address())).unwrap();
    let source = format!("file:{}", path.display());
    let name = format!("localhost:{}", four.address().port());
    let sockhop = Sockhop::forward(&["--peer", &name, "--peers", &source]).start();
    let from = |sources: &Value, address: SocketAddr| {
        let sources = sources.clone();
        move |proxies: &[Value]| {
            let address = address.to_string();
            proxies.iter().any(|proxy| {
                proxy["address"] == address.as_str()
                    && proxy["sources"] == sources
                    && proxy["status"] == "valid"
            })
        }
    };
    sockhop.wait_proxies(from(&json!(["flag", source]), four.address()), SOON);
    sockhop.wait_proxies(from(&json!([source]), six.address()), SOON);
    assert_eq!(four.accepted(), 1, "one address, one probe");
}
