//! The blocking client library against proxies that behave and misbehave.

mod common;

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Behaviour, Observed, Peer, SOON, Step, Target, Unanswering, dead_address, exchange, observe,
};
use sockhop::ProxyUri;
use sockhop::client::{self, Association, ClientError, Dialer, Fault, Phase, Whose};
use sockhop::handshake::client::Phase as Awaited;
use sockhop::handshake::{HandshakeError, Refusal};
use sockhop::wire::socks5::{Method, ReplyCode};
use sockhop::wire::{AddressError, NameError};

const TARGET: &str = "192.0.2.1:80";
/// The request for it.
const REQUEST: usize = 10;
const REPLY: [u8; 10] = [5, 0, 0, 1, 192, 0, 2, 7, 0, 80];
const REPLY_V6: [u8; 22] = [
    5, 0, 0, 4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80,
];

fn uri(scheme: &str, proxy: SocketAddr) -> ProxyUri {
    format!("{scheme}://{proxy}?timeout=10s").parse().unwrap()
}

fn uri_of(text: &str, proxy: SocketAddr) -> ProxyUri {
    text.replace("PROXY", &proxy.to_string()).parse().unwrap()
}

/// A proxy that answers the greeting, then the request with these bytes, and then does these steps.
fn replying(reply: &[u8], then: impl IntoIterator<Item = Step>) -> Peer {
    let steps = [
        Step::Read(3),
        Step::Send(vec![5, 0]),
        Step::Read(REQUEST),
        Step::Send(reply.to_vec()),
    ];
    Peer::scripted(steps.into_iter().chain(then).collect())
}

fn connect_to(peer: &Peer) -> Result<TcpStream, ClientError> {
    client::connect(&uri("socks5h", peer.address()), TARGET)
}

#[track_caller]
fn fails(peer: &Peer) -> ClientError {
    connect_to(peer).expect_err("no connection")
}

/// That the stream waits as long as it takes, and is like any other.
#[track_caller]
fn assert_plain(stream: &TcpStream) {
    assert_eq!(stream.read_timeout().unwrap(), None);
    assert_eq!(stream.write_timeout().unwrap(), None);
    let flags = rustix::fs::fcntl_getfl(stream).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    assert!(stream.nodelay().unwrap());
}

/// A name whose addresses are all of loopback, IPv4 among them.
fn localhost() -> Vec<SocketAddr> {
    ("localhost", 80).to_socket_addrs().unwrap().collect()
}

#[test]
fn every_scheme_asks_in_its_own_way() {
    let reply_4 = vec![0, 90, 0, 0, 0, 0, 0, 0];
    for (scheme, target, requests, reply) in [
        (
            "socks4",
            "192.0.2.1:80",
            vec![b"\x04\x01\0\x50\xc0\0\x02\x01\0".to_vec()],
            reply_4.clone(),
        ),
        (
            "socks4",
            "localhost:80",
            vec![b"\x04\x01\0\x50\x7f\0\0\x01\0".to_vec()],
            reply_4.clone(),
        ),
        (
            "socks4a",
            "localhost:80",
            vec![b"\x04\x01\0\x50\0\0\0\x01\0localhost\0".to_vec()],
            reply_4,
        ),
        (
            "socks5h",
            "localhost:80",
            vec![b"\x05\x01\0\x05\x01\0\x03\x09localhost\0\x50".to_vec()],
            REPLY.to_vec(),
        ),
        (
            "socks5",
            "localhost:80",
            vec![
                b"\x05\x01\0\x05\x01\0\x01\x7f\0\0\x01\0\x50".to_vec(),
                b"\x05\x01\0\x05\x01\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50".to_vec(),
            ],
            REPLY.to_vec(),
        ),
    ] {
        let mut length = requests[0].len();
        if scheme == "socks5" && localhost()[0].is_ipv6() {
            length = requests[1].len();
        }
        let steps = match scheme {
            "socks4" | "socks4a" => vec![Step::Read(length), Step::Send(reply)],
            _ => vec![
                Step::Read(3),
                Step::Send(vec![5, 0]),
                Step::Read(length - 3),
                Step::Send(reply),
            ],
        };
        let peer = Peer::scripted(steps);
        let stream = client::connect(&uri(scheme, peer.address()), target).expect(scheme);
        assert_plain(&stream);
        let heard = peer.heard().concat();
        assert!(requests.contains(&heard), "{scheme} {target}: {heard:02x?}");
    }
}

