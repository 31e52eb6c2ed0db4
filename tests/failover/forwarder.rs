//! A forwarder inside the test, whose candidates and reports the test sees.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sockhop::engine::{Cx, Mailbox, Next, Reactor, Task};
use sockhop::forward::{Candidate, Choice, ForwardSession, ForwardSettings, Patience, Route};
use sockhop::listen::{Acceptor, Admission, Bound, Intake, IntakeStats, Limits, Listener};
use sockhop::net::Uplink;
use sockhop::relay::{Kept, Pipes, RelaySettings};

use crate::common::SOON;

pub(crate) struct Forwarder {
    pub(crate) address: SocketAddr,
    pub(crate) route: Route,
    /// Says that there may be reports.
    woken: Receiver<()>,
    mailbox: Mailbox,
    thread: Option<JoinHandle<()>>,
}

struct Reader(Sender<()>);

impl Task for Reader {
    fn run(&mut self, _: &mut Cx<'_>) -> Next {
        // At the end nobody wants to know any more.
        let _ = self.0.send(());
        Next::Wait(None)
    }
}

impl Forwarder {
    /// To these candidates, with room for so many connections.
    pub(crate) fn new(candidates: Vec<Candidate>, patience: Patience, most: usize) -> Self {
        let (started, starting) = channel();
        let (wake, woken) = channel();
        let thread = thread::spawn(move || {
            let mut reactor = Reactor::new(4).expect("a reactor");
            let mailbox = reactor.mailbox();
            let reader = reactor.spawn(Box::new(Reader(wake)));
            let route = Route::new(mailbox.clone(), reader);
            let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).expect("listen");
            let Bound::Tcp(address) = *listener.bound() else {
                panic!("not a TCP listener");
            };
            let intake = Intake {
                admission: Rc::new(Admission::new(None)),
                is_peer: Rc::new(|_| false),
                limits: Limits::new(most, None, mailbox.clone()),
                stats: Rc::new(RefCell::new(IntakeStats::default())),
            };
            let settings = Arc::new(ForwardSettings {
                connect_timeout: Duration::from_secs(5),
                uplink: Uplink::default(),
                stagger: Some(Duration::from_millis(200)),
                retry: true,
                relay: Arc::new(RelaySettings {
                    idle: None,
                    half_closed_idle: None,
                    pipes: Pipes::new(0),
                    kept: Kept::default(),
                }),
                associations: None,
                tcp: sockhop::net::TcpExtras::default(),
                ready: None,
                fallback: None,
            });
            let serving = route.clone();
            reactor.spawn(Box::new(Acceptor::new(
                listener,
                intake,
                Rc::new(move |client| {
                    let (route, settings) = (serving.clone(), Arc::clone(&settings));
                    Box::new(ForwardSession::new(client, route, settings, Instant::now()))
                }),
            )));
            started.send((address, route, mailbox)).expect("the test");
            reactor.run().expect("the reactor");
        });
        let (address, route, mailbox) = starting.recv_timeout(SOON).expect("a forwarder");
        route.set(Choice {
            candidates,
            patience,
            is_awaited: false,
        });
        Self {
            address,
            route,
            woken,
            mailbox,
            thread: Some(thread),
        }
    }

    /// What was reported of whom, in the order of the reports.
    #[track_caller]
    pub(crate) fn reports(&self, count: usize) -> Vec<(SocketAddr, String)> {
        let mut reports = Vec::new();
        loop {
            let more = self.route.take_reports(count - reports.len());
            reports.extend(
                more.iter()
                    .map(|report| (report.remote, report.failure.to_string())),
            );
            if reports.len() == count {
                return reports;
            }
            self.woken.recv_timeout(SOON).expect("a report");
        }
    }

    pub(crate) fn has_reports(&self) -> bool {
        !self.route.take_reports(1).is_empty()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.mailbox.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
