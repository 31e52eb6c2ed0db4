//! Compares `sockhop forward`, or with `--servers` `sockhop serve`, with other programs of the same machine, side by side in one run;
//! with `--discovery` what it costs to know many peers, in a simulation and with real sockets;
//! with `--socks6` SOCKS 5 and SOCKS 6 of `sockhop serve`, near and with a long way between client and server.
//!
//! ```text
//! cargo build --release && cargo run --release --example bench -- --quick
//! cargo build --release && cargo run --release --example bench -- --quick --servers
//! cargo build --release && cargo run --release --example bench -- --quick --socks6
//! cargo build --release && cargo run --release --example bench -- --discovery
//! cargo build --release && cargo run --release --example bench -- --soak 30m
//! ```
//!
//! Every relay leads to a target server; the client is this process, the target is another one. A forwarder has a port for it, a
//! SOCKS5 server is asked for it on every connection:
//!
//! ```text
//! bench (clients) ---> relay under test ---> bench --role target
//! bench (clients) [---> sockhop forward, a converter] ---> bench --role delay ---> sockhop serve ---> bench --role target
//! ```
//!
//! In each round every scenario is run with every relay in turn, so that a busy moment of the machine hits all of them; the table shows
//! medians over the rounds and sockhop's ratio to the others. Processor time and memory are those of the relay's own process tree, from
//! `/proc`. Relays that are not installed are left out, with a word about it. Nothing here is asserted: loopback figures of a shared
//! machine are for comparing within one run only.
//!
//! - `relays.rs`: what is compared
//! - `socks6.rs`: the handshake of SOCKS 6
//! - `simulated.rs`, `sweep.rs`: discovery
//! - `programs.rs`: how each is started
//! - `scenarios.rs`: what is measured
//! - `fairness.rs`, `growth.rs`: the longer ones of that: many streams at once, connections that become more and more
//! - `soak.rs`: what happens in the long run
//! - `report.rs`: medians, the table, JSON
//! - `plot.rs`: a picture of the main ones
//! - `process.rs`: children that never outlive us, and their figures from `/proc`
//! - `roles.rs`: the other sides, this executable started again: the target, the plain relay, and the long way

mod fairness;
mod growth;
mod plot;
mod process;
mod programs;
mod relays;
mod report;
mod roles;
mod scenarios;
mod simulated;
mod soak;
mod socks6;
mod sweep;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use argh::{ArgsInfo, FlagInfoKind, FromArgs};

use relays::{Kind, Relay, Running};
use report::Report;
use scenarios::{Scenario, Size};

/// Compare sockhop with the other relays installed on this machine.
#[derive(FromArgs, ArgsInfo)]
struct Options {
    /// one round with less of everything: two minutes
    #[argh(switch)]
    quick: bool,

    /// also write every single figure to this file
    #[argh(option, arg_name = "file")]
    json: Option<PathBuf>,

    /// also draw the main figures and how cost grows into this file, as SVG
    #[argh(option, arg_name = "file")]
    svg: Option<PathBuf>,

    /// compare SOCKS5 servers, not forwarders
    #[argh(switch)]
    servers: bool,

    /// compare SOCKS 5 and SOCKS 6 of sockhop, near and far
    #[argh(switch)]
    socks6: bool,

    /// what it costs to know many peers
    #[argh(switch)]
    discovery: bool,

    /// thousands of clients of a forwarder for so long (30m), over servers that die and come back
    #[argh(option, arg_name = "time", from_str_fn(duration))]
    soak: Option<Duration>,

    /// only these relays and scenarios, by name, separated by commas
    #[argh(option, arg_name = "names")]
    only: Option<String>,

    /// rounds (3, with --quick 1)
    #[argh(option, arg_name = "n")]
    rounds: Option<usize>,
}

/// A run that takes longer than this hangs somewhere: it is ended with all its children.
const WHOLE_RUN: Duration = Duration::from_secs(20 * 60);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == roles::FLAG).is_some() {
        return done(roles::play(arguments));
    }
    if arguments.any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", help());
        return ExitCode::SUCCESS;
    }
    done(bench(&argh::from_env()))
}

/// Made here: argh is built without its own.
fn help() -> String {
    let info = Options::get_args_info();
    let mut text = format!("Usage: bench [options]\n\n{}\n\n", info.description);
    for flag in info.flags {
        let value = match flag.kind {
            FlagInfoKind::Switch => "",
            FlagInfoKind::Option { arg_name } => arg_name,
        };
        let name = format!("{} {value}", flag.long);
        text += &format!("  {name:14} {}\n", flag.description);
    }
    text
}

