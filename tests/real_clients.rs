//! Other people's clients through our server, as Debian packages them.
#![cfg(feature = "server")]

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::thread;

use common::{
    Pattern, SOON, Sockhop, Sshd, Target, dead_address, echo_datagrams, program, success,
};
use tempfile::TempDir;

/// A server for this machine's own loopback, with one user or open for everybody.
fn serve(user: Option<&str>) -> (Sockhop, SocketAddr) {
    let server = Sockhop::serve(&["--allow-dest=127.0.0.0/8", "--allow-dest=::1"])
        .args(user.map(|user| format!("--user={user}")))
        .start();
    let address = server.wait_listening(SOON);
    (server, address)
}

const USER: Option<&str> = Some("ada:secret");

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("start")
}

/// That it failed, and that it said so; how differs from program to program.
#[track_caller]
fn assert_fails(command: &mut Command, says: &str) {
    let output = output(command);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!output.status.success(), "{command:?}: {said}");
    assert!(
        said.contains(says),
        "{command:?}: {says:?} is not in {said}"
    );
}

/// Not looking at the environment or the user's files.
fn curl(arguments: &[&str]) -> Command {
    let mut curl = Command::new(program("curl"));
    curl.args(["-q", "-sS", "--noproxy", "", "--max-time", "30"])
        .args(arguments)
        .stdin(Stdio::null());
    curl
}

#[test]
#[ignore = "needs curl"]
fn curl_says_why_it_got_nothing() {
    let (open, address) = serve(None);
    let dead = format!("http://{}/", dead_address());
    for (scheme, url, says) in [
        ("socks5h", dead.as_str(), "127.0.0.1. (5)"),
        ("socks5h", "http://192.168.0.1/", "(2)"),
        ("socks5h", "http://name.invalid/", "(4)"),
        ("socks4a", dead.as_str(), "(91)"),
        ("socks4a", "http://name.invalid/", "(91)"),
    ] {
        assert_fails(
            &mut curl(&["-x", &format!("{scheme}://{address}"), url]),
            says,
        );
    }
    drop(open);

    let (locked, address) = serve(USER);
    for (login, says) in [
        ("ada:guess@", "User was rejected by the SOCKS5 server"),
        ("bob:secret@", "User was rejected by the SOCKS5 server"),
        ("", "No authentication method was acceptable"),
    ] {
        assert_fails(
            &mut curl(&["-x", &format!("socks5h://{login}{address}"), &dead]),
            says,
        );
    }
    assert_fails(
        &mut curl(&["-x", &format!("socks5h://ada:secret@{address}"), &dead]),
        "(5)",
    );
    assert!(!locked.log().join("\n").contains("guess"));
}

#[test]
#[ignore = "needs curl"]
fn curl_fetches_two_hundred_at_once() {
    let pattern = Pattern::new(31);
    let web = Target::http("127.0.0.1:0", &pattern);
    let (server, address) = serve(USER);
    let directory = TempDir::new().expect("temporary directory");
    let proxy = format!("socks5h://ada:secret@{address}");
    let files = directory.path().join("#1");
    let urls = format!("http://{}/[30000-30199]", web.address());
    success(
        curl(&["-x", &proxy, "--parallel", "--parallel-max", "200"])
            .args(["--parallel-immediate", "-o"])
            .arg(files)
            .arg(urls),
    );
    for length in 30_000..30_200 {
        let body = fs::read(directory.path().join(length.to_string())).expect("a file");
        assert_eq!((body.len(), pattern.verify(0, &body)), (length, None));
    }
    let status = server.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert_eq!(status["connections"]["total"], 200);
}

