//! The answering side.
//!
//! ```text
//!              5 ┌► AwaitGreeting ── none ────────────────────────────────► AwaitRequest ─┐
//! AwaitVersion ──┤        └ user/password ─► AwaitCredentials ─► Judging ─ accept ─┘      ▼
//!              4 └► AwaitSocks4Request ────────────────────────────────────────────► Requested ─ reply ─► Finished
//!                         └ by user id ─────────────────────► Judging ─ accept ──────┘  (BIND: Listening ─ reply ─┘)
//! ```
//!
//! The machine stops twice for its driver: to have credentials or a user id judged, and with the request. After an error `out`
//! has what the client must still get before the connection is closed.
//!
//! What to read: RFC 1928 §3 to §6, RFC 1929 §2, SOCKS4 "CONNECT" and "BIND".

use std::error::Error;
use std::fmt;
use std::mem;
use std::net::{IpAddr, SocketAddr};

use super::Partial;
use crate::wire::socks5::{self, Command, Greeting, Method, MethodSelection, Reply, ReplyCode};
use crate::wire::user_password::{self, Status};
use crate::wire::{Address, BoundAddress, DecodeError, Host, socks4};

/// The answering side of one connection.
#[derive(Clone, Debug)]
pub struct Server {
    policy: Policy,
    state: State,
    partial: Partial,
}

/// Whom a server lets ask. The default lets everyone, with SOCKS4 too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What SOCKS5 clients must offer.
    pub methods: Methods,
    /// Whether SOCKS4 and 4a are answered. They know no passwords, so [`Socks4::Allowed`] is [`Socks4::Refused`] under
    /// [`Methods::UserPassword`].
    pub socks4: Socks4,
}

/// The methods a server accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Methods {
    /// No authentication.
    #[default]
    None,
    /// User and password.
    UserPassword,
    /// No authentication if the client offers it, else user and password. For one that only wants to read the
    /// request, as a forwarder without a remote does.
    Either,
}

/// Whether SOCKS4 is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Socks4 {
    /// It is, but never where passwords are demanded.
    #[default]
    Allowed,
    /// It is, also where passwords are demanded, for the user ids that the driver accepts. An id is what the client
    /// claims: nothing proves it.
    ByUserId,
    /// It is answered with a refusal.
    Refused,
}

/// What a server has for its driver.
#[derive(Clone, Debug)]
pub enum Event {
    /// Judge these, then call [`Server::accept`] or [`Server::reject`].
    Credentials(user_password::Request),
    /// Judge the [user id](Request::user_id) of this SOCKS4 request in the same way, under [`Socks4::ByUserId`].
    UserId(Request),
    /// Do this, then call [`Server::reply`] or [`Server::refuse`].
    Request(Request),
}

/// What a client asks for, in any version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// How the reply will be written.
    pub version: Version,
    /// What to do.
    pub command: Command,
    /// With or for whom.
    pub address: Address,
}

/// The version a client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// SOCKS4 or 4a, with the user id the client claims.
    Socks4(socks4::UserId),
    /// SOCKS5.
    Socks5,
}

/// What a server waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The greeting, or the request of SOCKS4.
    Greeting,
    /// User and password.
    Credentials,
    /// The driver's verdict on them, or on a user id.
    Verdict,
    /// The request.
    Request,
    /// The driver's reply.
    Reply,
    /// Nothing.
    Finished,
}

/// Why a client can't be served. All of these end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// The first byte is neither 4 nor 5. Nothing is sent.
    Version(u8),
    /// The client speaks HTTP. Nothing is sent; the driver may answer in HTTP.
    Http,
    /// SOCKS4, which the policy refuses. 91 is sent.
    Socks4Refused,
    /// The driver rejected the user id of SOCKS4. 91 is sent.
    UserIdRejected,
    /// The client offers none of the methods that the policy demands. `05 FF` is sent.
    NoAcceptableMethod,
    /// The driver rejected user and password. `01 01` is sent.
    CredentialsRejected,
    /// A SOCKS4 CONNECT to 0.0.0.0, which is nowhere. 91 is sent.
    NoDestination,
    /// A message that can't be understood in this phase. `01 01`, 91 or the fitting reply code is sent.
    Malformed(Phase, DecodeError),
}

