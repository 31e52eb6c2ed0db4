//! `--watch`: the same question again and again.
//!
//! On a terminal the answer is redrawn in place, and a daemon that has ended is waited for: people leave it open. Elsewhere, and with
//! `--json`, one answer follows the other, and the first that does not come ends it, so that a script notices.

use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use super::ask::Question;
use super::screen::Screen;
use super::table::escape;
use super::wrap::wrap;
use super::{Failure, output};
use crate::control::messages::Call;
use crate::control::reading::Readable;

/// Asks until the program is ended, or nobody reads any more.
pub(super) fn watch<T: Readable>(
    question: &Question<'_>,
    call: &Call,
    interval: Duration,
    show: impl Fn(T, Option<usize>) -> String,
) -> Result<(), Failure> {
    let line = question.line()?;
    let terminal = !question.json && output::terminal().is_some();
    let mut screen = Screen::default();
    let mut has_answered = false;
    loop {
        let asked = line.ask(call).and_then(|answer| match question.json {
            true => Ok(format!("{}\n", answer.json)),
            false => Ok(show(answer.decode()?, output::width())),
        });
        let text = match asked {
            Ok(text) => text,
            Err(failure) if terminal && has_answered => {
                let text = format!("no answer, asking again: {}", escape(&failure.to_string()));
                wrap("", &text, output::width())
            }
            Err(failure) => return Err(failure),
        };
        let text = match output::terminal() {
            Some(size) if terminal => screen.redraw(&text, size),
            _ if question.json || !has_answered => text,
            _ => format!("\n{text}"),
        };
        has_answered = true;
        if output::print_on(&text)? == output::Reader::Left {
            return Ok(());
        }
        thread::sleep(interval);
    }
}

/// From one answer to the next: no load for a daemon at the lower end, no sign of life beyond the upper one.
pub(super) const INTERVALS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60 * 60);
