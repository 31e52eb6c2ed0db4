//! The control socket and the commands that use it, against the running program.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{
    Behaviour, Peer, SOON, Signal, Sockhop, Target, connect, dead_address, exchange, socks5_connect,
};

const ZERO: Duration = Duration::ZERO;

/// An answer that takes longer is not "at once", also on a loaded machine.
const A_SECOND: Duration = Duration::from_secs(1);

/// Answering already.
fn manual() -> Sockhop {
    let sockhop = Sockhop::forward(&["--manual"]).start();
    sockhop.status();
    sockhop
}

/// With one valid peer, probed.
fn manual_with(peer: &Peer) -> Sockhop {
    let address = peer.address().to_string();
    let arguments = ["--manual", "--probe-timeout", "60s", "--peer", &address];
    let sockhop = Sockhop::forward(&arguments).start();
    sockhop.wait_peer(peer.address(), "valid", SOON);
    sockhop
}

fn stdout(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit status 1 and nothing on stdout.
fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    String::from_utf8(output.stderr).unwrap()
}

/// Sends one line as it is and returns the answer.
fn say(sockhop: &Sockhop, line: &[u8]) -> Value {
    let mut stream = sockhop.control_stream();
    stream.write_all(line).unwrap();
    stream.write_all(b"\n").unwrap();
    hear(&mut BufReader::new(stream))
}

fn hear(stream: &mut impl BufRead) -> Value {
    let mut answer = String::new();
    stream.read_line(&mut answer).expect("no answer");
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer:?}: {error}"))
}

fn request(id: u32, method: &str, parameters: Value) -> String {
    let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters});
    format!("{request}\n")
}

fn is_alive(sockhop: &Sockhop) {
    let asked = Instant::now();
    sockhop.status();
    assert!(
        asked.elapsed() < A_SECOND,
        "status took {:?}",
        asked.elapsed()
    );
}

/// Every field, so that none is lost unnoticed; numbers and texts that differ from run to run by their kind only.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect(),
        Value::Array(values) => values.iter().map(shape).collect(),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
        other => other.clone(),
    }
}

// The answers.

