//! A relay between sockets of this machine, its turns run as a worker runs them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};

use super::{Ended, Kept, Moved, Pipes, Relay, RelaySettings};
use crate::engine::{Interests, Ready, Turn, TurnContext, poll_interests};

mod effort;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod modes;

/// A relay and what runs it.
struct Rig {
    relay: Relay,
    buffer: Vec<u8>,
    ready: Ready,
    now: Instant,
    turns: usize,
}

impl Rig {
    /// A relay between new TCP connections; the other ends are the client's and the target's.
    fn new(pipes: &Pipes) -> (Self, TcpStream, TcpStream) {
        Self::with(settings(pipes))
    }

    fn with(settings: RelaySettings) -> (Self, TcpStream, TcpStream) {
        let (client, a) = tcp();
        let (target, b) = tcp();
        (Self::between(a, b, settings), client, target)
    }

    fn between(a: Socket, b: Socket, settings: RelaySettings) -> Self {
        let now = Instant::now();
        Self {
            relay: Relay::new(a, b, &[], &[], Arc::new(settings), now),
            buffer: Vec::new(),
            ready: Ready::ALL,
            now,
            turns: 0,
        }
    }

    /// One turn, and the wait after it. The clock of the relay stands still unless a test moves it.
    fn turn(&mut self, wait: Duration) -> Turn {
        let mut cx = TurnContext::new(self.now, self.ready, &mut self.buffer);
        let turn = self.relay.turn(&mut cx);
        self.turns += 1;
        self.ready = match turn {
            Turn::Again => Ready::ALL,
            Turn::Wait { .. } => {
                let mut interests = Interests::default();
                self.relay.interests(&mut interests);
                poll_interests(&interests, wait)
            }
            Turn::Done => Ready::NONE,
        };
        turn
    }

    /// Runs turns until nothing is ready any more; how many that took.
    fn settle(&mut self) -> usize {
        let before = self.turns;
        loop {
            let turn = self.turn(QUIET);
            if turn == Turn::Done || (turn != Turn::Again && !self.ready.any()) {
                return self.turns - before;
            }
            assert!(self.turns - before < 10_000, "it spins");
        }
    }

    /// Runs turns until a condition holds or the relay has ended.
    #[track_caller]
    fn until(&mut self, mut condition: impl FnMut(&Relay) -> bool) {
        let limit = Instant::now() + SOON;
        while !condition(&self.relay) && self.turn(QUIET) != Turn::Done {
            assert!(Instant::now() < limit, "never came to it");
        }
    }

    #[track_caller]
    fn finish(&mut self) -> Ended {
        self.until(|_| false);
        self.relay.ended().expect("it has ended")
    }
}

fn settings(pipes: &Pipes) -> RelaySettings {
    RelaySettings {
        idle: None,
        half_closed_idle: None,
        pipes: pipes.clone(),
        kept: Kept::default(),
    }
}

/// Our end of a connection, and the one for the relay.
fn tcp() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nodelay(true).unwrap();
    ours.set_read_timeout(Some(SOON)).unwrap();
    ours.set_write_timeout(Some(SOON)).unwrap();
    let theirs = Socket::from(theirs);
    crate::net::tune(&theirs);
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn unix() -> (UnixStream, Socket) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(SOON)).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, Socket::from(theirs))
}

