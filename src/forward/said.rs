//! What a client has said before it was served, and to whom it may be said.

use crate::handshake::watch::{Asked, Opening, Speaks};
use crate::wire::socks5::Method;

/// A client's first bytes, and what stands in the way of saying them to one remote after the other.
pub(super) struct Said<'a> {
    bytes: &'a [u8],
    opening: Opening<'a>,
    hold: Hold,
    told: Told,
}

/// How much of a client's first bytes a remote hears before it has answered them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// All there is: no other remote will hear them.
    Nothing,
    /// What may be said to several of them: no password, and nothing that is for the destination.
    Private,
}

/// What the client knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// That it need not authenticate; the next that it hears is the reply to its request.
    NoAuthentication,
}

impl<'a> Said<'a> {
    pub(super) fn new(bytes: &'a [u8], hold: Hold, told: Told) -> Self {
        Self {
            bytes,
            opening: Opening::read(bytes),
            hold,
            told,
        }
    }

    pub(super) const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) const fn speaks(&self) -> Speaks {
        self.opening.speaks()
    }

    pub(super) fn greeting(&self) -> Option<usize> {
        self.opening.greeting()
    }

    pub(super) fn asked(&self) -> Asked {
        self.opening.asked()
    }

    pub(super) fn offers(&self, method: Method) -> bool {
        self.opening.offers(method)
    }

    /// Whether a remote that fails between greeting and reply is replaced by another one.
    pub(super) fn fails_over(&self) -> bool {
        self.hold == Hold::Private
    }

    /// Whether no more of it is kept.
    pub(super) const fn is_full(&self) -> bool {
        self.len() >= KEPT
    }

    /// How far it may be sent to a remote that has answered the greeting, or hears the request without having done so.
    pub(super) fn due(&self) -> usize {
        match self.hold {
            Hold::Nothing => self.len(),
            Hold::Private => self.repeatable(),
        }
    }

    /// How far it may be sent to a remote that has to answer the greeting first.
    pub(super) fn greeting_due(&self) -> usize {
        match (self.hold, self.greeting()) {
            (Hold::Private, Some(greeting)) => greeting,
            _ => self.due(),
        }
    }

    /// How far it may be said to several remotes. What is for the destination must not come twice, and a password is for
    /// the one that asked for it. Where a method is still to be chosen, what follows the greeting may be one.
    pub(super) fn repeatable(&self) -> usize {
        let is_request = self.told == Told::NoAuthentication || self.opening.offers_nothing_else();
        match (self.asked(), self.greeting()) {
            (Asked::NotYet, None) => self.len(),
            (Asked::For { end, .. }, None) => end,
            (Asked::For { end, .. }, Some(_)) if is_request => end,
            (Asked::NotYet, Some(_)) if is_request => self.len(),
            (Asked::Unreadable, None) => self.len(),
            (_, Some(greeting)) => greeting,
        }
    }
}

/// What is kept of a client's first bytes: a SOCKS handshake fits in (greeting 257, user and password 513, request
/// 262 bytes at most), a flood does not.
pub(super) const KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_said_to_several_remotes() {
        let request = b"\x05\x01\0\x01\x7f\0\0\x01\0\x50";
        let with = |greeting: &[u8], rest: &[u8]| [greeting, rest].concat();
        let payload = with(request, b"payload");
        for (bytes, told, repeatable) in [
            (with(b"", b"GET /"), Told::Nothing, 5),
            (with(b"\x05\x02\0", b""), Told::Nothing, 3),
            (with(b"\x05\x01\0", &request[..5]), Told::Nothing, 8),
            (with(b"\x05\x01\0", &payload), Told::Nothing, 13),
            // It may be a password as long as nobody has chosen a method.
            (with(b"\x05\x02\0\x02", &payload), Told::Nothing, 4),
            (
                with(b"\x05\x02\0\x02", &payload),
                Told::NoAuthentication,
                14,
            ),
            (
                with(b"\x05\x01\x02", b"\x01\x03ada\x04pass"),
                Told::Nothing,
                3,
            ),
            (with(b"\x05\x01\0", b"\x01\x03ada"), Told::Nothing, 3),
            (
                with(b"\x04\x01\0\x50\x7f\0\0\x01\0", b"payload"),
                Told::Nothing,
                9,
            ),
            (with(b"\x04\x01\0\x50\x7f", b""), Told::Nothing, 5),
        ] {
            let said = Said::new(&bytes, Hold::Private, told);
            assert_eq!(said.repeatable(), repeatable, "{bytes:02x?}");
            assert_eq!(said.due(), repeatable);
            let said = Said::new(&bytes, Hold::Nothing, told);
            assert_eq!(said.due(), bytes.len());
        }
    }

    #[test]
    fn a_remote_that_has_to_answer_first_hears_the_greeting_only() {
        let bytes = b"\x05\x01\0\x05\x01\0\x01\x7f\0\0\x01\0\x50";
        for (hold, due) in [(Hold::Private, 3), (Hold::Nothing, bytes.len())] {
            assert_eq!(Said::new(bytes, hold, Told::Nothing).greeting_due(), due);
        }
    }
}
