//! The log: what its lines begin with, which of them are shown, and that it goes nowhere but to stderr.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    Peer, SOON, Signal, Sockhop, Target, exchange, need_root, program, run_within, socks5_connect,
    wait_until,
};
use serde_json::json;

/// Runs the program to its end with stderr named to it as the journal's; what it wrote there.
fn in_journal(arguments: &[&str]) -> String {
    let (mut read, write) = io::pipe().unwrap();
    let stat = rustix::fs::fstat(&write).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sockhop"))
        .args(arguments)
        .env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(write)
        .spawn()
        .unwrap();
    let ended = wait_until(SOON, || child.try_wait().unwrap().is_some());
    let _ = child.kill();
    let _ = child.wait();
    assert!(ended, "{arguments:?}");
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    text
}

/// A warning, and then an error that ends it.
const WARNS_AND_ENDS: [&str; 9] = [
    "forward",
    "--peer",
    "127.0.0.1",
    "--state",
    "/nowhere/state",
    "--listen",
    "unix:/dev/null",
    "--control",
    "none",
];

#[test]
fn the_journal_gets_priorities_and_no_times() {
    let lines = in_journal(&WARNS_AND_ENDS);
    assert!(
        lines.contains("\n<4>") || lines.starts_with("<4>"),
        "{lines}"
    );
    assert!(lines.contains("<3>sockhop: "), "{lines}");
    assert!(lines.lines().all(|line| line.starts_with('<')), "{lines}");
    let usage = in_journal(&["forward", "--log-level", "3"]);
    assert!(usage.starts_with("<3>sockhop: --log-level"), "{usage}");
}

#[test]
fn elsewhere_lines_begin_with_their_time_unless_told_otherwise() {
    let first = |options: &[&str], stream: &str| {
        let sockhop = Sockhop::forward(&["--manual"])
            .args(options)
            // Inherited from somebody whose stderr it was.
            .env("JOURNAL_STREAM", stream)
            .start();
        sockhop.control("probing", json!({"run": true})).unwrap();
        sockhop.wait_log("probing started", SOON)
    };
    let stamped = first(&[], "1:1");
    let (time, rest) = stamped.split_once(' ').unwrap();
    assert!(humantime_like(time), "{stamped}");
    assert_eq!(rest, "info: probing started");
    let plain = first(&["--log-format", "plain"], "1:1");
    assert_eq!(plain, "info: probing started");
    let journal = first(&["--log-format", "journal"], "");
    assert_eq!(journal, "<6>probing started");
}

#[test]
#[ignore = "needs root for a process namespace of its own"]
fn a_pipe_to_the_first_process_needs_no_times() {
    need_root();
    // The shell is the first process of a system of its own, as procd is on a router.
    let mut unshare = Command::new(program("unshare"));
    unshare
        .args(["--pid", "--fork", "sh", "-c", "\"$0\" \"$@\" 2>&1 | cat"])
        .arg(env!("CARGO_BIN_EXE_sockhop"))
        .args(WARNS_AND_ENDS);
    let output = run_within(SOON, &mut unshare);
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(
        lines.contains("warn: state file /nowhere/state: "),
        "{lines}"
    );
    for line in lines.lines() {
        assert!(!line.starts_with("20"), "{lines}");
    }
}

/// `2026-01-01T00:00:00Z`.
fn humantime_like(text: &str) -> bool {
    text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T'
}

#[test]
fn rust_log_wins_over_the_options() {
    let lines = |level: &str, filters: &str| {
        let mut sockhop = Sockhop::forward(&["--manual", level])
            .env("RUST_LOG", filters)
            .start();
        sockhop.control("probing", json!({"run": true})).unwrap();
        sockhop.control("status", json!(null)).unwrap();
        sockhop.signal(Signal::TERM);
        sockhop.wait_exit(SOON);
        sockhop.log().join("\n")
    };
    let quiet = lines("-vv", "error");
    assert!(!quiet.contains("probing started"), "{quiet}");
    let loud = lines("-qq", "sockhop::control=trace");
    assert!(loud.contains("trace: control: "), "{loud}");
    assert!(!loud.contains("probing started"), "{loud}");
    let usual = lines("--log-level=info", "");
    assert!(usual.contains("probing started"), "{usual}");
    assert!(!usual.contains("trace: "), "{usual}");
}

