//! What holds for every message in every profile.

use std::fmt::Debug;

use sockhop::wire::socks6::{DecodeError, Decoded, Problems, Profile};

pub(crate) type Decode<T> = fn(&[u8], &Profile) -> Result<Decoded<T>, DecodeError>;
pub(crate) type Encode<T> = fn(&T, &Profile, &mut Vec<u8>);

/// The message and its problems. Every truncation asks for a number of bytes that does not go past the message; who reads
/// as many as he is told ends at the end of the message; what follows it is left alone.
pub(crate) fn decodes<T: Debug + PartialEq>(
    decode: Decode<T>,
    bytes: &[u8],
    profile: &Profile,
) -> (T, Problems) {
    for cut in 0..bytes.len() {
        match decode(&bytes[..cut], profile) {
            Ok(Decoded::Missing(missing)) => {
                assert!(missing > 0, "{bytes:02x?} cut at {cut}");
                assert!(cut + missing <= bytes.len(), "{bytes:02x?} cut at {cut}");
            }
            other => panic!("{bytes:02x?} cut at {cut}: {other:?}"),
        }
    }
    let mut read = 0;
    let decoded = loop {
        match decode(&bytes[..read], profile) {
            Ok(Decoded::Missing(missing)) => read += missing,
            Ok(decoded) => break decoded,
            Err(error) => panic!("{bytes:02x?}: {error}"),
        }
    };
    assert_eq!(read, bytes.len());
    let mut longer = bytes.to_vec();
    longer.extend([0, 5, 0xff]);
    assert_eq!(decode(&longer, profile).as_ref(), Ok(&decoded));
    match decoded {
        Decoded::Whole {
            message,
            length,
            problems,
        } => {
            assert_eq!(length, bytes.len(), "{bytes:02x?}");
            (message, problems)
        }
        Decoded::Missing(_) => unreachable!("left the loop with a message"),
    }
}

pub(crate) fn encoded<T>(encode: Encode<T>, message: &T, profile: &Profile) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, profile, &mut out);
    out
}

/// Both ways, byte for byte.
pub(crate) fn both_ways<T: Debug + PartialEq>(
    decode: Decode<T>,
    encode: Encode<T>,
    bytes: &[u8],
    profile: &Profile,
) -> (T, Problems) {
    let (message, problems) = decodes(decode, bytes, profile);
    let out = encoded(encode, &message, profile);
    assert_eq!(out, bytes, "{message:?} in {profile}");
    (message, problems)
}
