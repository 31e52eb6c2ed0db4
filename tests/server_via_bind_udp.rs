//! BIND and UDP ASSOCIATE of `sockhop serve --via`, as clients and proxies meet them. All bytes of SOCKS 4 and 5 are written
//! by hand.
#![cfg(feature = "server")]

mod common;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{
    Behaviour, Observed, Peer, SOON, Sockhop, Step, connect, dante, echo_datagrams, exchange,
    expect_end, is_closed, read_exactly, wait_dropped, wait_until,
};
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// A server that goes through these proxies, and lets clients go to loopback.
fn serve(proxies: &[&str], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let proxies = proxies.iter().flat_map(|proxy| ["--via", proxy]);
    let arguments = arguments.iter().copied().chain(["--allow-dest", "::1"]);
    common::serve(&proxies.chain(arguments).collect::<Vec<_>>())
}

fn uri(scheme: &str, address: SocketAddr) -> String {
    format!("{scheme}://{address}")
}

/// A proxy of SOCKS 5 that takes the greeting and a request for an IPv4 address, then does the rest.
fn scripted(rest: impl IntoIterator<Item = Step>) -> Peer {
    Peer::scripted(script(rest))
}

fn script(rest: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let start = [Step::Read(3), Step::Send(vec![5, 0]), Step::Read(10)];
    start.into_iter().chain(rest).collect()
}

fn v4(address: &str) -> Vec<u8> {
    let SocketAddr::V4(address) = address.parse().expect("an address") else {
        panic!("{address} is not IPv4");
    };
    [&address.ip().octets()[..], &address.port().to_be_bytes()].concat()
}

/// SOCKS 5's request for an IPv4 address.
fn request(command: u8, address: &str) -> Vec<u8> {
    [&[5, command, 0, 1], &v4(address)[..]].concat()
}

/// A reply with an IPv4 address.
fn reply(code: u8, address: &str) -> Vec<u8> {
    request(code, address)
}

/// Sends a whole handshake of SOCKS 5 without authentication; the answer to the greeting is read.
fn ask(server: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = connect(server).expect("connect");
    stream
        .write_all(&[&[5, 1, 0], request].concat())
        .expect("write");
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
    stream
}

/// The next reply: its code and its address, which is an IPv4 one.
#[track_caller]
fn next_reply(stream: &TcpStream) -> (u8, SocketAddr) {
    let bytes = read_exactly(stream, 10);
    assert_eq!((bytes[0], bytes[2], bytes[3]), (5, 0, 1), "{bytes:02x?}");
    let ip: [u8; 4] = bytes[4..8].try_into().expect("four bytes");
    let port = u16::from_be_bytes([bytes[8], bytes[9]]);
    (bytes[1], (ip, port).into())
}

#[track_caller]
fn granted(stream: &TcpStream) -> SocketAddr {
    let (code, address) = next_reply(stream);
    assert_eq!(code, 0);
    address
}

/// The code of a refusal, behind which the server closes in order.
#[track_caller]
fn refused(stream: &TcpStream) -> u8 {
    let (code, _) = next_reply(stream);
    assert_eq!(expect_end(stream, SOON), Observed::Eof);
    code
}

#[track_caller]
fn talk(client: &TcpStream, peer: &TcpStream) {
    for (mut from, to, what) in [(client, peer, b"USER"), (peer, client, b"220 ")] {
        from.write_all(what).expect("write");
        assert_eq!(read_exactly(to, 4), what);
    }
}

/// BIND in SOCKS 4 or 4a: the bytes, and how long replies are.
fn bind4(address: &str, name: &[u8]) -> Vec<u8> {
    let address = v4(address);
    [&[4, 2], &address[4..], &address[..4], b"\0", name].concat()
}

