//! What `--help` prints, made of what argh knows of the commands.
//!
//! argh can write it itself, as one more text for each command that says the same again: 25 KB of program.

use argh::{CommandInfoWithArgs, FlagInfo, SubCommandInfo};

/// The help of a command, or of the program.
pub(super) fn of(program: &CommandInfoWithArgs, command: Option<&str>) -> String {
    let known = |name| program.commands.iter().find(|known| known.name == name);
    let mut text = "Usage: sockhop".to_owned();
    match command.and_then(known) {
        Some(known) => {
            append(&mut text, &[" ", known.name, " ", usage(known.name)]);
            describe(&mut text, &known.command, &program.commands);
        }
        None => {
            text.push_str(" <command> [options]");
            describe(&mut text, program, &program.commands);
        }
    }
    text
}

fn append(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

fn describe(text: &mut String, info: &CommandInfoWithArgs, commands: &[SubCommandInfo]) {
    append(text, &["\n\n", info.description, "\n"]);
    let positionals = info.positionals.iter().filter(|one| !one.hidden);
    let positionals = positionals.map(|one| (one.name.to_owned(), one.description));
    list(text, "Positional Arguments", &mut { positionals });
    // argh has --help first.
    let (help, others): (Vec<_>, Vec<_>) =
        info.flags.iter().partition(|flag| flag.long == "--help");
    let flags = others.iter().filter(|flag| !flag.hidden).chain(&help);
    list(
        text,
        "Options",
        &mut flags.map(|flag| (spelling(flag), flag.description)),
    );
    let known = info.commands.iter();
    let known = known.map(|known| (known.name.to_owned(), known.command.description));
    list(text, "Commands", &mut { known });
    let examples = info.examples.iter().flat_map(|text| text.lines());
    let examples = examples.filter(|example| is_built_in(example, commands));
    lines(text, "Examples", &mut { examples });
    let notes = info.notes.iter().flat_map(|text| text.lines());
    lines(text, "Notes", &mut { notes });
    if !info.error_codes.is_empty() {
        text.push_str("\nExit status:\n");
        for status in info.error_codes {
            append(
                text,
                &[
                    "  ",
                    &status.code.to_string(),
                    " ",
                    status.description,
                    "\n",
                ],
            );
        }
    }
}

/// Of a build that leaves out a command, the examples of the program do, too.
fn is_built_in(example: &str, commands: &[SubCommandInfo]) -> bool {
    let command = example
        .strip_prefix("sockhop ")
        .and_then(|rest| rest.split(' ').next());
    command.is_none_or(|command| commands.iter().any(|known| known.name == command))
}

/// What comes after the name of a command.
fn usage(command: &str) -> &'static str {
    let usage = USAGES.iter().find(|(name, _)| *name == command);
    usage.map_or("[options]", |(_, usage)| usage)
}

fn spelling(flag: &FlagInfo<'_>) -> String {
    match (flag.short, flag.long) {
        (_, "--help") => "-h, --help".to_owned(),
        (Some(short), long) => format!("-{short}, {long}"),
        (None, long) => long.to_owned(),
    }
}

fn lines(text: &mut String, heading: &str, lines: &mut dyn Iterator<Item = &str>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        append(text, &["\n", heading, ":\n"]);
    }
    for line in lines {
        let indent = if line.is_empty() { "" } else { INDENT };
        append(text, &[indent, line, "\n"]);
    }
}

fn list(text: &mut String, heading: &str, entries: &mut dyn Iterator<Item = (String, &str)>) {
    let mut entries = entries.peekable();
    if entries.peek().is_some() {
        append(text, &["\n", heading, ":\n"]);
    }
    for (name, description) in entries {
        let mut line = format!("{INDENT}{name}");
        if line.chars().count() >= COLUMN {
            append(text, &[&line, "\n"]);
            line.clear();
        }
        for word in description.split(' ') {
            let length = line.chars().count();
            if length > COLUMN && length + 1 + word.chars().count() > WIDTH {
                append(text, &[&line, "\n"]);
                line.clear();
            }
            match line.chars().count() {
                short if short < COLUMN => line.extend(std::iter::repeat_n(' ', COLUMN - short)),
                _ => line.push(' '),
            }
            line.push_str(word);
        }
        append(text, &[&line, "\n"]);
    }
}

const INDENT: &str = "  ";

/// Where descriptions start.
const COLUMN: usize = 20;

/// Of a terminal.
const WIDTH: usize = 80;

/// Of commands that take more than options.
const USAGES: &[(&str, &str)] = &[
    (
        "forward",
        "[--peer ADDR | --peers SOURCE | --remote ADDR] [options]",
    ),
    ("probe", "[options] ADDRESS..."),
    ("dial", "[options] [PROXY...] HOST:PORT"),
    ("connect", "[options] [ADDRESS]"),
    ("probing", "[options] start|stop"),
    ("generate", "man | completions bash|zsh|fish"),
];

#[cfg(test)]
mod tests {
    use argh::ArgsInfo as _;

    use super::super::Program;
    use super::*;

    #[test]
    fn long_descriptions_are_wrapped_beside_their_names() {
        let words = "word ".repeat(40);
        let entries = [
            ("--short".to_owned(), words.trim()),
            ("--a-name-that-is-long".to_owned(), "text"),
            ("--none".to_owned(), "x"),
        ];
        let mut text = String::new();
        list(&mut text, "Options", &mut entries.into_iter());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["", "Options:"]);
        assert_eq!(lines[2].len(), 79);
        assert!(lines[2].starts_with("  --short           word word "));
        assert_eq!(lines[3].find("word"), Some(COLUMN));
        let end = &lines[lines.len() - 3..];
        assert_eq!(
            end,
            [
                "  --a-name-that-is-long",
                "                    text",
                "  --none            x"
            ]
        );
    }

    #[test]
    fn every_example_is_of_this_build_and_every_option_is_told() {
        let program = Program::get_args_info();
        for command in &program.commands {
            let help = of(&program, Some(command.name));
            for flag in command.command.flags {
                let told = help.contains(&format!("{} ", flag.long))
                    || help.contains(&format!("{}\n", flag.long));
                assert_eq!(told, !flag.hidden, "{} {}", command.name, flag.long);
            }
        }
        let help = of(&program, None);
        for line in help.lines().filter(|line| line.starts_with("  sockhop ")) {
            let name = line.split(' ').nth(3).unwrap_or_default();
            let known = program.commands.iter().any(|known| known.name == name);
            assert!(known, "{line}");
        }
        assert_eq!(
            help.contains("  sockhop serve "),
            cfg!(feature = "server"),
            "{help}"
        );
    }

    #[test]
    fn usages_are_of_commands_that_take_more_than_options() {
        let program = Program::get_args_info();
        for known in program.commands.iter() {
            if !known.command.positionals.is_empty() {
                assert_ne!(usage(known.name), "[options]", "{}", known.name);
            }
        }
    }
}
