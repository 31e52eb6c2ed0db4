//! The answering side of SOCKS 6 in every profile, with a client that sends anything in any pieces.
//!
//! Input: a byte each for profile, verdict and reply; four lengths of pieces; then what the client sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sockhop::handshake::socks6::server::{Phase, Server, ServerError};
use sockhop::wire::BoundAddress;
use sockhop::wire::socks5::Method;
use sockhop::wire::socks6::{
    AuthReplyOptions, BacklogNotice, Command, OpReplyOptions, Profile, ReplyCode, SessionId,
    StackOptions,
};
use sockhop_fuzz::{pieces, settings};

fuzz_target!(|input: &[u8]| {
    let Some(([profile, verdict, reply, lengths @ ..], sent)) = settings::<7>(input) else {
        return;
    };
    let driver = Driver {
        profile: Profile::NAMED[usize::from(profile) % Profile::NAMED.len()].1,
        verdict: match verdict % 4 {
            0 => Verdict::Reject,
            1 => Verdict::RefuseMethods,
            2 => Verdict::Negotiate(Method(verdict / 4)),
            _ => Verdict::Accept,
        },
        grants_session: verdict / 4 % 2 == 1,
        code: ReplyCode(reply % 16),
        backlog: u16::from(reply / 16),
    };
    let whole = driver.serve([sent]);
    driver.serve(pieces(sent, &lengths)).agrees(&whole);
    driver.serve(sent.chunks(1)).agrees(&whole);
    driver.as_wanted(sent, &whole);
});

struct Driver {
    profile: Profile,
    verdict: Verdict,
    grants_session: bool,
    code: ReplyCode,
    backlog: u16,
}

enum Verdict {
    Accept,
    Reject,
    RefuseMethods,
    Negotiate(Method),
}

/// All that a client or the one who runs the server can see.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    taken: usize,
    out: Vec<u8>,
    request: String,
    failure: Option<ServerError>,
    /// If zeros follow.
    later: Option<ServerError>,
}

impl Driver {
    fn serve<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Seen {
        let mut server = Server::new(self.profile);
        let mut seen = Seen::default();
        for part in parts {
            let before = server.phase();
            match server.feed(part, &mut seen.out) {
                Ok(taken) => {
                    assert!(taken <= part.len() && (before == Phase::Request || taken == 0));
                    seen.taken += taken;
                    match server.phase() {
                        Phase::Request => assert_eq!(taken, part.len(), "bytes are left"),
                        Phase::Verdict => self.answer(&mut server, &mut seen),
                        _ => {}
                    }
                }
                Err(error) => {
                    seen.fail(&mut server, error);
                    break;
                }
            }
        }
        // Single bytes are only looked at when as many are there as were missing, so an error may come late.
        if server.phase() == Phase::Request
            && let Err(error) = server
                .clone()
                .feed(&[0; Server::MAX_MESSAGE], &mut Vec::new())
        {
            seen.later = Some(error);
        }
        if server.phase() == Phase::Request {
            assert!(seen.out.is_empty() && server.request().is_none());
            assert!((1..=Server::MAX_MESSAGE).contains(&server.wanted()));
        } else {
            assert_eq!(server.wanted(), 0);
        }
        assert!(seen.taken <= Server::MAX_MESSAGE);
        assert!(!format!("{server:?}").is_empty());
        seen
    }

    /// Feeds it what it wants and no more, as a driver does that must not read what is behind the request.
    fn as_wanted(&self, mut sent: &[u8], whole: &Seen) {
        let mut server = Server::new(self.profile);
        let mut out = Vec::new();
        let mut taken = 0;
        while server.phase() == Phase::Request && !sent.is_empty() {
            let (part, rest) = sent.split_at(server.wanted().min(sent.len()));
            match server.feed(part, &mut out) {
                Ok(count) => assert_eq!(count, part.len(), "wanted what it does not take"),
                Err(_) => return,
            }
            taken += part.len();
            sent = rest;
        }
        if whole.failure.is_none() {
            assert_eq!(taken, whole.taken);
        }
    }

