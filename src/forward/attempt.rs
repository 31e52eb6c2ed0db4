//! One attempt at a remote: connecting, the client's first bytes, the remote's first answer.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::route::{Awaited, DialFailure, Patience};
use crate::engine::TurnContext;
use crate::net::read_some;

/// What a client's first byte says that it speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Socks,
    Other,
}

/// One candidate, and the client's first bytes on the way to it.
pub(super) struct Attempt {
    pub(super) remote: SocketAddr,
    pub(super) socket: Socket,
    /// Of the kept bytes.
    pub(super) sent: usize,
    pub(super) connected: bool,
    pub(super) since: Instant,
    /// For the connect, and for the answer once the client has said enough to get one.
    limit: Duration,
    until: Instant,
}

/// How far an attempt has come.
pub(super) enum Advance {
    Wait,
    ClientLeft,
    /// From here on bytes are only passed on. The answer is what was read of the remote so far.
    Relay {
        answer: Vec<u8>,
    },
    Failed(DialFailure),
}

impl Attempt {
    /// An attempt over a socket that is being connected. `limit` is for the connect and for the answer.
    pub(super) fn new(remote: SocketAddr, socket: Socket, limit: Duration, now: Instant) -> Self {
        Self {
            remote,
            socket,
            sent: 0,
            connected: false,
            since: now,
            limit,
            until: now + limit,
        }
    }

    /// Sends, reads the remote's first answer, reads more of the client's first bytes.
    pub(super) fn advance(
        &mut self,
        client: &Socket,
        kept: &mut Vec<u8>,
        speaks: Speaks,
        cx: &mut TurnContext<'_>,
    ) -> Advance {
        loop {
            match self.send(kept) {
                Ok(()) => {}
                Err(error) if self.connected => {
                    return Advance::Failed(DialFailure::Reset(Awaited::First, error));
                }
                Err(error) => return Advance::Failed(DialFailure::Connect(error)),
            }
            let sent = self.connected && self.sent == kept.len();
            if sent && speaks == Speaks::Other {
                // Whatever the remote does from here on, its end included, is for the client.
                return Advance::Relay { answer: Vec::new() };
            }
            if self.connected {
                match read_some(&self.socket, cx.buffer_up_to(ANSWER)) {
                    Ok(Some([])) => {
                        return Advance::Failed(DialFailure::ClosedEarly(Awaited::First));
                    }
                    Ok(Some(answer)) => {
                        return Advance::Relay {
                            answer: answer.to_vec(),
                        };
                    }
                    Ok(None) => {}
                    Err(error) => {
                        return Advance::Failed(DialFailure::Reset(Awaited::First, error));
                    }
                }
                if sent && kept.len() >= KEPT {
                    return Advance::Relay { answer: Vec::new() };
                }
            }
            if !listens(speaks, kept) {
                // What the client sends waits in the kernel.
                return Advance::Wait;
            }
            match read_some(client, cx.buffer_up_to(KEPT.saturating_sub(kept.len()))) {
                // A SOCKS client does not end its side before it has an answer.
                Ok(Some([])) | Err(_) => return Advance::ClientLeft,
                Ok(Some(bytes)) => {
                    kept.extend_from_slice(bytes);
                    if self.connected {
                        // Only now there may be something to answer.
                        self.until = cx.now + self.limit;
                    }
                }
                Ok(None) => return Advance::Wait,
            }
        }
    }

    /// Sends what can be sent of the kept bytes. That the connect has ended shows in the first write that is taken.
    fn send(&mut self, kept: &[u8]) -> io::Result<()> {
        while let Some(rest) = kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match (&self.socket).write(rest) {
                Ok(count) => {
                    self.connected = true;
                    self.sent += count;
                }
                Err(error) => {
                    return match error.kind() {
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::WouldBlock => Ok(()),
                        io::ErrorKind::NotConnected if !self.connected => Ok(()),
                        _ => Err(error),
                    };
                }
            }
        }
        Ok(())
    }

    /// Silence counts against the remote only where it owes an answer. In SOCKS 4 the first one comes when it has
    /// reached the target, which takes as long as it takes; in SOCKS 5 it owes one for a whole greeting.
    pub(super) fn deadline(&self, kept: &[u8], patience: Patience) -> Option<Instant> {
        match (kept, patience) {
            _ if !self.connected => Some(self.until),
            ([4, ..], _) => None,
            _ if says_half_a_greeting(kept) => Some(self.since + FIRST_BYTES_LIMIT),
            (_, Patience::Limited) => Some(self.until),
            (_, Patience::Unlimited) => None,
        }
    }

    pub(super) fn is_late(&self, now: Instant, kept: &[u8], patience: Patience) -> bool {
        self.deadline(kept, patience)
            .is_some_and(|until| now >= until)
    }
}

/// Whether the first answer shows that this is not, or not any more, a SOCKS 5 proxy that takes this client: it speaks
/// something else, or accepts no method though "no authentication" was offered (RFC 1928 §3).
pub(super) fn is_no_proxy(kept: &[u8], answer: &[u8]) -> bool {
    match (kept, answer) {
        (_, []) => false,
        ([5, count, methods @ ..], [5, 0xFF, ..]) => methods
            .iter()
            .take(usize::from(*count))
            .any(|method| *method == 0),
        ([5, ..], [version, ..]) => *version != 5,
        _ => false,
    }
}

/// Whether a SOCKS 5 client has yet to send the rest of its greeting (RFC 1928 §3).
pub(super) fn says_half_a_greeting(kept: &[u8]) -> bool {
    match kept {
        [5] => true,
        [5, count, methods @ ..] => methods.len() < usize::from(*count),
        _ => false,
    }
}

/// Whether more of the client's first bytes are read before the remote has answered.
pub(super) fn listens(speaks: Speaks, kept: &[u8]) -> bool {
    speaks == Speaks::Socks && kept.len() < KEPT
}

/// What is kept of a client's first bytes: a SOCKS handshake fits in (greeting 257, user and password 513, request
/// 262 bytes at most), a flood does not.
pub(super) const KEPT: usize = 1024;

/// What is read of a remote's first answer at once.
const ANSWER: usize = 4096;

/// A client that says nothing, or half a greeting: browsers open connections ahead and use them within seconds.
pub(super) const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::engine::Ready;
    use crate::net::start_connect;

    /// Some servers end their side first and then take what comes.
    #[test]
    fn plain_remote_that_ends_its_side_at_once_still_gets_the_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap();
        let socket = start_connect(remote).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
        let client = Socket::from(TcpStream::connect(remote).unwrap());
        let now = Instant::now();
        let mut attempt = Attempt::new(remote, socket, Duration::ZERO, now);
        let mut buffer = Vec::new();
        let mut cx = TurnContext::new(now, Ready::ALL, &mut buffer);
        let advance = attempt.advance(&client, &mut b"GET /".to_vec(), Speaks::Other, &mut cx);
        assert!(matches!(advance, Advance::Relay { answer } if answer.is_empty()));
        assert_eq!(attempt.sent, 5);
    }
}
