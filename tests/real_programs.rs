//! Other people's clients through the forwarder to other people's servers, as Debian packages them.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{
    Daemon, Pattern, SOON, Sockhop, Target, connect, dead_address, exchange, need_root, program,
    wait_until,
};
use serde_json::json;
use sockhop::client::{self, Dialer, Fault};
use tempfile::TempDir;

/// A web server on both loopback addresses, since `localhost` may be either.
struct Web {
    pattern: Pattern,
    v4: Target,
    _v6: Option<Target>,
}

impl Web {
    fn start() -> Self {
        let pattern = Pattern::new(20);
        let v4 = Target::http("127.0.0.1:0", &pattern);
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, v4.address().port()));
        let has_v6 = TcpListener::bind(v6).is_ok();
        Self {
            _v6: has_v6.then(|| Target::http(&v6.to_string(), &pattern)),
            pattern,
            v4,
        }
    }

    /// The first `length` bytes of the pattern.
    fn url(&self, host: &str, length: u64) -> String {
        format!("http://{host}:{}/{length}", self.v4.address().port())
    }

    #[track_caller]
    fn verify(&self, body: &[u8], length: usize) {
        assert_eq!((body.len(), self.pattern.verify(0, body)), (length, None));
    }
}

/// A port that was free a moment ago: these servers can't tell which one they got.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

fn microsocks(at: SocketAddr, more: &[&str]) -> Daemon {
    Daemon::start("microsocks", at, |_| {
        let mut arguments = vec![
            "-i".into(),
            "127.0.0.1".into(),
            "-p".into(),
            at.port().to_string(),
        ];
        arguments.extend(more.iter().map(ToString::to_string));
        arguments
    })
}

/// Dante with `none` or `username` as its way to authenticate.
fn dante(at: SocketAddr, method: &str) -> Daemon {
    Daemon::start("danted", at, |directory| {
        dante_arguments(directory, at, method)
    })
}

fn dante_arguments(directory: &Path, at: SocketAddr, method: &str) -> Vec<String> {
    let configuration = directory.join("danted.conf");
    let users = match rustix::process::geteuid().is_root() {
        true => "user.privileged: root\nuser.unprivileged: nobody\n",
        false => "",
    };
    let port = at.port();
    fs::write(
        &configuration,
        format!(
            "logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: lo\n\
             clientmethod: none\nsocksmethod: {method}\n{users}\
             client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n\
             socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n"
        ),
    )
    .expect("write the configuration");
    ["-N", "1", "-p"]
        .map(String::from)
        .into_iter()
        .chain([
            path(&directory.join("pid")),
            "-f".into(),
            path(&configuration),
        ])
        .collect()
}

fn path(path: &Path) -> String {
    path.to_str().expect("a readable path").to_owned()
}

/// Dante that asks for the user `somebody` with the password `secret`, who exist in its own view of `/etc` only.
fn dante_with_user(at: SocketAddr) -> Daemon {
    need_root();
    let danted = path(&program("danted"));
    Daemon::start("unshare", at, |directory| {
        let write = |name: &str, line: &str| {
            let kept = fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
            fs::write(directory.join(name), format!("{kept}\n{line}\n")).expect("write");
            path(&directory.join(name))
        };
        let passwd = write("passwd", "somebody:x:64999:64999::/nonexistent:/bin/false");
        // openssl passwd -6 -salt sockhop secret
        let shadow = write(
            "shadow",
            "somebody:$6$sockhop$BGBdYWeWAXDMOhlslZbBgXq7c8DIZzFbMVfkmGqKpnqVWxrJVtRLRciH0NTvAcPSWaJK4TLyeU2z.4oTmHVQT1:20000::::::",
        );
        let script = "mount --bind \"$0\" /etc/passwd && mount --bind \"$1\" /etc/shadow && shift && exec \"$@\"";
        ["-m", "sh", "-c", script, &passwd, &shadow, &danted]
            .map(String::from)
            .into_iter()
            .chain(dante_arguments(directory, at, "username"))
            .collect()
    })
}

