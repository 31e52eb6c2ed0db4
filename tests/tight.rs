//! Little memory, few threads: what fits is served, the others wait, and nobody's bytes are lost. It never ends by itself.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{
    Chunks, End, Launch, Pattern, SOON, Sockhop, Target, connect, exchange, need_root,
    socks5_connect, socks5_request, wait_until,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

/// Less than that of which 2,000 clients would be sure of their share of the program's own memory.
const LITTLE_OF_OUR_OWN: u64 = 8 << 20;

/// The same with what the kernel takes for their sockets: what a small router may have.
const LITTLE_IN_ALL: u64 = 24 << 20;

/// More than fit.
const MANY: usize = 2_000;

/// For all of them to have had their turn, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn active(status: &Value) -> usize {
    usize::try_from(status["connections"]["active"].as_u64().expect("a number")).expect("it fits")
}

/// Clients and targets take three descriptors a connection here. How many clients that allows.
fn raise_own_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("raise the limit of descriptors");
    let descriptors = limit.maximum.unwrap_or(1 << 20);
    MANY.min(usize::try_from(descriptors).expect("it fits") / 4)
}

/// Holds back those that were served until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// Clients that came all at once.
struct Crowd {
    served: Arc<AtomicUsize>,
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Crowd {
    /// `count` clients, of which each connects, is served with `serve`, and stays until the gate is opened.
    fn come(
        count: usize,
        serve: impl Fn(usize) -> io::Result<TcpStream> + Send + Sync + 'static,
    ) -> Self {
        let (served, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Gate::default()));
        let serve = Arc::new(serve);
        let threads = (0..count).map(|number| {
            let (served, gate) = (Arc::clone(&served), Arc::clone(&gate));
            let serve = Arc::clone(&serve);
            let client = move || {
                let with_name = |error| format!("client {number}: {error}");
                let stream = serve(number).map_err(with_name)?;
                served.fetch_add(1, Ordering::Relaxed);
                gate.pass();
                stream.shutdown(Shutdown::Write).map_err(with_name)?;
                match (&stream).read(&mut [0]).map_err(with_name)? {
                    0 => Ok(()),
                    _ => Err(format!("client {number}: more than it sent")),
                }
            };
            let thread = thread::Builder::new().stack_size(128 * 1024);
            thread.spawn(client).expect("a thread of the test")
        });
        let threads = threads.collect();
        Self {
            served,
            gate,
            threads,
        }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Lets those that were served go, so that the others come in.
    #[track_caller]
    fn leave(self) {
        self.gate.open();
        let ends = self
            .threads
            .into_iter()
            .map(|client| client.join().unwrap());
        let failed: Vec<_> = ends.filter_map(Result::err).collect();
        assert!(
            failed.is_empty(),
            "{} failed: {:?}",
            failed.len(),
            failed.first()
        );
    }
}

/// A connection with patience.
fn queue(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A message there and back.
fn converse(stream: &TcpStream, pattern: &Pattern, number: usize) -> io::Result<()> {
    let mut sent = vec![0; 3_000];
    pattern.fill(number as u64 * 997, &mut sent);
    match exchange(stream, &sent)? == sent {
        true => Ok(()),
        false => Err(io::Error::other("other bytes came back")),
    }
}

/// Through a forwarder that passes everything on.
fn by_forwarder(address: SocketAddr, pattern: Pattern) -> impl Fn(usize) -> io::Result<TcpStream> {
    move |number| {
        let stream = queue(address)?;
        converse(&stream, &pattern, number)?;
        Ok(stream)
    }
}

/// By way of a server.
fn by_server(
    address: SocketAddr,
    echo: SocketAddr,
    pattern: Pattern,
) -> impl Fn(usize) -> io::Result<TcpStream> {
    move |number| {
        let stream = queue(address)?;
        let mut request = vec![5, 1, 0, 1, 127, 0, 0, 1];
        request.extend(echo.port().to_be_bytes());
        socks5_request(&stream, &request)?;
        converse(&stream, &pattern, number)?;
        Ok(stream)
    }
}

/// Those that fit are served, the others wait; when they leave, every one of the others is.
#[track_caller]
fn all_have_their_turn(mut sockhop: Sockhop, crowd: Crowd) {
    let count = crowd.threads.len();
    let started = sockhop.id();
    sockhop.wait_log("MiB of memory", SOON);
    let full = sockhop.wait_log("as many as allowed", PATIENCE);
    let most: usize = first_number(&full);
    assert!((100..count).contains(&most), "{full}");
    sockhop.wait_status(|status| active(status) == most, PATIENCE);
    assert!(wait_until(PATIENCE, || crowd.served() == most));
    assert!(sockhop.is_running() && sockhop.id() == started);
    crowd.leave();
    sockhop.wait_status(|status| active(status) == 0, PATIENCE);
    sockhop.wait_log("again", SOON);
    let total = sockhop.status()["connections"]["total"].as_u64().unwrap();
    assert!(total >= count as u64, "{total}");
    assert!(sockhop.is_running());
    let log = sockhop.log();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:?}");
}

/// The first whole number in a log line, behind its time stamp.
fn first_number(line: &str) -> usize {
    line.split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number in {line:?}"))
}

fn forwarder(echo: &Target, first: &str) -> (Sockhop, SocketAddr) {
    let launch = Sockhop::forward(&["--remote", &echo.address().to_string(), "--no-probing"]);
    let sockhop = launch.first(first).start();
    let address = sockhop.wait_listening(SOON);
    (sockhop, address)
}

fn server(first: &str) -> (Sockhop, SocketAddr) {
    let launch = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"]);
    let sockhop = launch.first(first).start();
    let address = sockhop.wait_listening(SOON);
    (sockhop, address)
}

fn little_data() -> String {
    format!("ulimit -d {}", LITTLE_OF_OUR_OWN / 1024)
}

#[test]
fn forwarder_with_little_data_serves_what_fits_and_then_the_others() {
    let count = raise_own_limit();
    let echo = Target::echo();
    let (sockhop, address) = forwarder(&echo, &little_data());
    let crowd = Crowd::come(count, by_forwarder(address, Pattern::new(71)));
    all_have_their_turn(sockhop, crowd);
}

#[test]
fn server_with_little_data_serves_what_fits_and_then_the_others() {
    let count = raise_own_limit();
    let echo = Target::echo();
    let (sockhop, address) = server(&little_data());
    let crowd = Crowd::come(count, by_server(address, echo.address(), Pattern::new(72)));
    all_have_their_turn(sockhop, crowd);
}

/// What is mapped before anything is allocated, the program itself and its libraries, counts too.
#[test]
fn forwarder_with_little_address_space_serves_what_fits_and_then_the_others() {
    let count = raise_own_limit();
    let echo = Target::echo();
    let (roomy, _) = forwarder(&echo, ":");
    let mapped = roomy.program_size();
    drop(roomy);
    let limit = (mapped + LITTLE_OF_OUR_OWN) / 1024;
    let (sockhop, address) = forwarder(&echo, &format!("ulimit -v {limit}"));
    let crowd = Crowd::come(count, by_forwarder(address, Pattern::new(73)));
    all_have_their_turn(sockhop, crowd);
}

/// A control group of this test's own, gone on drop. The program in it must have ended by then.
struct Group {
    path: PathBuf,
}

impl Group {
    /// A new one below the first of these folders that has this file, with the file set.
    #[track_caller]
    fn new(places: [(&str, &str); 2], value: u64) -> Self {
        need_root();
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("sockhop-{}-{number}", std::process::id());
        for (place, file) in places {
            let path = PathBuf::from(place).join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path };
            let file = group.path.join(file);
            // Where there is another file system no files are made by making a folder.
            if file.exists() && fs::write(file, value.to_string()).is_ok() {
                return group;
            }
        }
        panic!("this test needs a control group, and none of {places:?} can be made")
    }

