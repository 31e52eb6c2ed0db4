//! Reading answers: one object or list at a time, its values left as text until they are asked for.
//!
//! serde_json, and what serde derives, make a reader anew for each type and all that is in it: 60 KB of program for the answers of
//! this protocol. Here only names, texts and numbers are told apart by it, and a member is one call.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Error, Number};

use super::messages::{
    AnyStatus, ByName, Bytes, Candidates, Connected, Connections, Disconnected, Draining,
    ErrorCode, ErrorData, ErrorObject, HandOver, Id, LastError, PeerStatus, Probing, ProxyEntry,
    RemoteStreams, Role, ServerStatus, SourceState, Status, UserStatus,
};
use crate::choice::Mode;

/// What a call can be answered with, and what such an answer is made of.
pub trait Readable: Sized {
    /// Reads the JSON text of a result.
    ///
    /// # Errors
    /// It is not JSON, or not what this type is written as.
    fn read(json: &str) -> Result<Self, Error>;
}

impl Readable for String {
    fn read(json: &str) -> Result<Self, Error> {
        serde_json::from_str(json)
    }
}

impl Readable for bool {
    fn read(json: &str) -> Result<Self, Error> {
        serde_json::from_str(json)
    }
}

impl Readable for Number {
    fn read(json: &str) -> Result<Self, Error> {
        serde_json::from_str(json)
    }
}

impl Readable for u64 {
    fn read(json: &str) -> Result<Self, Error> {
        let number = Number::read(json)?;
        number.as_u64().ok_or_else(|| out_of_range(&number))
    }
}

impl Readable for u32 {
    fn read(json: &str) -> Result<Self, Error> {
        let number = Number::read(json)?;
        let small = number.as_u64().and_then(|number| number.try_into().ok());
        small.ok_or_else(|| out_of_range(&number))
    }
}

impl Readable for i64 {
    fn read(json: &str) -> Result<Self, Error> {
        let number = Number::read(json)?;
        number.as_i64().ok_or_else(|| out_of_range(&number))
    }
}

impl Readable for f64 {
    fn read(json: &str) -> Result<Self, Error> {
        let number = Number::read(json)?;
        number.as_f64().ok_or_else(|| out_of_range(&number))
    }
}

#[cold]
fn out_of_range(number: &Number) -> Error {
    Error::custom(format_args!("not a number that can be here: {number}"))
}

impl<T: Readable> Readable for Option<T> {
    fn read(json: &str) -> Result<Self, Error> {
        match json {
            "null" => Ok(None),
            _ => T::read(json).map(Some),
        }
    }
}

impl<T: Readable> Readable for Vec<T> {
    fn read(json: &str) -> Result<Self, Error> {
        let items: Vec<&RawValue> = serde_json::from_str(json)?;
        let mut list = Self::new();
        for item in items {
            list.push(T::read(item.get())?);
        }
        Ok(list)
    }
}

impl<T: Readable> Readable for ByName<T> {
    fn read(json: &str) -> Result<Self, Error> {
        let mut map = Self::default();
        for (name, value) in members(json)? {
            map.insert(name, T::read(value.get())?);
        }
        Ok(map)
    }
}

/// An object whose members are asked for by name. What is wrong with the first of them that is, the [end](Self::end) tells.
pub(super) struct Object<'a> {
    members: Vec<(String, &'a RawValue)>,
    wrong: Option<Error>,
}

impl<'a> Object<'a> {
    pub(super) fn read(json: &'a str) -> Result<Self, Error> {
        Ok(Self {
            members: members(json)?,
            wrong: None,
        })
    }

    /// Reads the member `name`; without it, `into` stays as it is.
    pub(super) fn optional<T: Readable>(&mut self, name: &str, into: &mut T) {
        if let Some(json) = self.raw(name) {
            match T::read(json.get()) {
                Ok(value) => *into = value,
                Err(error) => self.is_wrong(error),
            }
        }
    }

    /// Reads the member `name`, which has to be there.
    pub(super) fn needed<T: Readable>(&mut self, name: &'static str, into: &mut T) {
        if !self.members.iter().any(|(known, _)| known == name) {
            self.is_wrong(Error::missing_field(name));
        }
        self.optional(name, into);
    }

