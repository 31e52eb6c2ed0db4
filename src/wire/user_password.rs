//! User and password.
//!
//! What to read: RFC 1929 §2.

use std::error::Error;
use std::fmt;
use std::hint::black_box;

use super::socks5::length_byte;
use super::{DecodeError, reader};

/// A user and a password that can be sent and that a server can demand: 1 to [`Credentials::MAX_LEN`] bytes
/// each, without NUL.
///
/// `Debug` hides the password. `==` takes the same time wherever the difference is.
#[derive(Clone)]
pub struct Credentials {
    user: Box<[u8]>,
    password: Box<[u8]>,
}

/// Why a user and a password can't be [`Credentials`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialsError {
    /// The user is empty.
    EmptyUser,
    /// The password is empty.
    EmptyPassword,
    /// The user is longer than [`Credentials::MAX_LEN`].
    UserTooLong,
    /// The password is longer than [`Credentials::MAX_LEN`].
    PasswordTooLong,
    /// One of them has a NUL byte, where many servers would cut it.
    Nul,
}

/// What a client sent as user and password: 0 to 255 arbitrary bytes each. The RFC asks for at least one, but an
/// empty one must be answered with a refusal, so it is no decoding error. `Debug` hides the password.
#[derive(Clone)]
pub struct Request {
    user: Box<[u8]>,
    password: Box<[u8]>,
}

/// The server's verdict: 0 is success, everything else failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

impl Credentials {
    /// The lengths have one byte each.
    pub const MAX_LEN: usize = 255;

    /// Checks and keeps a user and a password.
    ///
    /// # Errors
    ///
    /// One of them is empty, too long, or has a NUL.
    pub fn new(
        user: impl AsRef<[u8]>,
        password: impl AsRef<[u8]>,
    ) -> Result<Self, CredentialsError> {
        let (user, password) = (user.as_ref(), password.as_ref());
        if user.is_empty() {
            return Err(CredentialsError::EmptyUser);
        }
        if password.is_empty() {
            return Err(CredentialsError::EmptyPassword);
        }
        if user.len() > Self::MAX_LEN {
            return Err(CredentialsError::UserTooLong);
        }
        if password.len() > Self::MAX_LEN {
            return Err(CredentialsError::PasswordTooLong);
        }
        if user.contains(&0) || password.contains(&0) {
            return Err(CredentialsError::Nul);
        }
        Ok(Self {
            user: user.into(),
            password: password.into(),
        })
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// The password. For those who are to use it.
    #[must_use]
    pub(crate) fn password(&self) -> &[u8] {
        &self.password
    }

    /// Whether the client sent exactly these, in a time that does not tell how much of them was right.
    #[must_use]
    pub fn matches(&self, request: &Request) -> bool {
        // No short circuit: a wrong user must cost what a wrong password costs.
        same(&self.user, &request.user) & same(&self.password, &request.password)
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        same(&self.user, &other.user) & same(&self.password, &other.password)
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_user("Credentials", &self.user, f)
    }
}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyUser => write!(f, "the user can't be empty"),
            Self::EmptyPassword => write!(f, "the password can't be empty"),
            Self::UserTooLong => write!(f, "the user has at most {} bytes", Credentials::MAX_LEN),
            Self::PasswordTooLong => {
                write!(f, "the password has at most {} bytes", Credentials::MAX_LEN)
            }
            Self::Nul => write!(f, "user and password can't have a NUL byte"),
        }
    }
}

impl Error for CredentialsError {}

impl Request {
    /// Version, and twice a length with 255 bytes.
    pub const MAX_LEN: usize = 1 + 2 * (1 + 255);

    /// The user, arbitrary bytes: escape it for a log.
    #[must_use]
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// Whether both clients sent the same, in a time that does not tell how much of it is.
    #[cfg(feature = "socks6")]
    pub(crate) fn same(&self, other: &Self) -> bool {
        same(&self.user, &other.user) & same(&self.password, &other.password)
    }

    /// See [`crate::wire`] for the convention.
    ///
    /// # Errors
    ///
    /// [`DecodeError::SubVersion`].
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        reader::decode(input, |reader| {
            check_version(reader.byte()?)?;
            let user = reader.counted()?.into();
            let password = reader.counted()?.into();
            Ok(Self { user, password })
        })
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        for part in [&self.user, &self.password] {
            out.push(length_byte(part.len()));
            out.extend(part.iter());
        }
    }
}

impl From<Credentials> for Request {
    fn from(credentials: Credentials) -> Self {
        let Credentials { user, password } = credentials;
        Self { user, password }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_user("Request", &self.user, f)
    }
}

impl Status {
    /// The message is always this long.
    pub const LEN: usize = 2;

    /// User and password are right.
    pub const ACCEPTED: Self = Self(0);
    /// They are not; the server closes.
    pub const REJECTED: Self = Self(1);