    /// Everything that a driver does behind a request.
    fn answer(&self, server: &mut Server, seen: &mut Seen) {
        let request = server
            .request()
            .expect("a verdict is for a request")
            .clone();
        seen.request = format!("{request:?} {:?}", server.problems());
        // Not the turn of this.
        server.refuse(ReplyCode::SUCCEEDED, &mut seen.out);
        server.notify(BoundAddress::UNSPECIFIED, &mut seen.out);
        assert!(seen.out.is_empty());
        let initial = request.initial_data();
        assert_eq!(server.take_initial_data(usize::MAX), initial);
        assert_eq!(server.take_initial_data(usize::MAX), 0);
        let session_id = self
            .grants_session
            .then(|| SessionId::new(&[7; 16]))
            .flatten();
        let options = AuthReplyOptions {
            session_id,
            ..AuthReplyOptions::default()
        };
        match self.verdict {
            Verdict::Reject => server.reject(options, &mut seen.out),
            Verdict::RefuseMethods => server.refuse_methods(&mut seen.out),
            Verdict::Negotiate(method) => {
                let may = server.may_negotiate(method);
                assert_eq!(server.negotiate(method, &mut seen.out), may);
                assert_eq!(server.phase() == Phase::Negotiation, may);
                // There is one negotiation at most.
                assert!(!(may && server.negotiate(method, &mut seen.out)));
                server.accept(options, &mut seen.out);
            }
            Verdict::Accept => server.accept(options, &mut seen.out),
        }
        let said = seen.out.len();
        assert!(said > 0, "nothing was said");
        if server.phase() == Phase::Finished {
            let error = server
                .feed(b"", &mut seen.out)
                .expect_err("it was rejected");
            assert_eq!(error, ServerError::Rejected);
            seen.fail(server, error);
            return;
        }
        assert_eq!(server.phase(), Phase::Reply);
        server.accept(AuthReplyOptions::default(), &mut seen.out);
        server.reject(AuthReplyOptions::default(), &mut seen.out);
        assert_eq!(seen.out.len(), said);
        let options = OpReplyOptions {
            stack: StackOptions {
                backlog: Some(self.backlog),
                ..StackOptions::default()
            },
            ..OpReplyOptions::default()
        };
        server.reply(self.code, BoundAddress::UNSPECIFIED, options, &mut seen.out);
        let binds = request.command == Command::BIND && self.code == ReplyCode::SUCCEEDED;
        let again = binds && self.backlog == 0;
        assert_eq!(server.phase() == Phase::Reply, again);
        if again {
            server.refuse(self.code, &mut seen.out);
        }
        assert_eq!(server.phase(), Phase::Finished);
        let said = seen.out.len();
        server.refuse(self.code, &mut seen.out);
        assert_eq!(seen.out.len(), said);
        server.notify(BoundAddress::UNSPECIFIED, &mut seen.out);
        let notifies = binds && !again && self.profile.backlog == BacklogNotice::Push;
        assert_eq!(seen.out.len() > said, notifies);
    }
}

impl Seen {
    /// The same as at any other split.
    fn agrees(&self, whole: &Self) {
        match (whole.failure, self.failure) {
            (Some(error), None) => assert_eq!(self.later, Some(error)),
            _ => assert_eq!(self, whole),
        }
    }

    /// A failure lasts, and nothing more is said.
    fn fail(&mut self, server: &mut Server, error: ServerError) {
        let length = self.out.len();
        for more in [&b""[..], b"\x06\0\0\0\0\0\0\x01\0\0\0\0", b"GET /"] {
            assert_eq!(server.feed(more, &mut self.out), Err(error));
        }
        assert!(server.request().is_none() && server.phase() == Phase::Finished);
        server.accept(AuthReplyOptions::default(), &mut self.out);
        server.refuse(ReplyCode::SUCCEEDED, &mut self.out);
        server.refuse_methods(&mut self.out);
        assert_eq!(self.out.len(), length);
        assert!(!error.to_string().is_empty());
        self.taken = 0;
        self.failure = Some(error);
    }
}
