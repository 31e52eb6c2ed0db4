//! Connecting to one of several addresses: a little apart, the first that answers wins.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::Socket;

use super::OTHERS;
use super::answering::Stack;
use super::cause::Cause;
#[cfg(feature = "socks6")]
use super::stack::{Had, Wanted};
use crate::engine::{Interests, MAX_INTERESTS, Want};
use crate::net::{
    ConnectFailure, TcpExtras, Uplink, UplinkError, finish_connect, start_connect_with,
};
use crate::wire::socks5::ReplyCode;

/// Attempts at the addresses of one destination (RFC 8305 §4 and §5, in short).
pub(super) struct Dial {
    waiting: VecDeque<SocketAddr>,
    /// The oldest first.
    attempts: Vec<Attempt>,
    /// When the next one starts, though none has failed.
    next: Instant,
    failure: Option<Cause>,
    /// At the same time.
    most_attempts: usize,
    uplink: Uplink,
    tcp: TcpExtras,
    /// For the SYN, of the client's payload. Only where there is one address: of two, both might take it for theirs.
    early: Vec<u8>,
    #[cfg(feature = "socks6")]
    wanted: Option<Box<Wanted>>,
    in_force: InForce,
}

/// Of what was wanted: what the connection has.
#[derive(Default)]
pub(super) struct InForce {
    /// On the leg to the destination.
    pub(super) stack: Stack,
    /// How many bytes of the client's payload are on their way already.
    pub(super) sent: usize,
}

struct Attempt {
    socket: Socket,
    since: Instant,
    /// How much of the payload is in its SYN.
    sent: usize,
    #[cfg(feature = "socks6")]
    had: Had,
}

/// What became of it.
pub(super) enum Dialled {
    /// Connected.
    Connected(Socket),
    /// Every address has failed; the most telling reason.
    Failed(Cause),
    /// Not yet: to be looked at again then, or when one of the sockets is ready.
    Pending(Option<Instant>),
}

impl Dial {
    /// Will connect to one of these, which have been checked, in their order but with both families in turns.
    pub(super) fn new(addresses: &[SocketAddr], uplink: Uplink, now: Instant) -> Self {
        Self {
            waiting: in_turns(addresses),
            attempts: Vec::new(),
            next: now,
            failure: None,
            most_attempts: MOST_ATTEMPTS,
            uplink,
            tcp: TcpExtras::default(),
            early: Vec::new(),
            #[cfg(feature = "socks6")]
            wanted: None,
            in_force: InForce::default(),
        }
    }

    /// The same, with these extras. `payload` is what the client sent behind its request so far.
    pub(super) fn with(mut self, tcp: TcpExtras, payload: &[u8]) -> Self {
        self.tcp = tcp;
        if tcp.fast_open && self.waiting.len() == 1 {
            self.early = payload.to_vec();
        }
        self
    }

    /// The same, in the way that a client of SOCKS 6 wants it.
    #[cfg(feature = "socks6")]
    pub(super) fn wanting(mut self, wanted: Wanted) -> Self {
        if !wanted.may_race() {
            self.most_attempts = 1;
        }
        self.wanted = Some(Box::new(wanted));
        self
    }

    /// What the connection has of what was wanted, for once.
    pub(super) fn take_in_force(&mut self) -> InForce {
        mem::take(&mut self.in_force)
    }

