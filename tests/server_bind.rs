//! BIND of `sockhop serve` as clients and their peers meet it. But for what is said to use the library, bytes are written by hand.
#![cfg(feature = "server")]

mod common;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

#[cfg(target_os = "linux")]
use common::Netns;
use common::{
    Chunks, Daemon, Observed, Pattern, SOON, Signal, Sockhop, Target, connect, dead_address,
    expect_end, observe, read_exactly, reset, serve, wait_until,
};
#[cfg(target_os = "linux")]
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use sockhop::client::{ClientError, Dialer, Fault};
use sockhop::wire::{Address, BoundAddress};

/// SOCKS5's greeting and its BIND for a peer.
fn bind_for(peer: &str) -> Vec<u8> {
    let peer: SocketAddr = peer.parse().expect("an address");
    let mut bytes = vec![5, 1, 0, 5, 2, 0];
    match peer.ip() {
        IpAddr::V4(ip) => bytes.extend([&[1], &ip.octets()[..]].concat()),
        IpAddr::V6(ip) => bytes.extend([&[4], &ip.octets()[..]].concat()),
    }
    bytes.extend(peer.port().to_be_bytes());
    bytes
}

/// The same for a name.
fn bind_for_name(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("short");
    [
        &[5, 1, 0, 5, 2, 0, 3, length],
        name.as_bytes(),
        &21_u16.to_be_bytes(),
    ]
    .concat()
}

/// BIND of SOCKS4, without a user id.
fn bind4_for(peer: [u8; 4]) -> Vec<u8> {
    [&[4, 2, 0, 21], &peer[..], &[0]].concat()
}

#[track_caller]
fn ask(server: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(server).expect("connect");
    stream.write_all(bytes).expect("write");
    stream
}

/// The code and address of a SOCKS5 reply.
#[track_caller]
fn reply(stream: &TcpStream) -> (u8, SocketAddr) {
    let head = read_exactly(stream, 4);
    assert_eq!((head[0], head[2]), (5, 0), "{head:02x?}");
    let ip: IpAddr = match head[3] {
        1 => <[u8; 4]>::try_from(read_exactly(stream, 4)).unwrap().into(),
        4 => <[u8; 16]>::try_from(read_exactly(stream, 16))
            .unwrap()
            .into(),
        other => panic!("address type {other}"),
    };
    let port = read_exactly(stream, 2);
    let port = u16::from_be_bytes([port[0], port[1]]);
    (head[1], SocketAddr::new(ip, port))
}

/// A client that waits for its peer, and where that is to come.
#[track_caller]
fn bound(server: SocketAddr, request: &[u8]) -> (TcpStream, SocketAddr) {
    let stream = ask(server, request);
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
    let (code, port) = reply(&stream);
    assert_eq!(code, 0);
    assert_ne!(port.port(), 0);
    (stream, port)
}

/// The code of the first reply, which must be a refusal with nothing behind it.
#[track_caller]
fn refused(server: SocketAddr, request: &[u8]) -> u8 {
    let stream = ask(server, request);
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
    let (code, at) = reply(&stream);
    assert_ne!(code, 0);
    assert_eq!(at, "0.0.0.0:0".parse().unwrap());
    assert_eq!(observe(&stream, SOON), Observed::Eof);
    code
}

/// Both replies of SOCKS4 have this form.
#[track_caller]
fn reply4(stream: &TcpStream) -> (u8, SocketAddr) {
    let bytes = read_exactly(stream, 8);
    assert_eq!(bytes[0], 0);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
    (bytes[1], (ip, port).into())
}

