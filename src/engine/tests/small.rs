//! Sessions whose turns are small: the reactor runs them.

use std::io;
use std::os::fd::OwnedFd;
use std::thread::ThreadId;

use super::super::{Key, Ready};
use super::*;

/// What was seen of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    on: ThreadId,
    ready: Ready,
    /// Bytes read of each stream.
    read: [usize; 2],
}

/// Has up to two streams and reads them when they are ready, as much at a time as it is told to.
struct Reader {
    streams: Vec<OwnedFd>,
    /// Bytes of one read.
    most: usize,
    is_steady: bool,
    until: Option<Instant>,
    /// After a byte that tells it to.
    effort: Effort,
    standing: Arc<AtomicUsize>,
    /// Takes the place of the second stream, under the same number, when the first has something.
    spare: Option<OwnedFd>,
    seen: Sender<Seen>,
    _dropped: Dropped,
}

struct Ends {
    streams: Vec<UnixStream>,
    standing: Arc<AtomicUsize>,
    seen: Receiver<Seen>,
    dropped: Receiver<()>,
}

fn pair() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (theirs.into(), ours)
}

fn reader(streams: usize) -> (Reader, Ends) {
    let (theirs, ours) = (0..streams).map(|_| pair()).unzip();
    let (dropped, drops) = bounded(1);
    let (seen, sees) = unbounded();
    let standing = Arc::new(AtomicUsize::new(KEEP));
    let ends = Ends {
        streams: ours,
        standing: Arc::clone(&standing),
        seen: sees,
        dropped: drops,
    };
    let reader = Reader {
        streams: theirs,
        most: 64,
        is_steady: false,
        until: None,
        effort: Effort::Small,
        standing,
        spare: None,
        seen,
        _dropped: Dropped(dropped),
    };
    (reader, ends)
}

impl Ends {
    #[track_caller]
    fn next(&self) -> Seen {
        self.seen.recv_timeout(SOON).expect("a turn")
    }

    /// The next turn that read something.
    #[track_caller]
    fn next_read(&self) -> Seen {
        loop {
            let seen = self.next();
            if seen.read != [0, 0] {
                return seen;
            }
        }
    }

    #[track_caller]
    fn says(&self, stream: usize, bytes: &[u8]) {
        (&self.streams[stream]).write_all(bytes).unwrap();
    }

    #[track_caller]
    fn ended(&self) {
        self.dropped.recv_timeout(SOON).expect("dropped");
    }
}

impl Session for Reader {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        let _ = self
            .standing
            .compare_exchange(WAKE, KEEP, Ordering::SeqCst, Ordering::SeqCst);
        let mut seen = Seen {
            on: thread::current().id(),
            ready: cx.ready,
            read: [0, 0],
        };
        let mut turn = Turn::Wait { until: self.until };
        let mut bytes = vec![0; self.most];
        for (key, stream) in (0..).zip(&self.streams) {
            if !cx.ready.has(key) {
                continue;
            }
            match rustix::io::read(stream, &mut bytes) {
                Ok(0) => turn = Turn::Done,
                Ok(count) => {
                    seen.read[usize::from(key)] = count;
                    match bytes[count - 1] {
                        b'!' => panic!("as told by the test"),
                        b'a' => turn = Turn::Again,
                        b'w' => self.effort = Effort::Work,
                        b's' => self.effort = Effort::Small,
                        _ => {}
                    }
                }
                Err(_) => {}
            }
        }
        if seen.read[0] > 0
            && let Some(spare) = self.spare.take()
        {
            rustix::io::dup2(spare, &mut self.streams[1]).unwrap();
        }
        if self.until.is_some_and(|until| cx.now >= until) {
            turn = Turn::Done;
        }
        let _ = self.seen.send(seen);
        turn
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        for (key, stream) in (0..).zip(&self.streams) {
            interests.watch(key, stream.as_fd(), Want::READ);
        }
        if self.is_steady {
            interests.steady();
        }
    }

    fn effort(&self) -> Effort {
        self.effort
    }

    fn standing(&self) -> Standing {
        match self.standing.load(Ordering::SeqCst) {
            KEEP => Standing::Keep,
            WAKE => Standing::Wake,
            _ => Standing::Cut,
        }
    }
}

