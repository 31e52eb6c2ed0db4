//! Sessions in the reactor: they wait there without a thread, and their small turns are run there.
//!
//! A small turn costs less here than on a worker, which has to be woken for it and to wait for the next one: two
//! switches between threads for each time that somebody says something. What is work goes to a worker.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::reactor::{Core, Entry};
use super::session::{BUFFER, Effort, Ready, Standing, Turn, TurnContext};
use super::watching::{Watched, token};
use super::workers::Boxed;

/// A session that is not with a worker.
pub(super) struct Parked {
    session: Boxed,
    /// Of its tokens.
    pub(super) serial: u32,
    /// What its descriptors told since its last turn.
    pub(super) ready: Ready,
    /// It has its place among those that are run next.
    pub(super) is_due: bool,
    /// Its descriptors are registered.
    is_watched: bool,
    /// Its timer: not after the deadline that it asked for. Those of short turns are often replaced by later ones, which costs nothing this way.
    pub(super) armed: Option<Instant>,
}

/// Sessions that are run next, in their order.
#[derive(Default)]
pub(super) struct Due(VecDeque<usize>);

impl Due {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, key: usize, is_due: &mut bool) {
        if !std::mem::replace(is_due, true) {
            self.0.push_back(key);
        }
    }
}

/// What came of a turn.
enum Turned {
    Wait {
        until: Option<Instant>,
        is_watched: bool,
    },
    /// There is more to do than the reactor does; its descriptors are not watched any more.
    Work,
    End,
    /// There was nothing for it.
    Nothing,
}

impl Core {
    /// Takes in a session that has had no turn yet.
    pub(super) fn submit(&mut self, session: Boxed) {
        match session.effort() {
            Effort::Work | Effort::Stream => self.workers.submit(session),
            Effort::Small => {
                let serial = self.next_serial();
                let key = self.entries.insert(Entry::Parked(Parked {
                    session,
                    serial,
                    ready: Ready::ALL,
                    is_due: false,
                    is_watched: false,
                    armed: None,
                }));
                self.parked += 1;
                self.enqueue(key, Ready::ALL);
            }
        }
    }

    /// Takes over a session that a worker found idle.
    pub(super) fn park(&mut self, session: Boxed, until: Option<Instant>) {
        // Asked here too: a sweep that came while the session was with a worker did not see it.
        match session.standing() {
            Standing::Keep => {}
            Standing::Wake => return self.workers.submit(session),
            Standing::Cut => return,
        }
        let serial = self.next_serial();
        let entry = self.entries.vacant_entry();
        let key = entry.key();
        let (watched, _) = Watched::by(&*session);
        let nothing = Watched::default();
        let asked = watched.instead_of(&nothing, false, Ready::ALL, &self.registry, |descriptor| {
            token(key, serial, descriptor)
        });
        entry.insert(Entry::Parked(Parked {
            session,
            serial,
            ready: Ready::NONE,
            is_due: false,
            is_watched: is_watched(asked),
            armed: None,
        }));
        self.parked += 1;
        self.arm(key, until);
    }

    /// Has a session run, with this readiness.
    fn enqueue(&mut self, key: usize, ready: Ready) {
        if let Some(Entry::Parked(parked)) = self.entries.get_mut(key) {
            parked.ready = ready;
            self.due.push(key, &mut parked.is_due);
        }
    }

    /// Takes a session out of the reactor.
    fn unpark(&mut self, key: usize) -> Option<Boxed> {
        let Some(Entry::Parked(_)) = self.entries.get(key) else {
            return None;
        };
        let Entry::Parked(parked) = self.entries.remove(key) else {
            return None;
        };
        self.parked -= 1;
        if let Some(armed) = parked.armed {
            self.timers.remove(&(armed, key));
        }
        if parked.is_watched {
            Watched::by(&*parked.session).0.forget(&self.registry);
        }
        Some(parked.session)
    }

    /// Ends a session. Closing its descriptors makes epoll forget them.
    fn end(&mut self, key: usize) {
        let Some(Entry::Parked(_)) = self.entries.get(key) else {
            return;
        };
        if let Entry::Parked(parked) = self.entries.remove(key) {
            self.parked -= 1;
            if let Some(armed) = parked.armed {
                self.timers.remove(&(armed, key));
            }
            if catch_unwind(AssertUnwindSafe(|| drop(parked.session))).is_err() {
                log::error!("a session panicked while it was closed");
            }
        }
    }

