//! Clients without a login, and remotes that want one.

use std::net::SocketAddr;
use std::sync::Arc;

use sockhop::forward::{Candidate, Patience};
use sockhop::wire::Credentials;

use crate::clients::{expect, request, say, served};
use crate::common::{Observed, SOON, connect, observe, wait_until};
use crate::fake::{At, Fake, Fault, Kind, reply};
use crate::forwarder::Forwarder;

const WANTS: Kind = Kind::Login("ada", "pass");

fn with_login(fake: &Fake, user: &str, password: &str) -> Candidate {
    Candidate {
        address: fake.address(),
        login: Some(Arc::new(Credentials::new(user, password).unwrap())),
        timeout: None,
    }
}

fn to(candidates: Vec<Candidate>) -> Forwarder {
    Forwarder::new(candidates, Patience::Limited, 1000)
}

/// What the remote hears of us.
fn login(rest: &[u8]) -> Vec<u8> {
    [&b"\x05\x01\x02\x01\x03ada\x04pass"[..], rest].concat()
}

#[test]
fn a_client_is_let_in_with_the_login_of_the_remote() {
    let fake = Fake::new(WANTS);
    for patience in [Patience::Limited, Patience::Unlimited] {
        let forwarder = Forwarder::new(vec![with_login(&fake, "ada", "pass")], patience, 10);
        assert_eq!(served(forwarder.address, 5), [""; 0]);
        assert!(!forwarder.has_reports());
    }
    assert!(fake.wait_open(0, SOON));
    for heard in fake.heard() {
        assert!(heard.starts_with(&login(&[5, 1, 0])), "{heard:02x?}");
    }
}

#[test]
fn bytes_come_in_any_portions_and_payload_at_once() {
    let fake = Fake::new(WANTS);
    let forwarder = to(vec![with_login(&fake, "ada", "pass")]);
    let client = connect(forwarder.address).unwrap();
    let all = [&[5, 3, 1, 0, 0x80][..], &request(7), b"payload"].concat();
    for byte in all.chunks(1) {
        say(&client, byte).unwrap();
    }
    expect(&client, &[5, 0]).unwrap();
    expect(&client, &reply(0)).unwrap();
    expect(&client, b"payload").unwrap();
    let heard = login(&[&request(7)[..], b"payload"].concat());
    drop(client);
    assert!(wait_until(SOON, || fake.heard() == [&heard[..]]));
}

#[test]
fn a_rejected_login_is_a_failure_of_its_own_and_the_next_remote_is_asked() {
    let (wrong, right) = (Fake::new(WANTS), Fake::new(WANTS));
    let forwarder = to(vec![
        with_login(&wrong, "ada", "old"),
        with_login(&right, "ada", "pass"),
    ]);
    assert_eq!(served(forwarder.address, 1), [""; 0]);
    let rejected = "rejected the user and password".to_owned();
    assert_eq!(forwarder.reports(1), [(wrong.address(), rejected)]);
    assert!(wrong.wait_open(0, SOON));
}

