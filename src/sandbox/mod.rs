//! Confinement of the whole process by the kernel, for the case that somebody makes it do what it was not written for.
//!
//! Two nets, each as far as the kernel has it: Landlock lets it at no files but those that it was told of and those that
//! name look-ups need; seccomp refuses system calls that it has no use for. What is not there is left out: a router's
//! kernel may have neither.

#[cfg(target_endian = "little")]
mod calls;
mod files;
#[cfg(target_endian = "little")]
mod filter;
#[cfg(target_endian = "little")]
mod numbers;

use std::path::PathBuf;
use std::sync::OnceLock;

/// What the process goes on using.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Files that are read again and again. Others may replace them, so that their directories matter too.
    pub reads: Vec<PathBuf>,
    /// Files that are replaced by new ones.
    pub writes: Vec<PathBuf>,
    /// Unix sockets that are made and removed.
    pub sockets: Vec<PathBuf>,
}

/// What is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Confined {
    /// Files, by Landlock.
    pub files: bool,
    /// System calls, by seccomp.
    pub calls: bool,
}

impl Confined {
    /// The names of the nets that hold.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let files = self.files.then_some("landlock");
        files.into_iter().chain(self.calls.then_some("seccomp"))
    }
}

/// Confines the calling thread, and all that it and those start. There is no way back.
///
/// To be called while the program has one thread: others would stay as they are. What the kernel doesn't have, or a container
/// refuses, is left out with a line in the log.
pub fn confine(plan: &Plan) -> Confined {
    let files = match files::confine(plan) {
        Ok(done) => done,
        Err(error) => {
            log::debug!("no Landlock: {error}");
            false
        }
    };
    // The crate that hands a filter to the kernel knows little-endian machines only.
    #[cfg(target_endian = "big")]
    let calls = false;
    #[cfg(target_endian = "little")]
    let calls = match calls::confine() {
        Ok(done) => done,
        Err(error) => {
            log::debug!("no seccomp: {error}");
            false
        }
    };
    let confined = Confined { files, calls };
    let names: Vec<_> = confined.names().collect();
    log::debug!("confined by: {}", names.join(", "));
    // The first time counts: there is no way back.
    let _ = IN_FORCE.set(confined);
    confined
}

/// What this process was confined to by [`confine`], if it was.
#[must_use]
pub fn in_force() -> Confined {
    IN_FORCE.get().copied().unwrap_or_default()
}

static IN_FORCE: OnceLock<Confined> = OnceLock::new();
