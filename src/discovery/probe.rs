//! One probe: a connection to a peer that greets it and classifies the answer.
//!
//! `05 01 00` goes out, two bytes come in, and the time limit covers the whole of it. With a target it goes on to
//! CONNECT there, which proves that the exit works.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::status::{Finding, FirstBytes, Phase, Reason, Stage};
use crate::engine::{Cx, Next, Task, Want};
use crate::handshake::client::Phase as Awaited;
use crate::handshake::{Client, Goal, HandshakeError, Refusal};
use crate::net::{finish_connect, read_some, start_connect, write_all_now};
use crate::wire::Address;

/// How peers are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    /// For the whole probe: connect, write and read.
    pub timeout: Duration,
    /// Where the proxy is asked to connect to, if anywhere.
    pub target: Option<Address>,
}

/// Called once with what a probe found. Not called when the probe is cancelled.
pub type OnFinding = Box<dyn FnOnce(&mut Cx<'_>, SocketAddr, Finding)>;

/// A probe under way.
pub struct Probe {
    address: SocketAddr,
    timeout: Duration,
    handshake: Client,
    unsent: Vec<u8>,
    connection: Option<Connection>,
    on_finding: Option<OnFinding>,
}

struct Connection {
    socket: Socket,
    started: Instant,
    until: Instant,
    established: bool,
}

impl Probe {
    /// A probe of one address.
    #[must_use]
    pub fn new(address: SocketAddr, settings: &ProbeSettings, on_finding: OnFinding) -> Self {
        let goal = settings.target.clone().map_or(Goal::Greet, Goal::Connect);
        let mut handshake = Client::new(goal, None);
        let mut unsent = Vec::new();
        handshake.start(&mut unsent);
        Self {
            address,
            timeout: settings.timeout,
            handshake,
            unsent,
            connection: None,
            on_finding: Some(on_finding),
        }
    }

    /// What the probe has found out, or `None` while it is under way.
    fn advance(&mut self, cx: &Cx<'_>) -> Option<Finding> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => match start(self.address, self.timeout, cx) {
                Ok(connection) => self.connection.insert(connection),
                Err(finding) => return Some(finding),
            },
        };
        let latency = Instant::now().saturating_duration_since(connection.started);
        if !connection.established {
            match finish_connect(&connection.socket) {
                Ok(true) => connection.established = true,
                Ok(false) => {
                    return connection
                        .late(cx.now)
                        .then_some(Finding::timed_out(Phase::Connecting));
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
                Ok(Some([])) => return Some(judge(self.handshake.closed(), &[], latency)),
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    let phase = match self.handshake.phase() {
                        Awaited::Reply | Awaited::SecondReply => Phase::Target,
                        _ => Phase::Greeting,
                    };
                    return connection.late(cx.now).then_some(Finding::timed_out(phase));
                }
                Err(error) => {
                    return Some(Finding::from_error(&error, Stage::Established, latency));
                }
            };
            if let Err(error) = self.handshake.feed(answer, &mut self.unsent) {
                return Some(judge(error, answer, latency));
            }
            if self.handshake.outcome().is_some() {
                return Some(Finding::answered(Reason::Answered(0), latency));
            }
            if connection.late(cx.now) {
                return Some(Finding::timed_out(Phase::Greeting));
            }
        }
    }
}

fn judge(error: HandshakeError, answer: &[u8], latency: Duration) -> Finding {
    let reason = match error {
        HandshakeError::NotSocks(bytes) => Reason::Sent(bytes),
        HandshakeError::NoAcceptableMethod => Reason::Answered(0xFF),
        HandshakeError::AuthenticationRequired => Reason::Answered(0x02),
        HandshakeError::MethodNotOffered(method) => Reason::Answered(method.0),
        HandshakeError::Refused(Refusal::Socks5(code)) => Reason::TargetRefused(code.0),
        HandshakeError::Refused(Refusal::Socks4(code)) => Reason::TargetRefused(code.0),
        HandshakeError::ClosedEarly(_, bytes) => {
            Reason::ClosedEarly(bytes.try_into().unwrap_or(u8::MAX))
        }
        HandshakeError::CredentialsRejected(_)
        | HandshakeError::Malformed(..)
        | HandshakeError::Unsolicited(_) => Reason::Sent(FirstBytes::new(answer)),
    };
    Finding::answered(reason, latency)
}

impl Connection {
    fn late(&self, now: Instant) -> bool {
        now >= self.until
    }
}

impl Task for Probe {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        match self.advance(cx) {
            None => Next::Wait(self.connection.as_ref().map(|connection| connection.until)),
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

fn start(address: SocketAddr, timeout: Duration, cx: &Cx<'_>) -> Result<Connection, Finding> {
    let started = Instant::now();
    let failed = |error: &io::Error| Finding::from_error(error, Stage::Starting, started.elapsed());
    let socket = start_connect(address).map_err(|failure| failed(failure.error()))?;
    cx.watch(socket.as_fd(), Want::READ_WRITE)
        .map_err(|error| failed(&error))?;
    Ok(Connection {
        socket,
        started,
        until: started + timeout,
        established: false,
    })
}

/// Read at once: an answer to the greeting and a reply with the longest name.
const ANSWER: usize = 512;
