//! Many clients at once, all of them in the same phase of their handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many clients as a thousand, or as the descriptors here and in the program are for.
pub(crate) fn a_thousand() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("raise the limit of descriptors");
    let most = maximum.and_then(|most| usize::try_from(most).ok());
    // One here, one at each proxy that is asked; tests run side by side.
    most.map_or(1000, |most| (most / 12).min(1000))
}

type Phase = fn(usize, &TcpStream) -> io::Result<()>;

/// Lets `count` clients greet, make their requests, and exchange bytes of their own, each phase for all of them before the next.
/// What went wrong, for whom.
pub(crate) fn served(forwarder: SocketAddr, count: usize) -> Vec<String> {
    let mut clients = Vec::new();
    for number in 0..count {
        let stream = TcpStream::connect(forwarder).expect("the forwarder accepts");
        stream.set_nodelay(true).expect("an option");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        clients.push((number, stream));
    }
    let mut errors = Vec::new();
    let phases: [(&str, Phase); 5] = [
        ("greeting", |_, stream| say(stream, &[5, 1, 0])),
        ("method", |_, stream| expect(stream, &[5, 0])),
        ("request", |number, stream| say(stream, &request(number))),
        ("reply", |_, stream| expect(stream, &super::fake::reply(0))),
        ("stream", |number, stream| {
            say(stream, &payload(number))?;
            expect(stream, &payload(number))
        }),
    ];
    for (name, phase) in phases {
        clients.retain(|(number, stream)| match phase(*number, stream) {
            Ok(()) => true,
            Err(error) => {
                errors.push(format!("client {number}, {name}: {error}"));
                false
            }
        });
    }
    errors
}

/// A request that is the client's own.
pub(crate) fn request(number: usize) -> Vec<u8> {
    let [.., high, low] = number.to_be_bytes();
    vec![5, 1, 0, 1, 192, 0, 2, 1, high, low]
}

fn payload(number: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    (0..300).map(|_| random.u8(..)).collect()
}

pub(crate) fn say(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

pub(crate) fn expect(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut heard = vec![0; bytes.len()];
    stream.read_exact(&mut heard)?;
    match heard == bytes {
        true => Ok(()),
        false => Err(io::Error::other(format!("heard {heard:02x?}"))),
    }
}

/// For one answer. Longer than all limits of the forwarder, and for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(40);
