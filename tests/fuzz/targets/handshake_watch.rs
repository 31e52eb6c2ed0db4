//! A handshake that passes by, with a client and a proxy that send anything in any pieces: what is read of it is what the
//! two sides make of it.
//!
//! Input: a byte for how much of the rest the client says; four lengths of pieces; then what client and proxy send.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::handshake::watch::{Asked, Opening, Seen, Speaks, Watch};
use sockhop::handshake::{
    Client, Event, Goal, HandshakeError, Outcome, Policy, Refusal, Server, ServerError,
};
use sockhop::wire::socks5::{Greeting, Method, Reply, ReplyCode, Request};
use sockhop_fuzz::{pieces, settings};

fuzz_target!(|input: &[u8]| {
    let Some(([length, lengths @ ..], rest)) = settings::<5>(input) else {
        return;
    };
    // Greeting and request are at most two pages of it.
    let (client, proxy) = rest.split_at((usize::from(length) * 4).min(rest.len()));
    opening_grows(client);
    opening_is_what_a_server_reads(client);

    let whole = watch(Watch::default(), [proxy]);
    assert_eq!(whole, watch(Watch::default(), pieces(proxy, &lengths)));
    assert_eq!(whole, watch(Watch::default(), proxy.chunks(1)));
    watched_is_what_a_client_reads(&whole, proxy);

    let reply = watch(Watch::for_reply(), [proxy]);
    assert_eq!(reply, watch(Watch::for_reply(), pieces(proxy, &lengths)));
    assert!(reply.seen.len() <= 1);
});

/// More bytes take nothing back.
fn opening_grows(client: &[u8]) {
    let last = Opening::read(client);
    for cut in 1..client.len() {
        let opening = Opening::read(&client[..cut]);
        assert_eq!(opening.speaks(), last.speaks());
        if let Some(greeting) = opening.greeting() {
            assert_eq!(last.greeting(), Some(greeting));
            assert!(greeting <= cut && greeting <= Greeting::MAX_LEN);
            for method in [Method::NONE, Method::USER_PASSWORD] {
                assert_eq!(opening.offers(method), last.offers(method));
            }
            assert_eq!(opening.offers_nothing_else(), last.offers_nothing_else());
        }
        match opening.asked() {
            Asked::NotYet => {}
            asked => assert_eq!(asked, last.asked()),
        }
        if let Asked::For { end, .. } = opening.asked() {
            assert!(end <= cut && opening.greeting().unwrap_or(0) < end);
        }
    }
    if last.speaks() == Speaks::Socks5 && last.asked() == Asked::NotYet {
        assert!(client.len() < Greeting::MAX_LEN + Request::MAX_LEN);
    }
}

fn opening_is_what_a_server_reads(client: &[u8]) {
    let opening = Opening::read(client);
    if opening.speaks() == Speaks::Socks5 && !opening.offers(Method::NONE) {
        return;
    }
    let mut server = Server::new(Policy::default());
    match (server.feed(client, &mut Vec::new()), opening.asked()) {
        (Ok(taken), Asked::For { command, end }) => {
            let Some(Event::Request(request)) = server.event() else {
                panic!("no request");
            };
            assert_eq!((request.command, taken), (command, end));
        }
        (Ok(taken), Asked::NotYet) => {
            assert!(server.event().is_none() && taken == client.len());
        }
        (Err(ServerError::NoDestination), Asked::For { .. }) => {}
        (Err(ServerError::Malformed(..)), Asked::Unreadable) => {}
        (Err(_), Asked::NotYet) => assert_eq!(opening.speaks(), Speaks::Other),
        (server, opening) => panic!("{server:?}, but {opening:?}"),
    }
}

#[derive(Debug, Default, PartialEq)]
struct Watched {
    seen: Vec<Seen>,
    taken: usize,
    is_bad: bool,
    /// Whether there is the beginning of a message. After an error it depends on the pieces how much.
    is_within: bool,
}

fn watch<'a>(mut watch: Watch, parts: impl IntoIterator<Item = &'a [u8]>) -> Watched {
    let mut watched = Watched::default();
    for mut part in parts {
        loop {
            let Ok((taken, seen)) = watch.feed(part) else {
                watched.is_bad = true;
                watched.taken = 0;
                return watched;
            };
            assert!(taken <= part.len() && watch.heard().len() < Reply::MAX_LEN);
            watched.taken += taken;
            part = &part[taken..];
            match seen {
                Some(seen) => watched.seen.push(seen),
                None => break,
            }
        }
    }
    watched.is_within = !watch.heard().is_empty();
    watched
}

/// A client that gets the bytes one by one, so that nothing is too early.
fn watched_is_what_a_client_reads(watched: &Watched, proxy: &[u8]) {
    let to = "192.0.2.1:80".parse().expect("an address");
    let mut client = Client::new(Goal::Connect(to), None);
    client.start(&mut Vec::new());
    let mut taken = 0;
    let mut failure = None;
    for byte in proxy.chunks(1) {
        match client.feed(byte, &mut Vec::new()) {
            Ok(count) => taken += count,
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    match (failure, client.outcome(), &watched.seen[..]) {
        (None, Some(Outcome::Done(bound)), [_, Seen::Reply { reply, bytes }]) => {
            assert_eq!(reply.code, ReplyCode::SUCCEEDED);
            assert_eq!((bound, taken), (&reply.bound, watched.taken));
            assert_eq!(bytes, &proxy[2..taken]);
        }
        (
            Some(HandshakeError::Refused(Refusal::Socks5(refusal))),
            _,
            [_, Seen::Refused { code, bytes }],
        ) => {
            assert_eq!(*code, refusal);
            assert_eq!(bytes, &proxy[2..watched.taken]);
        }
        (
            Some(
                HandshakeError::NoAcceptableMethod
                | HandshakeError::AuthenticationRequired
                | HandshakeError::MethodNotOffered(_),
            ),
            _,
            [Seen::Method(method)],
        ) => assert_ne!(*method, Method::NONE),
        (Some(HandshakeError::NotSocks(_) | HandshakeError::Malformed(..)), _, _) => {
            assert!(watched.is_bad);
        }
        (None, None, [] | [Seen::Method(Method::NONE)]) => assert!(!watched.is_bad),
        (failure, outcome, seen) => panic!("{failure:?}, {outcome:?}, but {seen:?}"),
    }
}
