//! The race: several good peers are greeted a little apart, the first good answer wins, the losers are closed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Weak;
use std::time::{Duration, Instant};

use super::probe::Probe;
use super::prober::Discovery;
use super::status::{Finding, Status};
use crate::engine::{Cx, Next, Shared, Task, TaskId};

/// Called once with the winner. Not called when the race is cancelled.
pub type OnWinner = Box<dyn FnOnce(&mut Cx<'_>, Result<SocketAddr, NoWinner>)>;

/// Nobody answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoWinner {
    /// How many took part.
    pub asked: usize,
}

impl fmt::Display for NoWinner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.asked {
            0 => f.write_str("no valid proxy available: no peer is known to be one"),
            1 => f.write_str("no valid proxy available: the only valid peer did not answer as one"),
            n => write!(
                f,
                "no valid proxy available: none of {n} valid peers answered as one"
            ),
        }
    }
}

impl Error for NoWinner {}

/// A race under way. Dropping this lets it run.
pub struct Race {
    /// Weak, because whoever is told of the winner may be the one who holds this.
    state: Weak<RefCell<State>>,
    task: TaskId,
}

struct Runner {
    address: SocketAddr,
    probe: TaskId,
    started: Instant,
}

struct State {
    discovery: Shared<Discovery>,
    task: TaskId,
    waiting: VecDeque<SocketAddr>,
    running: Vec<Runner>,
    /// How many may be asked at once.
    most: usize,
    asked: usize,
    apart: Duration,
    /// How long one may take while others have not been asked yet.
    share: Duration,
    next_start: Instant,
    until: Instant,
    on_winner: Option<OnWinner>,
}

impl Race {
    /// Starts a race among `peers`, best first. The probe time-out is the limit for the whole of it.
    pub fn start(
        discovery: &Shared<Discovery>,
        peers: Vec<SocketAddr>,
        on_winner: OnWinner,
        cx: &mut Cx<'_>,
    ) -> Self {
        let (timeout, most) = {
            let discovery = discovery.borrow();
            (discovery.probe_settings().timeout, discovery.most_probes())
        };
        // All are started in the first half of the time, so that the last still has the other half.
        let count = u32::try_from(peers.len()).unwrap_or(u32::MAX).max(1);
        let apart = (timeout / 2 / count).min(APART);
        // With more peers than can be asked at once, silent ones must not keep the others from being asked.
        let rounds = u32::try_from(peers.len().div_ceil(most))
            .unwrap_or(u32::MAX)
            .max(1);
        let task = cx.reserve();
        let state = Shared::new(RefCell::new(State {
            discovery: Shared::clone(discovery),
            task,
            asked: peers.len(),
            waiting: peers.into(),
            running: Vec::new(),
            most,
            apart,
            share: timeout / rounds,
            next_start: cx.now,
            until: cx.now + timeout,
            on_winner: Some(on_winner),
        }));
        cx.place(
            task,
            Box::new(Starter {
                state: Shared::clone(&state),
            }),
        );
        let state = Shared::downgrade(&state);
        Self { state, task }
    }

    /// Ends it without a winner, and without a word to whoever waits for one.
    pub fn cancel(self, cx: &mut Cx<'_>) {
        let on_winner = self
            .state
            .upgrade()
            .and_then(|state| state.borrow_mut().end(cx));
        cx.cancel(self.task);
        drop(on_winner);
    }
}

impl State {
    /// Closes the losers; who is to be told, if nobody was told yet.
    fn end(&mut self, cx: &mut Cx<'_>) -> Option<OnWinner> {
        self.waiting.clear();
        for runner in self.running.drain(..) {
            cx.cancel(runner.probe);
        }
        self.on_winner.take()
    }

    fn start(&mut self, address: SocketAddr, shared: &Shared<Self>, cx: &mut Cx<'_>) {
        let shared = Shared::clone(shared);
        let on_finding = Box::new(move |cx: &mut Cx<'_>, address, finding| {
            let mut state = shared.borrow_mut();
            state.running.retain(|runner| runner.address != address);
            let discovery = Shared::clone(&state.discovery);
            discovery.borrow_mut().record(address, finding, cx);
            let won = matches!(
                finding,
                Finding::Answered {
                    status: Status::Valid,
                    ..
                }
            );
            cx.wake(state.task);
            if won && let Some(on_winner) = state.end(cx) {
                drop(state);
                on_winner(cx, Ok(address));
            }
        });
        let discovery = self.discovery.borrow();
        let probe = cx.spawn(Box::new(Probe::new(
            address,
            discovery.logins().get(address),
            discovery.probe_settings(),
            on_finding,
        )));
        let started = cx.now;
        self.running.push(Runner {
            address,
            probe,
            started,
        });
    }

    /// Closes those that have had their share of the time, if others wait for their place.
    fn make_room(&mut self, cx: &mut Cx<'_>) {
        if self.waiting.is_empty() || self.running.len() < self.most {
            return;
        }
        self.running.retain(|runner| {
            let is_late = cx.now >= runner.started + self.share;
            if is_late {
                cx.cancel(runner.probe);
            }
            !is_late
        });
    }

    /// When something has to be done though nobody answers.
    fn next(&self) -> Instant {
        let oldest = self.running.iter().map(|runner| runner.started).min();
        let next = match oldest {
            _ if self.waiting.is_empty() => self.until,
            Some(oldest) if self.running.len() >= self.most => oldest + self.share,
            _ => self.next_start,
        };
        next.min(self.until)
    }
}

/// The task that starts the probes one after the other and sees to the deadline.
struct Starter {
    state: Shared<State>,
}

impl Task for Starter {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let mut state = self.state.borrow_mut();
        if state.on_winner.is_none() {
            return Next::Done;
        }
        state.make_room(cx);
        // Without anybody left to wait for, the next one starts before its time.
        while state.running.len() < state.most
            && (cx.now >= state.next_start || state.running.is_empty())
        {
            let Some(address) = state.waiting.pop_front() else {
                break;
            };
            state.next_start = cx.now + state.apart;
            state.start(address, &self.state, cx);
        }
        if cx.now >= state.until || (state.running.is_empty() && state.waiting.is_empty()) {
            let asked = state.asked;
            if let Some(on_winner) = state.end(cx) {
                drop(state);
                on_winner(cx, Err(NoWinner { asked }));
            }
            return Next::Done;
        }
        Next::Wait(Some(state.next()))
    }
}

/// How far apart peers are greeted at most: a near one answers within this, and then the others are never asked.
const APART: Duration = Duration::from_millis(50);
