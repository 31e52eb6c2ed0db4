//! What people see of a running forwarder: streams of each remote, `--drain`, `--watch`, the table of proxies.

mod common;

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use serde_json::{Value, json};

use common::{
    Launch, Peer, SOON, Signal, Sockhop, Target, dead_address, exchange, expect_end, socks5_connect,
};

const ZERO: Duration = Duration::ZERO;

/// A forwarder to the first of these, and what each of its clients talks to.
fn connected_to(first: &Peer) -> (Sockhop, Target) {
    let sockhop = Sockhop::forward(&["--manual", "--no-probing"]).start();
    connect(&sockhop, first, json!({}));
    (sockhop, Target::echo())
}

fn connect(sockhop: &Sockhop, peer: &Peer, mut parameters: Value) -> Value {
    parameters["remote"] = peer.address().to_string().into();
    sockhop.control("connect", parameters).unwrap()
}

/// A client with a stream that works.
fn client(sockhop: &Sockhop, echo: &Target) -> TcpStream {
    let client = socks5_connect(sockhop.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    client
}

/// What `status` says of a remote's streams.
fn streams(status: &Value, remote: SocketAddr) -> Value {
    let all = status["streams"].as_array().cloned().unwrap_or_default();
    let name = remote.to_string();
    let one = all.into_iter().find(|one| one["remote"] == name.as_str());
    one.unwrap_or_default()
}

fn stdout(output: std::process::Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn old_streams_are_seen_until_they_end() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (sockhop, echo) = connected_to(&a);
    let old = [client(&sockhop, &echo), client(&sockhop, &echo)];
    connect(&sockhop, &b, json!({}));
    let new = client(&sockhop, &echo);
    // 3 + 10 + 5 bytes up, 2 + 10 + 5 down, each.
    let a_expected = json!({
        "remote": a.address().to_string(), "selected": false, "live": 2, "total": 2,
        "bytes": {"up": 36, "down": 34},
    });
    let b_expected = json!({
        "remote": b.address().to_string(), "selected": true, "live": 1, "total": 1,
        "bytes": {"up": 18, "down": 17},
    });
    let both = |status: &Value| status["streams"] == json!([b_expected, a_expected]);
    sockhop.wait_status(both, SOON);
    let text = stdout(sockhop.command(&["status"]));
    let line = format!(
        "streams      {}: 1 live, 1 in total, 18 B up, 17 B down\n",
        b.address()
    );
    assert!(text.contains(&line), "{text}");
    let line = format!(
        "old streams  {}: 2 live, 2 in total, 36 B up, 34 B down\n",
        a.address()
    );
    assert!(text.contains(&line), "{text}");

    assert_eq!(exchange(&old[0], b"still here").unwrap(), b"still here");
    drop(old);
    sockhop.wait_status(|status| streams(status, a.address()).is_null(), SOON);
    drop(new);
    sockhop.wait_status(|status| status["streams"].is_null(), SOON);
}

#[test]
fn what_is_left_on_old_remotes_is_cut_in_time() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (sockhop, echo) = connected_to(&a);
    let old = client(&sockhop, &echo);
    // Parked or with a worker: both are cut.
    let parked = client(&sockhop, &echo);
    sockhop.wait_status(|status| status["connections"]["parked"] == 2, SOON);
    let to_b = b.address().to_string();
    let text = stdout(sockhop.command(&["connect", "--drain", "1h", &to_b]));
    assert!(
        text.ends_with("; 2 older streams are cut in 1h\n"),
        "{text}"
    );
    let new = client(&sockhop, &echo);
    let status = sockhop.status();
    let left = streams(&status, a.address())["cut_in_s"].as_f64().unwrap();
    assert!((3000.0..=3600.0).contains(&left), "{left}");
    assert_eq!(streams(&status, b.address())["cut_in_s"], Value::Null);
    assert_eq!(exchange(&old, b"still here").unwrap(), b"still here");

    // The sooner one counts.
    let answer = connect(&sockhop, &b, json!({"drain_s": 0.2}));
    assert_eq!(answer["draining"], 2);
    expect_end(&old, SOON);
    expect_end(&parked, SOON);
    assert_eq!(exchange(&new, b"not cut").unwrap(), b"not cut");
    sockhop.wait_log("time is up for streams on other remotes: 2 are cut", SOON);
}

