//! Probes addresses: `cargo run --example probe -- 127.0.0.1:1080 '[::1]:1080'`.

use std::env;
use std::error::Error;
use std::net::AddrParseError;
use std::time::Duration;

use sockhop::discovery::probe::{AskSocks6, ProbeSettings};
use sockhop::discovery::survey;
use sockhop::net::Uplink;

fn main() -> Result<(), Box<dyn Error>> {
    // None of them with a user and a password.
    let peers = env::args()
        .skip(1)
        .map(|text| Ok((text.parse()?, None)))
        .collect::<Result<Vec<_>, AddrParseError>>()?;
    let settings = ProbeSettings {
        timeout: Duration::from_secs(5),
        target: None,
        socks6: AskSocks6::No,
        uplink: Uplink::default(),
    };
    let findings = survey(&peers, &settings, 64, |_| {})?;
    for ((address, _), finding) in peers.iter().zip(findings) {
        let reason = finding.reason();
        println!("{address}  {}  {reason}", reason.status());
    }
    Ok(())
}
