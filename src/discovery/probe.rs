//! One probe: a connection to a peer that greets it and classifies the answer.
//!
//! `05 01 00` goes out, two bytes come in, and the time limit covers the whole of it. With a target it goes on to
//! CONNECT there, which proves that the exit works. A peer that there is a user and a password for is greeted with `05 01 02` and told
//! these (RFC 1929). Where SOCKS 6 is asked for too, a peer that answered like a proxy that knows
//! nothing else gets a NOOP of that version on a second connection.

use std::io;
#[cfg(feature = "socks6")]
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::Socket;

#[cfg(feature = "socks6")]
use super::status::Status;
use super::status::{Finding, FirstBytes, Phase, Reason, Stage};
use crate::engine::{Cx, Next, Task, Want};
use crate::handshake::client::Phase as Awaited;
#[cfg(feature = "socks6")]
use crate::handshake::socks6;
use crate::handshake::{Client, Goal, HandshakeError, Refusal};
use crate::net::{Uplink, finish_connect, read_some, start_connect, write_all_now};
use crate::proxy_uri::ProxyUri;
use crate::wire::socks5::Method;
#[cfg(feature = "socks6")]
use crate::wire::socks6::{Authentication, Command, Profile, Request};
use crate::wire::{Address, Credentials};

/// How peers are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    /// For the whole probe: connect, write and read.
    pub timeout: Duration,
    /// Where the proxy is asked to connect to, if anywhere.
    pub target: Option<Address>,
    /// Whether peers that do not take us in SOCKS5 are asked in SOCKS 6.
    pub socks6: AskSocks6,
    /// Which way probes take: that of the connections that follow them.
    pub uplink: Uplink,
}

/// Whether a peer is asked in SOCKS 6 that has answered in SOCKS5 like a proxy that knows nothing but SOCKS 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AskSocks6 {
    /// It is not.
    #[default]
    No,
    /// It is, with a request for nothing on a second connection, in what is left of the time.
    #[cfg(feature = "socks6")]
    Yes(Profile),
}

impl AskSocks6 {
    /// As this proxy is to be spoken to, if that is in SOCKS 6.
    #[must_use]
    #[cfg(feature = "socks6")]
    pub fn like(proxy: &ProxyUri) -> Self {
        let options = proxy.socks6();
        options.map_or(Self::No, |options| Self::Yes(options.profile))
    }

    /// Nobody is spoken to in SOCKS 6 here.
    #[must_use]
    #[cfg(not(feature = "socks6"))]
    pub fn like(_: &ProxyUri) -> Self {
        Self::No
    }
}

/// Called once with what a probe found. Not called when the probe is cancelled.
pub type OnFinding = Box<dyn FnOnce(&mut Cx<'_>, SocketAddr, Finding)>;

/// A probe under way.
pub struct Probe {
    address: SocketAddr,
    timeout: Duration,
    uplink: Uplink,
    /// For all of it, from the start of the first connection.
    until: Option<Instant>,
    talk: Talk,
    /// What it is for a SOCKS5 proxy to take us.
    greeted: Reason,
    unsent: Vec<u8>,
    connection: Option<Connection>,
    on_finding: Option<OnFinding>,
}

/// What is said to the peer.
enum Talk {
    /// In SOCKS5, and what to do if that is not what it speaks.
    Older(Client, AskSocks6),
    /// In SOCKS 6, and what was found before.
    #[cfg(feature = "socks6")]
    Six(Box<socks6::Client>, Finding),
}

struct Connection {
    socket: Socket,
    started: Instant,
    established: bool,
}

impl Probe {
    /// A probe of one address, with this login if there is one for it.
    #[must_use]
    pub fn new(
        address: SocketAddr,
        login: Option<&Credentials>,
        settings: &ProbeSettings,
        on_finding: OnFinding,
    ) -> Self {
        let goal = settings.target.clone().map_or(Goal::Greet, Goal::Connect);
        let mut handshake = Client::new(goal, login.cloned());
        let mut unsent = Vec::new();
        handshake.start(&mut unsent);
        Self {
            address,
            timeout: settings.timeout,
            uplink: settings.uplink.clone(),
            until: None,
            talk: Talk::Older(handshake, settings.socks6),
            greeted: match login {
                None => Reason::Answered(0),
                Some(_) => Reason::LoginAccepted,
            },
            unsent,
            connection: None,
            on_finding: Some(on_finding),
        }
    }

    /// What the probe has found out, or `None` while it is under way.
    fn advance(&mut self, cx: &Cx<'_>) -> Option<Finding> {
        let finding = self.converse(cx)?;
        #[cfg(feature = "socks6")]
        match &self.talk {
            Talk::Older(_, AskSocks6::Yes(wanted)) => {
                let Some(profile) = spoken_by(finding.reason(), *wanted) else {
                    return Some(finding);
                };
                // Only such a peer costs a second connection.
                self.connection = None;
                let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                let request = Request::new(Command::NOOP, nobody.into());
                let mut client = socks6::Client::new(request, profile);
                self.unsent.clear();
                client.start(&mut self.unsent);
                self.talk = Talk::Six(Box::new(client), finding);
                return self.advance(cx);
            }
            Talk::Six(_, before) if finding.status() != Status::Socks6 => return Some(*before),
            _ => {}
        }
        Some(finding)
    }

    /// The same for what is said now.
    fn converse(&mut self, cx: &Cx<'_>) -> Option<Finding> {
        let until = *self.until.get_or_insert(cx.now + self.timeout);
        let late = cx.now >= until;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => match start(self.address, &self.uplink, cx) {
                Ok(connection) => self.connection.insert(connection),
                Err(finding) => return Some(finding),
            },
        };
        let latency = Instant::now().saturating_duration_since(connection.started);
        if !connection.established {
            match finish_connect(&connection.socket) {
                Ok(true) => connection.established = true,
                Ok(false) => {
                    return late.then_some(Finding::timed_out(Phase::Connecting));
                }
                Err(failure) => {
                    return Some(Finding::from_error(
                        failure.error(),
                        Stage::Connecting,
                        latency,
                    ));
                }
            }
        }
        loop {
            if let Err(error) = write_all_now(&connection.socket, &mut self.unsent) {
                return Some(Finding::from_error(&error, Stage::Established, latency));
            }
            let mut buffer = [0; ANSWER];
            let answer = match read_some(&connection.socket, &mut buffer) {
                Ok(Some(answer)) => answer,
                Ok(None) => return late.then_some(Finding::timed_out(self.talk.phase())),
                Err(error) => {
                    return Some(Finding::from_error(&error, Stage::Established, latency));
                }
            };
            if let Some(reason) = self.talk.hear(answer, self.greeted, &mut self.unsent) {
                return Some(Finding::answered(reason, latency));
            }
            if late {
                return Some(Finding::timed_out(Phase::Greeting));
            }
        }
    }
}

