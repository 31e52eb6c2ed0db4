//! The client's side of a connection, by hand-written bytes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::SOON;

/// What came from the other side of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// It finished sending.
    Eof,
    /// It reset the connection.
    Reset,
    /// It sent these bytes.
    Bytes(Vec<u8>),
    /// Nothing happened within the limit.
    Silent,
}

/// So many bytes, within the stream's read time limit.
#[track_caller]
pub fn read_exactly(mut stream: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

/// Waits up to `limit` for the next thing that happens on the stream.
pub fn observe(mut stream: &TcpStream, limit: Duration) -> Observed {
    let before = stream.read_timeout().expect("read time limit");
    stream
        .set_read_timeout(Some(limit))
        .expect("set the read time limit");
    let mut buffer = vec![0; 64 * 1024];
    let observed = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Observed::Eof,
            Ok(count) => {
                buffer.truncate(count);
                break Observed::Bytes(buffer);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => break Observed::Silent,
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                    break Observed::Reset;
                }
                _ => panic!("read: {error}"),
            },
        }
    };
    stream
        .set_read_timeout(before)
        .expect("restore the read time limit");
    observed
}

/// Reads and drops bytes until the stream ends; the end, or `Silent` when nothing came for `limit`.
pub fn expect_end(stream: &TcpStream, limit: Duration) -> Observed {
    loop {
        match observe(stream, limit) {
            Observed::Bytes(_) => {}
            end => return end,
        }
    }
}

/// Closes so that the other side sees a reset and nothing else.
///
/// No clone of the stream may be alive, or the reset waits for it.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("linger");
    drop(stream);
}

/// A plain connection with time limits on connecting, reading and writing.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks the SOCKS5 proxy for a connection to `target`; a refusal is an error that quotes the reply.
pub fn socks5_connect(proxy: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let mut request = vec![5, 1, 0];
    match target.ip() {
        IpAddr::V4(address) => {
            request.push(1);
            request.extend(address.octets());
        }
        IpAddr::V6(address) => {
            request.push(4);
            request.extend(address.octets());
        }
    }
    request.extend(target.port().to_be_bytes());
    let stream = connect(proxy)?;
    socks5_request(&stream, &request)?;
    Ok(stream)
}

/// The same with a host name that the proxy resolves.
pub fn socks5_connect_name(proxy: SocketAddr, host: &str, port: u16) -> io::Result<TcpStream> {
    let length = u8::try_from(host.len()).map_err(io::Error::other)?;
    let mut request = vec![5, 1, 0, 3, length];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    let stream = connect(proxy)?;
    socks5_request(&stream, &request)?;
    Ok(stream)
}

/// Greets without authentication and sends `request`; reads exactly the two answers and not a byte more.
pub fn socks5_request(mut stream: &TcpStream, request: &[u8]) -> io::Result<()> {
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    if method != [5, 0] {
        return Err(io::Error::other(format!(
            "greeting answered with {method:02x?}"
        )));
    }
    stream.write_all(request)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    if reply[..3] != [5, 0, 0] {
        return Err(io::Error::other(format!(
            "request answered with {reply:02x?}"
        )));
    }
    let rest = match reply[3] {
        1 => 4 + 2,
        4 => 16 + 2,
        3 => {
            let mut length = [0];
            stream.read_exact(&mut length)?;
            usize::from(length[0]) + 2
        }
        other => return Err(io::Error::other(format!("reply with address type {other}"))),
    };
    stream.read_exact(&mut vec![0; rest])
}

/// Writes `bytes` and reads as many back: what an echo server should return unchanged.
pub fn exchange(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Everything until the server closes, which must come soon.
#[track_caller]
pub fn answer(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(server).expect("connect");
    stream.write_all(bytes).expect("write");
    rest(&mut stream)
}

/// The same of a connection.
#[track_caller]
pub fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an orderly end");
    answer
}
