//! `sockhop serve` as clients of SOCKS 6 meet it: bytes by hand, and the crate's client where every profile is tried.
#![cfg(feature = "socks6")]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use common::{
    Peer, SOON, Sockhop, Target, Unanswering, answer, connect, dead_address, exchange,
    read_exactly, rest, serve, wait_until,
};
use sockhop::daemon::Daemon;
use sockhop::daemon::settings::{ControlPath, ServeSettings};
use sockhop::handshake::socks6::{Client, ClientError, Limits, Outcome};
use sockhop::server::socks6::Socks6Options;
use sockhop::wire::BoundAddress;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    BacklogNotice, Command, MethodAdvertisement, MethodSet, OpReply, PasswordForm, Profile,
    Request, RequestOptions, SessionId, SessionUse, StackOptions, Token, TokenVerdict, Window,
    WindowSize,
};
use sockhop::wire::user_password::Credentials;

const NOOP: [u8; 12] = [6, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
const AUTH_OK: [u8; 4] = [6, 0, 0, 0];
const NOOP_DONE: [u8; 16] = [6, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
const FAILED: [u8; 4] = [6, 1, 0, 0];

/// A request for an IPv4 address.
fn request(command: u8, to: SocketAddr, options: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(v4) = to else {
        panic!("{to} is not IPv4");
    };
    let length = u16::try_from(options.len()).expect("short");
    [
        &[6, command],
        &length.to_be_bytes()[..],
        &v4.port().to_be_bytes(),
        &[0, 1],
        &v4.ip().octets(),
        options,
    ]
    .concat()
}

fn noop(options: &[u8]) -> Vec<u8> {
    request(0, "0.0.0.0:0".parse().expect("an address"), options)
}

/// The code of the operation reply; the authentication has to succeed.
#[track_caller]
fn code(server: SocketAddr, request: &[u8]) -> u8 {
    let answer = answer(server, request);
    assert_eq!(answer[..4], AUTH_OK, "{answer:02x?}");
    assert_eq!(answer.len(), 16, "{answer:02x?}");
    answer[5]
}

/// A client over a socket, a byte not read too many.
struct Talk {
    stream: TcpStream,
    client: Client,
}

impl Talk {
    /// Sends a request with what may follow it at once.
    #[track_caller]
    fn start(server: SocketAddr, request: Request, profile: Profile, behind: &[u8]) -> Self {
        let mut client = Client::new(request, profile);
        let mut bytes = Vec::new();
        client.start(&mut bytes);
        bytes.extend(behind);
        let mut stream = connect(server).expect("connect");
        stream.write_all(&bytes).expect("write");
        Self { stream, client }
    }

    /// Reads until the next outcome.
    #[track_caller]
    fn outcome(&mut self) -> Result<Outcome, ClientError> {
        let before = self.client.outcome().cloned();
        loop {
            let wanted = self.client.wanted();
            assert!(wanted > 0, "nothing is awaited: {:?}", self.client);
            let mut bytes = vec![0; wanted];
            let count = self.stream.read(&mut bytes).expect("read");
            if count == 0 {
                return Err(self.client.closed());
            }
            assert_eq!(self.client.feed(&bytes[..count])?, count);
            let now = self.client.outcome();
            if let Some(outcome) = now
                && Some(outcome) != before.as_ref()
            {
                return Ok(outcome.clone());
            }
        }
    }

    #[track_caller]
    fn done(&mut self) -> OpReply {
        match self.outcome() {
            Ok(
                Outcome::Done(reply)
                | Outcome::Listening(reply)
                | Outcome::Accepted(reply)
                | Outcome::Handle(reply)
                | Outcome::Waiting(reply),
            ) => reply,
            other => panic!("{other:?}"),
        }
    }
}

/// The address that a reply tells.
fn address_in(reply: &OpReply) -> Option<SocketAddr> {
    match reply.bound {
        BoundAddress::Socket(address) => Some(address),
        BoundAddress::Name(..) => None,
    }
}

fn asking(command: Command, to: &str) -> Request {
    Request::new(command, to.parse().expect("an address"))
}

fn with(command: Command, to: SocketAddr, options: RequestOptions) -> Request {
    let mut request = Request::new(command, to.into());
    request.options = options;
    request
}

fn nowhere() -> SocketAddr {
    "0.0.0.0:0".parse().expect("an address")
}

fn ada() -> Option<sockhop::wire::user_password::Request> {
    let ada = Credentials::new("ada", "pass").expect("short");
    Some(ada.into())
}

fn wants_session() -> RequestOptions {
    RequestOptions {
        session: SessionUse::Request,
        ..RequestOptions::default()
    }
}

fn inside(id: &SessionId) -> RequestOptions {
    RequestOptions {
        session: SessionUse::Resume(id.clone()),
        ..RequestOptions::default()
    }
}

/// A session by NOOP.
#[track_caller]
fn session(server: SocketAddr, options: RequestOptions) -> (SessionId, Option<Window>) {
    let request = with(Command::NOOP, nowhere(), options);
    let mut talk = Talk::start(server, request, Profile::DRAFT_12, b"");
    talk.done();
    let id = talk.client.session_id().expect("a session").clone();
    let reply = talk.client.auth_reply().expect("there was one");
    (id, reply.options.window)
}

#[track_caller]
fn noop_with(server: SocketAddr, options: RequestOptions) -> Result<Outcome, ClientError> {
    let request = with(Command::NOOP, nowhere(), options);
    Talk::start(server, request, Profile::DRAFT_12, b"").outcome()
}

fn refused_for(server: &Sockhop, reason: &str) -> u64 {
    let status = server.status();
    status["connections"]["refused_by_reason"][reason]
        .as_u64()
        .unwrap_or_default()
}

#[test]
fn both_replies_come_in_one_segment() {
    let (_server, address) = serve(&[]);
    let echo = Target::echo();
    for bytes in [NOOP.to_vec(), request(1, echo.address(), &[])] {
        let mut stream = connect(address).expect("connect");
        stream.write_all(&bytes).expect("write");
        // What was written at once is read at once.
        assert_eq!(stream.read(&mut [0; 100]).expect("read"), 16);
    }
    assert_eq!(answer(address, &NOOP), NOOP_DONE);
}

#[test]
fn byte_by_byte_and_truncated() {
    let (_server, address) = serve(&[]);
    let echo = Target::echo();
    // A session, a window of 16, something unknown; then payload.
    let options = [0, 5, 0, 4, 0, 11, 0, 8, 0, 0, 0, 16, 0xfd, 0xe8, 0, 4];
    let bytes = request(1, echo.address(), &options);
    let mut stream = connect(address).expect("connect");
    for byte in &bytes {
        stream.write_all(&[*byte]).expect("write");
    }
    stream.write_all(b"payload").expect("write");
    // Session and window, then the operation reply with the session again.
    let answer = read_exactly(&mut stream, 4 + 20 + 12 + 12 + 20);
    assert_eq!(answer[..4], [6, 0, 0, 32]);
    assert_eq!(answer[36..40], [6, 0, 0, 20]);
    assert_eq!(read_exactly(&mut stream, 7), b"payload");
    for length in 1..bytes.len() {
        let mut stream = connect(address).expect("connect");
        stream.write_all(&bytes[..length]).expect("write");
        stream.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(rest(&mut stream), b"", "{length} bytes");
    }
}

#[test]
fn every_command_works_in_every_profile() {
    let echo = Target::echo();
    for (name, profile) in Profile::NAMED {
        let (_server, address) = serve(&["--socks6-profile", name]);
        let mut talk = Talk::start(address, asking(Command::NOOP, "0.0.0.0:0"), profile, b"");
        talk.done();
        assert_eq!(rest(&mut talk.stream), b"", "{name}");
        // A name whose field needs padding, and an address.
        let named = format!("localhost:{}", echo.address().port());
        for to in [named, echo.address().to_string()] {
            let mut talk = Talk::start(address, asking(Command::CONNECT, &to), profile, b"early");
            let reply = talk.done();
            assert_ne!(reply.bound.port(), 0, "{name}");
            assert_eq!(read_exactly(&mut talk.stream, 5), b"early", "{name} {to}");
            assert_eq!(exchange(&talk.stream, b"later").expect("echo"), b"later");
        }
        let mut talk = Talk::start(address, asking(Command::BIND, "0.0.0.0:0"), profile, b"");
        let bound = address_in(&talk.done()).expect("an address");
        let peer = TcpStream::connect(bound).expect("connect");
        let told = address_in(&talk.done());
        assert_eq!(told, peer.local_addr().ok(), "{name}");
        (&peer).write_all(b"hello").expect("write");
        assert_eq!(read_exactly(&mut talk.stream, 5), b"hello");
    }
}

#[test]
fn the_drafts_byte_is_spoken_beside_a_profile_with_another_one() {
    let (_server, address) = serve(&["--socks6-profile", "go212"]);
    assert_eq!(answer(address, &NOOP), NOOP_DONE);
    let mut go = NOOP;
    go[0] = 212;
    let mut done = NOOP_DONE;
    (done[0], done[4]) = (212, 212);
    assert_eq!(answer(address, &go), done);
    // The older versions too.
    let echo = Target::echo();
    let stream = common::socks5_connect(address, echo.address()).expect("SOCKS 5");
    assert_eq!(exchange(&stream, b"five").expect("echo"), b"five");
}

#[test]
fn other_versions_learn_of_the_mismatch_where_there_is_only_this_one() {
    let (server, address) = serve(&["--socks6-only"]);
    for first in [[5, 1, 0], [4, 1, 0], *b"GET", [7, 0, 0]] {
        assert_eq!(answer(address, &first), [6], "{first:?}");
    }
    assert_eq!(answer(address, &NOOP), NOOP_DONE);
    assert_eq!(refused_for(&server, "version"), 4);
    let (_server, address) = serve(&["--socks6-only", "--socks6-profile", "s6m207"]);
    assert_eq!(answer(address, &[5, 1, 0]), [207]);
    let (_server, address) = serve(&["--no-socks6"]);
    assert_eq!(answer(address, &NOOP), b"");
}

#[test]
fn replies_tell_the_cause() {
    let (server, address) = serve(&["--no-bind", "--connect-timeout", "300ms"]);
    let silent = Unanswering::new();
    for (command, to, expected) in [
        (1, dead_address(), 5),
        (1, "10.0.0.1:80".parse().expect("an address"), 2),
        (1, "127.0.0.1:0".parse().expect("an address"), 2),
        // SOCKS 5 has no code for that.
        (1, silent.address(), 9),
        (1, "0.0.0.0:53".parse().expect("an address"), 5),
        (1, "0.0.0.0:54".parse().expect("an address"), 2),
        (2, nowhere(), 7),
        (9, nowhere(), 7),
    ] {
        assert_eq!(code(address, &request(command, to, &[])), expected, "{to}");
    }
    let name = [6, 1, 0, 0, 0, 80, 0, 3, 15];
    let name = [&name[..], b"nobody.invalid\0"].concat();
    assert_eq!(code(address, &name), 4);
    assert_eq!(refused_for(&server, "rules"), 3);
    assert_eq!(refused_for(&server, "command"), 2);
}

#[test]
fn bad_requests_are_refused_and_nothing_hangs() {
    let (server, address) = serve(&[]);
    let area = |length: u16| {
        let mut bytes = NOOP.to_vec();
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    let stack = |code, value| [0, 1, 0, 8, 0x84, code, 0, value];
    let thousands: Vec<u8> = (0..5000).flat_map(|_| [0xfd, 0xe8, 0, 4]).collect();
    let sessions: Vec<u8> = (0..5000).flat_map(|_| [0, 5, 0, 4]).collect();
    let full: Vec<u8> = (0..5120).flat_map(|_| [0xfd, 0xe8, 0, 4]).collect();
    for (what, bytes, expected) in [
        ("length 0", noop(&[0, 5, 0, 0]), &FAILED[..]),
        ("length 2", noop(&[0, 5, 0, 2]), &FAILED),
        ("unaligned", noop(&[0, 5, 0, 6, 0, 0, 0, 0]), &FAILED),
        ("past the end", noop(&[0, 5, 0, 8]), &FAILED),
        (
            "area unaligned",
            [&area(3)[..], &[0, 5, 0]].concat(),
            &FAILED,
        ),
        ("area over the cap", area(20_484), b""),
        ("area at its most", area(u16::MAX), b""),
        ("area at the cap", noop(&full), &NOOP_DONE),
        ("thousands of options", noop(&thousands), &NOOP_DONE),
        (
            "a request inside a session",
            noop(&[0, 5, 0, 4, 0, 6, 0, 8, 1, 2, 3, 4]),
            &FAILED,
        ),
        (
            "contradictory stack options",
            noop(&[stack(2, 1), stack(2, 2)].concat()),
            &NOOP_DONE,
        ),
        (
            "initial data for NOOP",
            noop(&[0, 2, 0, 8, 0, 9, 2, 0]),
            &FAILED,
        ),
        (
            "too much initial data",
            {
                let to = "127.0.0.1:9".parse().expect("an address");
                request(1, to, &[0, 2, 0, 8, 0x40, 1, 2, 0])
            },
            &FAILED,
        ),
        (
            "empty name",
            vec![6, 1, 0, 0, 0, 80, 0, 3, 3, 0, 0, 0],
            &FAILED,
        ),
        (
            "name length",
            vec![6, 1, 0, 0, 0, 80, 0, 3, 4, 97, 97, 97],
            &FAILED,
        ),
    ] {
        let answer = answer(address, &bytes);
        assert_eq!(answer, expected, "{what}");
    }
    let unknown = [6, 1, 0, 0, 0, 80, 0, 2, 1, 2, 3, 4];
    assert_eq!(
        answer(address, &unknown),
        [6, 1, 0, 0, 6, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    );
    // Repeated, they ask for one session.
    let many = answer(address, &noop(&sessions));
    assert_eq!((&many[..4], many.len()), (&[6, 0, 0, 20][..], 4 + 20 + 32));
    assert_eq!(server.status()["sessions"], 1);
    assert!(refused_for(&server, "malformed") >= 10);
    assert_eq!(answer(address, &NOOP), NOOP_DONE);
}

#[test]
fn connect_with_token_and_data_takes_one_round_trip() {
    let (_server, address) = serve(&[]);
    let echo = Target::echo();
    let window = RequestOptions {
        window: WindowSize::new(8),
        ..wants_session()
    };
    let (id, window) = session(address, window);
    let options = RequestOptions {
        token: Some(window.expect("a window").base),
        ..inside(&id)
    };
    let mut client = Client::new(
        with(Command::CONNECT, echo.address(), options),
        Profile::DRAFT_12,
    );
    let mut bytes = Vec::new();
    client.start(&mut bytes);
    assert!(client.allows_false_start());
    bytes.extend(b"question");
    let mut stream = connect(address).expect("connect");
    // One write, and nothing more is sent: all that is read is one round trip away.
    stream.write_all(&bytes).expect("write");
    let mut answer = Vec::new();
    while !answer.ends_with(b"question") {
        let mut part = [0; 200];
        let count = stream.read(&mut part).expect("read");
        assert_ne!(count, 0, "{answer:02x?}");
        answer.extend(&part[..count]);
    }
    let taken = client.feed(&answer).expect("replies");
    assert_eq!(&answer[taken..], b"question");
    let token = client.auth_reply().expect("one").options.token;
    assert_eq!(token, Some(TokenVerdict::Accepted));
}

#[test]
fn early_data_are_forwarded_first_and_in_order() {
    let (_server, address) = serve(&[]);
    let (target, connections) = Target::manual();
    let payload: Vec<u8> = (0..40_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    let mut stream = connect(address).expect("connect");
    let bytes = [&request(1, target.address(), &[])[..], &payload].concat();
    stream.write_all(&bytes).expect("write");
    let mut far = connections.recv_timeout(SOON).expect("a connection");
    far.set_read_timeout(Some(SOON)).expect("limit");
    assert_eq!(read_exactly(&mut far, payload.len()), payload);
    assert_eq!(read_exactly(&mut stream, 16)[..4], AUTH_OK);
}

#[test]
fn clients_that_wait_get_the_first_reply_at_once() {
    let (_server, address) = serve(&["--connect-timeout", "20s"]);
    let silent = Unanswering::new();
    // An advertisement without initial data: it may not send before.
    let bytes = request(1, silent.address(), &[0, 2, 0, 8, 0, 0, 2, 0]);
    let mut stream = connect(address).expect("connect");
    stream.write_all(&bytes).expect("write");
    assert_eq!(read_exactly(&mut stream, 4), AUTH_OK);
    // One that waits for nothing gets both in one.
    let mut stream = connect(address).expect("connect");
    stream
        .write_all(&request(1, silent.address(), &[]))
        .expect("write");
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("limit");
    let error = stream.read(&mut [0]).expect_err("nothing yet");
    assert!(matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    ));
}

/// Password in the request: method 2, RFC 1929, padded.
fn password(user: &[u8], password: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
    let mut data = vec![2, 1, length(user)];
    data.extend(user);
    data.push(length(password));
    data.extend(password);
    data.resize(data.len().next_multiple_of(4), 0);
    let whole = u16::try_from(4 + data.len()).expect("short").to_be_bytes();
    [&[0, 4], &whole[..], &data].concat()
}

const ADVERTISED: [u8; 8] = [0, 2, 0, 8, 0, 0, 2, 0];

#[test]
fn with_users_nothing_goes_without_the_password() {
    let (server, address) = serve(&["--user", "ada:pass"]);
    let right = password(b"ada", b"pass");
    let ok = [6, 0, 0, 8, 0, 4, 0, 8, 2, 1, 0, 0];
    let wrong = [6, 1, 0, 8, 0, 4, 0, 8, 2, 1, 1, 0];
    for options in [right.clone(), [&ADVERTISED[..], &right].concat()] {
        let answer = answer(address, &noop(&options));
        assert_eq!(answer[..12], ok, "{answer:02x?}");
        assert_eq!(answer[12..], NOOP_DONE[4..]);
    }
    for options in [password(b"ada", b"past"), password(b"bob", b"pass")] {
        let answer = answer(address, &noop(&options));
        assert_eq!(answer[..11], wrong[..11], "{answer:02x?}");
        assert_eq!(answer.len(), 12);
    }
    assert_eq!(refused_for(&server, "credentials"), 2);
    // Nothing, and only what is no password.
    assert_eq!(answer(address, &NOOP), FAILED);
    // -12 has no messages for it.
    let none = [6, 1, 0, 8, 0, 3, 0, 8, 0xff, 0, 0, 0];
    assert_eq!(answer(address, &noop(&ADVERTISED)), none);
    assert_eq!(refused_for(&server, "no-acceptable-method"), 1);
    let status = server.status();
    assert_eq!(status["by_user"]["ada"]["total"], 2);
    assert!(server.log().iter().all(|line| !line.contains("past")));
}

#[test]
fn without_users_everything_succeeds() {
    let (_server, address) = serve(&[]);
    for options in [
        password(b"ada", b"pass"),
        ADVERTISED.to_vec(),
        // Of a method that nobody knows.
        vec![0, 4, 0, 8, 0xaa, 1, 2, 3],
    ] {
        let answer = answer(address, &noop(&options));
        assert_eq!(answer[..2], [6, 0], "{answer:02x?}");
        assert_eq!(answer[answer.len() - 12..], NOOP_DONE[4..]);
    }
}

#[test]
fn who_guesses_has_to_wait() {
    let (_server, address) = serve(&["--user", "ada:pass"]);
    for _ in 0..5 {
        answer(address, &noop(&password(b"ada", b"wrong")));
    }
    let mut stream = connect(address).expect("connect");
    let guess = noop(&password(b"ada", b"guess"));
    stream.write_all(&guess).expect("write");
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("limit");
    stream.read(&mut [0]).expect_err("not yet");
    stream.set_read_timeout(Some(SOON)).expect("limit");
    assert_eq!(rest(&mut stream)[..2], [6, 1]);
}

#[test]
fn drafts_that_have_it_run_the_password_in_messages_of_its_own() {
    let echo = Target::echo();
    for (name, profile) in Profile::NAMED {
        if profile.password == PasswordForm::InRequest {
            continue;
        }
        let (server, address) = serve(&["--user", "ada:pass", "--socks6-profile", name]);
        for (word, right) in [("pass", true), ("nope", false)] {
            let methods = MethodAdvertisement {
                initial_data: 7,
                methods: MethodSet::new([Method::USER_PASSWORD, Method(0xaa)]),
            };
            let options = RequestOptions {
                methods: Some(methods),
                ..RequestOptions::default()
            };
            let request = with(Command::CONNECT, echo.address(), options);
            // Initial data come before the method's messages, and in two pieces.
            let mut talk = Talk::start(address, request, profile, b"ini");
            assert_eq!(
                talk.outcome(),
                Ok(Outcome::Negotiate(Method::USER_PASSWORD))
            );
            talk.stream.write_all(b"tial").expect("write");
            let message = [&[1, 3][..], b"ada", &[4], word.as_bytes()].concat();
            let (last, others) = message.split_last().expect("not empty");
            for byte in others {
                talk.stream.write_all(&[*byte]).expect("write");
            }
            // Right behind it the payload may go on.
            talk.stream
                .write_all(&[&[*last], &b"on"[..]].concat())
                .expect("write");
            let status = read_exactly(&mut talk.stream, 2);
            talk.client.negotiated();
            if right {
                assert_eq!(status, [1, 0]);
                talk.done();
                assert_eq!(read_exactly(&mut talk.stream, 9), b"initialon");
            } else {
                assert_ne!(status[1], 0);
                assert_eq!(talk.outcome(), Err(ClientError::AuthenticationFailed));
            }
        }
        assert_eq!(refused_for(&server, "credentials"), 1);
        // What is no such message.
        let methods = MethodAdvertisement {
            initial_data: 0,
            methods: MethodSet::new([Method::USER_PASSWORD]),
        };
        let options = RequestOptions {
            methods: Some(methods),
            ..RequestOptions::default()
        };
        let mut talk = Talk::start(
            address,
            with(Command::NOOP, nowhere(), options),
            profile,
            b"",
        );
        assert!(matches!(talk.outcome(), Ok(Outcome::Negotiate(_))));
        talk.stream.write_all(&[9, 9, 9]).expect("write");
        talk.client.negotiated();
        assert_eq!(talk.outcome(), Err(ClientError::AuthenticationFailed));
    }
}

#[test]
fn initial_data_without_negotiation_are_payload() {
    let (_server, address) = serve(&["--user", "ada:pass"]);
    let echo = Target::echo();
    let options = [&[0, 2, 0, 8, 0, 4, 2, 0][..], &password(b"ada", b"pass")].concat();
    let bytes = [&request(1, echo.address(), &options)[..], b"data"].concat();
    let mut stream = connect(address).expect("connect");
    stream.write_all(&bytes).expect("write");
    read_exactly(&mut stream, 4 + 8 + 12);
    assert_eq!(read_exactly(&mut stream, 4), b"data");
}

#[test]
fn a_session_spares_the_password_until_it_is_torn_down() {
    let (server, address) = serve(&["--user", "ada:pass", "--user", "bob:word"]);
    let options_of_ada = RequestOptions {
        password: ada(),
        ..wants_session()
    };
    let (id, window) = session(address, options_of_ada.clone());
    assert_eq!(window, None);
    assert_eq!(server.status()["sessions"], 1);
    assert!(noop_with(address, inside(&id)).is_ok());
    // No password is looked at inside.
    let bad = Credentials::new("ada", "bad").expect("short");
    let options = RequestOptions {
        password: Some(bad.into()),
        ..inside(&id)
    };
    assert!(noop_with(address, options).is_ok());
    assert_eq!(server.status()["by_user"]["ada"]["total"], 3);
    // Unknown ids, short and long.
    for bytes in [&[0; 4][..], &[0; 16], &[0; 252]] {
        let id = SessionId::new(bytes).expect("a multiple of 4");
        assert_eq!(
            noop_with(address, inside(&id)),
            Err(ClientError::SessionInvalid)
        );
    }
    assert_eq!(refused_for(&server, "socks6-session"), 3);
    // A teardown is a request outside of the session, which is gone in any case.
    let teardown = RequestOptions {
        session: SessionUse::Teardown(id.clone()),
        ..RequestOptions::default()
    };
    assert_eq!(
        noop_with(address, teardown),
        Err(ClientError::AuthenticationFailed)
    );
    assert_eq!(
        noop_with(address, inside(&id)),
        Err(ClientError::SessionInvalid)
    );
    assert_eq!(server.status()["sessions"], 0);
    // With the password, the request is carried out, without a word on the session.
    let (id, _) = session(address, options_of_ada);
    let teardown = RequestOptions {
        password: ada(),
        session: SessionUse::Teardown(id.clone()),
        ..RequestOptions::default()
    };
    let request = with(Command::NOOP, nowhere(), teardown);
    let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"");
    talk.done();
    let reply = talk.client.auth_reply().expect("one");
    assert_eq!(reply.options.session, None);
    assert_eq!(
        noop_with(address, inside(&id)),
        Err(ClientError::SessionInvalid)
    );
    assert_eq!(server.status()["sessions"], 0);
}

/// A token that is spent in the request that asks for the session and its window.
#[test]
fn a_wrong_token_in_the_first_request_leaves_no_session() {
    let (server, address) = serve(&[]);
    // The window begins anywhere, so one of these two is outside.
    let rejected = [0_u32, 1 << 31].map(|token| {
        let options = RequestOptions {
            window: WindowSize::new(16),
            token: Some(Token(token)),
            ..wants_session()
        };
        noop_with(address, options) == Err(ClientError::TokenRejected)
    });
    let sessions = rejected.iter().filter(|rejected| !**rejected).count();
    assert!(sessions < 2);
    assert_eq!(server.status()["sessions"], sessions);
}

#[test]
fn a_client_has_a_share_of_the_sessions_and_no_more() {
    let (server, address) = serve(&[]);
    let before = server.rss();
    for number in 0..3000 {
        let answer = answer(address, &noop(&[0, 5, 0, 4, 0, 11, 0, 8, 0, 0xff, 0, 0]));
        // Declined without a word.
        let expected = if number < 64 { 68 } else { 16 };
        assert_eq!(answer.len(), expected, "{number}");
    }
    assert_eq!(server.status()["sessions"], 64);
    let grown = server.rss().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
}

/// A server in this process, with limits that no option sets.
fn serve_within(limits: Limits) -> SocketAddr {
    // The port is free for a moment: nobody else here asks for this one.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let settings = ServeSettings {
        listen: vec![address.to_string().parse().expect("an address")],
        control: ControlPath::None,
        socks6: Some(Socks6Options {
            limits,
            ..Socks6Options::default()
        }),
        ..ServeSettings::default()
    };
    thread::spawn(move || Daemon::server(settings).expect("a server").run());
    assert!(wait_until(SOON, || TcpStream::connect(address).is_ok()));
    address
}

#[test]
fn idle_sessions_end_and_windows_are_as_large_as_the_limit() {
    let address = serve_within(Limits {
        total: 2,
        per_client: 2,
        idle: Duration::from_millis(500),
        window: WindowSize::new(4).expect("a size"),
    });
    let options = RequestOptions {
        window: WindowSize::new(100),
        ..wants_session()
    };
    let (first, window) = session(address, options);
    assert_eq!(window.expect("a window").size.as_u32(), 4);
    session(address, wants_session());
    // Two are all there may be, and none of them is used: there is room when they have ended.
    let room = || answer(address, &noop(&[0, 5, 0, 4])) != NOOP_DONE;
    assert!(!room());
    assert!(wait_until(SOON, room));
    assert_eq!(
        noop_with(address, inside(&first)),
        Err(ClientError::SessionInvalid)
    );
}

#[test]
fn sessions_end_with_the_users_they_were_opened_for() {
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let file = directory.path().join("users");
    std::fs::write(&file, "ada:pass\n").expect("write");
    let (server, address) = serve(&["--users-file", file.to_str().expect("a path")]);
    let options = RequestOptions {
        password: ada(),
        ..wants_session()
    };
    let (id, _) = session(address, options);
    assert!(noop_with(address, inside(&id)).is_ok());
    std::fs::write(&file, "bob:word\n").expect("write");
    server.signal(common::Signal::HUP);
    assert!(wait_until(SOON, || noop_with(address, inside(&id)).is_err()));
    assert_eq!(
        noop_with(address, inside(&id)),
        Err(ClientError::SessionInvalid)
    );
}

#[test]
fn a_token_is_good_once_on_whatever_connection() {
    let (server, address) = serve(&[]);
    let target = Target::echo();
    let options = RequestOptions {
        // More than is granted.
        window: WindowSize::new(1 << 30),
        ..wants_session()
    };
    let (id, window) = session(address, options);
    let window = window.expect("a window");
    assert_eq!(window.size.as_u32(), 2048);
    let spend = |token: Token| {
        let options = RequestOptions {
            token: Some(token),
            ..inside(&id)
        };
        let request = with(Command::CONNECT, target.address(), options);
        let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"x");
        let outcome = talk.outcome();
        let options = talk.client.auth_reply().expect("one").options.clone();
        (
            outcome.map(drop),
            options.window.expect("told each time").base,
        )
    };
    let base = window.base;
    assert_eq!(spend(base), (Ok(()), base.plus(1)));
    assert_eq!(spend(base), (Err(ClientError::TokenRejected), base.plus(1)));
    assert_eq!(spend(base.plus(7)).0, Ok(()));
    assert_eq!(spend(base.plus(7)).0, Err(ClientError::TokenRejected));
    // Outside, on both sides.
    for token in [base.plus(u32::MAX), base.plus(3000), base.plus(1 << 31)] {
        assert_eq!(spend(token).0, Err(ClientError::TokenRejected));
    }
    assert_eq!(refused_for(&server, "socks6-token"), 5);
    assert!(wait_until(SOON, || target.accepted() == 2));
    // A failed request has cost its token.
    let options = RequestOptions {
        token: Some(base.plus(9)),
        ..inside(&id)
    };
    let request = with(Command::CONNECT, dead_address(), options);
    let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"");
    assert!(matches!(talk.outcome(), Err(ClientError::Refused(_))));
    assert_eq!(spend(base.plus(9)).0, Err(ClientError::TokenRejected));
}

