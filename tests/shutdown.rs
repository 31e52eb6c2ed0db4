//! The end: told to, the program ends at once, whatever it is doing.

mod common;

use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Chunks, Observed, Pattern, Peer, SOON, Signal, Sockhop, Target, expect_end, socks5_connect,
};

#[test]
fn told_to_end_under_load_it_ends_at_once_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let pattern = Pattern::new(1);
        let source = Target::source(&pattern, u64::MAX, Chunks::Fixed(64 * 1024));
        let peer = Peer::valid(Duration::ZERO);
        let mut sockhop = Sockhop::forward(&["--remote", &peer.address().to_string()])
            .arg("--workers")
            .arg("4")
            .start();
        let address = sockhop.wait_listening(SOON);
        let control = sockhop.control_path().to_owned();
        let streams: Vec<_> = (0..20)
            .map(|_| socks5_connect(address, source.address()).unwrap())
            .collect();
        let readers: Vec<_> = streams
            .into_iter()
            .map(|stream| thread::spawn(move || expect_end(&stream, SOON)))
            .collect();
        sockhop.wait_status(
            |status| status["bytes"]["down"].as_u64() > Some(10 << 20),
            SOON,
        );
        let told = Instant::now();
        sockhop.signal(signal);
        let status = sockhop.wait_exit(SOON);
        assert_eq!(status.code(), Some(0));
        assert!(
            told.elapsed() < Duration::from_secs(2),
            "{:?}",
            told.elapsed()
        );
        for reader in readers {
            assert_ne!(reader.join().unwrap(), Observed::Silent);
        }
        assert!(!control.exists(), "the control socket is still there");
        assert!(
            std::net::TcpListener::bind(address).is_ok(),
            "the port is still taken"
        );
    }
}

/// A client that has long gone when its answer comes raises SIGPIPE where that is not ignored.
#[test]
fn clients_that_vanish_do_not_end_it() {
    let pattern = Pattern::new(2);
    let source = Target::source(&pattern, 4 << 20, Chunks::Fixed(64 * 1024));
    let peer = Peer::valid(Duration::ZERO);
    let mut sockhop = Sockhop::forward(&["--remote", &peer.address().to_string()]).start();
    let address = sockhop.wait_listening(SOON);
    for _ in 0..50 {
        let stream = socks5_connect(address, source.address()).unwrap();
        stream.shutdown(Shutdown::Read).unwrap();
    }
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(sockhop.is_running());
    assert!(socks5_connect(address, source.address()).is_ok());
}
