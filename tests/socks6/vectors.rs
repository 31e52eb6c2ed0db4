//! Every vector of the reference, in the profile its group names.

use serde_json::Value;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    AuthReply, Authentication, Command, DecodeError, Decoded, Fault, Kind, Malformed, OpReply,
    OptionError, Profile, RawOption, ReplyCode, Request, Side, Token, TokenVerdict, UdpMessage,
    VersionMismatch, address_from_text,
};
use sockhop::wire::socks6::{Channel, SessionUse, SessionVerdict};
use sockhop::wire::{Credentials, NameError};

use crate::check;

fn group(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let groups = all["groups"].as_array().unwrap();
    let group = groups.iter().find(|group| group["name"] == name).unwrap();
    let vectors = group.get("vectors").or_else(|| group.get("cases")).unwrap();
    vectors.as_array().unwrap().clone()
}

fn text<'a>(vector: &'a Value, field: &str) -> &'a str {
    vector[field].as_str().unwrap_or_default()
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn bytes(vector: &Value) -> Vec<u8> {
    hex(text(vector, "hex"))
}

fn request_both_ways(bytes: &[u8], profile: &Profile) -> Request {
    check::both_ways(Request::decode, Request::encode, bytes, profile).0
}

fn auth_reply_both_ways(bytes: &[u8], profile: &Profile) -> AuthReply {
    check::both_ways(AuthReply::decode, AuthReply::encode, bytes, profile).0
}

fn op_reply_both_ways(bytes: &[u8], profile: &Profile) -> OpReply {
    check::both_ways(OpReply::decode, OpReply::encode, bytes, profile).0
}

fn udp_both_ways<'a>(bytes: &'a [u8], profile: &Profile) -> UdpMessage<'a> {
    for cut in 0..bytes.len() {
        let decoded = UdpMessage::decode(&bytes[..cut], profile).unwrap();
        let missing = if cut < 4 { 12 } else { bytes.len() } - cut;
        assert_eq!(decoded, Decoded::Missing(missing), "cut at {cut}");
        let packet = UdpMessage::decode_packet(&bytes[..cut], profile);
        assert_eq!(packet, Err(DecodeError::PacketTooShort));
    }
    let longer = [bytes, &[1, 2, 3]].concat();
    let (message, length) = UdpMessage::decode(&longer, profile)
        .unwrap()
        .whole()
        .unwrap();
    assert_eq!(length, bytes.len());
    let mut out = Vec::new();
    message.encode(profile, &mut out);
    assert_eq!(out, bytes);
    UdpMessage::decode_packet(bytes, profile).unwrap()
}

/// A message with these options only.
fn with_options(head: &str, options: &[u8], version: u8) -> Vec<u8> {
    let mut message = hex(head);
    message[0] = version;
    message[2..4].copy_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
    message.extend(options);
    message
}

const REQUEST: &str = "060100000000000100000000";
const AUTH_REPLY: &str = "06000000";

#[test]
fn go_requests() {
    let vectors = group("go-message-tests/request");
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let bytes = bytes(&vector);
        let profile = &Profile::GO_212;
        match text(&vector, "expect") {
            "" => {
                let request = request_both_ways(&bytes, profile);
                assert_eq!(request.command, Command::CONNECT);
                assert_eq!(request.address.to_string(), "127.0.0.1:1");
                let unknown = request.options.extra.find(Kind(0x100));
                assert_eq!(unknown.is_some(), bytes.len() > 12);
            }
            "end of input" => {
                let decoded = Request::decode(&bytes, profile).unwrap();
                assert!(matches!(decoded, Decoded::Missing(missing) if missing > 0));
            }
            _ => {
                let error = Request::decode(&bytes[..1], profile);
                assert_eq!(error, Err(DecodeError::Version(5)));
                assert_eq!(Request::decode(&bytes, profile), error);
            }
        }
    }
}

