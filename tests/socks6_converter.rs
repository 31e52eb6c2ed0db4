//! `sockhop forward --remote socks6://…` and `serve --via socks6://…`: clients of SOCKS 4, 4a and 5 on one side, a scripted
//! proxy of SOCKS 6 on the other. The clients speak by bytes; the proxy is the pure state machine with blocking sockets.
#![cfg(feature = "socks6")]

mod common;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Chunks, Observed, Pattern, Peer, RpcError, SOON, Sockhop, Step, Target, connect, dead_address,
    exchange, expect_end, program, read_exactly, socks5_connect, socks5_connect_name, wait_until,
};
use serde_json::{Value, json};
use sockhop::ProxyUri;
use sockhop::client::{self, Dialer};
use sockhop::handshake::socks6::{Arrival, Client as Handshake, Limits, Owner, Server, Sessions};
use sockhop::wire::Credentials;
use sockhop::wire::socks6::{
    AssociationId, AuthReplyOptions, Command, Datagram, Decoded, OpReplyOptions, Profile,
    ReplyCode, Request, SessionUse, Token, UdpMessage,
};

/// A proxy of SOCKS 6 on loopback, which remembers what it was asked.
struct Six {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// What it does, and what it has seen.
struct State {
    password: Option<Credentials>,
    sessions: Option<Sessions>,
    /// Where names lead to, whatever they are.
    names: Option<SocketAddr>,
    /// Instead of doing what it is asked for.
    answer: Answer,
    /// Who is said to have come to a port, if not who it was.
    caller: Option<SocketAddr>,
    /// Once: somebody else has spent the token that the next request spends.
    overtake: bool,
    seen: Vec<Seen>,
}

/// One request.
#[derive(Clone)]
struct Seen {
    request: Request,
    /// What came with its segment and lies behind it.
    behind: Vec<u8>,
    arrival: Arrival,
}

#[derive(Clone)]
enum Answer {
    Does,
    Replies(ReplyCode),
    Sends(Vec<u8>),
    /// Says who the client is, and then nothing.
    Stalls,
}

impl Six {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new(State {
            password: None,
            sessions: Some(Sessions::new(Limits::default())),
            names: None,
            answer: Answer::Does,
            caller: None,
            overtake: false,
            seen: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), state) = (stream, Arc::clone(&shared)) else {
                    return;
                };
                thread::spawn(move || {
                    let _ = serve(stream, &state);
                });
            }
        });
        Self { address, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    fn uri(&self) -> String {
        format!("socks6://{}", self.address)
    }

    /// What the last request asked for.
    #[track_caller]
    fn last(&self) -> Seen {
        self.seen().pop().expect("a request")
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    let lock = || state.lock().expect("no panic");
    let mut server = Server::new(Profile::DRAFT_12);
    let (mut input, mut out) = (Vec::new(), Vec::new());
    let mut buffer = [0; 16 * 1024];
    while server.request().is_none() {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        input.extend(&buffer[..count]);
        let taken = server.feed(&input, &mut out).map_err(|_| bad("request"))?;
        input.drain(..taken);
    }
    let request = server.request().ok_or_else(|| bad("request"))?.clone();
    let (arrival, options) = judge(&request, &mut lock());
    let answer = lock().answer.clone();
    lock().seen.push(Seen {
        request: request.clone(),
        behind: input.clone(),
        arrival: arrival.clone(),
    });
    match arrival {
        Arrival::Inside(_) => server.accept(options, &mut out),
        _ => {
            server.reject(options, &mut out);
            stream.write_all(&out)?;
            stream.shutdown(Shutdown::Write)?;
            let _ = expect_end(&stream, SOON);
            return Ok(());
        }
    }
    match answer {
        Answer::Does => {}
        Answer::Replies(code) => {
            server.refuse(code, &mut out);
            stream.write_all(&out)?;
            return Ok(());
        }
        Answer::Stalls => {
            stream.write_all(&out)?;
            let _ = expect_end(&stream, SOON);
            return Ok(());
        }
        Answer::Sends(bytes) => {
            stream.write_all(&bytes)?;
            let _ = expect_end(&stream, SOON);
            return Ok(());
        }
    }
    let nothing = OpReplyOptions::default;
    match request.command {
        Command::CONNECT => {
            let to = match request.address.socket_addr() {
                Some(to) => to,
                None => lock().names.ok_or_else(|| bad("a name"))?,
            };
            let Ok(remote) = connect(to) else {
                server.refuse(ReplyCode::CONNECTION_REFUSED, &mut out);
                return stream.write_all(&out);
            };
            let bound = remote.local_addr()?.into();
            server.reply(ReplyCode::SUCCEEDED, bound, nothing(), &mut out);
            stream.write_all(&out)?;
            pump(stream, remote, &input)
        }
        Command::BIND => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let bound = listener.local_addr()?.into();
            server.reply(ReplyCode::SUCCEEDED, bound, nothing(), &mut out);
            stream.write_all(&out)?;
            let (remote, from) = listener.accept()?;
            let from = lock().caller.unwrap_or(from);
            out.clear();
            server.reply(ReplyCode::SUCCEEDED, from.into(), nothing(), &mut out);
            stream.write_all(&out)?;
            pump(stream, remote, &input)
        }
        Command::ASSOCIATE => {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let bound = socket.local_addr()?.into();
            server.reply(ReplyCode::SUCCEEDED, bound, nothing(), &mut out);
            let profile = Profile::DRAFT_12;
            UdpMessage::Initialization(AssociationId(77)).encode(&profile, &mut out);
            // The id in a segment of its own.
            let at = out.len() - 12;
            stream.write_all(&out[..at + 5])?;
            thread::sleep(Duration::from_millis(20));
            stream.write_all(&out[at + 5..])?;
            let names = lock().names;
            associate(&stream, &socket, names)
        }
        _ => Ok(()),
    }
}

