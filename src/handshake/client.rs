//! The asking side.
//!
//! ```text
//! start ─ greeting ──► AwaitMethod ── 05 00 ──┬─────────► Greeted          (goal Greet)
//!   │                      │ 05 02            └─ request ─► AwaitReply ──► Done
//!   │                      └ user/password ─► AwaitAuthStatus ─ 01 00 ─┘     │ (BIND)
//!   └─ SOCKS4 request ──────────────────────────────────► AwaitReply         └► Listening ─► Accepted
//! ```
//!
//! What to read: RFC 1928 §3 to §6, RFC 1929 §2, SOCKS4 "CONNECT" and "BIND".

use std::error::Error;
use std::fmt;

use super::Partial;
use crate::proxy_uri::{ProxyUri, Scheme};
use crate::wire::socks4::RequestError;
use crate::wire::socks5::{self, Greeting, Method, MethodSelection};
use crate::wire::user_password::{self, Status};
use crate::wire::{Address, BoundAddress, Credentials, DecodeError, FirstBytes, socks4};

/// The asking side of one connection.
#[derive(Clone, Debug)]
pub struct Client {
    state: State,
    partial: Partial,
}

/// What to ask a SOCKS5 proxy for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Nothing: agree on a method, authenticate if there are credentials, and stop. Without credentials this
    /// sends `05 01 00` and nothing else, which is how peers are probed.
    Greet,
    /// A connection to this address.
    Connect(Address),
    /// A port that accepts one connection from this address.
    Bind(Address),
    /// A port for datagrams, which will be sent from this address; `0.0.0.0:0` if it isn't known yet.
    Associate(Address),
}

/// How far the handshake has got that ends, or pauses, it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// [`Goal::Greet`]: the proxy chose this method, and accepted the credentials if there were any.
    Greeted(Method),
    /// CONNECT or UDP ASSOCIATE succeeded. For the latter this is where datagrams go: see
    /// [`BoundAddress::seen_from`].
    Done(BoundAddress),
    /// BIND: the proxy listens here. Goes on with the next [`Client::feed`].
    Listening(BoundAddress),
    /// BIND: this one has connected.
    Accepted(BoundAddress),
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its own start.
    Start,
    /// The answer to the greeting.
    Method,
    /// The answer to user and password.
    AuthStatus,
    /// The reply to the request.
    Reply,
    /// The second reply to BIND.
    SecondReply,
    /// Nothing.
    Finished,
}

/// Why there was no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The first byte of the first answer says that this is no SOCKS proxy of this version.
    NotSocks(FirstBytes),
    /// The proxy wants none of the methods offered (`05 FF`).
    NoAcceptableMethod,
    /// The proxy wants user and password (`05 02`), which were not offered.
    AuthenticationRequired,
    /// The proxy chose a method that was not offered. With credentials this is also "none": a proxy that
    /// skips the authentication asked for is not believed.
    MethodNotOffered(Method),
    /// User and password are wrong. Holds the status, which is not 0.
    CredentialsRejected(Status),
    /// The proxy understood the request, but refuses it or failed.
    Refused(Refusal),
    /// An answer that can't be understood.
    Malformed(Phase, DecodeError),
    /// More bytes came with an answer than belong to it, before the proxy was asked for the next.
    Unsolicited(Phase),
    /// The proxy closed while this was awaited, after so many bytes of it.
    ClosedEarly(Phase, usize),
}

/// The code of a reply that isn't success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// From a SOCKS5 proxy.
    Socks5(socks5::ReplyCode),
    /// From a SOCKS4 proxy.
    Socks4(socks4::ReplyCode),
}

impl Refusal {
    /// Whether the same proxy may still reach another address of the same name.
    #[must_use]
    pub const fn is_about_address(self) -> bool {
        match self {
            Self::Socks5(code) => matches!(
                code,
                socks5::ReplyCode::GENERAL_FAILURE
                    | socks5::ReplyCode::NETWORK_UNREACHABLE
                    | socks5::ReplyCode::HOST_UNREACHABLE
                    | socks5::ReplyCode::CONNECTION_REFUSED
                    | socks5::ReplyCode::TTL_EXPIRED
                    | socks5::ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED
            ),
            Self::Socks4(code) => matches!(code, socks4::ReplyCode::REJECTED),
        }
    }
}

