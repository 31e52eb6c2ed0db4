//! The task that keeps the table fresh: it probes what is due, takes in what sources name, and forgets what is gone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::logins::{Logins, PeerLogin};
use super::probe::{AskSocks6, Probe, ProbeSettings};
use super::rules::Rules;
use super::source::{Source, SourceThread, SourceUpdate};
use super::status::{Finding, Reason, Status};
use super::table::{SourceId, Table, TableSettings};
use crate::engine::{Cx, Mailbox, Next, Shared, Task, TaskId};

/// What is known of peers, and the probes that find it out. Lives on the reactor thread, shared by tasks.
pub struct Discovery {
    /// The cache per address.
    pub table: Table,
    logins: Logins,
    settings: ProbeSettings,
    interval: std::time::Duration,
    most_probes: usize,
    running: bool,
    probes: HashMap<SocketAddr, TaskId>,
    /// Probes that have ended, by the place of their result in [`Status::ALL`].
    ended: [u64; Status::ALL.len()],
    is_own: Box<dyn Fn(SocketAddr) -> bool>,
    prober: Option<TaskId>,
    observer: Option<TaskId>,
    sources: Vec<SourceState>,
    /// From the threads of sources. A channel of their own would be 5 KB of program.
    updates: Arc<Mutex<Vec<SourceUpdate>>>,
    next_expiry: Instant,
}

/// A source as status answers show it.
#[derive(Debug)]
pub struct SourceState {
    /// `flag`, `file:PATH`, `yggdrasil` …
    pub name: String,
    /// Why its last refresh failed; its last good list is kept.
    pub error: Option<String>,
    /// Whether it is a daemon that was looked for and has not been there so far.
    pub absent: bool,
    /// Whether it named a peer the last time.
    has_named: bool,
    /// How many of its addresses the rules leave out.
    pub left_out: usize,
    thread: Option<SourceThread>,
}

impl Discovery {
    /// Discovery that knows nobody and does not run yet. At most `most_probes` probes run at once. Addresses for
    /// which `is_own` holds are listeners of ours and are not probed.
    pub fn new(
        table: TableSettings,
        rules: Rules,
        settings: ProbeSettings,
        most_probes: usize,
        is_own: Box<dyn Fn(SocketAddr) -> bool>,
        now: Instant,
    ) -> Self {
        Self {
            interval: table.interval,
            table: Table::new(table, rules, now),
            logins: Logins::default(),
            settings,
            most_probes: most_probes.max(1),
            running: false,
            probes: HashMap::new(),
            ended: [0; Status::ALL.len()],
            is_own,
            prober: None,
            observer: None,
            sources: Vec::new(),
            updates: Arc::default(),
            next_expiry: now,
        }
    }

    /// Adds a source whose list is set by hand with [`Table::set_source`], `None` when there are too many sources.
    pub fn add_fixed(&mut self, name: &str) -> Option<SourceId> {
        let id = SourceId::new(self.sources.len())?;
        self.sources.push(SourceState {
            name: name.to_owned(),
            error: None,
            absent: false,
            has_named: false,
            left_out: 0,
            thread: None,
        });
        Some(id)
    }

    /// Replaces the list of a source, see [`Table::set_source`].
    pub fn set_source(
        &mut self,
        source: SourceId,
        addresses: impl IntoIterator<Item = SocketAddr>,
        now: Instant,
    ) {
        let left_out = self.table.set_source(source, addresses, now);
        if let Some(state) = self.sources.get_mut(source.number()) {
            if left_out > 0 && state.left_out == 0 {
                log::info!(
                    "{}: {left_out} addresses are left out by the rules",
                    state.name
                );
            }
            state.left_out = left_out;
        }
    }

