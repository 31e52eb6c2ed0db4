//! Asking SOCKS 6 proxies.
//!
//! A request takes with it whatever is known to follow: the session instead of the password, a token, and the first payload,
//! so that the answer of the target can come after one round trip. What the proxy said is put into the [`Memory`] that all
//! requests to it share.
//!
//! What to read: the module docs of [`crate::handshake::socks6`]; for early data "False Starts" in the draft.

mod association;
mod listener;
mod memory;
mod negotiate;

pub use association::DatagramError;
pub(super) use association::{Association, LONGEST_HEADER};
pub use listener::{DEFAULT_BACKLOG, Listener};
pub(super) use memory::Memory;
pub use negotiate::negotiate_socks6;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dialer::{Answer, Asked, Dialer, Hop, Route, Task};
use super::error::{ClientError, Socks6NegotiationError, Whose};
use super::negotiate::{NegotiationError, drive};
use super::stream::Until;
use crate::handshake::socks6::client::Phase;
use crate::handshake::socks6::{Client, ClientError as HandshakeError, Outcome, Spend};
use crate::proxy_uri::{Fallback, Socks6};
use crate::wire::socks5::Method;
use crate::wire::socks6::{
    Command, MAX_INITIAL_DATA, MethodAdvertisement, MethodSet, OpReply, Request, SessionId,
    SessionUse, StackOptions,
};
use crate::wire::{Address, Host};
use negotiate::Asking;

impl Dialer {
    /// Asks the last proxy for nothing, which it does if it is there, speaks SOCKS 6, and accepts us. This fetches a session
    /// and tokens for later requests, if they are wanted.
    ///
    /// # Errors
    /// [`ClientError::NeedsSocks6`], and what else can go wrong; [`ClientError::fault`] tells whose fault it is.
    pub fn noop(&self) -> Result<(), ClientError> {
        self.do_nothing(&Errand::noop())
    }

    /// Gives up the session with the last proxy, if there is one, and tells the proxy. It may close the session's connections.
    /// Later requests ask for another one.
    ///
    /// # Errors
    /// As for [`Dialer::noop`]. The session is given up in any case.
    pub fn end_session(&self) -> Result<(), ClientError> {
        let Some(id) = self.last.memory.forget_session() else {
            return Ok(());
        };
        self.do_nothing(&Errand {
            teardown: Some(id),
            ..Errand::noop()
        })
    }

    fn do_nothing(&self, errand: &Errand<'_>) -> Result<(), ClientError> {
        let options = self.socks6_options()?;
        let route = self.route(self.deadline());
        let (last, memory) = (&self.last, &self.last.memory);
        let nothing = &mut Vec::new();
        let asked = route.run(&self.before, last, memory, options, errand, nothing);
        asked.map(drop).map_err(|failed| failed.error)
    }

    /// Whether the last proxy has granted a session, which later requests use.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.last.memory.has_session()
    }

    /// How many tokens of the last proxy can be spent.
    #[must_use]
    pub fn tokens_left(&self) -> u32 {
        self.last.memory.tokens_left()
    }

    /// Whether the last proxy takes early data along with a request, as far as that is known.
    #[must_use]
    pub fn takes_early_data(&self) -> bool {
        self.last.proxy.socks6().is_some() && !self.last.memory.is_older()
    }

    /// What holds for the last proxy, which must speak SOCKS 6.
    fn socks6_options(&self) -> Result<&Socks6, ClientError> {
        let options = self.last.proxy.socks6();
        options
            .filter(|_| !self.last.memory.is_older())
            .ok_or_else(|| ClientError::NeedsSocks6(self.last.proxy.address().clone()))
    }
}

/// What a SOCKS 6 proxy said.
#[derive(Debug)]
pub(super) struct Answered {
    handshake: Client,
    pub(super) outcome: Outcome,
    /// From the first operation reply; the second one of a BIND may change it.
    pub(super) granted: StackOptions,
}

impl Answered {
    /// The operation reply that came last.
    pub(super) const fn reply(&self) -> Option<&OpReply> {
        match &self.outcome {
            Outcome::Negotiate(_) => None,
            Outcome::Done(reply)
            | Outcome::Listening(reply)
            | Outcome::Accepted(reply)
            | Outcome::Handle(reply)
            | Outcome::Waiting(reply) => Some(reply),
        }
    }

