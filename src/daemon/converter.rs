//! The clients of a forwarder whose remote speaks SOCKS 6: they speak to us, and we speak to it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::settings::{BIND_TIMEOUT, DESTINATION_TIMEOUT, HANDSHAKE_TIMEOUT, Settings};
use crate::ProxyUri;
use crate::engine::{Interests, Session, Standing, Turn, TurnContext};
use crate::forward::{Epoch, Route};
use crate::handshake::Socks4;
use crate::listen::{Client, Limits};
use crate::net::OwnListeners;
use crate::relay::RelaySettings;
use crate::resolver::Resolver;
use crate::server::association::{ASSOCIATIONS_PER_CLIENT, UdpOptions, UdpSettings};
use crate::server::rules::Rules;
use crate::server::{
    OwnListener, ReplyTiming, ServerCounts, ServerSession, ServerSettings, ServerStats, Via,
};

/// What the sessions of converted clients are made with, while there are any. Clones are the same one.
#[derive(Clone)]
pub(super) struct Converter {
    current: Rc<RefCell<Option<Arc<ServerSettings>>>>,
    relay: Arc<RelaySettings>,
    associations: Limits,
    resolver: Resolver,
    stats: ServerStats,
    timing: ReplyTiming,
    patience: Duration,
}

impl Converter {
    pub(super) fn new(
        settings: &Settings,
        relay: Arc<RelaySettings>,
        associations: Limits,
        resolver: Resolver,
    ) -> Self {
        Self {
            current: Rc::default(),
            relay,
            associations: associations.clone(),
            resolver,
            stats: ServerStats::default(),
            timing: settings.reply_timing,
            // For the way to the proxy, and its own to the destination.
            patience: settings.connect_timeout + DESTINATION_TIMEOUT,
        }
    }

    /// A limit for [`Converter::new`].
    pub(super) fn limit(most: usize, mailbox: crate::engine::Mailbox) -> Limits {
        Limits::new(most, Some(ASSOCIATIONS_PER_CLIENT), mailbox)
    }

    /// From now on clients get through this proxy. The session with it is a new one.
    pub(super) fn start(&self, proxy: ProxyUri, own: OwnListeners) -> Result<(), OwnListener> {
        self.stop();
        let via = Via::new(proxy, Vec::new(), own.clone())?;
        let udp = UdpSettings::new(UdpOptions::default(), self.associations.clone());
        *self.current.borrow_mut() = Some(Arc::new(ServerSettings {
            users: None,
            socks4: Socks4::Allowed,
            socks4_users: Vec::new(),
            // Those of the proxy decide.
            rules: Rules::anywhere_but(own),
            via: Some(Arc::new(via)),
            reply_timing: self.timing,
            // Its clients need no converter.
            #[cfg(feature = "socks6")]
            socks6: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            connect_timeout: self.patience,
            bind_timeout: Some(BIND_TIMEOUT),
            answer_delay: Duration::ZERO,
            udp: Some(udp),
            relay: Arc::clone(&self.relay),
            resolver: self.resolver.clone(),
            stats: self.stats.clone(),
        }));
        Ok(())
    }

    /// From now on there are no new ones.
    pub(super) fn stop(&self) {
        *self.current.borrow_mut() = None;
    }

    /// A session, if clients are converted now.
    pub(super) fn serve(&self, client: Client, route: &Route) -> Result<Converting, Client> {
        let Some(settings) = self.current.borrow().clone() else {
            return Err(client);
        };
        Ok(Converting {
            session: ServerSession::new(client, settings, Instant::now()),
            epoch: route.epoch(),
            route: route.clone(),
        })
    }

    /// What was carried and refused so far.
    pub(super) fn counts(&self) -> ServerCounts {
        self.stats.counts()
    }

    /// What went wrong last with the proxy in use.
    pub(super) fn last_trouble(&self) -> Option<(SystemTime, String)> {
        let current = self.current.borrow();
        current.as_ref()?.via.as_ref()?.last_trouble()
    }
}

/// A converted client. It ends when the forwarder's streams are cut, like those that are passed on.
pub(super) struct Converting {
    session: ServerSession,
    route: Route,
    epoch: Epoch,
}

impl Session for Converting {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        self.session.turn(cx)
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        self.session.interests(interests);
    }

    fn standing(&self) -> Standing {
        match self.route.is_closed(self.epoch) || self.route.is_cut(self.epoch) {
            true => Standing::Cut,
            false => self.session.standing(),
        }
    }
}
