//! Every rule of the table, with the time passed in.

use super::super::status::{Phase, Reason};
use super::*;
use std::net::IpAddr;

const FLAG: SourceId = SourceId(0);
const FILE: SourceId = SourceId(1);

/// A table without jitter, a clock, and the addresses `10.0.0.n:1080`.
struct World {
    table: Table,
    now: Instant,
}

impl World {
    fn new(addresses: u32) -> Self {
        let settings = TableSettings {
            jitter_percent: 0,
            rate: 1_000_000,
            ..TableSettings::default()
        };
        let now = Instant::now();
        let mut table = Table::new(settings, Rules::default(), now);
        table.set_source(FLAG, (1..=addresses).map(at), now);
        Self { table, now }
    }

    /// As many addresses, all valid with a latency of n * 10 ms.
    fn all_valid(addresses: u32) -> Self {
        let mut world = Self::new(addresses);
        for address in world.due() {
            let n = u32::from_be_bytes(match address.ip() {
                IpAddr::V4(ip) => ip.octets(),
                IpAddr::V6(_) => unreachable!(),
            }) & 0xFF_FFFF;
            world.record(address, valid(n * 10));
        }
        world
    }

    fn due(&mut self) -> Vec<SocketAddr> {
        self.table.due(self.now, usize::MAX)
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn record(&mut self, address: SocketAddr, finding: Finding) -> Option<Change> {
        self.table.record(address, finding, self.now)
    }

    /// Lets the time pass to when `address` is due, probes it, and says how many seconds that took.
    fn probe(&mut self, address: SocketAddr, finding: Finding) -> f64 {
        let before = self.now;
        self.now += self.row(address).due_in.unwrap();
        for other in self.due() {
            if other != address {
                self.table.cancel(other);
            }
        }
        assert!(self.row(address).in_flight);
        let waited = self.now - before;
        self.record(address, finding);
        waited.as_secs_f64()
    }

    fn row(&self, address: SocketAddr) -> Row {
        self.table.get(address, self.now).unwrap()
    }

    fn status(&self, address: SocketAddr) -> Status {
        self.row(address).status
    }

    fn due_in(&self, address: SocketAddr) -> f64 {
        self.row(address).due_in.unwrap().as_secs_f64()
    }

    fn best(&self) -> Vec<SocketAddr> {
        self.table.valid_best_first().collect()
    }

    /// Counts, ranking and queue agree with the entries.
    fn check(&self) {
        self.check_counts();
        assert_eq!(self.best().len(), self.table.count(Status::Valid));
    }

    /// The same where rules exclude valid ones from the ranking.
    fn check_counts(&self) {
        let rows: Vec<Row> = self.table.snapshot(self.now).collect();
        for status in Status::ALL {
            let count = rows.iter().filter(|row| row.status == status).count();
            assert_eq!(self.table.count(status), count, "{status}");
        }
        let queue = &self.table.queue;
        let waiting = queue.selected.len() + queue.proxies.len() + queue.others.len();
        assert_eq!(waiting + self.table.in_flight(), rows.len());
        assert_eq!(
            rows.iter().filter(|row| row.in_flight).count(),
            self.table.in_flight()
        );
        for row in rows {
            assert_eq!(self.table.get(row.address, self.now), Some(row));
        }
    }
}

fn at(n: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0A00_0000 + n).into(), 1080)
}

fn valid(millis: u32) -> Finding {
    Finding::answered(Reason::Answered(0), Duration::from_millis(millis.into()))
}

fn failed(reason: Reason) -> Finding {
    Finding::Failed { reason }
}

const REFUSED: Finding = Finding::Failed {
    reason: Reason::Refused,
};
const SILENT: Finding = Finding::timed_out(Phase::Connecting);

#[test]
fn new_addresses_are_due_at_once_and_once() {
    let mut world = World::new(3);
    assert_eq!(world.table.next_due(), Some(world.now));
    assert_eq!(world.table.due(world.now, 2).len(), 2);
    assert_eq!(world.due().len(), 1);
    assert_eq!(world.due(), []);
    assert_eq!(world.table.next_due(), None);
    assert_eq!(world.table.in_flight(), 3);
    // Naming them again changes nothing.
    world.table.set_source(FLAG, (1..=3).map(at), world.now);
    assert_eq!(world.due(), []);
    world.check();
}

#[test]
fn one_entry_whatever_way_an_address_is_written() {
    let mut world = World::new(1);
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:1080".parse().unwrap();
    world
        .table
        .set_source(FILE, [mapped, at(1), at(1)], world.now);
    assert_eq!(world.table.len(), 1);
    let row = world.table.get(mapped, world.now).unwrap();
    assert_eq!(row.address, at(1));
    assert_eq!(row.sources.iter().collect::<Vec<_>>(), [FLAG, FILE]);
    assert_eq!(world.due(), [at(1)]);
}