    pub(super) fn turn(&mut self, now: Instant) -> Dialled {
        let mut place = 0;
        while let Some(attempt) = self.attempts.get(place) {
            match finish_connect(&attempt.socket) {
                Ok(true) => return Dialled::Connected(self.won(place)),
                Ok(false) => place += 1,
                Err(failure) => {
                    let attempt = self.attempts.remove(place);
                    self.failed(&failure, Some(&attempt));
                    self.next = now;
                }
            }
        }
        while !self.waiting.is_empty() && now >= self.next {
            if self.attempts.len() >= self.most_attempts {
                let oldest = self.attempts.first().map_or(now, |attempt| attempt.since);
                let until = oldest + PATIENCE;
                if now < until {
                    self.next = until;
                    break;
                }
                self.attempts.remove(0);
            }
            let Some(address) = self.waiting.pop_front() else {
                break;
            };
            match self.start(address, now) {
                Ok(attempt) => {
                    // On this machine a connect has ended before it is waited for; asking saves the wait. Of others nobody
                    // need ask yet: that saves one of some 20 system calls of a connection.
                    let is_there = address.ip().is_loopback() && attempt.socket.peer_addr().is_ok();
                    self.attempts.push(attempt);
                    if is_there {
                        return Dialled::Connected(self.won(self.attempts.len() - 1));
                    }
                    self.next = now + APART;
                }
                Err(failure) => self.failed(&failure, None),
            }
        }
        if self.attempts.is_empty() && self.waiting.is_empty() {
            return Dialled::Failed(match self.failure {
                Some(cause) => cause,
                None => ReplyCode::HOST_UNREACHABLE.into(),
            });
        }
        Dialled::Pending((!self.waiting.is_empty()).then_some(self.next))
    }

    fn start(&mut self, address: SocketAddr, now: Instant) -> Result<Attempt, ConnectFailure> {
        #[cfg(feature = "socks6")]
        if let Some(wanted) = &mut self.wanted {
            let (socket, had) = wanted.start(address, &self.uplink)?;
            return Ok(Attempt {
                socket,
                since: now,
                sent: 0,
                had,
            });
        }
        let (socket, sent) = start_connect_with(address, &self.uplink, self.tcp, &self.early)?;
        Ok(Attempt {
            socket,
            since: now,
            sent,
            #[cfg(feature = "socks6")]
            had: Had::default(),
        })
    }

    /// Takes out the attempt that got through.
    fn won(&mut self, place: usize) -> Socket {
        let attempt = self.attempts.swap_remove(place);
        self.in_force.sent = attempt.sent;
        #[cfg(feature = "socks6")]
        if let Some(wanted) = &self.wanted {
            self.in_force = wanted.in_force(&attempt.socket, attempt.had);
        }
        attempt.socket
    }

    /// `attempt` is the one that failed, if it had begun.
    fn failed(&mut self, failure: &ConnectFailure, attempt: Option<&Attempt>) {
        let code = match reply_code(failure.error()) {
            // The system has one error for both.
            ReplyCode::HOST_UNREACHABLE if self.ttl_ran_out(attempt) => ReplyCode::TTL_EXPIRED,
            code => code,
        };
        let more = |other: Cause| tells(code) > tells(other.code());
        if self.failure.is_none_or(more) {
            let timed_out = Errno::from_io_error(failure.error()) == Some(Errno::TIMEDOUT);
            self.failure = Some(match timed_out {
                true => Cause::timed_out(code),
                false => code.into(),
            });
        }
    }

    #[cfg(feature = "socks6")]
    fn ttl_ran_out(&self, attempt: Option<&Attempt>) -> bool {
        let wanted = self.wanted.as_ref().zip(attempt);
        wanted.is_some_and(|(wanted, attempt)| wanted.ttl_ran_out(&attempt.socket))
    }

    /// Only clients of SOCKS 6 have a TTL.
    #[cfg(not(feature = "socks6"))]
    fn ttl_ran_out(&self, _: Option<&Attempt>) -> bool {
        false
    }

    pub(super) fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        for (key, attempt) in (OTHERS..).zip(&self.attempts) {
            interests.watch(key, attempt.socket.as_fd(), Want::WRITE);
        }
    }
}

/// In their order, but families in turns, since a family may be down as a whole (RFC 8305 §4).
fn in_turns(addresses: &[SocketAddr]) -> VecDeque<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let of = |is_v6| {
        let addresses = addresses.iter();
        addresses.filter(move |address| address.is_ipv6() == is_v6)
    };
    let mut families = [of(first_is_v6), of(!first_is_v6)];
    let mut all = VecDeque::with_capacity(addresses.len());
    while all.len() < addresses.len() {
        for family in &mut families {
            if let Some(address) = family.next() {
                all.push_back(*address);
            }
        }
    }
    all
}

