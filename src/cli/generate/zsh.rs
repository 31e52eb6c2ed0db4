//! Completions for zsh: a function for its completion system, to be found as `_sockhop` in `$fpath`.

use super::outline::{BEFORE_PATHS, Entry, Flag, Offer, Outline};

pub(super) fn completions(outline: &Outline) -> String {
    let mut out =
        "#compdef sockhop\n# Made by \"sockhop generate completions zsh\".\n\n".to_owned();
    out += VALUES;
    out += "_sockhop() {\n    local curcontext=\"$curcontext\" state line\n    local -a commands\n    commands=(\n";
    for entry in &outline.commands {
        let text = entry.description.trim_end_matches('.');
        out += &format!(
            "        {}\n",
            quote(&format!("{}:{}", entry.name, text.replace(':', "\\:")))
        );
    }
    out += "    )\n    _arguments -C \\\n";
    for flag in &outline.program.flags {
        out += &format!("        {} \\\n", spec(flag));
    }
    out += "        '1:command:->command' \\\n        '*::argument:->argument' && return\n";
    out += "    case $state in\n    command) _describe command commands ;;\n    argument)\n";
    out +=
        "        curcontext=\"${curcontext%:*:*}:sockhop-$line[1]:\"\n        case $line[1] in\n";
    out += "        help) _describe command commands ;;\n";
    for entry in &outline.commands {
        out += &format!("        {}) _arguments -s", entry.name);
        for argument in entry.flags.iter().map(spec).chain(positionals(entry)) {
            out += &format!(" \\\n            {argument}");
        }
        out += " ;;\n";
    }
    out += "        esac\n        ;;\n    esac\n}\n\n_sockhop \"$@\"\n";
    out.replace("@BEFORE_PATHS@", &BEFORE_PATHS.join("|"))
}

/// What `_arguments` wants to know of a flag, in quotes.
fn spec(flag: &Flag) -> String {
    let text = bracketed(&flag.summary());
    let value = match &flag.value {
        None => String::new(),
        Some(value) => {
            let name = colons(&value.name);
            match value.offer {
                Offer::Nothing => format!(":{name}: "),
                Offer::Files => format!(":{name}:_files"),
                Offer::Words(words) => {
                    format!(":{name}: _sockhop_words {}", colons(&words.join(" ")))
                }
            }
        }
    };
    // "=" lets the value follow in the same word or in the next.
    let equals = if flag.value.is_some() { "=" } else { "" };
    let often = if flag.repeats { "*" } else { "" };
    let long = quote(&format!("{often}{}{equals}[{text}]{value}", flag.long));
    match flag.short {
        Some(short) => format!(
            "{long} {}",
            quote(&format!("{often}-{short}[{text}]{value}"))
        ),
        None => long,
    }
}

fn positionals(entry: &Entry) -> Vec<String> {
    let specs = entry
        .positionals
        .iter()
        .enumerate()
        .map(|(at, positional)| {
            let name = colons(positional.name);
            let words = match positional.words.is_empty() {
                true => " ".to_owned(),
                false => format!("({})", positional.words.join(" ")),
            };
            let place = match (positional.repeats, positional.optional) {
                (true, _) => "*:".to_owned(),
                (false, true) => format!("{}::", at + 1),
                (false, false) => format!("{}:", at + 1),
            };
            quote(&format!("{place}{name}:{words}"))
        });
    specs.collect()
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Colons part the fields.
fn colons(text: &str) -> String {
    text.replace(':', "\\:")
}

/// Text between brackets.
fn bracketed(text: &str) -> String {
    text.replace('[', "\\[").replace(']', "\\]")
}

const VALUES: &str = r#"# Words of which one that ends in ":" goes on, some of them with a file.
_sockhop_words() {
    local -a whole open
    local word
    if compset -P '(@BEFORE_PATHS@)'; then
        _files
        return
    fi
    for word in "$@"; do
        case $word in
        *:) open+=("$word") ;;
        *) whole+=("$word") ;;
        esac
    done
    compadd -S '' -a open
    compadd -a whole
}

"#;
