//! Which remote connections go to: connects, follows what discovery and live traffic find out, disconnects.
//!
//! ```text
//!   Idle ──connect ADDR──▶ Explicit: the named remotes in their order
//!    │ ▲
//!    │ └──disconnect─── (from anywhere)
//!    └──a valid peer, or the winner of a race──▶ Automatic: the best valid peer, kept as long as it is good
//! ```

mod choosing;
mod draining;
mod leaving;
mod named;
mod reports;
mod restart;
mod uplink;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use self::choosing::LOOK_FIRST;
use self::draining::Drains;
use self::restart::Restart;
use self::uplink::Way;
use super::explicit::Explicit;
use super::handing_over::{Estate, Open};
use super::runtime::warn_of_exposure;
use super::served::Served;
use super::settings::Settings;
use super::systemd::Notifier;
use super::taking_over::Taken;
use crate::choice::{Mode, OnSwitch};
use crate::control::messages::{Connected, ErrorCode, ErrorObject, LastError};
use crate::control::server::Reply;
use crate::discovery::race::{NoWinner, Race};
use crate::discovery::status::Status;
use crate::discovery::table::SourceId;
use crate::discovery::{Chooser, Discovery};
use crate::engine::{Cx, Next, Shared, Task, TaskId};
use crate::forward::{Choice, Route};
use crate::listen::{Acceptor, BindError, Bound, Intake, Listener, Serve};
use crate::listen_address::ListenAddress;
use crate::net::OwnListeners;
use crate::remote::Remote;
use crate::resolver::Resolver;

/// The state of a running forwarder. Lives on the reactor thread, shared by the tasks that change it.
pub(super) struct Forwarder {
    pub(super) settings: Settings,
    pub(super) discovery: Shared<Discovery>,
    pub(super) route: Route,
    pub(super) intake: Intake,
    pub(super) started: Instant,
    pub(super) mode: Mode,
    pub(super) served: Served,
    last_error: Option<LastError>,
    serve: Serve,
    pub(super) own: Shared<OwnListeners>,
    resolver: Resolver,
    /// The table's source for remotes that were named by hand, so that they are watched like any peer.
    by_hand: SourceId,
    steering: TaskId,
    plan: Plan,
    listeners: Vec<Open>,
    pub(super) metrics: Option<Open>,
    /// Set once another process keeps the state file. Not the keeper itself, which holds this.
    pub(super) retirement: Rc<Cell<bool>>,
    pub(super) estate: Estate,
    /// What another process has handed over, until it is told that it can go.
    pub(super) taken: RefCell<Option<Taken>>,
    race: Option<Race>,
    pending: Option<PendingConnect>,
    drains: Drains,
    answer_seen: Option<Instant>,
    served_seen: Option<Instant>,
    chooser: Chooser,
    /// Why the peer in use was chosen, in automatic mode.
    chosen_because: String,
    /// The addresses of the remote that clients are converted for, as far as others were told of them.
    converted: Vec<SocketAddr>,
    restart: Restart,
    /// Named remotes that turned out to be own listeners, said once.
    looping: Vec<SocketAddr>,
    /// A listener that could not be bound when a peer became valid is tried again then.
    next_bind: Option<Instant>,
    /// With nobody valid yet: when clients need not wait for somebody any more, but are served without a remote.
    first_answers: Option<Instant>,
    /// While nobody is valid: when those that were are asked again.
    next_look: Option<Instant>,
    look_pause: Duration,
    /// Whether it was said that there is nobody who names peers.
    told_of_desertion: bool,
    way: Way,
    notifier: Notifier,
    /// Listeners of the service manager, until they are open.
    passed: Vec<Listener>,
    lasting: Lasting,
}

/// Whether listeners are there for good.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    /// They are bound when there is a remote, and closed by `disconnect`.
    No,
    /// They are the service manager's: closed here they would still take connections, which nobody ever accepts. So they stay
    /// open, and without a remote clients are told that there is none.
    Yes,
}

enum Plan {
    /// Nothing to connect to yet, or disconnected.
    Idle,
    /// The best valid peer.
    Automatic { selected: SocketAddr },
    /// The named remotes.
    Explicit(Explicit),
}

/// A `connect` whose names are being looked up. Until then everything stays as it was.
struct PendingConnect {
    explicit: Explicit,
    drain: Option<Duration>,
    reply: Reply,
}