/// Who asks, and what of that is answered.
fn judge(request: &Request, state: &mut State) -> (Arrival, AuthReplyOptions) {
    let now = Instant::now();
    let base = Token(u32::MAX - 3);
    let options = &request.options;
    if let Some(sessions) = &mut state.sessions {
        if std::mem::take(&mut state.overtake) {
            sessions.arrive(options, base, now);
        }
        let arrived = sessions.arrive(options, base, now);
        if arrived.0 != Arrival::Authenticate {
            return arrived;
        }
    }
    let may = match (&options.password, &state.password) {
        (Some(login), Some(right)) => right.matches(login),
        (None, None) => true,
        _ => false,
    };
    if !may {
        return (Arrival::Authenticate, AuthReplyOptions::default());
    }
    let owner = Owner {
        user: None,
        address: Ipv4Addr::LOCALHOST.into(),
    };
    let answer = match &mut state.sessions {
        Some(sessions) => sessions.open(
            options,
            owner.clone(),
            fastrand::u128(..).to_be_bytes(),
            base,
            now,
        ),
        None => AuthReplyOptions::default(),
    };
    (Arrival::Inside(owner), answer)
}

/// Both directions until both have ended.
fn pump(stream: TcpStream, mut remote: TcpStream, first: &[u8]) -> io::Result<()> {
    remote.write_all(first)?;
    let (mut up, mut down) = (stream.try_clone()?, stream);
    let mut back = remote.try_clone()?;
    let other = thread::spawn(move || {
        let _ = io::copy(&mut up, &mut remote);
        let _ = remote.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut back, &mut down);
    let _ = down.shutdown(Shutdown::Write);
    let _ = other.join();
    Ok(())
}

/// Datagrams over the stream, until it ends.
fn associate(stream: &TcpStream, socket: &UdpSocket, names: Option<SocketAddr>) -> io::Result<()> {
    let profile = Profile::DRAFT_12;
    let id = AssociationId(77);
    let (mut up, down) = (
        stream.try_clone()?,
        Arc::new(Mutex::new(stream.try_clone()?)),
    );
    let back = socket.try_clone()?;
    let whole = Arc::clone(&down);
    back.set_read_timeout(Some(SOON))?;
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let (count, from) = back.recv_from(&mut buffer)?;
            let message =
                Datagram::new(id, from.into(), &buffer[..count]).ok_or_else(|| bad("length"))?;
            let mut out = Vec::new();
            // Of somebody else, and of a kind that nobody knows: to be passed over.
            UdpMessage::Confirmation(AssociationId(5)).encode(&profile, &mut out);
            out.extend([6, 99, 0, 16, 0, 0, 0, 0, 0, 0, 0, 77, 1, 2, 3, 4]);
            message.encode(&profile, &mut out);
            let mut down = whole.lock().expect("no panic");
            for part in out.chunks(7) {
                down.write_all(part)?;
            }
        }
    });
    let (mut input, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        let count = up.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        input.extend(&buffer[..count]);
        while let Ok(Decoded::Whole {
            message, length, ..
        }) = UdpMessage::decode(&input, &profile)
        {
            let UdpMessage::Datagram(datagram) = message else {
                return Err(bad("not a datagram"));
            };
            if datagram.is_trigger() {
                let mut out = Vec::new();
                UdpMessage::Confirmation(id).encode(&profile, &mut out);
                down.lock().expect("no panic").write_all(&out)?;
            } else {
                let to = datagram
                    .address()
                    .socket_addr()
                    .or(names)
                    .ok_or_else(|| bad("a name"))?;
                socket.send_to(datagram.payload(), to)?;
            }
            input.drain(..length);
        }
    }
}

/// A forwarder that converts for this proxy.
fn forward(remote: &str, arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let forwarder = Sockhop::forward(&["--remote", remote, "--no-probing", "-v"])
        .args(arguments)
        .start();
    let address = forwarder.wait_listening(SOON);
    (forwarder, address)
}

/// SOCKS5's request for an address.
fn request(command: u8, target: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![5, command, 0];
    match target.ip() {
        IpAddr::V4(ip) => {
            bytes.push(1);
            bytes.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(4);
            bytes.extend(ip.octets());
        }
    }
    bytes.extend(target.port().to_be_bytes());
    bytes
}

/// SOCKS4's request for an address, or for a name with 4a.
fn request4(command: u8, target: SocketAddr, name: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![4, command];
    bytes.extend(target.port().to_be_bytes());
    match (name, target.ip()) {
        (Some(name), _) => {
            bytes.extend([0, 0, 0, 1]);
            bytes.extend(b"ada\0");
            bytes.extend(name.as_bytes());
            bytes.push(0);
        }
        (None, IpAddr::V4(ip)) => {
            bytes.extend(ip.octets());
            bytes.extend(b"ada\0");
        }
        (None, ip) => panic!("{ip} is not IPv4"),
    }
    bytes
}

/// The code of the reply of a forwarder that refuses, and then closes in order.
#[track_caller]
fn code(forwarder: SocketAddr, request: &[u8]) -> u8 {
    let mut stream = connect(forwarder).expect("connect");
    stream
        .write_all(&[&[5, 1, 0], request].concat())
        .expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an orderly end");
    assert_eq!(
        (&answer[..3], answer.len()),
        (&[5, 0, 5][..], 12),
        "{answer:02x?}"
    );
    answer[3]
}

const ANYWHERE: &[u8] = &[5, 1, 0, 1, 127, 0, 0, 1, 0, 9];

