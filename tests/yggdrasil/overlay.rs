//! The network: three namespaces with Yggdrasil, two proxies, and a forwarder that was told of nobody.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{BIND_RUN, Netns, SOON, Sockhop, program, success, wait_until};

/// For an overlay to come up, or back: its daemons look for each other every few seconds.
pub(crate) const OVERLAY: Duration = Duration::from_secs(60);

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
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) netns: Netns,
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
        let path = self.settings();
        fs::write(&path, settings.to_string()).expect("settings");
        let address = success(
            Command::new(program("yggdrasil"))
                .arg("-useconffile")
                .arg(&path)
                .arg("-address"),
        );
        self.address = String::from_utf8(address)
            .expect("an address")
            .trim()
            .to_owned();
        self.rejoin();
    }

    /// Starts Yggdrasil as it was.
    pub(crate) fn rejoin(&mut self) {
        let path = self.settings();
        self.yggdrasil = Some(Running::start(
            &self.netns,
            self.run.path(),
            "yggdrasil",
            &["-useconffile", path.to_str().expect("UTF-8")],
        ));
        let socket = self.socket();
        assert!(
            wait_until(SOON, || socket.exists()),
            "no socket: {}",
            fs::read_to_string(self.run.path().join("yggdrasil.log")).unwrap_or_default()
        );
    }

    /// Kills Yggdrasil, and with it the way to all others.
    pub(crate) fn leave(&mut self) {
        self.yggdrasil = None;
        // It would be taken for that of the next one.
        let _ = fs::remove_file(self.socket());
    }

    fn settings(&self) -> PathBuf {
        self.run.path().join("yggdrasil.conf")
    }

    /// Where Yggdrasil is asked.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.path().join("yggdrasil/yggdrasil.sock")
    }

    /// Where its proxy is.
    pub(crate) fn proxy(&self) -> SocketAddr {
        format!("[{}]:1080", self.address)
            .parse()
            .expect("an address")
    }

    /// Connections of its proxy that are being made, to its web server.
    pub(crate) fn connecting(&self) -> usize {
        let listed = success(
            Command::new(program("ip"))
                .args(["netns", "exec", self.netns.name()])
                .arg(program("ss"))
                .args(["-Htn", "state", "syn-sent", "dport = 8080"]),
        );
        String::from_utf8_lossy(&listed).lines().count()
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

/// The three of them, the servers, and the forwarder.
pub(crate) struct Overlay {
    pub(crate) home: Node,
    pub(crate) near: Node,
    pub(crate) far: Node,
    microsocks: Mutex<Running>,
    serve: Sockhop,
    pub(crate) sockhop: Sockhop,
    pub(crate) listener: SocketAddr,
}

impl Overlay {
    /// With these arguments for the forwarder.
    pub(crate) fn new(arguments: &[&str]) -> Self {
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
        let sockhop = forwarder(&home, arguments);
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
    pub(crate) fn used_and_other(&self) -> (&Node, &Node) {
        let remote = self.sockhop.status()["remote"].take();
        let (near, far) = (&self.near, &self.far);
        match remote.as_str().expect("a remote") {
            used if used == near.proxy().to_string() => (near, far),
            used if used == far.proxy().to_string() => (far, near),
            other => panic!("{other} is neither"),
        }
    }

    /// Kills the proxy of a node.
    pub(crate) fn kill_proxy(&self, node: &Node) {
        match node.name {
            "near" => self.microsocks.lock().expect("not poisoned").kill(),
            _ => self.serve.signal(Signal::KILL),
        }
    }

    /// Ends the forwarder with a signal.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.sockhop.signal(signal);
        self.sockhop.wait_exit(SOON);
    }

    /// Starts the forwarder again, which has ended.
    pub(crate) fn start_again(&mut self, arguments: &[&str]) {
        self.sockhop = forwarder(&self.home, arguments);
        self.listener = self.sockhop.wait_listening(SOON);
    }
}

fn forwarder(home: &Node, arguments: &[&str]) -> Sockhop {
    Sockhop::forward(&["--probe-interval", "2s"])
        .args(arguments)
        .inside(&home.netns)
        .run_directory(home.run.path())
        .start()
}
