//! What the sessions of one server share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::association::UdpSettings;
use super::login::UserCounts;
use super::rules::Rules;
#[cfg(feature = "socks6")]
use super::socks6::Socks6;
use super::users::Users;
use super::via::Via;
use crate::handshake::{Methods, Policy, Socks4};
use crate::net::{TcpExtras, Uplink};
use crate::relay::RelaySettings;
use crate::resolver::Resolver;
use crate::wire::socks4::UserId;

/// What the sessions of one server have in common.
pub struct ServerSettings {
    /// Who may use it. `None`: everybody who gets in.
    pub users: Option<Users>,
    /// Whether SOCKS4 and 4a are answered. Where there are users only by user id, since these versions know no passwords.
    pub socks4: Socks4,
    /// The user ids that [`Socks4::ByUserId`] is for, compared byte by byte.
    pub socks4_users: Vec<UserId>,
    /// Where clients may go.
    pub rules: Rules,
    /// The proxies that destinations are reached through. What the last of them does not carry out is refused: it would leave
    /// this machine by another way.
    pub via: Option<Arc<Via>>,
    /// When a CONNECT that goes through proxies is replied to.
    pub reply_timing: ReplyTiming,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For the look-up and all addresses of a destination together.
    pub connect_timeout: Duration,
    /// For the peer of a BIND to come. `None`: BIND is refused.
    pub bind_timeout: Option<Duration>,
    /// Waited before the greeting is answered. For demonstrations: the latency of a far-away peer.
    pub answer_delay: Duration,
    /// SOCKS 6. `None`: not spoken.
    #[cfg(feature = "socks6")]
    pub socks6: Option<Socks6>,
    /// Which way what goes to others takes.
    pub uplink: Uplink,
    /// For datagrams. `None`: there are none.
    pub udp: Option<UdpSettings>,
    /// What connections to destinations have beyond plain TCP.
    pub tcp: TcpExtras,
    /// For the relays.
    pub relay: Arc<RelaySettings>,
    /// Looks up names.
    pub resolver: Resolver,
    /// Counts what happens.
    pub stats: ServerStats,
}

/// When a client that connects through proxies has its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplyTiming {
    /// When it is known, so that it is true.
    #[default]
    WhenKnown,
    /// At once, so that the client's first bytes can travel with the request; it says success, and a failure is a connection
    /// that closes.
    AtOnce,
}

impl ServerSettings {
    /// How long a client may have to wait for the reply to CONNECT.
    pub(super) fn patience(&self) -> Duration {
        let via = self.via.as_ref().and_then(|via| via.timeout());
        via.map_or(self.connect_timeout, |via| via.min(self.connect_timeout))
    }

    /// Sessions of SOCKS 6 now.
    #[must_use]
    #[cfg_attr(
        not(feature = "socks6"),
        expect(unused_variables, reason = "there are none")
    )]
    pub fn sessions(&self, now: Instant) -> usize {
        #[cfg(feature = "socks6")]
        return self
            .socks6
            .as_ref()
            .map_or(0, |socks6| socks6.sessions(now));
        #[cfg(not(feature = "socks6"))]
        0
    }

    pub(super) fn policy(&self) -> Policy {
        let methods = match self.users {
            Some(_) => Methods::UserPassword,
            None => Methods::None,
        };
        Policy {
            methods,
            socks4: self.socks4,
        }
    }
}

/// What happened since the start. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct ServerStats {
    shared: Arc<Mutex<ServerCounts>>,
}

/// The numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerCounts {
    /// Bytes from clients to destinations.
    pub up: u64,
    /// Bytes from destinations to clients.
    pub down: u64,
    /// Clients that were let in and then refused, by reason, of which there are few.
    pub refused: Vec<(&'static str, u64)>,
    /// Datagrams that were dropped, by reason.
    pub dropped_datagrams: Vec<(&'static str, u64)>,
    /// What users did who have logged in, by their names; not more than a thousand.
    pub users: HashMap<Box<str>, UserCounts>,
}

impl ServerStats {
    /// The numbers now, live connections included.
    #[must_use]
    pub fn counts(&self) -> ServerCounts {
        self.lock().clone()
    }

    pub(super) fn moved(&self, up: u64, down: u64) {
        let mut counts = self.lock();
        counts.up += up;
        counts.down += down;
    }

    pub(super) fn refused(&self, reason: &'static str) {
        count(&mut self.lock().refused, reason);
    }

    pub(super) fn dropped(&self, reason: &'static str) {
        count(&mut self.lock().dropped_datagrams, reason);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ServerCounts> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counts: &mut Vec<(&'static str, u64)>, reason: &'static str) {
    match counts.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, count)) => *count += 1,
        None => counts.push((reason, 1)),
    }
}