#[test]
fn bind_is_where_the_client_wants_it_if_it_is_ours() {
    let (_server, address) = serve(&[]);
    let free = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = free.local_addr().expect("address").port();
    let taken = request(
        2,
        format!("127.0.0.1:{port}").parse().expect("an address"),
        &[],
    );
    assert_eq!(code(address, &taken), 1, "it is in use");
    drop(free);
    let wanted = format!("127.0.0.1:{port}");
    let mut talk = Talk::start(
        address,
        asking(Command::BIND, &wanted),
        Profile::DRAFT_12,
        b"",
    );
    let bound = address_in(&talk.done());
    assert_eq!(bound, wanted.parse().ok());
    for (to, expected) in [
        // Not ours (for documentation), and the ports of services.
        ("192.0.2.1:0", 2),
        ("127.0.0.1:80", 2),
        ("127.0.0.1:1023", 2),
    ] {
        let to = to.parse().expect("an address");
        assert_eq!(code(address, &request(2, to, &[])), expected, "{to}");
    }
    let name = [&[6, 2, 0, 0, 0, 0, 0, 3, 15][..], b"localhost\0\0\0\0\0\0"].concat();
    assert_eq!(code(address, &name), 8);
}

#[test]
fn bind_lets_in_whom_the_rules_let_in() {
    let server = Sockhop::serve(&["--deny-dest", "127.0.0.2", "--allow-dest", "127.0.0.0/8"])
        .args(["--bind-timeout", "20s"])
        .start();
    let address = server.wait_listening(SOON);
    let mut talk = Talk::start(
        address,
        asking(Command::BIND, "0.0.0.0:0"),
        Profile::DRAFT_12,
        b"",
    );
    let bound = address_in(&talk.done()).expect("an address");
    let mut stranger = from("127.0.0.2", bound);
    assert!(is_closed(&mut stranger));
    let peer = from("127.0.0.3", bound);
    assert_eq!(address_in(&talk.done()), peer.local_addr().ok());
    // Of those who come to a backlog, too.
    let (id, _) = session(address, wants_session());
    let (_handle, bound, _) = open_backlog(address, inside(&id), Profile::DRAFT_12);
    let mut stranger = from("127.0.0.2", bound);
    assert!(is_closed(&mut stranger));
    let peer = from("127.0.0.3", bound);
    let request = with(Command::BIND, bound, inside(&id));
    let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"");
    talk.done();
    assert_eq!(address_in(&talk.done()), peer.local_addr().ok());
}