/// What a forwarder is made of.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) discovery: Shared<Discovery>,
    pub(super) route: Route,
    pub(super) intake: Intake,
    pub(super) serve: Serve,
    pub(super) served: Served,
    pub(super) own: Shared<OwnListeners>,
    pub(super) resolver: Resolver,
    pub(super) by_hand: SourceId,
    pub(super) steering: TaskId,
    pub(super) notifier: Notifier,
    pub(super) passed: Vec<Listener>,
    pub(super) taken: Option<Taken>,
}

impl Forwarder {
    pub(super) fn new(parts: Parts, now: Instant) -> Self {
        Self {
            mode: parts.settings.mode,
            chooser: Chooser::new(parts.settings.probe_interval),
            chosen_because: String::new(),
            served_seen: None,
            settings: parts.settings,
            discovery: parts.discovery,
            route: parts.route,
            intake: parts.intake,
            started: now,
            last_error: None,
            served: parts.served,
            serve: parts.serve,
            own: parts.own,
            resolver: parts.resolver,
            by_hand: parts.by_hand,
            steering: parts.steering,
            plan: Plan::Idle,
            listeners: Vec::new(),
            metrics: None,
            retirement: Rc::default(),
            estate: Estate::default(),
            taken: RefCell::new(parts.taken),
            race: None,
            pending: None,
            drains: Drains::default(),
            answer_seen: None,
            converted: Vec::new(),
            restart: Restart::default(),
            looping: Vec::new(),
            next_bind: None,
            first_answers: None,
            next_look: None,
            look_pause: LOOK_FIRST,
            told_of_desertion: false,
            notifier: parts.notifier,
            lasting: match parts.passed.is_empty() {
                true => Lasting::No,
                false => Lasting::Yes,
            },
            passed: parts.passed,
            way: Way::default(),
        }
    }

    /// The remote that new connections go to first, and how it is shown.
    pub(super) fn remote(&self) -> Option<(Option<SocketAddr>, String)> {
        match &self.plan {
            Plan::Idle => None,
            Plan::Automatic { selected } => Some((Some(*selected), selected.to_string())),
            Plan::Explicit(explicit) if explicit.converted().is_some() => {
                // Without one, all of them are our own listeners.
                let Some(proxy) = self.served.converted_for() else {
                    return Some((None, explicit.first()?.to_string()));
                };
                Some((explicit.address_of(&proxy), proxy.to_string()))
            }
            Plan::Explicit(explicit) => {
                let first = self.route.choice().addresses().next();
                let name = first
                    .and_then(|address| explicit.name_of(address))
                    .or_else(|| explicit.first())?;
                Some((first, name.to_string()))
            }
        }
    }

    /// Why it is that remote, or why there is none.
    pub(super) fn reason(&self) -> String {
        if let Some(missing) = self.missing_way() {
            return format!("{missing}: waiting for it");
        }
        match &self.plan {
            Plan::Idle if self.race.is_some() => "a race is under way".into(),
            Plan::Idle => match self.mode {
                Mode::Automatic if self.next_bind.is_some() => {
                    "a peer is valid, but the listener cannot be bound".into()
                }
                Mode::Automatic if self.discovery.borrow().is_deserted() => DESERTED.into(),
                Mode::Automatic => self.nobody_yet(),
                Mode::Explicit | Mode::Manual => "waiting for `sockhop connect`".into(),
            },
            Plan::Automatic { selected } if self.restart.is_unproved(*selected) => {
                "the last good one before the start, not probed yet".into()
            }
            Plan::Automatic { selected } => {
                let discovery = self.discovery.borrow();
                match discovery.table.get(*selected, Instant::now()) {
                    _ if discovery.table.link_down() => {
                        "the last good one: nobody answers, so our own link may be down".into()
                    }
                    Some(row) if row.status == Status::Valid => format!("valid: {}", row.reason),
                    Some(row) => format!(
                        "the last good one: {} ({}), and no other is valid",
                        row.status, row.reason
                    ),
                    None => "the last good one, and no other is valid".into(),
                }
            }
            Plan::Explicit(explicit) => match explicit.error() {
                Some((name, error)) => format!("named by hand; {name}: {error}"),
                None if explicit.converted().is_some() => {
                    let first = explicit.first().and_then(Remote::proxy);
                    let others = match self.served.converted_for() {
                        used if used.as_ref() == first => "",
                        _ => "; those named before it do not work",
                    };
                    format!("named by hand; SOCKS 4 and 5 are converted to SOCKS 6{others}")
                }
                None => "named by hand".into(),
            },
        }
    }

