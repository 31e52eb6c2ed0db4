//! Requests to a source's thread, through a socket pair, so that the thread can wait for them together with the
//! descriptors of a command or a look-up.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The thread's end: tells whether to refresh or to stop.
#[derive(Debug)]
pub struct Signal {
    stream: UnixStream,
    requested: bool,
    stopped: bool,
}

impl Signal {
    /// Whether it is time to stop.
    pub fn is_stopped(&mut self) -> bool {
        self.receive();
        self.stopped
    }

    /// Waits until one of `descriptors` can be read (or has been closed), a stop, or `deadline`. At most two descriptors.
    pub(super) fn wait_readable(
        &mut self,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Wake {
        self.wait_ready(descriptors, PollFlags::IN, deadline)
    }

    /// The same until one of them can be written to, which also says that a connect has ended.
    pub(super) fn wait_writable(
        &mut self,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Wake {
        self.wait_ready(descriptors, PollFlags::OUT, deadline)
    }

    fn wait_ready(
        &mut self,
        descriptors: &[BorrowedFd<'_>],
        what: PollFlags,
        deadline: Instant,
    ) -> Wake {
        loop {
            self.receive();
            if self.stopped {
                return Wake::Stop;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waiting = vec![PollFd::new(&self.stream, PollFlags::IN)];
            waiting.extend(
                descriptors
                    .iter()
                    .map(|descriptor| PollFd::new(descriptor, what)),
            );
            match poll(&mut waiting, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) if left.is_zero() => return Wake::Deadline,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Wake::Deadline,
            }
            let mut ready = [false; 2];
            for (to, from) in ready.iter_mut().zip(waiting.iter().skip(1)) {
                *to = !from.revents().is_empty();
            }
            if ready.contains(&true) {
                return Wake::Ready(ready);
            }
        }
    }

    /// Waits for a request or a stop, at most `limit`.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> Event {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            self.receive();
            if self.stopped {
                return Event::Stop;
            }
            if std::mem::take(&mut self.requested) {
                return Event::Request;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Event::Nothing;
            }
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            let mut waiting = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut waiting, limit.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // Out of memory: no way to wait, and spinning would be worse than ending.
                Err(_) => return Event::Stop,
            }
        }
    }

    /// Takes in what has come.
    fn receive(&mut self) {
        let mut bytes = [0; 16];
        while !self.stopped {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.stopped = true,
                Ok(_) => self.requested = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.stopped = true,
            }
        }
    }
}

/// How [`Signal::wait_readable`] or [`Signal::wait_writable`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// These of the descriptors are ready.
    Ready([bool; 2]),
    Deadline,
    Stop,
}

/// How [`Signal::wait`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Request,
    Stop,
    Nothing,
}

/// The other end.
#[derive(Debug)]
pub(super) struct Handle {
    stream: UnixStream,
}

impl Handle {
    pub(super) fn request(&self) {
        // Full means that requests are waiting already, closed that the thread has ended.
        let _ = (&self.stream).write(&[1]);
    }

    pub(super) fn stop(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Whether the thread has ended within `patience`: its end is closed then.
    pub(super) fn wait_for_end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waiting = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut waiting, Timespec::try_from(left).ok().as_ref()) {
                Ok(1..) => return true,
                Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
                Ok(0) if !left.is_zero() => {}
                _ => return false,
            }
        }
    }
}

pub(super) fn pair() -> io::Result<(Handle, Signal)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let signal = Signal {
        stream: theirs,
        requested: false,
        stopped: false,
    };
    Ok((Handle { stream: ours }, signal))
}
