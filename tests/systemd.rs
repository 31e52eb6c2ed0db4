//! As a service of systemd: what the manager is told, and the sockets that it hands over.

#![cfg(all(target_os = "linux", feature = "systemd"))]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Launch, Peer, SOON, Signal, Sockhop, Target, exchange, free_port, program, run_within,
    socks5_request, wait_until,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tempfile::TempDir;

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
    _folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            path,
            heard: Vec::new(),
            _folder: folder,
        }
    }

    /// Waits for a line that begins like this; those that came before count.
    #[track_caller]
    fn wait(&mut self, start: &str) -> String {
        let end = Instant::now() + SOON;
        let mut looked_at = 0;
        loop {
            for line in &self.heard[looked_at..] {
                if line.starts_with(start) {
                    return line.clone();
                }
            }
            looked_at = self.heard.len();
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {start:?} in {:?}", self.heard);
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut bytes = [0; 4096];
            if let Ok(count) = self.socket.recv(&mut bytes) {
                let text = std::str::from_utf8(&bytes[..count]).unwrap();
                assert!(text.ends_with('\n'), "{text:?}");
                self.heard.extend(text.lines().map(str::to_owned));
            }
        }
    }

    /// Only what comes from now on counts.
    fn forget(&mut self) {
        self.heard.clear();
    }

    fn position(&self, start: &str) -> usize {
        let mut lines = self.heard.iter();
        lines.position(|line| line.starts_with(start)).unwrap()
    }
}

#[test]
fn ready_is_told_once_it_can_be_controlled_and_the_remote_when_there_is_one() {
    let mut manager = Manager::new();
    let peer = Peer::valid(Duration::ZERO);
    let address = peer.address().to_string();
    let sockhop = Sockhop::forward(&["--peer", &address, "--no-probing"])
        .env("NOTIFY_SOCKET", &manager.path)
        .start();
    manager.wait("READY=1");
    // Not waited for: it is there.
    UnixStream::connect(sockhop.control_path()).unwrap();
    let status = manager.wait("STATUS=");
    assert_eq!(
        status,
        "STATUS=no remote (no peer has been found valid yet)"
    );
    sockhop.control("probing", json!({"run": true})).unwrap();
    let status = manager.wait("STATUS=forwarding 127.0.0.1:");
    assert!(
        status.contains(&format!(" to {address} (valid: ")),
        "{status}"
    );
    manager.forget();
    sockhop.control("disconnect", json!(null)).unwrap();
    let status = manager.wait("STATUS=no remote");
    assert!(status.contains("sockhop connect"), "{status}");
}

#[test]
fn reload_and_end_are_told() {
    let mut manager = Manager::new();
    let mut sockhop = Sockhop::forward(&["--manual"])
        .env("NOTIFY_SOCKET", &manager.path)
        .start();
    manager.wait("READY=1");
    manager.forget();
    let micros = || {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec * 1_000_000 + now.tv_nsec / 1000
    };
    let before = micros();
    sockhop.signal(Signal::HUP);
    let stamp = manager.wait("MONOTONIC_USEC=");
    let stamp: i64 = stamp.split_once('=').unwrap().1.parse().unwrap();
    assert!((before..=micros()).contains(&stamp), "{stamp}");
    manager.wait("READY=1");
    assert!(manager.position("RELOADING=1") < manager.position("READY=1"));
    sockhop.signal(Signal::TERM);
    manager.wait("STOPPING=1");
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(0));
}

#[test]
fn a_server_tells_where_it_listens_also_under_an_abstract_name() {
    let name = format!("sockhop-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut manager = Manager::new();
    manager.socket = UnixDatagram::bind_addr(&address).unwrap();
    let sockhop = Sockhop::serve(&[])
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .start();
    manager.wait("READY=1");
    let address = sockhop.wait_listening(SOON);
    let status = manager.wait("STATUS=");
    assert_eq!(status, format!("STATUS=listening on {address}"));
}

#[test]
fn the_watchdog_hears_of_a_program_that_lives() {
    let mut manager = Manager::new();
    let sockhop = Sockhop::forward(&["--manual"])
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "200000")
        .start();
    manager.wait("READY=1");
    for _ in 0..3 {
        manager.forget();
        manager.wait("WATCHDOG=1");
    }
    // A program that hangs says nothing more: what is under way comes, then silence.
    sockhop.signal(Signal::STOP);
    manager
        .socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    assert!(wait_until(SOON, || manager
        .socket
        .recv(&mut [0; 4096])
        .is_err()));
    sockhop.signal(Signal::CONT);
    manager.forget();
    manager.wait("WATCHDOG=1");
}