#[test]
fn lines_that_repeat_are_counted_instead_and_told_of_at_the_end() {
    // Also where only those of one module are wanted.
    for filters in ["", "sockhop::daemon=info"] {
        let mut sockhop = Sockhop::forward(&["--manual"])
            .env("RUST_LOG", filters)
            .start();
        for round in 0..50 {
            let run = round % 2 == 0;
            sockhop.control("probing", json!({"run": run})).unwrap();
        }
        sockhop.signal(Signal::TERM);
        sockhop.wait_exit(SOON);
        let told = sockhop.wait_log("more lines like this", SOON);
        let lines = sockhop.log();
        let shown = lines.iter().filter(|line| line.contains("info: probing "));
        assert_eq!(shown.count(), 30);
        assert!(
            told.contains("info: … and 20 more lines like this: probing stopped"),
            "{told}"
        );
        assert!(lines.iter().any(|line| line.contains("told to end")));
    }
}

#[test]
fn each_connection_is_shown_to_who_wants_to_see_them() {
    let peer = Peer::valid(Duration::ZERO);
    let echo = Target::echo();
    let sockhop = Sockhop::forward(&["-v", "--remote", &peer.address().to_string()]).start();
    let address = sockhop.wait_listening(SOON);
    for _ in 0..40 {
        let stream = socks5_connect(address, echo.address()).unwrap();
        exchange(&stream, b"x").unwrap();
    }
    let debug = || {
        let lines = sockhop.log();
        lines.iter().filter(|line| line.contains("debug: ")).count()
    };
    assert!(wait_until(SOON, || debug() >= 40), "{}", debug());
}

/// Every file that a run opens for writing, and every change to a folder, as strace tells them.
fn written(sockhop_arguments: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (trace, control) = (folder.path().join("trace"), folder.path().join("control"));
    let peers = folder.path().join("peers");
    let peer = Peer::valid(Duration::ZERO);
    fs::write(&peers, format!("{}\n", peer.address())).unwrap();
    let mut strace = Command::new(program("strace"))
        .args(["-f", "-qq", "-e"])
        .arg("trace=open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,ftruncate,mknod,mknodat,memfd_create")
        .arg("-o")
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_sockhop"))
        .args(["forward", "--peers", &format!("file:{}", peers.display())])
        .args(["--listen", "127.0.0.1:0", "--control"])
        .arg(&control)
        .args(sockhop_arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ask = |arguments: &[&str]| {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--control", control.to_str().unwrap()]);
        let answer = Sockhop::run(&arguments);
        String::from_utf8(answer.stdout).unwrap()
    };
    assert!(wait_until(SOON, || control.exists()));
    assert!(wait_until(SOON, || {
        ask(&["status", "--json"]).contains("\"remote\":\"127")
    }));
    let status: serde_json::Value = serde_json::from_str(&ask(&["status", "--json"])).unwrap();
    let address = status["listening"][0].as_str().unwrap().parse().unwrap();
    let echo = Target::echo();
    let stream = socks5_connect(address, echo.address()).unwrap();
    exchange(&stream, &[7; 100_000]).unwrap();
    let traced = fs::read_to_string(&trace).unwrap();
    let id = traced.split_whitespace().next().unwrap().parse().unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    for signal in [Signal::HUP, Signal::USR1, Signal::TERM] {
        rustix::process::kill_process(id, signal).unwrap();
    }
    let ended = wait_until(SOON, || strace.try_wait().unwrap().is_some());
    let _ = strace.kill();
    let _ = strace.wait();
    assert!(ended);
    let traced = fs::read_to_string(&trace).unwrap();
    assert!(traced.contains("O_RDONLY"), "{traced}");
    let writes = |line: &&str| {
        let call = line
            .split_once(' ')
            .map_or("", |(_, call)| call.trim_start());
        let opens = call.starts_with("open");
        !opens && call.contains('(')
            || ["O_WRONLY", "O_RDWR", "O_CREAT"]
                .iter()
                .any(|flag| call.contains(flag))
    };
    let lines = traced.lines().filter(writes);
    lines
        .filter(|line| !line.contains("/dev/null"))
        .map(str::to_owned)
        .collect()
}

#[test]
#[ignore = "needs strace"]
fn nothing_is_written_to_a_disk_but_the_state_file() {
    assert_eq!(written(&[]), Vec::<String>::new());
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let lines = written(&["--state", state.to_str().unwrap()]);
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(line.contains(state.to_str().unwrap()), "{lines:?}");
    }
}
