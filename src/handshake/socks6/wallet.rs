//! The client's side of sessions: one session and its tokens, shared by all requests to a proxy.
//!
//! What to read: "Session Options" and "Idempotence Options" in the draft.

use std::fmt;

use super::client::Client;
use super::tokens::Purse;
use crate::wire::socks6::{RequestOptions, SessionId, SessionUse, SessionVerdict, WindowSize};

/// A session with one proxy, for one user. Requests take from it what they need, and bring back what the proxy said.
///
/// ```
/// use sockhop::handshake::socks6::{Client, Spend, Wallet};
/// use sockhop::wire::socks6::{Command, Profile, Request, SessionUse};
///
/// let mut wallet = Wallet::new(None);
/// let mut request = Request::new(Command::NOOP, "0.0.0.0:0".parse()?);
/// let ticket = wallet.prepare(&mut request.options, Spend::No);
/// assert_eq!(request.options.session, SessionUse::Request);
/// let mut client = Client::new(request, Profile::DRAFT_12);
/// # client.start(&mut Vec::new());
/// client.feed(b"\x06\0\0\x08\0\x06\0\x08abcd")?;
/// wallet.settle(ticket, &client);
///
/// let mut next = Request::new(Command::CONNECT, "example.org:80".parse()?);
/// let _ticket = wallet.prepare(&mut next.options, Spend::No);
/// assert!(matches!(next.options.session, SessionUse::Resume(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Wallet {
    /// How many tokens to ask for, if any.
    wanted: Option<WindowSize>,
    held: Option<Held>,
    /// Whether a request for a session is under way: one is enough.
    opening: bool,
    /// Counts the sessions, so that what is said of an old one is not taken for the new one.
    generation: u64,
}

/// Whether a request is to be carried out at most once, which costs a token. For those whose first segment may be
/// repeated by somebody: with early data over TLS or TCP Fast Open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spend {
    /// It is, if there is a token.
    Yes,
    /// It need not be.
    No,
}

/// What a request has to bring back: give it to [`Wallet::settle`] also if the request failed.
#[derive(Debug)]
#[must_use = "a session that is being opened stays so until the ticket is settled"]
pub struct Ticket {
    part: Part,
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Outside,
    Opening,
    Inside,
}

struct Held {
    id: SessionId,
    purse: Option<Purse>,
}

impl Wallet {
    /// An empty one; with `wanted` it asks for a window of so many tokens.
    #[must_use]
    pub const fn new(wanted: Option<WindowSize>) -> Self {
        Self {
            wanted,
            held: None,
            opening: false,
            generation: 0,
        }
    }

    /// Puts the session into a request's options, and a token if one is to be spent and there is one. Inside a session
    /// the password is taken out, since no proxy looks at it. Without a session the request asks for one, unless another
    /// is doing so.
    pub fn prepare(&mut self, options: &mut RequestOptions, spend: Spend) -> Ticket {
        let part = match &mut self.held {
            Some(held) => {
                options.session = SessionUse::Resume(held.id.clone());
                options.password = None;
                match &mut held.purse {
                    Some(purse) if spend == Spend::Yes => options.token = purse.take(),
                    Some(_) => (),
                    None => options.window = self.wanted,
                }
                Part::Inside
            }
            None if self.opening => Part::Outside,
            None => {
                self.opening = true;
                options.session = SessionUse::Request;
                options.window = self.wanted;
                Part::Opening
            }
        };
        Ticket {
            part,
            generation: self.generation,
        }
    }

    /// Takes over what the proxy said to the request of the ticket, as far as `client` has come. Some proxies tell the id
    /// with the operation reply, so wait for that, or for the failure.
    ///
    /// Windows grow with every answer inside the session; nothing else is needed to refresh them.
    pub fn settle(&mut self, ticket: Ticket, client: &Client) {
        let window = client.auth_reply().and_then(|reply| reply.options.window);
        match ticket.part {
            Part::Outside => (),
            Part::Opening => {
                self.opening = false;
                if let Some(id) = client.session_id() {
                    self.generation += 1;
                    self.held = Some(Held {
                        id: id.clone(),
                        purse: window.map(Purse::new),
                    });
                }
            }
            Part::Inside if ticket.generation != self.generation => (),
            Part::Inside => {
                let said = client.auth_reply().map(|reply| &reply.options);
                if said.is_some_and(|said| said.session == Some(SessionVerdict::Invalid)) {
                    self.forget();
                }
                if let (Some(held), Some(window)) = (&mut self.held, window) {
                    match &mut held.purse {
                        Some(purse) => purse.update(window),
                        None => held.purse = Some(Purse::new(window)),
                    }
                }
            }
        }
    }

    /// Gives up the session, and returns its id for a teardown.
    pub fn forget(&mut self) -> Option<SessionId> {
        self.generation += 1;
        self.held.take().map(|held| held.id)
    }

