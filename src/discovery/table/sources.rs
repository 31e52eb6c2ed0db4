//! Who names an address.

/// The number of a source, below [`SourceId::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub(super) u8);

impl SourceId {
    /// Sources a table can tell apart: one bit each in every entry.
    pub const LIMIT: usize = 32;

    /// The source with this number, `None` from [`SourceId::LIMIT`] on.
    #[must_use]
    pub fn new(number: usize) -> Option<Self> {
        let small = u8::try_from(number).ok()?;
        (number < Self::LIMIT).then_some(Self(small))
    }

    /// The number it was made from.
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    pub(super) const fn bit(self) -> u32 {
        1 << self.0
    }
}

/// The sources that name an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceSet(pub(super) u32);

impl SourceSet {
    /// Whether no source names it any more.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this source names it.
    #[must_use]
    pub const fn contains(self, source: SourceId) -> bool {
        self.0 & source.bit() != 0
    }

    /// The sources, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = SourceId> {
        (0..SourceId::LIMIT)
            .filter_map(SourceId::new)
            .filter(move |source| self.contains(*source))
    }
}
