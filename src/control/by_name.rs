//! Values by name, as an object of JSON has them.

use serde::{Serialize, Serializer};

/// Values in the order of their names. There are few in a message: a tree of each kind would be 3 KB of program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByName<T>(Vec<(String, T)>);

impl<T> ByName<T> {
    /// Adds one, in the place of one of the same name.
    pub fn insert(&mut self, name: String, value: T) {
        let place = self.0.partition_point(|(known, _)| *known < name);
        match self.0.get_mut(place) {
            Some(same) if same.0 == name => same.1 = value,
            _ => self.0.insert(place, (name, value)),
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ByName<u64> {
    /// All of them together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Into<String>, T> FromIterator<(K, T)> for ByName<T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(entries: I) -> Self {
        let mut all = Self::default();
        for (name, value) in entries {
            all.insert(name.into(), value);
        }
        all
    }
}

impl<T: Serialize> Serialize for ByName<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_each_is_there_once() {
        let all: ByName<u64> = [("b", 1), ("c", 2), ("a", 3), ("b", 4)]
            .into_iter()
            .collect();
        let seen: Vec<_> = all.iter().collect();
        assert_eq!(seen, [("a", &3), ("b", &4), ("c", &2)]);
        assert_eq!(all.sum(), 9);
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(json, r#"{"a":3,"b":4,"c":2}"#);
    }
}