#[test]
fn nobody_in_time_ends_a_bind_with_a_code_of_its_own() {
    let (_server, address) = serve(&["--bind-timeout", "200ms"]);
    let answer = answer(address, &request(2, nowhere(), &[]));
    assert_eq!(answer.len(), 4 + 12 + 12, "{answer:02x?}");
    assert_eq!((answer[5], answer[17]), (0, 9));
}

/// Waits for the other side to close, or to reset.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// A connection from this address.
fn from(source: &str, to: SocketAddr) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let source: SocketAddr = format!("{source}:0").parse().expect("an address");
    socket.bind(&source.into()).expect("bind");
    socket.connect(&to.into()).expect("connect");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).expect("limit");
    stream
}

fn backlog(count: u16) -> StackOptions {
    StackOptions {
        backlog: Some(count),
        ..StackOptions::default()
    }
}

/// The first connection of a backlog.
#[track_caller]
fn open_backlog(
    address: SocketAddr,
    options: RequestOptions,
    profile: Profile,
) -> (Talk, SocketAddr, u16) {
    let options = RequestOptions {
        stack: backlog(5),
        ..options
    };
    let mut handle = Talk::start(
        address,
        with(Command::BIND, nowhere(), options),
        profile,
        b"",
    );
    let reply = handle.done();
    let granted = reply.options.stack.backlog.expect("an answer");
    let bound = address_in(&reply).expect("an address");
    (handle, bound, granted)
}

