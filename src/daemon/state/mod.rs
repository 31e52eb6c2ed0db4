//! The state file: addresses of proxies outlive a restart.
//!
//! ```text
//!   start: file ──▶ table: probed first, and the first of them is forwarded to before any probe
//!   later: table ──▶ memory ──when it is worth a write──▶ file, on a worker; and once more at the end
//! ```
//!
//! A router's flash wears out with writes, so the [`memory`] says when one is due: not for what is on disk already, and never
//! within a quarter of an hour of the last one. That is 96 a day at most, and one at the end.

mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keeper;
mod knowledge;
mod memory;
mod store;

pub(super) use keeper::Keeper;
pub(super) use knowledge::{Known, ever_valid, remind};
