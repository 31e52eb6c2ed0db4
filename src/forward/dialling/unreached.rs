//! Replies of remotes that could not reach the destination, where another one may.

use std::net::SocketAddr;
use std::time::Instant;

use crate::forward::route::DialFailure;
use crate::forward::serving::Serving;
use crate::wire::socks5::ReplyCode;

/// The remotes that could not reach the destination, as long as one is sought that can.
#[derive(Default)]
pub(super) struct Unreached(Vec<Attempted>);

struct Attempted {
    remote: SocketAddr,
    since: Instant,
    code: ReplyCode,
}

impl Unreached {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// A remote that was asked at that time has replied with this.
    pub(super) fn push(&mut self, remote: SocketAddr, since: Instant, code: ReplyCode) {
        self.0.push(Attempted {
            remote,
            since,
            code,
        });
    }

    /// The reply that says most about the destination.
    pub(super) fn most_telling(&self) -> Option<ReplyCode> {
        // The first one of equals.
        let replies = self.0.iter().rev();
        replies.map(|reply| reply.code).max_by_key(|code| code.0)
    }

    /// Another remote has reached it, so these failed the client.
    pub(super) fn report_outdone(&mut self, serving: &Serving) {
        self.report(serving, DialFailure::Outdone);
    }

    /// None has reached it: it may be the destination's fault.
    pub(super) fn report_replied(&mut self, serving: &Serving) {
        self.report(serving, DialFailure::Replied);
    }

    fn report(&mut self, serving: &Serving, failure: fn(ReplyCode) -> DialFailure) {
        for reply in self.0.drain(..) {
            serving.failed(reply.remote, reply.since, failure(reply.code));
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
