//! The answering side under every policy, with a client that sends anything in any pieces.
//!
//! Input: a byte each for policy, verdict on credentials and reply; four lengths of pieces; then what the client sends.

#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use sockhop::handshake::server::Phase;
use sockhop::handshake::{Event, Methods, Policy, Server, ServerError, Socks4};
use sockhop::wire::socks5::{Command, ReplyCode};
use sockhop_fuzz::{pieces, settings};

fuzz_target!(|input: &[u8]| {
    let Some(([policy, verdict, reply, lengths @ ..], sent)) = settings::<7>(input) else {
        return;
    };
    let driver = Driver {
        policy: Policy {
            methods: [Methods::None, Methods::UserPassword, Methods::Either]
                [usize::from(policy % 3)],
            socks4: [Socks4::Allowed, Socks4::Refused, Socks4::ByUserId]
                [usize::from(policy / 3 % 3)],
        },
        accepts: verdict % 2 == 0,
        code: ReplyCode(reply),
        bound: ADDRESSES[usize::from(verdict / 2) % ADDRESSES.len()]
            .parse()
            .expect("an address"),
    };
    let whole = driver.serve([sent]);
    assert_eq!(whole, driver.serve(pieces(sent, &lengths)));
    assert_eq!(whole, driver.serve(sent.chunks(1)));

    let declined = driver.decline([sent]);
    assert_eq!(declined, driver.decline(pieces(sent, &lengths)));
    assert_eq!(declined, driver.decline(sent.chunks(1)));
});

struct Driver {
    policy: Policy,
    accepts: bool,
    code: ReplyCode,
    bound: SocketAddr,
}

/// All that a client or the one who runs the server can see.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    taken: usize,
    out: Vec<u8>,
    events: Vec<String>,
    failure: Option<ServerError>,
    finished: bool,
}

impl Driver {
    fn serve<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Seen {
        let mut server = Server::new(self.policy);
        let mut seen = Seen::default();
        'parts: for mut part in parts {
            loop {
                let taken = match server.feed(part, &mut seen.out) {
                    Ok(taken) => taken,
                    Err(error) => {
                        seen.fail(&mut server, error);
                        break 'parts;
                    }
                };
                assert!(taken <= part.len());
                seen.taken += taken;
                part = &part[taken..];
                if !self.answer(&mut server, &mut seen) {
                    break;
                }
                // A rejection takes effect at once.
                if let Err(error) = server.feed(&[], &mut seen.out) {
                    seen.fail(&mut server, error);
                    break 'parts;
                }
            }
            let over = server.phase() == Phase::Finished;
            assert!(
                over || part.is_empty(),
                "bytes are left, and nothing to do with them"
            );
        }
        seen.end(&mut server)
    }

    /// Sees to an event, if there is one.
    fn answer(&self, server: &mut Server, seen: &mut Seen) -> bool {
        let Some(event) = server.event() else {
            return false;
        };
        seen.events.push(format!("{event:?}"));
        match event {
            Event::Credentials(_) | Event::UserId(_) if self.accepts => {
                server.accept(&mut seen.out);
            }
            Event::Credentials(_) | Event::UserId(_) => server.reject(&mut seen.out),
            Event::Request(request) => {
                let binds = request.command == Command::Bind && self.code == ReplyCode::SUCCEEDED;
                // Not the turn of these.
                let length = seen.out.len();
                server.accept(&mut seen.out);
                server.reject(&mut seen.out);
                assert_eq!(seen.out.len(), length);
                server.reply(self.code, self.bound, &mut seen.out);
                assert_eq!(server.phase() == Phase::Reply, binds);
                if binds {
                    assert_eq!(server.feed(b"early", &mut seen.out), Ok(0));
                    server.reply(self.code, self.bound, &mut seen.out);
                }
                assert_eq!(server.phase(), Phase::Finished);
            }
        }
        true
    }

    fn decline<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Seen {
        let mut server = Server::new(self.policy);
        let mut seen = Seen::default();
        // To decline with success makes no sense, and a BIND would go on.
        let code = match self.code {
            ReplyCode::SUCCEEDED => ReplyCode::GENERAL_FAILURE,
            code => code,
        };
        for part in parts {
            match server.decline(part, code, &mut seen.out) {
                Ok(taken) => {
                    assert!(taken <= part.len());
                    assert!(taken == part.len() || server.phase() == Phase::Finished);
                    seen.taken += taken;
                }
                Err(error) => {
                    seen.fail(&mut server, error);
                    break;
                }
            }
        }
        seen.end(&mut server)
    }
}

impl Seen {
    /// A failure lasts, and nothing more is said.
    fn fail(&mut self, server: &mut Server, error: ServerError) {
        let length = self.out.len();
        for more in [
            &b""[..],
            b"\x05\x01\0",
            b"\x04\x01\0\x50\x01\x02\x03\x04\0",
            b"GET /",
        ] {
            assert_eq!(server.feed(more, &mut self.out), Err(error));
        }
        assert!(server.event().is_none() && server.phase() == Phase::Finished);
        server.reply(
            ReplyCode::SUCCEEDED,
            SocketAddr::from(([1, 2, 3, 4], 5)),
            &mut self.out,
        );
        server.accept(&mut self.out);
        assert_eq!(self.out.len(), length);
        assert!(!error.to_string().is_empty());
        self.taken = 0;
        // One letter is enough to tell HTTP; with more of them at once it can still be something else.
        self.failure = Some(match error {
            ServerError::Http | ServerError::Version(_) => ServerError::Version(0),
            error => error,
        });
    }

    fn end(mut self, server: &mut Server) -> Self {
        self.finished = server.phase() == Phase::Finished;
        if self.finished && self.failure.is_none() {
            assert_eq!(server.feed(b"payload", &mut self.out), Ok(0));
        }
        // Selection, status and two replies with the longest address we have.
        assert!(
            self.out.len() <= 2 + 2 + 2 * 22,
            "{} bytes sent",
            self.out.len()
        );
        assert!(self.taken <= Server::MAX_MESSAGE * 3);
        self
    }
}

const ADDRESSES: [&str; 4] = [
    "192.0.2.1:4000",
    "[2001:db8::1]:65535",
    "[::ffff:192.0.2.1]:1",
    "0.0.0.0:0",
];
