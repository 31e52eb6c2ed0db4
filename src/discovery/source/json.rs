//! The JSON of daemons, read as it comes: what is kept of it has a limit, however much there is.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// What may stand behind the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing but blanks, to the end.
    Blank,
    /// Anything: nobody waits for the end.
    Ignored,
}

/// Reads one value.
///
/// # Errors
/// The text says what is wrong, and goes on where "the answer is" ends or is the reader's own error.
pub(super) fn read<T: DeserializeOwned>(from: &mut dyn Read, rest: Rest) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(from));
    let mut value = T::deserialize(&mut json);
    if rest == Rest::Blank {
        value = value.and_then(|value| json.end().map(|()| value));
    }
    value.map_err(|error| {
        if error.is_io() {
            return io::Error::from(error).to_string();
        }
        format!("the answer is not the JSON that it should be: {error}")
    })
}

/// An array, or the values of an object, of which the first `MAX` are kept. `null` is empty.
#[derive(Debug)]
pub(super) struct Capped<T, const MAX: usize> {
    pub(super) items: Vec<T>,
    pub(super) left_out: usize,
}

impl<T, const MAX: usize> Default for Capped<T, MAX> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            left_out: 0,
        }
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Capped<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CappedVisitor(PhantomData))
    }
}

struct CappedVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for CappedVisitor<T, MAX> {
    type Value = Capped<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Capped::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Capped::default();
        loop {
            if list.items.len() < MAX {
                match seq.next_element()? {
                    Some(item) => list.items.push(item),
                    None => return Ok(list),
                }
            } else {
                match seq.next_element::<IgnoredAny>()? {
                    Some(_) => list.left_out += 1,
                    None => return Ok(list),
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut list = Capped::default();
        while map.next_key::<IgnoredAny>()?.is_some() {
            if list.items.len() < MAX {
                list.items.push(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                list.left_out += 1;
            }
        }
        Ok(list)
    }
}

/// Reads a string that is not kept itself: `parse` makes a value of it. `null` is an empty string.
pub(super) fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: fn(&str) -> T,
) -> Result<T, D::Error> {
    struct Parsing<T>(fn(&str) -> T);
    impl<T> Visitor<'_> for Parsing<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E>(self, text: &str) -> Result<T, E> {
            Ok((self.0)(text))
        }

        fn visit_unit<E>(self) -> Result<T, E> {
            Ok((self.0)(""))
        }
    }
    deserializer.deserialize_any(Parsing(parse))
}

/// An address in a string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum IpText {
    /// No string, or an empty one: a peer that is down, say.
    #[default]
    Missing,
    /// Something else.
    Bad,
    /// The address.
    Ip(IpAddr),
}

impl IpText {
    fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Missing;
        }
        text.parse().map_or(Self::Bad, Self::Ip)
    }
}

impl<'de> Deserialize<'de> for IpText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, Self::parse)
    }
}

/// The first IPv4 and the first IPv6 address of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FirstOfEach {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

impl<'de> Deserialize<'de> for FirstOfEach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Capped::<IpText, FEW>::deserialize(deserializer)?;
        let mut first = Self::default();
        for ip in list.items {
            match ip {
                IpText::Ip(IpAddr::V4(ip)) => first.v4 = first.v4.or(Some(ip)),
                IpText::Ip(IpAddr::V6(ip)) => first.v6 = first.v6.or(Some(ip)),
                IpText::Missing | IpText::Bad => {}
            }
        }
        Ok(first)
    }
}

/// A node has one of each.
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn list<const MAX: usize>(text: &str) -> Result<Capped<IpText, MAX>, String> {
        read(&mut text.as_bytes(), Rest::Blank)
    }

    #[test]
    fn lists_and_objects_are_kept_to_their_limit() {
        let two = list::<2>(r#" ["::1", "1.2.3.4", "::3", "::4"] "#).unwrap();
        let expected = ["::1", "1.2.3.4"].map(|ip| IpText::Ip(ip.parse().unwrap()));
        assert_eq!((two.items.as_slice(), two.left_out), (&expected[..], 2));
        let object = list::<2>(r#"{"a":"::1","b":"1.2.3.4","c":["x",{}]}"#).unwrap();
        assert_eq!(
            (object.items.as_slice(), object.left_out),
            (&expected[..], 1)
        );
        let odd = list::<9>(r#"["", null, "x", "1.2.3"]"#).unwrap();
        use IpText::{Bad, Missing};
        assert_eq!(odd.items, [Missing, Missing, Bad, Bad]);
        assert!(list::<2>("null").unwrap().items.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, cause) in [
            ("", "EOF"),
            ("<html>", "expected value"),
            ("[\"::1\"", "EOF"),
            ("[] []", "trailing"),
            ("[1]", "a string"),
            ("3", "a list"),
        ] {
            let error = list::<2>(text).expect_err(text);
            assert!(error.contains(cause), "{text}: {error}");
        }
        let deep = format!("[{}", "[".repeat(1_000_000));
        let error = list::<2>(&deep).unwrap_err();
        assert!(error.contains("a string"), "{error}");
    }

    #[test]
    fn depth_of_what_is_left_out_needs_no_stack() {
        let deep = format!("[\"::1\",{}{}]", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(list::<1>(&deep).unwrap().left_out, 1);
    }

    #[test]
    fn the_first_of_each_kind_counts() {
        let first: FirstOfEach = read(
            &mut r#"["x","fd7a::1","100.64.0.1","100.64.0.2"]"#.as_bytes(),
            Rest::Blank,
        )
        .unwrap();
        assert_eq!(first.v4, Some(Ipv4Addr::new(100, 64, 0, 1)));
        assert_eq!(first.v6, Some("fd7a::1".parse().unwrap()));
    }

    #[test]
    fn nobody_waits_for_what_is_ignored() {
        struct Endless(&'static [u8]);
        impl Read for Endless {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                assert!(!self.0.is_empty(), "read beyond the value");
                self.0.read(out)
            }
        }
        let value: Capped<IpText, 1> = read(&mut Endless(b"[\"::1\"]"), Rest::Ignored).unwrap();
        assert_eq!(value.items.len(), 1);
    }
}
