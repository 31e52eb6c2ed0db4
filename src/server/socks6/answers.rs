//! The replies to a client of SOCKS 6.

use crate::handshake::socks6::Server;
use crate::server::answering::Stack;
use crate::wire::BoundAddress;
use crate::wire::socks6::{OpReplyOptions, Profile, ReplyCode, SessionId};

/// Answers a client whose request was accepted.
pub(in crate::server) struct Answers {
    server: Server,
    /// The authentication reply, where it can wait for the operation reply: a packet less.
    withheld: Vec<u8>,
    /// The request belongs to it.
    session: Option<SessionId>,
    profile: Profile,
}

impl Answers {
    pub(super) const fn new(
        server: Server,
        withheld: Vec<u8>,
        session: Option<SessionId>,
        profile: Profile,
    ) -> Self {
        Self {
            server,
            withheld,
            session,
            profile,
        }
    }

    pub(super) const fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    pub(in crate::server) const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Appends that it succeeded, at this address and with what is in force there.
    pub(in crate::server) fn reply(
        &mut self,
        bound: BoundAddress,
        granted: Stack,
        out: &mut Vec<u8>,
    ) {
        out.append(&mut self.withheld);
        let options = OpReplyOptions {
            stack: granted.map(|granted| *granted).unwrap_or_default(),
            ..OpReplyOptions::default()
        };
        self.server.reply(ReplyCode::SUCCEEDED, bound, options, out);
    }

    pub(in crate::server) fn refuse(&mut self, code: ReplyCode, out: &mut Vec<u8>) {
        out.append(&mut self.withheld);
        self.server.refuse(code, out);
    }

    /// [`Server::notify`].
    pub(super) fn notify(&mut self, peer: BoundAddress, out: &mut Vec<u8>) {
        self.server.notify(peer, out);
    }

    /// A success that has no address.
    pub(super) fn done(&mut self, out: &mut Vec<u8>) {
        self.reply(BoundAddress::UNSPECIFIED, None, out);
    }
}
