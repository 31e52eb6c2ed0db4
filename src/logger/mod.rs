//! The log on stderr: which lines, how they begin, and how many of a kind.
//!
//! Who reads it adds what it needs: the journal takes priorities, `<4>` (sd-daemon(3)), and has times of its own, as a
//! supervisor such as procd has, which passes lines on to syslog. Everybody else gets times.

mod limiter;

use std::env;
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::{FileType, fstat};
use rustix::process::{Pid, getppid};

use self::limiter::{Held, Limiter};
use crate::bad_text::BadText;

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Lines of this level and above, unless `RUST_LOG` says otherwise.
    pub level: LevelFilter,
    /// How they begin. `None`: as suits whoever reads stderr.
    pub format: Option<LogFormat>,
}

/// How a line of the log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `2026-01-01T00:00:00Z warn: text`.
    Stamped,
    /// `warn: text`.
    Plain,
    /// `<4>text`.
    Journal,
}

/// Logs from here on. Without effect where there is a logger already.
pub fn start(settings: LogSettings) {
    let format = settings.format.unwrap_or_else(LogFormat::of_stderr);
    let mut builder = env_logger::Builder::new();
    match env::var("RUST_LOG") {
        Ok(filters) if !filters.is_empty() => builder.parse_filters(&filters),
        _ => builder.filter_level(settings.level),
    };
    // Who asks for the status wants to read it.
    builder.filter_module(STATUS_TARGET, LevelFilter::Info);
    builder.format(move |out, record| format.write(out, record));
    let inner = builder.build();
    let most = inner.filter();
    let logger = Limited {
        inner,
        limiter: Mutex::default(),
    };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(most);
    }
}

/// The text without control characters, which whoever answers us could otherwise send to a terminal, or use to forge a line.
#[must_use]
pub fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    out
}

impl LogFormat {
    /// The one that suits whoever reads stderr.
    #[must_use]
    pub fn of_stderr() -> Self {
        let Ok(stat) = fstat(io::stderr()) else {
            return Self::Stamped;
        };
        // systemd.exec(5): children inherit the variable also when their stderr goes elsewhere.
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        if env::var("JOURNAL_STREAM").is_ok_and(|named| named == stream) {
            return Self::Journal;
        }
        // procd sets no variable, but a pipe to the first process of the system leads to nobody else.
        let is_pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        if is_pipe && getppid() == Some(Pid::INIT) {
            return Self::Plain;
        }
        Self::Stamped
    }

    /// What a line of this level begins with, but for the time.
    #[must_use]
    pub fn prefix(self, level: Level) -> &'static str {
        match (self, level) {
            (Self::Journal, Level::Error) => "<3>",
            (Self::Journal, Level::Warn) => "<4>",
            (Self::Journal, Level::Info) => "<6>",
            (Self::Journal, Level::Debug | Level::Trace) => "<7>",
            (_, Level::Error) => "error: ",
            (_, Level::Warn) => "warn: ",
            (_, Level::Info) => "info: ",
            (_, Level::Debug) => "debug: ",
            (_, Level::Trace) => "trace: ",
        }
    }

    fn write(self, out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
        if self == Self::Stamped {
            let now = humantime::format_rfc3339_seconds(SystemTime::now());
            write!(out, "{now} ")?;
        }
        let text = tame(&record.args().to_string());
        writeln!(out, "{}{text}", self.prefix(record.level()))
    }
}

/// Parses `auto`, which is `None`, and the names of the others.
pub fn parse_format(text: &str) -> Result<Option<LogFormat>, BadText> {
    Ok(Some(match text {
        "auto" => return Ok(None),
        "stamped" => LogFormat::Stamped,
        "plain" => LogFormat::Plain,
        "journal" => LogFormat::Journal,
        _ => {
            let problem = "is not auto, stamped, plain or journal";
            return Err(BadText::new(text, problem, "plain"));
        }
    }))
}

/// Parses `error`, `warn`, `info`, `debug` and `trace`.
pub fn parse_level(text: &str) -> Result<LevelFilter, BadText> {
    let level = Level::from_str(text).map(|level| level.to_level_filter());
    level.map_err(|_| BadText::new(text, "is not error, warn, info, debug or trace", "info"))
}

/// A logger whose lines are few even when clients or peers see to it that the same thing happens again and again.
struct Limited {
    inner: env_logger::Logger,
    limiter: Mutex<Limiter>,
}

impl Limited {
    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As a line that is always shown: `RUST_LOG` may name the module of those that were held, and not this one.
    fn tell(&self, held: &Held) {
        let say = |text: fmt::Arguments<'_>| {
            let mut record = Record::builder();
            let record = record.target(STATUS_TARGET).level(held.level);
            self.inner.log(&record.args(text).build());
        };
        say(format_args!(
            "… and {} more lines like this: {}",
            held.count, held.last
        ));
    }
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        // Whoever wants to see each connection gets each.
        if record.level() > Level::Info || record.target() == STATUS_TARGET {
            return self.inner.log(record);
        }
        let place = (record.file_static().unwrap_or_default(), record.line());
        let shown = self
            .limiter()
            .take(place, record.level(), record.args(), Instant::now());
        if shown {
            self.inner.log(record);
        }
    }

    /// Tells of those that were not shown.
    fn flush(&self) {
        let held = self.limiter().held();
        for held in &held {
            self.tell(held);
        }
    }
}

/// Of lines that somebody asked for: they are shown at every level, however many there are.
pub const STATUS_TARGET: &str = "sockhop::status";

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat, level: Level, text: &str) -> String {
        let mut out = Vec::new();
        let args = format_args!("{text}");
        let record = Record::builder().level(level).args(args).build();
        format.write(&mut out, &record).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_begins_as_its_reader_wants_it() {
        for (level, journal, plain) in [
            (Level::Error, "<3>x\n", "error: x\n"),
            (Level::Warn, "<4>x\n", "warn: x\n"),
            (Level::Info, "<6>x\n", "info: x\n"),
            (Level::Debug, "<7>x\n", "debug: x\n"),
            (Level::Trace, "<7>x\n", "trace: x\n"),
        ] {
            assert_eq!(line(LogFormat::Journal, level, "x"), journal);
            assert_eq!(line(LogFormat::Plain, level, "x"), plain);
            let stamped = line(LogFormat::Stamped, level, "x");
            let (time, rest) = stamped.split_once(' ').unwrap();
            assert_eq!(rest, plain);
            assert!(humantime::parse_rfc3339(time).is_ok(), "{stamped}");
        }
    }

    #[test]
    fn nobody_forges_a_line() {
        let text = line(LogFormat::Journal, Level::Info, "a\n<0>b\x1b[2J");
        assert_eq!(text, "<6>a\\n<0>b\\u{1b}[2J\n");
    }

    #[test]
    fn names_of_formats_and_levels_are_read() {
        assert_eq!(parse_format("auto").unwrap(), None);
        assert_eq!(parse_format("plain").unwrap(), Some(LogFormat::Plain));
        assert_eq!(parse_level("debug").unwrap(), LevelFilter::Debug);
        for text in ["", "off", "loud"] {
            assert!(parse_level(text).is_err() && parse_format(text).is_err());
        }
    }
}
