//! Finding the remote that serves a client, among those that may.
//!
//! ```text
//!  nothing told ── a remote takes the client as it is ("05 00", or our login accepted) ──▶ told
//!   │  ▲ fails, hesitates: another one hears the same bytes        │  ▲ dies, is silent, can't reach it: another one
//!   │  └──┘                                                        │  └──┘  hears greeting and request
//!   └─ any other first answer ──▶ relay            success, or a failure of the destination ──▶ relay
//! ```
//!
//! Up to [`AT_ONCE`] remotes are asked at a time: one that hesitates is not given up, but another one is started beside it,
//! and the first that answers is the one. The client is told each thing once: that it need not authenticate by the
//! first remote that says so, the reply by the one that serves it. A client that has to authenticate stays with the
//! remote that asked it to.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::announced::without_announcement;
use super::attempt::{Advance, Attempt};
use super::route::{Awaited, Candidate, Choice, DialFailure, Epoch, Patience};
use super::said::{Hold, KEPT, Said, Told};
use super::serving::Serving;
use super::verdict::{Associated, Refusal, Verdict, Won};
use crate::engine::{Interests, Key, TurnContext, Want};
use crate::handshake::watch::{Asked, Speaks};
use crate::net::{ConnectFailure, is_shortage, read_some, start_connect, write_all_now};
use crate::wire::socks5::{Command, Method, Reply, ReplyCode};

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
    replies: Vec<Unreached>,
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
}

struct Unreached {
    remote: SocketAddr,
    since: Instant,
    code: ReplyCode,
}

#[expect(clippy::large_enum_variant, reason = "nobody keeps one")]
enum Heard {
    More,
    Nothing,
    Verdict(Verdict),
}

