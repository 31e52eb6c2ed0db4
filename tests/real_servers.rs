//! Our client and `sockhop dial` through other people's servers, as Debian packages them.
#![cfg(feature = "client-cli")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use common::{
    Daemon, Launch, Netns, SOON, Sshd, Target, dante_with, dead_address, exchange, free_port,
    need_root, wait_until,
};
use sockhop::client::{self, ClientError, Fault};
use sockhop::handshake::client::Phase;
use sockhop::handshake::{HandshakeError, Refusal};
use sockhop::wire::socks4;
use sockhop::wire::socks5::ReplyCode;

/// `sockhop dial` to its end.
fn dial(proxy: &str, target: &str) -> Output {
    Launch::new(&["dial", "--timeout=20s", proxy, target]).run(3 * SOON)
}

/// Both ways lead to this echo server.
#[track_caller]
fn assert_reached(proxy: &str, target: &str) {
    let stream = client::connect(&proxy.parse().expect(proxy), target)
        .unwrap_or_else(|error| panic!("{proxy}: {error:?}"));
    assert_eq!(exchange(&stream, b"hello").expect(proxy), b"hello");
    assert_dial_answered(proxy, target);
}

/// What `sockhop dial` is told comes back. Its stdin ends later: not every proxy passes one end on and keeps the other open.
#[track_caller]
fn assert_dial_answered(proxy: &str, target: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sockhop"))
        .args(["dial", "--timeout=20s", proxy, target])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let sent = input.write_all(b"hello");
    let (sender, answer) = channel();
    thread::spawn(move || {
        let mut heard = [0; 5];
        let read = output.read_exact(&mut heard).map(|()| heard);
        let _ = sender.send(read);
    });
    let heard = answer.recv_timeout(3 * SOON);
    drop(input);
    let ended = wait_until(SOON, || child.try_wait().expect("wait").is_some());
    let _ = child.kill();
    let status = child.wait().expect("wait");
    assert!(ended, "{proxy}: still runs");
    assert!(sent.is_ok(), "{proxy}: {sent:?}");
    assert!(
        matches!(&heard, Ok(Ok(heard)) if heard == b"hello"),
        "{proxy}: {heard:?}"
    );
    assert_eq!(status.code(), Some(0), "{proxy}");
}

/// Neither way leads there; says whose fault it is, with the error.
#[track_caller]
fn assert_unreached(proxy: &str, target: &str, fault: Fault) -> ClientError {
    let error = client::connect(&proxy.parse().expect(proxy), target).expect_err(proxy);
    assert_eq!(error.fault(), fault, "{proxy}: {error:?}");
    let output = dial(proxy, target);
    let status = match fault {
        Fault::Target => 3,
        _ => 1,
    };
    assert_eq!(output.status.code(), Some(status), "{proxy}: {output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !said.contains("guess") && output.stdout.is_empty(),
        "{said}"
    );
    error
}

