//! `--probe-socks6`: peers that speak SOCKS 6, told from those that do not. Nothing here uses the crate's own SOCKS code.
#![cfg(feature = "socks6")]

mod common;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Peer, SOON, Sockhop, connect, expect_end};
use serde_json::{Value, json};

/// A peer that answers by the version that it is spoken to in, and counts who connects.
struct Speaker {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Speaker {
    fn start(to_five: &'static [u8], to_six: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || answer(&stream, to_five, to_six));
            }
        });
        Self { address, accepted }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: &TcpStream, to_five: &[u8], to_six: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    if first == [6] {
        let mut rest = [0; 11];
        stream.read_exact(&mut rest)?;
        assert_eq!(rest, [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], "NOOP, no options");
        if to_six == SILENCE {
            expect_end(stream, SOON);
            return Ok(());
        }
        stream.write_all(to_six)?;
    } else {
        stream.write_all(to_five)?;
    }
    stream.shutdown(Shutdown::Write)?;
    expect_end(stream, SOON);
    Ok(())
}

const DONE: &[u8] = b"\x06\0\0\0\x06\0\0\0\0\0\0\x01\0\0\0\0";

/// Nothing is said, and nothing closed.
const SILENCE: &[u8] = b"silence";

fn probe(addresses: &[SocketAddr], flags: &[&str]) -> (Option<i32>, Vec<Value>) {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["probe", "--json", "--timeout", "2s"];
    arguments.extend(flags);
    arguments.extend(texts.iter().map(String::as_str));
    let output = Sockhop::run(&arguments);
    let rows = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code(), rows)
}

#[test]
fn those_that_speak_nothing_else_are_found_with_one_more_connection() {
    let peers = [
        (
            Speaker::start(&[6], DONE),
            "socks6",
            "answered in SOCKS 6",
            2,
        ),
        (
            Speaker::start(&[5, 0xff], DONE),
            "socks6",
            "answered in SOCKS 6",
            2,
        ),
        (
            Speaker::start(&[6], b"\x06\x01\0\0"),
            "socks6",
            "answered in SOCKS 6, wants authentication",
            2,
        ),
        // It does not like to do nothing, but has understood.
        (
            Speaker::start(&[6], b"\x06\0\0\0\x06\x07\0\0\0\0\0\x01\0\0\0\0"),
            "socks6",
            "answered in SOCKS 6",
            2,
        ),
        (
            Speaker::start(&[6], b"\x06\0\0\0"),
            "socks6",
            "answered in SOCKS 6",
            2,
        ),
        // No news: it stays what it was.
        (
            Speaker::start(&[5, 0xff], &[5, 0xff]),
            "authentication-required",
            "answered 05 FF",
            2,
        ),
        (Speaker::start(&[6], &[6]), "not-a-proxy", "sent 06", 2),
        (Speaker::start(&[6], b""), "not-a-proxy", "sent 06", 2),
        (
            Speaker::start(&[6], b"HTTP/1.1 400"),
            "not-a-proxy",
            "sent 06",
            2,
        ),
        // The common ones cost what they cost without the flag.
        (Speaker::start(&[5, 0], DONE), "valid", "answered 05 00", 1),
        (
            Speaker::start(&[5, 2], DONE),
            "authentication-required",
            "answered 05 02",
            1,
        ),
        (
            Speaker::start(b"HTTP/1.1 400", DONE),
            "not-a-proxy",
            "sent \"HTTP/1.1\"",
            1,
        ),
        (
            Speaker::start(b"", DONE),
            "not-a-proxy",
            "closed without an answer",
            1,
        ),
    ];
    let addresses: Vec<SocketAddr> = peers.iter().map(|(peer, ..)| peer.address).collect();
    let (code, rows) = probe(&addresses, &["--probe-socks6"]);
    assert_eq!(code, Some(0));
    for ((peer, status, reason, accepted), row) in peers.iter().zip(&rows) {
        assert_eq!(
            (&row["status"], &row["reason"]),
            (&json!(status), &json!(reason))
        );
        assert_eq!(peer.accepted(), *accepted, "{reason}");
    }

    // Without the flag nobody is asked twice.
    let (code, rows) = probe(&addresses[..1], &[]);
    assert_eq!((code, &rows[0]["status"]), (Some(1), &json!("not-a-proxy")));
    assert_eq!(peers[0].0.accepted(), 3);
    let (code, _) = probe(&addresses[..1], &["--probe-socks6"]);
    assert_eq!(code, Some(0), "one of SOCKS 6 is what was asked for");
}

#[test]
fn one_time_limit_covers_both_connections() {
    let peer = Speaker::start(&[6], SILENCE);
    let start = Instant::now();
    let (code, rows) = probe(&[peer.address], &["--probe-socks6"]);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert_eq!((code, &rows[0]["reason"]), (Some(1), &json!("sent 06")));
    assert_eq!(peer.accepted(), 2);
}

