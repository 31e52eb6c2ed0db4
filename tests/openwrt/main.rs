//! The package for OpenWrt: every option of `/etc/config/sockhop` reaches its flag, and nothing that stands there breaks the script.
//!
//! The init script runs under `rc.common` beside this file, which writes down what it asks of procd; with `UCI=/path/to/uci` the
//! configuration is read by that program.
#![cfg(all(target_os = "linux", feature = "server"))]

#[path = "../common/mod.rs"]
mod common;
mod package;
mod script;

use common::Sockhop;
use script::Script;

/// The commands that sections are named after.
const COMMANDS: [&str; 2] = ["forward", "serve"];

/// Flags that have no option of their own, and why.
const WITHOUT_OPTION: [(&str, &str, &str); 3] = [
    (
        "serve",
        "--user",
        "a password on the command line; users_file is for that, and user is whom procd starts it as",
    ),
    (
        "forward",
        "--take-over",
        "procd ends the old process before it starts the new one",
    ),
    ("serve", "--take-over", "the same"),
];

/// Flags with an option that is not only put on the command line; each has a test of its own.
const HAVE_MORE_TO_THEM: [&str; 8] = [
    "--remote",
    "--via",
    "--interface",
    "--user",
    "--run-as",
    "--control",
    "--verbose",
    "--quiet",
];

/// Options whose flags features leave out of some builds. That their names are right is seen with those that have them.
const OF_SOME_BUILDS: [&str; 14] = [
    "chroot",
    "dns",
    "drain_timeout",
    "early_reply",
    "metrics",
    "mptcp",
    "no_sandbox",
    "no_socks6",
    "no_stack_options",
    "ready",
    "require_whole_request",
    "socks6_only",
    "socks6_profile",
    "tfo",
];

/// A flag as the program itself describes it.
#[derive(Debug)]
struct Flag {
    name: String,
    kind: Kind,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Switch,
    Value,
    List,
}

/// Every flag of a command, as its help lists them; whether one takes a value is asked of the program.
fn flags(command: &str) -> Vec<Flag> {
    let help = Sockhop::run(&[command, "--help"]);
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let options = help.split("\nOptions:\n").nth(1).expect("options");
    let options = options.split("\n\n").next().expect("options");
    let mut flags: Vec<Flag> = Vec::new();
    for line in options.lines() {
        // "  --name  text" or "  -n, --name  text"; further lines of a text are indented more.
        let words: Vec<_> = line.split_whitespace().collect();
        let is_first = line.starts_with("  -");
        if let Some(name) = words.iter().take(2).find(|word| word.starts_with("--"))
            && is_first
        {
            let with_value = Sockhop::run(&[command, &format!("{name}=x"), "--help"]);
            flags.push(Flag {
                name: (*name).to_owned(),
                kind: match with_value.status.code() {
                    Some(0) => Kind::Value,
                    _ => Kind::Switch,
                },
            });
        }
        if (line.contains("repeatable") || line.contains("once for each"))
            && let Some(flag) = flags.last_mut()
        {
            flag.kind = Kind::List;
        }
    }
    flags.retain(|flag| flag.name != "--help");
    assert!(flags.len() > 25, "{flags:?}");
    flags
}

/// The name of a flag's option.
fn option(flag: &str) -> String {
    flag.trim_start_matches('-').replace('-', "_")
}

#[test]
fn every_flag_of_the_program_has_an_option_that_reaches_it() {
    for command in COMMANDS {
        for Flag { name, kind } in flags(command) {
            if WITHOUT_OPTION
                .iter()
                .any(|(of, flag, _)| (*of, *flag) == (command, &name))
                || HAVE_MORE_TO_THEM.contains(&name.as_str())
            {
                continue;
            }
            let option = option(&name);
            let (lines, expected) = match kind {
                Kind::Switch => (format!("option {option} '1'"), vec![name.clone()]),
                Kind::Value => (format!("option {option} '7'"), vec![format!("{name}=7")]),
                Kind::List => (
                    format!("list {option} '7'\nlist {option} '8'"),
                    vec![format!("{name}=7"), format!("{name}=8")],
                ),
            };
            let started = Script::new()
                .config(&format!("config {command} 'a'\n{lines}\n"))
                .start();
            assert_eq!(started.flags("a"), expected, "{command}: {lines}");
            assert_eq!(started.complaints(), [""; 0], "{command}: {lines}");
        }
    }
}

