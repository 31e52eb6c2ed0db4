//! Proxies that stand in for each other: which one a client begins with, and when it goes on to the next.
//!
//! In their order, but one that has failed is avoided for a while ([`Health`](super::health::Health)); if all of them have,
//! all are tried. A client goes on to the next one when a proxy cannot be connected to, closes, resets, is silent up to its
//! first answer, speaks another version or does not take us; also when it says that it cannot reach the destination, which
//! another one may. Not after payload was sent ahead, unless the proxy has refused: it may have been carried out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::asking::{Asked, Asking, Why};
use super::health::{Fitness, Turned};
use super::way::{Gone, Way};
use super::{Failure, Fault, Via};
use crate::engine::TurnContext;
use crate::proxy_uri::ProxyUri;
use crate::wire::socks5::ReplyCode;

/// What a client's way has behind it and before it, where there are several proxies.
#[derive(Default)]
pub(super) struct Progress {
    /// In which order to try them.
    untried: VecDeque<(Arc<Via>, Duration)>,
    /// For the first answer of the one that is tried.
    until: Option<Instant>,
    /// It has come.
    heard: bool,
    /// What must not be said to two is on its way: some of the client's payload, or its request, if that is not taken to
    /// another.
    committed: bool,
    /// The first proxy that could not reach the destination.
    refusal: Option<Failure>,
}

impl Via {
    /// With others, in their order, for when this one does not work. Each has `patience` for its first answer, if it has no
    /// timeout of its own, unless it is the last that could be tried. Without `retry` no request that one was asked for is taken
    /// to another, unless the first did not take us.
    #[must_use]
    pub fn with_stand_ins(mut self, others: Vec<Self>, patience: Duration, retry: bool) -> Self {
        self.is_alone = others.is_empty();
        self.patience = patience;
        self.retry = retry;
        let member = |mut other: Self| {
            other.is_alone = false;
            other.patience = patience;
            other.retry = retry;
            Arc::new(other)
        };
        self.stand_ins = others.into_iter().map(member).collect();
        self
    }

    /// The one that clients begin with now, its first proxy.
    #[must_use]
    pub fn in_use(&self) -> &ProxyUri {
        let stand_ins = self.stand_ins.iter().map(AsRef::as_ref);
        let mut all = std::iter::once(self).chain(stand_ins);
        let used = all.find(|via| via.health.is_well());
        &used.unwrap_or(self).first
    }

    /// What went wrong last with one of them, or the way to it, and when. Has no password.
    #[must_use]
    pub fn last_trouble(&self) -> Option<(SystemTime, String)> {
        let own = self.complained().latest.clone();
        let of_others = self.stand_ins.iter().filter_map(|via| via.last_trouble());
        own.into_iter().chain(of_others).max()
    }

    /// For a client that looks for one that works: in which order, and how long for the first answer of each.
    fn order(self: &Arc<Self>, now: Instant) -> VecDeque<(Arc<Self>, Duration)> {
        let mut avoided = Vec::new();
        let mut order = VecDeque::new();
        for via in [self].into_iter().chain(&self.stand_ins) {
            let patience = via.own_timeout().unwrap_or(via.patience);
            match via.health.fitness(now) {
                Fitness::Well => order.push_back((Arc::clone(via), patience)),
                Fitness::Trial => order.push_back((Arc::clone(via), patience / TRIAL)),
                Fitness::Avoided(until) => avoided.push((until, (Arc::clone(via), patience))),
            }
        }
        // There are few.
        while let Some(next) = avoided.iter().map(|(until, _)| *until).min()
            && let Some(place) = avoided.iter().position(|(until, _)| *until == next)
        {
            order.push_back(avoided.remove(place).1);
        }
        order
    }

    fn has_answered(&self) {
        if !self.is_alone && self.health.answered() == Turned::Well {
            log::info!("via {}: works again", self.first.address());
        }
    }

    fn has_failed(&self, failure: &Failure, now: Instant) {
        self.complained().latest = Some((SystemTime::now(), failure.to_string()));
        if let Turned::Ill(pause) = self.health.failed(now) {
            // Nothing but an admin ends that one.
            let level = match failure.fault {
                Fault::Login => log::Level::Warn,
                _ => log::Level::Info,
            };
            log::log!(
                level,
                "{failure}; avoided for {}s at first",
                pause.as_secs()
            );
        }
    }
}

