//! Which proxy connections go to: automatic, by hand, raced, and what happens when it dies or changes.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{
    Behaviour, Observed, Peer, SOON, Sockhop, Step, Target, Unanswering, connect, dead_address,
    exchange, expect_end, observe, socks5_connect, socks5_connect_name, wait_until,
};

const ZERO: Duration = Duration::ZERO;

/// What `disconnect` and the like promise to take at most.
const A_SECOND: Duration = Duration::from_secs(1);

/// The probe time-out of tests that have tarpits in a race.
const RACE: Duration = Duration::from_secs(2);

/// One forwarder and its peers or remotes, by the flag.
fn forward(flag: &str, proxies: &[SocketAddr], more: &[&str]) -> Sockhop {
    let proxies: Vec<String> = proxies.iter().map(ToString::to_string).collect();
    let mut arguments: Vec<&str> = more.to_vec();
    for proxy in &proxies {
        arguments.extend([flag, proxy]);
    }
    Sockhop::forward(&arguments).start()
}

fn addresses(peers: &[Peer]) -> Vec<SocketAddr> {
    peers.iter().map(Peer::address).collect()
}

fn valid_peers(count: usize) -> Vec<Peer> {
    (0..count).map(|_| Peer::valid(ZERO)).collect()
}

/// A whole client: connects, says something, and hears it again.
#[track_caller]
fn client_is_served(listener: SocketAddr, echo: &Target) -> TcpStream {
    let stream = socks5_connect(listener, echo.address()).expect("a client was not served");
    assert_eq!(exchange(&stream, b"hello").expect("echo"), b"hello");
    stream
}

#[track_caller]
fn connect_to(sockhop: &Sockhop, remote: SocketAddr) -> Value {
    sockhop
        .control("connect", json!({"remote": remote.to_string()}))
        .expect("connect")
}

fn remote_is(remote: SocketAddr) -> impl Fn(&Value) -> bool {
    move |status| status["remote"] == remote.to_string()
}

/// The bytes of a CONNECT to an IPv4 address, greeting included.
fn opening(target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else {
        panic!("{target} is not IPv4")
    };
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 1];
    bytes.extend(target.ip().octets());
    bytes.extend(target.port().to_be_bytes());
    bytes
}

// Automatic.

#[test]
fn automatic_connects_to_the_only_valid_peer_among_others() {
    let echo = Target::echo();
    let valid = Peer::valid(ZERO);
    let others = [
        Peer::auth_required(2),
        Peer::http(),
        Peer::silent(),
        Peer::closes(),
    ];
    let mut peers = addresses(&others);
    peers.extend([dead_address(), valid.address()]);
    let sockhop = forward("--peer", &peers, &[]);
    let listener = sockhop.wait_listening(SOON);
    client_is_served(listener, &echo);
    let status = sockhop.status();
    assert_eq!(status["remote"], valid.address().to_string());
    assert_eq!(status["mode"], "automatic");
    for proxy in sockhop.proxies() {
        let is_it = proxy["address"] == valid.address().to_string();
        assert_eq!(proxy["selected"], is_it, "{proxy}");
    }
}

#[test]
fn a_peer_that_wants_authentication_is_never_picked() {
    let peers = [Peer::auth_required(2), Peer::auth_required(0xFF)];
    let sockhop = forward("--peer", &addresses(&peers), &[]);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "authentication-required", SOON);
    }
    let error = sockhop.control("connect", Value::Null).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (-32000, "no valid proxy available")
    );
    let status = sockhop.status();
    assert_eq!(
        (&status["remote"], &status["listening"]),
        (&Value::Null, &json!([]))
    );
}

#[test]
fn when_the_remote_dies_no_client_notices() {
    let echo = Target::echo();
    let mut peers = valid_peers(3);
    let sockhop = forward("--peer", &addresses(&peers), &[]);
    let listener = sockhop.wait_listening(SOON);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    // Two deaths; each time the very next client is served by another peer.
    for _ in 0..2 {
        let remote = sockhop.status()["remote"].as_str().unwrap().to_owned();
        let place = peers
            .iter()
            .position(|peer| peer.address().to_string() == remote);
        peers.remove(place.expect("one of ours")).kill();
        for _ in 0..10 {
            client_is_served(listener, &echo);
        }
        sockhop.wait_status(|status| status["remote"] != remote.as_str(), SOON);
    }
}

