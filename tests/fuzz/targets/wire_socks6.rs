//! The messages of SOCKS 6 in every profile.
//!
//! Input: a byte for the profile; then what was received.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use sockhop::wire::socks6::{
    Alignment, AuthReply, Channel, Consequence, Datagram, DecodeError, Decoded, OpReply, Problems,
    Profile, RawOption, Request, Side, UdpHeader, UdpMessage, VersionMismatch,
};
use sockhop_fuzz::{cuts, settings};

fuzz_target!(|input: &[u8]| {
    let Some(([profile], input)) = settings::<1>(input) else {
        return;
    };
    let (_, profile) = &Profile::NAMED[usize::from(profile) % Profile::NAMED.len()];
    if let Some(request) = check(input, profile, Request::decode, Request::encode) {
        // What is declared follows at once, and nothing else does.
        assert!(request.initial_data() == 0 || !request.allows_false_start());
        let _ = request.has_legal_address();
    }
    if let Some(reply) = check(input, profile, AuthReply::decode, AuthReply::encode) {
        let _ = reply.authentication();
    }
    check(input, profile, OpReply::decode, OpReply::encode);
    check(input, profile, UdpHeader::decode, |_, _, _| ());
    check_datagram(input, profile);
    check_options(input, profile);
    match VersionMismatch::decode(input) {
        Decoded::Missing(missing) => assert!(missing == 1 && input.is_empty()),
        Decoded::Whole { length, .. } => assert_eq!(length, 1),
    }
});

/// Decodes `input` and checks everything that the convention says of the answer. Returns the message, if there is one.
fn check<T: Debug + PartialEq>(
    input: &[u8],
    profile: &Profile,
    decode: impl Fn(&[u8], &Profile) -> Result<Decoded<T>, DecodeError>,
    encode: impl Fn(&T, &Profile, &mut Vec<u8>),
) -> Option<T> {
    match decode(input, profile) {
        Ok(Decoded::Whole {
            message,
            length,
            problems,
        }) => {
            assert!(0 < length && length <= input.len(), "{length}");
            // All that it needed, and nothing of what is behind it. Who reads as many bytes as are missing ends with it.
            for cut in cuts(length) {
                match decode(&input[..cut], profile) {
                    Ok(Decoded::Missing(missing)) => {
                        assert!(
                            missing > 0 && cut + missing <= length,
                            "{cut} and {missing}"
                        );
                    }
                    other => panic!("cut at {cut}: {other:?}"),
                }
            }
            check_problems(&problems, length);
            let alone = decode(&input[..length], profile).expect("no error without what is behind");
            let (alone, alone_length) = alone.whole().expect("whole without what is behind");
            assert!(alone == message && alone_length == length);

            let mut bytes = Vec::new();
            encode(&message, profile, &mut bytes);
            if !bytes.is_empty() {
                let again = decode(&bytes, profile).expect("what we write has no errors");
                let (again, length) = again.whole().expect("what we write is whole");
                // What was not aligned has padding in it now.
                assert!(again == message || profile.alignment == Alignment::Lenient);
                assert_eq!(length, bytes.len());
                let mut once_more = Vec::new();
                encode(&again, profile, &mut once_more);
                assert_eq!(once_more, bytes);
            }
            assert!(!format!("{message:?}").is_empty());
            Some(message)
        }
        Ok(Decoded::Missing(missing)) => {
            assert!(missing > 0);
            for cut in cuts(input.len()) {
                match decode(&input[..cut], profile) {
                    Ok(Decoded::Missing(earlier)) => {
                        assert!(earlier > 0 && cut + earlier <= input.len() + missing);
                    }
                    other => panic!("cut at {cut}: {other:?}"),
                }
            }
            None
        }
        Err(error) => {
            let longer = [input, &[0, 5, 255]].concat();
            assert!(matches!(decode(&longer, profile), Err(again) if again == error));
            assert!(!error.to_string().is_empty());
            let _ = error.answer();
            None
        }
    }
}

fn check_problems(problems: &Problems, length: usize) {
    let kept = problems.iter().count();
    assert_eq!(kept, usize::from(problems.count()).min(Problems::KEPT));
    assert_eq!(problems.is_empty(), kept == 0);
    if problems.grave().is_some() {
        assert_ne!(problems.consequence(), Consequence::Ignore);
    }
    // One for each option at most.
    assert!(usize::from(problems.count()) <= length / RawOption::HEADER);
    for problem in problems.iter() {
        assert!(!problem.to_string().is_empty());
    }
}

/// UDP messages, in a stream and alone in a packet.
fn check_datagram(input: &[u8], profile: &Profile) {
    let decoded = UdpMessage::decode(input, profile);
    let packet = UdpMessage::decode_packet(input, profile);
    match decoded {
        Ok(Decoded::Whole {
            message, length, ..
        }) => {
            assert!((UdpHeader::LEN..=input.len()).contains(&length));
            assert_eq!(packet.as_ref(), Ok(&message));
            for cut in cuts(length) {
                match UdpMessage::decode(&input[..cut], profile) {
                    Ok(Decoded::Missing(missing)) => {
                        assert!(
                            missing > 0 && cut + missing <= length,
                            "{cut} and {missing}"
                        );
                    }
                    other => panic!("cut at {cut}: {other:?}"),
                }
                let cut = UdpMessage::decode_packet(&input[..cut], profile);
                assert_eq!(cut, Err(DecodeError::PacketTooShort));
            }
            for side in [Side::Client, Side::Proxy] {
                for channel in [Channel::Stream, Channel::Packets] {
                    let _ = message.may_come(side, channel);
                }
            }
            if let UdpMessage::Datagram(datagram) = &message {
                assert!(datagram.payload().len() < length);
                let (id, address) = (datagram.association(), datagram.address().clone());
                let again = Datagram::new(id, address, datagram.payload()).expect("a short one");
                assert_eq!(again, *datagram);
            }
            let mut bytes = Vec::new();
            message.encode(profile, &mut bytes);
            if !matches!(message, UdpMessage::Unknown(_)) {
                assert_eq!(
                    UdpMessage::decode_packet(&bytes, profile).as_ref(),
                    Ok(&message)
                );
            }
        }
        Ok(Decoded::Missing(missing)) => {
            assert!(0 < missing && input.len() + missing <= UdpMessage::MAX_LEN);
            assert_eq!(packet, Err(DecodeError::PacketTooShort));
        }
        Err(error) => assert_eq!(packet, Err(error)),
    }
}

/// An options field: every option is a piece of it, one after the other, until it is at its end or broken.
fn check_options(input: &[u8], profile: &Profile) {
    let mut at = 0;
    for option in RawOption::all(input, profile) {
        match option {
            Ok(option) => {
                let length = usize::from(option.length());
                assert_eq!(option.data, &input[at + RawOption::HEADER..at + length]);
                at += length;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
    assert_eq!(at, input.len());
}
