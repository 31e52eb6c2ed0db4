//! Stack options of SOCKS 6: what clients ask for, what the server tells, and what its sockets really have. Bytes by hand.
//!
//! The server's own sockets are looked at by way of pidfd_getfd(2), where the system lets a test do so.
#![cfg(all(feature = "socks6", target_os = "linux"))]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};

use common::{
    Chunks, End, Netns, Pattern, Received, SOON, Sockhop, Target, connect, exchange, socks5_connect,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol, Socket, Type};

const CLIENT: u8 = 1;
const REMOTE: u8 = 2;
const BOTH: u8 = 3;
const IP: u8 = 1;
const TCP: u8 = 4;
const UDP: u8 = 5;
const NO: u8 = 1;
const YES: u8 = 2;

/// Data of a stack option: leg and level, code, value.
type StackOption = [u8; 4];

const fn tos(leg: u8, tos: u8) -> StackOption {
    [leg << 6 | IP, 1, tos, 0]
}

const fn happy_eyeballs(choice: u8) -> StackOption {
    [REMOTE << 6 | IP, 2, choice, 0]
}

const fn ttl(leg: u8, ttl: u8) -> StackOption {
    [leg << 6 | IP, 3, ttl, 0]
}

const fn no_fragmentation(leg: u8, choice: u8) -> StackOption {
    [leg << 6 | IP, 4, choice, 0]
}

const fn tfo(size: u16) -> StackOption {
    let [high, low] = size.to_be_bytes();
    [REMOTE << 6 | TCP, 1, high, low]
}

const fn multipath(choice: u8) -> StackOption {
    [REMOTE << 6 | TCP, 2, choice, 0]
}

const fn backlog(length: u16) -> StackOption {
    let [high, low] = length.to_be_bytes();
    [REMOTE << 6 | TCP, 3, high, low]
}

/// A server that lets clients go to loopback.
fn serve() -> (Sockhop, SocketAddr) {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1", "-v"]);
    let server = server.start();
    let address = server.wait_listening(SOON);
    (server, address)
}

const CONNECT: u8 = 1;
const BIND: u8 = 2;

/// A request for an address, or for a name with its port.
fn request(command: u8, to: &str, stack: &[StackOption]) -> Vec<u8> {
    let options: Vec<u8> = stack
        .iter()
        .flat_map(|data| [&[0, 1, 0, 8], &data[..]].concat())
        .collect();
    let (port, address) = match to.parse::<SocketAddr>() {
        Ok(to) => (
            to.port(),
            match to.ip() {
                IpAddr::V4(ip) => [&[1], &ip.octets()[..]].concat(),
                IpAddr::V6(ip) => [&[4], &ip.octets()[..]].concat(),
            },
        ),
        Err(_) => {
            let (name, port) = to.rsplit_once(':').expect("a port");
            let mut name = name.as_bytes().to_vec();
            // With its length byte a multiple of 4.
            name.resize((1 + name.len()).next_multiple_of(4) - 1, 0);
            let length = u8::try_from(name.len()).expect("short");
            (
                port.parse().expect("a port"),
                [&[3, length], &name[..]].concat(),
            )
        }
    };
    let length = u16::try_from(options.len()).expect("short");
    [
        &[6, command],
        &length.to_be_bytes()[..],
        &port.to_be_bytes(),
        &[0],
        &address,
        &options,
    ]
    .concat()
}

#[track_caller]
fn ask(server: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = connect(server).expect("connect");
    stream.write_all(request).expect("write");
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).expect("authentication reply");
    assert_eq!(reply, [6, 0, 0, 0]);
    stream
}

/// The address and the stack options of a successful operation reply, which has no others.
#[track_caller]
fn reply(mut stream: &TcpStream) -> (SocketAddr, Vec<StackOption>) {
    let mut head = [0; 8];
    stream.read_exact(&mut head).expect("operation reply");
    assert_eq!((head[0], head[1]), (6, 0), "{head:02x?}");
    let ip: IpAddr = match head[7] {
        1 => read::<4>(stream).into(),
        _ => read::<16>(stream).into(),
    };
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let mut options = vec![0; length];
    stream.read_exact(&mut options).expect("options");
    let (options, rest) = options.as_chunks::<8>();
    assert!(rest.is_empty());
    let data = |option: &[u8; 8]| {
        assert_eq!(option[..4], [0, 1, 0, 8], "{option:02x?}");
        [option[4], option[5], option[6], option[7]]
    };
    let port = u16::from_be_bytes([head[4], head[5]]);
    (
        SocketAddr::new(ip, port),
        options.iter().map(data).collect(),
    )
}

