//! A SOCKS server's side of a connection, on the engine.
//!
//! So far: SOCKS 4, 4a and 5, CONNECT without authentication. It is what the demonstration's peers are.

pub mod rules;
mod session;
pub mod users;

pub use session::{ServerSession, ServerSettings};
