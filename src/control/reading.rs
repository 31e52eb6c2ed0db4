//! Reading answers: one object or list at a time, its values left as text until they are asked for.
//!
//! serde_json makes a reader of text anew for each type and all that is in it: 50 KB of program for the answers of this protocol.
//! Here only names and texts are told apart by it, and what is made for each type is small.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer as _, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::value::RawValue;
use serde_json::{Error, Number};

use super::messages::{
    AnyStatus, Connected, Disconnected, Draining, HandOver, Probing, ProxyEntry, Role,
    ServerStatus, Status,
};

/// What a call can be answered with.
pub trait Readable: Sized {
    /// Reads the JSON text of a result.
    ///
    /// # Errors
    /// It is not JSON, or not what this type is written as.
    fn read(json: &str) -> Result<Self, Error>;
}

macro_rules! readable {
    ($($answer:ty),*) => { $(
        impl Readable for $answer {
            fn read(json: &str) -> Result<Self, Error> {
                read(json)
            }
        }
    )* };
}

readable!(
    Status,
    ServerStatus,
    Vec<ProxyEntry>,
    Connected,
    Disconnected,
    Draining,
    HandOver,
    Probing
);

impl Readable for AnyStatus {
    fn read(json: &str) -> Result<Self, Error> {
        match read::<Answered>(json)?.role {
            Some(Role::Server) => read(json).map(Self::Server),
            None => read(json).map(Self::Forwarder),
        }
    }
}

/// What says who has answered.
#[derive(Deserialize)]
struct Answered {
    role: Option<Role>,
}

/// Reads a value of any type that is made of objects, lists, texts, numbers and names.
pub(super) fn read<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    T::deserialize(Text(json.trim_ascii()))
}

/// The text of one value of JSON.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn items(self) -> Result<Vec<&'a RawValue>, Error> {
        serde_json::from_str(self.0)
    }

    fn members(self) -> Result<Vec<(String, &'a RawValue)>, Error> {
        serde_json::from_str::<Members<'_>>(self.0).map(|Members(members)| members)
    }

    fn number(self) -> Result<Number, Error> {
        serde_json::from_str(self.0)
    }

    fn text(self) -> Result<String, Error> {
        serde_json::from_str(self.0)
    }

    /// The error for a value of another kind, or for none at all.
    #[cold]
    fn unexpected(self, expected: &dyn serde::de::Expected) -> Error {
        // What is not JSON is told as that.
        if let Err(error) = serde_json::from_str::<&RawValue>(self.0) {
            return error;
        }
        let found = match self.0.as_bytes().first() {
            Some(b'{') => Unexpected::Map,
            Some(b'[') => Unexpected::Seq,
            Some(b'"') => Unexpected::Other("text"),
            Some(b't' | b'f') => Unexpected::Other("true or false"),
            Some(b'n') => Unexpected::Unit,
            _ => Unexpected::Other("this number"),
        };
        Error::invalid_type(found, expected)
    }
}

