//! The machine: a reactor thread that waits and does what is small, and worker threads that work.
//!
//! ```text
//!   accept ──▶ session ──small──▶ reactor (mio): turn, epoll, turn …
//!                 │                 │ there is more to do   ▲ idle for a moment:
//!                 │                 ▼                       │ no thread, no buffer
//!                 └────work─────▶ queue ──▶ worker: turn, poll(2), turn …
//! ```
//!
//! A [`Session`] is all there is to a connection; which thread serves it changes from turn to turn, by its [`Effort`]. The
//! reactor runs the small turns: handshakes, the few small messages of a connection that has not shown itself to be busy,
//! ends. Each costs some microseconds there, less than waking another thread for it. Workers have the connections that move
//! bytes in earnest, datagrams, and whatever may block. [`Task`]s are what lives on the reactor thread for good: listeners,
//! probes, the control socket, signals.

mod parking;
mod reactor;
mod session;
mod signals;
#[cfg(test)]
mod tests;
mod watching;
mod workers;

pub use reactor::{Cx, Mailbox, Next, Reactor, Shared, Task, TaskId};
pub use session::{
    BUFFER, Effort, Interest, Interests, Key, MAX_INTERESTS, Ready, Session, Standing, Step, Turn,
    TurnContext, Want,
};
pub use signals::{Signal, Signals};
pub use workers::Workers;
#[cfg(test)]
pub(crate) use workers::poll_interests;
