//! Building a server out of its settings, and what the control socket tells about it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::seconds;
use super::confinement;
use super::handing_over::{Estate, Open};
use super::runtime::{
    Means, act_on_signals, addresses, limits, own_listeners, relay_settings, warn_of_exposure,
};
use super::settings::ServeSettings;
use super::start_error::StartError;
use super::status_lines;
use super::taking_over::serve_control;
use crate::choice::Mode;
use crate::control::messages::{
    ByName, Bytes, Call, Connections, ErrorCode, ErrorObject, HandOver, Role, ServerStatus,
    UserStatus,
};
use crate::control::server::Reply;
use crate::engine::Cx;
use crate::handshake::Socks4;
use crate::listen::{Acceptor, Admission, Bound, Intake, IntakeStats, Limits, Listener, Serve};
use crate::resolver::Resolver;
use crate::server::association::UdpSettings;
use crate::server::rules::Rules;
#[cfg(feature = "socks6")]
use crate::server::socks6::Socks6;
use crate::server::users::Users;
use crate::server::{ServerSession, ServerSettings, ServerStats, UserCounts, Via};

/// A running server, for those who ask about it.
struct Running {
    /// Where it listens, as it was told.
    names: Vec<String>,
    listeners: Vec<Open>,
    estate: Estate,
    drain_timeout: Option<Duration>,
    listening: Vec<String>,
    users: Option<Users>,
    via: Option<Arc<Via>>,
    intake: Intake,
    stats: ServerStats,
    associations: Option<Limits>,
    shared: Arc<ServerSettings>,
    started: Instant,
}

/// Builds the tasks of a server.
pub(super) fn build(
    mut settings: ServeSettings,
    means: Means,
    cx: &mut Cx<'_>,
) -> Result<(), StartError> {
    let Means {
        budget,
        memory,
        control,
        signals,
        notifier,
        passed,
        mut taken,
        failure,
        ..
    } = means;
    let users = match (&settings.users_file, settings.users.is_empty()) {
        (None, true) => None,
        (file, _) => {
            let users = Users::new(settings.users, file.as_deref()).map_err(StartError::Users)?;
            Some(users)
        }
    };
    let mut listeners = passed;
    if listeners.is_empty() {
        for address in &settings.listen {
            let taken = taken.as_mut().and_then(|taken| taken.listener(address));
            listeners.push(match taken {
                Some(listener) => listener,
                None => Listener::bind_with(address, settings.tcp).map_err(StartError::Bind)?,
            });
        }
    } else {
        settings.listen = addresses(&listeners);
    }
    let mut own = own_listeners(&settings.listen);
    for listener in &listeners {
        if let Bound::Tcp(address) = listener.bound() {
            own.insert(*address);
        }
    }

    let via = match settings.via.split_first() {
        Some((first, others)) => {
            let via = Via::new(first.clone(), others.into(), own.clone());
            let via = via.map_err(StartError::Via)?;
            Some(Arc::new(via.by(settings.uplink.clone())))
        }
        None => None,
    };

    let socks4 = match (settings.socks4, settings.socks4_users.is_empty()) {
        (true, true) => Socks4::Allowed,
        (true, false) => Socks4::ByUserId,
        (false, _) => Socks4::Refused,
    };
    let stats = ServerStats::default();
    let relay = relay_settings(
        settings.idle_timeout,
        settings.half_close_timeout,
        settings.splice,
        budget,
        memory,
    );
    let udp = settings.udp.map(|options| {
        let most = settings.max_associations;
        let associations = Limits::new(budget.connections, Some(most), cx.mailbox());
        UdpSettings::new(options, associations)
    });
    #[cfg(feature = "socks6")]
    if let (Some(udp), true) = (&udp, settings.socks6.is_some()) {
        cx.spawn(Box::new(udp.receiver(stats.clone())));
    }
    let associations = udp.as_ref().map(|udp| udp.associations.clone());
    let shared = Arc::new(ServerSettings {
        users: users.clone(),
        socks4,
        socks4_users: settings.socks4_users,
        rules: Rules::new(settings.rules, own),
        via: via.clone(),
        #[cfg(feature = "socks6")]
        socks6: settings.socks6.map(Socks6::new),
        reply_timing: settings.reply_timing,
        handshake_timeout: settings.handshake_timeout,
        connect_timeout: settings.connect_timeout,
        uplink: settings.uplink,
        tcp: settings.tcp,
        bind_timeout: settings.bind_timeout,
        udp,
        answer_delay: Duration::ZERO,
        relay,
        resolver: Resolver::default(),
        stats: stats.clone(),
    });
    let settings_of_all = Arc::clone(&shared);
    let serve: Serve = Rc::new(move |client| {
        Box::new(ServerSession::new(
            client,
            Arc::clone(&settings_of_all),
            Instant::now(),
        ))
    });
    let intake = Intake {
        admission: Rc::new(Admission::new(settings.allow.clone())),
        is_peer: Rc::new(|_| false),
        limits: limits(
            settings.max_connections,
            settings.max_per_client,
            budget,
            memory,
            cx,
        ),
        stats: Rc::new(RefCell::new(IntakeStats::default())),
    };
    let mut running = Running {
        names: settings.listen.iter().map(ToString::to_string).collect(),
        listeners: Vec::new(),
        estate: Estate::default(),
        drain_timeout: settings.drain_timeout,
        listening: listeners
            .iter()
            .map(|listener| listener.bound().to_string())
            .collect(),
        users: users.clone(),
        via: via.clone(),
        intake: intake.clone(),
        stats,
        associations,
        shared: Arc::clone(&shared),
        started: cx.now,
    };
    for listener in listeners {
        log::info!("listening on {}", listener.bound());
        let listener = Rc::new(listener);
        let (intake, serve) = (intake.clone(), Serve::clone(&serve));
        let acceptor = Acceptor::new(Rc::clone(&listener), intake, serve);
        let task = cx.spawn(Box::new(acceptor));
        running.listeners.push((listener, task));
    }
    warn_of_exposure(&settings.listen, settings.allow.as_deref());
    let exposed = settings.listen.iter().any(|address| address.is_exposed());
    if users.is_none()
        && exposed
        && settings
            .allow
            .as_ref()
            .is_none_or(|allow| !allow.is_empty())
    {
        log::warn!(
            "no users are set: whoever may connect can use this server (--user, --users-file)"
        );
    }
    if users.is_some() && socks4 == Socks4::Allowed {
        log::info!("SOCKS4 is off: it knows no passwords (--socks4-user)");
    }
    if let Some(via) = via {
        let off = match (via.binds(), via.carries_datagrams()) {
            (true, true) => "",
            (true, false) => "; UDP ASSOCIATE is off",
            (false, true) => "; BIND is off",
            (false, false) => "; BIND and UDP ASSOCIATE are off",
        };
        log::info!("connecting through {via}{off}");
    }
    notifier.status(|| format!("listening on {}", running.listening.join(", ")));
    let running = Rc::new(RefCell::new(running));
    let told_of = Rc::clone(&running);
    act_on_signals(
        signals,
        notifier,
        cx,
        move || match &users {
            Some(users) => {
                log::info!("told to read the users again");
                users.reload();
            }
            None => log::info!("told to read the users again: there are none"),
        },
        move |cx| status_lines::of_server(&told_of.borrow().status(cx)),
    );
    // Last, so that whoever can talk to it talks to something that works.
    let control = control.map(|socket| {
        let asked = Rc::clone(&running);
        let handler = Rc::new(move |call: Call, reply, cx: &mut Cx<'_>| {
            answer(&mut asked.borrow_mut(), &call, reply, cx);
        });
        let estate = &mut running.borrow_mut().estate;
        estate.control_server(socket, handler, cx)
    });
    let keep = move || {
        let running = running.borrow();
        running.estate.keep_files(running.listeners.iter());
    };
    serve_control(control, taken, keep, failure, cx);
    Ok(())
}

