//! `--tfo` and `--mptcp`, as the kernel counts them.
#![cfg(target_os = "linux")]

mod common;

use std::net::SocketAddr;
use std::path::Path;

use common::{Netns, SOON, Sockhop, Target, exchange, socks5_connect, wait_until};

/// A counter of the namespace, such as `TcpExt` `TCPFastOpenActive`.
fn counter(netns: &Netns, group: &str, name: &str) -> u64 {
    let table = netns
        .inside(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))
        .expect("counters");
    let group = format!("{group}: ");
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(&group));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.find(|(known, _)| *known == name);
    value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Clients of a forwarder whose remote is `sockhop serve`, both with this option.
struct Chain {
    netns: Netns,
    server: Sockhop,
    forwarder: Sockhop,
    at: SocketAddr,
    target: Target,
}

impl Chain {
    fn new(netns: Netns, option: &str) -> Self {
        let target = netns.inside(Target::echo);
        let server = Sockhop::serve(&[option, "--allow-dest", "127.0.0.0/8"])
            .inside(&netns)
            .start();
        let remote = server.wait_listening(SOON).to_string();
        let forwarder = Sockhop::forward(&["--remote", &remote, option, "--no-probing"])
            .inside(&netns)
            .start();
        let at = forwarder.wait_listening(SOON);
        Self {
            netns,
            server,
            forwarder,
            at,
            target,
        }
    }

    #[track_caller]
    fn carries(&self, times: usize) {
        for _ in 0..times {
            let stream = self
                .netns
                .inside(|| socks5_connect(self.at, self.target.address()).expect("served"));
            assert_eq!(exchange(&stream, b"hello").expect("echo"), b"hello");
        }
    }

    /// What both programs say once, however many connections there are.
    #[track_caller]
    fn both_say_once(&self, text: &str) {
        for program in [&self.server, &self.forwarder] {
            program.wait_log(text, SOON);
            let log = program.log();
            let count = log.iter().filter(|line| line.contains(text)).count();
            assert_eq!(count, 1, "{log:?}");
        }
    }
}

#[test]
#[ignore = "needs root for network namespaces"]
fn fast_open_puts_the_first_bytes_into_the_syn() {
    let netns = Netns::new();
    netns.set("ipv4/tcp_fastopen", "3");
    let chain = Chain::new(netns, "--tfo");
    chain.carries(4);
    let active = || counter(&chain.netns, "TcpExt", "TCPFastOpenActive");
    // The first one got the cookie.
    assert!(wait_until(SOON, || active() >= 3), "{}", active());
    let taken = counter(&chain.netns, "TcpExt", "TCPFastOpenPassive");
    assert_eq!(taken, active());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn where_fast_open_is_switched_off_that_is_said_once() {
    let netns = Netns::new();
    netns.set("ipv4/tcp_fastopen", "0");
    let chain = Chain::new(netns, "--tfo");
    chain.carries(3);
    chain.both_say_once("no TCP Fast Open from clients");
    let said = chain.forwarder.log();
    let towards = |line: &&String| line.contains("no TCP Fast Open towards others");
    assert_eq!(said.iter().filter(towards).count(), 1, "{said:?}");
}

#[test]
#[ignore = "needs root for network namespaces"]
fn fast_open_to_a_remote_that_refuses_or_has_none_costs_nobody_anything() {
    let netns = Netns::new();
    netns.set("ipv4/tcp_fastopen", "3");
    let target = netns.inside(Target::echo);
    // One that has it, so that there is a cookie, and goes; one that has it not.
    let mut first = Some(
        Sockhop::serve(&["--tfo", "--allow-dest", "127.0.0.0/8"])
            .inside(&netns)
            .start(),
    );
    let second = Sockhop::serve(&["--allow-dest", "127.0.0.0/8"])
        .inside(&netns)
        .start();
    let remotes = [
        first.as_ref().map(|first| first.wait_listening(SOON)),
        Some(second.wait_listening(SOON)),
    ];
    let [one, other] = remotes.map(|remote| remote.expect("listens").to_string());
    let forwarder = Sockhop::forward(&["--remote", &one, "--remote", &other, "--tfo"])
        .inside(&netns)
        .start();
    let at = forwarder.wait_listening(SOON);
    let serves = || {
        let served = netns.inside(|| socks5_connect(at, target.address()));
        let stream = served.expect("served");
        assert_eq!(exchange(&stream, b"hello").expect("echo"), b"hello");
    };
    serves();
    serves();
    let active = counter(&netns, "TcpExt", "TCPFastOpenActive");
    assert!(active >= 1, "the first has it");
    first.take();
    serves();
    serves();
}

#[test]
#[ignore = "needs root for network namespaces"]
fn multipath_is_spoken_where_both_ends_have_it() {
    if !Path::new("/proc/sys/net/mptcp/enabled").exists() {
        eprintln!("this kernel has no Multipath TCP");
        return;
    }
    let netns = Netns::new();
    netns.set("mptcp/enabled", "1");
    let chain = Chain::new(netns, "--mptcp");
    chain.carries(3);
    let asked = || counter(&chain.netns, "MPTcpExt", "MPCapableSYNTX");
    let agreed = || counter(&chain.netns, "MPTcpExt", "MPCapableACKRX");
    // The forwarder asks the server, which agrees, and asks the target, which knows nothing of it.
    assert!(wait_until(SOON, || agreed() >= 3 && asked() >= 6));
    assert!(agreed() < asked());
}

#[test]
#[ignore = "needs root for network namespaces"]
fn where_there_is_no_multipath_that_is_said_once() {
    let netns = Netns::new();
    if Path::new("/proc/sys/net/mptcp/enabled").exists() {
        netns.set("mptcp/enabled", "0");
    }
    let chain = Chain::new(netns, "--mptcp");
    chain.carries(3);
    chain.both_say_once("no Multipath TCP on this system");
}