/// Connects from an address of loopback.
fn come_from(ip: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let ip: IpAddr = ip.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.connect_timeout(&to.into(), SOON)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// Whether nobody listens there any more, soon.
fn is_free(port: SocketAddr) -> bool {
    wait_until(SOON, || {
        TcpStream::connect(port)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[test]
fn two_replies_and_every_byte_both_ways() {
    let (server, address) = serve(&[]);
    let (client, port) = bound(address, &bind_for("127.0.0.1:21"));
    assert_eq!(port.ip(), Ipv4Addr::LOCALHOST);
    let peer = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let length = 3 << 20;
    let chunks = Chunks::Random {
        seed: 3,
        most: 100_000,
    };
    thread::scope(|scope| {
        for (from, to, pattern) in [(&client, &peer, &up), (&peer, &client, &down)] {
            scope.spawn(move || {
                pattern.send(from, length, chunks).unwrap();
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let received = pattern.receive(to, u64::MAX);
                assert_eq!((received.bytes, received.wrong_at), (length, None));
            });
        }
    });
    let line = server.wait_log("BIND for 127.0.0.1:21", SOON);
    let came = format!(
        "came from {}: {length} up, {length} down",
        peer.local_addr().unwrap()
    );
    assert!(line.contains(&came), "{line}");
    assert_eq!(
        server.status()["bytes"],
        json!({"up": length, "down": length})
    );
}

#[test]
fn what_the_client_sends_early_waits_for_the_peer() {
    let (_server, address) = serve(&[]);
    let early: Vec<u8> = (0..60_000_u32)
        .map(|number| number.to_le_bytes()[0])
        .collect();
    let request = [bind_for("127.0.0.1:0"), early[..3000].to_vec()].concat();
    let (mut client, port) = bound(address, &request);
    client.write_all(&early[3000..]).unwrap();
    // Also one that has said all it wants to say.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        observe(&client, Duration::from_millis(50)),
        Observed::Silent
    );
    let mut peer = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply(&client).0, 0);
    assert_eq!(read_exactly(&peer, early.len()), early);
    peer.write_all(b"thanks").unwrap();
    drop(peer);
    assert_eq!(read_exactly(&client, 6), b"thanks");
    assert_eq!(observe(&client, SOON), Observed::Eof);
}

#[test]
fn strangers_are_closed_and_the_peer_still_gets_in() {
    let (_server, address) = serve(&[]);
    let (client, port) = bound(address, &bind_for("127.0.0.2:21"));
    for _ in 0..15 {
        let stranger = come_from("127.0.0.1", port).unwrap();
        assert_eq!(expect_end(&stranger, SOON), Observed::Eof);
    }
    assert_eq!(
        observe(&client, Duration::from_millis(50)),
        Observed::Silent
    );
    let peer = come_from("127.0.0.2", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    (&client).write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&peer, 5), b"hello");
}

#[test]
fn many_strangers_end_it() {
    let (server, address) = serve(&[]);
    let come = |port: SocketAddr| {
        for _ in 0..16 {
            let stranger = come_from("127.0.0.1", port).unwrap();
            assert_eq!(expect_end(&stranger, SOON), Observed::Eof);
        }
    };
    let (client, port) = bound(address, &bind_for("127.0.0.2:21"));
    come(port);
    assert_eq!(reply(&client), (2, "0.0.0.0:0".parse().unwrap()));
    assert_eq!(observe(&client, SOON), Observed::Eof);
    assert!(is_free(port));
    server.wait_log("16 others came", SOON);

    let client = ask(address, &bind4_for([127, 0, 0, 2]));
    come(reply4(&client).1);
    assert_eq!(read_exactly(&client, 8), [0, 91, 0, 0, 0, 0, 0, 0]);
    assert_eq!(observe(&client, SOON), Observed::Eof);
}

#[test]
fn one_is_let_in_and_the_port_is_gone() {
    let (_server, address) = serve(&[]);
    let (client, port) = bound(address, &bind_for("127.0.0.1:0"));
    let mut first = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply(&client).0, 0);
    assert!(is_free(port));
    first.write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&client, 10), b"still here");
}

