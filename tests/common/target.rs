//! Where a proxy connects to.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use super::loopback::Alone;
use super::pattern::{Chunks, Pattern, Received};
use super::wait_until;

/// A free port of loopback.
const LOOPBACK: &str = "127.0.0.1:0";

/// A server on loopback that ends on drop, with all of its connections.
#[derive(Debug)]
pub struct Target {
    address: SocketAddr,
    listener: Arc<Alone>,
    accepting: Option<JoinHandle<()>>,
    connections: Arc<Mutex<Connections>>,
}

#[derive(Debug, Default)]
struct Connections {
    accepted: usize,
    /// `None` once the connection has been served.
    streams: Vec<Option<TcpStream>>,
}

impl Target {
    /// Sends everything back, and finishes when the other side does.
    pub fn echo() -> Self {
        Self::echo_at(LOOPBACK)
    }

    /// The same at an address of the test's choice: in a network namespace every port is free.
    pub fn echo_at(address: &str) -> Self {
        Self::serve(address, |stream| {
            if copy(&stream, &stream).is_ok() {
                let _ = stream.shutdown(Shutdown::Write);
            }
        })
    }

    /// Sends `length` bytes of the pattern, finishes, and waits for the other side's end.
    pub fn source(pattern: &Pattern, length: u64, chunks: Chunks) -> Self {
        let pattern = pattern.clone();
        Self::serve(LOOPBACK, move |stream| {
            if pattern.send(&stream, length, chunks).is_ok() {
                let _ = stream.shutdown(Shutdown::Write);
                let _ = copy(&stream, io::sink());
            }
        })
    }

    /// A web server: `GET /N` answers with the first N bytes of the pattern, then closes.
    pub fn http(address: &str, pattern: &Pattern) -> Self {
        let pattern = pattern.clone();
        Self::serve(address, move |stream| {
            // Whoever leaves early is the test's to notice.
            let _ = answer_http(&stream, &pattern);
        })
    }

    /// Verifies what comes against the pattern, until the end; one report a connection.
    ///
    /// After the end of a whole transfer it answers one byte, so that the sender knows it arrived.
    pub fn sink(pattern: &Pattern) -> (Self, Receiver<Received>) {
        let (reports, received) = channel();
        let pattern = pattern.clone();
        let target = Self::serve(LOOPBACK, move |mut stream| {
            let _ = reports.send(pattern.receive(&stream, u64::MAX));
            let _ = stream.write_all(&[1]);
        });
        (target, received)
    }

    /// Hands every accepted connection to the test.
    pub fn manual() -> (Self, Receiver<TcpStream>) {
        let (streams, accepted) = channel();
        let target = Self::accept(LOOPBACK, move |stream, _| {
            let _ = stream.set_nodelay(true);
            let _ = streams.send(stream);
        });
        (target, accepted)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.lock().accepted
    }

    /// Connections that have not ended yet (none of a [`manual`](Self::manual) target).
    pub fn open(&self) -> usize {
        self.lock().streams.iter().flatten().count()
    }

    /// Whether `count` connections are open within `limit`.
    pub fn wait_open(&self, count: usize, limit: Duration) -> bool {
        wait_until(limit, || self.open() == count)
    }

    fn serve(address: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let serve = Arc::new(serve);
        Self::accept(address, move |stream, connections| {
            let (Ok(handle), serve) = (stream.try_clone(), Arc::clone(&serve)) else {
                return;
            };
            let index = {
                let mut connections = connections.lock().expect("not poisoned");
                connections.streams.push(Some(handle));
                connections.streams.len() - 1
            };
            let connections = Arc::clone(connections);
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                serve(stream);
                let mut connections = connections.lock().expect("not poisoned");
                // The target may have been dropped meanwhile, with the list.
                if let Some(stream) = connections.streams.get_mut(index) {
                    *stream = None;
                }
            });
        })
    }

    fn accept(
        address: &str,
        taken: impl Fn(TcpStream, &Arc<Mutex<Connections>>) + Send + 'static,
    ) -> Self {
        let listener = Arc::new(Alone::listen(address));
        let address = listener.local_addr().expect("own address");
        let connections = Arc::new(Mutex::new(Connections::default()));
        let accepting = thread::spawn({
            let (listener, connections) = (Arc::clone(&listener), Arc::clone(&connections));
            move || {
                // Shutting the listener down ends the loop.
                while let Ok((stream, _)) = listener.accept() {
                    connections.lock().expect("not poisoned").accepted += 1;
                    taken(stream, &connections);
                }
            }
        });
        Self {
            address,
            listener,
            accepting: Some(accepting),
            connections,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().expect("not poisoned")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = SockRef::from(&**self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in self.lock().streams.drain(..).flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn answer_http(mut stream: &TcpStream, pattern: &Pattern) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    // The rest of the head ends with an empty line.
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let length: u64 = request
        .strip_prefix("GET /")
        .and_then(|rest| rest.split(' ').next())
        .and_then(|path| path.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    pattern.send(stream, length, Chunks::Fixed(64 * 1024))?;
    stream.shutdown(Shutdown::Write)?;
    copy(stream, io::sink()).map(drop)
}

/// Copies until the end by plain reads and writes, whatever the platform's `io::copy` would do.
pub(super) fn copy(mut from: &TcpStream, mut to: impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
