//! One direction of a relay: bytes from one socket to the other, by copying or splicing.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;

use socket2::Socket;

use super::duplex::RelaySettings;
use super::kept::{Kept, KeptBytes};
use crate::engine::{BUFFER, TurnContext};
use crate::net::until_done;

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::{pipes::Pipe, splice};

/// One direction of a relay.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) flow: Flow,
    pending: Pending,
    mode: Mode,
    /// Bytes asked for by the next read.
    chunk: usize,
    /// Full reads in a row while copying, short moves in a row while splicing.
    streak: u8,
    /// Bytes written to the other side.
    pub(super) moved: u64,
}

/// How far a direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// More can be read.
    Open,
    /// The end was read; what is pending has to be written, then the end is passed on.
    Ending,
    /// Over.
    Closed,
}

/// Bytes that were read and could not be written yet.
#[derive(Debug)]
enum Pending {
    None,
    Bytes(KeptBytes),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Piped(Pipe),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Copy,
    Splice,
    /// splice(2) does not work for these sockets.
    CopyAlways,
}

/// Where a pump stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing more can be done now.
    Dry,
    /// The turn's share is used up; more may be there.
    More,
}

/// What to do at the end of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtEnd {
    /// Tell the sink.
    PassOn,
    /// Say nothing: the sink is closed or reset next.
    Withhold,
}

/// What is known of the source's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    /// The end is there, behind what can be read.
    End,
}

/// Which side broke a direction.
#[derive(Debug)]
pub(super) enum Broken {
    /// Reading failed: what is pending can still be delivered.
    Source(io::Error),
    /// Writing failed: what is pending is lost.
    Sink(io::Error),
}

impl Direction {
    /// A direction with bytes that were already read from its source.
    pub(super) fn new(already_read: &[u8], kept: &Kept) -> Self {
        let pending = if already_read.is_empty() {
            Pending::None
        } else {
            Pending::Bytes(kept.keep(already_read.into()))
        };
        Self {
            flow: Flow::Open,
            pending,
            mode: Mode::Copy,
            chunk: SMALL_CHUNK,
            streak: 0,
            moved: 0,
        }
    }

    /// Whether it waits for its source.
    pub(super) fn wants_read(&self) -> bool {
        self.flow == Flow::Open && !self.has_pending()
    }

    /// Whether it waits for its sink.
    pub(super) fn wants_write(&self) -> bool {
        self.flow != Flow::Closed && self.has_pending()
    }

    fn has_pending(&self) -> bool {
        !matches!(self.pending, Pending::None)
    }

    /// Gives up what could not be delivered.
    pub(super) fn close(&mut self) {
        self.flow = Flow::Closed;
        self.pending = Pending::None;
    }

    /// Whether what moved last was bulk.
    pub(super) fn is_bulk(&self) -> bool {
        self.flow == Flow::Open && (self.mode == Mode::Splice || self.streak >= FULL_READS)
    }

    /// Moves bytes until nothing more can be done or the turn's share is used up. Passes the end on, which is read at once where
    /// it is `known` to be there.
    pub(super) fn pump(
        &mut self,
        source: &Socket,
        sink: &Socket,
        settings: &RelaySettings,
        (known, at_end): (Known, AtEnd),
        cx: &mut TurnContext<'_>,
    ) -> Result<Pumped, Broken> {
        let mut share = cx.share();
        loop {
            if !self
                .write_pending(sink, &settings.kept)
                .map_err(Broken::Sink)?
            {
                return Ok(Pumped::Dry);
            }
            match self.flow {
                Flow::Open => {}
                Flow::Ending => {
                    self.flow = Flow::Closed;
                    if at_end == AtEnd::PassOn {
                        // Fails when the other side is gone already, which its own direction finds out.
                        let _ = sink.shutdown(Shutdown::Write);
                    }
                    return Ok(Pumped::Dry);
                }
                Flow::Closed => return Ok(Pumped::Dry),
            }
            if share == 0 {
                return Ok(Pumped::More);
            }
            let step = if self.mode == Mode::Splice {
                self.splice(source, sink, settings, cx)?
            } else {
                self.copy(source, sink, &settings.kept, cx)?
            };
            match step {
                Step::Moved(bytes) => share = share.saturating_sub(bytes),
                // The end was told of once, so it is not waited for.
                Step::Short if known == Known::End => {}
                Step::Short | Step::Drained => return Ok(Pumped::Dry),
                Step::End => self.flow = Flow::Ending,
                Step::OtherMode => {}
            }
        }
    }