#[test]
fn address_zero_lets_in_whom_the_rules_let_in() {
    let (_server, address) = serve(&["--deny-dest", "127.0.0.2"]);
    for peer in ["0.0.0.0:0", "0.0.0.0:21", "[::]:0", "[::ffff:0.0.0.0]:0"] {
        let (client, port) = bound(address, &bind_for(peer));
        // Where the client has reached the server.
        assert_eq!(port.ip(), Ipv4Addr::LOCALHOST, "{peer}");
        let stranger = come_from("127.0.0.2", port).unwrap();
        assert_eq!(expect_end(&stranger, SOON), Observed::Eof);
        let peer = come_from("127.0.0.3", port).unwrap();
        assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    }
    // Without a rule nobody on loopback is let in.
    let server = Sockhop::serve(&[]).start();
    let (_client, port) = bound(server.wait_listening(SOON), &bind_for("0.0.0.0:0"));
    let stranger = come_from("127.0.0.1", port).unwrap();
    assert_eq!(expect_end(&stranger, SOON), Observed::Eof);
}

#[test]
fn address_zero_over_a_unix_socket_listens_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socks");
    let listen = format!("unix:{}", path.display());
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--listen", &listen]).start();
    server.wait_log("listening on unix:", SOON);
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(&bind_for("0.0.0.0:0")).unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..10], [5, 0, 5, 0, 0, 1, 0, 0, 0, 0]);
    let port = u16::from_be_bytes([answer[10], answer[11]]);
    let mut peer = come_from("127.0.0.1", (Ipv4Addr::LOCALHOST, port).into()).unwrap();
    let mut second = [0; 10];
    client.read_exact(&mut second).unwrap();
    assert_eq!(second[..8], [5, 0, 0, 1, 127, 0, 0, 1]);
    peer.write_all(b"hello").unwrap();
    let mut hello = [0; 5];
    client.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
}

#[test]
fn names_of_peers_are_looked_up() {
    let (_server, address) = serve(&["--deny-dest", "example.org"]);
    let (client, port) = bound(address, &bind_for_name("localhost"));
    let peer = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    for (name, code) in [
        ("no-such-host.invalid", 4),
        ("a.example.org", 2),
        ("0x7f000001", 2),
        ("local host", 1),
    ] {
        assert_eq!(refused(address, &bind_for_name(name)), code, "{name}");
    }
    // SOCKS4a.
    let client = ask(address, b"\x04\x02\0\x15\0\0\0\x01ada\0localhost\0");
    let (code, port) = reply4(&client);
    assert_eq!((code, port.ip()), (90, Ipv4Addr::LOCALHOST.into()));
    let peer = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply4(&client), (90, peer.local_addr().unwrap()));
    let client = ask(address, b"\x04\x02\0\x15\0\0\0\x01\0no-such-host.invalid\0");
    assert_eq!(read_exactly(&client, 8), [0, 91, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn socks4_gets_both_replies_in_its_own_bytes() {
    let (_server, address) = serve(&[]);
    for peer in [[127, 0, 0, 1], [0, 0, 0, 0]] {
        let client = ask(address, &bind4_for(peer));
        let first = read_exactly(&client, 8);
        assert_eq!(
            (&first[..2], &first[4..]),
            (&[0, 90][..], &[127, 0, 0, 1][..])
        );
        let port = u16::from_be_bytes([first[2], first[3]]);
        let mut peer = come_from("127.0.0.1", (Ipv4Addr::LOCALHOST, port).into()).unwrap();
        let from = peer.local_addr().unwrap().port().to_be_bytes();
        let second = read_exactly(&client, 8);
        assert_eq!(second, [0, 90, from[0], from[1], 127, 0, 0, 1]);
        peer.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&client, 5), b"hello");
        (&client).write_all(b"world").unwrap();
        assert_eq!(read_exactly(&peer, 5), b"world");
    }
}

