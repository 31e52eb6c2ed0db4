//! Input that nobody should send: the right error, nothing kept that wasn't asked for, no panic.

use sockhop::wire::NameError;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    Answer, AuthData, AuthReply, Channel, Consequence, DecodeError, Decoded, Fault, Kind,
    Malformed, OpReply, OptionError, Problems, Profile, Request, SessionUse, Side, UdpHeader,
    UdpMessage,
};

use crate::check;

const PROFILE: &Profile = &Profile::DRAFT_12;

/// A CONNECT to 192.0.2.7:80 with these options.
fn request(options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).unwrap().to_be_bytes();
    let mut bytes = vec![6, 1, length[0], length[1], 0, 80, 0, 1, 192, 0, 2, 7];
    bytes.extend(options);
    bytes
}

fn auth_reply(options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).unwrap().to_be_bytes();
    [&[6, 0, length[0], length[1]], options].concat()
}

fn decoded(options: &[u8]) -> (Request, Problems) {
    check::decodes(Request::decode, &request(options), PROFILE)
}

fn faults(problems: &Problems) -> Vec<(u16, Fault)> {
    let faults = problems.iter().map(|problem| (problem.at, problem.fault));
    faults.collect()
}

/// Session requests, which are as short as options can be.
fn shortest(count: usize) -> Vec<u8> {
    [0, 5, 0, 4].repeat(count)
}

#[test]
fn options_at_the_cap_are_read_and_over_it_refused_at_once() {
    for (_, profile) in Profile::NAMED {
        let cap = usize::from(profile.max_options);
        for decode in [
            |input: &[u8], profile: &Profile| Request::decode(input, profile).map(|_| ()),
            |input: &[u8], profile: &Profile| AuthReply::decode(input, profile).map(|_| ()),
            |input: &[u8], profile: &Profile| OpReply::decode(input, profile).map(|_| ()),
        ] {
            let [high, low] = profile.max_options.to_be_bytes();
            assert_eq!(decode(&[profile.version, 0, high, low], &profile), Ok(()));
            for length in [profile.max_options + 4, 65_532, 65_535] {
                let [high, low] = length.to_be_bytes();
                let limit = profile.max_options;
                let error = DecodeError::OptionsTooLong { length, limit };
                // Nothing of the options needs to be there.
                let decoded = decode(&[profile.version, 0, high, low], &profile);
                assert_eq!(decoded, Err(error));
                assert_eq!(error.answer(), Answer::Close);
            }
        }
        let mut bytes = request(&shortest(cap / 4));
        bytes[0] = profile.version;
        assert_eq!(
            Request::decode(&bytes[..12], &profile),
            Ok(Decoded::Missing(cap))
        );
        let (request, length) = Request::decode(&bytes, &profile).unwrap().whole().unwrap();
        assert_eq!(length, bytes.len());
        assert!(length <= Request::MAX_LEN);
        assert_eq!(request.options.session, SessionUse::Request);
    }
}

#[test]
fn option_lengths_that_cannot_be_fail_the_request() {
    for (options, at, error) in [
        (&[0, 5, 0, 0][..], 0, OptionError::TooShort(0)),
        (&[0, 5, 0, 2], 0, OptionError::TooShort(2)),
        (&[0, 5, 0, 3], 0, OptionError::TooShort(3)),
        (&[0, 5, 0, 5, 0, 0, 0, 0], 0, OptionError::Unaligned(5)),
        (&[0, 5, 0, 8], 0, OptionError::PastEnd(8)),
        (&[0, 5, 0xff, 0xfc], 0, OptionError::PastEnd(0xfffc)),
        (&[0, 5, 0, 4, 0xff, 0, 0, 0], 4, OptionError::TooShort(0)),
        (&[0, 5, 0, 4, 0xff, 0, 0, 8], 4, OptionError::PastEnd(8)),
    ] {
        let error = DecodeError::Option { at, error };
        assert_eq!(Request::decode(&request(options), PROFILE), Err(error));
        assert_eq!(error.answer(), Answer::FailAuthentication);
        assert_eq!(AuthReply::decode(&auth_reply(options), PROFILE), Err(error));
    }
}

