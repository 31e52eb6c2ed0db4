//! Asking a running forwarder over its control socket, with a time limit for everything.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::descriptors;
use super::messages::{Call, ErrorObject, Id, MAX_LINE, NotAnAnswer, Request, Response};
use super::reading::Readable;

/// How long an answer may take unless the caller says otherwise: longer than any race that is under way.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer ones are taken as this, so that adding one to the time cannot overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection to a forwarder's control socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    timeout: Duration,
    next_id: u32,
}

impl Client {
    /// Connects to the socket at `path`; `timeout` is for connecting, and then for each call as a whole.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let timeout = timeout.min(MAX_TIMEOUT);
        let failed = |cause| ClientError::connect(path, cause);
        let address = SockAddr::unix(path).map_err(failed)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // Linux answers EAGAIN at once when the listener's queue is full, so this does not wait there.
        socket.connect_timeout(&address, timeout).map_err(failed)?;
        Ok(Self {
            stream: socket.into(),
            path: path.to_owned(),
            timeout,
            next_id: 1,
        })
    }

    /// Asks, and waits for the answer.
    pub fn call(&mut self, call: &Call) -> Result<Answer, ClientError> {
        self.call_for(call, &mut Vec::new())
    }

    /// The same with the descriptors that come along with the answer.
    pub fn call_for(
        &mut self,
        call: &Call,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let id = Id::from(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let request = Request {
            id: id.clone(),
            call: call.clone(),
        };
        let line = self
            .send(request.to_line().as_bytes(), deadline)
            .and_then(|()| self.receive(deadline, descriptors))
            .map_err(|cause| self.failed(call, Problem::from(cause)))?;
        let response = Response::decode(&line)
            .map_err(|cause| self.failed(call, Problem::NotAnAnswer(cause)))?;
        match response.outcome {
            // An error without an id is about a request that could not be read: it can only be ours.
            Err(error) if response.id == id || response.id == Id::Null => {
                Err(self.failed(call, Problem::Refused(Box::new(error))))
            }
            Ok(result) if response.id == id => Ok(Answer {
                json: String::from(Box::<str>::from(result)),
                left_out: response.left_out,
                path: self.path.clone(),
            }),
            _ => Err(self.failed(call, Problem::NotAnAnswer(NotAnAnswer::Shape))),
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A server that refuses the caller answers and closes, perhaps before it has read: look for its answer.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One line without its line feed.
    fn receive(
        &mut self,
        deadline: Instant,
        descriptors: &mut Vec<OwnedFd>,
    ) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            let count = match descriptors::receive(&self.stream, &mut buffer, descriptors) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            match bytes.iter().position(|byte| *byte == b'\n') {
                // What follows the line is not ours to read: one request, one answer.
                Some(end) => {
                    line.extend_from_slice(bytes.get(..end).unwrap_or_default());
                    return Ok(line);
                }
                None => line.extend_from_slice(bytes),
            }
            if line.len() > MAX_LINE {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
    }

    fn failed(&self, call: &Call, problem: Problem) -> ClientError {
        ClientError {
            path: self.path.clone(),
            asked: Some(call.method()),
            timeout: self.timeout,
            problem,
        }
    }
}

/// The result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// As it came.
    pub json: String,
    /// How many entries are missing at the end of a list that would be too long.
    pub left_out: u64,
    path: PathBuf,
}

impl Answer {
    /// The result as what the call is documented to be answered with.
    pub fn decode<T: Readable>(&self) -> Result<T, ClientError> {
        T::read(&self.json).map_err(|cause| ClientError {
            path: self.path.clone(),
            asked: None,
            timeout: Duration::ZERO,
            problem: Problem::NotAnAnswer(NotAnAnswer::Json(cause)),
        })
    }
}

/// Why asking failed. The cause is in `source()`, what would help in [`ClientError::hint`].
#[derive(Debug)]
pub struct ClientError {
    path: PathBuf,
    asked: Option<&'static str>,
    timeout: Duration,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Connect(io::Error),
    Io(io::Error),
    TimedOut,
    Closed,
    TooLong,
    NotAnAnswer(NotAnAnswer),
    Refused(Box<ErrorObject>),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::WouldBlock | Kind::TimedOut => Self::TimedOut,
            Kind::UnexpectedEof | Kind::BrokenPipe | Kind::ConnectionReset => Self::Closed,
            Kind::FileTooLarge => Self::TooLong,
            _ => Self::Io(error),
        }
    }
}