#[test]
fn every_option_of_the_script_is_a_flag_of_the_program() {
    for command in COMMANDS {
        let flags = flags(command);
        let options = Script::options(command);
        assert!(options.len() > 25, "{options:?}");
        for (list, option) in options {
            let flag = flags.iter().find(|flag| self::option(&flag.name) == option);
            let Some(flag) = flag else {
                let known = OF_SOME_BUILDS.contains(&option.as_str());
                assert!(known, "{command} has no flag for {option}");
                continue;
            };
            match list.as_str() {
                "LISTS" => assert_eq!(flag.kind, Kind::List, "{option}"),
                "VALUES" => assert_eq!(flag.kind, Kind::Value, "{option}"),
                "SWITCHES" => assert_eq!(flag.kind, Kind::Switch, "{option}"),
                "OTHERS" => assert!(HAVE_MORE_TO_THEM.contains(&flag.name.as_str()), "{option}"),
                _ => panic!("{list}"),
            }
        }
    }
}

#[test]
fn a_section_without_options_runs_with_the_defaults() {
    let started = Script::new().config("config forward 'main'").start();
    assert_eq!(started.instances(), ["main"]);
    assert_eq!(
        started.command("main"),
        [
            "/usr/bin/sockhop",
            "forward",
            "--control=/var/run/sockhop/main/control.sock"
        ]
    );
    assert_eq!(started.param("main", "user"), ["sockhop"]);
    assert_eq!(started.param("main", "limits"), ["nofile=4096 4096"]);
    assert_eq!(started.param("main", "respawn"), ["60", "5", "0"]);
    assert_eq!(started.param("main", "stderr"), ["1"]);
    assert_eq!(started.param("main", "stdout"), ["1"]);
    assert_eq!(started.param("main", "no_new_privs"), ["1"]);
    assert_eq!(started.param("main", "group"), [""; 0]);
    assert_eq!(started.param("main", "env"), [""; 0]);
    // The folder of the control socket is its user's.
    assert!(started.called(&["mkdir", "-p", "/var/run/sockhop/main"]));
    assert!(started.called(&["chown", "sockhop", "/var/run/sockhop/main"]));
    assert!(started.called(&["procd_add_reload_trigger", "sockhop"]));
    assert_eq!(started.complaints(), [""; 0]);
}

#[test]
fn each_enabled_section_is_an_instance() {
    let script = Script::new().config(
        "config forward 'home'\n\toption enabled '1'\n\toption quiet '2'\n\
         config forward 'off'\n\toption enabled '0'\n\
         config serve 'exit'\n\toption user 'nobody'\n\toption group 'nogroup'\n\toption nofile '100'\n\
         config serve\n\toption verbose '1'\n",
    );
    let started = script.start();
    let instances = started.instances();
    assert_eq!(instances[..2], ["home", "exit"]);
    assert_eq!(instances.len(), 3, "{instances:?}");
    assert_eq!(started.flags("home"), ["--quiet", "--quiet"]);
    assert_eq!(started.param("exit", "user"), ["nobody"]);
    assert_eq!(started.param("exit", "group"), ["nogroup"]);
    assert_eq!(started.param("exit", "limits"), ["nofile=100 100"]);
    // The one without a name has got one.
    assert_eq!(started.flags(instances[2]), ["--verbose"]);
    assert_eq!(started.complaints(), [""; 0]);
    assert_eq!(script.run(&["start", "exit"]).instances(), ["exit"]);
}

