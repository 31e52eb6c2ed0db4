//! Datagrams and what becomes of them.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;

use super::{SOON, Sockhop};

/// Sends the next datagram back; where it came from.
#[track_caller]
pub fn echo_one(far: &UdpSocket) -> SocketAddr {
    let mut buffer = vec![0; 65_536];
    let (count, from) = far.recv_from(&mut buffer).expect("a datagram");
    far.send_to(&buffer[..count], from).expect("send");
    from
}

/// Waits until so many datagrams have been dropped for this reason.
#[track_caller]
pub fn wait_dropped(server: &Sockhop, reason: &str, count: u64) {
    server.wait_status(|status| status["dropped_datagrams"][reason] == count, SOON);
}

/// Whether nobody takes datagrams there any more. `probe` is connected to it.
pub fn is_closed(probe: &UdpSocket) -> bool {
    let _ = probe.send(b"?");
    matches!(probe.recv(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

/// A port of loopback that sends every datagram back, as long as the test program runs.
pub fn echo_datagrams() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = socket.local_addr().expect("own address");
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], from);
        }
    });
    address
}
