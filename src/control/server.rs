//! The serving end of the control socket: tasks of the reactor.
//!
//! A connection asks one thing at a time; while an answer is under way nothing more is read from it. Answers can come
//! later (a race takes seconds) without keeping anybody else waiting.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::descriptors;
use super::messages::{Call, ErrorCode, ErrorObject, Id, Request, Response, json_of};
use crate::engine::{Cx, Mailbox, Next, Shared, Task, TaskId, Want};
use crate::listen::knock;

/// Answers a call, now or later, through the reply.
pub type Handler = Rc<dyn Fn(Call, Reply, &mut Cx<'_>)>;

/// The bound control socket. Its file is removed with it, unless it was passed.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    /// Its file, where it is ours.
    file: Option<PathBuf>,
    /// The file is somebody else's to remove.
    is_lent: Cell<bool>,
}

impl ControlSocket {
    /// Binds the socket with mode 0600. A file that a dead program left behind is replaced.
    ///
    /// To be called while the program has one thread: the mode comes from the process's umask.
    ///
    /// # Errors
    /// Somebody serves the path already, something else than a socket is there, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, ControlSocketError> {
        let failed = |problem| ControlSocketError {
            path: path.to_owned(),
            problem,
        };
        if let Ok(meta) = fs::symlink_metadata(path) {
            if !meta.file_type().is_socket() {
                return Err(failed(Problem::NotASocket));
            }
            match knock(path) {
                Ok(()) => return Err(failed(Problem::Served)),
                // Its queue is full: it hangs, but it is there.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(failed(Problem::Served));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(|error| failed(Problem::Io(error)))?;
                }
                Err(error) => return Err(failed(Problem::Io(error))),
            }
        }
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(|error| failed(Problem::Io(error)))?;
        let socket = Self {
            listener,
            file: Some(path.to_owned()),
            is_lent: Cell::new(false),
        };
        socket
            .listener
            .set_nonblocking(true)
            .map_err(|error| failed(Problem::Io(error)))?;
        Ok(socket)
    }

    /// One that somebody else has bound, whose file stays his.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn passed(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            file: None,
            is_lent: Cell::new(true),
        })
    }

    /// The one at this path that another process has bound. The file stays, until it is [ours](ControlSocket::keep_file).
    ///
    /// # Errors
    /// It is none, or the system refuses.
    pub fn adopt(path: &Path, descriptor: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(descriptor);
        if listener.local_addr()?.as_pathname().is_none() {
            return Err(io::Error::other("it is no control socket"));
        }
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            file: Some(path.to_owned()),
            is_lent: Cell::new(true),
        })
    }

    /// The same socket for another process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn lend(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Leaves the file to another process, and hears no caller any more.
    pub fn leave(&self, cx: &Cx<'_>) {
        self.is_lent.set(true);
        cx.unwatch(self.listener.as_fd());
    }

    /// The file is removed with this socket.
    pub fn keep_file(&self) {
        self.is_lent.set(false);
    }

    /// Its file, where it is ours.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let (Some(file), false) = (&self.file, self.is_lent.get()) {
            // Gone already if somebody cleaned up behind us.
            let _ = fs::remove_file(file);
        }
    }
}

/// The control socket could not be bound.
#[derive(Debug)]
pub struct ControlSocketError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Served,
    NotASocket,
    Io(io::Error),
}

impl ControlSocketError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self.problem {
            Problem::Served => "another sockhop runs with this control socket: `sockhop status` talks to it; give a \
                                second one its own with --control PATH"
                .into(),
            Problem::NotASocket | Problem::Io(_) => {
                "choose another path with --control PATH, or --control none to do without".into()
            }
        }
    }

    /// Whether the system refuses to have a socket there: no such folder, not allowed, read-only, full.
    #[must_use]
    pub fn is_unusable_path(&self) -> bool {
        matches!(self.problem, Problem::Io(_))
    }
}

