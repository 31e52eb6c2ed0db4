//! Values that JSON does not name, told apart by looking at them.
//!
//! What serde derives for those first makes a copy of everything, with readers of its own: 40 KB of program.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::messages::{AnyStatus, Id, Role};

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::Number(number) => Ok(Self::Number(number)),
            Value::String(text) => Ok(Self::Text(text)),
            Value::Null => Ok(Self::Null),
            _ => Err(D::Error::custom("an id is a number, a text or null")),
        }
    }
}

impl<'de> Deserialize<'de> for AnyStatus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(from)?.get().as_bytes();
        let answered: Answered = serde_json::from_slice(json).map_err(D::Error::custom)?;
        let status = match answered.role {
            Some(Role::Server) => serde_json::from_slice(json).map(Self::Server),
            None => serde_json::from_slice(json).map(Self::Forwarder),
        };
        status.map_err(D::Error::custom)
    }
}

/// What says who has answered.
#[derive(Deserialize)]
struct Answered {
    role: Option<Role>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_texts_and_null() {
        let read = |json: &str| serde_json::from_str::<Id>(json).map_err(|error| error.to_string());
        assert_eq!(read("7"), Ok(Id::from(7)));
        assert_eq!(read("-1.5").map(|id| id != Id::Null), Ok(true));
        assert_eq!(read("\"x\""), Ok(Id::Text("x".into())));
        assert_eq!(read("null"), Ok(Id::Null));
        for json in ["true", "[1]", "{}"] {
            assert!(read(json).unwrap_err().contains("an id is"), "{json}");
        }
    }

    #[test]
    fn an_answer_is_its_who_has_answered() {
        let read =
            |json: &str| serde_json::from_str::<AnyStatus>(json).map_err(|error| error.to_string());
        // What is missing says which of both it was read as.
        for (json, missing) in [
            (r#"{"role":"server"}"#, "missing field `listening`"),
            ("{}", "missing field `mode`"),
            (r#"{"role":"broker"}"#, "unknown variant `broker`"),
            ("7", "invalid type"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(missing), "{json}: {error}");
        }
    }
}
