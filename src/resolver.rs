//! Name look-ups that block neither the reactor nor a worker.
//!
//! `getaddrinfo` blocks for as long as the system's resolver likes, often 10 s or more, and can't be cancelled. So it runs
//! on threads of its own, a few at most, started on demand and retired when idle. Who asks gets a [`Lookup`]: a
//! descriptor to wait for, and the answer. Dropping it abandons the look-up: one still queued is never made; one under
//! way ends when it ends, and counts as one of the threads until then. Who asks for a name that is being looked up gets the
//! same answer, so a name whose servers are silent keeps one thread, however many clients ask for it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::threads;

/// Looks up names on threads of its own. Clones share the threads and the queue.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

impl Resolver {
    /// A resolver that runs at most `max_threads` look-ups at once (at least one) and lets `queue_limit` wait.
    ///
    /// No thread is started before the first name is asked for.
    #[must_use]
    pub fn new(max_threads: usize, queue_limit: usize) -> Self {
        Self::with_lookup(max_threads, queue_limit, system_lookup)
    }

    pub(crate) fn with_lookup(max_threads: usize, queue_limit: usize, ask: Ask) -> Self {
        Self {
            shared: Arc::new(Shared {
                max_threads: max_threads.max(1),
                queue_limit,
                ask,
                state: Mutex::new(State::default()),
                work: Condvar::new(),
            }),
        }
    }

    /// Starts to look up `host`. An IP address, also in brackets, is answered at once.
    ///
    /// Never blocks. Errors (queue full, no descriptor, a name that can't be one) are in the answer too.
    #[must_use]
    pub fn lookup(&self, host: &str, port: u16) -> Lookup {
        let literal = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Lookup::answered(Ok(vec![SocketAddr::new(ip, port)]));
        }
        if host.is_empty() || host.len() > MAX_NAME || host.contains('\0') {
            return Lookup::answered(Err(ResolveError::NotFound));
        }
        match self.enqueue(host, port) {
            Ok(lookup) => lookup,
            Err(error) => Lookup::answered(Err(error)),
        }
    }

    fn enqueue(&self, host: &str, port: u16) -> Result<Lookup, ResolveError> {
        let mut state = self.shared.lock();
        // Abandoned ones must not take the place of one that somebody waits for.
        if state.waiting() >= self.shared.queue_limit {
            state.forget_abandoned();
        }
        if state.waiting() >= self.shared.queue_limit {
            return Err(ResolveError::QueueFull);
        }
        let (end, signal) = UnixStream::pair().map_err(|error| ResolveError::local(&error))?;
        let answer = Arc::new(Mutex::new(None));
        let waiter = Waiter {
            answer: Arc::clone(&answer),
            _signal: signal,
        };
        let lookup = Lookup(Inner::Pending { end, answer });
        // Names are the same in capitals (RFC 4343), but not in musl's reading of /etc/hosts.
        let host = host.to_ascii_lowercase();
        let is_same = |job: &&mut Job| job.host == host && job.port == port;
        if let Some(job) = state.jobs().find(is_same) {
            job.waiters.push(waiter);
            return Ok(lookup);
        }
        state.queue.push_back(Job {
            host,
            port,
            waiters: vec![waiter],
        });
        if state.idle < state.queue.len() && state.threads < self.shared.max_threads {
            let shared = Arc::clone(&self.shared);
            let work = Box::new(move || shared.run());
            match threads::start("resolver", Some(STACK_SIZE), work) {
                Ok(_) => state.threads += 1,
                // Another thread will come to it.
                Err(_) if state.threads > 0 => {}
                Err(error) => {
                    state.queue.pop_back();
                    return Err(ResolveError::local(&error));
                }
            }
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(lookup)
    }
}

/// Eight threads and 256 names waiting: a resolver that takes 10 s for each still answers all within the patience of
/// most clients, and a name server that is down holds 2 MB of address space at most.
impl Default for Resolver {
    fn default() -> Self {
        Self::new(8, 256)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Resolver")
            .field("threads", &state.threads)
            .field("idle", &state.idle)
            .field("queued", &state.queue.len())
            .finish()
    }
}

/// A look-up under way, or its answer.
#[derive(Debug)]
pub struct Lookup(Inner);

