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

/// The text without control characters, which whoever answers us could otherwise send to the terminal.
pub(super) fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    out
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
