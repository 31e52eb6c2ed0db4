//! As whom peers are greeted that take nobody without a user and a password.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::table::SourceId;
use crate::net::canonical;
use crate::wire::Credentials;

/// An address and the login for it.
pub type PeerLogin = (SocketAddr, Arc<Credentials>);

/// The logins that sources name, by address. Of several for one address that of the first source counts, and of a source the first
/// one. `Debug` shows no password.
#[derive(Debug, Default)]
pub struct Logins {
    /// By the number of the source.
    sources: [Vec<PeerLogin>; SourceId::LIMIT],
    merged: HashMap<SocketAddr, Arc<Credentials>>,
}

impl Logins {
    /// The login for an address, if it has one.
    #[must_use]
    pub fn get(&self, address: SocketAddr) -> Option<&Credentials> {
        self.merged.get(&canonical(address)).map(|login| &**login)
    }

    /// The same, to be kept.
    #[must_use]
    pub fn shared(&self, address: SocketAddr) -> Option<Arc<Credentials>> {
        self.merged.get(&canonical(address)).cloned()
    }

    /// Replaces the list of one source, of which the first 1024 count; the addresses whose login is another now.
    pub fn set(&mut self, source: SourceId, mut list: Vec<PeerLogin>) -> Vec<SocketAddr> {
        list.truncate(MOST_LOGINS);
        let before = std::mem::take(&mut self.merged);
        if let Some(of_source) = self.sources.get_mut(source.number()) {
            *of_source = list;
        }
        for (address, login) in self.sources.iter().flatten() {
            let login = || Arc::clone(login);
            self.merged.entry(canonical(*address)).or_insert_with(login);
        }
        let gone = before.keys().filter(|one| !self.merged.contains_key(one));
        let other = self
            .merged
            .iter()
            .filter(|(address, login)| before.get(address) != Some(login));
        gone.chain(other.map(|(address, _)| address))
            .copied()
            .collect()
    }
}

/// Of one source. Whoever has passwords for more peers has one for all of them, and other means than a list to hand it out.
pub(super) const MOST_LOGINS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn login(address: &str, password: &str) -> PeerLogin {
        let credentials = Credentials::new("ada", password).unwrap();
        (address.parse().unwrap(), Arc::new(credentials))
    }

    fn number(number: usize) -> SourceId {
        SourceId::new(number).unwrap()
    }

    #[test]
    fn the_first_source_counts_and_changes_are_told() {
        let mut logins = Logins::default();
        let (one, two) = (login("10.0.0.1:1", "x"), login("[::ffff:10.0.0.1]:1", "y"));
        assert_eq!(logins.set(number(1), vec![one.clone()]), [one.0]);
        assert_eq!(logins.set(number(1), vec![one.clone()]), []);
        assert_eq!(logins.set(number(2), vec![two.clone()]), []);
        assert_eq!(logins.get(two.0), Some(&*one.1));
        assert_eq!(logins.set(number(0), vec![two.clone()]), [one.0]);
        assert_eq!(logins.get(one.0), Some(&*two.1));
        assert_eq!(logins.set(number(0), Vec::new()), [one.0]);
        assert_eq!(logins.set(number(2), Vec::new()), []);
        assert_eq!(logins.set(number(1), Vec::new()), [one.0]);
        assert_eq!(logins.get(one.0), None);
        assert!(!format!("{logins:?}").contains('y'));
    }

    #[test]
    fn a_source_has_a_limit() {
        let mut logins = Logins::default();
        let (_, credentials) = login("10.0.0.1:1", "x");
        let many = (1..=u16::MAX)
            .map(|port| (([10, 0, 0, 1], port).into(), Arc::clone(&credentials)))
            .collect();
        assert_eq!(logins.set(number(0), many).len(), MOST_LOGINS);
    }
}