fn read<const N: usize>(mut stream: &TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

/// Connects, and checks that bytes pass.
#[track_caller]
fn through(server: SocketAddr, to: &str, stack: &[StackOption]) -> (TcpStream, Vec<StackOption>) {
    let stream = ask(server, &request(CONNECT, to, stack));
    let (_, told) = reply(&stream);
    assert_eq!(exchange(&stream, b"hello").expect("an echo"), b"hello");
    (stream, told)
}

/// The server's socket that is connected to `peer`, or that listens at it, if the system lets us have it.
#[track_caller]
fn socket_of(server: &Sockhop, address: SocketAddr) -> Option<Socket> {
    let id = i32::try_from(server.id()).expect("a process");
    let pid = Pid::from_raw(id).expect("a process");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    for entry in fs::read_dir(format!("/proc/{id}/fd")).expect("its descriptors") {
        let number = entry.expect("an entry").file_name();
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number = number.expect("a number");
        match pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => {
                let socket = Socket::from(fd);
                let is = |it: std::io::Result<socket2::SockAddr>| {
                    it.ok().and_then(|it| it.as_socket()) == Some(address)
                };
                let listens = || socket.is_listener().unwrap_or_default();
                if is(socket.peer_addr()) || (is(socket.local_addr()) && listens()) {
                    return Some(socket);
                }
            }
            Err(rustix::io::Errno::BADF) => {}
            Err(error) => {
                eprintln!("the server's sockets cannot be looked at here: {error}");
                return None;
            }
        }
    }
    panic!("the server has no socket with {address}");
}

/// TOS and TTL of it.
fn seen(socket: &Socket, address: SocketAddr) -> (u32, u32) {
    let seen = match address {
        SocketAddr::V4(_) => (socket.tos_v4(), socket.ttl_v4()),
        SocketAddr::V6(_) => (socket.tclass_v6(), socket.unicast_hops_v6()),
    };
    (seen.0.expect("TOS"), seen.1.expect("TTL"))
}

#[test]
fn each_leg_gets_what_was_asked_for_it() {
    let (server, at) = serve();
    for target in [Target::echo(), Target::echo_at("[::1]:0")] {
        let to = target.address();
        let wanted = [
            tos(CLIENT, 0x20),
            tos(REMOTE, 0x48),
            ttl(CLIENT, 77),
            ttl(REMOTE, 88),
            no_fragmentation(CLIENT, YES),
            no_fragmentation(REMOTE, NO),
        ];
        let (stream, told) = through(at, &to.to_string(), &wanted);
        assert_eq!(told, wanted);
        let client = stream.local_addr().unwrap();
        if let Some(socket) = socket_of(&server, client) {
            assert_eq!(seen(&socket, client), (0x20, 77));
            let remote = socket_of(&server, to).expect("as the other one");
            assert_eq!(seen(&remote, to), (0x48, 88));
        }
    }
}

#[test]
fn an_option_for_both_legs_is_answered_as_one() {
    let (_server, at) = serve();
    let target = Target::echo();
    let wanted = [tos(BOTH, 0x10), ttl(BOTH, 33), no_fragmentation(BOTH, YES)];
    let (_stream, told) = through(at, &target.address().to_string(), &wanted);
    assert_eq!(told, wanted);
    // One leg alone says nothing of the other.
    let (_stream, told) = through(at, &target.address().to_string(), &[ttl(CLIENT, 44)]);
    assert_eq!(told, [ttl(CLIENT, 44)]);
}

