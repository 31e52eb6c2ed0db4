//! What there is to type, as the manual and the shells need it: argh's information, and what values can be.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality, PositionalInfo};

/// The program and its commands.
pub(super) struct Outline {
    pub(super) program: Entry,
    pub(super) commands: Vec<Entry>,
}

/// The program, or one of its commands.
pub(super) struct Entry {
    /// Empty for the program.
    pub(super) name: &'static str,
    /// What is typed behind the name.
    pub(super) usage: String,
    pub(super) description: &'static str,
    pub(super) flags: Vec<Flag>,
    pub(super) positionals: Vec<Positional>,
    pub(super) examples: &'static [&'static str],
    /// Paragraphs.
    pub(super) notes: Vec<String>,
    /// Exit statuses and what they mean, where they are its own.
    pub(super) statuses: Vec<(i32, &'static str)>,
}

pub(super) struct Flag {
    /// With its hyphens.
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) repeats: bool,
    /// `None` for a switch.
    pub(super) value: Option<Value>,
    /// What it does, without the value's name where that only stands before it.
    pub(super) text: String,
}

pub(super) struct Positional {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    pub(super) optional: bool,
    pub(super) repeats: bool,
    /// What it can be, when that is one of a few words.
    pub(super) words: Vec<&'static str>,
}

pub(super) struct Value {
    /// As the help calls it: `TIME`, `PATH`, `CIDR or ADDR`; or all that it can be, or `VALUE`.
    pub(super) name: String,
    pub(super) offer: Offer,
}

/// What a shell can offer for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Nothing,
    Files,
    /// Some of them; one that ends in a colon goes on, and after [`BEFORE_PATHS`] with a file.
    Words(&'static [&'static str]),
}

impl Outline {
    /// `help` gives the help of a command, or of the program.
    pub(super) fn of(program: &CommandInfoWithArgs, help: impl Fn(Option<&str>) -> String) -> Self {
        let commands = program.commands.iter().map(|known| {
            let help = help(Some(known.name));
            Entry::of(known.name, &known.command, &help)
        });
        Self {
            commands: commands.collect(),
            program: Entry::of("", program, &help(None)),
        }
    }
}

impl Entry {
    fn of(name: &'static str, info: &CommandInfoWithArgs, help: &str) -> Self {
        // "Usage: sockhop forward [options]" is what argh does not know.
        let usage = help.lines().next().unwrap_or_default();
        let usage = usage.strip_prefix("Usage: sockhop").unwrap_or_default();
        let usage = usage.trim_start().strip_prefix(name).unwrap_or_default();
        let shown = info.flags.iter().filter(|flag| !flag.hidden);
        let mut flags: Vec<_> = shown.map(Flag::of).collect();
        // argh lists --help first and without its letter, which every command takes.
        flags.rotate_left(1);
        if let Some(help) = flags.last_mut() {
            help.short = Some('h');
        }
        let paragraphs = info.notes.iter().flat_map(|note| note.split("\n\n"));
        Self {
            name,
            usage: usage.trim().to_owned(),
            description: info.description,
            flags,
            positionals: info.positionals.iter().map(Positional::of).collect(),
            examples: info.examples,
            notes: paragraphs.map(|text| text.replace('\n', " ")).collect(),
            statuses: info
                .error_codes
                .iter()
                .map(|status| (status.code, status.description))
                .collect(),
        }
    }
}

impl Flag {
    fn of(info: &FlagInfo<'static>) -> Self {
        let (value, text) = match info.kind {
            FlagInfoKind::Switch => (None, info.description),
            FlagInfoKind::Option { .. } => {
                let (name, text) = split_name(info.description);
                let offer = offer(info.long, name);
                let name = match offer {
                    Offer::Words(words) if name == "VALUE" => words.join("|"),
                    _ => name.to_owned(),
                };
                (Some(Value { name, offer }), text)
            }
        };
        // Given more than once, or a counter such as --verbose.
        let repeats =
            info.optionality == Optionality::Repeating || info.description.contains("; twice for");
        Self {
            long: info.long,
            short: info.short,
            repeats,
            value,
            text: text.to_owned(),
        }
    }

