//! `sockhop connect`: choose the remote of a running forwarder.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of options are help text, where brackets are those of IPv6"
)]

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::ask::Question;
use super::table::escape;
use super::{Failure, values};
use crate::control::messages::{Call, Connected, MAX_DRAIN};
use crate::remote::Remote;

/// Connect a running forwarder to a proxy, or to the first that answers.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "connect",
    help_triggers("-h", "--help"),
    example = "sockhop connect\nsockhop connect --drain 30s [407::1]:1080",
    note = "\
Without an address the proxies of --remote are tried in their order, or else
all valid peers are raced. The port stays open while the proxy changes; live
streams stay too unless the forwarder runs with --on-switch cut, or are given
a time with --drain: those still on another proxy then are cut."
)]
pub(super) struct Connect {
    /// HOST, HOST:PORT, [V6]:PORT (port 1080), or
    /// socks5:// or socks6://[USER:PASSWORD@]HOST:PORT
    #[argh(positional, arg_name = "ADDRESS")]
    address: Option<String>,

    /// TIME after which streams that are still on other proxies are cut
    #[argh(option)]
    drain: Option<String>,

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

impl Connect {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let text = self.address.as_deref();
        let remote = values::optional("connect", "ADDRESS", text, Remote::parse)?;
        let drain = values::optional("connect", "--drain", self.drain.as_deref(), |text| {
            values::duration(text, &(Duration::ZERO..=MAX_DRAIN))
        })?;
        let call = Call::Connect {
            drain,
            // What is shown lacks the password.
            remote: remote
                .zip(text)
                .map(|(remote, text)| match remote.has_secret() {
                    true => text.to_owned(),
                    false => remote.to_string(),
                }),
        };
        let question = Question {
            command: "connect",
            control: self.control.as_deref(),
            reply_timeout: self.reply_timeout.as_deref(),
            json: self.json,
        };
        question.ask(&call, |connected: Connected| {
            let listening = match connected.listening.as_slice() {
                [] => String::new(),
                addresses => format!(", listening on {}", addresses.join(", ")),
            };
            let draining = match (connected.draining, drain) {
                (0, _) | (_, None) => String::new(),
                (streams, Some(drain)) => format!(
                    "; {streams} older stream{} cut in {}",
                    if streams == 1 { " is" } else { "s are" },
                    humantime::format_duration(drain)
                ),
            };
            let text = format!("connected to {}{listening}{draining}", connected.remote);
            format!("{}\n", escape(&text))
        })
    }
}
