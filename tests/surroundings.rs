//! Bad surroundings: closed streams, full and read-only disks, no /proc, no /etc, no IPv6, a clock that is years off. Each is a clear
//! message or a clean wait.

#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use common::{
    Netns, Peer, SOON, Signal, Sockhop, Target, exchange, need_root, program, socks5_connect,
    wait_until,
};
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sockhop");

/// The program, started by a shell's script that ends in `exec "$@"`. Its control socket and its log are in a folder.
struct Run {
    child: Child,
    folder: TempDir,
}

impl Run {
    /// Below `outer`, which becomes the shell.
    fn start(outer: &[&str], script: &str, arguments: &[&str]) -> Self {
        Self::with_stderr(outer, script, arguments, |folder| {
            File::create(folder.join("log")).unwrap().into()
        })
    }

    fn with_stderr(
        outer: &[&str],
        script: &str,
        arguments: &[&str],
        stderr: impl FnOnce(&Path) -> Stdio,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let mut words = outer.iter().copied().chain(["sh", "-c", script, "sh"]);
        let child = Command::new(program(words.next().unwrap()))
            .args(words)
            .arg(PROGRAM)
            .args(arguments)
            .env("FOLDER", folder.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr(folder.path()))
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    #[track_caller]
    fn wait_log(&self, text: &str) {
        let found = wait_until(SOON, || self.log().contains(text));
        assert!(found, "no {text:?} in {}", self.log());
    }

    /// Waits until it answers on the control socket `control` of its folder.
    #[track_caller]
    fn wait_status(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let control = self.folder.path().join("control");
        let mut status = Value::Null;
        let holds = wait_until(SOON, || {
            let Ok(mut stream) = UnixStream::connect(&control) else {
                return false;
            };
            stream.set_read_timeout(Some(SOON)).unwrap();
            let asked = stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n");
            let mut answer = String::new();
            let answered = io::BufRead::read_line(&mut io::BufReader::new(stream), &mut answer);
            if asked.is_err() || answered.is_err() {
                return false;
            }
            let mut answer: Value = serde_json::from_str(&answer).unwrap_or_default();
            status = answer["result"].take();
            condition(&status)
        });
        assert!(holds, "{status}; {}", self.log());
        status
    }

    #[track_caller]
    fn wait_listening(&self) -> SocketAddr {
        let status = self.wait_status(|status| status["listening"][0].is_string());
        status["listening"][0].as_str().unwrap().parse().unwrap()
    }

    #[track_caller]
    fn wait_exit(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until(SOON, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status
            .unwrap_or_else(|| panic!("still runs; {}", self.log()))
            .code()
    }

    #[track_caller]
    fn stop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.wait_exit(), Some(0), "{}", self.log());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const EXEC: &str = "exec \"$@\"";

/// Mounts of its own, over which a script puts something.
const MOUNTS: [&str; 4] = ["unshare", "--mount", "--propagation", "private"];

/// Options of a forwarder whose control socket is where [`Run`] looks for it; the shell fills it in.
fn forward<'a>(remote: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["forward", "--remote", remote, "--listen", "127.0.0.1:0"];
    arguments.extend(more);
    arguments
}

/// Has the shell add the control socket.
fn with_control(script: &str) -> String {
    script.replace("\"$@\"", "\"$@\" --control \"$FOLDER/control\"")
}

/// Whether a client's bytes come back through the forwarder.
#[track_caller]
fn assert_forwards(address: SocketAddr) {
    let echo = Target::echo();
    let stream = socks5_connect(address, echo.address()).unwrap();
    // More than a buffer: splice(2) and what it needs are used too.
    let bytes = vec![7; 300_000];
    assert_eq!(exchange(&stream, &bytes).unwrap(), bytes);
}

#[test]
fn closed_standard_streams_are_no_reason_not_to_work() {
    let peer = Peer::valid(Duration::ZERO);
    let remote = peer.address().to_string();
    for closed in ["<&- >&- 2>&-", "<&-", "2>&-"] {
        let script = with_control(&format!("exec \"$@\" {closed}"));
        let mut run = Run::start(&["env"], &script, &forward(&remote, &["-v"]));
        assert_forwards(run.wait_listening());
        run.stop();
    }
}

#[test]
fn a_log_that_nobody_takes_is_no_reason_to_end() {
    let peer = Peer::valid(Duration::ZERO);
    let remote = peer.address().to_string();
    let arguments = forward(&remote, &["-vv"]);
    let full = |_: &Path| {
        File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into()
    };
    let gone = |_: &Path| io::pipe().unwrap().1.into();
    let stderrs: [fn(&Path) -> Stdio; 2] = [full, gone];
    for stderr in stderrs {
        let mut run = Run::with_stderr(&["env"], &with_control(EXEC), &arguments, stderr);
        assert_forwards(run.wait_listening());
        kill_process(Pid::from_child(&run.child), Signal::USR1).unwrap();
        assert_forwards(run.wait_listening());
        run.stop();
    }
}

#[test]
fn without_a_place_for_the_control_socket_it_goes_on_unless_it_needs_one() {
    let peer = Peer::valid(Duration::ZERO);
    let remote = peer.address().to_string();
    let long = "/tmp/".to_owned() + &"x".repeat(200);
    for (directory, named) in [
        ("/nowhere/run", "No such file or directory"),
        ("/dev/null", "Not a directory"),
        // Nobody makes files there, not even root.
        ("/proc/self", "control socket /proc/self/sockhop.sock: "),
        // Longer than the path of a Unix socket can be.
        (&long, "control socket /tmp/xxx"),
    ] {
        let script = format!("export XDG_RUNTIME_DIR={directory}; {EXEC}");
        let mut run = Run::start(&["env"], &script, &forward(&remote, &[]));
        run.wait_log("going on without one, choose another path with --control");
        run.wait_log(named);
        run.wait_log("remote is ");
        run.stop();
        let manual = ["forward", "--manual", "--listen", "127.0.0.1:0"];
        let no_probing = [&manual[..1], &["--peer", "127.0.0.1", "--no-probing"]].concat();
        for arguments in [&manual[..], &no_probing] {
            let mut run = Run::start(&["env"], &script, arguments);
            assert_eq!(run.wait_exit(), Some(1), "{}", run.log());
            run.wait_log("sockhop: control socket ");
            run.wait_log("choose another path with --control PATH");
        }
    }
}

#[test]
fn a_program_that_hangs_behind_its_socket_is_still_there() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("control");
    let hung = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let address = SockAddr::unix(&path).unwrap();
    hung.bind(&address).unwrap();
    hung.listen(0).unwrap();
    let mut callers = Vec::new();
    loop {
        let caller = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        caller.set_nonblocking(true).unwrap();
        if caller.connect(&address).is_err() {
            break;
        }
        callers.push(caller);
    }
    let path = path.to_str().unwrap();
    let listen = format!("unix:{path}");
    for (arguments, says) in [
        (["forward", "--manual", "--control", path], ": in use"),
        (
            ["serve", "--control=none", "--listen", &listen],
            "Address already in use",
        ),
    ] {
        let answer = Sockhop::run(&arguments);
        assert_eq!(answer.status.code(), Some(1));
        let text = String::from_utf8(answer.stderr).unwrap();
        assert!(text.contains(says), "{text}");
        assert!(fs::exists(path).unwrap());
    }
}