    /// Adds a source that refreshes itself on a thread of its own.
    ///
    /// # Errors
    /// Too many sources, or no thread for it.
    pub fn add_source(
        &mut self,
        source: Box<dyn Source>,
        mailbox: Mailbox,
        prober: TaskId,
    ) -> std::io::Result<()> {
        let name = source.name().to_owned();
        let id = self.add_fixed(&name).ok_or_else(|| {
            std::io::Error::other(format!("more than {} sources of peers", SourceId::LIMIT))
        })?;
        let updates = Arc::clone(&self.updates);
        let send = Box::new(move |update| {
            lock(&updates).push(update);
            mailbox.wake(prober);
        });
        let thread = SourceThread::spawn(id, source, send)?;
        if let Some(state) = self.sources.get_mut(id.number()) {
            state.thread = Some(thread);
        }
        Ok(())
    }

    /// The sources in the order of their numbers.
    #[must_use]
    pub fn sources(&self) -> &[SourceState] {
        &self.sources
    }

    /// Whether there is nobody who names peers: every source that refreshes itself is a daemon that is not there.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        let mut refreshed = self.sources.iter().filter(|source| source.thread.is_some());
        let mut any = false;
        refreshed.all(|source| {
            any = true;
            source.absent
        }) && any
    }

    /// Refreshes every source now.
    pub fn refresh_sources(&self) {
        for thread in self
            .sources
            .iter()
            .filter_map(|source| source.thread.as_ref())
        {
            thread.refresh_now();
        }
    }

    /// Names the task that is woken when the list of valid peers changes.
    pub fn set_observer(&mut self, observer: TaskId) {
        self.observer = Some(observer);
    }

    /// Whether rounds of probes run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// As whom peers are greeted that want to know.
    #[must_use]
    pub fn logins(&self) -> &Logins {
        &self.logins
    }

    /// Replaces the logins of one source. Peers whose login is another now are asked again at once.
    pub fn set_logins(&mut self, source: SourceId, logins: Vec<PeerLogin>, cx: &mut Cx<'_>) {
        for address in self.logins.set(source, logins) {
            // A probe under way tells about the old one.
            if let Some(probe) = self.probes.remove(&address) {
                cx.cancel(probe);
                self.table.cancel(address);
            }
            self.table.recheck(address, cx.now);
        }
        self.wake_prober(cx);
    }

    /// How probes are made.
    #[must_use]
    pub fn probe_settings(&self) -> &ProbeSettings {
        &self.settings
    }

    /// Has peers asked in SOCKS 6 too from now on, or not. Probes under way go on as they are.
    pub fn ask_socks6(&mut self, ask: AskSocks6) {
        self.settings.socks6 = ask;
    }

    /// The most probes at once.
    #[must_use]
    pub fn most_probes(&self) -> usize {
        self.most_probes
    }

    /// Starts rounds, the first now. Does nothing when they run already.
    pub fn start(&mut self, cx: &mut Cx<'_>) {
        if !self.running {
            self.running = true;
            self.table.probe_now(cx.now);
            self.wake_prober(cx);
        }
    }

    /// Stops rounds and the probes under way.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        self.running = false;
        for (_, probe) in self.probes.drain() {
            cx.cancel(probe);
        }
        self.table.cancel_all();
    }

    /// Stops for good: sources are not asked any more either.
    pub fn retire(&mut self, cx: &mut Cx<'_>) {
        self.stop(cx);
        for source in &self.sources {
            if let Some(thread) = &source.thread {
                thread.stop();
            }
        }
    }

    /// How many probes have ended, by what they found; those that our own side stopped are `unknown`.
    pub fn probes_by_result(&self) -> impl Iterator<Item = (Status, u64)> {
        Status::ALL.into_iter().zip(self.ended)
    }

    /// Has the prober look at the table again, because something became due.
    pub fn wake_prober(&self, cx: &mut Cx<'_>) {
        if let Some(prober) = self.prober {
            cx.wake(prober);
        }
    }

    /// Takes in what a probe found out, whoever made it.
    pub fn record(&mut self, address: SocketAddr, finding: Finding, cx: &mut Cx<'_>) {
        if let Some(ended) = self.ended.get_mut(finding.status() as usize) {
            *ended += 1;
        }
        let before = self.table.generation();
        if let Some(change) = self.table.record(address, finding, cx.now) {
            // A proxy that comes or goes is news. Of a network with a thousand peers most never are one.
            let news = change.to == Status::Valid || change.from == Status::Valid;
            log::log!(
                if news {
                    log::Level::Info
                } else {
                    log::Level::Debug
                },
                "peer {address}: {} ({}), was {}",
                change.to,
                change.reason,
                change.from
            );
        }
        self.tell_observer(before, cx);
    }

    /// Wakes the observer if the list of valid peers is not what it was.
    pub fn tell_observer(&self, before: u64, cx: &mut Cx<'_>) {
        if let Some(observer) = self.observer.filter(|_| self.table.generation() != before) {
            cx.wake(observer);
        }
    }

    fn take_updates(&mut self, cx: &mut Cx<'_>) {
        let before = self.table.generation();
        let deserted = self.is_deserted();
        let updates = std::mem::take(&mut *lock(&self.updates));
        for update in updates {
            if let Some(state) = self.sources.get_mut(update.source.number()) {
                let count = update.peers.len();
                let is_news = (count > 0) != std::mem::replace(&mut state.has_named, count > 0);
                let level = match is_news {
                    true => log::Level::Info,
                    false => log::Level::Debug,
                };
                log::log!(level, "{} names {count} peers", state.name);
                state.absent = update.absent && update.peers.is_empty();
                state.error = update.error;
            }
            self.set_source(update.source, update.peers, cx.now);
            self.set_logins(update.source, update.logins, cx);
        }
        if let Some(observer) = self.observer.filter(|_| self.is_deserted() != deserted) {
            cx.wake(observer);
        }
        self.tell_observer(before, cx);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the rounds of a [`Discovery`].
pub struct Prober {
    discovery: Shared<Discovery>,
}

impl Prober {
    /// The prober of a discovery, to be spawned once.
    #[must_use]
    pub fn new(discovery: Shared<Discovery>) -> Self {
        Self { discovery }
    }

    fn probe(&self, address: SocketAddr, discovery: &mut Discovery, cx: &mut Cx<'_>) {
        let shared = Shared::clone(&self.discovery);
        let on_finding = Box::new(move |cx: &mut Cx<'_>, address, finding: Finding| {
            log::trace!("probe of {address}: {}", finding.reason());
            let mut discovery = shared.borrow_mut();
            discovery.probes.remove(&address);
            discovery.record(address, finding, cx);
            discovery.wake_prober(cx);
        });
        let id = cx.spawn(Box::new(Probe::new(
            address,
            discovery.logins.get(address),
            &discovery.settings,
            on_finding,
        )));
        discovery.probes.insert(address, id);
    }
}

impl Task for Prober {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let discovery = Shared::clone(&self.discovery);
        let mut discovery = discovery.borrow_mut();
        let discovery = &mut *discovery;
        discovery.prober = Some(cx.id());
        discovery.take_updates(cx);
        if cx.now >= discovery.next_expiry {
            let before = discovery.table.generation();
            discovery.table.expire(cx.now);
            discovery.tell_observer(before, cx);
            discovery.next_expiry = cx.now + discovery.interval;
        }
        let mut next = Some(discovery.next_expiry);
        if discovery.running {
            let free = discovery.most_probes.saturating_sub(discovery.probes.len());
            for address in discovery.table.due(cx.now, free) {
                if (discovery.is_own)(address) {
                    discovery.record(
                        address,
                        Finding::Local {
                            reason: Reason::OwnAddress,
                        },
                        cx,
                    );
                } else {
                    self.probe(address, discovery, cx);
                }
            }
            // With no probe free the end of one wakes us.
            if discovery.probes.len() < discovery.most_probes {
                next = next.into_iter().chain(discovery.table.next_due()).min();
            }
        }
        Next::Wait(next)
    }
}
