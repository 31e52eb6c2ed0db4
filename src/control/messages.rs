//! The messages of the control protocol: JSON-RPC 2.0 (<https://www.jsonrpc.org/specification>), one object a line.
//!
//! Departures: no batches (one line is one request, and is answered before the next), and no notifications
//! (a request without an id is refused, since every change here has a result that somebody should see). An answer whose list is not
//! the whole one has a member `left_out` beside its `result`.
//!
//! ```
//! use sockhop::control::messages::{Call, Request};
//!
//! let line = br#"{"jsonrpc":"2.0","id":7,"method":"connect","params":{"remote":"[407::1]:1080"}}"#;
//! let request = Request::decode(line).map_err(|refusal| refusal.to_line()).unwrap();
//! assert_eq!(request.call, Call::Connect { remote: Some("[407::1]:1080".into()), drain: None });
//! ```

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::Error as _;
use serde_json::value::RawValue;

pub use super::by_name::ByName;
use super::reading::{Object, Readable};
use crate::choice::Mode;

/// The longest answer that a client reads, without its line feed. Longer lists of `proxies` are cut by whoever answers.
pub const MAX_LINE: usize = 16 << 20;

/// The longest time that streams are given to end by themselves.
pub const MAX_DRAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// What can be asked of a forwarder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// What it does now; answered with [`Status`], by a server with [`ServerStatus`].
    Status,
    /// Every known peer, or the best of very many; answered with a list of [`ProxyEntry`].
    Proxies,
    /// Forward to this remote, or to the first that answers; answered with [`Connected`].
    Connect {
        /// `host`, `host:port`, `[v6]:port` or a URI. `None`: race the valid peers.
        remote: Option<String>,
        /// After this time, [`MAX_DRAIN`] at most, streams that are still on other remotes are cut. `None`: they go on as the
        /// forwarder's settings say.
        drain: Option<Duration>,
    },
    /// Cut every stream, close the listeners, forget the remote; answered with [`Disconnected`].
    Disconnect,
    /// Start or stop probing; answered with [`Probing`].
    Probing {
        /// Whether it shall run from now on.
        run: bool,
    },
    /// Hand the listeners over to the caller, who will say that it [took over](Call::TookOver); answered with [`HandOver`], with
    /// which their descriptors come. Until then everything goes on.
    TakeOver {
        /// What the caller is, which must be what it asks: `None` is a forwarder.
        role: Option<Role>,
    },
    /// The caller accepts connections on what it was handed over this connection: accept none any more, and end when those that
    /// are open have ended; answered with [`Draining`].
    TookOver,
}

impl Call {
    /// The name of the method.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Proxies => "proxies",
            Self::Connect { .. } => "connect",
            Self::Disconnect => "disconnect",
            Self::Probing { .. } => "probing",
            Self::TakeOver { .. } => "take_over",
            Self::TookOver => "took_over",
        }
    }

    fn params(&self) -> Option<Params> {
        let none = Params::default();
        match self {
            Self::Status
            | Self::Proxies
            | Self::Disconnect
            | Self::TakeOver { role: None }
            | Self::TookOver
            | Self::Connect {
                remote: None,
                drain: None,
            } => None,
            Self::TakeOver { role } => Some(Params {
                role: *role,
                ..none
            }),
            Self::Connect { remote, drain } => Some(Params {
                remote: remote.clone(),
                drain_s: drain.map(|drain| drain.as_secs_f64()),
                ..none
            }),
            Self::Probing { run } => Some(Params {
                run: Some(*run),
                ..none
            }),
        }
    }

    fn from_parts(method: &str, params: Option<&RawValue>) -> Result<Self, ErrorObject> {
        let params = |known: &[&str]| Params::read(method, params, known);
        match method {
            "status" => params(&[]).map(|_| Self::Status),
            "proxies" => params(&[]).map(|_| Self::Proxies),
            "disconnect" => params(&[]).map(|_| Self::Disconnect),
            "take_over" => params(&["role"]).map(|params| Self::TakeOver { role: params.role }),
            "took_over" => params(&[]).map(|_| Self::TookOver),
            "connect" => {
                let params = params(&["remote", "drain_s"])?;
                let drain = params.drain_s.map(drain).transpose()?;
                Ok(Self::Connect {
                    remote: params.remote,
                    drain,
                })
            }
            "probing" => match params(&["run"])?.run {
                Some(run) => Ok(Self::Probing { run }),
                None => Err(not_params_of(method).with_reason("missing field `run`")),
            },
            // The method's name is the caller's: quoted and cut, so that it can be logged.
            _ => Err(ErrorObject::new(
                ErrorCode::MethodNotFound,
                format!(
                    "no method {:?}",
                    method.chars().take(40).collect::<String>()
                ),
            )
            .with_hint("methods are status, proxies, connect, disconnect, probing, take_over and took_over")),
        }
    }
}