#[test]
fn go_options() {
    let vectors = group("go-message-tests/options");
    assert_eq!(vectors.len(), 32);
    let profile = &Profile::GO_212;
    for vector in vectors {
        let bytes = bytes(&vector);
        let raw: Result<Vec<RawOption<'_>>, _> = RawOption::all(&bytes, profile).collect();
        let request = with_options(REQUEST, &bytes, 212);
        let reply = with_options(AUTH_REPLY, &bytes, 212);
        let decode_request = || check::decodes(Request::decode, &request, profile);
        let decode_reply = || check::decodes(AuthReply::decode, &reply, profile);
        match text(&vector, "hex") {
            "" => {
                assert_eq!(Request::decode(&[], profile), Ok(Decoded::Missing(12)));
                assert_eq!(raw, Ok(vec![]));
                continue;
            }
            "00000064" => {
                let error = OptionError::PastEnd(100);
                assert_eq!(raw, Err(DecodeError::Option { at: 0, error }));
                continue;
            }
            // Parse only.
            "0002000c0064010003020004" => {
                let methods = decode_request().0.options.methods.unwrap();
                assert_eq!(methods.initial_data, 100);
                assert!(methods.methods.iter().eq([1, 2, 3, 4].map(Method)));
                continue;
            }
            // Method 2 with data that are no user and password, in either direction.
            "0004000802030201" | "000400060201" => {
                for problems in [decode_request().1, decode_reply().1] {
                    let problem = problems.iter().next().unwrap();
                    assert_eq!(problem.fault, Fault::Malformed(Malformed::UserPassword));
                }
            }
            "00080004000800040009000400090004000e0004" => {
                let (reply, problems) = decode_reply();
                assert_eq!(reply.options.session, Some(SessionVerdict::Ok));
                assert_eq!(reply.options.token, Some(TokenVerdict::Accepted));
                let faults: Vec<Fault> = problems.iter().map(|problem| problem.fault).collect();
                let contradiction = Fault::Contradiction;
                assert_eq!(faults, [Fault::Duplicate, contradiction, contradiction]);
            }
            _ => {
                let misplaced = |problem: sockhop::wire::socks6::Problem| {
                    problem.fault == Fault::Misplaced || problem.fault == Fault::WithoutSession
                };
                let (in_request, problems) = decode_request();
                assert!(problems.iter().all(misplaced), "{problems:?}");
                let (in_reply, problems) = decode_reply();
                assert!(problems.iter().all(misplaced), "{problems:?}");
                let encoded_request = check::encoded(Request::encode, &in_request, profile);
                let encoded_reply = check::encoded(AuthReply::encode, &in_reply, profile);
                // Teardown without a session has no meaning; see the vectors that have both.
                let teardown = bytes == [0, 10, 0, 4];
                let exact = encoded_request == request || encoded_reply == reply;
                assert!(exact || teardown, "{vector}");
            }
        }
        // Kind, length and data as they came.
        let mut out = Vec::new();
        for option in raw.unwrap() {
            out.extend(option.kind.0.to_be_bytes());
            out.extend(option.length().to_be_bytes());
            out.extend(option.data);
        }
        assert_eq!(out, bytes);
    }
}

#[test]
fn go_address_texts() {
    let vectors = group("go-message-tests/address-text");
    assert_eq!(vectors.len(), 9);
    for vector in vectors {
        let text_of = text(&vector, "text").replace("(315-character host)", &"h".repeat(315));
        let address = address_from_text(&text_of);
        let expected = match text(&vector, "expect") {
            "domain 61, port 1" => "a:1",
            "IPv4 0.0.0.0 port 0" => "0.0.0.0:0",
            "domain xn--ui1a port 1 (IDNA ToASCII)" => "xn--ui1a:1",
            "IPv4 7f000001 port 1" => "127.0.0.1:1",
            "IPv6 fe801234000000000000000000000001 port 1" => "[fe80:1234::1]:1",
            error => {
                assert!(error.starts_with("error"), "{error}");
                assert!(address.is_err(), "{text_of}: {address:?}");
                continue;
            }
        };
        assert_eq!(address.unwrap().to_string(), expected);
    }
}

