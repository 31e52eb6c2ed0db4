//! The reactor and the workers together, with sessions made for the purpose.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use socket2::SockRef;

mod small;

use super::{
    Cx, Effort, Interests, Mailbox, Next, Reactor, Session, Standing, Task, TaskId, Turn,
    TurnContext, Want,
};

/// A reactor on a thread of its own; stopped and joined on drop.
struct Engine {
    mailbox: Mailbox,
    doorman: TaskId,
    orders: Sender<Order>,
    running: Option<JoinHandle<()>>,
}

enum Order {
    Submit(Box<dyn Session>),
    Spawn(Box<dyn FnOnce() -> Box<dyn Task> + Send>),
    Count(Sender<Counts>),
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    parked: usize,
    threads: usize,
}

/// The task that does what a test orders.
struct Doorman(Receiver<Order>);

impl Task for Doorman {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        for order in self.0.try_iter() {
            match order {
                Order::Submit(session) => cx.submit(session),
                Order::Spawn(make) => drop(cx.spawn(make())),
                Order::Count(reply) => {
                    let _ = reply.send(Counts {
                        parked: cx.parked(),
                        threads: cx.worker_threads(),
                    });
                }
            }
        }
        Next::Wait(None)
    }
}

impl Engine {
    fn start(workers: usize) -> Self {
        let (orders, received) = unbounded();
        let (started, start) = bounded(1);
        let running = thread::spawn(move || {
            let mut reactor = Reactor::new(workers).unwrap();
            let doorman = reactor.spawn(Box::new(Doorman(received)));
            started.send((reactor.mailbox(), doorman)).unwrap();
            reactor.run().unwrap();
        });
        let (mailbox, doorman) = start.recv_timeout(SOON).unwrap();
        Self {
            mailbox,
            doorman,
            orders,
            running: Some(running),
        }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.mailbox.wake(self.doorman);
    }

    fn submit(&self, session: impl Session + 'static) {
        self.order(Order::Submit(Box::new(session)));
    }

    fn counts(&self) -> Counts {
        let (reply, counts) = bounded(1);
        self.order(Order::Count(reply));
        counts.recv_timeout(SOON).expect("the reactor lives")
    }

    #[track_caller]
    fn wait_parked(&self, count: usize) {
        assert!(
            wait_until(|| self.counts().parked == count),
            "{:?}",
            self.counts()
        );
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.mailbox.stop();
        let Some(running) = self.running.take() else {
            return;
        };
        let ended = wait_until(|| running.is_finished()) && running.join().is_ok();
        assert!(thread::panicking() || ended);
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + SOON;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Says that it was dropped.
struct Dropped(Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Answers each byte with the same one; with a limit on silence if there is one.
struct Echo {
    stream: UnixStream,
    until: Option<Instant>,
    standing: Arc<AtomicUsize>,
    turns: Arc<AtomicUsize>,
    /// Held at the start of each turn, if there is one.
    gate: Option<Receiver<()>>,
    _dropped: Dropped,
}

const KEEP: usize = 0;
const WAKE: usize = 1;
const CUT: usize = 2;

struct Handles {
    stream: UnixStream,
    standing: Arc<AtomicUsize>,
    turns: Arc<AtomicUsize>,
    dropped: Receiver<()>,
}

fn echo(until: Option<Instant>, gate: Option<Receiver<()>>) -> (Echo, Handles) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_read_timeout(Some(SOON)).unwrap();
    let (dropped, drops) = bounded(1);
    let standing = Arc::new(AtomicUsize::new(KEEP));
    let turns = Arc::new(AtomicUsize::new(0));
    let handles = Handles {
        stream: ours,
        standing: Arc::clone(&standing),
        turns: Arc::clone(&turns),
        dropped: drops,
    };
    let echo = Echo {
        stream: theirs,
        until,
        standing,
        turns,
        gate,
        _dropped: Dropped(dropped),
    };
    (echo, handles)
}

impl Handles {
    #[track_caller]
    fn answers(&mut self) {
        self.stream.write_all(b"x").unwrap();
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[track_caller]
    fn ended(&self) {
        self.dropped.recv_timeout(SOON).expect("dropped");
    }
}

impl Session for Echo {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        self.turns.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            let _ = gate.recv_timeout(SOON);
        }
        let _ = self
            .standing
            .compare_exchange(WAKE, KEEP, Ordering::SeqCst, Ordering::SeqCst);
        if self.until.is_some_and(|until| cx.now >= until) {
            return Turn::Done;
        }
        let mut bytes = [0; 64];
        match self.stream.read(&mut bytes) {
            Ok(0) => Turn::Done,
            Ok(count) if bytes[..count].contains(&b'!') => panic!("as told by the test"),
            Ok(count) => {
                self.stream.write_all(&bytes[..count]).unwrap();
                Turn::Again
            }
            Err(_) => Turn::Wait { until: self.until },
        }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        interests.watch(0, self.stream.as_fd(), Want::READ);
    }

    fn standing(&self) -> Standing {
        match self.standing.load(Ordering::SeqCst) {
            KEEP => Standing::Keep,
            WAKE => Standing::Wake,
            _ => Standing::Cut,
        }
    }
}

/// Always busy, until it is told to end.
struct Busy {
    turns: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
    effort: Effort,
    takes: Duration,
}

impl Session for Busy {
    fn turn(&mut self, _: &mut TurnContext<'_>) -> Turn {
        self.turns.fetch_add(1, Ordering::Relaxed);
        if !self.takes.is_zero() {
            thread::sleep(self.takes);
        }
        if self.enough.load(Ordering::Relaxed) {
            Turn::Done
        } else {
            Turn::Again
        }
    }