#[test]
fn unaligned_options_are_read_only_where_the_profile_says_so() {
    // User and password as a Go client sends them, without padding, and a session request behind.
    let options = b"\0\x04\0\x0b\x02\x01\x02me\x01p\0\x05\0\x04";
    let mut bytes = request(options);
    let error = DecodeError::OptionsUnaligned(15);
    assert_eq!(Request::decode(&bytes[..4], PROFILE), Err(error));
    bytes[0] = 212;
    let (request, problems) = check::decodes(Request::decode, &bytes, &Profile::GO_212);
    assert!(problems.is_empty());
    assert_eq!(request.options.password.as_ref().unwrap().user(), b"me");
    assert_eq!(request.options.session, SessionUse::Request);
    // What we write is aligned, and means the same.
    let aligned = check::encoded(Request::encode, &request, &Profile::GO_212);
    assert_eq!(aligned.len(), bytes.len() + 1);
    let again = check::decodes(Request::decode, &aligned, &Profile::GO_212);
    assert_eq!(again.0, request);
    // Too few bytes for another option.
    let mut cut = auth_reply(&[0, 8, 0, 4, 0, 9]);
    cut[0] = 212;
    let error = OptionError::Header;
    let error = DecodeError::Option { at: 4, error };
    assert_eq!(AuthReply::decode(&cut, &Profile::GO_212), Err(error));
}

#[test]
fn thousands_of_options_cost_no_more_than_their_bytes() {
    let unknown: Vec<u8> = [0xff, 0, 0, 4].repeat(5000);
    let (request, problems) = decoded(&unknown);
    // What is kept of unknown ones has a limit; the rest is counted, and of the count the first are remembered.
    assert_eq!(request.options.extra.iter().count(), 1024);
    assert_eq!(usize::from(problems.count()), 5000 - 1024);
    assert_eq!(problems.iter().count(), Problems::KEPT);
    assert_eq!(problems.consequence(), Consequence::Ignore);

    // As many methods as there are, each with data: some are kept.
    let methods: Vec<u8> = (3..=250).flat_map(|m| [0, 4, 0, 8, m, 1, 2, 3]).collect();
    let (request, problems) = decoded(&methods);
    assert_eq!(request.options.auth_data.len(), AuthData::MAX_COUNT);
    assert_eq!(usize::from(problems.count()), 248 - AuthData::MAX_COUNT);

    let long = [&[0, 4, 8, 8, 9][..], &[1; 2051]].concat();
    let (request, problems) = decoded(&long);
    assert!(request.options.auth_data.is_empty());
    assert_eq!(faults(&problems), [(0, Fault::TooMany)]);
}

#[test]
fn the_last_of_many_problems_still_counts() {
    // Harmless repetitions, then a second session id that is another one.
    let mut options = shortest(100);
    options.extend([0, 6, 0, 8, 1, 2, 3, 4, 0, 6, 0, 8, 1, 2, 3, 5]);
    let (request, problems) = decoded(&options);
    assert!(
        !problems
            .iter()
            .any(|problem| problem.kind == Kind::SESSION_ID)
    );
    assert_eq!(problems.consequence(), Consequence::Refuse);
    let SessionUse::Resume(id) = &request.options.session else {
        panic!("{request:?}");
    };
    assert_eq!(id.as_bytes(), [1, 2, 3, 4]);
}

