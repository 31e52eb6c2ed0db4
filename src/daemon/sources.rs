//! The sources of a forwarder: those that it was told to use, or the overlay daemons of this machine.

use crate::discovery::source::exec::ExecSource;
use crate::discovery::source::file::FileSource;
use crate::discovery::source::mycelium::{self, MyceliumSource};
use crate::discovery::source::routes::RoutesSource;
use crate::discovery::source::tailscale::{self, TailscaleSource};
use crate::discovery::source::yggdrasil::{self, YggdrasilSource};
use crate::discovery::source::{Presence, Source};
use crate::resolver::Resolver;
use crate::source_spec::SourceSpec;
use crate::target::SOCKS_PORT;

/// The source that was named on the command line.
pub(super) fn named(spec: &SourceSpec, resolver: &Resolver) -> Box<dyn Source> {
    source(spec, Presence::Required, resolver)
}

/// Every overlay daemon that may run here, now or later. The kernel's routes are not among them: a host with a route of its
/// own may be anything.
pub(super) fn looked_for(resolver: &Resolver) -> [Box<dyn Source>; 3] {
    [
        SourceSpec::Mycelium(None),
        SourceSpec::Yggdrasil(None),
        SourceSpec::Tailscale(None),
    ]
    .map(|spec| source(&spec, Presence::Optional, resolver))
}

fn source(spec: &SourceSpec, presence: Presence, resolver: &Resolver) -> Box<dyn Source> {
    let (name, port, resolver) = (spec.to_string(), SOCKS_PORT, resolver.clone());
    match spec {
        SourceSpec::File(path) => Box::new(FileSource::new(path, port, resolver)),
        SourceSpec::Exec(command) => Box::new(ExecSource::new(command, port, resolver)),
        SourceSpec::Mycelium(place) => {
            let place = place.clone().unwrap_or_else(mycelium::usual_place);
            Box::new(MyceliumSource::new(name, place, presence, port, resolver))
        }
        SourceSpec::Yggdrasil(place) => {
            let places = match place {
                Some(place) => vec![place.clone()],
                None => yggdrasil::usual_places(),
            };
            Box::new(YggdrasilSource::new(name, places, presence, port, resolver))
        }
        SourceSpec::Tailscale(path) => {
            let paths = match path {
                Some(path) => vec![path.clone()],
                None => tailscale::usual_places().into(),
            };
            Box::new(TailscaleSource::new(name, paths, presence, port))
        }
        SourceSpec::Routes => Box::new(RoutesSource::new(port)),
    }
}
