//! Which tokens are spent: the proxy's book and the client's purse.
//!
//! What to read: "Idempotence Options" in the draft.

use std::fmt;

use crate::wire::socks6::{Token, TokenVerdict, Window, WindowSize};

/// The proxy's book on the tokens of one session: one bit for each of the window.
///
/// The window moves on when its first token is spent, and when one of its upper half is: then so far that the token is
/// the last one of the lower half. What is passed over can't be spent any more.
#[derive(Clone)]
pub struct SpentTokens {
    window: Window,
    /// A bit a token, in a ring; the window's first token is at `start`.
    spent: Box<[u64]>,
    start: u32,
}

/// A client's tokens of one session, spent from the smallest on, as the draft asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Purse {
    window: Window,
    next: Token,
}

impl SpentTokens {
    /// A window from `base` on, all unspent. It takes an eighth of a byte a token: limit the size first.
    #[must_use]
    pub fn new(base: Token, size: WindowSize) -> Self {
        let words = size.as_u32().div_ceil(u64::BITS);
        Self {
            window: Window { base, size },
            spent: (0..words).map(|_| 0).collect(),
            start: 0,
        }
    }

    /// The tokens that can be spent now, apart from those that are spent.
    #[must_use]
    pub const fn window(&self) -> Window {
        self.window
    }

    /// Spends a token. Do this before what the token is for: what fails then is not done again, and what is asked twice
    /// is done once.
    pub fn spend(&mut self, token: Token) -> TokenVerdict {
        let ahead = self.window.base.distance(token);
        if !self.window.contains(token) || self.is_spent(ahead) {
            return TokenVerdict::Rejected;
        }
        self.mark(ahead, true);
        // One token is its own lower half.
        let half = (self.window.size.as_u32() / 2).max(1);
        for _ in 0..(ahead + 1).saturating_sub(half) {
            self.shift();
        }
        while self.is_spent(0) {
            self.shift();
        }
        TokenVerdict::Accepted
    }

    /// Moves the window by one token; the slot of the first becomes that of the new last.
    fn shift(&mut self) {
        self.mark(0, false);
        self.window.base = self.window.base.plus(1);
        self.start = (self.start + 1) % self.window.size.as_u32();
    }

    fn is_spent(&self, ahead: u32) -> bool {
        let (word, bit) = self.slot(ahead);
        self.spent.get(word).is_some_and(|word| word & bit != 0)
    }

    fn mark(&mut self, ahead: u32, spent: bool) {
        let (word, bit) = self.slot(ahead);
        if let Some(word) = self.spent.get_mut(word) {
            *word = if spent { *word | bit } else { *word & !bit };
        }
    }

    /// Word and bit of the token that is so far ahead of the first, less than the window's size.
    fn slot(&self, ahead: u32) -> (usize, u64) {
        // Both are below 2^31, so the sum fits.
        let slot = (self.start + ahead) % self.window.size.as_u32();
        let word = usize::try_from(slot / u64::BITS).unwrap_or(usize::MAX);
        (word, 1 << (slot % u64::BITS))
    }
}

impl fmt::Debug for SpentTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpentTokens({:?})", self.window)
    }
}

impl Purse {
    /// The tokens of a window that the proxy has advertised for the first time.
    #[must_use]
    pub const fn new(window: Window) -> Self {
        Self {
            window,
            next: window.base,
        }
    }

    /// Takes over a window that the proxy advertises again. One that begins before what we know is out of date.
    pub fn update(&mut self, window: Window) {
        if window.base.precedes(self.window.base) {
            return;
        }
        self.window = window;
        if self.next.precedes(window.base) {
            self.next = window.base;
        }
    }

    /// The smallest token that was not taken yet; `None` if the window has no more.
    #[must_use]
    pub fn take(&mut self) -> Option<Token> {
        let token = self.next;
        if !self.window.contains(token) {
            return None;
        }
        self.next = token.plus(1);
        Some(token)
    }