#[test]
fn a_peer_that_came_back_is_found_by_a_client_before_a_probe() {
    let echo = Target::echo();
    let mut peers = valid_peers(2);
    let sockhop = forward("--peer", &addresses(&peers), &[]);
    let listener = sockhop.wait_listening(SOON);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let remote = sockhop.status()["remote"].take();
    if remote == peers[1].address().to_string() {
        peers.swap(0, 1);
    }
    let first = peers[0].address();
    peers[0].kill();
    client_is_served(listener, &echo);
    sockhop.wait_peer(first, "not-listening", SOON);
    // Its next probe is seconds away.
    let _back = Peer::at(first.to_string(), Behaviour::Valid(ZERO));
    peers[1].kill();
    client_is_served(listener, &echo);
    sockhop.wait_peer(first, "valid", SOON);
}

#[test]
fn a_remote_that_stops_being_a_proxy_costs_no_client_anything() {
    let echo = Target::echo();
    let turns = [
        Behaviour::Resets,
        Behaviour::Closes,
        Behaviour::Silent,
        Behaviour::Http,
        Behaviour::AuthRequired(0xFF),
    ];
    for behaviour in turns {
        let peers = valid_peers(2);
        let more = ["--connect-timeout", "500ms", "--probe-timeout", "1s"];
        let sockhop = forward("--peer", &addresses(&peers), &more);
        let listener = sockhop.wait_listening(SOON);
        for peer in &peers {
            sockhop.wait_peer(peer.address(), "valid", SOON);
        }
        let remote = sockhop.status()["remote"].as_str().unwrap().to_owned();
        let (selected, other) = match peers[0].address().to_string() == remote {
            true => (&peers[0], &peers[1]),
            false => (&peers[1], &peers[0]),
        };
        selected.behave(behaviour);
        for _ in 0..3 {
            client_is_served(listener, &echo);
        }
        sockhop.wait_status(remote_is(other.address()), SOON);
    }
}

// Race.

#[test]
fn a_race_is_won_by_the_peer_that_answers() {
    let peers = valid_peers(9);
    let more = ["--manual", "--probe-timeout", "2s"];
    let sockhop = forward("--peer", &addresses(&peers), &more);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    assert_eq!(
        sockhop.status()["listening"],
        json!([]),
        "--manual waits for connect"
    );
    for peer in &peers[..8] {
        peer.behave(Behaviour::Silent);
    }
    peers[8].behave(Behaviour::Valid(Duration::from_millis(100)));
    let started = Instant::now();
    let answer = sockhop.control("connect", Value::Null).expect("connect");
    assert!(
        started.elapsed() < RACE + A_SECOND,
        "longer than the deadline"
    );
    assert_eq!(answer["remote"], peers[8].address().to_string());
    for peer in &peers {
        assert!(peer.wait_open(0, SOON), "a loser was left open");
    }
    client_is_served(sockhop.wait_listening(SOON), &Target::echo());
}

