//! Clients of the forwarder: curl, alone and in a stream.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{program, wait_until};
use crate::overlay::{OVERLAY, Overlay};

/// What a client got: what the web server said, or what curl complained of.
pub(crate) type Got = Result<String, String>;

/// One client, and what came of it.
#[derive(Debug)]
pub(crate) struct Client {
    began: Instant,
    ended: Instant,
    pub(crate) got: Got,
    /// It was told that its stream is established.
    is_established: bool,
}

impl Client {
    pub(crate) fn took(&self) -> Duration {
        self.ended - self.began
    }
}

impl Overlay {
    /// One client, which is at the port at once.
    pub(crate) fn curl(&self) -> Client {
        let began = Instant::now();
        let output = Command::new(program("ip"))
            .args(["netns", "exec", self.home.netns.name()])
            .arg(program("curl"))
            .args(["-sSv", "--max-time", "20", "-x"])
            .arg(format!("socks5h://{}", self.listener))
            .arg("http://127.0.0.1:8080/")
            .output()
            .expect("start curl");
        let ended = Instant::now();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_established = said.contains("SOCKS5 request granted");
        let got = match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(said),
        };
        Client {
            began,
            ended,
            got,
            is_established,
        }
    }

    /// Clients, one after another on [`AT_ONCE`] threads, until something has happened and long after.
    pub(crate) fn clients_while(&self, event: impl FnOnce()) -> Served {
        let clients = Mutex::new(Vec::new());
        let is_over = AtomicBool::new(false);
        let (begin, end) = thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let client = self.curl();
                        clients.lock().expect("not poisoned").push(client);
                    }
                });
            }
            let come = |since: Option<Instant>, count| {
                let is_counted = |client: &&Client| since.is_none_or(|since| client.began >= since);
                wait_until(OVERLAY, || {
                    let clients = clients.lock().expect("not poisoned");
                    clients.iter().filter(is_counted).count() >= count
                });
            };
            come(None, BEFORE);
            let begin = Instant::now();
            event();
            let end = Instant::now();
            come(Some(end), AFTER);
            is_over.store(true, Ordering::Relaxed);
            (begin, end)
        });
        let mut served = Served::default();
        for client in clients.into_inner().expect("not poisoned") {
            let stage = match () {
                () if client.ended <= begin => &mut served.before,
                () if client.began >= end => &mut served.after,
                () => &mut served.meanwhile,
            };
            stage.push(client);
        }
        let (before, after) = (served.before.len(), served.after.len());
        assert!(
            before >= BEFORE && after >= AFTER,
            "only {before} and {after} clients"
        );
        served
    }
}

/// The clients around an event.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) before: Vec<Client>,
    /// Those that it happened to.
    pub(crate) meanwhile: Vec<Client>,
    pub(crate) after: Vec<Client>,
}

impl Served {
    /// One proxy went at the event, and another one took its place: no client failed that it could have kept.
    ///
    /// A stream that was established through a proxy that goes is lost with it: the proxy has connected to the destination, which
    /// has seen bytes of this client, and nobody else can go on where it ended. All others are saved, wherever they were.
    #[track_caller]
    pub(crate) fn assert_none_failed(&self, used: &str, other: &str) {
        assert_all(&self.before, used);
        assert_all(&self.after, other);
        for client in &self.meanwhile {
            match &client.got {
                Ok(name) => assert!(name == used || name == other, "{client:?}"),
                Err(said) => assert!(client.is_established, "{:?}: {said}", client.took()),
            }
        }
    }
}

/// All were served by this node.
#[track_caller]
pub(crate) fn assert_all(clients: &[Client], name: &str) {
    for client in clients {
        match &client.got {
            Ok(got) => assert_eq!(got, name, "after {:?}", client.took()),
            Err(said) => panic!("after {:?}: {said}", client.took()),
        }
    }
}

/// What the slowest of them took.
pub(crate) fn slowest(clients: &[Client]) -> Duration {
    clients.iter().map(Client::took).max().unwrap_or_default()
}

/// What half of them took at most.
pub(crate) fn usual(clients: &[Client]) -> Duration {
    let mut took: Vec<_> = clients.iter().map(Client::took).collect();
    took.sort();
    took.get(took.len() / 2).copied().unwrap_or_default()
}

/// Enough for some to be somewhere between their first byte and their last at any time.
const AT_ONCE: usize = 4;

/// So many come before the event, and after it.
const BEFORE: usize = 40;
const AFTER: usize = 100;