/// A request with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Comes back in the answer.
    pub id: Id,
    /// What is asked.
    pub call: Call,
}

impl Request {
    /// Reads one line (with or without its line feed). The error is the whole answer to send.
    pub fn decode(line: &[u8]) -> Result<Self, Response> {
        let refused = |id: &Id, code, message: &str, reason: &str| {
            let error = ErrorObject::new(code, message).with_reason(reason);
            Err(Response::error(id.clone(), error))
        };
        let unreadable = |error: serde_json::Error| {
            let (code, message) = match error.is_data() {
                true => (ErrorCode::InvalidRequest, NOT_A_REQUEST),
                false => (ErrorCode::ParseError, "not JSON"),
            };
            refused(&Id::Null, code, message, &error.to_string())
        };
        let Ok(line) = std::str::from_utf8(line) else {
            return refused(&Id::Null, ErrorCode::ParseError, "not JSON", "not UTF-8");
        };
        let mut wire = match Object::read(line) {
            Ok(wire) => wire,
            Err(error) => return unreadable(error),
        };
        let (mut version, mut id, mut method) = (None::<String>, None::<Id>, None::<String>);
        wire.optional("jsonrpc", &mut version);
        wire.optional("id", &mut id);
        wire.optional("method", &mut method);
        let params = wire.raw("params").filter(|params| params.get() != "null");
        if let Err(error) = wire.end(()) {
            return unreadable(error);
        }
        let invalid = |reason| {
            let id = id.as_ref().unwrap_or(&Id::Null);
            refused(id, ErrorCode::InvalidRequest, NOT_A_REQUEST, reason)
        };
        if version.as_deref() != Some("2.0") {
            return invalid("\"jsonrpc\" is not \"2.0\"");
        }
        // An id of null counts as none: nobody could match its answer.
        let Some(id) = &id else {
            return invalid("it has no \"id\", and notifications are not known here");
        };
        let Some(method) = &method else {
            return invalid("it has no \"method\"");
        };
        match Call::from_parts(method, params) {
            Ok(call) => Ok(Self {
                id: id.clone(),
                call,
            }),
            Err(error) => Err(Response::error(id.clone(), error)),
        }
    }

    /// The request as one line, with its line feed.
    pub fn to_line(&self) -> String {
        line(&WireRequest {
            jsonrpc: "2.0",
            id: &self.id,
            method: self.call.method(),
            params: self.call.params(),
        })
    }
}

/// What an answer is matched to its request by.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A number, as our client sends.
    Number(serde_json::Number),
    /// Text.
    Text(String),
    /// Of answers to what could not be read as a request.
    Null,
}

impl From<u32> for Id {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// That of the request.
    pub id: Id,
    /// The result as JSON text, or what went wrong.
    pub outcome: Result<Box<RawValue>, ErrorObject>,
    /// How many entries are missing at the end of a list that would be too long.
    pub left_out: u64,
}

impl Response {
    /// An answer with a result: [`Status`], a list of [`ProxyEntry`], [`Connected`], [`Disconnected`] or [`Probing`].
    ///
    /// A result that cannot be written as JSON, which none of ours is, becomes an internal error.
    pub fn result(id: Id, result: &impl Serialize) -> Self {
        Self {
            id,
            outcome: json_of(result),
            left_out: 0,
        }
    }

