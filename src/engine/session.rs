//! A session and the answer of one of its turns.
//!
//! A session serves one client from accept to close. It owns its sockets, all of them non-blocking, and never
//! waits by itself: a turn does what can be done now and says what it waits for. Who waits, a worker in poll(2) or
//! the reactor, is not its business; who runs the turn is, as far as it says how much there is to do: [`Effort`].

use std::os::fd::BorrowedFd;
use std::time::Instant;

/// Serves one client from accept to close, a turn at a time.
pub trait Session: Send {
    /// Does what can be done without waiting. A turn is bounded: a session with more work says [`Turn::Again`].
    ///
    /// It may be called though nothing happened (a spurious wake-up) and looks at the clock of `cx` for its deadlines.
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn;

    /// Names the descriptors that the last turn waits for. Asked after [`Turn::Wait`], answers must stay the same
    /// until the next turn.
    fn interests<'a>(&'a self, interests: &mut Interests<'a>);

    /// How much the next turn may be. Asked before each turn that the reactor could run.
    fn effort(&self) -> Effort {
        Effort::Work
    }

    /// Whether something outside (a disconnect, a switch of the remote) concerns this session. Asked before each turn,
    /// before it is parked, and of every parked session on [`Mailbox::sweep`](super::Mailbox::sweep).
    fn standing(&self) -> Standing {
        Standing::Keep
    }
}

/// What a session wants after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Wait for one of the [`Session::interests`], or until the deadline if there is one.
    Wait {
        /// When to be run again though no descriptor became ready.
        until: Option<Instant>,
    },
    /// There is more to do at once, which is work; others may come first.
    Again,
    /// The session has ended and can be dropped.
    Done,
}

/// How much a turn may be, and with that who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Some system calls and some KiB, and nothing that could block: the reactor runs it, in the thread that learnt that
    /// there is something to do.
    Small,
    /// Anything else: a worker runs it.
    Work,
    /// The same, of a stream that moves many bytes, one turn after the other: other work comes first.
    Stream,
}

/// A session's standing towards events from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing concerns it.
    Keep,
    /// It has to run a turn to see what changed.
    Wake,
    /// It has been cancelled: drop it.
    Cut,
}

/// The number by which a session knows one of its descriptors, below [`MAX_INTERESTS`].
pub type Key = u8;

/// Descriptors that one session may wait for at once.
pub const MAX_INTERESTS: usize = 6;

/// What to be told about a descriptor. Errors and hang-ups are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Bytes, a connection or the end of the stream can be read.
    pub read: bool,
    /// Bytes can be written, or a pending connect has ended.
    pub write: bool,
}

impl Want {
    /// To read.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// To write.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Both.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
    };
    /// Only to learn of an error or a hang-up.
    pub const ERRORS: Self = Self {
        read: false,
        write: false,
    };

    /// Whether neither reading nor writing is wanted.
    #[must_use]
    pub fn only_errors(self) -> bool {
        self == Self::ERRORS
    }
}

/// One descriptor to wait for.
#[derive(Debug, Clone, Copy)]
pub struct Interest<'fd> {
    /// The session's number for it.
    pub key: Key,
    /// The descriptor.
    pub fd: BorrowedFd<'fd>,
    /// What for.
    pub want: Want,
}

/// The descriptors that a session waits for.
#[derive(Debug, Default)]
pub struct Interests<'fd> {
    list: [Option<Interest<'fd>>; MAX_INTERESTS],
    count: usize,
    is_steady: bool,
}

impl<'fd> Interests<'fd> {
    /// Adds a descriptor. More than [`MAX_INTERESTS`] are not taken: the session's own bug, seen as a missed wake-up.
    pub fn watch(&mut self, key: Key, fd: BorrowedFd<'fd>, want: Want) {
        let free = self.list.get_mut(self.count);
        debug_assert!(free.is_some() && usize::from(key) < MAX_INTERESTS);
        if let Some(slot) = free {
            *slot = Some(Interest { key, fd, want });
            self.count += 1;
        }
    }

    /// Promises that the turn replaced no descriptor, and used each one that was ready until that would have blocked. Then
    /// who watches them already need not ask the kernel again.
    pub fn steady(&mut self) {
        self.is_steady = true;
    }

    pub(super) fn is_steady(&self) -> bool {
        self.is_steady
    }

    /// The descriptors in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Interest<'fd>> {
        let used = self.list.get(..self.count);
        used.unwrap_or_default().iter().flatten()
    }
}

/// Which descriptors became ready. A hint: a session must bear readiness that turns out to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    usable: u8,
    hung_up: u8,
    ended: u8,
}