#[test]
fn peers_of_a_backlog_are_fetched_one_by_one() {
    let (_server, address) = serve(&[]);
    let (id, _) = session(address, wants_session());
    let (handle, bound, granted) = open_backlog(address, inside(&id), Profile::DRAFT_12);
    assert_eq!(granted, 5);
    let fetch = || {
        let request = with(Command::BIND, bound, inside(&id));
        let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"");
        assert_eq!(address_in(&talk.done()), Some(bound));
        talk
    };
    // Who waits first, and who comes first; more than are accepted at once.
    let mut waiting = fetch();
    let mut peers: Vec<_> = (0..5)
        .map(|_| TcpStream::connect(bound).expect("connect"))
        .collect();
    let mut fetched = vec![waiting.done()];
    let mut streams = vec![waiting.stream];
    for _ in 1..5 {
        let mut talk = fetch();
        fetched.push(talk.done());
        streams.push(talk.stream);
    }
    for ((peer, reply), stream) in peers.iter_mut().zip(fetched).zip(&mut streams) {
        assert_eq!(address_in(&reply), peer.local_addr().ok());
        peer.write_all(b"hello").expect("write");
        assert_eq!(read_exactly(&mut *stream, 5), b"hello");
        stream.write_all(b"hi").expect("write");
        assert_eq!(read_exactly(peer, 2), b"hi");
    }
    // Another session's client finds nothing there but a port in use.
    let (other, _) = session(address, wants_session());
    let request = with(Command::BIND, bound, inside(&other));
    let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"");
    assert!(matches!(talk.outcome(), Err(ClientError::Refused(_))));
    // The port lives as long as the first connection; who waits is told.
    let mut waiting = fetch();
    let mut unfetched = fetch_none(bound);
    assert_eq!(address_in(&waiting.done()), unfetched.local_addr().ok());
    let mut waiting = fetch();
    drop(handle);
    assert!(matches!(waiting.outcome(), Err(ClientError::Refused(code)) if code.0 == 5));
    assert!(wait_until(SOON, || TcpStream::connect(bound).is_err()));
    // What was fetched goes on.
    unfetched.write_all(b"still").expect("write");
    assert_eq!(exchange_through(&mut streams[0], &mut peers[0]), b"on");
}

