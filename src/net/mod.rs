//! Sockets as sockhop wants them: options, pending connects, limits of the system.

mod connect;
mod descriptors;
mod options;

pub use connect::{ConnectFailure, finish_connect, start_connect};
pub use descriptors::{DescriptorBudget, raise_descriptor_limit};
pub use options::tune;