    /// Whether there is a session.
    #[must_use]
    pub const fn has_session(&self) -> bool {
        self.held.is_some()
    }

    /// How many tokens can be spent.
    #[must_use]
    pub fn tokens_left(&self) -> u32 {
        let purse = self.held.as_ref().and_then(|held| held.purse.as_ref());
        purse.map_or(0, Purse::left)
    }

    /// Whether there is a window, but at most a quarter of it is left: those who spend faster than they get answers can ask
    /// for news of it with a NOOP before it runs out.
    #[must_use]
    pub fn is_running_low(&self) -> bool {
        let purse = self.held.as_ref().and_then(|held| held.purse.as_ref());
        purse.is_some_and(|purse| purse.left() <= purse.size() / 4)
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet")
            .field("session", &self.has_session())
            .field("tokens", &self.tokens_left())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::socks6::ClientError;
    use crate::wire::Credentials;
    use crate::wire::socks6::{Command, Profile, Request, Token};

    /// A request with what the wallet puts in, and its client.
    fn prepared(wallet: &mut Wallet, spend: Spend) -> (Ticket, RequestOptions, Client) {
        let mut request = Request::new(Command::NOOP, "0.0.0.0:0".parse().unwrap());
        let ada = Credentials::new("ada", "pass").unwrap();
        request.options.password = Some(ada.into());
        let ticket = wallet.prepare(&mut request.options, spend);
        let options = request.options.clone();
        let mut client = Client::new(request, Profile::DRAFT_12);
        client.start(&mut Vec::new());
        (ticket, options, client)
    }

    /// A wallet with a session and four tokens from 0xfffffffe on.
    fn filled() -> Wallet {
        let mut wallet = Wallet::new(WindowSize::new(4));
        let (ticket, options, mut client) = prepared(&mut wallet, Spend::Yes);
        assert_eq!(options.session, SessionUse::Request);
        assert_eq!((options.window, options.token), (WindowSize::new(4), None));
        assert!(options.password.is_some());
        client
            .feed(b"\x06\0\0\x14\0\x06\0\x08abcd\0\x0c\0\x0c\xff\xff\xff\xfe\0\0\0\x04")
            .unwrap();
        wallet.settle(ticket, &client);
        assert_eq!((wallet.has_session(), wallet.tokens_left()), (true, 4));
        wallet
    }

    #[test]
    fn tokens_are_spent_small_first_and_come_back_with_answers() {
        let mut wallet = filled();
        let mut tickets = Vec::new();
        for token in [Some(u32::MAX - 1), Some(u32::MAX), Some(0), Some(1), None] {
            let (ticket, options, client) = prepared(&mut wallet, Spend::Yes);
            assert!(matches!(options.session, SessionUse::Resume(_)));
            assert!(options.password.is_none() && options.window.is_none());
            assert_eq!(options.token, token.map(Token));
            tickets.push((ticket, client));
        }
        let (ticket, mut client) = tickets.pop().unwrap();
        client
            .feed(b"\x06\0\0\x10\0\x08\0\x04\0\x0c\0\x0c\0\0\0\x01\0\0\0\x04")
            .unwrap();
        assert!(wallet.is_running_low());
        wallet.settle(ticket, &client);
        assert_eq!((wallet.tokens_left(), wallet.is_running_low()), (3, false));
        assert_eq!(prepared(&mut wallet, Spend::No).1.token, None);
    }

    #[test]
    fn one_request_at_a_time_asks_for_a_session() {
        let mut wallet = Wallet::new(None);
        let (first, _, failed) = prepared(&mut wallet, Spend::No);
        let (second, options, client) = prepared(&mut wallet, Spend::No);
        assert_eq!(options.session, SessionUse::None);
        wallet.settle(second, &client);
        // The first one fails: the next asks again.
        wallet.settle(first, &failed);
        let (_ticket, options, _) = prepared(&mut wallet, Spend::No);
        assert_eq!(options.session, SessionUse::Request);
        assert!(!wallet.has_session());
    }

    #[test]
    fn session_that_is_gone_is_forgotten_and_late_news_of_it_ignored() {
        let mut wallet = filled();
        let (ticket, _, mut client) = prepared(&mut wallet, Spend::No);
        let (late, _, mut late_client) = prepared(&mut wallet, Spend::No);
        const INVALID: &[u8] = b"\x06\x01\0\x04\0\x09\0\x04";
        assert_eq!(client.feed(INVALID), Err(ClientError::SessionInvalid));
        wallet.settle(ticket, &client);
        assert!(!wallet.has_session());

        let (ticket, _, mut client) = prepared(&mut wallet, Spend::No);
        client.feed(b"\x06\0\0\x08\0\x06\0\x08efgh").unwrap();
        wallet.settle(ticket, &client);
        late_client.feed(INVALID).unwrap_err();
        wallet.settle(late, &late_client);
        assert!(wallet.has_session());
        assert_eq!(wallet.forget().unwrap().as_bytes(), b"efgh");
    }
}
