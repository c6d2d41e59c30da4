//! Image references: every spelling that docker accepts, normalised once, written back familiar or canonical.
//!
//! The grammar is that of the distribution project: `[registry[:port]/]path[/path...][:tag][@digest]`. The first component is a
//! registry when it holds a dot or a colon, is in brackets (IPv6), or is `localhost`; otherwise the image is on Docker Hub.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

#[cfg(test)]
mod tests;

/// Docker Hub's name in canonical references.
const HUB: &str = "docker.io";
/// Longest `registry/repository`.
const MAX_NAME: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// A parsed and normalised image reference.
///
/// It has a tag, a digest or both, never neither: `debian` means `debian:latest`. [`Display`](fmt::Display) gives the familiar form
/// (`debian:latest`), [`canonical`](Self::canonical) the full one (`docker.io/library/debian:latest`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("the image name is empty")]
    Empty,
    /// A URL instead of a name.
    #[error("{0:?} is a URL: write the image name without {1}")]
    Scheme(String, &'static str),
    /// 64 hex digits can only be an image id.
    #[error("{0:?} is an image id, not a name that can be pulled")]
    LooksLikeId(String),
    /// `registry/repository` is too long.
    #[error("the image name is {0} characters long, at most {MAX_NAME} are allowed")]
    TooLong(usize),
    /// The host part.
    #[error("{0:?} is not a registry: expected host, host:port or [IPv6]:port")]
    Registry(String),
    /// Upper case in the path.
    #[error("the repository name {0:?} must be in lower case")]
    UpperCase(String),
    /// A path component.
    #[error(
        "{component:?} in the image name {name:?} is not valid: a component consists of a-z, 0-9 and single '.', '_', '__' or '-' between them"
    )]
    Component {
        /// The offending part.
        component: String,
        /// All that was given.
        name: String,
    },
    /// The tag.
    #[error(
        "the tag {0:?} is not valid: a tag has 1 to {MAX_TAG} characters of A-Z, a-z, 0-9, '_', '.', '-' and does not begin with '.' or '-'"
    )]
    Tag(String),
    /// The digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// `docker.io`, `localhost:5000`, `[::1]:5000`, ...
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/debian`, ...
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one; it decides what is pulled, whatever the tag says.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The whole name: `docker.io/library/debian:12`.
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, Suffix(self))
    }

    /// `registry/repository` as docker shows it: `debian`, `user/app`, `localhost:5000/x/y`.
    pub fn familiar_name(&self) -> String {
        if self.registry != HUB {
            return format!("{}/{}", self.registry, self.repository);
        }
        match self.repository.strip_prefix("library/") {
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The same repository with `digest` instead of a tag.
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// What is kept in the store: a digest makes the tag beside it meaningless.
    pub(crate) fn without_redundant_tag(&self) -> Self {
        match &self.digest {
            Some(digest) => self.at(digest.clone()),
            None => self.clone(),
        }
    }

    /// True if both name the same repository of the same registry.
    pub(crate) fn same_repository(&self, other: &Self) -> bool {
        self.registry == other.registry && self.repository == other.repository
    }
}

/// The part behind the name.
struct Suffix<'a>(&'a Reference);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.0.tag {
            write!(f, ":{tag}")?;
        }
        match &self.0.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.familiar_name(), Suffix(self))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.canonical())
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        for scheme in ["https://", "http://", "docker://"] {
            if text.starts_with(scheme) {
                return Err(ReferenceError::Scheme(text.to_owned(), scheme));
            }
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest);
        let registry = registry
            .map(|host| parse_registry(host).ok_or_else(|| ReferenceError::Registry(host.to_owned())));
        let registry = registry.transpose()?.unwrap_or_else(|| HUB.to_owned());
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        check_path(path, text)?;
        let official = registry == HUB && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        let length = registry.len() + 1 + repository.len();
        if length > MAX_NAME {
            return Err(ReferenceError::TooLong(length));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Splits off the first component if it is a registry.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || has_upper_case(first) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn has_upper_case(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

/// Checks and normalises `host`, `host:port`, `[v6]` or `[v6]:port`.
fn parse_registry(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            let address: std::net::Ipv6Addr = address.parse().ok()?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let label = |l: &str| {
                !l.is_empty()
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            };
            if !host.split('.').all(label) {
                return None;
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let host =
        if host == "index.docker.io" || host == "registry-1.docker.io" { HUB.to_owned() } else { host };
    match port {
        None => Some(host),
        Some(port) => {
            let number: u16 =
                port.parse().ok().filter(|n| *n != 0 && port.bytes().all(|b| b.is_ascii_digit()))?;
            Some(format!("{host}:{number}"))
        }
    }
}

fn parse_tag(tag: &str) -> Result<String, ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    let first = bytes.next().is_some_and(word);
    if first && tag.len() <= MAX_TAG && bytes.all(|b| word(b) || b == b'.' || b == b'-') {
        return Ok(tag.to_owned());
    }
    Err(ReferenceError::Tag(tag.chars().take(2 * MAX_TAG).collect()))
}

fn check_path(path: &str, whole: &str) -> Result<(), ReferenceError> {
    for component in path.split('/') {
        if is_component(component) {
            continue;
        }
        if is_component(&component.to_ascii_lowercase()) {
            return Err(ReferenceError::UpperCase(path.to_owned()));
        }
        let name = whole.chars().take(2 * MAX_NAME).collect();
        return Err(ReferenceError::Component {
            component: component.chars().take(MAX_NAME).collect(),
            name,
        });
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return false;
    }
    text.split(alphanumeric)
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}
