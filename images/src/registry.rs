//! A client for one repository of one registry (OCI distribution-spec 1.1, "Pull").
//!
//! It owns: how to reach the registry (HTTPS, or HTTP where that is allowed), who to be there, and what to do when a request fails.
//! It must not write to disk, and must never send credentials to another host than the registry and the token server it names.

mod auth;
mod blob;
mod challenge;
mod error;
mod retry;
mod tls;
mod transport;

pub(crate) use blob::BlobReader;
pub use error::RegistryError;
pub use retry::RetryPolicy;
pub(crate) use retry::{Cancel, Notify};

use std::io::Read;

use crate::credentials::Credentials;
use crate::digest::{Algorithm, Digest, HashingReader};
use crate::manifest::{ACCEPT, MAX_MANIFEST};
use crate::reference::Reference;

use auth::Authenticator;
use retry::{Attempts, Outcome};
use transport::{Endpoint, Request, Transport};

/// Which registries may be spoken to in plain HTTP, or with a certificate that nobody vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlainHttp {
    insecure: Vec<String>,
}

impl PlainHttp {
    /// Loopback registries only (127.0.0.0/8, ::1, localhost), as docker does.
    pub fn loopback_only() -> Self {
        Self::default()
    }

    /// Loopback registries and these (`host` or `host:port`, as in references).
    pub fn also(registries: impl IntoIterator<Item = String>) -> Self {
        Self { insecure: registries.into_iter().collect() }
    }

    fn allows(&self, registry: &str) -> bool {
        transport::is_loopback(registry)
            || self.insecure.iter().any(|name| name.eq_ignore_ascii_case(registry))
    }
}

/// A manifest as the registry sent it, verified.
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

/// What the client needs to know besides the repository.
pub(crate) struct ClientOptions {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) plain_http: PlainHttp,
    pub(crate) retry: RetryPolicy,
}

/// The client for one repository; shared by the threads of a pull.
pub(crate) struct Client {
    repository: String,
    transport: Transport,
    authenticator: Authenticator,
    retry: RetryPolicy,
    cancel: Cancel,
}

impl Client {
    /// Finds out how to reach the registry. Only a registry that may speak plain HTTP is asked anything at this point.
    pub(crate) fn new(
        reference: &Reference,
        options: ClientOptions,
        cancel: Cancel,
    ) -> Result<Self, RegistryError> {
        let endpoint = Endpoint::of(reference.registry());
        let transport = Transport::connect(endpoint, options.plain_http.allows(reference.registry()))?;
        let scope = format!("repository:{}:pull", reference.repository());
        let authenticator = Authenticator::new(options.credentials, scope);
        let repository = reference.repository().to_owned();
        Ok(Self { repository, transport, authenticator, retry: options.retry, cancel })
    }

    /// Fetches a manifest or index by tag or digest. A digest is verified; a tag's content is hashed.
    pub(crate) fn manifest(
        &self,
        which: &str,
        notify: &Notify<'_>,
    ) -> Result<FetchedManifest, RegistryError> {
        let expected: Option<Digest> = which.parse().ok();
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let path = format!("/v2/{}/manifests/{which}", self.repository);
        let mut attempts = Attempts::new(&self.retry, &self.cancel);
        loop {
            let outcome = self.manifest_once(&path, algorithm, &mut attempts, notify);
            match outcome {
                Ok(fetched) => {
                    if let Some(expected) = expected.filter(|expected| *expected != fetched.digest) {
                        return Err(RegistryError::DigestMismatch { expected, got: fetched.digest });
                    }
                    return Ok(fetched);
                }
                Err(error) => attempts.again(error, None, notify)?,
            }
        }
    }

    fn manifest_once(
        &self,
        path: &str,
        algorithm: Algorithm,
        attempts: &mut Attempts<'_>,
        notify: &Notify<'_>,
    ) -> Result<FetchedManifest, RegistryError> {
        let request = Request { path, accept: Some(ACCEPT), from: None };
        let response = self.send(&request, attempts, notify)?;
        let media_type = response.header("content-type").map(str::to_owned);
        let mut body = HashingReader::new(response.into_body().take(MAX_MANIFEST + 1), algorithm);
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(|e| self.transport.broken(e))?;
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(RegistryError::TooLarge { what: "manifest", limit: MAX_MANIFEST });
        }
        Ok(FetchedManifest { bytes, media_type, digest: body.finish() })
    }

    /// A verified small blob, such as an image configuration.
    pub(crate) fn small_blob(
        &self,
        digest: &Digest,
        size: u64,
        notify: &Notify<'_>,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut body = HashingReader::new(self.blob(digest, size, notify), digest.algorithm());
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(|e| RegistryError::from_read(e, self.transport.endpoint()))?;
        let got = body.finish();
        if got == *digest {
            Ok(bytes)
        } else {
            Err(RegistryError::DigestMismatch { expected: digest.clone(), got })
        }
    }

    /// A blob as a stream of exactly `size` bytes that resumes broken connections; the caller verifies the digest.
    pub(crate) fn blob<'a>(&'a self, digest: &Digest, size: u64, notify: &'a Notify<'a>) -> BlobReader<'a> {
        BlobReader::new(self, digest.clone(), size, notify)
    }

    /// Sends a request until it is answered with 2xx, authenticating and repeating as needed.
    fn send(
        &self,
        request: &Request<'_>,
        attempts: &mut Attempts<'_>,
        notify: &Notify<'_>,
    ) -> Result<transport::Response, RegistryError> {
        loop {
            match self.send_once(request) {
                Ok(response) => return Ok(response),
                Err(Outcome { error, retry_after }) => attempts.again(error, retry_after, notify)?,
            }
        }
    }

    fn send_once(&self, request: &Request<'_>) -> Result<transport::Response, Outcome> {
        let mut authorization = self.authenticator.current();
        let mut response = self.transport.get(request, authorization.as_deref())?;
        if response.status() == 401 {
            authorization =
                Some(self.authenticator.renew(authorization.as_deref(), &response, &self.transport)?);
            response = self.transport.get(request, authorization.as_deref())?;
        }
        if (200..300).contains(&response.status()) {
            return Ok(response);
        }
        let known = self.authenticator.has_credentials();
        Err(error::from_status(response, request.path, self.transport.endpoint(), known))
    }
}
