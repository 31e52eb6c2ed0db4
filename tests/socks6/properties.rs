//! Generated messages and random bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    AssociationId, AuthData, AuthReply, AuthReplyOptions, AuthReplyType, Choice, Command, Datagram,
    DecodeError, Decoded, ErrorCode, ExtraOptions, Kind, Legs, MethodAdvertisement, OpReply,
    OpReplyOptions, Parity, PortParity, Profile, ReplyCode, Request, RequestOptions, Reserve,
    SessionId, SessionUse, SessionVerdict, StackOptions, Token, TokenVerdict, UdpError, UdpMessage,
    Window, WindowSize,
};
use sockhop::wire::user_password::{self, Status};
use sockhop::wire::{Address, BoundAddress, BoundName, Credentials, Host};
use std::net::{IpAddr, SocketAddr};

use crate::check;

fn profile() -> impl Strategy<Value = Profile> {
    (0..Profile::NAMED.len()).prop_map(|at| Profile::NAMED[at].1)
}

fn address() -> impl Strategy<Value = Address> {
    let host = prop_oneof![
        any::<IpAddr>().prop_map(Host::Ip),
        // A label in letters is never an IP address.
        "[a-z][a-z0-9-]{0,40}(\\.[a-z][a-z0-9]{0,50}){0,4}\\.?"
            .prop_map(|name| name.parse().unwrap()),
    ];
    (host, any::<u16>()).prop_map(|(host, port)| Address::new(host, port))
}

fn bound() -> impl Strategy<Value = BoundAddress> {
    prop_oneof![
        any::<(IpAddr, u16)>()
            .prop_map(|(ip, port)| BoundAddress::Socket(SocketAddr::new(ip, port))),
        (vec(1..=u8::MAX, 0..=255), any::<u16>())
            .prop_map(|(name, port)| BoundAddress::Name(BoundName::new(&name).unwrap(), port)),
    ]
}

fn choice() -> impl Strategy<Value = Option<Choice>> {
    prop::option::of(prop_oneof![Just(Choice::No), Just(Choice::Yes)])
}

fn stack() -> impl Strategy<Value = StackOptions> {
    let parity = (
        prop_oneof![Just(Parity::Any), Just(Parity::Even), Just(Parity::Odd)],
        prop_oneof![Just(Reserve::No), Just(Reserve::Yes)],
    )
        .prop_map(|(parity, reserve)| PortParity { parity, reserve });
    let leg = any::<[Option<u8>; 2]>;
    (
        (leg(), choice(), leg(), choice(), choice()),
        (any::<[Option<u16>; 2]>(), choice(), choice()),
        prop::option::of(parity),
    )
        .prop_map(
            |(
                (tos, happy_eyeballs, ttl, client, remote),
                ([tfo, backlog], multipath, udp_error),
                port_parity,
            )| {
                StackOptions {
                    tos: Legs {
                        client: tos[0],
                        remote: tos[1],
                    },
                    happy_eyeballs,
                    ttl: Legs {
                        client: ttl[0],
                        remote: ttl[1],
                    },
                    no_fragmentation: Legs { client, remote },
                    tfo,
                    multipath,
                    backlog,
                    udp_error,
                    port_parity,
                }
            },
        )
}

fn session_id() -> impl Strategy<Value = SessionId> {
    vec(any::<[u8; 4]>(), 1..=64).prop_map(|words| SessionId::new(&words.concat()).unwrap())
}

/// Of different methods that have no type of their own, aligned as decoding gives them back.
fn auth_data() -> impl Strategy<Value = Vec<AuthData>> {
    prop::collection::btree_map(3_u8..=255, 0_usize..200, 0..=AuthData::MAX_COUNT).prop_map(|all| {
        let one = |(method, words): (u8, usize)| {
            AuthData::new(Method(method), &vec![7; 4 * words + 3]).unwrap()
        };
        all.into_iter().map(one).collect()
    })
}

fn extra() -> impl Strategy<Value = ExtraOptions> {
    vec((16_u16.., vec(any::<u8>(), 0..100)), 0..10).prop_map(|options| {
        let mut extra = ExtraOptions::default();
        for (kind, data) in options {
            extra.push(Kind(kind), &data).unwrap();
        }
        extra
    })
}

fn window_size() -> impl Strategy<Value = WindowSize> {
    (1_u32..1 << 31).prop_map(|size| WindowSize::new(size).unwrap())
}

