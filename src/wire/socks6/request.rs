//! The client's request.
//!
//! What to read: "Requests" in the draft.

use std::fmt;

use super::address::{HostField, read_addressed, write_addressed};
use super::authentication::{
    AuthData, MethodAdvertisement, add_auth_data, fill, padded, repeated, split_auth_data,
    write_auth_data,
};
use super::error::{DecodeError, Decoded, Fault, Malformed, Problems};
use super::extra::ExtraOptions;
use super::option::{Kind, RawOption};
use super::profile::{BacklogNotice, Profile};
use super::reader::{Stop, finish};
use super::session::{SessionId, SessionUse};
use super::stack::StackOptions;
use super::tokens::{Token, WindowSize};
use crate::wire::socks5::Method;
use crate::wire::{Address, user_password};

/// What the client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// CONNECT: with whom. BIND, UDP ASSOCIATE: the wanted address on the proxy, where zeros are "any". NOOP: all zeros.
    pub address: Address,
    /// Everything else.
    pub options: RequestOptions,
}

/// A command. Any byte is one; those we know have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Command(pub u8);

/// The options of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestOptions {
    /// What the sockets should be like (kind 1).
    pub stack: StackOptions,
    /// What the client is ready to negotiate (kind 2).
    pub methods: Option<MethodAdvertisement>,
    /// User and password without a negotiation (kind 4, method 2).
    pub password: Option<user_password::Request>,
    /// The same for other methods, at most [`AuthData::MAX_COUNT`]; more are not written.
    pub auth_data: Vec<AuthData>,
    /// The session (kinds 5, 6 and 10).
    pub session: SessionUse,
    /// The wish for a token window (kind 11). Ignored outside a session.
    pub window: Option<WindowSize>,
    /// The token that this request spends (kind 13). Ignored outside a session.
    pub token: Option<Token>,
    /// Options that we don't know.
    pub extra: ExtraOptions,
}

impl Request {
    /// The longest: fixed fields, the longest name, and the options that -12 allows.
    pub const MAX_LEN: usize = 8 + 256 + 20_480;

    /// A request without options.
    #[must_use]
    pub fn new(command: Command, address: Address) -> Self {
        Self {
            command,
            address,
            options: RequestOptions::default(),
        }
    }

    /// Whether the address is one that the command may have: that of a NOOP is all zeros, and no name. The draft does not
    /// say what a proxy does about another; as it has no use for the address, it can ignore it.
    #[must_use]
    pub fn has_legal_address(&self) -> bool {
        let address = self.address.socket_addr();
        let zeros = address.is_some_and(|to| to.ip().is_unspecified() && to.port() == 0);
        zeros || self.command != Command::NOOP
    }

    /// How many bytes of payload follow the request and come before anything else, as the client declares it.
    #[must_use]
    pub fn initial_data(&self) -> usize {
        let methods = self.options.methods;
        methods.map_or(0, |methods| usize::from(methods.initial_data))
    }

    /// Whether payload may follow the request without being declared: "false start". A client that advertises methods
    /// must wait, since the bytes after the initial data may be a method's.
    #[must_use]
    pub fn allows_false_start(&self) -> bool {
        self.command == Command::CONNECT && self.options.methods.is_none()
    }

    /// See [`super`] for the convention.
    ///
    /// # Errors
    ///
    /// Any [`DecodeError`] but the two of UDP.
    pub fn decode(input: &[u8], profile: &Profile) -> Result<Decoded<Self>, DecodeError> {
        finish(Self::read(input, profile))
    }

    fn read(input: &[u8], profile: &Profile) -> Result<(Self, usize, Problems), Stop> {
        let addressed = read_addressed(input, profile)?;
        let command = Command(addressed.code);
        let address = addressed.host.strict(addressed.port)?;
        let (options, problems) = RequestOptions::read(addressed.options()?, command, profile)?;
        let request = Self {
            command,
            address,
            options,
        };
        Ok((request, addressed.length, problems))
    }

    /// Appends the message.
    pub fn encode(&self, profile: &Profile, out: &mut Vec<u8>) {
        let mut options = Vec::new();
        self.options.write(profile, &mut options);
        let host = HostField::of(&self.address.host);
        let port = self.address.port;
        write_addressed(self.command.0, host, port, &options, profile, out);
    }
}

