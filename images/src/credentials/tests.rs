use std::os::unix::fs::PermissionsExt;

use super::*;

fn find(config: &str, reference: &str) -> Result<Option<Credentials>, CredentialError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, config).unwrap();
    CredentialFiles::only([dir.path().join("missing"), path]).find(&reference.parse().unwrap())
}

fn password(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Password { username: username.into(), password: password.into() })
}

#[test]
fn dockers_and_podmans_keys() {
    let config = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "aHViOnA6dw=="},
        "localhost:5000": {"username": "u", "password": "p"},
        "quay.io": {"auth": "cXVheTpnZW5lcmFs"},
        "quay.io/team": {"auth": "cXVheTp0ZWFt"},
        "https://ghcr.io": {"auth": "Z2g6dG9rZW4"},
        "acr.example": {"auth": "PHRva2VuPjo=", "identitytoken": "secret"},
        "empty.example": {}
    }}"#;
    assert_eq!(find(config, "debian").unwrap(), password("hub", "p:w"));
    assert_eq!(find(config, "localhost:5000/x").unwrap(), password("u", "p"));
    assert_eq!(find(config, "quay.io/other/x").unwrap(), password("quay", "general"));
    assert_eq!(find(config, "quay.io/team/x").unwrap(), password("quay", "team"));
    assert_eq!(find(config, "quay.io/teammate/x").unwrap(), password("quay", "general"));
    assert_eq!(find(config, "ghcr.io/x").unwrap(), password("gh", "token"));
    assert_eq!(find(config, "acr.example/x").unwrap(), Some(Credentials::IdentityToken("secret".into())));
    assert_eq!(find(config, "empty.example/x").unwrap(), None);
    assert_eq!(find(config, "localhost:5001/x").unwrap(), None);
}

#[test]
fn damage_is_named_with_its_file() {
    let error = find("{", "debian").unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("not valid"), "{error}");
    let error = find(r#"{"auths": {"quay.io": {"auth": "%%%"}}}"#, "quay.io/x").unwrap_err().to_string();
    assert!(error.contains("base64"), "{error}");
}

#[test]
fn a_missing_helper_does_not_stop_a_public_pull() {
    assert_eq!(find(r#"{"credsStore": "hull-test-not-installed"}"#, "debian").unwrap(), None);
    assert!(find(r#"{"credsStore": "../../bin/sh"}"#, "debian").is_err());
}

/// Asks a helper that is this shell script.
fn ask(script: &str, server: &str) -> Result<Option<Credentials>, CredentialError> {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("helper");
    fs::write(&program, format!("#!/bin/sh\nread server\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    // Another test's child may hold the script open for writing until its exec: then this one cannot be run yet.
    loop {
        match run_helper(program.to_str().unwrap(), "test", server) {
            Err(CredentialError::Helper { reason, .. }) if reason.contains("Text file busy") => {}
            result => return result,
        }
    }
}

#[test]
fn a_helper_is_asked_by_its_protocol() {
    let script =
        r#"[ "$1 $server" = "get quay.io" ] && echo '{"ServerURL":"quay.io","Username":"u","Secret":"s"}'"#;
    assert_eq!(ask(script, "quay.io").unwrap(), password("u", "s"));
    let script = r#"echo '{"Username":"<token>","Secret":"s"}'"#;
    assert_eq!(ask(script, "quay.io").unwrap(), Some(Credentials::IdentityToken("s".into())));
    let script = "echo credentials not found in native keychain; exit 1";
    assert_eq!(ask(script, "quay.io").unwrap(), None);
    let error = ask("echo the keychain is locked; exit 1", "quay.io").unwrap_err().to_string();
    assert_eq!(error, "the credential helper docker-credential-test failed: the keychain is locked");
    assert!(ask("echo no json", "quay.io").unwrap_err().to_string().contains("answer is not valid"));
}

#[test]
fn debug_hides_secrets() {
    let shown =
        format!("{:?} {:?}", password("user", "hunter2"), Credentials::IdentityToken("hunter2".into()));
    assert!(shown.contains("user") && !shown.contains("hunter2"));
}