#[test]
fn a_drain_spares_the_remote_that_stays() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (sockhop, echo) = connected_to(&a);
    let on_a = client(&sockhop, &echo);
    connect(&sockhop, &b, json!({}));
    let on_b = client(&sockhop, &echo);
    // Back to the first: its stream is of an older choice than that of the second.
    connect(&sockhop, &a, json!({"drain_s": 0}));
    expect_end(&on_b, SOON);
    assert_eq!(exchange(&on_a, b"not cut").unwrap(), b"not cut");
    // And the other way round.
    connect(&sockhop, &b, json!({"drain_s": 0}));
    expect_end(&on_a, SOON);
}

#[test]
fn a_connect_that_fails_drains_nothing() {
    let a = Peer::valid(ZERO);
    let (sockhop, echo) = connected_to(&a);
    let client = client(&sockhop, &echo);
    let own = sockhop.wait_listening(SOON).to_string();
    let parameters = json!({"remote": own, "drain_s": 0});
    sockhop.control("connect", parameters).unwrap_err();
    assert_eq!(exchange(&client, b"not cut").unwrap(), b"not cut");
    for text in ["1", "-1s", "25h", "soon"] {
        let output = sockhop.command(&["connect", "--drain", text]);
        assert_eq!(output.status.code(), Some(2), "{text}");
    }
}

/// The program on a terminal of its own; killed on drop.
struct OnTerminal {
    child: Child,
    written: Receiver<Vec<u8>>,
    /// All that it has written so far.
    text: String,
}

impl OnTerminal {
    fn start(arguments: &[&str], sockhop: &Sockhop, columns: u16) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let size = Winsize {
            ws_row: 40,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let line = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sockhop"))
            .args(arguments)
            .arg("--control")
            .arg(sockhop.control_path())
            .env("TERM", "xterm")
            .stdin(line.try_clone().unwrap())
            .stdout(line.try_clone().unwrap())
            .stderr(line)
            .spawn()
            .unwrap();
        let (sender, written) = channel();
        thread::spawn(move || {
            let mut terminal = File::from(terminal);
            let mut buffer = [0; 4096];
            // It ends with an error when the last one on the line has gone.
            while let Ok(count @ 1..) = terminal.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            written,
            text: String::new(),
        }
    }

    /// Waits until it has written this; what it has written up to there.
    #[track_caller]
    fn wait(&mut self, text: &str) -> String {
        let end = Instant::now() + SOON;
        loop {
            if let Some(at) = self.text.find(text) {
                return self.text.drain(..at + text.len()).collect();
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.written.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8(bytes).unwrap()),
                Err(error @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => {
                    panic!("no {text:?} ({error}), but {:?}", self.text)
                }
            }
        }
    }

    /// Its end, and what it had yet to write.
    fn end(mut self) -> (ExitStatus, String) {
        let end = Instant::now() + SOON;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "still runs");
            thread::yield_now();
        }
        while let Ok(bytes) = self.written.recv_timeout(SOON) {
            self.text.push_str(&String::from_utf8(bytes).unwrap());
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.text))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hides the cursor, goes up so many lines.
fn redraw(lines: usize) -> String {
    format!("\x1b[?25l\r\x1b[{lines}A")
}

/// Clears what is left below, shows the cursor.
const DRAWN: &str = "\x1b[J\x1b[?25h";

