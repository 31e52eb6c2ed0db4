//! Signals as bytes on a socket that the reactor watches.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
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
}

type Act = Box<dyn FnMut(Signal, &mut Cx<'_>)>;

/// A task that hands signals to a function on the reactor thread.
pub struct Signals {
    stop: UnixStream,
    reload: UnixStream,
    watched: bool,
    act: Act,
}

impl Signals {
    /// Catches SIGTERM, SIGINT and SIGHUP from now on.
    ///
    /// # Errors
    /// When no socket pair can be had.
    pub fn catch(act: impl FnMut(Signal, &mut Cx<'_>) + 'static) -> io::Result<Self> {
        let (stop, stop_end) = pair()?;
        let (reload, reload_end) = pair()?;
        pipe::register(SIGTERM, stop_end.try_clone()?)?;
        pipe::register(SIGINT, stop_end)?;
        pipe::register(SIGHUP, reload_end)?;
        Ok(Self {
            stop,
            reload,
            watched: false,
            act: Box::new(act),
        })
    }
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, handlers) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    handlers.set_nonblocking(true)?;
    Ok((ours, handlers))
}

impl Task for Signals {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if !self.watched {
            for end in [&self.stop, &self.reload] {
                if let Err(error) = cx.watch(end.as_fd(), Want::READ) {
                    log::error!("signals are not seen: {error}");
                }
            }
            self.watched = true;
        }
        if drain(&self.stop) {
            (self.act)(Signal::Stop, cx);
        }
        if drain(&self.reload) {
            (self.act)(Signal::Reload, cx);
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
