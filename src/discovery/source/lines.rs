//! One line of a list of peers, whatever the list comes from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::discovery::logins::MOST_LOGINS;
use crate::peer::Peer;
use crate::target::Host;
use crate::wire::Credentials;

/// A peer as it is written in a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// An address, never IPv4-mapped.
    Ip(SocketAddr),
    /// A host name, to be looked up, and a port.
    Name(String, u16),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// A peer of a list, and the login for it if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPeer {
    /// Where it is.
    pub name: PeerName,
    /// As whom it is greeted.
    pub login: Option<Arc<Credentials>>,
}

/// Why a line names no peer. `Display` goes on where the quoted line ends: `"x:0" has port 0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    /// Neither an address nor a host name, with or without a port.
    NotAnAddress,
    /// A port that is not a number up to 65535.
    BadPort,
    /// Port 0 is nobody's.
    PortZero,
    /// `0.0.0.0` or `::`.
    Unspecified,
    /// A multicast or broadcast address.
    Multicast,
    /// An IPv6 address with a scope (`%eth0`), which only means something on this machine and this boot.
    Scoped,
    /// A URI, or a user without one, that is not what it should be. Holds what is wrong, without any of what could be a password.
    Uri(String),
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uri(problem) => problem,
            Self::NotAnAddress => "is not an address",
            Self::BadPort => "has no port from 1 to 65535 after the colon",
            Self::PortZero => "has port 0",
            Self::Unspecified => "is the unspecified address",
            Self::Multicast => "is a multicast or broadcast address",
            Self::Scoped => "has a scope, which is not supported",
        })
    }
}

impl std::error::Error for LineError {}

/// Reads one line as [`parse_peer_line`] does, or one with `socks5://user:password@host:port`.
///
/// # Errors
/// [`LineError`] for what can't be a peer.
pub fn parse_line(line: &str, default_port: u16) -> Result<Option<ListedPeer>, LineError> {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    let text = line.split('#').next().unwrap_or_default().trim();
    if !text.contains("://") && !text.contains('@') {
        let plain = |name| ListedPeer { name, login: None };
        return Ok(parse_peer_line(text, default_port)?.map(plain));
    }
    let peer = Peer::parse_listed(text).map_err(|bad| LineError::Uri(bad.to_string()))?;
    let name = match peer.address.host {
        Host::Ip(ip) => address(ip, peer.address.port)?,
        Host::Name(name) => PeerName::Name(name.to_ascii_lowercase(), peer.address.port),
    };
    let login = peer.credentials;
    Ok(Some(ListedPeer { name, login }))
}

/// Reads one line: `host`, `host:port`, `v6`, `[v6]` or `[v6]:port`, blanks around it, and a comment from `#` on.
///
/// `None` for an empty line or one with nothing but a comment. A byte order mark at the start is skipped.
///
/// # Errors
/// [`LineError`] for what can't be a peer.
pub fn parse_peer_line(line: &str, default_port: u16) -> Result<Option<PeerName>, LineError> {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    let text = line.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return address(ip.into(), default_port).map(Some);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').ok_or(LineError::NotAnAddress)?;
        if host.contains('%') {
            return Err(LineError::Scoped);
        }
        let ip: Ipv6Addr = host.parse().map_err(|_| LineError::NotAnAddress)?;
        let port = match tail.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if tail.is_empty() => default_port,
            None => return Err(LineError::NotAnAddress),
        };
        return address(ip.into(), port).map(Some);
    }
    if let Some((ip, _)) = text.split_once('%')
        && ip.parse::<Ipv6Addr>().is_ok()
    {
        return Err(LineError::Scoped);
    }
    let (host, port) = match text.split_once(':') {
        None => (text, default_port),
        Some((host, _)) if !is_host(host) => return Err(LineError::NotAnAddress),
        Some((_, port)) if port.contains(':') => return Err(LineError::NotAnAddress),
        Some((host, port)) => (host, parse_port(port)?),
    };
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return address(ip.into(), port).map(Some);
    }
    if !is_host(host) {
        return Err(LineError::NotAnAddress);
    }
    if port == 0 {
        return Err(LineError::PortZero);
    }
    Ok(Some(PeerName::Name(host.to_ascii_lowercase(), port)))
}

fn address(ip: IpAddr, port: u16) -> Result<PeerName, LineError> {
    let ip = ip.to_canonical();
    if port == 0 {
        return Err(LineError::PortZero);
    }
    if ip.is_unspecified() {
        return Err(LineError::Unspecified);
    }
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(LineError::Multicast);
    }
    Ok(PeerName::Ip(SocketAddr::new(ip, port)))
}

fn parse_port(text: &str) -> Result<u16, LineError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(LineError::BadPort);
    }
    match text.parse() {
        Ok(0) => Err(LineError::PortZero),
        Ok(port) => Ok(port),
        Err(_) => Err(LineError::BadPort),
    }
}

