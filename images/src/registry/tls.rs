//! Which certificate authorities are believed: the system's, and those that docker's and podman's `certs.d` add for one registry.

use std::fs;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Where distributions keep the bundle, after `$SSL_CERT_FILE`.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Folders with `<registry>/*.crt`.
const PER_REGISTRY: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// The TLS settings for one registry. `lenient` takes any certificate, as docker does for registries named insecure.
pub(super) fn config(authority: &str, lenient: bool) -> TlsConfig {
    if lenient {
        return TlsConfig::builder().disable_verification(true).build();
    }
    let mut certificates = system_bundle();
    certificates.extend(registry_authorities(authority));
    let roots = if certificates.is_empty() { RootCerts::WebPki } else { RootCerts::from(certificates) };
    TlsConfig::builder().root_certs(roots).build()
}

fn system_bundle() -> Vec<Certificate<'static>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = BUNDLES.iter().map(PathBuf::from);
    named
        .into_iter()
        .chain(usual)
        .map(|path| certificates(&path))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

fn registry_authorities(authority: &str) -> Vec<Certificate<'static>> {
    let folders = PER_REGISTRY.iter().map(|base| Path::new(base).join(authority));
    let files =
        folders.filter(|_| !authority.is_empty()).filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let paths = files.filter_map(Result::ok).map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "crt"))
        .flat_map(|path| certificates(&path))
        .collect()
}

/// The certificates in a PEM file; a file that cannot be read or parsed has none.
fn certificates(path: &Path) -> Vec<Certificate<'static>> {
    let Ok(pem) = fs::read(path) else { return Vec::new() };
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        Ok(_) => None,
        Err(error) => {
            log::warn!("{}: {error}", path.display());
            None
        }
    });
    certificates.collect()
}
