//! A descriptor that one thread makes readable to wake a session that waits for it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

#[cfg(not(any(target_os = "linux", target_os = "android")))]
use std::os::unix::net::UnixStream;

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{EventfdFlags, eventfd};
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::fd::OwnedFd;

/// One descriptor where there is eventfd(2), else two.
pub(super) struct Bell {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    event: OwnedFd,
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    ends: (UnixStream, UnixStream),
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { event })
    }

    /// Makes it readable.
    pub(super) fn ring(&self) {
        // It could only fail by being rung 2^64 times.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Makes it unreadable.
    pub(super) fn hush(&self) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let ends = (near, far);
        Ok(Self { ends })
    }

    /// Makes it readable.
    pub(super) fn ring(&self) {
        // When it is full it is readable already.
        let _ = io::Write::write(&mut &self.ends.0, &[0]);
    }

    /// Makes it unreadable.
    pub(super) fn hush(&self) {
        let mut buffer = [0; 64];
        while matches!(io::Read::read(&mut &self.ends.1, &mut buffer), Ok(64)) {}
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.ends.1.as_fd()
    }
}
