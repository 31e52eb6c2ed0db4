//! UDP ASSOCIATE of `sockhop serve` as clients meet it. All but the last tests write their bytes by hand.
#![cfg(feature = "server")]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{
    Observed, SOON, Sockhop, Target, connect, echo_one, exchange, expect_end, is_closed, reset,
    socks5_connect, wait_dropped, wait_until,
};
use serde_json::json;
use sockhop::client::Dialer;

/// A server that lets clients go to loopback.
fn serve(arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let allowed = ["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1", "-v"];
    let server = Sockhop::serve(&[&allowed, arguments].concat()).start();
    let address = server.wait_listening(SOON);
    (server, address)
}

/// A socket with a time limit on reading.
fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("bind");
    socket.set_read_timeout(Some(SOON)).expect("time limit");
    socket
}

/// A client with its association.
struct Client {
    control: TcpStream,
    socket: UdpSocket,
    relay: SocketAddr,
}

/// An address as SOCKS5 writes it.
fn address(address: SocketAddr) -> Vec<u8> {
    let mut bytes = match address {
        SocketAddr::V4(v4) => [&[1], &v4.ip().octets()[..]].concat(),
        SocketAddr::V6(v6) => [&[4], &v6.ip().octets()[..]].concat(),
    };
    bytes.extend(address.port().to_be_bytes());
    bytes
}