    fn of_memory(bytes: u64) -> Self {
        let second = ("/sys/fs/cgroup", "memory.max");
        let first = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes");
        Self::new([second, first], bytes)
    }

    fn of_threads(count: u64) -> Self {
        let second = ("/sys/fs/cgroup", "pids.max");
        Self::new([second, ("/sys/fs/cgroup/pids", "pids.max")], count)
    }

    /// What a process does to come into it.
    fn join(&self) -> String {
        format!("echo $$ >{}", self.path.join("cgroup.procs").display())
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.path.join(file), value).expect("write to the control group");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was just waited for may be in it for another moment.
        if !wait_until(SOON, || fs::remove_dir(&self.path).is_ok()) {
            eprintln!("{} is left", self.path.display());
        }
    }
}

#[test]
#[ignore = "needs root for a control group"]
fn forwarder_in_a_small_control_group_serves_what_fits_and_then_the_others() {
    let count = raise_own_limit();
    let group = Group::of_memory(LITTLE_IN_ALL);
    let echo = Target::echo();
    let (sockhop, address) = forwarder(&echo, &group.join());
    let crowd = Crowd::come(count, by_forwarder(address, Pattern::new(74)));
    all_have_their_turn(sockhop, crowd);
}

#[test]
#[ignore = "needs root for a control group"]
fn server_in_a_small_control_group_serves_what_fits_and_then_the_others() {
    let count = raise_own_limit();
    let group = Group::of_memory(LITTLE_IN_ALL);
    let echo = Target::echo();
    let (sockhop, address) = server(&group.join());
    let crowd = Crowd::come(count, by_server(address, echo.address(), Pattern::new(75)));
    all_have_their_turn(sockhop, crowd);
}

