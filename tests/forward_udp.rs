//! UDP ASSOCIATE through the forwarder: datagrams pass through it too, wherever the remote says that they go.
#![cfg(feature = "server")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

#[cfg(target_os = "linux")]
use common::Netns;
use common::{
    Observed, Peer, SOON, Sockhop, Target, connect, echo_datagrams, exchange, expect_end,
    free_port, is_closed, observe, program, read_exactly, socks5_connect, success,
};
use serde_json::json;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A socket with a time limit on reading.
fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("bind");
    socket.set_read_timeout(Some(SOON)).expect("time limit");
    socket
}

/// An address as SOCKS5 writes it.
fn written(address: SocketAddr) -> Vec<u8> {
    let ip = match address {
        SocketAddr::V4(v4) => [&[1], &v4.ip().octets()[..]].concat(),
        SocketAddr::V6(v6) => [&[4], &v6.ip().octets()[..]].concat(),
    };
    [&ip[..], &address.port().to_be_bytes()].concat()
}

/// The code and the address of a reply.
fn reply(mut stream: impl Read) -> (u8, SocketAddr) {
    let head = read_exactly(&mut stream, 4);
    assert_eq!((head[0], head[2]), (5, 0));
    let rest = read_exactly(&mut stream, if head[3] == 1 { 6 } else { 18 });
    let (ip, port) = rest.split_at(rest.len() - 2);
    let ip: IpAddr = match <[u8; 4]>::try_from(ip) {
        Ok(ip) => ip.into(),
        Err(_) => <[u8; 16]>::try_from(ip).expect("16 bytes").into(),
    };
    let port = u16::from_be_bytes(port.try_into().expect("two bytes"));
    (head[1], SocketAddr::new(ip, port))
}

/// Asks the forwarder for an association: the connection, the code and the address of the reply.
fn ask(forwarder: SocketAddr, announced: SocketAddr) -> (TcpStream, u8, SocketAddr) {
    let mut stream = connect(forwarder).expect("connect");
    let bytes = [vec![5, 1, 0, 5, 3, 0], written(announced)].concat();
    stream.write_all(&bytes).expect("write");
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
    let (code, address) = reply(&stream);
    (stream, code, address)
}

/// A client with its association.
struct Client {
    control: TcpStream,
    socket: UdpSocket,
    relay: SocketAddr,
}

impl Client {
    #[track_caller]
    fn new(forwarder: SocketAddr) -> Self {
        let (control, code, relay) = ask(forwarder, ANY);
        assert_eq!((code, relay.ip()), (0, forwarder.ip()));
        assert_ne!(relay.port(), 0);
        let own = control.local_addr().expect("connected").ip();
        let socket = udp(&SocketAddr::new(own, 0).to_string());
        socket.connect(relay).expect("connect");
        Self {
            control,
            socket,
            relay,
        }
    }

    /// To an echo at `far` and back.
    #[track_caller]
    fn exchange(&self, far: SocketAddr, payload: &[u8]) {
        let datagram = [&[0, 0, 0], &written(far)[..], payload].concat();
        self.socket.send(&datagram).expect("send");
        let mut buffer = vec![0; 65_536];
        let count = self.socket.recv(&mut buffer).expect("a datagram");
        assert_eq!(buffer[..count], datagram);
    }
}

/// A remote that answers an association by hand: it says that its relay is at `told`, with its real port.
struct Remote {
    listener: TcpListener,
    relay: UdpSocket,
    told: IpAddr,
}

impl Remote {
    fn at(ip: &str, told: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("bind");
        let relay = udp(&format!("{ip}:0"));
        let told = told.parse().expect("an address");
        Self {
            listener,
            relay,
            told,
        }
    }

    fn forwarder(&self, arguments: &[&str]) -> (Sockhop, SocketAddr) {
        let remote = self.listener.local_addr().expect("bound").to_string();
        let usual = ["--remote", &remote, "--no-probing", "-v"];
        let sockhop = Sockhop::forward(&[&usual, arguments].concat()).start();
        let listening = sockhop.wait_listening(SOON);
        (sockhop, listening)
    }

    fn relay(&self) -> SocketAddr {
        self.relay.local_addr().expect("bound")
    }

