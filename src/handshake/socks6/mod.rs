//! Handshakes of SOCKS 6, as pure state machines like those of [`crate::handshake`], and the books on sessions and tokens.
//!
//! [`Client`] asks, [`Server`] answers. Neither ever takes a byte that lies behind the messages it waits for, and both
//! know how many bytes are missing (`wanted`). What differs from the older versions: payload may follow the request at
//! once, the proxy answers twice (who you are, what became of it), and a session spares the authentication.
//!
//! A whole exchange, with payload in the client's first segment and everything in the proxy's first:
//!
//! ```
//! use sockhop::handshake::socks6::{Client, Outcome, Server};
//! use sockhop::wire::socks6::{AuthReplyOptions, Command, OpReplyOptions, Profile, ReplyCode, Request};
//!
//! let request = Request::new(Command::CONNECT, "example.com:80".parse()?);
//! let mut client = Client::new(request, Profile::DRAFT_12);
//! let (mut up, mut down) = (Vec::new(), Vec::new());
//! client.start(&mut up);
//! assert!(client.allows_false_start());
//! up.extend(b"GET /");
//!
//! let mut server = Server::new(Profile::DRAFT_12);
//! let taken = server.feed(&up, &mut down)?;
//! assert_eq!(up[taken..], *b"GET /");
//! assert_eq!(server.request().map(|request| request.command), Some(Command::CONNECT));
//! server.accept(AuthReplyOptions::default(), &mut down);
//! let bound: std::net::SocketAddr = "192.0.2.1:4000".parse()?;
//! server.reply(ReplyCode::SUCCEEDED, bound.into(), OpReplyOptions::default(), &mut down);
//!
//! client.feed(&down)?;
//! assert!(matches!(client.outcome(), Some(Outcome::Done(reply)) if reply.bound.port() == 4000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::wire::socks6::{DecodeError, Decoded, Problems};

pub mod client;
pub mod server;
pub mod sessions;
pub mod tokens;
pub mod wallet;

pub use client::{Client, ClientError, Outcome};
pub use server::{Server, ServerError};
pub use sessions::{Arrival, Limits, Owner, Sessions};
pub use tokens::{Purse, SpentTokens};
pub use wallet::{Spend, Ticket, Wallet};

/// The beginning of a message whose rest has not come yet. Never more than the message, whose length has a cap.
#[derive(Clone, Default)]
struct Incoming {
    kept: Vec<u8>,
    missing: usize,
}

