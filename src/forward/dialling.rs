//! Finding the remote that serves a client, among those that may.
//!
//! ```text
//!  nothing told ── a remote takes the client as it is ("05 00", or our login accepted) ──▶ told
//!   │  ▲ fails, hesitates: another one hears the same bytes        │  ▲ dies, is silent, can't reach it: another one
//!   │  └──┘                                                        │  └──┘  hears greeting and request
//!   └─ any other first answer ──▶ relay            success, or a failure of the destination ──▶ relay
//! ```
//!
//! Up to [`candidates::AT_ONCE`] remotes are asked at a time: one that hesitates is not given up, but another one is started beside it,
//! and the first that answers is the one. The client is told each thing once: that it need not authenticate by the
//! first remote that says so, the reply by the one that serves it. A client that has to authenticate stays with the
//! remote that asked it to.

mod answers;
mod candidates;
mod hearing;
mod unreached;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use self::hearing::Heard;
use self::unreached::Unreached;
use super::announced::without_announcement;
use super::attempt::Attempt;
use super::route::{Choice, Epoch};
use super::said::{Hold, Said, Told};
use super::serving::Serving;
use super::verdict::Verdict;
use crate::engine::{Interests, Key, TurnContext, Want};
use crate::handshake::watch::Speaks;
use crate::net::write_all_now;

/// A client for which a remote is being found.
pub(super) struct Dial {
    kept: Vec<u8>,
    /// Of a request that has to be whole before a remote hears of it, as it came behind what is kept.
    held: Vec<u8>,
    told: Told,
    /// What the client is told and has not taken yet.
    unsaid: Vec<u8>,
    choice: Arc<Choice>,
    /// The choice that is followed.
    followed: Epoch,
    /// Candidates that are being tried, or have failed this client.
    tried: Vec<SocketAddr>,
    /// Those under way, in the order of their start.
    attempts: Vec<Attempt>,
    /// How far any remote has heard the client.
    furthest: usize,
    /// Remotes that could not reach the destination.
    unreached: Unreached,
    /// Remotes knew none of the client's methods.
    is_method_refused: bool,
    /// There was no descriptor for an attempt, or no candidate so far: when to look again.
    retry: Option<Instant>,
    /// There was no descriptor for another attempt beside the first: when to look again.
    beside_after: Option<Instant>,
    /// No remote is under way, since it is the client that is waited for: until then.
    request_by: Option<Instant>,
    /// The client is gone, but what it sent is to be delivered.
    client_closed: bool,
    since: Instant,
    /// No candidate is tried after this.
    give_up: Instant,
    /// The client has made its request: the time for that begins anew.
    is_asked: bool,
    /// What the client has said in this turn was read, or can wait. Saves 1 to 2 of some 40 system calls of a connection.
    is_client_dry: bool,
    /// A connection that was ready for it was dead.
    was_stale: bool,
}

impl Dial {
    /// For a client that said `kept`, neither nothing nor more than [`KEPT`](super::said::KEPT) bytes.
    pub(super) fn new(kept: Vec<u8>, serving: &Serving, now: Instant) -> Self {
        let (kept, held) = match serving.carries_datagrams() {
            true => without_announcement(kept),
            false => (kept, Vec::new()),
        };
        let choice = serving.route.choice();
        let usual = serving.settings.connect_timeout;
        Self {
            kept,
            held,
            told: Told::Nothing,
            unsaid: Vec::new(),
            followed: serving.epoch,
            tried: Vec::new(),
            attempts: Vec::new(),
            furthest: 0,
            unreached: Unreached::default(),
            is_method_refused: false,
            retry: None,
            beside_after: None,
            request_by: None,
            client_closed: false,
            since: now,
            give_up: now + choice.longest(usual) * DIALS,
            choice,
            is_asked: false,
            is_client_dry: false,
            was_stale: false,
        }
    }

    /// The client had said no more than that when its turn began.
    pub(super) fn after_dry(mut self) -> Self {
        self.is_client_dry = true;
        self
    }

    /// All that the client said, for somebody else than a remote.
    pub(super) fn said_so_far(&self) -> Vec<u8> {
        [self.kept.as_slice(), &self.held].concat()
    }

