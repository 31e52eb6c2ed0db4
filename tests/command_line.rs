//! The command line as a user meets it: the real program, its two outputs and its exit status.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn sockhop<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockhop"));
    command
        .args(arguments)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null());
    command
}

/// Runs to the end, which must come in time.
fn finish(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start sockhop");
    let read = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("sockhop did not end");
        }
        thread::sleep(Duration::from_millis(2));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Exit status, stdout, stderr.
fn run(line: &str) -> (i32, String, String) {
    ended(sockhop(line.split(' ').filter(|word| !word.is_empty())))
}

fn ended(command: Command) -> (i32, String, String) {
    let output = finish(command);
    (
        output.status.code().expect("no signal"),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A control server for one connection, in the test. Removed with its directory.
struct Server {
    dir: tempfile::TempDir,
    thread: JoinHandle<String>,
}

/// What the server does once it has read the request.
enum Then {
    Answer(Vec<u8>),
    /// Nothing, until the client gives up.
    Wait,
    Close,
}

impl Server {
    fn start(then: Then) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let thread = thread::spawn(move || {
            let stream = accept(&listener);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut reader = BufReader::new(&stream);
            let mut request = String::new();
            reader.read_line(&mut request).unwrap();
            match then {
                // The client may have had enough before all is written.
                Then::Answer(bytes) => drop((&stream).write_all(&bytes)),
                Then::Wait => assert_eq!(reader.read(&mut [0]).unwrap(), 0),
                Then::Close => {}
            }
            request
        });
        Self { dir, thread }
    }

    fn answering(result: &str) -> Self {
        Self::start(Then::Answer(
            format!("{{\"jsonrpc\":\"2.0\",\"id\":1,{result}}}\n").into_bytes(),
        ))
    }

    /// Runs one command against it; gives what [`run`] gives, and the request that came.
    fn run(self, line: &str) -> ((i32, String, String), String) {
        let mut command = sockhop(line.split(' '));
        command.arg("--control").arg(self.dir.path().join("s"));
        let ended = ended(command);
        (ended, self.thread.join().unwrap())
    }
}

fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("nobody came: {error}"),
        }
    }
}

/// Those of this build.
const COMMANDS: &[&str] = &[
    "forward",
    #[cfg(feature = "server")]
    "serve",
    "probe",
    #[cfg(feature = "client-cli")]
    "dial",
    "status",
    "proxies",
    "connect",
    "disconnect",
    "probing",
    #[cfg(feature = "server")]
    "demo",
];

#[test]
fn help_is_data() {
    let (status, stdout, stderr) = run("--help");
    assert_eq!((status, stderr.as_str()), (0, ""));
    for command in COMMANDS {
        assert!(stdout.contains(&format!("\n  {command} ")), "{command}");
        for line in [
            format!("{command} --help"),
            format!("{command} -h"),
            format!("help {command}"),
        ] {
            let (status, stdout, stderr) = run(&line);
            assert_eq!((status, stderr.as_str()), (0, ""), "{line}");
            assert!(
                stdout.starts_with(&format!("Usage: sockhop {command} ")),
                "{line}"
            );
            assert!(!stdout.contains("reply-timeout"), "{line}");
        }
    }
}

