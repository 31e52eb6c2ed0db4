//! The proxy's book on sessions.
//!
//! What to read: "Session Options" and "Idempotence Options" in the draft.
//!
//! A session belongs to who opened it: requests inside it need no credentials and act for that one. Sessions have an
//! idle time and two limits, one for everybody together and one for each user, or each address where nobody has a name,
//! so that nobody can keep the others from having one. Time and randomness come from the caller.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::tokens::SpentTokens;
use crate::wire::socks6::{
    AuthReplyOptions, RequestOptions, SessionId, SessionUse, SessionVerdict, Token, TokenVerdict,
    WindowSize,
};

/// The sessions of a proxy.
pub struct Sessions {
    limits: Limits,
    by_id: HashMap<Key, Session>,
    counts: HashMap<Account, usize>,
    /// Every session at least once, and first the one that may have been idle for too long first.
    queue: BinaryHeap<Reverse<(Instant, Key)>>,
}

/// How many sessions there may be, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of all clients together.
    pub total: usize,
    /// Of one user, or of one address (IPv6: of one /64) where no user is known.
    pub per_client: usize,
    /// After so long without a request, a session ends.
    pub idle: Duration,
    /// The largest token window.
    pub window: WindowSize,
}

/// Whose a session is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The user who authenticated, if there was one.
    pub user: Option<Box<[u8]>>,
    /// Where the session was opened from.
    pub address: IpAddr,
}

/// What a request's session options come to, before anything else is done with the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is outside any session: authenticate as ever, then call [`Sessions::open`].
    Authenticate,
    /// It is inside this one's session, and accepted. No credentials are looked at.
    Inside(Owner),
    /// Reject it: there is no such session.
    UnknownSession,
    /// Reject it, and don't carry it out: the token was spent before, or is outside the window.
    TokenRejected,
}

struct Session {
    owner: Owner,
    used: Instant,
    tokens: Option<SpentTokens>,
}

/// The ids we give: 128 bits, so that nobody guesses one.
type Key = [u8; 16];

/// Who is counted as one.
#[derive(PartialEq, Eq, Hash)]
enum Account {
    User(Box<[u8]>),
    Address(IpAddr),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: TOTAL,
            per_client: PER_CLIENT,
            idle: IDLE,
            window: WINDOW,
        }
    }
}

impl Sessions {
    /// No sessions yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            by_id: HashMap::new(),
            counts: HashMap::new(),
            queue: BinaryHeap::new(),
        }
    }

    /// Looks at what a request says of its session, and does it: ends the session, or goes on with it, gives it a window
    /// that begins at `base`, spends the token. The options are for the authentication reply, whatever it says.
    ///
    /// Call it once for each request, before anything is done for it: that is what makes a token good for one time.
    pub fn arrive(
        &mut self,
        options: &RequestOptions,
        base: Token,
        now: Instant,
    ) -> (Arrival, AuthReplyOptions) {
        self.expire(now);
        let mut answer = AuthReplyOptions::default();
        let id = match &options.session {
            SessionUse::None | SessionUse::Request => return (Arrival::Authenticate, answer),
            SessionUse::Teardown(id) => {
                self.close(id);
                return (Arrival::Authenticate, answer);
            }
            SessionUse::Resume(id) => id,
        };
        let Some(session) = key(id).and_then(|key| self.by_id.get_mut(&key)) else {
            answer.session = Some(SessionVerdict::Invalid);
            return (Arrival::UnknownSession, answer);
        };
        session.used = now;
        answer.session = Some(SessionVerdict::Ok);
        session.account(options, base, self.limits.window, &mut answer);
        let arrival = match answer.token {
            Some(TokenVerdict::Rejected) => Arrival::TokenRejected,
            _ => Arrival::Inside(session.owner.clone()),
        };
        (arrival, answer)
    }

    /// Opens the session that an authenticated request asks for, and does what it asks of tokens. The options are for the
    /// authentication reply; there is no id in them if the request asks for no session, or at the limits.
    ///
    /// `fresh` is from the system's source of secrets, and is used for nothing else. If the token was rejected, so must
    /// the request be; the session is there for the next.
    pub fn open(
        &mut self,
        options: &RequestOptions,
        owner: Owner,
        fresh: [u8; 16],
        base: Token,
        now: Instant,
    ) -> AuthReplyOptions {
        let mut answer = AuthReplyOptions::default();
        if options.session != SessionUse::Request {
            return answer;
        }
        self.expire(now);
        let account = owner.account();
        let count = self.counts.get(&account).copied().unwrap_or_default();
        if self.by_id.len() >= self.limits.total || count >= self.limits.per_client {
            return answer;
        }
        // The same twice: the source is broken, and two clients must not share a session.
        if self.by_id.contains_key(&fresh) {
            return answer;
        }
        let Some(id) = SessionId::new(&fresh) else {
            return answer;
        };
        let mut session = Session {
            owner,
            used: now,
            tokens: None,
        };
        session.account(options, base, self.limits.window, &mut answer);
        self.by_id.insert(fresh, session);
        self.counts.insert(account, count + 1);
        self.queue.push(Reverse((now + self.limits.idle, fresh)));
        answer.session_id = Some(id);
        answer
    }

    /// Ends a session. Returns whether there was one.
    pub fn close(&mut self, id: &SessionId) -> bool {
        let Some(key) = key(id) else {
            return false;
        };
        let closed = self.remove(&key);
        // Without this, opening and closing would fill the queue for as long as the idle time.
        if self.queue.len() > 2 * self.by_id.len() + SLACK {
            let by_id = &self.by_id;
            self.queue
                .retain(|Reverse((_, key))| by_id.contains_key(key));
        }
        closed
    }

    /// Ends the sessions that have been idle for too long. The others call it too; it makes no difference how often.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&Reverse((due, key))) = self.queue.peek()
            && due <= now
        {
            self.queue.pop();
            let Some(session) = self.by_id.get(&key) else {
                continue;
            };
            let due = session.used + self.limits.idle;
            if due <= now {
                self.remove(&key);
            } else {
                self.queue.push(Reverse((due, key)));
            }
        }
    }

    /// When a session ends unless it is used again; `None` if it has ended, or never was.
    #[must_use]
    pub fn end(&self, id: &SessionId, now: Instant) -> Option<Instant> {
        let session = self.by_id.get(&key(id)?)?;
        let due = session.used + self.limits.idle;
        (now < due).then_some(due)
    }

    /// How many there are, those not yet expired included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(session) = self.by_id.remove(key) else {
            return false;
        };
        let account = session.owner.account();
        if let Some(count) = self.counts.get_mut(&account) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&account);
            }
        }
        true
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({})", self.len())
    }
}

