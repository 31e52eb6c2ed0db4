//! What a daemon that was started as root gives up before it serves anybody: its user, its groups, its capabilities, and the
//! rest of the file system.

#[cfg_attr(
    not(target_os = "linux"),
    allow(
        dead_code,
        reason = "names are parsed everywhere, and looked up where it is of use"
    )
)]
mod account;
#[cfg(target_os = "linux")]
mod drop;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use self::account::UserName;

/// Whom to become, and where. Nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Privileges {
    /// Who to be from then on. Supplementary groups go too.
    pub user: Option<UserName>,
    /// The directory that is `/` from then on.
    pub root: Option<PathBuf>,
}

/// What is kept although the user is no longer root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// That ports below 1024 may be bound, now and later: a forwarder closes and opens its port.
    pub low_ports: bool,
    /// That connections may be bound to a network interface, which older kernels don't let everybody (before Linux 5.7).
    pub interfaces: bool,
    /// That packets may be marked.
    pub marks: bool,
}

impl Privileges {
    /// Gives up what is to be given up, for good. These sockets are handed over while root can: they belong to the new user
    /// then.
    ///
    /// To be called while the program has one thread: the system knows users per thread, and others would stay what they are.
    ///
    /// # Errors
    /// The user is not known, the system refuses, or root could be had back. Then the process is to end: part may be given up.
    #[cfg(target_os = "linux")]
    pub fn give_up(&self, kept: Kept, sockets: &[&Path]) -> Result<(), PrivilegesError> {
        drop::give_up(self, kept, sockets)
    }

    /// The same where it cannot be done: an error, unless nothing is to be given up.
    ///
    /// # Errors
    /// It cannot be done here.
    #[cfg(not(target_os = "linux"))]
    pub fn give_up(&self, _: Kept, _: &[&Path]) -> Result<(), PrivilegesError> {
        match self.is_nothing() {
            true => Ok(()),
            false => Err(PrivilegesError::NotHere),
        }
    }

    /// Whether there is nothing to give up.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.user.is_none() && self.root.is_none()
    }
}

/// Why privileges could not be given up.
#[derive(Debug)]
pub enum PrivilegesError {
    /// No such user here.
    UnknownUser(String),
    /// No such group here.
    UnknownGroup(String),
    /// A number that is nobody's: it has no group of its own.
    NoGroup(String),
    /// The file of users or groups cannot be read.
    Accounts(PathBuf, io::Error),
    /// The user is root.
    Root,
    /// The directory cannot become the root directory.
    Chroot(PathBuf, io::Error),
    /// The user or group cannot be changed, or a file not be handed over.
    Refused(&'static str, io::Error),
    /// There are other threads, which would stay what they are.
    Threads,
    /// Something was given up that could be had back.
    Reversible,
    /// The folder of a file that is to be written cannot be written to afterwards.
    Unwritable(PathBuf, io::Error),
    /// Not on this system.
    NotHere,
}

impl PrivilegesError {
    /// What to do about it, when that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownUser(_) => {
                "see /etc/passwd; users that are not in it can be given as numbers, UID:GID".into()
            }
            Self::UnknownGroup(_) => {
                "see /etc/group; groups that are not in it can be given as numbers".into()
            }
            Self::NoGroup(user) => format!("give one as well: {user}:GROUP"),
            Self::Accounts(..) => "give numbers: UID:GID".into(),
            Self::Root => "give another user, or leave it out".into(),
            Self::Chroot(_, error) | Self::Refused(_, error)
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                "only root can do this: start it as root, or leave it to who starts it".into()
            }
            Self::Unwritable(folder, _) => format!(
                "it is to be a directory that the new user may write to: mkdir and chown {}",
                folder.display()
            ),
            _ => return None,
        })
    }
}

impl fmt::Display for PrivilegesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownUser(user) => write!(f, "there is no user {user}"),
            Self::UnknownGroup(group) => write!(f, "there is no group {group}"),
            Self::NoGroup(user) => write!(f, "user {user} has no group of its own here"),
            Self::Accounts(path, _) => write!(f, "cannot read {}", path.display()),
            Self::Root => f.write_str("the user to become is root itself"),
            Self::Chroot(path, _) => write!(f, "cannot make {} the root directory", path.display()),
            Self::Refused(what, _) => write!(f, "cannot {what}"),
            Self::Threads => f.write_str("cannot change the user while there are other threads"),
            Self::Reversible => f.write_str("gave up root, and could have it back"),
            Self::Unwritable(folder, _) => {
                write!(f, "--state: cannot write to {} then", folder.display())
            }
            Self::NotHere => {
                f.write_str("the user and the root directory can be changed on Linux only")
            }
        }
    }
}

impl Error for PrivilegesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Accounts(_, error)
            | Self::Chroot(_, error)
            | Self::Refused(_, error)
            | Self::Unwritable(_, error) => Some(error),
            _ => None,
        }
    }
}
