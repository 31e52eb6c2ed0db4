//! The beginnings of messages, and how much of a message is missing.

use super::error::{DecodeError, Decoded, Problems};
use super::profile::{Alignment, Profile};

/// Why reading ended before the message did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// So many bytes are missing at least.
    Short(usize),
    Bad(DecodeError),
}

impl<E: Into<DecodeError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Bad(error.into())
    }
}

/// Makes the result of a `decode` of a message with problems and its length.
pub(super) fn finish<T>(
    read: Result<(T, usize, Problems), Stop>,
) -> Result<Decoded<T>, DecodeError> {
    match read {
        Ok((message, length, problems)) => Ok(Decoded::Whole {
            message,
            length,
            problems,
        }),
        Err(Stop::Short(missing)) => Ok(Decoded::Missing(missing)),
        Err(Stop::Bad(error)) => Err(error),
    }
}

/// The stop for input that has fewer than `least` bytes.
pub(super) const fn short(input: &[u8], least: usize) -> Stop {
    // Never 0, so that a driver who reads as many always gets on.
    match least.saturating_sub(input.len()) {
        0 => Stop::Short(1),
        missing => Stop::Short(missing),
    }
}

/// Checks the version and gives the second byte and the length of the options, which are the first four bytes of every
/// message over TCP. `least` is the length of the shortest message without options.
pub(super) fn head(input: &[u8], least: usize, profile: &Profile) -> Result<(u8, usize), Stop> {
    if let Some(&version) = input.first()
        && version != profile.version
    {
        return Err(DecodeError::Version(version).into());
    }
    let Some(&[_, second, high, low]) = input.first_chunk() else {
        return Err(short(input, least));
    };
    let length = u16::from_be_bytes([high, low]);
    let limit = profile.max_options;
    if length > limit {
        return Err(DecodeError::OptionsTooLong { length, limit }.into());
    }
    if profile.alignment == Alignment::Strict && !length.is_multiple_of(4) {
        return Err(DecodeError::OptionsUnaligned(length).into());
    }
    Ok((second, usize::from(length)))
}

/// The bytes from `from` to `to`, or how many are missing up to there.
pub(super) fn slice(input: &[u8], from: usize, to: usize) -> Result<&[u8], Stop> {
    input.get(from..to).ok_or_else(|| short(input, to))
}
