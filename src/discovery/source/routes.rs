//! `routes`: the hosts that the kernel has routes of their own to, as babeld, BIRD, OLSR and WireGuard make them.
//!
//! Linux tells them in `/proc/net/route` (the main table) and `/proc/net/ipv6_route` (all tables).

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::ask::Patience;
use super::roster::{Range, Roster};
use super::{REFRESH_LIMIT, Refresh, Refreshed, Signal, Source, pause_after};

/// The kernel's routes to single hosts, read once a minute. Own addresses, loopback, link-local and multicast are left out.
#[derive(Debug)]
pub struct RoutesSource {
    v4: PathBuf,
    v6: PathBuf,
    default_port: u16,
    pause: Duration,
}

impl RoutesSource {
    /// The routes of the network namespace that we are in.
    #[must_use]
    pub fn new(default_port: u16) -> Self {
        Self::of(
            "/proc/self/net/route".into(),
            "/proc/self/net/ipv6_route".into(),
            default_port,
        )
    }

    /// The routes of two files in the kernel's format.
    pub(super) fn of(v4: PathBuf, v6: PathBuf, default_port: u16) -> Self {
        Self {
            v4,
            v6,
            default_port,
            pause: pause_after(&[]),
        }
    }

    fn read(&self, signal: &mut Signal) -> Result<Roster, String> {
        let mut patience = Patience::new(signal, REFRESH_LIMIT);
        let mut roster = Roster::new(RANGE);
        let mut add = |ip| roster.add(ip);
        let mut lines = |path: &PathBuf, parse: fn(&str) -> Option<IpAddr>| {
            let read = File::open(path).and_then(|file| {
                read_lines(file, &mut patience, &mut |line| {
                    parse(line).into_iter().for_each(&mut add);
                })
            });
            match read {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                Err(error) => Err(format!("{}: {error}", path.display())),
                Ok(()) => Ok(true),
            }
        };
        let (v4, v6) = (lines(&self.v4, host_v4)?, lines(&self.v6, host_v6)?);
        // Without IPv6 in the kernel there is only one of them.
        if !v4 && !v6 {
            return Err(format!(
                "there is no {}: only Linux's routes can be read; elsewhere give a command with exec:",
                self.v4.display()
            ));
        }
        Ok(roster)
    }
}

impl Source for RoutesSource {
    fn name(&self) -> &str {
        "routes"
    }

    fn refresh(&mut self, _: Refresh, signal: &mut Signal) -> Refreshed {
        let refreshed = match self.read(signal) {
            Ok(roster) => roster.refreshed(self.default_port, None, signal),
            Err(error) => Refreshed::Failed(error),
        };
        self.pause = pause_after(refreshed.peers());
        refreshed
    }

    fn pause(&self) -> Option<Duration> {
        Some(self.pause)
    }
}

/// A router may have a million routes: they are looked at one by one, and no longer than there is time.
fn read_lines(
    from: impl Read,
    patience: &mut Patience<'_>,
    each: &mut dyn FnMut(&str),
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    for number in 0_usize.. {
        line.clear();
        if (&mut from).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        each(&String::from_utf8_lossy(&line));
        if number % 4096 == 4095 && patience.is_over() {
            return Err(io::Error::new(ErrorKind::TimedOut, "took too long"));
        }
    }
    Ok(())
}

/// The host of a line of `/proc/net/route`: `Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT`.
fn host_v4(line: &str) -> Option<IpAddr> {
    let mut fields = line.split_whitespace();
    // A black hole has no interface, and nothing else that tells it.
    let leads_somewhere = fields.next()? != "*";
    let destination = u32::from_str_radix(fields.next()?, 16).ok()?;
    let flags = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
    let mask = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    // The kernel prints the four bytes as if they were a number of this machine.
    let ip = Ipv4Addr::from(destination.to_ne_bytes());
    is_in_use(flags, mask == u32::MAX && leads_somewhere).then_some(ip.into())
}

/// The host of a line of `/proc/net/ipv6_route`: destination, its length, source, its length, next hop, metric,
/// references, uses, flags, interface; numbers in hexadecimal.
fn host_v6(line: &str) -> Option<IpAddr> {
    let mut fields = line.split_whitespace();
    let destination = u128::from_str_radix(fields.next()?, 16).ok()?;
    let length = u8::from_str_radix(fields.next()?, 16).ok()?;
    let flags = u32::from_str_radix(fields.nth(6)?, 16).ok()?;
    let is_lo = fields.next() == Some("lo");
    let ip = Ipv6Addr::from(destination);
    is_in_use(flags, length == 128 && !is_lo).then_some(ip.into())
}

