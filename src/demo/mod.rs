//! The whole chain on loopback: peers of every kind, discovery, choice, a forwarder, and a page to fetch through it.
//!
//! The valid peers are real SOCKS servers, so that anything can be fetched through them; they and the page are on
//! loopback only.

mod page;
mod peers;

use std::error::Error;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::client::{Client as ControlClient, ClientError};
use crate::control::messages::{Call, PeerStatus, ProxyEntry, Status};
use crate::daemon::settings::{ControlPath, Settings};
use crate::daemon::{Daemon, StartError};
use crate::handshake::{Client, Goal, Outcome};
use crate::listen_address::ListenAddress;
use crate::target::HostPort;
use crate::wire::Address;

pub use peers::Peers;

/// What the demonstration has to show, in this order.
pub trait Audience: Send {
    /// A line of the story.
    fn tell(&mut self, line: &str);
    /// What is known of the peers.
    fn show(&mut self, peers: &[ProxyEntry]);
}

/// Whether the demonstration goes on when everything was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It ends.
    AtOnce,
    /// It runs until SIGTERM or SIGINT.
    WhenTold,
}

/// Why the demonstration failed.
#[derive(Debug)]
pub enum DemoError {
    /// The peers.
    Peers(io::Error),
    /// The folder of the control socket could not be made.
    Folder(PathBuf, io::Error),
    /// The forwarder.
    Forwarder(StartError),
    /// Talking to the forwarder.
    Control(ClientError),
    /// The forwarder chose nobody in time.
    NothingChosen,
    /// Fetching the page through the forwarder.
    Fetch(io::Error),
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder(path, _) => {
                return write!(
                    f,
                    "cannot make {} for the control socket (TMPDIR says where)",
                    path.display()
                );
            }
            Self::Peers(_) => "cannot start the peers of the demonstration",
            Self::Forwarder(_) => "cannot start the forwarder",
            Self::Control(_) => "cannot ask the forwarder",
            Self::NothingChosen => "the forwarder found no peer in time",
            Self::Fetch(_) => "cannot fetch the page through the forwarder",
        })
    }
}

impl Error for DemoError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Peers(error) | Self::Folder(_, error) | Self::Fetch(error) => Some(error),
            Self::Forwarder(error) => Some(error),
            Self::Control(error) => Some(error),
            Self::NothingChosen => None,
        }
    }
}

/// Runs the demonstration.
///
/// # Errors
/// What did not work.
pub fn run(ending: Ending, audience: Box<dyn Audience>) -> Result<(), DemoError> {
    let peers = Peers::start().map_err(DemoError::Peers)?;
    let folder = Folder::make()?;
    let control = folder.path.join("control.sock");
    let settings = Settings {
        listen: listeners(),
        peers: peers
            .addresses()
            .iter()
            .copied()
            .map(|address| HostPort::from(address).into())
            .collect(),
        probe_timeout: PROBE_TIMEOUT,
        control: ControlPath::At(control.clone()),
        ..Settings::default()
    };
    let daemon = Daemon::new(settings).map_err(DemoError::Forwarder)?;
    let mailbox = daemon.mailbox();
    let page = peers.page();
    let guide = std::thread::Builder::new()
        .name("guide".into())
        .spawn(move || {
            let result = guide(&control, page, ending, audience);
            if ending == Ending::AtOnce || result.is_err() {
                mailbox.stop();
            }
            result
        });
    let guide = guide.map_err(DemoError::Peers)?;
    daemon.run().map_err(DemoError::Forwarder)?;
    if !guide.is_finished() {
        // Ended by a signal in the middle of the story.
        return Ok(());
    }
    guide.join().map_err(|_| DemoError::NothingChosen)?
}

/// Both loopback addresses on one free port where there are both: `localhost` means either.
fn listeners() -> Vec<ListenAddress> {
    for _ in 0..ATTEMPTS {
        let Ok(probe) =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr())
        else {
            continue;
        };
        let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], probe.port()));
        match std::net::TcpListener::bind(v6) {
            Ok(_) => return vec![ListenAddress::Tcp(probe), ListenAddress::Tcp(v6)],
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(_) => break,
        }
    }
    vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())]
}

