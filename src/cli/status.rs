//! `sockhop status`: what a running forwarder or server does now.

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::ask::Question;
use super::table::{bytes, escape};
use super::watch::{INTERVALS, watch};
use super::wrap::wrap;
use super::{Failure, output, values};
use crate::control::messages::{
    AnyStatus, ByName, Bytes, Call, Connections, RemoteStreams, ServerStatus, Status as Answer,
    UserStatus,
};

/// Show what a running forwarder or server does.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "status",
    help_triggers("-h", "--help"),
    example = "sockhop status\nsockhop status --watch\nsockhop status --json | jq .remote",
    note = "\
With --watch a terminal shows one answer in the place of the other, and a
program that has ended is waited for; ^C ends it. Elsewhere, and with --json,
one answer follows the other until one does not come: exit status 1."
)]
pub(super) struct Status {
    /// PATH of the control socket (default $XDG_RUNTIME_DIR/sockhop.sock, else
    /// /run/sockhop.sock)
    #[argh(option)]
    control: Option<String>,

    /// print JSON
    #[argh(switch)]
    json: bool,

    /// TIME, which may be left out (2s): show it anew again and again
    #[argh(option)]
    watch: Option<String>,

    /// TIME for the answer (default 30s)
    #[argh(option, hidden_help)]
    reply_timeout: Option<String>,
}

impl Status {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let question = Question {
            command: "status",
            control: self.control.as_deref(),
            reply_timeout: self.reply_timeout.as_deref(),
            json: self.json,
        };
        let show = |status, width| match status {
            AnyStatus::Forwarder(status) => text(&status, width),
            AnyStatus::Server(status) => server_text(&status, width),
        };
        let interval = values::optional("status", "--watch", self.watch.as_deref(), |text| {
            values::duration(text, &INTERVALS)
        })?;
        match interval {
            Some(interval) => watch(&question, &Call::Status, interval, show),
            None => question.ask(&Call::Status, |status| show(status, output::width())),
        }
    }
}

fn text(status: &Answer, width: Option<usize>) -> String {
    let Answer {
        connections,
        candidates,
        ..
    } = status;
    let mut remote = status.remote.clone().unwrap_or_else(|| "none".to_owned());
    if let Some(reason) = &status.reason {
        remote = format!("{remote} ({reason})");
    }
    let sources: Vec<_> = status
        .sources
        .iter()
        .map(|source| match &source.error {
            Some(error) => format!("{} ({error})", source.name),
            None => source.name.clone(),
        })
        .collect();
    let sources = sources.join(", ");

    let socks6 = match candidates.socks6 {
        0 => String::new(),
        count => format!("{count} socks6, "),
    };

    let mut lines = vec![
        ("remote", remote),
        ("mode", status.mode.to_string()),
        ("listening", places(&status.listening)),
        (
            "probing",
            if status.probing { "on" } else { "off" }.to_owned(),
        ),
        (
            "candidates",
            format!(
                "{} valid, {} authentication-required, {socks6}{} not-a-proxy, {} not-listening, {} unknown",
                candidates.valid,
                candidates.authentication_required,
                candidates.not_a_proxy,
                candidates.not_listening,
                candidates.unknown
            ),
        ),
        ("sources", sources),
        ("connections", clients(connections)),
        ("bytes", both_ways(status.bytes)),
        ("running for", uptime(status.uptime_s)),
    ];
    let place = lines.iter().position(|(name, _)| *name == "connections");
    let place = place.unwrap_or(lines.len());
    for streams in status.streams.iter().rev() {
        lines.insert(
            place,
            (
                if streams.selected {
                    "streams"
                } else {
                    "old streams"
                },
                carried(streams),
            ),
        );
    }
    if status.associations > 0 {
        let place = place + status.streams.len() + 1;
        let count = format!("{} associations", status.associations);
        lines.insert(place.min(lines.len()), ("datagrams", count));
    }
    if let Some(count) = status.served_directly {
        lines.push(("fallback", format!("{count} clients served directly")));
    }
    if let Some(error) = &status.last_error {
        lines.push(("last error", format!("{} {}", error.at, error.what)));
    }
    written(lines, width)
}

