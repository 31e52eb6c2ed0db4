//! `sockhop serve`: flags to settings.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of options are help text, where brackets are those of IPv6"
)]

#[cfg(feature = "socks6")]
use std::net::{IpAddr, SocketAddr};

use argh::{ArgsInfo, FromArgs};

use super::options::Options;
use super::{Failure, link, values};
use crate::ProxyUri;
use crate::bad_text::BadText;
use crate::daemon::settings::{CONNECTIONS, ControlPath, LIMITS, ServeSettings, TIMEOUTS, WORKERS};
use crate::logger::LogSettings;
use crate::privileges::Privileges;
use crate::proxy_uri::ProxyUriError;
#[cfg(feature = "socks6")]
use crate::remote::check_socks6;
use crate::server::association::UdpOptions;
use crate::server::rules::Rule;
#[cfg(feature = "socks6")]
use crate::server::socks6::{Socks6Options, StackPolicy};
use crate::server::users::{User, UserError};
use crate::wire::socks4::UserId;

/// Be a SOCKS 4, 4a, 5 and 6 server: let others use this machine's network.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "serve",
    help_triggers("-h", "--help"),
    example = "\
sockhop serve --allow 400::/7 --users-file /etc/sockhop.users
sockhop serve --listen 127.0.0.1:1080
sockhop serve --allow-dest 192.168.1.0/24:80 --deny-dest example.org
sockhop serve --listen 127.0.0.1:1080 --via socks5h://[407::1]",
    note = "\
Clients get to public addresses only, unless --allow-dest says more. DEST is
an address, a range, or a name with everything under it, and maybe a port:
10.0.0.0/8, 10.0.0.0/8:80, [fd00::]/8:443, example.org, example.org:443. The
most specific rule wins: the longer prefix or name, then the one with a port,
then --deny-dest. A name that is allowed still has to have public addresses,
or some that a rule for addresses allows.

A password that is given as an option can be seen by others on this machine:
better is NAME:PASSWORD in the variable SOCKHOP_USER, or a file. With users,
SOCKS4 is off, since it knows no passwords, but for the user ids that
--socks4-user names. Whoever knows or guesses an id can claim it: say with
--allow where its clients are.

PROXY is SCHEME://[USER:PASSWORD@]HOST[:PORT][?timeout=TIME], as for dial.
If the last one is socks5h, socks4a or socks6, it looks up names: then rules
for addresses do not see theirs. UDP ASSOCIATE goes through one of socks5 that
is the only one, or through a last one of socks6. Without --via there may be
a proxy in the variable SOCKHOP_VIA, out of sight too.

Give --allow once for each range of clients; it replaces the default. This
machine may always connect.

-v shows each connection, -vv each message; -q shows warnings and errors only,
-qq errors only."
)]
pub(super) struct Serve {
    /// ADDR, repeatable: where clients connect, such as 127.0.0.1:1080, 1080
    /// or unix:PATH (default [::]:1080, IPv4 included)
    #[argh(option)]
    listen: Vec<String>,

    /// CIDR, repeatable: clients that may connect (default loopback and
    /// private ranges)
    #[argh(option)]
    allow: Vec<String>,

    /// NAME:PASSWORD, repeatable: a user (default none: nobody has to
    /// authenticate)
    #[argh(option)]
    user: Vec<String>,

    /// PATH of a file of users, one name:password a line, read again when it
    /// changes (default none)
    #[argh(option)]
    users_file: Option<String>,

    /// DEST, repeatable: where clients may go, besides public addresses
    #[argh(option)]
    allow_dest: Vec<String>,

    /// DEST, repeatable: where clients may not go
    #[argh(option)]
    deny_dest: Vec<String>,

    /// PROXY, repeatable: connect through this SOCKS proxy, and through each
    /// one after it (default none)
    #[argh(option)]
    via: Vec<String>,

    /// with --via: reply to CONNECT at once, before it is known what becomes
    /// of it; a failure then closes the connection
    #[argh(switch)]
    early_reply: bool,

    /// refuse SOCKS4 and SOCKS4a
    #[argh(switch)]
    no_socks4: bool,

    /// do not speak SOCKS6
    #[cfg(feature = "socks6")]
    #[argh(switch)]
    no_socks6: bool,

    /// speak nothing but SOCKS6
    #[cfg(feature = "socks6")]
    #[argh(switch)]
    socks6_only: bool,

