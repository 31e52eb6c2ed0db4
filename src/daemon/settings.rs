//! What a running forwarder or server is told, once, at its start.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

#[cfg(feature = "server")]
use crate::ProxyUri;
use crate::choice::{Fallback, Mode, OnSwitch};
use crate::discovery::probe::AskSocks6;
use crate::discovery::rules::Rules;
use crate::forward::MOST_READY;
#[cfg(feature = "server")]
use crate::listen::ASSOCIATIONS_PER_CLIENT;
use crate::listen_address::ListenAddress;
use crate::net::{TcpExtras, Uplink};
use crate::peer::Peer;
use crate::privileges::Privileges;
use crate::remote::Remote;
#[cfg(feature = "socks6")]
use crate::server::socks6::Socks6Options;
#[cfg(feature = "server")]
use crate::server::{ReplyTiming, association::UdpOptions, rules::Rule, users::User};
use crate::source_spec::SourceSpec;
use crate::target::HostPort;
#[cfg(feature = "server")]
use crate::wire::socks4::UserId;

/// The settings of a forwarder. `Settings::default()` has every default and nobody to forward to but what the overlay daemons of
/// this machine name.
///
/// The limits of each value are beside it; the command line holds them, the daemon may rely on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where clients connect; never empty.
    pub listen: Vec<ListenAddress>,
    /// Clients that may connect. `None`: loopback and private ranges.
    pub allow: Option<Vec<IpNet>>,
    /// Explicit remotes in order of preference, all of them converted or none. In manual mode `connect` without an address goes through them.
    pub remotes: Vec<Remote>,
    /// Peers to probe.
    pub peers: Vec<Peer>,
    /// Where more peers come from.
    pub sources: Vec<SourceSpec>,
    /// Which of them may be chosen, and which before others.
    pub rules: Rules,
    /// From the start of one round of probes to the next; within [`PROBE_INTERVALS`].
    pub probe_interval: Duration,
    /// Probes a second at most, in the long run; within [`PROBE_RATES`].
    pub probe_rate: u32,
    /// For the whole of one probe; within [`TIMEOUTS`].
    pub probe_timeout: Duration,
    /// Where probes ask valid peers to connect to, which proves that their exit works.
    pub probe_target: Option<HostPort>,
    /// Whether peers that are no SOCKS 5 proxies for us are asked in SOCKS 6.
    pub probe_socks6: AskSocks6,
    /// Whether probing runs from the start; `sockhop probing start|stop` changes it later.
    pub probing: bool,
    /// Who chooses the remote.
    pub mode: Mode,
    /// What happens to live streams when the remote changes.
    pub on_switch: OnSwitch,
    /// What becomes of clients that no remote can be used for.
    pub fallback: Fallback,
    /// Where clients may go that are served from here then.
    #[cfg(feature = "server")]
    pub fallback_rules: Vec<Rule>,
    /// Whether datagrams of clients pass through here. If not, clients are told what the remote says.
    pub udp: bool,
    /// When clients have their replies, where they are converted.
    #[cfg(feature = "socks6")]
    pub reply_timing: ReplyTiming,
    /// Clients at the same time, within [`CONNECTIONS`]. `None`: as many as the descriptor limit allows.
    pub max_connections: Option<usize>,
    /// Clients at the same time from one address, within [`CONNECTIONS`]. `None`: no limit of their own.
    pub max_per_client: Option<usize>,
    /// The most threads that carry bytes at the same time; within [`WORKERS`].
    pub workers: usize,
    /// For one connection to a remote to be made; within [`TIMEOUTS`].
    pub connect_timeout: Duration,
    /// How long a remote may hesitate before the next one is tried beside it; within [`TIMEOUTS`]. `None`: until it has failed.
    pub stagger: Option<Duration>,
    /// Whether a client's request is made to another remote when one fails to answer it, or can't reach its destination.
    pub retry: bool,
    /// What listeners and connections to remotes have beyond plain TCP; not both.
    pub tcp: TcpExtras,
    /// Connections to the remote that are made before clients come, within [`READY`].
    pub ready: usize,
    /// A stream without a byte either way for this long is closed; within [`LIMITS`]. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// A stream with one direction ended and no byte in the other for this long is closed; within [`LIMITS`].
    /// `None`: never.
    pub half_close_timeout: Option<Duration>,
    /// Where the control socket is.
    pub control: ControlPath,
    /// Whether the place is taken of the forwarder that has this control socket, if there is one.
    pub take_over: bool,
    /// How long streams may go on once another process has taken over; within [`LIMITS`]. `None`: as long as they like.
    pub drain_timeout: Option<Duration>,
    /// Where addresses of proxies outlive a restart. `None`: they don't.
    pub state: Option<PathBuf>,
    /// Where Prometheus may ask for metrics. `None`: nowhere.
    pub metrics: Option<ListenAddress>,
    /// Who to be and where, once what only root may do is done.
    pub privileges: Privileges,
    /// Whether the process is confined to what a forwarder does, as far as the kernel can. For a program that does nothing else.
    pub sandbox: bool,
    /// Whether splice(2) may be used, where the system has it.
    pub splice: bool,
    /// Which way connections and probes take.
    pub uplink: Uplink,
}

