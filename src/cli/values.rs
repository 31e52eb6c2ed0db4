//! Text of options to typed values, where the type has no text form of its own.

use std::net::IpAddr;
#[cfg(feature = "metrics")]
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use log::LevelFilter;

use super::Failure;
use crate::bad_text::BadText;
use crate::choice::Fallback;
use crate::daemon::settings::ControlPath;
use crate::discovery::probe::AskSocks6;
use crate::listen_address::ListenAddress;
use crate::logger::{self, LogSettings};
use crate::net::{HAS_UPLINKS, TcpExtras, Uplink};
#[cfg(feature = "server")]
use crate::server::ReplyTiming;
#[cfg(feature = "metrics")]
use crate::target::parse_port_or_any;

/// The value of an option, where the error names the option: `--listen: "x" is …`.
pub(super) fn option<T>(
    command: &str,
    name: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, BadText>,
) -> Result<T, Failure> {
    match parse(text) {
        Ok(value) => Ok(value),
        Err(bad) => Err(wrong(command, name, &bad)),
    }
}

/// Not inlined: there are a hundred options, and this is for all of them.
#[cold]
#[inline(never)]
fn wrong(command: &str, name: &str, bad: &BadText) -> Failure {
    Failure::usage(format!("{name}: {bad}"), Some(command))
}

/// The values of a repeated option.
pub(super) fn options<T>(
    command: &str,
    name: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, BadText>,
) -> Result<Vec<T>, Failure> {
    // `collect` has machinery for results that is made anew for each kind of value: 1.5 KB of program each.
    let mut values = Vec::new();
    for text in texts {
        values.push(option(command, name, text, &parse)?);
    }
    Ok(values)
}

/// The value of an option that may be absent.
pub(super) fn optional<T>(
    command: &str,
    name: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, BadText>,
) -> Result<Option<T>, Failure> {
    text.map(|text| option(command, name, text, parse))
        .transpose()
}

/// When clients have their replies.
#[cfg(feature = "server")]
pub(super) fn reply_timing(early: bool) -> ReplyTiming {
    match early {
        true => ReplyTiming::AtOnce,
        false => ReplyTiming::WhenKnown,
    }
}

/// What becomes of clients that no remote can be used for.
pub(super) fn fallback(text: &str) -> Result<Fallback, BadText> {
    match text.parse()? {
        #[cfg(not(feature = "server"))]
        Fallback::Direct => Err(BadText::new(
            text,
            "is not built in: this build is without a server",
            "refuse",
        )),
        fallback => Ok(fallback),
    }
}

/// Which way connections take.
pub(super) fn uplink(
    command: &'static str,
    interface: Option<&str>,
    sources: &[String],
    mark: Option<&str>,
) -> Result<Uplink, Failure> {
    let interface = optional(command, "--interface", interface, str::parse)?;
    let sources: Vec<IpAddr> = options(command, "--source", sources, |text| {
        text.parse()
            .map_err(|_| BadText::new(text, "is not an address", "192.0.2.7 or 2001:db8::7"))
    })?;
    let mark = optional(command, "--mark", mark, self::mark)?;
    Uplink::new(interface, &sources, mark)
        .map_err(|error| Failure::usage(format!("--source: {error}"), Some(command)))
}

/// What packets are marked with.
fn mark(text: &str) -> Result<u32, BadText> {
    let bad = |problem| Err(BadText::new(text, problem, "31 or 0x1f"));
    if !HAS_UPLINKS {
        return bad("cannot be set on this system");
    }
    let number = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16),
        _ => text.parse(),
    };
    match number {
        Ok(0) => bad("is no mark: packets have it without"),
        Ok(mark) => Ok(mark),
        Err(_) => bad("is not a number of at most 32 bits"),
    }
}

/// Whether connections can take this way now.
pub(super) fn usable(uplink: &Uplink) -> Result<(), Failure> {
    uplink
        .check()
        .map_err(|error| Failure::not_done(&error, error.hint().map(str::to_owned)))
}

/// What TCP is to have beyond the usual.
pub(super) fn tcp(command: &'static str, tfo: bool, mptcp: bool) -> Result<TcpExtras, Failure> {
    if tfo && mptcp {
        let problem =
            "--tfo and --mptcp: few systems have both in one connection; leave one of them out";
        return Err(Failure::usage(problem, Some(command)));
    }
    Ok(TcpExtras {
        fast_open: tfo,
        multipath: mptcp,
    })
}