    /// Waits for the next operation reply, as there is with BIND.
    pub(super) fn go_on(
        &mut self,
        stream: &mut (impl Read + Write),
    ) -> Result<(), Socks6NegotiationError> {
        let mut asking = Asking::new(&mut self.handshake, &[], None);
        self.outcome = drive(stream, &mut asking, &mut Vec::new())?;
        if let Some(reply) = self.reply()
            && !reply.options.stack.is_empty()
        {
            self.granted = reply.options.stack;
        }
        Ok(())
    }
}

/// One request.
struct Errand<'a> {
    command: Command,
    address: Address,
    backlog: Option<u16>,
    /// The session to end; then it is in none.
    teardown: Option<SessionId>,
    /// What a refusal is about, if it can be about anything.
    about: Option<&'a Address>,
    whose: Whose,
}

impl Errand<'_> {
    const fn noop() -> Self {
        Self {
            command: Command::NOOP,
            address: Address::new(Host::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0),
            backlog: None,
            teardown: None,
            about: None,
            whose: Whose::Target,
        }
    }

    /// The options that mean something for it.
    fn stack(&self, wanted: &StackOptions) -> StackOptions {
        let wanted = StackOptions {
            backlog: self.backlog,
            ..*wanted
        };
        wanted.fitting(self.command, matches!(self.address.host, Host::Name(_)))
    }
}

/// A request that came to nothing.
struct Failed {
    error: ClientError,
    kind: Failure,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The session is gone, and nothing was done.
    Session,
    /// The token was rejected, and nothing was done.
    Token,
    /// The proxy does not speak SOCKS 6, as far as one can tell, and nothing was done.
    Older,
    Other,
}

