//! What is compared: a way from the client to the target each.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::process::{Room, Tree};
use crate::programs;
use crate::roles;
use crate::socks6::{self, Session};

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
    /// One thread with select(2).
    Rinetd,
    /// `sockhop forward`.
    Sockhop,
    /// A SOCKS server, a thread per connection.
    Microsocks,
    /// A SOCKS server, processes for each step of a connection.
    Dante,
    /// `sockhop serve`.
    SockhopServe,
    /// The same, in SOCKS 5.
    Socks5,
    /// The same, in SOCKS 6, with the first byte behind the request.
    Socks6,
    /// The same in a session, with a token for each request.
    Socks6Session,
    /// The same behind `sockhop forward`, which clients speak SOCKS 5 to.
    Converter,
    /// `sockhop serve` behind `sockhop forward`, in SOCKS 5 all the way.
    Forward,
    /// The same, with connections to the server that are made before clients come.
    ForwardReady,
}

/// What is compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Programs that forward a port to a remote.
    Forwarders,
    /// SOCKS5 servers: a connection begins with a handshake.
    Servers,
    /// Ways to ask `sockhop serve`, near and far.
    Socks6,
}

impl Kind {
    /// In the order of the table's columns.
    pub(crate) fn relays(self) -> &'static [Relay] {
        match self {
            Self::Forwarders => &[
                Relay::None,
                Relay::Plain,
                Relay::HaproxySplice,
                Relay::Haproxy,
                Relay::Socat,
                Relay::Nginx,
                Relay::Rinetd,
                Relay::Sockhop,
            ],
            Self::Servers => &[
                Relay::None,
                Relay::Microsocks,
                Relay::Dante,
                Relay::SockhopServe,
            ],
            Self::Socks6 => &[
                Relay::None,
                Relay::Socks5,
                Relay::Socks6,
                Relay::Socks6Session,
                Relay::Converter,
                Relay::Forward,
                Relay::ForwardReady,
            ],
        }
    }

    /// What this is all about.
    pub(crate) fn subject(self) -> Relay {
        match self {
            Self::Forwarders => Relay::Sockhop,
            Self::Servers => Relay::SockhopServe,
            Self::Socks6 => Relay::Socks6,
        }
    }

    /// Whom the subject is compared with.
    pub(crate) fn rivals(self) -> &'static [Relay] {
        match self {
            Self::Forwarders => &[Relay::HaproxySplice, Relay::Socat, Relay::Plain],
            Self::Servers => &[Relay::Microsocks, Relay::Dante],
            Self::Socks6 => &[Relay::Socks5, Relay::Converter],
        }
    }
}

/// A relay that has been started, with a target of its own, so that ports in TIME_WAIT are never another relay's.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) relay: Relay,
    /// Where clients connect.
    address: SocketAddr,
    /// Where they do if the way to the target, or to the server in front of it, is long.
    far: Option<SocketAddr>,
    /// Nothing, if there is no relay.
    pub(crate) tree: Option<Tree>,
    /// Of the target, over TCP and over UDP.
    target_port: u16,
    session: Option<Session>,
    /// The target, and what is between.
    _others: Vec<Tree>,
}

/// How to begin with a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// It knows where to go.
    None,
    Socks5,
    Socks6,
}

/// No single read or write takes longer.
const LIMIT: Duration = Duration::from_secs(30);

