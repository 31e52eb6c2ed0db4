//! Stdin and stdout on one side, datagrams through the proxy on the other.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

#[cfg(feature = "socks6")]
use super::output;
use super::pipe::{retried, write_out};
use crate::client::Association;
#[cfg(feature = "socks6")]
use crate::client::DatagramError;
use crate::wire::Address;

/// Each read of stdin is a datagram to the target, each datagram that the target sends is written to stdout.
///
/// It is over when stdin has ended and nothing has come for `idle` (`None`: never), when the reader of stdout has left, and
/// when the proxy ends the association, which is an error.
pub(super) fn run(
    association: &Association,
    target: &Address,
    idle: Option<Duration>,
) -> io::Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut typed = vec![0; association.max_payload()];
    let mut sender = Sender::new(target);
    let mut input = Input::Open;
    let mut quiet_since = Instant::now();
    loop {
        let until = match (input, idle) {
            (Input::Ended, Some(idle)) => Some(quiet_since + idle),
            _ => None,
        };
        // Before the clock: what came just in time counts.
        for _ in 0..RECEIVED_A_TURN {
            match association.recv_from(&mut buffer, Duration::ZERO) {
                Ok((count, from)) if sender.is(&from) => {
                    let datagram = buffer.get(..count).unwrap_or_default();
                    if !write_out(stdout.as_fd(), datagram)? {
                        return Ok(());
                    }
                    quiet_since = Instant::now();
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                #[cfg(feature = "socks6")]
                Err(error) if DatagramError::of(&error).is_some() => {
                    output::message(&format!("{error}\n"));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    return Err(io::Error::other("the proxy ended the association"));
                }
                Err(error) => return Err(error),
            }
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        if !wait(association, input, left)? {
            continue;
        }
        let count = retried(stdin.as_fd(), PollFlags::IN, || {
            rustix::io::read(&stdin, &mut typed)
        })?;
        match typed.get(..count) {
            Some([]) | None => {
                input = Input::Ended;
                quiet_since = Instant::now();
            }
            Some(datagram) => association.send_to(datagram, target)?,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
}

/// Waits for datagrams or, while it is open, for stdin; whether stdin can be read.
fn wait(association: &Association, input: Input, left: Option<Duration>) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut descriptors = association.descriptors().to_vec();
    // Its end would be told again and again.
    if input == Input::Open {
        descriptors.push(stdin.as_fd());
    }
    let mut waiting: Vec<_> = descriptors
        .iter()
        .map(|descriptor| PollFd::new(descriptor, PollFlags::IN))
        .collect();
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut waiting, left.as_ref()) {
        Ok(_) => {
            let stdin = waiting.get(2);
            Ok(stdin.is_some_and(|stdin| !stdin.revents().is_empty()))
        }
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whose datagrams are taken: the target's only, as with a connected socket. The addresses of a name are not known here, so it
/// is the first that answers.
struct Sender {
    port: u16,
    address: Option<Address>,
}

impl Sender {
    fn new(target: &Address) -> Self {
        Self {
            port: target.port,
            address: target.socket_addr().map(Address::from),
        }
    }

    fn is(&mut self, from: &Address) -> bool {
        let from = from
            .socket_addr()
            .map_or_else(|| from.clone(), Address::from);
        from.port == self.port && *self.address.get_or_insert_with(|| from.clone()) == from
    }
}

/// What comes is at most that long.
const MAX_DATAGRAM: usize = 65_535;

/// Datagrams that are taken before stdin gets its turn.
const RECEIVED_A_TURN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_others_are_not_the_targets() {
        let is = |sender: &mut Sender, from: &str| sender.is(&from.parse().unwrap());
        let mut sender = Sender::new(&"192.0.2.1:53".parse().unwrap());
        assert!(is(&mut sender, "192.0.2.1:53"));
        assert!(is(&mut sender, "[::ffff:192.0.2.1]:53"));
        assert!(!is(&mut sender, "192.0.2.1:54"));
        assert!(!is(&mut sender, "192.0.2.2:53"));
        let mut sender = Sender::new(&"a.example:53".parse().unwrap());
        assert!(!is(&mut sender, "192.0.2.2:54"));
        assert!(is(&mut sender, "192.0.2.2:53"));
        assert!(!is(&mut sender, "192.0.2.1:53"));
    }
}
