//! Handshakes as pure state machines: received bytes in, bytes to send and an outcome out. No I/O, no clock.
//!
//! [`Client`] asks, [`Server`] answers. Both work the same way: the driver feeds what it has read, sends what the
//! machine appended, and looks at the outcome. Bytes may come in any portions. A machine keeps an incomplete
//! message itself, and never takes a byte that lies behind the handshake: `feed` returns how many it took, the
//! rest is the peer's payload. Time limits belong to the driver; `phase()` names what was waited for. [`watch`] is for those who
//! stand between the two and only read.
//!
//! A whole exchange, with the payload right behind the request:
//!
//! ```
//! use sockhop::handshake::{Client, Event, Goal, Outcome, Policy, Server};
//! use sockhop::wire::socks5::ReplyCode;
//!
//! let mut client = Client::new(Goal::Connect("example.com:80".parse()?), None);
//! let mut server = Server::new(Policy::default());
//!
//! let (mut up, mut down) = (Vec::new(), Vec::new());
//! client.start(&mut up);
//! assert_eq!(up, [5, 1, 0]);
//! server.feed(&up, &mut down)?;
//! assert_eq!(down, [5, 0]);
//!
//! up.clear();
//! client.feed(&down, &mut up)?;
//! up.extend(b"GET /");
//! let taken = server.feed(&up, &mut down)?;
//! assert_eq!(up[taken..], *b"GET /");
//! let Some(Event::Request(request)) = server.event() else { panic!("no request") };
//! assert_eq!(request.address.to_string(), "example.com:80");
//!
//! down.clear();
//! server.reply(ReplyCode::SUCCEEDED, "192.0.2.1:4000".parse()?, &mut down);
//! up.clear();
//! client.feed(&down, &mut up)?;
//! assert!(matches!(client.outcome(), Some(Outcome::Done(bound)) if bound.port() == 4000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What to read: RFC 1928, RFC 1929, the SOCKS4 and SOCKS4a notes; for the messages [`crate::wire`].

use crate::wire::DecodeError;

pub mod client;
pub mod server;
#[cfg(feature = "socks6")]
pub mod socks6;
pub mod watch;

pub use client::{Client, Goal, HandshakeError, Outcome, Refusal};
pub use server::{Event, Methods, Policy, Request, Server, ServerError, Socks4};

/// The beginning of a message whose rest has not come yet.
#[derive(Clone, Debug, Default)]
struct Partial(Vec<u8>);

