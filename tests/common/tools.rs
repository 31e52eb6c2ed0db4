//! Other people's programs: found, started, and ended with all of their children.

use std::env;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};
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
const PACKAGES: [(&str, &str); 6] = [
    ("danted", "dante-server"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
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

/// A server that runs until the end of the test; its output is printed when the test fails.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
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
        let mut daemon = Self {
            name: name.to_owned(),
            child,
            directory,
        };
        let is_up = wait_until(SOON, || {
            let ended = daemon.child.try_wait().expect("wait").is_some();
            ended || TcpStream::connect_timeout(&listening, SOON).is_ok()
        });
        let ended = daemon.child.try_wait().expect("wait");
        assert!(
            is_up && ended.is_none(),
            "{name} does not listen on {listening}: {ended:?}"
        );
        daemon
    }

    /// Kills it and its children.
    pub fn kill(&mut self) {
        // The group is there as long as its leader has not been waited for.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
            eprintln!("--- output of {}:", self.name);
            eprintln!("{}---", String::from_utf8_lossy(&log));
        }
    }
}