#[test]
fn bind_through_a_server_of_this_program_in_every_version() {
    let far = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"]).start();
    let far = far_address(&far);
    let plain = Peer::valid(Duration::ZERO);
    for chain in [
        vec![uri("socks5", far.1)],
        vec![uri("socks5h", far.1)],
        vec![uri("socks4", far.1)],
        vec![uri("socks4a", far.1)],
        vec![uri("socks5", plain.address()), uri("socks5", far.1)],
    ] {
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        let (server, address) = serve(&chain, &[]);
        server.wait_log("connecting through", SOON);
        for any in ["127.0.0.1:21", "127.0.0.1:0", "0.0.0.0:0"] {
            let client = ask(address, &request(2, any));
            let bound = granted(&client);
            let peer = connect(bound).expect("connect");
            assert_eq!(granted(&client), peer.local_addr().expect("bound"));
            talk(&client, &peer);
        }
        // SOCKS4a's name is looked up here or there, as the scheme says.
        for bytes in [
            bind4("127.0.0.1:21", b""),
            bind4("0.0.0.1:21", b"localhost\0"),
        ] {
            let mut client = connect(address).expect("connect");
            client.write_all(&bytes).expect("write");
            let first = read_exactly(&client, 8);
            assert_eq!(
                (first[..2].to_vec(), &first[4..]),
                (vec![0, 90], &[127, 0, 0, 1][..])
            );
            let port = u16::from_be_bytes([first[2], first[3]]);
            let peer = connect(([127, 0, 0, 1], port).into()).expect("connect");
            let second = read_exactly(&client, 8);
            assert_eq!(second[..2], [0, 90]);
            let port = peer.local_addr().expect("bound").port();
            assert_eq!(second[2..4], port.to_be_bytes());
            talk(&client, &peer);
        }
    }
}

fn far_address(server: &Sockhop) -> (&Sockhop, SocketAddr) {
    (server, server.wait_listening(SOON))
}

#[test]
fn the_last_proxy_is_asked_for_the_peer_and_its_replies_are_passed_on() {
    for (asked, told, shown, came, told_of) in [
        // What is told is told.
        (
            "192.0.2.7:21",
            "192.0.2.9:4000",
            "192.0.2.9:4000",
            "192.0.2.7:20",
            "192.0.2.7:20",
        ),
        // The proxy itself.
        (
            "192.0.2.7:21",
            "0.0.0.0:4000",
            "127.0.0.1:4000",
            "192.0.2.7:20",
            "192.0.2.7:20",
        ),
        (
            "192.0.2.7:21",
            "127.0.0.8:4000",
            "127.0.0.8:4000",
            "192.0.2.7:20",
            "192.0.2.7:20",
        ),
        // A proxy that does not say who came was told whom to let in.
        (
            "192.0.2.7:21",
            "192.0.2.9:4000",
            "192.0.2.9:4000",
            "0.0.0.0:0",
            "0.0.0.0:0",
        ),
        (
            "0.0.0.0:0",
            "192.0.2.9:4000",
            "192.0.2.9:4000",
            "192.0.2.7:20",
            "192.0.2.7:20",
        ),
    ] {
        let proxy = scripted([
            Step::Send(reply(0, told)),
            Step::Send([reply(0, came), b"220 ".to_vec()].concat()),
            Step::Read(9),
        ]);
        let via = uri("socks5", proxy.address());
        let (server, address) = serve(&[&via], &["--allow-dest", "192.0.2.0/24"]);
        let mut client = ask(address, &[request(2, asked), b"early".to_vec()].concat());
        assert_eq!(granted(&client).to_string(), shown);
        assert_eq!(granted(&client).to_string(), told_of, "{asked}");
        // Nothing is lost that came early on either side.
        assert_eq!(read_exactly(&client, 4), b"220 ");
        client.write_all(b"USER").expect("write");
        let heard = [&[5, 1, 0], &request(2, asked)[..], b"earlyUSER"].concat();
        assert!(wait_until(SOON, || proxy.heard()[0] == heard));
        server.wait_status(|status| status["bytes"]["up"] == 9, SOON);
        drop(client);
        server.wait_log(&format!("BIND for {asked}, came from {told_of}"), SOON);
    }
}

