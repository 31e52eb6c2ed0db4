//! Building a forwarder out of its settings, and running it.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::unbounded;

use super::forwarder::{Forwarder, Parts, Steering};
use super::requests;
use super::settings::{ControlPath, Settings};
use crate::control::path::default_path;
use crate::control::server::{ControlServer, ControlSocket, ControlSocketError};
use crate::discovery::probe::ProbeSettings;
use crate::discovery::source::Source;
use crate::discovery::source::exec::ExecSource;
use crate::discovery::source::file::FileSource;
use crate::discovery::source::fixed::FixedSource;
use crate::discovery::source::lines::PeerName;
use crate::discovery::table::{SourceId, TableSettings};
use crate::discovery::{Discovery, Prober};
use crate::engine::{Cx, Mailbox, Next, Reactor, Shared, Signal, Signals, Task, TaskId};
use crate::forward::{ForwardSession, ForwardSettings, Route};
use crate::listen::{Admission, BindError, Intake, IntakeStats, Limits, Serve};
use crate::listen_address::ListenAddress;
use crate::net::{DescriptorBudget, OwnListeners, raise_descriptor_limit};
use crate::relay::{Pipes, RelaySettings};
use crate::resolver::Resolver;
use crate::source_spec::SourceSpec;
use crate::target::{Host, HostPort, SOCKS_PORT};
use crate::wire::Address;

/// A forwarder that can be run.
pub struct Daemon {
    reactor: Reactor,
    failure: Rc<RefCell<Option<StartError>>>,
}

impl Daemon {
    /// Takes what it needs of the system; the limit of open descriptors is raised.
    ///
    /// # Errors
    /// The control socket is in use, or the system refuses something.
    pub fn new(settings: Settings) -> Result<Self, StartError> {
        let budget = DescriptorBudget::share(raise_descriptor_limit());
        // First, while there is one thread: binding it sets the process's umask for a moment.
        let control = bind_control(&settings.control)?;
        let mut reactor = Reactor::new(settings.workers).map_err(StartError::System)?;
        // Tasks refer to each other by their numbers, so all are built by one that runs on the reactor.
        let failure = Rc::new(RefCell::new(None));
        let build = Build {
            parts: Some((settings, budget, control)),
            failure: Rc::clone(&failure),
        };
        reactor.spawn(Box::new(build));
        Ok(Self { reactor, failure })
    }

    /// Stops it from any thread: [`Mailbox::stop`].
    #[must_use]
    pub fn mailbox(&self) -> Mailbox {
        self.reactor.mailbox()
    }

    /// Runs until SIGTERM, SIGINT or [`Mailbox::stop`].
    ///
    /// # Errors
    /// What keeps it from starting. Once it runs, it goes on whatever happens.
    pub fn run(self) -> Result<(), StartError> {
        self.reactor.run().map_err(StartError::System)?;
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// Why a forwarder could not start.
#[derive(Debug)]
pub enum StartError {
    /// A listener could not be bound.
    Bind(BindError),
    /// The control socket could not be bound.
    Control(ControlSocketError),
    /// A source of peers could not be started.
    Source(String, io::Error),
    /// The system gave no epoll instance, thread or descriptor.
    System(io::Error),
}

impl StartError {
    /// What to do about it, when that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Bind(error) => error.hint(),
            Self::Control(error) => Some(error.hint()),
            Self::Source(..) | Self::System(_) => None,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Control(error) => error.fmt(f),
            Self::Source(name, _) => write!(f, "cannot start the source {name}"),
            Self::System(_) => f.write_str("cannot start"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Bind(error) => error.source(),
            Self::Control(error) => error.source(),
            Self::Source(_, error) | Self::System(error) => Some(error),
        }
    }
}

/// A default path that can't be used (no such folder, not ours) costs the control socket only; one that was given is
/// meant.
fn bind_control(path: &ControlPath) -> Result<Option<ControlSocket>, StartError> {
    match path {
        ControlPath::None => Ok(None),
        ControlPath::At(path) => ControlSocket::bind(path)
            .map(Some)
            .map_err(StartError::Control),
        ControlPath::Default => match ControlSocket::bind(&default_path()) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.is_unusable_path() => {
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                log::warn!(
                    "{error}: {cause}; going on without one, choose another path with --control"
                );
                Ok(None)
            }
            Err(error) => Err(StartError::Control(error)),
        },
    }
}

/// The first task: builds the others and ends.
struct Build {
    parts: Option<(Settings, DescriptorBudget, Option<ControlSocket>)>,
    failure: Rc<RefCell<Option<StartError>>>,
}

impl Task for Build {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if let Some((settings, budget, control)) = self.parts.take()
            && let Err(error) = build(settings, budget, control, cx)
        {
            *self.failure.borrow_mut() = Some(error);
            cx.stop();
        }
        Next::Done
    }
}

