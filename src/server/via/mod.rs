//! A way out through other SOCKS proxies: what a server connects to, it reaches by way of them.

mod asking;
mod expected;
mod health;
#[cfg(feature = "socks6")]
mod six;
mod stand_ins;
mod way;

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

#[cfg(feature = "socks6")]
use crate::handshake::socks6::Wallet;
use crate::net::{OwnListeners, Uplink};
#[cfg(feature = "socks6")]
use crate::proxy_uri::Socks6;
use crate::proxy_uri::{ProxyUri, Resolution, Scheme};
use crate::wire::Host;
use crate::wire::socks5::ReplyCode;
#[cfg(feature = "socks6")]
use crate::wire::socks6::{BacklogNotice, Choice, WindowSize};

pub(super) use self::expected::{Expected, Unexpected};
use self::health::Health;
#[cfg(feature = "socks6")]
pub(super) use self::way::Kept;
pub(super) use self::way::{Arrived, Gone, Way};

/// The proxies that a server connects through, each reached through the one before.
///
/// `Display` names them without passwords.
#[derive(Debug)]
pub struct Via {
    first: ProxyUri,
    others: Vec<ProxyUri>,
    own: OwnListeners,
    complained: Mutex<Complained>,
    /// Others, in their order, for when these don't work; each is without any of its own.
    stand_ins: Vec<Arc<Self>>,
    /// Whether nobody stands in for these.
    is_alone: bool,
    /// For the first answer, if there is somebody else.
    patience: Duration,
    /// Whether a request may be made of another one.
    retry: bool,
    health: Health,
    /// Which way the first proxy is reached.
    uplink: Uplink,
    /// For each of the proxies the session that all clients share, where there may be one.
    #[cfg(feature = "socks6")]
    wallets: Vec<Option<Mutex<Wallet>>>,
}

/// What an admin was told, or would have been.
#[derive(Debug, Default)]
struct Complained {
    /// When, of each kind.
    said: [Option<Instant>; 2],
    latest: Option<(SystemTime, String)>,
}

/// What the last of the proxies is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// CONNECT.
    Connect,
    /// BIND: for this peer, or (SOCKS 6) at this address.
    Bind,
    /// BIND with a backlog of so many, which only proxies of SOCKS 6 are asked for.
    #[cfg(feature = "socks6")]
    Listen(u16),
    /// UDP ASSOCIATE.
    Associate,
}

/// The first proxy is one of the server's own listeners: it would go round in circles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnListener(pub ProxyUri);

impl Via {
    /// Through `first`, then the `others` one after the other.
    ///
    /// # Errors
    /// The first one is among the own listeners. One with a name is looked up later, and not used where it turns out to be one.
    pub fn new(
        first: ProxyUri,
        others: Vec<ProxyUri>,
        own: OwnListeners,
    ) -> Result<Self, OwnListener> {
        let address = first.address();
        let addresses = match &address.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) if name.is_localhost() => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            Host::Name(_) => Vec::new(),
        };
        let is_own = |ip: &IpAddr| own.is_own(SocketAddr::new(*ip, address.port));
        if addresses.iter().any(is_own) {
            return Err(OwnListener(first));
        }
        #[cfg(feature = "socks6")]
        let wallets = std::iter::once(&first).chain(&others).map(wallet);
        Ok(Self {
            #[cfg(feature = "socks6")]
            wallets: wallets.collect(),
            first,
            others,
            own,
            complained: Mutex::default(),
            stand_ins: Vec::new(),
            is_alone: true,
            patience: Duration::ZERO,
            retry: true,
            health: Health::default(),
            uplink: Uplink::default(),
        })
    }

    /// The first proxy is reached this way.
    #[must_use]
    pub fn by(mut self, uplink: Uplink) -> Self {
        self.uplink = uplink;
        self
    }

    /// Whether the last proxy does BIND for us.
    #[must_use]
    pub fn binds(&self) -> bool {
        matches!(
            self.last().scheme(),
            Scheme::Socks4 | Scheme::Socks4a | Scheme::Socks5 | Scheme::Socks5h
        ) || is_six(self.last())
    }

    /// Whether the last proxy is asked where to listen, instead of for whom.
    pub(super) fn asks_where(&self) -> bool {
        is_six(self.last())
    }

    /// Whether the last proxy keeps a port open from which one peer after the other can be fetched: one that knows sessions, and
    /// does not tell of each peer, which nobody would listen to here.
    #[cfg(feature = "socks6")]
    pub(super) fn keeps_ports(&self) -> bool {
        let silent = |socks6: &Socks6| socks6.profile.backlog == BacklogNotice::None;
        self.last().socks6().is_some_and(silent) && self.wallet(self.others.len()).is_some()
    }

    /// Whether the last proxy does UDP ASSOCIATE for us. To one of SOCKS 5 datagrams travel on their own, from here and not through
    /// those before it, so there must be none; with SOCKS 6 they travel on the connection.
    #[must_use]
    pub fn carries_datagrams(&self) -> bool {
        let is_five = matches!(self.last().scheme(), Scheme::Socks5 | Scheme::Socks5h);
        is_six(self.last()) || (is_five && self.others.is_empty())
    }

    /// The proxies, the first one first.
    pub fn proxies(&self) -> impl Iterator<Item = &ProxyUri> {
        [&self.first].into_iter().chain(&self.others)
    }

    /// The shortest time that one of them says, for a whole request; if others can stand in, none.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.own_timeout().filter(|_| self.is_alone)
    }

    fn own_timeout(&self) -> Option<Duration> {
        self.proxies().filter_map(ProxyUri::timeout).min()
    }

    /// Who looks up the names of destinations.
    pub(super) fn resolution(&self) -> Resolution {
        self.last().scheme().resolution()
    }

    fn last(&self) -> &ProxyUri {
        self.others.last().unwrap_or(&self.first)
    }

    fn proxy(&self, place: usize) -> Option<&ProxyUri> {
        self.proxies().nth(place)
    }

    /// Tells the log of what an admin should look at: each kind at most once in a while, since all clients meet it.
    pub(super) fn complain(&self, failure: &Failure, now: Instant) {
        let kind = match failure.fault {
            Fault::Destination => return,
            Fault::Proxy => 0,
            Fault::Login => 1,
        };
        let mut complained = self.complained();
        complained.latest = Some((SystemTime::now(), failure.to_string()));
        let Some(last) = complained.said.get_mut(kind) else {
            return;
        };
        if last.is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN_COMPLAINTS) {
            *last = Some(now);
            log::warn!("{failure}");
        }
    }

    fn complained(&self) -> MutexGuard<'_, Complained> {
        self.complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "socks6")]
    fn wallet(&self, place: usize) -> Option<&Mutex<Wallet>> {
        self.wallets.get(place)?.as_ref()
    }
}

