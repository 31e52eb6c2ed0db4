//! Turns of an association of SOCKS 6 with a clock of the test. Nobody reads the shared port but the test.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::super::tests::{LONG, settings, unused};
use super::*;
use crate::engine::{Reactor, Ready, poll_interests};
use crate::listen::Limits;
use crate::net::OwnListeners;
use crate::server::association::Filter;
use crate::server::rules::{Rule, Rules};
use crate::wire::socks6::{Datagram, ErrorCode, UdpError};

struct Bench {
    association: Association,
    settings: ServerSettings,
    control: TcpStream,
    client: UdpSocket,
    far: UdpSocket,
    now: Instant,
    buffer: Vec<u8>,
}

const PROFILE: Profile = Profile::DRAFT_12;

fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn prepare(
    accepted: &Socket,
    from: SocketAddr,
    wanted: &str,
    stack: StackOptions,
    settings: &ServerSettings,
) -> Result<Prepared, Refused> {
    let limits = Limits::new(4, None, Reactor::new(1).unwrap().mailbox());
    let mut slot = limits.take(None).unwrap();
    let wanted = Wanted {
        address: &wanted.parse().unwrap(),
        stack: &stack,
        session: None,
        profile: PROFILE,
    };
    let now = Instant::now();
    Prepared::new(accepted, Some(from), &wanted, &mut slot, settings, now)
}

impl Bench {
    fn new() -> Self {
        Self::with(StackOptions::default(), |_| {})
    }

    fn with(stack: StackOptions, change: impl Fn(&mut ServerSettings)) -> Self {
        let mut settings = settings(Rules::allow_all(), unused);
        change(&mut settings);
        loop {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let control = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            control.set_read_timeout(Some(LONG)).unwrap();
            let (accepted, from) = listener.accept().unwrap();
            accepted.set_nonblocking(true).unwrap();
            let accepted = Socket::from(accepted);
            let prepared = prepare(&accepted, from, "0.0.0.0:0", stack, &settings).unwrap();
            if prepared.place.is_none() {
                // Somebody has the UDP port of that number.
                continue;
            }
            let client = udp("127.0.0.1:0");
            client.connect(listener.local_addr().unwrap()).unwrap();
            let now = Instant::now();
            let association =
                Association::new(accepted, b"reply".to_vec(), Vec::new(), prepared, now);
            let mut bench = Self {
                association,
                settings,
                control,
                client,
                far: udp("127.0.0.1:0"),
                now,
                buffer: Vec::new(),
            };
            assert!(matches!(bench.turn(), Turn::Wait { .. }));
            let mut reply = [0; 5 + 12];
            bench.control.read_exact(&mut reply).unwrap();
            assert_eq!(reply[..9], *b"reply\x06\x01\0\x0c");
            let id = bench.association.near.id.0.to_be_bytes();
            assert_eq!(reply[9..], id);
            return bench;
        }
    }

    fn to(&self) -> SocketAddr {
        self.far.local_addr().unwrap()
    }

    fn message(&self, to: impl Into<Address>, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let datagram = Datagram::new(self.association.near.id, to.into(), payload).unwrap();
        datagram.encode(&PROFILE, &mut out);
        out
    }

    fn trigger(&self) -> Vec<u8> {
        self.message(SocketAddr::from(([0; 4], 0)), b"")
    }

    /// As the task would.
    fn fetch(&mut self) {
        if let Some(place) = &self.association.near.place {
            self.buffer.resize(BUFFER, 0);
            place.fetch(&mut self.buffer, &self.settings.stats);
        }
    }

    fn turn(&mut self) -> Turn {
        let mut cx = TurnContext::new(self.now, Ready::ALL, &mut self.buffer);
        self.association.turn(&self.settings, &mut cx)
    }

    fn settle(&mut self) -> Turn {
        self.fetch();
        loop {
            match self.turn() {
                Turn::Again => {}
                turn => return turn,
            }
        }
    }