#[test]
fn with_nobody_left_the_client_is_told_in_its_own_protocol() {
    let wrong = Fake::new(WANTS);
    let forwarder = to(vec![with_login(&wrong, "ada", "old")]);
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    expect(&client, &[5, 1, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(observe(&client, SOON), Observed::Eof);
}

#[test]
fn a_remote_that_wants_no_login_after_all_is_not_taken_for_it() {
    // The login says whom the user trusts; a proxy that lets everybody in is another one.
    let (open, right) = (Fake::good(), Fake::new(WANTS));
    let forwarder = to(vec![
        with_login(&open, "ada", "pass"),
        with_login(&right, "ada", "pass"),
    ]);
    assert_eq!(served(forwarder.address, 1), [""; 0]);
    assert_eq!(forwarder.reports(1)[0].0, open.address());
    assert_eq!(open.heard(), [[5, 1, 2]]);
}

#[test]
fn remotes_with_and_without_a_login_stand_in_for_each_other() {
    let dies = |at| Fake::bad(at, Fault::Close);
    for at in [At::Greeting, At::Request] {
        let (bad, right) = (dies(at), Fake::new(WANTS));
        let forwarder = to(vec![
            bad.address().into(),
            with_login(&right, "ada", "pass"),
        ]);
        assert_eq!(served(forwarder.address, 20), [""; 0]);
        assert!(
            forwarder
                .reports(20)
                .iter()
                .all(|(remote, _)| *remote == bad.address())
        );
    }
    let (wrong, good) = (Fake::new(WANTS), Fake::good());
    let forwarder = to(vec![
        with_login(&wrong, "ada", "old"),
        good.address().into(),
    ]);
    assert_eq!(served(forwarder.address, 20), [""; 0]);
}

#[test]
fn a_client_with_a_login_of_its_own_is_passed_through() {
    let fake = Fake::new(WANTS);
    let forwarder = to(vec![with_login(&fake, "forwarder", "secret")]);
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 1, 2]).unwrap();
    expect(&client, &[5, 2]).unwrap();
    say(&client, b"\x01\x03ada\x04pass").unwrap();
    expect(&client, &[1, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    expect(&client, &reply(0)).unwrap();
    drop(client);
    assert!(wait_until(SOON, || fake.heard() == [login(&request(1))]));
}

#[test]
fn a_client_that_may_go_without_a_login_keeps_its_own_for_itself() {
    let fake = Fake::new(WANTS);
    let forwarder = to(vec![with_login(&fake, "ada", "pass")]);
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 2, 2, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    expect(&client, &reply(0)).unwrap();
}

#[test]
fn socks4_has_no_passwords_so_such_remotes_are_of_no_use_to_it() {
    let (wants, knows) = (
        Fake::new(WANTS),
        Fake::bad(
            At::Accept,
            Fault::Says(vec![0, 0x5A, 0, 0, 0, 0, 0, 0], Box::new(Fault::Silence)),
        ),
    );
    let ask = |forwarder: &Forwarder| {
        let client = connect(forwarder.address).unwrap();
        say(&client, &[4, 1, 0, 80, 192, 0, 2, 1, 0]).unwrap();
        client
    };
    let forwarder = to(vec![
        with_login(&wants, "ada", "pass"),
        knows.address().into(),
    ]);
    expect(&ask(&forwarder), &[0, 0x5A, 0, 0, 0, 0, 0, 0]).unwrap();
    let forwarder = to(vec![with_login(&wants, "ada", "pass")]);
    let client = ask(&forwarder);
    expect(&client, &[0, 0x5B, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(observe(&client, SOON), Observed::Eof);
    assert_eq!(wants.accepted(), 0);
    assert!(!forwarder.has_reports());
}

#[test]
fn a_remote_that_dies_or_is_silent_while_we_log_in_is_left() {
    let faults = [
        Fault::Says(vec![5, 2], Box::new(Fault::Close)),
        Fault::Says(vec![5, 2, 1], Box::new(Fault::Close)),
        Fault::Says(vec![5, 2, 1, 0, 5], Box::new(Fault::Silence)),
        Fault::Says(vec![5], Box::new(Fault::Reset)),
        Fault::Says(vec![5, 2], Box::new(Fault::Silence)),
        Fault::Says(b"HTTP/1.1 400".to_vec(), Box::new(Fault::Close)),
    ];
    let bad: Vec<Fake> = faults
        .into_iter()
        .map(|fault| Fake::bad(At::Greeting, fault))
        .collect();
    let good = Fake::new(WANTS);
    for bad in &bad {
        let candidates = [bad, &good].map(|fake| with_login(fake, "ada", "pass"));
        let forwarder = to(candidates.into());
        assert_eq!(served(forwarder.address, 3), [""; 0]);
        assert!(bad.wait_open(0, SOON) && bad.accepted() == 3);
        let reports = forwarder.reports(3);
        let of_bad = |report: &(SocketAddr, String)| report.0 == bad.address();
        assert!(reports.iter().all(of_bad), "{reports:?}");
    }
}

/// Nothing that is shown has a password in it.
#[test]
fn a_candidate_shows_no_password() {
    let fake = Fake::new(WANTS);
    let candidate = with_login(&fake, "ada", "hunter2");
    assert!(!format!("{candidate:?}").contains("hunter2"));
}
