//! A SOCKS server's side of a connection, on the engine: SOCKS 4, 4a, 5 and 6, CONNECT, BIND and UDP ASSOCIATE.

mod answering;
pub mod association;
mod binding;
mod cause;
mod closing;
mod dial;
mod login;
mod opening;
mod pending;
mod reach;
pub mod rules;
mod session;
mod settings;
#[cfg(feature = "socks6")]
pub mod socks6;
#[cfg(feature = "socks6")]
mod stack;
mod through;
pub mod users;
mod via;

pub use login::UserCounts;
pub use session::ServerSession;
pub use settings::{ReplyTiming, ServerCounts, ServerSettings, ServerStats};
pub use via::{OwnListener, Via};

use crate::engine::Key;

/// The client's descriptor, in every stage.
const CLIENT: Key = 0;

/// The first of the stage's other descriptors.
const OTHERS: Key = 1;