/// An empty one for this proxy. Unlike a single request, all those of our clients gain from a session, so it takes a
/// `session=no` to have none.
#[cfg(feature = "socks6")]
fn wallet(proxy: &ProxyUri) -> Option<Mutex<Wallet>> {
    let options = proxy.socks6()?;
    (options.session != Some(Choice::No)).then(|| Mutex::new(Wallet::new(window(options))))
}

/// How many tokens to ask for.
#[cfg(feature = "socks6")]
fn window(options: &Socks6) -> Option<WindowSize> {
    options.tokens.or(WindowSize::new(TOKENS))
}

#[cfg(feature = "socks6")]
fn is_six(proxy: &ProxyUri) -> bool {
    proxy.socks6().is_some()
}

#[cfg(not(feature = "socks6"))]
fn is_six(_proxy: &ProxyUri) -> bool {
    false
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.others
            .iter()
            .try_for_each(|other| write!(f, ", then {other}"))
    }
}

impl fmt::Display for OwnListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--via: {} is a listener of this server", self.0)
    }
}

impl Error for OwnListener {}

/// Why there is no way through to a destination.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// For the client.
    pub(super) code: ReplyCode,
    fault: Fault,
    /// Has no password.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The proxies work.
    Destination,
    /// A proxy, or the way to it.
    Proxy,
    /// A proxy does not take us for somebody who may use it.
    Login,
}

impl Failure {
    /// Under which name it is counted; none where the destination is to blame.
    pub(super) fn reason(&self) -> Option<&'static str> {
        match self.fault {
            Fault::Destination => None,
            Fault::Proxy => Some("via"),
            Fault::Login => Some("via-login"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A proxy that is down is in every client's way, and mostly for longer.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(60);

/// Each request spends one, and each answer brings some back, so that is about how many may be under way at once; more go
/// without one.
#[cfg(feature = "socks6")]
const TOKENS: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn via(first: &str, others: &[&str]) -> Result<Via, OwnListener> {
        let own = ["0.0.0.0:1080", "[::1]:1081"].map(|text| text.parse::<SocketAddr>().unwrap());
        let others = others.iter().map(|text| text.parse().unwrap()).collect();
        Via::new(first.parse().unwrap(), others, own.into_iter().collect())
    }

    #[test]
    fn own_listeners_are_refused_as_the_first_only() {
        for own in [
            "socks5://127.0.0.1",
            "socks5://[::ffff:127.0.0.1]",
            "socks5://localhost",
            "socks5://LOCALHOST.:1081",
            "socks4://[::1]:1081",
        ] {
            let error = via(own, &[]).unwrap_err().to_string();
            assert!(error.contains("is a listener of this server"), "{error}");
        }
        assert!(via("socks5://127.0.0.1:1082", &[]).is_ok());
        assert!(via("socks5://proxy.example", &["socks5://127.0.0.1"]).is_ok());
    }

    #[test]
    fn passwords_are_not_shown_and_the_shortest_time_counts() {
        let via = via(
            "socks5h://ada:secret@a?timeout=9s",
            &["socks5://b:secret@b?timeout=3s"],
        );
        let via = via.unwrap();
        let shown = "socks5h://ada:***@a:1080?timeout=9s, then socks5://b:***@b:1080?timeout=3s";
        assert_eq!(via.to_string(), shown);
        assert!(!format!("{via:?}").contains("secret"));
        assert_eq!(via.timeout(), Some(Duration::from_secs(3)));
        assert_eq!(via.resolution(), Resolution::Here);
    }

    #[test]
    fn complaints_are_rare_and_one_kind_does_not_hide_the_other() {
        let via = via("socks5://a", &[]).unwrap();
        let failure = |fault| Failure {
            code: ReplyCode::GENERAL_FAILURE,
            fault,
            text: String::new(),
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let stamps = |via: &Via| via.complained().said;
        via.complain(&failure(Fault::Destination), at(0));
        assert_eq!(stamps(&via), [None, None]);
        assert_eq!(via.last_trouble(), None);
        via.complain(&failure(Fault::Proxy), at(0));
        via.complain(&failure(Fault::Login), at(5));
        via.complain(&failure(Fault::Proxy), at(59));
        assert_eq!(stamps(&via), [Some(at(0)), Some(at(5))]);
        via.complain(&failure(Fault::Proxy), at(60));
        assert_eq!(stamps(&via), [Some(at(60)), Some(at(5))]);
    }
}