    /// Tells the service manager what is forwarded where.
    pub(super) fn tell_manager(&self) {
        self.notifier.status(|| match self.remote() {
            Some((_, remote)) => {
                let listening = self.listening().join(", ");
                format!("forwarding {listening} to {remote} ({})", self.reason())
            }
            None => format!("no remote ({})", self.reason()),
        });
    }

    fn nobody_yet(&self) -> String {
        let discovery = self.discovery.borrow();
        let left_out: usize = discovery.sources().iter().map(|one| one.left_out).sum();
        if discovery.table.is_empty() && left_out > 0 {
            return format!("--only and --never leave out all peers, {left_out}");
        }
        "no peer has been found valid yet".into()
    }

    pub(super) fn listening(&self) -> Vec<String> {
        self.listeners
            .iter()
            .map(|(listener, _)| listener.bound().to_string())
            .collect()
    }

    pub(super) fn note_error(&mut self, what: String) {
        self.last_error = Some(last_error(SystemTime::now(), what));
    }

    /// The last error, of whatever part.
    pub(super) fn last_error(&self) -> Option<LastError> {
        let converting = self.served.last_trouble();
        let converting = converting.map(|(at, what)| last_error(at, what));
        // The text of a time sorts as the time does.
        let both = converting.into_iter().chain(self.last_error.clone());
        both.max_by(|one, other| one.at.cmp(&other.at))
    }

    /// Connects to the remotes of the settings, at the start, or to the first of those that were good before it.
    pub(super) fn start(
        &mut self,
        remembered: &[SocketAddr],
        cx: &mut Cx<'_>,
    ) -> Result<(), BindError> {
        match self.settings.mode {
            _ if self.taken.borrow().is_some() => self.go_on_as_taken(remembered, cx)?,
            Mode::Explicit => {
                self.listen(cx)?;
                let explicit = self.explicit(self.settings.remotes.clone(), cx.now);
                self.take_explicit(explicit, cx);
            }
            // Better now than in an hour, when the first peer turns up: whether the listeners can be bound at all.
            Mode::Automatic => {
                let goes_on = self.go_on_with(remembered, cx)?;
                let is_open = self.served.serves_without_remote() || self.lasting == Lasting::Yes;
                match (goes_on, is_open) {
                    (true, _) => {}
                    (false, true) => self.await_first_answers(cx)?,
                    (false, false) => drop(self.bind_all()?),
                }
            }
            Mode::Manual if self.lasting == Lasting::Yes => {
                self.served.offer_without_remote(false);
                self.listen(cx)?;
            }
            Mode::Manual => {}
        }
        warn_of_exposure(&self.settings.listen, self.settings.allow.as_deref());
        Ok(())
    }

    fn explicit(&self, remotes: Vec<Remote>, now: Instant) -> Explicit {
        Explicit::new(remotes, self.resolver.clone(), now)
    }

    /// The listeners of the service manager, or of the settings: those that another process has handed over, and the others bound anew.
    fn bind_all(&mut self) -> Result<Vec<Listener>, BindError> {
        if self.lasting == Lasting::Yes {
            return Ok(std::mem::take(&mut self.passed));
        }
        let tcp = self.settings.tcp;
        let bind = |address| {
            let mut taken = self.taken.borrow_mut();
            match taken.as_mut().and_then(|taken| taken.listener(address)) {
                Some(listener) => Ok(listener),
                None => Listener::bind_with(address, tcp),
            }
        };
        self.settings.listen.iter().map(bind).collect()
    }

    /// Opens the listeners unless they are open.
    fn listen(&mut self, cx: &mut Cx<'_>) -> Result<(), BindError> {
        if !self.listeners.is_empty() || self.is_handed_over() {
            return Ok(());
        }
        for listener in self.bind_all()? {
            let listener = Rc::new(listener);
            let bound = listener.bound();
            if let Bound::Tcp(address) = bound {
                self.own.borrow_mut().insert(*address);
            }
            log::info!("listening on {bound}");
            let (intake, serve) = (self.intake.clone(), Serve::clone(&self.serve));
            let acceptor = Acceptor::new(Rc::clone(&listener), intake, serve);
            self.listeners
                .push((listener, cx.spawn(Box::new(acceptor))));
        }
        self.next_bind = None;
        Ok(())
    }

