//! The image that `examples/docker/Dockerfile` describes: what is in it, and that the program runs with nothing else around it.
//!
//! No engine is needed: the last stage is laid out in a folder, and that becomes the root. The program is the static one that
//! `SOCKHOP_STATIC` names, or of this project's `target/cross`; else the one of this test with the libraries it is linked to.
#![cfg(all(target_os = "linux", feature = "server"))]

mod common;

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Netns, SOON, need_root, program, run_within, wait_until};
use tempfile::TempDir;

const DOCKERFILE: &str = include_str!("../examples/docker/Dockerfile");

/// An instruction and what it says.
type Instruction = (String, String);

/// The stages, each from its FROM on.
fn stages() -> Vec<Vec<Instruction>> {
    let mut stages: Vec<Vec<Instruction>> = Vec::new();
    for line in DOCKERFILE.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once(' ').expect("an instruction");
        assert!(!line.ends_with('\\'), "a line that goes on: {line}");
        if name == "FROM" {
            stages.push(Vec::new());
        }
        let stage = stages.last_mut().expect("FROM comes first");
        stage.push((name.to_owned(), rest.to_owned()));
    }
    stages
}

/// What the last stage says, which is the image.
fn said(name: &str) -> Vec<String> {
    let stages = stages();
    let stage = stages.last().expect("a stage");
    let said = stage.iter().filter(|(known, _)| known == name);
    said.map(|(_, rest)| rest.clone()).collect()
}

/// The words of an instruction in its form without a shell, of which there is none.
fn words(name: &str) -> Vec<String> {
    let said = said(name);
    let [text] = said.as_slice() else {
        panic!("{name}: {said:?}");
    };
    let list = text.find('[').map(|at| &text[at..]).expect("a list");
    serde_json::from_str(list).expect("a list of words")
}

/// User and group.
fn user() -> (u32, u32) {
    let said = said("USER");
    let (user, group) = said[0].split_once(':').expect("a group");
    (
        user.parse().expect("a number"),
        group.parse().expect("a number"),
    )
}

#[test]
fn the_image_is_the_program_and_nothing_else() {
    assert_eq!(said("FROM"), ["scratch"]);
    assert_eq!(said("COPY"), ["--from=build /image /"]);
    // Without a shell in the image nothing can be run while it is made.
    assert_eq!(said("RUN"), [""; 0]);
    let (user, group) = user();
    assert!(user != 0 && group != 0);
    assert_eq!(words("ENTRYPOINT"), ["/sockhop"]);
    assert_eq!(words("HEALTHCHECK"), ["/sockhop", "status"]);
    assert_eq!(
        said("EXPOSE"),
        [format!("{}/tcp", sockhop::target::SOCKS_PORT)]
    );
}

