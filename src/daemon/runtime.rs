//! What every daemon is run by: a reactor, the control socket, limits, and how it starts.

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::confinement::Confinement;
#[cfg(feature = "server")]
use super::server;
#[cfg(feature = "server")]
use super::settings::ServeSettings;
use super::settings::{ControlPath, Settings};
use super::start;
use super::start_error::StartError;
use super::systemd::{Notifier, Passed};
use super::taking_over::Taken;
use crate::control::messages::Role;
use crate::control::path::default_path;
use crate::control::server::ControlSocket;
use crate::engine::{Cx, Mailbox, Next, Reactor, Signal, Signals, Task};
use crate::listen::{Bound, Limits, Listener};
use crate::listen_address::ListenAddress;
use crate::logger::STATUS_TARGET;
use crate::net::{DescriptorBudget, MemoryBudget, OwnListeners, Uplink, raise_descriptor_limit};
use crate::relay::{Kept, Pipes, RelaySettings};
use crate::target::SOCKS_PORT;

/// A forwarder or a server that can be run.
pub struct Daemon {
    reactor: Reactor,
    failure: Failure,
    at_end: AtEnd,
}

/// What is done when the reactor has ended, if anything.
pub(super) type AtEnd = Rc<RefCell<Option<Box<dyn FnOnce()>>>>;

/// What a daemon is built with.
pub(super) struct Means {
    pub(super) budget: DescriptorBudget,
    pub(super) memory: MemoryBudget,
    pub(super) control: Option<ControlSocket>,
    pub(super) signals: Signals,
    pub(super) notifier: Notifier,
    /// If not empty: where clients connect, whatever the settings say.
    pub(super) passed: Vec<Listener>,
    pub(super) at_end: AtEnd,
    /// What another process has handed over.
    pub(super) taken: Option<Taken>,
    pub(super) failure: Failure,
}

/// What keeps a daemon from starting.
pub(super) type Failure = Rc<RefCell<Option<StartError>>>;

impl Daemon {
    /// A forwarder. Takes what it needs of the system; the limit of open descriptors is raised. What is to be given up is given
    /// up here: by this thread and those that it starts, for good.
    ///
    /// # Errors
    /// The control socket is in use, or the system refuses something.
    pub fn new(settings: Settings) -> Result<Self, StartError> {
        let (workers, control) = (settings.workers, settings.control.clone());
        let wants_place = settings.take_over.then_some(None);
        check_uplink(&settings.uplink)?;
        let need = match settings.waits_to_be_told() {
            true => Need::Must,
            false => Need::May,
        };
        let confinement = Confinement::of_forwarder(&settings);
        Self::with(
            workers,
            (&control, need),
            wants_place,
            confinement,
            Box::new(move |means, cx| start::build(settings, means, cx)),
        )
    }

    /// A server, in the same way. Needs the feature `server`.
    ///
    /// # Errors
    /// As [`Daemon::new`].
    #[cfg(feature = "server")]
    pub fn server(settings: ServeSettings) -> Result<Self, StartError> {
        let (workers, control) = (settings.workers, settings.control.clone());
        let wants_place = settings.take_over.then_some(Some(Role::Server));
        check_uplink(&settings.uplink)?;
        let confinement = Confinement::of_server(&settings);
        Self::with(
            workers,
            (&control, Need::May),
            wants_place,
            confinement,
            Box::new(move |means, cx| server::build(settings, means, cx)),
        )
    }

