//! What the query of a `socks6` URI says beside the timeout.

use std::fmt;

use super::ProxyUriError;
use crate::wire::socks6::{
    BacklogNotice, Channel, Choice, Legs, Parity, PortParity, Profile, Reserve, StackOptions,
    WindowSize,
};

/// How SOCKS 6 is spoken to a proxy, and what it is asked for. In a URI each is a key of the query, in any order:
///
/// | key | value |
/// | --- | --- |
/// | `profile` | `draft12` (default), `draft11`, `go212`, `s6m207`: see [`Profile`] |
/// | `session` | `yes`, `no` (default, unless something else needs one) |
/// | `tokens` | how many to ask for; each request spends one. Needs a session |
/// | `fallback` | `socks5`: speak that if the proxy does not know SOCKS 6 |
/// | `channel` | `udp`, `tcp`: what carries datagrams between here and the proxy |
/// | `tos`, `client-tos` | 0 to 255 |
/// | `ttl`, `client-ttl` | 1 to 255 |
/// | `no-fragmentation`, `client-no-fragmentation` | `yes`, `no` |
/// | `happy-eyeballs`, `multipath` | `yes`, `no` |
/// | `tfo` | 0 to 65535: the most bytes in a SYN, 0 is any number |
/// | `backlog` | 1 to 65535, for a port that accepts more than one. Needs a session, except with `go212` |
/// | `udp-error` | `yes`, `no`: reports of what became of datagrams |
/// | `parity` | `even`, `odd`, `any`: of the port for datagrams |
/// | `reserve` | `yes`, `no`: keep its counterpart free |
///
/// Stack options (from `tos` on) are about the side between proxy and target; with `client-` about the other one. What is
/// not said is not asked for. Those that have no meaning for a request are left out of it.
///
/// ```
/// use sockhop::ProxyUri;
/// use sockhop::wire::socks6::Profile;
///
/// let uri: ProxyUri = "socks6://[407::1]?session=yes&tos=0x10&profile=go212".parse()?;
/// let options = uri.socks6().expect("the scheme is socks6");
/// assert_eq!((options.profile, options.stack.tos.remote), (Profile::GO_212, Some(16)));
/// assert_eq!(uri.to_string(), "socks6://[407::1]:1080?profile=go212&session=yes&tos=16");
/// # Ok::<(), sockhop::proxy_uri::ProxyUriError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socks6 {
    /// What draft or implementation the proxy follows.
    pub profile: Profile,
    /// Whether requests share a session. `None`: if they need one.
    pub session: Option<Choice>,
    /// The size of the token window to ask for. With it each request spends a token, so it is carried out at most once.
    pub tokens: Option<WindowSize>,
    /// What the proxy's sockets should be like.
    pub stack: StackOptions,
    /// What carries datagrams to and from the proxy. `None`: UDP, or TCP where the proxy is reached through others.
    pub channel: Option<Channel>,
    /// What to do with a proxy that does not speak SOCKS 6.
    pub fallback: Fallback,
}

/// What to do with a proxy that does not speak SOCKS 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// Nothing: it is an error.
    Refuse,
    /// Speak SOCKS5 to it, where names are looked up by the proxy too.
    Socks5,
}

impl Socks6 {
    /// What a URI without a query means.
    pub const DEFAULT: Self = Self {
        profile: Profile::DRAFT_12,
        session: None,
        tokens: None,
        stack: StackOptions {
            tos: Legs {
                client: None,
                remote: None,
            },
            happy_eyeballs: None,
            ttl: Legs {
                client: None,
                remote: None,
            },
            no_fragmentation: Legs {
                client: None,
                remote: None,
            },
            tfo: None,
            multipath: None,
            backlog: None,
            udp_error: None,
            port_parity: None,
        },
        channel: None,
        fallback: Fallback::Refuse,
    };

    /// Whether requests share a session, if the proxy grants one.
    #[must_use]
    pub const fn uses_session(&self) -> bool {
        match self.session {
            Some(choice) => matches!(choice, Choice::Yes),
            None => self.tokens.is_some(),
        }
    }