fn fetch_none(bound: SocketAddr) -> TcpStream {
    TcpStream::connect(bound).expect("connect")
}

fn exchange_through(near: &mut TcpStream, far: &mut TcpStream) -> Vec<u8> {
    near.write_all(b"on").expect("write");
    read_exactly(far, 2)
}

#[test]
fn a_peer_goes_to_one_who_is_still_there() {
    let (server, address) = serve(&[]);
    let (id, _) = session(address, wants_session());
    let (_handle, bound, _) = open_backlog(address, inside(&id), Profile::DRAFT_12);
    let fetch = || {
        let request = with(Command::BIND, bound, inside(&id));
        let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"");
        talk.done();
        talk
    };
    let left = [fetch(), fetch()];
    let mut waiting = fetch();
    drop(left);
    server.wait_status(|status| status["connections"]["active"] == 2, SOON);
    let peer = TcpStream::connect(bound).expect("connect");
    assert_eq!(address_in(&waiting.done()), peer.local_addr().ok());
}

#[test]
fn who_waits_for_a_peer_that_nobody_sends_is_refused_in_time() {
    let (_server, address) = serve(&["--bind-timeout", "300ms"]);
    let (id, _) = session(address, wants_session());
    let (handle, bound, _) = open_backlog(address, inside(&id), Profile::DRAFT_12);
    let mut talk = Talk::start(
        address,
        with(Command::BIND, bound, inside(&id)),
        Profile::DRAFT_12,
        b"",
    );
    talk.done();
    assert!(matches!(talk.outcome(), Err(ClientError::Refused(code)) if code.0 == 9));
    // The other way round: a peer that nobody fetches is closed, and the port stays.
    let mut peer = TcpStream::connect(bound).expect("connect");
    peer.set_read_timeout(Some(SOON)).expect("limit");
    assert!(is_closed(&mut peer));
    assert!(TcpStream::connect(bound).is_ok());
    drop(handle);
}