/// Every reader leaves as much behind as it can, in buffers of the program, and then has it all.
#[track_caller]
fn slow_readers_have_it_all(arguments: &[&str]) {
    let count = raise_own_limit();
    let group = Group::of_memory(LITTLE_IN_ALL);
    let pattern = Pattern::new(76);
    // More than the buffers of both sockets hold at first.
    let length = 3 << 20;
    let source = Target::source(&pattern, length, Chunks::Fixed(256 * 1024));
    let launch = Sockhop::forward(&[
        "--remote",
        &source.address().to_string(),
        "--no-probing",
        "-v",
    ]);
    let mut sockhop = launch.args(arguments).first(group.join()).start();
    let address = sockhop.wait_listening(SOON);
    let clients: Vec<_> = (0..count.min(200))
        .map(|_| {
            let stream = queue(address).unwrap();
            (&stream).write_all(b"G").unwrap();
            stream
        })
        .collect();
    // All are stuck when no byte has moved for a while.
    let mut last = 0;
    let stuck = || {
        let down = sockhop.status()["bytes"]["down"].as_u64().unwrap();
        let same = down == std::mem::replace(&mut last, down);
        thread::sleep(Duration::from_millis(500));
        same && down > 0
    };
    assert!(wait_until(PATIENCE, stuck), "it moves on and on");
    assert_eq!(active(&sockhop.status()), clients.len());
    for (number, client) in clients.iter().enumerate() {
        client.shutdown(Shutdown::Write).unwrap();
        let received = pattern.receive(client, u64::MAX);
        let expected = (length, None, End::Eof);
        let got = (received.bytes, received.wrong_at, received.end);
        assert_eq!(got, expected, "client {number}");
    }
    drop(clients);
    sockhop.wait_status(|status| active(status) == 0, PATIENCE);
    assert!(sockhop.is_running());
}

#[test]
#[ignore = "needs root for a control group"]
fn slow_readers_of_a_forwarder_in_a_small_control_group_have_it_all() {
    slow_readers_have_it_all(&[]);
}

#[test]
#[ignore = "needs root for a control group"]
fn slow_readers_have_it_all_when_everything_is_copied() {
    slow_readers_have_it_all(&["--no-splice"]);
}

/// The reactor, the first worker and another one.
#[test]
#[ignore = "needs root for a control group"]
fn without_more_threads_everybody_is_served_by_those_there_are() {
    let group = Group::of_threads(3);
    let pattern = Pattern::new(77);
    let source = Target::source(&pattern, 64 << 20, Chunks::Fixed(64 * 1024));
    let launch = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"]);
    let sockhop = launch.first(group.join()).start();
    let address = sockhop.wait_listening(SOON);
    let streams: Vec<_> = (0..20)
        .map(|_| socks5_connect(address, source.address()).unwrap())
        .collect();
    let readers = streams.into_iter().map(|stream| {
        let pattern = pattern.clone();
        thread::spawn(move || pattern.receive(&stream, 4 << 20))
    });
    for reader in readers.collect::<Vec<_>>() {
        let received = reader.join().unwrap();
        assert_eq!((received.wrong_at, received.end), (None, End::Enough));
    }
    sockhop.wait_log("cannot start another worker", SOON);
    assert_eq!(sockhop.threads(), 3);

    // Names are looked up by threads of their own, of which there is none.
    let mut name = vec![5, 1, 0, 3, 9];
    name.extend(b"localhost");
    name.extend(source.address().port().to_be_bytes());
    let refused = socks5_request(&connect(address).unwrap(), &name).unwrap_err();
    assert!(refused.to_string().contains("[05, 01, "), "{refused}");
    group.set("pids.max", "max");
    socks5_request(&connect(address).unwrap(), &name).unwrap();
}

#[test]
#[ignore = "needs root for a control group"]
fn without_a_thread_for_the_first_worker_it_says_so_and_ends() {
    let group = Group::of_threads(1);
    let launch = Launch::new(&["serve", "--listen", "127.0.0.1:0", "--control", "none"]);
    let output = launch.first(group.join()).run(SOON);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("cannot start: Resource temporarily unavailable"),
        "{said}"
    );
}
