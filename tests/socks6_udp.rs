//! UDP ASSOCIATE of `sockhop serve` as clients of SOCKS 6 meet it.
#![cfg(feature = "socks6")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU16, Ordering};

use common::{
    Observed, SOON, Sockhop, connect, echo_one, expect_end, is_closed, wait_dropped, wait_until,
};
use serde_json::json;
use sockhop::wire::Address;
use sockhop::wire::socks6::{
    AssociationId, AuthReply, Choice, Command, Datagram, DecodeError, Decoded, Legs, OpReply,
    Parity, PortParity, Profile, ReplyCode, Request, Reserve, SessionId, SessionUse, StackOptions,
    UdpHeader, UdpMessage,
};

/// A server that lets clients go to loopback, at a port that it has for TCP and can have for UDP.
fn serve_at(host: &str, arguments: &[&str]) -> (Sockhop, SocketAddr) {
    // Outside of the range that systems take theirs from when they are not told.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let skipped = u16::try_from(std::process::id() % 600).expect("small") * 17;
    let at = (0..10_000)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .map(|next| format!("{host}:{}", 20_000 + (skipped + next) % 12_000))
        .find(|at| UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok())
        .expect("a free port");
    let allowed = ["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1", "-v"];
    let listen = ["--listen", &at];
    let server = Sockhop::serve(&[&allowed[..], &listen, arguments].concat()).start();
    let address = server.wait_listening(SOON);
    assert_eq!(address, at.parse().expect("an address"));
    (server, address)
}

fn serve(arguments: &[&str]) -> (Sockhop, SocketAddr) {
    serve_at("127.0.0.1", arguments)
}

/// A socket with a time limit on reading.
fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("bind");
    socket.set_read_timeout(Some(SOON)).expect("time limit");
    socket
}

