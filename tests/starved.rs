//! One worker for many bulk streams: each stays exact, ends as it should, and nobody is forgotten.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};

use common::{
    Chunks, End, Observed, Pattern, Received, SOON, Sockhop, Target, connect, exchange, observe,
    reset, wait_until,
};

/// A forwarder with one worker, and its remote, whose connections the test holds itself.
struct Setup {
    sockhop: Sockhop,
    address: SocketAddr,
    accepted: Receiver<TcpStream>,
    _target: Target,
}

impl Setup {
    #[track_caller]
    fn new(arguments: &[&str]) -> Self {
        let (target, accepted) = Target::manual();
        let remote = target.address().to_string();
        let launch = Sockhop::forward(&["--remote", &remote, "--no-probing", "--workers", "1"]);
        let launch = arguments
            .iter()
            .fold(launch, |launch, argument| launch.arg(argument));
        let sockhop = launch.start();
        let address = sockhop.wait_listening(SOON);
        Self {
            sockhop,
            address,
            accepted,
            _target: target,
        }
    }

    /// Both ends of a new connection.
    #[track_caller]
    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = connect(self.address).unwrap();
        (&client).write_all(b"G").unwrap();
        let mut far = self.accepted.recv_timeout(SOON).unwrap();
        far.set_read_timeout(Some(SOON)).unwrap();
        far.set_write_timeout(Some(SOON)).unwrap();
        far.read_exact(&mut [0]).unwrap();
        (client, far)
    }
}

/// A stream that never pauses: what keeps the worker busy.
struct Busy {
    ends: [TcpStream; 2],
    received: Arc<AtomicU64>,
    threads: [JoinHandle<()>; 2],
}

impl Busy {
    fn new((client, far): (TcpStream, TcpStream)) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let ends = [client.try_clone().unwrap(), far.try_clone().unwrap()];
        let sending = thread::spawn(move || {
            let bytes = vec![0; 256 * 1024];
            // Until the test ends it.
            while (&far).write_all(&bytes).is_ok() {}
        });
        let count = Arc::clone(&received);
        let receiving = thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(read @ 1..) = (&client).read(&mut buffer) {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        Self {
            ends,
            received,
            threads: [sending, receiving],
        }
    }

    fn end(self) {
        for end in &self.ends {
            // One may have ended it by itself already.
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// There and, once the end has come, back.
#[track_caller]
fn there_and_back((client, far): (TcpStream, TcpStream)) {
    let (up, down) = (Pattern::new(21), Pattern::new(22));
    let length = 3_000_001;
    thread::scope(|scope| {
        scope.spawn(|| {
            let chunks = Chunks::Random {
                seed: 23,
                most: 200_000,
            };
            up.send(&client, length, chunks).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            assert_eq!(up.receive(&far, u64::MAX), Received::whole(length));
            down.send(&far, length, Chunks::Fixed(70_000)).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(down.receive(&client, u64::MAX), Received::whole(length));
    });
}

#[track_caller]
fn reset_in_the_middle((client, far): (TcpStream, TcpStream), client_first: bool) {
    let (first, second) = if client_first {
        (client, far)
    } else {
        (far, client)
    };
    let pattern = Pattern::new(24);
    thread::scope(|scope| {
        let sending = || {
            pattern
                .send(&first, 2_000_000, Chunks::Fixed(100_000))
                .unwrap()
        };
        scope.spawn(sending);
        let received = pattern.receive(&second, 2_000_000);
        assert_eq!((received.wrong_at, received.end), (None, End::Enough));
    });
    reset(first);
    assert_eq!(observe(&second, SOON), Observed::Reset);
}

fn everything_goes_on_beside_busy_streams(arguments: &[&str]) {
    let setup = Setup::new(arguments);
    let busy: Vec<_> = (0..6).map(|_| Busy::new(setup.pair())).collect();
    let received = || -> Vec<u64> {
        let each = busy
            .iter()
            .map(|busy| busy.received.load(Ordering::Relaxed));
        each.collect()
    };
    let all_go_on = || {
        let before = received();
        wait_until(SOON, || {
            let all = received().into_iter().zip(&before);
            all.into_iter()
                .all(|(now, before)| now > *before + 1_000_000)
        })
    };
    assert!(all_go_on(), "{:?}", received());

    // One that does not read, with all that the buffers on the way hold before it.
    let (stalled, far) = setup.pair();
    far.set_nonblocking(true).unwrap();
    let bytes = vec![0; 1 << 20];
    let mut stuffed = 0;
    while let Ok(count) = (&far).write(&bytes) {
        stuffed += count;
    }
    assert!(stuffed > 0);

    let (client, far) = setup.pair();
    let echo = thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..50 {
            (&far).read_exact(&mut buffer).unwrap();
            (&far).write_all(&buffer).unwrap();
        }
    });
    for round in 0..50 {
        assert_eq!(exchange(&client, &[round; 64]).unwrap(), [round; 64]);
    }
    echo.join().unwrap();

    there_and_back(setup.pair());
    for client_first in [true, false] {
        reset_in_the_middle(setup.pair(), client_first);
    }
    assert!(all_go_on(), "{:?}", received());

    drop((client, stalled));
    busy.into_iter().for_each(Busy::end);
    let status = setup
        .sockhop
        .wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert_eq!(status["connections"]["total"], 11);
}

#[test]
fn everything_goes_on_beside_busy_streams_splicing() {
    everything_goes_on_beside_busy_streams(&[]);
}

#[test]
fn everything_goes_on_beside_busy_streams_copying() {
    everything_goes_on_beside_busy_streams(&["--no-splice"]);
}