    /// The first words of the text, for a line in a menu.
    pub(super) fn summary(&self) -> String {
        summary(&self.text)
    }
}

impl Positional {
    fn of(info: &PositionalInfo<'static>) -> Self {
        let words = match info.name.contains('|') {
            true => info.name.split('|').collect(),
            false => Vec::new(),
        };
        Self {
            name: info.name,
            text: info.description,
            optional: info.optionality != Optionality::Required,
            repeats: info.optionality == Optionality::Repeating,
            words,
        }
    }
}

/// "TIME for one probe" is a time and what it is for; "keep or cut: ..." has no name for its value.
fn split_name(description: &'static str) -> (&'static str, &'static str) {
    let is_name = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_uppercase())
            && word
                .chars()
                .all(|char| char.is_ascii_uppercase() || "-:[]".contains(char))
    };
    let mut end = 0;
    let mut rest = description;
    loop {
        let word = rest.split([' ', ',', ':']).next().unwrap_or_default();
        // "NAME:PASSWORD" is one name, "NAME: ..." is one with a text.
        let longer = rest.split([' ', ',']).next().unwrap_or_default();
        let word = match longer.ends_with(':') {
            true => word,
            false => longer,
        };
        if !is_name(word) {
            break;
        }
        end = description.len() - rest.len() + word.len();
        let Some(after) = rest
            .get(word.len()..)
            .and_then(|rest| rest.strip_prefix(" or "))
        else {
            break;
        };
        rest = after;
    }
    let (name, text) = description.split_at(end);
    let text = text.strip_prefix(", repeatable").unwrap_or(text);
    match (name, text.strip_prefix(": ")) {
        ("", _) => ("VALUE", description),
        (name, Some(text)) => (name, text),
        // The name is part of the sentence.
        (name, None) => (name, description),
    }
}

/// What can be offered for the value of a flag, whose help calls it `name`.
fn offer(flag: &str, name: &str) -> Offer {
    match WORDS.iter().find(|(known, _)| *known == flag) {
        Some((_, words)) => Offer::Words(words),
        None if name == "PATH" || name == "DIR" => Offer::Files,
        None => Offer::Nothing,
    }
}

