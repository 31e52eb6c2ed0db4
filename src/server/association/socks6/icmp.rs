//! Reports of ICMP errors that datagrams of an association caused.

use super::super::exit::Family;
use super::super::sockets::Far;
pub(super) use crate::net::icmp::Report;
use crate::net::{icmp, stack};

/// Takes one out of the queue of a socket: see [`icmp::take`].
pub(super) fn take(far: &Far, family: Family) -> Option<Option<Report>> {
    let family = match family {
        Family::V4 => stack::Family::V4,
        Family::V6 => stack::Family::V6,
    };
    icmp::take(far.descriptor(), family)
}