#[test]
fn a_name_goes_to_the_proxy_that_looks_it_up() {
    let name = b"\x03\x0cpeer.invalid\0\x15";
    let length = 3 + name.len();
    let proxy = Peer::scripted(vec![
        Step::Read(3),
        Step::Send(vec![5, 0]),
        Step::Read(length),
        Step::Send([reply(0, "192.0.2.9:4000"), reply(0, "10.1.1.1:20")].concat()),
    ]);
    let via = uri("socks5h", proxy.address());
    let (_server, address) = serve(&[&via], &["--deny-dest", "example.org"]);
    let wanted = [&[5, 2, 0], &name[..]].concat();
    let client = ask(address, &wanted);
    assert_eq!(granted(&client).to_string(), "192.0.2.9:4000");
    assert_eq!(granted(&client).to_string(), "10.1.1.1:20");
    assert_eq!(proxy.heard()[0][3..], wanted);
    // Rules for names hold, and one that is looked up here is never asked for.
    let denied = ask(address, b"\x05\x02\0\x03\x0bexample.org\0\x15");
    assert_eq!(refused(&denied), 2);
    let (_server, address) = serve(&[&uri("socks5", proxy.address())], &[]);
    assert_eq!(refused(&ask(address, &wanted)), 4);
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn strangers_and_bad_replies_end_a_bind() {
    let ok = reply(0, "192.0.2.9:4000");
    let named = b"\x05\0\0\x03\x05proxy\x0f\xa0".to_vec();
    let proxy = Peer::silent();
    let via = uri("socks5", proxy.address());
    let arguments = ["--allow-dest", "192.0.2.0/24", "--bind-timeout", "500ms"];
    let (server, address) = serve(&[&via], &arguments);
    let mut faults = 0;
    for (asked, rest, first, second) in [
        // Before the first reply.
        ("192.0.2.7:21", vec![Step::HalfClose], 1, None),
        ("192.0.2.7:21", vec![Step::Send(named.clone())], 1, None),
        (
            "192.0.2.7:21",
            vec![Step::Send(reply(0, "192.0.2.9:0"))],
            1,
            None,
        ),
        (
            "192.0.2.7:21",
            vec![Step::Send(reply(7, "0.0.0.0:0"))],
            7,
            None,
        ),
        // Between the replies.
        (
            "192.0.2.7:21",
            vec![Step::Send(ok.clone()), Step::HalfClose],
            0,
            Some(1),
        ),
        (
            "192.0.2.7:21",
            vec![Step::Send(ok.clone()), Step::Reset],
            0,
            Some(1),
        ),
        (
            "192.0.2.7:21",
            vec![Step::Send([&ok[..], &[5, 0, 0]].concat()), Step::HalfClose],
            0,
            Some(1),
        ),
        (
            "192.0.2.7:21",
            vec![Step::Send([&ok[..], b"HTTP/1.1 400"].concat())],
            0,
            Some(1),
        ),
        (
            "192.0.2.7:21",
            vec![Step::Send([ok.clone(), reply(4, "0.0.0.0:0")].concat())],
            0,
            Some(4),
        ),
        // Somebody else; of whom nothing is known where anybody may come.
        (
            "192.0.2.7:21",
            vec![Step::Send([ok.clone(), reply(0, "192.0.2.8:20")].concat())],
            0,
            Some(2),
        ),
        (
            "0.0.0.0:0",
            vec![Step::Send([ok.clone(), reply(0, "10.0.0.1:20")].concat())],
            0,
            Some(2),
        ),
        (
            "0.0.0.0:0",
            vec![Step::Send([ok.clone(), reply(0, "0.0.0.0:0")].concat())],
            0,
            Some(2),
        ),
        (
            "0.0.0.0:0",
            vec![Step::Send([ok.clone(), named].concat())],
            0,
            Some(2),
        ),
        // Nobody in time.
        ("192.0.2.7:21", vec![Step::Send(ok.clone())], 0, Some(6)),
    ] {
        let shown = format!("{asked}: {rest:?}");
        proxy.behave(Behaviour::Scripted(script(rest)));
        let client = ask(address, &request(2, asked));
        let code = match second {
            None => first,
            Some(second) => {
                assert_eq!(next_reply(&client).0, first, "{shown}");
                second
            }
        };
        assert_eq!(refused(&client), code, "{shown}");
        faults += usize::from(code == 1);
        assert!(proxy.wait_open(0, SOON), "{shown}");
    }
    let reasons = &server.status()["connections"]["refused_by_reason"];
    assert_eq!(reasons["via"], faults, "{reasons}");
    // SOCKS 4 has no room for the address of an IPv6 port.
    let v6 = [&[5, 0, 0, 4][..], &[0x20; 16], &[0x0f, 0xa0]].concat();
    proxy.behave(Behaviour::Scripted(script([Step::Send(v6)])));
    let mut client = connect(address).expect("connect");
    client
        .write_all(&bind4("192.0.2.7:21", b""))
        .expect("write");
    assert_eq!(read_exactly(&client, 8)[..2], [0, 91]);
}

#[test]
fn rules_hold_for_peers_before_the_proxy_is_asked() {
    let proxy = Peer::silent();
    let via = uri("socks5", proxy.address());
    let (server, address) = serve(&[&via], &["--deny-dest", "192.0.2.0/24:21"]);
    for peer in ["10.0.0.1:0", "192.0.2.7:21"] {
        assert_eq!(refused(&ask(address, &request(2, peer))), 2, "{peer}");
    }
    let own = address.to_string();
    assert_eq!(refused(&ask(address, &request(2, &own))), 2);
    server.wait_status(
        |status| status["connections"]["refused_by_reason"]["rules"] == 3,
        SOON,
    );
    let (_server, address) = serve(&[&via], &["--no-bind", "--no-udp"]);
    for command in [2, 3] {
        assert_eq!(refused(&ask(address, &request(command, "127.0.0.1:0"))), 7);
    }
    assert_eq!(proxy.accepted(), 0);
}

#[test]
fn waiting_for_a_peer_costs_no_thread_and_ends_with_the_client() {
    let proxy = scripted([Step::Send(reply(0, "127.0.0.1:4000"))]);
    let via = uri("socks5", proxy.address());
    let (server, address) = serve(&[&via], &["--workers", "4"]);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let client = ask(address, &request(2, "127.0.0.1:0"));
            granted(&client);
            client
        })
        .collect();
    assert!(server.threads() <= 16, "{} threads", server.threads());
    drop(waiting);
    assert!(proxy.wait_open(0, SOON));
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
}

