//! sockhop: SOCKS proxies on overlay networks, found, chosen and forwarded to. No async runtime.
//!
//! # Map
//!
//! Uses point downwards only. `wire` and `handshake` know no socket, clock, thread or log; [`server`], [`client`],
//! [`forward`] and [`discovery`] do not know each other, [`daemon`] joins them.
//!
//! ```text
//! main, cli, demo       flags to settings or one request; text and JSON on stdout, log on stderr
//!    daemon             what joins the parts into a running forwarder or server
//!    control            the local socket: messages, serving end, asking end
//!    forward  server    a client's session: dial, fail over, relay / answer SOCKS, connect, relay, datagrams
//!    discovery          sources, table, probes, race
//!    listen             binding, who may connect, how many, what happens when descriptors run out
//!    client             blocking: through one proxy or a chain of them, for programs and `sockhop dial`
//!    relay              two sockets: copy and splice, half-close, reset
//!    resolver  net      name look-ups; connecting, options, own addresses
//!    privileges sandbox what a daemon gives up: user, root directory; files and system calls it has no use for
//!    engine             reactor (waits) and workers (work); Session, Turn, Task
//!    handshake          state machines of both sides: bytes in, bytes out
//!    wire  proxy_uri    codecs: addresses, SOCKS 4, 4a, 5, 6, user/password; proxy URIs
//! ```
//!
//! Beside them stand the types that text is parsed into once, at the edge: [`target`], [`listen_address`],
//! [`source_spec`], [`api_address`], [`choice`], [`peer`], [`remote`], with [`bad_text`] as their error; and the [`logger`].
//!
//! # The life of one connection
//!
//! 1. The [`listen::Acceptor`], a task of the reactor, accepts it, checks address and limits, and makes a
//!    [`forward::ForwardSession`] of it.
//! 2. The reactor runs the session's turns as long as they are small, and waits for all sessions at once between them. A client
//!    that says nothing is parked there: no thread, no buffer, one descriptor.
//! 3. With the client's first bytes the session takes the [`forward::Choice`] of its route, connects to the first
//!    candidate and sends them. If that one refuses, resets, closes or hesitates, the next candidate gets the same. Greeting,
//!    request and reply of SOCKS 5 are read as they pass by, so that another one may still answer the request.
//! 4. The reply (or any other first answer) makes it a [`relay::Relay`]: from there on bytes are only passed on, copied while
//!    there are few, spliced while there are many. Once many come, a worker has it, which waits in poll(2) between its
//!    turns. Idle, it is parked in the reactor again: two descriptors and a few hundred bytes.
//! 5. It ends when both sides have, or with a reset that is passed on, or when a limit is over. A failure that came
//!    before that was reported; discovery and choice follow it at once.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod handshake;
pub mod proxy_uri;
pub mod wire;

pub mod engine;
pub mod net;
pub mod privileges;
pub mod relay;
pub mod resolver;
#[cfg(all(feature = "sandbox", target_os = "linux"))]
pub mod sandbox;

pub mod api_address;
pub mod bad_text;
pub mod choice;
mod file_stamp;
pub mod listen_address;
pub mod logger;
pub mod peer;
pub mod remote;
pub mod source_spec;
pub mod target;
mod threads;

pub mod client;
pub mod discovery;
pub mod forward;
pub mod listen;
#[cfg(feature = "server")]
pub mod server;

pub mod cli;
pub mod control;
pub mod daemon;
#[cfg(feature = "server")]
pub mod demo;

pub use proxy_uri::ProxyUri;
