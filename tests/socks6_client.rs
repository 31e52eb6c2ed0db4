//! The blocking client for SOCKS 6, against proxies that are made of the answering state machine and misbehave at will.
//!
//! Those tests at the end whose names begin with `serve_` run the real server.
#![cfg(feature = "socks6")]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Behaviour, Peer, SOON, Sockhop, Step, Target, exchange};
use sockhop::ProxyUri;
use sockhop::client::{
    ClientError, DatagramError, Dialer, Fault, MAX_EARLY_DATA, Phase, Whose, negotiate_socks6,
};
use sockhop::handshake::socks6::client::Phase as Awaited;
use sockhop::handshake::socks6::{
    Arrival, Client, ClientError as HandshakeError, Limits, Owner, Server, Sessions,
};
use sockhop::wire::BoundAddress;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    AssociationId, AuthReplyOptions, Choice, Command, Datagram, ErrorCode, OpReplyOptions, Parity,
    PortParity, Profile, ReplyCode, Request, Reserve, SessionId, SessionUse, SessionVerdict,
    StackOptions, Token, TokenVerdict, UdpError, UdpMessage, Window, WindowSize,
};

const TARGET: &str = "192.0.2.1:80";
const BOUND: &str = "192.0.2.7:4000";

/// A proxy on loopback whose connections are each served by a script, on a thread of its own.
struct Proxy {
    address: SocketAddr,
    accepted: Arc<Mutex<usize>>,
    stop: Arc<Mutex<bool>>,
    acceptor: Option<thread::JoinHandle<()>>,
}

/// One connection to it.
struct Conn {
    stream: TcpStream,
    profile: Profile,
    /// How many were before it.
    number: usize,
}

/// A request that has come.
struct Asked {
    server: Server,
    request: Request,
    /// What came with it, in the same read.
    behind: Vec<u8>,
}

impl Proxy {
    fn new(profile: Profile, script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, stop) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
        let (count, stopped) = (Arc::clone(&accepted), Arc::clone(&stop));
        let script = Arc::new(script);
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if *stopped.lock().unwrap() {
                    return;
                }
                stream.set_read_timeout(Some(SOON)).unwrap();
                let mut count = count.lock().unwrap();
                let number = *count;
                *count += 1;
                let script = Arc::clone(&script);
                thread::spawn(move || {
                    script(Conn {
                        stream,
                        profile,
                        number,
                    });
                });
            }
        });
        Self {
            address,
            accepted,
            stop,
            acceptor: Some(acceptor),
        }
    }

    /// What does `serve` with each request of a draft-12 client.
    fn asked(serve: impl Fn(&mut Conn, Asked) + Send + Sync + 'static) -> Self {
        Self::new(Profile::DRAFT_12, move |mut conn| {
            if let Some(asked) = conn.ask() {
                serve(&mut conn, asked);
            }
        })
    }

    fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap()
    }

    fn uri(&self, query: &str) -> ProxyUri {
        self.uri_of("", query)
    }

    fn uri_of(&self, login: &str, query: &str) -> ProxyUri {
        let text = format!("socks6://{login}{}?timeout=10s{query}", self.address);
        text.parse().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.stop.lock().unwrap() = true;
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(acceptor)) = (woken, self.acceptor.take()) {
            let _ = acceptor.join();
        }
    }
}

impl Conn {
    /// The request, or `None` if the client has left.
    fn ask(&mut self) -> Option<Asked> {
        let mut server = Server::new(self.profile);
        let mut behind = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while server.request().is_none() {
            let count = self.stream.read(&mut buffer).unwrap_or(0);
            if count == 0 {
                return None;
            }
            let taken = server.feed(&buffer[..count], &mut Vec::new()).unwrap();
            behind = buffer[taken..count].to_vec();
        }
        let request = server.request().unwrap().clone();
        Some(Asked {
            server,
            request,
            behind,
        })
    }

    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Waits until the client has closed.
    fn wait_end(&mut self) {
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }
}

impl Asked {
    /// Both replies, in one write.
    fn accept(&mut self, options: AuthReplyOptions) -> Vec<u8> {
        let mut out = Vec::new();
        self.server.accept(options, &mut out);
        self.reply(ReplyCode::SUCCEEDED, &mut out);
        out
    }

    fn reply(&mut self, code: ReplyCode, out: &mut Vec<u8>) {
        let options = OpReplyOptions {
            stack: self.request.options.stack,
            ..OpReplyOptions::default()
        };
        self.server.reply(code, bound(), options, out);
    }
}

fn bound() -> BoundAddress {
    BoundAddress::Socket(BOUND.parse().unwrap())
}

fn none() -> AuthReplyOptions {
    AuthReplyOptions::default()
}

fn reply_with(code: ReplyCode) -> impl Fn(&mut Conn, Asked) + Send + Sync + 'static {
    move |conn, mut asked| {
        let mut out = Vec::new();
        asked.server.accept(none(), &mut out);
        asked.reply(code, &mut out);
        conn.send(&out);
    }
}

#[track_caller]
fn connect(proxy: &Proxy, query: &str) -> Result<TcpStream, ClientError> {
    Dialer::new(proxy.uri(query)).connect(&TARGET.parse().unwrap())
}

#[track_caller]
fn read_text(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Passes bytes both ways until both have ended.
fn relay(a: &TcpStream, b: &TcpStream) {
    let one_way = |from: &TcpStream, to: &TcpStream| {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        }
    };
    let up = thread::spawn(one_way(a, b));
    one_way(b, a)();
    up.join().unwrap();
}

/// Connects to where the client wants to go.
fn forward(conn: &mut Conn, mut asked: Asked) {
    let target = asked.request.address.socket_addr().unwrap();
    let mut target = TcpStream::connect(target).unwrap();
    target.write_all(&asked.behind).unwrap();
    conn.send(&asked.accept(none()));
    relay(&conn.stream, &target);
}

// Round trips

/// A client's stream whose other side is a function from everything it got so far, and a count of how often it was waited for.
struct Wire<F> {
    answer: F,
    up: Vec<u8>,
    down: Vec<u8>,
    writes: usize,
    round_trips: usize,
}

impl<F: FnMut(&[u8]) -> Vec<u8>> Read for Wire<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.down.is_empty() {
            // Everything that was sent travels there, and what is to be said to that comes back.
            self.round_trips += 1;
            self.down = (self.answer)(&self.up);
        }
        let count = buffer.len().min(self.down.len());
        buffer[..count].copy_from_slice(&self.down[..count]);
        self.down.drain(..count);
        Ok(count)
    }
}

impl<F> Write for Wire<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += usize::from(!bytes.is_empty());
        self.up.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The proxy at the end of the wire: it passes payload on to a target that answers with it, backwards.
fn reversing(profile: Profile) -> impl FnMut(&[u8]) -> Vec<u8> {
    let mut server = Server::new(profile);
    let mut seen = 0;
    move |up| {
        let mut down = Vec::new();
        seen += server.feed(&up[seen..], &mut down).unwrap();
        if let Some(request) = server.request() {
            let mut options = none();
            if let SessionUse::Resume(_) = request.options.session {
                options.session = Some(SessionVerdict::Ok);
                options.token = request.options.token.map(|_| TokenVerdict::Accepted);
            }
            server.accept(options, &mut down);
            let ok = ReplyCode::SUCCEEDED;
            server.reply(ok, bound(), OpReplyOptions::default(), &mut down);
        }
        down.extend(up[seen..].iter().rev());
        seen = up.len();
        down
    }
}

#[test]
fn connect_takes_one_round_trip_to_the_first_answer_byte() {
    for (name, profile) in Profile::NAMED {
        // With a session, a token and data; with a password and data; with data alone.
        for (inside, login) in [(true, false), (false, true), (false, false)] {
            let mut request = Request::new(Command::CONNECT, "example.org:80".parse().unwrap());
            if inside {
                let id = SessionId::new(b"12345678").unwrap();
                request.options.session = SessionUse::Resume(id);
                request.options.token = Some(Token(7));
            }
            if login {
                let ada = sockhop::wire::Credentials::new("ada", "pass").unwrap();
                request.options.password = Some(ada.into());
            }
            let mut wire = Wire {
                answer: reversing(profile),
                up: Vec::new(),
                down: Vec::new(),
                writes: 0,
                round_trips: 0,
            };
            let mut handshake = Client::new(request, profile);
            negotiate_socks6(&mut wire, &mut handshake, b"hello").expect(name);
            let mut answer = [0; 5];
            wire.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"olleh");
            assert_eq!(
                (wire.round_trips, wire.writes),
                (1, 1),
                "{name} {inside} {login}"
            );
        }
    }
}