/// Before the time is set a router believes that it is 1970; with a broken clock it may be any year.
#[test]
fn a_state_file_of_any_time_is_used() {
    let peer = Peer::valid(Duration::ZERO);
    let address = peer.address().to_string();
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    let start = || {
        Sockhop::forward(&["--peer", &address])
            .arg("--state")
            .arg(&state)
            .start()
    };
    let mut first = start();
    first.wait_peer(peer.address(), "valid", SOON);
    first.signal(Signal::TERM);
    first.wait_exit(SOON);
    let year = Duration::from_secs(365 * 24 * 3600);
    for modified in [
        SystemTime::UNIX_EPOCH,
        SystemTime::now() - 20 * year,
        SystemTime::now() + 10 * year,
    ] {
        let file = File::options().write(true).open(&state).unwrap();
        file.set_modified(modified).unwrap();
        let sockhop = start();
        sockhop.wait_log("1 addresses", SOON);
        sockhop.wait_log("the last good one before the start", SOON);
        assert_forwards(sockhop.wait_listening(SOON));
    }
}

#[test]
#[ignore = "needs root for mounts of its own"]
fn a_read_only_file_system_is_told_of_and_costs_no_client() {
    need_root();
    let peer = Peer::valid(Duration::ZERO);
    let remote = peer.address().to_string();
    let script = "mount -t tmpfs none /run && mount -o remount,ro /run && exec \"$@\"";
    let arguments = forward(&remote, &["--state", "/run/state"]);
    let mut run = Run::start(&MOUNTS, script, &arguments);
    run.wait_log("control socket /run/sockhop.sock: Read-only file system");
    run.wait_log("state file /run/state: it could not be written now: Read-only file system");
    run.wait_log("remote is ");
    run.stop();
    let mut run = Run::start(&MOUNTS, &with_control(script), &arguments);
    assert_forwards(run.wait_listening());
    run.stop();
}

