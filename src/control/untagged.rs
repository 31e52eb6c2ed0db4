//! Ids, which JSON has several kinds of, told apart by looking at them.
//!
//! What serde derives for those has readers of its own.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::messages::Id;

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
}