#[test]
fn repeated_options_are_ignored_and_contradictory_ones_told() {
    let ignore = Consequence::Ignore;
    let refuse = Consequence::Refuse;
    for (first, second, fault, consequence) in [
        // TOS of the remote leg, then again; another value; for both legs, which contradicts only in one.
        (
            "00010008 8101 0600",
            "00010008 8101 0600",
            Fault::Duplicate,
            ignore,
        ),
        (
            "00010008 8101 0600",
            "00010008 8101 0700",
            Fault::Contradiction,
            ignore,
        ),
        (
            "00010008 8101 0600",
            "00010008 c101 0700",
            Fault::Contradiction,
            ignore,
        ),
        (
            "00020008 0000 0100",
            "00020008 0000 0100",
            Fault::Duplicate,
            ignore,
        ),
        (
            "00020008 0000 0100",
            "00020008 0001 0100",
            Fault::Contradiction,
            refuse,
        ),
        (
            "0004000c 02010161 01620000",
            "0004000c 02010161 01620000",
            Fault::Duplicate,
            ignore,
        ),
        (
            "0004000c 02010161 01620000",
            "0004000c 02010161 01630000",
            Fault::Contradiction,
            refuse,
        ),
        (
            "00040008 09010203",
            "00040008 09010203",
            Fault::Duplicate,
            ignore,
        ),
        (
            "00040008 09010203",
            "00040008 09010204",
            Fault::Contradiction,
            refuse,
        ),
        ("00050004", "00050004", Fault::Duplicate, ignore),
        (
            "00060008 01020304",
            "00060008 01020304",
            Fault::Duplicate,
            ignore,
        ),
        (
            "00060008 01020304",
            "0006000c 01020304 05060708",
            Fault::Contradiction,
            refuse,
        ),
    ] {
        let bytes = |text: &str| -> Vec<u8> {
            let text: String = text.split(' ').collect();
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            (0..text.len()).step_by(2).map(byte).collect()
        };
        let first = bytes(first);
        let at = u16::try_from(first.len()).unwrap();
        let (_, problems) = decoded(&[first.clone(), bytes(second)].concat());
        assert_eq!(faults(&problems), [(at, fault)], "{first:02x?}");
        assert_eq!(problems.consequence(), consequence, "{first:02x?}");
    }
}

#[test]
fn sessions_in_requests_make_sense_or_are_told() {
    const ID: [u8; 8] = [0, 6, 0, 8, 1, 2, 3, 4];
    const REQUEST: [u8; 4] = [0, 5, 0, 4];
    const TEARDOWN: [u8; 4] = [0, 10, 0, 4];
    let (request, problems) = decoded(&[&REQUEST[..], &ID].concat());
    assert!(matches!(request.options.session, SessionUse::Resume(_)));
    assert_eq!(faults(&problems), [(0, Fault::Contradiction)]);
    assert_eq!(problems.consequence(), Consequence::Refuse);

    let (request, problems) = decoded(&[&TEARDOWN[..], &ID].concat());
    assert!(matches!(request.options.session, SessionUse::Teardown(_)));
    assert!(problems.is_empty());

    let (request, problems) = decoded(&TEARDOWN);
    assert_eq!(request.options.session, SessionUse::None);
    assert_eq!(faults(&problems), [(0, Fault::WithoutSession)]);

    // Tokens, and backlogs, outside a session.
    let options = b"\0\x01\0\x08\x84\x03\0\x05\0\x0b\0\x08\0\0\0\x10\0\x0d\0\x08\0\0\0\x01";
    let (request, problems) = decoded(options);
    let without = Fault::WithoutSession;
    assert_eq!(
        faults(&problems),
        [(8, without), (16, without), (0, without)]
    );
    assert_eq!(problems.consequence(), Consequence::Ignore);
    assert!(request.options.token.is_some());
    let (_, problems) = decoded(&[&REQUEST[..], options].concat());
    assert!(problems.is_empty());
}

