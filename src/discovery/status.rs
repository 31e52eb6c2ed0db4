//! What is known of a peer, and what one probe found out.
//!
//! [`Status`] is the short word, [`Reason`] the cause beside it, [`Finding`] the outcome of one probe. All are small
//! and `Copy`: the table keeps one of the first two for each of a hundred thousand addresses.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::net::{UplinkError, is_shortage};
pub use crate::wire::FirstBytes;

/// What an address is, as far as probes know. The order is that of the lists shown to users: useful ones first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Answered `05 00`, or accepted our user and password: a SOCKS5 proxy that takes us.
    Valid,
    /// Answered `05 FF` or `05 02`: a SOCKS5 proxy that wants a user and a password.
    AuthenticationRequired,
    /// A SOCKS 6 proxy that did not take us in SOCKS5.
    Socks6,
    /// Something listens there, and it is not a SOCKS proxy.
    NotAProxy,
    /// Refused, unreachable, or no answer in time.
    NotListening,
    /// Not probed yet, or only local errors so far.
    #[default]
    Unknown,
}

impl Status {
    /// Every status, in order.
    pub const ALL: [Self; 6] = [
        Self::Valid,
        Self::AuthenticationRequired,
        Self::Socks6,
        Self::NotAProxy,
        Self::NotListening,
        Self::Unknown,
    ];

    /// The word shown to users and used in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::AuthenticationRequired => "authentication-required",
            Self::Socks6 => "socks6",
            Self::NotAProxy => "not-a-proxy",
            Self::NotListening => "not-listening",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far a probe had come when its time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The TCP connection was not there yet.
    Connecting,
    /// The connection was there, and the answer to the greeting was not complete.
    Greeting,
    /// The greeting was answered, and the reply to the CONNECT for the probe target was not complete.
    Target,
}

/// Why a peer has its status. `Display` gives the text shown to users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No probe has ended yet.
    #[default]
    NotProbed,
    /// A SOCKS5 answer to the greeting: `05` and this method.
    Answered(u8),
    /// The peer accepted the user and the password that there are for it.
    LoginAccepted,
    /// The peer wants a user and a password, and rejected those that there are for it.
    LoginRejected,
    /// A SOCKS 6 answer to a request for nothing, with this type of authentication reply (0 accepted, else rejected) and this
    /// version byte.
    AnsweredSocks6(u8, u8),
    /// Other bytes than a SOCKS5 answer.
    Sent(FirstBytes),
    /// The peer closed the connection after this many bytes of an answer (255 for more).
    ClosedEarly(u8),
    /// The peer reset the connection once it was there.
    Reset,
    /// The connection was refused.
    Refused,
    /// A router or the peer's host said that the host can't be reached.
    HostUnreachable,
    /// A router said that the network can't be reached.
    NetworkUnreachable,
    /// No answer in time.
    TimedOut(Phase),
    /// The proxy answered the greeting, but refused to connect to the probe target, with this reply code.
    TargetRefused(u8),
    /// It refused a client's request with this reply code, and another peer then served the same request.
    RequestRefused(u8),
    /// The connection failed with another error number than those above.
    ConnectFailed(u16),
    /// No answer, and nobody else answered either: our own link may be down.
    LinkSuspected,
    /// Local: no descriptor or memory left for a probe.
    NoDescriptor,
    /// Local: this machine has no route to the address.
    NoRoute,
    /// Local: the interface that connections are to take is not there.
    NoInterface,
    /// Local: this machine does not have the address that connections are to come from.
    NoSource,
    /// Local: the address is a listener of ours, so it was not probed.
    OwnAddress,
    /// Local: another error number before anything was sent.
    LocalError(u16),
}

