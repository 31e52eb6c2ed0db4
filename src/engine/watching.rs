//! What the reactor asks epoll to watch, and how it knows what an event is about.
//!
//! A session's descriptors are registered once and stay so while it is in the reactor: after a turn only those are
//! registered anew that the turn may have changed or left half-used. mio's readiness is edge-triggered: what was there
//! before is told again only then.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use super::session::{Interests, Key, MAX_INTERESTS, Ready, Session, Want};

/// The token of a descriptor: whose it is, and which of theirs. The serial tells an entry from the one that had its place
/// before, of which the kernel may still have something to tell.
pub(super) fn token(entry: usize, serial: u32, key: Key) -> Token {
    let serial = (serial as usize) << (KEY_BITS + ENTRY_BITS);
    Token(serial | (entry & ENTRY_MASK) << KEY_BITS | usize::from(key))
}

/// Of a token: the entry's place, and the session's number of the descriptor.
pub(super) fn place(token: Token) -> (usize, Key) {
    let entry = (token.0 >> KEY_BITS) & ENTRY_MASK;
    // Below MAX_INTERESTS, since nobody else makes tokens.
    let key = Key::try_from(token.0 & KEY_MASK).unwrap_or_default();
    (entry, key)
}

/// Descriptors that a session waits for, and what for, with its keys. Mostly two: what looks at all of them is short.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    places: [(Key, RawFd, Want); MAX_INTERESTS],
    count: usize,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            places: [(0, -1, Want::ERRORS); MAX_INTERESTS],
            count: 0,
        }
    }
}

impl Watched {
    /// What it waits for since its last turn.
    pub(super) fn by(session: &dyn Session) -> (Self, bool) {
        let mut interests = Interests::default();
        session.interests(&mut interests);
        (Self::of(&interests), interests.is_steady())
    }

    fn of(interests: &Interests<'_>) -> Self {
        let mut watched = Self::default();
        for (place, interest) in watched.places.iter_mut().zip(interests.iter()) {
            *place = (interest.key, interest.fd.as_raw_fd(), interest.want);
            watched.count += 1;
        }
        watched
    }

    fn iter(&self) -> std::slice::Iter<'_, (Key, RawFd, Want)> {
        self.places.get(..self.count).unwrap_or_default().iter()
    }

    fn get(&self, key: Key) -> Option<(RawFd, Want)> {
        let (_, fd, want) = self.iter().find(|(place, _, _)| *place == key)?;
        Some((*fd, *want))
    }

    fn has(&self, fd: RawFd) -> bool {
        self.iter().any(|(_, other, _)| *other == fd)
    }

    /// Takes out of `ready` what nobody waits for any more: it was told late.
    pub(super) fn only(&self, mut ready: Ready) -> Ready {
        let mut awaited = 0;
        for (key, _, want) in self.iter() {
            if !want.only_errors() || ready.hung_up(*key) {
                awaited |= 1 << key;
            }
        }
        ready.retain(awaited);
        ready
    }

    /// Asks for nothing any more.
    pub(super) fn forget(&self, registry: &Registry) {
        for (_, fd, _) in self.iter() {
            unregister(registry, *fd);
        }
    }

    /// Asks for this, where `before` was asked for: for whatever of it was `ready` or is otherwise not known to be as it was.
    ///
    /// # Errors
    /// The kernel is out of memory or of watches. Then nothing is watched.
    pub(super) fn instead_of(
        &self,
        before: &Self,
        is_steady: bool,
        ready: Ready,
        registry: &Registry,
        token: impl Fn(Key) -> Token,
    ) -> io::Result<()> {
        for (_, fd, _) in before.iter().filter(|(_, fd, _)| !self.has(*fd)) {
            unregister(registry, *fd);
        }
        for &(key, fd, want) in self.iter() {
            let watch = match before.get(key) {
                Some((same, wanted)) if same == fd => {
                    // The end of a stream is told once: what does not wait for it hears no more of it, what does asks again.
                    let is_known = match ready.has_ended(key) {
                        true => want.only_errors(),
                        false => wanted == want,
                    };
                    if is_steady && is_known {
                        continue;
                    }
                    Watch::Again
                }
                _ if before.has(fd) => Watch::Again,
                _ => Watch::First,
            };
            if let Err(error) = register(registry, fd, token(key), want, watch) {
                self.forget(registry);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Whether a descriptor is believed to be registered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    First,
    Again,
}

fn register(
    registry: &Registry,
    fd: RawFd,
    token: Token,
    want: Want,
    watch: Watch,
) -> io::Result<()> {
    let Some(interest) = interest(want) else {
        unregister(registry, fd);
        return Ok(());
    };
    let source = &mut SourceFd(&fd);
    if watch == Watch::First {
        return registry.register(source, token, interest);
    }
    match registry.reregister(source, token, interest) {
        // Another descriptor of the same number took its place.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
            registry.register(source, token, interest)
        }
        other => other,
    }
}

pub(super) fn unregister(registry: &Registry, fd: RawFd) {
    // Fails only if it was not registered or is closed, and then there is nothing to undo.
    let _ = registry.deregister(&mut SourceFd(&fd));
}

/// For a task, which has one token for all of its descriptors.
pub(super) fn watch(
    registry: &Registry,
    fd: BorrowedFd<'_>,
    token: Token,
    want: Want,
) -> io::Result<()> {
    match interest(want) {
        Some(interest) => registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest),
        None => Ok(()),
    }
}

/// Changes that.
pub(super) fn rewatch(
    registry: &Registry,
    fd: BorrowedFd<'_>,
    token: Token,
    want: Want,
) -> io::Result<()> {
    let source = &mut SourceFd(&fd.as_raw_fd());
    match interest(want) {
        Some(interest) => registry.reregister(source, token, interest),
        None => registry.deregister(source),
    }
}

/// Errors and hang-ups come with any interest, but mio knows no empty one. The nearest is urgent data, which
/// [`is_urgent_only`] passes over. Systems without it are not asked: there a reset that interrupts nothing is seen
/// at the next write or time limit.
fn interest(want: Want) -> Option<Interest> {
    match (want.read, want.write) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        (false, false) => Some(Interest::PRIORITY),
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        (false, false) => None,
    }
}

/// Whether an event tells of urgent data and nothing else. Nobody waits for that, and a session that was woken by it
/// would be told again each time it is parked.
pub(super) fn is_urgent_only(event: &Event) -> bool {
    event.is_priority() && !event.is_error() && !event.is_read_closed() && !event.is_write_closed()
}

/// Adds what an event tells of a descriptor.
pub(super) fn add(ready: &mut Ready, key: Key, event: &Event) {
    if event.is_error() || event.is_write_closed() {
        ready.add_hung_up(key);
    } else if event.is_read_closed() {
        ready.add_ended(key);
    } else {
        ready.add(key);
    }
}

/// Places in the table of entries: more than there can be descriptors.
const ENTRY_BITS: u32 = if usize::BITS < 64 { 21 } else { 32 };
const ENTRY_MASK: usize = (1 << ENTRY_BITS) - 1;

const KEY_BITS: u32 = 3;
const KEY_MASK: usize = (1 << KEY_BITS) - 1;

/// Not a token of anybody's descriptor.
const _: () = assert!(MAX_INTERESTS < KEY_MASK);
