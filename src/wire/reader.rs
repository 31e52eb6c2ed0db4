//! Takes a message apart from front to back; the only place that knows how "too short" becomes "need more".

use std::net::{Ipv4Addr, Ipv6Addr};

use super::DecodeError;

/// The part of the input that is not read yet.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// Why reading ended before the message did.
pub(super) enum Stop {
    Short,
    Bad(DecodeError),
}

impl<E: Into<DecodeError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Bad(error.into())
    }
}

/// Runs `read` over `input` and gives its value with the number of bytes it took.
pub(super) fn decode<'a, T>(
    input: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Stop>,
) -> Result<Option<(T, usize)>, DecodeError> {
    let mut reader = Reader { rest: input };
    match read(&mut reader) {
        Ok(value) => Ok(Some((value, input.len() - reader.rest.len()))),
        Err(Stop::Short) => Ok(None),
        Err(Stop::Bad(error)) => Err(error),
    }
}

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Stop::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Stop> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Stop::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// One byte of length, then as many bytes.
    pub(super) fn counted(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.byte()?;
        self.take(usize::from(length))
    }

    /// The bytes up to a NUL, which is taken too. More than `limit` bytes without one are `too_long`.
    pub(super) fn until_nul(
        &mut self,
        limit: usize,
        too_long: DecodeError,
    ) -> Result<&'a [u8], Stop> {
        match self.rest.iter().take(limit + 1).position(|&byte| byte == 0) {
            Some(length) => {
                let text = self.take(length)?;
                self.byte()?;
                Ok(text)
            }
            None if self.rest.len() > limit => Err(too_long.into()),
            None => Err(Stop::Short),
        }
    }

    pub(super) fn version(&mut self, expected: u8) -> Result<(), Stop> {
        match self.byte()? {
            byte if byte == expected => Ok(()),
            byte => Err(DecodeError::Version(byte).into()),
        }
    }

    pub(super) fn port(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn ipv4(&mut self) -> Result<Ipv4Addr, Stop> {
        Ok(Ipv4Addr::from(self.array::<4>()?))
    }

    pub(super) fn ipv6(&mut self) -> Result<Ipv6Addr, Stop> {
        Ok(Ipv6Addr::from(self.array::<16>()?))
    }
}