#[test]
fn values_stay_whole_whatever_is_in_them() {
    let values = [
        "two words",
        "it'\\''s",
        "a \"quoted\" word",
        "$(touch /tmp/x) `id` $HOME \\ * ; & |",
        "--manual",
        "-v",
        "tab\there",
    ];
    let mut config = "config forward 'a'\n".to_owned();
    for value in values {
        config += &format!("\tlist peer '{value}'\n");
    }
    let started = Script::new().config(&config).start();
    let expected: Vec<_> = values
        .iter()
        .map(|value| format!("--peer={}", value.replace("'\\''", "'")))
        .collect();
    assert_eq!(started.flags("a"), expected);
}

#[test]
fn empty_values_are_no_values() {
    let started = Script::new()
        .config(
            "config forward 'a'\n\tlist peer ''\n\tlist peer 'b'\n\toption stagger ''\n\toption manual ''\n\
             \toption control ''\n\tlist remote ''\n\toption quiet ''\n\tlist network ''\n",
        )
        .start();
    assert_eq!(started.flags("a"), ["--peer=b"]);
    assert_eq!(started.param("a", "env"), [""; 0]);
    assert_eq!(started.complaints(), [""; 0]);
}

#[test]
fn a_list_may_be_written_as_one_option() {
    let started = Script::new()
        .config("config forward 'a'\n\toption listen '127.0.0.1:1080'\n")
        .start();
    assert_eq!(started.flags("a"), ["--listen=127.0.0.1:1080"]);
}

#[test]
fn slips_are_told_and_left_out() {
    for (config, flags, complaint) in [
        (
            "config forward 'a'\n\toption probe_intervall '5s'",
            Some(vec![]),
            "a: option probe_intervall: left out",
        ),
        (
            "config serve 'a'\n\tlist peer 'b'",
            Some(vec![]),
            "a: option peer: left out: config serve has no such option",
        ),
        (
            "config forward 'a'\n\toption manual 'maybe'",
            Some(vec![]),
            "a: option manual 'maybe': left out",
        ),
        (
            "config forward 'a'\n\toption verbose '3'\n\toption manual 'on'",
            Some(vec!["--manual"]),
            "a: option verbose '3': left out",
        ),
        (
            "config forward 'a'\n\toption nofile 'many'",
            Some(vec![]),
            "a: option nofile 'many' is not a number of files",
        ),
        (
            "config forward 'a'\n\toption user 'nobodyelse'",
            None,
            "a: not started: there is no user 'nobodyelse'",
        ),
        (
            "config forwards 'a'\n\toption manual '1'",
            None,
            "a: left out: config forwards is neither forward nor serve",
        ),
    ] {
        let started = Script::new().config(&format!("{config}\n")).start();
        match flags {
            Some(flags) => assert_eq!(started.flags("a"), flags, "{config}"),
            None => assert_eq!(started.instances(), [""; 0], "{config}"),
        }
        let complaints = started.complaints();
        assert_eq!(complaints.len(), 1, "{config}: {complaints:?}");
        assert!(
            complaints[0].contains(complaint),
            "{config}: {complaints:?}"
        );
    }
}

#[test]
fn what_cannot_be_read_leaves_alone_what_runs() {
    // Had the service been closed, procd would take what it knows now for all there shall be: nothing.
    let missing = Script::new().start();
    let broken = Script::new().config("config forward 'a\n").start();
    let half = "config forward 'a'\nconfig forward 'b\nconfig forward 'c'\n";
    let half = Script::new().config(half).start();
    for (started, why) in [(missing, "missing"), (broken, "broken"), (half, "half")] {
        assert!(!started.called(&["close_service"]), "{why}");
        let complaints = started.complaints();
        assert_eq!(complaints.len(), 1, "{why}: {complaints:?}");
        assert!(complaints[0].contains("cannot be read"), "{complaints:?}");
    }
    let empty = Script::new().config("").start();
    assert!(empty.called(&["close_service"]));
    assert_eq!(empty.instances(), [""; 0]);
}