    /// An answer with a part of a list, and how many entries are missing at its end.
    pub fn part<T: Serialize>(id: Id, list: &[T], left_out: u64) -> Self {
        Self {
            left_out,
            ..Self::result(id, &list)
        }
    }

    /// An answer that says what went wrong.
    pub fn error(id: Id, error: ErrorObject) -> Self {
        Self {
            id,
            outcome: Err(error),
            left_out: 0,
        }
    }

    /// Reads one line (with or without its line feed).
    pub fn decode(line: &[u8]) -> Result<Self, NotAnAnswer> {
        let wrong = NotAnAnswer::Json;
        let line =
            std::str::from_utf8(line).map_err(|_| wrong(serde_json::Error::custom("not UTF-8")))?;
        let mut wire = Object::read(line).map_err(wrong)?;
        let (mut id, mut left_out) = (Id::Null, 0);
        wire.needed("id", &mut id);
        wire.optional("left_out", &mut left_out);
        let result = wire.raw("result");
        let error = wire.raw("error");
        wire.end(()).map_err(wrong)?;
        let is_some = |value: &&RawValue| value.get() != "null";
        let outcome = match (result.filter(is_some), error.filter(is_some)) {
            (Some(result), None) => Ok(result.to_owned()),
            (None, Some(error)) => Err(ErrorObject::read(error.get()).map_err(wrong)?),
            _ => return Err(NotAnAnswer::Shape),
        };
        Ok(Self {
            id,
            outcome,
            left_out,
        })
    }

    /// The answer as one line, with its line feed.
    pub fn to_line(&self) -> String {
        line(&WireResponse {
            jsonrpc: "2.0",
            id: &self.id,
            result: self.outcome.as_deref().ok(),
            error: self.outcome.as_ref().err(),
            left_out: self.left_out,
        })
    }
}

/// The JSON text of a result.
pub(super) fn json_of<T: Serialize + ?Sized>(result: &T) -> Result<Box<RawValue>, ErrorObject> {
    serde_json::value::to_raw_value(result).map_err(|error| {
        ErrorObject::new(ErrorCode::Internal, "cannot write the answer")
            .with_reason(error.to_string())
    })
}

fn line(message: &impl Serialize) -> String {
    match serde_json::to_string(message) {
        Ok(mut line) => {
            line.push('\n');
            line
        }
        // Only a writer can fail, or a map whose keys are not text: neither is here.
        Err(_) => String::from("\n"),
    }
}

/// A line that is not an answer.
#[derive(Debug)]
pub enum NotAnAnswer {
    /// Not JSON, or fields of another kind.
    Json(serde_json::Error),
    /// Neither a result nor an error, or both.
    Shape,
}

impl fmt::Display for NotAnAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(_) => f.write_str("not a JSON-RPC 2.0 answer"),
            Self::Shape => f.write_str("an answer without either a result or an error"),
        }
    }
}

impl Error for NotAnAnswer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Json(error) => Some(error),
            Self::Shape => None,
        }
    }
}

/// What went wrong. `Display` gives message and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorObject {
    /// Which kind of error.
    pub code: ErrorCode,
    /// In one line of plain words.
    pub message: String,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// More about an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ErrorData {
    /// The cause, such as `address already in use`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ErrorObject {
    /// An error with neither reason nor hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// The same with its cause.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.data.get_or_insert_default().reason = Some(reason.into());
        self
    }

    /// The same with what would help.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.data.get_or_insert_default().hint = Some(hint.into());
        self
    }

    /// What would help, when that is known.
    pub fn hint(&self) -> Option<&str> {
        self.data.as_ref()?.hint.as_deref()
    }
}

