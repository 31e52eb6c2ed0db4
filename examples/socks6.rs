//! Sends a text to a target, twice, through a SOCKS 6 proxy, and prints what comes back:
//! `cargo run --example socks6 -- 'socks6://ada:secret@127.0.0.1:1080?tokens=10' 192.0.2.7:7 hello`.
//!
//! The text travels with the request, so the first answer byte comes after one round trip. The first request opens a session;
//! the second one goes without the password, and spends a token of the session, so it can't be replayed.

use std::env;
use std::error::Error;
use std::io::{Read as _, Write as _, stdout};
use std::net::Shutdown;
use std::time::Instant;

use sockhop::client::Dialer;
use sockhop::wire::Address;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [proxy, target, text] = arguments.as_slice() else {
        return Err("usage: socks6 PROXY HOST:PORT TEXT".into());
    };
    let target: Address = target.parse()?;
    let dialer = Dialer::new(proxy.parse()?);
    for _ in 0..2 {
        let start = Instant::now();
        let mut connected = dialer.connect_with(&target, text.as_bytes())?;
        connected.stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        connected.stream.read_to_end(&mut answer)?;
        eprintln!(
            "from {} in {:?}; session: {}, tokens left: {}",
            connected.bound,
            start.elapsed(),
            dialer.has_session(),
            dialer.tokens_left()
        );
        stdout().write_all(&answer)?;
    }
    Ok(())
}
