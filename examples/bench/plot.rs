//! The table's main figures as a picture: processor time for bulk data, latency, memory over connections.

use std::fmt::Write as _;

use crate::growth;
use crate::relays::Relay;
use crate::report::Report;

/// An SVG that needs no script, no font of its own and no other file.
pub(crate) fn svg(report: &Report) -> String {
    let relays: Vec<_> = report
        .present()
        .into_iter()
        .filter(|relay| *relay != Relay::None)
        .collect();
    let rows = relays.len() as f64;
    let height = TOP + (rows * ROW).max(180.0) + 50.0;
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
    memory(&mut svg, report, &relays, 2.0 * PANEL, height);
    svg + "</svg>\n"
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
    heading(svg, left, title);
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

/// A line for each relay, both axes logarithmic.
fn memory(svg: &mut String, report: &Report, relays: &[Relay], left: f64, height: f64) {
    heading(svg, left, "memory (PSS) over held connections");
    let lines: Vec<(Relay, Vec<(f64, f64)>)> = relays
        .iter()
        .map(|relay| {
            let points = report.names().filter_map(|name| {
                Some((
                    growth::connections_of(name)?,
                    report.median(name, *relay)? / 1024.0,
                ))
            });
            (*relay, points.collect())
        })
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let (most, least) = all().fold((1.0_f64, 1.0_f64), |(most, least), (_, mib)| {
        (most.max(*mib), least.min(*mib))
    });
    if all().next().is_none() {
        return;
    }
    let (bottom, top) = (height - 40.0, TOP + 6.0);
    let (low, high) = (least.log10().floor(), most.log10().ceil().max(1.0));
    let x = |connections: f64| left + 60.0 + (connections.log10() - 1.0) / 3.0 * 150.0;
    let y = |mib: f64| bottom - (mib.log10() - low) / (high - low) * (bottom - top);
    for power in 1..=4 {
        let connections = 10_f64.powi(power);
        rule(svg, [x(connections), top, x(connections), bottom]);
        let label = format!("{connections}");
        text(svg, x(connections), bottom + 14.0, "middle", &label);
    }
    let mut power = low;
    while power <= high {
        let mib = 10_f64.powf(power);
        rule(svg, [x(10.0), y(mib), x(10_000.0), y(mib)]);
        text(
            svg,
            x(10.0) - 6.0,
            y(mib) + 4.0,
            "end",
            &format!("{mib} MiB"),
        );
        power += 1.0;
    }
    let mut last = f64::NEG_INFINITY;
    let mut ends: Vec<_> = lines
        .iter()
        .filter_map(|(relay, points)| Some((*relay, points, *points.last()?)))
        .collect();
    ends.sort_by(|(_, _, one), (_, _, other)| other.1.total_cmp(&one.1));
    for (relay, points, (connections, mib)) in ends {
        let path: String = points
            .iter()
            .map(|(connections, mib)| format!("{:.1},{:.1} ", x(*connections), y(*mib)))
            .collect();
        let color = color(relays, relay);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            path.trim_end()
        );
        // Names that would stand on each other move down.
        let at = (y(mib) + 4.0).max(last + 11.0);
        last = at;
        text(
            svg,
            x(connections).max(x(1_000.0)) + 5.0,
            at,
            "start",
            relay.name(),
        );
    }
}

fn heading(svg: &mut String, left: f64, title: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"20\" font-weight=\"bold\">{title}</text>",
        left + 12.0
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
/// Room for the names of relays, and for the longest bar.
const NAMES: f64 = 100.0;
const BAR: f64 = 160.0;