impl Reason {
    /// The status that this reason alone justifies.
    ///
    /// Reset goes with closed early: whether a proxy that does not want us closes before or after our greeting came in
    /// is a matter of timing, and only that decides between the two.
    #[must_use]
    pub const fn status(self) -> Status {
        match self {
            Self::Answered(0x00) | Self::LoginAccepted => Status::Valid,
            Self::Answered(0x02 | 0xFF) | Self::LoginRejected => Status::AuthenticationRequired,
            Self::AnsweredSocks6(..) => Status::Socks6,
            Self::Answered(_)
            | Self::Sent(_)
            | Self::ClosedEarly(_)
            | Self::Reset
            | Self::TargetRefused(_)
            | Self::RequestRefused(_) => Status::NotAProxy,
            Self::Refused
            | Self::HostUnreachable
            | Self::NetworkUnreachable
            | Self::TimedOut(_)
            | Self::ConnectFailed(_) => Status::NotListening,
            Self::NotProbed
            | Self::LinkSuspected
            | Self::NoDescriptor
            | Self::NoRoute
            | Self::NoInterface
            | Self::NoSource
            | Self::OwnAddress
            | Self::LocalError(_) => Status::Unknown,
        }
    }

    /// Whether nothing came back at all, which a broken link of ours would look like too.
    #[must_use]
    pub const fn is_silent(self) -> bool {
        matches!(
            self,
            Self::TimedOut(_)
                | Self::HostUnreachable
                | Self::NetworkUnreachable
                | Self::ConnectFailed(_)
        )
    }

    /// Whether the cause is on this machine and says nothing about the peer.
    #[must_use]
    pub const fn is_local(self) -> bool {
        matches!(
            self,
            Self::NoDescriptor
                | Self::NoRoute
                | Self::NoInterface
                | Self::NoSource
                | Self::OwnAddress
                | Self::LocalError(_)
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotProbed => f.write_str("not probed yet"),
            Self::Answered(method) => write!(f, "answered 05 {method:02X}"),
            Self::LoginAccepted => f.write_str("accepted the user and password"),
            Self::LoginRejected => f.write_str("rejected the user and password"),
            Self::AnsweredSocks6(code, version) => {
                f.write_str("answered in SOCKS 6")?;
                if version != 6 {
                    write!(f, " as version {version}")?;
                }
                match code {
                    0 => Ok(()),
                    _ => f.write_str(", wants authentication"),
                }
            }
            Self::Sent(bytes) => write!(f, "sent {bytes}"),
            Self::ClosedEarly(0) => f.write_str("closed without an answer"),
            Self::ClosedEarly(1) => f.write_str("closed after 1 byte"),
            Self::ClosedEarly(n) => write!(f, "closed after {n} bytes"),
            Self::Reset => f.write_str("reset"),
            Self::Refused => f.write_str("refused"),
            Self::HostUnreachable => f.write_str("host unreachable"),
            Self::NetworkUnreachable => f.write_str("network unreachable"),
            Self::TimedOut(Phase::Connecting) => f.write_str("timed out"),
            Self::TimedOut(Phase::Greeting) => f.write_str("timed out after connecting"),
            Self::TimedOut(Phase::Target) => {
                f.write_str("timed out connecting to the probe target")
            }
            Self::TargetRefused(code) => write!(f, "probe target refused with reply {code:02X}"),
            Self::RequestRefused(code) => {
                write!(f, "refused what another peer served, with reply {code:02X}")
            }
            Self::ConnectFailed(errno) => {
                write!(
                    f,
                    "connect failed: {}",
                    io::Error::from_raw_os_error(errno.into())
                )
            }
            Self::LinkSuspected => f.write_str("no answer, own link may be down"),
            Self::NoDescriptor => f.write_str("no descriptor left to probe it"),
            Self::NoRoute => f.write_str("no route from here"),
            Self::NoInterface => f.write_str("no such interface (--interface)"),
            Self::NoSource => f.write_str("no such address here (--source)"),
            Self::OwnAddress => f.write_str("own listener, not probed"),
            Self::LocalError(errno) => {
                write!(
                    f,
                    "local error: {}",
                    io::Error::from_raw_os_error(errno.into())
                )
            }
        }
    }
}

/// The outcome of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Bytes came back (or the connection was closed or reset by the peer once it was there).
    Answered {
        /// What the answer makes of the peer; [`Reason::status`] unless the prober knows better.
        status: Status,
        /// What was answered.
        reason: Reason,
        /// From the start of the connect to the decisive byte.
        latency: Duration,
    },
    /// The peer did not answer: refused, unreachable, timed out.
    Failed {
        /// Why.
        reason: Reason,
    },
    /// The probe failed on this machine; nothing was learned about the peer.
    Local {
        /// Why.
        reason: Reason,
    },
}