#[test]
#[ignore = "needs curl, proxychains4"]
fn proxychains_goes_through() {
    let pattern = Pattern::new(32);
    let web = Target::http("127.0.0.1:0", &pattern);
    let (_open, open) = serve(None);
    let (_locked, locked) = serve(USER);
    let directory = TempDir::new().expect("temporary directory");
    let configuration = directory.path().join("proxychains.conf");
    let url = format!("http://{}/300000", web.address());
    let fetch = |proxies: &str| {
        fs::write(
            &configuration,
            format!("strict_chain\ntcp_read_time_out 20000\ntcp_connect_time_out 20000\n[ProxyList]\n{proxies}\n"),
        )
        .expect("write the configuration");
        let mut command = Command::new(program("proxychains4"));
        command
            .args(["-q", "-f"])
            .arg(&configuration)
            .arg(program("curl"))
            .args(["-q", "-sS", "--noproxy", "*", "--max-time", "30", &url])
            .stdin(Stdio::null());
        command
    };
    let (open, locked) = (open.port(), locked.port());
    for proxies in [
        format!("socks4 127.0.0.1 {open}"),
        format!("socks5 127.0.0.1 {open}"),
        format!("socks5 127.0.0.1 {locked} ada secret"),
        // Through both, one after the other.
        format!("socks4 127.0.0.1 {open}\nsocks5 127.0.0.1 {locked} ada secret"),
    ] {
        let body = success(&mut fetch(&proxies));
        assert_eq!(
            (body.len(), pattern.verify(0, &body)),
            (300_000, None),
            "{proxies}"
        );
    }
    let wrong = format!("socks5 127.0.0.1 {locked} ada guess");
    assert_fails(&mut fetch(&wrong), "onnect");
    assert_eq!(web.accepted(), 4);
}

/// Debian's Python, for which Debian's modules are, and not another one that may come first in PATH.
fn python(script: &str, arguments: &[&str]) -> Command {
    let mut python = Command::new("/usr/bin/python3");
    python
        .args(["-I", "-c", script])
        .args(arguments)
        .stdin(Stdio::null());
    python
}

/// A target that a test answers itself, to see who connects.
struct Answering {
    target: Target,
    accepted: Receiver<TcpStream>,
}

impl Answering {
    fn start() -> Self {
        let (target, accepted) = Target::manual();
        Self { target, accepted }
    }

    /// Runs a client that must send `hello` and be answered the same, then print the address that the proxy told it; that must
    /// be where its connection came from.
    #[track_caller]
    fn serve(&self, mut client: Command) {
        let shown = format!("{client:?}");
        let client = thread::spawn(move || success(&mut client));
        let stream = match self.accepted.recv_timeout(2 * SOON) {
            Ok(stream) => stream,
            Err(error) => {
                let _ = client.join();
                panic!("{shown}: {error}");
            }
        };
        let from = stream.peer_addr().expect("an address");
        stream.set_read_timeout(Some(SOON)).expect("time limit");
        let mut heard = [0; 5];
        (&stream).read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"hello", "{shown}");
        (&stream).write_all(&heard).expect("write");
        let said = client.join().expect("the client");
        assert_eq!(
            String::from_utf8_lossy(&said).trim(),
            from.to_string(),
            "{shown}"
        );
    }
}

/// Version, whether the proxy resolves, proxy's port, host, port, and maybe user and password.
const PYSOCKS: &str = r#"
import sys, socks
version, rdns, proxy, host, port, *login = sys.argv[1:]
s = socks.socksocket()
s.settimeout(20)
kind = {"4": socks.SOCKS4, "5": socks.SOCKS5}[version]
s.set_proxy(kind, "127.0.0.1", int(proxy), rdns == "there", *login)
try:
    s.connect((host, int(port)))
except socks.ProxyError as error:
    sys.exit(f"{type(error).__name__}: {error}")
s.sendall(b"hello")
assert s.recv(5, 0x100) == b"hello"
# Of SOCKS4's reply it takes port and address apart, but shows the address as a number in bytes.
print("%s:%s" % s.get_proxy_sockname())
"#;

#[test]
#[ignore = "needs PySocks"]
fn pysocks_goes_through() {
    let answering = Answering::start();
    let target = answering.target.address().port().to_string();
    let (open_server, open) = serve(None);
    let (locked_server, locked) = serve(USER);
    let (open, locked) = (open.port().to_string(), locked.port().to_string());
    for version in ["4", "5"] {
        for (rdns, host) in [
            ("here", "127.0.0.1"),
            ("here", "localhost"),
            ("there", "127.0.0.1"),
            ("there", "localhost"),
        ] {
            answering.serve(python(PYSOCKS, &[version, rdns, &open, host, &target]));
        }
    }
    // The user id of SOCKS4, which nobody asks for here.
    answering.serve(python(
        PYSOCKS,
        &["4", "there", &open, "localhost", &target, "ada"],
    ));
    let login = ["ada", "secret"];
    answering.serve(python(
        PYSOCKS,
        &[&["5", "there", &locked, "localhost", &target][..], &login].concat(),
    ));

    let dead = dead_address().port().to_string();
    for (arguments, says) in [
        (
            &["5", "there", &open, "127.0.0.1", &dead][..],
            "0x05: Connection refused",
        ),
        (&["5", "there", &open, "192.168.0.1", "80"], "0x02: "),
        (&["4", "there", &open, "127.0.0.1", &dead], "0x5b: "),
        (
            &["5", "there", &locked, "127.0.0.1", &target, "ada", "guess"],
            "authentication",
        ),
        (
            &["5", "there", &locked, "127.0.0.1", &target],
            "authentication",
        ),
        (&["4", "there", &locked, "127.0.0.1", &target], "0x5b: "),
    ] {
        assert_fails(&mut python(PYSOCKS, arguments), says);
    }
    for server in [open_server, locked_server] {
        let log = server.log().join("\n");
        assert!(!log.contains("guess") && !log.contains("secret"), "{log}");
    }
}

