//! `sockhop proxies`: every known peer with its status, as a table.

use argh::{ArgsInfo, FromArgs};

use super::ask::Question;
use super::table::{age, table};
use super::{Failure, output};
use crate::control::messages::{Call, ProxyEntry};

/// Show every peer that a running forwarder knows, with its status.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "proxies",
    help_triggers("-h", "--help"),
    usage = "[options]",
    example = "sockhop proxies\nsockhop proxies --json",
    note = "\
The proxy in use has a star. Only valid peers are chosen automatically:

valid                    a SOCKS5 proxy without authentication
authentication-required  a SOCKS5 proxy that wants a password
socks6                   a SOCKS 6 proxy, with forward --probe-socks6
not-a-proxy              answered something else, or closed
not-listening            refused, unreachable, or silent
unknown                  not probed yet"
)]
pub(super) struct Proxies {
    /// PATH of the control socket (default $XDG_RUNTIME_DIR/sockhop.sock, else
    /// /run/sockhop.sock)
    #[argh(option)]
    control: Option<String>,

    /// print JSON
    #[argh(switch)]
    json: bool,

    /// TIME for the answer (default 30s)
    #[argh(option, hidden_help)]
    reply_timeout: Option<String>,
}

impl Proxies {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let question = Question {
            command: "proxies",
            control: self.control.as_deref(),
            reply_timeout: self.reply_timeout.as_deref(),
            json: self.json,
        };
        question.ask(&Call::Proxies, |entries: Vec<ProxyEntry>| {
            text(&entries, output::width())
        })
    }
}

/// The table, also of `sockhop probe`. Address and status are never cut.
pub(super) fn text(entries: &[ProxyEntry], width: Option<usize>) -> String {
    let heading = [
        "", "ADDRESS", "STATUS", "LATENCY", "PROBED", "VALID", "FAILED", "SOURCES", "REASON",
    ];
    let ago = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), age);
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            if entry.selected { "*" } else { "" }.to_owned(),
            entry.address.clone(),
            entry.status.to_string(),
            entry
                .latency_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
            ago(entry.last_probed_s),
            ago(entry.last_valid_s),
            entry.failures.to_string(),
            entry.sources.join(","),
            entry.reason.clone(),
        ]
    }));
    table(&rows, 7, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::messages::PeerStatus;

    #[test]
    fn one_line_a_peer() {
        let valid = ProxyEntry {
            address: "[407::1]:1080".to_owned(),
            status: PeerStatus::Valid,
            reason: "answered 05 00".to_owned(),
            latency_ms: Some(12.34),
            sources: vec!["flag".to_owned(), "file".to_owned()],
            last_probed_s: Some(3.1),
            last_valid_s: Some(130.0),
            failures: 0,
            selected: true,
            score: None,
            latency_spread_ms: None,
            good_for_s: None,
            candidate: true,
            preferred: None,
            why: None,
        };
        let dead = ProxyEntry {
            address: "10.0.0.1:1080".to_owned(),
            status: PeerStatus::NotAProxy,
            reason: "sent \"HTTP/1.1\u{7}".to_owned(),
            latency_ms: None,
            sources: vec!["flag".to_owned()],
            last_probed_s: Some(3.1),
            last_valid_s: None,
            failures: 12,
            selected: false,
            score: None,
            latency_spread_ms: None,
            good_for_s: None,
            candidate: true,
            preferred: None,
            why: None,
        };
        assert_eq!(
            text(&[valid, dead], None),
            "   ADDRESS        STATUS       LATENCY  PROBED  VALID  FAILED  SOURCES    REASON\n\
             *  [407::1]:1080  valid        12.3 ms  3s      2m     0       flag,file  answered 05 00\n   \
                10.0.0.1:1080  not-a-proxy  -        3s      -      12      flag       sent \"HTTP/1.1\\u{7}\n"
        );
        assert_eq!(text(&[], None).lines().count(), 1);
    }
}