    /// Waits for a descriptor, then takes a turn.
    fn next(&mut self) -> Turn {
        let mut interests = Interests::default();
        self.association.interests(&mut interests);
        assert!(poll_interests(&interests, LONG).any());
        self.settle()
    }

    #[track_caller]
    fn confirmed(&mut self) {
        let mut message = [0; 12];
        self.control.read_exact(&mut message).unwrap();
        assert_eq!(message[..4], [6, 2, 0, 12]);
        assert_eq!(message[4..], self.association.near.id.0.to_be_bytes());
    }

    #[track_caller]
    fn nothing_on_tcp(&self) {
        self.control.set_nonblocking(true).unwrap();
        let error = (&self.control).read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.control.set_nonblocking(false).unwrap();
    }

    /// The next datagram that reaches the target.
    #[track_caller]
    fn arrives(&self, payload: &[u8]) -> SocketAddr {
        let mut buffer = vec![0; 65_536];
        let (count, from) = self.far.recv_from(&mut buffer).unwrap();
        assert!(buffer[..count] == *payload, "{count} bytes");
        from
    }

    /// What the client gets.
    #[track_caller]
    fn comes_back(&self, over: &str, payload: &[u8]) {
        let expected = self.message(self.to(), payload);
        let mut buffer = vec![0; 65_536];
        let count = match over {
            "tcp" => {
                (&self.control)
                    .read_exact(&mut buffer[..expected.len()])
                    .unwrap();
                expected.len()
            }
            _ => self.client.recv(&mut buffer).unwrap(),
        };
        assert!(buffer[..count] == expected, "{count} bytes");
    }

    fn dropped(&self, reason: &str) -> u64 {
        let counts = self.settings.stats.counts();
        let mut dropped = counts.dropped_datagrams.iter();
        let found = dropped.find(|(known, _)| *known == reason);
        found.map_or(0, |(_, count)| *count)
    }
}

#[test]
fn over_udp_the_first_datagram_is_confirmed_over_tcp_and_carried() {
    let mut bench = Bench::new();
    let hello = bench.message(bench.to(), b"hello");
    bench.client.send(&hello).unwrap();
    bench.settle();
    bench.confirmed();
    let from = bench.arrives(b"hello");
    bench.far.send_to(b"answer", from).unwrap();
    bench.next();
    bench.comes_back("udp", b"answer");
    // What is longer than it says has padding, and the confirmation comes once.
    let padded = [hello, vec![0; 99]].concat();
    bench.client.send(&padded).unwrap();
    bench.settle();
    bench.arrives(b"hello");
    bench.nothing_on_tcp();
    assert!(bench.association.to_string().contains("2 up (10 bytes)"));
}

#[test]
fn over_tcp_messages_follow_each_other_in_pieces_of_any_size() {
    for portion in [1, 7, 12, 29, 1000] {
        let mut bench = Bench::new();
        let all: Vec<u8> = [b"one", b"two", b"six"]
            .iter()
            .flat_map(|payload| bench.message(bench.to(), *payload))
            .collect();
        for part in all.chunks(portion) {
            (&bench.control).write_all(part).unwrap();
            bench.next();
        }
        bench.confirmed();
        assert!(
            bench.association.near.place.is_none(),
            "no descriptor for UDP"
        );
        bench.arrives(b"one");
        bench.arrives(b"two");
        let from = bench.arrives(b"six");
        bench.far.send_to(b"answer", from).unwrap();
        bench.far.send_to(b"", from).unwrap();
        bench.next();
        bench.comes_back("tcp", b"answer");
        bench.comes_back("tcp", b"");
        assert!(bench.association.unread.is_empty());
    }
}

