//! Where commands meet the parts of the program that do the work.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Failure;
#[cfg(feature = "server")]
use super::{output, proxies};
use crate::control::messages::ProxyEntry;
#[cfg(feature = "server")]
use crate::daemon::settings::ServeSettings;
use crate::daemon::settings::Settings;
use crate::daemon::{Daemon, answers};
#[cfg(feature = "server")]
use crate::demo::{self, Audience, Ending};
use crate::discovery::probe::{AskSocks6, ProbeSettings};
use crate::discovery::survey;
use crate::net::{DescriptorBudget, Uplink, raise_descriptor_limit};
use crate::peer::Peer;
use crate::resolver::{Lookup, ResolveError, Resolver};
use crate::target::HostPort;

/// What `sockhop probe` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeRequest {
    /// Whom to probe, in this order.
    pub(super) addresses: Vec<Peer>,
    /// For each probe as a whole.
    pub(super) timeout: Duration,
    /// Where valid proxies shall connect to.
    pub(super) target: Option<HostPort>,
    /// Whether SOCKS 6 is asked for too.
    pub(super) socks6: AskSocks6,
    /// Which way probes take.
    pub(super) uplink: Uplink,
}

/// Runs a forwarder until it is told to end.
pub(super) fn daemon(settings: Settings) -> Result<(), Failure> {
    Daemon::new(settings)
        .and_then(Daemon::run)
        .map_err(|error| Failure::not_done(&error, error.hint()))
}

/// Runs a server until it is told to end.
#[cfg(feature = "server")]
pub(super) fn server(settings: ServeSettings) -> Result<(), Failure> {
    Daemon::server(settings)
        .and_then(Daemon::run)
        .map_err(|error| Failure::not_done(&error, error.hint()))
}

/// Probes each address once; of a name, the first of its addresses. `progress` is told how many are done, whenever one
/// is.
pub(super) fn probe(
    request: &ProbeRequest,
    progress: impl FnMut(usize) + 'static,
) -> Result<Vec<ProxyEntry>, Failure> {
    let resolver = Resolver::default();
    let lookups: Vec<Lookup> = request
        .addresses
        .iter()
        .map(|Peer { address, .. }| resolver.lookup(&address.host.to_string(), address.port))
        .collect();
    let deadline = Instant::now() + request.timeout;
    let resolved: Vec<Result<SocketAddr, ResolveError>> = lookups
        .into_iter()
        .map(|lookup| {
            lookup
                .wait(deadline)?
                .first()
                .copied()
                .ok_or(ResolveError::NotFound)
        })
        .collect();
    let addresses: Vec<(SocketAddr, _)> = resolved
        .iter()
        .zip(&request.addresses)
        .filter_map(|(address, asked)| Some((address.ok()?, asked.credentials.clone())))
        .collect();
    let settings = ProbeSettings {
        timeout: request.timeout,
        target: request
            .target
            .as_ref()
            .and_then(|target| target.to_string().parse().ok()),
        socks6: request.socks6,
        uplink: request.uplink.clone(),
    };
    let at_once = DescriptorBudget::share(raise_descriptor_limit()).probes;
    let findings = survey(&addresses, &settings, at_once, progress)
        .map_err(|error| Failure::not_done(&error, None))?;
    let mut found = addresses.into_iter().zip(findings);
    Ok(request
        .addresses
        .iter()
        .zip(resolved)
        .filter_map(|(asked, resolved)| {
            Some(match resolved {
                Ok(_) => {
                    let ((address, _), finding) = found.next()?;
                    answers::finding(address.to_string(), &finding)
                }
                Err(error) => answers::unresolved(asked.address.to_string(), &error.to_string()),
            })
        })
        .collect())
}

/// Runs the demonstration; with `once` it ends after it has shown that everything works.
#[cfg(feature = "server")]
pub(super) fn demo(once: bool) -> Result<(), Failure> {
    let ending = if once {
        Ending::AtOnce
    } else {
        Ending::WhenTold
    };
    demo::run(ending, Box::new(Printed)).map_err(|error| Failure::not_done(&error, None))
}

/// The demonstration on stdout.
#[cfg(feature = "server")]
struct Printed;

#[cfg(feature = "server")]
impl Audience for Printed {
    fn tell(&mut self, line: &str) {
        // Nobody reads any more: that is no reason to end.
        let _ = output::print(&format!("{line}\n"));
    }

    fn show(&mut self, peers: &[ProxyEntry]) {
        let _ = output::print(&proxies::text(peers, output::width()));
    }
}