    /// `wants_place`: to take the place of a process with this role.
    fn with(
        workers: usize,
        (control, need): (&ControlPath, Need),
        wants_place: Option<Option<Role>>,
        confinement: Confinement,
        build: BuildWith,
    ) -> Result<Self, StartError> {
        // Before anything that takes its time: a signal that is not caught yet ends the program.
        let signals = Signals::catch().map_err(StartError::System)?;
        let passed = Passed::from_env().map_err(StartError::Passed)?;
        let taken = wants_place
            .map(|role| take_over(control, role))
            .transpose()?;
        let mut taken = taken.flatten();
        let notifier = Notifier::from_env();
        let budget = DescriptorBudget::share(raise_descriptor_limit());
        let memory = MemoryBudget::of_this_process();
        // While there is one thread: binding it sets the process's umask for a moment.
        let taken_control = taken.as_mut().map(Taken::control).transpose()?.flatten();
        let control = match passed.control.or(taken_control) {
            Some(socket) => Some(socket),
            None => bind_control(control, need)?,
        };
        confinement.enter(control.as_ref())?;
        let mut reactor = Reactor::new(workers.min(memory.workers)).map_err(StartError::System)?;
        // Tasks refer to each other by their numbers, so all are built by one that runs on the reactor.
        let failure = Failure::default();
        let at_end = AtEnd::default();
        let means = Means {
            budget,
            memory,
            control,
            signals,
            notifier: notifier.clone(),
            passed: passed.listeners,
            at_end: Rc::clone(&at_end),
            taken,
            failure: Rc::clone(&failure),
        };
        let build = Build {
            build: Some(Box::new(move |cx| build(means, cx))),
            notifier,
            failure: Rc::clone(&failure),
        };
        reactor.spawn(Box::new(build));
        reactor.spawn(Box::new(TellHeld));
        Ok(Self {
            reactor,
            failure,
            at_end,
        })
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
        let result = self.reactor.run().map_err(StartError::System);
        if let Some(at_end) = self.at_end.take() {
            at_end();
        }
        result?;
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// What is not there may come: lines are dialled, and a router's programs start before they are. What is not permitted stays so.
fn check_uplink(uplink: &Uplink) -> Result<(), StartError> {
    match uplink.check() {
        Err(error) if !error.is_absence() => Err(StartError::Uplink(error)),
        Err(error) => {
            log::warn!("{error}: connections fail until it is there");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Asks the process that has this control socket for its place.
fn take_over(path: &ControlPath, role: Option<Role>) -> Result<Option<Taken>, StartError> {
    match path {
        ControlPath::None => Ok(None),
        ControlPath::At(path) => Taken::ask(path, role),
        ControlPath::Default => Taken::ask(&default_path(), role),
    }
}

/// Whether a program is of use that nobody can tell anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    May,
    Must,
}

/// A default path that can't be used (no such folder, not ours, full) costs the control socket only, where the program is of use
/// without; one that was given is meant.
fn bind_control(path: &ControlPath, need: Need) -> Result<Option<ControlSocket>, StartError> {
    match path {
        ControlPath::None => Ok(None),
        ControlPath::At(path) => ControlSocket::bind(path)
            .map(Some)
            .map_err(StartError::Control),
        ControlPath::Default => match ControlSocket::bind(&default_path()) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if need == Need::May && error.is_unusable_path() => {
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
    build: Option<BuildOthers>,
    notifier: Notifier,
    failure: Failure,
}

type BuildWith = Box<dyn FnOnce(Means, &mut Cx<'_>) -> Result<(), StartError>>;
type BuildOthers = Box<dyn FnOnce(&mut Cx<'_>) -> Result<(), StartError>>;

impl Task for Build {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let Some(build) = self.build.take() else {
            return Next::Done;
        };
        match build(cx) {
            Ok(()) => {
                self.notifier.start(cx);
                self.notifier.ready();
            }
            Err(error) => {
                *self.failure.borrow_mut() = Some(error);
                cx.stop();
            }
        }
        Next::Done
    }
}

/// Ends on SIGTERM and SIGINT; `reload` is for SIGHUP, and SIGUSR1 has each of the lines of `status` logged.
pub(super) fn act_on_signals(
    signals: Signals,
    notifier: Notifier,
    cx: &mut Cx<'_>,
    mut reload: impl FnMut() + 'static,
    mut status: impl FnMut(&Cx<'_>) -> Vec<String> + 'static,
) {
    cx.spawn(signals.acting(move |signal, cx| match signal {
        Signal::Stop => {
            log::info!("told to end");
            notifier.stopping();
            cx.stop();
        }
        Signal::Reload => {
            notifier.reloading();
            reload();
            notifier.ready();
        }
        Signal::Tell => {
            for line in status(cx) {
                log::info!(target: STATUS_TARGET, "status: {line}");
            }
        }
    }));
}

/// Has lines of the log told of that were too many to be shown.
struct TellHeld;

impl Task for TellHeld {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        log::logger().flush();
        Next::Wait(Some(cx.now + TELL_HELD))
    }
}

/// The limit is one of lines a minute.
const TELL_HELD: Duration = Duration::from_secs(60);

/// The limits that were asked for, as far as descriptors allow; without a word, as far as memory allows too.
pub(super) fn limits(
    max_connections: Option<usize>,
    max_per_client: Option<usize>,
    budget: DescriptorBudget,
    memory: MemoryBudget,
    cx: &Cx<'_>,
) -> Limits {
    let most = match max_connections {
        Some(most) if most > budget.connections => {
            log::warn!(
                "--max-connections {most} needs more descriptors than the system allows: {} it is (`ulimit -n`)",
                budget.connections
            );
            budget.connections
        }
        Some(most) => most,
        None => budget.connections.min(memory.connections),
    };
    let fit = memory.connections;
    if let Some(total) = memory.total
        && fit < budget.connections
    {
        let mib = total >> 20;
        if most > fit {
            log::warn!("{most} connections may need more than the {mib} MiB of memory: {fit} fit");
        } else {
            log::info!("{mib} MiB of memory: at most {most} connections");
        }
    }
    Limits::new(most, max_per_client, cx.mailbox()).with_places(budget.connections)
}

/// How bytes are carried: these limits on silence, and pipes as far as descriptors and memory allow, unless splice(2) is not
/// wanted.
pub(super) fn relay_settings(
    idle: Option<Duration>,
    half_closed_idle: Option<Duration>,
    splice: bool,
    budget: DescriptorBudget,
    memory: MemoryBudget,
) -> Arc<RelaySettings> {
    let pipes = budget.pipes.min(memory.pipes);
    Arc::new(RelaySettings {
        idle,
        half_closed_idle,
        pipes: Pipes::new(if splice { pipes } else { 0 }),
        kept: Kept::with_room(memory.kept),
    })
}

/// Where these listeners are, as an option would name it.
pub(super) fn addresses(listeners: &[Listener]) -> Vec<ListenAddress> {
    let bound = listeners.iter().map(Listener::bound);
    bound
        .map(|bound| match bound {
            Bound::Tcp(address) => ListenAddress::Tcp(*address),
            Bound::Unix(path) => ListenAddress::Unix(path.clone()),
        })
        .collect()
}

/// The listeners whose port is known before they are bound.
pub(super) fn own_listeners(listen: &[ListenAddress]) -> OwnListeners {
    listen
        .iter()
        .filter_map(|address| match address {
            ListenAddress::Tcp(address) if address.port() != 0 => Some(*address),
            _ => None,
        })
        .collect()
}

/// Said once, at the start: what others can reach should be meant to be.
pub(super) fn warn_of_exposure(listen: &[ListenAddress], allow: Option<&[IpNet]>) {
    let who = match allow {
        None => "clients in private ranges may connect (--allow)".to_owned(),
        Some([]) => return,
        Some(allowed) => {
            let ranges: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            format!("clients in {} may connect", ranges.join(", "))
        }
    };
    for address in listen {
        if address.is_exposed() {
            log::warn!(
                "other machines can reach {address}: {who}; --listen 127.0.0.1:{SOCKS_PORT} is for this machine alone"
            );
        }
    }
}
