//! Telling the service manager how things are: datagrams to the socket of `NOTIFY_SOCKET` (sd_notify(3)).
//!
//! Nobody else needs it, and without the variable all of this does nothing.

use std::cell::RefCell;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::engine::{Cx, Mailbox, Next, Task, TaskId};
use crate::logger::tame;

/// Tells a service manager, if there is one. Clones tell the same one.
#[derive(Clone, Default)]
pub(in crate::daemon) struct Notifier {
    manager: Option<Rc<RefCell<Manager>>>,
}

struct Manager {
    socket: UnixDatagram,
    /// A sign of life is to come at least this often, if at all.
    watchdog: Option<Duration>,
    status: String,
    /// What could not be sent yet, a line each: the manager is busy.
    unsent: String,
    retry: Option<(Mailbox, TaskId)>,
}

impl Notifier {
    /// The one that the environment names. If it cannot be reached, that is said and nobody is told anything.
    pub(in crate::daemon) fn from_env() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let watchdog = watchdog(
            env::var("WATCHDOG_USEC").ok().as_deref(),
            env::var("WATCHDOG_PID").ok().as_deref(),
        );
        match Self::connect(&name, watchdog) {
            Ok(notifier) => notifier,
            Err(error) => {
                let name = name.display();
                log::warn!("cannot tell the service manager at {name} (NOTIFY_SOCKET): {error}");
                Self::default()
            }
        }
    }

    /// Connects at once: later the path may be out of reach.
    fn connect(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address(name)?)?;
        // Nobody waits for a manager that hangs.
        socket.set_nonblocking(true)?;
        let manager = Manager {
            socket,
            watchdog,
            status: String::new(),
            unsent: String::new(),
            retry: None,
        };
        Ok(Self {
            manager: Some(Rc::new(RefCell::new(manager))),
        })
    }

    /// Tells of life as often as it is asked for, and again what could not be told at once.
    pub(in crate::daemon) fn start(&self, cx: &mut Cx<'_>) {
        if let Some(manager) = &self.manager {
            let id = cx.spawn(Box::new(Telling(Rc::clone(manager))));
            manager.borrow_mut().retry = Some((cx.mailbox(), id));
        }
    }

    /// The program does its work.
    pub(in crate::daemon) fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// The files are read again; [`ready`](Self::ready) ends that.
    pub(in crate::daemon) fn reloading(&self) {
        if self.manager.is_some() {
            // By this the manager knows that the answer is not to an earlier request.
            let now = Duration::try_from(clock_gettime(ClockId::Monotonic));
            let now = now.unwrap_or_default();
            let micros = now.as_secs() * 1_000_000 + u64::from(now.subsec_micros());
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
        }
    }

    /// The program ends.
    pub(in crate::daemon) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    /// What it does now, in one line; told when it has changed.
    pub(in crate::daemon) fn status(&self, status: impl FnOnce() -> String) {
        if let Some(manager) = &self.manager {
            let status = tame(&status());
            let mut manager = manager.borrow_mut();
            if manager.status != status && manager.tell(&format!("{STATUS}{status}\n")) {
                manager.status = status;
            }
        }
    }

    fn tell(&self, lines: &str) {
        if let Some(manager) = &self.manager {
            let _ = manager.borrow_mut().tell(lines);
        }
    }
}

impl Manager {
    /// Whether they are sent, or will be. If not, the manager has not listened for long.
    fn tell(&mut self, lines: &str) -> bool {
        self.send();
        // Of two in one message the manager takes the first.
        if lines.starts_with(STATUS) {
            let others = self.unsent.split_inclusive('\n');
            self.unsent = others.filter(|line| !line.starts_with(STATUS)).collect();
        }
        if self.unsent.len() >= MOST_UNSENT {
            return false;
        }
        self.unsent.push_str(lines);
        self.send();
        if let (false, Some((mailbox, task))) = (self.unsent.is_empty(), &self.retry) {
            mailbox.wake(*task);
        }
        true
    }

    fn send(&mut self) {
        if self.unsent.is_empty() {
            return;
        }
        match self.socket.send(self.unsent.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => {
                if let Err(error) = result {
                    log::debug!("cannot tell the service manager: {error}");
                }
                self.unsent = String::new();
            }
        }
    }
}

