//! `sockhop forward`: flags to settings.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "comments of options are help text, where brackets are those of IPv6"
)]

use argh::{ArgsInfo, FromArgs};

use super::options::Options;
use super::{Failure, link, values};
use crate::choice::{Fallback, Mode};
use crate::daemon::settings::{
    CONNECTIONS, ControlPath, LIMITS, PROBE_INTERVALS, PROBE_RATES, READY, Settings, TIMEOUTS,
    WORKERS,
};
use crate::discovery::rules::{MOST_PREFERENCES, Rules};
use crate::logger::LogSettings;
use crate::peer::Peer;
use crate::privileges::Privileges;
use crate::remote::Remote;
#[cfg(feature = "server")]
use crate::server::rules::Rule;

/// Find a proxy and forward a local port to it (the main job).
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "forward",
    help_triggers("-h", "--help"),
    example = "\
sockhop forward
sockhop forward --peer 407::1 --peer [407::2]:9050
sockhop forward --peers file:/etc/sockhop.peers --listen 127.0.0.1:1080
sockhop forward --remote proxy.example --listen unix:/run/proxy.sock
sockhop forward --manual",
    note = "\
Peers are probed, and clients forwarded to the best one that is a SOCKS5 proxy
without authentication. When nobody is named, they are those that the daemons
of Mycelium, Yggdrasil and Tailscale on this machine know, as soon as one of
them runs. With --remote the given proxies are used in their
order instead, unprobed; peers are then only watched. With --manual nothing is
used and no port opened until \"sockhop connect\", which without an address
tries the proxies of --remote in their order, or else races the valid peers.

Clients speak SOCKS to the proxy through the forwarder, so they can also
authenticate to it by themselves where it wants that. With a user and password
in --remote, --peer or a line of --peers the forwarder does it for those
that don't. For a socks6 proxy the forwarder speaks to both: what clients ask
for in SOCKS 4, 4a and 5, it asks for in SOCKS 6. Others on this machine can
see passwords of the command line: better are files and the variable
SOCKHOP_REMOTE, for when there is no --remote.

Give --allow once for each range of clients, for example --allow 10.0.0.0/8
--allow fd00::/8; it replaces the default. This machine may always connect.
A client whose address is a peer's is refused unless --allow names exactly
that address.

-v shows each connection, -vv each message; -q shows warnings and errors only,
-qq errors only."
)]
pub(super) struct Forward {
    /// ADDR, repeatable: a proxy to use, as HOST, HOST:PORT, [V6]:PORT or
    /// socks5://[USER:PASSWORD@]HOST[:PORT][?timeout=TIME], the preferred one
    /// first; or all of them socks6://[USER:PASSWORD@]HOST[:PORT], which
    /// clients of SOCKS 4, 4a and 5 are converted for
    #[argh(option)]
    remote: Vec<String>,

    /// ADDR, repeatable: a peer to probe, as HOST, HOST:PORT, [V6]:PORT or
    /// socks5://[USER:PASSWORD@]HOST (port 1080)
    #[argh(option)]
    peer: Vec<String>,

    /// SOURCE, repeatable: where more peers come from: file:PATH or
    /// exec:COMMAND, with one address a line; mycelium[:URL],
    /// yggdrasil[:SOCKET] or tailscale[:SOCKET], the daemon on this machine;
    /// routes, hosts with a route of their own (default the daemons that are
    /// found)
    #[argh(option)]
    peers: Vec<String>,

    /// CIDR, repeatable: peers that may be chosen; others are not even probed
    /// (default all)
    #[argh(option)]
    only: Vec<String>,

    /// CIDR, repeatable: peers that are neither chosen nor probed (default
    /// none)
    #[argh(option)]
    never: Vec<String>,

    /// CIDR or ADDR, repeatable: peers that are chosen before others whatever
    /// their latency, the first named first
    #[argh(option)]
    prefer: Vec<String>,

    /// ADDR, repeatable: where clients connect, such as 127.0.0.1:1080, 1080
    /// or unix:PATH (default [::]:1080, IPv4 included)
    #[argh(option)]
    listen: Vec<String>,

