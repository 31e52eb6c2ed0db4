//! `sockhop generate`: the manual and the completions know every flag, and the programs that they are for understand them.
//!
//! `cargo test --features generate --test generate`
#![cfg(all(
    feature = "generate",
    feature = "server",
    feature = "client-cli",
    feature = "metrics",
    feature = "socks6"
))]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Launch, SOON, Sockhop, program, run_within, success};
use tempfile::TempDir;

const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

fn generated(arguments: &[&str]) -> String {
    let output = Launch::new(&["generate"]).args(arguments).run(SOON);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    assert_eq!(output.stderr, b"");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What is generated, in a file.
fn file(name: &str, arguments: &[&str]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(name);
    fs::write(&path, generated(arguments)).expect("a file");
    (directory, path)
}

/// The commands, as the program's help lists them.
fn commands() -> Vec<String> {
    let help = Sockhop::run(&["--help"]);
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let list = help.split("\nCommands:\n").nth(1).expect("commands");
    let list = list.split("\n\n").next().expect("commands");
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 5, "{names:?}");
    names
}

/// The long flags of a command, as its help lists them.
fn flags(command: &str) -> Vec<String> {
    let help = Sockhop::run(&[command, "--help"]);
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let list = help.split("\nOptions:\n").nth(1).expect("options");
    let list = list.split("\n\n").next().expect("options");
    let flags: Vec<_> = list
        .lines()
        .filter(|line| line.starts_with("  -"))
        .filter_map(|line| {
            line.split_whitespace()
                .take(2)
                .find(|word| word.starts_with("--"))
        })
        .map(str::to_owned)
        .collect();
    assert!(flags.contains(&"--help".to_owned()), "{flags:?}");
    flags
}

#[test]
fn the_manual_has_every_flag_of_every_command() {
    let page = generated(&["man"]);
    for command in commands() {
        let section = page.split(&format!(".SS \"sockhop {command}\"\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("no section for {command}"));
        let section = section.split("\n.S").next().expect("an end");
        for flag in flags(&command) {
            let tag = format!("\\fB{}\\fR", flag.replace('-', "\\-"));
            assert!(
                section.lines().any(|line| line.contains(&tag)),
                "{command} {flag}"
            );
        }
    }
    for section in ["EXIT STATUS", "ENVIRONMENT", "FILES", "SIGNALS", "EXAMPLES"] {
        assert!(page.contains(&format!(".SH {section}\n")), "{section}");
    }
    // Defaults are there, and what is typed stays what is typed.
    assert!(page.contains("(default 60s)"));
    assert!(page.contains("\nsockhop forward \\-\\-peer 407::1 \\-\\-peer 407::2\n"));
}

#[test]
fn the_manual_has_every_variable_of_the_program() {
    let page = generated(&["man"]);
    let mut found = 0;
    for name in ["src/cli/forward.rs", "src/cli/serve.rs"] {
        let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
        let source = fs::read_to_string(path).expect(name);
        for text in source
            .split('"')
            .filter(|text| text.starts_with("SOCKHOP_"))
        {
            found += 1;
            assert!(page.contains(&format!("\\fB{text}\\fR")), "{text}");
        }
    }
    assert!(found >= 3);
}

#[test]
fn the_day_of_the_manual_can_be_told() {
    for (told, day) in [("0", "1970-01-01"), ("1700000000", "2023-11-14")] {
        let output = Launch::new(&["generate", "man"])
            .env("SOURCE_DATE_EPOCH", told)
            .run(SOON);
        let page = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(page.starts_with(&format!(".TH SOCKHOP 1 {day} ")), "{told}");
    }
    for nonsense in ["-1", "99999999999999999", "x", ""] {
        let output = Launch::new(&["generate", "man"])
            .env("SOURCE_DATE_EPOCH", nonsense)
            .run(SOON);
        assert!(output.status.success(), "{nonsense}");
    }
}

#[test]
fn completions_have_every_flag_of_every_command() {
    for shell in SHELLS {
        let text = generated(&["completions", shell]);
        for command in commands() {
            for flag in flags(&command) {
                let bare = flag.trim_start_matches('-');
                // Each flag stands where it belongs to its command.
                let found = match shell {
                    "bash" => bash_block(&text, &command)
                        .split(['"', ' '])
                        .any(|word| word == flag),
                    "zsh" => zsh_block(&text, &command).lines().any(|line| {
                        line.contains(&format!("{flag}[")) || line.contains(&format!("{flag}=["))
                    }),
                    _ => text.lines().any(|line| {
                        line.contains(&format!("'__sockhop_command {command}'"))
                            && line.contains(&format!(" -l {bare} "))
                    }),
                };
                assert!(found, "{shell}: {command} {flag}");
            }
        }
    }
}

fn bash_block<'a>(text: &'a str, command: &str) -> &'a str {
    let (_, block) = text
        .split_once(&format!("    {command})\n"))
        .expect("a block");
    block.split(";;\n    ").next().expect("an end")
}