#[test]
fn the_largest_datagrams_fit_over_tcp_and_larger_ones_are_dropped() {
    let mut bench = Bench::new();
    // A message can hold more than IPv4 has room for.
    let most = vec![b'x'; 65_507];
    let all = [
        bench.message(bench.to(), &most),
        bench.message(bench.to(), &vec![b'y'; 65_515]),
    ]
    .concat();
    let mut rest = &all[..];
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(30_000));
        (&bench.control).write_all(part).unwrap();
        rest = after;
        bench.next();
    }
    let from = bench.arrives(&most);
    assert_eq!(bench.dropped("too-large"), 1);
    bench.confirmed();
    bench.far.send_to(&most, from).unwrap();
    while bench.association.far.traffic.down.datagrams == 0 {
        bench.next();
    }
    let reader = bench.control.try_clone().unwrap();
    let expected = bench.message(bench.to(), &most);
    let mut got = vec![0; expected.len()];
    while bench.association.near.is_stuck() {
        bench.next();
    }
    (&reader).read_exact(&mut got).unwrap();
    assert!(got == expected);
}

#[test]
fn ipv6_payloads_are_at_most_what_a_message_holds() {
    let mut bench = Bench::new();
    let far = udp("[::1]:0");
    let hello = bench.message(far.local_addr().unwrap(), b"hello");
    (&bench.control).write_all(&hello).unwrap();
    bench.next();
    bench.confirmed();
    let from = far.recv_from(&mut [0; 16]).unwrap().1;
    for (count, fits) in [(65_503, true), (65_504, false), (65_527, false)] {
        far.send_to(&vec![b'x'; count], from).unwrap();
        bench.next();
        if fits {
            let expected = bench.message(far.local_addr().unwrap(), &vec![b'x'; count]);
            let mut got = vec![0; expected.len()];
            (&bench.control).read_exact(&mut got).unwrap();
            assert!(got == expected);
        }
    }
    assert_eq!(bench.dropped("too-large"), 2);
}

#[test]
fn the_empty_datagram_confirms_and_goes_nowhere() {
    for over in ["udp", "tcp"] {
        let mut bench = Bench::with(StackOptions::default(), |settings| {
            let udp = settings.udp.as_mut().unwrap();
            udp.options.filter = Filter::EndpointIndependent;
        });
        let Some(port) = bench.association.far.port(Family::V4) else {
            panic!("its port is there from the start");
        };
        let port = rustix::net::getsockname(port.descriptor()).unwrap();
        let port = SocketAddr::try_from(port).unwrap().port();
        // Before it is confirmed, nobody gets through.
        bench.far.send_to(b"early", ("127.0.0.1", port)).unwrap();
        bench.next();
        assert_eq!(bench.dropped("unsolicited"), 1);
        let trigger = bench.trigger();
        for _ in 0..3 {
            match over {
                "tcp" => (&bench.control).write_all(&trigger).unwrap(),
                _ => drop(bench.client.send(&trigger).unwrap()),
            }
            bench.fetch();
            bench.next();
        }
        bench.confirmed();
        bench.nothing_on_tcp();
        assert_eq!(bench.association.far.traffic.up.datagrams, 0);
        bench.far.send_to(b"called", ("127.0.0.1", port)).unwrap();
        bench.next();
        bench.comes_back(over, b"called");
    }
}

#[test]
fn what_is_wrong_decides_nothing_and_is_dropped() {
    let mut bench = Bench::new();
    let good = bench.message(bench.to(), b"x");
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let port_0 = {
        let mut bytes = good.clone();
        bytes[14..16].fill(0);
        bytes
    };
    for (packet, reason) in [
        (vec![], "short"),
        (good[..11].to_vec(), "short"),
        (good[..good.len() - 1].to_vec(), "short"),
        (changed(0, 5), "version"),
        (changed(0, 212), "version"),
        (changed(1, 1), "message"),
        (changed(1, 2), "message"),
        (changed(1, 9), "message"),
        (changed(3, 11), "short"),
        (changed(3, 12), "short"),
        (changed(3, 19), "short"),
        (changed(11, good[11] ^ 1), "association"),
        (changed(12, 2), "address-type"),
        (changed(12, 3), "short"),
        (port_0, "port-0"),
    ] {
        let before = bench.dropped(reason);
        bench.client.send(&packet).unwrap();
        bench.settle();
        assert_eq!(bench.dropped(reason), before + 1, "{packet:02x?}");
    }
    // Of messages that clients don't send, one has an error's form.
    let mut error = Vec::new();
    UdpMessage::Error(UdpError {
        association: bench.association.near.id,
        destination: bench.to(),
        code: ErrorCode::TTL_EXPIRED,
        reporter: bench.to().ip(),
    })
    .encode(&PROFILE, &mut error);
    bench.client.send(&error).unwrap();
    bench.settle();
    assert_eq!(bench.dropped("message"), 4);
    bench.nothing_on_tcp();
    assert!(matches!(bench.association.near.channel, Channel::Open));
    assert_eq!(bench.association.far.traffic.up.datagrams, 0);
}

