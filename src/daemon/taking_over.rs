//! Taking over from a process that runs: its listeners, and what it knows. The other side is in
//! [`handing_over`](super::handing_over).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::SockRef;

use super::left::Left;
use super::runtime::Failure;
use super::start_error::StartError;
use crate::choice::Mode;
use crate::control::client::{Client, ClientError};
use crate::control::messages::{Call, Draining, HandOver, Role};
use crate::control::server::{ControlServer, ControlSocket};
use crate::engine::{Cx, Interests, Mailbox, Next, Session, Task, TaskId, Turn, TurnContext};
use crate::listen::Listener;
use crate::listen_address::ListenAddress;
use crate::remote::Remote;

/// What another process has handed over.
pub(super) struct Taken {
    client: Client,
    path: PathBuf,
    process: u32,
    /// With their names.
    descriptors: Vec<(String, OwnedFd)>,
    /// Who chooses the remote there.
    pub(super) mode: Mode,
    /// Proxies that it knows to be good, the one in use first.
    pub(super) known: Vec<SocketAddr>,
    /// What it was told to connect to.
    pub(super) remotes: Vec<Remote>,
}

impl Taken {
    /// Asks the process whose control socket is there. `None` if there is none.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub(super) fn ask(path: &Path, role: Option<Role>) -> Result<Option<Self>, StartError> {
        let mut client = match Client::connect(path, PATIENCE) {
            Ok(client) => client,
            Err(error) if error.is_nobody_there() => {
                log::info!("nobody to take over from at {}", path.display());
                return Ok(None);
            }
            Err(error) => return Err(StartError::TakeOver(error)),
        };
        let mut descriptors = Vec::new();
        let answer = client.call_for(&Call::TakeOver { role }, &mut descriptors);
        let answer: HandOver = answer
            .and_then(|answer| answer.decode())
            .map_err(StartError::TakeOver)?;
        let HandOver {
            process,
            listeners,
            mode,
            known,
            remotes,
        } = answer;
        if listeners.len() != descriptors.len() {
            let what = "it says that there are other descriptors than it has sent";
            return Err(StartError::System(io::Error::other(what)));
        }
        Ok(Some(Self {
            client,
            path: path.to_owned(),
            process,
            descriptors: listeners.into_iter().zip(descriptors).collect(),
            mode,
            known: known.iter().filter_map(|text| text.parse().ok()).collect(),
            remotes: remotes
                .iter()
                .filter_map(|text| Remote::parse(text).ok())
                .collect(),
        }))
    }

    /// The control socket.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn control(&mut self) -> Result<Option<ControlSocket>, StartError> {
        let found = self.take(|name, _| name == "control");
        found
            .map(|descriptor| ControlSocket::adopt(&self.path, descriptor))
            .transpose()
            .map_err(StartError::System)
    }

    /// Whether there is a listener for clients.
    pub(super) fn has_listeners(&self) -> bool {
        let mut names = self.descriptors.iter().map(|(name, _)| name);
        names.any(|name| name.starts_with(CLIENTS))
    }

    /// The listener for clients at this address.
    pub(super) fn listener(&mut self, address: &ListenAddress) -> Option<Listener> {
        self.listener_of(CLIENTS, address)
    }

    /// The listener for who asks for metrics at this address.
    #[cfg(feature = "metrics")]
    pub(super) fn metrics(&mut self, address: &ListenAddress) -> Option<Listener> {
        self.listener_of("metrics ", address)
    }

    fn listener_of(&mut self, role: &str, address: &ListenAddress) -> Option<Listener> {
        let text = address.to_string();
        let descriptor = self.take(|name, descriptor| {
            let is_there = || {
                let local = SockRef::from(descriptor).local_addr().ok();
                let local = local.and_then(|local| local.as_socket());
                local.is_some_and(|local| *address == ListenAddress::Tcp(local))
            };
            name.strip_prefix(role)
                .is_some_and(|asked| asked == text || is_there())
        })?;
        Listener::adopt(address, descriptor)
            .inspect_err(|error| log::warn!("cannot take over {address}: {error}"))
            .ok()
    }

    fn take(&mut self, is_it: impl Fn(&str, &OwnedFd) -> bool) -> Option<OwnedFd> {
        let mut all = self.descriptors.iter();
        let place = all.position(|(name, descriptor)| is_it(name, descriptor))?;
        Some(self.descriptors.swap_remove(place).1)
    }

    /// What has to be said to the other process once clients are accepted here. `then` is told how that went. What was not taken is
    /// closed.
    fn announce(self, then: Then, cx: &mut Cx<'_>) {
        cx.spawn(Box::new(Announcement {
            unsaid: Some(self.client),
            process: self.process,
            outcome: None,
            then: Some(then),
        }));
    }
}

