//! The program under test, started as a user starts it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use rustix::process::Signal;

use super::tools::{output_within, program, wait_child};
use super::{SOON, wait_until};

/// The binary that cargo built for this test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_sockhop");

/// In the environment: another build of the program that is to be tested instead, with what runs it before it, such as
/// `qemu-mips-static target/cross/mips-unknown-linux-musl/release/sockhop`.
const INSTEAD: &str = "SOCKHOP_PROGRAM";

/// The program under test, as words of a command line.
fn under_test() -> Vec<String> {
    let instead = std::env::var(INSTEAD).unwrap_or_else(|_| PROGRAM.to_owned());
    instead.split_whitespace().map(str::to_owned).collect()
}

/// A shell's script that replaces `/run` with the directory of its first argument and becomes the program of the others. Under
/// `ip netns exec`, which has mounts of its own.
pub const BIND_RUN: &str = "mount --bind \"$0\" /run && exec \"$@\"";

/// A command line of the program, not yet started.
#[derive(Debug)]
pub struct Launch {
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    first: Option<String>,
    namespace: Option<String>,
    run_directory: Option<PathBuf>,
    input: Vec<u8>,
    passed: Vec<OwnedFd>,
    control: Option<Control>,
}

#[derive(Debug)]
struct Control {
    path: PathBuf,
    /// Removed with everything in it when the program has been killed.
    _directory: Option<TempDir>,
}

/// The running program; killed on drop. When the test fails, its log is printed.
#[derive(Debug)]
pub struct Sockhop {
    child: Child,
    control: Option<Control>,
    log: Lines,
    output: Lines,
}

/// An error answer of the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    /// JSON-RPC's or the program's own code.
    pub code: i64,
    /// The reason in words.
    pub message: String,
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl Launch {
    /// `sockhop` with exactly these arguments.
    pub fn new(arguments: &[&str]) -> Self {
        Self {
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: Vec::new(),
            first: None,
            namespace: None,
            run_directory: None,
            input: Vec::new(),
            passed: Vec::new(),
            control: None,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// A variable in the program's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().into()));
        self
    }

    /// Run with this RLIMIT_NOFILE, soft and hard.
    #[must_use]
    pub fn open_files(self, limit: u64) -> Self {
        self.first(format!("ulimit -n {limit}"))
    }

    /// A line of shell that is run first, in the process that becomes the program: limits, control groups; in a namespace, mounts.
    #[must_use]
    pub fn first(mut self, line: impl Into<String>) -> Self {
        self.first = Some(line.into());
        self
    }

    /// Run in this network namespace. The control socket is reached from everywhere: it is a file.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn inside(mut self, namespace: &super::Netns) -> Self {
        self.namespace = Some(namespace.name().to_owned());
        self
    }

    /// In a namespace: run with this directory as `/run`, which others don't see.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn run_directory(mut self, path: &Path) -> Self {
        self.run_directory = Some(path.to_owned());
        self
    }

    /// What the program reads from its standard input; then the end.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// One more descriptor that it is handed as systemd does it, the first as number 3; two at most. It has neither input nor
    /// output then.
    #[must_use]
    pub fn passing(mut self, descriptor: impl Into<OwnedFd>) -> Self {
        self.passed.push(descriptor.into());
        assert!(self.passed.len() <= 2, "no more than stdin and stdout");
        self
    }

    /// Starts it and leaves it running.
    pub fn start(mut self) -> Sockhop {
        let mut command = self.command();
        let mut passed = std::mem::take(&mut self.passed).into_iter();
        let mut stdio = || passed.next().map_or_else(Stdio::piped, Stdio::from);
        let mut child = command
            .stdin(stdio())
            .stdout(stdio())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program");
        // Its copies of what is handed over are closed with it.
        drop(command);
        if let (input, Some(mut stdin)) = (self.input, child.stdin.take()) {
            thread::spawn(move || stdin.write_all(&input));
        }
        let log = Lines::of(child.stderr.take().expect("piped"));
        let output = match child.stdout.take() {
            Some(stdout) => Lines::of(stdout),
            None => Lines::of(io::empty()),
        };
        Sockhop {
            child,
            control: self.control,
            log,
            output,
        }
    }

    /// Runs it to its end; a panic when that takes longer than `limit`.
    #[track_caller]
    pub fn run(self, limit: Duration) -> Output {
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program");
        let (input, mut stdin) = (self.input, child.stdin.take().expect("piped"));
        thread::spawn(move || stdin.write_all(&input));
        output_within(limit, child, &format!("sockhop {:?}", self.arguments))
    }

    fn command(&self) -> Command {
        // What stands before the program becomes the program, so that signals and /proc still mean it.
        let under_test = under_test();
        let passed = (!self.passed.is_empty()).then(|| {
            let count = self.passed.len();
            let moved = ["", "3<&0", "3<&0 4>&1"][count];
            format!("exec {moved} </dev/null >/dev/null; export LISTEN_PID=$$ LISTEN_FDS={count}")
        });
        let first = self.first.as_ref().or(passed.as_ref());
        let first = first.map(|line| format!("{line} && exec \"$0\" \"$@\""));
        let mut command = match (&self.namespace, &first) {
            (None, None) => {
                let mut alone = Command::new(&under_test[0]);
                alone.args(&under_test[1..]);
                alone
            }
            (None, Some(first)) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", first]).args(&under_test);
                shell
            }
            (Some(namespace), first) => {
                let mut ip = Command::new(program("ip"));
                ip.args(["netns", "exec", namespace]);
                if let Some(path) = &self.run_directory {
                    ip.args(["sh", "-c", BIND_RUN]).arg(path);
                }
                if let Some(first) = first {
                    ip.args(["sh", "-c", first]);
                }
                ip.args(&under_test);
                ip
            }
        };
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn has(&self, flag: &str) -> bool {
        let with_value = format!("{flag}=");
        self.arguments.iter().any(|argument| {
            argument == flag
                || argument
                    .to_str()
                    .is_some_and(|argument| argument.starts_with(&with_value))
        })
    }
}