#[test]
fn status_has_the_documented_fields() {
    let (peer, echo) = (Peer::valid(ZERO), Target::echo());
    let sockhop = manual_with(&peer);
    let mut status = sockhop.status();
    assert!(status["uptime_s"].take().as_f64().unwrap() < 60.0);
    // It depends on the kernel and the build.
    if let Some(nets) = status.as_object_mut().unwrap().remove("confined_by") {
        let nets = nets.as_array().expect("names").clone();
        assert!(!nets.is_empty() && nets.iter().all(|net| net == "landlock" || net == "seccomp"));
    }
    assert_eq!(
        status,
        json!({
            "remote": null,
            "reason": "waiting for `sockhop connect`",
            "mode": "manual",
            "listening": [],
            "probing": true,
            "connections": {"active": 0, "parked": 0, "total": 0, "refused": 0, "refused_by_reason": {}},
            "bytes": {"up": 0, "down": 0},
            "candidates": {
                "valid": 1, "authentication-required": 0, "not-a-proxy": 0, "not-listening": 0, "unknown": 0
            },
            "sources": [{"name": "remote", "error": null}, {"name": "flag", "error": null}],
            "uptime_s": null,
            "last_error": null,
            "associations": 0,
        })
    );
    sockhop.control("connect", Value::Null).unwrap();
    let listener = sockhop.wait_listening(SOON);
    let client = socks5_connect(listener, echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    // 3 + 10 + 5 bytes up, 2 + 10 + 5 down; the last ones are counted when the session has had its turn.
    let status = sockhop.wait_status(
        |status| status["bytes"] == json!({"up": 18, "down": 17}),
        SOON,
    );
    assert_eq!(status["remote"], peer.address().to_string());
    assert_eq!(status["reason"], "valid: answered 05 00");
    assert_eq!(status["mode"], "automatic");
    assert_eq!(status["listening"], json!([listener.to_string()]));
    // Idle, it holds no thread before long.
    let idle = json!({"active": 1, "parked": 1, "total": 1, "refused": 0, "refused_by_reason": {}});
    sockhop.wait_status(|status| status["connections"] == idle, SOON);
    drop(client);
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
}

#[test]
fn last_error_says_when_and_what() {
    let dead = dead_address();
    let sockhop = Sockhop::forward(&["--no-probing", "--remote", &dead.to_string()]).start();
    let client = connect(sockhop.wait_listening(SOON)).unwrap();
    (&client).write_all(&[5, 1, 0]).unwrap();
    let status = sockhop.wait_status(|status| !status["last_error"].is_null(), SOON);
    let error = &status["last_error"];
    assert_eq!(shape(error), json!({"at": "text", "what": "text"}));
    let what = error["what"].as_str().unwrap();
    assert!(
        what.contains(&dead.to_string()) && what.contains("refused"),
        "{what}"
    );
    let at = error["at"].as_str().unwrap();
    assert!(
        at.len() == 20 && at.ends_with('Z') && at.contains('T'),
        "{at}"
    );
}

#[test]
fn proxies_have_the_documented_fields() {
    let (valid, dead) = (Peer::valid(ZERO), dead_address());
    let arguments = [
        "--peer",
        &valid.address().to_string(),
        "--peer",
        &dead.to_string(),
    ];
    let sockhop = Sockhop::forward(&arguments).start();
    sockhop.wait_listening(SOON);
    sockhop.wait_peer(dead, "not-listening", SOON);
    let mut proxies = sockhop.proxies();
    for field in [
        "latency_ms",
        "latency_spread_ms",
        "last_probed_s",
        "last_valid_s",
        "good_for_s",
    ] {
        assert!(
            proxies[0][field].take().as_f64().unwrap() < 10_000.0,
            "{field}"
        );
    }
    let score = proxies[0]["score"].take().as_f64().unwrap();
    assert!((1.0..=100.0).contains(&score), "{score}");
    assert!(proxies[1]["last_probed_s"].take().is_number());
    assert_eq!(
        json!(proxies),
        json!([
            {
                "address": valid.address().to_string(), "status": "valid", "reason": "answered 05 00",
                "latency_ms": null, "sources": ["flag"], "last_probed_s": null, "last_valid_s": null,
                "failures": 0, "selected": true, "candidate": true, "why": "the first valid peer",
                "score": null, "latency_spread_ms": null, "good_for_s": null,
            },
            {
                "address": dead.to_string(), "status": "not-listening", "reason": "refused",
                "latency_ms": null, "sources": ["flag"], "last_probed_s": null, "last_valid_s": null,
                "failures": 1, "selected": false, "candidate": true,
            },
        ])
    );
}

// The commands.

#[test]
fn commands_print_text_for_people() {
    let (peer, echo) = (Peer::valid(ZERO), Target::echo());
    let address = peer.address();
    let sockhop = manual_with(&peer);
    let table = stdout(sockhop.command(&["proxies"]));
    let mut lines = table.lines();
    assert!(
        lines.next().unwrap().trim_start().starts_with("ADDRESS"),
        "{table}"
    );
    let row = lines.next().unwrap();
    assert!(
        row.trim_start().starts_with(&format!("{address}  valid  ")),
        "{table}"
    );
    assert!(row.ends_with("answered 05 00"), "{table}");
    assert_eq!(lines.next(), None);

    let said = stdout(sockhop.command(&["connect", &address.to_string()]));
    let listener = sockhop.wait_listening(SOON);
    assert_eq!(
        said,
        format!("connected to {address}, listening on {listener}\n")
    );
    let said = stdout(sockhop.command(&["connect"]));
    assert_eq!(
        said,
        format!("connected to {address}, listening on {listener}\n")
    );
    assert!(stdout(sockhop.command(&["proxies"])).contains(&format!("*  {address}  valid")));

    let status = stdout(sockhop.command(&["status"]));
    for line in [
        format!("remote       {address} (valid: answered 05 00)"),
        "mode         automatic".to_owned(),
        format!("listening    {listener}"),
        "probing      on".to_owned(),
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line:?} is not in\n{status}"
        );
    }

    let client = socks5_connect(listener, echo.address()).unwrap();
    assert_eq!(
        stdout(sockhop.command(&["disconnect"])),
        "disconnected, 1 stream cut\n"
    );
    drop(client);
    assert_eq!(
        stdout(sockhop.command(&["probing", "stop"])),
        "probing is off\n"
    );
    assert_eq!(
        stdout(sockhop.command(&["probing", "start"])),
        "probing is on\n"
    );
}

