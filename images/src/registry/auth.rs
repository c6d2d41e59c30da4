//! Logging in to a registry: Basic, and distribution's token authentication (distribution docs, "Token Authentication
//! Specification", and its OAuth2 form for identity tokens).

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::error::{self, RegistryError};
use super::retry::Outcome;
use super::transport::{Response, Transport};
use crate::credentials::Credentials;

/// Largest answer of a token server.
const MAX_ANSWER: u64 = 1 << 20;

/// Holds the credentials and the token that was last obtained with them, shared by all threads of a pull.
pub(super) struct Authenticator {
    credentials: Option<Credentials>,
    scope: String,
    /// The value of the Authorization header that worked last.
    current: Mutex<Option<String>>,
}

/// What a token server answers; some say `token`, some `access_token`.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Authenticator {
    pub(super) fn new(credentials: Option<Credentials>, scope: String) -> Self {
        let current = match &credentials {
            Some(Credentials::RegistryToken(token)) => Some(format!("Bearer {token}")),
            _ => None,
        };
        Self { credentials, scope, current: Mutex::new(current) }
    }

    pub(super) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// What to send with a request before the registry has complained.
    pub(super) fn current(&self) -> Option<String> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After a 401: a value for the Authorization header other than `used`.
    ///
    /// Several threads may be told 401 at once when a token runs out; those that come late take what the first one got.
    pub(super) fn renew(
        &self,
        used: Option<&str>,
        refusal: &Response,
        transport: &Transport,
    ) -> Result<String, Outcome> {
        if let Some(newer) = self.current().filter(|current| Some(current.as_str()) != used) {
            return Ok(newer);
        }
        let challenges: Vec<Challenge> =
            refusal.headers("www-authenticate").flat_map(challenge::parse).collect();
        let bearer = challenges.iter().find_map(|c| match c {
            Challenge::Bearer { realm, service, scope } => {
                Some((realm, service.as_deref(), scope.as_deref()))
            }
            Challenge::Basic => None,
        });
        let basic = challenges.contains(&Challenge::Basic).then(|| self.basic()).flatten();
        let fresh = match (bearer, basic) {
            (Some((realm, service, scope)), _) => self.token(realm, service, scope, transport)?,
            (None, Some(basic)) => basic,
            (None, None) => return Err(self.denied(transport, "it asks for a login").into()),
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Ok(fresh)
    }

    fn denied(&self, transport: &Transport, reason: &str) -> RegistryError {
        let repository = self.scope.split(':').nth(1).unwrap_or_default().to_owned();
        RegistryError::Unauthorized {
            registry: transport.endpoint().name.clone(),
            repository,
            reason: reason.to_owned(),
            with_credentials: self.has_credentials(),
        }
    }

    fn basic(&self) -> Option<String> {
        match &self.credentials {
            Some(Credentials::Password { username, password }) => {
                Some(format!("Basic {}", BASE64.encode(format!("{username}:{password}"))))
            }
            _ => None,
        }
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        transport: &Transport,
    ) -> Result<String, Outcome> {
        let scope = scope.filter(|s| !s.is_empty()).unwrap_or(&self.scope);
        let response = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.as_str()),
                    ("service", service.unwrap_or_default()),
                    ("scope", scope),
                    ("client_id", "hull"),
                ];
                transport.token(realm, Some(&form), None)?
            }
            _ => {
                let mut url =
                    format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escape(scope));
                if let Some(service) = service {
                    url = format!("{url}&service={}", escape(service));
                }
                transport.token(&url, None, self.basic().as_deref())?
            }
        };
        match response.status() {
            200..=299 => self.read_token(response, transport).map_err(Outcome::from),
            401 | 403 => Err(self.denied(transport, "the token server refuses").into()),
            408 | 429 | 500.. => {
                Err(error::from_status(response, "the token request", transport.endpoint(), false))
            }
            status => Err(self.unusable(transport, format!("the token server answered {status}")).into()),
        }
    }

    fn unusable(&self, transport: &Transport, reason: String) -> RegistryError {
        RegistryError::Challenge { registry: transport.endpoint().name.clone(), reason }
    }

    fn read_token(&self, response: Response, transport: &Transport) -> Result<String, RegistryError> {
        let mut body = Vec::new();
        let read = response.into_body().take(MAX_ANSWER).read_to_end(&mut body);
        read.map_err(|e| transport.broken(e))?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| self.unusable(transport, format!("the token server's answer is not valid: {e}")))?;
        // A token goes into a header: anything but visible ASCII would be something else than a token.
        let usable = |t: &String| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        match answer.token.filter(usable).or(answer.access_token.filter(usable)) {
            Some(token) => Ok(format!("Bearer {token}")),
            None => Err(self.unusable(transport, "the token server's answer has no token in it".to_owned())),
        }
    }
}

/// Percent-encodes a query value (RFC 3986 §2.3: everything but unreserved characters).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn query_values_are_escaped() {
        assert_eq!(super::escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
        assert_eq!(super::escape("a&b=c d\u{e9}"), "a%26b%3Dc%20d%C3%A9");
    }
}
