//! `sockhop disconnect`: make a running forwarder forward nothing.

use argh::{ArgsInfo, FromArgs};

use super::Failure;
use super::ask::Question;
use crate::control::messages::{Call, Disconnected};

/// Cut all streams of a running forwarder and close its port.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "disconnect",
    help_triggers("-h", "--help"),
    example = "sockhop disconnect",
    note = "\
The forwarder goes on running and probing; \"sockhop connect\" opens the port
again."
)]
pub(super) struct Disconnect {
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

impl Disconnect {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let question = Question {
            command: "disconnect",
            control: self.control.as_deref(),
            reply_timeout: self.reply_timeout.as_deref(),
            json: self.json,
        };
        question.ask(&Call::Disconnect, |Disconnected { closed }| {
            let plural = if closed == 1 { "" } else { "s" };
            format!("disconnected, {closed} stream{plural} cut\n")
        })
    }
}
