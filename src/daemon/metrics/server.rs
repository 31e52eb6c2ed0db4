//! The tasks that accept scrapers and answer them.

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::http::{self, Head, Part, Status};
use crate::engine::{Cx, Next, Task, TaskId, Want};
use crate::listen::{Admission, Listener};
use crate::net::accept;

/// Makes the text of the metrics.
pub(in crate::daemon) type Render = Rc<dyn Fn(&Cx<'_>) -> String>;

/// The task that accepts scrapers.
pub(in crate::daemon) struct MetricsServer {
    listener: Rc<Listener>,
    admission: Rc<Admission>,
    render: Render,
    seats: Vec<(TaskId, Weak<Cell<Instant>>)>,
    /// Accepted, and waits for a seat.
    waiting: Option<Socket>,
    watched: bool,
}

impl MetricsServer {
    /// Answers those whom `admission` lets in with what `render` makes.
    pub(in crate::daemon) fn new(
        listener: Rc<Listener>,
        admission: Rc<Admission>,
        render: Render,
    ) -> Self {
        Self {
            listener,
            admission,
            render,
            seats: Vec::new(),
            waiting: None,
            watched: false,
        }
    }

    /// At the limit the one that came first is closed, unless it came just now. Whether there is room.
    fn make_room(&mut self, cx: &mut Cx<'_>) -> bool {
        self.seats.retain(|(_, since)| since.strong_count() > 0);
        if self.seats.len() < MOST_CONNECTIONS {
            return true;
        }
        let Some((task, since)) = self.seats.first() else {
            return true;
        };
        let since = since.upgrade().map_or(cx.now, |since| since.get());
        if cx.now.saturating_duration_since(since) < GIVES_WAY {
            return false;
        }
        log::debug!("metrics: {MOST_CONNECTIONS} connections, the oldest one is closed");
        cx.cancel(*task);
        self.seats.remove(0);
        true
    }

    fn take_in(&mut self, socket: Socket, cx: &mut Cx<'_>) {
        let since = Rc::new(Cell::new(cx.now));
        let seat = Rc::downgrade(&since);
        let connection = Connection {
            socket,
            render: Rc::clone(&self.render),
            since,
            stage: Stage::Reading(Vec::new()),
            watched: false,
        };
        self.seats.push((cx.spawn(Box::new(connection)), seat));
    }
}

impl Task for MetricsServer {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            if let Err(error) = cx.watch(self.listener.socket().as_fd(), Want::READ) {
                log::warn!(
                    "cannot watch {}, trying again: {error}",
                    self.listener.bound()
                );
                return Next::Wait(Some(cx.now + RETRY));
            }
            self.watched = true;
        }
        loop {
            if let Some(socket) = self.waiting.take() {
                if !self.make_room(cx) {
                    self.waiting = Some(socket);
                    return Next::Wait(Some(cx.now + RETRY));
                }
                self.take_in(socket, cx);
            }
            match accept(self.listener.socket()) {
                Ok((socket, address)) => {
                    let ip = address.map(|address| address.ip());
                    match ip.map(|ip| (ip, self.admission.check(ip, |_| false))) {
                        Some((ip, Err(refused))) => {
                            log::debug!("metrics: {ip}: connection refused: {refused}");
                        }
                        _ => self.waiting = Some(socket),
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Next::Wait(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        log::debug!("metrics: cannot accept, trying again: {error}");
                        return Next::Wait(Some(cx.now + RETRY));
                    }
                },
            }
        }
    }
}

/// One request and its answer.
struct Connection {
    socket: Socket,
    render: Render,
    /// When it came; gone with it.
    since: Rc<Cell<Instant>>,
    stage: Stage,
    watched: bool,
}

enum Stage {
    Reading(Vec<u8>),
    Writing {
        bytes: Vec<u8>,
        written: usize,
    },
    /// All is said. What still comes is thrown away: closing over unread bytes would be a reset, which can overtake the answer.
    Lingering {
        thrown_away: usize,
    },
}

impl Connection {
    /// Whether it is over; `None` to wait.
    fn advance(&mut self, cx: &mut Cx<'_>) -> io::Result<Option<()>> {
        loop {
            match &mut self.stage {
                Stage::Reading(head) => {
                    let mut buffer = [0; 2048];
                    let read = match read(&self.socket, &mut buffer)? {
                        Some(0) => return Ok(Some(())),
                        Some(count) => {
                            head.extend_from_slice(buffer.get(..count).unwrap_or_default());
                            http::read(head)
                        }
                        None => return Ok(None),
                    };
                    let bytes = match read {
                        Head::Incomplete => continue,
                        Head::Metrics(part) => {
                            http::answer(Status::Ok, part, Some(&(self.render)(cx)))
                        }
                        Head::Refused(status, part) => http::answer(status, part, None),
                    };
                    self.stage = Stage::Writing { bytes, written: 0 };
                }
                Stage::Writing { bytes, written } => {
                    let rest = bytes.get(*written..).unwrap_or_default();
                    if rest.is_empty() {
                        self.socket.shutdown(Shutdown::Write)?;
                        self.stage = Stage::Lingering { thrown_away: 0 };
                        continue;
                    }
                    match (&self.socket).write(rest) {
                        Ok(count) => *written += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
                Stage::Lingering { thrown_away } => {
                    let mut buffer = [0; 2048];
                    match read(&self.socket, &mut buffer)? {
                        Some(0) => return Ok(Some(())),
                        Some(count) => *thrown_away += count,
                        None => return Ok(None),
                    }
                    if *thrown_away > MOST_THROWN_AWAY {
                        return Ok(Some(()));
                    }
                }
            }
        }
    }
}

impl Task for Connection {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            if let Err(error) = cx.watch(self.socket.as_fd(), Want::READ_WRITE) {
                log::debug!("metrics: {error}");
                return Next::Done;
            }
            self.watched = true;
        }
        let until = self.since.get() + LIMIT;
        if cx.now >= until {
            if let Stage::Reading(_) = self.stage {
                // One write is enough for it: nothing was sent before.
                let bytes = http::answer(Status::RequestTimeout, Part::Whole, None);
                let _ = (&self.socket).write(&bytes);
            }
            return Next::Done;
        }
        match self.advance(cx) {
            Ok(None) => Next::Wait(Some(until)),
            Ok(Some(())) => Next::Done,
            Err(error) => {
                log::debug!("metrics: {error}");
                Next::Done
            }
        }
    }
}

/// `None`: nothing is there yet.
fn read(mut socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.read(buffer) {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Connections at once; a scraper has one. Descriptors for them are in the reserve of the budget.
const MOST_CONNECTIONS: usize = 8;

/// For a request and its answer together. Prometheus gives up after 10 s by itself.
const LIMIT: Duration = Duration::from_secs(10);

/// A connection that has had this long makes room for another.
const GIVES_WAY: Duration = Duration::from_millis(500);

/// Bytes behind a request that are read after the answer.
const MOST_THROWN_AWAY: usize = 64 * 1024;

/// After the system or the limit refused a connection.
const RETRY: Duration = Duration::from_millis(100);