impl Way {
    /// Goes on. Of the payload, which only grows from turn to turn, the last proxy gets what it takes ahead of its reply.
    pub(in crate::server) fn turn(&mut self, payload: &[u8], cx: &mut TurnContext<'_>) -> Gone {
        loop {
            let failure = match self.advance(payload, cx) {
                Gone::Not(next) => match self.patience_left(cx.now) {
                    Some(until) if cx.now >= until => self.timed_out(),
                    until => return Gone::Not(next.into_iter().chain(until).min()),
                },
                Gone::Failed(failure) => failure,
                gone => return gone,
            };
            if let Err(failure) = self.go_to_the_next(failure, cx.now) {
                return Gone::Failed(failure);
            }
        }
    }

    /// Chooses where to begin.
    pub(super) fn choose(&mut self, now: Instant) {
        if !self.via.is_alone {
            self.progress.untried = self.via.order(now);
            self.take_next(now);
        }
    }

    /// Makes the next proxy that has not been tried the one to go through; whether there is one.
    fn take_next(&mut self, now: Instant) -> bool {
        let Some((via, patience)) = self.progress.untried.pop_front() else {
            return false;
        };
        self.via = via;
        self.progress.heard = false;
        let is_last = self.progress.untried.is_empty();
        self.progress.until = (!is_last).then(|| now + patience);
        true
    }

    /// Takes note of what a proxy has said, and of what was said to it.
    pub(super) fn heed(&mut self, asking: &Asking, asked: &Asked) {
        self.progress.committed |= asking.carried() > 0 || !self.via.retry;
        let has_answered = match asked {
            Asked::Granted(_) | Asked::Listening(_) => true,
            #[cfg(feature = "socks6")]
            Asked::Kept(..) => true,
            Asked::Declined(declined) => matches!(declined.why, Why::Destination(..)),
            Asked::Not => asking.awaits_reply(),
            Asked::Broken(_) => false,
        };
        if has_answered && !self.progress.heard {
            self.progress.heard = true;
            self.via.has_answered();
        }
    }

    /// Until when to wait for the first answer of the proxy that is being tried, if another one could be.
    fn patience_left(&mut self, now: Instant) -> Option<Instant> {
        if self.progress.heard || self.progress.committed {
            return None;
        }
        let until = self.progress.until?;
        if now >= until && self.may_be_silent() && self.via.health.is_well() {
            // Its first answer may be that of the destination. Somebody else may find out that there is none.
            self.progress.until = Some(now + LOOK_AGAIN);
        }
        self.progress.until
    }

    /// Goes on to the next proxy after a failure, if that can help and does no harm.
    fn go_to_the_next(&mut self, failure: Failure, now: Instant) -> Result<(), Failure> {
        if self.via.is_alone {
            return Err(failure);
        }
        let may = match failure.fault {
            // Its port is another one then.
            _ if self.is_listening => false,
            Fault::Destination => self.via.retry && is_the_proxys_view(failure.code),
            // It has said so.
            Fault::Login => true,
            Fault::Proxy => !self.progress.committed,
        };
        if failure.fault != Fault::Destination {
            self.via.has_failed(&failure, now);
        }
        if !may {
            return Err(failure);
        }
        let failure = match failure.fault {
            // Who could not reach the destination tells more than who could not be asked.
            Fault::Destination => self.progress.refusal.get_or_insert(failure).clone(),
            _ => self.progress.refusal.clone().unwrap_or(failure),
        };
        if !self.take_next(now) {
            return Err(failure);
        }
        self.begin();
        Ok(())
    }
}

/// Whether another proxy may see it differently.
fn is_the_proxys_view(code: ReplyCode) -> bool {
    matches!(
        code,
        ReplyCode::GENERAL_FAILURE | ReplyCode::NETWORK_UNREACHABLE | ReplyCode::HOST_UNREACHABLE
    )
}

/// A client that tries one that has failed before gives it this part of the time only.
const TRIAL: u32 = 4;

/// Short for a person.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
