//! Building a forwarder out of its settings.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::answers;
use super::forwarder::{Forwarder, Parts, Steering};
#[cfg(feature = "metrics")]
use super::metrics::{self, MetricsServer};
use super::requests;
use super::runtime::{Means, act_on_signals, addresses, limits, own_listeners, relay_settings};
use super::served::Served;
use super::settings::Settings;
use super::sources;
use super::start_error::StartError;
use super::state::{Keeper, Known, remind};
use super::status_lines;
use super::taking_over::serve_control;
use crate::discovery::probe::ProbeSettings;
use crate::discovery::source::Source;
use crate::discovery::source::fixed::FixedSource;
use crate::discovery::source::lines::{ListedPeer, PeerName};
use crate::discovery::table::{SourceId, TableSettings};
use crate::discovery::{Discovery, Prober};
use crate::engine::{Cx, Shared, TaskId};
use crate::forward::{ForwardSession, ForwardSettings, Ready, Route};
use crate::listen::{ASSOCIATIONS_PER_CLIENT, Admission, Intake, IntakeStats, Limits, Serve};
#[cfg(feature = "metrics")]
use crate::listen::{Bound, Listener};
use crate::net::{DescriptorBudget, MemoryBudget, OwnListeners};
use crate::peer::Peer;
use crate::resolver::Resolver;
use crate::target::Host;
use crate::wire::Address;