// Early data

#[test]
fn request_and_early_data_come_in_one_segment_in_every_profile() {
    for (name, profile) in Profile::NAMED {
        for login in ["", "ada:pass@"] {
            for target in [
                "192.0.2.1:80",
                "[2001:db8::1]:80",
                "example.org:80",
                "a.example:80",
            ] {
                let (asked_for, requests) = channel();
                let asked_for = Mutex::new(asked_for);
                let proxy = Proxy::new(profile, move |mut conn| {
                    let mut asked = conn.ask().unwrap();
                    let answer = [&asked.accept(none())[..], b"220 ", &asked.behind].concat();
                    conn.send(&answer);
                    let seen = (asked.request, asked.behind);
                    asked_for.lock().unwrap().send(seen).unwrap();
                });
                let uri = proxy.uri_of(login, &format!("&profile={name}&tos=8&happy-eyeballs=yes"));
                let connected = Dialer::new(uri)
                    .connect_with(&target.parse().unwrap(), b"hello")
                    .unwrap();
                let (request, behind) = requests.recv_timeout(SOON).unwrap();
                assert_eq!(behind, b"hello", "{name} {target}");
                assert_eq!(request.command, Command::CONNECT);
                assert_eq!(request.address.to_string(), target);
                assert_eq!(request.options.password.is_some(), !login.is_empty());
                assert_eq!(request.initial_data(), if login.is_empty() { 0 } else { 5 });
                assert_eq!(connected.bound, bound());
                assert_eq!(connected.granted, request.options.stack);
                assert_eq!(connected.granted.tos.remote, Some(8));
                let to_name = request.address.socket_addr().is_none();
                assert_eq!(connected.granted.happy_eyeballs.is_some(), to_name);
                // What came behind the replies is there for the first read.
                assert_eq!(read_text(&connected.stream), "220 hello");
                let flags = rustix::fs::fcntl_getfl(&connected.stream).unwrap();
                assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
            }
        }
    }
}

#[test]
fn much_early_data_is_sent_and_too_much_is_refused() {
    let data: Vec<u8> = (0..=250).cycle().take(MAX_EARLY_DATA).collect();
    let expected = data.clone();
    for login in ["", "ada:pass@"] {
        let (expected, (seen, sizes)) = (expected.clone(), channel());
        let seen = Mutex::new(seen);
        let proxy = Proxy::asked(move |conn, mut asked| {
            let declared = asked.request.initial_data();
            let mut got = asked.behind.clone();
            got.extend(conn.read(expected.len() - got.len()));
            assert_eq!(got, expected);
            conn.send(&asked.accept(none()));
            seen.lock().unwrap().send(declared).unwrap();
        });
        let dialer = Dialer::new(proxy.uri_of(login, ""));
        let target = TARGET.parse().unwrap();
        dialer.connect_with(&target, &data).unwrap();
        let declared = sizes.recv_timeout(SOON).unwrap();
        assert_eq!(declared, if login.is_empty() { 0 } else { MAX_EARLY_DATA });
        let error = dialer
            .connect_with(&target, &[0; MAX_EARLY_DATA + 1])
            .unwrap_err();
        assert!(matches!(error, ClientError::EarlyDataTooLong(_)), "{error}");
        assert_eq!(error.fault(), Fault::Caller);
    }
}

#[test]
fn older_proxies_get_early_data_once_they_have_connected() {
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let uri = format!("socks5://{}", peer.address()).parse().unwrap();
    let dialer = Dialer::new(uri);
    let connected = dialer
        .connect_with(&target.address().into(), b"early")
        .unwrap();
    let mut answer = [0; 5];
    (&connected.stream).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"early");
    assert!(connected.granted.is_empty() && !dialer.takes_early_data());
}

#[test]
fn replies_in_single_bytes_are_enough() {
    let proxy = Proxy::asked(|conn, mut asked| {
        conn.stream.set_nodelay(true).unwrap();
        for byte in asked.accept(none()) {
            conn.send(&[byte]);
        }
        conn.send(b"x");
    });
    assert_eq!(read_text(&connect(&proxy, "&tos=1&ttl=9").unwrap()), "x");
}

// Password

#[test]
fn password_is_run_as_a_method_if_the_proxy_wants_that() {
    for (status, accepted) in [(0, true), (1, false)] {
        let proxy = Proxy::asked(move |conn, mut asked| {
            assert_eq!(asked.behind, b"early");
            let mut out = Vec::new();
            assert!(asked.server.negotiate(Method::USER_PASSWORD, &mut out));
            conn.send(&out);
            assert_eq!(conn.read(11), b"\x01\x03ada\x05p@ss!");
            let mut out = vec![1, status];
            match accepted {
                true => out.extend(asked.accept(none())),
                false => asked.server.reject(none(), &mut out),
            }
            conn.send(&out);
        });
        let dialer = Dialer::new(proxy.uri_of("ada:p%40ss!@", ""));
        let connected = dialer.connect_with(&TARGET.parse().unwrap(), b"early");
        match connected {
            Ok(_) => assert!(accepted),
            Err(error) => {
                assert!(!accepted);
                let failed = HandshakeError::AuthenticationFailed;
                assert!(
                    matches!(&error, ClientError::Socks6(_, error) if *error == failed),
                    "{error:?}"
                );
            }
        }
    }
}

#[test]
fn wrong_password_is_the_proxys_verdict_and_not_shown() {
    let proxy = Proxy::asked(|conn, mut asked| {
        let mut out = Vec::new();
        asked.server.reject(none(), &mut out);
        conn.send(&out);
    });
    let dialer = Dialer::new(proxy.uri_of("ada:SECRET@", ""));
    let error = dialer.connect(&TARGET.parse().unwrap()).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Socks6(_, HandshakeError::AuthenticationFailed)
        ),
        "{error:?}"
    );
    assert_eq!(error.fault(), Fault::Proxy);
    assert!(!format!("{error} {error:?} {dialer:?}").contains("SECRET"));
}

// Sessions and tokens

/// What a request said of session and token.
#[derive(Debug, PartialEq)]
struct Seen {
    command: Command,
    session: SessionUse,
    password: bool,
    token: Option<Token>,
    behind: Vec<u8>,
}

/// A proxy with a book of sessions that accepts everybody, and what it saw.
fn bookkeeper(profile: Profile) -> (Proxy, Arc<Mutex<Sessions>>, Receiver<Seen>) {
    let sessions = Arc::new(Mutex::new(Sessions::new(Limits::default())));
    let book = Arc::clone(&sessions);
    let (seen, seens) = channel();
    let seen = Mutex::new(seen);
    let proxy = Proxy::new(profile, move |mut conn| {
        let Some(mut asked) = conn.ask() else { return };
        let options = &asked.request.options;
        let sent = seen.lock().unwrap().send(Seen {
            command: asked.request.command,
            session: options.session.clone(),
            password: options.password.is_some(),
            token: options.token,
            behind: asked.behind.clone(),
        });
        sent.unwrap();
        let (base, now) = (Token(u32::MAX), Instant::now());
        let (arrival, answer) = book.lock().unwrap().arrive(options, base, now);
        let answer = match arrival {
            Arrival::Authenticate => {
                let owner = Owner {
                    user: None,
                    address: "127.0.0.1".parse().unwrap(),
                };
                let id = [u8::try_from(conn.number).unwrap(); 16];
                book.lock().unwrap().open(options, owner, id, base, now)
            }
            Arrival::Inside(_) => answer,
            _ => {
                let mut out = Vec::new();
                asked.server.reject(answer, &mut out);
                conn.send(&out);
                return;
            }
        };
        let replies = asked.accept(answer);
        conn.send(&[&replies[..], &asked.behind].concat());
    });
    (proxy, sessions, seens)
}

