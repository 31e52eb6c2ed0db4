//! The answering side.
//!
//! ```text
//!                            ┌─ accept ──────────────────────────────┐
//! AwaitRequest ─► Judging ───┼─ negotiate ─► Negotiating ── accept ──┴─► Requested ─ reply ─► Finished
//!      │             │       └─ reject ─────────┐  └─ reject ─┐            (BIND: Listening ─ reply ─┘
//!      └─ error ─► Failed ◄─────────────────────┴─────────────┘             or, with a backlog, Handle)
//! ```
//!
//! The machine stops for its driver with the request. The driver looks at session, token and credentials, and says so
//! ([`Server::accept`], [`Server::reject`], [`Server::negotiate`]); then it does what was asked, and says how it went
//! ([`Server::reply`]). All answers are only appended, so the two replies can go out in one packet.
//!
//! What to read: "Requests", "Authentication Replies", "Operation Replies" in the draft.

use std::error::Error;
use std::fmt;
use std::mem;

use super::Incoming;
use crate::wire::BoundAddress;
use crate::wire::socks5::Method;
use crate::wire::socks6::{
    Answer, AuthReply, AuthReplyOptions, AuthReplyType, BacklogNotice, Command, DecodeError,
    OpReply, OpReplyOptions, Problem, Problems, Profile, ReplyCode, Request, SessionId,
    SessionIdPlacement, VersionMismatch,
};
use crate::wire::user_password::Status;

/// The answering side of one connection.
#[derive(Clone)]
pub struct Server {
    profile: Profile,
    state: State,
    incoming: Incoming,
    problems: Problems,
    /// Bytes of payload that come before anything of a method.
    initial_data: usize,
    /// Of a session that was granted, until the operation reply has told it.
    session_id: Option<SessionId>,
}

/// What a server waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The request.
    Request,
    /// The driver's verdict on the client.
    Verdict,
    /// The end of a method's exchange, which is the driver's.
    Negotiation,
    /// The driver's reply.
    Reply,
    /// Nothing.
    Finished,
}

/// Why a client can't be served. All of these end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// A request that can't be understood. What [`DecodeError::answer`] says is sent.
    Malformed(DecodeError),
    /// Options that contradict each other in a way that must not be ignored. A failed authentication is sent.
    Contradictory(Problem),
    /// The driver rejected the client. A failed authentication is sent.
    Rejected,
}

#[derive(Clone)]
enum State {
    AwaitRequest,
    Judging(Box<Request>),
    Negotiating(Box<Request>),
    Requested(Box<Request>),
    Listening,
    Handle,
    Finished,
    Failed(ServerError),
}

impl Server {
    /// The longest message: more is never kept of a client that isn't done.
    pub const MAX_MESSAGE: usize = Request::MAX_LEN;

