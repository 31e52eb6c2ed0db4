//! The JSON of daemons, walked through as it comes: nothing of it is kept here, however much there is.
//!
//! One walk for every API: a type for each answer would be nicer to read and tens of kilobytes of program.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::net::IpAddr;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What may stand behind the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing but blanks, to the end.
    Blank,
    /// Anything: nobody waits for the end.
    Ignored,
}

/// What is met on a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met<'t> {
    Text(&'t str),
    Bool(bool),
    /// A number, or `null`.
    Other,
    /// An object, after all of its members.
    Object,
    /// A list, after all of its elements.
    List,
}

/// Where on a walk: the names of members; an element of a list is `#`.
#[derive(Debug, Default)]
pub(super) struct Path {
    names: Vec<String>,
    /// For the next ones, so that a long list needs no new ones.
    spare: Vec<String>,
}

impl Path {
    /// Whether this is the place; `*` stands for any one name.
    pub(super) fn is(&self, place: &[&str]) -> bool {
        let mut pairs = self.names.iter().zip(place);
        self.names.len() == place.len()
            && pairs.all(|(name, wanted)| *wanted == "*" || name == wanted)
    }

    /// One level down. Of a long name the start is kept.
    fn enter(&mut self, name: &str) {
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.clear();
        kept.extend(name.chars().take(MAX_NAME));
        self.names.push(kept);
    }

    fn leave(&mut self) {
        self.spare.extend(self.names.pop());
    }
}

/// What is done with what is met.
pub(super) type Meet<'m> = &'m mut dyn FnMut(&Path, Met<'_>);

/// Reads one value and tells `meet` of everything in it that is not nested too deeply.
///
/// # Errors
/// Not JSON, or the reader's own error, for users to read.
pub(super) fn walk(from: &mut dyn Read, rest: Rest, meet: Meet<'_>) -> Result<(), String> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(from));
    let mut path = Path::default();
    let walk = Walk {
        path: &mut path,
        meet,
    };
    let mut result = walk.deserialize(&mut json);
    if rest == Rest::Blank {
        result = result.and_then(|()| json.end());
    }
    result.map_err(|error| {
        if error.is_io() {
            return io::Error::from(error).to_string();
        }
        format!("the answer is not JSON: {error}")
    })
}

struct Walk<'p, 'm> {
    path: &'p mut Path,
    meet: Meet<'m>,
}

impl Walk<'_, '_> {
    fn met<E>(self, what: Met<'_>) -> Result<(), E> {
        (self.meet)(self.path, what);
        Ok(())
    }

    /// For a member or element.
    fn inner(&mut self) -> Walk<'_, '_> {
        Walk {
            path: self.path,
            meet: self.meet,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.names.len() > MAX_DEPTH {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(drop);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.met(Met::Text(text))
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.met(Met::Bool(value))
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.met(Met::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.met(Met::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.met(Met::Other)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.met(Met::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        self.path.enter("#");
        while list.next_element_seed(self.inner())?.is_some() {}
        self.path.leave();
        self.met(Met::List)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        while object.next_key_seed(Name(self.path))?.is_some() {
            object.next_value_seed(self.inner())?;
            self.path.leave();
        }
        self.met(Met::Object)
    }
}

/// The name of a member, to be entered.
struct Name<'p>(&'p mut Path);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.enter(text);
        Ok(())
    }
}

/// An address in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpText {
    /// An empty string: a peer that is down, say.
    Missing,
    /// Something else.
    Bad,
    /// The address.
    Ip(IpAddr),
}

impl IpText {
    pub(super) fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Missing;
        }
        text.parse().map_or(Self::Bad, Self::Ip)
    }
}

/// What is asked for is not nested more deeply, and each level costs stack.
const MAX_DEPTH: usize = 6;

/// Longer than every name that is looked for.
const MAX_NAME: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is met, one a line: `a/#=text`.
    fn met(text: &str) -> Result<String, String> {
        let mut all = String::new();
        walk(&mut text.as_bytes(), Rest::Blank, &mut |path, met| {
            all += &format!("{}={met:?}\n", path.names.join("/"));
        })?;
        Ok(all)
    }

    #[test]
    fn everything_is_met_in_order() {
        let text = r#" {"a":["x",{"b":true}],"c":{},"d":[null,1,-2,3.5e1]} "#;
        assert_eq!(
            met(text).unwrap(),
            "a/#=Text(\"x\")\na/#/b=Bool(true)\na/#=Object\na=List\nc=Object\nd/#=Other\nd/#=Other\nd/#=Other\nd/#=Other\nd=List\n=Object\n"
        );
    }

    #[test]
    fn places_are_compared_name_by_name() {
        let mut path = Path::default();
        for name in ["Peer", "nodekey:a", "#"] {
            path.enter(name);
        }
        assert!(path.is(&["Peer", "*", "#"]) && path.is(&["Peer", "nodekey:a", "#"]));
        for other in [
            &["Peer", "*"][..],
            &["Peer", "*", "#", "*"],
            &["*", "*", "x"],
        ] {
            assert!(!path.is(other), "{other:?}");
        }
        path.leave();
        assert!(path.is(&["Peer", "*"]) && !path.is(&[]));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, cause) in [
            ("", "EOF"),
            ("<html>", "expected value"),
            ("[\"::1\"", "EOF"),
            ("[] []", "trailing"),
            ("{1:2}", "key must be a string"),
            ("{\"a\"}", "expected `:`"),
            ("[\"\u{1}\"]", "control character"),
        ] {
            let error = met(text).expect_err(text);
            assert!(
                error.starts_with("the answer is not JSON: ") && error.contains(cause),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn depth_needs_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let lists = met(&deep).unwrap();
        assert_eq!(lists.lines().count(), MAX_DEPTH + 1, "{lists}");
        assert!(met(&"[".repeat(1_000_000)).unwrap_err().contains("EOF"));
        assert!(
            met(&"{\"a\":".repeat(1_000_000))
                .unwrap_err()
                .contains("EOF")
        );
    }

    #[test]
    fn long_names_are_cut() {
        let text = format!("{{\"{}\":1}}", "é".repeat(1_000));
        assert_eq!(
            met(&text).unwrap(),
            format!("{}=Other\n=Object\n", "é".repeat(MAX_NAME))
        );
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
        walk(&mut Endless(b"[\"::1\"]"), Rest::Ignored, &mut |_, _| {}).unwrap();
    }
}
