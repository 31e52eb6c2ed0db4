//! The worker pool: blocking threads that run sessions, started on demand and retired when idle.
//!
//! A worker runs the turns of one session and waits for its descriptors itself, in poll(2), so a busy connection owns
//! a thread. It gives the session away when it stays idle for [`LINGER`] (to the reactor, parked) or, after one turn, when others
//! wait for a worker (to the end of the queue): turns are of one size, so that streams get the same share.
//!
//! Two queues: other work comes before streams, so that a datagram does not wait behind them; after [`OTHERS_IN_A_ROW`] of
//! the first kind one of the second kind is taken, so neither starves.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::reactor::Mailbox;
use super::session::{
    Effort, Interests, MAX_INTERESTS, Ready, Session, Standing, Turn, TurnContext,
};
use crate::threads;

/// A session with no fixed place.
pub(super) type Boxed = Box<dyn Session>;

/// Runs sessions on at most a given number of threads.
#[derive(Clone)]
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// How many sessions are queued; also read without the lock.
    queued: AtomicUsize,
    mailbox: Mailbox,
    cap: usize,
}

struct State {
    others: VecDeque<Boxed>,
    streams: VecDeque<Boxed>,
    others_in_a_row: u32,
    /// Threads without a session. The last one is the first to get the next: its caches are the warmest, and those at
    /// the bottom get to retire.
    idle: Vec<Arc<Seat>>,
    threads: usize,
    /// The last attempt to start a thread failed; said once until one succeeds.
    short_of_threads: bool,
}

/// Where an idle thread gets its next session.
struct Seat {
    thread: Thread,
    session: Mutex<Option<Boxed>>,
}

impl Workers {
    /// A pool of at most `cap` threads (at least 1). The first is started here and never retires, so that there is
    /// always one to serve the queue.
    ///
    /// # Errors
    /// When that first thread can't be started.
    pub(super) fn new(cap: usize, mailbox: Mailbox) -> io::Result<Self> {
        let workers = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    others: VecDeque::new(),
                    streams: VecDeque::new(),
                    others_in_a_row: 0,
                    idle: Vec::new(),
                    threads: 1,
                    short_of_threads: false,
                }),
                queued: AtomicUsize::new(0),
                mailbox,
                cap: cap.max(1),
            }),
        };
        workers.start_thread(Tenure::Permanent)?;
        Ok(workers)
    }

    /// Gives a session to an idle thread, to a new one, or into the queue.
    pub fn submit(&self, session: Boxed) {
        let shared = &self.shared;
        let mut state = lock(&shared.state);
        if let Some(seat) = state.idle.pop() {
            *lock(&seat.session) = Some(session);
            drop(state);
            return seat.thread.unpark();
        }
        state.queue(session);
        shared.queued.fetch_add(1, Ordering::Relaxed);
        if state.threads >= shared.cap {
            return;
        }
        state.threads += 1;
        drop(state);
        let started = self.start_thread(Tenure::OnDemand);
        let mut state = lock(&shared.state);
        match started {
            Ok(()) => state.short_of_threads = false,
            Err(error) => {
                state.threads -= 1;
                if !state.short_of_threads {
                    state.short_of_threads = true;
                    log::warn!(
                        "cannot start another worker, sessions wait for the {} there are: {error}",
                        state.threads
                    );
                }
            }
        }
    }

    /// Whether a session that is submitted now has a thread at once.
    pub(super) fn has_idle(&self) -> bool {
        let shared = &self.shared;
        let state = lock(&shared.state);
        !state.idle.is_empty() || state.threads < shared.cap
    }

    /// How many worker threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        lock(&self.shared.state).threads
    }

    /// Drops every queued session. Those that a worker runs end with their next turn if they are cut.
    pub(super) fn clear(&self) {
        let mut state = lock(&self.shared.state);
        let queued = (
            std::mem::take(&mut state.others),
            std::mem::take(&mut state.streams),
        );
        self.shared.queued.store(0, Ordering::Relaxed);
        drop(state);
        drop(queued);
    }

    fn start_thread(&self, tenure: Tenure) -> io::Result<()> {
        let pool = self.clone();
        let work = Box::new(move || {
            let seat = Arc::new(Seat {
                thread: thread::current(),
                session: Mutex::new(None),
            });
            Worker {
                pool,
                seat,
                buffer: Vec::new(),
            }
            .work(tenure);
        });
        threads::start("worker", Some(STACK), work).map(drop)
    }
}

