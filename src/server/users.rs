//! Who may use a server: users from the command line and from a file, and delays for those who guess.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::file_stamp::Stamp;
use crate::wire::user_password::{Credentials, CredentialsError, Request};

/// A user as text: `NAME:PASSWORD`, where the password may have colons. Nothing of it is in the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User(Credentials);

/// Why a text is no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserError {
    /// It has no colon.
    NoColon,
    /// Name or password are not what can be sent.
    Credentials(CredentialsError),
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoColon => f.write_str("not NAME:PASSWORD"),
            Self::Credentials(error) => error.fmt(f),
        }
    }
}

impl Error for UserError {}

impl FromStr for User {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let (name, password) = text.split_once(':').ok_or(UserError::NoColon)?;
        let credentials = Credentials::new(name, password);
        credentials.map(Self).map_err(UserError::Credentials)
    }
}

/// The users of a server; by default nobody. Clones share them.
#[derive(Clone, Default)]
pub struct Users {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    fixed: Vec<Credentials>,
    file: Option<UsersFile>,
    failures: Failures,
}

/// What became of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// Whether they are right.
    pub verdict: Verdict,
    /// How long the client has to wait for the verdict, for failures of its address.
    pub delay: Duration,
}

/// Whether credentials are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are a user's.
    Right,
    /// They are not.
    Wrong,
}

impl Users {
    /// These users, and those of a file.
    ///
    /// # Errors
    /// The file cannot be used; later a file that cannot be used leaves the users as they were.
    pub fn new(users: Vec<User>, file: Option<&Path>) -> Result<Self, UsersFileError> {
        let state = State {
            fixed: users.into_iter().map(|user| user.0).collect(),
            file: file.map(UsersFile::open).transpose()?,
            failures: Failures::default(),
        };
        Ok(Self {
            shared: Arc::new(Mutex::new(state)),
        })
    }

    /// Judges what a client sent; a wrong one is counted for its address. May look at the file, once a second at most.
    pub fn judge(&self, request: &Request, client: Option<IpAddr>, now: Instant) -> Judgement {
        let mut state = self.lock();
        if let Some(file) = &mut state.file {
            file.refresh(now);
        }
        // Every one is compared: time must not tell how far down the list a name is.
        let right = state
            .all()
            .fold(false, |right, user| right | user.matches(request));
        let Some(client) = client else {
            let verdict = if right {
                Verdict::Right
            } else {
                Verdict::Wrong
            };
            let delay = Duration::ZERO;
            return Judgement { verdict, delay };
        };
        let delay = state.failures.delay(client, now);
        if right {
            state.failures.forget(client);
            return Judgement {
                verdict: Verdict::Right,
                delay,
            };
        }
        let failures = state.failures.note(client, now);
        if failures.is_power_of_two() {
            // A name that nobody has may be a password in the wrong field.
            let known = state.all().any(|user| user.user() == request.user());
            drop(state);
            let name = match known {
                true => format!("user {:?}", String::from_utf8_lossy(request.user())),
                false => "an unknown user".into(),
            };
            log::warn!("{client}: wrong password for {name} ({failures} failures from there)");
        }
        let verdict = Verdict::Wrong;
        Judgement { verdict, delay }
    }

    /// Reads the file again, whether it changed or not.
    pub fn reload(&self) {
        if let Some(file) = &mut self.lock().file {
            file.stamp = None;
            file.checked = None;
            file.refresh(Instant::now());
        }
    }

    /// A number that changes when the users do, other than by being judged. May look at the file, once a second at most.
    #[cfg(feature = "socks6")]
    pub(super) fn revision(&self, now: Instant) -> u64 {
        let mut state = self.lock();
        state.file.as_mut().map_or(0, |file| {
            file.refresh(now);
            file.revision
        })
    }

    /// Whether judging may look at a file.
    pub(super) fn have_file(&self) -> bool {
        self.lock().file.is_some()
    }

    /// How many users there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().all().count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").finish_non_exhaustive()
    }
}