struct Telling(Rc<RefCell<Manager>>);

impl Task for Telling {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        let mut manager = self.0.borrow_mut();
        // Half the time, as sd_watchdog_enabled(3) recommends.
        let life = manager.watchdog.map(|every| every / 2);
        if life.is_some() && !manager.unsent.ends_with(LIFE) {
            manager.unsent.push_str(LIFE);
        }
        manager.send();
        let retry = (!manager.unsent.is_empty()).then_some(RETRY);
        let next = life.into_iter().chain(retry).min();
        Next::Wait(next.map(|after| cx.now + after))
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().split_first() {
        Some((b'/', _)) => SocketAddr::from_pathname(name),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        Some((b'@', rest)) => {
            #[cfg(target_os = "android")]
            use std::os::android::net::SocketAddrExt as _;
            #[cfg(target_os = "linux")]
            use std::os::linux::net::SocketAddrExt as _;
            SocketAddr::from_abstract_name(rest)
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// How often the manager wants a sign of life, if it wants it of this process (sd_watchdog_enabled(3)).
fn watchdog(micros: Option<&str>, process: Option<&str>) -> Option<Duration> {
    let own = std::process::id();
    if process.is_some_and(|process| process.parse() != Ok(own)) {
        return None;
    }
    let every = Duration::from_micros(micros?.parse().ok()?);
    (!every.is_zero()).then(|| every.max(SHORTEST_WATCHDOG))
}

const STATUS: &str = "STATUS=";
const LIFE: &str = "WATCHDOG=1\n";

/// A shorter one would have us do nothing else.
const SHORTEST_WATCHDOG: Duration = Duration::from_millis(20);

/// How soon it is tried again after the manager was busy.
const RETRY: Duration = Duration::from_millis(200);

/// Some lines, of a few hundred bytes each; a datagram may have far more.
const MOST_UNSENT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_meant_for_one_process() {
        let own = std::process::id().to_string();
        let second = Some(Duration::from_secs(1));
        for (micros, process, expected) in [
            (Some("1000000"), None, second),
            (Some("1000000"), Some(own.as_str()), second),
            (Some("1000000"), Some("1"), None),
            (Some("1000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("1"), None, Some(SHORTEST_WATCHDOG)),
            (Some("-1"), None, None),
            (Some(""), None, None),
            (None, None, None),
        ] {
            assert_eq!(
                watchdog(micros, process),
                expected,
                "{micros:?} {process:?}"
            );
        }
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 8192];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn a_status_is_one_line_and_told_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::connect(path.as_os_str(), None).unwrap();
        notifier.status(|| "one\nREADY=1".to_owned());
        assert_eq!(received(&manager), "STATUS=one\\nREADY=1\n");
        notifier.status(|| "one\nREADY=1".to_owned());
        manager.recv(&mut [0; 9]).unwrap_err();
        notifier.status(|| "two".to_owned());
        assert_eq!(received(&manager), "STATUS=two\n");
    }

    #[test]
    fn what_a_busy_manager_does_not_take_is_told_later_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::connect(path.as_os_str(), None).unwrap();
        // The queue of a datagram socket has a length (net.unix.max_dgram_qlen), and its buffer one.
        for number in 0..100_000 {
            notifier.status(|| number.to_string());
        }
        let inner = notifier.manager.clone().unwrap();
        // Of several the manager would take the first.
        assert_eq!(inner.borrow().unsent, "STATUS=99999\n");
        for _ in 0..MOST_UNSENT {
            notifier.ready();
        }
        let unsent = inner.borrow().unsent.clone();
        assert!(unsent.len() < MOST_UNSENT + 100);
        let mut bytes = [0; 64];
        while manager.recv(&mut bytes).is_ok() {}
        inner.borrow_mut().send();
        assert_eq!(received(&manager), unsent);
    }

    #[test]
    fn a_manager_that_is_not_there_is_told_nothing() {
        for name in ["/nowhere/notify", "vsock:2:1234", "relative"] {
            assert!(Notifier::connect(OsStr::new(name), None).is_err(), "{name}");
        }
        Notifier::default().ready();
    }
}
