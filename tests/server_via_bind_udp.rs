//! BIND and UDP ASSOCIATE of `sockhop serve --via`, as clients and proxies meet them. All bytes of SOCKS 4 and 5 are written
//! by hand.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{
    Behaviour, Observed, Peer, SOON, Sockhop, Step, connect, exchange, expect_end, wait_until,
};

/// A server that goes through these proxies, and lets clients go to loopback.
fn serve(proxies: &[&str], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let allowed = ["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1", "-v"];
    let server = Sockhop::serve(&allowed)
        .args(proxies.iter().flat_map(|proxy| ["--via", proxy]))
        .args(arguments)
        .start();
    let address = server.wait_listening(SOON);
    (server, address)
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

#[track_caller]
fn read_exactly(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("read");
    bytes
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
