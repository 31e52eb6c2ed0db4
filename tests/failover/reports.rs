//! What is found out about remotes, and what a change of the choice does to clients that are being served.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sockhop::forward::{Candidate, Choice, Patience};

use crate::clients::{expect, request, say, served};
use crate::common::{Observed, SOON, connect, observe, wait_until};
use crate::fake::{At, Fake, Fault, Kind, reply};
use crate::forwarder::Forwarder;

fn to(fakes: &[&Fake]) -> Forwarder {
    let candidates = fakes.iter().map(|fake| fake.address().into()).collect();
    Forwarder::new(candidates, Patience::Limited, 1000)
}

fn unreached(code: u8) -> Fake {
    let says = Fault::Says(reply(code), Box::new(Fault::Close));
    Fake::bad(At::Request, says)
}

fn ask(forwarder: &Forwarder) -> TcpStream {
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    client
}

fn choose(forwarder: &Forwarder, fakes: &[&Fake]) {
    forwarder.route.set(Choice {
        candidates: fakes
            .iter()
            .map(|fake| Candidate::from(fake.address()))
            .collect(),
        patience: Patience::Limited,
        is_awaited: false,
    });
}

#[test]
fn a_reply_is_held_against_a_remote_if_another_one_served_the_request() {
    let (first, second, good) = (unreached(4), unreached(1), Fake::good());
    let forwarder = to(&[&first, &second, &good]);
    assert_eq!(served(forwarder.address, 1), [""; 0]);
    let text = "answered a request that another remote served: ";
    let report = |fake: &Fake, reply: &str| (fake.address(), format!("{text}{reply}"));
    let expected = [
        report(&first, "host unreachable"),
        report(&second, "general failure"),
    ];
    assert_eq!(forwarder.reports(2), expected);
}

#[test]
fn a_reply_that_nobody_betters_may_be_about_the_destination() {
    let (first, second) = (unreached(4), unreached(3));
    for fakes in [&[&first, &second][..], &[&first]] {
        let forwarder = to(fakes);
        expect(&ask(&forwarder), &[5, 4]).unwrap();
        let reports = forwarder.reports(fakes.len());
        assert!(
            reports
                .iter()
                .all(|(_, text)| text.starts_with("answered a request: ")),
            "{reports:?}"
        );
    }
}

#[test]
fn deaths_are_told_with_what_was_awaited() {
    let good = Fake::good();
    for (bad, text) in [
        (
            Fake::bad(At::Greeting, Fault::Close),
            "closed before it answered",
        ),
        (
            Fake::bad(At::Request, Fault::Close),
            "closed before it answered the request",
        ),
    ] {
        let forwarder = to(&[&bad, &good]);
        assert_eq!(served(forwarder.address, 1), [""; 0]);
        assert_eq!(forwarder.reports(1), [(bad.address(), text.to_owned())]);
    }
}

#[test]
fn silence_beside_another_answer_is_told() {
    let good = Fake::good();
    for (at, text) in [
        (At::Greeting, "another one answered while it hesitated"),
        (At::Request, "time was up before it answered the request"),
    ] {
        let bad = Fake::bad(at, Fault::Silence);
        let forwarder = to(&[&bad, &good]);
        assert_eq!(served(forwarder.address, 1), [""; 0]);
        assert_eq!(forwarder.reports(1), [(bad.address(), text.to_owned())]);
        assert!(bad.wait_open(0, SOON));
    }
}

#[test]
fn one_that_was_given_up_for_a_faster_one_is_asked_again_when_that_one_dies() {
    let says = Fault::Says(vec![5, 0], Box::new(Fault::Reset));
    let late = Fault::Waits(Duration::from_millis(400), Box::new(says));
    let dies = Fake::bad(At::Greeting, late);
    let good = Fake::new(Kind::Slow(Duration::from_millis(700), Duration::ZERO));
    let forwarder = to(&[&dies, &good]);
    assert_eq!(served(forwarder.address, 1), [""; 0]);
    assert_eq!((dies.accepted(), good.accepted()), (1, 2));
}