    fn interests<'a>(&'a self, _: &mut Interests<'a>) {}

    fn effort(&self) -> Effort {
        self.effort
    }
}

#[test]
fn idle_session_is_parked_and_woken_by_its_descriptor() {
    let engine = Engine::start(4);
    let (session, mut handles) = echo(None, None);
    engine.submit(session);
    for _ in 0..20 {
        engine.wait_parked(1);
        handles.answers();
    }
    engine.wait_parked(1);
    drop(handles.stream.shutdown(std::net::Shutdown::Both));
    handles.ended();
    engine.wait_parked(0);
}

#[test]
fn parked_session_is_woken_by_its_deadline() {
    let engine = Engine::start(1);
    let until = Instant::now() + Duration::from_millis(300);
    let (session, handles) = echo(Some(until), None);
    engine.submit(session);
    engine.wait_parked(1);
    handles.ended();
    assert!(Instant::now() >= until);
    // The first turn, and the one of the deadline; the reactor's clock may make it one or two more.
    assert!(handles.turns.load(Ordering::SeqCst) <= 4);
}

/// Twenty busy sessions; told to end on drop.
struct Throng {
    turns: Vec<Arc<AtomicUsize>>,
    enough: Arc<AtomicBool>,
}

impl Throng {
    /// Each of their turns is of this kind, and takes so long.
    fn come(engine: &Engine, effort: Effort, takes: Duration) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let turns: Vec<_> = (0..20).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        for turns in &turns {
            engine.submit(Busy {
                turns: Arc::clone(turns),
                enough: Arc::clone(&enough),
                effort,
                takes,
            });
        }
        Self { turns, enough }
    }

    /// How many turns each has had.
    fn turns(&self) -> Vec<usize> {
        let turns = self.turns.iter();
        turns.map(|turns| turns.load(Ordering::Relaxed)).collect()
    }

    /// How many more each has had than `before`.
    fn since(&self, before: &[usize]) -> Vec<usize> {
        let now = self.turns().into_iter().zip(before);
        now.map(|(now, before)| now - before).collect()
    }
}

