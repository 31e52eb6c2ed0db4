//! Times in 32 bits: a table has up to 200,000 addresses with several times each.

use std::time::Duration;

/// Tenths of a second, counted from [`Tick::FIRST`] when the table was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::discovery) struct Tick(u32);

impl Tick {
    pub(in crate::discovery) const NEVER: Self = Self(0);
    /// What is remembered may be this much older than the table: 310 days.
    pub(in crate::discovery) const FIRST: Self = Self(1 << 28);

    pub(in crate::discovery) const fn is_set(self) -> bool {
        self.0 != 0
    }

    pub(in crate::discovery) fn since_first(self) -> Duration {
        self.since(Self::FIRST)
    }

    /// How long before `self` the other one was.
    pub(in crate::discovery) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::from(self.0.saturating_sub(earlier.0)) * TICK_MILLIS)
    }

    /// Never [`Tick::NEVER`].
    pub(in crate::discovery) fn minus(self, delay: Duration) -> Self {
        let ticks = u32::try_from(delay.as_millis() / u128::from(TICK_MILLIS)).unwrap_or(u32::MAX);
        Self(self.0.saturating_sub(ticks).max(1))
    }

    pub(in crate::discovery) fn plus(self, delay: Duration) -> Self {
        let ticks = delay.as_millis() / u128::from(TICK_MILLIS);
        Self(
            self.0
                .saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)),
        )
    }
}

/// In steps of a tenth of a second, 32 bits last for 13 years.
const TICK_MILLIS: u64 = 100;
