//! What a daemon gives up before it serves anybody, as its settings say.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

#[cfg(feature = "server")]
use super::settings::ServeSettings;
use super::settings::Settings;
use super::start_error::StartError;
use crate::control::server::ControlSocket;
use crate::listen_address::ListenAddress;
use crate::net::Uplink;
use crate::privileges::{Kept, Privileges, PrivilegesError};
#[cfg(all(feature = "sandbox", target_os = "linux"))]
use crate::sandbox::{self, Plan};
use crate::source_spec::SourceSpec;

/// What is given up, and what is to work afterwards.
pub(super) struct Confinement {
    privileges: Privileges,
    kept: Kept,
    sandbox: Sandbox,
    state: Option<PathBuf>,
    reads: Vec<PathBuf>,
    sockets: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sandbox {
    Wanted,
    NotWanted,
    /// Commands are run, which may need anything.
    InTheWay,
}

impl Confinement {
    pub(super) fn of_forwarder(settings: &Settings) -> Self {
        let runs_commands = |spec: &SourceSpec| matches!(spec, SourceSpec::Exec(_));
        let file = |spec: &SourceSpec| match spec {
            SourceSpec::File(path) => Some(path.clone()),
            _ => None,
        };
        let listen = settings.listen.iter().chain(&settings.metrics);
        Self {
            privileges: settings.privileges.clone(),
            kept: kept(listen.clone(), &settings.uplink),
            sandbox: match settings.sandbox {
                false => Sandbox::NotWanted,
                true if settings.sources.iter().any(runs_commands) => Sandbox::InTheWay,
                true => Sandbox::Wanted,
            },
            state: settings.state.clone(),
            reads: settings.sources.iter().filter_map(file).collect(),
            sockets: listen.filter_map(socket).collect(),
        }
    }

    #[cfg(feature = "server")]
    pub(super) fn of_server(settings: &ServeSettings) -> Self {
        let mut kept = kept(settings.listen.iter(), &settings.uplink);
        let ports = settings.udp.as_ref().and_then(|udp| udp.ports);
        kept.low_ports |= ports.is_some_and(|ports| is_low(ports.first()));
        Self {
            privileges: settings.privileges.clone(),
            kept,
            sandbox: match settings.sandbox {
                false => Sandbox::NotWanted,
                true => Sandbox::Wanted,
            },
            state: None,
            reads: settings.users_file.iter().cloned().collect(),
            sockets: settings.listen.iter().filter_map(socket).collect(),
        }
    }

    /// Gives it up. To be called while the program has one thread.
    pub(super) fn enter(mut self, control: Option<&ControlSocket>) -> Result<(), StartError> {
        let control = control.and_then(ControlSocket::file);
        let handed_over: Vec<_> = control.into_iter().collect();
        self.privileges
            .give_up(self.kept, &handed_over)
            .map_err(StartError::Privileges)?;
        if let (Some(state), false) = (&self.state, self.privileges.is_nothing()) {
            check_writable(state).map_err(StartError::Privileges)?;
        }
        self.sockets.extend(control.map(Path::to_owned));
        match self.sandbox {
            Sandbox::NotWanted => {}
            Sandbox::InTheWay => log::info!(
                "no sandbox: exec: sources run commands, which may need anything (--no-sandbox leaves this line out)"
            ),
            Sandbox::Wanted => self.confine(),
        }
        Ok(())
    }

    #[cfg(all(feature = "sandbox", target_os = "linux"))]
    fn confine(self) {
        sandbox::confine(&Plan {
            reads: self.reads,
            writes: self.state.into_iter().collect(),
            sockets: self.sockets,
        });
    }

    #[cfg(not(all(feature = "sandbox", target_os = "linux")))]
    fn confine(self) {
        let _ = (self.reads, self.state, self.sockets);
        log::debug!("no sandbox in this build");
    }
}

/// What the kernel confines this process to now, by name.
pub(super) fn in_force() -> Vec<String> {
    #[cfg(all(feature = "sandbox", target_os = "linux"))]
    return sandbox::in_force().names().map(str::to_owned).collect();
    #[cfg(not(all(feature = "sandbox", target_os = "linux")))]
    Vec::new()
}

/// A forwarder opens its port when there is somebody to forward to, and again after `disconnect`.
fn kept<'a>(mut listen: impl Iterator<Item = &'a ListenAddress>, uplink: &Uplink) -> Kept {
    let is_low =
        |address: &ListenAddress| matches!(address, ListenAddress::Tcp(at) if is_low(at.port()));
    let (interfaces, marks) = uplink.steers_by();
    Kept {
        low_ports: listen.any(is_low),
        interfaces,
        marks,
    }
}

/// Port 0 is one that the system picks.
const fn is_low(port: u16) -> bool {
    port > 0 && port < FIRST_FOR_ALL
}

fn socket(address: &ListenAddress) -> Option<PathBuf> {
    match address {
        ListenAddress::Unix(path) => Some(path.clone()),
        ListenAddress::Tcp(_) => None,
    }
}

/// Said at the start, not in an hour, when the first write is due.
fn check_writable(state: &Path) -> Result<(), PrivilegesError> {
    // A link is not replaced, but what it leads to.
    let file = std::fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
    let folder = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| PrivilegesError::Unwritable(folder.to_owned(), error.into()))
}

/// Lower ports are for root (ip(7), `ip_unprivileged_port_start`).
const FIRST_FOR_ALL: u16 = 1024;
