//! What is compared: a way from the client to the target each.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::process::{Room, Tree};
use crate::programs;
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
            Self::HaproxySplice => Some(programs::haproxy(
                room,
                &here,
                &to,
                "option splice-request\n  option splice-response",
            )?),
            Self::Haproxy => Some(programs::haproxy(room, &here, &to, "")?),
            Self::Socat => Some(programs::socat(room, port, &to)?),
            Self::Nginx => Some(programs::nginx(room, &here, &to)?),
            Self::Sockhop => Some(programs::sockhop(room, &here, &to)?),
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

/// A port that nobody has at the moment.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
