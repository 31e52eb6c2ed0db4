//! Forwarding a client's bytes to a remote proxy, and to the next one when it fails.

mod attempt;
mod decline;
mod route;
mod session;

pub use route::{Awaited, Candidate, Choice, DialFailure, Epoch, Patience, Report, Route, Totals};
pub use session::{ForwardSession, ForwardSettings};