impl Dial {
    /// For a client that said `kept`, neither nothing nor more than [`KEPT`] bytes.
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
            replies: Vec::new(),
            is_method_refused: false,
            retry: None,
            beside_after: None,
            request_by: None,
            client_closed: false,
            since: now,
            give_up: now + choice.longest(usual) * DIALS,
            choice,
            is_asked: false,
        }
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
            if write_all_now(client, &mut self.unsaid).is_err() {
                return self.client_left(serving);
            }
            match self.hear(client, serving, cx) {
                Heard::More => {}
                Heard::Nothing => return Verdict::Wait(self.until(serving)),
                Heard::Verdict(verdict) => return verdict,
            }
        }
    }

    /// Takes in what more the client said.
    fn keep(&mut self, bytes: &[u8], serving: &Serving) {
        self.held.extend_from_slice(bytes);
        self.kept.append(&mut self.held);
        if !self.is_asked && serving.carries_datagrams() {
            (self.kept, self.held) = without_announcement(std::mem::take(&mut self.kept));
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

    /// Goes on with every attempt, until none can.
    fn advance(&mut self, serving: &mut Serving, cx: &mut TurnContext<'_>) -> Option<Verdict> {
        let mut place = 0;
        loop {
            let said = Said::new(&self.kept, self.hold(serving), self.told);
            let attempt = self.attempts.get_mut(place)?;
            let advance = attempt.advance(&said, cx);
            self.furthest = self.furthest.max(attempt.sent);
            let verdict = match advance {
                Advance::Wait => {
                    // Nobody can tell where a request ends that is none: its sender learns that from the remote.
                    if said.asked() == Asked::Unreadable
                        && self.told != Told::Nothing
                        && attempt.is_open()
                    {
                        return Some(self.relay(place, &[]));
                    }
                    place += 1;
                    continue;
                }
                Advance::Method(method) => self.take_method(place, method, serving, cx.now),
                Advance::Reply(reply, bytes) => {
                    self.take_reply(place, reply, bytes, serving, cx.now)
                }
                Advance::Refused(code, bytes) => {
                    self.take_refusal(place, code, &bytes, serving, cx.now)
                }
                Advance::Unreadable(bytes) => self.take_rubbish(place, bytes, serving, cx.now),
                Advance::Relay => {
                    if attempt.has_answered() {
                        serving
                            .route
                            .answered(attempt.remote, attempt.greeted, cx.now);
                    }
                    if said.speaks() == Speaks::Socks4 && attempt.has_granted() {
                        serving.route.served(attempt.remote, cx.now);
                    }
                    Some(self.relay(place, &[]))
                }
                Advance::Failed(failure) => self.take_failure(place, failure, serving),
            };
            if verdict.is_some() {
                return verdict;
            }
            place = 0;
        }
    }

    /// A remote has chosen how clients authenticate.
    fn take_method(
        &mut self,
        place: usize,
        method: Method,
        serving: &mut Serving,
        now: Instant,
    ) -> Option<Verdict> {
        let attempt = self.attempts.get_mut(place)?;
        let took = now.saturating_duration_since(attempt.since);
        let greeted = Some(*attempt.greeted.get_or_insert(took));
        serving
            .route
            .paces()
            .note(attempt.remote, attempt.pace(now));
        let said = self.said(serving);
        let is_offered = said.offers(method) && method != Method::NONE_ACCEPTABLE;
        let offers_none = said.offers(Method::NONE);
        match (self.told, method) {
            (Told::NoAuthentication, Method::NONE) => return None,
            (Told::Nothing, Method::NONE) if is_offered => {
                self.tell(place, serving);
                return None;
            }
            (Told::Nothing, _) if is_offered => {
                let remote = self.attempts.get(place)?.remote;
                serving.route.answered(remote, greeted, now);
                return Some(self.relay(place, &[5, method.0]));
            }
            _ => {}
        }
        if self.told == Told::Nothing && !self.is_replaceable(place, serving, now) {
            return Some(self.relay(place, &[5, method.0]));
        }
        // A client that offers other methods may be the one that does not fit, and one that was told something by another
        // remote certainly is.
        let blame = match method {
            Method::NONE_ACCEPTABLE => offers_none,
            _ => !is_offered,
        };
        self.is_method_refused |= self.told == Told::Nothing && !offers_none;
        let failure = DialFailure::NoProxy(vec![5, method.0]);
        self.fail(place, failure, blame, serving);
        None
    }

    /// The first remote that takes the client as it is: others that were asked are too late.
    fn tell(&mut self, place: usize, serving: &Serving) {
        self.told = Told::NoAuthentication;
        self.unsaid.extend(NO_AUTHENTICATION);
        let attempt = self.attempts.swap_remove(place);
        for late in std::mem::take(&mut self.attempts) {
            // It has not failed: it may be the next.
            self.tried.retain(|tried| *tried != late.remote);
            if late.since < attempt.since {
                serving.failed(late.remote, late.since, DialFailure::Hesitated);
            }
        }
        self.attempts.push(attempt);
    }

    /// A remote has refused the request.
    fn take_refusal(
        &mut self,
        place: usize,
        code: ReplyCode,
        bytes: &[u8],
        serving: &Serving,
        now: Instant,
    ) -> Option<Verdict> {
        let attempt = self.attempts.get(place)?;
        let (remote, since, greeted) = (attempt.remote, attempt.since, attempt.greeted);
        if !is_unreached(code) {
            serving.route.answered(remote, greeted, now);
            self.report_replies(serving, Served::No);
            return Some(self.relay(place, bytes));
        }
        self.replies.push(Unreached {
            remote,
            since,
            code,
        });
        if serving.settings.retry && self.others_left(place, now) {
            log::debug!("{}: remote {remote}: {code}", serving.client);
            self.attempts.remove(place);
            return None;
        }
        let best = self.most_telling().unwrap_or(code);
        self.report_replies(serving, Served::No);
        Some(match best == code {
            true => self.relay(place, bytes),
            false => Verdict::Decline(Refusal::Reply(best)),
        })
    }

    /// A remote has granted the request.
    fn take_reply(
        &mut self,
        place: usize,
        reply: Reply,
        bytes: Vec<u8>,
        serving: &Serving,
        now: Instant,
    ) -> Option<Verdict> {
        let attempt = self.attempts.get(place)?;
        let (remote, since, greeted) = (attempt.remote, attempt.since, attempt.greeted);
        serving.route.answered(remote, greeted, now);
        serving.route.served(remote, now);
        self.report_replies(serving, Served::Yes);
        for late in &self.attempts {
            if late.since < since {
                let failure = DialFailure::Silent(Awaited::Reply);
                serving.failed(late.remote, late.since, failure);
            }
        }
        let Asked::For {
            command: Command::Associate,
            ..
        } = self.said(serving).asked()
        else {
            return Some(self.relay(place, &bytes));
        };
        let (won, behind) = self.win(place);
        Some(Verdict::Associated(Associated {
            won,
            reply,
            bytes,
            behind,
        }))
    }

    /// A remote has said something that is no SOCKS 5.
    fn take_rubbish(
        &mut self,
        place: usize,
        bytes: Vec<u8>,
        serving: &mut Serving,
        now: Instant,
    ) -> Option<Verdict> {
        if !self.is_replaceable(place, serving, now) {
            return Some(self.relay(place, &bytes));
        }
        self.fail(place, DialFailure::NoProxy(bytes), true, serving);
        None
    }

    /// A remote refused, closed, broke off, or did not accept our login.
    fn take_failure(
        &mut self,
        place: usize,
        failure: DialFailure,
        serving: &mut Serving,
    ) -> Option<Verdict> {
        let is_asked = self.said(serving).asked() != Asked::NotYet;
        if self.told == Told::Nothing || (serving.settings.retry && is_asked) {
            self.fail(place, failure, true, serving);
            return None;
        }
        if !serving.settings.retry {
            return Some(match failure {
                // The relay sees the end again.
                DialFailure::ClosedEarly(_) => self.relay(place, &[]),
                _ => Verdict::Reset,
            });
        }
        // It owed nothing: many close when a client takes its time.
        let attempt = self.attempts.remove(place);
        let remote = attempt.remote;
        log::debug!(
            "{}: remote {remote}: {failure}, was not asked",
            serving.client
        );
        self.tried.retain(|tried| *tried != remote);
        None
    }

    fn fail(&mut self, place: usize, failure: DialFailure, blame: bool, serving: &Serving) {
        let attempt = self.attempts.remove(place);
        // Remotes are chosen for their SOCKS 5. Many know nothing else and close when they hear SOCKS 4: that must not
        // take the remote away from everybody.
        let is_hung_up = matches!(
            failure,
            DialFailure::ClosedEarly(_) | DialFailure::Reset(..)
        );
        if blame && !(is_hung_up && self.speaks() == Speaks::Socks4) {
            serving.failed(attempt.remote, attempt.since, failure);
        } else {
            let remote = attempt.remote;
            log::debug!("{}: remote {remote}: {failure}", serving.client);
        }
    }

    /// Whether a remote that behaves as no SOCKS 5 proxy does is left for another one, or for a refusal. A single one that was
    /// named may be anything.
    fn is_replaceable(&self, place: usize, serving: &Serving, now: Instant) -> bool {
        (self.told == Told::Nothing || serving.settings.retry)
            && (self.choice.patience == Patience::Limited || self.others_left(place, now))
    }

    /// Whether there is anybody else than this one.
    fn others_left(&self, place: usize, now: Instant) -> bool {
        let under_way = self.attempts.len() > usize::from(place < self.attempts.len());
        under_way || (self.may_ask(self.attempts.len().saturating_sub(1)) && now < self.give_up)
    }

    /// Whether another remote may hear what the client said while so many are under way.
    fn may_ask(&self, under_way: usize) -> bool {
        let said = Said::new(&self.kept, Hold::Private, self.told);
        self.furthest <= said.repeatable()
            && self.replies.len() + under_way < AT_ONCE
            && self.untried().is_some()
    }

    fn untried(&self) -> Option<&Candidate> {
        let mut candidates = self.choice.candidates.iter();
        candidates.find(|candidate| {
            // SOCKS 4 has no passwords.
            let is_of_use = candidate.login.is_none() || self.speaks() != Speaks::Socks4;
            is_of_use && !self.tried.contains(&candidate.address)
        })
    }

    /// The reply that says most about the destination.
    fn most_telling(&self) -> Option<ReplyCode> {
        // The first one of equals.
        let replies = self.replies.iter().rev();
        replies.map(|reply| reply.code).max_by_key(|code| code.0)
    }

    fn report_replies(&mut self, serving: &Serving, served: Served) {
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

    fn relay(&mut self, place: usize, answer: &[u8]) -> Verdict {
        if self.attempts.get(place).is_none() {
            return Verdict::Over;
        }
        let (mut won, behind) = self.win(place);
        won.answer.extend(answer);
        won.answer.extend(behind);
        Verdict::Relay(won)
    }

    /// Takes this attempt, which is there, and closes the others.
    fn win(&mut self, place: usize) -> (Won, Vec<u8>) {
        let mut attempt = self.attempts.swap_remove(place);
        self.attempts.clear();
        let behind = attempt.take_heard();
        let won = Won {
            remote: attempt.remote,
            since: attempt.since,
            up: attempt.carried(),
            down: self.heard().len() as u64,
            answer: std::mem::take(&mut self.unsaid),
            unsent: self.kept.get(attempt.sent..).unwrap_or_default().to_vec(),
            socket: attempt.socket,
        };
        (won, behind)
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
        if !self.replies.is_empty() && now >= self.give_up {
            return Some(Verdict::Decline(self.refusal(serving)));
        }
        None
    }

    fn greeting_by(&self, serving: &Serving) -> Option<Instant> {
        let said = self.said(serving);
        let is_half = said.speaks() == Speaks::Socks5 && said.greeting().is_none();
        is_half.then_some(self.since + FIRST_BYTES_LIMIT)
    }

    /// What the client is told when nobody is left.
    fn refusal(&mut self, serving: &Serving) -> Refusal {
        let best = self.most_telling();
        self.report_replies(serving, Served::No);
        self.attempts.clear();
        match best {
            Some(code) => Refusal::Reply(code),
            None if self.is_method_refused => Refusal::Method,
            None => Refusal::Nobody,
        }
    }

    /// Starts an attempt if none is under way, or those that are hesitate. Whether it did.
    fn start_if_due(&mut self, serving: &mut Serving, now: Instant) -> Result<bool, Refusal> {
        if !self.attempts.is_empty() {
            let is_due = self.beside_at(serving).is_some_and(|at| now >= at);
            return Ok(is_due && self.start_next(serving, now));
        }
        if self.awaits_request(serving) {
            let by = now + FIRST_BYTES_LIMIT;
            self.request_by.get_or_insert(by);
            return Ok(false);
        }
        self.request_by = None;
        if self.retry.is_some_and(|at| now < at) {
            return Ok(false);
        }
        if self.start_next(serving, now) {
            return Ok(true);
        }
        match self.retry {
            Some(_) => Ok(false),
            None => Err(self.refusal(serving)),
        }
    }

    /// Whether it is the client's turn: there is nothing to say to any remote.
    fn awaits_request(&self, serving: &Serving) -> bool {
        self.told != Told::Nothing && self.said(serving).asked() == Asked::NotYet
    }

    /// When another attempt is to be started beside those under way.
    fn beside_at(&self, serving: &Serving) -> Option<Instant> {
        let said = self.said(serving);
        let is_fit = self.choice.patience == Patience::Limited
            && said.fails_over()
            && self.attempts.len() < AT_ONCE
            && self.may_ask(self.attempts.len());
        let latest = self.attempts.last().filter(|_| is_fit)?;
        let settings = &serving.settings;
        let at = latest.hesitates_at(&said, settings.stagger, settings.connect_timeout)?;
        let at = self.beside_after.map_or(at, |after| after.max(at));
        (at < self.give_up).then_some(at)
    }

    /// Starts to connect to the best candidate that was not tried. Whether there was one.
    fn start_next(&mut self, serving: &mut Serving, now: Instant) -> bool {
        self.retry = None;
        while now < self.give_up && self.may_ask(self.attempts.len()) {
            let Some(candidate) = self.untried().cloned() else {
                break;
            };
            let remote = candidate.address;
            let is_beside = !self.attempts.is_empty();
            if is_beside && !serving.widen() {
                self.beside_after = Some(now + SHORTAGE_RETRY);
                return false;
            }
            let failure = match start_connect(remote) {
                Ok(socket) => {
                    let is_first = self.tried.is_empty();
                    self.tried.push(remote);
                    let allowance = serving.route.paces().allowance(remote);
                    let attempt = Attempt::new(&candidate, socket, is_first, allowance, now);
                    self.attempts.push(attempt);
                    return true;
                }
                Err(ConnectFailure::Local(error)) if is_shortage(&error) => {
                    let at = Some(now + SHORTAGE_RETRY);
                    match is_beside {
                        true => self.beside_after = at,
                        false => self.retry = at,
                    }
                    return false;
                }
                Err(ConnectFailure::Local(error)) => DialFailure::Local(error),
                Err(ConnectFailure::Remote(error)) => DialFailure::Connect(error),
            };
            self.tried.push(remote);
            serving.failed(remote, now, failure);
        }
        if self.choice.is_awaited && now < self.give_up && self.attempts.is_empty() {
            self.retry = Some(self.give_up);
        }
        false
    }

    /// Takes over a choice that was made since. An attempt at a remote that is no candidate any more is given up, unless the
    /// client has been told of it: then it counts as established, and goes on or is cut like those.
    fn follow_choice(&mut self, serving: &mut Serving, now: Instant) {
        if !self.is_behind(serving) {
            return;
        }
        let stays = self.told != Told::Nothing && !self.is_cut(serving);
        self.followed = serving.route.epoch();
        self.choice = serving.route.choice();
        // A client that has waited long for a remote without a time limit gets the new one's whole time.
        self.give_up = now + self.choice.longest(serving.settings.connect_timeout) * DIALS;
        self.retry = None;
        let choice = &self.choice;
        let is_candidate = |attempt: &Attempt| choice.has(attempt.remote);
        if !stays {
            let mut kept = Vec::new();
            for attempt in std::mem::take(&mut self.attempts) {
                match is_candidate(&attempt) {
                    true => kept.push(attempt),
                    // It has not failed: another choice may bring it back.
                    false => self.tried.retain(|tried| *tried != attempt.remote),
                }
            }
            self.attempts = kept;
        }
        if self.attempts.iter().all(is_candidate) {
            serving.epoch = self.followed;
        }
    }

    /// Whether more of the client's first bytes is read. What is not read waits in the kernel.
    fn listens(&self) -> bool {
        let is_wanted = !self.attempts.is_empty() || self.request_by.is_some();
        is_wanted && self.speaks() != Speaks::Other && self.kept.len() < KEPT
    }

    /// Reads more of the client's first bytes.
    fn hear(&mut self, client: &Socket, serving: &Serving, cx: &mut TurnContext<'_>) -> Heard {
        if !self.listens() {
            return Heard::Nothing;
        }
        match read_some(
            client,
            cx.buffer_up_to(KEPT.saturating_sub(self.kept.len() + self.held.len())),
        ) {
            Ok(None) => Heard::Nothing,
            Ok(Some([])) if self.told != Told::Nothing => Heard::Verdict(self.half_closed(serving)),
            // A SOCKS client does not end its side before it has an answer.
            Ok(Some([])) | Err(_) => Heard::Verdict(self.client_left(serving)),
            Ok(Some(bytes)) => {
                let bytes = bytes.to_vec();
                self.keep(&bytes, serving);
                if !self.is_asked && matches!(self.said(serving).asked(), Asked::For { .. }) {
                    self.is_asked = true;
                    let usual = serving.settings.connect_timeout;
                    self.give_up = cx.now + self.choice.longest(usual) * DIALS;
                }
                Heard::More
            }
        }
    }

    /// The client has ended its side behind its request: that is for the remote, so there is no other one for it any more.
    fn half_closed(&mut self, serving: &Serving) -> Verdict {
        let open = self.attempts.iter().position(Attempt::is_open);
        match open {
            // The relay sees the end again.
            Some(place) if self.said(serving).asked() != Asked::NotYet => self.relay(place, &[]),
            _ => self.client_left(serving),
        }
    }

    fn client_left(&self, serving: &Serving) -> Verdict {
        let remotes = self.attempts.len();
        log::debug!("{}: left, {remotes} remotes under way", serving.client);
        Verdict::Over
    }

    /// When something is to be done though nothing happens.
    fn until(&self, serving: &Serving) -> Option<Instant> {
        let (limit, patience) = (serving.settings.connect_timeout, self.choice.patience);
        let said = self.said(serving);
        let idle = match self.attempts.is_empty() {
            true => [self.retry, self.request_by],
            false => [
                self.beside_at(serving),
                Some(self.give_up).filter(|_| !self.replies.is_empty()),
            ],
        };
        self.attempts
            .iter()
            .filter_map(|attempt| attempt.deadline(&said, limit, patience))
            .chain(idle.into_iter().flatten())
            .chain(self.greeting_by(serving))
            .min()
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Yes,
    No,
}

/// Whether a reply says that the proxy could not get to the destination, where another one may: any failure, or no route to
/// network or host (RFC 1928 §6). That it is refused there, not allowed or not known is the answer.
fn is_unreached(code: ReplyCode) -> bool {
    matches!(
        code,
        ReplyCode::GENERAL_FAILURE | ReplyCode::NETWORK_UNREACHABLE | ReplyCode::HOST_UNREACHABLE
    )
}

const CLIENT: Key = 0;
/// The first of them; there are at most [`AT_ONCE`].
const REMOTES: Key = 1;

/// How a SOCKS 5 client is told that it need not authenticate (RFC 1928 §3).
const NO_AUTHENTICATION: [u8; 2] = [5, 0];

/// Remotes that are asked at a time, and that may say that they can't reach a destination: it is more likely gone than all
/// of them cut off from it. Each takes a descriptor, and two more than usual are what a wide place has.
const AT_ONCE: usize = 3;

/// How soon a descriptor is asked for again when there was none.
const SHORTAGE_RETRY: Duration = Duration::from_millis(100);

/// A client waits for at most so many connect time-outs in all, however many candidates there are.
pub(super) const DIALS: u32 = 3;

/// A client that says nothing, half a greeting, or makes no request: browsers open connections ahead and use them within
/// seconds.
pub(super) const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(60);
