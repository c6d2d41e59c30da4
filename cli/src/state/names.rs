//! Container names: those a user may give, and random ones for who gives none.

use std::str::FromStr;

use super::StateError;

/// A valid container name: docker's `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, at most 128 characters. Safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && (2..=128).contains(&text.len()) && text.bytes().all(inner) {
            Ok(Self(text.to_owned()))
        } else {
            Err(StateError::BadName(text.chars().take(140).collect()))
        }
    }
}

const ADJECTIVES: [&str; 48] = [
    "able", "amber", "ample", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp",
    "deft", "eager", "early", "fair", "fleet", "fond", "frank", "gentle", "glad", "grand", "happy", "hardy",
    "honest", "jolly", "keen", "kind", "lively", "lucid", "merry", "mild", "neat", "nimble", "noble",
    "patient", "plucky", "polite", "proud", "quick", "quiet", "ready", "sturdy", "sunny", "swift", "tidy",
    "trusty", "warm",
];

const SHIPS: [&str; 48] = [
    "ark", "barge", "bark", "brig", "canoe", "caravel", "carrack", "catboat", "clipper", "cog", "coracle",
    "corvette", "cutter", "dhow", "dinghy", "dory", "ferry", "frigate", "galleon", "galley", "gig",
    "gondola", "hoy", "hulk", "junk", "kayak", "ketch", "launch", "longship", "lugger", "packet", "pinnace",
    "pontoon", "proa", "punt", "raft", "sampan", "schooner", "scow", "skiff", "sloop", "smack", "tender",
    "trawler", "trireme", "tug", "xebec", "yawl",
];

/// A name made of two words; from the third attempt on with a number behind it.
pub fn random_name(attempt: u32) -> String {
    let random = |below: usize| {
        use std::hash::{BuildHasher, Hasher, RandomState};
        // A fresh RandomState is seeded by the operating system: good enough to pick words.
        usize::try_from(RandomState::new().build_hasher().finish() % below as u64).unwrap_or(0)
    };
    let words = format!("{}_{}", ADJECTIVES[random(ADJECTIVES.len())], SHIPS[random(SHIPS.len())]);
    if attempt < 3 { words } else { format!("{words}{}", random(10_000)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for good in ["ab", "a.b-c_d", "0x", "A1"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "a", ".a", "-a", "_a", "a/b", "a b", "..", "ä1", &"a".repeat(129)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        for attempt in 0..8 {
            assert!(random_name(attempt).parse::<Name>().is_ok());
        }
    }

    proptest! {
        #[test]
        fn a_name_is_one_plain_file_name(text in "\\PC{0,20}") {
            if text.parse::<Name>().is_ok() {
                prop_assert!(!text.contains('/') && !text.starts_with('.') && text.is_ascii());
            }
        }
    }
}
