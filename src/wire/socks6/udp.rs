//! Messages of an association: over UDP one a datagram, over TCP one after the other.
//!
//! What to read: "UDP Relaying" in the draft.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::address::{HostField, Length, Place, host_length, read_host, write_host};
use super::error::{DecodeError, Decoded, Problems};
use super::profile::{AddressOrder, Profile};
use crate::wire::Address;

/// The id of an association. Over plain UDP it is all that a client has to show, so `Debug` hides it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AssociationId(pub u64);

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    /// 1 to 4; the others are unknown and can be skipped.
    pub kind: u8,
    /// Of the whole message with this header.
    pub length: u16,
    /// Whose message it is.
    pub association: AssociationId,
}

/// A message of an association. What it carries is borrowed, so that nothing is copied on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdpMessage<'a> {
    /// The association's id, from the proxy over TCP right after the operation reply (type 1).
    Initialization(AssociationId),
    /// The first datagram has come, from the proxy over TCP (type 2).
    Confirmation(AssociationId),
    /// A datagram (type 3).
    Datagram(Datagram<'a>),
    /// A datagram of the client caused an ICMP error (type 4).
    Error(UdpError),
    /// Something of a type that we don't know.
    Unknown(UdpHeader),
}

/// A datagram: from the client to this destination, or to the client from this source.
#[derive(Clone, PartialEq, Eq)]
pub struct Datagram<'a> {
    association: AssociationId,
    address: Address,
    payload: &'a [u8],
}

/// What became of a datagram of the client. Proxies send these only to clients that asked for them (UDP Error option).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpError {
    /// Whose datagram it was.
    pub association: AssociationId,
    /// Where it went.
    pub destination: SocketAddr,
    /// What happened.
    pub code: ErrorCode,
    /// Who reported it.
    pub reporter: IpAddr,
}

/// What happened to a datagram. Any byte is a code; those we know have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u8);

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client.
    Client,
    /// The proxy.
    Proxy,
}

/// What a message came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// TCP or TLS: the connection of the request.
    Stream,
    /// UDP or DTLS.
    Packets,
}

impl UdpHeader {
    /// Version, type, length, association.
    pub const LEN: usize = 12;

    /// See [`super`] for the convention. With the header alone, a message can be skipped, and a datagram for an unknown
    /// association dropped before anything else of it is looked at.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Version`]; [`DecodeError::MessageLength`] if the message would be shorter than this.
    pub fn decode(input: &[u8], profile: &Profile) -> Result<Decoded<Self>, DecodeError> {
        match *input {
            [version, ..] if version != profile.version => {
                return Err(DecodeError::Version(version));
            }
            [_, _, high, low, ..] => {
                let length = u16::from_be_bytes([high, low]);
                if usize::from(length) < Self::LEN {
                    return Err(DecodeError::MessageLength(length));
                }
            }
            _ => (),
        }
        let Some(&[_, kind, high, low, ref id @ ..]) = input.first_chunk::<{ Self::LEN }>() else {
            return Ok(Decoded::Missing(Self::LEN - input.len()));
        };
        let message = Self {
            kind,
            length: u16::from_be_bytes([high, low]),
            association: AssociationId(u64::from_be_bytes(*id)),
        };
        Ok(whole(message, Self::LEN))
    }
}

impl<'a> UdpMessage<'a> {
    /// The longest message: its length has 16 bits.
    pub const MAX_LEN: usize = 65_535;

    /// Decodes the next message of a stream; see [`super`] for the convention. After an error other than those of
    /// [`UdpHeader::decode`], the stream can go on behind the message.
    ///
    /// # Errors
    ///
    /// Those of [`UdpHeader::decode`], [`DecodeError::AddressType`], [`DecodeError::NameLength`], [`DecodeError::Name`],
    /// [`DecodeError::MessageLength`].
    pub fn decode(input: &'a [u8], profile: &Profile) -> Result<Decoded<Self>, DecodeError> {
        let header = match UdpHeader::decode(input, profile)? {
            Decoded::Whole { message, .. } => message,
            Decoded::Missing(header) => {
                // From its fourth byte on, the header tells how long the message is.
                let length = match *input {
                    [_, _, high, low, ..] => usize::from(u16::from_be_bytes([high, low])),
                    _ => input.len() + header,
                };
                return Ok(Decoded::Missing(length - input.len()));
            }
        };
        let length = usize::from(header.length);
        let Some(body) = input.get(UdpHeader::LEN..length) else {
            return Ok(Decoded::Missing(length - input.len()));
        };
        let message = match header.kind {
            INITIALIZATION => Self::Initialization(header.association),
            CONFIRMATION => Self::Confirmation(header.association),
            DATAGRAM => {
                let (host, port, payload) = read_address(body, &header, profile)?;
                Self::Datagram(Datagram {
                    association: header.association,
                    address: host.strict(port)?,
                    payload,
                })
            }
            ERROR => Self::Error(UdpError::read(body, &header, profile)?),
            _ => Self::Unknown(header),
        };
        Ok(whole(message, length))
    }