#[test]
fn without_a_session_there_is_no_backlog() {
    let (_server, address) = serve(&[]);
    let none = RequestOptions::default();
    let (mut talk, bound, granted) = open_backlog(address, none, Profile::DRAFT_12);
    assert_eq!(granted, 0);
    // A plain one, then.
    let peer = TcpStream::connect(bound).expect("connect");
    assert_eq!(address_in(&talk.done()), peer.local_addr().ok());
}

#[test]
fn profiles_that_push_tell_of_each_peer() {
    let push = |(_, profile): &(&str, Profile)| profile.backlog == BacklogNotice::Push;
    for (name, profile) in Profile::NAMED.into_iter().filter(push) {
        let (_server, address) = serve(&["--socks6-profile", name]);
        let none = RequestOptions::default();
        let (mut handle, bound, granted) = open_backlog(address, none.clone(), profile);
        assert_eq!(granted, 5);
        for _ in 0..3 {
            let mut peer = TcpStream::connect(bound).expect("connect");
            let told = address_in(&handle.done());
            assert_eq!(told, peer.local_addr().ok());
            let request = with(Command::BIND, bound, none.clone());
            let mut talk = Talk::start(address, request, profile, b"first");
            talk.done();
            assert_eq!(address_in(&talk.done()), told);
            assert_eq!(read_exactly(&mut peer, 5), b"first");
        }
    }
}

