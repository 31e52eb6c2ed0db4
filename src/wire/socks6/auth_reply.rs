//! The proxy's answer to who the client is.
//!
//! What to read: "Authentication Replies" in the draft.

use std::fmt;

use super::address::options_length;
use super::authentication::{
    AuthData, add_auth_data, fill, padded, split_auth_data, write_auth_data,
};
use super::error::{DecodeError, Decoded, Fault, Malformed, Problems};
use super::extra::ExtraOptions;
use super::option::{Kind, RawOption};
use super::profile::{Profile, SelectionKind};
use super::reader::{Stop, finish, head, slice};
use super::request::{empty, keep, session_id};
use super::session::SessionId;
use super::tokens::{Token, Window, WindowSize};
use crate::wire::socks5::Method;
use crate::wire::user_password::Status;

/// An authentication reply; at most two of them come on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthReply {
    /// How it went so far. See [`AuthReply::authentication`].
    pub kind: AuthReplyType,
    /// Everything else.
    pub options: AuthReplyOptions,
}

/// How the authentication went. Any byte is a type; those we know have names, the others are failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuthReplyType(pub u8);

/// What an authentication reply comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// The client is accepted; an operation reply follows.
    Succeeded,
    /// The proxy wants this method to be run now.
    Negotiate(Method),
    /// The client is not accepted and must close.
    Failed,
}

/// The options of an authentication reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthReplyOptions {
    /// The method the proxy wants (kind 3).
    pub selection: Option<Method>,
    /// The verdict on user and password (kind 4, method 2).
    pub password: Option<Status>,
    /// The same for other methods, at most [`AuthData::MAX_COUNT`]; more are not written.
    pub auth_data: Vec<AuthData>,
    /// The id of the session that was granted (kind 6).
    pub session_id: Option<SessionId>,
    /// What became of the session that the request is in (kinds 8 and 9).
    pub session: Option<SessionVerdict>,
    /// The session's token window (kind 12).
    pub window: Option<Window>,
    /// What became of the token (kinds 14 and 15).
    pub token: Option<TokenVerdict>,
    /// Options that we don't know.
    pub extra: ExtraOptions,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionVerdict {
    /// It goes on.
    Ok,
    /// There is no such session.
    Invalid,
}

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenVerdict {
    /// It was good, and is spent now.
    Accepted,
    /// It was spent before, or is outside the window. The request is not carried out.
    Rejected,
}

impl AuthReply {
    /// The longest: fixed fields, and the options that -12 allows.
    pub const MAX_LEN: usize = 4 + 20_480;

    /// A reply without options.
    #[must_use]
    pub fn new(kind: AuthReplyType) -> Self {
        Self {
            kind,
            options: AuthReplyOptions::default(),
        }
    }

    /// What it comes to. A method next to success is of no interest.
    #[must_use]
    pub const fn authentication(&self) -> Authentication {
        match (self.kind, self.options.selection) {
            (AuthReplyType::SUCCESS, _) => Authentication::Succeeded,
            (AuthReplyType::FAILURE, Some(method)) if method.0 != Method::NONE_ACCEPTABLE.0 => {
                Authentication::Negotiate(method)
            }
            _ => Authentication::Failed,
        }
    }

    /// See [`super`] for the convention.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Version`] and those of options.
    pub fn decode(input: &[u8], profile: &Profile) -> Result<Decoded<Self>, DecodeError> {
        finish(Self::read(input, profile))
    }

    fn read(input: &[u8], profile: &Profile) -> Result<(Self, usize, Problems), Stop> {
        let (kind, length) = head(input, FIXED, profile)?;
        let area = slice(input, FIXED, FIXED + length)?;
        let mut options = AuthReplyOptions::default();
        let mut problems = Problems::default();
        for option in RawOption::all(area, profile) {
            let option = option?;
            if let Err(fault) = options.take(&option, profile) {
                problems.add(option.kind, option.at, fault);
            }
        }
        let kind = AuthReplyType(kind);
        Ok((Self { kind, options }, FIXED + length, problems))
    }

    /// Appends the message.
    pub fn encode(&self, profile: &Profile, out: &mut Vec<u8>) {
        let mut options = Vec::new();
        self.options.write(&mut options);
        out.extend([profile.version, self.kind.0]);
        out.extend(options_length(&options).to_be_bytes());
        out.extend(options);
    }
}

