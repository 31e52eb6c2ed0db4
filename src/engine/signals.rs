//! Signals as bytes on a socket that the reactor watches.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;

use super::reactor::{Cx, Next, Task};
use super::session::Want;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: end the program.
    Stop,
    /// SIGHUP: read again what is read from files.
    Reload,
    /// SIGUSR1: say in the log how things are.
    Tell,
}

type Act = Box<dyn FnMut(Signal, &mut Cx<'_>)>;

/// Signals that are caught. Those that come before there is a task to act on them are kept for it.
pub struct Signals {
    ends: [(Signal, UnixStream); 3],
}

impl Signals {
    /// Catches SIGTERM, SIGINT, SIGHUP and SIGUSR1 from now on, so that none of them kills the program any more.
    ///
    /// # Errors
    /// When no socket pair can be had.
    pub fn catch() -> io::Result<Self> {
        let (stop, stop_end) = pair()?;
        let (reload, reload_end) = pair()?;
        let (tell, tell_end) = pair()?;
        pipe::register(SIGTERM, stop_end.try_clone()?)?;
        pipe::register(SIGINT, stop_end)?;
        pipe::register(SIGHUP, reload_end)?;
        pipe::register(SIGUSR1, tell_end)?;
        Ok(Self {
            ends: [
                (Signal::Stop, stop),
                (Signal::Reload, reload),
                (Signal::Tell, tell),
            ],
        })
    }

    /// The task that hands them to a function on the reactor thread.
    #[must_use]
    pub fn acting(self, act: impl FnMut(Signal, &mut Cx<'_>) + 'static) -> Box<dyn Task> {
        Box::new(Acting {
            ends: self.ends,
            watched: false,
            act: Box::new(act),
        })
    }
}

struct Acting {
    ends: [(Signal, UnixStream); 3],
    watched: bool,
    act: Act,
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, handlers) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    handlers.set_nonblocking(true)?;
    Ok((ours, handlers))
}

impl Task for Acting {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            for (_, end) in &self.ends {
                if let Err(error) = cx.watch(end.as_fd(), Want::READ) {
                    log::error!("signals are not seen: {error}");
                }
            }
            self.watched = true;
        }
        for (signal, end) in &self.ends {
            if drain(end) {
                (self.act)(*signal, cx);
            }
        }
        Next::Wait(None)
    }
}

/// Reads all there is; whether there was anything.
fn drain(mut end: &UnixStream) -> bool {
    let mut bytes = [0; 64];
    let mut any = false;
    while matches!(end.read(&mut bytes), Ok(1..)) {
        any = true;
    }
    any
}
