//! `sockhop serve` as clients meet it. Nothing here uses the crate's own SOCKS code: bytes are written by hand.
#![cfg(feature = "server")]

mod common;

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{
    Observed, SOON, Signal, Sockhop, Target, Unanswering, answer, connect, dead_address, exchange,
    expect_end, observe, read_exactly, rest, serve, socks5_connect, socks5_connect_name,
    wait_until,
};
use serde_json::json;

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

fn request_name(name: &[u8], port: u16) -> Vec<u8> {
    let length = [u8::try_from(name.len()).expect("short")];
    [&[5, 1, 0, 3][..], &length, name, &port.to_be_bytes()].concat()
}

/// RFC 1929.
fn credentials(user: &[u8], password: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| [u8::try_from(bytes.len()).expect("short")];
    [&[1], &length(user)[..], user, &length(password), password].concat()
}

/// The code of SOCKS5's reply to this request, after a greeting without authentication.
#[track_caller]
fn code(server: SocketAddr, request: &[u8]) -> u8 {
    let answer = answer(server, &[&[5, 1, 0], request].concat());
    assert_eq!((answer[..3].to_vec(), answer.len()), (vec![5, 0, 5], 12));
    answer[3]
}

const SUCCESS: usize = 10;

#[test]
fn handshake_byte_by_byte() {
    let (_server, address) = serve(&["--user", "ada:secret"]);
    let target = Target::echo();
    let mut stream = connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let bytes = [
        vec![5, 2, 0, 2],
        credentials(b"ada", b"secret"),
        request(1, target.address()),
    ]
    .concat();
    for byte in bytes {
        stream.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(read_exactly(&mut stream, 4), [5, 2, 1, 0]);
    assert_eq!(read_exactly(&mut stream, SUCCESS)[..4], [5, 0, 0, 1]);
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn everything_in_one_segment_with_payload() {
    let (_server, address) = serve(&["--user", "ada:secret"]);
    let target = Target::echo();
    let payload = vec![7; 3000];
    let mut stream = connect(address).unwrap();
    let bytes = [
        vec![5, 1, 2],
        credentials(b"ada", b"secret"),
        request(1, target.address()),
        payload.clone(),
    ];
    stream.write_all(&bytes.concat()).unwrap();
    // A client that ends its side behind the payload waits for the answer to that.
    stream.shutdown(Shutdown::Write).unwrap();
    let answer = rest(&mut stream);
    assert_eq!(answer[..4], [5, 2, 1, 0]);
    assert_eq!(answer[4 + SUCCESS..], payload);
}

#[test]
fn truncated_handshakes_are_not_answered() {
    let (server, address) = serve(&[]);
    let target = Target::echo();
    let bytes = [vec![5, 1, 0], request(1, target.address())].concat();
    for length in 0..bytes.len() {
        let mut stream = connect(address).unwrap();
        stream.write_all(&bytes[..length]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let expected: &[u8] = if length < 3 { &[] } else { &[5, 0] };
        assert_eq!(rest(&mut stream), expected, "{length}");
    }
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert_eq!(target.accepted(), 0);
}

#[test]
fn one_deadline_for_the_whole_handshake_however_slowly_it_drips() {
    let (server, address) = serve(&["--handshake-timeout", "1s"]);
    let start = Instant::now();
    let silent = connect(address).unwrap();
    let mut dripping = connect(address).unwrap();
    dripping.write_all(&[5, 255]).unwrap();
    let ended = wait_until(SOON, || {
        let _ = dripping.write_all(&[0x80]);
        observe(&dripping, Duration::from_millis(100)) != Observed::Silent
    });
    assert!(ended);
    assert!(matches!(
        expect_end(&silent, SOON),
        Observed::Eof | Observed::Reset
    ));
    let lasted = start.elapsed();
    assert!(
        lasted >= Duration::from_millis(900) && lasted < Duration::from_secs(5),
        "{lasted:?}"
    );
    server.wait_status(
        |status| status["connections"]["refused_by_reason"]["handshake-timeout"] == 2,
        SOON,
    );
}

#[test]
fn other_protocols_are_closed_at_once_and_http_is_told_why() {
    let (_server, address) = serve(&[]);
    for bytes in [
        &b"\0"[..],
        b"\x03\x01",
        b"\x07",
        b"\x16\x03\x01\x02\0",
        b"SSH-2.0-x\r\n",
    ] {
        assert_eq!(answer(address, bytes), b"", "{bytes:02x?}");
    }
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"CONNECT a:443 HTTP/1.1\r\n\r\n",
    ] {
        let answer = String::from_utf8(answer(address, bytes)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("SOCKS port"), "{answer}");
    }
}

#[test]
fn greetings_without_an_acceptable_method_get_ff() {
    let (_server, address) = serve(&[]);
    let (_locked, locked) = serve(&["--user", "ada:secret"]);
    let many = [&[5, 255][..], &[0x80; 255]].concat();
    for (address, greeting) in [
        (address, &[5, 0][..]),
        (address, &[5, 1, 2]),
        (address, &[5, 3, 1, 1, 0xff]),
        (address, &many),
        (locked, &[5, 1, 0]),
        (locked, &[5, 2, 0, 1]),
    ] {
        assert_eq!(answer(address, greeting), [5, 0xff], "{greeting:02x?}");
    }
    // Duplicates do no harm.
    let mut stream = connect(address).unwrap();
    stream.write_all(&[5, 3, 0, 0, 0]).unwrap();
    assert_eq!(read_exactly(&mut stream, 2), [5, 0]);
}

#[test]
fn credentials_are_compared_exactly_and_wrong_ones_never_logged() {
    let long = "x".repeat(255);
    let user = format!("{long}:{long}");
    let (server, address) = serve(&["--user", "ada:hunter2", "--user", &user]);
    let target = Target::echo();
    let log_in = |user: &[u8], password: &[u8]| {
        let mut stream = connect(address).unwrap();
        let bytes = [
            vec![5, 1, 2],
            credentials(user, password),
            request(1, target.address()),
        ];
        stream.write_all(&bytes.concat()).unwrap();
        read_exactly(&mut stream, 4)
    };
    assert_eq!(log_in(b"ada", b"hunter2"), [5, 2, 1, 0]);
    assert_eq!(log_in(long.as_bytes(), long.as_bytes()), [5, 2, 1, 0]);
    for (user, password) in [
        (&b""[..], &b"hunter2"[..]),
        (b"ada", b""),
        (b"", b""),
        (b"ada", b"hunter2\0"),
        (b"ada\0", b"hunter2"),
        (b"hunter3", b"hunter3"),
        (b"\xff", b"\xfe"),
        (long.as_bytes(), b"hunter3"),
    ] {
        assert_eq!(log_in(user, password), [5, 2, 1, 1], "{user:?}");
        // So that the failures of this test do not slow it down.
        assert_eq!(log_in(b"ada", b"hunter2"), [5, 2, 1, 0]);
    }
    let wrong_version = answer(address, &[5, 1, 2, 2, 1, b'a', 1, b'b']);
    assert_eq!(wrong_version, [5, 2, 1, 1]);
    let status = server.status();
    assert_eq!(status["connections"]["refused_by_reason"]["credentials"], 8);
    server.wait_log("unknown user", SOON);
    let log = server.log().join("\n");
    assert!(
        !log.contains("hunter") && log.contains("user \"ada\""),
        "{log}"
    );
}

#[test]
fn with_users_nothing_goes_without_a_password() {
    let (server, address) = serve(&["--user", "ada:secret"]);
    let target = Target::echo();
    // Both are offered: the password is asked for, and a request instead of it ends it.
    let bytes = [vec![5, 2, 0, 2], request(1, target.address())].concat();
    assert_eq!(answer(address, &bytes), [5, 2, 1, 1]);
    // SOCKS4 knows no passwords.
    let bytes = b"\x04\x01\0\x50\x7f\0\0\x01ada\0";
    assert_eq!(answer(address, bytes)[..2], [0, 91]);
    assert_eq!(target.accepted(), 0);
    assert_eq!(server.status()["users"], 1);
}

#[test]
fn guessing_gets_slower() {
    let (_server, address) = serve(&["--user", "ada:secret"]);
    let guess = [vec![5, 1, 2], credentials(b"ada", b"guess")].concat();
    let timed = || {
        let start = Instant::now();
        assert_eq!(answer(address, &guess), [5, 2, 1, 1]);
        start.elapsed()
    };
    let times: Vec<Duration> = (0..5).map(|_| timed()).collect();
    assert!(times[4] >= Duration::from_millis(500), "{times:?}");
}

#[test]
fn commands_and_address_types_that_are_not_there() {
    let (_server, address) = serve(&["--no-bind"]);
    let target = Target::echo().address();
    for command in [0, 2, 4, 9, 0xff] {
        assert_eq!(code(address, &request(command, target)), 7, "{command}");
    }
    assert_eq!(code(address, &[5, 1, 0, 9, 1, 2, 3]), 8);
    assert_eq!(code(address, &[5, 1, 0, 0]), 8);
    // SOCKS4's BIND.
    assert_eq!(
        answer(address, b"\x04\x02\0\x50\x7f\0\0\x01\0")[..2],
        [0, 91]
    );
}

#[test]
fn names_that_are_none_are_refused_before_they_are_looked_up() {
    let (_server, address) = serve(&[]);
    let port = dead_address().port();
    for name in [
        &b""[..],
        b"local\0host",
        b"127.0.0.1\0.example.org",
        b"local host",
        b"local\nhost",
        b"\xff\xfe",
    ] {
        assert_eq!(code(address, &request_name(name, port)), 1, "{name:?}");
    }
    for name in [
        &b"2130706433"[..],
        b"0x7f000001",
        b"0177.0.0.1",
        b"127.1",
        b"0x7f.1",
    ] {
        assert_eq!(code(address, &request_name(name, port)), 2, "{name:?}");
    }
    let long = [b'a'; 255];
    assert_eq!(code(address, &request_name(&long, port)), 4);
}

#[test]
fn socks4_and_4a() {
    let (_server, address) = serve(&[]);
    let (_without, without) = serve(&["--no-socks4"]);
    let target = Target::echo();
    let port = target.address().port().to_be_bytes();
    let v4 = [&[4, 1][..], &port, &[127, 0, 0, 1], b"ada\0"].concat();
    let v4a = [&[4, 1][..], &port, &[0, 0, 0, 1, 0], b"localhost\0"].concat();
    for bytes in [&v4, &v4a] {
        let mut stream = connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        assert_eq!(read_exactly(&mut stream, 8)[..2], [0, 90]);
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
        assert_eq!(answer(without, bytes)[..2], [0, 91]);
    }
    let endless = [&v4[..8], &[b'u'; 300]].concat();
    let endless_name = [&v4a[..9], &[b'n'; 300]].concat();
    let nowhere = [&v4[..4], &[0, 0, 0, 0, 0]].concat();
    let dead = dead_address().port().to_be_bytes();
    let refused = [&[4, 1][..], &dead, &[127, 0, 0, 1, 0]].concat();
    let denied = [&v4[..4], &[10, 0, 0, 1, 0]].concat();
    for bytes in [&endless, &endless_name, &nowhere, &refused, &denied] {
        let answer = answer(address, bytes);
        assert_eq!(
            (&answer[..2], answer.len()),
            (&[0, 91][..], 8),
            "{bytes:02x?}"
        );
    }
}

#[test]
fn failures_have_the_code_of_their_cause() {
    let (server, address) = serve(&["--connect-timeout", "500ms", "--allow-dest", "::/0"]);
    assert_eq!(code(address, &request(1, dead_address())), 5);
    let silent = Unanswering::new();
    assert_eq!(code(address, &request(1, silent.address())), 4);
    assert_eq!(code(address, &request_name(b"no-such-host.invalid", 80)), 4);
    assert_eq!(
        code(address, &request(1, "10.0.0.1:80".parse().unwrap())),
        2
    );
    assert_eq!(
        code(address, &request(1, "127.0.0.1:0".parse().unwrap())),
        2
    );
    server.wait_status(
        |status| status["connections"]["refused_by_reason"]["rules"] == 2,
        SOON,
    );
}

#[test]
fn reply_has_the_real_bound_address() {
    let (_server, address) = serve(&[]);
    let (target, accepted) = Target::manual();
    let mapped = [
        &[5, 1, 0, 4][..],
        &Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(),
        &target.address().port().to_be_bytes(),
    ]
    .concat();
    for request in [request(1, target.address()), mapped] {
        let mut stream = connect(address).unwrap();
        stream
            .write_all(&[&[5, 1, 0], &request[..]].concat())
            .unwrap();
        let reply = read_exactly(&mut stream, 2 + SUCCESS);
        let seen = accepted.recv_timeout(SOON).unwrap().peer_addr().unwrap();
        let port = seen.port().to_be_bytes();
        assert_eq!(reply[2..], [5, 0, 0, 1, 127, 0, 0, 1, port[0], port[1]]);
    }
}

#[test]
fn connect_is_given_up_when_the_client_leaves() {
    let (server, address) = serve(&["--connect-timeout", "60s"]);
    let silent = Unanswering::new();
    let idle = server.fds();
    let mut stream = connect(address).unwrap();
    let bytes = [vec![5, 1, 0], request(1, silent.address())].concat();
    stream.write_all(&bytes).unwrap();
    assert_eq!(read_exactly(&mut stream, 2), [5, 0]);
    assert!(wait_until(SOON, || server.fds() >= idle + 2));
    drop(stream);
    server.wait_log("left before it was connected", SOON);
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(wait_until(SOON, || server.fds() <= idle));
}

#[test]
fn only_public_destinations_by_default() {
    let server = Sockhop::serve(&[]).start();
    let address = server.wait_listening(SOON);
    let target = Target::echo();
    let port = target.address().port();
    let v6 = |text: &str| {
        let ip: std::net::Ipv6Addr = text.parse().unwrap();
        [&[5, 1, 0, 4][..], &ip.octets(), &port.to_be_bytes()].concat()
    };
    for ip in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let destination = SocketAddr::new(ip.parse().unwrap(), port);
        assert_eq!(code(address, &request(1, destination)), 2, "{ip}");
    }
    for ip in [
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "64:ff9b::7f00:1",
    ] {
        assert_eq!(code(address, &v6(ip)), 2, "{ip}");
    }
    for name in [&b"localhost"[..], b"LOCALHOST", b"127.0.0.1"] {
        assert_eq!(code(address, &request_name(name, port)), 2, "{name:?}");
    }
    assert_eq!(target.accepted(), 0);
}

#[test]
fn the_own_listener_is_never_a_destination() {
    let (_server, address) = serve(&["--allow-dest", "0.0.0.0/0", "--allow-dest", "::/0"]);
    assert_eq!(code(address, &request(1, address)), 2);
    assert_eq!(
        code(address, &request_name(b"localhost", address.port())),
        2
    );
}

#[test]
fn denied_and_dead_addresses_of_a_name_are_passed_over() {
    // `localhost` is 127.0.0.1 and, where the system says so, ::1 too: that one is denied.
    let (_server, address) = serve(&[]);
    let target = Target::echo();
    let stream = socks5_connect_name(address, "localhost", target.address().port()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn rules_for_names_and_ports() {
    let target = Target::echo();
    let port = target.address().port();
    let other = Target::echo();
    let deny = format!("127.0.0.1:{}", other.address().port());
    let (_server, address) = serve(&["--deny-dest", &deny, "--deny-dest", "invalid"]);
    assert!(socks5_connect(address, target.address()).is_ok());
    assert_eq!(code(address, &request(1, other.address())), 2);
    assert_eq!(code(address, &request_name(b"a.Invalid.", port)), 2);
}

#[test]
fn limits_hold_and_slots_come_back() {
    let (server, address) = serve(&["--max-per-client", "2"]);
    let target = Target::echo();
    let streams: Vec<TcpStream> = (0..2)
        .map(|_| socks5_connect(address, target.address()).unwrap())
        .collect();
    let third = connect(address).unwrap();
    assert!(matches!(
        expect_end(&third, SOON),
        Observed::Eof | Observed::Reset
    ));
    drop(streams);
    assert!(wait_until(SOON, || socks5_connect(
        address,
        target.address()
    )
    .is_ok()));
    assert!(
        server.status()["connections"]["refused_by_reason"]["per-client-limit"].as_u64() >= Some(1)
    );
}

#[test]
fn silent_clients_cost_no_thread() {
    let (server, address) = serve(&["--workers", "4"]);
    let target = Target::echo();
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(address).unwrap()).collect();
    let all = |status: &serde_json::Value| status["connections"]["active"] == 200;
    server.wait_status(all, SOON);
    assert!(server.threads() <= 16, "{} threads", server.threads());
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    drop(silent);
}

#[test]
fn out_of_descriptors_it_waits_and_recovers() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
        .open_files(64)
        .start();
    let address = server.wait_listening(SOON);
    let target = Target::echo();
    let live = socks5_connect(address, target.address()).unwrap();
    let silent: Vec<TcpStream> = (0..100).map(|_| connect(address).unwrap()).collect();
    server.wait_log("new ones wait", SOON);
    assert_eq!(exchange(&live, b"hello").unwrap(), b"hello");
    drop(silent);
    assert!(wait_until(SOON, || socks5_connect(
        address,
        target.address()
    )
    .is_ok()));
}

#[test]
fn users_come_from_the_environment_and_from_a_file_that_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::fs::write(&path, "# who\nada:one\n").unwrap();
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
        .arg(format!("--users-file={}", path.display()))
        .env("SOCKHOP_USER", "eve:other")
        .start();
    let address = server.wait_listening(SOON);
    let log_in = |user: &str, password: &str| {
        let mut stream = connect(address).unwrap();
        let bytes = [
            vec![5, 1, 2],
            credentials(user.as_bytes(), password.as_bytes()),
        ];
        stream.write_all(&bytes.concat()).unwrap();
        read_exactly(&mut stream, 4) == [5, 2, 1, 0]
    };
    assert!(log_in("ada", "one") && log_in("eve", "other") && !log_in("ada", "two"));
    assert_eq!(server.status()["users"], 2);
    std::fs::write(&path, "ada:two\nbob:three\n").unwrap();
    server.signal(Signal::HUP);
    assert!(wait_until(SOON, || server.status()["users"] == 3));
    assert!(log_in("ada", "two") && log_in("bob", "three"));
    std::fs::write(&path, "ada:two\nhunter2\n").unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_log("users:2", SOON);
    assert!(line.contains("stay as they were"), "{line}");
    assert!(log_in("bob", "three"));
    assert!(!server.log().join("\n").contains("hunter2"));
}