#[test]
fn one_session_and_its_tokens_serve_a_dialer_and_its_clones() {
    for (name, profile) in Profile::NAMED {
        let (proxy, _, seen) = bookkeeper(profile);
        let uri = proxy.uri_of("ada:pass@", &format!("&profile={name}&tokens=4"));
        let dialer = Dialer::new(uri);
        let target = TARGET.parse().unwrap();
        assert!(!dialer.has_session());
        for number in 0..20_u32 {
            let connected = dialer.clone().connect_with(&target, b"data").unwrap();
            assert_eq!(read_text(&connected.stream), "data");
            let seen = seen.recv_timeout(SOON).unwrap();
            assert_eq!(seen.command, Command::CONNECT);
            if number == 0 {
                assert_eq!((seen.session, seen.token), (SessionUse::Request, None));
                assert!(seen.password);
            } else {
                // One after the other, across zero, and no password any more.
                let token = Token(u32::MAX).plus(number - 1);
                assert!(matches!(seen.session, SessionUse::Resume(_)), "{name}");
                assert_eq!((seen.token, seen.password), (Some(token), false), "{name}");
            }
            assert_eq!(seen.behind, b"data");
            assert!(dialer.has_session());
            assert_eq!(dialer.tokens_left(), 4);
        }
        assert!(!format!("{dialer:?}").contains("pass"));
    }
}

#[test]
fn noop_fetches_the_session_for_what_comes_later() {
    let (proxy, _, seen) = bookkeeper(Profile::DRAFT_12);
    let dialer = Dialer::new(proxy.uri("&session=yes"));
    dialer.noop().unwrap();
    assert!(dialer.has_session());
    dialer.connect(&TARGET.parse().unwrap()).unwrap();
    let (first, second) = (seen.recv_timeout(SOON), seen.recv_timeout(SOON));
    assert_eq!(first.unwrap().command, Command::NOOP);
    assert!(matches!(second.unwrap().session, SessionUse::Resume(_)));
    assert_eq!(dialer.tokens_left(), 0);
}

#[test]
fn without_being_asked_to_no_session_is_wanted() {
    let (proxy, _, seen) = bookkeeper(Profile::DRAFT_12);
    let dialer = Dialer::new(proxy.uri(""));
    dialer.noop().unwrap();
    assert_eq!(seen.recv_timeout(SOON).unwrap().session, SessionUse::None);
}

#[test]
fn session_is_ended_once_and_asked_for_again() {
    let (proxy, sessions, seen) = bookkeeper(Profile::DRAFT_12);
    let dialer = Dialer::new(proxy.uri_of("ada:pass@", "&session=yes"));
    dialer.end_session().unwrap();
    assert_eq!(proxy.accepted(), 0);
    dialer.noop().unwrap();
    assert_eq!(sessions.lock().unwrap().len(), 1);
    dialer.clone().end_session().unwrap();
    assert!(sessions.lock().unwrap().is_empty() && !dialer.has_session());
    dialer.end_session().unwrap();
    dialer.noop().unwrap();
    let seen: Vec<_> = seen.try_iter().collect();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0].session, SessionUse::Request);
    assert!(matches!(seen[1].session, SessionUse::Teardown(_)) && seen[1].password);
    assert_eq!(seen[2].session, SessionUse::Request);
}

#[test]
fn session_that_is_gone_costs_one_more_connection_with_the_password_and_the_data() {
    let (proxy, sessions, seen) = bookkeeper(Profile::DRAFT_12);
    let dialer = Dialer::new(proxy.uri_of("ada:pass@", "&tokens=9"));
    dialer.noop().unwrap();
    seen.recv_timeout(SOON).unwrap();
    assert!(
        sessions
            .lock()
            .unwrap()
            .close(&SessionId::new(&[0; 16]).unwrap())
    );
    let connected = dialer
        .connect_with(&TARGET.parse().unwrap(), b"data")
        .unwrap();
    assert_eq!(read_text(&connected.stream), "data");
    let gone = seen.recv_timeout(SOON).unwrap();
    assert!(matches!(gone.session, SessionUse::Resume(_)) && gone.token.is_some());
    let again = seen.recv_timeout(SOON).unwrap();
    assert_eq!((again.session, again.password), (SessionUse::Request, true));
    assert_eq!(again.behind, b"data");
    assert_eq!(proxy.accepted(), 3);
    assert_eq!(dialer.tokens_left(), 9);
}

#[test]
fn proxy_that_never_knows_a_session_is_not_asked_for_ever() {
    let proxy = Proxy::asked(|conn, mut asked| {
        let mut out = Vec::new();
        let options = AuthReplyOptions {
            session: Some(SessionVerdict::Invalid),
            ..none()
        };
        match conn.number {
            0 => {
                let id = SessionId::new(b"abcd");
                out = asked.accept(AuthReplyOptions {
                    session_id: id,
                    ..none()
                });
            }
            _ => asked.server.reject(options, &mut out),
        }
        conn.send(&out);
    });
    let dialer = Dialer::new(proxy.uri("&session=yes"));
    dialer.noop().unwrap();
    let error = dialer.connect(&TARGET.parse().unwrap()).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Socks6(_, HandshakeError::SessionInvalid)
        ),
        "{error:?}"
    );
    assert_eq!((proxy.accepted(), dialer.has_session()), (3, false));
}

/// As the Go implementation does it: ids are handed out, but only a failure without a reason comes of using one.
#[test]
fn sessions_of_a_proxy_that_does_not_know_its_own_are_not_used_again() {
    let proxy = Proxy::new(Profile::GO_212, |mut conn| {
        let Some(mut asked) = conn.ask() else { return };
        let mut out = Vec::new();
        match asked.request.options.session {
            SessionUse::Resume(_) => asked.server.reject(none(), &mut out),
            _ => {
                let session_id = SessionId::new(b"abcdefgh");
                out = asked.accept(AuthReplyOptions {
                    session_id,
                    ..none()
                });
            }
        }
        conn.send(&out);
    });
    let dialer = Dialer::new(proxy.uri_of("ada:pass@", "&profile=go212&session=yes"));
    for connections in [1, 3, 4, 5] {
        dialer.connect(&TARGET.parse().unwrap()).unwrap();
        assert_eq!(proxy.accepted(), connections);
    }
}

#[test]
fn rejected_token_costs_one_more_connection_without_one() {
    for always in [false, true] {
        let (seen, tokens) = channel();
        let seen = Mutex::new(seen);
        let proxy = Proxy::asked(move |conn, mut asked| {
            let token = asked.request.options.token;
            seen.lock()
                .unwrap()
                .send((token, asked.behind.clone()))
                .unwrap();
            let window = |base| {
                Some(Window {
                    base: Token(base),
                    size: WindowSize::new(8).unwrap(),
                })
            };
            let mut answer = AuthReplyOptions {
                session: (conn.number > 0).then_some(SessionVerdict::Ok),
                session_id: (conn.number == 0).then(|| SessionId::new(b"abcd").unwrap()),
                window: window(100),
                ..none()
            };
            let mut out = Vec::new();
            if conn.number > 0 && (always || token == Some(Token(100))) {
                answer.token = Some(TokenVerdict::Rejected);
                answer.window = window(102);
                asked.server.reject(answer, &mut out);
            } else {
                out = asked.accept(answer);
            }
            conn.send(&out);
        });
        let dialer = Dialer::new(proxy.uri("&tokens=8"));
        dialer.noop().unwrap();
        let target = TARGET.parse().unwrap();
        let connected = dialer.connect_with(&target, b"data");
        assert_eq!(proxy.accepted(), 3);
        let seen: Vec<_> = tokens.try_iter().skip(1).collect();
        let data = b"data".to_vec();
        assert_eq!(seen, [(Some(Token(100)), data.clone()), (None, data)]);
        if always {
            let error = connected.unwrap_err();
            assert!(
                matches!(error, ClientError::Socks6(_, HandshakeError::TokenRejected)),
                "{error:?}"
            );
            assert_eq!(error.fault(), Fault::Proxy);
        } else {
            // The session and the news of its window are kept.
            connected.unwrap();
            assert!(dialer.has_session());
            dialer.connect(&target).unwrap();
            assert_eq!(tokens.recv_timeout(SOON).unwrap().0, Some(Token(102)));
        }
    }
}