fn curl(proxy: &str, arguments: &[&str]) -> Command {
    let mut curl = Command::new(program("curl"));
    curl.args(["-q", "-sS", "--max-time", "30", "-x", proxy])
        .args(arguments)
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .stdin(Stdio::null());
    curl
}

#[track_caller]
fn fetch(proxy: &str, url: &str) -> Vec<u8> {
    success(&mut curl(proxy, &[url]))
}

#[track_caller]
fn success(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("start");
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn forward(peers: &[SocketAddr]) -> Sockhop {
    Sockhop::forward(&["--probe-interval=1s"])
        .args(peers.iter().map(|peer| format!("--peer={peer}")))
        .start()
}

const BIG: u64 = 20_000_000;

#[test]
#[ignore = "needs curl, microsocks, danted"]
fn curl_fetches_byte_for_byte_through_servers_found_by_probing() {
    let web = Web::start();
    let (one, other) = (free_port(), free_port());
    let _servers = (microsocks(one, &[]), dante(other, "none"));
    for (server, schemes) in [
        (one, &["socks5h", "socks5"][..]),
        // Dante knows SOCKS 4, but not 4a.
        (other, &["socks5h", "socks5", "socks4"]),
    ] {
        let sockhop = forward(&[server]);
        let forwarder = sockhop.wait_listening(SOON);
        let found = sockhop.wait_peer(server, "valid", SOON);
        assert_eq!(found["reason"], "answered 05 00");
        for scheme in schemes {
            let proxy = format!("{scheme}://{forwarder}");
            web.verify(&fetch(&proxy, &web.url("127.0.0.1", BIG)), 20_000_000);
            if *scheme == "socks5h" {
                web.verify(&fetch(&proxy, &web.url("localhost", 1000)), 1000);
            }
        }
        let bytes = sockhop.status()["bytes"]["down"].as_u64();
        assert!(bytes >= Some(BIG * schemes.len() as u64), "{bytes:?}");
    }
}

#[test]
#[ignore = "needs curl, danted"]
fn refusals_of_the_server_reach_curl_and_cost_the_forwarder_nothing() {
    let web = Web::start();
    let server = free_port();
    let _dante = dante(server, "none");
    let sockhop = forward(&[server]);
    let forwarder = sockhop.wait_listening(SOON);
    let code = |proxy: &str, url: &str| curl(proxy, &[url]).output().expect("curl").status.code();
    // 97 is curl's code for a proxy that could not be talked into it.
    let dead = format!("http://{}/1", dead_address());
    assert_eq!(code(&format!("socks5h://{forwarder}"), &dead), Some(97));
    let url = web.url("localhost", 1000);
    assert_eq!(code(&format!("socks4a://{forwarder}"), &url), Some(97));
    assert_eq!(code(&format!("http://{forwarder}"), &url), Some(52));
    web.verify(&fetch(&format!("socks5h://{forwarder}"), &url), 1000);
    assert_eq!(sockhop.status()["remote"], server.to_string());
}

#[test]
#[ignore = "needs root, curl, microsocks, danted, unshare"]
fn user_and_password_pass_through_unchanged() {
    let web = Web::start();
    let (one, other) = (free_port(), free_port());
    let _servers = (
        microsocks(one, &["-u", "somebody", "-P", "secret"]),
        dante_with_user(other),
    );
    for server in [one, other] {
        let sockhop = Sockhop::forward(&[])
            .arg(format!("--remote={server}"))
            .arg(format!("--peer={server}"))
            .start();
        let forwarder = sockhop.wait_listening(SOON);
        let found = sockhop.wait_peer(server, "authentication-required", SOON);
        assert_eq!(found["reason"], "answered 05 FF");
        let url = web.url("127.0.0.1", 100_000);
        web.verify(
            &fetch(&format!("socks5h://somebody:secret@{forwarder}"), &url),
            100_000,
        );
        for wrong in ["", "somebody:guess@", "nobody:secret@"] {
            let output = curl(&format!("socks5h://{wrong}{forwarder}"), &[&url])
                .output()
                .expect("curl");
            assert_eq!(output.status.code(), Some(97), "{wrong}");
        }
        assert_eq!(sockhop.status()["connections"]["total"], 4);
    }
}

#[test]
#[ignore = "needs curl, microsocks, danted"]
fn server_that_wants_a_password_is_never_chosen_by_itself() {
    let web = Web::start();
    let (locked, open) = (free_port(), free_port());
    let _servers = (dante(locked, "username"), microsocks(open, &[]));
    let sockhop = forward(&[locked, open]);
    let forwarder = sockhop.wait_listening(SOON);
    sockhop.wait_peer(locked, "authentication-required", SOON);
    assert_eq!(sockhop.status()["remote"], open.to_string());
    web.verify(
        &fetch(
            &format!("socks5h://{forwarder}"),
            &web.url("127.0.0.1", 1000),
        ),
        1000,
    );
}

#[test]
#[ignore = "needs curl, microsocks, danted"]
fn killed_server_costs_the_next_curl_nothing() {
    let web = Web::start();
    let addresses = [free_port(), free_port()];
    let start = |index: usize| match index {
        0 => microsocks(addresses[0], &[]),
        _ => dante(addresses[1], "none"),
    };
    let mut servers = [start(0), start(1)];
    let sockhop = forward(&addresses);
    let forwarder = sockhop.wait_listening(SOON);
    let proxy = format!("socks5h://{forwarder}");
    // Whichever is in use, and then the other one.
    for _ in 0..2 {
        for address in addresses {
            sockhop.wait_peer(address, "valid", SOON);
        }
        let remote = sockhop.status()["remote"].clone();
        let used = usize::from(remote != addresses[0].to_string());
        assert_eq!(remote, addresses[used].to_string());
        let mut slow = Running::start(curl(
            &proxy,
            &[
                "--limit-rate",
                "1M",
                "-o",
                "/dev/null",
                &web.url("127.0.0.1", BIG),
            ],
        ));
        sockhop.wait_status(|status| status["connections"]["active"] == 1, SOON);
        let down = || sockhop.status()["bytes"]["down"].as_u64();
        let before = down();
        assert!(wait_until(SOON, || down() > before), "nothing flows");

        servers[used].kill();
        let started = Instant::now();
        web.verify(&fetch(&proxy, &web.url("127.0.0.1", 100_000)), 100_000);
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
        let ended = slow.wait();
        assert!(!ended.status.success(), "its server is gone");
        sockhop.wait_status(
            |status| status["remote"] == addresses[1 - used].to_string(),
            SOON,
        );
        servers[used] = start(used);
    }
}

#[test]
#[ignore = "needs curl, proxychains4, danted"]
fn proxychains_goes_through_with_socks_4_and_5() {
    let web = Web::start();
    let server = free_port();
    let _dante = dante(server, "none");
    let sockhop = forward(&[server]);
    let port = sockhop.wait_listening(SOON).port();
    let directory = TempDir::new().expect("temporary directory");
    let configuration = directory.path().join("proxychains.conf");
    for version in ["socks5", "socks4"] {
        fs::write(
            &configuration,
            format!("strict_chain\n[ProxyList]\n{version} 127.0.0.1 {port}\n"),
        )
        .expect("write the configuration");
        let body = success(
            Command::new(program("proxychains4"))
                .args(["-q", "-f", &path(&configuration)])
                .arg(program("curl"))
                .args([
                    "-q",
                    "-sS",
                    "--max-time",
                    "30",
                    &web.url("127.0.0.1", 1_000_000),
                ])
                .stdin(Stdio::null()),
        );
        web.verify(&body, 1_000_000);
    }
    assert_eq!(sockhop.status()["connections"]["total"], 2);
}

#[test]
#[ignore = "needs curl, microsocks, danted"]
fn browser_like_load_loses_nothing() {
    let web = Web::start();
    let (one, other) = (free_port(), free_port());
    let _servers = (microsocks(one, &[]), dante(other, "none"));
    let sockhop = forward(&[one, other]);
    let forwarder = sockhop.wait_listening(SOON);
    let proxy = format!("socks5h://{forwarder}");
    for server in [one, other] {
        sockhop
            .control("connect", json!({"remote": server.to_string()}))
            .expect("connect");
        // One program with many connections, and many programs.
        let directory = TempDir::new().expect("temporary directory");
        let files = path(&directory.path().join("#1"));
        let urls = format!("http://{}/[50000-50199]", web.v4.address());
        let mut parallel = Running::start(curl(
            &proxy,
            &[
                "--parallel",
                "--parallel-max",
                "40",
                "--parallel-immediate",
                "-o",
                &files,
                &urls,
            ],
        ));
        let many: Vec<Running> = (0..20)
            .map(|_| Running::start(curl(&proxy, &[&web.url("127.0.0.1", 2_000_000)])))
            .collect();
        for mut one in many {
            let output = one.wait();
            assert!(output.status.success(), "{output:?}");
            web.verify(&output.stdout, 2_000_000);
        }
        let output = parallel.wait();
        assert!(output.status.success(), "{output:?}");
        for length in 50_000..50_200 {
            let body = fs::read(directory.path().join(length.to_string())).expect("a file");
            web.verify(&body, length);
        }
    }
    let status = sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    assert_eq!(status["connections"]["total"], 440);
    assert_eq!(status["last_error"], json!(null));
}

/// That an echo server is reached so.
#[track_caller]
fn assert_reached(proxy: &str, target: &str) {
    let stream = client::connect(&proxy.parse().expect(proxy), target)
        .unwrap_or_else(|error| panic!("{proxy}: {error:?}"));
    assert_eq!(exchange(&stream, b"hello").expect(proxy), b"hello");
}

#[track_caller]
fn assert_fault(proxy: &str, target: &str, fault: Fault) {
    let error = client::connect(&proxy.parse().expect(proxy), target).expect_err(proxy);
    assert_eq!(error.fault(), fault, "{proxy}: {error:?}");
}

#[test]
#[ignore = "needs microsocks"]
fn the_client_goes_through_microsocks_with_user_and_password() {
    let (echo, at) = (Target::echo(), free_port());
    let _server = microsocks(at, &["-u", "ada", "-P", "p@ss"]);
    let target = echo.address().to_string();
    let named = format!("localhost:{}", echo.address().port());
    for scheme in ["socks5", "socks5h"] {
        assert_reached(&format!("{scheme}://ada:p%40ss@{at}"), &target);
    }
    assert_reached(&format!("socks5://ada:p%40ss@{at}"), &named);
    assert_fault(&format!("socks5://ada:wrong@{at}"), &target, Fault::Proxy);
    assert_fault(&format!("socks5://{at}"), &target, Fault::Proxy);
    let dead = dead_address().to_string();
    assert_fault(&format!("socks5://ada:p%40ss@{at}"), &dead, Fault::Target);
}

#[test]
#[ignore = "needs danted, microsocks"]
fn the_client_goes_through_dante_and_lets_somebody_in() {
    let (echo, at, other) = (Target::echo(), free_port(), free_port());
    let _servers = (dante(at, "none"), microsocks(other, &[]));
    let target = echo.address().to_string();
    for scheme in ["socks4", "socks5", "socks5h"] {
        assert_reached(&format!("{scheme}://{at}"), &target);
        let dead = dead_address().to_string();
        assert_fault(&format!("{scheme}://{at}"), &dead, Fault::Target);
    }
    let parse = |text: String| text.parse().expect("a proxy");
    let chain = Dialer::new(parse(format!("socks5://{at}")))
        .through(parse(format!("socks5h://{other}")))
        .through(parse(format!("socks4://{at}")));
    let stream = chain.connect(&echo.address().into()).expect("a chain");
    assert_eq!(exchange(&stream, b"hello").expect("echo"), b"hello");

    for scheme in ["socks4", "socks5"] {
        let dialer = Dialer::new(parse(format!("{scheme}://{at}")));
        let peer = "127.0.0.1:0".parse().expect("an address");
        let binding = dialer.bind(&peer).expect(scheme);
        let caller = connect(binding.address().expect("an address")).expect("let in");
        let (near, who) = binding.accept(SOON).expect(scheme);
        let from = caller.local_addr().expect("own address");
        assert_eq!(who.to_string(), from.to_string());
        (&near).write_all(b"hello").expect("write");
        let mut heard = [0; 5];
        (&caller).read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"hello");
    }
}