#[test]
fn once_a_way_is_chosen_everything_else_is_dropped() {
    // UDP first.
    let mut bench = Bench::new();
    let hello = bench.message(bench.to(), b"hello");
    bench.client.send(&hello).unwrap();
    bench.settle();
    bench.confirmed();
    bench.arrives(b"hello");
    let other_port = udp("127.0.0.1:0");
    let relay = bench.client.peer_addr().unwrap();
    other_port.send_to(&hello, relay).unwrap();
    bench.settle();
    assert_eq!(bench.dropped("stranger"), 1);
    (&bench.control).write_all(&hello).unwrap();
    bench.settle();
    assert_eq!(bench.dropped("stranger"), 2);
    // Nor may an answer go there.
    let other_address = udp("127.0.0.2:0");
    other_address.send_to(&hello, relay).unwrap();
    bench.settle();
    assert_eq!(bench.dropped("stranger"), 3);
    assert_eq!(bench.association.far.traffic.up.datagrams, 1);

    // TCP first.
    let mut bench = Bench::new();
    let hello = bench.message(bench.to(), b"hello");
    (&bench.control).write_all(&hello).unwrap();
    bench.next();
    bench.arrives(b"hello");
    // Nobody is there any more.
    let _ = bench.client.send(&hello);
    bench.settle();
    assert_eq!(bench.association.far.traffic.up.datagrams, 1);
}

#[test]
fn another_address_cannot_choose_the_way() {
    let mut bench = Bench::new();
    let hello = bench.message(bench.to(), b"hello");
    let relay = bench.client.peer_addr().unwrap();
    udp("127.0.0.2:0").send_to(&hello, relay).unwrap();
    bench.settle();
    assert_eq!(bench.dropped("stranger"), 1);
    assert!(matches!(bench.association.near.channel, Channel::Open));
    bench.client.send(&hello).unwrap();
    bench.settle();
    bench.confirmed();
}

#[test]
fn on_tcp_what_cannot_be_told_apart_ends_it_and_what_can_is_dropped() {
    let mut bench = Bench::new();
    let mut other_id = bench.message(bench.to(), b"x");
    other_id[5] ^= 1;
    (&bench.control).write_all(&other_id).unwrap();
    (&bench.control).write_all(&[6, 9, 0, 13]).unwrap();
    let id = bench.association.near.id.0.to_be_bytes();
    (&bench.control).write_all(&id).unwrap();
    (&bench.control).write_all(b"?").unwrap();
    while bench.dropped("message") == 0 {
        bench.next();
    }
    assert_eq!(bench.dropped("association"), 1);
    for bytes in [&[5, 3, 0, 20][..], &[6, 3, 0, 11]] {
        let mut bench = Bench::new();
        (&bench.control).write_all(bytes).unwrap();
        assert_eq!(bench.next(), Turn::Done);
        assert!(bench.association.to_string().ends_with(": not a message"));
    }
}

#[test]
fn without_a_first_datagram_it_ends() {
    let mut bench = Bench::new();
    let until = bench.now + Duration::from_secs(120);
    assert_eq!(bench.turn(), Turn::Wait { until: Some(until) });
    // A bad one is none.
    bench.client.send(b"x").unwrap();
    bench.settle();
    bench.now = until;
    assert_eq!(bench.turn(), Turn::Done);
    assert!(bench.association.to_string().ends_with("in time"));

    let mut bench = Bench::new();
    let trigger = bench.trigger();
    bench.client.send(&trigger).unwrap();
    bench.settle();
    let until = bench.now + super::super::IDLE;
    assert_eq!(bench.turn(), Turn::Wait { until: Some(until) });
    bench.now = until;
    assert_eq!(bench.turn(), Turn::Done);
    assert!(bench.association.to_string().ends_with(": idle"));
}