impl Partial {
    /// Decodes one message from what was kept and `input`, and moves `input` behind it. Without a whole message
    /// all of `input` is kept.
    ///
    /// `limit` is the length of the longest message: longer input is not copied, and nobody can make us keep more.
    fn take<T>(
        &mut self,
        input: &mut &[u8],
        limit: usize,
        decode: impl FnOnce(&[u8]) -> Result<Option<(T, usize)>, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        let kept = self.0.len();
        let room = limit.saturating_sub(kept).min(input.len());
        let (head, behind) = input.split_at_checked(room).unwrap_or((input, &[]));
        let decoded = if kept == 0 {
            decode(head)?
        } else {
            self.0.extend(head);
            decode(&self.0)?
        };
        let Some((message, length)) = decoded else {
            if kept == 0 {
                self.0.extend(head);
            }
            *input = behind;
            return Ok(None);
        };
        let taken = length.saturating_sub(kept);
        *input = input.get(taken..).unwrap_or_default();
        self.0 = Vec::new();
        Ok(Some(message))
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socks5::ReplyCode;
    use crate::wire::{Address, BoundAddress, Credentials, socks4};
    use fastrand::Rng;
    use std::net::SocketAddr;

    const PASSWORD: Policy = Policy {
        methods: Methods::UserPassword,
        socks4: Socks4::Allowed,
    };

    const BY_ID: Policy = Policy {
        methods: Methods::UserPassword,
        socks4: Socks4::ByUserId,
    };

    fn ada() -> Credentials {
        Credentials::new("ada", "pass").unwrap()
    }

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn bound() -> SocketAddr {
        "192.0.2.1:4000".parse().unwrap()
    }

    fn caller() -> SocketAddr {
        "192.0.2.7:5000".parse().unwrap()
    }

    /// Every kind of client, with the policy of a server that serves it.
    fn clients() -> Vec<(Client, Policy)> {
        let open = Policy::default();
        let mut clients = Vec::new();
        for to in ["example.com:80", "192.0.2.9:80", "[2001:db8::9]:80"] {
            for goal in [
                Goal::Connect(address(to)),
                Goal::Bind(address(to)),
                Goal::Associate(address(to)),
            ] {
                clients.push((Client::new(goal.clone(), None), open));
                clients.push((Client::new(goal.clone(), Some(ada())), PASSWORD));
                for policy in [open, PASSWORD] {
                    let client = Client::new(goal.clone(), Some(ada()));
                    clients.push((client.allow_no_authentication(), policy));
                }
            }
            for command in [socks4::Command::Connect, socks4::Command::Bind] {
                let user_id = socks4::UserId::new("ada").unwrap();
                let request = socks4::Request::socks4a(command, address(to), user_id).unwrap();
                clients.push((Client::socks4(request.clone()), open));
                clients.push((Client::socks4(request), BY_ID));
            }
        }
        clients
    }

    /// Passes bytes in portions of `portion` until nobody says anything more. Returns the outcomes seen.
    fn pump(client: &mut Client, server: &mut Server, portion: usize) -> Vec<Outcome> {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let mut outcomes = Vec::new();
        client.start(&mut up);
        loop {
            for part in std::mem::take(&mut up).chunks(portion) {
                assert_eq!(server.feed(part, &mut down), Ok(part.len()));
            }
            match server.event().cloned() {
                Some(Event::Credentials(request)) => {
                    assert!(ada().matches(&request));
                    server.accept(&mut down);
                }
                Some(Event::UserId(request)) => {
                    assert_eq!(
                        request.user_id(),
                        Some(&socks4::UserId::new("ada").unwrap())
                    );
                    server.accept(&mut down);
                    continue;
                }
                Some(Event::Request(_)) => server.reply(ReplyCode::SUCCEEDED, bound(), &mut down),
                None if server.phase() == server::Phase::Reply => {
                    server.reply(ReplyCode::SUCCEEDED, caller(), &mut down);
                }
                None => (),
            }
            if down.is_empty() {
                return outcomes;
            }
            for part in std::mem::take(&mut down).chunks(portion) {
                assert_eq!(client.feed(part, &mut up), Ok(part.len()));
                outcomes.extend(client.outcome().cloned());
            }
        }
    }

    #[test]
    fn client_and_server_agree_in_every_version_command_and_method() {
        let at = |address: SocketAddr| BoundAddress::from(address);
        for portion in [1, 2, 3, 1000] {
            for (mut client, policy) in clients() {
                let shown = format!("{client:?}");
                let binds = shown.contains("Bind");
                let mut server = Server::new(policy);
                let outcomes = pump(&mut client, &mut server, portion);
                let expected = if binds {
                    vec![
                        Outcome::Listening(at(bound())),
                        Outcome::Accepted(at(caller())),
                    ]
                } else {
                    vec![Outcome::Done(at(bound()))]
                };
                assert_eq!(outcomes, expected, "{shown}");
                assert_eq!(client.phase(), client::Phase::Finished);
                assert_eq!(server.phase(), server::Phase::Finished);
            }
        }
    }

    #[test]
    fn no_bytes_make_a_machine_panic_or_take_more_than_given() {
        let seed = 0x50c4_5005;
        println!("seed {seed:#x}");
        let mut rng = Rng::with_seed(seed);
        let clients = clients();
        for round in 0..20_000 {
            let (client, policy) = &clients[rng.usize(..clients.len())];
            let (mut client, mut server) = (client.clone(), Server::new(*policy));
            let (mut up, mut down) = (Vec::new(), Vec::new());
            client.start(&mut up);
            for _ in 0..8 {
                mutate(&mut up, &mut rng);
                let input = std::mem::take(&mut up);
                for part in portions(&input, &mut rng) {
                    let taken = server.feed(part, &mut down);
                    assert!(
                        taken.is_ok_and(|taken| taken <= part.len()) || taken.is_err(),
                        "round {round}"
                    );
                    if let Some(Event::Credentials(_) | Event::UserId(_)) = server.event() {
                        server.accept(&mut down);
                    }
                }
                server.reply(ReplyCode(rng.u8(0..2)), bound(), &mut down);
                mutate(&mut down, &mut rng);
                let input = std::mem::take(&mut down);
                for part in portions(&input, &mut rng) {
                    let taken = client.feed(part, &mut up);
                    assert!(
                        taken.is_ok_and(|taken| taken <= part.len()) || taken.is_err(),
                        "round {round}"
                    );
                    if let HandshakeError::ClosedEarly(_, kept) = client.closed() {
                        assert!(kept < crate::wire::socks5::Reply::MAX_LEN);
                    }
                }
            }
        }
    }

    /// What the server makes of bytes must not depend on how they were cut.
    #[test]
    fn mutated_clients_get_the_same_answer_at_any_split() {
        let seed = 0x1928_1929;
        println!("seed {seed:#x}");
        let mut rng = Rng::with_seed(seed);
        let scripts: [(&[u8], Policy); 5] = [
            (
                b"\x05\x02\0\x02\x05\x01\0\x03\x01a\0\x50payload",
                Policy::default(),
            ),
            (
                b"\x05\x01\x02\x01\x03ada\x04pass\x05\x03\0\x01\0\0\0\0\0\0",
                PASSWORD,
            ),
            (
                b"\x04\x01\0\x50\0\0\0\x01ada\0example.com\0payload",
                Policy::default(),
            ),
            (b"\x04\x02\0\x50\xc0\0\x02\x01\0payload", Policy::default()),
            (b"\x04\x01\0\x50\xc0\0\x02\x01ada\0payload", BY_ID),
        ];
        for round in 0..20_000 {
            let (script, policy) = scripts[rng.usize(..scripts.len())];
            let mut script = script.to_vec();
            mutate(&mut script, &mut rng);
            let whole = serve(policy, [&script[..]]);
            let split = serve(policy, portions(&script, &mut rng));
            assert_eq!(whole, split, "round {round}: {script:02x?}");
        }
    }

    /// Taken bytes, sent bytes, error and request of a server that accepts everyone.
    fn serve<'a>(policy: Policy, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut server = Server::new(policy);
        let (mut out, mut total, mut error) = (Vec::new(), 0, None);
        'parts: for mut part in parts {
            while !part.is_empty() {
                match server.feed(part, &mut out) {
                    Ok(taken) => {
                        total += taken;
                        part = &part[taken..];
                    }
                    Err(failure) => {
                        error = Some(failure);
                        total = 0;
                        break 'parts;
                    }
                }
                match server.event() {
                    Some(Event::Credentials(_)) => server.accept(&mut out),
                    Some(Event::UserId(_)) => {
                        server.accept(&mut out);
                        break 'parts;
                    }
                    Some(Event::Request(_)) => break 'parts,
                    None => (),
                }
            }
        }
        // One letter is enough to tell HTTP, more letters can still show that it is something else.
        let error = match error {
            Some(ServerError::Http) => Some(ServerError::Version(0)),
            Some(ServerError::Version(_)) => Some(ServerError::Version(0)),
            error => error,
        };
        format!("{total} {out:02x?} {error:?} {:?}", server.event())
    }

    fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
        for _ in 0..rng.usize(0..3) {
            let at = rng.usize(0..=bytes.len());
            match rng.u8(0..4) {
                0 => bytes.insert(at, rng.u8(..)),
                1 => bytes.truncate(at),
                2 if at < bytes.len() => bytes[at] = rng.u8(..),
                3 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
                _ => bytes.extend(std::iter::repeat_n(rng.u8(..), rng.usize(0..600))),
            }
        }
    }

    fn portions<'a>(mut bytes: &'a [u8], rng: &mut Rng) -> Vec<&'a [u8]> {
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(rng.usize(1..=bytes.len()));
            parts.push(head);
            bytes = rest;
        }
        parts
    }
}
