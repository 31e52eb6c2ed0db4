//! A real Yggdrasil network, on which `sockhop forward` finds its proxies without being told of any.
//!
//! Three namespaces: `home`, where the forwarder and its clients are, and two with a SOCKS server and a web server each. All have
//! a Yggdrasil of their own with its usual socket in a `/run` of their own. Nothing leaves them.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{BIND_RUN, Netns, SOON, Sockhop, program, success, wait_until};

/// For an overlay to come up, or back: its daemons look for each other every few seconds.
const OVERLAY: Duration = Duration::from_secs(60);

/// A program in a namespace, with its `/run`; killed on drop.
struct Running {
    child: Child,
    name: String,
}

impl Running {
    fn start(netns: &Netns, run: &Path, name: &str, arguments: &[&str]) -> Self {
        let log = File::create(run.join(format!("{name}.log"))).expect("log file");
        let child = Command::new(program("ip"))
            .args(["netns", "exec", netns.name(), "sh", "-c", BIND_RUN])
            .arg(run)
            .arg(program(name))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("descriptor"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            child,
            name: name.to_owned(),
        }
    }

    fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{} has ended", self.name);
        }
    }
}

/// A machine with Yggdrasil.
struct Node {
    name: &'static str,
    netns: Netns,
    run: TempDir,
    address: String,
    yggdrasil: Option<Running>,
}

impl Node {
    fn new(name: &'static str) -> Self {
        let run = TempDir::new().expect("temporary directory");
        // Where Debian's package wants its socket.
        fs::create_dir(run.path().join("yggdrasil")).expect("directory");
        Self {
            name,
            netns: Netns::new(),
            run,
            address: String::new(),
            yggdrasil: None,
        }
    }

    /// Starts Yggdrasil: listening on some addresses of cables, connecting to others.
    fn join(&mut self, listen: &[&str], peers: &[&str]) {
        let fresh = success(Command::new(program("yggdrasil")).args(["-genconf", "-json"]));
        let mut settings: Value = serde_json::from_slice(&fresh).expect("settings");
        settings["Listen"] = json!(listen);
        settings["Peers"] = json!(peers);
        settings["MulticastInterfaces"] = json!([]);
        let path = self.run.path().join("yggdrasil.conf");
        fs::write(&path, settings.to_string()).expect("settings");
        let path = path.to_str().expect("UTF-8");
        let address =
            success(Command::new(program("yggdrasil")).args(["-useconffile", path, "-address"]));
        self.address = String::from_utf8(address)
            .expect("an address")
            .trim()
            .to_owned();
        self.yggdrasil = Some(Running::start(
            &self.netns,
            self.run.path(),
            "yggdrasil",
            &["-useconffile", path],
        ));
        let socket = self.run.path().join("yggdrasil/yggdrasil.sock");
        assert!(
            wait_until(SOON, || socket.exists()),
            "no socket: {}",
            fs::read_to_string(self.run.path().join("yggdrasil.log")).unwrap_or_default()
        );
    }

    /// Where its proxy is.
    fn proxy(&self) -> SocketAddr {
        format!("[{}]:1080", self.address)
            .parse()
            .expect("an address")
    }

    /// A web server on its loopback that says who it is.
    fn web(&self) {
        let name = self.name;
        let listener = self
            .netns
            .inside(|| TcpListener::bind("127.0.0.1:8080").expect("the port"));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut lines = BufReader::new(&stream).lines();
                    while lines
                        .next()
                        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                    {
                    }
                    let length = name.len();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}"
                    );
                    let _ = (&stream).write_all(answer.as_bytes());
                    // Until the other side has it all.
                    let _ = (&stream).read(&mut [0]);
                });
            }
        });
    }
}

/// The three of them, the servers, and the forwarder that was told of nobody.
struct Overlay {
    home: Node,
    near: Node,
    far: Node,
    microsocks: Mutex<Running>,
    serve: Sockhop,
    sockhop: Sockhop,
    listener: SocketAddr,
}