#[test]
#[ignore = "needs root for mounts of its own"]
fn a_full_disk_keeps_the_old_state_and_costs_no_client() {
    need_root();
    let (old, new) = (Peer::valid(Duration::ZERO), Peer::valid(Duration::ZERO));
    let saved = TempDir::new().unwrap();
    let state = saved.path().join("state");
    let mut before = Sockhop::forward(&["--peer", &old.address().to_string()])
        .arg("--state")
        .arg(&state)
        .start();
    before.wait_peer(old.address(), "valid", SOON);
    before.signal(Signal::TERM);
    before.wait_exit(SOON);
    let text = fs::read_to_string(&state).unwrap();

    // Not replaced by exec: what is left on the disk is looked at before it goes.
    let script = format!(
        "mount -t tmpfs -o size=8k none /mnt && cp {0} /mnt/state && \
         (dd if=/dev/zero of=/mnt/rest bs=1k count=64 2>/dev/null; exec \"$@\"); \
         echo ended $? >\"$FOLDER/end\"; cp /mnt/state {0}.after; ls /mnt >{0}.ls",
        state.display()
    );
    let address = new.address().to_string();
    let mut run = Run::start(
        &MOUNTS,
        &with_control(&script),
        &[
            "forward",
            "--listen",
            "127.0.0.1:0",
            "--peer",
            &address,
            "--state",
            "/mnt/state",
        ],
    );
    run.wait_status(|status| status["candidates"]["valid"] == 2);
    assert_forwards(run.wait_listening());
    // The shell waits for the program, which has the control socket.
    let control = UnixStream::connect(run.folder.path().join("control")).unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&control).unwrap();
    kill_process(peer.pid, Signal::TERM).unwrap();
    assert_eq!(run.wait_exit(), Some(0), "{}", run.log());
    run.wait_log("cannot write state file /mnt/state: No space left on device");
    let end = fs::read_to_string(run.folder.path().join("end")).unwrap();
    assert_eq!(end, "ended 0\n");
    let after = fs::read_to_string(state.with_extension("after")).unwrap();
    assert_eq!(after, text, "without {address}");
    let names = fs::read_to_string(state.with_extension("ls")).unwrap();
    assert_eq!(names, "rest\nstate\n");
}

#[test]
#[ignore = "needs root for mounts of its own"]
fn a_full_disk_under_the_control_socket_is_told_of() {
    need_root();
    let peer = Peer::valid(Duration::ZERO);
    let remote = peer.address().to_string();
    let script = "mount -t tmpfs -o nr_inodes=1 none /run && exec \"$@\"";
    let mut run = Run::start(&MOUNTS, script, &forward(&remote, &[]));
    run.wait_log("control socket /run/sockhop.sock: No space left on device");
    run.wait_log("remote is ");
    run.stop();
    // One that was asked for is meant.
    let arguments = forward(&remote, &["--control", "/run/control"]);
    let mut run = Run::start(&MOUNTS, script, &arguments);
    assert_eq!(run.wait_exit(), Some(1));
    run.wait_log("sockhop: control socket /run/control: No space left on device");
    run.wait_log("hint: choose another path");
}