    /// CIDR, repeatable: clients that may connect (default loopback and
    /// private ranges)
    #[argh(option)]
    allow: Vec<String>,

    /// TIME from one round of probes to the next (default 60s)
    #[argh(option)]
    probe_interval: Option<String>,

    /// TIME for one probe as a whole (default 5s)
    #[argh(option)]
    probe_timeout: Option<String>,

    /// HOST:PORT that valid peers must also be able to connect to (default
    /// none)
    #[argh(option)]
    probe_target: Option<String>,

    /// also ask those peers in SOCKS 6 that are no SOCKS5 proxies for us; they
    /// are shown, not chosen
    #[argh(switch)]
    probe_socks6: bool,

    /// NAME: how peers are asked in SOCKS 6: draft12 (the default), draft11,
    /// go212 or s6m207
    #[argh(option)]
    socks6_profile: Option<String>,

    /// NUMBER of probes a second at most, however many peers there are (default
    /// 20)
    #[argh(option)]
    probe_rate: Option<String>,

    /// do not probe until "sockhop probing start"
    #[argh(switch)]
    no_probing: bool,

    /// with a socks6 proxy: reply to CONNECT at once, before it is known what
    /// becomes of it; a failure then closes the connection
    #[cfg(feature = "socks6")]
    #[argh(switch)]
    early_reply: bool,

    /// do not connect until "sockhop connect"
    #[argh(switch)]
    manual: bool,

    /// keep or cut: what happens to live streams when the proxy changes
    /// (default keep)
    #[argh(option)]
    on_switch: Option<String>,

    /// direct or refuse: whether SOCKS clients are served from this machine's
    /// own connection while no proxy can be used (default refuse)
    #[argh(option)]
    fallback: Option<String>,

    /// DEST, repeatable: where clients may go with --fallback direct, besides
    /// public addresses
    #[cfg(feature = "server")]
    #[argh(option)]
    allow_dest: Vec<String>,

    /// DEST, repeatable: where clients may not go with --fallback direct
    #[cfg(feature = "server")]
    #[argh(option)]
    deny_dest: Vec<String>,

    /// leave datagrams to clients and proxy: tell clients what the proxy says
    /// about where to send them
    #[argh(switch)]
    no_udp: bool,

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

    /// TIME for connecting to a proxy (default 5s)
    #[argh(option)]
    connect_timeout: Option<String>,

    /// TIME that a proxy may hesitate before another one is tried beside it;
    /// 0 is until it has failed (default 300ms)
    #[argh(option)]
    stagger: Option<String>,

    /// do not take a request to another proxy when one fails to answer it or
    /// cannot reach its destination
    #[argh(switch)]
    no_retry: bool,

    /// NAME of the interface that connections to proxies, and probes, leave by
    /// (default that of the route)
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
    /// NUMBER of connections to the proxy that are made before clients need
    /// them, each of which saves one the way there and back (default 0, at
    /// most 64)
    #[argh(option)]
    ready: Option<String>,

    /// use TCP Fast Open, for clients and towards the proxy: first bytes travel
    /// with the connect, where both ends have it
    #[argh(switch)]
    tfo: bool,

    /// use Multipath TCP, for clients and towards the proxy, where both ends have
    /// it
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

    /// take the place of the forwarder that has this control socket: its ports,
    /// without a moment in which nobody accepts; streams end where they are
    #[argh(switch)]
    take_over: bool,

    /// TIME that streams may go on once another forwarder has taken over; 0 is
    /// as long as they like (default 10m)
    #[argh(option)]
    drain_timeout: Option<String>,

    /// PATH of a file that remembers good proxies for the next start
    /// (default none)
    #[argh(option)]
    state: Option<String>,

    /// ADDR where Prometheus may ask for metrics, such as 9150 (of this
    /// machine alone) or [::]:9150 (default none)
    #[argh(option)]
    metrics: Option<String>,

    /// NAME[:GROUP], or numbers: the user to become once what only root may do
    /// is done (default who starts it)
    #[argh(option)]
    user: Option<String>,

    /// DIR: the directory to make the root directory then (default none)
    #[argh(option)]
    chroot: Option<String>,