#[test]
fn a_client_that_reads_nothing_costs_one_message() {
    let mut bench = Bench::new();
    let hello = bench.message(bench.to(), b"hello");
    (&bench.control).write_all(&hello).unwrap();
    bench.next();
    bench.confirmed();
    let from = bench.arrives(b"hello");
    let large = vec![b'x'; 60_000];
    let mut sent = 0;
    while !bench.association.near.is_stuck() {
        bench.far.send_to(&large, from).unwrap();
        sent += 1;
        bench.next();
    }
    for _ in 0..3 {
        bench.far.send_to(&large, from).unwrap();
        bench.settle();
    }
    assert!(bench.association.near.unsent.len() <= UdpMessage::MAX_LEN);
    let mut interests = Interests::default();
    bench.association.interests(&mut interests);
    assert!(interests.iter().all(|it| it.key == CLIENT), "no busy loop");
    // Every message comes whole.
    let expected = bench.message(bench.to(), &large);
    let mut got = vec![0; expected.len()];
    for _ in 0..sent {
        let mut at = 0;
        while at < got.len() {
            at += (&bench.control).read(&mut got[at..]).unwrap();
            bench.settle();
        }
        assert!(got == expected);
    }
}

#[test]
fn what_was_sent_before_the_end_is_sent_on() {
    let mut bench = Bench::new();
    let farewell = bench.message(bench.to(), b"farewell");
    bench.client.send(&farewell).unwrap();
    bench.control.shutdown(Shutdown::Both).unwrap();
    while bench.turn() != Turn::Done {}
    bench.arrives(b"farewell");
}

#[test]
fn an_inbox_has_a_limit_and_gives_back_what_it_held() {
    let mut bench = Bench::new();
    let small = bench.message(bench.to(), b"x");
    for _ in 0..8 {
        for _ in 0..50 {
            bench.client.send(&small).unwrap();
        }
        bench.fetch();
        bench.fetch();
    }
    assert_eq!(bench.dropped("congested"), 400 - 256);
    while bench.association.far.traffic.up.datagrams < 256 {
        bench.turn();
    }
    for _ in 0..256 {
        bench.arrives(b"x");
    }
    let large = bench.message(bench.to(), &vec![b'x'; 50_000]);
    for _ in 0..3 {
        bench.client.send(&large).unwrap();
        bench.fetch();
    }
    assert_eq!(bench.dropped("congested"), 400 - 256 + 1);
    let common = bench.settings.udp.as_ref().unwrap().socks6.clone();
    assert_eq!(common.relays.waiting(), 2 * large.len());
    drop(bench);
    assert_eq!(common.relays.waiting(), 0);
}

#[test]
fn a_turn_is_bounded() {
    let mut bench = Bench::new();
    let small = bench.message(bench.to(), b"x");
    for _ in 0..=DATAGRAMS_A_TURN {
        bench.client.send(&small).unwrap();
    }
    bench.fetch();
    assert_eq!(bench.turn(), Turn::Again);
    assert_eq!(bench.association.far.traffic.up.datagrams, 32);
    assert!(matches!(bench.settle(), Turn::Wait { .. }));
    assert_eq!(bench.association.far.traffic.up.datagrams, 33);
}