    /// Serves one association; its connection, and what the request said.
    fn serve(&self) -> thread::JoinHandle<(TcpStream, Vec<u8>)> {
        let listener = self.listener.try_clone().expect("clone");
        let told = SocketAddr::new(self.told, self.relay().port());
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            stream.set_read_timeout(Some(SOON)).expect("time limit");
            assert_eq!(read_exactly(&stream, 3), [5, 1, 0]);
            stream.write_all(&[5, 0]).expect("write");
            let head = read_exactly(&stream, 4);
            let rest = read_exactly(&stream, if head[3] == 1 { 6 } else { 18 });
            let answer = [vec![5, 0, 0], written(told)].concat();
            stream.write_all(&answer).expect("write");
            (stream, [head, rest].concat())
        })
    }

    /// The next datagram, and where it came from.
    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (count, from) = self.relay.recv_from(&mut buffer).expect("a datagram");
        (buffer[..count].to_vec(), from)
    }

    fn hears_nothing(&self) -> bool {
        self.relay.set_nonblocking(true).expect("non-blocking");
        let nothing = self.relay.recv(&mut [0; 16]).is_err();
        self.relay.set_nonblocking(false).expect("blocking");
        nothing
    }
}

const HELLO: &[u8] = b"\0\0\0\x01\xc0\0\x02\x01\0\x35hello";

fn server(arguments: &[&str]) -> (Sockhop, String) {
    let allowed = ["--allow-dest=127.0.0.0/8", "--allow-dest=::1"];
    let server = Sockhop::serve(&[&allowed, arguments].concat()).start();
    let address = server.wait_listening(SOON).to_string();
    (server, address)
}

#[test]
fn datagrams_go_through_forwarder_and_server_as_long_as_the_connection_is_there() {
    let (server, remote) = server(&[]);
    let far = echo_datagrams();
    let sockhop = Sockhop::forward(&["--remote", &remote, "-v"]).start();
    let forwarder = sockhop.wait_listening(SOON);
    let client = Client::new(forwarder);
    for size in [0, 1, 1400, 9000] {
        client.exchange(far, &vec![b'x'; size]);
    }
    for end in [&server, &sockhop] {
        end.wait_status(|status| status["associations"] == 1, SOON);
    }
    // With the handshake, and its headers.
    let moved = |status: &serde_json::Value| {
        let (up, down) = (&status["bytes"]["up"], &status["bytes"]["down"]);
        let payload = 1 + 1400 + 9000 + 4 * 10;
        up.as_u64() >= Some(payload) && down.as_u64() >= Some(payload)
    };
    sockhop.wait_status(moved, SOON);
    // Idle it takes no thread.
    sockhop.wait_status(|status| status["connections"]["parked"] == 1, SOON);
    client.exchange(far, b"again");
    drop(client.control);
    for end in [&server, &sockhop] {
        end.wait_status(|status| status["associations"] == 0, SOON);
    }
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    sockhop.wait_log("datagrams: ", SOON);
    assert!(is_closed(&client.socket), "{}", client.relay);
}

#[test]
fn remote_with_a_password_carries_datagrams_too() {
    let (_server, remote) = server(&["--user", "ada:secret"]);
    let far = echo_datagrams();
    let uri = format!("socks5://ada:secret@{remote}");
    let sockhop = Sockhop::forward(&["--remote", &uri]).start();
    Client::new(sockhop.wait_listening(SOON)).exchange(far, b"hello");
}

#[test]
fn datagrams_go_over_ipv6_and_from_a_listener_of_both_families() {
    let (_server, remote) = server(&["--listen", "[::1]:0"]);
    let far = echo_datagrams();
    let sockhop = Sockhop::forward(&["--remote", &remote, "--listen", "[::]:0"]).start();
    let port = sockhop.wait_listening(SOON).port();
    for ip in ["127.0.0.1", "::1"] {
        let forwarder = SocketAddr::new(ip.parse().unwrap(), port);
        Client::new(forwarder).exchange(far, b"hello");
    }
}

