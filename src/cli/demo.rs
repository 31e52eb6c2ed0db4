//! `sockhop demo`: the whole chain on loopback.

use argh::{ArgsInfo, FromArgs};

use super::{Failure, link};

/// Show the whole chain at work on this machine, without any set-up.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "demo",
    help_triggers("-h", "--help"),
    example = "sockhop demo\nsockhop demo --once",
    note = "\
Starts peers of every kind on loopback (proxies, one that wants a password,
one that is something else, a dead one) and a forwarder that chooses among
them, prints what it found and a curl command to paste, and runs until
Ctrl-C."
)]
pub(super) struct Demo {
    /// end after everything was shown to work
    #[argh(switch)]
    once: bool,

    /// show the log; twice for more
    #[argh(switch, short = 'v')]
    verbose: u8,
}

impl Demo {
    pub(super) fn loudness(&self) -> i32 {
        self.verbose.into()
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        link::demo(self.once)
    }
}