impl Drop for Throng {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

#[test]
fn more_busy_sessions_than_workers_all_go_on() {
    let engine = Engine::start(2);
    let throng = Throng::come(&engine, Effort::Work, Duration::ZERO);
    let (session, mut handles) = echo(None, None);
    engine.submit(session);
    for round in 1..=5 {
        let before = throng.turns();
        let progressed = wait_until(|| throng.since(&before).iter().all(|turns| *turns > 0));
        assert!(progressed, "one starves in round {round}");
        handles.answers();
    }
    assert!(engine.counts().threads <= 2);
}

#[test]
fn more_streams_than_workers_get_as_many_turns_each() {
    let engine = Engine::start(2);
    let throng = Throng::come(&engine, Effort::Stream, Duration::from_millis(1));
    // All of them are there.
    assert!(wait_until(|| throng.turns().iter().all(|turns| *turns > 0)));
    let before = throng.turns();
    let enough = || throng.since(&before).iter().sum::<usize>() > 400;
    assert!(wait_until(enough));
    let taken = throng.since(&before);
    let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
    assert!(most - least <= most / 2, "{taken:?}");

    let (session, mut handles) = echo(None, None);
    engine.submit(session);
    handles.answers();
}

#[test]
fn workers_are_started_on_demand_up_to_the_cap() {
    let engine = Engine::start(5);
    assert_eq!(engine.counts().threads, 1);
    let (open, gate) = unbounded();
    let sessions: Vec<_> = (0..8)
        .map(|_| {
            let (session, handles) = echo(None, Some(gate.clone()));
            engine.submit(session);
            handles
        })
        .collect();
    let running = || {
        sessions
            .iter()
            .filter(|handles| handles.turns.load(Ordering::SeqCst) > 0)
            .count()
    };
    assert!(wait_until(|| running() == 5));
    assert_eq!((running(), engine.counts().threads), (5, 5));
    drop(open);
    assert!(wait_until(|| running() == 8));
    engine.wait_parked(8);
    assert_eq!(engine.counts().threads, 5);
}

#[test]
fn panicking_session_closes_itself_alone() {
    let engine = Engine::start(2);
    let (bad, mut bad_handles) = echo(None, None);
    let (good, mut good_handles) = echo(None, None);
    engine.submit(bad);
    engine.submit(good);
    engine.wait_parked(2);
    bad_handles.stream.write_all(b"!").unwrap();
    bad_handles.ended();
    assert_eq!(bad_handles.stream.read(&mut [0]).unwrap(), 0);
    good_handles.answers();
    engine.wait_parked(1);
}

#[test]
fn sweep_wakes_and_cuts_parked_sessions() {
    let engine = Engine::start(2);
    let mut all = Vec::new();
    for standing in [KEEP, WAKE, CUT] {
        let (session, handles) = echo(None, None);
        engine.submit(session);
        all.push((standing, handles));
    }
    engine.wait_parked(3);
    let turns = |handles: &Handles| handles.turns.load(Ordering::SeqCst);
    let before: Vec<_> = all.iter().map(|(_, handles)| turns(handles)).collect();
    for (standing, handles) in &all {
        handles.standing.store(*standing, Ordering::SeqCst);
    }
    engine.mailbox.sweep();
    all[2].1.ended();
    assert!(wait_until(|| turns(&all[1].1) > before[1]));
    engine.wait_parked(2);
    assert_eq!(turns(&all[0].1), before[0]);
    assert_eq!(turns(&all[2].1), before[2]);
    all[0].1.answers();
    all[1].1.answers();
}

#[test]
fn sweep_finds_a_session_that_a_worker_has() {
    for standing in [CUT, WAKE] {
        let engine = Engine::start(1);
        let (open, gate) = unbounded();
        let (session, mut handles) = echo(None, Some(gate));
        engine.submit(session);
        assert!(wait_until(|| handles.turns.load(Ordering::SeqCst) == 1));
        handles.standing.store(standing, Ordering::SeqCst);
        engine.mailbox.sweep();
        // The sweep is over when the reactor has answered.
        engine.counts();
        drop(open);
        if standing == CUT {
            handles.ended();
        } else {
            assert!(wait_until(
                || handles.standing.load(Ordering::SeqCst) == KEEP
            ));
            handles.answers();
        }
    }
}

/// Waits for nothing but the end of a connection.
struct Watch {
    stream: TcpStream,
    turns: Arc<AtomicUsize>,
    _dropped: Dropped,
}

impl Session for Watch {
    fn turn(&mut self, cx: &mut TurnContext<'_>) -> Turn {
        self.turns.fetch_add(1, Ordering::SeqCst);
        if cx.ready.hung_up(0) {
            return Turn::Done;
        }
        Turn::Wait { until: None }
    }

