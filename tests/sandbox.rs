//! The sandbox: what is forbidden is tried from inside, and what a daemon does works there.
//!
//! Confinement is for good, so each test that confines itself is started again as a process of its own.
#![cfg(all(feature = "sandbox", feature = "server", target_os = "linux"))]

mod common;

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use common::{
    Peer, SOON, Signal, Sockhop, Target, exchange, run_within, socks5_connect_name, wait_until,
};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, getegid, geteuid, getpid};
use sockhop::sandbox::{Plan, confine};
use tempfile::TempDir;

/// Runs `inside` in a process of its own that runs only this test, with a directory for it.
fn in_a_process(test: &str, inside: impl FnOnce(&Path)) {
    const FOLDER: &str = "SOCKHOP_TEST_INSIDE";
    if let Some(folder) = env::var_os(FOLDER) {
        return inside(Path::new(&folder));
    }
    let folder = TempDir::new().unwrap();
    let mut again = Command::new(env::current_exe().unwrap());
    again
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path());
    let output = run_within(SOON, &mut again);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{}: {text}", output.status);
    assert!(text.contains("1 passed"), "{text}");
}

fn folders(root: &Path, names: &[&str]) -> Vec<PathBuf> {
    let made = names.iter().map(|name| root.join(name));
    made.inspect(|path| fs::create_dir(path).unwrap()).collect()
}

#[track_caller]
fn assert_denied<T>(what: &str, result: io::Result<T>) {
    match result {
        Ok(_) => panic!("{what}: went well"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}"),
    }
}

#[test]
fn only_files_of_the_plan_are_in_reach() {
    in_a_process("only_files_of_the_plan_are_in_reach", |root| {
        let made = folders(root, &["peers", "state", "sockets", "secret"]);
        let [peers, state, sockets, secret] = [0, 1, 2, 3].map(|at| made[at].clone());
        for folder in [&peers, &state, &secret] {
            fs::write(folder.join("file"), "text").unwrap();
        }
        let open_before = File::open(secret.join("file")).unwrap();
        let served = UnixListener::bind(secret.join("socket")).unwrap();

        let confined = confine(&Plan {
            reads: vec![peers.join("file")],
            writes: vec![state.join("file")],
            sockets: vec![sockets.join("socket")],
        });
        if !confined.files {
            eprintln!("this kernel has no Landlock: nothing to test");
            return;
        }

        // Elsewhere there is nothing, also not for threads that are started later.
        assert_denied("read", fs::read(secret.join("file")));
        let later = secret.join("file");
        assert_denied("thread", thread::spawn(|| fs::read(later)).join().unwrap());
        for path in ["/root", "/home", "/sys", "/dev", "/var"] {
            assert_denied(path, fs::read_dir(path));
        }
        assert_denied("list", fs::read_dir(&secret));
        assert_denied("create", File::create(secret.join("new")));
        assert_denied("remove", fs::remove_file(secret.join("file")));
        assert_denied("directory", fs::create_dir(secret.join("new")));
        assert_denied("socket", UnixListener::bind(secret.join("new")));
        assert_denied("/etc", File::create("/etc/sockhop-was-here"));
        // What is to be read is not written.
        assert_eq!(fs::read(peers.join("file")).unwrap(), b"text");
        let append = |path: PathBuf| OpenOptions::new().append(true).open(path);
        assert_denied("append", append(peers.join("file")));
        assert_denied("truncate", File::create(peers.join("file")));
        assert_denied("replace", fs::remove_file(peers.join("file")));
        assert_denied("list", fs::read_dir(&peers));
        // What is to be written is files, and nothing comes in from elsewhere.
        assert_denied("directory", fs::create_dir(state.join("new")));
        let link = std::os::unix::fs::symlink("/etc/passwd", state.join("link"));
        assert_denied("link", link);
        assert_denied("socket", UnixListener::bind(state.join("socket")));
        assert!(fs::rename(secret.join("file"), state.join("stolen")).is_err());
        assert!(fs::hard_link(secret.join("file"), state.join("stolen")).is_err());
        assert_denied("file", File::create(sockets.join("file")));

        // As the state file is written.
        let mut new = File::create_new(state.join("new")).unwrap();
        new.write_all(b"state").unwrap();
        new.sync_all().unwrap();
        fs::rename(state.join("new"), state.join("file")).unwrap();
        File::open(&state).unwrap().sync_all().unwrap();
        assert_eq!(fs::read(state.join("file")).unwrap(), b"state");
        // As listeners come and go.
        for _ in 0..2 {
            drop(UnixListener::bind(sockets.join("socket")).unwrap());
            fs::remove_file(sockets.join("socket")).unwrap();
        }
        // A daemon's socket may be anywhere, and what is open stays open.
        UnixStream::connect(secret.join("socket")).unwrap();
        served.accept().unwrap();
        let mut text = String::new();
        (&open_before).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        // Routes and our own state.
        assert!(fs::read_to_string("/proc/self/status").is_ok());
        assert!(fs::read_to_string("/proc/self/net/route").is_ok());
        assert!(fs::read_dir("/proc/self/fd").unwrap().count() > 3);
        assert_denied("/proc", append("/proc/self/oom_score_adj".into()));
    });
}