    /// What of the answers the client has heard.
    pub(super) fn heard(&self) -> &'static [u8] {
        let count = match self.told {
            Told::Nothing => 0,
            Told::NoAuthentication => NO_AUTHENTICATION.len().saturating_sub(self.unsaid.len()),
        };
        NO_AUTHENTICATION.get(..count).unwrap_or_default()
    }

    pub(super) fn tried(&self) -> usize {
        self.tried.len()
    }

    /// Whether there is something about the route that it has not seen.
    pub(super) fn is_behind(&self, serving: &Serving) -> bool {
        serving.route.epoch() != self.followed || self.is_cut(serving)
    }

    /// Who has been told something of a remote is treated like who is connected through it.
    fn is_cut(&self, serving: &Serving) -> bool {
        self.told != Told::Nothing && serving.route.is_cut(serving.epoch)
    }

    pub(super) fn turn(
        &mut self,
        client: &Socket,
        serving: &mut Serving,
        cx: &mut TurnContext<'_>,
    ) -> Verdict {
        let verdict = self.go_on(client, serving, cx);
        self.is_client_dry = false;
        for attempt in &mut self.attempts {
            attempt.is_dry = false;
        }
        if self.attempts.len() <= 1 {
            serving.narrow();
        }
        verdict
    }

    fn go_on(
        &mut self,
        client: &Socket,
        serving: &mut Serving,
        cx: &mut TurnContext<'_>,
    ) -> Verdict {
        self.follow_choice(serving, cx.now);
        if cx.ready.hung_up(CLIENT) && !self.listens() {
            // Nobody reads it now, so nobody else notices. A Unix socket hangs up at an ordinary end too.
            match client.take_error() {
                Ok(None) if self.speaks() == Speaks::Other && !self.attempts.is_empty() => {
                    self.client_closed = true;
                }
                _ => return self.client_left(serving),
            }
        }
        loop {
            if let Some(verdict) = self.advance(serving, cx) {
                return verdict;
            }
            if let Some(verdict) = self.mind_the_time(serving, cx.now) {
                return verdict;
            }
            match self.start_if_due(serving, cx.now) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(refusal) => return Verdict::Decline(refusal),
            }
            let is_told = !self.unsaid.is_empty();
            if write_all_now(client, &mut self.unsaid).is_err() {
                return self.client_left(serving);
            }
            // What it answers is heard in the next turn, which begins with the remote: that may be gone by then.
            self.is_client_dry |= is_told;
            match self.hear(client, serving, cx) {
                Heard::More => {}
                Heard::Nothing => return Verdict::Wait(self.until(serving)),
                Heard::Verdict(verdict) => return verdict,
            }
        }
    }

    fn said(&self, serving: &Serving) -> Said<'_> {
        Said::new(&self.kept, self.hold(serving), self.told)
    }

    fn hold(&self, serving: &Serving) -> Hold {
        let others = self.choice.candidates.len() > 1;
        match others && (self.told == Told::Nothing || serving.settings.retry) {
            true => Hold::Private,
            false => Hold::Nothing,
        }
    }

    fn speaks(&self) -> Speaks {
        match self.kept.first() {
            Some(4) => Speaks::Socks4,
            Some(5) => Speaks::Socks5,
            _ => Speaks::Other,
        }
    }

    /// What is late is given up.
    fn mind_the_time(&mut self, serving: &mut Serving, now: Instant) -> Option<Verdict> {
        let is_over = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if is_over(self.greeting_by(serving)) {
            log::debug!("{}: did not finish its greeting, closed", serving.client);
            return Some(Verdict::Over);
        }
        if is_over(self.request_by) {
            log::debug!("{}: made no request, closed", serving.client);
            return Some(Verdict::Over);
        }
        let (limit, patience) = (serving.settings.connect_timeout, self.choice.patience);
        let mut place = 0;
        while let Some(attempt) = self.attempts.get(place) {
            if is_over(attempt.deadline(&self.said(serving), limit, patience)) {
                let failure = attempt.lateness();
                self.fail(place, failure, true, serving);
            } else {
                place += 1;
            }
        }
        if !self.unreached.is_empty() && now >= self.give_up {
            return Some(Verdict::Decline(self.refusal(serving)));
        }
        None
    }

    fn greeting_by(&self, serving: &Serving) -> Option<Instant> {
        let said = self.said(serving);
        let is_half = said.speaks() == Speaks::Socks5 && said.greeting().is_none();
        is_half.then_some(self.since + FIRST_BYTES_LIMIT)
    }

    /// When something is to be done though nothing happens.
    fn until(&self, serving: &Serving) -> Option<Instant> {
        let (limit, patience) = (serving.settings.connect_timeout, self.choice.patience);
        let said = self.said(serving);
        let idle = match self.attempts.is_empty() {
            true => sooner(self.retry, self.request_by),
            false => {
                let give_up = Some(self.give_up).filter(|_| !self.unreached.is_empty());
                sooner(self.beside_at(serving), give_up)
            }
        };
        let deadlines = self.attempts.iter();
        deadlines
            .map(|attempt| attempt.deadline(&said, limit, patience))
            .fold(sooner(idle, self.greeting_by(serving)), sooner)
    }

    pub(super) fn interests<'a>(
        &'a self,
        client: &'a Socket,
        serving: &Serving,
        interests: &mut Interests<'a>,
    ) {
        if !self.client_closed {
            let want = Want {
                read: self.listens(),
                write: !self.unsaid.is_empty(),
            };
            interests.watch(CLIENT, client.as_fd(), want);
        }
        let said = self.said(serving);
        for (key, attempt) in (REMOTES..).zip(&self.attempts) {
            interests.watch(key, attempt.socket.as_fd(), attempt.want(&said));
        }
    }
}

fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        _ => one.or(other),
    }
}

const CLIENT: Key = 0;
/// The first of them; there are at most [`candidates::AT_ONCE`].
const REMOTES: Key = 1;

/// How a SOCKS 5 client is told that it need not authenticate (RFC 1928 §3).
const NO_AUTHENTICATION: [u8; 2] = [5, 0];

/// A client waits for at most so many connect time-outs in all, however many candidates there are.
pub(super) const DIALS: u32 = 3;

/// A client that says nothing, half a greeting, or makes no request: browsers open connections ahead and use them within
/// seconds.
pub(super) const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(60);
