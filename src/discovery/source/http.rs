//! Asking over HTTP/1.1: GET of JSON from a daemon of this machine (RFC 9110, RFC 9112).
//!
//! No redirects, no TLS, no compression: the APIs of overlay daemons have none of these. Everything that the other side
//! sends has a limit, and all of it together the refresh's deadline.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

use socket2::Socket;

use super::ask::{Patience, Stream, Trouble, connect};
use super::json::{Meet, Rest, walk};
use super::lines::MAX_BYTES;
use crate::api_address::ApiAddress;
use crate::resolver::Resolver;

/// Asks one daemon again and again, over one connection as long as it stays open.
pub(super) struct Http<'x, 'a> {
    /// Where it may be; the first one that listens is it.
    pub(super) addresses: &'x [ApiAddress],
    /// The `Host` header.
    pub(super) host: &'x str,
    pub(super) resolver: &'x Resolver,
    pub(super) patience: Patience<'a>,
    /// Open from the last request.
    pub(super) kept: Option<Connection>,
}

/// Why a request got no value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HttpError {
    /// Another status than 200.
    Status { path: String, code: u16 },
    /// Anything else.
    Trouble(Trouble),
}

impl HttpError {
    /// The status, if the daemon answered as HTTP wants it.
    pub(super) const fn status(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Trouble(_) => None,
        }
    }
}

impl From<HttpError> for Trouble {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Trouble(trouble) => trouble,
            HttpError::Status { .. } => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { path, code } => {
                write!(f, "{path}: status {code}")?;
                match code {
                    300..400 => f.write_str(", a redirect, which is not followed"),
                    _ => Ok(()),
                }
            }
            Self::Trouble(trouble) => trouble.fmt(f),
        }
    }
}

impl Http<'_, '_> {
    /// `GET path`, whose answer is a value in JSON; `meet` is told of what is in it; after an error that was only a part.
    pub(super) fn get(&mut self, path: &str, meet: Meet<'_>) -> Result<(), HttpError> {
        let (head, connection) = self.request(path)?;
        let failed = |text: String| HttpError::Trouble(Trouble::Failed(format!("{path}: {text}")));
        let mut body = Body {
            connection,
            patience: &mut self.patience,
            framing: head.framing,
        };
        if head.code != 200 {
            // A short answer is read, so that the next request can use the connection.
            let mut rest = [0; 1024];
            while head.keep
                && matches!(body.read(&mut rest), Ok(1..))
                && body.connection.total < MAX_UNREAD
            {}
            self.kept = head.keep.then(|| body.ended()).flatten();
            return Err(HttpError::Status {
                path: path.to_owned(),
                code: head.code,
            });
        }
        if head.is_html {
            return Err(failed("the answer is HTML, not JSON".to_owned()));
        }
        walk(&mut body, Rest::Blank, meet).map_err(failed)?;
        self.kept = head.keep.then(|| body.ended()).flatten();
        Ok(())
    }

    /// Sends a request and reads the head of its answer.
    fn request(&mut self, path: &str) -> Result<(Head, Connection), HttpError> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\n\r\n",
            self.host
        );
        if let Some(mut connection) = self.kept.take() {
            match connection.exchange(request.as_bytes(), &mut self.patience) {
                Ok(head) => return Ok((head, connection)),
                // It had closed a connection that nobody used; nothing is lost with a GET.
                Err(_) if connection.total == 0 && !self.patience.is_over() => {}
                Err(error) => return Err(self.failed(path, &error)),
            }
        }
        let (socket, _) = connect(self.addresses, self.resolver, &mut self.patience)
            .map_err(HttpError::Trouble)?;
        let mut connection = Connection::new(socket);
        match connection.exchange(request.as_bytes(), &mut self.patience) {
            Ok(head) => Ok((head, connection)),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    fn failed(&self, path: &str, error: &io::Error) -> HttpError {
        HttpError::Trouble(Trouble::Failed(format!("{path}: {error}")))
    }
}

/// What the head of an answer says.
struct Head {
    code: u16,
    framing: Framing,
    keep: bool,
    is_html: bool,
}

/// How the body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the connection.
    Close,
    /// In chunks: the next line is a size.
    ChunkSize,
    /// So many bytes of a chunk are left.
    ChunkData(u64),
    /// Behind a chunk's data.
    ChunkEnd,
    /// Behind the last chunk.
    Trailer,
    /// It has ended.
    Done,
}

/// A connection and what was received and not used.
pub(super) struct Connection {
    socket: Socket,
    received: Vec<u8>,
    /// Received for the present request, in all.
    total: usize,
}

impl Connection {
    const fn new(socket: Socket) -> Self {
        Self {
            socket,
            received: Vec::new(),
            total: 0,
        }
    }

    fn exchange(&mut self, request: &[u8], patience: &mut Patience<'_>) -> io::Result<Head> {
        self.total = 0;
        let socket = &self.socket;
        Stream { socket, patience }.write_all(request)?;
        loop {
            if let Some((head, length)) = parse_head(&self.received)? {
                self.received.drain(..length);
                return Ok(head);
            }
            if self.received.len() > MAX_HEAD {
                return Err(bad("the head of the answer is too long"));
            }
            if self.receive(patience)? == 0 {
                return Err(match self.received.is_empty() {
                    true => closed("closed without an answer"),
                    false => closed("closed in the middle of the answer"),
                });
            }
        }
    }