impl Shared {
    fn someone_waits(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Queues a session that makes room for others.
    fn put_back(&self, session: Boxed) {
        lock(&self.state).queue(session);
        self.queued.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    fn queue(&mut self, session: Boxed) {
        match session.effort() {
            Effort::Stream => self.streams.push_back(session),
            Effort::Work | Effort::Small => self.others.push_back(session),
        }
    }

    fn next(&mut self) -> Option<Boxed> {
        if self.others_in_a_row < OTHERS_IN_A_ROW
            && let Some(session) = self.others.pop_front()
        {
            self.others_in_a_row += 1;
            return Some(session);
        }
        self.others_in_a_row = 0;
        self.streams.pop_front().or_else(|| self.others.pop_front())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tenure {
    Permanent,
    OnDemand,
}

struct Worker {
    pool: Workers,
    seat: Arc<Seat>,
    buffer: Vec<u8>,
}

impl Worker {
    fn work(mut self, tenure: Tenure) {
        loop {
            if let Some(session) = self.next() {
                self.run(session);
            } else {
                self.buffer = Vec::new();
                if tenure == Tenure::OnDemand {
                    return;
                }
                lock(&self.pool.shared.state).threads += 1;
            }
        }
    }

    /// The next session to run. `None` when none came for [`RETIRE_AFTER`]: then this thread is counted no more.
    fn next(&self) -> Option<Boxed> {
        let shared = &*self.pool.shared;
        let mut state = lock(&shared.state);
        if let Some(session) = state.next() {
            shared.queued.fetch_sub(1, Ordering::Relaxed);
            return Some(session);
        }
        state.idle.push(Arc::clone(&self.seat));
        drop(state);
        let until = Instant::now() + RETIRE_AFTER;
        loop {
            thread::park_timeout(until.saturating_duration_since(Instant::now()));
            if let Some(session) = lock(&self.seat.session).take() {
                return Some(session);
            }
            if Instant::now() >= until {
                let mut state = lock(&shared.state);
                let Some(place) = state
                    .idle
                    .iter()
                    .position(|seat| Arc::ptr_eq(seat, &self.seat))
                else {
                    // Somebody chose this thread at the last moment.
                    return lock(&self.seat.session).take();
                };
                state.idle.remove(place);
                state.threads -= 1;
                return None;
            }
        }
    }

    /// Runs a session until it ends, is parked, or has to make room.
    fn run(&mut self, mut session: Boxed) {
        let mut now = Instant::now();
        let mut ready = Ready::ALL;
        loop {
            // A panic is a bug that costs this session, never the program: the session is dropped whole, the pool and
            // the reactor share nothing with it that could be left half-changed.
            let next = catch_unwind(AssertUnwindSafe(|| {
                if session.standing() == Standing::Cut {
                    return Next::End;
                }
                let mut cx = TurnContext::new(now, ready, &mut self.buffer);
                match session.turn(&mut cx) {
                    Turn::Done => Next::End,
                    Turn::Again => Next::Turn(Ready::ALL),
                    Turn::Wait { until } => self.wait(&*session, until),
                }
            }));
            match next {
                Ok(Next::Turn(set)) => ready = set,
                Ok(Next::Park(until)) => {
                    self.pool.shared.mailbox.park(session, until);
                    return;
                }
                Ok(Next::End) | Err(_) => {
                    if next.is_err() {
                        log::error!("a session panicked and was closed; the others go on");
                    }
                    if catch_unwind(AssertUnwindSafe(|| drop(session))).is_err() {
                        log::error!("a session panicked while it was closed");
                    }
                    return;
                }
            }
            now = Instant::now();
            if self.pool.shared.someone_waits() {
                return self.pool.shared.put_back(session);
            }
        }
    }

    /// Waits a short while for a session's descriptors.
    fn wait(&self, session: &dyn Session, until: Option<Instant>) -> Next {
        let mut interests = Interests::default();
        session.interests(&mut interests);
        let mut linger = if self.pool.shared.someone_waits() {
            Duration::ZERO
        } else {
            LINGER
        };
        if let Some(until) = until {
            linger = linger.min(until.saturating_duration_since(Instant::now()));
        }
        let ready = poll_interests(&interests, linger);
        if ready.any() {
            Next::Turn(ready)
        } else if until.is_some_and(|until| until <= Instant::now()) {
            Next::Turn(Ready::NONE)
        } else {
            Next::Park(until)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a worker does after a turn, and the wait that it asked for.
enum Next {
    /// Another turn, of which this is known. Of a deadline that passed nothing is.
    Turn(Ready),
    /// Give it to the reactor.
    Park(Option<Instant>),
    End,
}

/// poll(2) over the interests of one session.
pub(crate) fn poll_interests(interests: &Interests<'_>, limit: Duration) -> Ready {
    let mut ready = Ready::NONE;
    let Some(first) = interests.iter().next() else {
        return ready;
    };
    let count = interests.iter().count();
    // Places beyond `count` hold the first descriptor again; poll(2) is not shown them.
    let mut fds: [PollFd<'_>; MAX_INTERESTS] = std::array::from_fn(|place| {
        let interest = interests.iter().nth(place).unwrap_or(first);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, interest.want.read);
        flags.set(PollFlags::OUT, interest.want.write);
        PollFd::from_borrowed_fd(interest.fd, flags)
    });
    let limit = Timespec::try_from(limit).ok();
    let fds = fds.get_mut(..count).unwrap_or_default();
    // Interrupted, or out of kernel memory: nothing is ready, so the session is parked, where it is woken as well.
    if poll(fds, limit.as_ref()).is_ok() {
        for (fd, interest) in fds.iter().zip(interests.iter()) {
            let events = fd.revents();
            if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                ready.add_hung_up(interest.key);
            } else if !events.is_empty() {
                ready.add(interest.key);
            }
        }
    }
    ready
}

/// How long a worker waits for an idle session before it is parked. Long enough for the next message of an exchange on
/// a local network, short enough that idle connections hold no thread.
const LINGER: Duration = Duration::from_millis(2);

/// Other work that is taken before a stream is.
const OTHERS_IN_A_ROW: u32 = 8;

/// An idle thread ends after this long, and its copy buffer with it.
const RETIRE_AFTER: Duration = Duration::from_secs(10);

/// Stack of a worker. Sessions keep their buffers on the heap and never resolve names (the resolver has threads of its
/// own), so the deepest thing here is formatting a log line, under 8 KiB, or unwinding after a panic, under 32 KiB.
/// It is address space: only pages that were touched cost memory.
const STACK: usize = 128 * 1024;
