//! The options of a command on their way to its settings.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Failure, values};
use crate::bad_text::BadText;

/// Reads options one after the other. The first that is wrong is told at the [end](Self::end); until then one that is wrong is as
/// good as none. Leaving at once instead would, after each of a hundred options, undo what all those before it made: 20 KB of
/// program.
pub(super) struct Options {
    command: &'static str,
    wrong: Option<Failure>,
}

impl Options {
    pub(super) const fn of(command: &'static str) -> Self {
        Self {
            command,
            wrong: None,
        }
    }

    /// The value of an option that may be absent.
    pub(super) fn one<T>(
        &mut self,
        name: &str,
        text: &Option<String>,
        parse: impl Fn(&str) -> Result<T, BadText>,
    ) -> Option<T> {
        let value = values::option(self.command, name, text.as_deref()?, parse);
        self.keep(value)
    }

    /// The values of a repeated option.
    pub(super) fn all<T>(
        &mut self,
        name: &str,
        texts: &[String],
        parse: impl Fn(&str) -> Result<T, BadText>,
    ) -> Vec<T> {
        let values = values::options(self.command, name, texts, parse);
        self.keep(values).unwrap_or_default()
    }

    /// A duration within a range.
    pub(super) fn duration(
        &mut self,
        name: &str,
        text: &Option<String>,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.one(name, text, |text| values::duration(text, range))
    }

    /// A duration within a range, or 0 for never; `default` without the option.
    pub(super) fn limit(
        &mut self,
        name: &str,
        text: &Option<String>,
        range: &RangeInclusive<Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        self.one(name, text, |text| values::duration_or_never(text, range))
            .unwrap_or(default)
    }

    /// A number within a range.
    pub(super) fn number(
        &mut self,
        name: &str,
        text: &Option<String>,
        range: &RangeInclusive<usize>,
    ) -> Option<usize> {
        self.one(name, text, |text| values::number(text, range))
    }

    /// What the options together cannot mean.
    #[cfg(feature = "server")]
    pub(super) fn refuse(&mut self, problem: &str) {
        let failure = Failure::usage(problem, Some(self.command));
        self.wrong.get_or_insert(failure);
    }

    /// What was read elsewhere.
    pub(super) fn keep<T>(&mut self, read: Result<T, Failure>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(failure) => {
                self.wrong.get_or_insert(failure);
                None
            }
        }
    }

    /// What was made of the options, if none of them was wrong.
    pub(super) fn end<T>(self, settings: T) -> Result<T, Failure> {
        match self.wrong {
            None => Ok(settings),
            Some(failure) => Err(failure),
        }
    }
}