/// Whether peers are asked in SOCKS 6, and how.
pub(super) fn ask_socks6(
    command: &'static str,
    asked: bool,
    profile: Option<&str>,
) -> Result<AskSocks6, Failure> {
    let usage = |text: &str| Err(Failure::usage(text, Some(command)));
    match (asked, profile) {
        (false, None) => Ok(AskSocks6::No),
        (false, Some(_)) => usage("--socks6-profile is for --probe-socks6: give both"),
        #[cfg(feature = "socks6")]
        (true, _) => {
            let profile = optional(command, "--socks6-profile", profile, self::profile)?;
            Ok(AskSocks6::Yes(profile.unwrap_or_default()))
        }
        #[cfg(not(feature = "socks6"))]
        (true, _) => usage("--probe-socks6: socks6 is not built in: this build is without it"),
    }
}

/// How SOCKS 6 is spoken.
#[cfg(feature = "socks6")]
pub(super) fn profile(text: &str) -> Result<crate::wire::socks6::Profile, BadText> {
    text.parse()
        .map_err(|_| BadText::new(text, "is not draft12, draft11, go212 or s6m207", "draft12"))
}

/// What a daemon logs: `louder` and `quieter` are counted from the level that is given, or else from info.
pub(super) fn log(
    command: &'static str,
    level: Option<&str>,
    format: Option<&str>,
    (louder, quieter): (u8, u8),
) -> Result<LogSettings, Failure> {
    let base = optional(command, "--log-level", level, logger::parse_level)?;
    let steps = i32::from(louder) - i32::from(quieter);
    Ok(LogSettings {
        level: super::level(base.unwrap_or(LevelFilter::Info), steps),
        format: optional(command, "--log-format", format, logger::parse_format)?.flatten(),
    })
}

/// A duration such as `5s`, within a range.
pub(super) fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, BadText> {
    const EXAMPLE: &str = "500ms, 5s, 2m or 1h 30m";
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !is_zero(text) {
        return Err(BadText::new(text, "has no unit", EXAMPLE));
    }
    let duration = if is_zero(text) {
        Duration::ZERO
    } else {
        humantime::parse_duration(text)
            .map_err(|_| BadText::new(text, "is not a duration", EXAMPLE))?
    };
    if range.contains(&duration) {
        Ok(duration)
    } else {
        Err(BadText::new(
            text,
            format!(
                "is not between {} and {}",
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end())
            ),
            EXAMPLE,
        ))
    }
}

/// A duration within a range, or 0 for never.
pub(super) fn duration_or_never(
    text: &str,
    range: &RangeInclusive<Duration>,
) -> Result<Option<Duration>, BadText> {
    match duration(text, &(Duration::ZERO..=*range.end()))? {
        Duration::ZERO => Ok(None),
        some if some >= *range.start() => Ok(Some(some)),
        _ => duration(text, range).map(Some),
    }
}

/// A number within a range.
pub(super) fn number(text: &str, range: &RangeInclusive<usize>) -> Result<usize, BadText> {
    let number = text
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten();
    match number {
        Some(number) if range.contains(&number) => Ok(number),
        _ => Err(BadText::new(
            text,
            format!("is not a number from {} to {}", range.start(), range.end()),
            "64",
        )),
    }
}

/// A range of addresses, or one address. Bits after the prefix are dropped: `10.1.2.3/8` is `10.0.0.0/8`.
pub(super) fn cidr(text: &str) -> Result<IpNet, BadText> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
        BadText::new(
            text,
            "is neither an address nor a range of addresses",
            "10.0.0.0/8, 192.168.1.7, fd00::/8 or ::/0",
        )
    })
}

/// A path for the control socket, or `none`.
pub(super) fn control(text: &str) -> Result<ControlPath, BadText> {
    match text {
        "" => Err(BadText::new(
            text,
            "is not a path",
            "/run/sockhop.sock, ./none for a file of that name, or none for no control socket",
        )),
        "none" => Ok(ControlPath::None),
        _ => Ok(ControlPath::At(text.into())),
    }
}

