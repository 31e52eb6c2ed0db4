//! SOCKS 6 over real networks: what routers say about packets, groups, and servers with several addresses.
//!
//! `home`, where server and client run, has a cable to `router`, and `router` one to `far`. Bytes are written by hand.
#![cfg(all(target_os = "linux", feature = "socks6"))]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{Netns, SOON, Sockhop, connect, wait_until};

const AT: &str = "127.0.0.1:1080";

struct Networks {
    home: Netns,
    far: Netns,
    router: Netns,
}

/// The router's addresses on the side of `home`.
const ROUTER: [&str; 2] = ["10.77.1.2", "fd77:1::2"];
/// Those of `far`.
const FAR: [&str; 2] = ["10.77.2.2", "fd77:2::2"];

impl Networks {
    fn new() -> Self {
        let (home, router, far) = (Netns::new(), Netns::new(), Netns::new());
        home.cable(
            &router,
            &["10.77.1.1/24", "fd77:1::1/64"],
            &["10.77.1.2/24", "fd77:1::2/64"],
        );
        router.cable(
            &far,
            &["10.77.2.1/24", "fd77:2::1/64"],
            &["10.77.2.2/24", "fd77:2::2/64"],
        );
        router.set("ipv4/ip_forward", "1");
        router.set("ipv6/conf/all/forwarding", "1");
        // As many reports as there are.
        router.set("ipv4/icmp_ratelimit", "0");
        router.set("ipv6/icmp/ratelimit", "0");
        home.ip("route add default via 10.77.1.2");
        home.ip("-6 route add default via fd77:1::2");
        far.ip("route add default via 10.77.2.1");
        far.ip("-6 route add default via fd77:2::1");
        // Known, but nobody is there.
        router.ip("route add unreachable 10.98.0.0/16");
        // New cables need a moment.
        for to in ["10.77.1.1:9", "[fd77:1::1]:9"] {
            let refused = || TcpStream::connect(to).map_err(|error| error.kind());
            let works = || matches!(refused(), Err(ErrorKind::ConnectionRefused));
            assert!(far.inside(|| wait_until(3 * SOON, works)), "{to}");
        }
        Self { home, far, router }
    }

    /// A server for the whole of it.
    fn serve(&self, at: &str, arguments: &[&str]) -> (Sockhop, SocketAddr) {
        let everywhere = [
            "--allow-dest",
            "0.0.0.0/0",
            "--allow-dest",
            "::/0",
            "--listen",
            at,
            "-v",
        ];
        let server = Sockhop::serve(&[&everywhere[..], arguments].concat())
            .inside(&self.home)
            .start();
        let address = server.wait_listening(SOON);
        (server, address)
    }
}

/// A client with its association, confirmed.
struct Client {
    control: TcpStream,
    socket: UdpSocket,
    id: [u8; 8],
    /// The options of the reply.
    told: Vec<u8>,
}

fn read<const COUNT: usize>(mut stream: &TcpStream) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

/// Type, padding, port, address.
fn block(to: SocketAddr) -> Vec<u8> {
    let (kind, ip) = match to.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (4, ip.octets().to_vec()),
    };
    [&[kind, 0][..], &to.port().to_be_bytes(), &ip].concat()
}