/// `linux/route.h` and `linux/ipv6_route.h`: up; not a black hole, and neither our own nor the kernel's memory of one packet.
const fn is_in_use(flags: u32, is_host: bool) -> bool {
    const UP: u32 = 0x0001;
    const DYNAMIC: u32 = 0x0010;
    const REJECT: u32 = 0x0200;
    const ANYCAST: u32 = 0x0010_0000;
    const CACHE: u32 = 0x0100_0000;
    const LOCAL: u32 = 0x8000_0000;
    is_host && flags & UP != 0 && flags & (DYNAMIC | REJECT | ANYCAST | CACHE | LOCAL) == 0
}

/// Whom a route alone leads to.
fn is_routed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_link_local()
                || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local())
        }
    }
}

const RANGE: Range = Range {
    name: "the addresses of hosts elsewhere",
    contains: is_routed,
};

/// The kernel's lines have 128 and 150 bytes. What is longer is read as several.
const MAX_LINE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::super::signal::pair;
    use super::*;

    const V4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
wg0\t0200000A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
eth0\t0300000A\t010200C0\t0007\t0\t0\t0\tFFFFFFFF\t0\t0\t0
*\t0600000A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
eth0\t0400000A\t00000000\t0205\t0\t0\t0\tFFFFFFFF\t0\t0\t0
wg1\t0500000A\t00000000\t0004\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";

    const V6: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fd770000000000000000000000000002 80 00000000000000000000000000000000 00 fe8000000000000000fc00fffe000002 00000400 00000003 00000000 00000007     eth0
fd770000000000000000000000000003 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000004 00000000 80200001     eth0
fd770000000000000000000000000004 80 00000000000000000000000000000000 00 fe8000000000000000fc00fffe000002 00000400 00000003 00000000 01000003     eth0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000004 00000000 80200001       lo
fd770000000000000000000000000005 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000205       lo
fe800000000000000000000000000009 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000005     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    fn source(v4: Option<&str>, v6: Option<&str>) -> (RoutesSource, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let [v4_path, v6_path] = ["route", "ipv6_route"].map(|name| folder.path().join(name));
        let source = RoutesSource::of(v4_path, v6_path, 1080);
        for (path, text) in [(&source.v4, v4), (&source.v6, v6)] {
            if let Some(text) = text {
                std::fs::write(path, text).unwrap();
            }
        }
        (source, folder)
    }

    fn refresh(v4: Option<&str>, v6: Option<&str>) -> Refreshed {
        let (_handle, mut signal) = pair().unwrap();
        let (mut source, _folder) = source(v4, v6);
        source.refresh(Refresh::Due, &mut signal)
    }

    fn peers(refreshed: Refreshed) -> Vec<String> {
        match refreshed {
            Refreshed::List { peers, .. } => peers.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// As this machine's kernel prints it.
    #[cfg(target_endian = "little")]
    #[test]
    fn hosts_with_a_route_of_their_own_are_peers() {
        assert_eq!(
            peers(refresh(Some(V4), Some(V6))),
            ["10.0.0.2:1080", "10.0.0.3:1080", "[fd77::2]:1080"]
        );
        assert_eq!(peers(refresh(None, Some(V6))), ["[fd77::2]:1080"]);
    }

    #[test]
    fn without_routes_to_read_it_says_what_to_do() {
        match refresh(None, None) {
            Refreshed::Failed(error) => assert!(error.contains("exec:"), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rubbish_is_no_route() {
        let rubbish = "x\n\n\t\t\t\neth0 zz zz zz zz zz zz zz\neth0 0200000A";
        assert!(peers(refresh(Some(rubbish), Some(rubbish))).is_empty());
    }

    #[test]
    fn a_line_without_end_takes_no_more_room() {
        let (_handle, mut signal) = pair().unwrap();
        let mut patience = Patience::new(&mut signal, REFRESH_LIMIT);
        let mut read = 0;
        let endless = io::repeat(b'x').take(MAX_LINE * 100);
        read_lines(endless, &mut patience, &mut |line| {
            assert!(line.len() as u64 <= MAX_LINE, "{} bytes", line.len());
            read += line.len() as u64;
        })
        .unwrap();
        assert_eq!(read, MAX_LINE * 100);
    }

    #[test]
    fn long_tables_are_gone_through() {
        let wide = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n".repeat(200_000);
        let text = format!("{wide}wg0\t0200000A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n");
        assert_eq!(peers(refresh(Some(&text), None)).len(), 1);
    }
}
