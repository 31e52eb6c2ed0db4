//! Text that is shown again and again in the same place of a terminal.

use std::fmt::Write as _;

/// A place on a terminal: from where the cursor was at first, down to where it is.
///
/// The cursor is hidden only while something is drawn, in one piece with it: whenever the program is ended, also by ^C, it is
/// visible and stands below the text.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// Lengths of the lines that were drawn last.
    lines: Vec<usize>,
}

/// Columns and lines of a terminal.
pub(super) type Size = (usize, usize);

impl Screen {
    /// What to write so that `text` is in the place of what was drawn before. It is printable ASCII, a column a byte. Lines that don't
    /// fit below each other are left out.
    pub(super) fn redraw(&mut self, text: &str, (columns, lines): Size) -> String {
        let columns = columns.max(1);
        let rows = |length: usize| length.div_ceil(columns).max(1);
        let mut out = String::from(HIDE);
        // As the terminal shows them now: it may have become narrower meanwhile.
        let up: usize = self.lines.iter().copied().map(rows).sum();
        if up > 0 {
            // Writing to a String cannot fail.
            let _ = write!(out, "\x1b[{up}A");
        }
        self.lines.clear();
        // The cursor stands below, which takes a line.
        let mut room = lines.saturating_sub(1).max(1);
        for line in text.lines() {
            let Some(left) = room.checked_sub(rows(line.len())) else {
                break;
            };
            room = left;
            self.lines.push(line.len());
            out.push_str(line);
            out.push_str(END_OF_LINE);
        }
        out.push_str(SHOW);
        out
    }
}

const HIDE: &str = "\x1b[?25l\r";

/// Clears what is left of the line before.
const END_OF_LINE: &str = "\x1b[K\r\n";

/// Clears what is left below.
const SHOW: &str = "\x1b[J\x1b[?25h";

#[cfg(test)]
mod tests {
    use super::*;

    /// As much of a terminal as is needed: what it shows, and whether the cursor.
    struct Terminal {
        rows: Vec<Vec<u8>>,
        at: (usize, usize),
        size: Size,
        shows_cursor: bool,
    }

    impl Terminal {
        fn new(size: Size) -> Self {
            Self {
                rows: vec![Vec::new(); size.1],
                at: (0, 0),
                size,
                shows_cursor: true,
            }
        }

        fn line_feed(&mut self) {
            self.at.0 += 1;
            if self.at.0 == self.size.1 {
                self.rows.remove(0);
                self.rows.push(Vec::new());
                self.at.0 -= 1;
            }
        }

        fn write(&mut self, text: &str) {
            let mut bytes = text.bytes();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\r' => self.at.1 = 0,
                    b'\n' => self.line_feed(),
                    0x1b => {
                        let sequence: Vec<u8> = bytes
                            .by_ref()
                            .take_while(|byte| !byte.is_ascii_alphabetic())
                            .collect();
                        let number = String::from_utf8_lossy(&sequence[1..]).into_owned();
                        // What ended the sequence was taken with it; it follows from the number.
                        match number.as_str() {
                            "?25" => self.shows_cursor = !self.shows_cursor,
                            "" => {
                                self.rows[self.at.0].truncate(self.at.1);
                                if self.at.1 == 0 {
                                    self.rows[self.at.0 + 1..].fill(Vec::new());
                                }
                            }
                            up => self.at.0 -= up.parse::<usize>().unwrap(),
                        }
                    }
                    other => {
                        if self.at.1 == self.size.0 {
                            self.at.1 = 0;
                            self.line_feed();
                        }
                        let row = &mut self.rows[self.at.0];
                        row.resize(row.len().max(self.at.1 + 1), b' ');
                        row[self.at.1] = other;
                        self.at.1 += 1;
                    }
                }
            }
        }

        fn shown(&self) -> Vec<String> {
            let rows = self.rows.iter();
            let mut rows: Vec<_> = rows
                .map(|row| String::from_utf8(row.clone()).unwrap())
                .collect();
            while rows.last().is_some_and(String::is_empty) {
                rows.pop();
            }
            rows
        }
    }

    #[test]
    fn the_new_text_replaces_the_old_one() {
        let size = (20, 6);
        let mut terminal = Terminal::new(size);
        let mut screen = Screen::default();
        terminal.write("$ sockhop status\r\n");
        for text in [
            "first line\nsecond line\n",
            "1st\n2nd line is long\nthird\n",
            "one\n",
            "a\nb\n",
        ] {
            terminal.write(&screen.redraw(text, size));
            let expected: Vec<&str> = ["$ sockhop status"]
                .into_iter()
                .chain(text.lines())
                .collect();
            assert_eq!(terminal.shown(), expected);
            assert!(terminal.shows_cursor);
            assert_eq!(terminal.at, (expected.len(), 0), "below the text");
        }
    }

    #[test]
    fn at_the_bottom_of_the_terminal_it_stays_there() {
        let size = (20, 4);
        let mut terminal = Terminal::new(size);
        let mut screen = Screen::default();
        terminal.write("$\r\n$\r\n$\r\n");
        for text in ["a\nb\n", "c\nd\n", "e\nf\ng\nh\ni\n", "j\n"] {
            terminal.write(&screen.redraw(text, size));
        }
        // What did not fit was left out, and nothing is in the way of the last one.
        assert_eq!(terminal.shown(), ["j"]);
    }

    #[test]
    fn lines_that_are_wider_than_the_terminal_are_counted() {
        let size = (5, 8);
        let mut terminal = Terminal::new(size);
        let mut screen = Screen::default();
        for text in ["0123456789\nx\n", "01234\n", "abcdefg\n"] {
            terminal.write(&screen.redraw(text, size));
        }
        assert_eq!(terminal.shown(), ["abcde", "fg"]);
    }
}
