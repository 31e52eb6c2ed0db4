//! Whether the way that connections are to take is there: a line that is dialled comes and goes.

use std::time::{Duration, Instant};

use super::Forwarder;
use crate::engine::Cx;

/// What is known of it.
#[derive(Default)]
pub(super) struct Way {
    /// What is missing now.
    missing: Option<String>,
    /// When to look again.
    next: Option<Instant>,
}

impl Forwarder {
    /// What is missing of the way, for those who ask.
    pub(super) fn missing_way(&self) -> Option<&str> {
        self.way.missing.as_deref()
    }

    /// Looks at the way if it is one that can be missing, and says when it goes and comes. Once it is there everybody is probed:
    /// what was found without it is of no use.
    pub(super) fn watch_the_way(&mut self, cx: &mut Cx<'_>) -> Option<Instant> {
        let uplink = &self.settings.uplink;
        if uplink.is_default() || self.way.next.is_some_and(|at| cx.now < at) {
            return self.way.next;
        }
        let is_first = self.way.next.is_none();
        let missing = match uplink.check() {
            Ok(()) => None,
            Err(problem) if problem.is_absence() => Some(problem.to_string()),
            // Without a descriptor for it nobody can tell.
            Err(_) => self.way.missing.clone(),
        };
        let was_missing = std::mem::replace(&mut self.way.missing, missing.clone());
        match (was_missing, missing) {
            // It was said before the start.
            (None, Some(what)) if is_first => self.note_error(what),
            (None, Some(what)) => {
                log::warn!("{what}: connections fail until it is there");
                self.note_error(what);
            }
            (Some(what), None) => {
                log::info!("there is what was missing ({what})");
                let mut discovery = self.discovery.borrow_mut();
                if discovery.is_running() {
                    discovery.table.probe_now(cx.now);
                    discovery.wake_prober(cx);
                }
            }
            _ => {}
        }
        let pause = match self.way.missing {
            Some(_) => WHILE_MISSING,
            None => WHILE_THERE,
        };
        self.way.next = Some(cx.now + pause);
        self.way.next
    }
}

/// Somebody waits for it. It takes three system calls.
const WHILE_MISSING: Duration = Duration::from_secs(1);

/// Clients notice by themselves; this is for the log.
const WHILE_THERE: Duration = Duration::from_secs(5);
