//! `file:PATH`: one peer a line, read again when the file changes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::lines::{List, MAX_BYTES};
use super::names::{Names, RESOLVE_EVERY};
use super::{Refresh, Refreshed, Signal, Source};
use crate::discovery::logins::PeerLogin;
use crate::file_stamp::Stamp;
use crate::resolver::Resolver;

/// A file of peers. Checked every two seconds, which costs one `stat`; read when its time, length or inode changed,
/// and its names are looked up once a minute. Bad lines are logged with their number, the others count.
#[derive(Debug)]
pub struct FileSource {
    name: String,
    path: PathBuf,
    default_port: u16,
    names: Names,
    /// What was read last. `None` when it must be read.
    read: Option<Content>,
    resolved_at: Option<Instant>,
}

impl FileSource {
    /// The file at `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, default_port: u16, resolver: Resolver) -> Self {
        let path = path.into();
        Self {
            name: format!("file:{}", path.display()),
            path,
            default_port,
            names: Names::new(resolver),
            read: None,
            resolved_at: None,
        }
    }

    /// Reads the file if it changed; says whether it did.
    fn read_changes(&mut self) -> io::Result<bool> {
        let stamp = Stamp::of(&std::fs::metadata(&self.path)?);
        if let Some(last) = &self.read
            && last.stamp == stamp
            && last.settled
        {
            return Ok(false);
        }
        let (stamp, text) = self.load()?;
        let settled = stamp.is_settled();
        let path = self.path.display();
        let mut complaints = Vec::new();
        let list = List::parse(&text, self.default_port, |line, message| {
            complaints.push(format!("{path}:{line}: {message}"));
        });
        if let Some(last) = &mut self.read
            && last.list == list
        {
            last.stamp = stamp;
            last.settled = settled;
            return Ok(false);
        }
        for complaint in complaints {
            log::warn!("{complaint}");
        }
        if let Some(more) = list.more_bad() {
            log::warn!("{path}: {more}");
        }
        if list.left_out > 0 {
            log::warn!("{path}: too long, {} peers are left out", list.left_out);
        }
        self.read = Some(Content {
            stamp,
            settled,
            list,
        });
        Ok(true)
    }

    fn load(&self) -> io::Result<(Stamp, Vec<u8>)> {
        // Without NONBLOCK, opening a pipe would wait for somebody to write.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file: File = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let stamp = Stamp::of(&metadata);
        let mut text = Vec::new();
        file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
        if text.len() > MAX_BYTES {
            return Err(io::Error::other("larger than 16 MiB"));
        }
        Ok((stamp, text))
    }
}

impl Source for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn refresh(&mut self, how: Refresh, signal: &mut Signal) -> Refreshed {
        if how == Refresh::Requested {
            self.read = None;
        }
        let changed = match self.read_changes() {
            Ok(changed) => changed,
            Err(error) => {
                self.read = None;
                return Refreshed::Failed(format!("cannot be read: {error}"));
            }
        };
        let Some(Content { list, .. }) = &self.read else {
            return Refreshed::Unchanged;
        };
        let stale = !list.names.is_empty()
            && self
                .resolved_at
                .is_none_or(|resolved| resolved.elapsed() >= RESOLVE_EVERY);
        if !changed && !stale {
            return Refreshed::Unchanged;
        }
        let (found, error) = self.names.resolve(&list.names, signal);
        self.resolved_at = Some(Instant::now());
        let peers: Vec<SocketAddr> = list.addresses.iter().copied().chain(found).collect();
        Refreshed::List { peers, error }
    }

    fn logins(&self) -> Vec<PeerLogin> {
        let read = self.read.as_ref();
        read.map_or_else(Vec::new, |read| self.names.logins(&read.list.logins))
    }

    fn pause(&self) -> Option<Duration> {
        Some(CHECK_EVERY)
    }
}

/// How soon a change is seen.
const CHECK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Content {
    stamp: Stamp,
    /// Whether a later change is sure to change the stamp.
    settled: bool,
    list: List,
}

#[cfg(test)]
mod tests {
    use super::super::signal::{Handle, pair};
    use super::*;
    use std::fs;
    use std::time::SystemTime;

