//! Doors for `tests/fuzz`.

use std::io;
use std::path::PathBuf;

use super::json::{Met, Rest, walk};
use super::routes::RoutesSource;
use super::signal::pair;
use super::{Refresh, Refreshed, Source};

/// Asks a source once.
///
/// # Errors
/// No descriptor left.
pub fn refresh(source: &mut dyn Source) -> io::Result<Refreshed> {
    let (_handle, mut signal) = pair()?;
    Ok(source.refresh(Refresh::Requested, &mut signal))
}

/// Every text that is met on a walk through a value.
///
/// # Errors
/// As the walk says it.
pub fn texts(json: &[u8]) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    walk(&mut &*json, Rest::Blank, &mut |_, met| {
        if let Met::Text(text) = met {
            texts.push(text.to_owned());
        }
    })?;
    Ok(texts)
}

/// The kernel's routes, from two files in its format.
#[must_use]
pub fn routes(v4: PathBuf, v6: PathBuf, default_port: u16) -> RoutesSource {
    RoutesSource::of(v4, v6, default_port)
}