fn name(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("short");
    [&[3, length], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// Asks for an association: the connection, the code and the address of the reply.
fn ask(server: SocketAddr, announced: SocketAddr) -> (TcpStream, u8, SocketAddr) {
    let mut stream = connect(server).expect("connect");
    let bytes = [vec![5, 1, 0, 5, 3, 0], address(announced)].concat();
    stream.write_all(&bytes).expect("write");
    let mut head = [0; 6];
    stream.read_exact(&mut head).expect("read");
    assert_eq!((&head[..3], head[4]), (&[5, 0, 5][..], 0));
    let mut rest = vec![0; if head[5] == 1 { 6 } else { 18 }];
    stream.read_exact(&mut rest).expect("read");
    (stream, head[3], socket_address(&rest))
}

/// An address, then a port.
fn socket_address(bytes: &[u8]) -> SocketAddr {
    let (ip, port) = bytes.split_at(bytes.len() - 2);
    let port = u16::from_be_bytes(port.try_into().expect("two bytes"));
    match <[u8; 4]>::try_from(ip) {
        Ok(ip) => (ip, port).into(),
        Err(_) => (<[u8; 16]>::try_from(ip).expect("16 bytes"), port).into(),
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Client {
    #[track_caller]
    fn new(server: SocketAddr) -> Self {
        let (control, code, relay) = ask(server, ANY);
        assert_eq!(code, 0);
        assert_eq!(relay.ip(), server.ip());
        let socket = udp(&SocketAddr::new(server.ip(), 0).to_string());
        Self {
            control,
            socket,
            relay,
        }
    }

    fn send_raw(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.relay).expect("send");
    }

    fn send(&self, payload: &[u8], to: SocketAddr) {
        self.send_raw(&[&[0, 0, 0], &address(to)[..], payload].concat());
    }

    fn send_to_name(&self, payload: &[u8], to: &str, port: u16) {
        self.send_raw(&[&[0, 0, 0], &name(to, port)[..], payload].concat());
    }

    /// The next datagram: its payload and its true source.
    #[track_caller]
    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let (count, from) = self.socket.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(from, self.relay);
        assert_eq!(buffer[..3], [0, 0, 0]);
        let end = match buffer[3] {
            1 => 10,
            4 => 22,
            other => panic!("address type {other}"),
        };
        let source = socket_address(&buffer[4..end]);
        (buffer[end..count].to_vec(), source)
    }

    /// To `far` and back.
    #[track_caller]
    fn exchange(&self, far: &UdpSocket, payload: &[u8]) {
        let to = far.local_addr().expect("bound");
        self.send(payload, to);
        echo_one(far);
        assert_eq!(self.receive(), (payload.to_vec(), to));
    }
}

/// A UDP port that is free, outside of the range that systems take theirs from when they are not told.
fn free_port() -> u16 {
    let skipped = std::process::id() as usize * 17 % 10_000;
    (20_000..32_000)
        .skip(skipped)
        .find(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}

#[test]
fn datagrams_go_both_ways_in_both_families() {
    let (server, v4) = serve(&[]);
    let (_other, v6) = serve(&["--listen", "[::1]:0"]);
    for address in [v4, v6] {
        let client = Client::new(address);
        for far in [udp("127.0.0.1:0"), udp("[::1]:0")] {
            client.exchange(&far, b"hello");
            client.exchange(&far, b"");
            client.exchange(&far, b"again");
        }
    }
    let status = server.wait_status(
        |status| status["bytes"] == json!({"up": 20, "down": 20}),
        SOON,
    );
    assert_eq!(status["associations"], 0, "the client has gone");
    assert_eq!(status.get("dropped_datagrams"), None);
    server.wait_log(
        "datagrams: 6 up (20 bytes), 6 down (20 bytes), 0 dropped",
        SOON,
    );
}

#[test]
fn a_client_has_one_port_whomever_it_sends_to() {
    let (_server, address) = serve(&[]);
    let client = Client::new(address);
    let ports = [(); 3].map(|()| {
        let far = udp("127.0.0.1:0");
        client.send(b"x", far.local_addr().unwrap());
        echo_one(&far)
    });
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
}

#[test]
fn ipv4_over_a_listener_of_both_families_is_told_as_ipv4() {
    let (_server, address) = serve(&["--listen", "[::]:0"]);
    let client = Client::new((Ipv4Addr::LOCALHOST, address.port()).into());
    let far = udp("127.0.0.1:0");
    client.exchange(&far, b"hello");
    let mapped = SocketAddr::new(
        Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        far.local_addr().unwrap().port(),
    );
    client.send(b"mapped", mapped);
    echo_one(&far);
    assert_eq!(client.receive().1, far.local_addr().unwrap());
}

#[test]
fn names_are_looked_up_here_and_the_true_source_is_told() {
    let (server, address) = serve(&[]);
    let client = Client::new(address);
    let far = udp("127.0.0.1:0");
    let to = far.local_addr().unwrap();
    // ::1, if that is the first address, has nobody who would answer.
    let (server4, address4) = {
        let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "-v"]).start();
        let address = server.wait_listening(SOON);
        (server, address)
    };
    let client4 = Client::new(address4);
    for (payload, host) in [(&b"one"[..], "localhost"), (b"two", "LocalHost")] {
        client4.send_to_name(payload, host, to.port());
        echo_one(&far);
        assert_eq!(client4.receive(), (payload.to_vec(), to));
    }
    // Text of an address is the address.
    client.send_to_name(b"three", "127.0.0.1", to.port());
    echo_one(&far);
    assert_eq!(client.receive(), (b"three".to_vec(), to));
    assert_eq!(server4.status().get("dropped_datagrams"), None);

    client.send_to_name(b"x", "no-such-name.invalid", 53);
    wait_dropped(&server, "look-up", 1);
    // The failure is remembered, and in the way of nobody.
    client.send_to_name(b"x", "no-such-name.invalid", 53);
    wait_dropped(&server, "look-up", 2);
    client.send_to_name(b"x", "2130706433", 53);
    wait_dropped(&server, "name", 1);
    client.exchange(&far, b"four");
}

#[test]
fn datagrams_to_a_name_keep_their_order() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"]).start();
    let client = Client::new(server.wait_listening(SOON));
    let far = udp("127.0.0.1:0");
    for number in 0..8 {
        client.send_to_name(&[number], "localhost", far.local_addr().unwrap().port());
    }
    for number in 0..8 {
        let mut buffer = [0; 16];
        assert_eq!(far.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], number);
    }
}