#[test]
fn clients_of_every_older_version_get_through() {
    let (proxy, target) = (Six::start(), Target::echo());
    proxy.lock().names = Some(target.address());
    let (forwarder, address) = forward(&proxy.uri(), &[]);
    let port = target.address().port();

    let stream = socks5_connect(address, target.address()).expect("SOCKS5");
    assert_eq!(exchange(&stream, b"five").unwrap(), b"five");
    assert_eq!(proxy.last().request.address, target.address().into());

    // Names are the proxy's to look up, whatever they look like.
    for name in ["host.invalid", "localhost"] {
        let stream = socks5_connect_name(address, name, port).expect("a name");
        assert_eq!(exchange(&stream, b"name").unwrap(), b"name");
        assert_eq!(
            proxy.last().request.address.to_string(),
            format!("{name}:{port}")
        );
    }

    for (name, to) in [
        (None, target.address().to_string()),
        (Some("four.invalid"), format!("four.invalid:{port}")),
    ] {
        let mut stream = connect(address).unwrap();
        stream
            .write_all(&request4(1, target.address(), name))
            .unwrap();
        assert_eq!(read_exactly(&stream, 8)[..2], [0, 90]);
        assert_eq!(exchange(&stream, b"four").unwrap(), b"four");
        assert_eq!(proxy.last().request.address.to_string(), to);
    }

    // As it shows itself.
    let status = forwarder.status();
    assert_eq!(status["remote"], json!(proxy.uri()));
    assert_eq!(status["mode"], json!("explicit"));
    assert_eq!(status["connections"]["total"], json!(5));
    assert_eq!(status["last_error"], Value::Null);
    forwarder.wait_status(
        |status| status["bytes"] == json!({"up": 20, "down": 20}),
        SOON,
    );
}

#[test]
fn one_session_carries_everybody_and_no_token_is_spent_twice() {
    let (proxy, target) = (Six::start(), Target::echo());
    let credentials = Credentials::new("ada", "s/cret").unwrap();
    proxy.lock().password = Some(credentials);
    let uri = format!("socks6://ada:s%2Fcret@{}?tokens=16", proxy.address);
    let (forwarder, address) = forward(&uri, &["-vv"]);
    for round in 0..100_u32 {
        let stream = socks5_connect(address, target.address()).expect("through");
        let payload = round.to_be_bytes();
        assert_eq!(exchange(&stream, &payload).unwrap(), payload);
    }
    let seen = proxy.seen();
    assert_eq!(seen.len(), 100);
    assert_eq!(seen[0].request.options.session, SessionUse::Request);
    assert!(seen[0].request.options.password.is_some());
    let mut tokens = Vec::new();
    for one in &seen[1..] {
        assert!(matches!(one.request.options.session, SessionUse::Resume(_)));
        assert!(one.request.options.password.is_none());
        assert!(
            matches!(one.arrival, Arrival::Inside(_)),
            "{:?}",
            one.arrival
        );
        tokens.push(one.request.options.token.expect("a token"));
    }
    tokens.sort_by_key(|token| token.0);
    tokens.dedup();
    assert_eq!(tokens.len(), 99);
    assert!(!forwarder.log().join("\n").contains("cret"));
}

#[test]
fn a_session_that_is_gone_costs_a_client_nothing() {
    let (proxy, target) = (Six::start(), Target::echo());
    let credentials = Credentials::new("ada", "pw").unwrap();
    proxy.lock().password = Some(credentials);
    let uri = format!("socks6://ada:pw@{}", proxy.address);
    let (_forwarder, address) = forward(&uri, &[]);
    drop(socks5_connect(address, target.address()).unwrap());
    // As after a restart.
    proxy.lock().sessions = Some(Sessions::new(Limits::default()));
    let mut stream = connect(address).unwrap();
    let early = [&[5, 1, 0], &request(1, target.address())[..], b"early"].concat();
    stream.write_all(&early).unwrap();
    assert_eq!(read_exactly(&stream, 12)[..4], [5, 0, 5, 0]);
    assert_eq!(read_exactly(&stream, 5), b"early");
    let seen = proxy.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[1].arrival, Arrival::UnknownSession);
    assert_eq!(seen[2].request.options.session, SessionUse::Request);
    assert_eq!(seen[2].behind, b"early");
    drop(socks5_connect(address, target.address()).unwrap());
    assert!(matches!(
        proxy.last().request.options.session,
        SessionUse::Resume(_)
    ));
}

#[test]
fn a_token_that_others_have_overtaken_costs_a_client_nothing() {
    let (proxy, target) = (Six::start(), Target::echo());
    let (_forwarder, address) = forward(&proxy.uri(), &[]);
    drop(socks5_connect(address, target.address()).unwrap());
    // Somebody spends the next one.
    proxy.lock().overtake = true;
    drop(socks5_connect(address, target.address()).unwrap());
    let seen = proxy.seen();
    assert_eq!((seen.len(), &seen[1].arrival), (3, &Arrival::TokenRejected));
    assert_eq!(seen[2].request.options.token, None);
    assert!(matches!(seen[2].arrival, Arrival::Inside(_)));
}

#[test]
fn tokens_come_back_while_destinations_are_slow() {
    let (proxy, target) = (Six::start(), Target::echo());
    let (_forwarder, address) = forward(&format!("{}?tokens=4", proxy.uri()), &[]);
    drop(socks5_connect(address, target.address()).unwrap());
    proxy.lock().answer = Answer::Stalls;
    let mut waiting = Vec::new();
    let spent = || {
        let seen = proxy.seen();
        let spends = |one: &&Seen| one.request.options.token.is_some();
        seen.iter().filter(spends).count()
    };
    // None of them gets its reply, but each brings news of the window.
    let more_than_a_window = wait_until(SOON, || {
        let mut stream = connect(address).unwrap();
        stream.write_all(&[&[5, 1, 0], ANYWHERE].concat()).unwrap();
        waiting.push(stream);
        wait_until(SOON, || proxy.seen().len() > waiting.len());
        spent() > 8
    });
    assert!(more_than_a_window, "{} of {}", spent(), waiting.len());
}

#[test]
fn a_proxy_that_never_knows_a_session_is_asked_twice() {
    let (proxy, target) = (Six::start(), Target::echo());
    let (forwarder, address) = forward(&proxy.uri(), &[]);
    drop(socks5_connect(address, target.address()).unwrap());
    let invalid = b"\x06\x01\0\x04\0\x09\0\x04".to_vec();
    proxy.lock().answer = Answer::Sends(invalid);
    assert_eq!(code(address, ANYWHERE), 1);
    assert_eq!(proxy.seen().len(), 3);
    forwarder.wait_log("the proxy does not know the session", SOON);
}

