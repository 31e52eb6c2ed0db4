//! Which remote is asked next, and when: the first, one beside it that hesitates, one after it that failed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{DIALS, Dial, FIRST_BYTES_LIMIT};
use crate::forward::attempt::Attempt;
use crate::forward::route::{Candidate, DialFailure, Patience};
use crate::forward::said::{Hold, Said, Told};
use crate::forward::serving::Serving;
use crate::forward::verdict::Refusal;
use crate::handshake::watch::{Asked, Speaks};
use crate::net::{ConnectFailure, is_shortage, start_connect_with};

impl Dial {
    /// Starts an attempt if none is under way, or those that are hesitate. Whether it did.
    pub(super) fn start_if_due(
        &mut self,
        serving: &mut Serving,
        now: Instant,
    ) -> Result<bool, Refusal> {
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
    pub(super) fn beside_at(&self, serving: &Serving) -> Option<Instant> {
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
            let is_first = self.tried.is_empty();
            let allowance = serving.route.paces().allowance(remote);
            if let Some(socket) = self.take_ready(remote, serving, now) {
                self.tried.push(remote);
                let attempt = Attempt::new(&candidate, socket, is_first, allowance, now);
                self.attempts.push(attempt.made_ready());
                return true;
            }
            let early = self.early(&candidate, is_first, serving);
            let failure = match start_connect_with(
                remote,
                &serving.settings.uplink,
                serving.settings.tcp,
                early,
            ) {
                Ok((socket, sent)) => {
                    self.tried.push(remote);
                    let attempt = Attempt::new(&candidate, socket, is_first, allowance, now);
                    self.attempts.push(attempt.having_sent(sent));
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

    /// A connection that is there already: for a client that has greeted, since the remote owes that an answer, by which it shows
    /// whether it still listens.
    fn take_ready(&self, remote: SocketAddr, serving: &Serving, now: Instant) -> Option<Socket> {
        let ready = serving.settings.ready.as_ref()?;
        let said = self.said(serving);
        let is_fit = self.told == Told::Nothing
            && self.tried.is_empty()
            && !self.was_stale
            && said.greeting().is_some()
            && self.choice.addresses().next() == Some(remote);
        is_fit.then(|| ready.take(remote, now)).flatten()
    }

    /// What may travel in the SYN: what this candidate is told first, if that comes from the client.
    fn early(&self, candidate: &Candidate, is_first: bool, serving: &Serving) -> &[u8] {
        if !serving.settings.tcp.fast_open {
            return &[];
        }
        let said = self.said(serving);
        let due = match (&candidate.login, is_first) {
            (Some(_), _) => 0,
            (None, true) => said.due(),
            (None, false) => said.greeting_due(),
        };
        self.kept.get(..due).unwrap_or_default()
    }

    /// What the client is told when nobody is left.
    pub(super) fn refusal(&mut self, serving: &Serving) -> Refusal {
        let best = self.unreached.most_telling();
        self.unreached.report_replied(serving);
        self.attempts.clear();
        match best {
            Some(code) => Refusal::Reply(code),
            None if self.is_method_refused => Refusal::Method,
            None => Refusal::Nobody,
        }
    }

    /// Whether there is anybody else than this one.
    pub(super) fn others_left(&self, place: usize, now: Instant) -> bool {
        let under_way = self.attempts.len() > usize::from(place < self.attempts.len());
        under_way || (self.may_ask(self.attempts.len().saturating_sub(1)) && now < self.give_up)
    }

    /// Whether another remote may hear what the client said while so many are under way.
    fn may_ask(&self, under_way: usize) -> bool {
        let said = Said::new(&self.kept, Hold::Private, self.told);
        self.furthest <= said.repeatable()
            && self.unreached.len() + under_way < AT_ONCE
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

    /// Takes over a choice that was made since. An attempt at a remote that is no candidate any more is given up, unless the
    /// client has been told of it: then it counts as established, and goes on or is cut like those.
    pub(super) fn follow_choice(&mut self, serving: &mut Serving, now: Instant) {
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
}

/// Remotes that are asked at a time, and that may say that they can't reach a destination: it is more likely gone than all
/// of them cut off from it. Each takes a descriptor, and two more than usual are what a wide place has.
pub(super) const AT_ONCE: usize = 3;

/// How soon a descriptor is asked for again when there was none.
const SHORTAGE_RETRY: Duration = Duration::from_millis(100);
