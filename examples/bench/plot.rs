//! The table's main figures as a picture: processor time for bulk data, latency, and how memory and processor time grow with the
//! connections and with the known peers.

use std::fmt::Write as _;

use crate::growth;
use crate::relays::Relay;
use crate::report::Report;
use crate::sweep::Round;

/// An SVG that needs no script, no font of its own and no other file.
pub(crate) fn svg(report: &Report, rounds: &[Round]) -> String {
    let relays: Vec<_> = report
        .present()
        .into_iter()
        .filter(|relay| *relay != Relay::None)
        .collect();
    let middle = TOP + (relays.len() as f64 * ROW).max(CHART) + 50.0;
    let height = middle + TOP + CHART + 50.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    bars(
        &mut svg,
        report,
        &relays,
        0.0,
        "CPU seconds per GiB: 1 and 16 streams down",
        ["download-1: CPU", "download-16: CPU"],
    );
    bars(
        &mut svg,
        report,
        &relays,
        PANEL,
        "64-byte round trip, µs: p50 of 1, p99 of 32",
        ["round-trip-1: p50", "round-trip-32: p99"],
    );
    let grows = |what| -> Vec<Line> {
        relays
            .iter()
            .map(|relay| Line {
                name: relay.name(),
                color: color(&relays, *relay),
                points: growth_of(report, *relay, what),
            })
            .collect()
    };
    let over_connections = [10.0, 10_000.0];
    let memory = grows(growth::MEMORY);
    let memory: Vec<_> = memory
        .into_iter()
        .map(|line| line.scaled(1.0 / 1024.0))
        .collect();
    let place = |column: f64, top| (column * PANEL, top);
    let title = "memory (PSS) over held connections";
    lines(
        &mut svg,
        place(2.0, 0.0),
        title,
        "MiB",
        over_connections,
        &memory,
    );
    let title = "CPU of a small message over held connections";
    let messages = grows(growth::MESSAGE);
    lines(
        &mut svg,
        place(0.0, middle),
        title,
        "µs",
        over_connections,
        &messages,
    );
    let over_peers = [10.0, 100_000.0];
    let of_rounds = |figure: fn(&Round) -> f64| {
        let fast = rounds.iter().filter(|round| round.rate == FAST);
        vec![Line {
            name: Relay::Sockhop.name(),
            color: color(&[], Relay::Sockhop),
            points: fast
                .map(|round| (f64::from(round.known), figure(round)))
                .collect(),
        }]
    };
    let title = "memory for known peers";
    let memory = of_rounds(|round| round.memory() / 1024.0);
    lines(
        &mut svg,
        place(1.0, middle),
        title,
        "MiB",
        over_peers,
        &memory,
    );
    let title = "CPU of a round over known peers";
    let cpu = of_rounds(|round| round.cpu);
    lines(&mut svg, place(2.0, middle), title, "s", over_peers, &cpu);
    svg + "</svg>\n"
}

/// How a figure of a relay grows with the connections.
fn growth_of(report: &Report, relay: Relay, what: &str) -> Vec<(f64, f64)> {
    let points = report.names().filter_map(|name| {
        let connections = growth::connections_of(name, what)?;
        Some((connections, report.median(name, relay)?))
    });
    points.collect()
}

/// A row for each relay, with one bar for each of the figures.
fn bars(
    svg: &mut String,
    report: &Report,
    relays: &[Relay],
    left: f64,
    title: &str,
    figures: [&str; 2],
) {
    heading(svg, left, 0.0, title);
    let value = |relay, figure| report.median(figure, relay).unwrap_or_default();
    let most = relays
        .iter()
        .flat_map(|relay| figures.map(|figure| value(*relay, figure)))
        .fold(0.0, f64::max);
    for (place, relay) in relays.iter().enumerate() {
        let y = TOP + place as f64 * ROW;
        text(svg, left + NAMES - 6.0, y + 16.0, "end", relay.name());
        for (line, figure) in figures.iter().enumerate() {
            let value = value(*relay, figure);
            if value <= 0.0 || most <= 0.0 {
                continue;
            }
            let (y, width) = (y + 3.0 + line as f64 * 11.0, value / most * BAR);
            let opacity = [1.0, 0.55][line];
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"9\" fill=\"{}\" opacity=\"{opacity}\"/>",
                left + NAMES,
                color(relays, *relay)
            );
            let label = match value {
                small if small < 10.0 => format!("{small:.2}"),
                large => format!("{large:.0}"),
            };
            text(svg, left + NAMES + width + 4.0, y + 8.0, "start", &label);
        }
    }
}