#[test]
fn ipv6_peers_get_an_ipv6_port_and_mapped_ones_are_ipv4() {
    let (_server, address) = serve(&["--allow-dest", "::1"]);
    let (client, port) = bound(address, &bind_for("[::ffff:127.0.0.1]:21"));
    assert_eq!(port.ip(), Ipv4Addr::LOCALHOST);
    let peer = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    // SOCKS4a can name it, but not be told of it.
    let client = ask(address, b"\x04\x02\0\x15\0\0\0\x01\0::1\0");
    assert_eq!(read_exactly(&client, 8), [0, 91, 0, 0, 0, 0, 0, 0]);
    if !has_ipv6() {
        return;
    }
    let (client, port) = bound(address, &bind_for("[::1]:21"));
    assert_eq!(port.ip(), Ipv6Addr::LOCALHOST);
    let peer = come_from("::1", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    // A client that has come over IPv6, and a peer that may be anybody.
    let both = ["--allow-dest", "127.0.0.1", "--allow-dest", "::1"];
    let server = Sockhop::serve(&[&both[..], &["--listen", "[::1]:0"]].concat()).start();
    let address = server.wait_listening(SOON);
    let (client, port) = bound(address, &bind_for("0.0.0.0:0"));
    assert_eq!(port.ip(), Ipv6Addr::LOCALHOST);
    let peer = come_from("::1", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    // SOCKS4 can't be told that address: 0.0.0.0 is the server's own.
    let client = ask(address, &bind4_for([0; 4]));
    let (code, port) = reply4(&client);
    assert_eq!((code, port.ip()), (90, Ipv4Addr::UNSPECIFIED.into()));
    let peer = come_from("127.0.0.1", (Ipv4Addr::LOCALHOST, port.port()).into()).unwrap();
    assert_eq!(reply4(&client), (90, peer.local_addr().unwrap()));
}

#[test]
fn nobody_is_let_in_whom_the_client_may_not_go_to() {
    let server = Sockhop::serve(&["--deny-dest", "8.8.8.8"]).start();
    let address = server.wait_listening(SOON);
    let own = format!("127.0.0.1:{}", address.port());
    let peers = [
        "127.0.0.1:0",
        "10.0.0.1:21",
        "169.254.169.254:80",
        "8.8.8.8:0",
        &own,
        "[::1]:0",
    ];
    for peer in peers {
        assert_eq!(refused(address, &bind_for(peer)), 2, "{peer}");
    }
    let client = ask(address, &bind4_for([127, 0, 0, 1]));
    assert_eq!(read_exactly(&client, 8), [0, 91, 0, 0, 0, 0, 0, 0]);
    server.wait_status(
        |status| status["connections"]["refused_by_reason"]["rules"] == 7,
        SOON,
    );
    // A rule with a port is for the port that the request names.
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.1:21"]).start();
    let address = server.wait_listening(SOON);
    bound(address, &bind_for("127.0.0.1:21"));
    assert_eq!(refused(address, &bind_for("127.0.0.1:0")), 2);
}

#[test]
fn nobody_in_time_is_told_and_the_port_is_gone() {
    let (_server, address) = serve(&["--bind-timeout", "300ms"]);
    let (client, port) = bound(address, &bind_for("127.0.0.1:21"));
    assert_eq!(reply(&client), (6, "0.0.0.0:0".parse().unwrap()));
    assert_eq!(observe(&client, SOON), Observed::Eof);
    assert!(is_free(port));
    let client = ask(address, &bind4_for([127, 0, 0, 1]));
    let (code, port) = reply4(&client);
    assert_eq!(code, 90);
    assert_eq!(read_exactly(&client, 8), [0, 91, 0, 0, 0, 0, 0, 0]);
    assert!(is_free(port));
}

#[test]
fn the_port_is_free_when_the_client_leaves() {
    let (server, address) = serve(&[]);
    let idle = server.fds();
    let leave: [fn(TcpStream); 3] = [drop, reset, |stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(observe(&stream, SOON), Observed::Eof);
    }];
    for leave in leave {
        let (client, port) = bound(address, &bind_for("127.0.0.1:21"));
        leave(client);
        assert!(is_free(port));
        server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    }
    assert!(wait_until(SOON, || server.fds() <= idle));
}

#[test]
fn without_bind_it_is_no_command() {
    let (server, address) = serve(&["--no-bind"]);
    for peer in ["127.0.0.1:21", "0.0.0.0:0"] {
        assert_eq!(refused(address, &bind_for(peer)), 7, "{peer}");
    }
    assert_eq!(refused(address, &bind_for_name("localhost")), 7);
    let client = ask(address, &bind4_for([127, 0, 0, 1]));
    assert_eq!(read_exactly(&client, 8), [0, 91, 0, 0, 0, 0, 0, 0]);
    server.wait_status(
        |status| status["connections"]["refused_by_reason"]["command"] == 4,
        SOON,
    );
}

#[test]
fn waiting_costs_no_thread_and_as_many_descriptors_as_a_connection() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--workers", "4"])
        .open_files(64)
        .start();
    let address = server.wait_listening(SOON);
    let idle = server.fds();
    // As many clients as this limit of descriptors allows, and more.
    let request = bind_for("127.0.0.1:21");
    let asked: Vec<TcpStream> = (0..40).map(|_| ask(address, &request)).collect();
    server.wait_log("new ones wait", SOON);
    assert!(server.threads() <= 12, "{} threads", server.threads());
    let mut served = 0;
    let mut open = Vec::new();
    for client in &asked {
        // The others get their turn when these have gone.
        if let Observed::Silent = observe_nothing_taken(client) {
            break;
        }
        assert_eq!(read_exactly(client, 2), [5, 0]);
        let (code, port) = reply(client);
        assert_eq!(code, 0);
        let peer = come_from("127.0.0.1", port).unwrap();
        assert_eq!(reply(client), (0, peer.local_addr().unwrap()));
        assert_eq!(exchange_with(client, &peer), b"hello");
        open.push(peer);
        served += 1;
    }
    assert!(served >= 10, "{served}");
    drop(asked);
    drop(open);
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(wait_until(SOON, || server.fds() <= idle + 2));
}