impl fmt::Display for ErrorObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.data.as_ref().and_then(|data| data.reason.as_deref()) {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl Error for ErrorObject {}

/// The kinds of errors. The first five are JSON-RPC's (§5.1), the others ours, from the range it leaves to servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "i64")]
pub enum ErrorCode {
    /// -32700: not JSON.
    ParseError,
    /// -32600: JSON, but not a request.
    InvalidRequest,
    /// -32601: no such method.
    MethodNotFound,
    /// -32602: not what the method takes.
    InvalidParams,
    /// -32603: our fault.
    Internal,
    /// -32000: a race found no proxy that answers, or there was none to try.
    NoValidProxy,
    /// -32001: an address to listen on is in use or not ours.
    CannotListen,
    /// -32002: this remote would lead back to our own listener.
    RemoteRefused,
    /// -32003: the caller is neither root nor the user of the forwarder.
    NotPermitted,
    /// -32004: a race is under way, so another one cannot start.
    RaceUnderWay,
    /// -32005: something else, such as `disconnect`, ended what was asked before it was done.
    Cancelled,
    /// -32006: only a forwarder can do that, and this is a server.
    NotAForwarder,
    /// -32007: another process is taking over, or has; or nothing was handed over to this one.
    HandedOver,
    /// One that this version does not know.
    Other(i64),
}

impl From<i64> for ErrorCode {
    fn from(number: i64) -> Self {
        match number {
            -32700 => Self::ParseError,
            -32600 => Self::InvalidRequest,
            -32601 => Self::MethodNotFound,
            -32602 => Self::InvalidParams,
            -32603 => Self::Internal,
            -32000 => Self::NoValidProxy,
            -32001 => Self::CannotListen,
            -32002 => Self::RemoteRefused,
            -32003 => Self::NotPermitted,
            -32004 => Self::RaceUnderWay,
            -32005 => Self::Cancelled,
            -32006 => Self::NotAForwarder,
            -32007 => Self::HandedOver,
            other => Self::Other(other),
        }
    }
}

impl From<ErrorCode> for i64 {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::ParseError => -32700,
            ErrorCode::InvalidRequest => -32600,
            ErrorCode::MethodNotFound => -32601,
            ErrorCode::InvalidParams => -32602,
            ErrorCode::Internal => -32603,
            ErrorCode::NoValidProxy => -32000,
            ErrorCode::CannotListen => -32001,
            ErrorCode::RemoteRefused => -32002,
            ErrorCode::NotPermitted => -32003,
            ErrorCode::RaceUnderWay => -32004,
            ErrorCode::Cancelled => -32005,
            ErrorCode::NotAForwarder => -32006,
            ErrorCode::HandedOver => -32007,
            ErrorCode::Other(number) => number,
        }
    }
}

/// What a forwarder does now. Fields are only ever added; those with a default came later than the first ones.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Status {
    /// The proxy that new connections go to.
    pub remote: Option<String>,
    /// Why it is that one, or why there is none.
    pub reason: Option<String>,
    /// Who chooses it.
    pub mode: Mode,
    /// Open listeners.
    pub listening: Vec<String>,
    /// Whether rounds of probes run.
    pub probing: bool,
    /// Clients.
    pub connections: Connections,
    /// Bytes carried since the start.
    pub bytes: Bytes,
    /// Known peers by status.
    pub candidates: Candidates,
    /// Where peers come from.
    pub sources: Vec<SourceState>,
    /// Remotes that carry streams: the one in use first, then those before it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<RemoteStreams>,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// The last thing that an admin should have seen in the log.
    pub last_error: Option<LastError>,
    /// Clients that were served from this machine's own connection, because no remote could be used. `None`: none ever are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_directly: Option<u64>,
    /// Clients that have datagrams carried now.
    pub associations: u64,
    /// What the kernel confines the forwarder by: `landlock`, `seccomp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confined_by: Vec<String>,
}