impl Talk {
    /// Takes an answer, of which the empty one is the end. What it comes to, once it comes to something.
    fn hear(&mut self, answer: &[u8], greeted: Reason, unsent: &mut Vec<u8>) -> Option<Reason> {
        match self {
            Self::Older(client, _) if answer.is_empty() => Some(judge(client.closed(), &[])),
            Self::Older(client, _) => match client.feed(answer, unsent) {
                Err(error) => Some(judge(error, answer)),
                Ok(_) => client.outcome().map(|_| greeted),
            },
            #[cfg(feature = "socks6")]
            Self::Six(client, _) => {
                let failed = client.feed(answer).is_err() || answer.is_empty();
                let reply = client.auth_reply();
                let said = reply.map(|reply| reply.authentication());
                let version = client.profile().version;
                match said {
                    // Also if it does not like the request: it is one.
                    Some(Authentication::Succeeded) => {
                        let done = failed || client.outcome().is_some();
                        done.then_some(Reason::AnsweredSocks6(0, version))
                    }
                    Some(_) => Some(Reason::AnsweredSocks6(1, version)),
                    None => failed.then_some(Reason::Sent(FirstBytes::new(answer))),
                }
            }
        }
    }

    fn phase(&self) -> Phase {
        match self {
            Self::Older(client, _) => match client.phase() {
                Awaited::Reply | Awaited::SecondReply => Phase::Target,
                _ => Phase::Greeting,
            },
            #[cfg(feature = "socks6")]
            Self::Six(..) => Phase::Greeting,
        }
    }
}

/// How to ask one in SOCKS 6 that is no SOCKS5 proxy for us, if it has said something that proxies of SOCKS 6 say to other
/// versions: theirs, which the draft has them send and which says how to speak to it; or that no method is acceptable.
#[cfg(feature = "socks6")]
fn spoken_by(reason: Reason, wanted: Profile) -> Option<Profile> {
    match reason {
        Reason::Answered(0xFF) => Some(wanted),
        Reason::Sent(first) => {
            let version = *first.as_bytes().first()?;
            let mut profiles = Profile::NAMED.map(|(_, profile)| profile).into_iter();
            match version == wanted.version {
                true => Some(wanted),
                false => profiles.find(|profile| profile.version == version),
            }
        }
        _ => None,
    }
}

fn judge(error: HandshakeError, answer: &[u8]) -> Reason {
    match error {
        HandshakeError::NotSocks(bytes) => Reason::Sent(bytes),
        HandshakeError::NoAcceptableMethod => Reason::Answered(0xFF),
        HandshakeError::AuthenticationRequired => Reason::Answered(0x02),
        HandshakeError::CredentialsRejected(_) => Reason::LoginRejected,
        // It skips the login that it was offered: whoever it is, it is not the proxy that the login is for.
        HandshakeError::MethodNotOffered(Method::NONE) => Reason::Sent(FirstBytes::new(answer)),
        HandshakeError::MethodNotOffered(method) => Reason::Answered(method.0),
        HandshakeError::Refused(Refusal::Socks5(code)) => Reason::TargetRefused(code.0),
        HandshakeError::Refused(Refusal::Socks4(code)) => Reason::TargetRefused(code.0),
        HandshakeError::ClosedEarly(_, bytes) => {
            Reason::ClosedEarly(bytes.try_into().unwrap_or(u8::MAX))
        }
        HandshakeError::Malformed(..) | HandshakeError::Unsolicited(_) => {
            Reason::Sent(FirstBytes::new(answer))
        }
    }
}

impl Task for Probe {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        match self.advance(cx) {
            None => Next::Wait(self.until),
            Some(finding) => {
                // Closed before anybody is told: the next probe may need the descriptor.
                self.connection = None;
                if let Some(on_finding) = self.on_finding.take() {
                    on_finding(cx, self.address, finding);
                }
                Next::Done
            }
        }
    }
}

fn start(address: SocketAddr, uplink: &Uplink, cx: &Cx<'_>) -> Result<Connection, Finding> {
    let started = Instant::now();
    let failed = |error: &io::Error| Finding::from_error(error, Stage::Starting, started.elapsed());
    let socket = start_connect(address, uplink).map_err(|failure| failed(failure.error()))?;
    cx.watch(socket.as_fd(), Want::READ_WRITE)
        .map_err(|error| failed(&error))?;
    Ok(Connection {
        socket,
        started,
        established: false,
    })
}

/// Read at once: an answer to the greeting and a reply with the longest name.
const ANSWER: usize = 512;