#[test]
fn commands_print_the_answers_as_json() {
    let peer = Peer::valid(ZERO);
    let sockhop = manual_with(&peer);
    let json = |arguments: &[&str]| -> Value {
        let text = stdout(sockhop.command(arguments));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    // Ages and the uptime go on in between.
    let mut status = json(&["status", "--json"]);
    let mut expected = sockhop.status();
    assert!(status["uptime_s"].take().as_f64() <= expected["uptime_s"].take().as_f64());
    assert_eq!(status, expected);
    let (printed, expected) = (json(&["proxies", "--json"]), json!(sockhop.proxies()));
    assert_eq!(shape(&printed), shape(&expected));
    assert_eq!(printed[0]["address"], expected[0]["address"]);
    let address = peer.address().to_string();
    let connected = json(&["connect", "--json", &address]);
    assert_eq!(
        connected,
        json!({"remote": address, "listening": sockhop.status()["listening"]})
    );
    assert_eq!(json(&["disconnect", "--json"]), json!({"closed": 0}));
    assert_eq!(
        json(&["probing", "--json", "stop"]),
        json!({"probing": false})
    );
}

#[test]
fn commands_that_are_refused_say_why_and_exit_with_1() {
    let sockhop = manual();
    let said = refused(sockhop.command(&["connect"]));
    assert!(
        said.starts_with("sockhop: connect: no valid proxy available"),
        "{said}"
    );
    assert!(said.contains("\nhint: "), "{said}");
    let said = refused(sockhop.command(&["connect", "no-such-host.invalid"]));
    assert!(
        said.contains("cannot look up no-such-host.invalid:1080"),
        "{said}"
    );
    let path = sockhop.control_path().to_owned();
    drop(sockhop);
    let path = path.to_str().unwrap();
    let said = refused(Sockhop::run(&["status", "--control", path]));
    assert!(
        said.contains(path) && said.contains("is \"sockhop forward\" running?"),
        "{said}"
    );
}

// The socket.

#[test]
fn only_the_user_can_open_the_socket_and_it_is_gone_at_the_end() {
    let mut sockhop = manual();
    let path = sockhop.control_path().to_owned();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    sockhop.signal(Signal::TERM);
    assert_eq!(sockhop.wait_exit(SOON).code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn the_socket_of_a_killed_program_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ctl");
    drop(UnixListener::bind(&path).unwrap());
    let arguments = ["--manual", "--control", path.to_str().unwrap()];
    let mut first = Sockhop::forward(&arguments).start();
    is_alive(&first);
    first.signal(Signal::KILL);
    first.wait_exit(SOON);
    assert!(path.exists());
    let second = Sockhop::forward(&arguments).start();
    second.wait_status(|status| status["mode"] == "manual", SOON);
}

#[test]
fn a_second_program_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let first = manual();
    let path = first.control_path().to_str().unwrap();
    let said = refused(Sockhop::run(&["forward", "--manual", "--control", path]));
    assert!(
        said.contains(&format!("control socket {path}: in use")),
        "{said}"
    );
    assert!(said.contains("hint: another sockhop runs"), "{said}");
    is_alive(&first);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, "data").unwrap();
    let path = path.to_str().unwrap();
    let said = refused(Sockhop::run(&["forward", "--manual", "--control", path]));
    assert!(said.contains("not a socket"), "{said}");
    assert_eq!(fs::read_to_string(path).unwrap(), "data");
}

// Callers that no client of ours is.

#[test]
fn bad_requests_get_coded_errors() {
    let sockhop = manual();
    for (line, code) in [
        (&b"{"[..], -32700),
        (b"\x00\xff\xfe", -32700),
        (b"[]", -32600),
        (b"{}", -32600),
        (br#"{"jsonrpc":"2.0","method":"status"}"#, -32600),
        (br#"{"jsonrpc":"1.0","id":1,"method":"status"}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":1,"method":"stop"}"#, -32601),
        (br#"{"jsonrpc":"2.0","id":1,"method":"probing"}"#, -32602),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"probing","params":{"run":"yes"}}"#,
            -32602,
        ),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"status","params":{"x":1}}"#,
            -32602,
        ),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"remot":"x"}}"#,
            -32602,
        ),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"remote":"x:0"}}"#,
            -32602,
        ),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"connect","params":{"remote":""}}"#,
            -32602,
        ),
        (br#"{"jsonrpc":"2.0","id":1,"method":"connect"}"#, -32000),
    ] {
        let answer = say(&sockhop, line);
        let shown = String::from_utf8_lossy(line);
        assert_eq!(answer["jsonrpc"], "2.0", "{shown}");
        assert_eq!(answer["error"]["code"], code, "{shown}: {answer}");
        assert!(answer["error"]["message"].is_string(), "{shown}: {answer}");
        assert_eq!(answer.get("result"), None, "{shown}");
    }
    is_alive(&sockhop);
}

