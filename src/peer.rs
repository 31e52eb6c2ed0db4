//! A proxy of SOCKS 5 as people write it: where it is, as whom, and how long connecting to it may take.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::bad_text::BadText;
use crate::proxy_uri::{ProxyUri, ProxyUriError, Scheme, encode};
use crate::target::{HostPort, SOCKS_PORT};
use crate::wire::Credentials;

/// A proxy of SOCKS 5: `host`, `host:port`, `[v6]:port` or `socks5://user:password@host:port?timeout=5s`, with port 1080 when none
/// is said. `Display` and `Debug` show no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub address: HostPort,
    /// As whom clients are taken to it that do not authenticate by themselves. Shared, since it may have many addresses.
    pub credentials: Option<Arc<Credentials>>,
    /// For one connection to it to be made, and answered; from 10 ms to 10 minutes.
    pub timeout: Option<Duration>,
}

impl Peer {
    /// Parses one of many, which share their time limits.
    ///
    /// # Errors
    /// What is wrong, or a time limit of its own.
    pub fn parse_listed(text: &str) -> Result<Self, BadText> {
        let peer: Self = text.parse()?;
        match peer.timeout {
            None => Ok(peer),
            Some(_) => Err(BadText::new(
                "?timeout",
                "is for a proxy that is used by name: peers share --connect-timeout and --probe-timeout",
                EXAMPLE,
            )),
        }
    }

    fn from_uri(text: &str) -> Result<Self, BadText> {
        let bad = |problem: &str| {
            // The example stands behind it.
            let problem = problem.split(", use ").next().unwrap_or_default();
            let problem = problem.split(", as in ").next().unwrap_or_default();
            BadText::new("socks5://…", format!("is no proxy: {problem}"), EXAMPLE)
        };
        let other = |scheme: &dyn fmt::Display| {
            let problem = "is not a kind of proxy that this version forwards to";
            BadText::new(format!("{scheme}://"), problem, EXAMPLE)
        };
        let uri: ProxyUri = text.parse().map_err(|error| match error {
            ProxyUriError::Scheme(scheme) => other(&scheme),
            // Perhaps it is user and password, and the host was forgotten.
            ProxyUriError::Address(part, error) if part.contains(':') => {
                bad(&format!("bad address: {error}"))
            }
            error => bad(&error.to_string()),
        })?;
        if !matches!(uri.scheme(), Scheme::Socks5 | Scheme::Socks5h) {
            return Err(other(&uri.scheme()));
        }
        if uri
            .timeout()
            .is_some_and(|limit| !TIMEOUTS.contains(&limit))
        {
            return Err(bad("the timeout is not between 10ms and 10m"));
        }
        Ok(Self {
            address: HostPort::parse_or_port(&uri.address().to_string(), SOCKS_PORT)?,
            credentials: uri.credentials().cloned().map(Arc::new),
            timeout: uri.timeout(),
        })
    }
}

impl From<HostPort> for Peer {
    fn from(address: HostPort) -> Self {
        Self {
            address,
            credentials: None,
            timeout: None,
        }
    }
}

impl FromStr for Peer {
    type Err = BadText;

    /// The error quotes nothing of a URI, where any part may be one of a password.
    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.contains("://") {
            true => Self::from_uri(text),
            false if text.contains('@') => Err(BadText::new(
                "user@host",
                "lacks its scheme",
                "socks5://user:password@proxy.example:1080",
            )),
            false => HostPort::parse_or_port(text, SOCKS_PORT).map(Self::from),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(credentials) = &self.credentials {
            write!(f, "socks5://{}:***@", encode(credentials.user()))?;
        } else if self.timeout.is_some() {
            f.write_str("socks5://")?;
        }
        self.address.fmt(f)?;
        match self.timeout {
            Some(timeout) => {
                let text = humantime::format_duration(timeout).to_string();
                write!(f, "?timeout={}", text.replace(' ', ""))
            }
            None => Ok(()),
        }
    }
}

/// Somebody waits that long.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(10 * 60);

const EXAMPLE: &str = "socks5://10.1.2.3:1080 or socks5://user:password@[407::1]:1080";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::daemon::settings;

    fn peer(text: &str) -> Peer {
        text.parse().expect(text)
    }

    #[test]
    fn every_way_to_write_a_peer() {
        for (text, shown) in [
            ("host", "host:1080"),
            ("[407::1]:9", "[407::1]:9"),
            ("socks5://host", "host:1080"),
            ("SOCKS5h://host:9/", "host:9"),
            ("socks5://[407::1]:9", "[407::1]:9"),
            ("socks5://ada:pw@host", "socks5://ada:***@host:1080"),
            (
                "socks5h://a%40b:p@[407::1]",
                "socks5://a%40b:***@[407::1]:1080",
            ),
            ("socks5://h?timeout=90s", "socks5://h:1080?timeout=1m30s"),
            (
                "socks5://a:p@h:5?timeout=2s",
                "socks5://a:***@h:5?timeout=2s",
            ),
        ] {
            assert_eq!(peer(text).to_string(), shown, "{text}");
        }
        let one = peer("socks5://ada:p%40ss@host:9?timeout=2s");
        let credentials = Credentials::new("ada", "p@ss").unwrap();
        assert_eq!(one.credentials.as_deref(), Some(&credentials));
        assert_eq!(one.timeout, Some(Duration::from_secs(2)));
        assert_eq!(peer("h:9"), Peer::from("h:9".parse::<HostPort>().unwrap()));
    }

    #[test]
    fn no_error_and_no_text_shows_a_password() {
        for text in [
            "socks5://ada:SECRET@",
            "socks5://ada:SECRET",
            "socks5://ada:SECRET@h:0",
            "socks5://ada:SECRET@h:x",
            "socks5://ada:x@SECRET@h",
            "socks5://ada:SECRET@h/x",
            "socks5://ada:SECRET@h#x",
            "socks5://ada:SECRET@a..b",
            "socks5://ada:SECRET@10.1",
            "socks4://ada:SECRET@h",
            "http://ada:SECRET@h",
            "ada:SECRET@h",
        ] {
            let error = text.parse::<Peer>().expect_err(text);
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("SECRET"), "{text}: {shown}");
            assert!(shown.contains("right would be"), "{text}: {shown}");
        }
        let one = peer("socks5://ada:SECRET@h");
        assert!(!format!("{one} {one:?}").contains("SECRET"));
    }

    #[test]
    fn other_proxies_are_refused() {
        for text in [
            "http://h",
            "socks4://h",
            "socks4a://h",
            "socks5://",
            "socks5://h:0",
            "socks5://h?timeout=11m",
            "socks5://h?timeout=1000000years",
            "socks5://h?timeout=1ms",
        ] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
        assert_eq!(TIMEOUTS, settings::TIMEOUTS);
        assert!(Peer::parse_listed("socks5://a:b@h").is_ok());
        let error = Peer::parse_listed("socks5://h?timeout=1s").unwrap_err();
        assert!(error.to_string().contains("--connect-timeout"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(socks5://)?.{0,40}") {
            if let Ok(one) = text.parse::<Peer>() {
                prop_assert_ne!(one.address.port, 0);
                if one.credentials.is_none() {
                    prop_assert_eq!(one.to_string().parse::<Peer>(), Ok(one));
                }
            }
        }
    }
}