#[test]
fn the_build_copies_what_cargo_needs() {
    let stages = stages();
    let mut copied = Vec::new();
    for (_, rest) in stages[0].iter().filter(|(name, _)| name == "COPY") {
        let words: Vec<_> = rest.split(' ').collect();
        let (_, sources) = words.split_last().expect("a destination");
        copied.extend(sources.iter().map(|source| (*source).to_owned()));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in &copied {
        assert!(root.join(source).exists(), "{source}");
    }
    // Cargo.toml names an example by its path.
    for needed in ["Cargo.toml", "Cargo.lock", "src", "examples"] {
        assert!(copied.iter().any(|source| source == needed), "{needed}");
    }
}

/// The image's file system, and a network of its own to run it in.
struct Image {
    root: TempDir,
    network: Netns,
}

impl Image {
    fn new() -> Self {
        need_root();
        let root = tempfile::tempdir().expect("a directory");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let (user, group) = user();
        // The build stage makes /image, which becomes the root.
        let run = root.path().join("run");
        fs::create_dir(&run).expect("a folder");
        chown(&run, Some(user), Some(group)).expect("an owner");
        let binary = binary();
        fs::copy(&binary, root.path().join("sockhop")).expect("the program");
        for library in libraries(&binary) {
            let target = root
                .path()
                .join(library.strip_prefix("/").expect("absolute"));
            fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
            fs::copy(&library, &target).expect("a library");
        }
        Self {
            root,
            network: Netns::new(),
        }
    }

    /// A program of the image as the image's user.
    fn command(&self, words: &[String]) -> Command {
        let (user, group) = user();
        let mut command = Command::new(program("ip"));
        command
            .args(["netns", "exec", self.network.name()])
            .arg(program("chroot"))
            .arg(format!("--userspec={user}:{group}"))
            .arg("--groups=")
            .arg(self.root.path())
            .args(words)
            .env_clear()
            .envs(
                said("ENV")
                    .iter()
                    .filter_map(|variable| variable.split_once('=')),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The program with arguments of its own.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut words = vec![];
        words.extend(self::words("ENTRYPOINT"));
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        run_within(SOON, &mut self.command(&words))
    }
}

/// Killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program for the image.
fn binary() -> PathBuf {
    if let Some(told) = env::var_os("SOCKHOP_STATIC") {
        return told.into();
    }
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/cross")
        .join(triple)
        .join("release/sockhop");
    match built.is_file() {
        true => built,
        false => env!("CARGO_BIN_EXE_sockhop").into(),
    }
}

/// What the program is linked to; nothing, if it is a static one.
fn libraries(binary: &Path) -> Vec<PathBuf> {
    let output = run_within(SOON, Command::new(program("ldd")).arg(binary));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .filter(|word| word.starts_with('/') && Path::new(word).is_file())
        .map(PathBuf::from)
        .collect()
}

#[test]
#[ignore = "needs root, and a network namespace"]
fn the_whole_chain_runs_in_the_image() {
    let image = Image::new();
    let output = image.run(&["demo", "--once"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.is_empty());
}

#[test]
#[ignore = "needs root, and a network namespace"]
fn the_image_starts_and_tells_its_health() {
    let image = Image::new();
    let mut line = words("ENTRYPOINT");
    line.extend(words("CMD"));
    let health = || {
        let mut command = image.command(&words("HEALTHCHECK"));
        run_within(SOON, &mut command).status.success()
    };
    assert!(!health(), "healthy before it runs");

    let mut running = Running(image.command(&line).spawn().expect("start"));
    assert!(wait_until(SOON, health), "it never answers");
    assert!(running.0.try_wait().expect("a state").is_none());
    // What `ip` and `chroot` became is the program itself: the engine's signal reaches it.
    let id = running.0.id();
    let (user, group) = user();
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    assert!(
        status.contains(&format!("\nUid:\t{user}\t{user}\t")),
        "{status}"
    );
    assert!(
        status.contains(&format!("\nGid:\t{group}\t{group}\t")),
        "{status}"
    );
    assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");

    let signal = said("STOPSIGNAL");
    assert_eq!(signal, ["SIGTERM"]);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&running.0),
        common::Signal::TERM,
    )
    .expect("kill");
    let ended = || running.0.try_wait().is_ok_and(|status| status.is_some());
    assert!(wait_until(SOON, ended), "it does not end");
    assert!(!health(), "healthy after its end");
}

#[test]
#[ignore = "needs root, and a network namespace"]
fn names_of_the_engine_s_files_are_known_in_the_image() {
    let image = Image::new();
    // An engine mounts these two.
    fs::create_dir_all(image.root.path().join("etc")).expect("a folder");
    fs::write(
        image.root.path().join("etc/hosts"),
        "127.0.0.1 other.test\n",
    )
    .expect("a file");
    fs::write(
        image.root.path().join("etc/resolv.conf"),
        "nameserver 127.0.0.1\n",
    )
    .expect("a file");
    let output = image.run(&["probe", "--timeout", "5s", "--json", "other.test:9"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("refused"), "{output:?}");
}
