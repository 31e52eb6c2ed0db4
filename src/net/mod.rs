//! Sockets as sockhop wants them: options, pending connects, limits of the system.

mod accept;
mod connect;
mod datagrams;
mod descriptors;
mod extras;
#[cfg(feature = "socks6")]
pub mod icmp;
mod local_address;
mod memory;
mod near;
mod options;
mod own_listeners;
#[cfg(feature = "socks6")]
pub mod stack;
mod transfer;
mod uplink;

pub use accept::{accept, has_waiting};
pub use connect::{ConnectFailure, finish_connect, start_connect};
pub use datagrams::{
    open_datagrams, open_towards_relay, receive_datagram, send_parts, send_twice, unmapped,
};
pub use descriptors::{DescriptorBudget, is_shortage, raise_descriptor_limit};
pub use extras::{TcpExtras, listen_fast_open, multipath_if_wanted, start_connect_with};
pub use local_address::{canonical, is_local, source_towards};
pub use memory::MemoryBudget;
pub use near::Near;
pub use options::tune;
pub use own_listeners::OwnListeners;
pub use transfer::{read_some, until_done, write_all_now};
pub use uplink::{HAS_UPLINKS, Interface, Uplink, UplinkError};
