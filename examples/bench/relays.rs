//! What is compared, and how each is started.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Room, Tree};
use crate::roles::ask;

/// A way from the client to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relay {
    /// Straight to the target: what loopback, the client and the target cost by themselves.
    None,
    /// The bench's own thread-per-direction relay.
    Plain,
    /// HAProxy in tcp mode, with splice(2).
    HaproxySplice,
    /// The same, copying.
    Haproxy,
    /// A process per connection.
    Socat,
    /// nginx's stream module.
    Nginx,
    /// The subject.
    Sockhop,
}

/// A relay that has been started, with a target of its own, so that ports in TIME_WAIT are never another relay's.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) relay: Relay,
    /// Where clients connect.
    address: SocketAddr,
    /// Nothing, if there is no relay.
    pub(crate) tree: Option<Tree>,
    _target: Tree,
}

/// No single read or write takes longer.
const LIMIT: Duration = Duration::from_secs(30);

impl Relay {
    /// In the order of the table's columns.
    pub(crate) const ALL: [Self; 7] = [
        Self::None,
        Self::Plain,
        Self::HaproxySplice,
        Self::Haproxy,
        Self::Socat,
        Self::Nginx,
        Self::Sockhop,
    ];

    /// The table's heading, and the name for `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "no-relay",
            Self::Plain => "plain",
            Self::HaproxySplice => "haproxy-splice",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
            Self::Nginx => "nginx",
            Self::Sockhop => "sockhop",
        }
    }

    /// Starts it in front of a new target.
    pub(crate) fn start(self, room: &Room) -> io::Result<Running> {
        let (target, target_port) = room.role("target", &[])?;
        let (to, port) = (format!("127.0.0.1:{target_port}"), free_port()?);
        let here = format!("127.0.0.1:{port}");
        let tree = match self {
            Self::None => None,
            Self::Plain => {
                let (tree, port) = room.role("plain", &[&to])?;
                return Running::new(self, port, Some(tree), target);
            }
            Self::HaproxySplice => Some(haproxy(
                room,
                &here,
                &to,
                "option splice-request\n  option splice-response",
            )?),
            Self::Haproxy => Some(haproxy(room, &here, &to, "")?),
            Self::Socat => {
                let from =
                    format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=1024");
                let to = format!("TCP:{to},nodelay");
                Some(room.program(&installed("socat")?, &[from.as_ref(), to.as_ref()])?)
            }
            Self::Nginx => Some(nginx(room, &here, &to)?),
            Self::Sockhop => Some(sockhop(room, &here, &to)?),
        };
        let port = if tree.is_some() { port } else { target_port };
        Running::new(self, port, tree, target)
    }
}

impl Running {
    fn new(relay: Relay, port: u16, mut tree: Option<Tree>, target: Tree) -> io::Result<Self> {
        if let Some(tree) = &mut tree {
            tree.wait_listening(port)?;
        }
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Ok(Self {
            relay,
            address,
            tree,
            _target: target,
        })
    }

    /// A connection through the relay to the target, which has answered the first byte.
    pub(crate) fn open(&self, first: u8) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.write_all(&[first])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer != [first] {
            return Err(io::Error::other("not the target's answer"));
        }
        Ok(stream)
    }

    /// As many connections, each with one round trip behind it.
    pub(crate) fn open_many(&self, count: usize) -> io::Result<Vec<TcpStream>> {
        (0..count).map(|_| self.open(ask::ECHO)).collect()
    }
}

/// One thread, as the others have one process; `maxconn` because the default depends on the descriptor limit.
///
/// Not `splice-auto`: with bulk alone it seldom decides for splice, and costs twice as much.
fn haproxy(room: &Room, here: &str, to: &str, splice: &str) -> io::Result<Tree> {
    let program = installed("haproxy")?;
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4000\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  {splice}\n\
         listen bench\n  bind {here}\n  server target {to}\n"
    );
    let name = if splice.is_empty() {
        "haproxy.cfg"
    } else {
        "haproxy-splice.cfg"
    };
    let file = room.file(name, &text)?;
    room.program(
        &program,
        &[
            "-db".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            file.as_os_str(),
        ],
    )
}

/// 64 KiB buffers: three times less processor time per byte than its default of 16.
fn nginx(room: &Room, here: &str, to: &str) -> io::Result<Tree> {
    let program = installed("nginx")?;
    // Debian builds the stream module as a file of its own; elsewhere it may be inside.
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() {
        format!("load_module {};\n", module.display())
    } else {
        String::new()
    };
    let text = format!(
        "{load}daemon off;\nworker_processes 1;\nworker_rlimit_nofile 16384;\npid {folder}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 8192; }}\n\
         stream {{\n  access_log off;\n  server {{\n    listen {here};\n    proxy_pass {to};\n    proxy_buffer_size 64k;\n    \
         proxy_timeout 1h;\n  }}\n}}\n",
        folder = room.path().display()
    );
    let file = room.file("nginx.conf", &text)?;
    room.program(
        &program,
        &[
            "-e".as_ref(),
            "stderr".as_ref(),
            "-c".as_ref(),
            file.as_os_str(),
        ],
    )
}

fn sockhop(room: &Room, here: &str, to: &str) -> io::Result<Tree> {
    // target/release/examples/bench -> target/release/sockhop
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).unwrap_or(&own).join("sockhop");
    if !program.exists() {
        let hint = "build it first: cargo build --release";
        return Err(io::Error::other(format!(
            "{} is missing; {hint}",
            program.display()
        )));
    }
    let arguments = [
        "forward",
        "--remote",
        to,
        "--listen",
        here,
        "--control",
        "none",
        "-q",
    ];
    room.program(&program, &arguments.map(OsStr::new))
}

/// A port that nobody has at the moment.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Servers live in sbin, which not every user has in the path.
fn installed(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| io::Error::other("it is not installed"))
}
