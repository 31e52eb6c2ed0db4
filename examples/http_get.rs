//! Fetches a page through a proxy and prints it as it comes, head and all:
//! `cargo run --example http_get -- socks5h://127.0.0.1:1080 example.org:80 /`.

use std::env;
use std::error::Error;
use std::io::{self, Write as _};

use sockhop::client::{self, Fault};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [proxy, target, path] = arguments.as_slice() else {
        return Err("usage: http_get PROXY HOST:PORT PATH".into());
    };
    let mut stream = match client::connect(&proxy.parse()?, target) {
        Ok(stream) => stream,
        Err(error) if error.fault() == Fault::Target => {
            return Err(format!("the proxy is fine, but: {error}").into());
        }
        Err(error) => return Err(error.into()),
    };
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
    )?;
    io::copy(&mut stream, &mut io::stdout())?;
    Ok(())
}
