//! What loopback can't show: lost packets, unreachable hosts, links that go down, clients and forwarders elsewhere.
//!
//! Every test makes its own network of namespaces: `home`, where the program runs, with a cable to each of the others.
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Behaviour, Netns, Observed, Pattern, Peer, SOON, Sockhop, Target, connect, exchange,
    expect_end, observe, socks5_connect, wait_until,
};
use serde_json::{Value, json};

/// One machine with a SOCKS server and an echo server behind it, at the end of a cable from `home`.
struct Far {
    netns: Netns,
    peer: Peer,
    _echo: Target,
}

/// In the namespace of every peer.
const ECHO: &str = "127.0.0.1:7";

impl Far {
    /// The `number`th: `10.77.NUMBER.2` and `fd77:NUMBER::2`, where `home` has the 1.
    fn new(home: &Netns, number: u8, latency: Duration) -> Self {
        let netns = Netns::new();
        let addresses = |end| {
            [
                format!("10.77.{number}.{end}/24"),
                format!("fd77:{number}::{end}/64"),
            ]
        };
        let (ours, theirs) = (addresses(1), addresses(2));
        home.cable(&netns, &[&ours[0], &ours[1]], &[&theirs[0], &theirs[1]]);
        let at = format!("10.77.{number}.2:1080");
        let peer = netns.inside(|| Peer::at(&at, Behaviour::Valid(latency)));
        let echo = netns.inside(|| Target::echo_at(ECHO));
        Self {
            netns,
            peer,
            _echo: echo,
        }
    }

    fn address(&self) -> SocketAddr {
        self.peer.address()
    }

    fn text(&self) -> String {
        self.address().to_string()
    }

    /// Packets to its proxy get lost.
    fn lose_packets(&self) {
        self.netns.filter(&["input tcp dport 1080 drop"]);
    }

