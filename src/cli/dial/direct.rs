//! Connecting without a proxy, where `NO_PROXY` says so.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::Failure;
use crate::client::connect_any;
use crate::net::ConnectFailure;
use crate::resolver::Resolver;
use crate::wire::{Address, Host};

/// Whether this list names the host, as curl reads it: names stand for everything under them, addresses and ranges for
/// themselves, a `*` that is alone for everything; commas or spaces between them. There are no ports.
pub(super) fn is_named(list: &str, host: &Host) -> bool {
    if list == "*" {
        return true;
    }
    let separator = |char: char| char == ',' || char.is_ascii_whitespace();
    let mut entries = list.split(separator).filter(|entry| !entry.is_empty());
    match host {
        Host::Ip(ip) => entries.any(|entry| names_ip(entry, ip.to_canonical())),
        Host::Name(name) => entries.any(|entry| names_name(entry, name.as_str())),
    }
}

fn names_ip(entry: &str, ip: IpAddr) -> bool {
    let inside = entry
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let entry = inside.unwrap_or(entry);
    match (entry.parse::<IpAddr>(), entry.parse::<IpNet>()) {
        (Ok(one), _) => one.to_canonical() == ip,
        (_, Ok(range)) => range.contains(&ip),
        _ => false,
    }
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
pub(super) fn connect(target: &Address, timeout: Duration) -> Result<TcpStream, Failure> {
    let beyond = |what: &dyn std::fmt::Display| {
        Failure::beyond(&io::Error::other(format!("target {target}: {what}")))
    };
    let deadline = Instant::now() + timeout;
    let lookup = Resolver::new(1, 1).lookup(&target.host.to_string(), target.port);
    let addresses = lookup.wait(deadline).map_err(|error| beyond(&error))?;
    let stream = connect_any(&addresses, deadline).map_err(|failure| match failure {
        Some(ConnectFailure::Remote(error)) => beyond(&format_args!("cannot connect: {error}")),
        Some(ConnectFailure::Local(error)) => {
            Failure::because(format!("target {target}: cannot connect: {error}"))
        }
        None => beyond(&"timed out waiting for the connection"),
    })?;
    match stream.set_nonblocking(false) {
        Ok(()) => Ok(stream),
        Err(error) => Err(Failure::because(format!("connection to {target}: {error}"))),
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
