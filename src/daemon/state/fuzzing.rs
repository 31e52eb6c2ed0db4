//! Doors for `tests/fuzz`.

use std::net::SocketAddr;

use super::file;

/// The text of a state file.
#[must_use]
pub fn encode(addresses: &[SocketAddr]) -> String {
    file::encode(addresses)
}

/// The addresses of a state file.
///
/// # Errors
/// As the log says it.
pub fn decode(bytes: &[u8]) -> Result<Vec<SocketAddr>, String> {
    file::decode(bytes).map_err(|unusable| unusable.to_string())
}

/// Addresses in a file.
pub const MOST_ADDRESSES: usize = file::MOST_ADDRESSES;