#[test]
fn what_is_not_granted_is_told_as_it_is() {
    let (_server, at) = serve();
    let target = Target::echo();
    let to = target.address().to_string();
    // The two lowest bits are TCP's, and with a TTL of 0 nothing could leave.
    let (_stream, told) = through(at, &to, &[tos(BOTH, 0x1f), ttl(BOTH, 0)]);
    assert_eq!(told[0], tos(BOTH, 0x1c));
    let in_force = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|it| it.ttl_v4());
    let in_force = u8::try_from(in_force.unwrap()).unwrap();
    assert_eq!(told[1..], [ttl(BOTH, in_force)]);
}

#[test]
fn options_that_do_not_apply_get_no_answer() {
    let (_server, at) = serve();
    let target = Target::echo();
    let (_stream, told) = through(
        at,
        &target.address().to_string(),
        &[
            // Unknown code, unknown level, those of UDP, that of BIND, and one that is for names.
            [REMOTE << 6 | IP, 9, 1, 0],
            [REMOTE << 6 | 6, 1, 1, 0],
            [REMOTE << 6 | UDP, 1, YES, 0],
            [REMOTE << 6 | UDP, 2, 1, 1],
            happy_eyeballs(YES),
            ttl(REMOTE, 9),
        ],
    );
    assert_eq!(told, [ttl(REMOTE, 9)]);
}

#[test]
fn happy_eyeballs_are_told_for_names() {
    let (_server, at) = serve();
    let target = Target::echo();
    let port = target.address().port();
    for choice in [YES, NO] {
        let (_stream, told) = through(at, &format!("localhost:{port}"), &[happy_eyeballs(choice)]);
        assert_eq!(told, [happy_eyeballs(choice)]);
    }
}

#[test]
fn without_options_nothing_is_touched() {
    let (server, at) = serve();
    let target = Target::echo();
    let to = target.address();
    let plain = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let plain = seen(&plain, to);
    let (_socks6, told) = through(at, &to.to_string(), &[]);
    assert!(told.is_empty());
    if let Some(socket) = socket_of(&server, to) {
        assert_eq!(seen(&socket, to), plain);
        assert_eq!(socket.protocol().unwrap(), Some(Protocol::TCP));
    }
    drop(_socks6);
    let other = Target::echo();
    let _socks5 = socks5_connect(at, other.address()).expect("a connection");
    if let Some(socket) = socket_of(&server, other.address()) {
        assert_eq!(seen(&socket, other.address()), plain);
    }
}

/// A listener that speaks Multipath TCP, unless the system has none.
fn multipath_listener() -> Option<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).ok()?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("bind");
    socket.listen(8).expect("listen");
    Some(socket.into())
}

#[test]
fn multipath_is_used_where_both_ends_have_it() {
    let (_server, at) = serve();
    // The other end has none: plain TCP, and told so.
    let target = Target::echo();
    for choice in [YES, NO] {
        let (_stream, told) = through(at, &target.address().to_string(), &[multipath(choice)]);
        assert_eq!(told, [multipath(NO)]);
    }
    let Some(listener) = multipath_listener() else {
        return;
    };
    let to = listener.local_addr().unwrap().to_string();
    for choice in [YES, NO] {
        let stream = ask(at, &request(CONNECT, &to, &[multipath(choice)]));
        let (mut peer, _) = listener.accept().expect("a connection");
        assert_eq!(reply(&stream).1, [multipath(choice)]);
        peer.write_all(b"over several ways").unwrap();
        assert_eq!(&read::<17>(&stream), b"over several ways");
        (&stream).write_all(b"and back").unwrap();
        assert_eq!(&read::<8>(&peer), b"and back");
        drop(peer);
        assert_eq!((&stream).read(&mut [0]).expect("an end"), 0);
    }
}

#[test]
fn much_passes_over_multipath_in_both_directions() {
    let (_server, at) = serve();
    let Some(listener) = multipath_listener() else {
        return;
    };
    let to = listener.local_addr().unwrap().to_string();
    let client = ask(at, &request(CONNECT, &to, &[multipath(YES)]));
    let (peer, _) = listener.accept().expect("a connection");
    assert_eq!(reply(&client).1, [multipath(YES)]);
    peer.set_read_timeout(Some(SOON)).unwrap();
    peer.set_write_timeout(Some(SOON)).unwrap();
    // Enough for the relay to splice.
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let send = |pattern: &Pattern, stream: &TcpStream| {
        let chunks = Chunks::Fixed(256 * 1024);
        pattern.send(stream, MANY, chunks).expect("send");
        stream.shutdown(Shutdown::Write).expect("the end");
    };
    let all = |received: Received| {
        assert_eq!((received.bytes, received.end), (MANY, End::Eof));
        assert_eq!(received.wrong_at, None);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(&up, &client));
        scope.spawn(|| send(&down, &peer));
        scope.spawn(|| all(up.receive(&peer, u64::MAX)));
        all(down.receive(&client, u64::MAX));
    });
}

