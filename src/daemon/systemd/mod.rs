//! What systemd wants to hear of a service, and what it hands over (sd_notify(3), sd_listen_fds(3)). Spoken by hand: the protocols
//! are a datagram and a few variables.

mod notify;
mod sockets;

pub(super) use notify::Notifier;
pub(super) use sockets::Passed;
pub use sockets::{PassedError, Problem};
