//! What answers a client, in the version it speaks.

use std::net::SocketAddr;

use super::cause::Cause;
#[cfg(feature = "socks6")]
use super::socks6::Answers;
use crate::handshake::{Request, Server};
use crate::wire::socks5::ReplyCode;
#[cfg(feature = "socks6")]
use crate::wire::socks6::StackOptions;

/// What a request wants of sockets, or what they have of it: then an answer to each option that is known here. `None` is
/// nothing; boxed, since most have none.
pub(super) type Stack = Option<Box<StackOptions>>;

/// The older versions say nothing of that.
#[cfg(not(feature = "socks6"))]
#[derive(Clone)]
pub(super) enum StackOptions {}

/// Answers a client that has made its request.
pub(super) enum Answering {
    /// SOCKS 4, 4a and 5.
    Older(Server),
    #[cfg(feature = "socks6")]
    Socks6(Box<Answers>),
}

impl Answering {
    /// The request of an older version, until the first reply.
    pub(super) const fn request(&self) -> Option<&Request> {
        match self {
            Self::Older(server) => server.request(),
            #[cfg(feature = "socks6")]
            Self::Socks6(_) => None,
        }
    }

    /// Appends that it succeeded, at this address. BIND has two of these.
    #[cfg_attr(
        not(feature = "socks6"),
        expect(unused_variables, reason = "options are SOCKS 6's")
    )]
    pub(super) fn reply(&mut self, bound: SocketAddr, granted: Stack, out: &mut Vec<u8>) {
        match self {
            Self::Older(server) => server.reply(ReplyCode::SUCCEEDED, bound, out),
            #[cfg(feature = "socks6")]
            Self::Socks6(answers) => answers.reply(bound.into(), granted, out),
        }
    }

    /// Appends that it came to nothing.
    pub(super) fn refuse(&mut self, cause: Cause, out: &mut Vec<u8>) {
        match self {
            Self::Older(server) => server.refuse(cause.code(), out),
            #[cfg(feature = "socks6")]
            Self::Socks6(answers) => answers.refuse(cause.socks6(), out),
        }
    }
}
