//! One attempt at a remote: connecting, what it is told of the client's first bytes, what it answers.
//!
//! ```text
//! connecting ─┬─ the client's greeting ─► its method ─┬─ the client's request ─► its reply
//!             └─ user and password of ours ───────────┘
//! ```

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::route::{Awaited, Candidate, DialFailure, Patience};
use super::said::Said;
use crate::engine::{TurnContext, Want};
use crate::handshake::client::Phase;
use crate::handshake::watch::{Asked, Seen, Speaks, Watch};
use crate::handshake::{Client, Goal, HandshakeError, Outcome};
use crate::net::{ConnectFailure, finish_connect, read_some, write_all_now};
use crate::wire::Credentials;
use crate::wire::socks5::{Method, Reply, ReplyCode};

/// One candidate, and the client's first bytes on the way to it.
pub(super) struct Attempt {
    pub(super) remote: SocketAddr,
    pub(super) socket: Socket,
    pub(super) since: Instant,
    /// Its own time limit.
    limit: Option<Duration>,
    /// Of the client's first bytes, those that it need not hear included.
    pub(super) sent: usize,
    /// Of these, those that it did not hear.
    left_out: usize,
    connected: bool,
    /// How long it took to choose a method, connecting included: what a probe measures.
    pub(super) greeted: Option<Duration>,
    /// Whether it hears the request behind the greeting, if the client did not wait either.
    is_eager: bool,
    login: Login,
    watch: Watch,
    /// What was read behind the last message.
    unread: Vec<u8>,
    /// It has only just been asked for something, so there is nothing to read in this turn. Saves 2 of some 40 system calls of a
    /// connection. After a read there is one more read: it shows whether the remote is gone before the client says more.
    pub(super) is_dry: bool,
    /// When it was last given something to do.
    asked: Instant,
    /// How long it took to connect.
    connecting: Duration,
    /// How long it may take for what is not more than the way there and back.
    allowance: Duration,
    /// Whether the connection was there before the client.
    is_ready: bool,
    /// Whether any byte has come from it.
    has_spoken: bool,
}

/// Who is let in.
enum Login {
    /// The client, as it is.
    None,
    /// We are, if the client has no login of its own; that shows in its whole greeting.
    Wanted(Arc<Credentials>),
    /// We are, with these bytes still to be sent.
    Running(Box<Client>, Vec<u8>),
}

/// What has come of an attempt.
pub(super) enum Advance {
    Wait,
    /// It chose this method, or accepted our login, which is as good as "no authentication".
    Method(Method),
    /// It granted the request; the bytes are those that came.
    Reply(Reply, Vec<u8>),
    /// It refused the request.
    Refused(ReplyCode, Vec<u8>),
    /// It said this instead of what SOCKS 5 has in its place.
    Unreadable(Vec<u8>),
    /// From here on bytes are only passed on: it answered a client that does not speak SOCKS 5, or took more than is kept.
    Relay,
    Failed(DialFailure),
}

impl Attempt {
    /// An attempt over a socket that is being connected. With `allowance` it takes that long where others would hesitate.
    pub(super) fn new(
        candidate: &Candidate,
        socket: Socket,
        is_eager: bool,
        allowance: Option<Duration>,
        now: Instant,
    ) -> Self {
        Self {
            remote: candidate.address,
            socket,
            since: now,
            limit: candidate.timeout,
            sent: 0,
            left_out: 0,
            connected: false,
            greeted: None,
            is_eager,
            login: match &candidate.login {
                None => Login::None,
                Some(login) => Login::Wanted(Arc::clone(login)),
            },
            watch: Watch::default(),
            unread: Vec::new(),
            is_dry: false,
            asked: now,
            connecting: Duration::ZERO,
            allowance: allowance.unwrap_or_default(),
            is_ready: false,
            has_spoken: false,
        }
    }

    /// So many of the client's first bytes are in its SYN.
    pub(super) fn having_sent(mut self, sent: usize) -> Self {
        self.sent = sent;
        self
    }

    /// Over a connection that was there before the client.
    pub(super) fn made_ready(mut self) -> Self {
        self.is_ready = true;
        self
    }

    /// Whether it goes over a connection that was there before the client, and of which nobody knows yet whether it still
    /// is: that it fails is then no failure of the remote.
    pub(super) fn is_unproven(&self) -> bool {
        self.is_ready && !self.has_spoken
    }

