//! Giving up root: `--user`, `--run-as`, `--chroot`.
#![cfg(all(feature = "server", target_os = "linux"))]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{
    Launch, Netns, Peer, SOON, Signal, Sockhop, Target, exchange, free_port, need_root, program,
    run_within, socks5_connect, socks5_connect_name,
};
use serde_json::json;
use tempfile::TempDir;

/// Nobody's numbers: no file needs to know them.
const UID: u32 = 4_242;
const GID: u32 = 4_343;
const USER: &str = "4242:4343";

/// A directory that everybody may enter, as root's own are.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn give(path: &Path) {
    chown(path, Some(UID), Some(GID)).unwrap();
}

/// Runs it to its end; gives the exit status and what it said.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Launch::new(arguments).run(SOON);
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[test]
fn what_cannot_be_given_up_is_told() {
    let forward = ["forward", "--remote", "127.0.0.1:9", "--control", "none"];
    let port = free_port().to_string();
    let with = |more: &[&str]| refused(&[&forward[..], &["--listen", &port], more].concat());
    for (more, status, expected) in [
        (
            ["--user", "no such"],
            2,
            "--user: \"no such\" is not a user",
        ),
        (["--user", "a:"], 2, "--user: \"a:\" is not a user"),
        (["--chroot", ""], 2, "--chroot: \"\" is not a path"),
        (
            ["--user", "nobody-of-this-name"],
            1,
            "there is no user nobody-of-this-name",
        ),
        (["--user", "0:0"], 1, "the user to become is root itself"),
        (["--user", "root"], 1, "the user to become is root itself"),
        (
            ["--user", "1:no-such-group"],
            1,
            "there is no group no-such-group",
        ),
        (
            ["--user", "4123456789"],
            1,
            "user 4123456789 has no group of its own here",
        ),
        (
            ["--chroot", "/no/such/directory"],
            1,
            "cannot make /no/such/directory the root directory: No such file",
        ),
    ] {
        let (code, text) = with(&more);
        assert!(text.contains(expected), "{more:?}: {text}");
        assert_eq!(code, Some(status), "{more:?}: {text}");
        assert!(
            text.contains("hint: ") || more[0] == "--chroot",
            "{more:?}: {text}"
        );
    }
    // A user of this option is another thing there.
    let (code, text) = refused(&["serve", "--user", "nobody", "--control", "none"]);
    assert!(
        text.contains("--run-as is for the user of this machine"),
        "{text}"
    );
    assert_eq!(code, Some(2));
}