/// Serves the control socket, in the place of another process once that has been told. Then `keep` makes its files ours.
pub(super) fn serve_control(
    server: Option<(TaskId, ControlServer)>,
    taken: Option<Taken>,
    keep: impl FnOnce() + 'static,
    failure: Failure,
    cx: &mut Cx<'_>,
) {
    let serve = move |cx: &mut Cx<'_>| {
        if let Some((id, server)) = server {
            cx.place(id, Box::new(server));
        }
    };
    let Some(taken) = taken else {
        return serve(cx);
    };
    let then: Then = Box::new(move |cx, outcome| match outcome {
        Ok(()) => {
            keep();
            serve(cx);
        }
        Err(error) => {
            *failure.borrow_mut() = Some(StartError::TakeOver(error));
            cx.stop();
        }
    });
    taken.announce(then, cx);
}

/// Told when the other process has been told.
type Then = Box<dyn FnOnce(&mut Cx<'_>, Result<(), ClientError>)>;

/// Tells the other process. It has run behind the tasks that accept, so these do.
struct Announcement {
    unsaid: Option<Client>,
    process: u32,
    outcome: Option<Left<Result<u64, ClientError>>>,
    then: Option<Then>,
}

impl Task for Announcement {
    fn run(&mut self, cx: &mut Cx<'_>) -> Next {
        if let Some(client) = self.unsaid.take() {
            let outcome = self.outcome.insert(Left::default());
            cx.submit(Box::new(Telling {
                client: Some(client),
                outcome: outcome.clone(),
                mailbox: cx.mailbox(),
                announcement: cx.id(),
            }));
            return Next::Wait(None);
        }
        let outcome = self.outcome.as_mut();
        let Some(Ok(outcome)) = outcome.map(Left::take) else {
            return Next::Wait(None);
        };
        let process = self.process;
        let outcome = match outcome {
            Ok(draining) => {
                log::info!("took over from process {process}, where {draining} streams go on");
                Ok(())
            }
            // It says no: it goes on accepting.
            Err(error) if error.refusal().is_some() => Err(error),
            Err(error) => {
                log::warn!("process {process} did not say that it accepts no more: {error}");
                Ok(())
            }
        };
        if let Some(then) = self.then.take() {
            then(cx, outcome);
        }
        Next::Done
    }
}

/// The question, on a worker: the other process may be busy.
struct Telling {
    client: Option<Client>,
    outcome: Left<Result<u64, ClientError>>,
    mailbox: Mailbox,
    announcement: TaskId,
}

impl Session for Telling {
    fn turn(&mut self, _: &mut TurnContext<'_>) -> Turn {
        if let Some(mut client) = self.client.take() {
            let answer = client.call(&Call::TookOver);
            let answer = answer.and_then(|answer| answer.decode::<Draining>());
            self.outcome.leave(answer.map(|answer| answer.draining));
            self.mailbox.wake(self.announcement);
        }
        Turn::Done
    }

    fn interests<'a>(&'a self, _: &mut Interests<'a>) {}
}

const CLIENTS: &str = "clients ";

/// For each of the two questions. It answers at once, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(5);