#[test]
fn one_proxy_goes_where_others_cannot_see_its_password() {
    for (command, option, variable) in [
        ("forward", "remote", "SOCKHOP_REMOTE"),
        ("serve", "via", "SOCKHOP_VIA"),
    ] {
        let one = "socks5://a:b%20c@d";
        for line in [format!("list {option}"), format!("option {option}")] {
            let config = format!("config {command} 'a'\n\t{line} '{one}'\n");
            let started = Script::new().config(&config).start();
            assert_eq!(started.flags("a"), [""; 0], "{config}");
            assert_eq!(started.param("a", "env"), [format!("{variable}={one}")]);
        }
        let config = format!("config {command} 'a'\n\tlist {option} 'b'\n\tlist {option} 'c'\n");
        let started = Script::new().config(&config).start();
        assert_eq!(
            started.flags("a"),
            [format!("--{option}=b"), format!("--{option}=c")]
        );
        assert_eq!(started.param("a", "env"), [""; 0]);
    }
}

#[test]
fn who_gives_up_root_owns_what_it_writes() {
    for (command, flag) in [("forward", "--user=nobody"), ("serve", "--run-as=nobody")] {
        let config =
            format!("config {command} 'a'\n\toption user 'root'\n\toption run_as 'nobody'\n");
        let started = Script::new().config(&config).start();
        assert_eq!(started.flags("a"), [flag]);
        assert_eq!(started.param("a", "user"), ["root"]);
        assert!(started.called(&["chown", "nobody", "/var/run/sockhop/a"]));
    }
}

#[test]
fn an_interface_is_known_by_its_name_in_the_network_s_configuration() {
    for (name, device) in [("wan", "pppoe-wan"), ("eth0", "eth0")] {
        let config = format!("config forward 'a'\n\toption interface '{name}'\n");
        let started = Script::new().config(&config).start();
        assert_eq!(started.flags("a"), [format!("--interface={device}")]);
        assert!(started.called(&["procd_add_reload_interface_trigger", name]));
    }
}

#[test]
fn control_and_state_are_where_they_shall_be() {
    let config =
        "config forward 'a'\n\toption control 'none'\n\toption state '/nonexistent/b/state'\n";
    let started = Script::new().config(config).start();
    assert_eq!(
        started.command("a")[2..],
        ["--state=/nonexistent/b/state", "--control=none"]
    );
    assert!(started.called(&["mkdir", "-p", "/nonexistent/b"]));
    assert!(started.called(&["chown", "sockhop", "/nonexistent/b"]));
    assert!(!started.called(&["mkdir", "-p", "/var/run/sockhop/a"]));

    // A folder that somebody made for other things stays whose it is.
    let config = "config forward 'a'\n\toption state '/etc/sockhop.state'\n";
    let started = Script::new().config(config).start();
    assert_eq!(started.flags("a"), ["--state=/etc/sockhop.state"]);
    assert!(!started.called(&["chown", "sockhop", "/etc"]));
}

#[test]
fn reload_reads_files_again_before_it_starts_what_changed() {
    let script = Script::new().config(
        "config forward 'a'\n\tlist network 'wan'\n\tlist network 'mesh'\nconfig serve 'b'\n\toption network 'lan'\n",
    );
    let reloaded = script.run(&["reload"]);
    // A new instance must not get the signal: it would come before there is a handler.
    let signal = ["procd_send_signal", "sockhop", "*", "HUP"];
    let at = |call: &[&str]| {
        reloaded
            .position(call)
            .unwrap_or_else(|| panic!("{call:?}"))
    };
    assert!(at(&signal) < at(&["open_service"]));
    assert_eq!(reloaded.instances(), ["a", "b"]);
    for name in ["wan", "mesh", "lan"] {
        assert!(reloaded.called(&["procd_add_reload_interface_trigger", name]));
    }
    let one = script.run(&["reload", "b"]);
    assert!(one.called(&["procd_send_signal", "sockhop", "b", "HUP"]));
    assert_eq!(one.instances(), ["b"]);
}

#[test]
fn the_init_script_is_one_of_procd() {
    let started = Script::new().config("").start();
    assert!(started.called(&["settings", "1", "95", "10"]));
}