#[test]
fn a_proxy_without_sessions_and_one_told_to_have_none() {
    let (proxy, target) = (Six::start(), Target::echo());
    proxy.lock().sessions = None;
    for (query, wish) in [("", SessionUse::Request), ("?session=no", SessionUse::None)] {
        let (_forwarder, address) = forward(&format!("{}{query}", proxy.uri()), &[]);
        for _ in 0..3 {
            drop(socks5_connect(address, target.address()).unwrap());
            assert_eq!(proxy.last().request.options.session, wish, "{query}");
        }
    }
}

#[test]
fn reply_codes_are_those_of_the_client() {
    let proxy = Six::start();
    let (forwarder, address) = forward(&proxy.uri(), &[]);
    for (from, to) in [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 5),
        (6, 6),
        (7, 7),
        (8, 8),
        (9, 6),
        (77, 1),
    ] {
        proxy.lock().answer = Answer::Replies(ReplyCode(from));
        assert_eq!(code(address, ANYWHERE), to, "{from}");
    }
    let mut stream = connect(address).unwrap();
    stream
        .write_all(&request4(1, "127.0.0.1:9".parse().unwrap(), None))
        .unwrap();
    assert_eq!(read_exactly(&stream, 8)[..2], [0, 91]);
    // All of them are about destinations: nothing is wrong with the remote.
    assert_eq!(forwarder.status()["last_error"], Value::Null);
}

#[test]
fn what_is_no_proxy_of_socks6_is_a_general_failure_and_told() {
    let mismatch = Peer::scripted(vec![Step::Read(12), Step::Send(vec![5, 0xff]), Step::Close]);
    let garbage = Peer::scripted(vec![
        Step::Read(12),
        Step::Send(b"\x06\0\0\x04\0\x09\0\x03".to_vec()),
    ]);
    // With the wish for a session, so that the close is no reset.
    let closes = Peer::scripted(vec![Step::Read(24), Step::Close]);
    for (remote, told) in [
        (mismatch.address(), "it does not speak SOCKS 6: sent 05 FF"),
        (garbage.address(), "bad authentication reply"),
        (closes.address(), "closed before the authentication reply"),
        (dead_address(), "cannot connect"),
    ] {
        let (forwarder, address) = forward(&format!("socks6://{remote}"), &[]);
        assert_eq!(code(address, ANYWHERE), 1, "{told}");
        forwarder.wait_log(told, SOON);
        let status = forwarder.status();
        let what = status["last_error"]["what"].as_str().expect("an error");
        assert!(what.contains(told), "{what}");
        assert_eq!(
            status["connections"]["refused_by_reason"],
            json!({"via": 1})
        );
    }
}

#[test]
fn a_wrong_password_is_told_once_and_not_shown() {
    let proxy = Six::start();
    proxy.lock().password = Credentials::new("ada", "right").ok();
    let (forwarder, address) = forward(&format!("socks6://ada:wr0ng@{}", proxy.address), &[]);
    for _ in 0..3 {
        assert_eq!(code(address, ANYWHERE), 1);
    }
    let warned =
        |line: &&String| line.contains(" warn: ") && line.contains("rejected the authentication");
    assert_eq!(forwarder.log().iter().filter(warned).count(), 1);
    assert_eq!(
        forwarder.status()["connections"]["refused_by_reason"],
        json!({"via-login": 3})
    );
    assert_eq!(
        forwarder.status()["remote"],
        json!(format!("socks6://ada:***@{}", proxy.address))
    );
    assert!(!forwarder.log().join("\n").contains("wr0ng"));
}

#[test]
fn an_answer_in_single_bytes_is_understood() {
    let reply = b"\x06\0\0\x08\0\x06\0\x08abcd\x06\0\0\0\x12\x34\0\x01\xc0\0\x02\x01hello";
    let steps = reply.iter().flat_map(|byte| {
        [
            Step::Send(vec![*byte]),
            Step::Wait(Duration::from_millis(2)),
        ]
    });
    let peer = Peer::scripted([Step::Read(12)].into_iter().chain(steps).collect());
    let (_forwarder, address) = forward(&format!("socks6://{}", peer.address()), &[]);
    let stream = socks5_connect(address, "192.0.2.7:80".parse().unwrap()).unwrap();
    assert_eq!(read_exactly(&stream, 5), b"hello");
}