    /// Decodes the message that a datagram is. What lies behind the message is padding.
    ///
    /// # Errors
    ///
    /// Those of [`UdpMessage::decode`], and [`DecodeError::PacketTooShort`]. Drop the datagram without an answer.
    pub fn decode_packet(packet: &'a [u8], profile: &Profile) -> Result<Self, DecodeError> {
        match Self::decode(packet, profile)? {
            Decoded::Whole { message, .. } => Ok(message),
            Decoded::Missing(_) => Err(DecodeError::PacketTooShort),
        }
    }

    /// Whether `side` may send such a message over `channel`. What it may not send is to be dropped.
    #[must_use]
    pub const fn may_come(&self, side: Side, channel: Channel) -> bool {
        match self {
            Self::Datagram(_) => true,
            Self::Error(_) => matches!(side, Side::Proxy),
            Self::Initialization(_) | Self::Confirmation(_) => {
                matches!((side, channel), (Side::Proxy, Channel::Stream))
            }
            Self::Unknown(_) => false,
        }
    }

    /// Whose message it is.
    #[must_use]
    pub const fn association(&self) -> AssociationId {
        match self {
            Self::Initialization(id) | Self::Confirmation(id) => *id,
            Self::Datagram(datagram) => datagram.association,
            Self::Error(error) => error.association,
            Self::Unknown(header) => header.association,
        }
    }

    /// Appends the message. Of an unknown one there is nothing to write.
    pub fn encode(&self, profile: &Profile, out: &mut Vec<u8>) {
        match self {
            Self::Initialization(id) => write_header(INITIALIZATION, 0, *id, profile, out),
            Self::Confirmation(id) => write_header(CONFIRMATION, 0, *id, profile, out),
            Self::Datagram(datagram) => datagram.encode(profile, out),
            Self::Error(error) => error.encode(profile, out),
            Self::Unknown(_) => (),
        }
    }
}

impl<'a> Datagram<'a> {
    /// A datagram, or `None` if it is longer than a message can be: with an IPv4 address 65,515 bytes fit, with an IPv6
    /// address 65,503, with the longest name 65,263.
    #[must_use]
    pub fn new(association: AssociationId, address: Address, payload: &'a [u8]) -> Option<Self> {
        // The longest form of a name is that of -12.
        let host = match HostField::of(&address.host) {
            HostField::Ip(IpAddr::V4(_)) => 4,
            HostField::Ip(IpAddr::V6(_)) => 16,
            HostField::Name(name) => (1 + name.len()).next_multiple_of(4),
        };
        let length = UdpHeader::LEN + 4 + host + payload.len();
        (length <= UdpMessage::MAX_LEN).then_some(Self {
            association,
            address,
            payload,
        })
    }

    /// Whose datagram it is.
    #[must_use]
    pub const fn association(&self) -> AssociationId {
        self.association
    }

    /// Destination or source.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// What it carries.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Whether it only confirms the association: nothing for nobody ("serving without sending first").
    #[must_use]
    pub fn is_trigger(&self) -> bool {
        let unspecified = self.address.socket_addr();
        let unspecified = unspecified.is_some_and(|to| to.ip().is_unspecified() && to.port() == 0);
        unspecified && self.payload.is_empty()
    }

    /// Appends the message.
    pub fn encode(&self, profile: &Profile, out: &mut Vec<u8>) {
        self.encode_header(profile, out);
        out.extend(self.payload);
    }

    /// Appends all of the message but the payload, for writes that gather.
    pub fn encode_header(&self, profile: &Profile, out: &mut Vec<u8>) {
        let mut address = Vec::new();
        let host = HostField::of(&self.address.host);
        write_address(host, self.address.port, profile, &mut address);
        let length = address.len() + self.payload.len();
        write_header(DATAGRAM, length, self.association, profile, out);
        out.extend(address);
    }
}

impl fmt::Debug for Datagram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Datagram({}, {} bytes)",
            self.address,
            self.payload.len()
        )
    }
}

impl UdpError {
    fn read(body: &[u8], header: &UdpHeader, profile: &Profile) -> Result<Self, DecodeError> {
        let (destination, port, rest) = read_address(body, header, profile)?;
        let too_short = DecodeError::MessageLength(header.length);
        let Some((block, rest)) = rest.split_first_chunk() else {
            return Err(too_short);
        };
        let (kind, code) = match (profile.address_order, *block) {
            (AddressOrder::TypeFirst, [kind, code, _, _]) => (kind, code),
            (AddressOrder::PortFirst, [_, _, code, kind]) => (kind, code),
        };
        let reporter = match host_length(kind, rest, profile, Place::Udp)? {
            Length::Exactly(length) => rest.get(..length).ok_or(too_short)?,
            Length::AtLeast(_) => return Err(too_short),
        };
        match (destination, read_host(kind, reporter, profile)?) {
            (HostField::Ip(destination), HostField::Ip(reporter)) => Ok(Self {
                association: header.association,
                destination: SocketAddr::new(destination, port),
                code: ErrorCode(code),
                reporter,
            }),
            // Both come from IP headers.
            _ => Err(DecodeError::AddressType(crate::wire::socks5::NAME)),
        }
    }