    /// how SOCKS6 is spoken: draft12 (the default), draft11, go212 or s6m207
    #[cfg(feature = "socks6")]
    #[argh(option)]
    socks6_profile: Option<String>,

    /// close SOCKS6 clients without a word whose first bytes are not a whole
    /// request
    #[cfg(feature = "socks6")]
    #[argh(switch)]
    require_whole_request: bool,

    /// grant SOCKS6 clients no stack options: TOS, TTL, TFO, backlogs and so on
    #[cfg(feature = "socks6")]
    #[argh(switch)]
    no_stack_options: bool,

    /// ADDR[:PORT] of a DNS server, for SOCKS6 clients that connect to
    /// 0.0.0.0:53 or [::]:53 (default none)
    #[cfg(feature = "socks6")]
    #[argh(option)]
    dns: Option<String>,

    /// refuse BIND, which opens a port for one peer of a client
    #[argh(switch)]
    no_bind: bool,

    /// ID, repeatable: SOCKS4 and SOCKS4a are for clients with this user id,
    /// also where there are users (default any id, or SOCKS4 off with users)
    #[argh(option)]
    socks4_user: Vec<String>,

    /// refuse to carry datagrams (UDP ASSOCIATE)
    #[argh(switch)]
    no_udp: bool,

    /// FIRST-LAST, ports on which clients' datagrams are taken (default any)
    #[argh(option)]
    udp_ports: Option<String>,

    /// ADDR that clients are told to send datagrams to (default the one they
    /// connected to)
    #[argh(option)]
    udp_advertise: Option<String>,

    /// whose datagrams reach a client: address-dependent (those it has sent
    /// to; the default), address-and-port-dependent or endpoint-independent
    #[argh(option)]
    udp_filter: Option<String>,

    /// TIME without a datagram after which an association ends (default 5m)
    #[argh(option)]
    udp_timeout: Option<String>,

    /// NUMBER of UDP associations at the same time from one address (default
    /// 256)
    #[argh(option)]
    max_associations: Option<String>,

    /// NUMBER of clients at the same time (default as many as the limit of
    /// descriptors allows)
    #[argh(option)]
    max_connections: Option<String>,

    /// NUMBER of clients at the same time from one address (default no limit)
    #[argh(option)]
    max_per_client: Option<String>,

    /// NUMBER of threads that carry bytes, at most (default 64)
    #[argh(option)]
    workers: Option<String>,

    /// TIME for looking up and connecting to a destination (default 10s)
    #[argh(option)]
    connect_timeout: Option<String>,

    /// TIME for the peer of a BIND to come (default 2m)
    #[argh(option)]
    bind_timeout: Option<String>,

    /// TIME for a client to make its request (default 10s)
    #[argh(option)]
    handshake_timeout: Option<String>,

    /// NAME of the interface that connections to destinations, or to PROXY,
    /// leave by (default that of the route)
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
    /// use TCP Fast Open, for clients and towards destinations: first bytes travel
    /// with the connect, where both ends have it
    #[argh(switch)]
    tfo: bool,

    /// use Multipath TCP, for clients and towards destinations, where both ends
    /// have it
    #[argh(switch)]
    mptcp: bool,

    /// TIME of silence after which a stream is closed; 0 is never (default 0)
    #[argh(option)]
    idle_timeout: Option<String>,

    /// TIME of silence after which a stream is closed that one side has ended;
    /// 0 is never (default 60s)
    #[argh(option)]
    half_close_timeout: Option<String>,

    /// PATH of the control socket, or none (default
    /// $XDG_RUNTIME_DIR/sockhop.sock, else /run/sockhop.sock)
    #[argh(option)]
    control: Option<String>,

    /// NAME[:GROUP], or numbers: the user of this machine to become once what
    /// only root may do is done (default who starts it)
    #[argh(option)]
    run_as: Option<String>,

    /// DIR: the directory to make the root directory then (default none)
    #[argh(option)]
    chroot: Option<String>,

    /// do without confinement by Landlock and seccomp
    #[argh(switch)]
    no_sandbox: bool,
    /// take the place of the server that has this control socket: its ports,
    /// without a moment in which nobody accepts; connections end where they are
    #[argh(switch)]
    take_over: bool,

