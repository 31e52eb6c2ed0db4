//! Why a daemon could not start, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;

use super::systemd::PassedError;
use crate::control::client::ClientError;
use crate::control::server::ControlSocketError;
use crate::listen::BindError;
use crate::net::UplinkError;
use crate::privileges::PrivilegesError;
#[cfg(feature = "server")]
use crate::server::{OwnListener, users::UsersFileError};

/// Why a daemon could not start.
#[derive(Debug)]
pub enum StartError {
    /// A listener could not be bound.
    Bind(BindError),
    /// The service manager handed over something else than listeners.
    Passed(PassedError),
    /// The control socket could not be bound.
    Control(ControlSocketError),
    /// The process whose place is to be taken does not let it.
    TakeOver(ClientError),
    /// What is to be given up cannot be.
    Privileges(PrivilegesError),
    /// The file of users cannot be used.
    #[cfg(feature = "server")]
    Users(UsersFileError),
    /// The proxy to connect through is the server itself.
    #[cfg(feature = "server")]
    Via(OwnListener),
    /// The way that connections are to take is not permitted.
    Uplink(UplinkError),
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
            Self::Passed(error) => error.hint(),
            Self::Control(error) => Some(error.hint()),
            Self::Privileges(error) => error.hint(),
            #[cfg(feature = "server")]
            Self::Users(_) | Self::Via(_) => None,
            Self::Uplink(error) => error.hint().map(str::to_owned),
            Self::TakeOver(error) => error.hint(),
            Self::Source(_, error) | Self::System(error) => of_what_has_run_out(error),
        }
    }
}

/// Where to look when the system had no thread or descriptor left.
fn of_what_has_run_out(error: &io::Error) -> Option<String> {
    let hint = match Errno::from_io_error(error)? {
        Errno::AGAIN => {
            "no thread is left: see `ulimit -u`, and pids.max of the control group (TasksMax=)"
        }
        Errno::MFILE => "no descriptor is left: see `ulimit -n`",
        _ => return None,
    };
    Some(hint.to_owned())
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Passed(error) => error.fmt(f),
            Self::Control(error) => error.fmt(f),
            Self::Privileges(error) => error.fmt(f),
            #[cfg(feature = "server")]
            Self::Users(error) => error.fmt(f),
            #[cfg(feature = "server")]
            Self::Via(error) => error.fmt(f),
            Self::Uplink(error) => error.fmt(f),
            Self::TakeOver(error) => error.fmt(f),
            Self::Source(name, _) => write!(f, "cannot start the source {name}"),
            Self::System(_) => f.write_str("cannot start"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Bind(error) => error.source(),
            Self::Passed(error) => error.source(),
            Self::Control(error) => error.source(),
            Self::TakeOver(error) => error.source(),
            Self::Privileges(error) => error.source(),
            #[cfg(feature = "server")]
            Self::Users(error) => error.source(),
            #[cfg(feature = "server")]
            Self::Via(_) => None,
            Self::Uplink(_) => None,
            Self::Source(_, error) | Self::System(error) => Some(error),
        }
    }
}
