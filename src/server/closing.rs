//! The last stage of a client that was refused.

use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::CLIENT;
use crate::engine::{Interests, Turn, TurnContext, Want};
use crate::net::{read_some, write_all_now};

/// Sends what is left and waits for the client to close, so that our close is no reset that overtakes it.
pub(super) struct Closing {
    client: Socket,
    unsent: Vec<u8>,
    until: Instant,
}

impl Closing {
    pub(super) fn new(client: Socket, unsent: Vec<u8>, now: Instant) -> Self {
        Self {
            client,
            unsent,
            until: now + CLOSE_LIMIT,
        }
    }

    pub(super) fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        match write_all_now(&self.client, &mut self.unsent) {
            Ok(true) => {
                let _ = self.client.shutdown(Shutdown::Write);
            }
            Ok(false) => {}
            Err(_) => return Turn::Done,
        }
        let late = cx.now >= self.until;
        for _ in 0..READS_A_TURN {
            match read_some(&self.client, cx.buffer_up_to(DISCARDED)) {
                Ok(Some([])) | Err(_) => return Turn::Done,
                _ if late => return Turn::Done,
                Ok(Some(_)) => {}
                Ok(None) => {
                    let until = Some(self.until);
                    return Turn::Wait { until };
                }
            }
        }
        Turn::Again
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = Want {
            read: true,
            write: !self.unsent.is_empty(),
        };
        interests.watch(CLIENT, self.client.as_fd(), want);
    }
}

/// How long a client may take to close after a refusal.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What a refused client still sends is read in pieces of this size and dropped.
const DISCARDED: usize = 4096;

/// A refused client that never stops sending gets no more than that many of them at once.
const READS_A_TURN: usize = 16;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::engine::Ready;

    /// The clock stands still during a turn, so a turn that lasts as long as the client sends has no time limit.
    #[test]
    fn refused_client_that_never_stops_sending_gets_a_turn_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = Socket::from(listener.accept().unwrap().0);
        client.set_nonblocking(true).unwrap();
        sender.write_all(&[0; 256 * 1024]).unwrap();
        poll(&mut [PollFd::new(&client, PollFlags::IN)], None).unwrap();
        let now = Instant::now();
        let mut closing = Closing::new(client, Vec::new(), now);
        let mut buffer = Vec::new();
        let mut cx = TurnContext::new(now, Ready::ALL, &mut buffer);
        assert_eq!(closing.turn(&mut cx), Turn::Again);
        let mut cx = TurnContext::new(now + CLOSE_LIMIT, Ready::ALL, &mut buffer);
        assert_eq!(closing.turn(&mut cx), Turn::Done);
    }
}
