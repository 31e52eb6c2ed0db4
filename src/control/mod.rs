//! The control socket: what can be asked of a running forwarder, and asking it.
//!
//! One JSON object a line each way over a Unix stream socket, as JSON-RPC 2.0 defines them.

mod by_name;
pub mod client;
mod descriptors;
pub mod messages;
pub mod path;
pub mod reading;
pub mod server;

pub(crate) use descriptors::MOST_AT_ONCE;
