//! Idempotence tokens and windows of them.
//!
//! What to read: "Idempotence Options" in the draft.

use std::fmt;

/// A token: what carries one is done at most once. Hidden in `Debug`, since who knows a client's next token can spend it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u32);

/// How many tokens a window has: 1 to 2^31 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowSize(u32);

/// The tokens that can be spent: `size` of them from `base` on, going on at zero behind the largest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// The first.
    pub base: Token,
    /// How many.
    pub size: WindowSize,
}

impl Token {
    /// Whether this one comes before `other`: `other` is less than half of all tokens ahead.
    ///
    /// ```
    /// use sockhop::wire::socks6::Token;
    /// assert!(Token(u32::MAX).precedes(Token(0)));
    /// assert!(!Token(0).precedes(Token(1 << 31)));
    /// ```
    #[must_use]
    pub const fn precedes(self, other: Self) -> bool {
        let ahead = other.0.wrapping_sub(self.0);
        0 < ahead && ahead < 1 << 31
    }

    /// The one that is `steps` ahead, across zero.
    #[must_use]
    pub const fn plus(self, steps: u32) -> Self {
        Self(self.0.wrapping_add(steps))
    }

    /// How many steps `other` is ahead of this one, modulo 2^32.
    #[must_use]
    pub const fn distance(self, other: Self) -> u32 {
        other.0.wrapping_sub(self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(***)")
    }
}

impl WindowSize {
    /// The largest.
    pub const MAX: Self = Self((1 << 31) - 1);

    /// A size, or `None` for 0 and for 2^31 and more.
    #[must_use]
    pub const fn new(size: u32) -> Option<Self> {
        match size {
            0 => None,
            size if size > Self::MAX.0 => None,
            size => Some(Self(size)),
        }
    }

    /// The number.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

impl Window {
    /// Whether the token is one of the window's.
    #[must_use]
    pub const fn contains(&self, token: Token) -> bool {
        self.base.distance(token) < self.size.0
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window(*** of {})", self.size.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_across_zero_has_its_tokens_and_no_others() {
        let window = Window {
            base: Token(0xffff_fff0),
            size: WindowSize::new(0x20).unwrap(),
        };
        for (token, inside) in [
            (0xffff_ffef, false),
            (0xffff_fff0, true),
            (u32::MAX, true),
            (0, true),
            (0xf, true),
            (0x10, false),
            (0x8000_0000, false),
        ] {
            assert_eq!(window.contains(Token(token)), inside, "{token:#x}");
        }
        assert_eq!(window.base.plus(0x20), Token(0x10));
    }

    #[test]
    fn sizes_have_their_limits() {
        assert_eq!(WindowSize::new(0), None);
        assert_eq!(WindowSize::new(1 << 31), None);
        assert_eq!(WindowSize::new(1).map(WindowSize::as_u32), Some(1));
        assert_eq!(WindowSize::new((1 << 31) - 1), Some(WindowSize::MAX));
    }
}