    /// How long the remote took from the start of the connect to its choice of a method, if it was connected to for this client.
    pub(super) fn greeted_in(&mut self, now: Instant) -> Option<Duration> {
        let took = now.saturating_duration_since(self.since);
        if self.is_ready {
            return None;
        }
        Some(*self.greeted.get_or_insert(took))
    }

    /// How long it took for what is not more than the way there and back, when it has just answered the greeting.
    pub(super) fn pace(&self, now: Instant) -> Duration {
        let answering = now.saturating_duration_since(self.asked);
        answering.max(self.connecting)
    }

    /// Sends what is due, and reads up to the end of the next message.
    pub(super) fn advance(&mut self, said: &Said<'_>, cx: &mut TurnContext<'_>) -> Advance {
        self.begin_login(said);
        match self.send(said, cx.now) {
            Ok(()) if self.connected => {}
            Ok(()) => return Advance::Wait,
            Err(error) if self.connected => {
                return Advance::Failed(DialFailure::Reset(self.awaited(), error));
            }
            Err(error) => return Advance::Failed(DialFailure::Connect(error)),
        }
        if said.speaks() == Speaks::Other {
            // Whatever the remote does from here on, its end included, is for the client.
            return match self.sent == said.len() {
                true => Advance::Relay,
                false => Advance::Wait,
            };
        }
        let advance = match self.login {
            Login::None => self.hear(said, cx),
            Login::Wanted(_) => Advance::Wait,
            Login::Running(..) => self.log_in(said, cx),
        };
        match advance {
            Advance::Wait if said.is_full() && self.sent == said.len() && !self.is_unproven() => {
                Advance::Relay
            }
            advance => advance,
        }
    }

    fn begin_login(&mut self, said: &Said<'_>) {
        let Login::Wanted(credentials) = &self.login else {
            return;
        };
        if said.speaks() == Speaks::Socks5 && said.greeting().is_none() {
            return;
        }
        self.login = if said.offers(Method::NONE) {
            let mut client = Client::new(Goal::Greet, Some(Credentials::clone(credentials)));
            let mut unsent = Vec::new();
            client.start(&mut unsent);
            Login::Running(Box::new(client), unsent)
        } else {
            Login::None
        };
    }

    /// How far the client's bytes may be sent now.
    fn due(&self, said: &Said<'_>) -> usize {
        match self.login {
            Login::None if self.is_unproven() => said.repeatable(),
            Login::None if self.watch.awaits_method() && !self.is_eager => said.greeting_due(),
            Login::None => said.due(),
            Login::Wanted(_) | Login::Running(..) => 0,
        }
    }

    /// Sends what can be sent.
    fn send(&mut self, said: &Said<'_>, now: Instant) -> io::Result<()> {
        let was_connected = self.connected;
        let sent = self.send_due(said, now);
        if self.connected && !was_connected {
            self.connecting = now.saturating_duration_since(self.since);
        }
        sent
    }

    /// That the connect has ended shows in the first write that is taken.
    fn send_due(&mut self, said: &Said<'_>, now: Instant) -> io::Result<()> {
        let due = self.due(said);
        if !self.connected && !self.has_unsent(said) {
            self.connected = match finish_connect(&self.socket) {
                Ok(connected) => connected,
                Err(ConnectFailure::Local(error) | ConnectFailure::Remote(error)) => {
                    return Err(error);
                }
            };
            self.asked = now;
        }
        if let Login::Running(_, unsent) = &mut self.login {
            let before = unsent.len();
            let sent = match write_all_now(&self.socket, unsent) {
                Ok(_) => Ok(()),
                Err(error) if is_pending(&error) && !self.connected => Ok(()),
                Err(error) => Err(error),
            };
            if unsent.len() < before {
                (self.connected, self.asked, self.is_dry) = (true, now, true);
            }
            return sent;
        }
        while let Some(rest) = said
            .bytes()
            .get(self.sent..due)
            .filter(|rest| !rest.is_empty())
        {
            match (&self.socket).write(rest) {
                Ok(count) => {
                    self.sent += count;
                    (self.connected, self.asked, self.is_dry) = (true, now, true);
                }
                Err(error) => {
                    return match error.kind() {
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::WouldBlock => Ok(()),
                        _ if is_pending(&error) && !self.connected => Ok(()),
                        _ => Err(error),
                    };
                }
            }
        }
        Ok(())
    }