#[test]
fn the_largest_datagrams_and_those_that_are_too_large() {
    let (server, v4) = serve(&[]);
    let (other, v6) = serve(&["--listen", "[::1]:0"]);
    for (server, address, far, most, header) in [
        (&server, v4, udp("127.0.0.1:0"), 65_507, 10),
        (&other, v6, udp("[::1]:0"), 65_527, 22),
    ] {
        let client = Client::new(address);
        let payload: Vec<u8> = (0..=250).cycle().take(most - header).collect();
        client.exchange(&far, &payload);
        // It can be sent here, but not passed on with a header.
        client.send(b"x", far.local_addr().unwrap());
        let from = echo_one(&far);
        assert_eq!(client.receive().0, b"x");
        far.send_to(&payload, from).unwrap();
        assert_eq!(client.receive().0, payload);
        for (count, length) in [(1, most - header + 1), (2, most)] {
            far.send_to(&vec![7; length], from).unwrap();
            wait_dropped(server, "too-large", count);
        }
        client.exchange(&far, b"next");
    }
}

#[test]
fn only_the_clients_address_and_then_its_port() {
    let (server, address) = serve(&[]);
    let client = Client::new(address);
    let far = udp("127.0.0.1:0");
    let datagram = [
        &[0, 0, 0],
        &crate::address(far.local_addr().unwrap())[..],
        b"x",
    ]
    .concat();
    let elsewhere = udp("127.0.0.2:0");
    elsewhere.send_to(&datagram, client.relay).unwrap();
    wait_dropped(&server, "stranger", 1);
    // Not a good one: it pins nothing.
    let same_machine = udp("127.0.0.1:0");
    same_machine.send_to(b"\0\0\x01", client.relay).unwrap();
    wait_dropped(&server, "short", 1);
    client.exchange(&far, b"hello");
    // From here on the kernel refuses others, so there is nothing to count.
    for stranger in [&elsewhere, &same_machine] {
        stranger.send_to(&datagram, client.relay).unwrap();
    }
    client.exchange(&far, b"again");
    far.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(far.recv(&mut [0; 16]).is_err(), "nothing of a stranger");
    same_machine
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(same_machine.recv(&mut [0; 16]).is_err());
    let status = server.status();
    let dropped = json!({"stranger": 1, "short": 1});
    assert_eq!(status["dropped_datagrams"], dropped);
}

#[test]
fn an_announced_port_is_the_only_one() {
    let (_server, address) = serve(&[]);
    let far = udp("127.0.0.1:0");
    for ip in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST] {
        let socket = udp("127.0.0.1:0");
        let port = socket.local_addr().unwrap().port();
        let (control, code, relay) = ask(address, (ip, port).into());
        assert_eq!(code, 0);
        let other = Client {
            control: control.try_clone().unwrap(),
            socket: udp("127.0.0.1:0"),
            relay,
        };
        other.send(b"not me", far.local_addr().unwrap());
        let client = Client {
            control,
            socket,
            relay,
        };
        client.exchange(&far, b"me");
    }
    // Another address: there is a translator between, so the port is not right either. The address still is the connection's.
    let (control, code, relay) = ask(address, "192.0.2.1:9".parse().unwrap());
    assert_eq!(code, 0);
    let socket = udp("127.0.0.1:0");
    let client = Client {
        control,
        socket,
        relay,
    };
    client.exchange(&far, b"me");
}