    /// A server for one connection. Where several profiles are spoken, the first byte tells which.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            state: State::AwaitRequest,
            incoming: Incoming::default(),
            problems: Problems::default(),
            initial_data: 0,
            session_id: None,
        }
    }

    /// Takes what the client sent, appends what has to be sent back, and returns how many bytes of `input` it took: all
    /// that belongs to the request. What lies behind is the client's payload, except in a negotiation: see
    /// [`Server::take_initial_data`].
    ///
    /// # Errors
    ///
    /// The handshake has failed. Send `out`, then close. Later calls give the same error and append nothing.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, ServerError> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        if !matches!(self.state, State::AwaitRequest) {
            return Ok(0);
        }
        let mut rest = input;
        let decode = |bytes: &[u8]| Request::decode(bytes, &self.profile);
        match self.incoming.take(&mut rest, decode) {
            Ok(None) => (),
            Ok(Some((request, problems))) => {
                if let Some(problem) = problems.grave() {
                    self.write_failure(AuthReplyOptions::default(), out);
                    return Err(self.fail(ServerError::Contradictory(problem)));
                }
                self.initial_data = request.initial_data();
                self.problems = problems;
                self.state = State::Judging(Box::new(request));
            }
            Err(error) => {
                self.answer(error, out);
                return Err(self.fail(ServerError::Malformed(error)));
            }
        }
        Ok(input.len() - rest.len())
    }

    /// The request, from when it is there until it is replied to.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        match &self.state {
            State::Judging(request) | State::Negotiating(request) | State::Requested(request) => {
                Some(request)
            }
            _ => None,
        }
    }

    /// What was left out of the request.
    #[must_use]
    pub const fn problems(&self) -> &Problems {
        &self.problems
    }

    /// What is awaited.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::AwaitRequest => Phase::Request,
            State::Judging(_) => Phase::Verdict,
            State::Negotiating(_) => Phase::Negotiation,
            State::Requested(_) | State::Listening => Phase::Reply,
            State::Handle | State::Finished | State::Failed(_) => Phase::Finished,
        }
    }

    /// How many bytes may be read now without taking one from behind the request; 0 when none is awaited.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match self.state {
            State::AwaitRequest => self.incoming.wanted(SHORTEST_REQUEST),
            _ => 0,
        }
    }

    /// How many of the next `available` bytes are initial data, which counts them as taken. During a negotiation these
    /// come first, and are the beginning of the payload; only what follows them is the method's.
    pub fn take_initial_data(&mut self, available: usize) -> usize {
        let taken = self.initial_data.min(available);
        self.initial_data -= taken;
        taken
    }

    /// How many bytes of initial data were not taken yet.
    #[must_use]
    pub const fn initial_data_left(&self) -> usize {
        self.initial_data
    }

    /// Whether another method can be negotiated: none was yet, and the client is ready for this one.
    #[must_use]
    pub fn may_negotiate(&self, method: Method) -> bool {
        let State::Judging(request) = &self.state else {
            return false;
        };
        let methods = request.options.methods;
        methods.is_some_and(|advertised| advertised.methods.contains(method))
    }

    /// The client may go on. `options` say what became of session, token and window; the session's id goes where the
    /// profile wants it, and a client that sent a password learns that it was right, unless it belongs to a session,
    /// where no password is looked at. Does nothing if no verdict is due.
    pub fn accept(&mut self, mut options: AuthReplyOptions, out: &mut Vec<u8>) {
        let request = match mem::replace(&mut self.state, State::Finished) {
            State::Judging(request) | State::Negotiating(request) => request,
            other => {
                self.state = other;
                return;
            }
        };
        if request.options.password.is_some() && options.session.is_none() {
            options.password.get_or_insert(Status::ACCEPTED);
        }
        match self.profile.session_id {
            SessionIdPlacement::AuthReply => (),
            SessionIdPlacement::OpReply => self.session_id = options.session_id.take(),
            SessionIdPlacement::Both => self.session_id = options.session_id.clone(),
        }
        // Next to success, a method would be of no interest.
        options.selection = None;
        let kind = AuthReplyType::SUCCESS;
        AuthReply { kind, options }.encode(&self.profile, out);
        self.state = State::Requested(request);
    }

    /// The client may not go on: send `out`, then close. A client that sent a password learns that it was wrong, unless
    /// `options` say that session or token were to blame. Does nothing if no verdict is due.
    pub fn reject(&mut self, mut options: AuthReplyOptions, out: &mut Vec<u8>) {
        let (State::Judging(request) | State::Negotiating(request)) = &self.state else {
            return;
        };
        let blamed = options.session.is_some() || options.token.is_some();
        if request.options.password.is_some() && !blamed {
            options.password.get_or_insert(Status::REJECTED);
        }
        options.session_id = None;
        options.selection = None;
        self.write_failure(options, out);
        self.fail(ServerError::Rejected);
    }

    /// The client shall run this method now, which the driver does with the bytes that follow the initial data; then
    /// [`Server::accept`] or [`Server::reject`]. Returns whether it was asked to: not for a method that
    /// [`Server::may_negotiate`] denies.
    pub fn negotiate(&mut self, method: Method, out: &mut Vec<u8>) -> bool {
        if !self.may_negotiate(method) {
            return false;
        }
        let State::Judging(request) = &self.state else {
            return false;
        };
        let request = request.clone();
        let options = AuthReplyOptions {
            selection: Some(method),
            ..AuthReplyOptions::default()
        };
        self.write_failure(options, out);
        self.state = State::Negotiating(request);
        true
    }

    /// None of the client's methods will do: send `out`, then close. Does nothing if no verdict is due.
    pub fn refuse_methods(&mut self, out: &mut Vec<u8>) {
        if let State::Judging(_) = self.state {
            let options = AuthReplyOptions {
                selection: Some(Method::NONE_ACCEPTABLE),
                ..AuthReplyOptions::default()
            };
            self.write_failure(options, out);
            self.fail(ServerError::Rejected);
        }
    }

    /// Appends the reply. For BIND a success is followed by a second reply with the address that connected, unless a
    /// backlog was granted in `options`. Does nothing if no reply is due.
    pub fn reply(
        &mut self,
        code: ReplyCode,
        bound: BoundAddress,
        mut options: OpReplyOptions,
        out: &mut Vec<u8>,
    ) {
        let bind = match &self.state {
            State::Requested(request) => request.command == Command::BIND,
            State::Listening => false,
            _ => return,
        };
        let backlog = options.stack.backlog.is_some_and(|backlog| backlog > 0);
        if options.session_id.is_none() {
            options.session_id = self.session_id.take();
        }
        let reply = OpReply {
            code,
            bound,
            options,
        };
        reply.encode(&self.profile, out);
        self.state = match (bind && code == ReplyCode::SUCCEEDED, backlog) {
            (true, true) => State::Handle,
            (true, false) => State::Listening,
            (false, _) => State::Finished,
        };
    }

    /// Appends a reply that has no address. Does nothing if no reply is due.
    pub fn refuse(&mut self, code: ReplyCode, out: &mut Vec<u8>) {
        let options = OpReplyOptions::default();
        self.reply(code, BoundAddress::UNSPECIFIED, options, out);
    }

    /// Tells on the first connection of a backlog that `peer` has connected. Appends nothing unless the profile has such
    /// notices and a backlog was granted.
    pub fn notify(&mut self, peer: BoundAddress, out: &mut Vec<u8>) {
        if matches!(self.state, State::Handle) && self.profile.backlog == BacklogNotice::Push {
            OpReply::new(ReplyCode::SUCCEEDED, peer).encode(&self.profile, out);
        }
    }

    fn write_failure(&self, options: AuthReplyOptions, out: &mut Vec<u8>) {
        let kind = AuthReplyType::FAILURE;
        AuthReply { kind, options }.encode(&self.profile, out);
    }

    fn answer(&self, error: DecodeError, out: &mut Vec<u8>) {
        match error.answer() {
            Answer::VersionMismatch => VersionMismatch::of(&self.profile).encode(out),
            Answer::FailAuthentication => self.write_failure(AuthReplyOptions::default(), out),
            Answer::AddressTypeNotSupported => {
                self.write_failure(AuthReplyOptions::default(), out);
                let code = ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED;
                OpReply::new(code, BoundAddress::UNSPECIFIED).encode(&self.profile, out);
            }
            Answer::Close => (),
        }
    }

    fn fail(&mut self, error: ServerError) -> ServerError {
        self.incoming = Incoming::default();
        self.state = State::Failed(error);
        error
    }
}

