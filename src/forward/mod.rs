//! Forwarding a client's bytes to a remote proxy, and to the next one when it fails.

mod attempt;
mod books;
mod decline;
mod route;
mod session;

pub use books::{MOST_REMOTES, RemoteCounts, Totals};
pub use route::{Awaited, Candidate, Choice, DialFailure, Epoch, Patience, Report, Route};
pub use session::{ForwardSession, ForwardSettings};