impl RequestOptions {
    fn read(
        area: &[u8],
        command: Command,
        profile: &Profile,
    ) -> Result<(Self, Problems), DecodeError> {
        let mut reading = Reading::default();
        let mut problems = Problems::default();
        for option in RawOption::all(area, profile) {
            let option = option?;
            if let Err(fault) = reading.take(&option, command, profile) {
                problems.add(option.kind, option.at, fault);
            }
        }
        Ok(reading.finish(problems, profile))
    }

    fn write(&self, profile: &Profile, out: &mut Vec<u8>) {
        self.stack.write(profile, out);
        if let Some(methods) = &self.methods {
            methods.write(out);
        }
        if let Some(password) = &self.password {
            let mut data = Vec::new();
            password.encode(&mut data);
            write_auth_data(Method::USER_PASSWORD, &data, out);
        }
        for data in self.auth_data.iter().take(AuthData::MAX_COUNT) {
            data.write(out);
        }
        if self.session == SessionUse::Request {
            RawOption::write(Kind::SESSION_REQUEST, &[], out);
        }
        if let Some(id) = self.session.id() {
            RawOption::write(Kind::SESSION_ID, &[id.as_bytes()], out);
        }
        if let SessionUse::Teardown(_) = self.session {
            RawOption::write(Kind::SESSION_TEARDOWN, &[], out);
        }
        if let Some(size) = self.window {
            let size = size.as_u32().to_be_bytes();
            RawOption::write(Kind::IDEMPOTENCE_REQUEST, &[&size], out);
        }
        if let Some(token) = self.token {
            let token = token.0.to_be_bytes();
            RawOption::write(Kind::IDEMPOTENCE_EXPENDITURE, &[&token], out);
        }
        self.extra.write(out);
    }
}

/// Not derived, since passwords are compared in a time that does not tell how much of them is the same.
impl PartialEq for RequestOptions {
    fn eq(&self, other: &Self) -> bool {
        let password = match (&self.password, &other.password) {
            (Some(ours), Some(theirs)) => ours.same(theirs),
            (None, None) => true,
            _ => false,
        };
        password
            && self.stack == other.stack
            && self.methods == other.methods
            && self.auth_data == other.auth_data
            && self.session == other.session
            && self.window == other.window
            && self.token == other.token
            && self.extra == other.extra
    }
}

impl Eq for RequestOptions {}

/// Options as they are found, before it is known what they make together.
#[derive(Default)]
struct Reading {
    options: RequestOptions,
    /// The option and where it is.
    requested: Option<u16>,
    id: Option<SessionId>,
    teardown: Option<u16>,
    window_at: u16,
    token_at: u16,
    backlog_at: u16,
}

impl Reading {
    fn take(
        &mut self,
        option: &RawOption<'_>,
        command: Command,
        profile: &Profile,
    ) -> Result<(), Fault> {
        let options = &mut self.options;
        match option.kind {
            Kind::STACK => {
                let had_backlog = options.stack.backlog.is_some();
                let known = options.stack.read(option, profile)?;
                if !known {
                    return keep(&mut options.extra, option);
                }
                if !had_backlog {
                    self.backlog_at = option.at;
                }
                Ok(())
            }
            Kind::METHOD_ADVERTISEMENT => {
                let methods = MethodAdvertisement::read(option)?;
                if methods.initial_data > 0 && command != Command::CONNECT {
                    return Err(Malformed::InitialData(methods.initial_data).into());
                }
                fill(&mut options.methods, methods)
            }
            Kind::AUTH_DATA => match split_auth_data(option)? {
                (Method::USER_PASSWORD, data) => {
                    let password = padded(data, user_password::Request::decode(data))?;
                    match &options.password {
                        None => options.password = Some(password),
                        Some(earlier) => return Err(repeated(earlier.same(&password))),
                    }
                    Ok(())
                }
                (method, data) => add_auth_data(&mut options.auth_data, method, data),
            },
            Kind::SESSION_REQUEST => {
                empty(option)?;
                fill_place(&mut self.requested, option.at)
            }
            Kind::SESSION_ID => fill(&mut self.id, session_id(option)?),
            Kind::SESSION_TEARDOWN => {
                empty(option)?;
                fill_place(&mut self.teardown, option.at)
            }
            Kind::IDEMPOTENCE_REQUEST => {
                let size = number(option)?;
                let size = WindowSize::new(size).ok_or(Malformed::WindowSize(size))?;
                fill(&mut options.window, size)?;
                self.window_at = option.at;
                Ok(())
            }
            Kind::IDEMPOTENCE_EXPENDITURE => {
                fill(&mut options.token, Token(number(option)?))?;
                self.token_at = option.at;
                Ok(())
            }
            kind if kind.is_known() => Err(Fault::Misplaced),
            _ => keep(&mut options.extra, option),
        }
    }

