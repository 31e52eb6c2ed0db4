//! Remotes that were named by hand, and the addresses behind their names.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::ProxyUri;
use crate::discovery::PeerLogin;
use crate::engine::{Cx, Want};
use crate::forward::Candidate;
use crate::remote;
use crate::resolver::{Lookup, ResolveError, Resolver};
use crate::target::Host;

/// Remotes in order of preference, whose names are looked up again and again: addresses behind names move.
pub(super) struct Explicit {
    remotes: Vec<Remote>,
    resolver: Resolver,
    next_lookup: Option<Instant>,
    /// When those under way have failed.
    give_up: Option<Instant>,
    retry_after: Duration,
}

struct Remote {
    name: remote::Remote,
    /// Empty until the first look-up has succeeded; a later one that fails leaves them.
    addresses: Vec<SocketAddr>,
    lookup: Option<Lookup>,
    error: Option<ResolveError>,
}

impl Explicit {
    /// Remotes to be looked up by [`advance`](Self::advance).
    pub(super) fn new(
        remotes: impl IntoIterator<Item = remote::Remote>,
        resolver: Resolver,
        now: Instant,
    ) -> Self {
        let remotes: Vec<Remote> = remotes
            .into_iter()
            .map(|name| Remote {
                addresses: name.address().socket_addr().into_iter().collect(),
                name,
                lookup: None,
                error: None,
            })
            .collect();
        let has_names = remotes
            .iter()
            .any(|remote| matches!(remote.name.address().host, Host::Name(_)));
        Self {
            remotes,
            resolver,
            next_lookup: has_names.then_some(now),
            give_up: None,
            retry_after: RETRY_FIRST,
        }
    }

    /// How many remotes were named.
    pub(super) fn len(&self) -> usize {
        self.remotes.len()
    }

    /// All addresses in order of preference.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for address in self.remotes.iter().flat_map(|remote| &remote.addresses) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses
    }

    /// The logins of all addresses that have one.
    pub(super) fn logins(&self) -> Vec<PeerLogin> {
        let logins = self.addresses().into_iter();
        logins
            .filter_map(|address| Some((address, self.candidate(address).login?)))
            .collect()
    }

    /// The remote at this address, for clients.
    pub(super) fn candidate(&self, address: SocketAddr) -> Candidate {
        let peer = match self.name_of(address) {
            Some(remote::Remote::PassedOn(peer)) => Some(peer),
            _ => None,
        };
        Candidate {
            address,
            login: peer.and_then(|peer| peer.credentials.clone()),
            timeout: peer.and_then(|peer| peer.timeout),
        }
    }

    /// The remote that has this address, as it was named.
    pub(super) fn name_of(&self, address: SocketAddr) -> Option<&remote::Remote> {
        self.remotes
            .iter()
            .find(|remote| remote.addresses.contains(&address))
            .map(|remote| &remote.name)
    }

    /// All of them as text, with the passwords that are needed to use them.
    pub(super) fn reveal(&self) -> Vec<String> {
        self.remotes
            .iter()
            .map(|remote| remote.name.reveal())
            .collect()
    }

    /// The preferred remote, as it was named.
    pub(super) fn first(&self) -> Option<&remote::Remote> {
        self.remotes.first().map(|remote| &remote.name)
    }

    /// The proxies that clients are converted for, if they are: then these are all.
    pub(super) fn converted(&self) -> Option<Vec<ProxyUri>> {
        self.remotes
            .iter()
            .map(|remote| remote.name.proxy().cloned())
            .collect::<Option<Vec<_>>>()
            .filter(|proxies| !proxies.is_empty())
    }

    /// The first address of a proxy that clients are converted for.
    pub(super) fn address_of(&self, proxy: &ProxyUri) -> Option<SocketAddr> {
        let is_it = |remote: &&Remote| remote.name.proxy() == Some(proxy);
        self.remotes.iter().find(is_it)?.addresses.first().copied()
    }

    /// Whether every name has been looked up once, with or without success.
    pub(super) fn is_settled(&self) -> bool {
        self.remotes
            .iter()
            .all(|remote| !remote.addresses.is_empty() || remote.error.is_some())
    }

    /// The first name that could not be looked up, and why.
    pub(super) fn error(&self) -> Option<(&remote::Remote, ResolveError)> {
        self.remotes
            .iter()
            .find_map(|remote| Some((&remote.name, remote.error?)))
    }

    /// Starts look-ups that are due and takes in answers. The running task is woken by them.
    pub(super) fn advance(&mut self, cx: &Cx<'_>) -> Option<Instant> {
        if self.next_lookup.is_some_and(|at| cx.now >= at) {
            self.next_lookup = None;
            self.give_up = Some(cx.now + PATIENCE);
            for remote in &mut self.remotes {
                let address = remote.name.address();
                if let (Host::Name(host), None) = (&address.host, &remote.lookup) {
                    let lookup = self.resolver.lookup(host, address.port);
                    if let Some(descriptor) = lookup.descriptor()
                        && let Err(error) = cx.watch(descriptor.as_fd(), Want::READ)
                    {
                        log::debug!("look-up of {}: {error}", remote.name);
                    }
                    remote.lookup = Some(lookup);
                }
            }
        }
        let is_over = self.give_up.is_some_and(|at| cx.now >= at);
        let mut under_way = false;
        for remote in &mut self.remotes {
            let Some(lookup) = &mut remote.lookup else {
                continue;
            };
            match lookup.take() {
                Some(answer) => {
                    remote.lookup = None;
                    remote.take_in(answer);
                }
                None if is_over => {
                    remote.lookup = None;
                    remote.take_in(Err(ResolveError::TimedOut));
                }
                None => under_way = true,
            }
        }
        if !under_way {
            self.give_up = None;
        }
        let has_names = self
            .remotes
            .iter()
            .any(|remote| matches!(remote.name.address().host, Host::Name(_)));
        if has_names && !under_way && self.next_lookup.is_none() {
            let failed = self.remotes.iter().any(|remote| remote.error.is_some());
            let pause = if failed { self.retry_after } else { REFRESH };
            self.retry_after = if failed {
                (self.retry_after * 2).min(REFRESH)
            } else {
                RETRY_FIRST
            };
            self.next_lookup = Some(cx.now + pause);
        }
        self.next_lookup.or(self.give_up)
    }
}

