//! A build without the feature `systemd`: nobody is told anything, nothing is handed over.

use std::convert::Infallible;
use std::fmt;

use crate::control::server::ControlSocket;
use crate::engine::Cx;
use crate::listen::Listener;

/// Tells nobody.
#[derive(Clone)]
pub(in crate::daemon) struct Notifier;

impl Notifier {
    pub(in crate::daemon) const fn from_env() -> Self {
        Self
    }

    pub(in crate::daemon) const fn start(&self, _: &mut Cx<'_>) {}

    pub(in crate::daemon) const fn ready(&self) {}

    pub(in crate::daemon) const fn reloading(&self) {}

    pub(in crate::daemon) const fn stopping(&self) {}

    pub(in crate::daemon) fn status(&self, _: impl FnOnce() -> String) {}
}

/// Nothing.
pub(in crate::daemon) struct Passed {
    pub(in crate::daemon) listeners: Vec<Listener>,
    pub(in crate::daemon) control: Option<ControlSocket>,
}

impl Passed {
    pub(in crate::daemon) const fn from_env() -> Result<Self, PassedError> {
        Ok(Self {
            listeners: Vec::new(),
            control: None,
        })
    }
}

/// There is none.
#[derive(Debug)]
pub struct PassedError(Infallible);

impl PassedError {
    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<String> {
        match self.0 {}
    }
}

impl fmt::Display for PassedError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

impl std::error::Error for PassedError {}