/// Builds the tasks of a forwarder.
pub(super) fn build(
    mut settings: Settings,
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
        at_end,
        taken,
        failure,
    } = means;
    if !passed.is_empty() {
        settings.listen = addresses(&passed);
    }
    let resolver = Resolver::default();
    let own = Shared::new(RefCell::new(own_listeners(&settings.listen)));

    let discovery = Shared::new(RefCell::new(discovery(&settings, budget, &own, cx)));
    let keeper = settings.state.as_deref();
    let keeper = keeper.map(|path| Keeper::open(path, cx.now));
    let remembered = match &taken {
        Some(taken) if !taken.known.is_empty() => taken.known.clone(),
        _ => keeper.as_ref().map(Keeper::addresses).unwrap_or_default(),
    };
    // Before all sources, so that they are probed first.
    remind(&mut discovery.borrow_mut().table, &remembered, cx.now);
    let prober = cx.spawn(Box::new(Prober::new(Shared::clone(&discovery))));
    let by_hand = add_sources(&settings, &discovery, &resolver, prober, cx)?;

    let steering = cx.reserve();
    let route = Route::new(cx.mailbox(), steering);
    let ready = ready(&settings, budget, &route, cx);
    let budget = budget.without(ready.as_ref().map_or(0, Ready::most));
    let relay = relay_settings(
        settings.idle_timeout,
        settings.half_close_timeout,
        settings.splice,
        budget,
        memory,
    );
    let most = budget.connections;
    let associations = Limits::new(most, Some(ASSOCIATIONS_PER_CLIENT), cx.mailbox());
    let served = Served::new(
        &settings,
        &relay,
        associations.clone(),
        &resolver,
        &own.borrow(),
    );
    let forward = ForwardSettings {
        connect_timeout: settings.connect_timeout,
        uplink: settings.uplink.clone(),
        stagger: settings.stagger,
        retry: settings.retry,
        relay,
        associations: settings.udp.then_some(associations),
        tcp: settings.tcp,
        ready,
        fallback: served.without_remote(),
    };
    let forwarder = Forwarder::new(
        Parts {
            intake: intake(&settings, budget, memory, &discovery, cx),
            serve: serve(forward, &route, &served),
            served,
            settings,
            discovery: Shared::clone(&discovery),
            route,
            own,
            resolver,
            by_hand,
            steering,
            notifier: notifier.clone(),
            passed,
            taken,
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
    let told_of = Shared::clone(&forwarder);
    act_on_signals(
        signals,
        notifier,
        cx,
        move || {
            log::info!("told to read the peers again");
            reload.borrow().refresh_sources();
        },
        move |cx| status_lines::of_forwarder(&answers::status(&told_of.borrow(), cx)),
    );

    #[cfg(feature = "metrics")]
    serve_metrics(&forwarder, cx)?;
    forwarder
        .borrow_mut()
        .start(&remembered, cx)
        .map_err(StartError::Bind)?;
    forwarder.borrow().tell_manager();
    if let Some(keeper) = keeper {
        keeper.follow(Box::new(Known(Shared::clone(&forwarder))), cx);
        forwarder.borrow_mut().retirement = keeper.retirement();
        *at_end.borrow_mut() = Some(Box::new(move || keeper.finish(Instant::now())));
    }
    if forwarder.borrow().settings.probing {
        discovery.borrow_mut().start(cx);
    }
    // Last, so that whoever can talk to it talks to something that works.
    let control = control.map(|socket| {
        let asked = Shared::clone(&forwarder);
        let handler =
            Rc::new(move |call, reply, cx: &mut Cx<'_>| requests::handle(&asked, call, reply, cx));
        let estate = &mut forwarder.borrow_mut().estate;
        estate.control_server(socket, handler, cx)
    });
    let taken = forwarder.borrow().taken.take();
    let keep = move || forwarder.borrow().keep_files();
    serve_control(control, taken, keep, failure, cx);
    Ok(())
}

#[cfg(feature = "metrics")]
fn serve_metrics(forwarder: &Shared<Forwarder>, cx: &mut Cx<'_>) -> Result<(), StartError> {
    let this = forwarder.borrow();
    let Some(address) = &this.settings.metrics else {
        return Ok(());
    };
    let taken = this
        .taken
        .borrow_mut()
        .as_mut()
        .and_then(|taken| taken.metrics(address));
    let listener = match taken {
        Some(listener) => listener,
        None => Listener::bind(address).map_err(StartError::Bind)?,
    };
    let listener = Rc::new(listener);
    if let Bound::Tcp(address) = listener.bound() {
        this.own.borrow_mut().insert(*address);
    }
    log::info!("metrics on {}", listener.bound());
    if address.is_exposed() {
        log::warn!(
            "other machines can reach {address}: whoever --allow lets in may read the metrics"
        );
    }
    let admission = Rc::clone(&this.intake.admission);
    let render = Rc::new(metrics::render(Shared::clone(forwarder)));
    let server = MetricsServer::new(Rc::clone(&listener), admission, render);
    let task = cx.spawn(Box::new(server));
    drop(this);
    forwarder.borrow_mut().metrics = Some((listener, task));
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
        rate: settings.probe_rate,
        seed: fastrand::u64(..),
        ..TableSettings::default()
    };
    let probe = ProbeSettings {
        timeout: settings.probe_timeout,
        target: settings
            .probe_target
            .as_ref()
            .and_then(|target| target.to_string().parse::<Address>().ok()),
        socks6: settings.probe_socks6,
        uplink: settings.uplink.clone(),
    };
    let own = Shared::clone(own);
    let is_own = Box::new(move |address: SocketAddr| own.borrow().is_own(address));
    Discovery::new(
        table,
        settings.rules.clone(),
        probe,
        budget.probes,
        is_own,
        cx.now,
    )
}

/// Starts the sources of the settings; returns the one for remotes named by hand.
fn add_sources(
    settings: &Settings,
    discovery: &Shared<Discovery>,
    resolver: &Resolver,
    prober: TaskId,
    cx: &mut Cx<'_>,
) -> Result<SourceId, StartError> {
    let mut discovery = discovery.borrow_mut();
    let too_many =
        |name: &str| StartError::Source(name.to_owned(), io::Error::other("too many sources"));
    let by_hand = discovery
        .add_fixed("remote")
        .ok_or_else(|| too_many("remote"))?;
    // What is named by hand is used as told.
    discovery.table.watch_all_of(by_hand);
    let mut threads: Vec<Box<dyn Source>> = Vec::new();
    if !settings.peers.is_empty() {
        let peers = settings.peers.iter().map(
            |Peer {
                 address,
                 credentials,
                 ..
             }| ListedPeer {
                name: match &address.host {
                    Host::Ip(ip) => PeerName::Ip(SocketAddr::new(*ip, address.port)),
                    Host::Name(name) => PeerName::Name(name.clone(), address.port),
                },
                login: credentials.clone(),
            },
        );
        let fixed = FixedSource::new("flag", peers, resolver.clone());
        if fixed.has_names() {
            threads.push(Box::new(fixed));
        } else {
            let id = discovery
                .add_fixed("flag")
                .ok_or_else(|| too_many("flag"))?;
            discovery.set_source(id, fixed.addresses().iter().copied(), cx.now);
            discovery.set_logins(id, fixed.logins(), cx);
        }
    }
    for spec in &settings.sources {
        threads.push(sources::named(spec, resolver));
    }
    if settings.looks_for_daemons() {
        threads.extend(sources::looked_for(resolver));
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
    memory: MemoryBudget,
    discovery: &Shared<Discovery>,
    cx: &Cx<'_>,
) -> Intake {
    let peers = Shared::clone(discovery);
    Intake {
        admission: Rc::new(Admission::new(settings.allow.clone())),
        is_peer: Rc::new(move |ip| peers.borrow().table.has_ip(ip)),
        limits: limits(
            settings.max_connections,
            settings.max_per_client,
            budget,
            memory,
            cx,
        ),
        stats: Rc::new(RefCell::new(IntakeStats::default())),
    }
}

/// The stock of ready connections, if one is wanted. It has a quarter of the descriptors at most.
fn ready(
    settings: &Settings,
    budget: DescriptorBudget,
    route: &Route,
    cx: &mut Cx<'_>,
) -> Option<Ready> {
    let most = settings.ready.min(budget.connections / 2);
    if most < settings.ready {
        log::warn!(
            "--ready {}: {most} it is, there are few descriptors (`ulimit -n`)",
            settings.ready
        );
    }
    (most > 0).then(|| {
        let task = cx.reserve();
        let ready = Ready::new(most, cx.mailbox(), task);
        let restock = ready.restock(route.clone(), settings.uplink.clone(), settings.tcp);
        cx.place(task, Box::new(restock));
        ready
    })
}

/// Clients are passed on, or converted while the remote is one that this is done for.
#[cfg_attr(not(feature = "socks6"), expect(unused_variables))]
fn serve(forward: ForwardSettings, route: &Route, served: &Served) -> Serve {
    let forward = Arc::new(forward);
    let (route, served) = (route.clone(), served.clone());
    Rc::new(move |client| {
        #[cfg(feature = "socks6")]
        let client = match served.convert(client, &route) {
            Ok(converting) => return Box::new(converting),
            Err(client) => client,
        };
        let forward = Arc::clone(&forward);
        Box::new(ForwardSession::new(
            client,
            route.clone(),
            forward,
            Instant::now(),
        ))
    })
}
