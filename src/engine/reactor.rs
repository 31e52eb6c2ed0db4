//! The reactor: one thread that waits, in mio, for everything that has nothing to do.
//!
//! Two kinds of things live here:
//!
//! - **tasks** run on the reactor thread and never block: listeners, probes, timers, control connections, signals;
//! - **parked sessions** wait here, without a thread; their small turns are run here, and for the others they go to a
//!   worker: see [`super::parking`].
//!
//! Timers are an ordered set with one entry per waiting thing, removed when it stops waiting, so that re-arming a
//! timer a million times costs no memory.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::event::Event;
use mio::{Events, Poll, Registry, Token, Waker};
use slab::Slab;

use super::parking::{Due, Parked};
use super::session::{Ready, Session, Want};
use super::watching::{add, is_urgent_only, place, rewatch, token, unregister, watch};
use super::workers::{Boxed, Workers};

/// Something that lives on the reactor thread and never blocks.
pub trait Task {
    /// Does what can be done now: a descriptor it watches became ready, its deadline passed, somebody woke it, or
    /// nothing at all (spurious). Readiness is edge-triggered: read, write and accept until that would block.
    fn run(&mut self, cx: &mut Cx<'_>) -> Next;
}

/// What a task wants after it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for its descriptors and wake-ups, or until the deadline if there is one.
    Wait(Option<Instant>),
    /// Run again, after everything else that is ready.
    Again,
    /// Drop it; its descriptors are closed by that.
    Done,
}

/// Names a task. Stays unique: waking or cancelling a task that has ended does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskId {
    key: usize,
    serial: u32,
}

/// Sends messages to the reactor from any thread.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<Message>,
    waker: Arc<Waker>,
    /// A wake-up is on its way, so no second one is needed.
    notified: Arc<AtomicBool>,
}

enum Message {
    Park(Boxed, Option<Instant>),
    Wake(TaskId),
    Sweep,
    Stop,
}

impl Mailbox {
    /// Runs a task as soon as possible.
    pub fn wake(&self, task: TaskId) {
        self.send(Message::Wake(task));
    }

    /// Asks every parked session for its [`Standing`](super::Standing).
    pub fn sweep(&self) {
        self.send(Message::Sweep);
    }

    /// Ends [`Reactor::run`].
    pub fn stop(&self) {
        self.send(Message::Stop);
    }

    pub(super) fn park(&self, session: Boxed, until: Option<Instant>) {
        self.send(Message::Park(session, until));
    }

    fn send(&self, message: Message) {
        // The other end is gone only after the reactor has ended; what is sent then is dropped, as everything else is.
        if self.sender.send(message).is_ok()
            && !self.notified.swap(true, Ordering::SeqCst)
            && let Err(error) = self.waker.wake()
        {
            log::error!("cannot wake the reactor: {error}");
        }
    }
}

/// The reactor and what lives in it.
pub struct Reactor {
    poll: Poll,
    core: Core,
    inbox: Receiver<Message>,
}

/// Everything that a running task may touch.
pub(super) struct Core {
    pub(super) registry: Registry,
    pub(super) entries: Slab<Entry>,
    pub(super) timers: BTreeSet<(Instant, usize)>,
    runnable: VecDeque<TaskId>,
    pub(super) due: Due,
    /// For the turns of sessions, while they need one.
    pub(super) buffer: Vec<u8>,
    mailbox: Mailbox,
    pub(super) workers: Workers,
    serial: u32,
    pub(super) parked: usize,
    stopped: bool,
}

pub(super) enum Entry {
    Parked(Parked),
    Task(Slot),
}

pub(super) struct Slot {
    serial: u32,
    /// Not there yet, or taken out while the task runs.
    task: Option<Box<dyn Task>>,
    until: Option<Instant>,
    queued: bool,
    cancelled: bool,
}

impl Reactor {
    /// A reactor with a pool of at most `workers` threads.
    ///
    /// # Errors
    /// When the system gives no epoll instance, no descriptor for the waker or no first worker thread.
    pub fn new(workers: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let (sender, inbox) = unbounded();
        let mailbox = Mailbox {
            sender,
            waker: Arc::new(Waker::new(poll.registry(), WAKER)?),
            notified: Arc::new(AtomicBool::new(false)),
        };
        let workers = Workers::new(workers, mailbox.clone())?;
        Ok(Self {
            poll,
            core: Core {
                registry,
                entries: Slab::new(),
                timers: BTreeSet::new(),
                runnable: VecDeque::new(),
                due: Due::default(),
                buffer: Vec::new(),
                mailbox,
                workers,
                serial: 0,
                parked: 0,
                stopped: false,
            },
            inbox,
        })
    }

