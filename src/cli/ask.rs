//! What the commands share that ask a running forwarder.

use std::path::PathBuf;
use std::time::Duration;

use super::{Failure, output, values};
use crate::control::client::{Answer, Client, REPLY_TIMEOUT};
use crate::control::messages::Call;
use crate::control::path::default_path;
use crate::control::reading::Readable;
use crate::daemon::settings::{ControlPath, TIMEOUTS};

/// One question: the command's name, and its options as they were given.
pub(super) struct Question<'a> {
    pub(super) command: &'static str,
    pub(super) control: Option<&'a str>,
    pub(super) reply_timeout: Option<&'a str>,
    pub(super) json: bool,
}

impl Question<'_> {
    /// Whom to ask, as the options say.
    pub(super) fn line(&self) -> Result<Line, Failure> {
        let timeout: Option<Duration> = values::optional(
            self.command,
            "--reply-timeout",
            self.reply_timeout,
            |text| values::duration(text, &TIMEOUTS),
        )?;
        let control = values::optional(self.command, "--control", self.control, values::control)?;
        let path = match control.unwrap_or_default() {
            ControlPath::Default => default_path(),
            ControlPath::At(path) => path,
            ControlPath::None => {
                return Err(Failure::usage(
                    "--control: a forwarder without a control socket cannot be asked; \
                     give the path of one, or ./none for a file of that name",
                    Some(self.command),
                ));
            }
        };
        Ok(Line {
            path,
            timeout: timeout.unwrap_or(REPLY_TIMEOUT),
        })
    }

    /// Asks, and prints the answer: as it came, or as `show` writes it for people.
    pub(super) fn ask<T: Readable>(
        &self,
        call: &Call,
        show: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
        let answer = self.line()?.ask(call)?;
        let text = match self.json {
            true => format!("{}\n", answer.json),
            false => show(answer.decode()?),
        };
        self.print(&answer, &text)
    }

    fn print(&self, answer: &Answer, text: &str) -> Result<(), Failure> {
        output::print(text)?;
        if answer.left_out > 0 {
            // Not into the data, which is read by programs as well.
            output::message(&format!(
                "sockhop: {}: the best are listed, {} more are left out\n",
                self.command, answer.left_out
            ));
        }
        Ok(())
    }
}

/// A running forwarder or server that can be asked.
pub(super) struct Line {
    path: PathBuf,
    timeout: Duration,
}

impl Line {
    /// Asks over a connection of its own, so that it may have been started anew since the last time.
    pub(super) fn ask(&self, call: &Call) -> Result<Answer, Failure> {
        Ok(Client::connect(&self.path, self.timeout)?.call(call)?)
    }
}
