//! The first stage of a session: what the client says until it has made its request.

use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Instant;

use socket2::Socket;

use super::CLIENT;
use super::login::Login;
use super::settings::ServerSettings;
use super::users::Verdict;
use crate::engine::{Interests, TurnContext, Want};
use crate::handshake::{Event, Methods, Policy, Request, Server, ServerError};
use crate::net::{read_some, write_all_now};
use crate::wire::socks4::UserId;
#[cfg(feature = "socks6")]
use crate::wire::socks6::Profile;

/// A client that has not made its request yet.
pub(super) struct Opening {
    pub(super) client: Socket,
    pub(super) server: Server,
    pub(super) unsent: Vec<u8>,
    /// Read, but not part of the handshake so far. Behind the request: the client's payload.
    pub(super) unread: Vec<u8>,
    pub(super) address: Option<SocketAddr>,
    pub(super) until: Instant,
    held: Option<Hold>,
    /// What the client has been told already, by somebody else, of what it is told here.
    heard: Vec<u8>,
    /// The last read was a short one.
    has_all_there_was: bool,
}

/// The client has to wait until then.
pub(super) struct Hold {
    pub(super) until: Instant,
    /// For this, or else before anything is read.
    pub(super) verdict: Option<Verdict>,
}

/// What an opening has come to.
pub(super) enum Opened {
    /// Wait, until then at the latest.
    Not(Instant),
    /// It begins in SOCKS 6, for which nothing is done here.
    #[cfg(feature = "socks6")]
    Socks6(Profile),
    /// This is the request.
    Request(Request),
    /// The handshake has failed; what is unsent is still to be sent.
    Failed(ServerError),
    /// The client closed, or its connection broke.
    Left,
    /// The time is over.
    TimedOut,
}

impl Opening {
    pub(super) fn new(
        client: Socket,
        address: Option<SocketAddr>,
        settings: &ServerSettings,
        now: Instant,
    ) -> Self {
        let delay = settings.answer_delay;
        Self {
            client,
            server: Server::new(settings.policy()),
            unsent: Vec::new(),
            unread: Vec::new(),
            address,
            until: now + settings.handshake_timeout,
            held: (!delay.is_zero()).then(|| Hold {
                until: now + delay,
                verdict: None,
            }),
            heard: Vec::new(),
            has_all_there_was: false,
        }
    }

    /// A client that has said this to somebody who was to serve it, and has heard that from them. Of the methods to authenticate the
    /// one that it was told is meant; any user and password are right, since they were for somebody else.
    pub(super) fn resumed(
        client: Socket,
        address: Option<SocketAddr>,
        said: Vec<u8>,
        heard: Vec<u8>,
        settings: &ServerSettings,
        now: Instant,
    ) -> Self {
        let methods = match heard.as_slice() {
            [_, 2, ..] => Methods::UserPassword,
            _ => Methods::Either,
        };
        let policy = Policy {
            methods,
            ..settings.policy()
        };
        Self {
            server: Server::new(policy),
            unread: said,
            heard,
            held: None,
            ..Self::new(client, address, settings, now)
        }
    }

    /// Leaves out what the client has heard; whether it heard the same.
    fn leave_out(&mut self) -> bool {
        let count = self.heard.len().min(self.unsent.len());
        let is_same = self.heard.get(..count) == self.unsent.get(..count);
        drop((self.heard.drain(..count), self.unsent.drain(..count)));
        is_same
    }

