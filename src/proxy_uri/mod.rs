//! Proxies in text: `socks5://user:pass@host:port?timeout=5s`.
//!
//! What to read: RFC 3986 §3 (parts of a URI) and §2.1 (percent-encoding). The schemes mean what they mean to curl.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use crate::wire::socks4::UserId;
use crate::wire::{Address, AddressError, Credentials, CredentialsError, Host};

#[cfg(feature = "socks6")]
mod socks6;

#[cfg(feature = "socks6")]
pub use socks6::{Fallback, Socks6};

/// A proxy: how to speak to it, where it is, as whom, and how long it may take.
///
/// The port may be left out ([`ProxyUri::DEFAULT_PORT`]). User and password are percent-encoded. SOCKS4 has a user
/// only, SOCKS5 and SOCKS 6 both or none. `Display` and `Debug` put `***` in place of the password.
///
/// ```
/// use sockhop::ProxyUri;
/// let uri: ProxyUri = "socks5h://ada:p%40ss@[2001:db8::1]?timeout=5s".parse()?;
/// assert_eq!(uri.to_string(), "socks5h://ada:***@[2001:db8::1]:1080?timeout=5s");
/// # Ok::<(), sockhop::proxy_uri::ProxyUriError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUri {
    scheme: Scheme,
    login: Login,
    address: Address,
    timeout: Option<Duration>,
    /// Where they are not those by default; few proxies have any.
    #[cfg(feature = "socks6")]
    socks6: Option<Box<Socks6>>,
}

/// The protocol, and where names of destinations are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// SOCKS4: names are resolved here, to IPv4.
    Socks4,
    /// SOCKS4a: the proxy resolves names.
    Socks4a,
    /// SOCKS5: names are resolved here.
    Socks5,
    /// SOCKS5: the proxy resolves names.
    Socks5h,
    /// SOCKS 6: the proxy resolves names.
    #[cfg(feature = "socks6")]
    Socks6,
}

/// Where the names of destinations are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// On this machine, before the proxy is asked.
    Here,
    /// By the proxy, which gets the name.
    AtProxy,
}

/// What is wrong with the text of a [`ProxyUri`]. Never holds any of what could be a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyUriError {
    /// There is no `scheme://`.
    MissingScheme,
    /// Another scheme.
    Scheme(String),
    /// `socks6`, in a build without the feature of that name.
    NotBuiltIn,
    /// `@` with nothing before it, or a user without password for SOCKS5 or SOCKS 6.
    Credentials(CredentialsError),
    /// A password for SOCKS4, which has none.
    PasswordInSocks4,
    /// A SOCKS4 user that is empty, too long or has a NUL.
    UserId,
    /// User or password has one of `/?#@`, a space or a control character, or a `%` without two hexadecimal
    /// digits.
    Encoding,
    /// No host.
    MissingHost,
    /// What stands for host and port is not that.
    Address(String, AddressError),
    /// Port 0, or `:` without a port.
    Port(String),
    /// Something between the address and the query.
    Path(String),
    /// A `#` and what follows.
    Fragment(String),
    /// A `?` or `&` with nothing after it.
    EmptyQuery,
    /// Another key in the query.
    Key(String),
    /// A key that was there before.
    RepeatedKey(String),
    /// Not a duration, or zero.
    Timeout(String),
    /// Another key in the query of a `socks6` URI.
    Socks6Key(String),
    /// Another value of a key of a `socks6` URI than it may have.
    Value {
        /// The key.
        key: String,
        /// The value.
        text: String,
        /// What values there are.
        usage: &'static str,
    },
    /// This key needs a session, and another one forbids it.
    WithoutSession(&'static str),
}

/// Nobody, a SOCKS4 user, or a user with password.
#[derive(Clone, PartialEq, Eq)]
enum Login {
    Nobody,
    UserId(UserId),
    Credentials(Credentials),
}

impl ProxyUri {
    /// The port registered for SOCKS.
    pub const DEFAULT_PORT: u16 = 1080;

