//! Why there is no connection, and whose fault that is.

use std::error::Error;
use std::fmt;
use std::io;

use super::NegotiationError;
use crate::handshake::{self, HandshakeError, Refusal};
use crate::net::ConnectFailure;
use crate::resolver::ResolveError;
use crate::wire::socks4::{self, RequestError};
use crate::wire::{Address, AddressError, socks5};
#[cfg(feature = "socks6")]
use crate::{
    handshake::socks6,
    wire::BoundAddress,
    wire::socks6::{DecodeError, ReplyCode},
};

/// Why a client has no connection. Never holds user or password.
#[derive(Debug)]
pub enum ClientError {
    /// The text of the target is no address. Nothing was sent.
    BadTarget(AddressError),
    /// Nothing can be connected to at port 0. Nothing was sent.
    PortZero(Address),
    /// A SOCKS4 proxy can't be asked for this address. Nothing was sent to it.
    Unaskable(Address, RequestError),
    /// Datagrams go through one proxy that speaks SOCKS5 or SOCKS 6, or over TCP through a chain whose last proxy speaks
    /// SOCKS 6; not through this one or this chain. Nothing was sent.
    NoDatagrams(Address),
    /// Early data has at most [`MAX_EARLY_DATA`](super::MAX_EARLY_DATA) bytes. Nothing was sent.
    EarlyDataTooLong(usize),
    /// The proxy agreed to carry datagrams, but did not say where to.
    NoRelay(Address),
    /// A name that is looked up here has no address, or no IPv4 address where SOCKS4 needs one.
    Lookup(Whose, Address, ResolveError),
    /// No connection to the first proxy.
    Connect(Address, ConnectFailure),
    /// The deadline passed while this was awaited of this proxy; for [`Phase::Lookup`] it is the address with the name.
    TimedOut(Address, Phase),
    /// The connection to the proxy failed while this was awaited.
    Broken(Address, Phase, io::Error),
    /// What the proxy said is not what a proxy says, or it wants other credentials, or it closed early.
    Handshake(Address, HandshakeError),
    /// The proxy understood and does not do it.
    Refused {
        /// Which one.
        proxy: Address,
        /// What it was asked for.
        target: Address,
        /// Whether that is the target, or the next proxy of a chain.
        whose: Whose,
        /// Its code.
        refusal: Refusal,
    },
    /// The system failed on an open connection: no descriptor, no memory.
    System(io::Error),
    /// Only SOCKS 6 has this command, and the last proxy does not speak it.
    NeedsSocks6(Address),
    /// The same as [`ClientError::Handshake`] for a SOCKS 6 proxy.
    #[cfg(feature = "socks6")]
    Socks6(Address, socks6::ClientError),
    /// The same as [`ClientError::Refused`] for a SOCKS 6 proxy.
    #[cfg(feature = "socks6")]
    RefusedBySocks6 {
        /// Which one.
        proxy: Address,
        /// What it was asked for.
        target: Address,
        /// Whether that is the target, or the next proxy of a chain.
        whose: Whose,
        /// Its code.
        code: ReplyCode,
    },
    /// The proxy granted no backlog: its port accepts one connection, which was accepted already.
    #[cfg(feature = "socks6")]
    NoBacklog(Address),
    /// Somebody else than the expected peer has connected to the port of this proxy.
    #[cfg(feature = "socks6")]
    Stranger {
        /// Which proxy.
        proxy: Address,
        /// Who was expected.
        expected: Address,
        /// Who came.
        came: BoundAddress,
    },
    /// What the proxy said of an association can't be understood.
    #[cfg(feature = "socks6")]
    BadAssociation(Address, DecodeError),
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// What was asked for can't be asked for.
    Caller,
    /// This machine.
    Here,
    /// A proxy, or the way to it.
    Proxy,
    /// The target, or the way to it from the last proxy; or that proxy's rules forbid it.
    Target,
}

/// Whose address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// A proxy's.
    Proxy,
    /// The target's.
    Target,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Addresses of a name.
    Lookup,
    /// The connection to the first proxy.
    Connect,
    /// A message of a proxy.
    Handshake(handshake::client::Phase),
    /// That early data are sent.
    EarlyData,
    /// A message of a SOCKS 6 proxy.
    #[cfg(feature = "socks6")]
    Socks6(socks6::client::Phase),
    /// The id of an association, from a SOCKS 6 proxy.
    #[cfg(feature = "socks6")]
    Association,
    /// That datagrams get through to a SOCKS 6 proxy.
    #[cfg(feature = "socks6")]
    Confirmation,
}

/// Of one handshake with a SOCKS 6 proxy.
#[cfg(feature = "socks6")]
pub(super) type Socks6NegotiationError =
    NegotiationError<socks6::ClientError, socks6::client::Phase>;

