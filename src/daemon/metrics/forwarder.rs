//! What is told of a forwarder.

use std::cell::Cell;
use std::collections::{BinaryHeap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use serde_json::Number;

use super::text::Exposition;
use super::text::Kind::{Counter, Gauge};
use crate::control::messages::{Bytes, Candidates, Connections, Status};
use crate::daemon::answers;
use crate::daemon::forwarder::Forwarder;
use crate::discovery::status;
use crate::discovery::table::Row;
use crate::engine::{Cx, Shared};
use crate::forward::{MOST_REMOTES, RemoteCounts};

/// What makes the text for a forwarder.
pub(in crate::daemon) fn render(forwarder: Shared<Forwarder>) -> impl Fn(&Cx<'_>) -> String {
    let start_time = StartTime::default();
    move |cx| {
        let forwarder = forwarder.borrow();
        let status = answers::status(&forwarder, cx);
        let mut out = Exposition::default();
        whole(&mut out, &forwarder, &status, cx);
        clients(&mut out, &status);
        remotes(&mut out, &forwarder, cx);
        discovery(&mut out, &forwarder, &status);
        process(&mut out, start_time.at(status.uptime_s));
        out.finish()
    }
}

fn whole(out: &mut Exposition, forwarder: &Forwarder, status: &Status, cx: &Cx<'_>) {
    out.family("sockhop_info", Gauge, "Version and mode of the program.")
        .sample(
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("mode", &status.mode.to_string()),
            ],
            1,
        );
    let connected = u8::from(status.remote.is_some());
    out.single(
        "sockhop_connected",
        Gauge,
        "Whether there is a remote to forward to.",
        connected,
    );
    out.single(
        "sockhop_listeners",
        Gauge,
        "Open listeners for clients.",
        status.listening.len(),
    );
    out.single(
        "sockhop_choices_total",
        Counter,
        "Times that it was chosen where new connections go.",
        // The first is the one of the start, which leads nowhere.
        forwarder.route.epoch().saturating_sub(1),
    );
    out.single(
        "sockhop_workers",
        Gauge,
        "Threads that move bytes.",
        cx.worker_threads(),
    );
}

fn clients(out: &mut Exposition, status: &Status) {
    let Connections {
        active,
        parked,
        total,
        refused_by_reason,
        ..
    } = &status.connections;
    out.single(
        "sockhop_connections",
        Gauge,
        "Connections of clients now.",
        active,
    );
    out.single(
        "sockhop_connections_parked",
        Gauge,
        "Idle ones among them, which hold no thread.",
        parked,
    );
    out.single(
        "sockhop_connections_accepted_total",
        Counter,
        "Connections of clients that were let in.",
        total,
    );
    let mut refused = out.family(
        "sockhop_connections_refused_total",
        Counter,
        "Connections of clients that were closed unserved.",
    );
    for (reason, count) in refused_by_reason.iter() {
        refused.sample(&[("reason", reason)], count);
    }
    let Bytes { up, down } = status.bytes;
    let mut bytes = out.family(
        "sockhop_relayed_bytes_total",
        Counter,
        "Bytes of clients to remotes (up) and back (down).",
    );
    bytes.sample(&[("direction", "up")], up);
    bytes.sample(&[("direction", "down")], down);
}

/// The remote in use, those that clients were passed on to lately, and the best of those that could be: [`MOST_LISTED`] at most.
fn remotes(out: &mut Exposition, forwarder: &Forwarder, cx: &Cx<'_>) {
    let discovery = forwarder.discovery.borrow();
    let in_use = forwarder.remote().and_then(|(address, _)| address);
    let counts = forwarder.route.remotes();
    let busy_first = counts
        .iter()
        .map(|counts| (counts.live == 0, counts.remote));
    let busy_first = busy_first.collect::<BinaryHeap<_>>().into_sorted_vec();
    let mut seen = HashSet::new();
    let listed: Vec<Remote> = in_use
        .into_iter()
        .chain(busy_first.iter().map(|(_, remote)| *remote))
        .chain(discovery.table.valid_best_first())
        .filter(|address| seen.insert(*address))
        .take(MOST_LISTED)
        .map(|address| Remote {
            name: address.to_string(),
            address,
            row: discovery.table.get(address, cx.now),
            counts: counts
                .iter()
                .find(|counts| counts.remote == address)
                .copied(),
        })
        .collect();

    // serde_json's numbers are formatted for the control protocol already; what std has for floats is 14 KB.
    let mut each = |name, kind, help, value: &dyn Fn(&Remote) -> Option<Number>| {
        let mut family = out.family(name, kind, help);
        for remote in &listed {
            if let Some(value) = value(remote) {
                family.sample(&[("remote", &remote.name)], value);
            }
        }
    };
    each(
        "sockhop_remote_selected",
        Gauge,
        "Whether it is the remote in use.",
        &|remote| Some(u8::from(in_use == Some(remote.address)).into()),
    );
    each(
        "sockhop_remote_latency_seconds",
        Gauge,
        "Smoothed time to the answer of a probe.",
        &|remote| Number::from_f64(remote.row?.latency?.as_secs_f64()),
    );
    each(
        "sockhop_remote_latency_spread_seconds",
        Gauge,
        "How far answers are off the smoothed time, on average.",
        &|remote| Number::from_f64(remote.row?.spread?.as_secs_f64()),
    );
    each(
        "sockhop_remote_score",
        Gauge,
        "How good it is, from 0 to 100.",
        &|remote| Number::from_f64(remote.row?.score?.into()),
    );
    each(
        "sockhop_remote_failures",
        Gauge,
        "Failures in a row, of probes and of clients.",
        &|remote| Some(remote.row?.failures.into()),
    );
    let counted = |count: fn(&RemoteCounts) -> u64| {
        move |remote: &Remote| Some(remote.counts.as_ref().map_or(0, count).into())
    };
    each(
        "sockhop_remote_streams",
        Gauge,
        "Streams of clients that it carries now.",
        &counted(|counts| counts.live as u64),
    );
    each(
        "sockhop_remote_picks_total",
        Counter,
        "Streams of clients that it has taken.",
        &counted(|counts| counts.taken),
    );
    each(
        "sockhop_remote_failures_total",
        Counter,
        "Times that it could not serve a client.",
        &counted(|counts| counts.failed),
    );

    let mut bytes = out.family(
        "sockhop_remote_relayed_bytes_total",
        Counter,
        "Bytes that it has carried.",
    );
    for Remote { name, counts, .. } in &listed {
        let moved = counts.map(|counts| counts.bytes).unwrap_or_default();
        bytes.sample(&[("remote", name), ("direction", "up")], moved.up);
        bytes.sample(&[("remote", name), ("direction", "down")], moved.down);
    }
    let mut state = out.family(
        "sockhop_remote_state",
        Gauge,
        "What the last probe found, as the label state.",
    );
    for Remote { name, row, .. } in &listed {
        let status = row.map(|row| row.status).unwrap_or_default();
        state.sample(&[("remote", name), ("state", status.as_str())], 1);
    }
}