#[test]
fn who_is_not_root_cannot_become_somebody_else() {
    if rustix::process::geteuid().is_root() {
        // The next test is for root.
        return;
    }
    let (code, text) = refused(&["serve", "--run-as", USER, "--control", "none"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
    assert!(text.contains("hint: only root can do this"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn every_thread_is_the_other_user_for_good() {
    need_root();
    let echo = Target::echo();
    let server = Sockhop::serve(&["--run-as", USER])
        .args(["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1"])
        .start();
    let address = server.wait_listening(SOON);
    let client = socks5_connect_name(address, "localhost", echo.address().port()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    assert!(server.threads() > 1, "there are workers");
    assert_eq!(server.of_threads("Uid"), ["4242 4242 4242 4242"]);
    assert_eq!(server.of_threads("Gid"), ["4343 4343 4343 4343"]);
    assert_eq!(server.of_threads("Groups"), [""]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(server.of_threads(set), ["0000000000000000"], "{set}");
    }
}

#[test]
#[ignore = "needs root"]
fn the_control_socket_is_for_the_new_user() {
    need_root();
    let (folder, peer) = (folder(), Peer::valid(Duration::ZERO));
    let control = folder.path().join("ctl.sock");
    let peer_text = peer.address().to_string();
    let control_text = control.to_str().unwrap();
    let line = [
        "--user",
        USER,
        "--peer",
        &peer_text,
        "--control",
        control_text,
    ];
    let mut forwarder = Sockhop::forward(&line).start();
    forwarder.wait_listening(SOON);
    let socket = fs::symlink_metadata(&control).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (UID, GID));
    assert_eq!(socket.mode() & 0o777, 0o600);
    // Root may ask, and so may the user; it cannot remove it in root's directory, and the next start replaces it.
    assert_eq!(forwarder.status()["mode"], "automatic");
    let ask = |uid: &str| {
        let mut setpriv = Command::new(program("setpriv"));
        setpriv
            .args([&format!("--reuid={uid}"), "--regid=4343", "--clear-groups"])
            .arg(env!("CARGO_BIN_EXE_sockhop"))
            .args(["status", "--control"])
            .arg(&control);
        run_within(SOON, &mut setpriv)
    };
    let answer = ask("4242");
    assert!(answer.status.success(), "{answer:?}");
    assert!(!ask("4244").status.success());
    forwarder.signal(Signal::TERM);
    assert_eq!(forwarder.wait_exit(SOON).code(), Some(0));
    assert!(control.exists());
    let again = Sockhop::forward(&line).start();
    again.wait_listening(SOON);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn a_low_port_is_opened_again_without_root() {
    let namespace = Netns::new();
    let (peer, echo) = namespace.inside(|| (Peer::valid(Duration::ZERO), Target::echo()));
    let proxy = peer.address().to_string();
    let forwarder = Sockhop::forward(&["--user", USER, "--manual", "--listen", "127.0.0.1:81"])
        .inside(&namespace)
        .start();
    for _ in 0..2 {
        forwarder
            .control("connect", json!({"remote": proxy}))
            .unwrap();
        let at = forwarder.wait_listening(SOON);
        assert_eq!(at.port(), 81);
        let client = namespace.inside(|| socks5_connect(at, echo.address()).unwrap());
        assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
        // Nothing but that.
        assert_eq!(forwarder.of_threads("CapEff"), ["0000000000000400"]);
        assert_eq!(forwarder.of_threads("CapPrm"), ["0000000000000400"]);
        forwarder.control("disconnect", json!({})).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn packets_are_marked_without_root() {
    need_root();
    let (peer, echo) = (Peer::valid(Duration::ZERO), Target::echo());
    let remote = peer.address().to_string();
    let line = ["--user", USER, "--remote", &remote, "--mark", "5"];
    let forwarder = Sockhop::forward(&line).start();
    let client = socks5_connect(forwarder.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    // CAP_NET_ADMIN alone.
    assert_eq!(forwarder.of_threads("CapEff"), ["0000000000001000"]);
}

#[test]
#[ignore = "needs root"]
fn a_state_file_that_could_never_be_written_is_told_at_the_start() {
    need_root();
    let folder = folder();
    let state = folder.path().join("state");
    let text = state.to_str().unwrap();
    let forward = ["forward", "--manual", "--user", USER, "--state", text];
    let control = folder.path().join("ctl");
    let line = [&forward[..], &["--control", control.to_str().unwrap()]].concat();
    let (code, text) = refused(&line);
    assert_eq!(code, Some(1), "{text}");
    let place = folder.path().display();
    assert!(
        text.contains(&format!(
            "--state: cannot write to {place} then: Permission denied"
        )),
        "{text}"
    );
    assert!(
        text.contains("hint: it is to be a directory that the new user may write to"),
        "{text}"
    );

    give(folder.path());
    let peer = Peer::valid(Duration::ZERO);
    let mut forwarder = Sockhop::forward(&["--user", USER, "--peer", &peer.address().to_string()])
        .arg("--state")
        .arg(&state)
        .start();
    forwarder.wait_peer(peer.address(), "valid", SOON);
    forwarder.wait_listening(SOON);
    forwarder.signal(Signal::TERM);
    assert_eq!(forwarder.wait_exit(SOON).code(), Some(0));
    let written = fs::metadata(&state).unwrap();
    assert_eq!((written.uid(), written.gid()), (UID, GID));
    let text = fs::read_to_string(&state).unwrap();
    assert!(text.contains(&peer.address().to_string()), "{text}");
}

#[test]
#[ignore = "needs root"]
fn paths_are_those_of_the_new_root_directory() {
    need_root();
    let root = folder();
    let inside = |path: &str| root.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(inside("/etc/peers")).unwrap();
    fs::create_dir(inside("/var")).unwrap();
    give(&inside("/var"));
    fs::write(inside("/etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    let peer = Peer::valid(Duration::ZERO);
    fs::write(inside("/etc/peers/real"), peer.address().to_string()).unwrap();
    // What is a way out elsewhere leads nowhere else here.
    symlink("/etc/peers/real", inside("/etc/peers/list")).unwrap();
    let root_text = root.path().to_str().unwrap();
    let mut forwarder = Sockhop::forward(&["--user", USER, "--chroot", root_text])
        .args(["--peers", "file:/etc/peers/list", "--state", "/var/state"])
        .start();
    forwarder.wait_log("has no etc/resolv.conf", SOON);
    forwarder.wait_peer(peer.address(), "valid", SOON);
    let (echo, at) = (Target::echo(), forwarder.wait_listening(SOON));
    let client = socks5_connect(at, echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    let process = format!("/proc/{}", forwarder.id());
    for link in ["root", "cwd"] {
        let place = fs::read_link(Path::new(&process).join(link)).unwrap();
        assert_eq!(place, fs::canonicalize(root.path()).unwrap(), "{link}");
    }
    // Replaced, and read again.
    let new = Peer::valid(Duration::ZERO);
    fs::write(inside("/etc/peers/new"), new.address().to_string()).unwrap();
    fs::rename(inside("/etc/peers/new"), inside("/etc/peers/real")).unwrap();
    forwarder.signal(Signal::HUP);
    forwarder.wait_peer(new.address(), "valid", SOON);
    forwarder.signal(Signal::TERM);
    assert_eq!(forwarder.wait_exit(SOON).code(), Some(0));
    let text = fs::read_to_string(inside("/var/state")).unwrap();
    assert!(text.contains(&new.address().to_string()), "{text}");
}

#[test]
#[ignore = "needs root"]
fn a_socket_that_the_new_user_cannot_make_is_told() {
    need_root();
    let folder = folder();
    let listen = format!("unix:{}", folder.path().join("clients").display());
    let line = ["serve", "--run-as", USER, "--listen", &listen];
    let (code, text) = refused(&[&line[..], &["--control", "none"]].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    assert!(text.contains("hint: its folder is to be one"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn a_server_reads_its_users_as_the_new_user() {
    need_root();
    let folder = folder();
    let users = folder.path().join("users");
    fs::write(&users, "ada:secret\n").unwrap();
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).unwrap();
    let control = folder.path().join("ctl");
    let line = [
        "serve",
        "--run-as",
        USER,
        "--listen",
        "127.0.0.1:0",
        "--users-file",
    ];
    let more = [
        users.to_str().unwrap(),
        "--control",
        control.to_str().unwrap(),
    ];
    let (code, text) = refused(&[&line[..], &more].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    give(&users);
    let server = Launch::new(&line).args(more);
    let server = server.start();
    server.wait_log("listening on", SOON);
}
