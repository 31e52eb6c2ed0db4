//! The books on sessions and tokens, with operations in any order, next to others that are kept in the simplest way.
//!
//! Input: two bytes for the first token, one for the size of the windows; then an operation a byte, with its argument in
//! the next one.

#![no_main]

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use sockhop::handshake::socks6::{
    Arrival, Client, Limits, Owner, Purse, Sessions, Spend, SpentTokens, Wallet,
};
use sockhop::wire::BoundAddress;
use sockhop::wire::socks6::{
    AuthReply, AuthReplyOptions, AuthReplyType, Command, OpReply, Profile, ReplyCode, Request,
    RequestOptions, SessionId, SessionUse, SessionVerdict, Token, TokenVerdict, WindowSize,
};
use sockhop_fuzz::settings;

fuzz_target!(|input: &[u8]| {
    let Some(([high, low, size], operations)) = settings::<3>(input) else {
        return;
    };
    // Around zero, where the numbers begin again.
    let base = Token((u32::from(high) << 8 | u32::from(low)).wrapping_sub(1 << 15));
    let size = WindowSize::new(u32::from(size).max(1)).expect("not zero");
    let operations: Vec<[u8; 2]> = operations.as_chunks().0.to_vec();
    tokens(base, size, &operations);
    sessions(base, size, &operations);
    wallet(base, size, &operations);
});

/// No token twice, none that is outside, and the window moves on only.
fn tokens(base: Token, size: WindowSize, operations: &[[u8; 2]]) {
    let mut book = SpentTokens::new(base, size);
    let mut purse = Purse::new(book.window());
    let mut spent = BTreeSet::new();
    let mut told = book.window();
    for &[operation, argument] in operations {
        let before = book.window();
        let token = match operation % 4 {
            0 => match purse.take() {
                Some(token) => token,
                None => {
                    assert_eq!(purse.left(), 0);
                    purse.update(book.window());
                    continue;
                }
            },
            // In the window, in front of it or behind it.
            1 => Token(before.base.0.wrapping_add(u32::from(argument))),
            2 => Token(before.base.0.wrapping_sub(u32::from(argument))),
            _ => {
                // An answer that was held up on its way changes nothing.
                let left = purse.left();
                purse.update(told);
                assert!(purse.left() >= left);
                told = before;
                continue;
            }
        };
        let free = before.contains(token) && !spent.contains(&token.0);
        let verdict = book.spend(token);
        assert_eq!(
            verdict == TokenVerdict::Accepted,
            free,
            "{token:?} in {before:?}"
        );
        if free {
            spent.insert(token.0);
        }
        let after = book.window();
        assert_eq!(after.size, size);
        assert!(after.base == before.base || before.base.precedes(after.base));
        if verdict == TokenVerdict::Rejected {
            assert_eq!(after, before);
        }
        // The first one of a window can always be spent.
        assert!(!spent.contains(&after.base.0));
    }
}

/// A session as it is kept without regard to memory.
struct Plain {
    owner: usize,
    used: Instant,
    has_window: bool,
    spent: BTreeSet<u32>,
}

fn sessions(base: Token, size: WindowSize, operations: &[[u8; 2]]) {
    let limits = Limits {
        total: 6,
        per_client: 3,
        idle: Duration::from_secs(10),
        window: size,
    };
    let mut book = Sessions::new(limits);
    let mut plain: HashMap<u8, Plain> = HashMap::new();
    let mut now = Instant::now();
    let mut fresh = 0_u8;
    for &[operation, argument] in operations {
        plain.retain(|_, session| now < session.used + limits.idle);
        let id = |number: u8| SessionId::new(&[number; 16]).expect("an id");
        // One of the latest.
        let number = fresh.wrapping_sub(argument % 8);
        let mut options = RequestOptions::default();
        if operation & 16 != 0 {
            options.window = WindowSize::new(1 + u32::from(argument));
        }
        if operation & 32 != 0 {
            options.token = Some(Token(base.0.wrapping_add(u32::from(argument / 8))));
        }
        match operation % 4 {
            0 => {
                options.session = SessionUse::Request;
                let (arrival, answer) = book.arrive(&options, base, now);
                assert_eq!(arrival, Arrival::Authenticate);
                assert_eq!(answer, AuthReplyOptions::default());
                let client = usize::from(argument % 3);
                let owner = owner(client);
                let count = plain
                    .values()
                    .filter(|session| session.owner == client)
                    .count();
                let room = plain.len() < limits.total && count < limits.per_client;
                fresh = fresh.wrapping_add(1);
                let known = plain.contains_key(&fresh);
                let answer = book.open(&options, owner, [fresh; 16], base, now);
                assert_eq!(answer.session_id.is_some(), room && !known);
                if room && !known {
                    let mut session = Plain {
                        owner: client,
                        used: now,
                        has_window: false,
                        spent: BTreeSet::new(),
                    };
                    session.account(&options, base, &answer);
                    plain.insert(fresh, session);
                }
            }
            1 => {
                options.session = SessionUse::Teardown(id(number));
                let (arrival, _) = book.arrive(&options, base, now);
                assert_eq!(arrival, Arrival::Authenticate);
                plain.remove(&number);
            }
            2 => {
                options.session = SessionUse::Resume(id(number));
                let (arrival, answer) = book.arrive(&options, base, now);
                let Some(session) = plain.get_mut(&number) else {
                    assert_eq!(arrival, Arrival::UnknownSession);
                    assert_eq!(answer.session, Some(SessionVerdict::Invalid));
                    continue;
                };
                assert_eq!(answer.session, Some(SessionVerdict::Ok));
                session.used = now;
                session.account(&options, base, &answer);
                match answer.token {
                    Some(TokenVerdict::Rejected) => assert_eq!(arrival, Arrival::TokenRejected),
                    _ => assert_eq!(arrival, Arrival::Inside(owner(session.owner))),
                }
            }
            _ => {
                now += Duration::from_millis(100 * u64::from(argument));
                if operation & 16 != 0 {
                    book.expire(now);
                    plain.retain(|_, session| now < session.used + limits.idle);
                    assert_eq!(book.len(), plain.len());
                }
            }
        }
        assert!(book.len() <= limits.total && book.len() >= plain.len());
    }
}

