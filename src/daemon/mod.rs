//! The running forwarder: what joins discovery, choice, listeners, sessions and the control socket.

pub(crate) mod answers;
mod explicit;
mod forwarder;
mod requests;
pub mod settings;
mod start;

pub use start::{Daemon, StartError};
