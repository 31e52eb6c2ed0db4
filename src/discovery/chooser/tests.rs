//! Scenarios of hours, with noise, in simulated time: how often the choice changes, and how soon.

use std::collections::VecDeque;

use super::*;
use crate::discovery::rules::Rules;
use crate::discovery::status::{Finding, Phase};
use crate::discovery::table::{SourceId, TableSettings};

/// What a peer does at a time, in seconds: to a probe, and to a client.
type Script = Box<dyn Fn(f64) -> Does>;

#[derive(Clone, Copy, PartialEq)]
enum Does {
    /// Answers after about so many milliseconds, and serves.
    Serve(f64),
    /// Answers greetings, and refuses requests that others serve.
    Lie(f64),
    /// Accepts and says nothing.
    Hold,
    /// Nobody listens.
    Refuse,
    /// Packets to it or from it are lost.
    Lose,
}

struct Peer {
    address: SocketAddr,
    script: Script,
}

struct Sim {
    table: Table,
    chooser: Chooser,
    random: fastrand::Rng,
    start: Instant,
    now: Instant,
    peers: Vec<Peer>,
    probes: Vec<(Instant, SocketAddr, Finding)>,
    /// Answers to clients vary by so much, up and down.
    noise: f64,
    /// Between two clients; none come without it.
    clients: Option<Duration>,
    next_client: Instant,
    chosen: Option<SocketAddr>,
    switches: Vec<(f64, usize, Why)>,
    /// Clients whose first attempt failed.
    hurt: usize,
    probed: Vec<usize>,
}

impl Sim {
    fn new(seed: u64, prefer: &[usize], scripts: Vec<Script>) -> Self {
        let start = Instant::now();
        let settings = TableSettings {
            seed,
            ..TableSettings::default()
        };
        let rules = Rules {
            prefer: prefer
                .iter()
                .map(|n| at(*n).to_string().parse().unwrap())
                .collect(),
            ..Rules::default()
        };
        let peers: Vec<Peer> = scripts
            .into_iter()
            .enumerate()
            .map(|(n, script)| Peer {
                address: at(n),
                script,
            })
            .collect();
        let mut table = Table::new(settings, rules, start);
        let flag = SourceId::new(0).unwrap();
        table.set_source(flag, peers.iter().map(|peer| peer.address), start);
        Self {
            table,
            chooser: Chooser::new(settings.interval),
            random: fastrand::Rng::with_seed(seed),
            start,
            now: start,
            probed: vec![0; peers.len()],
            peers,
            probes: Vec::new(),
            noise: 0.3,
            clients: None,
            next_client: start,
            chosen: None,
            switches: Vec::new(),
            hurt: 0,
        }
    }

    fn with_clients(mut self, every: f64) -> Self {
        self.clients = Some(Duration::from_secs_f64(every));
        self
    }

    fn seconds(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }

    fn chosen(&self) -> usize {
        number(self.chosen.expect("one is chosen"))
    }

    /// What the peer does now, with noise.
    fn does(&mut self, peer: usize) -> Does {
        let noise = 1.0 + self.noise * (2.0 * self.random.f64() - 1.0);
        match (self.peers[peer].script)(self.seconds()) {
            Does::Serve(ms) => Does::Serve(ms * noise),
            Does::Lie(ms) => Does::Lie(ms * noise),
            other => other,
        }
    }

