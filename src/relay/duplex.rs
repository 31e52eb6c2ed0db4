//! A relay: two directions over two sockets, and how it ends.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::direction::{AtEnd, Broken, Direction, Flow, Known, Pumped};
use super::kept::Kept;
use super::pipes::Pipes;
use crate::engine::{Effort, Interests, Key, Turn, TurnContext, Want};

/// What relays of one forwarder or server have in common.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Close a relay that moved nothing for this long; `None` is never.
    pub idle: Option<Duration>,
    /// The same once one direction has ended; `None` is never.
    pub half_closed_idle: Option<Duration>,
    /// Pipes for splice(2); a pool without any turns it off.
    pub pipes: Pipes,
    /// Memory for what slow readers leave behind.
    pub kept: Kept,
}

/// Bytes between two sockets until both directions have ended.
///
/// Side A is the one that connected to us, side B the one that we connected to. Both sockets must be non-blocking.
#[derive(Debug)]
pub struct Relay {
    a: Socket,
    b: Socket,
    up: Direction,
    down: Direction,
    settings: Arc<RelaySettings>,
    last_moved: Instant,
    /// Bytes that moved faster than a small connection's do.
    heat: u32,
    /// One side reset its connection: the other is to see the same.
    reset: Option<io::ErrorKind>,
    ended: Option<Ended>,
}

/// Bytes moved so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// From A to B.
    pub up: u64,
    /// From B to A.
    pub down: u64,
}

impl Moved {
    fn total(self) -> u64 {
        self.up.saturating_add(self.down)
    }
}

/// Why a relay has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Both sides closed.
    Closed,
    /// One side broke off; the other was reset.
    Reset(io::ErrorKind),
    /// Nothing moved for too long.
    Idle,
    /// Nothing moved for too long after one direction had ended.
    HalfClosedIdle,
}

impl Relay {
    /// A relay between two connected sockets. `from_a` and `from_b` were already read from them.
    pub fn new(
        a: Socket,
        b: Socket,
        from_a: &[u8],
        from_b: &[u8],
        settings: Arc<RelaySettings>,
        now: Instant,
    ) -> Self {
        Self {
            a,
            b,
            up: Direction::new(from_a, &settings.kept),
            down: Direction::new(from_b, &settings.kept),
            settings,
            last_moved: now,
            heat: 0,
            reset: None,
            ended: None,
        }
    }

    /// Bytes moved so far: those that were written, not those that wait.
    #[must_use]
    pub fn moved(&self) -> Moved {
        Moved {
            up: self.up.moved,
            down: self.down.moved,
        }
    }

    /// Why it has ended, once a turn said [`Turn::Done`].
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Whether it has shown itself to be busy: then a worker is to have it.
    #[must_use]
    pub fn effort(&self) -> Effort {
        if self.heat >= HOT || self.up.is_bulk() || self.down.is_bulk() {
            Effort::Stream
        } else {
            Effort::Small
        }
    }

