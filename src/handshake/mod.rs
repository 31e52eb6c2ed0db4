//! Handshakes as pure state machines: received bytes in, bytes to send and an outcome out. No I/O, no clock.
//!
//! [`Client`] asks, [`Server`] answers. Both work the same way: the driver feeds what it has read, sends what the
//! machine appended, and looks at the outcome. Bytes may come in any portions. A machine keeps an incomplete
//! message itself, and never takes a byte that lies behind the handshake: `feed` returns how many it took, the
//! rest is the peer's payload. Time limits belong to the driver; `phase()` names what was waited for.
//!
//! A whole exchange, with the payload right behind the request:
//!
//! ```
//! use sockhop::handshake::{Client, Event, Goal, Outcome, Policy, Server};
//! use sockhop::wire::socks5::ReplyCode;
//!
//! let mut client = Client::new(Goal::Connect("example.com:80".parse()?), None);
//! let mut server = Server::new(Policy::default());
//!
//! let (mut up, mut down) = (Vec::new(), Vec::new());
//! client.start(&mut up);
//! assert_eq!(up, [5, 1, 0]);
//! server.feed(&up, &mut down)?;
//! assert_eq!(down, [5, 0]);
//!
//! up.clear();
//! client.feed(&down, &mut up)?;
//! up.extend(b"GET /");
//! let taken = server.feed(&up, &mut down)?;
//! assert_eq!(up[taken..], *b"GET /");
//! let Some(Event::Request(request)) = server.event() else { panic!("no request") };
//! assert_eq!(request.address.to_string(), "example.com:80");
//!
//! down.clear();
//! server.reply(ReplyCode::SUCCEEDED, "192.0.2.1:4000".parse()?, &mut down);
//! up.clear();
//! client.feed(&down, &mut up)?;
//! assert!(matches!(client.outcome(), Some(Outcome::Done(bound)) if bound.port() == 4000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What to read: RFC 1928, RFC 1929, the SOCKS4 and SOCKS4a notes; for the messages [`crate::wire`].

use crate::wire::DecodeError;

pub mod client;
pub mod server;

pub use client::{Client, FirstBytes, Goal, HandshakeError, Outcome, Refusal};
pub use server::{Event, Methods, Policy, Server, ServerError};

/// The beginning of a message whose rest has not come yet.
#[derive(Clone, Debug, Default)]
struct Partial(Vec<u8>);

impl Partial {
    /// Decodes one message from what was kept and `input`, and moves `input` behind it. Without a whole message
    /// all of `input` is kept.
    ///
    /// `limit` is the length of the longest message: longer input is not copied, and nobody can make us keep more.
    fn take<T>(
        &mut self,
        input: &mut &[u8],
        limit: usize,
        decode: impl FnOnce(&[u8]) -> Result<Option<(T, usize)>, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        let kept = self.0.len();
        let room = limit.saturating_sub(kept).min(input.len());
        let (head, behind) = input.split_at_checked(room).unwrap_or((input, &[]));
        let decoded = if kept == 0 {
            decode(head)?
        } else {
            self.0.extend(head);
            decode(&self.0)?
        };
        let Some((message, length)) = decoded else {
            if kept == 0 {
                self.0.extend(head);
            }
            *input = behind;
            return Ok(None);
        };
        let taken = length.saturating_sub(kept);
        *input = input.get(taken..).unwrap_or_default();
        self.0 = Vec::new();
        Ok(Some(message))
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}
