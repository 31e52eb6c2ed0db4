//! Other people's programs: found, started, and ended with all of their children.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use tempfile::TempDir;

use super::{SOON, wait_until};

/// Where a program is, also when it is one for administrators; a panic that says what to install when it is nowhere.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    let package = PACKAGES
        .iter()
        .find_map(|(program, package)| (*program == name).then_some(*package))
        .unwrap_or(name);
    found.unwrap_or_else(|| {
        panic!(
            "{name} is not installed, and this test needs it: `apt-get install {package}` on Debian"
        )
    })
}

/// Debian's package, where it has another name than the program.
const PACKAGES: [(&str, &str); 14] = [
    ("danted", "dante-server"),
    ("dig", "bind9-dnsutils"),
    ("ip", "iproute2"),
    ("nc.openbsd", "netcat-openbsd"),
    ("nft", "nftables"),
    ("prlimit", "util-linux"),
    ("promtool", "prometheus"),
    ("setpriv", "util-linux"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("sshd", "openssh-server"),
    ("systemd-analyze", "systemd"),
    ("systemd-socket-activate", "systemd"),
    ("unshare", "util-linux"),
];

/// Panics unless the test runs as root.
#[track_caller]
pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: it makes namespaces of its own"
    );
}

/// A port that was free a moment ago: other people's servers can't tell which one they got.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

/// Runs a program without input to its end, and gives what it wrote. When that takes longer than `limit` it is killed, which is a
/// panic.
#[track_caller]
pub fn run_within(limit: Duration, command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    output_within(limit, child, &format!("{command:?}"))
}

/// The same with a program that was started, whose output is piped.
#[track_caller]
pub(super) fn output_within(limit: Duration, mut child: Child, shown: &str) -> Output {
    let stdout = read_all(child.stdout.take().expect("piped"));
    let stderr = read_all(child.stderr.take().expect("piped"));
    let Some(status) = wait_child(&mut child, limit) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!(
            "{shown} still runs after {limit:?}; stderr: {}",
            String::from_utf8_lossy(&stderr.join().expect("reader"))
        );
    };
    Output {
        status,
        stdout: stdout.join().expect("reader"),
        stderr: stderr.join().expect("reader"),
    }
}

/// Waits for the end of a child.
pub(super) fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    wait_until(limit, || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    status
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs a program to its end, which must be a success, and gives what it wrote to stdout. It needs a time limit of its own.
#[track_caller]
pub fn success(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("start");
    assert!(
        output.status.success(),
        "{command:?}: {}, {} bytes of output: {}",
        output.status,
        output.stdout.len(),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// How long a server may take to end in order.
const GOODBYE: Duration = Duration::from_secs(2);

/// A server that runs until the end of the test; its output is printed when the test fails.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    killed: bool,
    /// For its files; its output is in `log`.
    directory: TempDir,
}

impl Daemon {
    /// Starts a program with arguments that may name files in a directory of its own, and waits until it listens.
    pub fn start(
        name: &str,
        listening: SocketAddr,
        arguments: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let arguments = arguments(directory.path());
        let log = File::create(directory.path().join("log")).expect("log file");
        let child = Command::new(program(name))
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("descriptor"))
            .stderr(log)
            // Its children are in the same group, and end with it.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        let daemon = Self {
            name: name.to_owned(),
            child,
            killed: false,
            directory,
        };
        let listens = || TcpStream::connect_timeout(&listening, SOON).is_ok();
        wait_until(SOON, || daemon.has_ended() || listens());
        assert!(!daemon.has_ended(), "{name} ended at once");
        assert!(listens(), "{name} does not listen on {listening}");
        daemon
    }

    /// Kills it and its children, without a chance to say goodbye.
    pub fn kill(&mut self) {
        // Once its leader has been waited for, the group's number may be somebody else's.
        if !std::mem::replace(&mut self.killed, true) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// Lets it end in order, so that it waits for its children: where nobody reaps orphans they would be left as zombies.
    fn end(&mut self) {
        if !self.killed {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            wait_until(GOODBYE, || self.has_ended());
        }
        self.kill();
    }

    /// Asked without taking its number from it.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let id = WaitId::Pid(Pid::from_child(&self.child));
        !matches!(waitid(id, options), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
            eprintln!("--- output of {}:", self.name);
            eprintln!("{}---", String::from_utf8_lossy(&log));
        }
    }
}
