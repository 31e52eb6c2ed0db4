//! The running forwarder or server: what joins discovery, choice, listeners, sessions and the control socket.

pub(crate) mod answers;
mod confinement;
#[cfg(feature = "socks6")]
mod converter;
mod explicit;
#[cfg(feature = "server")]
mod fallback;
mod forwarder;
mod handing_over;
mod left;
#[cfg(feature = "metrics")]
mod metrics;
mod peer_list;
mod requests;
mod runtime;
mod served;
#[cfg(feature = "server")]
mod server;
pub mod settings;
mod sources;
mod start;
mod start_error;
mod state;
mod status_lines;
mod systemd;
mod taking_over;

#[cfg(fuzzing)]
pub use state::fuzzing as state_file;

pub use runtime::Daemon;
pub use start_error::StartError;
pub use systemd::PassedError;
#[cfg(feature = "systemd")]
pub use systemd::Problem;