#[test]
fn long_streams_are_intact_both_ways_with_what_came_early() {
    const LENGTH: u64 = 5 << 20;
    let (proxy, target) = (Six::start(), Target::echo());
    for flags in [&[][..], &["--early-reply"]] {
        let (_forwarder, address) = forward(&proxy.uri(), flags);
        let mut stream = connect(address).unwrap();
        stream.write_all(&[5, 1, 0]).unwrap();
        let mut sender = stream.try_clone().unwrap();
        let pattern = Pattern::new(7);
        let sent = pattern.clone();
        let to = target.address();
        let sending = thread::spawn(move || {
            // Without waiting for anything.
            sender.write_all(&request(1, to)).unwrap();
            sent.send(&sender, LENGTH, Chunks::Fixed(60_000)).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(read_exactly(&stream, 12)[..4], [5, 0, 5, 0]);
        let received = pattern.receive(&stream, LENGTH + 1);
        assert_eq!(
            (received.bytes, received.wrong_at),
            (LENGTH, None),
            "{received:?}"
        );
        sending.join().unwrap();
    }
}

#[test]
fn early_replies_send_the_first_bytes_with_the_request() {
    let (proxy, target) = (Six::start(), Target::echo());
    for flags in [&[][..], &["--early-reply"]] {
        let relay = Relay::start(proxy.address);
        let (_forwarder, address) = forward(&format!("socks6://{}", relay.address), flags);
        // Two, so that the second one has the session.
        for _ in 0..2 {
            relay.held(!flags.is_empty());
            let mut stream = connect(address).unwrap();
            stream
                .write_all(&[&[5, 1, 0], &request(1, target.address())[..]].concat())
                .unwrap();
            assert_eq!(read_exactly(&stream, 12)[..4], [5, 0, 5, 0]);
            // It has its reply though the proxy has not even been heard, and what it says now travels along.
            stream.write_all(b"hello").unwrap();
            if !flags.is_empty() {
                relay.wait_held(b"hello");
                relay.held(false);
            }
            assert_eq!(read_exactly(&stream, 5), b"hello");
            drop(stream);
            let trips = relay.wait_round_trips();
            assert_eq!(trips, if flags.is_empty() { 2 } else { 1 }, "{flags:?}");
        }
        let at_once = proxy.last().behind == b"hello";
        assert_eq!(at_once, !flags.is_empty());
    }
}

#[test]
fn bytes_behind_the_request_go_along_without_early_replies_too() {
    let (proxy, target) = (Six::start(), Target::echo());
    let relay = Relay::start(proxy.address);
    let (forwarder, address) = forward(&format!("socks6://{}", relay.address), &[]);
    let mut stream = connect(address).unwrap();
    stream
        .write_all(&[&[5, 1, 0], &request(1, target.address())[..], b"early"].concat())
        .unwrap();
    assert_eq!(read_exactly(&stream, 12)[..4], [5, 0, 5, 0]);
    assert_eq!(read_exactly(&stream, 5), b"early");
    drop(stream);
    assert_eq!(relay.wait_round_trips(), 1);
    assert_eq!(proxy.last().behind, b"early");
    forwarder.wait_status(
        |status| status["bytes"] == json!({"up": 5, "down": 5}),
        SOON,
    );
}

#[test]
fn an_early_reply_hides_a_failure_as_a_closed_connection() {
    let proxy = Six::start();
    proxy.lock().answer = Answer::Replies(ReplyCode::CONNECTION_REFUSED);
    let (_forwarder, address) = forward(&proxy.uri(), &["--early-reply"]);
    let mut stream = connect(address).unwrap();
    stream.write_all(&[&[5, 1, 0], ANYWHERE].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
}

/// A relay that counts how often the direction changes from up to down.
struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<RelayState>>,
}

#[derive(Default)]
struct RelayState {
    /// What has come from the client and was not passed on.
    waiting: Vec<u8>,
    is_held: bool,
    was_up: bool,
    trips: usize,
    ended: bool,
}

impl Relay {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new(RelayState::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (Ok(proxy), state) = (connect(to), Arc::clone(&shared)) else {
                    return;
                };
                let _ = client.set_nodelay(true);
                thread::spawn(move || relay(client, proxy, &state));
            }
        });
        Self { address, state }
    }

    fn lock(&self) -> MutexGuard<'_, RelayState> {
        self.state.lock().expect("no panic")
    }

    /// Whether what the client sends is kept back.
    fn held(&self, is_held: bool) {
        self.lock().is_held = is_held;
    }

    #[track_caller]
    fn wait_held(&self, end: &[u8]) {
        assert!(wait_until(SOON, || self.lock().waiting.ends_with(end)));
    }

    /// The round trips of the connection that has ended, or is about to.
    #[track_caller]
    fn wait_round_trips(&self) -> usize {
        assert!(
            wait_until(SOON, || self.lock().ended),
            "the connection ends"
        );
        std::mem::take(&mut *self.lock()).trips
    }
}

fn relay(client: TcpStream, proxy: TcpStream, state: &Arc<Mutex<RelayState>>) {
    let (mut back, mut down) = (
        proxy.try_clone().expect("clone"),
        client.try_clone().expect("clone"),
    );
    let shared = Arc::clone(state);
    let other = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = back.read(&mut buffer) {
            let mut state = shared.lock().expect("no panic");
            state.trips += usize::from(state.was_up);
            state.was_up = false;
            drop(state);
            if down.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = down.shutdown(Shutdown::Both);
    });
    let (mut client, mut proxy) = (client, proxy);
    let _ = client.set_read_timeout(Some(Duration::from_millis(2)));
    let mut buffer = [0; 4096];
    loop {
        let read = client.read(&mut buffer);
        let mut state = state.lock().expect("no panic");
        match read {
            Ok(0) => break,
            Ok(count) => state.waiting.extend(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
        if !state.is_held && !state.waiting.is_empty() {
            state.was_up = true;
            let bytes = std::mem::take(&mut state.waiting);
            drop(state);
            if proxy.write_all(&bytes).is_err() {
                break;
            }
        }
    }
    let _ = proxy.shutdown(Shutdown::Both);
    let _ = other.join();
    state.lock().expect("no panic").ended = true;
}

#[test]
fn bind_lets_the_expected_peer_in_and_nobody_else() {
    let proxy = Six::start();
    let (_forwarder, address) = forward(&proxy.uri(), &[]);
    let expected: SocketAddr = "127.0.0.1:21".parse().unwrap();
    let bind = |request: &[u8], length: usize| {
        let mut stream = connect(address).unwrap();
        let greets = request[0] == 5;
        if greets {
            stream.write_all(&[5, 1, 0]).unwrap();
            read_exactly(&stream, 2);
        }
        stream.write_all(request).unwrap();
        let reply = read_exactly(&stream, length);
        let at = reply[length - 6..length - 4] == [127, 0];
        let port = match length {
            8 => u16::from_be_bytes([reply[2], reply[3]]),
            _ => u16::from_be_bytes([reply[8], reply[9]]),
        };
        assert!(length == 8 || at, "{reply:02x?}");
        let peer = connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        let second = read_exactly(&stream, length);
        (stream, peer, second)
    };
    for (request, length, granted) in [
        (request(2, expected), 10, 0),
        (request(2, "0.0.0.0:0".parse().unwrap()), 10, 0),
        (request4(2, expected, None), 8, 90),
    ] {
        let (stream, mut peer, second) = bind(&request, length);
        assert_eq!(second[1], granted);
        let told = peer.local_addr().unwrap().port().to_be_bytes();
        let at = if length == 8 { 2 } else { 8 };
        assert_eq!(second[at..at + 2], told);
        assert_eq!(proxy.last().request.address.to_string(), "0.0.0.0:0");
        peer.write_all(b"220 ").unwrap();
        assert_eq!(read_exactly(&stream, 4), b"220 ");
        let mut stream = stream;
        stream.write_all(b"USER").unwrap();
        assert_eq!(read_exactly(&peer, 4), b"USER");
    }
    // SOCKS 6 does not ask for the peer, so the one that came may be another.
    proxy.lock().caller = Some("192.0.2.9:4000".parse().unwrap());
    let (stream, peer, second) = bind(&request(2, expected), 10);
    assert_eq!(second[1], 2);
    assert_eq!(expect_end(&stream, SOON), Observed::Eof);
    assert_ne!(expect_end(&peer, SOON), Observed::Silent);
    // A name is nothing to compare with.
    let name = b"\x05\x02\x00\x03\x09host.test\x00\x15";
    assert_eq!(code(address, name), 8);
}

/// A client's association: the connection that holds it, and a socket that is connected to its port.
fn associate5(forwarder: SocketAddr) -> (TcpStream, UdpSocket) {
    let mut stream = connect(forwarder).unwrap();
    stream
        .write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0])
        .unwrap();
    let reply = read_exactly(&stream, 12);
    assert_eq!(
        (&reply[..6], &reply[6..10]),
        (&[5, 0, 5, 0, 0, 1][..], &[127, 0, 0, 1][..])
    );
    let port = u16::from_be_bytes([reply[10], reply[11]]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    (stream, socket)
}

