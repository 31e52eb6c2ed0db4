//! BIND and UDP ASSOCIATE of SOCKS 6 clients through `sockhop serve --via`, to a proxy of SOCKS 5 and to one of SOCKS 6.
#![cfg(feature = "socks6")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use common::{
    Peer, SOON, Sockhop, Step, connect, dante, dead_address, echo_datagrams, echo_one, exchange,
    wait_dropped, wait_until,
};
use sockhop::client::{Association, ClientError, Dialer};
use sockhop::handshake::{Refusal, socks6};
use sockhop::wire::socks5::ReplyCode;
use sockhop::wire::socks6::Choice;
use sockhop::wire::{Address, BoundAddress};

/// A server at a port that it has for TCP and can have for UDP, which lets clients go to loopback unless told otherwise.
fn serve(proxies: &[&str], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    // Outside of the range that systems take theirs from when they are not told.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let skipped = u16::try_from(std::process::id() % 600).expect("small") * 17;
    let at = (0..10_000)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .map(|next| format!("127.0.0.1:{}", 20_000 + (skipped + next) % 12_000))
        .find(|at| UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok())
        .expect("a free port");
    let server = Sockhop::serve(&["--listen", &at, "-v"])
        .args(proxies.iter().flat_map(|proxy| ["--via", proxy]))
        .args(arguments)
        .start();
    let address = server.wait_listening(SOON);
    (server, address)
}

const LOOPBACK: [&str; 2] = ["--allow-dest", "127.0.0.0/8"];

fn uri(scheme: &str, address: SocketAddr) -> String {
    format!("{scheme}://{address}")
}

fn dialer(server: SocketAddr, query: &str) -> Dialer {
    Dialer::new(format!("socks6://{server}{query}").parse().expect("a URI"))
}

fn any() -> Address {
    "0.0.0.0:0".parse().expect("an address")
}

