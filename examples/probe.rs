//! Probes addresses: `cargo run --example probe -- 127.0.0.1:1080 '[::1]:1080'`.

use std::env;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use sockhop::discovery::probe::{AskSocks6, ProbeSettings};
use sockhop::discovery::survey;

fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<SocketAddr> = env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let settings = ProbeSettings {
        timeout: Duration::from_secs(5),
        target: None,
        socks6: AskSocks6::No,
    };
    let findings = survey(&addresses, &settings, 64, &mut |_| {})?;
    for (address, finding) in addresses.iter().zip(findings) {
        let reason = finding.reason();
        println!("{address}  {}  {reason}", reason.status());
    }
    Ok(())
}
