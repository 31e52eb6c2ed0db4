//! How a command ends when it did not do what it was told, and what the user reads about it.

use std::error::Error;
use std::fmt;

use crate::control::client::ClientError;

/// Why a command was not done. `Display` is the chain of causes in one line; the hint goes on a line of its own.
#[derive(Debug)]
pub struct Failure(Box<Told>);

/// Apart: failures pass through many hands, and seven words take more instructions than one at each of them.
#[derive(Debug)]
struct Told {
    kind: Kind,
    text: String,
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NotDone,
    NotDoneBeyond,
    WrongUsage,
}

impl Failure {
    /// It could not be done: exit status 1. The text is `error` and its causes.
    pub fn not_done(error: &(dyn Error + 'static), hint: Option<String>) -> Self {
        Self::new(Kind::NotDone, chain(error), hint)
    }

    /// The proxy did its part, but what is behind it did not: exit status 3.
    pub fn beyond(error: &(dyn Error + 'static)) -> Self {
        Self::new(Kind::NotDoneBeyond, chain(error), None)
    }

    /// The same as [`Failure::not_done`] without an error value.
    pub fn because(text: impl AsRef<str>) -> Self {
        Self::new(Kind::NotDone, text.as_ref().to_owned(), None)
    }

    /// It was asked for wrongly: exit status 2, with a pointer to the help of `command`.
    pub fn usage(text: impl AsRef<str>, command: Option<&str>) -> Self {
        Self::misused(text.as_ref(), command)
    }

    #[cold]
    fn misused(text: &str, command: Option<&str>) -> Self {
        let hint = match command {
            Some(command) => format!("see \"sockhop {command} --help\""),
            None => "see \"sockhop --help\"".to_owned(),
        };
        Self::new(Kind::WrongUsage, text.to_owned(), Some(hint))
    }

    #[cold]
    #[inline(never)]
    fn new(kind: Kind, text: String, hint: Option<String>) -> Self {
        Self(Box::new(Told { kind, text, hint }))
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self.0.kind {
            Kind::NotDone => 1,
            Kind::WrongUsage => 2,
            Kind::NotDoneBeyond => 3,
        }
    }

    /// What would help, when that is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = error.hint();
        Self::not_done(&error, hint)
    }
}

/// The error and its causes, joined by colons.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("read the number")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn every_cause_is_told_once() {
        let error = Outer("x".parse::<u8>().unwrap_err());
        let failure = Failure::not_done(&error, None);
        assert_eq!(
            failure.to_string(),
            "read the number: invalid digit found in string"
        );
        assert_eq!(failure.status(), 1);
        assert_eq!(Failure::usage("x", Some("probe")).status(), 2);
    }
}
