//! Replies of remotes that could not reach the destination, where another one may.

use std::net::SocketAddr;
use std::time::Instant;

use super::Dial;
use crate::forward::route::DialFailure;
use crate::forward::serving::Serving;
use crate::forward::verdict::Refusal;
use crate::wire::socks5::ReplyCode;

pub(super) struct Unreached {
    pub(super) remote: SocketAddr,
    pub(super) since: Instant,
    pub(super) code: ReplyCode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    Yes,
    No,
}

impl Dial {
    /// The reply that says most about the destination.
    pub(super) fn most_telling(&self) -> Option<ReplyCode> {
        // The first one of equals.
        let replies = self.replies.iter().rev();
        replies.map(|reply| reply.code).max_by_key(|code| code.0)
    }

    pub(super) fn report_replies(&mut self, serving: &Serving, served: Served) {
        for Unreached {
            remote,
            since,
            code,
        } in self.replies.drain(..)
        {
            let failure = match served {
                Served::Yes => DialFailure::Outdone(code),
                Served::No => DialFailure::Replied(code),
            };
            serving.failed(remote, since, failure);
        }
    }

    /// What the client is told when nobody is left.
    pub(super) fn refusal(&mut self, serving: &Serving) -> Refusal {
        let best = self.most_telling();
        self.report_replies(serving, Served::No);
        self.attempts.clear();
        match best {
            Some(code) => Refusal::Reply(code),
            None if self.is_method_refused => Refusal::Method,
            None => Refusal::Nobody,
        }
    }
}

/// Whether a reply says that the proxy could not get to the destination, where another one may: any failure, or no route to
/// network or host (RFC 1928 §6). That it is refused there, not allowed or not known is the answer.
pub(super) fn is_unreached(code: ReplyCode) -> bool {
    matches!(
        code,
        ReplyCode::GENERAL_FAILURE | ReplyCode::NETWORK_UNREACHABLE | ReplyCode::HOST_UNREACHABLE
    )
}