/// What a server does now. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ServerStatus {
    /// Tells this answer from a forwarder's.
    pub role: Role,
    /// Open listeners.
    pub listening: Vec<String>,
    /// How many users there are. `None`: nobody has to authenticate.
    pub users: Option<u64>,
    /// The proxies that destinations are reached through, without passwords. Empty: directly.
    pub via: Vec<String>,
    /// Addresses that have connections now; a /64 of IPv6 is one, Unix sockets have none.
    pub clients: u64,
    /// Their connections.
    pub connections: Connections,
    /// Of these, those that have datagrams carried.
    pub associations: u64,
    /// Sessions of SOCKS 6 that clients can go on with.
    pub sessions: u64,
    /// Datagrams dropped since the start, by reason, such as `rules`, `unsolicited`, `fragment`.
    #[serde(skip_serializing_if = "ByName::is_empty")]
    pub dropped_datagrams: ByName<u64>,
    /// Bytes carried since the start.
    pub bytes: Bytes,
    /// The same by user, for those who have logged in; a thousand at most.
    pub by_user: ByName<UserStatus>,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// As a forwarder's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confined_by: Vec<String>,
}

/// What one user of a server did since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct UserStatus {
    /// Connections open now.
    pub active: u64,
    /// Connections since the start.
    pub total: u64,
    /// Bytes carried since the start.
    pub bytes: Bytes,
}

/// What answers, where it is no forwarder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `sockhop serve`.
    #[default]
    Server,
}

/// The answer to `status`, of whatever answers.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyStatus {
    /// A server's: it has a role.
    Server(ServerStatus),
    /// A forwarder's.
    Forwarder(Status),
}

/// What a daemon hands over to the one that takes its place, with the descriptors of its listeners.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HandOver {
    /// The number of its process.
    pub process: u32,
    /// What each descriptor is, in their order: `control`, or `clients` or `metrics` and the address as it was given.
    pub listeners: Vec<String>,
    /// Who chooses the remote.
    pub mode: Mode,
    /// In automatic mode: the remote in use, and others that are or were valid, best first.
    pub known: Vec<String>,
    /// The remotes that were named with `connect`, with what is needed to use them, if those are in use.
    pub remotes: Vec<String>,
}

/// The answer to `took_over`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Draining {
    /// Connections that go on where they are.
    pub draining: u64,
}

/// A source of peers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SourceState {
    /// `flag`, the source as it was written (`file:PATH`, `yggdrasil` …), or `remote` for those named by hand.
    pub name: String,
    /// Why its last refresh failed; the last good list is in use.
    pub error: Option<String>,
    /// How many of its addresses `--only` and `--never` leave out.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// What a remote carries.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RemoteStreams {
    /// Which one.
    pub remote: String,
    /// Whether it is the one in use. Streams on others go on until they end, or are cut.
    pub selected: bool,
    /// Streams now.
    pub live: u64,
    /// Streams so far. Absent for a SOCKS 6 proxy that clients are converted for, as the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes that it has carried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bytes>,
    /// Seconds until what is left is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_in_s: Option<f64>,
}

/// Numbers of client connections.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Connections {
    /// Open now.
    pub active: u64,
    /// Of these, idle ones that hold no thread.
    pub parked: u64,
    /// Accepted since the start.
    pub total: u64,
    /// Closed unserved since the start.
    pub refused: u64,
    /// The same by reason, such as `not-allowed`, `peer`, `limit`, `per-client-limit`.
    pub refused_by_reason: ByName<u64>,
}

/// Numbers of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Bytes {
    /// From clients to remotes.
    pub up: u64,
    /// From remotes to clients.
    pub down: u64,
}

/// Numbers of peers by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Candidates {
    /// See [`PeerStatus::Valid`].
    pub valid: u64,
    /// See [`PeerStatus::AuthenticationRequired`].
    pub authentication_required: u64,
    /// See [`PeerStatus::Socks6`]. Left out where there are none: few ask for them.
    #[serde(skip_serializing_if = "is_zero")]
    pub socks6: u64,
    /// See [`PeerStatus::NotAProxy`].
    pub not_a_proxy: u64,
    /// See [`PeerStatus::NotListening`].
    pub not_listening: u64,
    /// See [`PeerStatus::Unknown`].
    pub unknown: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An error and when it was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LastError {
    /// RFC 3339, UTC.
    pub at: String,
    /// What happened.
    pub what: String,
}

