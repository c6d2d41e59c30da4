//! Content digests: strict parsing, incremental hashing, verified reading (OCI image-spec, descriptor, "Digests").
//!
//! A [`Digest`] can only hold an algorithm that Hull can check and lower-case hexadecimal digits of exactly the right
//! number, so it is safe to use as a file name.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// The hash functions that the image specification registers and Hull checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the one that every registry uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// `algorithm:hex` of some content.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon between algorithm and digits.
    #[error("{0:?} is not a digest: expected sha256:<64 hex digits>")]
    NoAlgorithm(String),
    /// An algorithm that cannot be checked.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    UnknownAlgorithm(String),
    /// The wrong number of digits.
    #[error("a {algorithm} digest has {expected} hex digits, not {got}")]
    Length {
        /// The algorithm named in front.
        algorithm: &'static str,
        /// Digits that it needs.
        expected: usize,
        /// Digits that were there.
        got: usize,
    },
    /// Something else than 0-9 and a-f.
    #[error("a digest consists of the digits 0-9 and a-f in lower case, but {0:?} is in it")]
    NotHex(char),
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve digits, as docker prints image ids.
    pub fn short(&self) -> &str {
        self.hex.get(..12).unwrap_or(&self.hex)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err(DigestError::NoAlgorithm(text.chars().take(80).collect()));
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => return Err(DigestError::UnknownAlgorithm(other.chars().take(40).collect())),
        };
        if let Some(stranger) = hex.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(DigestError::NotHex(stranger));
        }
        if hex.len() != algorithm.hex_length() {
            let (algorithm, expected) = (algorithm.name(), algorithm.hex_length());
            return Err(DigestError::Length { algorithm, expected, got: hex.len() });
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An incremental hash.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest { algorithm: Algorithm::Sha256, hex: hex(&state.finalize()) },
            Self::Sha512(state) => Digest { algorithm: Algorithm::Sha512, hex: hex(&state.finalize()) },
        }
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from(DIGITS[usize::from(n)]))
        .collect::<String>()
        .into()
}

/// Passes a stream through and hashes what passes.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// Bytes that have passed.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The stream underneath.
    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The digest of everything that has passed.
    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_answers() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        let mut sha512 = Hasher::new(Algorithm::Sha512);
        sha512.update(b"abc");
        assert!(sha512.finish().to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
    }

    #[test]
    fn refuses_what_could_be_a_path_or_ambiguous() {
        let long = "a".repeat(64);
        for (bad, expected) in [
            ("", "is not a digest"),
            ("sha256", "is not a digest"),
            ("sha256:", "64 hex digits, not 0"),
            ("sha256:../../etc/passwd", "'.'"),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", "\"md5\""),
            (&format!("sha256:{}", long.to_uppercase()), "'A'"),
            (&format!("sha256:{long}0"), "not 65"),
            (&format!("sha512:{long}"), "128 hex digits, not 64"),
            (&format!("SHA256:{long}"), "\"SHA256\""),
            (&format!(" sha256:{long}"), "\" sha256\""),
        ] {
            let error = bad.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains(expected), "{bad:?} gave {error:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_anything_never_panics_and_round_trips(text in "\\PC{0,140}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn every_digest_reads_back(bytes: Vec<u8>) {
            let digest = Digest::of(&bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        }

        #[test]
        fn a_hashing_reader_hashes_what_it_hands_out(bytes: Vec<u8>) {
            let mut reader = HashingReader::new(&bytes[..], Algorithm::Sha256);
            io::copy(&mut reader, &mut io::sink()).unwrap();
            prop_assert_eq!(reader.count(), bytes.len() as u64);
            prop_assert_eq!(reader.finish(), Digest::of(&bytes));
        }
    }
}
