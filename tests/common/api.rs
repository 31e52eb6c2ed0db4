//! The API of an overlay daemon: HTTP, or one JSON object a connection, over TCP or a Unix socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// What the API does when it is asked.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These bytes, and waits for the next request.
    Whole(Vec<u8>),
    /// These bytes, and closes.
    Last(Vec<u8>),
    /// Nothing, for as long as the other side waits.
    Silent,
    /// These bytes one by one, so far apart.
    Trickle(Vec<u8>, Duration),
    /// The first bytes once and the others again and again, as long as somebody takes them.
    Endless(Vec<u8>, Vec<u8>),
}

/// A good answer in JSON, as the daemons' HTTP libraries write it.
pub fn http_ok(json: &str) -> Answer {
    let length = json.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\ndate: Sat, 21 Nov 2026 10:00:00 GMT\r\n\r\n"
    );
    Answer::Whole([head.as_bytes(), json.as_bytes()].concat())
}

/// A running API. Its threads end with the test.
#[derive(Debug)]
pub struct Api {
    place: Place,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    /// Of the socket; removed on drop.
    directory: Option<TempDir>,
}

#[derive(Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Api {
    /// On loopback. `answers` gets each request as it came, its head or its object.
    pub fn tcp(answers: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::tcp_at("127.0.0.1:0", answers)
    }

    /// At this address, which only a namespace has for itself.
    pub fn tcp_at(address: &str, answers: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let place = Place::Tcp(listener.local_addr().expect("its address"));
        Self::at(place, move || Ok(listener.accept()?.0), answers)
    }

    /// At a Unix socket in a directory of its own.
    pub fn unix(answers: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let path = directory.path().join("api.sock");
        let mut api = Self::unix_at(&path, answers);
        api.directory = Some(directory);
        api
    }

    /// At this path.
    pub fn unix_at(path: &Path, answers: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let place = Place::Unix(path.to_owned());
        Self::at(place, move || Ok(listener.accept()?.0), answers)
    }

    fn at<S: Read + Write + Send + 'static>(
        place: Place,
        accept: impl Fn() -> io::Result<S> + Send + 'static,
        answers: impl Fn(&str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let api = Self {
            place,
            asked: Arc::default(),
            connections: Arc::default(),
            directory: None,
        };
        let (asked, connections) = (Arc::clone(&api.asked), Arc::clone(&api.connections));
        let answers = Arc::new(answers);
        thread::spawn(move || {
            while let Ok(stream) = accept() {
                let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
                *connections.lock().expect("not poisoned") += 1;
                thread::spawn(move || serve(stream, &asked, &*answers));
            }
        });
        api
    }

    /// Its TCP address.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        match &self.place {
            Place::Tcp(address) => *address,
            Place::Unix(path) => panic!("{} has no address", path.display()),
        }
    }

    /// The path of its socket.
    #[track_caller]
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Unix(path) => path,
            Place::Tcp(address) => panic!("{address} has no path"),
        }
    }

    /// What it was asked so far: the paths of requests, or whole objects.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").clone()
    }

    /// How often it was asked for something that contains `text`.
    pub fn times_asked(&self, text: &str) -> usize {
        let asked = self.asked.lock().expect("not poisoned");
        asked
            .iter()
            .filter(|request| request.contains(text))
            .count()
    }

    /// How many connections it had so far.
    pub fn connections(&self) -> usize {
        *self.connections.lock().expect("not poisoned")
    }
}

fn serve(
    mut stream: impl Read + Write,
    asked: &Mutex<Vec<String>>,
    answers: &dyn Fn(&str) -> Answer,
) {
    while let Some(request) = request(&mut stream) {
        let what = match request.strip_prefix("GET ") {
            Some(rest) => rest.split(' ').next().unwrap_or_default(),
            None => request.as_str(),
        };
        asked.lock().expect("not poisoned").push(what.to_owned());
        let ended = match answers(&request) {
            Answer::Whole(bytes) => stream.write_all(&bytes).is_err(),
            Answer::Last(bytes) => {
                let _ = stream.write_all(&bytes);
                true
            }
            Answer::Silent => {
                while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
                true
            }
            Answer::Trickle(bytes, pause) => bytes.iter().any(|byte| {
                thread::sleep(pause);
                stream.write_all(&[*byte]).is_err()
            }),
            Answer::Endless(first, again) => {
                let mut result = stream.write_all(&first);
                while result.is_ok() {
                    result = stream.write_all(&again);
                }
                true
            }
        };
        if ended {
            return;
        }
    }
}

/// The head of a request in HTTP, or one object.
fn request(stream: &mut impl Read) -> Option<String> {
    let mut request = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return None,
        }
        let is_whole = match request.first() {
            Some(b'{') => request.ends_with(b"}"),
            // Between objects.
            Some(b'\n') => {
                request.clear();
                false
            }
            _ => request.ends_with(b"\r\n\r\n"),
        };
        if is_whole {
            return String::from_utf8(request).ok();
        }
    }
}