fn build(
    settings: Settings,
    budget: DescriptorBudget,
    control: Option<ControlSocket>,
    cx: &mut Cx<'_>,
) -> Result<(), StartError> {
    let resolver = Resolver::default();
    let own = Shared::new(RefCell::new(OwnListeners::new()));
    for address in &settings.listen {
        if let ListenAddress::Tcp(address) = address
            && address.port() != 0
        {
            own.borrow_mut().insert(*address);
        }
    }

    let discovery = Shared::new(RefCell::new(discovery(&settings, budget, &own, cx)));
    let prober = cx.spawn(Box::new(Prober::new(Shared::clone(&discovery))));
    let by_hand = add_sources(&settings, &discovery, &resolver, prober, cx)?;

    let steering = cx.reserve();
    let (report, reports) = unbounded();
    let route = Route::new(report, cx.mailbox(), steering);
    let forwarder = Forwarder::new(
        Parts {
            intake: intake(&settings, budget, &discovery, cx),
            serve: serve(&settings, budget, &route),
            settings,
            discovery: Shared::clone(&discovery),
            route,
            own,
            resolver,
            by_hand,
            steering,
            reports,
        },
        cx.now,
    );
    let forwarder = Shared::new(RefCell::new(forwarder));
    discovery.borrow_mut().set_observer(steering);
    cx.place(
        steering,
        Box::new(Steering {
            forwarder: Shared::clone(&forwarder),
        }),
    );

    let reload = Shared::clone(&discovery);
    let signals = Signals::catch(move |signal, cx| match signal {
        Signal::Stop => {
            log::info!("told to end");
            cx.stop();
        }
        Signal::Reload => {
            log::info!("told to read the peers again");
            reload.borrow().refresh_sources();
        }
    });
    cx.spawn(Box::new(signals.map_err(StartError::System)?));

    forwarder.borrow_mut().start(cx).map_err(StartError::Bind)?;
    if forwarder.borrow().settings.probing {
        discovery.borrow_mut().start(cx);
    }
    // Last, so that whoever can talk to it talks to something that works.
    if let Some(socket) = control {
        let handler = Rc::new(move |call, reply, cx: &mut Cx<'_>| {
            requests::handle(&forwarder, call, reply, cx)
        });
        cx.spawn(Box::new(ControlServer::new(socket, handler)));
    }
    Ok(())
}

fn discovery(
    settings: &Settings,
    budget: DescriptorBudget,
    own: &Shared<OwnListeners>,
    cx: &Cx<'_>,
) -> Discovery {
    let table = TableSettings {
        interval: settings.probe_interval,
        seed: fastrand::u64(..),
        ..TableSettings::default()
    };
    let probe = ProbeSettings {
        timeout: settings.probe_timeout,
        target: settings
            .probe_target
            .as_ref()
            .and_then(|target| target.to_string().parse::<Address>().ok()),
    };
    let own = Shared::clone(own);
    let is_own = Box::new(move |address: SocketAddr| own.borrow().is_own(address));
    Discovery::new(table, probe, budget.probes, is_own, cx.now)
}

/// Starts the sources of the settings; returns the one for remotes named by hand.
fn add_sources(
    settings: &Settings,
    discovery: &Shared<Discovery>,
    resolver: &Resolver,
    prober: TaskId,
    cx: &Cx<'_>,
) -> Result<SourceId, StartError> {
    let mut discovery = discovery.borrow_mut();
    let too_many =
        |name: &str| StartError::Source(name.to_owned(), io::Error::other("too many sources"));
    let by_hand = discovery
        .add_fixed("remote")
        .ok_or_else(|| too_many("remote"))?;
    let mut threads: Vec<Box<dyn Source>> = Vec::new();
    if !settings.peers.is_empty() {
        let peers = settings
            .peers
            .iter()
            .map(|HostPort { host, port }| match host {
                Host::Ip(ip) => PeerName::Ip(SocketAddr::new(*ip, *port)),
                Host::Name(name) => PeerName::Name(name.clone(), *port),
            });
        let fixed = FixedSource::new("flag", peers, resolver.clone());
        if fixed.has_names() {
            threads.push(Box::new(fixed));
        } else {
            let id = discovery
                .add_fixed("flag")
                .ok_or_else(|| too_many("flag"))?;
            discovery
                .table
                .set_source(id, fixed.addresses().iter().copied(), cx.now);
        }
    }
    for source in &settings.sources {
        threads.push(match source {
            SourceSpec::File(path) => Box::new(FileSource::new(path, SOCKS_PORT, resolver.clone())),
            SourceSpec::Exec(command) => {
                Box::new(ExecSource::new(command, SOCKS_PORT, resolver.clone()))
            }
        });
    }
    for source in threads {
        let name = source.name().to_owned();
        discovery
            .add_source(source, cx.mailbox(), prober)
            .map_err(|error| StartError::Source(name, error))?;
    }
    Ok(by_hand)
}

fn intake(
    settings: &Settings,
    budget: DescriptorBudget,
    discovery: &Shared<Discovery>,
    cx: &Cx<'_>,
) -> Intake {
    let most = match settings.max_connections {
        Some(most) if most > budget.connections => {
            log::warn!(
                "--max-connections {most} needs more descriptors than the system allows: {} it is (`ulimit -n`)",
                budget.connections
            );
            budget.connections
        }
        Some(most) => most,
        None => budget.connections,
    };
    let peers = Shared::clone(discovery);
    Intake {
        admission: Rc::new(Admission::new(settings.allow.clone())),
        is_peer: Rc::new(move |ip| peers.borrow().table.has_ip(ip)),
        limits: Limits::new(most, settings.max_per_client, cx.mailbox()),
        stats: Rc::new(RefCell::new(IntakeStats::default())),
    }
}

fn serve(settings: &Settings, budget: DescriptorBudget, route: &Route) -> Serve {
    let relay = RelaySettings {
        idle: settings.idle_timeout,
        half_closed_idle: settings.half_close_timeout,
        pipes: Pipes::new(if settings.splice { budget.pipes } else { 0 }),
    };
    let forward = Arc::new(ForwardSettings {
        connect_timeout: settings.connect_timeout,
        relay: Arc::new(relay),
    });
    let route = route.clone();
    Rc::new(move |client| {
        Box::new(ForwardSession::new(
            client,
            route.clone(),
            Arc::clone(&forward),
            Instant::now(),
        ))
    })
}
