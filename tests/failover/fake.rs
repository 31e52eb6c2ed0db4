//! Proxies that fail where they are told to, and count what they see.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::common::wait_until;

/// What a proxy does wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Reset,
    Close,
    Silence,
    /// Does that after a while.
    Waits(Duration, Box<Self>),
    /// Says this, and then does that.
    Says(Vec<u8>, Box<Self>),
}

/// When it does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Accept,
    Greeting,
    Request,
    /// After its successful reply and the first bytes behind it.
    Stream,
}

/// What a proxy is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Takes clients as they are, and is their destination too: it sends back what they send.
    Good,
    /// The same, but it takes that long to choose the method, and that long to reply.
    Slow(Duration, Duration),
    /// The same for this user and password.
    Login(&'static str, &'static str),
    Bad(At, Fault),
}

/// A SOCKS 5 proxy on loopback.
pub(crate) struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: TcpListener,
}

struct Shared {
    kind: Mutex<Kind>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// What each connection said before its stream, or what it did instead.
    heard: Mutex<Vec<Vec<u8>>>,
}

impl Fake {
    pub(crate) fn new(kind: Kind) -> Self {
        let listener = listen().expect("listen on loopback");
        let address = listener.local_addr().expect("own address");
        let shared = Arc::new(Shared {
            kind: Mutex::new(kind),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            heard: Mutex::default(),
        });
        let accepting = listener.try_clone().expect("a descriptor");
        let everyone = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let shared = Arc::clone(&everyone);
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
                let small = thread::Builder::new().stack_size(128 * 1024);
                let thread = small.spawn(move || {
                    let mut heard = Vec::new();
                    let kind = shared.kind.lock().unwrap().clone();
                    // An error is the other side's end: the test looks for those.
                    let _ = serve(&stream, &kind, &mut heard);
                    shared.heard.lock().unwrap().push(heard);
                    drop(stream);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
                thread.expect("a thread");
            }
        });
        Self {
            address,
            shared,
            listener,
        }
    }

    pub(crate) fn bad(at: At, fault: Fault) -> Self {
        Self::new(Kind::Bad(at, fault))
    }

    pub(crate) fn good() -> Self {
        Self::new(Kind::Good)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Later connections meet another one.
    pub(crate) fn become_another(&self, kind: Kind) {
        *self.shared.kind.lock().unwrap() = kind;
    }

    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Whether so many connections are open within `limit`.
    pub(crate) fn wait_open(&self, count: usize, limit: Duration) -> bool {
        wait_until(limit, || self.shared.open.load(Ordering::SeqCst) == count)
    }

    /// What was said in every connection that has ended.
    pub(crate) fn heard(&self) -> Vec<Vec<u8>> {
        self.shared.heard.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// With room for many who connect at once.
fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

pub(crate) fn reply(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 127, 0, 0, 1, 4, 56]
}

fn serve(stream: &TcpStream, kind: &Kind, heard: &mut Vec<u8>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let faults = |now: At| match kind {
        Kind::Bad(at, fault) if *at == now => Some(fault),
        _ => None,
    };
    let (method, replied) = match kind {
        Kind::Slow(method, replied) => (*method, *replied),
        _ => (Duration::ZERO, Duration::ZERO),
    };
    if let Some(fault) = faults(At::Accept) {
        return fail(stream, fault, heard);
    }
    let methods = hear(stream, heard, 2)?[1];
    hear(stream, heard, methods.into())?;
    if let Some(fault) = faults(At::Greeting) {
        return fail(stream, fault, heard);
    }
    thread::sleep(method);
    let offered = &heard[2..];
    if let Kind::Login(user, password) = kind {
        if !offered.contains(&2) {
            say(stream, &[5, 0xFF])?;
            return hear_to_end(stream, heard);
        }
        say(stream, &[5, 2])?;
        let mut texts = Vec::new();
        hear(stream, heard, 1)?;
        for _ in 0..2 {
            let length = hear(stream, heard, 1)?[0];
            texts.push(hear(stream, heard, length.into())?);
        }
        let is_right = texts == [user.as_bytes(), password.as_bytes()];
        say(stream, &[1, u8::from(!is_right)])?;
        if !is_right {
            return hear_to_end(stream, heard);
        }
    } else if offered.contains(&0) {
        say(stream, &[5, 0])?;
    } else {
        say(stream, &[5, 0xFF])?;
        return hear_to_end(stream, heard);
    }
    let head = hear(stream, heard, 4)?;
    match head[3] {
        1 => hear(stream, heard, 6)?,
        4 => hear(stream, heard, 18)?,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    if let Some(fault) = faults(At::Request) {
        return fail(stream, fault, heard);
    }
    thread::sleep(replied);
    say(stream, &reply(0))?;
    let mut buffer = [0; 1024];
    loop {
        let mut stream = stream;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        heard.extend(&buffer[..count]);
        if let Some(fault) = faults(At::Stream) {
            return fail(stream, fault, heard);
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn fail(stream: &TcpStream, fault: &Fault, heard: &mut Vec<u8>) -> io::Result<()> {
    match fault {
        Fault::Reset => Ok(rustix::net::connect_unspec(stream)?),
        Fault::Close => stream.shutdown(Shutdown::Both),
        Fault::Silence => hear_to_end(stream, heard),
        Fault::Waits(length, then) => {
            thread::sleep(*length);
            fail(stream, then, heard)
        }
        Fault::Says(bytes, then) => {
            say(stream, bytes)?;
            // So that a reset does not overtake it.
            if matches!(**then, Fault::Reset) {
                thread::sleep(Duration::from_millis(20));
            }
            fail(stream, then, heard)
        }
    }
}

fn say(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

fn hear(mut stream: &TcpStream, heard: &mut Vec<u8>, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes)?;
    heard.extend(&bytes);
    Ok(bytes)
}

fn hear_to_end(mut stream: &TcpStream, heard: &mut Vec<u8>) -> io::Result<()> {
    stream.read_to_end(heard).map(drop)
}
