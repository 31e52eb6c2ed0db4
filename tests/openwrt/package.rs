//! The package itself: what it installs, and that what it ships works.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Launch, SOON, program, success};
use crate::script::Script;

const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/openwrt");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(PACKAGE).join(name)).expect(name)
}

#[test]
fn the_package_has_the_version_of_the_program() {
    let makefile = read("Makefile");
    let version = makefile
        .lines()
        .find_map(|line| line.strip_prefix("PKG_VERSION:="));
    assert_eq!(version, Some(env!("CARGO_PKG_VERSION")));
}

#[test]
fn as_installed_nothing_runs() {
    let started = Script::new().config(&read("files/sockhop.config")).start();
    assert_eq!(started.instances(), [""; 0]);
    assert_eq!(started.complaints(), [""; 0]);
}

#[test]
fn every_commented_option_of_the_configuration_is_right_too() {
    let config: String = read("files/sockhop.config")
        .lines()
        .map(|line| line.replacen("\t# list ", "\tlist ", 1))
        .map(|line| line.replacen("\t# option ", "\toption ", 1) + "\n")
        .map(|line| line.replace("enabled '0'", "enabled '1'"))
        .collect();
    let started = Script::new().config(&config).start();
    assert_eq!(started.complaints(), [""; 0]);
    assert_eq!(started.instances(), ["main", "exit"]);
    for flag in [
        "--peer=407::1",
        "--state=/etc/sockhop/state/main",
        "--quiet",
    ] {
        assert!(started.flags("main").contains(&flag), "{flag}");
    }
    assert!(
        started
            .flags("exit")
            .contains(&"--users-file=/etc/sockhop/users")
    );
}

/// What procd would start is started: the program takes the whole line, and answers where it shall.
#[test]
fn the_configuration_as_it_is_shipped_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    for (section, kind) in [("main", "forward"), ("exit", "serve")] {
        let control = directory.path().join(section);
        let config = read("files/sockhop.config")
            .replace("enabled '0'", "enabled '1'")
            .replace("'[::]:1080'", "'127.0.0.1:0'")
            .replace("'[::]:1081'", "'127.0.0.1:0'")
            // Nobody is asked here, and what is found out does not matter.
            .replace("# list peer '407::1'", "list remote '127.0.0.1:9'")
            .replace(
                &format!("config {kind} '{section}'\n"),
                &format!(
                    "config {kind} '{section}'\n\toption control '{}'\n",
                    control.display()
                ),
            );
        let started = Script::new().config(&config).start();
        let command = started.command(section);
        assert_eq!(command[1], kind);
        let launch = Launch::new(&command[1..]);
        let launch = started
            .param(section, "env")
            .iter()
            .fold(launch, |launch, variable| {
                let (name, value) = variable.split_once('=').expect("a value");
                launch.env(name, value)
            });
        let running = launch.start();
        let answers = || {
            let control = control.to_str().expect("UTF-8");
            Launch::new(&["status", "--control", control])
                .run(SOON)
                .status
                .success()
        };
        assert!(
            crate::common::wait_until(SOON, answers),
            "{section}: {:?}",
            running.log()
        );
    }
}

#[test]
#[ignore = "needs make"]
fn make_installs_what_the_package_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let top = directory.path();
    // What the build system brings, as far as a package sees it.
    let rules = "INSTALL_DIR:=install -d -m0755\nINSTALL_BIN:=install -m0755\nINSTALL_CONF:=install -m0600\nINSTALL_DATA:=install -m0644\nCP:=cp -fpR\n\
                 INCLUDE_DIR:=$(TOPDIR)\nPKG_BUILD_DIR:=$(TOPDIR)/build\nPKG_INSTALL_DIR:=$(TOPDIR)/cargo\n";
    let recipes = "define BuildPackage\nprepare:\n\t$$(Build/Prepare)\ninstall:\n\t$$(call Package/$(1)/install,$$(TOPDIR)/root)\n\
                   show:\n\t@echo '$$(Package/$(1))'\n\t@echo '$$(Package/$(1)/conffiles)'\nendef\n";
    fs::write(top.join("rules.mk"), rules).expect("a file");
    fs::write(top.join("package.mk"), recipes).expect("a file");
    let rust = top.join("feeds/packages/lang/rust");
    fs::create_dir_all(&rust).expect("a folder");
    fs::write(rust.join("rust-package.mk"), "RUST_ARCH_DEPENDS:=@arm\n").expect("a file");
    fs::create_dir_all(top.join("cargo/bin")).expect("a folder");
    fs::write(top.join("cargo/bin/sockhop"), "program").expect("a file");
    let make = |target: &str| {
        let output = success(
            Command::new(program("make"))
                .args(["-C", PACKAGE, "--no-print-directory", target])
                .arg(format!("TOPDIR={}", top.display()))
                .env_remove("MAKEFLAGS")
                .stdin(Stdio::null()),
        );
        String::from_utf8(output).expect("UTF-8")
    };

    make("install");
    let mut installed = Vec::new();
    files(&top.join("root"), &mut installed);
    installed.sort();
    let installed: Vec<_> = installed
        .iter()
        .map(|path| {
            let mode = fs::metadata(path).expect("a file").permissions().mode() & 0o777;
            let path = path.strip_prefix(top.join("root")).expect("below it");
            format!("{mode:o} /{}", path.display())
        })
        .collect();
    assert_eq!(
        installed,
        [
            "600 /etc/config/sockhop",
            "755 /etc/init.d/sockhop",
            "644 /lib/upgrade/keep.d/sockhop",
            "755 /usr/bin/sockhop",
        ]
    );

    // The tree that is built has everything that its Cargo.toml names.
    make("prepare");
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "src/main.rs",
        "examples/socks6.rs",
    ] {
        assert!(top.join("build").join(name).is_file(), "{name}");
    }
    let checked = success(
        Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
            .arg("--manifest-path")
            .arg(top.join("build/Cargo.toml")),
    );
    assert!(String::from_utf8_lossy(&checked).contains("\"sockhop\""));
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
#[ignore = "needs shellcheck"]
fn shellcheck_finds_nothing() {
    // rc.common reads USE_PROCD, START and STOP (SC2034); network.sh is on the router (SC1091).
    success(
        Command::new(program("shellcheck"))
            .args(["-s", "dash", "-e", "SC1091,SC2034"])
            .arg(format!("{PACKAGE}/files/sockhop.init")),
    );
    // The script that it runs is not known before (SC1090), and defines what it calls (SC2034); `assign` sets by name (SC2154).
    success(
        Command::new(program("shellcheck"))
            .args(["-s", "dash", "-e", "SC1090,SC2034,SC2154"])
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/openwrt/rc.common"
            )),
    );
}