    /// See [`crate::wire`] for the convention.
    ///
    /// # Errors
    ///
    /// [`DecodeError::SubVersion`].
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        reader::decode(input, |reader| {
            check_version(reader.byte()?)?;
            Ok(Self(reader.byte()?))
        })
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.0]);
    }
}

const fn check_version(byte: u8) -> Result<(), DecodeError> {
    match byte {
        VERSION => Ok(()),
        _ => Err(DecodeError::SubVersion(byte)),
    }
}

/// Equality that looks at every possible byte, whatever the lengths and wherever the first difference is.
fn same(ours: &[u8], theirs: &[u8]) -> bool {
    let mut difference = ours.len() ^ theirs.len();
    for at in 0..Credentials::MAX_LEN {
        let ours = ours.get(at).copied().unwrap_or_default();
        let theirs = theirs.get(at).copied().unwrap_or_default();
        difference = black_box(difference | usize::from(ours ^ theirs));
    }
    difference == 0
}

fn debug_user(name: &str, user: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_struct(name)
        .field("user", &format_args!("\"{}\"", user.escape_ascii()))
        .field("password", &format_args!("***"))
        .finish()
}

/// Of the sub-negotiation, not of SOCKS.
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    fn request(user: &[u8], password: &[u8]) -> Request {
        Request {
            user: user.into(),
            password: password.into(),
        }
    }

    #[test]
    fn request_both_ways() {
        let long = [b'x'; 255];
        let long_bytes = [&[1, 255], &long[..], &[255], &long[..]].concat();
        // Without `==` on requests, which would not be safe to offer, their parts are compared.
        let decode = |input: &[u8]| {
            Request::decode(input).map(|decoded| {
                decoded.map(|(request, length)| ((request.user, request.password), length))
            })
        };
        for (bytes, user, password) in [
            (&b"\x01\x03ada\x02pw"[..], &b"ada"[..], &b"pw"[..]),
            (b"\x01\0\x02pw", b"", b"pw"),
            (b"\x01\x03ada\0", b"ada", b""),
            (b"\x01\0\0", b"", b""),
            (b"\x01\x02\0\xff\x01\0", b"\0\xff", b"\0"),
            (&long_bytes, &long, &long),
        ] {
            assert!(bytes.len() <= Request::MAX_LEN);
            let encode = |_: &_, out: &mut Vec<u8>| request(user, password).encode(out);
            check::both_ways(decode, encode, bytes, &(user.into(), password.into()));
        }
        for version in (0..=255).filter(|&byte| byte != 1) {
            let error = DecodeError::SubVersion(version);
            check::fails(decode, &[version], error);
            check::fails(Status::decode, &[version], error);
        }
    }

    #[test]
    fn status_both_ways() {
        for (bytes, status) in [
            ([1, 0], Status::ACCEPTED),
            ([1, 1], Status::REJECTED),
            ([1, 0xff], Status(0xff)),
        ] {
            check::both_ways(Status::decode, Status::encode, &bytes, &status);
        }
    }

    #[test]
    fn credentials_that_cannot_be_sent_are_refused() {
        let long = "x".repeat(256);
        for (user, password, error) in [
            ("", "pw", CredentialsError::EmptyUser),
            ("ada", "", CredentialsError::EmptyPassword),
            (&*long, "pw", CredentialsError::UserTooLong),
            ("ada", &long, CredentialsError::PasswordTooLong),
            ("a\0da", "pw", CredentialsError::Nul),
            ("ada", "p\0w", CredentialsError::Nul),
        ] {
            assert_eq!(Credentials::new(user, password), Err(error));
        }
        assert!(Credentials::new(&long[1..], &long[1..]).is_ok());
    }

    #[test]
    fn only_the_exact_pair_matches() {
        let credentials = Credentials::new("ada", "pass").unwrap();
        assert!(credentials.matches(&request(b"ada", b"pass")));
        assert!(credentials.matches(&credentials.clone().into()));
        for (user, password) in [
            (&b"ada"[..], &b"pas"[..]),
            (b"ada", b"passs"),
            (b"ada", b"pass\0"),
            (b"ada\0", b"pass"),
            (b"Ada", b"pass"),
            (b"ada", b""),
            (b"", b"pass"),
            (b"", b""),
            (b"pass", b"ada"),
            (b"ada", b"\xff\xfe"),
        ] {
            assert!(!credentials.matches(&request(user, password)));
        }
        assert_eq!(credentials, credentials.clone());
        assert_ne!(credentials, Credentials::new("ada", "Pass").unwrap());
    }

    #[test]
    fn debug_hides_the_password() {
        let credentials = Credentials::new("ada\n", "secret").unwrap();
        let expected = r#"Credentials { user: "ada\n", password: *** }"#;
        assert_eq!(format!("{credentials:?}"), expected);
        let shown = format!("{:?}", Request::from(credentials));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
