//! `sockhop dial --udp` and `--listen`, and `NO_PROXY`: against proxies that the test plays itself, and our own server.
#![cfg(all(feature = "client-cli", feature = "server"))]

mod common;

use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Launch, Observed, Peer, SOON, Sockhop, Step, Target, connect, dead_address, expect_end,
    observe, wait_until,
};

/// Not of the test's own environment.
const VARIABLES: [&str; 4] = ["all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];

/// The program at work, with a stdin that the test holds.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sockhop"));
        command.arg("dial").args(arguments);
        for name in VARIABLES {
            command.env_remove(name);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        Self {
            stdin: child.stdin.take(),
            stdout: gathered(child.stdout.take().expect("piped")),
            stderr: gathered(child.stderr.take().expect("piped")),
            child,
        }
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("open");
        stdin.write_all(bytes).expect("write");
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_stdout(&self, expected: &[u8]) {
        wait_until(SOON, || self.stdout.lock().unwrap().len() >= expected.len());
        let stdout = self.stdout.lock().unwrap();
        assert!(*stdout == expected, "{}: {}", stdout.len(), self.stderr());
    }

    #[track_caller]
    fn wait_stderr(&self, line: &str) {
        let there = wait_until(SOON, || self.stderr().lines().any(|other| other == line));
        assert!(there, "{line}: {}", self.stderr());
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    #[track_caller]
    fn wait_status(&mut self) -> Option<i32> {
        assert!(wait_until(SOON, || !self.is_running()), "still runs");
        self.child.wait().expect("wait").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gathered(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    thread::spawn({
        let all = Arc::clone(&all);
        move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                all.lock().unwrap().extend(&buffer[..count]);
            }
        }
    });
    all
}

/// A proxy that carries datagrams, as far as the test does it.
struct Relay {
    tcp: Target,
    accepted: Receiver<TcpStream>,
    udp: UdpSocket,
    control: Option<TcpStream>,
}

impl Relay {
    fn new() -> Self {
        let (tcp, accepted) = Target::manual();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(SOON)).unwrap();
        Self {
            tcp,
            accepted,
            udp,
            control: None,
        }
    }

    fn uri(&self) -> String {
        format!("socks5h://{}", self.tcp.address())
    }

    /// Answers a UDP ASSOCIATE.
    fn associate(&mut self) {
        let mut stream = self.accepted.recv_timeout(SOON).expect("a connection");
        stream.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(read(&mut stream, 3), [5, 1, 0]);
        stream.write_all(&[5, 0]).unwrap();
        assert_eq!(read(&mut stream, 10), [5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
        let port = self.udp.local_addr().unwrap().port().to_be_bytes();
        stream
            .write_all(&[&[5, 0, 0, 1, 0, 0, 0, 0][..], &port].concat())
            .unwrap();
        self.control = Some(stream);
    }

    /// A datagram of the program, and where it came from.
    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_535];
        let (count, from) = self.udp.recv_from(&mut buffer).expect("a datagram");
        buffer.truncate(count);
        (buffer, from)
    }

    fn send(&self, to: SocketAddr, header: &[u8], payload: &[u8]) {
        let datagram = [header, payload].concat();
        self.udp.send_to(&datagram, to).expect("send");
    }
}

fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

/// RFC 1928 §7, with 192.0.2.1:53.
const HEADER: &[u8] = b"\0\0\0\x01\xc0\0\x02\x01\0\x35";
const TARGET: &str = "192.0.2.1:53";

#[test]
fn each_read_is_a_datagram_and_each_datagram_a_write() {
    let mut relay = Relay::new();
    let mut dial = Running::start(&["--udp", &relay.uri(), TARGET]);
    relay.associate();
    dial.type_in(b"one");
    let (datagram, from) = relay.receive();
    assert_eq!(datagram, [HEADER, b"one"].concat());
    dial.type_in(b"\0two\n");
    assert_eq!(relay.receive(), ([HEADER, b"\0two\n"].concat(), from));
    relay.send(from, HEADER, b"answer ");
    relay.send(from, HEADER, b"");
    // Of others, fragments, and what is no datagram of a proxy.
    relay.send(from, b"\0\0\0\x01\xc0\0\x02\x02\0\x35", b"another host ");
    relay.send(from, b"\0\0\0\x01\xc0\0\x02\x01\0\x36", b"another port ");
    relay.send(from, b"\0\0\x01\x01\xc0\0\x02\x01\0\x35", b"fragment ");
    relay.send(from, b"\0\0\0\x01\xc0", b"");
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger
        .send_to(&[HEADER, b"stranger "].concat(), from)
        .unwrap();
    relay.send(from, HEADER, b"and more");
    dial.wait_stdout(b"answer and more");
    // While stdin is open there is no limit, and the end comes after the quiet.
    assert!(dial.is_running());
    dial.stdin = None;
    relay.send(from, HEADER, b", late");
    dial.wait_stdout(b"answer and more, late");
    assert_eq!(dial.wait_status(), Some(0), "{}", dial.stderr());
    assert_eq!(dial.stderr(), "");
    let mut control = relay.control.take().unwrap();
    assert_eq!(control.read(&mut [0]).unwrap(), 0);
}

#[test]
fn large_datagrams_of_a_file_and_names_for_the_proxy() {
    let mut relay = Relay::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input");
    let mut bytes = vec![0; 70_000];
    fastrand::Rng::with_seed(3).fill(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    let uri = relay.uri();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockhop"));
    command
        .args(["dial", "--udp", "--idle=5s", &uri, "a.example:53"])
        .stdin(std::fs::File::open(&path).unwrap())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = gathered(child.stdout.take().unwrap());
    relay.associate();
    let header = b"\0\0\0\x03\x09a.example\0\x35";
    let (first, from) = relay.receive();
    let (second, _) = relay.receive();
    assert_eq!(first.len(), header.len() + 65_507 - 262);
    let payloads = [&first, &second].map(|datagram| {
        assert_eq!(&datagram[..header.len()], header);
        &datagram[header.len()..]
    });
    assert!(payloads.concat() == bytes);
    // Which addresses the name has only the proxy knows: the first that answers is it.
    relay.send(from, b"\0\0\0\x01\xc0\0\x02\x01\0\x35", &bytes[..65_000]);
    relay.send(from, b"\0\0\0\x01\xc0\0\x02\x02\0\x35", b"another");
    relay.send(from, b"\0\0\0\x01\xc0\0\x02\x01\0\x35", &bytes[65_000..]);
    let there = wait_until(SOON, || stdout.lock().unwrap().len() >= bytes.len());
    assert!(there && *stdout.lock().unwrap() == bytes);
    drop(relay.control.take());
    assert!(wait_until(SOON, || child.try_wait().unwrap().is_some()));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn the_quiet_time_counts_from_the_last_datagram() {
    let mut relay = Relay::new();
    let mut dial = Running::start(&["--udp", "--idle=1500ms", &relay.uri(), TARGET]);
    relay.associate();
    dial.type_in(b"?");
    let (_, from) = relay.receive();
    let start = Instant::now();
    dial.stdin = None;
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(500));
        relay.send(from, HEADER, b".");
    }
    assert_eq!(dial.wait_status(), Some(0), "{}", dial.stderr());
    let lasted = start.elapsed();
    assert!(lasted >= Duration::from_millis(3400), "{lasted:?}");
    dial.wait_stdout(b"....");
}

#[test]
fn the_end_of_the_association_ends_it_whatever_stdin_does() {
    let mut relay = Relay::new();
    let mut open = Running::start(&["--udp", &relay.uri(), TARGET]);
    relay.associate();
    open.type_in(b"?");
    let (_, from) = relay.receive();
    // What came before the end counts.
    relay.send(from, HEADER, b"last words");
    drop(relay.control.take());
    assert_eq!(open.wait_status(), Some(1));
    open.wait_stdout(b"last words");
    let expected = "sockhop: connection to 192.0.2.1:53: the proxy ended the association\n";
    assert_eq!(open.stderr(), expected);

    let mut forever = Running::start(&["--udp", "--idle=0", &relay.uri(), TARGET]);
    forever.stdin = None;
    relay.associate();
    thread::sleep(Duration::from_millis(1500));
    assert!(forever.is_running());
    drop(relay.control.take());
    assert_eq!(forever.wait_status(), Some(1));
}

#[test]
fn proxies_that_carry_no_datagrams() {
    let peer = Peer::valid(Duration::ZERO);
    let run = |arguments: &[&str]| Launch::new(&["dial", "--udp"]).args(arguments).run(SOON);
    let uri = format!("socks5h://{}", peer.address());
    assert_failed(&run(&[&uri, TARGET]), 1, "command not supported (0x07)");
    let old = format!("socks4://{}", peer.address());
    for proxies in [vec![old.as_str()], vec![&uri, &uri]] {
        let arguments = [proxies, vec![TARGET]].concat();
        assert_failed(&run(&arguments), 2, "datagrams need a single proxy");
    }
    assert_failed(&run(&["--listen", &uri]), 2, "either --udp or --listen");
    assert_eq!(peer.requests(), 1);
}

#[track_caller]
fn assert_failed(output: &Output, status: i32, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
    assert_eq!(output.stdout, b"");
}

/// The first part of a BIND with this request; the rest is the test's.
fn binds(proxy: &Receiver<TcpStream>, request: &[u8]) -> TcpStream {
    let mut stream = proxy.recv_timeout(SOON).expect("a connection");
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(read(&mut stream, 3), [5, 1, 0]);
    stream.write_all(&[5, 0]).unwrap();
    assert_eq!(read(&mut stream, request.len()), request);
    stream.write_all(BOUND).unwrap();
    stream
}

const BOUND: &[u8] = b"\x05\0\0\x01\xc0\0\x02\x09\x0f\xa0";
const CALLER: &[u8] = b"\x05\0\0\x01\xc0\0\x02\x07\x13\x88";

#[test]
fn one_connection_comes_in_and_is_carried_both_ways() {
    let (proxy, accepted) = Target::manual();
    let uri = format!("socks5h://{}", proxy.address());
    let mut dial = Running::start(&["--listen", &uri, "192.0.2.7"]);
    let mut far = binds(&accepted, b"\x05\x02\0\x01\xc0\0\x02\x07\0\0");
    dial.wait_stderr("listening on 192.0.2.9:4000");
    dial.type_in(b"typed early");
    assert_eq!(observe(&far, Duration::from_millis(100)), Observed::Silent);
    // Right behind the second reply, in the same segment.
    far.write_all(&[CALLER, b"welcome"].concat()).unwrap();
    dial.wait_stderr("connection from 192.0.2.7:5000");
    dial.wait_stdout(b"welcome");
    assert_eq!(
        observe(&far, SOON),
        Observed::Bytes(b"typed early".to_vec())
    );
    far.shutdown(Shutdown::Write).unwrap();
    dial.type_in(b", late");
    assert_eq!(observe(&far, SOON), Observed::Bytes(b", late".to_vec()));
    dial.stdin = None;
    assert_eq!(expect_end(&far, SOON), Observed::Eof);
    assert_eq!(dial.wait_status(), Some(0), "{}", dial.stderr());
}

#[test]
fn a_port_for_anybody_at_the_proxy_itself() {
    let (proxy, accepted) = Target::manual();
    let uri = format!("socks4a://{}", proxy.address());
    let mut dial = Running::start(&["--listen", &uri]);
    let mut far = accepted.recv_timeout(SOON).expect("a connection");
    far.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(read(&mut far, 9), b"\x04\x02\0\0\0\0\0\0\0");
    far.write_all(b"\0\x5a\x0f\xa0\0\0\0\0").unwrap();
    // SOCKS4: 0.0.0.0 is the proxy.
    dial.wait_stderr("listening on 127.0.0.1:4000");
    far.write_all(b"\0\x5a\x13\x88\xc0\0\x02\x07").unwrap();
    drop(far);
    dial.stdin = None;
    let _ = dial.wait_status();
    dial.wait_stderr("connection from 192.0.2.7:5000");
}

#[test]
fn nobody_comes() {
    let anybody = b"\x05\x02\0\x01\0\0\0\0\0\0";
    let (proxy, accepted) = Target::manual();
    let uri = format!("socks5h://{}", proxy.address());
    // The proxy's limit, ours, and a proxy that dies.
    let mut dial = Running::start(&["--listen", &uri]);
    let mut far = binds(&accepted, anybody);
    far.write_all(b"\x05\x06\0\x01\0\0\0\0\0\0").unwrap();
    assert_eq!(dial.wait_status(), Some(3), "{}", dial.stderr());
    assert!(
        dial.stderr().contains("TTL expired (0x06)"),
        "{}",
        dial.stderr()
    );

    let mut dial = Running::start(&["--listen", "--timeout=2s", &uri]);
    let _far = binds(&accepted, anybody);
    assert_eq!(dial.wait_status(), Some(3), "{}", dial.stderr());
    let expected = "nobody connected to 192.0.2.9:4000 in time";
    assert!(dial.stderr().contains(expected), "{}", dial.stderr());

    let mut dial = Running::start(&["--listen", &uri]);
    drop(binds(&accepted, anybody));
    assert_eq!(dial.wait_status(), Some(1), "{}", dial.stderr());
    // And one that does not know the command.
    let refusing = Peer::scripted(vec![
        Step::Read(3),
        Step::Send(vec![5, 0]),
        Step::Read(10),
        Step::Send(vec![5, 7, 0, 1, 0, 0, 0, 0, 0, 0]),
    ]);
    let uri = format!("socks5h://{}", refusing.address());
    let mut dial = Running::start(&["--listen", &uri]);
    assert_eq!(dial.wait_status(), Some(1));
    assert!(!dial.stderr().contains("listening"), "{}", dial.stderr());
}

#[test]
fn no_proxy_is_for_the_proxy_of_the_environment() {
    let (peer, target) = (Peer::valid(Duration::ZERO), Target::echo());
    let uri = format!("socks5h://{}", peer.address());
    let address = target.address().to_string();
    let named = format!("localhost:{}", target.address().port());
    let run = |arguments: &[&str], no_proxy: &str| {
        Launch::new(&["dial"])
            .args(arguments)
            .env("all_proxy", "")
            .env("ALL_PROXY", &uri)
            .env("no_proxy", "")
            .env("NO_PROXY", no_proxy)
            .input("hello")
            .run(SOON)
    };
    for (arguments, no_proxy, requests) in [
        (vec![address.as_str()], "127.0.0.0/8", 0),
        (vec![&named], "example, localhost", 0),
        (vec![&address], "*", 0),
        (vec![&address], "", 1),
        (vec![&address], "10.0.0.0/8,host", 2),
        (vec![&uri, &address], "*", 3),
    ] {
        let output = run(&arguments, no_proxy);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout, b"hello", "{no_proxy}");
        assert_eq!(peer.requests(), requests, "{no_proxy}");
    }
    let output = run(&[&dead_address().to_string()], "*");
    assert_failed(&output, 3, "cannot connect");
    let output = run(&["no-such-name.invalid:80"], "invalid");
    assert_failed(&output, 3, "target no-such-name.invalid:80: ");
}