impl fmt::Display for ControlSocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.problem {
            Problem::Served => write!(f, "control socket {path}: in use"),
            Problem::NotASocket => write!(
                f,
                "control socket {path}: something that is not a socket is there"
            ),
            Problem::Io(_) => write!(f, "control socket {path}"),
        }
    }
}

impl Error for ControlSocketError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            Problem::Io(error) => Some(error),
            Problem::Served | Problem::NotASocket => None,
        }
    }
}

/// The task that accepts control connections.
pub struct ControlServer {
    socket: Rc<ControlSocket>,
    handler: Handler,
    seats: Vec<Seat>,
    /// Accepted, and waits for a seat.
    waiting: Option<UnixStream>,
    watched: bool,
}

/// What the server knows of a connection.
struct Seat {
    connection: TaskId,
    /// Gone with the connection.
    active: Weak<Cell<Instant>>,
    outbox: Shared<Outbox>,
}

impl ControlServer {
    /// Serves a control socket.
    #[must_use]
    pub fn new(socket: impl Into<Rc<ControlSocket>>, handler: Handler) -> Self {
        Self {
            socket: socket.into(),
            handler,
            seats: Vec::new(),
            waiting: None,
            watched: false,
        }
    }

    /// Makes room for one more connection: at the limit the one that has been idle longest is closed, unless it came
    /// just now and has yet to say what it wants. Whether there is room.
    fn make_room(&mut self, cx: &mut Cx<'_>) -> bool {
        self.seats.retain(|seat| seat.active.strong_count() > 0);
        if self.seats.len() < MAX_CONNECTIONS {
            return true;
        }
        let idle = self
            .seats
            .iter()
            .enumerate()
            .filter(|(_, seat)| !seat.outbox.borrow().owed)
            .filter_map(|(place, seat)| Some((seat.active.upgrade()?.get(), place)))
            .min();
        match idle {
            Some((active, place)) if cx.now.saturating_duration_since(active) >= GIVES_WAY => {
                log::debug!(
                    "control: {MAX_CONNECTIONS} connections, the longest idle one is closed"
                );
                cx.cancel(self.seats.swap_remove(place).connection);
                true
            }
            _ => false,
        }
    }

    fn take_in(&mut self, stream: UnixStream, cx: &mut Cx<'_>) {
        match Connection::new(stream, Rc::clone(&self.handler), cx.now) {
            Ok(connection) => {
                let (active, outbox) = (
                    Rc::downgrade(&connection.active),
                    Shared::clone(&connection.outbox),
                );
                self.seats.push(Seat {
                    connection: cx.spawn(Box::new(connection)),
                    active,
                    outbox,
                });
            }
            Err(error) => log::debug!("control connection: {error}"),
        }
    }
}

impl Task for ControlServer {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            if let Err(error) = cx.watch(self.socket.listener.as_fd(), Want::READ) {
                log::warn!("cannot watch the control socket, trying again: {error}");
                return Next::Wait(Some(cx.now + RETRY));
            }
            self.watched = true;
        }
        loop {
            if let Some(stream) = self.waiting.take() {
                if !self.make_room(cx) {
                    self.waiting = Some(stream);
                    return Next::Wait(Some(cx.now + RETRY));
                }
                self.take_in(stream, cx);
            }
            match self.socket.listener.accept() {
                Ok((stream, _)) => self.waiting = Some(stream),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Next::Wait(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        log::debug!("cannot accept on the control socket, trying again: {error}");
                        return Next::Wait(Some(cx.now + RETRY));
                    }
                },
            }
        }
    }
}

/// Where the answer to one call goes. Dropped without an answer, it says that the call was cancelled.
pub struct Reply {
    id: Option<Id>,
    outbox: Shared<Outbox>,
    mailbox: Mailbox,
    connection: TaskId,
    active: Weak<Cell<Instant>>,
}

impl Reply {
    /// Answers.
    pub fn send<T: Serialize>(self, result: Result<T, ErrorObject>) {
        self.answer(result.and_then(|result| json_of(&result)), 0);
    }