    /// The member `name` as it came.
    pub(super) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        let mut found = self.members.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| *value);
        if found.next().is_some() {
            self.is_wrong(Error::custom(format_args!("duplicate field `{name}`")));
        }
        value
    }

    /// Other members than these are wrong.
    pub(super) fn only(&mut self, names: &[&str]) {
        let mut members = self.members.iter().map(|(name, _)| name.as_str());
        if let Some(other) = members.find(|name| !names.contains(name)) {
            let error = Error::custom(format_args!("unknown field `{other}`"));
            self.is_wrong(error);
        }
    }

    /// What was read, if all of it was right.
    pub(super) fn end<T>(self, value: T) -> Result<T, Error> {
        match self.wrong {
            None => Ok(value),
            Some(error) => Err(error),
        }
    }

    fn is_wrong(&mut self, error: Error) {
        self.wrong.get_or_insert(error);
    }
}

/// The members that an object needs, and those that it may be without.
macro_rules! object {
    ($type:ty: $($needed:ident)*; $($optional:ident)*) => {
        object!($type = Self::default(); $($needed)*; $($optional)*);
    };
    ($type:ty = $default:expr; $($needed:ident)*; $($optional:ident)*) => {
        impl Readable for $type {
            fn read(json: &str) -> Result<Self, Error> {
                let mut this: Self = $default;
                let mut object = Object::read(json)?;
                $( object.needed(stringify!($needed), &mut this.$needed); )*
                $( object.optional(stringify!($optional), &mut this.$optional); )*
                object.end(this)
            }
        }
    };
}

object!(Status: mode listening probing connections bytes candidates uptime_s;
    remote reason sources streams last_error served_directly associations confined_by);
object!(ServerStatus: role listening connections bytes uptime_s;
    users via clients associations sessions dropped_datagrams by_user confined_by);
object!(UserStatus: active total bytes;);
object!(HandOver: process listeners mode known remotes;);
object!(Draining: draining;);
object!(SourceState: name; error left_out);
object!(RemoteStreams: remote selected live; total bytes cut_in_s);
object!(Connections: active parked total refused; refused_by_reason);
object!(Bytes: up down;);
object!(LastError: at what;);
object!(ProxyEntry = Self { candidate: true, ..Self::default() };
    address status reason sources failures selected;
    latency_ms last_probed_s last_valid_s score latency_spread_ms good_for_s candidate preferred why);
object!(Connected: remote; listening draining);
object!(Disconnected: ; closed);
object!(Probing: probing;);
object!(ErrorObject = Self::new(ErrorCode::Internal, ""); code message; data);
object!(ErrorData: ; reason hint);

impl Readable for Candidates {
    fn read(json: &str) -> Result<Self, Error> {
        let mut this = Self::default();
        let mut object = Object::read(json)?;
        object.needed("valid", &mut this.valid);
        object.needed("authentication-required", &mut this.authentication_required);
        object.optional("socks6", &mut this.socks6);
        object.needed("not-a-proxy", &mut this.not_a_proxy);
        object.needed("not-listening", &mut this.not_listening);
        object.needed("unknown", &mut this.unknown);
        object.end(this)
    }
}

impl Readable for AnyStatus {
    fn read(json: &str) -> Result<Self, Error> {
        let mut role: Option<Role> = None;
        let mut object = Object::read(json)?;
        object.optional("role", &mut role);
        match object.end(role)? {
            Some(Role::Server) => ServerStatus::read(json).map(Self::Server),
            None => Status::read(json).map(Self::Forwarder),
        }
    }
}

/// Which of these it names.
fn named<T: Copy + fmt::Display>(json: &str, known: &[T]) -> Result<T, Error> {
    let name = String::read(json)?;
    let mut known = known.iter().filter(|known| known.to_string() == name);
    let unknown = || Error::custom(format_args!("unknown variant `{name}`"));
    known.next().copied().ok_or_else(unknown)
}

impl Readable for Mode {
    fn read(json: &str) -> Result<Self, Error> {
        named(json, &[Self::Automatic, Self::Explicit, Self::Manual])
    }
}

impl Readable for PeerStatus {
    fn read(json: &str) -> Result<Self, Error> {
        let known = [
            Self::Valid,
            Self::AuthenticationRequired,
            Self::Socks6,
            Self::NotAProxy,
            Self::NotListening,
            Self::Unknown,
        ];
        named(json, &known)
    }
}

impl Readable for Role {
    fn read(json: &str) -> Result<Self, Error> {
        named(json, &["server"]).map(|_| Self::Server)
    }
}

impl Readable for ErrorCode {
    fn read(json: &str) -> Result<Self, Error> {
        i64::read(json).map(Self::from)
    }
}

