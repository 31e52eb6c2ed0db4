//! Seeded bytes with a position: sent from anywhere, verified anywhere.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// An endless stream of bytes that follows from its seed. Every position has one right byte.
#[derive(Debug, Clone)]
pub struct Pattern {
    table: Arc<[u8]>,
}

/// A prime: a loss or a repetition of whole buffers, pages or pipes never lands on the same byte again.
const PERIOD: usize = 1_048_573;

/// How the sender cuts the stream into writes.
#[derive(Debug, Clone, Copy)]
pub enum Chunks {
    /// Always this many bytes.
    Fixed(usize),
    /// From 1 to `most` bytes, mostly small ones, following from `seed`.
    Random {
        /// Repeats the same sizes.
        seed: u64,
        /// The largest write.
        most: usize,
    },
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The other side has finished sending.
    Eof,
    /// The connection was reset.
    Reset,
    /// Nothing came within the stream's read time limit.
    Silent,
    /// As many bytes as were asked for have come; the stream is still open.
    Enough,
}

/// What [`Pattern::receive`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes read, right or wrong.
    pub bytes: u64,
    /// The first position whose byte was wrong.
    pub wrong_at: Option<u64>,
    /// Why reading stopped.
    pub end: End,
}

impl Received {
    /// So many bytes, all of them right, and then the end.
    pub fn whole(bytes: u64) -> Self {
        Self {
            bytes,
            wrong_at: None,
            end: End::Eof,
        }
    }
}

impl Pattern {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut table = vec![0; PERIOD];
        random.fill(&mut table);
        Self {
            table: table.into(),
        }
    }

    /// The bytes from `position` on, as many as fit.
    pub fn fill(&self, position: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let rest = self.from(position + done as u64);
            let count = rest.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
        }
    }

    /// The position of the first byte of `input` that is wrong, if it starts at `position`.
    pub fn verify(&self, position: u64, input: &[u8]) -> Option<u64> {
        let mut done = 0;
        while done < input.len() {
            let rest = self.from(position + done as u64);
            let count = rest.len().min(input.len() - done);
            let (right, given) = (&rest[..count], &input[done..done + count]);
            if right != given {
                let wrong = right
                    .iter()
                    .zip(given)
                    .position(|(a, b)| a != b)
                    .unwrap_or(0);
                return Some(position + (done + wrong) as u64);
            }
            done += count;
        }
        None
    }

    /// Writes `length` bytes from position 0; the stream stays open.
    pub fn send(&self, mut stream: &TcpStream, length: u64, chunks: Chunks) -> io::Result<()> {
        let (mut random, most) = match chunks {
            Chunks::Fixed(size) => (None, size),
            Chunks::Random { seed, most } => (Some(fastrand::Rng::with_seed(seed)), most),
        };
        let mut buffer = vec![0; most];
        let mut position = 0;
        while position < length {
            let size = match &mut random {
                None => most,
                // Only one in four may be large, so that small and large writes mix.
                Some(random) => {
                    let most = if random.u8(..4) > 0 {
                        most.min(4096)
                    } else {
                        most
                    };
                    random.usize(1..=most)
                }
            };
            let size = usize::try_from(length - position).map_or(size, |left| size.min(left));
            self.fill(position, &mut buffer[..size]);
            stream.write_all(&buffer[..size])?;
            position += size as u64;
        }
        Ok(())
    }

    /// Reads and verifies from position 0 until the end, or until `most` bytes are there.
    ///
    /// The stream's read time limit bounds every wait.
    pub fn receive(&self, mut stream: &TcpStream, most: u64) -> Received {
        let mut received = Received {
            bytes: 0,
            wrong_at: None,
            end: End::Enough,
        };
        let mut buffer = vec![0; 128 * 1024];
        while received.bytes < most {
            let room = usize::try_from(most - received.bytes)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            match stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    received.end = End::Eof;
                    break;
                }
                Ok(count) => {
                    if received.wrong_at.is_none() {
                        received.wrong_at = self.verify(received.bytes, &buffer[..count]);
                    }
                    received.bytes += count as u64;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        received.end = End::Silent;
                        break;
                    }
                    _ => {
                        received.end = End::Reset;
                        break;
                    }
                },
            }
        }
        received
    }

    fn from(&self, position: u64) -> &[u8] {
        let start = usize::try_from(position % PERIOD as u64).expect("below the period");
        &self.table[start..]
    }
}
