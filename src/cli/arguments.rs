//! What people's hands expect of a command line, turned into what argh takes.
//!
//! argh knows `--name value` and single switches, and wants each option after its command. Here `--name=value`,
//! clusters such as `-vv`, options before the command, `help COMMAND`, and `--help` or `--version` anywhere become
//! that. Which options exist is read from the same structs that argh parses into, so the two cannot drift apart.

use std::ffi::OsString;
use std::iter::Peekable;

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

use super::Failure;

/// What a command line comes down to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Print the version.
    Version,
    /// Print the help of this command, or of the program.
    Help(Option<&'static str>),
    /// Run this command; argh's arguments for it, without the program's and the command's name.
    Run(&'static str, Vec<String>),
}

/// Turns the arguments, without the program's name, into a plan. `program` is what argh knows of the program.
pub(super) fn plan(
    program: &CommandInfoWithArgs,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Plan, Failure> {
    let arguments = arguments
        .into_iter()
        .map(OsString::into_string)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|bytes| Failure::usage(format!("argument {bytes:?} is not UTF-8 text"), None))?;
    let mut arguments = arguments.into_iter().peekable();
    let mut out = Expanded::default();

    // Options before the command may be of any command: all agree on which of them take a value (there is a test), but for
    // the `--listen` of `dial`, which can stand only behind it.
    let mut flags: Vec<_> = program.flags.iter().collect();
    for command in &program.commands {
        flags.extend(command.command.flags);
    }
    let mut command = None;
    while let Some(argument) = arguments.next() {
        if argument.starts_with('-') {
            out.option(&flags, argument, &mut arguments, None)?;
        } else {
            command = Some(argument);
            break;
        }
    }

    let mut asks_help = out.help;
    if command.as_deref() == Some("help") {
        asks_help = true;
        command = arguments.find(|argument| !argument.starts_with('-'));
    }
    let Some(name) = command else {
        return match (asks_help, out.version) {
            (true, _) => Ok(Plan::Help(None)),
            (false, true) => Ok(Plan::Version),
            (false, false) => Err(Failure::usage(
                format!("no command; commands are {}", names(program)),
                None,
            )),
        };
    };
    let Some(command) = program.commands.iter().find(|known| known.name == name) else {
        return Err(Failure::usage(
            format!("{name:?} is not a command; commands are {}", names(program)),
            None,
        ));
    };
    if asks_help {
        return Ok(Plan::Help(Some(command.name)));
    }

    let mut flags: Vec<_> = program.flags.iter().collect();
    flags.extend(command.command.flags);
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            out.arguments.push(argument);
            out.arguments.extend(arguments);
            break;
        }
        if argument.starts_with('-') {
            out.option(&flags, argument, &mut arguments, Some(command.name))?;
        } else {
            out.arguments.push(argument);
        }
    }
    Ok(if out.help {
        Plan::Help(Some(command.name))
    } else if out.version {
        Plan::Version
    } else {
        Plan::Run(command.name, out.arguments)
    })
}

/// Arguments for argh, and the two that are answered without it.
#[derive(Default)]
struct Expanded {
    arguments: Vec<String>,
    help: bool,
    version: bool,
}

impl Expanded {
    /// Takes one argument that starts with `-`, and its value from `rest` when it has one there.
    fn option(
        &mut self,
        flags: &[&FlagInfo<'static>],
        argument: String,
        rest: &mut Peekable<impl Iterator<Item = String>>,
        command: Option<&'static str>,
    ) -> Result<(), Failure> {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (argument.as_str(), None),
        };
        let takes_value = flags
            .iter()
            .find(|flag| flag.long == name)
            .map(|flag| matches!(flag.kind, FlagInfoKind::Option { .. }));
        match (takes_value, value) {
            (Some(true), Some(value)) => {
                self.arguments.extend([name.to_owned(), value.to_owned()]);
            }
            (Some(true), None) if name == WATCH => {
                // A time starts with a digit, and nothing else does that could follow here.
                let is_time = |text: &String| text.starts_with(|char: char| char.is_ascii_digit());
                let value = rest.next_if(is_time);
                let value = value.unwrap_or_else(|| WATCH_DEFAULT.to_owned());
                self.arguments.extend([argument, value]);
            }
            (Some(true), None) => {
                let value = rest.next().filter(|value| {
                    let name = value
                        .split_once('=')
                        .map_or(value.as_str(), |(name, _)| name);
                    value != "--" && !flags.iter().any(|flag| flag.long == name)
                });
                let Some(value) = value else {
                    return Err(Failure::usage(
                        format!("{name} needs a value: {name} VALUE or {name}=VALUE"),
                        command,
                    ));
                };
                self.arguments.extend([argument, value]);
            }
            (Some(false), Some(value)) => {
                return Err(Failure::usage(
                    format!("{name} takes no value, but was given {value:?}"),
                    command,
                ));
            }
            (Some(false), None) => self.switch(name),
            (None, _) => match cluster(flags, &argument) {
                Some(switches) => switches.into_iter().for_each(|name| self.switch(name)),
                None => {
                    return Err(Failure::usage(
                        format!("{name:?} is not an option of {}", full_name(command)),
                        command,
                    ));
                }
            },
        }
        Ok(())
    }

