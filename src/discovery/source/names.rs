//! The host names in a source's list, looked up again and again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lines::PeerName;
use super::signal::{Signal, Wake};
use crate::discovery::logins::{MOST_LOGINS, PeerLogin};
use crate::net::canonical;
use crate::resolver::{Lookup, ResolveError, Resolver};
use crate::wire::Credentials;

/// Looks names up and remembers the last answer for each: one that can't be looked up now keeps it.
#[derive(Debug)]
pub(super) struct Names {
    resolver: Resolver,
    known: HashMap<(String, u16), Vec<SocketAddr>>,
}

impl Names {
    pub(super) fn new(resolver: Resolver) -> Self {
        Self {
            resolver,
            known: HashMap::new(),
        }
    }

    /// The addresses of `names`, and what is missing. Takes [`PATIENCE`] at most, and ends early at a stop.
    pub(super) fn resolve(
        &mut self,
        names: &[(String, u16)],
        signal: &mut Signal,
    ) -> (Vec<SocketAddr>, Option<String>) {
        let deadline = Instant::now() + PATIENCE;
        let more = names.len().saturating_sub(MAX_NAMES);
        let names = names.get(..MAX_NAMES).unwrap_or(names);
        let current: HashSet<_> = names.iter().collect();
        self.known.retain(|name, _| current.contains(name));
        let mut failed = 0;
        let mut first_failure = None;
        let mut fail = |name: &(String, u16), error: ResolveError| {
            failed += 1;
            first_failure.get_or_insert_with(|| format!("{}: {error}", name.0));
        };
        let mut waiting: VecDeque<(&(String, u16), Lookup)> = VecDeque::new();
        let mut left = names.iter();
        loop {
            while waiting.len() < AT_ONCE
                && let Some(name) = left.next()
            {
                waiting.push_back((name, self.resolver.lookup(&name.0, name.1)));
            }
            let Some((name, mut lookup)) = waiting.pop_front() else {
                break;
            };
            match settle(&mut lookup, signal, deadline) {
                Ok(addresses) => {
                    let addresses = addresses.into_iter().filter(is_usable).map(canonical);
                    self.known.insert(name.clone(), addresses.collect());
                }
                Err(error) => fail(name, error),
            }
        }
        let addresses = names
            .iter()
            .filter_map(|name| self.known.get(name))
            .flatten()
            .copied()
            .collect();
        let error = match (first_failure, more) {
            (None, 0) => None,
            (None, more) => Some(format!(
                "{more} names beyond the first {MAX_NAMES} are not looked up"
            )),
            (Some(first), _) if failed == 1 => Some(first),
            (Some(first), _) => Some(format!("{first}, and {} other names", failed - 1)),
        };
        (addresses, error)
    }

    /// What a name stood for when it was last looked up.
    fn addresses_of<'a>(&'a self, peer: &'a PeerName) -> &'a [SocketAddr] {
        match peer {
            PeerName::Ip(address) => std::slice::from_ref(address),
            PeerName::Name(host, port) => {
                let known = self.known.get(&(host.clone(), *port));
                known.map_or(&[], Vec::as_slice)
            }
        }
    }

    /// The logins of a list, by address.
    pub(super) fn logins(&self, list: &[(PeerName, Arc<Credentials>)]) -> Vec<PeerLogin> {
        list.iter()
            .flat_map(|(peer, login)| {
                let addresses = self.addresses_of(peer).iter();
                addresses.map(move |address| (*address, Arc::clone(login)))
            })
            .take(MOST_LOGINS)
            .collect()
    }
}

/// Waits for one answer.
pub(super) fn settle(
    lookup: &mut Lookup,
    signal: &mut Signal,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, ResolveError> {
    loop {
        if let Some(answer) = lookup.take() {
            return answer;
        }
        let Some(descriptor) = lookup.descriptor() else {
            return Err(ResolveError::NotFound);
        };
        match signal.wait_readable(&[descriptor], deadline) {
            Wake::Ready(_) => {}
            Wake::Deadline | Wake::Stop => return Err(ResolveError::TimedOut),
        }
    }
}

/// What a name server says is no more to be trusted than a line of a file.
fn is_usable(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// Names in one list that are looked up: each costs a query a minute.
const MAX_NAMES: usize = 1024;

/// Queries of one source under way at once, so that several sources and the forwarder share the resolver.
const AT_ONCE: usize = 4;

/// For all names of a list together.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often names are looked up again.
pub(super) const RESOLVE_EVERY: Duration = Duration::from_secs(60);