fn at(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

/// Decodes what comes next on a stream, and takes nothing from behind it.
fn read<T>(mut stream: impl Read, decode: impl Fn(&[u8]) -> Result<Decoded<T>, DecodeError>) -> T {
    let mut bytes = Vec::new();
    loop {
        match decode(&bytes).expect("a message") {
            Decoded::Whole { message, .. } => return message,
            Decoded::Missing(count) => {
                let start = bytes.len();
                bytes.resize(start + count, 0);
                stream.read_exact(&mut bytes[start..]).expect("read");
            }
        }
    }
}

const DRAFT: Profile = Profile::DRAFT_12;

/// Asks for an association; the session that was opened, and the reply.
fn ask(
    mut stream: impl Read + Write,
    wanted: &str,
    stack: StackOptions,
    session: SessionUse,
    profile: &Profile,
) -> (Option<SessionId>, OpReply) {
    let mut request = Request::new(Command::ASSOCIATE, wanted.parse().expect("an address"));
    request.options.stack = stack;
    request.options.session = session;
    let mut bytes = Vec::new();
    request.encode(profile, &mut bytes);
    stream.write_all(&bytes).expect("write");
    let first = read(&mut stream, |bytes| AuthReply::decode(bytes, profile));
    let reply = read(&mut stream, |bytes| OpReply::decode(bytes, profile));
    (first.options.session_id, reply)
}

/// A client with its association.
struct Client {
    control: TcpStream,
    socket: UdpSocket,
    relay: SocketAddr,
    reply: OpReply,
    session: Option<SessionId>,
    id: AssociationId,
    profile: Profile,
}

impl Client {
    #[track_caller]
    fn new(server: SocketAddr) -> Self {
        Self::with(
            server,
            "0.0.0.0:0",
            StackOptions::default(),
            SessionUse::None,
        )
    }

    #[track_caller]
    fn with(server: SocketAddr, wanted: &str, stack: StackOptions, session: SessionUse) -> Self {
        Self::speaking(DRAFT, server, wanted, stack, session)
    }

    #[track_caller]
    fn speaking(
        profile: Profile,
        server: SocketAddr,
        wanted: &str,
        stack: StackOptions,
        session: SessionUse,
    ) -> Self {
        let control = connect(server).expect("connect");
        let (session, reply) = ask(&control, wanted, stack, session, &profile);
        assert_eq!(reply.code, ReplyCode::SUCCEEDED);
        let id = initialization(&control, &profile);
        Self {
            control,
            socket: udp(&SocketAddr::new(server.ip(), 0).to_string()),
            relay: server,
            reply,
            session,
            id,
            profile,
        }
    }

    fn message(&self, to: impl Into<Address>, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let datagram = Datagram::new(self.id, to.into(), payload).expect("short");
        datagram.encode(&self.profile, &mut out);
        out
    }

    fn send_raw(&self, over: &str, bytes: &[u8]) {
        match over {
            "tcp" => (&self.control).write_all(bytes).expect("write"),
            _ => drop(self.socket.send_to(bytes, self.relay).expect("send")),
        }
    }

    fn send(&self, over: &str, payload: &[u8], to: impl Into<Address>) {
        self.send_raw(over, &self.message(to, payload));
    }

    #[track_caller]
    fn confirmed(&self) {
        let mut bytes = [0; 12];
        (&self.control).read_exact(&mut bytes).expect("read");
        assert_eq!(bytes[..4], [self.profile.version, 2, 0, 12]);
        assert_eq!(bytes[4..], self.id.0.to_be_bytes());
    }

    /// Sends an empty datagram to nobody until it is confirmed.
    #[track_caller]
    fn trigger(&self, over: &str) {
        self.send(over, b"", SocketAddr::from(([0; 4], 0)));
        self.confirmed();
    }

    /// The next message of the server.
    #[track_caller]
    fn receive_raw(&self, over: &str) -> Vec<u8> {
        if over == "tcp" {
            let mut bytes = vec![0; 4];
            (&self.control).read_exact(&mut bytes).expect("read");
            let length = u16::from_be_bytes([bytes[2], bytes[3]]);
            bytes.resize(length.into(), 0);
            (&self.control).read_exact(&mut bytes[4..]).expect("read");
            return bytes;
        }
        let mut bytes = vec![0; 65_536];
        let (count, from) = self.socket.recv_from(&mut bytes).expect("a datagram");
        assert_eq!(from, self.relay);
        bytes.truncate(count);
        bytes
    }

    /// The next datagram: its payload and its true source.
    #[track_caller]
    fn receive(&self, over: &str) -> (Vec<u8>, SocketAddr) {
        let bytes = self.receive_raw(over);
        let message = UdpMessage::decode_packet(&bytes, &self.profile).expect("a message");
        assert_eq!(message.association(), self.id);
        let UdpMessage::Datagram(datagram) = message else {
            panic!("{message:?}");
        };
        let from = datagram.address().socket_addr().expect("no name");
        (datagram.payload().to_vec(), from)
    }

    /// To `far` and back.
    #[track_caller]
    fn exchange(&self, over: &str, far: &UdpSocket, payload: &[u8]) -> SocketAddr {
        self.send(over, payload, at(far));
        let from = echo_one(far);
        assert_eq!(self.receive(over), (payload.to_vec(), at(far)));
        from
    }
}

#[track_caller]
fn initialization(mut control: impl Read, profile: &Profile) -> AssociationId {
    let header = read(&mut control, |bytes| UdpHeader::decode(bytes, profile));
    assert_eq!((header.kind, header.length), (1, 12));
    header.association
}

const WAYS: [&str; 2] = ["udp", "tcp"];

#[test]
fn datagrams_go_both_ways_in_both_families_over_udp_and_over_tcp() {
    let (server, v4) = serve(&[]);
    let (_other, v6) = serve_at("[::1]", &[]);
    for over in WAYS {
        for address in [v4, v6] {
            let client = Client::new(address);
            for far in [udp("127.0.0.1:0"), udp("[::1]:0")] {
                client.send(over, b"hello", at(&far));
                if far.local_addr().unwrap().is_ipv4() {
                    client.confirmed();
                }
                echo_one(&far);
                assert_eq!(client.receive(over), (b"hello".to_vec(), at(&far)));
                client.exchange(over, &far, b"");
                client.exchange(over, &far, b"again");
            }
        }
    }
    let status = server.wait_status(
        |status| status["bytes"] == json!({"up": 40, "down": 40}),
        SOON,
    );
    assert_eq!(status.get("dropped_datagrams"), None);
    server.wait_log(
        "datagrams: 6 up (20 bytes), 6 down (20 bytes), 0 dropped (over UDP)",
        SOON,
    );
    server.wait_log("0 dropped (over TCP)", SOON);
    server.wait_status(|status| status["associations"] == 0, SOON);
}

#[test]
fn the_reply_tells_what_destinations_see() {
    let (_server, address) = serve(&[]);
    for wanted in ["0.0.0.0:0", "127.0.0.1:0", "127.0.0.3:0"] {
        let client = Client::with(address, wanted, StackOptions::default(), SessionUse::None);
        client.trigger("udp");
        let far = udp("127.0.0.1:0");
        let seen = client.exchange("udp", &far, b"hello");
        assert_eq!(client.reply.bound.port(), seen.port(), "{wanted}");
        let told = client.reply.bound.to_string();
        match wanted {
            // Seen from everywhere else.
            "0.0.0.0:0" => assert!(!told.starts_with("0.0.0.0"), "{told}"),
            _ => assert_eq!(told, seen.to_string()),
        }
        // From the first one on it can be asked for.
        let port = client.reply.bound.to_string();
        let control = connect(address).unwrap();
        let none = StackOptions::default();
        let (_, reply) = ask(&control, &port, none, SessionUse::None, &DRAFT);
        assert_eq!(reply.code, ReplyCode::GENERAL_FAILURE, "{port} is taken");
        drop(client);
    }
    let client = Client::with(address, "[::]:0", StackOptions::default(), SessionUse::None);
    client.trigger("tcp");
    let far = udp("[::1]:0");
    let seen = client.exchange("tcp", &far, b"hello");
    assert_eq!(client.reply.bound.port(), seen.port());
}

#[test]
fn ipv4_over_a_listener_of_both_families() {
    let (_server, address) = serve_at("[::]", &[]);
    for host in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let client = Client::new(SocketAddr::new(host, address.port()));
        client.trigger("udp");
        client.exchange("udp", &udp("127.0.0.1:0"), b"hello");
    }
}