fn zsh_block<'a>(text: &'a str, command: &str) -> &'a str {
    let (_, block) = text
        .split_once(&format!("        {command}) _arguments"))
        .expect("a block");
    block.split(" ;;\n").next().expect("an end")
}

#[test]
fn wrong_usage_says_what_would_be_right() {
    for (arguments, message) in [
        (
            vec!["completions"],
            "for which shell? right would be completions bash, zsh or fish",
        ),
        (
            vec!["completions", "tcsh"],
            "\"tcsh\" is not a shell that is known",
        ),
        (vec!["man", "bash"], "\"bash\" is one word too many"),
        (vec!["info"], "\"info\" is neither man nor completions"),
    ] {
        let output = Launch::new(&["generate"]).args(&arguments).run(SOON);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message), "{arguments:?}: {said}");
        assert_eq!(output.stdout, b"");
    }
}

/// What bash would replace the last piece of each line with, when the lines are typed and then Tab.
fn bash(lines: &[&str]) -> Vec<Vec<String>> {
    let (directory, path) = file("sockhop", &["completions", "bash"]);
    fs::write(directory.path().join("notes.txt"), "").expect("a file");
    fs::create_dir(directory.path().join("nested")).expect("a folder");
    let mut script = format!("source {}\n", path.display());
    for line in lines {
        // As bash fills them in: "=" and ":" are pieces of their own.
        let mut pieces: Vec<String> = vec![String::new()];
        for char in line.chars() {
            let last = pieces.last_mut().expect("never empty");
            match char {
                ' ' if last.is_empty() => {}
                ' ' => pieces.push(String::new()),
                '=' | ':' => {
                    if !last.is_empty() && !last.ends_with(['=', ':']) {
                        pieces.push(String::new());
                    }
                    pieces.last_mut().expect("never empty").push(char);
                }
                char if last.ends_with(['=', ':']) => pieces.push(char.to_string()),
                char => last.push(char),
            }
        }
        script += &format!(
            "COMP_LINE='{line}' COMP_POINT={} COMP_WORDS=({}) COMP_CWORD={}\n",
            line.len(),
            pieces
                .iter()
                .map(|piece| format!("'{piece}' "))
                .collect::<String>(),
            pieces.len() - 1
        );
        script += "_sockhop\nprintf '%s\\n' \"${COMPREPLY[@]}\"; echo --\n";
    }
    let output = success(
        Command::new(program("bash"))
            .args(["--norc", "--noprofile", "-u", "-c", &script])
            .current_dir(directory.path())
            .stdin(Stdio::null()),
    );
    let output = String::from_utf8(output).expect("UTF-8");
    let mut answers: Vec<Vec<String>> = output
        .split_terminator("--\n")
        .map(|answer| {
            let words = answer.lines().filter(|word| !word.is_empty());
            words.map(str::to_owned).collect()
        })
        .collect();
    for answer in &mut answers {
        answer.sort();
    }
    assert_eq!(answers.len(), lines.len(), "{output}");
    answers
}

