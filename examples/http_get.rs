//! Fetches a page through a proxy, with ureq as the HTTP client, and prints it:
//! `cargo run --example http_get -- socks5h://127.0.0.1:1080 http://example.org/`.
//!
//! For `https`, chain ureq's `RustlsConnector` behind ours. ureq may change what is under `unversioned`.

use std::env;
use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use sockhop::client::Dialer;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error as HttpError};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [proxy, url] = arguments.as_slice() else {
        return Err("usage: http_get PROXY URL".into());
    };
    // The proxy is ours to speak to, also if the environment names one.
    let config = Agent::config_builder().proxy(None).build();
    let connector = ThroughProxy(Dialer::new(proxy.parse()?));
    let agent = Agent::with_parts(config, connector, AtProxy);
    let mut response = agent.get(url).call()?;
    io::copy(&mut response.body_mut().as_reader(), &mut io::stdout())?;
    Ok(())
}

/// Makes the connections of an agent.
#[derive(Debug)]
struct ThroughProxy(Dialer);

impl Connector for ThroughProxy {
    type Out = Stream;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Stream>, HttpError> {
        let uri = details.uri;
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(80);
        let target = format!("{host}:{port}").parse();
        let target = target.map_err(|_| HttpError::BadUri(uri.to_string()))?;
        let dialer = match details.timeout.not_zero() {
            Some(limit) => self.0.clone().timeout(*limit),
            None => self.0.clone(),
        };
        let stream = dialer
            .connect(&target)
            .map_err(|error| HttpError::Other(error.into()))?;
        let config = details.config;
        Ok(Some(Stream {
            stream,
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
        }))
    }
}

/// A connection of an agent.
#[derive(Debug)]
struct Stream {
    stream: TcpStream,
    buffers: LazyBuffers,
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), HttpError> {
        let timeout = timeout.for_write();
        self.stream
            .set_write_timeout(timeout.not_zero().map(|limit| *limit))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        let written = (&self.stream).write_all(output);
        written.map_err(|error| timed(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, HttpError> {
        let timeout = timeout.for_read();
        self.stream
            .set_read_timeout(timeout.not_zero().map(|limit| *limit))?;
        let read = self.stream.read(self.buffers.input_append_buf());
        let count = read.map_err(|error| timed(error, timeout))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// There is one request in this program, so no connection is used twice.
    fn is_open(&mut self) -> bool {
        false
    }
}

/// A socket that waited in vain says so in one of two ways.
fn timed(error: io::Error, timeout: NextTimeout) -> HttpError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => HttpError::Timeout(timeout.reason),
        _ => error.into(),
    }
}

/// Leaves names to the [`Dialer`], so that the scheme of the proxy says who looks them up.
#[derive(Debug)]
struct AtProxy;

impl Resolver for AtProxy {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, HttpError> {
        Ok(self.empty())
    }
}