/// Both ends are ours: the proxy is `sockhop serve`.
#[test]
fn datagrams_and_a_connection_through_our_own_server() {
    let server = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--user", "ada:secret"]).start();
    let uri = format!("socks5h://ada:secret@{}", server.wait_listening(SOON));

    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    let address = far.local_addr().unwrap().to_string();
    let mut dial = Running::start(&["--udp", &uri, &address]);
    dial.type_in(b"there");
    let mut buffer = [0; 100];
    let (count, from) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..count], *b"there");
    far.send_to(b"and back", from).unwrap();
    dial.wait_stdout(b"and back");
    dial.stdin = None;
    assert_eq!(dial.wait_status(), Some(0), "{}", dial.stderr());

    let mut dial = Running::start(&["--listen", &uri, "127.0.0.1"]);
    let listening = || {
        let said = dial.stderr();
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("listening on "));
        line.map(|at| at.parse::<SocketAddr>().unwrap())
    };
    assert!(
        wait_until(SOON, || listening().is_some()),
        "{}",
        dial.stderr()
    );
    let mut peer = connect(listening().unwrap()).unwrap();
    let from = peer.local_addr().unwrap();
    dial.wait_stderr(&format!("connection from {from}"));
    peer.write_all(b"from the peer").unwrap();
    dial.wait_stdout(b"from the peer");
    dial.type_in(b"to the peer");
    let mut bytes = [0; 11];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, *b"to the peer");
    drop(peer);
    dial.stdin = None;
    assert_eq!(dial.wait_status(), Some(0), "{}", dial.stderr());
}
