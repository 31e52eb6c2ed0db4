//! Telling a SOCKS client that there is no remote for it, in its own protocol.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::verdict::Refusal;

use crate::engine::{Turn, TurnContext, Want};
use crate::handshake::server::Phase;
use crate::handshake::{Methods, Policy, Server};
use crate::net::{read_some, write_all_now};
use crate::wire::socks5::{Method, MethodSelection, ReplyCode};

/// Reads a client's request, refuses it (RFC 1928 §6), and waits for the client to close.
pub(super) struct Decline {
    server: Server,
    code: ReplyCode,
    unsent: Vec<u8>,
    state: State,
    until: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitRequest,
    /// Everything is said; the client closes first, so that our close is not a reset that overtakes the reply.
    AwaitClose,
}

impl Decline {
    /// Starts with what the client has sent already, and leaves out as many bytes of the answers as it has heard.
    pub(super) fn new(already_read: &[u8], heard: usize, refusal: Refusal, now: Instant) -> Self {
        let mut decline = Self {
            server: Server::new(Policy {
                methods: Methods::Either,
                ..Policy::default()
            }),
            unsent: Vec::new(),
            code: ReplyCode::GENERAL_FAILURE,
            state: State::AwaitRequest,
            until: now + REQUEST_LIMIT,
        };
        match refusal {
            Refusal::Reply(_) | Refusal::Nobody => {
                if let Refusal::Reply(code) = refusal {
                    decline.code = code;
                }
                decline.feed(already_read, now);
                decline.unsent.drain(..heard.min(decline.unsent.len()));
            }
            Refusal::Method => {
                let method = Method::NONE_ACCEPTABLE;
                MethodSelection { method }.encode(&mut decline.unsent);
                decline.finish(now);
            }
        }
        decline
    }

    fn feed(&mut self, input: &[u8], now: Instant) {
        let failed = self
            .server
            .decline(input, self.code, &mut self.unsent)
            .is_err();
        if failed || self.server.phase() == Phase::Finished {
            self.finish(now);
        }
    }

    fn finish(&mut self, now: Instant) {
        self.state = State::AwaitClose;
        self.until = now + CLOSE_LIMIT;
    }

    pub(super) fn turn(&mut self, client: &Socket, cx: &mut TurnContext<'_>) -> Turn {
        for _ in 0..READS_A_TURN {
            match write_all_now(client, &mut self.unsent) {
                Ok(true) => {}
                Ok(false) => return self.wait(cx),
                Err(_) => return Turn::Done,
            }
            if self.state == State::AwaitClose {
                let _ = client.shutdown(Shutdown::Write);
            }
            let mut message = [0; Server::MAX_MESSAGE];
            match read_some(client, &mut message) {
                Ok(Some([])) | Err(_) => return Turn::Done,
                Ok(Some(_)) if cx.now >= self.until => return Turn::Done,
                Ok(Some(input)) if self.state == State::AwaitRequest => self.feed(input, cx.now),
                Ok(Some(_)) => {}
                Ok(None) => return self.wait(cx),
            }
        }
        Turn::Again
    }

    fn wait(&self, cx: &TurnContext<'_>) -> Turn {
        if cx.now >= self.until {
            Turn::Done
        } else {
            Turn::Wait {
                until: Some(self.until),
            }
        }
    }

    pub(super) fn want(&self) -> Want {
        Want {
            read: true,
            write: !self.unsent.is_empty(),
        }
    }
}

/// A client that never stops sending gets no more than that at once: no more than its request comes in.
const READS_A_TURN: usize = 16;

/// How long a client may take to send its request to a forwarder that can't serve it anyway.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take to close after the refusal.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::engine::Ready;

    /// The clock stands still during a turn, so a turn that lasts as long as the client sends has no time limit.
    #[test]
    fn client_that_never_stops_sending_gets_a_turn_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = Socket::from(listener.accept().unwrap().0);
        client.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let mut decline = Decline::new(
            &[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 80],
            0,
            Refusal::Reply(ReplyCode(1)),
            now,
        );
        let mut buffer = Vec::new();
        sender.write_all(&[0; 64 * 1024]).unwrap();
        poll(&mut [PollFd::new(&client, PollFlags::IN)], None).unwrap();
        let mut cx = TurnContext::new(now, Ready::ALL, &mut buffer);
        assert_eq!(decline.turn(&client, &mut cx), Turn::Again);
        let mut cx = TurnContext::new(now + CLOSE_LIMIT, Ready::ALL, &mut buffer);
        assert_eq!(decline.turn(&client, &mut cx), Turn::Done);
    }
}