#[test]
fn window_is_refreshed_before_it_runs_out() {
    let (seen, commands) = channel();
    let seen = Mutex::new(seen);
    let proxy = Proxy::asked(move |conn, mut asked| {
        let options = &asked.request.options;
        let (command, token) = (asked.request.command, options.token);
        seen.lock().unwrap().send((command, token)).unwrap();
        let spent = token.map_or(0, |token| token.0 + 1);
        let window = |base| {
            Some(Window {
                base: Token(base),
                size: WindowSize::new(4).unwrap(),
            })
        };
        let first = conn.number == 0;
        // Those that spend get no answer, so nobody learns from them how far the window has moved.
        if command == Command::CONNECT {
            assert!(spent > 0);
            return;
        }
        let replies = asked.accept(AuthReplyOptions {
            session_id: first.then(|| SessionId::new(b"abcd").unwrap()),
            session: (!first).then_some(SessionVerdict::Ok),
            window: window(if first { 0 } else { 3 }),
            ..none()
        });
        conn.send(&replies);
    });
    let dialer = Dialer::new(proxy.uri("&tokens=4"));
    dialer.noop().unwrap();
    let target = TARGET.parse().unwrap();
    for _ in 0..4 {
        dialer.connect(&target).unwrap_err();
    }
    let seen: Vec<_> = commands.try_iter().collect();
    let spent = |token| (Command::CONNECT, Some(Token(token)));
    let noop = (Command::NOOP, None);
    assert_eq!(seen, [noop, spent(0), spent(1), spent(2), noop, spent(3)]);
}

// Failures

#[test]
fn every_reply_code_tells_whose_fault_it_is() {
    for code in (1..=9).chain([0x42]) {
        let code = ReplyCode(code);
        let proxy = Proxy::asked(reply_with(code));
        let error = connect(&proxy, "").unwrap_err();
        assert!(
            matches!(
                &error,
                ClientError::RefusedBySocks6 { code: told, whose: Whose::Target, target, .. }
                    if *told == code && target.to_string() == TARGET
            ),
            "{error:?}"
        );
        let fault = match code.0 {
            7 | 8 => Fault::Proxy,
            _ => Fault::Target,
        };
        assert_eq!(error.fault(), fault);
        assert_eq!(
            error.to_string().starts_with("target "),
            fault == Fault::Target
        );
        let text = error.to_string();
        assert!(text.contains(&format!("{:#04x}", code.0)), "{text}");
    }
    // For what is about the proxy alone it is the proxy's.
    let proxy = Proxy::asked(reply_with(ReplyCode::NOT_ALLOWED));
    for error in [
        Dialer::new(proxy.uri("")).noop().unwrap_err(),
        Dialer::new(proxy.uri("")).associate().unwrap_err(),
    ] {
        let refused = HandshakeError::Refused(ReplyCode::NOT_ALLOWED);
        assert!(matches!(&error, ClientError::Socks6(_, error) if *error == refused));
        assert_eq!(error.fault(), Fault::Proxy);
    }
}

#[test]
fn garbage_is_the_proxys_fault() {
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n"[..],
        &[6],
        &[5, 0xff],
        &[6, 0, 0, 5, 0, 1, 0, 3, 0],
        &[6, 0, 0, 4, 0, 8, 0, 2],
        &[6, 0, 0xff, 0xff],
        &[6, 1, 0, 8, 0, 3, 0, 8, 1, 0, 0, 0],
        &[6, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4],
        &[6, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4],
    ] {
        let proxy = Proxy::new(Profile::DRAFT_12, |mut conn| {
            conn.ask();
            conn.send(garbage);
            let _ = conn.stream.shutdown(Shutdown::Write);
            conn.wait_end();
        });
        let error = connect(&proxy, "").unwrap_err();
        assert!(matches!(error, ClientError::Socks6(..)), "{error:?}");
        assert_eq!(error.fault(), Fault::Proxy);
        assert_eq!(proxy.accepted(), 1);
    }
}

#[test]
fn early_end_is_told_at_every_byte() {
    let mut asked = Server::new(Profile::DRAFT_12);
    asked
        .feed(&[6, 1, 0, 0, 0, 80, 0, 1, 192, 0, 2, 1], &mut Vec::new())
        .unwrap();
    let mut replies = Vec::new();
    asked.accept(none(), &mut replies);
    asked.reply(
        ReplyCode::SUCCEEDED,
        bound(),
        OpReplyOptions::default(),
        &mut replies,
    );
    for cut in 0..replies.len() {
        let sent = replies[..cut].to_vec();
        let proxy = Proxy::asked(move |conn, _| conn.send(&sent));
        let error = connect(&proxy, "").unwrap_err();
        let expected = match cut {
            // A lone version is a version mismatch reply only if nothing follows; it is taken for a beginning.
            0..4 => HandshakeError::ClosedEarly(Awaited::AuthReply, cut),
            _ => HandshakeError::ClosedEarly(Awaited::Reply, cut - 4),
        };
        assert!(
            matches!(&error, ClientError::Socks6(_, error) if *error == expected),
            "{cut}: {error:?}"
        );
    }
}

#[test]
fn silence_ends_with_the_deadline_in_every_phase() {
    let silent = |sent: &'static [u8]| {
        Proxy::asked(move |conn, _| {
            conn.send(sent);
            conn.wait_end();
        })
    };
    const OK: &[u8] = b"\x06\0\0\0";
    const BOTH: &[u8] = b"\x06\0\0\0\x06\0\0\0\0\x50\0\x01\xc0\0\x02\x01";
    const INITIALIZED: &[u8] =
        b"\x06\0\0\0\x06\0\0\0\0\x50\0\x01\xc0\0\x02\x01\x06\x01\0\x0c12345678";
    let dial = |proxy: &Proxy, login: &str, query: &str| {
        let text = format!("socks6://{login}{}?timeout=200ms{query}", proxy.address);
        Dialer::new(text.parse().unwrap())
    };
    let target = TARGET.parse().unwrap();
    let assert_phase = |error: ClientError, phase: Phase| {
        assert!(
            matches!(error, ClientError::TimedOut(_, at) if at == phase),
            "{error:?}"
        );
        assert_eq!(error.fault(), Fault::Proxy);
    };
    let error = dial(&silent(b""), "", "").connect(&target).unwrap_err();
    assert_phase(error, Phase::Socks6(Awaited::AuthReply));
    let error = dial(&silent(b"\x06\0"), "", "")
        .connect(&target)
        .unwrap_err();
    assert_phase(error, Phase::Socks6(Awaited::AuthReply));
    let error = dial(&silent(OK), "", "").connect(&target).unwrap_err();
    assert_phase(error, Phase::Socks6(Awaited::Reply));
    const METHOD: &[u8] = b"\x06\x01\0\x08\0\x03\0\x08\x02\0\0\0";
    let error = dial(&silent(METHOD), "a:b@", "")
        .connect(&target)
        .unwrap_err();
    assert_phase(error, Phase::Socks6(Awaited::Negotiation));
    let error = dial(&silent(BOTH), "", "").associate().unwrap_err();
    assert_phase(error, Phase::Association);
    let error = dial(&silent(INITIALIZED), "", "").associate().unwrap_err();
    assert_phase(error, Phase::Confirmation);
    let binding = dial(&silent(BOTH), "", "").bind(&target).unwrap();
    let error = binding.accept(Duration::from_millis(50)).unwrap_err();
    assert_phase(error, Phase::Socks6(Awaited::SecondReply));
}

// Other versions

/// A SOCKS5 server; to anything else it gives this answer, and closes.
fn only_socks5(answer: &'static [u8]) -> Proxy {
    Proxy::new(Profile::DRAFT_12, move |mut conn| {
        if conn.read(1) != [5] {
            conn.send(answer);
            return;
        }
        conn.read(2);
        conn.send(&[5, 0]);
        let head = conn.read(5);
        let name = conn.read(usize::from(head[4]) + 2);
        assert_eq!((head[3], &name[..11]), (3, &b"example.org"[..]));
        conn.send(&[5, 0, 0, 1, 192, 0, 2, 7, 0, 80]);
        let data = conn.read(4);
        conn.send(&data);
    })
}