    /// Writes what is pending; whether nothing is left of it.
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        expect(
            unused_variables,
            reason = "only what comes out of a pipe is kept here"
        )
    )]
    fn write_pending(&mut self, sink: &Socket, kept: &Kept) -> io::Result<bool> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Pending::Piped(pipe) = &mut self.pending {
            match splice::empty(pipe, sink, &mut self.moved) {
                Ok(true) => self.pending = Pending::None,
                Ok(false) => return Ok(false),
                Err(error) if splice::is_unsupported(&error) => {
                    self.mode = Mode::CopyAlways;
                    let bytes = splice::take_back(pipe)?;
                    self.pending = Pending::Bytes(kept.keep(bytes));
                }
                Err(error) => return Err(error),
            }
        }
        if let Pending::Bytes(bytes) = &mut self.pending {
            while !bytes.rest().is_empty() {
                let Some(count) = until_done(|| (&*sink).write(bytes.rest()))? else {
                    return Ok(false);
                };
                bytes.wrote(count);
                self.moved += count as u64;
            }
            self.pending = Pending::None;
        }
        Ok(true)
    }

    fn copy(
        &mut self,
        source: &Socket,
        sink: &Socket,
        kept: &Kept,
        cx: &mut TurnContext<'_>,
    ) -> Result<Step, Broken> {
        let chunk = self
            .chunk
            .min(cx.share() / 2)
            .min(BUFFER)
            .min(kept.longest_read());
        let buffer = cx.buffer_up_to(chunk);
        let Some(count) = until_done(|| (&*source).read(buffer)).map_err(Broken::Source)? else {
            return Ok(Step::Drained);
        };
        if count == 0 {
            return Ok(Step::End);
        }
        let Some(mut rest) = buffer.get(..count) else {
            return Ok(Step::Drained);
        };
        while !rest.is_empty() {
            match until_done(|| (&*sink).write(rest)).map_err(Broken::Sink)? {
                Some(written) => {
                    self.moved += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
                None => {
                    // A slow reader: it costs what is kept here, so take less the next time.
                    self.pending = Pending::Bytes(kept.keep(rest.into()));
                    self.chunk = SMALL_CHUNK;
                    self.streak = 0;
                    return Ok(Step::Moved(count));
                }
            }
        }
        if count < chunk {
            self.streak = 0;
            self.chunk = SMALL_CHUNK.max(count.next_power_of_two()).min(self.chunk);
            // A short read means that the socket is empty: no need to be told by another call.
            return Ok(Step::Short);
        }
        self.streak = self.streak.saturating_add(1);
        self.chunk = (chunk * 2).min(BUFFER);
        if self.streak >= FULL_READS && self.mode == Mode::Copy {
            self.mode = Mode::Splice;
            self.streak = 0;
        }
        Ok(Step::Moved(count))
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn splice(
        &mut self,
        source: &Socket,
        sink: &Socket,
        RelaySettings { pipes, kept, .. }: &RelaySettings,
        cx: &mut TurnContext<'_>,
    ) -> Result<Step, Broken> {
        let Some(mut pipe) = pipes.lend(cx.now) else {
            // All are lent: copy for a while, then ask again.
            self.mode = Mode::Copy;
            self.streak = 0;
            return Ok(Step::OtherMode);
        };
        let mut bytes = 0;
        loop {
            // The pipe is empty here, so "would block" can only mean that the socket is.
            match splice::fill(source, &mut pipe) {
                // It also stops at an urgent byte, and old kernels say "would block" at the end of the stream: reading
                // tells which it is.
                Ok(Some(0)) => return self.copy(source, sink, kept, cx),
                Ok(None) if bytes == 0 => return self.copy(source, sink, kept, cx),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Step::Drained),
                Err(error) if splice::is_unsupported(&error) => {
                    self.mode = Mode::CopyAlways;
                    return Ok(Step::OtherMode);
                }
                Err(error) => return Err(Broken::Source(error)),
            }
            let count = pipe.held;
            bytes += count;
            self.streak = if count < SHORT_MOVE {
                self.streak + 1
            } else {
                0
            };
            let done = match splice::empty(&mut pipe, sink, &mut self.moved) {
                Ok(done) => done,
                Err(error) if splice::is_unsupported(&error) => {
                    self.mode = Mode::CopyAlways;
                    let bytes = splice::take_back(&mut pipe).map_err(Broken::Source)?;
                    self.pending = Pending::Bytes(kept.keep(bytes));
                    return Ok(Step::OtherMode);
                }
                Err(error) => return Err(Broken::Sink(error)),
            };
            if !done {
                self.pending = Pending::Piped(pipe);
                return Ok(Step::Moved(bytes));
            }
            if self.streak >= SHORT_MOVES {
                self.mode = Mode::Copy;
                self.streak = 0;
                self.chunk = SMALL_CHUNK;
                return Ok(Step::OtherMode);
            }
            if bytes >= cx.share() {
                return Ok(Step::Moved(bytes));
            }
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn splice(
        &mut self,
        _source: &Socket,
        _sink: &Socket,
        _settings: &RelaySettings,
        _cx: &mut TurnContext<'_>,
    ) -> Result<Step, Broken> {
        self.mode = Mode::CopyAlways;
        Ok(Step::OtherMode)
    }
}

enum Step {
    Moved(usize),
    /// Less than would have fit: the source is empty for now, or at its end.
    Short,
    /// The source is empty for now.
    Drained,
    /// The source has ended.
    End,
    /// The mode has changed.
    OtherMode,
}

/// The first read of a direction and the reads for a slow reader: what a connection may have to keep is at most this.
const SMALL_CHUNK: usize = 16 * 1024;

/// Full reads in a row before a direction splices: 16 + 32 + 64 KiB without a pause are bulk.
const FULL_READS: u8 = 3;

/// A splice that moved less than this is short: one copy of it would have cost less than the two calls.
#[cfg(any(target_os = "linux", target_os = "android"))]
const SHORT_MOVE: usize = 8 * 1024;

/// Short moves in a row before a direction copies again.
#[cfg(any(target_os = "linux", target_os = "android"))]
const SHORT_MOVES: u8 = 3;
