//! Options of every TCP socket that carries a client's bytes.

use std::time::Duration;

use socket2::{Socket, TcpKeepalive};

/// Sets the options of a relayed TCP socket: no delay for small messages, and the end of a peer that vanished without
/// a word. An option that the system refuses is left at its default.
pub fn tune(socket: &Socket) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
    // Where there is a user timeout it also ends a connection that a keepalive got no answer on, so interval and count
    // can stay as they are: two calls less for each connection.
    #[cfg(any(target_os = "freebsd", target_os = "macos"))]
    let keepalive = keepalive
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    // An urgent byte stays where it was in the stream instead of getting lost.
    let _ = socket.set_out_of_band_inline(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
}

/// A silent connection is asked after this long whether it is still there; less wakes sleeping radios for nothing.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
#[cfg(any(target_os = "freebsd", target_os = "macos"))]
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
#[cfg(any(target_os = "freebsd", target_os = "macos"))]
const KEEPALIVE_RETRIES: u32 = 4;

/// Data that nobody acknowledges for this long: the peer is gone. The kernel's own limit is about 15 minutes.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);
