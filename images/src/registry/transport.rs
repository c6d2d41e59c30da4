//! HTTP to one registry: scheme, redirects, time limits, and which host may see the credentials.

use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::OnceLock;
use std::time::Duration;

use ureq::http::Uri;
use ureq::{Agent, Body, Proxy};

use super::error::RegistryError;
use super::tls;

/// Most redirects that one request may take.
const MAX_REDIRECTS: usize = 5;
/// Until a connection stands, TLS included.
const CONNECT: Duration = Duration::from_secs(15);
/// Until the headers of an answer are there.
const ANSWER: Duration = Duration::from_secs(60);
/// Until a stalled body counts as broken. There is no limit for a whole body.
const STALL: Duration = Duration::from_secs(30);
/// Until a registry that may speak plain HTTP has answered in TLS.
const PROBE: Duration = Duration::from_secs(5);

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
}

impl Scheme {
    fn prefix(self) -> &'static str {
        match self {
            Self::Https => "https://",
            Self::Http => "http://",
        }
    }
}

/// A registry's name and where it really is.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// As in references.
    pub(crate) name: String,
    /// Host and port to connect to.
    pub(crate) authority: String,
}

impl Endpoint {
    pub(super) fn of(registry: &str) -> Self {
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        Self { name: registry.to_owned(), authority: authority.to_owned() }
    }
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

/// True for localhost and every address of the loopback interface.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What is asked of the registry; always a GET.
pub(super) struct Request<'a> {
    pub(super) path: &'a str,
    pub(super) accept: Option<&'a str>,
    /// First byte wanted, if not all.
    pub(super) from: Option<u64>,
}

/// An answer, of any status.
pub(super) struct Response(ureq::http::Response<Body>);

impl Response {
    pub(super) fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    pub(super) fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.headers().get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// Retry-After in seconds; the date form is left to the usual backoff.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
    }

    pub(super) fn into_body(self) -> impl Read + Send + use<> {
        self.0.into_body().into_reader()
    }
}

/// The connections to one registry.
pub(super) struct Transport {
    endpoint: Endpoint,
    scheme: Scheme,
    /// Plain HTTP or an unknown certificate is acceptable for this registry.
    lenient: bool,
    own: Agent,
    /// For other hosts that a redirect or a token server leads to; always verifies.
    strict: OnceLock<Agent>,
}

impl Transport {
    /// Decides between HTTPS and HTTP. `lenient` registries are asked once whether they speak TLS.
    pub(super) fn connect(endpoint: Endpoint, lenient: bool) -> Result<Self, RegistryError> {
        let own = agent(&endpoint.authority, lenient);
        if own.config().proxy().is_none() {
            resolve(&endpoint)?;
        }
        let scheme = if lenient { probe(&own, &endpoint)? } else { Scheme::Https };
        Ok(Self { endpoint, scheme, lenient, own, strict: OnceLock::new() })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a request and follows redirects. Only the registry itself gets `authorization`.
    pub(super) fn get(
        &self,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> Result<Response, RegistryError> {
        let mut target = Target {
            scheme: self.scheme,
            authority: self.endpoint.authority.clone(),
            path: request.path.to_owned(),
        };
        for _ in 0..=MAX_REDIRECTS {
            let own = target.scheme == self.scheme && target.authority == self.endpoint.authority;
            let agent = if own { &self.own } else { self.strict_agent() };
            let mut builder = agent.get(target.url());
            if let Some(accept) = request.accept {
                builder = builder.header("Accept", accept);
            }
            if let Some(from) = request.from {
                builder = builder.header("Range", format!("bytes={from}-"));
            }
            if let Some(authorization) = authorization.filter(|_| own) {
                builder = builder.header("Authorization", authorization);
            }
            let response = Response(builder.call().map_err(|e| translate(e, &target.authority))?);
            if !matches!(response.status(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            target = self.redirect(&target, response.header("location").unwrap_or_default())?;
        }
        Err(self.refuse(&target.url(), "too many redirects"))
    }

    fn redirect(&self, from: &Target, location: &str) -> Result<Target, RegistryError> {
        let target = from.join(location).ok_or_else(|| self.refuse(location, "it is not a usable URL"))?;
        if target.scheme == Scheme::Http && !self.may_be_plain(&target.authority) {
            return Err(self.refuse(location, "it leads to an unencrypted connection"));
        }
        Ok(target)
    }

    /// Plain HTTP is for a registry that speaks it itself, and then only on the same host.
    fn may_be_plain(&self, authority: &str) -> bool {
        let same = host_of(authority).eq_ignore_ascii_case(host_of(&self.endpoint.authority));
        let local = is_loopback(authority) && is_loopback(&self.endpoint.authority);
        self.lenient && self.scheme == Scheme::Http && (same || local)
    }

    fn refuse(&self, location: &str, reason: &'static str) -> RegistryError {
        let location = location.chars().filter(|c| !c.is_control()).take(200).collect();
        RegistryError::Redirect { registry: self.endpoint.name.clone(), location, reason }
    }

    fn strict_agent(&self) -> &Agent {
        self.strict.get_or_init(|| agent("", false))
    }

    /// Asks a token server, by GET or, with a form, by POST. No redirects: the answer is a secret.
    pub(super) fn token(
        &self,
        url: &str,
        form: Option<&[(&str, &str)]>,
        authorization: Option<&str>,
    ) -> Result<Response, RegistryError> {
        let challenge = |reason| RegistryError::Challenge { registry: self.endpoint.name.clone(), reason };
        let target =
            Target::parse(url).ok_or_else(|| challenge(format!("its token server {url:?} is not a URL")))?;
        if target.scheme == Scheme::Http && !self.may_be_plain(&target.authority) {
            return Err(challenge(format!("its token server {url:?} does not use https")));
        }
        let own = target.authority == self.endpoint.authority;
        let agent = if own { &self.own } else { self.strict_agent() };
        let sent = match form {
            Some(form) => agent.post(target.url()).send_form(form.iter().copied()),
            None => {
                let builder = agent.get(target.url());
                match authorization {
                    Some(authorization) => builder.header("Authorization", authorization).call(),
                    None => builder.call(),
                }
            }
        };
        sent.map(Response).map_err(|e| translate(e, &target.authority))
    }

    /// A body that ended in the middle.
    pub(super) fn broken(&self, error: io::Error) -> RegistryError {
        translate(error.into(), &self.endpoint.authority)
    }
}

/// An absolute URL in the parts that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    scheme: Scheme,
    authority: String,
    /// Path and query.
    path: String,
}

impl Target {
    fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        if authority.contains('@') {
            return None;
        }
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        Some(Self { scheme, authority: authority.to_owned(), path: path.to_owned() })
    }

    fn url(&self) -> String {
        format!("{}{}{}", self.scheme.prefix(), self.authority, self.path)
    }

    /// Resolves a Location header (RFC 3986 §5.2, without dot segments, which no registry sends).
    fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with("//") {
            return Self::parse(&format!("{}{}", self.scheme.prefix(), location.trim_start_matches('/')));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{}{location}", self.scheme.prefix(), self.authority));
        }
        Self::parse(location)
    }
}

/// Builds an agent that neither follows redirects nor treats a status as an error: both are decided here.
fn agent(authority: &str, lenient: bool) -> Agent {
    let proxy = if is_loopback(authority) { None } else { Proxy::try_from_env() };
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(proxy)
        .user_agent(concat!("hull/", env!("CARGO_PKG_VERSION")))
        .accept("*/*")
        .accept_encoding("")
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(STALL))
        .timeout_per_write(Some(STALL))
        .input_buffer_size(256 << 10)
        .tls_config(tls::config(authority, lenient))
        .build()
        .new_agent()
}