    fn source(text: &[u8]) -> (FileSource, tempfile::TempDir, Signal, Handle) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        fs::write(&path, text).unwrap();
        let (handle, signal) = pair().unwrap();
        let source = FileSource::new(path, 1080, Resolver::default());
        (source, directory, signal, handle)
    }

    fn list(texts: &[&str]) -> Refreshed {
        Refreshed::List {
            peers: texts.iter().map(|text| text.parse().unwrap()).collect(),
            error: None,
        }
    }

    #[test]
    fn good_lines_count_whatever_else_is_there() {
        let text =
            b"\xef\xbb\xbf1.2.3.4\r\n# comment\r\n\r\n<html>\r\n[::1]:5 # here\r\nx:0\r\n407::1";
        let (mut source, _directory, mut signal, _handle) = source(text);
        assert_eq!(
            source.refresh(Refresh::Requested, &mut signal),
            list(&["1.2.3.4:1080", "[::1]:5", "[407::1]:1080"])
        );
    }

    #[test]
    fn a_change_is_seen_and_a_rewrite_of_the_same_is_none() {
        let (mut source, _directory, mut signal, _handle) = source(b"1.2.3.4\n");
        source.refresh(Refresh::Requested, &mut signal);
        assert_eq!(
            source.refresh(Refresh::Due, &mut signal),
            Refreshed::Unchanged
        );
        // The same length, and perhaps the same time.
        fs::write(&source.path, b"1.2.3.5\n").unwrap();
        assert_eq!(
            source.refresh(Refresh::Due, &mut signal),
            list(&["1.2.3.5:1080"])
        );
        fs::write(&source.path, b"1.2.3.5 #\n").unwrap();
        assert_eq!(
            source.refresh(Refresh::Due, &mut signal),
            Refreshed::Unchanged
        );
        assert_eq!(
            source.refresh(Refresh::Requested, &mut signal),
            list(&["1.2.3.5:1080"]),
            "asked for"
        );
    }

    #[test]
    fn an_old_file_is_not_read_twice() {
        let (mut source, _directory, mut signal, _handle) = source(b"1.2.3.4\n");
        let old = SystemTime::now() - Duration::from_secs(60);
        File::options()
            .write(true)
            .open(&source.path)
            .unwrap()
            .set_modified(old)
            .unwrap();
        source.refresh(Refresh::Requested, &mut signal);
        assert!(source.read.as_ref().unwrap().settled);
        assert!(!source.read_changes().unwrap());
    }

    #[test]
    fn an_empty_file_is_an_empty_list() {
        let (mut source, _directory, mut signal, _handle) = source(b"");
        assert_eq!(source.refresh(Refresh::Requested, &mut signal), list(&[]));
    }

    #[test]
    fn what_cannot_be_read_fails_and_can_come_back() {
        let (mut source, directory, mut signal, _handle) = source(b"1.2.3.4\n");
        fs::remove_file(&source.path).unwrap();
        let failed = |refreshed: Refreshed| match refreshed {
            Refreshed::Failed(error) => error,
            other => panic!("{other:?}"),
        };
        let error = failed(source.refresh(Refresh::Requested, &mut signal));
        assert!(error.starts_with("cannot be read: "), "{error}");
        fs::create_dir(&source.path).unwrap();
        let error = failed(source.refresh(Refresh::Due, &mut signal));
        assert_eq!(error, "cannot be read: not a regular file");
        fs::remove_dir(&source.path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &source.path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let error = failed(source.refresh(Refresh::Due, &mut signal));
        assert_eq!(error, "cannot be read: not a regular file");
        fs::remove_file(&source.path).unwrap();
        File::create(&source.path)
            .unwrap()
            .set_len(20 << 20)
            .unwrap();
        let error = failed(source.refresh(Refresh::Due, &mut signal));
        assert_eq!(error, "cannot be read: larger than 16 MiB");
        fs::write(&source.path, "1.2.3.4").unwrap();
        assert_eq!(
            source.refresh(Refresh::Due, &mut signal),
            list(&["1.2.3.4:1080"])
        );
        drop(directory);
    }

    #[test]
    fn names_are_looked_up_again_later_only() {
        let (mut source, _directory, mut signal, _handle) = source(b"localhost:5\n");
        let Refreshed::List { peers, error: None } =
            source.refresh(Refresh::Requested, &mut signal)
        else {
            panic!("localhost is known everywhere");
        };
        assert!(
            peers
                .iter()
                .all(|peer| peer.ip().is_loopback() && peer.port() == 5)
        );
        assert!(!peers.is_empty());
        assert_eq!(
            source.refresh(Refresh::Due, &mut signal),
            Refreshed::Unchanged
        );
        source.resolved_at = Instant::now().checked_sub(RESOLVE_EVERY);
        assert!(matches!(
            source.refresh(Refresh::Due, &mut signal),
            Refreshed::List { .. }
        ));
    }
}