#[test]
fn names_are_looked_up_here() {
    let (server, address) = serve(&[]);
    for over in WAYS {
        let client = Client::new(address);
        client.trigger(over);
        // The name may stand for either family, or both.
        let far = udp("[::1]:0");
        let port = at(&far).port();
        let far4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).expect("the same port");
        let to: Address = format!("localhost:{port}").parse().unwrap();
        client.send(over, b"hello", to);
        far.set_nonblocking(true).unwrap();
        far4.set_nonblocking(true).unwrap();
        let mut buffer = [0; 16];
        assert!(wait_until(SOON, || [&far, &far4].iter().any(|far| {
            let Ok((5, from)) = far.recv_from(&mut buffer) else {
                return false;
            };
            far.send_to(b"answer", from).is_ok()
        })));
        let (payload, from) = client.receive(over);
        assert_eq!((&payload[..], from.port()), (&b"answer"[..], port));
    }
    let client = Client::new(address);
    client.trigger("udp");
    client.send("udp", b"x", "0x7f000001:9".parse::<Address>().unwrap());
    wait_dropped(&server, "name", 1);
}

#[test]
fn whoever_knows_an_id_still_has_to_be_the_client() {
    let (server, address) = serve(&[]);
    let client = Client::new(address);
    let far = udp("127.0.0.1:0");
    let message = client.message(at(&far), b"captured");
    // From another address it does not even decide the way.
    udp("127.0.0.2:0").send_to(&message, address).unwrap();
    wait_dropped(&server, "stranger", 1);
    client.trigger("udp");
    udp("127.0.0.1:0").send_to(&message, address).unwrap();
    wait_dropped(&server, "stranger", 2);
    client.send_raw("tcp", &message);
    wait_dropped(&server, "stranger", 3);
    // Nor is another's connection the way, and another's id is none of its own.
    let other = Client::new(address);
    other.trigger("tcp");
    other.send_raw("tcp", &message);
    wait_dropped(&server, "association", 1);
    assert_ne!(client.id, other.id);
    // Each gets its own.
    let from = client.exchange("udp", &far, b"mine");
    let other_from = other.exchange("tcp", &far, b"yours");
    assert_ne!(from, other_from);
    far.send_to(b"for the first", from).unwrap();
    assert_eq!(client.receive("udp").0, b"for the first");
    // Both, and nothing of what was dropped.
    server.wait_status(|status| status["bytes"]["up"] == 4 + 5, SOON);
}

