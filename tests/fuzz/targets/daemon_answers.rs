//! What the daemons of overlays and the kernel tell: whatever comes, there is an end, and whoever is named lies where the overlay
//! has its nodes.
//!
//! Input: a byte for who is asked, a byte for how bodies are framed, then the answers one after the other with the byte FE between them.

#![no_main]

use std::collections::{BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sockhop::api_address::ApiAddress;
use sockhop::discovery::source::fuzzing::{refresh, routes, texts};
use sockhop::discovery::source::mycelium::MyceliumSource;
use sockhop::discovery::source::tailscale::TailscaleSource;
use sockhop::discovery::source::yggdrasil::YggdrasilSource;
use sockhop::discovery::source::{Presence, Refreshed, Source};
use sockhop::resolver::Resolver;
use sockhop_fuzz::settings;

const PORT: u16 = 1080;

fuzz_target!(|input: &[u8]| {
    let Some(([who, framing], rest)) = settings::<2>(input) else {
        return;
    };
    let mut parts = rest.split(|byte| *byte == 0xFE);
    match who % 6 {
        // Whole answers of HTTP.
        0 => drop(check(
            &mut tailscale(),
            parts.map(<[u8]>::to_vec),
            in_tailscale,
        )),
        // The same body means the same, however it is framed.
        1 => {
            let body = parts.next().unwrap_or_default();
            let framed = |framing| check(&mut tailscale(), [answer(framing, body)], in_tailscale);
            let plain = framed(0);
            // An end that comes in the middle is told in other words.
            if matches!(plain, Refreshed::List { .. }) {
                assert_eq!(plain, framed(framing | 1));
                assert_eq!(plain, framed(framing & !1));
            }
        }
        2 => {
            let bodies = parts.map(|body| answer(framing, body));
            drop(check(
                &mut mycelium(),
                bodies,
                |ip| matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xFE00 == 0x0400),
            ));
        }
        3 => drop(check(
            &mut yggdrasil(),
            parts.map(<[u8]>::to_vec),
            |ip| matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xFE00 == 0x0200),
        )),
        4 => {
            let files = &FAKE.files;
            for file in files {
                std::fs::write(file, parts.next().unwrap_or_default()).expect("a file");
            }
            let [v4, v6] = files.clone();
            drop(check(&mut routes(v4, v6, PORT), [], |ip| {
                !ip.is_unspecified() && !ip.is_multicast()
            }));
        }
        _ => check_json(rest),
    }
});

fn in_tailscale(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => u32::from(ip) >> 22 == 0x6440_0000 >> 22,
        IpAddr::V6(ip) => u128::from(ip) >> 80 == 0xFD7A_115C_A1E0,
    }
}

/// Asks, with these answers; what then comes has to be fit for users, and for the table.
fn check(
    source: &mut dyn Source,
    answers: impl IntoIterator<Item = Vec<u8>>,
    in_range: impl Fn(IpAddr) -> bool,
) -> Refreshed {
    let said = answers.into_iter().collect();
    *FAKE.answers.lock().unwrap_or_else(PoisonError::into_inner) = said;
    let refreshed = refresh(source).expect("descriptors");
    let cause = match &refreshed {
        Refreshed::List { peers, error } => {
            let unique: BTreeSet<&SocketAddr> = peers.iter().collect();
            assert_eq!(unique.len(), peers.len(), "{peers:?}");
            for peer in peers {
                assert!(in_range(peer.ip()) && !peer.ip().is_loopback(), "{peer}");
                assert_eq!(peer.port(), PORT);
            }
            error.as_ref()
        }
        Refreshed::Failed(cause) | Refreshed::Absent(cause) => Some(cause),
        Refreshed::Unchanged => panic!("it was the first time"),
    };
    if let Some(cause) = cause {
        assert!(
            !cause.is_empty() && !cause.contains(char::is_control),
            "{cause:?}"
        );
        assert!(cause.len() < 2000, "{} bytes: {cause}", cause.len());
        assert!(!cause.contains("took too long"), "{cause}");
    }
    refreshed
}