#[test]
fn what_libsocks6msg_packs() {
    let vectors = group("libsocks6msg/packed");
    assert_eq!(vectors.len(), 43);
    let profile = &Profile::S6M_207;
    for vector in vectors {
        let bytes = bytes(&vector);
        let meaning = text(&vector, "meaning");
        if vector["conformant"] == false {
            // Written with the wrong kind; we read it, and write the right one.
            let (reply, problems) = check::decodes(AuthReply::decode, &bytes, profile);
            assert!(problems.is_empty());
            assert_eq!(
                reply.authentication(),
                Authentication::Negotiate(Method::GSSAPI)
            );
            let mut right = bytes.clone();
            right[5] = 3;
            assert_eq!(check::encoded(AuthReply::encode, &reply, profile), right);
            auth_reply_both_ways(&right, profile);
        } else if meaning.starts_with("auth reply") {
            let reply = auth_reply_both_ways(&bytes, profile);
            let succeeded = reply.authentication() == Authentication::Succeeded;
            assert_eq!(succeeded, meaning.contains("success"));
        } else if meaning.starts_with("op reply") {
            op_reply_both_ways(&bytes, profile);
        } else {
            request_both_ways(&bytes, profile);
            if let Some(name) = meaning.strip_suffix(":80 (pre-12 unpadded length byte)") {
                let name = name.strip_prefix("request CONNECT ").unwrap();
                let mut bytes = bytes;
                bytes[0] = 6;
                let request = request_both_ways(&bytes, &Profile::DRAFT_11);
                assert_eq!(request.address.host.to_string(), name);
            }
        }
    }
}

#[test]
fn derived_from_draft_12() {
    let vectors = group("derived/draft-12");
    assert_eq!(vectors.len(), 45);
    let profile = &Profile::DRAFT_12;
    for vector in vectors {
        let bytes = bytes(&vector);
        let meaning = text(&vector, "meaning");
        match meaning.split(' ').next().unwrap() {
            "Version" => {
                let (reply, length) = VersionMismatch::decode(&bytes).whole().unwrap();
                assert_eq!((reply, length), (VersionMismatch::of(profile), 1));
                let mut out = Vec::new();
                reply.encode(&mut out);
                assert_eq!(out, bytes);
            }
            "Authentication" => {
                let reply = auth_reply_both_ways(&bytes, profile);
                let expected = match () {
                    () if meaning.contains("success") => Authentication::Succeeded,
                    () if meaning.contains("Selection 1") => {
                        Authentication::Negotiate(Method::GSSAPI)
                    }
                    () => Authentication::Failed,
                };
                assert_eq!(reply.authentication(), expected, "{meaning}");
            }
            "Operation" => {
                let reply = op_reply_both_ways(&bytes, profile);
                assert_eq!(reply.code, ReplyCode(bytes[1]));
            }
            "UDP" => {
                let message = udp_both_ways(&bytes, profile);
                let trigger =
                    matches!(&message, UdpMessage::Datagram(datagram) if datagram.is_trigger());
                assert_eq!(trigger, meaning.contains("trigger"));
            }
            "Stack" => {
                let in_request = with_options(REQUEST, &bytes, 6);
                request_both_ways(&in_request, profile);
                let in_reply = with_options("060000000000000100000000", &bytes, 6);
                op_reply_both_ways(&in_reply, profile);
            }
            _ => {
                let request = request_both_ways(&bytes, profile);
                if meaning.contains("password") {
                    let ada = Credentials::new("alice", "123456").unwrap();
                    assert!(ada.matches(request.options.password.as_ref().unwrap()));
                }
                let wanted = request.options.session == SessionUse::Request;
                assert_eq!(wanted, meaning.contains("Session Request"));
            }
        }
    }
}