/// What the last probe of a peer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerStatus {
    /// It answered that no authentication is needed.
    Valid,
    /// It is a proxy that wants authentication.
    AuthenticationRequired,
    /// It is a proxy of SOCKS 6 that did not take us in SOCKS 5.
    Socks6,
    /// It answered something else, or closed.
    NotAProxy,
    /// It refused, could not be reached, or did not answer in time.
    NotListening,
    /// It was not probed yet, or something on our side stopped the probe.
    #[default]
    Unknown,
}

impl fmt::Display for PeerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad`, so that it can be put in columns.
        f.pad(match self {
            Self::Valid => "valid",
            Self::AuthenticationRequired => "authentication-required",
            Self::Socks6 => "socks6",
            Self::NotAProxy => "not-a-proxy",
            Self::NotListening => "not-listening",
            Self::Unknown => "unknown",
        })
    }
}

/// A known peer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProxyEntry {
    /// With its port.
    pub address: String,
    /// What the last probe found.
    pub status: PeerStatus,
    /// Why, in a few words such as `answered 05 00` or `refused`.
    pub reason: String,
    /// Smoothed time to the answer, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Where the peer comes from.
    pub sources: Vec<String>,
    /// Seconds since the end of the last probe.
    pub last_probed_s: Option<f64>,
    /// Seconds since it was last valid.
    pub last_valid_s: Option<f64>,
    /// Probes in a row that did not find it valid.
    pub failures: u32,
    /// Whether it is the remote.
    pub selected: bool,
    /// How good it is, from 0 to 100. Absent for one that can't be chosen, as the next ones where there is nothing to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// How far answers are off the smoothed latency, in milliseconds: the smoothed mean deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_spread_ms: Option<f64>,
    /// Seconds since it has been good without a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_for_s: Option<f64>,
    /// Whether it may be chosen as far as `--only` and `--never` are concerned.
    pub candidate: bool,
    /// Its place in the order of `--prefer`, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred: Option<u32>,
    /// Why it is the remote, or why it is not though it could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The answer to `connect`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Connected {
    /// The remote from now on.
    pub remote: String,
    /// Where clients can connect.
    pub listening: Vec<String>,
    /// With a drain: streams on other remotes that are to be cut.
    #[serde(skip_serializing_if = "is_zero")]
    pub draining: u64,
}

/// The answer to `disconnect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Disconnected {
    /// How many streams were cut.
    pub closed: u64,
}

/// The answer to `probing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Probing {
    /// Whether rounds of probes run now.
    pub probing: bool,
}

#[derive(Serialize)]
struct WireRequest<'a> {
    jsonrpc: &'static str,
    id: &'a Id,
    method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Params>,
}

#[derive(Serialize)]
struct WireResponse<'a> {
    jsonrpc: &'static str,
    id: &'a Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorObject>,
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

/// Those of all methods.
#[derive(Serialize, Default)]
struct Params {
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
}

impl Params {
    /// Absent parameters are an empty object. Misspelt ones are refused: a `connect` that silently races would surprise.
    fn read(method: &str, params: Option<&RawValue>, known: &[&str]) -> Result<Self, ErrorObject> {
        let text = params.map_or("{}", RawValue::get);
        // JSON-RPC's parameters by position are not promised here.
        if !text.starts_with('{') {
            return Err(ErrorObject::new(
                ErrorCode::InvalidParams,
                format!("parameters of {method} are not an object"),
            ));
        }
        let mut this = Self::default();
        let read = Object::read(text).and_then(|mut object| {
            object.only(known);
            object.optional("remote", &mut this.remote);
            object.optional("drain_s", &mut this.drain_s);
            object.optional("run", &mut this.run);
            object.optional("role", &mut this.role);
            object.end(())
        });
        match read {
            Ok(()) => Ok(this),
            Err(error) => Err(not_params_of(method).with_reason(error.to_string())),
        }
    }
}