#[test]
fn relay_without_a_usable_address_is_at_the_remotes_own() {
    for told in ["0.0.0.0", "::", "10.1.2.3", "fe80::7", "127.0.0.7"] {
        let remote = Remote::at("127.0.0.7", told);
        let (_sockhop, forwarder) = remote.forwarder(&[]);
        let serving = remote.serve();
        let client = Client::new(forwarder);
        let _control = serving.join().expect("served");
        client.socket.send(HELLO).expect("send");
        let (datagram, from) = remote.receive();
        assert_eq!(datagram, HELLO, "{told}");
        remote.relay.send_to(b"answer", from).expect("send");
        assert_eq!(client.socket.recv(&mut [0; 16]).expect("an answer"), 6);
    }
}

#[test]
fn what_the_client_announces_is_not_told_to_the_remote() {
    let remote = Remote::at("127.0.0.1", "127.0.0.1");
    let (_sockhop, forwarder) = remote.forwarder(&[]);
    for announced in [
        "0.0.0.0:0",
        "0.0.0.0:5000",
        "192.168.1.9:5000",
        "[fd00::1]:7",
    ] {
        let serving = remote.serve();
        let (_control, code, _) = ask(forwarder, announced.parse().unwrap());
        let (_stream, request) = serving.join().expect("served");
        assert_eq!(code, 0);
        let expected = [&[5, 3, 0], &written(ANY)[..]].concat();
        assert_eq!(request, expected, "{announced}");
    }
}

#[test]
fn strangers_are_heard_on_neither_side() {
    let remote = Remote::at("127.0.0.1", "127.0.0.1");
    let (_sockhop, forwarder) = remote.forwarder(&[]);
    let serving = remote.serve();
    let client = Client::new(forwarder);
    let _control = serving.join().expect("served");
    // Another address, before the client's port is known and after.
    let other = udp("127.0.0.9:0");
    other.send_to(HELLO, client.relay).expect("send");
    // No header: that shows no port.
    let neighbour = udp("127.0.0.1:0");
    neighbour.send_to(b"nonsense", client.relay).expect("send");
    client.socket.send(HELLO).expect("send");
    let (datagram, port) = remote.receive();
    assert_eq!(datagram, HELLO);
    for stranger in [&other, &neighbour] {
        let _ = stranger.send_to(HELLO, client.relay);
        let _ = stranger.send_to(b"for the client", port);
    }
    client.socket.send(b"last").expect("send");
    assert_eq!(remote.receive().0, b"last");
    assert!(remote.hears_nothing());
    remote.relay.send_to(b"answer", port).expect("send");
    let mut buffer = [0; 64];
    let count = client.socket.recv(&mut buffer).expect("an answer");
    assert_eq!(&buffer[..count], b"answer");
}

#[test]
fn remote_that_ends_it_ends_it_for_the_client() {
    let remote = Remote::at("127.0.0.1", "127.0.0.1");
    let (sockhop, forwarder) = remote.forwarder(&[]);
    let serving = remote.serve();
    let client = Client::new(forwarder);
    drop(serving.join().expect("served"));
    assert!(matches!(
        expect_end(&client.control, SOON),
        Observed::Eof | Observed::Reset
    ));
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(is_closed(&client.socket));
}

#[test]
fn no_udp_leaves_everything_as_it_is() {
    let remote = Remote::at("127.0.0.1", "10.1.2.3");
    let (_sockhop, forwarder) = remote.forwarder(&["--no-udp"]);
    let serving = remote.serve();
    let announced = "192.168.1.9:5000".parse().unwrap();
    let (client, code, told) = ask(forwarder, announced);
    let (mut stream, request) = serving.join().expect("served");
    assert_eq!(request, [&[5, 3, 0], &written(announced)[..]].concat());
    assert_eq!(
        (code, told),
        (0, SocketAddr::new(remote.told, remote.relay().port()))
    );
    // And what else is said on the connection gets through.
    stream.write_all(b"still here").expect("write");
    assert_eq!(
        observe(&client, SOON),
        Observed::Bytes(b"still here".to_vec())
    );
}

#[test]
fn client_without_an_address_is_told_what_the_remote_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socks");
    let remote = Remote::at("127.0.0.1", "10.1.2.3");
    let address = remote.listener.local_addr().unwrap().to_string();
    let unix = format!("unix:{}", path.display());
    let sockhop =
        Sockhop::forward(&["--remote", &address, "--no-probing", "--listen", &unix]).start();
    sockhop.wait_status(|status| status["listening"][0].is_string(), SOON);
    let serving = remote.serve();
    let mut stream = UnixStream::connect(&path).expect("connect");
    stream.set_read_timeout(Some(SOON)).expect("time limit");
    let bytes = [vec![5, 1, 0, 5, 3, 0], written(ANY)].concat();
    stream.write_all(&bytes).expect("write");
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
    let told = SocketAddr::new(remote.told, remote.relay().port());
    assert_eq!(reply(&stream), (0, told));
    drop(serving.join());
}