#[test]
fn version_is_data() {
    for line in ["--version", "-V", "forward --version"] {
        let expected = format!("sockhop {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(run(line), (0, expected, String::new()), "{line}");
    }
}

#[test]
fn wrong_usage_is_told_on_stderr_and_ends_with_2() {
    for (line, message) in [
        ("", "no command; commands are forward"),
        ("serv", "\"serv\" is not a command"),
        ("--frob", "\"--frob\" is not an option of sockhop"),
        (
            "status --frob=1",
            "\"--frob\" is not an option of sockhop status",
        ),
        ("status extra", "unrecognized argument: extra"),
        ("status --control a --control b", "duplicate values"),
        ("status --control", "--control needs a value"),
        ("status --control none", "without a control socket"),
        ("status --json=yes", "--json takes no value"),
        (
            "status --reply-timeout 5",
            "--reply-timeout: \"5\" has no unit",
        ),
        ("probing", "not provided: start|stop"),
        ("probing restart", "\"restart\" is neither of the two"),
        ("probe", "no address to probe"),
        ("connect a b", "unrecognized argument: b"),
        #[cfg(feature = "client-cli")]
        ("dial", "no HOST:PORT to connect to"),
        #[cfg(feature = "client-cli")]
        ("dial socks5://a:secret@b", "no HOST:PORT to connect to"),
        #[cfg(feature = "client-cli")]
        ("dial a:1 socks5://a:secret@b", "no HOST:PORT to connect to"),
        #[cfg(feature = "client-cli")]
        ("dial a:1 b:2", "PROXY: the scheme is missing"),
        #[cfg(feature = "client-cli")]
        (
            "dial socks5://u@b a:1",
            "PROXY: the password can't be empty",
        ),
        (
            "forward --no-probing --control none",
            "no peer would ever be found valid",
        ),
    ] {
        let (status, stdout, stderr) = run(line);
        assert_eq!((status, stdout.as_str()), (2, ""), "{line}: {stderr}");
        assert!(stderr.starts_with("sockhop: "), "{line}: {stderr}");
        assert!(stderr.contains(message), "{line}: {stderr}");
        assert!(
            stderr.contains("\nhint: see \"sockhop "),
            "{line}: {stderr}"
        );
        assert!(stderr.contains("--help\"\n"), "{line}: {stderr}");
        assert_eq!(stderr.lines().count(), 2, "{line}: {stderr}");
    }
}

#[test]
fn malformed_values_are_quoted_beside_a_right_one() {
    for (line, bad, right) in [
        ("forward --remote=a:b", "--remote: \"b\"", "10.1.2.3:1080"),
        (
            "forward --remote=http://a",
            "--remote: \"http://\"",
            "socks5://",
        ),
        (
            "forward --remote=socks5://u:secret@a/b",
            "has no path",
            "socks5://",
        ),
        (
            "forward --peer=fe80::1%eth0",
            "--peer: \"%eth0\"",
            "[407::1]:1080",
        ),
        (
            "forward --peer=300.1.1.1",
            "--peer: \"300.1.1.1\"",
            "10.1.2.3",
        ),
        (
            "forward --peers=cjdns",
            "\"cjdns\" is not a kind of source that this version knows: those are file, exec, mycelium,",
            "file:/",
        ),
        (
            "forward --peers=mycelium:https://localhost",
            "\"https://localhost\" has TLS",
            "mycelium:http://127.0.0.1:8989",
        ),
        (
            "forward --peers=yggdrasil:localhost",
            "\"localhost\" is neither a path nor a host and port",
            "/run/yggdrasil.sock",
        ),
        ("forward --peers=exec:", "--peers: \"exec:\"", "exec:"),
        (
            "forward --manual --listen=localhost:1",
            "--listen: \"localhost\"",
            "127.0.0.1:1080",
        ),
        (
            "forward --manual --allow=10.0.0.0/33",
            "--allow: \"10.0.0.0/33\"",
            "10.0.0.0/8",
        ),
        (
            "forward --manual --probe-interval=60",
            "--probe-interval: \"60\"",
            "5s",
        ),
        (
            "forward --manual --probe-timeout=0",
            "--probe-timeout: \"0\"",
            "5s",
        ),
        (
            "forward --manual --probe-target=a",
            "--probe-target: \"a\"",
            "example.org:443",
        ),
        (
            "forward --manual --on-switch=drop",
            "--on-switch: \"drop\"",
            "keep or cut",
        ),
        (
            "forward --manual --max-connections=0",
            "--max-connections: \"0\"",
            "64",
        ),
        (
            "forward --manual --max-per-client=-1",
            "--max-per-client: \"-1\"",
            "64",
        ),
        (
            "forward --manual --workers many",
            "--workers: \"many\"",
            "64",
        ),
        (
            "forward --manual --connect-timeout=1d",
            "--connect-timeout: \"1d\"",
            "5s",
        ),
        (
            "forward --manual --idle-timeout=1ms",
            "--idle-timeout: \"1ms\"",
            "5s",
        ),
        (
            "forward --manual --half-close-timeout=x",
            "--half-close-timeout: \"x\"",
            "5s",
        ),
        (
            "forward --manual --control=",
            "--control: \"\"",
            "/run/sockhop.sock",
        ),
        ("probe a:b", "ADDRESS: \"b\"", "10.1.2.3:1080"),
        ("probe a --timeout=1", "--timeout: \"1\"", "5s"),
        ("probe a --target=b", "--target: \"b\"", "example.org:443"),
        #[cfg(feature = "client-cli")]
        ("dial socks5://a b", "HOST:PORT: \"b\"", "example.org:443"),
        #[cfg(feature = "client-cli")]
        ("dial socks5://a b:1 --timeout=5", "--timeout: \"5\"", "5s"),
        ("connect [::1", "ADDRESS: \"[::1\"", "[407::1]:1080"),
    ] {
        let (status, stdout, stderr) = run(line);
        assert_eq!((status, stdout.as_str()), (2, ""), "{line}: {stderr}");
        let (message, example) = stderr.split_once("right would be").expect(line);
        assert!(message.contains(bad), "{line}: {stderr}");
        assert!(example.contains(right), "{line}: {stderr}");
        assert!(!stderr.contains("secret"), "{line}: {stderr}");
    }
}

#[test]
fn arguments_that_are_not_text_end_with_2() {
    let bytes = OsString::from_vec(b"caf\xe9".to_vec());
    let (status, stdout, stderr) = ended(sockhop([OsString::from("connect"), bytes]));
    assert_eq!((status, stdout.as_str()), (2, ""));
    assert!(stderr.contains("\"caf\\xE9\" is not UTF-8"), "{stderr}");
}

#[test]
fn a_closed_stdout_is_not_an_error() {
    let server = Server::answering("\"result\":{\"probing\":true}");
    let socket = server.dir.path().join("s");
    let mut commands = vec![sockhop(["--help"]), sockhop(["--version"])];
    let mut asking = sockhop(["probing", "start", "--control"]);
    asking.arg(socket);
    commands.push(asking);
    for mut command in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
    server.thread.join().unwrap();
}

#[test]
fn a_full_disk_is_an_error() {
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
        return; // Linux has it; where it is missing there is nothing to test with.
    };
    let output = sockhop(["--version"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("sockhop: write to stdout: "), "{stderr}");
}

const STATUS: &str = r#"{"remote": "[407::1]:1080", "mode": "automatic", "listening": ["[::]:1080"], "probing": true, "connections": {"active": 3, "parked": 2, "total": 120, "refused": 0}, "bytes": {"up": 1, "down": 2}, "candidates": {"valid": 2, "authentication-required": 1, "not-a-proxy": 4, "not-listening": 90, "unknown": 0}, "uptime_s": 12.50, "last_error": null, "later": [1]}"#;

#[test]
fn status_is_text_or_json_as_it_came() {
    let ((status, stdout, stderr), request) =
        Server::answering(&format!("\"result\":{STATUS}")).run("status");
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(stdout.contains("remote       [407::1]:1080\n"), "{stdout}");
    assert!(stdout.contains("running for  12s\n"), "{stdout}");
    assert_eq!(
        request,
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n"
    );

    let ((status, stdout, _), _) =
        Server::answering(&format!("\"result\":{STATUS}")).run("status --json");
    assert_eq!((status, stdout), (0, format!("{STATUS}\n")));
}

#[test]
fn proxies_are_a_table() {
    let result = r#""result":[{"address":"[407::1]:1080","status":"valid","reason":"answered 05 00","latency_ms":12.34,"sources":["flag"],"last_probed_s":3.1,"last_valid_s":3.1,"failures":0,"selected":true},
        {"address":"10.0.0.9:1080","status":"not-listening","reason":"refused","latency_ms":null,"sources":["file"],"last_probed_s":3.1,"last_valid_s":null,"failures":7,"selected":false}]"#
        .replace('\n', "");
    let ((status, stdout, stderr), _) = Server::answering(&result).run("proxies");
    assert_eq!((status, stderr.as_str()), (0, ""));
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    assert!(lines[1].starts_with("*  [407::1]:1080  valid"), "{stdout}");
    assert!(lines[2].ends_with("refused"), "{stdout}");
}

