//! What a probe or a forwarder can meet on the other side.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::loopback::Alone;
use super::target::copy;
use super::{SOON, wait_until};

/// How a peer answers those who connect.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// A SOCKS5 server without authentication that knows CONNECT. It takes this long before each of its two answers.
    Valid(Duration),
    /// The same, but only the answer to the greeting is late.
    AnswersAfter(Duration),
    /// The same, but its answers come byte by byte, this long apart.
    Drips(Duration),
    /// Answers the greeting with this method: `0xFF` none acceptable, `0x02` user and password.
    AuthRequired(u8),
    /// Answers like a web server.
    Http,
    /// Speaks first, like an SSH server.
    SshBanner,
    /// Accepts and never says a word.
    Silent,
    /// Accepts and closes.
    Closes,
    /// Accepts and resets.
    Resets,
    /// Does these steps, then waits for the client's end.
    Scripted(Vec<Step>),
}

/// One step of [`Behaviour::Scripted`].
#[derive(Debug, Clone)]
pub enum Step {
    /// Read exactly this many bytes.
    Read(usize),
    /// Send these bytes.
    Send(Vec<u8>),
    /// Do nothing for a while.
    Wait(Duration),
    /// Finish sending; go on with the next step.
    HalfClose,
    /// Close.
    Close,
    /// Reset.
    Reset,
    /// From here on be a valid server that has answered the greeting: read a request, connect, relay.
    Serve,
}

/// A fake peer on loopback: it counts what it sees, can change its mind, and can die.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    listener: Arc<Alone>,
    accepting: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes those who pause when the peer dies.
    died: Condvar,
}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    dead: bool,
    accepted: usize,
    greetings: usize,
    requests: usize,
    /// Each connection's first bytes.
    heard: Vec<Vec<u8>>,
    /// Every socket of a connection still open, both sides of a relay.
    streams: Vec<Vec<TcpStream>>,
}

/// Of each connection's handshake that many bytes are kept for the test to look at.
const HEARD: usize = 1024;

impl Peer {
    /// A working SOCKS5 server; see [`Behaviour::Valid`].
    pub fn valid(latency: Duration) -> Self {
        Self::new(Behaviour::Valid(latency))
    }

    /// Wants authentication, said with `0xFF` or `0x02`.
    pub fn auth_required(method: u8) -> Self {
        Self::new(Behaviour::AuthRequired(method))
    }

    /// A web server.
    pub fn http() -> Self {
        Self::new(Behaviour::Http)
    }

    /// An SSH server.
    pub fn ssh_banner() -> Self {
        Self::new(Behaviour::SshBanner)
    }

    /// A tarpit.
    pub fn silent() -> Self {
        Self::new(Behaviour::Silent)
    }

    /// Closes at once.
    pub fn closes() -> Self {
        Self::new(Behaviour::Closes)
    }

    /// Resets at once.
    pub fn resets() -> Self {
        Self::new(Behaviour::Resets)
    }

    /// A valid server whose answers come byte by byte.
    pub fn drips(interval: Duration) -> Self {
        Self::new(Behaviour::Drips(interval))
    }

    /// A valid server that answers the greeting late.
    pub fn answers_after(delay: Duration) -> Self {
        Self::new(Behaviour::AnswersAfter(delay))
    }

    /// Does as told.
    pub fn scripted(steps: Vec<Step>) -> Self {
        Self::new(Behaviour::Scripted(steps))
    }

    /// Any behaviour on `127.0.0.1`.
    pub fn new(behaviour: Behaviour) -> Self {
        Self::at("127.0.0.1:0", behaviour)
    }

