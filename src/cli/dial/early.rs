//! What stdin has at once, for the first segment.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::MAX_EARLY_DATA;

/// What comes first within [`PATIENCE`], with what is there right behind it: at most [`MAX_EARLY_DATA`]. The rest is left for
/// later, and errors are too. Nothing of a terminal, where people would type it after the connection is there.
pub(super) fn read() -> Vec<u8> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Vec::new();
    }
    let stdin = stdin.as_fd();
    let mut early = vec![0; MAX_EARLY_DATA];
    let mut length = 0;
    let mut patience = PATIENCE;
    while let Some(room) = early.get_mut(length..).filter(|room| !room.is_empty())
        && let Ok(limit) = Timespec::try_from(patience)
        && let Ok(1..) = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&limit))
        // Its end comes again for the next one that reads.
        && let Ok(count @ 1..) = rustix::io::read(stdin, room)
    {
        length += count;
        patience = Duration::ZERO;
    }
    early.truncate(length);
    early
}

/// Long enough for a program that was started together with us and has something to say, too short to be noticed.
const PATIENCE: Duration = Duration::from_millis(10);
