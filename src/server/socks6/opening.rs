//! The first stage of a client of SOCKS 6: what it says until its request is accepted.
//!
//! ```text
//! request ──▶ inside a session ───────────────────────────────────────────▶ accepted
//!    │    └─▶ outside: no users, or the right password in the request ────▶ accepted, with a session if it wants one
//!    │    └─▶ a method is selected ─▶ initial data ─▶ its messages, right ─▶ accepted, the same
//!    └─▶ unknown session, spent token, wrong password, no method ─────────▶ refused
//! ```
//!
//! Two replies follow a request: on who the client is, on what became of it. Both in one packet is the shortest way, so the
//! first waits for the second, but for clients who gain by it: one that has advertised methods may not send before it,
//! and one that wants a session or tokens may have another request waiting for them.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Instant;

use socket2::Socket;

use super::answers::Answers;
use super::exchange::{Exchange, Exchanged};
use super::{Socks6, StackPolicy};
use crate::engine::{Interests, TurnContext, Want};
use crate::handshake::socks6::server::Phase;
use crate::handshake::socks6::{Arrival, Owner, Server, ServerError};
use crate::net::{read_some, write_all_now};
use crate::server::CLIENT;
use crate::server::answering::Answering;
use crate::server::login::Login;
use crate::server::opening::{Hold, Opening};
use crate::server::pending::{MOST_PAYLOAD, Pending};
use crate::server::settings::ServerSettings;
use crate::server::stack;
use crate::server::users::Verdict;
use crate::wire::socks6::{
    AuthReplyOptions, Command, DecodeError, Profile, RequestOptions, SessionId, SessionUse,
    TokenVerdict,
};
use crate::wire::user_password::{self, Status};
use crate::wire::{Address, Host};

/// A client whose request is not accepted yet.
pub(in crate::server) struct Opening6 {
    client: Socket,
    address: Option<SocketAddr>,
    profile: Profile,
    server: Server,
    unsent: Vec<u8>,
    /// The authentication reply, if it can wait.
    withheld: Vec<u8>,
    /// Read, and not part of the request.
    unread: Vec<u8>,
    /// Came before the messages of a method.
    initial_data: Vec<u8>,
    exchange: Option<Exchange>,
    until: Instant,
    held: Option<Hold>,
    /// The verdict that is held back is on this user.
    user: Option<Box<[u8]>>,
    /// The request belongs to it.
    session: Option<SessionId>,
}

/// What a step of it needs of its surroundings.
struct Around<'a> {
    shared: &'a Socks6,
    settings: &'a ServerSettings,
    login: &'a mut Option<Login>,
    now: Instant,
}

/// What an opening has come to.
pub(in crate::server) enum Opened6 {
    /// Wait, until then at the latest.
    Not(Instant),
    /// The request is accepted: [`Opening6::into_pending`].
    Request,
    /// It is not, for the reason that is counted: [`Opening6::into_last_words`].
    Failed(&'static str, ServerError),
    /// The request did not come at once: not a word.
    Silent,
    /// The client closed, or its connection broke.
    Left,
    /// The time is over.
    TimedOut,
}

impl Opening6 {
    /// Goes on with a client of whom it is now known that it speaks SOCKS 6.
    pub(in crate::server) fn new(opening: Opening, profile: Profile) -> Self {
        Self {
            client: opening.client,
            address: opening.address,
            profile,
            server: Server::new(profile),
            unsent: Vec::new(),
            withheld: Vec::new(),
            unread: opening.unread,
            initial_data: Vec::new(),
            exchange: None,
            until: opening.until,
            held: None,
            user: None,
            session: None,
        }
    }

    /// Goes on with the handshake. A user who turned out to be one goes into `login`.
    pub(in crate::server) fn turn(
        &mut self,
        settings: &ServerSettings,
        login: &mut Option<Login>,
        cx: &mut TurnContext<'_>,
    ) -> Opened6 {
        let Some(shared) = &settings.socks6 else {
            return Opened6::Left;
        };
        if cx.now >= self.until {
            return Opened6::TimedOut;
        }
        match &self.held {
            Some(hold) if cx.now < hold.until => {
                // It can only have gone: nothing is read meanwhile.
                if cx.ready.hung_up(CLIENT) {
                    return Opened6::Left;
                }
                return Opened6::Not(hold.until.min(self.until));
            }
            _ => {}
        }
        let mut around = Around {
            shared,
            settings,
            login,
            now: cx.now,
        };
        if let Some(Hold {
            verdict: Some(verdict),
            ..
        }) = self.held.take()
        {
            let stepped = self.pronounce(verdict, &mut around);
            if let Stepped::Opened(opened) = stepped {
                return opened;
            }
        }
        loop {
            match self.step(&mut around) {
                Stepped::On => continue,
                Stepped::Opened(opened) => return opened,
                Stepped::More => {}
            }
            match write_all_now(&self.client, &mut self.unsent) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Opened6::Left,
            }
            // Just so much that what is kept behind the request has a limit.
            let most = self.server.wanted().max(MOST_PAYLOAD);
            match read_some(&self.client, cx.buffer_up_to(most)) {
                Ok(Some([])) | Err(_) => return Opened6::Left,
                Ok(Some(input)) => self.unread.extend_from_slice(input),
                Ok(None) if self.must_be_whole(shared) => return Opened6::Silent,
                Ok(None) => break,
            }
        }
        Opened6::Not(self.until)
    }