#[derive(Clone, Debug)]
enum State {
    AwaitVersion,
    AwaitSocks4Request,
    AwaitGreeting,
    AwaitCredentials,
    Judging(Event),
    AwaitRequest,
    Requested(Event),
    Listening(Protocol),
    Finished,
    Failed(ServerError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Socks4,
    Socks5,
}

impl Server {
    /// The longest message: more is never kept of a client that isn't done.
    pub const MAX_MESSAGE: usize = socks4::Request::MAX_LEN;

    /// A server for one connection.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::AwaitVersion,
            partial: Partial(Vec::new()),
        }
    }

    /// Takes what the client sent, appends what has to be sent back, and returns how many bytes of `input` it
    /// took. It stops at every [`Event`]; after [`Server::accept`] feed the rest again. What lies behind the
    /// request is the client's payload.
    ///
    /// # Errors
    ///
    /// The handshake has failed. Send `out`, then close. Later calls give the same error and append nothing.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, ServerError> {
        let mut rest = input;
        while !rest.is_empty() && self.awaits_client() {
            if let Err(error) = self.step(&mut rest, out) {
                self.partial = Partial::default();
                self.state = State::Failed(error);
            }
        }
        match self.state {
            State::Failed(error) => Err(error),
            _ => Ok(input.len() - rest.len()),
        }
    }

    /// Whether nothing was fed yet: another machine can take over.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        matches!(self.state, State::AwaitVersion)
    }

    /// What the driver has to see to.
    #[must_use]
    pub const fn event(&self) -> Option<&Event> {
        match &self.state {
            State::Judging(event) | State::Requested(event) => Some(event),
            _ => None,
        }
    }

    /// The request, from its [`Event`] until the first reply.
    #[must_use]
    pub const fn request(&self) -> Option<&Request> {
        match &self.state {
            State::Requested(Event::Request(request)) => Some(request),
            _ => None,
        }
    }

    /// What is awaited.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::AwaitVersion | State::AwaitGreeting => Phase::Greeting,
            State::AwaitCredentials => Phase::Credentials,
            State::Judging(_) => Phase::Verdict,
            State::AwaitSocks4Request | State::AwaitRequest => Phase::Request,
            State::Requested(_) | State::Listening(_) => Phase::Reply,
            State::Finished | State::Failed(_) => Phase::Finished,
        }
    }

    /// The credentials are right, or the user id is. Does nothing if neither waits for a verdict.
    pub fn accept(&mut self, out: &mut Vec<u8>) {
        self.state = match mem::replace(&mut self.state, State::Finished) {
            State::Judging(Event::UserId(request)) => State::Requested(Event::Request(request)),
            State::Judging(_) => {
                Status::ACCEPTED.encode(out);
                State::AwaitRequest
            }
            other => other,
        };
    }

    /// The credentials are wrong (RFC 1929 §2), or the user id is: send `out`, then close. Does nothing if neither waits
    /// for a verdict.
    pub fn reject(&mut self, out: &mut Vec<u8>) {
        let error = match self.state {
            State::Judging(Event::UserId(_)) => {
                write_refusal(Protocol::Socks4, ReplyCode::NOT_ALLOWED, out);
                ServerError::UserIdRejected
            }
            State::Judging(_) => {
                Status::REJECTED.encode(out);
                ServerError::CredentialsRejected
            }
            _ => return,
        };
        self.state = State::Failed(error);
    }

    /// Appends the reply in the client's version, with the address on our side. For BIND a success is followed
    /// by a second reply with the address that connected. Does nothing if no reply is due.
    pub fn reply(&mut self, code: ReplyCode, bound: SocketAddr, out: &mut Vec<u8>) {
        let (protocol, another) = match &self.state {
            State::Requested(Event::Request(request)) => {
                let protocol = match request.version {
                    Version::Socks4(_) => Protocol::Socks4,
                    Version::Socks5 => Protocol::Socks5,
                };
                (protocol, request.command == Command::Bind)
            }
            State::Listening(protocol) => (*protocol, false),
            _ => return,
        };
        write_reply(protocol, code, bound, out);
        self.state = if another && code == ReplyCode::SUCCEEDED {
            State::Listening(protocol)
        } else {
            State::Finished
        };
    }

    /// Appends a reply that has no address. Does nothing if no reply is due.
    pub fn refuse(&mut self, code: ReplyCode, out: &mut Vec<u8>) {
        self.reply(code, SocketAddr::from(([0, 0, 0, 0], 0)), out);
    }

    /// [`Server::feed`] for one that can't serve at all: takes any credentials, and refuses the request with
    /// `code` (SOCKS4: 91) as soon as it is there. Done when [`Server::phase`] is [`Phase::Finished`].
    ///
    /// ```
    /// use sockhop::handshake::{Methods, Policy, Server};
    /// use sockhop::wire::socks5::ReplyCode;
    ///
    /// let mut server = Server::new(Policy { methods: Methods::Either, ..Policy::default() });
    /// let mut out = Vec::new();
    /// let client = [5, 1, 0, 5, 1, 0, 1, 192, 0, 2, 1, 0, 80];
    /// server.decline(&client, ReplyCode::GENERAL_FAILURE, &mut out)?;
    /// assert_eq!(out, [5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    /// # Ok::<(), sockhop::handshake::ServerError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Server::feed`].
    pub fn decline(
        &mut self,
        input: &[u8],
        code: ReplyCode,
        out: &mut Vec<u8>,
    ) -> Result<usize, ServerError> {
        let mut taken = self.feed(input, out)?;
        if self.phase() == Phase::Verdict {
            self.accept(out);
            taken += self.feed(input.get(taken..).unwrap_or_default(), out)?;
        }
        self.refuse(code, out);
        Ok(taken)
    }

    const fn awaits_client(&self) -> bool {
        matches!(
            self.state,
            State::AwaitVersion
                | State::AwaitSocks4Request
                | State::AwaitGreeting
                | State::AwaitCredentials
                | State::AwaitRequest
        )
    }

    /// Takes at most one message; all of the input if it has none. On an error `out` has the last answer.
    fn step(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), ServerError> {
        let phase = self.phase();
        let next = match self.state {
            State::AwaitVersion => match input.first().copied() {
                Some(socks5::VERSION) => Some(State::AwaitGreeting),
                Some(socks4::VERSION) if self.speaks_socks4() => Some(State::AwaitSocks4Request),
                Some(socks4::VERSION) => {
                    write_refusal(Protocol::Socks4, ReplyCode::NOT_ALLOWED, out);
                    return Err(ServerError::Socks4Refused);
                }
                Some(_) if is_http(input) => return Err(ServerError::Http),
                Some(byte) => return Err(ServerError::Version(byte)),
                None => None,
            },
            State::AwaitGreeting => {
                let greeting = self
                    .partial
                    .take(input, Greeting::MAX_LEN, Greeting::decode)
                    .map_err(|error| ServerError::Malformed(phase, error))?;
                match greeting {
                    Some(greeting) => Some(self.choose(&greeting, out)?),
                    None => None,
                }
            }
            State::AwaitCredentials => {
                let limit = user_password::Request::MAX_LEN;
                self.partial
                    .take(input, limit, user_password::Request::decode)
                    .map_err(|error| {
                        // Both lengths are unknown after a wrong version byte, so this is all that can be said.
                        Status::REJECTED.encode(out);
                        ServerError::Malformed(phase, error)
                    })?
                    .map(|request| State::Judging(Event::Credentials(request)))
            }
            State::AwaitRequest => {
                let limit = socks5::Request::MAX_LEN;
                self.partial
                    .take(input, limit, socks5::Request::decode)
                    .map_err(|error| {
                        write_refusal(Protocol::Socks5, code_for(error), out);
                        ServerError::Malformed(phase, error)
                    })?
                    .map(|request| {
                        State::Requested(Event::Request(Request {
                            version: Version::Socks5,
                            command: request.command,
                            address: request.address,
                        }))
                    })
            }
            State::AwaitSocks4Request => {
                let limit = socks4::Request::MAX_LEN;
                let request = self
                    .partial
                    .take(input, limit, socks4::Request::decode)
                    .map_err(|error| ServerError::Malformed(phase, error))
                    .and_then(|request| request.map(socks4_request).transpose())
                    .inspect_err(|_| {
                        write_refusal(Protocol::Socks4, ReplyCode::GENERAL_FAILURE, out);
                    })?;
                request.map(|request| match self.policy.socks4 {
                    Socks4::ByUserId => State::Judging(Event::UserId(request)),
                    _ => State::Requested(Event::Request(request)),
                })
            }
            State::Judging(_)
            | State::Requested(_)
            | State::Listening(_)
            | State::Finished
            | State::Failed(_) => None,
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(())
    }

    fn speaks_socks4(&self) -> bool {
        match self.policy.socks4 {
            Socks4::Allowed => self.policy.methods != Methods::UserPassword,
            Socks4::ByUserId => true,
            Socks4::Refused => false,
        }
    }

    fn choose(&self, greeting: &Greeting, out: &mut Vec<u8>) -> Result<State, ServerError> {
        let (none, user_password) = match self.policy.methods {
            Methods::None => (true, false),
            Methods::UserPassword => (false, true),
            Methods::Either => (true, true),
        };
        let (method, next) = if none && greeting.offers(Method::NONE) {
            (Method::NONE, Ok(State::AwaitRequest))
        } else if user_password && greeting.offers(Method::USER_PASSWORD) {
            (Method::USER_PASSWORD, Ok(State::AwaitCredentials))
        } else {
            let error = ServerError::NoAcceptableMethod;
            (Method::NONE_ACCEPTABLE, Err(error))
        };
        MethodSelection { method }.encode(out);
        next
    }
}

