//! A door for `tests/fuzz`.

/// What a client has said, as a remote may hear it, and what has to wait.
#[must_use]
pub fn without_announcement(said: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    super::announced::without_announcement(said)
}
