//! `sockhop dial` through SOCKS 6 proxies that the test plays by hand-written bytes.
#![cfg(all(feature = "client-cli", feature = "socks6"))]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use common::{Launch, Peer, SOON, Step};

/// CONNECT 192.0.2.1:80 in draft 12.
const CONNECT: &[u8] = b"\x06\x01\0\0\0\x50\0\x01\xc0\0\x02\x01";
/// Both replies, the second one with 192.0.2.7:80.
const REPLIES: &[u8] = b"\x06\0\0\0\x06\0\0\0\0\x50\0\x01\xc0\0\x02\x07";

fn dial(arguments: &[&str], input: &[u8]) -> Output {
    let mut launch = Launch::new(&["dial"]).args(arguments).input(input);
    for name in ["all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
        launch = launch.env(name, "");
    }
    launch.run(2 * SOON)
}

/// Whatever the proxy is asked in one segment, it gives both replies, this, and the end.
fn answering(rest: &[u8]) -> Peer {
    let all = [REPLIES, rest].concat();
    Peer::scripted(vec![
        Step::Read(CONNECT.len()),
        Step::Send(all),
        Step::HalfClose,
    ])
}

#[track_caller]
fn assert_done(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
}

#[test]
fn what_stdin_has_travels_with_the_request() {
    // A proxy that says nothing before it has the data, with which a client that waits would never get on.
    for size in [5, 16_384, 20_000] {
        let input: Vec<u8> = (0..=250).cycle().take(size).collect();
        let early = size.min(16_384);
        let peer = Peer::scripted(vec![
            Step::Read(CONNECT.len() + early),
            Step::Send([REPLIES, b"answer"].concat()),
            Step::Read(size - early),
            Step::HalfClose,
        ]);
        // A file, of which all is there at once.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_sockhop"))
            .args([
                "dial",
                &format!("socks6://{}", peer.address()),
                "192.0.2.1:80",
            ])
            .stdin(Stdio::from(file))
            .output()
            .unwrap();
        assert_done(&output);
        assert_eq!(output.stdout, b"answer");
        // It read all of it, and keeps the beginning.
        let heard = peer.heard().concat();
        assert!(heard.starts_with(CONNECT) && heard.len() > CONNECT.len());
        assert!(input.starts_with(&heard[CONNECT.len()..]), "{size}");
    }
}