fn request() -> impl Strategy<Value = Request> {
    let methods = (0..=16_384_u16, vec(any::<u8>(), 0..20)).prop_map(|(initial_data, methods)| {
        MethodAdvertisement {
            initial_data,
            methods: methods.into_iter().map(Method).collect(),
        }
    });
    let password = ("[a-z]{1,255}", "[ -~]{1,255}").prop_map(|(user, password)| {
        user_password::Request::from(Credentials::new(user, password).unwrap())
    });
    let session = prop_oneof![
        Just(SessionUse::None),
        Just(SessionUse::Request),
        session_id().prop_map(SessionUse::Resume),
        session_id().prop_map(SessionUse::Teardown),
    ];
    (
        (any::<u8>(), address(), stack(), prop::option::of(methods)),
        (prop::option::of(password), auth_data(), session),
        (
            prop::option::of(window_size()),
            any::<Option<u32>>(),
            extra(),
        ),
    )
        .prop_map(
            |(
                (command, address, stack, mut methods),
                (password, auth_data, session),
                (window, token, extra),
            )| {
                if let Some(methods) = &mut methods
                    && command != 1
                {
                    methods.initial_data = 0;
                }
                Request {
                    command: Command(command),
                    address,
                    options: RequestOptions {
                        stack,
                        methods,
                        password,
                        auth_data,
                        session,
                        window,
                        token: token.map(Token),
                        extra,
                    },
                }
            },
        )
}

fn auth_reply() -> impl Strategy<Value = AuthReply> {
    let session = prop_oneof![Just(SessionVerdict::Ok), Just(SessionVerdict::Invalid)];
    let token = prop_oneof![Just(TokenVerdict::Accepted), Just(TokenVerdict::Rejected)];
    let window = (any::<u32>(), window_size()).prop_map(|(base, size)| Window {
        base: Token(base),
        size,
    });
    (
        any::<(u8, Option<u8>, Option<u8>)>(),
        (
            auth_data(),
            prop::option::of(session_id()),
            prop::option::of(session),
        ),
        (prop::option::of(window), prop::option::of(token), extra()),
    )
        .prop_map(
            |(
                (kind, selection, password),
                (auth_data, session_id, session),
                (window, token, extra),
            )| {
                AuthReply {
                    kind: AuthReplyType(kind),
                    options: AuthReplyOptions {
                        selection: selection.map(Method),
                        password: password.map(Status),
                        auth_data,
                        session_id,
                        session,
                        window,
                        token,
                        extra,
                    },
                }
            },
        )
}

fn op_reply() -> impl Strategy<Value = OpReply> {
    (
        any::<u8>(),
        bound(),
        stack(),
        prop::option::of(session_id()),
        extra(),
    )
        .prop_map(|(code, bound, stack, session_id, extra)| OpReply {
            code: ReplyCode(code),
            bound,
            options: OpReplyOptions {
                stack,
                session_id,
                extra,
            },
        })
}

/// A round trip, whole and cut at every byte.
fn round_trip<T: std::fmt::Debug + PartialEq>(
    decode: check::Decode<T>,
    encode: check::Encode<T>,
    message: &T,
    profile: &Profile,
) {
    let bytes = check::encoded(encode, message, profile);
    assert!(bytes.len() <= 8 + 256 + sockhop::wire::socks6::MAX_OPTIONS_SENT);
    let (again, _) = check::decodes(decode, &bytes, profile);
    assert_eq!(&again, message);
}

/// What decodes is written in a form that decodes to the same, and is written the same again.
fn stable<T: std::fmt::Debug + PartialEq>(
    decode: check::Decode<T>,
    encode: check::Encode<T>,
    bytes: &[u8],
    profile: &Profile,
) {
    if let Ok(Decoded::Whole {
        message, length, ..
    }) = decode(bytes, profile)
    {
        assert!(length <= bytes.len());
        let once = check::encoded(encode, &message, profile);
        let (again, _) = check::decodes(decode, &once, profile);
        assert_eq!(again, message);
        assert_eq!(check::encoded(encode, &again, profile), once);
        // Cut anywhere, the same input is incomplete, and never says more than it has.
        for cut in 0..length {
            let Ok(Decoded::Missing(missing)) = decode(&bytes[..cut], profile) else {
                panic!("{bytes:02x?} cut at {cut}");
            };
            assert!(missing > 0 && cut + missing <= length);
        }
    }
}