#[test]
fn a_peer_that_comes_is_exchanged_with() {
    // The proxy's connection is the peer's once the second reply is there.
    let proxy = Peer::scripted(script([
        Step::Send(reply(0, "127.0.0.1:4000")),
        Step::Send(reply(0, "127.0.0.1:20")),
        Step::Read(5),
        Step::Send(b"hello".to_vec()),
    ]));
    let (_server, address) = serve(&[&uri("socks5", proxy.address())], &[]);
    let client = ask(address, &request(2, "127.0.0.1:0"));
    granted(&client);
    granted(&client);
    assert_eq!(exchange(&client, b"12345").expect("exchange"), b"hello");
}

/// A socket with a time limit on reading.
fn udp() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(SOON)).expect("time limit");
    socket
}

fn at(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

/// A datagram of SOCKS 5 to or from an IPv4 address.
fn datagram(address: &SocketAddr, payload: &[u8]) -> Vec<u8> {
    [b"\0\0\0\x01", &v4(&address.to_string())[..], payload].concat()
}

/// A datagram of SOCKS 5 to a name.
fn named(name: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("short");
    let port = port.to_be_bytes();
    [&[0, 0, 0, 3, length], name.as_bytes(), &port, payload].concat()
}

/// A client with its association.
struct Client {
    control: TcpStream,
    socket: UdpSocket,
}

impl Client {
    #[track_caller]
    fn new(server: SocketAddr) -> Self {
        let control = ask(server, &request(3, "0.0.0.0:0"));
        let relay = granted(&control);
        assert_eq!(relay.ip(), server.ip());
        let socket = udp();
        socket.connect(relay).expect("connect");
        Self { control, socket }
    }

    fn send(&self, bytes: &[u8]) {
        self.socket.send(bytes).expect("send");
    }

    #[track_caller]
    fn receive(&self) -> Vec<u8> {
        receive(&self.socket).0
    }
}

#[track_caller]
fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (count, from) = socket.recv_from(&mut bytes).expect("a datagram");
    bytes.truncate(count);
    (bytes, from)
}