#[test]
fn dns_is_where_the_server_says() {
    let dns = Target::echo();
    let server = Sockhop::serve(&["--dns", &dns.address().to_string()]).start();
    let address = server.wait_listening(SOON);
    for to in ["0.0.0.0:53", "[::]:53"] {
        let request = asking(Command::CONNECT, to);
        let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"question");
        talk.done();
        assert_eq!(read_exactly(&mut talk.stream, 8), b"question");
    }
    // The rules hold for everything else.
    assert_eq!(code(address, &request(1, dns.address(), &[])), 2);
}

#[test]
fn whole_requests_only() {
    let (server, address) = serve(&["--require-whole-request"]);
    let echo = Target::echo();
    assert_eq!(answer(address, &NOOP), NOOP_DONE);
    let whole = [&request(1, echo.address(), &[])[..], b"data"].concat();
    let mut stream = connect(address).expect("connect");
    stream.write_all(&whole).expect("write");
    read_exactly(&mut stream, 16);
    assert_eq!(read_exactly(&mut stream, 4), b"data");
    for length in 1..NOOP.len() {
        assert_eq!(answer(address, &NOOP[..length]), b"", "{length} bytes");
    }
    // Also what never can be a request.
    assert_eq!(answer(address, &noop(&[0, 5, 0, 0])), b"");
    assert_eq!(refused_for(&server, "whole-request"), 12);
}