/// RFC 1928 §6. A time-out is "host unreachable", as most servers say it.
pub(super) fn reply_code(error: &io::Error) -> ReplyCode {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => ReplyCode::CONNECTION_REFUSED,
        Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT) => {
            ReplyCode::NETWORK_UNREACHABLE
        }
        Some(Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN) => ReplyCode::HOST_UNREACHABLE,
        Some(Errno::ACCESS | Errno::PERM) => ReplyCode::NOT_ALLOWED,
        None if UplinkError::of(error).is_some() => ReplyCode::NETWORK_UNREACHABLE,
        _ => ReplyCode::GENERAL_FAILURE,
    }
}

/// How much a code tells of the destination: who refused was there; a family without a route says little.
fn tells(code: ReplyCode) -> u8 {
    match code {
        ReplyCode::CONNECTION_REFUSED => 5,
        ReplyCode::TTL_EXPIRED => 4,
        ReplyCode::HOST_UNREACHABLE => 3,
        ReplyCode::NOT_ALLOWED => 2,
        ReplyCode::NETWORK_UNREACHABLE => 1,
        _ => 0,
    }
}

/// Between the starts of two attempts (RFC 8305 §8).
const APART: Duration = Duration::from_millis(250);

/// At the same time, one descriptor each.
const MOST_ATTEMPTS: usize = 4;

/// An attempt that has had this time makes room for another one: a SYN and its second repetition went unanswered.
const PATIENCE: Duration = Duration::from_secs(4);

