//! What a server grants of stack options: what the system lets it and harms nobody, or with `--no-stack-options` nothing. Bytes by
//! hand.
#![cfg(all(feature = "socks6", target_os = "linux"))]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use common::{SOON, Sockhop, Target, connect, exchange, serve};

const CONNECT: u8 = 1;
const BIND: u8 = 2;
const ASSOCIATE: u8 = 3;

// Data of stack options: leg (both, remote) and level, code, value.
const fn tos(tos: u8) -> [u8; 4] {
    [0xc1, 1, tos, 0]
}
const fn ttl(ttl: u8) -> [u8; 4] {
    [0xc1, 3, ttl, 0]
}
const fn no_fragmentation(choice: u8) -> [u8; 4] {
    [0xc1, 4, choice, 0]
}
const TFO: [u8; 4] = [0x84, 1, 0, 0];
const fn happy_eyeballs(choice: u8) -> [u8; 4] {
    [0x81, 2, choice, 0]
}
const fn multipath(choice: u8) -> [u8; 4] {
    [0x84, 2, choice, 0]
}
const fn backlog(length: u8) -> [u8; 4] {
    [0x84, 3, 0, length]
}
const fn udp_error(choice: u8) -> [u8; 4] {
    [0x85, 1, choice, 0]
}
const fn port_parity(parity: u8, reserve: u8) -> [u8; 4] {
    [0x85, 2, parity, reserve]
}

const SESSION_REQUEST: [u8; 4] = [0, 5, 0, 4];

/// The options of the operation reply, and the connection.
#[track_caller]
fn ask(
    server: SocketAddr,
    command: u8,
    address: &[u8],
    stack: &[[u8; 4]],
    others: &[u8],
) -> (TcpStream, Vec<[u8; 4]>) {
    let mut options = others.to_vec();
    for data in stack {
        options.extend([0, 1, 0, 8]);
        options.extend(data);
    }
    let length = u8::try_from(options.len()).expect("short");
    let mut stream = connect(server).expect("connect");
    let head = [6, command, 0, length];
    let request = [&head, address, &options].concat();
    stream.write_all(&request).expect("write");
    let mut read = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).expect("read");
        bytes
    };
    let auth = read(4);
    assert_eq!(auth[..2], [6, 0], "{auth:02x?}");
    read(auth[3].into());
    let reply = read(8);
    assert_eq!(
        (reply[..2].to_vec(), reply[7]),
        (vec![6, 0], 1),
        "{reply:02x?}"
    );
    read(4);
    let options = read(reply[3].into());
    let mut stack = Vec::new();
    let mut options = &options[..];
    while let [0, kind, 0, length, ..] = *options {
        let (option, rest) = options.split_at(length.into());
        if kind == 1 {
            stack.push(option[4..].try_into().expect("four bytes"));
        }
        options = rest;
    }
    (stream, stack)
}

/// Port, padding, type, address.
fn block(to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else {
        panic!("{to} is not IPv4");
    };
    let [high, low] = to.port().to_be_bytes();
    [&[high, low, 0, 1], &to.ip().octets()[..]].concat()
}

const ANY: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 0];

/// What the system has without a wish.
fn system_ttl() -> u8 {
    let path = "/proc/sys/net/ipv4/ip_default_ttl";
    let text = std::fs::read_to_string(path).expect(path);
    text.trim().parse().expect("a number")
}

#[test]
fn with_no_stack_options_each_is_answered_with_what_is_there_without() {
    let (_server, address) = serve(&["--no-stack-options"]);
    let echo = Target::echo();
    let as_ever = [tos(0), ttl(system_ttl()), no_fragmentation(1)];
    let wishes = [tos(0x28), ttl(1), no_fragmentation(2), TFO, multipath(2)];
    let (stream, told) = ask(address, CONNECT, &block(echo.address()), &wishes, &[]);
    assert_eq!(told, [&as_ever[..], &[multipath(1)]].concat());
    assert_eq!(exchange(&stream, b"hello").expect("an echo"), b"hello");

    let port = echo.address().port().to_be_bytes();
    let name = [&port, &b"\0\x03\x0blocalhost\0\0"[..]].concat();
    let (_, told) = ask(address, CONNECT, &name, &[happy_eyeballs(1)], &[]);
    assert_eq!(told, [happy_eyeballs(2)]);

    let wishes = [tos(0x28), backlog(5)];
    let (_, told) = ask(address, BIND, &ANY, &wishes, &SESSION_REQUEST);
    assert_eq!(told, [tos(0), backlog(0)]);

    let wishes = [ttl(9), udp_error(2), port_parity(1, 1)];
    let (_, told) = ask(address, ASSOCIATE, &ANY, &wishes, &[]);
    let remote = |option: [u8; 4]| [option[0] & 0xbf, option[1], option[2], option[3]];
    let expected = [remote(ttl(system_ttl())), udp_error(1), port_parity(0, 0)];
    assert_eq!(told, expected);
    // Who wishes for nothing is told nothing.
    let (_, told) = ask(address, ASSOCIATE, &ANY, &[], &[]);
    assert_eq!(told, [[0; 4]; 0]);
}

