//! `exec:COMMAND`: the peers that a command prints.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as KillSignal, kill_process_group};

use super::lines::{List, MAX_BYTES, shorten};
use super::names::Names;
use super::signal::Wake;
use super::{Refresh, Refreshed, Signal, Source};
use crate::discovery::logins::PeerLogin;
use crate::resolver::Resolver;

/// A command run by `sh -c` every minute, without input, that prints one peer a line.
///
/// It has ten seconds; then it is killed, with everything it started that stayed in its process group. An exit status
/// other than 0, no time left, and no peers but a message on standard error are failures.
#[derive(Debug)]
pub struct ExecSource {
    name: String,
    command: String,
    default_port: u16,
    deadline: Duration,
    names: Names,
    /// Of the last list.
    logins: Vec<PeerLogin>,
}

impl ExecSource {
    /// The shell command `command`.
    #[must_use]
    pub fn new(command: impl Into<String>, default_port: u16, resolver: Resolver) -> Self {
        let command = command.into();
        Self {
            name: format!("exec:{command}"),
            command,
            default_port,
            deadline: DEADLINE,
            names: Names::new(resolver),
            logins: Vec::new(),
        }
    }

    fn run(&self, signal: &mut Signal) -> Result<Output, String> {
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("unset {OF_OURS_ALONE}; {}", self.command))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start sh: {error}"))?;
        let mut running = Running {
            child,
            deadline: Instant::now() + self.deadline,
            ended: None,
        };
        let output = running.read(signal)?;
        let status = running.wait(signal)?;
        if status.success() {
            if output.list.is_empty() && !output.last_words.is_empty() {
                return Err(output.with_last_words("printed nothing".to_owned()));
            }
            return Ok(output);
        }
        Err(
            output.with_last_words(match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(number)) => format!("killed by signal {number}"),
                (None, None) => "failed".to_owned(),
            }),
        )
    }
}

impl Source for ExecSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn refresh(&mut self, _: Refresh, signal: &mut Signal) -> Refreshed {
        let output = match self.run(signal) {
            Ok(output) => output,
            Err(error) => return Refreshed::Failed(error),
        };
        let name = &self.name;
        let list = List::parse(&output.list, self.default_port, |line, message| {
            log::warn!("{name}:{line}: {message}");
        });
        if let Some(more) = list.more_bad() {
            log::warn!("{name}: {more}");
        }
        let (found, error) = self.names.resolve(&list.names, signal);
        self.logins = self.names.logins(&list.logins);
        let mut peers = list.addresses;
        peers.extend(found);
        Refreshed::List { peers, error }
    }

    fn logins(&self) -> Vec<PeerLogin> {
        self.logins.clone()
    }

    fn pause(&self) -> Option<Duration> {
        Some(RUN_EVERY)
    }
}

/// How long a command may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long after its end it is run again.
const RUN_EVERY: Duration = Duration::from_secs(60);

/// How often we look whether a command that has closed its output has ended too; there is no descriptor for that.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// After it was killed, a process ends at once unless the kernel holds it.
const REAP_PATIENCE: Duration = Duration::from_millis(300);

/// Variables of the environment that a service manager means for this process and none that it starts.
const OF_OURS_ALONE: &str =
    "NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_FDS LISTEN_PID LISTEN_FDNAMES";

/// What is kept of standard error: enough for its last line.
const LAST_WORDS: usize = 4096;

struct Output {
    list: Vec<u8>,
    /// The end of standard error.
    last_words: Vec<u8>,
}

impl Output {
    fn with_last_words(&self, what: String) -> String {
        let text = String::from_utf8_lossy(&self.last_words);
        match text
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
        {
            Some(line) => format!("{what}: {:?}", shorten(line)),
            None => what,
        }
    }
}

/// A command that does not outlive this value, however we leave.
struct Running {
    child: Child,
    deadline: Instant,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Reads both outputs until standard output is closed, and what there is on standard error until the command ends.
    fn read(&mut self, signal: &mut Signal) -> Result<Output, String> {
        let mut output = Output {
            list: Vec::new(),
            last_words: Vec::new(),
        };
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let mut chunk = vec![0; 16 * 1024];
        while stdout.is_some() || stderr.is_some() {
            let descriptors: Vec<BorrowedFd<'_>> = stdout
                .iter()
                .map(AsFd::as_fd)
                .chain(stderr.iter().map(AsFd::as_fd))
                .collect();
            let limit = match stdout {
                Some(_) => self.deadline,
                // It may have ended while something else keeps its standard error open.
                None => self.deadline.min(Instant::now() + LOOK_EVERY),
            };
            match signal.wait_readable(&descriptors, limit) {
                Wake::Ready([first, second]) => {
                    let (list_ready, words_ready) = match stdout {
                        Some(_) => (first, second),
                        None => (false, first),
                    };
                    if list_ready {
                        read_some(&mut stdout, &mut chunk, &mut output.list)?;
                        if output.list.len() > MAX_BYTES {
                            return Err("printed more than 16 MiB".to_owned());
                        }
                    }
                    if words_ready {
                        let words = &mut output.last_words;
                        read_some(&mut stderr, &mut chunk, words)?;
                        words.drain(..words.len().saturating_sub(LAST_WORDS));
                    }
                }
                Wake::Stop => return Err("stopped".to_owned()),
                Wake::Deadline if Instant::now() >= self.deadline => {
                    return Err(output.with_last_words("took too long and was killed".to_owned()));
                }
                Wake::Deadline if self.has_ended()?.is_some() => break,
                Wake::Deadline => {}
            }
        }
        Ok(output)
    }

