//! The worker pool: blocking threads that run sessions, started on demand and retired when idle.
//!
//! A worker runs the turns of one session and waits for its descriptors itself, in poll(2), so a busy connection owns
//! a thread. It gives the session away when it stays idle for [`LINGER`] (to the reactor, parked) or when others wait
//! for a worker and its [`SLICE`] is used up (to the end of the queue).
//!
//! Two queues: sessions that were just woken come before those that used up their slice, so that a short message does
//! not wait behind bulk streams; after [`FRESH_IN_A_ROW`] of the first kind one of the second kind is taken, so
//! neither starves.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::reactor::Mailbox;
use super::session::{Interests, MAX_INTERESTS, Ready, Session, Standing, Turn, TurnContext};

/// A session with no fixed place.
pub(super) type Boxed = Box<dyn Session>;

/// Runs sessions on at most a given number of threads.
#[derive(Clone)]
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    fresh: Queue,
    tired: Queue,
    mailbox: Mailbox,
    cap: usize,
    threads: AtomicUsize,
    idle: AtomicUsize,
    /// The last attempt to start a thread failed; said once until one succeeds.
    short_of_threads: AtomicBool,
}

struct Queue {
    sender: Sender<Boxed>,
    receiver: Receiver<Boxed>,
}

impl Queue {
    fn new() -> Self {
        let (sender, receiver) = unbounded();
        Self { sender, receiver }
    }
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
                fresh: Queue::new(),
                tired: Queue::new(),
                mailbox,
                cap: cap.max(1),
                threads: AtomicUsize::new(1),
                idle: AtomicUsize::new(0),
                short_of_threads: AtomicBool::new(false),
            }),
        };
        workers.start_thread(Tenure::Permanent)?;
        Ok(workers)
    }

    /// Queues a session to be run.
    pub fn submit(&self, session: Boxed) {
        // The receiver lives in the same value, so the queue can't be closed.
        let _ = self.shared.fresh.sender.send(session);
        self.grow();
    }

    /// How many worker threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads.load(Ordering::Relaxed)
    }

    /// Drops every queued session. Those that a worker runs end with their next turn if they are cut.
    pub(super) fn clear(&self) {
        for queue in [&self.shared.fresh, &self.shared.tired] {
            while queue.receiver.try_recv().is_ok() {}
        }
    }

    /// Starts a thread if sessions wait, nobody is idle, and the cap allows it.
    fn grow(&self) {
        let shared = &self.shared;
        if shared.idle.load(Ordering::SeqCst) > 0 || !shared.someone_waits() {
            return;
        }
        let counted = shared
            .threads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < shared.cap).then_some(n + 1)
            });
        if counted.is_err() {
            return;
        }
        match self.start_thread(Tenure::OnDemand) {
            Ok(()) => shared.short_of_threads.store(false, Ordering::Relaxed),
            Err(error) => {
                shared.threads.fetch_sub(1, Ordering::SeqCst);
                if !shared.short_of_threads.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "cannot start another worker, sessions wait for the {} there are: {error}",
                        self.threads()
                    );
                }
            }
        }
    }

    fn start_thread(&self, tenure: Tenure) -> io::Result<()> {
        let workers = self.clone();
        thread::Builder::new()
            .name("worker".into())
            .stack_size(STACK)
            .spawn(move || {
                Worker {
                    pool: workers,
                    buffer: Vec::new(),
                    fresh_in_a_row: 0,
                }
                .work(tenure)
            })
            .map(drop)
    }
}

