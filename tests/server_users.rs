//! Who uses `sockhop serve`, and what it tells about them. Bytes are written by hand.
#![cfg(feature = "server")]

mod common;

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;

use common::{
    Observed, SOON, Signal, Sockhop, Target, connect, dead_address, exchange, observe,
    read_exactly, serve,
};
use serde_json::json;

#[track_caller]
fn ask(server: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(server).expect("connect");
    stream.write_all(bytes).expect("write");
    stream
}

/// A request of SOCKS4 for loopback, as the user with this id.
fn socks4(command: u8, port: u16, id: &[u8]) -> Vec<u8> {
    [
        &[4, command],
        &port.to_be_bytes()[..],
        &[127, 0, 0, 1],
        id,
        &[0],
    ]
    .concat()
}

/// CONNECT of SOCKS4a to localhost.
fn socks4a(port: u16, id: &[u8]) -> Vec<u8> {
    [
        &[4, 1],
        &port.to_be_bytes()[..],
        &[0, 0, 0, 1],
        id,
        b"\0localhost\0",
    ]
    .concat()
}

/// Greeting, user and password, CONNECT of SOCKS5.
fn socks5(user: &str, password: &str, target: SocketAddr) -> Vec<u8> {
    let length = |text: &str| [u8::try_from(text.len()).expect("short")];
    [
        &[5, 1, 2, 1][..],
        &length(user),
        user.as_bytes(),
        &length(password),
        password.as_bytes(),
        &[5, 1, 0, 1, 127, 0, 0, 1],
        &target.port().to_be_bytes(),
    ]
    .concat()
}

const REFUSED4: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

#[test]
fn socks4_is_for_the_user_ids_that_are_named() {
    let ids = ["--socks4-user", "ada", "--socks4-user", "Bob"];
    let (with_users, first) = serve(&[&ids[..], &["--user", "eve:secret"]].concat());
    let (without, second) = serve(&ids);
    let target = Target::echo();
    let port = target.address().port();
    for (server, address) in [(&with_users, first), (&without, second)] {
        for id in [&b"ada"[..], b"Bob"] {
            for request in [socks4(1, port, id), socks4a(port, id)] {
                let stream = ask(address, &request);
                let reply = read_exactly(&stream, 8);
                assert_eq!(
                    (&reply[..2], &reply[4..]),
                    (&[0, 90][..], &[127, 0, 0, 1][..])
                );
                assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
            }
        }
        let accepted = target.accepted();
        let others = [
            &b""[..],
            b"ADA",
            b"ad",
            b"adas",
            b"bob",
            b"eve",
            b"ada ",
            b"\xff",
        ];
        for id in others {
            for request in [socks4(1, port, id), socks4a(port, id), socks4(2, port, id)] {
                let stream = ask(address, &request);
                assert_eq!(read_exactly(&stream, 8), REFUSED4, "{id:?}");
                assert_eq!(observe(&stream, SOON), Observed::Eof);
            }
        }
        assert_eq!(target.accepted(), accepted);
        server.wait_status(
            |status| status["connections"]["refused_by_reason"]["socks4-user"] == 24,
            SOON,
        );
        let line = server.wait_log("user \"ada\" to", SOON);
        assert!(line.contains("127.0.0.1"), "{line}");
    }
    // SOCKS5 is as it was.
    let stream = ask(first, &[5, 1, 0]);
    assert_eq!(read_exactly(&stream, 2), [5, 0xff]);
    let stream = ask(first, &socks5("eve", "secret", target.address()));
    assert_eq!(read_exactly(&stream, 8), [5, 2, 1, 0, 5, 0, 0, 1]);
    let stream = ask(second, &[5, 1, 0]);
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
}

#[test]
fn a_user_id_byte_by_byte_with_payload_behind_it() {
    let (_server, address) = serve(&["--socks4-user", "ada", "--user", "eve:secret"]);
    let target = Target::echo();
    let mut stream = connect(address).unwrap();
    for byte in socks4a(target.address().port(), b"ada") {
        stream.write_all(&[byte]).unwrap();
    }
    stream.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&stream, 8)[..2], [0, 90]);
    assert_eq!(read_exactly(&stream, 5), b"hello");
    // What the target refuses is told in the same way as ever.
    let stream = ask(address, &socks4(1, dead_address().port(), b"ada"));
    assert_eq!(read_exactly(&stream, 8), REFUSED4);
}

