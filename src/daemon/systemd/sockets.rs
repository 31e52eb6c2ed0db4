//! Sockets that a service manager has opened and hands over (sd_listen_fds(3)): they take the place of those that would be bound here.

use std::env;
use std::fmt;
use std::io;

use listenfd::ListenFd;
use socket2::Socket;

use crate::control::server::ControlSocket;
use crate::listen::Listener;

/// What was handed over.
#[derive(Default)]
pub(in crate::daemon) struct Passed {
    /// Where clients connect, instead of what `--listen` says.
    pub(in crate::daemon) listeners: Vec<Listener>,
    /// Whose name is `control`: the control socket, instead of what `--control` says.
    pub(in crate::daemon) control: Option<ControlSocket>,
}

impl Passed {
    /// Takes over what the environment names for this process. To be called before anything else is opened.
    ///
    /// # Errors
    /// Something else than sockets that listen for streams was handed over.
    pub(in crate::daemon) fn from_env() -> Result<Self, PassedError> {
        let variable = |name| env::var(name).ok();
        let count = count(
            variable("LISTEN_FDS").as_deref(),
            variable("LISTEN_PID").as_deref(),
        )?;
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = Self::default();
        if count == 0 {
            return Ok(passed);
        }
        let mut descriptors = ListenFd::from_env();
        for index in 0..count {
            let name = names.next().unwrap_or_default();
            let failed = |problem| PassedError::Socket {
                descriptor: FIRST + index,
                name: name.to_owned(),
                problem,
            };
            passed.take(&mut descriptors, index, name).map_err(failed)?;
        }
        Ok(passed)
    }

    fn take(
        &mut self,
        descriptors: &mut ListenFd,
        index: usize,
        name: &str,
    ) -> Result<(), Problem> {
        // What is of another kind stays where it is.
        let unix = descriptors.take_unix_listener(index).unwrap_or_default();
        let is_unix = unix.is_some();
        let tcp = descriptors.take_tcp_listener(index).unwrap_or_default();
        let socket = unix.map(Socket::from).or_else(|| tcp.map(Socket::from));
        let socket = socket.filter(listens).ok_or(Problem::NotAListener)?;
        if name != CONTROL {
            let listener = Listener::passed(socket).map_err(Problem::Io)?;
            self.listeners.push(listener);
            return Ok(());
        }
        if !is_unix {
            return Err(Problem::NotForControl);
        }
        if self.control.is_some() {
            return Err(Problem::SecondControl);
        }
        let control = ControlSocket::passed(socket.into()).map_err(Problem::Io)?;
        self.control = Some(control);
        Ok(())
    }
}

/// A unit with `Accept=yes` hands over connections, one a process. Elsewhere accepting tells.
fn listens(socket: &Socket) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return socket.is_listener().unwrap_or(false);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return true;
}

/// How many descriptors there are for this process.
fn count(descriptors: Option<&str>, process: Option<&str>) -> Result<usize, PassedError> {
    let own = std::process::id();
    match (descriptors, process) {
        (None | Some(""), _) | (_, None) => Ok(0),
        // For somebody who has started us and forgot to tidy up.
        (_, Some(process)) if process.parse() != Ok(own) => Ok(0),
        (Some(descriptors), _) => match descriptors.parse() {
            Ok(count @ 0..=MOST) => Ok(count),
            _ => Err(PassedError::Count(descriptors.to_owned())),
        },
    }
}

/// Why what was handed over cannot be used.
#[derive(Debug)]
pub enum PassedError {
    /// `LISTEN_FDS` is no number, or too large.
    Count(String),
    /// This descriptor is not what is needed.
    Socket {
        /// Its number.
        descriptor: usize,
        /// Its name in `LISTEN_FDNAMES`, if it has one.
        name: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with a descriptor.
#[derive(Debug)]
pub enum Problem {
    /// Not a socket that listens for TCP or Unix streams.
    NotAListener,
    /// Not a Unix socket.
    NotForControl,
    /// There is one already.
    SecondControl,
    /// What the system says.
    Io(io::Error),
}

impl PassedError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Socket {
                problem: Problem::NotAListener,
                ..
            } => "a socket unit for sockhop has ListenStream= and Accept=no",
            Self::Socket {
                problem: Problem::NotForControl | Problem::SecondControl,
                ..
            } => "FileDescriptorName=control is for one ListenStream= with a path",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl fmt::Display for PassedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "LISTEN_FDS is {count:?}, not a number up to {MOST}"),
            Self::Socket {
                descriptor,
                name,
                problem,
            } => {
                let what = match problem {
                    Problem::NotAListener => "is not a socket that listens for streams",
                    Problem::NotForControl => "cannot be the control socket: not a Unix socket",
                    Problem::SecondControl => "is a second control socket",
                    Problem::Io(_) => "cannot be used",
                };
                write!(
                    f,
                    "descriptor {descriptor} ({name:?}), handed over by the service manager, {what}"
                )
            }
        }
    }
}

impl std::error::Error for PassedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket {
                problem: Problem::Io(error),
                ..
            } => Some(error),
            _ => None,
        }
    }
}

/// The name of a descriptor that is the control socket.
const CONTROL: &str = "control";

/// `SD_LISTEN_FDS_START`.
const FIRST: usize = 3;

/// More than anybody has addresses to listen on.
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_for_this_process_counts() {
        let own = std::process::id().to_string();
        let own = Some(own.as_str());
        for (descriptors, process, expected) in [
            (None, None, Some(0)),
            (Some("2"), None, Some(0)),
            (Some("2"), Some("1"), Some(0)),
            (Some("x"), Some("1"), Some(0)),
            (Some("2"), own, Some(2)),
            (Some("0"), own, Some(0)),
            (Some("64"), own, Some(64)),
            (Some("65"), own, None),
            (Some("-1"), own, None),
            (Some("99999999999999999999"), own, None),
        ] {
            assert_eq!(
                count(descriptors, process).ok(),
                expected,
                "{descriptors:?}"
            );
        }
    }
}
