//! The error of every piece of text that people type: what is bad, why, and what a right one looks like.

use std::error::Error;
use std::fmt;

/// Text that is not what it should be. `Display` quotes the bad part and shows a right one.
///
/// One word: it is what may come instead of a value wherever text is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadText(Box<Bad>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bad {
    part: String,
    problem: String,
    example: &'static str,
}

impl BadText {
    /// An error about `part`, the part that is wrong, without secrets; `problem` continues the sentence that it starts. `example` is
    /// a right one, or several with commas.
    pub fn new(part: impl AsRef<str>, problem: impl AsRef<str>, example: &'static str) -> Self {
        Self::told(part.as_ref(), problem.as_ref(), example)
    }

    #[cold]
    #[inline(never)]
    fn told(part: &str, problem: &str, example: &'static str) -> Self {
        Self(Box::new(Bad {
            part: part.to_owned(),
            problem: problem.to_owned(),
            example,
        }))
    }

    /// What is wrong with the part.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.0.problem
    }

    /// The same where something else would be right.
    #[must_use]
    pub fn with_example(mut self, example: &'static str) -> Self {
        self.0.example = example;
        self
    }
}

impl fmt::Display for BadText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}` keeps control characters out of terminals and logs.
        let Bad {
            part,
            problem,
            example,
        } = &*self.0;
        write!(f, "{part:?} {problem}; right would be {example}")
    }
}

impl Error for BadText {}