    /// Answers, and sends descriptors along.
    pub fn send_with<T: Serialize>(self, result: &T, descriptors: Vec<OwnedFd>) {
        self.outbox.borrow_mut().descriptors = descriptors;
        self.answer(json_of(result), 0);
    }

    /// Who asks.
    #[must_use]
    pub fn line(&self) -> Line {
        Line {
            connection: self.connection,
            active: Weak::clone(&self.active),
        }
    }

    /// Answers with a list from which so many were left out.
    pub fn send_part<T: Serialize>(self, list: &[T], left_out: u64) {
        self.answer(json_of(list), left_out);
    }

    /// Once for all kinds of answers.
    fn answer(mut self, outcome: Result<Box<RawValue>, ErrorObject>, left_out: u64) {
        if let Some(id) = self.id.take() {
            self.put(Response {
                id,
                outcome,
                left_out,
            });
        }
    }

    fn put(&self, response: Response) {
        let mut outbox = self.outbox.borrow_mut();
        outbox
            .bytes
            .extend_from_slice(response.to_line().as_bytes());
        outbox.owed = false;
        self.mailbox.wake(self.connection);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.put(Response::error(
                id,
                ErrorObject::new(ErrorCode::Cancelled, "cancelled by a later request"),
            ));
        }
    }
}

/// A connection to the control socket.
#[derive(Debug, Clone)]
pub struct Line {
    connection: TaskId,
    /// Gone with the connection.
    active: Weak<Cell<Instant>>,
}

impl Line {
    /// Whether nobody has hung up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.active.strong_count() > 0
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        self.connection == other.connection
    }
}

#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// To go with the first of them.
    descriptors: Vec<OwnedFd>,
    /// An answer is under way.
    owed: bool,
}

struct Connection {
    stream: UnixStream,
    handler: Handler,
    caller: Caller,
    inbox: Vec<u8>,
    outbox: Shared<Outbox>,
    reading: Reading,
    /// When something last moved.
    active: Rc<Cell<Instant>>,
    watched: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Allowed,
    Stranger,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    /// The caller has ended its side, or is not listened to any more.
    Over,
}

impl Connection {
    fn new(stream: UnixStream, handler: Handler, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let caller = if may_control(&stream)? {
            Caller::Allowed
        } else {
            Caller::Stranger
        };
        Ok(Self {
            stream,
            handler,
            caller,
            inbox: Vec::new(),
            outbox: Shared::new(RefCell::default()),
            reading: Reading::Open,
            active: Rc::new(Cell::new(now)),
            watched: false,
        })
    }

    /// Refuses what can't be answered, and listens no more.
    fn hang_up(&mut self, code: ErrorCode, why: &str) {
        let line = Response::error(Id::Null, ErrorObject::new(code, why)).to_line();
        self.outbox
            .borrow_mut()
            .bytes
            .extend_from_slice(line.as_bytes());
        self.reading = Reading::Over;
        self.inbox = Vec::new();
    }

