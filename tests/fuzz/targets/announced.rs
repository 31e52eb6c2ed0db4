//! What a remote hears of a client that announces where its datagrams will come from: everything, but not that.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::forward::fuzzing::without_announcement;
use sockhop::handshake::watch::{Asked, Opening, Speaks};
use sockhop::wire::Host;
use sockhop::wire::socks5::{Command, Request};
use sockhop_fuzz::cuts;

fuzz_target!(|input: &[u8]| {
    let (passed, held) = without_announcement(input.to_vec());
    assert_eq!(
        without_announcement(passed.clone()),
        (passed.clone(), Vec::new()),
        "again"
    );

    let opening = Opening::read(input);
    let greeting = match opening.speaks() {
        Speaks::Socks5 => opening.greeting(),
        _ => None,
    };
    match (greeting, opening.asked()) {
        (
            Some(start),
            Asked::For {
                command: Command::Associate,
                end,
            },
        ) => {
            let rest = passed.strip_prefix(&input[..start]).expect("greeting");
            let rest = rest.strip_suffix(&input[end..]).expect("what is behind");
            let (request, length) = Request::decode(rest).expect("good").expect("whole");
            assert_eq!((request.command, length), (Command::Associate, rest.len()));
            assert_eq!(request.address.port, 0);
            let is_nobody =
                matches!(&request.address.host, Host::Ip(ip) if ip.to_canonical().is_unspecified());
            assert!(is_nobody, "{}", request.address.host);
            assert!(held.is_empty());
        }
        (greeting, asked) => {
            assert_eq!([&passed[..], &held[..]].concat(), input, "nothing is lost");
            assert!(held.len() < Request::MAX_LEN, "{} bytes wait", held.len());
            // Neither passed on nor forgotten: the start of what may be an association.
            if let (Some(start), Asked::NotYet) = (greeting, asked) {
                let may_be_one = matches!(&input[start..], [5] | [5, 3, ..]);
                assert_eq!(may_be_one, !held.is_empty());
            }
        }
    }
    // As it comes: what waited is said again in front of what is new.
    for cut in cuts(input.len()) {
        let (passed_before, held_before) = without_announcement(input[..cut].to_vec());
        let said = [&passed_before[..], &held_before[..], &input[cut..]].concat();
        assert_eq!(
            without_announcement(said),
            (passed.clone(), held.clone()),
            "cut at {cut}"
        );
    }
});