#[test]
fn connects_and_relays_through_a_real_server() {
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    for scheme in ["socks5", "socks5h"] {
        let proxy = uri(scheme, peer.address());
        let stream = client::connect(&proxy, &target.address().to_string()).unwrap();
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
        assert_plain(&stream);
    }
}

// 37

#[test]
fn replies_in_single_bytes_are_enough() {
    let (target, peer) = (Target::echo(), Peer::drips(Duration::from_millis(1)));
    let proxy = uri("socks5h", peer.address());
    let stream = client::connect(&proxy, &target.address().to_string()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn payload_that_comes_with_the_reply_is_kept() {
    for reply in [
        REPLY.to_vec(),
        REPLY_V6.to_vec(),
        b"\x05\0\0\x03\0\0\x50".to_vec(),
        b"\x05\0\0\x03\x03abc\0\x50".to_vec(),
    ] {
        let peer = replying(&[&reply[..], b"220 hello"].concat(), [Step::Close]);
        let mut text = String::new();
        connect_to(&peer)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "220 hello", "{reply:02x?}");
    }
    let reply = b"\0\x5a\0\0\0\0\0\x00220 hello".to_vec();
    let peer = Peer::scripted(vec![Step::Read(9), Step::Send(reply), Step::Close]);
    let mut text = String::new();
    client::connect(&uri("socks4", peer.address()), TARGET)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "220 hello");
}

// 38

#[test]
fn replies_of_every_type_and_length_are_accepted() {
    let mut replies = vec![REPLY.to_vec(), REPLY_V6.to_vec()];
    for length in [0, 1, 254, 255] {
        let name = vec![b'a'; length.into()];
        replies.push([&[5, 0, 0, 3, length][..], &name, &[0, 80]].concat());
    }
    for reply in replies {
        let peer = replying(&reply, []);
        assert_plain(&connect_to(&peer).unwrap_or_else(|error| panic!("{reply:02x?}: {error}")));
    }
}