impl State {
    fn all(&self) -> impl Iterator<Item = &Credentials> {
        let of_file = self.file.iter().flat_map(|file| &file.users);
        self.fixed.iter().chain(of_file)
    }
}

/// `name:password` a line; empty lines and those that start with `#` are none.
struct UsersFile {
    path: PathBuf,
    users: Vec<Credentials>,
    /// What was read last; `None` when it has to be read again.
    stamp: Option<Stamp>,
    checked: Option<Instant>,
    /// How often the users have changed.
    revision: u64,
    /// Said about it last, so that it is said once.
    complaint: Option<String>,
}

/// A file of users cannot be used. Nothing of what is in it is told.
#[derive(Debug)]
pub struct UsersFileError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Io(io::Error),
    Line(usize, UserError),
}

impl fmt::Display for UsersFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::Io(_) => write!(f, "users file {path}"),
            Problem::Line(line, _) => write!(f, "users file {path}:{line}"),
        }
    }
}

impl Error for UsersFileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            Problem::Io(error) => Some(error),
            Problem::Line(_, error) => Some(error),
        }
    }
}

impl UsersFile {
    fn open(path: &Path) -> Result<Self, UsersFileError> {
        let mut file = Self {
            path: path.to_owned(),
            users: Vec::new(),
            stamp: None,
            checked: None,
            revision: 0,
            complaint: None,
        };
        file.read().map_err(|problem| file.error(problem))?;
        // Said at the start only. A group may be meant: a service often reads what its administrators write.
        if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & READ_BY_OTHERS != 0) {
            let path = path.display();
            log::warn!(
                "everybody on this machine can read the passwords in {path}: chmod o-r {path}"
            );
        }
        Ok(file)
    }

    fn error(&self, problem: Problem) -> UsersFileError {
        UsersFileError {
            path: self.path.clone(),
            problem,
        }
    }

    fn refresh(&mut self, now: Instant) {
        if self.checked.is_some_and(|at| now < at + CHECK_EVERY) {
            return;
        }
        self.checked = Some(now);
        match self.read() {
            Ok(Changed::No) => {}
            Ok(Changed::Yes) => {
                self.complaint = None;
                self.revision += 1;
                log::info!("{}: {} users", self.path.display(), self.users.len());
            }
            Err(problem) => {
                let error = self.error(problem);
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                let complaint = format!("{error}: {cause}; the users stay as they were");
                if self.complaint.as_ref() != Some(&complaint) {
                    log::warn!("{complaint}");
                    self.complaint = Some(complaint);
                }
            }
        }
    }

    /// Reads it if it changed.
    fn read(&mut self) -> Result<Changed, Problem> {
        let metadata = fs::metadata(&self.path).map_err(Problem::Io)?;
        // Opening a pipe would wait for somebody to write.
        if !metadata.is_file() {
            return Err(Problem::Io(io::Error::other("not a regular file")));
        }
        if metadata.len() > MOST_BYTES {
            return Err(Problem::Io(io::Error::other("larger than 1 MiB")));
        }
        let stamp = Stamp::of(&metadata);
        if self.stamp.as_ref() == Some(&stamp) && stamp.is_settled() {
            return Ok(Changed::No);
        }
        let mut text = String::new();
        let file = File::open(&self.path).map_err(Problem::Io)?;
        file.take(MOST_BYTES)
            .read_to_string(&mut text)
            .map_err(Problem::Io)?;
        let users = parse(&text).map_err(|(line, error)| Problem::Line(line, error))?;
        let changed = match self.stamp.is_none() || self.users != users {
            true => Changed::Yes,
            false => Changed::No,
        };
        self.users = users;
        self.stamp = Some(stamp);
        Ok(changed)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Changed {
    Yes,
    No,
}

/// All users, or the first bad line.
fn parse(text: &str) -> Result<Vec<Credentials>, (usize, UserError)> {
    let mut users = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if !line.trim().is_empty() && !line.starts_with('#') {
            let user: User = line.parse().map_err(|error| (number, error))?;
            users.push(user.0);
        }
    }
    Ok(users)
}

