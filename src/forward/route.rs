//! Where connections go: the one thing that the sessions of a forwarder share with whoever chooses the remote.
//!
//! Whoever chooses sets a [`Choice`]; sessions take it when they dial. Each choice has an [`Epoch`], so that a session
//! can see that it was made under an older one; a cut is an epoch before which sessions end, a drain is one that spares the
//! sessions of one remote.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::books::{Answer, Books, RemoteCounts, Totals};
use super::pace::Paces;
use crate::engine::{Mailbox, TaskId};
use crate::wire::Credentials;
use crate::wire::socks5::ReplyCode;

/// Counts choices of one forwarder.
pub type Epoch = usize;

/// Where new connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Remotes, the chosen one first, the others in the order in which they stand in for it.
    pub candidates: Vec<Candidate>,
    /// What to make of a remote that connects and then says nothing.
    pub patience: Patience,
    /// There are no candidates yet, but there will be another choice soon: clients wait for it.
    pub is_awaited: bool,
}

impl Choice {
    /// Leads nowhere.
    #[must_use]
    pub const fn nobody() -> Self {
        Self {
            candidates: Vec::new(),
            patience: Patience::Limited,
            is_awaited: false,
        }
    }

    /// Whether the remote with this address is a candidate.
    #[must_use]
    pub fn has(&self, address: SocketAddr) -> bool {
        self.candidates
            .iter()
            .any(|candidate| candidate.address == address)
    }

    /// The time of the candidate that has most of it, where others have this much.
    pub(super) fn longest(&self, usual: Duration) -> Duration {
        let own = self.candidates.iter();
        own.filter_map(|candidate| candidate.timeout)
            .fold(usual, Duration::max)
    }

    /// The addresses of the candidates, in their order.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.candidates.iter().map(|candidate| candidate.address)
    }
}

/// A remote that may serve a connection. `Debug` shows no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub address: SocketAddr,
    /// As whom clients without authentication of their own are let in; `None` where it takes them as they are.
    pub login: Option<Arc<Credentials>>,
    /// For it to be connected and to answer; `None`: as long as every other.
    pub timeout: Option<Duration>,
}

impl From<SocketAddr> for Candidate {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            login: None,
            timeout: None,
        }
    }
}

/// What to make of a remote that connects and then says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Give up after the connect time-out and take the next.
    Limited,
    /// Wait as long as the client does: there is one remote, and it was asked for by name.
    Unlimited,
}

/// What a session found out about a remote.
#[derive(Debug)]
pub struct Report {
    /// Which one.
    pub remote: SocketAddr,
    /// When the connection to it was started.
    pub started: Instant,
    /// What happened.
    pub failure: DialFailure,
}

/// Why a remote could not serve a connection.
#[derive(Debug)]
pub enum DialFailure {
    /// This machine's fault, which says nothing about the remote.
    Local(io::Error),
    /// Connecting failed.
    Connect(io::Error),
    /// Connecting took too long.
    ConnectTimedOut,
    /// It closed the connection before it had answered.
    ClosedEarly(Awaited),
    /// It broke the connection off before it had answered.
    Reset(Awaited, io::Error),
    /// It did not answer in time.
    Silent(Awaited),
    /// It answered this, which no SOCKS 5 proxy that takes the client does.
    NoProxy(Vec<u8>),
    /// It does not accept the user and password of its [`Candidate`].
    LoginRejected,
    /// It was still connecting, or had not answered, when another one had that was started later. It was given up then, and might
    /// have answered in time.
    Hesitated,
    /// It answered the request with this failure. Nobody else was seen to serve the request, so the destination may be
    /// at fault.
    Replied(ReplyCode),
    /// It answered the request with this failure, and another remote then served the same request.
    Outdone(ReplyCode),
}

/// Which answer of a remote was awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The first: to the greeting, or whatever else the client's first bytes are.
    First,
    /// The one to user and password.
    Login,
    /// The reply to the request.
    Reply,
}

