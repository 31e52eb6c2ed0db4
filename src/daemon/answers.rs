//! What the control socket tells about a forwarder.

use std::time::{Duration, Instant};

use super::confinement;
use super::forwarder::Forwarder;
use crate::control::messages::{
    Bytes, Candidates, Connections, PeerStatus, ProxyEntry, RemoteStreams, SourceState, Status,
};
use crate::discovery::status::{self, Finding};
use crate::discovery::table::Row;
use crate::engine::Cx;

pub(super) fn status(forwarder: &Forwarder, cx: &Cx<'_>) -> Status {
    let discovery = forwarder.discovery.borrow();
    let stats = *forwarder.intake.stats.borrow();
    let totals = forwarder.route.totals();
    let served = forwarder.served.counts();
    let count = |status| discovery.table.count(status) as u64;
    let refused_by_reason = [
        ("not-allowed", stats.not_allowed),
        ("peer", stats.peers),
        ("per-client-limit", stats.over_client_limit),
    ];
    Status {
        remote: forwarder.remote().map(|(_, name)| name),
        reason: Some(forwarder.reason()),
        mode: forwarder.mode,
        listening: forwarder.listening(),
        probing: discovery.is_running(),
        connections: Connections {
            active: forwarder.intake.limits.active() as u64,
            parked: cx.parked() as u64,
            total: stats.accepted,
            refused: stats.refused() + served.refused.iter().map(|(_, count)| count).sum::<u64>(),
            refused_by_reason: refused_by_reason
                .into_iter()
                .chain(served.refused)
                .filter(|(_, count)| *count > 0)
                .collect(),
        },
        bytes: Bytes {
            up: totals.up + served.up,
            down: totals.down + served.down,
        },
        candidates: Candidates {
            valid: count(status::Status::Valid),
            authentication_required: count(status::Status::AuthenticationRequired),
            socks6: count(status::Status::Socks6),
            not_a_proxy: count(status::Status::NotAProxy),
            not_listening: count(status::Status::NotListening),
            unknown: count(status::Status::Unknown),
        },
        sources: discovery
            .sources()
            .iter()
            .map(|source| SourceState {
                name: source.name.clone(),
                error: source.error.clone(),
                left_out: source.left_out as u64,
            })
            .collect(),
        streams: streams(forwarder, cx.now),
        uptime_s: seconds(cx.now.saturating_duration_since(forwarder.started)),
        last_error: forwarder.last_error(),
        served_directly: forwarder.served.served_directly(),
        associations: forwarder.served.associations() as u64,
        confined_by: confinement::in_force(),
    }
}

/// The remotes that carry streams, the one in use first.
fn streams(forwarder: &Forwarder, now: Instant) -> Vec<RemoteStreams> {
    let (address, name) = forwarder.remote().unzip();
    let passed_on = forwarder.route.remotes();
    let passed_on = passed_on.into_iter().filter(|counts| counts.live > 0);
    let cut_in = |remote, selected: bool| {
        let cut_in = forwarder.cut_in(remote, now).map(seconds);
        cut_in.filter(|_| !selected)
    };
    let is_selected = |remote| address == Some(Some(remote));
    let passed_on = passed_on.map(|counts| RemoteStreams {
        remote: counts.remote.to_string(),
        selected: is_selected(counts.remote),
        live: counts.live as u64,
        total: Some(counts.taken),
        bytes: Some(Bytes {
            up: counts.bytes.up,
            down: counts.bytes.down,
        }),
        cut_in_s: cut_in(Some(counts.remote), is_selected(counts.remote)),
    });
    let converted = forwarder.served.converted().into_iter();
    let converted = converted.map(|(proxy, live)| RemoteStreams {
        cut_in_s: cut_in(None, name.as_ref() == Some(&proxy)),
        selected: name.as_ref() == Some(&proxy),
        remote: proxy,
        live: live as u64,
        total: None,
        bytes: None,
    });
    let mut streams: Vec<_> = passed_on.chain(converted).collect();
    if let Some(first) = streams.iter().position(|streams| streams.selected)
        && let Some(before) = streams.get_mut(..=first)
    {
        before.rotate_right(1);
    }
    streams
}

/// One peer as it is shown.
pub(super) fn entry(row: &Row, sources: Vec<String>, selected: bool) -> ProxyEntry {
    ProxyEntry {
        address: row.address.to_string(),
        status: row.status.into(),
        reason: row.reason.to_string(),
        latency_ms: row.latency.map(|latency| seconds(latency * 1000)),
        sources,
        last_probed_s: row.last_probed.map(seconds),
        last_valid_s: row.last_valid.map(seconds),
        failures: row.failures.into(),
        selected,
        score: row
            .score
            .map(|score| (f64::from(score) * 10.0).round() / 10.0),
        latency_spread_ms: row.spread.map(|spread| seconds(spread * 1000)),
        good_for_s: row.good_for.map(seconds),
        candidate: row.candidate,
        preferred: row.preferred,
        why: None,
    }
}

/// What a probe that was made once found.
pub(crate) fn finding(address: String, finding: &Finding) -> ProxyEntry {
    let latency = match finding {
        Finding::Answered { latency, .. } => Some(*latency),
        Finding::Failed { .. } | Finding::Local { .. } => None,
    };
    let status = finding.status();
    ProxyEntry {
        latency_ms: latency.map(|latency| seconds(latency * 1000)),
        last_probed_s: Some(0.0),
        last_valid_s: (status == status::Status::Valid).then_some(0.0),
        failures: u32::from(status != status::Status::Valid),
        ..bare(address, status.into(), finding.reason().to_string())
    }
}

/// A name without an address.
pub(crate) fn unresolved(address: String, error: &str) -> ProxyEntry {
    bare(address, PeerStatus::Unknown, error.to_owned())
}

fn bare(address: String, status: PeerStatus, reason: String) -> ProxyEntry {
    ProxyEntry {
        address,
        status,
        reason,
        latency_ms: None,
        sources: vec!["flag".to_owned()],
        last_probed_s: None,
        last_valid_s: None,
        failures: 0,
        selected: false,
        score: None,
        latency_spread_ms: None,
        good_for_s: None,
        candidate: true,
        preferred: None,
        why: None,
    }
}

impl From<status::Status> for PeerStatus {
    fn from(status: status::Status) -> Self {
        match status {
            status::Status::Valid => Self::Valid,
            status::Status::AuthenticationRequired => Self::AuthenticationRequired,
            status::Status::Socks6 => Self::Socks6,
            status::Status::NotAProxy => Self::NotAProxy,
            status::Status::NotListening => Self::NotListening,
            status::Status::Unknown => Self::Unknown,
        }
    }
}

/// Rounded to a thousandth, so that JSON stays readable.
pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
