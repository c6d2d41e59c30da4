//! What the shim knows, in containerd's messages.

use containerd_shim_protos::api::{PidsResponse, ProcessInfo, StateResponse, Status};
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::container::{Container, Freezer};
use crate::process::{Phase, Process};
use crate::time::timestamp;

/// The State of a process.
pub fn state(container: &Container, process: &Process) -> StateResponse {
    let [stdin, stdout, stderr] = process.stdio.addresses.clone();
    let mut state = StateResponse {
        id: container.id.clone(),
        exec_id: process.exec.clone().unwrap_or_default(),
        bundle: container.bundle.display().to_string(),
        pid: process.pid(),
        stdin,
        stdout,
        stderr,
        terminal: process.stdio.terminal,
        ..StateResponse::default()
    };
    let status = match (process.phase(), container.freezer()) {
        (Phase::Exited(exit), _) => {
            state.exit_status = exit.status;
            state.exited_at = timestamp(exit.at);
            Status::STOPPED
        }
        (_, Freezer::Frozen) => Status::PAUSED,
        (_, Freezer::Freezing) => Status::PAUSING,
        (Phase::Created | Phase::Starting, Freezer::Thawed) => Status::CREATED,
        (Phase::Running, Freezer::Thawed) => Status::RUNNING,
    };
    state.status = status.into();
    state
}

/// The processes that have a pid: the init always, an exec once it was started.
pub fn pids(container: &Container) -> PidsResponse {
    let init = ProcessInfo { pid: container.init.pid(), ..ProcessInfo::default() };
    let running = container.execs().into_iter().filter(|exec| exec.phase() == Phase::Running);
    let execs = running.map(|exec| {
        let details =
            ProcessDetails { exec_id: exec.exec.clone().unwrap_or_default(), ..ProcessDetails::default() };
        let info = pack("containerd.runc.v1.ProcessDetails", &details).ok();
        ProcessInfo { pid: exec.pid(), info: info.into(), ..ProcessInfo::default() }
    });
    PidsResponse { processes: std::iter::once(init).chain(execs).collect(), ..PidsResponse::default() }
}

pub(super) fn pack(type_url: &str, message: &impl Message) -> ttrpc::Result<Any> {
    let value = message.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}