    /// A proxy without user and time limit.
    #[must_use]
    pub const fn new(scheme: Scheme, address: Address) -> Self {
        Self {
            scheme,
            login: Login::Nobody,
            address,
            timeout: None,
            #[cfg(feature = "socks6")]
            socks6: None,
        }
    }

    /// The same proxy, with these options if its scheme is [`Scheme::Socks6`].
    #[cfg(feature = "socks6")]
    #[must_use]
    pub fn with_socks6(mut self, options: Socks6) -> Self {
        self.set_socks6(options);
        self
    }

    #[cfg(feature = "socks6")]
    fn set_socks6(&mut self, options: Socks6) {
        let matters = self.scheme == Scheme::Socks6 && options != Socks6::DEFAULT;
        self.socks6 = matters.then(|| Box::new(options));
    }

    /// How SOCKS 6 is spoken to it, if it is.
    #[cfg(feature = "socks6")]
    #[must_use]
    pub fn socks6(&self) -> Option<&Socks6> {
        match self.scheme {
            Scheme::Socks6 => Some(self.socks6.as_deref().unwrap_or(&Socks6::DEFAULT)),
            _ => None,
        }
    }

    /// How to speak to it.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// User and password, for SOCKS5 and SOCKS 6.
    #[must_use]
    pub const fn credentials(&self) -> Option<&Credentials> {
        match &self.login {
            Login::Credentials(credentials) => Some(credentials),
            _ => None,
        }
    }

    /// The user, for SOCKS4.
    #[must_use]
    pub const fn user_id(&self) -> Option<&UserId> {
        match &self.login {
            Login::UserId(user_id) => Some(user_id),
            _ => None,
        }
    }

    /// How long the whole handshake may take, if it was said. Never zero.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl ProxyUri {
    fn take_query(&mut self, query: &str) -> Result<(), ProxyUriError> {
        #[cfg(feature = "socks6")]
        let mut options = Socks6::DEFAULT;
        // Unknown ones are refused, so there are never many.
        let mut keys = Vec::new();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if key.is_empty() && value.is_empty() {
                return Err(ProxyUriError::EmptyQuery);
            }
            if keys.contains(&key) {
                return Err(ProxyUriError::RepeatedKey(key.into()));
            }
            keys.push(key);
            match key {
                "timeout" => match humantime::parse_duration(value) {
                    Ok(duration) if !duration.is_zero() => self.timeout = Some(duration),
                    _ => return Err(ProxyUriError::Timeout(value.into())),
                },
                #[cfg(feature = "socks6")]
                _ if self.scheme == Scheme::Socks6 => options.take(key, value)?,
                _ => return Err(ProxyUriError::Key(key.into())),
            }
        }
        #[cfg(feature = "socks6")]
        {
            options.check()?;
            self.set_socks6(options);
        }
        Ok(())
    }
}

impl FromStr for ProxyUri {
    type Err = ProxyUriError;

    fn from_str(text: &str) -> Result<Self, ProxyUriError> {
        let (scheme, rest) = text.split_once("://").ok_or(ProxyUriError::MissingScheme)?;
        let scheme = parse_scheme(scheme)?;
        // The last `@` of all, not of the authority: a password with a bare `/` or `?` must not be taken for
        // the parts behind it, whose errors quote them.
        let (login, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (parse_login(scheme, userinfo)?, rest),
            None => (Login::Nobody, rest),
        };
        if let Some((_, fragment)) = rest.split_once('#') {
            return Err(ProxyUriError::Fragment(fragment.into()));
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let address = match rest.split_once('/') {
            None | Some((_, "")) => parse_address(rest.trim_end_matches('/'))?,
            Some((_, path)) => return Err(ProxyUriError::Path(format!("/{path}"))),
        };
        let mut uri = Self::new(scheme, address);
        uri.login = login;
        if let Some(query) = query {
            uri.take_query(query)?;
        }
        Ok(uri)
    }
}

impl fmt::Display for ProxyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match &self.login {
            Login::Nobody => (),
            Login::UserId(user) => write!(f, "{}@", encode(user.as_bytes()))?,
            Login::Credentials(credentials) => write!(f, "{}:***@", encode(credentials.user()))?,
        }
        write!(f, "{}", self.address)?;
        let mut separator = '?';
        let mut write = |key: &str, value: &dyn fmt::Display| {
            let before = std::mem::replace(&mut separator, '&');
            write!(f, "{before}{key}={value}")
        };
        if let Some(timeout) = self.timeout {
            // Without the spaces of `1m 30s`, which have no place in a URI; they may be left out.
            let text = humantime::format_duration(timeout).to_string();
            write("timeout", &text.replace(' ', ""))?;
        }
        #[cfg(feature = "socks6")]
        if let Some(options) = self.socks6() {
            options.pairs(write)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ProxyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUri({self})")
    }
}