    /// TIME that connections may go on once another server has taken over; 0 is
    /// as long as they like (default 10m)
    #[argh(option)]
    drain_timeout: Option<String>,

    /// copy bytes instead of splicing them in the kernel
    #[argh(switch)]
    no_splice: bool,

    /// LEVEL of what is logged: error, warn, info, debug or trace (default
    /// info); the variable RUST_LOG overrides it
    #[argh(option)]
    log_level: Option<String>,

    /// FORMAT of the log: auto (the default), stamped, plain (without times) or
    /// journal (with priorities)
    #[argh(option)]
    log_format: Option<String>,

    /// log more; twice for still more
    #[argh(switch, short = 'v')]
    verbose: u8,

    /// log less; twice for still less
    #[argh(switch, short = 'q')]
    quiet: u8,
}

impl Serve {
    pub(super) fn log(&self) -> Result<LogSettings, Failure> {
        values::log(
            NAME,
            self.log_level.as_deref(),
            self.log_format.as_deref(),
            (self.verbose, self.quiet),
        )
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut settings = self.settings()?;
        if let Some(text) = std::env::var_os(VARIABLE) {
            settings
                .users
                .push(user(VARIABLE, &text.to_string_lossy())?);
        }
        if settings.via.is_empty()
            && let Some(text) = std::env::var_os(VIA_VARIABLE).filter(|text| !text.is_empty())
        {
            settings
                .via
                .push(proxy(VIA_VARIABLE, &text.to_string_lossy())?);
        }
        if settings.via.is_empty() && self.early_reply {
            let what = "--early-reply is for connections through proxies: give one with --via";
            return Err(Failure::usage(what, Some(NAME)));
        }
        if settings.take_over && settings.control == ControlPath::None {
            let what = "--take-over with --control none: that is where it is asked for";
            return Err(Failure::usage(what, Some(NAME)));
        }
        link::server(settings)
    }

    fn settings(&self) -> Result<ServeSettings, Failure> {
        let default = ServeSettings::default();
        let mut options = Options::of(NAME);
        let mut users = Vec::new();
        for text in &self.user {
            users.extend(options.keep(user("--user", text)));
        }
        let mut via = Vec::new();
        for text in &self.via {
            via.extend(options.keep(proxy("--via", text)));
        }
        let mut settings = ServeSettings {
            users,
            users_file: options.one("--users-file", &self.users_file, path),
            rules: options.all("--allow-dest", &self.allow_dest, Rule::allow),
            via,
            reply_timing: values::reply_timing(self.early_reply),
            socks4: !self.no_socks4,
            socks4_users: options.all("--socks4-user", &self.socks4_user, user_id),
            #[cfg(feature = "socks6")]
            socks6: self.socks6(&mut options),
            udp: self.udp(&mut options),
            max_associations: options
                .number("--max-associations", &self.max_associations, &CONNECTIONS)
                .unwrap_or(default.max_associations),
            max_connections: options.number(
                "--max-connections",
                &self.max_connections,
                &CONNECTIONS,
            ),
            max_per_client: options.number("--max-per-client", &self.max_per_client, &CONNECTIONS),
            workers: options
                .number("--workers", &self.workers, &WORKERS)
                .unwrap_or(default.workers),
            connect_timeout: options
                .duration("--connect-timeout", &self.connect_timeout, &TIMEOUTS)
                .unwrap_or(default.connect_timeout),
            bind_timeout: options
                .duration("--bind-timeout", &self.bind_timeout, &TIMEOUTS)
                .or(default.bind_timeout)
                .filter(|_| !self.no_bind),
            handshake_timeout: options
                .duration("--handshake-timeout", &self.handshake_timeout, &TIMEOUTS)
                .unwrap_or(default.handshake_timeout),
            tcp: options
                .keep(values::tcp(NAME, self.tfo, self.mptcp))
                .unwrap_or_default(),
            idle_timeout: options.limit(
                "--idle-timeout",
                &self.idle_timeout,
                &LIMITS,
                default.idle_timeout,
            ),
            half_close_timeout: options.limit(
                "--half-close-timeout",
                &self.half_close_timeout,
                &LIMITS,
                default.half_close_timeout,
            ),
            control: options
                .one("--control", &self.control, values::control)
                .unwrap_or(default.control),
            privileges: Privileges {
                user: options.one("--run-as", &self.run_as, str::parse),
                root: options.one("--chroot", &self.chroot, values::directory),
            },
            sandbox: !self.no_sandbox,
            take_over: self.take_over,
            drain_timeout: options.limit(
                "--drain-timeout",
                &self.drain_timeout,
                &LIMITS,
                default.drain_timeout,
            ),
            splice: !self.no_splice,
            uplink: options
                .keep(values::uplink(
                    NAME,
                    self.interface.as_deref(),
                    &self.source,
                    self.mark.as_deref(),
                ))
                .unwrap_or_default(),
            listen: default.listen,
            allow: default.allow,
        };
        if !self.listen.is_empty() {
            settings.listen = options.all("--listen", &self.listen, str::parse);
        }
        if !self.allow.is_empty() {
            settings.allow = Some(options.all("--allow", &self.allow, values::cidr));
        }
        if self.no_socks4 && !self.socks4_user.is_empty() {
            options.refuse("--no-socks4: --socks4-user says who may use SOCKS4");
        }
        let denied = options.all("--deny-dest", &self.deny_dest, Rule::deny);
        settings.rules.extend(denied);
        options.end(settings)
    }

