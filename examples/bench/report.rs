//! Medians over the rounds, as a table and as JSON.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::relays::{Kind, Relay};

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    better: Better,
}

/// Which way a figure should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// Every figure of every relay in every round.
#[derive(Debug)]
pub(crate) struct Report {
    kind: Kind,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    figure: Figure,
    values: Vec<(Relay, f64)>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, better: Better) -> Self {
        Self {
            name: name.into(),
            unit,
            better,
        }
    }
}

impl Report {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            rows: Vec::new(),
        }
    }

    /// Whether there is nothing to report.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds what one scenario measured in one round.
    pub(crate) fn add(&mut self, relay: Relay, figures: Vec<(Figure, f64)>) {
        for (figure, value) in figures {
            let at = self
                .rows
                .iter()
                .position(|row| row.figure == figure)
                .unwrap_or_else(|| {
                    self.rows.push(Row {
                        figure,
                        values: Vec::new(),
                    });
                    self.rows.len() - 1
                });
            self.rows[at].values.push((relay, value));
        }
    }

    /// Every value, for plots and for comparing runs.
    pub(crate) fn json(&self, rounds: usize, quick: bool) -> Value {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let figures: Vec<_> = self.rows.iter().map(|row| row.json(self.kind)).collect();
        json!({
            "sockhop": env!("CARGO_PKG_VERSION"),
            "kernel": kernel.trim(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "rounds": rounds,
            "quick": quick,
            "figures": figures,
        })
    }

    /// The relays that were measured, in the order of the columns.
    pub(crate) fn present(&self) -> Vec<Relay> {
        let all = self.kind.relays().iter().copied();
        all.filter(|relay| self.rows.iter().any(|row| row.median(*relay).is_some()))
            .collect()
    }

    /// The names of all figures.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|row| row.figure.name.as_str())
    }

    /// What came of a figure for a relay.
    pub(crate) fn median(&self, name: &str, relay: Relay) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.figure.name == name)?;
        row.median(relay)
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let present = self.present();
        let subject = self.kind.subject();
        let rivals = self.kind.rivals().iter().copied();
        let against: Vec<_> = rivals
            .filter(|relay| present.contains(&subject) && present.contains(relay))
            .collect();

        let mut heading = vec![String::new(), String::new(), String::new()];
        heading.extend(present.iter().map(|relay| relay.name().to_owned()));
        heading.extend(against.iter().map(|relay| format!("/{}", relay.name())));
        heading.push("/best of the others".to_owned());
        let mut cells = vec![heading];
        for row in &self.rows {
            let better = match row.figure.better {
                Better::Lower => "↓",
                Better::Higher => "↑",
            };
            let mut line = vec![
                row.figure.name.clone(),
                row.figure.unit.to_owned(),
                better.to_owned(),
            ];
            line.extend(
                present
                    .iter()
                    .map(|relay| row.median(*relay).map_or_else(|| "–".to_owned(), short)),
            );
            line.extend(against.iter().map(|rival| row.ratio(subject, *rival)));
            let others = present.iter().copied();
            let best = row.best(others.filter(|relay| *relay != subject && *relay != Relay::None));
            line.push(best.map_or_else(
                || "–".to_owned(),
                |best| format!("{} {}", row.ratio(subject, best), best.name()),
            ));
            cells.push(line);
        }
        cells
    }
}

impl Row {
    fn median(&self, relay: Relay) -> Option<f64> {
        let mut values = self.of(relay);
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }

    /// Who did best of these.
    fn best(&self, relays: impl Iterator<Item = Relay>) -> Option<Relay> {
        let known = relays.filter_map(|relay| Some((relay, self.median(relay)?)));
        let order = |(_, one): &(Relay, f64), (_, other): &(Relay, f64)| one.total_cmp(other);
        let best = match self.figure.better {
            Better::Lower => known.min_by(order),
            Better::Higher => known.max_by(order),
        };
        best.map(|(relay, _)| relay)
    }

    fn of(&self, relay: Relay) -> Vec<f64> {
        let values = self.values.iter();
        values
            .filter(|(of, _)| *of == relay)
            .map(|(_, value)| *value)
            .collect()
    }

    fn ratio(&self, subject: Relay, other: Relay) -> String {
        match (self.median(subject), self.median(other)) {
            (Some(own), Some(other)) if other > 0.0 => format!("{:.2}", own / other),
            _ => "–".to_owned(),
        }
    }

    fn json(&self, kind: Kind) -> Value {
        let all = kind.relays().iter().copied();
        let relays: Map<_, _> = all
            .filter_map(|relay| {
                let values = json!({"median": self.median(relay)?, "all": self.of(relay)});
                Some((relay.name().to_owned(), values))
            })
            .collect();
        let better = match self.figure.better {
            Better::Lower => "lower",
            Better::Higher => "higher",
        };
        json!({"name": self.figure.name, "unit": self.figure.unit, "better": better, "relays": relays})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = self.cells();
        let columns = cells.first().map_or(0, Vec::len);
        let widths: Vec<_> = (0..columns)
            .map(|column| {
                cells
                    .iter()
                    .map(|line| line[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for line in &cells {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Names to the left, numbers to the right.
                let cell = if column < 3 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                };
                text = text + &cell + "  ";
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        writeln!(
            f,
            "↓ less is better, ↑ more is better; /other: {}'s figure divided by the other's",
            self.kind.subject().name()
        )
    }
}

/// Three significant digits are more than one run is good for.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
