//! Starting threads.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread with this name, and a stack of so many bytes or of std's 2 MiB. Once for all of them: what std has for it is made
/// anew for each kind of work, 2 KB each time.
///
/// # Errors
/// There is no thread left.
pub(crate) fn start(
    name: &str,
    stack: Option<usize>,
    work: Box<dyn FnOnce() + Send>,
) -> io::Result<JoinHandle<()>> {
    let mut builder = Builder::new().name(name.to_owned());
    if let Some(bytes) = stack {
        builder = builder.stack_size(bytes);
    }
    builder.spawn(work)
}
