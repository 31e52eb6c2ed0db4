//! Network namespaces with cables between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::tools::{need_root, program};

/// A network of its own with nothing but loopback at first. It goes on drop, with its cables.
#[derive(Debug)]
pub struct Netns {
    name: String,
    number: usize,
}

impl Netns {
    /// A new one; a panic that says what is missing when this machine can't.
    #[track_caller]
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        need_root();
        program("nft");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sockhop-{}-{number}", std::process::id());
        run(Command::new(program("ip")).args(["netns", "add", &name]));
        let namespace = Self { name, number };
        namespace.ip("link set lo up");
        namespace
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Joins two namespaces. Each end gets its addresses with prefix length, such as `10.77.1.1/24`.
    pub fn cable(&self, other: &Self, ours: &[&str], theirs: &[&str]) {
        run(Command::new(program("ip"))
            .args(["link", "add", &self.link_to(other), "netns", &self.name])
            .args(["type", "veth", "peer", "name", &other.link_to(self)])
            .args(["netns", &other.name]));
        for (here, there, addresses) in [(self, other, ours), (other, self, theirs)] {
            let link = here.link_to(there);
            for address in addresses {
                // Without the search for duplicates an IPv6 address can be used at once.
                let nodad = if address.contains(':') { "nodad" } else { "" };
                here.ip(&format!("address add {address} dev {link} {nodad}"));
            }
            here.ip(&format!("link set {link} up"));
        }
    }

    /// The name of this end of a cable.
    pub fn link_to(&self, other: &Self) -> String {
        format!("to-{}", other.number)
    }

    /// `ip` with these arguments, about this namespace.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        run(Command::new(program("ip"))
            .args(["-n", &self.name])
            .args(arguments.split_whitespace()));
    }

    /// Replaces the rules for packets: rules such as `input tcp dport 1080 drop`, the chain's name first. No rule, no filter.
    #[track_caller]
    pub fn filter(&self, rules: &[&str]) {
        let mut script = "flush ruleset\ntable inet test {\n".to_owned();
        for chain in ["input", "output"] {
            script += &format!("chain {chain} {{ type filter hook {chain} priority 0;\n");
            for rule in rules {
                if let Some(rule) = rule.strip_prefix(chain) {
                    script += &format!("{rule}\n");
                }
            }
            script += "}\n";
        }
        script += "}\n";
        let mut nft = Command::new(program("ip"))
            .args(["netns", "exec", &self.name])
            .arg(program("nft"))
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("start nft");
        let mut stdin = nft.stdin.take().expect("piped");
        stdin.write_all(script.as_bytes()).expect("write to nft");
        drop(stdin);
        let status = nft.wait().expect("wait for nft");
        assert!(status.success(), "nft: {status} for\n{script}");
    }

    /// Sets a value under `/proc/sys/net`, such as `ipv6/bindv6only`.
    #[track_caller]
    pub fn set(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/net/{path}");
        self.inside(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Runs a closure on a thread in the namespace. Sockets and threads that it makes stay there.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enter the namespace");
            run()
        };
        thread::scope(|scope| scope.spawn(entered).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new(program("ip"))
            .args(["netns", "delete", &self.name])
            .status();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("start ip");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
