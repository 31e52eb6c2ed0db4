//! `sockhop demo`: what the first user sees.
#![cfg(feature = "server")]

mod common;

use std::time::Duration;

use common::{Launch, SOON, Signal, Sockhop, exchange, socks5_connect};

#[test]
fn once_shows_every_status_and_a_page_fetched_through_the_best() {
    let output = Sockhop::run(&["demo", "--once"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    let lines_with = |text: &str| shown.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines_with(" valid "), 3, "{shown}");
    for status in ["authentication-required", "not-a-proxy", "not-listening"] {
        assert!(lines_with(status) > 0, "{status}: {shown}");
    }
    assert!(shown.contains("Hello from the other side"), "{shown}");
    assert!(shown.contains("curl -x socks5h://localhost:"), "{shown}");
}

#[test]
fn it_serves_what_it_says_until_it_is_told_to_end() {
    let mut demo = Launch::new(&["demo"]).start();
    let line = demo.wait_output("curl -x", SOON);
    let mut words = line.split_whitespace();
    let proxy = words
        .find_map(|word| word.strip_prefix("socks5h://localhost:"))
        .unwrap();
    let page = line
        .split("http://")
        .nth(1)
        .unwrap()
        .trim()
        .trim_end_matches('/');
    let proxy = format!("127.0.0.1:{proxy}").parse().unwrap();
    let stream = socks5_connect(proxy, page.parse().unwrap()).unwrap();
    let answer = exchange(&stream, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    drop(stream);
    demo.signal(Signal::TERM);
    assert!(demo.wait_exit(Duration::from_secs(5)).success());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let output = Launch::new(&["demo", "--once"])
        .env("TMPDIR", "/nonexistent/folder")
        .run(SOON);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("cannot make /nonexistent/folder/sockhop-demo-"),
        "{said}"
    );
    assert!(said.contains("TMPDIR"), "{said}");
}