/// Whether anything has come, which is left where it is.
fn observe_nothing_taken(stream: &TcpStream) -> Observed {
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_read_timeout(Some(SOON)).unwrap();
    match peeked {
        Ok(_) => Observed::Bytes(Vec::new()),
        Err(_) => Observed::Silent,
    }
}

fn exchange_with(mut client: &TcpStream, peer: &TcpStream) -> Vec<u8> {
    client.write_all(b"hello").unwrap();
    read_exactly(peer, 5)
}

/// The program gets no more descriptors; those it has are left. Gives its limit back.
#[cfg(target_os = "linux")]
fn starve(server: &Sockhop) -> Rlimit {
    // The hard limit stays: only root could raise it again. The program has raised the soft one to it.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let id = Pid::from_raw(server.id().try_into().unwrap());
    // 0 to 2 are its standard streams. With fewer it could not even poll(2) two descriptors.
    let current = Some(3);
    prlimit(id, Resource::Nofile, Rlimit { current, maximum }).unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn without_descriptors_it_fails_clearly_and_nothing_leaks() {
    let (server, address) = serve(&[]);
    let idle = server.fds();
    let feed = |limit| {
        let id = Pid::from_raw(server.id().try_into().unwrap());
        prlimit(id, Resource::Nofile, limit).unwrap();
    };
    // Several times, so that a leak would show.
    for _ in 0..4 {
        // None for the port.
        let mut client = ask(address, &[5, 1, 0]);
        assert_eq!(read_exactly(&client, 2), [5, 0]);
        let before = starve(&server);
        client.write_all(&bind_for("127.0.0.1:21")[3..]).unwrap();
        let answer = reply(&client);
        feed(before);
        assert_eq!(answer, (1, "0.0.0.0:0".parse().unwrap()));
        assert_eq!(observe(&client, SOON), Observed::Eof);
        drop(client);
        // None for the peer.
        let (client, port) = bound(address, &bind_for("127.0.0.1:21"));
        let before = starve(&server);
        // While there is no peer none is missed.
        (&client).write_all(b"early").unwrap();
        assert_eq!(
            observe(&client, Duration::from_millis(20)),
            Observed::Silent
        );
        // Reset, maybe before it knows that it is connected.
        let peer = come_from("127.0.0.1", port);
        let answer = reply(&client);
        feed(before);
        assert_eq!(answer.0, 1);
        if let Ok(peer) = peer {
            let end = expect_end(&peer, SOON);
            assert!(matches!(end, Observed::Reset | Observed::Eof));
        }
        assert!(is_free(port));
        drop(client);
    }
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(wait_until(SOON, || server.fds() <= idle));
    // And it goes on.
    let (client, port) = bound(address, &bind_for("127.0.0.1:21"));
    let peer = come_from("127.0.0.1", port).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
}

#[test]
fn sigterm_ends_the_wait() {
    let (mut server, address) = serve(&[]);
    let (client, port) = bound(address, &bind_for("127.0.0.1:21"));
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    assert!(is_free(port));
    assert_eq!(expect_end(&client, SOON), Observed::Eof);
}

fn dialer(scheme: &str, server: SocketAddr) -> Dialer {
    let proxy = format!("{scheme}://{server}");
    Dialer::new(proxy.parse().expect("a proxy")).timeout(SOON)
}

#[test]
fn our_own_library_binds() {
    let (_server, address) = serve(&["--deny-dest", "127.0.0.9"]);
    let (_hasty, hasty) = serve(&["--bind-timeout", "200ms"]);
    for scheme in ["socks5h", "socks5", "socks4a", "socks4"] {
        let binding = dialer(scheme, address)
            .bind(&"127.0.0.1:21".parse().unwrap())
            .unwrap();
        let mut peer = come_from("127.0.0.1", binding.address().unwrap()).unwrap();
        let (mut stream, from) = binding.accept(SOON).unwrap();
        assert_eq!(from, BoundAddress::Socket(peer.local_addr().unwrap()));
        peer.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&stream, 5), b"hello");
        stream.write_all(b"world").unwrap();
        assert_eq!(read_exactly(&peer, 5), b"world");

        let denied = dialer(scheme, address).bind(&"127.0.0.9:21".parse().unwrap());
        assert!(
            matches!(denied, Err(ClientError::Refused { .. })),
            "{scheme}: {denied:?}"
        );
        // Nobody comes.
        let binding = dialer(scheme, hasty)
            .bind(&"127.0.0.1:21".parse().unwrap())
            .unwrap();
        let late = binding.accept(SOON).unwrap_err();
        assert!(matches!(late, ClientError::Refused { .. }), "{late:?}");
        assert_eq!(late.fault(), Fault::Target, "{scheme}");
    }
}

