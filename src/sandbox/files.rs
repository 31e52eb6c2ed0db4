//! Files: which ones there are for us, by Landlock (landlock(7)).
//!
//! Rules are about directories, with all that is below: a file that was replaced by another is a new one, which a rule about
//! the old one does not know. Connecting to Unix sockets is not among what is ruled here, nor is what was opened before.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::Plan;

/// Whether the kernel can do any of it, and does.
pub(super) fn confine(plan: &Plan) -> Result<bool, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        // Signals to processes outside.
        .scope(Scope::Signal)?
        .create()?;
    for (path, access) in places(plan) {
        // What is not there needs no rule.
        if let Ok(file) = PathFd::new(&path) {
            (&mut rules).add_rule(PathBeneath::new(file, access))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// Places, and what may be done there and below.
fn places(plan: &Plan) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    let mut places = vec![
        // Routes, own descriptors and memory. Landlock itself guards what is private to other processes there. A rule about
        // /proc/self would be lost with the kernel's memory of that directory.
        ("/proc".into(), read | AccessFs::ReadDir),
    ];
    places.extend(PLUG_INS.map(|folder| (folder.into(), read)));
    let mut add = |path: &Path, access| {
        for home in homes(path) {
            places.push((home, access));
        }
    };
    for path in LOOK_UPS {
        add(path.as_ref(), read);
    }
    for path in &plan.reads {
        add(path, read);
    }
    for path in &plan.writes {
        let written = read
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::RemoveFile
            // A new name is on disk when its directory is, which is opened for that.
            | AccessFs::ReadDir;
        add(path, written);
    }
    for path in &plan.sockets {
        let made = AccessFs::MakeSock | AccessFs::RemoveFile;
        places.push((folder(path), made));
    }
    places
}

/// The directories that a file is in: its own, and where links lead. Of one that is not there, the next that is above; but not
/// the root directory, with which everything would be allowed.
fn homes(path: &Path) -> Vec<PathBuf> {
    let mut homes = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let own = folder(&path);
        let mut above = own.ancestors().filter(|above| above.is_dir());
        match above.next() {
            Some(home) if home == own || home != Path::new("/") => homes.push(home.to_owned()),
            _ => log::warn!(
                "{} is not there now, and cannot be read later: --no-sandbox lets it",
                own.display()
            ),
        }
        match fs::read_link(&path) {
            Ok(target) => path = own.join(target),
            Err(_) => break,
        }
    }
    homes
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => ".".into(),
    }
}

/// Rights that are newer are not ruled: what they are about is not known here.
const RIGHTS: ABI = ABI::V5;

/// What name look-ups read: nsswitch.conf, gai.conf, services and others are beside the first one.
const LOOK_UPS: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Look-ups of a dynamic program load these when they need them. A static one has none.
#[cfg(not(target_env = "musl"))]
const PLUG_INS: [&str; 7] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/gnu/store",
];
#[cfg(target_env = "musl")]
const PLUG_INS: [&str; 0] = [];

/// As the kernel follows, path_resolution(7).
const MOST_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_where_its_links_lead_too() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "b", "c"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("c/file"), "").unwrap();
        symlink("../b/link", at("a/link")).unwrap();
        symlink(at("c/file"), at("b/link")).unwrap();
        let expected = [at("a"), at("a/../b"), at("c")];
        assert_eq!(homes(&at("a/link")), expected);
        assert_eq!(homes(&at("c/file")), [at("c")]);
        // Not there yet, as is what a link leads to at the start of a router.
        assert_eq!(homes(&at("c/later")), [at("c")]);
        assert_eq!(homes(&at("c/no/such/later")), [at("c")]);
        symlink(at("c/none/file"), at("dangling")).unwrap();
        assert_eq!(homes(&at("dangling")), [folder.path(), &at("c")]);
        // An endless one.
        symlink("loop", at("loop")).unwrap();
        assert_eq!(homes(&at("loop")).len(), MOST_LINKS);
    }

    #[test]
    fn nothing_opens_the_whole_file_system() {
        assert!(homes(Path::new("/nonexistent/file")).is_empty());
        assert_eq!(homes(Path::new("/file")), [Path::new("/")]);
        assert_eq!(homes(Path::new("file")), [Path::new(".")]);
    }
}
