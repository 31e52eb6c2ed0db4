//! The asking side.
//!
//! ```text
//! start ─ request ─► AwaitAuthReply ─ success ──────────────────┬─► AwaitReply ─► Done
//!                          └─ method ─► Negotiating ─ negotiated ─► AwaitAuthReply   (BIND: Listening ─► Accepted,
//!                                                                                 with a backlog: Handle ─► Waiting …)
//! ```
//!
//! What to read: "Requests", "Authentication Replies", "Operation Replies" in the draft.

use std::error::Error;
use std::fmt;

use super::Incoming;
use crate::wire::FirstBytes;
use crate::wire::socks5::Method;
use crate::wire::socks6::{
    AuthReply, Authentication, Command, DecodeError, OpReply, Problem, Problems, Profile,
    ReplyCode, Request, SessionId, SessionVerdict, TokenVerdict,
};

/// The asking side of one connection.
#[derive(Clone)]
pub struct Client {
    profile: Profile,
    request: Request,
    state: State,
    incoming: Incoming,
    auth_reply: Option<AuthReply>,
    session_id: Option<SessionId>,
}

/// How far the handshake has got that ends, or pauses, it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The proxy wants this method, which was offered. Run it, then call [`Client::negotiated`].
    Negotiate(Method),
    /// NOOP, CONNECT or UDP ASSOCIATE succeeded.
    Done(OpReply),
    /// BIND: the proxy listens here. Goes on with the next [`Client::feed`].
    Listening(OpReply),
    /// BIND: this one has connected.
    Accepted(OpReply),
    /// BIND with a backlog: the proxy listens here for as long as this connection lives. Each peer is fetched by a BIND
    /// of its own in the same session, with the address of this reply.
    Handle(OpReply),
    /// BIND with a backlog, from a proxy that tells: this one has connected and can be fetched. Goes on with the next
    /// [`Client::feed`].
    Waiting(OpReply),
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its own start.
    Start,
    /// The authentication reply.
    AuthReply,
    /// The end of a method's exchange, which is the driver's.
    Negotiation,
    /// The operation reply.
    Reply,
    /// The second operation reply to BIND.
    SecondReply,
    /// Nothing.
    Finished,
}

/// Why there was no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The first byte of the first answer is not our version: this is no SOCKS 6 proxy, or one of another profile. A lone
    /// byte is a version mismatch reply.
    OtherVersion(FirstBytes),
    /// The session of the request is not known, or not any more. Forget it, and ask again with credentials.
    SessionInvalid,
    /// The token of the request was spent before, or is outside the window. Whether an earlier request with it was
    /// carried out is unknown.
    TokenRejected,
    /// The proxy rejected who we are, or wants none of the methods offered.
    AuthenticationFailed,
    /// The proxy wants a method that was not offered, or a second one.
    MethodNotOffered(Method),
    /// The proxy understood the request, but refuses it or failed.
    Refused(ReplyCode),
    /// An answer that can't be understood.
    Malformed(Phase, DecodeError),
    /// An answer that contradicts itself.
    Contradictory(Phase, Problem),
    /// The proxy closed while this was awaited, after so many bytes of it.
    ClosedEarly(Phase, usize),
}

#[derive(Clone)]
enum State {
    Start,
    AwaitAuthReply(Round),
    Negotiating(Outcome),
    AwaitReply(Replies),
    /// The next message, if any, is of this kind.
    Paused(Replies, Outcome),
    Finished(Outcome),
    Failed(ClientError),
}

/// Whether a method can still be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    First,
    Second,
}

/// Which operation reply is awaited.
#[derive(Clone, Copy)]
enum Replies {
    First,
    SecondOfBind,
    Notice,
}

impl Client {
    /// A client with this request. Unless the request advertises methods, payload may follow it at once; the declared
    /// initial data must.
    #[must_use]
    pub fn new(request: Request, profile: Profile) -> Self {
        Self {
            profile,
            request,
            state: State::Start,
            incoming: Incoming::default(),
            auth_reply: None,
            session_id: None,
        }
    }