    /// Lets so many seconds pass, from one event to the next.
    fn run(&mut self, seconds: f64) -> &mut Self {
        let end = self.now + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.now = self.next_event().min(end);
            self.finish_probes();
            self.start_probes();
            while self.clients.is_some() && self.next_client <= self.now {
                self.client();
                self.next_client += self.clients.unwrap();
            }
            self.choose();
        }
        self
    }

    /// When something happens next. Whoever asks a chooser does so every quarter of the interval at least.
    fn next_event(&self) -> Instant {
        let probes = self.probes.iter().map(|(at, ..)| *at);
        let clients = self.clients.map(|_| self.next_client);
        let next = probes
            .chain(clients)
            .chain(self.table.next_due())
            .chain(self.chooser.next())
            .chain([self.now + Duration::from_secs(15)])
            .min();
        // Times in the table are of tenths of a second.
        next.unwrap().max(self.now + Duration::from_millis(100))
    }

    /// The machine sleeps: time passes, and nothing happens.
    fn sleep(&mut self, seconds: f64) -> &mut Self {
        self.now += Duration::from_secs_f64(seconds);
        self.next_client = self.now;
        self
    }

    fn start_probes(&mut self) {
        for address in self.table.due(self.now, 100) {
            let peer = number(address);
            self.probed[peer] += 1;
            let ms = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
            let (took, finding) = match self.does(peer) {
                Does::Serve(took) | Does::Lie(took) => {
                    (ms(took), Finding::answered(Reason::Answered(0), ms(took)))
                }
                Does::Hold => (ms(5000.0), Finding::timed_out(Phase::Greeting)),
                Does::Lose => (ms(5000.0), Finding::timed_out(Phase::Connecting)),
                Does::Refuse => (
                    ms(1.0),
                    Finding::Failed {
                        reason: Reason::Refused,
                    },
                ),
            };
            self.probes.push((self.now + took, address, finding));
        }
    }

    fn finish_probes(&mut self) {
        let now = self.now;
        let (done, rest) = std::mem::take(&mut self.probes)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        self.probes = rest;
        let mut done: Vec<_> = done;
        done.sort_by_key(|(at, ..)| *at);
        for (_, address, finding) in done {
            self.table.record(address, finding, now);
        }
    }

    /// A client tries the chosen one and then the others. That one is silent is known at once here.
    fn client(&mut self) {
        let Some(chosen) = self.chosen else { return };
        let others: Vec<_> = self.table.valid_best_first().collect();
        let mut candidates: VecDeque<_> = others.into_iter().filter(|one| *one != chosen).collect();
        candidates.push_front(chosen);
        let mut refused_by = Vec::new();
        let now = self.now;
        for (place, candidate) in candidates.into_iter().take(4).enumerate() {
            let does = self.does(number(candidate));
            if place == 0 && !matches!(does, Does::Serve(_)) {
                self.hurt += 1;
            }
            let mut fail = |reason| {
                self.table.live_failure(candidate, reason, now, now);
            };
            match does {
                Does::Refuse => fail(Reason::Refused),
                Does::Hold => fail(Reason::TimedOut(Phase::Greeting)),
                Does::Lose => fail(Reason::TimedOut(Phase::Connecting)),
                Does::Lie(_) => {
                    self.table.live_success(candidate, None, now);
                    refused_by.push(candidate);
                }
                Does::Serve(ms) => {
                    let took = Duration::from_secs_f64(ms / 1000.0);
                    self.table.live_success(candidate, Some(took), now);
                    self.table.live_served(candidate, now);
                    for liar in refused_by {
                        self.table
                            .live_failure(liar, Reason::RequestRefused(4), now, now);
                    }
                    return;
                }
            }
            self.choose();
        }
        for candidate in refused_by {
            self.table.live_refusal(candidate, now, now);
        }
    }

    fn choose(&mut self) {
        let change = self
            .chooser
            .decide(&self.table, self.chosen, |_| true, self.now);
        if let Some((peer, why)) = change {
            self.chosen = Some(peer);
            self.table.set_selected(Some(peer), self.now);
            self.switches.push((self.seconds(), number(peer), why));
        }
    }

    /// When the choice changed after the first one, to whom, and why.
    fn later_switches(&self) -> &[(f64, usize, Why)] {
        &self.switches[1..]
    }

    /// The one change after the first choice.
    #[track_caller]
    fn only_switch(&self) -> (f64, usize, Why) {
        match self.later_switches() {
            [one] => *one,
            other => panic!("{other:?}"),
        }
    }
}

fn at(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap()], 1080))
}

