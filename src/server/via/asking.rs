//! A handshake with one of the proxies, in the version that it speaks.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use socket2::Socket;

#[cfg(feature = "socks6")]
use super::six::Six;
use super::{Errand, Via};
use crate::engine::{Interests, TurnContext, Want};
use crate::handshake::client::Phase;
#[cfg(feature = "socks6")]
use crate::handshake::socks6::Spend;
use crate::handshake::{Client, Goal, HandshakeError, Outcome, Refusal};
use crate::net::{read_some, write_all_now};
use crate::server::OTHERS;
use crate::wire::socks4::{self, RequestError};
use crate::wire::socks5::ReplyCode;
#[cfg(feature = "socks6")]
use crate::wire::socks6::{AssociationId, Profile};
use crate::wire::{Address, BoundAddress};

/// A handshake with the proxy at this place.
pub(super) struct Asking {
    pub(super) place: usize,
    pub(super) socket: Socket,
    handshake: Handshake,
    unsent: Vec<u8>,
    /// How much of the client's payload was put behind the request.
    early: usize,
}

enum Handshake {
    /// SOCKS 4, 4a or 5.
    Older(Client),
    #[cfg(feature = "socks6")]
    Six(Box<Six>),
}

/// What a turn of a handshake came to.
pub(super) enum Asked {
    /// It is done. For BIND: this one has come.
    Granted(BoundAddress),
    /// BIND: the proxy listens there. Goes on with the next turn.
    Listening(BoundAddress),
    /// BIND with a backlog: the proxy listens there, with one of so many, as long as this connection lives.
    #[cfg(feature = "socks6")]
    Kept(BoundAddress, u16),
    Not,
    Declined(Declined),
    Broken(io::Error),
}

/// Why a proxy does not do what it was asked for.
pub(super) struct Declined {
    pub(super) what: String,
    pub(super) why: Why,
}

pub(super) enum Why {
    /// It tried, or does not want to. Whether it may do so for another address of the destination.
    Destination(ReplyCode, Another),
    /// It does not take us for somebody who may use it.
    Login,
    /// It does not work, or is no such proxy.
    Proxy,
    /// What it knew of us, it knows no more: to be asked again from the start.
    #[cfg(feature = "socks6")]
    Stale,
}

/// Whether the proxies have forgotten us before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    #[cfg_attr(
        not(feature = "socks6"),
        expect(dead_code, reason = "only SOCKS 6 knows us by more than a request")
    )]
    Again,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Another {
    Perhaps,
    No,
}

impl Asking {
    /// Asks the proxy at this place to do that. The socket is connected to it.
    pub(super) fn new(
        via: &Arc<Via>,
        place: usize,
        socket: Socket,
        errand: Errand,
        target: Address,
        attempt: Attempt,
    ) -> Result<Self, RequestError> {
        let proxy = via.proxy(place).unwrap_or(&via.first);
        let mut unsent = Vec::new();
        #[cfg(feature = "socks6")]
        if super::is_six(proxy) {
            // A token that is rejected may have been overtaken by others, and so may be the next. Without one nothing is lost: over
            // plain TCP nobody repeats a request.
            let spend = match attempt {
                Attempt::First => Spend::Yes,
                Attempt::Again => Spend::No,
            };
            let six = Six::start(via, place, (errand, target), spend, &mut unsent);
            return Ok(Self {
                place,
                socket,
                handshake: Handshake::Six(Box::new(six)),
                unsent,
                early: 0,
            });
        }
        #[cfg(not(feature = "socks6"))]
        let _ = attempt;
        let goal = match errand {
            Errand::Connect => Goal::Connect(target),
            Errand::Bind => Goal::Bind(target),
            #[cfg(feature = "socks6")]
            Errand::Listen(_) => Goal::Bind(target),
            Errand::Associate => Goal::Associate(target),
        };
        let mut client = Client::for_proxy(proxy, goal)?;
        client.start(&mut unsent);
        Ok(Self {
            place,
            socket,
            handshake: Handshake::Older(client),
            unsent,
            early: 0,
        })
    }

    /// Goes on. As much of the client's payload as the proxy takes before its reply is sent.
    pub(super) fn turn(&mut self, payload: &[u8], cx: &mut TurnContext<'_>) -> Asked {
        loop {
            self.put_behind(payload);
            let sent = write_all_now(&self.socket, &mut self.unsent);
            let room = cx.buffer_up_to(self.wanted());
            // Also after a failed write: a proxy that closed because of what it thinks of us has said so before.
            let input = match (read_some(&self.socket, room), sent) {
                (Ok(Some(input)), _) if !input.is_empty() => input,
                (Ok(Some(_)), Ok(_)) => return Asked::Declined(self.closed()),
                (Ok(None), Ok(_)) => return Asked::Not,
                (Err(error), Ok(_)) | (_, Err(error)) => return Asked::Broken(error),
            };
            let asked = match &mut self.handshake {
                Handshake::Older(client) => older(client, input, &mut self.unsent),
                #[cfg(feature = "socks6")]
                Handshake::Six(six) => six.feed(input),
            };
            if !matches!(asked, Asked::Not) {
                return asked;
            }
        }
    }