#[test]
fn bad_datagrams_are_dropped_and_counted_and_good_ones_pass() {
    let (server, address) = serve(&[]);
    let client = Client::new(address);
    let far = udp("127.0.0.1:0");
    let to = crate::address(far.local_addr().unwrap());
    let with = |head: [u8; 3], rest: &[u8]| [&head[..], rest].concat();
    let nobody = crate::address("127.0.0.1:0".parse().unwrap());
    for (reason, datagrams) in [
        (
            "reserved",
            vec![
                with([1, 0, 0], &to),
                with([0, 1, 0], &to),
                b"GET / HTTP/1.1\r\n".to_vec(),
            ],
        ),
        (
            "fragment",
            vec![
                with([0, 0, 1], &to),
                with([0, 0, 0x80], &to),
                with([0, 0, 0x81], &to),
            ],
        ),
        (
            "short",
            vec![
                vec![],
                vec![0, 0],
                vec![0, 0, 0],
                with([0, 0, 0], &to[..6]),
                with([0, 0, 0], &[3, 200, b'a', b'b', 0, 80]),
                with([0, 0, 0], &[4; 10]),
            ],
        ),
        (
            "address-type",
            vec![
                with([0, 0, 0], &[0, 1, 2, 3, 4, 5, 6, 7]),
                with([0, 0, 0], &[9]),
            ],
        ),
        (
            "name",
            vec![
                with([0, 0, 0], &[3, 0, 0, 80]),
                with([0, 0, 0], &name("a\0b", 80)),
                with([0, 0, 0], &name("a b", 80)),
                with([0, 0, 0], &name("0x7f.1", 80)),
            ],
        ),
        (
            "port-0",
            vec![
                with([0, 0, 0], &nobody),
                with([0, 0, 0], &name("localhost", 0)),
            ],
        ),
    ] {
        for (at, datagram) in datagrams.iter().enumerate() {
            client.send_raw(datagram);
            wait_dropped(&server, reason, at as u64 + 1);
        }
        client.exchange(&far, b"good");
    }
    far.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(far.recv(&mut [0; 16]).is_err(), "nothing else came");
    let text = String::from_utf8(server.command(&["status"]).stdout).unwrap();
    assert!(text.contains("1 associations, 20 dropped ("), "{text}");
}

#[test]
fn who_may_answer_is_a_matter_of_the_filter() {
    for (filter, same_address, other_address) in [
        (None, true, false),
        (Some("address-dependent"), true, false),
        (Some("address-and-port-dependent"), false, false),
        (Some("endpoint-independent"), true, true),
    ] {
        let arguments: Vec<&str> = filter
            .iter()
            .flat_map(|filter| ["--udp-filter", filter])
            .collect();
        let (server, address) = serve(&arguments);
        let client = Client::new(address);
        let far = udp("127.0.0.1:0");
        client.send(b"x", far.local_addr().unwrap());
        let port = echo_one(&far);
        client.receive();
        let mut unsolicited = 0;
        for (stranger, passes) in [
            (udp("127.0.0.1:0"), same_address),
            (udp("127.0.0.3:0"), other_address),
        ] {
            stranger.send_to(b"psst", port).unwrap();
            if passes {
                let source = stranger.local_addr().unwrap();
                assert_eq!(client.receive(), (b"psst".to_vec(), source), "{filter:?}");
            } else {
                unsolicited += 1;
                wait_dropped(&server, "unsolicited", unsolicited);
            }
        }
        client.exchange(&far, b"still there");
    }
}

#[test]
fn with_a_full_cone_the_rules_hold_for_sources_too() {
    let full_cone = ["--udp-filter", "endpoint-independent"];
    let server = Sockhop::serve(&[&["--allow-dest", "127.0.0.1"], &full_cone[..]].concat()).start();
    let client = Client::new(server.wait_listening(SOON));
    let far = udp("127.0.0.1:0");
    client.send(b"x", far.local_addr().unwrap());
    let port = echo_one(&far);
    client.receive();
    udp("127.0.0.3:0").send_to(b"psst", port).unwrap();
    wait_dropped(&server, "rules", 1);
    let stranger = udp("127.0.0.1:0");
    stranger.send_to(b"psst", port).unwrap();
    assert_eq!(client.receive().1, stranger.local_addr().unwrap());
}