impl Scheme {
    /// Where the names of destinations are resolved.
    #[must_use]
    pub const fn resolution(self) -> Resolution {
        match self {
            Self::Socks4 | Self::Socks5 => Resolution::Here,
            Self::Socks4a | Self::Socks5h => Resolution::AtProxy,
            #[cfg(feature = "socks6")]
            Self::Socks6 => Resolution::AtProxy,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Socks4 => "socks4",
            Self::Socks4a => "socks4a",
            Self::Socks5 => "socks5",
            Self::Socks5h => "socks5h",
            #[cfg(feature = "socks6")]
            Self::Socks6 => "socks6",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for ProxyUriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingScheme => {
                write!(
                    f,
                    "the scheme is missing, as in socks5://proxy.example:1080"
                )
            }
            Self::Scheme(scheme) => write!(
                f,
                "unknown scheme \"{}\", use socks5, socks5h, socks4 or socks4a, as in socks5://proxy.example:1080",
                scheme.escape_debug()
            ),
            Self::NotBuiltIn => write!(f, "socks6 is not built in: this build is without it"),
            Self::Credentials(error) => {
                write!(f, "{error}, as in socks5://user:password@proxy.example")
            }
            Self::PasswordInSocks4 => {
                write!(f, "SOCKS4 has no password, use socks4://user@proxy.example")
            }
            Self::UserId => write!(
                f,
                "a SOCKS4 user has 1 to 255 bytes without NUL, as in socks4://user@proxy.example"
            ),
            Self::Encoding => write!(
                f,
                "user and password must be percent-encoded, as in user:p%40ss for the password p@ss"
            ),
            Self::MissingHost => {
                write!(f, "the host is missing, as in socks5://proxy.example:1080")
            }
            Self::Address(text, error) => {
                write!(f, "bad address \"{}\": {error}", text.escape_debug())
            }
            Self::Port(text) => write!(
                f,
                "bad port \"{}\", use a number from 1 to 65535, as in proxy.example:1080",
                text.escape_debug()
            ),
            Self::Path(path) => write!(
                f,
                "a proxy has no path \"{}\", use socks5://proxy.example:1080",
                path.escape_debug()
            ),
            Self::Fragment(fragment) => write!(
                f,
                "a proxy has no fragment \"#{}\", use socks5://proxy.example:1080",
                fragment.escape_debug()
            ),
            Self::EmptyQuery => {
                write!(f, "there is nothing behind \"?\" or \"&\", use ?timeout=5s")
            }
            Self::Key(key) => write!(f, "unknown key \"{}\", use timeout=5s", key.escape_debug()),
            Self::RepeatedKey(key) => write!(f, "\"{key}\" is there twice, use one"),
            Self::Timeout(text) => write!(
                f,
                "bad timeout \"{}\", use a duration above zero, as in timeout=5s",
                text.escape_debug()
            ),
            Self::Socks6Key(key) => write!(
                f,
                "unknown key \"{}\", use those of socks6, such as session=yes, or timeout=5s",
                key.escape_debug()
            ),
            Self::Value { key, text, usage } => {
                write!(f, "bad {key} \"{}\", use {usage}", text.escape_debug())
            }
            Self::WithoutSession(key) => {
                write!(f, "\"{key}\" needs a session, leave out session=no")
            }
        }
    }
}