/// Failures by address, the /64 of IPv6.
#[derive(Debug, Default)]
struct Failures {
    table: HashMap<IpAddr, (u32, Instant)>,
}

impl Failures {
    /// What the next verdict has to wait.
    fn delay(&self, client: IpAddr, now: Instant) -> Duration {
        let failures = match self.table.get(&source(client)) {
            Some(entry) => left(entry, now),
            None => 0,
        };
        match failures.checked_sub(FREE_FAILURES) {
            None => Duration::ZERO,
            Some(more) => (DELAY_FIRST * 2_u32.saturating_pow(more.min(16))).min(DELAY_MOST),
        }
    }

    /// One more; how many there are.
    fn note(&mut self, client: IpAddr, now: Instant) -> u32 {
        let client = source(client);
        if self.table.len() >= MOST_SOURCES && !self.table.contains_key(&client) {
            self.table.retain(|_, entry| left(entry, now) > 0);
            // All are fresh: the oldest one makes room.
            if self.table.len() >= MOST_SOURCES
                && let Some(oldest) = self.table.iter().min_by_key(|(_, (_, at))| *at)
            {
                let oldest = *oldest.0;
                self.table.remove(&oldest);
            }
        }
        let entry = self.table.entry(client).or_insert((0, now));
        *entry = (left(entry, now).saturating_add(1), now);
        entry.0
    }

    fn forget(&mut self, client: IpAddr) {
        self.table.remove(&source(client));
    }
}

/// Failures that still count: they halve with each [`HALVES_EVERY`].
fn left((failures, at): &(u32, Instant), now: Instant) -> u32 {
    let halvings = now.saturating_duration_since(*at).as_secs() / HALVES_EVERY.as_secs();
    u32::try_from(halvings)
        .ok()
        .and_then(|halvings| failures.checked_shr(halvings))
        .unwrap_or(0)
}

fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// How soon a change of the file is seen, when somebody logs in.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// More than two thousand of the longest users.
const MOST_BYTES: u64 = 1 << 20;

/// S_IROTH.
const READ_BY_OTHERS: u32 = 0o004;

/// A typing mistake costs nothing.
const FREE_FAILURES: u32 = 3;

/// The first delay; each further failure doubles it up to the most, which leaves room in the time limit of a handshake.
const DELAY_FIRST: Duration = Duration::from_millis(250);
const DELAY_MOST: Duration = Duration::from_secs(5);

/// How fast failures are forgotten.
const HALVES_EVERY: Duration = Duration::from_secs(60);