/// Bytes that tell a loss or a repetition of any length from what is right.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Writes in pieces of random sizes, small and large mixed, then ends the stream.
fn send(stream: &TcpStream, bytes: &[u8], seed: u64) -> JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    let bytes = bytes.to_vec();
    thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            // Bursts of one kind, long enough for the relay to change its mind.
            let most = if random.bool() { 300 } else { 256 * 1024 };
            for _ in 0..random.usize(1..12) {
                let size = random.usize(1..=most).min(rest.len());
                stream.write_all(&rest[..size]).unwrap();
                rest = &rest[size..];
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

fn receive(stream: &TcpStream) -> JoinHandle<Vec<u8>> {
    let mut stream = stream.try_clone().unwrap();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Writes without waiting until nobody takes more; how much was taken.
fn stuff(stream: &TcpStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut taken = 0;
    while taken < bytes.len() {
        match (&*stream).write(&bytes[taken..]) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    taken
}

/// Stuffs bytes into one end while the relay runs, until the relay takes no more either.
fn stuff_through(rig: &mut Rig, stream: &TcpStream, bytes: &[u8]) -> usize {
    let mut taken = 0;
    loop {
        let more = stuff(stream, &bytes[taken..]);
        taken += more;
        rig.settle();
        if more == 0 {
            assert!(taken < bytes.len(), "never full");
            return taken;
        }
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Both ways at once, byte-exact and exactly counted, through a pool of so many pipes.
#[track_caller]
fn bulk_both_ways(pipes: &Pipes, seed: u64) {
    let (mut rig, client, target) = Rig::new(pipes);
    let (up, down) = (pattern(seed, 12_000_001), pattern(seed + 1, 9_000_007));
    let threads = [send(&client, &up, seed + 2), send(&target, &down, seed + 3)];
    let received = [receive(&target), receive(&client)];
    assert_eq!(rig.finish(), Ended::Closed);
    assert_eq!(
        rig.relay.moved(),
        Moved {
            up: up.len() as u64,
            down: down.len() as u64
        }
    );
    drop(rig);
    for thread in threads {
        thread.join().unwrap();
    }
    let [at_target, at_client] = received.map(|thread| thread.join().unwrap());
    assert!(at_target == up, "the target got something else");
    assert!(at_client == down, "the client got something else");
}

#[test]
fn bulk_both_ways_is_exact_by_copying() {
    bulk_both_ways(&Pipes::new(0), 10);
}

#[test]
fn bulk_both_ways_is_exact_with_one_pipe_for_both() {
    bulk_both_ways(&Pipes::new(1), 20);
}

#[test]
fn bulk_both_ways_is_exact_by_splicing() {
    bulk_both_ways(&Pipes::new(8), 30);
}

#[test]
fn first_bytes_of_both_sides_come_before_what_follows() {
    let (mut client, a) = tcp();
    let (mut target, b) = tcp();
    let settings = Arc::new(settings(&Pipes::new(0)));
    let mut rig = Rig::between(tcp().1, tcp().1, RelaySettings::clone(&settings));
    rig.relay = Relay::new(a, b, b"one ", b"uno ", settings, rig.now);
    client.write_all(b"two").unwrap();
    target.write_all(b"due").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.finish(), Ended::Closed);
    assert_eq!(rig.relay.moved(), Moved { up: 7, down: 7 });
    drop(rig);
    let (mut at_target, mut at_client) = (String::new(), String::new());
    target.read_to_string(&mut at_target).unwrap();
    client.read_to_string(&mut at_client).unwrap();
    assert_eq!((&*at_target, &*at_client), ("one two", "uno due"));
}

/// One side does not read: what is kept is bounded, nothing spins, the other direction flows, and nothing is lost.
#[track_caller]
fn slow_reader(pipes: &Pipes) {
    let (mut rig, client, mut target) = Rig::new(pipes);
    let up = pattern(40, 64 << 20);
    let taken = stuff_through(&mut rig, &client, &up);
    // Where there are pipes, what could not be delivered waits in one.
    assert!(pipes.lend(rig.now).is_none());
    assert!(rig.settle() <= FEW, "it spins");
    for round in 0..100 {
        target.write_all(&[round; 100]).unwrap();
        rig.until(|relay| relay.moved().down == (u64::from(round) + 1) * 100);
        let mut message = [0; 100];
        (&client).read_exact(&mut message).unwrap();
        assert_eq!(message, [round; 100]);
    }
    assert!(rig.settle() <= FEW, "it spins");

    client.shutdown(Shutdown::Write).unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    let received = receive(&target);
    assert_eq!(rig.finish(), Ended::Closed);
    assert_eq!(rig.relay.moved().up, taken as u64);
    drop(rig);
    assert!(received.join().unwrap() == up[..taken], "not what was sent");
}

#[test]
fn slow_reader_loses_nothing_by_copying() {
    slow_reader(&Pipes::new(0));
}

#[test]
fn slow_reader_loses_nothing_by_splicing() {
    let pipes = Pipes::new(1);
    slow_reader(&pipes);
    // It came back empty.
    assert!(pipes.lend(Instant::now()).is_some());
}

#[test]
fn half_close_of_the_client_keeps_the_other_direction() {
    let (mut rig, client, mut target) = Rig::new(&Pipes::new(2));
    (&client).write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.settle();
    let mut request = String::new();
    target.read_to_string(&mut request).unwrap();
    assert_eq!(request, "request");
    let down = pattern(50, 3_000_000);
    let sent = send(&target, &down, 51);
    let received = receive(&client);
    assert_eq!(rig.finish(), Ended::Closed);
    drop(rig);
    sent.join().unwrap();
    assert!(received.join().unwrap() == down);
}

#[test]
fn half_close_of_the_target_keeps_the_other_direction() {
    let (mut rig, mut client, target) = Rig::new(&Pipes::new(2));
    (&target).write_all(b"banner").unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    rig.settle();
    let mut banner = String::new();
    client.read_to_string(&mut banner).unwrap();
    assert_eq!(banner, "banner");
    let up = pattern(60, 3_000_000);
    let sent = send(&client, &up, 61);
    let received = receive(&target);
    assert_eq!(rig.finish(), Ended::Closed);
    drop(rig);
    sent.join().unwrap();
    assert!(received.join().unwrap() == up);
}

#[track_caller]
fn sees_reset(mut stream: TcpStream, before: &[u8]) {
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(bytes == before, "{} bytes before the reset", bytes.len());
}

#[test]
fn reset_of_the_client_reaches_the_target_after_what_was_sent_before() {
    let (mut rig, client, mut target) = Rig::new(&Pipes::new(2));
    (&client).write_all(b"last words").unwrap();
    rig.until(|relay| relay.moved().up == 10);
    let mut words = [0; 10];
    target.read_exact(&mut words).unwrap();
    reset(client);
    assert!(matches!(rig.finish(), Ended::Reset(_)));
    drop(rig);
    sees_reset(target, b"");
}

#[test]
fn reset_of_the_target_reaches_the_client_after_what_was_sent_before() {
    let (mut rig, mut client, target) = Rig::new(&Pipes::new(2));
    (&target).write_all(b"last words").unwrap();
    rig.until(|relay| relay.moved().down == 10);
    let mut words = [0; 10];
    client.read_exact(&mut words).unwrap();
    reset(target);
    assert!(matches!(rig.finish(), Ended::Reset(_)));
    drop(rig);
    sees_reset(client, b"");
}

/// The client breaks off while the target does not read: what the relay holds is delivered, then the target learns of
/// it. Nothing spins meanwhile, though the client's side reports its hang-up again and again.
#[track_caller]
fn reset_behind_a_slow_reader(pipes: &Pipes) {
    let (mut rig, client, target) = Rig::new(pipes);
    let up = pattern(70, 64 << 20);
    let taken = stuff_through(&mut rig, &client, &up);
    let moved = rig.relay.moved().up;
    assert!(moved > 0 && moved < taken as u64);
    reset(client);
    assert!(rig.settle() <= FEW, "it spins");
    assert!(rig.settle() <= FEW, "it spins");
    assert_eq!(rig.relay.ended(), None);
    let received = thread::spawn(move || {
        let mut bytes = Vec::new();
        let error = (&target).read_to_end(&mut bytes).unwrap_err();
        (bytes, error.kind())
    });
    assert!(matches!(rig.finish(), Ended::Reset(_)));
    assert!(rig.relay.moved().up > moved, "what was held was given up");
    drop(rig);
    // What the target has not read when the reset comes is its own kernel's to keep or to drop.
    let (bytes, end) = received.join().unwrap();
    assert_eq!(end, ErrorKind::ConnectionReset);
    assert!(bytes == up[..bytes.len()], "not what was sent");
}

#[test]
fn reset_behind_a_slow_reader_does_not_spin_copying() {
    reset_behind_a_slow_reader(&Pipes::new(0));
}

#[test]
fn reset_behind_a_slow_reader_does_not_spin_splicing() {
    reset_behind_a_slow_reader(&Pipes::new(2));
}

#[test]
fn target_that_breaks_off_has_its_last_bytes_delivered() {
    let (mut rig, client, target) = Rig::new(&Pipes::new(0));
    // Unread bytes at the target make its close a reset.
    (&client).write_all(b"never read").unwrap();
    rig.settle();
    (&target).write_all(b"answer").unwrap();
    drop(target);
    assert!(matches!(rig.finish(), Ended::Reset(_)));
    assert_eq!(rig.relay.moved(), Moved { up: 10, down: 6 });
}

#[test]
fn idle_limit_counts_from_the_last_byte() {
    let limit = Duration::from_secs(60);
    let (mut rig, mut client, _target) = Rig::with(RelaySettings {
        idle: Some(limit),
        ..settings(&Pipes::new(0))
    });
    let start = rig.now;
    let until = Some(start + limit);
    assert_eq!(rig.turn(QUIET), Turn::Wait { until });
    rig.now = start + limit / 2;
    client.write_all(b"x").unwrap();
    rig.until(|relay| relay.moved().up == 1);
    rig.now = start + limit;
    let until = Some(start + limit / 2 + limit);
    assert_eq!(rig.turn(QUIET), Turn::Wait { until });
    rig.now = start + limit / 2 + limit;
    assert_eq!(rig.turn(QUIET), Turn::Done);
    assert_eq!(rig.relay.ended(), Some(Ended::Idle));
}

#[test]
fn half_close_limit_counts_once_a_side_has_ended() {
    let limit = Duration::from_secs(60);
    let (mut rig, client, mut target) = Rig::with(RelaySettings {
        half_closed_idle: Some(limit),
        ..settings(&Pipes::new(0))
    });
    let start = rig.now;
    assert_eq!(rig.turn(QUIET), Turn::Wait { until: None });
    client.shutdown(Shutdown::Write).unwrap();
    rig.settle();
    assert_eq!(target.read(&mut [0]).unwrap(), 0);
    let until = Some(start + limit);
    assert_eq!(rig.turn(QUIET), Turn::Wait { until });
    rig.now = start + limit / 2;
    target.write_all(b"x").unwrap();
    rig.until(|relay| relay.moved().down == 1);
    rig.now = start + limit;
    assert!(matches!(rig.turn(QUIET), Turn::Wait { .. }));
    rig.now = start + limit / 2 + limit;
    assert_eq!(rig.turn(QUIET), Turn::Done);
    assert_eq!(rig.relay.ended(), Some(Ended::HalfClosedIdle));
}

#[test]
fn unix_client_is_served_like_any_other() {
    for pipes in [Pipes::new(0), Pipes::new(2)] {
        let (mut client, a) = unix();
        let (target, b) = tcp();
        let mut rig = Rig::between(a, b, settings(&pipes));
        let (up, down) = (pattern(80, 3_000_001), pattern(81, 2_000_003));
        let (sent, received) = (send(&target, &down, 82), receive(&target));
        let writing = thread::spawn({
            let (mut client, up) = (client.try_clone().unwrap(), up.clone());
            move || {
                client.write_all(&up).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            }
        });
        let reading = thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            bytes
        });
        assert_eq!(rig.finish(), Ended::Closed);
        drop(rig);
        sent.join().unwrap();
        writing.join().unwrap();
        assert!(received.join().unwrap() == up);
        assert!(reading.join().unwrap() == down);
    }
}

#[test]
fn half_close_after_a_long_silence_leaves_time_for_the_answer() {
    let limit = Duration::from_secs(60);
    let (mut rig, mut client, mut target) = Rig::with(RelaySettings {
        half_closed_idle: Some(limit),
        ..settings(&Pipes::new(0))
    });
    rig.now += 2 * limit;
    client.shutdown(Shutdown::Write).unwrap();
    rig.settle();
    assert_eq!(rig.relay.ended(), None);
    target.write_all(b"answer").unwrap();
    drop(target);
    assert_eq!(rig.finish(), Ended::Closed);
    drop(rig);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

/// A Unix socket reports a hang-up when its other end is closed, which is no reset.
#[test]
fn unix_client_that_closes_ends_the_stream_and_loses_nothing() {
    let (mut client, a) = unix();
    let (mut target, b) = tcp();
    let mut rig = Rig::between(a, b, settings(&Pipes::new(0)));
    client.write_all(b"whole").unwrap();
    drop(client);
    rig.settle();
    let mut bytes = String::new();
    target.read_to_string(&mut bytes).unwrap();
    assert_eq!(bytes, "whole");
    assert_eq!(rig.finish(), Ended::Closed);
}

#[test]
fn unix_client_that_closes_behind_a_slow_reader_loses_nothing() {
    let (client, a) = unix();
    let (target, b) = tcp();
    let mut rig = Rig::between(a, b, settings(&Pipes::new(2)));
    let up = pattern(90, 64 << 20);
    let mut taken = 0;
    client.set_nonblocking(true).unwrap();
    loop {
        match (&client).write(&up[taken..][..64 * 1024]) {
            Ok(count) => taken += count,
            Err(_) if rig.settle() <= 1 => break,
            Err(_) => {}
        }
    }
    drop(client);
    assert!(rig.settle() <= FEW, "it spins");
    let received = receive(&target);
    assert_eq!(rig.finish(), Ended::Closed);
    assert_eq!(rig.relay.moved().up, taken as u64);
    drop(rig);
    assert!(received.join().unwrap() == up[..taken], "not what was sent");
}

/// splice(2) stops at an urgent byte and then, if the stream has ended, reports an end where bytes are still to come.
#[test]
fn urgent_byte_keeps_its_place_in_a_spliced_stream() {
    let (mut rig, mut client, target) = Rig::new(&Pipes::new(2));
    let up = pattern(100, 4_000_000);
    let received = receive(&target);
    let sent = thread::spawn({
        let (client, up) = (client.try_clone().unwrap(), up.clone());
        move || (&client).write_all(&up).unwrap()
    });
    rig.until(|relay| relay.moved().up == up.len() as u64);
    sent.join().unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"after").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.finish(), Ended::Closed);
    drop(rig);
    let received = received.join().unwrap();
    assert!(received[..up.len()] == up);
    assert_eq!(&received[up.len()..], b"!after");
}

/// Turns of a relay that has nothing to do; more than one because kernels still find room for a little more.
const FEW: usize = 4;

/// Long enough for loopback to hand over what was written; only ends a wait for nothing.
const QUIET: Duration = Duration::from_millis(20);

/// Long enough for anything here.
const SOON: Duration = Duration::from_secs(15);