/// Without the bytes of an incomplete request, which may be a password's.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("profile", &format_args!("{}", self.profile))
            .field("phase", &self.phase())
            .field("kept", &self.incoming.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Request => "request",
            Self::Verdict => "verdict on the client",
            Self::Negotiation => "authentication method",
            Self::Reply => "reply",
            Self::Finished => "end",
        })
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "bad request: {error}"),
            Self::Contradictory(problem) => write!(f, "contradictory request: {problem}"),
            Self::Rejected => write!(f, "authentication failed"),
        }
    }
}

impl Error for ServerError {}

/// With an IPv4 address and no options.
const SHORTEST_REQUEST: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socks6::{SessionVerdict, StackOptions};

    const NOOP: [u8; 12] = [6, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    const CONNECT: [u8; 12] = [6, 1, 0, 0, 0, 80, 0, 1, 192, 0, 2, 7];

    fn bound() -> BoundAddress {
        BoundAddress::Socket("192.0.2.1:4000".parse().unwrap())
    }

    fn with_options(command: u8, options: &[u8]) -> Vec<u8> {
        let length = u8::try_from(options.len()).unwrap();
        [&[6, command, 0, length, 0, 80, 0, 1, 192, 0, 2, 7], options].concat()
    }

    fn fed(input: &[u8]) -> Server {
        let mut server = Server::new(Profile::DRAFT_12);
        let mut out = Vec::new();
        assert_eq!(server.feed(input, &mut out), Ok(input.len()));
        assert!(out.is_empty());
        assert_eq!(server.phase(), Phase::Verdict);
        server
    }

    fn failed(input: &[u8]) -> (ServerError, Vec<u8>) {
        let mut server = Server::new(Profile::DRAFT_12);
        let mut out = Vec::new();
        let error = server.feed(input, &mut out).unwrap_err();
        // Said once, and nothing more is taken.
        let mut again = Vec::new();
        assert_eq!(server.feed(input, &mut again), Err(error));
        assert!(again.is_empty());
        (error, out)
    }

    #[test]
    fn both_replies_fit_into_one_packet_and_payload_is_left() {
        for portion in [1, 5, 100] {
            let mut server = Server::new(Profile::DRAFT_12);
            let mut out = Vec::new();
            let input = [&CONNECT[..], b"payload"].concat();
            let mut taken = 0;
            for part in input.chunks(portion) {
                taken += server.feed(part, &mut out).unwrap();
            }
            assert_eq!(taken, CONNECT.len());
            server.accept(AuthReplyOptions::default(), &mut out);
            let options = OpReplyOptions::default();
            server.reply(ReplyCode::SUCCEEDED, bound(), options, &mut out);
            let reply = [6, 0, 0, 0, 0x0f, 0xa0, 0, 1, 192, 0, 2, 1];
            assert_eq!(out, [&[6, 0, 0, 0], &reply[..]].concat());
            assert_eq!(server.phase(), Phase::Finished);
        }
    }

    #[test]
    fn as_many_bytes_as_wanted_are_the_request_and_no_more() {
        let input = [&with_options(1, &[0, 5, 0, 4]), &b"payload"[..]].concat();
        let mut server = Server::new(Profile::DRAFT_12);
        let mut read = 0;
        while server.wanted() > 0 {
            let portion = &input[read..read + server.wanted()];
            assert_eq!(server.feed(portion, &mut Vec::new()), Ok(portion.len()));
            read += portion.len();
        }
        assert_eq!(read, 16);
        assert_eq!(server.phase(), Phase::Verdict);
    }

    #[test]
    fn errors_get_the_answer_that_the_protocol_has() {
        let (_, out) = failed(&[5]);
        assert_eq!(out, [6]);
        let (_, out) = failed(&[6, 1, 0, 0, 0, 80, 0, 2]);
        assert_eq!(
            out,
            [&[6, 1, 0, 0][..], &[6, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]].concat()
        );
        let (_, out) = failed(&with_options(1, &[0, 5, 0, 0]));
        assert_eq!(out, [6, 1, 0, 0]);
        let (_, out) = failed(&[6, 1, 0xff, 0xff]);
        assert!(out.is_empty());
        let two_ids = [0, 6, 0, 8, 1, 2, 3, 4, 0, 6, 0, 8, 1, 2, 3, 5];
        let (error, out) = failed(&with_options(1, &two_ids));
        assert!(matches!(error, ServerError::Contradictory(problem) if problem.at == 8));
        assert_eq!(out, [6, 1, 0, 0]);
    }

    #[test]
    fn password_is_answered_unless_something_else_is_to_blame() {
        let password = with_options(0, b"\0\x04\0\x0c\x02\x01\x01a\x01b\0\0");
        let options = AuthReplyOptions::default;
        let invalid = AuthReplyOptions {
            session: Some(SessionVerdict::Invalid),
            ..options()
        };
        let mut out = Vec::new();
        fed(&password).accept(options(), &mut out);
        assert_eq!(out, b"\x06\0\0\x08\0\x04\0\x08\x02\x01\0\0");
        out.clear();
        fed(&password).reject(options(), &mut out);
        assert_eq!(out, b"\x06\x01\0\x08\0\x04\0\x08\x02\x01\x01\0");
        out.clear();
        fed(&password).reject(invalid, &mut out);
        assert_eq!(out, b"\x06\x01\0\x04\0\x09\0\x04");
        out.clear();
        fed(&NOOP).reject(options(), &mut out);
        assert_eq!(out, [6, 1, 0, 0]);
    }

    #[test]
    fn method_runs_between_initial_data_and_the_second_reply() {
        // Three bytes of initial data; methods 5 and 0xaa.
        let request = with_options(1, &[0, 2, 0, 8, 0, 3, 5, 0xaa]);
        let mut server = fed(&request);
        let mut out = Vec::new();
        assert!(!server.negotiate(Method::USER_PASSWORD, &mut out));
        assert!(out.is_empty());
        assert!(server.negotiate(Method(0xaa), &mut out));
        assert_eq!(out, [6, 1, 0, 8, 0, 3, 0, 8, 0xaa, 0, 0, 0]);
        assert_eq!(server.phase(), Phase::Negotiation);
        assert_eq!(server.take_initial_data(2), 2);
        assert_eq!(server.take_initial_data(10), 1);
        assert_eq!(server.take_initial_data(10), 0);
        assert_eq!(server.feed(b"method", &mut out), Ok(0));
        // Not another one.
        assert!(!server.negotiate(Method(5), &mut out));
        out.clear();
        server.accept(AuthReplyOptions::default(), &mut out);
        assert_eq!(out, [6, 0, 0, 0]);
        assert_eq!(server.phase(), Phase::Reply);

        let mut server = fed(&request);
        out.clear();
        server.refuse_methods(&mut out);
        assert_eq!(out, [6, 1, 0, 8, 0, 3, 0, 8, 0xff, 0, 0, 0]);
        assert_eq!(server.feed(b"x", &mut out), Err(ServerError::Rejected));
    }

    #[test]
    fn session_id_goes_where_the_profile_wants_it() {
        let id = SessionId::new(&[1, 2, 3, 4]).unwrap();
        for (placement, in_auth, in_op) in [
            (SessionIdPlacement::AuthReply, true, false),
            (SessionIdPlacement::OpReply, false, true),
            (SessionIdPlacement::Both, true, true),
        ] {
            let mut server = Server::new(Profile {
                session_id: placement,
                ..Profile::DRAFT_12
            });
            let mut out = Vec::new();
            let request = with_options(0, &[0, 5, 0, 4]);
            server.feed(&request, &mut out).unwrap();
            let options = AuthReplyOptions {
                session_id: Some(id.clone()),
                ..AuthReplyOptions::default()
            };
            server.accept(options, &mut out);
            assert_eq!(out.len(), if in_auth { 12 } else { 4 });
            out.clear();
            server.refuse(ReplyCode::SUCCEEDED, &mut out);
            assert_eq!(out.len(), if in_op { 20 } else { 12 });
        }
    }

    #[test]
    fn bind_has_two_replies_and_a_backlog_one_with_notices() {
        let bind = with_options(2, &[]);
        let mut server = fed(&bind);
        let mut out = Vec::new();
        server.accept(AuthReplyOptions::default(), &mut out);
        for phase in [Phase::Reply, Phase::Finished] {
            out.clear();
            let options = OpReplyOptions::default();
            server.reply(ReplyCode::SUCCEEDED, bound(), options, &mut out);
            assert_eq!((out.len(), server.phase()), (12, phase));
        }

        let granted = OpReplyOptions {
            stack: StackOptions {
                backlog: Some(5),
                ..StackOptions::default()
            },
            ..OpReplyOptions::default()
        };
        for (notice, told) in [(BacklogNotice::None, 0), (BacklogNotice::Push, 12)] {
            let mut server = Server::new(Profile {
                backlog: notice,
                ..Profile::DRAFT_12
            });
            server.feed(&bind, &mut out).unwrap();
            server.accept(AuthReplyOptions::default(), &mut out);
            server.reply(ReplyCode::SUCCEEDED, bound(), granted.clone(), &mut out);
            assert_eq!(server.phase(), Phase::Finished);
            out.clear();
            server.notify(bound(), &mut out);
            assert_eq!(out.len(), told);
        }
    }

    #[test]
    fn nothing_is_said_out_of_turn() {
        let mut server = Server::new(Profile::DRAFT_12);
        let mut out = Vec::new();
        server.accept(AuthReplyOptions::default(), &mut out);
        server.reject(AuthReplyOptions::default(), &mut out);
        server.refuse(ReplyCode::SUCCEEDED, &mut out);
        server.notify(bound(), &mut out);
        assert!(out.is_empty());
        server.feed(&NOOP, &mut out).unwrap();
        server.refuse(ReplyCode::SUCCEEDED, &mut out);
        assert!(out.is_empty());
    }
}
