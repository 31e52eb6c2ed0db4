//! The codec of SOCKS 6: the reference vectors, bad input, and properties.
#![cfg(feature = "socks6")]

mod bad_input;
mod check;
mod properties;
mod vectors;
