//! splice(2) between a socket and a pipe, and what its errors mean.
//!
//! All descriptors are non-blocking: `SPLICE_F_NONBLOCK` concerns the pipe only, a blocking socket would still sleep.

use std::io;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use socket2::Socket;

use super::pipes::Pipe;
use crate::net::until_done;

pub(super) fn fill(source: &Socket, pipe: &mut Pipe) -> io::Result<Option<usize>> {
    let Some((_, write, size)) = pipe.ends() else {
        return Ok(None);
    };
    // Never more than the pipe can hold: kernels before 5.1 block on that. SPLICE_F_MORE is left out: it would hold
    // small messages back like a cork.
    let count = until_done(|| {
        pipe.may_splice()?;
        Ok(splice(
            source,
            None,
            write,
            None,
            size,
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        )?)
    })?;
    pipe.held += count.unwrap_or(0);
    Ok(count)
}

/// Empties the pipe into the sink; whether nothing is left in it.
pub(super) fn empty(pipe: &mut Pipe, sink: &Socket, moved: &mut u64) -> io::Result<bool> {
    while pipe.held > 0 {
        let Some((read, _, _)) = pipe.ends() else {
            return Ok(true);
        };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let count = until_done(|| {
            pipe.may_splice()?;
            Ok(splice(read, None, sink, None, pipe.held, flags)?)
        })?;
        let Some(count) = count else {
            return Ok(false);
        };
        pipe.held = pipe.held.saturating_sub(count);
        *moved += count as u64;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(true)
}

/// Takes bytes back out of a pipe that can't be spliced into the sink.
pub(super) fn take_back(pipe: &mut Pipe) -> io::Result<Box<[u8]>> {
    let mut bytes = vec![0; pipe.held];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let Some((read, _, _)) = pipe.ends() else {
            break;
        };
        match rustix::io::read(read, rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(filled);
    pipe.held = pipe.held.saturating_sub(filled);
    Ok(bytes.into())
}

/// Whether these sockets, this kernel or its filters know no splice(2): copying still works.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::NOSYS | Errno::BADF | Errno::PERM | Errno::OPNOTSUPP)
    )
}