#[test]
fn calls_that_no_proxy_makes_fail() {
    in_a_process("calls_that_no_proxy_makes_fail", |root| {
        let file = root.join("file");
        fs::write(&file, "text").unwrap();
        // Each of them works for everybody before: it is the filter that refuses it.
        let (uid, gid) = (geteuid(), getegid());
        let mode = Mode::from_raw_mode(0o600);
        let attempts = || -> [(&str, Result<(), io::Error>); 7] {
            [
                ("start", Command::new("true").status().map(drop)),
                (
                    "chmod",
                    rustix::fs::chmod(&file, mode).map_err(io::Error::from),
                ),
                (
                    "chown",
                    rustix::fs::chown(&file, Some(uid), Some(gid)).map_err(io::Error::from),
                ),
                (
                    "kill",
                    rustix::process::test_kill_process(getpid()).map_err(io::Error::from),
                ),
                (
                    "setresuid",
                    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(io::Error::from),
                ),
                (
                    "setresgid",
                    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(io::Error::from),
                ),
                (
                    "capset",
                    rustix::thread::capabilities(None)
                        .and_then(|sets| rustix::thread::set_capabilities(None, sets))
                        .map_err(io::Error::from),
                ),
            ]
        };
        for (what, result) in attempts() {
            assert!(result.is_ok(), "{what} before: {result:?}");
        }
        if uid.is_root() {
            let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, icmp());
            assert!(raw.is_ok(), "{raw:?}");
            let packet = rustix::net::socket(AddressFamily::PACKET, SocketType::DGRAM, None);
            assert!(packet.is_ok(), "{packet:?}");
        }

        let confined = confine(&Plan {
            // Files are not what is tested.
            reads: vec!["/file".into()],
            ..Plan::default()
        });
        if !confined.calls {
            eprintln!("no seccomp here: nothing to test");
            return;
        }
        for (what, result) in attempts() {
            assert_denied(what, result);
        }
        assert_denied("exec", Err::<(), _>(Command::new("/bin/true").exec()));
        let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, icmp());
        assert_denied("raw socket", raw.map_err(io::Error::from));
        let unsupported = rustix::io::Errno::AFNOSUPPORT;
        for family in [AddressFamily::PACKET, AddressFamily::from_raw(38)] {
            let socket = rustix::net::socket(family, SocketType::DGRAM, None);
            assert_eq!(socket.err(), Some(unsupported), "{family:?}");
        }
        let there = rustix::process::chroot(root).map_err(io::Error::from);
        assert_denied("chroot", there);
        let init = rustix::process::test_kill_process(Pid::INIT);
        assert_denied("kill", init.map_err(io::Error::from));
    });
}

fn icmp() -> Option<rustix::net::Protocol> {
    Some(rustix::net::ipproto::ICMP)
}

#[test]
fn what_a_proxy_does_works_inside() {
    in_a_process("what_a_proxy_does_works_inside", |_| {
        confine(&Plan::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let far = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"hello").unwrap();
        far.join().unwrap();
        let (out, into) = rustix::pipe::pipe().unwrap();
        let flags = rustix::pipe::SpliceFlags::empty();
        let moved = rustix::pipe::splice(&stream, None, &into, None, 5, flags).unwrap();
        let mut bytes = [0; 5];
        rustix::io::read(&out, &mut bytes).unwrap();
        assert_eq!((moved, &bytes), (5, b"hello"));

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket.send_to(b"hello", address).unwrap();
        assert_eq!(socket.recv(&mut bytes).unwrap(), 5);
        let found = ("localhost", 7).to_socket_addrs().unwrap();
        assert!(found.map(|one| one.ip()).any(|ip| ip.is_loopback()));
        let (one, other) = UnixStream::pair().unwrap();
        one.try_clone().unwrap().write_all(b"x").unwrap();
        drop(one);
        assert_eq!(io::read_to_string(other).unwrap(), "x");
    });
}

