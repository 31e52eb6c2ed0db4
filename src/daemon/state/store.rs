//! The state file on disk: read once, replaced as a whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::file::{self, MOST_BYTES, Unusable};

/// Where the state is kept.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    there: There,
}

/// What is at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    /// Nothing, or a file that was read or written.
    Ours,
    /// A state file that tells nothing: it is put aside before it is replaced.
    Unusable,
    /// Something else, which is not ours to replace.
    Foreign,
}

/// What a file told.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The addresses in it.
    pub(super) addresses: Vec<SocketAddr>,
    /// How long ago it was written, as far as the clock can be believed.
    pub(super) age: Option<Duration>,
    /// Why it told nothing, for the log.
    pub(super) problem: Option<String>,
}

impl Store {
    /// Reads what is there.
    pub(super) fn open(path: &Path) -> (Self, Found) {
        // What a link points to is replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (there, found) = match read(&path) {
            Ok((bytes, age)) => match file::decode(&bytes) {
                Ok(addresses) => {
                    let found = Found {
                        addresses,
                        age,
                        problem: None,
                    };
                    (There::Ours, found)
                }
                Err(error @ Unusable::Foreign) => (There::Foreign, problem(&error, ALONE)),
                Err(error) if bytes.is_empty() => (There::Ours, problem(&error, STARTED)),
                Err(error) => {
                    let aside = aside(&path);
                    let then = format!("{STARTED}; it will be kept as {}", aside.display());
                    (There::Unusable, problem(&error, &then))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let found = match directory(&path).is_dir() {
                    true => Found::default(),
                    false => problem(&"its directory does not exist", STARTED),
                };
                (There::Ours, found)
            }
            Err(error) => (There::Foreign, problem(&error, ALONE)),
        };
        (Self { path, there }, found)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a place to write to.
    pub(super) fn is_writable(&self) -> bool {
        self.there != There::Foreign
    }

    /// Whether the system would let a file be written there now, as far as it tells without one being written.
    ///
    /// # Errors
    /// Why it would not: read-only, not ours.
    pub(super) fn check(&self) -> io::Result<()> {
        if directory(&self.path).is_dir() {
            access(directory(&self.path), Access::WRITE_OK)?;
        }
        Ok(())
    }

    /// Replaces the file: whatever happens, and if the power fails, either the old one or the new one is there.
    ///
    /// # Errors
    /// What the system says; the old file is then as it was.
    pub(super) fn write(&mut self, addresses: &[SocketAddr]) -> io::Result<()> {
        if !self.is_writable() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let new = beside(&self.path, ".new");
        let result = write_new(&new, file::encode(addresses).as_bytes()).and_then(|()| {
            if self.there == There::Unusable {
                fs::rename(&self.path, aside(&self.path))?;
                self.there = There::Ours;
            }
            fs::rename(&new, &self.path)
        });
        if result.is_err() {
            // Not there, or of no use to anybody.
            let _ = fs::remove_file(&new);
            return result;
        }
        // The new name is in the directory, which some file systems cannot be asked to write.
        match File::open(directory(&self.path)).and_then(|directory| directory.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
            _ => Ok(()),
        }
    }
}

fn problem(error: &dyn std::fmt::Display, then: &str) -> Found {
    Found {
        problem: Some(format!("{error}: {then}")),
        ..Found::default()
    }
}

/// The bytes of a regular file, one more than it may have at most, and its age.
fn read(path: &Path) -> io::Result<(Vec<u8>, Option<Duration>)> {
    // Opening a pipe for reading would wait for somebody who writes.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let modified = file.metadata()?.modified().ok();
    let mut bytes = Vec::new();
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes, modified.and_then(|modified| modified.elapsed().ok())))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let create = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    let mut file = match create() {
        // Of a run that was killed while it wrote.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()?
        }
        result => result?,
    };
    file.write_all(bytes)?;
    file.sync_all()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn aside(path: &Path) -> PathBuf {
    beside(path, ".bad")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

const STARTED: &str = "started without it";
const ALONE: &str = "it is left alone, and nothing is remembered";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::{TempDir, tempdir};

    use super::*;

    fn two() -> Vec<SocketAddr> {
        ["[407::1]:1080", "10.1.2.3:9050"]
            .map(|text| text.parse().unwrap())
            .into()
    }

    fn folder() -> (TempDir, PathBuf) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("state");
        (folder, path)
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (folder, path) = folder();
        let (mut store, found) = Store::open(&path);
        assert!(found.problem.is_none() && found.addresses.is_empty());
        store.write(&two()).unwrap();
        store.write(&two()).unwrap();
        assert_eq!(names(&folder), ["state"]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_, found) = Store::open(&path);
        assert_eq!(found.addresses, two());
        assert!(found.problem.is_none() && found.age.is_some());
    }

    #[test]
    fn a_bad_file_is_named_and_kept_aside() {
        let whole = file::encode(&two());
        for (bytes, named) in [
            (&whole.as_bytes()[..30], "its end is missing"),
            (b"sockhop-state 9\nx\n".as_slice(), "another version"),
            (&[0; 64], "its end is missing"),
        ] {
            let (folder, path) = folder();
            fs::write(&path, bytes).unwrap();
            let (mut store, found) = Store::open(&path);
            let problem = found.problem.unwrap();
            assert!(problem.contains(named), "{problem}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "not touched by looking");
            store.write(&two()).unwrap();
            assert_eq!(names(&folder), ["state", "state.bad"]);
            assert_eq!(fs::read(aside(&path)).unwrap(), bytes);
            store.write(&two()[..1]).unwrap();
            assert_eq!(fs::read(aside(&path)).unwrap(), bytes, "once");
            assert_eq!(Store::open(&path).1.addresses, two()[..1]);
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let (folder, path) = folder();
        fs::write(&path, "root:x:0:0\n").unwrap();
        for path in [path.as_path(), folder.path()] {
            let (mut store, found) = Store::open(path);
            assert!(found.problem.unwrap().contains("left alone"));
            assert!(!store.is_writable());
            store.write(&two()).unwrap_err();
        }
        assert_eq!(fs::read(&path).unwrap(), b"root:x:0:0\n");
        assert_eq!(names(&folder), ["state"]);
    }

    #[test]
    fn an_empty_file_is_simply_filled() {
        let (folder, path) = folder();
        fs::write(&path, "").unwrap();
        let (mut store, _) = Store::open(&path);
        store.write(&two()).unwrap();
        assert_eq!(names(&folder), ["state"]);
    }

    #[test]
    fn a_link_stays_one() {
        let (folder, path) = folder();
        let link = folder.path().join("link");
        fs::write(&path, "").unwrap();
        symlink(&path, &link).unwrap();
        Store::open(&link).0.write(&two()).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Store::open(&path).1.addresses, two());
    }

    #[test]
    fn a_write_that_was_killed_leaves_nothing_in_the_way() {
        let (folder, path) = folder();
        // A link that somebody put there is replaced, not followed.
        let precious = folder.path().join("precious");
        fs::write(&precious, "data").unwrap();
        symlink(&precious, beside(&path, ".new")).unwrap();
        Store::open(&path).0.write(&two()).unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"data");
        assert_eq!(names(&folder), ["precious", "state"]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let (folder, path) = folder();
        let (mut store, _) = Store::open(&path);
        store.write(&two()).unwrap();
        // Something that cannot be replaced by a file.
        let blocking = beside(&path, ".new");
        fs::create_dir(&blocking).unwrap();
        store.write(&two()[..1]).unwrap_err();
        fs::remove_dir(&blocking).unwrap();
        assert_eq!(Store::open(&path).1.addresses, two());
        store.write(&two()[..1]).unwrap();
        assert_eq!(Store::open(&path).1.addresses, two()[..1]);

        let (mut store, found) = Store::open(&folder.path().join("none/state"));
        assert!(found.problem.unwrap().contains("does not exist"));
        assert_eq!(
            store.write(&two()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
