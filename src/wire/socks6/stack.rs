//! Stack options: what the sockets on both sides of the proxy should be like.
//!
//! What to read: "Stack Options" in the draft.
//!
//! A client says in a request what it wants. A proxy that supports an option answers it in the operation reply with what
//! is in force, also when it declined; no answer means that it doesn't know the option. Both use the same values.

use super::authentication::fill;
use super::error::{Fault, Malformed};
use super::option::{Kind, RawOption};
use super::profile::{MultipathValues, Profile, ReserveValues};
use super::request::Command;

/// The stack options of a request or of an operation reply, each at most once a leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackOptions {
    /// IP TOS or traffic class.
    pub tos: Legs<u8>,
    /// Happy Eyeballs: wanted; attempted. Only for destinations that are names.
    pub happy_eyeballs: Option<Choice>,
    /// TTL or hop limit.
    pub ttl: Legs<u8>,
    /// Fragmentation by routers not wanted; prevented.
    pub no_fragmentation: Legs<Choice>,
    /// TCP Fast Open towards the remote, with at most so many bytes in the SYN; 0 is any number. Without it, the proxy
    /// must not use it.
    pub tfo: Option<u16>,
    /// Multipath TCP towards the remote: wanted; in use, or will be accepted.
    pub multipath: Option<Choice>,
    /// Listen Backlog of BIND: wanted; granted, 0 for none.
    pub backlog: Option<u16>,
    /// Reports of ICMP errors for UDP: wanted; will be sent.
    pub udp_error: Option<Choice>,
    /// Port Parity of UDP ASSOCIATE.
    pub port_parity: Option<PortParity>,
}

/// What is said of each side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Legs<T> {
    /// Between client and proxy.
    pub client: Option<T>,
    /// Between proxy and remote.
    pub remote: Option<T>,
}

/// A side of the proxy, as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    /// Between client and proxy.
    Client,
    /// Between proxy and remote.
    Remote,
    /// Both.
    Both,
}

/// No (1) or yes (2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// Not wanted; not done.
    No,
    /// Wanted; done.
    Yes,
}

/// Port Parity: what is wanted of the port, or was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortParity {
    /// Of the port itself. Without a meaning if the request names a port.
    pub parity: Parity,
    /// Whether the counterpart (the next port after an even one, the one before an odd one) is kept free.
    pub reserve: Reserve,
}

/// The parity of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parity {
    /// No matter.
    Any,
    /// Even.
    Even,
    /// Odd.
    Odd,
}

/// Whether the counterpart of a port is kept free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reserve {
    /// It is not.
    No,
    /// It is.
    Yes,
}

impl StackOptions {
    /// Those of them that mean something for a request of this command, to a name or not: the others would get no answer. A
    /// backlog is BIND's.
    #[must_use]
    pub fn fitting(self, command: Command, to_name: bool) -> Self {
        let (connect, bind, associate) = match command {
            Command::CONNECT => (true, false, false),
            Command::BIND => (false, true, false),
            Command::ASSOCIATE => (false, false, true),
            _ => return Self::default(),
        };
        Self {
            tos: self.tos,
            ttl: self.ttl,
            no_fragmentation: self.no_fragmentation,
            happy_eyeballs: self.happy_eyeballs.filter(|_| connect && to_name),
            tfo: self.tfo.filter(|_| connect || bind),
            multipath: self.multipath.filter(|_| connect || bind),
            backlog: self.backlog.filter(|_| bind),
            udp_error: self.udp_error.filter(|_| associate),
            port_parity: self.port_parity.filter(|_| associate),
        }
    }

