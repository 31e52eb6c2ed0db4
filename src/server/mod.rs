//! A SOCKS server's side of a connection, on the engine: SOCKS 4, 4a and 5, CONNECT.

mod closing;
mod dial;
mod opening;
mod pending;
pub mod rules;
mod session;
mod settings;
pub mod users;

pub use session::ServerSession;
pub use settings::{ServerCounts, ServerSettings, ServerStats};

use std::io;

use socket2::Socket;

use crate::engine::{BUFFER, Key, TurnContext};
use crate::net::read_some;

fn read<'a>(
    socket: &Socket,
    cx: &'a mut TurnContext<'_>,
    limit: usize,
) -> io::Result<Option<&'a [u8]>> {
    let limit = limit.min(BUFFER);
    read_some(socket, cx.buffer().get_mut(..limit).unwrap_or_default())
}

/// The client's descriptor, in every stage.
const CLIENT: Key = 0;

/// The first of the stage's other descriptors.
const OTHERS: Key = 1;