    /// Receives some more; 0 at the end.
    fn receive(&mut self, patience: &mut Patience<'_>) -> io::Result<usize> {
        let before = self.received.len();
        self.received.resize(before + AT_ONCE, 0);
        let room = self.received.get_mut(before..).unwrap_or_default();
        let socket = &self.socket;
        let result = Stream { socket, patience }.read(room);
        let count = *result.as_ref().unwrap_or(&0);
        self.received.truncate(before + count);
        self.total += count;
        if self.total > MAX_BYTES {
            return Err(bad("the answer is longer than 16 MiB"));
        }
        result
    }

    /// Moves what is there to `out`, at most `limit` bytes.
    fn hand_out(&mut self, out: &mut [u8], limit: u64) -> usize {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let count = self.received.len().min(out.len()).min(limit);
        for (to, from) in out.iter_mut().zip(self.received.drain(..count)) {
            *to = from;
        }
        count
    }
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(bad("the answer has too many headers"));
        }
        Err(_) => return Err(bad("the answer is not HTTP")),
    };
    let code = response.code.unwrap_or(0);
    let mut keep = response.version == Some(1);
    let mut is_html = false;
    let (mut chunked, mut size) = (false, None);
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let number = std::str::from_utf8(value)
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse::<u64>().ok());
            match (number, size) {
                (Some(number), None) => size = Some(number),
                (Some(number), Some(before)) if number == before => {}
                _ => return Err(bad("the answer has a bad Content-Length")),
            }
        } else if is("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(bad("the answer has a Transfer-Encoding other than chunked"));
            }
            chunked = true;
        } else if is("connection") {
            keep &= !value.eq_ignore_ascii_case(b"close");
        } else if is("content-type") {
            let start = value.get(..HTML.len()).unwrap_or_default();
            is_html = start.eq_ignore_ascii_case(HTML);
        }
    }
    let framing = match (code, chunked, size) {
        // An interim answer would be followed by the real one, which nobody asked for here.
        (100..200, ..) => return Err(bad("an interim answer")),
        (204 | 304, ..) => Framing::Done,
        (_, true, _) => Framing::ChunkSize,
        (_, false, Some(size)) if size > MAX_BYTES as u64 => {
            return Err(bad("the answer is longer than 16 MiB"));
        }
        (_, false, Some(size)) => Framing::Length(size),
        (_, false, None) => Framing::Close,
    };
    let head = Head {
        code,
        framing,
        keep: keep && framing != Framing::Close,
        is_html,
    };
    Ok(Some((head, length)))
}

/// The body of an answer, unframed.
struct Body<'x, 'a> {
    connection: Connection,
    patience: &'x mut Patience<'a>,
    framing: Framing,
}

impl Body<'_, '_> {
    /// The connection, if the body has been read to its end.
    fn ended(mut self) -> Option<Connection> {
        let is_ended = matches!(self.read(&mut [0]), Ok(0));
        (is_ended && self.connection.received.is_empty()).then_some(self.connection)
    }

    /// The next line, without its end.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let received = &mut self.connection.received;
            if let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                return Ok(received.drain(..=end).collect());
            }
            if received.len() > MAX_LINE {
                return Err(bad("a line between chunks is too long"));
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> io::Result<()> {
        match self.connection.receive(self.patience)? {
            0 => Err(closed("closed in the middle of the answer")),
            _ => Ok(()),
        }
    }
}

impl Read for Body<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            self.framing = match self.framing {
                Framing::Done | Framing::Length(0) => {
                    self.framing = Framing::Done;
                    return Ok(0);
                }
                Framing::Close => {
                    if self.connection.received.is_empty()
                        && self.connection.receive(self.patience)? == 0
                    {
                        self.framing = Framing::Done;
                        return Ok(0);
                    }
                    return Ok(self.connection.hand_out(out, u64::MAX));
                }
                Framing::Length(left) | Framing::ChunkData(left) if left > 0 => {
                    if self.connection.received.is_empty() {
                        self.more()?;
                    }
                    let count = self.connection.hand_out(out, left);
                    let left = left - count as u64;
                    self.framing = match self.framing {
                        Framing::Length(_) => Framing::Length(left),
                        _ => Framing::ChunkData(left),
                    };
                    return Ok(count);
                }
                Framing::Length(_) => Framing::Done,
                Framing::ChunkData(_) => Framing::ChunkEnd,
                Framing::ChunkSize => {
                    let line = self.line()?;
                    match httparse::parse_chunk_size(&line) {
                        Ok(httparse::Status::Complete((_, 0))) => Framing::Trailer,
                        Ok(httparse::Status::Complete((_, size))) => Framing::ChunkData(size),
                        _ => return Err(bad("a chunk has a bad size")),
                    }
                }
                Framing::ChunkEnd => match self.line()?.as_slice() {
                    b"\r\n" => Framing::ChunkSize,
                    _ => return Err(bad("a chunk is longer than its size")),
                },
                Framing::Trailer => match self.line()?.as_slice() {
                    b"\r\n" => Framing::Done,
                    _ => Framing::Trailer,
                },
            };
        }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn closed(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, what)
}

const HTML: &[u8] = b"text/html";

/// What is received with one call.
const AT_ONCE: usize = 8 * 1024;

/// Heads of the daemons that we ask have a few hundred bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// A chunk's size with extensions, or one trailer.
const MAX_LINE: usize = 1024;

/// A longer answer that is none is not read for the sake of its connection.
const MAX_UNREAD: usize = 32 * 1024;