#[test]
fn bad_datagrams_are_dropped_and_counted() {
    let (server, address) = serve(&[]);
    let client = Client::new(address);
    client.trigger("udp");
    let far = udp("127.0.0.1:0");
    let good = client.message(at(&far), b"x");
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (count, bytes, reason) in [
        (1, vec![], "short"),
        (2, good[..7].to_vec(), "short"),
        (3, changed(2, 1), "short"),
        (1, changed(0, 4), "version"),
        (1, changed(4, good[4] ^ 0x80), "association"),
        (1, changed(1, 4), "message"),
        (1, changed(12, 9), "address-type"),
    ] {
        if reason == "message" {
            // An error's body is an address and more, which is not there: it is short before it is anything.
            client.send_raw("udp", &[&good[..1], &[2], &good[2..]].concat());
        } else {
            client.send_raw("udp", &bytes);
        }
        wait_dropped(&server, reason, count);
    }
    client.exchange("udp", &far, b"still there");
    // On TCP, what can't be told apart ends the association.
    client.send_raw("tcp", &[5, 3, 0, 12]);
    assert!(matches!(
        expect_end(&client.control, SOON),
        Observed::Eof | Observed::Reset
    ));
    server.wait_log(": not a message", SOON);
}

#[test]
fn the_largest_datagrams_fit() {
    let (server, address) = serve(&[]);
    // Headers: 20 bytes before IPv4 addresses.
    for (over, most) in [("tcp", 65_507), ("udp", 65_507 - 20)] {
        let client = Client::new(address);
        client.trigger(over);
        let far = udp("127.0.0.1:0");
        client.exchange(over, &far, &vec![b'x'; most]);
        if over == "udp" {
            let from = client.exchange(over, &far, b"x");
            far.send_to(&vec![b'x'; most + 1], from).unwrap();
            wait_dropped(&server, "too-large", 1);
        }
    }
    let client = Client::new(address);
    client.trigger("tcp");
    let far = udp("[::1]:0");
    client.exchange("tcp", &far, &vec![b'x'; 65_503]);
}