impl Request {
    /// The user id that a SOCKS4 client claims.
    #[must_use]
    pub const fn user_id(&self) -> Option<&socks4::UserId> {
        match &self.version {
            Version::Socks4(user_id) => Some(user_id),
            Version::Socks5 => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Greeting => "greeting",
            Self::Credentials => "user and password",
            Self::Verdict => "verdict on the user",
            Self::Request => "request",
            Self::Reply => "reply",
            Self::Finished => "end",
        })
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(byte) => write!(f, "not SOCKS: the first byte is {byte:#04x}"),
            Self::Http => write!(f, "not SOCKS: the client speaks HTTP"),
            Self::Socks4Refused => write!(f, "SOCKS4 is not allowed"),
            Self::UserIdRejected => write!(f, "SOCKS4 is not allowed with this user id"),
            Self::NoAcceptableMethod => write!(f, "the client offers no acceptable method"),
            Self::CredentialsRejected => write!(f, "wrong user or password"),
            Self::NoDestination => write!(f, "the request has no destination"),
            Self::Malformed(phase, error) => write!(f, "bad {phase}: {error}"),
        }
    }
}

impl Error for ServerError {}

fn socks4_request(request: socks4::Request) -> Result<Request, ServerError> {
    let (command, address, user_id) = request.into_parts();
    let command = match command {
        socks4::Command::Connect => Command::Connect,
        socks4::Command::Bind => Command::Bind,
    };
    match address.host {
        // A client that meant SOCKS4a and forgot the mark. BIND may well leave its peer open.
        Host::Ip(IpAddr::V4(ip)) if ip.is_unspecified() && command == Command::Connect => {
            Err(ServerError::NoDestination)
        }
        _ => Ok(Request {
            version: Version::Socks4(user_id),
            command,
            address,
        }),
    }
}

