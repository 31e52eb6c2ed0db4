//! `sockhop proxies`: every known peer with its status, as a table.

use argh::{ArgsInfo, FromArgs};

use super::ask::Question;
use super::table::{age, escape, table, tenths, whole};
use super::wrap::wrap;
use super::{Failure, output};
use crate::control::messages::{Call, ProxyEntry};

/// Show every peer that a running forwarder knows, with its status.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "proxies",
    help_triggers("-h", "--help"),
    example = "sockhop proxies\nsockhop proxies --json",
    note = "\
The best come first, the proxy in use has a star. PROBED and VALID are ages,
FAILED counts failures in a row. Only valid peers are chosen automatically:

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

/// The table, also of `sockhop probe`. Where it is wider than the terminal, what has words follows on lines of its own; where that is
/// too wide still, each peer is a paragraph. No word is cut or broken.
pub(super) fn text(entries: &[ProxyEntry], width: Option<usize>) -> String {
    let shown: Vec<Shown> = entries.iter().map(Shown::of).collect();
    let fits =
        |lines: &[String]| width.is_none_or(|width| lines.iter().all(|line| line.len() <= width));
    let with_score = entries.iter().any(|entry| entry.score.is_some());
    let lines = columns(&shown, with_score, Words::Beside);
    if fits(&lines) {
        return lines.iter().flat_map(|line| [line, "\n"]).collect();
    }
    let lines = columns(&shown, with_score, Words::Below);
    if fits(&lines) {
        let mut lines = lines.into_iter();
        let heading = lines.next().unwrap_or_default();
        let rows = lines.zip(&shown).map(|(line, shown)| {
            let below = match shown.sources.as_str() {
                NOTHING => shown.why.clone(),
                sources => format!("{}; from {sources}", shown.why),
            };
            let below = wrap(INDENT, &below, width);
            format!("{line}\n{below}")
        });
        return [format!("{heading}\n")].into_iter().chain(rows).collect();
    }
    let paragraph = |shown: &Shown| {
        let text = shown.paragraph();
        format!(
            "{:<3}{}\n{}",
            shown.mark,
            shown.address,
            wrap(INDENT, &text, width)
        )
    };
    shown.iter().map(paragraph).collect()
}

/// Where sources and reason are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Beside,
    Below,
}

/// The lines of the table, with its heading.
fn columns(shown: &[Shown], with_score: bool, words: Words) -> Vec<String> {
    let heading = Shown {
        mark: "",
        address: "ADDRESS".to_owned(),
        status: "STATUS".to_owned(),
        score: "SCORE".to_owned(),
        latency: "LATENCY".to_owned(),
        probed: "PROBED".to_owned(),
        valid: "VALID".to_owned(),
        failed: "FAILED".to_owned(),
        sources: "SOURCES".to_owned(),
        why: "REASON".to_owned(),
    };
    let rows: Vec<Vec<String>> = [&heading]
        .into_iter()
        .chain(shown)
        .map(|one| {
            let mut row = vec![one.mark.to_owned(), one.address.clone(), one.status.clone()];
            if with_score {
                row.push(one.score.clone());
            }
            row.extend([&one.latency, &one.probed, &one.valid, &one.failed].map(String::clone));
            if words == Words::Beside {
                row.extend([one.sources.clone(), one.why.clone()]);
            }
            row
        })
        .collect();
    table(&rows, if with_score { &[3] } else { &[] })
}

/// An entry in words, as printable ASCII.
struct Shown {
    mark: &'static str,
    address: String,
    status: String,
    score: String,
    latency: String,
    probed: String,
    valid: String,
    failed: String,
    sources: String,
    why: String,
}

impl Shown {
    fn of(entry: &ProxyEntry) -> Self {
        let ago = |seconds: Option<f64>| seconds.map_or_else(|| NOTHING.to_owned(), age);
        let latency = match (entry.latency_ms, entry.latency_spread_ms) {
            (None, _) => NOTHING.to_owned(),
            (Some(ms), None) => format!("{} ms", tenths(ms)),
            (Some(ms), Some(spread)) => format!("{}+-{} ms", tenths(ms), tenths(spread)),
        };
        let mut why = escape(&entry.reason);
        if !entry.candidate {
            why.push_str("; never chosen (--only, --never)");
        }
        if let Some(reason) = &entry.why {
            why = format!("{why}; {}", escape(reason));
        }
        Self {
            mark: if entry.selected { "*" } else { "" },
            address: escape(&entry.address),
            status: entry.status.to_string(),
            score: entry.score.map_or_else(
                || NOTHING.to_owned(),
                |score| whole(score.round()).to_string(),
            ),
            latency,
            probed: ago(entry.last_probed_s),
            valid: ago(entry.last_valid_s),
            failed: entry.failures.to_string(),
            sources: match entry.sources.as_slice() {
                [] => NOTHING.to_owned(),
                sources => escape(&sources.join(",")),
            },
            why,
        }
    }