impl Error for ProxyUriError {}

fn parse_scheme(text: &str) -> Result<Scheme, ProxyUriError> {
    let known = [
        Scheme::Socks4,
        Scheme::Socks4a,
        Scheme::Socks5,
        Scheme::Socks5h,
        #[cfg(feature = "socks6")]
        Scheme::Socks6,
    ];
    if let Some(scheme) = known
        .into_iter()
        .find(|scheme| scheme.as_str().eq_ignore_ascii_case(text))
    {
        return Ok(scheme);
    }
    if text.eq_ignore_ascii_case("socks6") {
        return Err(ProxyUriError::NotBuiltIn);
    }
    // What can't be a scheme may be `user:password@…`, so it is not quoted.
    let plausible = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if text.is_empty() || !text.bytes().all(plausible) {
        return Err(ProxyUriError::MissingScheme);
    }
    Err(ProxyUriError::Scheme(text.into()))
}

fn parse_login(scheme: Scheme, userinfo: &str) -> Result<Login, ProxyUriError> {
    let (user, password) = match userinfo.split_once(':') {
        Some((user, password)) => (decode(user)?, Some(decode(password)?)),
        None => (decode(userinfo)?, None),
    };
    match (scheme, password) {
        (Scheme::Socks4 | Scheme::Socks4a, Some(_)) => Err(ProxyUriError::PasswordInSocks4),
        (Scheme::Socks4 | Scheme::Socks4a, None) => match UserId::new(&user) {
            Some(user_id) if !user.is_empty() => Ok(Login::UserId(user_id)),
            _ => Err(ProxyUriError::UserId),
        },
        (_, password) => Credentials::new(user, password.unwrap_or_default())
            .map(Login::Credentials)
            .map_err(ProxyUriError::Credentials),
    }
}

fn parse_address(text: &str) -> Result<Address, ProxyUriError> {
    let bad = |error| ProxyUriError::Address(text.into(), error);
    if text.is_empty() || text.starts_with(':') && !text.starts_with("::") {
        return Err(ProxyUriError::MissingHost);
    }
    if let Some(host) = text.strip_suffix(':')
        && !host.ends_with(':')
    {
        return Err(ProxyUriError::Port(String::new()));
    }
    let address = Address::with_default_port(text, ProxyUri::DEFAULT_PORT).map_err(bad)?;
    if let (Host::Ip(std::net::IpAddr::V6(_)), false) = (&address.host, text.starts_with('[')) {
        return Err(bad(AddressError::Unbracketed));
    }
    if address.port == 0 {
        return Err(ProxyUriError::Port("0".into()));
    }
    Ok(address)
}

/// Percent-decoding that refuses what `percent_decode_str` lets through.
fn decode(text: &str) -> Result<Vec<u8>, ProxyUriError> {
    let bare = |c: char| "/?#@".contains(c) || c.is_whitespace() || c.is_control();
    let escaped = |part: &str| {
        let mut bytes = part.bytes();
        let mut hex = || bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        hex() && hex()
    };
    if text.contains(bare) || !text.split('%').skip(1).all(escaped) {
        return Err(ProxyUriError::Encoding);
    }
    Ok(percent_decode_str(text).collect())
}

/// User or password as they stand in a URI.
pub(crate) fn encode(bytes: &[u8]) -> impl fmt::Display + '_ {
    percent_encode(bytes, ESCAPED)
}

