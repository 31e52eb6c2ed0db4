//! Which way connections to others take: `--interface`, `--source` and `--mark`.

mod common;

#[cfg(target_os = "linux")]
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
#[cfg(target_os = "linux")]
use std::net::UdpSocket;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

#[cfg(target_os = "linux")]
use common::{Launch, Netns, need_root, wait_until};
use common::{Observed, SOON, Sockhop, expect_end, read_exactly, socks5_connect};
#[cfg(target_os = "linux")]
use serde_json::Value;
#[cfg(target_os = "linux")]
use sockhop::client::Dialer;
#[cfg(target_os = "linux")]
use sockhop::wire::Address;

/// What a command that runs once says, and how it ends.
fn once(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Sockhop::run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// Tells everybody who connects the word and where they come from, as long as the test program runs.
fn teller(address: &str, word: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).expect("bind");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let from = stream.peer_addr().expect("connected").ip().to_canonical();
            let _ = stream.write_all(format!("{word} {from}").as_bytes());
        }
    });
    address
}

#[track_caller]
fn told(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).expect("time limit");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("what is told");
    text
}

/// Whether a SOCKS5 proxy would be seen to be reached from `ip`, by a server that knows nothing but the greeting.
fn greeter() -> (SocketAddr, std::sync::mpsc::Receiver<IpAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    let (seen, sources) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = seen.send(stream.peer_addr().expect("connected").ip());
            let seen_greeting = read_exactly(&stream, 3);
            assert_eq!(seen_greeting, [5, 1, 0]);
            let _ = stream.write_all(&[5, 0]);
            // A request, if one comes, is refused.
            let mut request = [0; 10];
            if stream.read_exact(&mut request).is_ok() {
                let _ = stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
            }
        }
    });
    (address, sources)
}

