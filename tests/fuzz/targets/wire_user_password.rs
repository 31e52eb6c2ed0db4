//! The messages of the user/password exchange.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::wire::Credentials;
use sockhop::wire::user_password::{Request, Status};
use sockhop_fuzz::check_message;

fuzz_target!(|input: &[u8]| {
    // It has no `==`, so that nobody compares passwords with it.
    let same =
        |one: &Request, other: &Request| one.user() == other.user() && bytes(one) == bytes(other);
    let request = check_message(
        input,
        Request::MAX_LEN,
        Request::decode,
        Request::encode,
        same,
    );
    if let Some(request) = request {
        check_verdict(&request);
    }
    check_message(
        input,
        Status::LEN,
        Status::decode,
        Status::encode,
        Status::eq,
    );
});

fn bytes(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    bytes
}

/// Only the very same credentials match, and their secret is never shown.
fn check_verdict(request: &Request) {
    let user = request.user();
    let password = &bytes(request)[3 + user.len()..];
    let hidden = format!("\"{}\", password: ***", user.escape_ascii());
    assert!(format!("{request:?}").contains(&hidden));
    let Ok(credentials) = Credentials::new(user, password) else {
        return;
    };
    assert!(credentials.matches(request) && format!("{credentials:?}").contains(&hidden));
    for at in 0..password.len() {
        let mut wrong = password.to_vec();
        wrong[at] ^= 0x20;
        assert!(
            Credentials::new(user, wrong).is_ok_and(|wrong| !wrong.matches(request))
                || password[at] == 0x20
        );
    }
    for wrong in [&password[1..], &[password, b"x"].concat()] {
        assert!(!Credentials::new(user, wrong).is_ok_and(|wrong| wrong.matches(request)));
    }
}