/// RFC 1928 §6 has codes for two of our complaints; the others are general failures.
const fn code_for(error: DecodeError) -> ReplyCode {
    match error {
        DecodeError::Command(_) => ReplyCode::COMMAND_NOT_SUPPORTED,
        DecodeError::AddressType(_) => ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED,
        _ => ReplyCode::GENERAL_FAILURE,
    }
}

fn write_refusal(protocol: Protocol, code: ReplyCode, out: &mut Vec<u8>) {
    write_reply(protocol, code, SocketAddr::from(([0, 0, 0, 0], 0)), out);
}

fn write_reply(protocol: Protocol, code: ReplyCode, bound: SocketAddr, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Socks5 => {
            let bound = BoundAddress::from(bound);
            Reply { code, bound }.encode(out);
        }
        Protocol::Socks4 => {
            let code = match code {
                ReplyCode::SUCCEEDED => socks4::ReplyCode::GRANTED,
                _ => socks4::ReplyCode::REJECTED,
            };
            socks4::Reply::new(code, bound).encode(out);
        }
    }
}

/// Whether the input is the beginning of an HTTP request, as far as it has come. One letter is enough: no SOCKS
/// version has such a byte.
fn is_http(input: &[u8]) -> bool {
    HTTP_METHODS
        .iter()
        .any(|method| input.starts_with(method) || method.starts_with(input))
}

