//! Which of an image's variants is wanted: operating system, architecture, variant (OCI image-spec, index, "platform").

use std::fmt;
use std::str::FromStr;

/// `os/architecture[/variant]` in Go's names, as the image specification uses them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v8`, `v7`, ... where the architecture has variants.
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected os/architecture[/variant], for example linux/amd64")]
pub struct PlatformError(String);

impl Default for Platform {
    /// The platform of this host.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(text.chars().take(80).collect());
        let word = |part: &str| {
            let ok =
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if ok { Ok(part.to_ascii_lowercase()) } else { Err(bad()) }
        };
        let parts = text.split('/').map(word).collect::<Result<Vec<_>, _>>()?;
        match parts.as_slice() {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(bad()),
        }
    }
}

impl Platform {
    /// Normalises the other spellings of the same machine: x86_64, aarch64, arm64/v8.
    pub(crate) fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let variant = match (architecture, variant) {
            (_, None | Some("")) | ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
            (_, Some(variant)) => Some(variant.to_owned()),
        };
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// How well an offered platform fits: `None` if it cannot run, lower is better.
    pub(crate) fn fit(&self, offered: &Self) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        match (&self.variant, &offered.variant) {
            (wanted, offered) if wanted == offered => Some(0),
            (Some(_), None) => Some(1),
            (None, Some(_)) => Some(2),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (given, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(given.parse::<Platform>().unwrap().to_string(), expected);
        }
        for bad in ["", "linux", "linux/", "linux/amd64/v1/x", "linux/am d64", "/"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_plain_variant_is_preferred_to_a_newer_one() {
        let wanted = Platform::new("linux", "amd64", None);
        let v3 = wanted.fit(&Platform::new("linux", "amd64", Some("v3")));
        assert!(wanted.fit(&wanted) < v3);
        assert_eq!(wanted.fit(&Platform::new("linux", "arm64", None)), None);
        let v6 = Platform::new("linux", "arm", Some("v6"));
        assert_eq!(v6.fit(&Platform::new("linux", "arm", Some("v7"))), None);
    }
}
