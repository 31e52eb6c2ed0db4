//! Finds entries by address.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use slab::Slab;

use super::entry::{Entry, Key};

/// Hash chains through [`Entry::next`], a third of a `HashMap`'s memory because the key is
/// not stored again. The hash is keyed, for addresses come from strangers.
#[derive(Debug, Default)]
pub(super) struct Chains {
    /// The first entry of each chain; the length is a power of two, or 0.
    pub(super) heads: Vec<u32>,
    pub(super) linked: usize,
    pub(super) hasher: RandomState,
}

impl Chains {
    pub(super) fn find(&self, entries: &Slab<Entry>, key: Key) -> Option<u32> {
        let mut id = *self.heads.get(self.slot(key))?;
        while let Some(entry) = entries.get(id as usize) {
            if entry.key == key {
                return Some(id);
            }
            id = entry.next;
        }
        None
    }

    /// Adds an entry that is in `entries` and in no chain yet.
    pub(super) fn link(&mut self, entries: &mut Slab<Entry>, id: u32) {
        self.linked += 1;
        if self.linked > self.heads.len() {
            let length = (self.heads.len() * 2).max(16);
            self.heads.clear();
            self.heads.resize(length, NO_ENTRY);
            let ids: Vec<u32> = entries
                .iter()
                .filter_map(|(id, _)| u32::try_from(id).ok())
                .collect();
            for id in ids {
                self.push(entries, id);
            }
        } else {
            self.push(entries, id);
        }
    }

    pub(super) fn push(&mut self, entries: &mut Slab<Entry>, id: u32) {
        if let Some(entry) = entries.get_mut(id as usize) {
            let slot = self.slot(entry.key);
            if let Some(head) = self.heads.get_mut(slot) {
                entry.next = std::mem::replace(head, id);
            }
        }
    }

    pub(super) fn unlink(&mut self, entries: &mut Slab<Entry>, id: u32) {
        let Some(&Entry { key, next, .. }) = entries.get(id as usize) else {
            return;
        };
        let slot = self.slot(key);
        let Some(head) = self.heads.get_mut(slot) else {
            return;
        };
        self.linked -= 1;
        if *head == id {
            *head = next;
            return;
        }
        let mut before = *head;
        while let Some(entry) = entries.get_mut(before as usize) {
            if entry.next == id {
                entry.next = next;
                return;
            }
            before = entry.next;
        }
    }

    pub(super) fn slot(&self, key: Key) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low bits of a hash are what is wanted"
        )]
        let hash = self.hasher.hash_one(key) as usize;
        hash & self.heads.len().saturating_sub(1)
    }
}

/// The end of a chain; [`MAX_ADDRESSES`](super::MAX_ADDRESSES) is far below.
pub(super) const NO_ENTRY: u32 = u32::MAX;