#[test]
fn a_remote_that_closes_on_a_client_that_takes_its_time_has_not_failed() {
    let says = Fault::Says(vec![5, 0], Box::new(Fault::Close));
    let (impatient, good) = (Fake::bad(At::Greeting, says), Fake::good());
    let forwarder = to(&[&impatient, &good]);
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    assert!(impatient.wait_open(0, SOON));
    assert_eq!(
        observe(&client, Duration::from_millis(100)),
        Observed::Silent
    );
    // Nobody is dialled before there is something to ask.
    assert_eq!((impatient.accepted(), good.accepted()), (1, 0));
    impatient.become_another(Kind::Good);
    say(&client, &request(1)).unwrap();
    expect(&client, &reply(0)).unwrap();
    assert!(!forwarder.has_reports());
}

#[test]
fn a_request_under_way_stays_where_it_is_when_the_choice_changes_unless_streams_are_cut() {
    let slow = || Fake::new(Kind::Slow(Duration::ZERO, Duration::from_millis(700)));
    let (old, new) = (slow(), Fake::good());
    for is_cut in [false, true] {
        let forwarder = to(&[&old]);
        let client = ask(&forwarder);
        choose(&forwarder, &[&new]);
        if is_cut {
            forwarder.route.cut_older();
        }
        expect(&client, &reply(0)).unwrap();
        // Cut, it was asked again elsewhere; the client noticed nothing.
        assert_eq!(new.accepted(), usize::from(is_cut));
        let closed = || old.wait_open(0, SOON);
        assert!(!is_cut || closed());
        // What is established under an old choice is cut with it.
        if !is_cut {
            forwarder.route.cut_older();
            assert!(closed());
        }
    }
}

#[test]
fn a_remote_that_was_left_for_another_choice_may_be_chosen_again() {
    let (first, second) = (
        Fake::bad(At::Greeting, Fault::Silence),
        Fake::bad(At::Greeting, Fault::Silence),
    );
    let forwarder = to(&[&first]);
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    assert!(first.wait_open(1, SOON));
    choose(&forwarder, &[&second]);
    assert!(first.wait_open(0, SOON) && second.wait_open(1, SOON));
    first.become_another(Kind::Good);
    choose(&forwarder, &[&first]);
    expect(&client, &[5, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    expect(&client, &reply(0)).unwrap();
    assert!(!forwarder.has_reports());
}

#[test]
fn what_a_remote_alone_was_trusted_with_is_said_to_nobody_else() {
    let login = b"\x05\x01\x02\x01\x03ada\x04pass";
    let payload = [&[5, 1, 0][..], &request(1), b"payload"].concat();
    for bytes in [&login[..], &payload] {
        let (silent, new) = (Fake::bad(At::Accept, Fault::Silence), Fake::good());
        let forwarder = to(&[&silent]);
        let client = connect(forwarder.address).unwrap();
        say(&client, bytes).unwrap();
        assert!(wait_until(SOON, || silent.accepted() == 1));
        // It has heard all of it: there was no other one.
        assert_eq!(
            observe(&client, Duration::from_millis(100)),
            Observed::Silent
        );
        choose(&forwarder, &[&new]);
        assert!(silent.wait_open(0, SOON));
        assert_eq!(silent.heard(), [bytes]);
        assert!(matches!(observe(&client, SOON), Observed::Bytes(bytes) if bytes[0] == 5));
        assert_eq!(new.accepted(), 0);
    }
}

/// With no descriptors to spare nobody is asked beside the first one.
#[test]
fn without_room_another_remote_waits_until_the_first_has_failed() {
    let slow = Fake::new(Kind::Slow(Duration::from_millis(600), Duration::ZERO));
    let good = Fake::good();
    let candidates: Vec<SocketAddr> = vec![slow.address(), good.address()];
    let candidates = candidates.into_iter().map(Candidate::from).collect();
    let forwarder = Forwarder::new(candidates, Patience::Limited, 1);
    assert_eq!(served(forwarder.address, 1), [""; 0]);
    assert_eq!((slow.accepted(), good.accepted()), (1, 0));
}