    /// Moves what can be moved now.
    pub fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        let before = (self.moved(), self.up.flow, self.down.flow);
        let mut more = false;
        if cx.ready.any() {
            let settings = &*self.settings;
            if Self::worth_a_try(&self.up, cx, A, B) {
                let end = (known(cx, A), at_end(self.reset, &self.down));
                match self.up.pump(&self.a, &self.b, settings, end, cx) {
                    Ok(pumped) => more |= pumped == Pumped::More,
                    Err(broken) => {
                        Self::broke(broken, &mut self.up, &mut self.down, &mut self.reset)
                    }
                }
            }
            if Self::worth_a_try(&self.down, cx, B, A) {
                let end = (known(cx, B), at_end(self.reset, &self.up));
                match self.down.pump(&self.b, &self.a, settings, end, cx) {
                    Ok(pumped) => more |= pumped == Pumped::More,
                    Err(broken) => {
                        Self::broke(broken, &mut self.down, &mut self.up, &mut self.reset)
                    }
                }
            }
            self.notice_gone(cx);
        }
        // An end counts too: the limit of a half-closed relay starts when it becomes one.
        if (self.moved(), self.up.flow, self.down.flow) != before {
            let moved = self.moved().total() - before.0.total();
            let since = cx.now.saturating_duration_since(self.last_moved);
            self.heat = heated(self.heat, moved, since);
            self.last_moved = cx.now;
        }
        if self.up.flow == Flow::Closed && self.down.flow == Flow::Closed {
            return self.end(self.reset.map_or(Ended::Closed, Ended::Reset));
        }
        if more {
            return Turn::Again;
        }
        let half_closed = self.up.flow != Flow::Open || self.down.flow != Flow::Open;
        let (limit, ended) = if half_closed {
            (self.settings.half_closed_idle, Ended::HalfClosedIdle)
        } else {
            (self.settings.idle, Ended::Idle)
        };
        let until = limit.and_then(|limit| self.last_moved.checked_add(limit));
        if until.is_some_and(|until| until <= cx.now) {
            return self.end(ended);
        }
        Turn::Wait { until }
    }

    fn worth_a_try(direction: &Direction, cx: &TurnContext<'_>, source: Key, sink: Key) -> bool {
        match direction.flow {
            Flow::Closed => false,
            Flow::Ending => true,
            Flow::Open if direction.wants_write() => cx.ready.has(sink),
            Flow::Open => cx.ready.has(source),
        }
    }

    /// One side broke off. What it sent before is still delivered, what goes towards it can't be.
    ///
    /// The kernel tells an error once and then shows a clean end, so the first error is remembered: the other side
    /// must not take a broken stream for a whole one.
    fn broke(
        broken: Broken,
        this: &mut Direction,
        other: &mut Direction,
        reset: &mut Option<io::ErrorKind>,
    ) {
        match broken {
            Broken::Source(error) => {
                reset.get_or_insert(error.kind());
                this.flow = if this.wants_write() {
                    Flow::Ending
                } else {
                    Flow::Closed
                };
                other.close();
            }
            Broken::Sink(error) => {
                reset.get_or_insert(error.kind());
                this.close();
            }
        }
    }

    /// A side that is neither read nor written now can still report that it is gone. One that is shut for writing is
    /// left alone: it reports a hang-up as soon as its own end has come, and what it sent is still to be read.
    fn notice_gone(&mut self, cx: &TurnContext<'_>) {
        if cx.ready.hung_up(A) && self.want_a().only_errors() && self.down.flow != Flow::Closed {
            gone(&self.a, &mut self.down, &mut self.reset);
        }
        if cx.ready.hung_up(B) && self.want_b().only_errors() && self.up.flow != Flow::Closed {
            gone(&self.b, &mut self.up, &mut self.reset);
        }
    }

    fn want_a(&self) -> Want {
        Want {
            read: self.up.wants_read(),
            write: self.down.wants_write(),
        }
    }

    fn want_b(&self) -> Want {
        Want {
            read: self.down.wants_read(),
            write: self.up.wants_write(),
        }
    }

    fn end(&mut self, ended: Ended) -> Turn {
        if let Ended::Reset(_) = ended {
            for side in [&self.a, &self.b] {
                // Without lingering, close sends a reset. Not on Unix sockets, which know none.
                let _ = side.set_linger(Some(Duration::ZERO));
            }
        }
        self.ended = Some(ended);
        Turn::Done
    }

    /// The descriptors that the relay waits for.
    pub fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        interests.steady();
        let (want_a, want_b) = (self.want_a(), self.want_b());
        if !want_a.only_errors() || self.down.flow != Flow::Closed {
            interests.watch(A, self.a.as_fd(), want_a);
        }
        if !want_b.only_errors() || self.up.flow != Flow::Closed {
            interests.watch(B, self.b.as_fd(), want_b);
        }
    }
}

/// Nothing goes towards a side that has hung up. A TCP socket that did so was reset; a Unix socket also reports it
/// when its other end is closed, which is an ordinary end: what came before and the end itself are still passed on.
fn gone(side: &Socket, towards: &mut Direction, reset: &mut Option<io::ErrorKind>) {
    if let Ok(Some(error)) | Err(error) = side.take_error() {
        reset.get_or_insert(error.kind());
    }
    towards.close();
}

fn known(cx: &TurnContext<'_>, source: Key) -> Known {
    if cx.ready.has_ended(source) {
        Known::End
    } else {
        Known::Nothing
    }
}

/// Rises with each byte, falls with time: above [`HOT`] when more than that came on top of [`COOLING`].
fn heated(heat: u32, moved: u64, since: Duration) -> u32 {
    let cooled = u64::try_from(since.as_micros())
        .unwrap_or(u64::MAX)
        .saturating_mul(COOLING);
    let heat = u64::from(heat).saturating_sub(cooled).saturating_add(moved);
    u32::try_from(heat.min(HOTTEST)).unwrap_or(HOT)
}

/// When a relay broke, or the other direction has ended too, closing the sockets says it all.
fn at_end(reset: Option<io::ErrorKind>, other: &Direction) -> AtEnd {
    if reset.is_some() || other.flow == Flow::Closed {
        AtEnd::Withhold
    } else {
        AtEnd::PassOn
    }
}

const A: Key = 0;
const B: Key = 1;

/// Bytes per microsecond that a connection may move for long without being called busy. A small message there and back
/// again and again on loopback is 2.
const COOLING: u64 = 4;

/// Bytes beyond that which make a connection busy.
const HOT: u32 = 64 * 1024;

/// A connection that was as busy as can be is not so any more after this many bytes' time, some 50 ms.
const HOTTEST: u64 = 192 * 1024;
