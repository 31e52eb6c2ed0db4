//! What clients notice of remotes that fail at any point of a handshake: nothing, as long as one is good.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod declined;
mod fake;
mod forwarder;
mod login;
mod reports;

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clients::{a_thousand, expect, request, say, served};
use common::{
    Observed, SOON, Sockhop, Unanswering, connect, dead_address, expect_end, observe, wait_until,
};
use fake::{At, Fake, Fault, Kind, reply};

/// A forwarder to these, in this order.
fn forward(remotes: &[SocketAddr], more: &[&str]) -> (Sockhop, SocketAddr) {
    let sockhop = Sockhop::forward(&["--no-probing"])
        .args(more)
        .args(remotes.iter().map(|remote| format!("--remote={remote}")))
        .start();
    let listening = sockhop.wait_listening(SOON);
    (sockhop, listening)
}

fn says(bytes: &[u8], then: Fault) -> Fault {
    Fault::Says(bytes.to_vec(), Box::new(then))
}

/// All of so many clients are served though they meet these first; and nothing is left of them. Returns how many clients each
/// of them had.
#[track_caller]
fn nobody_notices(bad: &[Fake], count: usize, more: &[&str]) -> Vec<usize> {
    let good = Fake::good();
    let mut remotes: Vec<SocketAddr> = bad.iter().map(Fake::address).collect();
    remotes.push(good.address());
    let (sockhop, listening) = forward(&remotes, more);
    let errors = served(listening, count);
    assert!(
        errors.is_empty(),
        "{} errors, the first: {:?}",
        errors.len(),
        errors.first()
    );
    for fake in bad.iter().chain([&good]) {
        assert!(fake.wait_open(0, SOON), "a connection was left open");
    }
    assert!(good.accepted() >= count);
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    bad.iter().map(Fake::accepted).collect()
}

/// With this remote, all meet the fault.
#[track_caller]
fn all_meet_it(count: usize, at: At, fault: Fault) {
    // A limit that a busy machine keeps, where one is waited for.
    let more = ["--connect-timeout=5s", "--stagger=0"];
    let met = nobody_notices(&[Fake::bad(at, fault)], count, &more);
    assert!(met[0] >= count, "{met:?} of {count} met the fault");
}

/// With this one, those that are not lucky.
#[track_caller]
fn some_meet_it(count: usize, at: At, fault: Fault) {
    let met = nobody_notices(&[Fake::bad(at, fault)], count, &["--connect-timeout=5s"]);
    assert!(met[0] > 0, "nobody met the fault");
}

macro_rules! nobody_notices {
    ($($name:ident: $who:ident, $at:ident, $fault:expr;)*) => {
        $(#[test]
        fn $name() {
            $who(SEVERAL, At::$at, $fault);
        })*
    };
}

/// Clients in flight at the same time.
const SEVERAL: usize = 250;

nobody_notices! {
    reset_at_once: all_meet_it, Accept, Fault::Reset;
    closed_at_once: all_meet_it, Accept, Fault::Close;
    silent_from_the_start: some_meet_it, Accept, Fault::Silence;
    another_protocol: all_meet_it, Accept, says(b"SSH-2.0-OpenSSH_9.2p1\r\n", Fault::Silence);
    reset_after_the_greeting: all_meet_it, Greeting, Fault::Reset;
    closed_after_the_greeting: all_meet_it, Greeting, Fault::Close;
    silent_after_the_greeting: some_meet_it, Greeting, Fault::Silence;
    half_a_method_and_closed: all_meet_it, Greeting, says(&[5], Fault::Close);
    half_a_method_and_silent: some_meet_it, Greeting, says(&[5], Fault::Silence);
    no_acceptable_method: all_meet_it, Greeting, says(&[5, 0xFF], Fault::Close);
    a_method_that_was_not_offered: all_meet_it, Greeting, says(&[5, 2], Fault::Silence);
    reset_between_greeting_and_request: all_meet_it, Greeting, says(&[5, 0], Fault::Reset);
    closed_between_greeting_and_request: all_meet_it, Greeting, says(&[5, 0], Fault::Close);
    reset_after_the_request: all_meet_it, Request, Fault::Reset;
    closed_after_the_request: all_meet_it, Request, Fault::Close;
    half_a_reply_and_reset: all_meet_it, Request, says(&reply(0)[..5], Fault::Reset);
    half_a_reply_and_closed: all_meet_it, Request, says(&reply(0)[..9], Fault::Close);
    half_a_reply_and_silent: all_meet_it, Request, says(&reply(0)[..1], Fault::Silence);
    rubbish_for_a_reply: all_meet_it, Request, says(b"HTTP/1.1 400\r\n\r\n", Fault::Close);
    general_failure: all_meet_it, Request, says(&reply(1), Fault::Close);
    network_unreachable: all_meet_it, Request, says(&reply(3), Fault::Silence);
    host_unreachable_without_an_address: all_meet_it, Request, says(&[5, 4], Fault::Close);
    host_unreachable_with_an_odd_address: all_meet_it, Request, says(&[5, 4, 0, 0, 0, 0, 0, 0], Fault::Close);
    host_unreachable: all_meet_it, Request, says(&reply(4), Fault::Close);
}

