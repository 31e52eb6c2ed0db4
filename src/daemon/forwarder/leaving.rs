//! What a forwarder hands over to the one that takes its place.

use std::time::Instant;

use super::{Forwarder, Plan};
use crate::choice::Mode;
use crate::control::messages::HandOver;
use crate::control::server::Reply;
use crate::daemon::state::ever_valid;
use crate::engine::Cx;

impl Forwarder {
    /// Whether another process has taken over.
    pub(in crate::daemon) const fn is_handed_over(&self) -> bool {
        self.estate.is_gone()
    }

    /// Sends everything to a process that wants to take over.
    pub(in crate::daemon) fn hand_over(&mut self, reply: Reply, now: Instant) {
        let known = HandOver {
            process: std::process::id(),
            listeners: Vec::new(),
            mode: self.mode,
            known: self.known(now),
            remotes: match &self.plan {
                Plan::Explicit(explicit) if self.settings.mode != Mode::Explicit => {
                    explicit.reveal()
                }
                _ => Vec::new(),
            },
        };
        let clients = self.settings.listen.iter().zip(&self.listeners);
        let clients = clients.map(|(at, (listener, _))| (format!("clients {at}"), &**listener));
        let metrics = self.settings.metrics.iter().zip(&self.metrics);
        let metrics = metrics.map(|(at, (listener, _))| (format!("metrics {at}"), &**listener));
        let listeners: Vec<_> = clients.chain(metrics).collect();
        self.estate.offer(&listeners, known, reply, now);
    }

    /// In automatic mode: the remote in use, then others, best first.
    fn known(&self, now: Instant) -> Vec<String> {
        if self.mode != Mode::Automatic {
            return Vec::new();
        }
        let in_use = match &self.plan {
            Plan::Automatic { selected } => Some(*selected),
            Plan::Idle | Plan::Explicit(_) => None,
        };
        let mut known: Vec<_> = in_use.into_iter().collect();
        for address in ever_valid(&self.discovery.borrow().table, now) {
            if known.len() == MOST_KNOWN {
                break;
            }
            if !known.contains(&address) {
                known.push(address);
            }
        }
        known.iter().map(ToString::to_string).collect()
    }

    /// The other process accepts: this one only sees its clients off.
    pub(in crate::daemon) fn let_go(&mut self, reply: Reply, cx: &mut Cx<'_>) {
        let (listeners, metrics) = (&mut self.listeners, &mut self.metrics);
        let mut all = || listeners.drain(..).chain(metrics.take()).collect();
        let limits = self.intake.limits.clone();
        let drain_timeout = self.settings.drain_timeout;
        if self
            .estate
            .let_go(&mut all, limits, drain_timeout, reply, cx)
        {
            self.cancel_connect(cx);
            self.retirement.set(true);
            self.discovery.borrow_mut().retire(cx);
        }
    }

    /// The files of listeners that were handed over to this process are its own from now on.
    pub(in crate::daemon) fn keep_files(&self) {
        self.estate
            .keep_files(self.listeners.iter().chain(&self.metrics));
    }
}

/// As many as are good for a start; probes find the others.
const MOST_KNOWN: usize = 64;
