//! Names that cannot be paths, and bytes that are not numbers one by one.

use std::ffi::{CStr, CString};
use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::NAME_MAX;

/// One component of a path, or the name of an extended attribute: 1 to [`NAME_MAX`] bytes, neither `.` nor `..`,
/// without `/` and NUL. There is no other way to have one, by decoding neither.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(CString);

/// Why bytes are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// More than [`NAME_MAX`] bytes.
    #[error("the name is longer than {NAME_MAX} bytes")]
    TooLong,
    /// Empty, `.`, `..`, or with a `/` or a NUL in it.
    #[error("the name is empty, a dot or two, or has a slash or a NUL in it")]
    NotAComponent,
}

impl Name {
    /// Checks bytes, which come without NUL at the end.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidName> {
        if bytes.len() > NAME_MAX {
            return Err(InvalidName::TooLong);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(InvalidName::NotAComponent);
        }
        CString::new(bytes).map(Self).map_err(|_| InvalidName::NotAComponent)
    }

    /// For system calls.
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// Without NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(Borrowed)?;
        Self::new(bytes).map_err(D::Error::custom)
    }
}

/// Bytes, encoded as a run.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Borrowed).map(|bytes| Self(bytes.to_vec()))
    }
}

/// Bytes inside the message, so that a length that lies allocates nothing.
struct Borrowed;

impl<'de> Visitor<'de> for Borrowed {
    type Value = &'de [u8];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(bytes)
    }
}
