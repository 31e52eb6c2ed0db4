//! A handshake that passes by: read by somebody between a client and proxies, who neither asks nor answers.
//!
//! [`Opening`] reads what a client has said, so that it can be said again to another proxy; [`Watch`] reads what a SOCKS 5
//! proxy says to it, message by message and without changing a byte:
//!
//! ```text
//! AwaitMethod ── 05 00 ──► AwaitReply ── reply ──► Passed
//!      └─── 05 and another method ─────────────────┘
//! ```
//!
//! With another method the client and the proxy talk about users, passwords and keys: nobody else reads that.
//!
//! ```
//! use sockhop::handshake::watch::{Asked, Opening, Seen, Watch};
//! use sockhop::wire::socks5::{Command, Method};
//!
//! let client = b"\x05\x01\0\x05\x01\0\x01\xc0\0\x02\x01\0\x50GET /";
//! let opening = Opening::read(client);
//! assert_eq!(opening.greeting(), Some(3));
//! assert_eq!(opening.asked(), Asked::For { command: Command::Connect, end: 13 });
//!
//! let mut watch = Watch::default();
//! let proxy = b"\x05\0\x05\x04\0\x01\0\0\0\0\0\0";
//! let (taken, seen) = watch.feed(proxy)?;
//! assert_eq!((taken, seen), (2, Some(Seen::Method(Method::NONE))));
//! let (taken, seen) = watch.feed(&proxy[2..])?;
//! let Some(Seen::Refused { code, bytes }) = seen else { panic!("no refusal") };
//! assert_eq!((taken, code.0, bytes.as_slice()), (2, 4, &[5, 4][..]));
//! # Ok::<(), sockhop::wire::DecodeError>(())
//! ```
//!
//! What to read: RFC 1928 §3, §4, §6; SOCKS4 "CONNECT".

use crate::wire::socks5::{
    self, Command, Greeting, Method, MethodSelection, Reply, ReplyCode, Request,
};
use crate::wire::{DecodeError, socks4};

/// What a client has said so far. Reading it again with more bytes tells the same and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening<'a> {
    bytes: &'a [u8],
    speaks: Speaks,
    /// Those that a whole greeting of SOCKS 5 offers.
    methods: Option<&'a [u8]>,
}

/// What a client's first byte says that it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// SOCKS 4 or 4a.
    Socks4,
    /// SOCKS 5.
    Socks5,
    /// Something else, or nothing yet.
    Other,
}

/// How far a client's request is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Some of it is still to come, or all of it.
    NotYet,
    /// It is whole.
    For {
        /// What it asks for.
        command: Command,
        /// Where it ends, counted from the client's first byte. What is behind it is for the destination.
        end: usize,
    },
    /// What stands in its place is none. It may be user and password, sent without waiting for the proxy's method.
    Unreadable,
}

impl<'a> Opening<'a> {
    /// Reads a client's bytes from its first one on.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Self {
        let (speaks, methods) = match bytes {
            [socks4::VERSION, ..] => (Speaks::Socks4, None),
            // The same as `Greeting::decode`, which copies.
            [socks5::VERSION, rest @ ..] => (
                Speaks::Socks5,
                rest.split_first()
                    .and_then(|(count, methods)| methods.get(..usize::from(*count))),
            ),
            _ => (Speaks::Other, None),
        };
        Self {
            bytes,
            speaks,
            methods,
        }
    }

    /// What the client speaks.
    #[must_use]
    pub const fn speaks(&self) -> Speaks {
        self.speaks
    }

    /// The length of a SOCKS 5 greeting, once all of it is there.
    #[must_use]
    pub fn greeting(&self) -> Option<usize> {
        self.methods.map(|methods| GREETING_HEAD + methods.len())
    }

    /// Whether a whole greeting offers this method.
    #[must_use]
    pub fn offers(&self, method: Method) -> bool {
        self.methods
            .is_some_and(|methods| methods.contains(&method.0))
    }

    /// Whether a whole greeting offers "no authentication" and nothing else, so that what follows can only be a request.
    #[must_use]
    pub fn offers_nothing_else(&self) -> bool {
        self.methods.is_some_and(|methods| {
            !methods.is_empty() && methods.iter().all(|method| *method == Method::NONE.0)
        })
    }

    /// The request, which is decoded for it.
    #[must_use]
    pub fn asked(&self) -> Asked {
        match self.speaks {
            Speaks::Socks4 => asked(
                socks4::Request::decode(self.bytes),
                0,
                |request| match request.command() {
                    socks4::Command::Connect => Command::Connect,
                    socks4::Command::Bind => Command::Bind,
                },
            ),
            Speaks::Socks5 => {
                let greeting = self.greeting().unwrap_or(self.bytes.len());
                let rest = self.bytes.get(greeting..).unwrap_or_default();
                asked(Request::decode(rest), greeting, |request| request.command)
            }
            Speaks::Other => Asked::NotYet,
        }
    }
}