    fn heal(&self) {
        self.netns.filter(&[]);
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A stream through the forwarder to the echo server behind whatever peer it uses.
fn through(home: &Netns, forwarder: SocketAddr) -> std::io::Result<TcpStream> {
    home.inside(|| {
        let stream = socks5_connect(forwarder, at(ECHO))?;
        exchange(&stream, b"hello")?;
        Ok(stream)
    })
}

#[track_caller]
fn works(home: &Netns, forwarder: SocketAddr) -> TcpStream {
    through(home, forwarder).unwrap_or_else(|error| panic!("through {forwarder}: {error}"))
}

fn known(sockhop: &Sockhop, address: SocketAddr) -> Value {
    let address = address.to_string();
    sockhop
        .proxies()
        .into_iter()
        .find(|proxy| proxy["address"] == address.as_str())
        .unwrap_or_else(|| panic!("{address} is not known"))
}

/// Asserts, again and again for a while, that something stays true.
#[track_caller]
fn stays(length: Duration, what: &str, condition: impl Fn() -> bool) {
    assert!(!wait_until(length, || !condition()), "{what} did not stay");
}

#[test]
#[ignore = "needs root for network namespaces"]
fn peer_whose_packets_get_lost_times_out_after_five_seconds_and_nobody_waits_for_it() {
    let home = Netns::new();
    let (lost, good) = (
        Far::new(&home, 1, Duration::ZERO),
        Far::new(&home, 2, Duration::ZERO),
    );
    lost.lose_packets();
    let started = Instant::now();
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2", "--peer", "10.77.2.2"])
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    works(&home, forwarder);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(known(&sockhop, lost.address())["status"], "unknown");

    let found = sockhop.wait_peer(lost.address(), "not-listening", SOON);
    let took = started.elapsed();
    assert_eq!(found["reason"], "timed out");
    assert!(
        (Duration::from_millis(4900)..Duration::from_millis(6500)).contains(&took),
        "{took:?}"
    );
    assert_eq!(sockhop.status()["remote"], good.text());
}

/// Another one is asked beside it as soon as it hesitates, whatever the connect time limit is.
#[test]
#[ignore = "needs root for network namespaces"]
fn remote_that_starts_to_lose_packets_costs_clients_a_moment() {
    loses_packets(&[], Duration::from_millis(300), Duration::from_millis(2000));
}

#[test]
#[ignore = "needs root for network namespaces"]
fn remote_that_starts_to_lose_packets_is_replaced_within_the_connect_time_limit() {
    loses_packets(
        &["--stagger=0", "--connect-timeout=1s"],
        Duration::from_millis(900),
        Duration::from_millis(2500),
    );
}

/// The first client after the loss takes at least and at most that long, and the next one less than the limit.
#[track_caller]
fn loses_packets(arguments: &[&str], at_least: Duration, at_most: Duration) {
    let home = Netns::new();
    let (first, second) = (
        Far::new(&home, 1, Duration::ZERO),
        Far::new(&home, 2, Duration::from_millis(100)),
    );
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2", "--peer", "10.77.2.2"])
        .args(arguments)
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    sockhop.wait_peer(second.address(), "valid", SOON);
    assert_eq!(sockhop.status()["remote"], first.text());
    let old = works(&home, forwarder);

    first.lose_packets();
    let started = Instant::now();
    let fresh = works(&home, forwarder);
    let took = started.elapsed();
    assert!((at_least..at_most).contains(&took), "{took:?}");
    // What took a whole time limit counted at once. Who only hesitated may hesitate again, until it has been probed.
    let started = Instant::now();
    works(&home, forwarder);
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
    // That takes two probes of 5 s: the first silence may be the own link's, until the other one has answered a probe.
    sockhop.wait_status(|status| status["remote"] == second.text(), SOON * 3);

    // A stream that lost its packets is not lost itself.
    (&old).write_all(b"still there?").unwrap();
    assert_eq!(observe(&old, Duration::from_secs(1)), Observed::Silent);
    first.heal();
    let mut answer = [0; 12];
    (&old).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still there?");
    assert_eq!(exchange(&fresh, b"and here").unwrap(), b"and here");
}

#[test]
#[ignore = "needs root for network namespaces"]
fn long_stream_survives_an_outage_byte_for_byte() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2"])
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    let stream = works(&home, forwarder);
    let pattern = Pattern::new(11);
    let (mut sent, mut echoed) = (vec![0; 5_000_000], vec![0; 5_000_000]);
    for round in 0..4 {
        pattern.fill(round * 5_000_000, &mut sent);
        // In turns nothing gets there at first, and nothing more after a while.
        let early = if round % 2 == 0 { 0 } else { 1_000_000 };
        thread::scope(|scope| {
            if early == 0 {
                far.lose_packets();
            }
            scope.spawn(|| (&stream).write_all(&sent).unwrap());
            (&stream).read_exact(&mut echoed[..early]).unwrap();
            far.lose_packets();
            thread::sleep(Duration::from_millis(400));
            far.heal();
            (&stream).read_exact(&mut echoed[early..]).unwrap();
        });
        assert!(sent == echoed, "round {round}");
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn remote_that_resets_in_the_middle_resets_the_client() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2"])
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    let stream = works(&home, forwarder);
    far.netns
        .filter(&["input tcp dport 1080 reject with tcp reset"]);
    (&stream).write_all(b"anybody?").unwrap();
    assert_eq!(expect_end(&stream, SOON), Observed::Reset);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn rejected_packets_tell_why() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let _v6 = far
        .netns
        .inside(|| Peer::at("[fd77:1::2]:1080", Behaviour::Valid(Duration::ZERO)));
    for (v4, v6, reason) in [
        ("tcp reset", "tcp reset", "refused"),
        (
            "icmp type port-unreachable",
            "icmpv6 type port-unreachable",
            "refused",
        ),
        (
            "icmp type host-unreachable",
            "icmpv6 type addr-unreachable",
            "host unreachable",
        ),
        (
            "icmp type net-unreachable",
            "icmpv6 type no-route",
            "network unreachable",
        ),
    ] {
        far.netns.filter(&[
            &format!("input ip version 4 tcp dport 1080 reject with {v4}"),
            &format!("input ip6 version 6 tcp dport 1080 reject with {v6}"),
        ]);
        let sockhop = Sockhop::forward(&["--peer", "10.77.1.2", "--peer", "fd77:1::2"])
            .inside(&home)
            .start();
        for address in ["10.77.1.2:1080", "[fd77:1::2]:1080"] {
            let found = sockhop.wait_peer(at(address), "not-listening", Duration::from_secs(3));
            assert_eq!(found["reason"], reason, "{address} {v4}");
        }
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn address_that_nobody_has_is_unreachable() {
    let home = Netns::new();
    let _far = Far::new(&home, 1, Duration::ZERO);
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.99", "--peer", "192.0.2.1"])
        .inside(&home)
        .start();
    // Nobody answers ARP, which the kernel asks three times, once a second.
    let found = sockhop.wait_peer(at("10.77.1.99:1080"), "not-listening", SOON);
    assert_eq!(found["reason"], "host unreachable");
    // There is no way there at all: that says nothing about the peer.
    let unknown = known(&sockhop, at("192.0.2.1:1080"));
    assert_eq!(
        (&unknown["status"], &unknown["reason"]),
        (&json!("unknown"), &json!("no route from here"))
    );
}

#[test]
#[ignore = "needs root for network namespaces"]
fn own_link_down_changes_nothing_and_works_again_when_it_is_up() {
    let home = Netns::new();
    let (first, second) = (
        Far::new(&home, 1, Duration::ZERO),
        Far::new(&home, 2, Duration::from_millis(50)),
    );
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2", "--peer", "10.77.2.2"])
        .arg("--probe-interval=1s")
        .arg("--probe-timeout=300ms")
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    sockhop.wait_peer(second.address(), "valid", SOON);
    for far in [&first, &second] {
        home.ip(&format!("link set {} down", home.link_to(&far.netns)));
    }
    stays(Duration::from_secs(4), "the choice", || {
        let status = sockhop.status();
        status["candidates"]["valid"] == 2
            && status["remote"] == first.text()
            && status["listening"][0] == forwarder.to_string()
    });
    let started = Instant::now();
    let error = through(&home, forwarder).expect_err("no way out");
    assert!(error.to_string().contains("[05, 01"), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(sockhop.status()["candidates"]["valid"], 2);

    for far in [&first, &second] {
        home.ip(&format!("link set {} up", home.link_to(&far.netns)));
    }
    works(&home, forwarder);
    assert_eq!(sockhop.status()["remote"], first.text());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn started_before_its_network_it_finds_its_peer_soon_after() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let link = home.link_to(&far.netns);
    home.ip(&format!("link set {link} down"));
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2"])
        .inside(&home)
        .start();
    let has_no_route = |proxies: &[Value]| {
        proxies
            .iter()
            .any(|one| one["reason"] == "no route from here")
    };
    sockhop.wait_proxies(has_no_route, SOON);
    thread::sleep(Duration::from_secs(2));
    home.ip(&format!("link set {link} up"));
    let forwarder = sockhop.wait_listening(SOON);
    works(&home, forwarder);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn silence_from_everybody_is_taken_for_our_own_link() {
    let home = Netns::new();
    let fars = [1, 2, 3]
        .map(|number| Far::new(&home, number, Duration::from_millis(u64::from(number) * 20)));
    let sockhop = Sockhop::forward(&["--peer=10.77.1.2", "--peer=10.77.2.2", "--peer=10.77.3.2"])
        .arg("--probe-interval=1s")
        .arg("--probe-timeout=300ms")
        .arg("--connect-timeout=300ms")
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    sockhop.wait_status(|status| status["candidates"]["valid"] == 3, SOON);
    let stream = works(&home, forwarder);

    home.filter(&["input iifname \"to-*\" drop"]);
    stays(Duration::from_secs(4), "what was known", || {
        let status = sockhop.status();
        status["candidates"]["valid"] == 3 && status["listening"][0] == forwarder.to_string()
    });
    let error = through(&home, forwarder).expect_err("nobody answers");
    assert!(error.to_string().contains("[05, 01"), "{error}");
    assert_eq!(sockhop.status()["candidates"]["valid"], 3);

    home.filter(&[]);
    works(&home, forwarder);
    assert_eq!(exchange(&stream, b"it lived on").unwrap(), b"it lived on");
    for far in &fars {
        let is_well = || known(&sockhop, far.address())["reason"] == "answered 05 00";
        assert!(
            wait_until(SOON, is_well),
            "{}",
            known(&sockhop, far.address())
        );
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn the_only_peer_stays_the_remote_while_it_is_away() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let sockhop = Sockhop::forward(&["--peer", "10.77.1.2"])
        .arg("--probe-interval=1s")
        .arg("--probe-timeout=300ms")
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    far.lose_packets();
    sockhop.wait_peer(far.address(), "not-listening", SOON);
    let status = sockhop.status();
    assert_eq!(status["remote"], far.text());
    assert_eq!(status["listening"][0], forwarder.to_string());
    far.heal();
    works(&home, forwarder);
    sockhop.wait_peer(far.address(), "valid", SOON);
}

/// What a client at `client` gets of a forwarder at `listener` that allows these ranges, asked from another machine.
fn client_comes_in(allow: &[&str], client: &str, listener: &str) -> bool {
    let (home, elsewhere) = (Netns::new(), Netns::new());
    let net = |address: &str| match address.contains(':') {
        true => format!("{address}/64"),
        false => format!("{address}/24"),
    };
    home.cable(&elsewhere, &[&net(listener)], &[&net(client)]);
    let far = Far::new(&home, 1, Duration::ZERO);
    let mut launch = Sockhop::forward(&["--peer", "10.77.1.2", "--listen", "[::]:1080"]);
    for range in allow {
        launch = launch.arg("--allow").arg(range);
    }
    let sockhop = launch.inside(&home).start();
    sockhop.wait_listening(SOON);
    // Loopback comes in whatever is allowed.
    works(&home, at("127.0.0.1:1080"));
    works(&home, at("[::1]:1080"));
    assert_eq!(far.peer.requests(), 2);

    let forwarder = SocketAddr::new(listener.parse().expect("an address"), 1080);
    let came_in = through(&elsewhere, forwarder).is_ok();
    let refused = &sockhop.status()["connections"]["refused"];
    assert_eq!(refused, &json!(u8::from(!came_in)));
    assert_eq!(far.peer.requests(), if came_in { 3 } else { 2 });
    came_in
}

#[test]
#[ignore = "needs root for network namespaces"]
fn clients_from_elsewhere_come_in_by_their_address() {
    for (allow, client, listener, expected) in [
        (&[][..], "192.168.7.2", "192.168.7.1", true),
        (&[], "198.51.100.2", "198.51.100.1", false),
        (&[], "fd99::2", "fd99::1", true),
        (&[], "2001:db8::2", "2001:db8::1", false),
        (&["198.51.100.0/24"], "198.51.100.2", "198.51.100.1", true),
        (&["198.51.100.0/24"], "192.168.7.2", "192.168.7.1", false),
        (&["2001:db8::2/128"], "2001:db8::2", "2001:db8::1", true),
    ] {
        assert_eq!(
            client_comes_in(allow, client, listener),
            expected,
            "{allow:?} {client}"
        );
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn peer_comes_in_as_a_client_only_by_name() {
    for (allow, expected) in [
        (&[][..], false),
        (&["--allow=10.0.0.0/8"], false),
        (&["--allow=10.77.1.2/32"], true),
    ] {
        let home = Netns::new();
        let far = Far::new(&home, 1, Duration::ZERO);
        let mut launch = Sockhop::forward(&["--peer", "10.77.1.2", "--listen", "0.0.0.0:1080"]);
        for argument in allow {
            launch = launch.arg(argument);
        }
        let sockhop = launch.inside(&home).start();
        sockhop.wait_listening(SOON);
        let came_in = through(&far.netns, at("10.77.1.1:1080")).is_ok();
        assert_eq!(came_in, expected, "{allow:?}");
        if !expected {
            let connections = &sockhop.status()["connections"];
            assert_eq!(connections["refused_by_reason"], json!({"peer": 1}));
        }
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn wildcard_takes_ipv4_where_the_system_says_ipv6_only() {
    let home = Netns::new();
    home.set("ipv6/bindv6only", "1");
    let far = Far::new(&home, 1, Duration::ZERO);
    let elsewhere = Netns::new();
    home.cable(&elsewhere, &["10.77.9.1/24"], &["10.77.9.2/24"]);
    let sockhop = Sockhop::forward(&["--peer", &far.text(), "--listen", "[::]:1080"])
        .inside(&home)
        .start();
    sockhop.wait_listening(SOON);
    works(&home, at("127.0.0.1:1080"));
    works(&home, at("[::1]:1080"));
    works(&elsewhere, at("10.77.9.1:1080"));
}

#[test]
#[ignore = "needs root for network namespaces"]
fn works_with_ipv4_where_ipv6_is_disabled() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    home.set("ipv6/conf/all/disable_ipv6", "1");
    home.set("ipv6/conf/default/disable_ipv6", "1");
    let sockhop = Sockhop::forward(&["--peer", "fd77:1::2", "--peer", &far.text()])
        .arg("--listen=[::]:1080")
        .inside(&home)
        .start();
    sockhop.wait_listening(SOON);
    works(&home, at("127.0.0.1:1080"));
    works(&home, at("10.77.1.1:1080"));
    let unreached = known(&sockhop, at("[fd77:1::2]:1080"));
    assert_eq!(
        (&unreached["status"], &unreached["reason"]),
        (&json!("unknown"), &json!("no route from here"))
    );
}

#[test]
#[ignore = "needs root for network namespaces"]
fn own_listener_is_no_remote_under_any_address_of_the_machine() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let sockhop = Sockhop::forward(&["--peer", &far.text(), "--listen", "[::]:1080"])
        .args(["10.77.1.1", "fd77:1::1", "127.0.0.1", "::1"].map(|own| format!("--peer={own}")))
        .inside(&home)
        .start();
    sockhop.wait_listening(SOON);
    // An address that came after the start counts as well.
    home.ip("address add 198.51.100.9/32 dev lo");
    for own in [
        "10.77.1.1:1080",
        "[fd77:1::1]:1080",
        "127.0.0.1:1080",
        "127.5.5.5:1080",
        "[::1]:1080",
        "0.0.0.0:1080",
        "[::ffff:10.77.1.1]:1080",
        "198.51.100.9:1080",
        "localhost:1080",
    ] {
        let error = sockhop
            .control("connect", json!({"remote": own}))
            .expect_err(own);
        assert!(
            error.message.contains("listener of this forwarder"),
            "{own}: {error}"
        );
    }
    for own in [
        "10.77.1.1:1080",
        "[fd77:1::1]:1080",
        "127.0.0.1:1080",
        "[::1]:1080",
    ] {
        let own = known(&sockhop, at(own));
        assert_eq!(
            (&own["status"], &own["reason"]),
            (&json!("unknown"), &json!("own listener, not probed")),
            "{own}"
        );
    }
    works(&home, at("127.0.0.1:1080"));
    assert_eq!(sockhop.status()["remote"], far.text());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn forwarders_pointed_at_each_other_refuse_the_loop_and_recover() {
    let (left, right) = (Netns::new(), Netns::new());
    left.cable(&right, &["10.78.0.1/24"], &["10.78.0.2/24"]);
    let exit = Far::new(&left, 1, Duration::ZERO);
    let start = |netns: &Netns, remote: &str| {
        let sockhop = Sockhop::forward(&["--remote", remote, "--listen", "[::]:1080"])
            .arg("--allow=10.0.0.0/8")
            .arg("--probe-interval=1s")
            .inside(netns)
            .start();
        sockhop.wait_listening(SOON);
        sockhop
    };
    let one = start(&left, "10.78.0.2");
    let other = start(&right, "10.78.0.1");
    let quiet = (one.fds(), other.fds());
    for _ in 0..50 {
        through(&left, at("127.0.0.1:1080")).expect_err("a loop");
        through(&right, at("127.0.0.1:1080")).expect_err("a loop");
    }
    let is_quiet = || one.fds() <= quiet.0 + 2 && other.fds() <= quiet.1 + 2;
    assert!(
        wait_until(SOON, is_quiet),
        "{} {} {quiet:?}",
        one.fds(),
        other.fds()
    );
    for sockhop in [&one, &other] {
        let refused = &sockhop.status()["connections"]["refused_by_reason"]["peer"];
        assert!(refused.as_u64() >= Some(50), "{refused}");
    }

    // Repointed, the one is a way out for the other.
    one.control("connect", json!({"remote": exit.text()}))
        .unwrap();
    works(&left, at("127.0.0.1:1080"));
    let is_way_out = || through(&right, at("127.0.0.1:1080")).is_ok();
    assert!(
        wait_until(SOON, is_way_out),
        "no way out after the loop was undone"
    );
}

#[test]
#[ignore = "needs root for network namespaces"]
fn ring_of_three_forwarders_is_bounded_and_falls_apart_without_its_client() {
    // Each knows only the next one, so no peer rule finds it out.
    let spaces = [Netns::new(), Netns::new(), Netns::new()];
    for (one, next) in [(0, 1), (1, 2), (2, 0)] {
        let end = |number| format!("10.79.{one}.{number}/24");
        spaces[one].cable(&spaces[next], &[&end(1)], &[&end(2)]);
    }
    let most = 100;
    let ring = [0, 1, 2].map(|one| {
        Sockhop::forward(&["--listen=0.0.0.0:1080", "--no-probing"])
            .arg(format!("--remote=10.79.{one}.2"))
            .arg(format!("--max-connections={most}"))
            .inside(&spaces[one])
            .start()
    });
    for sockhop in &ring {
        sockhop.wait_listening(SOON);
    }
    let quiet = ring.each_ref().map(Sockhop::fds);
    let client = spaces[0].inside(|| connect(at("127.0.0.1:1080"))).unwrap();
    (&client).write_all(&[5, 1, 0]).unwrap();
    ring[0].wait_status(|status| status["connections"]["active"] == most, SOON);
    for (sockhop, quiet) in ring.iter().zip(quiet) {
        assert!(sockhop.fds() <= quiet + 2 * most + 10, "{}", sockhop.fds());
    }
    let before = ring.each_ref().map(Sockhop::cpu_ticks);
    thread::sleep(Duration::from_secs(1));
    for (sockhop, before) in ring.iter().zip(before) {
        assert!(sockhop.cpu_ticks() - before <= 20, "busy for nothing");
    }

    drop(client);
    for sockhop in &ring {
        sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn forwarders_that_discover_each_other_never_choose_each_other() {
    let (left, right) = (Netns::new(), Netns::new());
    left.cable(&right, &["10.78.0.1/24"], &["10.78.0.2/24"]);
    let (left_exit, right_exit) = (
        Far::new(&left, 1, Duration::from_millis(50)),
        Far::new(&right, 2, Duration::from_millis(50)),
    );
    let start = |netns: &Netns, other: &str, exit: &Far| {
        Sockhop::forward(&[
            "--peer",
            other,
            "--peer",
            &exit.text(),
            "--listen=[::]:1080",
        ])
        .arg("--probe-interval=1s")
        .inside(netns)
        .start()
    };
    let one = start(&left, "10.78.0.2", &left_exit);
    let other = start(&right, "10.78.0.1", &right_exit);
    for (sockhop, twin, exit) in [
        (&one, "10.78.0.2:1080", &left_exit),
        (&other, "10.78.0.1:1080", &right_exit),
    ] {
        sockhop.wait_listening(SOON);
        sockhop.wait_peer(at(twin), "not-a-proxy", SOON);
        assert_eq!(sockhop.status()["remote"], exit.text());
    }
    works(&left, at("127.0.0.1:1080"));
    works(&right, at("127.0.0.1:1080"));
}

#[test]
#[ignore = "needs root for network namespaces"]
fn clients_that_vanish_while_their_packets_get_lost_leave_nothing_behind() {
    let home = Netns::new();
    let far = Far::new(&home, 1, Duration::ZERO);
    let sockhop = Sockhop::forward(&["--remote", "10.77.1.2"])
        .arg("--connect-timeout=2s")
        .inside(&home)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    let quiet = sockhop.fds();
    far.lose_packets();
    let clients: Vec<TcpStream> = (0..20)
        .map(|_| {
            let stream = home.inside(|| connect(forwarder)).unwrap();
            (&stream).write_all(&[5, 1, 0]).unwrap();
            stream
        })
        .collect();
    sockhop.wait_status(|status| status["connections"]["active"] == 20, SOON);
    drop(clients);
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(
        wait_until(SOON, || sockhop.fds() <= quiet + 2),
        "{} {quiet}",
        sockhop.fds()
    );
}

/// The code of a SOCKS5 server's reply to a CONNECT to this IPv4 address; `None` when the client is closed unheard.
#[cfg(feature = "server")]
fn code_of(server: SocketAddr, target: &str) -> Option<u8> {
    let SocketAddr::V4(target) = at(target) else {
        panic!("{target} is not IPv4");
    };
    let request = [
        &[5, 1, 0, 5, 1, 0, 1][..],
        &target.ip().octets(),
        &target.port().to_be_bytes(),
    ];
    let mut stream = connect(server).expect("connect");
    let mut answer = [0; 12];
    stream.write_all(&request.concat()).ok()?;
    stream.read_exact(&mut answer).ok()?;
    assert_eq!(answer[..3], [5, 0, 5]);
    Some(answer[3])
}

#[cfg(feature = "server")]
#[test]
#[ignore = "needs root for network namespaces"]
fn a_server_lets_in_whom_it_should_and_leads_out_only() {
    let (home, other) = (Netns::new(), Netns::new());
    home.cable(
        &other,
        &["9.9.9.1/24", "10.77.1.1/24"],
        &["9.9.9.2/24", "10.77.1.2/24"],
    );
    let _here = home.inside(|| Target::echo_at("9.9.9.1:7"));
    let _there = other.inside(|| Target::echo_at("0.0.0.0:7"));
    let server = Sockhop::serve(&["--listen", "[::]:1080"])
        .inside(&home)
        .start();
    server.wait_listening(SOON);
    let local = at("127.0.0.1:1080");
    for (target, code) in [
        ("9.9.9.2:7", 0),
        ("9.9.9.2:8", 5),
        // An own address, though a public one; a private one; nobody there; no way there.
        ("9.9.9.1:7", 2),
        ("10.77.1.2:7", 2),
        ("9.9.9.77:7", 4),
        ("8.8.8.8:53", 3),
    ] {
        let answered = home.inside(|| code_of(local, target));
        assert_eq!(answered, Some(code), "{target}");
    }
    // A private client of the IPv6 listener, and a public one, which is not allowed.
    let private = other.inside(|| code_of(at("10.77.1.1:1080"), "9.9.9.2:7"));
    assert_eq!(private, Some(0));
    let public = other.inside(|| code_of(at("9.9.9.1:1080"), "9.9.9.2:7"));
    assert_eq!(public, None);
    let refused = server.status()["connections"]["refused_by_reason"].clone();
    assert_eq!(refused, json!({"not-allowed": 1, "rules": 2}));
}
