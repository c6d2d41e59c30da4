//! `hull inspect`: containers and images with docker's keys. What Hull does not have is left out, not invented.

use std::fs;

use hull_images::Image;
use hull_shim::record::{Record, ShimRecord, annotation};
use serde_json::{Value, json};

use super::DONE;
use crate::cli::{Global, InspectArgs, Kind};
use crate::engine;
use crate::error::{self, CliError};
use crate::state::{self, Container, StateError, Status};
use crate::{output, paths};

/// Prints a JSON array. What is not found is reported, the rest is printed all the same.
pub fn inspect(global: &Global, args: &InspectArgs) -> Result<u8, CliError> {
    let mut found = Vec::new();
    let mut failed = false;
    for name in &args.names {
        match look(global, name, args.kind) {
            Ok(value) => found.push(value),
            Err(error) => {
                error::report(&error);
                failed = true;
            }
        }
    }
    output::json_pretty(&found)?;
    if failed { Err(CliError::Reported) } else { Ok(DONE) }
}

fn look(global: &Global, name: &str, kind: Option<Kind>) -> Result<Value, CliError> {
    if kind != Some(Kind::Image) {
        match paths::state(global)?.find(name) {
            Ok(container) => return describe_container(&container),
            Err(StateError::NotFound(_)) if kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match paths::store(global)?.find(name) {
        Ok(Some(image)) => describe_image(&image),
        Ok(None) if kind.is_some() => Err(CliError::NoSuchImage(name.to_owned())),
        Ok(None) => Err(CliError::NoSuchObject(name.to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// When the container's process was started, if it was.
pub fn started_at(container: &Container) -> Option<String> {
    ShimRecord::read(&container.bundle).ok().flatten().and_then(|shim| shim.started_at)
}

fn describe_container(container: &Container) -> Result<Value, CliError> {
    let record = &container.record;
    let status = engine::runtime()?.block_on(state::observe(container))?;
    let status = status.ok_or_else(|| StateError::NotFound(record.name.clone()))?;
    let path = container.bundle.join("config.json");
    let bytes = fs::read(&path).map_err(CliError::io(format!("cannot read {}", path.display())))?;
    let spec: Value = serde_json::from_slice(&bytes)?;
    let shim = ShimRecord::read(&container.bundle)?.unwrap_or_default();
    let (code, finished, oom, reason) = match &status {
        Status::Exited(exit) => {
            (exit.exit_code, exit.exited_at.as_str(), exit.oom_killed, exit.reason.as_str())
        }
        _ => (0, "", false, ""),
    };
    let alive = status.is_alive();
    let process = &spec["process"];
    let resources = &spec["linux"]["resources"];
    let limit = |value: &Value| value.as_i64().unwrap_or(0);
    let quota = limit(&resources["cpu"]["quota"]);
    let period = limit(&resources["cpu"]["period"]).max(1);
    let log = container.bundle.join(Container::STDOUT_LOG);
    Ok(json!({
        "Id": container.id,
        "Created": record.created,
        "Path": record.command.first(),
        "Args": record.command.get(1..),
        "State": {
            "Status": status.word(),
            "Running": matches!(status, Status::Running | Status::Paused),
            "Paused": status == Status::Paused,
            "OOMKilled": oom,
            "Pid": if alive { shim.container_pid.unwrap_or(0) } else { 0 },
            "ExitCode": code,
            "Error": reason,
            "StartedAt": shim.started_at.unwrap_or_default(),
            "FinishedAt": finished,
        },
        "Image": record.image_id,
        "Name": format!("/{}", record.name),
        "LogPath": log,
        "Platform": "linux",
        "HostConfig": {
            "AutoRemove": record.auto_remove,
            "Memory": limit(&resources["memory"]["limit"]),
            "NanoCpus": quota.saturating_mul(1_000_000_000) / period,
            "Privileged": spec["annotations"][annotation::DEVICES] == annotation::DEVICES_OF_GUEST,
            "PidsLimit": limit(&resources["pids"]["limit"]),
            "ReadonlyRootfs": spec["root"]["readonly"],
        },
        "Config": {
            "Hostname": spec["hostname"],
            "User": format!("{}:{}", process["user"]["uid"], process["user"]["gid"]),
            "Tty": record.tty,
            "OpenStdin": record.interactive,
            "Env": process["env"],
            "Cmd": record.command,
            "Image": record.image,
            "WorkingDir": process["cwd"],
            "Labels": record.labels,
            "StopSignal": record.stop_signal.to_string(),
            "StopTimeout": record.stop_timeout,
        },
        "NetworkSettings": crate::network::attachment(&container.bundle).map(|one| one.settings()),
        "Hull": {
            "Bundle": container.bundle,
            "Vcpus": spec["annotations"]["dev.hull.vm.vcpus"],
            "MemoryMiB": spec["annotations"]["dev.hull.vm.memory-mib"],
            "ShimPid": if alive { shim.shim_pid } else { 0 },
            "VmmPid": if alive { shim.vmm_pid.unwrap_or(0) } else { 0 },
        },
    }))
}

fn describe_image(image: &Image) -> Result<Value, CliError> {
    let texts = |references: &[hull_images::Reference]| {
        references.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    Ok(json!({
        "Id": image.id.to_string(),
        "RepoTags": texts(&image.references),
        "RepoDigests": texts(&image.digests),
        "Created": image.created,
        "Author": image.config.author(),
        "Architecture": image.config.architecture().to_string(),
        "Variant": image.config.variant(),
        "Os": image.config.os().to_string(),
        "Size": image.size,
        "Config": serde_json::to_value(image.config.config())?,
        "RootFS": { "Type": "layers", "Layers": image.config.rootfs().diff_ids() },
        "Hull": {
            "Manifest": image.manifest_digest.to_string(),
            "DiskIndex": image.disk.index,
            "DiskLayers": image.disk.layers,
        },
    }))
}
