//! The proxies that a forwarder can forward to, as people write them.

use std::fmt;

use crate::ProxyUri;
use crate::bad_text::BadText;
use crate::peer::Peer;
#[cfg(feature = "socks6")]
use crate::proxy_uri::Fallback;
use crate::proxy_uri::encode;
use crate::target::HostPort;
#[cfg(feature = "socks6")]
use crate::target::SOCKS_PORT;

/// A remote: how clients are forwarded to it. `Display` shows no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// Their bytes are passed on: they speak to the proxy themselves, after a login that is done for them if there is one.
    PassedOn(Peer),
    /// What they say in SOCKS 4, 4a and 5 is said to the proxy in SOCKS 6.
    #[cfg(feature = "socks6")]
    Converted {
        /// Where it is.
        address: HostPort,
        /// Where, how and as whom.
        proxy: Box<ProxyUri>,
    },
}

impl Remote {
    /// Parses a [`Peer`], or a URI such as `socks6://user:password@host:port`.
    ///
    /// # Errors
    /// What is wrong; never with a password.
    pub fn parse(text: &str) -> Result<Self, BadText> {
        let is_six = |scheme: &str| scheme.eq_ignore_ascii_case("socks6");
        if !text
            .split_once("://")
            .is_some_and(|(scheme, _)| is_six(scheme))
        {
            return text.parse().map(Self::PassedOn);
        }
        Self::converted(text)
    }

    #[cfg(feature = "socks6")]
    fn converted(text: &str) -> Result<Self, BadText> {
        let bad = |problem: &dyn fmt::Display| BadText::new("socks6", problem.to_string(), EXAMPLE);
        let proxy: ProxyUri = text.parse().map_err(|error| bad(&error))?;
        check_socks6(&proxy).map_err(|error| bad(&error))?;
        let address = HostPort::parse_or_port(&proxy.address().to_string(), SOCKS_PORT)?;
        let proxy = Box::new(proxy);
        Ok(Self::Converted { address, proxy })
    }

    #[cfg(not(feature = "socks6"))]
    fn converted(_text: &str) -> Result<Self, BadText> {
        let problem = "is not built in: this build is without it";
        Err(BadText::new("socks6", problem, EXAMPLE))
    }

    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> &HostPort {
        match self {
            Self::PassedOn(peer) => &peer.address,
            #[cfg(feature = "socks6")]
            Self::Converted { address, .. } => address,
        }
    }

    /// Whether `Display` leaves out what is needed to use it: a password.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        match self {
            Self::PassedOn(peer) => peer.credentials.is_some(),
            #[cfg(feature = "socks6")]
            Self::Converted { proxy, .. } => proxy.credentials().is_some(),
        }
    }

    /// As text with its password: for those who are to use it, and nobody else.
    #[must_use]
    pub fn reveal(&self) -> String {
        let credentials = match self {
            Self::PassedOn(peer) => peer.credentials.as_deref(),
            #[cfg(feature = "socks6")]
            Self::Converted { proxy, .. } => proxy.credentials(),
        };
        let text = self.to_string();
        match credentials {
            Some(credentials) => {
                let password = encode(credentials.password()).to_string();
                text.replacen(":***@", &format!(":{password}@"), 1)
            }
            None => text,
        }
    }

    /// Whether clients' requests are translated.
    #[must_use]
    pub const fn is_converted(&self) -> bool {
        !matches!(self, Self::PassedOn(_))
    }

    /// The proxy whose clients' requests are translated.
    #[must_use]
    pub fn proxy(&self) -> Option<&ProxyUri> {
        match self {
            Self::PassedOn(_) => None,
            #[cfg(feature = "socks6")]
            Self::Converted { proxy, .. } => Some(proxy),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PassedOn(peer) => peer.fmt(f),
            #[cfg(feature = "socks6")]
            Self::Converted { proxy, .. } => proxy.fmt(f),
        }
    }
}

/// Refuses what a URI may say, but nobody does who carries clients of their own to the proxy.
///
/// # Errors
/// What is refused.
#[cfg(feature = "socks6")]
pub fn check_socks6(proxy: &ProxyUri) -> Result<(), &'static str> {
    match proxy.socks6() {
        Some(options) if options.fallback != Fallback::Refuse => {
            Err("has a fallback, which is for dial alone: give the version that the proxy speaks")
        }
        Some(options) if options.stack.backlog.is_some() => {
            Err("has a backlog, which clients of older versions know nothing of")
        }
        _ => Ok(()),
    }
}

const EXAMPLE: &str = "socks6://proxy.example:1080";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_of_every_kind() {
        let plain = Remote::parse("socks5://host:9").unwrap();
        assert_eq!(
            (plain.to_string().as_str(), plain.is_converted()),
            ("host:9", false)
        );
        assert!(Remote::parse("http://host").is_err());
        let login = Remote::parse("socks5://ada:hunter2@host:9").unwrap();
        assert!(login.has_secret() && !plain.has_secret());
        assert!(!format!("{login} {login:?}").contains("hunter2"));
    }

    #[cfg(feature = "socks6")]
    #[test]
    fn socks6_has_users_and_options_and_shows_no_password() {
        let remote = Remote::parse("SOCKS6://ada:hunter2@[407::1]?timeout=3s").unwrap();
        assert!(remote.is_converted());
        assert_eq!(remote.address().to_string(), "[407::1]:1080");
        assert_eq!(
            remote.to_string(),
            "socks6://ada:***@[407::1]:1080?timeout=3s"
        );
        assert!(!format!("{remote:?}").contains("hunter2"));
        for text in [
            "socks6://",
            "socks6://h?fallback=socks5",
            "socks6://h?session=yes&backlog=4",
            "socks6://ada:hunter2@h/x?nonsense",
        ] {
            let error = Remote::parse(text).expect_err(text).to_string();
            assert!(error.contains("right would be socks6://"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[cfg(not(feature = "socks6"))]
    #[test]
    fn without_the_feature_socks6_is_refused() {
        let error = Remote::parse("socks6://ada:hunter2@h")
            .unwrap_err()
            .to_string();
        assert!(error.contains("not built in") && !error.contains("hunter2"));
    }
}