    /// Whether the request had to be there with its first byte, which is there.
    fn must_be_whole(&self, shared: &Socks6) -> bool {
        let phase = self.server.phase();
        shared.options.require_whole_request && matches!(phase, Phase::Request | Phase::Finished)
    }

    fn step(&mut self, around: &mut Around<'_>) -> Stepped {
        match self.server.phase() {
            Phase::Request => match self.server.feed(&self.unread, &mut self.unsent) {
                Ok(taken) => {
                    self.unread.drain(..taken);
                    if self.server.phase() == Phase::Request {
                        return Stepped::More;
                    }
                    for problem in self.server.problems().iter() {
                        log::trace!("ignored in a SOCKS 6 request: {problem}");
                    }
                    Stepped::On
                }
                Err(ServerError::Malformed(_)) if self.must_be_whole(around.shared) => {
                    Stepped::Opened(Opened6::Silent)
                }
                Err(error) => Stepped::Opened(Opened6::Failed(reason(error), error)),
            },
            Phase::Verdict => self.arrive(around),
            Phase::Negotiation => self.negotiate(around),
            Phase::Reply => Stepped::Opened(Opened6::Request),
            Phase::Finished => {
                let failed = Opened6::Failed("credentials", ServerError::Rejected);
                Stepped::Opened(failed)
            }
        }
    }

    /// Looks at session, token and password of the request, in this order.
    fn arrive(&mut self, around: &mut Around<'_>) -> Stepped {
        let Some(request) = self.server.request() else {
            return Stepped::Opened(Opened6::Left);
        };
        let users = around.settings.users.as_ref();
        let revision = users.map_or(0, |users| users.revision(around.now));
        let (arrival, answer) = around.shared.arrive(&request.options, revision, around.now);
        let reason = match arrival {
            Arrival::Inside(owner) => {
                let stats = &around.settings.stats;
                *around.login = owner.user.map(|user| Login::new(&user, stats));
                self.accept(answer);
                return Stepped::On;
            }
            Arrival::UnknownSession => "socks6-session",
            Arrival::TokenRejected => "socks6-token",
            Arrival::Authenticate => {
                return match (users, request.options.password.clone()) {
                    (None, _) => self.pronounce(Verdict::Right, around),
                    (Some(_), Some(credentials)) => self.judge(&credentials, around),
                    (Some(_), None) => self.select(),
                };
            }
        };
        self.server.reject(answer, &mut self.unsent);
        Stepped::Opened(Opened6::Failed(reason, ServerError::Rejected))
    }

    /// The client has to authenticate, and has not done it in its request.
    fn select(&mut self) -> Stepped {
        let is_ready = |method| self.server.may_negotiate(method);
        if let Some((method, exchange)) = Exchange::choose(is_ready, &self.profile)
            && self.server.negotiate(method, &mut self.unsent)
        {
            self.exchange = Some(exchange);
            return Stepped::On;
        }
        let request = self.server.request();
        let reason = match request.is_some_and(|request| request.options.methods.is_some()) {
            true => {
                self.server.refuse_methods(&mut self.unsent);
                "no-acceptable-method"
            }
            false => {
                let nothing = AuthReplyOptions::default();
                self.server.reject(nothing, &mut self.unsent);
                "credentials"
            }
        };
        Stepped::Opened(Opened6::Failed(reason, ServerError::Rejected))
    }

    /// Goes on with the method that was selected. Initial data come first.
    fn negotiate(&mut self, around: &mut Around<'_>) -> Stepped {
        let taken = self.server.take_initial_data(self.unread.len());
        self.initial_data.extend(self.unread.drain(..taken));
        let Some(exchange) = &self.exchange else {
            return Stepped::Opened(Opened6::Left);
        };
        if self.server.initial_data_left() > 0 {
            return Stepped::More;
        }
        match exchange.turn(&mut self.unread) {
            Exchanged::Not => Stepped::More,
            Exchanged::Credentials(credentials) => self.judge(&credentials, around),
            Exchanged::Malformed => {
                let nothing = AuthReplyOptions::default();
                self.server.reject(nothing, &mut self.unsent);
                let failed = Opened6::Failed("malformed", ServerError::Rejected);
                Stepped::Opened(failed)
            }
        }
    }

