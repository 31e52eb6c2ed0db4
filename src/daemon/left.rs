//! What a session on a worker leaves for the task that gave it its work.

use std::ops::DerefMut;
use std::sync::{Arc, LockResult, Mutex, PoisonError};

/// A place for one outcome. Both sides have a clone of it. A channel would do the same, with 3 KB of program for each type.
pub(super) struct Left<T>(Arc<Mutex<Option<T>>>);

impl<T> Left<T> {
    /// For who is waiting, if anybody is.
    pub(super) fn leave(&self, outcome: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// The outcome, once it is there.
    pub(super) fn take(&mut self) -> Result<T, Missing> {
        match Arc::get_mut(&mut self.0) {
            // The other side is gone, and there will be no more than there is.
            Some(place) => taken(place.get_mut()).ok_or(Missing::Lost),
            None => taken(self.0.lock()).ok_or(Missing::NotYet),
        }
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The other side is at work.
    NotYet,
    /// It ended without one.
    Lost,
}

fn taken<T, P: DerefMut<Target = Option<T>>>(place: LockResult<P>) -> Option<T> {
    place.unwrap_or_else(PoisonError::into_inner).take()
}

impl<T> Clone for Left<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Left<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_taken_once() {
        let mut left = Left::default();
        let other = left.clone();
        assert_eq!(left.take(), Err(Missing::NotYet));
        other.leave(7);
        assert_eq!(left.take(), Ok(7));
        assert_eq!(left.take(), Err(Missing::NotYet));
        other.leave(8);
        drop(other);
        assert_eq!(left.take(), Ok(8));
        assert_eq!(left.take(), Err(Missing::Lost));
    }
}
