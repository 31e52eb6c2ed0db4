//! The programs under test, and how each is started.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::process::{Room, Tree};

/// A process per connection.
pub(crate) fn socat(room: &Room, port: u16, to: &str) -> io::Result<Tree> {
    let from = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=1024");
    let to = format!("TCP:{to},nodelay");
    room.program(&installed("socat")?, &[from.as_ref(), to.as_ref()])
}

/// One thread, as the others have one process; `maxconn` because the default depends on the descriptor limit.
///
/// Not `splice-auto`: with bulk alone it seldom decides for splice, and costs twice as much.
pub(crate) fn haproxy(room: &Room, here: &str, to: &str, splice: &str) -> io::Result<Tree> {
    let program = installed("haproxy")?;
    // Two descriptors each, and pipes; above what the system allows it does not start.
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let each = if splice.is_empty() { 2 } else { 3 };
    let most = (limit.saturating_sub(200) / each).min(10_100);
    let text = format!(
        "global\n  nbthread 1\n  maxconn {most}\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  {splice}\n\
         listen bench\n  bind {here}\n  server target {to}\n"
    );
    let name = if splice.is_empty() {
        "haproxy.cfg"
    } else {
        "haproxy-splice.cfg"
    };
    let file = room.file(name, &text)?;
    room.program(
        &program,
        &[
            "-db".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            file.as_os_str(),
        ],
    )
}

/// 64 KiB buffers: three times less processor time per byte than its default of 16.
pub(crate) fn nginx(room: &Room, here: &str, to: &str) -> io::Result<Tree> {
    let program = installed("nginx")?;
    // Debian builds the stream module as a file of its own; elsewhere it may be inside.
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() {
        format!("load_module {};\n", module.display())
    } else {
        String::new()
    };
    let text = format!(
        "{load}daemon off;\nworker_processes 1;\nworker_rlimit_nofile 16384;\npid {folder}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 8192; }}\n\
         stream {{\n  access_log off;\n  server {{\n    listen {here};\n    proxy_pass {to};\n    proxy_buffer_size 64k;\n    \
         proxy_timeout 1h;\n  }}\n}}\n",
        folder = room.path().display()
    );
    let file = room.file("nginx.conf", &text)?;
    room.program(
        &program,
        &[
            "-e".as_ref(),
            "stderr".as_ref(),
            "-c".as_ref(),
            file.as_os_str(),
        ],
    )
}

pub(crate) fn rinetd(room: &Room, port: u16, to: u16) -> io::Result<Tree> {
    let text = format!("127.0.0.1 {port} 127.0.0.1 {to}\n");
    let file = room.file("rinetd.conf", &text)?;
    let arguments = ["-f".as_ref(), "-c".as_ref(), file.as_os_str()];
    room.program(&installed("rinetd")?, &arguments)
}

/// Version 1.0.3 has no way to be quiet; its messages go to a file.
pub(crate) fn microsocks(room: &Room, port: u16) -> io::Result<Tree> {
    let port = port.to_string();
    let arguments = ["-i", "127.0.0.1", "-p", &port];
    room.program(&installed("microsocks")?, &arguments.map(OsStr::new))
}

/// As many processes as it wants.
pub(crate) fn dante(room: &Room, port: u16) -> io::Result<Tree> {
    let users = if rustix::process::geteuid().is_root() {
        "user.privileged: root\nuser.unprivileged: nobody\n"
    } else {
        ""
    };
    let text = format!(
        "errorlog: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: lo\n\
         clientmethod: none\nsocksmethod: none\n{users}\
         client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n\
         socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n"
    );
    let file = room.file("danted.conf", &text)?;
    let pid = room.path().join("danted.pid");
    room.program(
        &installed("danted")?,
        &[
            "-p".as_ref(),
            pid.as_os_str(),
            "-f".as_ref(),
            file.as_os_str(),
        ],
    )
}

/// With its limits as they are but for one client address, which has all the connections here.
pub(crate) fn sockhop_serve(room: &Room, here: &str) -> io::Result<Tree> {
    let arguments = [
        "serve",
        "--listen",
        here,
        "--allow-dest",
        "127.0.0.0/8",
        "--control",
        "none",
        "-q",
    ];
    room.program(&sockhop()?, &arguments.map(OsStr::new))
}

pub(crate) fn sockhop_forward(
    room: &Room,
    here: &str,
    to: &str,
    options: &[&str],
) -> io::Result<Tree> {
    let arguments = [
        "forward",
        "--remote",
        to,
        "--listen",
        here,
        "--control",
        "none",
        "-q",
    ];
    let arguments: Vec<_> = arguments.iter().chain(options).map(OsStr::new).collect();
    room.program(&sockhop()?, &arguments)
}

/// It finds out by itself which of these ports of loopback leads on.
pub(crate) fn sockhop_forward_to_peers(room: &Room, port: u16, peers: &[u16]) -> io::Result<Tree> {
    let here = format!("127.0.0.1:{port}");
    let mut arguments = vec!["forward", "--listen", &here, "--control", "none", "-q"];
    let peers: Vec<String> = peers
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    for peer in &peers {
        arguments.extend(["--peer", peer]);
    }
    let arguments: Vec<&OsStr> = arguments.into_iter().map(OsStr::new).collect();
    room.program(&sockhop()?, &arguments)
}

/// The release build beside this executable.
pub(crate) fn sockhop() -> io::Result<PathBuf> {
    // target/release/examples/bench -> target/release/sockhop
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).unwrap_or(&own).join("sockhop");
    if program.exists() {
        return Ok(program);
    }
    let hint = "build it first: cargo build --release";
    let missing = format!("{} is missing; {hint}", program.display());
    Err(io::Error::other(missing))
}

/// Servers live in sbin, which not every user has in the path.
fn installed(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| io::Error::other("it is not installed"))
}