#[test]
fn socks5_is_spoken_only_where_that_was_asked_for() {
    let target = "example.org:80".parse().unwrap();
    for answer in [&[6][..], &[5, 0xff], b"HTTP/1.0 500 \r\n", b""] {
        let proxy = only_socks5(answer);
        let dialer = Dialer::new(proxy.uri("&fallback=socks5&session=yes"));
        for connections in [2, 3, 4] {
            let connected = dialer.clone().connect_with(&target, b"data").unwrap();
            assert_eq!(read_text(&connected.stream), "data");
            // What was found out is kept.
            assert_eq!(proxy.accepted(), connections);
        }
        assert!(!dialer.takes_early_data());
        assert!(matches!(dialer.noop(), Err(ClientError::NeedsSocks6(_))));

        let proxy = only_socks5(answer);
        let error = connect(&proxy, "").unwrap_err();
        assert_eq!(error.fault(), Fault::Proxy);
        assert_eq!(proxy.accepted(), 1);
        match answer {
            [6] | [] => {}
            _ => assert!(
                matches!(
                    error,
                    ClientError::Socks6(_, HandshakeError::OtherVersion(_))
                ),
                "{error:?}"
            ),
        }
    }
}

#[test]
fn what_may_have_been_done_is_not_done_again_in_socks5() {
    // It accepted the client, and closed then: that is no other version.
    let proxy = Proxy::asked(|conn, _| conn.send(&[6, 0, 0, 0]));
    let error = connect(&proxy, "&fallback=socks5").unwrap_err();
    let closed = HandshakeError::ClosedEarly(Awaited::Reply, 0);
    assert!(matches!(error, ClientError::Socks6(_, error) if error == closed));
    assert_eq!(proxy.accepted(), 1);
    // It was seen to speak SOCKS 6 before.
    let proxy = Proxy::asked(|conn, mut asked| {
        if conn.number == 0 {
            assert_eq!(
                asked.behind, b"",
                "kept back until it is known what the proxy speaks"
            );
            conn.send(&asked.accept(none()));
            assert_eq!(conn.read(4), b"data");
        } else {
            assert_eq!(asked.behind, b"data");
        }
    });
    let dialer = Dialer::new(proxy.uri("&fallback=socks5"));
    let target = TARGET.parse().unwrap();
    dialer.connect_with(&target, b"data").unwrap();
    dialer.connect_with(&target, b"data").unwrap_err();
    assert_eq!(proxy.accepted(), 2);
}

// Chains

#[test]
fn requests_to_all_proxies_of_a_chain_travel_together() {
    let echo = Target::echo();
    let (seen, behinds) = channel();
    let seen = Mutex::new(seen);
    let last = Proxy::asked(move |conn, asked| {
        let behind = asked.behind.clone();
        seen.lock().unwrap().send(behind).unwrap();
        forward(conn, asked);
    });
    let (middle_seen, middles) = channel();
    let middle_seen = Mutex::new(middle_seen);
    let middle = Proxy::asked(move |conn, asked| {
        middle_seen
            .lock()
            .unwrap()
            .send(asked.behind.clone())
            .unwrap();
        forward(conn, asked);
    });
    for login in ["", "ada:pass@"] {
        let dialer = Dialer::new(middle.uri_of(login, "")).through(last.uri_of(login, ""));
        let target = echo.address().into();
        let connected = dialer.connect_with(&target, b"hello").unwrap();
        let mut answer = [0; 5];
        (&connected.stream).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        assert_eq!(behinds.recv_timeout(SOON).unwrap(), b"hello");
        // The request to the last proxy, and the data.
        let behind = middles.recv_timeout(SOON).unwrap();
        assert_eq!(behind[0], 6);
        assert!(behind.ends_with(b"hello"));
        assert_eq!(exchange(&connected.stream, b"more").unwrap(), b"more");
    }
}

#[test]
fn chains_mix_the_versions() {
    let echo = Target::echo();
    let target = echo.address().into();
    let (six, other_six) = (Proxy::asked(forward), Proxy::asked(forward));
    let peer = Peer::valid(Duration::ZERO);
    let five: ProxyUri = format!("socks5h://{}", peer.address()).parse().unwrap();
    for chain in [
        vec![six.uri(""), five.clone()],
        vec![five.clone(), six.uri("")],
        vec![six.uri(""), five.clone(), other_six.uri("")],
        vec![five.clone(), six.uri(""), five],
    ] {
        let mut proxies = chain.into_iter();
        let mut dialer = Dialer::new(proxies.next().unwrap());
        for proxy in proxies {
            dialer = dialer.through(proxy);
        }
        let connected = dialer.connect_with(&target, b"early").unwrap();
        let mut answer = [0; 5];
        (&connected.stream).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"early");
        assert_eq!(exchange(&connected.stream, b"more").unwrap(), b"more");
    }
}

#[test]
fn a_chain_tells_which_link_failed() {
    let (first, refusing) = (
        Proxy::asked(forward),
        Proxy::asked(reply_with(ReplyCode(5))),
    );
    let target = TARGET.parse().unwrap();
    let dialer = Dialer::new(first.uri("")).through(refusing.uri(""));
    let error = dialer.connect(&target).unwrap_err();
    assert_eq!(error.fault(), Fault::Target);
    let dialer = Dialer::new(refusing.uri("")).through(first.uri(""));
    let error = dialer.connect(&target).unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::RefusedBySocks6 {
                whose: Whose::Proxy,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.fault(), Fault::Proxy);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("next proxy {}", first.address)),
        "{text}"
    );
}

// BIND

/// Listens as it is asked to, accepts one, tells it, and relays.
fn accept_one(conn: &mut Conn, mut asked: Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut out = Vec::new();
    asked.server.accept(none(), &mut out);
    let place = listener.local_addr().unwrap();
    let options = OpReplyOptions::default();
    asked.server.reply(
        ReplyCode::SUCCEEDED,
        place.into(),
        options.clone(),
        &mut out,
    );
    conn.send(&out);
    let (peer, from) = listener.accept().unwrap();
    let mut out = Vec::new();
    asked
        .server
        .reply(ReplyCode::SUCCEEDED, from.into(), options, &mut out);
    conn.send(&out);
    relay(&conn.stream, &peer);
}

#[test]
fn bind_accepts_one_connection() {
    let (seen, requests) = channel();
    let seen = Mutex::new(seen);
    let proxy = Proxy::asked(move |conn, asked| {
        seen.lock().unwrap().send(asked.request.clone()).unwrap();
        accept_one(conn, asked);
    });
    for peer in ["0.0.0.0:0", "127.0.0.1:0", "localhost:0"] {
        // Neither the backlog nor what is about names or datagrams belongs into the request.
        let query = "&backlog=5&happy-eyeballs=yes&udp-error=yes&parity=even&ttl=9&tfo=0";
        let binding = Dialer::new(proxy.uri(query))
            .bind(&peer.parse().unwrap())
            .unwrap();
        let request = requests.recv_timeout(SOON).unwrap();
        assert_eq!(request.command, Command::BIND);
        assert_eq!(request.address.to_string(), "0.0.0.0:0");
        let mut stack = StackOptions::default();
        (stack.ttl.remote, stack.tfo) = (Some(9), Some(0));
        assert_eq!(request.options.stack, stack);
        let caller = TcpStream::connect(binding.address().unwrap()).unwrap();
        let (stream, from) = binding.accept(SOON).unwrap();
        assert_eq!(from, caller.local_addr().unwrap().into());
        thread::spawn(move || relay(&caller, &caller));
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    }
}

#[test]
fn bind_lets_in_nobody_but_the_peer() {
    let proxy = Proxy::asked(accept_one);
    for peer in ["192.0.2.1:0", "127.0.0.1:1"] {
        let binding = Dialer::new(proxy.uri(""))
            .bind(&peer.parse().unwrap())
            .unwrap();
        let _caller = TcpStream::connect(binding.address().unwrap()).unwrap();
        let error = binding.accept(SOON).unwrap_err();
        assert!(matches!(error, ClientError::Stranger { .. }), "{error:?}");
        assert_eq!(error.fault(), Fault::Target);
    }
}