/// The client of FTP's active mode (RFC 959 §3.2), whose data connections come through BIND.
struct Ftp {
    control: BufReader<TcpStream>,
    dialer: Dialer,
    server: Address,
}

impl Ftp {
    /// Connects through the proxy and logs in.
    fn log_in(dialer: &Dialer, server: SocketAddr) -> Self {
        let server = Address::from(server);
        let control = dialer.connect(&server).expect("connect");
        control.set_read_timeout(Some(SOON)).unwrap();
        let mut ftp = Self {
            control: BufReader::new(control),
            dialer: dialer.clone(),
            server,
        };
        ftp.answer("220");
        ftp.say("USER anonymous");
        let answer = ftp.line();
        if answer.starts_with("331") {
            ftp.say("PASS guest");
            ftp.answer("230");
        }
        ftp.say("TYPE I");
        ftp.answer("200");
        ftp
    }

    fn say(&mut self, command: &str) {
        let line = format!("{command}\r\n");
        self.control.get_mut().write_all(line.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).expect("an answer");
        line
    }

    #[track_caller]
    fn answer(&mut self, code: &str) {
        let line = self.line();
        assert!(line.starts_with(code), "{line:?} instead of {code}");
    }

    /// A transfer in active mode: the server connects to the port that BIND gave.
    fn transfer(&mut self, command: &str) -> (TcpStream, BoundAddress) {
        let binding = self.dialer.bind(&self.server).expect("bind");
        let Some(SocketAddr::V4(port)) = binding.address() else {
            panic!("{:?}", binding.address());
        };
        let ip = port.ip().to_string().replace('.', ",");
        let [high, low] = port.port().to_be_bytes();
        self.say(&format!("PORT {ip},{high},{low}"));
        self.answer("200");
        self.say(command);
        self.answer("150");
        let (data, peer) = binding.accept(SOON).expect("the server comes");
        data.set_read_timeout(Some(SOON)).unwrap();
        (data, peer)
    }
}