impl<'de> Deserializer<'de> for Text<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        Err(self.unexpected(&visitor))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.number().ok().and_then(|number| number.as_u64()) {
            Some(number) => visitor.visit_u64(number),
            None => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.number().ok().and_then(|number| number.as_i64()) {
            Some(number) => visitor.visit_i64(number),
            None => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.number().ok().and_then(|number| number.as_f64()) {
            Some(number) => visitor.visit_f64(number),
            None => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text() {
            Ok(text) => visitor.visit_string(text),
            Err(_) => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            "null" => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if !self.0.starts_with('[') {
            return Err(self.unexpected(&visitor));
        }
        visitor.visit_seq(Items(self.items()?.into_iter()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if !self.0.starts_with('{') {
            return Err(self.unexpected(&visitor));
        }
        visitor.visit_map(Object {
            left: self.members()?.into_iter(),
            value: "",
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.text() {
            Ok(text) => visitor.visit_enum(text.into_deserializer()),
            Err(_) => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u128 f32 char str bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct identifier
    }
}

/// What is left of a list.
struct Items<'a>(std::vec::IntoIter<&'a RawValue>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.0.next() else {
            return Ok(None);
        };
        seed.deserialize(Text(item.get())).map(Some)
    }
}

/// What is left of an object, and the value of the name that was given last.
struct Object<'a> {
    left: std::vec::IntoIter<(String, &'a RawValue)>,
    value: &'a str,
}

impl<'de> MapAccess<'de> for Object<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.left.next() else {
            return Ok(None);
        };
        self.value = value.get();
        let name: StrDeserializer<'_, Error> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Text(self.value))
    }
}

/// The names of an object with their values, as they came.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Collect)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
    struct All {
        flag: bool,
        port: u16,
        code: i32,
        small: u32,
        large: u64,
        signed: i64,
        float: f64,
        text: String,
        #[serde(default)]
        maybe: Option<Vec<u64>>,
        map: BTreeMap<String, Vec<String>>,
    }

    fn all() -> All {
        All {
            flag: true,
            port: 1080,
            code: -32000,
            small: u32::MAX,
            large: u64::MAX,
            signed: i64::MIN,
            float: -1.5e-7,
            text: "a \"b\" \u{1f600} \u{7}\\".to_owned(),
            maybe: Some(vec![0, 7]),
            map: [("x\"\n".to_owned(), vec![String::new()])].into(),
        }
    }

    #[test]
    fn everything_is_read_as_it_was_written() {
        for json in [
            serde_json::to_string(&all()).unwrap(),
            serde_json::to_string_pretty(&all()).unwrap(),
        ] {
            assert_eq!(read::<All>(&json).unwrap(), all(), "{json}");
            let padded = format!(" \n{json}\t\n");
            assert_eq!(read::<All>(&padded).unwrap(), all());
        }
    }

    #[test]
    fn what_is_missing_or_null_is_what_serde_says() {
        let json = serde_json::to_string(&all()).unwrap();
        for (from, to) in [("[0,7]", "null"), (",\"maybe\":[0,7]", "")] {
            let read: All = read(&json.replace(from, to)).unwrap();
            assert_eq!(read.maybe, None);
        }
        let read: All = read(&json.replacen('{', "{\"new\":[{\"a\":1}],", 1)).unwrap();
        assert_eq!(read, all(), "names that it does not know are passed over");
    }

    #[test]
    fn every_other_kind_is_an_error_that_serde_json_sees_too() {
        let json = serde_json::to_string(&all()).unwrap();
        for (from, to) in [
            ("true", "1"),
            ("1080", "65536"),
            ("-32000", "3000000000"),
            ("true", "null"),
            ("4294967295", "4294967296"),
            ("4294967295", "-1"),
            ("18446744073709551615", "18446744073709551616"),
            ("-9223372036854775808", "1.5"),
            ("-1.5e-7", "\"1\""),
            ("-1.5e-7", "{}"),
            ("\"text\":", "\"txt\":"),
            ("[0,7]", "[0,\"7\"]"),
            ("[0,7]", "{\"0\":7}"),
            ("[0,7]", "7"),
            ("[\"\"]", "[null]"),
            ("{\"x", "[\"x"),
        ] {
            let bad = json.replacen(from, to, 1);
            assert_ne!(bad, json, "{from}");
            assert!(serde_json::from_str::<All>(&bad).is_err(), "{bad}");
            let error = read::<All>(&bad).unwrap_err().to_string();
            assert!(!error.is_empty(), "{bad}");
        }
        for cut in 0..json.len() {
            if let Some(bad) = json.get(..cut) {
                assert!(read::<All>(bad).is_err(), "{bad}");
            }
        }
        for bad in ["", "{", "[]", "7", "null", "{}x", "{\"flag\"}", "\u{7f}"] {
            assert!(read::<All>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(1_000_000);
        assert!(read::<All>(&deep).is_err());
        assert!(read::<Vec<Vec<u64>>>(&deep).is_err());
        assert!(read::<All>(&format!("{{\"new\":{deep}")).is_err());
    }

    #[test]
    fn an_answer_is_its_who_has_answered() {
        // What is missing says which of both it was read as.
        for (json, missing) in [
            (r#"{"role":"server"}"#, "missing field `listening`"),
            ("{}", "missing field `mode`"),
            (r#"{"role":"broker"}"#, "unknown variant `broker`"),
            ("7", "invalid type"),
        ] {
            let error = AnyStatus::read(json).unwrap_err().to_string();
            assert!(error.contains(missing), "{json}: {error}");
        }
    }
}
