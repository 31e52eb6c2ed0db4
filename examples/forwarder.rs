//! Forwards a port of loopback to the best of some peers, until Ctrl-C:
//! `cargo run --example forwarder -- 407::1 10.1.2.3:1080`.

use std::env;
use std::error::Error;

use sockhop::daemon::Daemon;
use sockhop::daemon::settings::{ControlPath, Settings};
use sockhop::target::{HostPort, SOCKS_PORT};

fn main() -> Result<(), Box<dyn Error>> {
    let peers = env::args()
        .skip(1)
        .map(|text| HostPort::parse_or_port(&text, SOCKS_PORT));
    let settings = Settings {
        peers: peers.collect::<Result<_, _>>()?,
        listen: vec!["127.0.0.1:1080".parse()?],
        control: ControlPath::None,
        ..Settings::default()
    };
    Ok(Daemon::new(settings)?.run()?)
}
