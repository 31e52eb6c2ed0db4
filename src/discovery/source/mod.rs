//! Where peers come from: lists given by hand, files, commands, the daemons of overlays, the kernel's routes.
//!
//! A [`Source`] knows how to get its list once, blocking. A [`SourceThread`] does so again and again on a thread of its own
//! and hands every new list on. A source that fails keeps its last good list.
//!
//! ```text
//! source --refresh--> SourceThread --SourceUpdate--> callback --> table.set_source
//!                         ^ refresh now, stop: SourceThread's handle
//! ```

mod ask;
pub mod exec;
pub mod file;
pub mod fixed;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
mod json;
pub mod lines;
pub mod mycelium;
mod names;
mod roster;
pub mod routes;
mod signal;
pub mod tailscale;
pub mod yggdrasil;

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use super::logins::PeerLogin;
use super::table::SourceId;
use crate::threads;

pub use signal::Signal;
use signal::{Handle, pair};

/// Something that names peers.
pub trait Source: Send {
    /// The name shown to users: `flag`, `file:/etc/peers`, `exec:wg show`.
    fn name(&self) -> &str;

    /// Gets the list, blocking. Ends early when `signal` says stop; what it returns then does not count.
    ///
    /// `how` says whether what did not change needs to be read again.
    fn refresh(&mut self, how: Refresh, signal: &mut Signal) -> Refreshed;

    /// The logins for some of the peers, as of the last list.
    fn logins(&self) -> Vec<PeerLogin> {
        Vec::new()
    }

    /// How long after the end of a refresh the next one starts; `None` for never.
    fn pause(&self) -> Option<Duration>;
}

/// Why a source is asked for its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// It is the first time, or a user asked for it.
    Requested,
    /// Time has passed.
    Due,
}

/// What a refresh came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// Nothing new.
    Unchanged,
    /// The list as it is now, and what is wrong with a part of it (a name that was not found).
    List {
        /// The addresses, repetitions allowed.
        peers: Vec<SocketAddr>,
        /// What is missing and why.
        error: Option<String>,
    },
    /// No list, for this reason: the last one stays.
    Failed(String),
    /// Nobody is there who could give a list, which was to be expected: the last one stays, and nobody is warned unless it
    /// named somebody.
    Absent(String),
}

impl Refreshed {
    /// The new list, if there is one.
    #[must_use]
    pub fn peers(&self) -> &[SocketAddr] {
        match self {
            Self::List { peers, .. } => peers,
            Self::Unchanged | Self::Failed(_) | Self::Absent(_) => &[],
        }
    }
}

/// Whether the daemon that a source asks has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A user named it.
    Required,
    /// It is looked for in case that it is there.
    Optional,
}

/// What a source names now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceUpdate {
    /// Which source.
    pub source: SourceId,
    /// Its whole list; after a failure, the last good one.
    pub peers: Vec<SocketAddr>,
    /// The logins for some of them.
    pub logins: Vec<PeerLogin>,
    /// What went wrong, if something did.
    pub error: Option<String>,
    /// Nobody is there who could give a list, and that is no fault.
    pub absent: bool,
}