/// Waits until nobody takes the client's datagrams any more. One that was sent too early has no answer.
#[track_caller]
fn wait_closed(client: &UdpSocket) {
    let briefly = Some(Duration::from_millis(50));
    client.set_read_timeout(briefly).expect("time limit");
    assert!(wait_until(SOON, || is_closed(client)));
}

/// A proxy that grants an association at this port.
fn relaying(relay: &UdpSocket) -> Peer {
    scripted([Step::Send(reply(0, &at(relay).to_string()))])
}

#[test]
fn datagrams_through_a_server_of_this_program() {
    let (far, far_address) = serve(&[], &[]);
    let echo = echo_datagrams();
    for scheme in ["socks5", "socks5h"] {
        let (server, address) = serve(&[&uri(scheme, far_address)], &[]);
        server.wait_log("connecting through", SOON);
        let client = Client::new(address);
        for payload in [&b"hello"[..], b"", &[7; 1400], &[8; 60_000]] {
            client.send(&datagram(&echo, payload));
            assert!(client.receive() == datagram(&echo, payload));
            // Who answers is an address, whoever looked up the name.
            client.send(&named("localhost", echo.port(), payload));
            assert!(client.receive() == datagram(&echo, payload));
        }
        let associations = |count: usize| {
            server.wait_status(|status| status["associations"] == count, SOON);
            far.wait_status(|status| status["associations"] == count, SOON);
        };
        associations(1);
        let both = json!({"up": 122_810, "down": 122_810});
        server.wait_status(|status| status["bytes"] == both, SOON);
        drop(client.control);
        associations(0);
        wait_closed(&client.socket);
    }
    let (_server, address) = serve(&[&uri("socks5", far_address)], &[]);
    let client = Client::new(address);
    drop(far);
    assert_ne!(expect_end(&client.control, SOON), Observed::Silent);
    wait_closed(&client.socket);
}