/// Whether this can be a host name or an IPv4 address: labels of letters, digits, `-` and `_`. The last label of a name
/// has a letter, else `300.1.1.1` and `1.2.3` would be names.
fn is_host(text: &str) -> bool {
    if text.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last_has_letter = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()));
    name.len() <= MAX_NAME && name.split('.').all(label) && last_has_letter
}

/// Limits of one list: far above what a table takes, far below what would hurt.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// No name is longer (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;

/// A whole list, read line by line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) names: Vec<(String, u16)>,
    /// The logins for some of them.
    pub(super) logins: Vec<(PeerName, Arc<Credentials>)>,
    /// Lines that name no peer.
    pub(super) bad: usize,
    /// Peers beyond the limit.
    pub(super) left_out: usize,
}

impl List {
    /// Reads `text`, of which the good lines count. `complain` gets a message for each of the first bad lines.
    pub(super) fn parse(
        text: &[u8],
        default_port: u16,
        mut complain: impl FnMut(usize, &str),
    ) -> Self {
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = String::from_utf8_lossy(line.get(..MAX_LINE).unwrap_or(line));
            let peer = match parse_line(&line, default_port) {
                Ok(None) => continue,
                Ok(Some(peer)) => peer,
                Err(error) => {
                    list.bad += 1;
                    match &error {
                        _ if list.bad > MAX_COMPLAINTS => {}
                        LineError::Uri(problem) => complain(number, problem),
                        // May have a password.
                        _ if line.contains("://") => complain(number, &format!("a URI {error}")),
                        _ => {
                            let shown = shorten(line.trim());
                            complain(number, &format!("{shown:?} {error}"));
                        }
                    }
                    continue;
                }
            };
            let is_full = list.addresses.len() + list.names.len() >= MAX_PEERS;
            if is_full || (peer.login.is_some() && list.logins.len() >= MOST_LOGINS) {
                list.left_out += 1;
                continue;
            }
            if let Some(login) = peer.login {
                list.logins.push((peer.name.clone(), login));
            }
            match peer.name {
                PeerName::Ip(address) => list.addresses.push(address),
                PeerName::Name(host, port) => list.names.push((host, port)),
            }
        }
        list
    }

    /// What to say about bad lines beyond those complained about.
    pub(super) fn more_bad(&self) -> Option<String> {
        let more = self
            .bad
            .checked_sub(MAX_COMPLAINTS)
            .filter(|more| *more > 0)?;
        Some(format!("{more} more lines are not addresses"))
    }
}