#[test]
fn findings_become_statuses() {
    let table = [
        (valid(5), Status::Valid, 60.0, 0),
        (
            Finding::answered(Reason::Answered(0xFF), Duration::ZERO),
            Status::AuthenticationRequired,
            60.0,
            0,
        ),
        (
            Finding::answered(Reason::ClosedEarly(0), Duration::ZERO),
            Status::NotAProxy,
            60.0,
            1,
        ),
        (REFUSED, Status::NotListening, 60.0, 1),
        (SILENT, Status::NotListening, 60.0, 1),
        (
            Finding::Local {
                reason: Reason::NoDescriptor,
            },
            Status::Unknown,
            5.0,
            0,
        ),
        (
            Finding::Local {
                reason: Reason::NoRoute,
            },
            Status::Unknown,
            5.0,
            0,
        ),
    ];
    for (finding, status, due_in, failures) in table {
        let mut world = World::new(1);
        world.pass(3.0);
        world.due();
        world.pass(1.0);
        let change = world.record(at(1), finding);
        let row = world.row(at(1));
        assert_eq!((row.status, row.reason), (status, finding.reason()));
        assert_eq!(row.failures, failures, "{finding:?}");
        assert_eq!(world.due_in(at(1)), due_in, "{finding:?}");
        assert_eq!(
            change.map(|change| change.to),
            (status != Status::Unknown).then_some(status)
        );
        world.pass(2.0);
        let ages = world.row(at(1));
        let probed = (status != Status::Unknown).then_some(Duration::from_secs(2));
        assert_eq!(ages.last_probed, probed);
        assert_eq!(ages.last_valid, probed.filter(|_| status == Status::Valid));
        world.check();
    }
}

#[test]
fn dead_addresses_are_asked_less_and_less() {
    for finding in [REFUSED, Finding::answered(Reason::Reset, Duration::ZERO)] {
        let mut world = World::new(1);
        let waits: Vec<f64> = (0..8).map(|_| world.probe(at(1), finding)).collect();
        assert_eq!(waits, [0.0, 60.0, 120.0, 240.0, 480.0, 960.0, 960.0, 960.0]);
        assert_eq!(world.row(at(1)).failures, 8);
        world.probe(at(1), valid(1));
        assert_eq!(world.row(at(1)).failures, 0);
        assert_eq!(world.due_in(at(1)), 60.0);
    }
    let mut world = World::new(1);
    for _ in 0..300 {
        world.probe(at(1), REFUSED);
    }
    assert_eq!(world.row(at(1)).failures, 255);
    assert_eq!(world.due_in(at(1)), 960.0);
}

#[test]
fn a_valid_peer_that_fails_is_asked_again_soon() {
    let mut world = World::all_valid(1);
    assert_eq!(world.probe(at(1), REFUSED), 60.0);
    assert_eq!(world.status(at(1)), Status::NotListening);
    let waits: Vec<f64> = (0..4).map(|_| world.probe(at(1), REFUSED)).collect();
    assert_eq!(waits, [5.0, 60.0, 120.0, 240.0]);
}

#[test]
fn authentication_required_keeps_the_interval() {
    let mut world = World::new(1);
    let finding = Finding::answered(Reason::Answered(2), Duration::from_millis(1));
    let waits: Vec<f64> = (0..4).map(|_| world.probe(at(1), finding)).collect();
    assert_eq!(waits, [0.0, 60.0, 60.0, 60.0]);
    assert_eq!(world.best(), []);
}

#[test]
fn an_address_without_a_route_is_asked_less_and_less() {
    let mut world = World::new(1);
    let reason = Reason::NoRoute;
    let delays: Vec<f64> = (0..7)
        .map(|_| world.probe(at(1), Finding::Local { reason }))
        .collect();
    assert_eq!(delays, [0.0, 5.0, 5.0, 10.0, 20.0, 40.0, 60.0]);
}

#[test]
fn local_errors_change_nothing() {
    let mut world = World::all_valid(2);
    world.probe(at(1), REFUSED);
    world.probe(at(1), REFUSED);
    for n in [1, 2] {
        let before = world.row(at(n));
        for reason in [
            Reason::NoDescriptor,
            Reason::NoRoute,
            Reason::OwnAddress,
            Reason::LocalError(13),
        ] {
            world.probe(at(n), Finding::Local { reason });
            let change = world
                .table
                .live_failure(at(n), reason, world.now, world.now);
            assert_eq!(change, None);
            let row = world.row(at(n));
            assert_eq!(
                (row.status, row.reason, row.failures, row.latency),
                (
                    before.status,
                    before.reason,
                    before.failures,
                    before.latency
                )
            );
            assert!(world.due_in(at(n)) <= 60.0);
        }
    }
    world.check();
}

#[test]
fn a_cancelled_probe_is_due_as_before() {
    let mut world = World::all_valid(2);
    world.pass(60.0);
    let before = world.row(at(1));
    assert_eq!(world.due().len(), 2);
    world.pass(3.0);
    world.table.cancel(at(1));
    let row = world.row(at(1));
    assert_eq!(row.due_in, Some(Duration::ZERO));
    assert_eq!(
        (row.status, row.failures, row.latency),
        (before.status, before.failures, before.latency)
    );
    assert_eq!(world.due(), [at(1)]);
    world.table.cancel_all();
    assert_eq!(world.table.in_flight(), 0);
    assert_eq!(world.due().len(), 2);
    world.table.cancel(at(99));
    world.check();
}

