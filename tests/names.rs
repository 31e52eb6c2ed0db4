//! Names that resolve, and name servers that are slow, absent or wrong: every wait has an end and every end a reason.
//!
//! In a network namespace of the test's own, where it is the name server, with a `resolv.conf` of its own. With `SOCKHOP_PROGRAM` the same
//! is asked of another build, such as a static one, whose resolver is another one.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Behaviour, Launch, Netns, Observed, Peer, SOON, Sockhop, Target, connect, exchange, observe,
    socks5_connect, socks5_connect_name,
};
use tempfile::TempDir;

/// Until a look-up has certainly failed: the limits of this program are 10 s, the system's are longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the name server does with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// Nothing.
    Silent,
    /// `box.lan` and `sock.example` are 127.0.0.1, everything else does not exist.
    Right,
    /// A code of failure (RFC 1035 §4.1.1).
    Code(u8),
    /// Bytes that are no answer to the question.
    Wrong,
}

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

/// A machine with a name server, unless there is none.
struct Home {
    netns: Netns,
    files: TempDir,
    answers: Arc<Mutex<Answers>>,
}

impl Home {
    fn new(answers: Answers) -> Self {
        let home = Self::without_server();
        *home.answers.lock().unwrap() = answers;
        let socket = home
            .netns
            .inside(|| UdpSocket::bind("127.0.0.1:53").expect("port 53"));
        let answers = Arc::clone(&home.answers);
        thread::spawn(move || serve_names(&socket, &answers));
        home
    }

    fn without_server() -> Self {
        let files = TempDir::new().expect("temporary directory");
        let text = "nameserver 127.0.0.1\nsearch lan\noptions timeout:8 attempts:3\n";
        fs::write(files.path().join("resolv.conf"), text).expect("resolv.conf");
        Self {
            netns: Netns::new(),
            files,
            answers: Arc::new(Mutex::new(Answers::Silent)),
        }
    }