impl Sockhop {
    /// `sockhop forward` with a control socket of its own, listening on loopback port 0 unless `--listen` is among the arguments.
    ///
    /// Add to it, then [`Launch::start`].
    pub fn forward(arguments: &[&str]) -> Launch {
        Self::daemon("forward", arguments)
    }

    /// The same with `sockhop serve`.
    pub fn serve(arguments: &[&str]) -> Launch {
        Self::daemon("serve", arguments)
    }

    fn daemon(command: &str, arguments: &[&str]) -> Launch {
        let mut launch = Launch::new(&[command]);
        launch
            .arguments
            .extend(arguments.iter().map(OsString::from));
        if !launch.has("--listen") {
            launch = launch.arg("--listen").arg("127.0.0.1:0");
        }
        if !launch.has("--control") {
            let directory = TempDir::new().expect("temporary directory");
            let path = directory.path().join("ctl.sock");
            launch = launch.arg("--control").arg(&path);
            launch.control = Some(Control {
                path,
                _directory: Some(directory),
            });
        } else if let Some(at) = launch
            .arguments
            .iter()
            .position(|argument| argument == "--control")
        {
            launch.control = launch.arguments.get(at + 1).map(|path| Control {
                path: path.into(),
                _directory: None,
            });
        }
        launch
    }

    /// Any one-shot command, to its end, which must come within half a minute.
    #[track_caller]
    pub fn run(arguments: &[&str]) -> Output {
        Launch::new(arguments).run(Duration::from_secs(30))
    }

