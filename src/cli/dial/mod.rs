//! `sockhop dial`: connect stdin and stdout to somewhere through a proxy.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of options are help text, where brackets are those of IPv6"
)]

mod datagrams;
mod direct;
#[cfg(feature = "socks6")]
mod early;
mod listen;
mod pipe;

use std::env;
use std::net::Ipv4Addr;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::{Failure, output, values};
use crate::ProxyUri;
#[cfg(feature = "socks6")]
use crate::client::Phase;
use crate::client::{ClientError, DEFAULT_TIMEOUT, Dialer, Fault};
use crate::daemon::settings::{LIMITS, TIMEOUTS};
use crate::net::Uplink;
use crate::target::HostPort;
use crate::wire::{Address, Host};

/// Connect stdin and stdout to a target through a proxy, for ssh and others.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "dial",
    help_triggers("-h", "--help"),
    example = "\
sockhop dial socks5h://[407::1]:1080 example.org:80
ssh -o ProxyCommand='sockhop dial socks5h://localhost %h:%p' example.org
ALL_PROXY=socks5h://ada:secret@proxy sockhop dial example.org:22
sockhop dial --udp socks5h://[407::1] 192.0.2.53:53 < query > answer
sockhop dial --listen socks5h://[407::1] 192.0.2.7 > file
sockhop dial 'socks6://[407::1]?tos=16' example.org:80 < request",
    note = "\
PROXY is SCHEME://[USER:PASSWORD@]HOST[:PORT][?timeout=TIME]. With socks5h,
socks6 and socks4a the proxy looks up names, with socks5 and socks4 this
machine does.
Each of several is reached through the one before. Without any it is the one
in $all_proxy or $ALL_PROXY; there others cannot read a password, as they can
on the command line. Then hosts in $no_proxy or $NO_PROXY are connected to
without a proxy, as curl does it.

A socks6 proxy takes along what stdin has at once, up to 16 KiB, unless stdin
is a terminal: the target gets it a round trip earlier. Keys behind the ? say
how to speak to it and what to ask for, such as profile=draft11, tos=16 or
fallback=socks5; the README lists them.

The end of stdin is passed on, and the end of what the target sends ends
stdout; it ends when both have, or with the target if stdin is a terminal.

With --udp each read of stdin is sent as one datagram, and each datagram of
the target is written to stdout. It ends when stdin has ended and nothing more
has come for a while (--idle).

With --listen the proxy accepts one connection: \"listening on ADDRESS\" on
stderr says where. Instead of HOST:PORT stands who may connect, HOST[:PORT],
or nothing for anybody, which some proxies refuse.",
    error_code(0, "Connected, and both sides have ended."),
    error_code(1, "A proxy, the way to it, or the open connection failed."),
    error_code(3, "The proxy works, but cannot or may not reach the target.")
)]
pub(super) struct Dial {
    /// the proxies, then HOST:PORT or [V6]:PORT of the target
    #[argh(positional, arg_name = "ADDRESS")]
    address: Vec<String>,

    /// TIME for everything until the target is reached (default 30s, or the
    /// timeout of a PROXY)
    #[argh(option)]
    timeout: Option<String>,

    /// NAME of the interface that connections leave by (default that of the
    /// route)
    #[argh(option)]
    interface: Option<String>,

    /// ADDR of this machine that they come from, once for each family (default
    /// the system's choice)
    #[argh(option)]
    source: Vec<String>,

    /// NUMBER, such as 31 or 0x1f, that their packets are marked with, for rules
    /// of routing and firewall (default none)
    #[argh(option)]
    mark: Option<String>,

    /// carry datagrams instead of a stream
    #[argh(switch)]
    udp: bool,

    /// TIME without a datagram after which --udp ends once stdin has ended; 0
    /// is never (default 1s)
    #[argh(option)]
    idle: Option<String>,

    /// let the proxy accept a connection instead of making one
    #[argh(switch)]
    listen: bool,
}

/// What the command line asks for.
struct Request {
    mode: Mode,
    /// The target's, or of whom to let in.
    target: Address,
    /// `None`: straight to the target.
    dialer: Option<Dialer>,
    timeout: Option<Duration>,
    uplink: Uplink,
}

enum Mode {
    Connect,
    /// Datagrams, until stdin has ended and so long nothing has come.
    Datagrams(Option<Duration>),
    Listen,
}