#[test]
fn proxies_go_first_then_the_longest_due() {
    let mut world = World::new(4);
    world.due();
    world.record(at(4), valid(1));
    for n in [3, 1, 2] {
        world.pass(0.5);
        world.record(at(n), REFUSED);
    }
    world.pass(100.0);
    assert_eq!(world.table.due(world.now, 2), [at(4), at(3)]);
    assert_eq!(world.table.due(world.now, 9), [at(1), at(2)]);
}

#[test]
fn the_best_come_first() {
    let mut world = World::all_valid(3);
    assert_eq!(world.best(), [at(1), at(2), at(3)]);
    let generation = world.table.generation();
    // Smoothed: one slow answer moves a quarter of the way, 10 ms to 13 ms.
    world.probe(at(1), valid(22));
    assert_eq!(world.row(at(1)).latency, Some(Duration::from_millis(13)));
    assert_eq!(world.table.generation(), generation, "same order");
    world.probe(at(1), valid(400));
    assert_eq!(world.best(), [at(2), at(3), at(1)]);
    assert_ne!(world.table.generation(), generation);
    let generation = world.table.generation();
    world.probe(at(2), REFUSED);
    assert_eq!(world.best(), [at(3), at(1)]);
    assert_ne!(world.table.generation(), generation);
    world.check();
}

#[test]
fn equal_peers_are_ordered_by_address() {
    let mut world = World::new(5);
    for address in world.due().into_iter().rev() {
        world.record(address, valid(7));
    }
    assert_eq!(world.best(), [1, 2, 3, 4, 5].map(at));
}

#[test]
fn generation_stays_while_nothing_changes() {
    let mut world = World::all_valid(4);
    world.table.set_source(FILE, (5..9).map(at), world.now);
    let generation = world.table.generation();
    for round in 0..10 {
        world.pass(60.0);
        for address in world.due() {
            let n = (1..9).find(|n| at(*n) == address).unwrap();
            let finding = if n > 4 {
                REFUSED
            } else {
                valid(n * 10 + round % 2)
            };
            world.record(address, finding);
        }
        world.table.live_success(at(2), None, world.now);
    }
    assert_eq!(world.table.generation(), generation);
}

#[test]
fn live_failures_count_at_once() {
    // reason, status after, due in
    let table = [
        (Reason::Refused, Status::NotListening, 5.0),
        (Reason::Reset, Status::Valid, 0.0),
        (Reason::ClosedEarly(0), Status::Valid, 0.0),
        (Reason::TimedOut(Phase::Greeting), Status::Valid, 0.0),
        // The others just answered, so this is the peer's fault.
        (
            Reason::TimedOut(Phase::Connecting),
            Status::NotListening,
            5.0,
        ),
    ];
    for (reason, status, due_in) in table {
        let mut world = World::all_valid(3);
        world.pass(1.0);
        let generation = world.table.generation();
        let started = world.now - Duration::from_secs(2);
        let change = world.table.live_failure(at(1), reason, started, world.now);
        let row = world.row(at(1));
        assert_eq!((row.status, row.reason, row.failures), (status, reason, 1));
        assert_eq!(change.is_some(), status != Status::Valid);
        assert_eq!(world.due_in(at(1)), due_in, "{reason}");
        assert_eq!(world.best()[..2], [at(2), at(3)], "{reason}");
        assert_ne!(world.table.generation(), generation);
        if status == Status::Valid {
            assert_eq!(world.best()[2], at(1));
            // The probe that follows takes it back among the good ones, with a lower score for a while.
            let before = world.row(at(1));
            world.probe(at(1), valid(10));
            let row = world.row(at(1));
            assert_eq!((row.failures, row.recent_failures.round()), (0, 1.0));
            assert_eq!(
                (before.good_for, row.good_for),
                (None, Some(Duration::ZERO))
            );
            assert_eq!(world.best()[2], at(1));
            for _ in 0..60 {
                for n in [1, 2, 3] {
                    world.probe(at(n), valid(n * 10));
                }
            }
            assert_eq!(world.best()[0], at(1));
        }
        world.check();
    }
}

#[test]
fn a_live_failure_during_a_probe_leaves_it_in_flight() {
    let mut world = World::all_valid(2);
    world.pass(60.0);
    world.due();
    world
        .table
        .live_failure(at(1), Reason::Refused, world.now, world.now);
    assert!(world.row(at(1)).in_flight);
    world.check();
    assert_eq!(world.due(), []);
    world.record(at(1), valid(1));
    assert_eq!(world.status(at(1)), Status::Valid);
}

