//! Addresses: those of requests and replies, and the name field that UDP messages share with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::error::DecodeError;
use super::profile::{NameLength, NameReading, Profile};
use super::reader::{Stop, head, short, slice};
use crate::wire::socks5::{IPV4, IPV6, NAME, length_byte};
use crate::wire::{Address, BoundAddress, BoundName, Host, NameError};

/// A request or an operation reply, which have the same layout, taken apart.
pub(super) struct Addressed<'a> {
    /// Command or reply code.
    pub(super) code: u8,
    pub(super) host: HostField<'a>,
    pub(super) port: u16,
    input: &'a [u8],
    /// Where the options begin.
    start: usize,
    /// Of the whole message.
    pub(super) length: usize,
}

/// The host as its bytes have it.
#[derive(Clone, Copy)]
pub(super) enum HostField<'a> {
    Ip(IpAddr),
    /// Without padding; may be empty, and may have NULs inside.
    Name(&'a [u8]),
}

/// Where a name stands, on which its padding depends in the older drafts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Tcp,
    Udp,
}

/// Version, code, length of the options, port, padding, address type.
const FIXED: usize = 8;
/// The shortest address is IPv4; a name has at least as much.
const SHORTEST: usize = FIXED + 4;

/// Takes a request or an operation reply apart, as soon as its address is there.
pub(super) fn read_addressed<'a>(
    input: &'a [u8],
    profile: &Profile,
) -> Result<Addressed<'a>, Stop> {
    let (code, options) = head(input, SHORTEST, profile)?;
    let Some(&[.., port_high, port_low, _, kind]) = input.first_chunk::<FIXED>() else {
        return Err(short(input, SHORTEST + options));
    };
    let rest = input.get(FIXED..).unwrap_or_default();
    let field = match host_length(kind, rest, profile, Place::Tcp)? {
        Length::Exactly(length) => length,
        Length::AtLeast(length) => return Err(short(input, FIXED + length + options)),
    };
    let start = FIXED + field;
    let Some(host) = input.get(FIXED..start) else {
        return Err(short(input, start + options));
    };
    Ok(Addressed {
        code,
        host: read_host(kind, host, profile)?,
        port: u16::from_be_bytes([port_high, port_low]),
        input,
        start,
        length: start + options,
    })
}

impl<'a> Addressed<'a> {
    /// The options. Ask for them last: a bad name is bad also before they are there.
    pub(super) fn options(&self) -> Result<&'a [u8], Stop> {
        slice(self.input, self.start, self.length)
    }
}

/// Appends a request or an operation reply up to its options, which the caller has written to `options`.
pub(super) fn write_addressed(
    code: u8,
    host: HostField<'_>,
    port: u16,
    options: &[u8],
    profile: &Profile,
    out: &mut Vec<u8>,
) {
    out.extend([profile.version, code]);
    out.extend(options_length(options).to_be_bytes());
    out.extend(port.to_be_bytes());
    out.extend([0, host.kind()]);
    write_host(host, profile, Place::Tcp, out);
    out.extend(options);
}

/// The types of the options hold less, so nothing is ever cut: see [`super::MAX_OPTIONS_SENT`].
pub(super) fn options_length(options: &[u8]) -> u16 {
    u16::try_from(options.len()).unwrap_or(u16::MAX)
}

/// How long the host field is, as far as `rest`, which begins with it, tells.
pub(super) enum Length {
    Exactly(usize),
    AtLeast(usize),
}

pub(super) fn host_length(
    kind: u8,
    rest: &[u8],
    profile: &Profile,
    place: Place,
) -> Result<Length, DecodeError> {
    match kind {
        IPV4 => Ok(Length::Exactly(4)),
        IPV6 => Ok(Length::Exactly(16)),
        NAME => match rest.first() {
            Some(&length) => name_length(length, profile, place).map(Length::Exactly),
            None if place == Place::Tcp => Ok(Length::AtLeast(4)),
            None => Ok(Length::AtLeast(2)),
        },
        _ => Err(DecodeError::AddressType(kind)),
    }
}

