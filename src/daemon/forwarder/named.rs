//! Remotes that are named by hand: taken into the route, watched like any peer, converted for where they are SOCKS 6.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Forwarder, PendingConnect, Plan, cannot_listen};
#[cfg(feature = "socks6")]
use crate::ProxyUri;
use crate::choice::Mode;
use crate::control::messages::{Connected, ErrorCode, ErrorObject};
use crate::daemon::explicit::Explicit;
use crate::discovery::PeerLogin;
#[cfg(feature = "socks6")]
use crate::discovery::probe::AskSocks6;
use crate::engine::Cx;
use crate::forward::{Choice, Patience};
#[cfg(feature = "socks6")]
use crate::server::OwnListener;

impl Forwarder {
    pub(super) fn take_explicit(&mut self, explicit: Explicit, cx: &mut Cx<'_>) {
        self.cancel_connect(cx);
        if let Some(first) = explicit.first() {
            log::info!("remote is {first} (named by hand)");
        }
        self.served.offer_without_remote(true);
        self.mode = Mode::Explicit;
        self.looping.clear();
        self.stop_converting();
        #[cfg(feature = "socks6")]
        if let Some(proxies) = explicit.converted() {
            self.convert(proxies, cx);
        }
        self.plan = Plan::Explicit(explicit);
        self.apply_explicit(cx);
        cx.wake(self.steering);
    }

    /// Converts clients for these proxies from now on. Who was let in before and has not been dialled for is refused: what it says
    /// was to be passed on.
    #[cfg(feature = "socks6")]
    fn convert(&mut self, proxies: Vec<ProxyUri>, cx: &mut Cx<'_>) {
        self.converted.clear();
        let own = self.own.borrow().clone();
        let ask = proxies.first().map(AskSocks6::like);
        for OwnListener(proxy) in self.served.start_converting(proxies, own) {
            self.tell_of_loop(&proxy);
        }
        self.watch_by_hand(Vec::new(), Vec::new(), cx);
        // So that they are shown as what they are.
        if let Some(ask) = ask {
            self.discovery.borrow_mut().ask_socks6(ask);
        }
        self.switch(Choice {
            candidates: Vec::new(),
            patience: Patience::Limited,
            is_awaited: false,
        });
    }

    pub(super) fn stop_converting(&self) {
        self.served.stop_converting();
        let ask = self.settings.probe_socks6;
        self.discovery.borrow_mut().ask_socks6(ask);
    }

    fn tell_of_loop(&mut self, remote: &dyn std::fmt::Display) {
        let what =
            format!("remote {remote} is a listener of this program: not used, it would loop");
        log::error!("{what}");
        self.note_error(what);
    }

    /// Puts the addresses of the named remotes into the route, if they are not what is there.
    pub(super) fn apply_explicit(&mut self, cx: &mut Cx<'_>) {
        let Plan::Explicit(explicit) = &self.plan else {
            return;
        };
        if explicit.converted().is_some() {
            let named = explicit.addresses();
            if self.converted != named {
                self.watch_by_hand(named.clone(), Vec::new(), cx);
                self.converted = named;
            }
            let selected = self.remote().and_then(|(address, _)| address);
            let table = &mut self.discovery.borrow_mut().table;
            table.set_selected(selected, cx.now);
            return;
        }
        let patience = if explicit.len() == 1 {
            Patience::Unlimited
        } else {
            Patience::Limited
        };
        let named = explicit.addresses();
        let (own, candidates): (Vec<_>, Vec<_>) = named
            .into_iter()
            .partition(|address| self.own.borrow().is_own(*address));
        let choice = Choice {
            // The names are looked up: whoever comes meanwhile need not be refused.
            is_awaited: candidates.is_empty() && !explicit.is_settled(),
            candidates: candidates
                .into_iter()
                .map(|address| explicit.candidate(address))
                .collect(),
            patience,
        };
        let logins = explicit.logins();
        if self.looping != own {
            for address in &own {
                self.tell_of_loop(address);
            }
            self.looping = own;
        }
        if *self.route.choice() == choice {
            return;
        }
        let selected = choice.addresses().next();
        self.watch_by_hand(choice.addresses().collect(), logins, cx);
        self.discovery
            .borrow_mut()
            .table
            .set_selected(selected, cx.now);
        self.switch(choice);
    }

    pub(super) fn watch_by_hand(
        &self,
        addresses: Vec<SocketAddr>,
        logins: Vec<PeerLogin>,
        cx: &mut Cx<'_>,
    ) {
        let mut discovery = self.discovery.borrow_mut();
        discovery.table.set_source(self.by_hand, addresses, cx.now);
        discovery.set_logins(self.by_hand, logins, cx);
        discovery.wake_prober(cx);
    }

    /// Goes on with a `connect` whose names have been looked up.
    pub(super) fn advance_pending(&mut self, cx: &mut Cx<'_>) -> Option<Instant> {
        let pending = self.pending.as_mut()?;
        let next = pending.explicit.advance(cx);
        if !pending.explicit.is_settled() {
            return next;
        }
        let PendingConnect {
            explicit,
            drain,
            reply,
        } = self.pending.take()?;
        let result = self.connect_explicit(explicit, drain, cx);
        if let Err(error) = &result {
            log::warn!("connect: {error}");
            self.note_error(error.to_string());
        }
        reply.send(result);
        None
    }

    fn connect_explicit(
        &mut self,
        explicit: Explicit,
        drain: Option<Duration>,
        cx: &mut Cx<'_>,
    ) -> Result<Connected, ErrorObject> {
        let addresses = explicit.addresses();
        if let (true, Some((name, error))) = (addresses.is_empty(), explicit.error()) {
            return Err(ErrorObject::new(
                ErrorCode::InvalidParams,
                format!("cannot look up {name}"),
            )
            .with_reason(error.to_string()));
        }
        // The listeners of the settings count though they may not be open yet: connecting would open them.
        let is_own = |address: &SocketAddr| self.own.borrow().is_own(*address);
        if let Some(own) = addresses.first().filter(|_| addresses.iter().all(is_own)) {
            return Err(ErrorObject::new(
                ErrorCode::RemoteRefused,
                format!("{own} is a listener of this forwarder"),
            )
            .with_reason("forwarding to it would loop")
            .with_hint("give the address of another machine's proxy"));
        }
        self.listen(cx).map_err(|error| cannot_listen(&error))?;
        let name = explicit
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        self.take_explicit(explicit, cx);
        Ok(self.connected(name, drain, cx))
    }
}
