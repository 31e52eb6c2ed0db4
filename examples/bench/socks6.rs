//! The handshake of SOCKS 6, written by hand: all that a client says is one message, with the first byte of payload behind it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};

/// A session of this client with a server, and its tokens.
#[derive(Debug)]
pub(crate) struct Session {
    id: Vec<u8>,
    next: AtomicU32,
}

impl Session {
    /// Asks for one, with a NOOP.
    pub(crate) fn open(mut stream: &TcpStream) -> io::Result<Self> {
        let mut options = vec![0, SESSION_REQUEST, 0, 4, 0, WINDOW_REQUEST, 0, 8];
        options.extend(TOKENS.to_be_bytes());
        stream.write_all(&request(NOOP, 0, &options, &[]))?;
        let said = options_of(stream)?;
        let find = |kind: u8| {
            let option = said.iter().find(|option| option[..2] == [0, kind]);
            option.map(|option| &option[4..])
        };
        let missing = || io::Error::other("no session with tokens was granted");
        let id = find(SESSION_ID).ok_or_else(missing)?.to_vec();
        let window = find(WINDOW).ok_or_else(missing)?;
        let base = window.first_chunk().ok_or_else(missing)?;
        Ok(Self {
            id,
            next: AtomicU32::new(u32::from_be_bytes(*base)),
        })
    }

    /// What a request inside it says, for which one token is spent: small ones first, so the window moves along.
    fn options(&self) -> Vec<u8> {
        let length = u8::try_from(4 + self.id.len()).unwrap_or(u8::MAX);
        let token = self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let id = [&[0, SESSION_ID, 0, length], &self.id[..]].concat();
        [&id[..], &[0, EXPENDITURE, 0, 8], &token].concat()
    }
}

/// Asks for a port of loopback, with payload in the same segment; what follows are the target's bytes.
pub(crate) fn connect(
    mut stream: &TcpStream,
    port: u16,
    session: Option<&Session>,
    payload: &[u8],
) -> io::Result<()> {
    let options = session.map(Session::options).unwrap_or_default();
    stream.write_all(&request(CONNECT, port, &options, payload))?;
    options_of(stream)?;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply)?;
    match reply {
        [6, 0, 0, 0, _, _, 0, 1, ..] => Ok(()),
        _ => Err(io::Error::other(format!("refused: {reply:?}"))),
    }
}

fn request(command: u8, port: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).unwrap_or(u16::MAX);
    let ip = if command == NOOP {
        [0; 4]
    } else {
        [127, 0, 0, 1]
    };
    [
        &[6, command][..],
        &length.to_be_bytes(),
        &port.to_be_bytes(),
        &[0, 1],
        &ip,
        options,
        payload,
    ]
    .concat()
}

/// The options of a successful authentication reply.
fn options_of(mut stream: &TcpStream) -> io::Result<Vec<Vec<u8>>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let [6, 0, high, low] = head else {
        return Err(io::Error::other(format!("not let in: {head:?}")));
    };
    let mut area = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    stream.read_exact(&mut area)?;
    let mut options = Vec::new();
    let mut rest = &area[..];
    while let [_, _, high, low, ..] = *rest {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((option, behind)) = rest.split_at_checked(length.max(4)) else {
            break;
        };
        options.push(option.to_vec());
        rest = behind;
    }
    Ok(options)
}

const NOOP: u8 = 0;
const CONNECT: u8 = 1;
const SESSION_REQUEST: u8 = 5;
const SESSION_ID: u8 = 6;
const WINDOW_REQUEST: u8 = 11;
const WINDOW: u8 = 12;
const EXPENDITURE: u8 = 13;

/// More than there are connections at the same time.
const TOKENS: u32 = 200;