/// Whether the proxy resolves, proxy's port, port of the target on loopback, and maybe user and password.
const PYSOCKS_DATAGRAMS: &str = r#"
import sys, socket, socks
rdns, proxy, host, port, *login = sys.argv[1:]
s = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
s.set_proxy(socks.SOCKS5, "127.0.0.1", int(proxy), rdns == "there", *login)
try:
    for size in (1, 100, 1400, 8000):
        sent = bytes([size % 251]) * size
        s.sendto(sent, (host, int(port)))
        heard, who = s.recvfrom(9000)
        assert heard == sent, size
        assert who == ("127.0.0.1", int(port)), who
except socks.ProxyError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("done")
"#;

#[test]
#[ignore = "needs PySocks"]
fn datagrams_of_pysocks_go_through() {
    let port = echo_datagrams().port().to_string();
    let (_open, open) = serve(None);
    let (_locked, locked) = serve(USER);
    let (open, locked) = (open.port().to_string(), locked.port().to_string());
    for arguments in [
        &["here", &open, "127.0.0.1", &port][..],
        &["here", &open, "localhost", &port],
        // It asks for an association from the name "0" then.
        &["there", &open, "127.0.0.1", &port],
        &["there", &open, "localhost", &port],
        &["here", &locked, "127.0.0.1", &port, "ada", "secret"],
    ] {
        let said = success(&mut python(PYSOCKS_DATAGRAMS, arguments));
        assert_eq!(said, b"done\n", "{arguments:?}");
    }
    assert_fails(
        &mut python(
            PYSOCKS_DATAGRAMS,
            &["here", &locked, "127.0.0.1", &port, "ada", "guess"],
        ),
        "authentication",
    );
}

/// As for PySocks.
const PYTHON_SOCKS: &str = r#"
import sys
from python_socks import ProxyError, ProxyType
from python_socks.sync import Proxy
version, rdns, proxy, host, port, *login = sys.argv[1:]
kind = {"4": ProxyType.SOCKS4, "5": ProxyType.SOCKS5}[version]
login = dict(zip(("username", "password"), login))
proxy = Proxy.create(kind, "127.0.0.1", int(proxy), rdns=rdns == "there", **login)
try:
    s = proxy.connect(host, int(port), timeout=20)
except ProxyError as error:
    sys.exit(f"{error.error_code}: {error}")
s.sendall(b"hello")
assert s.recv(5, 0x100) == b"hello"
"#;

#[test]
#[ignore = "needs python-socks"]
fn python_socks_goes_through() {
    let echo = Target::echo();
    let target = echo.address().port().to_string();
    let (_open, open) = serve(None);
    let (_locked, locked) = serve(USER);
    let (open, locked) = (open.port().to_string(), locked.port().to_string());
    for version in ["4", "5"] {
        for rdns in ["here", "there"] {
            for host in ["127.0.0.1", "localhost"] {
                success(&mut python(
                    PYTHON_SOCKS,
                    &[version, rdns, &open, host, &target],
                ));
            }
        }
    }
    success(&mut python(
        PYTHON_SOCKS,
        &["5", "there", &locked, "localhost", &target, "ada", "secret"],
    ));
    success(&mut python(
        PYTHON_SOCKS,
        &["4", "there", &open, "localhost", &target, "ada"],
    ));
    assert_eq!(echo.accepted(), 10);
    let dead = dead_address().port().to_string();
    for (arguments, says) in [
        (&["5", "there", &open, "127.0.0.1", &dead][..], "5: "),
        (&["5", "there", &open, "192.168.0.1", "80"], "2: "),
        (&["4", "there", &open, "127.0.0.1", &dead], "91: "),
        (
            &["5", "there", &locked, "127.0.0.1", &target, "ada", "guess"],
            "uthentication",
        ),
        (
            &["5", "there", &locked, "127.0.0.1", &target],
            "uthentication",
        ),
    ] {
        assert_fails(&mut python(PYTHON_SOCKS, arguments), says);
    }
}

