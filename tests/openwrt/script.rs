//! The init script under a stand-in for procd, and what it asked for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::{SOON, run_within};

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/openwrt/files/sockhop.init"
);
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openwrt/rc.common");

/// The script, with a configuration of its own.
pub(crate) struct Script {
    directory: TempDir,
}

/// What one run of the script asked for.
#[derive(Debug)]
pub(crate) struct Started {
    calls: Vec<Vec<String>>,
}

impl Script {
    /// There is no configuration yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let passwd = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nsockhop:x:2:2::/:/bin/false\n";
        fs::write(directory.path().join("passwd"), passwd).expect("users");
        Self { directory }
    }

    /// What `/etc/config/sockhop` says.
    pub(crate) fn config(self, text: &str) -> Self {
        fs::create_dir_all(self.directory.path().join("config")).expect("a folder");
        fs::write(self.directory.path().join("config/sockhop"), text).expect("a file");
        self
    }

    /// As at boot.
    pub(crate) fn start(&self) -> Started {
        self.run(&["start"])
    }

    /// Runs it in each shell that is here: all must ask for the same.
    pub(crate) fn run(&self, arguments: &[&str]) -> Started {
        let mut runs = shells()
            .into_iter()
            .map(|shell| (self.run_in(&shell, arguments), shell));
        let (first, name) = runs.next().expect("a shell");
        for (other, shell) in runs {
            assert_eq!(first, other, "{name:?} and {shell:?}");
        }
        Started { calls: first }
    }

    fn run_in(&self, shell: &[&str], arguments: &[&str]) -> Vec<Vec<String>> {
        let record = self.directory.path().join("record");
        let _ = fs::remove_file(&record);
        let mut command = Command::new(shell[0]);
        command
            .args(&shell[1..])
            .args([STAND_IN, SCRIPT])
            .args(arguments)
            .env("RECORD", &record)
            .env("PASSWD", self.directory.path().join("passwd"))
            .env("UCI_CONFIG_DIR", self.directory.path().join("config"));
        let output = run_within(SOON, &mut command);
        assert!(
            output.stderr.is_empty() && output.stdout.is_empty(),
            "{shell:?}: {output:?}"
        );
        let record = fs::read_to_string(&record).expect("a record");
        let mut words = record.split_terminator('\0');
        let mut calls = Vec::new();
        while let Some(count) = words.next() {
            let count: usize = count.parse().expect("a number");
            calls.push(words.by_ref().take(count).map(str::to_owned).collect());
        }
        calls
    }

    /// The options that the script knows for a command: the list that it has each in, and its name.
    pub(crate) fn options(command: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(SCRIPT).expect("the script");
        let prefix = format!("{}_", command.to_uppercase());
        let mut options = Vec::new();
        let lines = text.replace("\n\t", " ");
        for line in lines.lines().filter(|line| line.starts_with(&prefix)) {
            let (list, names) = line[prefix.len()..].split_once('=').expect("a value");
            for name in names.trim_matches('"').split_whitespace() {
                options.push((list.to_owned(), name.to_owned()));
            }
        }
        options
    }
}

impl Started {
    /// The instances, in their order.
    pub(crate) fn instances(&self) -> Vec<&str> {
        self.calls
            .iter()
            .filter(|call| call[0] == "procd_open_instance")
            .map(|call| call[1].as_str())
            .collect()
    }

    /// What procd would run for an instance.
    pub(crate) fn command(&self, instance: &str) -> Vec<&str> {
        self.param(instance, "command")
    }

    /// The same without program, command and the control socket that it has by default.
    pub(crate) fn flags(&self, instance: &str) -> Vec<&str> {
        let control = format!("--control=/var/run/sockhop/{instance}/control.sock");
        let command = self.command(instance);
        assert_eq!(command[0], "/usr/bin/sockhop");
        command[2..]
            .iter()
            .copied()
            .filter(|flag| *flag != control)
            .collect()
    }

    /// The words of one of the instance's parameters.
    pub(crate) fn param(&self, instance: &str, name: &str) -> Vec<&str> {
        let mut words = Vec::new();
        let calls = self
            .calls
            .iter()
            .skip_while(|call| call[..] != ["procd_open_instance", instance])
            .take_while(|call| call[0] != "procd_close_instance");
        for call in calls.filter(|call| call.get(1).is_some_and(|word| word == name)) {
            match call[0].as_str() {
                "procd_set_param" => words = call[2..].iter().map(String::as_str).collect(),
                "procd_append_param" => words.extend(call[2..].iter().map(String::as_str)),
                _ => {}
            }
        }
        words
    }

    /// Where the call is among all of them.
    pub(crate) fn position(&self, call: &[&str]) -> Option<usize> {
        self.calls.iter().position(|known| known[..] == *call)
    }

    pub(crate) fn called(&self, call: &[&str]) -> bool {
        self.position(call).is_some()
    }

    /// What went to the system's log.
    pub(crate) fn complaints(&self) -> Vec<&str> {
        self.calls
            .iter()
            .filter(|call| call[0] == "logger")
            .filter_map(|call| call.last())
            .map(String::as_str)
            .collect()
    }
}

/// BusyBox has the router's shell; the others are stricter about what a script may say.
fn shells() -> Vec<Vec<&'static str>> {
    let all: [&[&str]; 3] = [&["busybox", "ash"], &["dash"], &["bash", "--posix"]];
    let mut shells: Vec<_> = all
        .iter()
        .filter(|shell| is_here(shell[0]))
        .map(|shell| shell.to_vec())
        .collect();
    if shells.is_empty() {
        shells.push(vec!["sh"]);
    }
    shells
}

/// Whether a program is in the path.
pub(crate) fn is_here(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .any(|file: PathBuf| Path::is_file(&file))
}