    /// `connect ADDRESS`: used as told, not probed first. Everything stays as it was until its name is looked up.
    pub(super) fn connect_to(
        &mut self,
        remote: Remote,
        drain: Option<Duration>,
        reply: Reply,
        cx: &mut Cx<'_>,
    ) {
        self.cancel_connect(cx);
        self.connect_in_order(vec![remote], drain, reply, cx);
    }

    /// `connect`: a race of the valid peers, or the remotes of the command line.
    pub(super) fn connect_best(
        &mut self,
        this: &Shared<Self>,
        drain: Option<Duration>,
        reply: Reply,
        cx: &mut Cx<'_>,
    ) {
        self.cancel_connect(cx);
        if !self.settings.remotes.is_empty() {
            return self.connect_in_order(self.settings.remotes.clone(), drain, reply, cx);
        }
        let (first, rest) = self.racers(cx.now);
        self.race(first, rest, this, (drain, reply), cx);
    }

    /// Those of the best place in the order of preference that has valid peers, and the others.
    fn racers(&self, now: Instant) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let discovery = self.discovery.borrow();
        let place = |peer: &SocketAddr| {
            let row = discovery.table.get(*peer, now);
            row.and_then(|row| row.preferred).unwrap_or(u32::MAX)
        };
        let peers: Vec<SocketAddr> = discovery.table.valid_best_first().collect();
        let best = peers.iter().map(place).min();
        peers
            .into_iter()
            .partition(|peer| Some(place(peer)) == best)
    }

    /// Races these, and if none of them answers, the rest.
    fn race(
        &mut self,
        peers: Vec<SocketAddr>,
        rest: Vec<SocketAddr>,
        this: &Shared<Self>,
        (drain, reply): (Option<Duration>, Reply),
        cx: &mut Cx<'_>,
    ) {
        let this = Shared::clone(this);
        let on_winner = Box::new(
            move |cx: &mut Cx<'_>, result: Result<SocketAddr, NoWinner>| {
                let mut forwarder = this.borrow_mut();
                forwarder.race = None;
                if result.is_err() && !rest.is_empty() {
                    return forwarder.race(rest, Vec::new(), &this, (drain, reply), cx);
                }
                reply.send(match result {
                    Ok(winner) => forwarder.connect_automatic(winner, drain, cx),
                    Err(error) => {
                        log::warn!("connect: {error}");
                        forwarder.note_error(error.to_string());
                        Err(
                            ErrorObject::new(ErrorCode::NoValidProxy, "no valid proxy available")
                                .with_reason(error.to_string())
                                .with_hint("`sockhop proxies` shows what each peer is"),
                        )
                    }
                });
            },
        );
        self.race = Some(Race::start(&self.discovery, peers, on_winner, cx));
    }

    fn connect_in_order(
        &mut self,
        remotes: Vec<Remote>,
        drain: Option<Duration>,
        reply: Reply,
        cx: &mut Cx<'_>,
    ) {
        let explicit = self.explicit(remotes, cx.now);
        self.pending = Some(PendingConnect {
            explicit,
            drain,
            reply,
        });
        cx.wake(self.steering);
    }

    fn cancel_connect(&mut self, cx: &mut Cx<'_>) {
        self.pending = None;
        if let Some(race) = self.race.take() {
            race.cancel(cx);
        }
    }

    fn connect_automatic(
        &mut self,
        winner: SocketAddr,
        drain: Option<Duration>,
        cx: &mut Cx<'_>,
    ) -> Result<Connected, ErrorObject> {
        self.listen(cx).map_err(|error| cannot_listen(&error))?;
        self.served.offer_without_remote(true);
        self.mode = Mode::Automatic;
        self.select(winner, "won the race", cx);
        Ok(self.connected(winner.to_string(), drain, cx))
    }

    fn connected(&mut self, remote: String, drain: Option<Duration>, cx: &mut Cx<'_>) -> Connected {
        Connected {
            remote,
            draining: drain.map_or(0, |after| self.drain(after, cx)),
            listening: self.listening(),
        }
    }

    /// `disconnect`: no listener, no stream, no remote. How many streams were cut.
    pub(super) fn disconnect(&mut self, cx: &mut Cx<'_>) -> u64 {
        self.cancel_connect(cx);
        let streams = self.intake.limits.active() as u64;
        let closed = match self.lasting {
            Lasting::No => std::mem::take(&mut self.listeners),
            Lasting::Yes => Vec::new(),
        };
        self.served.offer_without_remote(false);
        for (listener, acceptor) in closed {
            // While it is being handed over another process has it too.
            cx.unwatch(listener.socket().as_fd());
            cx.cancel(acceptor);
            // Those of the settings stay ours, since connecting opens them again; a port that the system chose does not.
            if let Bound::Tcp(address) = listener.bound()
                && !self.settings.listen.contains(&ListenAddress::Tcp(*address))
            {
                self.own.borrow_mut().remove(*address);
            }
        }
        self.stop_converting();
        self.drains.clear();
        self.route.close();
        self.plan = Plan::Idle;
        self.mode = Mode::Manual;
        self.next_bind = None;
        self.watch_by_hand(Vec::new(), Vec::new(), cx);
        self.discovery.borrow_mut().table.set_selected(None, cx.now);
        cx.wake(self.steering);
        log::info!("disconnected, {streams} streams cut");
        streams
    }

    /// Sends new connections along a choice, in one step. Live ones stay or are cut, as the settings say.
    fn switch(&self, choice: Choice) {
        self.route.set(choice);
        if self.settings.on_switch == OnSwitch::Cut {
            self.route.cut_older();
        }
    }

    /// Says that there is nobody who names peers. That is no reason to end: on a router the overlay's daemon may start later.
    fn tell_of_desertion(&mut self) {
        let deserted = self.discovery.borrow().is_deserted();
        if deserted && !self.told_of_desertion {
            log::warn!("{DESERTED}, looking again every few seconds; {NAME_SOMEBODY}");
            self.note_error(DESERTED.to_owned());
        }
        self.told_of_desertion = deserted;
    }
}