#[test]
fn a_race_asks_everybody_though_few_can_be_asked_at_once() {
    let peers = valid_peers(20);
    let mut arguments = vec![
        "--manual".to_owned(),
        "--probe-timeout".to_owned(),
        "2s".to_owned(),
    ];
    for address in addresses(&peers) {
        arguments.extend(["--peer".to_owned(), address.to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // 64 descriptors leave 8 for probes.
    let sockhop = Sockhop::forward(&arguments).open_files(64).start();
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    // Whichever is asked first: nineteen of twenty are tarpits.
    for peer in &peers[..19] {
        peer.behave(Behaviour::Silent);
    }
    let answer = sockhop.control("connect", Value::Null).expect("connect");
    assert_eq!(answer["remote"], peers[19].address().to_string());
    for peer in &peers {
        assert!(peer.wait_open(0, SOON), "a loser was left open");
    }
}

#[test]
fn a_race_is_won_by_the_faster_one_whatever_they_were_before() {
    let peers = valid_peers(2);
    let sockhop = forward("--peer", &addresses(&peers), &["--manual"]);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    for (slow, fast) in [(0, 1), (1, 0)] {
        peers[slow].behave(Behaviour::AnswersAfter(Duration::from_secs(2)));
        peers[fast].behave(Behaviour::Valid(ZERO));
        let answer = sockhop.control("connect", Value::Null).expect("connect");
        assert_eq!(answer["remote"], peers[fast].address().to_string());
    }
}

#[test]
fn a_race_nobody_wins_ends_in_time_with_an_error_and_status_answers_meanwhile() {
    let mut peers = valid_peers(4);
    let more = ["--manual", "--probe-timeout", "2s"];
    let sockhop = forward("--peer", &addresses(&peers), &more);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    for peer in &peers[..2] {
        peer.behave(Behaviour::Silent);
    }
    peers[2].behave(Behaviour::Resets);
    peers[3].kill();
    let (result, took) = thread::scope(|scope| {
        let race = scope.spawn(|| {
            let started = Instant::now();
            let result = sockhop.control("connect", Value::Null);
            (result, started.elapsed())
        });
        let reason = |status: &Value| status["reason"] == "a race is under way";
        sockhop.wait_status(reason, SOON);
        while !race.is_finished() {
            let asked = Instant::now();
            sockhop.status();
            assert!(asked.elapsed() < A_SECOND, "status waits for the race");
        }
        race.join().unwrap()
    });
    let error = result.unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (-32000, "no valid proxy available")
    );
    assert!(took < RACE + A_SECOND, "{took:?}");
    for peer in &peers {
        assert!(peer.wait_open(0, SOON), "a probe of the race was left open");
    }
    let last_error = sockhop.status()["last_error"]["what"].take();
    assert!(
        last_error
            .as_str()
            .unwrap()
            .contains("none of 4 valid peers"),
        "{last_error}"
    );
}

#[test]
fn disconnect_ends_a_race_and_its_probes() {
    let peers = valid_peers(3);
    let more = ["--manual", "--probe-timeout", "60s"];
    let sockhop = forward("--peer", &addresses(&peers), &more);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
        peer.behave(Behaviour::Silent);
    }
    thread::scope(|scope| {
        let race = scope.spawn(|| sockhop.control("connect", Value::Null));
        for peer in &peers {
            assert!(peer.wait_open(1, SOON), "the race did not ask everyone");
        }
        sockhop.control("disconnect", Value::Null).unwrap();
        assert_eq!(race.join().unwrap().unwrap_err().code, -32005);
    });
    for peer in &peers {
        assert!(
            peer.wait_open(0, SOON),
            "a probe of the cancelled race goes on"
        );
    }
}

// By hand.

#[test]
fn an_explicit_remote_is_used_as_told_without_a_probe() {
    let echo = Target::echo();
    let remote = Peer::valid(ZERO);
    let sockhop = forward("--remote", &[remote.address()], &["--no-probing"]);
    let listener = sockhop.wait_listening(SOON);
    client_is_served(listener, &echo);
    assert_eq!(remote.heard(), [opening(echo.address())]);
    let status = sockhop.status();
    assert_eq!(status["remote"], remote.address().to_string());
    assert_eq!(
        (&status["mode"], &status["probing"]),
        (&json!("explicit"), &json!(false))
    );
    assert_eq!(status["connections"]["total"], 1);
}

#[test]
fn an_explicit_remote_may_be_anything_that_takes_bytes() {
    let (target, accepted) = Target::manual();
    let sockhop = forward("--remote", &[target.address()], &["--no-probing"]);
    let client = connect(sockhop.wait_listening(SOON)).unwrap();
    (&client).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let server = accepted.recv_timeout(SOON).unwrap();
    assert_eq!(
        observe(&server, SOON),
        Observed::Bytes(b"GET / HTTP/1.0\r\n\r\n".to_vec())
    );
    (&server).write_all(b"fine").unwrap();
    assert_eq!(observe(&client, SOON), Observed::Bytes(b"fine".to_vec()));
    drop(server);
    assert_eq!(observe(&client, SOON), Observed::Eof);
}

#[test]
fn a_remote_may_have_a_name() {
    let echo = Target::echo();
    let remote = Peer::valid(ZERO);
    let name = format!("localhost:{}", remote.address().port());
    let sockhop = Sockhop::forward(&["--remote", &name, "--no-probing"]).start();
    let listener = sockhop.wait_listening(SOON);
    client_is_served(listener, &echo);
    let named = socks5_connect_name(listener, "localhost", echo.address().port()).unwrap();
    assert_eq!(exchange(&named, b"hello").unwrap(), b"hello");
    assert_eq!(sockhop.status()["remote"], name);
}

#[test]
fn a_remote_whose_name_is_unknown_is_told_to_clients_and_in_the_status() {
    let sockhop = Sockhop::forward(&["--remote", "no-such-host.invalid", "--no-probing"]).start();
    let listener = sockhop.wait_listening(SOON);
    let client = connect(listener).unwrap();
    (&client)
        .write_all(&opening(SocketAddr::from((Ipv4Addr::LOCALHOST, 80))))
        .unwrap();
    let mut answer = [0; 12];
    (&client).read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [5, 0, 5, 1]);
    let reason = |status: &Value| {
        status["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("no-such-host.invalid"))
    };
    sockhop.wait_status(reason, SOON);
}

#[test]
fn remotes_are_used_in_their_order() {
    let echo = Target::echo();
    let mut remotes = valid_peers(2);
    let list = [dead_address(), remotes[0].address(), remotes[1].address()];
    let sockhop = forward("--remote", &list, &["--no-probing"]);
    let listener = sockhop.wait_listening(SOON);
    for _ in 0..3 {
        client_is_served(listener, &echo);
    }
    assert_eq!((remotes[0].requests(), remotes[1].requests()), (3, 0));
    remotes[0].kill();
    client_is_served(listener, &echo);
    assert_eq!(remotes[1].requests(), 1);
}

#[test]
fn manual_waits_for_connect() {
    let echo = Target::echo();
    let peers = valid_peers(2);
    let sockhop = forward("--peer", &addresses(&peers), &["--manual"]);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let status = sockhop.status();
    assert_eq!(
        (&status["remote"], &status["listening"]),
        (&Value::Null, &json!([]))
    );
    assert_eq!(status["mode"], "manual");
    let answer = connect_to(&sockhop, peers[1].address());
    assert_eq!(answer["remote"], peers[1].address().to_string());
    let listener = sockhop.wait_listening(SOON);
    assert_eq!(answer["listening"], json!([listener.to_string()]));
    client_is_served(listener, &echo);
    assert_eq!((peers[0].requests(), peers[1].requests()), (0, 1));
    // Without an address it is a race, and the port stays.
    let answer = sockhop.control("connect", Value::Null).unwrap();
    assert_eq!(answer["listening"], json!([listener.to_string()]));
    assert_eq!(sockhop.status()["mode"], "automatic");
    client_is_served(listener, &echo);
}

// Switching.

#[test]
fn switching_a_hundred_times_under_load_refuses_nobody_and_keeps_streams() {
    let echo = Target::echo();
    let remotes = valid_peers(2);
    let sockhop = forward("--remote", &[remotes[0].address()], &["--no-probing"]);
    let listener = sockhop.wait_listening(SOON);
    let old = client_is_served(listener, &echo);
    let over = AtomicBool::new(false);
    let served: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !over.load(Ordering::Relaxed) {
                        client_is_served(listener, &echo);
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        for switch in 0..100 {
            connect_to(&sockhop, remotes[(switch + 1) % 2].address());
            assert_eq!(exchange(&old, b"still here").unwrap(), b"still here");
            // So that there is load under every remote; a client that failed would end this early.
            let before = remotes[(switch + 1) % 2].requests();
            let used = wait_until(SOON, || remotes[(switch + 1) % 2].requests() > before);
            assert!(used, "nobody uses the new remote");
        }
        over.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    assert!(served >= 100, "{served}");
    assert_eq!(sockhop.status()["connections"]["total"], served + 1);
}

#[test]
fn on_switch_cut_ends_streams_of_the_old_remote_only() {
    let echo = Target::echo();
    let remotes = valid_peers(2);
    let more = ["--on-switch", "cut", "--no-probing"];
    let sockhop = forward("--remote", &[remotes[0].address()], &more);
    let listener = sockhop.wait_listening(SOON);
    let old: Vec<_> = (0..10).map(|_| client_is_served(listener, &echo)).collect();
    connect_to(&sockhop, remotes[1].address());
    for stream in &old {
        assert_ne!(expect_end(stream, A_SECOND), Observed::Silent, "not cut");
    }
    assert!(remotes[0].wait_open(0, SOON));
    let new = client_is_served(listener, &echo);
    // The same again is no switch.
    connect_to(&sockhop, remotes[1].address());
    assert_eq!(exchange(&new, b"still here").unwrap(), b"still here");
}

#[test]
fn disconnect_cuts_everything_within_a_second() {
    let echo = Target::echo();
    let remote = Peer::valid(ZERO);
    let sockhop = forward("--remote", &[remote.address()], &["--no-probing"]);
    let listener = sockhop.wait_listening(SOON);
    let mut streams: Vec<_> = (0..5).map(|_| client_is_served(listener, &echo)).collect();
    let quiet = connect(listener).unwrap();
    // Some clients more, whose connection to the remote never comes about.
    let nobody = Unanswering::new();
    connect_to(&sockhop, nobody.address());
    for _ in 0..5 {
        let client = connect(listener).unwrap();
        (&client).write_all(&opening(echo.address())).unwrap();
        streams.push(client);
    }
    streams.push(quiet);
    sockhop.wait_status(|status| status["connections"]["active"] == 11, SOON);
    let answer = sockhop.control("disconnect", Value::Null).unwrap();
    assert_eq!(answer, json!({"closed": 11}));
    let deadline = Instant::now() + A_SECOND;
    for stream in &streams {
        let left = deadline.saturating_duration_since(Instant::now());
        let end = expect_end(stream, left.max(Duration::from_millis(1)));
        assert_ne!(end, Observed::Silent, "not cut");
    }
    assert!(
        TcpStream::connect(listener).is_err(),
        "the port is still open"
    );
    let status = sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert_eq!(
        (&status["remote"], &status["listening"]),
        (&Value::Null, &json!([]))
    );
    assert_eq!(status["mode"], "manual");
    assert!(remote.wait_open(0, SOON));
}

#[test]
fn connect_works_after_every_disconnect() {
    let echo = Target::echo();
    let peers = valid_peers(2);
    let sockhop = forward("--peer", &addresses(&peers), &["--manual"]);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let before = sockhop.fds();
    for round in 0..60 {
        let parameters = match round % 3 {
            0 => Value::Null,
            _ => json!({"remote": peers[round % 2].address().to_string()}),
        };
        let answer = sockhop.control("connect", parameters).expect("connect");
        let listener = answer["listening"][0].as_str().unwrap().parse().unwrap();
        client_is_served(listener, &echo);
        sockhop
            .control("disconnect", Value::Null)
            .expect("disconnect");
    }
    let active = |status: &Value| status["connections"]["active"] == 0;
    sockhop.wait_status(active, SOON);
    assert!(
        wait_until(SOON, || sockhop.fds() <= before),
        "{} descriptors, {before} before",
        sockhop.fds()
    );
}

#[test]
fn a_port_that_was_ours_once_may_be_a_remote_later() {
    let first = Peer::valid(ZERO);
    let sockhop = forward("--remote", &[first.address()], &["--no-probing"]);
    let was_ours = sockhop.wait_listening(SOON);
    let error = sockhop.control("connect", json!({"remote": was_ours.to_string()}));
    assert_eq!(error.unwrap_err().code, -32002, "it is ours now");
    sockhop.control("disconnect", Value::Null).unwrap();
    let other = Peer::at(was_ours, Behaviour::Valid(ZERO));
    connect_to(&sockhop, other.address());
    client_is_served(sockhop.wait_listening(SOON), &Target::echo());
    assert_eq!(other.requests(), 1);
}

// The client's first bytes.

#[test]
fn the_first_bytes_go_to_the_next_remote_when_one_fails() {
    let echo = Target::echo();
    let bad = Peer::silent();
    let good = Peer::valid(ZERO);
    let more = ["--no-probing", "--connect-timeout", "500ms"];
    let list = [bad.address(), good.address()];
    let sockhop = forward("--remote", &list, &more);
    let listener = sockhop.wait_listening(SOON);
    let failures = [
        Behaviour::Silent,
        Behaviour::Closes,
        Behaviour::Resets,
        Behaviour::Scripted(vec![Step::Read(3), Step::Close]),
        Behaviour::Scripted(vec![Step::Read(13), Step::Reset]),
    ];
    for (done, behaviour) in failures.into_iter().enumerate() {
        let shown = format!("{behaviour:?}");
        bad.behave(behaviour);
        // Greeting, request and first payload at once.
        let client = connect(listener).unwrap();
        let bytes = [&opening(echo.address())[..], b"hello"].concat();
        (&client).write_all(&bytes).unwrap();
        let mut answer = [0; 17];
        (&client).read_exact(&mut answer).expect(&shown);
        assert_eq!(
            (&answer[..4], &answer[12..]),
            (&[5, 0, 5, 0][..], &b"hello"[..]),
            "{shown}"
        );
        assert_eq!(good.heard()[done], opening(echo.address()), "{shown}");
    }
    assert!(bad.wait_open(0, SOON));
    drop(bad);
    client_is_served(listener, &echo);
}

#[test]
fn with_no_usable_remote_a_client_is_told_in_its_own_protocol() {
    let unanswering = Unanswering::new();
    let more = ["--no-probing", "--connect-timeout", "300ms"];
    let remotes = [dead_address(), unanswering.address()];
    let sockhop = forward("--remote", &remotes, &more);
    let listener = sockhop.wait_listening(SOON);
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));

    // SOCKS5, one step after the other as most clients do, and all at once.
    let stream = connect(listener).unwrap();
    (&stream).write_all(&[5, 1, 0]).unwrap();
    assert_eq!(observe(&stream, SOON), Observed::Bytes(vec![5, 0]));
    (&stream).write_all(&opening(target)[3..]).unwrap();
    let refused = vec![5, 1, 0, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(observe(&stream, SOON), Observed::Bytes(refused.clone()));
    assert_eq!(observe(&stream, SOON), Observed::Eof);
    let stream = connect(listener).unwrap();
    (&stream).write_all(&opening(target)).unwrap();
    let mut answer = [0; 12];
    (&stream).read_exact(&mut answer).unwrap();
    assert_eq!(answer[..], [&[5, 0][..], &refused[..]].concat());

    // With a password, which is for the remote and not looked at here.
    let stream = connect(listener).unwrap();
    (&stream).write_all(&[5, 1, 2]).unwrap();
    assert_eq!(observe(&stream, SOON), Observed::Bytes(vec![5, 2]));
    (&stream).write_all(&[1, 1, b'u', 1, b'p']).unwrap();
    assert_eq!(observe(&stream, SOON), Observed::Bytes(vec![1, 0]));
    (&stream).write_all(&opening(target)[3..]).unwrap();
    assert_eq!(observe(&stream, SOON), Observed::Bytes(refused));

    // SOCKS4 and 4a.
    for request in [
        &[4, 1, 0, 80, 127, 0, 0, 1, b'm', b'e', 0][..],
        b"\x04\x01\x00\x50\x00\x00\x00\x01me\x00example.org\x00",
    ] {
        let stream = connect(listener).unwrap();
        (&stream).write_all(request).unwrap();
        let mut answer = [0; 8];
        (&stream).read_exact(&mut answer).unwrap();
        assert_eq!(answer[..2], [0, 0x5B]);
        assert_eq!(observe(&stream, SOON), Observed::Eof);
    }

    // Anything else can't be told: it is closed.
    let stream = connect(listener).unwrap();
    (&stream).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(expect_end(&stream, SOON), Observed::Eof);
}

#[test]
fn a_client_that_says_nothing_costs_the_remote_nothing() {
    let echo = Target::echo();
    let remote = Peer::valid(ZERO);
    let sockhop = forward("--remote", &[remote.address()], &["--no-probing"]);
    let listener = sockhop.wait_listening(SOON);
    let waiting: Vec<_> = (0..10).map(|_| connect(listener).unwrap()).collect();
    for _ in 0..10 {
        drop(connect(listener).unwrap());
    }
    sockhop.wait_status(
        |status| status["connections"]["total"] == 20 && status["connections"]["active"] == 10,
        SOON,
    );
    client_is_served(listener, &echo);
    assert_eq!(remote.accepted(), 1);
    // Those that waited are served when they speak.
    for mut stream in waiting {
        stream.write_all(&[5, 1, 0]).unwrap();
        assert_eq!(observe(&stream, SOON), Observed::Bytes(vec![5, 0]));
    }
    assert_eq!(remote.accepted(), 11);
}

#[test]
fn a_socks4_client_may_wait_for_its_target_longer_than_for_the_remote() {
    let echo = Target::echo();
    // SOCKS 4 has no greeting: the first answer comes when the proxy has reached the target, or has given up.
    let slow = || {
        Peer::scripted(vec![
            Step::Read(9),
            Step::Wait(Duration::from_secs(1)),
            Step::Send(vec![0, 0x5A, 0, 0, 0, 0, 0, 0]),
        ])
    };
    let remotes = [slow(), slow()];
    let more = ["--no-probing", "--connect-timeout", "200ms"];
    let sockhop = forward("--remote", &addresses(&remotes), &more);
    let client = connect(sockhop.wait_listening(SOON)).unwrap();
    let [high, low] = echo.address().port().to_be_bytes();
    (&client)
        .write_all(&[4, 1, high, low, 127, 0, 0, 1, 0])
        .unwrap();
    assert_eq!(
        observe(&client, SOON),
        Observed::Bytes(vec![0, 0x5A, 0, 0, 0, 0, 0, 0])
    );
    assert_eq!((remotes[0].accepted(), remotes[1].accepted()), (1, 0));
}

#[test]
fn when_all_remotes_have_died_the_first_that_comes_back_is_used() {
    let echo = Target::echo();
    let mut peers = valid_peers(2);
    let list = addresses(&peers);
    let more = ["--probe-interval", "1s", "--connect-timeout", "500ms"];
    let sockhop = forward("--peer", &list, &more);
    let listener = sockhop.wait_listening(SOON);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    for peer in &mut peers {
        peer.kill();
    }
    let error = socks5_connect(listener, echo.address()).unwrap_err();
    assert!(error.to_string().contains("[05, 01, 00, 01]"), "{error}");
    for peer in &list {
        sockhop.wait_peer(*peer, "not-listening", SOON);
    }
    let status = sockhop.status();
    let lost = status["remote"].as_str().unwrap().to_owned();
    assert!(
        status["reason"]
            .as_str()
            .unwrap()
            .contains("no other is valid"),
        "{status}"
    );
    assert!(
        status["listening"][0].is_string(),
        "the listener was closed: {status}"
    );
    let other = *list.iter().find(|peer| peer.to_string() != lost).unwrap();
    let _back = Peer::at(other, Behaviour::Valid(ZERO));
    sockhop.wait_status(remote_is(other), SOON);
    client_is_served(listener, &echo);
}

#[test]
fn the_own_listener_is_refused_as_a_remote_under_every_name() {
    let remote = Peer::valid(ZERO);
    let arguments = [
        "--no-probing",
        "--listen",
        "[::]:0",
        "--remote",
        &remote.address().to_string(),
    ];
    let sockhop = Sockhop::forward(&arguments).start();
    let port = sockhop.wait_listening(SOON).port();
    for host in [
        "127.0.0.1",
        "127.0.0.2",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
        "0.0.0.0",
    ] {
        let error = sockhop
            .control("connect", json!({"remote": format!("{host}:{port}")}))
            .expect_err(host);
        assert_eq!(error.code, -32002, "{host}: {error}");
    }
    // All is as before.
    assert_eq!(sockhop.status()["remote"], remote.address().to_string());
    client_is_served((Ipv4Addr::LOCALHOST, port).into(), &Target::echo());
}

#[test]
fn a_connect_that_fails_leaves_everything_as_it_was() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let more = ["--no-probing", "--on-switch", "cut"];
    let sockhop = forward("--remote", &[remote.address()], &more);
    let listener = sockhop.wait_listening(SOON);
    let stream = client_is_served(listener, &echo);
    for bad in ["no-such-host.invalid", "127.0.0.1:0", &listener.to_string()] {
        sockhop
            .control("connect", json!({"remote": bad}))
            .expect_err(bad);
    }
    assert_eq!(exchange(&stream, b"still here").unwrap(), b"still here");
    assert_eq!(sockhop.status()["remote"], remote.address().to_string());
    client_is_served(listener, &echo);
}