#[test]
fn silent_after_the_request() {
    all_meet_it(a_thousand(), At::Request, Fault::Silence);
}

#[test]
fn a_thousand_meet_a_handful_that_fails_in_every_way() {
    let bad = [
        Fake::bad(At::Greeting, Fault::Silence),
        Fake::bad(At::Accept, Fault::Reset),
        Fake::bad(At::Request, says(&reply(1), Fault::Close)),
        Fake::bad(At::Request, Fault::Reset),
        Fake::bad(At::Request, says(&reply(0)[..3], Fault::Close)),
        Fake::bad(At::Request, says(&reply(4), Fault::Close)),
    ];
    let met = nobody_notices(&bad, a_thousand(), &["--connect-timeout=5s"]);
    assert!(met.iter().all(|met| *met > 0), "{met:?}");
}

#[test]
fn remotes_that_are_not_there() {
    let (good, tarpit) = (Fake::good(), Unanswering::new());
    let remotes = [dead_address(), tarpit.address(), good.address()];
    let (_sockhop, listening) = forward(&remotes, &["--connect-timeout=10s"]);
    let started = Instant::now();
    assert_eq!(served(listening, 50), [""; 0]);
    // Not the time-out, but the time that it may hesitate.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

// Whom a client hears.

/// Who has said all, and has to read the reply.
fn ask(listening: SocketAddr, rest: &[u8]) -> TcpStream {
    let client = connect(listening).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    say(&client, &[&request(1), rest].concat()).unwrap();
    client
}

#[test]
fn when_nobody_reaches_it_the_client_hears_what_says_most() {
    for (codes, heard) in [
        (&[1, 4, 3][..], 4),
        (&[4, 1], 4),
        (&[1, 3], 3),
        (&[1, 1], 1),
        // That is an answer, wherever it comes from.
        (&[4, 5, 0], 5),
        (&[2, 0], 2),
        // Three who can't reach it are enough.
        (&[1, 1, 1, 0], 1),
    ] {
        let fakes: Vec<Fake> = codes
            .iter()
            .map(|code| Fake::bad(At::Request, says(&reply(*code), Fault::Close)))
            .collect();
        let remotes: Vec<SocketAddr> = fakes.iter().map(Fake::address).collect();
        let (_sockhop, listening) = forward(&remotes, &[]);
        let client = ask(listening, b"");
        expect(&client, &[5, heard, 0, 1]).expect("the reply");
        assert_eq!(expect_end(&client, SOON), Observed::Eof, "{codes:?}");
    }
}

#[test]
fn when_all_die_the_client_hears_a_general_failure() {
    let fakes = [
        Fake::bad(At::Request, Fault::Reset),
        Fake::bad(At::Request, says(&reply(0)[..7], Fault::Close)),
    ];
    let remotes: Vec<SocketAddr> = fakes.iter().map(Fake::address).collect();
    for remotes in [&remotes[..], &remotes[..1]] {
        let (_sockhop, listening) = forward(remotes, &[]);
        let client = ask(listening, b"");
        expect(&client, &[5, 1, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(observe(&client, SOON), Observed::Eof);
    }
}

/// A slow proxy: this long for the method, this long for the reply.
fn slow(method: u64, replied: u64) -> Fake {
    let [method, replied] = [method, replied].map(Duration::from_millis);
    Fake::new(Kind::Slow(method, replied))
}

#[test]
fn a_slow_remote_is_not_given_up_while_another_is_asked() {
    let (slow, silent) = (slow(500, 0), Fake::bad(At::Accept, Fault::Silence));
    let remotes = [slow.address(), silent.address()];
    let (_sockhop, listening) = forward(&remotes, &["--stagger=50ms"]);
    assert_eq!(served(listening, 5), [""; 0]);
    assert!(silent.wait_open(0, SOON) && silent.accepted() >= 1);
}

#[test]
fn a_remote_that_is_far_away_hesitates_once() {
    let (far, other) = (slow(500, 0), Fake::bad(At::Accept, Fault::Silence));
    let remotes = [far.address(), other.address()];
    let (_sockhop, listening) = forward(&remotes, &["--stagger=300ms"]);
    for _ in 0..3 {
        assert_eq!(served(listening, 1), [""; 0]);
    }
    assert_eq!((far.accepted(), other.accepted()), (3, 1));
}

#[test]
fn a_connect_that_takes_long_is_waited_for() {
    let (slow, silent) = (slow(0, 1200), Fake::bad(At::Request, Fault::Silence));
    let remotes = [slow.address(), silent.address()];
    // Another one is asked meanwhile, which is no better.
    let (_sockhop, listening) = forward(&remotes, &["--connect-timeout=200ms"]);
    assert_eq!(served(listening, 5), [""; 0]);
    assert!(silent.wait_open(0, SOON) && silent.accepted() == 5);
}

#[test]
fn one_after_the_other_without_stagger() {
    let (slow, good) = (slow(600, 0), Fake::good());
    let remotes = [slow.address(), good.address()];
    let (_sockhop, listening) = forward(&remotes, &["--stagger=0"]);
    assert_eq!(served(listening, 5), [""; 0]);
    assert_eq!((slow.accepted(), good.accepted()), (5, 0));
}

#[test]
fn a_loser_is_closed_when_another_one_has_answered() {
    let (slow, good) = (slow(900, 0), Fake::good());
    let remotes = [slow.address(), good.address()];
    let (sockhop, listening) = forward(&remotes, &["--stagger=100ms"]);
    let client = ask(listening, b"");
    expect(&client, &reply(0)).unwrap();
    assert!(slow.wait_open(0, SOON), "the loser was left open");
    assert_eq!((slow.accepted(), good.accepted()), (1, 1));
    assert_eq!(sockhop.status()["connections"]["active"], 1);
    // It heard the greeting only, as far as it got.
    assert!(slow.heard().iter().all(|heard| heard == &[5, 1, 0]));
}

// What no other remote hears.

#[test]
fn an_established_stream_is_never_touched() {
    let (bad, other) = (Fake::bad(At::Stream, Fault::Reset), Fake::good());
    let (_sockhop, listening) = forward(&[bad.address(), other.address()], &[]);
    let client = ask(listening, b"");
    expect(&client, &reply(0)).unwrap();
    say(&client, b"payload").unwrap();
    assert_eq!(observe(&client, SOON), Observed::Reset);
    bad.become_another(Kind::Bad(
        At::Stream,
        says(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0], Fault::Close),
    ));
    let client = ask(listening, b"");
    expect(&client, &reply(0)).unwrap();
    say(&client, b"payload").unwrap();
    expect(&client, &[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(observe(&client, SOON), Observed::Eof);
    assert_eq!((bad.accepted(), other.accepted()), (2, 0));
}

#[test]
fn payload_behind_the_request_gets_to_one_remote_only() {
    let bad = Fake::bad(At::Request, says(&reply(4), Fault::Silence));
    let good = Fake::good();
    let (_sockhop, listening) = forward(&[bad.address(), good.address()], &[]);
    let payload = vec![b'p'; 3000];
    let handshake = [&[5, 1, 0][..], &request(1)].concat();
    for at_once in [true, false] {
        let client = match at_once {
            true => {
                let client = connect(listening).unwrap();
                say(&client, &[&handshake, &payload[..]].concat()).unwrap();
                expect(&client, &[5, 0]).unwrap();
                client
            }
            false => ask(listening, &payload),
        };
        expect(&client, &reply(0)).unwrap();
        expect(&client, &payload).unwrap();
    }
    assert!(wait_until(SOON, || bad.heard().len() == 2));
    assert_eq!(bad.heard(), [&handshake[..], &handshake]);
    let whole = [&handshake, &payload[..]].concat();
    assert!(wait_until(SOON, || good.heard() == [&whole[..], &whole]));
}

#[test]
fn a_password_gets_to_the_remote_that_asked_for_it_and_no_other() {
    let fails = || Fake::bad(At::Greeting, says(&[5, 2], Fault::Silence));
    let login = [&[1, 3][..], b"ada", &[4], b"pass"].concat();
    // In its turn; or without waiting, which is the client's risk, but not with every remote.
    for pipelined in [false, true] {
        let remotes = [
            Fake::bad(At::Greeting, says(&[5, 0xFF], Fault::Silence)),
            Fake::bad(At::Greeting, says(&[5, 0xFF], Fault::Silence)),
            fails(),
            Fake::new(Kind::Login("ada", "pass")),
        ];
        let addresses: Vec<SocketAddr> = remotes.iter().map(Fake::address).collect();
        let (_sockhop, listening) = forward(&addresses, &["--stagger=100ms"]);
        let client = connect(listening).unwrap();
        if pipelined {
            say(&client, &[&[5, 1, 2], &login[..]].concat()).unwrap();
            expect(&client, &[5, 2]).unwrap();
        } else {
            say(&client, &[5, 1, 2]).unwrap();
            expect(&client, &[5, 2]).unwrap();
            say(&client, &login).unwrap();
        }
        // The one that asked is silent now, and the client stays with it.
        assert_eq!(
            observe(&client, Duration::from_millis(400)),
            Observed::Silent
        );
        drop(client);
        assert!(wait_until(SOON, || remotes[2].heard().len() == 1));
        assert_eq!(remotes[0].heard(), [[5, 1, 2]]);
        assert_eq!(remotes[1].heard(), [[5, 1, 2]]);
        assert_eq!(remotes[2].heard(), [[&[5, 1, 2], &login[..]].concat()]);
        assert_eq!(remotes[3].accepted(), 0);
    }
}

#[test]
fn a_client_with_a_login_gets_to_a_remote_that_takes_logins() {
    let (open, closed) = (Fake::good(), Fake::new(Kind::Login("ada", "pass")));
    let (_sockhop, listening) = forward(&[open.address(), closed.address()], &[]);
    let client = connect(listening).unwrap();
    say(&client, &[5, 1, 2]).unwrap();
    expect(&client, &[5, 2]).unwrap();
    say(&client, &[&[1, 3][..], b"ada", &[4], b"pass"].concat()).unwrap();
    expect(&client, &[1, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    expect(&client, &reply(0)).unwrap();
    // Nobody takes its method: that is what it hears.
    let (_sockhop, listening) = forward(&[open.address(), Fake::good().address()], &[]);
    let client = connect(listening).unwrap();
    say(&client, &[5, 1, 2]).unwrap();
    expect(&client, &[5, 0xFF]).unwrap();
}

// Without it.

#[test]
fn without_retry_the_client_hears_what_its_remote_says() {
    let good = Fake::good();
    for (at, fault, heard) in [
        (At::Request, says(&reply(4), Fault::Close), &reply(4)[..]),
        (
            At::Request,
            says(&reply(0)[..4], Fault::Close),
            &reply(0)[..4],
        ),
        (At::Request, Fault::Close, &[]),
        (At::Request, says(b"rubbish", Fault::Close), b"rubbish"),
    ] {
        let bad = Fake::bad(at, fault);
        let remotes = [bad.address(), good.address()];
        let (_sockhop, listening) = forward(&remotes, &["--no-retry"]);
        let client = ask(listening, b"");
        expect(&client, heard).unwrap();
        assert_eq!(observe(&client, SOON), Observed::Eof);
    }
    let bad = Fake::bad(At::Request, Fault::Reset);
    let (_sockhop, listening) = forward(&[bad.address(), good.address()], &["--no-retry"]);
    assert_eq!(observe(&ask(listening, b""), SOON), Observed::Reset);
    assert_eq!(good.accepted(), 0);
    // Before it has heard anything it loses nothing by another one.
    bad.become_another(Kind::Bad(At::Greeting, Fault::Close));
    expect(&ask(listening, b""), &reply(0)).unwrap();
}

#[test]
fn one_remote_named_by_hand_is_only_passed_on() {
    // What looks like a greeting at first is none.
    let strange = Fake::bad(At::Greeting, says(b"hello", Fault::Silence));
    let (_sockhop, listening) = forward(&[strange.address()], &[]);
    let client = connect(listening).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, b"hello").unwrap();
    say(&client, b"and so on").unwrap();
    drop(client);
    assert!(wait_until(SOON, || strange.heard() == [b"\x05\x01\0and so on"]));
}

#[test]
fn a_client_may_take_its_time_between_greeting_and_request() {
    // The remote does not wait as long.
    let impatient = Fake::bad(At::Greeting, says(&[5, 0], Fault::Close));
    let (_sockhop, listening) = forward(&[impatient.address()], &[]);
    let client = connect(listening).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    assert!(impatient.wait_open(0, SOON));
    impatient.become_another(Kind::Good);
    say(&client, &request(1)).unwrap();
    expect(&client, &reply(0)).unwrap();
}

#[test]
fn a_client_that_ends_its_side_behind_the_request_is_served() {
    let good = Fake::good();
    let (_sockhop, listening) = forward(&[good.address(), dead_address()], &[]);
    let client = ask(listening, b"all there is");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    expect(&client, &reply(0)).unwrap();
    expect(&client, b"all there is").unwrap();
    assert_eq!(observe(&client, SOON), Observed::Eof);
}

#[test]
fn a_client_that_leaves_is_asked_for_no_longer() {
    let silent = [
        Fake::bad(At::Request, Fault::Silence),
        Fake::bad(At::Request, Fault::Silence),
    ];
    let remotes: Vec<SocketAddr> = silent.iter().map(Fake::address).collect();
    let (sockhop, listening) = forward(&remotes, &["--connect-timeout=200ms"]);
    let client = ask(listening, b"");
    assert!(wait_until(SOON, || silent[1].accepted() == 1));
    common::reset(client);
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(silent.iter().all(|remote| remote.wait_open(0, SOON)));
}
