//! The forwarder as a running program: what it is told, and the parts joined.

pub mod settings;
