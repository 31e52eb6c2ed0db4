//! What comes back through a tunnel, for clients that can't always take it.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use socket2::Socket;

use super::super::exit::Tunnel;
use super::super::tests::{settings, unused};
use super::*;
use crate::engine::Ready;
use crate::server::rules::Rules;
use crate::wire::socks6::{AssociationId, Datagram, Profile, UdpMessage};

/// A client that takes so many, and then has to read first.
#[derive(Default)]
struct Slow {
    takes: usize,
    taken: Vec<Vec<u8>>,
}

impl NearSide for Slow {
    fn deliver(&mut self, payload: &[u8], _: Address) -> Result<(), Dropped> {
        self.takes -= 1;
        self.taken.push(payload.to_vec());
        Ok(())
    }

    fn is_stuck(&self) -> bool {
        self.takes == 0
    }
}

const ID: AssociationId = AssociationId(7);
const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

fn message(id: AssociationId, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let datagram = Datagram::new(id, FROM.into(), payload).unwrap();
    datagram.encode(&Profile::DRAFT_12, &mut out);
    out
}

/// A far side that leads to a proxy, and the proxy's end.
fn tunnel() -> (FarSide, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let (proxy, _) = listener.accept().unwrap();
    proxy.set_nodelay(true).unwrap();
    let tunnel = Tunnel::new(Socket::from(socket), ID, Profile::DRAFT_12);
    let far = FarSide::new(Exit::Tunnel(tunnel), Instant::now());
    (far, proxy)
}

fn turn(far: &mut FarSide, near: &mut Slow, ready: Ready) -> Result<bool, Lost> {
    let settings = settings(Rules::allow_all(), unused);
    let mut buffer = Vec::new();
    let mut cx = TurnContext::new(Instant::now(), ready, &mut buffer);
    far.carry_down(near, &settings, Filter::EndpointIndependent, &mut cx)
}

/// Turns with every descriptor until it is lost, or so many were taken.
#[track_caller]
fn turns(far: &mut FarSide, near: &mut Slow, count: usize) -> Option<Lost> {
    for _ in 0..5000 {
        if let Err(lost) = turn(far, near, Ready::ALL) {
            return Some(lost);
        }
        if near.taken.len() == count {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} of {count}", near.taken.len());
}

#[test]
fn what_was_read_for_a_client_that_was_stuck_comes_without_another_word_of_the_proxy() {
    let (mut far, mut proxy) = tunnel();
    let three = [&b"one"[..], b"two", b"three"].map(|payload| message(ID, payload));
    proxy.write_all(&three.concat()).unwrap();
    let mut near = Slow {
        takes: 1,
        ..Slow::default()
    };
    assert_eq!(turns(&mut far, &mut near, 1), None);
    assert_eq!(turn(&mut far, &mut near, Ready::ALL), Ok(true));
    near.takes = 9;
    assert_eq!(turn(&mut far, &mut near, Ready::NONE), Ok(true));
    assert_eq!(near.taken, [&b"one"[..], b"two", b"three"]);
    assert_eq!(far.moved().down, 3 + 3 + 5);
}

#[test]
fn messages_come_in_pieces_and_others_are_passed_over() {
    let (mut far, mut proxy) = tunnel();
    let mut near = Slow {
        takes: 99,
        ..Slow::default()
    };
    let mut confirmation = Vec::new();
    UdpMessage::Confirmation(ID).encode(&Profile::DRAFT_12, &mut confirmation);
    let bytes = [
        confirmation,
        message(AssociationId(8), b"of somebody else"),
        // A kind that nobody knows.
        vec![6, 99, 0, 13, 0, 0, 0, 0, 0, 0, 0, 7, 1],
        // An address that there is not.
        vec![6, 3, 0, 17, 0, 0, 0, 0, 0, 0, 0, 7, 9, 0, 0, 0, 0],
        message(ID, &[5; 60_000]),
        message(ID, b""),
    ]
    .concat();
    for (count, part) in [&bytes[..20], &bytes[20..30_000], &bytes[30_000..]]
        .into_iter()
        .enumerate()
    {
        proxy.write_all(part).unwrap();
        let expected = if count == 2 { 2 } else { 0 };
        assert_eq!(turns(&mut far, &mut near, expected), None);
    }
    assert!(near.taken[0] == [5; 60_000] && near.taken[1].is_empty());
    assert_eq!(far.traffic.dropped, 2);
    proxy.write_all(b"HTTP/1.1 400 Bad Request").unwrap();
    assert_eq!(turns(&mut far, &mut near, 3), Some(Lost::Garbled));
    let (mut far, proxy) = tunnel();
    drop(proxy);
    assert_eq!(turns(&mut far, &mut near, 3), Some(Lost::Closed));
}

#[test]
fn a_proxy_that_takes_nothing_is_told_no_more_than_it_may_be() {
    let (mut far, _proxy) = tunnel();
    let settings = settings(Rules::allow_all(), unused);
    let mut near = Slow::default();
    let mut sent = 0_u64;
    while !far.is_congested() {
        let now = Instant::now();
        far.send(&[1; 60_000], FROM.into(), &settings, now).unwrap();
        sent += 1;
        let _ = turn(&mut far, &mut near, Ready::NONE);
        assert!(sent < 10_000, "never congested");
    }
    assert_eq!(far.traffic.up.datagrams, sent);
}