/// The settings of a server. `ServeSettings::default()` has every default: nobody has to authenticate, and clients get to
/// public addresses only. Needs the feature `server`.
#[cfg(feature = "server")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeSettings {
    /// Where clients connect; never empty.
    pub listen: Vec<ListenAddress>,
    /// Clients that may connect. `None`: loopback and private ranges.
    pub allow: Option<Vec<IpNet>>,
    /// Who may use it. Nobody here and no file: whoever may connect.
    pub users: Vec<User>,
    /// More users, one `name:password` a line.
    pub users_file: Option<PathBuf>,
    /// Where clients may go.
    pub rules: Vec<Rule>,
    /// The proxies that destinations are reached through, each through the one before. Empty: directly.
    pub via: Vec<ProxyUri>,
    /// When clients have their replies, where there are such proxies.
    pub reply_timing: ReplyTiming,
    /// Whether SOCKS4 and 4a are answered, where there are no users.
    pub socks4: bool,
    /// How SOCKS 6 is spoken. `None`: not at all.
    #[cfg(feature = "socks6")]
    pub socks6: Option<Socks6Options>,
    /// How datagrams are carried. `None`: not at all.
    pub udp: Option<UdpOptions>,
    /// UDP associations at the same time from one address, within [`CONNECTIONS`].
    pub max_associations: usize,
    /// If not empty: SOCKS4 and 4a are for these user ids alone, also where there are users.
    pub socks4_users: Vec<UserId>,
    /// Clients at the same time, within [`CONNECTIONS`]. `None`: as many as the descriptor limit allows.
    pub max_connections: Option<usize>,
    /// Clients at the same time from one address, within [`CONNECTIONS`]. `None`: no limit of their own.
    pub max_per_client: Option<usize>,
    /// The most threads that carry bytes at the same time; within [`WORKERS`].
    pub workers: usize,
    /// For a look-up and the connection to a destination; within [`TIMEOUTS`].
    pub connect_timeout: Duration,
    /// For the peer of a BIND to come; within [`TIMEOUTS`]. `None`: BIND is refused.
    pub bind_timeout: Option<Duration>,
    /// For a client to make its request; within [`TIMEOUTS`].
    pub handshake_timeout: Duration,
    /// What listeners and connections to destinations have beyond plain TCP; not both.
    pub tcp: TcpExtras,
    /// As [`Settings::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// As [`Settings::half_close_timeout`].
    pub half_close_timeout: Option<Duration>,
    /// Where the control socket is.
    pub control: ControlPath,
    /// As [`Settings::privileges`].
    pub privileges: Privileges,
    /// As [`Settings::sandbox`].
    pub sandbox: bool,
    /// Whether the place is taken of the server that has this control socket, if there is one.
    pub take_over: bool,
    /// As [`Settings::drain_timeout`].
    pub drain_timeout: Option<Duration>,
    /// Whether splice(2) may be used, where the system has it.
    pub splice: bool,
    /// Which way what goes to destinations or proxies takes.
    pub uplink: Uplink,
}

impl Settings {
    /// Whether nothing is forwarded until somebody says so over the control socket.
    #[must_use]
    pub const fn waits_to_be_told(&self) -> bool {
        matches!(self.mode, Mode::Manual) || (matches!(self.mode, Mode::Automatic) && !self.probing)
    }

    /// Whether peers come from the overlay daemons of this machine, because there is nobody else to choose from.
    #[must_use]
    pub const fn looks_for_daemons(&self) -> bool {
        matches!(self.mode, Mode::Automatic) && self.peers.is_empty() && self.sources.is_empty()
    }
}

