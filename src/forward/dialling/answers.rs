//! What a remote said or did, and what follows from it.

use std::time::Instant;

use super::unreached::is_unreached;
use super::{Dial, NO_AUTHENTICATION};
use crate::engine::TurnContext;
use crate::forward::attempt::Advance;
use crate::forward::route::{Awaited, DialFailure, Patience};
use crate::forward::said::{Said, Told};
use crate::forward::serving::Serving;
use crate::forward::verdict::{Associated, Refusal, Verdict, Won};
use crate::handshake::watch::{Asked, Speaks};
use crate::wire::socks5::{Command, Method, Reply, ReplyCode};

impl Dial {
    /// Goes on with every attempt, until none can.
    pub(super) fn advance(
        &mut self,
        serving: &mut Serving,
        cx: &mut TurnContext<'_>,
    ) -> Option<Verdict> {
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
        let greeted = attempt.greeted_in(now);
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
            if late.since < attempt.since && !late.is_unproven() {
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
            self.unreached.report_replied(serving);
            return Some(self.relay(place, bytes));
        }
        self.unreached.push(remote, since, code);
        if serving.settings.retry && self.others_left(place, now) {
            log::debug!("{}: remote {remote}: {code}", serving.client);
            self.attempts.remove(place);
            return None;
        }
        let best = self.unreached.most_telling().unwrap_or(code);
        self.unreached.report_replied(serving);
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
        self.unreached.report_outdone(serving);
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

    /// Whether a remote that behaves as no SOCKS 5 proxy does is left for another one, or for a refusal. A single one that was
    /// named may be anything.
    fn is_replaceable(&self, place: usize, serving: &Serving, now: Instant) -> bool {
        (self.told == Told::Nothing || serving.settings.retry)
            && (self.choice.patience == Patience::Limited || self.others_left(place, now))
    }

    /// Gives up this attempt, which is there. Without `blame` the remote is not at fault.
    pub(super) fn fail(
        &mut self,
        place: usize,
        failure: DialFailure,
        blame: bool,
        serving: &Serving,
    ) {
        let attempt = self.attempts.remove(place);
        if attempt.is_unproven() {
            // It was dead before the client came: the remote is asked again, over a connection of its own.
            let remote = attempt.remote;
            log::debug!(
                "{}: ready connection to {remote}: {failure}",
                serving.client
            );
            self.tried.retain(|tried| *tried != remote);
            self.was_stale = true;
            if let Some(ready) = &serving.settings.ready {
                ready.was_stale();
            }
            return;
        }
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

    /// This attempt's remote serves the client, which has not heard `answer`.
    pub(super) fn relay(&mut self, place: usize, answer: &[u8]) -> Verdict {
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
}
