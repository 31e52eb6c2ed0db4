//! `sockhop serve --via`: the way out through other proxies. Nothing here uses the crate's own SOCKS code.
#![cfg(feature = "server")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Behaviour, Chunks, Daemon, End, Pattern, Peer, SOON, Sockhop, Step, Target, Unanswering,
    connect, dead_address, exchange, program, read_exactly, socks5_connect, socks5_connect_name,
    wait_until,
};
use serde_json::json;

/// A server that goes through these proxies, and lets clients go to IPv4's loopback.
fn serve(proxies: &[&str], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let proxies = proxies.iter().flat_map(|proxy| ["--via", proxy]);
    common::serve(&proxies.chain(arguments.iter().copied()).collect::<Vec<_>>())
}

fn uri(scheme: &str, address: SocketAddr) -> String {
    format!("{scheme}://{address}")
}

/// A proxy that grants nothing by itself: it takes a greeting and a request of these lengths, then does the rest.
fn scripted(request: usize, rest: impl IntoIterator<Item = Step>) -> Peer {
    let start = [Step::Read(3), Step::Send(vec![5, 0]), Step::Read(request)];
    Peer::scripted(start.into_iter().chain(rest).collect())
}

/// SOCKS5's request for an IPv4 address.
fn request(command: u8, target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(v4) = target else {
        panic!("{target} is not IPv4");
    };
    [
        &[5, command, 0, 1],
        &v4.ip().octets()[..],
        &v4.port().to_be_bytes(),
    ]
    .concat()
}

fn request_name(name: &str, port: u16) -> Vec<u8> {
    let length = [u8::try_from(name.len()).expect("short")];
    [
        &[5, 1, 0, 3][..],
        &length,
        name.as_bytes(),
        &port.to_be_bytes(),
    ]
    .concat()
}

/// Sends a whole handshake of SOCKS5 without authentication, with this behind it.
fn ask(server: SocketAddr, request: &[u8], payload: &[u8]) -> TcpStream {
    let mut stream = connect(server).expect("connect");
    let bytes = [&[5, 1, 0], request, payload].concat();
    stream.write_all(&bytes).expect("write");
    stream
}

/// The code of the reply of a server that refuses, and then closes in order.
#[track_caller]
fn code(server: SocketAddr, request: &[u8]) -> u8 {
    let mut answer = Vec::new();
    ask(server, request, b"")
        .read_to_end(&mut answer)
        .expect("an orderly end");
    assert_eq!((&answer[..3], answer.len()), (&[5, 0, 5][..], 12));
    answer[3]
}

const TARGET: &str = "127.0.0.1:9";

fn anywhere() -> Vec<u8> {
    request(1, TARGET.parse().unwrap())
}

const GRANTED: [u8; 10] = [5, 0, 0, 1, 192, 0, 2, 9, 0x0f, 0xa0];

#[test]
fn a_client_without_a_password_gets_through_a_proxy_that_wants_one() {
    let proxy = Peer::scripted(vec![
        Step::Read(3),
        Step::Send(vec![5, 2]),
        Step::Read(3 + 3 + 6),
        Step::Send(vec![1, 0]),
        Step::Serve,
    ]);
    let target = Target::echo();
    let via = format!("socks5://ada:s%2Fcret@{}", proxy.address());
    let (server, address) = serve(&[&via], &[]);
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let heard = [
        &[5, 1, 2][..],
        b"\x01\x03ada\x06s/cret",
        &request(1, target.address()),
    ];
    assert_eq!(proxy.heard()[0], heard.concat());

    let shown = format!("socks5://ada:***@{}", proxy.address());
    assert_eq!(server.status()["via"], json!([shown]));
    let text = String::from_utf8(server.command(&["status"]).stdout).unwrap();
    assert!(text.contains(&format!("via          {shown}\n")), "{text}");
    server.wait_log(&format!("connecting through {shown}"), SOON);
    assert!(!server.log().join("\n").contains("cret"));
}

