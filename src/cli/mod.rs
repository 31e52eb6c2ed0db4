//! The command line: text to typed settings or one request, results to stdout, everything else to stderr.
//!
//! One file a command. [`parse`] gives a [`Command`] to run, [`finish`] turns its end into an exit status:
//! 0 done, 1 not done, 2 wrong usage, and 3 where a command distinguishes it: the proxy did its part, its target did not.

mod arguments;
mod ask;
mod connect;
#[cfg(feature = "server")]
mod demo;
#[cfg(feature = "client-cli")]
mod dial;
mod disconnect;
mod failure;
mod forward;
#[cfg(feature = "generate")]
mod generate;
mod help;
mod link;
mod options;
mod output;
mod probe;
mod probing;
mod proxies;
mod screen;
#[cfg(feature = "server")]
mod serve;
mod status;
mod table;
mod values;
mod watch;
mod wrap;

use std::ffi::OsString;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use log::{Level, LevelFilter};

use self::arguments::Plan;
pub use self::failure::Failure;
use crate::logger::{LogFormat, LogSettings};

/// Bring the internet behind SOCKS proxies on an overlay network to this machine.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    help_triggers("-h", "--help"),
    example = "\
sockhop demo
sockhop forward --peer 407::1 --peer 407::2
sockhop forward --remote proxy.example --listen 127.0.0.1:1080
sockhop serve --allow 400::/7 --users-file /etc/sockhop.users
sockhop status",
    note = "\
\"sockhop <command> --help\" tells about a command. Durations are written 5s,
500ms or 2m. Data goes to stdout, messages to stderr.",
    error_code(0, "Done."),
    error_code(1, "Not done: the message says why."),
    error_code(2, "Wrong usage: the message says what would be right.")
)]
struct Program {
    /// print the version
    #[argh(switch, short = 'V')]
    #[expect(dead_code, reason = "answered before argh parses")]
    version: bool,

    #[argh(subcommand)]
    command: Subcommand,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
#[cfg_attr(
    not(feature = "server"),
    expect(clippy::large_enum_variant, reason = "there is one in a process")
)]
enum Subcommand {
    Forward(forward::Forward),
    #[cfg(feature = "server")]
    Serve(serve::Serve),
    Probe(probe::Probe),
    #[cfg(feature = "client-cli")]
    Dial(dial::Dial),
    Status(status::Status),
    Proxies(proxies::Proxies),
    Connect(connect::Connect),
    Disconnect(disconnect::Disconnect),
    Probing(probing::Probing),
    #[cfg(feature = "server")]
    Demo(demo::Demo),
    #[cfg(feature = "generate")]
    Generate(generate::Generate),
}

/// What the command line asks for.
pub struct Command(Asked);

#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
enum Asked {
    /// Help or the version.
    Text(String),
    Command(Subcommand),
}

/// Reads the command line, without the name of the program.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let program = Program::get_args_info();
    Ok(Command(match arguments::plan(&program, arguments)? {
        Plan::Version => {
            Asked::Text(concat!("sockhop ", env!("CARGO_PKG_VERSION"), "\n").to_owned())
        }
        Plan::Help(command) => Asked::Text(help::of(&program, command)),
        Plan::Run(command, arguments) => {
            let mut all = vec![command];
            all.extend(arguments.iter().map(String::as_str));
            match Program::from_args(&["sockhop"], &all) {
                Ok(program) => Asked::Command(program.command),
                Err(exit) => return Err(Failure::usage(one_line(&exit.output), Some(command))),
            }
        }
    }))
}

