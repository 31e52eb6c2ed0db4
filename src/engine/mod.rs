//! The machine: a reactor thread that waits and worker threads that work.
//!
//! ```text
//!   accept ──▶ session ──submit──▶ queue ──▶ worker: turn, poll(2), turn …
//!                 ▲                             │ idle for a moment: parked
//!                 │   descriptor ready,         ▼
//!                 └── or deadline passed ◀── reactor (mio): no thread, no buffer
//! ```
//!
//! A [`Session`] is all there is to a connection; which thread serves it changes from turn to turn. [`Task`]s are what
//! lives on the reactor thread for good: listeners, probes, the control socket, signals.

mod reactor;
mod session;
mod signals;
#[cfg(test)]
mod tests;
mod workers;

pub use reactor::{Cx, Mailbox, Next, Reactor, Shared, Task, TaskId};
pub use session::{
    BUFFER, Interest, Interests, Key, MAX_INTERESTS, Ready, Session, Standing, Step, Turn,
    TurnContext, Want,
};
pub use signals::{Signal, Signals};
pub use workers::Workers;
#[cfg(test)]
pub(crate) use workers::poll_interests;