#[test]
fn changes_are_asked_for_and_told() {
    for (line, result, request, text) in [
        (
            "connect",
            r#"{"remote":"10.0.0.1:1080","listening":["[::]:1080"]}"#,
            r#""method":"connect"}"#,
            "connected to 10.0.0.1:1080, listening on [::]:1080\n",
        ),
        (
            "connect help",
            r#"{"remote":"help:1080"}"#,
            r#""params":{"remote":"help:1080"}}"#,
            "connected to help:1080\n",
        ),
        (
            "connect 407::1",
            r#"{"remote":"\u001b[407::1]:1080"}"#,
            r#""params":{"remote":"[407::1]:1080"}}"#,
            "connected to \\u{1b}[407::1]:1080\n",
        ),
        (
            "disconnect",
            r#"{"closed":3}"#,
            r#""method":"disconnect"}"#,
            "disconnected, 3 streams cut\n",
        ),
        (
            "probing start",
            r#"{"probing":true}"#,
            r#""params":{"run":true}}"#,
            "probing is on\n",
        ),
        (
            "probing stop",
            r#"{"probing":false}"#,
            r#""params":{"run":false}}"#,
            "probing is off\n",
        ),
    ] {
        let ((status, stdout, stderr), asked) =
            Server::answering(&format!("\"result\":{result}")).run(line);
        assert_eq!((status, stderr.as_str()), (0, ""), "{line}");
        assert_eq!(stdout, text, "{line}");
        assert!(asked.trim_end().ends_with(request), "{line}: {asked}");
    }
}