    /// Takes over a pair of the query.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Result<(), ProxyUriError> {
        let Some((_, usage)) = KEYS.iter().find(|(known, _)| *known == key) else {
            return Err(ProxyUriError::Socks6Key(key.into()));
        };
        let bad = || ProxyUriError::Value {
            key: key.into(),
            text: value.into(),
            usage,
        };
        self.set(key, value).ok_or_else(bad)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let stack = &mut self.stack;
        match key {
            "profile" => self.profile = value.parse().ok()?,
            "session" => self.session = Some(choice(value)?),
            "tokens" => self.tokens = Some(WindowSize::new(number(value, u32::MAX)?)?),
            "fallback" => {
                self.fallback = match value {
                    "socks5" => Fallback::Socks5,
                    _ => return None,
                }
            }
            "channel" => {
                self.channel = match value {
                    "udp" => Some(Channel::Packets),
                    "tcp" => Some(Channel::Stream),
                    _ => return None,
                }
            }
            "tos" => stack.tos.remote = Some(byte(value)?),
            "client-tos" => stack.tos.client = Some(byte(value)?),
            "ttl" => stack.ttl.remote = Some(byte(value).filter(|ttl| *ttl > 0)?),
            "client-ttl" => stack.ttl.client = Some(byte(value).filter(|ttl| *ttl > 0)?),
            "no-fragmentation" => stack.no_fragmentation.remote = Some(choice(value)?),
            "client-no-fragmentation" => stack.no_fragmentation.client = Some(choice(value)?),
            "happy-eyeballs" => stack.happy_eyeballs = Some(choice(value)?),
            "multipath" => stack.multipath = Some(choice(value)?),
            "tfo" => stack.tfo = Some(short(value)?),
            "backlog" => stack.backlog = Some(short(value).filter(|backlog| *backlog > 0)?),
            "udp-error" => stack.udp_error = Some(choice(value)?),
            "parity" => {
                parity_of(stack).parity = match value {
                    "even" => Parity::Even,
                    "odd" => Parity::Odd,
                    "any" => Parity::Any,
                    _ => return None,
                }
            }
            "reserve" => {
                parity_of(stack).reserve = match choice(value)? {
                    Choice::No => Reserve::No,
                    Choice::Yes => Reserve::Yes,
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether the parts fit together, once all are there.
    pub(super) const fn check(&self) -> Result<(), ProxyUriError> {
        let backlog = matches!(
            (self.stack.backlog, self.profile.backlog),
            (Some(_), BacklogNotice::None)
        );
        let needs_session = match (self.tokens, backlog) {
            (Some(_), _) => "tokens",
            (None, true) => "backlog",
            (None, false) => return Ok(()),
        };
        match self.session {
            Some(Choice::No) => Err(ProxyUriError::WithoutSession(needs_session)),
            _ => Ok(()),
        }
    }

    /// Calls `write` with each key that says something, and its value.
    pub(super) fn pairs(
        &self,
        mut write: impl FnMut(&str, &dyn fmt::Display) -> fmt::Result,
    ) -> fmt::Result {
        let stack = &self.stack;
        if self.profile != Profile::default() {
            write("profile", &self.profile)?;
        }
        if let Some(choice) = self.session {
            write("session", &yes_or_no(choice))?;
        }
        if let Some(size) = self.tokens {
            write("tokens", &size.as_u32())?;
        }
        if self.fallback == Fallback::Socks5 {
            write("fallback", &"socks5")?;
        }
        match self.channel {
            Some(Channel::Packets) => write("channel", &"udp")?,
            Some(Channel::Stream) => write("channel", &"tcp")?,
            None => (),
        }
        let bytes = [
            ("tos", stack.tos.remote),
            ("client-tos", stack.tos.client),
            ("ttl", stack.ttl.remote),
            ("client-ttl", stack.ttl.client),
        ];
        for (key, byte) in bytes {
            if let Some(byte) = byte {
                write(key, &byte)?;
            }
        }
        let choices = [
            ("no-fragmentation", stack.no_fragmentation.remote),
            ("client-no-fragmentation", stack.no_fragmentation.client),
            ("happy-eyeballs", stack.happy_eyeballs),
            ("multipath", stack.multipath),
            ("udp-error", stack.udp_error),
        ];
        for (key, choice) in choices {
            if let Some(choice) = choice {
                write(key, &yes_or_no(choice))?;
            }
        }
        for (key, number) in [("tfo", stack.tfo), ("backlog", stack.backlog)] {
            if let Some(number) = number {
                write(key, &number)?;
            }
        }
        if let Some(PortParity { parity, reserve }) = stack.port_parity {
            let parity = match parity {
                Parity::Any => "any",
                Parity::Even => "even",
                Parity::Odd => "odd",
            };
            write("parity", &parity)?;
            if reserve == Reserve::Yes {
                write("reserve", &"yes")?;
            }
        }
        Ok(())
    }
}

impl Default for Socks6 {
    fn default() -> Self {
        Self::DEFAULT
    }
}

fn parity_of(stack: &mut StackOptions) -> &mut PortParity {
    stack.port_parity.get_or_insert(PortParity {
        parity: Parity::Any,
        reserve: Reserve::No,
    })
}

fn choice(text: &str) -> Option<Choice> {
    match text {
        "yes" => Some(Choice::Yes),
        "no" => Some(Choice::No),
        _ => None,
    }
}

const fn yes_or_no(choice: Choice) -> &'static str {
    match choice {
        Choice::Yes => "yes",
        Choice::No => "no",
    }
}

/// A number up to `most`, in decimal or, after `0x`, in hexadecimal digits.
fn number(text: &str, most: u32) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // Signs are taken too otherwise.
    let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let number = u32::from_str_radix(digits?, radix).ok();
    number.filter(|number| *number <= most)
}

fn byte(text: &str) -> Option<u8> {
    number(text, u8::MAX.into()).and_then(|number| number.try_into().ok())
}

fn short(text: &str) -> Option<u16> {
    number(text, u16::MAX.into()).and_then(|number| number.try_into().ok())
}

/// The keys, and what their values are.
const KEYS: [(&str, &str); 18] = [
    ("profile", "draft12, draft11, go212 or s6m207"),
    ("session", YES_OR_NO),
    ("tokens", "a number from 1 to 2147483647"),
    ("fallback", "socks5"),
    ("channel", "udp or tcp"),
    ("tos", BYTE),
    ("client-tos", BYTE),
    ("ttl", POSITIVE_BYTE),
    ("client-ttl", POSITIVE_BYTE),
    ("no-fragmentation", YES_OR_NO),
    ("client-no-fragmentation", YES_OR_NO),
    ("happy-eyeballs", YES_OR_NO),
    ("multipath", YES_OR_NO),
    ("tfo", "a number from 0 to 65535"),
    ("backlog", "a number from 1 to 65535"),
    ("udp-error", YES_OR_NO),
    ("parity", "even, odd or any"),
    ("reserve", YES_OR_NO),
];
const YES_OR_NO: &str = "yes or no";
const BYTE: &str = "a number from 0 to 255";
const POSITIVE_BYTE: &str = "a number from 1 to 255";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProxyUri;
    use crate::proxy_uri::{Resolution, Scheme};