fn guide(
    control: &Path,
    page: SocketAddr,
    ending: Ending,
    mut audience: Box<dyn Audience>,
) -> Result<(), DemoError> {
    audience.tell("Peers of every kind are on loopback; the forwarder probes them and takes the first good one.");
    let deadline = Instant::now() + PATIENCE;
    let mut client = connect(control, deadline)?;
    let status = loop {
        let status: Status = ask(&mut client, &Call::Status)?;
        if status.remote.is_some() && status.candidates.unknown == 0 {
            break status;
        }
        if Instant::now() >= deadline {
            return Err(DemoError::NothingChosen);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    };
    let peers: Vec<ProxyEntry> = ask(&mut client, &Call::Proxies)?;
    audience.tell("");
    audience.show(&peers);
    audience.tell("");
    let valid = peers
        .iter()
        .filter(|peer| peer.status == PeerStatus::Valid)
        .count();
    let remote = status.remote.unwrap_or_default();
    let listening = status.listening.first().cloned().unwrap_or_default();
    audience.tell(&format!(
        "{valid} of {} peers are valid; connections to {listening} go to {remote}.",
        peers.len()
    ));
    let address: SocketAddr = listening.parse().map_err(|_| DemoError::NothingChosen)?;
    let answer = fetch(address, page).map_err(DemoError::Fetch)?;
    audience.tell(&format!("A page fetched through it says: {answer}"));
    audience.tell("");
    audience.tell("Try it:");
    audience.tell(&format!(
        "    curl -x socks5h://localhost:{} http://{page}/",
        address.port()
    ));
    audience.tell("What the running forwarder can tell and do:");
    audience.tell(&format!(
        "    sockhop status --control {}",
        control.display()
    ));
    if ending == Ending::WhenTold {
        audience.tell("");
        audience.tell("Ctrl-C ends it.");
    }
    Ok(())
}

/// The control socket is there as soon as the forwarder runs.
fn connect(control: &Path, deadline: Instant) -> Result<ControlClient, DemoError> {
    loop {
        match ControlClient::connect(control, PATIENCE) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= deadline => return Err(DemoError::Control(error)),
            Err(_) => std::thread::sleep(BETWEEN_LOOKS),
        }
    }
}

fn ask<T: crate::control::reading::Readable>(
    client: &mut ControlClient,
    call: &Call,
) -> Result<T, DemoError> {
    client
        .call(call)
        .and_then(|answer| answer.decode())
        .map_err(DemoError::Control)
}

/// Fetches the page through a SOCKS5 proxy; its text.
fn fetch(proxy: SocketAddr, page: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&proxy, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut handshake = Client::new(Goal::Connect(Address::from(page)), None);
    let (mut out, mut buffer) = (Vec::new(), [0; 512]);
    handshake.start(&mut out);
    while !matches!(handshake.outcome(), Some(Outcome::Done(_))) {
        stream.write_all(&out)?;
        out.clear();
        // One byte at a time: what comes behind the reply is not ours to read here.
        let byte = buffer.get_mut(..1).unwrap_or_default();
        if stream.read(byte)? == 0 {
            return Err(io::Error::other(handshake.closed().to_string()));
        }
        handshake
            .feed(byte, &mut out)
            .map_err(|error| io::Error::other(error.to_string()))?;
    }
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {page}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MOST_OF_PAGE).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.trim().to_owned()),
        None => Err(io::Error::other("the answer is not HTTP")),
    }
}

/// A folder for the control socket that nobody else can look into, removed at the end.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> Result<Self, DemoError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("sockhop-demo-{}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path }),
            Err(error) => Err(DemoError::Folder(path, error)),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only the socket was in it.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// On loopback everybody answers at once or never.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// For everything to be found and fetched.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at the forwarder's status.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// The page is shorter.
const MOST_OF_PAGE: u64 = 64 * 1024;

/// For a port that is free on both loopback addresses.
const ATTEMPTS: usize = 16;
