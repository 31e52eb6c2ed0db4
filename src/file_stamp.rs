//! Noticing that a file was changed without reading it.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

/// What changes when a file does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// That of a file with this metadata.
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }

    /// Whether a later change is sure to change the stamp. Not with a time in the future: then the clock was set, and
    /// only a look at the file helps.
    pub(crate) fn is_settled(&self) -> bool {
        self.modified
            .and_then(|modified| modified.elapsed().ok())
            .is_some_and(|age| age > SETTLED_AFTER)
    }
}

/// A change so shortly before the file was read may be followed by another one with the same time: file systems count
/// in steps of up to 2 s.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