#[test]
fn refusals_count_whatever_follows_their_code() {
    for rest in [
        &[][..],
        &[0, 1, 0, 0, 0, 0, 0, 0],
        &[0, 3, 0, 0, 0],
        &[0, 4],
        &[9, 9, 9],
    ] {
        let peer = replying(&[&[5, 2][..], rest].concat(), [Step::Close]);
        let error = fails(&peer);
        assert!(
            matches!(
                error,
                ClientError::Refused {
                    refusal: Refusal::Socks5(ReplyCode::NOT_ALLOWED),
                    whose: Whose::Target,
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(error.fault(), Fault::Target);
    }
}

// 39

#[test]
fn what_no_proxy_says_has_errors_of_its_own() {
    let sends = |bytes: &[u8]| {
        Peer::scripted(vec![
            Step::Read(3),
            Step::Send(bytes.to_vec()),
            Step::HalfClose,
        ])
    };
    for (peer, message) in [
        (sends(&[5, 1]), "chose what was not offered to it"),
        (sends(&[5, 2]), "wants user and password"),
        (sends(&[5, 0xff]), "accepts none of the offered methods"),
        (sends(&[4, 0]), "sent 04 00"),
        (sends(&[0, 90, 0, 0, 0, 0, 0, 0]), "sent 00 5A"),
        (
            sends(&[&[5, 0][..], &REPLY].concat()),
            "sent more than its answer",
        ),
        (sends(&[]), "closed before the answer to the greeting"),
        (sends(&[5]), "closed after 1 byte of the answer"),
        (Peer::http(), "sent \"HTTP/1.1\""),
        (Peer::ssh_banner(), "sent \"SSH-2.0-\""),
        (
            replying(&[5, 0, 0, 9, 0, 0, 0, 0], []),
            "unknown address type",
        ),
        (
            replying(&[4, 0, 0, 1, 0, 0, 0, 0], []),
            "unexpected version byte 0x04",
        ),
        (
            replying(&REPLY[..9], [Step::Close]),
            "closed after 9 bytes of the reply",
        ),
        (replying(&[], [Step::Close]), "closed before the reply"),
    ] {
        let error = fails(&peer);
        assert!(
            matches!(error, ClientError::Handshake(..)),
            "{message}: {error:?}"
        );
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(message), "{message}: {cause}");
        assert_eq!(error.fault(), Fault::Proxy);
    }
}

#[test]
fn a_reset_names_the_phase() {
    let error = fails(&Peer::scripted(vec![Step::Read(3), Step::Reset]));
    assert!(
        matches!(
            error,
            ClientError::Broken(_, Phase::Handshake(Awaited::Method), _)
        ),
        "{error:?}"
    );
    let error = fails(&replying(&REPLY[..4], [Step::Reset]));
    assert!(
        matches!(
            error,
            ClientError::Broken(_, Phase::Handshake(Awaited::Reply), _)
        ),
        "{error:?}"
    );
    assert_eq!(error.fault(), Fault::Proxy);
}

#[test]
fn a_proxy_that_is_not_there_is_not_a_target_that_refuses() {
    let error = client::connect(&uri("socks5", dead_address()), TARGET).unwrap_err();
    assert!(matches!(error, ClientError::Connect(..)), "{error:?}");
    assert_eq!(error.fault(), Fault::Proxy);

    let peer = Peer::valid(Duration::ZERO);
    let dead = dead_address().to_string();
    let error = client::connect(&uri("socks5", peer.address()), &dead).unwrap_err();
    assert_eq!(error.fault(), Fault::Target);
    assert_eq!(
        error.to_string(),
        format!(
            "target {dead}: proxy {}: the proxy replied: connection refused (0x05)",
            peer.address()
        )
    );
    assert!(peer.wait_open(0, SOON));
}

#[test]
fn socks4_refusals_are_told_apart() {
    for (code, fault) in [
        (91, Fault::Target),
        (92, Fault::Proxy),
        (93, Fault::Proxy),
        (0, Fault::Target),
    ] {
        let reply = vec![0, code, 0, 0, 0, 0, 0, 0];
        let peer = Peer::scripted(vec![Step::Read(9), Step::Send(reply)]);
        let error = client::connect(&uri("socks4", peer.address()), TARGET).unwrap_err();
        assert_eq!(error.fault(), fault, "{code}");
    }
}

// 40

#[test]
fn silence_in_every_phase_ends_at_the_deadline() {
    let password = "socks5h://ada:pass@PROXY?timeout=150ms";
    let none = "socks5h://PROXY?timeout=150ms";
    let after_method = |method: u8, more: &[u8]| {
        let mut steps = vec![Step::Read(3), Step::Send(vec![5, method])];
        if method == 2 {
            steps.push(Step::Read(3 + 3 + 4));
        }
        steps.push(Step::Send(more.to_vec()));
        Peer::scripted(steps)
    };
    for (text, peer, awaited) in [
        (none, Peer::silent(), Awaited::Method),
        (
            none,
            Peer::scripted(vec![Step::Read(3), Step::Send(vec![5])]),
            Awaited::Method,
        ),
        (password, after_method(2, &[]), Awaited::AuthStatus),
        (password, after_method(2, &[1]), Awaited::AuthStatus),
        (password, after_method(2, &[1, 0]), Awaited::Reply),
        (none, after_method(0, &[]), Awaited::Reply),
        (none, replying(&REPLY[..5], []), Awaited::Reply),
        (
            "socks4://PROXY?timeout=150ms",
            Peer::silent(),
            Awaited::Reply,
        ),
    ] {
        let start = Instant::now();
        let error = client::connect(&uri_of(text, peer.address()), TARGET).unwrap_err();
        let took = start.elapsed();
        assert!(
            matches!(error, ClientError::TimedOut(_, Phase::Handshake(phase)) if phase == awaited),
            "{text} {awaited}: {error:?}"
        );
        assert!(
            took >= Duration::from_millis(150) && took < SOON,
            "{took:?}"
        );
        assert!(peer.wait_open(0, SOON), "closed");
    }
}

#[test]
fn a_connect_that_nobody_answers_ends_at_the_deadline() {
    let nobody = Unanswering::new();
    let proxy = uri_of("socks5://PROXY?timeout=150ms", nobody.address());
    let error = client::connect(&proxy, TARGET).unwrap_err();
    assert!(
        matches!(error, ClientError::TimedOut(_, Phase::Connect)),
        "{error:?}"
    );
}

#[test]
fn a_slow_drip_does_not_stretch_the_deadline() {
    let peer = Peer::drips(Duration::from_millis(60));
    let proxy = uri_of("socks5://PROXY?timeout=200ms", peer.address());
    let start = Instant::now();
    let error = client::connect(&proxy, &dead_address().to_string()).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut(..)), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn the_deadline_is_over_with_the_handshake() {
    let reply = [
        Step::Wait(Duration::from_millis(700)),
        Step::Send(b"late".to_vec()),
    ];
    let peer = replying(&REPLY, reply);
    let proxy = uri_of("socks5h://PROXY?timeout=500ms", peer.address());
    let stream = client::connect(&proxy, TARGET).unwrap();
    assert_eq!(observe(&stream, SOON), Observed::Bytes(b"late".to_vec()));
}

#[test]
fn the_dialer_and_the_shortest_uri_set_the_deadline() {
    let peer = Peer::silent();
    let dialers = [
        Dialer::new(uri_of("socks5://PROXY?timeout=1h", peer.address()))
            .timeout(Duration::from_millis(50)),
        Dialer::new(uri_of("socks5://PROXY?timeout=1h", peer.address()))
            .through(uri_of("socks5://PROXY?timeout=50ms", peer.address())),
    ];
    for dialer in dialers {
        let error = dialer.connect(&TARGET.parse().unwrap()).unwrap_err();
        assert!(matches!(error, ClientError::TimedOut(..)), "{error:?}");
    }
    // As long as can be written is not too long to add to a clock.
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let dialer = Dialer::new(uri("socks5", peer.address())).timeout(Duration::MAX);
    assert!(dialer.connect(&target.address().into()).is_ok());
}

// 41

#[test]
fn what_cannot_be_asked_for_is_an_error_before_anything_is_sent() {
    let peer = Peer::valid(Duration::ZERO);
    let long = format!("{}:80", "a".repeat(256));
    for (target, error) in [
        (long.as_str(), AddressError::Name(NameError::TooLong)),
        (":80", AddressError::Name(NameError::Empty)),
        ("a\0b:80", AddressError::Name(NameError::Byte(0))),
        ("example.org", AddressError::MissingPort),
    ] {
        for scheme in ["socks5", "socks5h", "socks4a"] {
            match client::connect(&uri(scheme, peer.address()), target) {
                Err(ClientError::BadTarget(found)) => assert_eq!(found, error),
                other => panic!("{target:?}: {other:?}"),
            }
        }
    }
    let error = client::connect(&uri("socks5", peer.address()), "192.0.2.1:0").unwrap_err();
    assert!(matches!(error, ClientError::PortZero(_)), "{error:?}");
    for target in ["[2001:db8::1]:80", "0.0.0.7:80"] {
        let error = client::connect(&uri("socks4", peer.address()), target).unwrap_err();
        assert!(matches!(error, ClientError::Unaskable(..)), "{error:?}");
        assert_eq!(error.fault(), Fault::Caller);
    }
    assert_eq!(peer.accepted(), 0);
}

#[test]
fn a_name_that_does_not_exist_is_the_targets_fault_where_it_is_looked_up_here() {
    let peer = Peer::valid(Duration::ZERO);
    for scheme in ["socks4", "socks5"] {
        let error =
            client::connect(&uri(scheme, peer.address()), "no-such-name.invalid:80").unwrap_err();
        assert!(
            matches!(error, ClientError::Lookup(Whose::Target, ..)),
            "{error:?}"
        );
        assert_eq!(error.fault(), Fault::Target);
    }
    assert_eq!(peer.accepted(), 0);
    let proxy = "socks5://no-such-name.invalid".parse().unwrap();
    let error = client::connect(&proxy, TARGET).unwrap_err();
    assert_eq!(error.fault(), Fault::Proxy);
}

#[test]
fn the_next_address_of_a_name_is_tried_when_the_proxy_does_not_reach_one() {
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let before = localhost().iter().position(SocketAddr::is_ipv4);
    let target = format!("localhost:{}", target.address().port());
    let stream = client::connect(&uri("socks5", peer.address()), &target).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    // Where IPv6 comes first, nothing listens there.
    assert_eq!(Some(peer.requests()), before.map(|before| before + 1));
}

// 42

#[test]
fn with_credentials_there_is_no_way_around_them() {
    for answer in [[5, 0], [5, 0xff]] {
        let peer = Peer::scripted(vec![Step::Read(3), Step::Send(answer.to_vec())]);
        let proxy = uri_of("socks5h://ada:pass@PROXY", peer.address());
        let error = client::connect(&proxy, TARGET).unwrap_err();
        match answer[1] {
            0 => assert!(
                matches!(
                    error,
                    ClientError::Handshake(_, HandshakeError::MethodNotOffered(Method::NONE))
                ),
                "{error:?}"
            ),
            _ => assert!(matches!(error, ClientError::Handshake(..)), "{error:?}"),
        }
        // Closed, so that all it sent has been heard.
        assert!(peer.wait_open(0, SOON));
        assert_eq!(peer.heard(), [vec![5, 1, 2]]);
        let shown = format!("{error} {error:?} {proxy} {proxy:?}");
        assert!(!shown.contains("pass"), "{shown}");
    }
}

#[test]
fn no_authentication_is_offered_beside_credentials_on_request() {
    let steps = vec![
        Step::Read(4),
        Step::Send(vec![5, 0]),
        Step::Read(REQUEST),
        Step::Send(REPLY.to_vec()),
    ];
    let peer = Peer::scripted(steps);
    let dialer = Dialer::new(uri_of("socks5h://ada:pass@PROXY", peer.address()));
    let target = TARGET.parse().unwrap();
    assert!(dialer.allow_no_authentication().connect(&target).is_ok());
    assert_eq!(peer.heard()[0][..4], [5, 2, 2, 0]);
}

#[test]
fn credentials_are_sent_whole_and_their_rejection_is_told() {
    let proxy = |status: u8| {
        Peer::scripted(vec![
            Step::Read(3),
            Step::Send(vec![5, 2]),
            Step::Read(3 + 3 + 4),
            Step::Send(vec![1, status]),
            Step::Read(REQUEST),
            Step::Send(REPLY.to_vec()),
        ])
    };
    let peer = proxy(0);
    let text = "socks5h://ada:p%40ss@PROXY";
    assert!(client::connect(&uri_of(text, peer.address()), TARGET).is_ok());
    assert_eq!(peer.heard()[0][3..13], *b"\x01\x03ada\x04p@ss");
    let peer = proxy(1);
    let error = client::connect(&uri_of(text, peer.address()), TARGET).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Handshake(_, HandshakeError::CredentialsRejected(_))
        ),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains("p@ss"));
}