fn asked<T>(
    decoded: Result<Option<(T, usize)>, DecodeError>,
    before: usize,
    command: impl FnOnce(&T) -> Command,
) -> Asked {
    match decoded {
        Ok(None) => Asked::NotYet,
        Ok(Some((request, length))) => Asked::For {
            command: command(&request),
            end: before + length,
        },
        Err(_) => Asked::Unreadable,
    }
}

/// Reads what a SOCKS 5 proxy says to a client that greeted it, up to its first reply.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    state: State,
    /// Of a message that is not whole.
    heard: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    AwaitMethod,
    AwaitReply,
    Passed,
}

/// A message of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The answer to the greeting.
    Method(Method),
    /// The (first) reply to the request, which succeeded.
    Reply {
        /// What it says.
        reply: Reply,
        /// What came: the client's own, to be passed on as it is.
        bytes: Vec<u8>,
    },
    /// The request failed. A refusal is complete with its code: some proxies send no address, others one of a type that
    /// doesn't exist. What is left of it lies behind the handshake.
    Refused {
        /// Why.
        code: ReplyCode,
        /// What came of it so far.
        bytes: Vec<u8>,
    },
}

impl Watch {
    /// For a proxy that was greeted by somebody else for the client, and owes the reply only.
    #[must_use]
    pub const fn for_reply() -> Self {
        Self {
            state: State::AwaitReply,
            heard: Vec::new(),
        }
    }

    /// Takes what the proxy sent, stops behind each message, and returns how many bytes it took. Never takes what lies
    /// behind the handshake; keeps less than [`Reply::MAX_LEN`] bytes.
    ///
    /// # Errors
    ///
    /// What cannot be a message of SOCKS 5: then [`Watch::heard`] has all of it that was taken.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Seen>), DecodeError> {
        let limit = match self.state {
            State::AwaitMethod => MethodSelection::LEN,
            State::AwaitReply => Reply::MAX_LEN,
            State::Passed => return Ok((0, None)),
        };
        let kept = self.heard.len();
        let room = limit.saturating_sub(kept).min(input.len());
        self.heard
            .extend_from_slice(input.get(..room).unwrap_or_default());
        let (length, seen) = match self.state {
            State::AwaitMethod => match MethodSelection::decode(&self.heard)? {
                Some((MethodSelection { method }, length)) => {
                    self.state = match method {
                        Method::NONE => State::AwaitReply,
                        _ => State::Passed,
                    };
                    self.heard = Vec::new();
                    (length, Seen::Method(method))
                }
                None => return Ok((room, None)),
            },
            _ if let Some(code) = refusal(&self.heard) => (
                REFUSAL,
                Seen::Refused {
                    code,
                    bytes: self.pass(REFUSAL),
                },
            ),
            _ => match Reply::decode(&self.heard)? {
                Some((reply, length)) => {
                    let bytes = self.pass(length);
                    (length, Seen::Reply { reply, bytes })
                }
                None => return Ok((room, None)),
            },
        };
        Ok((length.saturating_sub(kept), Some(seen)))
    }

    /// The last message, of that length.
    fn pass(&mut self, length: usize) -> Vec<u8> {
        self.state = State::Passed;
        let mut bytes = std::mem::take(&mut self.heard);
        bytes.truncate(length);
        bytes
    }

    /// Whether the answer to the greeting is still to come.
    #[must_use]
    pub fn awaits_method(&self) -> bool {
        self.state == State::AwaitMethod
    }

    /// What was taken of a message that is not whole, or is none.
    #[must_use]
    pub fn heard(&self) -> &[u8] {
        &self.heard
    }
}

fn refusal(heard: &[u8]) -> Option<ReplyCode> {
    match *heard {
        [socks5::VERSION, code, ..] => {
            Some(ReplyCode(code)).filter(|code| *code != ReplyCode::SUCCEEDED)
        }
        _ => None,
    }
}

/// Version and code, RFC 1928 §6.
const REFUSAL: usize = 2;