#[test]
fn the_relay_is_where_the_proxy_tells_or_the_proxy_itself() {
    let relay = udp();
    let port = at(&relay).port();
    let far: SocketAddr = "127.0.0.5:53".parse().expect("an address");
    let told = |ip: &str| reply(0, &format!("{ip}:{port}"));
    let v6 = [&[5, 0, 0, 4][..], &[0; 16], &port.to_be_bytes()].concat();
    for told in [told("127.0.0.1"), told("0.0.0.0"), v6] {
        let proxy = scripted([Step::Send(told.clone())]);
        let (_server, address) = serve(&[&uri("socks5h", proxy.address())], &[]);
        let client = Client::new(address);
        // Not known yet where datagrams come from.
        assert_eq!(proxy.heard()[0][3..], request(3, "0.0.0.0:0"));
        client.send(&datagram(&far, b"up"));
        let (heard, from) = receive(&relay);
        assert_eq!(heard, datagram(&far, b"up"), "{told:?}");
        relay.send_to(&datagram(&far, b"down"), from).expect("send");
        assert_eq!(client.receive(), datagram(&far, b"down"));
        // The name goes as it is.
        client.send(&named("name.invalid", 53, b"up"));
        assert_eq!(receive(&relay).0, named("name.invalid", 53, b"up"));
    }
    for (bytes, code) in [
        (b"\x05\0\0\x03\x05proxy\x0f\xa0".to_vec(), 1),
        (reply(0, "192.0.2.9:0"), 1),
        (reply(7, "0.0.0.0:0"), 7),
        (reply(1, "0.0.0.0:0"), 1),
        (b"\x05\0\0\x09".to_vec(), 1),
    ] {
        let proxy = scripted([Step::Send(bytes.clone()), Step::HalfClose]);
        let (server, address) = serve(&[&uri("socks5", proxy.address())], &[]);
        let client = ask(address, &request(3, "0.0.0.0:0"));
        assert_eq!(refused(&client), code, "{bytes:02x?}");
        server.wait_status(|status| status["associations"] == 0, SOON);
        assert!(proxy.wait_open(0, SOON));
    }
}

#[test]
fn what_is_no_datagram_of_the_proxy_is_dropped() {
    let (relay, stranger) = (udp(), udp());
    let proxy = relaying(&relay);
    let (server, address) = serve(&[&uri("socks5", proxy.address())], &[]);
    let client = Client::new(address);
    let far: SocketAddr = "127.0.0.5:53".parse().expect("an address");
    client.send(&datagram(&far, b"up"));
    let (_, from) = receive(&relay);
    // The kernel drops what another port sends, with a good header or without.
    let _ = stranger.send_to(&datagram(&far, b"stranger"), from);
    let other: SocketAddr = "127.0.0.6:53".parse().expect("an address");
    let mut cut = datagram(&far, b"");
    cut.truncate(9);
    let mut fragment = datagram(&far, b"fragment");
    fragment[2] = 1;
    let mut reserved = datagram(&far, b"reserved");
    reserved[1] = 1;
    let mut kind = datagram(&far, b"kind");
    kind[3] = 9;
    for (bytes, reason) in [
        (vec![], "short"),
        (cut, "short"),
        (fragment, "fragment"),
        (reserved, "reserved"),
        (kind, "address-type"),
        // The client has not sent there, and nobody knows who a name is.
        (datagram(&other, b"unsolicited"), "unsolicited"),
        (named("far.invalid", 53, b"unsolicited"), "unsolicited"),
    ] {
        let before = server.status()["dropped_datagrams"][reason].as_u64();
        relay.send_to(&bytes, from).expect("send");
        wait_dropped(&server, reason, before.unwrap_or(0) + 1);
    }
    // The other port of an address may answer; what lies behind all that is not lost.
    let near: SocketAddr = "127.0.0.5:54".parse().expect("an address");
    relay
        .send_to(&datagram(&near, b"down"), from)
        .expect("send");
    assert_eq!(client.receive(), datagram(&near, b"down"));
    // The same of the client.
    client.send(&[&[0, 0, 1, 1], &datagram(&far, b"fragment")[4..]].concat());
    wait_dropped(&server, "fragment", 2);
    client.send(b"\0\0\0\x01\x7f");
    wait_dropped(&server, "short", 3);
}

