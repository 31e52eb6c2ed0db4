//! What ends with a session of SOCKS 6: the ports of BIND with a backlog, which nobody else could use; no connection that stands.
#![cfg(feature = "socks6")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use common::{SOON, connect, serve, wait_until};
use sockhop::daemon::Daemon;
use sockhop::daemon::settings::{ControlPath, ServeSettings};
use sockhop::handshake::socks6::Limits;
use sockhop::server::rules::Rule;
use sockhop::server::socks6::Socks6Options;

type Id = [u8; 16];

const NOOP: u8 = 0;
const BIND: u8 = 2;

// Options of requests.
const SESSION_REQUEST: [u8; 4] = [0, 5, 0, 4];
const TEARDOWN: [u8; 4] = [0, 10, 0, 4];
const BACKLOG: [u8; 8] = [0, 1, 0, 8, 0x84, 3, 0, 5];
/// ada, pass.
const PASSWORD: &[u8] = b"\0\x04\0\x10\x02\x01\x03ada\x04pass\0";

fn nowhere() -> SocketAddr {
    "0.0.0.0:0".parse().expect("an address")
}

fn request(server: SocketAddr, command: u8, to: SocketAddr, options: &[&[u8]]) -> TcpStream {
    let SocketAddr::V4(to) = to else {
        panic!("{to} is not IPv4");
    };
    let options = options.concat();
    let length = u8::try_from(options.len()).expect("short");
    let [high, low] = to.port().to_be_bytes();
    let head = [6, command, 0, length, high, low, 0, 1];
    let mut stream = connect(server).expect("connect");
    let bytes = [&head[..], &to.ip().octets(), &options].concat();
    stream.write_all(&bytes).expect("write");
    stream
}

fn read<const COUNT: usize>(mut stream: &TcpStream) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

/// Options of the authentication reply, which has to be a success.
#[track_caller]
fn accepted(mut stream: &TcpStream) -> Vec<u8> {
    let [6, 0, 0, length] = read(stream) else {
        panic!("not accepted");
    };
    let mut options = vec![0; length.into()];
    stream.read_exact(&mut options).expect("read");
    options
}

/// Code and address of an operation reply.
#[track_caller]
fn reply(mut stream: &TcpStream) -> (u8, SocketAddr) {
    let [6, code, 0, length, high, low, 0, 1, a, b, c, d] = read(stream) else {
        panic!("no reply with an IPv4 address");
    };
    let mut options = vec![0; length.into()];
    stream.read_exact(&mut options).expect("read");
    let port = u16::from_be_bytes([high, low]);
    (code, ([a, b, c, d], port).into())
}

fn session(server: SocketAddr, password: &[u8]) -> Id {
    let stream = request(server, NOOP, nowhere(), &[&SESSION_REQUEST, password]);
    let options = accepted(&stream);
    let at = options
        .windows(4)
        .position(|window| window == [0, 6, 0, 20])
        .expect("a session");
    options[at + 4..at + 20].try_into().expect("16 bytes")
}

fn inside(id: &Id) -> Vec<u8> {
    [&[0, 6, 0, 20], &id[..]].concat()
}

/// The first connection of a port with a backlog, and its address.
#[track_caller]
fn port(server: SocketAddr, id: &Id) -> (TcpStream, SocketAddr) {
    let handle = request(server, BIND, nowhere(), &[&inside(id), &BACKLOG]);
    accepted(&handle);
    let (code, bound) = reply(&handle);
    assert_eq!(code, 0);
    (handle, bound)
}

/// Who waits for a peer of the port.
#[track_caller]
fn fetch(server: SocketAddr, id: &Id, bound: SocketAddr) -> TcpStream {
    let stream = request(server, BIND, bound, &[&inside(id)]);
    accepted(&stream);
    assert_eq!(reply(&stream), (0, bound));
    stream
}

#[track_caller]
fn exchange(one: &TcpStream, other: &TcpStream) {
    for (mut from, to) in [(one, other), (other, one)] {
        from.write_all(b"hello").expect("write");
        assert_eq!(read(to), *b"hello");
    }
}