/// A proxy whose first BIND gets a port with a backlog, and whose later ones get the peers there.
fn backlog_proxy(granted: u16) -> (Proxy, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    let (seen, requests) = channel();
    let seen = Mutex::new(seen);
    let proxy = Proxy::asked(move |conn, mut asked| {
        seen.lock().unwrap().send(asked.request.clone()).unwrap();
        let mut out = Vec::new();
        let session = &asked.request.options.session;
        let inside = matches!(session, SessionUse::Resume(_));
        let auth = AuthReplyOptions {
            session_id: (*session == SessionUse::Request).then(|| SessionId::new(b"abcd").unwrap()),
            session: inside.then_some(SessionVerdict::Ok),
            ..none()
        };
        asked.server.accept(auth, &mut out);
        let first = asked.request.options.stack.backlog.is_some();
        let mut options = OpReplyOptions::default();
        options.stack.backlog = first.then_some(granted);
        asked
            .server
            .reply(ReplyCode::SUCCEEDED, place.into(), options, &mut out);
        conn.send(&out);
        if first && granted > 0 {
            conn.wait_end();
            return;
        }
        let (peer, from) = listener.accept().unwrap();
        let mut out = Vec::new();
        let options = OpReplyOptions::default();
        asked
            .server
            .reply(ReplyCode::SUCCEEDED, from.into(), options, &mut out);
        conn.send(&out);
        relay(&conn.stream, &peer);
    });
    (proxy, requests)
}

#[test]
fn listener_accepts_one_after_the_other_in_one_session() {
    let (proxy, requests) = backlog_proxy(3);
    let dialer = Dialer::new(proxy.uri("&backlog=5"));
    let mut listener = dialer.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let first = requests.recv_timeout(SOON).unwrap();
    assert_eq!(first.options.stack.backlog, Some(5));
    assert_eq!(first.options.session, SessionUse::Request);
    assert_eq!(listener.granted().backlog, Some(3));
    let place = listener.address().unwrap();

    // Time over, and nobody lost.
    let error = listener.accept(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut(..)), "{error:?}");
    for round in 0..3 {
        let caller = TcpStream::connect(place).unwrap();
        let (stream, from) = listener.accept(SOON).unwrap();
        assert_eq!(from, caller.local_addr().unwrap().into());
        thread::spawn(move || relay(&caller, &caller));
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
        let request = requests.recv_timeout(SOON).unwrap();
        assert_eq!(request.address, place.into());
        assert!(
            matches!(request.options.session, SessionUse::Resume(_)),
            "{round}"
        );
        assert_eq!(request.options.stack.backlog, None);
    }
    // The one that waited, and two more.
    assert_eq!(proxy.accepted(), 4);
    assert!(!dialer.has_session());
}

#[test]
fn listener_without_a_backlog_accepts_once() {
    let (proxy, requests) = backlog_proxy(0);
    let dialer = Dialer::new(proxy.uri(""));
    let mut listener = dialer.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(
        requests.recv_timeout(SOON).unwrap().options.stack.backlog,
        Some(16)
    );
    let error = listener.accept(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut(..)), "{error:?}");
    let _caller = TcpStream::connect(listener.address().unwrap()).unwrap();
    listener.accept(SOON).unwrap();
    let error = listener.accept(SOON).unwrap_err();
    assert!(matches!(error, ClientError::NoBacklog(_)), "{error:?}");
}

#[test]
fn listener_waits_for_the_notice_of_a_proxy_that_gives_one() {
    let (arrive, arrivals) = channel::<SocketAddr>();
    let arrivals = Mutex::new(arrivals);
    let proxy = Proxy::new(Profile::GO_212, move |mut conn| {
        let Some(mut asked) = conn.ask() else { return };
        let mut out = Vec::new();
        asked.server.accept(none(), &mut out);
        let mut options = OpReplyOptions::default();
        options.stack.backlog = asked.request.options.stack.backlog;
        asked
            .server
            .reply(ReplyCode::SUCCEEDED, bound(), options, &mut out);
        if conn.number > 0 {
            let options = OpReplyOptions::default();
            asked
                .server
                .reply(ReplyCode::SUCCEEDED, bound(), options, &mut out);
            conn.send(&out);
            conn.send(b"peer");
            return;
        }
        conn.send(&out);
        while let Ok(peer) = arrivals.lock().unwrap().recv_timeout(SOON) {
            let mut out = Vec::new();
            asked.server.notify(peer.into(), &mut out);
            conn.send(&out);
        }
    });
    let dialer = Dialer::new(proxy.uri("&profile=go212"));
    let mut listener = dialer.listen(&"0.0.0.0:0".parse().unwrap()).unwrap();
    let error = listener.accept(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut(..)), "{error:?}");
    assert_eq!(proxy.accepted(), 1);
    for connections in [2, 3] {
        arrive.send(BOUND.parse().unwrap()).unwrap();
        let (stream, _) = listener.accept(SOON).unwrap();
        assert_eq!(read_text(&stream), "peer");
        assert_eq!(proxy.accepted(), connections);
    }
}

// Datagrams

const ID: AssociationId = AssociationId(0x0102_0304_0506_0708);

/// A proxy that agrees to carry datagrams, and what happens next on its connection.
struct Relay {
    proxy: Proxy,
    /// On the port of the proxy.
    socket: UdpSocket,
    requests: Receiver<Request>,
    /// What goes to the client by the connection.
    down: Sender<Vec<u8>>,
    /// What came from it by the connection.
    up: Receiver<Vec<u8>>,
    profile: Profile,
}

impl Relay {
    fn new(profile: Profile) -> Self {
        // Such a pair of ports may be taken by others in between.
        for _ in 0..100 {
            let (seen, requests) = channel();
            let (down, to_send) = channel::<Vec<u8>>();
            let (came, up) = channel();
            let shared = Mutex::new((seen, Some(to_send), came));
            let proxy = Proxy::new(profile, move |mut conn| {
                let Some(mut asked) = conn.ask() else { return };
                let mut shared = shared.lock().unwrap();
                shared.0.send(asked.request.clone()).unwrap();
                conn.send(&asked.accept(none()));
                let mut message = Vec::new();
                UdpMessage::Initialization(ID).encode(&conn.profile, &mut message);
                conn.send(&message);
                let to_send = shared.1.take().unwrap();
                let mut sending = conn.stream.try_clone().unwrap();
                let sender = thread::spawn(move || {
                    for bytes in to_send {
                        let _ = sending.write_all(&bytes);
                    }
                    let _ = sending.shutdown(Shutdown::Both);
                });
                let mut buffer = vec![0; 128 * 1024];
                while let Ok(count @ 1..) = conn.stream.read(&mut buffer) {
                    let _ = shared.2.send(buffer[..count].to_vec());
                }
                drop(shared);
                let _ = sender.join();
            });
            if let Ok(socket) = UdpSocket::bind(proxy.address) {
                socket.set_read_timeout(Some(SOON)).unwrap();
                return Self {
                    proxy,
                    socket,
                    requests,
                    down,
                    up,
                    profile,
                };
            }
        }
        panic!("no port for both");
    }

    fn encoded(&self, message: &UdpMessage<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(&self.profile, &mut out);
        out
    }

    fn datagram(&self, from: &str, payload: &[u8]) -> Vec<u8> {
        let datagram = Datagram::new(ID, from.parse().unwrap(), payload).unwrap();
        self.encoded(&UdpMessage::Datagram(datagram))
    }

    /// The next datagram of the client on the socket, with its address.
    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_535];
        let (count, from) = self.socket.recv_from(&mut buffer).unwrap();
        buffer.truncate(count);
        (buffer, from)
    }

    fn confirm(&self) {
        self.down
            .send(self.encoded(&UdpMessage::Confirmation(ID)))
            .unwrap();
    }
}

fn received(
    association: &sockhop::client::Association,
    room: usize,
) -> io::Result<(Vec<u8>, String)> {
    let mut buffer = vec![0; room];
    let (count, from) = association.recv_from(&mut buffer, SOON)?;
    buffer.truncate(count);
    Ok((buffer, from.to_string()))
}

