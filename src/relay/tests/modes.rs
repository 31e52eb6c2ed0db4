//! What must hold in every mode: by copying, by splicing, with pipes or splice(2) refused at any moment.

use std::time::Instant;

use super::super::pipes::Hardship;
use super::*;

/// A pool of each kind, and what it is called. The system refuses splice(2) at the first call, or later: then it is in the
/// middle of a stream, before or behind the pipe, with bytes in it or without.
fn modes() -> Vec<(String, Pipes)> {
    let mut modes = vec![
        ("copying".to_owned(), Pipes::new(0)),
        ("one pipe for both".to_owned(), Pipes::new(1)),
        ("splicing".to_owned(), Pipes::new(8)),
    ];
    let mut hardships = vec![Hardship::NoPipes, Hardship::SmallPipes];
    hardships.extend([0, 1, 2, 3, 6, 15].map(Hardship::NoSpliceAfter));
    for hardship in hardships {
        let pipes = Pipes::new(8).with_hardship(hardship);
        modes.push((format!("{hardship:?}"), pipes));
    }
    modes
}

/// Whether what should have happened to the pool has, so that no mode is tested that is none.
#[track_caller]
fn suffered(mode: &str, pipes: &Pipes) {
    match pipes.hardship() {
        Hardship::NoSpliceAfter(left) => assert_eq!(left, 0, "{mode}: never refused"),
        Hardship::NoPipes | Hardship::SmallPipes => {
            assert!(
                pipes.lend(Instant::now()).is_none(),
                "{mode}: pipes are lent"
            );
        }
        Hardship::None => {}
    }
}

#[test]
fn bulk_is_exact_and_half_close_keeps_the_other_direction_in_every_mode() {
    for (mode, pipes) in modes() {
        let (mut rig, client, target) = Rig::new(&pipes);
        let (up, down) = (pattern(80, 3_000_001), pattern(81, 2_000_003));
        // Each ends its side when it has sent all; the target begins only when it has seen the client's end.
        let sending = send(&client, &up, 82);
        let answering = {
            let (target, down) = (target.try_clone().unwrap(), down.clone());
            thread::spawn(move || {
                let mut bytes = Vec::new();
                (&target).read_to_end(&mut bytes).unwrap();
                send(&target, &down, 83).join().unwrap();
                bytes
            })
        };
        let received = receive(&client);
        assert_eq!(rig.finish(), Ended::Closed, "{mode}");
        let (moved_up, moved_down) = (up.len() as u64, down.len() as u64);
        let moved = Moved {
            up: moved_up,
            down: moved_down,
        };
        assert_eq!(rig.relay.moved(), moved, "{mode}");
        drop(rig);
        sending.join().unwrap();
        assert!(answering.join().unwrap() == up, "{mode}: upwards");
        assert!(received.join().unwrap() == down, "{mode}: downwards");
        suffered(&mode, &pipes);
    }
}

/// Fills the relay while the target does not read; how much the client could send.
#[track_caller]
fn stall(mode: &str, rig: &mut Rig, client: &TcpStream, up: &[u8]) -> usize {
    let taken = stuff_through(rig, client, up);
    assert!(rig.settle() <= FEW, "{mode}: it spins");
    let held = taken as u64 - rig.relay.moved().up;
    assert!(held > 0, "{mode}: nothing waits");
    taken
}

#[test]
fn stalled_reader_loses_nothing_in_every_mode() {
    let up = pattern(84, 64 << 20);
    for (mode, pipes) in modes() {
        let (mut rig, client, mut target) = Rig::new(&pipes);
        let taken = stall(&mode, &mut rig, &client, &up);
        // The other direction flows.
        target.write_all(b"beside").unwrap();
        rig.until(|relay| relay.moved().down == 6);
        (&client).read_exact(&mut [0; 6]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        target.shutdown(Shutdown::Write).unwrap();
        let received = receive(&target);
        assert_eq!(rig.finish(), Ended::Closed, "{mode}");
        drop(rig);
        let received = received.join().unwrap();
        assert!(
            received == up[..taken],
            "{mode}: {} of {taken}",
            received.len()
        );
        suffered(&mode, &pipes);
    }
}

/// The pipe is full of bytes that the target will take, and then splice(2) is no more.
#[test]
fn splice_refused_while_bytes_wait_in_the_pipe_loses_nothing() {
    let up = pattern(86, 64 << 20);
    let pipes = Pipes::new(8);
    let (mut rig, client, target) = Rig::new(&pipes);
    let taken = stall("splicing", &mut rig, &client, &up);
    assert!(pipes.lent() > 0, "nothing waits in a pipe");
    let pipes = pipes.with_hardship(Hardship::NoSpliceAfter(0));
    client.shutdown(Shutdown::Write).unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    let received = receive(&target);
    assert_eq!(rig.finish(), Ended::Closed);
    drop(rig);
    assert_eq!(pipes.lent(), 0);
    assert!(received.join().unwrap() == up[..taken]);
}

#[test]
fn reset_of_either_side_in_the_middle_of_bulk_is_one_for_the_other_in_every_mode() {
    let up = pattern(85, 64 << 20);
    for (mode, pipes) in modes() {
        for client_resets in [true, false] {
            let (mut rig, client, target) = Rig::new(&pipes);
            stall(&mode, &mut rig, &client, &up);
            if client_resets {
                reset(client);
                let received = thread::spawn(move || {
                    let mut bytes = Vec::new();
                    let error = (&target).read_to_end(&mut bytes).unwrap_err();
                    (bytes, error.kind())
                });
                assert!(matches!(rig.finish(), Ended::Reset(_)), "{mode}");
                drop(rig);
                let (bytes, end) = received.join().unwrap();
                assert_eq!(end, ErrorKind::ConnectionReset, "{mode}");
                assert!(bytes == up[..bytes.len()], "{mode}: not what was sent");
            } else {
                reset(target);
                assert!(matches!(rig.finish(), Ended::Reset(_)), "{mode}");
                drop(rig);
                sees_reset(client, b"");
            }
        }
        suffered(&mode, &pipes);
    }
}