impl ClientError {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadTarget(_)
            | Self::PortZero(_)
            | Self::Unaskable(..)
            | Self::NoDatagrams(_)
            | Self::EarlyDataTooLong(_)
            | Self::NeedsSocks6(_) => Fault::Caller,
            Self::Lookup(_, _, ResolveError::Local(_) | ResolveError::QueueFull)
            | Self::Connect(_, ConnectFailure::Local(_))
            | Self::System(_) => Fault::Here,
            Self::Lookup(Whose::Target, ..) => Fault::Target,
            Self::Refused { whose, refusal, .. } => match whose {
                Whose::Target if is_about_target(*refusal) => Fault::Target,
                _ => Fault::Proxy,
            },
            Self::Lookup(Whose::Proxy, ..)
            | Self::NoRelay(_)
            | Self::Connect(..)
            | Self::TimedOut(..)
            | Self::Broken(..)
            | Self::Handshake(..) => Fault::Proxy,
            #[cfg(feature = "socks6")]
            Self::RefusedBySocks6 { whose, code, .. } => match whose {
                Whose::Target if is_about_target6(*code) => Fault::Target,
                _ => Fault::Proxy,
            },
            #[cfg(feature = "socks6")]
            Self::Stranger { .. } => Fault::Target,
            #[cfg(feature = "socks6")]
            Self::Socks6(..) | Self::NoBacklog(_) | Self::BadAssociation(..) => Fault::Proxy,
        }
    }

    /// Whether the same proxy may reach another address of the same target.
    pub(super) fn is_unreached(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.is_about_address(),
            _ => false,
        }
    }

    pub(super) fn of_negotiation(
        error: NegotiationError,
        proxy: &Address,
        target: &Address,
        whose: Whose,
    ) -> Self {
        let proxy = proxy.clone();
        match error {
            NegotiationError::Handshake(HandshakeError::Refused(refusal)) => Self::Refused {
                proxy,
                target: target.clone(),
                whose,
                refusal,
            },
            NegotiationError::Handshake(error) => Self::Handshake(proxy, error),
            NegotiationError::TimedOut(phase) => Self::TimedOut(proxy, Phase::Handshake(phase)),
            NegotiationError::Broken(phase, error) => {
                Self::Broken(proxy, Phase::Handshake(phase), error)
            }
        }
    }

    /// `target` is `None` where nothing is asked for that could be refused for its own sake.
    #[cfg(feature = "socks6")]
    pub(super) fn of_socks6(
        error: Socks6NegotiationError,
        proxy: &Address,
        target: Option<&Address>,
        whose: Whose,
    ) -> Self {
        let proxy = proxy.clone();
        match (error, target) {
            (NegotiationError::Handshake(socks6::ClientError::Refused(code)), Some(target)) => {
                Self::RefusedBySocks6 {
                    proxy,
                    target: target.clone(),
                    whose,
                    code,
                }
            }
            (NegotiationError::Handshake(error), _) => Self::Socks6(proxy, error),
            (NegotiationError::TimedOut(phase), _) => Self::TimedOut(proxy, Phase::Socks6(phase)),
            (NegotiationError::Broken(phase, error), _) => {
                Self::Broken(proxy, Phase::Socks6(phase), error)
            }
        }
    }
}

/// Some codes tell of the proxy: it does not know the command or the type of address (RFC 1928 §6), or it could not
/// find out who we are (SOCKS4, 92 and 93).
fn is_about_target(refusal: Refusal) -> bool {
    match refusal {
        Refusal::Socks5(code) => !matches!(
            code,
            socks5::ReplyCode::COMMAND_NOT_SUPPORTED
                | socks5::ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED
        ),
        Refusal::Socks4(code) => !matches!(
            code,
            socks4::ReplyCode::NO_IDENTD | socks4::ReplyCode::OTHER_USER
        ),
    }
}

/// As with SOCKS5: 7 and 8 tell of what the proxy can do.
#[cfg(feature = "socks6")]
const fn is_about_target6(code: ReplyCode) -> bool {
    !matches!(
        code,
        ReplyCode::COMMAND_NOT_SUPPORTED | ReplyCode::ADDRESS_TYPE_NOT_SUPPORTED
    )
}