impl Lookup {
    /// What becomes readable when the answer is there. `None` when it is there already: no descriptor is held then.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Inner::Pending { end, .. } => Some(end.as_fd()),
            Inner::Answered(_) => None,
        }
    }

    /// The answer, once: at least one address and at most [`MAX_ADDRESSES`]. `None` while it is awaited, and after it was
    /// taken.
    pub fn take(&mut self) -> Option<Result<Vec<SocketAddr>, ResolveError>> {
        match &mut self.0 {
            Inner::Answered(answer) => answer.take(),
            Inner::Pending { answer, .. } => {
                let taken = lock(answer).take()?;
                self.0 = Inner::Answered(None);
                Some(taken)
            }
        }
    }

    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// [`ResolveError::TimedOut`] at the deadline, else what the look-up came to.
    pub fn wait(mut self, deadline: Instant) -> Result<Vec<SocketAddr>, ResolveError> {
        loop {
            if let Some(answer) = self.take() {
                return answer;
            }
            let Some(descriptor) = self.descriptor() else {
                return Err(ResolveError::NotFound);
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ResolveError::TimedOut);
            }
            let mut waiting = [PollFd::new(&descriptor, PollFlags::IN)];
            let limit = Timespec::try_from(left).ok();
            match poll(&mut waiting, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(ResolveError::Local(errno)),
            }
        }
    }

    const fn answered(answer: Answer) -> Self {
        Self(Inner::Answered(Some(answer)))
    }
}

/// Why there is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// The name does not exist, or has no address.
    NotFound,
    /// The name servers did not answer; later they may.
    Temporary,
    /// No answer by the deadline.
    TimedOut,
    /// Too many look-ups are waiting already.
    QueueFull,
    /// This machine: no descriptor, no memory, no thread.
    Local(Errno),
}

impl ResolveError {
    fn local(error: &io::Error) -> Self {
        Self::Local(Errno::from_io_error(error).unwrap_or(Errno::AGAIN))
    }

    /// What an error of the standard library's look-up means. The code of `getaddrinfo` is in its text only.
    fn of_system(error: &io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::local(error);
        }
        let text = error.to_string();
        // EAI_AGAIN and EAI_FAIL in the words of glibc and musl.
        let temporary = [
            "emporary failure",
            "ry again",
            "on-recoverable",
            "onrecoverable",
        ];
        if temporary.iter().any(|part| text.contains(part)) {
            Self::Temporary
        } else {
            Self::NotFound
        }
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("name not found"),
            Self::Temporary => f.write_str("name servers did not answer"),
            Self::TimedOut => f.write_str("name look-up timed out"),
            Self::QueueFull => f.write_str("too many name look-ups at once"),
            Self::Local(errno) => write!(f, "name look-up failed here: {errno}"),
        }
    }
}

impl std::error::Error for ResolveError {}

/// Addresses of one name that are passed on; nobody tries more.
pub const MAX_ADDRESSES: usize = 32;

/// Longest name asked for: what a SOCKS request can hold (DNS allows 253).
const MAX_NAME: usize = 255;

/// How long a thread waits for another look-up before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Twice musl's default for threads, where `getaddrinfo` needs about 20 KiB (two answers of 4.8 KiB, 48 addresses, the
/// search list). glibc falls back to the heap beyond 64 KiB of answers on the stack, and loads its NSS modules on first use,
/// which takes some tens of KiB more.
const STACK_SIZE: usize = 256 * 1024;

pub(crate) type Answer = Result<Vec<SocketAddr>, ResolveError>;

pub(crate) type Ask = fn(&str, u16) -> Answer;

#[derive(Debug)]
enum Inner {
    Pending {
        end: UnixStream,
        answer: Arc<Mutex<Option<Answer>>>,
    },
    Answered(Option<Answer>),
}

/// A name to look up, and who wants to know.
struct Job {
    host: String,
    port: u16,
    waiters: Vec<Waiter>,
}

struct Waiter {
    answer: Arc<Mutex<Option<Answer>>>,
    /// Closed with the waiter, which makes the other end readable.
    _signal: UnixStream,
}

impl Waiter {
    fn has_left(&self) -> bool {
        Arc::strong_count(&self.answer) == 1
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// One for each thread that asks the system now.
    running: Vec<Job>,
    threads: usize,
    idle: usize,
}

impl State {
    /// Those who wait for a thread, or for what another one has asked for.
    fn waiting(&self) -> usize {
        let queued = self.queue.iter().map(|job| job.waiters.len());
        let joined = self.running.iter().map(|job| job.waiters.len());
        queued.sum::<usize>() + joined.map(|count| count.saturating_sub(1)).sum::<usize>()
    }