#[test]
#[ignore = "needs danted"]
fn datagrams_of_the_client_go_through_dante() {
    let at = free_port();
    let _server = dante(at, "none");
    let far = UdpSocket::bind("127.0.0.1:0").expect("bind");
    far.set_read_timeout(Some(SOON)).expect("time limit");
    let target = far.local_addr().expect("own address");
    let dialer = Dialer::new(format!("socks5://{at}").parse().expect("a proxy"));
    let association = dialer.associate().expect("an association");
    for size in [0, 1, 1400, 8000] {
        let (sent, mut heard) = (vec![7; size], vec![0; 9000]);
        association.send_to(&sent, &target.into()).expect("send");
        let (count, from) = far.recv_from(&mut heard).expect("receive");
        assert_eq!(heard[..count], sent);
        far.send_to(&sent, from).expect("answer");
        let (count, from) = association.recv_from(&mut heard, SOON).expect("receive");
        assert_eq!((&heard[..count], from), (&sent[..], target.into()));
    }
}

#[test]
#[ignore = "needs danted, unshare, root"]
fn the_client_authenticates_to_dante() {
    let (echo, at) = (Target::echo(), free_port());
    let _server = dante_with_user(at);
    let target = echo.address().to_string();
    assert_reached(&format!("socks5h://somebody:secret@{at}"), &target);
    assert_fault(
        &format!("socks5h://somebody:wrong@{at}"),
        &target,
        Fault::Proxy,
    );
    assert_fault(&format!("socks5h://{at}"), &target, Fault::Proxy);
}