impl Client {
    /// Confirmed over UDP. Its socket is at this address.
    #[track_caller]
    fn new(networks: &Networks, server: SocketAddr, from: &str, options: &[u8]) -> Self {
        let (mut control, socket) = networks.home.inside(|| {
            let socket = UdpSocket::bind(from).expect("bind");
            // Like many programs: nothing from anybody else.
            socket.connect(server).expect("connect");
            (connect(server).expect("connect"), socket)
        });
        socket.set_read_timeout(Some(SOON)).expect("time limit");
        let length = u8::try_from(options.len()).expect("short");
        let request = [&[6, 3, 0, length, 0, 0, 0, 1, 0, 0, 0, 0], options].concat();
        control.write_all(&request).expect("write");
        assert_eq!(read(&control), [6, 0, 0, 0]);
        let [version, code, 0, length, ..] = read::<12>(&control) else {
            panic!("long options");
        };
        assert_eq!((version, code), (6, 0));
        let mut told = vec![0; length.into()];
        control.read_exact(&mut told).expect("read");
        let [6, 1, 0, 12, id @ ..] = read::<12>(&control) else {
            panic!("no initialization");
        };
        let client = Self {
            control,
            socket,
            id,
            told,
        };
        client.send((Ipv4Addr::UNSPECIFIED, 0).into(), b"");
        let [6, 2, 0, 12, confirmed @ ..] = read::<12>(&client.control) else {
            panic!("no confirmation");
        };
        assert_eq!(confirmed, id);
        client
    }

    fn message(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(12 + rest.len()).expect("short");
        let [high, low] = length.to_be_bytes();
        [&[6, kind, high, low], &self.id[..], rest].concat()
    }

    fn send(&self, to: SocketAddr, payload: &[u8]) {
        let message = self.message(3, &[&block(to), payload].concat());
        self.socket.send(&message).expect("send");
    }

    #[track_caller]
    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let count = self.socket.recv(&mut buffer).expect("a datagram");
        buffer.truncate(count);
        buffer
    }

    #[track_caller]
    fn is_told(&self, to: SocketAddr, code: u8, reporter: &str) {
        let mut reporter = block(SocketAddr::new(reporter.parse().expect("an address"), 0));
        reporter[1] = code;
        let expected = self.message(4, &[block(to), reporter].concat());
        assert_eq!(self.receive(), expected, "{to}");
    }

    /// To `far` and back.
    #[track_caller]
    fn exchange(&self, far: &UdpSocket, payload: &[u8]) {
        let to = far.local_addr().expect("bound");
        self.send(to, payload);
        let mut buffer = vec![0; 65_536];
        let (count, from) = far.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(buffer[..count], *payload);
        far.send_to(payload, from).expect("send");
        let expected = self.message(3, &[&block(to), payload].concat());
        assert_eq!(self.receive(), expected);
    }
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().expect("an address"), port)
}

fn udp(netns: &Netns, host: &str) -> UdpSocket {
    let socket = netns.inside(|| UdpSocket::bind((host, 0)).expect("bind"));
    socket.set_read_timeout(Some(SOON)).expect("time limit");
    socket
}

// Stack options: leg and level, code, value.
const REPORTS: [u8; 8] = [0, 1, 0, 8, 0x85, 1, 2, 0];
const TTL_1: [u8; 8] = [0, 1, 0, 8, 0x81, 3, 1, 0];
const NO_FRAGMENTATION: [u8; 8] = [0, 1, 0, 8, 0x81, 4, 2, 0];

const NETWORK_UNREACHABLE: u8 = 1;
const HOST_UNREACHABLE: u8 = 2;
const TTL_EXPIRED: u8 = 3;
const TOO_BIG: u8 = 4;

#[test]
#[ignore = "needs root for network namespaces"]
fn what_routers_report_is_told_to_clients_that_asked() {
    let networks = Networks::new();
    let (_server, address) = networks.serve(AT, &[]);
    let client = Client::new(&networks, address, "127.0.0.1:0", &REPORTS);
    assert_eq!(client.told, REPORTS);
    for (to, code, reporter) in [
        ("10.99.0.1", NETWORK_UNREACHABLE, ROUTER[0]),
        ("10.98.0.1", HOST_UNREACHABLE, ROUTER[0]),
        ("fd99::1", NETWORK_UNREACHABLE, ROUTER[1]),
        // Linux has no such word for routes of IPv6, but for hosts that do not answer.
        ("fd77:2::99", HOST_UNREACHABLE, ROUTER[1]),
    ] {
        for port in [9, 10] {
            client.send(at(to, port), b"lost");
            client.is_told(at(to, port), code, reporter);
        }
    }
    // They end nothing.
    client.exchange(&udp(&networks.far, FAR[0]), b"hello");
    client.exchange(&udp(&networks.far, FAR[1]), b"hello");
    // A closed port has no code, and a name is told as its address is.
    client.send(at(FAR[0], 9), b"nobody");
    client.exchange(&udp(&networks.far, FAR[0]), b"hello");
}

