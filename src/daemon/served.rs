//! Clients that are not passed on: those that are converted for a SOCKS 6 remote, and those that are served without a remote.
//!
//! A SOCKS server of our own serves both; a build without it has none of them.

use std::sync::Arc;
use std::time::SystemTime;

#[cfg(feature = "socks6")]
use super::converter::{Converter, Converting};
#[cfg(feature = "server")]
use super::fallback::Direct;
use super::settings::Settings;
use crate::ProxyUri;
#[cfg(feature = "socks6")]
use crate::forward::Route;
use crate::forward::WithoutRemote;
#[cfg(feature = "socks6")]
use crate::listen::Client;
use crate::listen::Limits;
use crate::net::OwnListeners;
use crate::relay::RelaySettings;
use crate::resolver::Resolver;
#[cfg(feature = "socks6")]
use crate::server::OwnListener;
#[cfg(feature = "server")]
use crate::server::ServerStats;

/// What the sessions of such clients are made with. Clones are the same one.
#[derive(Clone)]
pub(super) struct Served {
    /// Clients that have datagrams carried, whoever carries them.
    associations: Limits,
    #[cfg(feature = "server")]
    stats: ServerStats,
    #[cfg(feature = "server")]
    direct: Option<Direct>,
    #[cfg(feature = "socks6")]
    converter: Converter,
}

/// What such clients had.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes to destinations.
    pub(super) up: u64,
    /// Bytes from destinations.
    pub(super) down: u64,
    /// Those that were let in and then refused, by reason.
    pub(super) refused: Vec<(&'static str, u64)>,
}

impl Served {
    pub(super) fn new(
        settings: &Settings,
        relay: &Arc<RelaySettings>,
        associations: Limits,
        resolver: &Resolver,
        own: &OwnListeners,
    ) -> Self {
        #[cfg(not(feature = "server"))]
        let _ = (settings, relay, resolver, own);
        #[cfg(feature = "server")]
        let stats = ServerStats::default();
        Self {
            #[cfg(feature = "socks6")]
            converter: Converter::new(
                settings,
                Arc::clone(relay),
                associations.clone(),
                resolver.clone(),
                stats.clone(),
            ),
            #[cfg(feature = "server")]
            direct: Direct::new(
                settings,
                Arc::clone(relay),
                associations.clone(),
                resolver.clone(),
                own.clone(),
                stats.clone(),
            ),
            #[cfg(feature = "server")]
            stats,
            associations,
        }
    }

    /// Whoever serves clients that no remote can be used for.
    pub(super) fn without_remote(&self) -> Option<Box<dyn WithoutRemote>> {
        #[cfg(feature = "server")]
        return self.direct.clone().map(|direct| Box::new(direct) as _);
        #[cfg(not(feature = "server"))]
        None
    }

    /// Whether anybody does.
    pub(super) const fn serves_without_remote(&self) -> bool {
        #[cfg(feature = "server")]
        return self.direct.is_some();
        #[cfg(not(feature = "server"))]
        false
    }

    /// Whether they may be served from here: not while nobody is to be served.
    pub(super) fn offer_without_remote(&self, offered: bool) {
        #[cfg(feature = "server")]
        if let Some(direct) = &self.direct {
            direct.offer(offered);
        }
        #[cfg(not(feature = "server"))]
        let _ = offered;
    }

    /// How many of those there were so far, if they are served.
    pub(super) fn served_directly(&self) -> Option<u64> {
        #[cfg(feature = "server")]
        return self.direct.as_ref().map(Direct::served);
        #[cfg(not(feature = "server"))]
        None
    }

    /// A session, if clients are converted now.
    #[cfg(feature = "socks6")]
    pub(super) fn convert(&self, client: Client, route: &Route) -> Result<Converting, Client> {
        self.converter.serve(client, route)
    }

    /// From now on clients are converted for these proxies, the first that works. Returns those that are not used, because
    /// they are own listeners.
    #[cfg(feature = "socks6")]
    pub(super) fn start_converting(
        &self,
        proxies: Vec<ProxyUri>,
        own: OwnListeners,
    ) -> Vec<OwnListener> {
        self.converter.start(proxies, own)
    }

    /// From now on no new ones are.
    pub(super) fn stop_converting(&self) {
        #[cfg(feature = "socks6")]
        self.converter.stop();
    }

    /// The proxy that clients are converted for now, the first that is tried.
    pub(super) fn converted_for(&self) -> Option<ProxyUri> {
        #[cfg(feature = "socks6")]
        return self.converter.in_use();
        #[cfg(not(feature = "socks6"))]
        None
    }

    /// Converted clients that there are now, by proxy: the one in use and those before it.
    pub(super) fn converted(&self) -> Vec<(String, usize)> {
        #[cfg(feature = "socks6")]
        return self.converter.streams();
        #[cfg(not(feature = "socks6"))]
        Vec::new()
    }

    /// What went wrong last with one of those proxies.
    pub(super) fn last_trouble(&self) -> Option<(SystemTime, String)> {
        #[cfg(feature = "socks6")]
        return self.converter.last_trouble();
        #[cfg(not(feature = "socks6"))]
        None
    }

    pub(super) fn counts(&self) -> Counts {
        #[cfg(feature = "server")]
        {
            let counts = self.stats.counts();
            Counts {
                up: counts.up,
                down: counts.down,
                refused: counts.refused,
            }
        }
        #[cfg(not(feature = "server"))]
        Counts::default()
    }

    /// Clients of the forwarder that have datagrams carried now.
    pub(super) fn associations(&self) -> usize {
        self.associations.active()
    }
}