impl Session {
    /// Does what a request asks of tokens, and tells the window as it is afterwards.
    fn account(
        &mut self,
        options: &RequestOptions,
        base: Token,
        limit: WindowSize,
        answer: &mut AuthReplyOptions,
    ) {
        if let (None, Some(wanted)) = (&self.tokens, options.window) {
            self.tokens = Some(SpentTokens::new(base, wanted.min(limit)));
        }
        if let Some(token) = options.token {
            let verdict = match &mut self.tokens {
                Some(tokens) => tokens.spend(token),
                None => TokenVerdict::Rejected,
            };
            answer.token = Some(verdict);
        }
        answer.window = self.tokens.as_ref().map(SpentTokens::window);
    }
}

impl Owner {
    fn account(&self) -> Account {
        match (&self.user, self.address.to_canonical()) {
            (Some(user), _) => Account::User(user.clone()),
            (None, IpAddr::V6(ip)) => {
                // Whoever has one address of a /64 has all of them.
                let network = Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64);
                Account::Address(network.into())
            }
            (None, address) => Account::Address(address),
        }
    }
}

fn key(id: &SessionId) -> Option<Key> {
    id.as_bytes().try_into().ok()
}

/// About 200 bytes each without windows; with the largest windows, about 8 MB in all.
const TOTAL: usize = 16_384;
/// One for each program of a user, with room for those that forget theirs.
const PER_CLIENT: usize = 64;
/// Longer than people's breaks, short enough that forgotten sessions are gone the next day.
const IDLE: Duration = Duration::from_secs(3600);
/// Ten times what the one client that exists asks for; 256 bytes.
const WINDOW: WindowSize = match WindowSize::new(2048) {
    Some(size) => size,
    None => WindowSize::MAX,
};
/// Of the queue, before it is tidied up.
const SLACK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Token = Token(0xffff_fff0);

    fn owner(text: &str) -> Owner {
        let user = None;
        let address = text.parse().unwrap();
        Owner { user, address }
    }

    fn ada() -> Owner {
        Owner {
            user: Some(b"ada"[..].into()),
            ..owner("192.0.2.1")
        }
    }

    fn fresh(number: u32) -> [u8; 16] {
        u128::from(number).to_be_bytes()
    }

    fn asking() -> RequestOptions {
        RequestOptions {
            session: SessionUse::Request,
            ..RequestOptions::default()
        }
    }

    fn inside(id: &SessionId) -> RequestOptions {
        RequestOptions {
            session: SessionUse::Resume(id.clone()),
            ..RequestOptions::default()
        }
    }

    fn spending(id: &SessionId, token: u32) -> RequestOptions {
        RequestOptions {
            token: Some(Token(token)),
            ..inside(id)
        }
    }

    fn few() -> Limits {
        Limits {
            total: 5,
            per_client: 2,
            idle: Duration::from_secs(60),
            window: WindowSize::new(32).unwrap(),
        }
    }

    fn opened(
        sessions: &mut Sessions,
        owner: Owner,
        number: u32,
        now: Instant,
    ) -> Option<SessionId> {
        let answer = sessions.open(&asking(), owner, fresh(number), BASE, now);
        answer.session_id
    }

    fn verdict(sessions: &mut Sessions, id: &SessionId, now: Instant) -> Arrival {
        let (arrival, answer) = sessions.arrive(&inside(id), BASE, now);
        let ok = answer.session == Some(SessionVerdict::Ok);
        assert_eq!(ok, arrival != Arrival::UnknownSession);
        arrival
    }

    #[test]
    fn session_stands_for_who_opened_it_until_it_is_torn_down() {
        let now = Instant::now();
        let mut sessions = Sessions::new(few());
        let (arrival, answer) = sessions.arrive(&asking(), BASE, now);
        assert_eq!(
            (arrival, answer),
            (Arrival::Authenticate, Default::default())
        );
        let id = opened(&mut sessions, ada(), 1, now).unwrap();
        assert_eq!(id.as_bytes(), fresh(1));
        assert_eq!(verdict(&mut sessions, &id, now), Arrival::Inside(ada()));

        let teardown = RequestOptions {
            session: SessionUse::Teardown(id.clone()),
            ..RequestOptions::default()
        };
        let (arrival, answer) = sessions.arrive(&teardown, BASE, now);
        assert_eq!(sessions.end(&id, now), None);
        // The request itself is outside: it has to authenticate, and no word of the session.
        assert_eq!(
            (arrival, answer),
            (Arrival::Authenticate, Default::default())
        );
        assert_eq!(verdict(&mut sessions, &id, now), Arrival::UnknownSession);
        assert!(sessions.is_empty() && sessions.counts.is_empty());
    }

    #[test]
    fn ids_that_were_not_given_are_invalid() {
        let now = Instant::now();
        let mut sessions = Sessions::new(few());
        opened(&mut sessions, ada(), 1, now).unwrap();
        for bytes in [&[0; 4][..], &[0; 16], &[0; 256]] {
            let id = SessionId::new(bytes).unwrap();
            assert_eq!(verdict(&mut sessions, &id, now), Arrival::UnknownSession);
        }
        // What was not asked for is not given, and the same id is never given twice.
        let none = RequestOptions::default();
        let answer = sessions.open(&none, ada(), fresh(2), BASE, now);
        assert_eq!(answer, AuthReplyOptions::default());
        assert_eq!(opened(&mut sessions, ada(), 1, now), None);
        assert_eq!(sessions.len(), 1);
    }

    #[test]
    fn nobody_has_more_than_his_share() {
        let now = Instant::now();
        let mut sessions = Sessions::new(few());
        let mut number = 0;
        let mut open = |sessions: &mut Sessions, owner: Owner| {
            number += 1;
            opened(sessions, owner, number, now)
        };
        let first = open(&mut sessions, ada()).unwrap();
        // A user is the same one from everywhere.
        let elsewhere = Owner {
            address: "198.51.100.9".parse().unwrap(),
            ..ada()
        };
        assert!(open(&mut sessions, elsewhere).is_some());
        assert_eq!(open(&mut sessions, ada()), None);
        // Addresses of one /64 are one, the IPv4-mapped form is IPv4.
        assert!(open(&mut sessions, owner("2001:db8::1")).is_some());
        assert!(open(&mut sessions, owner("2001:db8::2")).is_some());
        assert_eq!(open(&mut sessions, owner("2001:db8::3:4")), None);
        assert!(open(&mut sessions, owner("::ffff:192.0.2.9")).is_some());
        // All together.
        assert_eq!(open(&mut sessions, owner("192.0.2.10")), None);
        sessions.close(&first);
        assert!(open(&mut sessions, owner("192.0.2.10")).is_some());
    }

    #[test]
    fn one_that_was_used_ends_in_time_though_another_is_younger() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut sessions = Sessions::new(few());
        let used = opened(&mut sessions, ada(), 1, start).unwrap();
        verdict(&mut sessions, &used, after(10));
        opened(&mut sessions, ada(), 2, after(50)).unwrap();
        // Not yet, but its end moves to later in the queue.
        sessions.expire(after(65));
        assert_eq!(sessions.len(), 2);
        sessions.expire(after(70));
        assert_eq!(sessions.len(), 1);
        let gone = verdict(&mut sessions, &used, after(70));
        assert_eq!(gone, Arrival::UnknownSession);
    }

    #[test]
    fn idle_sessions_end_and_used_ones_stay() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut sessions = Sessions::new(few());
        let idle = opened(&mut sessions, ada(), 1, start).unwrap();
        let used = opened(&mut sessions, ada(), 2, start).unwrap();
        assert_eq!(
            verdict(&mut sessions, &used, after(50)),
            Arrival::Inside(ada())
        );
        let ends = |id, now| sessions.end(id, after(now));
        assert_eq!((ends(&idle, 59), ends(&idle, 60)), (Some(after(60)), None));
        assert_eq!(ends(&used, 60), Some(after(110)));
        assert_eq!(
            verdict(&mut sessions, &idle, after(60)),
            Arrival::UnknownSession
        );
        assert_eq!(
            verdict(&mut sessions, &used, after(60)),
            Arrival::Inside(ada())
        );
        assert_eq!(sessions.len(), 1);
        // Its place is free again.
        assert!(opened(&mut sessions, ada(), 3, after(60)).is_some());
        assert_eq!(
            verdict(&mut sessions, &used, after(120)),
            Arrival::UnknownSession
        );
        assert!(sessions.is_empty() && sessions.counts.is_empty());
        assert!(sessions.queue.is_empty());
    }

    #[test]
    fn million_sessions_leave_bounded_books() {
        let now = Instant::now();
        let mut sessions = Sessions::new(few());
        for number in 0..1_000_000_u32 {
            let id = opened(&mut sessions, ada(), number, now);
            if let Some(id) = id
                && number % 3 > 0
            {
                assert!(sessions.close(&id));
            }
        }
        assert!(sessions.len() <= 2);
        assert!(sessions.queue.len() <= 2 * sessions.len() + SLACK);
        assert!(sessions.queue.capacity() < 1000);
    }

    #[test]
    fn window_is_capped_told_each_time_and_never_replaced() {
        let now = Instant::now();
        let mut sessions = Sessions::new(few());
        let wanted = |session| RequestOptions {
            session,
            window: WindowSize::new(200),
            ..RequestOptions::default()
        };
        let answer = sessions.open(&wanted(SessionUse::Request), ada(), fresh(1), BASE, now);
        let window = answer.window.unwrap();
        assert_eq!((window.base, window.size), (BASE, few().window));
        let id = answer.session_id.unwrap();
        let resume = SessionUse::Resume(id.clone());
        let (_, answer) = sessions.arrive(&wanted(resume), Token(7), now);
        assert_eq!(answer.window, Some(window));
        let (_, answer) = sessions.arrive(&inside(&id), BASE, now);
        assert_eq!((answer.window, answer.token), (Some(window), None));
        // Outside a session nothing is said of tokens.
        let (arrival, answer) = sessions.arrive(&wanted(SessionUse::None), BASE, now);
        assert_eq!(
            (arrival, answer),
            (Arrival::Authenticate, Default::default())
        );
    }

    #[test]
    fn token_is_spent_before_anything_is_done_and_once() {
        let now = Instant::now();
        let mut sessions = Sessions::new(few());
        let id = opened(&mut sessions, ada(), 1, now).unwrap();
        // No window, no token.
        let (arrival, answer) = sessions.arrive(&spending(&id, BASE.0), BASE, now);
        assert_eq!(arrival, Arrival::TokenRejected);
        assert_eq!(
            (answer.token, answer.window),
            (Some(TokenVerdict::Rejected), None)
        );

        let both = RequestOptions {
            window: WindowSize::new(32),
            ..spending(&id, BASE.0)
        };
        let (arrival, answer) = sessions.arrive(&both, BASE, now);
        assert_eq!(arrival, Arrival::Inside(ada()));
        assert_eq!(answer.token, Some(TokenVerdict::Accepted));
        assert_eq!(answer.window.unwrap().base, BASE.plus(1));
        // Again, as after a lost connection; and one from before, across zero.
        for token in [BASE.0, BASE.0 - 1] {
            let (arrival, answer) = sessions.arrive(&spending(&id, token), BASE, now);
            assert_eq!(arrival, Arrival::TokenRejected);
            assert_eq!(answer.session, Some(SessionVerdict::Ok));
            assert!(answer.window.is_some());
        }
        // On the other side of zero, and in another session.
        let (arrival, _) = sessions.arrive(&spending(&id, 2), BASE, now);
        assert_eq!(arrival, Arrival::Inside(ada()));
        let other = opened(&mut sessions, ada(), 2, now).unwrap();
        let (arrival, _) = sessions.arrive(&spending(&other, 3), BASE, now);
        assert_eq!(arrival, Arrival::TokenRejected);
    }
}
