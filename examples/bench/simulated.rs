//! What discovery costs in networks of different sizes: the table alone, a day in simulated time, without sockets.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sockhop::discovery::rules::Rules;
use sockhop::discovery::status::{Finding, Phase, Reason, Status};
use sockhop::discovery::table::{SourceId, Table, TableSettings};

/// Known addresses, and how many of them are good proxies.
const NETWORKS: [(u32, u32); 4] = [(10, 3), (1_000, 10), (100_000, 50), (100_000, 1_000)];

/// All is known by then, as far as it will be.
const SETTLED: Duration = Duration::from_secs(6 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// From [`SETTLED`] on, one address that never was good becomes so every now and then, for half a day.
const NEWCOMERS: u32 = 30;

/// As many as clients are tried on.
const BEST: usize = 16;

/// Prints a table with a row for each network.
pub(crate) fn run() -> io::Result<()> {
    let rate = TableSettings::default().rate;
    println!(
        "A day of discovery, simulated; --probe-rate {rate}, every 60 s, four of five others silent for 5 s\n"
    );
    println!(
        "| known | good | MB | probes/s, first hour | probes/s, later | first good after | age of the {BEST} best, most | age of all good, median | most | a new one after, median | most |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (known, good) in NETWORKS {
        let day = Day::new(known, good)?.run();
        println!("{}", day.row(known, good));
    }
    println!(
        "\nAges are those of what a probe found, from the sixth hour on. MB: the process's memory for the table."
    );
    Ok(())
}

struct Day {
    table: Table,
    start: Instant,
    now: Instant,
    good: HashSet<SocketAddr>,
    random: fastrand::Rng,
    /// When each newcomer became good.
    newcomers: HashMap<SocketAddr, Instant>,
    known: u32,
    in_flight: Vec<(Instant, SocketAddr, Finding)>,
    probes: [u64; 2],
    first_good: Option<Duration>,
    best_age: Duration,
    ages: Vec<Duration>,
    found: Vec<Duration>,
    megabytes: f64,
    rss_before: u64,
}

impl Day {
    fn new(known: u32, good: u32) -> io::Result<Self> {
        let rss_before = rss()?;
        let now = Instant::now();
        let settings = TableSettings {
            seed: 1,
            ..TableSettings::default()
        };
        let mut table = Table::new(settings, Rules::default(), now);
        let source = SourceId::new(0).ok_or_else(|| io::Error::other("no source"))?;
        table.set_source(source, (0..known).map(at), now);
        let mut random = fastrand::Rng::with_seed(2);
        let mut good_ones = HashSet::new();
        while good_ones.len() < good as usize {
            good_ones.insert(at(random.u32(0..known)));
        }
        Ok(Self {
            table,
            start: now,
            now,
            good: good_ones,
            random,
            newcomers: HashMap::new(),
            known,
            in_flight: Vec::new(),
            probes: [0; 2],
            first_good: None,
            best_age: Duration::ZERO,
            ages: Vec::new(),
            found: Vec::new(),
            megabytes: 0.0,
            rss_before,
        })
    }

    fn run(mut self) -> Self {
        let (mut next_look, mut next_newcomer) = (self.start, self.start + SETTLED);
        while self.elapsed() < DAY {
            self.probe();
            if self.now >= next_look {
                self.look();
                next_look = self.now + Duration::from_secs(60);
            }
            if self.megabytes == 0.0 && self.elapsed() >= SETTLED {
                // Before our own lists of figures grow.
                let used = rss().unwrap_or_default().saturating_sub(self.rss_before);
                self.megabytes = used as f64 / 1e6;
            }
            if self.now >= next_newcomer {
                self.newcomer();
                next_newcomer = self.now + DAY / 2 / NEWCOMERS;
            }
            self.now += Duration::from_millis(100);
        }
        self
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn probe(&mut self) {
        let now = self.now;
        let mut ended = Vec::new();
        self.in_flight.retain(|probe| {
            let over = probe.0 <= now;
            if over {
                ended.push((probe.1, probe.2));
            }
            !over
        });
        for (address, finding) in ended {
            let change = self.table.record(address, finding, now);
            if change.is_some_and(|change| change.to == Status::Valid) {
                self.first_good.get_or_insert(now - self.start);
                if let Some(since) = self.newcomers.remove(&address) {
                    self.found.push(now - since);
                }
            }
        }
        for address in self.table.due(now, 1000) {
            let later = usize::from(self.elapsed() >= Duration::from_secs(3600));
            self.probes[later] += 1;
            let (took, finding) = if self.good.contains(&address) {
                let took = Duration::from_millis(20 + u64::from(number(address) % 200));
                (took, Finding::answered(Reason::Answered(0), took))
            } else if number(address).is_multiple_of(5) {
                let refused = Finding::Failed {
                    reason: Reason::Refused,
                };
                (Duration::from_millis(50), refused)
            } else {
                let silent = Finding::timed_out(Phase::Connecting);
                (Duration::from_secs(5), silent)
            };
            self.in_flight.push((now + took, address, finding));
        }
    }

    fn look(&mut self) {
        self.table.expire(self.now);
        let best: Vec<_> = self.table.valid_best_first().collect();
        self.table.set_selected(best.first().copied(), self.now);
        if self.elapsed() < SETTLED {
            return;
        }
        for (place, address) in best.into_iter().enumerate() {
            let row = self.table.get(address, self.now);
            let Some(age) = row.and_then(|row| row.last_probed) else {
                continue;
            };
            self.ages.push(age);
            if place < BEST {
                self.best_age = self.best_age.max(age);
            }
        }
    }

    fn newcomer(&mut self) {
        if self.elapsed() >= SETTLED + DAY / 2 || self.good.len() + 1 >= self.known as usize {
            return;
        }
        let bad = loop {
            let address = at(self.random.u32(0..self.known));
            if !self.good.contains(&address) {
                break address;
            }
        };
        self.good.insert(bad);
        self.newcomers.insert(bad, self.now);
    }

    fn row(mut self, known: u32, good: u32) -> String {
        self.ages.sort_unstable();
        self.found.sort_unstable();
        let missing = self.newcomers.len();
        let median = |times: &[Duration]| short(times.get(times.len() / 2).copied());
        let most = |times: &[Duration]| short(times.last().copied());
        let later = (DAY - Duration::from_secs(3600)).as_secs_f64();
        format!(
            "| {known} | {good} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {} | {} | {}{} |",
            self.megabytes,
            self.probes[0] as f64 / 3600.0,
            self.probes[1] as f64 / later,
            short(self.first_good),
            short(Some(self.best_age)),
            median(&self.ages),
            most(&self.ages),
            median(&self.found),
            most(&self.found),
            match missing {
                0 => String::new(),
                n => format!(", {n} not yet"),
            },
        )
    }
}

fn at(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(0x0A00_0000 + n), 1080))
}

fn number(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(address) => address.ip().to_bits() & 0x00FF_FFFF,
        SocketAddr::V6(_) => 0,
    }
}

fn short(time: Option<Duration>) -> String {
    match time {
        None => "-".to_owned(),
        Some(time) if time < Duration::from_secs(120) => format!("{:.0} s", time.as_secs_f64()),
        Some(time) => format!("{:.0} min", time.as_secs_f64() / 60.0),
    }
}

/// Memory of this process, in bytes.
fn rss() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: Option<u64> = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse().ok());
    Ok(kilobytes.unwrap_or_default() * 1024)
}
