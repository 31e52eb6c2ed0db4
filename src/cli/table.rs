//! Plain columns, and numbers for people.

use std::fmt::Write;

/// Lays out rows, the first of which is the heading, as lines without their ends. Two spaces between columns, none at the end of a
/// line; the columns in `numbers` are flush right. The cells are printable ASCII, see [`escape`].
pub(super) fn table(rows: &[Vec<String>], numbers: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(String::len).max().unwrap_or(0)
        })
        .collect();
    let lines = rows.iter().map(|row| {
        let mut line = String::new();
        for (place, (cell, size)) in row.iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match numbers.contains(&place) {
                true => write!(line, "{cell:>size$}{:GAP$}", ""),
                false => write!(line, "{cell:<size$}{:GAP$}", ""),
            };
        }
        line.truncate(line.trim_end().len());
        line
    });
    lines.collect()
}

/// The text with everything but printable ASCII escaped.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char == ' ' || char.is_ascii_graphic() {
            true => escaped.push(char),
            false => escaped.extend(char.escape_default()),
        }
    }
    escaped
}

/// Seconds with one unit, as `3s`, `12m`, `5h` or `9d`.
pub(super) fn age(seconds: f64) -> String {
    let (number, unit) = match whole(seconds) {
        s if s < 120 => (s, 's'),
        s if s < 7200 => (s / 60, 'm'),
        s if s < 172_800 => (s / 3600, 'h'),
        s => (s / 86_400, 'd'),
    };
    format!("{number}{unit}")
}

/// A number with one digit after the point.
pub(super) fn tenths(number: f64) -> String {
    let tenths = whole((number * 10.0).round());
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// A number without what is after the point: no float is formatted, what std has for that is 14 KB. A negative or absurd number,
/// which only another program would send, is shown as 0.
#[expect(clippy::cast_possible_truncation, reason = "it ends at the limits")]
pub(super) fn whole(number: f64) -> u64 {
    number as u64
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

const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[&[&str]]) -> Vec<Vec<String>> {
        text.iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = rows(&[&["A", "LONG", "N", ""], &["long cell", "b", "123", "c"]]);
        assert_eq!(
            table(&rows, &[2]),
            ["A          LONG    N", "long cell  b     123  c"]
        );
        assert_eq!(table(&[], &[]), [""; 0]);
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
}