#[test]
fn clients_get_through_other_proxies() {
    let echo = Target::echo();
    let (_exit, exit) = serve(&[]);
    let via = format!("socks5h://{exit}");
    let (_server, address) = serve(&["--via", &via]);
    let to = format!("localhost:{}", echo.address().port());
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--allow-dest", "localhost"])
        .args(["--via", &via])
        .start();
    let by_name = server.wait_listening(SOON);
    for (address, to) in [(address, echo.address().to_string()), (by_name, to)] {
        let request = asking(Command::CONNECT, &to);
        let mut talk = Talk::start(address, request, Profile::DRAFT_12, b"early");
        talk.done();
        assert_eq!(read_exactly(&mut talk.stream, 5), b"early");
    }
    assert_eq!(code(address, &request(1, dead_address(), &[])), 5);
    // A proxy of SOCKS 5 lets nobody choose where it listens.
    assert_eq!(code(address, &request(2, dead_address(), &[])), 2);
    let silent = Peer::silent();
    let via = format!("socks5://{}", silent.address());
    let (_server, address) = serve(&["--via", &via, "--connect-timeout", "300ms"]);
    assert_eq!(code(address, &request(1, echo.address(), &[])), 9);
}

#[test]
fn a_client_that_says_nothing_more_is_let_go() {
    let (server, address) = serve(&["--handshake-timeout", "200ms"]);
    let mut stream = connect(address).expect("connect");
    stream.write_all(&NOOP[..7]).expect("write");
    assert_eq!(rest(&mut stream), b"");
    assert_eq!(refused_for(&server, "handshake-timeout"), 1);
}

#[test]
fn many_clients_in_the_middle_of_their_requests_take_little_memory() {
    let (server, address) = serve(&["--handshake-timeout", "60s", "--workers", "2"]);
    let crowd = |count| {
        let streams: Vec<_> = (0..count)
            .map(|_| {
                let mut stream = connect(address).expect("connect");
                // 20,480 bytes of options are announced, and the first of them sent.
                let head = [6, 1, 0x50, 0, 0, 80, 0, 1, 127, 0, 0, 1, 0, 5, 0, 4];
                stream.write_all(&head).expect("write");
                stream
            })
            .collect();
        let parked = wait_until(SOON, || server.status()["connections"]["parked"] == count);
        assert!(parked, "{}", server.status());
        streams
    };
    // The workers have their buffers then.
    drop(crowd(20));
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    let before = server.rss();
    let _crowd = crowd(300);
    let each = server.rss().saturating_sub(before) / 300;
    assert!(each < 3000, "{each} bytes each");
}

/// Valid requests with a few bytes changed, cut or repeated: an answer or silence, and a server that goes on.
#[test]
fn changed_requests_end_in_an_answer_or_in_silence() {
    let (server, address) = serve(&["--user", "ada:pass", "--bind-timeout", "100ms"]);
    let login = RequestOptions {
        password: ada(),
        window: WindowSize::new(64),
        ..wants_session()
    };
    let (id, window) = session(address, login.clone());
    let token = RequestOptions {
        token: Some(window.expect("a window").base.plus(3)),
        stack: backlog(3),
        ..inside(&id)
    };
    let methods = MethodAdvertisement {
        initial_data: 5,
        methods: MethodSet::new([Method::USER_PASSWORD]),
    };
    let advertised = RequestOptions {
        methods: Some(methods),
        ..login.clone()
    };
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..600 {
        let options = random.choice([&login, &token, &advertised]).expect("one");
        let command = Command(random.u8(0..5));
        let to = match command {
            Command::CONNECT => dead_address(),
            _ => nowhere(),
        };
        let mut bytes = Vec::new();
        with(command, to, options.clone()).encode(&Profile::DRAFT_12, &mut bytes);
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            match random.u8(..3) {
                0 => bytes[at] = random.u8(..),
                1 => bytes[at] ^= 1 << random.u8(..8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let mut stream = connect(address).expect("connect");
        stream.write_all(&bytes).expect("write");
        stream.shutdown(Shutdown::Write).expect("shut down");
        let mut answer = Vec::new();
        // A reset is as good as an end, a time-out is not.
        if let Err(error) = stream.read_to_end(&mut answer) {
            let kind = error.kind();
            assert_eq!(
                kind,
                io::ErrorKind::ConnectionReset,
                "seed {seed}, round {round}"
            );
        }
        assert!(answer.len() < 400, "seed {seed}, round {round}");
    }
    server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(noop_with(address, inside(&id)).is_ok() || noop_with(address, login).is_ok());
}
