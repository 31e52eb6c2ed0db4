//! The clients of a forwarder whose remote speaks SOCKS 6: they speak to us, and we speak to it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::settings::{BIND_TIMEOUT, DESTINATION_TIMEOUT, HANDSHAKE_TIMEOUT, Settings};
use crate::ProxyUri;
use crate::engine::{Effort, Interests, Session, Standing, Turn, TurnContext};
use crate::forward::{Epoch, Route};
use crate::handshake::Socks4;
use crate::listen::{Client, Limits};
use crate::net::{OwnListeners, Uplink};
use crate::relay::RelaySettings;
use crate::resolver::Resolver;
use crate::server::association::{Filter, UdpOptions, UdpSettings};
use crate::server::rules::Rules;
use crate::server::{OwnListener, ReplyTiming, ServerSession, ServerSettings, ServerStats, Via};

/// What the sessions of converted clients are made with, while there are any. Clones are the same one.
#[derive(Clone)]
pub(super) struct Converter {
    current: Rc<RefCell<Option<Current>>>,
    /// As long as it has streams, each proxy that was ever in use.
    streams: Rc<RefCell<Vec<Carrier>>>,
    relay: Arc<RelaySettings>,
    associations: Limits,
    resolver: Resolver,
    stats: ServerStats,
    timing: ReplyTiming,
    /// For the way to a proxy.
    patience: Duration,
    retry: bool,
    uplink: Uplink,
}

/// A proxy, and what its streams have in common.
type Carrier = (String, Weak<()>);

struct Current {
    settings: Arc<ServerSettings>,
    /// Each stream has a clone.
    token: Arc<()>,
}

impl Converter {
    pub(super) fn new(
        settings: &Settings,
        relay: Arc<RelaySettings>,
        associations: Limits,
        resolver: Resolver,
        stats: ServerStats,
    ) -> Self {
        Self {
            current: Rc::default(),
            streams: Rc::default(),
            relay,
            associations,
            resolver,
            stats,
            timing: settings.reply_timing,
            patience: settings.connect_timeout,
            retry: settings.retry,
            uplink: settings.uplink.clone(),
        }
    }

    /// From now on clients get through these proxies, the first that works. The sessions with them are new ones. Returns
    /// those that are not used, because they are own listeners.
    pub(super) fn start(&self, proxies: Vec<ProxyUri>, own: OwnListeners) -> Vec<OwnListener> {
        self.stop();
        let names: Vec<_> = proxies.iter().map(ToString::to_string).collect();
        let (mut usable, mut loops) = (Vec::new(), Vec::new());
        for proxy in proxies {
            match Via::new(proxy, Vec::new(), own.clone()) {
                Ok(via) => usable.push(via.by(self.uplink.clone())),
                Err(own) => loops.push(own),
            }
        }
        let mut usable = usable.into_iter();
        let Some(first) = usable.next() else {
            return loops;
        };
        let stand_ins: Vec<_> = usable.collect();
        // For the way to each proxy that is tried, and its own to the destination.
        let tries = u32::try_from(stand_ins.len() + 1).unwrap_or(u32::MAX);
        let connect_timeout = self.patience * tries.min(MOST_TRIES) + DESTINATION_TIMEOUT;
        let via = first.with_stand_ins(stand_ins, self.patience, self.retry);
        let options = UdpOptions {
            filter: Filter::EndpointIndependent,
            ..UdpOptions::default()
        };
        let udp = UdpSettings::new(options, self.associations.clone());
        let token = Arc::new(());
        let mut streams = self.streams.borrow_mut();
        streams.retain(|(_, token)| token.strong_count() > 0);
        streams.push((names.join(", "), Arc::downgrade(&token)));
        let settings = Arc::new(ServerSettings {
            users: None,
            socks4: Socks4::Allowed,
            socks4_users: Vec::new(),
            // Those of the proxy decide, also whose datagrams come back.
            rules: Rules::anywhere_but(own),
            via: Some(Arc::new(via)),
            reply_timing: self.timing,
            // Its clients need no converter.
            socks6: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            connect_timeout,
            uplink: self.uplink.clone(),
            tcp: crate::net::TcpExtras::default(),
            bind_timeout: Some(BIND_TIMEOUT),
            answer_delay: Duration::ZERO,
            udp: Some(udp),
            relay: Arc::clone(&self.relay),
            resolver: self.resolver.clone(),
            stats: self.stats.clone(),
        });
        *self.current.borrow_mut() = Some(Current { settings, token });
        loops
    }

    /// The proxy that clients begin with now, if they are converted.
    pub(super) fn in_use(&self) -> Option<ProxyUri> {
        let current = self.current.borrow();
        let settings = &current.as_ref()?.settings;
        Some(settings.via.as_ref()?.in_use().clone())
    }

    /// From now on there are no new ones.
    pub(super) fn stop(&self) {
        *self.current.borrow_mut() = None;
    }

    /// A session, if clients are converted now.
    pub(super) fn serve(&self, client: Client, route: &Route) -> Result<Converting, Client> {
        let current = self.current.borrow();
        let Some(Current { settings, token }) = &*current else {
            return Err(client);
        };
        Ok(Converting {
            session: ServerSession::new(client, Arc::clone(settings), Instant::now()),
            _token: Arc::clone(token),
            epoch: route.epoch(),
            route: route.clone(),
        })
    }

    /// Clients that there are now, by proxy: the one in use and those before it.
    pub(super) fn streams(&self) -> Vec<(String, usize)> {
        let current = self.current.borrow();
        let in_use = current
            .as_ref()
            .map(|current| Arc::downgrade(&current.token));
        let streams = self.streams.borrow();
        let live = streams.iter().map(|(name, token)| {
            let itself = in_use.as_ref().is_some_and(|in_use| in_use.ptr_eq(token));
            (name.clone(), token.strong_count() - usize::from(itself))
        });
        live.filter(|(_, live)| *live > 0).collect()
    }

    /// What went wrong last with one of the proxies.
    pub(super) fn last_trouble(&self) -> Option<(SystemTime, String)> {
        let current = self.current.borrow();
        let settings = &current.as_ref()?.settings;
        settings.via.as_ref()?.last_trouble()
    }
}

/// A converted client. It ends when the forwarder's streams are cut, like those that are passed on.
pub(super) struct Converting {
    session: ServerSession,
    _token: Arc<()>,
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

    fn effort(&self) -> Effort {
        self.session.effort()
    }

    fn standing(&self) -> Standing {
        let Self { route, epoch, .. } = self;
        match route.is_closed(*epoch) || route.is_cut(*epoch) || route.is_drained(*epoch, None) {
            true => Standing::Cut,
            false => self.session.standing(),
        }
    }
}

/// How many proxies that keep silent a client may have to wait for: more would outlast its own patience.
const MOST_TRIES: u32 = 3;