#[derive(Clone, Debug)]
enum State {
    Start(Plan),
    AwaitMethod {
        goal: Goal,
        credentials: Option<Credentials>,
        none_allowed: bool,
    },
    AwaitAuthStatus {
        goal: Goal,
    },
    AwaitReply {
        version: Version,
        replies: Replies,
    },
    Paused(Version, Outcome),
    Finished(Outcome),
    Failed(HandshakeError),
}

#[derive(Clone, Debug)]
enum Plan {
    Socks5 {
        goal: Goal,
        credentials: Option<Credentials>,
        none_allowed: bool,
    },
    Socks4(socks4::Request),
}

#[derive(Clone, Copy, Debug)]
enum Version {
    Socks4,
    Socks5,
}

/// Which reply is awaited.
#[derive(Clone, Copy, Debug)]
enum Replies {
    Only,
    FirstOfTwo,
    SecondOfTwo,
}

impl Client {
    /// A SOCKS5 client. With credentials it offers user/password only, so that no proxy can talk it into going
    /// without; see [`Client::allow_no_authentication`].
    #[must_use]
    pub fn new(goal: Goal, credentials: Option<Credentials>) -> Self {
        let none_allowed = credentials.is_none();
        Self::with_plan(Plan::Socks5 {
            goal,
            credentials,
            none_allowed,
        })
    }

    /// A SOCKS4 or SOCKS4a client, depending on how the request was made.
    #[must_use]
    pub fn socks4(request: socks4::Request) -> Self {
        Self::with_plan(Plan::Socks4(request))
    }

    /// A client that asks this proxy, in its version and with its credentials.
    ///
    /// # Errors
    ///
    /// SOCKS4 can't be asked for this address, or has no such command. SOCKS 6 has a client of its own,
    /// `socks6::Client`: here it knows no command.
    pub fn for_proxy(proxy: &ProxyUri, goal: Goal) -> Result<Self, RequestError> {
        let request = match proxy.scheme() {
            Scheme::Socks5 | Scheme::Socks5h => {
                return Ok(Self::new(goal, proxy.credentials().cloned()));
            }
            Scheme::Socks4 => socks4::Request::socks4,
            Scheme::Socks4a => socks4::Request::socks4a,
            #[cfg(feature = "socks6")]
            Scheme::Socks6 => return Err(RequestError::NoSuchCommand),
        };
        let (command, address) = match goal {
            Goal::Connect(address) => (socks4::Command::Connect, address),
            Goal::Bind(address) => (socks4::Command::Bind, address),
            Goal::Greet | Goal::Associate(_) => return Err(RequestError::NoSuchCommand),
        };
        let user_id = proxy.user_id().cloned().unwrap_or_default();
        request(command, address, user_id).map(Self::socks4)
    }

    fn with_plan(plan: Plan) -> Self {
        Self {
            state: State::Start(plan),
            partial: Partial::default(),
        }
    }

    /// Offers "no authentication" too, although there are credentials. Has no effect once started.
    #[must_use]
    pub fn allow_no_authentication(mut self) -> Self {
        if let State::Start(Plan::Socks5 { none_allowed, .. }) = &mut self.state {
            *none_allowed = true;
        }
        self
    }

