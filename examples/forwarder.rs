//! Forwards a port to the best of some peers, until Ctrl-C:
//! `cargo run --example forwarder -- 127.0.0.1:1080 407::1 10.1.2.3:9050`.

use std::env;
use std::error::Error;

use sockhop::daemon::Daemon;
use sockhop::daemon::settings::{ControlPath, Settings};
use sockhop::peer::Peer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let listen = arguments.next().ok_or("usage: forwarder ADDR PEER...")?;
    let peers = arguments.map(|text| Peer::parse_listed(&text));
    let settings = Settings {
        listen: vec![listen.parse()?],
        peers: peers.collect::<Result<_, _>>()?,
        control: ControlPath::None,
        ..Settings::default()
    };
    Ok(Daemon::new(settings)?.run()?)
}