#[test]
fn socks4_clients_get_through_a_socks5_proxy_and_the_other_way_round() {
    let (proxy, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let (_server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
    let port = target.address().port().to_be_bytes();
    for request in [
        [&[4, 1][..], &port, b"\x7f\0\0\x01ada\0"].concat(),
        [&[4, 1][..], &port, b"\0\0\0\x01\x00127.0.0.1\0"].concat(),
    ] {
        let mut stream = connect(address).unwrap();
        stream.write_all(&request).unwrap();
        assert_eq!(read_exactly(&mut stream, 8)[..2], [0, 90]);
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    }

    let request = b"\x04\x01\0\x09\x7f\0\0\x01eve\0";
    let old = Peer::scripted(vec![
        Step::Read(request.len()),
        Step::Send(b"\0\x5a\0\0\0\0\0\0early".to_vec()),
    ]);
    let via = format!("socks4://eve@{}", old.address());
    let (_server, address) = serve(&[&via], &["--allow-dest", "::1"]);
    let mut stream = ask(address, &anywhere(), b"");
    let reply = read_exactly(&mut stream, 2 + 10 + 5);
    assert_eq!(reply[2..], *b"\x05\0\0\x01\0\0\0\0\0\0early");
    assert_eq!(old.heard()[0], request);
    // SOCKS4 reaches IPv4 only, which is told before anything is asked.
    let v6 = [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 9]].concat();
    assert_eq!(code(address, &v6), 8);
}

#[test]
fn names_go_unresolved_or_are_looked_up_here_as_the_scheme_says() {
    let name = "no-such-name.invalid";
    let proxy = scripted(
        5 + name.len() + 2,
        [Step::Send(GRANTED.to_vec()), Step::Send(b"hi".to_vec())],
    );
    let (_server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
    let mut stream = ask(address, &request_name(name, 9), b"");
    assert_eq!(read_exactly(&mut stream, 14)[12..], *b"hi");
    let heard = [&[5, 1, 0][..], &request_name(name, 9)].concat();
    assert_eq!(proxy.heard()[0], heard);

    let (proxy, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let (_server, address) = serve(&[&uri("socks5", proxy.address())], &[]);
    assert_eq!(code(address, &request_name(name, 9)), 4);
    assert_eq!(proxy.accepted(), 0);
    let port = target.address().port();
    let stream = socks5_connect_name(address, "localhost", port).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let heard = [&[5, 1, 0][..], &request(1, target.address())].concat();
    assert_eq!(proxy.heard()[0], heard);
}

#[test]
fn proxies_of_a_chain_are_reached_one_through_the_other() {
    let (first, second) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let target = Target::echo();
    // The name of the second is looked up by the first, or here.
    let named = format!("socks5h://localhost:{}", second.address().port());
    for (rounds, scheme) in [(1, "socks5h"), (2, "socks5")] {
        let (_server, address) = serve(&[&uri(scheme, first.address()), &named], &[]);
        let stream = socks5_connect(address, target.address()).unwrap();
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
        assert_eq!((first.requests(), second.requests()), (rounds, rounds));
    }
    assert_eq!(first.heard()[0][..8], *b"\x05\x01\0\x05\x01\0\x03\x09");
    assert_eq!(first.heard()[1][..7], *b"\x05\x01\0\x05\x01\0\x01");
    // What the first can't reach is the proxies' fault, not the destination's.
    let dead = uri("socks5h", dead_address());
    let (server, address) = serve(&[&uri("socks5h", first.address()), &dead], &[]);
    assert_eq!(code(address, &anywhere()), 1);
    server.wait_log("connection refused (0x05)", SOON);
}

#[test]
fn refusals_are_passed_on() {
    for code_of_proxy in [1, 2, 3, 4, 5, 6, 7, 8, 9, 0xf0] {
        let reply = vec![5, code_of_proxy, 0, 1, 0, 0, 0, 0, 0, 0];
        let proxy = scripted(10, [Step::Send(reply)]);
        let (server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
        assert_eq!(code(address, &anywhere()), code_of_proxy);
        assert_eq!(server.status()["connections"]["refused"], 0);
    }
    for (code_of_proxy, expected) in [(91, 5), (92, 1), (93, 1)] {
        let proxy = Peer::scripted(vec![
            Step::Read(9),
            Step::Send(vec![0, code_of_proxy, 0, 0, 0, 0, 0, 0]),
        ]);
        let (_server, address) = serve(&[&uri("socks4", proxy.address())], &[]);
        assert_eq!(code(address, &anywhere()), expected);
    }
}

#[test]
fn the_bound_address_is_what_the_proxy_told() {
    for (told, expected) in [
        (
            &b"\x01\xc0\0\x02\x09\x0f\xa0"[..],
            &b"\x01\xc0\0\x02\x09\x0f\xa0"[..],
        ),
        // The proxy itself.
        (b"\x01\0\0\0\0\x0f\xa0", b"\x01\x7f\0\0\x01\x0f\xa0"),
        (b"\x01\0\0\0\0\0\0", b"\x01\0\0\0\0\0\0"),
        (b"\x03\x01x\x0f\xa0", b"\x01\0\0\0\0\x0f\xa0"),
        (
            b"\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x09\x0f\xa0",
            b"\x01\xc0\0\x02\x09\x0f\xa0",
        ),
        (
            b"\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x0f\xa0",
            b"\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x0f\xa0",
        ),
    ] {
        let proxy = scripted(10, [Step::Send([b"\x05\0\0", told].concat())]);
        let (_server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
        let mut stream = ask(address, &anywhere(), b"");
        let reply = read_exactly(&mut stream, 2 + 3 + expected.len());
        assert_eq!(reply[5..], *expected, "{told:02x?}");
    }
}

#[test]
fn silent_proxies_have_one_deadline_and_cost_no_thread() {
    let silent = Peer::silent();
    let (server, address) = serve(
        &[&uri("socks5h", silent.address())],
        &["--connect-timeout", "700ms", "--workers", "4"],
    );
    let start = Instant::now();
    let waiting: Vec<_> = (0..50).map(|_| ask(address, &anywhere(), b"")).collect();
    assert!(silent.wait_open(50, SOON));
    assert!(server.threads() <= 16, "{} threads", server.threads());
    for mut stream in waiting {
        assert_eq!(read_exactly(&mut stream, 12)[..4], [5, 0, 5, 1]);
    }
    let lasted = start.elapsed();
    assert!(lasted >= Duration::from_millis(600), "{lasted:?}");
    assert!(silent.wait_open(0, SOON));

    let drips = Peer::drips(Duration::from_millis(200));
    let unanswering = Unanswering::new();
    // Once it was asked, it may be the destination that does not answer.
    let asked = scripted(10, []);
    for (proxy, expected) in [
        (drips.address(), 1),
        (unanswering.address(), 1),
        (asked.address(), 4),
    ] {
        let via = format!("socks5h://{proxy}?timeout=300ms");
        let (_server, address) = serve(&[&via], &[]);
        assert_eq!(code(address, &anywhere()), expected, "{proxy}");
    }
}

#[test]
fn proxies_that_are_none_are_told_apart_from_targets_and_logged_once() {
    let proxy = Peer::http();
    let (server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
    assert_eq!(code(address, &anywhere()), 1);
    let line = server.wait_log("warn: via", SOON);
    assert!(line.contains("sent \"HTTP/1.1\""), "{line}");
    let mut count = 1;
    let granted = |rest: &[u8]| [&[5, 0], rest].concat();
    for behaviour in [
        Behaviour::Closes,
        Behaviour::Resets,
        Behaviour::SshBanner,
        Behaviour::Scripted(vec![Step::Read(3), Step::Send(vec![5]), Step::HalfClose]),
        Behaviour::Scripted(vec![Step::Read(3), Step::Send(vec![5, 0]), Step::Close]),
        Behaviour::Scripted(vec![Step::Read(3), Step::Send(granted(&GRANTED))]),
        Behaviour::Scripted(vec![
            Step::Read(3),
            Step::Send(vec![5, 0]),
            Step::Read(10),
            Step::Send(GRANTED[..7].to_vec()),
            Step::HalfClose,
        ]),
        Behaviour::Scripted(vec![
            Step::Read(3),
            Step::Send(vec![5, 0]),
            Step::Read(10),
            Step::Send(vec![5, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]),
        ]),
    ] {
        let shown = format!("{behaviour:?}");
        proxy.behave(behaviour);
        assert_eq!(code(address, &anywhere()), 1, "{shown}");
        count += 1;
    }
    let (dead, dead_address) = serve(&[&uri("socks5h", dead_address())], &[]);
    assert_eq!(code(dead_address, &anywhere()), 1);
    dead.wait_log("cannot connect: connection refused", SOON);
    let (nobody, nobody_address) = serve(&["socks5h://no-such-name.invalid"], &[]);
    assert_eq!(code(nobody_address, &anywhere()), 1);
    nobody.wait_log("via no-such-name.invalid:1080: ", SOON);

    let status = server.status();
    assert_eq!(status["connections"]["refused_by_reason"]["via"], count);
    let log = server.log();
    let warnings = log.iter().filter(|line| line.contains("warn: via"));
    assert_eq!(warnings.count(), 1, "{log:#?}");
}

#[test]
fn a_rejected_password_is_warned_of_and_not_shown() {
    let proxy = Peer::scripted(vec![
        Step::Read(3),
        Step::Send(vec![5, 2]),
        Step::Read(3 + 3 + 7),
        Step::Send(vec![1, 1]),
    ]);
    let via = format!("socks5h://ada:hunter2@{}", proxy.address());
    let (server, address) = serve(&[&via], &[]);
    assert_eq!(code(address, &anywhere()), 1);
    let line = server.wait_log("warn: via", SOON);
    assert!(line.contains("rejected user and password"), "{line}");
    // A password is not given up for a proxy that does without.
    proxy.behave(Behaviour::Valid(Duration::ZERO));
    assert_eq!(code(address, &anywhere()), 1);
    proxy.behave(Behaviour::AuthRequired(0xff));
    assert_eq!(code(address, &anywhere()), 1);
    let refused = &server.status()["connections"]["refused_by_reason"];
    assert_eq!(refused["via-login"], 3);
    let log = server.log();
    assert!(!log.join("\n").contains("hunter2"));
    let warnings = log.iter().filter(|line| line.contains("warn: via"));
    assert_eq!(warnings.count(), 1, "{log:#?}");
}

#[test]
fn payload_is_not_lost_on_either_side() {
    // Right behind the reply, in the same segment.
    let reply = [&GRANTED[..], b"from the target"].concat();
    let early = b"from the client";
    let proxy = scripted(
        10,
        [
            Step::Send(reply),
            Step::Read(early.len()),
            Step::Send(b" done".to_vec()),
        ],
    );
    let (_server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
    let mut stream = ask(address, &anywhere(), early);
    // A client that ends its side behind its payload waits for the answer to that.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[2..12], GRANTED);
    assert_eq!(answer[12..], *b"from the target done");
    assert!(proxy.heard()[0].ends_with(early));
    // In pieces, and a chain.
    let (first, second) = (
        Peer::drips(Duration::from_millis(1)),
        Peer::drips(Duration::from_millis(1)),
    );
    let target = Target::echo();
    let uris = [first.address(), second.address()].map(|address| uri("socks5h", address));
    let (_server, address) = serve(&[&uris[0], &uris[1]], &[]);
    let mut stream = ask(address, &request(1, target.address()), early);
    assert_eq!(read_exactly(&mut stream, 12 + early.len())[12..], *early);
}

#[test]
fn a_client_that_leaves_takes_its_connection_to_the_proxy_with_it() {
    let asked = scripted(10, []);
    for (proxy, place) in [(&Peer::silent(), 0), (&asked, 13)] {
        let (server, address) = serve(
            &[&uri("socks5h", proxy.address())],
            &["--connect-timeout", "60s"],
        );
        let stream = ask(address, &anywhere(), b"");
        assert!(wait_until(SOON, || {
            proxy.open() == 1 && proxy.heard()[0].len() >= place
        }));
        drop(stream);
        server.wait_log("left before it was connected", SOON);
        assert!(proxy.wait_open(0, SOON));
        server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    }
}

#[test]
fn a_server_is_not_its_own_proxy() {
    let other = dead_address().port();
    for via in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"] {
        // Another port of this machine is fine.
        serve(&[&format!("socks5://{via}:{other}")], &[]);
        let mut stderr = String::new();
        // Somebody else may take a port between the two.
        let refused = wait_until(SOON, || {
            let own = free_port();
            let output = Sockhop::serve(&["--listen", &own.to_string()])
                .args(["--via", &format!("socks5://u:hunter2@{via}:{own}")])
                .run(SOON);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            stderr = String::from_utf8(output.stderr).unwrap();
            !stderr.contains("in use")
        });
        assert!(refused, "{stderr}");
        assert!(stderr.contains("is a listener of this server"), "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    listener.local_addr().expect("own address").port()
}

#[test]
fn rules_hold_before_a_proxy_is_asked() {
    let proxy = Peer::valid(Duration::ZERO);
    let via = uri("socks5h", proxy.address());
    let (server, address) = serve(&[&via], &["--deny-dest", "example.org"]);
    for name in ["example.org", "www.EXAMPLE.org.", "2130706433"] {
        assert_eq!(code(address, &request_name(name, 80)), 2, "{name}");
    }
    assert_eq!(
        code(address, &request(1, "10.0.0.1:80".parse().unwrap())),
        2
    );
    assert_eq!(
        code(address, &request(1, "127.0.0.1:0".parse().unwrap())),
        2
    );
    assert_eq!(code(address, &request(1, address)), 2);
    let refused = &server.status()["connections"]["refused_by_reason"];
    assert_eq!(refused["rules"], 6);
    // Names that always mean the machine that looks them up, without the rule that allows it.
    let server = Sockhop::serve(&["--via", &via]).start();
    let address = server.wait_listening(SOON);
    for name in ["localhost", "a.LOCALHOST.", "127.0.0.1"] {
        assert_eq!(code(address, &request_name(name, 80)), 2, "{name}");
    }
    // Nothing but one name.
    let only = [
        "--deny-dest=0.0.0.0/0",
        "--deny-dest=::/0",
        "--allow-dest=example.org",
    ];
    let (_server, address) = serve(&[&via], &only);
    assert_eq!(code(address, &request_name("example.com", 80)), 2);
    assert_eq!(proxy.accepted(), 0);
    assert_ne!(
        code(address, &request_name("no-such-host.example.org.", 9)),
        2
    );
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn other_commands_do_not_go_past_the_proxies() {
    let proxy = Peer::valid(Duration::ZERO);
    let five = uri("socks5h", proxy.address());
    let four = uri("socks4a", proxy.address());
    // No proxy of SOCKS 5 carries datagrams for another one, and SOCKS 4 has none.
    for chain in [&[&five[..], &five][..], &[&four]] {
        let (_server, address) = serve(chain, &[]);
        for command in [3, 4, 0xff] {
            let request = request(command, TARGET.parse().unwrap());
            assert_eq!(code(address, &request), 7, "{command}");
        }
    }
    assert_eq!(proxy.accepted(), 0);
}

#[test]
fn the_proxy_may_come_from_the_environment() {
    let (proxy, other) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let target = Target::echo();
    let variable = uri("socks5h", proxy.address());
    let start = |arguments: &[&str]| {
        let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
            .args(arguments)
            .env("SOCKHOP_VIA", &variable)
            .start();
        let address = server.wait_listening(SOON);
        socks5_connect(address, target.address()).unwrap();
    };
    start(&[]);
    assert_eq!((proxy.requests(), other.requests()), (1, 0));
    start(&["--via", &uri("socks5h", other.address())]);
    assert_eq!((proxy.requests(), other.requests()), (1, 1));
    let output = Sockhop::serve(&[])
        .env("SOCKHOP_VIA", "ada:hunter2@proxy")
        .run(SOON);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("sockhop: SOCKHOP_VIA: "), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
}

#[test]
fn much_data_both_ways_at_once_arrives_unchanged() {
    const LENGTH: u64 = 5 << 20;
    let (first, second) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let target = Target::echo();
    let uris = [first.address(), second.address()].map(|address| uri("socks5h", address));
    let (server, address) = serve(&[&uris[0], &uris[1]], &[]);
    let pattern = Pattern::new(11);
    let stream = socks5_connect(address, target.address()).unwrap();
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            let chunks = Chunks::Random {
                seed: 5,
                most: 256 << 10,
            };
            pattern.send(&stream, LENGTH, chunks).expect("send");
            stream.shutdown(Shutdown::Write).expect("shutdown");
        });
        pattern.receive(&stream, u64::MAX)
    });
    assert_eq!((received.bytes, received.wrong_at), (LENGTH, None));
    assert_eq!(received.end, End::Eof);
    // The relay's bytes, without a byte of any handshake.
    server.wait_status(
        |status| status["bytes"] == json!({"up": LENGTH, "down": LENGTH}),
        SOON,
    );
}

#[test]
#[ignore = "needs curl, microsocks"]
fn curl_reaches_a_page_in_each_version_through_a_chain_that_wants_a_password() {
    let pattern = Pattern::new(20);
    let page = Target::http("127.0.0.1:0", &pattern);
    let microsocks = |more: &[&str]| {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let server = Daemon::start("microsocks", address, |_| {
            let port = address.port().to_string();
            let arguments = [&["-i", "127.0.0.1", "-p", &port], more].concat();
            arguments.into_iter().map(String::from).collect()
        });
        (server, address)
    };
    let (_locked, locked) = microsocks(&["-u", "ada", "-P", "secret"]);
    let (_open, open) = microsocks(&[]);
    let fetch = |scheme: &str, proxy: SocketAddr| {
        let url = format!("http://127.0.0.1:{}/300000", page.address().port());
        let mut curl = Command::new(program("curl"));
        curl.args(["-q", "-sS", "--max-time", "10", "--noproxy", "", "-x"])
            .args([&uri(scheme, proxy), &url]);
        curl.output().expect("curl")
    };
    let right = format!("socks5h://ada:secret@{locked}");
    let (_server, address) = serve(&[&right, &uri("socks5", open)], &[]);
    for scheme in ["socks4", "socks4a", "socks5", "socks5h"] {
        let output = fetch(scheme, address);
        assert!(output.status.success(), "{scheme}: {output:?}");
        assert_eq!(output.stdout.len(), 300_000);
        assert_eq!(pattern.verify(0, &output.stdout), None);
    }
    let (server, address) = serve(&[&format!("socks5h://ada:guess@{locked}")], &[]);
    // curl's code for a proxy that could not be talked into it.
    assert_eq!(fetch("socks5h", address).status.code(), Some(97));
    server.wait_log("warn: via", SOON);
}