    /// Reads what it answers to user and password, and not a byte more.
    fn log_in(&mut self, said: &Said<'_>, cx: &mut TurnContext<'_>) -> Advance {
        let awaited = self.awaited();
        let Login::Running(client, unsent) = &mut self.login else {
            return Advance::Wait;
        };
        while !self.is_dry {
            let input = match read_some(&self.socket, cx.buffer_up_to(client.wanted())) {
                Ok(Some([])) => return Advance::Failed(DialFailure::ClosedEarly(awaited)),
                Ok(Some(input)) => input,
                Ok(None) => return Advance::Wait,
                Err(error) => return Advance::Failed(DialFailure::Reset(awaited, error)),
            };
            self.has_spoken = true;
            if let Err(error) = client.feed(input, unsent) {
                return Advance::Failed(login_failure(error, input));
            }
            if let Some(Outcome::Greeted(_)) = client.outcome() {
                self.login = Login::None;
                self.watch = Watch::for_reply();
                self.left_out = said.greeting().unwrap_or_default();
                self.sent = self.left_out;
                self.asked = cx.now;
                return Advance::Method(Method::NONE);
            }
            if let Err(error) = write_all_now(&self.socket, unsent) {
                return Advance::Failed(DialFailure::Reset(awaited, error));
            }
            self.asked = cx.now;
        }
        Advance::Wait
    }

    /// Reads what it answers to the client.
    fn hear(&mut self, said: &Said<'_>, cx: &mut TurnContext<'_>) -> Advance {
        loop {
            if self.unread.is_empty() {
                if self.is_dry {
                    return Advance::Wait;
                }
                let awaited = self.awaited();
                match read_some(&self.socket, cx.buffer_up_to(ANSWER)) {
                    Ok(Some([])) => return Advance::Failed(DialFailure::ClosedEarly(awaited)),
                    Ok(Some(input)) => {
                        self.has_spoken = true;
                        self.unread = input.to_vec();
                    }
                    Ok(None) => return Advance::Wait,
                    Err(error) => return Advance::Failed(DialFailure::Reset(awaited, error)),
                }
            }
            if said.speaks() != Speaks::Socks5 {
                return Advance::Relay;
            }
            let kept = self.watch.heard().len();
            let Ok((taken, seen)) = self.watch.feed(&self.unread) else {
                // The watch has kept some of what is unread.
                let watch = std::mem::take(&mut self.watch);
                let mut bytes = watch.heard().get(..kept).unwrap_or_default().to_vec();
                bytes.append(&mut self.unread);
                return Advance::Unreadable(bytes);
            };
            self.unread.drain(..taken);
            match seen {
                None => {}
                Some(Seen::Method(method)) => return Advance::Method(method),
                Some(Seen::Reply { reply, bytes }) if self.is_asked(said) => {
                    return Advance::Reply(reply, bytes);
                }
                Some(Seen::Refused { code, bytes }) if self.is_asked(said) => {
                    return Advance::Refused(code, bytes);
                }
                // To a request that it has not heard.
                Some(Seen::Reply { mut bytes, .. } | Seen::Refused { mut bytes, .. }) => {
                    bytes.append(&mut self.unread);
                    return Advance::Unreadable(bytes);
                }
            }
        }
    }

    /// What it said that nobody has been told of: of a message that is not whole, and behind it.
    pub(super) fn take_heard(&mut self) -> Vec<u8> {
        let mut heard = self.watch.heard().to_vec();
        heard.append(&mut self.unread);
        heard
    }

    /// Whether there is something that it said.
    pub(super) fn has_answered(&self) -> bool {
        !self.unread.is_empty() || !self.watch.heard().is_empty()
    }

    /// Whether it did what a client of SOCKS 4 asked for.
    pub(super) fn has_granted(&self) -> bool {
        self.unread.starts_with(&[0, 0x5A])
    }

    /// Bytes of the client that it has heard.
    pub(super) fn carried(&self) -> u64 {
        self.sent.saturating_sub(self.left_out) as u64
    }