#[test]
#[ignore = "needs root for network namespaces"]
fn over_tcp_reports_come_between_the_datagrams() {
    let networks = Networks::new();
    let (_server, address) = networks.serve(AT, &[]);
    let mut control = networks.home.inside(|| connect(address).expect("connect"));
    let request = [&[6, 3, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0], &REPORTS[..]].concat();
    control.write_all(&request).expect("write");
    let [.., a, b, c, d, e, f, g, h] = read::<{ 4 + 20 + 12 }>(&control);
    let client = Client {
        control,
        socket: UdpSocket::bind("127.0.0.1:0").expect("bind"),
        id: [a, b, c, d, e, f, g, h],
        told: Vec::new(),
    };
    let to = at("10.99.0.1", 9);
    let message = client.message(3, &[&block(to), &b"lost"[..]].concat());
    (&client.control).write_all(&message).expect("write");
    let mut reporter = block(at(ROUTER[0], 0));
    reporter[1] = NETWORK_UNREACHABLE;
    let expected = [
        client.message(2, &[]),
        client.message(4, &[block(to), reporter].concat()),
    ]
    .concat();
    assert_eq!(read::<{ 12 + 28 }>(&client.control)[..], expected);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn who_has_not_asked_is_told_nothing() {
    let networks = Networks::new();
    let (_server, address) = networks.serve(AT, &[]);
    let client = Client::new(&networks, address, "127.0.0.1:0", &[]);
    let far = udp(&networks.far, FAR[0]);
    for to in ["10.99.0.1", "10.98.0.1"] {
        client.send(at(to, 9), b"lost");
    }
    // What comes first is the answer.
    client.exchange(&far, b"hello");
}

#[test]
#[ignore = "needs root for network namespaces"]
fn a_ttl_that_runs_out_is_told() {
    let networks = Networks::new();
    let (_server, address) = networks.serve(AT, &[]);
    let options = [TTL_1, REPORTS].concat();
    let client = Client::new(&networks, address, "127.0.0.1:0", &options);
    assert_eq!(client.told, options);
    for (to, reporter) in FAR.iter().zip(ROUTER) {
        client.send(at(to, 9), b"lost");
        client.is_told(at(to, 9), TTL_EXPIRED, reporter);
    }
    // As far as the router it goes.
    client.exchange(&udp(&networks.router, ROUTER[0]), b"hello");
    client.exchange(&udp(&networks.router, ROUTER[1]), b"hello");
}

/// The code of the reply to a CONNECT, and the connection.
#[track_caller]
fn connect_to(
    networks: &Networks,
    server: SocketAddr,
    to: SocketAddr,
    ttl: Option<u8>,
) -> (u8, TcpStream) {
    let mut stream = networks.home.inside(|| connect(server).expect("connect"));
    let option = ttl.map(|ttl| [0, 1, 0, 8, 0x81, 3, ttl, 0]);
    let options = option.as_ref().map_or(&[][..], |option| option);
    let (kind, ip) = match to.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (4, ip.octets().to_vec()),
    };
    let length = u8::try_from(options.len()).expect("short");
    let [high, low] = to.port().to_be_bytes();
    let request = [&[6, 1, 0, length, high, low, 0, kind], &ip[..], options].concat();
    stream.write_all(&request).expect("write");
    assert_eq!(read(&stream), [6, 0, 0, 0]);
    let [6, code, 0, length, _, _, 0, kind] = read(&stream) else {
        panic!("no operation reply");
    };
    let address = if kind == 4 { 16 } else { 4 };
    let mut rest = vec![0; address + usize::from(length)];
    stream.read_exact(&mut rest).expect("read");
    if code == 0 {
        assert_eq!(rest[address..], *options, "told what is in force");
    }
    (code, stream)
}