/// The first characters of what may be anything.
pub(super) fn shorten(text: &str) -> String {
    if text.chars().count() <= MAX_SHOWN {
        return text.to_owned();
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}

/// What of a line is looked at: a name, a port, and a comment.
const MAX_LINE: usize = 1024;

/// As many as a table takes.
const MAX_PEERS: usize = crate::discovery::table::MAX_ADDRESSES;

/// A file that is not a list at all must not flood the log.
const MAX_COMPLAINTS: usize = 20;

const MAX_SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_peer() {
        let ip = |text: &str| Ok(Some(PeerName::Ip(text.parse().unwrap())));
        let name = |host: &str, port| Ok(Some(PeerName::Name(host.to_owned(), port)));
        let table = [
            ("", Ok(None)),
            ("  \t\r", Ok(None)),
            ("# 1.2.3.4", Ok(None)),
            ("\u{feff}", Ok(None)),
            ("\u{feff}1.2.3.4", ip("1.2.3.4:1080")),
            ("1.2.3.4\r", ip("1.2.3.4:1080")),
            ("  1.2.3.4:99  # exit in Ghent", ip("1.2.3.4:99")),
            ("1.2.3.4#x", ip("1.2.3.4:1080")),
            ("407::1", ip("[407::1]:1080")),
            ("[407::1]", ip("[407::1]:1080")),
            ("[407::1]:9050", ip("[407::1]:9050")),
            ("::ffff:1.2.3.4", ip("1.2.3.4:1080")),
            ("[::ffff:1.2.3.4]:5", ip("1.2.3.4:5")),
            ("Proxy.Example", name("proxy.example", 1080)),
            ("proxy.example:81", name("proxy.example", 81)),
            ("a_b-c.d.:81", name("a_b-c.d.", 81)),
            ("localhost", name("localhost", 1080)),
            ("1.2.3.4:0", Err(LineError::PortZero)),
            ("[::1]:0", Err(LineError::PortZero)),
            ("host:0", Err(LineError::PortZero)),
            ("1.2.3.4:65536", Err(LineError::BadPort)),
            ("1.2.3.4:", Err(LineError::BadPort)),
            ("host:+1", Err(LineError::BadPort)),
            ("[::1]:x", Err(LineError::BadPort)),
            ("0.0.0.0", Err(LineError::Unspecified)),
            ("[::]:1080", Err(LineError::Unspecified)),
            ("::ffff:0.0.0.0", Err(LineError::Unspecified)),
            ("224.0.0.1", Err(LineError::Multicast)),
            ("ff02::1", Err(LineError::Multicast)),
            ("255.255.255.255", Err(LineError::Multicast)),
            ("fe80::1%eth0", Err(LineError::Scoped)),
            ("[fe80::1%2]:1080", Err(LineError::Scoped)),
            ("1.2.3", Err(LineError::NotAnAddress)),
            ("300.1.1.1", Err(LineError::NotAnAddress)),
            ("1.2.3.4 5.6.7.8", Err(LineError::NotAnAddress)),
            ("1.2.3.4,", Err(LineError::NotAnAddress)),
            ("[1.2.3.4]:1080", Err(LineError::NotAnAddress)),
            ("[::1", Err(LineError::NotAnAddress)),
            ("[::1]1080", Err(LineError::NotAnAddress)),
            ("1:2:3", Err(LineError::NotAnAddress)),
            ("socks5://host", Err(LineError::BadPort)),
            (":1080", Err(LineError::NotAnAddress)),
            ("-x", Err(LineError::NotAnAddress)),
            ("a..b", Err(LineError::NotAnAddress)),
            ("<html>", Err(LineError::NotAnAddress)),
            ("\u{fffd}\u{fffd}", Err(LineError::NotAnAddress)),
        ];
        for (line, expected) in table {
            assert_eq!(parse_peer_line(line, 1080), expected, "{line:?}");
        }
    }

    #[test]
    fn uris_have_logins_and_errors_without_passwords() {
        let listed = |line: &str| parse_line(line, 1080).map(Option::unwrap);
        let ada = Some(Arc::new(Credentials::new("ada", "p@ss").unwrap()));
        for (line, name, login) in [
            ("host:5", "host:5", &None),
            (" socks5://[407::1] # x", "[407::1]:1080", &None),
            ("socks5://ada:p%40ss@10.0.0.1:9", "10.0.0.1:9", &ada),
            ("SOCKS5h://ada:p%40ss@Host", "host:1080", &ada),
        ] {
            let peer = listed(line).unwrap();
            assert_eq!((&*peer.name.to_string(), &peer.login), (name, login));
        }
        assert_eq!(parse_line(" # socks5://a:b@h", 1), Ok(None));
        assert_eq!(listed("socks5://a:b@0.0.0.0"), Err(LineError::Unspecified));
        let text = "socks5://a:SECRET@h/x\nsocks5://a:SECRET\na:SECRET@h\nsocks5://a:SECRET@0.0.0.0\n\
                    socks4://SECRET@h\nsocks5://a:x#SECRET@h\nsocks5://a:SECRET@h?timeout=1s";
        let mut said = Vec::new();
        let list = List::parse(text.as_bytes(), 1080, |_, text| said.push(text.to_owned()));
        assert_eq!((list.bad, said.len()), (7, 7), "{said:?}");
        assert!(!format!("{said:?} {list:?}").contains("SECRET"), "{said:?}");
    }

    #[test]
    fn logins_are_bounded() {
        let text = "socks5://a:b@10.0.0.1\n".repeat(MOST_LOGINS + 5);
        let list = List::parse(text.as_bytes(), 1080, |_, _| {});
        assert_eq!((list.logins.len(), list.left_out), (MOST_LOGINS, 5));
    }

    #[test]
    fn long_names_are_refused() {
        let label = "a".repeat(63);
        let name = [label.as_str(); 4].join(".");
        assert_eq!(parse_peer_line(&name, 1), Err(LineError::NotAnAddress));
        assert!(parse_peer_line(&name[..253], 1).is_ok());
        assert!(parse_peer_line(&"a".repeat(64), 1).is_err());
    }

    #[test]
    fn good_lines_count_and_bad_ones_are_named() {
        let mut said = Vec::new();
        let list = List::parse(
            b"1.2.3.4\r\n<html>\nhost:5\n\n\xff\xfe",
            1080,
            |line, text| {
                said.push((line, text.to_owned()));
            },
        );
        assert_eq!(list.addresses, ["1.2.3.4:1080".parse().unwrap()]);
        assert_eq!(list.names, [("host".to_owned(), 5)]);
        assert_eq!(list.bad, 2);
        assert_eq!(said[0], (2, "\"<html>\" is not an address".to_owned()));
        assert_eq!(said[1].0, 5);
        assert_eq!(list.more_bad(), None);
    }

    #[test]
    fn complaints_are_bounded() {
        let text = format!("{}\n", "x".repeat(5000)).repeat(1000);
        let mut said = Vec::new();
        let list = List::parse(text.as_bytes(), 1080, |_, text| said.push(text.len()));
        assert_eq!((list.bad, said.len()), (1000, 20));
        assert!(said.iter().all(|length| *length < 200));
        assert_eq!(list.more_bad().unwrap(), "980 more lines are not addresses");
    }
}
