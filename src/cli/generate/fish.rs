//! Completions for fish, 3.0 or newer.

use super::outline::{BEFORE_PATHS, Entry, Flag, Offer, Outline};

pub(super) fn completions(outline: &Outline) -> String {
    let mut out =
        "# fish completion for sockhop; made by \"sockhop generate completions fish\".\n\n"
            .to_owned();
    out += WORDS;
    out += "complete -c sockhop -f\n\n";
    for flag in &outline.program.flags {
        line(&mut out, "__fish_use_subcommand", flag);
    }
    for entry in &outline.commands {
        let text = quote(entry.description.trim_end_matches('.'));
        out += &format!(
            "complete -c sockhop -n __fish_use_subcommand -a {} -d {text}\n",
            entry.name
        );
    }
    out += "complete -c sockhop -n __fish_use_subcommand -a help -d 'Show the help of a command'\n";
    let names: Vec<_> = outline.commands.iter().map(|entry| entry.name).collect();
    out += &format!(
        "complete -c sockhop -n '__fish_seen_subcommand_from help' -a '{}'\n",
        names.join(" ")
    );
    for entry in &outline.commands {
        out.push('\n');
        command(&mut out, entry);
    }
    let paths = BEFORE_PATHS.map(|word| format!("'{word}*'")).join(" ");
    out.replace("@BEFORE_PATHS@", &paths)
}

fn command(out: &mut String, entry: &Entry) {
    let condition = format!("'__sockhop_command {}'", entry.name);
    for flag in &entry.flags {
        line(out, &condition, flag);
    }
    for positional in entry
        .positionals
        .iter()
        .filter(|word| !word.words.is_empty())
    {
        let words = positional.words.join(" ");
        *out += &format!("complete -c sockhop -n {condition} -a '{words}'\n");
    }
}

fn line(out: &mut String, condition: &str, flag: &Flag) {
    *out += &format!(
        "complete -c sockhop -n {condition} -l {}",
        flag.long.trim_start_matches('-')
    );
    if let Some(short) = flag.short {
        *out += &format!(" -s {short}");
    }
    *out += &match flag.value.as_ref().map(|value| value.offer) {
        None => String::new(),
        // -x: a value, and no files for it.
        Some(Offer::Nothing) => " -x".to_owned(),
        Some(Offer::Files) => " -r -F".to_owned(),
        Some(Offer::Words(words)) => format!(" -x -a '(__sockhop_words {})'", words.join(" ")),
    };
    *out += &format!(" -d {}\n", quote(&flag.summary()));
}

/// In single quotes, where only these two mean anything.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

const WORDS: &str = r#"# The command is the first word that is not an option.
function __sockhop_command
    set -l words (commandline -opc)
    for word in $words[2..-1]
        if not string match -q -- '-*' $word
            test $word = $argv[1]
            return
        end
    end
    return 1
end

# Words, and behind some of them files.
function __sockhop_words
    set -l text (commandline -ct | string replace -r -- '^--[^=]*=' '')
    for prefix in @BEFORE_PATHS@
        if string match -q -- $prefix $text
            set -l word (string replace -r -- ':.*' ':' $text)
            for file in (__fish_complete_path (string replace -r -- '^[^:]*:' '' $text))
                echo $word$file
            end
            return
        end
    end
    printf '%s\n' $argv
end

"#;