/// What a probe was doing when a system call failed: this decides whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `socket`, `bind`, or `connect` that failed at once: no packet has been sent.
    Starting,
    /// The pending connect failed.
    Connecting,
    /// A write or read failed on the established connection.
    Established,
}

impl Finding {
    /// The finding for an answer or an early close, with the status that its reason justifies.
    #[must_use]
    pub const fn answered(reason: Reason, latency: Duration) -> Self {
        Self::Answered {
            status: reason.status(),
            reason,
            latency,
        }
    }

    /// The finding for a time-out.
    #[must_use]
    pub const fn timed_out(phase: Phase) -> Self {
        Self::Failed {
            reason: Reason::TimedOut(phase),
        }
    }

    /// Classifies a failed system call. `latency` is the time since the start of the connect.
    ///
    /// "Network unreachable" is our own missing route when `connect` says so at once, and a router's word when it
    /// comes later. Refused counts for the peer at any stage: on loopback it comes at once.
    #[must_use]
    pub fn from_error(error: &io::Error, stage: Stage, latency: Duration) -> Self {
        use io::ErrorKind as Kind;
        let errno = u16::try_from(error.raw_os_error().unwrap_or(0)).unwrap_or(0);
        let reason = match (error.kind(), stage) {
            (
                Kind::ConnectionReset
                | Kind::BrokenPipe
                | Kind::ConnectionAborted
                | Kind::NotConnected,
                _,
            ) => Reason::Reset,
            (Kind::ConnectionRefused, _) => Reason::Refused,
            (Kind::UnexpectedEof, _) => Reason::ClosedEarly(0),
            (
                Kind::NetworkUnreachable | Kind::HostUnreachable | Kind::AddrNotAvailable,
                Stage::Starting,
            ) => Reason::NoRoute,
            (Kind::NetworkDown, _) => match UplinkError::of(error) {
                Some(UplinkError::NoInterface(_)) => Reason::NoInterface,
                Some(UplinkError::NoSource(_)) => Reason::NoSource,
                _ => Reason::NoRoute,
            },
            (Kind::HostUnreachable, _) => Reason::HostUnreachable,
            (Kind::NetworkUnreachable, _) => Reason::NetworkUnreachable,
            (Kind::TimedOut, Stage::Established) => Reason::TimedOut(Phase::Greeting),
            (Kind::TimedOut, _) => Reason::TimedOut(Phase::Connecting),
            (Kind::OutOfMemory, _) => Reason::NoDescriptor,
            _ if is_shortage(error) => Reason::NoDescriptor,
            (_, Stage::Starting) => Reason::LocalError(errno),
            _ => Reason::ConnectFailed(errno),
        };
        match reason {
            Reason::Reset | Reason::ClosedEarly(_) => Self::answered(reason, latency),
            _ if reason.is_local() => Self::Local { reason },
            _ => Self::Failed { reason },
        }
    }

    /// The reason in it.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match *self {
            Self::Answered { reason, .. } | Self::Failed { reason } | Self::Local { reason } => {
                reason
            }
        }
    }

    /// The status it gives to an address that nothing was known about.
    #[must_use]
    pub const fn status(&self) -> Status {
        match *self {
            Self::Answered { status, .. } => status,
            Self::Failed { .. } => Status::NotListening,
            Self::Local { .. } => Status::Unknown,
        }
    }
}