impl std::fmt::Display for Awaited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::First => "before it answered",
            Self::Login => "before it answered to user and password",
            Self::Reply => "before it answered the request",
        })
    }
}

impl std::fmt::Display for DialFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(error) => write!(f, "not tried: {error}"),
            Self::Connect(error) => error.fmt(f),
            Self::ConnectTimedOut => f.write_str("connecting timed out"),
            Self::ClosedEarly(awaited) => write!(f, "closed {awaited}"),
            Self::Reset(awaited, error) => write!(f, "broke off {awaited}: {error}"),
            Self::Silent(Awaited::First) => f.write_str("connected, but did not answer in time"),
            Self::Silent(awaited) => write!(f, "time was up {awaited}"),
            Self::NoProxy(answer) if answer.starts_with(&[5]) => {
                f.write_str("accepts no client without authentication any more")
            }
            Self::NoProxy(_) => f.write_str("answered as something else than a SOCKS 5 proxy"),
            Self::Hesitated => f.write_str("another one answered while it hesitated"),
            Self::LoginRejected => f.write_str("rejected the user and password"),
            Self::Replied(code) => write!(f, "answered a request: {code}"),
            Self::Outdone(code) => {
                write!(f, "answered a request that another remote served: {code}")
            }
        }
    }
}

/// Shared by the sessions of one forwarder and whoever chooses for them. Clones are the same route.
#[derive(Clone)]
pub struct Route {
    shared: Arc<Shared>,
}

struct Shared {
    choice: Mutex<Arc<Choice>>,
    epoch: AtomicUsize,
    /// Established connections of earlier epochs end.
    cut_before: AtomicUsize,
    /// The same, but for those of the spared remote.
    drained_before: AtomicUsize,
    spared: Mutex<Option<SocketAddr>>,
    /// All connections of earlier epochs end.
    closed_before: AtomicUsize,
    books: Mutex<Books>,
    paces: Paces,
    /// What `reader` has not taken yet.
    reports: Mutex<VecDeque<Report>>,
    mailbox: Mailbox,
    reader: TaskId,
}

impl Route {
    /// A route that leads nowhere yet. `reader` is woken when there are [reports](Self::take_reports).
    #[must_use]
    pub fn new(mailbox: Mailbox, reader: TaskId) -> Self {
        Self {
            shared: Arc::new(Shared {
                choice: Mutex::new(Arc::new(Choice::nobody())),
                epoch: AtomicUsize::new(1),
                cut_before: AtomicUsize::new(0),
                drained_before: AtomicUsize::new(0),
                spared: Mutex::new(None),
                closed_before: AtomicUsize::new(0),
                books: Mutex::default(),
                paces: Paces::default(),
                reports: Mutex::default(),
                mailbox,
                reader,
            }),
        }
    }

    /// Where new connections go.
    #[must_use]
    pub fn choice(&self) -> Arc<Choice> {
        lock(&self.shared.choice).clone()
    }

    /// Sends new connections elsewhere, and those that no remote has answered yet. Established ones stay.
    pub fn set(&self, choice: Choice) {
        *lock(&self.shared.choice) = Arc::new(choice);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.mailbox.sweep();
    }

    /// Replaces the stand-ins of the chosen remote. Nobody is disturbed: who dials from here on sees them.
    pub fn amend(&self, choice: Choice) {
        *lock(&self.shared.choice) = Arc::new(choice);
    }

    /// Ends every connection that was established under a choice before the present one.
    pub fn cut_older(&self) {
        self.shared.cut_before.store(self.epoch(), Ordering::SeqCst);
        self.shared.mailbox.sweep();
    }

    /// Ends every connection that was established under a choice before this one, unless the spared remote carries it.
    pub fn drain(&self, before: Epoch, spared: Option<SocketAddr>) {
        // In this order: whoever sees the new limit sees who is spared.
        *lock(&self.shared.spared) = spared;
        self.shared
            .drained_before
            .fetch_max(before, Ordering::SeqCst);
        self.shared.mailbox.sweep();
    }

