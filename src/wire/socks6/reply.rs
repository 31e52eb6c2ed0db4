//! The proxy's answer to what the client asked for.
//!
//! What to read: "Operation Replies" in the draft.

use std::fmt;

use super::address::{HostField, read_addressed, write_addressed};
use super::authentication::fill;
use super::error::{DecodeError, Decoded, Fault, Problems};
use super::extra::ExtraOptions;
use super::option::{Kind, RawOption};
use super::profile::Profile;
use super::reader::{Stop, finish};
use super::request::{keep, session_id};
use super::session::SessionId;
use super::stack::StackOptions;
use crate::wire::{BoundAddress, socks5};

/// An operation reply; for BIND there are two, and more where a backlog is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpReply {
    /// How it went.
    pub code: ReplyCode,
    /// The address on the proxy's side, as the remote sees it. After decoding, a name has no NUL at its end.
    pub bound: BoundAddress,
    /// Everything else.
    pub options: OpReplyOptions,
}

/// How a request went. Any byte is a code; those we know have names and a text. All but success end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyCode(pub u8);

/// The options of an operation reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpReplyOptions {
    /// What is in force (kind 1).
    pub stack: StackOptions,
    /// The id of the session that was granted (kind 6). Here or in the authentication reply: see
    /// [`Profile::session_id`].
    pub session_id: Option<SessionId>,
    /// Options that we don't know.
    pub extra: ExtraOptions,
}

impl OpReply {
    /// As long as a [`Request`](super::Request).
    pub const MAX_LEN: usize = super::Request::MAX_LEN;

    /// A reply without options.
    #[must_use]
    pub fn new(code: ReplyCode, bound: BoundAddress) -> Self {
        Self {
            code,
            bound,
            options: OpReplyOptions::default(),
        }
    }

    /// See [`super`] for the convention. Any name is accepted.
    ///
    /// # Errors
    ///
    /// Any [`DecodeError`] but those of UDP.
    pub fn decode(input: &[u8], profile: &Profile) -> Result<Decoded<Self>, DecodeError> {
        finish(Self::read(input, profile))
    }

    fn read(input: &[u8], profile: &Profile) -> Result<(Self, usize, Problems), Stop> {
        let addressed = read_addressed(input, profile)?;
        let mut options = OpReplyOptions::default();
        let mut problems = Problems::default();
        for option in RawOption::all(addressed.options()?, profile) {
            let option = option?;
            if let Err(fault) = options.take(&option, profile) {
                problems.add(option.kind, option.at, fault);
            }
        }
        let reply = Self {
            code: ReplyCode(addressed.code),
            bound: addressed.host.lenient(addressed.port),
            options,
        };
        Ok((reply, addressed.length, problems))
    }

    /// Appends the message.
    pub fn encode(&self, profile: &Profile, out: &mut Vec<u8>) {
        let mut options = Vec::new();
        self.options.stack.write(profile, &mut options);
        if let Some(id) = &self.options.session_id {
            RawOption::write(Kind::SESSION_ID, &[id.as_bytes()], &mut options);
        }
        self.options.extra.write(&mut options);
        let host = HostField::of_bound(&self.bound);
        let port = self.bound.port();
        write_addressed(self.code.0, host, port, &options, profile, out);
    }
}

impl OpReplyOptions {
    fn take(&mut self, option: &RawOption<'_>, profile: &Profile) -> Result<(), Fault> {
        match option.kind {
            Kind::STACK => match self.stack.read(option, profile)? {
                true => Ok(()),
                false => keep(&mut self.extra, option),
            },
            Kind::SESSION_ID => fill(&mut self.session_id, session_id(option)?),
            kind if kind.is_known() => Err(Fault::Misplaced),
            _ => keep(&mut self.extra, option),
        }
    }
}

impl ReplyCode {
    /// Done.
    pub const SUCCEEDED: Self = Self(0);
    /// Anything without a code of its own.
    pub const GENERAL_FAILURE: Self = Self(1);
    /// The proxy's rules forbid it.
    pub const NOT_ALLOWED: Self = Self(2);
    /// No route to the network.
    pub const NETWORK_UNREACHABLE: Self = Self(3);
    /// No route to the host, or its name is unknown.
    pub const HOST_UNREACHABLE: Self = Self(4);
    /// The destination refused the connection.
    pub const CONNECTION_REFUSED: Self = Self(5);
    /// The time to live ran out.
    pub const TTL_EXPIRED: Self = Self(6);
    /// The proxy does not know this command.
    pub const COMMAND_NOT_SUPPORTED: Self = Self(7);
    /// The proxy does not know this type of address.
    pub const ADDRESS_TYPE_NOT_SUPPORTED: Self = Self(8);
    /// The destination did not answer in time.
    pub const TIMED_OUT: Self = Self(9);

    /// The same for a SOCKS 5 client, which knows no code for a time-out: proxies use that of the TTL.
    #[must_use]
    pub const fn to_socks5(self) -> socks5::ReplyCode {
        match self {
            Self::TIMED_OUT => socks5::ReplyCode::TTL_EXPIRED,
            Self(byte) if byte > Self::TIMED_OUT.0 => socks5::ReplyCode::GENERAL_FAILURE,
            Self(byte) => socks5::ReplyCode(byte),
        }
    }
}

/// The codes of SOCKS 5 mean the same here.
impl From<socks5::ReplyCode> for ReplyCode {
    fn from(code: socks5::ReplyCode) -> Self {
        match code.0 {
            0..=8 => Self(code.0),
            _ => Self::GENERAL_FAILURE,
        }
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TIMED_OUT => f.pad("connection attempt timed out"),
            Self::TTL_EXPIRED => f.pad("TTL expired"),
            // The others have the texts of SOCKS 5.
            Self(byte) => socks5::ReplyCode(byte).fmt(f),
        }
    }
}
