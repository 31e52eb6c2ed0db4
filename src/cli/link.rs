//! Where commands meet the parts of the program that do the work.

use std::time::Duration;

use super::Failure;
use crate::control::messages::ProxyEntry;
use crate::daemon::settings::Settings;
use crate::target::HostPort;

/// What `sockhop probe` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeRequest {
    /// Whom to probe, in this order.
    pub(super) addresses: Vec<HostPort>,
    /// For each probe as a whole.
    pub(super) timeout: Duration,
    /// Where valid proxies shall connect to.
    pub(super) target: Option<HostPort>,
}

/// Runs a forwarder until it is told to end.
pub(super) fn daemon(settings: Settings) -> Result<(), Failure> {
    crate::daemon::run(settings).map_err(|error| Failure::not_done(&error, error.hint()))
}

/// Probes each address once. `progress` is told how many are done, whenever one is.
pub(super) fn probe(
    _request: &ProbeRequest,
    _progress: &mut dyn FnMut(usize),
) -> Result<Vec<ProxyEntry>, Failure> {
    Err(Failure::because("probe: not linked"))
}

/// Runs the demonstration; with `once` it ends after it has shown that everything works.
pub(super) fn demo(_once: bool) -> Result<(), Failure> {
    Err(Failure::because("demo: not linked"))
}
