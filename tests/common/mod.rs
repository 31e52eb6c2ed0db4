//! Helpers of the integration tests: the program under test, peers that behave and misbehave, targets, and clients.
//!
//! - [`Sockhop`]: the real binary, started, watched and killed.
//! - [`Peer`]: what a probe or a forwarder can meet: SOCKS5 servers, other servers, and the silent, slow and dying kinds.
//! - [`Api`]: the API of an overlay daemon, which answers as the test says.
//! - [`Target`]: where a proxy connects to: echo, source, sink, and one that the test drives itself.
//! - [`socks5_connect`], [`exchange`], [`observe`], [`reset`]: the client's side.
//! - [`Netns`]: network namespaces, for what loopback can't do: lost packets, links that go down, clients from elsewhere.
//! - [`Daemon`], [`program`], [`Sshd`]: other people's programs.
//! - [`Pattern`]: seeded bytes, so that any byte of a long transfer can be verified without storing it.
//!
//! Everything listens on loopback at port 0 unless a test names an address, every wait has a limit, and everything ends on drop.
//! Nothing here uses the crate's own SOCKS code: a mistake there must not hide itself.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "every test program uses its own part of the helpers"
)]

mod api;
mod client;
mod dante;
mod datagrams;
mod loopback;
#[cfg(target_os = "linux")]
mod netns;
mod pattern;
mod peer;
mod program;
mod ssh;
mod target;
mod tools;

pub use api::{Answer, Api, http_ok};
pub use client::{
    Observed, answer, connect, exchange, expect_end, observe, read_exactly, reset, rest,
    socks5_connect, socks5_connect_name, socks5_request,
};
pub use dante::{dante, dante_with};
pub use datagrams::{echo_datagrams, echo_one, is_closed, wait_dropped};
#[cfg(target_os = "linux")]
pub use netns::Netns;
pub use pattern::{Chunks, End, Pattern, Received};
pub use peer::{Behaviour, Peer, Step, Unanswering, dead_address};
pub use program::{BIND_RUN, Launch, RpcError, Signal, Sockhop, serve};
pub use ssh::Sshd;
pub use target::Target;
pub use tools::{Daemon, free_port, need_root, program, run_within, success};

use std::time::{Duration, Instant};

/// Long enough for anything that should happen at once, also on a loaded machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Asks `condition` every few milliseconds until it holds; `false` when `limit` has passed first.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