fn number(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(address) => address.ip().octets()[3].into(),
        SocketAddr::V6(_) => unreachable!(),
    }
}

fn always(does: Does) -> Script {
    Box::new(move |_| does)
}

fn serve(ms: f64) -> Script {
    always(Does::Serve(ms))
}

/// The first until this second, then the other.
fn then(seconds: f64, first: Does, other: Does) -> Script {
    Box::new(move |t| if t < seconds { first } else { other })
}

/// Does the first for so long, then the other for so long, and so on.
fn in_turns(first: (f64, Does), other: (f64, Does)) -> Script {
    Box::new(move |t| {
        if t % (first.0 + other.0) < first.0 {
            first.1
        } else {
            other.1
        }
    })
}

const SEEDS: u64 = 3;
const HOUR: f64 = 3600.0;

/// The hold time of the default interval.
const HELD: f64 = 180.0;

#[test]
fn equal_peers_never_take_turns() {
    for seed in 0..SEEDS {
        for (noise, clients) in [(0.0, None), (0.3, None), (0.8, Some(5.0))] {
            let mut sim = Sim::new(seed, &[], (0..6).map(|_| serve(60.0)).collect());
            sim.noise = noise;
            sim.clients = clients.map(Duration::from_secs_f64);
            sim.run(3.0 * HOUR);
            assert_eq!(sim.later_switches(), [], "seed {seed}, noise {noise}");
            assert_eq!(sim.hurt, 0);
        }
    }
}

#[test]
fn nearly_equal_peers_never_take_turns() {
    for seed in 0..SEEDS {
        let scripts = [50.0, 55.0, 60.0, 65.0].map(serve);
        let mut sim = Sim::new(seed, &[], scripts.into());
        sim.run(6.0 * HOUR);
        assert!(sim.later_switches().len() <= 1, "{:?}", sim.switches);
    }
}

#[test]
fn one_that_gets_slow_is_left_once() {
    for seed in 0..SEEDS {
        // From 20 to 420 ms within an hour.
        let slower = |t: f64| Does::Serve(20.0 + 400.0 * (t / HOUR).min(1.0));
        let mut sim = Sim::new(seed, &[], vec![Box::new(slower), serve(90.0)]);
        sim.noise = 0.2;
        sim.run(300.0);
        assert_eq!(sim.chosen(), 0);
        sim.run(5.0 * HOUR);
        let (when, to, why) = sim.only_switch();
        assert_eq!(to, 1);
        assert!(matches!(why, Why::Better { .. }));
        // With half as long again as the other it is clearly worse, at 17 minutes, and then for the hold time.
        assert!((1100.0..=1500.0).contains(&when), "{when}");
    }
}

#[test]
fn one_that_gets_slow_at_once_is_left_after_the_hold_time() {
    for seed in 0..SEEDS {
        let slow = then(HOUR, Does::Serve(20.0), Does::Serve(600.0));
        let mut sim = Sim::new(seed, &[], vec![slow, serve(40.0)]);
        sim.run(2.0 * HOUR);
        let (when, to, _) = sim.only_switch();
        assert_eq!(to, 1);
        let after = when - HOUR;
        // The hold time, and two or three probes of the one in use, 15 s apart, until it shows.
        assert!((HELD..=HELD + 60.0).contains(&after), "{after}");
    }
}

#[test]
fn one_that_dies_is_left_at_once() {
    for (does, clients, within) in [
        // The very client that meets it is enough.
        (Does::Refuse, Some(1.0), 1.2),
        (Does::Hold, Some(1.0), 1.2),
        // The first one only makes it a suspect, which another one's answer disproves.
        (Does::Lose, Some(1.0), 8.0),
        // Without clients the probes of the one in use tell, every 15 s.
        (Does::Refuse, None, 17.0),
        (Does::Hold, None, 22.0),
        (Does::Lose, None, 28.0),
    ] {
        for seed in 0..SEEDS {
            let dies = then(HOUR, Does::Serve(10.0), does);
            let mut sim = Sim::new(seed, &[], vec![dies, serve(30.0), serve(50.0)]);
            sim.clients = clients.map(Duration::from_secs_f64);
            sim.run(HOUR + 60.0);
            let (when, to, why) = sim.only_switch();
            assert_eq!(to, 1, "the best of the others");
            let after = when - HOUR;
            assert!((0.0..=within).contains(&after), "{after} s: {why}");
            sim.run(HOUR);
            assert_eq!(sim.later_switches().len(), 1);
        }
    }
}

