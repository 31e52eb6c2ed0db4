//! How many descriptors there are, and what they are for.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open descriptors (RLIMIT_NOFILE) to the hard limit and says what it is now.
#[must_use]
pub fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(MOST_DESCRIPTORS)
        .min(MOST_DESCRIPTORS)
}

/// Out of descriptors (process or system), socket buffers, or memory.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// How a process's descriptors are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Connections from clients; each may have a second one to a remote.
    pub connections: usize,
    /// Probes at a time.
    pub probes: usize,
    /// Pipes for splice(2), of two descriptors each.
    pub pipes: usize,
}

impl DescriptorBudget {
    /// Shares out `limit` descriptors: most of them to connections, so many to probes and pipes that neither can
    /// starve the others, and a reserve for listeners, the control socket, the log, name look-ups and sources.
    #[must_use]
    pub fn share(limit: usize) -> Self {
        let probes = (limit / 8).clamp(2, 64);
        let pipes = (limit / 32).clamp(1, 128);
        let reserve = (limit / 8).clamp(16, 64);
        let connections = limit.saturating_sub(probes + 2 * pipes + reserve) / 2;
        Self {
            connections: connections.max(1),
            probes,
            pipes,
        }
    }

    /// The same with so many descriptors less for connections, of which one is left.
    #[must_use]
    pub fn without(mut self, descriptors: usize) -> Self {
        let places = descriptors.div_ceil(2);
        self.connections = self.connections.saturating_sub(places).max(1);
        self
    }
}

/// A limit of millions is the system's way to say "any": tables sized by it must not grow with that.
const MOST_DESCRIPTORS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_limit() {
        for limit in [64, 128, 256, 1024, 4096, 20_000, 1 << 20] {
            let share = DescriptorBudget::share(limit);
            let most = 2 * share.connections + share.probes + 2 * share.pipes + 16;
            assert!(most <= limit, "{limit}: {share:?}");
            assert!(share.connections >= limit / 4, "{limit}: {share:?}");
        }
    }
}