/// The path of a state file.
pub(super) fn state(text: &str) -> Result<PathBuf, BadText> {
    match text {
        "" => Err(BadText::new(text, "is not a path", "/etc/sockhop.state")),
        _ => Ok(text.into()),
    }
}

/// A directory.
pub(super) fn directory(text: &str) -> Result<PathBuf, BadText> {
    match text {
        "" => Err(BadText::new(text, "is not a path", "/var/empty")),
        _ => Ok(text.into()),
    }
}

/// Where metrics are served: this machine alone, unless an address says otherwise.
#[cfg(feature = "metrics")]
pub(super) fn metrics(text: &str) -> Result<ListenAddress, BadText> {
    const EXAMPLE: &str = "9150, 127.0.0.1:9150, [::]:9150 or unix:/run/sockhop-metrics.sock";
    if let Some(port) = parse_port_or_any(text) {
        return Ok(ListenAddress::Tcp((Ipv4Addr::LOCALHOST, port).into()));
    }
    let alone = text.trim_start_matches('[').trim_end_matches(']');
    if alone.parse::<IpAddr>().is_ok() {
        return Err(BadText::new(text, "has no port", EXAMPLE));
    }
    text.parse()
        .map_err(|bad: BadText| bad.with_example(EXAMPLE))
}

/// This build has none.
#[cfg(not(feature = "metrics"))]
pub(super) fn metrics(text: &str) -> Result<ListenAddress, BadText> {
    Err(BadText::new(
        text,
        "cannot be listened on: this build is without metrics",
        "no --metrics",
    ))
}

fn is_zero(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b'0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);

    #[cfg(feature = "metrics")]
    #[test]
    fn metrics_are_for_this_machine_unless_told() {
        for (text, address) in [
            ("9150", "127.0.0.1:9150"),
            ("0", "127.0.0.1:0"),
            ("[::]:9150", "[::]:9150"),
            ("10.0.0.1:9150", "10.0.0.1:9150"),
            ("unix:/x", "unix:/x"),
        ] {
            assert_eq!(metrics(text).expect(text).to_string(), address);
        }
        for text in ["", "::1", "[::1]", "10.0.0.1", "x", "65536", "localhost:1"] {
            let error = metrics(text).expect_err(text).to_string();
            assert!(error.contains("127.0.0.1:9150"), "{error}");
        }
    }

    #[test]
    fn durations_have_units_and_limits() {
        for (text, millis) in [
            ("5s", 5000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
        ] {
            assert_eq!(duration(text, &RANGE), Ok(Duration::from_millis(millis)));
        }
        for (text, problem) in [
            ("5", "\"5\" has no unit"),
            ("", "\"\" is not a duration"),
            ("5 parsecs", "is not a duration"),
            ("-5s", "is not a duration"),
            ("0", "is not between 10ms and 10m"),
            ("9ms", "is not between"),
            ("11m", "is not between"),
            ("99999999999999999999s", "is not a duration"),
        ] {
            let error = duration(text, &RANGE).expect_err(text).to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(error.contains("right would be 500ms"), "{text}: {error}");
        }
    }

    #[test]
    fn zero_is_never_where_that_is_allowed() {
        for text in ["0", "00", "0s", "0ms"] {
            assert_eq!(duration_or_never(text, &RANGE), Ok(None), "{text}");
        }
        assert_eq!(
            duration_or_never("1s", &RANGE),
            Ok(Some(Duration::from_secs(1)))
        );
        for text in ["1ms", "1h", "x"] {
            assert!(duration_or_never(text, &RANGE).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_limits() {
        assert_eq!(number("64", &(1..=64)), Ok(64));
        for text in ["0", "65", "-1", "+1", "", "1e3", "99999999999999999999999"] {
            let error = number(text, &(1..=64)).expect_err(text).to_string();
            assert!(
                error.contains(&format!("{text:?} is not a number from 1 to 64")),
                "{error}"
            );
        }
    }

    #[test]
    fn ranges_of_addresses() {
        for (text, net) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("407::1", "407::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(cidr(text).expect(text).to_string(), net);
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "host",
            "10.0.0.0/",
            "fe80::1%eth0/64",
        ] {
            let error = cidr(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?} is neither")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = duration(&text, &RANGE);
            let _ = duration_or_never(&text, &RANGE);
            let _ = number(&text, &(1..=5));
            let _ = cidr(&text);
        }
    }
}
