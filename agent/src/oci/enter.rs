//! `exec`: a further process in a container, a child of this command's.

use std::os::fd::AsFd;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::arguments::{Attention, Changes, Exec, ExecProcess};
use super::store::{Status, Store, Stored};
use super::{OciError, create, foreground};
use crate::environment::Environment;
use crate::launch::{self, ExecCgroup, Init, UserNamespace};
use crate::spec::{Origin, ProcessSpec};

/// The exit code is the process's, or 0 when it is left running.
pub async fn exec(store: &Store, options: &Exec) -> Result<u8, OciError> {
    let stored = store.find(&options.id)?;
    match stored.status() {
        Status::Created | Status::Running => {}
        Status::Stopped => return Err(OciError::State("cannot exec in a stopped container".to_owned())),
        Status::Paused => return Err(OciError::State("cannot exec in a paused container".to_owned())),
    }
    let config = stored.config()?;
    let process = match &options.process {
        ExecProcess::File(file) => std::fs::read(file).map_err(OciError::file("read", file))?,
        ExecProcess::Changed(changes) => changed(&config, changes, &stored)?,
    };
    let (process, _) = ProcessSpec::from_json(&process)?;
    create::check_console(process.console, options.console_socket.as_deref())?;
    let spec = stored.spec(&config)?;
    let own = stored.cgroup()?;
    let cgroup = match &options.cgroup {
        None => ExecCgroup::Own(&own),
        Some(path) => ExecCgroup::Other(own.below(path)?),
    };
    let environment = Environment::for_exec()?;
    let children = &environment.children;
    let stdio = create::inherited_streams()?;
    let init =
        stored.init().ok_or_else(|| OciError::State("cannot exec in a stopped container".to_owned()))?;
    let user = spec.users.as_ref().filter(|_| spec.namespaces.user == Origin::Own);
    let user = user.map(|ids| UserNamespace::found(&environment, stored.record.pid, ids)).transpose()?;
    let init = Init { pid: stored.record.pid, pidfd: init.as_fd() };
    let mut launched = launch::exec(&environment, &process, &spec, init, user.as_ref(), &cgroup, &stdio)?;
    let runs = async {
        let terminal = launched.running(&environment).await?;
        create::hand_over(terminal.as_ref(), options.console_socket.as_deref())?;
        create::write_pid(options.pid_file.as_deref(), launched.pid)
    };
    if let Err(error) = runs.await {
        launched.abort(children).await;
        return Err(error);
    }
    if options.attention == Attention::Detached {
        return Ok(0);
    }
    foreground::forward(&launched.pidfd)?;
    foreground::wait(children, launched.pid, &launched.pidfd).await
}

/// The container's own process, with what the command line says.
fn changed(config: &[u8], changes: &Changes, stored: &Stored) -> Result<Vec<u8>, OciError> {
    let invalid = |error: serde_json::Error| OciError::Bundle {
        path: PathBuf::from(&stored.directory).join("config.json"),
        reason: error.to_string(),
    };
    let mut process = serde_json::from_slice::<Value>(config).map_err(invalid)?["process"].take();
    process["args"] = json!(changes.args);
    process["terminal"] = json!(changes.terminal);
    if let Some(cwd) = &changes.cwd {
        process["cwd"] = json!(cwd);
    }
    extend(&mut process["env"], changes.env.iter().map(|entry| json!(entry)));
    if let Some((uid, gid)) = changes.user {
        process["user"]["uid"] = json!(uid);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(gid);
        }
    }
    extend(&mut process["user"]["additionalGids"], changes.additional_gids.iter().map(|gid| json!(gid)));
    for set in ["bounding", "effective", "permitted"] {
        if !changes.capabilities.is_empty() {
            extend(&mut process["capabilities"][set], changes.capabilities.iter().map(|name| json!(name)));
        }
    }
    if changes.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process.to_string().into_bytes())
}

fn extend(list: &mut Value, more: impl Iterator<Item = Value>) {
    if list.is_null() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(more);
    }
}
