//! Datagrams through a SOCKS 6 proxy.
//!
//! What to read: "UDP Relaying" in the draft.

use std::error::Error;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::super::Association as AnyAssociation;
use super::super::associate::{MAX_DATAGRAM, connected, copy, send};
use super::super::dialer::{Answer, Dialer};
use super::super::error::{ClientError, Phase, Whose};
use super::super::stream::{Until, wait};
use super::{Errand, Outcome};
use crate::net::{Uplink, until_done};
use crate::proxy_uri::Socks6;
use crate::wire::socks6::{
    AssociationId, Channel, Command, Datagram, DecodeError, Decoded, ErrorCode, Profile, Side,
    StackOptions, UdpError, UdpHeader, UdpMessage,
};
use crate::wire::{Address, BoundAddress};

impl Dialer {
    /// Asks the last proxy, which must speak SOCKS 6, to carry datagrams, which others shall see coming from this address of
    /// the proxy: to claim a port that was reserved with Port Parity, or to be reached at a known one. Zeros are any.
    ///
    /// # Errors
    /// [`ClientError::NeedsSocks6`], and as for [`Dialer::associate`].
    pub fn associate_at(&self, outside: &Address) -> Result<AnyAssociation, ClientError> {
        let options = self.socks6_options()?;
        self.check_channel(options)?;
        let route = self.route(self.deadline());
        let last = &self.last;
        let errand = Errand {
            command: Command::ASSOCIATE,
            address: outside.clone(),
            backlog: None,
            teardown: None,
            about: None,
            whose: Whose::Target,
        };
        let nothing = &mut Vec::new();
        let asked = route.run(&self.before, last, &last.memory, options, &errand, nothing);
        let asked = asked.map_err(|failed| failed.error)?;
        match asked.answer {
            Answer::Socks6(answered) => {
                self.associated(asked.stream, &answered.outcome, route.deadline)
            }
            Answer::Older(..) => Err(ClientError::NeedsSocks6(last.proxy.address().clone())),
        }
    }

    /// Whether datagrams can go the way that was asked for.
    pub(in super::super) fn check_channel(&self, options: &Socks6) -> Result<(), ClientError> {
        match options.channel {
            Some(Channel::Packets) if !self.before.is_empty() => {
                Err(ClientError::NoDatagrams(self.last.proxy.address().clone()))
            }
            _ => Ok(()),
        }
    }

    /// Goes on with an association that the proxy has agreed to.
    pub(in super::super) fn associated(
        &self,
        control: TcpStream,
        outcome: &Outcome,
        deadline: Instant,
    ) -> Result<AnyAssociation, ClientError> {
        let proxy = self.last.proxy.address();
        let options = self.last.proxy.socks6();
        let (Some(options), Outcome::Done(reply)) = (options, outcome) else {
            return Err(ClientError::NeedsSocks6(proxy.clone()));
        };
        let channel = options.channel.unwrap_or(match self.before.is_empty() {
            true => Channel::Packets,
            false => Channel::Stream,
        });
        let far = control.peer_addr().map_err(ClientError::System)?;
        let mut association = Association {
            control,
            socket: None,
            relay: far,
            profile: options.profile,
            id: AssociationId(0),
            outside: reply.bound.clone(),
            granted: reply.options.stack,
            incoming: Mutex::default(),
            sending: Mutex::new(()),
        };
        association.begin(proxy, channel, &self.uplink, deadline)?;
        Ok(AnyAssociation::socks6(association))
    }
}

/// Datagrams through a SOCKS 6 proxy.
#[derive(Debug)]
pub(in super::super) struct Association {
    /// Non-blocking.
    control: TcpStream,
    /// Connected to the relay; without one, the datagrams go over the connection.
    socket: Option<UdpSocket>,
    relay: SocketAddr,
    profile: Profile,
    id: AssociationId,
    outside: BoundAddress,
    granted: StackOptions,
    /// The beginning of the next message on the connection. Not shown, since the first one has the id.
    incoming: Mutex<Incoming>,
    /// Messages on the connection must not mix.
    sending: Mutex<()>,
}

#[derive(Default)]
struct Incoming(Vec<u8>);

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What the proxy told of a datagram that it could not deliver: an ICMP message that came back. It comes as what is inside an
/// [`io::Error`] from [`Association::recv_from`](AnyAssociation::recv_from), after which the association goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramError {
    /// Where the datagram went.
    pub destination: SocketAddr,
    /// What happened.
    pub code: ErrorCode,
    /// Who reported it.
    pub reporter: IpAddr,
}

impl DatagramError {
    /// The one inside an error, if there is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            destination,
            code,
            reporter,
        } = self;
        write!(f, "datagram to {destination}: {code}, says {reporter}")
    }
}

impl Error for DatagramError {}