#[test]
fn it_ends_with_its_connection() {
    let (server, address) = serve(&[]);
    let far = udp("127.0.0.1:0");
    type End = fn(TcpStream);
    let ends: [(&str, End); 3] = [
        ("close", drop),
        ("reset", reset),
        ("half-close", |stream| {
            stream.shutdown(Shutdown::Write).unwrap();
            let end = expect_end(&stream, SOON);
            assert!(matches!(end, Observed::Eof | Observed::Reset), "{end:?}");
        }),
    ];
    for (how, end) in ends {
        let client = Client::new(address);
        client.exchange(&far, b"hello");
        assert_eq!(server.status()["associations"], 1);
        let Client {
            control,
            socket,
            relay,
        } = client;
        socket.connect(relay).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        assert!(!is_closed(&socket), "before {how}");
        end(control);
        assert!(wait_until(SOON, || is_closed(&socket)), "after {how}");
        server.wait_status(|status| status["associations"] == 0, SOON);
    }
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
}

#[test]
fn what_comes_on_the_connection_is_dropped() {
    let (_server, address) = serve(&[]);
    let mut client = Client::new(address);
    let far = udp("127.0.0.1:0");
    client.exchange(&far, b"before");
    for _ in 0..64 {
        client.control.write_all(&[7; 64 * 1024]).unwrap();
    }
    client.exchange(&far, b"after");
    client.control.shutdown(Shutdown::Write).unwrap();
    assert_eq!(expect_end(&client.control, SOON), Observed::Eof);
}

#[test]
fn an_idle_one_ends_and_a_used_one_does_not() {
    let (server, address) = serve(&["--udp-timeout", "2s"]);
    let far = udp("127.0.0.1:0");
    let start = Instant::now();
    let silent = Client::new(address);
    let used = Client::new(address);
    let stranger = udp("127.0.0.2:0");
    let ended = wait_until(SOON, || {
        used.exchange(&far, b"x");
        // Of others nothing counts.
        stranger.send_to(b"x", silent.relay).unwrap();
        expect_end(&silent.control, Duration::from_millis(100)) != Observed::Silent
    });
    assert!(ended && start.elapsed() >= Duration::from_millis(1900));
    used.exchange(&far, b"still there");
    server.wait_log("0 down (0 bytes), ", SOON);
    assert!(server.log().iter().any(|line| line.contains(": idle in ")));
    assert_eq!(expect_end(&used.control, SOON), Observed::Eof);
}

#[test]
fn one_client_has_so_many_at_most() {
    let (server, address) = serve(&["--max-associations", "2"]);
    let first = Client::new(address);
    let _second = Client::new(address);
    assert_eq!(ask(address, ANY).1, 1);
    let status = server.status();
    assert_eq!(
        status["connections"]["refused_by_reason"]["associations"],
        1
    );
    assert_eq!(status["associations"], 2);
    drop(first);
    server.wait_status(|status| status["associations"] == 1, SOON);
    Client::new(address);
}

#[test]
fn associations_leave_descriptors_to_others() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
        .open_files(128)
        .start();
    let address = server.wait_listening(SOON);
    let mut clients = Vec::new();
    let refused = (0..40).find_map(|_| {
        let (control, code, _) = ask(address, ANY);
        clients.push(control);
        (code != 0).then_some(code)
    });
    assert_eq!(refused, Some(1));
    assert!(clients.len() > 8, "{}", clients.len());
    let target = Target::echo();
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    clients.clear();
    server.wait_status(|status| status["associations"] == 0, SOON);
    Client::new(address);
}