/// A server of FTP for one client: gives and takes files of the pattern, named by their length.
fn serve_ftp(control: &TcpStream, pattern: &Pattern) -> io::Result<()> {
    let mut port = dead_address();
    let say = |answer: &str| (&*control).write_all(format!("{answer}\r\n").as_bytes());
    control.set_read_timeout(Some(SOON))?;
    say("220 ready")?;
    for line in BufReader::new(control).lines() {
        let line = line?;
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "USER" => say("331 password")?,
            "PASS" => say("230 welcome")?,
            "TYPE" => say("200 binary")?,
            "PORT" => {
                let numbers: Vec<u8> = argument.split(',').flat_map(str::parse).collect();
                let [a, b, c, d, high, low] = numbers[..] else {
                    return say("501 no port");
                };
                port = ([a, b, c, d], u16::from_be_bytes([high, low])).into();
                say("200 there")?;
            }
            "RETR" => {
                say("150 sending")?;
                let data = come_from("127.0.0.1", port)?;
                let length = argument.parse().map_err(io::Error::other)?;
                pattern.send(&data, length, Chunks::Fixed(10_000))?;
                drop(data);
                say("226 sent")?;
            }
            "STOR" => {
                say("150 taking")?;
                let data = come_from("127.0.0.1", port)?;
                let received = pattern.receive(&data, u64::MAX);
                match (received.bytes.to_string() == argument, received.wrong_at) {
                    (true, None) => say("226 taken")?,
                    _ => say("451 something else has come")?,
                }
            }
            "QUIT" => return say("221 bye"),
            _ => say("502 what?")?,
        }
    }
    Ok(())
}

#[test]
fn ftp_in_active_mode() {
    let (_server, address) = serve(&[]);
    let pattern = Pattern::new(7);
    let (target, mut accepted) = Target::manual();
    for scheme in ["socks5h", "socks4"] {
        let (accepted, pattern) = (&mut accepted, &pattern);
        thread::scope(|scope| {
            let served = scope.spawn(move || {
                let control = accepted.recv_timeout(SOON).expect("a client");
                serve_ftp(&control, pattern)
            });
            let mut ftp = Ftp::log_in(&dialer(scheme, address), target.address());
            for length in [0, 1, 1_500_000] {
                let (mut data, peer) = ftp.transfer(&format!("RETR {length}"));
                let BoundAddress::Socket(peer) = peer else {
                    panic!("{peer:?}");
                };
                assert_eq!(peer.ip(), Ipv4Addr::LOCALHOST);
                assert_ne!(peer.port(), target.address().port());
                let mut file = Vec::new();
                data.read_to_end(&mut file).unwrap();
                assert_eq!((file.len(), pattern.verify(0, &file)), (length, None));
                ftp.answer("226");
            }
            let (data, _) = ftp.transfer("STOR 700000");
            pattern.send(&data, 700_000, Chunks::Fixed(9_999)).unwrap();
            drop(data);
            ftp.answer("226");
            ftp.say("QUIT");
            ftp.answer("221");
            served.join().expect("the server").expect("its sockets");
        });
    }
}