/// What a refusal is about, and who refused.
fn write_refused(
    f: &mut fmt::Formatter<'_>,
    proxy: &Address,
    target: &Address,
    whose: Whose,
    is_about_target: bool,
) -> fmt::Result {
    match whose {
        Whose::Target if is_about_target => write!(f, "target {target}: ")?,
        Whose::Target => {}
        Whose::Proxy => write!(f, "next proxy {target}: ")?,
    }
    write!(f, "proxy {proxy}: ")
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTarget(_) => write!(f, "bad target"),
            Self::PortZero(address) => {
                write!(f, "nothing can be connected to at port 0: {address}")
            }
            Self::Unaskable(address, _) => write!(f, "cannot ask for {address}"),
            Self::NoDatagrams(proxy) => write!(
                f,
                "proxy {proxy}: datagrams need a single proxy that speaks SOCKS5{OR_SOCKS6}"
            ),
            Self::EarlyDataTooLong(length) => write!(
                f,
                "{length} bytes of early data, of which at most {} can be sent",
                super::MAX_EARLY_DATA
            ),
            Self::NeedsSocks6(proxy) => {
                write!(f, "proxy {proxy}: only SOCKS 6 can be asked for this")
            }
            Self::NoRelay(proxy) => {
                write!(f, "proxy {proxy}: it did not say where it takes datagrams")
            }
            Self::Lookup(Whose::Proxy, address, _) => write!(f, "proxy {address}"),
            Self::Lookup(Whose::Target, address, _) => write!(f, "target {address}"),
            Self::Connect(proxy, _) => write!(f, "proxy {proxy}: cannot connect"),
            Self::TimedOut(address, Phase::Lookup) => {
                write!(f, "{address}: name look-up timed out")
            }
            Self::TimedOut(proxy, phase) => {
                write!(f, "proxy {proxy}: timed out waiting for the {phase}")
            }
            Self::Broken(proxy, phase, _) => {
                write!(f, "proxy {proxy}: connection lost waiting for the {phase}")
            }
            Self::Handshake(proxy, _) => write!(f, "proxy {proxy}"),
            Self::Refused {
                proxy,
                target,
                whose,
                refusal,
            } => {
                write_refused(f, proxy, target, *whose, is_about_target(*refusal))?;
                HandshakeError::Refused(*refusal).fmt(f)
            }
            Self::System(_) => write!(f, "the connection to the proxy cannot be used"),
            #[cfg(feature = "socks6")]
            Self::Socks6(proxy, _) => write!(f, "proxy {proxy}"),
            #[cfg(feature = "socks6")]
            Self::RefusedBySocks6 {
                proxy,
                target,
                whose,
                code,
            } => {
                write_refused(f, proxy, target, *whose, is_about_target6(*code))?;
                socks6::ClientError::Refused(*code).fmt(f)
            }
            #[cfg(feature = "socks6")]
            Self::NoBacklog(proxy) => {
                write!(f, "proxy {proxy}: its port accepts one connection only")
            }
            #[cfg(feature = "socks6")]
            Self::Stranger {
                proxy,
                expected,
                came,
            } => write!(
                f,
                "target {expected}: proxy {proxy}: {came} connected instead"
            ),
            #[cfg(feature = "socks6")]
            Self::BadAssociation(proxy, _) => {
                write!(f, "proxy {proxy}: bad message of the association")
            }
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::BadTarget(error) => Some(error),
            Self::Unaskable(_, error) => Some(error),
            Self::Lookup(_, _, error) => Some(error),
            Self::Connect(_, failure) => Some(failure.error()),
            Self::Broken(_, _, error) | Self::System(error) => Some(error),
            Self::Handshake(_, error) => Some(error),
            #[cfg(feature = "socks6")]
            Self::Socks6(_, error) => Some(error),
            #[cfg(feature = "socks6")]
            Self::BadAssociation(_, error) => Some(error),
            #[cfg(feature = "socks6")]
            Self::RefusedBySocks6 { .. } | Self::NoBacklog(_) | Self::Stranger { .. } => None,
            Self::PortZero(_)
            | Self::NoDatagrams(_)
            | Self::EarlyDataTooLong(_)
            | Self::NeedsSocks6(_)
            | Self::NoRelay(_)
            | Self::TimedOut(..)
            | Self::Refused { .. } => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup => f.pad("name look-up"),
            Self::Connect => f.pad("connection"),
            Self::Handshake(phase) => phase.fmt(f),
            Self::EarlyData => f.pad("end of the early data"),
            #[cfg(feature = "socks6")]
            Self::Socks6(phase) => phase.fmt(f),
            #[cfg(feature = "socks6")]
            Self::Association => f.pad("association"),
            #[cfg(feature = "socks6")]
            Self::Confirmation => f.pad("confirmation of the association"),
        }
    }
}

#[cfg(feature = "socks6")]
const OR_SOCKS6: &str = ", or SOCKS 6";
#[cfg(not(feature = "socks6"))]
const OR_SOCKS6: &str = "";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_tell_whose_fault_they_are() {
        let socks5 = |code| Refusal::Socks5(socks5::ReplyCode(code));
        let socks4 = |code| Refusal::Socks4(socks4::ReplyCode(code));
        let fault = |whose, refusal| {
            let error = ClientError::Refused {
                proxy: "192.0.2.1:1080".parse().unwrap(),
                target: "example.org:80".parse().unwrap(),
                whose,
                refusal,
            };
            error.fault()
        };
        for code in 1..=6 {
            assert_eq!(fault(Whose::Target, socks5(code)), Fault::Target);
            assert_eq!(fault(Whose::Proxy, socks5(code)), Fault::Proxy);
        }
        for code in [7, 8] {
            assert_eq!(fault(Whose::Target, socks5(code)), Fault::Proxy);
        }
        assert_eq!(fault(Whose::Target, socks4(91)), Fault::Target);
        assert_eq!(fault(Whose::Target, socks4(92)), Fault::Proxy);
        assert_eq!(fault(Whose::Target, socks4(93)), Fault::Proxy);
    }
}