    /// Puts the session together, and finds what contradicts it.
    fn finish(self, mut problems: Problems, profile: &Profile) -> (RequestOptions, Problems) {
        let mut options = self.options;
        options.session = match (self.id, self.teardown) {
            (Some(id), Some(_)) => SessionUse::Teardown(id),
            (Some(id), None) => SessionUse::Resume(id),
            (None, teardown) => {
                if let Some(at) = teardown {
                    problems.add(Kind::SESSION_TEARDOWN, at, Fault::WithoutSession);
                }
                match self.requested {
                    Some(_) => SessionUse::Request,
                    None => SessionUse::None,
                }
            }
        };
        // "Session Request" must not be inside another session.
        if let (Some(at), Some(_)) = (self.requested, options.session.id()) {
            problems.add(Kind::SESSION_REQUEST, at, Fault::Contradiction);
        }
        if !options.session.may_be_inside() {
            if options.window.is_some() {
                let kind = Kind::IDEMPOTENCE_REQUEST;
                problems.add(kind, self.window_at, Fault::WithoutSession);
            }
            if options.token.is_some() {
                let kind = Kind::IDEMPOTENCE_EXPENDITURE;
                problems.add(kind, self.token_at, Fault::WithoutSession);
            }
            if options.stack.backlog.is_some() && profile.backlog == BacklogNotice::None {
                problems.add(Kind::STACK, self.backlog_at, Fault::WithoutSession);
            }
        }
        (options, problems)
    }
}

impl Command {
    /// Nothing: for sessions, tokens and the like.
    pub const NOOP: Self = Self(0);
    /// A connection to the address.
    pub const CONNECT: Self = Self(1);
    /// A port on which the proxy accepts one connection, or more with a backlog.
    pub const BIND: Self = Self(2);
    /// A port for datagrams.
    pub const ASSOCIATE: Self = Self(3);
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match *self {
            Self::NOOP => "NOOP",
            Self::CONNECT => "CONNECT",
            Self::BIND => "BIND",
            Self::ASSOCIATE => "UDP ASSOCIATE",
            Self(byte) => return write!(f, "command {byte:#04x}"),
        })
    }
}

impl Kind {
    /// Whether the option has a meaning in some message.
    pub(super) const fn is_known(self) -> bool {
        matches!(self.0, 1..=6 | 8..=15)
    }
}

/// Keeps an option that we give no meaning to.
pub(super) fn keep(extra: &mut ExtraOptions, option: &RawOption<'_>) -> Result<(), Fault> {
    let kept = extra.push(option.kind, option.data);
    kept.map_err(|_| Fault::TooMany)
}

/// For options that say all by being there.
pub(super) fn empty(option: &RawOption<'_>) -> Result<(), Malformed> {
    match option.data {
        [] => Ok(()),
        _ => Err(Malformed::Length(option.length())),
    }
}

/// For options with one number of 32 bits.
fn number(option: &RawOption<'_>) -> Result<u32, Malformed> {
    match <[u8; 4]>::try_from(option.data) {
        Ok(bytes) => Ok(u32::from_be_bytes(bytes)),
        Err(_) => Err(Malformed::Length(option.length())),
    }
}

pub(super) fn session_id(option: &RawOption<'_>) -> Result<SessionId, Malformed> {
    SessionId::new(option.data).ok_or_else(|| Malformed::Length(option.length()))
}

fn fill_place(slot: &mut Option<u16>, at: u16) -> Result<(), Fault> {
    match slot {
        None => {
            *slot = Some(at);
            Ok(())
        }
        Some(_) => Err(Fault::Duplicate),
    }
}