fn done(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<(), Box<dyn Error>> {
    if !cfg!(target_os = "linux") {
        return Err("the figures come from Linux's /proc".into());
    }
    process::raise_descriptor_limit()?;
    let room = process::Room::new(WHOLE_RUN + options.soak.unwrap_or_default())?;
    if let Some(length) = options.soak {
        return soak::run(&room, length);
    }
    if options.discovery {
        simulated::run()?;
        return sweep::run(&room).map(drop);
    }
    let size = if options.quick {
        Size::QUICK
    } else {
        Size::FULL
    };
    let kind = match (options.servers, options.socks6) {
        (true, true) => return Err("--servers or --socks6: one of them".into()),
        (true, false) => Kind::Servers,
        (false, true) => Kind::Socks6,
        (false, false) => Kind::Forwarders,
    };
    let (mut relays, scenarios) = chosen(kind, options.only.as_deref())?;
    let rounds = options.rounds.unwrap_or(size.rounds);

    let (alone, side_by_side): (Vec<_>, Vec<_>) =
        scenarios.into_iter().partition(Scenario::is_alone);
    let mut report = Report::new(kind);
    for round in 1..=rounds {
        // Whoever comes first has no advantage from it over all rounds.
        let first = relays.len().min(1);
        relays.rotate_left(first);
        let mut measure = |scenario: &Scenario, relay: &Running| {
            let name = relay.relay.name();
            eprintln!("round {round} of {rounds}: {scenario}: {name}");
            match scenario.measure(relay, &size) {
                Ok(figures) => report.add(relay.relay, figures),
                Err(error) => eprintln!("bench: {scenario}: {name} failed: {error}"),
            }
        };
        let mut running = Vec::new();
        relays.retain(|relay| match relay.start(&room, kind) {
            Ok(started) => {
                running.push(started);
                true
            }
            Err(error) => {
                eprintln!("bench: {} is left out: {error}", relay.name());
                false
            }
        });
        for scenario in &side_by_side {
            for relay in &running {
                measure(scenario, relay);
            }
        }
        drop(running);
        if alone.is_empty() {
            continue;
        }
        for relay in &relays {
            for scenario in &alone {
                match relay.start(&room, kind) {
                    Ok(running) => measure(scenario, &running),
                    Err(error) => eprintln!("bench: {} did not start again: {error}", relay.name()),
                }
            }
        }
    }
    if report.is_empty() {
        return Err("nothing was measured".into());
    }

    print!("{report}");
    if let Some(path) = &options.svg {
        let rounds = match kind {
            Kind::Forwarders => sweep::run(&room)?,
            Kind::Servers | Kind::Socks6 => Vec::new(),
        };
        std::fs::write(path, plot::svg(&report, &rounds))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if let Some(path) = &options.json {
        std::fs::write(path, report.json(rounds, options.quick).to_string())
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// The relays and scenarios that `--only` names; all of a sort when it names none of that sort.
fn chosen(kind: Kind, only: Option<&str>) -> Result<(Vec<Relay>, Vec<Scenario>), String> {
    let (all_relays, all_scenarios) = (kind.relays(), Scenario::of(kind));
    let (mut relays, mut scenarios) = (Vec::new(), Vec::new());
    for name in only
        .into_iter()
        .flat_map(|names| names.split(','))
        .map(str::trim)
    {
        let relay = all_relays.iter().find(|relay| relay.name() == name);
        let of_name = all_scenarios
            .iter()
            .filter(|scenario| scenario.to_string() == name);
        let before = scenarios.len();
        scenarios.extend(of_name);
        relays.extend(relay);
        if relay.is_none() && scenarios.len() == before {
            let names: Vec<_> = all_relays.iter().map(|relay| relay.name()).collect();
            let more: Vec<_> = all_scenarios.iter().map(Scenario::to_string).collect();
            return Err(format!(
                "--only {name}: there are {}, and {}",
                names.join(", "),
                more.join(", ")
            ));
        }
    }
    if relays.is_empty() {
        relays.extend(all_relays);
    }
    if scenarios.is_empty() {
        scenarios.extend(all_scenarios);
    }
    Ok((relays, scenarios))
}