/// Makes the server start threads of every kind.
fn use_it(server: &Sockhop) {
    let echo = Target::echo();
    let address = server.wait_listening(SOON);
    let client = socks5_connect_name(address, "localhost", echo.address().port()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    assert!(server.threads() > 1);
}

/// Whether this kernel has them, as the program itself says.
fn has(server: &Sockhop, net: &str) -> bool {
    let status = server.status();
    let nets = status["confined_by"].as_array();
    nets.is_some_and(|nets| nets.iter().any(|one| one == net))
}

#[test]
fn every_thread_of_a_daemon_is_confined() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1"]).start();
    use_it(&server);
    let (seccomp, landlock) = (has(&server, "seccomp"), has(&server, "landlock"));
    let mode = if seccomp { "2" } else { "0" };
    assert_eq!(server.of_threads("Seccomp"), [mode]);
    let gains_nothing = if seccomp || landlock { "1" } else { "0" };
    assert_eq!(server.of_threads("NoNewPrivs"), [gains_nothing]);
}

#[test]
fn no_sandbox_is_none() {
    let server = Sockhop::serve(&["--no-sandbox", "--allow-dest", "127.0.0.0/8"]).start();
    use_it(&server);
    for field in ["Seccomp", "NoNewPrivs"] {
        assert_eq!(server.of_threads(field), ["0"], "{field}");
    }
    assert_eq!(server.status().get("confined_by"), None);
}

#[test]
fn commands_that_name_peers_are_run_unconfined() {
    let peer = Peer::valid(std::time::Duration::ZERO);
    let command = format!(
        "exec:grep -w NoNewPrivs:.0 /proc/self/status >&2 && echo {}",
        peer.address()
    );
    let forwarder = Sockhop::forward(&["--peers", &command]).start();
    forwarder.wait_log("no sandbox: exec: sources run commands", SOON);
    forwarder.wait_peer(peer.address(), "valid", SOON);
}

#[test]
fn a_file_that_was_replaced_is_read_again() {
    let folder = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    let (one, other, third) = (Target::echo(), Target::echo(), Target::echo());
    // The second lists a peer by a link to another directory.
    let (first, link) = (folder.path().join("first"), folder.path().join("link"));
    let far = elsewhere.path().join("far");
    let put = |path: &Path, peer: &Target| {
        let new = path.with_extension("new");
        fs::write(&new, peer.address().to_string()).unwrap();
        fs::rename(&new, path).unwrap();
    };
    put(&first, &one);
    put(&far, &other);
    std::os::unix::fs::symlink(&far, &link).unwrap();
    let source = |path: &Path| {
        let mut text = OsStr::new("file:").to_owned();
        text.push(path);
        text
    };
    // Not there yet.
    let late = folder.path().join("late");
    let forwarder = Sockhop::forward(&["--no-probing"])
        .args([&first, &link, &late].iter().flat_map(|path| {
            let option = OsStr::new("--peers").to_owned();
            [option, source(path)]
        }))
        .start();
    let knows = |expected: &[&Target]| {
        let all = |proxies: &[serde_json::Value]| {
            let is_there = |target: &&Target| {
                let address = target.address().to_string();
                proxies.iter().any(|proxy| proxy["address"] == *address)
            };
            // Those that are no longer named are known for a while.
            let named = |proxy: &&serde_json::Value| proxy["sources"] != serde_json::json!([]);
            let count = proxies.iter().filter(named).count();
            count == expected.len() && expected.iter().all(is_there)
        };
        wait_until(SOON, || all(&forwarder.proxies()))
    };
    assert!(knows(&[&one, &other]));
    put(&first, &third);
    forwarder.signal(Signal::HUP);
    assert!(knows(&[&third, &other]), "{:?}", forwarder.proxies());
    put(&far, &one);
    put(&late, &other);
    forwarder.signal(Signal::HUP);
    assert!(knows(&[&third, &one, &other]), "{:?}", forwarder.proxies());
}
