//! A connection on which nothing is said after the reply, but with which something ends: an association of SOCKS 5, or a port
//! with a backlog.

use std::os::fd::AsFd as _;

use socket2::Socket;

use crate::engine::{Interests, Key, TurnContext, Want};
use crate::net::{read_some, write_all_now};

/// The connection that the request was made on.
pub struct Control {
    socket: Socket,
    key: Key,
    /// What of the reply could not be sent yet.
    unsent: Vec<u8>,
}

/// Why it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The other side closed.
    Closed,
    /// The connection broke.
    Broken,
}

impl Control {
    /// It has this key. `unsent` is the reply, where it is ours to send.
    #[must_use]
    pub const fn new(socket: Socket, key: Key, unsent: Vec<u8>) -> Self {
        Self {
            socket,
            key,
            unsent,
        }
    }

    /// Drops what the other side says; whether nothing is left to read.
    ///
    /// # Errors
    /// It is over, which ends the association.
    pub fn turn(&mut self, cx: &mut TurnContext<'_>) -> Result<bool, Gone> {
        if !cx.ready.has(self.key) {
            return Ok(true);
        }
        if write_all_now(&self.socket, &mut self.unsent).is_err() {
            return Err(Gone::Broken);
        }
        let hung_up = cx.ready.hung_up(self.key);
        for _ in 0..READS_A_TURN {
            match read_some(&self.socket, cx.buffer_up_to(DISCARDED)) {
                Ok(Some([])) => return Err(Gone::Closed),
                Ok(Some(_)) => {}
                Ok(None) if hung_up => return Err(Gone::Broken),
                Ok(None) => return Ok(true),
                Err(_) => return Err(Gone::Broken),
            }
        }
        Ok(false)
    }

    /// The descriptor.
    pub fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = Want {
            read: true,
            write: !self.unsent.is_empty(),
        };
        interests.watch(self.key, self.socket.as_fd(), want);
    }
}

/// What comes is read in pieces of this size and dropped, that many of them at once.
const DISCARDED: usize = 4096;
const READS_A_TURN: usize = 16;