    /// Any behaviour at an address of the test's choice: `127.0.0.7:0`, `[::1]:0`, or where a dead peer was.
    pub fn at(address: impl ToSocketAddrs, behaviour: Behaviour) -> Self {
        let listener = Arc::new(Alone::listen(address));
        let address = listener.local_addr().expect("own address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                behaviour,
                dead: false,
                accepted: 0,
                greetings: 0,
                requests: 0,
                heard: Vec::new(),
                streams: Vec::new(),
            }),
            died: Condvar::new(),
        });
        let accepting = thread::spawn({
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            move || {
                // Shutting the listener down ends the loop.
                while let Ok((stream, _)) = listener.accept() {
                    Connection::start(stream, &shared);
                }
            }
        });
        Self {
            address,
            listener,
            accepting: Some(accepting),
            shared,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Later connections meet another behaviour.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.lock().accepted
    }

    /// Complete SOCKS5 greetings read so far (by the behaviours that read).
    pub fn greetings(&self) -> usize {
        self.shared.lock().greetings
    }

    /// Complete CONNECT requests read so far.
    pub fn requests(&self) -> usize {
        self.shared.lock().requests
    }

    /// Connections that neither side has ended: 0 once every loser of a race was closed.
    pub fn open(&self) -> usize {
        let state = self.shared.lock();
        state
            .streams
            .iter()
            .filter(|sockets| !sockets.is_empty())
            .count()
    }

    /// Whether exactly `count` connections are open within `limit`.
    pub fn wait_open(&self, count: usize, limit: Duration) -> bool {
        wait_until(limit, || self.open() == count)
    }

    /// Whether at least `count` connections were accepted within `limit`.
    pub fn wait_accepted(&self, count: usize, limit: Duration) -> bool {
        wait_until(limit, || self.accepted() >= count)
    }

    /// The handshake bytes of every connection so far, in the order of accepting; relayed bytes are not among them.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.shared.lock().heard.clone()
    }

    /// New connections are refused; those that are open go on.
    pub fn stop_accepting(&mut self) {
        let _ = SockRef::from(&**self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }

    /// Open connections are reset; new ones are welcome.
    pub fn reset_streams(&self) {
        self.shared.reset_streams();
    }

    /// Dies as a killed process on a living machine does: new connections are refused, open ones reset.
    pub fn kill(&mut self) {
        self.stop_accepting();
        self.shared.lock().dead = true;
        self.shared.died.notify_all();
        self.shared.reset_streams();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Sleeps, but not longer than the peer lives.
    fn pause(&self, length: Duration) -> io::Result<()> {
        let end = Instant::now() + length;
        let mut state = self.lock();
        loop {
            if state.dead {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self.died.wait_timeout(state, left).expect("not poisoned").0;
        }
    }

    fn reset_streams(&self) {
        for sockets in &mut self.lock().streams {
            for socket in sockets.drain(..) {
                // Unlike a close with linger 0 this works while the serving thread still holds the socket, and wakes it.
                let _ = rustix::net::connect_unspec(&socket);
            }
        }
    }
}

/// One accepted connection, on its own thread.
struct Connection {
    stream: TcpStream,
    index: usize,
    shared: Arc<Shared>,
}

impl Connection {
    fn start(stream: TcpStream, shared: &Arc<Shared>) {
        let _ = stream.set_nodelay(true);
        let Ok(handle) = stream.try_clone() else {
            return;
        };
        let (behaviour, index) = {
            let mut state = shared.lock();
            state.accepted += 1;
            state.heard.push(Vec::new());
            state.streams.push(vec![handle]);
            (state.behaviour.clone(), state.streams.len() - 1)
        };
        let connection = Self {
            stream,
            index,
            shared: Arc::clone(shared),
        };
        thread::spawn(move || {
            // An error here is the client's end or the peer's death: both are the test's to notice.
            let _ = connection.serve(behaviour);
        });
    }

    fn serve(&self, behaviour: Behaviour) -> io::Result<()> {
        match behaviour {
            Behaviour::Valid(latency) => self.socks(latency, latency, Duration::ZERO),
            Behaviour::AnswersAfter(delay) => self.socks(delay, Duration::ZERO, Duration::ZERO),
            Behaviour::Drips(interval) => self.socks(Duration::ZERO, Duration::ZERO, interval),
            Behaviour::AuthRequired(method) => {
                self.greeting()?;
                self.answer(&[5, method], Duration::ZERO)?;
                self.hear_to_end()
            }
            Behaviour::Http => {
                self.hear_some()?;
                self.answer(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    Duration::ZERO,
                )?;
                self.stream.shutdown(Shutdown::Write)?;
                self.hear_to_end()
            }
            Behaviour::SshBanner => {
                self.answer(b"SSH-2.0-OpenSSH_9.2p1\r\n", Duration::ZERO)?;
                self.hear_to_end()
            }
            Behaviour::Silent => self.hear_to_end(),
            Behaviour::Closes => Ok(()),
            Behaviour::Resets => self.reset(),
            Behaviour::Scripted(steps) => self.script(steps),
        }
    }

    fn script(&self, steps: Vec<Step>) -> io::Result<()> {
        for step in steps {
            match step {
                Step::Read(count) => self.hear(&mut vec![0; count])?,
                Step::Send(bytes) => self.answer(&bytes, Duration::ZERO)?,
                Step::Wait(length) => self.shared.pause(length)?,
                Step::HalfClose => self.stream.shutdown(Shutdown::Write)?,
                Step::Close => return Ok(()),
                Step::Reset => return self.reset(),
                Step::Serve => return self.request(Duration::ZERO, Duration::ZERO),
            }
        }
        self.hear_to_end()
    }

    /// A whole SOCKS5 session.
    fn socks(
        &self,
        greeting_delay: Duration,
        request_delay: Duration,
        drip: Duration,
    ) -> io::Result<()> {
        let methods = self.greeting()?;
        self.shared.pause(greeting_delay)?;
        if !methods.contains(&0) {
            self.answer(&[5, 0xFF], drip)?;
            return self.hear_to_end();
        }
        self.answer(&[5, 0], drip)?;
        self.request(request_delay, drip)
    }

    fn greeting(&self) -> io::Result<Vec<u8>> {
        let mut head = [0; 2];
        self.hear(&mut head)?;
        if head[0] != 5 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut methods = vec![0; usize::from(head[1])];
        self.hear(&mut methods)?;
        self.shared.lock().greetings += 1;
        Ok(methods)
    }

    fn request(&self, delay: Duration, drip: Duration) -> io::Result<()> {
        let mut head = [0; 4];
        self.hear(&mut head)?;
        let target = self.target(head[3])?;
        self.shared.lock().requests += 1;
        self.shared.pause(delay)?;
        if head[..2] != [5, 1] {
            return self.answer(&[5, 7, 0, 1, 0, 0, 0, 0, 0, 0], drip);
        }
        let Some(target) = target
            .iter()
            .find_map(|address| TcpStream::connect_timeout(address, SOON).ok())
        else {
            return self.answer(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0], drip);
        };
        target.set_nodelay(true)?;
        {
            let mut state = self.shared.lock();
            if state.dead {
                return self.reset();
            }
            state.streams[self.index].push(target.try_clone()?);
        }
        self.answer(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0], drip)?;
        relay(&self.stream, &target)
    }

    fn target(&self, address_type: u8) -> io::Result<Vec<SocketAddr>> {
        let mut port = [0; 2];
        match address_type {
            1 => {
                let mut address = [0; 4];
                self.hear(&mut address)?;
                self.hear(&mut port)?;
                Ok(vec![
                    (
                        IpAddr::from(Ipv4Addr::from(address)),
                        u16::from_be_bytes(port),
                    )
                        .into(),
                ])
            }
            4 => {
                let mut address = [0; 16];
                self.hear(&mut address)?;
                self.hear(&mut port)?;
                Ok(vec![
                    (
                        IpAddr::from(Ipv6Addr::from(address)),
                        u16::from_be_bytes(port),
                    )
                        .into(),
                ])
            }
            3 => {
                let mut length = [0];
                self.hear(&mut length)?;
                let mut name = vec![0; usize::from(length[0])];
                self.hear(&mut name)?;
                self.hear(&mut port)?;
                let name = String::from_utf8(name).map_err(io::Error::other)?;
                // A name that does not resolve is answered like a target that refuses.
                Ok((name.as_str(), u16::from_be_bytes(port))
                    .to_socket_addrs()
                    .map_or_else(|_| Vec::new(), Iterator::collect))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn answer(&self, bytes: &[u8], drip: Duration) -> io::Result<()> {
        if drip.is_zero() {
            return (&self.stream).write_all(bytes);
        }
        for byte in bytes.chunks(1) {
            self.shared.pause(drip)?;
            (&self.stream).write_all(byte)?;
        }
        Ok(())
    }

    fn hear(&self, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let count = self.read(out)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out = &mut out[count..];
        }
        Ok(())
    }

    fn hear_some(&self) -> io::Result<usize> {
        self.read(&mut [0; 512])
    }

    fn hear_to_end(&self) -> io::Result<()> {
        while self.hear_some()? > 0 {}
        Ok(())
    }

    fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        let count = (&self.stream).read(out)?;
        let mut state = self.shared.lock();
        let heard = &mut state.heard[self.index];
        let room = HEARD.saturating_sub(heard.len());
        heard.extend(&out[..count.min(room)]);
        Ok(count)
    }

    fn reset(&self) -> io::Result<()> {
        rustix::net::connect_unspec(&self.stream)?;
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.lock().streams[self.index].clear();
    }
}

/// Both directions until both have ended; an end is passed on alone, a reset to both sides.
fn relay(client: &TcpStream, target: &TcpStream) -> io::Result<()> {
    let one_way = |from: &TcpStream, to: &TcpStream| match copy(from, to) {
        Ok(_) => {
            let _ = to.shutdown(Shutdown::Write);
        }
        Err(_) => {
            let _ = rustix::net::connect_unspec(to);
            let _ = rustix::net::connect_unspec(from);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| one_way(target, client));
        one_way(client, target);
    });
    Ok(())
}

/// A port of loopback that refuses, and that nobody else can get: it is bound for as long as the test program runs.
pub fn dead_address() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("bind on loopback");
    let address = socket
        .local_addr()
        .expect("own address")
        .as_socket()
        .expect("an IP address");
    std::mem::forget(socket);
    address
}

/// A port of loopback whose SYNs stay unanswered, like a host that drops packets: its queue of waiting connections is full.
#[derive(Debug)]
pub struct Unanswering {
    address: SocketAddr,
    _queue: Vec<Socket>,
}

impl Unanswering {
    /// Fills the queue.
    pub fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .expect("bind on loopback");
        listener.listen(0).expect("listen");
        let address = listener
            .local_addr()
            .expect("own address")
            .as_socket()
            .expect("an IP address");
        let mut queue = vec![listener];
        // One waits in a queue of length 0; the others make sure of it.
        for _ in 0..3 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            let _ = socket.connect_timeout(&address.into(), Duration::from_millis(50));
            queue.push(socket);
        }
        Self {
            address,
            _queue: queue,
        }
    }

    /// Where nobody answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