/// What a remote carries.
fn carried(streams: &RemoteStreams) -> String {
    let RemoteStreams { remote, live, .. } = streams;
    let mut text = format!("{remote}: {live} live");
    if let Some(total) = streams.total {
        text = format!("{text}, {total} in total");
    }
    if let Some(bytes) = streams.bytes {
        text = format!("{text}, {}", both_ways(bytes));
    }
    if let Some(left) = streams.cut_in_s {
        text = format!("{text}, cut in {}", uptime(left));
    }
    text
}

fn server_text(status: &ServerStatus, width: Option<usize>) -> String {
    let users = match status.users {
        Some(users) => format!("{users}"),
        None => "not asked for".to_owned(),
    };
    let mut lines = vec![
        ("mode", "server".to_owned()),
        ("listening", places(&status.listening)),
        ("users", users),
        ("clients", status.clients.to_string()),
    ];
    if !status.via.is_empty() {
        lines.push(("via", status.via.join(", then ")));
    }
    lines.push(("connections", clients(&status.connections)));
    if let Some(datagrams) = datagrams(status) {
        lines.push(("datagrams", datagrams));
    }
    if status.sessions > 0 {
        lines.push(("sessions", status.sessions.to_string()));
    }
    lines.push(("bytes", both_ways(status.bytes)));
    for (name, user) in status.by_user.iter() {
        let UserStatus {
            active,
            total,
            bytes,
        } = *user;
        let bytes = both_ways(bytes);
        lines.push((
            "user",
            format!("{name}: {active} active, {total} in total, {bytes}"),
        ));
    }
    lines.push(("running for", uptime(status.uptime_s)));
    written(lines, width)
}

/// Of a server that carries some or has dropped some.
fn datagrams(status: &ServerStatus) -> Option<String> {
    let dropped: u64 = status.dropped_datagrams.sum();
    if (status.associations, dropped) == (0, 0) {
        return None;
    }
    let dropped = with_reasons(&format!("{dropped} dropped"), &status.dropped_datagrams);
    Some(format!("{} associations, {dropped}", status.associations))
}

fn both_ways(moved: Bytes) -> String {
    format!("{} up, {} down", bytes(moved.up), bytes(moved.down))
}

fn places(listening: &[String]) -> String {
    match listening {
        [] => "nowhere".to_owned(),
        addresses => addresses.join(", "),
    }
}

fn clients(connections: &Connections) -> String {
    let refused = format!("{} refused", connections.refused);
    format!(
        "{} active ({} parked), {} in total, {}",
        connections.active,
        connections.parked,
        connections.total,
        with_reasons(&refused, &connections.refused_by_reason)
    )
}

fn with_reasons(what: &str, by_reason: &ByName<u64>) -> String {
    let reasons: Vec<_> = by_reason
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if reasons.is_empty() {
        return what.to_owned();
    }
    format!("{what} ({})", reasons.join(", "))
}

/// A negative or absurd number, which only another program would send, is shown as 0.
fn uptime(seconds: f64) -> String {
    let uptime = Duration::try_from_secs_f64(seconds.floor()).unwrap_or_default();
    humantime::format_duration(uptime).to_string()
}

