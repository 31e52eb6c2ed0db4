//! Whom a client has sent to: who may answer, and which addresses the rules need not be asked about again.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The addresses that a client has sent to lately. Grows with use, up to [`MOST_CONTACTS`]; then the one that was used least
/// recently makes room.
#[derive(Default)]
pub(super) struct Contacts {
    /// The one used last is the last: it is nearly always the next one too.
    list: Vec<Contact>,
}

struct Contact {
    address: SocketAddr,
    /// When the rules allowed the address by itself. `None`: under a name only.
    allowed: Option<Instant>,
}

impl Contacts {
    /// Whether the rules have allowed this address lately.
    pub(super) fn is_allowed(&mut self, address: SocketAddr, now: Instant) -> bool {
        let contact = self.recall(|contact| contact.address == address);
        contact
            .and_then(|contact| contact.allowed)
            .is_some_and(|since| now.saturating_duration_since(since) < VERDICT_HOLDS)
    }

    /// Remembers an address that the rules allow by itself.
    pub(super) fn allowed(&mut self, address: SocketAddr, now: Instant) {
        self.remember(address, Some(now));
    }

    /// Remembers an address that was sent to under a name.
    pub(super) fn named(&mut self, address: SocketAddr) {
        self.remember(address, None);
    }

    pub(super) fn has_ip(&mut self, ip: IpAddr) -> bool {
        self.recall(|contact| contact.address.ip() == ip).is_some()
    }

    pub(super) fn has(&mut self, address: SocketAddr) -> bool {
        self.recall(|contact| contact.address == address).is_some()
    }

    /// The one of that kind used last, which is now used again.
    fn recall(&mut self, is_it: impl Fn(&Contact) -> bool) -> Option<&mut Contact> {
        let place = self.list.iter().rposition(is_it)?;
        self.list.get_mut(place..)?.rotate_left(1);
        self.list.last_mut()
    }

    fn remember(&mut self, address: SocketAddr, allowed: Option<Instant>) {
        if let Some(contact) = self.recall(|contact| contact.address == address) {
            contact.allowed = allowed.or(contact.allowed);
            return;
        }
        if self.list.len() >= MOST_CONTACTS {
            self.list.remove(0);
        }
        self.list.push(Contact { address, allowed });
    }
}

/// 24 KiB when full. Who talks to more at a time (a distributed hash table does, for some seconds) loses answers of the first.
const MOST_CONTACTS: usize = 512;

/// Rules stay as they are while a server runs, but the addresses of the machine itself may change. Asking costs four system
/// calls.
const VERDICT_HOLDS: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(number: usize) -> SocketAddr {
        let [.., a, b] = number.to_be_bytes();
        SocketAddr::from(([10, 0, a, b], 53))
    }

    #[test]
    fn the_one_used_least_recently_makes_room() {
        let mut contacts = Contacts::default();
        let now = Instant::now();
        for number in 0..MOST_CONTACTS {
            contacts.allowed(address(number), now);
        }
        // Sending again, and an answer, count as use.
        contacts.allowed(address(0), now);
        assert!(contacts.has_ip(address(1).ip()));
        assert!(contacts.is_allowed(address(2), now));
        for number in 0..10 {
            contacts.named(address(MOST_CONTACTS + number));
        }
        assert_eq!(contacts.list.len(), MOST_CONTACTS);
        for number in 0..MOST_CONTACTS + 10 {
            let gone = (3..13).contains(&number);
            assert_eq!(contacts.has(address(number)), !gone, "{number}");
        }
    }

    #[test]
    fn a_verdict_is_for_one_address_and_holds_a_while() {
        let mut contacts = Contacts::default();
        let now = Instant::now();
        contacts.allowed(address(1), now);
        contacts.named(address(2));
        let other_port = SocketAddr::new(address(1).ip(), 54);
        assert!(contacts.is_allowed(address(1), now));
        assert!(!contacts.is_allowed(other_port, now));
        assert!(!contacts.is_allowed(address(2), now), "under a name only");
        assert!(contacts.has_ip(other_port.ip()) && !contacts.has(other_port));
        // Sending there under a name does not take it away.
        contacts.named(address(1));
        assert!(contacts.is_allowed(address(1), now));
        assert!(!contacts.is_allowed(address(1), now + VERDICT_HOLDS));
        assert!(contacts.has(address(1)), "it may answer for longer");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn never_more_than_the_limit_and_always_the_last_ones(
            numbers in prop::collection::vec(0..2 * MOST_CONTACTS, 0..3 * MOST_CONTACTS),
        ) {
            let mut contacts = Contacts::default();
            let mut model: Vec<usize> = Vec::new();
            for number in numbers {
                contacts.named(address(number));
                model.retain(|other| *other != number);
                model.push(number);
            }
            let first = model.len().saturating_sub(MOST_CONTACTS);
            let expected: Vec<_> = model[first..].iter().map(|number| address(*number)).collect();
            let found: Vec<_> = contacts.list.iter().map(|contact| contact.address).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