/// With its stdin from a file, which it passes on, and back comes the same.
#[track_caller]
fn assert_echoes(command: &mut Command) {
    let directory = TempDir::new().expect("temporary directory");
    let (pattern, path) = (Pattern::new(33), directory.path().join("input"));
    let mut sent = vec![0; 200_000];
    pattern.fill(0, &mut sent);
    fs::write(&path, &sent).expect("write");
    let heard = success(command.stdin(File::open(&path).expect("open")));
    assert!(
        heard == sent,
        "{command:?}: {} bytes came back",
        heard.len()
    );
}

#[test]
#[ignore = "needs netcat-openbsd"]
fn netcat_goes_through() {
    let echo = Target::echo();
    let (port, dead) = (
        echo.address().port().to_string(),
        dead_address().port().to_string(),
    );
    let (_server, address) = serve(None);
    let (_locked, locked) = serve(USER);
    let nc = |proxy: SocketAddr, version: &str, host: &str, port: &str| {
        let mut nc = Command::new(program("nc.openbsd"));
        // -N: passes on the end of stdin. -w: seconds without anything.
        nc.args([
            "-N",
            "-w",
            "20",
            "-X",
            version,
            "-x",
            &proxy.to_string(),
            host,
            port,
        ]);
        nc
    };
    for (version, host) in [("4", "127.0.0.1"), ("5", "127.0.0.1"), ("5", "localhost")] {
        assert_echoes(&mut nc(address, version, host, &port));
        assert_fails(&mut nc(address, version, host, &dead), "failed");
    }
    assert_fails(&mut nc(locked, "5", "127.0.0.1", &port), "uthentication");
    assert_fails(&mut nc(locked, "4", "127.0.0.1", &port), "failed");
}

/// That what it is told comes back. It may wait for ever at the end of its stdin, also without a proxy: nobody lets it come to that.
#[track_caller]
fn assert_answered(mut command: Command) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let (mut input, mut output) = (child.stdin.take(), child.stdout.take());
    let mut heard = [0; 5];
    let sent = input.as_mut().expect("piped").write_all(b"hello");
    // It has a time limit of its own.
    let read = output.as_mut().expect("piped").read_exact(&mut heard);
    let _ = child.kill();
    let _ = child.wait();
    assert!(
        sent.is_ok() && read.is_ok(),
        "{command:?}: {sent:?} {read:?}"
    );
    assert_eq!(&heard, b"hello");
}

#[test]
#[ignore = "needs ncat"]
fn ncat_goes_through_with_user_and_password() {
    let echo = Target::echo();
    let (port, dead) = (
        echo.address().port().to_string(),
        dead_address().port().to_string(),
    );
    let (_open, open) = serve(None);
    let (_locked, locked) = serve(USER);
    let ncat = |proxy: SocketAddr, kind: &str, login: Option<&str>, host: &str, port: &str| {
        let mut ncat = Command::new(program("ncat"));
        ncat.args([
            "-w",
            "20",
            "-i",
            "20",
            "--proxy",
            &proxy.to_string(),
            "--proxy-type",
            kind,
        ]);
        if let Some(login) = login {
            ncat.args(["--proxy-auth", login]);
        }
        ncat.args([host, port]);
        ncat
    };
    for (proxy, kind, login) in [
        (open, "socks4", None),
        (open, "socks5", None),
        (locked, "socks5", USER),
    ] {
        assert_answered(ncat(proxy, kind, login, "127.0.0.1", &port));
        assert_fails(&mut ncat(proxy, kind, login, "127.0.0.1", &dead), "Ncat: ");
    }
    assert_answered(ncat(locked, "socks5", USER, "localhost", &port));
    assert_fails(
        &mut ncat(locked, "socks5", Some("ada:guess"), "127.0.0.1", &port),
        "uthentication",
    );
}

