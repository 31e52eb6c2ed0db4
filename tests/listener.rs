//! Where clients connect: addresses, Unix sockets, ports that are taken, who may come in, and the end of the program.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use common::{
    Behaviour, Observed, Peer, SOON, Signal, Sockhop, Target, connect, exchange, expect_end,
    observe, socks5_connect, wait_until,
};

const ZERO: Duration = Duration::ZERO;

/// The program promises a second; the rest is for a loaded machine.
const END: Duration = Duration::from_secs(3);

fn is_served(listener: impl Into<SocketAddr>, echo: &Target) {
    let stream = socks5_connect(listener.into(), echo.address()).expect("served");
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

fn explicit(remote: &Peer, more: &[&str]) -> Sockhop {
    Sockhop::forward(more)
        .arg("--no-probing")
        .arg("--remote")
        .arg(remote.address().to_string())
        .start()
}

/// A whole client on a Unix socket.
fn is_served_at(path: &Path, target: SocketAddr) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let [high, low] = target.port().to_be_bytes();
    stream
        .write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, high, low])
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [5, 0, 5, 0]);
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// The first of the errors that a start ends with, and its hint.
fn start_fails(sockhop: &mut Sockhop) -> String {
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(1));
    sockhop.wait_log("hint: ", SOON);
    sockhop.log().join("\n")
}

#[test]
fn every_address_takes_both_families() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    for listen in ["[::]:0", "0"] {
        let sockhop = explicit(&remote, &["--listen", listen]);
        let bound = sockhop.wait_listening(SOON);
        assert_eq!(bound.ip(), Ipv6Addr::UNSPECIFIED);
        is_served((Ipv4Addr::LOCALHOST, bound.port()), &echo);
        is_served((Ipv6Addr::LOCALHOST, bound.port()), &echo);
        is_served((Ipv4Addr::new(127, 0, 0, 9), bound.port()), &echo);
    }
}

#[test]
fn one_address_takes_its_own_clients_only() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let sockhop = explicit(&remote, &["--listen", "127.0.0.1:0"]);
    let bound = sockhop.wait_listening(SOON);
    is_served(bound, &echo);
    assert!(connect((Ipv6Addr::LOCALHOST, bound.port()).into()).is_err());
    assert!(connect((Ipv4Addr::new(127, 0, 0, 9), bound.port()).into()).is_err());
}

#[test]
fn several_listeners_serve_side_by_side() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    let unix = format!("unix:{}", path.display());
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "[::1]:0",
        "--listen",
        &unix,
    ];
    let mut sockhop = explicit(&remote, &arguments);
    sockhop.wait_listening(SOON);
    let listening = sockhop.status()["listening"].take();
    let listening: Vec<String> = serde_json::from_value(listening).unwrap();
    assert_eq!(listening.len(), 3);
    is_served(listening[0].parse::<SocketAddr>().unwrap(), &echo);
    is_served(listening[1].parse::<SocketAddr>().unwrap(), &echo);
    assert_eq!(listening[2], unix);
    is_served_at(&path, echo.address());
    sockhop.control("disconnect", Value::Null).unwrap();
    assert!(!path.exists(), "the file of a closed socket");
    let remote = json!({"remote": remote.address().to_string()});
    sockhop.control("connect", remote).unwrap();
    is_served_at(&path, echo.address());
    sockhop.signal(Signal::TERM);
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(0));
    assert!(!path.exists(), "the file is left behind");
}

#[test]
fn the_unix_socket_of_a_killed_program_is_replaced() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    let unix = format!("unix:{}", path.display());
    let first = explicit(&remote, &["--listen", &unix]);
    first.wait_status(|status| status["listening"] == json!([unix]), SOON);
    drop(first);
    assert!(path.exists());
    let second = explicit(&remote, &["--listen", &unix]);
    second.wait_status(|status| status["listening"] == json!([unix]), SOON);
    is_served_at(&path, echo.address());
    // Another one can't take it away.
    let mut third = explicit(&remote, &["--listen", &unix]);
    let said = start_fails(&mut third);
    assert!(said.contains(&format!("cannot listen on {unix}")), "{said}");
    is_served_at(&path, echo.address());
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let remote = Peer::valid(ZERO);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, "data").unwrap();
    let unix = format!("unix:{}", path.display());
    let said = start_fails(&mut explicit(&remote, &["--listen", &unix]));
    assert!(said.contains(&format!("cannot listen on {unix}")), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn a_taken_port_ends_the_start_with_its_address_and_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = address.to_string();
    let remote = Peer::valid(ZERO).address().to_string();
    for how in [["--remote", &remote], ["--peer", &remote]] {
        let mut sockhop = Sockhop::forward(&["--listen", &listen])
            .arg(how[0])
            .arg(how[1])
            .start();
        let control = sockhop.control_path().to_owned();
        let said = start_fails(&mut sockhop);
        assert!(
            said.contains(&format!("sockhop: cannot listen on {address}: ")),
            "{said}"
        );
        assert!(
            said.contains(&format!("sport = :{}", address.port())),
            "{said}"
        );
        assert!(!control.exists(), "the control socket is left behind");
    }
}

