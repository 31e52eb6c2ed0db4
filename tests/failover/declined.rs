//! What a client hears when there is no remote for it: a refusal in its own protocol, however it sends its request.

use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use sockhop::forward::Patience;

use crate::clients::{expect, request, say};
use crate::common::{Observed, SOON, connect, expect_end, observe};
use crate::fake::{At, Fake, Fault, reply};
use crate::forwarder::Forwarder;

const REFUSED: [u8; 10] = [5, 1, 0, 1, 0, 0, 0, 0, 0, 0];
const REFUSED_4: [u8; 8] = [0, 0x5B, 0, 0, 0, 0, 0, 0];

fn nowhere() -> Forwarder {
    Forwarder::new(Vec::new(), Patience::Limited, 100)
}

/// What clients say, and what they hear of it all.
fn exchanges() -> Vec<(Vec<u8>, Vec<u8>)> {
    let refused = [&[5, 0][..], &REFUSED].concat();
    let request = request(80);
    let name = b"\x05\x03\0\x03\x0bexample.com\0\x50";
    vec![
        ([&[5, 1, 0][..], &request].concat(), refused.clone()),
        ([&[5, 2, 2, 0][..], &name[..]].concat(), refused),
        // Its password is for nobody, so it is not even looked at.
        (
            [&b"\x05\x01\x02\x01\x03ada\x04pass"[..], &request].concat(),
            [&[5, 2, 1, 0][..], &REFUSED].concat(),
        ),
        (vec![5, 2, 1, 0x80], vec![5, 0xFF]),
        (vec![5, 0], vec![5, 0xFF]),
        (vec![4, 1, 0, 80, 192, 0, 2, 1, 0], REFUSED_4.to_vec()),
        (
            b"\x04\x01\0\x50\0\0\0\x01ada\0example.com\0".to_vec(),
            REFUSED_4.to_vec(),
        ),
        (
            vec![5, 1, 0, 5, 9],
            vec![5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0],
        ),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Vec::new()),
        (vec![0x16, 3, 1], Vec::new()),
    ]
}

#[track_caller]
fn hears(client: &TcpStream, bytes: &[u8]) {
    expect(client, bytes).unwrap();
    // Something that was never read may turn the end into a reset; the answer comes first.
    let end = expect_end(client, SOON);
    assert!(matches!(end, Observed::Eof | Observed::Reset), "{end:?}");
}

#[test]
fn at_once_and_byte_by_byte() {
    let forwarder = nowhere();
    for (said, heard) in exchanges() {
        for portion in [said.len(), 1] {
            let client = connect(forwarder.address).unwrap();
            for part in said.chunks(portion) {
                // It may be refused before it has said all of that.
                if say(&client, part).is_err() {
                    break;
                }
            }
            if portion > 1 || matches!(said[0], 4 | 5) {
                hears(&client, &heard);
            }
        }
    }
}

#[test]
fn with_payload_behind_the_request() {
    let forwarder = nowhere();
    for (said, heard) in exchanges().into_iter().take(3) {
        let client = connect(forwarder.address).unwrap();
        say(&client, &[&said[..], &[b'p'; 700]].concat()).unwrap();
        hears(&client, &heard);
    }
}

#[test]
fn when_the_client_ends_its_side_behind_the_request() {
    let forwarder = nowhere();
    let client = connect(forwarder.address).unwrap();
    say(&client, &[5, 1, 0]).unwrap();
    expect(&client, &[5, 0]).unwrap();
    say(&client, &request(1)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect(&client, &REFUSED).unwrap();
    assert_eq!(observe(&client, SOON), Observed::Eof);
}

#[test]
fn when_it_has_heard_a_part_already() {
    // The remote dies when it hears the request: at once with the greeting, later, and with payload.
    let dies = Fake::bad(At::Request, Fault::Reset);
    let forwarder = Forwarder::new(vec![dies.address().into()], Patience::Limited, 100);
    for pause in [Duration::ZERO, Duration::from_millis(50)] {
        for rest in [&b""[..], b"payload"] {
            let client = connect(forwarder.address).unwrap();
            say(&client, &[5, 1, 0]).unwrap();
            if !pause.is_zero() {
                expect(&client, &[5, 0]).unwrap();
                assert_eq!(observe(&client, pause), Observed::Silent);
            }
            for byte in [&request(1), rest].concat().chunks(1) {
                let _ = say(&client, byte);
            }
            if pause.is_zero() {
                expect(&client, &[5, 0]).unwrap();
            }
            hears(&client, &REFUSED);
        }
    }
    assert!(dies.wait_open(0, SOON));
}

#[test]
fn bind_and_associate_fail_over_and_are_refused_like_connect() {
    let (bad, good) = (Fake::bad(At::Request, Fault::Close), Fake::good());
    for candidates in [
        vec![bad.address().into()],
        vec![bad.address().into(), good.address().into()],
    ] {
        let is_served = candidates.len() > 1;
        let forwarder = Forwarder::new(candidates, Patience::Limited, 100);
        for command in [2, 3] {
            let client = connect(forwarder.address).unwrap();
            say(&client, &[5, 1, 0]).unwrap();
            expect(&client, &[5, 0]).unwrap();
            say(&client, &[5, command, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            let expected = if is_served {
                reply(0)
            } else {
                REFUSED.to_vec()
            };
            expect(&client, &expected).unwrap();
            if is_served {
                // Of a BIND there is a second reply: whatever comes now is passed on.
                say(&client, &reply(0)).unwrap();
                expect(&client, &reply(0)).unwrap();
            }
        }
    }
}
