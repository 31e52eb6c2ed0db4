//! A page over HTTP: something to fetch through a proxy, and a peer that is none.

use std::time::{Duration, Instant};

use crate::engine::{Interests, Session, Turn, TurnContext, Want};
use crate::listen::Client;
use crate::net::{read_some, write_all_now};
use std::os::fd::AsFd as _;

/// Answers whatever is asked with one page, and a SOCKS greeting with an HTTP error.
pub(super) struct PageSession {
    client: Client,
    asked: Vec<u8>,
    unsent: Option<Vec<u8>>,
    until: Instant,
}

impl PageSession {
    pub(super) fn new(client: Client, now: Instant) -> Self {
        Self {
            client,
            asked: Vec::new(),
            unsent: None,
            until: now + LIMIT,
        }
    }

    fn answer(&self) -> Option<Vec<u8>> {
        if !self
            .asked
            .starts_with(b"GET ".get(..self.asked.len().min(4)).unwrap_or_default())
        {
            return Some(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec());
        }
        let whole =
            self.asked.windows(4).any(|end| end == b"\r\n\r\n") || self.asked.len() > LONGEST;
        whole.then(|| {
            let length = PAGE.len();
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{PAGE}")
                .into_bytes()
        })
    }
}

impl Session for PageSession {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        if cx.now >= self.until {
            return Turn::Done;
        }
        let socket = &self.client.socket;
        while self.unsent.is_none() {
            let mut buffer = [0; 512];
            match read_some(socket, &mut buffer) {
                Ok(Some([])) | Err(_) => return Turn::Done,
                Ok(Some(bytes)) => self.asked.extend_from_slice(bytes),
                Ok(None) => {
                    return Turn::Wait {
                        until: Some(self.until),
                    };
                }
            }
            self.unsent = self.answer();
        }
        let Some(unsent) = &mut self.unsent else {
            return Turn::Done;
        };
        match write_all_now(socket, unsent) {
            Ok(false) => Turn::Wait {
                until: Some(self.until),
            },
            Ok(true) | Err(_) => Turn::Done,
        }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = if self.unsent.is_some() {
            Want::WRITE
        } else {
            Want::READ
        };
        interests.watch(0, self.client.socket.as_fd(), want);
    }
}

const PAGE: &str = "Hello from the other side of the overlay.\n";

/// For the whole exchange.
const LIMIT: Duration = Duration::from_secs(10);

/// A longer request is answered without being read to its end.
const LONGEST: usize = 8 * 1024;