impl Readable for Id {
    fn read(json: &str) -> Result<Self, Error> {
        match json.as_bytes().first() {
            _ if json == "null" => Ok(Self::Null),
            Some(b'"') => String::read(json).map(Self::Text),
            Some(b'-' | b'0'..=b'9') => Number::read(json).map(Self::Number),
            _ => Err(Error::custom("an id is a number, a text or null")),
        }
    }
}

fn members(json: &str) -> Result<Vec<(String, &RawValue)>, Error> {
    serde_json::from_str::<Members<'_>>(json).map(|Members(members)| members)
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

    // What serde derives is the measure.
    #[derive(Debug, Default, PartialEq, serde::Serialize, Deserialize)]
    struct All {
        flag: bool,
        small: u32,
        large: u64,
        signed: i64,
        float: f64,
        text: String,
        #[serde(default)]
        maybe: Option<Vec<u64>>,
        #[serde(deserialize_with = "by_name")]
        map: ByName<Vec<String>>,
    }

    fn by_name<'de, D: Deserializer<'de>>(from: D) -> Result<ByName<Vec<String>>, D::Error> {
        BTreeMap::<String, _>::deserialize(from).map(ByName::from_iter)
    }

    object!(All: flag small large signed float text map; maybe);

    fn all() -> All {
        All {
            flag: true,
            small: u32::MAX,
            large: u64::MAX,
            signed: i64::MIN,
            float: -1.5e-7,
            text: "a \"b\" \u{1f600} \u{7}\\".to_owned(),
            maybe: Some(vec![0, 7]),
            map: ByName::from_iter([("x\"\n", vec![String::new()])]),
        }
    }

    #[test]
    fn everything_is_read_as_it_was_written() {
        for json in [
            serde_json::to_string(&all()).unwrap(),
            serde_json::to_string_pretty(&all()).unwrap(),
        ] {
            assert_eq!(All::read(&json).unwrap(), all(), "{json}");
            let padded = format!(" \n{json}\t\n");
            assert_eq!(All::read(&padded).unwrap(), all());
        }
    }

    #[test]
    fn what_is_missing_or_null_is_what_serde_says() {
        let json = serde_json::to_string(&all()).unwrap();
        for (from, to) in [("[0,7]", "null"), (",\"maybe\":[0,7]", "")] {
            let read = All::read(&json.replace(from, to)).unwrap();
            assert_eq!(read.maybe, None);
        }
        let read = All::read(&json.replacen('{', "{\"new\":[{\"a\":1}],", 1)).unwrap();
        assert_eq!(read, all(), "names that it does not know are passed over");
    }

    #[test]
    fn every_other_kind_is_an_error_that_serde_json_sees_too() {
        let json = serde_json::to_string(&all()).unwrap();
        for (from, to) in [
            ("true", "1"),
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
            let error = All::read(&bad).unwrap_err().to_string();
            assert!(!error.is_empty(), "{bad}");
        }
        for cut in 0..json.len() {
            if let Some(bad) = json.get(..cut) {
                assert!(All::read(bad).is_err(), "{bad}");
            }
        }
        for bad in ["", "{", "[]", "7", "null", "{}x", "{\"flag\"}", "\u{7f}"] {
            assert!(All::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(1_000_000);
        assert!(All::read(&deep).is_err());
        assert!(Vec::<Vec<u64>>::read(&deep).is_err());
        assert!(All::read(&format!("{{\"new\":{deep}")).is_err());
    }

    #[test]
    fn a_name_that_is_there_twice_is_an_error() {
        let json = serde_json::to_string(&all()).unwrap();
        let twice = json.replacen('{', "{\"flag\":true,", 1);
        let error = All::read(&twice).unwrap_err().to_string();
        assert!(error.contains("duplicate field `flag`"), "{error}");
        let missing = json.replacen("\"flag\":true,", "", 1);
        let error = All::read(&missing).unwrap_err().to_string();
        assert_eq!(error, "missing field `flag`");
    }

    #[test]
    fn ids_are_numbers_texts_and_null() {
        let read = |json: &str| Id::read(json).map_err(|error| error.to_string());
        assert_eq!(read("7"), Ok(Id::from(7)));
        assert_eq!(read("-1.5").map(|id| id != Id::Null), Ok(true));
        assert_eq!(read("\"x\""), Ok(Id::Text("x".into())));
        assert_eq!(read("null"), Ok(Id::Null));
        for json in ["true", "[1]", "{}", "none"] {
            assert!(read(json).unwrap_err().contains("an id is"), "{json}");
        }
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
