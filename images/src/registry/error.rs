//! What can go wrong between here and a registry, one clear sentence each.

use std::io::{self, Read};

use serde::Deserialize;

use super::retry::Outcome;
use super::transport::{Endpoint, Response};
use crate::digest::Digest;

/// A request to a registry failed. `Display` is one sentence that stands alone.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name cannot be resolved.
    #[error("no such registry: the host name {host:?} cannot be resolved")]
    NoSuchRegistry {
        /// The host.
        host: String,
    },
    /// Nothing listens there, or the connection breaks again and again.
    #[error("cannot reach the registry {registry}: {source}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// The system's reason.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the registry {registry} does not answer: timeout ({phase})")]
    Timeout {
        /// Host and port.
        registry: String,
        /// What was being waited for.
        phase: String,
    },
    /// Certificate or protocol trouble.
    #[error("no secure connection to {registry}: {reason}; a registry without TLS must be named as insecure")]
    Tls {
        /// Host and port.
        registry: String,
        /// The TLS library's reason.
        reason: String,
    },
    /// 401 or 403.
    #[error("access to {registry}/{repository} denied: {reason}; {}", login_hint(registry, *.with_credentials))]
    Unauthorized {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// The registry's own words.
        reason: String,
        /// Whether credentials were sent.
        with_credentials: bool,
    },
    /// The token server cannot be used.
    #[error("the registry {registry} asks for a login that cannot be done: {reason}")]
    Challenge {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// 404.
    #[error("{what} not found in the registry {registry}")]
    NotFound {
        /// The registry.
        registry: String,
        /// `manifest debian:13`, ...
        what: String,
    },
    /// Any other refusal.
    #[error("the registry {registry} answered {status} to {path}{}", detail(.message))]
    Status {
        /// The registry.
        registry: String,
        /// HTTP status.
        status: u16,
        /// The request's path.
        path: String,
        /// The registry's own words, if any.
        message: String,
    },
    /// More than it may be.
    #[error("the {what} is larger than {limit} bytes")]
    TooLarge {
        /// manifest, blob.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// Content and name disagree.
    #[error("the registry sent something else than asked for: expected {expected}, got {got}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// Content and announced size disagree.
    #[error("blob {digest} should have {expected} bytes, but the registry sends {got}")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// Size in the manifest.
        expected: u64,
        /// Size that the registry announces.
        got: u64,
    },
    /// The connection ended too early, again and again.
    #[error("blob {digest} was cut off after {received} of {expected} bytes: {reason}")]
    Truncated {
        /// The blob.
        digest: Digest,
        /// Size in the manifest.
        expected: u64,
        /// Bytes received.
        received: u64,
        /// What the last attempt gave.
        reason: String,
    },
    /// A redirect to a place that must not be used.
    #[error("the registry {registry} redirects to {location:?}, which is refused: {reason}")]
    Redirect {
        /// The registry.
        registry: String,
        /// Where to.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// Not HTTP, or HTTP that cannot be understood.
    #[error("{registry} does not answer like a registry: {reason}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Another part of the pull failed first.
    #[error("the transfer was cancelled")]
    Cancelled,
}

fn login_hint(registry: &str, with_credentials: bool) -> String {
    if with_credentials {
        return format!("check the credentials stored for it (docker login {registry})");
    }
    format!("if it is private, log in first (docker login {registry} or podman login {registry})")
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RegistryError {
    /// True if the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.kind() != io::ErrorKind::ConnectionRefused,
            Self::Timeout { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// Brings back the typed error that travelled through [`io::Read`].
    pub(crate) fn from_read(error: io::Error, endpoint: &Endpoint) -> Self {
        match error.downcast::<Self>() {
            Ok(typed) => typed,
            Err(source) => Self::Unreachable { registry: endpoint.authority.clone(), source },
        }
    }
}

/// The error document of distribution-spec "Error Codes".
#[derive(Deserialize, Default)]
struct ErrorDocument {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: Option<String>,
}

/// Largest error document that is looked at.
const MAX_ERROR_BODY: u64 = 64 << 10;

/// The registry's own words, cleaned for a terminal: at most 200 printable characters.
fn own_words(response: Response) -> String {
    let mut body = Vec::new();
    // The status already says what happened; a body that cannot be read only loses the registry's wording of it.
    let _ = response.into_body().take(MAX_ERROR_BODY).read_to_end(&mut body);
    let document: ErrorDocument = serde_json::from_slice(&body).unwrap_or_default();
    let Some(first) = document.errors.into_iter().next() else { return String::new() };
    let text = first.message.filter(|m| !m.is_empty()).unwrap_or(first.code);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Turns an answer that is not 2xx into an error.
pub(super) fn from_status(
    response: Response,
    path: &str,
    endpoint: &Endpoint,
    with_credentials: bool,
) -> Outcome {
    let status = response.status();
    let retry_after = response.retry_after();
    let registry = endpoint.name.clone();
    let (repository, object) = split_path(path);
    let error = match status {
        401 | 403 => {
            let words = own_words(response);
            let reason = if words.is_empty() { format!("the registry answered {status}") } else { words };
            RegistryError::Unauthorized { registry, repository, reason, with_credentials }
        }
        404 => RegistryError::NotFound { registry, what: object },
        _ => {
            let message = own_words(response);
            RegistryError::Status { registry, status, path: path.to_owned(), message }
        }
    };
    Outcome { error, retry_after }
}

/// From `/v2/library/debian/manifests/13` to `library/debian` and `manifest library/debian:13`.
fn split_path(path: &str) -> (String, String) {
    let path = path.strip_prefix("/v2/").unwrap_or(path);
    for (marker, kind) in [("/manifests/", "manifest"), ("/blobs/", "blob")] {
        if let Some((repository, object)) = path.rsplit_once(marker) {
            let separator = if object.contains(':') { '@' } else { ':' };
            return (repository.to_owned(), format!("{kind} {repository}{separator}{object}"));
        }
    }
    (path.to_owned(), path.to_owned())
}