#[test]
fn options_in_the_wrong_message_are_left_out() {
    for kind in [3, 8, 9, 12, 14, 15] {
        let (request, problems) = decoded(&[0, kind, 0, 4]);
        assert_eq!(faults(&problems), [(0, Fault::Misplaced)], "kind {kind}");
        assert_eq!(request.options, Default::default());
    }
    for kind in [1, 2, 5, 10, 11, 13] {
        let bytes = auth_reply(&[0, kind, 0, 4]);
        let (reply, problems) = check::decodes(AuthReply::decode, &bytes, PROFILE);
        assert_eq!(faults(&problems), [(0, Fault::Misplaced)], "kind {kind}");
        assert_eq!(reply.options, Default::default());
    }
    for kind in [2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15] {
        let bytes = request(&[0, kind, 0, 4]);
        let (reply, problems) = check::decodes(OpReply::decode, &bytes, PROFILE);
        assert_eq!(faults(&problems), [(0, Fault::Misplaced)], "kind {kind}");
        assert_eq!(reply.options, Default::default());
    }
}

#[test]
fn bodies_that_cannot_be_are_left_out() {
    for (option, malformed) in [
        // Stack options: no body, no value, too much of it.
        (&b"\0\x01\0\x04"[..], Malformed::Length(4)),
        (b"\0\x01\0\x0c\x81\x01\0\0\0\0\0\0", Malformed::Length(12)),
        // A leg that doesn't exist, and one that the option isn't defined for.
        (b"\0\x01\0\x08\x01\x01\0\0", Malformed::Leg(0)),
        (b"\0\x01\0\x08\x44\x01\0\0", Malformed::Leg(1)),
        (b"\0\x01\0\x08\xc5\x02\0\0", Malformed::Leg(3)),
        // Choices, parity and reserve have few values.
        (b"\0\x01\0\x08\x81\x02\0\0", Malformed::Value(0)),
        (b"\0\x01\0\x08\x81\x04\x03\0", Malformed::Value(3)),
        (b"\0\x01\0\x08\x85\x02\x03\0", Malformed::Value(3)),
        (b"\0\x01\0\x08\x85\x02\0\x02", Malformed::Value(2)),
        (b"\0\x04\0\x04", Malformed::Length(4)),
        // User and password: another version, cut, too much behind them.
        (
            b"\0\x04\0\x0c\x02\x05\x01a\x01b\0\0",
            Malformed::UserPassword,
        ),
        (
            b"\0\x04\0\x0c\x02\x01\x01a\x05b\0\0",
            Malformed::UserPassword,
        ),
        (
            b"\0\x04\0\x10\x02\x01\x01a\x01b\0\0\0\0\0\0",
            Malformed::UserPassword,
        ),
        (b"\0\x05\0\x08\0\0\0\0", Malformed::Length(8)),
        (b"\0\x06\0\x04", Malformed::Length(4)),
        (b"\0\x0b\0\x04", Malformed::Length(4)),
        (b"\0\x0b\0\x08\0\0\0\0", Malformed::WindowSize(0)),
        (b"\0\x0b\0\x08\x80\0\0\0", Malformed::WindowSize(1 << 31)),
        (b"\0\x0d\0\x04", Malformed::Length(4)),
        (b"\0\x0d\0\x0c\0\0\0\0\0\0\0\0", Malformed::Length(12)),
    ] {
        let (request, problems) = decoded(option);
        let fault = Fault::Malformed(malformed);
        assert_eq!(faults(&problems), [(0, fault)], "{option:02x?}");
        assert_eq!(problems.consequence(), Consequence::Ignore);
        assert_eq!(request.options, Default::default());
    }
    // A session id beyond what anybody needs.
    let long = [&[0, 6, 1, 8][..], &[7; 260]].concat();
    let (_, problems) = decoded(&long);
    let length = Malformed::Length(264);
    assert_eq!(faults(&problems), [(0, Fault::Malformed(length))]);
    // Port Parity in the other values.
    let mut bytes = request(b"\0\x01\0\x08\x85\x02\x01\0");
    bytes[0] = 212;
    let (_, problems) = check::decodes(Request::decode, &bytes, &Profile::GO_212);
    let value = Malformed::Value(0);
    assert_eq!(faults(&problems), [(0, Fault::Malformed(value))]);
}