// 43

#[test]
fn proxies_in_text_are_read_or_refused_as_a_whole() {
    for text in [
        "socks5://proxy",
        "socks5h://a:b@[::1]",
        "socks4a://user@proxy?timeout=5s",
    ] {
        assert!(text.parse::<ProxyUri>().is_ok(), "{text}");
    }
    for text in [
        "proxy:1080",
        "http://proxy",
        "socks5://",
        "socks5://proxy?time=5s",
        "socks5://proxy?timeout=0s",
        "socks5://proxy?timeout=soon",
        "socks5://user@proxy",
        "socks5://user:secret@proxy:0",
        "socks5://user:sec%ret@proxy",
        "socks5://user:secret@::1",
        "socks4://user:secret@proxy",
    ] {
        let error = text.parse::<ProxyUri>().expect_err(text);
        assert!(!format!("{error} {error:?}").contains("sec"), "{error}");
    }
}

// 44

#[test]
fn a_proxy_that_answers_before_it_is_asked_does_not_hang() {
    // The answer to the greeting is there when the connect is; what follows is asked for as always.
    let early = Peer::scripted(vec![
        Step::Send(vec![5, 0]),
        Step::Read(3 + REQUEST),
        Step::Send(REPLY.to_vec()),
    ]);
    assert!(connect_to(&early).is_ok());
    // A verdict in the same instant, and gone: whether the write failed or not, it counts.
    for _ in 0..20 {
        let gone = Peer::scripted(vec![Step::Send(vec![5, 0xff]), Step::HalfClose]);
        let error = fails(&gone);
        assert!(
            matches!(
                error,
                ClientError::Handshake(_, HandshakeError::NoAcceptableMethod)
            ),
            "{error:?}"
        );
    }
}

