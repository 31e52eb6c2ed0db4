//! The running forwarder: what joins discovery, choice, listeners, sessions and the control socket.

pub(crate) mod answers;
mod explicit;
mod forwarder;
mod requests;
mod runtime;
pub mod settings;
mod start;

pub use runtime::{Daemon, StartError};