    /// do without confinement by Landlock and seccomp
    #[argh(switch)]
    no_sandbox: bool,

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

impl Forward {
    pub(super) fn log(&self) -> Result<LogSettings, Failure> {
        values::log(
            NAME,
            self.log_level.as_deref(),
            self.log_format.as_deref(),
            (self.verbose, self.quiet),
        )
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        let variable = std::env::var_os(VARIABLE).filter(|text| !text.is_empty());
        let variable = variable.map(|text| text.to_string_lossy().into_owned());
        link::daemon(self.settings(variable)?)
    }

    /// `variable` is a remote for when there is none on the command line.
    fn settings(&self, variable: Option<String>) -> Result<Settings, Failure> {
        let default = Settings::default();
        let mut options = Options::of(NAME);
        let (name, remotes) = match (self.remote.as_slice(), variable) {
            ([], Some(text)) => (VARIABLE, vec![text]),
            (remotes, _) => ("--remote", remotes.to_vec()),
        };
        let mut settings = Settings {
            remotes: options.all(name, &remotes, Remote::parse),
            peers: options.all("--peer", &self.peer, Peer::parse_listed),
            sources: options.all("--peers", &self.peers, str::parse),
            probe_interval: options
                .duration("--probe-interval", &self.probe_interval, &PROBE_INTERVALS)
                .unwrap_or(default.probe_interval),
            rules: Rules {
                only: options.all("--only", &self.only, values::cidr),
                never: options.all("--never", &self.never, values::cidr),
                prefer: options.all("--prefer", &self.prefer, str::parse),
            },
            probe_rate: options
                .number("--probe-rate", &self.probe_rate, &PROBE_RATES)
                .and_then(|rate| u32::try_from(rate).ok())
                .unwrap_or(default.probe_rate),
            probe_timeout: options
                .duration("--probe-timeout", &self.probe_timeout, &TIMEOUTS)
                .unwrap_or(default.probe_timeout),
            probe_target: options.one("--probe-target", &self.probe_target, str::parse),
            #[cfg(feature = "socks6")]
            reply_timing: values::reply_timing(self.early_reply),
            probe_socks6: options
                .keep(values::ask_socks6(
                    NAME,
                    self.probe_socks6,
                    self.socks6_profile.as_deref(),
                ))
                .unwrap_or(default.probe_socks6),
            probing: !self.no_probing,
            mode: match (self.manual, remotes.is_empty()) {
                (true, _) => Mode::Manual,
                (false, false) => Mode::Explicit,
                (false, true) => Mode::Automatic,
            },
            on_switch: options
                .one("--on-switch", &self.on_switch, str::parse)
                .unwrap_or(default.on_switch),
            fallback: options
                .one("--fallback", &self.fallback, values::fallback)
                .unwrap_or(default.fallback),
            #[cfg(feature = "server")]
            fallback_rules: options.all("--allow-dest", &self.allow_dest, Rule::allow),
            udp: !self.no_udp,
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
            stagger: options.limit("--stagger", &self.stagger, &TIMEOUTS, default.stagger),
            retry: !self.no_retry,
            ready: options
                .number("--ready", &self.ready, &READY)
                .unwrap_or(default.ready),
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
            take_over: self.take_over,
            drain_timeout: options.limit(
                "--drain-timeout",
                &self.drain_timeout,
                &LIMITS,
                default.drain_timeout,
            ),
            state: options.one("--state", &self.state, values::state),
            metrics: options.one("--metrics", &self.metrics, values::metrics),
            privileges: Privileges {
                user: options.one("--user", &self.user, str::parse),
                root: options.one("--chroot", &self.chroot, values::directory),
            },
            sandbox: !self.no_sandbox,
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
        #[cfg(feature = "server")]
        settings
            .fallback_rules
            .extend(options.all("--deny-dest", &self.deny_dest, Rule::deny));
        let settings = options.end(settings)?;
        check(&settings)?;
        Ok(settings)
    }
}

/// Refuses settings that are fine one by one but together can never forward anything.
fn check(settings: &Settings) -> Result<(), Failure> {
    let usage = |text: &str| Err(Failure::usage(text, Some(NAME)));
    let mut converted = settings.remotes.iter().map(Remote::is_converted);
    if let Some(first) = converted.next()
        && converted.any(|other| other != first)
    {
        return usage(
            "--remote: some are socks6 proxies and some are not; clients are converted for all of them or for none",
        );
    }
    #[cfg(feature = "server")]
    if settings.fallback == Fallback::Refuse && !settings.fallback_rules.is_empty() {
        return usage(
            "--allow-dest and --deny-dest are for clients that are served without a proxy: add --fallback direct",
        );
    }
    let converted = settings.remotes.iter().any(Remote::is_converted);
    if settings.fallback == Fallback::Direct && converted {
        return usage("--fallback: not with a socks6 proxy, whose clients are never passed on");
    }
    if settings.rules.prefer.len() > MOST_PREFERENCES {
        return Err(Failure::usage(
            format!("--prefer: given more than {MOST_PREFERENCES} times; ranges take fewer"),
            Some(NAME),
        ));
    }
    let deaf = settings.control == ControlPath::None;
    if deaf && settings.take_over {
        return usage("--take-over with --control none: that is where it is asked for");
    }
    match settings.mode {
        Mode::Automatic if !settings.probing && deaf => usage(
            "--no-probing with --control none: no peer would ever be found valid; leave one of them out",
        ),
        Mode::Manual if deaf => usage(
            "--manual with --control none: nobody could ever connect it; leave one of them out",
        ),
        _ => Ok(()),
    }
}

const NAME: &str = "forward";

/// A remote, out of sight of `ps`: it may have a password.
const VARIABLE: &str = "SOCKHOP_REMOTE";

#[cfg(test)]
mod tests {
    #[cfg(feature = "socks6")]
    use std::time::Duration;