#[test]
#[ignore = "needs openssh-client, openssh-server"]
fn ssh_goes_through_dial_and_our_server() {
    let sshd = Sshd::start();
    let (_open, open) = serve(None);
    let (_locked, locked) = serve(USER);
    let ssh = |proxy: &str, command: &str| {
        let dial = concat!(env!("CARGO_BIN_EXE_sockhop"), " dial");
        let mut ssh = Command::new(program("ssh"));
        ssh.args(sshd.options())
            .args(["-o", &format!("ProxyCommand={dial} {proxy} %h:%p")])
            .args(["127.0.0.1", command])
            .stdin(Stdio::null());
        ssh
    };
    for proxy in [
        format!("socks5://{open}"),
        format!("socks5h://ada:secret@{locked}"),
        format!("socks4://{open} socks5://ada:secret@{locked}"),
    ] {
        assert_eq!(
            success(&mut ssh(&proxy, "echo $((6 * 7))")),
            b"42\n",
            "{proxy}"
        );
    }
    // Not on the command line, where others can read it.
    let secret = format!("socks5h://ada:secret@{locked}");
    assert_eq!(
        success(
            ssh("", "echo there")
                .env("ALL_PROXY", secret)
                .env_remove("all_proxy")
        ),
        b"there\n"
    );

    let directory = TempDir::new().expect("temporary directory");
    let (pattern, path) = (Pattern::new(34), directory.path().join("input"));
    let mut sent = vec![0; 10_000_000];
    pattern.fill(0, &mut sent);
    fs::write(&path, &sent).expect("write");
    // Up and down at the same time.
    let proxy = format!("socks5://{open}");
    let heard = success(ssh(&proxy, "cat").stdin(File::open(&path).expect("open")));
    assert!(heard == sent, "{} bytes came back", heard.len());

    let wrong = format!("socks5h://ada:guess@{locked}");
    assert_fails(&mut ssh(&wrong, "echo there"), "rejected user and password");
}

/// Programs that know SOCKS 4 and 5 only, then the converter, then SOCKS 6 with a password to our server.
#[cfg(feature = "socks6")]
#[test]
#[ignore = "needs curl, PySocks, openssh-client, openssh-server"]
fn programs_of_socks5_go_through_the_converter() {
    let (server, locked) = serve(USER);
    let remote = format!("socks6://ada:secret@{locked}");
    let converter = Sockhop::forward(&["--remote", &remote]).start();
    let address = converter.wait_listening(SOON);
    let proxy = address.port().to_string();

    let pattern = Pattern::new(35);
    let web = Target::http("127.0.0.1:0", &pattern);
    let url = format!("http://localhost:{}/1000000", web.address().port());
    for scheme in ["socks4a", "socks5h"] {
        let body = success(&mut curl(&["-x", &format!("{scheme}://{address}"), &url]));
        assert_eq!((body.len(), pattern.verify(0, &body)), (1_000_000, None));
    }

    let answering = Answering::start();
    let target = answering.target.address().port().to_string();
    for version in ["4", "5"] {
        for (rdns, host) in [("here", "127.0.0.1"), ("there", "localhost")] {
            answering.serve(python(PYSOCKS, &[version, rdns, &proxy, host, &target]));
        }
    }
    let dead = dead_address().port().to_string();
    for (version, says) in [("4", "0x5b: "), ("5", "0x05: Connection refused")] {
        assert_fails(
            &mut python(PYSOCKS, &[version, "there", &proxy, "127.0.0.1", &dead]),
            says,
        );
    }
    let port = echo_datagrams().port().to_string();
    for (rdns, host) in [("here", "127.0.0.1"), ("there", "localhost")] {
        let said = success(&mut python(PYSOCKS_DATAGRAMS, &[rdns, &proxy, host, &port]));
        assert_eq!(said, b"done\n", "{rdns}");
    }

    let sshd = Sshd::start();
    let dial = concat!(env!("CARGO_BIN_EXE_sockhop"), " dial");
    let mut ssh = Command::new(program("ssh"));
    ssh.args(sshd.options())
        .args([
            "-o",
            &format!("ProxyCommand={dial} socks5h://{address} %h:%p"),
        ])
        .args(["127.0.0.1", "cat"]);
    let directory = TempDir::new().expect("temporary directory");
    let path = directory.path().join("input");
    let mut sent = vec![0; 10_000_000];
    pattern.fill(0, &mut sent);
    fs::write(&path, &sent).expect("write");
    let heard = success(ssh.stdin(File::open(&path).expect("open")));
    assert!(heard == sent, "{} bytes came back", heard.len());

    // One session for all of them.
    assert_eq!(server.status()["sessions"], 1, "{}", server.status());
}