impl Incoming {
    /// Decodes one message from what was kept and `input`, and moves `input` behind it. Without a whole message, all of
    /// `input` is kept.
    fn take<T>(
        &mut self,
        input: &mut &[u8],
        decode: impl Fn(&[u8]) -> Result<Decoded<T>, DecodeError>,
    ) -> Result<Option<(T, Problems)>, DecodeError> {
        loop {
            let whole = if self.kept.is_empty() {
                *input
            } else {
                let more = input.get(..self.missing).unwrap_or(input);
                *input = input.get(more.len()..).unwrap_or_default();
                self.kept.extend(more);
                self.missing -= more.len();
                // A sender of single bytes must not make us look at all of them each time.
                if self.missing > 0 {
                    return Ok(None);
                }
                &self.kept
            };
            match decode(whole)? {
                Decoded::Whole {
                    message,
                    length,
                    problems,
                } => {
                    if self.kept.is_empty() {
                        *input = input.get(length..).unwrap_or_default();
                    }
                    *self = Self::default();
                    return Ok(Some((message, problems)));
                }
                Decoded::Missing(missing) => {
                    self.missing = missing;
                    if self.kept.is_empty() {
                        self.kept.extend(*input);
                        *input = &[];
                    }
                    if input.is_empty() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.kept.len()
    }

    /// How many bytes are missing at least, of a message that has `least`.
    fn wanted(&self, least: usize) -> usize {
        if self.kept.is_empty() {
            least
        } else {
            self.missing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socks5::Method;
    use crate::wire::socks6::{
        AuthReplyOptions, Choice, Command, MethodAdvertisement, MethodSet, OpReplyOptions, Profile,
        ReplyCode, Request, RequestOptions, SessionUse, StackOptions, Token, TokenVerdict,
        WindowSize,
    };
    use crate::wire::{BoundAddress, Credentials};
    use std::time::Instant;

    fn bound() -> BoundAddress {
        BoundAddress::Socket("192.0.2.1:4000".parse().unwrap())
    }

    fn in_force() -> OpReplyOptions {
        OpReplyOptions {
            stack: StackOptions {
                multipath: Some(Choice::No),
                ..StackOptions::default()
            },
            ..OpReplyOptions::default()
        }
    }

    /// Passes bytes in portions of `portion` until nobody says anything more, with payload right behind the request of a
    /// CONNECT. Returns the outcomes seen.
    fn pump(client: &mut Client, server: &mut Server, portion: usize) -> Vec<Outcome> {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let mut outcomes = Vec::new();
        client.start(&mut up);
        if client.may_send() {
            up.extend(b"payload");
        }
        let mut taken = 0;
        for part in up.chunks(portion) {
            taken += server.feed(part, &mut down).unwrap();
        }
        up.drain(..taken);
        assert_eq!(
            up,
            if client.may_send() {
                &b"payload"[..]
            } else {
                b""
            }
        );
        server.accept(AuthReplyOptions::default(), &mut down);
        while server.phase() == server::Phase::Reply {
            server.reply(ReplyCode::SUCCEEDED, bound(), in_force(), &mut down);
        }
        down.extend(b"answer");
        let mut rest = &down[..];
        while client.wanted() > 0 {
            let part = &rest[..portion.min(rest.len())];
            rest = &rest[client.feed(part).unwrap()..];
            if let Some(outcome) = client.outcome()
                && outcomes.last() != Some(outcome)
            {
                outcomes.push(outcome.clone());
            }
        }
        assert_eq!(rest, b"answer");
        outcomes
    }

    #[test]
    fn both_sides_understand_each_other_in_every_profile() {
        for (name, profile) in Profile::NAMED {
            for to in ["a:80", "example.org:80", "192.0.2.9:80", "[2001:db8::9]:80"] {
                for command in [
                    Command::NOOP,
                    Command::CONNECT,
                    Command::BIND,
                    Command::ASSOCIATE,
                ] {
                    for portion in [1, 3, 12, 1000] {
                        let mut request = Request::new(command, to.parse().unwrap());
                        let ada = Credentials::new("ada", "pass").unwrap();
                        request.options.password = Some(ada.into());
                        request.options.stack = in_force().stack;
                        let mut client = Client::new(request.clone(), profile);
                        let mut server = Server::new(profile);
                        let outcomes = pump(&mut client, &mut server, portion);
                        let count = if command == Command::BIND { 2 } else { 1 };
                        assert_eq!(outcomes.len(), count, "{name} {command} {to}");
                        let options = &client.auth_reply().unwrap().options;
                        assert!(options.password.is_some());
                        for outcome in outcomes {
                            let (Outcome::Done(reply)
                            | Outcome::Listening(reply)
                            | Outcome::Accepted(reply)) = outcome
                            else {
                                panic!("{outcome:?}");
                            };
                            assert_eq!((reply.bound, reply.options), (bound(), in_force()));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn session_and_token_carry_a_connect_in_one_round_trip() {
        let now = Instant::now();
        let mut sessions = Sessions::new(Limits::default());
        let owner = Owner {
            user: None,
            address: "192.0.2.1".parse().unwrap(),
        };
        let profile = Profile::DRAFT_12;
        let base = Token(u32::MAX);
        // A NOOP fetches session and tokens.
        let mut request = Request::new(Command::NOOP, "0.0.0.0:0".parse().unwrap());
        request.options = RequestOptions {
            session: SessionUse::Request,
            window: WindowSize::new(100),
            ..RequestOptions::default()
        };
        let mut client = Client::new(request, profile);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.start(&mut up);
        let mut server = Server::new(profile);
        server.feed(&up, &mut down).unwrap();
        let options = &server.request().unwrap().options;
        let (arrival, _) = sessions.arrive(options, base, now);
        assert_eq!(arrival, Arrival::Authenticate);
        let answer = sessions.open(options, owner.clone(), [7; 16], base, now);
        server.accept(answer, &mut down);
        server.refuse(ReplyCode::SUCCEEDED, &mut down);
        client.feed(&down).unwrap();
        let id = client.session_id().unwrap().clone();
        let mut purse = Purse::new(client.auth_reply().unwrap().options.window.unwrap());

        // Each CONNECT spends one, with its payload in the first segment; replayed, none is carried out.
        for _ in 0..3 {
            let token = purse.take().unwrap();
            let mut request = Request::new(Command::CONNECT, "example.org:80".parse().unwrap());
            request.options.session = SessionUse::Resume(id.clone());
            request.options.token = Some(token);
            let mut client = Client::new(request, profile);
            let mut up = Vec::new();
            client.start(&mut up);
            assert!(client.allows_false_start());
            for replay in [false, true] {
                let mut server = Server::new(profile);
                let mut down = Vec::new();
                server.feed(&up, &mut down).unwrap();
                let options = &server.request().unwrap().options;
                let (arrival, answer) = sessions.arrive(options, base, now);
                if replay {
                    assert_eq!(arrival, Arrival::TokenRejected);
                    server.reject(answer, &mut down);
                    let mut late = client.clone();
                    assert_eq!(late.feed(&down), Err(ClientError::TokenRejected));
                } else {
                    assert_eq!(arrival, Arrival::Inside(owner.clone()));
                    server.accept(answer, &mut down);
                    server.refuse(ReplyCode::SUCCEEDED, &mut down);
                    let mut first = client.clone();
                    first.feed(&down).unwrap();
                    assert!(matches!(first.outcome(), Some(Outcome::Done(_))));
                    let options = &first.auth_reply().unwrap().options;
                    assert_eq!(options.token, Some(TokenVerdict::Accepted));
                    purse.update(options.window.unwrap());
                }
            }
        }
        assert_eq!(purse.left(), 100);
    }

    #[test]
    fn declared_lengths_cost_nothing_until_the_bytes_are_there() {
        // 20,480 bytes of options, of which none comes; all but one byte; and single bytes.
        let head = [6, 1, 0x50, 0, 0, 80, 0, 1, 192, 0, 2, 7];
        let decode = |bytes: &[u8]| Request::decode(bytes, &Profile::DRAFT_12);
        let mut incoming = Incoming::default();
        let mut input = &head[..];
        assert!(incoming.take(&mut input, decode).unwrap().is_none());
        assert!(incoming.kept.capacity() <= 32);
        assert_eq!(incoming.wanted(12), 20_480);
        for _ in 0..5119 {
            let mut input = &[0, 5, 0, 4, 9][..4];
            assert!(incoming.take(&mut input, decode).unwrap().is_none());
        }
        assert_eq!(incoming.wanted(12), 4);
        // What is behind the message stays.
        let mut input = &[0, 5, 0, 4, 9, 9][..];
        assert!(incoming.take(&mut input, decode).unwrap().is_some());
        assert_eq!(input, [9, 9]);
        assert_eq!(incoming.kept.capacity(), 0);
    }

    #[test]
    fn debug_shows_no_bytes_of_what_is_incomplete() {
        let mut server = Server::new(Profile::DRAFT_12);
        let start = b"\x06\0\0\x10\0\0\0\x01\0\0\0\0\0\x04\0\x10\x02\x01\x02me\x06sec";
        server.feed(start, &mut Vec::new()).unwrap();
        assert!(!format!("{server:?}").contains("115"), "{server:?}");
        let advertised = MethodAdvertisement {
            initial_data: 0,
            methods: MethodSet::new([Method::USER_PASSWORD]),
        };
        let mut request = Request::new(Command::NOOP, "0.0.0.0:0".parse().unwrap());
        request.options.methods = Some(advertised);
        let ada = Credentials::new("ada", "secret").unwrap();
        request.options.password = Some(ada.into());
        let client = Client::new(request, Profile::GO_212);
        assert!(!format!("{client:?}").contains("secret"), "{client:?}");
    }
}