#[test]
fn own_link_down_changes_nothing_and_is_over_at_once() {
    for clients in [None, Some(1.0)] {
        for seed in 0..SEEDS {
            let link = |ms: f64| then_back(HOUR, 2.0 * HOUR, Does::Serve(ms), Does::Lose);
            let mut sim = Sim::new(seed, &[], vec![link(10.0), link(30.0), link(50.0)]);
            sim.clients = clients.map(Duration::from_secs_f64);
            sim.run(HOUR + 60.0);
            assert!(sim.table.link_down());
            let probed: usize = sim.probed.iter().sum();
            sim.run(HOUR - 61.0);
            let probes = sim.probed.iter().sum::<usize>() - probed;
            assert!(probes <= 3 * 60 + 10, "{probes} in the dark");
            assert!(sim.table.link_down());
            // Whoever is heard first: the next probe, a minute away at most, or the next client.
            sim.run(if clients.is_some() { 3.0 } else { 75.0 });
            assert!(!sim.table.link_down());
            sim.run(HOUR);
            assert_eq!(sim.later_switches(), [], "seed {seed}");
            assert_eq!(sim.chosen(), 0);
            let good = sim.table.count(Status::Valid);
            assert_eq!(good, 3);
        }
    }
}

/// The other between these seconds, the first before and after.
fn then_back(from: f64, to: f64, first: Does, other: Does) -> Script {
    Box::new(move |t| {
        if (from..to).contains(&t) {
            other
        } else {
            first
        }
    })
}

#[test]
fn a_tarpit_is_left_at_once_and_not_taken_again() {
    for seed in 0..SEEDS {
        // It answers, holds everybody for a while, answers again: a proxy that is overloaded.
        let tarpit = in_turns((900.0, Does::Serve(10.0)), (60.0, Does::Hold));
        let mut sim = Sim::new(seed, &[], vec![tarpit, serve(40.0)]).with_clients(1.0);
        sim.run(6.0 * HOUR);
        let (when, to, _) = sim.only_switch();
        assert_eq!((to, sim.hurt), (1, 1), "one client met it");
        assert!((900.0..=901.2).contains(&when), "{when}");
    }
}

#[test]
fn a_liar_is_found_out_and_hardly_tried_again() {
    for seed in 0..SEEDS {
        let scripts = vec![always(Does::Lie(5.0)), serve(150.0)];
        let mut sim = Sim::new(seed, &[], scripts).with_clients(1.0);
        sim.run(60.0);
        let (when, to, why) = sim.only_switch();
        assert_eq!((to, why), (1, Why::Distrusted));
        assert_eq!(sim.hurt, 3, "three clients needed their second try");
        assert!(when <= 4.0, "{when}");
        // It looks far better to every probe. After 10, 20, 40, 80 and 160 minutes it gets another chance, when it has looked
        // good for the hold time.
        sim.clients = Some(Duration::from_secs(10));
        sim.run(24.0 * HOUR);
        let returns = sim.later_switches().iter().filter(|one| one.1 == 0).count();
        assert!((1..=12).contains(&returns), "{returns} in a day");
        assert_eq!(sim.hurt, 3 + 3 * returns);
    }
}

#[test]
fn a_liar_that_is_mended_is_taken_again() {
    let mended = then(HOUR, Does::Lie(5.0), Does::Serve(5.0));
    let mut sim = Sim::new(1, &[], vec![mended, serve(150.0)]).with_clients(1.0);
    sim.run(4.0 * HOUR);
    assert_eq!(sim.chosen(), 0);
}