const MANY: u64 = 8 << 20;

#[test]
fn fast_open_sends_early_data_once() {
    let (_server, at) = serve();
    for size in [0, 3, 1400] {
        let (target, streams) = Target::manual();
        let to = target.address().to_string();
        let mut bytes = request(CONNECT, &to, &[tfo(size)]);
        bytes.extend(b"early");
        let mut stream = connect(at).expect("connect");
        stream.write_all(&bytes).expect("write");
        let mut peer = streams.recv_timeout(SOON).expect("a connection");
        assert_eq!(read::<4>(&stream), [6, 0, 0, 0]);
        // Whoever has given us no cookie gets no bytes in the SYN; where it is switched off there is no answer.
        let (_, told) = reply(&stream);
        assert!(told.is_empty() || told == [tfo(0)], "{told:02x?}");
        stream.write_all(b" and late").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        peer.read_to_end(&mut received).expect("an orderly end");
        assert_eq!(received, b"early and late");
    }
}

#[test]
#[ignore = "needs root: a network namespace in which every listener takes TCP Fast Open"]
fn fast_open_puts_early_data_into_the_syn() {
    let namespace = Netns::new();
    // Client and server (3), every listener without an option of its own (0x400).
    namespace.set("ipv4/tcp_fastopen", &0x403.to_string());
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "-v"]).inside(&namespace);
    let server = server.start();
    let at = server.wait_listening(SOON);
    namespace.inside(|| {
        let count = |name: &str| {
            let text = fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
            let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let place = names.split(' ').position(|it| it == name).unwrap();
            values
                .split(' ')
                .nth(place)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let target = TcpListener::bind("127.0.0.1:0").expect("bind");
        let to = target.local_addr().unwrap().to_string();
        let early = [b'e'; 100];
        // The first one brings the cookie.
        for (size, in_syn) in [(0, 0), (0, 100), (40, 40), (1000, 100)] {
            let before = count("TCPFastOpenPassive");
            let mut bytes = request(CONNECT, &to, &[tfo(size)]);
            bytes.extend(early);
            let mut stream = connect(at).expect("connect");
            stream.write_all(&bytes).expect("write");
            let (mut peer, _) = target.accept().expect("a connection");
            assert_eq!(read::<100>(&peer), early);
            assert_eq!(read::<4>(&stream), [6, 0, 0, 0]);
            assert_eq!(reply(&stream).1, [tfo(in_syn)], "{size}");
            let expected = u64::from(in_syn > 0);
            assert_eq!(count("TCPFastOpenPassive") - before, expected, "{size}");
            stream.write_all(b"late").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).expect("an orderly end");
            assert_eq!(rest, b"late");
        }
        // A client that has said nothing yet is connected all the same.
        let stream = ask(at, &request(CONNECT, &to, &[tfo(0)]));
        let (mut peer, _) = target.accept().expect("a connection");
        assert_eq!(reply(&stream).1, [tfo(0)]);
        peer.write_all(b"220 hello").unwrap();
        assert_eq!(&read::<9>(&stream), b"220 hello");
        // Without the option nothing is in a SYN, cookie or not.
        let before = count("TCPFastOpenPassive");
        let mut bytes = request(CONNECT, &to, &[]);
        bytes.extend(early);
        let mut stream = connect(at).expect("connect");
        stream.write_all(&bytes).expect("write");
        let (peer, _) = target.accept().expect("a connection");
        assert_eq!(read::<100>(&peer), early);
        assert_eq!(count("TCPFastOpenPassive"), before);
    });
}