#[test]
fn datagrams_go_over_udp_once_the_proxy_has_seen_one() {
    for (name, profile) in Profile::NAMED {
        let relay = Relay::new(profile);
        let query = format!("&profile={name}&udp-error=yes&parity=even&reserve=yes&multipath=yes");
        let dialer = Dialer::new(relay.proxy.uri(&query));
        let dialing = thread::spawn(move || dialer.associate().unwrap());
        let request = relay.requests.recv_timeout(SOON).unwrap();
        assert_eq!(request.command, Command::ASSOCIATE);
        assert_eq!(request.address.to_string(), "0.0.0.0:0");
        let stack = StackOptions {
            udp_error: Some(Choice::Yes),
            port_parity: Some(PortParity {
                parity: Parity::Even,
                reserve: Reserve::Yes,
            }),
            ..StackOptions::default()
        };
        assert_eq!(request.options.stack, stack);
        // The first one is lost; it is repeated until the proxy says that it got one.
        let trigger = relay.datagram("0.0.0.0:0", b"");
        assert_eq!(relay.receive().0, trigger);
        let (again, client) = relay.receive();
        assert_eq!(again, trigger);
        // Somebody else's, and what is no message, does not count.
        let other = UdpMessage::Confirmation(AssociationId(1));
        relay.down.send(relay.encoded(&other)).unwrap();
        relay.confirm();
        let association = dialing.join().unwrap();
        assert_eq!(association.granted(), stack);
        assert_eq!(association.outside(), Some(&bound()));
        assert_eq!(association.relay(), relay.proxy.address);

        association
            .send_to(b"question", &"example.org:53".parse().unwrap())
            .unwrap();
        let sent = loop {
            let (sent, from) = relay.receive();
            assert_eq!(from, client);
            if sent != trigger {
                break sent;
            }
        };
        assert_eq!(sent, relay.datagram("example.org:53", b"question"));

        let send = |bytes: &[u8]| relay.socket.send_to(bytes, client).unwrap();
        // Garbage, one cut short, one of another association, and one that only the connection may bring.
        send(b"garbage");
        send(&relay.datagram("192.0.2.1:53", b"cut")[..20]);
        let other = Datagram::new(AssociationId(1), "192.0.2.1:53".parse().unwrap(), b"x");
        send(&relay.encoded(&UdpMessage::Datagram(other.unwrap())));
        send(&relay.encoded(&UdpMessage::Confirmation(ID)));
        send(&relay.datagram("192.0.2.1:53", b"answer"));
        let got = received(&association, 100).unwrap();
        assert_eq!(got, (b"answer".to_vec(), "192.0.2.1:53".into()));
        // By the connection none may come now.
        relay
            .down
            .send(relay.datagram("192.0.2.1:53", b"wrong"))
            .unwrap();
        send(&relay.datagram("[2001:db8::1]:53", b"long answer"));
        let got = received(&association, 4).unwrap();
        assert_eq!(got, (b"long".to_vec(), "[2001:db8::1]:53".into()));

        send(&relay.encoded(&UdpMessage::Error(UdpError {
            association: ID,
            destination: "192.0.2.9:53".parse().unwrap(),
            code: ErrorCode::HOST_UNREACHABLE,
            reporter: "192.0.2.254".parse().unwrap(),
        })));
        let error = received(&association, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::HostUnreachable);
        let told = DatagramError::of(&error).unwrap();
        assert_eq!(told.code, ErrorCode::HOST_UNREACHABLE);
        assert_eq!(
            error.to_string(),
            "datagram to 192.0.2.9:53: host unreachable, says 192.0.2.254"
        );
        send(&relay.datagram("192.0.2.1:53", b"on it goes"));
        assert_eq!(received(&association, 100).unwrap().0, b"on it goes");

        let error = association.send_to(&[0; 65_516], &"192.0.2.1:1".parse().unwrap());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let quiet = association
            .recv_from(&mut [0; 4], Duration::from_millis(20))
            .unwrap_err();
        assert_eq!(quiet.kind(), io::ErrorKind::TimedOut);
        drop(relay.down);
        let error = received(&association, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(DatagramError::of(&error).is_none());
    }
}

/// All of the messages that came, however they were cut.
fn messages(relay: &Relay, kept: &mut Vec<u8>, length: usize) -> Vec<u8> {
    while kept.len() < length {
        kept.extend(relay.up.recv_timeout(SOON).unwrap());
    }
    kept.drain(..length).collect()
}

#[test]
fn datagrams_go_over_the_connection_where_that_is_said() {
    for (name, profile) in Profile::NAMED {
        let relay = Relay::new(profile);
        let dialer = Dialer::new(relay.proxy.uri(&format!("&profile={name}&channel=tcp")));
        let association = dialer.associate().unwrap();
        let mut kept = Vec::new();
        let trigger = relay.datagram("0.0.0.0:0", b"");
        assert_eq!(messages(&relay, &mut kept, trigger.len()), trigger);
        relay.confirm();
        let long = vec![7; 65_503];
        for (target, payload) in [
            ("192.0.2.1:53", &b"question"[..]),
            ("a.example:53", b""),
            ("[2001:db8::1]:1", &long),
        ] {
            association
                .send_to(payload, &target.parse().unwrap())
                .unwrap();
            let sent = relay.datagram(target, payload);
            assert_eq!(
                messages(&relay, &mut kept, sent.len()),
                sent,
                "{name} {target}"
            );
        }
        // In one write, in single bytes, with something unknown and something broken in between.
        let answer = relay.datagram("192.0.2.1:53", b"answer");
        let mut unknown = answer.clone();
        unknown[1] = 9;
        let mut broken = answer.clone();
        let kind = if profile == Profile::GO_212 { 15 } else { 12 };
        broken[kind] = 9;
        let all = [
            &unknown[..],
            &broken,
            &answer,
            &relay.datagram("192.0.2.2:53", &long),
        ]
        .concat();
        relay.down.send(all).unwrap();
        for byte in &answer {
            relay.down.send(vec![*byte]).unwrap();
        }
        let got = received(&association, 100).unwrap();
        assert_eq!(got, (b"answer".to_vec(), "192.0.2.1:53".into()));
        assert_eq!(received(&association, 65_535).unwrap().0, long);
        assert_eq!(received(&association, 100).unwrap().0, b"answer");
        // Where the next message begins nobody knows.
        relay.down.send(vec![9; 12]).unwrap();
        let error = received(&association, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn datagrams_reach_a_proxy_behind_others_over_the_connection() {
    let (first, relay) = (Proxy::asked(forward), Relay::new(Profile::DRAFT_12));
    let dialer = Dialer::new(first.uri("")).through(relay.proxy.uri(""));
    let association = dialer.associate().unwrap();
    relay.confirm();
    relay
        .down
        .send(relay.datagram("192.0.2.1:53", b"answer"))
        .unwrap();
    assert_eq!(received(&association, 100).unwrap().0, b"answer");
    let dialer = Dialer::new(first.uri("")).through(relay.proxy.uri("&channel=udp"));
    let error = dialer.associate().unwrap_err();
    assert!(matches!(error, ClientError::NoDatagrams(_)), "{error:?}");
    assert_eq!(error.fault(), Fault::Caller);
}

#[test]
fn a_port_can_be_asked_for_by_its_number() {
    let relay = Relay::new(Profile::DRAFT_12);
    let dialer = Dialer::new(relay.proxy.uri("&channel=tcp"));
    let association = dialer
        .associate_at(&"192.0.2.5:4001".parse().unwrap())
        .unwrap();
    let request = relay.requests.recv_timeout(SOON).unwrap();
    assert_eq!(request.address.to_string(), "192.0.2.5:4001");
    assert_eq!(association.descriptors().len(), 2);
}

#[test]
fn what_only_socks6_can_do_is_not_asked_of_others() {
    let peer = Peer::new(Behaviour::Scripted(vec![Step::Close]));
    let uri: ProxyUri = format!("socks5://{}", peer.address()).parse().unwrap();
    let dialer = Dialer::new(uri);
    let anywhere = "0.0.0.0:0".parse().unwrap();
    for error in [
        dialer.noop().unwrap_err(),
        dialer.listen(&anywhere).unwrap_err(),
        dialer.associate_at(&anywhere).unwrap_err(),
    ] {
        assert!(matches!(error, ClientError::NeedsSocks6(_)), "{error:?}");
        assert_eq!(error.fault(), Fault::Caller);
    }
    assert_eq!(peer.accepted(), 0);
}

// The real server

/// A server that lets clients go to loopback; and a URI of it.
fn serve(arguments: &[&str]) -> (Sockhop, impl Fn(&str, &str) -> ProxyUri + use<>) {
    let allowed = ["--allow-dest", "127.0.0.0/8"];
    let server = Sockhop::serve(&[&allowed, arguments].concat()).start();
    let address = server.wait_listening(SOON);
    let uri = move |login: &str, query: &str| {
        let text = format!("socks6://{login}{address}?timeout=10s{query}");
        text.parse().unwrap()
    };
    (server, uri)
}

#[test]
fn serve_connects_in_every_profile_with_sessions_tokens_and_early_data() {
    let echo = Target::echo();
    let target = echo.address().into();
    let by_name = format!("localhost:{}", echo.address().port())
        .parse()
        .unwrap();
    for (name, _) in Profile::NAMED {
        for (login, user) in [("", &[][..]), ("ada:pass@", &["--user", "ada:pass"])] {
            let (_server, uri) = serve(&[&["--socks6-profile", name][..], user].concat());
            let query = format!("&profile={name}&tokens=8");
            let dialer = Dialer::new(uri(login, &query));
            dialer.noop().unwrap();
            assert!(dialer.has_session(), "{name}");
            assert_eq!(dialer.tokens_left(), 8, "{name}");
            for target in [&target, &by_name, &target] {
                let connected = dialer.connect_with(target, b"early").unwrap();
                let mut answer = [0; 5];
                (&connected.stream).read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"early");
                assert_eq!(exchange(&connected.stream, b"more").unwrap(), b"more");
                assert!(connected.bound.port() != 0);
            }
            assert_eq!(dialer.tokens_left(), 8, "{name}");
        }
    }
}

#[test]
fn serve_serves_many_at_once_that_share_few_tokens() {
    let echo = Target::echo();
    let (_server, uri) = serve(&[]);
    let dialer = Dialer::new(uri("", "&tokens=4"));
    dialer.noop().unwrap();
    let dialing: Vec<_> = (0..8)
        .map(|_| {
            let (dialer, target) = (dialer.clone(), echo.address().into());
            thread::spawn(move || {
                for _ in 0..20 {
                    let connected = dialer.connect_with(&target, b"early").unwrap();
                    let mut answer = [0; 5];
                    (&connected.stream).read_exact(&mut answer).unwrap();
                    assert_eq!(&answer, b"early");
                }
            })
        })
        .collect();
    for dialing in dialing {
        dialing.join().unwrap();
    }
    assert!(dialer.has_session());
}

#[test]
fn serve_tells_what_is_wrong() {
    let (_server, uri) = serve(&["--user", "ada:pass"]);
    let target = TARGET.parse().unwrap();
    for login in ["", "ada:wrong@"] {
        let error = Dialer::new(uri(login, "")).connect(&target).unwrap_err();
        assert!(
            matches!(
                error,
                ClientError::Socks6(_, HandshakeError::AuthenticationFailed)
            ),
            "{error:?}"
        );
    }
    let (_server, uri) = serve(&["--deny-dest", "192.0.2.0/24"]);
    let error = Dialer::new(uri("", "")).connect(&target).unwrap_err();
    assert_eq!(error.fault(), Fault::Target);
    let (_server, uri) = serve(&["--no-socks6"]);
    let error = Dialer::new(uri("", "")).connect(&target).unwrap_err();
    assert_eq!(error.fault(), Fault::Proxy);
    let echo = Target::echo();
    let stream = Dialer::new(uri("", "&fallback=socks5")).connect(&echo.address().into());
    assert_eq!(exchange(&stream.unwrap(), b"hello").unwrap(), b"hello");
}

#[test]
fn serve_forgets_sessions_when_it_is_started_again() {
    let echo = Target::echo();
    let target = echo.address().into();
    let (server, uri) = serve_at_its_port(&["--user", "ada:pass"]);
    let uri = uri("ada:pass@", "&tokens=8");
    let dialer = Dialer::new(uri.clone());
    dialer.connect(&target).unwrap();
    assert_eq!(dialer.tokens_left(), 8);
    let at = uri.address().to_string();
    drop(server);
    let (_server, _) = serve(&["--user", "ada:pass", "--listen", &at]);
    let stream = dialer.connect(&target).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    assert_eq!(dialer.tokens_left(), 8);
}

#[test]
fn serve_binds_once_and_with_a_backlog_in_every_profile() {
    for (name, _) in Profile::NAMED {
        let (_server, uri) = serve(&["--socks6-profile", name]);
        let dialer = Dialer::new(uri("", &format!("&profile={name}&backlog=4")));
        let any = "0.0.0.0:0".parse().unwrap();
        let binding = dialer.bind(&any).unwrap();
        let caller = TcpStream::connect(binding.address().unwrap()).unwrap();
        let (stream, from) = binding.accept(SOON).unwrap();
        assert_eq!(from, caller.local_addr().unwrap().into());
        thread::spawn(move || relay(&caller, &caller));
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");

        let mut listener = dialer.listen(&any).unwrap();
        assert_eq!(listener.granted().backlog, Some(4), "{name}");
        let place = listener.address().unwrap();
        let callers = [(); 3].map(|()| TcpStream::connect(place).unwrap());
        for _ in &callers {
            let (stream, from) = listener.accept(SOON).unwrap();
            let caller = callers
                .iter()
                .find(|caller| BoundAddress::from(caller.local_addr().unwrap()) == from);
            let caller = caller.expect(name).try_clone().unwrap();
            thread::spawn(move || relay(&caller, &caller));
            assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
        }
    }
}

#[test]
fn serve_can_be_every_link_of_a_chain() {
    let echo = Target::echo();
    let ((_a, first), (_b, second)) = (serve(&[]), serve(&["--user", "ada:pass"]));
    let dialer = Dialer::new(first("", "&session=yes"));
    let dialer = dialer.through(second("ada:pass@", "&tokens=5"));
    for _ in 0..3 {
        let target = echo.address().into();
        let connected = dialer.connect_with(&target, b"early").unwrap();
        let mut answer = [0; 5];
        (&connected.stream).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"early");
    }
    assert_eq!(dialer.tokens_left(), 5);
}

/// A target for datagrams, which answers with what it got, backwards, until it gets nothing for a while.
fn reversing_datagrams() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_535];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            buffer[..count].reverse();
            let _ = socket.send_to(&buffer[..count], from);
        }
    });
    address
}