/// What is drawn for one of those compared.
struct Line {
    name: &'static str,
    color: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    fn scaled(mut self, by: f64) -> Self {
        for (_, value) in &mut self.points {
            *value *= by;
        }
        self
    }
}

/// Lines over numbers of something, both axes logarithmic. Nothing is drawn of what is not above zero.
fn lines(
    svg: &mut String,
    (left, top): (f64, f64),
    title: &str,
    unit: &str,
    [from, to]: [f64; 2],
    all: &[Line],
) {
    let values = || {
        all.iter()
            .flat_map(|line| &line.points)
            .map(|(_, value)| *value)
    };
    let (least, most) = values()
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
    if most <= 0.0 {
        return;
    }
    heading(svg, left, top, title);
    let (bottom, top) = (top + TOP + CHART, top + TOP + 6.0);
    let (low, high) = (
        least.log10().floor(),
        most.log10().ceil().max(least.log10().floor() + 1.0),
    );
    let x = |number: f64| left + 70.0 + (number / from).log10() / (to / from).log10() * 140.0;
    let y = |value: f64| bottom - (value.log10() - low) / (high - low) * (bottom - top);
    let mut number = from;
    while number <= to {
        rule(svg, [x(number), top, x(number), bottom]);
        text(
            svg,
            x(number),
            bottom + 14.0,
            "middle",
            &round_number(number),
        );
        number *= 10.0;
    }
    let mut power = low;
    while power <= high {
        let value = 10_f64.powf(power);
        rule(svg, [x(from), y(value), x(to), y(value)]);
        let label = format!("{} {unit}", (value * 1e6).round() / 1e6);
        text(svg, x(from) - 6.0, y(value) + 4.0, "end", &label);
        power += 1.0;
    }
    let mut ends: Vec<_> = all
        .iter()
        .filter_map(|line| {
            let points: Vec<_> = line
                .points
                .iter()
                .filter(|(_, value)| *value > 0.0)
                .collect();
            Some((line, **points.last()?, points))
        })
        .collect();
    ends.sort_by(|(_, one, _), (_, other, _)| other.1.total_cmp(&one.1));
    let mut last = f64::NEG_INFINITY;
    for (line, end, points) in ends {
        let path: String = points
            .iter()
            .map(|(number, value)| format!("{:.1},{:.1} ", x(*number), y(*value)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            path.trim_end(),
            line.color
        );
        // Names that would stand on each other move down.
        let at = (y(end.1) + 4.0).max(last + 11.0);
        last = at;
        text(
            svg,
            x(end.0).max(x(to) - 50.0) + 5.0,
            at,
            "start",
            line.name,
        );
    }
}

fn heading(svg: &mut String, left: f64, top: f64, title: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>",
        left + 12.0,
        top + 20.0
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn rule(svg: &mut String, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>"
    );
}

fn round_number(number: f64) -> String {
    if number >= 1_000.0 {
        format!("{}k", number / 1_000.0)
    } else {
        format!("{number}")
    }
}

/// One that stands out for sockhop, one each for the others.
fn color(relays: &[Relay], relay: Relay) -> &'static str {
    if matches!(relay, Relay::Sockhop | Relay::SockhopServe) {
        return "#d62728";
    }
    let place = relays.iter().position(|one| *one == relay).unwrap_or(0);
    OTHERS[place % OTHERS.len()]
}

const OTHERS: [&str; 8] = [
    "#7f7f7f", "#1f77b4", "#6baed6", "#2ca02c", "#9467bd", "#8c564b", "#bcbd22", "#17becf",
];

const PANEL: f64 = 310.0;
const WIDTH: f64 = 3.0 * PANEL + 30.0;
const TOP: f64 = 30.0;
const ROW: f64 = 28.0;
/// How high a chart with lines is.
const CHART: f64 = 190.0;
/// The rounds that are drawn: at the highest rate.
const FAST: u32 = 1000;
/// Room for the names of relays, and for the longest bar.
const NAMES: f64 = 100.0;
const BAR: f64 = 160.0;