    /// Reads one option into its slot. `Ok(false)` if we don't know it.
    pub(super) fn read(
        &mut self,
        option: &RawOption<'_>,
        profile: &Profile,
    ) -> Result<bool, Fault> {
        let &[place, code, first, second] = option.data else {
            return match option.data {
                [place, code, ..] if !is_known(*place, *code) => Ok(false),
                _ => Err(Malformed::Length(option.length()).into()),
            };
        };
        if !is_known(place, code) {
            return Ok(false);
        }
        let leg = Leg::from_byte(place)?;
        let number = u16::from_be_bytes([first, second]);
        match (place & LEVEL, code) {
            TOS => self.tos.fill(leg, first)?,
            TTL => self.ttl.fill(leg, first)?,
            NO_FRAGMENTATION => self.no_fragmentation.fill(leg, Choice::from_byte(first)?)?,
            _ if leg != Leg::Remote => return Err(Malformed::Leg(place >> 6).into()),
            HAPPY_EYEBALLS => fill(&mut self.happy_eyeballs, Choice::from_byte(first)?)?,
            TFO => fill(&mut self.tfo, number)?,
            MULTIPATH => {
                let choice = Choice::from_byte(first)?.translate(profile.multipath_values);
                fill(&mut self.multipath, choice)?;
            }
            BACKLOG => fill(&mut self.backlog, number)?,
            UDP_ERROR => fill(&mut self.udp_error, Choice::from_byte(first)?)?,
            _ => {
                let parity = PortParity {
                    parity: Parity::from_byte(first)?,
                    reserve: Reserve::from_byte(second, profile.reserve_values)?,
                };
                fill(&mut self.port_parity, parity)?;
            }
        }
        Ok(true)
    }

    /// Appends the options, sorted by level and code.
    pub(super) fn write(&self, profile: &Profile, out: &mut Vec<u8>) {
        let mut write = |leg: Leg, (level, code): (u8, u8), value: [u8; 2]| {
            let [first, second] = value;
            let data = [leg.byte() << 6 | level, code, first, second];
            RawOption::write(Kind::STACK, &[&data], out);
        };
        for (leg, tos) in self.tos.wire() {
            write(leg, TOS, [tos, 0]);
        }
        if let Some(choice) = self.happy_eyeballs {
            write(Leg::Remote, HAPPY_EYEBALLS, [choice.byte(), 0]);
        }
        for (leg, ttl) in self.ttl.wire() {
            write(leg, TTL, [ttl, 0]);
        }
        for (leg, choice) in self.no_fragmentation.wire() {
            write(leg, NO_FRAGMENTATION, [choice.byte(), 0]);
        }
        if let Some(size) = self.tfo {
            write(Leg::Remote, TFO, size.to_be_bytes());
        }
        if let Some(choice) = self.multipath {
            let choice = choice.translate(profile.multipath_values);
            write(Leg::Remote, MULTIPATH, [choice.byte(), 0]);
        }
        if let Some(backlog) = self.backlog {
            write(Leg::Remote, BACKLOG, backlog.to_be_bytes());
        }
        if let Some(choice) = self.udp_error {
            write(Leg::Remote, UDP_ERROR, [choice.byte(), 0]);
        }
        if let Some(PortParity { parity, reserve }) = self.port_parity {
            let reserve = reserve.byte(profile.reserve_values);
            write(Leg::Remote, PORT_PARITY, [parity.byte(), reserve]);
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Nothing on either side. Not derived, since that would ask for a default of `T`.
impl<T> Default for Legs<T> {
    fn default() -> Self {
        Self {
            client: None,
            remote: None,
        }
    }
}

impl<T: Copy + PartialEq> Legs<T> {
    /// The same on both sides.
    #[must_use]
    pub const fn both(value: T) -> Self {
        Self {
            client: Some(value),
            remote: Some(value),
        }
    }

    fn fill(&mut self, leg: Leg, value: T) -> Result<(), Fault> {
        match leg {
            Leg::Client => fill(&mut self.client, value),
            Leg::Remote => fill(&mut self.remote, value),
            Leg::Both => {
                // Both slots, also if the first was filled before: what is new in the option still counts.
                let client = fill(&mut self.client, value);
                let remote = fill(&mut self.remote, value);
                match (client, remote) {
                    (Err(Fault::Contradiction), _) | (_, Err(Fault::Contradiction)) => {
                        Err(Fault::Contradiction)
                    }
                    (client, remote) => client.and(remote),
                }
            }
        }
    }

    /// The options that say this: one for both legs if they are equal.
    fn wire(&self) -> impl Iterator<Item = (Leg, T)> {
        let (first, second) = match (self.client, self.remote) {
            (Some(client), Some(remote)) if client == remote => (Some((Leg::Both, client)), None),
            (client, remote) => (
                client.map(|value| (Leg::Client, value)),
                remote.map(|value| (Leg::Remote, value)),
            ),
        };
        first.into_iter().chain(second)
    }
}

impl Leg {
    const fn byte(self) -> u8 {
        match self {
            Self::Client => 1,
            Self::Remote => 2,
            Self::Both => 3,
        }
    }

    const fn from_byte(place: u8) -> Result<Self, Malformed> {
        match place >> 6 {
            1 => Ok(Self::Client),
            2 => Ok(Self::Remote),
            3 => Ok(Self::Both),
            leg => Err(Malformed::Leg(leg)),
        }
    }
}

impl Choice {
    const fn byte(self) -> u8 {
        match self {
            Self::No => 1,
            Self::Yes => 2,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::No),
            2 => Ok(Self::Yes),
            _ => Err(Malformed::Value(byte)),
        }
    }

    /// Between what we mean and what the peer means by the same number; the same in both directions.
    const fn translate(self, values: MultipathValues) -> Self {
        match (values, self) {
            (MultipathValues::NoYes, choice) => choice,
            (MultipathValues::YesNo, Self::No) => Self::Yes,
            (MultipathValues::YesNo, Self::Yes) => Self::No,
        }
    }
}

impl Parity {
    /// Whether a port has it.
    #[must_use]
    pub const fn is_that_of(self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Even => port.is_multiple_of(2),
            Self::Odd => !port.is_multiple_of(2),
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Even => 1,
            Self::Odd => 2,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::Any),
            1 => Ok(Self::Even),
            2 => Ok(Self::Odd),
            _ => Err(Malformed::Value(byte)),
        }
    }
}