fn refusal(error: &ClientError) -> Refusal {
    match error {
        ClientError::Refused { refusal, .. } => *refusal,
        other => panic!("{other:?}"),
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a readable path").to_owned()
}

#[test]
#[ignore = "needs microsocks"]
fn microsocks_with_user_and_password() {
    let (echo, at) = (Target::echo(), free_port());
    let _server = Daemon::start("microsocks", at, |_| {
        let port = at.port().to_string();
        ["-i", "127.0.0.1", "-p", &port, "-u", "ada", "-P", "p@ss"]
            .map(String::from)
            .to_vec()
    });
    let target = echo.address().to_string();
    let named = format!("localhost:{}", echo.address().port());
    for scheme in ["socks5", "socks5h"] {
        let proxy = format!("{scheme}://ada:p%40ss@{at}");
        assert_reached(&proxy, &target);
        assert_reached(&proxy, &named);
        let error = assert_unreached(&proxy, &dead_address().to_string(), Fault::Target);
        assert_eq!(
            refusal(&error),
            Refusal::Socks5(ReplyCode::CONNECTION_REFUSED)
        );
    }
    for login in ["ada:guess@", "bob:p%40ss@"] {
        let proxy = format!("socks5h://{login}{at}");
        let error = assert_unreached(&proxy, &target, Fault::Proxy);
        assert!(
            matches!(
                error,
                ClientError::Handshake(_, HandshakeError::CredentialsRejected(_))
            ),
            "{error:?}"
        );
    }
    let error = assert_unreached(&format!("socks5h://{at}"), &target, Fault::Proxy);
    assert!(
        matches!(
            error,
            ClientError::Handshake(_, HandshakeError::NoAcceptableMethod)
        ),
        "{error:?}"
    );
    // It knows no SOCKS4, and closes.
    assert_unreached(&format!("socks4://{at}"), &target, Fault::Proxy);
}

#[test]
#[ignore = "needs danted"]
fn dante_through_dial() {
    let echo = Target::echo();
    let (_server, at) = dante_with("socks block { from: 0.0.0.0/0 to: 127.0.0.9/32 }\n");
    let target = echo.address().to_string();
    for scheme in ["socks4", "socks5", "socks5h"] {
        let proxy = format!("{scheme}://{at}");
        assert_reached(&proxy, &target);
        assert_unreached(&proxy, &dead_address().to_string(), Fault::Target);
        // What its rules forbid.
        let error = assert_unreached(&proxy, "127.0.0.9:80", Fault::Target);
        let expected = match scheme {
            "socks4" => Refusal::Socks4(socks4::ReplyCode::REJECTED),
            _ => Refusal::Socks5(ReplyCode::NOT_ALLOWED),
        };
        assert_eq!(refusal(&error), expected, "{scheme}");
    }
}

#[test]
#[ignore = "needs openssh-client, openssh-server"]
fn the_socks_port_of_ssh() {
    let (echo, at, sshd) = (Target::echo(), free_port(), Sshd::start());
    let _client = Daemon::start("ssh", at, |_| {
        let mut arguments = sshd.options();
        arguments.extend(["-N", "-D", &at.to_string(), "127.0.0.1"].map(String::from));
        arguments
    });
    let target = echo.address().to_string();
    let named = format!("localhost:{}", echo.address().port());
    for scheme in ["socks4", "socks4a", "socks5", "socks5h"] {
        let proxy = format!("{scheme}://{at}");
        assert_reached(&proxy, &target);
        assert_reached(&proxy, &named);
        // It has a reply for success only, and closes.
        let error = assert_unreached(&proxy, &dead_address().to_string(), Fault::Proxy);
        let closed = HandshakeError::ClosedEarly(Phase::Reply, 0);
        assert!(
            matches!(&error, ClientError::Handshake(_, error) if *error == closed),
            "{error:?}"
        );
    }
    // It knows no passwords, and we don't go without.
    let proxy = format!("socks5h://ada:guess@{at}");
    assert_unreached(&proxy, &target, Fault::Proxy);
}

/// Tor where there is no network, so that it refuses everything; what counts is how, and how soon we know.
#[test]
#[ignore = "needs root, tor, ip, nft"]
fn tor_without_a_network_refuses_at_once() {
    need_root();
    let namespace = Netns::new();
    namespace.inside(|| {
        let at = free_port();
        let _tor = Daemon::start("tor", at, |directory| {
            let configuration = directory.join("torrc");
            let data = text(&directory.join("data"));
            // An authority that can't be: it is not to look for the real ones.
            let authority = "none orport=1 no-v2 127.0.0.1:1 FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF";
            fs::write(
                &configuration,
                format!(
                    "DataDirectory {data}\nSocksPort {at} ExtendedErrors\nSocksTimeout 2\nDirAuthority {authority}\nLog notice stdout\n"
                ),
            )
            .expect("write the configuration");
            ["-f", &text(&configuration), "--defaults-torrc", "/dev/null"]
                .map(String::from)
                .to_vec()
        });
        let socks5 = Refusal::Socks5;
        // Tor's own codes, beyond those of the RFC: 0xf6 is for a bad onion address.
        let bad_onion = ReplyCode(0xf6);
        for (proxy, target, fault, expected) in [
            ("socks5h", "example.com:80", Fault::Target, socks5(ReplyCode::NETWORK_UNREACHABLE)),
            ("socks5", "192.0.2.1:80", Fault::Target, socks5(ReplyCode::NETWORK_UNREACHABLE)),
            ("socks5h", "bad.onion:80", Fault::Target, socks5(bad_onion)),
            ("socks4a", "example.com:80", Fault::Target, Refusal::Socks4(socks4::ReplyCode::REJECTED)),
            // It takes any login, to keep their connections apart.
            ("socks5h://ada:guess@", "example.com:80", Fault::Target, socks5(ReplyCode::NETWORK_UNREACHABLE)),
        ] {
            let proxy = match proxy.contains("://") {
                true => format!("{proxy}{at}"),
                false => format!("{proxy}://{at}"),
            };
            let started = Instant::now();
            let error = assert_unreached(&proxy, target, fault);
            assert_eq!(refusal(&error), expected, "{proxy} {target}");
            assert!(started.elapsed() < 2 * SOON, "{proxy}: {:?}", started.elapsed());
        }
    });
}
