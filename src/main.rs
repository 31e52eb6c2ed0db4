//! The `sockhop` program: flags, log, run, exit status.

#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::process::ExitCode;

use sockhop::cli::{self, Failure};
use sockhop::logger;

fn main() -> ExitCode {
    cli::finish(run())
}

fn run() -> Result<(), Failure> {
    let command = cli::parse(std::env::args_os().skip(1))?;
    logger::start(command.log()?);
    let end = command.run();
    log::logger().flush();
    end
}
