//! Stdin and stdout on one side, a stream on the other.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Carries bytes both ways until both sides have ended, each end passed on alone. On a terminal nobody ends their side for
/// a stream that has ended, so there it is over with the stream.
///
/// A reader of stdout that has left ends it too, which is not an error. Stdout is closed afterwards.
pub(super) fn run(stream: &TcpStream) -> io::Result<()> {
    let mut sending = stream.try_clone()?;
    // Its read of stdin can't be interrupted, so it may be left behind: the process ends with this one.
    let sender = thread::Builder::new().name("stdin".into()).spawn(move || {
        let sent = send(&mut sending);
        // Where the other side is gone altogether there is no end to pass on.
        let _ = sending.shutdown(Shutdown::Write);
        sent
    })?;
    if !receive(stream)? || io::stdin().is_terminal() {
        return Ok(());
    }
    close_stdout();
    // Both ends, or a reset: then nobody takes what stdin still has.
    let mut ended = [PollFd::new(stream, PollFlags::empty())];
    while !sender.is_finished() {
        match poll(&mut ended, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    match stream.take_error()? {
        Some(error) => Err(error),
        None => match sender.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread of stdin panicked")),
        },
    }
}

/// Stdin to the stream.
fn send(stream: &mut TcpStream) -> io::Result<()> {
    let stdin = io::stdin();
    let stdin = stdin.as_fd();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = retried(stdin, PollFlags::IN, || {
            rustix::io::read(stdin, &mut buffer)
        })?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        stream.write_all(bytes)?;
    }
}

/// The stream to stdout; whether it ended, rather than the reader of stdout.
fn receive(mut stream: &TcpStream) -> io::Result<bool> {
    let stdout = io::stdout();
    let stdout = stdout.as_fd();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if !write_out(stdout, buffer.get(..count).unwrap_or_default())? {
            return Ok(false);
        }
    }
}

/// Writes all of it to stdout; `false` when its reader has left.
pub(super) fn write_out(stdout: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match retried(stdout, PollFlags::OUT, || rustix::io::write(stdout, bytes)) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("write to stdout: {error}"),
                ));
            }
        }
    }
    Ok(true)
}

/// A call on a descriptor that may have been made non-blocking by whoever shares it.
pub(super) fn retried(
    descriptor: BorrowedFd<'_>,
    flags: PollFlags,
    mut call: impl FnMut() -> rustix::io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call() {
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // Interrupted or not, the call tells.
                let _ = poll(&mut [PollFd::new(&descriptor, flags)], None);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Tells the reader of stdout that nothing more comes, while stdin goes on.
fn close_stdout() {
    let stdout = io::stdout();
    // One socket may be stdin and stdout at once, as with ssh; then closing one of the two would tell nothing.
    let _ = rustix::net::shutdown(&stdout, rustix::net::Shutdown::Write);
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

const BUFFER: usize = 64 * 1024;
