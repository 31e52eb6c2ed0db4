//! The text of the state file.
//!
//! ```text
//! sockhop-state 1
//! [407::1]:1080
//! 10.1.2.3:9050
//! end 2 ee280829
//! ```
//!
//! Addresses, the one to start with first; then how many there are, and the CRC-32 of all lines before. There is no time in it:
//! many routers have no clock until they are online. There is no password in it either: those come from the command line again.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;

/// The text for these addresses; those beyond [`MOST_ADDRESSES`] are left out.
pub(super) fn encode(addresses: &[SocketAddr]) -> String {
    let kept = addresses.get(..MOST_ADDRESSES).unwrap_or(addresses);
    let mut text = format!("{MAGIC}{VERSION}\n");
    for address in kept {
        text.push_str(&address.to_string());
        text.push('\n');
    }
    let sum = crc32(text.as_bytes());
    text.push_str(&format!("{END}{} {sum:08x}\n", kept.len()));
    text
}

/// The addresses of a file that is whole.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<SocketAddr>, Unusable> {
    if bytes.iter().all(|byte| *byte == 0) {
        // What a power cut leaves of a file whose data had not reached the disk, on some file systems.
        return Err(Unusable::Cut);
    }
    if bytes.len() > MOST_BYTES {
        return Err(match bytes.starts_with(MAGIC.as_bytes()) {
            true => Unusable::TooLong,
            false => Unusable::Foreign,
        });
    }
    let Some(version) = bytes.strip_prefix(MAGIC.as_bytes()) else {
        return Err(match MAGIC.as_bytes().starts_with(bytes) {
            true => Unusable::Cut,
            false => Unusable::Foreign,
        });
    };
    let Some(end) = version.iter().position(|byte| *byte == b'\n') else {
        return Err(Unusable::Cut);
    };
    if version.get(..end) != Some(VERSION.as_bytes()) {
        return Err(Unusable::OtherVersion);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Unusable::Damaged)?;
    let before_end = text.strip_suffix('\n').ok_or(Unusable::Cut)?;
    let last = before_end.rfind('\n').map_or(0, |at| at + 1);
    let (body, trailer) = before_end.split_at(last);
    let (count, sum) = trailer
        .strip_prefix(END)
        .and_then(|trailer| trailer.split_once(' '))
        .ok_or(Unusable::Cut)?;
    if sum != format!("{:08x}", crc32(body.as_bytes())) {
        return Err(Unusable::Damaged);
    }
    let addresses: Result<Vec<SocketAddr>, _> = body.lines().skip(1).map(str::parse).collect();
    let addresses = addresses.map_err(|_| Unusable::Damaged)?;
    match count.parse() == Ok(addresses.len()) && addresses.len() <= MOST_ADDRESSES {
        true => Ok(addresses),
        false => Err(Unusable::Damaged),
    }
}

/// Why a file tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Its end is missing.
    Cut,
    /// Something in it is not what was written.
    Damaged,
    /// Another version of this program wrote it.
    OtherVersion,
    /// It starts like one, and is longer than one can be.
    TooLong,
    /// It never was one.
    Foreign,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "its end is missing",
            Self::Damaged => "it is damaged",
            Self::OtherVersion => "another version of sockhop wrote it",
            Self::TooLong => "it is longer than one can be",
            Self::Foreign => "it is not a state file",
        })
    }
}

impl Error for Unusable {}

/// The one of zip and Ethernet. Bit by bit: a few kilobytes a quarter of an hour are not worth a table.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1 != 0;
            crc >>= 1;
            if carry {
                crc ^= 0xEDB8_8320;
            }
        }
    }
    !crc
}

/// Addresses in a file. More than any forwarder needs to find its way back, and 14 KiB at most.
pub(super) const MOST_ADDRESSES: usize = 256;

/// An address takes 56 bytes at most, `[v6%scope]:port` and a line feed.
pub(super) const MOST_BYTES: usize = 16 * 1024;

const MAGIC: &str = "sockhop-state ";
const VERSION: &str = "1";
const END: &str = "end ";

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_file_is_read_as_written() {
        let two = addresses(&["[407::1]:1080", "10.1.2.3:9050"]);
        let text = encode(&two);
        assert_eq!(
            text,
            "sockhop-state 1\n[407::1]:1080\n10.1.2.3:9050\nend 2 ee280829\n"
        );
        for list in [Vec::new(), two] {
            assert_eq!(decode(encode(&list).as_bytes()), Ok(list));
        }
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn the_longest_file_fits() {
        let longest: SocketAddr =
            "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%4294967295]:65535"
                .parse()
                .unwrap();
        let text = encode(&[longest; MOST_ADDRESSES + 3]);
        assert!(text.len() <= MOST_BYTES, "{}", text.len());
        assert_eq!(decode(text.as_bytes()).unwrap().len(), MOST_ADDRESSES);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let text = encode(&addresses(&["[407::1]:1080", "10.1.2.3:9050"]));
        for end in 0..text.len() {
            assert_eq!(
                decode(&text.as_bytes()[..end]),
                Err(Unusable::Cut),
                "{end} bytes"
            );
        }
        assert_eq!(decode(&[0; 300]), Err(Unusable::Cut));
    }

    #[test]
    fn a_bit_that_changed_is_noticed() {
        let text = encode(&addresses(&["[407::1]:1080", "10.1.2.3:9050"]));
        for place in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[place] ^= 1 << bit;
                assert!(decode(&bytes).is_err(), "bit {bit} of byte {place}");
            }
        }
    }

    #[test]
    fn what_is_none_is_told_apart() {
        let long = format!("{MAGIC}{VERSION}\n{}", "x".repeat(MOST_BYTES));
        for (text, unusable) in [
            ("root:x:0:0:root:/root:/bin/bash\n", Unusable::Foreign),
            ("sockhop-state 2\nx\n", Unusable::OtherVersion),
            ("sockhop-state 10\n", Unusable::OtherVersion),
            ("sockhop-state 1\nend 0 00000000\n", Unusable::Damaged),
            ("sockhop-state 1\n10.0.0.1:1080\n", Unusable::Cut),
            (long.as_str(), Unusable::TooLong),
            (&long[3..], Unusable::Foreign),
        ] {
            assert_eq!(decode(text.as_bytes()), Err(unusable), "{text:.30}");
        }
        // A sum that is right over lines that are not.
        for body in ["x\n", "10.0.0.1:1080 \n", "\n"] {
            let body = format!("{MAGIC}{VERSION}\n{body}");
            let text = format!("{body}{END}1 {:08x}\n", crc32(body.as_bytes()));
            assert_eq!(decode(text.as_bytes()), Err(Unusable::Damaged), "{body:?}");
        }
        let text = encode(&addresses(&["10.0.0.1:1080"])).replace("end 1", "end 2");
        assert_eq!(decode(text.as_bytes()), Err(Unusable::Damaged));
    }
}
