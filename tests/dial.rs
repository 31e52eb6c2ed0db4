//! `sockhop dial` as ssh and others run it: the real program between pipes.
#![cfg(feature = "client-cli")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use common::{
    Chunks, Launch, Observed, Pattern, Peer, SOON, Target, Unanswering, dead_address, expect_end,
    observe, reset, wait_until,
};

/// Not of the test's own environment.
const VARIABLES: [&str; 2] = ["all_proxy", "ALL_PROXY"];

fn proxy(peer: &Peer) -> String {
    format!("socks5h://{}", peer.address())
}

/// Runs to the end with this on stdin.
fn dial(arguments: &[&str], input: &[u8]) -> Output {
    Launch::new(&["dial"])
        .args(arguments)
        .env("all_proxy", "")
        .env("ALL_PROXY", "")
        .input(input)
        .run(2 * SOON)
}

#[track_caller]
fn assert_failed(output: &Output, status: i32, messages: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(output.stdout, b"");
    assert!(stderr.starts_with("sockhop: "), "{stderr}");
    for message in messages {
        assert!(stderr.contains(message), "{message}: {stderr}");
    }
}

/// A running one whose ends the test holds.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Running {
    fn start(proxy: &str, target: SocketAddr) -> Self {
        let mut child = command(proxy, target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().expect("piped"),
            child,
        }
    }

    /// The exit status and what is on stderr.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let ended = wait_until(SOON, || self.child.try_wait().expect("wait").is_some());
        assert!(ended, "still runs");
        let mut stderr = String::new();
        let pipe = self.child.stderr.as_mut().expect("piped");
        pipe.read_to_string(&mut stderr).expect("stderr");
        (self.child.wait().expect("wait").code(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(proxy: &str, target: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockhop"));
    command.args(["dial", proxy, &target.to_string()]);
    for name in VARIABLES {
        command.env_remove(name);
    }
    command
}

#[test]
fn what_goes_in_comes_back() {
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    for proxies in [vec![proxy(&peer)], vec![proxy(&peer), proxy(&peer)]] {
        let target = target.address().to_string();
        let mut arguments: Vec<&str> = proxies.iter().map(String::as_str).collect();
        arguments.extend(["--timeout=10s", &target]);
        let output = dial(&arguments, b"hello\0\n");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(
            (output.stdout, output.stderr),
            (b"hello\0\n".to_vec(), vec![])
        );
    }
    assert_eq!(peer.accepted(), 3);
}

#[test]
fn the_proxy_may_come_from_the_environment() {
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    for name in VARIABLES {
        let output = Launch::new(&["dial", &target.address().to_string()])
            .env("all_proxy", "")
            .env("ALL_PROXY", "")
            .env(name, proxy(&peer))
            .input("hello")
            .run(SOON);
        assert_eq!(output.stdout, b"hello", "{output:?}");
    }
    let output = Launch::new(&["dial", "example.org:80"])
        .env("all_proxy", "http://u:secret@proxy")
        .run(SOON);
    assert_failed(&output, 2, &["all_proxy: unknown scheme \"http\""]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"));
}

#[test]
fn the_end_of_stdin_is_passed_on_alone() {
    let (target, accepted) = Target::manual();
    let peer = Peer::valid(Duration::ZERO);
    let mut running = Running::start(&proxy(&peer), target.address());
    let mut far = accepted.recv_timeout(SOON).expect("connected");
    running
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"question")
        .unwrap();
    running.stdin = None;
    assert_eq!(observe(&far, SOON), Observed::Bytes(b"question".to_vec()));
    assert_eq!(observe(&far, SOON), Observed::Eof);
    far.write_all(b"answer").unwrap();
    drop(far);
    let mut answer = String::new();
    running.stdout.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(running.end(), (Some(0), String::new()));
}

#[test]
fn the_end_of_the_target_ends_stdout_alone() {
    let (target, accepted) = Target::manual();
    let peer = Peer::valid(Duration::ZERO);
    let mut running = Running::start(&proxy(&peer), target.address());
    let mut far = accepted.recv_timeout(SOON).expect("connected");
    far.write_all(b"greeting").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let mut greeting = String::new();
    running.stdout.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "greeting");
    // The other way is open still.
    running.stdin.as_mut().unwrap().write_all(b"more").unwrap();
    assert_eq!(observe(&far, SOON), Observed::Bytes(b"more".to_vec()));
    running.stdin = None;
    assert_eq!(expect_end(&far, SOON), Observed::Eof);
    assert_eq!(running.end(), (Some(0), String::new()));
}

/// ssh gives its ProxyCommand one socket as both.
#[test]
fn one_socket_can_be_stdin_and_stdout() {
    let (target, accepted) = Target::manual();
    let peer = Peer::valid(Duration::ZERO);
    let (mut near, given) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(SOON)).unwrap();
    let mut child = {
        // Dropped with its copies of the socket.
        let mut command = command(&proxy(&peer), target.address());
        command
            .stdin(OwnedFd::from(given.try_clone().unwrap()))
            .stdout(OwnedFd::from(given));
        command.spawn().expect("start")
    };
    let mut far = accepted.recv_timeout(SOON).expect("connected");
    far.write_all(b"bye").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
    near.write_all(b"and you").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(observe(&far, SOON), Observed::Bytes(b"and you".to_vec()));
    assert_eq!(expect_end(&far, SOON), Observed::Eof);
    let ended = wait_until(SOON, || child.try_wait().unwrap().is_some());
    let _ = child.kill();
    assert!(ended && child.wait().unwrap().success());
}

