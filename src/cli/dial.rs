//! `sockhop dial`: connect stdin and stdout to somewhere through a proxy.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of options are help text, where brackets are those of IPv6"
)]

use std::env;

use argh::{ArgsInfo, FromArgs};

use super::{Failure, pipe, values};
use crate::ProxyUri;
use crate::client::{ClientError, Dialer, Fault};
use crate::daemon::settings::TIMEOUTS;
use crate::target::HostPort;
use crate::wire::Address;

/// Connect stdin and stdout to a target through a proxy, for ssh and others.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "dial",
    help_triggers("-h", "--help"),
    usage = "[options] [PROXY...] HOST:PORT",
    example = "\
sockhop dial socks5h://[407::1]:1080 example.org:80
ssh -o ProxyCommand='sockhop dial socks5h://localhost %h:%p' example.org
ALL_PROXY=socks5h://ada:secret@proxy sockhop dial example.org:22",
    note = "\
PROXY is SCHEME://[USER:PASSWORD@]HOST[:PORT][?timeout=TIME]. With socks5h and
socks4a the proxy looks up names, with socks5 and socks4 this machine does.
Each of several is reached through the one before. Without any it is the one
in $all_proxy or $ALL_PROXY; there others cannot read a password, as they can
on the command line.

The end of stdin is passed on, and the end of what the target sends ends
stdout; it ends when both have, or with the target if stdin is a terminal.",
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
}

impl Dial {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (dialer, target) = self.request(|name| env::var(name).ok())?;
        let stream = dialer.connect(&target).map_err(failed)?;
        pipe::run(&stream)
            .map_err(|error| Failure::because(format!("connection to {target}: {error}")))
    }

    fn request(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(Dialer, Address), Failure> {
        let usage = |text: String| Failure::usage(text, Some(NAME));
        // What could be a URI with a password is never quoted.
        let (target, proxies) = match self.address.split_last() {
            Some((target, proxies)) if !target.contains("://") => (target, proxies),
            _ => return Err(usage("no HOST:PORT to connect to at the end".into())),
        };
        let target: HostPort = values::option(NAME, "HOST:PORT", target, str::parse)?;
        // A `HostPort` is always an `Address`.
        let target = target.to_string().parse::<Address>();
        let target = target.map_err(|error| usage(format!("HOST:PORT: {error}")))?;

        let timeout = values::optional(NAME, "--timeout", self.timeout.as_deref(), |text| {
            values::duration(text, &TIMEOUTS)
        })?;
        let read = |name: &str, text: &str| {
            let uri = text.parse::<ProxyUri>();
            uri.map_err(|error| usage(format!("{name}: {error}")))
        };
        let dialer = match proxies.split_first() {
            Some((first, others)) => {
                let mut dialer = Dialer::new(read("PROXY", first)?);
                for other in others {
                    dialer = dialer.through(read("PROXY", other)?);
                }
                dialer
            }
            None => {
                // The order of curl.
                let named = VARIABLES.iter().find_map(|name| {
                    let text = variable(name).filter(|text| !text.is_empty())?;
                    Some((name, text))
                });
                let Some((name, text)) = named else {
                    return Err(usage(
                        "no proxy: give one before HOST:PORT, or in ALL_PROXY".into(),
                    ));
                };
                Dialer::new(read(name, &text)?)
            }
        };
        Ok((
            match timeout {
                Some(timeout) => dialer.timeout(timeout),
                None => dialer,
            },
            target,
        ))
    }
}

fn failed(error: ClientError) -> Failure {
    match error.fault() {
        Fault::Target => Failure::beyond(&error),
        Fault::Caller | Fault::Here | Fault::Proxy => Failure::not_done(&error, None),
    }
}

const NAME: &str = "dial";
const VARIABLES: [&str; 2] = ["all_proxy", "ALL_PROXY"];

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
            Ok((dialer, target)) => Ok((format!("{dialer:?}"), target)),
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
        ] {
            let error = request(arguments, variables).unwrap_err();
            assert!(error.contains(message), "{error}");
            assert!(!error.contains("sec") && !error.contains("ret@"), "{error}");
        }
    }
}