#[test]
fn two_associations_of_one_port_get_their_own() {
    let settings = settings(Rules::allow_all(), unused);
    let common = settings.udp.as_ref().unwrap().socks6.clone();
    let local = udp("127.0.0.1:0").local_addr().unwrap();
    let client = udp("127.0.0.1:0");
    let enter = |id| {
        let place = common
            .relays
            .enter(local, local.ip(), AssociationId(id), &PROFILE);
        place.unwrap_or_else(|error| panic!("{id}: {error}"))
    };
    let (one, two) = (enter(1), enter(2));
    assert!(
        common
            .relays
            .enter(local, local.ip(), AssociationId(1), &PROFILE)
            .is_err()
    );
    let mut buffer = vec![0; BUFFER];
    for id in [2, 1, 2, 3] {
        let mut message = Vec::new();
        let datagram = Datagram::new(AssociationId(id), local.into(), b"x").unwrap();
        datagram.encode(&PROFILE, &mut message);
        client.send_to(&message, local).unwrap();
    }
    one.fetch(&mut buffer, &settings.stats);
    let count = |place: &Place| std::iter::from_fn(|| place.take()).count();
    assert_eq!((count(&one), count(&two)), (1, 2));
    let counts = settings.stats.counts();
    assert_eq!(counts.dropped_datagrams, [("association", 1)]);
    // The port goes with the last of them.
    drop(one);
    assert!(UdpSocket::bind(local).is_err());
    drop(two);
    assert!(UdpSocket::bind(local).is_ok());
}

#[test]
fn wishes_that_are_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let control = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let from = control.local_addr().unwrap();
    let accepted = Socket::from(listener.accept().unwrap().0);
    let settings = settings(Rules::allow_all(), unused);
    let none = StackOptions::default();
    for (wanted, code) in [
        ("example.org:0", ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED),
        ("224.0.0.1:0", ReplyCode::NOT_ALLOWED),
        ("[ff02::1]:5353", ReplyCode::NOT_ALLOWED),
        ("255.255.255.255:0", ReplyCode::NOT_ALLOWED),
        ("127.0.0.1:53", ReplyCode::NOT_ALLOWED),
        ("0.0.0.0:1023", ReplyCode::NOT_ALLOWED),
        // Nobody's address here.
        ("192.0.2.1:0", ReplyCode::GENERAL_FAILURE),
    ] {
        let refused = prepare(&accepted, from, wanted, none, &settings);
        assert_eq!(refused.err().map(|why| why.code()), Some(code), "{wanted}");
    }
    let prepared = prepare(&accepted, from, "127.0.0.1:0", none, &settings).unwrap();
    assert_eq!(prepared.bound().ip(), Ipv4Addr::LOCALHOST);
    let port = prepared.bound().to_string();
    let again = prepare(&accepted, from, &port, none, &settings);
    assert_eq!(
        again.err().map(|why| why.code()),
        Some(ReplyCode::GENERAL_FAILURE)
    );
    drop(prepared);
    let prepared = prepare(&accepted, from, &port, none, &settings).unwrap();
    assert_eq!(prepared.bound().to_string(), port);
    // From one address there is no way to the other family.
    let mut far = prepared.far;
    let to = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
    let sent = far.send(b"x", to.into(), &settings, Instant::now());
    assert_eq!(sent, Err(Dropped::Socket));
}