#[test]
fn much_data_both_ways_at_once_arrives_unchanged() {
    const LENGTH: usize = 32 << 20;
    let (target, peer) = (Target::echo(), Peer::valid(Duration::ZERO));
    let mut bytes = vec![0; LENGTH];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    let output = dial(&[&proxy(&peer), &target.address().to_string()], &bytes);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[test]
fn a_failing_proxy_is_status_1_and_says_so() {
    let target = Target::echo();
    let target = target.address().to_string();
    let refusing = format!("socks5://{}", dead_address());
    let output = dial(&[&refusing, &target], b"");
    assert_failed(
        &output,
        1,
        &["proxy 127.0.0.1:", "cannot connect", "refused"],
    );
    for (peer, message) in [
        (Peer::http(), "sent \"HTTP/1.1\""),
        (Peer::closes(), "answer to the greeting"),
        (Peer::auth_required(0xff), "accepts none of the offered"),
        (Peer::auth_required(2), "wants user and password"),
    ] {
        let output = dial(&[&proxy(&peer), &target], b"");
        assert_failed(
            &output,
            1,
            &[&format!("proxy {}: ", peer.address()), message],
        );
    }
    let output = dial(&["--timeout=200ms", &proxy(&Peer::silent()), &target], b"");
    assert_failed(
        &output,
        1,
        &["timed out waiting for the answer to the greeting"],
    );
    let nobody = Unanswering::new();
    let uri = format!("socks5://{}?timeout=200ms", nobody.address());
    assert_failed(
        &dial(&[&uri, &target], b""),
        1,
        &["timed out waiting for the connection"],
    );
}

#[test]
fn a_failing_target_is_status_3_and_says_so() {
    let peer = Peer::valid(Duration::ZERO);
    let dead = dead_address().to_string();
    let output = dial(&[&proxy(&peer), &dead], b"");
    assert_failed(
        &output,
        3,
        &[
            &format!("sockhop: target {dead}: proxy {}: ", peer.address()),
            "connection refused (0x05)",
        ],
    );
    let here = format!("socks5://{}", peer.address());
    let output = dial(&[&here, "no-such-name.invalid:80"], b"");
    assert_failed(&output, 3, &["target no-such-name.invalid:80: name"]);
}

#[test]
fn a_reset_is_status_1() {
    let (target, accepted) = Target::manual();
    let peer = Peer::valid(Duration::ZERO);
    let mut running = Running::start(&proxy(&peer), target.address());
    let mut far = accepted.recv_timeout(SOON).expect("connected");
    // Once something has come through, the proxy has answered.
    far.write_all(b"x").unwrap();
    running.stdout.read_exact(&mut [0]).unwrap();
    reset(far);
    let (status, stderr) = running.end();
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("connection to 127.0.0.1:"), "{stderr}");
    assert!(stderr.contains("reset"), "{stderr}");
}

#[test]
fn a_proxy_that_dies_after_its_end_is_noticed_while_stdin_is_silent() {
    let (target, accepted) = Target::manual();
    let mut peer = Peer::valid(Duration::ZERO);
    let mut running = Running::start(&proxy(&peer), target.address());
    let far = accepted.recv_timeout(SOON).expect("connected");
    far.shutdown(Shutdown::Write).unwrap();
    running.stdout.read_to_end(&mut Vec::new()).unwrap();
    peer.kill();
    let (status, stderr) = running.end();
    assert_eq!(status, Some(1), "{stderr}");
}

#[test]
fn a_reader_that_left_is_not_an_error() {
    let pattern = Pattern::new(3);
    let target = Target::source(&pattern, 1 << 20, Chunks::Fixed(64 * 1024));
    let peer = Peer::valid(Duration::ZERO);
    let mut child = command(&proxy(&peer), target.address())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    drop(child.stdout.take());
    // Its stdin stays open.
    let ended = wait_until(SOON, || child.try_wait().unwrap().is_some());
    let _ = child.kill();
    assert!(ended, "still runs");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