impl Route<'_> {
    /// Asks a proxy in SOCKS 6, or in SOCKS5 if it turns out not to know the other and that is allowed.
    pub(super) fn ask_socks6(
        &self,
        before: &[Hop],
        hop: &Hop,
        task: Task,
        target: &Address,
        whose: Whose,
        early: &mut Vec<u8>,
    ) -> Result<Asked, ClientError> {
        let Some(options) = hop.proxy.socks6() else {
            return Err(ClientError::NeedsSocks6(hop.proxy.address().clone()));
        };
        let (command, address) = match task {
            Task::Connect => (Command::CONNECT, target.clone()),
            // Not the peer's: where the proxy shall listen.
            Task::Bind => (Command::BIND, any_like(target)),
            Task::Associate => (Command::ASSOCIATE, target.clone()),
        };
        let errand = Errand {
            command,
            address,
            backlog: None,
            teardown: None,
            about: (command != Command::ASSOCIATE).then_some(target),
            whose,
        };
        match self.run(before, hop, &hop.memory, options, &errand, early) {
            Err(Failed {
                kind: Failure::Older,
                ..
            }) if options.fallback == Fallback::Socks5 => {
                let asked = self.ask_older(before, hop, task, target, whose)?;
                hop.memory.learned_older();
                Ok(asked)
            }
            other => other.map_err(|failed| failed.error),
        }
    }

    /// Makes a request, with news of the tokens first if they run out, and once more if its session is gone or its token was
    /// rejected.
    ///
    /// A token is rejected if others have overtaken it, which could happen to the next one too, so it goes without. Over plain
    /// TCP that costs nothing: nobody but us repeats a request, and we do only where nothing was done.
    fn run(
        &self,
        before: &[Hop],
        hop: &Hop,
        memory: &Memory,
        options: &Socks6,
        errand: &Errand<'_>,
        early: &mut Vec<u8>,
    ) -> Result<Asked, Failed> {
        if errand.command != Command::NOOP
            && let Some(_refreshing) = memory.refresh()
        {
            // Whatever is wrong, the request itself will tell.
            let nothing = &mut Vec::new();
            let noop = Errand::noop();
            let _ = self.once(before, hop, memory, options, &noop, Spend::No, nothing);
        }
        let spend = match errand.command {
            Command::NOOP => Spend::No,
            _ => Spend::Yes,
        };
        let first = self.once(before, hop, memory, options, errand, spend, early);
        let spend = match &first {
            Err(failed) if failed.kind == Failure::Session => spend,
            Err(failed) if failed.kind == Failure::Token => Spend::No,
            _ => return first,
        };
        self.once(before, hop, memory, options, errand, spend, early)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what a chain, a proxy and a request are belongs to different callers"
    )]
    fn once(
        &self,
        before: &[Hop],
        hop: &Hop,
        memory: &Memory,
        options: &Socks6,
        errand: &Errand<'_>,
        spend: Spend,
        early: &mut Vec<u8>,
    ) -> Result<Asked, Failed> {
        let proxy = hop.proxy.address();
        // To a proxy that may not even speak SOCKS 6 nothing is sent that must not be sent twice.
        let cautious = options.fallback == Fallback::Socks5 && !memory.is_known();
        let ready = if cautious { 0 } else { early.len() };

        let mut request = Request::new(errand.command, errand.address.clone());
        request.options.stack = errand.stack(&options.stack);
        request.options.password = hop.proxy.credentials().cloned().map(Into::into);
        let ticket = match &errand.teardown {
            Some(id) => {
                request.options.session = SessionUse::Teardown(id.clone());
                None
            }
            None => memory.prepare(&mut request.options, spend),
        };
        let resumed = matches!(request.options.session, SessionUse::Resume(_));
        let login = request.options.password.clone();
        if login.is_some() {
            // Proxies exist that don't look at the password without it.
            let declared = u16::try_from(ready).unwrap_or(u16::MAX);
            request.options.methods = Some(MethodAdvertisement {
                initial_data: declared.min(MAX_INITIAL_DATA),
                methods: MethodSet::new([Method::USER_PASSWORD]),
            });
        }

        let mut handshake = Client::new(request, options.profile);
        let mut unsent = Vec::new();
        handshake.start(&mut unsent);
        let along = match handshake.allows_false_start() {
            true => ready,
            false => handshake.initial_data(),
        };
        let (along, later) = early.split_at_checked(along).unwrap_or((early, &[]));
        unsent.extend(along);
        let reached = self.reach(before, proxy, &mut unsent);
        let carried = reached.map(|stream| {
            let mut until = Until {
                stream: &stream,
                deadline: self.deadline,
            };
            let mut asking = Asking::new(&mut handshake, later, login.as_ref());
            let carried = drive(&mut until, &mut asking, &mut unsent);
            (stream, carried)
        });
        memory.settle(ticket, &handshake);
        let (stream, carried) = carried.map_err(|error| Failed {
            error,
            kind: Failure::Other,
        })?;
        if handshake.auth_reply().is_some() {
            memory.learned_socks6();
        }
        let outcome = carried.map_err(|error| {
            let kind = match &error {
                NegotiationError::Handshake(HandshakeError::SessionInvalid) if resumed => {
                    Failure::Session
                }
                // A proxy may not fail it like this; one that does hands out sessions that it does not know afterwards.
                NegotiationError::Handshake(HandshakeError::AuthenticationFailed) if resumed => {
                    memory.distrust_sessions();
                    Failure::Session
                }
                NegotiationError::Handshake(HandshakeError::TokenRejected) => Failure::Token,
                error if is_older(error, cautious) => Failure::Older,
                _ => Failure::Other,
            };
            let error = ClientError::of_socks6(error, proxy, errand.about, errand.whose);
            Failed { error, kind }
        })?;
        early.clear();
        let mut answered = Answered {
            handshake,
            outcome,
            granted: StackOptions::default(),
        };
        if let Some(reply) = answered.reply() {
            answered.granted = reply.options.stack;
        }
        Ok(Asked {
            stream,
            answer: Answer::Socks6(Box::new(answered)),
        })
    }
}

/// Whether the proxy may speak an older version. Most of those don't say so, but close: that counts too where the proxy was
/// not known, since nothing but the request was sent then.
fn is_older(error: &Socks6NegotiationError, cautious: bool) -> bool {
    match error {
        NegotiationError::Handshake(HandshakeError::ClosedEarly(Phase::AuthReply, 0)) => cautious,
        NegotiationError::Handshake(error) => error.is_version_mismatch(),
        NegotiationError::Broken(Phase::AuthReply, error) => {
            let closed = matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            );
            cautious && closed
        }
        _ => false,
    }
}

/// Any address and port of the same family as this one; of IPv4 if it is a name.
fn any_like(address: &Address) -> Address {
    let ip = match &address.host {
        Host::Ip(ip) if ip.to_canonical().is_ipv6() => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    Address::new(Host::Ip(ip), 0)
}