#[test]
fn it_ends_with_the_tcp_connection_and_the_port_with_the_last() {
    let (server, address) = serve(&[]);
    let (first, second) = (Client::new(address), Client::new(address));
    first.trigger("udp");
    second.trigger("udp");
    server.wait_status(|status| status["associations"] == 2, SOON);
    let Client {
        control,
        socket,
        id,
        ..
    } = first;
    drop(control);
    server.wait_status(|status| status["associations"] == 1, SOON);
    let mut message = Vec::new();
    let far = udp("127.0.0.1:0");
    let datagram = Datagram::new(id, at(&far).into(), b"late").unwrap();
    datagram.encode(&DRAFT, &mut message);
    socket.send_to(&message, address).unwrap();
    wait_dropped(&server, "association", 1);
    second.exchange("udp", &far, b"hello");
    drop(second);
    socket.connect(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    assert!(wait_until(SOON, || is_closed(&socket)));
    // And comes again.
    let third = Client::new(address);
    third.trigger("udp");
    third.exchange("udp", &far, b"hello");
}

#[test]
fn rules_and_filters_are_those_of_socks5() {
    let (server, address) = serve(&["--deny-dest", "127.0.0.9"]);
    let client = Client::new(address);
    client.trigger("udp");
    for (count, to) in [
        (1, "127.0.0.9:9"),
        // Not public, and allowed by nobody.
        (2, "224.0.0.251:5353"),
        (3, "[ff02::fb]:5353"),
        // The server itself.
        (4, &address.to_string()),
        (5, "10.0.0.1:9"),
    ] {
        client.send("udp", b"x", to.parse::<SocketAddr>().unwrap());
        wait_dropped(&server, "rules", count);
    }
    client.send("udp", b"x", SocketAddr::from(([127, 0, 0, 1], 0)));
    wait_dropped(&server, "port-0", 1);
    let far = udp("127.0.0.1:0");
    let from = client.exchange("udp", &far, b"hello");
    // Another port of an address that was sent to, and an address that was not.
    udp("127.0.0.1:0").send_to(b"same address", from).unwrap();
    assert_eq!(client.receive("udp").0, b"same address");
    udp("127.0.0.2:0").send_to(b"other", from).unwrap();
    wait_dropped(&server, "unsolicited", 1);

    let (_server, address) = serve(&["--udp-filter", "endpoint-independent"]);
    let client = Client::new(address);
    client.trigger("tcp");
    let port = client.reply.bound.port();
    udp("127.0.0.2:0")
        .send_to(b"a call", (Ipv4Addr::LOCALHOST, port))
        .unwrap();
    assert_eq!(client.receive("tcp").0, b"a call");

    let (server, address) = serve(&["--udp-filter", "address-and-port-dependent"]);
    let client = Client::new(address);
    client.trigger("udp");
    let from = client.exchange("udp", &far, b"hello");
    udp("127.0.0.1:0").send_to(b"other port", from).unwrap();
    wait_dropped(&server, "unsolicited", 1);
}

#[test]
fn clients_have_a_limit_of_associations() {
    let (server, address) = serve(&["--max-associations", "2"]);
    let first = Client::new(address);
    let _second = Client::new(address);
    let refused = || {
        let control = connect(address).unwrap();
        let none = StackOptions::default();
        let (_, reply) = ask(&control, "0.0.0.0:0", none, SessionUse::None, &DRAFT);
        assert_eq!(expect_end(&control, SOON), Observed::Eof);
        reply.code
    };
    assert_eq!(refused(), ReplyCode::GENERAL_FAILURE);
    drop(first);
    server.wait_status(|status| status["associations"] == 1, SOON);
    let _third = Client::new(address);
    assert_eq!(refused(), ReplyCode::GENERAL_FAILURE);
    let status = server.status();
    assert_eq!(
        status["connections"]["refused_by_reason"],
        json!({"associations": 2})
    );

    let (_server, address) = serve(&["--no-udp"]);
    let control = connect(address).unwrap();
    let none = StackOptions::default();
    let (_, reply) = ask(&control, "0.0.0.0:0", none, SessionUse::None, &DRAFT);
    assert_eq!(reply.code, ReplyCode::COMMAND_NOT_SUPPORTED);
}

#[test]
fn clients_of_a_unix_socket_have_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socks");
    let listen = format!("unix:{}", path.display());
    let (_server, _) = serve(&["--listen", &listen]);
    let control = UnixStream::connect(&path).unwrap();
    control.set_read_timeout(Some(SOON)).unwrap();
    let none = StackOptions::default();
    let (_, reply) = ask(&control, "0.0.0.0:0", none, SessionUse::None, &DRAFT);
    assert_eq!(reply.code, ReplyCode::SUCCEEDED);
    let id = initialization(&control, &DRAFT);
    let far = udp("127.0.0.1:0");
    let mut message = Vec::new();
    let datagram = Datagram::new(id, at(&far).into(), b"hello").unwrap();
    datagram.encode(&DRAFT, &mut message);
    (&control).write_all(&message).unwrap();
    echo_one(&far);
    let mut confirmation = [0; 12];
    (&control).read_exact(&mut confirmation).unwrap();
    assert_eq!(confirmation[..4], [6, 2, 0, 12]);
    let mut answer = vec![0; message.len()];
    (&control).read_exact(&mut answer).unwrap();
    assert_eq!(answer, message);
}

#[test]
fn without_the_udp_port_there_is_the_connection() {
    let (server, address) = serve(&[]);
    let _taken = udp(&address.to_string());
    let client = Client::new(address);
    server.wait_log("no UDP port for clients of SOCKS 6", SOON);
    client.trigger("tcp");
    client.exchange("tcp", &udp("127.0.0.1:0"), b"hello");
}

