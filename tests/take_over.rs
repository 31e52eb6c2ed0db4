//! `sockhop forward --take-over`: a new process takes the place of the running one, and no client notices.

mod common;

use std::fs;
#[cfg(feature = "metrics")]
use std::io::Read as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{
    End, Launch, Observed, Pattern, Peer, SOON, Signal, Sockhop, Target, connect, exchange,
    expect_end, free_port, read_exactly, socks5_connect, wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A proxy, something behind it, and a place for control sockets.
struct World {
    peer: Peer,
    echo: Target,
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            peer: Peer::valid(Duration::ZERO),
            echo: Target::echo(),
            directory: TempDir::new().expect("a directory"),
        }
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// A forwarder to the proxy, with the control socket that all of a test have.
    fn forwarder(&self, listen: &str) -> Launch {
        let peer = self.peer.address().to_string();
        let control = self.control();
        let control = control.to_str().expect("text");
        Sockhop::forward(&["--peer", &peer, "--listen", listen, "--control", control])
    }

    /// The first of them, and where it listens.
    fn first(&self, arguments: &[&str]) -> (Sockhop, SocketAddr) {
        let sockhop = self.forwarder("127.0.0.1:0").args(arguments).start();
        let address = sockhop.wait_listening(SOON);
        (sockhop, address)
    }

    /// The next one, once it has taken over.
    #[track_caller]
    fn next(&self, listen: &str, arguments: &[&str]) -> Sockhop {
        let launch = self.forwarder(listen).arg("--take-over").args(arguments);
        let sockhop = launch.start();
        sockhop.wait_log("took over from process", SOON);
        sockhop
    }

    #[track_caller]
    fn works(&self, forwarder: SocketAddr) -> TcpStream {
        let stream = socks5_connect(forwarder, self.echo.address()).expect("connect");
        exchange(&stream, b"hello").expect("exchange");
        stream
    }
}

/// One question on a connection of its own choice to the control socket.
fn ask(stream: &UnixStream, method: &str) -> Value {
    ask_with(stream, method, json!({}))
}

fn ask_with(stream: &UnixStream, method: &str, params: Value) -> Value {
    let question = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    (&*stream)
        .write_all(format!("{question}\n").as_bytes())
        .expect("write");
    let mut line = String::new();
    stream.set_read_timeout(Some(SOON)).expect("time limit");
    BufReader::new(stream).read_line(&mut line).expect("answer");
    serde_json::from_str(&line).expect("JSON")
}

fn caller(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("a control socket")
}

#[track_caller]
fn ends_well(sockhop: &mut Sockhop) {
    let status = sockhop.wait_exit(SOON);
    assert!(status.success(), "{status}: {:?}", sockhop.log());
}