impl Overlay {
    fn new() -> Self {
        let (mut home, mut near, mut far) =
            (Node::new("home"), Node::new("near"), Node::new("far"));
        home.netns
            .cable(&near.netns, &["10.77.1.1/24"], &["10.77.1.2/24"]);
        home.netns
            .cable(&far.netns, &["10.77.2.1/24"], &["10.77.2.2/24"]);
        near.join(&["tcp://10.77.1.2:9651"], &[]);
        far.join(&["tcp://10.77.2.2:9651"], &[]);
        near.web();
        far.web();
        let microsocks = Running::start(
            &near.netns,
            near.run.path(),
            "microsocks",
            &["-i", "::", "-p", "1080"],
        );
        let serve = Sockhop::serve(&["--listen", "[::]:1080"])
            .args(["--allow", "200::/7", "--allow-dest", "127.0.0.1"])
            .inside(&far.netns)
            .start();
        serve.wait_listening(SOON);

        // Before its Yggdrasil: on a router nobody knows what comes up first.
        let sockhop = Sockhop::forward(&["--probe-interval", "2s", "--connect-timeout", "1s"])
            .inside(&home.netns)
            .run_directory(home.run.path())
            .start();
        sockhop.wait_log(
            "no overlay daemon (Mycelium, Yggdrasil, Tailscale) answers",
            SOON,
        );
        let reason = sockhop.status()["reason"].take();
        assert!(
            reason
                .as_str()
                .is_some_and(|text| text.contains("no overlay daemon")),
            "{reason}"
        );
        home.join(&[], &["tcp://10.77.1.2:9651", "tcp://10.77.2.2:9651"]);

        for proxy in [near.proxy(), far.proxy()] {
            let known = sockhop.wait_peer(proxy, "valid", OVERLAY);
            assert_eq!(known["sources"], json!(["yggdrasil"]));
        }
        let listener = sockhop.wait_listening(SOON);
        Self {
            home,
            near,
            far,
            microsocks: Mutex::new(microsocks),
            serve,
            sockhop,
            listener,
        }
    }

    /// The node whose proxy clients are forwarded to, and the other one.
    fn used_and_other(&self) -> (&Node, &Node) {
        let remote = self.sockhop.status()["remote"].take();
        let (near, far) = (&self.near, &self.far);
        match remote.as_str().expect("a remote") {
            used if used == near.proxy().to_string() => (near, far),
            used if used == far.proxy().to_string() => (far, near),
            other => panic!("{other} is neither"),
        }
    }

    /// One client: what the web server said, or curl's exit status and message.
    fn curl(&self) -> Got {
        let output = Command::new(program("ip"))
            .args(["netns", "exec", self.home.netns.name()])
            .arg(program("curl"))
            .args(["-sS", "--max-time", "20", "-x"])
            .arg(format!("socks5h://{}", self.listener))
            .arg("http://127.0.0.1:8080/")
            .output()
            .expect("start curl");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let code = output.status.code().unwrap_or(-1);
        Err((code, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Clients, one after another on four threads, until something has happened and long after. It happens between two clients of
    /// each thread: what is on its way through a proxy that dies is lost with it.
    fn clients_while(&self, event: impl FnOnce()) -> Served {
        let served = Mutex::new(Served::default());
        let (gate, after, ended) = (
            RwLock::new(()),
            AtomicBool::new(false),
            AtomicBool::new(false),
        );
        let client = || {
            let _open = gate.read().expect("not poisoned");
            let started = Instant::now();
            let result = self.curl();
            let mut served = served.lock().expect("not poisoned");
            if after.load(Ordering::Relaxed) {
                served.slowest_after = served.slowest_after.max(started.elapsed());
                served.after.push(result);
            } else {
                served.before.push(result);
            }
        };
        let counts = || {
            let served = served.lock().expect("not poisoned");
            (served.before.len(), served.after.len())
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        client();
                    }
                });
            }
            wait_until(OVERLAY, || counts().0 >= 40);
            {
                let _closed = gate.write().expect("not poisoned");
                event();
                after.store(true, Ordering::Relaxed);
            }
            wait_until(OVERLAY, || counts().1 >= 100);
            ended.store(true, Ordering::Relaxed);
        });
        let (before, after) = counts();
        assert!(
            before >= 40 && after >= 100,
            "only {before} and {after} clients"
        );
        served.into_inner().expect("not poisoned")
    }
}

/// What clients got: what the web server said, or curl's exit status and message.
type Got = Result<String, (i32, String)>;

