//! Long text on narrow terminals: broken between words, never in one.

/// Lines of at most `width` columns: the first starts with `first`, the others with as many spaces. A word that is wider than a line
/// has one for itself.
///
/// The text is printable ASCII, a column a byte.
pub(super) fn wrap(first: &str, text: &str, width: Option<usize>) -> String {
    let indent = " ".repeat(first.len());
    let mut out = first.to_owned();
    let mut column = first.len();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let at_start = column == first.len();
        let gap = usize::from(!at_start);
        if !at_start && width.is_some_and(|width| column + gap + word.len() > width) {
            out.push('\n');
            out.push_str(&indent);
            column = indent.len();
        } else if gap > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_stay_whole() {
        for (width, lines) in [
            (None, "name  one two three-four\n"),
            (Some(24), "name  one two three-four\n"),
            (Some(23), "name  one two\n      three-four\n"),
            (Some(12), "name  one\n      two\n      three-four\n"),
            (Some(0), "name  one\n      two\n      three-four\n"),
        ] {
            assert_eq!(wrap("name  ", "one two three-four", width), lines);
        }
        assert_eq!(wrap("  ", "", Some(5)), "  \n");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_lines_fit(text in "[a-z ]{0,80}", width in 8usize..60) {
            let wrapped = wrap("ab  ", &text, Some(width));
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(words(&wrapped[4..]), words(&text));
            for line in wrapped.lines() {
                prop_assert!(line.len() <= width || words(line).len() <= 2, "{:?}", line);
            }
        }
    }
}