/// The length of a name's whole field, from its length byte.
fn name_length(length: u8, profile: &Profile, place: Place) -> Result<usize, DecodeError> {
    let counted = 1 + usize::from(length);
    let aligned = counted.is_multiple_of(4);
    match profile.name_reading {
        NameReading::Strict | NameReading::OneTooLarge if aligned => Ok(counted),
        NameReading::OneTooLarge if length != 0 && length.is_multiple_of(4) => Ok(counted - 1),
        _ if length == 0 && place == Place::Tcp && profile.name_reading == NameReading::Strict => {
            Err(NameError::Empty.into())
        }
        NameReading::Strict | NameReading::OneTooLarge => Err(DecodeError::NameLength(length)),
        // Up to -11 names in UDP messages are not padded, and in -12 the length counts the padding.
        NameReading::Lenient if place == Place::Udp => Ok(counted),
        NameReading::Lenient => Ok(counted.next_multiple_of(4)),
    }
}

/// Reads a host field of the length that [`host_length`] gave.
pub(super) fn read_host<'a>(
    kind: u8,
    field: &'a [u8],
    profile: &Profile,
) -> Result<HostField<'a>, DecodeError> {
    if let (IPV4, Ok(octets)) = (kind, <[u8; 4]>::try_from(field)) {
        return Ok(HostField::Ip(Ipv4Addr::from(octets).into()));
    }
    if let (IPV6, Ok(octets)) = (kind, <[u8; 16]>::try_from(field)) {
        return Ok(HostField::Ip(Ipv6Addr::from(octets).into()));
    }
    let Some((&length, name)) = field.split_first() else {
        return Err(DecodeError::AddressType(kind));
    };
    let counted = match profile.name_reading {
        // What is padding behind the name is not looked at.
        NameReading::Lenient => name.get(..usize::from(length)).unwrap_or(name),
        NameReading::Strict | NameReading::OneTooLarge => name,
    };
    let end = counted.iter().rposition(|&byte| byte != 0);
    let name = counted.get(..end.map_or(0, |at| at + 1));
    Ok(HostField::Name(name.unwrap_or_default()))
}

pub(super) fn write_host(host: HostField<'_>, profile: &Profile, place: Place, out: &mut Vec<u8>) {
    let name = match host {
        HostField::Ip(IpAddr::V4(ip)) => return out.extend(ip.octets()),
        HostField::Ip(IpAddr::V6(ip)) => return out.extend(ip.octets()),
        HostField::Name(name) => name,
    };
    let padded = (1 + name.len()).next_multiple_of(4) - 1;
    let (length, padded) = match (profile.name_length, place) {
        (NameLength::WithPadding, _) => (padded, padded),
        (NameLength::WithoutPadding, Place::Tcp) => (name.len(), padded),
        (NameLength::WithoutPadding, Place::Udp) => (name.len(), name.len()),
    };
    out.push(length_byte(length));
    out.extend(name);
    out.resize(out.len() + padded - name.len(), 0);
}

impl<'a> HostField<'a> {
    pub(super) const fn kind(self) -> u8 {
        match self {
            Self::Ip(IpAddr::V4(_)) => IPV4,
            Self::Ip(IpAddr::V6(_)) => IPV6,
            Self::Name(_) => NAME,
        }
    }

    /// As a destination, where a name must be one.
    pub(super) fn strict(self, port: u16) -> Result<Address, NameError> {
        let host = match self {
            Self::Ip(ip) => Host::Ip(ip),
            Self::Name(name) => Host::from_name_bytes(name)?,
        };
        Ok(Address::new(host, port))
    }

    /// As the address of a reply, where a name may be anything.
    pub(super) fn lenient(self, port: u16) -> BoundAddress {
        match self {
            Self::Ip(ip) => BoundAddress::Socket(SocketAddr::new(ip, port)),
            Self::Name(name) => match BoundName::new(name) {
                Some(name) => BoundAddress::Name(name, port),
                // The length has one byte, so the name always fits.
                None => BoundAddress::UNSPECIFIED,
            },
        }
    }

    pub(super) fn of(host: &'a Host) -> Self {
        match host {
            Host::Ip(ip) => Self::Ip(*ip),
            Host::Name(name) => Self::Name(name.as_str().as_bytes()),
        }
    }

    pub(super) fn of_bound(bound: &'a BoundAddress) -> Self {
        match bound {
            BoundAddress::Socket(address) => Self::Ip(address.ip()),
            BoundAddress::Name(name, _) => Self::Name(name.as_bytes()),
        }
    }
}