#[test]
fn ports_are_those_of_the_range_and_used_again() {
    let port = free_port();
    let range = format!("{port}-{port}");
    let (server, address) = serve(&["--udp-ports", &range]);
    let client = Client::new(address);
    assert_eq!(client.relay.port(), port);
    for _ in 0..2 {
        assert_eq!(ask(address, ANY).1, 1);
    }
    let status = server.status();
    assert_eq!(status["connections"]["refused_by_reason"]["udp-ports"], 2);
    assert_eq!(status["associations"], 1);
    let expected = format!("no UDP port of {range} is free");
    server.wait_log(&expected, SOON);
    let warnings = server.log();
    let warnings = warnings.iter().filter(|line| line.contains(" warn: "));
    assert_eq!(warnings.filter(|line| line.contains(&expected)).count(), 1);
    drop(client);
    server.wait_status(|status| status["associations"] == 0, SOON);
    assert_eq!(Client::new(address).relay.port(), port);
}

#[test]
fn another_address_can_be_advertised_to_its_family() {
    let advertised: SocketAddr = "192.0.2.7:0".parse().unwrap();
    let (_server, v4) = serve(&["--udp-advertise", "192.0.2.7"]);
    let (control, code, told) = ask(v4, ANY);
    assert_eq!((code, told.ip()), (0, advertised.ip()));
    let client = Client {
        control,
        socket: udp("127.0.0.1:0"),
        relay: (Ipv4Addr::LOCALHOST, told.port()).into(),
    };
    client.exchange(&udp("127.0.0.1:0"), b"hello");
    let (_server, v6) = serve(&["--udp-advertise", "192.0.2.7", "--listen", "[::1]:0"]);
    assert_eq!(ask(v6, ANY).2.ip(), Ipv6Addr::LOCALHOST);
}

#[test]
fn the_rules_hold_for_every_datagram() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.1", "--deny-dest", "example.org"])
        .args(["--deny-dest", "127.0.0.1:9"])
        .start();
    let address = server.wait_listening(SOON);
    let client = Client::new(address);
    let far = udp("127.0.0.1:0");
    let port = far.local_addr().unwrap().port();
    let mut count = 0;
    let mut denied = || {
        count += 1;
        wait_dropped(&server, "rules", count);
    };
    // None of them leads off this machine, even if the rules were not asked.
    for to in [
        "127.0.0.2:53",
        "[::1]:53",
        "[::ffff:127.0.0.2]:53",
        "127.0.0.1:9",
        "0.0.0.0:53",
        "255.255.255.255:53",
    ] {
        client.send(b"x", to.parse().unwrap());
        denied();
    }
    client.send(b"x", address);
    denied();
    client.send_to_name(b"x", "www.example.org", port);
    denied();
    // Allowed with one port, not with another.
    client.exchange(&far, b"good");
    client.send_to_name(b"x", "localhost", 9);
    denied();
    client.exchange(&far, b"good");
}

#[test]
fn an_icmp_error_ends_nothing() {
    let (_server, address) = serve(&[]);
    let client = Client::new(address);
    let far = udp("127.0.0.1:0");
    let closed = udp("127.0.0.1:0").local_addr().unwrap();
    let closed6 = udp("[::1]:0").local_addr().unwrap();
    for _ in 0..5 {
        client.send(b"x", closed);
        client.send(b"x", closed6);
        client.exchange(&far, b"good");
    }
    // The client's own port: closed for a while, then open again.
    client.send(b"x", far.local_addr().unwrap());
    let mut buffer = [0; 16];
    let (_, port) = far.recv_from(&mut buffer).unwrap();
    let Client {
        control,
        socket,
        relay,
    } = client;
    let from = socket.local_addr().unwrap();
    drop(socket);
    for _ in 0..5 {
        far.send_to(b"lost", port).unwrap();
    }
    let client = Client {
        control,
        socket: udp(&from.to_string()),
        relay,
    };
    client.send(b"back", far.local_addr().unwrap());
    let (count, _) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..count], *b"back");
    far.send_to(b"welcome", port).unwrap();
    while client.receive().0 != b"welcome" {}
}

