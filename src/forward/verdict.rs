//! What has come of finding a remote for a client.

use std::net::SocketAddr;
use std::time::Instant;

use socket2::Socket;

use crate::wire::socks5::{Reply, ReplyCode};

/// What has come of it.
pub(super) enum Verdict {
    Wait(Option<Instant>),
    /// From here on bytes are only passed on.
    Relay(Won),
    /// The remote has granted an association, and the client has not heard of it.
    Associated(Associated),
    /// Nobody is left.
    Decline(Refusal),
    /// The remote broke off, and the client is to see that.
    Reset,
    Over,
}

/// A remote that serves the client.
pub(super) struct Won {
    pub(super) remote: SocketAddr,
    pub(super) socket: Socket,
    pub(super) since: Instant,
    /// For the client, before anything else.
    pub(super) answer: Vec<u8>,
    /// For the remote, before anything else.
    pub(super) unsent: Vec<u8>,
    /// Bytes that the remote has had of the client.
    pub(super) up: u64,
    /// Bytes that the client has had already.
    pub(super) down: u64,
}

/// A successful reply to UDP ASSOCIATE.
pub(super) struct Associated {
    /// Its `answer` is what the client has to hear before the reply.
    pub(super) won: Won,
    pub(super) reply: Reply,
    /// The reply as it came.
    pub(super) bytes: Vec<u8>,
    /// What came behind it.
    pub(super) behind: Vec<u8>,
}

impl Associated {
    /// Passes the reply on as it came.
    pub(super) fn untouched(self) -> Won {
        let mut won = self.won;
        won.answer.extend(self.bytes);
        won.answer.extend(self.behind);
        won
    }
}

/// How a client is told that there is no remote for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// With this reply to its request.
    Reply(ReplyCode),
    /// As every remote did: by accepting none of its methods.
    Method,
    /// As no remote did: none could be used. With a general failure, unless somebody else serves it.
    Nobody,
}