    fn parse(text: &str) -> Result<ProxyUri, ProxyUriError> {
        text.parse()
    }

    /// Every key, each with another value than it has by default, in the order of `Display`.
    const ALL: &str = "socks6://ada:***@h:1080?timeout=5s&profile=draft11&session=yes&tokens=200&fallback=socks5\
        &channel=tcp&tos=16&client-tos=8&ttl=64&client-ttl=1&no-fragmentation=yes&client-no-fragmentation=no\
        &happy-eyeballs=yes&multipath=no&udp-error=yes&tfo=0&backlog=5&parity=odd&reserve=yes";

    #[test]
    fn every_key_is_understood_and_shown() {
        let uri = parse(&ALL.replace("***", "SECRET")).unwrap();
        let options = Socks6 {
            profile: Profile::DRAFT_11,
            session: Some(Choice::Yes),
            tokens: WindowSize::new(200),
            stack: StackOptions {
                tos: Legs {
                    client: Some(8),
                    remote: Some(16),
                },
                happy_eyeballs: Some(Choice::Yes),
                ttl: Legs {
                    client: Some(1),
                    remote: Some(64),
                },
                no_fragmentation: Legs {
                    client: Some(Choice::No),
                    remote: Some(Choice::Yes),
                },
                tfo: Some(0),
                multipath: Some(Choice::No),
                backlog: Some(5),
                udp_error: Some(Choice::Yes),
                port_parity: Some(PortParity {
                    parity: Parity::Odd,
                    reserve: Reserve::Yes,
                }),
            },
            channel: Some(Channel::Stream),
            fallback: Fallback::Socks5,
        };
        assert_eq!(uri.socks6(), Some(&options));
        assert_eq!(uri.to_string(), ALL);
        assert_eq!(format!("{uri:?}"), format!("ProxyUri({ALL})"));
        assert_eq!(uri.scheme(), Scheme::Socks6);
        assert_eq!(uri.scheme().resolution(), Resolution::AtProxy);
        assert!(uri.credentials().is_some());
        // Each key of the table is in that text.
        for (key, _) in KEYS {
            assert!(ALL.contains(&format!("&{key}=")), "{key}");
        }
        let bare = parse("socks6://h").unwrap();
        assert_eq!(bare.socks6(), Some(&Socks6::default()));
        assert_eq!(
            bare.clone().with_socks6(options).socks6().copied(),
            Some(options)
        );
        assert_eq!(parse("socks5://h").unwrap().socks6(), None);
        assert_eq!(Socks6::default().stack, StackOptions::default());
    }

