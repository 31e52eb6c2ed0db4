//! The `sockhop` program: flags, log, run, exit status.

#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use log::LevelFilter;
use sockhop::cli::{self, Failure};

fn main() -> ExitCode {
    cli::finish(run())
}

fn run() -> Result<(), Failure> {
    let command = cli::parse(std::env::args_os().skip(1))?;
    start_log(command.log_level());
    command.run()
}

/// Logs to stderr what `level` and above says. Flags alone decide; no environment variable is read for it.
fn start_log(level: LevelFilter) {
    // The journal has time stamps of its own.
    let stamped = !stderr_is_journal();
    env_logger::Builder::new()
        .filter_level(level)
        .format(move |out, record| {
            if stamped {
                write!(
                    out,
                    "{} ",
                    humantime::format_rfc3339_seconds(SystemTime::now())
                )?;
            }
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "{level}: {}", record.args())
        })
        .init();
}

/// Whether stderr is the stream that systemd named by device and inode (systemd.exec(5), `JOURNAL_STREAM`); children
/// inherit the variable also when their stderr goes elsewhere.
fn stderr_is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}
