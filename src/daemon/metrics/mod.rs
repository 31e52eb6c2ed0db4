//! `--metrics`: what Prometheus asks for, over HTTP on a listener of its own.
//!
//! All of it runs on the reactor thread as tasks that never block, so a slow scraper costs a descriptor and its answer's bytes, and
//! no worker. Read [`http`] for what is understood, [`text`] for the format, [`forwarder`] for what is told.

mod forwarder;
mod http;
mod server;
mod text;

pub(super) use forwarder::render;
pub(super) use server::MetricsServer;
