//! Data to stdout, messages to stderr. Whoever reads them may leave early, which is not an error.

use std::env;
use std::io::{self, IsTerminal, Write};

use super::Failure;
use super::screen::Size;
pub(super) use crate::logger::tame;

/// Writes data to stdout. A reader that left, as `head` does, is fine; a full disk is not.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_on(text).map(drop)
}

/// The same for more than one text: whether there is still somebody who reads.
pub(super) fn print_on(text: &str) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(Reader::Stays),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Left),
        Err(error) => Err(Failure::because(format!("write to stdout: {error}"))),
    }
}

/// Whoever reads stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Stays,
    Left,
}

/// Writes a message to stderr. There is nowhere to tell that this failed.
pub(super) fn message(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// How many columns lines on stdout may have: those of the terminal, or any number when it is none.
pub(super) fn width() -> Option<usize> {
    terminal().map(|(columns, _)| columns)
}

/// Columns and lines of the terminal on stdout, if it is one that says and understands so much.
pub(super) fn terminal() -> Option<Size> {
    let stdout = io::stdout();
    if !stdout.is_terminal() || env::var_os("TERM").is_some_and(|kind| kind == "dumb") {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}