/// What is JSON for others is JSON here, with the same texts; those that are nested too deeply are left out.
fn check_json(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    let met: BTreeSet<String> = texts(text).expect("JSON").into_iter().collect();
    let mut levels = vec![(&value, 0)];
    while let Some((value, depth)) = levels.pop() {
        match value {
            Value::String(text) if depth <= 6 => assert!(met.contains(text), "{text:?}"),
            Value::Array(list) => levels.extend(list.iter().map(|inner| (inner, depth + 1))),
            Value::Object(map) => levels.extend(map.values().map(|inner| (inner, depth + 1))),
            _ => {}
        }
    }
}

/// An answer of HTTP with this body: a first byte of 1 to 9 is a status of so many hundreds.
fn answer(framing: u8, body: &[u8]) -> Vec<u8> {
    let (code, body) = match body {
        [hundreds @ 1..=9, body @ ..] => (u16::from(*hundreds) * 100 + 4, body),
        body => (200, body),
    };
    let mut answer = format!("HTTP/1.1 {code} x\r\n").into_bytes();
    match framing {
        0 => {
            answer.extend(b"\r\n");
            answer.extend(body);
        }
        length if length & 1 == 0 => {
            answer.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
            answer.extend(body);
        }
        size => {
            answer.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(usize::from(size)) {
                answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                answer.extend(chunk);
                answer.extend(b"\r\n");
            }
            answer.extend(b"0\r\n\r\n");
        }
    }
    answer
}

fn tailscale() -> TailscaleSource {
    TailscaleSource::new("tailscale", [FAKE.path.clone()], Presence::Required, PORT)
}

fn yggdrasil() -> YggdrasilSource {
    let places = vec![ApiAddress::Unix(FAKE.path.clone())];
    let resolver = Resolver::default();
    YggdrasilSource::new("yggdrasil", places, Presence::Required, PORT, resolver)
}

fn mycelium() -> MyceliumSource {
    let place = FAKE.tcp.into();
    let resolver = Resolver::default();
    MyceliumSource::new("mycelium", place, Presence::Required, PORT, resolver)
}

static FAKE: LazyLock<Fake> = LazyLock::new(Fake::start);

/// A daemon that gives the next answer to each connection, and none when there is none left.
struct Fake {
    path: PathBuf,
    tcp: SocketAddr,
    /// For the kernel's routes.
    files: [PathBuf; 2],
    answers: Mutex<VecDeque<Vec<u8>>>,
}

impl Fake {
    fn start() -> Self {
        let folder = std::env::temp_dir();
        let own = std::process::id();
        let name = |what: &str| folder.join(format!("sockhop-fuzz-{own}-{what}"));
        let path = name("socket");
        let _ = std::fs::remove_file(&path);
        let unix = UnixListener::bind(&path).expect("a socket");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let tcp = listener.local_addr().expect("a port");
        thread::spawn(move || unix.incoming().flatten().for_each(serve_unix));
        thread::spawn(move || listener.incoming().flatten().for_each(serve_tcp));
        Self {
            path,
            tcp,
            files: [name("route"), name("ipv6_route")],
            answers: Mutex::default(),
        }
    }
}

fn serve_unix(mut stream: UnixStream) {
    serve(&mut stream);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn serve_tcp(mut stream: TcpStream) {
    serve(&mut stream);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn serve(stream: &mut (impl Read + Write)) {
    let mut request = Vec::new();
    let mut byte = [0];
    let is_whole = |request: &[u8]| request.ends_with(b"\r\n\r\n") || request.ends_with(b"}\n");
    while !is_whole(&request) {
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    let mut answers = FAKE.answers.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = answers.pop_front();
    drop(answers);
    let _ = stream.write_all(&answer.unwrap_or_default());
}
