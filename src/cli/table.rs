//! Plain columns that fit the width of a terminal, and numbers for people.

use std::fmt::Write;

/// Lays out rows, the first of which is the heading. Two spaces between columns, none at the end of a line.
///
/// When the lines are wider than `width`, the last columns are cut, at most down to [`NARROWEST`]; the first
/// `whole` columns never are. Everything but printable ASCII is escaped, so that text from the network stays text.
pub(super) fn table(rows: &[Vec<String>], whole: usize, width: Option<usize>) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| escape(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(String::len).max().unwrap_or(0)
        })
        .collect();
    if let Some(width) = width {
        let total = widths.iter().sum::<usize>() + GAP * columns.saturating_sub(1);
        let mut excess = total.saturating_sub(width);
        for size in widths.iter_mut().skip(whole).rev() {
            let cut = excess.min(size.saturating_sub(NARROWEST));
            *size -= cut;
            excess -= cut;
        }
    }

    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, size) in row.iter().zip(&widths) {
            let cell = shorten(cell, *size);
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:<size$}{:GAP$}", "");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The text with everything but printable ASCII escaped.
pub(super) fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|char| {
            let plain = char == ' ' || char.is_ascii_graphic();
            let escaped = (!plain).then(|| char.escape_default());
            plain
                .then_some(char)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Seconds with one unit, as `3s`, `12m`, `5h` or `9d`.
pub(super) fn age(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 120.0 => (s, 's'),
        s if s < 7200.0 => (s / 60.0, 'm'),
        s if s < 172_800.0 => (s / 3600.0, 'h'),
        s => (s / 86_400.0, 'd'),
    };
    format!("{:.0}{unit}", number.max(0.0).floor())
}

/// Bytes in the largest unit that leaves a number of at least 1.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = "B";
    // Tenths, rounded down: no float is needed, and none shows 1024.0.
    let (mut whole, mut tenth) = (count, None);
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        tenth = Some(whole % 1024 * 10 / 1024);
        whole /= 1024;
        unit = next;
    }
    match tenth {
        Some(tenth) => format!("{whole}.{tenth} {unit}"),
        None => format!("{whole} {unit}"),
    }
}

/// Cuts escaped text, which has one byte a column.
fn shorten(cell: &str, size: usize) -> String {
    if cell.len() <= size {
        return cell.to_owned();
    }
    let kept = cell.get(..size.saturating_sub(CUT.len())).unwrap_or(cell);
    format!("{kept}{CUT}")
}

const GAP: usize = 2;
const CUT: &str = "...";
/// A column that is cut further says nothing any more.
const NARROWEST: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(text: &[&[&str]]) -> Vec<Vec<String>> {
        text.iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = rows(&[&["A", "LONG", ""], &["long cell", "b", "c"]]);
        assert_eq!(
            table(&rows, 1, None),
            "A          LONG\nlong cell  b     c\n"
        );
        assert_eq!(table(&[], 1, Some(3)), "");
    }

    #[test]
    fn the_last_columns_are_cut_first_and_whole_ones_never() {
        let rows = rows(&[&[
            "[407:1234::1]:1080",
            "0123456789abcdefghij",
            "0123456789abcdefghij",
        ]]);
        assert_eq!(
            table(&rows, 1, Some(58)),
            "[407:1234::1]:1080  0123456789abcdefghij  0123456789abc...\n"
        );
        assert_eq!(
            table(&rows, 1, Some(10)),
            "[407:1234::1]:1080  012345678...  012345678...\n"
        );
    }

    #[test]
    fn text_of_others_cannot_speak_to_the_terminal() {
        assert_eq!(escape("a\u{1b}[2Jb\nü"), "a\\u{1b}[2Jb\\n\\u{fc}");
    }

    #[test]
    fn numbers_are_short() {
        for (seconds, text) in [
            (-1.0, "0s"),
            (3.9, "3s"),
            (119.9, "119s"),
            (120.0, "2m"),
            (7200.0, "2h"),
            (172_800.0, "2d"),
        ] {
            assert_eq!(age(seconds), text);
        }
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1023.9 KiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    proptest! {
        #[test]
        fn lines_fit_when_they_can(cells in prop::collection::vec(".{0,60}", 1..6), width in 0usize..200) {
            let count = cells.len();
            let text = table(&[cells], 0, Some(width));
            let least = count * (NARROWEST + GAP);
            for line in text.lines() {
                prop_assert!(line.is_ascii());
                prop_assert!(line.len() <= width.max(least), "{} > {}", line.len(), width);
            }
        }
    }
}