/// A source on its own thread. Dropping it stops the thread, killing what the source runs, and waits for its end half a
/// second at most.
#[derive(Debug)]
pub struct SourceThread {
    id: SourceId,
    name: String,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SourceThread {
    /// Starts to refresh `source`, first at once. `send` is called on the source's thread, with the first list (also
    /// when it failed) and whenever the list or the error changed.
    ///
    /// # Errors
    /// No thread or no descriptor left.
    pub fn spawn(
        id: SourceId,
        source: Box<dyn Source>,
        send: Box<dyn Fn(SourceUpdate) + Send>,
    ) -> io::Result<Self> {
        let (handle, signal) = pair()?;
        let name = source.name().to_owned();
        let work = Box::new(move || run(id, source, signal, send));
        let thread = threads::start(&name.replace('\0', " "), Some(STACK_SIZE), work)?;
        Ok(Self {
            id,
            name,
            handle,
            thread: Some(thread),
        })
    }

    /// The source's number.
    #[must_use]
    pub const fn id(&self) -> SourceId {
        self.id
    }

    /// The source's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has it end, and does not wait for that.
    pub fn stop(&self) {
        self.handle.stop();
    }

    /// Asks for a refresh at once (SIGHUP). The callback is called afterwards even if nothing changed.
    pub fn refresh_now(&self) {
        self.handle.request();
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.handle.stop();
        // Only a file system or a callback that hangs can make it late; then the thread ends by itself later.
        if self.handle.wait_for_end(STOP_PATIENCE)
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn run(
    id: SourceId,
    mut source: Box<dyn Source>,
    mut signal: Signal,
    send: Box<dyn Fn(SourceUpdate) + Send>,
) {
    let mut last: Option<SourceUpdate> = None;
    let mut how = Refresh::Requested;
    loop {
        let refreshed = source.refresh(how, &mut signal);
        if signal.is_stopped() {
            return;
        }
        let kept = |last: &Option<SourceUpdate>| last.as_ref().map(|last| last.peers.clone());
        let absent = matches!(refreshed, Refreshed::Absent(_));
        let (peers, error) = match refreshed {
            Refreshed::List { peers, error } => (peers, error),
            Refreshed::Failed(error) | Refreshed::Absent(error) => {
                (kept(&last).unwrap_or_default(), Some(error))
            }
            Refreshed::Unchanged => (
                kept(&last).unwrap_or_default(),
                last.as_ref().and_then(|last| last.error.clone()),
            ),
        };
        let update = SourceUpdate {
            source: id,
            peers,
            logins: source.logins(),
            error,
            absent,
        };
        let changed = last.as_ref() != Some(&update);
        // Once a cause, not whenever the list beside it changes.
        let before = last.as_ref().and_then(|last| last.error.as_ref());
        if let Some(error) = update.error.as_ref().filter(|error| before != Some(*error)) {
            let is_expected = update.absent && update.peers.is_empty();
            let level = match is_expected {
                true => log::Level::Debug,
                false => log::Level::Warn,
            };
            log::log!(level, "{}: {error}", source.name());
        }
        if changed || how == Refresh::Requested {
            send(update.clone());
        }
        last = Some(update);
        how = match signal.wait(source.pause()) {
            signal::Event::Request => Refresh::Requested,
            signal::Event::Nothing => Refresh::Due,
            signal::Event::Stop => return,
        };
    }
}

/// When a daemon is asked again that named these peers. One that names nobody may have just been started.
fn pause_after(peers: &[SocketAddr]) -> Duration {
    match peers {
        [] => ASK_SOON,
        _ => ASK_EVERY,
    }
}

/// How often daemons are asked. What they know changes slowly, and the peers themselves are probed as often.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// The same while a daemon names nobody or does not answer, so that one that is started later is used soon.
const ASK_SOON: Duration = Duration::from_secs(5);

/// For all questions of one refresh together.
const REFRESH_LIMIT: Duration = Duration::from_secs(10);

/// Musl's default. Sources read files and pipes into the heap; names are looked up on the resolver's threads.
const STACK_SIZE: usize = 128 * 1024;

/// How long dropping a [`SourceThread`] may take.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::Resolver;
    use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(20);

    fn start(source: impl Source + 'static) -> (SourceThread, Receiver<SourceUpdate>) {
        let (sender, receiver) = unbounded();
        let send = Box::new(move |update| sender.send(update).unwrap_or_default());
        let id = SourceId::new(3).unwrap();
        (
            SourceThread::spawn(id, Box::new(source), send).unwrap(),
            receiver,
        )
    }

    fn peers(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_file_that_changes_or_vanishes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        std::fs::write(&path, "192.0.2.1\n").unwrap();
        let (thread, updates) = start(file::FileSource::new(&path, 1080, Resolver::default()));
        assert_eq!(thread.name(), format!("file:{}", path.display()));
        let first = updates.recv_timeout(LIMIT).unwrap();
        assert_eq!(first.source, thread.id());
        assert_eq!(
            (first.peers, first.error),
            (peers(&["192.0.2.1:1080"]), None)
        );
        // Without being told to look.
        std::fs::write(&path, "192.0.2.1\n192.0.2.2:5\n").unwrap();
        let both = peers(&["192.0.2.1:1080", "192.0.2.2:5"]);
        loop {
            // A write is two steps, and an empty file may be seen in between.
            let update = updates.recv_timeout(LIMIT).unwrap();
            if update.peers == both {
                break;
            }
        }
        std::fs::remove_file(&path).unwrap();
        thread.refresh_now();
        let kept = updates.recv_timeout(LIMIT).unwrap();
        assert_eq!(kept.peers, both);
        assert!(kept.error.unwrap().starts_with("cannot be read"));
    }

    #[test]
    fn a_command_that_fails_keeps_the_last_list() {
        let directory = tempfile::tempdir().unwrap();
        let flag = directory.path().join("broken");
        let command = format!("test ! -e {} && echo 192.0.2.1", flag.display());
        let (thread, updates) = start(exec::ExecSource::new(command, 1080, Resolver::default()));
        let first = updates.recv_timeout(LIMIT).unwrap();
        assert_eq!((first.peers.len(), first.error), (1, None));
        std::fs::write(&flag, "").unwrap();
        thread.refresh_now();
        let second = updates.recv_timeout(LIMIT).unwrap();
        assert_eq!(second.peers, peers(&["192.0.2.1:1080"]));
        assert_eq!(second.error.unwrap(), "exit status 1");
        // A request is answered also when nothing changed.
        thread.refresh_now();
        updates.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn a_source_that_fails_at_first_says_so() {
        let (_thread, updates) = start(exec::ExecSource::new("exit 4", 1080, Resolver::default()));
        let first = updates.recv_timeout(LIMIT).unwrap();
        assert_eq!(
            (first.peers.len(), first.error.as_deref()),
            (0, Some("exit status 4"))
        );
    }

    #[test]
    fn dropping_it_stops_a_command_and_a_pause() {
        for command in ["sleep 100", "echo 192.0.2.1"] {
            let (thread, updates) =
                start(exec::ExecSource::new(command, 1080, Resolver::default()));
            if command.starts_with("echo") {
                updates.recv_timeout(LIMIT).unwrap();
            }
            let before = Instant::now();
            drop(thread);
            assert!(before.elapsed() < Duration::from_secs(5));
            // The thread is gone, and its callback with it.
            assert_eq!(
                updates.recv_timeout(LIMIT),
                Err(RecvTimeoutError::Disconnected)
            );
        }
    }

    #[test]
    fn flags_with_names_need_no_file() {
        let list = ["localhost:5", "192.0.2.1"]
            .map(|text| lines::parse_line(text, 1080).unwrap().unwrap());
        let (_thread, updates) = start(fixed::FixedSource::new("flag", list, Resolver::default()));
        let update = updates.recv_timeout(LIMIT).unwrap();
        assert!(update.peers.contains(&"192.0.2.1:1080".parse().unwrap()));
        assert!(update.peers.len() >= 2);
    }
}