#[test]
fn both_families_have_the_same_port() {
    let is_same = || {
        let mut bench = Bench::new();
        let v6 = udp("[::1]:0");
        for to in [bench.to(), v6.local_addr().unwrap()] {
            let message = bench.message(to, b"x");
            bench.client.send(&message).unwrap();
        }
        bench.settle();
        let from = bench.arrives(b"x");
        let from6 = v6.recv_from(&mut [0; 16]).unwrap().1;
        from.port() == from6.port()
    };
    // Another test may have it in the other family, once.
    assert!(is_same() || is_same() || is_same());
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn errors_are_read_and_those_without_a_code_are_not_told() {
    let wanted = StackOptions {
        udp_error: Some(Choice::Yes),
        ..StackOptions::default()
    };
    for (host, family) in [("127.0.0.1:0", Family::V4), ("[::1]:0", Family::V6)] {
        let mut bench = Bench::with(wanted, |_| {});
        let closed = udp(host).local_addr().unwrap();
        let message = bench.message(closed, b"nobody");
        bench.client.send(&message).unwrap();
        bench.settle();
        bench.confirmed();
        // That one is read by now. On loopback the answer is there as soon as the datagram is sent.
        let far = bench.association.far.port(family).unwrap();
        assert_eq!(far.send(b"nobody", closed), Ok(()));
        let mut interests = Interests::default();
        bench.association.interests(&mut interests);
        assert!(poll_interests(&interests, LONG).hung_up(family.key()));
        let expected = icmp::Report {
            destination: closed,
            code: None,
            reporter: closed.ip(),
        };
        assert_eq!(icmp::take(far, family), Some(Some(expected)));
        assert_eq!(icmp::take(far, family), None);
        // The next one goes out at once, whatever became of the last.
        let open = udp(host);
        let closed = bench.message(closed, b"nobody");
        let open_address = open.local_addr().unwrap();
        for _ in 0..3 {
            bench.client.send(&closed).unwrap();
            bench.settle();
            let message = bench.message(open_address, b"somebody");
            bench.client.send(&message).unwrap();
            bench.settle();
            assert_eq!(open.recv(&mut [0; 16]).unwrap(), 8);
        }
        assert!(matches!(bench.settle(), Turn::Wait { .. }));
        bench.nothing_on_tcp();
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn options_of_the_stack_are_told_as_they_are() {
    use crate::wire::socks6::Legs;
    let wanted = StackOptions {
        udp_error: Some(Choice::Yes),
        ttl: Legs::both(9),
        tos: Legs {
            client: None,
            remote: Some(0x20),
        },
        ..StackOptions::default()
    };
    let bench = Bench::with(wanted, |_| {});
    let Some(far) = bench.association.far.port(Family::V4) else {
        panic!("no socket");
    };
    let descriptor = far.descriptor();
    let socket = socket2::SockRef::from(&descriptor);
    assert_eq!(
        (socket.ttl_v4().unwrap(), socket.tos_v4().unwrap()),
        (9, 0x20)
    );
    assert_eq!(bench.association.reports, Choice::Yes);
}

/// Bytes of a client that has lost its mind, over both ways. The rules let nothing out.
#[test]
fn mutated_messages_are_borne() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::with(StackOptions::default(), |settings| {
        let rules = [Rule::deny("0.0.0.0/0"), Rule::deny("::/0")];
        let rules = rules.map(Result::unwrap).into();
        settings.rules = Rules::new(rules, OwnListeners::new());
    });
    let place: Address = "a.example:9".parse().unwrap();
    for round in 0..3000 {
        let mut message = match round % 3 {
            0 => bench.message(place.clone(), b"payload"),
            1 => bench.message(SocketAddr::from((Ipv6Addr::LOCALHOST, 9)), b"payload"),
            _ => bench.message(bench.to(), b"payload"),
        };
        for _ in 0..random.usize(1..4) {
            // The id stays: without it nothing is looked at.
            let at = random.choice([0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19, 20, 24]);
            let byte = at.and_then(|at| message.get_mut(at));
            if let Some(byte) = byte {
                *byte = random.u8(..);
            }
        }
        message.truncate(random.usize(1..=message.len() * 2));
        let now = bench.now;
        let way = match random.bool() {
            true => Way::Stream,
            false => Way::Packets(bench.client.local_addr().unwrap()),
        };
        if let Err(dropped) = bench.association.up(&message, way, &bench.settings, now) {
            bench.settings.stats.dropped(dropped.reason());
        }
        let stream = message.repeat(random.usize(1..4));
        let taken = bench.association.messages(&stream, &bench.settings, now);
        assert!(taken.is_err() || taken.is_ok_and(|taken| taken <= stream.len()));
        bench.association.near.unsent.clear();
    }
    for reason in [
        "rules",
        "short",
        "message",
        "stranger",
        "version",
        "address-type",
    ] {
        assert!(bench.dropped(reason) > 0, "{reason}");
    }
    assert_eq!(bench.association.far.traffic.up.datagrams, 0);
    assert!(bench.association.far.port(Family::V6).is_none());
}