    /// The verdict on user and password, which may have to wait.
    fn judge(&mut self, credentials: &user_password::Request, around: &mut Around<'_>) -> Stepped {
        let ip = self.address.map(|address| address.ip().to_canonical());
        let Some(users) = &around.settings.users else {
            return Stepped::Opened(Opened6::Left);
        };
        let judgement = users.judge(credentials, ip, around.now);
        self.user = Some(credentials.user().into());
        if judgement.delay.is_zero() {
            return self.pronounce(judgement.verdict, around);
        }
        let until = around.now + judgement.delay;
        self.held = Some(Hold {
            until,
            verdict: Some(judgement.verdict),
        });
        // If it can't be sent now, it is sent with the verdict.
        let _ = write_all_now(&self.client, &mut self.unsent);
        Stepped::Opened(Opened6::Not(until.min(self.until)))
    }

    fn pronounce(&mut self, verdict: Verdict, around: &mut Around<'_>) -> Stepped {
        let status = match verdict {
            Verdict::Right => Status::ACCEPTED,
            Verdict::Wrong => Status::REJECTED,
        };
        if let Some(exchange) = &self.exchange {
            exchange.verdict(status, &mut self.unsent);
        }
        if verdict == Verdict::Wrong {
            let nothing = AuthReplyOptions::default();
            self.server.reject(nothing, &mut self.unsent);
            return Stepped::On;
        }
        let Some(request) = self.server.request() else {
            return Stepped::On;
        };
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let owner = Owner {
            user: self.user.take(),
            address: self.address.map_or(nowhere, |address| address.ip()),
        };
        let user = owner.user.as_deref();
        *around.login = user.map(|user| Login::new(user, &around.settings.stats));
        let answer = around.shared.open(&request.options, owner, around.now);
        if answer.token == Some(TokenVerdict::Rejected) {
            around.shared.close(answer.session_id.as_ref());
            self.server.reject(answer, &mut self.unsent);
            let failed = Opened6::Failed("socks6-token", ServerError::Rejected);
            return Stepped::Opened(failed);
        }
        self.accept(answer);
        Stepped::On
    }

    fn accept(&mut self, answer: AuthReplyOptions) {
        self.session = match self
            .server
            .request()
            .map(|request| &request.options.session)
        {
            Some(SessionUse::Resume(id)) => Some(id.clone()),
            _ => answer.session_id.clone(),
        };
        let waited_for = self.server.request().is_some_and(|request| {
            let RequestOptions {
                methods,
                session,
                window,
                ..
            } = &request.options;
            methods.is_some() || *session == SessionUse::Request || window.is_some()
        });
        let out = match waited_for {
            true => &mut self.unsent,
            false => &mut self.withheld,
        };
        self.server.accept(answer, out);
    }

    /// The client whose request is accepted, with the request.
    pub(in crate::server) fn into_pending(
        self,
        policy: StackPolicy,
        until: Instant,
    ) -> Option<(Box<Pending>, Command, Address)> {
        let request = self.server.request()?;
        let (command, address) = (request.command, request.address.clone());
        let mut stack = stack::permitted(&request.options.stack, policy);
        if !matches!(address.host, Host::Name(_)) {
            // There is one address to go to ("Happy Eyeballs options").
            stack.happy_eyeballs = None;
        }
        let mut payload = self.initial_data;
        payload.extend(self.unread);
        let answers = Answers::new(self.server, self.withheld, self.session, self.profile);
        let answering = Answering::Socks6(Box::new(answers));
        let pending = Pending::new(self.client, answering, self.unsent, payload, until);
        let mut pending = Box::new(pending);
        pending.stack = (!stack.is_empty()).then(|| Box::new(stack));
        Some((pending, command, address))
    }

    /// The client that is refused, with what is still to be sent to it.
    pub(in crate::server) fn into_last_words(mut self) -> (Socket, Vec<u8>) {
        (self.client, mem::take(&mut self.unsent))
    }

    pub(in crate::server) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = match self.held {
            // What comes meanwhile stays in the kernel.
            Some(_) => Want::ERRORS,
            None => Want {
                read: true,
                write: !self.unsent.is_empty(),
            },
        };
        interests.watch(CLIENT, self.client.as_fd(), want);
    }
}

/// What to do after a step.
enum Stepped {
    /// The next one.
    On,
    /// Read more first.
    More,
    /// Leave it at that.
    Opened(Opened6),
}

/// Under which name a failure is counted.
fn reason(error: ServerError) -> &'static str {
    match error {
        ServerError::Malformed(DecodeError::Version(_)) => "version",
        ServerError::Malformed(_) | ServerError::Contradictory(_) => "malformed",
        ServerError::Rejected => "credentials",
    }
}