impl Command {
    /// What this command logs on stderr.
    ///
    /// # Errors
    /// The options for it are wrong.
    pub fn log(&self) -> Result<LogSettings, Failure> {
        let of = |steps, base| LogSettings {
            level: level(base, steps),
            format: None,
        };
        Ok(match &self.0 {
            Asked::Command(Subcommand::Forward(forward)) => forward.log()?,
            #[cfg(feature = "server")]
            Asked::Command(Subcommand::Serve(serve)) => serve.log()?,
            Asked::Command(Subcommand::Probe(probe)) => of(probe.loudness(), LevelFilter::Warn),
            #[cfg(feature = "server")]
            Asked::Command(Subcommand::Demo(demo)) => of(demo.loudness(), LevelFilter::Warn),
            Asked::Command(_) | Asked::Text(_) => of(0, LevelFilter::Warn),
        })
    }

    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        match self.0 {
            Asked::Text(text) => output::print(&text),
            Asked::Command(Subcommand::Forward(forward)) => forward.run(),
            #[cfg(feature = "server")]
            Asked::Command(Subcommand::Serve(serve)) => serve.run(),
            Asked::Command(Subcommand::Probe(probe)) => probe.run(),
            #[cfg(feature = "client-cli")]
            Asked::Command(Subcommand::Dial(dial)) => dial.run(),
            Asked::Command(Subcommand::Status(status)) => status.run(),
            Asked::Command(Subcommand::Proxies(proxies)) => proxies.run(),
            Asked::Command(Subcommand::Connect(connect)) => connect.run(),
            Asked::Command(Subcommand::Disconnect(disconnect)) => disconnect.run(),
            Asked::Command(Subcommand::Probing(probing)) => probing.run(),
            #[cfg(feature = "server")]
            Asked::Command(Subcommand::Demo(demo)) => demo.run(),
            #[cfg(feature = "generate")]
            Asked::Command(Subcommand::Generate(generate)) => generate.run(),
        }
    }
}

/// Tells how it ended, and gives the exit status.
pub fn finish(end: Result<(), Failure>) -> ExitCode {
    let Err(failure) = end else {
        return ExitCode::SUCCESS;
    };
    // In the journal an error is to be found among the errors.
    let prefix = match LogFormat::of_stderr() {
        format @ LogFormat::Journal => format.prefix(Level::Error),
        _ => "",
    };
    output::message(&format!(
        "{prefix}sockhop: {}\n",
        output::tame(&failure.to_string())
    ));
    if let Some(hint) = failure.hint() {
        output::message(&format!("{prefix}hint: {}\n", output::tame(hint)));
    }
    ExitCode::from(failure.status())
}

/// `base` made louder by so many steps, or quieter by as many below zero; errors are always shown.
fn level(base: LevelFilter, steps: i32) -> LevelFilter {
    const LEVELS: [LevelFilter; 5] = [
        LevelFilter::Error,
        LevelFilter::Warn,
        LevelFilter::Info,
        LevelFilter::Debug,
        LevelFilter::Trace,
    ];
    let at = LEVELS.iter().position(|level| *level == base).unwrap_or(0);
    let at = at
        .saturating_add_signed(steps as isize)
        .min(LEVELS.len() - 1);
    LEVELS.get(at).copied().unwrap_or(base)
}

/// argh's messages have several lines and start like sentences.
fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help_of(command: Option<&str>) -> String {
        let arguments = command.into_iter().chain(["--help"]).map(OsString::from);
        match parse(arguments).ok().map(|command| command.0) {
            Some(Asked::Text(text)) => text,
            _ => panic!("{command:?} has no help"),
        }
    }

    #[test]
    fn every_help_fits_a_terminal_and_has_an_example() {
        let commands = Program::get_args_info().commands;
        let of_features = [
            cfg!(feature = "server"),
            cfg!(feature = "server"),
            cfg!(feature = "client-cli"),
            cfg!(feature = "generate"),
        ];
        let of_features = of_features.iter().filter(|built_in| **built_in).count();
        assert_eq!(commands.len(), 7 + of_features);
        for command in commands.iter().map(|known| Some(known.name)).chain([None]) {
            let help = help_of(command);
            assert!(help.contains("Examples:"), "{command:?}");
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{command:?}: {line}");
                assert_eq!(line, line.trim_end(), "{command:?}");
            }
        }
    }

    #[test]
    fn loudness_has_two_ends() {
        use LevelFilter::*;
        for (steps, expected) in [
            (0, Info),
            (1, Debug),
            (2, Trace),
            (9, Trace),
            (-1, Warn),
            (-2, Error),
            (-9, Error),
        ] {
            assert_eq!(level(Info, steps), expected, "{steps}");
        }
    }

    #[test]
    fn messages_of_argh_become_one_line() {
        assert_eq!(
            one_line("Required not provided:\n    address\n"),
            "required not provided: address"
        );
        assert_eq!(one_line(""), "");
    }
}