#[test]
fn the_rules_hold_for_datagrams_before_the_proxy_gets_them() {
    let relay = udp();
    let proxy = relaying(&relay);
    let far: SocketAddr = "127.0.0.5:53".parse().expect("an address");
    let denied = ["--deny-dest", "127.0.0.6", "--deny-dest", "example.org"];
    for scheme in ["socks5", "socks5h"] {
        let (server, address) = serve(&[&uri(scheme, proxy.address())], &denied);
        let client = Client::new(address);
        for (count, bytes) in [
            datagram(&"127.0.0.6:53".parse().expect("an address"), b"denied"),
            datagram(&"10.0.0.1:53".parse().expect("an address"), b"denied"),
            named("www.example.org", 53, b"denied"),
        ]
        .iter()
        .enumerate()
        {
            client.send(bytes);
            wait_dropped(&server, "rules", count as u64 + 1);
        }
        client.send(&named("2130706433", 53, b"a number"));
        wait_dropped(&server, "name", 1);
        client.send(&datagram(&far, b"up"));
        let (heard, from) = receive(&relay);
        assert_eq!(heard, datagram(&far, b"up"));
        // Of what a name leads to nobody knows here, so whoever answers may. Before there was one they may not.
        let other = "127.0.0.7:53".parse().expect("an address");
        relay
            .send_to(&datagram(&other, b"early"), from)
            .expect("send");
        wait_dropped(&server, "unsolicited", 1);
        client.send(&named("localhost", 53, b"name"));
        let (heard, _) = receive(&relay);
        relay
            .send_to(&datagram(&other, b"answer"), from)
            .expect("send");
        if scheme == "socks5" {
            assert_eq!(
                heard,
                datagram(&"127.0.0.1:53".parse().expect("an address"), b"name")
            );
            wait_dropped(&server, "unsolicited", 2);
        } else {
            assert_eq!(heard, named("localhost", 53, b"name"));
            assert_eq!(client.receive(), datagram(&other, b"answer"));
        }
    }
}

#[test]
fn an_association_ends_with_either_connection_and_when_it_is_idle() {
    let relay = udp();
    let closes = scripted([
        Step::Send([reply(0, &at(&relay).to_string()), b"noise".to_vec()].concat()),
        Step::Wait(Duration::from_millis(50)),
        Step::Close,
    ]);
    let (server, address) = serve(&[&uri("socks5", closes.address())], &[]);
    let client = Client::new(address);
    assert_eq!(expect_end(&client.control, SOON), Observed::Eof);
    server.wait_log("the proxy closed", SOON);
    wait_closed(&client.socket);

    let proxy = relaying(&relay);
    let (server, address) = serve(&[&uri("socks5", proxy.address())], &["--udp-timeout", "1s"]);
    let client = Client::new(address);
    client.send(&datagram(
        &"127.0.0.5:53".parse().expect("an address"),
        b"last word",
    ));
    drop(client);
    assert_eq!(receive(&relay).0[10..], *b"last word");
    assert!(proxy.wait_open(0, SOON));
    let idle = Client::new(address);
    assert_eq!(expect_end(&idle.control, SOON), Observed::Eof);
    server.wait_log(": idle", SOON);
    assert!(proxy.wait_open(0, SOON));

    // A relay that is gone costs its datagrams, not the association.
    let (_server, address) = serve(&[&uri("socks5", proxy.address())], &[]);
    let client = Client::new(address);
    let to = "127.0.0.5:53".parse().expect("an address");
    let port = at(&relay);
    drop(relay);
    for _ in 0..3 {
        client.send(&datagram(&to, b"lost"));
    }
    let relay = UdpSocket::bind(port).expect("bind again");
    relay.set_read_timeout(Some(SOON)).expect("time limit");
    client.send(&datagram(&to, b"found"));
    while !receive(&relay).0.ends_with(b"found") {}
}

#[test]
fn associations_through_a_proxy_have_limits_and_cost_no_thread() {
    let relay = udp();
    let proxy = relaying(&relay);
    let via = uri("socks5", proxy.address());
    let arguments = ["--max-associations", "20", "--workers", "4"];
    let (server, address) = serve(&[&via], &arguments);
    let clients: Vec<_> = (0..20).map(|_| Client::new(address)).collect();
    assert!(server.threads() <= 16, "{} threads", server.threads());
    assert_eq!(refused(&ask(address, &request(3, "0.0.0.0:0"))), 1);
    assert!(proxy.wait_open(20, SOON));
    drop(clients);
    assert!(proxy.wait_open(0, SOON));
    server.wait_status(|status| status["associations"] == 0, SOON);
    Client::new(address);
}

