//! Giving up root, on Linux.
//!
//! ```text
//!   look up names ─▶ hand sockets over ─▶ chroot ─▶ groups ─▶ group ─▶ user ─▶ capabilities ─▶ try to have it back
//! ```

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use super::account::Account;
use super::{Kept, Privileges, PrivilegesError};

pub(super) fn give_up(
    privileges: &Privileges,
    kept: Kept,
    sockets: &[&Path],
) -> Result<(), PrivilegesError> {
    if privileges.is_nothing() {
        return Ok(());
    }
    if has_threads() {
        return Err(PrivilegesError::Threads);
    }
    // Before the root directory changes: the names are those that root sees.
    let account = privileges.user.as_ref().map(super::UserName::look_up);
    let account = account.transpose()?;
    if account.is_some_and(|account| account.uid == 0) {
        return Err(PrivilegesError::Root);
    }
    if let Some(account) = account.filter(|account| !is_already(*account)) {
        for path in sockets {
            hand_over(path, account)
                .map_err(|error| PrivilegesError::Refused("hand the control socket over", error))?;
        }
    }
    if let Some(root) = &privileges.root {
        rustix::process::chroot(root.as_path())
            // Where we are may be outside, and would be a way out.
            .and_then(|()| rustix::process::chdir("/"))
            .map_err(|error| PrivilegesError::Chroot(root.clone(), error.into()))?;
        say_what_is_missing(root);
    }
    let Some(account) = account else {
        log::warn!("root can leave a root directory: give a user as well");
        return Ok(());
    };
    if is_already(account) {
        log::debug!("already user {}", account.uid);
    } else {
        let keep = become_user(account, kept)?;
        check(account, keep)?;
    }
    log::info!("user {}, group {} from now on", account.uid, account.gid);
    Ok(())
}

/// Whether this thread has company. Without /proc nobody knows.
fn has_threads() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1)
}

/// Sockets only, and the very file that was looked at: in a directory of somebody else's, a path may be something else by now.
fn hand_over(path: &Path, account: Account) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::Socket {
        return Err(io::Error::other("it is not a socket any more"));
    }
    let (uid, gid) = ids(account);
    rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    Ok(())
}

fn say_what_is_missing(root: &Path) {
    let is_there = |path: &str| Path::new(path).exists();
    if !is_there("/etc/resolv.conf") || !is_there("/etc/hosts") {
        log::warn!(
            "{} has no etc/resolv.conf and etc/hosts: names may not be found",
            root.display()
        );
    }
}

fn is_already(account: Account) -> bool {
    let (uid, gid) = ids(account);
    (rustix::process::getuid(), rustix::process::geteuid()) == (uid, uid)
        && (rustix::process::getgid(), rustix::process::getegid()) == (gid, gid)
}

/// Gives the capabilities that are kept.
fn become_user(account: Account, kept: Kept) -> Result<CapabilitySet, PrivilegesError> {
    let refused =
        |what| move |error: rustix::io::Errno| PrivilegesError::Refused(what, error.into());
    let (uid, gid) = ids(account);
    let mut keep = CapabilitySet::empty();
    keep.set(CapabilitySet::NET_BIND_SERVICE, kept.low_ports);
    keep.set(CapabilitySet::NET_RAW, kept.interfaces);
    keep.set(CapabilitySet::NET_ADMIN, kept.marks);
    // In a container root may be without them. What needs them says so.
    let ours = thread::capabilities(None).map_err(refused("read capabilities"))?;
    keep &= ours.permitted;
    thread::set_thread_groups(&[]).map_err(refused("leave the groups of root"))?;
    thread::set_thread_res_gid(gid, gid, gid).map_err(refused("change the group"))?;
    thread::set_keep_capabilities(!keep.is_empty()).map_err(refused("keep capabilities"))?;
    thread::set_thread_res_uid(uid, uid, uid).map_err(refused("change the user"))?;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    thread::set_capabilities(None, sets).map_err(refused("give up capabilities"))?;
    Ok(keep)
}

/// What was given up is tried: a system that says yes and does nothing is found out.
fn check(account: Account, keep: CapabilitySet) -> Result<(), PrivilegesError> {
    let root = (Uid::ROOT, Gid::ROOT);
    let groups = rustix::process::getgroups();
    let has_root = thread::set_thread_res_uid(root.0, root.0, root.0).is_ok()
        || (account.gid != 0 && thread::set_thread_res_gid(root.1, root.1, root.1).is_ok())
        || thread::set_thread_groups(&[root.1]).is_ok();
    // One that is permitted can be taken up at any time.
    let is_bare = thread::capabilities(None).is_ok_and(|sets| sets.permitted == keep)
        && groups.is_ok_and(|groups| groups.is_empty());
    match is_already(account) && is_bare && !has_root {
        true => Ok(()),
        false => Err(PrivilegesError::Reversible),
    }
}

fn ids(account: Account) -> (Uid, Gid) {
    (Uid::from_raw(account.uid), Gid::from_raw(account.gid))
}