#[test]
#[ignore = "needs bash"]
fn bash_completes_commands_flags_and_values() {
    let cases: &[(&str, &[&str])] = &[
        ("sockhop pro", &["probe", "probing", "proxies"]),
        ("sockhop --ver", &["--version"]),
        ("sockhop forward --pe", &["--peer", "--peers"]),
        ("sockhop forward --on-switch ", &["cut", "keep"]),
        ("sockhop forward --on-switch  k", &["keep"]),
        ("sockhop forward --on-switch=", &["cut", "keep"]),
        ("sockhop forward --on-switch=c", &["cut"]),
        ("sockhop -v forward --fallback ", &["direct", "refuse"]),
        ("sockhop --control x forward --fallback d", &["direct"]),
        ("sockhop forward --peers ta", &["tailscale"]),
        ("sockhop forward --peers=fi", &["file:"]),
        ("sockhop forward --peers file:n", &["nested/", "notes.txt"]),
        ("sockhop forward --peers=file:no", &["notes.txt"]),
        (
            "sockhop forward --peers file:",
            &["nested/", "notes.txt", "sockhop"],
        ),
        ("sockhop forward --state no", &["notes.txt"]),
        ("sockhop forward --state=no", &["notes.txt"]),
        ("sockhop serve --users-file ne", &["nested/"]),
        ("sockhop forward --peer ", &[]),
        ("sockhop serve --fallback ", &[]),
        ("sockhop probing ", &["start", "stop"]),
        ("sockhop probing --control x sta", &["start"]),
        ("sockhop probing start ", &[]),
        ("sockhop generate ", &["completions", "man"]),
        ("sockhop generate completions ", &["bash", "fish", "zsh"]),
        ("sockhop help dem", &["demo"]),
        ("sockhop dial --listen ", &[]),
    ];
    let lines: Vec<_> = cases.iter().map(|(line, _)| *line).collect();
    for ((line, expected), answer) in cases.iter().zip(bash(&lines)) {
        assert_eq!(answer, *expected, "{line}");
    }
}

#[test]
#[ignore = "needs bash"]
fn bash_completes_every_flag_of_every_command() {
    let commands = commands();
    let lines: Vec<_> = commands
        .iter()
        .map(|command| format!("sockhop {command} --"))
        .collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    for (command, answer) in commands.iter().zip(bash(&lines)) {
        let mut expected = flags(command);
        expected.sort();
        assert_eq!(answer, expected, "{command}");
    }
}

#[test]
#[ignore = "needs fish"]
fn fish_completes_commands_flags_and_values() {
    let (directory, path) = file("sockhop.fish", &["completions", "fish"]);
    fs::write(directory.path().join("notes.txt"), "").expect("a file");
    let cases: &[(&str, &[&str])] = &[
        ("sockhop pro", &["probe", "probing", "proxies"]),
        ("sockhop forward --pe", &["--peer", "--peers"]),
        ("sockhop forward --on-switch ", &["cut", "keep"]),
        ("sockhop forward --on-switch=c", &["--on-switch=cut"]),
        ("sockhop forward --peers ta", &["tailscale"]),
        ("sockhop forward --peers file:no", &["file:notes.txt"]),
        ("sockhop forward --state no", &["notes.txt"]),
        ("sockhop forward --peer ", &[]),
        ("sockhop probing ", &["start", "stop"]),
        ("sockhop help dem", &["demo"]),
    ];
    for (line, expected) in cases {
        let output = success(
            Command::new(program("fish"))
                .args(["--no-config", "-c"])
                .arg("source $argv[1]; complete -C $argv[2]")
                .args([&path.display().to_string(), *line])
                .env("HOME", directory.path())
                .current_dir(directory.path())
                .stdin(Stdio::null()),
        );
        let output = String::from_utf8(output).expect("UTF-8");
        let mut words: Vec<_> = output
            .lines()
            .filter_map(|line| line.split('\t').next())
            .collect();
        words.sort_unstable();
        assert_eq!(words, *expected, "{line}");
    }
}

