//! Signals: SIGHUP reads files again and leaves everything else alone, SIGUSR1 logs the status, and neither ends the program.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use common::{Peer, SOON, Signal, Sockhop, Target, exchange, socks5_connect, wait_until};
use rustix::process::{Pid, kill_process};

#[test]
fn told_to_a_forwarder_tells_its_status_at_every_level_of_the_log() {
    let peer = Peer::valid(Duration::ZERO);
    let address = peer.address().to_string();
    for level in ["-v", "-q", "-qq", "--log-level=error"] {
        let sockhop = Sockhop::forward(&["--remote", &address, level]).start();
        sockhop.wait_listening(SOON);
        sockhop.signal(Signal::USR1);
        let line = sockhop.wait_log(&format!("info: status: remote {address}"), SOON);
        assert!(line.contains("listening on 127.0.0.1:"), "{line}");
        sockhop.wait_log("info: status: connections: 0 active", SOON);
        let line = sockhop.wait_log("info: status: peers: ", SOON);
        assert!(line.ends_with("probing is on"), "{line}");
    }
}

#[test]
fn a_forwarder_without_a_remote_tells_why() {
    let sockhop = Sockhop::forward(&["--manual", "--peers", "file:/nowhere/peers"]).start();
    sockhop.wait_status(
        |status| status["sources"].to_string().contains("cannot be read"),
        SOON,
    );
    sockhop.signal(Signal::USR1);
    sockhop.wait_log("status: remote none (waiting for `sockhop connect`)", SOON);
    sockhop.wait_log("status: source file:/nowhere/peers: ", SOON);
}

#[test]
fn told_to_a_server_tells_its_status() {
    let sockhop = Sockhop::serve(&["--user", "a:b", "-qq"]).start();
    sockhop.wait_listening(SOON);
    sockhop.signal(Signal::USR1);
    sockhop.wait_log("status: listening on 127.0.0.1:", SOON);
    sockhop.wait_log("status: connections: 0 active", SOON);
    assert!(
        sockhop
            .log()
            .iter()
            .any(|line| line.contains(", users: 1,"))
    );
}

#[test]
fn reload_reads_the_peers_and_reopens_nothing() {
    let (first, second) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let folder = tempfile::tempdir().unwrap();
    let peers = folder.path().join("peers");
    // The file does not look changed, so that nobody reads it again by himself.
    let name = |peer: &Peer| {
        fs::write(&peers, format!("{:40}\n", peer.address())).unwrap();
        let file = fs::File::options().write(true).open(&peers).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        file.set_modified(long_ago).unwrap();
    };
    name(&first);
    let sockhop = Sockhop::forward(&["--peers", &format!("file:{}", peers.display())]).start();
    let listening = sockhop.wait_listening(SOON);
    let echo = Target::echo();
    let stream = socks5_connect(listening, echo.address()).unwrap();

    name(&second);
    sockhop.signal(Signal::HUP);
    sockhop.wait_log("told to read the peers again", SOON);
    sockhop.wait_peer(second.address(), "valid", SOON);
    assert_eq!(exchange(&stream, b"still here").unwrap(), b"still here");
    let opened = |line: &&String| line.contains("listening on");
    assert_eq!(sockhop.log().iter().filter(opened).count(), 1);
}

#[test]
fn reload_reads_the_users_and_keeps_the_old_ones_when_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    fs::write(&users, "one:secret\n").unwrap();
    let sockhop = Sockhop::serve(&["--users-file", users.to_str().unwrap()]).start();
    sockhop.wait_listening(SOON);
    fs::write(&users, "one:secret\ntwo:secret\n").unwrap();
    sockhop.signal(Signal::HUP);
    sockhop.wait_status(|status| status["users"] == 2, SOON);
    fs::write(&users, "nonsense\n").unwrap();
    sockhop.signal(Signal::HUP);
    sockhop.wait_log("the users stay as they were", SOON);
    assert_eq!(sockhop.status()["users"], 2);
    fs::remove_file(&users).unwrap();
    sockhop.signal(Signal::HUP);
    sockhop.wait_log("No such file", SOON);
    assert_eq!(sockhop.status()["users"], 2);
}

/// The start is held up by its first line of log: the pipe that it goes to is full.
#[test]
fn signals_during_the_start_wait_for_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, mut full) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while full.write(&[b'\n'; 512]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sockhop"))
        .args([
            "forward",
            "--manual",
            "--listen",
            "127.0.0.1:0",
            "--control",
        ])
        .arg(folder.path().join("control"))
        .arg("--state")
        .arg(folder.path().join("state"))
        .stdin(Stdio::null())
        .stderr(full)
        .spawn()
        .unwrap();
    let id = Pid::from_child(&child);
    let caught = wait_until(SOON, || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
        [Signal::HUP, Signal::USR1]
            .iter()
            .all(|signal| mask & 1 << (signal.as_raw() - 1) != 0)
    });
    for signal in [Signal::HUP, Signal::USR1] {
        kill_process(id, signal).unwrap();
    }
    let lines = thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    let control = folder.path().join("control");
    let runs = caught && wait_until(SOON, || control.exists());
    // Handled on the reactor in this order, after what has come before.
    let _ = kill_process(id, Signal::TERM);
    let ended = wait_until(SOON, || child.try_wait().unwrap().is_some());
    let _ = child.kill();
    let status = child.wait().unwrap();
    let lines = lines.join().unwrap();
    assert!(caught, "not caught before the first line of log");
    assert!(runs && ended, "{status}");
    assert_eq!(status.code(), Some(0), "{lines}");
    assert!(lines.contains("told to end"), "{lines}");
    for told in ["told to read the peers again", "status: remote none"] {
        assert!(lines.contains(told), "{told} is not in {lines}");
    }
}
