//! Many bulk streams at once and a small exchange beside them: whether everybody gets a share.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::relays::Running;
use crate::report::{Better, Figure};
use crate::roles::ask;

/// Streams that never pause, more than any relay has threads for, and 64 bytes there and back every few milliseconds.
pub(crate) fn measure(relay: &Running, length: Duration) -> io::Result<Vec<(Figure, f64)>> {
    let mut streams = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let mut stream = relay.open(ask::SOURCE)?;
        stream.write_all(&u64::MAX.to_be_bytes())?;
        stream.set_nonblocking(true)?;
        streams.push(stream);
    }
    let small = relay.open(ask::ECHO)?;
    let enough = AtomicBool::new(false);
    let (counts, mut times) = thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&streams, &enough));
        let times = ping(&small, length);
        enough.store(true, Ordering::Relaxed);
        let counts = reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reading thread died")));
        counts.and_then(|counts| Ok((counts, times?)))
    })?;
    let mean = counts.iter().sum::<u64>() as f64 / STREAMS as f64;
    if mean == 0.0 || times.is_empty() {
        return Err(io::Error::other("nothing came"));
    }
    let share = |count: Option<&u64>| count.map_or(0.0, |count| *count as f64 / mean);
    times.sort_by(f64::total_cmp);
    let figure = |name: &str, unit, better| Figure::new(format!("fairness: {name}"), unit, better);
    Ok(vec![
        (
            figure("slowest stream / mean", "", Better::Higher),
            share(counts.iter().min()),
        ),
        (
            figure("fastest stream / mean", "", Better::Lower),
            share(counts.iter().max()),
        ),
        (
            figure("round trip beside: p50", "ms", Better::Lower),
            times[times.len() / 2] * 1e3,
        ),
        (
            figure("round trip beside: p99", "ms", Better::Lower),
            times[times.len() * 99 / 100] * 1e3,
        ),
    ])
}

/// One thread reads them all, each as often as the others, so that it is the relay that decides.
fn read_all(streams: &[TcpStream], enough: &AtomicBool) -> io::Result<Vec<u64>> {
    let mut counts = vec![0; streams.len()];
    let mut buffer = vec![0; 64 * 1024];
    let begin = Instant::now();
    let limit = Timespec::try_from(Duration::from_millis(100)).ok();
    while !enough.load(Ordering::Relaxed) {
        let mut polled: Vec<_> = streams
            .iter()
            .map(|stream| PollFd::new(stream, PollFlags::IN))
            .collect();
        poll(&mut polled, limit.as_ref())?;
        // What the first ones got before the last ones began is nobody's share.
        let counted = begin.elapsed() > WARM_UP;
        for ((mut stream, count), polled) in streams.iter().zip(&mut counts).zip(&polled) {
            if polled.revents().is_empty() {
                continue;
            }
            match stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) if counted => *count += read as u64,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(counts)
}

/// Seconds of every round trip once the streams are warm.
fn ping(mut stream: &TcpStream, length: Duration) -> io::Result<Vec<f64>> {
    thread::sleep(WARM_UP);
    let mut message = [0x5a; 64];
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < length {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(sent.elapsed().as_secs_f64());
        thread::sleep(PAUSE);
    }
    Ok(times)
}

const STREAMS: usize = 200;

/// Between two small messages: a busy one would be one of those who take.
const PAUSE: Duration = Duration::from_millis(5);

const WARM_UP: Duration = Duration::from_millis(500);