fn answer(running: &mut Running, call: &Call, reply: Reply, cx: &mut Cx<'_>) {
    match call {
        Call::TakeOver {
            role: Some(Role::Server),
        } => return running.hand_over(reply, cx.now),
        Call::TookOver => return running.let_go(reply, cx),
        _ => {}
    }
    reply.send(match call {
        Call::Status => Ok(running.status(cx)),
        _ => {
            let what = format!("this is a server: it has no {:?}", call.method());
            let error = ErrorObject::new(ErrorCode::NotAForwarder, what)
                .with_hint("a server can be asked for its status; `sockhop forward` has remotes");
            Err(error)
        }
    });
}

impl Running {
    fn hand_over(&mut self, reply: Reply, now: Instant) {
        // Of remotes a server knows nothing.
        let known = HandOver {
            process: std::process::id(),
            listeners: Vec::new(),
            mode: Mode::Manual,
            known: Vec::new(),
            remotes: Vec::new(),
        };
        let listeners = self.names.iter().zip(&self.listeners);
        let listeners = listeners.map(|(at, (listener, _))| (format!("clients {at}"), &**listener));
        let listeners: Vec<_> = listeners.collect();
        self.estate.offer(&listeners, known, reply, now);
    }

    fn let_go(&mut self, reply: Reply, cx: &mut Cx<'_>) {
        let mut all = || std::mem::take(&mut self.listeners);
        let limits = self.intake.limits.clone();
        self.estate
            .let_go(&mut all, limits, self.drain_timeout, reply, cx);
    }

    fn status(&self, cx: &Cx<'_>) -> ServerStatus {
        let intake = *self.intake.stats.borrow();
        let counts = self.stats.counts();
        let at_the_door = [
            ("not-allowed", intake.not_allowed),
            ("per-client-limit", intake.over_client_limit),
        ];
        let user_status = |counts: UserCounts| UserStatus {
            active: counts.active,
            total: counts.total,
            bytes: Bytes {
                up: counts.up,
                down: counts.down,
            },
        };
        let refused = at_the_door.into_iter().chain(counts.refused);
        let refused = refused.filter(|(_, count)| *count > 0);
        let refused_by_reason: ByName<u64> = refused.collect();
        ServerStatus {
            role: Role::Server,
            listening: self.listening.clone(),
            users: self.users.as_ref().map(|users| users.count() as u64),
            via: self
                .via
                .iter()
                .flat_map(|via| via.proxies())
                .map(ToString::to_string)
                .collect(),
            clients: self.intake.limits.clients() as u64,
            connections: Connections {
                active: self.intake.limits.active() as u64,
                parked: cx.parked() as u64,
                total: intake.accepted,
                refused: refused_by_reason.sum(),
                refused_by_reason,
            },
            associations: self.associations.as_ref().map_or(0, Limits::active) as u64,
            sessions: self.shared.sessions(cx.now) as u64,
            dropped_datagrams: counts.dropped_datagrams.into_iter().collect(),
            bytes: Bytes {
                up: counts.up,
                down: counts.down,
            },
            by_user: counts
                .users
                .into_iter()
                .map(|(name, counts)| (name, user_status(counts)))
                .collect(),
            uptime_s: seconds(cx.now.saturating_duration_since(self.started)),
            confined_by: confinement::in_force(),
        }
    }
}
