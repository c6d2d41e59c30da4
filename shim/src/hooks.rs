//! Poststop hooks (OCI runtime-spec, config.md "Posix-platform Hooks"): programs of the host that clean up what their
//! author has made for the container. `hull run` gives a container's network back by one.
//!
//! They are read from the bundle when they are run: `delete` has nothing else. One may be run twice, by a shim that dies and
//! by who cleans up after it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// For a hook that says nothing else.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The most hooks that are run.
const HOOKS_MAX: usize = 16;

/// Runs the container's poststop hooks, one after the other. A failure is logged and changes nothing (runtime-spec,
/// runtime.md "Lifecycle", step 13).
pub async fn poststop(bundle: &Path, id: &str) {
    let Some(spec) = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|json| serde_json::from_slice::<Spec>(&json).ok())
    else {
        return;
    };
    let Some(hooks) = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().clone()) else { return };
    let state = serde_json::json!({
        "ociVersion": spec.version(),
        "id": id,
        "status": "stopped",
        "bundle": bundle,
        "annotations": spec.annotations(),
    });
    for hook in hooks.iter().take(HOOKS_MAX) {
        if let Err(error) = run(hook, state.to_string().as_bytes()).await {
            log::warn!("the poststop hook {} failed: {error}", hook.path().display());
        }
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