impl Relay {
    /// The table's heading, and the name for `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "no-relay",
            Self::Plain => "plain",
            Self::HaproxySplice => "haproxy-splice",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
            Self::Nginx => "nginx",
            Self::Rinetd => "rinetd",
            Self::Sockhop => "sockhop",
            Self::Microsocks => "microsocks",
            Self::Dante => "dante",
            Self::SockhopServe => "sockhop-serve",
            Self::Socks5 => "socks5",
            Self::Socks6 => "socks6",
            Self::Socks6Session => "socks6-session",
            Self::Converter => "converter",
            Self::Forward => "forward",
            Self::ForwardReady => "forward-ready",
        }
    }

    /// How many connections it is asked to hold at most: some have threads or processes for each, or look at all for any,
    /// and some are set up for fewer.
    pub(crate) fn bears(self) -> usize {
        match self {
            Self::Plain | Self::Socat | Self::Rinetd | Self::Microsocks | Self::Dante => 1_000,
            Self::HaproxySplice | Self::Nginx => 4_000,
            _ => usize::MAX,
        }
    }

    fn dialect(self) -> Dialect {
        match self {
            Self::Microsocks
            | Self::Dante
            | Self::SockhopServe
            | Self::Socks5
            | Self::Converter
            | Self::Forward
            | Self::ForwardReady => Dialect::Socks5,
            Self::Socks6 | Self::Socks6Session => Dialect::Socks6,
            _ => Dialect::None,
        }
    }

    /// Starts it in front of a new target.
    pub(crate) fn start(self, room: &Room, kind: Kind) -> io::Result<Running> {
        if kind == Kind::Socks6 {
            return self.start_near_and_far(room);
        }
        let (target, target_port) = room.role("target", &[])?;
        let (to, port) = (format!("127.0.0.1:{target_port}"), free_port()?);
        let here = format!("127.0.0.1:{port}");
        let tree = match self {
            Self::None => None,
            Self::Plain => {
                let (tree, port) = room.role("plain", &[&to])?;
                return Running::new(self, port, Some(tree), target, target_port);
            }
            Self::Socks5
            | Self::Socks6
            | Self::Socks6Session
            | Self::Converter
            | Self::Forward
            | Self::ForwardReady => {
                return Err(io::Error::other("it is compared near and far only"));
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
            Self::Rinetd => Some(programs::rinetd(room, port, target_port)?),
            Self::Sockhop => Some(programs::sockhop_forward(room, &here, &to, &[])?),
            Self::Microsocks => Some(programs::microsocks(room, port)?),
            Self::Dante => Some(programs::dante(room, port)?),
            Self::SockhopServe => Some(programs::sockhop_serve(room, &here)?),
        };
        let port = if tree.is_some() { port } else { target_port };
        Running::new(self, port, tree, target, target_port)
    }

    /// Starts it twice: in front of a new target, and with a long way between client and server.
    fn start_near_and_far(self, room: &Room) -> io::Result<Running> {
        let (target, target_port) = room.role("target", &[])?;
        let mut port = target_port;
        let mut tree = None;
        let mut others = Vec::new();
        if self != Self::None {
            port = free_port()?;
            let mut server = programs::sockhop_serve(room, &format!("127.0.0.1:{port}"))?;
            server.wait_listening(port)?;
            tree = Some(server);
        }
        let (delay, mut far) = room.role("delay", &[&format!("127.0.0.1:{port}")])?;
        others.push(delay);
        let in_front: Option<(&str, &[&str])> = match self {
            Self::Converter => Some(("socks6", &[])),
            Self::Forward => Some(("socks5", &[])),
            Self::ForwardReady => Some(("socks5", &["--ready", "4"])),
            _ => None,
        };
        if let Some((scheme, options)) = in_front {
            others.extend(tree.take());
            for end in [&mut far, &mut port] {
                let remote = format!("{scheme}://127.0.0.1:{end}");
                *end = free_port()?;
                let here = format!("127.0.0.1:{end}");
                let mut forwarder = programs::sockhop_forward(room, &here, &remote, options)?;
                forwarder.wait_listening(*end)?;
                others.extend(tree.replace(forwarder));
            }
        }
        let mut running = Running::new(self, port, tree, target, target_port)?;
        running.far = Some((Ipv4Addr::LOCALHOST, far).into());
        running._others.extend(others);
        if self == Self::Socks6Session {
            running.session = Some(Session::open(&running.connect()?)?);
        }
        Ok(running)
    }
}