    /// Goes on with the handshake. A user who turned out to be one goes into `user`.
    pub(super) fn turn(
        &mut self,
        settings: &ServerSettings,
        user: &mut Option<Login>,
        cx: &mut TurnContext<'_>,
    ) -> Opened {
        if cx.now >= self.until {
            return Opened::TimedOut;
        }
        match &self.held {
            Some(hold) if cx.now < hold.until => {
                // It can only have gone: nothing is read meanwhile.
                if cx.ready.hung_up(CLIENT) {
                    return Opened::Left;
                }
                return Opened::Not(hold.until.min(self.until));
            }
            _ => {}
        }
        if let Some(Hold {
            verdict: Some(verdict),
            ..
        }) = self.held.take()
        {
            self.pronounce(verdict, settings, user);
        }
        loop {
            #[cfg(feature = "socks6")]
            if self.server.is_fresh()
                && let (Some(first), Some(socks6)) = (self.unread.first(), &settings.socks6)
                && let Some(profile) = socks6.profile(*first)
            {
                return Opened::Socks6(profile);
            }
            let fed = self.server.feed(&self.unread, &mut self.unsent);
            match fed {
                Ok(taken) => drop(self.unread.drain(..taken)),
                Err(error) => return Opened::Failed(error),
            }
            if !self.leave_out() {
                return Opened::Left;
            }
            match self.server.event() {
                Some(Event::Request(request)) => {
                    // What can't be sent now is sent with the reply.
                    let _ = write_all_now(&self.client, &mut self.unsent);
                    return Opened::Request(request.clone());
                }
                Some(Event::Credentials(credentials)) => {
                    let ip = self.address.map(|address| address.ip().to_canonical());
                    let Some(users) = &settings.users else {
                        // Nobody is asked; it is for somebody else.
                        self.server.accept(&mut self.unsent);
                        continue;
                    };
                    let judgement = users.judge(credentials, ip, cx.now);
                    if judgement.delay.is_zero() {
                        self.pronounce(judgement.verdict, settings, user);
                        continue;
                    }
                    // If it can't be sent now, it is sent with the verdict.
                    let _ = write_all_now(&self.client, &mut self.unsent);
                    let until = cx.now + judgement.delay;
                    self.held = Some(Hold {
                        until,
                        verdict: Some(judgement.verdict),
                    });
                    return Opened::Not(until.min(self.until));
                }
                Some(Event::UserId(request)) => {
                    let ids = &settings.socks4_users;
                    let verdict = match request.user_id().is_some_and(|id| ids.contains(id)) {
                        true => Verdict::Right,
                        false => Verdict::Wrong,
                    };
                    self.pronounce(verdict, settings, user);
                    continue;
                }
                None => {}
            }
            match write_all_now(&self.client, &mut self.unsent) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Opened::Left,
            }
            if self.has_all_there_was {
                self.has_all_there_was = false;
                break;
            }
            match read_some(&self.client, cx.buffer_up_to(Server::MAX_MESSAGE)) {
                Ok(Some([])) | Err(_) => return Opened::Left,
                Ok(Some(input)) => {
                    self.unread.extend_from_slice(input);
                    // Less than there is room for: whether more has come since, nobody need ask twice.
                    self.has_all_there_was = input.len() < Server::MAX_MESSAGE;
                }
                Ok(None) => break,
            }
        }
        Opened::Not(self.until)
    }

    fn pronounce(&mut self, verdict: Verdict, settings: &ServerSettings, user: &mut Option<Login>) {
        match verdict {
            Verdict::Right => {
                let name = match self.server.event() {
                    Some(Event::Credentials(credentials)) => Some(credentials.user()),
                    Some(Event::UserId(request)) => request.user_id().map(UserId::as_bytes),
                    _ => None,
                };
                *user = name.map(|name| Login::new(name, &settings.stats));
                self.server.accept(&mut self.unsent);
            }
            Verdict::Wrong => self.server.reject(&mut self.unsent),
        }
    }

    /// Takes out what is to be sent yet, with an answer in HTTP for those who speak that.
    pub(super) fn last_words(&mut self, error: ServerError) -> Vec<u8> {
        if error == ServerError::Http {
            return HTTP_ANSWER.to_vec();
        }
        mem::take(&mut self.unsent)
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = match self.held {
            // What comes meanwhile stays in the kernel.
            Some(_) => Want::ERRORS,
            None => Want {
                read: true,
                write: !self.unsent.is_empty(),
            },
        };
        interests.watch(CLIENT, self.client.as_fd(), want);
    }
}

/// For a browser that was told a wrong kind of proxy.
const HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 45\r\n\
      Connection: close\r\n\r\nThis is a SOCKS port: it does not speak HTTP\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_in_http_has_the_length_it_says() {
        let text = String::from_utf8(HTTP_ANSWER.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = format!("Content-Length: {}", body.len());
        assert!(head.contains(&length), "{length}");
        assert_eq!(body.lines().count(), 1);
    }
}