#[test]
fn a_slow_client_is_not_held_against_the_remote() {
    let echo = Target::echo();
    let peers = valid_peers(2);
    let more = ["--connect-timeout", "200ms"];
    let sockhop = forward("--peer", &addresses(&peers), &more);
    let listener = sockhop.wait_listening(SOON);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let remote = sockhop.status()["remote"].take();
    let mut client = connect(listener).unwrap();
    for part in opening(echo.address())[..3].chunks(1) {
        client.write_all(part).unwrap();
        // Longer than a remote may take to answer.
        assert_eq!(
            part == [0],
            observe(&client, Duration::from_millis(500)) != Observed::Silent
        );
    }
    client.write_all(&opening(echo.address())[3..]).unwrap();
    let mut answer = [0; 10];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..2], [5, 0]);
    let status = sockhop.status();
    assert_eq!(
        (&status["remote"], &status["last_error"]),
        (&remote, &Value::Null)
    );
}

#[test]
fn a_socks4_client_that_the_remotes_do_not_understand_disturbs_nobody() {
    let echo = Target::echo();
    let peers = valid_peers(2);
    let sockhop = forward("--peer", &addresses(&peers), &["--on-switch", "cut"]);
    let listener = sockhop.wait_listening(SOON);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let remote = sockhop.status()["remote"].take();
    let stream = client_is_served(listener, &echo);
    for _ in 0..3 {
        let client = connect(listener).unwrap();
        (&client)
            .write_all(&[4, 1, 0, 80, 127, 0, 0, 1, 0])
            .unwrap();
        let refused = vec![0, 0x5B, 0, 0, 0, 0, 0, 0];
        assert_eq!(observe(&client, SOON), Observed::Bytes(refused));
    }
    client_is_served(listener, &echo);
    assert_eq!(exchange(&stream, b"still here").unwrap(), b"still here");
    assert_eq!(sockhop.status()["remote"], remote);
}