#[test]
fn live_success_puts_off_probes_but_one_an_interval() {
    let mut world = World::all_valid(2);
    world.table.set_selected(Some(at(1)), world.now);
    assert_eq!(world.due_in(at(1)), 15.0);
    world.pass(10.0);
    world.table.live_success(at(1), None, world.now);
    assert_eq!(world.due_in(at(1)), 30.0);
    assert_eq!(world.row(at(1)).last_valid, Some(Duration::ZERO));
    for _ in 0..5 {
        world.pass(10.0);
        world.table.live_success(at(1), None, world.now);
    }
    assert_eq!(world.due_in(at(1)), 0.0);
    // One that is not valid is asked now.
    world.probe(at(2), REFUSED);
    world.table.live_success(at(2), None, world.now);
    assert_eq!(world.due_in(at(2)), 0.0);
    assert_eq!(world.status(at(2)), Status::NotListening);
}

#[test]
fn the_selected_one_is_not_asked_while_clients_measure_it() {
    let mut world = World::all_valid(2);
    world.table.set_selected(Some(at(1)), world.now);
    let took = Duration::from_millis(90);
    for _ in 0..60 {
        world.pass(10.0);
        assert!(!world.due().contains(&at(1)));
        world.table.live_success(at(1), Some(took), world.now);
    }
    let row = world.row(at(1));
    assert!(row.latency.unwrap() > Duration::from_millis(89), "{row:?}");
    assert_eq!(row.last_probed, Some(Duration::from_secs(600)));
    // Half a minute after the last client.
    assert_eq!(world.due_in(at(1)), 30.0);
}

#[test]
fn one_that_fails_clients_though_it_answers_probes_is_found_out() {
    let mut world = World::all_valid(3);
    let fail = |world: &mut World, reason| {
        world.pass(1.0);
        let started = world.now - Duration::from_millis(200);
        world.table.live_failure(at(1), reason, started, world.now);
    };
    let refused = Reason::RequestRefused(4);
    for served in [true, false] {
        fail(&mut world, refused);
        fail(&mut world, refused);
        assert_eq!(world.best()[0], at(1), "two are not enough");
        if served {
            assert!(!world.table.live_served(at(1), world.now));
        }
    }
    let generation = world.table.generation();
    fail(&mut world, refused);
    assert_eq!(world.best(), [at(2), at(3), at(1)], "three in a row");
    assert_ne!(world.table.generation(), generation, "told at once");
    assert_eq!(world.status(at(1)), Status::Valid);
    let left = world.row(at(1)).distrusted_for.unwrap();
    assert_eq!(left, Duration::from_secs(600));
    // Probes find it valid, and change nothing until the time is over.
    for _ in 0..9 {
        world.probe(at(1), valid(10));
        assert_eq!(world.best()[2], at(1));
        assert_eq!(world.row(at(1)).good_for, None);
    }
    world.pass(65.0);
    world.probe(at(1), valid(10));
    assert_eq!(world.row(at(1)).distrusted_for, None);
    assert_eq!(world.row(at(1)).good_for, Some(Duration::ZERO));
    // Silence, resets and early ends count too; a client that is served lifts it.
    for reason in [
        Reason::TimedOut(Phase::Target),
        Reason::Reset,
        Reason::ClosedEarly(0),
    ] {
        fail(&mut world, reason);
        world.probe(at(1), valid(10));
    }
    assert!(
        world.row(at(1)).distrusted_for > Some(left),
        "twice as long"
    );
    assert!(world.table.live_served(at(1), world.now));
    assert_eq!(world.row(at(1)).distrusted_for, None);
    // Destinations that nobody reaches.
    for n in 1..=12 {
        assert_eq!(world.row(at(2)).distrusted_for, None, "{n}");
        world.pass(1.0);
        world.table.live_refusal(at(2), world.now, world.now);
    }
    assert!(world.row(at(2)).distrusted_for.is_some());
    world.check();
}

#[test]
fn the_rules_leave_out_and_prefer() {
    let mut world = World::new(0);
    let range = |text: &str| text.parse().unwrap();
    let rules = Rules {
        only: vec![range("10.0.0.0/24")],
        never: vec![range("10.0.0.2/32")],
        prefer: vec!["10.0.0.6".parse().unwrap(), "10.0.0.4/31".parse().unwrap()],
    };
    let settings = world.table.settings;
    world.table = Table::new(settings, rules, world.now);
    let left_out = world.table.set_source(FLAG, (1..=300).map(at), world.now);
    assert_eq!(left_out, 1 + 45);
    assert_eq!(world.table.len(), 254);
    world.table.watch_all_of(FILE);
    assert_eq!(world.table.set_source(FILE, [at(2), at(3)], world.now), 0);
    for address in world.due() {
        let IpAddr::V4(ip) = address.ip() else {
            unreachable!()
        };
        world.record(address, valid(ip.octets()[3].into()));
    }
    let best = world.best();
    assert_eq!(best[..5], [at(6), at(4), at(5), at(1), at(3)]);
    assert_eq!(world.row(at(6)).preferred, Some(1));
    assert_eq!(world.row(at(5)).preferred, Some(2));
    assert_eq!(world.row(at(1)).preferred, None);
    // What is remembered from before is no exception.
    let hour = Duration::from_secs(3600);
    assert!(!world.table.remember(at(1000), hour, world.now));
    assert_eq!(world.table.get(at(1000), world.now), None);
    // Watched by hand, and never chosen.
    let excluded = world.row(at(2));
    assert!(!excluded.candidate && !best.contains(&at(2)));
    assert_eq!((excluded.status, excluded.score), (Status::Valid, None));
    world.probe(at(2), REFUSED);
    assert_eq!(world.table.lost_latest_first(9), []);
    world.check_counts();
}