#[test]
fn a_port_that_is_taken_when_connect_is_asked_is_a_coded_error() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    // Other tests take ports of 127.0.0.1, and could have this one as soon as it is free.
    let taken = TcpListener::bind("127.77.0.1:0");
    let taken = taken.or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = taken.local_addr().unwrap();
    let peer = remote.address().to_string();
    let arguments = [
        "--manual",
        "--listen",
        &address.to_string(),
        "--peer",
        &peer,
    ];
    let sockhop = Sockhop::forward(&arguments).start();
    sockhop.wait_peer(remote.address(), "valid", SOON);
    for parameters in [json!({"remote": peer}), Value::Null] {
        let error = sockhop.control("connect", parameters).unwrap_err();
        assert_eq!(error.code, -32001);
        assert_eq!(error.message, format!("cannot listen on {address}"));
        let status = sockhop.status();
        assert_eq!(
            (&status["remote"], &status["listening"]),
            (&Value::Null, &json!([]))
        );
    }
    let output = sockhop.command(&["connect", &peer]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains(&format!("connect: cannot listen on {address}: ")),
        "{said}"
    );
    assert!(
        said.contains("\nhint: another program listens on port"),
        "{said}"
    );
    drop(taken);
    sockhop
        .control("connect", Value::Null)
        .expect("the port is free now");
    is_served(address, &echo);
}

#[test]
fn a_port_that_is_taken_when_the_first_peer_turns_up_is_tried_again() {
    let echo = Target::echo();
    let peer = Peer::http();
    // Bound without listening: the program can have the port, nobody else gets it.
    let place = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    place.set_reuse_address(true).unwrap();
    place
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let address = place.local_addr().unwrap().as_socket().unwrap();
    let sockhop = Sockhop::forward(&["--probe-interval", "1s", "--listen", &address.to_string()])
        .arg("--peer")
        .arg(peer.address().to_string())
        .start();
    sockhop.wait_peer(peer.address(), "not-a-proxy", SOON);
    place.listen(1).unwrap();
    peer.behave(Behaviour::Valid(ZERO));
    let said = sockhop.wait_log("cannot listen on", SOON);
    assert!(said.contains(&address.to_string()), "{said}");
    let reason = "a peer is valid, but the listener cannot be bound";
    let status = sockhop.wait_status(|status| status["reason"] == reason, SOON);
    assert!(
        status["last_error"]["what"]
            .as_str()
            .unwrap()
            .contains("cannot listen on"),
        "{status}"
    );
    drop(place);
    assert_eq!(sockhop.wait_listening(SOON), address);
    is_served(address, &echo);
}

#[test]
fn a_port_that_was_in_use_by_clients_a_moment_ago_can_be_had_again() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let first = explicit(&remote, &[]);
    let bound = first.wait_listening(SOON);
    let client = socks5_connect(bound, echo.address()).unwrap();
    // The program closes first, so its side is the one that waits in the kernel for a minute.
    drop(first);
    assert_ne!(expect_end(&client, SOON), Observed::Silent);
    let second = explicit(&remote, &["--listen", &bound.to_string()]);
    assert_eq!(second.wait_listening(SOON), bound);
    is_served(bound, &echo);
}

