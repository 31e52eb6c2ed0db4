//! Child processes that never outlive the bench, and what `/proc` says about them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};
use tempfile::TempDir;

use crate::roles;

/// The children's process groups, for those who end the bench from another thread.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Starting, and stopping to listen, take no relay longer than this.
const START: Duration = Duration::from_secs(10);

/// The unit of `/proc/PID/stat`: USER_HZ, which is 100 on every architecture that Rust's standard library runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The bench's folder for configuration and log files; the children's lives are watched over from here.
#[derive(Debug)]
pub(crate) struct Room {
    folder: TempDir,
}

impl Room {
    /// From now on SIGINT, SIGTERM and the end of `limit` end every child, remove the folder and then end the bench.
    pub(crate) fn new(limit: Duration) -> io::Result<Self> {
        let folder = TempDir::with_prefix("sockhop-bench-")?;
        let (mut interrupted, signal) = UnixStream::pair()?;
        for number in [Signal::INT, Signal::TERM] {
            signal_hook::low_level::pipe::register(number.as_raw(), signal.try_clone()?)?;
        }
        let path = folder.path().to_owned();
        interrupted.set_read_timeout(Some(limit))?;
        thread::spawn(move || {
            let _keep = signal;
            let why = match interrupted.read(&mut [0]) {
                Ok(_) => "interrupted",
                Err(_) => "took too long",
            };
            for group in GROUPS
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(..)
            {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = fs::remove_dir_all(path);
            eprintln!("bench: {why}");
            std::process::exit(1);
        });
        Ok(Self { folder })
    }

    /// Writes a configuration file.
    pub(crate) fn file(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a program; its messages go to a file that is quoted when it does not start.
    pub(crate) fn program(&self, program: &Path, arguments: &[&OsStr]) -> io::Result<Tree> {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let messages = self.folder.path().join(format!("{name}.log"));
        let log = File::create(&messages)?;
        let child = again("exec")?
            .arg(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Tree::new(child, messages))
    }

    /// Starts this executable in one of its roles, and returns the port that it listens on.
    pub(crate) fn role(&self, role: &str, arguments: &[&str]) -> io::Result<(Tree, u16)> {
        let mut child = again(role)?
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take();
        let tree = Tree::new(child, PathBuf::new());
        let mut line = String::new();
        BufReader::new(output.ok_or_else(|| io::Error::other("no pipe"))?).read_line(&mut line)?;
        let port = line
            .trim()
            .parse()
            .map_err(|_| io::Error::other(format!("the {role} did not start")))?;
        Ok((tree, port))
    }
}

/// This executable in another role. A group of its own, so that one signal ends whatever it forks.
fn again(role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(roles::FLAG)
        .arg(role)
        .stdin(Stdio::null())
        .process_group(0);
    Ok(command)
}

/// A child with everything it forked; killed on drop.
#[derive(Debug)]
pub(crate) struct Tree {
    child: Child,
    group: Pid,
    messages: PathBuf,
}

/// What a tree uses at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Kibibytes, shared pages counted once over all processes.
    pub(crate) pss: f64,
    /// Kibibytes, shared pages included.
    pub(crate) rss: f64,
    pub(crate) threads: f64,
    pub(crate) descriptors: f64,
}

impl Tree {
    fn new(child: Child, messages: PathBuf) -> Self {
        let group = Pid::from_child(&child);
        GROUPS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(group);
        Self {
            child,
            group,
            messages,
        }
    }

    /// Waits until this port of loopback is listened on, without connecting to it.
    pub(crate) fn wait_listening(&mut self, port: u16) -> io::Result<()> {
        let end = Instant::now() + START;
        while !is_listening(port)? {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!(
                    "it ended with {status}{}",
                    self.said()
                )));
            }
            if Instant::now() > end {
                return Err(io::Error::other(format!(
                    "it does not listen after {START:?}{}",
                    self.said()
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends a signal to all of it.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process_group(self.group, signal)?)
    }

    /// Processor seconds so far: of the living processes, and of those that they have waited for.
    pub(crate) fn cpu(&self) -> io::Result<f64> {
        let ticks: u64 = self.stats()?.iter().map(|stat| stat.ticks).sum();
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Memory, threads and descriptors now.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for stat in self.stats()? {
            let process = format!("/proc/{}", stat.id);
            let rollup = fs::read_to_string(format!("{process}/smaps_rollup"))?;
            usage.pss += field(&rollup, "Pss:");
            usage.rss += field(&rollup, "Rss:");
            usage.threads += stat.threads as f64;
            usage.descriptors += fs::read_dir(format!("{process}/fd"))?.count() as f64;
        }
        Ok(usage)
    }

    /// The root and its descendants.
    fn stats(&self) -> io::Result<Vec<Stat>> {
        let mut all = HashMap::<u32, Vec<Stat>>::new();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(id) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process may end while we look.
            let Some(stat) = Stat::read(id) else { continue };
            if id == self.child.id() {
                found.push(stat);
            } else {
                all.entry(stat.parent).or_default().push(stat);
            }
        }
        let mut next = 0;
        while let Some(stat) = found.get(next) {
            let children = all.remove(&stat.id).unwrap_or_default();
            found.extend(children);
            next += 1;
        }
        if found.is_empty() {
            return Err(io::Error::other("it has ended"));
        }
        Ok(found)
    }

    fn said(&self) -> String {
        let said = fs::read_to_string(&self.messages).unwrap_or_default();
        let last: Vec<_> = said.lines().rev().take(3).collect();
        last.iter()
            .rev()
            .fold(String::new(), |text, line| text + "\n    " + line)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
        GROUPS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|group| *group != self.group);
    }
}

/// The fields of `/proc/PID/stat` that we use; see proc(5).
#[derive(Debug)]
struct Stat {
    id: u32,
    parent: u32,
    ticks: u64,
    threads: u64,
}

impl Stat {
    fn read(id: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name in parentheses may hold spaces: count from its end, where field 3 starts.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            id,
            parent: u32::try_from(number(4)?).ok()?,
            ticks: (14..=17).filter_map(number).sum(),
            threads: number(20)?,
        })
    }
}

fn field(rollup: &str, name: &str) -> f64 {
    let value = rollup.lines().find_map(|line| line.strip_prefix(name));
    value
        .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or_default()
}

fn is_listening(port: u16) -> io::Result<bool> {
    let port = format!(":{port:04X}");
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has only the first.
        let Ok(sockets) = fs::read_to_string(table) else {
            continue;
        };
        // Field 2 is the own address, field 4 the state; 0A is LISTEN.
        let listens = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().take(4).collect();
            matches!(fields[..], [_, own, _, "0A"] if own.ends_with(&port))
        };
        if sockets.lines().any(listens) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Thousands of connections need more than the usual 1,024; children inherit it.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    Ok(())
}