/// A client that runs meanwhile, and does not outlive the test.
struct Running(Option<Child>);

impl Running {
    fn start(mut command: Command) -> Self {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        Self(Some(child))
    }

    /// Waits for its end; curl has a time limit of its own.
    fn wait(&mut self) -> Output {
        let child = self.0.take().expect("waited for once");
        child.wait_with_output().expect("wait")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(feature = "server")]
#[test]
#[ignore = "needs curl"]
fn curl_fetches_through_our_server_in_every_version() {
    let web = Web::start();
    let allow = [
        "--allow-dest",
        "127.0.0.0/8",
        "--allow-dest",
        "::1",
        "--listen",
        "127.0.0.1:0",
    ];
    let open = Sockhop::serve(&allow).start();
    let address = open.wait_listening(SOON).to_string();
    for option in ["--socks4", "--socks4a", "--socks5", "--socks5-hostname"] {
        let fetched = success(
            Command::new(program("curl"))
                .args(["-q", "-sS", "--max-time", "30", option, &address])
                .arg(web.url("127.0.0.1", BIG)),
        );
        web.verify(&fetched, 20_000_000);
    }
    for scheme in ["socks4a", "socks5h"] {
        let proxy = format!("{scheme}://{address}");
        web.verify(&fetch(&proxy, &web.url("localhost", 1000)), 1000);
    }
    let answer = success(&mut curl(
        &format!("http://{address}"),
        &["-w", "%{http_code}", &web.url("127.0.0.1", 1)],
    ));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        answer.contains("SOCKS port") && answer.ends_with("400"),
        "{answer}"
    );

    let locked = Sockhop::serve(&allow).arg("--user=ada:secret").start();
    let address = locked.wait_listening(SOON);
    let url = web.url("127.0.0.1", 100_000);
    for scheme in ["socks5", "socks5h"] {
        let proxy = format!("{scheme}://ada:secret@{address}");
        web.verify(&fetch(&proxy, &url), 100_000);
    }
    for wrong in ["socks5h://", "socks5h://ada:guess@", "socks4://"] {
        let output = curl(&format!("{wrong}{address}"), &[&url])
            .output()
            .expect("curl");
        assert_eq!(output.status.code(), Some(97), "{wrong}");
    }
    assert!(!locked.log().join("\n").contains("guess"));
}
