//! Which addresses may run a proxy, and what is known of each.
//!
//! Sources name addresses, the [`table`] keeps what probes and live traffic found out about them and says which ones
//! are due, the prober asks them; a race asks several good ones at once.

mod chooser;
mod logins;
pub mod probe;
mod prober;
pub mod race;
pub mod rules;
mod score;
pub mod source;
pub mod status;
mod survey;
pub mod table;
mod tick;
mod trust;

pub use chooser::{Chooser, Why};
pub use logins::{Logins, PeerLogin};
pub use prober::{Discovery, Prober, SourceState};
pub use survey::{Asked, survey};
