//! Descriptors that go along with a message over the control socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Sends descriptors with the first of these bytes; how many bytes were taken. The descriptors have gone with any of them.
///
/// # Errors
/// What the system says; then nothing has gone.
pub(super) fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<usize> {
    if descriptors.len() > MOST_AT_ONCE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Rust ignores SIGPIPE.
    let flags = SendFlags::empty();
    Ok(sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        flags,
    )?)
}

/// Reads bytes, and adds the descriptors that come with them.
///
/// # Errors
/// What the system says.
pub(super) fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    #[cfg(not(target_vendor = "apple"))]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(target_vendor = "apple")]
    let flags = RecvFlags::empty();
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(come) = message {
            descriptors.extend(come);
        }
    }
    Ok(received.bytes)
}

/// Descriptors of one message; nobody listens at so many addresses. The kernel's own limit is 253.
pub(crate) const MOST_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn descriptors_come_with_the_first_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut one, other) = UnixStream::pair().unwrap();
        let count = send(&here, b"hello", &[other.into()]).unwrap();
        assert_eq!(count, 5);
        let mut descriptors = Vec::new();
        let mut buffer = [0; 3];
        assert_eq!(receive(&there, &mut buffer, &mut descriptors).unwrap(), 3);
        assert_eq!(descriptors.len(), 1);
        assert_eq!(receive(&there, &mut buffer, &mut descriptors).unwrap(), 2);
        assert_eq!(descriptors.len(), 1);
        let mut came = UnixStream::from(descriptors.remove(0));
        came.write_all(b"x").unwrap();
        one.read_exact(&mut buffer[..1]).unwrap();
        assert_eq!(buffer[0], b'x');
    }

    #[test]
    fn no_more_go_than_can_be_taken() {
        let (here, _there) = UnixStream::pair().unwrap();
        let many: Vec<OwnedFd> = (0..=MOST_AT_ONCE)
            .map(|_| here.try_clone().unwrap().into())
            .collect();
        assert!(send(&here, b"x", &many).is_err());
        assert!(send(&here, b"x", &many[..MOST_AT_ONCE]).is_ok());
    }
}