#[test]
#[ignore = "needs root for network namespaces"]
fn a_connect_whose_ttl_runs_out_is_refused_for_that() {
    let networks = Networks::new();
    let (_server, address) = networks.serve(AT, &[]);
    for (far, router) in FAR.into_iter().zip(ROUTER) {
        let inside = |netns: &Netns, host: &str| {
            netns.inside(|| TcpListener::bind((host, 0)).expect("bind"))
        };
        let (near, far) = (inside(&networks.router, router), inside(&networks.far, far));
        for (to, ttl, code) in [
            (&far, Some(1), 6),
            (&far, Some(2), 0),
            (&far, None, 0),
            (&near, Some(1), 0),
        ] {
            let to = to.local_addr().expect("bound");
            let (told, _) = connect_to(&networks, address, to, ttl);
            assert_eq!(told, code, "{to} {ttl:?}");
        }
        // Whatever else goes wrong is not the TTL's fault.
        let closed = at(&near.local_addr().expect("bound").ip().to_string(), 9);
        assert_eq!(connect_to(&networks, address, closed, Some(1)).0, 5);
    }
    for (to, ttl, code) in [
        ("10.98.0.1", Some(2), 4),
        ("10.98.0.1", None, 4),
        ("10.99.0.1", Some(2), 3),
    ] {
        let (told, _) = connect_to(&networks, address, at(to, 9), ttl);
        assert_eq!(told, code, "{to} {ttl:?}");
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn a_connection_with_a_ttl_outlives_what_routers_report() {
    let networks = Networks::new();
    let (_server, address) = networks.serve(AT, &[]);
    for (listen, cut) in [
        (FAR[0], "route add unreachable 10.77.2.2/32"),
        (FAR[1], "-6 route add unreachable fd77:2::2/128"),
    ] {
        let listener = networks
            .far
            .inside(|| TcpListener::bind((listen, 0)).expect("bind"));
        let to = listener.local_addr().expect("bound");
        let (code, mut client) = connect_to(&networks, address, to, Some(2));
        assert_eq!(code, 0);
        let (mut far, _) = listener.accept().expect("accept");
        far.set_read_timeout(Some(SOON)).expect("time limit");
        client.write_all(b"before").expect("write");
        assert_eq!(read(&far), *b"before");
        let reported = || {
            networks.home.inside(|| {
                let all = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
                let all = all + &std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
                unreachable_reports(&all)
            })
        };
        let before = reported();
        networks.router.ip(cut);
        client.write_all(b"during").expect("write");
        // The first may come while the socket is busy with sending.
        assert!(wait_until(SOON, || reported() >= before + 3), "{to}");
        networks.router.ip(&cut.replace("add", "delete"));
        assert_eq!(read(&far), *b"during");
        far.write_all(b"after").expect("write");
        assert_eq!(read(&client), *b"after");
    }
}

/// How many ICMP messages of that kind the kernel has counted.
fn unreachable_reports(counters: &str) -> u64 {
    let mut sum = 0;
    let mut lines = counters.lines();
    while let Some(line) = lines.next() {
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(Into::into).collect() };
        let names = words(line);
        match names.first().map(String::as_str) {
            Some("Icmp6InDestUnreachs") => sum += names[1].parse::<u64>().expect("a number"),
            Some("Icmp:") if names.iter().any(|name| name == "InDestUnreachs") => {
                let place = names.iter().position(|name| name == "InDestUnreachs");
                let values = words(lines.next().expect("the values"));
                sum += values[place.expect("just seen")]
                    .parse::<u64>()
                    .expect("a number");
            }
            _ => {}
        }
    }
    sum
}

#[test]
#[ignore = "needs root for network namespaces"]
fn a_datagram_too_big_for_a_link_is_told_over_ipv6() {
    let networks = Networks::new();
    let link = networks.router.link_to(&networks.far);
    networks.router.ip(&format!("link set {link} mtu 1280"));
    let link = networks.far.link_to(&networks.router);
    networks.far.ip(&format!("link set {link} mtu 1280"));
    let (_server, address) = networks.serve(AT, &[]);
    let options = [NO_FRAGMENTATION, REPORTS].concat();
    let client = Client::new(&networks, address, "127.0.0.1:0", &options);
    assert_eq!(client.told, options);
    let far = udp(&networks.far, FAR[1]);
    let to = far.local_addr().expect("bound");
    client.send(to, &[b'x'; 1400]);
    client.is_told(to, TOO_BIG, ROUTER[1]);
    client.exchange(&far, &[b'x'; 1200]);
    // Without the wish the kernel makes two packets of it.
    let client = Client::new(&networks, address, "127.0.0.1:0", &REPORTS);
    client.exchange(&far, &[b'x'; 1400]);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn groups_are_reached_where_rules_allow_them() {
    let networks = Networks::new();
    let link = networks.home.link_to(&networks.router);
    networks
        .home
        .ip(&format!("route add 239.0.0.0/8 dev {link}"));
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let member = networks.router.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
        let interface = Ipv4Addr::new(10, 77, 1, 2);
        socket.join_multicast_v4(&group, &interface).expect("join");
        socket
    });
    member.set_read_timeout(Some(SOON)).expect("time limit");
    let to = SocketAddr::from((group, member.local_addr().expect("bound").port()));
    let (_server, address) = networks.serve(AT, &["--allow-dest", "239.1.0.0/16"]);
    let client = Client::new(&networks, address, "127.0.0.1:0", &[]);
    client.send(to, b"to all");
    let mut buffer = [0; 16];
    let (count, from) = member.recv_from(&mut buffer).expect("a datagram");
    assert_eq!(buffer[..count], *b"to all");
    assert_eq!(from.ip(), IpAddr::from([10, 77, 1, 1]));

    // Of the groups next to it none.
    let (server, address) = networks.serve("127.0.0.1:1081", &["--deny-dest", "224.0.0.0/4"]);
    let client = Client::new(&networks, address, "127.0.0.1:0", &[]);
    client.send(to, b"to nobody");
    server.wait_status(|status| status["dropped_datagrams"]["rules"] == 1, SOON);
    member
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("time limit");
    assert!(member.recv_from(&mut buffer).is_err());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn what_comes_back_comes_from_the_address_that_was_sent_to() {
    let networks = Networks::new();
    let link = networks.home.link_to(&networks.router);
    for second in ["10.77.1.9/24", "10.66.0.1/32"] {
        networks
            .home
            .ip(&format!("address add {second} dev {link}"));
    }
    networks
        .home
        .ip(&format!("-6 address add fd77:1::9/64 dev {link} nodad"));
    networks.router.ip("route add 10.66.0.1/32 via 10.77.1.1");
    let everywhere = ["--allow-dest", "0.0.0.0/0", "--allow", "0.0.0.0/0"];
    let listen = ["--allow", "::/0", "--listen", "[::]:1080"];
    let server = Sockhop::serve(&[&everywhere[..], &listen].concat())
        .inside(&networks.home)
        .start();
    server.wait_listening(SOON);
    // Clients of the network, whose sockets take nothing from anybody else.
    let elsewhere = Networks {
        home: networks.far,
        far: Netns::new(),
        router: Netns::new(),
    };
    let echo = udp(&networks.router, "10.77.2.1");
    for (server, client) in [
        ("10.77.1.1", "10.77.2.2:0"),
        ("10.77.1.9", "10.77.2.2:0"),
        ("10.66.0.1", "10.77.2.2:0"),
        ("fd77:1::9", "[fd77:2::2]:0"),
    ] {
        let client = Client::new(&elsewhere, at(server, 1080), client, &[]);
        client.exchange(&echo, b"hello");
    }
}