    /// Appends the first message to `out`. Calling it again does nothing.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        let State::Start(plan) = &mut self.state else {
            return;
        };
        self.state = match plan {
            Plan::Socks5 {
                goal,
                credentials,
                none_allowed,
            } => {
                let greeting = match (&credentials, *none_allowed) {
                    (None, _) => Greeting::new([Method::NONE]),
                    (Some(_), false) => Greeting::new([Method::USER_PASSWORD]),
                    (Some(_), true) => Greeting::new([Method::USER_PASSWORD, Method::NONE]),
                };
                greeting.encode(out);
                State::AwaitMethod {
                    goal: goal.clone(),
                    credentials: credentials.take(),
                    none_allowed: *none_allowed,
                }
            }
            Plan::Socks4(request) => {
                request.encode(out);
                State::AwaitReply {
                    version: Version::Socks4,
                    replies: match request.command() {
                        socks4::Command::Connect => Replies::Only,
                        socks4::Command::Bind => Replies::FirstOfTwo,
                    },
                }
            }
        };
    }

    /// Takes what the proxy sent, appends what has to be sent next, and returns how many bytes of `input` it
    /// took. What it didn't take comes from behind the handshake.
    ///
    /// It stops at every [`Outcome`]. After [`Outcome::Listening`] the next call goes on.
    ///
    /// # Errors
    ///
    /// The handshake has failed; later calls give the same error.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, HandshakeError> {
        self.start(out);
        if let State::Paused(version, _) = self.state {
            // An empty feed must not lose the outcome.
            if input.is_empty() {
                return Ok(0);
            }
            self.state = State::AwaitReply {
                version,
                replies: Replies::SecondOfTwo,
            };
        }
        let mut rest = input;
        while !rest.is_empty() && self.outcome().is_none() {
            let phase = self.phase();
            let sent = out.len();
            match self.step(&mut rest, out) {
                // The peer can't have answered what was not sent yet.
                Ok(()) if out.len() > sent && !rest.is_empty() => {
                    return Err(self.fail(HandshakeError::Unsolicited(phase)));
                }
                Ok(()) => (),
                Err(error) => return Err(self.fail(error)),
            }
        }
        match self.state {
            State::Failed(error) => Err(error),
            _ => Ok(input.len() - rest.len()),
        }
    }

    /// What came out, or `None` while the handshake runs and after it failed.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Paused(_, outcome) | State::Finished(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// What is awaited.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Start(_) => Phase::Start,
            State::AwaitMethod { .. } => Phase::Method,
            State::AwaitAuthStatus { .. } => Phase::AuthStatus,
            State::AwaitReply {
                replies: Replies::SecondOfTwo,
                ..
            }
            | State::Paused(..) => Phase::SecondReply,
            State::AwaitReply { .. } => Phase::Reply,
            State::Finished(_) | State::Failed(_) => Phase::Finished,
        }
    }

    /// How many bytes may be read now without taking one from behind the handshake; 0 when nothing is awaited. What
    /// comes while the proxy waits for us can't be from behind it, so then this is more than the message has.
    #[must_use]
    pub fn wanted(&self) -> usize {
        let length = match &self.state {
            State::AwaitMethod { goal, .. } | State::AwaitAuthStatus { goal } => match goal {
                Goal::Greet => MethodSelection::LEN,
                _ => FirstBytes::LIMIT,
            },
            State::AwaitReply { version, .. } | State::Paused(version, _) => match version {
                Version::Socks4 => socks4::Reply::LEN,
                Version::Socks5 => socks5_reply_length(&self.partial.0),
            },
            State::Start(_) | State::Finished(_) | State::Failed(_) => return 0,
        };
        length.saturating_sub(self.partial.len()).max(1)
    }

    /// The error if the proxy closes now. If the handshake has failed already, that failure.
    #[must_use]
    pub fn closed(&self) -> HandshakeError {
        match self.state {
            State::Failed(error) => error,
            _ => HandshakeError::ClosedEarly(self.phase(), self.partial.len()),
        }
    }

    fn fail(&mut self, error: HandshakeError) -> HandshakeError {
        self.state = State::Failed(error);
        error
    }

    /// Takes at most one message; all of the input if it has none.
    fn step(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        let phase = self.phase();
        let malformed = |error| HandshakeError::Malformed(phase, error);
        let next = match &mut self.state {
            State::Start(_) | State::Paused(..) | State::Finished(_) => return Ok(()),
            State::Failed(error) => return Err(*error),
            State::AwaitMethod {
                goal,
                credentials,
                none_allowed,
            } => {
                check_first_byte(&self.partial, input, socks5::VERSION)?;
                let limit = MethodSelection::LEN;
                let Some(MethodSelection { method }) = self
                    .partial
                    .take(input, limit, MethodSelection::decode)
                    .map_err(malformed)?
                else {
                    return Ok(());
                };
                match (method, credentials.take()) {
                    (Method::NONE, _) if *none_allowed => request(goal, method, out),
                    (Method::USER_PASSWORD, Some(credentials)) => {
                        user_password::Request::from(credentials).encode(out);
                        State::AwaitAuthStatus { goal: goal.clone() }
                    }
                    (Method::USER_PASSWORD, None) => {
                        return Err(HandshakeError::AuthenticationRequired);
                    }
                    (Method::NONE_ACCEPTABLE, _) => return Err(HandshakeError::NoAcceptableMethod),
                    (method, _) => return Err(HandshakeError::MethodNotOffered(method)),
                }
            }
            State::AwaitAuthStatus { goal } => {
                let status = self.partial.take(input, Status::LEN, Status::decode);
                match status.map_err(malformed)? {
                    None => return Ok(()),
                    Some(Status::ACCEPTED) => request(goal, Method::USER_PASSWORD, out),
                    Some(status) => return Err(HandshakeError::CredentialsRejected(status)),
                }
            }
            State::AwaitReply { version, replies } => {
                let bound = match version {
                    Version::Socks5 => {
                        let limit = socks5::Reply::MAX_LEN;
                        self.partial.take(input, limit, decode_socks5_reply)
                    }
                    Version::Socks4 => {
                        if matches!(replies, Replies::Only | Replies::FirstOfTwo) {
                            check_first_byte(&self.partial, input, socks4::REPLY_VERSION)?;
                        }
                        let limit = socks4::Reply::LEN;
                        self.partial.take(input, limit, decode_socks4_reply)
                    }
                };
                match (bound.map_err(malformed)?, replies) {
                    (None, _) => return Ok(()),
                    (Some(Err(refusal)), _) => return Err(HandshakeError::Refused(refusal)),
                    (Some(Ok(bound)), Replies::Only) => State::Finished(Outcome::Done(bound)),
                    (Some(Ok(bound)), Replies::FirstOfTwo) => {
                        State::Paused(*version, Outcome::Listening(bound))
                    }
                    (Some(Ok(bound)), Replies::SecondOfTwo) => {
                        State::Finished(Outcome::Accepted(bound))
                    }
                }
            }
        };
        self.state = next;
        Ok(())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Method => "answer to the greeting",
            Self::AuthStatus => "answer to user and password",
            Self::Reply => "reply",
            Self::SecondReply => "second reply",
            Self::Finished => "end",
        })
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSocks(first) => write!(f, "sent {first}"),
            Self::NoAcceptableMethod => {
                write!(f, "the proxy accepts none of the offered methods")
            }
            Self::AuthenticationRequired => write!(f, "the proxy wants user and password"),
            Self::MethodNotOffered(method) => {
                write!(
                    f,
                    "the proxy chose what was not offered to it ({method}, {:#04x})",
                    method.0
                )
            }
            Self::CredentialsRejected(status) => {
                write!(
                    f,
                    "the proxy rejected user and password (status {:#04x})",
                    status.0
                )
            }
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Malformed(phase, error) => write!(f, "bad {phase}: {error}"),
            Self::Unsolicited(phase) => write!(f, "the proxy sent more than its {phase}"),
            Self::ClosedEarly(phase, 0) => write!(f, "closed before the {phase}"),
            Self::ClosedEarly(phase, 1) => write!(f, "closed after 1 byte of the {phase}"),
            Self::ClosedEarly(phase, bytes) => {
                write!(f, "closed after {bytes} bytes of the {phase}")
            }
        }
    }
}