fn written(lines: Vec<(&str, String)>, width: Option<usize>) -> String {
    lines
        .into_iter()
        .map(|(name, value)| wrap(&format!("{name:<12} "), &escape(&value), width))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Mode;
    use crate::control::messages::{Candidates, LastError, Role, SourceState};
    use crate::control::reading::Readable as _;

    #[test]
    fn a_server_at_work() {
        let json = r#"{"role":"server","listening":["[::]:1080"],"users":2,"bytes":{"up":1536,"down":0},"uptime_s":1,
            "clients":2,"by_user":{"ada":{"active":1,"total":4,"bytes":{"up":1536,"down":0}},"b\u001b":{"active":0,"total":1,"bytes":{"up":0,"down":0}}},
            "connections":{"active":3,"parked":2,"total":9,"refused":1,"refused_by_reason":{"rules":1}},
            "associations":1,"sessions":3,"dropped_datagrams":{"fragment":2,"rules":1}}"#;
        let AnyStatus::Server(status) = AnyStatus::read(json).unwrap() else {
            panic!("not a server's");
        };
        assert_eq!(status.role, Role::Server);
        assert_eq!(
            server_text(&status, None),
            "mode         server\n\
             listening    [::]:1080\n\
             users        2\n\
             clients      2\n\
             connections  3 active (2 parked), 9 in total, 1 refused (rules 1)\n\
             datagrams    1 associations, 3 dropped (fragment 2, rules 1)\n\
             sessions     3\n\
             bytes        1.5 KiB up, 0 B down\n\
             user         ada: 1 active, 4 in total, 1.5 KiB up, 0 B down\n\
             user         b\\u{1b}: 0 active, 1 in total, 0 B up, 0 B down\n\
             running for  1s\n"
        );
    }

    #[test]
    fn a_forwarder_at_work() {
        let status = Answer {
            remote: Some("[407::1]:1080".to_owned()),
            reason: Some("won the race".to_owned()),
            mode: Mode::Automatic,
            listening: vec!["[::]:1080".to_owned(), "unix:/x".to_owned()],
            probing: true,
            connections: Connections {
                active: 3,
                parked: 2,
                total: 120,
                refused: 5,
                refused_by_reason: [("limit", 1), ("peer", 4)].into_iter().collect(),
            },
            bytes: Bytes {
                up: 1536,
                down: 3 << 30,
            },
            candidates: Candidates {
                valid: 2,
                not_listening: 90,
                ..Candidates::default()
            },
            sources: vec![
                SourceState {
                    name: "flag".to_owned(),
                    error: None,
                    left_out: 0,
                },
                SourceState {
                    name: "file:/peers".to_owned(),
                    error: Some("no such file".to_owned()),
                    left_out: 0,
                },
            ],
            streams: vec![
                RemoteStreams {
                    remote: "[407::1]:1080".to_owned(),
                    selected: true,
                    live: 1,
                    total: Some(110),
                    bytes: Some(Bytes { up: 5, down: 6 }),
                    cut_in_s: None,
                },
                RemoteStreams {
                    remote: "10.0.0.1:1080".to_owned(),
                    selected: false,
                    live: 2,
                    total: Some(10),
                    bytes: Some(Bytes { up: 0, down: 2048 }),
                    cut_in_s: Some(28.3),
                },
            ],
            uptime_s: 3725.9,
            last_error: Some(LastError {
                at: "2026-01-01T00:00:00Z".to_owned(),
                what: "bad \u{1b}".to_owned(),
            }),
            served_directly: Some(7),
            associations: 2,
            confined_by: Vec::new(),
        };
        assert_eq!(
            text(&status, None),
            "remote       [407::1]:1080 (won the race)\n\
             mode         automatic\n\
             listening    [::]:1080, unix:/x\n\
             probing      on\n\
             candidates   2 valid, 0 authentication-required, 0 not-a-proxy, 90 not-listening, 0 unknown\n\
             sources      flag, file:/peers (no such file)\n\
             streams      [407::1]:1080: 1 live, 110 in total, 5 B up, 6 B down\n\
             old streams  10.0.0.1:1080: 2 live, 10 in total, 0 B up, 2.0 KiB down, cut in 28s\n\
             connections  3 active (2 parked), 120 in total, 5 refused (limit 1, peer 4)\n\
             datagrams    2 associations\n\
             bytes        1.5 KiB up, 3.0 GiB down\n\
             running for  1h 2m 5s\n\
             fallback     7 clients served directly\n\
             last error   2026-01-01T00:00:00Z bad \\u{1b}\n"
        );
    }
}