/// With the header of SOCKS5.
fn datagram(to: &[u8], payload: &[u8]) -> Vec<u8> {
    [&[0, 0, 0], to, payload].concat()
}

fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], from);
        }
    });
    address
}

#[test]
fn datagrams_go_both_ways_to_addresses_and_names() {
    let (proxy, echo) = (Six::start(), udp_echo());
    proxy.lock().names = Some(echo);
    let (forwarder, address) = forward(&proxy.uri(), &[]);
    let (stream, socket) = associate5(address);
    assert_eq!(proxy.last().request.command, Command::ASSOCIATE);
    let port = echo.port().to_be_bytes();
    let ip = [&[1, 127, 0, 0, 1][..], &port].concat();
    let name = [b"\x03\x09echo.test", &port[..]].concat();
    let mut buffer = vec![0; 65_536];
    let pattern = Pattern::new(3);
    for (to, length) in [(&ip, 5), (&name, 7), (&ip, 0), (&ip, 1400), (&name, 60_000)] {
        let mut payload = vec![0; length];
        pattern.fill(0, &mut payload);
        socket.send(&datagram(to, &payload)).unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        // Answers come from an address.
        assert!(buffer[..count] == datagram(&ip, &payload), "{length}");
    }
    // What is wrong is dropped without a word; the next one gets through.
    for wrong in [
        &b"\0\0"[..],
        b"\0\0\x01\x01\x7f\0\0\x01\0\x09frag",
        b"\0\0\0\x01\x7f\0\0\x01\0\0zero",
        b"\0\0\0\x09what",
    ] {
        socket.send(wrong).unwrap();
    }
    socket.send(&datagram(&ip, b"on")).unwrap();
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..count], datagram(&ip, b"on"));
    // It ends with the connection, and so does the one to the proxy. The proxy's part of what was dropped are the six messages
    // for somebody else.
    drop(stream);
    forwarder.wait_log("10 dropped", SOON);
    forwarder.wait_status(|status| status["connections"]["active"] == json!(0), SOON);
    let refused = || socket.send(&datagram(&ip, b"gone")).is_err();
    assert!(wait_until(SOON, refused), "the port is closed");
}

#[test]
fn an_association_ends_with_the_proxys_connection_or_never_begins() {
    let reply = b"\x06\0\0\0\x06\0\0\0\x12\x34\0\x01\xc0\0\x02\x01";
    let id = b"\x06\x01\0\x0c\0\0\0\0\0\0\0\x07";
    let scripted = |rest: Vec<Step>| {
        let start = [Step::Read(12), Step::Send(reply.to_vec())];
        Peer::scripted(start.into_iter().chain(rest).collect())
    };
    let ends = scripted(vec![Step::Send(id.to_vec()), Step::Read(20), Step::Close]);
    let (_forwarder, address) = forward(&format!("socks6://{}", ends.address()), &[]);
    let (stream, _socket) = associate5(address);
    assert_eq!(expect_end(&stream, SOON), Observed::Eof);

    let garbles = scripted(vec![
        Step::Send(id.to_vec()),
        Step::Read(20),
        Step::Send(b"HTTP/1.1 200".to_vec()),
    ]);
    let (forwarder, address) = forward(&format!("socks6://{}", garbles.address()), &[]);
    let (stream, _socket) = associate5(address);
    assert_ne!(expect_end(&stream, SOON), Observed::Silent);
    forwarder.wait_log("the proxy sent something else than datagrams", SOON);

    for rest in [
        vec![Step::Close],
        vec![Step::Send(b"\x06\x02\0\x0c\0\0\0\0\0\0\0\x07".to_vec())],
    ] {
        let never = scripted(rest);
        let (forwarder, address) = forward(&format!("socks6://{}", never.address()), &[]);
        assert_eq!(code(address, &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]), 1);
        forwarder.wait_log("id of the association", SOON);
    }
}

