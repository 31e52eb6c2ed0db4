//! The clients of a forwarder that no remote can be used for, served from this machine's own connection (`--fallback direct`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::settings::{BIND_TIMEOUT, DESTINATION_TIMEOUT, HANDSHAKE_TIMEOUT, Settings};
use crate::choice::Fallback;
use crate::engine::Session;
use crate::forward::{Stranded, WithoutRemote};
use crate::handshake::Socks4;
use crate::listen::Limits;
use crate::net::OwnListeners;
use crate::relay::RelaySettings;
use crate::resolver::Resolver;
use crate::server::association::{UdpOptions, UdpSettings};
use crate::server::rules::Rules;
use crate::server::{ReplyTiming, ServerSession, ServerSettings, ServerStats};

/// Serves such clients, and counts them. Clones count together.
#[derive(Clone)]
pub(super) struct Direct {
    settings: Arc<ServerSettings>,
    use_of_it: Arc<Mutex<Use>>,
    is_offered: Arc<AtomicBool>,
}

#[derive(Default)]
struct Use {
    served: u64,
    /// When it was said last that there are such clients.
    said: Option<Instant>,
}

impl Direct {
    /// What the settings ask for, if they do.
    pub(super) fn new(
        settings: &Settings,
        relay: Arc<RelaySettings>,
        associations: Limits,
        resolver: Resolver,
        own: OwnListeners,
        stats: ServerStats,
    ) -> Option<Self> {
        if settings.fallback != Fallback::Direct {
            return None;
        }
        let udp = UdpSettings::new(UdpOptions::default(), associations);
        let settings = ServerSettings {
            users: None,
            socks4: Socks4::Allowed,
            socks4_users: Vec::new(),
            rules: Rules::new(settings.fallback_rules.clone(), own),
            via: None,
            reply_timing: ReplyTiming::default(),
            #[cfg(feature = "socks6")]
            socks6: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            connect_timeout: DESTINATION_TIMEOUT,
            uplink: settings.uplink.clone(),
            tcp: settings.tcp,
            bind_timeout: Some(BIND_TIMEOUT),
            answer_delay: Duration::ZERO,
            udp: settings.udp.then_some(udp),
            relay,
            resolver,
            stats,
        };
        Some(Self {
            settings: Arc::new(settings),
            use_of_it: Arc::default(),
            is_offered: Arc::new(AtomicBool::new(true)),
        })
    }

    /// Clients so far.
    pub(super) fn served(&self) -> u64 {
        self.lock().served
    }

    /// From now on such clients are served, or not.
    pub(super) fn offer(&self, offered: bool) {
        self.is_offered.store(offered, Ordering::Relaxed);
    }

    fn count(&self, now: Instant) {
        let mut state = self.lock();
        state.served += 1;
        let is_news = |said| now.saturating_duration_since(said) >= SAID_EVERY;
        if state.said.is_none_or(is_news) {
            state.said = Some(now);
            log::warn!(
                "no remote can be used: clients are served from this machine's own connection (--fallback direct), \
                 {} so far",
                state.served
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Use> {
        self.use_of_it
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl WithoutRemote for Direct {
    fn is_offered(&self) -> bool {
        self.is_offered.load(Ordering::Relaxed)
    }

    fn serve(&self, stranded: Stranded, now: Instant) -> Box<dyn Session> {
        self.count(now);
        let Stranded {
            client,
            said,
            heard,
        } = stranded;
        let settings = Arc::clone(&self.settings);
        Box::new(ServerSession::resumed(client, said, heard, settings, now))
    }
}

/// It is the same news for a while, however many clients come.
const SAID_EVERY: Duration = Duration::from_secs(60);