impl Running {
    fn new(
        relay: Relay,
        port: u16,
        mut tree: Option<Tree>,
        target: Tree,
        target_port: u16,
    ) -> io::Result<Self> {
        if let Some(tree) = &mut tree {
            tree.wait_listening(port)?;
        }
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Ok(Self {
            relay,
            address,
            far: None,
            tree,
            target_port,
            session: None,
            _others: vec![target],
        })
    }

    /// A connection to the relay, on which nothing has been said.
    pub(crate) fn connect(&self) -> io::Result<TcpStream> {
        Self::connect_to(self.address)
    }

    fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// A connection through the relay to the target, which has answered the first byte.
    pub(crate) fn open(&self, first: u8) -> io::Result<TcpStream> {
        self.open_on(self.connect()?, first)
    }

    /// The same with a long way between client and server.
    pub(crate) fn open_far(&self, first: u8) -> io::Result<TcpStream> {
        let far = self.far.ok_or_else(|| io::Error::other("nothing is far"))?;
        self.open_on(Self::connect_to(far)?, first)
    }

    fn open_on(&self, mut stream: TcpStream, first: u8) -> io::Result<TcpStream> {
        match self.relay.dialect() {
            Dialect::None => stream.write_all(&[first])?,
            Dialect::Socks5 => {
                ask(&mut stream, CONNECT, self.target_port)?;
                stream.write_all(&[first])?;
            }
            Dialect::Socks6 => {
                let session = self.session.as_ref();
                socks6::connect(&stream, self.target_port, session, &[first])?;
            }
        }
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer != [first] {
            return Err(io::Error::other("not the target's answer"));
        }
        Ok(stream)
    }

    /// A way for datagrams to the target, which sends them back.
    pub(crate) fn open_datagrams(&self) -> io::Result<Datagrams> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(LIMIT))?;
        let target = (Ipv4Addr::LOCALHOST, self.target_port);
        if self.relay.dialect() == Dialect::None {
            socket.connect(target)?;
            return Ok(Datagrams {
                socket,
                header: Vec::new(),
                _control: None,
            });
        }
        let mut control = self.connect()?;
        let port = ask(&mut control, UDP_ASSOCIATE, 0)?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        let mut header = vec![0, 0, 0];
        put_address(&mut header, self.target_port);
        Ok(Datagrams {
            socket,
            header,
            _control: Some(control),
        })
    }

    /// As many connections, each with one round trip behind it.
    pub(crate) fn open_many(&self, count: usize) -> io::Result<Vec<TcpStream>> {
        (0..count).map(|_| self.open(roles::ask::ECHO)).collect()
    }
}

/// A socket connected to the target, or to a server that passes datagrams on to it.
#[derive(Debug)]
pub(crate) struct Datagrams {
    pub(crate) socket: UdpSocket,
    /// Stands before the payload, both ways (RFC 1928 §7).
    pub(crate) header: Vec<u8>,
    /// The association ends with it.
    _control: Option<TcpStream>,
}

/// The handshake as most clients do it, in two round trips; the port that the server tells (RFC 1928 §3, §4, §6).
pub(crate) fn ask(stream: &mut TcpStream, command: u8, port: u16) -> io::Result<u16> {
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    let mut request = vec![5, command, 0];
    match command {
        CONNECT => put_address(&mut request, port),
        _ => request.extend([1, 0, 0, 0, 0, 0, 0]),
    }
    stream.write_all(&request)?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    match (method, reply) {
        ([5, 0], [5, 0, 0, 1, .., high, low]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err(io::Error::other(format!("refused: {method:?}, {reply:?}"))),
    }
}

/// A port of loopback.
fn put_address(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend([1, 127, 0, 0, 1]);
    bytes.extend(port.to_be_bytes());
}

/// CONNECT (RFC 1928 §4).
pub(crate) const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;

/// A port that nobody has at the moment.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