    fn interests<'a>(&'a self, interests: &mut Interests<'a>) {
        interests.watch(0, self.stream.as_fd(), Want::ERRORS);
    }
}

/// A client that sends an urgent byte to a session that does not read must not keep the machine busy.
#[test]
fn urgent_data_does_not_wake_a_session_that_waits_for_the_end() {
    let engine = Engine::start(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let (dropped, drops) = bounded(1);
    engine.submit(Watch {
        stream,
        turns: Arc::clone(&turns),
        _dropped: Dropped(dropped),
    });
    engine.wait_parked(1);
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    // Something that takes its time, not a wait: other sessions come and go.
    for _ in 0..50 {
        let (session, mut handles) = echo(None, None);
        engine.submit(session);
        handles.answers();
        drop(handles.stream);
        handles.dropped.recv_timeout(SOON).expect("dropped");
    }
    assert!(turns.load(Ordering::SeqCst) <= 3, "{turns:?}");
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    drops.recv_timeout(SOON).expect("the reset was seen");
}

/// Panics when it is asked what it waits for.
struct Secretive {
    _dropped: Dropped,
}

impl Session for Secretive {
    fn turn(&mut self, _: &mut TurnContext<'_>) -> Turn {
        Turn::Wait { until: None }
    }

    fn interests<'a>(&'a self, _: &mut Interests<'a>) {
        panic!("as told by the test");
    }
}

#[test]
fn session_that_panics_between_turns_costs_no_worker() {
    let engine = Engine::start(1);
    let (dropped, drops) = bounded(1);
    engine.submit(Secretive {
        _dropped: Dropped(dropped),
    });
    drops.recv_timeout(SOON).expect("dropped");
    let (session, mut handles) = echo(None, None);
    engine.submit(session);
    handles.answers();
}

/// Runs a function each time.
struct Call<F>(F);

impl<F: FnMut(&mut Cx<'_>) -> Next> Task for Call<F> {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        (self.0)(cx)
    }
}

#[test]
fn panicking_task_is_ended_and_the_others_go_on() {
    let engine = Engine::start(1);
    let (dropped, drops) = bounded(1);
    let runs = Arc::new(AtomicUsize::new(0));
    engine.order(Order::Spawn(Box::new({
        let (runs, dropped) = (Arc::clone(&runs), Dropped(dropped));
        move || {
            Box::new(Call(move |_: &mut Cx<'_>| {
                let _keeps = &dropped;
                runs.fetch_add(1, Ordering::SeqCst);
                panic!("as told by the test")
            }))
        }
    })));
    drops.recv_timeout(SOON).expect("ended");
    let (session, mut handles) = echo(None, None);
    engine.submit(session);
    handles.answers();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[test]
fn task_that_always_has_more_to_do_leaves_room_for_others() {
    let engine = Engine::start(1);
    engine.order(Order::Spawn(Box::new(|| {
        Box::new(Call(|_: &mut Cx<'_>| Next::Again))
    })));
    let deadlines = Arc::new(AtomicUsize::new(0));
    engine.order(Order::Spawn(Box::new({
        let deadlines = Arc::clone(&deadlines);
        move || {
            Box::new(Call(move |cx: &mut Cx<'_>| {
                deadlines.fetch_add(1, Ordering::SeqCst);
                Next::Wait(Some(cx.now + Duration::from_millis(5)))
            }))
        }
    })));
    let (session, mut handles) = echo(None, None);
    engine.submit(session);
    engine.wait_parked(1);
    handles.answers();
    assert!(wait_until(|| deadlines.load(Ordering::SeqCst) > 10));
}

/// Long enough for anything here.
const SOON: Duration = Duration::from_secs(10);