/// Version and count of the methods, RFC 1928 §3.
const GREETING_HEAD: usize = Greeting::MAX_LEN - 255;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Address;
    use proptest::prelude::*;

    const CONNECT: &[u8] = b"\x05\x01\0\x01\xc0\0\x02\x01\0\x50";

    #[test]
    fn openings_of_every_kind() {
        let greeting = b"\x05\x02\x02\0";
        let pipelined = [&greeting[..], CONNECT, b"payload"].concat();
        let login = b"\x05\x01\x02\x01\x03ada\x04pass";
        for (bytes, speaks, length, asked) in [
            (&b""[..], Speaks::Other, None, Asked::NotYet),
            (b"GET /", Speaks::Other, None, Asked::NotYet),
            (b"\x06\0", Speaks::Other, None, Asked::NotYet),
            (b"\x05", Speaks::Socks5, None, Asked::NotYet),
            (b"\x05\0", Speaks::Socks5, Some(2), Asked::NotYet),
            (b"\x05\x02\0", Speaks::Socks5, None, Asked::NotYet),
            (greeting, Speaks::Socks5, Some(4), Asked::NotYet),
            (&pipelined[..9], Speaks::Socks5, Some(4), Asked::NotYet),
            (login, Speaks::Socks5, Some(3), Asked::Unreadable),
            (
                &pipelined,
                Speaks::Socks5,
                Some(4),
                Asked::For {
                    command: Command::Connect,
                    end: 14,
                },
            ),
            (
                b"\x05\x01\0\x05\x03\0\x01\0\0\0\0\0\0",
                Speaks::Socks5,
                Some(3),
                Asked::For {
                    command: Command::Associate,
                    end: 13,
                },
            ),
            (
                b"\x05\x01\0\x05\x09\0",
                Speaks::Socks5,
                Some(3),
                Asked::Unreadable,
            ),
            (
                b"\x04\x01\0\x50\xc0\0\x02\x01ada",
                Speaks::Socks4,
                None,
                Asked::NotYet,
            ),
            (
                b"\x04\x02\0\x50\xc0\0\x02\x01ada\0payload",
                Speaks::Socks4,
                None,
                Asked::For {
                    command: Command::Bind,
                    end: 12,
                },
            ),
            (b"\x04\x09", Speaks::Socks4, None, Asked::Unreadable),
        ] {
            let opening = Opening::read(bytes);
            let seen = (opening.speaks(), opening.greeting(), opening.asked());
            assert_eq!(seen, (speaks, length, asked), "{bytes:02x?}");
        }
    }

    #[test]
    fn offers_are_those_of_a_whole_greeting() {
        for (bytes, none, password, nothing_else) in [
            (&b"\x05\x01\0"[..], true, false, true),
            (b"\x05\x02\0\0", true, false, true),
            (b"\x05\x02\0\x02", true, true, false),
            (b"\x05\x01\x02", false, true, false),
            (b"\x05\0\0\x02", false, false, false),
            (b"\x05\x02\0", false, false, false),
            (b"\x04\x01\0\x02", false, false, false),
        ] {
            let opening = Opening::read(bytes);
            assert_eq!(opening.offers(Method::NONE), none, "{bytes:02x?}");
            assert_eq!(opening.offers(Method::USER_PASSWORD), password);
            assert_eq!(opening.offers_nothing_else(), nothing_else);
        }
    }

    /// Everything that is seen, how much was taken, and what is kept of the rest.
    fn watch<'a>(mut watch: Watch, parts: impl IntoIterator<Item = &'a [u8]>) -> Run {
        let mut run = Run::default();
        for mut part in parts {
            while !part.is_empty() {
                match watch.feed(part) {
                    Ok((taken, seen)) => {
                        assert!(watch.heard().len() < Reply::MAX_LEN);
                        run.taken += taken;
                        part = &part[taken..];
                        match seen {
                            Some(seen) => run.seen.push(seen),
                            None => break,
                        }
                    }
                    Err(error) => {
                        run.error = Some(error);
                        run.heard = watch.heard().first().copied();
                        return run;
                    }
                }
            }
        }
        run.heard = watch.heard().first().copied();
        run
    }

    #[derive(Debug, Default, PartialEq)]
    struct Run {
        seen: Vec<Seen>,
        taken: usize,
        error: Option<DecodeError>,
        heard: Option<u8>,
    }

    #[test]
    fn wrong_versions_are_seen_at_once_and_kept() {
        for (mut watch, input) in [
            (Watch::default(), &b"HTTP/1.1"[..]),
            (Watch::for_reply(), b"\x04\x5b"),
            (Watch::for_reply(), b"\x05\0\0\x09"),
        ] {
            assert!(watch.feed(input).is_err());
            assert!(!watch.heard().is_empty() && input.starts_with(watch.heard()));
        }
    }

    /// Some refuse with an address of a type that doesn't exist, some without one.
    #[test]
    fn a_refusal_is_complete_with_its_code() {
        for behind in [&[0, 0, 0, 0, 0, 0, 0, 0][..], &[]] {
            let mut watch = Watch::for_reply();
            let (code, bytes) = (ReplyCode::HOST_UNREACHABLE, vec![5, 4]);
            let seen = Some(Seen::Refused { code, bytes });
            assert_eq!(watch.feed(&[&[5, 4], behind].concat()), Ok((2, seen)));
            assert_eq!(watch.feed(behind), Ok((0, None)));
        }
    }

    #[test]
    fn other_methods_end_the_watch() {
        for method in [1, 2, 0x80, 0xff] {
            let mut watch = Watch::default();
            let seen = Seen::Method(Method(method));
            assert_eq!(watch.feed(&[5, method, 1, 0]), Ok((2, Some(seen))));
            assert_eq!(watch.feed(&[1, 0]), Ok((0, None)));
        }
    }

    fn parts(bytes: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
        let (mut rest, mut parts) = (bytes, Vec::new());
        let mut lengths = lengths.iter().cycle();
        while !rest.is_empty() {
            let length = lengths.next().map_or(1, |length| 1 + length % rest.len());
            parts.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        parts
    }

    proptest! {
        /// However the proxy's bytes are cut, the same is seen, and nothing behind the reply is taken.
        #[test]
        fn the_same_at_any_split(
            method in prop_oneof![Just(0_u8), any::<u8>()],
            code in prop_oneof![Just(0_u8), any::<u8>()],
            name in proptest::collection::vec(any::<u8>(), 0..=255),
            behind in proptest::collection::vec(any::<u8>(), 0..20),
            lengths in proptest::collection::vec(0_usize..400, 1..8),
        ) {
            let mut bytes = vec![5, method, 5, code, 0, 3, u8::try_from(name.len()).unwrap()];
            bytes.extend(&name);
            bytes.extend([1, 2]);
            let end = match (method, code) {
                (0, 0) => bytes.len(),
                (0, _) => 4,
                _ => 2,
            };
            bytes.extend(&behind);
            let whole = watch(Watch::default(), [&bytes[..]]);
            let cut = parts(&bytes, &lengths);
            let split = watch(Watch::default(), cut.iter().map(Vec::as_slice));
            prop_assert_eq!(&whole, &split);
            prop_assert_eq!(whole.taken, end);
            prop_assert_eq!(whole.seen.len(), if method == 0 { 2 } else { 1 });
            match whole.seen.get(1) {
                Some(Seen::Reply { reply, bytes: seen }) => {
                    prop_assert_eq!((reply.code.0, code), (0, 0));
                    prop_assert_eq!(seen, &bytes[2..end]);
                }
                Some(Seen::Refused { code: seen, bytes }) => {
                    prop_assert_eq!(seen.0, code);
                    prop_assert_eq!(bytes, &[5, code]);
                }
                _ => {}
            }
        }

        /// Whatever comes, the split makes no difference.
        #[test]
        fn rubbish_is_the_same_at_any_split(
            bytes in proptest::collection::vec(prop_oneof![Just(5_u8), Just(0), Just(1), any::<u8>()], 0..300),
            lengths in proptest::collection::vec(0_usize..400, 1..8),
        ) {
            let cut = parts(&bytes, &lengths);
            let whole = watch(Watch::default(), [&bytes[..]]);
            let split = watch(Watch::default(), cut.iter().map(Vec::as_slice));
            prop_assert_eq!(whole.seen, split.seen);
            prop_assert_eq!(whole.error, split.error);
            prop_assert_eq!(whole.heard, split.heard);
        }

        /// What was read of fewer bytes stays true of more.
        #[test]
        fn an_opening_only_grows(
            methods in proptest::collection::vec(0_u8..4, 0..255),
            to in prop_oneof![Just("192.0.2.1:80"), Just("[2001:db8::1]:443"), Just("example.com:1")],
            behind in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = vec![5, u8::try_from(methods.len()).unwrap()];
            bytes.extend(&methods);
            let greeting = bytes.len();
            let address: Address = to.parse().unwrap();
            Request { command: Command::Bind, address }.encode(&mut bytes);
            let end = bytes.len();
            bytes.extend(&behind);
            for cut in 0..=bytes.len() {
                let opening = Opening::read(&bytes[..cut]);
                prop_assert_eq!(opening.greeting(), (cut >= greeting).then_some(greeting));
                prop_assert_eq!(opening.offers(Method(2)), cut >= greeting && methods.contains(&2));
                let expected = match cut >= end {
                    true => Asked::For { command: Command::Bind, end },
                    false => Asked::NotYet,
                };
                prop_assert_eq!(opening.asked(), expected);
            }
        }
    }
}