#[test]
fn a_pair_of_ports_for_one_session() {
    let (_server, address) = serve(&[]);
    let even = StackOptions {
        port_parity: Some(PortParity {
            parity: Parity::Even,
            reserve: Reserve::Yes,
        }),
        ..StackOptions::default()
    };
    let first = Client::with(address, "127.0.0.1:0", even, SessionUse::Request);
    assert_eq!(first.reply.options.stack.port_parity, even.port_parity);
    let port = first.reply.bound.port();
    assert_eq!(port % 2, 0);
    let other = format!("127.0.0.1:{}", port + 1);
    assert!(UdpSocket::bind(&other).is_err(), "it is kept");
    let none = StackOptions::default();
    let (_, reply) = ask(
        connect(address).unwrap(),
        &other,
        none,
        SessionUse::None,
        &DRAFT,
    );
    assert_eq!(reply.code, ReplyCode::NOT_ALLOWED, "for the session alone");
    let session = SessionUse::Resume(first.session.clone().expect("a session"));
    let second = Client::with(address, &other, none, session.clone());
    assert_eq!(second.reply.bound.to_string(), other);
    assert_eq!(second.reply.options.stack.port_parity, None);
    let far = udp("127.0.0.1:0");
    for (client, port) in [(&first, port), (&second, port + 1)] {
        client.trigger("udp");
        assert_eq!(client.exchange("udp", &far, b"hello").port(), port);
    }
    // One that nobody claimed is free with the end of the first.
    let odd = StackOptions {
        port_parity: Some(PortParity {
            parity: Parity::Odd,
            reserve: Reserve::Yes,
        }),
        ..StackOptions::default()
    };
    let first = Client::with(address, "127.0.0.1:0", odd, session);
    let port = first.reply.bound.port();
    assert_eq!(port % 2, 1);
    let other = format!("127.0.0.1:{}", port - 1);
    assert!(UdpSocket::bind(&other).is_err());
    drop(first);
    assert!(wait_until(SOON, || UdpSocket::bind(&other).is_ok()));
}

#[test]
fn options_that_are_known_are_answered() {
    let (_server, address) = serve(&[]);
    let wanted = StackOptions {
        udp_error: Some(Choice::Yes),
        tos: Legs {
            client: None,
            remote: Some(0x28),
        },
        ttl: Legs {
            client: None,
            remote: Some(7),
        },
        no_fragmentation: Legs {
            client: None,
            remote: Some(Choice::Yes),
        },
        ..StackOptions::default()
    };
    let client = Client::with(address, "0.0.0.0:0", wanted, SessionUse::None);
    let told = client.reply.options.stack;
    if cfg!(any(target_os = "linux", target_os = "android")) {
        assert_eq!(told, wanted);
    } else {
        assert_eq!((told.tos, told.ttl), (wanted.tos, wanted.ttl));
        assert_eq!(told.udp_error, Some(Choice::No));
    }
    // A closed port on this machine has no code: nothing is told.
    client.trigger("udp");
    let closed = at(&udp("127.0.0.1:0"));
    client.send("udp", b"x", closed);
    client.exchange("udp", &udp("127.0.0.1:0"), b"hello");
    let declined = StackOptions {
        udp_error: Some(Choice::No),
        ..StackOptions::default()
    };
    let client = Client::with(address, "0.0.0.0:0", declined, SessionUse::None);
    assert_eq!(client.reply.options.stack, declined);
}

#[test]
fn every_profile_is_spoken() {
    for (name, profile) in Profile::NAMED {
        let (_server, address) = serve(&["--socks6-profile", name]);
        for over in WAYS {
            let none = StackOptions::default();
            let client = Client::speaking(profile, address, "0.0.0.0:0", none, SessionUse::None);
            client.trigger(over);
            client.exchange(over, &udp("127.0.0.1:0"), b"hello");
            client.exchange(over, &udp("[::1]:0"), b"hello");
        }
    }
}
