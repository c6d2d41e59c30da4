//! Finding the credentials for a registry where docker and podman keep them.
//!
//! Order: `$REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`, then `$DOCKER_CONFIG/config.json` or
//! `~/.docker/config.json`. The first file that knows the registry wins. Within a file: `credHelpers`, then `auths`, then
//! `credsStore`. Hull never writes any of them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::reference::Reference;

#[cfg(test)]
mod tests;

/// Docker Hub's key in docker's files.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What is shown to a registry. `Debug` does not reveal secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and its password or access token.
    Password {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged at the token server.
    IdentityToken(String),
    /// A bearer token that is sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username:?}, ...)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(...)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(...)"),
        }
    }
}

/// Stored credentials exist but cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read the credentials in {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is damaged.
    #[error("the credentials in {} are not valid: {reason}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A helper failed.
    #[error("the credential helper docker-credential-{helper} failed: {reason}")]
    Helper {
        /// Its name in the configuration.
        helper: String,
        /// What it said.
        reason: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Where credentials are looked for, in this order.
#[derive(Debug, Clone)]
pub struct CredentialFiles {
    files: Vec<PathBuf>,
}

impl CredentialFiles {
    /// The files that docker and podman use for the current user.
    pub fn of_this_user() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let podman = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let docker = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
        let docker = docker.map(|dir| dir.join("config.json"));
        Self { files: [variable("REGISTRY_AUTH_FILE"), podman, docker].into_iter().flatten().collect() }
    }

    /// Only these files.
    pub fn only(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().collect() }
    }

    /// The credentials for the registry, or the part of it, that `reference` is in.
    ///
    /// # Errors
    /// A file that exists but cannot be understood, or a helper that is there but fails. A helper that is not installed is only
    /// logged: a leftover `credsStore` must not stop the pull of a public image.
    pub fn find(&self, reference: &Reference) -> Result<Option<Credentials>, CredentialError> {
        for path in &self.files {
            let text = match fs::read(path) {
                Ok(text) => text,
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(source) => return Err(CredentialError::Read { path: path.clone(), source }),
            };
            let config: ConfigFile = serde_json::from_slice(&text)
                .map_err(|e| CredentialError::Parse { path: path.clone(), reason: e.to_string() })?;
            if let Some(found) = config.find(reference, path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl ConfigFile {
    fn find(&self, reference: &Reference, path: &Path) -> Result<Option<Credentials>, CredentialError> {
        let registry = reference.registry();
        let server = if registry == "docker.io" { HUB_KEY } else { registry };
        let helper =
            self.cred_helpers.iter().find(|(key, _)| normalise(key) == registry).map(|(_, name)| name);
        if let Some(helper) = helper {
            return ask_helper(helper, server);
        }
        // podman's keys may name a part of a registry: the most specific one wins.
        let mut name = format!("{registry}/{}", reference.repository());
        loop {
            let entry = self.auths.iter().find(|(key, _)| normalise(key) == name);
            let found = entry.map(|(_, entry)| entry.credentials(path)).transpose()?.flatten();
            if found.is_some() {
                return Ok(found);
            }
            match name.rfind('/') {
                Some(slash) => name.truncate(slash),
                None => break,
            }
        }
        match &self.creds_store {
            Some(helper) if !helper.is_empty() => ask_helper(helper, server),
            _ => Ok(None),
        }
    }
}

/// `https://index.docker.io/v1/` and its like to the registry's name in references.
fn normalise(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

impl AuthEntry {
    fn credentials(&self, path: &Path) -> Result<Option<Credentials>, CredentialError> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::RegistryToken(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.username.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Some(Credentials::Password { username, password }));
        }
        if self.auth.is_empty() {
            // docker leaves empty entries behind when a helper holds the secret.
            return Ok(None);
        }
        let bad = || CredentialError::Parse {
            path: path.to_owned(),
            reason: "an \"auth\" is not base64 of user:password".into(),
        };
        let bytes =
            STANDARD.decode(&self.auth).or_else(|_| STANDARD_NO_PAD.decode(&self.auth)).map_err(|_| bad())?;
        let text = String::from_utf8(bytes).map_err(|_| bad())?;
        let (username, password) = text.split_once(':').ok_or_else(bad)?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Password { username: username.to_owned(), password }))
    }
}

/// Runs `docker-credential-NAME get` (docker-credential-helpers protocol).
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>, CredentialError> {
    let failed = |reason: String| CredentialError::Helper { helper: helper.to_owned(), reason };
    if helper.contains('/') {
        return Err(failed("its name must not be a path".to_owned()));
    }
    run_helper(&format!("docker-credential-{helper}"), helper, server)
}

/// Speaks the helpers' protocol with `program`: the server's name in, JSON out.
fn run_helper(program: &str, helper: &str, server: &str) -> Result<Option<Credentials>, CredentialError> {
    let failed = |reason: String| CredentialError::Helper { helper: helper.to_owned(), reason };
    let spawned = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            log::warn!("{program} is not installed: continuing without credentials for {server}");
            return Ok(None);
        }
        Err(e) => return Err(failed(e.to_string())),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading tells its reason by exit status and output, which are read next.
        if let Err(e) = writeln!(stdin, "{server}") {
            log::debug!("{program} did not read its input: {e}");
        }
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let words = if said.trim().is_empty() { String::from_utf8_lossy(&output.stderr) } else { said };
        return Err(failed(words.trim().chars().filter(|c| !c.is_control()).take(200).collect()));
    }
    let answer: HelperAnswer =
        serde_json::from_str(&said).map_err(|e| failed(format!("its answer is not valid: {e}")))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Password { username: answer.username, password: answer.secret },
    }))
}