    /// A one-shot command about this forwarder: `["status", "--json"]` runs with its control socket's path.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Output {
        let path = self.control_path().to_owned();
        Launch::new(arguments)
            .arg("--control")
            .arg(path)
            .run(Duration::from_secs(30))
    }

    /// The control socket's path.
    pub fn control_path(&self) -> &Path {
        &self
            .control
            .as_ref()
            .expect("started with a control socket")
            .path
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    // The log.

    /// Waits for a line on stderr that contains `text` and returns it; lines already written count.
    #[track_caller]
    pub fn wait_log(&self, text: &str, limit: Duration) -> String {
        match self.log.wait(text, limit) {
            Some(line) => line,
            None => panic!("no {text:?} on stderr within {limit:?}"),
        }
    }

    /// Every line of stderr so far.
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    /// Waits for a line on stdout that contains `text` and returns it.
    #[track_caller]
    pub fn wait_output(&self, text: &str, limit: Duration) -> String {
        match self.output.wait(text, limit) {
            Some(line) => line,
            None => panic!(
                "no {text:?} on stdout within {limit:?}; so far: {:?}",
                self.output.all()
            ),
        }
    }

    /// Every line of stdout so far.
    pub fn output(&self) -> Vec<String> {
        self.output.all()
    }

    // The control socket, spoken by hand.

    /// The `status` answer.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.control("status", Value::Null).expect("status")
    }

    /// The `proxies` answer: one object a known peer.
    #[track_caller]
    pub fn proxies(&self) -> Vec<Value> {
        match self.control("proxies", Value::Null).expect("proxies") {
            Value::Array(proxies) => proxies,
            other => panic!("proxies answered {other}"),
        }
    }

    /// The entry of one peer in the `proxies` answer.
    pub fn proxy(&self, address: SocketAddr) -> Option<Value> {
        let address = address.to_string();
        self.proxies()
            .into_iter()
            .find(|proxy| proxy["address"] == address.as_str())
    }

    /// One request; waits for the socket if the program has just been started. `Null` parameters are left out.
    #[track_caller]
    pub fn control(&self, method: &str, parameters: Value) -> Result<Value, RpcError> {
        let stream = self.control_stream();
        ask(stream, method, parameters)
            .unwrap_or_else(|error| panic!("control socket: {method}: {error}"))
    }

    /// A connection to the control socket, for requests that no client would send.
    #[track_caller]
    pub fn control_stream(&self) -> UnixStream {
        let path = self.control_path();
        let mut stream = Err(io::ErrorKind::NotFound.into());
        wait_until(SOON, || {
            stream = UnixStream::connect(path);
            stream.is_ok()
        });
        let stream =
            stream.unwrap_or_else(|error| panic!("control socket {}: {error}", path.display()));
        stream
            .set_read_timeout(Some(SOON))
            .expect("read time limit");
        stream
            .set_write_timeout(Some(SOON))
            .expect("write time limit");
        stream
    }

    /// Asks for the status until `condition` holds, and returns that status.
    #[track_caller]
    pub fn wait_status(&self, condition: impl Fn(&Value) -> bool, limit: Duration) -> Value {
        self.wait_answer("status", condition, limit)
    }

    /// Asks for the peers until `condition` holds.
    pub fn wait_proxies(
        &self,
        condition: impl Fn(&[Value]) -> bool,
        limit: Duration,
    ) -> Vec<Value> {
        let holds = |answer: &Value| answer.as_array().is_some_and(|proxies| condition(proxies));
        match self.wait_answer("proxies", holds, limit) {
            Value::Array(proxies) => proxies,
            other => panic!("proxies answered {other}"),
        }
    }

    /// Waits until the probes have given the peer this status: `valid`, `not-a-proxy` …
    #[track_caller]
    pub fn wait_peer(&self, address: SocketAddr, status: &str, limit: Duration) -> Value {
        let address = address.to_string();
        let is_it =
            |proxy: &Value| proxy["address"] == address.as_str() && proxy["status"] == status;
        let proxies = self.wait_proxies(|proxies| proxies.iter().any(is_it), limit);
        proxies.into_iter().find(is_it).expect("just seen")
    }

    /// Waits until the forwarder listens, and returns where (the first address, with the real port).
    #[track_caller]
    pub fn wait_listening(&self, limit: Duration) -> SocketAddr {
        let status = self.wait_status(|status| status["listening"][0].is_string(), limit);
        let address = status["listening"][0].as_str().expect("just seen");
        address
            .parse()
            .unwrap_or_else(|_| panic!("listening[0] is {address:?}"))
    }

    #[track_caller]
    fn wait_answer(
        &self,
        method: &str,
        condition: impl Fn(&Value) -> bool,
        limit: Duration,
    ) -> Value {
        let end = Instant::now() + limit;
        let path = self.control_path();
        let mut last = "no answer yet".to_owned();
        while Instant::now() < end {
            // The socket may not be there yet, or the program may be gone: both are told at the end.
            match UnixStream::connect(path).and_then(|stream| {
                stream.set_read_timeout(Some(SOON))?;
                ask(stream, method, Value::Null)
            }) {
                Ok(Ok(answer)) if condition(&answer) => return answer,
                Ok(Ok(answer)) => last = answer.to_string(),
                Ok(Err(error)) => last = error.to_string(),
                Err(error) => last = error.to_string(),
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{method}: not as awaited within {limit:?}; last: {last}");
    }

    // The process.

    /// Open descriptors.
    pub fn fds(&self) -> usize {
        self.entries("fd")
    }

    /// Threads.
    pub fn threads(&self) -> usize {
        self.entries("task")
    }

    /// What its threads have in a field of proc_pid_status(5): each value once.
    #[track_caller]
    pub fn of_threads(&self, field: &str) -> Vec<String> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).expect("the process");
        let of_one = |thread: io::Result<fs::DirEntry>| {
            // It may have ended meanwhile.
            let text = fs::read_to_string(thread.expect("a thread").path().join("status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            let line = line.expect(field).trim_start_matches(':');
            Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let values: BTreeSet<String> = threads.filter_map(of_one).collect();
        values.into_iter().collect()
    }

    /// Resident memory in bytes, shared pages included.
    pub fn rss(&self) -> u64 {
        self.memory("Rss:")
    }

    /// Resident memory in bytes that is this process's alone.
    pub fn private_memory(&self) -> u64 {
        self.memory("Private_Clean:") + self.memory("Private_Dirty:")
    }

    /// Address space that the program itself and its libraries take, in bytes.
    pub fn program_size(&self) -> u64 {
        let status = self.proc("status");
        let sizes = ["VmExe:", "VmLib:", "VmStk:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            number.expect("a number of kB") * 1024
        });
        sizes.iter().sum()
    }

    /// Processor time so far, user and system, in clock ticks (hundredths of a second on Linux).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = self.proc("stat");
        // The name in parentheses may hold spaces: count from its end. Fields 14 and 15 of proc(5).
        let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
        rest.split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("a number"))
            .sum()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .expect("signal");
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        match wait_child(&mut self.child, limit) {
            Some(status) => status,
            None => panic!("still runs after {limit:?}"),
        }
    }

    fn entries(&self, folder: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{folder}", self.child.id()))
            .expect("the process")
            .count()
    }

    fn memory(&self, field: &str) -> u64 {
        let rollup = self.proc("smaps_rollup");
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("field of smaps_rollup");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number")
            * 1024
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("the process")
    }
}