    /// Messages for this reactor.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox {
        self.core.mailbox.clone()
    }

    /// Adds a task, which is run first thing.
    pub fn spawn(&mut self, task: Box<dyn Task>) -> TaskId {
        self.core.spawn(task)
    }

    /// Runs until [`Mailbox::stop`] or [`Cx::stop`]; then drops every task and session.
    ///
    /// # Errors
    /// When epoll itself fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.core.stopped {
            match self.poll.poll(&mut events, self.core.timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            let mut woken = false;
            for event in &events {
                if event.token() == WAKER {
                    woken = true;
                    continue;
                }
                if !is_urgent_only(event) {
                    self.core.ready(event);
                }
            }
            if woken {
                // Cleared before the queue is drained: what is sent from here on wakes again.
                self.core.mailbox.notified.store(false, Ordering::SeqCst);
            }
            for message in self.inbox.try_iter().take(MESSAGES_A_ROUND) {
                self.core.message(message);
            }
            if !self.inbox.is_empty() {
                self.core.mailbox.send(Message::Wake(TaskId {
                    key: usize::MAX,
                    serial: 0,
                }));
            }
            self.core.run_timers();
            // Tasks come first: a listener takes in all who wait before the first of them is served.
            self.core.run_tasks();
            self.core.run_sessions();
        }
        // Sessions that a worker runs right now end with the process, or with their next turn if they were cut.
        self.core.entries.clear();
        self.core.workers.clear();
        Ok(())
    }
}

impl Core {
    fn timeout(&self) -> Option<Duration> {
        if !self.runnable.is_empty() || !self.due.is_empty() || self.stopped {
            return Some(Duration::ZERO);
        }
        let (at, _) = self.timers.first()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn spawn(&mut self, task: Box<dyn Task>) -> TaskId {
        let id = self.reserve();
        self.place(id, task);
        id
    }

    fn place(&mut self, id: TaskId, task: Box<dyn Task>) {
        if let Some(slot) = self.slot(id) {
            slot.task = Some(task);
            self.wake(id);
        }
    }

    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    fn reserve(&mut self) -> TaskId {
        let serial = self.next_serial();
        let key = self.entries.insert(Entry::Task(Slot {
            serial,
            task: None,
            until: None,
            queued: false,
            cancelled: false,
        }));
        TaskId { key, serial }
    }

    fn slot(&mut self, id: TaskId) -> Option<&mut Slot> {
        match self.entries.get_mut(id.key) {
            Some(Entry::Task(slot)) if slot.serial == id.serial => Some(slot),
            _ => None,
        }
    }

    fn wake(&mut self, id: TaskId) {
        if let Some(slot) = self.slot(id)
            && !slot.queued
        {
            slot.queued = true;
            self.runnable.push_back(id);
        }
    }

    fn cancel(&mut self, id: TaskId) {
        let Some(slot) = self.slot(id) else { return };
        if slot.task.is_none() {
            // It is running: dropped when its turn ends.
            slot.cancelled = true;
            return;
        }
        if let Some(until) = slot.until {
            self.timers.remove(&(until, id.key));
        }
        self.entries.remove(id.key);
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Park(session, until) => self.park(session, until),
            Message::Wake(id) => self.wake(id),
            Message::Sweep => self.sweep(),
            Message::Stop => self.stopped = true,
        }
    }

