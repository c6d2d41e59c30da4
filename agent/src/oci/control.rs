//! The commands on a container that exists: `start`, `state`, `kill`, `delete`, `list`, `pause`, `resume`.

use std::os::fd::AsFd;

use super::arguments::{Running, Shape, Target};
use super::store::{Status, Store, Stored};
use super::{OciError, bundle, hooks, print};
use crate::cgroup::CgroupError;
use crate::environment::Environment;
use crate::launch::Launched;
use crate::sys::process;

/// Opens the start gate, and tells whether the program runs.
pub async fn start(store: &Store, id: &str) -> Result<(), OciError> {
    let stored = store.find(id)?;
    let stopped = || OciError::State("cannot start a container that has stopped".to_owned());
    let running = || OciError::State("cannot start an already running container".to_owned());
    match stored.status() {
        Status::Created => {}
        Status::Stopped => return Err(stopped()),
        Status::Running | Status::Paused => return Err(running()),
    }
    let config = stored.config()?;
    let spec = stored.spec(&config)?;
    let pidfd = stored.init().ok_or_else(stopped)?;
    if !stored.claim_gate() {
        return Err(running());
    }
    // Until it runs its program the init is our own code, and holds the other end of its gate.
    let gate = process::take_descriptor(pidfd.as_fd(), stored.record.gate)
        .map_err(OciError::system("take the start gate from the init process"))?;
    let mut init = Launched::adopt(stored.record.pid, pidfd, gate, &spec)?;
    init.release()?;
    init.running(&Environment::for_exec()?).await?;
    let hooks = bundle::hooks(&config)?;
    if hooks.poststart.is_empty() {
        return Ok(());
    }
    hooks::run("poststart", &hooks.poststart, &stored.state()).await
}

pub fn state(store: &Store, id: &str) -> Result<(), OciError> {
    print(&format!("{:#}\n", store.find(id)?.state()))
}

pub fn kill(store: &Store, id: &str, signal: i32, target: Target) -> Result<(), OciError> {
    let stored = store.find(id)?;
    let init = stored.init();
    match (target, init) {
        (Target::All, _) => Ok(stored.cgroup()?.signal_all(signal, stored.record.pid)?),
        (Target::Init, None) => Err(OciError::State("container not running".to_owned())),
        (Target::Init, Some(init)) => {
            process::send_signal(init.as_fd(), signal).map_err(OciError::system("send the signal"))
        }
    }
}

pub async fn delete(store: &Store, id: &str, running: Running) -> Result<(), OciError> {
    let stored = match store.find(id) {
        Err(OciError::NotFound) if running == Running::Killed => return Ok(()),
        found => found?,
    };
    match stored.status() {
        Status::Stopped | Status::Created => {}
        status @ (Status::Running | Status::Paused) => {
            if running == Running::Refused {
                return Err(OciError::State(format!(
                    "cannot delete container {id} that is not stopped: {status}"
                )));
            }
        }
    }
    let hooks = bundle::hooks(&stored.config()?)?;
    match stored.cgroup() {
        Ok(cgroup) => cgroup.remove().await?,
        // Removed by an earlier attempt.
        Err(OciError::Cgroup(CgroupError::File { source: nix::errno::Errno::ENOENT, .. })) => {}
        Err(error) => return Err(error),
    }
    let state = stored.state();
    stored.forget()?;
    hooks::run("poststop", &hooks.poststop, &state).await
}

pub async fn pause(store: &Store, id: &str) -> Result<(), OciError> {
    let stored = in_state(store, id, Status::Running, "pause")?;
    Ok(stored.cgroup()?.freeze().await?)
}

pub fn resume(store: &Store, id: &str) -> Result<(), OciError> {
    let stored = in_state(store, id, Status::Paused, "resume")?;
    Ok(stored.cgroup()?.thaw()?)
}

fn in_state(store: &Store, id: &str, wanted: Status, action: &str) -> Result<Stored, OciError> {
    let stored = store.find(id)?;
    match stored.status() {
        status if status == wanted => Ok(stored),
        status => Err(OciError::State(format!("cannot {action} a container that is {status}"))),
    }
}

pub fn list(store: &Store, shape: Shape) -> Result<(), OciError> {
    let all = store.all()?;
    let text = match shape {
        Shape::Json => format!("{}\n", all.iter().map(Stored::state).collect::<serde_json::Value>()),
        Shape::Ids => all.iter().map(|stored| format!("{}\n", stored.record.id)).collect(),
        Shape::Table => {
            let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(str::to_owned)];
            rows.extend(all.iter().map(|stored| {
                let record = &stored.record;
                let status = stored.status();
                let pid = if status == Status::Stopped { 0 } else { record.pid };
                [
                    record.id.clone(),
                    pid.to_string(),
                    status.to_string(),
                    record.bundle.display().to_string(),
                    record.created.clone(),
                ]
            }));
            table(&rows)
        }
    };
    print(&text)
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(9);
            text.push_str(cell);
            if column + 1 < N {
                text.extend(std::iter::repeat_n(' ', width + 3 - cell.len()));
            }
        }
        text.push('\n');
    }
    text
}
