//! The asking side with every goal, and a proxy that answers anything in any pieces.
//!
//! Input: a byte each for what to ask for and with which login; four lengths of pieces; then what the proxy sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::handshake::client::Phase;
use sockhop::handshake::{Client, Goal, HandshakeError, Outcome};
use sockhop::wire::socks4::{self, UserId};
use sockhop::wire::{Address, Credentials, FirstBytes, socks5, user_password};
use sockhop_fuzz::{pieces, settings};

fuzz_target!(|input: &[u8]| {
    let Some(([goal, login, lengths @ ..], sent)) = settings::<6>(input) else {
        return;
    };
    let client = client(goal, login);
    // Byte by byte nothing can come before it was asked for, so this goes furthest.
    let furthest = Seen::of(client.clone(), sent.chunks(1));
    Seen::of(client.clone(), [sent]).agrees(&furthest);
    Seen::of(client.clone(), pieces(sent, &lengths)).agrees(&furthest);
    as_wanted(client, sent).agrees(&furthest);
});

fn client(goal: u8, login: u8) -> Client {
    let name = "n".repeat(255) + ":65535";
    let addresses = ["192.0.2.9:80", "example.com:80", "[2001:db8::9]:80", &name];
    let address: Address = addresses[usize::from(goal / 8) % addresses.len()]
        .parse()
        .expect("an address");
    let credentials = match login % 3 {
        0 => None,
        1 => Credentials::new("ada", "pass").ok(),
        _ => Credentials::new([b'u'; 255], [b'p'; 255]).ok(),
    };
    let socks4 = |command| {
        let user_id = UserId::new([b'u'; 255])
            .filter(|_| login % 2 == 1)
            .unwrap_or_default();
        let request = socks4::Request::socks4a(command, address.clone(), user_id);
        Client::socks4(request.expect("a request"))
    };
    let client = match goal % 8 {
        0 => return socks4(socks4::Command::Connect),
        1 => return socks4(socks4::Command::Bind),
        2 | 3 => Client::new(Goal::Greet, credentials),
        4 | 5 => Client::new(Goal::Connect(address), credentials),
        6 => Client::new(Goal::Bind(address), credentials),
        _ => Client::new(Goal::Associate(address), credentials),
    };
    match login / 3 % 2 {
        0 => client,
        _ => client.allow_no_authentication(),
    }
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    taken: usize,
    out: Vec<u8>,
    outcomes: Vec<Outcome>,
    failure: Option<HandshakeError>,
    /// What a proxy that closes now is told to have done.
    closed: Option<HandshakeError>,
}

impl Seen {
    fn of<'a>(mut client: Client, parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut seen = Self::default();
        client.start(&mut seen.out);
        'parts: for mut part in parts {
            loop {
                let outcome = client.outcome().cloned();
                let taken = match client.feed(part, &mut seen.out) {
                    Ok(taken) => taken,
                    Err(error) => {
                        seen.fail(&mut client, error);
                        break 'parts;
                    }
                };
                seen.take(&client, part, taken, outcome);
                part = &part[taken..];
                // Between the two replies to BIND it stops; it has to go on by itself.
                if part.is_empty() || client.phase() == Phase::Finished {
                    break;
                }
                assert!(
                    matches!(client.outcome(), Some(Outcome::Listening(_))),
                    "stops without a reason"
                );
            }
        }
        seen.end(&client)
    }

    fn take(&mut self, client: &Client, part: &[u8], taken: usize, before: Option<Outcome>) {
        assert!(taken <= part.len());
        self.taken += taken;
        let outcome = client.outcome().cloned();
        // The outcome of before stays until something more is fed.
        if outcome != before || (taken > 0 && outcome.is_some()) {
            self.outcomes.extend(outcome);
        }
        match client.closed() {
            HandshakeError::ClosedEarly(_, kept) => assert!(kept < LONGEST, "keeps {kept} bytes"),
            error => panic!("closed without a failure: {error:?}"),
        }
    }

    /// A failure lasts, and nothing more is said.
    fn fail(&mut self, client: &mut Client, error: HandshakeError) {
        let length = self.out.len();
        for more in [
            &b""[..],
            b"\x05\0",
            b"\x05\0\0\x01\0\0\0\0\0\0",
            b"\0\x5a\0\0\0\0\0\0",
        ] {
            assert_eq!(client.feed(more, &mut self.out), Err(error));
        }
        client.start(&mut self.out);
        assert_eq!(self.out.len(), length);
        assert!(client.outcome().is_none() && client.phase() == Phase::Finished);
        assert!(client.wanted() == 0 && client.closed() == error && !error.to_string().is_empty());
        self.taken = 0;
        // How much of the first answer is kept for the message depends on how much there was.
        self.failure = Some(match error {
            HandshakeError::NotSocks(first) => HandshakeError::NotSocks(FirstBytes::new(
                first.as_bytes().get(..1).expect("never without one"),
            )),
            error => error,
        });
    }

    fn end(mut self, client: &Client) -> Self {
        let longest_socks5 = 4 + user_password::Request::MAX_LEN + socks5::Request::MAX_LEN;
        assert!(self.out.len() <= longest_socks5.max(socks4::Request::MAX_LEN));
        assert!(self.outcomes.len() <= 2);
        if client.phase() == Phase::Finished {
            assert_eq!(client.wanted(), 0);
        }
        self.closed = Some(client.closed()).filter(|_| self.failure.is_none());
        self
    }

    /// The same as at any other split, unless this one came early with more.
    fn agrees(&self, furthest: &Self) {
        if let Some(HandshakeError::Unsolicited(_)) = self.failure {
            assert!(furthest.out.starts_with(&self.out) && self.outcomes.is_empty());
        } else {
            assert_eq!(self, furthest);
        }
    }
}

/// Feeds it what it wants and no more, as a driver does that must not read what is behind the handshake.
fn as_wanted(mut client: Client, mut sent: &[u8]) -> Seen {
    let mut seen = Seen::default();
    assert_eq!(client.wanted(), 0, "not started");
    client.start(&mut seen.out);
    while !sent.is_empty() && client.phase() != Phase::Finished {
        let wanted = client.wanted();
        assert!((1..=LONGEST).contains(&wanted), "wants {wanted} bytes");
        let (part, rest) = sent.split_at(wanted.min(sent.len()));
        let before = client.outcome().cloned();
        match client.feed(part, &mut seen.out) {
            Ok(taken) => {
                assert_eq!(taken, part.len(), "wanted what it does not take");
                seen.take(&client, part, taken, before);
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
const LONGEST: usize = socks5::Reply::MAX_LEN;