fn discovery(out: &mut Exposition, forwarder: &Forwarder, status: &Status) {
    let discovery = forwarder.discovery.borrow();
    let Candidates {
        valid,
        authentication_required,
        socks6,
        not_a_proxy,
        not_listening,
        unknown,
    } = status.candidates;
    let counts = [
        valid,
        authentication_required,
        socks6,
        not_a_proxy,
        not_listening,
        unknown,
    ];
    let mut peers = out.family("sockhop_peers", Gauge, "Known peers.");
    for (status, count) in status::Status::ALL.iter().zip(counts) {
        peers.sample(&[("state", status.as_str())], count);
    }
    let mut probes = out.family("sockhop_probes_total", Counter, "Probes that have ended.");
    for (status, count) in discovery.probes_by_result() {
        probes.sample(&[("result", status.as_str())], count);
    }
    out.single(
        "sockhop_probes_in_flight",
        Gauge,
        "Probes under way.",
        discovery.table.in_flight(),
    );
    out.single(
        "sockhop_probing",
        Gauge,
        "Whether rounds of probes run.",
        u8::from(status.probing),
    );
    out.single(
        "sockhop_link_down",
        Gauge,
        "Whether the own link seems to be down.",
        u8::from(discovery.table.link_down()),
    );
    let mut sources = out.family(
        "sockhop_source_up",
        Gauge,
        "Whether the last refresh of a source of peers was good.",
    );
    for (number, source) in (1_usize..).zip(&status.sources) {
        // What follows the kind may be a command with a secret in it.
        let kind = source.name.split(':').next().unwrap_or_default();
        let up = u8::from(source.error.is_none());
        sources.sample(&[("source", kind), ("number", &number.to_string())], up);
    }
}

/// The names of these are Prometheus's own.
fn process(out: &mut Exposition, start_time: u64) {
    out.single(
        "process_start_time_seconds",
        Gauge,
        "Start time of the process since unix epoch in seconds.",
        start_time,
    );
    // The one that the folder is read with is among them.
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        out.single(
            "process_open_fds",
            Gauge,
            "Number of open file descriptors.",
            descriptors.count().saturating_sub(1),
        );
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        out.single(
            "process_max_fds",
            Gauge,
            "Maximum number of open file descriptors.",
            most,
        );
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kilobytes) = resident {
        out.single(
            "process_resident_memory_bytes",
            Gauge,
            "Resident memory size in bytes.",
            kilobytes * 1024,
        );
    }
}

/// A remote of the list, and what is known of it.
struct Remote {
    address: SocketAddr,
    name: String,
    row: Option<Row>,
    counts: Option<RemoteCounts>,
}

/// When the program was started, by a clock that may be set right later: many routers have none until they are online.
#[derive(Default)]
struct StartTime(Cell<u64>);

impl StartTime {
    /// `uptime` in seconds. The same as before, unless the clock was set.
    fn at(&self, uptime: f64) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let uptime = Duration::try_from_secs_f64(uptime).unwrap_or_default();
        let start = now.unwrap_or_default().saturating_sub(uptime).as_secs();
        if start.abs_diff(self.0.get()) > CLOCK_IS_SET {
            self.0.set(start);
        }
        self.0.get()
    }
}

/// Remotes with metrics of their own: as many as have counts, and some that could be next.
const MOST_LISTED: usize = MOST_REMOTES + 16;

/// Seconds. Less is a clock that is slowly put right.
const CLOCK_IS_SET: u64 = 5;