/// RFC 9110 §9.1 and RFC 5789.
const HTTP_METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Credentials, NameError};

    const PASSWORD: Policy = Policy {
        methods: Methods::UserPassword,
        socks4: Socks4::Allowed,
    };
    const REJECTED: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

    fn bound() -> SocketAddr {
        "192.0.2.1:4000".parse().unwrap()
    }

    /// A server that has taken all of these bytes.
    fn fed(policy: Policy, input: &[u8]) -> Server {
        let mut server = Server::new(policy);
        assert_eq!(server.feed(input, &mut Vec::new()), Ok(input.len()));
        server
    }

    /// The error for these bytes, and what was sent, in one piece and byte by byte.
    fn failure(policy: Policy, input: &[u8]) -> (ServerError, Vec<u8>) {
        let mut server = Server::new(policy);
        let mut out = Vec::new();
        let error = server.feed(input, &mut out).unwrap_err();
        assert!(server.event().is_none());
        assert_eq!(server.phase(), Phase::Finished);
        let sent = out.clone();
        assert_eq!(server.feed(input, &mut out), Err(error));
        server.refuse(ReplyCode::GENERAL_FAILURE, &mut out);
        server.accept(&mut out);
        server.reject(&mut out);
        assert_eq!(out, sent, "nothing is sent twice");

        let mut server = Server::new(policy);
        let mut out = Vec::new();
        let found = input
            .iter()
            .find_map(|byte| server.feed(&[*byte], &mut out).err());
        assert_eq!((found, &out), (Some(error), &sent));
        (error, sent)
    }

    fn asked(server: &Server) -> Request {
        match server.event() {
            Some(Event::Request(request)) => request.clone(),
            other => panic!("no request but {other:?}"),
        }
    }

    /// What the client says, what it is told until the request is there, and the request.
    fn exchanges() -> Vec<(&'static [u8], &'static [u8], Request)> {
        let request = |version, command, address: &str| Request {
            version,
            command,
            address: address.parse().unwrap(),
        };
        let socks4 = |user| Version::Socks4(socks4::UserId::new(user).unwrap());
        vec![
            (
                b"\x05\x01\0\x05\x01\0\x03\x0bexample.com\0\x50",
                &[5, 0],
                request(Version::Socks5, Command::Connect, "example.com:80"),
            ),
            (
                b"\x05\x03\x02\x80\0\x05\x02\x07\x01\xc0\0\x02\x09\0\0",
                &[5, 0],
                request(Version::Socks5, Command::Bind, "192.0.2.9:0"),
            ),
            (
                b"\x05\x01\0\x05\x03\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0",
                &[5, 0],
                request(Version::Socks5, Command::Associate, "[::1]:0"),
            ),
            (
                b"\x04\x01\0\x50\xc0\0\x02\x09ada\0",
                &[],
                request(socks4("ada"), Command::Connect, "192.0.2.9:80"),
            ),
            (
                b"\x04\x01\0\x50\0\0\0\x07\0example.com\0",
                &[],
                request(socks4(""), Command::Connect, "example.com:80"),
            ),
            (
                b"\x04\x02\0\0\0\0\0\0\0",
                &[],
                request(socks4(""), Command::Bind, "0.0.0.0:0"),
            ),
        ]
    }

    #[test]
    fn whole_exchanges_at_every_split_and_with_data_behind() {
        for (input, sent, request) in exchanges() {
            let bytes = [input, b"payload"].concat();
            for split in 0..=input.len() {
                let mut server = Server::new(Policy::default());
                let mut out = Vec::new();
                let (head, rest) = bytes.split_at(split);
                assert_eq!(server.feed(head, &mut out), Ok(split));
                let taken = server.feed(rest, &mut out).unwrap();
                assert_eq!(rest[taken..], *b"payload");
                assert_eq!((&asked(&server), &out[..]), (&request, sent));
                assert_eq!(server.feed(b"payload", &mut out), Ok(0));
            }
        }
    }

    #[test]
    fn bytes_may_come_one_by_one_and_a_cut_exchange_is_never_answered() {
        for (input, sent, request) in exchanges() {
            let mut server = Server::new(Policy::default());
            let mut out = Vec::new();
            for byte in input {
                assert!(server.event().is_none());
                assert!(out.len() <= sent.len());
                assert_eq!(server.feed(&[*byte], &mut out), Ok(1));
            }
            assert_eq!((asked(&server), &out[..]), (request, sent));
        }
    }

    #[test]
    fn authentication_request_and_payload_may_come_at_once() {
        let input = b"\x05\x02\0\x02\x01\x03ada\x04pass\x05\x01\0\x01\xc0\0\x02\x09\0\x50payload";
        let mut server = Server::new(PASSWORD);
        let mut out = Vec::new();
        let taken = server.feed(input, &mut out).unwrap();
        assert_eq!(server.phase(), Phase::Verdict);
        let Some(Event::Credentials(sent)) = server.event() else {
            panic!("no credentials")
        };
        assert!(Credentials::new("ada", "pass").unwrap().matches(sent));
        assert_eq!(server.feed(&input[taken..], &mut out), Ok(0));
        server.accept(&mut out);
        let rest = &input[taken..];
        let taken = server.feed(rest, &mut out).unwrap();
        assert_eq!(rest[taken..], *b"payload");
        assert_eq!(asked(&server).address.to_string(), "192.0.2.9:80");
        assert_eq!(out, [5, 2, 1, 0]);
    }

    #[test]
    fn rejected_credentials_end_it() {
        for credentials in [&b"\x01\x03ada\x05wrong"[..], &[1, 0, 0], &[1, 0, 1, b'x']] {
            let mut server = fed(PASSWORD, &[&[5, 1, 2], credentials].concat());
            let Some(Event::Credentials(sent)) = server.event() else {
                panic!("no credentials")
            };
            assert!(!Credentials::new("ada", "pass").unwrap().matches(sent));
            let mut out = Vec::new();
            server.reject(&mut out);
            assert_eq!(out, [1, 1]);
            let error = ServerError::CredentialsRejected;
            assert_eq!(server.feed(&[5, 1, 0], &mut out), Err(error));
            assert_eq!(out, [1, 1]);
        }
    }

    #[test]
    fn no_acceptable_method_is_answered_with_ff() {
        let many = [&[5, 255][..], &[0x80; 255]].concat();
        for (policy, greeting) in [
            (Policy::default(), &[5, 0][..]),
            (Policy::default(), &[5, 1, 2]),
            (Policy::default(), &[5, 2, 1, 0xff]),
            (Policy::default(), &many),
            (PASSWORD, &[5, 1, 0]),
            (PASSWORD, &[5, 0]),
        ] {
            let expected = (ServerError::NoAcceptableMethod, vec![5, 0xff]);
            assert_eq!(failure(policy, greeting), expected, "{greeting:02x?}");
        }
    }

    #[test]
    fn request_before_authentication_is_refused() {
        let input = b"\x05\x02\0\x02\x05\x01\0\x01\xc0\0\x02\x09\0\x50";
        let error = ServerError::Malformed(Phase::Credentials, DecodeError::SubVersion(5));
        assert_eq!(failure(PASSWORD, input), (error, vec![5, 2, 1, 1]));
    }

    #[test]
    fn other_protocols_get_no_socks_answer() {
        for byte in (0..=255).filter(|byte| ![4, 5].contains(byte)) {
            let (error, sent) = failure(Policy::default(), &[byte]);
            match byte {
                b'C' | b'D' | b'G' | b'H' | b'O' | b'P' | b'T' => {
                    assert_eq!(error, ServerError::Http);
                }
                _ => assert_eq!(error, ServerError::Version(byte)),
            }
            assert_eq!(sent, b"");
        }
        let (error, _) = failure(Policy::default(), b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(error, ServerError::Http);
        let error = Server::new(PASSWORD).feed(b"GIOP", &mut Vec::new());
        assert_eq!(error, Err(ServerError::Version(b'G')));
    }

    #[test]
    fn bad_requests_get_the_code_that_fits() {
        for (request, error, code) in [
            (&[5, 9][..], DecodeError::Command(9), 7),
            (&[5, 1, 0, 9], DecodeError::AddressType(9), 8),
            (&[5, 1, 0, 3, 0], NameError::Empty.into(), 1),
            (b"\x05\x01\0\x03\x03a\0b", NameError::Byte(0).into(), 1),
            (b"\x05\x01\0\x03\x03a b", NameError::Byte(b' ').into(), 1),
            (&[4], DecodeError::Version(4), 1),
        ] {
            let expected = vec![5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0];
            let failed = failure(Policy::default(), &[&[5, 1, 0], request].concat());
            assert_eq!(
                failed,
                (ServerError::Malformed(Phase::Request, error), expected)
            );
        }
    }

    #[test]
    fn bad_socks4_requests_get_91() {
        let malformed = |error| ServerError::Malformed(Phase::Request, error);
        let v4 = b"\x04\x01\0\x50\xc0\0\x02\x09";
        let v4a = b"\x04\x01\0\x50\0\0\0\x01";
        for (request, error) in [
            (vec![4, 3], malformed(DecodeError::Command(3))),
            (
                [&v4[..], &[b'u'; 256]].concat(),
                malformed(DecodeError::UserIdTooLong),
            ),
            (
                [&v4a[..], &[0], &[b'n'; 256]].concat(),
                malformed(NameError::TooLong.into()),
            ),
            (
                [&v4a[..], &[0, 0]].concat(),
                malformed(NameError::Empty.into()),
            ),
            (vec![4, 1, 0, 80, 0, 0, 0, 0, 0], ServerError::NoDestination),
        ] {
            assert_eq!(
                failure(Policy::default(), &request),
                (error, REJECTED.to_vec())
            );
        }
    }

    #[test]
    fn endless_message_ends_at_the_limit() {
        for start in [
            &b"\x04\x01\0\x50\0\0\0\x01"[..],
            b"\x04\x01\0\x50\0\0\0\x01u\0",
        ] {
            let mut server = fed(Policy::default(), start);
            let mut fed = start.len();
            while server.feed(b"x", &mut Vec::new()).is_ok() {
                fed += 1;
                assert_eq!(server.partial.len(), fed);
                assert!(fed < Server::MAX_MESSAGE);
            }
            assert_eq!(server.partial.len(), 0);
        }
    }

    #[test]
    fn socks4_is_refused_where_it_is_not_wanted_or_would_bypass_the_password() {
        let without = Policy {
            socks4: Socks4::Refused,
            ..Policy::default()
        };
        for policy in [without, PASSWORD] {
            let expected = (ServerError::Socks4Refused, REJECTED.to_vec());
            assert_eq!(failure(policy, &[4]), expected);
        }
    }

    #[test]
    fn user_ids_of_socks4_are_judged_where_the_policy_says_so() {
        let by_id = |methods| Policy {
            methods,
            socks4: Socks4::ByUserId,
        };
        for methods in [Methods::None, Methods::UserPassword, Methods::Either] {
            for (input, _, request) in exchanges() {
                if request.user_id().is_none() {
                    continue;
                }
                let judging = fed(by_id(methods), input);
                assert_eq!(judging.phase(), Phase::Verdict);
                assert_eq!(judging.request(), None);
                let judged = |event: Option<&Event>| match event {
                    Some(Event::UserId(request)) => Some(request.clone()),
                    _ => None,
                };
                assert_eq!(judged(judging.event()), Some(request.clone()));

                let (mut server, mut out) = (judging.clone(), Vec::new());
                // Not a reply: nothing goes past the verdict.
                server.reply(ReplyCode::SUCCEEDED, bound(), &mut out);
                assert_eq!(server.feed(b"payload", &mut out), Ok(0));
                server.accept(&mut out);
                assert_eq!((asked(&server), &out[..]), (request, &[][..]));
                server.accept(&mut out);
                server.reject(&mut out);
                server.reply(ReplyCode::SUCCEEDED, bound(), &mut out);
                assert_eq!(out, b"\0\x5a\x0f\xa0\xc0\0\x02\x01");

                let (mut server, mut out) = (judging, Vec::new());
                server.reject(&mut out);
                assert_eq!(out, REJECTED);
                assert_eq!(server.feed(&[], &mut out), Err(ServerError::UserIdRejected));
                server.accept(&mut out);
                server.reply(ReplyCode::SUCCEEDED, bound(), &mut out);
                assert_eq!(out, REJECTED);
            }
        }
        // SOCKS5 is not concerned.
        let mut server = Server::new(by_id(Methods::UserPassword));
        let mut out = Vec::new();
        assert_eq!(
            server.feed(&[5, 1, 0], &mut out),
            Err(ServerError::NoAcceptableMethod)
        );
    }

    #[test]
    fn reply_is_written_once_and_in_the_version_of_the_client() {
        for (input, _, request) in exchanges() {
            let socks4 = request.user_id().is_some();
            let success: &[u8] = match socks4 {
                true => b"\0\x5a\x0f\xa0\xc0\0\x02\x01",
                false => b"\x05\0\0\x01\xc0\0\x02\x01\x0f\xa0",
            };
            let mut server = fed(Policy::default(), input);
            let mut out = Vec::new();
            let replies = if request.command == Command::Bind {
                2
            } else {
                1
            };
            for _ in 0..4 {
                server.reply(ReplyCode::SUCCEEDED, bound(), &mut out);
            }
            assert_eq!(out, success.repeat(replies));
            assert_eq!(server.phase(), Phase::Finished);

            let mut server = fed(Policy::default(), input);
            let mut out = Vec::new();
            server.refuse(ReplyCode::CONNECTION_REFUSED, &mut out);
            server.refuse(ReplyCode::CONNECTION_REFUSED, &mut out);
            match socks4 {
                true => assert_eq!(out, REJECTED),
                false => assert_eq!(out, [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
            }
        }
    }

    #[test]
    fn reply_shows_a_mapped_address_as_ipv4() {
        let mut server = fed(Policy::default(), exchanges()[0].0);
        let mut out = Vec::new();
        let mapped = "[::ffff:192.0.2.1]:80".parse().unwrap();
        server.reply(ReplyCode::SUCCEEDED, mapped, &mut out);
        assert_eq!(out, [5, 0, 0, 1, 192, 0, 2, 1, 0, 80]);
    }

    #[test]
    fn declining_answers_every_version_and_method_byte_by_byte() {
        let policy = Policy {
            methods: Methods::Either,
            ..Policy::default()
        };
        let refusal = [5, 1, 0, 1, 0, 0, 0, 0, 0, 0];
        let with_password = b"\x05\x01\x02\x01\x03ada\x04pass\x05\x01\0\x03\x01a\0\x50";
        let mut cases = vec![(&with_password[..], [&[5, 2, 1, 0][..], &refusal].concat())];
        for (input, sent, request) in exchanges() {
            let refusal = match request.version {
                Version::Socks4(_) => &REJECTED[..],
                Version::Socks5 => &refusal,
            };
            cases.push((input, [sent, refusal].concat()));
        }
        for (input, expected) in cases {
            for portion in [1, 1000] {
                let mut server = Server::new(policy);
                let mut out = Vec::new();
                for part in input.chunks(portion) {
                    let taken = server.decline(part, ReplyCode::GENERAL_FAILURE, &mut out);
                    assert_eq!(taken, Ok(part.len()));
                }
                assert_eq!(out, expected);
                assert_eq!(server.phase(), Phase::Finished);
            }
        }
    }
}
