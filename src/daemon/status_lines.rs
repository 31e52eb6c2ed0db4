//! The status in a few lines of log, for SIGUSR1: what there is where nobody can reach the control socket.

use std::time::Duration;

#[cfg(feature = "server")]
use crate::control::messages::ServerStatus;
use crate::control::messages::{Bytes, Connections, Status};

/// What a forwarder does now.
pub(super) fn of_forwarder(status: &Status) -> Vec<String> {
    let remote = status.remote.as_deref().unwrap_or("none");
    let reason = status.reason.as_deref().unwrap_or_default();
    let peers = &status.candidates;
    let mut lines = vec![
        format!(
            "remote {remote} ({reason}), mode {}, listening on {}, running for {}",
            status.mode,
            places(&status.listening),
            uptime(status.uptime_s)
        ),
        carried(&status.connections, status.bytes),
        format!(
            "peers: {} valid, {} authentication-required, {} socks6, {} not-a-proxy, {} not-listening, {} unknown; \
             probing is {}",
            peers.valid,
            peers.authentication_required,
            peers.socks6,
            peers.not_a_proxy,
            peers.not_listening,
            peers.unknown,
            if status.probing { "on" } else { "off" }
        ),
    ];
    for source in &status.sources {
        if let Some(error) = &source.error {
            lines.push(format!("source {}: {error}", source.name));
        }
    }
    if let Some(error) = &status.last_error {
        lines.push(format!("last error {} {}", error.at, error.what));
    }
    lines
}

/// What a server does now.
#[cfg(feature = "server")]
pub(super) fn of_server(status: &ServerStatus) -> Vec<String> {
    let users = match status.users {
        Some(users) => users.to_string(),
        None => "none".to_owned(),
    };
    vec![
        format!(
            "listening on {}, users: {users}, running for {}",
            places(&status.listening),
            uptime(status.uptime_s)
        ),
        carried(&status.connections, status.bytes),
    ]
}

fn carried(connections: &Connections, bytes: Bytes) -> String {
    format!(
        "connections: {} active, {} of them parked, {} in total, {} refused; bytes: {} up, {} down",
        connections.active,
        connections.parked,
        connections.total,
        connections.refused,
        bytes.up,
        bytes.down
    )
}

fn places(listening: &[String]) -> String {
    match listening {
        [] => "nothing".to_owned(),
        some => some.join(", "),
    }
}

fn uptime(seconds: f64) -> humantime::FormattedDuration {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    humantime::format_duration(Duration::from_secs(whole.as_secs()))
}