    /// Appends the request to `out`. Calling it again does nothing.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if matches!(self.state, State::Start) {
            self.request.encode(&self.profile, out);
            self.state = State::AwaitAuthReply(Round::First);
        }
    }

    /// Whether undeclared payload may be sent right behind the request: "false start".
    #[must_use]
    pub fn allows_false_start(&self) -> bool {
        self.request.allows_false_start()
    }

    /// How many bytes of payload must follow the request, because it declares them.
    #[must_use]
    pub fn initial_data(&self) -> usize {
        self.request.initial_data()
    }

    /// Whether any payload may be sent now: from a successful authentication on, also before the operation reply, and
    /// before it as [`Client::allows_false_start`] says.
    #[must_use]
    pub fn may_send(&self) -> bool {
        if self.request.command != Command::CONNECT {
            return false;
        }
        match self.state {
            State::Start | State::Failed(_) => false,
            State::AwaitAuthReply(_) | State::Negotiating(_) => self.allows_false_start(),
            State::AwaitReply(_) | State::Paused(..) | State::Finished(_) => true,
        }
    }

    /// Takes what the proxy sent, and returns how many bytes of `input` it took. What it didn't take comes from behind
    /// the handshake. It stops at every [`Outcome`]; unless that is the last one, a later call goes on.
    ///
    /// # Errors
    ///
    /// The handshake has failed; later calls give the same error.
    pub fn feed(&mut self, input: &[u8]) -> Result<usize, ClientError> {
        if let State::Paused(replies, _) = self.state
            && !input.is_empty()
        {
            // An empty feed must not lose the outcome.
            self.state = State::AwaitReply(replies);
        }
        let mut rest = input;
        while !rest.is_empty() && self.awaits_proxy() {
            if let Err(error) = self.step(&mut rest) {
                self.incoming = Incoming::default();
                self.state = State::Failed(error);
            }
        }
        match self.state {
            State::Failed(error) => Err(error),
            _ => Ok(input.len() - rest.len()),
        }
    }

    /// The method that the proxy wanted has been run; now it says whether it is content.
    pub fn negotiated(&mut self) {
        if let State::Negotiating(_) = self.state {
            self.state = State::AwaitAuthReply(Round::Second);
        }
    }

    /// What came out, or `None` while the handshake runs and after it failed.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Negotiating(outcome) | State::Paused(_, outcome) | State::Finished(outcome) => {
                Some(outcome)
            }
            _ => None,
        }
    }

    /// The last authentication reply, also if it was a refusal: token window, session and token verdicts.
    #[must_use]
    pub const fn auth_reply(&self) -> Option<&AuthReply> {
        self.auth_reply.as_ref()
    }

    /// The id of the session that the proxy granted to this request, wherever it told it.
    #[must_use]
    pub const fn session_id(&self) -> Option<&SessionId> {
        self.session_id.as_ref()
    }

    /// How it is spoken.
    #[must_use]
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What is awaited.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Start => Phase::Start,
            State::AwaitAuthReply(_) => Phase::AuthReply,
            State::Negotiating(_) => Phase::Negotiation,
            State::AwaitReply(Replies::First) => Phase::Reply,
            State::AwaitReply(_) | State::Paused(..) => Phase::SecondReply,
            State::Finished(_) | State::Failed(_) => Phase::Finished,
        }
    }

    /// How many bytes may be read now without taking one from behind the handshake; 0 when nothing is awaited.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match self.state {
            State::AwaitAuthReply(_) => self.incoming.wanted(SHORTEST_AUTH_REPLY),
            State::AwaitReply(_) | State::Paused(..) => self.incoming.wanted(SHORTEST_OP_REPLY),
            _ => 0,
        }
    }

    /// The error if the proxy closes now. If the handshake has failed already, that failure.
    #[must_use]
    pub fn closed(&self) -> ClientError {
        match self.state {
            State::Failed(error) => error,
            _ => ClientError::ClosedEarly(self.phase(), self.incoming.len()),
        }
    }

    const fn awaits_proxy(&self) -> bool {
        matches!(self.state, State::AwaitAuthReply(_) | State::AwaitReply(_))
    }

    /// Takes at most one message; all of the input if it has none.
    fn step(&mut self, input: &mut &[u8]) -> Result<(), ClientError> {
        let phase = self.phase();
        let profile = self.profile;
        let malformed = |error| ClientError::Malformed(phase, error);
        match self.state {
            State::AwaitAuthReply(round) => {
                if let Some(&version) = input.first()
                    && self.incoming.len() == 0
                    && round == Round::First
                    && version != profile.version
                {
                    return Err(ClientError::OtherVersion(FirstBytes::new(input)));
                }
                let decode = |bytes: &[u8]| AuthReply::decode(bytes, &profile);
                let Some((reply, problems)) =
                    self.incoming.take(input, decode).map_err(malformed)?
                else {
                    return Ok(());
                };
                check(phase, &problems)?;
                self.authenticated(reply, round)
            }
            State::AwaitReply(replies) => {
                let decode = |bytes: &[u8]| OpReply::decode(bytes, &profile);
                let Some((reply, problems)) =
                    self.incoming.take(input, decode).map_err(malformed)?
                else {
                    return Ok(());
                };
                check(phase, &problems)?;
                self.replied(reply, replies)
            }
            _ => Ok(()),
        }
    }

    fn authenticated(&mut self, reply: AuthReply, round: Round) -> Result<(), ClientError> {
        let reply = self.auth_reply.insert(reply);
        let options = &reply.options;
        match reply.authentication() {
            Authentication::Succeeded => {
                self.session_id.clone_from(&options.session_id);
                self.state = State::AwaitReply(Replies::First);
                Ok(())
            }
            Authentication::Negotiate(method) => {
                let offered = self.request.options.methods;
                let offered = offered.is_some_and(|offered| offered.methods.contains(method));
                if !offered || round == Round::Second {
                    return Err(ClientError::MethodNotOffered(method));
                }
                self.state = State::Negotiating(Outcome::Negotiate(method));
                Ok(())
            }
            Authentication::Failed => Err(match (options.session, options.token) {
                (Some(SessionVerdict::Invalid), _) => ClientError::SessionInvalid,
                (_, Some(TokenVerdict::Rejected)) => ClientError::TokenRejected,
                _ => ClientError::AuthenticationFailed,
            }),
        }
    }

    fn replied(&mut self, reply: OpReply, replies: Replies) -> Result<(), ClientError> {
        if reply.code != ReplyCode::SUCCEEDED {
            return Err(ClientError::Refused(reply.code));
        }
        if self.session_id.is_none() {
            self.session_id.clone_from(&reply.options.session_id);
        }
        let backlog = reply
            .options
            .stack
            .backlog
            .is_some_and(|granted| granted > 0);
        self.state = match (replies, self.request.command) {
            (Replies::First, Command::BIND) if backlog => {
                State::Paused(Replies::Notice, Outcome::Handle(reply))
            }
            (Replies::First, Command::BIND) => {
                State::Paused(Replies::SecondOfBind, Outcome::Listening(reply))
            }
            (Replies::First, _) => State::Finished(Outcome::Done(reply)),
            (Replies::SecondOfBind, _) => State::Finished(Outcome::Accepted(reply)),
            (Replies::Notice, _) => State::Paused(Replies::Notice, Outcome::Waiting(reply)),
        };
        Ok(())
    }
}

