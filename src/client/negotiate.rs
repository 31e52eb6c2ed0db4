//! The driver of a handshake: read, feed, write.

use std::error::Error;
use std::fmt;
use std::io::{self, Read, Write};

use crate::handshake::client::Phase;
use crate::handshake::{Client, HandshakeError, Outcome};

/// Carries a handshake over a blocking stream of any kind, to its next outcome. Reads not a byte more than belongs to it.
///
/// A BIND has two outcomes: the second call with the same handshake waits for the second.
///
/// Time limits are the stream's own: a read or write that fails with [`io::ErrorKind::TimedOut`] or
/// [`io::ErrorKind::WouldBlock`] ends it with [`NegotiationError::TimedOut`].
///
/// # Errors
/// The stream is of no use afterwards.
pub fn negotiate(
    stream: &mut (impl Read + Write),
    handshake: &mut Client,
) -> Result<Outcome, NegotiationError> {
    let mut unsent = Vec::new();
    handshake.start(&mut unsent);
    drive(stream, handshake, &mut unsent)
}

/// A handshake that [`drive`] can carry.
pub(super) trait Machine {
    /// How far it got.
    type Outcome;
    /// What it waits for.
    type Phase;
    /// Why it got no further.
    type Error;

    fn phase(&self) -> Self::Phase;
    /// The most that may be read now; 0 when nothing is awaited.
    fn wanted(&self) -> usize;
    /// Takes all of `input`, and appends what is to be sent.
    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Self::Error>;
    fn outcome(&self) -> Option<Self::Outcome>;
    /// The error if the proxy closes now.
    fn closed(&self) -> Self::Error;
}

/// To the next outcome; `unsent` goes first, and is empty afterwards.
pub(super) fn drive<M: Machine>(
    stream: &mut (impl Read + Write),
    handshake: &mut M,
    unsent: &mut Vec<u8>,
) -> Result<M::Outcome, NegotiationError<M::Error, M::Phase>> {
    let mut buffer = [0; BUFFER];
    let mut fed = false;
    loop {
        let phase = handshake.phase();
        let sent = stream.write_all(unsent).and_then(|()| stream.flush());
        if let Err(error) = &sent
            && is_timeout(error)
        {
            return Err(NegotiationError::TimedOut(phase));
        }
        unsent.clear();
        let wanted = handshake.wanted().min(buffer.len());
        // An outcome that was there before may be followed by another one.
        if let Some(outcome) = handshake.outcome()
            && (fed || wanted == 0)
        {
            return match sent {
                Ok(()) => Ok(outcome),
                Err(error) => Err(NegotiationError::Broken(phase, error)),
            };
        }
        let Some(room) = buffer.get_mut(..wanted).filter(|room| !room.is_empty()) else {
            return Err(NegotiationError::Handshake(handshake.closed()));
        };
        // Also after a failed write: a proxy that closed because of what it thinks of us has said so before.
        let count = match (read(stream, room), sent) {
            (Ok(0), Ok(())) => return Err(NegotiationError::Handshake(handshake.closed())),
            (Err(error), Ok(())) if is_timeout(&error) => {
                return Err(NegotiationError::TimedOut(phase));
            }
            (Err(error), Ok(())) | (Ok(0) | Err(_), Err(error)) => {
                return Err(NegotiationError::Broken(phase, error));
            }
            (Ok(count), _) => count,
        };
        let input = buffer.get(..count).unwrap_or_default();
        handshake
            .feed(input, unsent)
            .map_err(NegotiationError::Handshake)?;
        fed = true;
    }
}

impl Machine for Client {
    type Outcome = Outcome;
    type Phase = Phase;
    type Error = HandshakeError;

    fn phase(&self) -> Phase {
        self.phase()
    }

    fn wanted(&self) -> usize {
        self.wanted()
    }

    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        self.feed(input, out).map(drop)
    }

    fn outcome(&self) -> Option<Outcome> {
        self.outcome().cloned()
    }

    fn closed(&self) -> HandshakeError {
        self.closed()
    }
}

/// Why a handshake over a stream had no outcome.
#[derive(Debug)]
pub enum NegotiationError<E = HandshakeError, P = Phase> {
    /// What the proxy said, or that it closed.
    Handshake(E),
    /// The stream's time limit passed while this was awaited.
    TimedOut(P),
    /// The stream failed while this was awaited.
    Broken(P, io::Error),
}

