//! What a peer said instead of an answer, short enough to be kept and shown.

use std::fmt;

/// The first bytes of an answer that is not what was asked for, at most [`FirstBytes::LIMIT`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FirstBytes {
    length: u8,
    bytes: [u8; Self::LIMIT],
}

impl FirstBytes {
    /// As many as tell `HTTP/1.1`, `SSH-2.0-` and `220 mail` apart.
    pub const LIMIT: usize = 8;

    /// Keeps the first [`FirstBytes::LIMIT`] of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut kept = Self {
            length: 0,
            bytes: [0; Self::LIMIT],
        };
        for (to, from) in kept.bytes.iter_mut().zip(bytes) {
            *to = *from;
            kept.length += 1;
        }
        kept
    }

    /// The bytes kept.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }
}

/// Quoted text when at least one byte is printable, else hexadecimal: `"HTTP/1.1"`, `"\x15\x03A"`, `04 5A`.
impl fmt::Display for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_bytes();
        if bytes.iter().filter(|byte| byte.is_ascii_graphic()).count() * 2 > bytes.len() {
            return write!(f, "\"{}\"", bytes.escape_ascii());
        }
        for (position, byte) in bytes.iter().enumerate() {
            let gap = if position == 0 { "" } else { " " };
            write!(f, "{gap}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FirstBytes({self})")
    }
}
