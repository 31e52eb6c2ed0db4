//! Reading and writing without blocking.

use std::io::{self, Read, Write};

use socket2::Socket;

/// Reads once into `buffer`: `None` when there is nothing now, an empty slice at the end of the stream.
///
/// # Errors
/// What the system says, except "would block" and interruptions.
pub fn read_some<'a>(mut socket: &Socket, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match until_done(|| socket.read(buffer))? {
        Some(count) => Ok(Some(buffer.get(..count).unwrap_or_default())),
        None => Ok(None),
    }
}

/// Writes what can be written of `unsent` and takes it out; whether nothing is left.
///
/// # Errors
/// As [`read_some`].
pub fn write_all_now(mut socket: &Socket, unsent: &mut Vec<u8>) -> io::Result<bool> {
    while !unsent.is_empty() {
        match until_done(|| socket.write(unsent))? {
            Some(count) => drop(unsent.drain(..count)),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// A call on a non-blocking descriptor, made again when a signal interrupts it: `None` when it would block.
///
/// # Errors
/// As [`read_some`].
pub fn until_done(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
