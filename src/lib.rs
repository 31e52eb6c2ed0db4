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

pub mod bad_text;
pub mod choice;
pub mod listen_address;
pub mod source_spec;
pub mod target;

pub mod daemon;

pub mod cli;
pub mod control;