/// Options of all kinds, well-formed or nearly so.
fn rough_options() -> impl Strategy<Value = Vec<u8>> {
    let option = (0_u16..20, 0_u8..4, vec(any::<u8>(), 0..24), 0_u8..20).prop_map(
        |(kind, words, mut data, luck)| {
            data.resize(usize::from(words) * 4, 0);
            let mut length = u16::try_from(data.len()).unwrap() + 4;
            if luck == 0 {
                length += 1;
            }
            let mut option = kind.to_be_bytes().to_vec();
            option.extend(length.to_be_bytes());
            if kind == 1 && data.len() >= 2 {
                data[0] = (data[0] & 0xc0) | (data[0] % 6);
                data[1] %= 5;
            }
            option.extend(data);
            option
        },
    );
    vec(option, 0..12).prop_map(|options| options.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_come_back(request in request(), profile in profile()) {
        round_trip(Request::decode, Request::encode, &request, &profile);
    }

    #[test]
    fn auth_replies_come_back(reply in auth_reply(), profile in profile()) {
        round_trip(AuthReply::decode, AuthReply::encode, &reply, &profile);
    }

    #[test]
    fn op_replies_come_back(reply in op_reply(), profile in profile()) {
        round_trip(OpReply::decode, OpReply::encode, &reply, &profile);
    }

    #[test]
    fn datagrams_come_back(id in any::<u64>(), to in address(), payload in vec(any::<u8>(), 0..300), profile in profile()) {
        let datagram = Datagram::new(AssociationId(id), to, &payload).unwrap();
        let message = UdpMessage::Datagram(datagram);
        let mut bytes = Vec::new();
        message.encode(&profile, &mut bytes);
        prop_assert_eq!(UdpMessage::decode_packet(&bytes, &profile), Ok(message.clone()));
        let whole = bytes.len();
        bytes.extend([0; 9]);
        prop_assert_eq!(UdpMessage::decode_packet(&bytes, &profile), Ok(message));
        for cut in 0..whole {
            let decoded = UdpMessage::decode(&bytes[..cut], &profile);
            prop_assert!(matches!(decoded, Ok(Decoded::Missing(missing)) if missing > 0 && cut + missing <= whole));
        }
    }

    #[test]
    fn udp_errors_come_back(id in any::<u64>(), to in any::<(IpAddr, u16)>(), code in any::<u8>(), reporter in any::<IpAddr>(), profile in profile()) {
        let message = UdpMessage::Error(UdpError {
            association: AssociationId(id),
            destination: to.into(),
            code: ErrorCode(code),
            reporter,
        });
        let mut bytes = Vec::new();
        message.encode(&profile, &mut bytes);
        prop_assert_eq!(UdpMessage::decode_packet(&bytes, &profile), Ok(message));
    }
}

proptest! {
    #[test]
    fn rough_messages_are_stable(options in rough_options(), head in any::<[u8; 8]>(), host in vec(any::<u8>(), 16), kind in 0_u8..6, tail in vec(any::<u8>(), 0..5), profile in profile()) {
        let length = u16::try_from(options.len()).unwrap().to_be_bytes();
        let mut bytes = vec![profile.version, head[1] % 5, length[0], length[1], head[4], head[5], head[6], kind];
        match kind {
            1 => bytes.extend(&host[..4]),
            3 => bytes.extend(b"\x07abc.d\0\0"),
            4 => bytes.extend(&host),
            _ => (),
        }
        bytes.extend(&options);
        bytes.extend(&tail);
        stable(Request::decode, Request::encode, &bytes, &profile);
        stable(OpReply::decode, OpReply::encode, &bytes, &profile);
        let mut reply = vec![profile.version, head[1] % 3, length[0], length[1]];
        reply.extend(&options);
        reply.extend(&tail);
        stable(AuthReply::decode, AuthReply::encode, &reply, &profile);
    }

    #[test]
    fn random_bytes_do_no_harm(mut bytes in vec(any::<u8>(), 0..200), kind in 0_u8..6, small in any::<bool>(), profile in profile()) {
        for (slot, byte) in bytes.iter_mut().zip([profile.version]) {
            *slot = byte;
        }
        if small && bytes.len() > 8 {
            bytes[2] = 0;
            bytes[7] = kind;
        }
        stable(Request::decode, Request::encode, &bytes, &profile);
        stable(AuthReply::decode, AuthReply::encode, &bytes, &profile);
        stable(OpReply::decode, OpReply::encode, &bytes, &profile);
        if let Ok(message) = UdpMessage::decode_packet(&bytes, &profile) {
            let mut out = Vec::new();
            message.encode(&profile, &mut out);
            if !matches!(message, UdpMessage::Unknown(_)) {
                prop_assert_eq!(UdpMessage::decode_packet(&out, &profile), Ok(message));
            }
        }
        // An error never needs more than it was given: it is the same with anything behind.
        if let Err(error) = Request::decode(&bytes, &profile) {
            bytes.extend([0xff; 20]);
            prop_assert_eq!(Request::decode(&bytes, &profile), Err::<Decoded<Request>, DecodeError>(error));
        }
    }
}
