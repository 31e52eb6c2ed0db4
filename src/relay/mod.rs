//! Two sockets and the bytes between them.
//!
//! Each direction decides for itself how it moves bytes: it starts with copying (one buffer per worker, none per
//! connection) and goes over to splice(2) through a pooled pipe when read after read comes back full; when little
//! comes again it goes back. What could not be written yet belongs to the direction, in a buffer or in its pipe, so
//! nothing is lost between copying, splicing, parking and resuming.
//!
//! The end of a stream is passed on after everything before it (half-close), a reset becomes a reset.

mod control;
mod direction;
mod duplex;
mod kept;
mod pipes;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod splice;
#[cfg(test)]
mod tests;

pub use control::{Control, Gone};
pub use duplex::{Ended, Moved, Relay, RelaySettings};
pub use kept::Kept;
pub use pipes::Pipes;