#[test]
fn the_remote_changes_between_a_plain_and_a_converted_one_while_it_runs() {
    let (proxy, plain, target) = (Six::start(), Peer::valid(Duration::ZERO), Target::echo());
    let (other, plain_address) = (Six::start(), plain.address().to_string());
    let password = Credentials::new("ada", "hunter2").unwrap();
    other.lock().password = Some(password);
    let (forwarder, address) = forward(&proxy.uri(), &["-vv"]);
    let switch = |to: &str| {
        forwarder
            .control("connect", json!({ "remote": to }))
            .map(|answer| answer["remote"].clone())
    };
    let first = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&first, b"1").unwrap(), b"1");
    assert_eq!((proxy.seen().len(), plain.accepted()), (1, 0));

    assert_eq!(switch(&plain_address), Ok(json!(plain_address)));
    let second = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&second, b"2").unwrap(), b"2");
    assert_eq!((proxy.seen().len(), plain.accepted()), (1, 1));
    // Live streams stay.
    assert_eq!(exchange(&first, b"3").unwrap(), b"3");

    let shown = format!("socks6://ada:***@{}", other.address);
    assert_eq!(
        switch(&format!("socks6://ada:hunter2@{}", other.address)),
        Ok(json!(shown))
    );
    let third = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&third, b"4").unwrap(), b"4");
    assert_eq!(
        (proxy.seen().len(), plain.accepted(), other.seen().len()),
        (1, 1, 1)
    );
    assert_eq!(forwarder.status()["remote"], json!(shown));
    assert_eq!(exchange(&first, b"5").unwrap(), b"5");

    // A disconnect cuts all of them, of whatever kind.
    assert_eq!(
        forwarder.control("disconnect", json!(null)).unwrap()["closed"],
        json!(3)
    );
    for stream in [&first, &second, &third] {
        assert_ne!(expect_end(stream, SOON), Observed::Silent);
    }
    assert_eq!(forwarder.status()["remote"], Value::Null);
    // The command line of the program, which finds its way back to that one; the port is open again.
    let output = forwarder.command(&[
        "connect",
        &format!("socks6://ada:hunter2@{}", other.address),
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with(&format!("connected to {shown}, listening on ")),
        "{text}"
    );
    let address = forwarder.wait_listening(SOON);
    assert_eq!(
        exchange(&socks5_connect(address, target.address()).unwrap(), b"6").unwrap(),
        b"6"
    );
    assert!(!forwarder.log().join("\n").contains("hunter2"));
}

#[test]
fn a_switch_that_cuts_also_cuts_converted_streams() {
    let (proxy, plain, target) = (Six::start(), Peer::valid(Duration::ZERO), Target::echo());
    let (forwarder, address) = forward(&proxy.uri(), &["--on-switch", "cut"]);
    let first = socks5_connect(address, target.address()).unwrap();
    let to = plain.address().to_string();
    forwarder
        .control("connect", json!({ "remote": to }))
        .unwrap();
    assert_ne!(expect_end(&first, SOON), Observed::Silent);
    let second = socks5_connect(address, target.address()).unwrap();
    forwarder
        .control("connect", json!({ "remote": proxy.uri() }))
        .unwrap();
    assert_ne!(expect_end(&second, SOON), Observed::Silent);
    assert_eq!(
        exchange(&socks5_connect(address, target.address()).unwrap(), b"3").unwrap(),
        b"3"
    );
}

#[test]
fn an_own_listener_is_no_remote_and_no_destination() {
    let (proxy, target) = (Six::start(), Target::echo());
    let (forwarder, address) = forward(&proxy.uri(), &[]);
    assert_eq!(code(address, &request(1, address)), 2);
    assert_eq!(proxy.seen().len(), 0);
    let own = format!("socks6://127.0.0.1:{}", address.port());
    let RpcError { code, message } = forwarder
        .control("connect", json!({ "remote": own }))
        .unwrap_err();
    assert_eq!(code, -32002, "{message}");
    assert_eq!(
        exchange(&socks5_connect(address, target.address()).unwrap(), b"on").unwrap(),
        b"on"
    );
}

#[test]
fn a_server_goes_through_older_proxies_to_one_of_socks6() {
    let (proxy, plain, target) = (Six::start(), Peer::valid(Duration::ZERO), Target::echo());
    let echo = udp_echo();
    let first = format!("socks5://{}", plain.address());
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "-v"])
        .args(["--via", &first, "--via", &proxy.uri()])
        .start();
    let address = server.wait_listening(SOON);
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"chain").unwrap(), b"chain");
    assert_eq!((plain.accepted(), proxy.seen().len()), (1, 1));
    // And by that way everything else, under the server's rules.
    let (_stream, socket) = associate5(address);
    let to = |ip: &[u8]| [&[1], ip, &echo.port().to_be_bytes()].concat();
    socket
        .send(&datagram(&to(&[10, 0, 0, 1]), b"private"))
        .unwrap();
    socket
        .send(&datagram(&to(&[127, 0, 0, 1]), b"local"))
        .unwrap();
    let mut buffer = [0; 64];
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..count], datagram(&to(&[127, 0, 0, 1]), b"local"));
    server.wait_status(
        |status| status["dropped_datagrams"]["rules"] == json!(1),
        SOON,
    );
    assert_eq!(
        code(address, &request(2, "10.0.0.1:21".parse().unwrap())),
        2
    );
    assert_eq!(
        code(address, &request(1, "10.0.0.1:21".parse().unwrap())),
        2
    );
}

#[test]
fn the_crates_own_client_gets_through_with_every_command() {
    let (proxy, target, echo) = (Six::start(), Target::echo(), udp_echo());
    proxy.lock().names = Some(target.address());
    let (_forwarder, address) = forward(&proxy.uri(), &[]);
    for scheme in ["socks4a", "socks5", "socks5h"] {
        let uri: ProxyUri = format!("{scheme}://{address}").parse().unwrap();
        let to = target.address().to_string();
        let mut stream = client::connect(&uri, &to).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }
    let uri: ProxyUri = format!("socks5://{address}").parse().unwrap();
    let dialer = Dialer::new(uri);
    let association = dialer.associate().unwrap();
    association.send_to(b"datagram", &echo.into()).unwrap();
    let mut buffer = [0; 64];
    let (count, from) = association.recv_from(&mut buffer, SOON).unwrap();
    assert_eq!((&buffer[..count], from), (&b"datagram"[..], echo.into()));
    let binding = dialer.bind(&"127.0.0.1:21".parse().unwrap()).unwrap();
    let peer = connect(binding.address().unwrap()).unwrap();
    let (_stream, from) = binding.accept(SOON).unwrap();
    assert_eq!(from, peer.local_addr().unwrap().into());
}

