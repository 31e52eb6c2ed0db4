//! The helpers of the other tests do what they say: a fake peer that lies in the wrong way would make every test worthless.

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use common::{
    Behaviour, Chunks, End, Observed, Pattern, Peer, SOON, Step, Target, Unanswering, connect,
    dead_address, exchange, expect_end, observe, reset, socks5_connect, socks5_connect_name,
};

const SHORT: Duration = Duration::from_millis(200);

fn greet(peer: &Peer) -> std::net::TcpStream {
    let stream = connect(peer.address()).unwrap();
    (&stream).write_all(&[5, 1, 0]).unwrap();
    stream
}

fn bytes(bytes: &[u8]) -> Observed {
    Observed::Bytes(bytes.to_vec())
}

#[test]
fn valid_peer_relays_to_addresses_and_names() {
    let (peer, echo) = (Peer::valid(Duration::ZERO), Target::echo());
    let stream = socks5_connect(peer.address(), echo.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    let named = socks5_connect_name(peer.address(), "localhost", echo.address().port()).unwrap();
    assert_eq!(exchange(&named, b"hello").unwrap(), b"hello");
    assert_eq!(
        (
            peer.accepted(),
            peer.greetings(),
            peer.requests(),
            peer.open()
        ),
        (2, 2, 2, 2)
    );
    assert!(peer.heard()[0].starts_with(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1]));
    drop((stream, named));
    assert!(peer.wait_open(0, SOON) && echo.wait_open(0, SOON));
}

#[test]
fn valid_peer_passes_half_close_on() {
    let pattern = Pattern::new(7);
    let (peer, source) = (
        Peer::valid(Duration::ZERO),
        Target::source(&pattern, 3_000_000, Chunks::Fixed(70_000)),
    );
    let stream = socks5_connect(peer.address(), source.address()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let received = pattern.receive(&stream, u64::MAX);
    assert_eq!(
        (received.bytes, received.wrong_at, received.end),
        (3_000_000, None, End::Eof)
    );

    let (sink, reports) = Target::sink(&pattern);
    let stream = socks5_connect(peer.address(), sink.address()).unwrap();
    pattern
        .send(
            &stream,
            2_000_000,
            Chunks::Random {
                seed: 3,
                most: 100_000,
            },
        )
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let received = reports.recv_timeout(SOON).unwrap();
    assert_eq!(
        (received.bytes, received.wrong_at, received.end),
        (2_000_000, None, End::Eof)
    );
    assert_eq!(observe(&stream, SOON), bytes(&[1]));
}

#[test]
fn valid_peer_passes_resets_on_both_ways() {
    let peer = Peer::valid(Duration::ZERO);
    let (target, accepted) = Target::manual();
    let client = socks5_connect(peer.address(), target.address()).unwrap();
    let far = accepted.recv_timeout(SOON).unwrap();
    reset(far);
    assert_eq!(observe(&client, SOON), Observed::Reset);

    let client = socks5_connect(peer.address(), target.address()).unwrap();
    let far = accepted.recv_timeout(SOON).unwrap();
    reset(client);
    assert_eq!(observe(&far, SOON), Observed::Reset);
}

#[test]
fn killed_peer_resets_and_refuses() {
    let (mut peer, echo) = (Peer::valid(Duration::ZERO), Target::echo());
    let stream = socks5_connect(peer.address(), echo.address()).unwrap();
    peer.kill();
    assert_eq!(observe(&stream, SOON), Observed::Reset);
    assert!(connect(peer.address()).is_err());
    assert!(echo.wait_open(0, SOON));
    let address = peer.address();
    drop(peer);
    let again = Peer::at(address, Behaviour::Valid(Duration::ZERO));
    assert!(socks5_connect(again.address(), echo.address()).is_ok());
}

#[test]
fn stopped_peer_keeps_open_streams() {
    let (mut peer, echo) = (Peer::valid(Duration::ZERO), Target::echo());
    let stream = socks5_connect(peer.address(), echo.address()).unwrap();
    peer.stop_accepting();
    assert!(connect(peer.address()).is_err());
    assert_eq!(exchange(&stream, b"still").unwrap(), b"still");
    peer.reset_streams();
    assert_eq!(observe(&stream, SOON), Observed::Reset);
}

#[test]
fn every_kind_of_peer_answers_as_its_name_says() {
    let peer = Peer::auth_required(0xFF);
    assert_eq!(observe(&greet(&peer), SOON), bytes(&[5, 0xFF]));
    let peer = Peer::auth_required(2);
    assert_eq!(observe(&greet(&peer), SOON), bytes(&[5, 2]));
    let peer = Peer::http();
    assert!(
        matches!(observe(&greet(&peer), SOON), Observed::Bytes(answer) if answer.starts_with(b"HTTP/1.1 400"))
    );
    let peer = Peer::ssh_banner();
    assert!(
        matches!(observe(&greet(&peer), SOON), Observed::Bytes(answer) if answer.starts_with(b"SSH-2.0"))
    );
    let peer = Peer::silent();
    let stream = greet(&peer);
    assert_eq!(observe(&stream, SHORT), Observed::Silent);
    assert_eq!((peer.open(), peer.heard()), (1, vec![vec![5, 1, 0]]));
    drop(stream);
    assert!(peer.wait_open(0, SOON));
    let peer = Peer::closes();
    assert_eq!(
        observe(&connect(peer.address()).unwrap(), SOON),
        Observed::Eof
    );
    let peer = Peer::resets();
    // The reset may be there before connect(2) has returned.
    assert!(
        connect(peer.address()).map_or(true, |stream| expect_end(&stream, SOON) == Observed::Reset)
    );
    let peer = Peer::drips(SHORT / 2);
    let stream = greet(&peer);
    assert_eq!(observe(&stream, SOON), bytes(&[5]));
    assert_eq!(observe(&stream, SOON), bytes(&[0]));
    let peer = Peer::answers_after(SHORT);
    let stream = greet(&peer);
    assert_eq!(observe(&stream, SHORT / 2), Observed::Silent);
    assert_eq!(observe(&stream, SOON), bytes(&[5, 0]));
    peer.behave(Behaviour::Scripted(vec![
        Step::Read(3),
        Step::Send(vec![5]),
        Step::HalfClose,
        Step::Wait(SHORT),
        Step::Reset,
    ]));
    let stream = greet(&peer);
    assert_eq!(observe(&stream, SOON), bytes(&[5]));
    assert_eq!(observe(&stream, SOON), Observed::Eof);
}

#[test]
fn refused_and_unanswered_addresses() {
    let refused = connect(dead_address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let unanswering = Unanswering::new();
    let silent = std::net::TcpStream::connect_timeout(&unanswering.address(), SHORT).unwrap_err();
    assert_eq!(silent.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn pattern_finds_a_lost_a_doubled_and_a_wrong_byte() {
    let pattern = Pattern::new(1);
    let mut stream = vec![0; 3_000_000];
    pattern.fill(5, &mut stream);
    assert_eq!(pattern.verify(5, &stream), None);
    assert_eq!(pattern.verify(5 + 65_536, &stream), Some(5 + 65_536));
    stream[2_500_000] ^= 1;
    assert_eq!(pattern.verify(5, &stream), Some(2_500_005));
    assert_ne!(Pattern::new(2).verify(5, &stream), None);
}