    use super::*;
    #[cfg(feature = "socks6")]
    use crate::choice::OnSwitch;
    use crate::listen_address::ListenAddress;
    use crate::net::TcpExtras;
    #[cfg(feature = "socks6")]
    use crate::net::Uplink;
    #[cfg(feature = "socks6")]
    use crate::server::ReplyTiming;
    use crate::target::SOCKS_PORT;

    fn settings(line: &str) -> Result<Settings, String> {
        let arguments: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
        Forward::from_args(&["sockhop", NAME], &arguments)
            .expect("argh takes it")
            .settings(None)
            .map_err(|failure| {
                assert_eq!(failure.status(), 2, "{line}");
                failure.to_string()
            })
    }

    #[test]
    fn without_options_everything_is_the_default() {
        let expected = Settings {
            peers: vec!["[407::1]:1080".parse().unwrap()],
            // A library leaves its program alone, the program is all ours.
            sandbox: true,
            ..Settings::default()
        };
        assert_eq!(settings("--peer 407::1"), Ok(expected));
    }

    #[test]
    fn daemons_are_looked_for_when_there_is_nobody_else_to_choose_from() {
        let looks = |line: &str| settings(line).expect(line).looks_for_daemons();
        assert!(looks(""));
        for line in ["--peer a", "--peers file:x", "--remote a", "--manual"] {
            assert!(!looks(line), "{line}");
        }
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn metrics_are_served_where_told() {
        let at = |line: &str| settings(line).map(|settings| settings.metrics);
        assert_eq!(at("--manual"), Ok(None));
        let told = "127.0.0.1:9150".parse().unwrap();
        assert_eq!(at("--manual --metrics 9150"), Ok(Some(told)));
    }

    #[cfg(feature = "socks6")]
    #[test]
    fn peers_are_asked_in_socks6_when_told() {
        use crate::discovery::probe::AskSocks6;
        use crate::wire::socks6::Profile;
        let asks = |line: &str| settings(line).map(|settings| settings.probe_socks6);
        assert_eq!(asks("--manual"), Ok(AskSocks6::No));
        let yes = |profile| Ok(AskSocks6::Yes(profile));
        assert_eq!(asks("--manual --probe-socks6"), yes(Profile::DRAFT_12));
        let line = "--manual --probe-socks6 --socks6-profile go212";
        assert_eq!(asks(line), yes(Profile::GO_212));
        for line in [
            "--socks6-profile go212",
            "--probe-socks6 --socks6-profile x",
        ] {
            let error = asks(&format!("--manual {line}")).unwrap_err();
            assert!(error.contains("--socks6-profile"), "{error}");
        }
    }

    #[cfg(not(feature = "server"))]
    #[test]
    fn clients_without_a_remote_are_not_served_without_a_server() {
        let error = settings("--peer a --fallback direct").unwrap_err();
        assert!(error.contains("without a server"), "{error}");
        assert!(settings("--peer a --fallback refuse").is_ok());
    }

    // Of a build that has all of them.
    #[cfg(feature = "socks6")]
    #[test]
    fn every_option_reaches_its_setting() {
        let line = "--remote a --remote socks5://b:2 --peer c --peers file:d --peers exec:e --peers routes --listen 1 \
             --listen unix:f --allow 10.0.0.0/8 --probe-interval 30s --probe-timeout 1s \
             --probe-target g:443 --no-probing --manual --on-switch cut --fallback direct --deny-dest 10.0.0.0/8 --allow-dest j --no-udp --early-reply --max-connections 10 \
             --max-per-client 2 --workers 3 --connect-timeout 4s --stagger 1s --no-retry --idle-timeout 5s \
             --half-close-timeout 0 --control h --state i --no-splice \
             --only 10.0.0.0/8 --only fd00::/8 --never 10.9.9.9 --prefer 10.1.0.0/16 \
             --prefer [fd00::1]:9 --probe-rate 7 --take-over --drain-timeout 9s --interface wan2 --source 192.0.2.7 --source fd00::7 --mark 0x1f --ready 5 --tfo \
             --user l:7 --chroot m --no-sandbox";
        let rules = Rules {
            only: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            never: vec!["10.9.9.9/32".parse().unwrap()],
            prefer: vec![
                "10.1.0.0/16".parse().unwrap(),
                "[fd00::1]:9".parse().unwrap(),
            ],
        };
        let expected = Settings {
            listen: vec!["[::]:1".parse().unwrap(), ListenAddress::Unix("f".into())],
            allow: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            remotes: ["a:1080", "b:2"]
                .map(|text| Remote::parse(text).unwrap())
                .into(),
            peers: vec!["c:1080".parse().unwrap()],
            sources: ["file:d", "exec:e", "routes"]
                .map(|text| text.parse().unwrap())
                .into(),
            rules,
            probe_interval: Duration::from_secs(30),
            probe_rate: 7,
            probe_timeout: Duration::from_secs(1),
            probe_target: Some("g:443".parse().unwrap()),
            probe_socks6: Settings::default().probe_socks6,
            probing: false,
            mode: Mode::Manual,
            reply_timing: ReplyTiming::AtOnce,
            on_switch: OnSwitch::Cut,
            fallback: Fallback::Direct,
            fallback_rules: vec![Rule::allow("j").unwrap(), Rule::deny("10.0.0.0/8").unwrap()],
            udp: false,
            max_connections: Some(10),
            max_per_client: Some(2),
            workers: 3,
            connect_timeout: Duration::from_secs(4),
            stagger: Some(Duration::from_secs(1)),
            retry: false,
            ready: 5,
            tcp: TcpExtras {
                fast_open: true,
                multipath: false,
            },
            idle_timeout: Some(Duration::from_secs(5)),
            half_close_timeout: None,
            control: ControlPath::At("h".into()),
            take_over: true,
            drain_timeout: Some(Duration::from_secs(9)),
            state: Some("i".into()),
            metrics: Settings::default().metrics,
            privileges: Privileges {
                user: Some("l:7".parse().unwrap()),
                root: Some("m".into()),
            },
            sandbox: false,
            splice: false,
            uplink: Uplink::new(
                Some("wan2".parse().unwrap()),
                &["192.0.2.7".parse().unwrap(), "fd00::7".parse().unwrap()],
                Some(31),
            )
            .unwrap(),
        };
        assert_eq!(settings(line), Ok(expected));
    }

    #[test]
    fn the_log_is_as_its_options_say() {
        use crate::logger::LogFormat;
        use log::LevelFilter::*;
        let log = |line: &str| {
            let arguments: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
            let forward =
                Forward::from_args(&["sockhop", NAME], &arguments).expect("argh takes it");
            forward.log().map(|log| (log.level, log.format))
        };
        for (line, level, format) in [
            ("", Info, None),
            ("-q", Warn, None),
            ("--log-level warn", Warn, None),
            ("--log-level warn -v -v", Debug, None),
            ("--log-format auto", Info, None),
            ("--log-format plain", Info, Some(LogFormat::Plain)),
        ] {
            assert_eq!(log(line).expect(line), (level, format), "{line}");
        }
        for line in ["--log-level 3", "--log-format syslog"] {
            assert_eq!(log(line).unwrap_err().status(), 2, "{line}");
        }
    }

    #[test]
    fn remote_alone_is_explicit_and_peers_alone_automatic() {
        for (line, mode) in [
            ("--remote a", Mode::Explicit),
            ("--remote a --peer b", Mode::Explicit),
            ("--remote a --manual", Mode::Manual),
            ("--manual", Mode::Manual),
            ("--peers file:x", Mode::Automatic),
        ] {
            assert_eq!(settings(line).expect(line).mode, mode, "{line}");
        }
    }

    #[test]
    fn multipath_is_instead_of_fast_open() {
        let tcp = settings("--manual --mptcp").map(|settings| settings.tcp);
        let expected = TcpExtras {
            fast_open: false,
            multipath: true,
        };
        assert_eq!(tcp, Ok(expected));
        let error = settings("--manual --mptcp --tfo").unwrap_err();
        assert!(error.contains("leave one of them out"), "{error}");
        let error = settings("--manual --ready 65").unwrap_err();
        assert!(error.contains("from 0 to 64"), "{error}");
    }

    #[test]
    fn settings_that_can_never_forward_are_refused() {
        for (line, message) in [
            (
                "--peer a --no-probing --control none",
                "--no-probing with --control none",
            ),
            ("--manual --control none", "--manual with --control none"),
            #[cfg(feature = "server")]
            ("--peer a --deny-dest 10.0.0.0/8", "add --fallback direct"),
        ] {
            let error = settings(line).expect_err(line);
            assert!(error.contains(message), "{line}: {error}");
        }
        assert!(settings("--remote a --no-probing --control none").is_ok());
    }

    #[test]
    fn help_shows_the_real_defaults() {
        let flags = Forward::get_args_info().flags;
        let shown = |name: &str| {
            let flag = flags.iter().find(|flag| flag.long == name).expect(name);
            let (_, default) = flag.description.split_once("(default ").expect(name);
            default.split([',', ')']).next().expect(name)
        };
        let default = Settings::default();
        for (name, value) in [
            ("--listen", ListenAddress::DEFAULT.to_string()),
            ("--on-switch", default.on_switch.to_string()),
            ("--fallback", default.fallback.to_string()),
            ("--workers", default.workers.to_string()),
            ("--probe-rate", default.probe_rate.to_string()),
        ] {
            assert_eq!(shown(name), value, "{name}");
        }
        for (name, value, range) in [
            (
                "--probe-interval",
                Some(default.probe_interval),
                PROBE_INTERVALS,
            ),
            ("--probe-timeout", Some(default.probe_timeout), TIMEOUTS),
            ("--connect-timeout", Some(default.connect_timeout), TIMEOUTS),
            ("--stagger", default.stagger, TIMEOUTS),
            ("--idle-timeout", default.idle_timeout, LIMITS),
            ("--half-close-timeout", default.half_close_timeout, LIMITS),
            ("--drain-timeout", default.drain_timeout, LIMITS),
        ] {
            assert_eq!(
                values::duration_or_never(shown(name), &range),
                Ok(value),
                "{name}"
            );
        }
        let peer = flags.iter().find(|flag| flag.long == "--peer").unwrap();
        assert!(peer.description.contains(&format!("(port {SOCKS_PORT})")));
    }
}
