//! Sends a text as one datagram through a proxy and prints what comes back:
//! `cargo run --example udp -- socks5h://127.0.0.1:1080 192.0.2.7:7 hello`.

use std::env;
use std::error::Error;
use std::io::{ErrorKind, Write as _, stdout};
use std::time::Duration;

use sockhop::client::Dialer;
use sockhop::wire::Address;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [proxy, target, text] = arguments.as_slice() else {
        return Err("usage: udp PROXY HOST:PORT TEXT".into());
    };
    let target: Address = target.parse()?;
    let association = Dialer::new(proxy.parse()?).associate()?;
    let mut buffer = [0; 65_535];
    // Datagrams get lost, so it is asked again.
    for _ in 0..3 {
        association.send_to(text.as_bytes(), &target)?;
        match association.recv_from(&mut buffer, Duration::from_secs(2)) {
            Ok((length, from)) => {
                eprintln!("{length} bytes from {from}");
                stdout().write_all(&buffer[..length])?;
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("no answer".into())
}