#[test]
fn one_connection_serves_many_requests_also_in_one_write() {
    let sockhop = manual();
    let mut stream = sockhop.control_stream();
    let text: String = (1..=50)
        .map(|id| request(id, "status", json!({})))
        .collect();
    stream
        .write_all(format!("{text}nonsense\n{}", request(51, "proxies", json!({}))).as_bytes())
        .unwrap();
    let mut reader = BufReader::new(stream);
    for id in 1..=50 {
        assert_eq!(hear(&mut reader)["id"], id);
    }
    assert_eq!(hear(&mut reader)["error"]["code"], -32700);
    assert_eq!(hear(&mut reader)["result"], json!([]));
}

#[test]
fn a_line_of_ten_megabytes_is_refused_early() {
    let sockhop = manual();
    let before = sockhop.rss();
    let stream = sockhop.control_stream();
    let chunk = vec![b'x'; 1 << 16];
    for _ in 0..160 {
        // It may well hang up before all is written.
        if (&stream).write_all(&chunk).is_err() {
            break;
        }
    }
    assert!(sockhop.rss() < before + (4 << 20), "the line was kept");
    let answer = hear(&mut BufReader::new(&stream));
    assert_eq!(
        (&answer["error"]["code"], &answer["id"]),
        (&json!(-32600), &Value::Null)
    );
    is_alive(&sockhop);
}

#[test]
fn a_caller_who_never_reads_holds_up_nobody() {
    let sockhop = manual();
    let stream = sockhop.control_stream();
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let text: String = (0..100)
        .map(|id| request(id, "status", json!({})))
        .collect();
    // Until neither side's buffer takes more.
    while (&stream).write_all(text.as_bytes()).is_ok() {}
    is_alive(&sockhop);
    assert!(sockhop.rss() < 64 << 20);
}

#[test]
fn a_caller_byte_by_byte_is_answered() {
    let sockhop = manual();
    let mut stream = sockhop.control_stream();
    for byte in request(1, "status", json!({})).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(
        hear(&mut BufReader::new(stream))["result"]["mode"],
        "manual"
    );
}

#[test]
fn a_caller_who_has_finished_sending_still_gets_the_answer() {
    let peer = Peer::valid(ZERO);
    let sockhop = manual_with(&peer);
    peer.behave(Behaviour::AnswersAfter(Duration::from_millis(300)));
    for (text, expected) in [
        (request(1, "status", json!({})), "manual"),
        // Without its line feed too: nothing can follow.
        (
            request(1, "status", json!({})).trim_end().to_owned(),
            "manual",
        ),
        (request(1, "connect", json!({})), "connected"),
    ] {
        let mut stream = sockhop.control_stream();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).expect(&text);
        match expected {
            "manual" => assert_eq!(answer["result"]["mode"], "manual", "{answer}"),
            _ => assert_eq!(
                answer["result"]["remote"],
                peer.address().to_string(),
                "{answer}"
            ),
        }
    }
}

#[test]
fn forty_idle_callers_do_not_lock_out_the_next() {
    let sockhop = manual();
    let mut callers: Vec<UnixStream> = (0..40).map(|_| sockhop.control_stream()).collect();
    sockhop.status();
    // Whoever came last is not the one that makes room.
    let mut last = callers.pop().unwrap();
    last.write_all(request(7, "status", json!({})).as_bytes())
        .unwrap();
    assert_eq!(hear(&mut BufReader::new(last))["id"], 7);
}

#[test]
fn forty_callers_at_once_are_all_answered() {
    let sockhop = manual();
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| is_answered(&sockhop));
        }
    });
}

fn is_answered(sockhop: &Sockhop) {
    for _ in 0..5 {
        assert_eq!(sockhop.status()["mode"], "manual");
    }
}