    fn ready(&mut self, event: &Event) {
        let (key, descriptor) = place(event.token());
        match self.entries.get_mut(key) {
            Some(Entry::Parked(parked))
                if token(key, parked.serial, descriptor) == event.token() =>
            {
                add(&mut parked.ready, descriptor, event);
                self.due.push(key, &mut parked.is_due);
            }
            Some(Entry::Task(slot)) if token(key, slot.serial, descriptor) == event.token() => {
                let serial = slot.serial;
                self.wake(TaskId { key, serial });
            }
            // Ended before.
            _ => {}
        }
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(&(at, key)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, key));
            match self.entries.get_mut(key) {
                Some(Entry::Task(slot)) => {
                    slot.until = None;
                    let serial = slot.serial;
                    self.wake(TaskId { key, serial });
                }
                Some(Entry::Parked(parked)) => {
                    parked.armed = None;
                    parked.ready = Ready::ALL;
                    self.due.push(key, &mut parked.is_due);
                }
                None => {}
            }
        }
    }

    /// Runs each task that is runnable now once; what they wake runs in the next round.
    fn run_tasks(&mut self) {
        for _ in 0..self.runnable.len() {
            let Some(id) = self.runnable.pop_front() else {
                break;
            };
            self.run_task(id);
        }
    }

    fn run_task(&mut self, id: TaskId) {
        let Some(slot) = self.slot(id) else { return };
        slot.queued = false;
        let Some(mut task) = slot.task.take() else {
            return;
        };
        if let Some(until) = slot.until.take() {
            self.timers.remove(&(until, id.key));
        }
        let mut cx = Cx {
            now: Instant::now(),
            task: id,
            core: self,
        };
        // A bug in one probe or one control connection costs that one, not the program.
        let next = catch_unwind(AssertUnwindSafe(|| task.run(&mut cx))).unwrap_or_else(|_| {
            log::error!("a task of the reactor panicked and was ended; the others go on");
            Next::Done
        });
        let Some(slot) = self.slot(id) else { return };
        if next == Next::Done || slot.cancelled {
            self.entries.remove(id.key);
            return;
        }
        slot.task = Some(task);
        match next {
            Next::Wait(Some(until)) => {
                slot.until = Some(until);
                self.timers.insert((until, id.key));
            }
            Next::Wait(None) | Next::Done => {}
            Next::Again => self.wake(id),
        }
    }
}

/// What a running task may do with the reactor.
pub struct Cx<'a> {
    /// The time when the task was run.
    pub now: Instant,
    task: TaskId,
    core: &'a mut Core,
}

impl Cx<'_> {
    /// The task that runs.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.task
    }

    /// Messages for this reactor, to be given to other threads.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox {
        self.core.mailbox.clone()
    }

    /// Tells the running task about a descriptor. Ends by itself when the descriptor is closed.
    ///
    /// # Errors
    /// When the kernel is out of memory or watches, or the descriptor can't be polled.
    pub fn watch(&self, fd: BorrowedFd<'_>, want: Want) -> io::Result<()> {
        watch(&self.core.registry, fd, self.token(), want)
    }

    /// Changes what the running task is told about a descriptor. Told again at once if it is ready already.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn rewatch(&self, fd: BorrowedFd<'_>, want: Want) -> io::Result<()> {
        rewatch(&self.core.registry, fd, self.token(), want)
    }

    fn token(&self) -> Token {
        token(self.task.key, self.task.serial, 0)
    }

    /// Tells nobody any more about a descriptor. Closing it is not enough where another process has it too: then the kernel goes on
    /// telling.
    pub fn unwatch(&self, fd: BorrowedFd<'_>) {
        unregister(&self.core.registry, fd.as_raw_fd());
    }

    /// Adds a task, which is run soon.
    pub fn spawn(&mut self, task: Box<dyn Task>) -> TaskId {
        self.core.spawn(task)
    }

    /// A task that is to come, so that others can be told of it before it is built.
    pub fn reserve(&mut self) -> TaskId {
        self.core.reserve()
    }

    /// Adds the task of a number that was reserved, which is run soon.
    pub fn place(&mut self, id: TaskId, task: Box<dyn Task>) {
        self.core.place(id, task);
    }

    /// Runs a task soon.
    pub fn wake(&mut self, task: TaskId) {
        self.core.wake(task);
    }

    /// Drops a task.
    pub fn cancel(&mut self, task: TaskId) {
        self.core.cancel(task);
    }

    /// Takes a session in: its first turn comes soon, after that of every task that can run now.
    pub fn submit(&mut self, session: Box<dyn Session>) {
        self.core.submit(session);
    }

    /// Asks every parked session for its [`Standing`](super::Standing), now.
    pub fn sweep(&mut self) {
        self.core.sweep();
    }

    /// How many sessions are with the reactor, most of them waiting.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.core.parked
    }

    /// How many worker threads there are.
    #[must_use]
    pub fn worker_threads(&self) -> usize {
        self.core.workers.threads()
    }

    /// Ends the reactor after this round.
    pub fn stop(&mut self) {
        self.core.stopped = true;
    }
}

/// State that several tasks of one reactor share.
pub type Shared<T> = Rc<RefCell<T>>;

const WAKER: Token = Token(usize::MAX);

/// Events taken from the kernel at once. More stay there for the next round.
const EVENTS: usize = 256;

/// Messages handled before descriptors are looked at again, so that a flood of parking sessions delays no listener.
const MESSAGES_A_ROUND: usize = 1024;