    /// How much of the client's payload has been sent, once it is granted.
    pub(super) fn carried(&self) -> usize {
        self.early.saturating_sub(self.unsent.len())
    }

    /// The id of the association that was asked for and granted.
    #[cfg(feature = "socks6")]
    pub(super) fn association(&self) -> Option<(AssociationId, Profile)> {
        match &self.handshake {
            Handshake::Older(_) => None,
            Handshake::Six(six) => six.association(),
        }
    }

    #[cfg(feature = "socks6")]
    fn put_behind(&mut self, payload: &[u8]) {
        if let Handshake::Six(six) = &self.handshake
            && six.takes_payload()
            && let Some(more) = payload.get(self.early..)
        {
            self.unsent.extend(more);
            self.early = payload.len();
        }
    }

    #[cfg(not(feature = "socks6"))]
    #[expect(clippy::unused_self, reason = "only SOCKS 6 takes any")]
    fn put_behind(&self, _payload: &[u8]) {}

    fn wanted(&self) -> usize {
        match &self.handshake {
            Handshake::Older(client) => client.wanted(),
            #[cfg(feature = "socks6")]
            Handshake::Six(six) => six.wanted(),
        }
    }

    fn closed(&self) -> Declined {
        match &self.handshake {
            Handshake::Older(client) => client.closed().into(),
            #[cfg(feature = "socks6")]
            Handshake::Six(six) => six.closed(),
        }
    }

    /// What is waited for, for messages.
    pub(super) fn awaited(&self) -> String {
        match &self.handshake {
            Handshake::Older(client) => client.phase().to_string(),
            #[cfg(feature = "socks6")]
            Handshake::Six(six) => six.awaited(),
        }
    }

    /// Whether it has been asked, so that it may be waiting itself.
    pub(super) fn awaits_reply(&self) -> bool {
        match &self.handshake {
            Handshake::Older(client) => client.phase() == Phase::Reply,
            #[cfg(feature = "socks6")]
            Handshake::Six(six) => six.awaits_reply(),
        }
    }

    /// Whether it may keep silent until it knows about the destination.
    pub(super) fn may_be_silent(&self) -> bool {
        match &self.handshake {
            Handshake::Older(_) => false,
            #[cfg(feature = "socks6")]
            Handshake::Six(six) => six.may_be_silent(),
        }
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        let want = Want {
            read: true,
            write: !self.unsent.is_empty(),
        };
        interests.watch(OTHERS, self.socket.as_fd(), want);
    }
}

fn older(client: &mut Client, input: &[u8], out: &mut Vec<u8>) -> Asked {
    if let Err(error) = client.feed(input, out) {
        return Asked::Declined(error.into());
    }
    match client.outcome() {
        Some(Outcome::Done(bound) | Outcome::Accepted(bound)) => Asked::Granted(bound.clone()),
        Some(Outcome::Listening(bound)) => Asked::Listening(bound.clone()),
        Some(Outcome::Greeted(_)) | None => Asked::Not,
    }
}

impl From<HandshakeError> for Declined {
    fn from(error: HandshakeError) -> Self {
        let HandshakeError::Refused(refusal) = error else {
            let why = match is_about_login(error) {
                true => Why::Login,
                false => Why::Proxy,
            };
            let what = error.to_string();
            return Self { what, why };
        };
        let another = match refusal.is_about_address() {
            true => Another::Perhaps,
            false => Another::No,
        };
        let why = match refusal {
            Refusal::Socks5(code) => Why::Destination(code, another),
            // The only code for that: where it comes from a proxy that works, it is about the destination.
            Refusal::Socks4(socks4::ReplyCode::REJECTED) => {
                Why::Destination(ReplyCode::CONNECTION_REFUSED, another)
            }
            // About us (SOCKS4, 92 and 93).
            Refusal::Socks4(_) => Why::Login,
        };
        let what = refusal.to_string();
        Self { what, why }
    }
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Whether a proxy wants other credentials, or none of ours.
fn is_about_login(error: HandshakeError) -> bool {
    matches!(
        error,
        HandshakeError::NoAcceptableMethod
            | HandshakeError::AuthenticationRequired
            | HandshakeError::MethodNotOffered(_)
            | HandshakeError::CredentialsRejected(_)
    )
}