impl Error for HandshakeError {}

/// The proxy's answer, its number in the form that its protocol's documents have.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socks5(code) => write!(f, "the proxy replied: {code} ({:#04x})", code.0),
            Self::Socks4(code) => write!(f, "the proxy replied: {code} ({})", code.0),
        }
    }
}

/// Whether the very first byte of the peer is the right one. Decided before anything else is looked at, so the
/// error has all that came with it.
fn check_first_byte(partial: &Partial, input: &[u8], expected: u8) -> Result<(), HandshakeError> {
    match input.first() {
        Some(&byte) if partial.len() == 0 && byte != expected => {
            Err(HandshakeError::NotSocks(FirstBytes::new(input)))
        }
        _ => Ok(()),
    }
}

/// Sends what the goal needs now that the proxy is content with us.
fn request(goal: &Goal, method: Method, out: &mut Vec<u8>) -> State {
    let (command, address, replies) = match goal {
        Goal::Greet => return State::Finished(Outcome::Greeted(method)),
        Goal::Connect(address) => (socks5::Command::Connect, address, Replies::Only),
        Goal::Bind(address) => (socks5::Command::Bind, address, Replies::FirstOfTwo),
        Goal::Associate(address) => (socks5::Command::Associate, address, Replies::Only),
    };
    let address = address.clone();
    socks5::Request { command, address }.encode(out);
    State::AwaitReply {
        version: Version::Socks5,
        replies,
    }
}

