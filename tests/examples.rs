//! The examples, run as their first lines say. `cargo test` builds them.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use common::{
    Pattern, Peer, SOON, Target, connect, dead_address, exchange, socks5_connect, wait_until,
};

/// An example, ready to be started.
#[track_caller]
fn example(name: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_sockhop"));
    let folder = program.parent().expect("a folder").join("examples");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there: `cargo build --examples` builds it",
        path.display()
    );
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Started, and killed on drop.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("start"))
    }

    /// What it prints until its end, which must come soon.
    #[track_caller]
    fn output(mut self) -> Output {
        let mut stdout = self.0.stdout.take().expect("piped");
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            bytes
        });
        let ended = wait_until(SOON, || self.0.try_wait().expect("wait").is_some());
        assert!(ended, "still runs");
        Output {
            status: self.0.wait().expect("wait"),
            stdout: reader.join().expect("reader"),
            stderr: Vec::new(),
        }
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one that listens where its first argument says. Somebody else may take the port before it does; then it gets
/// another one.
#[track_caller]
fn listening(name: &str, arguments: &[&str]) -> (Running, SocketAddr) {
    for _ in 0..5 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("own address");
        drop(listener);
        let mut command = example(name);
        command.arg(address.to_string()).args(arguments);
        let mut running = Running::start(command);
        wait_until(SOON, || running.has_ended() || connect(address).is_ok());
        if !running.has_ended() {
            return (running, address);
        }
    }
    panic!("{name} does not listen");
}

#[test]
fn http_get_fetches_through_the_proxy() {
    let pattern = Pattern::new(5);
    let (peer, page) = (
        Peer::valid(Duration::ZERO),
        Target::http("127.0.0.1:0", &pattern),
    );
    let mut expected = vec![0; 300_000];
    pattern.fill(0, &mut expected);
    let proxy = format!("socks5h://{}", peer.address());
    let port = page.address().port();
    for (host, requests) in [("127.0.0.1", 1), ("localhost", 2)] {
        let mut command = example("http_get");
        // A proxy for others is not for this one.
        command
            .env("ALL_PROXY", format!("http://{}", dead_address()))
            .args([&proxy, &format!("http://{host}:{port}/300000")]);
        let output = Running::start(command).output();
        assert!(output.status.success(), "{host}: {:?}", output.status);
        assert!(output.stdout == expected, "{} bytes", output.stdout.len());
        assert_eq!(peer.requests(), requests);
    }
    // The name went to the proxy as it is.
    assert_eq!(peer.heard()[1][3..8], [5, 1, 0, 3, 9]);
    let mut command = example("http_get");
    command.args([&proxy, &format!("http://{}/", dead_address())]);
    assert!(!Running::start(command).output().status.success());
}

#[test]
fn bench_has_a_help() {
    let mut command = example("bench");
    command.args(["--quick", "--help"]);
    let output = Running::start(command).output();
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success());
    assert!(text.starts_with("Usage: bench "), "{text}");
    for line in ["  --quick ", "  --soak time ", "  --only names "] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}

#[test]
fn udp_asks_and_prints_the_answer() {
    let (proxy, accepted) = Target::manual();
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_read_timeout(Some(SOON)).unwrap();
    let uri = format!("socks5h://{}", proxy.address());
    let mut command = example("udp");
    command.args([&uri, "192.0.2.7:7", "hello"]);
    let running = Running::start(command);
    let mut control = accepted.recv_timeout(SOON).unwrap();
    control.set_read_timeout(Some(SOON)).unwrap();
    control.read_exact(&mut [0; 3]).unwrap();
    control.write_all(&[5, 0]).unwrap();
    control.read_exact(&mut [0; 10]).unwrap();
    let port = relay.local_addr().unwrap().port().to_be_bytes();
    let reply = [&[5, 0, 0, 1, 127, 0, 0, 1][..], &port].concat();
    control.write_all(&reply).unwrap();
    let mut buffer = [0; 100];
    // The first one is lost.
    relay.recv_from(&mut buffer).unwrap();
    let (length, from) = relay.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..length], *b"\0\0\0\x01\xc0\0\x02\x07\0\x07hello");
    relay.send_to(&buffer[..length], from).unwrap();
    let output = running.output();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"hello");
}

#[cfg(feature = "socks6")]
#[test]
fn socks6_sends_early_data_and_uses_the_session_again() {
    let (proxy, accepted) = Target::manual();
    let uri = format!("socks6://{}?tokens=10", proxy.address());
    let mut command = example("socks6");
    command.args([&uri, "192.0.2.7:7", "hello"]);
    let running = Running::start(command);
    for (options, answer) in [
        // A session and ten tokens are asked for.
        (
            &b"\0\x05\0\x04\0\x0b\0\x08\0\0\0\x0a"[..],
            &b"\x06\0\0\x14\0\x06\0\x08abcd\0\x0c\0\x0c\0\0\0\x07\0\0\0\x0a"[..],
        ),
        // They are used.
        (
            b"\0\x06\0\x08abcd\0\x0d\0\x08\0\0\0\x07",
            b"\x06\0\0\x08\0\x08\0\x04\0\x0e\0\x04",
        ),
    ] {
        let mut stream = accepted.recv_timeout(SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let length = u8::try_from(options.len()).unwrap();
        let head = [&[6, 1, 0, length], &b"\0\x07\0\x01\xc0\0\x02\x07"[..]].concat();
        let expected = [&head, options, b"hello"].concat();
        let mut request = vec![0; expected.len()];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(request, expected);
        let reply = b"\x06\0\0\0\0\x50\0\x01\xc0\0\x02\x01";
        stream.write_all(&[answer, reply, b"HI"].concat()).unwrap();
    }
    let output = running.output();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"HIHI");
}

#[cfg(feature = "server")]
#[test]
fn server_serves_and_refuses_what_is_not_named() {
    let target = Target::echo();
    let (_running, address) = listening("server", &[]);
    let error = socks5_connect(address, target.address()).unwrap_err();
    assert!(error.to_string().contains("[05, 02,"), "{error}");
    let (_running, address) = listening("server", &["127.0.0.0/8"]);
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn forwarder_forwards_to_the_peer_that_is_one() {
    let (peer, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let peers = [dead_address(), peer.address()].map(|address| address.to_string());
    let (_running, address) = listening("forwarder", &[&peers[0], &peers[1]]);
    let stream = socks5_connect(address, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
}

#[test]
fn probe_tells_what_is_there() {
    let (valid, http, dead) = (Peer::valid(Duration::ZERO), Peer::http(), dead_address());
    let mut command = example("probe");
    let addresses = [valid.address(), http.address(), dead];
    command.args(addresses.map(|address| address.to_string()));
    let output = Running::start(command).output();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (line, status) in lines
        .iter()
        .zip(["  valid  ", "  not-a-proxy  ", "  not-listening  "])
    {
        assert!(line.contains(status), "{text}");
    }
    assert_eq!(lines.len(), 3, "{text}");
}