#[test]
fn fast_proxies_lose_no_wake_up() {
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let dialer = Dialer::new(uri("socks5h", peer.address()));
    thread::scope(|scope| {
        for _ in 0..4 {
            let (dialer, target) = (dialer.clone(), target.address().into());
            scope.spawn(move || {
                for _ in 0..50 {
                    let stream = dialer.connect(&target).expect("connected");
                    assert_eq!(exchange(&stream, b"x").unwrap(), b"x");
                }
            });
        }
    });
    assert!(peer.wait_open(0, SOON));
}

// Chains

#[test]
fn each_proxy_is_reached_through_the_one_before() {
    let target = Target::echo();
    let peers = [(); 3].map(|()| Peer::valid(Duration::ZERO));
    let dialer = Dialer::new(uri("socks5", peers[0].address()))
        .through(uri("socks5h", peers[1].address()))
        .through(uri("socks5", peers[2].address()));
    let stream = dialer.connect(&target.address().into()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    assert_plain(&stream);
    for peer in &peers {
        assert_eq!((peer.accepted(), peer.requests()), (1, 1));
    }
    drop(stream);
    for peer in &peers {
        assert!(peer.wait_open(0, SOON));
    }
}

#[test]
fn a_chain_tells_which_link_failed() {
    let (first, dead) = (Peer::valid(Duration::ZERO), dead_address());
    let dialer = Dialer::new(uri("socks5", first.address())).through(uri("socks5", dead));
    let error = dialer.connect(&TARGET.parse().unwrap()).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!(
            "next proxy {dead}: proxy {}: the proxy replied",
            first.address()
        )),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Proxy);

    let second = Peer::valid(Duration::ZERO);
    let dialer =
        Dialer::new(uri("socks5", first.address())).through(uri("socks5", second.address()));
    let error = dialer.connect(&dead.into()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("target {dead}: proxy {}", second.address())),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Target);
}