impl Engine {
    fn reactor_thread(&self) -> ThreadId {
        self.running.as_ref().unwrap().thread().id()
    }

    /// Keeps the reactor from going on until what it returns is dropped: what happens meanwhile it learns at once.
    fn hold(&self) -> Sender<()> {
        let (open, gate) = bounded::<()>(0);
        let (enter, entered) = bounded(1);
        self.order(Order::Spawn(Box::new(move || {
            Box::new(Call(move |_: &mut Cx<'_>| {
                enter.send(()).unwrap();
                let _ = gate.recv_timeout(SOON);
                Next::Done
            }))
        })));
        entered.recv_timeout(SOON).expect("the reactor waits");
        open
    }
}

fn only(key: Key) -> Ready {
    let mut ready = Ready::NONE;
    ready.add(key);
    ready
}

#[test]
fn small_turns_are_run_in_the_reactor() {
    for is_steady in [false, true] {
        let engine = Engine::start(4);
        let (mut session, ends) = reader(2);
        session.is_steady = is_steady;
        engine.submit(session);
        assert_eq!(ends.next().on, engine.reactor_thread());
        for round in 0..50 {
            let (said, silent) = (round % 2, (round + 1) % 2);
            ends.says(said, b"hello");
            let seen = ends.next_read();
            assert_eq!(seen.on, engine.reactor_thread());
            assert_eq!((seen.read[said], seen.read[silent]), (5, 0));
            assert!(
                !is_steady || round == 0 || seen.ready == only(Key::try_from(said).unwrap()),
                "{seen:?}"
            );
        }
        drop(ends.streams);
        ends.dropped.recv_timeout(SOON).expect("dropped");
        engine.wait_parked(0);
        assert_eq!(engine.counts().threads, 1);
    }
}

/// A turn reads a byte and leaves the others: it is told of them again.
#[test]
fn what_a_small_turn_leaves_is_not_forgotten() {
    let engine = Engine::start(1);
    let (mut session, ends) = reader(1);
    session.most = 1;
    engine.submit(session);
    ends.says(0, b"hello");
    for _ in 0..5 {
        assert_eq!(ends.next_read().read, [1, 0]);
    }
}

#[test]
fn work_of_a_small_session_goes_to_a_worker_and_the_session_comes_back() {
    let engine = Engine::start(1);
    let (session, ends) = reader(1);
    engine.submit(session);
    let here = engine.reactor_thread();
    assert_eq!(ends.next().on, here);
    for _ in 0..3 {
        ends.says(0, b"a");
        assert_eq!(ends.next_read().on, here);
        assert_ne!(ends.next().on, here, "it has more to do");
        engine.wait_parked(1);
        ends.says(0, b"w");
        assert_eq!(ends.next_read().on, here);
        ends.says(0, b"x");
        assert_ne!(ends.next_read().on, here, "it has become work");
        engine.wait_parked(1);
        ends.says(0, b"s");
        assert_ne!(ends.next_read().on, here);
        engine.wait_parked(1);
    }
    ends.says(0, b"x");
    assert_eq!(ends.next_read().on, here);
}

#[test]
fn descriptor_in_the_place_of_another_is_watched() {
    let engine = Engine::start(1);
    let (mut session, mut ends) = reader(2);
    let (spare, other_end) = pair();
    session.spare = Some(spare);
    engine.submit(session);
    ends.says(0, b"now");
    assert_eq!(ends.next_read().read, [3, 0]);
    ends.streams[1] = other_end;
    for _ in 0..3 {
        ends.says(1, b"hello");
        assert_eq!(ends.next_read().read, [0, 5]);
    }
}

/// The end that came with the last bytes is told of with them, and again to who does not act on it.
#[test]
fn end_behind_the_last_bytes_is_told() {
    for is_steady in [false, true] {
        let engine = Engine::start(1);
        let (mut session, ends) = reader(1);
        session.is_steady = is_steady;
        let stream = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(stream.local_addr().unwrap()).unwrap();
        let (stream, _) = stream.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        session.streams = vec![stream.into()];
        engine.submit(session);
        ends.next();
        let held = engine.hold();
        client.write_all(b"last words").unwrap();
        drop(client);
        drop(held);
        ends.next_read();
        ends.ended();
    }
}