    fn answer(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    /// The shell's line that makes the name server this machine's.
    fn mount(&self) -> String {
        let file = self.files.path().join("resolv.conf");
        format!("mount --bind {} /etc/resolv.conf", file.display())
    }

    fn start(&self, launch: Launch) -> Sockhop {
        launch.inside(&self.netns).first(self.mount()).start()
    }

    fn serve(&self, arguments: &[&str]) -> (Sockhop, SocketAddr) {
        let arguments = [arguments, &["--allow-dest", "127.0.0.0/8", "-v"]].concat();
        let sockhop = self.start(Sockhop::serve(&arguments));
        let address = sockhop.wait_listening(SOON);
        (sockhop, address)
    }

    fn echo(&self) -> Target {
        self.netns.inside(Target::echo)
    }

    fn by_name(&self, server: SocketAddr, name: &str, port: u16) -> Result<(), String> {
        self.netns.inside(|| {
            let connected = socks5_connect_name(server, name, port);
            connected.map(drop).map_err(|error| error.to_string())
        })
    }

    /// Asserts that the server refuses the name with host unreachable (RFC 1928 §6), and how soon.
    #[track_caller]
    fn unreachable(&self, server: SocketAddr, name: &str, limit: Duration) {
        let started = Instant::now();
        let refused = self.by_name(server, name, 80).unwrap_err();
        assert!(refused.contains("[05, 04, "), "{name}: {refused}");
        assert!(started.elapsed() < limit, "{name}: {:?}", started.elapsed());
    }
}

/// Ends with the test's process; the namespace goes when the socket does.
fn serve_names(socket: &UdpSocket, answers: &Mutex<Answers>) {
    let mut question = [0; 512];
    while let Ok((count, from)) = socket.recv_from(&mut question) {
        let answers = *answers.lock().unwrap();
        if let Some(answer) = answer(&question[..count], answers) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// The answer to a question with one name in it.
fn answer(question: &[u8], answers: Answers) -> Option<Vec<u8>> {
    let code = match answers {
        Answers::Silent => return None,
        Answers::Wrong => return Some([&[0xAA, 0xAA], &question[2..], &[0xFF; 40]].concat()),
        Answers::Code(code) => code,
        Answers::Right => 0,
    };
    let mut name = Vec::new();
    let mut at = 12;
    while let length @ 1.. = usize::from(*question.get(at)?) {
        name.extend(question.get(at + 1..=at + length)?.to_ascii_lowercase());
        name.push(b'.');
        at += 1 + length;
    }
    let is_address = question.get(at + 1..at + 3)? == [0, 1];
    let asked = question.get(12..at + 5)?;
    let known = [&b"box.lan."[..], b"sock.example."].contains(&&*name);
    let code = if code == 0 && !known { NXDOMAIN } else { code };
    let count = u8::from(code == 0 && is_address);
    let mut out = question.get(..2)?.to_vec();
    out.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    out.extend(asked);
    if count == 1 {
        // The name of the question, type A, class IN, 1 s, four bytes.
        out.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
    }
    Some(out)
}

#[test]
#[ignore = "needs root for network namespaces"]
fn names_resolve_also_by_search_domain_and_in_capitals() {
    let home = Home::new(Answers::Right);
    let echo = home.echo();
    let (_sockhop, server) = home.serve(&[]);
    for name in ["sock.example", "Sock.EXAMPLE", "box", "BOX.lan"] {
        assert_eq!(
            home.by_name(server, name, echo.address().port()),
            Ok(()),
            "{name}"
        );
    }
    home.unreachable(server, "nobody.example", SOON);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn silent_name_servers_cost_a_client_its_own_limit_and_others_nothing() {
    let home = Home::new(Answers::Silent);
    let echo = home.echo();
    let (sockhop, server) = home.serve(&["--connect-timeout", "2s"]);
    thread::scope(|scope| {
        let home = &home;
        // More names than there are threads, each asked for twice.
        let asking: Vec<_> = (0..40)
            .map(|number| {
                let ask = move || {
                    let name = format!("name-{}.example", number / 2);
                    home.unreachable(server, &name, PATIENCE);
                };
                scope.spawn(ask)
            })
            .collect();
        sockhop.wait_status(|status| status["connections"]["active"] == 40, SOON);
        let started = Instant::now();
        home.netns.inside(|| {
            for _ in 0..20 {
                let stream = socks5_connect(server, echo.address()).unwrap();
                assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
            }
        });
        assert!(started.elapsed() < Duration::from_secs(2), "they waited");
        for client in asking {
            client.join().unwrap();
        }
    });
    sockhop.wait_log("timed out", SOON);
    // When it answers again, so does the server; what is still under way has to end first.
    home.answer(Answers::Right);
    let end = Instant::now() + PATIENCE;
    while home
        .by_name(server, "sock.example", echo.address().port())
        .is_err()
    {
        assert!(Instant::now() < end, "it never does again");
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn every_failure_of_a_name_server_is_an_answer() {
    let home = Home::new(Answers::Right);
    let (sockhop, server) = home.serve(&["--connect-timeout", "5s"]);
    for (answers, name, said) in [
        (Answers::Code(NXDOMAIN), "a.example", "name not found"),
        (Answers::Code(SERVFAIL), "b.example", "b.example"),
        (Answers::Code(REFUSED), "c.example", "c.example"),
        (Answers::Wrong, "d.example", "d.example"),
    ] {
        home.answer(answers);
        home.unreachable(server, name, PATIENCE);
        sockhop.wait_log(said, SOON);
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn without_a_name_server_names_fail_soon_and_addresses_work() {
    let home = Home::without_server();
    let echo = home.echo();
    let (sockhop, server) = home.serve(&["--connect-timeout", "5s"]);
    home.unreachable(server, "sock.example", PATIENCE);
    home.netns
        .inside(|| socks5_connect(server, echo.address()).unwrap());
    drop(sockhop);
    // Nor any file that names one.
    let launch = Sockhop::serve(&["--allow-dest", "127.0.0.0/8", "--connect-timeout", "5s"]);
    let launch = launch.first("mount -t tmpfs none /etc");
    let sockhop = launch.inside(&home.netns).start();
    let server = sockhop.wait_listening(SOON);
    home.unreachable(server, "sock.example", PATIENCE);
    home.netns
        .inside(|| socks5_connect(server, echo.address()).unwrap());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn remote_whose_name_servers_are_silent_is_said_and_found_later() {
    let home = Home::new(Answers::Silent);
    let peer = home
        .netns
        .inside(|| Peer::at("127.0.0.1:0", Behaviour::Valid(Duration::ZERO)));
    let echo = home.echo();
    let remote = format!("sock.example:{}", peer.address().port());
    let sockhop = home.start(Sockhop::forward(&["--remote", &remote, "--no-probing"]));
    let forwarder = sockhop.wait_listening(SOON);
    // One that comes meanwhile is told in the end.
    home.netns.inside(|| {
        let client = connect(forwarder).unwrap();
        (&client).write_all(&[5, 1, 0]).unwrap();
        assert!(matches!(
            observe(&client, PATIENCE),
            Observed::Bytes(_) | Observed::Eof
        ));
    });
    let said = sockhop.wait_log("warn: remote sock.example", PATIENCE);
    assert!(
        said.contains("timed out") || said.contains("did not answer"),
        "{said}"
    );
    home.answer(Answers::Right);
    sockhop.wait_log("is 127.0.0.1", PATIENCE);
    home.netns.inside(|| {
        let stream = socks5_connect(forwarder, echo.address()).unwrap();
        assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    });
}

/// The control socket answers within the limit too, and meanwhile.
#[test]
#[ignore = "needs root for network namespaces"]
fn connect_to_a_name_that_nobody_knows_ends_with_the_reason() {
    let home = Home::new(Answers::Silent);
    let sockhop = home.start(Sockhop::forward(&["--manual", "--no-probing"]));
    sockhop.status();
    let started = Instant::now();
    thread::scope(|scope| {
        let asked = scope.spawn(|| sockhop.command(&["connect", "sock.example"]));
        while !asked.is_finished() {
            let before = Instant::now();
            sockhop.status();
            assert!(
                before.elapsed() < Duration::from_secs(2),
                "it did not answer"
            );
            thread::sleep(Duration::from_millis(50));
        }
        let output = asked.join().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("cannot look up sock.example"), "{said}");
    });
    assert!(started.elapsed() < PATIENCE);
}

#[test]
#[ignore = "needs root for network namespaces"]
fn dial_ends_at_its_own_limit() {
    let home = Home::new(Answers::Silent);
    for arguments in [
        &[
            "dial",
            "--timeout",
            "1s",
            "socks5://sock.example",
            "192.0.2.1:80",
        ][..],
        &["dial", "--timeout", "1s", "sock.example:80"],
    ] {
        let started = Instant::now();
        let launch = Launch::new(arguments)
            .inside(&home.netns)
            .first(home.mount());
        let output = launch
            .env("ALL_PROXY", "socks5://127.0.0.1:9")
            .env("NO_PROXY", "sock.example")
            .run(PATIENCE);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains("sock.example") && said.contains("timed out"),
            "{said}"
        );
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }
}
