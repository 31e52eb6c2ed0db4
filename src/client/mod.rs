//! The asking side for programs: blocking, through one proxy or several.
//!
//! ```no_run
//! use std::io::{Read as _, Write as _};
//!
//! let proxy = "socks5h://ada:secret@proxy.example:1080?timeout=5s".parse()?;
//! let mut stream = sockhop::client::connect(&proxy, "example.org:80")?;
//! stream.write_all(b"GET / HTTP/1.0\r\nHost: example.org\r\n\r\n")?;
//! stream.read_to_end(&mut Vec::new())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - One deadline holds for everything: look-ups, connecting, the exchange with every proxy of a chain. When it has
//!   passed, [`ClientError::TimedOut`] says what was waited for. The stream that comes out has no time limits.
//! - Exactly the bytes of the handshake are read, so what a target sends at once is there for the first read.
//! - With credentials nothing else is offered: a proxy that would do without is an error, not a fall-back (see
//!   [`Dialer::allow_no_authentication`]).
//! - The scheme of a proxy says who looks up the target's name, as for curl: `socks5` and `socks4` here, `socks5h` and
//!   `socks4a` the proxy. SOCKS4 reaches IPv4 only.
//! - SOCKS 6 proxies (`socks6`, with the feature of that name) take data for the target along with the request
//!   ([`Dialer::connect_with`]). Their sessions and tokens are kept with the [`Dialer`], and its clones share them.
//!
//! [`Dialer`] does more than [`connect`]: chains, BIND, datagrams. [`negotiate`] carries a handshake over any other stream.

mod associate;
mod bind;
mod dialer;
mod error;
mod negotiate;
#[cfg(feature = "socks6")]
mod socks6;
mod stream;

pub use associate::{Association, LOOKUP_TIMEOUT};
pub use bind::Binding;
pub use dialer::{Connected, DEFAULT_TIMEOUT, Dialer, MAX_EARLY_DATA};
pub use error::{ClientError, Fault, Phase, Whose};
pub use negotiate::{NegotiationError, negotiate};
#[cfg(feature = "socks6")]
pub use socks6::{DEFAULT_BACKLOG, DatagramError, Listener, negotiate_socks6};
#[cfg(feature = "client-cli")]
pub(crate) use stream::connect_any;

use std::net::TcpStream;

use crate::ProxyUri;

/// Connects to `target`, such as `example.org:443` or `[2001:db8::1]:443`, through one proxy.
///
/// # Errors
/// [`ClientError::fault`] tells whose fault it is.
pub fn connect(proxy: &ProxyUri, target: &str) -> Result<TcpStream, ClientError> {
    let target = target.parse().map_err(ClientError::BadTarget)?;
    Dialer::new(proxy.clone()).connect(&target)
}