#[test]
fn initial_data_has_its_limit_and_needs_a_connect() {
    let advertised = |command, length: u16| {
        let [high, low] = length.to_be_bytes();
        let mut bytes = request(&[0, 2, 0, 8, high, low, 1, 0]);
        bytes[1] = command;
        check::decodes(Request::decode, &bytes, PROFILE)
    };
    let (request, problems) = advertised(1, 16_384);
    assert_eq!(request.initial_data(), 16_384);
    assert!(problems.is_empty());
    assert!(!request.allows_false_start());
    for (command, length) in [(1, 16_385), (1, 65_535), (0, 1), (2, 1), (3, 16_384)] {
        let (request, problems) = advertised(command, length);
        let fault = Fault::Malformed(Malformed::InitialData(length));
        assert_eq!(faults(&problems), [(0, fault)]);
        assert_eq!(request.initial_data(), 0);
        // Where the next message begins is unclear.
        assert_eq!(problems.consequence(), Consequence::Refuse);
    }
    let (request, problems) = advertised(0, 0);
    assert!(problems.is_empty());
    let methods = request.options.methods.unwrap().methods;
    assert!(methods.iter().eq([Method::GSSAPI]));
}

#[test]
fn names_that_cannot_be_fail_the_request() {
    let connect = |name: &[u8]| [&[6, 1, 0, 0, 0, 80, 0, 3], name].concat();
    // With options that have not come yet.
    let with_options = |name: &[u8]| [&[6, 1, 0, 8, 0, 80, 0, 3], name].concat();
    for (name, error) in [
        (&b"\0"[..], NameError::Empty.into()),
        (b"\x01", DecodeError::NameLength(1)),
        (b"\x04", DecodeError::NameLength(4)),
        (b"\xfe", DecodeError::NameLength(254)),
        (b"\x03\0\0\0", NameError::Empty.into()),
        (b"\x03\0a\0", NameError::Byte(0).into()),
        (b"\x03a b", NameError::Byte(b' ').into()),
        (b"\x03a\xffb", NameError::Byte(0xff).into()),
    ] {
        let bytes = connect(name);
        assert_eq!(Request::decode(&bytes, PROFILE), Err(error), "{name:02x?}");
        let bytes = with_options(name);
        assert_eq!(Request::decode(&bytes, PROFILE), Err(error), "{name:02x?}");
        assert_eq!(error.answer(), Answer::FailAuthentication);
    }
    // An address written as a name is that address, so that rules see it.
    let bytes = connect(b"\x0b127.0.0.1\0\0");
    let (request, _) = check::decodes(Request::decode, &bytes, PROFILE);
    assert_eq!(request.address.to_string(), "127.0.0.1:80");
}

#[test]
fn older_lengths_of_names_are_read_where_the_profile_says_so() {
    let lenient = Profile {
        name_reading: sockhop::wire::socks6::NameReading::Lenient,
        ..Profile::DRAFT_12
    };
    let go = Profile {
        version: 6,
        ..Profile::GO_212
    };
    for (profile, field, name) in [
        (&lenient, &b"\x03a\0\0"[..], "a"),
        (&lenient, b"\x01a\0\0", "a"),
        (&lenient, b"\x01axy", "a"),
        (&lenient, b"\x04abcd\0\0\0", "abcd"),
        (&lenient, b"\x07abcd\0\0\0", "abcd"),
        (&lenient, b"\x0bexample.com", "example.com"),
        (&go, b"\x04a\0\0", "a"),
        (&go, b"\x03a\0\0", "a"),
        (&go, b"\x0clocalhost\0\0", "localhost"),
        (&go, b"\x0cexample.com", "example.com"),
    ] {
        let bytes = [&[6, 1, 0, 0, 0, 80, 0, 3], field].concat();
        let (request, _) = check::decodes(Request::decode, &bytes, profile);
        assert_eq!(request.address.host.to_string(), name);
        // Always written as -12 has it.
        let out = check::encoded(Request::encode, &request, profile);
        let again = check::decodes(Request::decode, &out, PROFILE);
        assert_eq!(again.0, request);
    }
}