/// A server at a port that is free for UDP too, and still is when it starts again.
fn serve_at_its_port(arguments: &[&str]) -> (Sockhop, impl Fn(&str, &str) -> ProxyUri + use<>) {
    // Outside of the range that systems take theirs from when they are not told, so that nobody is given it in between.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let skipped = u16::try_from(std::process::id() % 600).unwrap() * 17;
    let at = (0..10_000)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .map(|next| format!("127.0.0.1:{}", 20_000 + (skipped + next) % 12_000))
        .find(|at| UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok())
        .expect("a free port");
    serve(&[&["--listen", &at], arguments].concat())
}

#[test]
fn serve_carries_datagrams_over_udp_and_tcp_in_every_profile() {
    let target = reversing_datagrams();
    let by_name = format!("localhost:{}", target.port()).parse().unwrap();
    for (name, _) in Profile::NAMED {
        let (_server, uri) = serve_at_its_port(&["--socks6-profile", name, "--user", "ada:pass"]);
        for channel in ["udp", "tcp"] {
            let query = format!("&profile={name}&channel={channel}&udp-error=yes&tokens=3");
            let dialer = Dialer::new(uri("ada:pass@", &query));
            for _ in 0..2 {
                let association = dialer.associate().unwrap();
                assert!(
                    association
                        .outside()
                        .is_some_and(|outside| outside.port() != 0)
                );
                for target in [&target.into(), &by_name] {
                    association.send_to(b"hello", target).unwrap();
                    let (answer, from) = received(&association, 100).unwrap();
                    assert_eq!(answer, b"olleh", "{name} {channel}");
                    assert_eq!(
                        from,
                        target.socket_addr().map_or_else(
                            || format!("127.0.0.1:{}", target.port),
                            |address| address.to_string(),
                        )
                    );
                }
            }
        }
    }
}

#[test]
fn serve_carries_datagrams_for_those_behind_others() {
    let target = reversing_datagrams();
    let ((_a, first), (_b, second)) = (serve(&[]), serve(&[]));
    let dialer = Dialer::new(first("", "")).through(second("", ""));
    let association = dialer.associate().unwrap();
    let long = vec![7; 60_000];
    association.send_to(&long, &target.into()).unwrap();
    assert_eq!(received(&association, 65_535).unwrap().0, long);
}