    /// Whether everything was written.
    fn write(&mut self, now: Instant) -> io::Result<bool> {
        let mut outbox = self.outbox.borrow_mut();
        while !outbox.bytes.is_empty() {
            let written = match outbox.descriptors.is_empty() {
                true => (&self.stream).write(&outbox.bytes),
                false => descriptors::send(&self.stream, &outbox.bytes, &outbox.descriptors),
            };
            match written {
                Ok(count) => {
                    outbox.descriptors.clear();
                    drop(outbox.bytes.drain(..count));
                    self.active.set(now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        outbox.bytes = Vec::new();
        Ok(true)
    }

    /// Reads until a whole line is there; whether one is.
    fn read(&mut self, now: Instant) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        while self.reading == Reading::Open && !self.inbox.contains(&b'\n') {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => self.reading = Reading::Over,
                Ok(count) => {
                    self.active.set(now);
                    self.inbox
                        .extend_from_slice(buffer.get(..count).unwrap_or_default());
                    let line = self
                        .inbox
                        .iter()
                        .position(|byte| *byte == b'\n')
                        .unwrap_or(self.inbox.len());
                    if line > MAX_REQUEST {
                        self.hang_up(
                            ErrorCode::InvalidRequest,
                            "the line is longer than a request can be (64 KiB)",
                        );
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(!self.inbox.is_empty())
    }

    fn next_line(&mut self) -> Vec<u8> {
        let end = self
            .inbox
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(self.inbox.len(), |at| at + 1);
        self.inbox.drain(..end).collect()
    }

    fn answer(&mut self, line: &[u8], cx: &mut Cx<'_>) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match Request::decode(line) {
            Ok(Request { id, call }) => {
                // Without what it is called with: a remote may have a password.
                log::trace!("control: {:?}", call.method());
                self.outbox.borrow_mut().owed = true;
                let reply = Reply {
                    id: Some(id),
                    outbox: Shared::clone(&self.outbox),
                    mailbox: cx.mailbox(),
                    connection: cx.id(),
                    active: Rc::downgrade(&self.active),
                };
                (self.handler)(call, reply, cx);
            }
            Err(response) => self
                .outbox
                .borrow_mut()
                .bytes
                .extend_from_slice(response.to_line().as_bytes()),
        }
    }

    fn advance(&mut self, cx: &mut Cx<'_>) -> io::Result<Next> {
        for _ in 0..REQUESTS_A_TURN {
            let written = self.write(cx.now)?;
            let owed = self.outbox.borrow().owed;
            if !written || owed {
                let limit = if owed { ANSWER_LIMIT } else { WRITE_LIMIT };
                let until = self.active.get() + limit;
                return Ok(if cx.now >= until {
                    Next::Done
                } else {
                    Next::Wait(Some(until))
                });
            }
            if !self.read(cx.now)? {
                if !self.outbox.borrow().bytes.is_empty() {
                    // What was read was refused: that is to be told before the end.
                    continue;
                }
                let until = self.active.get() + IDLE_LIMIT;
                let over = self.reading == Reading::Over || cx.now >= until;
                return Ok(if over {
                    Next::Done
                } else {
                    Next::Wait(Some(until))
                });
            }
            let line = self.next_line();
            self.answer(&line, cx);
        }
        Ok(Next::Again)
    }
}

impl Task for Connection {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            if let Err(error) = cx.watch(self.stream.as_fd(), Want::READ_WRITE) {
                log::debug!("control connection: {error}");
                return Next::Done;
            }
            self.watched = true;
            if self.caller == Caller::Stranger {
                log::warn!("control: refused a caller of another user");
                self.hang_up(
                    ErrorCode::NotPermitted,
                    "only root and the user who runs sockhop may do this",
                );
            }
        }
        self.advance(cx).unwrap_or_else(|error| {
            log::debug!("control connection: {error}");
            Next::Done
        })
    }
}

/// The caller must be root or the same user.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn may_control(stream: &UnixStream) -> io::Result<bool> {
    let caller = rustix::net::sockopt::socket_peercred(stream)?.uid;
    Ok(caller.is_root() || caller == rustix::process::geteuid())
}

/// Here only the socket's mode keeps others out.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn may_control(_stream: &UnixStream) -> io::Result<bool> {
    Ok(true)
}

/// The longest request line; ours are under 400 bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Control connections at once; people and their scripts need a few. Beyond, the longest idle one makes room: those
/// that a script forgot to close must not keep the next caller waiting.
const MAX_CONNECTIONS: usize = 32;

/// A connection that has been idle this long makes room for another: a caller says at once what it wants.
const GIVES_WAY: Duration = Duration::from_millis(500);

/// Requests of one connection that are answered before others get their turn.
const REQUESTS_A_TURN: usize = 16;

/// A caller that stops reading its answer is dropped after this long.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Longer than any race or look-up takes.
const ANSWER_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A caller that says nothing is dropped after this long.
const IDLE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// After the system or the limit refused a connection.
const RETRY: Duration = Duration::from_millis(200);