/// The clients before an event and those after it.
#[derive(Default)]
struct Served {
    before: Vec<Got>,
    after: Vec<Got>,
    /// How long the slowest of those after it took.
    slowest_after: Duration,
}

#[track_caller]
fn assert_all(got: &[Got], name: &str) {
    let others: Vec<_> = got
        .iter()
        .filter(|got| got.as_deref() != Ok(name))
        .collect();
    assert!(
        others.is_empty(),
        "{} of {}: {others:?}",
        others.len(),
        got.len()
    );
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn with_nobody_named_a_proxy_is_found_and_used() {
    let overlay = Overlay::new();
    let (used, _) = overlay.used_and_other();
    assert_eq!(overlay.curl(), Ok(used.name.to_owned()));
    let status = overlay.sockhop.status();
    let state = |name: &str| {
        let sources = status["sources"].as_array().expect("a list");
        let found = sources.iter().find(|source| source["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {status}"))["error"].clone()
    };
    assert_eq!(state("yggdrasil"), Value::Null);
    assert_eq!(state("mycelium"), "not found on this machine");
    assert_eq!(state("tailscale"), "not found on this machine");
    // Two nodes are known and nobody else, the own one in particular.
    assert_eq!(overlay.sockhop.proxies().len(), 2, "{status}");
    let home = overlay.home.proxy();
    assert_eq!(overlay.sockhop.proxy(home), None);
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn a_server_that_is_killed_under_a_stream_of_clients_fails_none() {
    let overlay = Overlay::new();
    let (used, other) = overlay.used_and_other();
    let served = overlay.clients_while(|| match used.name {
        "near" => overlay.microsocks.lock().expect("not poisoned").kill(),
        _ => overlay.serve.signal(Signal::KILL),
    });
    assert_all(&served.before, used.name);
    assert_all(&served.after, other.name);
    assert!(
        served.slowest_after < Duration::from_secs(3),
        "{:?}",
        served.slowest_after
    );
    let remote = other.proxy().to_string();
    overlay
        .sockhop
        .wait_status(|status| status["remote"] == remote, SOON);
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn a_server_whose_packets_get_lost_fails_no_client_and_costs_a_bounded_time() {
    let overlay = Overlay::new();
    let (used, other) = overlay.used_and_other();
    let served = overlay.clients_while(|| used.netns.filter(&["input tcp dport 1080 drop"]));
    assert_all(&served.before, used.name);
    assert_all(&served.after, other.name);
    // The time limit for connecting is a second, and the rest is this machine's load.
    assert!(
        served.slowest_after < Duration::from_secs(4),
        "{:?}",
        served.slowest_after
    );
    // It comes back: when the other one goes, it is used again.
    used.netns.filter(&[]);
    overlay.sockhop.wait_peer(used.proxy(), "valid", OVERLAY);
    let served = overlay.clients_while(|| other.netns.filter(&["input tcp dport 1080 drop"]));
    assert_all(&served.after, used.name);
}

#[test]
#[ignore = "needs root for network namespaces, and Yggdrasil"]
fn the_own_link_goes_down_and_comes_back() {
    let overlay = Overlay::new();
    let (used, _) = overlay.used_and_other();
    let links = [&overlay.near, &overlay.far].map(|node| overlay.home.netns.link_to(&node.netns));
    let set = |state: &str| {
        for link in &links {
            overlay.home.netns.ip(&format!("link set {link} {state}"));
        }
    };
    set("down");
    // Until probes have found out that nobody answers any more.
    let lost = |proxy: &Value| proxy["reason"] != "answered 05 00";
    overlay
        .sockhop
        .wait_proxies(|proxies| proxies.iter().all(lost), OVERLAY);
    // The last good choice stays, and the port open.
    let status = overlay.sockhop.status();
    assert_eq!(status["remote"], used.proxy().to_string(), "{status}");
    assert_eq!(
        status["listening"][0],
        overlay.listener.to_string(),
        "{status}"
    );
    set("up");
    let started = Instant::now();
    assert!(
        wait_until(OVERLAY, || overlay.curl().is_ok()),
        "{:?}",
        started.elapsed()
    );
    for node in [&overlay.near, &overlay.far] {
        overlay.sockhop.wait_peer(node.proxy(), "valid", OVERLAY);
    }
    assert!(overlay.curl().is_ok());
}