fn not_params_of(method: &str) -> ErrorObject {
    let message = format!("not parameters of {method}");
    ErrorObject::new(ErrorCode::InvalidParams, message)
}

fn drain(seconds: f64) -> Result<Duration, ErrorObject> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(drain) if drain <= MAX_DRAIN => Ok(drain),
        _ => Err(ErrorObject::new(
            ErrorCode::InvalidParams,
            "\"drain_s\" is not a number of seconds from 0 to 86400",
        )),
    }
}

const NOT_A_REQUEST: &str = "not a JSON-RPC 2.0 request";

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn refusal(line: &str) -> (Id, ErrorObject) {
        let response = Request::decode(line.as_bytes()).expect_err(line);
        (response.id, response.outcome.expect_err("an error"))
    }

    #[test]
    fn requests_are_read_as_written() {
        for call in [
            Call::Status,
            Call::Proxies,
            Call::Connect {
                remote: None,
                drain: None,
            },
            Call::Connect {
                remote: Some("[407::1]:1080".to_owned()),
                drain: None,
            },
            Call::Connect {
                remote: Some("[407::1]:1080".to_owned()),
                drain: Some(Duration::from_millis(1500)),
            },
            Call::Connect {
                remote: None,
                drain: Some(MAX_DRAIN),
            },
            Call::Disconnect,
            Call::Probing { run: true },
            Call::Probing { run: false },
            Call::TakeOver { role: None },
            Call::TakeOver {
                role: Some(Role::Server),
            },
            Call::TookOver,
        ] {
            for id in [Id::from(7), Id::Text("a".to_owned())] {
                let request = Request {
                    id,
                    call: call.clone(),
                };
                let line = request.to_line();
                assert_eq!(line.matches('\n').count(), 1);
                assert_eq!(Request::decode(line.as_bytes()).unwrap(), request);
            }
        }
    }

    #[test]
    fn requests_that_are_none_get_their_code() {
        use ErrorCode::*;
        for (line, code) in [
            ("", ParseError),
            ("{", ParseError),
            (
                "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"} x",
                ParseError,
            ),
            ("\u{7f}", ParseError),
            ("3", InvalidRequest),
            ("[]", InvalidRequest),
            ("{}", InvalidRequest),
            (
                r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#,
                InvalidRequest,
            ),
            (r#"{"jsonrpc":"2.0","method":"status"}"#, InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1}"#, InvalidRequest),
            (
                r#"{"jsonrpc":"2.0","id":{},"method":"status"}"#,
                InvalidRequest,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"stop"}"#,
                MethodNotFound,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"probing"}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"probing","params":{"run":1}}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"probing","params":[true]}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"status","params":{"a":1}}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"remtoe":"x"}}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"drain_s":-1}}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"drain_s":86401}}"#,
                InvalidParams,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"drain_s":"30s"}}"#,
                InvalidParams,
            ),
        ] {
            assert_eq!(refusal(line).1.code, code, "{line}");
        }
        let (id, error) = refusal(r#"{"jsonrpc":"2.0","id":"q","method":"stop"}"#);
        assert_eq!(id, Id::Text("q".to_owned()));
        assert!(error.hint().unwrap().contains("disconnect"));
        assert!(Request::decode(b"\xff\xfe").is_err());
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let line = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"params\":{}",
            "[".repeat(1_000_000)
        );
        assert_eq!(refusal(&line).1.code, ErrorCode::ParseError);
    }

    #[test]
    fn answers_keep_the_text_of_their_result() {
        let text = r#"{"b":1.50,  "a":[]}"#;
        let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{text}}}\n");
        let response = Response::decode(line.as_bytes()).unwrap();
        assert_eq!(response.outcome.as_ref().unwrap().get(), text);
        assert_eq!(response.to_line(), line);
    }

    #[test]
    fn an_answer_says_what_its_list_lacks() {
        let line = Response::part(Id::from(3), &[1, 2], 40).to_line();
        assert_eq!(
            line,
            "{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":[1,2],\"left_out\":40}\n"
        );
        assert_eq!(Response::decode(line.as_bytes()).unwrap().left_out, 40);
        let whole = Response::part(Id::from(3), &[1, 2], 0).to_line();
        assert!(whole.ends_with("[1,2]}\n"), "{whole}");
    }

    #[test]
    fn error_answers_are_read_as_written() {
        let error = ErrorObject::new(ErrorCode::CannotListen, "cannot listen on [::]:1080")
            .with_reason("address already in use")
            .with_hint("give another --listen");
        let line = Response::error(Id::from(3), error.clone()).to_line();
        assert_eq!(
            line,
            "{\"jsonrpc\":\"2.0\",\"id\":3,\"error\":{\"code\":-32001,\"message\":\"cannot listen on [::]:1080\",\
             \"data\":{\"reason\":\"address already in use\",\"hint\":\"give another --listen\"}}}\n"
        );
        let read = Response::decode(line.as_bytes()).unwrap();
        assert_eq!(read.outcome.unwrap_err(), error);
        assert_eq!(
            error.to_string(),
            "cannot listen on [::]:1080: address already in use"
        );
        for line in [
            "{}",
            r#"{"id":1}"#,
            r#"{"id":1,"result":1,"error":{"code":1,"message":""}}"#,
            "x",
        ] {
            assert!(Response::decode(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn error_codes_are_their_own_inverse() {
        for number in [
            -32700,
            -32600,
            -32601,
            -32602,
            -32603,
            -32000,
            -32001,
            -32002,
            -32003,
            -32004,
            -32005,
            -32006,
            0,
            i64::MIN,
        ] {
            assert_eq!(i64::from(ErrorCode::from(number)), number);
        }
        assert_eq!(ErrorCode::from(-1), ErrorCode::Other(-1));
    }

    #[test]
    fn status_has_the_fields_of_the_design() {
        let text = r#"{"remote": "[407::1]:1080", "mode": "automatic", "listening": ["[::]:1080"], "probing": true,
          "connections": {"active": 3, "parked": 2, "total": 120, "refused": 0}, "bytes": {"up": 1, "down": 2},
          "candidates": {"valid": 2, "authentication-required": 1, "not-a-proxy": 4, "not-listening": 90, "unknown": 0},
          "uptime_s": 12.5, "last_error": {"at": "2026-01-01T00:00:00Z", "what": "x"}}"#;
        let status = Status::read(text).unwrap();
        assert_eq!(status.candidates.not_listening, 90);
        let mut written = serde_json::to_value(&status).unwrap();
        let object = written.as_object_mut().unwrap();
        assert_eq!(object.remove("reason"), Some(Value::Null));
        assert_eq!(object.remove("sources"), Some(Value::Array(Vec::new())));
        assert_eq!(object.remove("associations"), Some(Value::from(0)));
        object["connections"]
            .as_object_mut()
            .unwrap()
            .remove("refused_by_reason");
        assert_eq!(written, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn proxies_have_the_fields_of_the_design() {
        let text = r#"[{"address":"[407::1]:1080","status":"valid","reason":"answered 05 00","latency_ms":12.3,"sources":["flag"],"last_probed_s":3.1,"last_valid_s":null,"failures":0,"selected":true}]"#;
        let entries = Vec::<ProxyEntry>::read(text).unwrap();
        // What was added later has a default, and is told only where there is something to tell.
        let text = text.replace('}', r#","candidate":true}"#);
        assert_eq!(serde_json::to_string(&entries).unwrap(), text);
        for status in [
            PeerStatus::Valid,
            PeerStatus::AuthenticationRequired,
            PeerStatus::Socks6,
            PeerStatus::NotAProxy,
            PeerStatus::NotListening,
            PeerStatus::Unknown,
        ] {
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(json, format!("\"{status}\""));
            assert_eq!(PeerStatus::read(&json).unwrap(), status);
        }
    }
}