#[test]
fn clients_notice_nothing_of_ten_take_overs_in_a_row() {
    let world = World::new();
    let (mut first, address) = world.first(&[]);
    let listen = address.to_string();

    // A stream that is open all the time, of which bytes come at every step.
    let pattern = Pattern::new(7);
    let length = 24 << 20;
    let (sink, received) = Target::sink(&pattern);
    let long = socks5_connect(address, sink.address()).expect("connect");
    let (told_to_send, send) = std::sync::mpsc::channel::<()>();
    let sender = thread::spawn(move || {
        let mut position = 0;
        let mut block = vec![0; 1 << 20];
        for () in send {
            pattern.fill(position, &mut block);
            (&long).write_all(&block).expect("the stream goes on");
            position += block.len() as u64;
        }
        while position < length {
            pattern.fill(position, &mut block);
            (&long).write_all(&block).expect("the stream goes on");
            position += block.len() as u64;
        }
        long.shutdown(std::net::Shutdown::Write).expect("shut down");
        assert_eq!(read_exactly(&long, 1), [1], "it has arrived");
    });

    let done = AtomicBool::new(false);
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut earlier = Vec::new();
    let last = thread::scope(|scope| {
        for client in 0..8_u8 {
            let (world, done, served, failed) = (&world, &done, &served, &failed);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let stream = socks5_connect(address, world.echo.address());
                    let echoed = stream.and_then(|stream| exchange(&stream, &[client; 100]));
                    match echoed {
                        Ok(bytes) if bytes == [client; 100] => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        other => {
                            eprintln!("client {client}: {other:?}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        let mut last = None;
        for _ in 0..10 {
            told_to_send.send(()).expect("the sender lives");
            let before = served.load(Ordering::Relaxed);
            let next = world.next(&listen, &[]);
            earlier.extend(last.replace(next));
            let goes_on = || served.load(Ordering::Relaxed) >= before + 16;
            assert!(wait_until(SOON, goes_on), "clients are served");
        }
        done.store(true, Ordering::Relaxed);
        last
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(served.load(Ordering::Relaxed) >= 160);

    // Those between have nothing left to do; the first one has.
    for between in &mut earlier {
        ends_well(between);
    }
    assert!(first.is_running());
    drop(told_to_send);
    sender.join().expect("the stream went on to its end");
    let received = received.recv_timeout(SOON).expect("the sink reports");
    assert_eq!((received.bytes, received.wrong_at), (length, None));
    assert_eq!(received.end, End::Eof);
    ends_well(&mut first);
    let mut last = last.expect("the tenth");
    assert!(last.is_running());
    world.works(address);
    // The file is its own now.
    last.signal(Signal::TERM);
    ends_well(&mut last);
    assert!(!world.control().exists());
}

#[test]
fn the_new_one_forwards_at_once_to_the_remote_of_the_old_one() {
    let world = World::new();
    let (mut old, address) = world.first(&[]);
    drop(world.works(address));
    // It knows nobody, and asks nobody: what it has, it has been told.
    let control = world.control();
    let control = ["--control", control.to_str().expect("text")];
    let new = Sockhop::forward(&[&control[..], &["--listen", &address.to_string()]].concat())
        .args(["--take-over", "--no-probing", "--peers", "file:/nowhere"])
        .start();
    new.wait_log("took over from process", SOON);
    drop(world.works(address));
    assert_eq!(new.status()["remote"], world.peer.address().to_string());
    ends_well(&mut old);
}

#[test]
fn one_that_goes_away_before_it_accepts_leaves_the_old_one_as_it_was() {
    let world = World::new();
    let (old, address) = world.first(&[]);
    for _ in 0..3 {
        let heir = caller(&world.control());
        let answer = ask(&heir, "take_over");
        assert_eq!(answer["result"]["process"], old.id());
        let listeners = answer["result"]["listeners"].as_array().expect("a list");
        assert_eq!(listeners[0], "control");
        assert_eq!(listeners[1], "clients 127.0.0.1:0");
        drop(world.works(address));
        drop(heir);
        drop(world.works(address));
    }
    // One that can't start: its other port is somebody else's.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().expect("bound").to_string();
    let mut fails = world
        .forwarder(&address.to_string())
        .args(["--listen", &taken, "--take-over"])
        .start();
    assert_eq!(fails.wait_exit(SOON).code(), Some(1));
    fails.wait_log("cannot listen on", SOON);
    drop(world.works(address));
    assert!(old.control_path().exists());
    assert_eq!(old.status()["listening"], json!([address.to_string()]));

    // And one that is killed as soon as it has asked.
    let log = |text: &str| old.log().iter().filter(|line| line.contains(text)).count();
    let asked = log("asks to take over");
    let killed = world
        .forwarder(&address.to_string())
        .args(["--take-over", "--listen", &taken])
        .start();
    assert!(wait_until(SOON, || log("asks to take over") > asked));
    killed.signal(Signal::KILL);
    drop(killed);
    drop(world.works(address));
    world.next(&address.to_string(), &[]);
}

#[test]
fn two_at_once_are_one_too_many() {
    let world = World::new();
    let (mut old, address) = world.first(&[]);
    let listen = address.to_string();
    let heir = caller(&world.control());
    assert!(ask(&heir, "take_over")["result"].is_object());
    let mut second = world.forwarder(&listen).arg("--take-over").start();
    assert_eq!(second.wait_exit(SOON).code(), Some(1));
    second.wait_log("another process is taking over", SOON);
    let stranger = caller(&world.control());
    let refused = ask(&stranger, "took_over");
    assert_eq!(refused["error"]["code"], -32007, "{refused}");
    assert!(ask(&stranger, "status")["result"].is_object());
    drop(world.works(address));

    // Once it has hung up it is the next one's turn.
    drop(heir);
    let _new = world.next(&listen, &[]);
    ends_well(&mut old);
    drop(world.works(address));
}

#[test]
fn more_listeners_than_can_go_at_once_are_a_reason() {
    let world = World::new();
    let more: Vec<String> = (2..=65)
        .map(|n| format!("--listen=127.0.0.{n}:0"))
        .collect();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let (_old, address) = world.first(&more);
    let refused = ask(&caller(&world.control()), "take_over");
    let text = refused["error"].to_string();
    assert!(text.contains("66 listeners"), "{refused}");
    drop(world.works(address));
}

#[test]
fn only_listeners_that_both_want_are_taken() {
    let world = World::new();
    let (other, another) = (free_port().to_string(), free_port().to_string());
    let (mut old, address) = world.first(&["--listen", &other]);
    let kept = world.works(address);
    let new = world.next(&address.to_string(), &["--listen", &another]);
    let expected = json!([address.to_string(), another]);
    assert_eq!(new.status()["listening"], expected);
    drop(world.works(address));
    drop(world.works(another.parse().expect("an address")));
    let is_closed = || connect(other.parse().expect("an address")).is_err();
    assert!(wait_until(SOON, is_closed));
    exchange(&kept, b"still here").expect("exchange");
    drop(kept);
    ends_well(&mut old);
}

#[test]
fn unix_socket_stays_where_it_is() {
    let world = World::new();
    let path = world.directory.path().join("clients.sock");
    let listen = format!("unix:{}", path.display());
    let state = world.directory.path().join("state");
    let state = ["--state", state.to_str().expect("text")];
    let mut old = world.forwarder(&listen).args(state).start();
    let is_there = || UnixStream::connect(&path).is_ok();
    assert!(wait_until(SOON, is_there));
    let mut new = world.next(&listen, &state);
    ends_well(&mut old);
    assert!(is_there());
    assert!(new.status()["listening"][0].as_str().is_some());
    new.signal(Signal::TERM);
    ends_well(&mut new);
    assert!(!path.exists() && !world.control().exists());
}

#[test]
fn old_one_that_was_left_is_steered_by_nobody() {
    let world = World::new();
    let (_old, address) = world.first(&[]);
    let kept = world.works(address);
    let early = caller(&world.control());
    let _new = world.next(&address.to_string(), &[]);
    for (method, params) in [
        ("probing", json!({"run": true})),
        ("connect", json!({"remote": "127.0.0.1:9"})),
        ("disconnect", json!({})),
        ("take_over", json!({})),
    ] {
        let refused = ask_with(&early, method, params);
        assert_eq!(refused["error"]["code"], -32007, "{method}: {refused}");
    }
    let status = ask(&early, "status");
    assert_eq!(status["result"]["probing"], false, "{status}");
    exchange(&kept, b"still here").expect("exchange");
}

#[test]
fn signals_are_no_end_while_the_old_one_has_not_answered() {
    let world = World::new();
    let silent = UnixListener::bind(world.control()).expect("bind");
    let mut new = world.forwarder("127.0.0.1:0").arg("--take-over").start();
    silent.set_nonblocking(true).expect("not to wait for ever");
    let mut asks = None;
    assert!(wait_until(SOON, || {
        asks = silent.accept().ok();
        asks.is_some()
    }));
    new.signal(Signal::HUP);
    new.signal(Signal::USR1);
    drop((silent, asks));
    assert_eq!(new.wait_exit(SOON).code(), Some(1));
    new.wait_log("control.sock: ", SOON);
}

#[test]
fn where_nobody_is_it_starts_as_usual() {
    let world = World::new();
    let sockhop = world.forwarder("127.0.0.1:0").arg("--take-over").start();
    sockhop.wait_log("nobody to take over from", SOON);
    drop(world.works(sockhop.wait_listening(SOON)));
}

#[test]
fn what_was_connected_by_hand_stays_connected() {
    let world = World::new();
    let users = ["--user", "ada:pa ss:w%rd", "--allow-dest", "127.0.0.0/8"];
    let proxy = Sockhop::serve(&users).start();
    let proxy = proxy.wait_listening(SOON);
    let control = world.control();
    let manual = ["--manual", "--control", control.to_str().expect("text")];
    let mut old = Sockhop::forward(&manual).start();
    let uri = format!("socks5://ada:pa%20ss%3Aw%25rd@{proxy}");
    let is_there = || UnixStream::connect(&control).is_ok();
    assert!(wait_until(SOON, is_there));
    let connected = old
        .control("connect", json!({ "remote": uri }))
        .expect("connect");
    let address = connected["listening"][0].as_str().expect("an address");
    let address: SocketAddr = address.parse().expect("an address");
    drop(world.works(address));

    let listen = address.to_string();
    let start = || {
        let arguments = [&manual[..], &["--listen", &listen, "--take-over"]].concat();
        let new = Sockhop::forward(&arguments).start();
        new.wait_log("took over from process", SOON);
        new
    };
    let mut new = start();
    ends_well(&mut old);
    drop(world.works(address));
    let said = [new.log(), old.log()].concat().join("\n");
    assert!(!said.contains("ss:w") && !said.contains("w%25rd"), "{said}");

    new.control("disconnect", json!(null)).expect("disconnect");
    let next = start();
    ends_well(&mut new);
    assert_eq!(next.status()["listening"], json!([]));
    assert_eq!(next.status()["mode"], "manual");
}

#[test]
fn streams_that_stay_too_long_are_cut() {
    let world = World::new();
    let (mut old, address) = world.first(&["--drain-timeout", "100ms"]);
    let stream = world.works(address);
    let _new = world.next(&address.to_string(), &[]);
    assert_ne!(expect_end(&stream, SOON), Observed::Silent);
    ends_well(&mut old);
    old.wait_log("1 streams are cut (--drain-timeout)", SOON);
}

#[test]
fn old_one_that_was_left_does_nothing_but_see_its_clients_off() {
    let world = World::new();
    let state = world.directory.path().join("state");
    let state = state.to_str().expect("text");
    let (mut old, address) = world.first(&["--state", state, "--probe-interval", "1s"]);
    let stream = world.works(address);
    let new = world.next(&address.to_string(), &["--state", state, "--no-probing"]);
    let probed = world.peer.greetings();
    // Twice the time after which it would have asked again.
    assert!(!wait_until(Duration::from_secs(2), || world
        .peer
        .greetings()
        > probed));
    fs::write(state, "").expect("write");
    drop(stream);
    ends_well(&mut old);
    assert_eq!(fs::read_to_string(state).expect("read"), "", "not its file");
    assert!(new.status()["remote"].is_string());
}

#[cfg(feature = "metrics")]
#[test]
fn port_for_metrics_goes_along() {
    let world = World::new();
    let metrics = free_port();
    let arguments = ["--metrics", &metrics.to_string()];
    let (mut old, address) = world.first(&arguments);
    let kept = world.works(address);
    let _new = world.next(&address.to_string(), &arguments);
    for _ in 0..3 {
        let mut stream = connect(metrics).expect("connect");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("write");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        // The old one has a client, the new one has none.
        assert!(text.contains("\nsockhop_connections 0\n"), "{text}");
    }
    drop(kept);
    ends_well(&mut old);
}

#[test]
fn forwarders_and_servers_do_not_take_the_place_of_each_other() {
    let world = World::new();
    let (forwarder, address) = world.first(&[]);
    let control = world.control();
    let control = control.to_str().expect("text");
    let serve = ["--control", control, "--take-over"];
    let mut new = Sockhop::serve(&serve).start();
    assert_eq!(new.wait_exit(SOON).code(), Some(1));
    new.wait_log("this is a forwarder", SOON);
    drop(world.works(address));
    drop(forwarder);

    let server = Sockhop::serve(&["--control", control]).start();
    server.wait_listening(SOON);
    let mut new = world.forwarder("127.0.0.1:0").arg("--take-over").start();
    assert_eq!(new.wait_exit(SOON).code(), Some(1));
    new.wait_log("this is a server", SOON);
    assert!(server.status()["listening"].is_array());
}

#[test]
fn server_takes_the_place_of_a_server() {
    let world = World::new();
    let control = world.control();
    let control = control.to_str().expect("text");
    let start = |arguments: &[&str]| {
        let usual = ["--control", control, "--allow-dest", "127.0.0.0/8"];
        Sockhop::serve(&[&usual, arguments].concat()).start()
    };
    let mut servers = vec![start(&[])];
    let address = servers[0].wait_listening(SOON);
    let kept = world.works(address);
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    drop(world.works(address));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let new = start(&["--take-over", "--listen", &address.to_string()]);
            new.wait_log("took over from process", SOON);
            servers.push(new);
            let before = served.load(Ordering::Relaxed);
            let goes_on = || served.load(Ordering::Relaxed) >= before + 8;
            assert!(wait_until(SOON, goes_on), "clients are served");
        }
        done.store(true, Ordering::Relaxed);
    });
    let mut last = servers.pop().expect("the last one");
    for between in &mut servers[1..] {
        ends_well(between);
    }
    exchange(&kept, b"still here").expect("exchange");
    drop(kept);
    ends_well(&mut servers[0]);
    last.signal(Signal::TERM);
    ends_well(&mut last);
    assert!(!world.control().exists());
}
