//! Data to stdout, messages to stderr. Whoever reads them may leave early, which is not an error.

use std::io::{self, IsTerminal, Write};

use super::Failure;

/// Writes data to stdout. A reader that left, as `head` does, is fine; a full disk is not.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::because(format!("write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a message to stderr. There is nowhere to tell that this failed.
pub(super) fn message(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// How many columns lines on stdout may have: those of the terminal, or any number when it is none.
pub(super) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let columns = rustix::termios::tcgetwinsize(&stdout).ok()?.ws_col;
    (columns > 0).then_some(columns.into())
}