/// The table's size per address rests on this one.
const _: () = assert!(size_of::<Reason>() <= 10);

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn words_are_those_of_the_protocol() {
        let words: Vec<String> = Status::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "valid",
                "authentication-required",
                "socks6",
                "not-a-proxy",
                "not-listening",
                "unknown"
            ]
        );
        assert_eq!(format!("{:<8}|", Status::Valid), "valid   |");
    }

    #[test]
    fn reasons_read_well_and_imply_a_status() {
        let table = [
            (Reason::NotProbed, "not probed yet", Status::Unknown),
            (Reason::Answered(0), "answered 05 00", Status::Valid),
            (
                Reason::Answered(0xFF),
                "answered 05 FF",
                Status::AuthenticationRequired,
            ),
            (
                Reason::Answered(2),
                "answered 05 02",
                Status::AuthenticationRequired,
            ),
            (Reason::Answered(1), "answered 05 01", Status::NotAProxy),
            (
                Reason::AnsweredSocks6(0, 6),
                "answered in SOCKS 6",
                Status::Socks6,
            ),
            (
                Reason::AnsweredSocks6(1, 212),
                "answered in SOCKS 6 as version 212, wants authentication",
                Status::Socks6,
            ),
            (
                Reason::Sent(FirstBytes::new(b"HTTP/1.1 400")),
                "sent \"HTTP/1.1\"",
                Status::NotAProxy,
            ),
            (
                Reason::Sent(FirstBytes::new(b"220\r\n")),
                "sent \"220\\r\\n\"",
                Status::NotAProxy,
            ),
            (
                Reason::Sent(FirstBytes::new(&[0x15, 3, 3, 0, 2, 2, 0x46])),
                "sent 15 03 03 00 02 02 46",
                Status::NotAProxy,
            ),
            (
                Reason::Sent(FirstBytes::new(&[4, 0x5A])),
                "sent 04 5A",
                Status::NotAProxy,
            ),
            (
                Reason::ClosedEarly(0),
                "closed without an answer",
                Status::NotAProxy,
            ),
            (
                Reason::ClosedEarly(1),
                "closed after 1 byte",
                Status::NotAProxy,
            ),
            (Reason::Reset, "reset", Status::NotAProxy),
            (Reason::Refused, "refused", Status::NotListening),
            (
                Reason::HostUnreachable,
                "host unreachable",
                Status::NotListening,
            ),
            (
                Reason::NetworkUnreachable,
                "network unreachable",
                Status::NotListening,
            ),
            (
                Reason::TimedOut(Phase::Connecting),
                "timed out",
                Status::NotListening,
            ),
            (
                Reason::TimedOut(Phase::Greeting),
                "timed out after connecting",
                Status::NotListening,
            ),
            (
                Reason::TargetRefused(5),
                "probe target refused with reply 05",
                Status::NotAProxy,
            ),
            (
                Reason::LinkSuspected,
                "no answer, own link may be down",
                Status::Unknown,
            ),
            (Reason::NoRoute, "no route from here", Status::Unknown),
        ];
        for (reason, text, status) in table {
            assert_eq!(reason.to_string(), text);
            assert_eq!(reason.status(), status, "{text}");
        }
    }

    #[test]
    fn errors_are_told_apart_by_stage() {
        let local = |reason| Finding::Local { reason };
        let failed = |reason| Finding::Failed { reason };
        let table = [
            (Errno::MFILE, Stage::Starting, local(Reason::NoDescriptor)),
            (Errno::NFILE, Stage::Starting, local(Reason::NoDescriptor)),
            (
                Errno::NOBUFS,
                Stage::Connecting,
                local(Reason::NoDescriptor),
            ),
            (Errno::NETUNREACH, Stage::Starting, local(Reason::NoRoute)),
            (Errno::ADDRNOTAVAIL, Stage::Starting, local(Reason::NoRoute)),
            (Errno::HOSTUNREACH, Stage::Starting, local(Reason::NoRoute)),
            (
                Errno::NETUNREACH,
                Stage::Connecting,
                failed(Reason::NetworkUnreachable),
            ),
            (
                Errno::HOSTUNREACH,
                Stage::Connecting,
                failed(Reason::HostUnreachable),
            ),
            (
                Errno::CONNREFUSED,
                Stage::Connecting,
                failed(Reason::Refused),
            ),
            (Errno::CONNREFUSED, Stage::Starting, failed(Reason::Refused)),
            (
                Errno::TIMEDOUT,
                Stage::Connecting,
                failed(Reason::TimedOut(Phase::Connecting)),
            ),
            (
                Errno::TIMEDOUT,
                Stage::Established,
                failed(Reason::TimedOut(Phase::Greeting)),
            ),
            (
                Errno::CONNRESET,
                Stage::Established,
                Finding::answered(Reason::Reset, Duration::ZERO),
            ),
            (
                Errno::INVAL,
                Stage::Starting,
                local(Reason::LocalError(
                    u16::try_from(Errno::INVAL.raw_os_error()).unwrap(),
                )),
            ),
        ];
        for (errno, stage, finding) in table {
            let error = io::Error::from(errno);
            assert_eq!(
                Finding::from_error(&error, stage, Duration::ZERO),
                finding,
                "{error} {stage:?}"
            );
        }
    }
}