impl<E: fmt::Display, P: fmt::Display> fmt::Display for NegotiationError<E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(error) => error.fmt(f),
            Self::TimedOut(phase) => write!(f, "timed out waiting for the {phase}"),
            Self::Broken(phase, _) => write!(f, "connection lost waiting for the {phase}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display, P: fmt::Debug + fmt::Display> Error for NegotiationError<E, P> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Handshake(_) | Self::TimedOut(_) => None,
            Self::Broken(_, error) => Some(error),
        }
    }
}

fn read(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// The longest message of a proxy has 262 bytes.
const BUFFER: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Goal;
    use crate::wire::BoundAddress;

    /// Answers from a list of reads, keeps what was written.
    #[derive(Default)]
    struct Script {
        reads: Vec<io::Result<Vec<u8>>>,
        written: Vec<u8>,
        write_error: Option<io::ErrorKind>,
    }

    impl Script {
        fn new(reads: impl IntoIterator<Item = io::Result<Vec<u8>>>) -> Self {
            let mut reads: Vec<_> = reads.into_iter().collect();
            reads.reverse();
            Self {
                reads,
                ..Self::default()
            }
        }
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut bytes = match self.reads.pop() {
                None => return Ok(0),
                Some(read) => read?,
            };
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            bytes.drain(..count);
            if !bytes.is_empty() {
                self.reads.push(Ok(bytes));
            }
            Ok(count)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(kind) = self.write_error {
                return Err(kind.into());
            }
            self.written.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn client() -> Client {
        Client::new(Goal::Connect("192.0.2.1:80".parse().unwrap()), None)
    }

    const REPLY: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

    #[test]
    fn any_stream_carries_it_and_keeps_what_follows() {
        let interrupted = || Err(io::ErrorKind::Interrupted.into());
        let reads = [
            interrupted(),
            Ok(vec![5, 0]),
            Ok([&REPLY[..], b"payload"].concat()),
        ];
        let mut stream = Script::new(reads);
        let outcome = negotiate(&mut stream, &mut client()).unwrap();
        assert_eq!(outcome, Outcome::Done(BoundAddress::UNSPECIFIED));
        assert_eq!(stream.written, b"\x05\x01\0\x05\x01\0\x01\xc0\0\x02\x01\0P");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "payload");
    }

    #[test]
    fn single_bytes_are_enough() {
        let answers = [&[5, 0], &REPLY[..]].concat();
        let mut stream = Script::new(answers.iter().map(|byte| Ok(vec![*byte])));
        assert!(negotiate(&mut stream, &mut client()).is_ok());
    }

    #[test]
    fn bind_takes_two_calls() {
        let mut second = REPLY;
        second[9] = 7;
        let reads = [Ok(vec![5, 0]), Ok([REPLY, second].concat())];
        let mut stream = Script::new(reads);
        let mut bind = Client::new(Goal::Bind("192.0.2.1:80".parse().unwrap()), None);
        let first = negotiate(&mut stream, &mut bind).unwrap();
        assert!(matches!(first, Outcome::Listening(_)), "{first:?}");
        let second = negotiate(&mut stream, &mut bind).unwrap();
        assert!(matches!(&second, Outcome::Accepted(bound) if bound.port() == 7));
        assert_eq!(negotiate(&mut stream, &mut bind).unwrap(), second);
    }

    #[test]
    fn a_verdict_that_came_before_a_failed_write_counts() {
        let mut stream = Script::new([Ok(b"HTTP/1.1 400 Bad Request\r\n".to_vec())]);
        stream.write_error = Some(io::ErrorKind::BrokenPipe);
        let error = negotiate(&mut stream, &mut client()).unwrap_err();
        assert_eq!(error.to_string(), "sent \"HTTP/1.1\"");
        let mut stream = Script::new([]);
        stream.write_error = Some(io::ErrorKind::BrokenPipe);
        let error = negotiate(&mut stream, &mut client()).unwrap_err();
        assert!(matches!(
            error,
            NegotiationError::Broken(Phase::Method, error) if error.kind() == io::ErrorKind::BrokenPipe
        ));
    }

    #[test]
    fn time_limits_and_ends_of_the_stream_are_told_apart() {
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut] {
            let mut stream = Script::new([Ok(vec![5, 0]), Err(kind.into())]);
            let error = negotiate(&mut stream, &mut client()).unwrap_err();
            assert!(matches!(error, NegotiationError::TimedOut(Phase::Reply)));
        }
        let mut stream = Script::new([Ok(vec![5])]);
        let error = negotiate(&mut stream, &mut client()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "closed after 1 byte of the answer to the greeting"
        );
        let mut stream = Script::new([Err(io::ErrorKind::ConnectionReset.into())]);
        let error = negotiate(&mut stream, &mut client()).unwrap_err();
        assert!(matches!(error, NegotiationError::Broken(Phase::Method, _)));
    }
}