#[test]
fn coded_errors_are_told_with_their_reason_and_hint() {
    let error = r#""error":{"code":-32001,"message":"cannot listen on [::]:1080","data":{"reason":"address in use","hint":"give another --listen"}}"#;
    let (ended, _) = Server::answering(error).run("connect --json");
    assert_eq!(
        ended,
        (
            1,
            String::new(),
            "sockhop: connect: cannot listen on [::]:1080: address in use\nhint: give another --listen\n"
                .to_owned()
        )
    );
    let ((status, _, stderr), _) =
        Server::answering(r#""error":{"code":-32000,"message":"no valid proxy\u001b[2J"}"#)
            .run("connect");
    assert_eq!(status, 1);
    assert_eq!(stderr, "sockhop: connect: no valid proxy\\u{1b}[2J\n");
}

#[test]
fn a_server_that_misbehaves_is_named() {
    let answer = |text: &str| Then::Answer(text.as_bytes().to_vec());
    for (then, message, hint) in [
        (Then::Wait, "no answer within 100ms", false),
        (Then::Close, "closed without an answer", false),
        (answer("{\"jsonrpc\""), "closed without an answer", false),
        (
            answer("HTTP/1.1 400 Bad Request\r\n\r\n"),
            "not a JSON-RPC 2.0 answer",
            true,
        ),
        (answer("\u{0}\n"), "not a JSON-RPC 2.0 answer", true),
        (
            answer("{\"id\":1}\n"),
            "without either a result or an error",
            true,
        ),
        (
            answer("{\"id\":2,\"result\":{}}\n"),
            "without either a result or an error",
            true,
        ),
        (
            answer("{\"id\":1,\"result\":{\"remote\":1}}\n"),
            "not a JSON-RPC 2.0 answer",
            true,
        ),
        (
            Then::Answer(vec![b'['; 17 << 20]),
            "longer than 16777216 bytes",
            true,
        ),
    ] {
        let timeout = if matches!(then, Then::Wait) {
            "100ms"
        } else {
            "10s"
        };
        let line = format!("status --reply-timeout={timeout}");
        let ((status, stdout, stderr), _) = Server::start(then).run(&line);
        assert_eq!((status, stdout.as_str()), (1, ""), "{message}");
        assert!(stderr.starts_with("sockhop: control socket /"), "{stderr}");
        assert!(stderr.contains(message), "{message}: {stderr}");
        assert_eq!(stderr.contains("hint: "), hint, "{message}: {stderr}");
    }
}

#[test]
fn a_forwarder_that_is_not_there_is_hinted_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sockhop.sock");
    let asked = |command: Command| {
        let (status, stdout, stderr) = ended(command);
        assert_eq!((status, stdout.as_str()), (1, ""));
        assert!(stderr.contains(path.to_str().unwrap()), "{stderr}");
        assert!(
            stderr.contains("is \"sockhop forward\" running?"),
            "{stderr}"
        );
        assert!(stderr.contains("--control PATH"), "{stderr}");
    };
    let given = || {
        let mut command = sockhop(["status", "--control"]);
        command.arg(&path);
        command
    };
    asked(given());
    // A socket file that its owner left behind.
    drop(UnixListener::bind(&path).unwrap());
    asked(given());
    let mut by_default = sockhop(["status"]);
    by_default.env("XDG_RUNTIME_DIR", dir.path());
    asked(by_default);
}

#[test]
fn a_path_that_cannot_be_a_socket_is_an_error() {
    for path in ["/".to_owned(), "/dev/null".to_owned(), "x".repeat(200)] {
        let (status, stdout, stderr) = ended(sockhop(["status", "--control", &path]));
        assert_eq!((status, stdout.as_str()), (1, ""), "{path}");
        assert!(stderr.contains(&path), "{stderr}");
        assert!(!Path::new(&path).is_file(), "{path}");
    }
}