impl Dial {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let Request {
            mode,
            target,
            dialer,
            timeout,
            uplink,
        } = self.request(|name| env::var(name).ok())?;
        values::usable(&uplink)?;
        let broken = |error| Failure::because(format!("connection to {target}: {error}"));
        let stream = match (mode, &dialer) {
            (_, None) => direct::connect(&target, &uplink, timeout.unwrap_or(DEFAULT_TIMEOUT))?,
            (Mode::Connect, Some(dialer)) => {
                #[cfg(feature = "socks6")]
                let early = match dialer.takes_early_data() {
                    true => early::read(),
                    false => Vec::new(),
                };
                #[cfg(not(feature = "socks6"))]
                let early = Vec::new();
                let connected = dialer.connect_with(&target, &early);
                connected.map_err(failed)?.stream
            }
            // Proxies have a limit of their own.
            (Mode::Listen, Some(dialer)) => {
                listen::accept(dialer, &target, timeout.unwrap_or(Duration::MAX))?
            }
            (Mode::Datagrams(idle), Some(dialer)) => {
                let association = dialer.associate().map_err(failed)?;
                return datagrams::run(&association, &target, idle).map_err(broken);
            }
        };
        pipe::run(&stream).map_err(broken)
    }

    fn request(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Request, Failure> {
        let mode = self.mode()?;
        let (target, proxies) = self.places(&mode)?;
        let timeout = values::optional(NAME, "--timeout", self.timeout.as_deref(), |text| {
            values::duration(text, &TIMEOUTS)
        })?;
        let named = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let text = variable(name).filter(|text| !text.is_empty())?;
                Some((name, text))
            })
        };
        let dialer = match proxies.split_first() {
            Some((first, others)) => {
                let mut dialer = Dialer::new(proxy("PROXY", first)?);
                for other in others {
                    dialer = dialer.through(proxy("PROXY", other)?);
                }
                Some(dialer)
            }
            None => {
                // The order of curl.
                let Some((name, text)) = named(["all_proxy", "ALL_PROXY"]) else {
                    return Err(usage(
                        "no proxy: give one before HOST:PORT, or in ALL_PROXY".into(),
                    ));
                };
                let dialer = Dialer::new(proxy(name, &text)?);
                // It is about connections only: what it would mean for a port at the proxy nobody could guess.
                let direct = matches!(mode, Mode::Connect)
                    && named(["no_proxy", "NO_PROXY"])
                        .is_some_and(|(_, list)| direct::is_named(&list, &target.host));
                (!direct).then_some(dialer)
            }
        };
        let uplink = values::uplink(
            NAME,
            self.interface.as_deref(),
            &self.source,
            self.mark.as_deref(),
        )?;
        let dialer = dialer.map(|dialer| dialer.by(uplink.clone()));
        let dialer = match (dialer, timeout) {
            (Some(dialer), Some(timeout)) => Some(dialer.timeout(timeout)),
            (dialer, _) => dialer,
        };
        Ok(Request {
            mode,
            target,
            dialer,
            timeout,
            uplink,
        })
    }

    fn mode(&self) -> Result<Mode, Failure> {
        let idle = values::optional(NAME, "--idle", self.idle.as_deref(), |text| {
            values::duration_or_never(text, &LIMITS)
        })?;
        match (self.udp, self.listen) {
            (true, true) => Err(usage("either --udp or --listen".into())),
            (true, false) => Ok(Mode::Datagrams(idle.unwrap_or(Some(IDLE)))),
            (false, _) if idle.is_some() => Err(usage("--idle is for --udp".into())),
            (false, true) => Ok(Mode::Listen),
            (false, false) => Ok(Mode::Connect),
        }
    }

    /// Where to, and through which proxies. What could be a URI with a password is never quoted.
    fn places(&self, mode: &Mode) -> Result<(Address, &[String]), Failure> {
        let last = self.address.split_last();
        let last = last.filter(|(target, _)| !target.contains("://"));
        match (last, mode) {
            (Some((peer, proxies)), Mode::Listen) => {
                // Nobody knows the peer's port, mostly.
                let peer = Address::with_default_port(peer, 0);
                let peer = peer.map_err(|error| usage(format!("HOST[:PORT]: {error}")))?;
                Ok((peer, proxies))
            }
            (None, Mode::Listen) => {
                let anybody = Address::new(Host::Ip(Ipv4Addr::UNSPECIFIED.into()), 0);
                Ok((anybody, &self.address))
            }
            (Some((target, proxies)), _) => {
                let target: HostPort = values::option(NAME, "HOST:PORT", target, str::parse)?;
                // A `HostPort` is always an `Address`.
                let target = target.to_string().parse();
                let target = target.map_err(|error| usage(format!("HOST:PORT: {error}")))?;
                Ok((target, proxies))
            }
            (None, _) => Err(usage("no HOST:PORT to connect to at the end".into())),
        }
    }
}

fn proxy(name: &str, text: &str) -> Result<ProxyUri, Failure> {
    let uri = text.parse::<ProxyUri>();
    uri.map_err(|error| usage(format!("{name}: {error}")))
}

fn usage(text: String) -> Failure {
    Failure::usage(text, Some(NAME))
}

fn failed(error: ClientError) -> Failure {
    match error.fault() {
        _ if matches!(error, ClientError::NoDatagrams(_)) => usage(error.to_string()),
        Fault::Target => Failure::beyond(&error),
        Fault::Caller | Fault::Here | Fault::Proxy => Failure::not_done(&error, hint(&error)),
    }
}