fn refusal(error: &ClientError) -> ReplyCode {
    match error {
        ClientError::Refused {
            refusal: Refusal::Socks5(code),
            ..
        } => *code,
        ClientError::RefusedBySocks6 { code, .. }
        | ClientError::Socks6(_, socks6::ClientError::Refused(code)) => code.to_socks5(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bind_through_proxies_of_every_version() {
    let (_far, far) = serve(&[], &LOOPBACK);
    let plain = Peer::valid(Duration::ZERO);
    for chain in [
        vec![uri("socks4", far)],
        vec![uri("socks5h", far)],
        vec![uri("socks6", far)],
        vec![uri("socks5", plain.address()), uri("socks5", far)],
        vec![uri("socks5", plain.address()), uri("socks6", far)],
    ] {
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        let (_server, address) = serve(&chain, &LOOPBACK);
        let binding = dialer(address, "?tos=16").bind(&any()).expect("a port");
        let bound = binding.address().expect("an address");
        assert_ne!(bound.port(), address.port());
        // Of the far leg nothing is known.
        assert_eq!(binding.granted().tos.remote, None);
        let mut peer = connect(bound).expect("connect");
        let own = peer.local_addr().expect("bound");
        let (stream, came) = binding.accept(SOON).expect("a peer");
        assert_eq!(came, BoundAddress::from(own));
        let mut copy = peer.try_clone().expect("clone");
        let echo = std::thread::spawn(move || std::io::copy(&mut peer, &mut copy).map(drop));
        assert_eq!(exchange(&stream, b"hello").expect("exchange"), b"hello");
        drop(stream);
        drop(echo.join());
    }
}

#[test]
fn only_those_come_through_whom_the_rules_let_in() {
    let (_far, far) = serve(&[], &LOOPBACK);
    for scheme in ["socks5", "socks6"] {
        let (_server, address) = serve(&[&uri(scheme, far)], &[]);
        let binding = dialer(address, "").bind(&any()).expect("a port");
        let mut peer = connect(binding.address().expect("an address")).expect("connect");
        let refused = binding.accept(SOON).expect_err("nobody may come");
        assert_eq!(refusal(&refused), ReplyCode::NOT_ALLOWED, "{scheme}");
        assert!(!matches!(peer.read(&mut [0; 1]), Ok(1)));
    }
}

#[test]
fn a_backlog_is_one_peer_at_an_older_proxy() {
    let (_far, far) = serve(&[], &LOOPBACK);
    let (_server, address) = serve(&[&uri("socks5", far)], &LOOPBACK);
    let mut listener = dialer(address, "?backlog=5")
        .listen(&any())
        .expect("a port");
    assert_eq!(listener.granted().backlog, Some(0));
    let peer = connect(listener.address().expect("an address")).expect("connect");
    let (_stream, came) = listener.accept(SOON).expect("a peer");
    assert_eq!(came, peer.local_addr().expect("bound").into());
    let none = listener.accept(SOON).expect_err("one only");
    assert!(matches!(none, ClientError::NoBacklog(_)), "{none:?}");
}

#[test]
fn a_backlog_at_a_proxy_of_socks6_gives_one_peer_after_the_other() {
    let (far, far_address) = serve(&[], &LOOPBACK);
    let plain = Peer::valid(Duration::ZERO);
    let (six, five) = (uri("socks6", far_address), uri("socks5", plain.address()));
    for chain in [vec![&six[..]], vec![&five, &six]] {
        let (server, address) = serve(&chain, &LOOPBACK);
        // Another client's request has opened the session at the proxy.
        let _other = dialer(address, "").bind(&any()).expect("a port");
        let mut listener = dialer(address, "?backlog=5")
            .listen(&any())
            .expect("a port");
        assert_eq!(listener.granted().backlog, Some(5));
        let bound = listener.address().expect("an address");
        let peers: Vec<_> = (0..4).map(|_| connect(bound).expect("connect")).collect();
        for _ in &peers {
            let (stream, came) = listener.accept(SOON).expect("a peer");
            let is_it = |peer: &&TcpStream| came == peer.local_addr().expect("bound").into();
            let mut peer = peers.iter().find(is_it).expect("one of them");
            peer.write_all(b"hello").expect("write");
            let mut heard = [0; 5];
            (&stream).read_exact(&mut heard).expect("read");
            assert_eq!(heard, *b"hello");
        }
        // One that comes later, while it is waited for.
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            connect(bound).expect("connect")
        });
        let (_stream, came) = listener.accept(SOON).expect("a peer");
        let late = late.join().expect("no panic");
        assert_eq!(came, late.local_addr().expect("bound").into());
        // Nobody else gets at its peers.
        for query in ["", "?backlog=2"] {
            let thief = dialer(address, query)
                .listen(&bound.into())
                .expect_err("not theirs");
            assert_eq!(refusal(&thief), ReplyCode::NOT_ALLOWED);
        }
        drop(listener);
        assert!(wait_until(SOON, || connect(bound).is_err()));
        server.wait_log("port closed", SOON);
        // Now it is nobody's, though the proxy's system may not give it again at once.
        if let Err(error) = dialer(address, "").listen(&bound.into()) {
            assert_eq!(refusal(&error), ReplyCode::GENERAL_FAILURE);
        }
    }
    let (server, address) = serve(&[&six], &LOOPBACK);
    let mut listener = dialer(address, "?backlog=5")
        .listen(&any())
        .expect("a port");
    drop(far);
    server.wait_log("port closed", SOON);
    assert!(listener.accept(SOON).is_err());
}

#[test]
fn a_proxy_without_sessions_has_no_backlog() {
    let (_far, far) = serve(&[], &LOOPBACK);
    let via = format!("socks6://{far}?session=no");
    let (_server, address) = serve(&[&via], &LOOPBACK);
    let mut listener = dialer(address, "?backlog=5")
        .listen(&any())
        .expect("a port");
    assert_eq!(listener.granted().backlog, Some(0));
    let _peer = connect(listener.address().expect("an address")).expect("connect");
    assert!(listener.accept(SOON).is_ok());
}

#[test]
fn only_proxies_of_socks6_let_clients_choose() {
    let (_far, far) = serve(&[], &LOOPBACK);
    let free = TcpListener::bind("127.0.0.1:0").expect("bind");
    let wanted = free.local_addr().expect("bound");
    drop(free);
    let (_server, address) = serve(&[&uri("socks6", far)], &LOOPBACK);
    let listener = dialer(address, "").listen(&wanted.into()).expect("a port");
    assert_eq!(listener.address(), Some(wanted));
    // Reserved ports are that proxy's to refuse.
    let low = "0.0.0.0:80".parse().expect("an address");
    let refused = dialer(address, "")
        .listen(&low)
        .expect_err("a reserved port");
    assert_eq!(refusal(&refused), ReplyCode::NOT_ALLOWED);
    drop(listener);
    let (_server, address) = serve(&[&uri("socks5", far)], &LOOPBACK);
    let refused = dialer(address, "")
        .listen(&wanted.into())
        .expect_err("no choice");
    assert_eq!(refusal(&refused), ReplyCode::NOT_ALLOWED);
}

#[test]
fn without_bind_and_udp_there_are_no_such_commands() {
    let (_far, far) = serve(&[], &LOOPBACK);
    let five = uri("socks5", far);
    for (chain, arguments) in [
        (vec![&five[..]], &["--no-bind", "--no-udp"][..]),
        (vec![&five, &five], &["--no-bind"]),
    ] {
        let (_server, address) = serve(&chain, arguments);
        let refused = dialer(address, "").bind(&any()).expect_err("no BIND");
        assert_eq!(refusal(&refused), ReplyCode::COMMAND_NOT_SUPPORTED);
        let refused = dialer(address, "").associate().expect_err("no UDP");
        assert_eq!(refusal(&refused), ReplyCode::COMMAND_NOT_SUPPORTED);
    }
}

#[track_caller]
fn receive(association: &Association) -> (Vec<u8>, Address) {
    let mut buffer = vec![0; 65_536];
    let (count, from) = association
        .recv_from(&mut buffer, SOON)
        .expect("a datagram");
    buffer.truncate(count);
    (buffer, from)
}

#[test]
fn datagrams_over_both_channels() {
    let (far, far_address) = serve(&[], &LOOPBACK);
    let echo = echo_datagrams();
    let named: Address = format!("localhost:{}", echo.port())
        .parse()
        .expect("a name");
    for (scheme, channel) in [
        ("socks5", "udp"),
        ("socks5", "tcp"),
        ("socks5h", "udp"),
        ("socks5h", "tcp"),
        ("socks6", "udp"),
        ("socks6", "tcp"),
    ] {
        let shown = format!("{scheme} {channel}");
        let (server, address) = serve(&[&uri(scheme, far_address)], &LOOPBACK);
        let query = format!("?channel={channel}&udp-error=yes&tos=16");
        let association = dialer(address, &query).associate().expect("an association");
        let granted = association.granted();
        assert_eq!(granted.udp_error, Some(Choice::No), "{shown}");
        assert_eq!(granted.tos.remote, None, "{shown}");
        for payload in [&b"hello"[..], b"", &[7; 1400], &[8; 60_000]] {
            for to in [&Address::from(echo), &named] {
                association.send_to(payload, to).expect("send");
                let (answer, from) = receive(&association);
                assert!(answer == payload && from == echo.into(), "{shown}: {from}");
            }
        }
        // What destinations see is told where it is known.
        let seen = UdpSocket::bind("127.0.0.1:0").expect("bind");
        seen.set_read_timeout(Some(SOON)).expect("time limit");
        let to = seen.local_addr().expect("bound");
        association.send_to(b"who?", &to.into()).expect("send");
        let from = echo_one(&seen);
        let outside = association.outside().expect("SOCKS 6").port();
        assert_eq!(
            outside,
            if scheme == "socks6" { from.port() } else { 0 },
            "{shown}"
        );
        assert_eq!(receive(&association).0, b"who?");
        // Both ends of the way end with it.
        let associations = |count: usize| {
            server.wait_status(|status| status["associations"] == count, SOON);
            far.wait_status(|status| status["associations"] == count, SOON);
        };
        associations(1);
        drop(association);
        associations(0);
    }
}

#[test]
fn a_client_that_does_not_read_loses_datagrams_and_nothing_else() {
    let (far, far_address) = serve(&[], &LOOPBACK);
    let echo = Address::from(echo_datagrams());
    for scheme in ["socks5", "socks6"] {
        let (server, address) = serve(&[&uri(scheme, far_address)], &LOOPBACK);
        let association = dialer(address, "?channel=tcp")
            .associate()
            .expect("an association");
        // More than all buffers on the way hold.
        for _ in 0..600 {
            association.send_to(&[1; 30_000], &echo).expect("send");
        }
        let mut buffer = vec![0; 65_536];
        let all_read = wait_until(SOON, || {
            association.send_to(b"end", &echo).expect("send");
            loop {
                match association.recv_from(&mut buffer, Duration::from_millis(200)) {
                    Ok((3, _)) => return buffer[..3] == *b"end",
                    Ok((count, _)) => assert_eq!(count, 30_000),
                    Err(_) => return false,
                }
            }
        });
        assert!(all_read, "{scheme}");
        // Small ones that come together, more than a turn takes.
        let end = || receive(&association).0;
        for round in 0..4_u8 {
            for number in 0..100 {
                association.send_to(&[round, number], &echo).expect("send");
            }
            let last = wait_until(SOON, || end() == [round, 99]);
            assert!(last, "{scheme}");
        }
        drop(association);
        far.wait_status(|status| status["associations"] == 0, SOON);
        server.wait_status(|status| status["associations"] == 0, SOON);
    }
}

#[test]
fn it_ends_with_the_proxy_and_rules_hold() {
    for scheme in ["socks5", "socks6"] {
        let (far, far_address) = serve(&[], &LOOPBACK);
        let (server, address) = serve(&[&uri(scheme, far_address)], &[]);
        let association = dialer(address, "?channel=tcp")
            .associate()
            .expect("an association");
        let denied = "127.0.0.1:9".parse().expect("an address");
        association.send_to(b"denied", &denied).expect("send");
        wait_dropped(&server, "rules", 1);
        let number = "2130706433:9".parse::<Address>();
        if let Ok(number) = number {
            association.send_to(b"number", &number).expect("send");
            wait_dropped(&server, "name", 1);
        }
        drop(far);
        let ended = association
            .recv_from(&mut [0; 16], SOON)
            .expect_err("the end");
        assert_eq!(
            ended.kind(),
            std::io::ErrorKind::ConnectionAborted,
            "{scheme}"
        );
    }
}

#[test]
fn a_proxy_that_fails_is_told_by_its_code() {
    for code in [1, 2, 7] {
        let proxy = Peer::scripted(vec![
            Step::Read(3),
            Step::Send(vec![5, 0]),
            Step::Read(10),
            Step::Send(vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]),
        ]);
        let (_server, address) = serve(&[&uri("socks5", proxy.address())], &LOOPBACK);
        let refused = dialer(address, "").bind(&any()).expect_err("refused");
        assert_eq!(refusal(&refused), ReplyCode(code));
        let refused = dialer(address, "").associate().expect_err("refused");
        assert_eq!(refusal(&refused), ReplyCode(code));
        assert!(proxy.wait_open(0, SOON));
    }
    let (_server, address) = serve(&[&uri("socks5", dead_address())], &LOOPBACK);
    let refused = dialer(address, "").associate().expect_err("no proxy");
    assert_eq!(refusal(&refused), ReplyCode::GENERAL_FAILURE);
}

#[test]
#[ignore = "needs danted"]
fn through_dante() {
    let (_dante, proxy) = dante();
    let echo = echo_datagrams();
    let (_server, address) = serve(&[&uri("socks5", proxy)], &LOOPBACK);
    for channel in ["udp", "tcp"] {
        let dialer = dialer(address, &format!("?channel={channel}"));
        let association = dialer.associate().expect("an association");
        for payload in [&b"hello"[..], &[7; 1400]] {
            association.send_to(payload, &echo.into()).expect("send");
            assert_eq!(receive(&association), (payload.to_vec(), echo.into()));
        }
    }
    let binding = dialer(address, "").bind(&any()).expect("a port");
    let peer = connect(binding.address().expect("an address")).expect("connect");
    let (_stream, came) = binding.accept(SOON).expect("a peer");
    assert_eq!(came, peer.local_addr().expect("bound").into());
}
