//! Thousands of connections that mostly do nothing: two descriptors and little memory each, and no thread.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{Observed, SOON, Sockhop, connect, observe};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A target whose connections the test holds itself, however many connections there are: [`common::Target`] keeps
/// a second descriptor for each, which would be half of what this test program may open.
struct Far {
    address: SocketAddr,
    taken: Receiver<TcpStream>,
}

impl Far {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, taken) = channel();
        thread::spawn(move || {
            // Ends with the test program, or when nobody takes the connections any more.
            while let Ok((stream, _)) = listener.accept() {
                stream.set_read_timeout(Some(SOON)).unwrap();
                if sender.send(stream).is_err() {
                    break;
                }
            }
        });
        Self { address, taken }
    }

    /// Opens a connection through a forwarder; both of its ends.
    #[track_caller]
    fn reach(&self, forwarder: SocketAddr) -> (TcpStream, TcpStream) {
        let client = connect(forwarder).unwrap();
        (&client).write_all(b"G").unwrap();
        let far = self
            .taken
            .recv_timeout(SOON)
            .expect("the target is reached");
        (&far).read_exact(&mut [0]).unwrap();
        (client, far)
    }
}

#[track_caller]
fn mostly_idle(count: usize) {
    // Two descriptors a connection here and two in the program.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let far = Far::new();
    let remote = far.address.to_string();
    let sockhop =
        Sockhop::forward(&["--remote", &remote, "--no-probing", "--workers", "16"]).start();
    let address = sockhop.wait_listening(SOON);
    let before = (sockhop.fds(), sockhop.threads(), sockhop.private_memory());
    let pairs: Vec<_> = (0..count).map(|_| far.reach(address)).collect();
    sockhop.wait_status(|status| status["connections"]["parked"] == count, SOON);

    let fds = sockhop.fds() - before.0;
    let threads = sockhop.threads() - before.1;
    let memory = sockhop.private_memory().saturating_sub(before.2);
    println!(
        "{count} connections: {fds} descriptors, {threads} more threads, {} bytes of private memory each",
        memory / count as u64
    );
    assert!(fds <= 2 * count + 4, "{fds} descriptors");
    assert!(threads <= 16, "{threads} more threads");
    // The design's limit is 1 KiB in an optimised build; this one only notices a buffer that was kept.
    assert!(memory < 4096 * count as u64, "{memory} bytes");

    // Nothing to do is nothing done.
    let ticks = sockhop.cpu_ticks();
    assert_eq!(
        observe(&pairs[0].0, Duration::from_millis(500)),
        Observed::Silent
    );
    assert!(sockhop.cpu_ticks() - ticks <= 5);

    for (client, far) in &pairs {
        (&*far).write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        (&*client).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        (&*client).write_all(b"there").unwrap();
        (&*far).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"there");
    }
    drop(pairs);
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
}

#[test]
fn two_thousand_idle_connections_cost_little_and_all_answer() {
    mostly_idle(2_000);
}

#[test]
#[ignore = "needs 20,000 descriptors"]
fn five_thousand_idle_connections_cost_little_and_all_answer() {
    mostly_idle(5_000);
}