/// All but the unreserved characters of RFC 3986 §2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<ProxyUri, ProxyUriError> {
        text.parse()
    }

    #[test]
    fn text_is_understood_and_shown_in_full() {
        for (text, shown) in [
            ("socks5://proxy.example", "socks5://proxy.example:1080"),
            ("SOCKS5://proxy.example/", "socks5://proxy.example:1080"),
            ("socks5h://192.0.2.1:99", "socks5h://192.0.2.1:99"),
            ("socks4a://[2001:db8::1]", "socks4a://[2001:db8::1]:1080"),
            ("socks4://ada@[::1]:9", "socks4://ada@[::1]:9"),
            ("socks5://ada:pw@h", "socks5://ada:***@h:1080"),
            ("socks5://a%40b:p%3aw@h", "socks5://a%40b:***@h:1080"),
            ("socks5://h?timeout=500ms", "socks5://h:1080?timeout=500ms"),
            ("socks5://h/?timeout=90s", "socks5://h:1080?timeout=1m30s"),
        ] {
            let uri = parse(text).unwrap();
            assert_eq!(uri.to_string(), shown, "{text}");
            assert_eq!(format!("{uri:?}"), format!("ProxyUri({shown})"));
            if uri.credentials().is_none() {
                assert_eq!(parse(shown), Ok(uri));
            }
        }
    }

    #[test]
    fn parts_are_decoded() {
        let uri = parse("socks5://a%2Fb:p:%40%c3%bc@h:9?timeout=5s").unwrap();
        let credentials = Credentials::new("a/b", "p:@ü").unwrap();
        assert_eq!(uri.credentials(), Some(&credentials));
        assert_eq!(uri.user_id(), None);
        assert_eq!(uri.address().to_string(), "h:9");
        assert_eq!(uri.timeout(), Some(Duration::from_secs(5)));
        assert_eq!(uri.scheme(), Scheme::Socks5);
        let uri = parse("socks4://%ffda@h").unwrap();
        assert_eq!(uri.user_id().unwrap().as_bytes(), b"\xffda");
        assert_eq!((uri.credentials(), uri.timeout()), (None, None));
    }

    #[test]
    fn scheme_says_who_resolves() {
        for (scheme, resolution) in [
            (Scheme::Socks4, Resolution::Here),
            (Scheme::Socks4a, Resolution::AtProxy),
            (Scheme::Socks5, Resolution::Here),
            (Scheme::Socks5h, Resolution::AtProxy),
        ] {
            assert_eq!(scheme.resolution(), resolution);
            assert_eq!(parse_scheme(&scheme.to_string()), Ok(scheme));
        }
    }

    #[test]
    fn every_bad_part_has_its_error() {
        use ProxyUriError as E;
        let address = |text: &str, error| E::Address(text.into(), error);
        for (text, error) in [
            ("", E::MissingScheme),
            ("h:1080", E::MissingScheme),
            ("://h", E::MissingScheme),
            ("http://h", E::Scheme("http".into())),
            #[cfg(not(feature = "socks6"))]
            ("socks6://h", E::NotBuiltIn),
            ("socks5://", E::MissingHost),
            ("socks5://:1080", E::MissingHost),
            ("socks5://ada:pw@", E::MissingHost),
            ("socks5://h:", E::Port(String::new())),
            ("socks5://[::1]:", E::Port(String::new())),
            ("socks5://h:0", E::Port("0".into())),
            ("socks5://h:x", address("h:x", AddressError::Port)),
            ("socks5://h:65536", address("h:65536", AddressError::Port)),
            ("socks5://::1", address("::1", AddressError::Unbracketed)),
            (
                "socks5://::1:80",
                address("::1:80", AddressError::Unbracketed),
            ),
            ("socks5://[::1", address("[::1", AddressError::Ipv6)),
            (
                "socks5://[fe80::1%25eth0]",
                address("[fe80::1%25eth0]", AddressError::Ipv6),
            ),
            ("socks5://h/x?timeout=5s", E::Path("/x".into())),
            ("socks5://h//", E::Path("//".into())),
            ("socks5://h#x", E::Fragment("x".into())),
            ("socks5://h?", E::EmptyQuery),
            ("socks5://h?timeout=5s&", E::EmptyQuery),
            ("socks5://h?time=5s", E::Key("time".into())),
            ("socks5://h?=5s", E::Key(String::new())),
            ("socks5://h?timeout", E::Timeout(String::new())),
            ("socks5://h?timeout=", E::Timeout(String::new())),
            ("socks5://h?timeout=5", E::Timeout("5".into())),
            ("socks5://h?timeout=-5s", E::Timeout("-5s".into())),
            ("socks5://h?timeout=0s", E::Timeout("0s".into())),
            (
                "socks5://h?timeout=1s&timeout=2s",
                E::RepeatedKey("timeout".into()),
            ),
            ("socks5://@h", E::Credentials(CredentialsError::EmptyUser)),
            (
                "socks5://:pw@h",
                E::Credentials(CredentialsError::EmptyUser),
            ),
            (
                "socks5://ada@h",
                E::Credentials(CredentialsError::EmptyPassword),
            ),
            (
                "socks5://ada:@h",
                E::Credentials(CredentialsError::EmptyPassword),
            ),
            (
                "socks5://ada:p%00w@h",
                E::Credentials(CredentialsError::Nul),
            ),
            ("socks5://ada:p%4@h", E::Encoding),
            ("socks5://ada:p%zz@h", E::Encoding),
            ("socks4://ada:pw@h", E::PasswordInSocks4),
            ("socks4://@h", E::UserId),
            ("socks4a://a%00@h", E::UserId),
        ] {
            assert_eq!(parse(text), Err(error.clone()), "{text}");
            let shown = error.to_string();
            assert!(!shown.ends_with('.') && shown.contains(" "), "{shown}");
        }
        let long = format!("socks5://{}:pw@h", "u".repeat(256));
        let error = E::Credentials(CredentialsError::UserTooLong);
        assert_eq!(parse(&long), Err(error));
    }

    #[test]
    fn no_error_shows_a_password() {
        for text in [
            "socks5://ada:SECRET@",
            "socks5://ada:SECRET@h:x",
            "socks5://ada:SECRET%@h",
            "socks5://ada:SECRET/x@h",
            "socks5://ada:x/SECRET@h",
            "socks5://ada:x?SECRET@h",
            "socks5://ada:x#SECRET@h",
            "socks5://ada:x@SECRET@h",
            "socks5://ada:x SECRET@h",
            "socks4://ada:SECRET@h",
            "http://ada:SECRET@h",
            "ada:SECRET@h:1080",
            "ada:SECRET@h://",
            "SECRET@://h",
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                !format!("{error} {error:?}").contains("SECRET"),
                "{text}: {error}"
            );
        }
        let uri = parse("socks5://ada:SECRET@h").unwrap();
        assert!(!format!("{uri} {uri:?} {uri:#?}").contains("SECRET"));
    }

    proptest! {
        #[test]
        fn any_user_and_password_can_be_written(
            user in prop::collection::vec(1..=255_u8, 1..=255),
            password in prop::collection::vec(1..=255_u8, 1..=255),
        ) {
            let text = format!("socks5://{}:{}@h", encode(&user), encode(&password));
            let credentials = Credentials::new(&user, &password).unwrap();
            let uri = parse(&text).unwrap();
            prop_assert_eq!(uri.credentials(), Some(&credentials));
        }

        #[test]
        fn any_duration_survives(millis in 1..u64::from(u32::MAX)) {
            let uri = ProxyUri {
                timeout: Some(Duration::from_millis(millis)),
                ..ProxyUri::new(Scheme::Socks5, "h:1".parse().unwrap())
            };
            prop_assert_eq!(parse(&uri.to_string()), Ok(uri));
        }

        #[test]
        fn any_text_is_refused_or_understood(text in "(socks[56]://)?[a-z0-9:@/?#%\\[\\]&=. é-]{0,20}") {
            if let Ok(uri) = parse(&text) && uri.credentials().is_none() {
                prop_assert_eq!(parse(&uri.to_string()), Ok(uri));
            }
        }
    }
}