#[test]
fn the_budget_holds_and_known_proxies_come_first() {
    let now = Instant::now();
    let settings = TableSettings {
        rate: 10,
        jitter_percent: 0,
        ..TableSettings::default()
    };
    let table = Table::new(settings, Rules::default(), now);
    let mut world = World { table, now };
    world.table.set_source(FLAG, (1..=20_000).map(at), now);
    // Five seconds' worth at once at most, then ten a second.
    let mut asked = 0;
    let mut good = Vec::new();
    for second in 1..=3600 {
        let mut due = world.due();
        asked += due.len();
        assert!(asked <= 50 + 10 * second, "{asked} in {second} s");
        for address in due.drain(..) {
            let is_good = good.contains(&address) || (second % 60 == 1 && good.len() < 20);
            if is_good && !good.contains(&address) {
                good.push(address);
            }
            world.record(address, if is_good { valid(9) } else { REFUSED });
        }
        if second > 100 {
            for address in &good {
                let age = world.row(*address).last_probed.unwrap();
                assert!(age <= Duration::from_secs(62), "{age:?} after {second} s");
            }
        }
        world.pass(1.0);
    }
    assert!(asked > 20_000, "{asked}");
    let soon = world.table.next_due().unwrap() - world.now;
    assert!(soon <= Duration::from_secs(1), "{soon:?}");
    // A first round with all of the budget; from then on one with half of it, while most of it is left to proxies.
    assert_eq!(world.table.count(Status::Unknown), 0);
    let next = world.table.snapshot(world.now);
    let waits = next.filter_map(|row| row.due_in).map(|due| due.as_secs());
    let last = waits.max().unwrap();
    assert!((2300..=2500).contains(&last), "{last}: 4,000 after 2,000");
}

#[test]
fn many_proxies_are_asked_less_often_but_not_the_best() {
    let now = Instant::now();
    let settings = TableSettings {
        rate: 10,
        jitter_percent: 0,
        ..TableSettings::default()
    };
    let table = Table::new(settings, Rules::default(), now);
    let mut world = World { table, now };
    world.table.set_source(FLAG, (1..=2000).map(at), now);
    for _ in 0..1200 {
        for address in world.due() {
            let IpAddr::V4(ip) = address.ip() else {
                unreachable!()
            };
            world.record(address, valid(ip.to_bits() & 0xFFFF));
        }
        world.pass(1.0);
    }
    let oldest = |world: &World, few: usize| {
        let ages = world.best().into_iter().take(few);
        ages.map(|address| world.row(address).last_probed.unwrap().as_secs())
            .max()
            .unwrap()
    };
    assert!(oldest(&world, 10) <= 62, "{}", oldest(&world, 10));
    // 2,000 with half of 10 a second.
    let all = oldest(&world, 2000);
    assert!((300..=450).contains(&all), "{all}");
}

#[test]
fn the_selected_one_is_asked_more_often() {
    let mut world = World::all_valid(2);
    world.table.set_selected(Some(at(1)), world.now);
    let waits: Vec<f64> = (0..3).map(|_| world.probe(at(1), valid(1))).collect();
    assert_eq!(waits, [15.0; 3]);
    assert_eq!(world.probe(at(1), REFUSED), 15.0);
    let waits: Vec<f64> = (0..4).map(|_| world.probe(at(1), REFUSED)).collect();
    assert_eq!(waits, [5.0, 15.0, 15.0, 15.0], "also when it is dead");
    world.check();
    world.table.set_selected(Some(at(2)), world.now);
    world.check();
    world.probe(at(1), REFUSED);
    assert!(world.due_in(at(1)) > 60.0);
    world.table.set_selected(Some(at(77)), world.now);
    world.table.set_selected(None, world.now);
    world.check();
}

#[test]
fn silence_counts_when_somebody_answered_since() {
    for finding in [
        REFUSED,
        valid(5),
        Finding::answered(Reason::Reset, Duration::ZERO),
    ] {
        let mut world = World::all_valid(3);
        world.table.set_source(FILE, [at(4)], world.now);
        world.pass(60.0);
        world.due();
        world.pass(1.0);
        world.record(at(4), finding);
        world.pass(4.0);
        world.record(at(1), SILENT);
        assert_eq!(world.status(at(1)), Status::NotListening, "{finding:?}");
    }
}

#[test]
fn a_single_valid_peer_is_demoted_at_once() {
    let mut world = World::all_valid(1);
    world.probe(at(1), SILENT);
    assert_eq!(world.status(at(1)), Status::NotListening);
    assert!(!world.table.link_down());
}