#[test]
fn it_is_said_when_other_machines_can_reach_it() {
    let remote = Peer::valid(ZERO);
    let open = explicit(&remote, &["--listen", "[::]:0"]);
    let said = open.wait_log("other machines", SOON);
    assert!(said.contains("warn: ") && said.contains("[::]:0"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", folder.path().join("clients").display());
    for listen in ["127.0.0.1:0", "[::1]:0", &unix] {
        let closed = explicit(&remote, &["--listen", listen]);
        closed.wait_status(|status| status["listening"] != json!([]), SOON);
        let log = closed.log();
        assert!(
            !log.iter().any(|line| line.contains("other machines")),
            "{listen}: {log:?}"
        );
    }
}

#[test]
fn this_machine_may_always_connect_also_when_it_is_a_peer() {
    let echo = Target::echo();
    let peer = Peer::valid(ZERO);
    let arguments = [
        "--allow",
        "10.0.0.0/8",
        "--peer",
        &peer.address().to_string(),
    ];
    let sockhop = Sockhop::forward(&arguments).start();
    is_served(sockhop.wait_listening(SOON), &echo);
    assert_eq!(sockhop.status()["connections"]["refused"], 0);
}

#[test]
fn a_client_with_too_many_connections_is_turned_away_and_others_are_not() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let sockhop = explicit(&remote, &["--listen", "[::]:0", "--max-per-client", "3"]);
    let port = sockhop.wait_listening(SOON).port();
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let held: Vec<_> = (0..3)
        .map(|_| socks5_connect(here, echo.address()).unwrap())
        .collect();
    let over = connect(here).unwrap();
    assert_ne!(observe(&over, SOON), Observed::Silent);
    is_served((Ipv6Addr::LOCALHOST, port), &echo);
    let status = sockhop.status();
    assert_eq!(
        status["connections"]["refused_by_reason"],
        json!({"per-client-limit": 1})
    );
    drop(held);
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    is_served(here, &echo);
}

#[test]
fn beyond_the_most_connections_new_clients_wait() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let sockhop = explicit(&remote, &["--max-connections", "3"]);
    let listener = sockhop.wait_listening(SOON);
    let mut held: Vec<_> = (0..3)
        .map(|_| socks5_connect(listener, echo.address()).unwrap())
        .collect();
    let late = thread::spawn({
        let target = echo.address();
        move || socks5_connect(listener, target)
    });
    sockhop.wait_log("as many as allowed", SOON);
    for stream in &held {
        assert_eq!(exchange(stream, b"still here").unwrap(), b"still here");
    }
    held.pop();
    let late = late.join().unwrap().expect("served at last");
    assert_eq!(exchange(&late, b"hello").unwrap(), b"hello");
}

// The end.

#[test]
fn a_signal_ends_it_at_once_also_under_load() {
    let (remote, echo) = (Peer::valid(ZERO), Target::echo());
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let path = folder.path().join("clients");
        let unix = format!("unix:{}", path.display());
        let mut sockhop = explicit(&remote, &["--listen", "127.0.0.1:0", "--listen", &unix]);
        let listener = sockhop.wait_listening(SOON);
        let idle: Vec<_> = (0..20)
            .map(|_| socks5_connect(listener, echo.address()).unwrap())
            .collect();
        let silent = connect(listener).unwrap();
        let busy: Vec<_> = (0..4)
            .map(|_| {
                let stream = socks5_connect(listener, echo.address()).unwrap();
                thread::spawn(move || {
                    let block = vec![7; 1 << 16];
                    while exchange(&stream, &block).is_ok() {}
                })
            })
            .collect();
        let carried = |status: &Value| status["bytes"]["down"].as_u64() > Some(10 << 20);
        sockhop.wait_status(carried, SOON);
        let control = sockhop.control_path().to_owned();
        let told = Instant::now();
        sockhop.signal(signal);
        assert_eq!(sockhop.wait_exit(END).code(), Some(0));
        assert!(told.elapsed() < END);
        for stream in idle.iter().chain([&silent]) {
            assert_ne!(expect_end(stream, SOON), Observed::Silent);
        }
        for client in busy {
            client.join().unwrap();
        }
        assert!(
            !path.exists() && !control.exists(),
            "a socket is left behind"
        );
    }
    assert!(remote.wait_open(0, SOON));
}

#[test]
fn a_signal_ends_it_at_once_while_it_probes_races_and_runs_a_command() {
    let peers: Vec<Peer> = (0..3).map(|_| Peer::valid(ZERO)).collect();
    let folder = tempfile::tempdir().unwrap();
    let (list, id) = (folder.path().join("list"), folder.path().join("id"));
    let lines: String = peers
        .iter()
        .map(|peer| format!("{}\n", peer.address()))
        .collect();
    fs::write(&list, lines).unwrap();
    let file = format!("file:{}", list.display());
    let command = format!("exec:echo $$ > {}; exec sleep 100", id.display());
    let more = [
        "--manual",
        "--probe-timeout",
        "60s",
        "--peers",
        &file,
        "--peers",
        &command,
    ];
    let mut sockhop = Sockhop::forward(&more).start();
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
        peer.behave(Behaviour::Silent);
    }
    let mut racing = sockhop.control_stream();
    racing
        .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"connect\"}\n")
        .unwrap();
    assert!(peers[0].wait_open(1, SOON), "no race");
    let mut child = String::new();
    let told = wait_until(SOON, || {
        child = fs::read_to_string(&id).unwrap_or_default();
        child.ends_with('\n')
    });
    assert!(told, "the command was not run");
    sockhop.signal(Signal::TERM);
    assert_eq!(sockhop.wait_exit(END).code(), Some(0));
    let process = format!("/proc/{}/stat", child.trim());
    // Gone, or dead and not yet collected by its new parent.
    let ended = || fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
    assert!(wait_until(SOON, ended), "the command goes on");
}
