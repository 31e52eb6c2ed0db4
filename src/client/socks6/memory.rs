//! What is known of one proxy, shared by all requests to it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ProxyUri;
use crate::handshake::socks6::wallet::Ticket;
use crate::handshake::socks6::{Client, Spend, Wallet};
use crate::wire::socks6::{RequestOptions, SessionId, WindowSize};

/// What is known of one proxy, shared by all requests to it.
pub(crate) struct Memory {
    state: Mutex<State>,
}

struct State {
    wallet: Wallet,
    sessions: Sessions,
    version: Version,
    /// Whether somebody is asking for news of the tokens.
    refreshing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sessions {
    Used,
    Unused,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Unknown,
    Socks6,
    Older,
}

/// News of the tokens are being asked for; until it is dropped nobody else does.
pub(super) struct Refreshing<'a>(&'a Memory);

impl Memory {
    /// Nothing yet, for a proxy that is used as its URI says.
    pub(crate) fn of(proxy: &ProxyUri) -> Self {
        let options = proxy.socks6();
        let sessions = match options {
            Some(options) if options.uses_session() => Sessions::Used,
            _ => Sessions::Unused,
        };
        Self::new(sessions, options.and_then(|options| options.tokens))
    }

    /// Nothing yet, but there will be a session.
    pub(super) const fn with_session() -> Self {
        Self::new(Sessions::Used, None)
    }

    const fn new(sessions: Sessions, tokens: Option<WindowSize>) -> Self {
        Self {
            state: Mutex::new(State {
                wallet: Wallet::new(tokens),
                sessions,
                version: Version::Unknown,
                refreshing: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn prepare(&self, options: &mut RequestOptions, spend: Spend) -> Option<Ticket> {
        let mut state = self.state();
        let used = state.sessions == Sessions::Used;
        used.then(|| state.wallet.prepare(options, spend))
    }

    pub(super) fn settle(&self, ticket: Option<Ticket>, handshake: &Client) {
        if let Some(ticket) = ticket {
            self.state().wallet.settle(ticket, handshake);
        }
    }

    /// Gives up the session.
    pub(super) fn forget_session(&self) -> Option<SessionId> {
        self.state().wallet.forget()
    }

    /// Goes without sessions from now on.
    pub(super) fn distrust_sessions(&self) {
        let mut state = self.state();
        state.sessions = Sessions::Unused;
        state.wallet.forget();
    }

    /// Whether tokens run out, and nobody else looks after that.
    pub(super) fn refresh(&self) -> Option<Refreshing<'_>> {
        let mut state = self.state();
        let due = !state.refreshing && state.wallet.is_running_low();
        state.refreshing |= due;
        due.then(|| Refreshing(self))
    }

    pub(super) fn has_session(&self) -> bool {
        self.state().wallet.has_session()
    }

    pub(super) fn tokens_left(&self) -> u32 {
        self.state().wallet.tokens_left()
    }

    /// Whether it has been seen to speak SOCKS 6.
    pub(super) fn is_known(&self) -> bool {
        self.state().version == Version::Socks6
    }

    /// Whether it has been seen to speak SOCKS5 only, and that was allowed.
    pub(crate) fn is_older(&self) -> bool {
        self.state().version == Version::Older
    }

    pub(super) fn learned_socks6(&self) {
        self.state().version = Version::Socks6;
    }

    pub(super) fn learned_older(&self) {
        self.state().version = Version::Older;
    }
}

impl Drop for Refreshing<'_> {
    fn drop(&mut self) {
        self.0.state().refreshing = false;
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().wallet.fmt(f)
    }
}
