//! Whom a session serves, and along which route.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ready::Ready;
use super::route::{DialFailure, Epoch, Report, Route};
use super::stranded::WithoutRemote;
use crate::listen::{Limits, Slot};
use crate::net::{TcpExtras, Uplink};
use crate::relay::RelaySettings;

/// What the sessions of one forwarder have in common.
pub struct ForwardSettings {
    /// For a remote to be connected and, unless there is just one, to answer.
    pub connect_timeout: Duration,
    /// Which way connections to remotes take, and datagrams for them.
    pub uplink: Uplink,
    /// How long a remote may hesitate before another one is tried beside it; `None`: until it has failed.
    pub stagger: Option<Duration>,
    /// Whether a SOCKS 5 client gets another remote when one fails between greeting and reply, or can't reach its destination.
    pub retry: bool,
    /// For the relays.
    pub relay: Arc<RelaySettings>,
    /// Counts clients whose datagrams are carried. `None`: none are, clients are told what the remote says.
    pub associations: Option<Limits>,
    /// What connections to remotes have beyond plain TCP.
    pub tcp: TcpExtras,
    /// Connections to the remote that are made before clients come. `None`: none are.
    pub ready: Option<Ready>,
    /// Serves SOCKS clients that no remote can be used for. `None`: they are refused.
    pub fallback: Option<Box<dyn WithoutRemote>>,
}

/// What all stages of a session need.
pub(super) struct Serving {
    pub(super) client: Name,
    /// The choice under which the client was accepted, or has been dialled for.
    pub(super) epoch: Epoch,
    pub(super) route: Route,
    pub(super) settings: Arc<ForwardSettings>,
    /// `None` once another session has it.
    pub(super) slot: Option<Slot>,
}

impl Serving {
    /// Whether SOCKS clients are served that no remote can be used for.
    pub(super) fn has_fallback(&self) -> bool {
        let fallback = self.settings.fallback.as_ref();
        fallback.is_some_and(|fallback| fallback.is_offered())
    }

    /// Whether the client's datagrams are carried, if a remote grants that: it needs an address by which they are known.
    pub(super) fn carries_datagrams(&self) -> bool {
        self.settings.associations.is_some() && self.client.0.is_some()
    }

    /// Takes the place of a connection with four descriptors, if there is one.
    pub(super) fn widen(&mut self) -> bool {
        self.slot.as_mut().is_some_and(Slot::widen)
    }

    /// Gives it back.
    pub(super) fn narrow(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.narrow();
        }
    }

    /// Tells the log, and whoever chooses, what a remote did.
    pub(super) fn failed(&self, remote: SocketAddr, started: Instant, failure: DialFailure) {
        log::debug!("{}: remote {remote}: {failure}", self.client);
        self.route.report(Report {
            remote,
            started,
            failure,
        });
    }
}

/// A client's name in the log.
#[derive(Clone, Copy)]
pub(super) struct Name(pub(super) Option<SocketAddr>);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("local client"),
        }
    }
}