impl ClientError {
    /// Whether the proxy may be one of another SOCKS version: nothing but the version was looked at, so it did nothing
    /// of what was asked.
    #[must_use]
    pub const fn is_version_mismatch(&self) -> bool {
        matches!(self, Self::OtherVersion(_))
    }
}

/// Without the bytes of an incomplete reply, which may be a session's id.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("profile", &format_args!("{}", self.profile))
            .field("request", &self.request)
            .field("phase", &self.phase())
            .field("kept", &self.incoming.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::AuthReply => "authentication reply",
            Self::Negotiation => "authentication method",
            Self::Reply => "operation reply",
            Self::SecondReply => "second operation reply",
            Self::Finished => "end",
        })
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherVersion(first) => write!(f, "sent {first}"),
            Self::SessionInvalid => write!(f, "the proxy does not know the session"),
            Self::TokenRejected => write!(f, "the proxy rejected the token"),
            Self::AuthenticationFailed => write!(f, "the proxy rejected the authentication"),
            Self::MethodNotOffered(method) => write!(
                f,
                "the proxy chose what was not offered to it ({method}, {:#04x})",
                method.0
            ),
            Self::Refused(code) => write!(f, "the proxy replied: {code} ({:#04x})", code.0),
            Self::Malformed(phase, error) => write!(f, "bad {phase}: {error}"),
            Self::Contradictory(phase, problem) => {
                write!(f, "contradictory {phase}: {problem}")
            }
            Self::ClosedEarly(phase, 0) => write!(f, "closed before the {phase}"),
            Self::ClosedEarly(phase, 1) => write!(f, "closed after 1 byte of the {phase}"),
            Self::ClosedEarly(phase, bytes) => {
                write!(f, "closed after {bytes} bytes of the {phase}")
            }
        }
    }
}