impl Shared {
    fn someone_waits(&self) -> bool {
        !self.fresh.receiver.is_empty() || !self.tired.receiver.is_empty()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tenure {
    Permanent,
    OnDemand,
}

struct Worker {
    pool: Workers,
    buffer: Vec<u8>,
    fresh_in_a_row: u32,
}

impl Worker {
    fn work(mut self, tenure: Tenure) {
        loop {
            if let Some(session) = self.next() {
                // One more may be needed: two submissions can have counted on the same idle thread.
                self.pool.grow();
                self.run(session);
                continue;
            }
            self.buffer = Vec::new();
            if tenure == Tenure::OnDemand {
                self.pool.shared.threads.fetch_sub(1, Ordering::SeqCst);
                // What was queued between the time-out and the count above found no idle thread and no room to start
                // one only if others are at work, who will take it.
                self.pool.grow();
                return;
            }
        }
    }

    /// The next session to run, or `None` when none came for [`RETIRE_AFTER`].
    fn next(&mut self) -> Option<Boxed> {
        let shared = &*self.pool.shared;
        let tired_first = self.fresh_in_a_row >= FRESH_IN_A_ROW;
        for fresh in [!tired_first, tired_first] {
            let queue = if fresh { &shared.fresh } else { &shared.tired };
            if let Ok(session) = queue.receiver.try_recv() {
                self.fresh_in_a_row = if fresh { self.fresh_in_a_row + 1 } else { 0 };
                return Some(session);
            }
        }
        self.fresh_in_a_row = 0;
        shared.idle.fetch_add(1, Ordering::SeqCst);
        let session = select! {
            recv(shared.fresh.receiver) -> session => session.ok(),
            recv(shared.tired.receiver) -> session => session.ok(),
            default(RETIRE_AFTER) => None,
        };
        shared.idle.fetch_sub(1, Ordering::SeqCst);
        session
    }

    /// Runs a session until it ends, is parked, or has to make room.
    fn run(&mut self, mut session: Boxed) {
        let started = Instant::now();
        let mut now = started;
        let mut ready = Ready::ALL;
        loop {
            let mut cx = TurnContext::new(now, ready, &mut self.buffer);
            // A panic is a bug that costs this session, never the program: the session is dropped whole, the pool and
            // the reactor share nothing with it that could be left half-changed.
            let turn = catch_unwind(AssertUnwindSafe(|| match session.standing() {
                Standing::Cut => Turn::Done,
                Standing::Keep | Standing::Wake => session.turn(&mut cx),
            }));
            match turn {
                Ok(Turn::Done) | Err(_) => {
                    if turn.is_err() {
                        log::error!("a session panicked and was closed; the others go on");
                    }
                    if catch_unwind(AssertUnwindSafe(|| drop(session))).is_err() {
                        log::error!("a session panicked while it was closed");
                    }
                    return;
                }
                Ok(Turn::Again) => ready = Ready::ALL,
                Ok(Turn::Wait { until }) => match self.wait(&*session, until) {
                    Waited::Ready(set) => ready = set,
                    Waited::Deadline => ready = Ready::NONE,
                    Waited::Idle => {
                        self.pool.shared.mailbox.park(session, until);
                        return;
                    }
                },
            }
            now = Instant::now();
            if now - started >= SLICE && self.pool.shared.someone_waits() {
                let _ = self.pool.shared.tired.sender.send(session);
                return;
            }
        }
    }

    /// Waits a short while for a session's descriptors.
    fn wait(&self, session: &dyn Session, until: Option<Instant>) -> Waited {
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
            Waited::Ready(ready)
        } else if until.is_some_and(|until| until <= Instant::now()) {
            Waited::Deadline
        } else {
            Waited::Idle
        }
    }
}

enum Waited {
    Ready(Ready),
    Deadline,
    Idle,
}

/// poll(2) over the interests of one session.
fn poll_interests(interests: &Interests<'_>, limit: Duration) -> Ready {
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
    let limit = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(0),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let fds = fds.get_mut(..count).unwrap_or_default();
    // Interrupted, or out of kernel memory: nothing is ready, so the session is parked, where it is woken as well.
    if poll(fds, Some(&limit)).is_ok() {
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

/// How long one session may keep a worker while others wait. With a short slice a message beside many bulk streams
/// waits little; a slice costs one trip through a queue, some microseconds.
const SLICE: Duration = Duration::from_millis(1);

/// Sessions just woken that are taken before one that used up its slice.
const FRESH_IN_A_ROW: u32 = 8;

/// An idle thread ends after this long, and its copy buffer with it.
const RETIRE_AFTER: Duration = Duration::from_secs(10);

/// Stack of a worker. Sessions keep their buffers on the heap and never resolve names (the resolver has threads of its
/// own), so the deepest thing here is formatting a log line, under 8 KiB, or unwinding after a panic, under 32 KiB.
/// It is address space: only pages that were touched cost memory.
const STACK: usize = 128 * 1024;
