//! The error of every piece of text that people type: what is bad, why, and what a right one looks like.

use std::error::Error;
use std::fmt;

/// Text that is not what it should be. `Display` quotes the bad part and shows a right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadText {
    /// The part that is wrong, without secrets.
    pub part: String,
    /// What is wrong with it, so that `"part" problem` reads as a sentence.
    pub problem: String,
    /// A right one, or several with commas.
    pub example: &'static str,
}

impl BadText {
    /// An error about `part`; `problem` continues the sentence that `part` starts.
    pub fn new(part: impl Into<String>, problem: impl Into<String>, example: &'static str) -> Self {
        Self {
            part: part.into(),
            problem: problem.into(),
            example,
        }
    }
}

impl fmt::Display for BadText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}` keeps control characters out of terminals and logs.
        write!(
            f,
            "{:?} {}; right would be {}",
            self.part, self.problem, self.example
        )
    }
}

impl Error for BadText {}