#[test]
fn probes_and_connections_come_from_the_address_that_was_named() {
    let (proxy, sources) = greeter();
    let sockhop =
        Sockhop::forward(&["--peer", &proxy.to_string(), "--source", "127.0.0.2"]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let two: IpAddr = "127.0.0.2".parse().expect("an address");
    assert_eq!(sources.recv_timeout(SOON), Ok(two), "the probe");
    while sources.try_recv().is_ok() {}
    let refused = socks5_connect(forwarder, proxy).expect_err("it refuses everything");
    assert!(refused.to_string().contains('5'), "{refused}");
    assert_eq!(sources.recv_timeout(SOON), Ok(two), "the connection");
}

#[test]
fn single_probes_and_dials_and_servers_have_the_same_options() {
    let (proxy, sources) = greeter();
    let two: IpAddr = "127.0.0.2".parse().expect("an address");
    let from = ["--source", "127.0.0.2"];
    let text = proxy.to_string();
    let (status, said) = once(&[&["probe"], &from[..], &[&text]].concat());
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(sources.recv_timeout(SOON), Ok(two), "probe");
    let uri = format!("socks5h://{proxy}");
    let (status, said) = once(&[&["dial"], &from[..], &[&uri, "192.0.2.1:80"]].concat());
    assert_eq!(status, Some(3), "{said}");
    assert_eq!(sources.recv_timeout(SOON), Ok(two), "dial");

    let target = teller("127.0.0.1:0", "here");
    let serve = ["--allow-dest", "127.0.0.0/8", "--source", "127.0.0.2"];
    let server = Sockhop::serve(&serve).start();
    let stream = socks5_connect(server.wait_listening(SOON), target).expect("connect");
    assert_eq!(told(&stream), "here 127.0.0.2");
    let via = [&serve[..], &["--via", &uri]].concat();
    let server = Sockhop::serve(&via).start();
    socks5_connect(server.wait_listening(SOON), target).expect_err("it refuses everything");
    assert_eq!(sources.recv_timeout(SOON), Ok(two), "serve --via");
}

#[test]
fn what_can_be_no_way_is_refused_at_once() {
    for (option, value, says) in [
        ("--interface", "", "no name of an interface"),
        ("--interface", "a-name-that-is-too-long", "15 bytes"),
        ("--source", "eth0", "is not an address"),
        (
            "--source",
            "::",
            "no address that a connection can come from",
        ),
        ("--mark", "0", "is no mark"),
        ("--mark", "0x100000000", "32 bits"),
        ("--mark", "-1", "32 bits"),
    ] {
        for command in ["forward", "serve", "probe", "dial"] {
            let places: &[&str] = match command {
                "probe" => &["127.0.0.1:1"],
                "dial" => &["socks5://127.0.0.1", "a:1"],
                _ => &[],
            };
            let (status, said) = once(&[&[command, option, value], places].concat());
            assert_eq!(status, Some(2), "{command} {option} {value}: {said}");
            assert!(said.contains(says) && said.contains(option), "{said}");
        }
    }
    let twice = ["--source", "127.0.0.1", "--source", "127.0.0.2"];
    let (status, said) = once(&[&["forward"], &twice[..]].concat());
    assert_eq!(status, Some(2));
    assert!(said.contains("second address"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn command_that_runs_once_says_what_is_missing() {
    for (option, value, says) in [
        (
            "--interface",
            "sockhop-none",
            "no interface \"sockhop-none\"",
        ),
        (
            "--source",
            "192.0.2.77",
            "no address 192.0.2.77 on this machine",
        ),
    ] {
        let (status, said) = once(&["probe", option, value, "127.0.0.1:1"]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(says), "{said}");
        let (status, said) = once(&["dial", option, value, "socks5://127.0.0.1:1", "a:1"]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

/// What programs without rights may not do. With root's they give them up first.
#[cfg(target_os = "linux")]
#[test]
fn mark_without_the_right_to_is_a_clear_error() {
    use std::os::unix::process::CommandExt as _;
    let program = env!("CARGO_BIN_EXE_sockhop");
    for command in ["forward", "serve"] {
        let mut run = std::process::Command::new(program);
        run.args([
            command,
            "--mark",
            "7",
            "--control",
            "none",
            "--listen",
            "127.0.0.1:0",
        ]);
        if rustix::process::geteuid().is_root() {
            run.uid(65_534).gid(65_534);
        }
        let output = common::run_within(SOON, &mut run);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("--mark is not permitted"), "{said}");
        assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    }
}

/// One of two ways from `home` to the same address, at whose end others are.
#[cfg(target_os = "linux")]
struct Provider {
    netns: Netns,
    _proxy: Sockhop,
}

#[cfg(target_os = "linux")]
impl Provider {
    /// The `number`th: `10.78.NUMBER.2` and `fd78:NUMBER::2`, where `home` has the 1. Behind it are [`V4`] and [`V6`] with a SOCKS
    /// server, and port 7 that tells `word` and who asks, with streams and datagrams.
    fn new(home: &Netns, number: u8, word: &'static str) -> Self {
        let netns = Netns::new();
        let addresses = |end| {
            [
                format!("10.78.{number}.{end}/24"),
                format!("fd78:{number}::{end}/64"),
            ]
        };
        let (ours, theirs) = (addresses(1), addresses(2));
        home.cable(&netns, &[&ours[0], &ours[1]], &[&theirs[0], &theirs[1]]);
        for address in [V4, V6] {
            // Without the search for duplicates it can be used at once.
            let nodad = if address == V6 { "nodad" } else { "" };
            netns.ip(&format!("address add {address} dev lo {nodad}"));
        }
        netns.inside(|| {
            for address in [V4, V6] {
                let address = SocketAddr::new(address.parse().expect("an address"), 7).to_string();
                teller(&address, word);
                let socket = UdpSocket::bind(&address).expect("bind");
                thread::spawn(move || {
                    while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                        let answer = format!("{word} {}", from.ip());
                        let _ = socket.send_to(answer.as_bytes(), from);
                    }
                });
            }
        });
        let proxy = Sockhop::serve(&["--listen", "[::]:1080", "--allow", "0.0.0.0/0"])
            .args([
                "--allow",
                "::/0",
                "--allow-dest",
                "0.0.0.0/0",
                "--allow-dest",
                "::/0",
            ])
            .inside(&netns)
            .start();
        proxy.wait_listening(SOON);
        Self {
            netns,
            _proxy: proxy,
        }
    }

    fn metric(&self, home: &Netns, number: u8, metric: u32) {
        for gateway in [format!("10.78.{number}.2"), format!("fd78:{number}::2")] {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            let link = home.link_to(&self.netns);
            home.ip(&format!(
                "{family} route add default via {gateway} dev {link} metric {metric}"
            ));
        }
    }
}

#[cfg(target_os = "linux")]
const V4: &str = "198.18.0.1";
#[cfg(target_os = "linux")]
const V6: &str = "fd18::1";

/// `home`, with a usual way and another one, which takes marked packets.
#[cfg(target_os = "linux")]
fn two_ways() -> (Netns, Provider, Provider) {
    let home = Netns::new();
    let usual = Provider::new(&home, 1, "usual");
    let other = Provider::new(&home, 2, "other");
    usual.metric(&home, 1, 100);
    other.metric(&home, 2, 200);
    for (family, gateway) in [("-4", "10.78.2.2"), ("-6", "fd78:2::2")] {
        home.ip(&format!(
            "{family} route add default via {gateway} table 100"
        ));
        home.ip(&format!("{family} rule add fwmark 77 table 100"));
    }
    (home, usual, other)
}

/// While it lives, what comes from the addresses of the other way takes it, if that is the option: else nothing but the option
/// itself leads there.
#[cfg(target_os = "linux")]
struct Rules<'a>(&'a Netns, &'a [String]);

#[cfg(target_os = "linux")]
impl<'a> Rules<'a> {
    fn of(home: &'a Netns, way: &'a [String]) -> Self {
        let rules = Self(home, way);
        rules.set("add");
        rules
    }

    fn set(&self, how: &str) {
        if self.1.first().is_some_and(|option| option == "--source") {
            for (family, own) in [("-4", "10.78.2.1"), ("-6", "fd78:2::1")] {
                self.0
                    .ip(&format!("{family} rule {how} from {own} table 100"));
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Rules<'_> {
    fn drop(&mut self) {
        self.set("delete");
    }
}

/// The options that lead by the other way, one after the other.
#[cfg(target_os = "linux")]
fn ways(home: &Netns, other: &Provider) -> [Vec<String>; 4] {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    [
        words(&format!("--interface {}", home.link_to(&other.netns))),
        words("--source 10.78.2.1 --source fd78:2::1"),
        words("--mark 77"),
        words("--mark 0x4d"),
    ]
}

/// A server at home that lets its clients go everywhere, and where it listens.
#[cfg(target_os = "linux")]
#[track_caller]
fn serve(home: &Netns, way: &[impl AsRef<OsStr>], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    let everywhere = ["--allow-dest", "0.0.0.0/0", "--allow-dest", "::/0"];
    start(Sockhop::serve(arguments).args(everywhere), home, way)
}

/// The same with a forwarder.
#[cfg(target_os = "linux")]
#[track_caller]
fn forward(home: &Netns, way: &[impl AsRef<OsStr>], arguments: &[&str]) -> (Sockhop, SocketAddr) {
    start(Sockhop::forward(arguments), home, way)
}

#[cfg(target_os = "linux")]
#[track_caller]
fn start(launch: Launch, home: &Netns, way: &[impl AsRef<OsStr>]) -> (Sockhop, SocketAddr) {
    let sockhop = launch.args(way).inside(home).start();
    let address = sockhop.wait_listening(SOON);
    (sockhop, address)
}

#[cfg(target_os = "linux")]
fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// What one who is asked by a datagram tells.
#[cfg(target_os = "linux")]
#[track_caller]
fn told_by_datagram(dialer: &Dialer, target: SocketAddr) -> String {
    let association = dialer.associate().expect("an association");
    association
        .send_to(b"?", &Address::from(target))
        .expect("send");
    let mut buffer = [0; 64];
    let (count, _) = association.recv_from(&mut buffer, SOON).expect("an answer");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn forwarder_probes_connects_and_sends_datagrams_by_the_way_that_was_named() {
    let (home, _usual, other) = two_ways();
    let ways = ways(&home, &other);
    let cases = [(&[] as &[String], "usual")]
        .into_iter()
        .chain(ways.iter().map(|way| (way.as_slice(), "other")));
    for (way, word) in cases {
        let _rules = Rules::of(&home, way);
        for proxy in [V4, V6] {
            let (_sockhop, forwarder) = forward(&home, way, &["--peer", proxy]);
            home.inside(|| {
                for target in [V4, V6] {
                    let stream = socks5_connect(forwarder, at(target, 7)).expect("connect");
                    let text = told(&stream);
                    assert!(text.starts_with(word), "{way:?} {proxy}: {text}");
                    let dialer = Dialer::new(format!("socks5://{forwarder}").parse().unwrap());
                    let text = told_by_datagram(&dialer, at(target, 7));
                    assert!(text.starts_with(word), "{way:?} {proxy}: {text}");
                }
            });
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn probes_go_the_way_of_the_connections() {
    let (home, usual, other) = two_ways();
    for (broken, valid) in [(&usual, true), (&other, false)] {
        broken
            .netns
            .filter(&["input tcp dport 1080 reject with tcp reset"]);
        for way in ways(&home, &other) {
            let _rules = Rules::of(&home, &way);
            let probe = Launch::new(&["probe", "--json", V4, V6])
                .args(&way)
                .inside(&home)
                .run(SOON);
            let found: Vec<Value> = serde_json::from_slice(&probe.stdout).expect("JSON");
            for entry in found {
                let expected = if valid { "valid" } else { "not-listening" };
                assert_eq!(entry["status"], expected, "{way:?}: {entry}");
            }
        }
        broken.netns.filter(&[]);
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn server_connects_and_sends_datagrams_by_the_way_that_was_named() {
    let (home, _usual, other) = two_ways();
    for way in ways(&home, &other) {
        let _rules = Rules::of(&home, &way);
        let (_server, address) = serve(&home, &way, &[]);
        home.inside(|| {
            for (target, own) in [(V4, "10.78.2.1"), (V6, "fd78:2::1")] {
                let stream = socks5_connect(address, at(target, 7)).expect("connect");
                assert_eq!(told(&stream), format!("other {own}"), "{way:?}");
                for scheme in ["socks5", "socks6"] {
                    let uri = format!("{scheme}://{address}");
                    let dialer = Dialer::new(uri.parse().expect("a proxy"));
                    let text = told_by_datagram(&dialer, at(target, 7));
                    assert_eq!(text, format!("other {own}"), "{way:?} {scheme}");
                }
            }
        });
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn server_takes_peers_in_where_the_way_leads() {
    let (home, _usual, other) = two_ways();
    for way in ways(&home, &other) {
        let _rules = Rules::of(&home, &way);
        let (_server, address) = serve(&home, &way, &[]);
        for (scheme, peer) in [
            ("socks5", V4),
            ("socks5", V6),
            ("socks5", "0.0.0.0"),
            ("socks6", "0.0.0.0"),
            ("socks6", "::"),
        ] {
            let dialer = Dialer::new(format!("{scheme}://{address}").parse().expect("a proxy"));
            let peer = at(peer, 0);
            let binding = home
                .inside(|| dialer.bind(&Address::from(peer)))
                .unwrap_or_else(|error| panic!("{way:?} {scheme} {peer}: {error}"));
            let own = if peer.is_ipv4() {
                "10.78.2.1"
            } else {
                "fd78:2::1"
            };
            let bound = binding.address().expect("an address");
            assert_eq!(bound.ip().to_string(), own, "{way:?} {scheme} {peer}");
            let from = at(if peer.is_ipv4() { V4 } else { V6 }, 0);
            let mut called = other.netns.inside(|| {
                let socket = socket2::Socket::new(
                    socket2::Domain::for_address(from),
                    socket2::Type::STREAM,
                    None,
                )
                .expect("a socket");
                socket.bind(&from.into()).expect("bind");
                socket
                    .connect_timeout(&bound.into(), SOON)
                    .expect("the server lets in who comes");
                TcpStream::from(socket)
            });
            let (mut stream, _) = binding.accept(SOON).expect("the peer");
            called.write_all(b"hello").expect("write");
            assert_eq!(read_exactly(&stream, 5), b"hello");
            stream.write_all(b"there").expect("write");
            assert_eq!(read_exactly(&called, 5), b"there");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn proxies_of_a_server_and_the_fallback_are_reached_that_way_too() {
    let (home, usual, other) = two_ways();
    for way in ways(&home, &other) {
        let _rules = Rules::of(&home, &way);
        for proxy in [V4, V6] {
            let uri = format!("socks5h://{}", at(proxy, 1080));
            let (_server, address) = serve(&home, &way, &["--via", &uri]);
            home.inside(|| {
                let stream = socks5_connect(address, at(V4, 7)).expect("connect");
                assert!(told(&stream).starts_with("other"), "{way:?} {proxy}");
                let dialer = Dialer::new(format!("socks5://{address}").parse().unwrap());
                let text = told_by_datagram(&dialer, at(V4, 7));
                assert!(text.starts_with("other"), "{way:?} {proxy}: {text}");
            });
        }
        let remote = format!("socks6://{}", at(V4, 1080));
        let (_converted, address) = forward(&home, &way, &["--remote", &remote]);
        let stream = home.inside(|| socks5_connect(address, at(V4, 7)).expect("connect"));
        assert!(told(&stream).starts_with("other"), "{way:?}, converted");
    }
    for netns in [&usual.netns, &other.netns] {
        netns.filter(&["input tcp dport 1080 reject with tcp reset"]);
    }
    for way in ways(&home, &other) {
        let _rules = Rules::of(&home, &way);
        let fallback = ["--fallback", "direct", "--allow-dest", "198.18.0.0/15"];
        let arguments = [&["--peer", V4][..], &fallback].concat();
        let (_sockhop, address) = forward(&home, &way, &arguments);
        let stream = home.inside(|| socks5_connect(address, at(V4, 7)).expect("connect"));
        assert_eq!(told(&stream), "other 10.78.2.1", "{way:?}, fallback");
    }
}

/// A line that is dialled: it is not there at the start, comes, goes and comes again.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn interface_or_address_that_comes_and_goes_needs_no_restart() {
    for option in ["--interface", "--source"] {
        let home = Netns::new();
        let far = Netns::new();
        let link = home.link_to(&far);
        let (value, says) = match option {
            "--interface" => (link.clone(), format!("no interface {link:?}")),
            _ => {
                let ip = "10.78.3.1";
                (ip.to_owned(), format!("no address {ip} on this machine"))
            }
        };
        far.ip(&format!("address add {V4} dev lo"));
        let proxy = Sockhop::serve(&["--listen", "0.0.0.0:1080", "--allow", "0.0.0.0/0"])
            .args(["--allow-dest", "0.0.0.0/0"])
            .inside(&far)
            .start();
        proxy.wait_listening(SOON);
        far.inside(|| teller(&at(V4, 7).to_string(), "far"));
        let arguments = [option, &value, "--remote", V4, "--probe-interval", "1s"];
        let (sockhop, forwarder) = forward(&home, &[] as &[&str], &arguments);
        sockhop.wait_log(&format!("{says}: connections fail until"), SOON);

        let mut is_first = true;
        for _ in 0..2 {
            let refused = home.inside(|| socks5_connect(forwarder, at(V4, 7)));
            assert!(refused.is_err(), "{option}");
            let status = sockhop.wait_status(
                |status| {
                    let reason = status["reason"].as_str();
                    reason.is_some_and(|reason| reason.contains(&says))
                },
                SOON,
            );
            assert_eq!(status["remote"], "198.18.0.1:1080");
            let proxies = sockhop.proxies();
            let peer = proxies.first().expect("the remote is watched");
            if is_first {
                assert_eq!(peer["status"], "unknown", "{peer}");
                let reason = peer["reason"].as_str().expect("text");
                assert!(reason.contains(option), "{reason}");
            } else {
                assert_eq!(
                    peer["status"], "valid",
                    "a local fault says nothing: {peer}"
                );
                assert_eq!(peer["failures"], 0, "{peer}");
            }
            is_first = false;

            home.cable(&far, &["10.78.3.1/24"], &["10.78.3.2/24"]);
            home.ip("route add default via 10.78.3.2");
            let works = || {
                let stream = home.inside(|| socks5_connect(forwarder, at(V4, 7)));
                stream.is_ok_and(|stream| told(&stream) == "far 198.18.0.1")
            };
            assert!(wait_until(SOON, works), "{option}");
            sockhop.wait_peer(at(V4, 1080), "valid", SOON);
            sockhop.wait_status(
                |status| !status["reason"].as_str().unwrap_or(&says).contains(&says),
                SOON,
            );
            // Nothing counts from here on that was open before.
            home.ip(&format!("link delete {link}"));
            let gone = || {
                home.inside(|| socks5_connect(forwarder, at(V4, 7)))
                    .is_err()
            };
            assert!(wait_until(SOON, gone), "{option}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn server_says_that_there_is_no_way() {
    need_root();
    let home = Netns::new();
    home.cable(&Netns::new(), &["10.78.4.1/24"], &[]);
    for way in [["--interface", "wan9"], ["--source", "10.99.0.1"]] {
        let (server, address) = serve(&home, &way, &["-v"]);
        server.wait_log("connections fail until it is there", SOON);
        home.inside(|| {
            let mut stream = common::connect(address).expect("connect");
            stream
                .write_all(&[5, 1, 0, 5, 1, 0, 1, 10, 78, 4, 2, 0, 80])
                .expect("write");
            assert_eq!(read_exactly(&stream, 2), [5, 0]);
            assert_eq!(read_exactly(&stream, 2), [5, 3], "network unreachable");
            read_exactly(&stream, 8);
            assert_eq!(expect_end(&stream, SOON), Observed::Eof);
        });
    }
}
