//! Prometheus's text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::{Display, Write as _};

/// A text that metrics are added to, a family after the other.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
}

/// What a metric's number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, until the program starts anew.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A family of metrics, to which its samples are added.
pub(super) struct Family<'a> {
    exposition: &'a mut Exposition,
    name: &'static str,
}

impl Exposition {
    /// A family: all of its samples come here, one after the other, or the text is refused.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family {
            exposition: self,
            name,
        }
    }

    /// A family of one sample without labels.
    pub(super) fn single(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &str,
        value: impl Display,
    ) {
        self.family(name, kind, help).sample(&[], value);
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(text);
    }
}

impl Family<'_> {
    /// A sample. The values of labels may be any text.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.add(labels, &value);
    }

    /// Once for all kinds of numbers, which is smaller.
    fn add(&mut self, labels: &[(&str, &str)], value: &dyn Display) {
        self.exposition.push(format_args!("{}", self.name));
        for (place, (label, value)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            self.exposition.push(format_args!("{before}{label}=\""));
            for char in value.chars() {
                match char {
                    '\\' => self.exposition.text.push_str("\\\\"),
                    '"' => self.exposition.text.push_str("\\\""),
                    '\n' => self.exposition.text.push_str("\\n"),
                    other => self.exposition.text.push(other),
                }
            }
            self.exposition.text.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.exposition.push(format_args!("{end} {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_their_family_and_labels_are_escaped() {
        let mut text = Exposition::default();
        text.single("a_total", Kind::Counter, "How many.", u64::MAX);
        let mut family = text.family("b", Kind::Gauge, "How \"much\".");
        family.sample(&[("x", "1"), ("y", "a\\b\"c\nd\u{fc}")], 0.25);
        family.sample(&[("x", "2")], 1);
        assert_eq!(
            text.finish(),
            "# HELP a_total How many.\n# TYPE a_total counter\na_total 18446744073709551615\n\
             # HELP b How \"much\".\n# TYPE b gauge\nb{x=\"1\",y=\"a\\\\b\\\"c\\nd\u{fc}\"} 0.25\nb{x=\"2\"} 1\n"
        );
    }
}
