//! Peers given by hand, on the command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::lines::{ListedPeer, PeerName};
use super::names::{Names, RESOLVE_EVERY};
use super::{Refresh, Refreshed, Signal, Source};
use crate::discovery::logins::PeerLogin;
use crate::resolver::Resolver;
use crate::wire::Credentials;

/// A list that only changes in what its names stand for, which is looked up every minute.
#[derive(Debug)]
pub struct FixedSource {
    name: String,
    addresses: Vec<SocketAddr>,
    host_names: Vec<(String, u16)>,
    logins: Vec<(PeerName, Arc<Credentials>)>,
    names: Names,
}

impl FixedSource {
    /// These peers, shown as coming from `name`.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        peers: impl IntoIterator<Item = ListedPeer>,
        resolver: Resolver,
    ) -> Self {
        let mut source = Self {
            name: name.into(),
            addresses: Vec::new(),
            host_names: Vec::new(),
            logins: Vec::new(),
            names: Names::new(resolver),
        };
        for ListedPeer { name, login } in peers {
            if let Some(login) = login {
                source.logins.push((name.clone(), login));
            }
            match name {
                PeerName::Ip(address) => source.addresses.push(address),
                PeerName::Name(host, port) => source.host_names.push((host, port)),
            }
        }
        source
    }

    /// The peers given as addresses.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether there are names among them. If not, no thread is needed.
    #[must_use]
    pub const fn has_names(&self) -> bool {
        !self.host_names.is_empty()
    }
}

impl Source for FixedSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn refresh(&mut self, _: Refresh, signal: &mut Signal) -> Refreshed {
        let (found, error) = self.names.resolve(&self.host_names, signal);
        let mut peers = self.addresses.clone();
        peers.extend(found);
        Refreshed::List { peers, error }
    }

    fn logins(&self) -> Vec<PeerLogin> {
        self.names.logins(&self.logins)
    }

    fn pause(&self) -> Option<Duration> {
        self.has_names().then_some(RESOLVE_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::super::signal::pair;
    use super::*;

    #[test]
    fn names_and_addresses_make_one_list() {
        let peers = [
            PeerName::Ip("192.0.2.1:1080".parse().unwrap()),
            PeerName::Name("127.0.0.9".to_owned(), 81),
        ]
        .map(|name| ListedPeer { name, login: None });
        let mut source = FixedSource::new("flag", peers, Resolver::default());
        assert_eq!(source.name(), "flag");
        assert_eq!(source.addresses().len(), 1);
        assert_eq!(source.pause(), Some(RESOLVE_EVERY));
        let (_handle, mut signal) = pair().unwrap();
        let expected = ["192.0.2.1:1080", "127.0.0.9:81"].map(|text| text.parse().unwrap());
        assert_eq!(
            source.refresh(Refresh::Requested, &mut signal),
            Refreshed::List {
                peers: expected.to_vec(),
                error: None
            }
        );
    }

    #[test]
    fn without_names_there_is_nothing_to_repeat() {
        let source = FixedSource::new("flag", [], Resolver::default());
        assert!(!source.has_names());
        assert_eq!(source.pause(), None);
    }
}
