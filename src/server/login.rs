//! A connection of a user, counted as such.

use std::fmt;

use super::settings::ServerStats;

/// What one user did since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserCounts {
    /// Connections open now.
    pub active: u64,
    /// Connections since the start.
    pub total: u64,
    /// Bytes from the user to destinations.
    pub up: u64,
    /// Bytes from destinations to the user.
    pub down: u64,
}

/// The user of a connection, until it is dropped.
pub(super) struct Login {
    user: Box<str>,
    stats: ServerStats,
}

impl Login {
    /// Counts one more connection of the user. The name may have anything in it: escape it for a log.
    pub(super) fn new(user: &[u8], stats: &ServerStats) -> Self {
        let user: Box<str> = String::from_utf8_lossy(user).into();
        let mut counts = stats.lock();
        if counts.users.len() < MOST_USERS && !counts.users.contains_key(&user) {
            counts.users.insert(user.clone(), UserCounts::default());
        }
        drop(counts);
        let login = Self {
            user,
            stats: stats.clone(),
        };
        login.change(|counts| {
            counts.active += 1;
            counts.total += 1;
        });
        login
    }

    /// The user, who may have anything in the name.
    #[cfg(feature = "socks6")]
    pub(super) fn name(&self) -> &str {
        &self.user
    }

    /// Counts bytes, for the user alone.
    pub(super) fn moved(&self, up: u64, down: u64) {
        self.change(|counts| {
            counts.up += up;
            counts.down += down;
        });
    }

    fn change(&self, change: impl FnOnce(&mut UserCounts)) {
        // Not there: one of too many.
        if let Some(counts) = self.stats.lock().users.get_mut(&self.user) {
            change(counts);
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.user.fmt(f)
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.change(|counts| counts.active = counts.active.saturating_sub(1));
    }
}

/// Users that are counted one by one, the first so many who came. More than people give names to; a file of users can
/// change and bring new ones for ever.
const MOST_USERS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_numbers_of_its_own_and_there_are_not_too_many() {
        let stats = ServerStats::default();
        let one = Login::new(b"ada", &stats);
        let other = Login::new(b"ada", &stats);
        let strange = Login::new(b"\xff", &stats);
        one.moved(1, 2);
        other.moved(10, 20);
        strange.moved(5, 0);
        drop(one);
        let counted = |name: &str| stats.counts().users.get(name).copied();
        let counts = |active, total, up, down| UserCounts {
            active,
            total,
            up,
            down,
        };
        assert_eq!(counted("ada"), Some(counts(1, 2, 11, 22)));
        assert_eq!(counted("\u{fffd}"), Some(counts(1, 1, 5, 0)));
        for number in 0..MOST_USERS {
            let login = Login::new(number.to_string().as_bytes(), &stats);
            login.moved(1, 1);
        }
        assert_eq!(stats.counts().users.len(), MOST_USERS);
        assert_eq!(counted("0"), Some(counts(0, 1, 1, 1)));
        assert_eq!(counted("999"), None);
        drop(other);
        assert_eq!(counted("ada").map(|counts| counts.active), Some(0));
    }
}