impl Ready {
    /// Nothing known: a deadline, or a wake-up from outside.
    pub const NONE: Self = Self {
        usable: 0,
        hung_up: 0,
        ended: 0,
    };
    /// Every descriptor is worth a try.
    pub const ALL: Self = Self {
        usable: u8::MAX,
        hung_up: 0,
        ended: 0,
    };

    /// Adds a descriptor that can be read or written.
    pub fn add(&mut self, key: Key) {
        self.usable |= 1 << key;
    }

    /// Adds a descriptor that reported an error or a hang-up of both directions.
    pub fn add_hung_up(&mut self, key: Key) {
        self.usable |= 1 << key;
        self.hung_up |= 1 << key;
    }

    /// Adds a descriptor whose stream ends behind what can be read.
    pub fn add_ended(&mut self, key: Key) {
        self.usable |= 1 << key;
        self.ended |= 1 << key;
    }

    /// Takes out all but the descriptors whose bits are set.
    pub(super) fn retain(&mut self, keys: u8) {
        self.usable &= keys;
        self.hung_up &= keys;
        self.ended &= keys;
    }

    /// Whether anything became ready.
    #[must_use]
    pub fn any(self) -> bool {
        self.usable != 0
    }

    /// Whether reading or writing this descriptor is worth a try.
    #[must_use]
    pub fn has(self, key: Key) -> bool {
        self.usable & (1 << key) != 0
    }

    /// Whether this descriptor reported an error or a hang-up: poll(2) will report it again and again, so a session
    /// that neither reads nor writes it must act on it.
    #[must_use]
    pub fn hung_up(self, key: Key) -> bool {
        self.hung_up & (1 << key) != 0
    }

    /// Whether the end of this descriptor's stream is known to be there. It is not always known, and told once.
    #[must_use]
    pub fn has_ended(self, key: Key) -> bool {
        (self.ended | self.hung_up) & (1 << key) != 0
    }
}

/// What a turn may use.
#[derive(Debug)]
pub struct TurnContext<'a> {
    /// The time at the start of the turn.
    pub now: Instant,
    /// Which descriptors became ready since the last turn.
    pub ready: Ready,
    buffer: &'a mut Vec<u8>,
    share: usize,
}

impl<'a> TurnContext<'a> {
    /// A worker's, over its buffer.
    pub fn new(now: Instant, ready: Ready, buffer: &'a mut Vec<u8>) -> Self {
        Self {
            now,
            ready,
            buffer,
            share: SHARE,
        }
    }

    /// That of a small turn.
    pub fn small(now: Instant, ready: Ready, buffer: &'a mut Vec<u8>) -> Self {
        Self {
            share: SMALL_SHARE,
            ..Self::new(now, ready, buffer)
        }
    }

    /// Bytes that may be moved one way in this turn.
    #[must_use]
    pub fn share(&self) -> usize {
        self.share
    }

    /// The worker's copy buffer, [`BUFFER`] bytes. What is in it is lost at the end of the turn: bytes that could not
    /// be passed on belong into the session.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.buffer_up_to(BUFFER)
    }

    /// The first bytes of the [`buffer`](Self::buffer), at most `limit` of them. A worker that never needs the whole of it
    /// never has it: dozens of them do nothing but small messages.
    pub fn buffer_up_to(&mut self, limit: usize) -> &mut [u8] {
        let limit = limit.min(BUFFER);
        if self.buffer.len() < limit {
            *self.buffer = vec![0; limit];
        }
        self.buffer.get_mut(..limit).unwrap_or_default()
    }
}

/// What a session that goes through stages has come to.
#[derive(Debug)]
pub enum Step<Stage> {
    /// Go on with this stage at once.
    Next(Stage),
    /// Stay in this stage and say this.
    Stay(Stage, Turn),
}

impl<Stage> Step<Stage> {
    /// Puts the stage in its place; what to say, if this ends the turn.
    pub fn settle(self, place: &mut Stage, cx: &mut TurnContext<'_>) -> Option<Turn> {
        match self {
            Self::Next(stage) => {
                *place = stage;
                // The new stage has other descriptors, and bytes of its own to get rid of.
                cx.ready = Ready::ALL;
                None
            }
            Self::Stay(stage, turn) => {
                *place = stage;
                Some(turn)
            }
        }
    }
}

/// Bytes one way in a worker's turn, so that it ends within a millisecond or so.
const SHARE: usize = 256 * 1024;

/// The same in a small turn. More is work.
const SMALL_SHARE: usize = 32 * 1024;

/// Size of the copy buffer, one per worker: 64 KiB is the best size that others measured for relays, and a worker
/// that never copies has none.
pub const BUFFER: usize = 64 * 1024;
