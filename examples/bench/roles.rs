//! The processes beside the client and the relay under test: this executable, started again with [`FLAG`].

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// First argument of a process that is not the bench itself.
pub(crate) const FLAG: &str = "--role";

/// First byte of every connection to the target, which answers it with the same byte; then it depends on the byte.
///
/// So the client always speaks first and the target answers at once, as both ends of a SOCKS connection do.
pub(crate) mod ask {
    /// Everything comes back.
    pub(crate) const ECHO: u8 = b'E';
    /// Eight bytes say how many bytes to send.
    pub(crate) const SOURCE: u8 = b'D';
    /// Eight bytes say how many bytes follow; one byte answers when they are all there.
    pub(crate) const SINK: u8 = b'U';
}

/// Plays one part until killed.
pub(crate) fn play(mut arguments: impl Iterator<Item = OsString>) -> Result<(), Box<dyn Error>> {
    let role = arguments.next().unwrap_or_default();
    end_with_parent()?;
    match role.to_str() {
        Some("target") => {
            let listener = listen()?;
            let datagrams = UdpSocket::bind(listener.local_addr()?)?;
            thread::spawn(move || send_back(&datagrams));
            serve(&listener, target)?;
        }
        Some("plain") => {
            let to = address(arguments.next())?;
            serve(&listen()?, move |client| plain(client, to))?;
        }
        Some("delay") => {
            let to = address(arguments.next())?;
            serve(&listen()?, move |client| delayed(client, to))?;
        }
        // The wish to end with the parent outlives exec.
        Some("exec") => {
            let program = arguments.next().ok_or("exec what?")?;
            return Err(Command::new(program).args(arguments).exec().into());
        }
        _ => return Err("no such role".into()),
    }
    Ok(())
}

fn address(argument: Option<OsString>) -> Result<SocketAddr, Box<dyn Error>> {
    let text = argument.and_then(|text| text.into_string().ok());
    Ok(text.unwrap_or_default().parse()?)
}

/// Whatever happens to the bench, its children end too. A signal that they can handle: nginx has children of its own to end.
#[cfg(target_os = "linux")]
fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(
        rustix::process::Signal::TERM,
    ))?)
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> io::Result<()> {
    Ok(())
}

fn listen() -> io::Result<TcpListener> {
    let listener = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )?;
    rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
    rustix::net::listen(&listener, 4096)?;
    Ok(TcpListener::from(listener))
}

/// A thread for each connection; the port is printed.
fn serve(
    listener: &TcpListener,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    println!("{}", listener.local_addr()?.port());
    let serve = Arc::new(serve);
    loop {
        // Out of descriptors, or a client that is gone again: the others go on.
        let Ok((client, _)) = listener.accept() else {
            continue;
        };
        let serve = Arc::clone(&serve);
        let small = thread::Builder::new().stack_size(64 * 1024);
        // A client that hangs up is the normal end.
        let _ = small.spawn(move || serve(client));
    }
}

/// Every datagram goes back to where it came from.
fn send_back(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // Somebody who is gone again: the others go on.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn target(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut first = [0];
    client.read_exact(&mut first)?;
    client.write_all(&first)?;
    if first[0] == ask::ECHO {
        let mut buffer = [0; 4096];
        loop {
            let count = client.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            client.write_all(&buffer[..count])?;
        }
    }
    let mut length = [0; 8];
    client.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    if first[0] == ask::SOURCE {
        return send(&client, length);
    }
    receive(&client, length)?;
    client.write_all(&[1])
}

/// Sends that many bytes.
pub(crate) fn send(mut stream: &TcpStream, length: u64) -> io::Result<()> {
    let buffer = vec![0x5a; BULK];
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left).map_or(BULK, |left| left.min(BULK));
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// Reads that many bytes.
pub(crate) fn receive(mut stream: &TcpStream, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; BULK];
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left).map_or(BULK, |left| left.min(BULK));
        match stream.read(&mut buffer[..count])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count as u64,
        }
    }
    Ok(())
}

/// Large enough that the ends cost little beside the relay.
const BULK: usize = 256 * 1024;

/// The relay that one writes first: blocking reads and writes, a thread for each direction, no option but TCP_NODELAY.
fn plain(client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let (client, remote) = join(client, to)?;
    let (from, into) = (Arc::clone(&remote), Arc::clone(&client));
    thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(move || one_way(&from, &into))?;
    one_way(&client, &remote);
    Ok(())
}

/// A client and a connection to `to`, for threads to share.
fn join(client: TcpStream, to: SocketAddr) -> io::Result<(Arc<TcpStream>, Arc<TcpStream>)> {
    let remote = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    remote.set_nodelay(true)?;
    Ok((Arc::new(client), Arc::new(remote)))
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A long way to `to`: every byte takes half of [`ROUND_TRIP`], and connecting a whole one, which on loopback takes none: so
/// the client's first bytes, and those of `to`, are on their way only then.
fn delayed(client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let connected = Instant::now() + ROUND_TRIP;
    let (client, remote) = join(client, to)?;
    let (from, into) = (Arc::clone(&remote), Arc::clone(&client));
    thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(move || late(&from, into, connected))?;
    late(&client, remote, connected)
}

/// One way; a thread reads, another one writes what is due.
fn late(mut from: &TcpStream, to: Arc<TcpStream>, connected: Instant) -> io::Result<()> {
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(move || {
            for (due, bytes) in receiver {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let end = bytes.is_empty();
                if end || (&*to).write_all(&bytes).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        })?;
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        let due = Instant::now().max(connected) + ROUND_TRIP / 2;
        if sender.send((due, buffer[..count].to_vec())).is_err() || count == 0 {
            return Ok(());
        }
    }
}

/// What the delayed way takes there and back: to another continent, or to the next town by way of a phone.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(50);