/// A clause of the text, in at most [`SUMMARY`] columns and without what could end it early in a shell.
fn summary(text: &str) -> String {
    let end = text.find(" (default").unwrap_or(text.len());
    let text = text.get(..end).unwrap_or(text);
    let clause = text.split(';').next().unwrap_or(text);
    let mut out = String::new();
    for word in clause.split_whitespace() {
        if out.len() + 1 + word.len() > SUMMARY {
            return format!("{} ...", out.trim_end_matches([',', ':', '.']));
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out += word;
    }
    out.trim_end_matches([',', ':', '.']).to_owned()
}

/// Words for the values of flags, under whatever command.
const WORDS: [(&str, &[&str]); 9] = [
    (
        "--peers",
        &[
            "file:",
            "exec:",
            "mycelium",
            "yggdrasil",
            "tailscale",
            "routes",
        ],
    ),
    ("--on-switch", &["keep", "cut"]),
    ("--fallback", &["refuse", "direct"]),
    (
        "--socks6-profile",
        &["draft12", "draft11", "go212", "s6m207"],
    ),
    (
        "--udp-filter",
        &[
            "address-dependent",
            "address-and-port-dependent",
            "endpoint-independent",
        ],
    ),
    ("--log-level", &["error", "warn", "info", "debug", "trace"]),
    ("--log-format", &["auto", "stamped", "plain", "journal"]),
    ("--listen", &["unix:"]),
    ("--metrics", &["unix:"]),
];

/// Words after which a file's name comes.
pub(super) const BEFORE_PATHS: [&str; 2] = ["file:", "unix:"];

/// Menus of completions stand beside names of up to 24 columns, on terminals of 80 to 100.
const SUMMARY: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::super::{Program, help};
    use super::*;
    use crate::choice::{Fallback, OnSwitch};
    use crate::source_spec::SourceSpec;
    use argh::ArgsInfo as _;

    #[test]
    fn names_of_values_are_told_from_their_texts() {
        for (description, name, text) in [
            ("TIME for one probe", "TIME", "TIME for one probe"),
            ("HOST:PORT that valid", "HOST:PORT", "HOST:PORT that valid"),
            ("ADDR[:PORT] of it", "ADDR[:PORT]", "ADDR[:PORT] of it"),
            ("FIRST-LAST, ports", "FIRST-LAST", "FIRST-LAST, ports"),
            ("TIME, which (2s): x", "TIME", "TIME, which (2s): x"),
            ("ADDR, repeatable: a peer", "ADDR", "a peer"),
            ("CIDR or ADDR, repeatable: x", "CIDR or ADDR", "x"),
            ("NAME:PASSWORD, repeatable: x", "NAME:PASSWORD", "x"),
            ("NAME: how", "NAME", "how"),
            ("keep or cut: what", "VALUE", "keep or cut: what"),
            ("how SOCKS6: x", "VALUE", "how SOCKS6: x"),
            ("", "VALUE", ""),
        ] {
            assert_eq!(split_name(description), (name, text));
        }
    }

    #[test]
    fn summaries_are_short() {
        assert_eq!(summary("NAME of it (default x)"), "NAME of it");
        assert_eq!(summary("log more; twice for still more"), "log more");
        let long = summary(&"word: ".repeat(40));
        assert_eq!(long, format!("{}word ...", "word: ".repeat(9)));
    }

    #[test]
    fn words_that_are_offered_are_taken_and_told_in_the_help() {
        let words = |flag: &str| match offer(flag, "") {
            Offer::Words(words) => words,
            other => panic!("{flag}: {other:?}"),
        };
        for word in words("--on-switch") {
            word.parse::<OnSwitch>().expect(word);
        }
        for word in words("--fallback") {
            word.parse::<Fallback>().expect(word);
        }
        #[cfg(feature = "server")]
        for word in words("--udp-filter") {
            word.parse::<crate::server::association::Filter>()
                .expect(word);
        }
        for word in words("--peers") {
            let whole = match word.ends_with(':') {
                true => format!("{word}x"),
                false => (*word).to_owned(),
            };
            whole.parse::<SourceSpec>().expect(word);
        }
        #[cfg(feature = "socks6")]
        for word in words("--socks6-profile") {
            crate::cli::values::profile(word).expect(word);
        }
        for (flag, words) in WORDS {
            let program = Program::get_args_info();
            let mut known = program
                .commands
                .iter()
                .flat_map(|command| command.command.flags);
            let Some(known) =
                known.find(|known| known.long == flag && known.kind != FlagInfoKind::Switch)
            else {
                // Of a feature that this build is without.
                continue;
            };
            for word in words {
                // One example of an address is enough for --metrics.
                let told =
                    known.description.contains(word) || (flag, *word) == ("--metrics", "unix:");
                assert!(told, "{flag} {word}: {}", known.description);
            }
        }
    }

    #[test]
    fn the_outline_has_what_the_help_has() {
        let program = Program::get_args_info();
        let outline = Outline::of(&program, |command| help::of(&program, command));
        let forward = &outline.commands[0];
        assert_eq!(forward.name, "forward");
        assert_eq!(
            forward.usage,
            "[--peer ADDR | --peers SOURCE | --remote ADDR] [options]"
        );
        let state = forward
            .flags
            .iter()
            .find(|flag| flag.long == "--state")
            .unwrap();
        assert_eq!(state.value.as_ref().unwrap().offer, Offer::Files);
        assert_eq!(forward.flags.last().unwrap().short, Some('h'));
        let hidden = "--reply-timeout";
        assert!(
            outline
                .commands
                .iter()
                .all(|command| { command.flags.iter().all(|flag| flag.long != hidden) })
        );
    }
}
