//! Limits that others set for the program: on its threads (`RLIMIT_NPROC`) and its stack (`RLIMIT_STACK`). Clients are served by what
//! there is, or refused; it never ends by itself.
#![cfg(all(feature = "server", target_os = "linux"))]

mod common;

use std::net::SocketAddr;
use std::thread;

use common::{
    Chunks, End, Launch, Pattern, SOON, Signal, Sockhop, Target, connect, exchange, need_root,
    program, socks5_connect, socks5_connect_name, socks5_request,
};
use rustix::process::{Resource, getrlimit};

/// A line of shell that lets the program have so many threads, once it is not root any more.
fn threads(most: u32) -> String {
    let prlimit = program("prlimit");
    format!("{} --pid $$ --nproc={most}", prlimit.display())
}

/// Many bytes for many clients at once, each of which gets them all.
#[track_caller]
fn serves_bulk(server: SocketAddr) {
    let pattern = Pattern::new(81);
    let source = Target::source(&pattern, 64 << 20, Chunks::Fixed(64 * 1024));
    let readers = (0..20).map(|_| {
        let (pattern, source) = (pattern.clone(), source.address());
        let stream = socks5_connect(server, source).unwrap();
        thread::spawn(move || pattern.receive(&stream, 4 << 20))
    });
    for reader in readers.collect::<Vec<_>>() {
        let received = reader.join().unwrap();
        assert_eq!((received.wrong_at, received.end), (None, End::Enough));
    }
}

/// A user of a test's own: limits count all that a user has. None has a name.
fn user(number: u32) -> String {
    format!("{number}:{number}")
}

#[test]
#[ignore = "needs root"]
fn a_server_that_may_have_two_threads_serves_everybody_with_them() {
    need_root();
    let mut server = Sockhop::serve(&["-v", "--run-as", &user(42_421)])
        .args(["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1"])
        .first(threads(2))
        .start();
    let address = server.wait_listening(SOON);
    serves_bulk(address);
    server.wait_log("cannot start another worker", SOON);
    assert_eq!(server.threads(), 2);
    // Names are looked up by threads of their own.
    let echo = Target::echo();
    let refused = socks5_connect_name(address, "localhost", echo.address().port()).unwrap_err();
    assert!(refused.to_string().contains("[05, 01, "), "{refused}");
    server.wait_log(
        "look-up failed here: Resource temporarily unavailable",
        SOON,
    );
    let stream = socks5_connect(address, echo.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

#[test]
#[ignore = "needs root"]
fn a_forwarder_that_may_have_two_threads_serves_everybody_with_them() {
    need_root();
    let proxy = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"]).start();
    let remote = proxy.wait_listening(SOON).to_string();
    let forwarder = Sockhop::forward(&["--user", &user(42_422)])
        .args(["--remote", &remote])
        .first(threads(2))
        .start();
    let address = forwarder.wait_listening(SOON);
    serves_bulk(address);
    assert_eq!(forwarder.threads(), 2);
}

#[test]
#[ignore = "needs root"]
fn without_a_thread_that_it_needs_it_says_what_to_look_at() {
    need_root();
    let base = ["--listen", "127.0.0.1:0", "--control", "none"];
    for (most, command, says) in [
        (1, &["serve", "--run-as"][..], "cannot start: "),
        (
            2,
            &["forward", "--peers", "file:/nowhere", "--user"],
            "cannot start the source file:/nowhere: ",
        ),
    ] {
        let launch = Launch::new(command).arg(user(42_423)).args(base);
        let output = launch.first(threads(most)).run(SOON);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{said}");
        assert!(
            said.contains("hint: ") && said.contains("ulimit -u"),
            "{said}"
        );
    }
}

#[test]
fn without_a_descriptor_that_it_needs_it_says_what_to_look_at() {
    let launch = Launch::new(&["serve", "--listen", "127.0.0.1:0", "--control", "none"]);
    let output = launch.open_files(6).run(SOON);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot start: Too many open files"), "{said}");
    assert!(
        said.contains("hint: ") && said.contains("ulimit -n"),
        "{said}"
    );
}

/// The first thread, which has the reactor, has the stack that others set; all others have one of their own size.
#[test]
fn a_small_stack_and_an_endless_one_are_enough() {
    let echo = Target::echo();
    // The environment is in it too.
    let mut stacks = vec!["256"];
    if getrlimit(Resource::Stack).maximum.is_none() {
        stacks.push("unlimited");
    }
    for stack in stacks {
        let limit = || format!("ulimit -s {stack}");
        let proxy = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--allow-dest", "::1"])
            .first(limit())
            .start();
        let at = proxy.wait_listening(SOON);
        let stream = socks5_connect_name(at, "localhost", echo.address().port()).unwrap();
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
        let forwarder = Sockhop::forward(&["--peer", &at.to_string()])
            .first(limit())
            .start();
        let at = forwarder.wait_listening(SOON);
        serves_bulk(at);
        for signal in [Signal::HUP, Signal::USR1] {
            forwarder.signal(signal);
        }
        forwarder.wait_log("status: connections: ", SOON);
        assert_eq!(forwarder.proxies().len(), 1);
        // What nobody understands.
        let odd = connect(at).unwrap();
        assert!(socks5_request(&odd, &[5, 9, 0, 1, 127, 0, 0, 1, 0, 1]).is_err());
    }
}
