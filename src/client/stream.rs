//! TCP under a deadline.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use crate::net::{ConnectFailure, Uplink, finish_connect, start_connect};

/// A non-blocking stream whose reads and writes wait, but not longer than until the deadline.
pub(super) struct Until<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) deadline: Instant,
}

impl Until<'_> {
    fn wait(
        &self,
        flags: PollFlags,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return other,
            }
            if wait(&[self.stream.as_fd()], flags, self.deadline)?.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.wait(PollFlags::IN, || stream.read(buffer))
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.wait(PollFlags::OUT, || stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects to the first of the addresses that answers. Each gets a head start before the next is tried beside it
/// (RFC 8305 §5), so a silent one costs little. The stream is non-blocking.
///
/// # Errors
/// Why the last one failed that did; `None` when the deadline came first.
pub(crate) fn connect_any(
    addresses: &[SocketAddr],
    uplink: &Uplink,
    deadline: Instant,
) -> Result<TcpStream, Option<ConnectFailure>> {
    let mut waiting = addresses.iter();
    let mut pending: Vec<Socket> = Vec::new();
    let mut next_start = Instant::now();
    let mut failure = None;
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(None);
        }
        if pending.is_empty() || now >= next_start {
            match waiting
                .next()
                .map(|address| start_connect(*address, uplink))
            {
                Some(Ok(socket)) => {
                    pending.push(socket);
                    next_start = now + HEAD_START;
                }
                Some(Err(error)) => {
                    failure = Some(error);
                    continue;
                }
                None if pending.is_empty() => return Err(failure),
                None => next_start = deadline,
            }
        }
        let descriptors: Vec<_> = pending.iter().map(AsFd::as_fd).collect();
        let ready = wait(&descriptors, PollFlags::OUT, next_start.min(deadline))
            .map_err(|error| Some(ConnectFailure::Local(error)))?;
        // The last first: removing one moves those behind it.
        for at in ready.into_iter().rev() {
            let Some(socket) = pending.get(at) else {
                continue;
            };
            match finish_connect(socket) {
                Ok(true) => return Ok(pending.swap_remove(at).into()),
                Ok(false) => {}
                Err(error) => {
                    pending.swap_remove(at);
                    failure = Some(error);
                    next_start = now;
                }
            }
        }
    }
}

/// The places of the descriptors that something can be done with; none when the deadline has passed.
pub(super) fn wait(
    descriptors: &[BorrowedFd<'_>],
    flags: PollFlags,
    deadline: Instant,
) -> io::Result<Vec<usize>> {
    let mut polled: Vec<_> = descriptors
        .iter()
        .map(|descriptor| PollFd::new(descriptor, flags))
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Beyond what the system can count it is forever.
        let limit = Timespec::try_from(left).ok();
        match poll(&mut polled, limit.as_ref()) {
            Ok(0) if left.is_zero() => return Ok(Vec::new()),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let ready = polled.iter().enumerate();
    Ok(ready
        .filter(|(_, polled)| !polled.revents().is_empty())
        .map(|(at, _)| at)
        .collect())
}

/// The "connection attempt delay" that RFC 8305 §5 recommends.
const HEAD_START: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};

    fn socket(backlog: Option<i32>) -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        if let Some(backlog) = backlog {
            socket.listen(backlog).unwrap();
        }
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// A listener whose queue is full, so that no SYN is answered.
    fn unanswering() -> (Vec<Socket>, SocketAddr) {
        let (listener, address) = socket(Some(0));
        let mut kept = vec![listener];
        for _ in 0..3 {
            let (client, _) = socket(None);
            let _ = client.connect_timeout(&address.into(), Duration::from_millis(50));
            kept.push(client);
        }
        (kept, address)
    }

    fn after(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[test]
    fn every_address_is_tried_and_a_silent_one_costs_little() {
        let ((_dead, refusing), (_full, silent)) = (socket(None), unanswering());
        let (_listener, living) = socket(Some(8));
        let start = Instant::now();
        let stream = connect_any(
            &[refusing, silent, refusing, living],
            &Uplink::default(),
            after(20_000),
        )
        .unwrap();
        assert_eq!(stream.peer_addr().unwrap(), living);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_last_failure_is_told_and_a_deadline_is_none() {
        let ((_dead, refusing), (_full, silent)) = (socket(None), unanswering());
        match connect_any(&[refusing, refusing], &Uplink::default(), after(20_000)) {
            Err(Some(ConnectFailure::Remote(error))) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            connect_any(&[silent], &Uplink::default(), after(50)),
            Err(None)
        ));
        assert!(matches!(
            connect_any(&[refusing], &Uplink::default(), after(0)),
            Err(None)
        ));
        assert!(matches!(
            connect_any(&[], &Uplink::default(), after(20_000)),
            Err(None)
        ));
    }

    #[test]
    fn a_read_ends_at_the_deadline() {
        let (listener, address) = socket(Some(8));
        let stream = connect_any(&[address], &Uplink::default(), after(20_000)).unwrap();
        let _accepted = listener.accept().unwrap();
        let mut until = Until {
            stream: &stream,
            deadline: after(20),
        };
        let error = until.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
