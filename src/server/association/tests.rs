//! Turns of an association with a clock and a resolver of the test.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::names::Found;
use super::*;
use crate::engine::{Reactor, Ready, poll_interests};
use crate::handshake::Socks4;
use crate::listen::Limits;
use crate::net::Uplink;
use crate::relay::{Kept, Pipes, RelaySettings};
use crate::resolver::{Answer, ResolveError, Resolver};
use crate::server::ServerStats;
use crate::server::rules::Rules;
use crate::wire::socks5::DatagramHeader;

/// An association, and the client and the target that are its ends.
struct Bench {
    association: Association,
    settings: ServerSettings,
    control: TcpStream,
    client: UdpSocket,
    far: UdpSocket,
    now: Instant,
    buffer: Vec<u8>,
}

pub(super) fn settings(rules: Rules, ask: fn(&str, u16) -> Answer) -> ServerSettings {
    let mailbox = Reactor::new(1).unwrap().mailbox();
    let associations = Limits::new(4, None, mailbox);
    ServerSettings {
        users: None,
        socks4: Socks4::Refused,
        socks4_users: Vec::new(),
        rules,
        via: None,
        #[cfg(feature = "socks6")]
        socks6: None,
        reply_timing: Default::default(),
        handshake_timeout: LONG,
        connect_timeout: LONG,
        uplink: Uplink::default(),
        tcp: crate::net::TcpExtras::default(),
        bind_timeout: None,
        answer_delay: Duration::ZERO,
        udp: Some(UdpSettings::new(UdpOptions::default(), associations)),
        relay: Arc::new(RelaySettings {
            idle: None,
            half_closed_idle: None,
            pipes: Pipes::new(0),
            kept: Kept::default(),
        }),
        resolver: Resolver::with_lookup(2, 8, ask),
        stats: ServerStats::default(),
    }
}

impl Bench {
    fn new(rules: Rules, ask: fn(&str, u16) -> Answer) -> Self {
        let settings = settings(rules, ask);
        let udp = |address: &str| {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_read_timeout(Some(LONG)).unwrap();
            socket
        };
        let (client, far) = (udp("127.0.0.1:0"), udp("127.0.0.1:0"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let control = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, from) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let accepted = Socket::from(accepted);
        let limits = Limits::new(4, None, Reactor::new(1).unwrap().mailbox());
        let mut slot = limits.take(None).unwrap();
        let announced = "0.0.0.0:0".parse().unwrap();
        let prepared = Prepared::new(&accepted, Some(from), &announced, &mut slot, &settings);
        let prepared = prepared.unwrap();
        client.connect(prepared.told(&settings)).unwrap();
        let now = Instant::now();
        Self {
            association: Association::new(
                accepted,
                Vec::new(),
                prepared,
                Exit::direct(Uplink::default()),
                now,
            ),
            settings,
            control,
            client,
            far,
            now,
            buffer: Vec::new(),
        }
    }

    fn send(&self, name: &str, payload: &[u8]) {
        let port = self.far.local_addr().unwrap().port();
        let address = format!("{name}:{port}").parse().unwrap();
        let mut datagram = Vec::new();
        let header = DatagramHeader {
            fragment: 0,
            address,
        };
        header.encode(&mut datagram);
        datagram.extend(payload);
        self.client.send(&datagram).unwrap();
    }

    fn turn(&mut self) -> Turn {
        let mut cx = TurnContext::new(self.now, Ready::ALL, &mut self.buffer);
        self.association.turn(&self.settings, &mut cx)
    }

    /// Waits for a descriptor, then takes a turn.
    fn next(&mut self) -> Turn {
        let mut interests = Interests::default();
        self.association.interests(&mut interests);
        assert!(poll_interests(&interests, LONG).any());
        self.turn()
    }

    /// The next datagram that reaches the target.
    #[track_caller]
    fn arrives(&self, payload: &[u8]) {
        let mut buffer = [0; 64];
        let count = self.far.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..count], *payload);
    }

    fn dropped(&self, reason: &str) -> u64 {
        let counts = self.settings.stats.counts();
        let mut dropped = counts.dropped_datagrams.iter();
        let found = dropped.find(|(known, _)| *known == reason);
        found.map_or(0, |(_, count)| *count)
    }
}

pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn unused(_: &str, _: u16) -> Answer {
    Err(ResolveError::NotFound)
}

#[test]
fn addresses_go_on_while_a_name_is_looked_up() {
    static ANSWER: AtomicBool = AtomicBool::new(false);
    fn held(_: &str, port: u16) -> Answer {
        while !ANSWER.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    }
    let mut bench = Bench::new(Rules::allow_all(), held);
    bench.send("slow.example", b"one");
    bench.send("slow.example", b"two");
    bench.send("127.0.0.1", b"three");
    bench.next();
    bench.arrives(b"three");
    for _ in 0..10 {
        bench.send("slow.example", b"more");
    }
    bench.turn();
    assert_eq!(bench.dropped("queue"), 4, "eight wait");
    ANSWER.store(true, Ordering::Relaxed);
    bench.next();
    bench.arrives(b"one");
    bench.arrives(b"two");
    for _ in 0..6 {
        bench.arrives(b"more");
    }
    assert!(bench.association.far.names.descriptor().is_none());
    bench.send("SLOW.example", b"known");
    bench.next();
    bench.arrives(b"known");
}