    fn jobs(&mut self) -> impl Iterator<Item = &mut Job> {
        self.running.iter_mut().chain(&mut self.queue)
    }

    fn forget_abandoned(&mut self) {
        for job in self.jobs() {
            job.waiters.retain(|waiter| !waiter.has_left());
        }
        self.queue.retain(|job| !job.waiters.is_empty());
    }
}

struct Shared {
    max_threads: usize,
    queue_limit: usize,
    ask: Ask,
    state: Mutex<State>,
    work: Condvar,
}

impl Shared {
    /// One thread's life.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                if !job.waiters.iter().all(Waiter::has_left) {
                    state = self.serve(job, state);
                }
                continue;
            }
            state.idle += 1;
            let (back, waited) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// Asks the system without holding the lock.
    fn serve<'a>(&'a self, job: Job, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (host, port) = (job.host.clone(), job.port);
        state.running.push(job);
        drop(state);
        // The system's code can't panic, but a thread lost here would be missing for ever.
        let asked = panic::catch_unwind(AssertUnwindSafe(|| (self.ask)(&host, port)));
        let answer = asked.unwrap_or(Err(ResolveError::Temporary));
        let mut state = self.lock();
        let mut jobs = state.running.iter();
        if let Some(place) = jobs.position(|job| job.host == host && job.port == port) {
            for waiter in state.running.swap_remove(place).waiters {
                *lock(&waiter.answer) = Some(answer.clone());
            }
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Nothing panics while holding a lock here, and the data would be whole if it did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn system_lookup(host: &str, port: u16) -> Answer {
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|error| ResolveError::of_system(&error))?;
    let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    if addresses.is_empty() {
        return Err(ResolveError::NotFound);
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn loopback(port: u16) -> Answer {
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    }

    /// Answers after as many milliseconds as the port says.
    fn slow(host: &str, port: u16) -> Answer {
        assert_ne!(host, "panic");
        thread::sleep(Duration::from_millis(port.into()));
        loopback(port)
    }

    #[test]
    fn literals_are_answered_at_once_without_a_thread() {
        let resolver = Resolver::default();
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
        ] {
            let mut lookup = resolver.lookup(text, 80);
            assert!(lookup.descriptor().is_none());
            assert_eq!(lookup.take(), Some(Ok(vec![address.parse().unwrap()])));
            assert_eq!(lookup.take(), None);
        }
        assert_eq!(resolver.shared.lock().threads, 0);
    }

    #[test]
    fn what_is_missing_here_is_named() {
        for errno in [Errno::MFILE, Errno::AGAIN] {
            let error = io::Error::from(errno);
            let expected = format!("name look-up failed here: {error}");
            assert_eq!(ResolveError::of_system(&error).to_string(), expected);
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_not_found() {
        let resolver = Resolver::default();
        for name in ["", "a\0b", &"a".repeat(256)] {
            assert_eq!(
                resolver.lookup(name, 80).wait(soon()),
                Err(ResolveError::NotFound)
            );
        }
    }

    #[test]
    fn the_system_is_asked() {
        let resolver = Resolver::default();
        let found = resolver.lookup("localhost", 7).wait(soon()).unwrap();
        assert!(
            found
                .iter()
                .all(|address| address.ip().is_loopback() && address.port() == 7)
        );
        // Never exists (RFC 6761 §6.4). Without a name server the failure is a temporary one.
        let missing = resolver.lookup("no-such-name.invalid", 7).wait(soon());
        assert!(
            matches!(
                missing,
                Err(ResolveError::NotFound | ResolveError::Temporary)
            ),
            "{missing:?}"
        );
    }

    #[test]
    fn the_descriptor_tells_when_the_answer_is_there() {
        let resolver = Resolver::with_lookup(1, 4, slow);
        let mut lookup = resolver.lookup("x", 50);
        assert_eq!(lookup.take(), None);
        let descriptor = lookup.descriptor().unwrap();
        let limit = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let mut waiting = [PollFd::new(&descriptor, PollFlags::IN)];
        assert_eq!(poll(&mut waiting, Some(&limit)), Ok(1));
        assert_eq!(lookup.take(), Some(loopback(50)));
        assert!(lookup.descriptor().is_none(), "closed with the answer");
    }

    #[test]
    fn a_deadline_ends_the_wait_only() {
        let resolver = Resolver::with_lookup(1, 4, slow);
        let start = Instant::now();
        let answer = resolver
            .lookup("x", 300)
            .wait(start + Duration::from_millis(20));
        assert_eq!(answer, Err(ResolveError::TimedOut));
        // The one thread is still busy with it.
        assert_eq!(resolver.lookup("y", 1).wait(soon()), loopback(1));
        assert!(start.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn threads_and_queue_are_bounded() {
        let resolver = Resolver::with_lookup(2, 3, slow);
        let first = ["x", "y"].map(|name| resolver.lookup(name, 200));
        while !resolver.shared.lock().queue.is_empty() {
            thread::yield_now();
        }
        let queued = ["a", "b", "c"].map(|name| resolver.lookup(name, 1));
        assert_eq!(
            resolver.lookup("d", 1).take(),
            Some(Err(ResolveError::QueueFull))
        );
        assert_eq!(resolver.shared.lock().threads, 2);
        // Abandoned ones give their place away.
        drop(queued);
        let last = resolver.lookup("d", 2);
        assert_eq!(resolver.shared.lock().queue.len(), 1);
        assert_eq!(last.wait(soon()), loopback(2));
        for lookup in first {
            assert_eq!(lookup.wait(soon()), loopback(200));
        }
    }

    #[test]
    fn who_asks_for_the_same_name_gets_the_same_answer() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn count(_: &str, port: u16) -> Answer {
            ASKED.fetch_add(1, Ordering::Relaxed);
            slow("", port)
        }
        let resolver = Resolver::with_lookup(4, 3, count);
        let first = resolver.lookup("x.example", 200);
        while resolver.shared.lock().running.is_empty() {
            thread::yield_now();
        }
        let same = ["X.example", "x.EXAMPLE"].map(|name| resolver.lookup(name, 200));
        drop(resolver.lookup("x.example", 200));
        assert_eq!(resolver.shared.lock().threads, 1);
        // It has left its place, and that is the last one.
        let last = resolver.lookup("x.example", 200);
        assert_eq!(
            resolver.lookup("x.example", 200).take(),
            Some(Err(ResolveError::QueueFull))
        );
        for lookup in [first, last].into_iter().chain(same) {
            assert_eq!(lookup.wait(soon()), loopback(200));
        }
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
        assert_eq!(resolver.lookup("x.example", 2).wait(soon()), loopback(2));
        assert_eq!(ASKED.load(Ordering::Relaxed), 2, "what is over is not kept");
    }

    #[test]
    fn an_abandoned_look_up_is_not_made() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn count(_: &str, port: u16) -> Answer {
            ASKED.fetch_add(1, Ordering::Relaxed);
            slow("", port)
        }
        let resolver = Resolver::with_lookup(1, 8, count);
        let first = resolver.lookup("x", 100);
        drop(resolver.lookup("y", 1));
        let last = resolver.lookup("z", 1);
        assert_eq!(first.wait(soon()), loopback(100));
        assert_eq!(last.wait(soon()), loopback(1));
        assert_eq!(ASKED.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_panic_is_an_answer_and_costs_no_thread() {
        let resolver = Resolver::with_lookup(1, 4, slow);
        assert_eq!(
            resolver.lookup("panic", 1).wait(soon()),
            Err(ResolveError::Temporary)
        );
        assert_eq!(resolver.clone().lookup("x", 1).wait(soon()), loopback(1));
        assert_eq!(resolver.shared.lock().threads, 1);
    }

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |text: &str| ResolveError::of_system(&io::Error::other(text.to_owned()));
        let prefix = "failed to lookup address information: ";
        let table = [
            ("Name or service not known", ResolveError::NotFound),
            ("Name does not resolve", ResolveError::NotFound),
            (
                "No address associated with hostname",
                ResolveError::NotFound,
            ),
            (
                "Temporary failure in name resolution",
                ResolveError::Temporary,
            ),
            ("Try again", ResolveError::Temporary),
            (
                "Non-recoverable failure in name resolution",
                ResolveError::Temporary,
            ),
        ];
        for (text, error) in table {
            assert_eq!(of(&format!("{prefix}{text}")), error);
        }
    }
}
