//! A client that has made its request and waits for the reply, or for the second one.

use std::os::fd::AsFd as _;
use std::time::Instant;

use socket2::Socket;

use super::CLIENT;
use super::opening::Opening;
use crate::engine::{Interests, TurnContext, Want};
use crate::handshake::Server;
use crate::net::{read_some, write_all_now};

/// A client whose destination is looked up, connected to or waited for.
pub(super) struct Pending {
    pub(super) client: Socket,
    pub(super) server: Server,
    pub(super) unsent: Vec<u8>,
    /// Came behind the request.
    pub(super) payload: Vec<u8>,
    /// For the reply.
    pub(super) until: Instant,
    half_closed: bool,
}

impl Pending {
    pub(super) fn new(opening: Opening, until: Instant) -> Self {
        Self {
            client: opening.client,
            server: opening.server,
            unsent: opening.unsent,
            payload: opening.unread,
            until,
            half_closed: false,
        }
    }

    /// Sends what is unsent and takes what the client sends meanwhile; whether it has left. One that ends its side without having sent any payload
    /// has: what could it still want? With payload it may wait for the answer to that.
    pub(super) fn has_left(&mut self, cx: &mut TurnContext<'_>) -> bool {
        if write_all_now(&self.client, &mut self.unsent).is_err() {
            return true;
        }
        while self.listens() {
            match read_some(&self.client, cx.buffer_up_to(MOST_PAYLOAD)) {
                Ok(Some([])) => {
                    self.half_closed = true;
                    return self.payload.is_empty();
                }
                Ok(Some(bytes)) => self.payload.extend_from_slice(bytes),
                Ok(None) => break,
                Err(_) => return true,
            }
        }
        cx.ready.hung_up(CLIENT)
    }

    fn listens(&self) -> bool {
        !self.half_closed && self.payload.len() < MOST_PAYLOAD
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = Want {
            read: self.listens(),
            write: !self.unsent.is_empty(),
        };
        interests.watch(CLIENT, self.client.as_fd(), want);
    }
}

/// A client that sends more before it has the reply waits. Twice that is kept at most.
const MOST_PAYLOAD: usize = 4096;