#[test]
fn destinations_that_are_down_move_the_choice_twice_an_hour_at_most() {
    // Everybody refuses what the only client asks for.
    let scripts = (0..5).map(|_| always(Does::Lie(20.0))).collect();
    let mut sim = Sim::new(3, &[], scripts).with_clients(2.0);
    sim.run(10.0 * HOUR);
    let switches = sim.later_switches().len();
    assert!(switches <= 20, "{switches}");
}

#[test]
fn a_flapping_one_is_given_up() {
    for (up, down) in [(60.0, 30.0), (150.0, 30.0), (600.0, 60.0)] {
        for seed in 0..SEEDS {
            let flaps = in_turns((up, Does::Serve(20.0)), (down, Does::Refuse));
            let mut sim = Sim::new(seed, &[], vec![flaps, serve(60.0)]).with_clients(5.0);
            sim.run(12.0 * HOUR);
            // Its pauses are shorter than the time between two probes: it is found out when it is chosen, after 3, 6, 12, 24,
            // 48, 96 and 192 minutes.
            let returns = sim.later_switches().iter().filter(|one| one.1 == 0).count();
            assert!(returns <= 7, "up {up}: {:?}", sim.switches);
            assert_eq!(sim.hurt, returns + 1);
        }
    }
}

#[test]
fn a_far_better_newcomer_takes_over_after_the_hold_time() {
    for seed in 0..SEEDS {
        let newcomer = then(HOUR, Does::Refuse, Does::Serve(10.0));
        let mut sim = Sim::new(seed, &[], vec![newcomer, serve(200.0)]);
        sim.run(3.0 * HOUR);
        let (when, to, why) = sim.only_switch();
        let Why::Better { score, than, .. } = why else {
            panic!("{why}")
        };
        assert!(to == 0 && score >= 1.25 * than, "{why}");
        // It is found within sixteen minutes, the longest pause of one that never answered.
        let after = when - HOUR;
        assert!(
            (HELD..=16.0 * 66.0 + HELD + 70.0).contains(&after),
            "{after}"
        );
    }
}

#[test]
fn a_newcomer_that_is_a_little_better_does_not() {
    for seed in 0..SEEDS {
        let newcomer = then(HOUR, Does::Refuse, Does::Serve(60.0));
        let mut sim = Sim::new(seed, &[], vec![newcomer, serve(70.0)]);
        sim.run(6.0 * HOUR);
        assert_eq!(sim.later_switches(), []);
    }
}

#[test]
fn a_preferred_one_is_chosen_whatever_its_latency_and_returned_to() {
    for seed in 0..SEEDS {
        let dies = then_back(HOUR, 2.0 * HOUR, Does::Serve(300.0), Does::Refuse);
        let mut sim = Sim::new(seed, &[1], vec![serve(10.0), dies]).with_clients(1.0);
        sim.run(HOUR - 1.0);
        assert_eq!(sim.chosen(), 1);
        let first = sim.switches.clone();
        assert!(
            first.len() <= 2 && first.last().unwrap().0 <= 1.0,
            "{first:?}"
        );
        sim.run(3.0 * HOUR);
        let later = &sim.switches[first.len()..];
        let [(left, 0, Why::Failed(..)), (back, 1, Why::Preferred)] = later else {
            panic!("{later:?}")
        };
        assert!((HOUR..=HOUR + 1.2).contains(left));
        // Its back-off is sixteen minutes at most; then it has to be good for the hold time.
        let after = back - 2.0 * HOUR;
        assert!(
            (HELD..=16.0 * 66.0 + HELD + 1.0).contains(&after),
            "{after}"
        );
    }
}