#[test]
fn refusal_of_the_remote_is_the_clients_answer() {
    let (_server, remote) = server(&["--no-udp"]);
    let sockhop = Sockhop::forward(&["--remote", &remote]).start();
    let (_control, code, _) = ask(sockhop.wait_listening(SOON), ANY);
    assert_eq!(code, 7);
}

#[test]
fn associations_leave_descriptors_to_others_and_are_refused_beyond() {
    let (server, remote) = server(&[]);
    let sockhop = Sockhop::forward(&["--remote", &remote])
        .open_files(128)
        .start();
    let forwarder = sockhop.wait_listening(SOON);
    let mut clients = Vec::new();
    let refused = (0..40).find_map(|_| {
        let (control, code, _) = ask(forwarder, ANY);
        clients.push(control);
        (code != 0).then_some(code)
    });
    assert_eq!(refused, Some(1));
    assert!(clients.len() > 8, "{}", clients.len());
    let last = clients.last().expect("refused");
    assert!(matches!(
        expect_end(last, SOON),
        Observed::Eof | Observed::Reset
    ));
    let target = Target::echo();
    let stream = socks5_connect(forwarder, target.address()).unwrap();
    assert_eq!(exchange(&stream, b"hello").unwrap(), b"hello");
    clients.clear();
    server.wait_status(|status| status["associations"] == 0, SOON);
    Client::new(forwarder).exchange(echo_datagrams(), b"hello");
}

#[test]
fn request_in_pieces_and_a_disconnect() {
    let (_server, remote) = server(&[]);
    let sockhop = Sockhop::forward(&["--remote", &remote]).start();
    let mut stream = connect(sockhop.wait_listening(SOON)).unwrap();
    for byte in [5, 1, 0] {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_exactly(&stream, 2), [5, 0]);
    let socket = udp("127.0.0.1:0");
    let announced = SocketAddr::new(ANY.ip(), free_port().port());
    for byte in [vec![5, 3, 0], written(announced)].concat() {
        stream.write_all(&[byte]).unwrap();
    }
    let (code, relay) = reply(&stream);
    assert_eq!(code, 0);
    // From another port than announced: had the server heard of that one, it would drop this.
    let client = Client {
        control: stream,
        socket,
        relay,
    };
    client.socket.connect(relay).unwrap();
    client.exchange(echo_datagrams(), b"hello");
    let (stream, socket) = (client.control, client.socket);
    sockhop.control("disconnect", json!(null)).unwrap();
    assert!(matches!(
        expect_end(&stream, SOON),
        Observed::Eof | Observed::Reset
    ));
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert!(is_closed(&socket));
}

#[test]
fn remote_that_dies_before_its_reply_is_left_for_the_next() {
    let (_server, second) = server(&[]);
    let first = Peer::scripted(vec![
        common::Step::Read(3),
        common::Step::Send(vec![5, 0]),
        common::Step::Read(10),
        common::Step::Close,
    ]);
    let first = (first.address().to_string(), first);
    let sockhop = Sockhop::forward(&["--remote", &first.0, "--remote", &second])
        .arg("--no-probing")
        .start();
    Client::new(sockhop.wait_listening(SOON)).exchange(echo_datagrams(), b"hello");
    assert_eq!(first.1.accepted(), 1);
}