#[test]
fn one_silent_peer_is_found_out_with_the_help_of_others() {
    let mut world = World::all_valid(4);
    world.pass(30.0);
    world.table.set_selected(Some(at(1)), world.now);
    world.pass(15.0);
    assert_eq!(world.due(), [at(1)]);
    world.pass(5.0);
    assert_eq!(world.record(at(1), SILENT), None);
    let row = world.row(at(1));
    assert_eq!(
        (row.status, row.reason, row.failures, row.suspect),
        (Status::Valid, Reason::LinkSuspected, 0, true)
    );
    assert!(!world.table.link_down());
    // Two others are asked at once; the first answer is the evidence.
    assert_eq!(world.due(), [at(2), at(3)]);
    world.pass(0.1);
    world.record(at(2), valid(20));
    assert!(!world.row(at(1)).suspect);
    // Nothing more is heard of others until the next silence; it counts all the same.
    world.pass(0.5);
    assert_eq!(world.due(), [at(1)]);
    world.pass(5.0);
    let change = world.record(at(1), SILENT).unwrap();
    assert_eq!(change.to, Status::NotListening);
    assert_eq!(change.reason, Reason::TimedOut(Phase::Connecting));
    assert_eq!(world.best(), [at(2), at(3), at(4)]);
    world.check();
}

#[test]
fn own_link_down_keeps_what_was_known() {
    let mut world = World::all_valid(3);
    world.table.set_source(FILE, [at(4), at(5)], world.now);
    for address in world.due() {
        world.record(address, REFUSED);
    }
    world
        .table
        .set_source(FILE, [at(4), at(5), at(6)], world.now);
    world.pass(60.0);
    let generation = world.table.generation();
    let mut probes = 0;
    let end = world.now + Duration::from_secs(3600);
    while let Some(due) = world.table.next_due().filter(|due| *due < end) {
        world.now = world.now.max(due);
        let started = world.due();
        probes += started.len();
        world.pass(5.0);
        for address in started {
            world.record(address, failed(Reason::NetworkUnreachable));
        }
        world.table.expire(world.now);
        world.check();
    }
    assert!(world.table.link_down());
    assert_eq!(world.best(), [at(1), at(2), at(3)]);
    assert_eq!(world.table.generation(), generation, "no reshuffle");
    // Each of the six about once a minute at most.
    assert!(probes < 6 * 75, "{probes}");
    assert!(world.row(at(4)).failures <= 3);
    // One answer, and all are asked at once and back.
    world.record(at(2), valid(20));
    assert!(!world.table.link_down());
    let asked = world.due();
    assert!(
        asked.contains(&at(1)) && asked.contains(&at(3)),
        "{asked:?}"
    );
    world.record(at(1), valid(10));
    world.record(at(3), SILENT);
    assert_eq!(world.best(), [at(1), at(2)]);
}

#[test]
fn suspects_do_not_expire_and_each_outage_starts_anew() {
    let mut world = World::all_valid(2);
    world.table.set_source(FLAG, [], world.now);
    for outage in 0..2 {
        let mut waits = Vec::new();
        for _ in 0..7 {
            world.probe(at(1), SILENT);
            world.probe(at(2), SILENT);
            waits.push(world.due_in(at(1)));
        }
        assert!(world.table.link_down());
        assert_eq!(waits[0], 5.0, "outage {outage}");
        assert!(waits.is_sorted() && waits[6] > 50.0, "{waits:?}");
        world.pass(1000.0);
        assert_eq!(world.table.expire(world.now), 0);
        world.probe(at(1), valid(10));
        world.probe(at(2), valid(20));
    }
}

#[test]
fn an_address_first_seen_while_the_link_is_down_stays_unknown() {
    let mut world = World::all_valid(2);
    world.pass(60.0);
    world.due();
    world.pass(5.0);
    world.record(at(1), SILENT);
    world.record(at(2), SILENT);
    assert!(world.table.link_down());
    world.table.set_source(FILE, [at(3)], world.now);
    world.probe(at(3), SILENT);
    let row = world.row(at(3));
    assert_eq!(
        (row.status, row.reason),
        (Status::Unknown, Reason::LinkSuspected)
    );
}

#[test]
fn loopback_neither_proves_the_link_nor_is_excused_by_it() {
    let local: SocketAddr = "127.0.0.1:9050".parse().unwrap();
    let mut world = World::all_valid(2);
    world.table.set_source(FILE, [local], world.now);
    world.probe(local, valid(1));
    world.pass(60.0);
    world.due();
    world.pass(1.0);
    world.record(local, valid(1));
    world.table.live_success(local, None, world.now);
    world.pass(4.0);
    world.record(at(1), SILENT);
    world.record(at(2), SILENT);
    assert!(world.table.link_down());
    assert_eq!(world.best(), [local, at(1), at(2)]);
    world.probe(local, SILENT);
    assert_eq!(world.status(local), Status::NotListening);
    world.check();
}

#[test]
fn live_silence_without_evidence_only_makes_a_suspect() {
    let mut world = World::all_valid(3);
    // However lately the others were heard: it was before the connect began.
    world.pass(0.5);
    let started = world.now;
    world.pass(0.3);
    let reason = Reason::TimedOut(Phase::Connecting);
    let change = world.table.live_failure(at(1), reason, started, world.now);
    assert_eq!(change, None);
    assert!(world.row(at(1)).suspect);
    // The next client is sent elsewhere all the same.
    assert_eq!(world.best(), [at(2), at(3), at(1)]);
    assert_eq!(world.due(), [at(1), at(2), at(3)]);
}