impl Reserve {
    const fn byte(self, values: ReserveValues) -> u8 {
        match (values, self) {
            (ReserveValues::ZeroOne, Self::No) => 0,
            (ReserveValues::ZeroOne, Self::Yes) | (ReserveValues::OneTwo, Self::No) => 1,
            (ReserveValues::OneTwo, Self::Yes) => 2,
        }
    }

    const fn from_byte(byte: u8, values: ReserveValues) -> Result<Self, Malformed> {
        match (values, byte) {
            (ReserveValues::ZeroOne, 0) | (ReserveValues::OneTwo, 1) => Ok(Self::No),
            (ReserveValues::ZeroOne, 1) | (ReserveValues::OneTwo, 2) => Ok(Self::Yes),
            _ => Err(Malformed::Value(byte)),
        }
    }
}

fn is_known(place: u8, code: u8) -> bool {
    KNOWN.contains(&(place & LEVEL, code))
}

/// The level's share of the byte that it has with the leg.
const LEVEL: u8 = 0x3f;

// Levels (1 IP, 4 TCP, 5 UDP; 2 and 3, IPv4 and IPv6, have no options) and codes.
const TOS: (u8, u8) = (1, 1);
const HAPPY_EYEBALLS: (u8, u8) = (1, 2);
const TTL: (u8, u8) = (1, 3);
const NO_FRAGMENTATION: (u8, u8) = (1, 4);
const TFO: (u8, u8) = (4, 1);
const MULTIPATH: (u8, u8) = (4, 2);
const BACKLOG: (u8, u8) = (4, 3);
const UDP_ERROR: (u8, u8) = (5, 1);
const PORT_PARITY: (u8, u8) = (5, 2);
const KNOWN: [(u8, u8); 9] = [
    TOS,
    HAPPY_EYEBALLS,
    TTL,
    NO_FRAGMENTATION,
    TFO,
    MULTIPATH,
    BACKLOG,
    UDP_ERROR,
    PORT_PARITY,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_fit_a_command() {
        let all = StackOptions {
            tos: Legs {
                client: Some(1),
                remote: Some(2),
            },
            happy_eyeballs: Some(Choice::Yes),
            tfo: Some(0),
            multipath: Some(Choice::Yes),
            backlog: Some(5),
            udp_error: Some(Choice::Yes),
            ..StackOptions::default()
        };
        let fitting = |command, to_name| {
            let fit = all.fitting(command, to_name);
            assert_eq!(fit.tos == all.tos, command != Command::NOOP);
            [
                fit.happy_eyeballs.is_some(),
                fit.tfo.is_some(),
                fit.multipath.is_some(),
                fit.backlog.is_some(),
                fit.udp_error.is_some(),
            ]
        };
        let (yes, no) = (true, false);
        for (command, to_name, expected) in [
            (Command::CONNECT, yes, [yes, yes, yes, no, no]),
            (Command::CONNECT, no, [no, yes, yes, no, no]),
            (Command::BIND, yes, [no, yes, yes, yes, no]),
            (Command::ASSOCIATE, yes, [no, no, no, no, yes]),
            (Command::NOOP, yes, [no; 5]),
        ] {
            assert_eq!(fitting(command, to_name), expected, "{command:?}");
        }
    }
}