impl Remote {
    fn take_in(&mut self, answer: Result<Vec<SocketAddr>, ResolveError>) {
        match answer {
            Ok(addresses) => {
                let recovered = self.error.take().is_some();
                // Name servers hand out the same addresses in turns: that is no change, and must cut no stream.
                let same = self.addresses.len() == addresses.len()
                    && addresses.iter().all(|one| self.addresses.contains(one));
                if !same {
                    self.addresses = addresses;
                }
                if !same || recovered {
                    log::info!("remote {} is {}", self.name, Listed(&self.addresses));
                }
            }
            Err(error) => {
                if self.error != Some(error) {
                    log::warn!("remote {}: {error}", self.name);
                }
                self.error = Some(error);
            }
        }
    }
}

struct Listed<'a>(&'a [SocketAddr]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, address) in self.0.iter().enumerate() {
            let gap = if place == 0 { "" } else { ", " };
            write!(f, "{gap}{address}")?;
        }
        Ok(())
    }
}

/// For one look-up. The system's own limit is that of each name server, each attempt and each search domain together: minutes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A router's own resolver may come up after us.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// How often names are looked up again.
const REFRESH: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_same_addresses_in_another_order_are_no_change() {
        let names = [remote::Remote::parse("proxy.example:1080").unwrap()];
        let mut explicit = Explicit::new(names, Resolver::default(), Instant::now());
        for (answer, expected) in [
            (
                &["10.0.0.1:1", "10.0.0.2:1"][..],
                &["10.0.0.1:1", "10.0.0.2:1"][..],
            ),
            (&["10.0.0.2:1", "10.0.0.1:1"], &["10.0.0.1:1", "10.0.0.2:1"]),
            (&["10.0.0.2:1"], &["10.0.0.2:1"]),
            (&["10.0.0.3:1", "10.0.0.2:1"], &["10.0.0.3:1", "10.0.0.2:1"]),
        ] {
            explicit.remotes[0].take_in(Ok(addresses(answer)));
            assert_eq!(explicit.addresses(), addresses(expected));
        }
    }

    #[test]
    fn a_look_up_that_fails_leaves_the_addresses() {
        let names = [remote::Remote::parse("proxy.example:1080").unwrap()];
        let mut explicit = Explicit::new(names, Resolver::default(), Instant::now());
        assert!(!explicit.is_settled());
        explicit.remotes[0].take_in(Ok(addresses(&["10.0.0.1:1"])));
        explicit.remotes[0].take_in(Err(ResolveError::NotFound));
        assert_eq!(explicit.addresses(), addresses(&["10.0.0.1:1"]));
        assert!(explicit.is_settled() && explicit.error().is_some());
    }
}