#[test]
fn status_tells_of_each_user_and_of_clients() {
    let users = [
        "--user",
        "ada:one",
        "--user",
        "eve:two",
        "--user",
        "bob:three",
    ];
    let (server, address) = serve(&[&users[..], &["--socks4-user", "old"]].concat());
    let target = Target::echo();
    assert_eq!(server.status()["by_user"], json!({}));
    assert_eq!(server.status()["clients"], 0);
    let log_in = |user, password| {
        let stream = ask(address, &socks5(user, password, target.address()));
        assert_eq!(read_exactly(&stream, 14)[..6], [5, 2, 1, 0, 5, 0]);
        stream
    };
    let first = log_in("ada", "one");
    assert_eq!(exchange(&first, b"hello").unwrap(), b"hello");
    let second = log_in("ada", "one");
    assert_eq!(exchange(&second, b"you").unwrap(), b"you");
    drop(second);
    let old = ask(address, &socks4(1, target.address().port(), b"old"));
    assert_eq!(read_exactly(&old, 8)[..2], [0, 90]);
    assert_eq!(exchange(&old, b"!").unwrap(), b"!");
    // Whoever has the wrong password is nobody.
    let wrong = ask(address, &socks5("eve", "one", target.address()));
    assert_eq!(read_exactly(&wrong, 4), [5, 2, 1, 1]);
    drop(wrong);
    // What a BIND carries counts too.
    let port = target.address().port().to_be_bytes();
    let login = [&[5, 1, 2, 1, 3][..], b"eve", &[3], b"two"].concat();
    let request = [&login[..], &[5, 2, 0, 1, 127, 0, 0, 1], &port].concat();
    let mut bound = ask(address, &request);
    let reply = read_exactly(&bound, 14);
    assert_eq!(reply[..8], [5, 2, 1, 0, 5, 0, 0, 1]);
    let at = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[12], reply[13]])));
    let mut peer = connect(at).unwrap();
    assert_eq!(read_exactly(&bound, 10)[..2], [5, 0]);
    peer.write_all(b"down").unwrap();
    assert_eq!(read_exactly(&bound, 4), b"down");
    bound.write_all(b"up").unwrap();
    assert_eq!(read_exactly(&peer, 2), b"up");

    // And datagrams.
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    let login = [&[5, 1, 2, 1, 3][..], b"bob", &[5], b"three"].concat();
    let datagrams = ask(
        address,
        &[&login[..], &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]].concat(),
    );
    let reply = read_exactly(&datagrams, 14);
    assert_eq!(reply[..8], [5, 2, 1, 0, 5, 0, 0, 1]);
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    near.set_read_timeout(Some(SOON)).unwrap();
    near.connect(("127.0.0.1", u16::from_be_bytes([reply[12], reply[13]])))
        .unwrap();
    let header = [
        &[0, 0, 0, 1, 127, 0, 0, 1],
        &far.local_addr().unwrap().port().to_be_bytes()[..],
    ]
    .concat();
    near.send(&[&header[..], b"seven77"].concat()).unwrap();
    let mut buffer = [0; 100];
    let (count, from) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..count], *b"seven77");
    far.send_to(b"ok", from).unwrap();
    assert_eq!(near.recv(&mut buffer).unwrap(), header.len() + 2);

    let expected = json!({
        "ada": {"active": 1, "total": 2, "bytes": {"up": 8, "down": 8}},
        "bob": {"active": 1, "total": 1, "bytes": {"up": 7, "down": 2}},
        "eve": {"active": 1, "total": 1, "bytes": {"up": 2, "down": 4}},
        "old": {"active": 1, "total": 1, "bytes": {"up": 1, "down": 1}},
    });
    let status = server.wait_status(|status| status["by_user"] == expected, SOON);
    assert_eq!(status["bytes"], json!({"up": 18, "down": 15}));
    assert_eq!(status["clients"], 1);
    assert_eq!(status["users"], 3);
    let output = server.command(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = "user         ada: 1 active, 2 in total, 8 B up, 8 B down\n";
    assert!(
        text.contains(line) && text.contains("clients      1\n"),
        "{text}"
    );

    drop((first, old, bound, peer, datagrams));
    server.wait_status(
        |status| {
            let active = |user: &str| status["by_user"][user]["active"] == 0;
            status["clients"] == 0 && active("ada") && active("eve") && active("old")
        },
        SOON,
    );
}

#[test]
fn without_users_nobody_is_counted_by_name() {
    let (server, address) = serve(&[]);
    let target = Target::echo();
    let stream = ask(address, &socks4(1, target.address().port(), b"ada"));
    assert_eq!(read_exactly(&stream, 8)[..2], [0, 90]);
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let status = server.wait_status(
        |status| status["bytes"] == json!({"up": 5, "down": 5}),
        SOON,
    );
    assert_eq!(status["by_user"], json!({}));
    assert_eq!(status["clients"], 1);
}

#[test]
fn a_users_file_that_everybody_can_read_is_warned_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::fs::write(&path, "ada:one\n").unwrap();
    let start = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let (server, _) = serve(&["--users-file", path.to_str().unwrap()]);
        server
    };
    let warned = |server: &Sockhop| {
        let log = server.log();
        let of = |line: &&String| line.contains("everybody on this machine can read");
        log.iter().filter(of).count()
    };
    let server = start(0o644);
    let line = server.wait_log("everybody on this machine", SOON);
    assert!(
        line.contains("warn") && line.contains("chmod o-r"),
        "{line}"
    );
    std::fs::write(&path, "ada:one\neve:two\n").unwrap();
    server.signal(Signal::HUP);
    server.wait_status(|status| status["users"] == 2, SOON);
    assert_eq!(warned(&server), 1);
    for mode in [0o600, 0o640, 0o660] {
        // It listens after the file was read.
        assert_eq!(warned(&start(mode)), 0, "{mode:o}");
    }
}
