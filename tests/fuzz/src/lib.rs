//! What the targets share: the convention of the codecs as something that can be checked, and input cut in pieces.

use std::fmt::Debug;

use sockhop::wire::DecodeError;

/// What `decode` of every message answers.
pub type Decoded<T> = Result<Option<(T, usize)>, DecodeError>;

/// Decodes `input` and checks everything that the convention of [`sockhop::wire`] says of the answer; `max` is the length of
/// the longest message. Returns the message, if there is one.
pub fn check_message<T: Debug>(
    input: &[u8],
    max: usize,
    decode: impl Fn(&[u8]) -> Decoded<T>,
    encode: impl Fn(&T, &mut Vec<u8>),
    same: impl Fn(&T, &T) -> bool,
) -> Option<T> {
    match decode(input) {
        Ok(Some((message, length))) => {
            assert!(0 < length && length <= input.len().min(max), "{length}");
            // All that it needed, and nothing of what is behind it.
            for cut in cuts(length) {
                assert!(matches!(decode(&input[..cut]), Ok(None)), "cut at {cut}");
            }
            let (alone, alone_length) = decode(&input[..length])
                .expect("no error without what is behind")
                .expect("whole without what is behind");
            assert!(same(&message, &alone) && alone_length == length);

            let mut bytes = Vec::new();
            encode(&message, &mut bytes);
            assert!(bytes.len() <= max, "{} bytes", bytes.len());
            let (again, again_length) = decode(&bytes)
                .expect("what we write has no errors")
                .expect("what we write is whole");
            assert!(same(&message, &again), "{message:?} and {again:?}");
            assert_eq!(again_length, bytes.len());
            Some(message)
        }
        Ok(None) => {
            assert!(input.len() < max, "wants more than {} bytes", input.len());
            for cut in cuts(input.len()) {
                assert!(matches!(decode(&input[..cut]), Ok(None)), "cut at {cut}");
            }
            None
        }
        Err(error) => {
            let longer = [input, &[0, 5, 255]].concat();
            assert!(matches!(decode(&longer), Err(again) if again == error));
            None
        }
    }
}

/// Shorter lengths to try: all of a short one, some of a long one.
pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length.min(24)).chain(
        [length / 2, length.saturating_sub(1)]
            .into_iter()
            .filter(move |_| length > 24),
    )
}

/// The first `N` bytes of the input, which say what to do with the rest; nothing happens on shorter input.
pub fn settings<const N: usize>(input: &[u8]) -> Option<([u8; N], &[u8])> {
    let (settings, rest) = input.split_first_chunk()?;
    Some((*settings, rest))
}

/// `input` in pieces of these lengths, over and over; 0 is an empty piece.
pub fn pieces<'a>(mut input: &'a [u8], lengths: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut lengths = lengths.iter().map(|&length| usize::from(length)).cycle();
    let mut empty = 0;
    while !input.is_empty() {
        let length = match lengths.next() {
            // Enough of them to see that they do nothing.
            Some(0) if empty < 8 => {
                empty += 1;
                0
            }
            Some(length) => length.clamp(1, input.len()),
            None => input.len(),
        };
        let (piece, rest) = input.split_at(length);
        pieces.push(piece);
        input = rest;
    }
    pieces
}

/// Text, with other bytes replaced rather than refused, so that no input is lost.
pub fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}