/// What zsh makes of each line when Tab is pressed at its end.
#[test]
#[ignore = "needs zsh"]
fn zsh_completes_commands_flags_and_values() {
    let (directory, _) = file("_sockhop", &["completions", "zsh"]);
    fs::write(directory.path().join("notes.txt"), "").expect("a file");
    // A shell on a terminal of its own. It binds a key that prints what is in the line by now.
    let script = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PROMPT= RPROMPT= PROMPT_EOL_MARK=; fpath=($1 \$fpath); cd $1; autoload -Uz compinit; compinit -u -D; unsetopt BEEP"
        zpty -w shell "show() { print -r -- \"<\$BUFFER>\"; BUFFER= }; zle -N show; bindkey '^I' complete-word '^T' show; print REA''DY"
        while zpty -r shell line; do [[ $line == *READY* ]] && break; done
        shift
        for text in "$@"; do
            zpty -w -n shell "$text"$'\t\x14'
            while zpty -r shell line; do
                [[ $line == *'<'*'>'* ]] && { line=${line##*<}; print -r -- "${line%%>*}"; break; }
            done
        done
        zpty -d shell
    "#;
    let cases = [
        ("sockhop stat", "sockhop status "),
        (
            "sockhop forward --on-switch k",
            "sockhop forward --on-switch keep ",
        ),
        (
            "sockhop forward --on-switch=k",
            "sockhop forward --on-switch=keep ",
        ),
        (
            "sockhop forward --peers ta",
            "sockhop forward --peers tailscale ",
        ),
        (
            "sockhop forward --peers fi",
            "sockhop forward --peers file:",
        ),
        (
            "sockhop forward --peers file:no",
            "sockhop forward --peers file:notes.txt ",
        ),
        (
            "sockhop forward --state no",
            "sockhop forward --state notes.txt ",
        ),
        ("sockhop probing sta", "sockhop probing start "),
        (
            "sockhop generate completions ba",
            "sockhop generate completions bash ",
        ),
        (
            "sockhop serve --require",
            "sockhop serve --require-whole-request ",
        ),
    ];
    let output = success(
        Command::new(program("timeout"))
            .arg("30")
            .arg(program("zsh"))
            .args(["-f", "-c", script, "zsh"])
            .arg(directory.path())
            .args(cases.map(|(line, _)| line))
            .env("TERM", "dumb")
            .stdin(Stdio::null()),
    );
    let output = String::from_utf8_lossy(&output);
    let completed: Vec<_> = output.lines().collect();
    assert_eq!(completed, cases.map(|(_, completed)| completed));
}

#[test]
#[ignore = "needs mandoc"]
fn mandoc_finds_nothing_in_the_manual() {
    let (_directory, path) = file("sockhop.1", &["man"]);
    let output = success(
        Command::new(program("mandoc"))
            .args(["-T", "lint", "-W", "style"])
            .arg(&path),
    );
    assert_eq!(String::from_utf8_lossy(&output), "");
}

#[test]
#[ignore = "needs groff"]
fn groff_sets_the_manual_without_a_warning() {
    let (_directory, path) = file("sockhop.1", &["man"]);
    let mut groff = Command::new(program("groff"));
    groff
        .args(["-ww", "-man", "-T", "utf8", "-P", "-c"])
        .arg(&path);
    let output = run_within(SOON, &mut groff);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    // What is on the page can be typed: no typographic hyphens or quotes in it.
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(page.contains("sockhop forward --peer 407::1 --peer 407::2"));
    assert!(page.contains("-o ProxyCommand='sockhop dial socks5h://localhost %h:%p'"));
}
