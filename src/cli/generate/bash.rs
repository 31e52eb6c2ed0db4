//! Completions for bash, 4.0 or newer; they need no package beside it.

use super::outline::{BEFORE_PATHS, Entry, Offer, Outline};

pub(super) fn completions(outline: &Outline) -> String {
    let names: Vec<_> = outline.commands.iter().map(|entry| entry.name).collect();
    let names = names.join(" ");
    let mut out = HEAD.to_owned();

    out += "    local commands=\"";
    out += &names;
    out += " help\"\n";
    out += FIND_COMMAND;

    // The value of a flag.
    out += "    case $command\\ $flag in\n";
    for entry in &outline.commands {
        for flag in &entry.flags {
            let Some(value) = &flag.value else { continue };
            out += &format!("    \"{} {}\") ", entry.name, flag.long);
            out += &match value.offer {
                Offer::Nothing => "return ;;\n".to_owned(),
                Offer::Files => "_sockhop_files \"\" \"$value\"; return ;;\n".to_owned(),
                Offer::Words(words) => {
                    format!(
                        "_sockhop_words \"{}\" \"$value\"; return ;;\n",
                        words.join(" ")
                    )
                }
            };
        }
    }
    out += "    esac\n";

    // A flag, or a word of the command.
    out += "    local flags= words=\n    case $command in\n";
    for entry in &outline.commands {
        out += &format!("    {})\n        flags=\"{}\"\n", entry.name, flags(entry));
        // The first of which nothing stands there yet.
        for positional in entry
            .positionals
            .iter()
            .filter(|word| !word.words.is_empty())
        {
            let there = positional
                .words
                .iter()
                .map(|word| format!("*\" {word} \"*"));
            let there: Vec<_> = there.collect();
            out += &format!(
                "        case \" $line \" in {}) ;; *) words=${{words:-\"{}\"}} ;; esac\n",
                there.join(" | "),
                positional.words.join(" ")
            );
        }
        out += "        ;;\n";
    }
    out += &format!("    help) words=\"{names}\" ;;\n");
    out += &format!(
        "    *)\n        flags=\"{}\"\n        words=$commands\n        ;;\n    esac\n",
        flags(&outline.program)
    );
    out += TAIL;
    out.replace(
        "@BEFORE_PATHS@",
        &BEFORE_PATHS.map(|word| format!("{word}*")).join(" | "),
    )
}

fn flags(entry: &Entry) -> String {
    let mut flags = Vec::new();
    for flag in &entry.flags {
        flags.push(flag.long.to_owned());
        flags.extend(flag.short.map(|short| format!("-{short}")));
    }
    flags.join(" ")
}

const HEAD: &str = r#"# bash completion for sockhop; made by "sockhop generate completions bash".

# PREFIX TEXT: files whose names start with TEXT, PREFIX before each.
_sockhop_files() {
    local file
    while IFS= read -r file; do
        [ ! -d "$file" ] || file=$file/
        _sockhop_add "$1$file"
    done < <(compgen -f -- "$2")
    compopt -o filenames -o nospace 2>/dev/null
}

# WORDS TEXT: those that start with TEXT; behind some of them comes a file.
_sockhop_words() {
    local word
    case $2 in
    @BEFORE_PATHS@)
        _sockhop_files "${2%%:*}:" "${2#*:}"
        return
        ;;
    esac
    for word in $(compgen -W "$1" -- "$2"); do
        _sockhop_add "$word"
        case $word in *:) compopt -o nospace 2>/dev/null ;; esac
    done
}

# readline replaces only what follows the last "=" or ":" of a word.
_sockhop_add() {
    COMPREPLY+=("${1#"$before"}")
}

_sockhop() {
    local line=${COMP_LINE:0:COMP_POINT} word value flag= before piece
    COMPREPLY=()
    word=${line##*[[:space:]]}
    piece=${COMP_WORDS[COMP_CWORD]}
    case $piece in = | :) piece= ;; esac
    case $word in
    --*=*)
        flag=${word%%=*}
        value=${word#*=}
        ;;
    *)
        value=$word
        line=${line%"$word"}
        line=${line%"${line##*[![:space:]]}"}
        flag=${line##*[[:space:]]}
        ;;
    esac
    before=${value%"$piece"}
"#;

const FIND_COMMAND: &str = r#"
    local command= at known
    for ((at = 1; at < COMP_CWORD; at++)); do
        for known in $commands; do
            [ "$known" != "${COMP_WORDS[at]}" ] || command=${command:-$known}
        done
    done

"#;

const TAIL: &str = r#"
    case $word in
    -*) words=$flags ;;
    esac
    _sockhop_words "$words" "$word"
}

complete -F _sockhop sockhop
"#;