    #[test]
    fn what_is_shown_is_what_was_meant() {
        for (query, shown) in [
            ("profile=draft12", ""),
            ("session=no", "?session=no"),
            ("reserve=no", "?parity=any"),
            ("reserve=yes", "?parity=any&reserve=yes"),
            ("reserve=yes&parity=even", "?parity=even&reserve=yes"),
            ("tos=0xff", "?tos=255"),
            (
                "backlog=9&profile=go212&session=no",
                "?profile=go212&session=no&backlog=9",
            ),
        ] {
            let uri = parse(&format!("socks6://h?{query}")).unwrap();
            assert_eq!(uri.to_string(), format!("socks6://h:1080{shown}"));
            assert_eq!(parse(&uri.to_string()), Ok(uri));
        }
    }

    #[test]
    fn tokens_bring_a_session() {
        for (query, expected) in [
            ("profile=go212", false),
            ("session=yes", true),
            ("session=no", false),
            ("tokens=1", true),
            ("backlog=2", false),
        ] {
            let uri = parse(&format!("socks6://h?{query}")).unwrap();
            assert_eq!(uri.socks6().unwrap().uses_session(), expected, "{query}");
        }
    }

    #[test]
    fn bad_pairs_have_their_errors() {
        for (key, usage) in KEYS {
            for text in ["", "x", "Yes", "-1", "+1", "0x", "4294967296", "1 "] {
                let error = ProxyUriError::Value {
                    key: key.into(),
                    text: text.into(),
                    usage,
                };
                let shown = error.to_string();
                assert_eq!(parse(&format!("socks6://h?{key}={text}")), Err(error));
                assert!(shown.contains(key) && shown.contains(usage), "{shown}");
            }
        }
        for (key, text) in [
            ("tos", "256"),
            ("ttl", "0"),
            ("client-ttl", "0"),
            ("tfo", "65536"),
            ("backlog", "0"),
            ("tokens", "0"),
            ("tokens", "2147483648"),
        ] {
            let error = parse(&format!("socks6://h?{key}={text}")).unwrap_err();
            assert!(matches!(error, ProxyUriError::Value { .. }), "{error}");
        }
        for (query, error) in [
            ("tos=1&tos=1", ProxyUriError::RepeatedKey("tos".into())),
            ("toss=1", ProxyUriError::Socks6Key("toss".into())),
            ("tos=1&", ProxyUriError::EmptyQuery),
            (
                "session=no&tokens=1",
                ProxyUriError::WithoutSession("tokens"),
            ),
            (
                "backlog=1&session=no",
                ProxyUriError::WithoutSession("backlog"),
            ),
        ] {
            assert_eq!(parse(&format!("socks6://h?{query}")), Err(error.clone()));
            assert!(!error.to_string().is_empty());
        }
        let error = ProxyUriError::Key("tos".into());
        assert_eq!(parse("socks5://h?tos=1"), Err(error));
    }
}