#[test]
fn unknown_address_types_are_told_before_the_rest_is_there() {
    for kind in (0..=255).filter(|kind| ![1, 3, 4].contains(kind)) {
        let error = DecodeError::AddressType(kind);
        let bytes = [6, 1, 0x50, 0, 0, 80, 0, kind];
        assert_eq!(Request::decode(&bytes, PROFILE), Err(error));
        assert_eq!(OpReply::decode(&bytes, PROFILE), Err(error));
        assert_eq!(error.answer(), Answer::AddressTypeNotSupported);
    }
}

#[test]
fn other_versions_are_told_with_the_first_byte() {
    for (_, profile) in Profile::NAMED {
        for version in (0..=255).filter(|&version| version != profile.version) {
            let error = DecodeError::Version(version);
            assert_eq!(Request::decode(&[version], &profile), Err(error));
            assert_eq!(AuthReply::decode(&[version], &profile), Err(error));
            assert_eq!(OpReply::decode(&[version], &profile), Err(error));
            assert_eq!(UdpHeader::decode(&[version], &profile), Err(error));
            assert_eq!(error.answer(), Answer::VersionMismatch);
        }
    }
}

#[test]
fn address_of_a_noop_is_zeros() {
    for (address, legal) in [
        (&[0, 0, 0, 1, 0, 0, 0, 0][..], true),
        (&[0, 80, 0, 1, 0, 0, 0, 0], false),
        (&[0, 0, 0, 1, 0, 0, 0, 1], false),
        (&[0, 0, 0, 3, 3, b'a', 0, 0], false),
    ] {
        let noop = [&[6, 0, 0, 0], address].concat();
        let (request, problems) = check::decodes(Request::decode, &noop, PROFILE);
        assert_eq!(request.has_legal_address(), legal);
        assert!(problems.is_empty());
        let connect = [&[6, 1, 0, 0], address].concat();
        let (request, _) = check::decodes(Request::decode, &connect, PROFILE);
        assert!(request.has_legal_address());
    }
}

#[test]
fn unknown_commands_and_codes_are_kept() {
    let mut bytes = request(&[]);
    bytes[1] = 0xee;
    let (request, _) = check::both_ways(Request::decode, Request::encode, &bytes, PROFILE);
    assert_eq!(request.command.to_string(), "command 0xee");
    let (reply, _) = check::both_ways(OpReply::decode, OpReply::encode, &bytes, PROFILE);
    assert_eq!(reply.code.to_string(), "unknown reply code 0xee");
    let bytes = [6, 0xee, 0, 0];
    let (reply, _) = check::both_ways(AuthReply::decode, AuthReply::encode, &bytes, PROFILE);
    assert_eq!(
        reply.authentication(),
        sockhop::wire::socks6::Authentication::Failed
    );
}

#[test]
fn replies_that_contradict_themselves_are_not_to_be_followed() {
    for options in [
        &[0, 8, 0, 4, 0, 9, 0, 4][..],
        &[0, 14, 0, 4, 0, 15, 0, 4],
        &[0, 3, 0, 8, 1, 0, 0, 0, 0, 3, 0, 8, 2, 0, 0, 0],
        &[0, 6, 0, 8, 1, 2, 3, 4, 0, 6, 0, 8, 1, 2, 3, 5],
    ] {
        let (_, problems) = check::decodes(AuthReply::decode, &auth_reply(options), PROFILE);
        assert_eq!(problems.consequence(), Consequence::Refuse);
    }
}