impl From<UdpError> for DatagramError {
    fn from(error: UdpError) -> Self {
        Self {
            destination: error.destination,
            code: error.code,
            reporter: error.reporter,
        }
    }
}

impl From<DatagramError> for io::Error {
    fn from(error: DatagramError) -> Self {
        let kind = match error.code {
            ErrorCode::NETWORK_UNREACHABLE => io::ErrorKind::NetworkUnreachable,
            ErrorCode::HOST_UNREACHABLE => io::ErrorKind::HostUnreachable,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What a message comes to.
enum Event {
    Datagram(usize, Address),
    Undelivered(DatagramError),
    Confirmed,
    Nothing,
}

impl Association {
    /// Gets the id, and opens the channel.
    fn begin(
        &mut self,
        proxy: &Address,
        channel: Channel,
        uplink: &Uplink,
        deadline: Instant,
    ) -> Result<(), ClientError> {
        self.id = self.initialization(proxy, deadline)?;
        match channel {
            // In order and reliably: what follows it is carried too.
            Channel::Stream => self.write(&self.trigger()).map_err(ClientError::System),
            Channel::Packets => {
                let near = self.control.local_addr().map_err(ClientError::System)?;
                let socket = connected(near, self.relay, uplink).map_err(ClientError::System)?;
                self.socket = Some(socket);
                self.confirm(proxy, deadline)
            }
        }
    }

    fn initialization(
        &self,
        proxy: &Address,
        deadline: Instant,
    ) -> Result<AssociationId, ClientError> {
        let mut until = Until {
            stream: &self.control,
            deadline,
        };
        let mut message = [0; UdpHeader::LEN];
        let broken = |error: io::Error| match error.kind() {
            io::ErrorKind::TimedOut => ClientError::TimedOut(proxy.clone(), Phase::Association),
            _ => ClientError::Broken(proxy.clone(), Phase::Association, error),
        };
        let bad = |error| ClientError::BadAssociation(proxy.clone(), error);
        until.read_exact(&mut message).map_err(broken)?;
        match UdpMessage::decode(&message, &self.profile).map_err(bad)? {
            Decoded::Whole {
                message: UdpMessage::Initialization(id),
                ..
            } => Ok(id),
            // Longer, or of another kind.
            _ => {
                let [_, _, high, low, ..] = message;
                let length = u16::from_be_bytes([high, low]);
                Err(bad(DecodeError::MessageLength(length)))
            }
        }
    }

    /// Nothing for nobody: it tells the proxy which channel this is.
    fn trigger(&self) -> Vec<u8> {
        let nobody = SocketAddr::from(([0; 4], 0));
        let mut message = Vec::new();
        if let Some(datagram) = Datagram::new(self.id, nobody.into(), &[]) {
            datagram.encode(&self.profile, &mut message);
        }
        message
    }

    /// Repeats the empty datagram until the proxy has confirmed it.
    fn confirm(&self, proxy: &Address, deadline: Instant) -> Result<(), ClientError> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let broken =
            |error: io::Error| ClientError::Broken(proxy.clone(), Phase::Confirmation, error);
        let trigger = self.trigger();
        let mut pause = FIRST_REPEAT;
        while Instant::now() < deadline {
            match send(socket, &trigger) {
                // Nobody listens there, or does not yet.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                other => other.map_err(ClientError::System)?,
            }
            let next = deadline.min(Instant::now() + pause);
            pause = (pause * 2).min(LAST_REPEAT);
            // What comes over UDP can wait.
            let control = [self.control.as_fd()];
            while !wait(&control, PollFlags::IN, next)
                .map_err(broken)?
                .is_empty()
            {
                // Nothing else counts before.
                if let Some(Event::Confirmed) = self.read_control(&mut []).map_err(broken)? {
                    return Ok(());
                }
            }
        }
        Err(ClientError::TimedOut(proxy.clone(), Phase::Confirmation))
    }

    pub(in super::super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        let control = self.control.as_fd();
        let socket = self
            .socket
            .as_ref()
            .map_or(control, |socket| socket.as_fd());
        [socket, control]
    }

    pub(in super::super) const fn relay(&self) -> SocketAddr {
        self.relay
    }

    pub(in super::super) const fn outside(&self) -> &BoundAddress {
        &self.outside
    }

    pub(in super::super) const fn granted(&self) -> StackOptions {
        self.granted
    }

    pub(in super::super) fn send_to(&self, payload: &[u8], target: &Address) -> io::Result<()> {
        let datagram = Datagram::new(self.id, target.clone(), payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "datagram too long"))?;
        let mut message = Vec::with_capacity(LONGEST_HEADER + payload.len());
        datagram.encode(&self.profile, &mut message);
        match &self.socket {
            Some(socket) => send(socket, &message),
            None => self.write(&message),
        }
    }

    /// One message to the connection: all of it, or nothing where there is no room now.
    fn write(&self, message: &[u8]) -> io::Result<()> {
        let _alone = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut control = &self.control;
        let Some(begun) = until_done(|| control.write(message))? else {
            return Ok(());
        };
        let rest = message.get(begun..).unwrap_or_default();
        let mut until = Until {
            stream: &self.control,
            deadline: Instant::now() + REST_OF_MESSAGE,
        };
        until.write_all(rest).inspect_err(|_| {
            // Nobody could tell any more where the next message begins.
            let _ = self.control.shutdown(Shutdown::Both);
        })
    }

    pub(in super::super) fn recv_from(
        &self,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> io::Result<(usize, Address)> {
        // All of it, whatever the caller has room for: one that was cut is shorter than it says.
        let mut packet = vec![0; self.socket.as_ref().map_or(0, |_| MAX_DATAGRAM)];
        loop {
            let ready = wait(&self.descriptors(), PollFlags::IN, deadline)?;
            if ready.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // After the datagrams: those that came before the end count.
            let event = match self.read_socket(&mut packet, buffer)? {
                Some(event) => event,
                None => self.read_control(buffer)?.unwrap_or(Event::Nothing),
            };
            match event {
                Event::Datagram(count, from) => return Ok((count, from)),
                Event::Undelivered(error) => return Err(error.into()),
                Event::Confirmed | Event::Nothing => {}
            }
        }
    }

    /// One datagram of the relay, if there is one.
    fn read_socket(&self, packet: &mut [u8], buffer: &mut [u8]) -> io::Result<Option<Event>> {
        let Some(socket) = &self.socket else {
            return Ok(None);
        };
        match until_done(|| socket.recv(packet)) {
            Ok(Some(count)) => {
                let packet = packet.get(..count).unwrap_or_default();
                let message = UdpMessage::decode_packet(packet, &self.profile);
                let event = message.map_or(Event::Nothing, |message| {
                    self.judge(&message, Channel::Packets, buffer)
                });
                Ok(Some(event))
            }
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Ok(Some(Event::Nothing))
            }
            Err(error) => Err(error),
        }
    }

    /// What there is of the next message on the connection; `None` if that isn't all of it. Reads nothing behind it, so that
    /// what has to be done is always seen from outside.
    fn read_control(&self, buffer: &mut [u8]) -> io::Result<Option<Event>> {
        let mut incoming = self.incoming();
        let Incoming(kept) = &mut *incoming;
        loop {
            let missing = match UdpMessage::decode(kept, &self.profile) {
                Ok(Decoded::Missing(missing)) => missing,
                Ok(Decoded::Whole { message, .. }) => {
                    let event = self.judge(&message, Channel::Stream, buffer);
                    kept.clear();
                    return Ok(Some(event));
                }
                Err(error) => {
                    // Where its end is known, the stream goes on behind it.
                    if UdpHeader::decode(kept, &self.profile).is_err() {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                    }
                    kept.clear();
                    return Ok(Some(Event::Nothing));
                }
            };
            let had = kept.len();
            kept.resize(had + missing, 0);
            let room = kept.get_mut(had..).unwrap_or_default();
            let mut control = &self.control;
            let read = until_done(|| control.read(room));
            kept.truncate(had + read.as_ref().map_or(0, |count| count.unwrap_or(0)));
            match read {
                Ok(Some(0)) | Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(None) => return Ok(None),
                Ok(Some(_)) => {}
            }
        }
    }

    /// What a message of the proxy comes to; the payload of a datagram goes into the buffer.
    fn judge(&self, message: &UdpMessage<'_>, channel: Channel, buffer: &mut [u8]) -> Event {
        let ours = message.association() == self.id && message.may_come(Side::Proxy, channel);
        let data = match self.socket {
            Some(_) => Channel::Packets,
            None => Channel::Stream,
        };
        match message {
            _ if !ours => Event::Nothing,
            UdpMessage::Confirmation(_) => Event::Confirmed,
            UdpMessage::Datagram(datagram) if channel == data => {
                Event::Datagram(copy(datagram.payload(), buffer), datagram.address().clone())
            }
            UdpMessage::Error(error) => Event::Undelivered((*error).into()),
            _ => Event::Nothing,
        }
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest of a datagram before its payload: header, address block, and a name of 255 bytes with its length.
pub(in super::super) const LONGEST_HEADER: usize = UdpHeader::LEN + 4 + 256;

/// The empty datagram is repeated after this time, then after twice of it, and so on.
const FIRST_REPEAT: Duration = Duration::from_millis(250);

/// But not less often than this: NATs and proxies need it while they set up things, not for long.
const LAST_REPEAT: Duration = Duration::from_secs(2);

/// How long the proxy may take nothing of a message whose beginning it took.
const REST_OF_MESSAGE: Duration = Duration::from_secs(10);
