//! Listening on loopback where nobody else can be taken for us.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::ops::Deref;

use socket2::{Domain, SockRef, Socket, Type};

/// A listener, and with it the same port of IPv6's loopback, which refuses.
///
/// `localhost` is both addresses, and tests that run at the same time get their ports for each of them: without this, a
/// test that goes to `localhost` could end up at another test's listener.
#[derive(Debug)]
pub struct Alone {
    listener: TcpListener,
    _other: Option<Socket>,
}

impl Alone {
    /// Listens there. Only any port of 127.0.0.1 has its counterpart taken.
    pub fn listen(address: impl ToSocketAddrs) -> Self {
        let addresses: Vec<_> = address.to_socket_addrs().expect("an address").collect();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        for _ in 0..ATTEMPTS {
            let listener = TcpListener::bind(&*addresses).expect("listen on loopback");
            // As many at once as with a real server; the standard library asks for few.
            SockRef::from(&listener).listen(AT_ONCE).expect("listen");
            if addresses != [any] {
                return Self {
                    listener,
                    _other: None,
                };
            }
            let port = listener.local_addr().expect("own address").port();
            let counterpart = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            let _other = match Socket::new(Domain::IPV6, Type::STREAM, None) {
                Ok(socket) => match socket.bind(&counterpart.into()) {
                    Ok(()) => Some(socket),
                    Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => continue,
                    Err(_) => None,
                },
                // A machine without IPv6.
                Err(_) => None,
            };
            return Self { listener, _other };
        }
        panic!("every port of 127.0.0.1 is somebody's port of ::1");
    }
}

impl Deref for Alone {
    type Target = TcpListener;

    fn deref(&self) -> &TcpListener {
        &self.listener
    }
}

const ATTEMPTS: usize = 100;

const AT_ONCE: i32 = 4096;