    /// Whether the greeting has been answered, by whomever it was sent.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.login, Login::None) && !self.watch.awaits_method()
    }

    /// Whether it has heard a whole request, so that it owes a reply.
    pub(super) fn is_asked(&self, said: &Said<'_>) -> bool {
        matches!(said.asked(), Asked::For { end, .. } if self.sent >= end)
    }

    pub(super) fn awaited(&self) -> Awaited {
        match &self.login {
            Login::Running(client, _) if client.phase() == Phase::AuthStatus => Awaited::Login,
            Login::None if !self.watch.awaits_method() => Awaited::Reply,
            _ => Awaited::First,
        }
    }

    /// When its time is up, and why then.
    ///
    /// Silence counts against it only where it owes an answer. In SOCKS 4 the first one comes when it has reached the
    /// target, which takes as long as it takes; in SOCKS 5 it owes one for a whole greeting, and a reply after a while.
    pub(super) fn deadline(
        &self,
        said: &Said<'_>,
        limit: Duration,
        patience: Patience,
    ) -> Option<Instant> {
        let limit = self.limit.unwrap_or(limit);
        if self.is_unproven() {
            return Some(self.asked + self.allowance.max(STALE).min(limit));
        }
        if !self.connected {
            return Some(self.since + limit);
        }
        if patience == Patience::Unlimited {
            return None;
        }
        match said.speaks() {
            Speaks::Socks5 if self.is_open() => {
                (self.is_asked(said) && said.fails_over()).then_some(self.asked + REPLY_LIMIT)
            }
            Speaks::Socks5 => said.greeting().map(|_| self.asked + limit),
            Speaks::Socks4 | Speaks::Other => None,
        }
    }

    /// What to call it that its time is up.
    pub(super) fn lateness(&self) -> DialFailure {
        match self.connected {
            true => DialFailure::Silent(self.awaited()),
            false => DialFailure::ConnectTimedOut,
        }
    }

    /// When it is slow enough that another one may be tried beside it: after `stagger` where one that is well takes no
    /// longer than the way there and back, after `limit` where it has to do something for the client.
    pub(super) fn hesitates_at(
        &self,
        said: &Said<'_>,
        stagger: Option<Duration>,
        limit: Duration,
    ) -> Option<Instant> {
        let stagger = stagger.map(|stagger| stagger.max(self.allowance));
        if !self.connected {
            return stagger.map(|stagger| self.since + stagger);
        }
        match said.speaks() {
            Speaks::Socks5 if self.is_open() => {
                (self.is_asked(said) && said.fails_over()).then_some(self.asked + limit)
            }
            Speaks::Socks5 => {
                said.greeting()?;
                stagger.map(|stagger| self.asked + stagger)
            }
            Speaks::Socks4 | Speaks::Other => None,
        }
    }

    pub(super) fn want(&self, said: &Said<'_>) -> Want {
        Want {
            read: self.connected,
            write: !self.connected || self.has_unsent(said),
        }
    }

    fn has_unsent(&self, said: &Said<'_>) -> bool {
        match &self.login {
            Login::Running(_, unsent) => !unsent.is_empty(),
            _ => self.sent < self.due(said),
        }
    }
}

/// A write to a socket whose connect goes on.
fn is_pending(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
}

fn login_failure(error: HandshakeError, input: &[u8]) -> DialFailure {
    match error {
        HandshakeError::CredentialsRejected(_) => DialFailure::LoginRejected,
        HandshakeError::NoAcceptableMethod => {
            DialFailure::NoProxy(vec![5, Method::NONE_ACCEPTABLE.0])
        }
        HandshakeError::MethodNotOffered(method) => DialFailure::NoProxy(vec![5, method.0]),
        HandshakeError::NotSocks(first) => DialFailure::NoProxy(first.as_bytes().to_vec()),
        _ => DialFailure::NoProxy(input.to_vec()),
    }
}

/// What is read of a remote's answers at once.
const ANSWER: usize = 4096;

/// A connection that was there before the client is answered on within this, or has gone without a word: then a new one is
/// made. More than most ways there and back take, with a lost packet.
const STALE: Duration = Duration::from_secs(1);

/// For the reply to a request while others are asked beside: systems give up a connect after some 130 s, and whoever waits
/// longer has lost it.
const REPLY_LIMIT: Duration = Duration::from_secs(150);

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::engine::Ready;
    use crate::forward::said::{Hold, Told};
    use crate::net::start_connect;

    /// Some servers end their side first and then take what comes.
    #[test]
    fn plain_remote_that_ends_its_side_at_once_still_gets_the_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap();
        let socket = start_connect(remote, &Default::default()).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
        let now = Instant::now();
        let mut attempt = Attempt::new(&remote.into(), socket, true, None, now);
        let mut buffer = Vec::new();
        let mut cx = TurnContext::new(now, Ready::ALL, &mut buffer);
        let said = Said::new(b"GET /", Hold::Nothing, Told::Nothing);
        assert!(matches!(attempt.advance(&said, &mut cx), Advance::Relay));
        assert!(attempt.carried() == 5 && attempt.take_heard().is_empty());
    }
}