#[test]
fn datagrams_that_are_not_as_long_as_they_say() {
    const DATAGRAM: &[u8] =
        b"\x06\x03\0\x18\x01\x02\x03\x04\x05\x06\x07\x08\x01\0\0\x35\xc0\0\x02\x07ping";
    let packet = |length: u16, cut: usize| {
        let mut bytes = DATAGRAM[..cut].to_vec();
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    // Longer than the message: padding.
    let padded = packet(21, 24);
    let UdpMessage::Datagram(datagram) = UdpMessage::decode_packet(&padded, PROFILE).unwrap()
    else {
        panic!("no datagram");
    };
    assert_eq!(datagram.payload(), b"p");
    // Shorter than the message.
    for length in [25, 1000, 65_535] {
        let bytes = packet(length, 24);
        let error = Err(DecodeError::PacketTooShort);
        assert_eq!(UdpMessage::decode_packet(&bytes, PROFILE), error);
        let missing = usize::from(length) - 24;
        let decoded = UdpMessage::decode(&bytes, PROFILE);
        assert_eq!(decoded, Ok(Decoded::Missing(missing)));
    }
    // Shorter than its own fields: the stream could go on behind it.
    for length in 12..20 {
        let bytes = packet(length, 24);
        let error = Err(DecodeError::MessageLength(length));
        assert_eq!(UdpMessage::decode_packet(&bytes, PROFILE), error);
        let (header, _) = UdpHeader::decode(&bytes, PROFILE).unwrap().whole().unwrap();
        assert_eq!(header.length, length);
    }
    for length in 0..12 {
        let error = Err(DecodeError::MessageLength(length));
        let bytes = packet(length, 24);
        assert_eq!(UdpMessage::decode_packet(&bytes, PROFILE), error);
        assert!(UdpHeader::decode(&bytes[..4], PROFILE).is_err());
    }
    // An error whose second address is cut, and one about a name.
    let mut error = DATAGRAM.to_vec();
    error[1] = 4;
    assert!(UdpMessage::decode_packet(&error, PROFILE).is_err());
    let named = b"\x06\x04\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08\x03\0\0\x35\x03a\0\0\x01\x03\0\0\xc6\x33\x64\x01";
    let error = Err(DecodeError::AddressType(3));
    assert_eq!(UdpMessage::decode_packet(named, PROFILE), error);
}

#[test]
fn messages_of_unknown_type_can_be_skipped_and_nobody_may_send_them() {
    let bytes = b"\x06\x09\0\x10\x01\x02\x03\x04\x05\x06\x07\x08\xff\xff\xff\xff";
    let (message, length) = UdpMessage::decode(bytes, PROFILE).unwrap().whole().unwrap();
    assert_eq!(length, 16);
    for side in [Side::Client, Side::Proxy] {
        for channel in [Channel::Stream, Channel::Packets] {
            assert!(!message.may_come(side, channel));
        }
    }
    for kind in [1, 2] {
        let bytes = [6, kind, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8];
        let message = UdpMessage::decode_packet(&bytes, PROFILE).unwrap();
        assert!(message.may_come(Side::Proxy, Channel::Stream));
        assert!(!message.may_come(Side::Proxy, Channel::Packets));
        assert!(!message.may_come(Side::Client, Channel::Stream));
    }
}

#[test]
fn secrets_are_not_in_debug() {
    let options = b"\0\x04\0\x10\x02\x01\x02me\x06secret\0\x06\0\x0csesecret\0\x0d\0\x08\x12\x34\x56\x78\0\x04\0\x0c\x09tokenss";
    let (request, _) = decoded(options);
    let text = format!("{request:?}");
    assert!(request.options.token.is_some(), "{text}");
    for secret in ["secret", "115, 101", "305419896", "token", "116, 111"] {
        assert!(
            !text.replace("token:", "").contains(secret),
            "{secret} in {text}"
        );
    }
    let bytes = b"\x06\x01\0\x0c\0\0\0\0\x12\x34\x56\x78";
    let message = UdpMessage::decode_packet(bytes, PROFILE).unwrap();
    assert!(!format!("{message:?}").contains("305419896"));
}