// BIND

#[test]
fn bind_tells_where_and_who() {
    let mut second = REPLY.to_vec();
    second.extend(b"220 hello");
    let peer = replying(
        &[5, 0, 0, 1, 0, 0, 0, 0, 0x12, 0x34],
        [Step::Wait(Duration::from_millis(50)), Step::Send(second)],
    );
    let dialer = Dialer::new(uri("socks5", peer.address()));
    let binding = dialer.bind(&TARGET.parse().unwrap()).unwrap();
    // 0.0.0.0 is the proxy's own.
    assert_eq!(
        binding.address(),
        Some((peer.address().ip(), 0x1234).into())
    );
    let (stream, who) = binding.accept(SOON).unwrap();
    assert_eq!(who.to_string(), "192.0.2.7:80");
    assert_eq!(
        observe(&stream, SOON),
        Observed::Bytes(b"220 hello".to_vec())
    );
    assert_plain(&stream);
    assert_eq!(peer.heard()[0][3..6], [5, 2, 0]);
}

#[test]
fn bind_of_socks4_works_the_same() {
    let steps = vec![
        Step::Read(9),
        Step::Send(vec![0, 90, 0x12, 0x34, 192, 0, 2, 9]),
        Step::Send(vec![0, 90, 0, 80, 192, 0, 2, 1]),
    ];
    let peer = Peer::scripted(steps);
    let dialer = Dialer::new(uri("socks4", peer.address()));
    let binding = dialer.bind(&TARGET.parse().unwrap()).unwrap();
    assert_eq!(binding.address().unwrap().to_string(), "192.0.2.9:4660");
    let (_, who) = binding.accept(SOON).unwrap();
    assert_eq!(who.to_string(), TARGET);
}

#[test]
fn bind_without_a_caller_ends() {
    let bind = |peer: &Peer| {
        Dialer::new(uri("socks5", peer.address()))
            .bind(&TARGET.parse().unwrap())
            .unwrap()
    };
    let peer = replying(&REPLY, []);
    let error = bind(&peer).accept(Duration::from_millis(50)).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::TimedOut(_, Phase::Handshake(Awaited::SecondReply))
        ),
        "{error:?}"
    );
    assert!(peer.wait_open(0, SOON), "given up");
    drop(bind(&peer));
    assert!(peer.wait_open(0, SOON), "given up");
    peer.behave(Behaviour::Scripted(vec![
        Step::Read(3),
        Step::Send(vec![5, 0]),
        Step::Read(REQUEST),
        Step::Send([&REPLY[..], &[5, 1, 0, 1, 0, 0, 0, 0, 0, 0]].concat()),
    ]));
    let error = bind(&peer).accept(SOON).unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error:?}");
}

// UDP ASSOCIATE

/// A relay in the test, and the proxy that names it: `ip` is what it calls the relay's address.
fn associating(ip: [u8; 4], then: Vec<Step>) -> (Peer, UdpSocket) {
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_read_timeout(Some(SOON)).unwrap();
    let mut reply = vec![5, 0, 0, 1];
    reply.extend(ip);
    reply.extend(relay.local_addr().unwrap().port().to_be_bytes());
    let peer = replying(&reply, then);
    (peer, relay)
}

