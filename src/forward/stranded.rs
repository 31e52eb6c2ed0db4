//! Clients that no remote can be used for, and whoever serves them nevertheless.

use std::time::Instant;

use crate::engine::Session;
use crate::listen::Client;

/// A SOCKS client that no remote can be used for.
pub struct Stranded {
    /// Its connection.
    pub client: Client,
    /// All that it has said.
    pub said: Vec<u8>,
    /// All that it has been told: nothing, or what a remote answered to its greeting, and to its user and password.
    pub heard: Vec<u8>,
}

/// Serves clients that no remote can be used for.
pub trait WithoutRemote: Send + Sync {
    /// Whether there are to be such clients now.
    fn is_offered(&self) -> bool;

    /// The session that serves this client from here on.
    fn serve(&self, stranded: Stranded, now: Instant) -> Box<dyn Session>;
}
