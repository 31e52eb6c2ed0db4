//! One connection that comes in at the proxy.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::{Failure, failed, output};
use crate::client::{ClientError, Dialer};
use crate::wire::Address;

/// Asks the proxy for a port, tells where it is, and waits for the one connection, so long at most.
pub(super) fn accept(
    dialer: &Dialer,
    peer: &Address,
    patience: Duration,
) -> Result<TcpStream, Failure> {
    let binding = dialer.bind(peer).map_err(failed)?;
    let place = match binding.address() {
        Some(address) => address.to_string(),
        None => "an address that the proxy did not tell".to_owned(),
    };
    output::message(&format!("listening on {place}\n"));
    match binding.accept(patience) {
        Ok((stream, from)) => {
            output::message(&format!("connection from {from}\n"));
            Ok(stream)
        }
        Err(ClientError::TimedOut(..)) => {
            let what = format!("target {peer}: nobody connected to {place} in time");
            Err(Failure::beyond(&io::Error::other(what)))
        }
        Err(error) => Err(failed(error)),
    }
}
