//! Who serves a connection: the reactor while little is said, a worker once many bytes come.
#![cfg(target_os = "linux")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use common::{SOON, Sockhop, Target, connect, exchange, socks5_connect};

#[track_caller]
fn forwarder(remote: SocketAddr) -> (Sockhop, SocketAddr) {
    let sockhop = Sockhop::forward(&["--remote", &remote.to_string(), "--no-probing"]).start();
    let address = sockhop.wait_listening(SOON);
    (sockhop, address)
}

#[track_caller]
fn talk_in_turns(sockhop: &Sockhop, clients: &[TcpStream]) {
    let threads = sockhop.threads();
    for round in 0..10 {
        for client in clients {
            let said = [round; 100];
            assert_eq!(exchange(client, &said).unwrap(), said);
        }
    }
    // The name look-ups' and the worker that is always there.
    assert!(sockhop.threads() <= threads.min(3), "{threads}");
}

#[test]
fn connections_that_say_little_need_no_more_threads() {
    let echo = Target::echo();
    let (sockhop, address) = forwarder(echo.address());
    let clients: Vec<_> = (0..30).map(|_| connect(address).unwrap()).collect();
    talk_in_turns(&sockhop, &clients);

    let sockhop = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"]).start();
    let address = sockhop.wait_listening(SOON);
    let clients: Vec<_> = (0..30)
        .map(|_| socks5_connect(address, echo.address()).unwrap())
        .collect();
    talk_in_turns(&sockhop, &clients);
}

/// The end comes with the last bytes, and often with all of them.
#[test]
fn answers_that_end_at_once_arrive_whole() {
    let (target, accepted) = Target::manual();
    let (_sockhop, address) = forwarder(target.address());
    let sizes = [1, 100, 5000, 16_383, 16_384, 16_385, 32_768, 40_000, 70_000];
    let answering = thread::spawn(move || {
        for (_, size) in (0..10).flat_map(|round| sizes.map(|size| (round, size))) {
            let mut far = accepted.recv_timeout(SOON).unwrap();
            far.read_exact(&mut [0]).unwrap();
            far.write_all(&vec![b'x'; size]).unwrap();
        }
    });
    for (round, size) in (0..10).flat_map(|round| sizes.map(|size| (round, size))) {
        let mut client = connect(address).unwrap();
        client.write_all(b"?").unwrap();
        if round % 2 == 0 {
            client.shutdown(Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(
            answer.len() == size && answer.iter().all(|byte| *byte == b'x'),
            "{} of {size}",
            answer.len()
        );
    }
    answering.join().unwrap();
}

/// Clock ticks of the process's threads so far, by their names.
#[track_caller]
fn ticks(sockhop: &Sockhop) -> HashMap<String, u64> {
    let mut all = HashMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", sockhop.id())).unwrap() {
        // One that ends meanwhile has done nothing here.
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else {
            continue;
        };
        let (name, rest) = stat.rsplit_once(')').unwrap();
        let (_, name) = name.split_once('(').unwrap();
        let fields = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
        *all.entry(name.to_owned()).or_default() += ticks;
    }
    all
}

#[test]
fn many_bytes_are_a_workers_and_messages_pass_beside_them() {
    let (target, accepted) = Target::manual();
    let (sockhop, address) = forwarder(target.address());
    let reach = || {
        let client = connect(address).unwrap();
        (&client).write_all(b"?").unwrap();
        let mut far = accepted.recv_timeout(SOON).unwrap();
        far.set_read_timeout(Some(SOON)).unwrap();
        far.set_write_timeout(Some(SOON)).unwrap();
        far.read_exact(&mut [0]).unwrap();
        (client, far)
    };
    let (mut bulk, mut source) = reach();
    let (mut small, mut far) = reach();
    let sending = thread::spawn(move || {
        let piece = vec![b'b'; 1 << 20];
        for _ in 0..MANY {
            source.write_all(&piece).unwrap();
        }
    });
    let before = ticks(&sockhop);
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    while received < MANY << 20 {
        let count = bulk.read(&mut buffer).unwrap();
        assert!(count > 0, "{received}");
        received += count;
        small.write_all(b"message").unwrap();
        far.read_exact(&mut [0; 7]).unwrap();
    }
    sending.join().unwrap();
    drop((bulk, small));
    let after = ticks(&sockhop);
    let spent = |name: &str| {
        let of = |ticks: &HashMap<String, u64>| ticks.get(name).copied().unwrap_or_default();
        of(&after) - of(&before)
    };
    let all: u64 = after.values().sum::<u64>() - before.values().sum::<u64>();
    assert!(all >= 10, "too little to compare: {after:?}");
    assert!(spent("worker") * 2 > all, "{before:?} {after:?}");
}

/// MiB.
const MANY: usize = 768;

/// A client that connects and leaves again and again costs a turn or two each time, whoever else is there.
#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let echo = Target::echo();
    let (sockhop, address) = forwarder(echo.address());
    let held: Vec<_> = (0..10).map(|_| connect(address).unwrap()).collect();
    sockhop.wait_status(|status| status["connections"]["parked"] == 10, SOON);
    // That of the question is among them, or closed already.
    let fds = sockhop.fds();
    for round in 0..100 {
        let client = connect(address).unwrap();
        match round % 4 {
            0 => drop(client),
            1 => {
                assert_eq!(exchange(&client, b"one").unwrap(), b"one");
            }
            2 => {
                (&client).write_all(b"and away").unwrap();
            }
            _ => {
                assert_eq!(exchange(&client, b"two").unwrap(), b"two");
                common::reset(client);
            }
        }
    }
    sockhop.wait_status(|status| status["connections"]["active"] == 10, SOON);
    assert!(common::wait_until(SOON, || sockhop.fds() <= fds));
    for client in &held {
        assert_eq!(exchange(client, b"still here").unwrap(), b"still here");
    }
    assert!(echo.wait_open(10, Duration::from_secs(10)));
}