    fn switch(&mut self, name: &str) {
        match name {
            "--help" => self.help = true,
            "--version" => self.version = true,
            _ => self.arguments.push(name.to_owned()),
        }
    }
}

/// The long names of the switches in `-vq`, when all are known.
fn cluster(flags: &[&FlagInfo<'static>], argument: &str) -> Option<Vec<&'static str>> {
    let letters = argument.strip_prefix('-').filter(|text| !text.is_empty())?;
    letters
        .chars()
        .map(|letter| match letter {
            'h' => Some("--help"),
            _ => flags
                .iter()
                .find(|flag| flag.short == Some(letter) && flag.kind == FlagInfoKind::Switch)
                .map(|flag| flag.long),
        })
        .collect()
}

/// The one option whose value may be left out.
const WATCH: &str = "--watch";

/// Its value then: as often as something happens that people want to see, and no load.
const WATCH_DEFAULT: &str = "2s";

fn full_name(command: Option<&str>) -> String {
    match command {
        Some(command) => format!("sockhop {command}"),
        None => "sockhop".to_owned(),
    }
}

fn names(program: &CommandInfoWithArgs) -> String {
    let names: Vec<_> = program.commands.iter().map(|known| known.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::ffi::OsStringExt;

    use argh::ArgsInfo;
    use proptest::prelude::*;

    use super::super::Program;
    use super::*;

    fn planned(line: &str) -> Result<Plan, String> {
        plan(
            &Program::get_args_info(),
            line.split(' ')
                .filter(|word| !word.is_empty())
                .map(OsString::from),
        )
        .map_err(|failure| failure.to_string())
    }

    fn run(command: &'static str, arguments: &str) -> Result<Plan, String> {
        let arguments = arguments
            .split(' ')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Plan::Run(command, arguments))
    }

    #[test]
    fn hands_are_understood() {
        for (line, command, arguments) in [
            ("forward --peer=a --peer b", "forward", "--peer a --peer b"),
            ("forward --peer=a=b", "forward", "--peer a=b"),
            ("forward -vv -q", "forward", "--verbose --verbose --quiet"),
            ("forward -vqv", "forward", "--verbose --quiet --verbose"),
            ("-v forward --manual", "forward", "--verbose --manual"),
            ("--control x status", "status", "--control x"),
            ("--control=x status --json", "status", "--control x --json"),
            ("forward --peer -5", "forward", "--peer -5"),
            ("status --watch", "status", "--watch 2s"),
            ("status --watch 5s", "status", "--watch 5s"),
            ("status --watch=5s", "status", "--watch 5s"),
            ("status --watch --json", "status", "--watch 2s --json"),
            ("--watch status", "status", "--watch 2s"),
            ("probe help", "probe", "help"),
            (
                "probe a -- --timeout=5 -vv",
                "probe",
                "a -- --timeout=5 -vv",
            ),
            ("connect help", "connect", "help"),
        ] {
            assert_eq!(planned(line), run(command, arguments), "{line}");
        }
        assert_eq!(
            plan(
                &Program::get_args_info(),
                ["status", "--control="].map(OsString::from)
            )
            .unwrap(),
            Plan::Run("status", vec!["--control".to_owned(), String::new()])
        );
    }

    #[test]
    fn help_and_version_are_answered_wherever_they_stand() {
        for line in ["--help", "-h", "help", "help --help", "-vh"] {
            assert_eq!(planned(line), Ok(Plan::Help(None)), "{line}");
        }
        for line in [
            "forward --help",
            "forward -h --peer x",
            "forward --peer x -vh",
            "--help forward",
            "help forward",
            "forward --version --help",
        ] {
            assert_eq!(planned(line), Ok(Plan::Help(Some("forward"))), "{line}");
        }
        for line in ["--version", "-V", "forward --version", "status -V"] {
            assert_eq!(planned(line), Ok(Plan::Version), "{line}");
        }
        assert_eq!(planned("probe -- --help"), run("probe", "-- --help"));
    }

    #[test]
    fn wrong_usage_is_named() {
        for (line, message) in [
            ("", "no command; commands are forward, "),
            ("-v", "no command"),
            ("frward", "\"frward\" is not a command"),
            ("help frward", "\"frward\" is not a command"),
            (
                "forward --per x",
                "\"--per\" is not an option of sockhop forward",
            ),
            ("forward --per=x", "\"--per\" is not an option"),
            ("status -v", "\"-v\" is not an option of sockhop status"),
            ("forward -vx", "\"-vx\" is not an option"),
            ("forward -", "\"-\" is not an option"),
            ("--", "\"--\" is not an option of sockhop"),
            ("forward --peer", "--peer needs a value"),
            ("forward --peer --manual", "--peer needs a value"),
            ("forward --peer --listen=1", "--peer needs a value"),
            ("forward --peer --", "--peer needs a value"),
            (
                "forward --manual=yes",
                "--manual takes no value, but was given \"yes\"",
            ),
        ] {
            let error = planned(line).expect_err(line);
            assert!(error.contains(message), "{line}: {error}");
        }
        let bytes = OsString::from_vec(b"\xff".to_vec());
        let error = plan(&Program::get_args_info(), [bytes]).expect_err("not UTF-8");
        assert!(error.to_string().contains("is not UTF-8"), "{error}");
    }

    #[test]
    fn commands_agree_on_each_option() {
        let program = Program::get_args_info();
        let mut seen = HashMap::new();
        for command in &program.commands {
            for flag in command.command.flags.iter().chain(program.flags) {
                if (command.name, flag.long) == ("dial", "--listen") {
                    continue;
                }
                let takes_value = flag.kind != FlagInfoKind::Switch;
                assert_eq!(
                    *seen.entry(flag.long).or_insert(takes_value),
                    takes_value,
                    "{}",
                    flag.long
                );
                // A cluster has room for switches only.
                assert!(!takes_value || flag.short.is_none(), "{}", flag.long);
            }
        }
    }

    proptest! {
        #[test]
        fn every_spelling_means_the_same(
            parts in prop::collection::vec(
                (0..4usize, "[a-z0-9=:/.-]{1,8}", any::<bool>()), 0..8)
        ) {
            let (mut written, mut plain) = (vec!["forward".to_owned()], Vec::new());
            for (kind, value, joined) in parts {
                match kind {
                    0 if joined => {
                        written.push(format!("--peer={value}"));
                        plain.extend(["--peer".to_owned(), value]);
                    }
                    0 if !value.starts_with("--") => {
                        written.extend(["--peer".to_owned(), value.clone()]);
                        plain.extend(["--peer".to_owned(), value]);
                    }
                    1 if joined => {
                        written.push("-vq".to_owned());
                        plain.extend(["--verbose".to_owned(), "--quiet".to_owned()]);
                    }
                    1 => {
                        written.push("-v".to_owned());
                        plain.push("--verbose".to_owned());
                    }
                    2 => {
                        written.push("--manual".to_owned());
                        plain.push("--manual".to_owned());
                    }
                    3 if !value.starts_with('-') => {
                        written.push(value.clone());
                        plain.push(value);
                    }
                    _ => {}
                }
            }
            let plan = plan(&Program::get_args_info(), written.into_iter().map(OsString::from));
            prop_assert_eq!(plan.map_err(|failure| failure.to_string()), Ok(Plan::Run("forward", plain)));
        }

        #[test]
        fn no_argument_panics(arguments in prop::collection::vec("-{0,3}[a-z=]{0,6}", 0..6)) {
            let _ = plan(&Program::get_args_info(), arguments.into_iter().map(OsString::from));
        }

        #[test]
        fn nothing_after_two_dashes_is_touched(arguments in prop::collection::vec("-{0,2}[a-z=]{1,6}", 0..6)) {
            let written = ["probe", "--"].into_iter().map(OsString::from)
                .chain(arguments.iter().map(OsString::from));
            let mut plain = vec!["--".to_owned()];
            plain.extend(arguments.clone());
            let plan = plan(&Program::get_args_info(), written);
            prop_assert_eq!(plan.map_err(|failure| failure.to_string()), Ok(Plan::Run("probe", plain)));
        }
    }
}