#[test]
fn an_answer_from_before_the_silence_proves_nothing() {
    let mut world = World::all_valid(2);
    world.pass(60.0);
    let answered = world.now;
    world.pass(1.0);
    world.due();
    world.pass(5.0);
    world.record(at(1), SILENT);
    world.record(at(2), SILENT);
    assert!(world.table.link_down());
    world.table.live_success(at(1), None, answered);
    assert!(world.table.link_down());
    world.table.live_success(at(1), None, world.now);
    assert!(!world.table.link_down());
    world.check();
}

#[test]
fn what_no_source_names_expires() {
    let mut world = World::new(4);
    world.due();
    world.record(at(1), valid(1));
    world.record(at(2), valid(1));
    world.record(at(3), REFUSED);
    world.record(at(4), REFUSED);
    world.table.set_source(FILE, [at(4)], world.now);
    world.pass(10_000.0);
    world.record(at(1), valid(1));
    world.record(at(2), valid(1));
    // Only number 4 is still named.
    world.table.set_source(FLAG, [], world.now);
    world.pass(599.0);
    assert_eq!(world.table.expire(world.now), 0);
    world.table.due(world.now, usize::MAX);
    world.record(at(1), valid(1));
    world.record(at(2), REFUSED);
    world.pass(1.0);
    // In flight ones wait.
    assert_eq!(world.table.expire(world.now), 1);
    world.record(at(3), REFUSED);
    assert_eq!(world.table.expire(world.now), 1);
    assert_eq!(world.table.get(at(2), world.now), None);
    assert_eq!(world.table.len(), 2);
    world.check();
    // Number 1 is kept by its probes, not for ever.
    world.pass(600.0);
    assert_eq!(world.table.expire(world.now), 1);
    assert_eq!(world.best(), []);
    world.check();
    assert_eq!(world.record(at(1), valid(1)), None, "nobody asked");
    assert_eq!(world.table.len(), 1);
}

#[test]
fn a_former_peer_is_one_as_long_as_connections_may_go_there() {
    let mut world = World::all_valid(3);
    assert!(world.table.has_ip(at(2).ip()));
    world.table.set_source(FLAG, [at(1)], world.now);
    world.table.set_selected(Some(at(3)), world.now);
    world.record(at(1), REFUSED);
    assert!(world.table.has_ip(at(2).ip()), "valid");
    world.record(at(2), REFUSED);
    world.record(at(3), REFUSED);
    assert!(world.table.has_ip(at(1).ip()), "named");
    assert!(!world.table.has_ip(at(2).ip()));
    assert!(world.table.has_ip(at(3).ip()), "selected");
    world.table.set_selected(None, world.now);
    assert!(!world.table.has_ip(at(3).ip()));
}

#[test]
fn all_are_due_when_asked_for() {
    let mut world = World::all_valid(2);
    world.table.set_source(FILE, [at(3), at(4)], world.now);
    world.table.due(world.now, 1);
    world.table.probe_now(world.now);
    world.check();
    let due = world.due();
    assert_eq!(due.len(), 3);
    assert!(due[..2].contains(&at(1)) && due[..2].contains(&at(2)));
}

#[test]
fn jitter_is_bounded_and_the_seed_decides() {
    let delays = |seed| -> Vec<Duration> {
        let settings = TableSettings {
            seed,
            rate: 1000,
            ..TableSettings::default()
        };
        let now = Instant::now();
        let mut table = Table::new(settings, Rules::default(), now);
        table.set_source(FLAG, (1..=200).map(at), now);
        for address in table.due(now, 200) {
            table.record(address, valid(1), now);
        }
        table.snapshot(now).filter_map(|row| row.due_in).collect()
    };
    let first = delays(1);
    assert_eq!(first, delays(1));
    assert_ne!(first, delays(2));
    let (low, high) = (first.iter().min().unwrap(), first.iter().max().unwrap());
    assert!(*low >= Duration::from_millis(53_900) && *low < Duration::from_secs(56));
    assert!(*high <= Duration::from_secs(66) && *high > Duration::from_secs(64));
}

#[test]
fn a_full_table_ignores_the_rest() {
    let mut world = World::new(0);
    let limit = u32::try_from(MAX_ADDRESSES).unwrap();
    world
        .table
        .set_source(FLAG, (0..limit + 5).map(at), world.now);
    assert_eq!(world.table.len(), MAX_ADDRESSES);
    assert_eq!(world.table.ignored(), 5);
    // There is room again when some are gone.
    world.table.set_source(FLAG, (10..limit).map(at), world.now);
    world.pass(600.0);
    assert_eq!(world.table.expire(world.now), 10);
    world.table.set_source(FILE, [at(limit + 1)], world.now);
    assert_eq!(world.table.len(), MAX_ADDRESSES - 9);
    world.check();
}

