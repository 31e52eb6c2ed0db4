//! `sockhop probing`: start or stop the probes of a running forwarder.

use argh::{ArgsInfo, FromArgs};

use super::ask::Question;
use super::{Failure, values};
use crate::bad_text::BadText;
use crate::control::messages::{Call, Probing as Answer};

/// Start or stop the probes of a running forwarder.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "probing",
    help_triggers("-h", "--help"),
    example = "sockhop probing stop\nsockhop probing start",
    note = "\
Starting twice is the same as starting once. Stopping also stops the probes
that are under way; what is known stays known, and the proxy in use stays."
)]
pub(super) struct Probing {
    /// start or stop
    #[argh(positional, arg_name = "start|stop")]
    action: String,

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

impl Probing {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let run = values::option("probing", "action", &self.action, |text| match text {
            "start" => Ok(true),
            "stop" => Ok(false),
            _ => Err(BadText::new(text, "is neither of the two", "start or stop")),
        })?;
        let question = Question {
            command: "probing",
            control: self.control.as_deref(),
            reply_timeout: self.reply_timeout.as_deref(),
            json: self.json,
        };
        question.ask(&Call::Probing { run }, |Answer { probing }| {
            format!("probing is {}\n", if probing { "on" } else { "off" })
        })
    }
}