#[test]
fn small_session_that_panics_costs_itself_alone() {
    let engine = Engine::start(1);
    let (bad, bad_ends) = reader(1);
    let (good, good_ends) = reader(1);
    engine.submit(bad);
    engine.submit(good);
    bad_ends.next();
    bad_ends.says(0, b"!");
    bad_ends.ended();
    good_ends.says(0, b"x");
    assert_eq!(good_ends.next_read().on, engine.reactor_thread());
    engine.wait_parked(1);
}

#[test]
fn sweep_wakes_and_cuts_small_sessions() {
    let engine = Engine::start(1);
    let all = [KEEP, WAKE, CUT].map(|standing| {
        let (session, ends) = reader(1);
        engine.submit(session);
        ends.next();
        (standing, ends)
    });
    engine.wait_parked(3);
    for (standing, ends) in &all {
        ends.standing.store(*standing, Ordering::SeqCst);
    }
    engine.mailbox.sweep();
    all[2].1.ended();
    all[1].1.next();
    engine.wait_parked(2);
    assert!(all[0].1.seen.is_empty() && all[2].1.seen.is_empty());
    for (_, ends) in &all[..2] {
        ends.says(0, b"x");
        ends.next_read();
    }
}

#[test]
fn small_session_is_run_at_its_deadline() {
    let engine = Engine::start(1);
    let (mut session, ends) = reader(1);
    let until = Instant::now() + Duration::from_millis(200);
    session.until = Some(until);
    engine.submit(session);
    ends.next();
    ends.ended();
    assert!(Instant::now() >= until);
    // The last turn, and one or two more by the reactor's clock.
    assert!(ends.seen.try_iter().count() <= 3);
    engine.wait_parked(0);
}

/// Moves its deadline each time that it is run: nearer by a byte, further without.
struct Mover {
    stream: UnixStream,
    runs: Sender<Instant>,
}

const FAR: Duration = Duration::from_secs(600);
const NEAR: Duration = Duration::from_millis(50);

impl Session for Mover {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        let read = io::Read::read(&mut self.stream, &mut [0; 8]);
        // Not before: who hears of the turn writes, which is for the next one.
        let _ = self.runs.send(cx.now);
        let until = match read {
            Ok(0) => return Turn::Done,
            Ok(_) => cx.now + NEAR,
            Err(_) => cx.now + FAR,
        };
        Turn::Wait { until: Some(until) }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        interests.watch(0, self.stream.as_fd(), Want::READ);
    }

    fn effort(&self) -> Effort {
        Effort::Small
    }
}

#[test]
fn deadline_of_a_small_session_may_come_nearer_and_move_away() {
    let engine = Engine::start(1);
    let (theirs, mut ours) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (runs, ran) = unbounded();
    engine.submit(Mover {
        stream: theirs,
        runs,
    });
    let next = || ran.recv_timeout(SOON).expect("a turn");
    next();
    for _ in 0..3 {
        ours.write_all(b"x").unwrap();
        let near = next() + NEAR;
        assert!(next() >= near);
    }
    drop(ours);
    next();
    engine.wait_parked(0);
}

/// Many become ready at once: the last of them need not wait for all others.
#[test]
fn small_sessions_get_workers_when_very_many_are_due() {
    let engine = Engine::start(4);
    let all: Vec<_> = (0..140)
        .map(|place| {
            let (mut session, ends) = reader(1);
            session.is_steady = place != 130;
            engine.submit(session);
            ends.next();
            ends
        })
        .collect();
    engine.wait_parked(140);
    let held = engine.hold();
    for ends in &all {
        ends.says(0, b"x");
    }
    drop(held);
    let on: Vec<_> = all.iter().map(|ends| ends.next_read().on).collect();
    let here = engine.reactor_thread();
    assert!(on[..128].iter().all(|on| *on == here));
    assert_eq!(on[130], here, "it has not been there for long");
    assert_ne!(on[128], here);
    engine.wait_parked(140);
    for ends in &all {
        ends.says(0, b"x");
        ends.next_read();
    }
}
