//! Secrets from the system.

/// Bytes that nobody can guess; `None` if the system has none, as may be right after it was started.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(in crate::server) fn bytes<const COUNT: usize>() -> Option<[u8; COUNT]> {
    use rustix::rand::{GetRandomFlags, getrandom};
    let mut bytes = [0; COUNT];
    // Up to 256 bytes come whole. Not waiting: that could take minutes on a small machine, and stop a worker.
    let count = getrandom(&mut bytes, GetRandomFlags::NONBLOCK).ok()?;
    (count == COUNT).then_some(bytes)
}

/// Bytes that nobody can guess; `None` if the system has none.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(in crate::server) fn bytes<const COUNT: usize>() -> Option<[u8; COUNT]> {
    use std::io::Read as _;
    let mut bytes = [0; COUNT];
    let mut source = std::fs::File::open("/dev/urandom").ok()?;
    source.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_there_and_never_the_same() {
        let first: [u8; 16] = bytes().unwrap();
        assert_ne!(Some(first), bytes());
    }
}