impl Error for ClientError {}

fn check(phase: Phase, problems: &Problems) -> Result<(), ClientError> {
    match problems.grave() {
        Some(problem) => Err(ClientError::Contradictory(phase, problem)),
        None => Ok(()),
    }
}

/// Without options.
const SHORTEST_AUTH_REPLY: usize = 4;
/// With an IPv4 address and no options.
const SHORTEST_OP_REPLY: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socks6::{MethodAdvertisement, MethodSet};

    const ACCEPTED: [u8; 4] = [6, 0, 0, 0];
    const REPLY: [u8; 12] = [6, 0, 0, 0, 0x0f, 0xa0, 0, 1, 192, 0, 2, 1];

    fn request(command: Command) -> Request {
        Request::new(command, "192.0.2.7:80".parse().unwrap())
    }

    fn started(request: Request) -> Client {
        let mut client = Client::new(request, Profile::DRAFT_12);
        let mut out = Vec::new();
        client.start(&mut out);
        assert!(out.len() >= 12);
        client.start(&mut Vec::new());
        client
    }

    fn failed(command: Command, answer: &[u8]) -> ClientError {
        let mut client = started(request(command));
        let error = client.feed(answer).unwrap_err();
        assert_eq!(client.feed(b"more"), Err(error));
        assert_eq!(client.closed(), error);
        error
    }

    #[test]
    fn connect_succeeds_in_any_portions_and_leaves_payload() {
        let answer = [&ACCEPTED[..], &REPLY, b"payload"].concat();
        for portion in 1..answer.len() {
            let mut client = started(request(Command::CONNECT));
            let mut taken = 0;
            for part in answer.chunks(portion) {
                taken += client.feed(part).unwrap();
            }
            assert_eq!(taken, 16);
            let Some(Outcome::Done(reply)) = client.outcome() else {
                panic!("{:?}", client.outcome());
            };
            assert_eq!(reply.bound.port(), 4000);
        }
        let mut client = started(request(Command::CONNECT));
        let mut read = 0;
        while client.wanted() > 0 {
            let portion = &answer[read..read + client.wanted()];
            assert_eq!(client.feed(portion), Ok(portion.len()));
            read += portion.len();
        }
        assert_eq!(read, 16);
    }

    #[test]
    fn payload_may_go_when_the_proxy_cannot_mistake_it() {
        let mut client = Client::new(request(Command::CONNECT), Profile::DRAFT_12);
        assert!(!client.may_send());
        client.start(&mut Vec::new());
        assert!(client.may_send() && client.allows_false_start());

        let mut offering = request(Command::CONNECT);
        offering.options.methods = Some(MethodAdvertisement {
            initial_data: 9,
            methods: MethodSet::new([Method(0xaa)]),
        });
        let mut client = started(offering);
        assert_eq!(client.initial_data(), 9);
        assert!(!client.may_send());
        client.feed(&ACCEPTED).unwrap();
        assert!(client.may_send());
        assert!(!started(request(Command::BIND)).may_send());
    }

    #[test]
    fn method_that_was_offered_is_run_once() {
        const WANTED: [u8; 12] = [6, 1, 0, 8, 0, 3, 0, 8, 0xaa, 0, 0, 0];
        let not_offered = ClientError::MethodNotOffered(Method(0xaa));
        assert_eq!(failed(Command::CONNECT, &WANTED), not_offered);

        let mut offering = request(Command::CONNECT);
        offering.options.methods = Some(MethodAdvertisement {
            initial_data: 0,
            methods: MethodSet::new([Method(0xaa)]),
        });
        let mut client = started(offering.clone());
        let input = [&WANTED[..], b"method"].concat();
        assert_eq!(client.feed(&input), Ok(12));
        assert_eq!(client.outcome(), Some(&Outcome::Negotiate(Method(0xaa))));
        assert_eq!(client.feed(b"method"), Ok(0));
        client.negotiated();
        client.feed(&ACCEPTED).unwrap();
        client.feed(&REPLY).unwrap();
        assert!(matches!(client.outcome(), Some(Outcome::Done(_))));

        let mut client = started(offering);
        client.feed(&WANTED).unwrap();
        client.negotiated();
        assert_eq!(client.feed(&WANTED), Err(not_offered));
    }

    #[test]
    fn bind_pauses_between_its_replies() {
        let mut client = started(request(Command::BIND));
        let input = [&ACCEPTED[..], &REPLY, &REPLY, b"x"].concat();
        assert_eq!(client.feed(&input), Ok(16));
        assert!(matches!(client.outcome(), Some(Outcome::Listening(_))));
        assert_eq!(client.feed(&[]), Ok(0));
        assert!(matches!(client.outcome(), Some(Outcome::Listening(_))));
        assert_eq!(client.feed(&input[16..]), Ok(12));
        assert!(matches!(client.outcome(), Some(Outcome::Accepted(_))));
    }

    #[test]
    fn backlog_makes_a_handle_that_may_tell_of_peers() {
        let granted = b"\x06\0\0\x08\x0f\xa0\0\x01\xc0\0\x02\x01\0\x01\0\x08\x84\x03\0\x05";
        let mut client = started(request(Command::BIND));
        client.feed(&ACCEPTED).unwrap();
        client.feed(granted).unwrap();
        assert!(matches!(client.outcome(), Some(Outcome::Handle(_))));
        for _ in 0..3 {
            client.feed(&REPLY).unwrap();
            assert!(matches!(client.outcome(), Some(Outcome::Waiting(_))));
        }
    }

    #[test]
    fn session_id_is_taken_from_either_reply() {
        let in_auth = b"\x06\0\0\x08\0\x06\0\x08abcd";
        let in_op = b"\x06\0\0\x08\x0f\xa0\0\x01\xc0\0\x02\x01\0\x06\0\x08abcd";
        for (auth, op) in [
            (&in_auth[..], &REPLY[..]),
            (&ACCEPTED, in_op),
            (in_auth, in_op),
        ] {
            let mut client = started(request(Command::NOOP));
            client.feed(&[auth, op].concat()).unwrap();
            assert_eq!(
                client.session_id().map(SessionId::as_bytes),
                Some(&b"abcd"[..])
            );
        }
    }

    #[test]
    fn refusals_say_what_was_refused() {
        for (answer, error) in [
            (&[6, 1, 0, 0][..], ClientError::AuthenticationFailed),
            (b"\x06\x01\0\x04\0\x09\0\x04", ClientError::SessionInvalid),
            (
                b"\x06\x01\0\x08\0\x08\0\x04\0\x0f\0\x04",
                ClientError::TokenRejected,
            ),
            (
                b"\x06\x01\0\x08\0\x03\0\x08\xff\0\0\0",
                ClientError::AuthenticationFailed,
            ),
            (
                b"\x06\0\0\0\x06\x05\0\0\0\0\0\x01\0\0\0\0",
                ClientError::Refused(ReplyCode::CONNECTION_REFUSED),
            ),
            (
                b"\x05\xff",
                ClientError::OtherVersion(FirstBytes::new(b"\x05\xff")),
            ),
        ] {
            let got = failed(Command::CONNECT, answer);
            assert_eq!(got, error);
            assert_eq!(got.is_version_mismatch(), answer[0] == 5);
        }
        let contradiction = b"\x06\0\0\x08\0\x08\0\x04\0\x09\0\x04";
        assert!(matches!(
            failed(Command::CONNECT, contradiction),
            ClientError::Contradictory(Phase::AuthReply, _)
        ));
        assert!(matches!(
            failed(Command::CONNECT, &[6, 0, 0xff, 0xff]),
            ClientError::Malformed(Phase::AuthReply, _)
        ));
    }

    #[test]
    fn proxy_that_closes_is_told_with_what_was_awaited() {
        let mut client = started(request(Command::CONNECT));
        let closed = ClientError::ClosedEarly;
        assert_eq!(client.closed(), closed(Phase::AuthReply, 0));
        client.feed(&[6]).unwrap();
        assert_eq!(client.closed(), closed(Phase::AuthReply, 1));
        client.feed(&[0, 0, 0, 6, 0]).unwrap();
        assert_eq!(client.closed(), closed(Phase::Reply, 2));
    }
}