#[test]
fn commands_that_name_peers_do_not_speak_for_the_service() {
    let mut manager = Manager::new();
    let folder = TempDir::new().unwrap();
    let seen = folder.path().join("seen");
    let command = format!("exec:env >{0}.new; mv {0}.new {0}", seen.display());
    let _sockhop = Sockhop::forward(&["--peers", &command])
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "5000000")
        .env("LISTEN_FDNAMES", "x")
        .env("KEPT", "yes")
        .start();
    manager.wait("READY=1");
    assert!(wait_until(SOON, || seen.exists()));
    let seen = fs::read_to_string(seen).unwrap();
    assert!(seen.contains("KEPT=yes"), "{seen}");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDNAMES"] {
        assert!(!seen.contains(name), "{seen}");
    }
}

#[test]
fn a_manager_that_cannot_be_told_is_no_reason_to_end() {
    for name in ["/nowhere/notify", "vsock:2:1"] {
        let sockhop = Sockhop::forward(&["--manual"])
            .env("NOTIFY_SOCKET", name)
            .start();
        sockhop.wait_log(&format!("service manager at {name} (NOTIFY_SOCKET)"), SOON);
        assert_eq!(sockhop.status()["mode"], "manual");
    }
}

/// A request for a target on 127.0.0.1.
fn to(target: &Target) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 1, 127, 0, 0, 1];
    request.extend(target.address().port().to_be_bytes());
    request
}

#[test]
fn clients_of_a_socket_that_was_handed_over_wait_for_the_first_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (peer, echo) = (Peer::valid(Duration::ZERO), Target::echo());
    // Before the program runs: the kernel takes it in, as when systemd starts the service for it.
    let early = TcpStream::connect(address).unwrap();
    let sockhop = Sockhop::forward(&["--peer", &peer.address().to_string()])
        .passing(listener)
        .start();
    socks5_request(&early, &to(&echo)).unwrap();
    assert_eq!(exchange(&early, b"early").unwrap(), b"early");
    let status = sockhop.status();
    // And not what `--listen` says, which is port 0 here.
    assert_eq!(status["listening"], json!([address.to_string()]));
}

#[test]
fn disconnect_leaves_a_socket_that_was_handed_over_open_and_refuses_its_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (peer, echo) = (Peer::valid(Duration::ZERO), Target::echo());
    let remote = peer.address().to_string();
    // The echo is on this machine, where clients that are served directly may go only if told so.
    let sockhop = Sockhop::forward(&["--peer", &remote, "--fallback", "direct"])
        .args(["--allow-dest", "127.0.0.0/8"])
        .passing(listener)
        .start();
    let served = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        socks5_request(&stream, &to(&echo))
            .and_then(|()| exchange(&stream, b"x"))
            .is_ok()
    };
    sockhop.wait_peer(peer.address(), "valid", SOON);
    sockhop.wait_status(|status| status["remote"] == remote.as_str(), SOON);
    assert!(served());
    for _ in 0..2 {
        sockhop.control("disconnect", json!(null)).unwrap();
        assert!(!served(), "nobody is to be served");
        assert_eq!(sockhop.status()["served_directly"], 0);
        sockhop
            .control("connect", json!({"remote": remote}))
            .unwrap();
        assert!(served());
    }
    assert_eq!(sockhop.status()["listening"], json!([address.to_string()]));
}

#[test]
fn nobody_waits_for_a_forwarder_that_is_to_be_connected_by_hand() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _sockhop = Sockhop::forward(&["--manual"]).passing(listener).start();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let answer = socks5_request(&stream, &to(&Target::echo())).unwrap_err();
    assert!(answer.to_string().contains("answered"), "{answer}");
}

#[test]
fn a_socket_named_control_is_the_control_socket_and_its_file_stays() {
    let folder = TempDir::new().unwrap();
    let (clients, control) = (folder.path().join("clients"), folder.path().join("control"));
    let echo = Target::echo();
    let path = control.to_str().unwrap();
    let mut sockhop = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--control", path])
        .env("LISTEN_FDNAMES", "clients:control")
        .passing(UnixListener::bind(&clients).unwrap())
        .passing(UnixListener::bind(&control).unwrap())
        .start();
    let answer = Sockhop::run(&["status", "--json", "--control", path]);
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(
        answer["listening"],
        json!([format!("unix:{}", clients.display())])
    );
    let mut stream = UnixStream::connect(&clients).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    stream.write_all(&to(&echo)).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    sockhop.signal(Signal::TERM);
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(0));
    assert!(clients.exists() && control.exists(), "they are systemd's");
}

