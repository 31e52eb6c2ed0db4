//! Which relays are small, and what a small turn does.

use super::*;
use crate::engine::Effort;

impl Rig {
    /// A turn as the reactor runs it.
    fn small_turn(&mut self, ready: Ready) -> Turn {
        let mut cx = TurnContext::small(self.now, ready, &mut self.buffer);
        self.relay.turn(&mut cx)
    }

    fn later(&mut self, passed: Duration) {
        self.now += passed;
    }
}

fn there_and_back(rig: &mut Rig, client: &TcpStream, target: &TcpStream, message: &[u8]) {
    for (mut from, mut to) in [(client, target), (target, client)] {
        from.write_all(message).unwrap();
        // Not the rig's own wait, which goes on after what came first.
        let mut interests = Interests::default();
        rig.relay.interests(&mut interests);
        rig.ready = poll_interests(&interests, SOON);
        rig.turn(Duration::ZERO);
        to.read_exact(&mut vec![0; message.len()]).unwrap();
    }
}

#[test]
fn exchange_of_small_messages_stays_small_however_long_it_goes_on() {
    let (mut rig, client, target) = Rig::new(&Pipes::new(1));
    for _ in 0..2000 {
        there_and_back(&mut rig, &client, &target, &[7; 64]);
        rig.later(Duration::from_micros(60));
        assert_eq!(rig.relay.effort(), Effort::Small);
    }
}

#[test]
fn many_bytes_in_a_short_time_are_a_stream_until_it_pauses() {
    let (mut rig, client, target) = Rig::new(&Pipes::new(1));
    let mut messages = 0;
    while rig.relay.effort() == Effort::Small && messages < 1000 {
        there_and_back(&mut rig, &client, &target, &[7; 4096]);
        rig.later(Duration::from_micros(100));
        messages += 1;
    }
    assert!((8..50).contains(&messages), "{messages}");
    rig.later(Duration::from_millis(100));
    there_and_back(&mut rig, &client, &target, b"later");
    assert_eq!(rig.relay.effort(), Effort::Small);
}

#[test]
fn small_turn_leaves_the_rest_of_many_bytes_to_a_worker() {
    let (mut rig, mut client, mut target) = Rig::new(&Pipes::new(1));
    // No more than systems take for a reader that is not there yet.
    let bytes = pattern(87, 100_000);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let received = receive(&target);
    assert_eq!(rig.small_turn(Ready::ALL), Turn::Again);
    let moved = rig.relay.moved().up;
    assert!((16_384..=65_536).contains(&moved), "{moved}");
    assert!(rig.buffer.len() <= 16_384, "{}", rig.buffer.len());
    target.write_all(b"x").unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.finish(), Ended::Closed);
    drop(rig);
    assert!(received.join().unwrap() == bytes);
    client.read_exact(&mut [0]).unwrap();
}

/// Who knows that the end is there reads it behind the last bytes, and need not be told again.
#[test]
fn end_that_is_known_is_read_with_the_last_bytes() {
    let (mut rig, mut client, target) = Rig::new(&Pipes::new(1));
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.small_turn(Ready::NONE);
    let mut interests = Interests::default();
    rig.relay.interests(&mut interests);
    assert!(poll_interests(&interests, SOON).any());
    let mut ready = Ready::NONE;
    ready.add_ended(0);
    rig.small_turn(ready);
    assert_eq!(rig.relay.moved().up, 10);
    let mut heard = Vec::new();
    (&target).read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"last words");
}
