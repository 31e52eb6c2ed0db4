//! What held connections cost as they become more: memory, and processor time for a small message on any of them.

use std::io::{self, Read, Write};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::relays::{Relay, Running};
use crate::report::{Better, Figure};
use crate::roles::ask;

/// Opens connections up to each of the numbers that is not above `most`, and looks each time.
pub(crate) fn measure(
    relay: &Running,
    most: usize,
    quiet: Duration,
) -> io::Result<Vec<(Figure, f64)>> {
    let Some(tree) = &relay.tree else {
        return Ok(Vec::new());
    };
    let most = most.min(relay.relay.bears()).min(possible());
    let mut figures = Vec::new();
    let mut open = Vec::new();
    for number in NUMBERS {
        let number = number.min(possible());
        if number > most {
            break;
        }
        while open.len() < number {
            match relay.open(ask::ECHO) {
                Ok(stream) => open.push(stream),
                // What was measured before is worth something.
                Err(error) if !figures.is_empty() => {
                    eprintln!("bench: no more than {} connections: {error}", open.len());
                    return Ok(figures);
                }
                Err(error) => return Err(error),
            }
        }
        thread::sleep(quiet);
        figures.push((
            Figure::new(name(number, MEMORY), "KiB", Better::Lower),
            tree.usage()?.pss,
        ));
        // Each of its processes does so little that the kernel, which counts in hundredths of a second, counts nothing.
        if relay.relay == Relay::Socat {
            continue;
        }
        let before = tree.cpu()?;
        for mut stream in open.iter().cycle().take(MESSAGES) {
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])?;
        }
        // There and back.
        let each = (tree.cpu()? - before) / (2 * MESSAGES) as f64 * 1e6;
        figures.push((
            Figure::new(name(number, MESSAGE), "µs", Better::Lower),
            each,
        ));
    }
    Ok(figures)
}

fn name(number: usize, what: &str) -> String {
    format!("{PREFIX}{number} connections: {what}")
}

/// The number of connections in the name of a figure, if it tells of that.
pub(crate) fn connections_of(figure: &str, of: &str) -> Option<f64> {
    let (number, what) = figure.strip_prefix(PREFIX)?.split_once(" connections: ")?;
    (what == of).then(|| number.parse().ok())?
}

/// With two descriptors for each in the relay, and some for what a relay needs itself.
fn possible() -> usize {
    let limit = getrlimit(Resource::Nofile).maximum;
    limit.map_or(usize::MAX, |limit| {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        limit.saturating_sub(600) / 2
    })
}

const PREFIX: &str = "growth: ";
/// What is told of each number.
pub(crate) const MEMORY: &str = "memory";
pub(crate) const MESSAGE: &str = "CPU a message";

const NUMBERS: [usize; 4] = [10, 100, 1_000, 10_000];

/// Enough that the hundredths of a second of `/proc` are a small part of it.
const MESSAGES: usize = 10_000;
