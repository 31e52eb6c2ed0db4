//! Taking clients in: listeners, who may connect, how many, and what happens when the system runs out of something.

mod acceptor;
mod admission;
mod bind;
mod limits;

pub use acceptor::{Acceptor, Client, Intake, IntakeStats, Serve};
pub use admission::{Admission, Refused};
pub(crate) use bind::knock;
pub use bind::{BindError, Bound, Listener};
pub use limits::{ASSOCIATIONS_PER_CLIENT, Limits, Slot};
