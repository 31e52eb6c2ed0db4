//! A SOCKS 4, 4a and 5 server for this machine, until Ctrl-C. Clients get to public addresses, and to those that are named:
//! `cargo run --example server -- 127.0.0.1:1080 10.0.0.0/8`.

use std::env;
use std::error::Error;

use sockhop::daemon::Daemon;
use sockhop::daemon::settings::{ControlPath, ServeSettings};
use sockhop::server::rules::Rule;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let listen = arguments.next().ok_or("usage: server ADDR [DEST...]")?;
    let settings = ServeSettings {
        listen: vec![listen.parse()?],
        rules: arguments
            .map(|to| Rule::allow(&to))
            .collect::<Result<_, _>>()?,
        control: ControlPath::None,
        ..ServeSettings::default()
    };
    Ok(Daemon::server(settings)?.run()?)
}