impl AuthReplyOptions {
    fn take(&mut self, option: &RawOption<'_>, profile: &Profile) -> Result<(), Fault> {
        match option.kind {
            Kind::METHOD_SELECTION => fill(&mut self.selection, selection(option)?),
            Kind::METHOD_ADVERTISEMENT
                if profile.selection_kind == SelectionKind::OrAdvertisement =>
            {
                fill(&mut self.selection, selection(option)?)
            }
            Kind::AUTH_DATA => match split_auth_data(option)? {
                (Method::USER_PASSWORD, data) => {
                    fill(&mut self.password, padded(data, Status::decode(data))?)
                }
                (method, data) => add_auth_data(&mut self.auth_data, method, data),
            },
            Kind::SESSION_ID => fill(&mut self.session_id, session_id(option)?),
            Kind::SESSION_OK => {
                empty(option)?;
                fill(&mut self.session, SessionVerdict::Ok)
            }
            Kind::SESSION_INVALID => {
                empty(option)?;
                fill(&mut self.session, SessionVerdict::Invalid)
            }
            Kind::IDEMPOTENCE_WINDOW => fill(&mut self.window, window(option)?),
            Kind::IDEMPOTENCE_ACCEPTED => {
                empty(option)?;
                fill(&mut self.token, TokenVerdict::Accepted)
            }
            Kind::IDEMPOTENCE_REJECTED => {
                empty(option)?;
                fill(&mut self.token, TokenVerdict::Rejected)
            }
            kind if kind.is_known() => Err(Fault::Misplaced),
            _ => keep(&mut self.extra, option),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(method) = self.selection {
            RawOption::write(Kind::METHOD_SELECTION, &[&[method.0]], out);
        }
        if let Some(status) = self.password {
            let mut data = Vec::new();
            status.encode(&mut data);
            write_auth_data(Method::USER_PASSWORD, &data, out);
        }
        for data in self.auth_data.iter().take(AuthData::MAX_COUNT) {
            data.write(out);
        }
        if let Some(id) = &self.session_id {
            RawOption::write(Kind::SESSION_ID, &[id.as_bytes()], out);
        }
        match self.session {
            Some(SessionVerdict::Ok) => RawOption::write(Kind::SESSION_OK, &[], out),
            Some(SessionVerdict::Invalid) => RawOption::write(Kind::SESSION_INVALID, &[], out),
            None => (),
        }
        if let Some(Window { base, size }) = self.window {
            let base = base.0.to_be_bytes();
            let size = size.as_u32().to_be_bytes();
            RawOption::write(Kind::IDEMPOTENCE_WINDOW, &[&base, &size], out);
        }
        match self.token {
            Some(TokenVerdict::Accepted) => {
                RawOption::write(Kind::IDEMPOTENCE_ACCEPTED, &[], out);
            }
            Some(TokenVerdict::Rejected) => {
                RawOption::write(Kind::IDEMPOTENCE_REJECTED, &[], out);
            }
            None => (),
        }
        self.extra.write(out);
    }
}

impl AuthReplyType {
    /// The client is accepted.
    pub const SUCCESS: Self = Self(0);
    /// It is not, or not yet.
    pub const FAILURE: Self = Self(1);
}

impl fmt::Display for AuthReplyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match *self {
            Self::SUCCESS => "success",
            Self::FAILURE => "failure",
            Self(byte) => return write!(f, "authentication reply {byte:#04x}"),
        })
    }
}

/// Version, type, length of the options.
const FIXED: usize = 4;

/// One method and three bytes of padding, which an unaligned peer may leave out.
fn selection(option: &RawOption<'_>) -> Result<Method, Malformed> {
    // In the form with the kind of the advertisement, the method comes first too.
    match option.data {
        [method, padding @ ..] if padding.len() < 4 => Ok(Method(*method)),
        _ => Err(Malformed::Length(option.length())),
    }
}

fn window(option: &RawOption<'_>) -> Result<Window, Malformed> {
    let &[b0, b1, b2, b3, s0, s1, s2, s3] = option.data else {
        return Err(Malformed::Length(option.length()));
    };
    let size = u32::from_be_bytes([s0, s1, s2, s3]);
    Ok(Window {
        base: Token(u32::from_be_bytes([b0, b1, b2, b3])),
        size: WindowSize::new(size).ok_or(Malformed::WindowSize(size))?,
    })
}
