//! A client that has made its request and waits for the reply, or for the second one.

use std::os::fd::AsFd as _;
use std::time::Instant;

use socket2::Socket;

use super::CLIENT;
use super::answering::Answering;
#[cfg(feature = "socks6")]
use super::answering::Stack;
use crate::engine::{Interests, TurnContext, Want};
use crate::net::{read_some, write_all_now};
use crate::wire::socks5::Command;

/// A client whose destination is looked up, connected to or waited for.
pub(super) struct Pending {
    pub(super) client: Socket,
    pub(super) answering: Answering,
    /// What the request wants of sockets.
    #[cfg(feature = "socks6")]
    pub(super) stack: Stack,
    pub(super) unsent: Vec<u8>,
    /// Came behind the request.
    pub(super) payload: Vec<u8>,
    /// How many bytes of that are on their way already.
    pub(super) sent: usize,
    /// For the reply.
    pub(super) until: Instant,
    half_closed: bool,
}

impl Pending {
    /// A client that has an answer until then. What it has sent behind its request is the beginning of the `payload`.
    pub(super) fn new(
        client: Socket,
        answering: Answering,
        unsent: Vec<u8>,
        payload: Vec<u8>,
        until: Instant,
    ) -> Self {
        Self {
            client,
            answering,
            #[cfg(feature = "socks6")]
            stack: None,
            unsent,
            payload,
            sent: 0,
            until,
            half_closed: false,
        }
    }

    /// Whether it is a BIND of an older version.
    pub(super) fn is_bind(&self) -> bool {
        let request = self.answering.request();
        request.is_some_and(|request| request.command == Command::Bind)
    }

    /// Sends what is unsent and takes what the client sends meanwhile; whether it has left. One that ends its side without having sent any payload
    /// has: what could it still want? With payload it may wait for the answer to that.
    pub(super) fn has_left(&mut self, cx: &mut TurnContext<'_>) -> bool {
        if write_all_now(&self.client, &mut self.unsent).is_err() {
            return true;
        }
        while self.listens() && cx.ready.has(CLIENT) {
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

/// A client that sends more before it has the reply waits. Twice that is kept at most, and the initial data of SOCKS 6 (16 KiB)
/// where they came before a method's messages.
pub(super) const MOST_PAYLOAD: usize = 4096;
