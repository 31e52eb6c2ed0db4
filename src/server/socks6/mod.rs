//! SOCKS 6: what differs from the older versions before a destination is reached.
//!
//! What to read: [`crate::wire::socks6`] and [`crate::handshake::socks6`] for messages and exchange, the reach and binding
//! stages of [`crate::server`] for what follows.

mod answers;
mod associate;
mod backlog;
mod bind;
mod exchange;
mod far_port;
mod opening;
pub(super) mod random;
mod request;
mod through;

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(super) use self::answers::Answers;
use self::backlog::Ports;
pub(super) use self::backlog::{Fetch, Handle};
pub(super) use self::far_port::FarHandle;
use self::far_port::FarPorts;
pub(super) use self::opening::{Opened6, Opening6};
use crate::handshake::socks6::{Arrival, Limits, Owner, Sessions};
use crate::wire::socks6::{
    AuthReplyOptions, Profile, RequestOptions, SessionId, SessionUse, Token, VERSION,
};

/// How a server speaks SOCKS 6.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Socks6Options {
    /// For clients whose first byte is its version byte, which must be none of the older versions. Those that begin with 6 are
    /// spoken to as in [`Profile::DRAFT_12`] if this one has another byte.
    pub profile: Profile,
    /// Whether the older versions are answered with a version mismatch.
    pub only: bool,
    /// Whether a client whose first bytes are not a whole request is closed without an answer.
    pub require_whole_request: bool,
    /// Where clients get who connect to port 53 of no address (0.0.0.0 or ::), past the rules. `None`: nowhere.
    pub dns: Option<SocketAddr>,
    /// Whether clients may have their sockets, and those to destinations, as they wish.
    pub stack: StackPolicy,
    /// Of sessions and tokens.
    pub limits: Limits,
}

/// What becomes of stack options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StackPolicy {
    /// What the system has is granted, but for TOS classes of network control.
    #[default]
    Granted,
    /// Nothing is. They are answered: with what is in force without them.
    Refused,
}

/// What all clients of SOCKS 6 of one server share.
#[derive(Debug)]
pub struct Socks6 {
    options: Socks6Options,
    sessions: Mutex<Book>,
    /// Of BIND with a backlog.
    ports: Ports,
    /// The same, of proxies.
    far_ports: FarPorts,
}

/// The sessions, with the state of the users for whom they were opened.
#[derive(Debug)]
struct Book {
    sessions: Sessions,
    users: u64,
}

impl Socks6 {
    /// Without sessions yet.
    #[must_use]
    pub fn new(options: Socks6Options) -> Self {
        let sessions = Sessions::new(options.limits);
        Self {
            options,
            sessions: Mutex::new(Book { sessions, users: 0 }),
            ports: Ports::default(),
            far_ports: FarPorts::default(),
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn sessions(&self, now: Instant) -> usize {
        let mut book = self.lock();
        book.sessions.expire(now);
        book.sessions.len()
    }

    /// How to speak with a client that begins like that, if it is in SOCKS 6.
    pub(super) fn profile(&self, first: u8) -> Option<Profile> {
        let profile = self.options.profile;
        match first {
            _ if first == profile.version => Some(profile),
            VERSION => Some(Profile::DRAFT_12),
            _ => self.options.only.then_some(profile),
        }
    }

    /// [`Sessions::arrive`]. `users` is the revision of the users: with others, all sessions have ended, since nobody knows
    /// whether theirs would still be let in.
    fn arrive(
        &self,
        options: &RequestOptions,
        users: u64,
        now: Instant,
    ) -> (Arrival, AuthReplyOptions) {
        // Without a secret, the first window is where anybody could guess it: that does no harm.
        let base = options.window.map(|_| random::bytes().unwrap_or_default());
        let base = Token(u32::from_ne_bytes(base.unwrap_or_default()));
        let mut book = self.lock();
        let all = book.users != users;
        if all {
            book.sessions = Sessions::new(self.options.limits);
            book.users = users;
        }
        let arrived = book.sessions.arrive(options, base, now);
        drop(book);
        match &options.session {
            _ if all => self.ports.close_sessions(None),
            SessionUse::Teardown(id) => self.ports.close_sessions(Some(id)),
            _ => {}
        }
        arrived
    }

    /// [`Sessions::end`].
    fn session_end(&self, id: &SessionId, now: Instant) -> Option<Instant> {
        self.lock().sessions.end(id, now)
    }

    /// [`Sessions::open`], if the request asks for one.
    fn open(&self, options: &RequestOptions, owner: Owner, now: Instant) -> AuthReplyOptions {
        if options.session != SessionUse::Request {
            return AuthReplyOptions::default();
        }
        let (Some(fresh), Some(base)) = (random::bytes(), random::bytes()) else {
            // An id that can be guessed is worse than none.
            return AuthReplyOptions::default();
        };
        let base = Token(u32::from_ne_bytes(base));
        let mut book = self.lock();
        book.sessions.open(options, owner, fresh, base, now)
    }

    fn close(&self, id: Option<&SessionId>) {
        if let Some(id) = id {
            self.lock().sessions.close(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