#[test]
fn many_associations_leave_no_descriptor() {
    let (server, address) = serve(&[]);
    let far = udp("127.0.0.1:0");
    let far6 = udp("[::1]:0");
    let descriptors = || {
        let folder = format!("/proc/{}/fd", server.id());
        fs::read_dir(folder).map_or(0, Iterator::count)
    };
    // The resolver's and the workers' first use is over.
    Client::new(address).exchange(&far, b"x");
    server.wait_status(|status| status["associations"] == 0, SOON);
    let before = descriptors();
    for _ in 0..10 {
        let clients: Vec<Client> = (0..100).map(|_| Client::new(address)).collect();
        for client in &clients {
            client.exchange(&far, b"x");
            client.exchange(&far6, b"x");
        }
        drop(clients);
        server.wait_status(|status| status["associations"] == 0, SOON);
    }
    assert!(
        wait_until(SOON, || descriptors() <= before),
        "{before} before, {} after",
        descriptors()
    );
    assert_eq!(server.status()["connections"]["total"], 1001);
}

#[test]
fn not_where_it_is_off_and_not_over_a_unix_socket() {
    let (server, address) = serve(&["--no-udp"]);
    assert_eq!(ask(address, ANY).1, 7);
    let status = server.status();
    assert_eq!(status["connections"]["refused_by_reason"]["command"], 1);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socks");
    let listen = format!("unix:{}", path.display());
    let server = Sockhop::serve(&["--listen", &listen]).start();
    let connected = || UnixStream::connect(&path).ok();
    assert!(wait_until(SOON, || connected().is_some()));
    let mut stream = connected().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let bytes = [vec![5, 1, 0, 5, 3, 0], crate::address(ANY)].concat();
    stream.write_all(&bytes).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [5, 0, 5, 7]);
    drop(server);
}

#[test]
fn with_users_it_takes_a_password() {
    let (server, address) = serve(&["--user", "ada:secret"]);
    let far = udp("127.0.0.1:0");
    let to = far.local_addr().unwrap();
    let proxy = |user| format!("socks5h://{user}{address}").parse().unwrap();
    let association = Dialer::new(proxy("ada:secret@")).associate().unwrap();
    association.send_to(b"hello", &to.into()).unwrap();
    echo_one(&far);
    let mut buffer = [0; 16];
    let (count, from) = association.recv_from(&mut buffer, SOON).unwrap();
    assert_eq!((&buffer[..count], from), (&b"hello"[..], to.into()));
    assert!(Dialer::new(proxy("ada:wrong@")).associate().is_err());
    assert!(Dialer::new(proxy("")).associate().is_err());
    drop(association);
    server.wait_log("user \"ada\": datagrams: 1 up (5 bytes)", SOON);
}

#[test]
fn the_library_goes_through_it_with_addresses_and_names() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "-v"]).start();
    let address = server.wait_listening(SOON);
    let far = udp("127.0.0.1:0");
    let to = far.local_addr().unwrap();
    for (scheme, host) in [
        ("socks5", "127.0.0.1"),
        ("socks5h", "127.0.0.1"),
        ("socks5h", "localhost"),
    ] {
        let proxy = format!("{scheme}://{address}").parse().unwrap();
        let association = Dialer::new(proxy).associate().unwrap();
        let target = format!("{host}:{}", to.port()).parse().unwrap();
        let mut buffer = vec![0; 65_536];
        for length in [0, 1, 1400, 60_000] {
            association.send_to(&vec![7; length], &target).unwrap();
            echo_one(&far);
            let (count, from) = association.recv_from(&mut buffer, SOON).unwrap();
            assert_eq!((count, from), (length, to.into()), "{scheme}://{host}");
        }
    }
    let proxy = format!("socks5h://{address}").parse().unwrap();
    let association = Dialer::new(proxy).associate().unwrap();
    drop(server);
    let error = association.recv_from(&mut [0; 16], SOON).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
}
