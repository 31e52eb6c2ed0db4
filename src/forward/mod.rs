//! Forwarding a client's bytes to a remote proxy, and to the next one when it fails.

mod announced;
mod attempt;
mod books;
mod datagrams;
mod decline;
mod dialling;
#[cfg(fuzzing)]
pub mod fuzzing;
mod pace;
mod ready;
mod route;
mod said;
mod serving;
mod session;
mod stranded;
mod verdict;

pub use books::{Answer, MOST_REMOTES, RemoteCounts, Totals};
pub use ready::{MOST_READY, Ready, Restock};
pub use route::{Awaited, Candidate, Choice, DialFailure, Epoch, Patience, Report, Route};
pub use serving::ForwardSettings;
pub use session::ForwardSession;
pub use stranded::{Stranded, WithoutRemote};