    /// How many the window has, taken or not.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.window.size.as_u32()
    }

    /// How many can be taken.
    #[must_use]
    pub const fn left(&self) -> u32 {
        let taken = self.window.base.distance(self.next);
        self.window.size.as_u32().saturating_sub(taken)
    }
}

impl fmt::Debug for Purse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Purse({} left)", self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TokenVerdict::{Accepted, Rejected};
    use std::collections::HashSet;

    fn tokens(base: u32, size: u32) -> SpentTokens {
        SpentTokens::new(Token(base), WindowSize::new(size).unwrap())
    }

    #[test]
    fn each_token_is_good_once_and_only_inside() {
        let mut book = tokens(100, 16);
        for (token, verdict, base) in [
            (99, Rejected, 100),
            (116, Rejected, 100),
            (103, Accepted, 100),
            (103, Rejected, 100),
            // The first moves the window by one, and not past an unspent one.
            (100, Accepted, 101),
            (100, Rejected, 101),
            (101, Accepted, 102),
            // The next one is followed by one that was spent before.
            (102, Accepted, 104),
            // In the upper half: it becomes the last of the lower.
            (116, Accepted, 109),
            // Passed over.
            (105, Rejected, 109),
            (116, Rejected, 109),
            (109, Accepted, 110),
        ] {
            assert_eq!(book.spend(Token(token)), verdict, "{token}");
            assert_eq!(book.window().base, Token(base), "after {token}");
        }
    }

    #[test]
    fn window_of_one_token_moves_on_each_time() {
        let mut book = tokens(u32::MAX, 1);
        for token in [u32::MAX, 0, 1, 2] {
            assert_eq!(book.spend(Token(token)), Accepted);
            assert_eq!(book.spend(Token(token)), Rejected);
        }
    }

    #[test]
    fn replays_across_zero_are_rejected() {
        let mut book = tokens(0xffff_fff8, 16);
        let order = (0..40_u32).map(|step| Token(0xffff_fff8).plus(step));
        for token in order.clone() {
            assert_eq!(book.spend(token), Accepted);
        }
        assert_eq!(book.window().base, Token(32));
        for token in order {
            assert_eq!(book.spend(token), Rejected);
        }
    }

    /// Against a book that keeps everything for ever.
    #[test]
    fn no_token_is_ever_accepted_twice() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let size = random.u32(1..200);
            let mut book = tokens(random.u32(..), size);
            let mut accepted = HashSet::new();
            for _ in 0..2000 {
                let before = book.window();
                let token = before.base.plus(random.u32(0..size + 5)).plus(u32::MAX - 1);
                let verdict = book.spend(token);
                if verdict == Accepted {
                    assert!(before.contains(token), "seed {seed}");
                    assert!(accepted.insert(token), "seed {seed}");
                } else if before.contains(token) {
                    assert!(accepted.contains(&token), "seed {seed}");
                }
                let window = book.window();
                assert!(!window.base.precedes(before.base), "seed {seed}");
                assert_eq!(window.size, before.size);
                assert!(!accepted.contains(&window.base), "seed {seed}");
            }
        }
    }

    #[test]
    fn purse_gives_small_tokens_first_and_follows_the_proxy() {
        let window = |base, size| Window {
            base: Token(base),
            size: WindowSize::new(size).unwrap(),
        };
        let mut purse = Purse::new(window(u32::MAX, 3));
        assert_eq!(purse.left(), 3);
        assert_eq!(purse.take(), Some(Token(u32::MAX)));
        assert_eq!(purse.take(), Some(Token(0)));
        // What we know already, and older.
        purse.update(window(u32::MAX, 3));
        purse.update(window(u32::MAX - 5, 300));
        assert_eq!(purse.left(), 1);
        assert_eq!(purse.take(), Some(Token(1)));
        assert_eq!(purse.take(), None);
        purse.update(window(1, 3));
        assert_eq!(purse.take(), Some(Token(2)));
        purse.update(window(1000, 3));
        assert_eq!(purse.take(), Some(Token(1000)));
        assert_eq!(purse.left(), 2);
    }
}
