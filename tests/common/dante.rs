//! Dante, a server of SOCKS 4 and 5 with BIND and UDP ASSOCIATE.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::tools::{Daemon, free_port};

/// Dante on loopback, without authentication.
pub fn dante() -> (Daemon, SocketAddr) {
    dante_with("")
}

/// The same, with these rules of its configuration before the one that lets everything pass.
pub fn dante_with(rules: &str) -> (Daemon, SocketAddr) {
    let address = free_port();
    let daemon = Daemon::start("danted", address, |directory| {
        let configuration = directory.join("danted.conf");
        let users = match rustix::process::geteuid().is_root() {
            true => "user.privileged: root\nuser.unprivileged: nobody\n",
            false => "",
        };
        let port = address.port();
        fs::write(
            &configuration,
            format!(
                "logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: lo\n\
                 clientmethod: none\nsocksmethod: none\n{users}\
                 client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n\
                 {rules}\
                 socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 \
                   command: bind bindreply connect udpassociate udpreply }}\n"
            ),
        )
        .expect("write the configuration");
        let text = |path: &Path| path.to_str().expect("a readable path").to_owned();
        let pid = text(&directory.join("pid"));
        let configuration = text(&configuration);
        ["-N", "1", "-p", &pid, "-f", &configuration]
            .map(String::from)
            .to_vec()
    });
    (daemon, address)
}