#[test]
fn clients_of_a_unix_socket_have_bind_and_no_datagrams() {
    let proxy = scripted([
        Step::Send(reply(0, "192.0.2.9:4000")),
        Step::Send(reply(0, "127.0.0.1:20")),
    ]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socks");
    let listen = format!("unix:{}", path.display());
    let via = uri("socks5", proxy.address());
    let arguments = ["--listen", &listen, "--via", &via];
    let _server =
        Sockhop::serve(&[&arguments[..], &["--allow-dest", "127.0.0.0/8"]].concat()).start();
    assert!(wait_until(SOON, || UnixStream::connect(&path).is_ok()));
    for (command, answer) in [
        (3, reply(7, "0.0.0.0:0")),
        (
            2,
            [reply(0, "192.0.2.9:4000"), reply(0, "127.0.0.1:20")].concat(),
        ),
    ] {
        let mut stream = UnixStream::connect(&path).expect("connect");
        stream.set_read_timeout(Some(SOON)).expect("time limit");
        let bytes = [&[5, 1, 0], &request(command, "127.0.0.1:0")[..]].concat();
        stream.write_all(&bytes).expect("write");
        let mut heard = vec![0; 2 + answer.len()];
        stream.read_exact(&mut heard).expect("read");
        assert_eq!(heard[2..], answer);
    }
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn a_proxy_that_is_reached_over_the_other_family() {
    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let (_far, far) = serve(&[], &["--listen", "[::1]:0"]);
    let (_server, address) = serve(&[&uri("socks5", far)], &[]);
    let echo = echo_datagrams();
    let client = Client::new(address);
    client.send(&datagram(&echo, b"hello"));
    assert_eq!(client.receive(), datagram(&echo, b"hello"));
    // And a destination there.
    let sixth = UdpSocket::bind("[::1]:0").expect("bind");
    sixth.set_read_timeout(Some(SOON)).expect("time limit");
    let port = at(&sixth).port().to_be_bytes();
    let whole = [&[0, 0, 0, 4][..], &[0; 15], &[1], &port, b"hello"].concat();
    client.send(&whole);
    common::echo_one(&sixth);
    assert_eq!(client.receive(), whole);
}

#[test]
#[ignore = "needs danted"]
fn through_dante() {
    let (_dante, proxy) = dante();
    let echo = echo_datagrams();
    for scheme in ["socks4", "socks5"] {
        let (server, address) = serve(&[&uri(scheme, proxy)], &[]);
        let client = ask(address, &request(2, "127.0.0.1:0"));
        let bound = granted(&client);
        let peer = connect(bound).expect("connect");
        assert_eq!(
            granted(&client),
            peer.local_addr().expect("bound"),
            "{scheme}"
        );
        talk(&client, &peer);
        server.wait_log("connecting through", SOON);
        // It ends a BIND when another one comes.
        let client = ask(address, &request(2, "127.0.0.1:0"));
        let bound = granted(&client);
        let stranger = come_from("127.0.0.2", bound);
        let (code, _) = next_reply(&client);
        assert_ne!(code, 0, "{scheme}");
        drop(stranger);
    }
    let (_server, address) = serve(&[&uri("socks5h", proxy)], &[]);
    let client = Client::new(address);
    for payload in [&b"hello"[..], &[7; 1400], &[8; 30_000]] {
        client.send(&datagram(&echo, payload));
        assert!(client.receive() == datagram(&echo, payload));
        client.send(&named("localhost", echo.port(), payload));
        assert!(client.receive() == datagram(&echo, payload));
    }
}

/// Connects from this address.
fn come_from(ip: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let from: SocketAddr = format!("{ip}:0").parse().expect("an address");
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}
