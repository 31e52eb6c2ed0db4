//! `--metrics`: what Prometheus gets, and what others get who ask there.
#![cfg(feature = "metrics")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use common::{
    Behaviour, Launch, Peer, SOON, Sockhop, Target, connect, dead_address, exchange, program,
    socks5_connect, wait_until,
};

const ZERO: Duration = Duration::ZERO;

fn start(launch: Launch) -> (Sockhop, SocketAddr) {
    let sockhop = launch.arg("--metrics").arg("0").start();
    let line = sockhop.wait_log("metrics on ", SOON);
    let (_, address) = line.rsplit_once(' ').unwrap();
    (sockhop, address.parse().unwrap())
}

/// With these peers.
fn forward(peers: &[SocketAddr]) -> (Sockhop, SocketAddr) {
    let peers = peers
        .iter()
        .flat_map(|peer| ["--peer".to_owned(), peer.to_string()]);
    start(Sockhop::forward(&["--probe-interval", "60s"]).args(peers))
}

/// Sends it, and reads until the end; head and body of the answer.
fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let stream = connect(address).unwrap();
    (&stream).write_all(request.as_bytes()).unwrap();
    answer(stream)
}

fn answer(mut stream: impl io::Read) -> (String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

fn status(address: SocketAddr, request: &str) -> String {
    let (head, _) = ask(address, request);
    head.lines().next().unwrap().to_owned()
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

fn scrape(address: SocketAddr) -> Metrics {
    let (head, body) = ask(address, GET);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.contains(&length), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    Metrics::parse(&body)
}

/// A scrape, once it says so.
#[track_caller]
fn scrape_until(address: SocketAddr, condition: impl Fn(&Metrics) -> bool) -> Metrics {
    let mut last = scrape(address);
    let seen = wait_until(SOON, || {
        last = scrape(address);
        condition(&last)
    });
    assert!(seen, "{last:#?}");
    last
}

/// Samples by name and labels.
#[derive(Debug)]
struct Metrics(BTreeMap<(String, Labels), f64>);

type Labels = BTreeMap<String, String>;

impl Metrics {
    /// The text format as it is described, and nothing else: a family has its HELP and TYPE, all of its samples follow, no
    /// series comes twice, counters end in `_total`.
    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'));
        let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let help = help.strip_prefix("# HELP ").expect(help);
            let (name, text) = help.split_once(' ').expect(help);
            assert!(!text.is_empty() && families.insert(name), "{help}");
            let kind = lines.next().expect("a type");
            let kind = kind.strip_prefix(&format!("# TYPE {name} ")).expect(kind);
            assert!(["counter", "gauge"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (labels, value) = sample(line.strip_prefix(name).expect(line));
                let value: f64 = value.parse().expect(line);
                assert!(kind == "gauge" || value >= 0.0, "{line}");
                let before = samples.insert((name.to_owned(), labels), value);
                assert_eq!(before, None, "{line}");
            }
        }
        Self(samples)
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        self.0.get(&(name.to_owned(), labels)).copied()
    }

    fn value(&self, name: &str) -> f64 {
        self.get(name, &[])
            .unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }

    fn of(&self, name: &str, remote: SocketAddr) -> Option<f64> {
        self.get(name, &[("remote", &remote.to_string())])
    }
}

/// Labels and value of a line, behind the name.
fn sample(line: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    let Some(mut rest) = line.strip_prefix('{') else {
        return (labels, line.strip_prefix(' ').expect("a space"));
    };
    loop {
        let (name, behind) = rest.split_once("=\"").expect(line);
        let mut value = String::new();
        let mut chars = behind.chars();
        loop {
            match chars.next().expect(line) {
                '"' => break,
                '\\' => value.push(match chars.next().expect(line) {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("\\{other} in {line}"),
                }),
                other => value.push(other),
            }
        }
        assert_eq!(labels.insert(name.to_owned(), value), None, "{line}");
        rest = chars.as_str();
        if let Some(value) = rest.strip_prefix("} ") {
            return (labels, value);
        }
        rest = rest.strip_prefix(',').expect(line);
    }
}

#[test]
fn what_happens_is_counted() {
    let (near, far, http) = (
        Peer::valid(ZERO),
        Peer::valid(Duration::from_millis(100)),
        Peer::http(),
    );
    let (dead, echo) = (dead_address(), Target::echo());
    let (sockhop, address) = forward(&[near.address(), far.address(), http.address(), dead]);
    sockhop.wait_peer(far.address(), "valid", SOON);
    let listener = sockhop.wait_listening(SOON);
    let remote: SocketAddr = sockhop.status()["remote"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let client = socks5_connect(listener, echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");

    let metrics = scrape_until(address, |metrics| {
        let down = metrics.get("sockhop_relayed_bytes_total", &[("direction", "down")]);
        metrics.value("sockhop_connections_parked") == 1.0 && down == Some(17.0)
    });
    for (name, value) in [
        ("sockhop_connected", 1.0),
        ("sockhop_listeners", 1.0),
        ("sockhop_connections", 1.0),
        ("sockhop_connections_accepted_total", 1.0),
        ("sockhop_probing", 1.0),
        ("sockhop_link_down", 0.0),
    ] {
        assert_eq!(metrics.value(name), value, "{name}");
    }
    let labelled = |name, label, value| metrics.get(name, &[(label, value)]);
    assert_eq!(
        labelled("sockhop_relayed_bytes_total", "direction", "up"),
        Some(18.0)
    );
    for (state, count) in [("valid", 2.0), ("not-a-proxy", 1.0), ("not-listening", 1.0)] {
        assert_eq!(labelled("sockhop_peers", "state", state), Some(count));
        assert!(labelled("sockhop_probes_total", "result", state) >= Some(count));
    }
    assert_eq!(
        metrics.get("sockhop_source_up", &[("source", "flag"), ("number", "2")]),
        Some(1.0)
    );

    for (name, value) in [
        ("sockhop_remote_selected", 1.0),
        ("sockhop_remote_streams", 1.0),
        ("sockhop_remote_picks_total", 1.0),
        ("sockhop_remote_failures_total", 0.0),
        ("sockhop_remote_failures", 0.0),
    ] {
        assert_eq!(metrics.of(name, remote), Some(value), "{name}");
    }
    let other = if remote == near.address() {
        &far
    } else {
        &near
    };
    assert_eq!(
        metrics.of("sockhop_remote_selected", other.address()),
        Some(0.0)
    );
    assert_eq!(
        metrics.of("sockhop_remote_picks_total", other.address()),
        Some(0.0)
    );
    let latency = metrics.of("sockhop_remote_latency_seconds", far.address());
    assert!((0.1..5.0).contains(&latency.unwrap()), "{latency:?}");
    let name = remote.to_string();
    for (direction, count) in [("up", 18.0), ("down", 17.0)] {
        let labels = [("remote", name.as_str()), ("direction", direction)];
        let bytes = metrics.get("sockhop_remote_relayed_bytes_total", &labels);
        assert_eq!(bytes, Some(count));
    }
    let labels = [("remote", name.as_str()), ("state", "valid")];
    assert_eq!(metrics.get("sockhop_remote_state", &labels), Some(1.0));
    assert_eq!(
        metrics.of("sockhop_remote_selected", dead),
        None,
        "cannot be used"
    );

    // The process.
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!((metrics.value("process_start_time_seconds") - now).abs() < 600.0);
    let open = metrics.value("process_open_fds");
    assert!((5.0..100.0).contains(&open), "{open}");
    assert!(metrics.value("process_max_fds") >= open);
    assert!(metrics.value("process_resident_memory_bytes") > 500_000.0);
}

#[test]
fn failures_for_clients_are_counted_by_remote() {
    let (dead, peer, echo) = (dead_address(), Peer::valid(ZERO), Target::echo());
    let remotes = [dead, peer.address()].map(|address| address.to_string());
    let arguments = [
        "--no-probing",
        "--remote",
        &remotes[0],
        "--remote",
        &remotes[1],
    ];
    let (sockhop, address) = start(Sockhop::forward(&arguments));
    let listener = sockhop.wait_listening(SOON);
    drop(socks5_connect(listener, echo.address()).unwrap());
    let metrics = scrape_until(address, |metrics| {
        metrics.of("sockhop_remote_streams", peer.address()) == Some(0.0)
    });
    assert_eq!(metrics.of("sockhop_remote_failures_total", dead), Some(1.0));
    assert_eq!(
        metrics.of("sockhop_remote_picks_total", peer.address()),
        Some(1.0)
    );
}

/// No secret of a command that names peers is told, nor is a list that has no end.
#[test]
fn sources_are_told_by_their_kind_and_remotes_are_bounded() {
    // One peer that has many addresses.
    let peer = Peer::at("0.0.0.0:0", Behaviour::Valid(ZERO));
    let port = peer.address().port();
    let list: String = (1..=200).map(|n| format!("127.0.1.{n}:{port}\n")).collect();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("peers");
    std::fs::write(&path, list).unwrap();
    let launch = Sockhop::forward(&["--manual", "--peers", "exec:true token=geheim"])
        .arg("--peers")
        .arg(format!("file:{}", path.display()));
    let (sockhop, address) = start(launch);
    sockhop.wait_status(|status| status["candidates"]["valid"] == 200, SOON);
    let (_, body) = ask(address, GET);
    assert!(!body.contains("geheim") && body.contains("source=\"exec\""));
    let metrics = Metrics::parse(&body);
    let names = metrics.0.keys().map(|(name, _)| name);
    let listed = names.filter(|name| *name == "sockhop_remote_selected");
    assert_eq!(listed.count(), 80);
    assert!(body.len() < 100_000, "{}", body.len());
}

#[test]
fn others_are_told_what_is_wrong() {
    let (_sockhop, address) = forward(&[dead_address()]);
    for (request, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "HTTP/1.1 404 Not Found",
        ),
        (
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 405 Method Not Allowed",
        ),
        ("GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("\x05\x01\x00", "HTTP/1.1 400 Bad Request"),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "HTTP/1.1 505 HTTP Version Not Supported",
        ),
    ] {
        assert_eq!(status(address, request), expected, "{request:?}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(9000));
    assert_eq!(
        status(address, &long),
        "HTTP/1.1 431 Request Header Fields Too Large"
    );
    let (head, body) = ask(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    assert!(length.unwrap().parse::<usize>().unwrap() > 1000);
    assert_eq!(body, "");
}

#[test]
fn a_request_may_come_byte_by_byte_and_end_before_its_answer() {
    let (_sockhop, address) = forward(&[dead_address()]);
    let stream = connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in GET.bytes() {
        (&stream).write_all(&[byte]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let (head, _) = answer(stream);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
}

/// Those who say nothing, or do not read, hold neither a worker nor the next scraper.
#[test]
fn slow_scrapers_keep_nobody_waiting() {
    let peer = Peer::valid(ZERO);
    let launch = Sockhop::forward(&["--workers", "1", "--peer", &peer.address().to_string()]);
    let (sockhop, address) = start(launch);
    let echo = Target::echo();
    scrape(address);
    let before = sockhop.fds();
    let silent: Vec<TcpStream> = (0..20).map(|_| connect(address).unwrap()).collect();
    for stream in silent.iter().step_by(2) {
        let mut stream = stream;
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
    }
    let client = socks5_connect(sockhop.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    scrape(address);
    // Eight of them, and what belongs to the client.
    let descriptors = sockhop.fds();
    assert!(descriptors <= before + 14, "{before}, then {descriptors}");
    // They are told, and closed, when their time is up.
    let begin = Instant::now();
    let last = silent.last().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut text = Vec::new();
    // Those that made room were closed without a word.
    let _ = { last }.read_to_end(&mut text);
    assert!(begin.elapsed() < Duration::from_secs(25));
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.is_empty() || text.starts_with("HTTP/1.1 408 "),
        "{text}"
    );
}

#[test]
fn they_can_be_on_a_unix_socket() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metrics");
    let sockhop = Sockhop::forward(&["--manual"])
        .arg("--metrics")
        .arg(format!("unix:{}", path.display()))
        .start();
    sockhop.wait_log("metrics on unix:", SOON);
    let stream = UnixStream::connect(&path).unwrap();
    (&stream).write_all(GET.as_bytes()).unwrap();
    let (_, body) = answer(stream);
    assert_eq!(Metrics::parse(&body).value("sockhop_connected"), 0.0);
}

#[test]
fn a_port_that_is_taken_is_an_error_at_the_start() {
    let taken = Target::echo();
    let output = Launch::new(&["forward", "--manual", "--control", "none", "--metrics"])
        .arg(taken.address().to_string())
        .run(SOON);
    // `--manual` without a control socket is refused first, so this one gets a remote.
    assert_eq!(output.status.code(), Some(2));
    let output = Launch::new(&["forward", "--remote", "127.0.0.1:1", "--control", "none"])
        .args(["--listen", "127.0.0.1:0", "--metrics"])
        .arg(taken.address().to_string())
        .run(SOON);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let named = format!("cannot listen on {}", taken.address());
    assert!(stderr.contains(&named), "{stderr}");
}

#[test]
#[ignore = "needs promtool, of Debian's package prometheus"]
fn promtool_finds_nothing_to_complain_about() {
    let (peer, echo) = (Peer::valid(ZERO), Target::echo());
    let (sockhop, address) = forward(&[peer.address(), dead_address()]);
    let client = socks5_connect(sockhop.wait_listening(SOON), echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    let (_, body) = ask(address, GET);
    let mut promtool = Command::new(program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(body.as_bytes()).unwrap();
    drop(input);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{body}"
    );
}