#[test]
fn a_forwarder_shows_them_and_never_chooses_them() {
    let six = Speaker::start(&[6], DONE);
    let forwarder = Sockhop::forward(&["--peer", &six.address.to_string(), "--probe-socks6"])
        .args(["--probe-interval", "1s"])
        .start();
    let row = forwarder.wait_peer(six.address, "socks6", SOON);
    assert_eq!(row["reason"], json!("answered in SOCKS 6"));
    assert_eq!(
        (&row["failures"], &row["selected"]),
        (&json!(0), &json!(false))
    );
    let status = forwarder.status();
    assert_eq!(
        (&status["remote"], &status["listening"]),
        (&Value::Null, &json!([]))
    );
    assert_eq!(status["candidates"]["socks6"], json!(1));
    let text = String::from_utf8(forwarder.command(&["status"]).stdout).unwrap();
    assert!(
        text.contains("0 authentication-required, 1 socks6, 0 not-a-proxy"),
        "{text}"
    );
    // A race has nobody to ask either.
    let error = forwarder.control("connect", json!(null)).unwrap_err();
    assert!(
        error.message.contains("no valid proxy available"),
        "{error}"
    );

    // One of SOCKS 5 is chosen as ever, though it comes later.
    let valid = Peer::valid(Duration::ZERO);
    drop(forwarder);
    let forwarder = Sockhop::forward(&["--peer", &six.address.to_string(), "--probe-socks6"])
        .args(["--peer", &valid.address().to_string()])
        .start();
    forwarder.wait_listening(SOON);
    assert_eq!(
        forwarder.status()["remote"],
        json!(valid.address().to_string())
    );
    drop(connect(valid.address()));
}

#[test]
fn a_remote_of_socks6_named_by_hand_is_shown_as_one() {
    let six = Speaker::start(&[6], DONE);
    let uri = format!("socks6://{}", six.address);
    let forwarder = Sockhop::forward(&["--remote", &uri]).start();
    let row = forwarder.wait_peer(six.address, "socks6", SOON);
    assert_eq!(row["selected"], json!(true));
    assert_eq!(forwarder.status()["remote"], json!(uri));
}

#[test]
fn who_speaks_another_version_is_found_with_its_profile() {
    let launch = Sockhop::serve(&["--socks6-only", "--socks6-profile", "go212"]);
    let go = launch.start();
    let six = Sockhop::serve(&["--socks6-only", "--user", "ada:pass"]).start();
    let addresses = [&go, &six].map(|server| server.wait_listening(SOON));
    // Ours understands both.
    let found = |flags: &[&str]| {
        let (_, rows) = probe(&addresses, &[&["--probe-socks6"], flags].concat());
        rows.into_iter()
            .map(|row| row["reason"].clone())
            .collect::<Vec<_>>()
    };
    let wants = "answered in SOCKS 6, wants authentication";
    let in_go = "answered in SOCKS 6 as version 212";
    // They say which it is.
    assert_eq!(found(&[]), [json!(in_go), json!(wants)]);
    assert_eq!(
        found(&["--socks6-profile", "go212"]),
        [json!(in_go), json!(wants)]
    );

    // This one does not say it to those who come in SOCKS 5.
    let only = Speaker212::start();
    let (code, rows) = probe(&[only], &["--probe-socks6", "--socks6-profile", "go212"]);
    assert_eq!((code, &rows[0]["reason"]), (Some(0), &json!(in_go)));
    let (code, rows) = probe(&[only], &["--probe-socks6"]);
    assert_eq!(
        (code, &rows[0]["reason"]),
        (Some(1), &json!("answered 05 FF"))
    );

    let peer = only.to_string();
    let forwarder = Sockhop::forward(&["--peer", &peer, "--probe-socks6"])
        .args(["--socks6-profile", "go212"])
        .start();
    let row = forwarder.wait_peer(only, "socks6", SOON);
    assert_eq!(row["reason"], json!(in_go));
    // A remote is asked as its URI says.
    let uri = format!("socks6://{only}?profile=go212");
    let forwarder = Sockhop::forward(&["--remote", &uri]).start();
    let row = forwarder.wait_peer(only, "socks6", SOON);
    assert_eq!(row["reason"], json!(in_go));
}

/// A peer that knows nothing but version 212.
struct Speaker212;

impl Speaker212 {
    fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut first = [0];
                    stream.read_exact(&mut first)?;
                    if first == [0xd4] {
                        stream.read_exact(&mut [0; 11])?;
                        stream.write_all(b"\xd4\0\0\0\xd4\0\0\0\0\0\0\x01\0\0\0\0")?;
                    } else {
                        stream.write_all(&[5, 0xff])?;
                    }
                    stream.shutdown(Shutdown::Write)?;
                    expect_end(&stream, SOON);
                    io::Result::Ok(())
                });
            }
        });
        address
    }
}