    #[cfg(feature = "socks6")]
    fn socks6(&self, options: &mut Options) -> Option<Socks6Options> {
        let socks6 = Socks6Options {
            profile: options
                .one("--socks6-profile", &self.socks6_profile, values::profile)
                .unwrap_or_default(),
            only: self.socks6_only,
            require_whole_request: self.require_whole_request,
            dns: options.one("--dns", &self.dns, dns),
            stack: match self.no_stack_options {
                true => StackPolicy::Refused,
                false => StackPolicy::Granted,
            },
            ..Socks6Options::default()
        };
        if self.no_socks6 && socks6 != Socks6Options::default() {
            options.refuse("--no-socks6: other options say how SOCKS6 is spoken");
        }
        if self.socks6_only && !self.socks4_user.is_empty() {
            options.refuse("--socks6-only: --socks4-user says who may use SOCKS4");
        }
        (!self.no_socks6).then_some(socks6)
    }

    fn udp(&self, options: &mut Options) -> Option<UdpOptions> {
        let default = UdpOptions::default();
        let udp = UdpOptions {
            ports: options.one("--udp-ports", &self.udp_ports, str::parse),
            advertise: options.one("--udp-advertise", &self.udp_advertise, |text| {
                text.parse()
                    .map_err(|_| BadText::new(text, "is not an address", "203.0.113.7"))
            }),
            filter: options
                .one("--udp-filter", &self.udp_filter, str::parse)
                .unwrap_or(default.filter),
            idle: options
                .duration("--udp-timeout", &self.udp_timeout, &LIMITS)
                .unwrap_or(default.idle),
            first_datagram: default.first_datagram,
        };
        (!self.no_udp).then_some(udp)
    }
}

/// A user. Nothing of the text is in the error: it may be a password.
fn user(name: &str, text: &str) -> Result<User, Failure> {
    text.parse().map_err(|error| {
        let meant = match error {
            UserError::NoColon => "; --run-as is for the user of this machine to become",
            UserError::Credentials(_) => "",
        };
        Failure::usage(format!("{name}: {error}{meant}"), Some(NAME))
    })
}

/// A proxy. What could be its password is not in the error.
fn proxy(name: &str, text: &str) -> Result<ProxyUri, Failure> {
    let bad = |what: String| Failure::usage(format!("{name}: {what}"), Some(NAME));
    let uri: ProxyUri = text
        .parse()
        .map_err(|error: ProxyUriError| bad(error.to_string()))?;
    #[cfg(feature = "socks6")]
    check_socks6(&uri).map_err(|what| bad(format!("it {what}")))?;
    Ok(uri)
}

fn user_id(text: &str) -> Result<UserId, BadText> {
    let id = UserId::new(text).filter(|_| !text.is_empty());
    id.ok_or_else(|| BadText::new(text, "is not a user id of 1 to 255 bytes", "ada"))
}

#[cfg(feature = "socks6")]
fn dns(text: &str) -> Result<SocketAddr, BadText> {
    let address = text.parse().or_else(|_| {
        let ip = text.parse::<IpAddr>();
        ip.map(|ip| SocketAddr::new(ip, DNS))
    });
    address
        .ok()
        .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
        .ok_or_else(|| BadText::new(text, "is not an address", "127.0.0.1:53"))
}