/// Looks the registry's name up. The HTTP library does so again, but reports an unknown name like any broken connection.
fn resolve(endpoint: &Endpoint) -> Result<(), RegistryError> {
    let host = host_of(&endpoint.authority);
    match (host, 443).to_socket_addrs() {
        Ok(_) => Ok(()),
        Err(_) => Err(RegistryError::NoSuchRegistry { host: host.to_owned() }),
    }
}

/// Finds out whether a registry that may speak plain HTTP does.
fn probe(agent: &Agent, endpoint: &Endpoint) -> Result<Scheme, RegistryError> {
    let url = format!("https://{}/v2/", endpoint.authority);
    let configured = agent.get(url).config().timeout_global(Some(PROBE)).build();
    let Err(error) = configured.call() else { return Ok(Scheme::Https) };
    let has_port = endpoint.authority.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    match translate(error, &endpoint.authority) {
        error @ RegistryError::NoSuchRegistry { .. } => Err(error),
        RegistryError::Unreachable { registry, source }
            if source.kind() == io::ErrorKind::ConnectionRefused && has_port =>
        {
            Err(RegistryError::Unreachable { registry, source })
        }
        _ => Ok(Scheme::Http),
    }
}

/// Types the HTTP library's errors.
fn translate(error: ureq::Error, authority: &str) -> RegistryError {
    let registry = authority.to_owned();
    match error {
        ureq::Error::HostNotFound => RegistryError::NoSuchRegistry { host: host_of(authority).to_owned() },
        ureq::Error::Timeout(phase) => RegistryError::Timeout { registry, phase: phase.to_string() },
        // The TLS library reports what is wrong with a certificate or handshake as invalid data.
        ureq::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData => {
            RegistryError::Tls { registry, reason: e.to_string() }
        }
        ureq::Error::Io(source) => RegistryError::Unreachable { registry, source },
        ureq::Error::ConnectionFailed => RegistryError::Unreachable {
            registry,
            source: io::Error::other("no address could be connected to"),
        },
        error @ (ureq::Error::Tls(_) | ureq::Error::Pem(_) | ureq::Error::Rustls(_)) => {
            RegistryError::Tls { registry, reason: error.to_string() }
        }
        other => RegistryError::Protocol { registry, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_by_address_not_by_look() {
        for yes in ["localhost", "LOCALHOST:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]", "quay.io", ""] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn locations_are_resolved() {
        let base = Target::parse("https://a.example:1/v2/x?y=1").unwrap();
        let joined = |location: &str| base.join(location).map(|t| t.url());
        assert_eq!(joined("https://b.example/z?q").as_deref(), Some("https://b.example/z?q"));
        assert_eq!(joined("/z").as_deref(), Some("https://a.example:1/z"));
        assert_eq!(joined("//c.example/z").as_deref(), Some("https://c.example/z"));
        for bad in ["", "z", "ftp://x/", "https://user:pw@b.example/", "file:///etc/passwd"] {
            assert_eq!(joined(bad), None, "{bad}");
        }
    }
}