#[test]
fn bind_tells_of_the_port_and_then_of_the_peer() {
    let (server, at) = serve();
    let wanted = [
        tos(CLIENT, 0x20),
        tos(REMOTE, 0x40),
        ttl(REMOTE, 55),
        no_fragmentation(REMOTE, YES),
        // Nobody asked for a session.
        backlog(4),
    ];
    let port = [
        tos(CLIENT, 0x20),
        tos(REMOTE, 0x40),
        ttl(REMOTE, 55),
        no_fragmentation(REMOTE, YES),
        backlog(0),
    ];
    let stream = ask(at, &request(BIND, "127.0.0.1:0", &wanted));
    let (bound, told) = reply(&stream);
    assert_eq!(told, port);
    if let Some(listener) = socket_of(&server, bound) {
        assert_eq!(seen(&listener, bound), (0x40, 55));
    }
    let mut peer = connect(bound).expect("connect");
    let (came, told) = reply(&stream);
    assert_eq!(came, peer.local_addr().unwrap());
    assert_eq!(told, port[..4]);
    if let Some(socket) = socket_of(&server, came) {
        assert_eq!(seen(&socket, came), (0x40, 55));
    }
    peer.write_all(b"hello").unwrap();
    assert_eq!(&read::<5>(&stream), b"hello");
}

#[test]
fn a_peer_that_is_fetched_has_what_the_fetcher_wants() {
    let (server, at) = serve();
    // A session, from a NOOP: its id is the last 16 bytes of the authentication reply's options.
    let mut noop = connect(at).expect("connect");
    noop.write_all(b"\x06\0\0\x04\0\0\0\x01\0\0\0\0\0\x05\0\x04")
        .expect("write");
    let said = read::<24>(&noop);
    assert_eq!(said[..8], [6, 0, 0, 20, 0, 6, 0, 20]);
    let in_session = |to: &str, stack: &[StackOption]| {
        let mut request = request(BIND, to, stack);
        request.extend(&said[4..]);
        let length = u16::from_be_bytes([request[2], request[3]]) + 20;
        request[2..4].copy_from_slice(&length.to_be_bytes());
        let mut stream = connect(at).expect("connect");
        stream.write_all(&request).expect("write");
        let [.., high, low] = read::<4>(&stream);
        let mut options = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        stream.read_exact(&mut options).expect("options");
        stream
    };
    let handle = in_session("127.0.0.1:0", &[ttl(REMOTE, 55), backlog(4)]);
    let (bound, told) = reply(&handle);
    assert_eq!(told, [ttl(REMOTE, 55), backlog(4)]);
    let mut peer = connect(bound).expect("connect");

    let fetcher = in_session(&bound.to_string(), &[tos(BOTH, 0x20), ttl(REMOTE, 66)]);
    let (same, told) = reply(&fetcher);
    assert_eq!((same, told), (bound, vec![tos(CLIENT, 0x20)]));
    let (came, told) = reply(&fetcher);
    assert_eq!(came, peer.local_addr().unwrap());
    assert_eq!(told, [tos(BOTH, 0x20), ttl(REMOTE, 66)]);
    if let Some(socket) = socket_of(&server, came) {
        assert_eq!(seen(&socket, came), (0x20, 66));
    }
    peer.write_all(b"hello").unwrap();
    assert_eq!(&read::<5>(&fetcher), b"hello");
}

#[test]
fn bind_accepts_multipath_if_it_is_wanted() {
    let (_server, at) = serve();
    for wanted in [YES, NO] {
        for comes_with in [YES, NO] {
            let stream = ask(at, &request(BIND, "127.0.0.1:0", &[multipath(wanted)]));
            let (bound, told) = reply(&stream);
            // A system without it grants none.
            let has = multipath_listener().is_some();
            let granted = if has { wanted } else { NO };
            assert_eq!(told, [multipath(granted)]);
            let protocol = match comes_with {
                YES if has => Protocol::MPTCP,
                _ => Protocol::TCP,
            };
            let peer = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).expect("a socket");
            peer.connect(&bound.into()).expect("connect");
            let both = if granted == YES { comes_with } else { NO };
            assert_eq!(reply(&stream).1, [multipath(both)], "{wanted} {comes_with}");
            TcpStream::from(peer).write_all(b"hello").unwrap();
            assert_eq!(&read::<5>(&stream), b"hello");
        }
    }
}
