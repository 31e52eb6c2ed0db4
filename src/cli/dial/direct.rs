//! Connecting without a proxy, where `NO_PROXY` says so.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Failure, values};
use crate::client::connect_any;
use crate::net::{ConnectFailure, Uplink};
use crate::resolver::Resolver;
use crate::wire::{Address, Host};

/// Whether this list names the host, as curl reads it: names stand for everything under them, addresses and ranges for
/// themselves, a `*` that is alone for everything; commas or spaces between them. There are no ports.
pub(super) fn is_named(list: &str, host: &Host) -> bool {
    if list == "*" {
        return true;
    }
    list.split([',', ' ', '\t']).any(|entry| match host {
        Host::Ip(ip) => names_ip(entry, ip.to_canonical()),
        Host::Name(name) => names_name(entry, name.as_str()),
    })
}

fn names_ip(entry: &str, ip: IpAddr) -> bool {
    let inside = entry
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let entry = inside.unwrap_or(entry);
    values::cidr(entry).is_ok_and(|range| range.contains(&ip))
}

fn names_name(entry: &str, name: &str) -> bool {
    let entry = entry.strip_prefix('.').unwrap_or(entry);
    let entry = entry.strip_suffix('.').unwrap_or(entry);
    let name = name.strip_suffix('.').unwrap_or(name);
    let Some(at) = name.len().checked_sub(entry.len()) else {
        return false;
    };
    let (before, end) = (name.get(..at), name.get(at..));
    !entry.is_empty()
        && end.is_some_and(|end| end.eq_ignore_ascii_case(entry))
        && before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Connects to the target; the stream is as one through a proxy is.
pub(super) fn connect(
    target: &Address,
    uplink: &Uplink,
    timeout: Duration,
) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + timeout;
    let lookup = Resolver::new(1, 1).lookup(&target.host.to_string(), target.port);
    let connected = match lookup.wait(deadline) {
        Ok(addresses) => {
            connect_any(&addresses, uplink, deadline).map_err(|failure| match failure {
                Some(ConnectFailure::Remote(error) | ConnectFailure::Local(error)) => error,
                None => io::ErrorKind::TimedOut.into(),
            })
        }
        Err(error) => Err(io::Error::other(error)),
    };
    let stream = connected.and_then(|stream| {
        stream.set_nonblocking(false)?;
        Ok(stream)
    });
    stream.map_err(|error| Failure::beyond(&Unreached(target.clone(), error)))
}

/// There is no proxy to blame.
#[derive(Debug)]
struct Unreached(Address, io::Error);

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}: cannot connect", self.0)
    }
}

impl Error for Unreached {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_curl_reads_it() {
        for (list, host, expected) in [
            ("*", "a.example", true),
            ("*", "192.0.2.1", true),
            (" * ", "a.example", false),
            ("..a.example", "a.example", false),
            ("a,*", "b.example", false),
            ("", "a.example", false),
            (", ,", "a.example", false),
            (".", "a.example", false),
            ("example", "a.Example", true),
            ("a.example", "a.example.", true),
            ("A.example.", "b.a.example", true),
            (".a.example", "a.example", true),
            (".a.example", "aa.example", false),
            ("a.example", "aa.example", false),
            ("a.example", "example", false),
            ("x, a.example y", "a.example", true),
            ("a.example:80", "a.example", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.10", false),
            ("192.0.2.1", "[::ffff:192.0.2.1]", true),
            ("192.0.2.0/24", "192.0.2.10", true),
            ("192.0.2.0/33", "192.0.2.10", false),
            ("2.1", "192.0.2.1", false),
            ("2001:db8::1", "[2001:db8::1]", true),
            ("[2001:db8::1]", "[2001:db8::1]", true),
            ("2001:db8::/32", "[2001:db8::1]", true),
            ("2001:db8::/32", "192.0.2.1", false),
        ] {
            let host: Host = host.parse().unwrap();
            assert_eq!(is_named(list, &host), expected, "{list} {host}");
        }
    }
}