    fn encode(&self, profile: &Profile, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let destination = HostField::Ip(self.destination.ip());
        write_address(destination, self.destination.port(), profile, &mut body);
        let reporter = HostField::Ip(self.reporter);
        body.extend(match profile.address_order {
            AddressOrder::TypeFirst => [reporter.kind(), self.code.0, 0, 0],
            AddressOrder::PortFirst => [0, 0, self.code.0, reporter.kind()],
        });
        write_host(reporter, profile, Place::Udp, &mut body);
        write_header(ERROR, body.len(), self.association, profile, out);
        out.extend(body);
    }
}

impl ErrorCode {
    /// No route to the network.
    pub const NETWORK_UNREACHABLE: Self = Self(1);
    /// No route to the host.
    pub const HOST_UNREACHABLE: Self = Self(2);
    /// The time to live ran out.
    pub const TTL_EXPIRED: Self = Self(3);
    /// It was too big for a link (IPv6 only).
    pub const TOO_BIG: Self = Self(4);

    /// The code for an ICMP message of this type and code; `None` for those that the draft has no code for, such as
    /// "port unreachable".
    #[must_use]
    pub const fn from_icmpv4(kind: u8, code: u8) -> Option<Self> {
        match (kind, code) {
            (3, 0) => Some(Self::NETWORK_UNREACHABLE),
            (3, 1) => Some(Self::HOST_UNREACHABLE),
            (11, 0) => Some(Self::TTL_EXPIRED),
            _ => None,
        }
    }

    /// The same for ICMPv6.
    #[must_use]
    pub const fn from_icmpv6(kind: u8, code: u8) -> Option<Self> {
        match (kind, code) {
            (1, 0) => Some(Self::NETWORK_UNREACHABLE),
            (1, 3) => Some(Self::HOST_UNREACHABLE),
            (2, _) => Some(Self::TOO_BIG),
            (3, 0) => Some(Self::TTL_EXPIRED),
            _ => None,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match *self {
            Self::NETWORK_UNREACHABLE => "network unreachable",
            Self::HOST_UNREACHABLE => "host unreachable",
            Self::TTL_EXPIRED => "TTL expired",
            Self::TOO_BIG => "datagram too big",
            Self(byte) => return write!(f, "unknown error code {byte:#04x}"),
        })
    }
}

impl fmt::Debug for AssociationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssociationId(***)")
    }
}

fn whole<T>(message: T, length: usize) -> Decoded<T> {
    Decoded::Whole {
        message,
        length,
        problems: Problems::default(),
    }
}

/// Address and port at the front of a body, with what follows.
fn read_address<'a>(
    body: &'a [u8],
    header: &UdpHeader,
    profile: &Profile,
) -> Result<(HostField<'a>, u16, &'a [u8]), DecodeError> {
    let too_short = DecodeError::MessageLength(header.length);
    let Some((block, rest)) = body.split_first_chunk() else {
        return Err(too_short);
    };
    let (kind, port) = match (profile.address_order, *block) {
        (AddressOrder::TypeFirst, [kind, _, high, low]) => (kind, [high, low]),
        (AddressOrder::PortFirst, [high, low, _, kind]) => (kind, [high, low]),
    };
    let length = match host_length(kind, rest, profile, Place::Udp)? {
        Length::Exactly(length) => length,
        Length::AtLeast(_) => return Err(too_short),
    };
    let (host, rest) = rest.split_at_checked(length).ok_or(too_short)?;
    let host = read_host(kind, host, profile)?;
    Ok((host, u16::from_be_bytes(port), rest))
}

fn write_address(host: HostField<'_>, port: u16, profile: &Profile, out: &mut Vec<u8>) {
    let [high, low] = port.to_be_bytes();
    out.extend(match profile.address_order {
        AddressOrder::TypeFirst => [host.kind(), 0, high, low],
        AddressOrder::PortFirst => [high, low, 0, host.kind()],
    });
    write_host(host, profile, Place::Udp, out);
}

/// The header of a message with a body of so many bytes, which [`Datagram::new`] keeps in bounds.
fn write_header(
    kind: u8,
    body: usize,
    association: AssociationId,
    profile: &Profile,
    out: &mut Vec<u8>,
) {
    let length = u16::try_from(UdpHeader::LEN + body).unwrap_or(u16::MAX);
    out.extend([profile.version, kind]);
    out.extend(length.to_be_bytes());
    out.extend(association.0.to_be_bytes());
}

// Types of messages.
const INITIALIZATION: u8 = 1;
const CONFIRMATION: u8 = 2;
const DATAGRAM: u8 = 3;
const ERROR: u8 = 4;
