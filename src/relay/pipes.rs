//! The pool of pipes that splice(2) moves bytes through.
//!
//! A pipe is lent while bulk data moves and comes back empty; one with bytes in it is closed, never lent again. The
//! pool has a cap because a pipe costs two descriptors and up to its size in kernel memory, and because an ordinary
//! user's pipes shrink to 8 KiB when there are too many (`fs.pipe-user-pages-soft`). No pipe means copying.

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
pub(super) use linux::Hardship;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) use linux::Pipe;
pub use linux_or_none::Pipes;

#[cfg(any(target_os = "linux", target_os = "android"))]
use linux as linux_or_none;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use none as linux_or_none;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

    /// Pipes to be lent. Clones share one pool.
    #[derive(Debug, Clone)]
    pub struct Pipes {
        pool: Arc<Mutex<Pool>>,
    }

    #[derive(Debug)]
    struct Pool {
        idle: Vec<Ends>,
        lent: usize,
        cap: usize,
        /// Pipes were refused or too small: don't ask the system again before then.
        barred_until: Option<Instant>,
        #[cfg(test)]
        hardship: Hardship,
    }

    /// What the system does to a pool in a test.
    #[cfg(test)]
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(in crate::relay) enum Hardship {
        #[default]
        None,
        /// It gives no pipes.
        NoPipes,
        /// Its pipes are small, and stay so.
        SmallPipes,
        /// It knows no splice(2) any more after so many calls.
        NoSpliceAfter(usize),
    }

    #[derive(Debug)]
    struct Ends {
        read: OwnedFd,
        write: OwnedFd,
        size: usize,
    }

    impl Pipes {
        /// A pool that has at most `cap` pipes; 0 is a pool that never lends one, so that everything is copied.
        #[must_use]
        pub fn new(cap: usize) -> Self {
            Self {
                pool: Arc::new(Mutex::new(Pool {
                    idle: Vec::new(),
                    lent: 0,
                    cap,
                    barred_until: None,
                    #[cfg(test)]
                    hardship: Hardship::None,
                })),
            }
        }

        #[cfg(test)]
        pub(in crate::relay) fn with_hardship(self, hardship: Hardship) -> Self {
            self.pool.lock().unwrap().hardship = hardship;
            self
        }

        #[cfg(test)]
        pub(in crate::relay) fn hardship(&self) -> Hardship {
            self.pool.lock().unwrap().hardship
        }

        #[cfg(test)]
        pub(in crate::relay) fn lent(&self) -> usize {
            self.pool.lock().unwrap().lent
        }

        /// An empty pipe, or `None` when all are lent or the system gives none that is worth it.
        pub(in crate::relay) fn lend(&self, now: Instant) -> Option<Pipe> {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            if pool.lent >= pool.cap {
                return None;
            }
            let ends = match pool.idle.pop() {
                Some(ends) => ends,
                None => {
                    if pool.barred_until.is_some_and(|until| now < until) {
                        return None;
                    }
                    #[cfg(not(test))]
                    let ends = open(SIZE);
                    #[cfg(test)]
                    let ends = match pool.hardship {
                        Hardship::NoPipes => None,
                        Hardship::SmallPipes => open(8 * 1024),
                        _ => open(SIZE),
                    };
                    pool.barred_until = ends.is_none().then(|| now + BARRED);
                    ends?
                }
            };
            pool.lent += 1;
            drop(pool);
            Some(Pipe {
                ends: Some(ends),
                held: 0,
                pool: self.clone(),
            })
        }
    }

    fn open(size: usize) -> Option<Ends> {
        let (read, write) = match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok(ends) => ends,
            Err(error) => {
                log::debug!("no pipe for splice, copying instead: {error}");
                return None;
            }
        };
        // A larger pipe means fewer calls per byte. Refused beyond the user's share: the default size will do.
        let size = fcntl_setpipe_size(&write, size)
            .or_else(|_| fcntl_getpipe_size(&write))
            .unwrap_or(0);
        if size < SMALLEST {
            log::debug!("pipes have shrunk to {size} bytes, copying instead");
            return None;
        }
        Some(Ends { read, write, size })
    }

    /// A lent pipe. Goes back to the pool when it is dropped empty.
    #[derive(Debug)]
    pub(in crate::relay) struct Pipe {
        ends: Option<Ends>,
        /// Bytes in the pipe.
        pub(in crate::relay) held: usize,
        pool: Pipes,
    }

    impl Pipe {
        pub(in crate::relay) fn ends(&self) -> Option<(&OwnedFd, &OwnedFd, usize)> {
            self.ends
                .as_ref()
                .map(|ends| (&ends.read, &ends.write, ends.size))
        }

        /// Asked before every call of splice(2), so that tests can refuse it.
        #[cfg(not(test))]
        pub(in crate::relay) fn may_splice(&self) -> std::io::Result<()> {
            Ok(())
        }

        #[cfg(test)]
        pub(in crate::relay) fn may_splice(&self) -> std::io::Result<()> {
            let mut pool = self.pool.pool.lock().unwrap();
            match &mut pool.hardship {
                Hardship::NoSpliceAfter(0) => Err(rustix::io::Errno::INVAL.into()),
                Hardship::NoSpliceAfter(left) => {
                    *left -= 1;
                    Ok(())
                }
                _ => Ok(()),
            }
        }
    }

    impl Drop for Pipe {
        fn drop(&mut self) {
            let mut pool = self
                .pool
                .pool
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            pool.lent = pool.lent.saturating_sub(1);
            if self.held == 0 {
                pool.idle.extend(self.ends.take());
            }
            let kept = pool.lent.clamp(KEPT_AT_REST, KEPT);
            pool.idle.truncate(kept);
        }
    }

    /// Size asked for. Kernel memory is taken only for bytes that are in the pipe.
    const SIZE: usize = 256 * 1024;

    /// Below this a pipe moves less per call than the copy buffer does.
    const SMALLEST: usize = 64 * 1024;

    /// Empty pipes that are kept: as many as are lent, since the next stream is likely then, but no more than this.
    const KEPT: usize = 16;

    /// Those that are kept when nothing moves: a crowd leaves no descriptors behind.
    const KEPT_AT_REST: usize = 2;

    /// How long the system is not asked again for pipes after it refused one.
    const BARRED: Duration = Duration::from_secs(10);

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lends_up_to_the_cap_and_takes_empty_pipes_back() {
            let pipes = Pipes::new(2);
            let now = Instant::now();
            let first = pipes.lend(now);
            let second = pipes.lend(now);
            assert!(first.is_some() && second.is_some());
            assert!(pipes.lend(now).is_none());
            drop(first);
            assert!(pipes.lend(now).is_some());
            assert_eq!(pipes.pool.lock().unwrap().idle.len(), 1);
        }

        #[test]
        fn a_crowd_leaves_few_pipes_behind() {
            let pipes = Pipes::new(40);
            let now = Instant::now();
            let mut lent: Vec<_> = (0..40).map(|_| pipes.lend(now).unwrap()).collect();
            let idle = || pipes.pool.lock().unwrap().idle.len();
            lent.truncate(20);
            assert_eq!(idle(), KEPT);
            lent.truncate(5);
            assert_eq!(idle(), 5);
            lent.clear();
            assert_eq!(idle(), KEPT_AT_REST);
        }

        #[test]
        fn a_pipe_with_bytes_in_it_is_never_lent_again() {
            let pipes = Pipes::new(1);
            let now = Instant::now();
            let mut pipe = pipes.lend(now).unwrap();
            pipe.held = 1;
            drop(pipe);
            assert!(pipes.pool.lock().unwrap().idle.is_empty());
            assert!(pipes.lend(now).is_some());
        }

        #[test]
        fn a_cap_of_none_lends_none() {
            assert!(Pipes::new(0).lend(Instant::now()).is_none());
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod none {
    /// No pipes: this system has no splice(2), everything is copied.
    #[derive(Debug, Clone)]
    pub struct Pipes;

    impl Pipes {
        /// The same whatever the cap.
        #[must_use]
        pub fn new(_cap: usize) -> Self {
            Self
        }
    }
}
