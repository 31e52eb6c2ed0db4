//! The asking side of SOCKS 6 with every command in every profile, and a proxy that answers anything in any pieces.
//!
//! Input: a byte each for the profile, the command, and what goes with it; four lengths of pieces; then what the proxy sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::handshake::socks6::client::Phase;
use sockhop::handshake::socks6::{Client, ClientError, Outcome};
use sockhop::wire::FirstBytes;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    AuthReply, Command, MethodAdvertisement, MethodSet, OpReply, Profile, Request, SessionId,
    SessionUse, Token, WindowSize,
};
use sockhop_fuzz::{pieces, settings};

fuzz_target!(|input: &[u8]| {
    let Some(([profile, command, with, lengths @ ..], sent)) = settings::<7>(input) else {
        return;
    };
    let (_, profile) = Profile::NAMED[usize::from(profile) % Profile::NAMED.len()];
    let client = Client::new(request(command, with), profile);
    let whole = Seen::of(client.clone(), [sent]);
    Seen::of(client.clone(), pieces(sent, &lengths)).agrees(&whole);
    Seen::of(client.clone(), sent.chunks(1)).agrees(&whole);
    as_wanted(client, sent).agrees(&whole);
});

fn request(command: u8, with: u8) -> Request {
    let commands = [
        Command::NOOP,
        Command::CONNECT,
        Command::BIND,
        Command::ASSOCIATE,
    ];
    let address = "example.com:80".parse().expect("an address");
    let mut request = Request::new(commands[usize::from(command) % 4], address);
    let options = &mut request.options;
    if with & 1 == 1 {
        options.methods = Some(MethodAdvertisement {
            initial_data: 0,
            methods: MethodSet::new([Method::USER_PASSWORD, Method(0xaa)]),
        });
    }
    options.session = match with >> 1 & 3 {
        0 => SessionUse::None,
        1 => SessionUse::Request,
        _ => SessionUse::Resume(SessionId::new(&[7; 16]).expect("an id")),
    };
    if with & 8 == 8 {
        options.token = Some(Token(u32::MAX));
        options.window = WindowSize::new(32);
    }
    request
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    taken: usize,
    outcomes: Vec<Outcome>,
    auth_reply: Option<AuthReply>,
    session_id: Option<SessionId>,
    failure: Option<ClientError>,
    /// What a proxy that closes now is told to have done.
    closed: Option<ClientError>,
    /// If zeros follow.
    later: Option<ClientError>,
}

impl Seen {
    fn of<'a>(mut client: Client, parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut seen = Self::default();
        let mut request = Vec::new();
        client.start(&mut request);
        assert!(!request.is_empty());
        'parts: for mut part in parts {
            while !part.is_empty() {
                let taken = match client.feed(part) {
                    Ok(taken) => taken,
                    Err(error) => {
                        seen.fail(&mut client, error);
                        break 'parts;
                    }
                };
                let stopped = seen.take(&mut client, taken);
                part = &part[taken..];
                if client.phase() == Phase::Finished {
                    break 'parts;
                }
                assert!(part.is_empty() || stopped, "stops without a reason");
                assert!(taken > 0, "takes nothing and is not at the end");
            }
        }
        seen.end(&client)
    }

    /// Whether it stopped for the driver.
    fn take(&mut self, client: &mut Client, taken: usize) -> bool {
        self.taken += taken;
        let outcome = client.outcome().cloned().filter(|_| taken > 0);
        let stopped = outcome.is_some();
        if let Some(outcome) = outcome {
            // Nothing is lost by an empty read.
            assert_eq!(client.feed(b""), Ok(0));
            assert_eq!(client.outcome(), Some(&outcome));
            if let Outcome::Negotiate(method) = outcome {
                assert!([Method::USER_PASSWORD, Method(0xaa)].contains(&method));
                client.negotiated();
                assert_eq!(client.phase(), Phase::AuthReply);
            }
            self.outcomes.push(outcome);
        }
        match client.closed() {
            ClientError::ClosedEarly(_, kept) => assert!(kept < LONGEST, "keeps {kept} bytes"),
            error => panic!("closed without a failure: {error:?}"),
        }
        stopped
    }

    /// The same as at any other split.
    fn agrees(&self, whole: &Self) {
        match (whole.failure, self.failure) {
            (Some(error), None) => assert_eq!(self.later, Some(error)),
            _ => assert_eq!(self, whole),
        }
    }

    /// A failure lasts.
    fn fail(&mut self, client: &mut Client, error: ClientError) {
        for more in [&b""[..], b"\x06\0\0\0", b"\x06\0\0\0\0\0\0\x01\0\0\0\0"] {
            assert_eq!(client.feed(more), Err(error));
        }
        let mut out = Vec::new();
        client.start(&mut out);
        client.negotiated();
        assert!(out.is_empty() && client.outcome().is_none());
        assert!(client.phase() == Phase::Finished && client.wanted() == 0);
        assert!(client.closed() == error && !error.to_string().is_empty());
        assert!(!client.may_send());
        self.taken = 0;
        // How much of the first answer is kept for the message depends on how much there was.
        self.failure = Some(match error {
            ClientError::OtherVersion(first) => ClientError::OtherVersion(FirstBytes::new(
                first.as_bytes().get(..1).expect("never without one"),
            )),
            error => error,
        });
    }

    fn end(mut self, client: &Client) -> Self {
        if client.phase() == Phase::Finished {
            assert_eq!(client.wanted(), 0);
        }
        self.auth_reply = client.auth_reply().cloned();
        self.session_id = client.session_id().cloned();
        self.closed = Some(client.closed()).filter(|_| self.failure.is_none());
        // Single bytes are only looked at when as many are there as were missing, so an error may come late.
        if client.wanted() > 0 {
            self.later = client.clone().feed(&vec![0; LONGEST]).err();
        }
        assert!(!format!("{client:?}").is_empty());
        self
    }
}

/// Feeds it what it wants and no more, as a driver does that must not read what is behind the handshake.
fn as_wanted(mut client: Client, mut sent: &[u8]) -> Seen {
    let mut seen = Seen::default();
    assert_eq!(client.wanted(), 0, "not started");
    client.start(&mut Vec::new());
    while !sent.is_empty() && client.phase() != Phase::Finished {
        let wanted = client.wanted();
        assert!((1..=LONGEST).contains(&wanted), "wants {wanted} bytes");
        let (part, rest) = sent.split_at(wanted.min(sent.len()));
        match client.feed(part) {
            Ok(taken) => {
                assert_eq!(taken, part.len(), "wanted what it does not take");
                seen.take(&mut client, taken);
            }
            Err(error) => {
                seen.fail(&mut client, error);
                break;
            }
        }
        sent = rest;
    }
    seen.end(&client)
}

/// Of all answers.
const LONGEST: usize = if OpReply::MAX_LEN > AuthReply::MAX_LEN {
    OpReply::MAX_LEN
} else {
    AuthReply::MAX_LEN
};