impl ClientError {
    fn connect(path: &Path, cause: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            asked: None,
            timeout: Duration::ZERO,
            problem: Problem::Connect(cause),
        }
    }

    /// The coded error that the forwarder answered with, when it was that.
    pub fn refusal(&self) -> Option<&ErrorObject> {
        match &self.problem {
            Problem::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Whether nobody listens there.
    #[must_use]
    pub fn is_nobody_there(&self) -> bool {
        use io::ErrorKind as Kind;
        matches!(&self.problem, Problem::Connect(cause)
            if matches!(cause.kind(), Kind::NotFound | Kind::ConnectionRefused))
    }

    /// What would help, when that is known.
    pub fn hint(&self) -> Option<String> {
        use io::ErrorKind as Kind;
        match &self.problem {
            Problem::Connect(cause) => match cause.kind() {
                Kind::NotFound | Kind::ConnectionRefused => Some(
                    "is \"sockhop forward\" running? If its control socket is elsewhere, say --control PATH".to_owned(),
                ),
                Kind::PermissionDenied => Some(
                    "only root and the user that runs \"sockhop forward\" may control it".to_owned(),
                ),
                _ => None,
            },
            Problem::NotAnAnswer(_) | Problem::TooLong => {
                Some("is that the control socket of another program?".to_owned())
            }
            Problem::Refused(error) => error.hint().map(str::to_owned),
            Problem::TimedOut | Problem::Closed | Problem::Io(_) => None,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Problem::Refused(_) = self.problem {
            // The socket is not what is wrong, so the name of what was asked says more than its path.
            return f.write_str(self.asked.unwrap_or("control"));
        }
        write!(f, "control socket {}", self.path.display())?;
        match &self.problem {
            Problem::TimedOut => write!(
                f,
                ": no answer within {}",
                humantime::format_duration(self.timeout)
            ),
            Problem::Closed => f.write_str(": closed without an answer"),
            Problem::TooLong => write!(f, ": an answer longer than {MAX_LINE} bytes"),
            Problem::Connect(_)
            | Problem::Io(_)
            | Problem::NotAnAnswer(_)
            | Problem::Refused(_) => Ok(()),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            Problem::Connect(cause) | Problem::Io(cause) => Some(cause),
            Problem::NotAnAnswer(cause) => Some(cause),
            Problem::Refused(cause) => Some(cause.as_ref()),
            Problem::TimedOut | Problem::Closed | Problem::TooLong => None,
        }
    }
}

/// The time left until `deadline`. Zero would mean no limit to the socket, so it is an error here.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::messages::{ErrorCode, Probing};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn connected() -> (tempfile::TempDir, Client, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::connect(&path, PATIENCE).unwrap();
        let (server, _) = listener.accept().unwrap();
        (dir, client, server)
    }

    #[test]
    fn a_refusal_before_the_request_is_read_is_still_told() {
        let (_dir, mut client, mut server) = connected();
        let refusal = ErrorObject::new(ErrorCode::NotPermitted, "not permitted");
        let line = Response::error(Id::Null, refusal.clone()).to_line();
        server.write_all(line.as_bytes()).unwrap();
        drop(server);
        let error = client.call(&Call::Status).expect_err("a refusal");
        assert_eq!(error.refusal(), Some(&refusal));
    }

    #[test]
    fn a_connection_serves_one_call_after_another() {
        let (_dir, mut client, mut server) = connected();
        for (id, probing) in [(1, true), (2, false)] {
            // The answer waits in the socket already, which saves a thread.
            let line = Response::result(Id::from(id), &Probing { probing }).to_line();
            server.write_all(line.as_bytes()).unwrap();
            let answer = client.call(&Call::Probing { run: probing }).unwrap();
            assert_eq!(answer.decode::<Probing>().unwrap(), Probing { probing });
        }
    }

    #[test]
    fn a_full_queue_of_callers_is_an_error_and_no_endless_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let mut waiting = Vec::new();
        let failed = loop {
            match Client::connect(&path, Duration::from_millis(50)) {
                Ok(client) => waiting.push(client),
                Err(error) => break error,
            }
            assert!(waiting.len() < 5000, "the queue has no end");
        };
        assert!(failed.to_string().starts_with("control socket"), "{failed}");
    }
}
