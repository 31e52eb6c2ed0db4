//! UDP ASSOCIATE of SOCKS 6.

use std::time::Instant;

use crate::server::pending::Pending;
use crate::server::session::{ServerSession, Stage};
use crate::wire::Address;

impl ServerSession {
    /// `wanted` is the address and port that remote hosts shall see; zeros stand for any.
    pub(super) fn associate6(
        &mut self,
        pending: Pending,
        _wanted: &Address,
        now: Instant,
    ) -> Stage {
        self.no_such_command(pending, now)
    }
}
