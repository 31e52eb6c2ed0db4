//! What the commands share that ask a running forwarder.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Failure, output, values};
use crate::control::client::{Client, REPLY_TIMEOUT};
use crate::control::messages::Call;
use crate::control::path::default_path;
use crate::daemon::settings::{ControlPath, TIMEOUTS};

/// One question: the command's name, and its options as they were given.
pub(super) struct Question<'a> {
    pub(super) command: &'static str,
    pub(super) control: Option<&'a str>,
    pub(super) reply_timeout: Option<&'a str>,
    pub(super) json: bool,
}

impl Question<'_> {
    /// Asks, and prints the answer: as it came, or as `show` writes it for people.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        call: &Call,
        show: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
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
        let answer = Client::connect(&path, timeout.unwrap_or(REPLY_TIMEOUT))?.call(call)?;
        if self.json {
            return output::print(&format!("{}\n", answer.json));
        }
        output::print(&show(answer.decode()?))
    }
}