    /// Waits for the end of a command that has closed its output.
    fn wait(&mut self, signal: &mut Signal) -> Result<ExitStatus, String> {
        loop {
            if let Some(status) = self.has_ended()? {
                return Ok(status);
            }
            match signal.wait_readable(&[], Instant::now() + LOOK_EVERY) {
                Wake::Stop => return Err("stopped".to_owned()),
                _ if Instant::now() >= self.deadline => {
                    return Err("took too long and was killed".to_owned());
                }
                _ => {}
            }
        }
    }

    fn has_ended(&mut self) -> Result<Option<ExitStatus>, String> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .map_err(|error| format!("cannot wait for it: {error}"))?;
        }
        Ok(self.ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        // Not waited for yet, so the number can't belong to another group.
        let _ = kill_process_group(Pid::from_child(&self.child), KillSignal::KILL);
        let deadline = Instant::now() + REAP_PATIENCE;
        while matches!(self.has_ended(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Reads once from a pipe that is ready, and closes it at its end.
fn read_some(
    pipe: &mut Option<impl Read>,
    chunk: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let Some(open) = pipe else {
        return Ok(());
    };
    match open.read(chunk) {
        Ok(0) => *pipe = None,
        Ok(count) => out.extend(chunk.iter().take(count)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(format!("cannot read its output: {error}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::signal::{Handle, pair};
    use super::*;

    fn source(command: &str) -> (ExecSource, Signal, Handle) {
        let (handle, signal) = pair().unwrap();
        (
            ExecSource::new(command, 1080, Resolver::default()),
            signal,
            handle,
        )
    }

    fn refresh(command: &str) -> Refreshed {
        let (mut source, mut signal, _handle) = source(command);
        source.refresh(Refresh::Requested, &mut signal)
    }

    fn failed(command: &str) -> String {
        match refresh(command) {
            Refreshed::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }

    fn list(texts: &[&str]) -> Refreshed {
        Refreshed::List {
            peers: texts.iter().map(|text| text.parse().unwrap()).collect(),
            error: None,
        }
    }

    #[test]
    fn what_a_command_prints_is_the_list() {
        assert_eq!(
            refresh("echo 1.2.3.4; echo rubbish here; echo '[::1]:5 # x'; echo warning >&2"),
            list(&["1.2.3.4:1080", "[::1]:5"])
        );
        assert_eq!(refresh("true"), list(&[]));
        assert_eq!(refresh("cat"), list(&[]), "standard input is empty");
    }

    #[test]
    fn failures_are_told_in_its_last_words() {
        assert_eq!(
            failed("echo 1.2.3.4; echo one >&2; echo no such device >&2; exit 3"),
            "exit status 3: \"no such device\""
        );
        assert_eq!(failed("exit 1"), "exit status 1");
        assert_eq!(failed("kill -9 $$"), "killed by signal 9");
        assert_eq!(
            failed("echo nothing there >&2"),
            "printed nothing: \"nothing there\""
        );
        assert!(failed("surely-no-such-command").starts_with("exit status 127: "));
    }

    #[test]
    fn too_much_output_is_a_failure() {
        assert_eq!(failed("yes 1.2.3.4"), "printed more than 16 MiB");
        let words = failed("yes complaint | head -c 1000000 >&2; exit 1");
        assert_eq!(words, "exit status 1: \"complaint\"");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        // The child ignores what a terminal would send, and keeps the output open.
        let command = format!(
            "(trap '' TERM HUP INT; echo $$ > {}; sleep 100) & sleep 100",
            pid_file.display()
        );
        let (mut source, mut signal, _handle) = source(&command);
        source.deadline = Duration::from_millis(300);
        let start = Instant::now();
        let refreshed = source.refresh(Refresh::Requested, &mut signal);
        assert_eq!(
            refreshed,
            Refreshed::Failed("took too long and was killed".to_owned())
        );
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid: i32 = std::fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let group = Pid::from_raw(pid).unwrap();
        let gone = Instant::now() + Duration::from_secs(5);
        while rustix::process::test_kill_process_group(group).is_ok() && Instant::now() < gone {
            // Killed ones stay visible until init has taken note of them.
            let still = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            if still.is_err() || still.is_ok_and(|stat| stat.contains(") Z ")) {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        assert!(Instant::now() < gone);
    }

    #[test]
    fn a_child_in_the_background_does_not_hold_us_up_by_standard_error() {
        let start = Instant::now();
        assert_eq!(
            refresh("sleep 3 >/dev/null & echo 1.2.3.4"),
            list(&["1.2.3.4:1080"])
        );
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_stop_ends_it_at_once() {
        let (mut source, mut signal, handle) = source("sleep 100");
        let start = Instant::now();
        let stopper = thread::spawn(move || {
            handle.stop();
            handle
        });
        let refreshed = source.refresh(Refresh::Requested, &mut signal);
        assert_eq!(refreshed, Refreshed::Failed("stopped".to_owned()));
        assert!(signal.is_stopped());
        assert!(start.elapsed() < Duration::from_secs(5));
        stopper.join().unwrap();
    }
}