    /// Leads nowhere from here on, and ends every connection, also those that are still being made.
    pub fn close(&self) {
        self.set(Choice::nobody());
        self.shared
            .closed_before
            .store(self.epoch(), Ordering::SeqCst);
        self.shared.mailbox.sweep();
    }

    /// The number of the present choice.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch.load(Ordering::SeqCst)
    }

    /// Whether established connections that were made under this choice are to end.
    #[must_use]
    pub fn is_cut(&self, epoch: Epoch) -> bool {
        epoch < self.shared.cut_before.load(Ordering::SeqCst)
    }

    /// Whether established connections that were made under this choice are to end because they are not of the remote that
    /// others were drained for. `remote` carries it; `None` is never spared.
    #[must_use]
    pub fn is_drained(&self, epoch: Epoch, remote: Option<SocketAddr>) -> bool {
        epoch < self.shared.drained_before.load(Ordering::SeqCst)
            && (remote.is_none() || remote != *lock(&self.shared.spared))
    }

    /// Whether all connections that were made under this choice are to end.
    #[must_use]
    pub fn is_closed(&self, epoch: Epoch) -> bool {
        epoch < self.shared.closed_before.load(Ordering::SeqCst)
    }

    /// Bytes of all connections so far, live ones included.
    #[must_use]
    pub fn totals(&self) -> Totals {
        lock(&self.shared.books).totals
    }

    /// The first answer of a remote to a client that came last.
    #[must_use]
    pub fn last_answer(&self) -> Option<Answer> {
        lock(&self.shared.books).answered
    }

    /// The remote that served a client's request last, and when.
    #[must_use]
    pub fn last_served(&self) -> Option<(SocketAddr, Instant)> {
        lock(&self.shared.books).served
    }

    /// What each remote did for clients, in no particular order.
    #[must_use]
    pub fn remotes(&self) -> Vec<RemoteCounts> {
        lock(&self.shared.books).remotes()
    }

    /// A stream begins, carried by this remote until what is returned is dropped.
    pub(super) fn began(&self, remote: SocketAddr) -> Ride {
        let place = lock(&self.shared.books).began(remote);
        Ride {
            shared: Arc::clone(&self.shared),
            place,
        }
    }

    /// A remote has answered a client's first bytes. See [`Answer::took`].
    pub(super) fn answered(&self, remote: SocketAddr, took: Option<Duration>, now: Instant) {
        lock(&self.shared.books).answered = Some(Answer {
            remote,
            at: now,
            took,
        });
    }

    /// A remote has replied to a client's request that it is done.
    pub(super) fn served(&self, remote: SocketAddr, now: Instant) {
        lock(&self.shared.books).served = Some((remote, now));
    }

    pub(super) fn paces(&self) -> &Paces {
        &self.shared.paces
    }

    pub(super) fn report(&self, report: Report) {
        let is_its_own = !matches!(
            report.failure,
            DialFailure::Local(_) | DialFailure::Replied(_) | DialFailure::Hesitated
        );
        if is_its_own {
            lock(&self.shared.books).failed(report.remote);
        }
        lock(&self.shared.reports).push_back(report);
        self.shared.mailbox.wake(self.shared.reader);
    }

    /// What sessions found out since it was asked last, so much of it at most.
    #[must_use]
    pub fn take_reports(&self, most: usize) -> Vec<Report> {
        let mut reports = lock(&self.shared.reports);
        let count = reports.len().min(most);
        reports.drain(..count).collect()
    }
}

/// A stream that a remote carries.
pub(super) struct Ride {
    shared: Arc<Shared>,
    /// In the books.
    place: Option<usize>,
}

impl Ride {
    /// It has moved more bytes.
    pub(super) fn count(&self, up: u64, down: u64) {
        lock(&self.shared.books).moved(self.place, up, down);
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            lock(&self.shared.books).ended(place);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