#[test]
fn watch_redraws_in_place_and_waits_for_a_daemon_that_comes_back() {
    let (a, b) = (Peer::valid(ZERO), Peer::valid(ZERO));
    let (mut sockhop, _echo) = connected_to(&a);
    let mut watch = OnTerminal::start(&["status", "--watch", "100ms"], &sockhop, 100);
    let first = watch.wait(DRAWN);
    assert!(first.starts_with("\x1b[?25l\rremote       "), "{first:?}");
    assert!(first.contains(&a.address().to_string()));
    let lines = first.matches("\r\n").count();
    let second = watch.wait(DRAWN);
    assert!(second.starts_with(&redraw(lines)), "{second:?}");
    connect(&sockhop, &b, json!({}));
    watch.wait(&b.address().to_string());
    watch.wait(DRAWN);

    sockhop.signal(Signal::TERM);
    sockhop.wait_exit(SOON);
    let gone = watch.wait("no answer, asking again: control socket");
    assert!(
        gone.ends_with("\x1b[?25l\r") || gone.contains(&redraw(lines)),
        "{gone:?}"
    );
    watch.wait(DRAWN);
    let control = sockhop.control_path().to_str().unwrap();
    let again = Sockhop::forward(&["--manual", "--control", control]).start();
    watch.wait("waiting for `sockhop connect`");
    watch.wait(DRAWN);

    // What ^C does.
    kill_process(Pid::from_child(&watch.child), Signal::INT).unwrap();
    let (status, rest) = watch.end();
    assert_eq!(status.signal(), Some(2));
    let shown = rest.rfind("\x1b[?25h");
    assert!(
        rest.rfind("\x1b[?25l") <= shown,
        "the cursor is hidden: {rest:?}"
    );
    drop(again);
}

#[test]
fn watch_for_a_script_is_one_answer_after_the_other_until_the_end() {
    let a = Peer::valid(ZERO);
    let (mut sockhop, _echo) = connected_to(&a);
    let control = sockhop.control_path().to_owned();
    let start = |arguments: &[&str]| {
        Launch::new(&["status", "--watch", "100ms"])
            .args(arguments)
            .arg("--control")
            .arg(&control)
            .start()
    };
    let (mut json, mut text) = (start(&["--json"]), start(&[]));
    for watching in [&json, &text] {
        watching.wait_output("remote", SOON);
    }
    let remote = json!(a.address().to_string());
    let two = || {
        json.output().len() >= 2 && text.output().iter().filter(|line| line.is_empty()).count() >= 1
    };
    assert!(
        common::wait_until(SOON, two),
        "{:?} {:?}",
        json.output(),
        text.output()
    );
    sockhop.signal(Signal::TERM);
    sockhop.wait_exit(SOON);
    for watching in [&mut json, &mut text] {
        assert_eq!(watching.wait_exit(SOON).code(), Some(1));
        watching.wait_log("control socket", SOON);
    }
    for line in json.output() {
        let status: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(status["remote"], remote);
    }
    for line in text.output() {
        assert!(!line.contains('\x1b'), "{line:?}");
    }
    // There is nobody from the start.
    let output = start(&[]).wait_exit(SOON);
    assert_eq!(output.code(), Some(1));
}

/// On a terminal the table of proxies is as wide as that, and its words are whole.
#[test]
fn proxies_fit_the_terminal() {
    let (valid, dead) = (Peer::valid(ZERO), dead_address());
    let peers = [valid.address(), dead].map(|address| address.to_string());
    let arguments = ["--manual", "--peer", &peers[0], "--peer", &peers[1]];
    let sockhop = Sockhop::forward(&arguments).start();
    sockhop.wait_peer(valid.address(), "valid", SOON);
    sockhop.wait_peer(dead, "not-listening", SOON);
    for columns in [200, 80, 40] {
        let (status, text) = OnTerminal::start(&["proxies"], &sockhop, columns).end();
        assert_eq!(status.code(), Some(0));
        for line in text.lines() {
            assert!(line.len() <= columns.into(), "{columns}: {line:?}");
        }
        for word in ["not-listening", "refused", "answered", &peers[0], &peers[1]] {
            assert!(text.contains(word), "{columns}: no {word:?} in {text}");
        }
        let places = [&peers[0], &peers[1]].map(|peer| text.find(peer.as_str()));
        assert!(places[0] < places[1], "the better one first");
    }
}
