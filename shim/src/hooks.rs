//! The hooks that run on the host (OCI runtime-spec, config.md "Posix-platform Hooks"): prestart, createRuntime, poststart and
//! poststop. They set up and clean up what their author has made around the container: docker joins its networks by one,
//! `hull run` gives a container's network back by one. createContainer and startContainer hooks are the agent's, in the guest.
//!
//! The pid that a hook is told is that of the monitor, whose namespaces stand for the container's on the host.
//!
//! They are read from the bundle when they are run: `delete` has nothing else. A poststop hook may be run twice, by a shim
//! that dies and by who cleans up after it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::spec::Spec;

/// For a hook that says nothing else.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The most hooks of one kind that are run.
const HOOKS_MAX: usize = 16;

/// A hook without which there is no container has failed.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} hook {path} failed: {source}", path = path.display())]
pub struct HookError {
    kind: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// A bundle's hooks, and what they are told.
struct Told {
    spec: Spec,
    state: serde_json::Value,
}

impl Told {
    fn read(bundle: &Path, id: &str, status: &str, pid: Option<u32>) -> Option<Self> {
        let json = std::fs::read(bundle.join("config.json")).ok()?;
        let spec: Spec = serde_json::from_slice(&json).ok()?;
        let mut state = serde_json::json!({
            "ociVersion": spec.oci_version,
            "id": id,
            "status": status,
            "bundle": bundle,
            "annotations": spec.annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        Some(Self { spec, state })
    }

    /// Runs the hooks of a kind one after the other, up to the first that fails.
    async fn run(&self, kind: &'static str, of: fn(&Hooks) -> Option<&[Hook]>) -> Result<(), HookError> {
        let hooks = self.spec.hooks.as_ref().and_then(of).unwrap_or_default();
        for hook in hooks.iter().take(HOOKS_MAX) {
            run(hook, self.state.to_string().as_bytes()).await.map_err(|source| HookError {
                kind,
                path: hook.path().clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// Runs the prestart and createRuntime hooks: the namespaces are there, nothing of the container's has run. Who fails stops
/// the creation (runtime-spec, runtime.md "Lifecycle", steps 3 and 4).
pub async fn create_runtime(bundle: &Path, id: &str, pid: u32) -> Result<(), HookError> {
    let Some(told) = Told::read(bundle, id, "creating", Some(pid)) else { return Ok(()) };
    // Deprecated, and still what docker writes.
    #[allow(deprecated)]
    told.run("prestart", |hooks| hooks.prestart().as_deref()).await?;
    told.run("createRuntime", |hooks| hooks.create_runtime().as_deref()).await
}

/// Runs the poststart hooks. A failure is logged and changes nothing (runtime.md "Lifecycle", step 9).
pub async fn poststart(bundle: &Path, id: &str, pid: u32) {
    let Some(told) = Told::read(bundle, id, "running", Some(pid)) else { return };
    log_failure(id, told.run("poststart", |hooks| hooks.poststart().as_deref()).await);
}

/// Runs the poststop hooks. A failure is logged and changes nothing (runtime.md "Lifecycle", step 13).
pub async fn poststop(bundle: &Path, id: &str) {
    let Some(told) = Told::read(bundle, id, "stopped", None) else { return };
    log_failure(id, told.run("poststop", |hooks| hooks.poststop().as_deref()).await);
}

fn log_failure(id: &str, result: Result<(), HookError>) {
    if let Err(error) = result {
        log::warn!(container:% = id; "{error}");
    }
}

async fn run(hook: &Hook, state: &[u8]) -> std::io::Result<()> {
    let mut command = Command::new(hook.path());
    let args = hook.args().clone().unwrap_or_default();
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().current_dir("/").kill_on_drop(true);
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let limit =
        hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map_or(TIMEOUT, Duration::from_secs);
    let ended = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A hook need not read it.
            let _ = stdin.write_all(state).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(limit, ended).await {
        Ok(status) => match status? {
            status if status.success() => Ok(()),
            status => Err(std::io::Error::other(status.to_string())),
        },
        Err(_elapsed) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn each_kind_runs_at_its_time_and_is_told_the_state() {
        let bundle = tempfile::tempdir().unwrap();
        let seen = |name: &str| std::fs::read_to_string(bundle.path().join(name)).unwrap_or_default();
        let hook = |script: &str| {
            let script = format!("cd {} && {script}", bundle.path().display());
            json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]})
        };
        let config = json!({"ociVersion": "1.0.2", "hooks": {
            "prestart": [hook("cat >prestart; echo $A $HOME >env")],
            "createRuntime": [hook("cat prestart >createRuntime")],
            "poststart": [hook("exit 1"), hook("touch not-reached")],
            "poststop": [hook("cat >poststop")],
        }});
        std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        create_runtime(bundle.path(), "web", 7).await.unwrap();
        let state: serde_json::Value = serde_json::from_str(&seen("createRuntime")).unwrap();
        assert_eq!(
            (&state["id"], &state["pid"], &state["status"]),
            (&json!("web"), &json!(7), &json!("creating"))
        );
        assert_eq!(seen("env"), "b\n");
        poststart(bundle.path(), "web", 7).await;
        assert!(!bundle.path().join("not-reached").exists());
        poststop(bundle.path(), "web").await;
        let state: serde_json::Value = serde_json::from_str(&seen("poststop")).unwrap();
        assert_eq!((&state["pid"], &state["status"]), (&json!(null), &json!("stopped")));
    }

    #[tokio::test]
    async fn a_hook_that_fails_stops_the_creation() {
        let bundle = tempfile::tempdir().unwrap();
        create_runtime(bundle.path(), "web", 7).await.unwrap();
        let config = json!({"ociVersion": "1.0.2", "hooks": {"createRuntime": [{"path": "/no/such/hook"}]}});
        std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        let error = create_runtime(bundle.path(), "web", 7).await.unwrap_err().to_string();
        assert!(error.starts_with("the createRuntime hook /no/such/hook failed"), "{error}");
    }
}
