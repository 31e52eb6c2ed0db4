//! Probing a list of addresses once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::probe::{Probe, ProbeSettings};
use super::status::Finding;
use crate::engine::{Cx, Next, Reactor, Shared, Task};
use crate::wire::Credentials;

/// An address, and the login for it if there is one.
pub type Asked = (SocketAddr, Option<Arc<Credentials>>);

/// Probes each address once, with the login for it if there is one, at most `at_once` at a time, and returns what was found, in the order of the addresses.
/// `progress` is told how many are done, whenever one is.
///
/// # Errors
/// When the system gives no thread, epoll instance or descriptor to begin with.
pub fn survey(
    addresses: &[Asked],
    settings: &ProbeSettings,
    at_once: usize,
    progress: impl FnMut(usize) + 'static,
) -> io::Result<Vec<Finding>> {
    // A survey needs no workers; the pool's one thread idles.
    let mut reactor = Reactor::new(1)?;
    let state = Shared::new(RefCell::new(State {
        waiting: addresses.iter().cloned().enumerate().collect(),
        under_way: 0,
        at_once: at_once.max(1),
        settings: settings.clone(),
        found: vec![None; addresses.len()],
        done: 0,
        progress: Box::new(progress),
    }));
    reactor.spawn(Box::new(Survey {
        state: Shared::clone(&state),
    }));
    reactor.run()?;
    let found = std::mem::take(&mut state.borrow_mut().found);
    Ok(found.into_iter().flatten().collect())
}

struct Survey {
    state: Shared<State>,
}

struct State {
    waiting: VecDeque<(usize, Asked)>,
    under_way: usize,
    at_once: usize,
    settings: ProbeSettings,
    found: Vec<Option<Finding>>,
    done: usize,
    progress: Box<dyn FnMut(usize)>,
}

impl State {
    fn take(&mut self, place: usize, finding: Finding) {
        if let Some(slot) = self.found.get_mut(place) {
            *slot = Some(finding);
        }
        self.done += 1;
        (self.progress)(self.done);
    }
}

impl Task for Survey {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let mut state = self.state.borrow_mut();
        while state.under_way < state.at_once {
            let Some((place, (address, login))) = state.waiting.pop_front() else {
                break;
            };
            state.under_way += 1;
            let (shared, survey) = (Shared::clone(&self.state), cx.id());
            let on_finding = Box::new(move |cx: &mut Cx<'_>, _, finding| {
                let mut state = shared.borrow_mut();
                state.under_way -= 1;
                state.take(place, finding);
                cx.wake(survey);
            });
            let probe = Probe::new(address, login.as_deref(), &state.settings, on_finding);
            cx.spawn(Box::new(probe));
        }
        if state.under_way == 0 {
            cx.stop();
        }
        Next::Wait(None)
    }
}