#[test]
fn a_hundred_thousand_addresses_take_a_few_megabytes() {
    let mut world = World::new(100_000);
    while let [first, ..] = world.table.due(world.now, 1)[..] {
        world.record(first, REFUSED);
    }
    let table = &world.table;
    // A vacant slot of the slab takes as much as an entry; B-tree leaves hold 11 pairs and are half full at worst.
    let slab = table.entries.len() * size_of::<Option<Entry>>();
    let chains = table.chains.heads.len() * size_of::<u32>();
    let queue = table.len() * 2 * size_of::<(Tick, u32)>();
    assert!(table.merits.is_empty(), "for proxies only");
    let total = (slab + chains + queue) / table.len();
    println!("{total} bytes per address, entry {}", size_of::<Entry>());
    assert!(total <= 88, "{total}");
}

#[test]
fn random_events_keep_the_books_in_order() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(6);
        for _ in 0..600 {
            let address = at(random.u32(1..=10));
            match random.u32(0..14) {
                0 => {
                    let named: Vec<_> = (1..=10).filter(|_| random.bool()).map(at).collect();
                    let source = SourceId(random.u8(0..3));
                    world.table.set_source(source, named, world.now);
                }
                1 => world.table.cancel(address),
                2 => world.table.live_success(address, None, world.now),
                3 => {
                    let reasons = [
                        Reason::Refused,
                        Reason::Reset,
                        Reason::TimedOut(Phase::Connecting),
                    ];
                    let reason = reasons[random.usize(0..3)];
                    let started = world.now - Duration::from_secs(random.u64(0..3));
                    world
                        .table
                        .live_failure(address, reason, started, world.now);
                }
                4 => {
                    world.table.expire(world.now);
                }
                5 => world.table.probe_now(world.now),
                6 => {
                    let selected = random.bool().then_some(address);
                    world.table.set_selected(selected, world.now);
                }
                7 => world.pass(random.f64() * 200.0),
                _ => {
                    let started = world.table.due(world.now, 3);
                    world.pass(random.f64() * 5.0);
                    for address in started {
                        let finding = match random.u32(0..6) {
                            0 => REFUSED,
                            1 | 2 => SILENT,
                            3 => Finding::Local {
                                reason: Reason::NoDescriptor,
                            },
                            _ => valid(random.u32(0..50)),
                        };
                        if random.u32(0..8) > 0 {
                            world.record(address, finding);
                        }
                    }
                }
            }
            world.check();
        }
        println!("seed {seed} passed");
    }
}

#[test]
fn those_that_were_valid_are_known_and_can_be_asked_at_once() {
    let mut world = World::all_valid(4);
    for n in [2, 1] {
        world.pass(1.0);
        world
            .table
            .live_failure(at(n), Reason::Refused, world.now, world.now);
    }
    world.record(
        at(3),
        Finding::answered(Reason::Answered(0xFF), Duration::ZERO),
    );
    assert_eq!(world.best(), [at(4)]);
    // Number 3 listens, and has its own status; the others were valid at the same time and are ordered by address.
    assert_eq!(world.table.lost_latest_first(9), [at(1), at(2)]);
    assert_eq!(world.table.lost_latest_first(1), [at(1)]);
    world.table.probe_lost_now(world.now);
    let mut due = world.due();
    due.sort();
    assert_eq!(due, [at(1), at(2)]);
    world.check();
}

#[test]
fn remembered_ones_are_asked_at_once_and_may_be_older_than_the_table() {
    let mut world = World::all_valid(1);
    world.pass(3.0);
    let (hour, year) = (Duration::from_secs(3600), Duration::from_secs(365 * 86400));
    assert!(world.table.remember(at(2), hour, world.now));
    assert!(world.table.remember(at(3), year, world.now));
    assert!(world.table.remember(at(1), hour, world.now));
    world.check();
    let mut known: Vec<_> = world.table.ever_valid(world.now).collect();
    known.sort();
    assert_eq!(known[0], (at(1), Duration::from_secs(3)), "the later one");
    assert_eq!(known[1], (at(2), hour));
    assert_eq!(world.table.lost_latest_first(9), [at(2), at(3)]);
    assert_eq!(world.due(), [at(2), at(3)]);
    world.record(at(2), valid(1));
    assert_eq!(world.best(), [at(2), at(1)]);
    // Nobody names number 3 and it does not answer.
    world.record(at(3), REFUSED);
    world.pass(601.0);
    assert_eq!(world.table.expire(world.now), 2);
    assert!(world.table.get(at(1), world.now).is_some(), "named");
}

#[test]
fn an_address_in_doubt_is_probed_soon_but_not_all_the_time() {
    let mut world = World::all_valid(1);
    world.pass(10.0);
    assert!(world.due().is_empty());
    world.table.probe_soon(at(1), world.now);
    assert_eq!(world.due(), [at(1)]);
    world.record(at(1), valid(400));
    for _ in 0..100 {
        world.table.probe_soon(at(1), world.now);
    }
    assert!(world.due().is_empty());
    assert!((1.9..=2.0).contains(&world.due_in(at(1))));
    world.check();
}
