//! Container ids: 64 hexadecimal digits, as docker's.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Deserializer, Serialize};

/// The id of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// A new random id.
    pub fn random() -> io::Result<Self> {
        loop {
            let text = random_hex::<32>()?;
            // docker avoids short ids that read as numbers: they would make poor host names.
            if !text[..12].bytes().all(|b| b.is_ascii_digit()) {
                return Ok(Self(text));
            }
        }
    }

    /// `Some` if `text` is a whole id.
    pub fn parse(text: &str) -> Option<Self> {
        let good = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned()))
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a container id has 64 hexadecimal digits"))
    }
}

/// `N` random bytes as hexadecimal digits.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = ContainerId::random().unwrap();
        assert_eq!(ContainerId::parse(id.as_str()), Some(id.clone()));
        assert_eq!(id.short().len(), 12);
        assert_ne!(id, ContainerId::random().unwrap());
        assert_eq!(ContainerId::parse("abc"), None);
        assert_eq!(ContainerId::parse(&"A".repeat(64)), None);
        assert_eq!(ContainerId::parse(&"../".repeat(22)[..64]), None);
    }
}