#[test]
#[ignore = "needs vsftpd (apt-get install vsftpd)"]
fn ftp_in_active_mode_with_vsftpd() {
    let at = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let pattern = Pattern::new(8);
    let mut content = vec![0; 2_000_000];
    pattern.fill(0, &mut content);
    let _ftpd = Daemon::start("vsftpd", at, |folder| {
        std::fs::create_dir(folder.join("files")).unwrap();
        std::fs::write(folder.join("files/file"), &content).unwrap();
        let configuration = folder.join("vsftpd.conf");
        let port = at.port();
        let root = folder.join("files");
        let text = format!(
            "listen=YES\nbackground=NO\nlisten_address=127.0.0.1\nlisten_port={port}\n\
             run_as_launching_user=YES\nanonymous_enable=YES\nlocal_enable=NO\nanon_root={}\n\
             connect_from_port_20=NO\nseccomp_sandbox=NO\nxferlog_enable=NO\n",
            root.display()
        );
        std::fs::write(&configuration, text).unwrap();
        vec![configuration.display().to_string()]
    });
    let (_server, address) = serve(&[]);
    for scheme in ["socks5h", "socks4a"] {
        let mut ftp = Ftp::log_in(&dialer(scheme, address), at);
        let (mut data, _) = ftp.transfer("RETR file");
        let mut file = Vec::new();
        data.read_to_end(&mut file).unwrap();
        assert!(file == content, "{} bytes", file.len());
        ftp.answer("226");
        ftp.say("QUIT");
        ftp.answer("221");
    }
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs root for network namespaces"]
fn the_port_is_where_the_peer_can_reach_it() {
    let (home, near, far) = (Netns::new(), Netns::new(), Netns::new());
    for (number, other) in [(1, &near), (2, &far)] {
        let addresses = |end| {
            let v4 = format!("10.78.{number}.{end}/24");
            [v4, format!("fd78:{number}::{end}/64")]
        };
        let (ours, theirs) = (addresses(1), addresses(2));
        home.cable(other, &[&ours[0], &ours[1]], &[&theirs[0], &theirs[1]]);
    }
    let allowed = ["--allow-dest", "10.0.0.0/8", "--allow-dest", "fd78::/16"];
    let server = Sockhop::serve(&[&allowed[..], &["--listen", "[::]:1080", "-v"]].concat())
        .inside(&home)
        .start();
    server.wait_listening(SOON);
    // IPv4 at a listener for both families.
    let server: SocketAddr = "10.78.1.1:1080".parse().unwrap();
    let ask_for = |peer: &str| near.inside(|| bound(server, &bind_for(peer)));
    for (peer, own) in [("10.78.2.2", "10.78.2.1"), ("[fd78:2::2]", "fd78:2::1")] {
        let (client, port) = ask_for(&format!("{peer}:21"));
        assert_eq!(port.ip().to_string(), own);
        let mut peer = far.inside(|| connect(port)).unwrap();
        assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
        peer.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&client, 5), b"hello");
    }
    let (client, port) = ask_for("0.0.0.0:0");
    assert_eq!(port.ip().to_string(), "10.78.1.1");
    let peer = near.inside(|| connect(port)).unwrap();
    assert_eq!(reply(&client), (0, peer.local_addr().unwrap()));
    // No way to the peer, and no port for it.
    let refused_for = |peer: &str| near.inside(|| refused(server, &bind_for(peer)));
    assert_eq!(refused_for("10.99.0.1:21"), 3);
    home.set("ipv4/ip_local_port_range", "40000 40000");
    let (_client, port) = ask_for("10.78.2.2:21");
    assert_eq!(port.port(), 40000);
    assert_eq!(refused_for("10.78.2.2:21"), 1);
}
