//! How a server carries datagrams.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::bad_text::BadText;
#[cfg(feature = "socks6")]
use crate::engine::Task;
use crate::listen::Limits;
#[cfg(feature = "socks6")]
use crate::server::settings::ServerStats;

/// What a server is told about datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpOptions {
    /// The ports on which clients' datagrams are taken. `None`: any.
    pub ports: Option<PortRange>,
    /// The address that clients are told to send to, instead of the one that they connected to: that of a router in front of the
    /// server. Not told to clients of the other family.
    pub advertise: Option<IpAddr>,
    /// Whose datagrams reach a client.
    pub filter: Filter,
    /// An association without a datagram either way for this long ends.
    pub idle: Duration,
    /// One of SOCKS 6 whose client has sent no datagram at all ends after this long.
    pub first_datagram: Duration,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            ports: None,
            advertise: None,
            filter: Filter::default(),
            idle: IDLE,
            first_datagram: FIRST_DATAGRAM,
        }
    }
}

/// What the associations of one server share.
pub struct UdpSettings {
    /// What the server was told.
    pub options: UdpOptions,
    /// Counts associations, and how many one client may have. The total is limited by descriptors, see
    /// [`Slot::widen`](crate::listen::Slot::widen).
    pub associations: Limits,
    /// That there was no free port; said once until there is one.
    pub(super) out_of_ports: AtomicBool,
    #[cfg(feature = "socks6")]
    pub(super) socks6: super::socks6::Common,
}

impl UdpSettings {
    /// These options, and that limit of associations per client.
    #[must_use]
    pub fn new(options: UdpOptions, associations: Limits) -> Self {
        Self {
            options,
            associations,
            out_of_ports: AtomicBool::new(false),
            #[cfg(feature = "socks6")]
            socks6: super::socks6::Common::default(),
        }
    }

    /// The task that takes the datagrams of clients of SOCKS 6, which share a port; to be given to the reactor, once.
    #[cfg(feature = "socks6")]
    #[must_use]
    pub fn receiver(&self, stats: ServerStats) -> impl Task + use<> {
        self.socks6.receiver(stats)
    }

    pub(super) fn found_port(&self) {
        self.out_of_ports.store(false, Ordering::Relaxed);
    }

    pub(super) fn found_no_port(&self, range: PortRange) {
        if !self.out_of_ports.swap(true, Ordering::Relaxed) {
            log::warn!("no UDP port of {range} is free, clients get no association (--udp-ports)");
        }
    }
}

/// Whose datagrams reach a client (RFC 4787 §5). The mapping is endpoint-independent in any case: a client has one port, for
/// each family, whomever it sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filter {
    /// Anybody's to whom the client might send, a "full cone": needed by those who wait to be called.
    EndpointIndependent,
    /// Those of addresses that the client has sent to, from any of their ports.
    #[default]
    AddressDependent,
    /// Those of addresses and ports that the client has sent to.
    AddressAndPortDependent,
}

impl FromStr for Filter {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text {
            "endpoint-independent" => Ok(Self::EndpointIndependent),
            "address-dependent" => Ok(Self::AddressDependent),
            "address-and-port-dependent" => Ok(Self::AddressAndPortDependent),
            _ => Err(BadText::new(
                text,
                "is not a filter",
                "endpoint-independent, address-dependent or address-and-port-dependent",
            )),
        }
    }
}

/// Ports from the first to the last, at least one and never port 0. In text `4000-4999`, or `4000` for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Every port once, in their order but beginning anywhere.
    pub(super) fn shuffled(self) -> impl Iterator<Item = u16> {
        let start = fastrand::u16(self.first..=self.last);
        (start..=self.last).chain(self.first..start)
    }
}

impl FromStr for PortRange {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let port = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first @ 1..), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(BadText::new(
                text,
                "is not a range of ports from 1 to 65535",
                "4000-4999",
            )),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// RFC 4787 §4.3: two minutes at least, five are recommended.
pub const IDLE: Duration = Duration::from_secs(5 * 60);

/// As long as the only other server gives them. The draft names no time; clients begin at once, or not at all.
pub const FIRST_DATAGRAM: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_in_text() {
        for (text, first, last) in [("1-65535", 1, 65535), ("4000", 4000, 4000), ("7-7", 7, 7)] {
            assert_eq!(text.parse(), Ok(PortRange { first, last }), "{text}");
        }
        for text in [
            "", "-", "0", "0-5", "5-4", "5-", "-5", "1-65536", "1-2-3", "+1-2", "a-b", " 1-2",
        ] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_port_of_a_range_comes_once() {
        let range: PortRange = "65530-65535".parse().unwrap();
        for _ in 0..50 {
            let mut ports: Vec<u16> = range.shuffled().collect();
            ports.sort_unstable();
            assert_eq!(ports, [65530, 65531, 65532, 65533, 65534, 65535]);
        }
    }

    #[test]
    fn filters_have_the_names_of_the_rfc() {
        assert_eq!("address-dependent".parse(), Ok(Filter::default()));
        assert!("full-cone".parse::<Filter>().is_err());
    }
}