/// All of them fit behind the client's.
const _: () = assert!(OTHERS as usize + MOST_ATTEMPTS <= MAX_INTERESTS);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn addresses(texts: &str) -> Vec<SocketAddr> {
        texts.split(' ').map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        for (given, expected) in [
            ("[1::]:1 [2::]:1 1.1.1.1:1", "[1::]:1 1.1.1.1:1 [2::]:1"),
            (
                "1.1.1.1:1 2.2.2.2:1 3.3.3.3:1 [1::]:1",
                "1.1.1.1:1 [1::]:1 2.2.2.2:1 3.3.3.3:1",
            ),
            ("1.1.1.1:1", "1.1.1.1:1"),
        ] {
            assert_eq!(in_turns(&addresses(given)), addresses(expected), "{given}");
        }
    }

    /// Turns until something comes of it, with a clock that jumps to what is waited for.
    fn dial(addresses: Vec<SocketAddr>) -> Dialled {
        let mut now = Instant::now();
        let mut dial = Dial::new(&addresses, Uplink::default(), now);
        for _ in 0..2000 {
            match dial.turn(now) {
                Dialled::Pending(next) => {
                    std::thread::sleep(Duration::from_millis(1));
                    now = next.map_or(now, |next| next.max(now));
                }
                done => return done,
            }
        }
        panic!("nothing came of it");
    }

    #[test]
    fn a_dead_address_is_passed_over_and_all_dead_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let closed = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        closed
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        let dead = closed.local_addr().unwrap().as_socket().unwrap();
        let Dialled::Connected(socket) = dial(vec![dead, dead, dead, dead, dead, open]) else {
            panic!("not connected");
        };
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(open));
        let failed = dial(vec![dead, dead]);
        let refused = Cause::from(ReplyCode::CONNECTION_REFUSED);
        assert!(matches!(failed, Dialled::Failed(cause) if cause == refused));
    }

    #[test]
    fn codes_by_cause() {
        for (errno, code) in [
            (Errno::CONNREFUSED, 5),
            (Errno::NETUNREACH, 3),
            (Errno::HOSTUNREACH, 4),
            (Errno::TIMEDOUT, 4),
            (Errno::PERM, 2),
            (Errno::MFILE, 1),
            // No port left for a BIND.
            (Errno::ADDRINUSE, 1),
        ] {
            assert_eq!(reply_code(&errno.into()), ReplyCode(code), "{errno}");
        }
    }

    #[cfg(feature = "socks6")]
    mod socks6 {
        use super::*;
        use crate::wire::socks6::{Choice, Legs, StackOptions};

        /// An address at which nobody answers, for as long as what is returned with it lives.
        fn silent() -> (SocketAddr, impl Sized) {
            let listener = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            listener.bind(&any.into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            // The kernel keeps one, and drops whoever comes then.
            let first = std::net::TcpStream::connect(address).unwrap();
            (address, (listener, first))
        }

        #[test]
        fn attempts_overlap_unless_that_is_not_wanted() {
            let (silent, _alive) = silent();
            for (choice, overlapping) in [(None, 2), (Some(Choice::Yes), 2), (Some(Choice::No), 1)]
            {
                let stack = StackOptions {
                    happy_eyeballs: choice,
                    ..StackOptions::default()
                };
                let mut now = Instant::now();
                let mut dial = Dial::new(&[silent; 3], Uplink::default(), now);
                dial = dial.wanting(Wanted::new(stack, b""));
                for expected in [1, overlapping] {
                    assert!(matches!(dial.turn(now), Dialled::Pending(Some(_))));
                    assert_eq!(dial.attempts.len(), expected, "{choice:?}");
                    now += APART;
                }
                // The second one gets its turn also if the first says nothing.
                for _ in 0..2 {
                    now += PATIENCE;
                    let pending = dial.turn(now);
                    assert!(matches!(pending, Dialled::Pending(_)));
                    assert_eq!(dial.attempts.len().min(overlapping), overlapping);
                }
                assert!(dial.waiting.is_empty(), "{choice:?}");
            }
        }

        #[test]
        fn what_is_in_force_is_told_of_the_connection_that_was_made() {
            let wanted = StackOptions {
                tos: Legs {
                    client: Some(4),
                    remote: Some(0x28),
                },
                ttl: Legs {
                    client: None,
                    remote: Some(33),
                },
                happy_eyeballs: Some(Choice::Yes),
                multipath: Some(Choice::No),
                backlog: Some(5),
                ..StackOptions::default()
            };
            for host in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(host).unwrap();
                let address = listener.local_addr().unwrap();
                let now = Instant::now();
                let mut dial = Dial::new(&[address], Uplink::default(), now);
                dial = dial.wanting(Wanted::new(wanted, b"payload"));
                let socket = loop {
                    match dial.turn(now) {
                        Dialled::Connected(socket) => break socket,
                        Dialled::Pending(_) => std::thread::yield_now(),
                        Dialled::Failed(code) => panic!("{code:?}"),
                    }
                };
                let told = StackOptions {
                    tos: Legs {
                        client: None,
                        remote: Some(0x28),
                    },
                    multipath: crate::net::stack::HAS_MULTIPATH.then_some(Choice::No),
                    // Of the client's leg and of the backlog others tell.
                    backlog: None,
                    ..wanted
                };
                let in_force = dial.take_in_force();
                assert_eq!((in_force.stack, in_force.sent), (Some(Box::new(told)), 0));
                let ttl = match address {
                    SocketAddr::V4(_) => socket.ttl_v4(),
                    SocketAddr::V6(_) => socket.unicast_hops_v6(),
                };
                assert_eq!(ttl.unwrap(), 33);
                #[cfg(any(target_os = "linux", target_os = "android"))]
                {
                    use nix::sys::socket::{getsockopt, sockopt};
                    // Reports were for the connect.
                    let reported = match address {
                        SocketAddr::V4(_) => getsockopt(&socket, sockopt::Ipv4RecvErr),
                        SocketAddr::V6(_) => getsockopt(&socket, sockopt::Ipv6RecvErr),
                    };
                    assert_eq!(reported, Ok(false));
                }
            }
        }
    }
}
