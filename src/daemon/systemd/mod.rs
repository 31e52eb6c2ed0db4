//! What systemd wants to hear of a service, and what it hands over (sd_notify(3), sd_listen_fds(3)). Spoken by hand: the protocols
//! are a datagram and a few variables.

#[cfg(not(feature = "systemd"))]
mod absent;
#[cfg(feature = "systemd")]
mod notify;
#[cfg(feature = "systemd")]
mod sockets;

#[cfg(not(feature = "systemd"))]
pub(super) use absent::{Notifier, Passed};
#[cfg(feature = "systemd")]
pub(super) use notify::Notifier;
#[cfg(feature = "systemd")]
pub(super) use sockets::Passed;

#[cfg(not(feature = "systemd"))]
pub use absent::PassedError;
#[cfg(feature = "systemd")]
pub use sockets::{PassedError, Problem};