/// Both ends are this program: whatever one says, the other has to understand.
#[test]
fn a_server_of_this_program_takes_all_that_is_converted() {
    let (target, echo) = (Target::echo(), udp_echo());
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--user", "ada:pw", "-v"])
        .args(["--udp-filter", "endpoint-independent"])
        .start();
    let proxy = server.wait_listening(SOON);
    let (_forwarder, address) = forward(&format!("socks6://ada:pw@{proxy}"), &[]);
    for round in 0..20_u32 {
        let stream = socks5_connect(address, target.address()).unwrap();
        let payload = round.to_be_bytes();
        assert_eq!(exchange(&stream, &payload).unwrap(), payload);
    }
    // Only the first one has logged in.
    let by_user = |status: &Value| status["by_user"]["ada"]["total"].clone();
    assert_eq!(
        by_user(&server.status()),
        json!(20),
        "all of them are ada's"
    );
    let dialer = Dialer::new(format!("socks5://{address}").parse().unwrap());
    let association = dialer.associate().unwrap();
    let mut buffer = [0; 64];
    for payload in [&b"one"[..], b"", b"three"] {
        association.send_to(payload, &echo.into()).unwrap();
        let (count, from) = association.recv_from(&mut buffer, SOON).unwrap();
        assert_eq!((&buffer[..count], from), (payload, echo.into()));
    }
    let binding = dialer.bind(&"127.0.0.1:21".parse().unwrap()).unwrap();
    let peer = connect(binding.address().unwrap()).unwrap();
    let (stream, from) = binding.accept(SOON).unwrap();
    assert_eq!(from, peer.local_addr().unwrap().into());
    (&peer).write_all(b"220 ").unwrap();
    let mut answer = [0; 4];
    (&stream).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"220 ");
    assert_eq!(
        code(address, &request(1, "10.0.0.1:80".parse().unwrap())),
        2
    );
    assert_eq!(code(address, &request(1, dead_address())), 5);
}

/// Datagrams of IPv6 through an association that was asked for without a family.
#[test]
fn datagrams_get_to_both_families_through_a_server_of_this_program() {
    let Ok(socket) = UdpSocket::bind("[::1]:0") else {
        return;
    };
    socket.set_read_timeout(Some(SOON)).unwrap();
    let server =
        Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1/128"]).start();
    let proxy = server.wait_listening(SOON);
    let (_forwarder, address) = forward(&format!("socks6://{proxy}"), &[]);
    let dialer = Dialer::new(format!("socks5://{address}").parse().unwrap());
    let association = dialer.associate().unwrap();
    let to = socket.local_addr().unwrap();
    association.send_to(b"six", &to.into()).unwrap();
    let mut buffer = [0; 64];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"six");
    socket.send_to(b"back", from).unwrap();
    let (count, from) = association.recv_from(&mut buffer, SOON).unwrap();
    assert_eq!((&buffer[..count], from), (&b"back"[..], to.into()));
}

/// The other direction: clients of SOCKS 6, a remote of SOCKS 5.
#[test]
fn clients_of_socks6_get_through_an_older_proxy() {
    let (plain, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let via = format!("socks5://{}", plain.address());
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--via", &via]).start();
    let address = server.wait_listening(SOON);
    let mut client = Handshake::new(
        Request::new(Command::CONNECT, target.address().into()),
        Profile::DRAFT_12,
    );
    let mut out = Vec::new();
    client.start(&mut out);
    out.extend(b"early");
    let mut stream = connect(address).unwrap();
    stream.write_all(&out).unwrap();
    while client.outcome().is_none() {
        let bytes = read_exactly(&stream, client.wanted());
        client.feed(&bytes).unwrap();
    }
    assert_eq!(read_exactly(&stream, 5), b"early");
    assert_eq!(plain.accepted(), 1);
}

/// curl -> `forward --remote socks6://` -> the scripted proxy.
#[test]
#[ignore = "needs curl"]
fn curl_gets_through() {
    let pattern = Pattern::new(11);
    let (proxy, target) = (Six::start(), Target::http("127.0.0.1:0", &pattern));
    proxy.lock().names = Some(target.address());
    for flags in [&[][..], &["--early-reply"]] {
        let (_forwarder, address) = forward(&proxy.uri(), flags);
        for scheme in ["socks4", "socks4a", "socks5", "socks5h"] {
            let host = if scheme.ends_with(['a', 'h']) {
                "host.invalid"
            } else {
                "127.0.0.1"
            };
            let output = std::process::Command::new(program("curl"))
                .args(["-sS", "-m", "10", "-x", &format!("{scheme}://{address}")])
                .arg(format!("http://{host}:{}/1000000", target.address().port()))
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(
                (output.stdout.len(), pattern.verify(0, &output.stdout)),
                (1_000_000, None)
            );
        }
    }
}

#[test]
fn what_cannot_be_converted_is_refused_at_once_and_passwords_can_be_hidden() {
    for (arguments, told) in [
        (
            &["--remote", "socks6://a", "--remote", "b"][..],
            "for all of them or for none",
        ),
        (&["--remote", "socks6://a?fallback=socks5"], "fallback"),
        (
            &["--remote", "socks6://ada:hunter2@a?nonsense=1"],
            "nonsense",
        ),
    ] {
        let output = Sockhop::run(&[&["forward"], arguments].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(told) && !text.contains("hunter2"), "{text}");
    }
    let (proxy, target) = (Six::start(), Target::echo());
    proxy.lock().password = Credentials::new("ada", "hunter2").ok();
    let forwarder = Sockhop::forward(&["--no-probing"])
        .env(
            "SOCKHOP_REMOTE",
            format!("socks6://ada:hunter2@{}", proxy.address),
        )
        .start();
    let address = forwarder.wait_listening(SOON);
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"unseen").unwrap(), b"unseen");
    let output = Sockhop::run(&["serve", "--early-reply"]);
    assert_eq!(output.status.code(), Some(2));
}