impl Drop for Sockhop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- stderr of sockhop (process {}):", self.child.id());
            for line in self.log.all() {
                eprintln!("{line}");
            }
            eprintln!("---");
        }
    }
}

/// A server whose clients may go to 127.0.0.0/8, with what each does in its log, and where it listens.
#[track_caller]
pub fn serve(arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "-v"])
        .args(arguments)
        .start();
    let address = server.wait_listening(SOON);
    (server, address)
}

/// One JSON-RPC request and its answer; the outer error is the socket's.
fn ask(stream: UnixStream, method: &str, parameters: Value) -> io::Result<Result<Value, RpcError>> {
    let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
    if !parameters.is_null() {
        request["params"] = parameters;
    }
    let mut line = String::new();
    (&stream).write_all(format!("{request}\n").as_bytes())?;
    BufReader::new(stream).read_line(&mut line)?;
    let mut answer: Value = serde_json::from_str(&line)
        .map_err(|error| io::Error::other(format!("answer {line:?}: {error}")))?;
    if answer["jsonrpc"] != "2.0" || answer["id"] != 1 {
        return Err(io::Error::other(format!(
            "answer {line:?}: not the answer to this request"
        )));
    }
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        return Ok(Err(RpcError {
            code: error["code"].as_i64().unwrap_or_default(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
        }));
    }
    Ok(Ok(answer["result"].take()))
}

/// The lines of a pipe, read by a thread so that the program never blocks on it.
#[derive(Debug)]
struct Lines {
    shared: Arc<(Mutex<Gathered>, Condvar)>,
}

#[derive(Debug, Default)]
struct Gathered {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Gathered::default()), Condvar::new()));
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let (state, changed) = &*shared;
                for line in BufReader::new(pipe).split(b'\n') {
                    let Ok(line) = line else { break };
                    state
                        .lock()
                        .expect("not poisoned")
                        .lines
                        .push(String::from_utf8_lossy(&line).into_owned());
                    changed.notify_all();
                }
                state.lock().expect("not poisoned").ended = true;
                changed.notify_all();
            }
        });
        Self { shared }
    }

    fn all(&self) -> Vec<String> {
        self.shared.0.lock().expect("not poisoned").lines.clone()
    }

    fn wait(&self, text: &str, limit: Duration) -> Option<String> {
        let (state, changed) = &*self.shared;
        let end = Instant::now() + limit;
        let mut looked_at = 0;
        let mut state = state.lock().expect("not poisoned");
        loop {
            if let Some(line) = state.lines[looked_at..]
                .iter()
                .find(|line| line.contains(text))
            {
                return Some(line.clone());
            }
            looked_at = state.lines.len();
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = changed.wait_timeout(state, left).expect("not poisoned").0;
        }
    }
}
