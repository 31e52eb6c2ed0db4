//! An ssh server on loopback with keys of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;
use tempfile::TempDir;

use super::tools::{Daemon, free_port, program, success};

/// It lets in whoever runs the test, with a key that was made for it.
#[derive(Debug)]
pub struct Sshd {
    address: SocketAddr,
    keys: TempDir,
    _daemon: Daemon,
}

impl Sshd {
    /// Starts one. Nothing outside of temporary directories is read or written, but the user's own entry in `/etc/passwd`.
    #[track_caller]
    pub fn start() -> Self {
        let keys = TempDir::new().expect("temporary directory");
        for name in ["host", "user"] {
            success(
                Command::new(program("ssh-keygen"))
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
                    .arg(keys.path().join(name)),
            );
        }
        let read = |name: &str| fs::read_to_string(keys.path().join(name)).expect("a key");
        let address = free_port();
        let known = format!("[127.0.0.1]:{} {}", address.port(), read("host.pub"));
        fs::write(keys.path().join("known"), known).expect("write the known host");
        let configuration = keys.path().join("sshd_config");
        let shown = keys.path().display();
        fs::write(
            &configuration,
            format!(
                "ListenAddress {address}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/user.pub\nStrictModes no\n\
                 PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
                 UseDNS no\nMaxStartups 100\n"
            ),
        )
        .expect("write the configuration");
        let sshd = text(&program("sshd"));
        let arguments = ["-D", "-e", "-f", &text(&configuration)].map(String::from);
        let daemon = if geteuid().is_root() {
            // As root it wants a /run/sshd, which only its service makes: it gets one that nobody else sees.
            Daemon::start("unshare", address, |_| {
                let script =
                    "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec \"$0\" \"$@\"";
                ["-m", "sh", "-c", script, &sshd]
                    .map(String::from)
                    .into_iter()
                    .chain(arguments)
                    .collect()
            })
        } else {
            Daemon::start(&sshd, address, |_| arguments.to_vec())
        };
        Self {
            address,
            keys,
            _daemon: daemon,
        }
    }

    /// What `ssh` needs to get there, without a host and a command; the user's own files are not looked at.
    pub fn options(&self) -> Vec<String> {
        let keys = self.keys.path().display();
        let mut options: Vec<String> = ["-F", "none", "-T", "-p", &self.address.port().to_string()]
            .map(String::from)
            .into();
        for option in [
            format!("IdentityFile={keys}/user"),
            format!("UserKnownHostsFile={keys}/known"),
            "GlobalKnownHostsFile=none".into(),
            "IdentitiesOnly=yes".into(),
            "IdentityAgent=none".into(),
            "StrictHostKeyChecking=yes".into(),
            "BatchMode=yes".into(),
            "ConnectTimeout=20".into(),
            "ServerAliveInterval=20".into(),
            "LogLevel=ERROR".into(),
        ] {
            options.extend(["-o".into(), option]);
        }
        options
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a readable path").to_owned()
}