#[test]
fn controllers_at_once_do_not_confuse_it() {
    let echo = Target::echo();
    let peers: Vec<Peer> = (0..4).map(|_| Peer::valid(ZERO)).collect();
    let dead = dead_address().to_string();
    let mut launch = Sockhop::forward(&["--on-switch", "cut", "--connect-timeout", "500ms"]);
    for peer in &peers {
        launch = launch.arg("--peer").arg(peer.address().to_string());
    }
    let sockhop = launch.start();
    for peer in &peers {
        sockhop.wait_peer(peer.address(), "valid", SOON);
    }
    peers[3].behave(Behaviour::Silent);
    thread::scope(|scope| {
        for seed in 0..4 {
            let (sockhop, peers, dead, echo) = (&sockhop, &peers, &dead, &echo);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..100 {
                    let peer = peers[random.usize(..4)].address().to_string();
                    let (method, parameters) = match random.u8(..9) {
                        0 => ("disconnect", Value::Null),
                        1 | 2 => ("connect", Value::Null),
                        3 | 4 => ("connect", json!({ "remote": peer })),
                        5 => ("connect", json!({ "remote": dead })),
                        6 => ("probing", json!({ "run": random.bool() })),
                        7 => ("proxies", Value::Null),
                        _ => ("status", Value::Null),
                    };
                    // Any coded error will do, but no silence.
                    let answer = sockhop.control(method, parameters);
                    assert!(!answer.is_err_and(|error| error.code == -32603), "{method}");
                    // A client in between, whatever becomes of it.
                    let status = sockhop.status();
                    if let Some(listener) = status["listening"][0].as_str()
                        && let Ok(stream) = connect(listener.parse().unwrap())
                    {
                        let [high, low] = echo.address().port().to_be_bytes();
                        let opening = [5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, high, low];
                        let _ = (&stream).write_all(&opening);
                    }
                }
            });
        }
    });
    let remote = json!({"remote": peers[0].address().to_string()});
    sockhop.control("connect", remote).unwrap();
    let listener = sockhop.wait_listening(SOON);
    let client = socks5_connect(listener, echo.address()).unwrap();
    assert_eq!(exchange(&client, b"hello").unwrap(), b"hello");
    sockhop.control("probing", json!({"run": false})).unwrap();
    sockhop.control("disconnect", Value::Null).unwrap();
    for peer in &peers {
        assert!(peer.wait_open(0, SOON), "a connection was left open");
    }
    sockhop.wait_status(|status| status["connections"]["active"] == 0, SOON);
    let log = sockhop.log();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:?}");
}

// During a race.

#[test]
fn everything_is_answered_at_once_during_a_race_and_a_later_request_ends_it() {
    let peer = Peer::valid(ZERO);
    let sockhop = manual_with(&peer);
    peer.behave(Behaviour::Silent);
    let started = Instant::now();
    for later in ["disconnect", "connect"] {
        let mut racing = sockhop.control_stream();
        racing
            .write_all(request(9, "connect", json!({})).as_bytes())
            .unwrap();
        sockhop.wait_status(|status| status["reason"] == "a race is under way", SOON);
        let asked = Instant::now();
        sockhop.proxies();
        sockhop.control("probing", json!({"run": false})).unwrap();
        sockhop.control("probing", json!({"run": true})).unwrap();
        let parameters = match later {
            "connect" => json!({"remote": peer.address().to_string()}),
            _ => Value::Null,
        };
        sockhop.control(later, parameters).expect(later);
        assert!(asked.elapsed() < A_SECOND, "something waited for the race");
        let answer = hear(&mut BufReader::new(racing));
        assert_eq!(
            (&answer["id"], &answer["error"]["code"]),
            (&json!(9), &json!(-32005)),
            "{later}"
        );
    }
    assert!(started.elapsed() < SOON);
}

#[test]
fn a_caller_who_leaves_during_a_race_changes_nothing() {
    let peer = Peer::valid(ZERO);
    let sockhop = manual_with(&peer);
    peer.behave(Behaviour::AnswersAfter(Duration::from_millis(300)));
    let mut racing = sockhop.control_stream();
    racing
        .write_all(request(9, "connect", json!({})).as_bytes())
        .unwrap();
    sockhop.wait_status(|status| status["reason"] == "a race is under way", SOON);
    drop(racing);
    sockhop.wait_status(
        |status| status["remote"] == peer.address().to_string(),
        SOON,
    );
    is_alive(&sockhop);
}
