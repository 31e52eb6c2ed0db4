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

pub use proxy_uri::ProxyUri;