fn last_error(at: SystemTime, what: String) -> LastError {
    let at = humantime::format_rfc3339_seconds(at).to_string();
    LastError { at, what }
}

fn cannot_listen(error: &BindError) -> ErrorObject {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    let object = ErrorObject::new(ErrorCode::CannotListen, error.to_string()).with_reason(cause);
    match error.hint() {
        Some(hint) => object.with_hint(hint),
        None => object,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The task that steers: it runs when the table changed, a session reported, or a look-up ended.
pub(super) struct Steering {
    pub(super) forwarder: Shared<Forwarder>,
}

impl Task for Steering {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let mut forwarder = self.forwarder.borrow_mut();
        forwarder.take_reports(cx);
        if forwarder.is_handed_over() {
            forwarder.advance_drains(cx.now);
            return Next::Wait(forwarder.drains.next());
        }
        forwarder.tell_of_desertion();
        let mut next = forwarder.advance_pending(cx);
        if let Plan::Explicit(explicit) = &mut forwarder.plan {
            next = next.into_iter().chain(explicit.advance(cx)).min();
            forwarder.apply_explicit(cx);
        }
        forwarder.follow_table(cx);
        forwarder.end_first_wait(cx.now);
        forwarder.advance_restart(cx.now);
        forwarder.advance_drains(cx.now);
        forwarder.tell_manager();
        let next_way = forwarder.watch_the_way(cx);
        let tick = cx.now + forwarder.settings.probe_interval / 4;
        Next::Wait(
            next.into_iter()
                .chain(next_way)
                .chain(forwarder.next_bind)
                .chain(forwarder.next_look)
                .chain(forwarder.first_answers.map(|_| cx.now + FIRST_LOOKS))
                .chain(forwarder.restart.next())
                .chain(forwarder.drains.next())
                .chain(forwarder.chooser.next())
                .chain([tick])
                .min(),
        )
    }
}

/// How often it is looked whether they have all been asked: not all of their answers wake somebody.
const FIRST_LOOKS: Duration = Duration::from_millis(100);

const DESERTED: &str = "nobody to forward to yet: no overlay daemon (Mycelium, Yggdrasil, Tailscale) answers on this machine";

const NAME_SOMEBODY: &str = "to use others give a proxy with --remote ADDR, or peers to choose from with --peer ADDR or --peers SOURCE";