#[test]
fn a_users_file_that_cannot_be_used_keeps_it_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::fs::write(&path, "hunter2\n").unwrap();
    let output = Sockhop::serve(&[])
        .arg(format!("--users-file={}", path.display()))
        .run(SOON);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("users:1: not NAME:PASSWORD"), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
}

#[test]
fn status_tells_about_a_server_and_other_calls_are_refused() {
    let (server, address) = serve(&[]);
    let target = Target::echo();
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let status = server.wait_status(
        |status| status["bytes"] == json!({"up": 5, "down": 5}),
        SOON,
    );
    assert_eq!(status["role"], "server");
    assert_eq!(status["users"], json!(null));
    assert_eq!(status["connections"]["active"], 1);
    let output = server.command(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("mode         server\n"), "{text}");
    assert!(text.contains("users        not asked for\n"), "{text}");
    for (method, parameters) in [
        ("proxies", json!(null)),
        ("connect", json!(null)),
        ("disconnect", json!(null)),
        ("probing", json!({"run": true})),
    ] {
        let error = server.control(method, parameters).unwrap_err();
        assert_eq!(error.code, -32006, "{method}");
    }
    assert_eq!(server.command(&["proxies"]).status.code(), Some(1));
}

#[test]
fn each_connection_is_one_line_of_the_log() {
    let (server, address) = serve(&["--user", "ada:secret"]);
    let target = Target::echo();
    let mut stream = connect(address).unwrap();
    let client = stream.local_addr().unwrap();
    let bytes = [
        vec![5, 1, 2],
        credentials(b"ada", b"secret"),
        request(1, target.address()),
        b"hello".to_vec(),
    ];
    stream.write_all(&bytes.concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    rest(&mut stream);
    let expected = format!(
        "{client}, user \"ada\" to {}: 5 up, 5 down",
        target.address()
    );
    server.wait_log(&expected, SOON);
    assert!(!server.log().join("\n").contains("secret"));
}

#[test]
fn sigterm_ends_it_with_clients_in_every_stage() {
    let (mut server, address) = serve(&[]);
    let target = Target::echo();
    let silent = Unanswering::new();
    let _silent = connect(address).unwrap();
    let _relaying = socks5_connect(address, target.address()).unwrap();
    let mut connecting = connect(address).unwrap();
    let bytes = [vec![5, 1, 0], request(1, silent.address())].concat();
    connecting.write_all(&bytes).unwrap();
    assert_eq!(read_exactly(&mut connecting, 2), [5, 0]);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

#[test]
fn an_open_server_is_warned_of() {
    let open = Sockhop::serve(&["--listen", "0.0.0.0:0"]).start();
    open.wait_log("no users are set", SOON);
    let (closed, _) = serve(&["--listen", "0.0.0.0:0", "--user", "ada:secret"]);
    closed.wait_listening(SOON);
    let log = closed.log().join("\n");
    assert!(!log.contains("no users are set"), "{log}");
}