#[test]
fn what_is_handed_over_and_cannot_be_used_is_named() {
    let end = |launch: Launch| {
        let mut sockhop = launch.start();
        let code = sockhop.wait_exit(SOON).code();
        (
            code,
            sockhop.wait_log("hint", SOON),
            sockhop.log().join(" "),
        )
    };
    let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = tcp();
    let connected = TcpStream::connect(other.local_addr().unwrap()).unwrap();
    for (launch, named) in [
        (
            Sockhop::serve(&[]).passing(fs::File::open("/dev/null").unwrap()),
            "descriptor 3",
        ),
        (Sockhop::serve(&[]).passing(datagrams), "descriptor 3"),
        (Sockhop::serve(&[]).passing(connected), "descriptor 3"),
        (
            Sockhop::forward(&["--manual"])
                .passing(tcp())
                .passing(tcp())
                .env("LISTEN_FDNAMES", "x:control"),
            "descriptor 4 (\"control\")",
        ),
    ] {
        let (code, hint, log) = end(launch);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(named), "{log}");
        assert!(hint.contains("ListenStream="), "{hint}");
    }
}

#[test]
fn what_was_handed_to_somebody_else_is_left_alone() {
    let sockhop = Sockhop::serve(&[])
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .start();
    sockhop.wait_listening(SOON);
}

#[test]
fn commands_that_name_peers_do_not_get_the_sockets() {
    let folder = TempDir::new().unwrap();
    let seen = folder.path().join("seen");
    let command = format!(
        "exec:ls -l /proc/self/fd >{0}.new; mv {0}.new {0}",
        seen.display()
    );
    let _sockhop = Sockhop::forward(&["--peers", &command])
        .passing(TcpListener::bind("127.0.0.1:0").unwrap())
        .start();
    assert!(wait_until(SOON, || seen.exists()));
    let seen = fs::read_to_string(seen).unwrap();
    assert!(seen.contains("/dev/null"), "{seen}");
    assert!(!seen.contains("socket:"), "{seen}");
}

const UNITS: [(&str, &str); 3] = [
    (
        "sockhop.service",
        include_str!("../examples/systemd/sockhop.service"),
    ),
    (
        "sockhop.socket",
        include_str!("../examples/systemd/sockhop.socket"),
    ),
    (
        "sockhop-serve.service",
        include_str!("../examples/systemd/sockhop-serve.service"),
    ),
];

#[test]
fn the_units_start_the_program_with_options_it_knows() {
    let mut lines = 0;
    for (name, unit) in UNITS {
        for line in unit.lines().filter(|line| line.starts_with("ExecStart=")) {
            let mut words = line.split_whitespace().skip(1);
            let command = words.next().unwrap();
            let help = Sockhop::run(&[command, "--help"]);
            let help = String::from_utf8(help.stdout).unwrap();
            let known: Vec<&str> = help.split_whitespace().collect();
            for word in words.filter(|word| word.starts_with("--")) {
                assert!(known.contains(&word), "{name}: {word}");
            }
            lines += 1;
        }
    }
    assert_eq!(lines, 2);
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_takes_the_units_and_finds_them_confined() {
    let folder = TempDir::new().unwrap();
    for (name, unit) in UNITS {
        // It looks whether the program is there.
        let unit = unit.replace("/usr/local/bin/sockhop", env!("CARGO_BIN_EXE_sockhop"));
        fs::write(folder.path().join(name), unit).unwrap();
    }
    for (name, _) in UNITS {
        let analyze = |arguments: &[&str]| {
            let mut analyze = Command::new(program("systemd-analyze"));
            analyze.args(arguments).arg(folder.path().join(name));
            run_within(Duration::from_secs(60), &mut analyze)
        };
        let verify = analyze(&["verify", "--man=no"]);
        let complaints = String::from_utf8_lossy(&verify.stderr);
        assert!(verify.status.success(), "{name}: {complaints}");
        let about_ours = |line: &str| line.contains("sockhop");
        assert!(!complaints.lines().any(about_ours), "{name}: {complaints}");
        if !name.ends_with(".service") {
            continue;
        }
        let security = analyze(&["security", "--offline=true", "--threshold=15"]);
        let report = String::from_utf8_lossy(&security.stdout);
        assert!(report.contains("Overall exposure level"), "{report}");
        assert!(security.status.success(), "{name}: {report}");
    }
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn a_real_systemd_hands_its_socket_over() {
    let folder = TempDir::new().unwrap();
    let control = folder.path().join("control");
    let (address, echo) = (free_port(), Target::echo());
    let mut activator = Command::new(program("systemd-socket-activate"))
        .args(["--listen", &address.to_string(), "--fdname=clients"])
        .arg(env!("CARGO_BIN_EXE_sockhop"))
        .args(["serve", "--listen=127.0.0.1:1", "--allow-dest=127.0.0.0/8"])
        .arg("--control")
        .arg(&control)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let served = || {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SOON))?;
        socks5_request(&stream, &to(&echo))?;
        exchange(&stream, b"hello")
    };
    let mut answer = Vec::new();
    wait_until(SOON, || {
        answer = served().unwrap_or_default();
        !answer.is_empty()
    });
    let is_ours = control.exists();
    let _ = activator.kill();
    let _ = activator.wait();
    assert_eq!(answer, b"hello");
    assert!(is_ours);
}