/// What may help.
fn hint(error: &ClientError) -> Option<String> {
    #[cfg(feature = "socks6")]
    let hint = match error {
        ClientError::Socks6(_, error) if error.is_version_mismatch() => Some(
            "if the proxy speaks SOCKS 5, use socks5h://, or ?fallback=socks5 to try both; another SOCKS 6 needs ?profile=",
        ),
        ClientError::TimedOut(_, Phase::Confirmation) => {
            Some("datagrams do not get through to the proxy, try ?channel=tcp")
        }
        _ => None,
    };
    #[cfg(not(feature = "socks6"))]
    let hint = {
        let _ = error;
        None::<&str>
    };
    hint.map(str::to_owned)
}

const NAME: &str = "dial";

/// How long to wait for answers after the last question.
const IDLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<(String, Address), String> {
        let dial = Dial::from_args(&["sockhop", NAME], arguments).expect("argh takes it");
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match dial.request(variable) {
            Ok(Request { dialer, target, .. }) => Ok((format!("{dialer:?}"), target)),
            Err(failure) => Err(failure.to_string()),
        }
    }

    #[test]
    fn proxies_come_from_the_arguments_or_else_the_environment() {
        let environment = [("ALL_PROXY", "socks5://upper"), ("all_proxy", "")];
        let (dialer, target) =
            request(&["socks5h://a:secret@b", "[::1]:22"], &environment).unwrap();
        assert!(dialer.contains("socks5h://a:***@b:1080"), "{dialer}");
        assert!(!dialer.contains("upper"), "{dialer}");
        assert_eq!(target.to_string(), "[::1]:22");
        let (dialer, _) = request(&["a:22"], &environment).unwrap();
        assert!(dialer.contains("socks5://upper:1080"), "{dialer}");
        let both = [
            ("ALL_PROXY", "socks5://upper"),
            ("all_proxy", "socks4://lower"),
        ];
        let (dialer, _) = request(&["a:22"], &both).unwrap();
        assert!(dialer.contains("socks4://lower:1080"), "{dialer}");
        let (dialer, _) = request(&["socks5://a", "socks5://b", "c:1"], &[]).unwrap();
        let (a, b) = (dialer.find("//a:1080"), dialer.find("//b:1080"));
        assert!(a.is_some() && a < b, "{dialer}");
    }

    #[test]
    fn no_proxy_counts_only_with_a_proxy_from_the_environment() {
        let variables = [
            ("ALL_PROXY", "socks5://upper"),
            ("no_proxy", ""),
            ("NO_PROXY", "192.0.2.0/24,a.example"),
        ];
        for (arguments, direct) in [
            (&["192.0.2.1:22"][..], true),
            (&["b.a.example:22"], true),
            (&["b.example:22"], false),
            (&["socks5://given", "192.0.2.1:22"], false),
            (&["--udp", "192.0.2.1:22"], false),
            (&["--listen", "192.0.2.1"], false),
        ] {
            let (dialer, _) = request(arguments, &variables).unwrap();
            assert_eq!(dialer == "None", direct, "{arguments:?}");
        }
    }

    #[test]
    fn whom_to_let_in_may_be_left_out() {
        for (arguments, expected) in [
            (&["--listen", "socks5://a"][..], "0.0.0.0:0"),
            (&["--listen", "socks5://a", "192.0.2.1"], "192.0.2.1:0"),
            (&["--listen", "socks5://a", "[::1]:9"], "[::1]:9"),
            (&["--listen", "socks5://a", "b.example"], "b.example:0"),
        ] {
            let (_, target) = request(arguments, &[]).unwrap();
            assert_eq!(target.to_string(), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_passwords() {
        for (arguments, variables, message) in [
            (
                &["a:22"][..],
                &[][..],
                "no proxy: give one before HOST:PORT",
            ),
            (
                &["a:22"],
                &[("ALL_PROXY", "http://u:secret@p")],
                "ALL_PROXY: unknown scheme \"http\"",
            ),
            (
                &["a:22"],
                &[("all_proxy", "u:secret@p")],
                "all_proxy: the scheme is missing",
            ),
            (
                &["socks5://u:sec/ret@p", "a:22"],
                &[],
                "PROXY: user and password must be",
            ),
            (&["socks5://u:secret@p"], &[], "no HOST:PORT"),
            (
                &["--udp", "--listen", "a:22"],
                &[],
                "either --udp or --listen",
            ),
            (&["--idle", "2s", "a:22"], &[], "--idle is for --udp"),
            (
                &["--udp", "--idle", "2", "a:22"],
                &[],
                "--idle: \"2\" has no unit",
            ),
            (&["--listen", "a:b:c"], &[], "HOST[:PORT]: "),
        ] {
            let error = request(arguments, variables).unwrap_err();
            assert!(error.contains(message), "{error}");
            assert!(!error.contains("sec") && !error.contains("ret@"), "{error}");
        }
    }
}