fn associate(scheme: &str, peer: &Peer) -> Association {
    Dialer::new(uri(scheme, peer.address()))
        .associate()
        .unwrap()
}

const FROM: &[u8] = b"\0\0\0\x01\xc0\0\x02\x01\0\x50";

#[test]
fn datagrams_are_wrapped_and_unwrapped() {
    for (ip, scheme, target, header) in [
        ([127, 0, 0, 1], "socks5", TARGET, FROM),
        // 0.0.0.0 is the proxy's own.
        (
            [0; 4],
            "socks5h",
            "a.example:80",
            b"\0\0\0\x03\x09a.example\0\x50",
        ),
        (
            [0; 4],
            "socks5h",
            "[::1]:80",
            b"\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50",
        ),
    ] {
        let (peer, relay) = associating(ip, vec![]);
        let association = associate(scheme, &peer);
        assert_eq!(association.relay(), relay.local_addr().unwrap());
        assert_eq!(peer.heard()[0][3..], *b"\x05\x03\0\x01\0\0\0\0\0\0");
        association
            .send_to(b"question", &target.parse().unwrap())
            .unwrap();
        let mut buffer = [0; 100];
        let (count, client) = relay.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..count], *[header, b"question"].concat());

        // Not from the relay, fragments, what has no header: as if they had never come.
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger
            .send_to(&[FROM, b"forged"].concat(), client)
            .unwrap();
        relay
            .send_to(b"\0\0\x01\x01\xc0\0\x02\x01\0\x50part", client)
            .unwrap();
        relay.send_to(b"\0\0\0", client).unwrap();
        relay.send_to(b"", client).unwrap();
        relay.send_to(&[FROM, b"answer"].concat(), client).unwrap();
        let (count, from) = association.recv_from(&mut buffer, SOON).unwrap();
        assert_eq!(buffer[..count], *b"answer");
        assert_eq!(from.to_string(), TARGET);
        let error = association
            .recv_from(&mut buffer, Duration::from_millis(30))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(association);
        assert!(peer.wait_open(0, SOON), "ended with it");
    }
}

#[test]
fn an_association_ends_with_its_connection_but_not_with_a_lost_datagram() {
    let (mut peer, relay) = associating([127, 0, 0, 1], vec![]);
    let association = associate("socks5", &peer);
    let address = relay.local_addr().unwrap();
    drop(relay);
    let target = TARGET.parse().unwrap();
    for _ in 0..3 {
        association.send_to(b"lost", &target).unwrap();
    }
    let relay = UdpSocket::bind(address).unwrap();
    relay.set_read_timeout(Some(SOON)).unwrap();
    association.send_to(b"again", &target).unwrap();
    let (_, client) = relay.recv_from(&mut [0; 100]).unwrap();
    relay.send_to(&[FROM, b"last"].concat(), client).unwrap();
    let mut buffer = [0; 2];
    let (count, _) = association.recv_from(&mut buffer, SOON).unwrap();
    assert_eq!(buffer[..count], *b"la");
    peer.kill();
    let error = association.recv_from(&mut buffer, SOON).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
}

#[test]
fn datagrams_need_one_proxy_that_can() {
    let peer = Peer::valid(Duration::ZERO);
    let socks4 = Dialer::new(uri("socks4", peer.address()));
    let chain = Dialer::new(uri("socks5", peer.address())).through(uri("socks5", peer.address()));
    for dialer in [socks4, chain] {
        let error = dialer.associate().unwrap_err();
        assert!(matches!(error, ClientError::NoDatagrams(_)), "{error:?}");
    }
    assert_eq!(peer.accepted(), 0);
    // That peer knows CONNECT only.
    let error = Dialer::new(uri("socks5", peer.address()))
        .associate()
        .unwrap_err();
    assert!(matches!(error, ClientError::Handshake(..)), "{error:?}");
    assert_eq!(error.fault(), Fault::Proxy);
    for reply in [&b"\x05\0\0\x03\x01a\0\x50"[..], b"\x05\0\0\x01\0\0\0\0\0\0"] {
        let peer = replying(reply, []);
        let error = Dialer::new(uri("socks5", peer.address()))
            .associate()
            .unwrap_err();
        assert!(matches!(error, ClientError::NoRelay(_)), "{error:?}");
    }
}