/// Sources of failures that are remembered: some 64 KiB.
const MOST_SOURCES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user: &[u8], password: &[u8]) -> Request {
        let length = |bytes: &[u8]| vec![u8::try_from(bytes.len()).unwrap()];
        let bytes = [&[1][..], &length(user), user, &length(password), password].concat();
        Request::decode(&bytes).unwrap().unwrap().0
    }

    fn users(texts: &[&str]) -> Users {
        let users = texts.iter().map(|text| text.parse().unwrap()).collect();
        Users::new(users, None).unwrap()
    }

    fn is_right(users: &Users, user: &[u8], password: &[u8]) -> bool {
        let judgement = users.judge(&request(user, password), None, Instant::now());
        judgement.verdict == Verdict::Right
    }

    #[test]
    fn any_user_with_exactly_the_own_password() {
        let long = "x".repeat(255);
        let users = users(&["ada:secret", "bob:a:b", &format!("{long}:{long}")]);
        assert_eq!(users.count(), 3);
        for (user, password, right) in [
            (&b"ada"[..], &b"secret"[..], true),
            (b"bob", b"a:b", true),
            (long.as_bytes(), long.as_bytes(), true),
            (b"ada", b"a:b", false),
            (b"bob", b"secret", false),
            (b"ada", b"secret\0", false),
            (b"ada\0", b"secret", false),
            (b"Ada", b"secret", false),
            (b"ada", b"", false),
            (b"", b"secret", false),
            (b"", b"", false),
            (b"\xff\xfe", b"\xff", false),
        ] {
            assert_eq!(is_right(&users, user, password), right, "{user:?}");
        }
    }

    #[test]
    fn text_of_users() {
        for (text, error) in [
            ("ada", UserError::NoColon),
            ("", UserError::NoColon),
            (":x", UserError::Credentials(CredentialsError::EmptyUser)),
            (
                "x:",
                UserError::Credentials(CredentialsError::EmptyPassword),
            ),
            ("x:\0", UserError::Credentials(CredentialsError::Nul)),
        ] {
            assert_eq!(text.parse::<User>(), Err(error), "{text:?}");
        }
        let shown = format!("{:?}", "ada:hunter2".parse::<User>().unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        let shown = format!("{:?}", users(&["ada:hunter2"]));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn lines_of_a_file() {
        let users = parse("# all\n\nada:one\r\nbob: two \n  \n").unwrap();
        assert_eq!(users[0], Credentials::new("ada", "one").unwrap());
        assert_eq!(users[1], Credentials::new("bob", " two ").unwrap());
        assert_eq!(users.len(), 2);
        assert_eq!(parse("ada:one\nbob\n"), Err((2, UserError::NoColon)));
    }

    #[test]
    fn a_file_is_read_again_when_it_changed_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        assert!(Users::new(Vec::new(), Some(&path)).is_err());
        fs::write(&path, "ada:one\n").unwrap();
        let users = Users::new(vec!["eve:fixed".parse().unwrap()], Some(&path)).unwrap();
        assert!(is_right(&users, b"ada", b"one") && is_right(&users, b"eve", b"fixed"));
        let mut later = Instant::now();
        for (text, one, two) in [
            ("ada:two\n", false, true),
            ("ada:three\nsecretline\n", false, true),
            ("ada:one\n", true, false),
        ] {
            fs::write(&path, text).unwrap();
            later += CHECK_EVERY;
            let right = |password| {
                let judgement = users.judge(&request(b"ada", password), None, later);
                judgement.verdict == Verdict::Right
            };
            assert_eq!((right(b"one"), right(b"two")), (one, two), "{text}");
        }
        fs::remove_file(&path).unwrap();
        users.reload();
        assert!(is_right(&users, b"ada", b"one"));
        fs::write(&path, "ada:one\nhunter2\n").unwrap();
        let error = Users::new(Vec::new(), Some(&path)).unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.source());
        assert!(
            shown.contains(":2") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn guessing_gets_slower_and_is_forgotten_with_time() {
        let users = users(&["ada:secret"]);
        let client = Some("2001:db8::1".parse().unwrap());
        let neighbour = Some("2001:db8::2".parse().unwrap());
        let other = Some("192.0.2.1".parse().unwrap());
        let (wrong, right) = (request(b"ada", b"guess"), request(b"ada", b"secret"));
        let now = Instant::now();
        let delays: Vec<_> = (0..12)
            .map(|_| users.judge(&wrong, client, now).delay.as_millis())
            .collect();
        let expected = [0, 0, 0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000];
        assert_eq!(delays, expected);
        assert_eq!(users.judge(&right, other, now).delay, Duration::ZERO);
        let later = now + 2 * HALVES_EVERY;
        assert_eq!(users.judge(&right, neighbour, later).delay, DELAY_FIRST);
        assert_eq!(users.judge(&right, client, later).delay, Duration::ZERO);
    }

    #[test]
    fn the_table_of_failures_is_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for number in 0..3000_u32 {
            failures.note(IpAddr::from(number.to_be_bytes()), now);
            assert!(failures.table.len() <= MOST_SOURCES);
        }
        let newest = IpAddr::from(2999_u32.to_be_bytes());
        assert!(failures.table.contains_key(&newest));
        let another = IpAddr::from(4000_u32.to_be_bytes());
        failures.note(another, now + 32 * HALVES_EVERY);
        assert_eq!(failures.table.len(), 1);
    }
}