fn path(text: &str) -> Result<std::path::PathBuf, BadText> {
    match text {
        "" => Err(BadText::new(text, "is not a path", "/etc/sockhop.users")),
        _ => Ok(text.into()),
    }
}

const NAME: &str = "serve";

#[cfg(feature = "socks6")]
const DNS: u16 = 53;

/// One more user, out of sight of `ps`.
const VARIABLE: &str = "SOCKHOP_USER";

/// The proxy to connect through, out of sight too; for when the command line has none.
const VIA_VARIABLE: &str = "SOCKHOP_VIA";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::listen::ASSOCIATIONS_PER_CLIENT;
    use crate::net::{TcpExtras, Uplink};
    use crate::server::ReplyTiming;
    use crate::server::association::Filter;
    #[cfg(feature = "socks6")]
    use crate::wire::socks6::Profile;

    fn settings(line: &str) -> Result<ServeSettings, String> {
        let arguments: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
        Serve::from_args(&["sockhop", NAME], &arguments)
            .expect("argh takes it")
            .settings()
            .map_err(|failure| {
                assert_eq!(failure.status(), 2, "{line}");
                failure.to_string()
            })
    }

    #[test]
    fn without_options_everything_is_the_default() {
        let expected = ServeSettings {
            sandbox: true,
            ..ServeSettings::default()
        };
        assert_eq!(settings(""), Ok(expected));
    }

    #[cfg(feature = "socks6")]
    #[test]
    fn options_of_socks6_reach_their_settings() {
        let line = "--socks6-only --socks6-profile go212 --require-whole-request --dns ::1 --no-stack-options";
        let expected = Socks6Options {
            profile: Profile::GO_212,
            only: true,
            require_whole_request: true,
            dns: Some("[::1]:53".parse().unwrap()),
            stack: StackPolicy::Refused,
            ..Socks6Options::default()
        };
        assert_eq!(settings(line).unwrap().socks6, Some(expected));
        let dns = settings("--dns 127.0.0.1:5353")
            .unwrap()
            .socks6
            .unwrap()
            .dns;
        assert_eq!(dns, Some("127.0.0.1:5353".parse().unwrap()));
        assert_eq!(settings("--no-socks6").unwrap().socks6, None);
        for line in [
            "--socks6-profile draft13",
            "--dns example.org",
            "--dns 0.0.0.0:53",
            "--dns 127.0.0.1:0",
            "--no-socks6 --socks6-only",
            "--no-socks6 --dns ::1",
            "--socks6-only --socks4-user ada",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_option_reaches_its_setting() {
        let line = "--listen 1 --allow 10.0.0.0/8 --user a:b --user c:d:e --users-file f \
             --allow-dest 10.0.0.0/8:80 --deny-dest example.org --via socks5h://a:b@c --via socks4://d --early-reply --socks4-user ada --socks4-user b --max-connections 10 \
             --bind-timeout 2s --no-bind --udp-ports 4000-4999 --udp-advertise 192.0.2.7 --udp-filter endpoint-independent --udp-timeout 2m \
             --max-associations 7 \
             --max-per-client 2 --workers 3 --connect-timeout 4s --handshake-timeout 3s --mptcp --idle-timeout 5s \
             --half-close-timeout 0 --control h --no-splice --take-over --drain-timeout 0 --source 192.0.2.7 --mark 5 \
             --run-as l:7 --chroot m --no-sandbox";
        let expected = ServeSettings {
            #[cfg(feature = "socks6")]
            socks6: Some(Socks6Options::default()),
            listen: vec!["[::]:1".parse().unwrap()],
            allow: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            users: vec!["a:b".parse().unwrap(), "c:d:e".parse().unwrap()],
            users_file: Some("f".into()),
            rules: vec![
                Rule::allow("10.0.0.0/8:80").unwrap(),
                Rule::deny("example.org").unwrap(),
            ],
            socks4: true,
            socks4_users: vec![UserId::new("ada").unwrap(), UserId::new("b").unwrap()],
            reply_timing: ReplyTiming::AtOnce,
            via: ["socks5h://a:b@c", "socks4://d"]
                .map(|text| text.parse().unwrap())
                .into(),
            udp: Some(UdpOptions {
                ports: Some("4000-4999".parse().unwrap()),
                advertise: Some("192.0.2.7".parse().unwrap()),
                filter: Filter::EndpointIndependent,
                idle: Duration::from_secs(120),
                ..UdpOptions::default()
            }),
            max_associations: 7,
            max_connections: Some(10),
            max_per_client: Some(2),
            workers: 3,
            connect_timeout: Duration::from_secs(4),
            bind_timeout: None,
            handshake_timeout: Duration::from_secs(3),
            tcp: TcpExtras {
                fast_open: false,
                multipath: true,
            },
            idle_timeout: Some(Duration::from_secs(5)),
            half_close_timeout: None,
            control: ControlPath::At("h".into()),
            privileges: Privileges {
                user: Some("l:7".parse().unwrap()),
                root: Some("m".into()),
            },
            sandbox: false,
            take_over: true,
            drain_timeout: None,
            splice: false,
            uplink: Uplink::new(None, &["192.0.2.7".parse().unwrap()], Some(5)).unwrap(),
        };
        assert_eq!(settings(line), Ok(expected));
        assert_eq!(settings("--no-udp").unwrap().udp, None);
        for bad in [
            "--udp-ports 5-4",
            "--udp-advertise example.org",
            "--udp-filter full-cone",
            "--udp-timeout 0",
            "--max-associations 0",
        ] {
            let error = settings(bad).expect_err(bad);
            let (option, _) = bad.split_once(' ').unwrap();
            assert!(error.starts_with(option), "{error}");
        }
    }

    #[test]
    fn a_bad_user_is_refused_without_being_shown() {
        for text in ["hunter2", ":hunter2", "hunter2:"] {
            let error = settings(&format!("--user {text}")).expect_err(text);
            assert!(error.starts_with("--user: "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_bad_proxy_is_refused_without_being_shown() {
        for text in ["socks5://a:hunter2", "a:hunter2@b", "socks5://a:hun/ter2@b"] {
            let error = settings(&format!("--via {text}")).expect_err(text);
            assert!(error.starts_with("--via: "), "{error}");
            assert!(!error.contains("ter2@"), "{error}");
        }
    }

    #[test]
    fn socks4_can_be_off_or_for_some() {
        let off = ServeSettings {
            socks4: false,
            sandbox: true,
            ..ServeSettings::default()
        };
        assert_eq!(settings("--no-socks4"), Ok(off));
        let error = settings("--no-socks4 --socks4-user ada").unwrap_err();
        assert!(error.starts_with("--no-socks4: "), "{error}");
        let long = "x".repeat(256);
        let error = settings(&format!("--socks4-user {long}")).unwrap_err();
        assert!(error.starts_with("--socks4-user: "), "{error}");
        assert!(user_id("").is_err());
    }

    #[test]
    fn a_bad_destination_is_told_with_its_option() {
        let error = settings("--deny-dest 10.0.0.0/33").unwrap_err();
        assert!(
            error.starts_with("--deny-dest: \"10.0.0.0/33\" has a prefix"),
            "{error}"
        );
    }

    #[test]
    fn help_shows_the_real_defaults() {
        let flags = Serve::get_args_info().flags;
        let default = ServeSettings::default();
        for (name, value, range) in [
            ("--connect-timeout", Some(default.connect_timeout), TIMEOUTS),
            ("--bind-timeout", default.bind_timeout, TIMEOUTS),
            (
                "--handshake-timeout",
                Some(default.handshake_timeout),
                TIMEOUTS,
            ),
            ("--udp-timeout", Some(UdpOptions::default().idle), LIMITS),
            ("--idle-timeout", default.idle_timeout, LIMITS),
            ("--half-close-timeout", default.half_close_timeout, LIMITS),
            ("--drain-timeout", default.drain_timeout, LIMITS),
        ] {
            let flag = flags.iter().find(|flag| flag.long == name).expect(name);
            let (_, shown) = flag.description.split_once("(default ").expect(name);
            let shown = shown.split([',', ')']).next().expect(name);
            assert_eq!(
                values::duration_or_never(shown, &range),
                Ok(value),
                "{name}"
            );
        }
        let flag = flags.iter().find(|flag| flag.long == "--max-associations");
        let shown = flag.unwrap().description.replace('\n', " ");
        let expected = format!("(default {ASSOCIATIONS_PER_CLIENT})");
        assert!(shown.contains(&expected), "{shown}");
    }
}