type Answer = Result<BoundAddress, Refusal>;

/// A refusal is complete with its code: the proxy closes, some without sending the address, others with an address
/// type that doesn't exist (RFC 1928 §6 asks for neither).
fn decode_socks5_reply(input: &[u8]) -> Result<Option<(Answer, usize)>, DecodeError> {
    if let [socks5::VERSION, code, ..] = *input
        && socks5::ReplyCode(code) != socks5::ReplyCode::SUCCEEDED
    {
        let refusal = Refusal::Socks5(socks5::ReplyCode(code));
        return Ok(Some((Err(refusal), 2)));
    }
    let decoded = socks5::Reply::decode(input)?;
    Ok(decoded.map(|(reply, length)| (Ok(reply.bound), length)))
}

/// The length of a reply that begins so; of one whose length is not known yet, the least that it can have.
fn socks5_reply_length(start: &[u8]) -> usize {
    match *start {
        [_, _, _, socks5::IPV4, ..] => 4 + 4 + 2,
        [_, _, _, socks5::IPV6, ..] => 4 + 16 + 2,
        [_, _, _, socks5::NAME, length, ..] => 4 + 1 + usize::from(length) + 2,
        _ => 4 + 1 + 2,
    }
}

fn decode_socks4_reply(input: &[u8]) -> Result<Option<(Answer, usize)>, DecodeError> {
    if let [socks4::REPLY_VERSION, code, ..] = *input
        && socks4::ReplyCode(code) != socks4::ReplyCode::GRANTED
    {
        let refusal = Refusal::Socks4(socks4::ReplyCode(code));
        return Ok(Some((Err(refusal), 2)));
    }
    let decoded = socks4::Reply::decode(input)?;
    Ok(decoded.map(|(reply, length)| (Ok(BoundAddress::Socket(reply.bound.into())), length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socks5::ReplyCode;

    const OK_REPLY: &[u8] = b"\x05\0\0\x01\xc0\0\x02\x01\x0f\xa0";
    const CONNECT: &[u8] = b"\x05\x01\0\x03\x0bexample.com\0\x50";
    const CREDENTIALS: &[u8] = b"\x01\x03ada\x04pass";

    fn target() -> Address {
        "example.com:80".parse().unwrap()
    }

    fn ada() -> Option<Credentials> {
        Some(Credentials::new("ada", "pass").unwrap())
    }

    fn bound() -> BoundAddress {
        BoundAddress::Socket("192.0.2.1:4000".parse().unwrap())
    }

    fn socks4(command: socks4::Command) -> Client {
        let address = "192.0.2.9:80".parse().unwrap();
        let user_id = socks4::UserId::default();
        Client::socks4(socks4::Request::socks4(command, address, user_id).unwrap())
    }

    /// A client that has been given these answers, one after the other.
    fn fed(mut client: Client, answers: &[&[u8]]) -> Client {
        let mut out = Vec::new();
        client.start(&mut out);
        for answer in answers {
            client.feed(answer, &mut out).unwrap();
        }
        client
    }

    fn connecting(answers: &[&[u8]]) -> Client {
        fed(Client::new(Goal::Connect(target()), None), answers)
    }

    fn failure(mut client: Client, answer: &[u8]) -> HandshakeError {
        let error = client.feed(answer, &mut Vec::new()).unwrap_err();
        assert_eq!(client.outcome(), None);
        assert_eq!(client.phase(), Phase::Finished);
        assert_eq!(client.closed(), error);
        assert_eq!(client.feed(&[], &mut Vec::new()), Err(error));
        assert_eq!(client.feed(OK_REPLY, &mut Vec::new()), Err(error));
        error
    }

    /// Feeds it no more than it wants, and gives what it left of `answers` when it was done.
    fn fed_as_wanted<'a>(client: &mut Client, mut answers: &'a [u8]) -> &'a [u8] {
        client.start(&mut Vec::new());
        while client.outcome().is_none() {
            let (now, later) = answers.split_at(client.wanted().min(answers.len()));
            assert_eq!(client.feed(now, &mut Vec::new()), Ok(now.len()));
            answers = later;
        }
        answers
    }

    #[test]
    fn what_is_wanted_is_never_from_behind_the_handshake() {
        for reply in [
            &b"\x05\0\0\x01\xc0\0\x02\x01\x0f\xa0"[..],
            b"\x05\0\0\x03\0\x0f\xa0",
            b"\x05\0\0\x03\x01a\x0f\xa0",
            b"\x05\0\0\x03\x05abcde\x0f\xa0",
            b"\x05\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0f\xa0",
        ] {
            let behind = [reply, b"payload"].concat();
            let mut client = connecting(&[&[5, 0]]);
            assert_eq!(fed_as_wanted(&mut client, &behind), b"payload");
            assert_eq!(client.wanted(), 0);

            let mut binding = fed(Client::new(Goal::Bind(target()), None), &[&[5, 0]]);
            let both = [reply, &behind].concat();
            assert_eq!(fed_as_wanted(&mut binding, &both), behind);
            assert_eq!(binding.wanted(), 7, "of the second reply");
        }
        let mut client = socks4(socks4::Command::Connect);
        let reply = b"\0\x5a\0\0\0\0\0\0payload";
        assert_eq!(fed_as_wanted(&mut client, reply), b"payload");
        let mut client = Client::new(Goal::Greet, ada());
        assert_eq!(fed_as_wanted(&mut client, b"\x05\x02\x01\0more"), b"more");
    }

    /// Each turn: what the proxy answers, and what the client must send after it.
    struct Exchange {
        client: Client,
        first: &'static [u8],
        turns: Vec<(&'static [u8], &'static [u8])>,
        outcome: Outcome,
    }

    fn exchanges() -> Vec<Exchange> {
        let done = Outcome::Done(bound());
        vec![
            Exchange {
                client: Client::new(Goal::Greet, None),
                first: &[5, 1, 0],
                turns: vec![(&[5, 0], &[])],
                outcome: Outcome::Greeted(Method::NONE),
            },
            Exchange {
                client: Client::new(Goal::Greet, ada()),
                first: &[5, 1, 2],
                turns: vec![(&[5, 2], CREDENTIALS), (&[1, 0], &[])],
                outcome: Outcome::Greeted(Method::USER_PASSWORD),
            },
            Exchange {
                client: Client::new(Goal::Greet, ada()).allow_no_authentication(),
                first: &[5, 2, 2, 0],
                turns: vec![(&[5, 0], &[])],
                outcome: Outcome::Greeted(Method::NONE),
            },
            Exchange {
                client: Client::new(Goal::Connect(target()), None),
                first: &[5, 1, 0],
                turns: vec![(&[5, 0], CONNECT), (OK_REPLY, &[])],
                outcome: done.clone(),
            },
            Exchange {
                client: Client::new(Goal::Connect(target()), ada()),
                first: &[5, 1, 2],
                turns: vec![(&[5, 2], CREDENTIALS), (&[1, 0], CONNECT), (OK_REPLY, &[])],
                outcome: done.clone(),
            },
            Exchange {
                client: Client::new(Goal::Associate("0.0.0.0:0".parse().unwrap()), None),
                first: &[5, 1, 0],
                turns: vec![(&[5, 0], &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]), (OK_REPLY, &[])],
                outcome: done.clone(),
            },
            Exchange {
                client: socks4(socks4::Command::Connect),
                first: &[4, 1, 0, 80, 192, 0, 2, 9, 0],
                turns: vec![(b"\0\x5a\x0f\xa0\xc0\0\x02\x01", &[])],
                outcome: done,
            },
        ]
    }

    #[test]
    fn whole_exchanges_at_every_split_and_with_data_behind() {
        for exchange in exchanges() {
            let longest = exchange.turns.iter().map(|turn| turn.0.len()).max();
            for split in 0..=longest.unwrap() {
                let mut client = exchange.client.clone();
                let mut out = Vec::new();
                client.start(&mut out);
                client.start(&mut out);
                assert_eq!(out, exchange.first);
                for (at, (answer, sends)) in exchange.turns.iter().enumerate() {
                    assert_eq!(client.outcome(), None);
                    let last = at + 1 == exchange.turns.len();
                    let behind: &[u8] = if last { b"payload" } else { b"" };
                    let bytes = [answer, behind].concat();
                    let (head, rest) = bytes.split_at(split.min(answer.len()));
                    out.clear();
                    assert_eq!(client.feed(head, &mut out), Ok(head.len()));
                    let taken = client.feed(rest, &mut out).unwrap();
                    assert_eq!(rest[taken..], *behind);
                    assert_eq!(out, *sends);
                }
                assert_eq!(client.outcome(), Some(&exchange.outcome));
                assert_eq!(client.feed(b"more", &mut out), Ok(0));
            }
        }
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        for exchange in exchanges() {
            let mut client = exchange.client;
            for (answer, sends) in exchange.turns {
                let mut out = Vec::new();
                client.start(&mut Vec::new());
                for byte in answer {
                    assert_eq!(client.feed(&[*byte], &mut out), Ok(1));
                }
                assert_eq!(out, sends);
            }
            assert_eq!(client.outcome(), Some(&exchange.outcome));
        }
    }

    #[test]
    fn bind_stops_at_both_replies_even_if_they_come_together() {
        let second = b"\x05\0\0\x01\xc0\0\x02\x07\0\x50data";
        let both = [OK_REPLY, second].concat();
        let mut client = fed(Client::new(Goal::Bind(target()), None), &[&[5, 0]]);
        let mut out = Vec::new();
        let taken = client.feed(&both, &mut out).unwrap();
        assert_eq!(taken, OK_REPLY.len());
        assert_eq!(client.outcome(), Some(&Outcome::Listening(bound())));
        assert_eq!(client.feed(&[], &mut out), Ok(0));
        assert_eq!(client.outcome(), Some(&Outcome::Listening(bound())));
        assert_eq!(
            client.closed(),
            HandshakeError::ClosedEarly(Phase::SecondReply, 0)
        );
        assert_eq!(client.feed(&both[taken..], &mut out), Ok(second.len() - 4));
        let peer = BoundAddress::Socket("192.0.2.7:80".parse().unwrap());
        assert_eq!(client.outcome(), Some(&Outcome::Accepted(peer)));
        assert_eq!(out, b"");
    }

    #[test]
    fn second_reply_may_be_a_refusal() {
        let listening = fed(
            Client::new(Goal::Bind(target()), None),
            &[&[5, 0], OK_REPLY],
        );
        let refusal = Refusal::Socks5(ReplyCode::TTL_EXPIRED);
        assert_eq!(
            failure(listening, &[5, 6]),
            HandshakeError::Refused(refusal)
        );

        let granted: &[u8] = &[0, 90, 0, 0, 0, 0, 0, 0];
        let listening = fed(socks4(socks4::Command::Bind), &[granted]);
        let refusal = Refusal::Socks4(socks4::ReplyCode::REJECTED);
        assert_eq!(
            failure(listening, &[0, 91]),
            HandshakeError::Refused(refusal)
        );
    }

    #[test]
    fn anything_but_socks_is_shown_as_it_came() {
        for (bytes, shown) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], "sent \"HTTP/1.1\""),
            (b"SSH-2.0\r\n", "sent \"SSH-2.0\\r\""),
            (b"H", "sent \"H\""),
            (&[4, 1], "sent 04 01"),
            (&[0x15, 3, 3, 0, 2, 2, 0x28], "sent 15 03 03 00 02 02 28"),
            (&[0], "sent 00"),
        ] {
            let error = failure(fed(Client::new(Goal::Greet, None), &[]), bytes);
            assert_eq!(error, HandshakeError::NotSocks(FirstBytes::new(bytes)));
            assert_eq!(error.to_string(), shown);
        }
        let error = failure(socks4(socks4::Command::Connect), b"\x05\xff");
        assert_eq!(error.to_string(), "sent 05 FF");
    }

    #[test]
    fn every_answer_to_the_greeting_is_told_apart() {
        let probe = || fed(Client::new(Goal::Greet, None), &[]);
        for byte in 1..=255 {
            let expected = match byte {
                2 => HandshakeError::AuthenticationRequired,
                0xff => HandshakeError::NoAcceptableMethod,
                _ => HandshakeError::MethodNotOffered(Method(byte)),
            };
            assert_eq!(failure(probe(), &[5, byte]), expected);
            assert_eq!(failure(fed(probe(), &[&[5]]), &[byte]), expected);
        }
    }

    #[test]
    fn proxy_cannot_skip_the_authentication() {
        let client = fed(Client::new(Goal::Connect(target()), ada()), &[]);
        assert_eq!(
            failure(client, &[5, 0]),
            HandshakeError::MethodNotOffered(Method::NONE)
        );
    }

    #[test]
    fn wrong_credentials_have_their_error() {
        let client = fed(Client::new(Goal::Connect(target()), ada()), &[&[5, 2]]);
        for status in [1, 2, 0xff] {
            let error = HandshakeError::CredentialsRejected(Status(status));
            assert_eq!(failure(client.clone(), &[1, status]), error);
        }
        let error = HandshakeError::Malformed(Phase::AuthStatus, DecodeError::SubVersion(5));
        assert_eq!(failure(client, &[5, 0]), error);
    }

    #[test]
    fn refusal_needs_no_more_than_its_code() {
        for code in 1..=255 {
            let error = HandshakeError::Refused(Refusal::Socks5(ReplyCode(code)));
            let whole = [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
            for reply in [&[5, code][..], &[5, code, 0, 0], &whole] {
                assert_eq!(failure(connecting(&[&[5, 0]]), reply), error);
            }
        }
        for code in (0..=255).filter(|&code| code != 90) {
            let error = HandshakeError::Refused(Refusal::Socks4(socks4::ReplyCode(code)));
            let client = fed(socks4(socks4::Command::Connect), &[]);
            assert_eq!(failure(client, &[0, code, 0, 0, 0, 0, 0, 0]), error);
        }
    }

    #[test]
    fn malformed_reply_has_its_error() {
        for (reply, error) in [
            (&[4, 0][..], DecodeError::Version(4)),
            (b"HTTP/1.1", DecodeError::Version(b'H')),
            (&[5, 0, 0, 2], DecodeError::AddressType(2)),
        ] {
            assert_eq!(
                failure(connecting(&[&[5, 0]]), reply),
                HandshakeError::Malformed(Phase::Reply, error)
            );
        }
    }

    #[test]
    fn reply_may_have_any_type_of_address() {
        let longest = [&[5, 0, 0, 3, 255][..], &[0; 257]].concat();
        for reply in [
            &[5, 0, 0, 3, 0, 0, 0][..],
            &[5, 0, 9, 3, 1, b'\n', 0, 0],
            &[&[5, 0, 0, 4][..], &[0; 18]].concat(),
            &longest,
        ] {
            let client = connecting(&[&[5, 0], reply]);
            assert!(matches!(client.outcome(), Some(Outcome::Done(_))));
        }
    }

    #[test]
    fn answer_before_the_question_is_an_error() {
        let early = [&[5, 0], OK_REPLY].concat();
        assert_eq!(
            failure(connecting(&[]), &early),
            HandshakeError::Unsolicited(Phase::Method)
        );
        let client = fed(Client::new(Goal::Connect(target()), ada()), &[&[5, 2]]);
        assert_eq!(
            failure(client, &[1, 0, 5, 0]),
            HandshakeError::Unsolicited(Phase::AuthStatus)
        );
    }

    #[test]
    fn close_tells_the_phase_and_what_had_come() {
        let with_ada =
            |answers: &[&[u8]]| fed(Client::new(Goal::Connect(target()), ada()), answers);
        for (client, phase, bytes) in [
            (connecting(&[]), Phase::Method, 0),
            (connecting(&[&[5]]), Phase::Method, 1),
            (connecting(&[&[5, 0]]), Phase::Reply, 0),
            (connecting(&[&[5, 0], &OK_REPLY[..9]]), Phase::Reply, 9),
            (with_ada(&[&[5, 2]]), Phase::AuthStatus, 0),
            (with_ada(&[&[5, 2], &[1]]), Phase::AuthStatus, 1),
            (
                fed(socks4(socks4::Command::Connect), &[&[0]]),
                Phase::Reply,
                1,
            ),
        ] {
            assert_eq!(client.closed(), HandshakeError::ClosedEarly(phase, bytes));
        }
        assert_eq!(
            connecting(&[&[5]]).closed().to_string(),
            "closed after 1 byte of the answer to the greeting"
        );
    }

    #[test]
    fn debug_hides_the_password() {
        let client = Client::new(
            Goal::Greet,
            Some(Credentials::new("ada", "secret").unwrap()),
        );
        assert!(!format!("{client:?} {:?}", fed(client.clone(), &[])).contains("secret"));
    }
}