#[test]
#[ignore = "needs root for mounts of its own"]
fn without_proc_everything_works_but_the_kernels_routes() {
    need_root();
    let peer = Peer::valid(Duration::ZERO);
    let named = peer.address().to_string();
    let script = with_control("mount -t tmpfs none /proc && exec \"$@\"");
    let command = format!("exec:echo {named}");
    let mut run = Run::start(
        &MOUNTS,
        &script,
        &[
            "forward",
            "--listen",
            "127.0.0.1:0",
            "--peers",
            "routes",
            "--peers",
            &command,
        ],
    );
    run.wait_log("routes: there is no /proc");
    assert_forwards(run.wait_listening());
    run.stop();
    let serve = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--allow-dest",
        "127.0.0.0/8",
    ];
    let mut run = Run::start(&MOUNTS, &script, &serve);
    assert_forwards(run.wait_listening());
    run.stop();
}

#[test]
#[ignore = "needs root for mounts of its own"]
fn without_etc_names_are_not_found_and_addresses_work() {
    need_root();
    let peer = Peer::valid(Duration::ZERO);
    let address = peer.address().to_string();
    let script = with_control("mount -t tmpfs none /etc && exec \"$@\"");
    let arguments = forward(&address, &["--remote", "proxy.example"]);
    let mut run = Run::start(&MOUNTS, &script, &arguments);
    assert_forwards(run.wait_listening());
    run.wait_log("warn: remote proxy.example:1080: ");
    assert_forwards(run.wait_listening());
    run.stop();
}

#[test]
#[ignore = "needs strace"]
fn a_system_without_ipv6_is_served_on_ipv4() {
    // The first socket of the program is its listener: it gets the answer of a kernel without IPv6.
    let strace = |listen: &'static str| {
        let outer = [
            "strace",
            "-D",
            "-f",
            "-o",
            "/dev/null",
            "-e",
            "trace=socket",
            "-e",
        ];
        let fault = "inject=socket:error=EAFNOSUPPORT:when=1";
        let outer: Vec<&str> = outer.into_iter().chain([fault]).collect();
        // The shell makes none. With -D it is the child, and is not left behind when that is killed.
        Run::start(
            &outer,
            EXEC,
            &[
                "serve",
                "--allow",
                "127.0.0.0/8",
                "--control",
                "none",
                "--listen",
                listen,
            ],
        )
    };
    let run = strace("[::]:0");
    run.wait_log("this system has no IPv6, listening on IPv4 alone");
    run.wait_log("info: listening on 0.0.0.0:");
    let log = run.log();
    let port = log.split_once("listening on 0.0.0.0:").unwrap().1;
    let port: u16 = port.split_whitespace().next().unwrap().parse().unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut run = strace("[::1]:0");
    assert_eq!(run.wait_exit(), Some(1));
    run.wait_log("cannot listen on [::1]:0: Address family not supported by protocol");
    run.wait_log("hint: this system has no IPv6");
}

#[test]
#[ignore = "needs root for network namespaces"]
fn where_ipv6_is_turned_off_every_address_is_one_of_ipv4() {
    let home = Netns::new();
    home.set("ipv6/conf/all/disable_ipv6", "1");
    let sockhop = Sockhop::serve(&["--listen", "[::]:1080"])
        .inside(&home)
        .start();
    sockhop.wait_log("listening on [::]:1080", SOON);
    let local = SocketAddr::from(([127, 0, 0, 1], 1080));
    home.inside(|| TcpStream::connect(local).map(drop)).unwrap();
    let mut sockhop = Sockhop::serve(&["--listen", "[::1]:1080"])
        .inside(&home)
        .start();
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(1));
    sockhop.wait_log(
        "cannot listen on [::1]:1080: Cannot assign requested address",
        SOON,
    );
}