    fn paragraph(&self) -> String {
        let mut parts = vec![self.status.clone()];
        let mut add = |before: &str, value: &str, after: &str| {
            if value != NOTHING {
                parts.push(format!("{before}{value}{after}"));
            }
        };
        add("score ", &self.score, "");
        add("", &self.latency, "");
        add("probed ", &self.probed, " ago");
        add("valid ", &self.valid, " ago");
        if self.failed != "0" {
            add("failed ", &self.failed, "");
        }
        add("from ", &self.sources, "");
        format!("{}; {}", parts.join(", "), self.why)
    }
}

const NOTHING: &str = "-";

/// Of what belongs to the line before.
const INDENT: &str = "     ";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::messages::PeerStatus;

    fn valid() -> ProxyEntry {
        ProxyEntry {
            address: "[407::1]:1080".to_owned(),
            status: PeerStatus::Valid,
            reason: "answered 05 00".to_owned(),
            latency_ms: Some(12.34),
            sources: vec!["flag".to_owned(), "mycelium".to_owned()],
            last_probed_s: Some(3.1),
            last_valid_s: Some(130.0),
            failures: 0,
            selected: true,
            score: Some(87.4),
            latency_spread_ms: Some(0.44),
            good_for_s: None,
            candidate: true,
            preferred: None,
            why: Some("best score of 3".to_owned()),
        }
    }

    fn dead() -> ProxyEntry {
        ProxyEntry {
            address: "10.0.0.1:1080".to_owned(),
            status: PeerStatus::NotAProxy,
            reason: "sent \"HTTP/1.1\u{7}".to_owned(),
            latency_ms: None,
            sources: Vec::new(),
            last_probed_s: Some(3.1),
            last_valid_s: None,
            failures: 12,
            selected: false,
            score: None,
            latency_spread_ms: None,
            candidate: false,
            why: None,
            ..valid()
        }
    }

    #[test]
    fn one_line_a_peer() {
        assert_eq!(
            text(&[valid(), dead()], None),
            "   ADDRESS        STATUS       SCORE  LATENCY       PROBED  VALID  FAILED  SOURCES        REASON\n\
             *  [407::1]:1080  valid           87  12.3+-0.4 ms  3s      2m     0       flag,mycelium  answered 05 00; best score of 3\n   \
                10.0.0.1:1080  not-a-proxy      -  -             3s      -      12      -              sent \"HTTP/1.1\\u{7}; never chosen (--only, --never)\n"
        );
        assert_eq!(text(&[], None).lines().count(), 1);
        // Of a probe that was made once there is no score.
        assert_eq!(
            text(&[dead()], None),
            "  ADDRESS        STATUS       LATENCY  PROBED  VALID  FAILED  SOURCES  REASON\n  \
               10.0.0.1:1080  not-a-proxy  -        3s      -      12      -        sent \"HTTP/1.1\\u{7}; never chosen (--only, --never)\n"
        );
    }

    #[test]
    fn what_has_words_goes_below_on_a_terminal() {
        assert_eq!(
            text(&[valid(), dead()], Some(80)),
            "   ADDRESS        STATUS       SCORE  LATENCY       PROBED  VALID  FAILED\n\
             *  [407::1]:1080  valid           87  12.3+-0.4 ms  3s      2m     0\n     \
                  answered 05 00; best score of 3; from flag,mycelium\n   \
                10.0.0.1:1080  not-a-proxy      -  -             3s      -      12\n     \
                  sent \"HTTP/1.1\\u{7}; never chosen (--only, --never)\n"
        );
    }

    #[test]
    fn on_a_narrow_one_each_peer_is_a_paragraph() {
        assert_eq!(
            text(&[valid(), dead()], Some(40)),
            "*  [407::1]:1080\n     \
                  valid, score 87, 12.3+-0.4 ms,\n     \
                  probed 3s ago, valid 2m ago, from\n     \
                  flag,mycelium; answered 05 00; best\n     \
                  score of 3\n   \
                10.0.0.1:1080\n     \
                  not-a-proxy, probed 3s ago, failed\n     \
                  12; sent \"HTTP/1.1\\u{7}; never\n     \
                  chosen (--only, --never)\n"
        );
    }

    proptest! {
        #[test]
        fn lines_fit_and_words_stay_whole(
            reasons in prop::collection::vec("[a-z ]{0,90}", 1..5),
            width in 30usize..200,
        ) {
            let entries: Vec<_> = reasons
                .iter()
                .map(|reason| ProxyEntry { reason: reason.clone(), ..valid() })
                .collect();
            let text = text(&entries, Some(width));
            for line in text.lines() {
                let words = line.split_whitespace().count();
                prop_assert!(line.len() <= width || words == 1, "{} > {width}: {line:?}", line.len());
            }
            for word in reasons.iter().flat_map(|reason| reason.split_whitespace()) {
                prop_assert!(text.contains(word), "{word:?}");
            }
        }
    }
}