/// Waits until the other end has closed, in whatever way.
#[track_caller]
fn is_closed(mut stream: &TcpStream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Ok(_) => panic!("not closed"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

fn is_shut(bound: SocketAddr) -> bool {
    TcpStream::connect(bound).is_err()
}

#[test]
fn a_torn_down_session_closes_its_ports_and_leaves_its_streams() {
    let (_server, address) = serve(&[]);
    let (id, other) = (session(address, b""), session(address, b""));
    let (handle, bound) = port(address, &id);
    let (second_handle, second_bound) = port(address, &id);
    let (_other_handle, other_bound) = port(address, &other);

    // One is fetched, one is not, and at the second port somebody waits.
    let fetched = fetch(address, &id, bound);
    let peer = connect(bound).expect("connect");
    assert_eq!(reply(&fetched), (0, peer.local_addr().expect("bound")));
    let unfetched = connect(bound).expect("connect");
    let waiting = fetch(address, &id, second_bound);

    // An unknown one ends nothing.
    let unknown = request(address, NOOP, nowhere(), &[&inside(&[7; 16]), &TEARDOWN]);
    accepted(&unknown);
    assert_eq!(reply(&unknown).0, 0);
    exchange(&fetched, &peer);

    let teardown = request(address, NOOP, nowhere(), &[&inside(&id), &TEARDOWN]);
    accepted(&teardown);
    assert_eq!(reply(&teardown).0, 0);
    for handle in [&handle, &second_handle] {
        is_closed(handle);
    }
    is_closed(&unfetched);
    assert_eq!(reply(&waiting).0, 5);
    assert!(wait_until(SOON, || is_shut(bound) && is_shut(second_bound)));
    exchange(&fetched, &peer);

    // The other session's port has nothing to do with it.
    let fetched = fetch(address, &other, other_bound);
    let peer = connect(other_bound).expect("connect");
    assert_eq!(reply(&fetched).0, 0);
    exchange(&fetched, &peer);
}

#[test]
fn ports_end_with_the_users_for_whom_they_were_opened() {
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let file = directory.path().join("users");
    std::fs::write(&file, "ada:pass\n").expect("write");
    let (server, address) = serve(&["--users-file", file.to_str().expect("a path")]);
    let id = session(address, PASSWORD);
    let (handle, bound) = port(address, &id);
    std::fs::write(&file, "ada:pass\ngrace:word\n").expect("write");
    server.signal(common::Signal::HUP);
    // It is noticed when somebody comes.
    let fails = || {
        let stream = request(address, NOOP, nowhere(), &[&inside(&id)]);
        read::<4>(&stream)[..2] == [6, 1]
    };
    assert!(wait_until(SOON, fails));
    is_closed(&handle);
    assert!(wait_until(SOON, || is_shut(bound)));
}

#[test]
fn a_session_that_expires_closes_its_ports_though_nobody_comes() {
    // The port is free for a moment: nobody else here asks for this one.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let settings = ServeSettings {
        listen: vec![address.to_string().parse().expect("an address")],
        control: ControlPath::None,
        rules: vec![Rule::allow("127.0.0.0/8").expect("a range")],
        socks6: Some(Socks6Options {
            limits: Limits {
                idle: Duration::from_millis(500),
                ..Limits::default()
            },
            ..Socks6Options::default()
        }),
        ..ServeSettings::default()
    };
    thread::spawn(move || Daemon::server(settings).expect("a server").run());
    assert!(wait_until(SOON, || TcpStream::connect(address).is_ok()));

    let id = session(address, b"");
    let (handle, bound) = port(address, &id);
    let fetched = fetch(address, &id, bound);
    let peer = connect(bound).expect("connect");
    assert_eq!(reply(&fetched).0, 0);
    is_closed(&handle);
    assert!(wait_until(SOON, || is_shut(bound)));
    exchange(&fetched, &peer);
}
