//! A handshake with a proxy of SOCKS 6, inside the session that all clients of this program share there.

use std::sync::{Arc, PoisonError};

use super::asking::{Another, Asked, Declined, Why};
use super::{Errand, Via};
use crate::handshake::socks6::client::Phase;
use crate::handshake::socks6::{Client, ClientError, Outcome, Spend, Ticket};
use crate::proxy_uri::Socks6;
use crate::wire::socks5::Method;
use crate::wire::socks6::{
    AssociationId, Command, Decoded, MethodAdvertisement, MethodSet, Profile, ReplyCode, Request,
    SessionUse, StackOptions, UdpHeader, UdpMessage,
};
use crate::wire::{Address, BoundAddress, Host};

/// The asking side, with what it took from the wallet.
pub(super) struct Six {
    client: Client,
    profile: Profile,
    command: Command,
    /// Whether a backlog was asked for.
    listens: bool,
    /// Until the proxy has said what there is to say about the session.
    ticket: Option<Ticket>,
    opens_session: bool,
    may_be_silent: bool,
    via: Arc<Via>,
    place: usize,
    /// UDP ASSOCIATE: what follows the reply.
    initialization: Option<Initialization>,
}

/// The message with the id of an association.
enum Initialization {
    /// As much of it as has come, and the reply's address.
    Awaited(Vec<u8>, BoundAddress),
    Came(AssociationId),
}

impl Six {
    /// Appends the request to `out`.
    pub(super) fn start(
        via: &Arc<Via>,
        place: usize,
        (errand, target): (Errand, Address),
        spend: Spend,
        out: &mut Vec<u8>,
    ) -> Self {
        let command = match errand {
            Errand::Connect => Command::CONNECT,
            Errand::Bind | Errand::Listen(_) => Command::BIND,
            Errand::Associate => Command::ASSOCIATE,
        };
        let proxy = via.proxy(place).unwrap_or(&via.first);
        let wanted = proxy.socks6().unwrap_or(&Socks6::DEFAULT);
        let profile = wanted.profile;
        let to_name = matches!(target.host, Host::Name(_));
        let mut request = Request::new(command, target);
        let backlog = match errand {
            Errand::Listen(backlog) => Some(backlog),
            _ => None,
        };
        // What our URI says is about nobody's backlog, and there is nobody to tell of ICMP errors.
        let stack = StackOptions {
            backlog,
            udp_error: None,
            ..wanted.stack
        };
        request.options.stack = stack.fitting(command, to_name);
        request.options.password = proxy.credentials().cloned().map(Into::into);
        if profile == Profile::GO_212 && request.options.password.is_some() {
            // It does not look at a password that was not announced.
            request.options.methods = Some(MethodAdvertisement {
                initial_data: 0,
                methods: MethodSet::new([Method::USER_PASSWORD]),
            });
        }
        let ticket = via.wallet(place).map(|wallet| {
            let mut wallet = wallet.lock().unwrap_or_else(PoisonError::into_inner);
            wallet.prepare(&mut request.options, spend)
        });
        let options = &mut request.options;
        if !via.is_alone && matches!(options.session, SessionUse::Resume(_)) {
            // There is one, so this changes nothing; but who is asked answers that at once, and can be told from one that does
            // not work while it looks after a destination.
            options.window = options.window.or_else(|| super::window(wanted));
        }
        let opens_session = options.session == SessionUse::Request;
        let may_be_silent = !opens_session && options.window.is_none() && options.methods.is_none();
        let mut client = Client::new(request, profile);
        client.start(out);
        Self {
            client,
            profile,
            command,
            listens: backlog.is_some(),
            ticket,
            opens_session,
            may_be_silent,
            via: Arc::clone(via),
            place,
            initialization: None,
        }
    }