#[test]
fn classes_of_network_control_are_not_for_clients() {
    let (_server, address) = serve(&[]);
    let echo = Target::echo();
    for (wanted, granted) in [(0xb8, 0xb8), (0xbc, 0xbc), (0xc0, 0), (0xe0, 0), (0xfc, 0)] {
        let wishes = [tos(wanted)];
        let (_, told) = ask(address, CONNECT, &block(echo.address()), &wishes, &[]);
        assert_eq!(told, [tos(granted)], "{wanted:02x}");
    }
}

/// The counter of connections whose SYN had data that was taken.
fn taken_from_syns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut both = names.split(' ').zip(values.split(' '));
    let found = both.find(|(name, _)| *name == "TCPFastOpenPassive");
    found.expect("that counter").1.parse().expect("a number")
}

#[test]
#[ignore = "needs root: a network namespace where listeners may take TCP Fast Open"]
fn ports_take_fast_open_where_the_client_wants_it_and_an_admin_allows_it() {
    use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
    use socket2::{Domain, Socket, Type};

    let namespace = common::Netns::new();
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "-v"]).inside(&namespace);
    let server = server.start();
    let at = server.wait_listening(SOON);
    // Which bits of the system's setting, what the client wants, what it is told; and whether data in a SYN are taken.
    for (allowed, wishes, told, taken) in [
        ("1", &[TFO, multipath(1)][..], &[multipath(1)][..], 0),
        // For the cookie, which the next one has.
        ("3", &[TFO], &[TFO], 0),
        ("3", &[TFO], &[TFO], 1),
        ("3", &[tos(0x28)], &[tos(0x28)], 0),
        ("3", &[TFO, multipath(2)], &[multipath(2)], 0),
    ] {
        namespace.set("ipv4/tcp_fastopen", allowed);
        namespace.inside(|| {
            let any = [0, 0, 0, 1, 127, 0, 0, 1];
            let mut stream = connect(at).expect("connect");
            let mut request = vec![6, BIND, 0, u8::try_from(wishes.len() * 8).expect("short")];
            request.extend(any);
            for data in wishes {
                request.extend([&[0, 1, 0, 8], &data[..]].concat());
            }
            stream.write_all(&request).expect("write");
            let mut reply = [0; 16];
            stream.read_exact(&mut reply).expect("both replies");
            assert_eq!(reply[..6], [6, 0, 0, 0, 6, 0], "{wishes:02x?}");
            let mut options = vec![0; reply[7].into()];
            stream.read_exact(&mut options).expect("options");
            let expected: Vec<u8> = told
                .iter()
                .flat_map(|data| [&[0, 1, 0, 8], &data[..]].concat())
                .collect();
            assert_eq!(options, expected, "{allowed} {wishes:02x?}");
            let port = u16::from_be_bytes([reply[8], reply[9]]);

            let before = taken_from_syns();
            let peer = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            setsockopt(&peer, TcpFastOpenConnect, &true).expect("an option of clients");
            let to = SocketAddr::from(([127, 0, 0, 1], port));
            peer.connect(&to.into()).expect("connect");
            assert_eq!(peer.send(b"early").expect("send"), 5);
            let mut second = [0; 12];
            stream.read_exact(&mut second).expect("the second reply");
            assert_eq!(second[..2], [6, 0]);
            let mut options = vec![0; second[3].into()];
            stream.read_exact(&mut options).expect("its options");
            let mut early = [0; 5];
            stream.read_exact(&mut early).expect("what came in the SYN");
            assert_eq!(&early, b"early");
            assert_eq!(taken_from_syns() - before, taken, "{allowed} {wishes:02x?}");
        });
    }
}
