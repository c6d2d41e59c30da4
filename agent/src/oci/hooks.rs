//! The hooks of the runtime's side (runtime-spec config.md "POSIX-platform Hooks"): run here with the state on standard input.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::OciError;
use super::bundle::Hook;
use crate::reap::Children;
use crate::sys::process::{self, Ended};

/// Runs them in order, up to the first that fails.
pub async fn run(kind: &'static str, hooks: &[Hook], state: &serde_json::Value) -> Result<(), OciError> {
    for hook in hooks {
        run_one(hook, state).await.map_err(|reason| OciError::Hook {
            kind,
            path: hook.path.clone(),
            reason,
        })?;
    }
    Ok(())
}

async fn run_one(hook: &Hook, state: &serde_json::Value) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    let pid = libc::pid_t::try_from(child.id()).map_err(|error| error.to_string())?;
    let pidfd = process::open_pidfd(pid).map_err(|error| error.to_string())?;
    let children = Children::default();
    children.add(pid);
    let ended = children.wait(pid, &pidfd);
    let ended = match hook.timeout.and_then(|seconds| u64::try_from(seconds).ok()) {
        None => ended.await,
        Some(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), ended).await {
            Ok(ended) => ended,
            Err(_) => {
                child.kill().map_err(|error| format!("cannot be ended: {error}"))?;
                child.wait().map_err(|error| format!("cannot be ended: {error}"))?;
                return Err(format!("took longer than its timeout of {seconds} s"));
            }
        },
    };
    match ended.map_err(|error| error.to_string())? {
        Ended::Exited(0) => Ok(()),
        ended => Err(format!("failed with exit code {}", ended.code())),
    }
}
