//! sockhop: SOCKS proxies on overlay networks, found, chosen and forwarded to.
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
pub mod relay;
pub mod resolver;

pub mod bad_text;
pub mod choice;
pub mod listen_address;
pub mod source_spec;
pub mod target;

pub mod discovery;
pub mod forward;
pub mod listen;
pub mod server;

pub mod cli;
pub mod control;
pub mod daemon;
pub mod demo;

pub use proxy_uri::ProxyUri;