/// `lan` and `far` have a cable to `home` each, and no way to each other.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root for network namespaces"]
fn client_without_a_way_to_the_relay_is_served() {
    let (lan, home, far) = (Netns::new(), Netns::new(), Netns::new());
    home.cable(&lan, &["10.78.1.1/24"], &["10.78.1.2/24"]);
    home.cable(&far, &["10.78.2.1/24"], &["10.78.2.2/24"]);
    let echo = far.inside(echo_datagrams);
    let server = Sockhop::serve(&["--listen=10.78.2.2:1080", "--allow-dest=127.0.0.0/8"])
        .inside(&far)
        .start();
    server.wait_listening(SOON);
    let forward = |more: &[&str]| {
        let usual = ["--remote=10.78.2.2", "--listen=10.78.1.1:0"];
        let sockhop = Sockhop::forward(&[&usual, more].concat())
            .inside(&home)
            .start();
        let forwarder = sockhop.wait_listening(SOON);
        (sockhop, forwarder)
    };
    let (_sockhop, forwarder) = forward(&["--no-udp"]);
    lan.inside(|| {
        let (_control, code, relay) = ask(forwarder, ANY);
        assert_eq!((code, relay.ip().to_string().as_str()), (0, "10.78.2.2"));
        let lost = udp("0.0.0.0:0").send_to(HELLO, relay);
        assert!(lost.is_err(), "there is a way after all");
    });
    let (_sockhop, forwarder) = forward(&[]);
    lan.inside(|| Client::new(forwarder).exchange(echo, b"hello"));
}

/// Port of the forwarder, port of the echo on loopback, whether names are looked up by the proxy.
const PYSOCKS: &str = r#"
import sys, socket, socks
proxy, port, rdns = sys.argv[1:]
s = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
s.set_proxy(socks.SOCKS5, "127.0.0.1", int(proxy), rdns == "there")
for size in (1, 100, 1400, 8000):
    sent = bytes([size % 251]) * size
    s.sendto(sent, ("127.0.0.1", int(port)))
    heard, who = s.recvfrom(9000)
    assert heard == sent, size
    assert who == ("127.0.0.1", int(port)), who
print("done")
"#;

#[test]
#[ignore = "needs PySocks"]
fn datagrams_of_pysocks_go_through() {
    let (_server, remote) = server(&[]);
    let sockhop = Sockhop::forward(&["--remote", &remote]).start();
    let proxy = sockhop.wait_listening(SOON).port().to_string();
    let port = echo_datagrams().port().to_string();
    for rdns in ["here", "there"] {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", PYSOCKS, &proxy, &port, rdns]);
        assert_eq!(success(python.stdin(Stdio::null())), b"done\n", "{rdns}");
    }
}

/// Answers every question with one address.
fn name_server() -> SocketAddr {
    let socket = udp("127.0.0.1:0");
    socket.set_read_timeout(None).expect("no time limit");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..count];
            // RFC 1035 §4.1: the header, and one question up to its type and class.
            let name = query[12..].iter().position(|byte| *byte == 0);
            let Some(name) = name else { continue };
            let question = &query[12..12 + name + 5];
            let header = [&query[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
            let answer = [0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7];
            let _ = socket.send_to(&[&header, question, &answer[..]].concat(), from);
        }
    });
    address
}

/// A local port whose datagrams are those of an association with `target`: for programs that know nothing of SOCKS.
fn bridge(client: Client, target: SocketAddr) -> SocketAddr {
    let local = udp("127.0.0.1:0");
    let address = local.local_addr().expect("bound");
    let header = [&[0, 0, 0], &written(target)[..]].concat();
    thread::spawn(move || {
        let _control = &client.control;
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = local.recv_from(&mut buffer) {
            let datagram = [&header, &buffer[..count]].concat();
            client.socket.send(&datagram).expect("send");
            let count = client.socket.recv(&mut buffer).expect("an answer");
            let payload = &buffer[header.len()..count];
            local.send_to(payload, from).expect("send");
        }
    });
    address
}

#[test]
#[ignore = "needs dig"]
fn answers_of_a_name_server_reach_dig() {
    let (_server, remote) = server(&[]);
    let sockhop = Sockhop::forward(&["--remote", &remote]).start();
    let client = Client::new(sockhop.wait_listening(SOON));
    let local = bridge(client, name_server());
    for name in ["one.example", "two.example"] {
        let mut dig = Command::new(program("dig"));
        dig.args(["@127.0.0.1", "-p", &local.port().to_string(), "+short"]);
        dig.args(["+tries=1", "+time=10", name, "A"]);
        assert_eq!(success(&mut dig), b"192.0.2.7\n", "{name}");
    }
    let moved = sockhop.status()["bytes"]["down"].as_u64().expect("bytes");
    assert!(moved > 100, "{moved}");
}
