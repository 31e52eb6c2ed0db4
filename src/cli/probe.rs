//! `sockhop probe`: probe some addresses once.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of options are help text, where brackets are those of IPv6"
)]

use std::cell::RefCell;
use std::io::{IsTerminal, stderr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use argh::{ArgsInfo, FromArgs};

use super::link::{self, ProbeRequest};
use super::{Failure, output, proxies, values};
use crate::control::messages::{PeerStatus, ProxyEntry};
use crate::daemon::settings::{PROBE_TIMEOUT, TIMEOUTS};
use crate::peer::Peer;

/// Probe the given addresses once and print what they are.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "probe",
    help_triggers("-h", "--help"),
    example = "\
sockhop probe 407::1 10.1.2.3:1080
sockhop probe --timeout 2s --target example.org:443 proxy.example",
    error_code(0, "At least one address is a proxy that can be used."),
    error_code(1, "None is, or probing failed.")
)]
pub(super) struct Probe {
    /// HOST, HOST:PORT, [V6]:PORT or socks5://[USER:PASSWORD@]HOST:PORT (port
    /// 1080)
    #[argh(positional, arg_name = "ADDRESS")]
    address: Vec<String>,

    /// TIME for each probe as a whole (default 5s)
    #[argh(option)]
    timeout: Option<String>,

    /// HOST:PORT that the proxies must also be able to connect to (default
    /// none)
    #[argh(option)]
    target: Option<String>,

    /// also ask those in SOCKS 6 that are no SOCKS5 proxies for us
    #[argh(switch)]
    probe_socks6: bool,

    /// NAME: how they are asked in SOCKS 6: draft12 (the default), draft11,
    /// go212 or s6m207
    #[argh(option)]
    socks6_profile: Option<String>,

    /// NAME of the interface that probes leave by (default that of the route)
    #[argh(option)]
    interface: Option<String>,

    /// ADDR of this machine that they come from, once for each family (default
    /// the system's choice)
    #[argh(option)]
    source: Vec<String>,

    /// NUMBER, such as 31 or 0x1f, that their packets are marked with, for rules
    /// of routing and firewall (default none)
    #[argh(option)]
    mark: Option<String>,

    /// print JSON
    #[argh(switch)]
    json: bool,

    /// show a log; twice for more
    #[argh(switch, short = 'v')]
    verbose: u8,

    /// show no warnings
    #[argh(switch, short = 'q')]
    quiet: u8,
}

impl Probe {
    pub(super) fn loudness(&self) -> i32 {
        i32::from(self.verbose) - i32::from(self.quiet)
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        let request = self.request()?;
        values::usable(&request.uplink)?;
        let progress = Rc::new(RefCell::new(Progress::new(request.addresses.len())));
        let shown = Rc::clone(&progress);
        let result = link::probe(&request, move |done| shown.borrow_mut().show(done));
        progress.borrow().clear();
        let entries = result?;
        output::print(&if self.json {
            json(&entries)?
        } else {
            proxies::text(&entries, output::width())
        })?;
        if entries
            .iter()
            .any(|entry| matches!(entry.status, PeerStatus::Valid | PeerStatus::Socks6))
        {
            Ok(())
        } else {
            Err(Failure::because("no address is a proxy that can be used"))
        }
    }

    fn request(&self) -> Result<ProbeRequest, Failure> {
        if self.address.is_empty() {
            return Err(Failure::usage("no address to probe", Some(NAME)));
        }
        Ok(ProbeRequest {
            addresses: values::options(NAME, "ADDRESS", &self.address, Peer::parse_listed)?,
            timeout: values::optional(NAME, "--timeout", self.timeout.as_deref(), |text| {
                values::duration(text, &TIMEOUTS)
            })?
            .unwrap_or(PROBE_TIMEOUT),
            target: values::optional(NAME, "--target", self.target.as_deref(), str::parse)?,
            socks6: values::ask_socks6(NAME, self.probe_socks6, self.socks6_profile.as_deref())?,
            uplink: values::uplink(
                NAME,
                self.interface.as_deref(),
                &self.source,
                self.mark.as_deref(),
            )?,
        })
    }
}

fn json(entries: &[ProxyEntry]) -> Result<String, Failure> {
    serde_json::to_string(entries)
        .map(|text| text + "\n")
        .map_err(|error| Failure::not_done(&error, None))
}

/// One line on a terminal that is written over, from the time on when people begin to wonder.
struct Progress {
    total: usize,
    from: Instant,
    wanted: bool,
    shown: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            total,
            from: Instant::now() + PATIENCE,
            wanted: stderr().is_terminal(),
            shown: false,
        }
    }

    fn show(&mut self, done: usize) {
        if self.wanted && Instant::now() >= self.from {
            self.shown = true;
            output::message(&format!("\rprobed {done} of {}", self.total));
        }
    }

    fn clear(&self) {
        if self.shown {
            output::message("\r\x1b[K");
        }
    }
}

const NAME: &str = "probe";
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::probe::AskSocks6;
    use crate::net::Uplink;

    fn request(arguments: &[&str]) -> Result<ProbeRequest, String> {
        Probe::from_args(&["sockhop", NAME], arguments)
            .expect("argh takes it")
            .request()
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn addresses_and_options_reach_the_request() {
        assert_eq!(
            request(&["help", "407::1", "--timeout", "2s", "--target", "a:443"]),
            Ok(ProbeRequest {
                addresses: vec![
                    "help:1080".parse().unwrap(),
                    "[407::1]:1080".parse().unwrap()
                ],
                timeout: Duration::from_secs(2),
                target: Some("a:443".parse().unwrap()),
                socks6: AskSocks6::No,
                uplink: Uplink::default(),
            })
        );
        assert!(request(&[]).unwrap_err().contains("no address"));
    }

    #[test]
    fn help_shows_the_real_defaults() {
        let flags = Probe::get_args_info().flags;
        let timeout = flags.iter().find(|flag| flag.long == "--timeout").unwrap();
        let default = humantime::format_duration(PROBE_TIMEOUT);
        assert!(
            timeout
                .description
                .contains(&format!("(default {default})"))
        );
    }
}