    /// Sees to it that a session is run at its deadline, or before.
    fn arm(&mut self, key: usize, until: Option<Instant>) {
        let Some(Entry::Parked(parked)) = self.entries.get_mut(key) else {
            return;
        };
        let soon = (!parked.is_watched).then(|| Instant::now() + RETRY_UNWATCHED);
        let Some(until) = until.into_iter().chain(soon).min() else {
            return;
        };
        if let Some(armed) = parked.armed {
            if armed <= until {
                return;
            }
            self.timers.remove(&(armed, key));
        }
        parked.armed = Some(until);
        self.timers.insert((until, key));
    }

    pub(super) fn sweep(&mut self) {
        let called: Vec<(usize, Standing)> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry {
                Entry::Parked(parked) => Some((key, parked.session.standing())),
                Entry::Task(_) => None,
            })
            .filter(|(_, standing)| *standing != Standing::Keep)
            .collect();
        for (key, standing) in called {
            match standing {
                Standing::Cut => self.end(key),
                _ => self.enqueue(key, Ready::ALL),
            }
        }
    }

    /// Gives every session that is due its turn, or to a worker.
    pub(super) fn run_sessions(&mut self) {
        for place in 0..self.due.0.len() {
            let Some(key) = self.due.0.pop_front() else {
                break;
            };
            let is_late = place >= BATCH && self.workers.has_idle();
            self.run_session(key, is_late);
        }
    }

    fn run_session(&mut self, key: usize, is_late: bool) {
        let Some(Entry::Parked(parked)) = self.entries.get_mut(key) else {
            return;
        };
        // Another one may have got the place of one that ended.
        if !std::mem::take(&mut parked.is_due) {
            return;
        }
        if parked.session.effort() != Effort::Small {
            return self.hand_over(key);
        }
        let (registry, buffer) = (&self.registry, &mut self.buffer);
        // A bug costs the session it is in.
        let turned = catch_unwind(AssertUnwindSafe(|| {
            parked.turn(key, is_late, registry, buffer)
        }));
        if self.buffer.len() > SMALL_BUFFER {
            self.buffer = Vec::new();
        }
        match turned {
            Ok(Turned::Wait { until, is_watched }) => {
                parked.is_watched = is_watched;
                self.arm(key, until);
            }
            Ok(Turned::Nothing) => {}
            Ok(Turned::Work) => {
                parked.is_watched = false;
                self.hand_over(key);
            }
            Ok(Turned::End) => self.end(key),
            Err(_) => {
                log::error!("a session panicked and was closed; the others go on");
                self.end(key);
            }
        }
    }

    fn hand_over(&mut self, key: usize) {
        if let Some(session) = self.unpark(key) {
            self.workers.submit(session);
        }
    }
}

impl Parked {
    fn turn(
        &mut self,
        key: usize,
        is_late: bool,
        registry: &mio::Registry,
        buffer: &mut Vec<u8>,
    ) -> Turned {
        if self.session.standing() == Standing::Cut {
            return Turned::End;
        }
        let (before, is_steady) = match self.is_watched {
            true => Watched::by(&*self.session),
            false => (Watched::default(), false),
        };
        let mut ready = std::mem::replace(&mut self.ready, Ready::NONE);
        if ready != Ready::ALL {
            ready = before.only(ready);
            if !ready.any() {
                return Turned::Nothing;
            }
        }
        if is_late && is_steady {
            before.forget(registry);
            return Turned::Work;
        }
        let mut cx = TurnContext::small(Instant::now(), ready, buffer);
        match self.session.turn(&mut cx) {
            Turn::Done => Turned::End,
            Turn::Again => {
                before.forget(registry);
                Turned::Work
            }
            Turn::Wait { until } => {
                let ready = cx.ready;
                let (after, is_steady) = Watched::by(&*self.session);
                // A new stage of a session calls everything ready, and has other descriptors.
                let is_steady = is_steady && ready != Ready::ALL;
                let asked = after.instead_of(&before, is_steady, ready, registry, |descriptor| {
                    token(key, self.serial, descriptor)
                });
                let is_watched = is_watched(asked);
                Turned::Wait { until, is_watched }
            }
        }
    }
}

fn is_watched(asked: std::io::Result<()>) -> bool {
    if let Err(error) = &asked {
        log::debug!("cannot watch a session, it is polled instead: {error}");
    }
    asked.is_ok()
}

/// Of those that became ready at the same time so many are served one after the other, which takes a millisecond. The
/// others, if they have been here for long, get workers where there are idle ones, and with them other processors. By the clock it would
/// also happen whenever this thread was interrupted, and then a hand-over makes a full machine fuller: 27 instead of 17 µs a
/// round trip.
const BATCH: usize = 128;

/// The most that is kept of the buffer for small turns.
const SMALL_BUFFER: usize = BUFFER / 4;

/// A session whose descriptors could not be watched is tried again after this long.
const RETRY_UNWATCHED: Duration = Duration::from_millis(100);