impl Plain {
    /// What the answer says of tokens, compared with what was spent before.
    fn account(&mut self, options: &RequestOptions, base: Token, answer: &AuthReplyOptions) {
        self.has_window |= options.window.is_some();
        assert_eq!(answer.window.is_some(), self.has_window);
        let Some(token) = options.token else {
            assert_eq!(answer.token, None);
            return;
        };
        match answer.token.expect("a token has a verdict") {
            TokenVerdict::Accepted => {
                assert!(self.has_window && !token.precedes(base));
                assert!(self.spent.insert(token.0), "spent twice");
            }
            TokenVerdict::Rejected => {
                // The first token of a window that was never used is good.
                assert!(!self.has_window || !self.spent.is_empty() || token != base);
            }
        }
    }
}

fn owner(number: usize) -> Owner {
    Owner {
        user: (number == 0).then(|| b"ada"[..].into()),
        address: IpAddr::V4(Ipv4Addr::from(u32::try_from(number).expect("small"))),
    }
}

/// A wallet and a proxy that says what it likes: no token is spent twice in one session, and one request at a time asks for
/// a session.
fn wallet(base: Token, size: WindowSize, operations: &[[u8; 2]]) {
    let mut wallet = Wallet::new(Some(size));
    let mut waiting = Vec::new();
    let mut taken: HashMap<SessionId, BTreeSet<u32>> = HashMap::new();
    let mut granted = 0_u32;
    for &[operation, argument] in operations {
        match operation % 4 {
            0 | 1 if waiting.len() < 8 => {
                let mut request = Request::new(Command::NOOP, "0.0.0.0:0".parse().expect("zeros"));
                let spend = [Spend::Yes, Spend::No][usize::from(operation % 4)];
                let had = wallet.has_session();
                let ticket = wallet.prepare(&mut request.options, spend);
                match &request.options.session {
                    SessionUse::Resume(id) => {
                        assert!(had);
                        if let Some(token) = request.options.token {
                            assert!(taken.entry(id.clone()).or_default().insert(token.0));
                        }
                    }
                    SessionUse::Request => assert!(!had && request.options.token.is_none()),
                    _ => assert!(!had && request.options.token.is_none()),
                }
                waiting.push((request, ticket));
            }
            0 | 1 => {}
            2 if !waiting.is_empty() => {
                let (request, ticket) = waiting.remove(usize::from(argument) % waiting.len());
                let mut client = Client::new(request.clone(), Profile::DRAFT_12);
                client.start(&mut Vec::new());
                granted += 1;
                let answer = answer(&request, [operation, argument], granted, base, size);
                let _ = client.feed(&answer);
                wallet.settle(ticket, &client);
            }
            2 => {}
            _ => {
                let _ = wallet.forget();
                assert!(!wallet.has_session() && wallet.tokens_left() == 0);
            }
        }
        assert!(wallet.has_session() || wallet.tokens_left() == 0);
    }
}

/// What a proxy answers: nothing, or a reply that grants more or less.
fn answer(
    request: &Request,
    [operation, argument]: [u8; 2],
    number: u32,
    base: Token,
    size: WindowSize,
) -> Vec<u8> {
    let mut out = Vec::new();
    if operation & 4 != 0 {
        return out;
    }
    let profile = Profile::DRAFT_12;
    let mut reply = AuthReply::new(match operation & 8 {
        0 => AuthReplyType::SUCCESS,
        _ => AuthReplyType::FAILURE,
    });
    match request.options.session {
        SessionUse::Request if operation & 16 != 0 => {
            reply.options.session_id = SessionId::new(&number.to_be_bytes());
        }
        SessionUse::Resume(_) => {
            reply.options.session = Some(match operation & 16 {
                0 => SessionVerdict::Ok,
                _ => SessionVerdict::Invalid,
            });
        }
        _ => {}
    }
    if operation & 32 != 0 {
        // On from the first one, as an honest proxy has it.
        let mut book = SpentTokens::new(base, size);
        for token in 0..u32::from(argument % 8) {
            book.spend(Token(base.0.wrapping_add(token)));
        }
        reply.options.window = Some(book.window());
    }
    reply.encode(&profile, &mut out);
    OpReply::new(ReplyCode::SUCCEEDED, BoundAddress::UNSPECIFIED).encode(&profile, &mut out);
    out
}