#[cfg(feature = "server")]
impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddress::DEFAULT],
            allow: None,
            users: Vec::new(),
            users_file: None,
            rules: Vec::new(),
            via: Vec::new(),
            reply_timing: ReplyTiming::default(),
            socks4: true,
            #[cfg(feature = "socks6")]
            socks6: Some(Socks6Options::default()),
            udp: Some(UdpOptions::default()),
            max_associations: ASSOCIATIONS_PER_CLIENT,
            socks4_users: Vec::new(),
            max_connections: None,
            max_per_client: None,
            workers: DEFAULT_WORKERS,
            connect_timeout: DESTINATION_TIMEOUT,
            bind_timeout: Some(BIND_TIMEOUT),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            tcp: TcpExtras::default(),
            idle_timeout: IDLE_TIMEOUT,
            half_close_timeout: HALF_CLOSE_TIMEOUT,
            control: ControlPath::Default,
            privileges: Privileges::default(),
            sandbox: false,
            take_over: false,
            drain_timeout: DRAIN_TIMEOUT,
            splice: true,
            uplink: Uplink::default(),
        }
    }
}

/// Where the control socket is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ControlPath {
    /// At [`crate::control::path::default_path`].
    #[default]
    Default,
    /// There.
    At(PathBuf),
    /// Nowhere: the forwarder cannot be asked or told anything.
    None,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddress::DEFAULT],
            allow: None,
            remotes: Vec::new(),
            peers: Vec::new(),
            sources: Vec::new(),
            rules: Rules::default(),
            probe_interval: PROBE_INTERVAL,
            probe_rate: PROBE_RATE,
            probe_timeout: PROBE_TIMEOUT,
            probe_target: None,
            probe_socks6: AskSocks6::No,
            probing: true,
            mode: Mode::Automatic,
            on_switch: OnSwitch::Keep,
            fallback: Fallback::Refuse,
            #[cfg(feature = "server")]
            fallback_rules: Vec::new(),
            udp: true,
            #[cfg(feature = "socks6")]
            reply_timing: ReplyTiming::default(),
            max_connections: None,
            max_per_client: None,
            workers: DEFAULT_WORKERS,
            connect_timeout: CONNECT_TIMEOUT,
            stagger: STAGGER,
            retry: true,
            tcp: TcpExtras::default(),
            ready: 0,
            idle_timeout: IDLE_TIMEOUT,
            half_close_timeout: HALF_CLOSE_TIMEOUT,
            control: ControlPath::Default,
            take_over: false,
            drain_timeout: DRAIN_TIMEOUT,
            state: None,
            metrics: None,
            privileges: Privileges::default(),
            sandbox: false,
            splice: true,
            uplink: Uplink::default(),
        }
    }
}

/// A round of probes starts this often.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// Probes a second; see [`TableSettings::rate`](crate::discovery::table::TableSettings::rate) for why so many.
pub const PROBE_RATE: u32 = 20;
/// A probe that took longer has failed.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// A remote that took longer to connect to has failed.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A remote that needs longer for an answer is slow or gone: the way around the world and back takes less. Much the same as
/// browsers give one address before they try another (RFC 8305 §8 has 250 ms).
pub const STAGGER: Option<Duration> = Some(Duration::from_millis(300));
/// A destination that took longer, with its look-up and all of its addresses, has failed.
pub const DESTINATION_TIMEOUT: Duration = Duration::from_secs(10);
/// A BIND whose peer took longer to come has failed. Most proxies wait that long.
pub const BIND_TIMEOUT: Duration = Duration::from_secs(120);
/// A client that took longer to make its request is none.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle streams stay: a parked one costs two descriptors and little else.
pub const IDLE_TIMEOUT: Option<Duration> = None;
/// Half-closed streams that nobody feeds any more are mostly forgotten ones.
pub const HALF_CLOSE_TIMEOUT: Option<Duration> = Some(Duration::from_secs(60));
/// Long enough for a download or a call to end, short enough that an old version does not stay for ever.
pub const DRAIN_TIMEOUT: Option<Duration> = Some(Duration::from_secs(10 * 60));
/// Busy streams share these threads; idle ones need none.
pub const DEFAULT_WORKERS: usize = 64;

/// Shorter intervals than the lower end would be a flood, longer ones than the upper end no discovery.
pub const PROBE_INTERVALS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
/// The upper end is a flood for any network that is not one's own.
pub const PROBE_RATES: RangeInclusive<usize> = 1..=10_000;
/// Of things that somebody waits for.
pub const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(10 * 60);
/// Of silence; the upper end keeps sums of times far from overflow.
pub const LIMITS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(365 * 24 * 60 * 60);
/// The upper end is what one address can have towards one other, and more than a process has descriptors for.
pub const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
/// Each is a descriptor here and one at the remote.
pub const READY: RangeInclusive<usize> = 0..=MOST_READY;
/// Each is a thread with a stack and a buffer, so the upper end is some hundred MiB.
pub const WORKERS: RangeInclusive<usize> = 1..=1024;