    /// Takes what has come, which is never more than was [wanted](Self::wanted).
    pub(super) fn feed(&mut self, input: &[u8]) -> Asked {
        if let Some(Initialization::Awaited(kept, _)) = &mut self.initialization {
            kept.extend(input);
            return self.initialize();
        }
        if let Err(error) = self.client.feed(input) {
            self.settle();
            return Asked::Declined(error.into());
        }
        let asked = match self.client.outcome() {
            Some(Outcome::Done(reply)) if self.command == Command::ASSOCIATE => {
                self.initialization =
                    Some(Initialization::Awaited(Vec::new(), reply.bound.clone()));
                Asked::Not
            }
            Some(Outcome::Done(reply) | Outcome::Accepted(reply)) => {
                Asked::Granted(reply.bound.clone())
            }
            Some(Outcome::Listening(reply)) => Asked::Listening(reply.bound.clone()),
            Some(Outcome::Handle(reply)) if self.listens => {
                let backlog = reply.options.stack.backlog.unwrap_or_default();
                Asked::Kept(reply.bound.clone(), backlog)
            }
            // Neither a method nor a backlog was offered.
            Some(Outcome::Negotiate(_) | Outcome::Handle(_) | Outcome::Waiting(_)) => {
                Asked::Declined(Declined {
                    what: "it granted what was not asked for".into(),
                    why: Why::Proxy,
                })
            }
            None => Asked::Not,
        };
        // The id of a new session may come with either reply. All else is in the first: others need not wait for a destination.
        let is_told = !self.opens_session || self.client.session_id().is_some();
        if self.client.outcome().is_some() || (is_told && self.client.auth_reply().is_some()) {
            self.settle();
        }
        asked
    }

    fn initialize(&mut self) -> Asked {
        let Some(Initialization::Awaited(kept, bound)) = &self.initialization else {
            return Asked::Not;
        };
        match UdpMessage::decode(kept, &self.profile) {
            Ok(Decoded::Missing(_)) => Asked::Not,
            Ok(Decoded::Whole {
                message: UdpMessage::Initialization(id),
                ..
            }) => {
                let asked = Asked::Granted(bound.clone());
                self.initialization = Some(Initialization::Came(id));
                asked
            }
            _ => Asked::Declined(Declined {
                what: "it sent something else than the id of the association".into(),
                why: Why::Proxy,
            }),
        }
    }

    /// The id of the association that was asked for and granted.
    pub(super) fn association(&self) -> Option<(AssociationId, Profile)> {
        match self.initialization {
            Some(Initialization::Came(id)) => Some((id, self.profile)),
            _ => None,
        }
    }

    /// Whether payload may be sent before the reply.
    pub(super) fn takes_payload(&self) -> bool {
        self.place == self.via.others.len() && self.client.may_send()
    }

    pub(super) fn wanted(&self) -> usize {
        match &self.initialization {
            Some(Initialization::Awaited(kept, _)) => {
                UdpHeader::LEN - kept.len().min(UdpHeader::LEN)
            }
            _ => self.client.wanted(),
        }
    }

    pub(super) fn closed(&self) -> Declined {
        match &self.initialization {
            Some(_) => Declined {
                what: "closed before the id of the association".into(),
                why: Why::Proxy,
            },
            None => self.client.closed().into(),
        }
    }

    pub(super) fn awaited(&self) -> String {
        match &self.initialization {
            Some(_) => "id of the association".into(),
            None => self.client.phase().to_string(),
        }
    }

    /// Whether it may keep silent until it knows about the destination.
    pub(super) const fn may_be_silent(&self) -> bool {
        self.may_be_silent
    }

    pub(super) fn awaits_reply(&self) -> bool {
        self.client.phase() == Phase::Reply
    }

    fn settle(&mut self) {
        if let (Some(ticket), Some(wallet)) = (self.ticket.take(), self.via.wallet(self.place)) {
            let mut wallet = wallet.lock().unwrap_or_else(PoisonError::into_inner);
            wallet.settle(ticket, &self.client);
        }
    }
}

/// A request that nobody waits for any more must not keep others from asking for a session.
impl Drop for Six {
    fn drop(&mut self) {
        self.settle();
    }
}

impl From<ClientError> for Declined {
    fn from(error: ClientError) -> Self {
        let why = match error {
            ClientError::SessionInvalid | ClientError::TokenRejected => Why::Stale,
            ClientError::AuthenticationFailed | ClientError::MethodNotOffered(_) => Why::Login,
            ClientError::Refused(code) => {
                let another = match code {
                    ReplyCode::NOT_ALLOWED | ReplyCode::COMMAND_NOT_SUPPORTED => Another::No,
                    _ => Another::Perhaps,
                };
                Why::Destination(code.to_socks5(), another)
            }
            _ => Why::Proxy,
        };
        let what = match error.is_version_mismatch() {
            true => format!("it does not speak SOCKS 6: {error}"),
            false => error.to_string(),
        };
        Self { what, why }
    }
}
