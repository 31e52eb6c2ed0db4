//! The packaging examples name flags that exist, in files that their readers can parse.

mod common;

use common::Sockhop;

/// Asserts that the program knows every flag of the lines.
fn assert_known(lines: impl Iterator<Item = &'static str>) {
    let help = Sockhop::run(&["forward", "--help"]);
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let known: Vec<&str> = help.split_whitespace().collect();
    let flags: Vec<&str> = lines
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('-'))
        .map(|word| if word == "-q" { "-q," } else { word })
        .collect();
    assert!(flags.len() >= 3, "{flags:?}");
    for flag in flags {
        assert!(known.contains(&flag), "{flag} is not in\n{help}");
    }
}

#[test]
fn systemd_unit_starts_the_program_with_flags_it_knows() {
    let unit = include_str!("../examples/systemd/sockhop.service");
    assert_known(unit.lines().filter(|line| line.starts_with("ExecStart=")));
}