#[test]
fn consistent_address_order() {
    let vectors = group("derived/consistent-address");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        udp_both_ways(&bytes(&vector), &Profile::GO_212);
    }
}

#[test]
fn malformed_messages_have_their_error() {
    let vectors = group("derived/malformed");
    assert_eq!(vectors.len(), 16);
    let profile = &Profile::DRAFT_12;
    let option = |error| DecodeError::Option { at: 0, error };
    for vector in vectors {
        let bytes = bytes(&vector);
        let ignored = |fault: Fault| {
            let (request, problems) = check::decodes(Request::decode, &bytes, profile);
            assert_eq!(problems.count(), 1);
            assert_eq!(problems.iter().next().unwrap().fault, fault);
            assert_eq!(request.options, Default::default());
        };
        let request_error = match text(&vector, "hex") {
            "0601500400500001c0000207" => DecodeError::OptionsTooLong {
                length: 20_484,
                limit: 20_480,
            },
            "0601000400500001c000020700050000" => option(OptionError::TooShort(0)),
            "0601000400500001c000020700050003" => option(OptionError::TooShort(3)),
            "0601000800500001c00002070005000c00000000" => option(OptionError::PastEnd(12)),
            "0601000400500001c000020700020004"
            | "0601000400500001c000020700010004"
            | "0601000400500001c000020700060004" => {
                ignored(Fault::Malformed(Malformed::Length(4)));
                continue;
            }
            // In a request a window is misplaced anyway; in a reply its size is looked at.
            hex @ ("0601000c00500001c0000207000c000c0000000100000000"
            | "0601000c00500001c0000207000c000c0000000180000000") => {
                ignored(Fault::Misplaced);
                let reply = with_options(AUTH_REPLY, &bytes[12..], 6);
                let (reply, problems) = check::decodes(AuthReply::decode, &reply, profile);
                assert_eq!(reply.options, Default::default());
                let size = u32::from_str_radix(&hex[hex.len() - 8..], 16).unwrap();
                let fault = Fault::Malformed(Malformed::WindowSize(size));
                assert_eq!(problems.iter().next().unwrap().fault, fault);
                continue;
            }
            "060100000050000300" => NameError::Empty.into(),
            "060100000050000303610000" => {
                let request = request_both_ways(&bytes, profile);
                assert_eq!(request.address.to_string(), "a:80");
                continue;
            }
            "060100000050000303610062" => NameError::Byte(0).into(),
            "060100000050000200000000" => DecodeError::AddressType(2),
            "0603000b0102030405060708" => {
                let error = Err(DecodeError::MessageLength(11));
                assert_eq!(UdpMessage::decode_packet(&bytes, profile), error);
                assert_eq!(
                    UdpMessage::decode(&bytes[..4], profile).map(|_| ()),
                    error.map(|_: UdpMessage<'_>| ())
                );
                continue;
            }
            "0603ffff010203040506070801000035c0000207" => {
                let packet = UdpMessage::decode_packet(&bytes, profile);
                assert_eq!(packet, Err(DecodeError::PacketTooShort));
                continue;
            }
            "0604001c010203040506070801000035c000020701030000c6336401" => {
                let message = UdpMessage::decode_packet(&bytes, profile).unwrap();
                for channel in [Channel::Packets, Channel::Stream] {
                    assert!(!message.may_come(Side::Client, channel));
                    assert!(message.may_come(Side::Proxy, channel));
                }
                continue;
            }
            hex => panic!("no expectation for {hex}"),
        };
        assert_eq!(Request::decode(&bytes, profile), Err(request_error));
    }
}

#[test]
fn token_order() {
    let cases = group("derived/token-order");
    assert_eq!(cases.len(), 7);
    for case in cases {
        let token = |field| Token(u32::try_from(case[field].as_u64().unwrap()).unwrap());
        assert_eq!(token("x").precedes(token("y")), case["less"] == true);
    }
}