#[test]
fn a_preferred_one_that_flaps_is_returned_to_less_and_less() {
    for seed in 0..SEEDS {
        let flaps = in_turns((120.0, Does::Serve(10.0)), (20.0, Does::Refuse));
        let mut sim = Sim::new(seed, &[0], vec![flaps, serve(50.0)]).with_clients(1.0);
        sim.run(6.0 * HOUR);
        let preferred: Vec<f64> = sim
            .later_switches()
            .iter()
            .filter(|one| one.1 == 0)
            .map(|one| one.0)
            .collect();
        assert!((1..=7).contains(&preferred.len()), "{:?}", sim.switches);
        for pair in preferred.windows(3) {
            let [first, second] = [pair[1] - pair[0], pair[2] - pair[1]];
            assert!(second > 1.4 * first, "{preferred:?}");
        }
        assert!(sim.hurt <= preferred.len() + 1);
    }
}

#[test]
fn the_second_preference_need_not_wait_for_the_first() {
    let first = in_turns((100.0, Does::Serve(10.0)), (20.0, Does::Refuse));
    let scripts = vec![
        serve(10.0),
        first,
        then(600.0, Does::Refuse, Does::Serve(90.0)),
    ];
    let mut sim = Sim::new(5, &[1, 2], scripts);
    sim.run(2.0 * HOUR);
    assert_eq!(sim.chosen(), 2);
}

#[test]
fn time_that_jumps_moves_nothing_by_itself() {
    for seed in 0..SEEDS {
        // Just before the machine sleeps, the other one begins to be clearly better, for a minute.
        let slow = then_back(HOUR, HOUR + 60.0, Does::Serve(20.0), Does::Serve(300.0));
        let mut sim = Sim::new(seed, &[], vec![slow, serve(40.0)]);
        sim.run(HOUR + 50.0).sleep(8.0 * HOUR).run(HOUR);
        assert_eq!(sim.later_switches(), [], "seed {seed}");
        // Everybody is asked again within seconds.
        sim.sleep(8.0 * HOUR).run(10.0);
        for n in [0, 1] {
            let row = sim.table.get(at(n), sim.now).unwrap();
            assert!(row.last_probed.unwrap() <= Duration::from_secs(10));
        }
    }
    // A clock that stands still, or comes a little late, is no harm either.
    let mut sim = Sim::new(1, &[], vec![serve(20.0), serve(40.0)]);
    sim.run(100.0);
    let late = sim.now - Duration::from_secs(50);
    assert_eq!(
        sim.chooser.decide(&sim.table, sim.chosen, |_| true, late),
        None
    );
    sim.table
        .record(at(0), Finding::timed_out(Phase::Connecting), late);
    sim.table.live_success(at(1), None, late);
    sim.run(100.0);
    assert_eq!(sim.table.count(Status::Valid), 2);
}

#[test]
fn the_one_in_use_is_probed_more_often_unless_clients_prove_it() {
    let two = || vec![serve(20.0), serve(25.0)];
    let mut idle = Sim::new(1, &[], two());
    idle.run(2.0 * HOUR);
    let (chosen, other) = (idle.chosen(), 1 - idle.chosen());
    assert!(
        (440..=520).contains(&idle.probed[chosen]),
        "{:?}",
        idle.probed
    );
    assert!(
        (110..=130).contains(&idle.probed[other]),
        "{:?}",
        idle.probed
    );
    let mut busy = Sim::new(1, &[], two()).with_clients(10.0);
    busy.run(2.0 * HOUR);
    assert!(busy.probed[busy.chosen()] <= 2, "{:?}", busy.probed);
}

#[test]
fn one_that_is_not_usable_is_never_chosen() {
    let mut sim = Sim::new(1, &[0], vec![serve(5.0), serve(50.0)]);
    sim.run(60.0);
    let mut chooser = Chooser::new(Duration::from_secs(60));
    let choice = |chooser: &mut Chooser, chosen| {
        chooser.decide(&sim.table, chosen, |peer| peer != at(0), sim.now)
    };
    assert_eq!(choice(&mut chooser, None), Some((at(1), Why::First)));
    assert_eq!(choice(&mut chooser, Some(at(1))), None);
    assert_eq!(choice(&mut chooser, Some(at(9))), Some((at(1), Why::Gone)));
}