#[test]
fn automatic_begins_when_probing_does() {
    let peer = Peer::valid(ZERO);
    let sockhop = forward("--peer", &[peer.address()], &["--no-probing"]);
    let status = sockhop.status();
    assert_eq!(
        (&status["remote"], &status["listening"]),
        (&Value::Null, &json!([]))
    );
    sockhop.control("probing", json!({"run": true})).unwrap();
    client_is_served(sockhop.wait_listening(SOON), &Target::echo());
}

#[test]
fn a_remote_that_starts_to_want_authentication_is_left_for_another() {
    let peers = valid_peers(2);
    let more = ["--probe-interval", "1s"];
    let sockhop = forward("--peer", &addresses(&peers), &more);
    let listener = sockhop.wait_listening(SOON);
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    let remote = sockhop.status()["remote"].take();
    let is_remote = |peer: &&Peer| remote == peer.address().to_string();
    let (selected, other): (Vec<&Peer>, Vec<&Peer>) = peers.iter().partition(is_remote);
    selected[0].behave(Behaviour::AuthRequired(0xFF));
    sockhop.wait_status(remote_is(other[0].address()), SOON);
    client_is_served(listener, &Target::echo());
}

#[test]
fn a_remote_given_by_hand_is_watched_like_a_peer() {
    let mut remotes = valid_peers(2);
    let list = addresses(&remotes);
    let sockhop = forward("--remote", &list, &["--probe-interval", "1s"]);
    let row = sockhop.wait_peer(list[0], "valid", SOON);
    assert_eq!(
        (&row["sources"], &row["selected"]),
        (&json!(["remote"]), &json!(true))
    );
    let row = sockhop.wait_peer(list[1], "valid", SOON);
    assert_eq!(
        (&row["sources"], &row["selected"]),
        (&json!(["remote"]), &json!(false))
    );
    remotes[0].kill();
    sockhop.wait_peer(list[0], "not-listening", SOON);
    // It stays the first choice, since that is what was said.
    assert_eq!(sockhop.status()["remote"], list[0].to_string());
    client_is_served(sockhop.wait_listening(SOON), &Target::echo());
}