#[test]
fn later_input_is_carried_as_ever() {
    let peer = Peer::scripted(vec![
        Step::Read(CONNECT.len()),
        Step::Send(REPLIES.to_vec()),
        Step::Read(5),
        Step::Send(b"answer".to_vec()),
        Step::HalfClose,
    ]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_sockhop"))
        .args([
            "dial",
            &format!("socks6://{}", peer.address()),
            "192.0.2.1:80",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Only once the request is there alone.
    assert!(common::wait_until(SOON, || peer.heard().concat() == CONNECT));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"later").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_done(&output);
    assert_eq!(output.stdout, b"answer");
    assert_eq!(peer.heard().concat(), [CONNECT, b"later"].concat());
}

#[test]
fn statuses_tell_whose_fault_it_is() {
    for (replies, status, message) in [
        (
            &b"\x06\0\0\0\x06\x05\0\0\0\0\0\x01\0\0\0\0"[..],
            3,
            "target 192.0.2.1:80",
        ),
        (
            b"\x06\0\0\0\x06\x07\0\0\0\0\0\x01\0\0\0\0",
            1,
            "the proxy replied",
        ),
        (b"\x06\x01\0\0", 1, "rejected the authentication"),
        (b"\x05\xff", 1, "\nhint: if the proxy speaks SOCKS 5"),
    ] {
        let peer = Peer::scripted(vec![
            Step::Read(CONNECT.len()),
            Step::Send(replies.to_vec()),
            Step::Close,
        ]);
        let output = dial(
            &[&format!("socks6://{}", peer.address()), "192.0.2.1:80"],
            b"",
        );
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(message), "{stderr}");
    }
}

#[test]
fn wrong_uris_are_wrong_usage() {
    for (uri, message) in [
        (
            "socks6://u:SECRET@h?tos=300",
            "bad tos \"300\", use a number from 0 to 255",
        ),
        ("socks6://h?x=1", "unknown key \"x\""),
        (
            "socks6://h?session=no&tokens=9",
            "\"tokens\" needs a session",
        ),
    ] {
        let output = dial(&[uri, "192.0.2.1:80"], b"");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains(message) && !stderr.contains("SECRET"),
            "{stderr}"
        );
    }
    let output = dial(
        &[
            "--udp",
            "socks6://h",
            "socks6://i?channel=udp",
            "192.0.2.1:80",
        ],
        b"",
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn keys_of_the_uri_reach_the_wire() {
    let stack = b"\0\x01\0\x08\x81\x01\x10\0";
    let session = b"\0\x05\0\x04";
    let request = [&CONNECT[..2], b"\0\x0c", &CONNECT[4..], stack, session].concat();
    let mut steps = vec![Step::Read(request.len())];
    steps.push(Step::Send([REPLIES, b"x"].concat()));
    steps.push(Step::HalfClose);
    let peer = Peer::scripted(steps);
    let uri = format!("socks6://{}?tos=16&session=yes", peer.address());
    let output = dial(&[&uri, "192.0.2.1:80"], b"");
    assert_done(&output);
    assert_eq!(peer.heard().concat(), request);
}

#[test]
fn falls_back_to_socks5_where_it_may() {
    let peer = Peer::scripted(vec![Step::Read(1), Step::Send(vec![6]), Step::Close]);
    let uri = format!("socks6://{}?fallback=socks5", peer.address());
    let output = dial(&[&uri, "192.0.2.1:80"], b"data");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(peer.accepted(), 2);
    let peer = answering(b"six");
    let uri = format!("socks6://{}?fallback=socks5", peer.address());
    assert_eq!(dial(&[&uri, "192.0.2.1:80"], b"").stdout, b"six");
    assert_eq!(peer.accepted(), 1);
}

#[test]
fn listens_at_the_proxy() {
    let peer = Peer::scripted(vec![
        Step::Read(CONNECT.len()),
        Step::Send(REPLIES.to_vec()),
        Step::Send(b"\x06\0\0\0\x13\x88\0\x01\xc0\0\x02\x09".to_vec()),
        Step::Send(b"hello".to_vec()),
        Step::HalfClose,
    ]);
    let output = dial(&["--listen", &format!("socks6://{}", peer.address())], b"");
    assert_done(&output);
    assert_eq!(output.stdout, b"hello");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        stderr,
        "listening on 192.0.2.7:80\nconnection from 192.0.2.9:5000\n"
    );
}

#[test]
fn carries_datagrams_and_tells_what_became_of_them() {
    const ID: &[u8] = b"associat";
    const DATAGRAM: &[u8] = b"\x01\0\0\x35\xc0\0\x02\x35";
    let message = |kind: u8, body: &[u8]| {
        let length = u8::try_from(12 + body.len()).unwrap();
        [&[6, kind, 0, length], ID, body].concat()
    };
    let (sent, received) = channel();
    // The same port for both.
    let (listener, socket) = (0..100)
        .find_map(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = UdpSocket::bind(listener.local_addr().unwrap()).ok()?;
            Some((listener, socket))
        })
        .expect("a port for both");
    let proxy = listener.local_addr().unwrap();
    let initialized = [REPLIES, &message(1, b"")].concat();
    let (confirmation, error) = (
        message(2, b""),
        message(4, &[DATAGRAM, b"\x01\x02\0\0\xc0\0\x02\x01"].concat()),
    );
    let (answer, question) = (
        message(3, &[DATAGRAM, b"answer"].concat()),
        message(3, &[DATAGRAM, b"question"].concat()),
    );
    thread::spawn(move || {
        socket.set_read_timeout(Some(SOON)).unwrap();
        let (mut control, _) = listener.accept().unwrap();
        let mut request = vec![0; 20];
        control.read_exact(&mut request).unwrap();
        control.write_all(&initialized).unwrap();
        let mut buffer = vec![0; 2000];
        socket.recv_from(&mut buffer).unwrap();
        control.write_all(&confirmation).unwrap();
        loop {
            let (count, client) = socket.recv_from(&mut buffer).unwrap();
            if buffer[..count] == question {
                socket.send_to(&error, client).unwrap();
                socket.send_to(&answer, client).unwrap();
                break;
            }
        }
        sent.send(request).unwrap();
        let _ = control.read(&mut buffer);
    });
    let uri = format!("socks6://{proxy}?udp-error=yes");
    let output = dial(
        &["--udp", "--idle", "300ms", &uri, "192.0.2.53:53"],
        b"question",
    );
    assert_done(&output);
    assert_eq!(output.stdout, b"answer");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        stderr,
        "datagram to 192.0.2.53:53: host unreachable, says 192.0.2.1\n"
    );
    let request = received.recv_timeout(SOON).unwrap();
    assert_eq!(request[..4], [6, 3, 0, 8]);
}

#[test]
fn a_proxy_that_is_a_socket_with_both_ends_sees_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut request = vec![0; CONNECT.len()];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(REPLIES).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest
    });
    let output = dial(
        &[&format!("socks6://{proxy}"), "192.0.2.1:80"],
        b"all of it",
    );
    assert_done(&output);
    assert_eq!(output.stdout, b"bye");
    assert_eq!(served.join().unwrap(), b"all of it");
}
