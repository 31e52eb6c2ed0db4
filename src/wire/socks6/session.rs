//! Session ids, and what a request says of its session.
//!
//! What to read: "Session Options" in the draft.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::hint::black_box;

/// The id of a session: 4 to [`SessionId::MAX_LEN`] bytes, a multiple of 4. Who knows it needs no password, so `Debug`
/// hides it, and `==` takes the same time wherever the difference is.
#[derive(Clone, Eq)]
pub struct SessionId(Box<[u8]>);

/// What a request says of its session. Kinds 5, 6 and 10, which make sense in these combinations only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SessionUse {
    /// Nothing.
    #[default]
    None,
    /// The client wants one (Session Request). The request belongs to it if the proxy grants it.
    Request,
    /// The request belongs to this one (Session ID): no authentication is needed, and none is looked at.
    Resume(SessionId),
    /// This one shall end (Session ID and Session Teardown). The request itself is outside any session.
    Teardown(SessionId),
}

impl SessionId {
    /// The draft has no limit but the option's. The implementations use 8 bytes; what is longer than this is taken for
    /// malformed.
    pub const MAX_LEN: usize = 256;

    /// An id, or `None` for a length that ids don't have.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let fits = !bytes.is_empty() && bytes.len() <= Self::MAX_LEN;
        (fits && bytes.len().is_multiple_of(4)).then(|| Self(bytes.into()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for SessionId {
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        let difference = pairs.fold(0, |sum, (ours, theirs)| black_box(sum | (ours ^ theirs)));
        self.0.len() == other.0.len() && difference == 0
    }
}

impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId(***)")
    }
}

impl SessionUse {
    /// The id, if the request has one.
    #[must_use]
    pub const fn id(&self) -> Option<&SessionId> {
        match self {
            Self::None | Self::Request => None,
            Self::Resume(id) | Self::Teardown(id) => Some(id),
        }
    }

    /// Whether the request is, or may come to be, inside a session.
    #[must_use]
    pub const fn may_be_inside(&self) -> bool {
        matches!(self, Self::Request | Self::Resume(_))
    }
}