#[test]
fn of_several_addresses_the_first_that_there_is_a_way_to() {
    fn several(_: &str, port: u16) -> Answer {
        // Broadcast: the system refuses it at once, everywhere.
        let texts = ["255.255.255.255", "127.255.255.255", "127.0.0.1"];
        let addresses = texts.map(|text| SocketAddr::new(text.parse().unwrap(), port));
        Ok(addresses.into())
    }
    let mut bench = Bench::new(Rules::allow_all(), several);
    for _ in 0..3 {
        bench.send("several.example", b"hello");
        bench.next();
        if bench.association.far.names.descriptor().is_some() {
            bench.next();
        }
        bench.arrives(b"hello");
    }
    assert_eq!(bench.association.far.traffic.dropped, 0);
    let name = "several.example".parse().unwrap();
    let port = bench.far.local_addr().unwrap().port();
    let found = bench.association.far.names.find(&name, port, bench.now);
    assert!(matches!(found, Some(Found::Addresses(list, 2)) if list.len() == 3));
}

#[test]
fn a_name_leads_to_none_but_allowed_addresses() {
    fn private(_: &str, port: u16) -> Answer {
        Ok(vec![
            SocketAddr::from(([127, 0, 0, 2], port)),
            SocketAddr::from(([127, 0, 0, 1], port)),
        ])
    }
    let mut bench = Bench::new(Rules::default(), private);
    bench.send("private.example", b"x");
    bench.next();
    while bench.association.far.names.descriptor().is_some() {
        bench.next();
    }
    assert_eq!(bench.dropped("rules"), 1);
    // Known by now.
    bench.send("private.example", b"x");
    bench.next();
    assert_eq!(bench.dropped("rules"), 2);
    for family in exit::Family::BOTH {
        assert!(bench.association.far.port(family).is_none());
    }
}

#[test]
fn a_look_up_that_takes_too_long_is_given_up() {
    fn never(_: &str, _: u16) -> Answer {
        std::thread::sleep(Duration::from_secs(2));
        Err(ResolveError::Temporary)
    }
    let mut bench = Bench::new(Rules::allow_all(), never);
    bench.send("slow.example", b"x");
    let until = bench.now + LONG;
    assert_eq!(bench.next(), Turn::Wait { until: Some(until) });
    bench.now += LONG;
    assert!(matches!(bench.turn(), Turn::Wait { .. }));
    assert_eq!(bench.dropped("look-up"), 1);
    bench.send("slow.example", b"x");
    bench.next();
    assert_eq!(bench.dropped("look-up"), 2, "remembered");
}

#[test]
fn what_was_sent_before_the_end_is_sent_on() {
    let mut bench = Bench::new(Rules::allow_all(), unused);
    bench.send("127.0.0.1", b"farewell");
    bench.control.shutdown(std::net::Shutdown::Both).unwrap();
    while bench.next() != Turn::Done {}
    bench.arrives(b"farewell");
}

#[test]
fn a_turn_is_bounded() {
    let mut bench = Bench::new(Rules::allow_all(), unused);
    for _ in 0..=DATAGRAMS_A_TURN {
        bench.send("127.0.0.1", b"x");
    }
    assert_eq!(bench.turn(), Turn::Again);
    assert_eq!(bench.association.far.traffic.up.datagrams, 32);
    assert!(matches!(bench.turn(), Turn::Wait { .. }));
    assert_eq!(bench.association.far.traffic.up.datagrams, 33);
}

#[test]
fn only_what_the_client_or_its_partners_say_keeps_it_from_being_idle() {
    let mut bench = Bench::new(Rules::allow_all(), unused);
    let start = bench.now;
    bench.now += IDLE / 2;
    bench.send("127.0.0.1", b"x");
    bench.next();
    bench.now += IDLE / 2;
    let until = start + IDLE / 2 + IDLE;
    assert_eq!(bench.turn(), Turn::Wait { until: Some(until) });
    // Bad ones do not count.
    bench.client.send(b"x").unwrap();
    assert_eq!(bench.next(), Turn::Wait { until: Some(until) });
    bench.now = until;
    assert_eq!(bench.turn(), Turn::Done);
    assert!(bench.association.to_string().ends_with(": idle"));
}

#[test]
fn announced_ports_that_can_be_right() {
    let client = "[::ffff:192.0.2.1]:1".parse().unwrap();
    for (announced, port) in [
        ("0.0.0.0:0", None),
        ("0.0.0.0:7", Some(7)),
        ("[::]:7", Some(7)),
        ("192.0.2.1:7", Some(7)),
        ("[::ffff:192.0.2.1]:7", Some(7)),
        ("192.0.2.1:0", None),
        ("10.0.0.1:7", None),
        ("example.org:7", None),
    ] {
        let announced_address = announced.parse().unwrap();
        assert_eq!(
            announced_port(&announced_address, client),
            port,
            "{announced}"
        );
    }
}
